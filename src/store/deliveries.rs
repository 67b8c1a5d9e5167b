//! Deliveries: written with their events, claimed by one instance at a time, kept for a while as the
//! log of what each endpoint got.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use super::credentials::SecretKey;
use super::webhooks::{self, seal_name};
use super::{Store, StoreError, document, journal, json, leases, word};
use crate::domain::event::Event;
use crate::domain::id::{DeliveryId, PlanId, WebhookId};
use crate::domain::refusal::Refusal;
use crate::domain::webhook::{Attempt, DeliveryState, Verdict};

/// The type of what is sent to try an endpoint; no event of the journal.
pub const TEST: &str = "webhook.test";
/// How long deliveries are kept, also those that wait for a webhook which was disabled.
const KEPT: Duration = Duration::from_hours(14 * 24);
/// So many old ones are forgotten in one statement.
const SWEEP: i64 = 5_000;

/// A delivery as it may be shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    pub id: DeliveryId,
    pub position: i64,
    pub webhook: WebhookId,
    /// The event's id; nothing for a test.
    pub event: Option<i64>,
    pub kind: String,
    pub state: DeliveryState,
    pub attempts: Vec<Attempt>,
    pub next_attempt_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
}

/// A delivery that this instance is to attempt now, with all that this takes.
#[derive(Debug, Clone)]
pub struct Claim {
    pub id: DeliveryId,
    pub webhook: WebhookId,
    /// Which claim of the delivery it is.
    pub number: i32,
    /// How many attempts failed before.
    pub failures: u32,
    pub url: String,
    sealed: Vec<(Vec<u8>, Vec<u8>)>,
    /// Nothing for a test, and where it is no longer kept.
    pub event: Option<Event>,
    kind: String,
}

/// How long the oldest delivery of an endpoint has been waiting, and how many wait.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backlog {
    pub webhook: WebhookId,
    pub waiting: i64,
    pub oldest_seconds: f64,
}

struct DeliveryRow {
    id: Uuid,
    position: i64,
    webhook_id: Uuid,
    event_id: Option<i64>,
    kind: String,
    state: String,
    attempts: serde_json::Value,
    next_attempt_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    finished_at: Option<DateTime<Utc>>,
}

impl TryFrom<DeliveryRow> for Delivery {
    type Error = StoreError;

    fn try_from(row: DeliveryRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: DeliveryId(row.id),
            position: row.position,
            webhook: WebhookId(row.webhook_id),
            event: row.event_id,
            kind: row.kind,
            state: word("deliveries", "state", row.state)?,
            attempts: document("deliveries", "attempts", row.attempts)?,
            next_attempt_at: row.next_attempt_at,
            created_at: row.created_at,
            finished_at: row.finished_at,
        })
    }
}

impl Claim {
    #[must_use]
    pub fn is_test(&self) -> bool {
        self.kind == TEST
    }

    /// The secrets that sign now: the present one, and for a while the one before it.
    pub fn secrets(&self, key: &SecretKey) -> Result<Vec<String>, StoreError> {
        let name = seal_name(self.webhook);
        self.sealed.iter().map(|(nonce, sealed)| key.open(&name, nonce, sealed)).collect()
    }
}

