//! Has writes to a node wait that another one took over from, until it follows its successor: what
//! clients write there would be lost.
//!
//! The pause ends by itself. It is for writes alone: one for everything would lock Reeve out too.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::command::{Command, Verb};
use super::{Action, Check, StepKey, seen_or_wait};
use crate::domain::node::Address;
use crate::domain::observation::{Mark, MarkKind, Observation, PausedMark, Report, Role};

/// How long a node is held at most.
const HOLD_MS: u32 = 30_000;
/// A pause that ends sooner counts as over.
const SPARE_MS: i64 = 5_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldWrites {
    pub node: Address,
}

/// The mark of a pause that begins now.
pub(super) fn paused(node: &Address, report: &Report, ms: u32) -> Mark {
    let until = report.observed_at + TimeDelta::milliseconds(i64::from(ms));
    Mark { node: node.clone(), what: MarkKind::Paused(PausedMark { until }) }
}

impl Action for HoldWrites {
    fn key(&self) -> StepKey {
        format!("hold_writes:{}", self.node)
    }

    fn title(&self) -> String {
        format!("Have writes to {} wait, since another node took over from it", self.node)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.node.clone()]
    }

    /// A node cannot show that it is paused: the mark alone tells.
    fn check(&self, seen: &Observation) -> Check {
        let report = match seen_or_wait(&self.node, seen) {
            Err(wait) => return wait,
            Ok(report) => report,
        };
        let enough = report.observed_at + TimeDelta::milliseconds(SPARE_MS);
        let held = |m: &Mark| matches!(&m.what, MarkKind::Paused(p) if p.until > enough);
        if report.role != Role::Primary || seen.marks_on(&self.node).any(held) {
            Check::Done
        } else {
            Check::Ready
        }
    }

    fn effect(&self, world: &mut Observation) {
        let marks = self.marks(world);
        world.marks.extend(marks);
    }

    fn commands(&self, _seen: &Observation) -> Vec<Command> {
        vec![Command::new(&self.node, Verb::PauseWrites { ms: u64::from(HOLD_MS) })]
    }

    fn marks(&self, seen: &Observation) -> Vec<Mark> {
        seen.report(&self.node).map(|r| paused(&self.node, r, HOLD_MS)).into_iter().collect()
    }
}
