//! Waits until the Sentinel that is to lead would choose the replica that is to take over. It sends
//! nothing: a Sentinel asks replicas for their priority each ten seconds.

use serde::{Deserialize, Serialize};

use super::command::Command;
use super::{Action, Check, StepKey, Wait, seen_or_wait};
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Role, Sighting};
use crate::domain::plan::WaitingFor;
use crate::domain::sentinel::{RIPE_MS, Watchers};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitChoice {
    pub sentinel: Address,
    pub to: Address,
    pub watchers: Watchers,
}

impl Action for AwaitChoice {
    fn key(&self) -> StepKey {
        format!("await_choice:{}", self.to)
    }

    fn title(&self) -> String {
        format!("Wait until {} would choose {}", self.sentinel, self.to)
    }

    fn nodes(&self) -> Vec<Address> {
        self.watchers.sentinels.clone()
    }

    fn check(&self, seen: &Observation) -> Check {
        match seen_or_wait(&self.to, seen) {
            Err(wait) => return wait,
            Ok(to) if to.role == Role::Primary => return Check::Done,
            Ok(_) => {}
        }
        if self.watchers.is_ripe(&self.sentinel, &self.to, seen) {
            return Check::Done;
        }
        Check::Waiting(Wait {
            reason: WaitingFor::Convergence,
            nodes: vec![self.sentinel.clone()],
            why: format!(
                "{} is to see that {} is to be preferred, and a moment is to pass",
                self.sentinel, self.to
            ),
            // From then on every moment counts.
            done: usize::from(self.watchers.would_choose(&self.sentinel, &self.to, seen)),
            total: 2,
        })
    }

    fn effect(&self, world: &mut Observation) {
        for sentinel in &self.watchers.sentinels {
            let Some(Sighting::Seen(report)) = world.nodes.get_mut(sentinel) else { continue };
            let Some(view) = &mut report.sentinel else { continue };
            let Some(watch) = view.watches.get_mut(&self.watchers.name) else { continue };
            for replica in &mut watch.replicas {
                replica.priority = if replica.address == self.to { 1 } else { 100 };
                replica.age_ms = RIPE_MS;
            }
        }
    }

    fn commands(&self, _seen: &Observation) -> Vec<Command> {
        vec![]
    }
}
