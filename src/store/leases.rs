//! Leases: which instance keeps which topology, by the database's clock.
//!
//! A lease's token only grows. Whatever a keeper writes carries its token in the same transaction,
//! so that one that was frozen beyond its lease writes nothing when it thaws. `clock_timestamp()`
//! throughout, since `now()` stands still from the beginning of a transaction.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::types::PgInterval;
use sqlx::{Postgres, Transaction};

use super::{Store, StoreError, journal};
use crate::domain::event::{EventType, NewEvent};
use crate::domain::id::{InstanceId, PlanId, TopologyId};
use crate::domain::placement::Warning;

/// What a database that was put back adds to every token: more than could have been handed out since
/// the backup was made.
const TOKENS_FORWARD: i64 = 1 << 32;
/// The same for event ids, beyond the newest that somebody still knows of. Clients keep them in
/// numbers of 53 bits, so this may happen often.
pub const EVENTS_FORWARD: i64 = 1 << 20;

/// The warning of a plan that was active in the backup. Whoever resumes it has seen it.
pub const DATABASE_RESTORED: &str = "database_restored";

/// A lease as its holder knows it: the proof that goes with every write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Held {
    pub topology: TopologyId,
    pub token: i64,
}

/// A process that works on this database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub id: InstanceId,
    pub host: String,
    pub pid: u32,
    pub listen: String,
    pub version: String,
}

/// An instance as the others see it, with what it holds.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenInstance {
    pub instance: Instance,
    pub started_at: DateTime<Utc>,
    pub seen_at: DateTime<Utc>,
    /// Whether it was seen within a lease's time.
    pub alive: bool,
    pub holds: Vec<HeldTopology>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldTopology {
    pub name: String,
    pub token: i64,
    pub expires_at: DateTime<Utc>,
}

/// What a heartbeat finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    pub instances: i64,
    pub topologies: i64,
    /// How many topologies the one of the others has that has the fewest; nothing where there are no
    /// others that were heard of just now.
    pub poorest: Option<i64>,
    /// Whether no other instance has been there for longer.
    pub eldest: bool,
    /// The newest event id that was handed out.
    pub newest_event: i64,
}

/// Proves, as the last statement before a transaction's events, that the lease is still held, and
/// stretches it to `for_at_least` from now where that is longer.
pub(super) async fn hold(
    tx: &mut Transaction<'_, Postgres>,
    held: Held,
    for_at_least: Duration,
) -> Result<(), StoreError> {
    let proven = sqlx::query!(
        "UPDATE leases SET expires_at = greatest(expires_at, clock_timestamp() + $3)
         WHERE topology_id = $1 AND token = $2 AND expires_at > clock_timestamp()",
        held.topology.0,
        held.token,
        interval(for_at_least)
    )
    .execute(&mut **tx)
    .await?;
    if proven.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Fenced) }
}

pub(super) fn interval(time: Duration) -> PgInterval {
    let microseconds = i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}

