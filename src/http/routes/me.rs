//! Who am I?

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::access::{Role, Scope};
use crate::domain::id::TokenId;
use crate::http::auth::Viewer;

#[derive(Debug, Serialize, ToSchema)]
pub struct Me {
    token: TokenId,
    name: String,
    role: Role,
    /// The topologies that the token is limited to; null for all.
    topologies: Option<Scope>,
}

/// The token behind the request.
#[utoipa::path(get, path = "/v1/me", operation_id = "get_me", tag = "access",
    responses((status = 200, description = "The caller.", body = Me)))]
pub async fn me(Viewer(caller): Viewer) -> Json<Me> {
    let token = caller.token;
    Json(Me { token: token.id, name: token.name, role: token.role, topologies: token.scope })
}
