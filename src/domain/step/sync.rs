//! Waits until a replica has its primary's data and keeps up. It sends nothing.

use serde::{Deserialize, Serialize};

use super::command::Command;
use super::failover::LAG_AT_MOST;
use super::{Action, Check, StepKey, Wait, seen_or_wait};
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Sighting};
use crate::domain::plan::WaitingFor;
use crate::domain::view::follows;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitSync {
    pub node: Address,
    pub primary: Address,
}

impl Action for AwaitSync {
    fn key(&self) -> StepKey {
        format!("await_sync:{}", self.node)
    }

    fn title(&self) -> String {
        format!("Wait until {} has the data of {}", self.node, self.primary)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.node.clone()]
    }

    fn check(&self, seen: &Observation) -> Check {
        let report = match seen_or_wait(&self.node, seen) {
            Err(wait) => return wait,
            Ok(report) => report,
        };
        let primary = match seen_or_wait(&self.primary, seen) {
            Err(wait) => return wait,
            Ok(primary) => primary,
        };
        let lag = primary.replication.offset.saturating_sub(report.replication.offset);
        let wait = |reason, why| {
            let nodes = vec![self.node.clone()];
            Check::Waiting(Wait { reason, nodes, why, done: 0, total: 1 })
        };
        if !follows(report, Some(&self.primary), seen) {
            let why = format!("{} does not follow {} yet", self.node, self.primary);
            wait(WaitingFor::Convergence, why)
        } else if report.replication.sync_in_progress {
            let why = format!("{} takes a full copy from {}", self.node, self.primary);
            wait(WaitingFor::Sync, why)
        } else if !report.replication.link_up {
            let why = format!("{} has no replication link to {} yet", self.node, self.primary);
            wait(WaitingFor::Convergence, why)
        } else if lag > LAG_AT_MOST {
            let why = format!("{} is {lag} bytes behind {}", self.node, self.primary);
            wait(WaitingFor::Convergence, why)
        } else {
            Check::Done
        }
    }

    fn effect(&self, world: &mut Observation) {
        let offset = world.report(&self.primary).map_or(0, |p| p.replication.offset);
        let keys = world.report(&self.primary).map_or(0, |p| p.keys);
        let Some(Sighting::Seen(report)) = world.nodes.get_mut(&self.node) else { return };
        report.keys = keys;
        report.replication.link_up = true;
        report.replication.sync_in_progress = false;
        report.replication.offset = offset;
    }

    fn commands(&self, _seen: &Observation) -> Vec<Command> {
        vec![]
    }
}
