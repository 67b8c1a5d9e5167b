//! Webhooks: endpoints that get events as signed calls, and the log of what each of them got.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::topologies::{NAME_RULE, is_name};
use crate::clock;
use crate::domain::id::{DeliveryId, WebhookId};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::webhook::{Attempt, DeliveryState, DisabledBecause, fault_of_type};
use crate::engine::courier::new_secret;
use crate::http::App;
use crate::http::auth::Admin;
use crate::http::error::{ApiError, no_secret_key};
use crate::http::extract::{Body, Path, Query, invalid};
use crate::http::page::Page;
use crate::store::deliveries::Delivery;
use crate::store::webhooks::{Fresh, NewWebhook, Webhook, WebhookChange};

const DESCRIPTION_AT_MOST: usize = 512;
const LIST_AT_MOST: usize = 100;

/// A webhook without its secret.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Webhook)]
pub struct WebhookView {
    id: WebhookId,
    url: String,
    /// Types, each whole or as a beginning with `*` behind it.
    events: Vec<String>,
    /// Names; null for all topologies, and for events of none.
    topologies: Option<Vec<String>>,
    description: Option<String>,
    /// Whether events are queued for it and sent.
    enabled: bool,
    disabled_at: Option<DateTime<Utc>>,
    disabled_because: Option<DisabledBecause>,
    /// When the first of the attempts failed that have failed without a success since; null where the
    /// last one succeeded.
    failing_since: Option<DateTime<Utc>>,
    /// Until when calls are signed with the secret before the last one too; null where they are not.
    previous_secret_until: Option<DateTime<Utc>>,
    created_by: String,
    created_at: DateTime<Utc>,
}

/// A webhook with a new secret, which is shown this once.
#[derive(Debug, Serialize, ToSchema)]
pub struct NewWebhookSecret {
    #[serde(flatten)]
    webhook: WebhookView,
    /// What calls are signed with (Standard Webhooks): `whsec_` and base64.
    secret: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookList {
    items: Vec<WebhookView>,
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateWebhook {
    /// Where to call, by http or https. Loopback and private addresses only where
    /// `REEVE_WEBHOOK_ALLOW_CIDRS` has them.
    #[schema(min_length = 1, max_length = 2048, format = "uri")]
    url: String,
    /// Types, each whole or as a beginning with `*` behind it.
    #[schema(min_items = 1, max_items = 100, example = json!(["failover.*", "primary.changed"]))]
    events: Vec<String>,
    /// Names of topologies; left out for all, and for events of none.
    #[serde(default)]
    #[schema(min_items = 1, max_items = 100)]
    topologies: Option<Vec<String>>,
    #[serde(default)]
    #[schema(max_length = 512)]
    description: Option<String>,
}

/// What is to be another; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeWebhook {
    #[serde(default)]
    #[schema(min_length = 1, max_length = 2048, format = "uri")]
    url: Option<String>,
    #[serde(default)]
    #[schema(min_items = 1, max_items = 100)]
    events: Option<Vec<String>>,
    /// Null for all topologies.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Vec<String>>, min_items = 1, max_items = 100)]
    topologies: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 512)]
    description: Option<Option<String>>,
    /// `true` also for one that was disabled because it failed: what still waits for it is sent.
    #[serde(default)]
    enabled: Option<bool>,
}

