//! Writes one node's lasting settings to its config file. Never while a temporary one is in force,
//! which would then outlive a restart.

use serde::{Deserialize, Serialize};

use super::command::{Command, Verb};
use super::{Action, Check, StepKey, seen_or_wait};
use crate::domain::node::Address;
use crate::domain::observation::{Mark, MarkKind, Observation};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewriteConfig {
    pub node: Address,
}

impl Action for RewriteConfig {
    fn key(&self) -> StepKey {
        format!("rewrite_config:{}", self.node)
    }

    fn title(&self) -> String {
        format!("Write the settings of {} to its config file", self.node)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.node.clone()]
    }

    /// A node cannot show whether its file is up to date: the mark alone tells.
    fn check(&self, seen: &Observation) -> Check {
        let pending = self.clears().iter().any(|m| seen.marks.contains(m));
        match seen_or_wait(&self.node, seen) {
            _ if !pending => Check::Done,
            Err(wait) => wait,
            Ok(_) => Check::Ready,
        }
    }

    fn effect(&self, world: &mut Observation) {
        let cleared = self.clears();
        world.marks.retain(|m| !cleared.contains(m));
    }

    fn commands(&self, _seen: &Observation) -> Vec<Command> {
        vec![Command::new(&self.node, Verb::ConfigRewrite)]
    }

    fn clears(&self) -> Vec<Mark> {
        vec![Mark { node: self.node.clone(), what: MarkKind::Unwritten }]
    }
}
