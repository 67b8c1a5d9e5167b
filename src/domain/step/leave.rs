//! Takes a node that is no longer wanted out of the cluster: a replica drops its copy, forgets
//! everybody and is blank again.
//!
//! The others forget it right afterwards. It is reset first, since Valkey (from 8.1 on) has a node
//! that still knows the others come back by itself.

use serde::{Deserialize, Serialize};

use super::claim::no_cluster;
use super::command::{Command, Verb};
use super::reset::blank_out;
use super::{Action, Blocker, Check, StepKey, Wait, seen_or_wait};
use crate::domain::hazard::{Hazard, HazardKind};
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{IdentityMark, Mark, MarkKind, Observation, Role};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leave {
    pub node: Address,
    /// The identity to be rid of; a node that has another one has left.
    pub identity: ClusterNodeId,
    /// The shard, by position, that is left without any replica.
    pub bares: Option<u16>,
}

impl Action for Leave {
    fn key(&self) -> StepKey {
        format!("leave:{}", self.node)
    }

    fn title(&self) -> String {
        format!("Take {} out of the cluster", self.node)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.node.clone()]
    }

    fn hazards(&self) -> Vec<Hazard> {
        let hazard = |index: u16| Hazard {
            id: format!("redundancy:shard-{index}"),
            kind: HazardKind::RedundancyLoss,
            step: self.key(),
            why: format!(
                "{} is the last replica of shard {index}: when its primary fails, nobody takes over",
                self.node
            ),
            expected_ms: None,
        };
        self.bares.map(hazard).into_iter().collect()
    }

    fn check(&self, seen: &Observation) -> Check {
        let report = match seen_or_wait(&self.node, seen) {
            Err(wait) => return wait,
            Ok(report) => report,
        };
        let Some(view) = &report.cluster else { return Check::Blocked(no_cluster(&self.node)) };
        if view.my_id != self.identity {
            Check::Done
        } else if report.role == Role::Primary && !view.my_slots().is_empty() {
            let why = format!("{} still serves slots", self.node);
            Check::Waiting(Wait::for_gossip(&self.node, why))
        } else if report.role == Role::Primary && report.keys > 0 {
            Check::Blocked(Blocker {
                code: "node_has_keys",
                node: Some(self.node.clone()),
                why: format!(
                    "{} serves no slots, but holds {} keys that nobody else may have",
                    self.node, report.keys
                ),
                recovery: "Look at what it holds. Where the keys are not needed, empty the node (FLUSHALL); then retry the plan.",
            })
        } else {
            Check::Ready
        }
    }

    fn effect(&self, world: &mut Observation) {
        let marks = self.marks(world);
        world.marks.extend(marks);
        blank_out(&self.node, world);
    }

    fn commands(&self, _seen: &Observation) -> Vec<Command> {
        let confirm = Command::new(&self.node, Verb::Confirm(self.identity.clone()));
        vec![confirm, Command::new(&self.node, Verb::ResetHard)]
    }

    fn marks(&self, seen: &Observation) -> Vec<Mark> {
        let what = MarkKind::Identity(IdentityMark { id: self.identity.clone() });
        let mark = Mark { node: self.node.clone(), what };
        if seen.marks.contains(&mark) { vec![] } else { vec![mark] }
    }
}
