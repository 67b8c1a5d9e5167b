//! Plans: what is to be done, how it goes, and the reins.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::broadcast;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::topologies::{LayoutView, PlanRequest, find};
use crate::domain::event::EventType;
use crate::domain::hazard::{Accepted, Hazard};
use crate::domain::id::PlanId;
use crate::domain::intent::{Intent, ReplaceSpecIntent};
use crate::domain::moving::Estimate;
use crate::domain::node::Address;
use crate::domain::placement::Warning;
use crate::domain::plan::{
    Plan, PlanError, PlanState, Progress, Requested, StepRecord, StepState, WaitingFor,
};
use crate::domain::refusal::FieldError;
use crate::domain::step::command::ShownCommand;
use crate::engine::desk::Preview;
use crate::engine::tail::Told;
use crate::http::App;
use crate::http::auth::{Caller, Operator, Viewer};
use crate::http::error::ApiError;
use crate::http::extract::{Body, Path, Query, invalid, read, read_spec};
use crate::http::page::Page;
use crate::http::sse;
use crate::store::plans::PlanFilter;

/// As many steps as a plan shows with itself; the rest is on their pages.
const STEPS_SHOWN: i64 = 200;

/// A plan: a long-running operation.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Plan)]
pub struct PlanView {
    id: PlanId,
    topology: String,
    intent: Intent,
    state: PlanState,
    /// What was asked of it and is granted at the next safe point.
    requested: Option<Requested>,
    waiting_for: Option<WaitingFor>,
    from_version: i32,
    to_version: i32,
    /// A digest of what was seen of the nodes when it was made.
    fingerprint: String,
    accepted: Accepted,
    hazards: Vec<Hazard>,
    progress: PlanProgress,
    warnings: Vec<Warning>,
    estimate: Estimate,
    /// The plan that this one tries again.
    retry_of: Option<PlanId>,
    requested_by: String,
    reason: Option<String>,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    error: Option<PlanError>,
    /// The first 200 steps, where the plan is shown by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<Vec<StepView>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct PlanProgress {
    steps_done: i64,
    steps_total: i64,
    #[schema(minimum = 0, maximum = 100)]
    percent: i64,
}

/// One step.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Step)]
pub struct StepView {
    key: String,
    kind: String,
    title: String,
    nodes: Vec<Address>,
    state: StepState,
    /// How often it was begun.
    attempts: i32,
    progress: Option<Progress>,
    /// Ids of its hazards.
    hazards: Vec<String>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    error: Option<PlanError>,
}

/// What a request would do.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Preview)]
pub struct PreviewView {
    topology: String,
    intent: Intent,
    from_version: i32,
    to_version: i32,
    /// Pass it as `plan.expect_fingerprint` to be refused if the nodes change until then.
    fingerprint: String,
    layout: LayoutView,
    hazards: Vec<Hazard>,
    /// The ids of those that the request would still have to accept.
    consent_needed: Vec<String>,
    warnings: Vec<Warning>,
    estimate: Estimate,
    steps: Vec<ForecastStepView>,
}

