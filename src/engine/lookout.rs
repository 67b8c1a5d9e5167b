//! Looking out over nodes while nothing is done to them: every look at a node is a task of its own,
//! and a round takes what has come by then. So a node that hangs costs nobody else time: what was
//! seen of it before stands until its look ends.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::task::{Id, JoinSet};
use tokio::time::sleep;

use super::Engine;
use super::look::silence;
use crate::clock;
use crate::domain::failovers::Glance;
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Report, Sighting};
use crate::fleet::{Ask, FleetError, Target};

/// A round waits this long for nodes that were asked in it.
const PATIENCE: Duration = Duration::from_millis(150);

struct Looked {
    node: Address,
    asked: DateTime<Utc>,
    ended: DateTime<Utc>,
    came: Result<Report, FleetError>,
}

/// The looks that are under way.
#[derive(Default)]
pub struct Lookout {
    looks: JoinSet<Looked>,
    under_way: HashMap<Address, (DateTime<Utc>, Id)>,
}

/// What a round brought.
pub struct Round {
    pub seen: Observation,
    pub glances: BTreeMap<Address, Glance>,
}

impl Lookout {
    /// Asks these nodes, but for those that still owe an answer, and adds what comes to what was seen
    /// before. Marks are the caller's.
    pub async fn round(
        &mut self,
        engine: &Arc<Engine>,
        targets: impl IntoIterator<Item = Target>,
        ask: &Arc<Ask>,
        before: &Observation,
    ) -> Round {
        let mut awaited = BTreeSet::new();
        for target in targets {
            let node = target.address.clone();
            if self.under_way.contains_key(&node) {
                continue;
            }
            let (engine, ask) = (engine.clone(), ask.clone());
            let asked = clock::now();
            let look = self.looks.spawn(async move {
                let came = engine.fleet.look(&target, &ask).await;
                Looked { node: target.address, asked, ended: clock::now(), came }
            });
            self.under_way.insert(node.clone(), (asked, look.id()));
            awaited.insert(node);
        }
        let mut looked = self.wait(awaited).await;
        while let Some(ended) = self.looks.try_join_next_with_id() {
            looked.extend(self.take(ended));
        }
        let mut round = Round { seen: before.clone(), glances: BTreeMap::new() };
        for Looked { node, asked, ended, came } in looked {
            let sighting = match came {
                Ok(report) => Sighting::Seen(Box::new(report)),
                Err(error) => silence(error, Some(before.sighting(&node))),
            };
            round.glances.insert(node.clone(), Glance { asked, ended, late: false });
            round.seen.nodes.insert(node, sighting);
        }
        let now = clock::now();
        for (node, (asked, _)) in &self.under_way {
            round.seen.nodes.entry(node.clone()).or_insert(Sighting::Unknown);
            round.glances.insert(node.clone(), Glance { asked: *asked, ended: now, late: true });
        }
        round
    }

    /// Waits until these have answered, but not for long.
    async fn wait(&mut self, mut awaited: BTreeSet<Address>) -> Vec<Looked> {
        let (mut looked, mut patience) = (Vec::new(), Box::pin(sleep(PATIENCE)));
        while !awaited.is_empty() {
            tokio::select! {
                biased;
                Some(ended) = self.looks.join_next_with_id() => {
                    let ended = self.take(ended);
                    ended.iter().for_each(|look| { awaited.remove(&look.node); });
                    looked.extend(ended);
                    awaited.retain(|node| self.under_way.contains_key(node));
                }
                () = &mut patience => break,
            }
        }
        looked
    }

    /// A look that is over. One that broke off is as if nobody had asked.
    fn take(&mut self, ended: Result<(Id, Looked), tokio::task::JoinError>) -> Option<Looked> {
        let id = ended.as_ref().map_or_else(|error| error.id(), |(id, _)| *id);
        self.under_way.retain(|_, (_, look)| *look != id);
        ended.ok().map(|(_, looked)| looked)
    }
}
