//! Takes a node that is no longer wanted out of the cluster: a replica drops its copy, forgets
//! everybody and is blank again.
//!
//! The others forget it right afterwards. It is reset first, since Valkey (from 8.1 on) has a node
//! that still knows the others come back by itself.

use serde::{Deserialize, Serialize};

use super::claim::no_cluster;
use super::command::Command;
use super::reset::{blank_out, emptying, guard_mark, resetting, unwritten};
use super::{Action, Blocker, Check, StepKey, Wait, seen_or_wait};
use crate::domain::hazard::{Hazard, HazardKind};
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{IdentityMark, Mark, MarkKind, Observation, Report, Role};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leave {
    pub node: Address,
    /// The identity to be rid of; a cluster node that has another one has left. Outside of clusters it
    /// has when it is blank.
    pub identity: ClusterNodeId,
    /// The shard, by position, that is left without any replica.
    pub bares: Option<u16>,
}

impl Action for Leave {
    fn key(&self) -> StepKey {
        format!("leave:{}", self.node)
    }

    fn title(&self) -> String {
        format!("Take {} out of the topology", self.node)
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
        let Some(view) = &report.cluster else {
            return match report.cluster_enabled {
                true => Check::Blocked(no_cluster(&self.node)),
                false => self.leaves_alone(report, seen),
            };
        };
        if view.my_id != self.identity {
            Check::Done
        } else if report.role == Role::Primary && !view.my_slots().is_empty() {
            let why = format!("{} still serves slots", self.node);
            Check::Waiting(Wait::for_gossip(&self.node, why))
        } else if report.role == Role::Primary && report.keys > 0 {
            Check::Blocked(has_keys(&self.node, report.keys))
        } else {
            Check::Ready
        }
    }

    fn effect(&self, world: &mut Observation) {
        let marks = self.marks(world);
        world.marks.extend(marks);
        blank_out(&self.node, world);
    }

    fn commands(&self, seen: &Observation) -> Vec<Command> {
        if let Some(report) = seen.report(&self.node).filter(|r| !r.cluster_enabled) {
            return emptying(&self.node, &report.identity(), seen);
        }
        resetting(&self.node, &self.identity, false, seen)
    }

    fn marks(&self, seen: &Observation) -> Vec<Mark> {
        let alone = seen.report(&self.node).is_some_and(|r| !r.cluster_enabled);
        let unwritten = if alone { unwritten(&self.node, seen) } else { vec![] };
        let what = MarkKind::Identity(IdentityMark { id: self.identity.clone() });
        let mark = Mark { node: self.node.clone(), what };
        let mark = (!seen.marks.contains(&mark)).then_some(mark);
        unwritten.into_iter().chain(mark).chain(guard_mark(&self.node, seen)).collect()
    }
}

impl Leave {
    /// Outside of clusters a node that is on its way out may be a primary with its copy of the data
    /// for a moment; the mark tells.
    fn leaves_alone(&self, report: &Report, seen: &Observation) -> Check {
        let begun = || seen.marks_on(&self.node).any(|m| m.what.identity() == Some(&self.identity));
        if report.is_blank() {
            Check::Done
        } else if report.role == Role::Primary && report.keys > 0 && !begun() {
            if is_replica_to_sentinels(&self.node, seen) {
                let why = format!("{} is to be made a replica by the Sentinels first", self.node);
                return Check::Waiting(Wait::for_gossip(&self.node, why));
            }
            Check::Blocked(has_keys(&self.node, report.keys))
        } else {
            Check::Ready
        }
    }
}

/// Whether some Sentinel lists it as a replica: one that was primary and comes back, they convert.
fn is_replica_to_sentinels(node: &Address, seen: &Observation) -> bool {
    let views = seen.nodes.keys().filter_map(|a| seen.report(a)?.sentinel.as_ref());
    let mut replicas = views.flat_map(|v| v.watches.values()).flat_map(|w| &w.replicas);
    replicas.any(|r| r.address_in(seen) == node)
}

fn has_keys(node: &Address, keys: u64) -> Blocker {
    Blocker {
        code: "node_has_keys",
        node: Some(node.clone()),
        why: format!("{node} serves nobody, but holds {keys} keys that nobody else may have"),
        recovery: "Look at what it holds. Where the keys are not needed, empty the node (FLUSHALL); then retry the plan.",
    }
}