/// The attempts to hand one event to one endpoint.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Delivery)]
pub struct DeliveryView {
    id: DeliveryId,
    webhook: WebhookId,
    /// The event's id; null for a test.
    event: Option<i64>,
    #[serde(rename = "type")]
    #[schema(value_type = String, example = "failover.completed")]
    kind: String,
    state: DeliveryState,
    attempts: Vec<Attempt>,
    /// When it is tried again at the earliest; null where it is not.
    next_attempt_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    finished_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct DeliveryList {
    items: Vec<DeliveryView>,
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListWebhooks {
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    cursor: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListDeliveries {
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    cursor: Option<String>,
    state: Option<DeliveryState>,
}

impl From<Webhook> for WebhookView {
    fn from(w: Webhook) -> Self {
        Self {
            id: w.id,
            url: w.url,
            events: w.events,
            topologies: w.topologies,
            description: w.description,
            enabled: w.enabled,
            disabled_at: w.disabled_at,
            disabled_because: w.disabled_because,
            failing_since: w.failing_since,
            previous_secret_until: w.previous_secret_until,
            created_by: w.created_by,
            created_at: w.created_at,
        }
    }
}

impl From<Delivery> for DeliveryView {
    fn from(d: Delivery) -> Self {
        Self {
            id: d.id,
            webhook: d.webhook,
            event: d.event,
            kind: d.kind,
            state: d.state,
            attempts: d.attempts,
            next_attempt_at: d.next_attempt_at,
            created_at: d.created_at,
            finished_at: d.finished_at,
        }
    }
}

/// Tells null from what was left out.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// What is wrong with the fields of a webhook, as far as they are there.
async fn check(
    app: &App,
    url: Option<&str>,
    events: Option<&[String]>,
    topologies: Option<&[String]>,
    description: Option<&str>,
) -> Result<(), ApiError> {
    let mut faults = Vec::new();
    if let Some(events) = events {
        if events.is_empty() || events.len() > LIST_AT_MOST {
            faults
                .push(FieldError::new("/events", "name 1 to 100 types; `*` alone is all of them"));
        }
        let wrong = events.iter().enumerate();
        let wrong = wrong.filter_map(|(i, wanted)| Some((i, fault_of_type(wanted)?)));
        faults.extend(wrong.map(|(i, why)| FieldError::new(format!("/events/{i}"), why)));
    }
    if let Some(topologies) = topologies {
        if topologies.is_empty() || topologies.len() > LIST_AT_MOST {
            let rule = "name 1 to 100 topologies, or leave the field out for all";
            faults.push(FieldError::new("/topologies", rule));
        }
        let wrong = topologies.iter().enumerate().filter(|(_, name)| !is_name(name));
        faults.extend(wrong.map(|(i, _)| FieldError::new(format!("/topologies/{i}"), NAME_RULE)));
    }
    if description.is_some_and(|d| d.chars().count() > DESCRIPTION_AT_MOST) {
        faults.push(FieldError::new("/description", "a description has at most 512 characters"));
    }
    if let Some(url) = url
        && let Err(why) = app.engine.caller.judge(url).await
    {
        faults.push(FieldError::new("/url", why));
    }
    match faults.into_iter().next() {
        None => Ok(()),
        Some(first) => Err(invalid(first)),
    }
}

/// A new secret and the random number to seal it with.
fn fresh() -> Result<(String, [u8; 12]), ApiError> {
    let no_numbers = || ApiError::new("internal", "the machine gives no random numbers");
    let mut nonce = [0u8; 12];
    getrandom::fill(&mut nonce).map_err(|_| no_numbers())?;
    Ok((new_secret().ok_or_else(no_numbers)?, nonce))
}

/// Webhooks, the newest first, without their secrets.
#[utoipa::path(get, path = "/v1/webhooks", operation_id = "list_webhooks", tag = "webhooks",
    params(ListWebhooks), responses((status = 200, description = "A page of webhooks.", body = WebhookList)))]
pub async fn list(
    State(app): State<App>,
    Admin(caller): Admin,
    Query(query): Query<ListWebhooks>,
) -> Result<Json<WebhookList>, ApiError> {
    caller.unlimited()?;
    let page = Page::read(query.limit, query.cursor.as_deref())?;
    let before = page.key::<Uuid>()?.map(WebhookId);
    let mut webhooks = app.engine.store.webhooks(before, page.fetch()).await?;
    let next_cursor = page.cut(&mut webhooks, |w| w.id.to_string());
    Ok(Json(WebhookList {
        items: webhooks.into_iter().map(WebhookView::from).collect(),
        next_cursor,
    }))
}

/// Subscribes an endpoint to events. Its secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/v1/webhooks", operation_id = "create_webhook", tag = "webhooks",
    request_body = CreateWebhook, responses((status = 201, description = "The webhook.", body = NewWebhookSecret)))]
pub async fn create(
    State(app): State<App>,
    Admin(caller): Admin,
    Body(body): Body<CreateWebhook>,
) -> Result<(StatusCode, Json<NewWebhookSecret>), ApiError> {
    caller.unlimited()?;
    let (topologies, description) = (body.topologies.as_deref(), body.description.as_deref());
    check(&app, Some(&body.url), Some(&body.events), topologies, description).await?;
    let key = app.engine.secret_key.as_ref().ok_or_else(no_secret_key)?;
    let (secret, nonce) = fresh()?;
    let new = NewWebhook {
        id: WebhookId(clock::new_id()),
        url: body.url,
        events: body.events,
        topologies: body.topologies,
        description: body.description,
        created_by: caller.name().to_owned(),
    };
    let sealed = Fresh { key, secret: &secret, nonce };
    let webhook = app.engine.store.add_webhook(&new, &sealed).await?;
    Ok((StatusCode::CREATED, Json(NewWebhookSecret { webhook: webhook.into(), secret })))
}

/// One webhook.
#[utoipa::path(get, path = "/v1/webhooks/{id}", operation_id = "get_webhook", tag = "webhooks",
    params(("id" = WebhookId, Path)), responses((status = 200, description = "The webhook.", body = WebhookView)))]
pub async fn get(
    State(app): State<App>,
    Admin(caller): Admin,
    Path(id): Path<Uuid>,
) -> Result<Json<WebhookView>, ApiError> {
    caller.unlimited()?;
    Ok(Json(app.engine.store.webhook(WebhookId(id)).await?.into()))
}

/// Changes a webhook, or enables one that was disabled.
#[utoipa::path(patch, path = "/v1/webhooks/{id}", operation_id = "change_webhook", tag = "webhooks",
    params(("id" = WebhookId, Path)), request_body = ChangeWebhook,
    responses((status = 200, description = "The webhook as it is now.", body = WebhookView)))]
