//! A fleet that is wrong in one way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;

use reeve::domain::moving::talk::{Answer, Saying, SlotState};
use reeve::domain::node::Address;
use reeve::domain::observation::Report;
use reeve::domain::step::command::Verb;
use reeve::fleet::sim::SimFleet;
use reeve::fleet::{Ask, Fleet, FleetError, Talk, Target};

use crate::support::shim::Shim;

/// A mistake that is made on purpose, to see that the sweep finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// Nodes are taken for fenced that are not.
    NoFence,
    /// Looks show what was there before the last command.
    StaleLooks,
    /// Marks are not in the database yet when their commands go out.
    LateMarks,
    /// The database lets every holder of a lease write, whoever came after it.
    NoToken,
    /// A slot goes to its new owner before its source is empty.
    NodeTooEarly,
    /// Keys do not replace those that the target has already.
    NoReplace,
    /// A slot that was opened once is taken for open, whoever leads the shards at its ends.
    NoRearming,
}

pub struct Mistaken {
    fleet: Arc<dyn Fleet>,
    sim: Arc<SimFleet>,
    mistake: Mistake,
    before: Mutex<BTreeMap<Address, Report>>,
    opened: Mutex<BTreeSet<u16>>,
}

impl Mistaken {
    pub fn new(fleet: Arc<dyn Fleet>, sim: Arc<SimFleet>, mistake: Mistake) -> Self {
        Self { fleet, sim, mistake, before: Mutex::default(), opened: Mutex::default() }
    }

    /// What is said instead, and what the answer is then taken for.
    fn twisted(&self, saying: &Saying) -> (Saying, Option<Answer>) {
        match (self.mistake, saying) {
            (Mistake::NodeTooEarly, Saying::ListKeys { .. }) => {
                (saying.clone(), Some(Answer::Keys(vec![])))
            }
            (Mistake::NoReplace, Saying::Migrate { to, keys, within_ms }) => {
                let there = self.sim.inspect(to).map(|held| held.keys).unwrap_or_default();
                let (busy, fresh): (Vec<_>, Vec<_>) =
                    keys.iter().cloned().partition(|key| there.contains(&key.to_string()));
                if busy.is_empty() {
                    return (saying.clone(), None);
                }
                let message =
                    "Target instance replied with error: BUSYKEY Target key name already exists.";
                let refused = Answer::Refused { code: "ERR".into(), message: message.into() };
                let rest = Saying::Migrate { to: to.clone(), keys: fresh, within_ms: *within_ms };
                let nothing = matches!(&rest, Saying::Migrate { keys, .. } if keys.is_empty());
                (if nothing { Saying::Ping } else { rest }, Some(refused))
            }
            (Mistake::NoRearming, Saying::SetSlot { slot, state }) => {
                let mut opened = self.opened.lock().unwrap();
                let opens = match state {
                    SlotState::Importing(_) => true,
                    // The second of the two.
                    SlotState::Migrating(_) if !opened.contains(slot) => {
                        opened.insert(*slot);
                        return (saying.clone(), None);
                    }
                    SlotState::Migrating(_) => true,
                    SlotState::Node(_) | SlotState::Stable => false,
                };
                if opens && opened.contains(slot) {
                    return (Saying::Ping, Some(Answer::Done));
                }
                (saying.clone(), None)
            }
            _ => (saying.clone(), None),
        }
    }
}

impl Shim for Mistaken {
    fn behind(&self) -> &dyn Fleet {
        &*self.fleet
    }

    fn look<'a>(
        &'a self,
        target: &'a Target,
        ask: &'a Ask,
    ) -> BoxFuture<'a, Result<Report, FleetError>> {
        Box::pin(async move {
            let now = self.fleet.look(target, ask).await?;
            if self.mistake != Mistake::StaleLooks {
                return Ok(now);
            }
            let mut before = self.before.lock().unwrap();
            Ok(before.insert(target.address.clone(), now.clone()).unwrap_or(now))
        })
    }

    fn fence<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), FleetError>> {
        if self.mistake == Mistake::NoFence {
            return Box::pin(async { Ok(()) });
        }
        self.fleet.fence(target)
    }

    fn send<'a>(
        &'a self,
        target: &'a Target,
        verbs: &'a [Verb],
    ) -> BoxFuture<'a, Result<(), FleetError>> {
        // Without fences, connections belong to nobody.
        let fence = target.fence.filter(|_| self.mistake != Mistake::NoFence);
        let target = Target { fence, ..target.clone() };
        Box::pin(async move { self.fleet.send(&target, verbs).await })
    }

    fn converse<'a>(
        &'a self,
        talk: &'a Talk<'a>,
        sayings: &'a [Saying],
    ) -> BoxFuture<'a, Result<Vec<Answer>, FleetError>> {
        Box::pin(async move {
            let (said, taken): (Vec<Saying>, Vec<Option<Answer>>) =
                sayings.iter().map(|saying| self.twisted(saying)).unzip();
            let answers = self.fleet.converse(talk, &said).await?;
            Ok(answers.into_iter().zip(taken).map(|(answer, t)| t.unwrap_or(answer)).collect())
        })
    }
}
