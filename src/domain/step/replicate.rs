//! Makes one node the replica of another, as soon as it knows it.

use serde::{Deserialize, Serialize};

use super::claim::no_cluster;
use super::command::{Command, Verb};
use super::{Action, Blocker, Check, StepKey, Wait, seen_or_wait};
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Report, Role, Sighting};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replicate {
    pub node: Address,
    pub primary: Address,
}

impl Replicate {
    /// Whether a replica would drop its copy of keys that nobody else seen has.
    fn holds_an_only_copy(&self, report: &Report, primary: &Report, seen: &Observation) -> bool {
        let mine = report.cluster.as_ref().and_then(|v| v.me()).and_then(|me| me.primary.as_ref());
        let orphaned = mine.is_none_or(|id| seen.by_cluster_id(id).is_none());
        report.role == Role::Replica && report.keys > 0 && primary.keys == 0 && orphaned
    }
}

impl Action for Replicate {
    fn key(&self) -> StepKey {
        format!("replicate:{}", self.node)
    }

    fn title(&self) -> String {
        format!("Make {} a replica of {}", self.node, self.primary)
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
        let primary = match seen_or_wait(&self.primary, seen) {
            Err(wait) => return wait,
            Ok(primary) => primary,
        };
        let Some(theirs) = &primary.cluster else {
            return Check::Blocked(no_cluster(&self.primary));
        };
        if view.me().and_then(|me| me.primary.as_ref()) == Some(&theirs.my_id) {
            Check::Done
        } else if !view.known().contains(&theirs.my_id) {
            let why = format!("{} has not heard of {} yet", self.node, self.primary);
            Check::Waiting(Wait::for_gossip(&self.node, why))
        } else if !view.my_slots().intersection(&theirs.my_slots()).is_empty() {
            // It woke up after another one was elected in its place, and follows by itself if it loses.
            let why = format!(
                "{} and {} both say that they serve the same slots; the greater epoch decides",
                self.node, self.primary
            );
            Check::Waiting(Wait::for_gossip(&self.node, why))
        } else if report.role == Role::Primary && (report.keys > 0 || !view.my_slots().is_empty()) {
            Check::Blocked(Blocker {
                code: "node_has_keys",
                node: Some(self.node.clone()),
                why: format!(
                    "{} holds keys or slots, which becoming a replica would destroy",
                    self.node
                ),
                recovery: "Empty the node, or choose another one.",
            })
        } else if self.holds_an_only_copy(report, primary, seen) {
            Check::Blocked(Blocker {
                code: "node_has_keys",
                node: Some(self.node.clone()),
                why: format!(
                    "{} holds {} keys of a primary that is gone, and {} holds none",
                    self.node, report.keys, self.primary
                ),
                recovery: "Where the keys are needed, make the node a primary (CLUSTER FAILOVER TAKEOVER); else empty it. Then ask for the plan again.",
            })
        } else if primary.role != Role::Primary {
            Check::Blocked(Blocker {
                code: "wrong_role",
                node: Some(self.primary.clone()),
                why: format!(
                    "{} is no primary, and a replica of a replica is never made",
                    self.primary
                ),
                recovery: "A failover happened in the middle of the plan. Fail back to the node (CLUSTER FAILOVER) and retry the plan, or delete the topology and create it anew.",
            })
        } else {
            Check::Ready
        }
    }

    fn effect(&self, world: &mut Observation) {
        let Some(theirs) = world.view(&self.primary) else { return };
        let primary_id = theirs.my_id.clone();
        let theirs = world.report(&self.primary).map(|r| (r.functions, r.libraries.clone()));
        let offset = world.report(&self.primary).map_or(0, |r| r.replication.offset);
        let Some(Sighting::Seen(report)) = world.nodes.get_mut(&self.node) else { return };
        report.role = Role::Replica;
        (report.functions, report.libraries) = theirs.unwrap_or_default();
        report.replication.primary = Some(self.primary.clone());
        report.replication.link_up = true;
        report.replication.offset = offset;
        let Some(view) = &mut report.cluster else { return };
        if let Some(me) = view.peers.get_mut(&view.my_id) {
            me.role = Role::Replica;
            me.primary = Some(primary_id);
        }
    }

    fn commands(&self, seen: &Observation) -> Vec<Command> {
        let Some(theirs) = seen.view(&self.primary) else { return vec![] };
        vec![Command::new(&self.node, Verb::Replicate(theirs.my_id.clone()))]
    }
}
