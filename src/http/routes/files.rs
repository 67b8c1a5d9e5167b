//! The files that the nodes of a topology are started with.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::topologies::{find, last_seen};
use crate::domain::files::{self, File};
use crate::domain::view;
use crate::http::App;
use crate::http::auth::Viewer;
use crate::http::error::ApiError;
use crate::http::extract::Path;

#[derive(Debug, Serialize, ToSchema)]
pub struct ConfigFiles {
    files: Vec<File>,
}

/// A `redis.conf` for each data node and a `sentinel.conf` for each Sentinel, as the newest version
/// of the topology wants them. They hold no secrets, and say where those belong.
#[utoipa::path(get, path = "/v1/topologies/{name}/config-files", operation_id = "get_config_files", tag = "topologies",
    params(("name" = String, Path)),
    responses((status = 200, description = "The files.", body = ConfigFiles)))]
pub async fn config_files(
    State(app): State<App>,
    Viewer(caller): Viewer,
    Path(name): Path<String>,
) -> Result<Json<ConfigFiles>, ApiError> {
    let stored = find(&app, &caller, &name).await?;
    let seen = last_seen(&app, stored.wanted.id).await?;
    let shards = view::shards(&stored.wanted.layout, &seen);
    let primaries: BTreeMap<_, _> =
        shards.into_iter().filter_map(|shard| Some((shard.id, shard.primary?))).collect();
    Ok(Json(ConfigFiles { files: files::files(&stored.wanted, &primaries) }))
}
