//! Gives a primary a greater epoch where others still show an owner of its slots whose epoch is not
//! smaller: they would believe that one for ever, and the cluster would stay down.

use serde::{Deserialize, Serialize};

use super::claim::no_cluster;
use super::command::{Command, Verb};
use super::{Action, Check, StepKey, seen_or_wait};
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Sighting};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BumpEpoch {
    pub node: Address,
    /// The epoch of the other owner.
    pub above: u64,
}

impl Action for BumpEpoch {
    fn key(&self) -> StepKey {
        format!("bump_epoch:{}", self.node)
    }

    fn title(&self) -> String {
        format!("Give {} an epoch above {}, so that all believe it", self.node, self.above)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.node.clone()]
    }

    fn check(&self, seen: &Observation) -> Check {
        match seen_or_wait(&self.node, seen) {
            Err(wait) => wait,
            Ok(report) => match &report.cluster {
                None => Check::Blocked(no_cluster(&self.node)),
                Some(view) if view.my_epoch > self.above => Check::Done,
                Some(_) => Check::Ready,
            },
        }
    }

    fn effect(&self, world: &mut Observation) {
        let epoch = self.above.saturating_add(1);
        let Some(view) = world.view(&self.node) else { return };
        let (id, slots) = (view.my_id.clone(), view.my_slots());
        for (address, sighting) in &mut world.nodes {
            let Sighting::Seen(report) = sighting else { continue };
            let Some(view) = &mut report.cluster else { continue };
            if *address == self.node {
                view.my_epoch = epoch;
            }
            view.current_epoch = view.current_epoch.max(epoch);
            for (other, peer) in &mut view.peers {
                if *other == id {
                    peer.epoch = epoch;
                    peer.slots = slots.clone();
                } else {
                    peer.slots = peer.slots.difference(&slots);
                }
            }
        }
    }

    fn commands(&self, seen: &Observation) -> Vec<Command> {
        let confirm = seen.view(&self.node).map(|v| Verb::Confirm(v.my_id.clone()));
        let verbs = confirm.into_iter().chain([Verb::BumpEpoch]);
        verbs.map(|verb| Command::new(&self.node, verb)).collect()
    }
}
