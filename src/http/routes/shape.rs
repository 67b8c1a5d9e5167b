//! Below a topology: its versions, what was seen of it, where clients go, what it survives.

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::topologies::{LayoutView, find, last_seen};
use crate::domain::id::{PlanId, ShardId};
use crate::domain::lineage;
use crate::domain::node::Address;
use crate::domain::observation::{Mark, Observation, OpenSlot};
use crate::domain::refusal::Refusal;
use crate::domain::slot::SlotSet;
use crate::domain::spec::{Mode, Spec};
use crate::domain::survivability::{self, Lost, Survivability, WhatIfOutcome, scene};
use crate::domain::topology::Layout;
use crate::domain::view::{self, Primary, ReplicaState, ReplicaStatus};
use crate::http::App;
use crate::http::auth::Viewer;
use crate::http::error::ApiError;
use crate::http::extract::{Body, Path, Query};
use crate::http::page::Page;
use crate::store::topologies::StoredVersion;

/// One version of what is wanted. It never changes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TopologyVersion)]
pub struct VersionView {
    version: i32,
    /// The version that it came from.
    parent: Option<i32>,
    spec: Spec,
    layout: LayoutView,
    /// The plan that made it.
    plan: Option<PlanId>,
    author: String,
    created_at: DateTime<Utc>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct TopologyVersionList {
    items: Vec<VersionView>,
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListVersions {
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    cursor: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct At {
    /// A time in the past (RFC 3339); now when left out.
    at: Option<DateTime<Utc>>,
}

/// What was seen, and when.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ObservationAt)]
pub struct ObservationView {
    observed_at: DateTime<Utc>,
    #[serde(flatten)]
    observation: Observation,
}

/// Where clients write and read.
#[derive(Debug, Serialize, ToSchema)]
pub struct Endpoints {
    mode: Mode,
    write: Vec<WriteEndpoint>,
    read: Vec<ReadEndpoint>,
    sentinels: Vec<Address>,
    /// The name to ask Sentinels for.
    master_name: Option<String>,
    /// Whether some shard has several nodes that claim to be its primary.
    contested: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct WriteEndpoint {
    shard: ShardId,
    address: Address,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ReadEndpoint {
    shard: ShardId,
    address: Address,
    lag_bytes: Option<u64>,
}

/// Who serves which slots, as the primaries themselves say.
#[derive(Debug, Serialize, ToSchema)]
pub struct Slots {
    /// How many of the 16384 slots are served.
    assigned: usize,
    /// Those that nobody serves, for example `0-99,200`.
    uncovered: String,
    /// Slots that are half-way between two nodes.
    open: Vec<OpenSlotView>,
    shards: Vec<ShardSlots>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenSlotMove)]
pub struct OpenSlotView {
    slot: u16,
    from: Option<Address>,
    to: Option<Address>,
    /// Whether Reeve opened it.
    ours: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ShardSlots {
    id: ShardId,
    primary: Option<Address>,
    slots: String,
    count: usize,
    /// Keys on the primary, in all its slots; null while it was not seen.
    keys: Option<u64>,
    /// Memory that the primary uses, in bytes, its own overhead included; null while it was not
    /// seen.
    bytes: Option<u64>,
}

/// What is imagined to be lost.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WhatIf {
    fail: Lost,
    #[serde(default)]
    basis: Basis,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SurvivabilityBasis {
    /// What to judge: `observed` when left out.
    #[serde(default)]
    #[param(inline)]
    basis: Basis,
}

/// What survival is judged by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// The layout with the primaries that were seen; who is silent now is no help.
    #[default]
    Observed,
    /// The layout alone, with all of its nodes: any member may be the primary of its shard.
    Wanted,
}

impl Basis {
    fn of(self, seen: Observation) -> Observation {
        match self {
            Self::Observed => seen,
            Self::Wanted => Observation::default(),
        }
    }
}

impl From<StoredVersion> for VersionView {
    fn from(stored: StoredVersion) -> Self {
        Self {
            version: stored.wanted.version,
            parent: stored.parent,
            layout: LayoutView::from(&stored.wanted.layout),
            spec: stored.wanted.spec,
            plan: stored.plan,
            author: stored.author,
            created_at: stored.created_at,
        }
    }
}

/// Versions of what is wanted, the newest first.
#[utoipa::path(get, path = "/v1/topologies/{name}/versions", operation_id = "list_versions", tag = "topologies",
    params(("name" = String, Path), ListVersions),
    responses((status = 200, description = "A page of versions.", body = TopologyVersionList)))]
pub async fn versions(
    State(app): State<App>,
    Viewer(caller): Viewer,
    Path(name): Path<String>,
    Query(query): Query<ListVersions>,
) -> Result<Json<TopologyVersionList>, ApiError> {
    let stored = find(&app, &caller, &name).await?;
    let page = Page::read(query.limit, query.cursor.as_deref())?;
    let id = stored.wanted.id;
    let mut items = app.engine.store.versions(id, &name, page.key()?, page.fetch()).await?;
    let next_cursor = page.cut(&mut items, |v| v.wanted.version.to_string());
    let items = items.into_iter().map(VersionView::from).collect();
    Ok(Json(TopologyVersionList { items, next_cursor }))
}

/// One version.
#[utoipa::path(get, path = "/v1/topologies/{name}/versions/{n}", operation_id = "get_version", tag = "topologies",
    params(("name" = String, Path), ("n" = i32, Path)),
    responses((status = 200, description = "The version.", body = VersionView)))]
