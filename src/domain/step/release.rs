//! Lets writes to one node go on that were told to wait.

use serde::{Deserialize, Serialize};

use super::command::{Command, Verb};
use super::{Action, Check, StepKey, seen_or_wait};
use crate::domain::node::Address;
use crate::domain::observation::{Mark, MarkKind, Observation, PausedMark};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseWrites {
    pub node: Address,
    /// The pauses that end.
    pub pauses: Vec<PausedMark>,
}

impl Action for ReleaseWrites {
    fn key(&self) -> StepKey {
        format!("release_writes:{}", self.node)
    }

    fn title(&self) -> String {
        format!("Let writes to {} go on", self.node)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.node.clone()]
    }

    /// A node cannot show whether it is paused: the marks alone tell.
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
        vec![Command::new(&self.node, Verb::Unpause)]
    }

    fn clears(&self) -> Vec<Mark> {
        let mark = |pause: &PausedMark| Mark {
            node: self.node.clone(),
            what: MarkKind::Paused(pause.clone()),
        };
        self.pauses.iter().map(mark).collect()
    }
}
