//! Hands events to whoever subscribed to them: at least once, each endpoint for itself.
//!
//! A delivery is claimed for longer than an attempt may take, so no two instances have it at once, and
//! one whose instance died is due again. An endpoint that hangs keeps its own places busy and nobody
//! else's.

mod call;
mod letter;
mod signature;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use self::call::Caller;
pub use self::signature::new_secret;
use super::Engine;
use crate::clock;
use crate::domain::id::WebhookId;
use crate::domain::webhook::{Attempt, judge};
use crate::store::StoreError;
use crate::store::deliveries::Claim;

/// Attempts at one endpoint that an instance has in hand at the same time.
const EACH: i64 = 8;
/// For how long a delivery is claimed; an attempt that did not begin within the second time is left
/// to whoever claims it next.
const CLAIMED_FOR: Duration = Duration::from_secs(40);
const BEGIN_WITHIN: Duration = Duration::from_secs(10);
/// What is due is looked for this often at least, whether or not anything woke the courier.
const TICK: Duration = Duration::from_secs(1);
/// What waits is measured, and what is old forgotten, this often.
const UPKEEP: Duration = Duration::from_secs(5);

/// Delivers for as long as the process lives. Attempts in hand end by themselves.
pub(super) async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    let mut wake = engine.hub.follow();
    let (done, mut ended) = mpsc::unbounded_channel();
    let mut in_hand: HashMap<WebhookId, i64> = HashMap::new();
    let tasks = tokio_util::task::TaskTracker::new();
    while !stop.is_cancelled() {
        wake.mark_unchanged();
        let places: Vec<(WebhookId, i64)> = in_hand.iter().map(|(id, n)| (*id, *n)).collect();
        let asked = Instant::now();
        let claimed = engine.store.claim_deliveries(EACH, &places, CLAIMED_FOR).await;
        for claim in claimed.unwrap_or_else(not_now) {
            *in_hand.entry(claim.webhook).or_default() += 1;
            let place = Place { webhook: claim.webhook, done: done.clone() };
            let engine = engine.clone();
            tasks.spawn(async move {
                let _place = place;
                attempt(&engine, claim, asked).await;
            });
        }
        tokio::select! {
            () = stop.cancelled() => {}
            _ = wake.changed() => {}
            () = tokio::time::sleep(TICK) => {}
            Some(webhook) = ended.recv() => give_back(&mut in_hand, webhook),
        }
        while let Ok(webhook) = ended.try_recv() {
            give_back(&mut in_hand, webhook);
        }
    }
    tasks.close();
    tasks.wait().await;
}

/// One of the places of an endpoint; free again however its attempt ends.
struct Place {
    webhook: WebhookId,
    done: mpsc::UnboundedSender<WebhookId>,
}

impl Drop for Place {
    fn drop(&mut self) {
        // Nobody may be listening any more, which is no error.
        let _ = self.done.send(self.webhook);
    }
}

fn not_now(error: StoreError) -> Vec<Claim> {
    tracing::warn!(error = &error as &dyn std::error::Error, "deliveries cannot be claimed");
    vec![]
}

fn give_back(in_hand: &mut HashMap<WebhookId, i64>, webhook: WebhookId) {
    if let Some(count) = in_hand.get_mut(&webhook) {
        *count -= 1;
        if *count == 0 {
            in_hand.remove(&webhook);
        }
    }
}

/// One attempt, and what came of it.
async fn attempt(engine: &Engine, claim: Claim, asked: Instant) {
    // A process that stood still may have lost its claim meanwhile.
    if asked.elapsed() > BEGIN_WITHIN {
        return;
    }
    let secrets = match engine.secret_key.as_ref().map(|key| claim.secrets(key)) {
        Some(Ok(secrets)) => secrets,
        Some(Err(_)) | None => vec![],
    };
    let (at, began) = (clock::now(), Instant::now());
    let answer = match letter::write(&claim, at) {
        _ if secrets.is_empty() => Err(
            "its secret cannot be opened: REEVE_SECRET_KEY is not set, or not the one that sealed it"
                .to_owned(),
        ),
        None => Err("its event is no longer kept".to_owned()),
        Some(letter) => {
            let signature = signature::sign(&secrets, &letter.id, at, &letter.body);
            engine.caller.call(&claim.url, letter, at, signature).await
        }
    };
    let took = began.elapsed();
    let (status, pause, error) = match answer {
        Ok(answer) => (Some(answer.status), answer.retry_after, answer.fault()),
        Err(why) => (None, None, Some(why)),
    };
    let verdict = judge(status, pause, claim.failures, clock::jitter());
    let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let attempt = Attempt { at, status, duration_ms, error };
    let outcome = if attempt.error.is_none() { "delivered" } else { "failed" };
    metrics::counter!("reeve_webhook_attempts_total", "outcome" => outcome).increment(1);
    metrics::histogram!("reeve_webhook_attempt_seconds").record(took.as_secs_f64());
    if let Err(error) = engine.store.record_attempt(&claim, &attempt, verdict).await {
        // Then it is due again when the claim is over.
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            delivery = %claim.id,
            "what came of a delivery cannot be written"
        );
    }
}

/// On the eldest instance: measures what waits, and forgets what is old.
pub(super) async fn keep_up(engine: Arc<Engine>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        if engine.eldest.load(Ordering::Relaxed) {
            match engine.store.backlogs().await {
                Ok(backlogs) => {
                    for backlog in backlogs {
                        let webhook = backlog.webhook.to_string();
                        metrics::gauge!("reeve_webhook_waiting", "webhook" => webhook.clone())
                            .set(backlog.waiting as f64);
                        metrics::gauge!("reeve_webhook_oldest_seconds", "webhook" => webhook)
                            .set(backlog.oldest_seconds);
                    }
                }
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "what waits for webhooks cannot be measured"
                ),
            }
            while engine.store.forget_deliveries().await.unwrap_or(false) {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(UPKEEP) => {}
        }
    }
}
