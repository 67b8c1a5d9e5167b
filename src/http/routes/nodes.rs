//! Registered nodes.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::domain::event::{EventType, NewEvent};
use crate::domain::health::Health;
use crate::domain::id::NodeId;
use crate::domain::node::{Address, Flavor, Labels, NodeKind};
use crate::domain::observation::{Memory, Persistence, Replication, Role, Sighting};
use crate::domain::refusal::{FieldError, Refusal};
use crate::http::App;
use crate::http::auth::{Operator, Viewer};
use crate::http::error::ApiError;
use crate::http::extract::{Body, Path, Query};
use crate::http::page::Page;
use crate::store::nodes::{NewNode, Node, NodeChange, NodeFilter};

/// A registered node.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Node)]
pub struct NodeView {
    id: NodeId,
    address: Address,
    zone: String,
    host: Option<String>,
    #[schema(value_type = BTreeMap<String, String>)]
    labels: Labels,
    credential: Option<String>,
    /// Names of the topologies that it belongs to; a Sentinel may watch several.
    topologies: Vec<String>,
    kind: NodeKind,
    health: Health,
    /// Why it does not answer, where it does not.
    silence: Option<String>,
    maintenance: bool,
    /// What it said last; null where it never did.
    report: Option<NodeReport>,
    created_at: DateTime<Utc>,
}

/// What a node says of itself.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeReport {
    version: String,
    flavor: Flavor,
    role: Role,
    cluster_enabled: bool,
    /// Keys in all databases.
    keys: u64,
    replication: Replication,
    memory: Memory,
    persistence: Persistence,
    observed_at: DateTime<Utc>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct NodeList {
    items: Vec<NodeView>,
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterNode {
    address: Address,
    #[schema(min_length = 1, max_length = 128)]
    zone: String,
    #[serde(default)]
    #[schema(min_length = 1, max_length = 253)]
    host: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Name of the stored credential that Reeve logs in with while no topology has the node.
    #[serde(default)]
    credential: Option<String>,
    #[serde(default)]
    maintenance: bool,
}

/// Fields that are left out stay as they are; null takes `host` and `credential` away, and leaves the
/// others.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChangeNode {
    #[schema(min_length = 1, max_length = 128)]
    zone: Option<String>,
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 253)]
    host: Option<Option<String>>,
    labels: Option<BTreeMap<String, String>>,
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    credential: Option<Option<String>>,
    maintenance: Option<bool>,
}

/// Tells a field that is null from one that is left out.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListNodes {
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    cursor: Option<String>,
    /// Name of a topology.
    topology: Option<String>,
    zone: Option<String>,
    #[param(inline)]
    role: Option<Role>,
    #[param(inline)]
    health: Option<Health>,
    /// Only nodes that belong to no topology.
    unassigned: Option<bool>,
}

impl From<Node> for NodeView {
    fn from(node: Node) -> Self {
        let (report, silence) = match node.sighting {
            Some(Sighting::Seen(r)) => (
                Some(NodeReport {
                    version: r.version.to_string(),
                    flavor: r.flavor,
                    role: r.role,
                    cluster_enabled: r.cluster_enabled,
                    keys: r.keys,
                    replication: r.replication,
                    memory: r.memory,
                    persistence: r.persistence,
                    observed_at: r.observed_at,
                }),
                None,
            ),
            Some(Sighting::Silent(s)) => (None, Some(s.message)),
            Some(Sighting::Unknown) | None => (None, None),
        };
        Self {
            id: node.id,
            address: node.address,
            zone: node.zone,
            host: node.host,
            labels: node.labels,
            credential: node.credential,
            topologies: node.topologies,
            kind: node.kind,
            health: node.health,
            silence,
            maintenance: node.maintenance,
            report,
            created_at: node.created_at,
        }
    }
}

fn check(
    zone: Option<&String>,
    host: Option<&String>,
    credential: Option<&String>,
) -> Result<(), Refusal> {
    let mut errors = Vec::new();
    let odd = |text: &String, most: usize| text.trim().is_empty() || text.len() > most;
    if zone.is_some_and(|z| odd(z, 128)) {
        errors.push(FieldError::new("/zone", "a zone is a name of 1 to 128 characters"));
    }
    if host.is_some_and(|h| odd(h, 253)) {
        errors.push(FieldError::new("/host", "a host is a name of 1 to 253 characters"));
    }
    if credential.is_some_and(|c| !super::topologies::is_name(c)) {
        errors.push(FieldError::new("/credential", super::topologies::NAME_RULE));
    }
    if errors.is_empty() { Ok(()) } else { Err(Refusal::Invalid(errors)) }
}

/// Nodes, by address.
#[utoipa::path(get, path = "/v1/nodes", operation_id = "list_nodes", tag = "nodes",
    params(ListNodes), responses((status = 200, description = "A page of nodes.", body = NodeList)))]
