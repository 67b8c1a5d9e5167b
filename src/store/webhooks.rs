//! Webhooks: endpoints that subscribed to events, with their sealed secrets.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use super::credentials::SecretKey;
use super::{Store, StoreError, leases, word};
use crate::domain::event::{EventType, NewEvent};
use crate::domain::id::WebhookId;
use crate::domain::refusal::Refusal;
use crate::domain::webhook::{DisabledBecause, FAILING_AT_MOST};

/// How long the secret before the last one signs as well.
pub const BOTH_SECRETS_FOR: Duration = Duration::from_hours(24);

/// A webhook without its secrets.
#[derive(Debug, Clone, PartialEq)]
pub struct Webhook {
    pub id: WebhookId,
    pub url: String,
    pub events: Vec<String>,
    pub topologies: Option<Vec<String>>,
    pub description: Option<String>,
    pub enabled: bool,
    pub disabled_at: Option<DateTime<Utc>>,
    pub disabled_because: Option<DisabledBecause>,
    pub failing_since: Option<DateTime<Utc>>,
    /// Until when the secret before the last one signs as well.
    pub previous_secret_until: Option<DateTime<Utc>>,
    pub created_by: String,
    pub created_at: DateTime<Utc>,
}

/// A webhook that is yet to be stored.
#[derive(Debug, Clone)]
pub struct NewWebhook {
    pub id: WebhookId,
    pub url: String,
    pub events: Vec<String>,
    pub topologies: Option<Vec<String>>,
    pub description: Option<String>,
    pub created_by: String,
}

/// What is to be another in a webhook; the rest stays.
#[derive(Debug, Clone, Default)]
pub struct WebhookChange {
    pub url: Option<String>,
    pub events: Option<Vec<String>>,
    pub topologies: Option<Option<Vec<String>>>,
    pub description: Option<Option<String>>,
    pub enabled: Option<bool>,
}

/// A fresh secret, and the random number that it is sealed with.
pub struct Fresh<'a> {
    pub key: &'a SecretKey,
    pub secret: &'a str,
    pub nonce: [u8; 12],
}

struct WebhookRow {
    id: Uuid,
    url: String,
    events: Vec<String>,
    topologies: Option<Vec<String>>,
    description: Option<String>,
    enabled: bool,
    disabled_at: Option<DateTime<Utc>>,
    disabled_because: Option<String>,
    failing_since: Option<DateTime<Utc>>,
    previous_until: Option<DateTime<Utc>>,
    created_by: String,
    created_at: DateTime<Utc>,
}

impl TryFrom<WebhookRow> for Webhook {
    type Error = StoreError;

    fn try_from(row: WebhookRow) -> Result<Self, StoreError> {
        let because = |text| word("webhooks", "disabled_because", text);
        Ok(Self {
            id: WebhookId(row.id),
            url: row.url,
            events: row.events,
            topologies: row.topologies,
            description: row.description,
            enabled: row.enabled,
            disabled_at: row.disabled_at,
            disabled_because: row.disabled_because.map(because).transpose()?,
            failing_since: row.failing_since,
            previous_secret_until: row.previous_until,
            created_by: row.created_by,
            created_at: row.created_at,
        })
    }
}

impl Fresh<'_> {
    fn seal(&self, id: WebhookId) -> Result<Vec<u8>, StoreError> {
        self.key.seal(&seal_name(id), self.secret, self.nonce)
    }
}

/// What a secret is bound to, so that rows cannot be swapped.
pub(super) fn seal_name(id: WebhookId) -> String {
    format!("webhook:{id}")
}

fn missing(id: WebhookId) -> StoreError {
    Refusal::NotFound { kind: "webhook", name: id.to_string() }.into()
}

impl Store {
    pub async fn add_webhook(
        &self,
        new: &NewWebhook,
        secret: &Fresh<'_>,
    ) -> Result<Webhook, StoreError> {
        sqlx::query!(
            "INSERT INTO webhooks (id, url, events, topologies, description, nonce, secret, created_by)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            new.id.0,
            new.url,
            &new.events,
            new.topologies.as_deref(),
            new.description,
            &secret.nonce[..],
            secret.seal(new.id)?,
            new.created_by
        )
        .execute(&self.pool)
        .await?;
        self.webhook(new.id).await
    }

    pub async fn webhook(&self, id: WebhookId) -> Result<Webhook, StoreError> {
        let row = sqlx::query_as!(
            WebhookRow,
            "SELECT id, url, events, topologies, description, enabled, disabled_at, disabled_because,
                    failing_since, created_by, created_at,
                    CASE WHEN previous_until > clock_timestamp() THEN previous_until END AS previous_until
             FROM webhooks WHERE id = $1",
            id.0
        );
        row.fetch_optional(&self.pool).await?.ok_or_else(|| missing(id))?.try_into()
    }

    /// Webhooks, the newest first, at most `limit`.
    pub async fn webhooks(
        &self,
        before: Option<WebhookId>,
        limit: i64,
    ) -> Result<Vec<Webhook>, StoreError> {
        let rows = sqlx::query_as!(
            WebhookRow,
            "SELECT id, url, events, topologies, description, enabled, disabled_at, disabled_because,
                    failing_since, created_by, created_at,
                    CASE WHEN previous_until > clock_timestamp() THEN previous_until END AS previous_until
             FROM webhooks WHERE ($1::uuid IS NULL OR id < $1) ORDER BY id DESC LIMIT $2",
            before.map(|id| id.0),
            limit
        );
        rows.fetch_all(&self.pool).await?.into_iter().map(Webhook::try_from).collect()
    }