/// A step that would be taken, with exactly what would be sent.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ForecastStep)]
pub struct ForecastStepView {
    key: String,
    kind: String,
    title: String,
    nodes: Vec<Address>,
    hazards: Vec<String>,
    commands: Vec<ShownCommand>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct PlanList {
    items: Vec<PlanView>,
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct StepList {
    items: Vec<StepView>,
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitPlan {
    #[schema(value_type = Intent)]
    intent: Value,
    #[serde(default)]
    plan: PlanRequest,
}

/// Consent that comes later.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Consent {
    /// Ids of hazards that are accepted from now on.
    #[schema(value_type = Vec<String>)]
    accept: BTreeSet<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListPlans {
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    cursor: Option<String>,
    topology: Option<String>,
    #[param(inline)]
    state: Option<PlanState>,
    /// The kind of the intent, for example `create`.
    kind: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListSteps {
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    cursor: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StreamPlan {
    /// Where to go on, for clients that cannot send the `Last-Event-ID` header.
    #[param(minimum = 0)]
    last_event_id: Option<i64>,
    /// A ticket from `POST /v1/stream-tickets`, for clients that cannot send a token.
    #[expect(dead_code, reason = "read by the authentication, which comes before")]
    ticket: Option<String>,
}

impl From<Plan> for PlanView {
    fn from(plan: Plan) -> Self {
        let percent = match (plan.state, plan.steps_total) {
            (PlanState::Succeeded, _) => 100,
            (_, 0) => 0,
            (_, total) => (plan.steps_done * 100 / total).min(99),
        };
        Self {
            id: plan.id,
            topology: plan.topology,
            intent: plan.intent,
            state: plan.state,
            requested: plan.requested,
            waiting_for: plan.waiting_for,
            from_version: plan.from_version,
            to_version: plan.to_version,
            fingerprint: plan.fingerprint,
            accepted: plan.accepted,
            hazards: plan.hazards,
            progress: PlanProgress {
                steps_done: plan.steps_done,
                steps_total: plan.steps_total,
                percent,
            },
            warnings: plan.warnings,
            estimate: plan.estimate,
            retry_of: plan.retry_of,
            requested_by: plan.requested_by,
            reason: plan.reason,
            created_at: plan.created_at,
            started_at: plan.started_at,
            finished_at: plan.finished_at,
            error: plan.error,
            steps: None,
        }
    }
}

impl From<StepRecord> for StepView {
    fn from(record: StepRecord) -> Self {
        let action = record.step.action();
        Self {
            key: record.key,
            kind: record.step.kind().to_owned(),
            title: action.title(),
            nodes: action.nodes(),
            state: record.state,
            attempts: record.attempts,
            progress: record.progress,
            hazards: action.hazards().into_iter().map(|h| h.id).collect(),
            started_at: record.started_at,
            finished_at: record.finished_at,
            error: record.error,
        }
    }
}

impl PreviewView {
    #[must_use]
    pub fn new(topology: &str, preview: Preview) -> Self {
        let steps = preview.steps.into_iter().map(|s| {
            let action = s.step.action();
            ForecastStepView {
                kind: s.step.kind().to_owned(),
                title: action.title(),
                nodes: action.nodes(),
                hazards: action.hazards().into_iter().map(|h| h.id).collect(),
                key: s.key,
                commands: s.commands,
            }
        });
        Self {
            topology: topology.to_owned(),
            intent: preview.intent,
            from_version: preview.from_version,
            to_version: preview.to_version,
            fingerprint: preview.fingerprint,
            layout: LayoutView::from(&preview.layout),
            consent_needed: preview.lacking.into_iter().map(|h| h.id).collect(),
            hazards: preview.hazards,
            warnings: preview.warnings,
            estimate: preview.estimate,
            steps: steps.collect(),
        }
    }
}

/// The plan with its first steps.
async fn show(app: &App, plan: Plan) -> Result<PlanView, ApiError> {
    let steps = app.engine.store.steps(plan.id, 0, STEPS_SHOWN).await?;
    let steps = steps.into_iter().map(StepView::from).collect();
    Ok(PlanView { steps: Some(steps), ..plan.into() })
}

/// Goes with the answer to a request that made a plan or set one going, whose end can be waited for.
#[derive(Debug, Clone, Copy)]
pub struct Made(pub PlanId);

/// The answer to a request that made a plan: 202, after waiting for the end if that was asked for.
pub async fn accepted(app: &App, headers: &HeaderMap, plan: Plan) -> Result<Response, ApiError> {
    let plan = wait(app, plan, preferred_wait(headers)).await?;
    let made = Made(plan.id);
    let mut response = underway(app, plan).await?;
    response.extensions_mut().insert(made);
    Ok(response)
}

/// The answer for a plan that was made before, after a wait for its end.
pub async fn waited(
    app: &App,
    caller: &Caller,
    plan: PlanId,
    most: Duration,
) -> Result<Response, ApiError> {
    let plan = find_plan(app, caller, plan.0).await?;
    underway(app, wait(app, plan, most).await?).await
}

async fn underway(app: &App, plan: Plan) -> Result<Response, ApiError> {
    let location = [(header::LOCATION, format!("/v1/plans/{}", plan.id))];
    Ok((StatusCode::ACCEPTED, location, Json(show(app, plan).await?)).into_response())
}

/// Takes the wish to wait out of a request's headers.
pub fn take_wait(headers: &mut HeaderMap) -> Duration {
    let wait = preferred_wait(headers);
    headers.remove("prefer");
    wait
}

/// `Prefer: wait=N` (RFC 7240), at most a minute.
fn preferred_wait(headers: &HeaderMap) -> Duration {
    let seconds = headers
        .get_all("prefer")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split([',', ';']))
        .find_map(|p| p.trim().strip_prefix("wait=")?.parse::<u64>().ok());
    Duration::from_secs(seconds.unwrap_or(0).min(60))
}

async fn wait(app: &App, mut plan: Plan, most: Duration) -> Result<Plan, ApiError> {
    let until = Instant::now() + most;
    let mut tail = app.engine.tail.follow();
    while !plan.state.is_final() && plan.state != PlanState::Proposed && Instant::now() < until {
        let left = until.saturating_duration_since(Instant::now()).min(Duration::from_secs(1));
        tokio::select! {
            () = app.stop.cancelled() => break,
            () = end_of(plan.id, &mut tail) => {}
            () = tokio::time::sleep(left) => {}
        }
        plan = app.engine.store.plan(plan.id).await?;
    }
    Ok(plan)
}

/// Returns when a plan's end may have come by.
async fn end_of(plan: PlanId, tail: &mut broadcast::Receiver<Told>) {
    while let Ok(told) = tail.recv().await {
        if let Told::Line(line) = told
            && line.event.plan == Some(plan)
            && EventType::parse(&line.event.kind).is_some_and(EventType::ends_plan)
        {
            return;
        }
    }
}

/// The plan, if the caller may see its topology. What is left of a deleted topology is for those
/// who may see all.
async fn find_plan(app: &App, caller: &Caller, id: Uuid) -> Result<Plan, ApiError> {
    let plan = app.engine.store.plan(PlanId(id)).await?;
    if caller.token.scope.is_some() {
        let visible = caller.visible(&app.engine).await?.unwrap_or_default();
        if !visible.contains(&plan.topology) {
            return Err(ApiError::not_found("plan", id.to_string()));
        }
    }
    Ok(plan)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSpec {
    spec: Value,
}

/// Reads an intent. Its `kind` is read first, so that faults below it keep their pointers.
fn read_intent(value: Value) -> Result<Intent, ApiError> {
    fn of<T: DeserializeOwned>(value: Value, intent: fn(T) -> Intent) -> Result<Intent, ApiError> {
        read(value, "/intent").map(intent).map_err(invalid)
    }
    let Value::Object(mut fields) = value else {
        return Err(invalid(FieldError::new("/intent", "an intent is an object with a kind")));
    };
    let kind = fields.remove("kind");
    let rest = Value::Object(fields);
    match kind.as_ref().and_then(Value::as_str) {
        Some("create") => of(rest, Intent::Create),
        Some("repair") => of(rest, Intent::Repair),
        Some("revert") => of(rest, Intent::Revert),
        Some("accept_drift") => of(rest, Intent::AcceptDrift),
        Some("dissolve") => of(rest, Intent::Dissolve),
        Some("failover") => of(rest, Intent::Failover),
        Some("add_replica") => of(rest, Intent::AddReplica),
        Some("remove_replica") => of(rest, Intent::RemoveReplica),
        Some("replace_node") => of(rest, Intent::ReplaceNode),
        Some("drain") => of(rest, Intent::Drain),
        Some("undrain") => of(rest, Intent::Undrain),
        Some("reshard") => of(rest, Intent::Reshard),
        Some("rebalance") => of(rest, Intent::Rebalance),
        Some("add_shard") => of(rest, Intent::AddShard),
        Some("remove_shard") => of(rest, Intent::RemoveShard),
        Some("add_sentinel") => of(rest, Intent::AddSentinel),
        Some("remove_sentinel") => of(rest, Intent::RemoveSentinel),
        // The spec for itself, for it has a tag of its own.
        Some("replace_spec") => {
            let new = read::<NewSpec>(rest, "/intent").map_err(invalid)?;
            let spec = read_spec(new.spec, "/intent/spec").map_err(invalid)?;
            Ok(Intent::ReplaceSpec(ReplaceSpecIntent { spec: Box::new(spec) }))
        }
        Some(_) | None => Err(invalid(FieldError::new(
            "/intent/kind",
            "the kinds that there are now: `failover`, `add_replica`, `remove_replica`, `replace_node`, `add_sentinel`, `remove_sentinel`, `add_shard`, `remove_shard`, `reshard`, `rebalance`, `drain`, `undrain`, `repair`, `revert`, `accept_drift` and `dissolve` here, `create` by POST /v1/topologies and `replace_spec` by PUT /v1/topologies/{name}",
        ))),
    }
}

/// Makes a plan for an intent on a topology.
#[utoipa::path(post, path = "/v1/topologies/{name}/plans", operation_id = "submit_plan", tag = "plans",
    params(("name" = String, Path), ("Prefer" = Option<String>, Header, description = "`wait=N` waits up to N ≤ 60 seconds for the plan's end.")),
    request_body = SubmitPlan,
    responses((status = 202, description = "The plan.", body = PlanView, headers(("Location" = String)))))]
pub async fn submit(
    State(app): State<App>,
    Operator(caller): Operator,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(body): Body<SubmitPlan>,
) -> Result<Response, ApiError> {
    find(&app, &caller, &name).await?;
    let intent = read_intent(body.intent)?;
    if intent.new_spec().is_some() {
        return Err(invalid(FieldError::new(
            "/intent/kind",
            "a spec is replaced by PUT /v1/topologies/{name} with If-Match, so that nobody's change is lost; here it can be previewed",
        )));
    }
    let plan = app.engine.submit(&name, &intent, &body.plan.options()?, caller.name()).await?;
    accepted(&app, &headers, plan).await
}

/// What an intent would do. Nothing is stored, no node is changed.
#[utoipa::path(post, path = "/v1/topologies/{name}/plans/preview", operation_id = "preview_plan", tag = "plans",
    params(("name" = String, Path)), request_body = SubmitPlan,
    responses((status = 200, description = "The forecast.", body = PreviewView)))]
pub async fn preview(
    State(app): State<App>,
    Operator(caller): Operator,
    Path(name): Path<String>,
    Body(body): Body<SubmitPlan>,
) -> Result<Json<PreviewView>, ApiError> {
    let stored = find(&app, &caller, &name).await?;
    let intent = read_intent(body.intent)?;
    if let Some(spec) = intent.new_spec() {
        caller.respec(stored.wanted.spec.credentials(), spec.credentials())?;
    }
    let preview = app.engine.preview_plan(&name, &intent, &body.plan.options()?).await;
    let preview = preview.map_err(|e| match intent.new_spec() {
        Some(_) => ApiError::from(e).with_spec_in("/intent"),
        None => e.into(),
    })?;
    Ok(Json(PreviewView::new(&name, preview)))
}

/// Plans, the newest first.
#[utoipa::path(get, path = "/v1/plans", operation_id = "list_plans", tag = "plans",
    params(ListPlans), responses((status = 200, description = "A page of plans.", body = PlanList)))]