/// Queues events for whoever subscribed to them, in the transaction that writes them.
pub(super) async fn queue(
    tx: &mut Transaction<'_, Postgres>,
    events: &[i64],
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO deliveries (webhook_id, event_id, type)
         SELECT w.id, e.id, e.type FROM events e JOIN webhooks w ON w.enabled
             AND (w.topologies IS NULL OR e.topology = ANY(w.topologies))
             AND EXISTS (SELECT 1 FROM unnest(w.events) wanted
                         WHERE wanted = e.type
                            OR (right(wanted, 1) = '*' AND starts_with(e.type, left(wanted, -1))))
         WHERE e.id = ANY($1) ORDER BY e.id",
        events
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn missing(id: DeliveryId) -> StoreError {
    Refusal::NotFound { kind: "delivery", name: id.to_string() }.into()
}

impl Store {
    /// Claims what is due, for `claimed_for` from now: at most `each` per webhook, less what of it this
    /// instance has in hand already.
    pub async fn claim_deliveries(
        &self,
        each: i64,
        in_hand: &[(WebhookId, i64)],
        claimed_for: Duration,
    ) -> Result<Vec<Claim>, StoreError> {
        let (busy, count): (Vec<Uuid>, Vec<i64>) = in_hand.iter().map(|(id, n)| (id.0, *n)).unzip();
        let rows = sqlx::query!(
            "WITH due AS (
                 SELECT d.id FROM webhooks w
                 LEFT JOIN unnest($2::uuid[], $3::bigint[]) AS hand(webhook, count) ON hand.webhook = w.id
                 CROSS JOIN LATERAL (
                     SELECT id FROM deliveries
                     WHERE webhook_id = w.id AND state = 'pending' AND next_attempt_at <= clock_timestamp()
                     ORDER BY next_attempt_at, position
                     LIMIT greatest($1 - coalesce(hand.count, 0), 0)
                     FOR UPDATE SKIP LOCKED) d
                 WHERE w.enabled),
             claimed AS (
                 UPDATE deliveries d SET claims = claims + 1, next_attempt_at = clock_timestamp() + $4
                 FROM due WHERE d.id = due.id
                 RETURNING d.id, d.webhook_id, d.event_id, d.claims, d.failures, d.position, d.type)
             SELECT c.id, c.webhook_id, c.claims, c.failures, c.type, w.url, w.nonce, w.secret,
                    CASE WHEN w.previous_until > clock_timestamp() THEN w.previous_nonce END AS previous_nonce,
                    CASE WHEN w.previous_until > clock_timestamp() THEN w.previous_secret END AS previous_secret,
                    e.id AS \"event?\", e.seq, e.topology, e.type AS \"kind?\", e.at AS \"at?\",
                    e.data AS \"data?\", e.plan_id, e.actor
             FROM claimed c JOIN webhooks w ON w.id = c.webhook_id LEFT JOIN events e ON e.id = c.event_id
             ORDER BY c.position",
            each,
            &busy,
            &count,
            leases::interval(claimed_for)
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|r| Claim {
                id: DeliveryId(r.id),
                webhook: WebhookId(r.webhook_id),
                number: r.claims,
                failures: u32::try_from(r.failures).unwrap_or(0),
                url: r.url,
                sealed: std::iter::once((r.nonce, r.secret))
                    .chain(r.previous_nonce.zip(r.previous_secret))
                    .collect(),
                event: match (r.event, r.kind, r.at, r.data) {
                    (Some(id), Some(kind), Some(at), Some(data)) => Some(Event {
                        id,
                        seq: r.seq,
                        topology: r.topology,
                        kind,
                        at,
                        data,
                        plan: r.plan_id.map(PlanId),
                        actor: r.actor,
                    }),
                    _ => None,
                },
                kind: r.r#type,
            })
            .collect())
    }

    /// Writes what came of an attempt, unless somebody claimed the delivery anew since.
    pub async fn record_attempt(
        &self,
        claim: &Claim,
        attempt: &Attempt,
        verdict: Verdict,
    ) -> Result<(), StoreError> {
        let (state, pause) = match verdict {
            Verdict::Delivered => ("delivered", None),
            Verdict::Again(pause) => ("pending", Some(pause)),
            Verdict::GiveUp | Verdict::Gone => ("failed", None),
        };
        let failed = i32::from(verdict != Verdict::Delivered);
        let mut tx = self.pool.begin().await?;
        // The webhook's row before its deliveries', as where a webhook is changed.
        sqlx::query!("SELECT id FROM webhooks WHERE id = $1 FOR NO KEY UPDATE", claim.webhook.0)
            .fetch_optional(&mut *tx)
            .await?;
        let done = sqlx::query!(
            "UPDATE deliveries SET attempts = attempts || jsonb_build_array($3::jsonb), state = $4,
                 failures = failures + $5, next_attempt_at = clock_timestamp() + $6::interval,
                 finished_at = CASE WHEN $4 <> 'pending' THEN clock_timestamp() END
             WHERE id = $1 AND claims = $2",
            claim.id.0,
            claim.number,
            json(attempt)?,
            state,
            failed,
            pause.map(leases::interval)
        )
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(());
        }
        if verdict == Verdict::Delivered {
            webhooks::succeeded(&mut tx, claim.webhook).await?;
        } else {
            let (gone, why) = (verdict == Verdict::Gone, attempt.error.as_deref());
            let event = webhooks::failed(&mut tx, claim.webhook, gone, why).await?;
            journal::append(&mut tx, None, event.as_slice()).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Deliveries to an endpoint, the newest first, at most `limit`.
    pub async fn deliveries(
        &self,
        webhook: WebhookId,
        state: Option<DeliveryState>,
        before: Option<i64>,
        limit: i64,
    ) -> Result<Vec<Delivery>, StoreError> {
        let state = state.map(|s| match s {
            DeliveryState::Pending => "pending",
            DeliveryState::Delivered => "delivered",
            DeliveryState::Failed => "failed",
        });
        let rows = sqlx::query_as!(
            DeliveryRow,
            "SELECT id, position, webhook_id, event_id, type AS kind, state, attempts, next_attempt_at,
                    created_at, finished_at
             FROM deliveries
             WHERE webhook_id = $1 AND ($2::text IS NULL OR state = $2) AND ($3::bigint IS NULL OR position < $3)
             ORDER BY position DESC LIMIT $4",
            webhook.0,
            state,
            before,
            limit
        );
        rows.fetch_all(&self.pool).await?.into_iter().map(Delivery::try_from).collect()
    }

    pub async fn delivery(&self, id: DeliveryId) -> Result<Delivery, StoreError> {
        let row = sqlx::query_as!(
            DeliveryRow,
            "SELECT id, position, webhook_id, event_id, type AS kind, state, attempts, next_attempt_at,
                    created_at, finished_at
             FROM deliveries WHERE id = $1",
            id.0
        );
        row.fetch_optional(&self.pool).await?.ok_or_else(|| missing(id))?.try_into()
    }

    /// Queues something that is no event, to try an endpoint.
    pub async fn queue_test(&self, webhook: WebhookId) -> Result<Delivery, StoreError> {
        let mut tx = self.pool.begin().await?;
        let id = sqlx::query_scalar!(
            "INSERT INTO deliveries (webhook_id, type) VALUES ($1, $2) RETURNING id",
            webhook.0,
            TEST
        );
        let id = DeliveryId(id.fetch_one(&mut *tx).await?);
        journal::wake(&mut tx).await?;
        tx.commit().await?;
        self.delivery(id).await
    }

    /// Queues a delivery again, from the first attempt on.
    pub async fn redeliver(&self, id: DeliveryId) -> Result<Delivery, StoreError> {
        let mut tx = self.pool.begin().await?;
        let done = sqlx::query!(
            "UPDATE deliveries SET state = 'pending', failures = 0, finished_at = NULL,
                 next_attempt_at = clock_timestamp()
             WHERE id = $1",
            id.0
        )
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Err(missing(id));
        }
        journal::wake(&mut tx).await?;
        tx.commit().await?;
        self.delivery(id).await
    }

    /// What waits for each endpoint that is to get something.
    pub async fn backlogs(&self) -> Result<Vec<Backlog>, StoreError> {
        let rows = sqlx::query!(
            "SELECT w.id, count(d.id) AS \"waiting!\",
                    coalesce(extract(epoch FROM clock_timestamp() - min(d.created_at)), 0)::float8
                        AS \"oldest_seconds!\"
             FROM webhooks w LEFT JOIN deliveries d ON d.webhook_id = w.id AND d.state = 'pending'
             WHERE w.enabled GROUP BY w.id"
        );
        let backlogs = rows.fetch_all(&self.pool).await?.into_iter().map(|r| Backlog {
            webhook: WebhookId(r.id),
            waiting: r.waiting,
            oldest_seconds: r.oldest_seconds,
        });
        Ok(backlogs.collect())
    }

    /// Forgets some deliveries that are old; whether there are more.
    pub async fn forget_deliveries(&self) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            "DELETE FROM deliveries WHERE id IN (
                 SELECT id FROM deliveries WHERE created_at < clock_timestamp() - $1::interval LIMIT $2)",
            leases::interval(KEPT),
            SWEEP
        )
        .execute(&self.pool)
        .await?;
        Ok(i64::try_from(done.rows_affected()).unwrap_or(0) == SWEEP)
    }
}
