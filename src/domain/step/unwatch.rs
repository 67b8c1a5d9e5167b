//! Has one Sentinel stop watching the deployment.

use serde::{Deserialize, Serialize};

use super::command::{Command, Verb};
use super::{Action, Check, StepKey, seen_or_wait};
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Sighting};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unwatch {
    pub sentinel: Address,
    pub name: String,
}

impl Action for Unwatch {
    fn key(&self) -> StepKey {
        format!("unwatch:{}", self.sentinel)
    }

    fn title(&self) -> String {
        format!("Have {} watch `{}` no more", self.sentinel, self.name)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.sentinel.clone()]
    }

    fn check(&self, seen: &Observation) -> Check {
        match seen_or_wait(&self.sentinel, seen) {
            Err(wait) => wait,
            Ok(_) if seen.watch(&self.sentinel, &self.name).is_some() => Check::Ready,
            Ok(_) => Check::Done,
        }
    }

    fn effect(&self, world: &mut Observation) {
        if let Some(Sighting::Seen(report)) = world.nodes.get_mut(&self.sentinel)
            && let Some(view) = &mut report.sentinel
        {
            view.watches.remove(&self.name);
        }
    }

    fn commands(&self, _seen: &Observation) -> Vec<Command> {
        vec![Command::new(&self.sentinel, Verb::Unwatch(self.name.clone()))]
    }
}
