//! The one map from errors to RFC 9457 problems.
//!
//! 422 says that a request is impossible by itself, 409 that it is impossible now. Each problem has
//! a stable `code`, whose page is served at `/errors/<code>`.

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tower_http::request_id::RequestId;
use utoipa::ToSchema;

use crate::domain::fault::Fault;
use crate::domain::hazard::Hazard;
use crate::domain::id::PlanId;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::settled::Offer;
use crate::engine::desk::DeskError;
use crate::store::StoreError;

pub const PROBLEM_JSON: &str = "application/problem+json";

/// Why a request was not carried out (RFC 9457).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Where the page about this kind of problem is: `/errors/<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    pub detail: String,
    /// The path that was asked for.
    pub instance: String,
    pub code: String,
    pub request_id: String,
    /// What is wrong with which field of the body.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// What a node itself answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisError>,
    /// Hazards that lack consent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hazards: Vec<Hazard>,
    /// What may be asked for instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub offers: Vec<Offer>,
    /// The plan that is in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_plan: Option<PlanId>,
    /// The fingerprint that was found instead of the expected one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// An error that a node answered with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RedisError {
    /// The reference code (E501 to E506), or the error's first word.
    pub code: String,
    pub node: Option<String>,
    pub message: String,
}

/// A problem on its way out. Boxed, since it is large and rare.
#[derive(Debug)]
pub struct ApiError(Box<Problem>);

/// `title` and status of each code; the pages in `docs/errors` say the rest.
const CODES: &[(&str, StatusCode, &str)] = &[
    ("invalid_json", StatusCode::BAD_REQUEST, "The body is not JSON"),
    ("invalid_parameter", StatusCode::BAD_REQUEST, "A parameter is not valid"),
    ("unauthorized", StatusCode::UNAUTHORIZED, "A valid token is needed"),
    ("forbidden", StatusCode::FORBIDDEN, "The token may not do this"),
    ("not_found", StatusCode::NOT_FOUND, "There is no such thing"),
    ("unknown_path", StatusCode::NOT_FOUND, "There is nothing at this path"),
    ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED, "The path has no such method"),
    ("not_acceptable", StatusCode::NOT_ACCEPTABLE, "The answer has another format"),
    ("name_taken", StatusCode::CONFLICT, "The name is taken"),
    ("nodes_unfit", StatusCode::CONFLICT, "Some nodes cannot be used as they are"),
    ("node_taken", StatusCode::CONFLICT, "Some nodes belong to another topology"),
    ("plan_active", StatusCode::CONFLICT, "Another plan is active"),
    ("plan_state", StatusCode::CONFLICT, "The plan's state does not allow this"),
    ("consent_required", StatusCode::CONFLICT, "The plan needs consent"),
    ("stale_fingerprint", StatusCode::CONFLICT, "The nodes have changed"),
    ("unsettled", StatusCode::CONFLICT, "The topology is not as wanted"),
    ("in_use", StatusCode::CONFLICT, "It is still in use"),
    ("idempotency_in_flight", StatusCode::CONFLICT, "The same request is being carried out"),
    ("secret_key_missing", StatusCode::CONFLICT, "No secret key is configured"),
    ("webhook_disabled", StatusCode::CONFLICT, "The webhook is disabled"),
    ("gone", StatusCode::GONE, "What was asked for is no longer kept"),
    ("precondition_failed", StatusCode::PRECONDITION_FAILED, "It has changed since it was read"),
    ("body_too_large", StatusCode::PAYLOAD_TOO_LARGE, "The body is too large"),
    (
        "unsupported_media_type",
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "The body is not declared as JSON",
    ),
    ("invalid_body", StatusCode::UNPROCESSABLE_ENTITY, "The body does not make sense"),
    ("unsupported", StatusCode::UNPROCESSABLE_ENTITY, "This is not supported"),
    (
        "idempotency_key_reused",
        StatusCode::UNPROCESSABLE_ENTITY,
        "The key stands for another request",
    ),
    (
        "placement_impossible",
        StatusCode::UNPROCESSABLE_ENTITY,
        "The nodes cannot be spread as demanded",
    ),
    ("precondition_required", StatusCode::PRECONDITION_REQUIRED, "If-Match is required"),
    ("internal", StatusCode::INTERNAL_SERVER_ERROR, "Something went wrong here"),
    ("busy", StatusCode::SERVICE_UNAVAILABLE, "Something else was in the way"),
    ("database_unavailable", StatusCode::SERVICE_UNAVAILABLE, "The database is unavailable"),
];

