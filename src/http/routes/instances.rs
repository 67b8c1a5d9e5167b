//! The processes that work on this database, and which topologies each of them keeps.

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::id::InstanceId;
use crate::http::App;
use crate::http::auth::Viewer;
use crate::http::error::ApiError;
use crate::store::leases::SeenInstance;

/// One process.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Instance)]
pub struct InstanceView {
    id: InstanceId,
    /// The machine that it runs on, as that calls itself.
    host: String,
    pid: u32,
    /// Where it listens.
    listen: String,
    version: String,
    started_at: DateTime<Utc>,
    seen_at: DateTime<Utc>,
    /// Whether it was heard of within a lease's time; what it kept goes to others otherwise.
    alive: bool,
    /// The topologies that it keeps, as far as the caller may see them.
    holds: Vec<HeldLease>,
    /// Whether it is the one that answers.
    this: bool,
}

/// A lease on a topology.
#[derive(Debug, Serialize, ToSchema)]
pub struct HeldLease {
    topology: String,
    /// Grows with each holder.
    token: i64,
    expires_at: DateTime<Utc>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct InstanceList {
    items: Vec<InstanceView>,
    /// Always null: there are few enough for one page.
    next_cursor: Option<String>,
}

/// Who works, and who keeps what.
#[utoipa::path(get, path = "/v1/instances", operation_id = "list_instances", tag = "operations",
    responses((status = 200, description = "All instances, the oldest first.", body = InstanceList)))]
pub async fn list(
    State(app): State<App>,
    Viewer(caller): Viewer,
) -> Result<Json<InstanceList>, ApiError> {
    let visible = caller.visible(&app.engine).await?;
    let shown = |name: &String| visible.as_ref().is_none_or(|v| v.contains(name));
    let me = app.engine.me.id;
    let view = |seen: SeenInstance| InstanceView {
        this: seen.instance.id == me,
        id: seen.instance.id,
        host: seen.instance.host,
        pid: seen.instance.pid,
        listen: seen.instance.listen,
        version: seen.instance.version,
        started_at: seen.started_at,
        seen_at: seen.seen_at,
        alive: seen.alive,
        holds: seen
            .holds
            .into_iter()
            .filter(|h| shown(&h.name))
            .map(|h| HeldLease { topology: h.name, token: h.token, expires_at: h.expires_at })
            .collect(),
    };
    let items = app.engine.store.instances().await?.into_iter().map(view).collect();
    Ok(Json(InstanceList { items, next_cursor: None }))
}
