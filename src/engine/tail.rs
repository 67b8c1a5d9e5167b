//! The end of the journal, read once for all who follow it.
//!
//! One reader per process asks Postgres for what is new, on each notification and each second as
//! the truth, and hands every event to all followers through a bounded channel. Reading `id > last`
//! misses nothing, because ids are taken under one lock as the last act of a transaction and so
//! become visible in their order.
//!
//! Whoever begins in the past replays from Postgres first: follow, then [`ready`](Tail::ready),
//! then replay, then take what the channel brings and leave out what was replayed. What was
//! committed before the replay is in it; what was not comes through the channel. A follower that
//! falls behind the channel replays again, so memory is bounded however slow it is.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::domain::event::Event;
use crate::store::journal::EventFilter;
use crate::store::leases::EVENTS_FORWARD;
use crate::store::{Store, StoreError};

/// Events that a follower may be behind before it has to replay.
const CAPACITY: usize = 1024;
const BATCH: i64 = 500;
/// The journal is read at least this often, whether or not anything woke the reader.
const TICK: Duration = Duration::from_secs(1);
/// How long a read may take. A connection that was lost without a word must not silence all
/// streams for as long as the system believes in it.
const PATIENCE: Duration = Duration::from_secs(20);
/// So many followers replay at once, and so many streams are opened at once: together fewer than
/// there are connections. A crowd that comes
/// back together must leave connections to everybody else.
const REPLAYS: usize = 4;
const OPENINGS: usize = 8;

/// An event, and its JSON, written once for all followers.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub event: Event,
    pub json: String,
}

/// What followers are told.
#[derive(Debug, Clone)]
pub enum Told {
    Line(Arc<Line>),
    /// The journal ends earlier than it did: the database was restored from a backup. What a
    /// follower knows may never have happened.
    Rewound,
}

pub struct Tail {
    told: broadcast::Sender<Told>,
    /// The newest event that was handed out; nothing before the database was asked.
    position: watch::Sender<Option<i64>>,
    replays: Semaphore,
    openings: Arc<Semaphore>,
}

impl Tail {
    pub(super) fn new() -> Self {
        let (told, position) = (broadcast::Sender::new(CAPACITY), watch::Sender::new(None));
        let openings = Arc::new(Semaphore::new(OPENINGS));
        Self { told, position, replays: Semaphore::new(REPLAYS), openings }
    }

    /// A turn to open a stream; `None` for who waited too long. Whoever has one may wait for a
    /// replay, and never the other way round.
    pub async fn turn(&self, patience: Duration) -> Option<OwnedSemaphorePermit> {
        tokio::time::timeout(patience, self.openings.clone().acquire_owned()).await.ok()?.ok()
    }

    /// All that is new from now on.
    #[must_use]
    pub fn follow(&self) -> broadcast::Receiver<Told> {
        self.told.subscribe()
    }

    /// Where the tail begins, once that is known. Asked for after [`follow`](Self::follow), all
    /// later events come through the channel: the position moves before an event is handed out.
    pub async fn ready(&self) -> i64 {
        let mut position = self.position.subscribe();
        let known = position.wait_for(Option::is_some).await;
        known.ok().and_then(|id| *id).unwrap_or_default()
    }

    /// A page of the past, when it is this follower's turn.
    pub async fn replay(
        &self,
        store: &Store,
        filter: &EventFilter,
        limit: i64,
    ) -> Result<Vec<Event>, StoreError> {
        // Never closed, so there is always a turn.
        let _turn = self.replays.acquire().await;
        read(store, filter, limit, "replay").await
    }

    /// Hands out what is new; `last` is where it was before, and where it is afterwards. On the
    /// `tick` it is also seen whether the journal still reaches as far. Ids that leave out so many
    /// were handed out after the database was put back.
    async fn advance(
        &self,
        engine: &Engine,
        last: &mut Option<i64>,
        tick: bool,
    ) -> Result<(), StoreError> {
        let store = &engine.store;
        let Some(before) = *last else {
            let newest = store.last_event_id().await?;
            *last = Some(newest);
            self.position.send_replace(*last);
            return Ok(());
        };
        let mut filter = EventFilter { after: before, ..EventFilter::default() };
        loop {
            let events = read(store, &filter, BATCH, "tail").await?;
            let more = events.len() as i64 == BATCH;
            for event in events {
                if event.id - filter.after >= EVENTS_FORWARD {
                    self.tell(Some(Told::Rewound));
                }
                filter.after = event.id;
                engine.newest_event.saw(event.id);
                *last = Some(event.id);
                self.position.send_replace(*last);
                self.tell(Line::of(event).map(|line| Told::Line(Arc::new(line))));
            }
            if !more {
                break;
            }
        }
        if tick && filter.after == before {
            let newest = store.last_event_id().await?;
            // Whoever comes back is to find what was done about it, if anything was.
            if newest < before && !engine.notice_restore(store.newest_event().await?).await? {
                tracing::warn!(newest, before, "the journal ends earlier than it did");
                *last = Some(newest);
                self.position.send_replace(*last);
                self.tell(Some(Told::Rewound));
            }
        }
        Ok(())
    }

    fn tell(&self, told: Option<Told>) {
        // Nobody may be following, which is no error.
        told.map(|told| self.told.send(told));
    }
}

impl Line {
    #[must_use]
    pub fn of(event: Event) -> Option<Self> {
        serde_json::to_string(&event).ok().map(|json| Self { event, json })
    }
}

async fn read(
    store: &Store,
    filter: &EventFilter,
    limit: i64,
    by: &'static str,
) -> Result<Vec<Event>, StoreError> {
    metrics::counter!("reeve_journal_reads_total", "by" => by).increment(1);
    store.events(filter, limit).await
}

/// Reads on for as long as the process lives.
pub(super) async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    let mut wake = engine.hub.follow();
    let (mut last, mut tick) = (None, true);
    loop {
        wake.mark_unchanged();
        // Where it is given up, `last` says how far it came.
        let advance = engine.tail.advance(&engine, &mut last, tick);
        match tokio::time::timeout(PATIENCE, advance).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the journal cannot be read"
            ),
            Err(_) => tracing::warn!("the journal cannot be read: the database hangs"),
        }
        tick = tokio::select! {
            () = stop.cancelled() => return,
            _ = wake.changed() => false,
            () = tokio::time::sleep(TICK) => true,
        };
    }
}
