//! The journal's vocabulary.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::id::PlanId;

macro_rules! event_types {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// What happened. New types may be added; a type never changes its meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        pub enum EventType {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl EventType {
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

event_types! {
    TopologyCreated = "topology.created";
    TopologyChanged = "topology.changed";
    TopologyDeleted = "topology.deleted";
    PlanProposed = "plan.proposed";
    PlanQueued = "plan.queued";
    PlanStarted = "plan.started";
    PlanStepStarted = "plan.step_started";
    PlanStepDone = "plan.step_done";
    PlanStepFailed = "plan.step_failed";
    PlanPaused = "plan.paused";
    PlanResumed = "plan.resumed";
    PlanSucceeded = "plan.succeeded";
    PlanFailed = "plan.failed";
    PlanCancelled = "plan.cancelled";
    PlanSuperseded = "plan.superseded";
    /// A key that stalled its node while it moved, with how long that was expected to take and took.
    PlanBigKeyMoved = "plan.big_key_moved";
    NodeRegistered = "node.registered";
    NodeUp = "node.up";
    NodeSuspect = "node.suspect";
    NodeDown = "node.down";
    NodeRecovered = "node.recovered";
    NodeRemoved = "node.removed";
    /// The primary of a shard does not answer.
    FailoverDetected = "failover.detected";
    /// Another node is on its way to take over: the nodes elect one, or a plan has named one.
    FailoverStarted = "failover.started";
    FailoverCompleted = "failover.completed";
    /// Nobody took over.
    FailoverFailed = "failover.failed";
    PrimaryChanged = "primary.changed";
    /// A Sentinel names another primary to clients than before.
    SentinelSwitched = "sentinel.switched";
    /// What a node took before it followed its successor, and nobody has.
    FailoverWritesLost = "failover.writes_lost";
    /// Two nodes of one shard take writes.
    SplitBrainDetected = "split_brain.detected";
    SplitBrainResolved = "split_brain.resolved";
    FindingOpened = "finding.opened";
    FindingClosed = "finding.closed";
    SlotsUncovered = "slots.uncovered";
    SlotsCovered = "slots.covered";
    /// A webhook gets nothing any more, since it failed for too long or said that it is gone.
    WebhookDisabled = "webhook.disabled";
}

impl EventType {
    /// Whether the event ends its plan's stream.
    #[must_use]
    pub fn ends_plan(self) -> bool {
        matches!(
            self,
            Self::PlanSucceeded | Self::PlanFailed | Self::PlanCancelled | Self::PlanSuperseded
        )
    }

    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|t| t.as_str() == name)
    }
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Fleet-wide, ascending in commit order; the id of the SSE message.
    pub id: i64,
    /// Gapless within a topology; null for events of no topology.
    pub seq: Option<i64>,
    /// The topology's name.
    pub topology: Option<String>,
    #[serde(rename = "type")]
    #[schema(value_type = String, example = "plan.step_done")]
    pub kind: String,
    pub at: DateTime<Utc>,
    /// What else there is to say, by type.
    #[schema(value_type = Object)]
    pub data: serde_json::Value,
    pub plan: Option<PlanId>,
    /// Who caused it: a token's name, or `reeve` itself.
    pub actor: Option<String>,
}

/// An event that is yet to be written; the journal adds ids and the time.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    pub kind: EventType,
    pub data: serde_json::Value,
    pub plan: Option<PlanId>,
    pub actor: Option<String>,
}

impl NewEvent {
    #[must_use]
    pub fn new(kind: EventType, data: serde_json::Value) -> Self {
        Self { kind, data, plan: None, actor: None }
    }

    #[must_use]
    pub fn of_plan(self, plan: PlanId) -> Self {
        Self { plan: Some(plan), ..self }
    }

    #[must_use]
    pub fn by(self, actor: &str) -> Self {
        Self { actor: Some(actor.to_owned()), ..self }
    }
}
