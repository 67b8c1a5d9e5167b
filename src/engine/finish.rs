//! What is left of a failover when its old primary comes back: it is to be held, compared and made a
//! replica. Or it was told to let go when nobody heard of it any more, and nobody took over. That belongs to the failover that somebody accepted, so Reeve asks for it by itself, as a
//! repair like any other; unless the topology's policy is to do nothing.

use std::time::{Duration, Instant};

use super::Engine;
use crate::domain::hazard::Ceiling;
use crate::domain::intent::{Intent, RepairIntent};
use crate::domain::lineage::{self, deposition};
use crate::domain::node::Address;
use crate::domain::observation::{MarkKind, Observation, Role};
use crate::domain::spec::FailoverMode;
use crate::engine::desk::{DeskError, PlanOptions};
use crate::store::topologies::StoredTopology;

/// Before the same is asked again that was refused, or failed.
const AGAIN: Duration = Duration::from_secs(10);

/// When it was asked last.
#[derive(Debug, Default)]
pub(super) struct Finisher(Option<Instant>);

impl Finisher {
    /// Asks for a repair where a node is back that another one took over from.
    pub async fn note(&mut self, engine: &Engine, stored: &StoredTopology, seen: &Observation) {
        let due = self.0.is_none_or(|at| at.elapsed() >= AGAIN);
        let Some(node) = back(stored, seen).filter(|_| due) else { return };
        self.0 = Some(Instant::now());
        let options = PlanOptions {
            start: true,
            accept_hazard: Ceiling::None,
            accept: [].into(),
            expect_fingerprint: None,
            supersede: false,
            reason: Some(format!("another node takes over from {node}, which was not there")),
        };
        let intent = Intent::Repair(RepairIntent {});
        match engine.submit_on(stored, &intent, &options, "reeve").await {
            Ok(plan) => tracing::info!(plan = %plan.id, %node, "an old primary is back"),
            // Somebody else is at it, or has to decide.
            Err(DeskError::Refused(why)) => {
                tracing::warn!(%node, why = why.to_string(), "an old primary is back and is left");
            }
            Err(error) => {
                tracing::warn!(%node, error = &error as &dyn std::error::Error, "an old primary is back and is left");
            }
        }
    }
}

fn back(stored: &StoredTopology, seen: &Observation) -> Option<Address> {
    let shard = stored.wanted.layout.lone()?;
    let acts = stored.wanted.spec.failover().mode != FailoverMode::Off;
    if !stored.created || stored.active_plan.is_some() || !acts {
        return None;
    }
    let leads =
        |node: &&Address| seen.report(node).is_some_and(|r| r.role == Role::Primary && !r.loading);
    let back = |node: &&Address| leads(node) && deposition(node, seen).is_some();
    // One whose file is behind would come back as a primary when it is started again.
    let behind = |node: &Address| {
        let of = |what: fn(&MarkKind) -> bool| seen.marks_on(node).any(|m| what(&m.what));
        of(|m| m.deposed().is_some()) && of(|m| *m == MarkKind::Unwritten)
    };
    let left = |node: &&Address| {
        lineage::is_headless(node, seen) || (seen.report(node).is_some() && behind(node))
    };
    shard.members.iter().find(|node| back(node) || left(node)).cloned()
}
