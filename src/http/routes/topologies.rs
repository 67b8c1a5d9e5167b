//! Topologies: what is wanted, and how it is seen to be doing.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::plans::{self, PreviewView};
use crate::domain::hazard::Ceiling;
use crate::domain::id::{InstanceId, PlanId, ShardId, TopologyId};
use crate::domain::intent::{Intent, ReplaceSpecIntent};
use crate::domain::node::{Address, Labels};
use crate::domain::observation::{Observation, Sighting};
use crate::domain::refusal::FieldError;
use crate::domain::spec::Spec;
use crate::domain::topology::Layout;
use crate::domain::view::{self, Life, Phase, ShardStatus};
use crate::engine::desk::{CreateRequest, PlanOptions};
use crate::http::App;
use crate::http::auth::{Caller, Operator, Viewer};
use crate::http::error::ApiError;
use crate::http::extract::{Body, IfMatch, Path, Precondition, Query, invalid, read_spec, stale};
use crate::http::page::Page;
use crate::store::topologies::{StoredTopology, TopologyFilter};

pub const NAME_RULE: &str =
    "a name begins with a small letter and has up to 63 small letters, digits and hyphens";

/// `^[a-z][a-z0-9-]{0,62}$`
#[must_use]
pub fn is_name(name: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    name.len() <= 63
        && name.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && name.bytes().all(word)
}