impl ApiError {
    /// A problem with one of the known codes.
    pub fn new(code: &str, detail: impl Into<String>) -> Self {
        let known = CODES.iter().find(|(c, ..)| *c == code);
        let (code, status, title) = known.copied().unwrap_or((
            "internal",
            StatusCode::INTERNAL_SERVER_ERROR,
            "Something went wrong here",
        ));
        Self(Box::new(Problem {
            kind: format!("/errors/{code}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            code: code.to_owned(),
            ..Problem::default()
        }))
    }

    #[must_use]
    pub fn with_errors(mut self, errors: Vec<FieldError>) -> Self {
        self.0.errors = errors;
        self
    }

    /// The same for a body that has its spec below `place`.
    #[must_use]
    pub fn with_spec_in(mut self, place: &str) -> Self {
        for error in self.0.errors.iter_mut().filter(|e| e.pointer.starts_with("/spec")) {
            error.pointer.insert_str(0, place);
        }
        self
    }

    pub fn not_found(kind: &'static str, name: impl Into<String>) -> Self {
        Refusal::NotFound { kind, name: name.into() }.into()
    }

    /// What went wrong here; the log has it, the answer does not.
    #[must_use]
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error, "a request failed");
        Self::new(
            "internal",
            "the failure is in Reeve, not in the request; its log says more under this request_id",
        )
    }
}

/// A problem that was told before.
impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        match refusal {
            Refusal::Invalid(errors) => Self::new("invalid_body", detail).with_errors(errors),
            Refusal::Unsupported(_) => Self::new("unsupported", detail),
            Refusal::Placement(errors) => {
                Self::new("placement_impossible", detail).with_errors(errors)
            }
            Refusal::NotFound { .. } => Self::new("not_found", detail),
            Refusal::NameTaken(_) => Self::new("name_taken", detail),
            Refusal::NodesUnfit { errors, redis } => {
                let mut problem = Self::new("nodes_unfit", detail).with_errors(errors);
                problem.0.redis = redis.map(RedisError::from);
                problem
            }
            Refusal::NodeTaken(errors) => Self::new("node_taken", detail).with_errors(errors),
            Refusal::PlanActive(plan) => {
                let mut problem = Self::new("plan_active", detail);
                problem.0.active_plan = Some(plan);
                problem
            }
            Refusal::PlanState { .. } => Self::new("plan_state", detail),
            Refusal::ConsentRequired(hazards) => {
                let ids: Vec<_> = hazards.iter().map(|h| h.id.as_str()).collect();
                let mut problem = Self::new(
                    "consent_required",
                    format!(
                        "{detail}; accept them with plan.accept: [\"{}\"], or by plan.accept_hazard where they are not data_loss",
                        ids.join("\", \"")
                    ),
                );
                problem.0.hazards = hazards;
                problem
            }
            Refusal::StaleFingerprint { seen, .. } => {
                let mut problem =
                    Self::new("stale_fingerprint", format!("{detail}; preview again"));
                problem.0.fingerprint = Some(seen);
                problem
            }
            Refusal::InUse(_) => Self::new("in_use", detail),
            Refusal::WebhookDisabled(_) => Self::new("webhook_disabled", detail),
            Refusal::Unsettled { differences, offers } => {
                let mut problem = Self::new("unsettled", detail).with_errors(differences);
                problem.0.offers = offers;
                problem
            }
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        if error.is_outage() {
            tracing::warn!(error = &error as &dyn std::error::Error, "the database is unavailable");
            return Self::new(
                "database_unavailable",
                "the database does not answer; try again shortly, and look first whether what you asked for is there",
            );
        }
        if error.is_busy() {
            tracing::warn!(error = &error as &dyn std::error::Error, "the database was busy");
            return Self::new(
                "busy",
                "what this needs in the database was held by something else for too long; try again shortly, and look first whether what you asked for is there",
            );
        }
        if error.is_out_of_range() {
            return Self::new(
                "invalid_parameter",
                "a value, perhaps a time, is outside of what can be stored",
            );
        }
        match error {
            StoreError::Refused(refusal) => refusal.into(),
            StoreError::Moved(what) => Self::new(
                "precondition_failed",
                format!(
                    "{what} changed between reading and writing; read it again and repeat the request"
                ),
            ),
            StoreError::Sealed => Self::new("secret_key_missing", error.to_string()),
            StoreError::Database(_)
            | StoreError::Migrate(_)
            | StoreError::Inconsistent { .. }
            | StoreError::Fenced => Self::internal(&error),
        }
    }
}

