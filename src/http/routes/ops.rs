//! For whoever runs Reeve itself: is it alive, is it ready, how is it doing.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::App;
use crate::http::error::{ApiError, Problem};

#[derive(Debug, Serialize, ToSchema)]
pub struct Status {
    /// `ok`.
    status: &'static str,
}

/// Whether the process lives. It asks nobody, so an outage of the database does not restart it.
#[utoipa::path(get, path = "/healthz", operation_id = "healthz", tag = "operations", security(()),
    responses((status = 200, description = "It lives.", body = Status)))]
pub async fn healthz() -> Json<Status> {
    Json(Status { status: "ok" })
}

/// Whether requests can be served: the database answers and is migrated.
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", tag = "operations", security(()),
    responses((status = 200, description = "It is ready.", body = Status),
              (status = 503, description = "It is not.", body = Problem, content_type = "application/problem+json")))]
pub async fn readyz(State(app): State<App>) -> Result<Json<Status>, ApiError> {
    let away = |detail: &str| ApiError::new("database_unavailable", detail);
    match app.engine.store.ready().await {
        Ok(true) => Ok(Json(Status { status: "ok" })),
        Ok(false) => Err(away("the database lacks migrations; run `reeve migrate`")),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "not ready");
            Err(away("the database does not answer"))
        }
    }
}

/// Metrics in Prometheus's text format.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "operations", security(()),
    responses((status = 200, description = "Metrics.", body = String, content_type = "text/plain")))]
pub async fn metrics(State(app): State<App>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render())
}
