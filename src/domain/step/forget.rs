//! Has one node forget the cluster identities of nodes that were reset, or that left.
//!
//! A forgotten identity is barred for a minute; after that, a node that still knows it spreads it
//! again. So the planner has all nodes forget at the same time, and a mark stays until none that
//! could know it is left.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::claim::no_cluster;
use super::command::{Command, Verb};
use super::{Action, Blocker, Check, StepKey, seen_or_wait};
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{
    ClusterView, IdentityMark, Mark, MarkKind, Observation, Sighting,
};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forget {
    pub node: Address,
    /// Each identity with the node that has or had it.
    pub ids: BTreeMap<ClusterNodeId, Address>,
}

impl Forget {
    fn known<'a>(&'a self, view: &ClusterView) -> Vec<&'a ClusterNodeId> {
        self.ids.keys().filter(|id| view.peers.contains_key(*id)).collect()
    }
}

impl Action for Forget {
    fn key(&self) -> StepKey {
        format!("forget:{}", self.node)
    }

    fn title(&self) -> String {
        let nodes: Vec<_> = self.ids.values().map(ToString::to_string).collect();
        format!("Have {} forget the old identity of {}", self.node, nodes.join(", "))
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.node.clone()]
    }

    fn check(&self, seen: &Observation) -> Check {
        let report = match seen_or_wait(&self.node, seen) {
            Err(wait) => return wait,
            Ok(report) => report,
        };
        let Some(view) = &report.cluster else { return Check::Blocked(no_cluster(&self.node)) };
        let known = self.known(view);
        let mine = view.me().and_then(|me| me.primary.as_ref());
        if known.is_empty() {
            Check::Done
        } else if let Some(id) = mine.filter(|id| known.contains(id)) {
            Check::Blocked(Blocker {
                code: "replica_of_ghost",
                node: Some(self.node.clone()),
                why: format!(
                    "{} is still a replica of {id}, a node that left the cluster, and holds {} keys of it",
                    self.node, report.keys
                ),
                recovery: "Where its keys are needed, make it a primary (CLUSTER FAILOVER TAKEOVER); else empty it (CLUSTER RESET HARD). Then ask for the plan again.",
            })
        } else {
            Check::Ready
        }
    }

    fn effect(&self, world: &mut Observation) {
        let marks = self.marks(world);
        world.marks.extend(marks);
        let Some(Sighting::Seen(report)) = world.nodes.get_mut(&self.node) else { return };
        let Some(view) = &mut report.cluster else { return };
        view.peers.retain(|id, _| !self.ids.contains_key(id));
    }

    fn commands(&self, seen: &Observation) -> Vec<Command> {
        let Some(view) = seen.view(&self.node) else { return vec![] };
        let forget = |id: &ClusterNodeId| Command::new(&self.node, Verb::Forget(id.clone()));
        self.known(view).into_iter().map(forget).collect()
    }
    fn marks(&self, seen: &Observation) -> Vec<Mark> {
        let mark = |(id, node): (&ClusterNodeId, &Address)| {
            let what = MarkKind::Identity(IdentityMark { id: id.clone() });
            Mark { node: node.clone(), what }
        };
        self.ids.iter().map(mark).filter(|mark| !seen.marks.contains(mark)).collect()
    }
}
