//! A plan's life: its states, what may be asked of it, and its legal transitions.
//!
//! ```text
//! proposed ──► queued ──► running ⇄ paused      (queued ──► paused where the world has moved)
//!    │            │          │         │
//!    └────────────┴──────────┴─────────┴──► succeeded · failed · cancelled · superseded (final)
//! ```

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::hazard::{Accepted, Hazard};
use super::id::{PlanId, TopologyId};
use super::intent::Intent;
use super::moving::Estimate;
use super::node::Address;
use super::placement::Warning;
use super::planner::Terms;
use super::step::{Step, StepKey};

/// An intent made concrete.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub id: PlanId,
    pub topology_id: TopologyId,
    /// The topology's name.
    pub topology: String,
    pub intent: Intent,
    pub terms: Terms,
    pub state: PlanState,
    pub requested: Option<Requested>,
    pub waiting_for: Option<WaitingFor>,
    /// 0 where there was none before.
    pub from_version: i32,
    pub to_version: i32,
    pub fingerprint: String,
    /// Each node's part of it.
    pub prints: BTreeMap<Address, String>,
    pub accepted: Accepted,
    pub hazards: Vec<Hazard>,
    pub warnings: Vec<Warning>,
    pub estimate: Estimate,
    pub retry_of: Option<PlanId>,
    /// The active plan whose place it takes, until that one has made way for good.
    pub displaces: Option<Displaces>,
    /// The plan that takes its place.
    pub displaced_by: Option<PlanId>,
    pub requested_by: String,
    pub reason: Option<String>,
    /// Set as soon as the plan is to fail; the state follows when nothing of it is left on nodes.
    pub error: Option<PlanError>,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    pub steps_done: i64,
    pub steps_total: i64,
}

/// How one plan takes the place of another that is active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Displaces {
    pub plan: PlanId,
    pub by: Displacement,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Displacement {
    /// An emergency: the other pauses, and goes on afterwards.
    Preempt,
    /// The other ends.
    Supersede,
}

/// One step of a plan, with how it goes.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRecord {
    pub key: StepKey,
    pub position: i32,
    pub step: Step,
    pub state: StepState,
    /// How often it was begun.
    pub attempts: i32,
    pub progress: Option<Progress>,
    pub error: Option<PlanError>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
}

/// How far a step has come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
    /// What is counted: nodes, slots, keys.
    pub unit: String,
    pub rate_per_second: Option<f64>,
    pub eta_seconds: Option<f64>,
}

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum PlanState {
    Proposed,
    Queued,
    Running,
    Paused,
    Succeeded,
    Failed,
    Cancelled,
    Superseded,
}

/// What somebody asked of a running plan; it is granted at the next safe point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Requested {
    Pause,
    Cancel,
    Supersede,
}

/// What a plan waits for while it makes no step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitingFor {
    /// A person paused it.
    Operator,
    /// A step has a hazard that nobody accepted.
    Consent,
    /// A node that does not answer.
    Node,
    /// Nodes that do not agree yet.
    Convergence,
    /// A retry whose time has not come.
    Retry,
    /// A shard that rests after a failover.
    Hold,
    /// A replica that takes a full copy.
    Sync,
    /// A replica of a node that keys move to, which is too far behind.
    ReplicaLag,
    /// Room on a node that keys move to.
    Memory,
    /// An emergency that goes first.
    Preempted,
    /// The world is not as this plan knew it (perhaps the database was restored from a backup):
    /// look, then resume or cancel.
    Stale,
}

/// Why a plan or a step failed, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanError {
    pub code: String,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Address>,
    pub recovery: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    Pending,
    Running,
    Done,
    /// It turned out not to be needed.
    Skipped,
    Failed,
}

impl PlanState {
    pub const ALL: [Self; 8] = [
        Self::Proposed,
        Self::Queued,
        Self::Running,
        Self::Paused,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Superseded,
    ];

    /// Whether the plan's life is over.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Proposed | Self::Queued | Self::Running | Self::Paused => false,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Superseded => true,
        }
    }

    /// Whether the plan holds its topology, so that no other may start.
    #[must_use]
    pub fn is_active(self) -> bool {
        matches!(self, Self::Queued | Self::Running | Self::Paused)
    }

    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use PlanState as S;
        match self {
            S::Proposed => matches!(next, S::Queued | S::Cancelled | S::Superseded),
            S::Queued => {
                matches!(next, S::Running | S::Paused | S::Cancelled | S::Superseded | S::Failed)
            }
            S::Running => {
                matches!(next, S::Paused | S::Succeeded | S::Failed | S::Cancelled | S::Superseded)
            }
            S::Paused => matches!(next, S::Running | S::Cancelled | S::Superseded | S::Failed),
            S::Succeeded | S::Failed | S::Cancelled | S::Superseded => false,
        }
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proposed => "proposed",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
        }
    }
}

impl WaitingFor {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Consent => "consent",
            Self::Node => "node",
            Self::Convergence => "convergence",
            Self::Retry => "retry",
            Self::Hold => "hold",
            Self::Sync => "sync",
            Self::ReplicaLag => "replica_lag",
            Self::Memory => "memory",
            Self::Preempted => "preempted",
            Self::Stale => "stale",
        }
    }
}

impl Displacement {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preempt => "preempt",
            Self::Supersede => "supersede",
        }
    }
}

impl Requested {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Cancel => "cancel",
            Self::Supersede => "supersede",
        }
    }
}

impl std::fmt::Display for PlanState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_final_and_everything_can_end() {
        for from in PlanState::ALL {
            let ends = PlanState::ALL.iter().any(|&to| to.is_final() && from.may_become(to));
            assert_eq!(ends, !from.is_final(), "{from}");
            assert!(!from.may_become(from), "{from}");
            assert!(!(from.is_final() && from.is_active()));
        }
    }
}
