//! A plan's life: its states, what may be asked of it, and its legal transitions.
//!
//! ```text
//! proposed ──► queued ──► running ⇄ paused
//!    │            │          │         │
//!    └────────────┴──────────┴─────────┴──► succeeded · failed · cancelled · superseded (final)
//! ```

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::node::Address;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
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
    /// An emergency that goes first.
    Preempted,
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
            S::Queued => matches!(next, S::Running | S::Cancelled | S::Superseded | S::Failed),
            S::Running => matches!(
                next,
                S::Paused | S::Succeeded | S::Failed | S::Cancelled | S::Superseded
            ),
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