pub async fn list(
    State(app): State<App>,
    Viewer(caller): Viewer,
    Query(query): Query<ListNodes>,
) -> Result<Json<NodeList>, ApiError> {
    let page = Page::read(query.limit, query.cursor.as_deref())?;
    let role = query.role.map(|r| match r {
        Role::Primary => "primary",
        Role::Replica => "replica",
        Role::Sentinel => "sentinel",
    });
    let filter = NodeFilter {
        topology: query.topology,
        zone: query.zone,
        health: query.health,
        role: role.map(str::to_owned),
        unassigned: query.unassigned.unwrap_or(false),
        after: page.after.clone(),
        visible: caller.visible(&app.engine).await?,
    };
    let mut items = app.engine.store.nodes(&filter, page.fetch()).await?;
    let next_cursor = page.cut(&mut items, |n| n.address.to_string());
    Ok(Json(NodeList { items: items.into_iter().map(NodeView::from).collect(), next_cursor }))
}

/// Registers a node and looks at it once. A node that does not answer is registered all the same;
/// its `health` and `silence` say how it is.
#[utoipa::path(post, path = "/v1/nodes", operation_id = "register_node", tag = "nodes",
    request_body = RegisterNode,
    responses((status = 201, description = "The node.", body = NodeView, headers(("Location" = String)))))]
pub async fn register(
    State(app): State<App>,
    Operator(caller): Operator,
    Body(body): Body<RegisterNode>,
) -> Result<Response, ApiError> {
    caller.unlimited()?;
    check(Some(&body.zone), body.host.as_ref(), body.credential.as_ref())?;
    let node = NewNode {
        address: body.address,
        zone: body.zone,
        host: body.host,
        labels: body.labels,
        credential: body.credential,
        kind: NodeKind::Data,
        maintenance: body.maintenance,
    };
    let node = app.engine.register_node(&node, caller.name()).await?;
    let location = [(header::LOCATION, format!("/v1/nodes/{}", node.id))];
    Ok((StatusCode::CREATED, location, Json(NodeView::from(node))).into_response())
}

/// One node.
#[utoipa::path(get, path = "/v1/nodes/{id}", operation_id = "get_node", tag = "nodes",
    params(("id" = NodeId, Path)), responses((status = 200, description = "The node.", body = NodeView)))]
pub async fn get(
    State(app): State<App>,
    Viewer(caller): Viewer,
    Path(id): Path<Uuid>,
) -> Result<Json<NodeView>, ApiError> {
    let node = app.engine.store.node(NodeId(id)).await?;
    if let Some(visible) = caller.visible(&app.engine).await?
        && !node.topologies.iter().any(|t| visible.contains(t))
    {
        return Err(ApiError::not_found("node", id.to_string()));
    }
    Ok(Json(node.into()))
}

/// Changes what is registered of a node; the node itself is not touched.
#[utoipa::path(patch, path = "/v1/nodes/{id}", operation_id = "change_node", tag = "nodes",
    params(("id" = NodeId, Path)), request_body = ChangeNode,
    responses((status = 200, description = "The node.", body = NodeView)))]
pub async fn change(
    State(app): State<App>,
    Operator(caller): Operator,
    Path(id): Path<Uuid>,
    Body(body): Body<ChangeNode>,
) -> Result<Json<NodeView>, ApiError> {
    caller.unlimited()?;
    let host = body.host.as_ref().and_then(Option::as_ref);
    check(body.zone.as_ref(), host, body.credential.as_ref().and_then(Option::as_ref))?;
    let change = NodeChange {
        zone: body.zone,
        host: body.host,
        labels: body.labels,
        credential: body.credential,
        maintenance: body.maintenance,
    };
    Ok(Json(app.engine.store.change_node(NodeId(id), &change).await?.into()))
}

/// Forgets a node that belongs to no topology. One that was taken out of its topology while it was down
/// is still watched, so that it can be made blank when it comes back; where it never will, this gives
/// it up, with the marks on it.
#[utoipa::path(delete, path = "/v1/nodes/{id}", operation_id = "delete_node", tag = "nodes",
    params(("id" = NodeId, Path)), responses((status = 204, description = "It is forgotten.")))]
pub async fn delete(
    State(app): State<App>,
    Operator(caller): Operator,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, ApiError> {
    caller.unlimited()?;
    let node = app.engine.store.node(NodeId(id)).await?;
    let data = serde_json::json!({ "node": node.id, "address": node.address });
    let event = NewEvent::new(EventType::NodeRemoved, data).by(caller.name());
    app.engine.store.delete_node(NodeId(id), &[event]).await?;
    Ok(StatusCode::NO_CONTENT)
}