pub async fn version(
    State(app): State<App>,
    Viewer(caller): Viewer,
    Path((name, n)): Path<(String, i32)>,
) -> Result<Json<VersionView>, ApiError> {
    let stored = find(&app, &caller, &name).await?;
    let after = n.checked_add(1);
    let found = app.engine.store.versions(stored.wanted.id, &name, after, 1).await?;
    let found = found.into_iter().find(|v| v.wanted.version == n);
    found.map(|v| Json(v.into())).ok_or_else(|| ApiError::not_found("version", n.to_string()))
}

/// What was seen of every node, now or at a time in the past week.
#[utoipa::path(get, path = "/v1/topologies/{name}/observation", operation_id = "get_observation", tag = "topologies",
    params(("name" = String, Path), At),
    responses((status = 200, description = "The observation.", body = ObservationView)))]
pub async fn observation(
    State(app): State<App>,
    Viewer(caller): Viewer,
    Path(name): Path<String>,
    Query(query): Query<At>,
) -> Result<Json<ObservationView>, ApiError> {
    let stored = find(&app, &caller, &name).await?;
    let found = app.engine.store.observation(stored.wanted.id, query.at).await?;
    let (observed_at, observation) =
        found.ok_or_else(|| ApiError::not_found("observation", format!("{name} at that time")))?;
    Ok(Json(ObservationView { observed_at, observation }))
}

/// Where clients write and read, from what was last seen.
#[utoipa::path(get, path = "/v1/topologies/{name}/endpoints", operation_id = "get_endpoints", tag = "topologies",
    params(("name" = String, Path)),
    responses((status = 200, description = "The endpoints.", body = Endpoints)))]
pub async fn endpoints(
    State(app): State<App>,
    Viewer(caller): Viewer,
    Path(name): Path<String>,
) -> Result<Json<Endpoints>, ApiError> {
    let stored = find(&app, &caller, &name).await?;
    let seen = last_seen(&app, stored.wanted.id).await?;
    let layout = &*stored.standing(&seen);
    let (mut write, mut read) = (Vec::new(), Vec::new());
    for shard in view::shards(layout, &seen) {
        write.extend(shard.primary.map(|address| WriteEndpoint { shard: shard.id, address }));
        // Whoever is about to leave is no place to read from any more.
        let stays = |r: &ReplicaStatus| !stored.leavers.contains_key(&r.address);
        let online = shard.replicas.into_iter().filter(|r| r.state == ReplicaState::Online);
        let online = online.filter(stays);
        read.extend(online.map(|r| ReadEndpoint {
            shard: shard.id,
            address: r.address,
            lag_bytes: r.lag_bytes,
        }));
    }
    let contested = layout
        .shards()
        .iter()
        .any(|(s, slots)| matches!(view::primary_of(s, slots, &seen), Primary::Contested(_)));
    let split = layout.lone().is_some_and(|shard| !lineage::rivals(shard, &seen).is_empty());
    let contested = contested || split;
    let master_name = match &stored.wanted.spec {
        Spec::Sentinel(s) => Some(s.master_name.clone()),
        Spec::Cluster(_) | Spec::Replication(_) => None,
    };
    Ok(Json(Endpoints {
        mode: stored.wanted.spec.mode(),
        write,
        read,
        sentinels: layout.sentinels().to_vec(),
        master_name,
        contested,
    }))
}

