//! Cancels the jobs in which a server moves slots as a whole: a plan that is given up, or that wants the
//! slots elsewhere, leaves none behind. What a cancelled job had copied is dropped by the servers; the
//! slots stay where they were. It is said to whoever carries them out: Redis 8.4 goes on for ever unless
//! the target is told, whatever the source says.

use serde::{Deserialize, Serialize};

use super::command::{Command, Verb};
use super::slots::End;
use super::{Action, Check, StepKey, seen_or_wait};
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Sighting};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelSlotJobs {
    pub node: End,
}

impl Action for CancelSlotJobs {
    fn key(&self) -> StepKey {
        format!("cancel_slot_jobs:{}", self.node.address)
    }

    fn title(&self) -> String {
        format!("Cancel the slot migrations that {} has begun", self.node.address)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.node.address.clone()]
    }

    fn check(&self, seen: &Observation) -> Check {
        match seen_or_wait(&self.node.address, seen) {
            Err(wait) => wait,
            Ok(report) => match &report.cluster {
                Some(view) if view.my_id == self.node.id && !view.jobs.is_empty() => Check::Ready,
                Some(_) | None => Check::Done,
            },
        }
    }

    fn effect(&self, world: &mut Observation) {
        if let Some(Sighting::Seen(report)) = world.nodes.get_mut(&self.node.address)
            && let Some(view) = &mut report.cluster
        {
            view.jobs.clear();
        }
    }

    fn commands(&self, _seen: &Observation) -> Vec<Command> {
        let verbs = [Verb::Confirm(self.node.id.clone()), Verb::CancelSlotJobs];
        verbs.into_iter().map(|verb| Command::new(&self.node.address, verb)).collect()
    }
}
