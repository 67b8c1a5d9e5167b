//! Advice: from what a team needs to what it should run.

use axum::Json;

use crate::domain::advice::{self, Advice, AdviceRequest};
use crate::http::auth::Viewer;
use crate::http::error::ApiError;
use crate::http::extract::Body;

/// Which architecture, how large, laid out how, with the files to install, the failover procedure,
/// what it survives, and what to know before. Nothing is stored and no node is asked.
#[utoipa::path(post, path = "/v1/advice", operation_id = "advise", tag = "knowledge",
    request_body = AdviceRequest,
    responses((status = 200, description = "The advice.", body = Advice)))]
pub async fn advise(
    _viewer: Viewer,
    Body(request): Body<AdviceRequest>,
) -> Result<Json<Advice>, ApiError> {
    // A thousand nodes take a moment to place, which must not hold up other requests.
    let advised = tokio::task::spawn_blocking(move || advice::advise(&request)).await;
    let advised = advised.map_err(|error| ApiError::internal(&error))?;
    Ok(Json(advised?))
}