pub async fn list(
    State(app): State<App>,
    Viewer(caller): Viewer,
    Query(query): Query<ListPlans>,
) -> Result<Json<PlanList>, ApiError> {
    let page = Page::read(query.limit, query.cursor.as_deref())?;
    let filter = PlanFilter {
        topology: query.topology,
        state: query.state,
        kind: query.kind,
        after: page.key::<Uuid>()?.map(PlanId),
        visible: caller.visible(&app.engine).await?,
    };
    let mut items = app.engine.store.plans(&filter, page.fetch()).await?;
    let next_cursor = page.cut(&mut items, |p| p.id.to_string());
    Ok(Json(PlanList { items: items.into_iter().map(PlanView::from).collect(), next_cursor }))
}

/// One plan with its first 200 steps.
#[utoipa::path(get, path = "/v1/plans/{id}", operation_id = "get_plan", tag = "plans",
    params(("id" = PlanId, Path)), responses((status = 200, description = "The plan.", body = PlanView)))]
pub async fn get(
    State(app): State<App>,
    Viewer(caller): Viewer,
    Path(id): Path<Uuid>,
) -> Result<Json<PlanView>, ApiError> {
    let plan = find_plan(&app, &caller, id).await?;
    Ok(Json(show(&app, plan).await?))
}