impl Store {
    /// Says that an instance lives, and forgets those that have been gone for a day.
    pub async fn beat(&self, me: &Instance, ttl: Duration) -> Result<Beat, StoreError> {
        let pid = i32::try_from(me.pid).unwrap_or(i32::MAX);
        let row = sqlx::query!(
            "WITH me AS (
                 INSERT INTO instances (id, host, pid, listen, version, expires_at)
                 VALUES ($1, $2, $3, $4, $5, clock_timestamp() + $6)
                 ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp(),
                     expires_at = clock_timestamp() + $6),
             gone AS (
                 DELETE FROM instances WHERE expires_at < clock_timestamp() - interval '1 day')
             SELECT 1 + (SELECT count(*) FROM instances
                         WHERE id <> $1 AND expires_at > clock_timestamp()) AS \"instances!\",
                    (SELECT count(*) FROM leases) AS \"topologies!\",
                    (SELECT min((SELECT count(*) FROM leases l WHERE l.holder = i.id
                                 AND l.expires_at > clock_timestamp()))
                     FROM instances i WHERE i.id <> $1
                     AND i.seen_at > clock_timestamp() - $6 / 2) AS poorest,
                    NOT EXISTS (SELECT 1 FROM instances
                                WHERE id < $1 AND expires_at > clock_timestamp()) AS \"eldest!\",
                    (SELECT last_value FROM event_ids) AS \"newest_event!\"",
            me.id.0,
            me.host,
            pid,
            me.listen,
            me.version,
            interval(ttl)
        )
        .fetch_one(&self.beats)
        .await?;
        Ok(Beat {
            instances: row.instances,
            topologies: row.topologies,
            poorest: row.poorest,
            eldest: row.eldest,
            newest_event: row.newest_event,
        })
    }

    /// An instance that ends is no longer counted; the others are told to look after its part.
    pub async fn leave(&self, me: InstanceId) -> Result<(), StoreError> {
        sqlx::query!(
            "WITH gone AS (DELETE FROM instances WHERE id = $1)
             SELECT pg_notify($2, $1::text) AS \"sent: ()\"",
            me.0,
            journal::BELLS
        )
        .fetch_one(&self.beats)
        .await?;
        Ok(())
    }

    /// Stretches leases; those that are not among the answer are lost.
    pub async fn renew(
        &self,
        me: InstanceId,
        held: &[Held],
        ttl: Duration,
    ) -> Result<Vec<Held>, StoreError> {
        let topologies: Vec<_> = held.iter().map(|h| h.topology.0).collect();
        let tokens: Vec<_> = held.iter().map(|h| h.token).collect();
        let rows = sqlx::query!(
            "UPDATE leases l SET expires_at = greatest(l.expires_at, clock_timestamp() + $4)
             FROM unnest($2::uuid[], $3::bigint[]) AS mine(topology_id, token)
             WHERE l.topology_id = mine.topology_id AND l.token = mine.token AND l.holder = $1
               AND l.expires_at > clock_timestamp()
             RETURNING l.topology_id, l.token",
            me.0,
            &topologies,
            &tokens,
            interval(ttl)
        )
        .fetch_all(&self.beats)
        .await?;
        let held = |(topology, token)| Held { topology: TopologyId(topology), token };
        Ok(rows.into_iter().map(|r| held((r.topology_id, r.token))).collect())
    }

    /// Takes leases that nobody holds, those with a plan first, at most so many. Rows that somebody
    /// has locked are left for the next time.
    pub async fn take(
        &self,
        me: InstanceId,
        at_most: i64,
        ttl: Duration,
    ) -> Result<Vec<Held>, StoreError> {
        let rows = sqlx::query!(
            "WITH free AS (
                 SELECT l.topology_id FROM leases l WHERE l.expires_at <= clock_timestamp()
                 ORDER BY EXISTS (SELECT 1 FROM plans p WHERE p.topology_id = l.topology_id
                                  AND p.state IN ('queued', 'running', 'paused')) DESC, l.expires_at
                 LIMIT $2 FOR UPDATE OF l SKIP LOCKED)
             UPDATE leases l SET holder = $1, token = l.token + 1, taken_at = clock_timestamp(),
                 expires_at = clock_timestamp() + $3
             FROM free WHERE l.topology_id = free.topology_id
             RETURNING l.topology_id, l.token",
            me.0,
            at_most,
            interval(ttl)
        )
        .fetch_all(&self.beats)
        .await?;
        let held = |(topology, token)| Held { topology: TopologyId(topology), token };
        Ok(rows.into_iter().map(|r| held((r.topology_id, r.token))).collect())
    }

    /// Gives a lease up and tells the others, so that one of them takes it at once.
    pub async fn release(&self, held: Held) -> Result<(), StoreError> {
        sqlx::query!(
            "WITH freed AS (
                 UPDATE leases SET holder = NULL, expires_at = '-infinity'
                 WHERE topology_id = $1 AND token = $2 RETURNING topology_id)
             SELECT pg_notify($3, topology_id::text) AS \"sent: ()\" FROM freed",
            held.topology.0,
            held.token,
            journal::BELLS
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(())
    }

    /// Who keeps a topology now.
    pub async fn keeper_of(&self, topology: TopologyId) -> Result<Option<InstanceId>, StoreError> {
        let holder = sqlx::query_scalar!(
            "SELECT holder AS \"holder!\" FROM leases
             WHERE topology_id = $1 AND holder IS NOT NULL AND expires_at > clock_timestamp()",
            topology.0
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(holder.map(InstanceId))
    }

    /// All instances, in the order of their starts, with what each holds.
    pub async fn instances(&self) -> Result<Vec<SeenInstance>, StoreError> {
        let rows = sqlx::query!(
            "SELECT id, host, pid, listen, version, started_at, seen_at,
                    expires_at > clock_timestamp() AS \"alive!\"
             FROM instances ORDER BY started_at, id"
        )
        .fetch_all(&self.pool)
        .await?;
        let leases = sqlx::query!(
            "SELECT l.holder AS \"holder!\", t.name, l.token, l.expires_at
             FROM leases l JOIN topologies t ON t.id = l.topology_id
             WHERE l.holder IS NOT NULL AND l.expires_at > clock_timestamp() ORDER BY t.name"
        )
        .fetch_all(&self.pool)
        .await?;
        let mut seen: Vec<SeenInstance> = rows
            .into_iter()
            .map(|r| SeenInstance {
                instance: Instance {
                    id: InstanceId(r.id),
                    host: r.host,
                    pid: u32::try_from(r.pid).unwrap_or_default(),
                    listen: r.listen,
                    version: r.version,
                },
                started_at: r.started_at,
                seen_at: r.seen_at,
                alive: r.alive,
                holds: vec![],
            })
            .collect();
        for lease in leases {
            let of = seen.iter_mut().find(|i| i.instance.id.0 == lease.holder);
            if let Some(of) = of {
                let (name, token, expires_at) = (lease.name, lease.token, lease.expires_at);
                of.holds.push(HeldTopology { name, token, expires_at });
            }
        }
        Ok(seen)
    }

    /// The newest event id that was handed out: it never goes down, unless the database was put back.
    pub async fn newest_event(&self) -> Result<i64, StoreError> {
        let newest = sqlx::query_scalar!("SELECT last_value FROM event_ids");
        Ok(newest.fetch_one(&self.pool).await?)
    }

    /// Makes a database that was put back to an older state fit to go on with: no event id and no
    /// token is handed out twice, and every active plan pauses until somebody has looked. The world
    /// has gone on since, so none of them may act on what it remembers.
    pub async fn go_on_after_restore(&self, newest_event: i64) -> Result<Vec<PlanId>, StoreError> {
        let mut tx = self.pool.begin().await?;
        // Whoever comes second finds that it was done.
        sqlx::query!("SELECT pg_advisory_xact_lock(7381) AS \"lock: ()\"")
            .fetch_one(&mut *tx)
            .await?;
        let behind = sqlx::query_scalar!(
            "SELECT last_value < $1 AS \"behind!\" FROM event_ids",
            newest_event
        )
        .fetch_one(&mut *tx)
        .await?;
        if !behind {
            return Ok(vec![]);
        }
        // What was handed out after the newest that is known here must not come again either.
        sqlx::query!("SELECT setval('event_ids', $1)", newest_event + EVENTS_FORWARD)
            .fetch_one(&mut *tx)
            .await?;
        // One that is to end goes on: it only takes away what it left on nodes.
        let active = sqlx::query!(
            "SELECT p.id, p.topology_id FROM plans p JOIN topologies t ON t.id = p.topology_id
             WHERE p.state IN ('queued', 'running', 'paused') AND p.error IS NULL
               AND coalesce(p.requested, 'pause') = 'pause'
             ORDER BY p.topology_id FOR UPDATE OF t"
        )
        .fetch_all(&mut *tx)
        .await?;
        let warning = Warning {
            code: DATABASE_RESTORED.to_owned(),
            message: "the database was put back to an older state, so the nodes may be further than this plan knows: look at the preview, then resume, cancel or retry".to_owned(),
        };
        let mut paused = Vec::new();
        for plan in active {
            sqlx::query!(
                "UPDATE plans SET state = 'paused', requested = NULL, waiting_for = 'stale',
                     warnings = warnings || $2 WHERE id = $1",
                plan.id,
                super::json(&[&warning])?
            )
            .execute(&mut *tx)
            .await?;
            let event = NewEvent::new(
                EventType::PlanPaused,
                serde_json::json!({ "waiting_for": "stale", "why": warning.message }),
            );
            let event = event.of_plan(PlanId(plan.id)).by("reeve");
            paused.push((TopologyId(plan.topology_id), event));
        }
        sqlx::query!(
            "UPDATE leases SET holder = NULL, expires_at = '-infinity', token = token + $1",
            TOKENS_FORWARD
        )
        .execute(&mut *tx)
        .await?;
        for (topology, event) in &paused {
            journal::append(&mut tx, Some(*topology), std::slice::from_ref(event)).await?;
        }
        tx.commit().await?;
        Ok(paused.iter().filter_map(|(_, e)| e.plan).collect())
    }
}
