//! A fleet that writes down what was said to nodes while slots moved, what they answered, and what
//! looks showed meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;

use reeve::domain::moving::talk::{Answer, Lane, Saying};
use reeve::domain::node::{Address, ClusterNodeId};
use reeve::domain::observation::{OpenSlot, Report, Role};
use reeve::domain::slot::SlotSet;
use reeve::fleet::{Ask, Fleet, FleetError, Talk, Target};

use super::shim::Shim;

/// One entry of a record; a saying has one for when it was sent, and another when it was answered.
#[derive(Debug, Clone)]
pub enum Entry {
    Said {
        at: Address,
        to: ClusterNodeId,
        sayings: Vec<Saying>,
    },
    /// What came back, for each saying.
    Heard {
        to: ClusterNodeId,
        heard: Vec<(Saying, Answer)>,
    },
    Looked(Sight),
}

/// What a look showed of a node.
#[derive(Debug, Clone)]
pub struct Sight {
    pub at: Address,
    pub node: ClusterNodeId,
    pub primary: bool,
    pub epoch: u64,
    pub slots: SlotSet,
    pub open: Vec<OpenSlot>,
    /// The epochs of all other primaries, as it knows them: a replica shows that of its primary.
    pub epochs: BTreeMap<ClusterNodeId, u64>,
}

/// Shared by those who write and those who read.
pub type Record = Arc<Mutex<Vec<Entry>>>;

pub struct Recorder {
    pub fleet: Arc<dyn Fleet>,
    pub record: Record,
}

impl Recorder {
    /// The place of the entry.
    fn note(&self, entry: Entry) -> usize {
        let mut record = self.record.lock().unwrap();
        record.push(entry);
        record.len() - 1
    }

    /// Nothing was sent: the node could not be reached, or did not let this process in.
    fn take_back(&self, place: usize) {
        if let Some(Entry::Said { sayings, .. }) = self.record.lock().unwrap().get_mut(place) {
            sayings.clear();
        }
    }
}

impl Shim for Recorder {
    fn behind(&self) -> &dyn Fleet {
        &*self.fleet
    }

    fn look<'a>(
        &'a self,
        target: &'a Target,
        ask: &'a Ask,
    ) -> BoxFuture<'a, Result<Report, FleetError>> {
        Box::pin(async move {
            let report = self.fleet.look(target, ask).await?;
            if let Some(sight) = sight(&target.address, &report) {
                self.note(Entry::Looked(sight));
            }
            Ok(report)
        })
    }

    fn converse<'a>(
        &'a self,
        talk: &'a Talk<'a>,
        sayings: &'a [Saying],
    ) -> BoxFuture<'a, Result<Vec<Answer>, FleetError>> {
        Box::pin(async move {
            if talk.lane == Lane::Probe {
                return self.fleet.converse(talk, sayings).await;
            }
            let (at, to) = (talk.target.address.clone(), talk.identity.clone());
            let said = self.note(Entry::Said { at, to: to.clone(), sayings: sayings.to_vec() });
            let answers = self.fleet.converse(talk, sayings).await;
            if let Err(FleetError::Unreachable { .. } | FleetError::Rejected { .. }) = &answers {
                self.take_back(said);
            }
            let answers = answers?;
            let heard = sayings.iter().cloned().zip(answers.iter().cloned()).collect();
            self.note(Entry::Heard { to, heard });
            Ok(answers)
        })
    }
}

fn sight(at: &Address, report: &Report) -> Option<Sight> {
    let view = report.cluster.as_ref()?;
    let primaries = view.peers.iter().filter(|(_, peer)| peer.role == Role::Primary);
    Some(Sight {
        at: at.clone(),
        node: view.my_id.clone(),
        primary: report.role == Role::Primary,
        epoch: view.my_epoch,
        slots: view.my_slots(),
        open: view.open.clone(),
        epochs: primaries.map(|(id, peer)| (id.clone(), peer.epoch)).collect(),
    })
}
