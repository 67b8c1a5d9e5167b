//! The journal: events, written in the transaction that changes what they tell of.

use chrono::{DateTime, Utc};
use sqlx::{Postgres, Transaction};

use super::{Store, StoreError, deliveries, document};
use crate::domain::event::{Event, EventType, NewEvent};
use crate::domain::failovers::Told;
use crate::domain::id::{PlanId, TopologyId};
use crate::domain::refusal::Refusal;

/// Wakes whoever follows the journal; reading it is what counts.
pub const CHANNEL: &str = "reeve_events";
/// Wakes the keeper of the topology whose id it carries, on whichever instance.
pub const BELLS: &str = "reeve_bells";
/// Serialises the taking of event ids, so that they ascend in commit order.
const LOCK: i64 = 7380;

/// What to read of the journal.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Only events after this id.
    pub after: i64,
    pub topology: Option<String>,
    pub plan: Option<PlanId>,
    /// Types, each whole or as a prefix that ends with `*`; empty for all.
    pub types: Vec<String>,
    pub since: Option<DateTime<Utc>>,
    /// Restricts to these topologies where the reader may not see all.
    pub visible: Option<Vec<String>>,
}

impl EventFilter {
    /// The same question as [`Store::events`] asks of the database.
    #[must_use]
    pub fn matches(&self, event: &Event) -> bool {
        let named = |wanted: &String| match wanted.strip_suffix('*') {
            Some(start) => event.kind.starts_with(start),
            None => event.kind == *wanted,
        };
        // The database keeps microseconds, and cuts off what is finer.
        let micros = |time: DateTime<Utc>| time.timestamp_micros();
        event.id > self.after
            && self.topology.as_ref().is_none_or(|t| event.topology.as_ref() == Some(t))
            && self.plan.is_none_or(|plan| event.plan == Some(plan))
            && (self.types.is_empty() || self.types.iter().any(named))
            && self.since.is_none_or(|since| micros(event.at) >= micros(since))
            && self
                .visible
                .as_ref()
                .is_none_or(|seen| event.topology.as_ref().is_some_and(|t| seen.contains(t)))
    }
}

/// Writes events as the last act of a transaction, and queues them for whoever subscribed to them.
///
/// The order of locks is what keeps this from deadlocking: the topology's row first, then the
/// advisory lock, after which nothing is waited for.
pub async fn append(
    tx: &mut Transaction<'_, Postgres>,
    topology: Option<TopologyId>,
    events: &[NewEvent],
) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
    let (name, last_seq) = match topology {
        None => (None, None),
        Some(id) => {
            let row = sqlx::query!(
                "UPDATE topologies SET last_seq = last_seq + $2 WHERE id = $1 RETURNING name, last_seq",
                id.0,
                count
            )
            .fetch_optional(&mut **tx)
            .await?
            .ok_or_else(|| Refusal::NotFound { kind: "topology", name: id.to_string() })?;
            (Some(row.name), Some(row.last_seq))
        }
    };
    sqlx::query!("SELECT pg_advisory_xact_lock($1) AS \"lock: ()\"", LOCK)
        .fetch_one(&mut **tx)
        .await?;
    let first_seq = last_seq.map(|last| last - count + 1);
    let kinds: Vec<String> = events.iter().map(|e| e.kind.as_str().to_owned()).collect();
    let data: Vec<serde_json::Value> = events.iter().map(|e| e.data.clone()).collect();
    let plans: Vec<Option<uuid::Uuid>> = events.iter().map(|e| e.plan.map(|p| p.0)).collect();
    let actors: Vec<Option<String>> = events.iter().map(|e| e.actor.clone()).collect();
    let ids = sqlx::query_scalar!(
        "INSERT INTO events (id, seq, topology_id, topology, type, at, data, plan_id, actor)
         SELECT nextval('event_ids'), $2::bigint + e.ord - 1, $1, $3, e.kind, clock_timestamp(),
                e.data, e.plan, e.actor
         FROM (SELECT * FROM unnest($4::text[], $5::jsonb[], $6::uuid[], $7::text[])
               WITH ORDINALITY AS u(kind, data, plan, actor, ord) ORDER BY ord) e
         RETURNING id",
        topology.map(|t| t.0),
        first_seq,
        name,
        &kinds,
        &data,
        &plans as &[Option<uuid::Uuid>],
        &actors as &[Option<String>],
    )
    .fetch_all(&mut **tx)
    .await?;
    deliveries::queue(tx, &ids).await?;
    wake(tx).await
}