pub async fn change(
    State(app): State<App>,
    Admin(caller): Admin,
    Path(id): Path<Uuid>,
    Body(body): Body<ChangeWebhook>,
) -> Result<Json<WebhookView>, ApiError> {
    caller.unlimited()?;
    let topologies = body.topologies.as_ref().and_then(Option::as_deref);
    let description = body.description.as_ref().and_then(Option::as_deref);
    check(&app, body.url.as_deref(), body.events.as_deref(), topologies, description).await?;
    let change = WebhookChange {
        url: body.url,
        events: body.events,
        topologies: body.topologies,
        description: body.description,
        enabled: body.enabled,
    };
    Ok(Json(app.engine.store.change_webhook(WebhookId(id), &change).await?.into()))
}

/// Forgets a webhook, with what was still to be sent to it and its log.
#[utoipa::path(delete, path = "/v1/webhooks/{id}", operation_id = "delete_webhook", tag = "webhooks",
    params(("id" = WebhookId, Path)), responses((status = 204, description = "It is gone.")))]
pub async fn delete(
    State(app): State<App>,
    Admin(caller): Admin,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, ApiError> {
    caller.unlimited()?;
    app.engine.store.delete_webhook(WebhookId(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives a webhook another secret, shown this once. For 24 hours calls carry two signatures, one with
/// each secret.
#[utoipa::path(post, path = "/v1/webhooks/{id}/rotate-secret", operation_id = "rotate_webhook_secret", tag = "webhooks",
    params(("id" = WebhookId, Path)),
    responses((status = 200, description = "The webhook with its new secret.", body = NewWebhookSecret)))]
pub async fn rotate(
    State(app): State<App>,
    Admin(caller): Admin,
    Path(id): Path<Uuid>,
) -> Result<Json<NewWebhookSecret>, ApiError> {
    caller.unlimited()?;
    let key = app.engine.secret_key.as_ref().ok_or_else(no_secret_key)?;
    let (secret, nonce) = fresh()?;
    let sealed = Fresh { key, secret: &secret, nonce };
    let webhook = app.engine.store.rotate_webhook_secret(WebhookId(id), &sealed).await?;
    Ok(Json(NewWebhookSecret { webhook: webhook.into(), secret }))
}

/// Sends the endpoint something of the type `webhook.test`, which is no event of the journal.
#[utoipa::path(post, path = "/v1/webhooks/{id}/test", operation_id = "test_webhook", tag = "webhooks",
    params(("id" = WebhookId, Path)),
    responses((status = 202, description = "It is on its way.", body = DeliveryView)))]
pub async fn test(
    State(app): State<App>,
    Admin(caller): Admin,
    Path(id): Path<Uuid>,
) -> Result<(StatusCode, Json<DeliveryView>), ApiError> {
    caller.unlimited()?;
    let webhook = enabled(&app, WebhookId(id)).await?;
    let delivery = app.engine.store.queue_test(webhook).await?;
    Ok((StatusCode::ACCEPTED, Json(delivery.into())))
}

/// What an endpoint got and is to get, the newest first. Kept for 14 days.
#[utoipa::path(get, path = "/v1/webhooks/{id}/deliveries", operation_id = "list_deliveries", tag = "webhooks",
    params(("id" = WebhookId, Path), ListDeliveries),
    responses((status = 200, description = "A page of deliveries.", body = DeliveryList)))]
pub async fn deliveries(
    State(app): State<App>,
    Admin(caller): Admin,
    Path(id): Path<Uuid>,
    Query(query): Query<ListDeliveries>,
) -> Result<Json<DeliveryList>, ApiError> {
    caller.unlimited()?;
    let page = Page::read(query.limit, query.cursor.as_deref())?;
    let store = &app.engine.store;
    let webhook = store.webhook(WebhookId(id)).await?.id;
    let before = page.key::<i64>()?;
    let mut items = store.deliveries(webhook, query.state, before, page.fetch()).await?;
    let next_cursor = page.cut(&mut items, |d| d.position.to_string());
    Ok(Json(DeliveryList {
        items: items.into_iter().map(DeliveryView::from).collect(),
        next_cursor,
    }))
}

/// Sends an event once more to an endpoint that got it, or did not.
#[utoipa::path(post, path = "/v1/deliveries/{id}/redeliver", operation_id = "redeliver", tag = "webhooks",
    params(("id" = DeliveryId, Path)),
    responses((status = 202, description = "It is on its way.", body = DeliveryView)))]
pub async fn redeliver(
    State(app): State<App>,
    Admin(caller): Admin,
    Path(id): Path<Uuid>,
) -> Result<(StatusCode, Json<DeliveryView>), ApiError> {
    caller.unlimited()?;
    let store = &app.engine.store;
    enabled(&app, store.delivery(DeliveryId(id)).await?.webhook).await?;
    Ok((StatusCode::ACCEPTED, Json(store.redeliver(DeliveryId(id)).await?.into())))
}

/// A webhook to which something is sent at all.
async fn enabled(app: &App, id: WebhookId) -> Result<WebhookId, ApiError> {
    if app.engine.store.webhook(id).await?.enabled {
        return Ok(id);
    }
    Err(Refusal::WebhookDisabled(id).into())
}
