//! Waits until a server has dropped the keys of slots that are not its own any more (Redis 8.4 does so
//! after a job is over). It sends nothing.

use serde::{Deserialize, Serialize};

use super::command::Command;
use super::{Action, Check, StepKey, Wait, seen_or_wait};
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Sighting};
use crate::domain::plan::WaitingFor;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitTrim {
    pub node: Address,
}

/// What has to be waited for at a node that drops keys, if it does.
pub(super) fn trims(node: &Address, seen: &Observation) -> Option<Wait> {
    seen.view(node).filter(|view| view.trims)?;
    let why = format!("{node} still drops keys of slots that are not its own");
    Some(Wait { reason: WaitingFor::Sync, nodes: vec![node.clone()], why, done: 0, total: 1 })
}

impl Action for AwaitTrim {
    fn key(&self) -> StepKey {
        format!("await_trim:{}", self.node)
    }

    fn title(&self) -> String {
        format!("Wait until {} has dropped the keys that moved away", self.node)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.node.clone()]
    }

    fn check(&self, seen: &Observation) -> Check {
        match seen_or_wait(&self.node, seen) {
            Err(wait) => wait,
            Ok(_) => trims(&self.node, seen).map_or(Check::Done, Check::Waiting),
        }
    }

    fn effect(&self, world: &mut Observation) {
        if let Some(Sighting::Seen(report)) = world.nodes.get_mut(&self.node)
            && let Some(view) = &mut report.cluster
        {
            view.trims = false;
        }
    }

    fn commands(&self, _seen: &Observation) -> Vec<Command> {
        vec![]
    }
}
