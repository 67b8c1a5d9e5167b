//! Wakes whoever reads the journal, and passes on progress, which is never stored.
//!
//! A notification carries nothing: the [tail](super::tail) reads the journal itself.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use sqlx::postgres::PgListener;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::domain::id::PlanId;
use crate::domain::plan::Progress;
use crate::store::journal::{BELLS, CHANNEL};

/// Progress of one step: the latest word wins, and none is needed for correctness.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct StepProgress {
    /// Always `progress`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    #[serde(skip)]
    pub plan: Option<PlanId>,
    pub step: String,
    /// Steps of the plan that are done, and all that are known.
    pub steps_done: i64,
    pub steps_total: i64,
    pub progress: Progress,
    /// What it waits for, for people.
    pub note: Option<String>,
}

pub struct Hub {
    wake: watch::Sender<u64>,
    progress: broadcast::Sender<StepProgress>,
}

impl Hub {
    pub(super) fn new() -> Self {
        // A reader that lags by more than this misses progress, which is what progress may do.
        Self { wake: watch::Sender::new(0), progress: broadcast::Sender::new(256) }
    }

    /// Changes whenever there may be something new to read.
    #[must_use]
    pub(super) fn follow(&self) -> watch::Receiver<u64> {
        self.wake.subscribe()
    }

    #[must_use]
    pub fn follow_progress(&self) -> broadcast::Receiver<StepProgress> {
        self.progress.subscribe()
    }

    pub(super) fn tell_progress(&self, progress: StepProgress) {
        // Nobody may be listening, which is no error.
        let _ = self.progress.send(progress);
    }

    fn ring(&self) {
        self.wake.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// Listens to the database for as long as the process lives.
pub(super) async fn listen(engine: Arc<Engine>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let listening = async {
            let mut listener = PgListener::connect_with(engine.store.pool()).await?;
            listener.listen_all([CHANNEL, BELLS]).await?;
            // What was missed while nobody listened is read now.
            engine.hub.ring();
            loop {
                let told = listener.recv().await?;
                match told.payload().parse::<uuid::Uuid>() {
                    Ok(topology) if told.channel() == BELLS => engine.ring(topology.into()),
                    Ok(_) | Err(_) => engine.hub.ring(),
                }
            }
        };
        let ended: Result<std::convert::Infallible, sqlx::Error> = tokio::select! {
            () = stop.cancelled() => return,
            ended = listening => ended,
        };
        let Err(error) = ended;
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "lost the database's notifications"
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