/// The steps of a plan in their order.
#[utoipa::path(get, path = "/v1/plans/{id}/steps", operation_id = "list_steps", tag = "plans",
    params(("id" = PlanId, Path), ListSteps),
    responses((status = 200, description = "A page of steps.", body = StepList)))]
pub async fn steps(
    State(app): State<App>,
    Viewer(caller): Viewer,
    Path(id): Path<Uuid>,
    Query(query): Query<ListSteps>,
) -> Result<Json<StepList>, ApiError> {
    let plan = find_plan(&app, &caller, id).await?;
    let page = Page::read(query.limit, query.cursor.as_deref())?;
    let from = page.key::<i32>()?.map_or(0, |p| p.saturating_add(1));
    let mut items = app.engine.store.steps(plan.id, from, page.fetch()).await?;
    let next_cursor = page.cut(&mut items, |s| s.position.to_string());
    Ok(Json(StepList { items: items.into_iter().map(StepView::from).collect(), next_cursor }))
}

/// Starts a plan that was only proposed, if the nodes are still as they were then.
#[utoipa::path(post, path = "/v1/plans/{id}/start", operation_id = "start_plan", tag = "plans",
    params(("id" = PlanId, Path)), request_body = Consent,
    responses((status = 202, description = "The plan.", body = PlanView, headers(("Location" = String)))))]
