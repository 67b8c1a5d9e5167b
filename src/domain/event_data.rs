//! What each type of event says in its `data`: the shapes that the OpenAPI document shows, and that
//! tests hold the journal to.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::diagnosis::{Remedy, Rule, Severity, Subject};
use super::event::EventType;
use super::failovers::{FailoverCompleted, FailoverDetected, FailoverFailed, FailoverStarted};
use super::id::{FindingId, NodeId, PlanId, ShardId, WebhookId};
use super::node::{Address, Labels};
use super::placement::Warning;
use super::plan::{PlanError, WaitingFor};
use super::webhook::DisabledBecause;

macro_rules! event_data {
    ($($kind:ident: $data:ident;)*) => {
        /// The name of the shape of a type's data.
        #[must_use]
        pub fn name(kind: EventType) -> &'static str {
            match kind { $(EventType::$kind => stringify!($data),)* }
        }

        /// Whether data has the shape of its type, and nothing beside it.
        pub fn check(kind: EventType, data: &Value) -> Result<(), serde_json::Error> {
            match kind { $(EventType::$kind => $data::deserialize(data).map(|_| ()),)* }
        }
    };
}

event_data! {
    TopologyCreated: TopologyCreatedData;
    TopologyChanged: TopologyChangedData;
    TopologyDeleted: NoData;
    PlanProposed: PlanProposedData;
    PlanQueued: NoData;
    PlanStarted: NoData;
    PlanStepStarted: StepStartedData;
    PlanStepDone: StepDoneData;
    PlanStepFailed: StepFailedData;
    PlanPaused: PlanPausedData;
    PlanResumed: PlanResumedData;
    PlanSucceeded: PlanEndedData;
    PlanFailed: PlanEndedData;
    PlanCancelled: PlanEndedData;
    PlanSuperseded: PlanEndedData;
    PlanBigKeyMoved: BigKeyMovedData;
    NodeRegistered: NodeRegisteredData;
    NodeUp: NodeHealthData;
    NodeSuspect: NodeHealthData;
    NodeDown: NodeHealthData;
    NodeRecovered: NodeHealthData;
    NodeRemoved: NodeRegisteredData;
    FailoverDetected: FailoverDetected;
    FailoverStarted: FailoverStarted;
    FailoverCompleted: FailoverCompleted;
    FailoverFailed: FailoverFailed;
    PrimaryChanged: FailoverCompleted;
    SentinelSwitched: SentinelSwitchedData;
    FailoverWritesLost: WritesLostData;
    SplitBrainDetected: SplitBrainData;
    SplitBrainResolved: SplitBrainData;
    FindingOpened: FindingOpenedData;
    FindingClosed: FindingClosedData;
    SlotsUncovered: SlotsUncoveredData;
    SlotsCovered: NoData;
    WebhookDisabled: WebhookDisabledData;
}

/// There is nothing more to say.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoData {}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TopologyCreatedData {
    pub version: i32,
    pub mode: String,
    pub labels: Labels,
    /// True where it was running before.
    pub adopted: Option<bool>,
    /// The node from which it was found.
    pub seed: Option<Address>,
    pub warnings: Option<Vec<Warning>>,
}

/// A new version, or other labels.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TopologyChangedData {
    pub version: i32,
    pub parent: Option<i32>,
    pub labels: Option<Labels>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanProposedData {
    /// The kind of its intent.
    pub intent: String,
    pub from_version: i32,
    pub to_version: i32,
    pub steps_total: u64,
    pub reason: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StepStartedData {
    /// Its key.
    pub step: String,
    pub kind: String,
    pub title: String,
    pub nodes: Vec<Address>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StepDoneData {
    /// Its key.
    pub step: String,
    pub kind: String,
    pub title: String,
    pub attempts: i32,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StepFailedData {
    /// Its key.
    pub step: String,
    pub kind: String,
    pub error: PlanError,
    pub attempt: Option<i32>,
    /// Whether the plan fails with it; else the step is tried again.
    #[serde(rename = "final")]
    pub last: bool,
    pub retry_in_ms: Option<u64>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanPausedData {
    pub waiting_for: Option<WaitingFor>,
    pub why: Option<String>,
    /// Marks that are still on nodes.
    pub marks_left: Option<u64>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanResumedData {
    /// The plan that went first and has ended.
    pub after: Option<PlanId>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanEndedData {
    pub error: Option<PlanError>,
    pub warnings: Option<Vec<Warning>>,
    /// Marks that are still on nodes.
    pub marks_left: Option<u64>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BigKeyMovedData {
    /// The key of its step.
    pub step: String,
    pub slot: u16,
    pub key: String,
    pub bytes: u64,
    pub expected_ms: u64,
    pub actual_ms: u64,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeRegisteredData {
    pub node: NodeId,
    pub address: Address,
    pub zone: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeHealthData {
    /// Its address.
    pub node: Address,
    /// Since when it does not answer.
    pub since: Option<DateTime<Utc>>,
    /// What the last attempt met.
    pub code: Option<String>,
    pub message: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SentinelSwitchedData {
    pub sentinel: Address,
    pub old_primary: Address,
    pub new_primary: Address,
    /// The Sentinel's configuration epoch.
    pub epoch: u64,
    pub detected_at: DateTime<Utc>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WritesLostData {
    pub shard: ShardId,
    pub node: Address,
    pub successor: Address,
    pub replid: String,
    pub offset: u64,
    pub promoted_replid: String,
    pub promoted_offset: u64,
    pub keys: u64,
    /// Whether it was started again since it was primary.
    pub restarted: bool,
    pub possibly_lost: PossibleLoss,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PossibleLoss {
    /// Null where the histories cannot be compared.
    pub bytes: Option<u64>,
    pub seconds: Option<u64>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SplitBrainData {
    pub shard: ShardId,
    /// What speaks for each node that takes writes.
    #[schema(value_type = Vec<Object>)]
    pub claims: Vec<Value>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FindingOpenedData {
    pub finding: FindingId,
    pub rule: Rule,
    pub severity: Severity,
    pub title: String,
    pub detail: String,
    #[schema(value_type = Object)]
    pub evidence: Value,
    pub subject: Subject,
    pub remedy: Remedy,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FindingClosedData {
    pub finding: FindingId,
    pub rule: Rule,
    pub severity: Severity,
    pub title: String,
    pub subject: Subject,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SlotsUncoveredData {
    /// The shards without a primary.
    pub shards: Vec<ShardId>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookDisabledData {
    pub webhook: WebhookId,
    /// Scheme, host and port of its URL.
    pub endpoint: Option<String>,
    pub because: DisabledBecause,
    pub failing_since: DateTime<Utc>,
    /// How the last attempt failed.
    pub error: Option<String>,
}