impl From<DeskError> for ApiError {
    fn from(error: DeskError) -> Self {
        match error {
            DeskError::Refused(refusal) => refusal.into(),
            DeskError::Store(error) => error.into(),
            DeskError::NoSecretKey => no_secret_key(),
            DeskError::Unread { plan, source } => {
                tracing::warn!(error = &source as &dyn std::error::Error, %plan, "a stored plan could not be read");
                let detail = format!(
                    "the plan {plan} is stored and goes its way, but the database did not answer when it was read again: GET /v1/plans/{plan}"
                );
                Self::new("database_unavailable", detail)
            }
        }
    }
}

/// Credentials were asked for, but there is no key to seal or open them with.
#[must_use]
pub fn no_secret_key() -> ApiError {
    ApiError::new(
        "secret_key_missing",
        "start Reeve with REEVE_SECRET_KEY (32 bytes in base64, for example from `openssl rand -base64 32`) to store and use credentials",
    )
}

impl From<Fault> for RedisError {
    fn from(fault: Fault) -> Self {
        Self {
            code: fault.reference().map_or_else(|| fault.code.clone(), str::to_owned),
            node: fault.node.map(|n| n.to_string()),
            message: format!("{} {}", fault.code, fault.message),
        }
    }
}

impl IntoResponse for ApiError {
    /// Leaves the problem with the response; [`finish`] writes it when it knows the request.
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(std::sync::Arc::new(*self.0));
        response
    }
}

/// Middleware: writes every error as a problem, the framework's own too, with the request's path
/// and id.
pub async fn finish(request: Request, next: Next) -> Response {
    let instance = request.uri().path().to_owned();
    let id = request.extensions().get::<RequestId>();
    let id = id.and_then(|id| id.header_value().to_str().ok()).unwrap_or_default().to_owned();
    let response = next.run(request).await;
    let status = response.status();
    let ours = response.extensions().get::<std::sync::Arc<Problem>>().cloned();
    if ours.is_none() && !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let problem = ours.map_or_else(|| framework_problem(status), |p| (*p).clone());
    let problem = Problem { instance, request_id: id, ..problem };
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    match problem.code.as_str() {
        "unauthorized" => {
            parts.headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        "database_unavailable" => {
            parts.headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        "busy" | "idempotency_in_flight" => {
            parts.headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    let body = Json(problem).into_response().into_body();
    Response::from_parts(parts, body)
}

fn framework_problem(status: StatusCode) -> Problem {
    let (code, detail) = match status {
        StatusCode::NOT_FOUND => {
            ("unknown_path", "see /docs or /openapi.json for the paths that there are")
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            ("method_not_allowed", "the Allow header names the methods that there are")
        }
        StatusCode::PAYLOAD_TOO_LARGE => ("body_too_large", "a body has at most 1 MiB"),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            ("unsupported_media_type", "send Content-Type: application/json")
        }
        StatusCode::BAD_REQUEST => ("invalid_parameter", "the request could not be read"),
        StatusCode::SERVICE_UNAVAILABLE => ("database_unavailable", "try again shortly"),
        _ => (
            "internal",
            "the failure is in Reeve, not in the request; its log says more under this request_id",
        ),
    };
    *ApiError::new(code, detail).0
}

/// The request's id travels under this name, in and out.
pub static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_page() {
        for (code, ..) in CODES {
            assert!(crate::http::routes::pages::page(code).is_some(), "docs/errors/{code}.md");
        }
    }
}
