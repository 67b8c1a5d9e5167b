//! Gives one blank node its own configuration epoch and, if it is to be a primary, its slots.
//!
//! Distinct epochs from the start spare the cluster the rounds in which it would sort out
//! collisions. `SET-CONFIG-EPOCH` is refused once a node knows others, hence before they meet.

use serde::{Deserialize, Serialize};

use super::command::{Command, Verb};
use super::{Action, Blocker, Check, StepKey, seen_or_wait};
use crate::domain::node::Address;
use crate::domain::observation::{ClusterView, Observation, Role, Sighting};
use crate::domain::slot::SlotSet;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimSlots {
    pub node: Address,
    /// The epoch to set while the node is alone; none where it is not.
    pub epoch: Option<u64>,
    pub slots: SlotSet,
}

impl ClaimSlots {
    /// The slots that others own, as this node or anybody sees it: to claim those would be a quarrel
    /// that the higher epoch wins, and the loser drops its keys. A node that is still alone would
    /// not know of them.
    fn taken(&self, mine: &ClusterView, missing: &SlotSet, seen: &Observation) -> SlotSet {
        let views = seen.nodes.keys().filter_map(|a| seen.view(a)).chain([mine]);
        let others = views.flat_map(|v| &v.peers).filter(|(id, _)| **id != mine.my_id);
        others.fold(SlotSet::empty(), |all, (_, p)| all.union(&p.slots.intersection(missing)))
    }

    fn needs_epoch(&self, view: &ClusterView) -> bool {
        self.epoch.is_some() && view.my_epoch == 0 && view.peers.len() <= 1
    }
}

impl Action for ClaimSlots {
    fn key(&self) -> StepKey {
        format!("claim_slots:{}", self.node)
    }

    fn title(&self) -> String {
        if self.slots.is_empty() {
            format!("Give {} an epoch of its own", self.node)
        } else {
            format!("Assign slots {} to {}", self.slots, self.node)
        }
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
        let missing = self.slots.difference(&view.my_slots());
        if missing.is_empty() && !self.needs_epoch(view) {
            return Check::Done;
        }
        let taken = self.taken(view, &missing, seen);
        if !taken.is_empty() {
            return Check::Blocked(Blocker {
                code: "slots_taken",
                node: Some(self.node.clone()),
                why: format!("{} is to serve slots {taken}, but another node owns them", self.node),
                recovery: "Slots that somebody owns are not moved by this plan. Look at GET …/slots and at CLUSTER NODES of the nodes; move the slots, or ask for a layout that leaves them where they are (accept_drift).",
            });
        }
        if report.role == Role::Replica {
            return Check::Blocked(Blocker {
                code: "wrong_role",
                node: Some(self.node.clone()),
                why: format!("{} is a replica and cannot take slots", self.node),
                recovery: "Reset the node (CLUSTER RESET HARD) if it holds nothing that is needed and retry the plan, or delete the topology and create it anew.",
            });
        }
        // A node's first slots must not make keys reachable that nobody counted on.
        if report.keys > 0 && view.my_slots().is_empty() {
            return Check::Blocked(Blocker {
                code: "node_has_keys",
                node: Some(self.node.clone()),
                why: format!("{} holds {} keys", self.node, report.keys),
                recovery: "Empty the node, or create the topology with reset_nodes and accept its flush hazard.",
            });
        }
        Check::Ready
    }

    fn effect(&self, world: &mut Observation) {
        let Some(Sighting::Seen(report)) = world.nodes.get_mut(&self.node) else { return };
        let Some(view) = &mut report.cluster else { return };
        if let (true, Some(epoch)) = (self.needs_epoch(view), self.epoch) {
            view.my_epoch = epoch;
            view.current_epoch = view.current_epoch.max(epoch);
        }
        let epoch = view.my_epoch;
        if let Some(me) = view.peers.get_mut(&view.my_id) {
            me.slots = me.slots.union(&self.slots);
            me.epoch = epoch;
        }
    }

    fn commands(&self, seen: &Observation) -> Vec<Command> {
        let Some(view) = seen.view(&self.node) else { return vec![] };
        let mut verbs = Vec::new();
        if let (true, Some(epoch)) = (self.needs_epoch(view), self.epoch) {
            verbs.push(Verb::SetConfigEpoch(epoch));
        }
        let missing = self.slots.difference(&view.my_slots());
        if !missing.is_empty() {
            verbs.push(Verb::AddSlots(missing));
        }
        verbs.into_iter().map(|v| Command::new(&self.node, v)).collect()
    }
}

pub(super) fn no_cluster(node: &Address) -> Blocker {
    Blocker {
        code: "not_cluster_enabled",
        node: Some(node.clone()),
        why: format!("{node} does not run in cluster mode"),
        recovery: "Start the node with cluster-enabled yes and retry the plan.",
    }
}