    /// Changes a webhook. One that is enabled again begins without a past, and what waited for it is
    /// due at once.
    pub async fn change_webhook(
        &self,
        id: WebhookId,
        change: &WebhookChange,
    ) -> Result<Webhook, StoreError> {
        let mut tx = self.pool.begin().await?;
        let enabled = sqlx::query_scalar!(
            "SELECT enabled FROM webhooks WHERE id = $1 FOR NO KEY UPDATE",
            id.0
        );
        let enabled = enabled.fetch_optional(&mut *tx).await?.ok_or_else(|| missing(id))?;
        let (url, events) = (change.url.as_ref(), change.events.as_deref());
        let topologies = change.topologies.as_ref().and_then(Option::as_deref);
        let description = change.description.as_ref().and_then(Option::as_deref);
        sqlx::query!(
            "UPDATE webhooks SET url = coalesce($2, url), events = coalesce($3, events),
                 topologies = CASE WHEN $4 THEN $5 ELSE topologies END,
                 description = CASE WHEN $6 THEN $7 ELSE description END
             WHERE id = $1",
            id.0,
            url,
            events,
            change.topologies.is_some(),
            topologies,
            change.description.is_some(),
            description
        )
        .execute(&mut *tx)
        .await?;
        match change.enabled {
            Some(true) if !enabled => {
                sqlx::query!(
                    "UPDATE webhooks SET enabled = true, disabled_at = NULL, disabled_because = NULL,
                         failing_since = NULL WHERE id = $1",
                    id.0
                )
                .execute(&mut *tx)
                .await?;
                sqlx::query!(
                    "UPDATE deliveries SET next_attempt_at = clock_timestamp(), failures = 0
                     WHERE webhook_id = $1 AND state = 'pending'",
                    id.0
                )
                .execute(&mut *tx)
                .await?;
            }
            Some(false) if enabled => {
                sqlx::query!(
                    "UPDATE webhooks SET enabled = false, disabled_at = clock_timestamp(),
                         disabled_because = 'asked' WHERE id = $1",
                    id.0
                )
                .execute(&mut *tx)
                .await?;
            }
            Some(_) | None => {}
        }
        tx.commit().await?;
        self.webhook(id).await
    }

    /// Gives a webhook another secret; the one before it signs as well for a while.
    pub async fn rotate_webhook_secret(
        &self,
        id: WebhookId,
        secret: &Fresh<'_>,
    ) -> Result<Webhook, StoreError> {
        let done = sqlx::query!(
            "UPDATE webhooks SET previous_nonce = nonce, previous_secret = secret,
                 previous_until = clock_timestamp() + $4, nonce = $2, secret = $3
             WHERE id = $1",
            id.0,
            &secret.nonce[..],
            secret.seal(id)?,
            leases::interval(BOTH_SECRETS_FOR)
        )
        .execute(&self.pool)
        .await?;
        if done.rows_affected() == 0 {
            return Err(missing(id));
        }
        self.webhook(id).await
    }

    /// Forgets a webhook and what was to be handed to it.
    pub async fn delete_webhook(&self, id: WebhookId) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let done =
            sqlx::query!("DELETE FROM webhooks WHERE id = $1", id.0).execute(&mut *tx).await?;
        if done.rows_affected() == 0 {
            return Err(missing(id));
        }
        sqlx::query!("DELETE FROM deliveries WHERE webhook_id = $1", id.0)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }
}

/// Notes that an attempt succeeded.
pub(super) async fn succeeded(
    tx: &mut Transaction<'_, Postgres>,
    id: WebhookId,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE webhooks SET failing_since = NULL WHERE id = $1 AND failing_since IS NOT NULL",
        id.0
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Notes that an attempt failed. Where it was one too many, or the endpoint said that it is `gone`,
/// the webhook is disabled, and the event that tells of it is returned.
pub(super) async fn failed(
    tx: &mut Transaction<'_, Postgres>,
    id: WebhookId,
    gone: bool,
    why: Option<&str>,
) -> Result<Option<NewEvent>, StoreError> {
    let row = sqlx::query!(
        "UPDATE webhooks SET failing_since = coalesce(failing_since, clock_timestamp())
         WHERE id = $1 AND enabled
         RETURNING url, failing_since AS \"since!\",
                   failing_since <= clock_timestamp() - $2::interval AS \"too_long!\"",
        id.0,
        leases::interval(FAILING_AT_MOST)
    )
    .fetch_optional(&mut **tx)
    .await?;
    let Some(row) = row.filter(|row| gone || row.too_long) else { return Ok(None) };
    let because = if gone { DisabledBecause::Gone } else { DisabledBecause::Failing };
    sqlx::query!(
        "UPDATE webhooks SET enabled = false, disabled_at = clock_timestamp(), disabled_because = $2
         WHERE id = $1",
        id.0,
        because.as_str()
    )
    .execute(&mut **tx)
    .await?;
    // What follows the host may be a secret, and who reads events is not always who may know it.
    let host = url::Url::parse(&row.url).ok().map(|url| url.origin().ascii_serialization());
    let data = json!({
        "webhook": id, "endpoint": host, "because": because, "failing_since": row.since, "error": why,
    });
    Ok(Some(NewEvent::new(EventType::WebhookDisabled, data).by("reeve")))
}
