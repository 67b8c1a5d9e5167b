//! Intents: the changes that people ask for. Each amends the wanted topology and adds terms; what
//! is done about it on nodes is the planner's matter.

pub mod create;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::placement::Warning;
use super::planner::Terms;
use super::topology::Layout;

/// What a plan is for. A new kind is additive; a kind never changes its meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Intent {
    /// Make a new topology on its nodes (`POST /v1/topologies`).
    Create(CreateIntent),
    /// Make the topology as it is wanted once more: leftover marks, nodes that lost each other,
    /// replicas that do not follow, slots that nobody owns.
    Repair(RepairIntent),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateIntent {
    /// Whether nodes that hold keys or remains of a cluster may be emptied.
    #[serde(default)]
    pub reset_nodes: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RepairIntent {}

impl Intent {
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Repair(_) => "repair",
        }
    }
}

/// What an intent makes of the topology.
#[derive(Debug, Clone, PartialEq)]
pub struct Amendment {
    pub layout: Layout,
    pub terms: Terms,
    pub warnings: Vec<Warning>,
}