pub async fn start(
    State(app): State<App>,
    Operator(caller): Operator,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
    Body(body): Body<Consent>,
) -> Result<Response, ApiError> {
    let plan = find_plan(&app, &caller, id).await?;
    let plan = app.engine.start_plan(plan.id, &body.accept, caller.name()).await?;
    accepted(&app, &headers, plan).await
}

/// Has a plan pause at its next safe point, with nothing temporary left on nodes.
#[utoipa::path(post, path = "/v1/plans/{id}/pause", operation_id = "pause_plan", tag = "plans",
    params(("id" = PlanId, Path)),
    responses((status = 202, description = "The plan.", body = PlanView, headers(("Location" = String)))))]
pub async fn pause(
    State(app): State<App>,
    Operator(caller): Operator,
    Path(id): Path<Uuid>,
) -> Result<Response, ApiError> {
    let plan = find_plan(&app, &caller, id).await?;
    let plan = app.engine.pause_plan(plan.id, caller.name()).await?;
    underway(&app, plan).await
}

/// Lets a paused plan go on.
#[utoipa::path(post, path = "/v1/plans/{id}/resume", operation_id = "resume_plan", tag = "plans",
    params(("id" = PlanId, Path)), request_body = Consent,
    responses((status = 202, description = "The plan.", body = PlanView, headers(("Location" = String)))))]
pub async fn resume(
    State(app): State<App>,
    Operator(caller): Operator,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
    Body(body): Body<Consent>,
) -> Result<Response, ApiError> {
    let plan = find_plan(&app, &caller, id).await?;
    let plan = app.engine.resume_plan(plan.id, &body.accept, caller.name()).await?;
    accepted(&app, &headers, plan).await
}

/// Ends a plan at its next safe point. What it did stays; what it left for a while is taken away.
#[utoipa::path(post, path = "/v1/plans/{id}/cancel", operation_id = "cancel_plan", tag = "plans",
    params(("id" = PlanId, Path)),
    responses((status = 202, description = "The plan.", body = PlanView, headers(("Location" = String)))))]
pub async fn cancel(
    State(app): State<App>,
    Operator(caller): Operator,
    Path(id): Path<Uuid>,
) -> Result<Response, ApiError> {
    let plan = find_plan(&app, &caller, id).await?;
    let plan = app.engine.cancel_plan(plan.id, caller.name()).await?;
    underway(&app, plan).await
}

/// Makes a new plan that goes on where one ended without success. Losses have to be accepted anew.
#[utoipa::path(post, path = "/v1/plans/{id}/retry", operation_id = "retry_plan", tag = "plans",
    params(("id" = PlanId, Path)), request_body = Consent,
    responses((status = 202, description = "The new plan.", body = PlanView, headers(("Location" = String)))))]
pub async fn retry(
    State(app): State<App>,
    Operator(caller): Operator,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
    Body(body): Body<Consent>,
) -> Result<Response, ApiError> {
    let plan = find_plan(&app, &caller, id).await?;
    let plan = app.engine.retry_plan(plan.id, &body.accept, caller.name()).await?;
    accepted(&app, &headers, plan).await
}

/// The plan's events from its first on, and progress as it comes (server-sent events). The stream
/// ends after the plan's last event; who comes back for more gets 204.
#[utoipa::path(get, path = "/v1/plans/{id}/stream", operation_id = "stream_plan", tag = "plans",
    params(("id" = PlanId, Path), StreamPlan, ("Last-Event-ID" = Option<i64>, Header, description = "The id of the last event that arrived.")),
    responses((status = 200, description = "A stream of events; each message's data is an Event, or the progress of a step.", body = String, content_type = "text/event-stream"),
              (status = 204, description = "The plan is over, and its last event has arrived.")))]
pub async fn stream(
    State(app): State<App>,
    _turn: sse::Turn,
    Viewer(caller): Viewer,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
    Query(query): Query<StreamPlan>,
) -> Result<Response, ApiError> {
    let plan = find_plan(&app, &caller, id).await?;
    let after = sse::last_event_id(&headers, query.last_event_id)?;
    sse::plan_stream(app, &caller, plan.id, after).await
}
