//! One task per topology: observe → plan → act, again until nothing is left, then watch.
//!
//! Each turn commits what it is about to do (steps, marks) before the first command goes out, and
//! believes nothing that a later look does not show. So a turn may end anywhere, and the next one,
//! of this process or another, goes on from what it sees.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Engine;
use super::look::LoginError;
use super::run::{self, Run};
use super::watcher::Watch;
use crate::domain::id::TopologyId;
use crate::domain::plan::{Plan, PlanState};
use crate::store::StoreError;

/// Before reading again what somebody else just changed.
const READ_AGAIN: Duration = Duration::from_millis(20);
/// A node that missed a look is looked at again after this long.
const SUSPECT_POLL: Duration = Duration::from_millis(250);

#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Login(#[from] LoginError),
}

/// Keeps one topology until it is deleted or the process stops.
pub(super) async fn keep(
    engine: Arc<Engine>,
    id: TopologyId,
    bell: Arc<Notify>,
    stop: CancellationToken,
) {
    // Also if a turn panics: then the supervisor starts another keeper.
    let _leaving = Leaving { engine: engine.clone(), id };
    let mut keeper = Keeper { engine: engine.clone(), id, watch: None, run: None };
    while !stop.is_cancelled() {
        let pause = match keeper.turn().await {
            Ok(Some(pause)) => pause,
            Ok(None) => break,
            // Somebody else moved the plan between read and write: read again.
            Err(KeepError::Store(StoreError::Moved(_))) => READ_AGAIN,
            Err(error) => {
                tracing::warn!(topology = %id, error = &error as &dyn std::error::Error, "a turn failed");
                keeper.run = None;
                Duration::from_secs(1)
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = bell.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

struct Leaving {
    engine: Arc<Engine>,
    id: TopologyId,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.engine.forget(self.id);
    }
}

struct Keeper {
    engine: Arc<Engine>,
    id: TopologyId,
    watch: Option<Watch>,
    run: Option<Run>,
}

impl Keeper {
    /// One look and what follows from it; how long to pause until the next, or `None` when the
    /// topology is gone.
    async fn turn(&mut self) -> Result<Option<Duration>, KeepError> {
        let engine = self.engine.clone();
        if let Some(run) = &mut self.run {
            let plan = engine.store.plan(run.plan).await?;
            if is_at_work(&plan) {
                let watch = self.watch.get_or_insert_default();
                return Ok(Some(run.turn(&engine, watch, &plan).await?));
            }
            self.run = None;
        }
        let Some(stored) = engine.store.topology_by_id(self.id).await? else { return Ok(None) };
        if self.watch.is_none() {
            self.watch = Some(Watch::resume(&engine, &stored).await?);
        }
        if let Some(plan) = engine.store.active_plan(self.id).await?.filter(is_at_work) {
            match Run::resume(&engine, stored, &plan).await {
                Ok(run) => self.run = Some(run),
                Err(KeepError::Login(error)) if error.is_lasting() => {
                    run::end_locked_out(&engine, &plan, &error).await?;
                }
                Err(error) => return Err(error),
            }
            return Ok(Some(Duration::ZERO));
        }
        let watch = self.watch.get_or_insert_default();
        let logins = match engine.logins(stored.wanted.spec.credentials()).await {
            Ok(logins) => logins,
            Err(error) => {
                // Nobody can log in: then nothing is known, and that must show.
                if error.is_lasting() {
                    engine.remember(self.id, Arc::default());
                }
                return Err(error.into());
            }
        };
        let mut seen = engine.look(&stored.wanted.spec, &logins, watch.seen.as_deref()).await;
        seen.marks = engine.store.marks(self.id).await?;
        watch.note(&engine, &stored, Arc::new(seen)).await?;
        let suspects = watch.health.has_suspects();
        Ok(Some(if suspects {
            SUSPECT_POLL.min(engine.watch_interval)
        } else {
            engine.watch_interval
        }))
    }
}

/// Whether a plan needs turns: a paused one that nobody asks anything of only waits.
fn is_at_work(plan: &Plan) -> bool {
    match plan.state {
        PlanState::Queued | PlanState::Running => true,
        PlanState::Paused => plan.requested.is_some() || plan.error.is_some(),
        PlanState::Proposed
        | PlanState::Succeeded
        | PlanState::Failed
        | PlanState::Cancelled
        | PlanState::Superseded => false,
    }
}
