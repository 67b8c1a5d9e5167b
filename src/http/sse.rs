//! Server-sent events (WHATWG HTML, section 9.2): replay from the journal, then follow its tail.
//!
//! A stream holds nothing but the id up to which it has sent. It replays from Postgres until it has
//! caught up with the [tail](crate::engine::tail), which all streams share, and again whenever it
//! falls behind that; so nothing is lost or repeated however slow a client is or however often it is
//! cut off.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::App;
use super::auth::Caller;
use super::error::ApiError;
use crate::domain::event::EventType;
use crate::domain::id::PlanId;
use crate::engine::Engine;
use crate::engine::guests::Seat;
use crate::engine::hub::StepProgress;
use crate::engine::tail::{Line, Told};
use crate::store::StoreError;
use crate::store::journal::EventFilter;

const BATCH: i64 = 200;
/// Between attempts to read a database that does not answer.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a request waits for its turn to open a stream.
const TURN: Duration = Duration::from_secs(15);
/// How long a stream that begins waits for the tail to be there, just after the start.
const START: Duration = Duration::from_secs(5);

/// A turn to open a stream, to be taken before anything is asked of the database and held until the
/// stream is open. Of a crowd that comes at once the others wait here, and not for connections that
/// keepers and other requests need.
pub struct Turn {
    _permit: OwnedSemaphorePermit,
}

impl<S> FromRequestParts<S> for Turn
where
    App: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let permit = App::from_ref(state).engine.tail.turn(TURN).await;
        permit.map(|permit| Self { _permit: permit }).ok_or_else(|| {
            ApiError::new("busy", "too many streams are being opened at once; try again shortly")
        })
    }
}

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
    app: App,
    caller: &Caller,
    plan: PlanId,
    after: Option<i64>,
) -> Result<Response, ApiError> {
    let after = after.unwrap_or(0);
    // Of a plan that is over there is nothing more to come, whatever else its client may know.
    if after > 0 && app.engine.store.plan_end(plan).await?.is_some_and(|end| after >= end) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let visible = caller.visible(&app.engine).await?;
    let filter = EventFilter { after, plan: Some(plan), ..EventFilter::default() };
    let mut follower = Follower::new(app, caller, visible, filter, Some(plan));
    follower.begin().await?;
    Ok(respond(follower))
}

/// The stream of the whole journal, or of a part of it.
pub async fn journal_stream(
    app: App,
    caller: &Caller,
    filter: EventFilter,
) -> Result<Response, ApiError> {
    let visible = filter.visible.clone();
    let mut follower = Follower::new(app, caller, visible, filter, None);
    follower.begin().await?;
    Ok(respond(follower))
}

struct Follower {
    engine: Arc<Engine>,
    stop: CancellationToken,
    seat: Seat,
    filter: EventFilter,
    plan: Option<PlanId>,
    /// The id after which it began.
    from: i64,
    tail: broadcast::Receiver<Told>,
    progress: broadcast::Receiver<StepProgress>,
    ready: VecDeque<Message>,
    /// Whether there may be something in Postgres that the tail will not bring.
    behind: bool,
    ended: bool,
    greeted: bool,
}

impl Follower {
    fn new(
        app: App,
        caller: &Caller,
        visible: Option<Vec<String>>,
        filter: EventFilter,
        plan: Option<PlanId>,
    ) -> Self {
        let App { engine, stop, .. } = app;
        let seat = engine.guests.admit(caller.token.id, caller.token.scope.clone(), visible);
        // Followed before the first read, so that nothing falls between the two.
        let (tail, progress) = (engine.tail.follow(), engine.hub.follow_progress());
        let (ready, behind) = (VecDeque::new(), true);
        let (ended, greeted, from) = (false, false, filter.after);
        Self {
            engine,
            stop,
            seat,
            filter,
            plan,
            from,
            tail,
            progress,
            ready,
            behind,
            ended,
            greeted,
        }
    }

    /// Finds the place to begin, and reads the first page, so that what is wrong is told by the
    /// answer's status.
    async fn begin(&mut self) -> Result<(), ApiError> {
        let ready = tokio::time::timeout(START, self.engine.tail.ready()).await;
        let position = ready
            .map_err(|_| ApiError::new("database_unavailable", "the journal cannot be read yet"))?;
        if self.filter.after > position {
            let newest = self.engine.store.last_event_id().await?;
            if self.filter.after > newest {
                return Err(ApiError::new(
                    "gone",
                    format!(
                        "this database knows no event {}, its newest is {newest}; was it restored from a backup? What you know from later events may never have happened: read the state and GET /v1/events again, and go on from there",
                        self.filter.after
                    ),
                ));
            }
        }
        // What the tail will bring need not be read.
        self.behind = self.filter.after < position;
        if self.behind { Ok(self.replay().await?) } else { Ok(()) }
    }

    /// Reads the next page from Postgres.
    async fn replay(&mut self) -> Result<(), StoreError> {
        let events = self.engine.tail.replay(&self.engine.store, &self.filter, BATCH).await?;
        // A short page is the last one: what it lacks was committed later, and the tail brings it.
        self.behind = events.len() as i64 == BATCH;
        for line in events.into_iter().filter_map(Line::of) {
            self.take(&line);
        }
        Ok(())
    }

    /// The same for a stream that is open: its client keeps it, and reading goes on when the
    /// database is back.
    async fn catch_up(&mut self) {
        if let Err(error) = self.replay().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a stream cannot read the journal"
            );
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn next(mut self) -> Option<(Result<Message, Infallible>, Self)> {
        if !self.greeted {
            self.greeted = true;
            let mut hello = Message::default().retry(Duration::from_secs(2)).comment("reeve");
            // An id without data is no message, but a place to go on from: who is cut off before
            // the first event comes back to here. A plan's stream begins at its beginning anyway.
            if self.plan.is_none() {
                hello = hello.id(self.from.to_string());
            }
            return Some((Ok(hello), self));
        }
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some((Ok(message), self));
            }
            if self.ended || self.stop.is_cancelled() || self.seat.out.is_cancelled() {
                return None;
            }
            if self.behind {
                let (stop, out) = (self.stop.clone(), self.seat.out.clone());
                tokio::select! {
                    () = stop.cancelled() => return None,
                    () = out.cancelled() => return None,
                    () = self.catch_up() => continue,
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = self.seat.out.cancelled() => return None,
                told = self.tail.recv() => match told {
                    Ok(Told::Line(line)) => {
                        if self.filter.matches(&line.event) {
                            self.take(&line);
                        }
                    }
                    Err(RecvError::Lagged(_)) => self.behind = true,
                    // Whoever comes back is told what has become of the journal.
                    Ok(Told::Rewound) | Err(RecvError::Closed) => return None,
                },
                told = self.progress.recv() => {
                    if let Ok(told) = told && self.plan.is_some() && told.plan == self.plan {
                        self.ready.extend(progress(&told));
                    }
                }
            }
        }
    }

    fn take(&mut self, line: &Line) {
        let (id, kind) = (line.event.id, &line.event.kind);
        self.filter.after = id;
        self.ready.push_back(Message::default().event(kind).data(&line.json).id(id.to_string()));
        let ends = EventType::parse(kind).is_some_and(EventType::ends_plan);
        self.ended |= self.plan.is_some() && ends;
    }
}

fn progress(told: &StepProgress) -> Option<Message> {
    Message::default().event("progress").json_data(told).ok()
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