/// A topology: what is wanted (`spec`, `layout`) and how it is doing (`status`).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Topology)]
pub struct TopologyView {
    id: TopologyId,
    name: String,
    version: i32,
    /// Counts changes that make no version, such as labels.
    revision: i32,
    spec: Spec,
    layout: LayoutView,
    #[schema(value_type = BTreeMap<String, String>)]
    labels: Labels,
    status: StatusView,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

/// Which node plays which part. Who is primary is not part of it: see `status`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Layout)]
pub struct LayoutView {
    shards: Vec<LayoutShard>,
    sentinels: Vec<Address>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct LayoutShard {
    id: ShardId,
    index: u16,
    members: Vec<Address>,
    /// For example `0-5460`; empty in modes without slots.
    slots: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TopologyStatus)]
pub struct StatusView {
    phase: Phase,
    /// When the nodes were last looked at; null before the first look.
    observed_at: Option<DateTime<Utc>>,
    active_plan: Option<PlanId>,
    /// The instance that watches it and carries out its plans; null while nobody does.
    keeper: Option<InstanceId>,
    shards: Vec<ShardStatus>,
    /// How many findings are open (`GET …/findings`).
    findings: FindingCounts,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct FindingCounts {
    critical: i64,
    warning: i64,
    info: i64,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct TopologyList {
    items: Vec<TopologyView>,
    next_cursor: Option<String>,
}

/// A topology that is wanted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTopology {
    #[schema(pattern = "^[a-z][a-z0-9-]{0,62}$", example = "orders")]
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    // Read in a second step, which knows the mode and so keeps the pointers of what is wrong.
    #[schema(value_type = Spec)]
    spec: Value,
    /// Whether nodes that hold keys, or remains of a cluster, may be emptied. Each is a hazard that
    /// has to be accepted by its id, `flush:<address>`.
    #[serde(default)]
    reset_nodes: bool,
    #[serde(default)]
    plan: PlanRequest,
}

/// How the plan that a request makes is to be treated.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = PlanOptions)]
pub struct PlanRequest {
    /// Whether to start it; otherwise it stays `proposed`.
    start: bool,
    /// Hazards up to this kind are accepted as a whole.
    accept_hazard: Ceiling,
    /// Ids of hazards that are accepted; `data_loss` only so.
    #[schema(value_type = Vec<String>)]
    accept: BTreeSet<String>,
    /// Refuse if the nodes are no longer as they were in the preview with this fingerprint.
    expect_fingerprint: Option<String>,
    /// Whether to take the place of the active plan, which ends at its next safe point. Only with
    /// `start`.
    supersede: bool,
    /// For the record.
    #[schema(max_length = 1000)]
    reason: Option<String>,
}

impl Default for PlanRequest {
    fn default() -> Self {
        Self {
            start: true,
            accept_hazard: Ceiling::None,
            accept: BTreeSet::new(),
            expect_fingerprint: None,
            supersede: false,
            reason: None,
        }
    }
}

impl PlanRequest {
    pub fn options(self) -> Result<PlanOptions, ApiError> {
        if self.supersede && !self.start {
            return Err(invalid(FieldError::new(
                "/plan/supersede",
                "a plan that is only proposed supersedes nothing; leave start out, or cancel the active plan first",
            )));
        }
        if self.reason.as_ref().is_some_and(|r| r.chars().count() > 1000) {
            return Err(invalid(FieldError::new(
                "/plan/reason",
                "a reason has at most 1000 characters",
            )));
        }
        Ok(PlanOptions {
            supersede: self.supersede,
            start: self.start,
            accept_hazard: self.accept_hazard,
            accept: self.accept,
            expect_fingerprint: self.expect_fingerprint,
            thorough: false,
            reason: self.reason,
        })
    }
}

/// Another spec for a topology, whole.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplaceTopology {
    #[schema(value_type = Spec)]
    spec: Value,
    #[serde(default)]
    plan: PlanRequest,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RelabelTopology {
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListTopologies {
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    cursor: Option<String>,
}

impl From<&Layout> for LayoutView {
    fn from(layout: &Layout) -> Self {
        let shard = |(shard, slots): (&crate::domain::topology::Shard, _)| LayoutShard {
            id: shard.id,
            index: shard.index,
            members: shard.members.clone(),
            slots: crate::domain::slot::SlotSet::to_string(&slots),
        };
        Self {
            shards: layout.shards().into_iter().map(shard).collect(),
            sentinels: layout.sentinels().to_vec(),
        }
    }
}

/// The topology, if the caller may see it.
pub async fn find(app: &App, caller: &Caller, name: &str) -> Result<StoredTopology, ApiError> {
    if !is_name(name) {
        return Err(ApiError::not_found("topology", name));
    }
    let stored = app.engine.store.topology(name).await?;
    caller.see(name, &stored.labels)?;
    Ok(stored)
}

/// What was last seen of a topology: by this process, or else by another one.
pub async fn last_seen(app: &App, id: TopologyId) -> Result<Observation, ApiError> {
    if let Some(seen) = app.engine.last_seen(id) {
        return Ok((*seen).clone());
    }
    let stored = app.engine.store.observation(id, None).await?;
    Ok(stored.map(|(_, seen)| seen).unwrap_or_default())
}

pub async fn show(app: &App, stored: StoredTopology) -> Result<TopologyView, ApiError> {
    let seen = last_seen(app, stored.wanted.id).await?;
    let standing = stored.standing(&seen).into_owned();
    let wanted = stored.wanted;
    let times = seen.nodes.values().filter_map(|s| match s {
        Sighting::Seen(report) => Some(report.observed_at),
        Sighting::Silent(silence) => Some(silence.since),
        Sighting::Unknown => None,
    });
    let open = app.engine.store.count_findings(wanted.id).await?;
    let life = Life { created: stored.created, plan_active: stored.active_plan.is_some() };
    Ok(TopologyView {
        id: wanted.id,
        version: wanted.version,
        revision: stored.revision,
        layout: LayoutView::from(&wanted.layout),
        labels: stored.labels,
        status: StatusView {
            phase: view::phase(&standing, &seen, life),
            observed_at: times.max(),
            active_plan: stored.active_plan,
            keeper: app.engine.store.keeper_of(wanted.id).await?,
            shards: view::shards(&standing, &seen),
            findings: FindingCounts {
                critical: open.critical,
                warning: open.warning,
                info: open.info,
            },
        },
        name: wanted.name,
        spec: wanted.spec,
        created_at: stored.created_at,
        updated_at: stored.updated_at,
    })
}

fn request(body: CreateTopology, caller: &Caller) -> Result<CreateRequest, ApiError> {
    if !is_name(&body.name) {
        return Err(invalid(FieldError::new("/name", NAME_RULE)));
    }
    let spec = read_spec(body.spec, "/spec").map_err(invalid)?;
    caller.make(&body.name, &body.labels, spec.credentials())?;
    Ok(CreateRequest {
        name: body.name,
        labels: body.labels,
        spec,
        reset_nodes: body.reset_nodes,
        options: body.plan.options()?,
    })
}

/// Topologies, by name.
#[utoipa::path(get, path = "/v1/topologies", operation_id = "list_topologies", tag = "topologies",
    params(ListTopologies), responses((status = 200, description = "A page of topologies.", body = TopologyList)))]
pub async fn list(
    State(app): State<App>,
    Viewer(caller): Viewer,
    Query(query): Query<ListTopologies>,
) -> Result<Json<TopologyList>, ApiError> {
    let page = Page::read(query.limit, query.cursor.as_deref())?;
    let filter =
        TopologyFilter { after: page.after.clone(), visible: caller.visible(&app.engine).await? };
    let mut stored = app.engine.store.topologies(&filter, page.fetch()).await?;
    let next_cursor = page.cut(&mut stored, |t| t.wanted.name.clone());
    let mut items = Vec::with_capacity(stored.len());
    for topology in stored {
        items.push(show(&app, topology).await?);
    }
    Ok(Json(TopologyList { items, next_cursor }))
}

/// Makes a new topology on its nodes. The answer is the plan that does it.
#[utoipa::path(post, path = "/v1/topologies", operation_id = "create_topology", tag = "topologies",
    params(("Prefer" = Option<String>, Header, description = "`wait=N` waits up to N ≤ 60 seconds for the plan's end.")),
    request_body = CreateTopology,
    responses((status = 202, description = "The plan.", body = plans::PlanView, headers(("Location" = String)))))]
