//! The journal, as pages and as a stream.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::domain::event::Event;
use crate::domain::id::PlanId;
use crate::http::App;
use crate::http::auth::{Viewer, digest};
use crate::http::error::ApiError;
use crate::http::extract::Query;
use crate::http::page::Page;
use crate::http::sse;
use crate::store::journal::EventFilter;

/// A ticket is for opening one stream soon, not for keeping.
const TICKET_SECONDS: f64 = 60.0;

#[derive(Debug, Serialize, ToSchema)]
pub struct EventList {
    items: Vec<Event>,
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListEvents {
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    cursor: Option<String>,
    /// Name of a topology.
    topology: Option<String>,
    /// Id of a plan.
    plan: Option<Uuid>,
    /// Types with commas between them; one that ends with `*` stands for all that begin so.
    #[param(example = "plan.*,node.down")]
    types: Option<String>,
    /// Only events from this time on (RFC 3339).
    since: Option<DateTime<Utc>>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StreamEvents {
    topology: Option<String>,
    plan: Option<Uuid>,
    /// Types with commas between them; one that ends with `*` stands for all that begin so.
    types: Option<String>,
    since: Option<DateTime<Utc>>,
    /// Where to go on, for clients that cannot send the `Last-Event-ID` header. Without either the
    /// stream begins with what happens next.
    #[param(minimum = 0)]
    last_event_id: Option<i64>,
    /// A ticket from `POST /v1/stream-tickets`, for clients that cannot send a token.
    #[expect(dead_code, reason = "read by the authentication, which comes before")]
    ticket: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct StreamTicket {
    /// For `?ticket=` of a stream.
    ticket: String,
    expires_at: DateTime<Utc>,
}

fn types(list: Option<&str>) -> Result<Vec<String>, ApiError> {
    let types: Vec<String> = list
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|t| !t.is_empty())
        .map(str::to_owned)
        .collect();
    let simple = |c: char| c.is_ascii_lowercase() || matches!(c, '.' | '_' | '*');
    if types.iter().all(|t| t.chars().all(simple)) {
        return Ok(types);
    }
    Err(ApiError::new(
        "invalid_parameter",
        "types are names such as plan.failed or node.*, with commas between them",
    ))
}

/// Events in the order in which they were committed.
#[utoipa::path(get, path = "/v1/events", operation_id = "list_events", tag = "events",
    params(ListEvents), responses((status = 200, description = "A page of events.", body = EventList)))]
pub async fn list(
    State(app): State<App>,
    Viewer(caller): Viewer,
    Query(query): Query<ListEvents>,
) -> Result<Json<EventList>, ApiError> {
    let page = Page::read(query.limit, query.cursor.as_deref())?;
    let filter = EventFilter {
        after: page.key()?.unwrap_or(0),
        topology: query.topology,
        plan: query.plan.map(PlanId),
        types: types(query.types.as_deref())?,
        since: query.since,
        visible: caller.visible(&app.engine).await?,
    };
    let mut items = app.engine.store.events(&filter, page.fetch()).await?;
    let next_cursor = page.cut(&mut items, |e| e.id.to_string());
    Ok(Json(EventList { items, next_cursor }))
}

/// Events as they happen (server-sent events). `Last-Event-ID` goes on without loss or repetition.
#[utoipa::path(get, path = "/v1/events/stream", operation_id = "stream_events", tag = "events",
    params(StreamEvents, ("Last-Event-ID" = Option<i64>, Header, description = "The id of the last event that arrived.")),
    responses((status = 200, description = "A stream of events; each message's data is an Event.", body = String, content_type = "text/event-stream")))]
pub async fn stream(
    State(app): State<App>,
    _turn: sse::Turn,
    Viewer(caller): Viewer,
    headers: HeaderMap,
    Query(query): Query<StreamEvents>,
) -> Result<Response, ApiError> {
    let asked = sse::last_event_id(&headers, query.last_event_id)?;
    let after = match asked {
        Some(id) => id,
        None if query.since.is_some() => 0,
        None => app.engine.store.last_event_id().await?,
    };
    let filter = EventFilter {
        after,
        topology: query.topology,
        plan: query.plan.map(PlanId),
        types: types(query.types.as_deref())?,
        since: query.since,
        visible: caller.visible(&app.engine).await?,
    };
    sse::journal_stream(app, &caller, filter).await
}

/// Makes a short-lived ticket with the caller's rights, for browsers, whose EventSource sends no
/// header.
#[utoipa::path(post, path = "/v1/stream-tickets", operation_id = "create_stream_ticket", tag = "events",
    responses((status = 201, description = "The ticket.", body = StreamTicket)))]
pub async fn ticket(
    State(app): State<App>,
    Viewer(caller): Viewer,
) -> Result<(StatusCode, Json<StreamTicket>), ApiError> {
    let mut bytes = [0u8; 24];
    if getrandom::fill(&mut bytes).is_err() {
        return Err(ApiError::new("internal", "the machine gives no random numbers"));
    }
    let ticket = URL_SAFE_NO_PAD.encode(bytes);
    let store = &app.engine.store;
    let expires_at = store.add_ticket(caller.token.id, &digest(&ticket), TICKET_SECONDS).await?;
    Ok((StatusCode::CREATED, Json(StreamTicket { ticket, expires_at })))
}