/// Wakes whoever follows the journal or delivers it, when the transaction is committed.
pub(super) async fn wake(tx: &mut Transaction<'_, Postgres>) -> Result<(), StoreError> {
    sqlx::query!("SELECT pg_notify($1, '') AS \"sent: ()\"", CHANNEL).fetch_one(&mut **tx).await?;
    Ok(())
}

/// Has the keeper of a topology look at once, wherever it is, when the transaction is committed.
pub async fn ring(
    tx: &mut Transaction<'_, Postgres>,
    topology: TopologyId,
) -> Result<(), StoreError> {
    sqlx::query!("SELECT pg_notify($1, $2) AS \"sent: ()\"", BELLS, topology.to_string())
        .fetch_one(&mut **tx)
        .await?;
    Ok(())
}

struct EventRow {
    id: i64,
    seq: Option<i64>,
    topology: Option<String>,
    kind: String,
    at: DateTime<Utc>,
    data: serde_json::Value,
    plan_id: Option<uuid::Uuid>,
    actor: Option<String>,
}

impl Store {
    /// Events in order, at most `limit`.
    pub async fn events(&self, filter: &EventFilter, limit: i64) -> Result<Vec<Event>, StoreError> {
        let exact: Vec<String> =
            filter.types.iter().filter(|t| !t.ends_with('*')).cloned().collect();
        let prefixes: Vec<String> =
            filter.types.iter().filter_map(|t| t.strip_suffix('*')).map(str::to_owned).collect();
        let rows = sqlx::query_as!(
            EventRow,
            "SELECT id, seq, topology, type AS kind, at, data, plan_id, actor FROM events
             WHERE id > $1
               AND ($2::text IS NULL OR topology = $2)
               AND ($3::uuid IS NULL OR plan_id = $3)
               AND (cardinality($4::text[]) + cardinality($5::text[]) = 0 OR type = ANY($4)
                    OR EXISTS (SELECT 1 FROM unnest($5::text[]) p WHERE starts_with(type, p)))
               AND ($6::timestamptz IS NULL OR at >= $6)
               AND ($7::text[] IS NULL OR topology = ANY($7))
             ORDER BY id LIMIT $8",
            filter.after,
            filter.topology,
            filter.plan.map(|p| p.0),
            &exact,
            &prefixes,
            filter.since,
            filter.visible.as_deref(),
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        let event = |r: EventRow| Event {
            id: r.id,
            seq: r.seq,
            topology: r.topology,
            kind: r.kind,
            at: r.at,
            data: r.data,
            plan: r.plan_id.map(PlanId),
            actor: r.actor,
        };
        Ok(rows.into_iter().map(event).collect())
    }

    /// What was told last of failovers that are under way, one for each shard.
    pub async fn open_failovers(&self, topology: TopologyId) -> Result<Vec<Told>, StoreError> {
        let rows = sqlx::query!(
            "SELECT DISTINCT ON (data->>'shard') type AS kind, data FROM events
             WHERE topology_id = $1 AND type LIKE 'failover.%'
             ORDER BY data->>'shard', id DESC",
            topology.0
        );
        let mut told = Vec::new();
        for row in rows.fetch_all(&self.pool).await? {
            match EventType::parse(&row.kind) {
                Some(EventType::FailoverDetected) => {
                    told.push(Told::Detected(document("events", "data", row.data)?));
                }
                Some(EventType::FailoverStarted) => {
                    told.push(Told::Started(document("events", "data", row.data)?));
                }
                Some(_) | None => {}
            }
        }
        Ok(told)
    }

    /// The id of the newest event; 0 where there is none.
    pub async fn last_event_id(&self) -> Result<i64, StoreError> {
        let id = sqlx::query_scalar!("SELECT coalesce(max(id), 0) AS \"id!\" FROM events");
        Ok(id.fetch_one(&self.pool).await?)
    }

    /// The id of the event that ended a plan.
    pub async fn plan_end(&self, plan: PlanId) -> Result<Option<i64>, StoreError> {
        let id = sqlx::query_scalar!(
            "SELECT id FROM events WHERE plan_id = $1 AND type IN
             ('plan.succeeded', 'plan.failed', 'plan.cancelled', 'plan.superseded')",
            plan.0
        );
        Ok(id.fetch_optional(&self.pool).await?)
    }

    /// Writes events that go with no other change.
    pub async fn tell(
        &self,
        topology: Option<TopologyId>,
        events: &[NewEvent],
    ) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        append(&mut tx, topology, events).await?;
        Ok(tx.commit().await?)
    }
}