pub async fn create(
    State(app): State<App>,
    Operator(caller): Operator,
    headers: HeaderMap,
    Body(body): Body<CreateTopology>,
) -> Result<Response, ApiError> {
    let request = request(body, &caller)?;
    let plan = app.engine.create(&request, caller.name()).await?;
    plans::accepted(&app, &headers, plan).await
}

/// What creating a topology would do: steps, exact commands, hazards. Nothing is stored, no node is
/// changed.
#[utoipa::path(post, path = "/v1/topologies/preview", operation_id = "preview_topology", tag = "topologies",
    request_body = CreateTopology, responses((status = 200, description = "The forecast.", body = PreviewView)))]
pub async fn preview(
    State(app): State<App>,
    Operator(caller): Operator,
    Body(body): Body<CreateTopology>,
) -> Result<Json<PreviewView>, ApiError> {
    let request = request(body, &caller)?;
    let preview = app.engine.preview_create(&request).await?;
    Ok(Json(PreviewView::new(&request.name, preview)))
}

/// One topology.
#[utoipa::path(get, path = "/v1/topologies/{name}", operation_id = "get_topology", tag = "topologies",
    params(("name" = String, Path)),
    responses((status = 200, description = "The topology.", body = TopologyView, headers(("ETag" = String)))))]
pub async fn get(
    State(app): State<App>,
    Viewer(caller): Viewer,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let stored = find(&app, &caller, &name).await?;
    tagged(&app, stored).await
}

async fn tagged(app: &App, stored: StoredTopology) -> Result<Response, ApiError> {
    let etag = [(header::ETAG, IfMatch::etag(stored.wanted.version, stored.revision))];
    Ok((etag, Json(show(app, stored).await?)).into_response())
}

