//! Server-sent events (WHATWG HTML, section 9.2): replay from the journal, then follow it.
//!
//! A stream holds nothing but the id up to which it has read. Notifications only wake it; what it
//! sends is what it reads from Postgres, so nothing is lost or repeated however often a client is
//! cut off.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::error::ApiError;
use crate::domain::event::{Event, EventType};
use crate::domain::id::PlanId;
use crate::engine::Engine;
use crate::engine::hub::StepProgress;
use crate::store::journal::EventFilter;

const BATCH: i64 = 200;
/// The journal is read at least this often, whether or not anything woke the stream.
const TICK: Duration = Duration::from_secs(1);

/// Where a client wants to go on: the `Last-Event-ID` header, or the query for those that cannot
/// send one.
pub fn last_event_id(headers: &HeaderMap, query: Option<i64>) -> Result<Option<i64>, ApiError> {
    match headers.get("last-event-id") {
        None => Ok(query),
        Some(value) => {
            let id = value.to_str().ok().and_then(|v| v.trim().parse().ok());
            id.map(Some).ok_or_else(|| {
                ApiError::new("invalid_parameter", "Last-Event-ID is the number of an event")
            })
        }
    }
}

/// The stream of one plan, from its first event or from where the client was cut off; 204 for
/// whoever comes back after the end.
pub async fn plan_stream(
    engine: Arc<Engine>,
    stop: CancellationToken,
    plan: PlanId,
    after: Option<i64>,
) -> Result<Response, ApiError> {
    let after = after.unwrap_or(0);
    if engine.store.plan_end(plan).await?.is_some_and(|end| after >= end) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let filter = EventFilter { after, plan: Some(plan), ..EventFilter::default() };
    Ok(respond(Follower::new(engine, stop, filter, Some(plan))))
}

/// The stream of the whole journal, or of a part of it.
pub fn journal_stream(
    engine: Arc<Engine>,
    stop: CancellationToken,
    filter: EventFilter,
) -> Response {
    respond(Follower::new(engine, stop, filter, None))
}

struct Follower {
    engine: Arc<Engine>,
    stop: CancellationToken,
    filter: EventFilter,
    plan: Option<PlanId>,
    wake: watch::Receiver<u64>,
    progress: broadcast::Receiver<StepProgress>,
    ready: VecDeque<Message>,
    ended: bool,
    greeted: bool,
}

impl Follower {
    fn new(
        engine: Arc<Engine>,
        stop: CancellationToken,
        filter: EventFilter,
        plan: Option<PlanId>,
    ) -> Self {
        // Followed before the first read, so that nothing falls between the two.
        let wake = engine.hub.follow();
        let progress = engine.hub.follow_progress();
        let ready = VecDeque::new();
        Self { engine, stop, filter, plan, wake, progress, ready, ended: false, greeted: false }
    }

    async fn next(mut self) -> Option<(Result<Message, Infallible>, Self)> {
        if !self.greeted {
            self.greeted = true;
            let hello = Message::default().retry(Duration::from_secs(2)).comment("reeve");
            return Some((Ok(hello), self));
        }
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some((Ok(message), self));
            }
            if self.ended || self.stop.is_cancelled() {
                return None;
            }
            self.wake.mark_unchanged();
            match self.engine.store.events(&self.filter, BATCH).await {
                Ok(events) if !events.is_empty() => {
                    for event in events {
                        self.take(&event);
                    }
                    continue;
                }
                Ok(_) => {}
                // The client keeps its stream; reading goes on when the database is back.
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a stream cannot read the journal"
                ),
            }
            tokio::select! {
                () = self.stop.cancelled() => return None,
                _ = self.wake.changed() => {}
                told = self.progress.recv() => {
                    if let Ok(told) = told && self.plan.is_some() && told.plan == self.plan {
                        self.ready.extend(message("progress", &told));
                    }
                }
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    fn take(&mut self, event: &Event) {
        self.filter.after = event.id;
        self.ready.extend(message(&event.kind, event).map(|m| m.id(event.id.to_string())));
        let ends = EventType::parse(&event.kind).is_some_and(EventType::ends_plan);
        self.ended |= self.plan.is_some() && ends;
    }
}

fn message(kind: &str, data: &impl serde::Serialize) -> Option<Message> {
    Message::default().event(kind).json_data(data).ok()
}

fn respond(follower: Follower) -> Response {
    let stream: std::pin::Pin<Box<dyn Stream<Item = Result<Message, Infallible>> + Send>> =
        Box::pin(stream::unfold(follower, Follower::next));
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    let mut response = Sse::new(stream).keep_alive(keep_alive).into_response();
    // A proxy that buffers would hold events back.
    let headers = response.headers_mut();
    headers.insert("x-accel-buffering", header::HeaderValue::from_static("no"));
    response
}
