//! Why a request is not carried out: decided here, mapped to HTTP in `http/error.rs` alone.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::fault::Fault;
use super::hazard::Hazard;
use super::id::{PlanId, WebhookId};
use super::plan::PlanState;
use super::settled::Offer;

/// One field of a request that is wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// A JSON pointer (RFC 6901) into the request's body.
    pub pointer: String,
    pub detail: String,
}

impl FieldError {
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), detail: detail.into() }
    }

    /// The same below `prefix`.
    #[must_use]
    pub fn under(self, prefix: &str) -> Self {
        Self { pointer: format!("{prefix}{}", self.pointer), ..self }
    }
}

/// Why not. Variants of the first group are impossible by themselves, the others only now.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("the request does not make sense as it is: {}", first(.0))]
    Invalid(Vec<FieldError>),
    #[error("{0}")]
    Unsupported(String),
    #[error("the nodes cannot be spread as placement.strict demands: {}", first(.0))]
    Placement(Vec<FieldError>),

    #[error("there is no {kind} `{name}`")]
    NotFound { kind: &'static str, name: String },
    #[error("the name `{0}` is taken")]
    NameTaken(String),
    #[error("{} of the nodes cannot be used as they are: {}", .errors.len(), first(.errors))]
    NodesUnfit { errors: Vec<FieldError>, redis: Option<Fault> },
    #[error("some nodes belong to another topology: {}", first(.0))]
    NodeTaken(Vec<FieldError>),
    #[error("plan {0} is active on this topology")]
    PlanActive(PlanId),
    #[error("a plan that is {state} cannot be asked to {action}")]
    PlanState { plan: PlanId, state: PlanState, action: &'static str },
    #[error("{} of the plan's hazards need your consent", .0.len())]
    ConsentRequired(Vec<Hazard>),
    #[error("the nodes are no longer as they were when this was previewed")]
    StaleFingerprint { expected: String, seen: String },
    #[error("{0}")]
    InUse(String),
    #[error("the webhook {0} is disabled; enable it with PATCH /v1/webhooks/{0}")]
    WebhookDisabled(WebhookId),
    #[error("the topology is not as wanted: {}", first(.differences))]
    Unsettled { differences: Vec<FieldError>, offers: Vec<Offer> },
}

impl Refusal {
    /// Unsettled, with no way out that could be named.
    #[must_use]
    pub fn unsettled(differences: Vec<FieldError>) -> Self {
        Self::Unsettled { differences, offers: vec![] }
    }
}

fn first(errors: &[FieldError]) -> String {
    match errors {
        [] => String::from("no detail"),
        [one] if one.pointer.is_empty() => one.detail.clone(),
        [one] => format!("{} ({})", one.detail, one.pointer),
        [one, rest @ ..] => {
            format!("{}, and {} more", first(std::slice::from_ref(one)), rest.len())
        }
    }
}