/// Who serves which slots, from what was last seen.
#[utoipa::path(get, path = "/v1/topologies/{name}/slots", operation_id = "get_slots", tag = "topologies",
    params(("name" = String, Path)), responses((status = 200, description = "The slots.", body = Slots)))]
pub async fn slots(
    State(app): State<App>,
    Viewer(caller): Viewer,
    Path(name): Path<String>,
) -> Result<Json<Slots>, ApiError> {
    let stored = find(&app, &caller, &name).await?;
    let seen = last_seen(&app, stored.wanted.id).await?;
    let statuses = view::shards(&stored.standing(&seen), &seen);
    let served = statuses.iter().fold(SlotSet::empty(), |all, s| all.union(&s.slots));
    let shards = statuses.into_iter().map(|s| {
        let report = s.primary.as_ref().and_then(|p| seen.report(p));
        ShardSlots {
            id: s.id,
            count: s.slots.count(),
            slots: s.slots.to_string(),
            keys: report.map(|r| r.keys),
            bytes: report.map(|r| r.memory.used_bytes),
            primary: s.primary,
        }
    });
    let cluster = matches!(stored.wanted.layout, Layout::Cluster { .. });
    let uncovered = if cluster { served.complement() } else { SlotSet::empty() };
    Ok(Json(Slots {
        assigned: served.count(),
        uncovered: uncovered.to_string(),
        open: open(&seen),
        shards: shards.collect(),
    }))
}

fn open(seen: &Observation) -> Vec<OpenSlotView> {
    let ours = |slot| {
        let opened = |mark: &Mark| mark.what.open_slots().is_some_and(|o| o.slots.contains(slot));
        seen.marks.iter().any(opened)
    };
    let of_node = |address: &Address| {
        let opens = seen.view(address).map(|v| v.open.as_slice()).unwrap_or_default();
        let view = |o: &OpenSlot| {
            let other = seen.by_cluster_id(&o.other).cloned();
            let me = Some(address.clone());
            let (from, to) = if o.giving { (me, other) } else { (other, me) };
            OpenSlotView { slot: o.slot, from, to, ours: ours(o.slot) }
        };
        opens.iter().map(view).collect::<Vec<_>>()
    };
    let mut open: Vec<_> = seen.nodes.keys().flat_map(of_node).collect();
    open.sort_by(|a, b| (a.slot, &a.from, &a.to).cmp(&(b.slot, &b.from, &b.to)));
    open.dedup_by(|a, b| a.slot == b.slot && a.from == b.from && a.to == b.to);
    open
}

/// What the topology survives as it stands now: each loss of a node, a host and a zone, and each
/// pair of nodes, tried one by one.
#[utoipa::path(get, path = "/v1/topologies/{name}/survivability", operation_id = "get_survivability", tag = "topologies",
    params(("name" = String, Path), SurvivabilityBasis),
    responses((status = 200, description = "What it survives.", body = Survivability)))]
pub async fn survivability(
    State(app): State<App>,
    Viewer(caller): Viewer,
    Path(name): Path<String>,
    Query(query): Query<SurvivabilityBasis>,
) -> Result<Json<Survivability>, ApiError> {
    let stored = find(&app, &caller, &name).await?;
    let seen = query.basis.of(last_seen(&app, stored.wanted.id).await?);
    Ok(Json(survivability::survivability(&scene(&stored.wanted, &seen))))
}

/// What one imagined loss would do: how it ends, who takes over, and the memory that is left.
#[utoipa::path(post, path = "/v1/topologies/{name}/what-if", operation_id = "what_if", tag = "topologies",
    params(("name" = String, Path)), request_body = WhatIf,
    responses((status = 200, description = "The outcome.", body = WhatIfOutcome)))]
pub async fn what_if(
    State(app): State<App>,
    Viewer(caller): Viewer,
    Path(name): Path<String>,
    Body(body): Body<WhatIf>,
) -> Result<Json<WhatIfOutcome>, ApiError> {
    let stored = find(&app, &caller, &name).await?;
    let strangers = survivability::strangers(&stored.wanted, &body.fail);
    if !strangers.is_empty() {
        return Err(Refusal::Invalid(strangers).into());
    }
    let seen = body.basis.of(last_seen(&app, stored.wanted.id).await?);
    Ok(Json(survivability::imagine(&scene(&stored.wanted, &seen), &seen, &body.fail)))
}
