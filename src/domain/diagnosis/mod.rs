//! Diagnosis: from what is wanted and seen to findings, each by a named rule. Pure; whoever looks
//! decides when a finding has lasted long enough to be told ([`steady`]).
//!
//! To add a rule: a file here, a variant of [`Rule`], and its call where the keeper judges.

pub mod crowded;
pub mod drift;
pub mod leaderless;
pub mod lone;
pub mod returned;
pub mod steady;
pub mod watched;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::id::ShardId;
use super::node::Address;

/// What a finding was diagnosed by. A new rule is additive; a rule never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The nodes are not as wanted, and no plan is at work on them.
    Drift,
    /// Two nodes of one shard take writes.
    SplitBrain,
    /// Sentinels name different primaries, and it lasts.
    SentinelsDisagree,
    /// A primary was started anew without the keys that it had.
    EmptiedPrimary,
    /// A shard has no primary that answers, and it lasts.
    NoPrimary,
    /// A node that is none of the topology follows its primary.
    StrangeReplica,
    /// Failovers have brought so many primaries together that the loss of one zone or host leaves no
    /// majority of them, and it lasts.
    CrowdedPrimaries,
    /// A node that was taken out while it was dead is back, and holds itself for a member.
    ReturnedNode,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Data or service is lost, or about to be.
    Critical,
    /// Something is wrong that should be mended.
    Warning,
    /// Good to know.
    Info,
}

/// What a finding is about; neither for the topology as a whole.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
pub struct Subject {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Address>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<ShardId>,
}

/// What mends a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Remedy {
    pub text: String,
    /// The intent of a plan that would do it, to be posted as it is; left out where no plan can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub intent: Option<Value>,
}

/// One diagnosed fault or risk.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    pub rule: Rule,
    pub severity: Severity,
    pub title: String,
    pub detail: String,
    /// What it was told from; its shape goes with the rule.
    pub evidence: Value,
    pub subject: Subject,
    pub remedy: Remedy,
}

impl Rule {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drift => "drift",
            Self::SplitBrain => "split_brain",
            Self::SentinelsDisagree => "sentinels_disagree",
            Self::EmptiedPrimary => "emptied_primary",
            Self::NoPrimary => "no_primary",
            Self::StrangeReplica => "strange_replica",
            Self::CrowdedPrimaries => "crowded_primaries",
            Self::ReturnedNode => "returned_node",
        }
    }
}

impl Severity {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}