/// Replaces the spec. The answer is the plan that makes the nodes as it says; what `GET` gave makes a
/// plan without steps. The number of shards and the mode stay.
#[utoipa::path(put, path = "/v1/topologies/{name}", operation_id = "replace_topology", tag = "topologies",
    params(("name" = String, Path), ("If-Match" = String, Header, description = "The ETag of what was read."),
           ("Prefer" = Option<String>, Header, description = "`wait=N` waits up to N ≤ 60 seconds for the plan's end.")),
    request_body = ReplaceTopology,
    responses((status = 202, description = "The plan.", body = plans::PlanView, headers(("Location" = String)))))]
pub async fn replace(
    State(app): State<App>,
    Operator(caller): Operator,
    Path(name): Path<String>,
    headers: HeaderMap,
    precondition: Precondition,
    Body(body): Body<ReplaceTopology>,
) -> Result<Response, ApiError> {
    let spec = read_spec(body.spec, "/spec").map_err(invalid)?;
    let options = body.plan.options()?;
    let stored = find(&app, &caller, &name).await?;
    caller.respec(stored.wanted.spec.credentials(), spec.credentials())?;
    let intent = Intent::ReplaceSpec(ReplaceSpecIntent { spec: Box::new(spec) });
    // A spec that makes no sense is told before anything that a repetition could change.
    intent.refuse_impossible(&stored.wanted)?;
    expect(&stored, precondition.read()?)?;
    let plan = app.engine.submit_on(&stored, &intent, &options, caller.name()).await?;
    plans::accepted(&app, &headers, plan).await
}

/// Replaces the labels. No node is touched, and no version is made.
#[utoipa::path(patch, path = "/v1/topologies/{name}", operation_id = "relabel_topology", tag = "topologies",
    params(("name" = String, Path), ("If-Match" = String, Header, description = "The ETag of what was read.")),
    request_body = RelabelTopology,
    responses((status = 200, description = "The topology.", body = TopologyView, headers(("ETag" = String)))))]
pub async fn relabel(
    State(app): State<App>,
    Operator(caller): Operator,
    Path(name): Path<String>,
    precondition: Precondition,
    Body(body): Body<RelabelTopology>,
) -> Result<Response, ApiError> {
    let at = precondition.read()?;
    let stored = find(&app, &caller, &name).await?;
    if caller.token.scope.as_ref().is_some_and(|s| !s.covers(&name, &body.labels)) {
        return Err(ApiError::new(
            "forbidden",
            "with these labels this token would no longer see the topology",
        ));
    }
    let id = stored.wanted.id;
    expect(&stored, at)?;
    app.engine.store.relabel(id, at.version, at.revision, &body.labels, caller.name()).await?;
    let stored = app.engine.store.topology(&name).await?;
    tagged(&app, stored).await
}

fn expect(stored: &StoredTopology, at: IfMatch) -> Result<(), ApiError> {
    let now = IfMatch { version: stored.wanted.version, revision: stored.revision };
    if now == at { Ok(()) } else { Err(stale()) }
}

/// Forgets a topology and leaves its nodes as they are, registered and free.
#[utoipa::path(delete, path = "/v1/topologies/{name}", operation_id = "delete_topology", tag = "topologies",
    params(("name" = String, Path), ("If-Match" = String, Header, description = "The ETag of what was read.")),
    responses((status = 204, description = "It is forgotten.")))]
pub async fn delete(
    State(app): State<App>,
    Operator(caller): Operator,
    Path(name): Path<String>,
    precondition: Precondition,
) -> Result<StatusCode, ApiError> {
    let at = precondition.read()?;
    let stored = find(&app, &caller, &name).await?;
    expect(&stored, at)?;
    let id = stored.wanted.id;
    app.engine.store.delete_topology(id, at.version, at.revision, caller.name()).await?;
    app.engine.ring(id);
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        assert!(is_name("orders") && is_name("a") && is_name("a-1"));
        for name in ["", "Orders", "1a", "-a", "a_b", "a b", "é", &"a".repeat(64)] {
            assert!(!is_name(name), "{name}");
        }
    }
}
