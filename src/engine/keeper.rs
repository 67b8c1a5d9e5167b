//! One task per topology, on the instance that holds its lease: observe → plan → act, again until
//! nothing is left, then watch.
//!
//! Each turn commits what it is about to do (steps, marks) before the first command goes out, and
//! believes nothing that a later look does not show. So a turn may end anywhere, and the next one,
//! of this process or another, goes on from what it sees.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Engine;
use super::ears::Ears;
use super::finish::Finisher;
use super::judge::Judge;
use super::lease::Lease;
use super::look::{LoginError, Logins, ask, everybody, target};
use super::lookout::{Lookout, Round};
use super::run::{self, Run};
use super::watcher::Watch;
use crate::domain::event::EventType;
use crate::domain::id::TopologyId;
use crate::domain::node::Address;
use crate::domain::observation::Observation;
use crate::domain::plan::{Displacement, Plan, PlanError, PlanState, Requested, WaitingFor};
use crate::domain::planner::{self, Goal, Question, Terms};
use crate::engine::desk::DeskError;
use crate::fleet::Ask;
use crate::store::StoreError;
use crate::store::plans::Move;
use crate::store::topologies::StoredTopology;

/// Before reading again what somebody else just changed.
const READ_AGAIN: Duration = Duration::from_millis(20);
/// A node that missed a look is looked at again after this long.
const SUSPECT_POLL: Duration = Duration::from_millis(250);
/// Those who may take over from a primary that is missing, after this long.
const HEIR_POLL: Duration = Duration::from_millis(25);
/// The part of an interval that a look may come too early.
const SPARE: u32 = 20;
/// Everybody is looked at this often at least while somebody is missing.
const CLOSE_AT_MOST: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Login(#[from] LoginError),
}

/// Keeps one topology until it is deleted, its lease is over, or the process stops; then gives the
/// lease back.
pub(super) async fn keep(engine: Arc<Engine>, lease: Arc<Lease>, stop: CancellationToken) {
    // Also if a turn panics: then nobody renews the lease, and the topology is taken anew.
    let _leaving = Leaving { engine: engine.clone(), lease: lease.clone() };
    let mut keeper = Keeper::new(engine.clone(), lease.clone());
    while !stop.is_cancelled() && !lease.over.is_cancelled() {
        let pause = match keeper.turn().await {
            Ok(Some(pause)) => pause,
            Ok(None) | Err(KeepError::Store(StoreError::Fenced)) => break,
            // Somebody else moved the plan between read and write: read again.
            Err(KeepError::Store(StoreError::Moved(_))) => READ_AGAIN,
            Err(error) => {
                tracing::warn!(topology = %keeper.id, error = &error as &dyn std::error::Error, "a turn failed");
                keeper.run = None;
                Duration::from_secs(1)
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = lease.over.cancelled() => {}
            () = lease.rung() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    if let Err(error) = engine.store.release(lease.held).await {
        tracing::warn!(topology = %keeper.id, error = &error as &dyn std::error::Error, "a lease could not be given back; it runs out by itself");
    }
}

struct Leaving {
    engine: Arc<Engine>,
    lease: Arc<Lease>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.engine.let_go(&self.lease);
    }
}

pub struct Keeper {
    engine: Arc<Engine>,
    lease: Arc<Lease>,
    id: TopologyId,
    watch: Option<Watch>,
    lookout: Lookout,
    ears: Ears,
    judge: Option<Judge>,
    run: Option<Run>,
    finisher: Finisher,
    /// Since when a plan that is to begin anew was tried to be thought through.
    redrafting: Option<Instant>,
}

impl Keeper {
    #[must_use]
    pub fn new(engine: Arc<Engine>, lease: Arc<Lease>) -> Self {
        let id = lease.held.topology;
        Self {
            engine,
            lease,
            id,
            watch: None,
            lookout: Lookout::default(),
            ears: Ears::default(),
            judge: None,
            run: None,
            finisher: Finisher::default(),
            redrafting: None,
        }
    }

    /// One look and what follows from it; how long to pause until the next, or `None` when the
    /// topology is gone.
    pub async fn turn(&mut self) -> Result<Option<Duration>, KeepError> {
        let (engine, turned) = (self.engine.clone(), Instant::now());
        if let Some(run) = &mut self.run {
            self.judge = None;
            let plan = engine.store.plan(run.plan).await?;
            if is_at_work(&plan) && (plan.displaced_by.is_none() || run::is_winding_down(&plan)) {
                let watch = self.watch.get_or_insert_default();
                return Ok(Some(run.turn(&engine, watch, &plan).await?));
            }
            self.run = None;
        }
        let Some(stored) = engine.store.topology_by_id(self.id).await? else { return Ok(None) };
        if self.watch.is_none() {
            self.watch = Some(Watch::resume(&engine, &stored).await?);
        }
        if let Some(plan) = self.plan_at_work().await? {
            self.lease.busy.store(true, Ordering::Relaxed);
            self.judge = None;
            let waited = plan.displaces.is_some_and(|d| d.by == Displacement::Supersede);
            if waited && plan.state == PlanState::Queued {
                return self.redraft(&stored, &plan).await.map(Some);
            }
            self.redrafting = None;
            match Run::resume(&engine, self.lease.clone(), stored, &plan).await {
                Ok(mut run) => {
                    let watch = self.watch.get_or_insert_default();
                    let pause = run.turn(&engine, watch, &plan).await?;
                    self.run = Some(run);
                    return Ok(Some(pause));
                }
                Err(KeepError::Login(error)) if error.is_lasting() => {
                    run::end_locked_out(&engine, self.lease.held, &plan, &error).await?;
                    return Ok(Some(Duration::ZERO));
                }
                Err(error) => return Err(error),
            }
        }
        self.lease.busy.store(false, Ordering::Relaxed);
        let watch = self.watch.get_or_insert_default();
        let logins = match engine.logins(&stored.wanted.spec).await {
            Ok(logins) => logins,
            Err(error) => {
                // Nobody can log in: then nothing is known, and that must show.
                if error.is_lasting() {
                    engine.remember(self.id, Arc::default());
                }
                return Err(error.into());
            }
        };
        let marks = engine.store.marks(self.id).await?;
        let marked = marks.iter().map(|m| m.node.clone()).collect();
        let began = Instant::now();
        let spec = &stored.wanted.spec;
        self.ears.follow(&engine, &self.lease, spec, &logins);
        let mut nodes: BTreeSet<Address> = everybody(spec, &marked).cloned().collect();
        nodes.extend(stored.leavers.keys().cloned());
        let mut before = watch.seen.as_deref().cloned().unwrap_or_default();
        before.nodes.retain(|node, _| nodes.contains(node));
        let libraries = at_rest(&engine, &stored, &before, planner::compares_functions);
        let ask = Arc::new(ask(Some(spec), libraries));
        let targets = nodes.iter().map(|node| target(node, &logins));
        let Round { mut seen, mut glances } =
            self.lookout.round(&engine, targets, &ask, &before).await;
        // Who owes an answer may have left meanwhile.
        seen.nodes.retain(|node, _| nodes.contains(node));
        glances.retain(|node, _| nodes.contains(node));
        seen.marks = marks;
        let settled = at_rest(&engine, &stored, &seen, planner::settled_marks);
        if !settled.is_empty() {
            engine.store.clear_marks(self.lease.held, &settled).await?;
            seen.marks.retain(|m| !settled.contains(m));
        }
        let seen = Arc::new(seen);
        watch.note(&engine, self.lease.held, &stored, None, seen.clone(), &glances).await?;
        if self.judge.is_none() {
            self.judge = Some(Judge::resume(&engine, self.id).await?);
        }
        if let Some(judge) = &mut self.judge {
            judge.note(&engine, self.lease.held, &stored, &seen).await?;
        }
        self.finisher.note(&engine, &stored, &seen).await;
        let interval = self.stay_close(&stored, began, &ask, &logins).await?;
        // From look to look it is never longer: what comes before a look is counted, and some to spare.
        let lead = began.duration_since(turned);
        Ok(Some((interval - interval / SPARE).saturating_sub(began.elapsed() + lead)))
    }

    /// Until the next look at everybody: looks at suspects a few times a second, and at those who may
    /// take over from a primary that is missing as often as makes sense. Returns when that look is due.
    async fn stay_close(
        &mut self,
        stored: &StoredTopology,
        began: Instant,
        ask: &Arc<Ask>,
        logins: &Logins,
    ) -> Result<Duration, KeepError> {
        let (interval, close) =
            (self.engine.watch_interval, self.engine.watch_interval.min(CLOSE_AT_MOST));
        let (mut suspected, mut took) = (Instant::now(), Duration::ZERO);
        loop {
            let watch = self.watch.get_or_insert_default();
            let mut nodes = watch.heirs(stored);
            // What is large takes its time, and must not take all of it.
            let heirs = HEIR_POLL.max(took * 2);
            let pause = if nodes.is_empty() { SUSPECT_POLL } else { heirs };
            if suspected.elapsed() + pause >= SUSPECT_POLL {
                nodes.extend(watch.health.suspects().cloned());
            }
            let idle = nodes.is_empty() && watch.health.suspects().next().is_none();
            if idle {
                return Ok(interval);
            }
            if began.elapsed() + pause >= close {
                return Ok(close);
            }
            tokio::select! {
                () = self.lease.over.cancelled() => return Ok(close),
                () = self.lease.rung() => {
                    // Whatever it was, it is for a whole turn.
                    self.lease.ring();
                    return Ok(close);
                }
                () = tokio::time::sleep(pause) => {}
            }
            if nodes.iter().any(|node| watch.health.suspects().any(|s| s == node)) {
                suspected = Instant::now();
            }
            let before = watch.seen.clone().unwrap_or_default();
            let targets = nodes.iter().map(|node| target(node, logins));
            let Round { mut seen, mut glances } =
                self.lookout.round(&self.engine, targets, ask, &before).await;
            seen.nodes.retain(|node, _| before.nodes.contains_key(node));
            glances.retain(|node, _| before.nodes.contains_key(node));
            let (held, noting) = (self.lease.held, Instant::now());
            watch.note(&self.engine, held, stored, None, Arc::new(seen), &glances).await?;
            took = noting.elapsed();
        }
    }

    /// A plan that waited for another to end begins from how things stand now; where it cannot, it
    /// fails before anything was done. A node that does not answer is waited for first.
    async fn redraft(
        &mut self,
        stored: &StoredTopology,
        plan: &Plan,
    ) -> Result<Duration, KeepError> {
        let (engine, held) = (&self.engine, self.lease.held);
        let since = *self.redrafting.get_or_insert_with(Instant::now);
        let deadline = Duration::from_millis(engine.policy.wait_deadline_ms);
        let patient = since.elapsed() < deadline;
        let refusal = match engine.redraft(held, stored, plan, patient).await {
            Ok(true) => return Ok(Duration::ZERO),
            Ok(false) => return Ok(SUSPECT_POLL),
            Err(DeskError::Store(StoreError::Refused(refusal)) | DeskError::Refused(refusal)) => {
                refusal.to_string()
            }
            Err(error @ (DeskError::NoSecretKey | DeskError::Store(StoreError::Sealed))) => {
                error.to_string()
            }
            Err(DeskError::Store(error) | DeskError::Unread { source: error, .. }) => {
                return Err(error.into());
            }
        };
        let mut to = Move::to(PlanState::Failed, EventType::PlanFailed);
        let error = PlanError {
            code: "refused".to_owned(),
            message: refusal,
            node: None,
            recovery: "The plan that it superseded has ended. See how the topology stands, then ask for what is wanted now.".to_owned(),
        };
        to.data = serde_json::json!({ "error": error });
        to.error = Some(error);
        engine.store.move_plan(Some(held), plan, &to, "reeve").await?;
        Ok(Duration::ZERO)
    }

    /// The plan whose turn it is. One that another is to take the place of goes on only until it is
    /// at a safe point.
    async fn plan_at_work(&self) -> Result<Option<Plan>, StoreError> {
        let store = &self.engine.store;
        let Some(base) = store.active_plan(self.id).await? else { return Ok(None) };
        let Some(other) = base.displaced_by else {
            // It came to rest for an emergency that was over by then.
            if base.state == PlanState::Paused && base.waiting_for == Some(WaitingFor::Preempted) {
                store.resume_preempted_plan(self.lease.held, &base).await?;
                return Ok(Some(store.plan(base.id).await?).filter(is_at_work));
            }
            return Ok(Some(base).filter(is_at_work));
        };
        let other = store.plan(other).await?;
        let Some(displaces) = other.displaces else { return Ok(Some(other).filter(is_at_work)) };
        let at_rest = matches!(base.state, PlanState::Queued | PlanState::Paused)
            && base.requested.is_none()
            && base.error.is_none();
        match displaces.by {
            Displacement::Preempt if at_rest => Ok(Some(other).filter(is_at_work)),
            Displacement::Preempt if base.requested.is_none() && base.error.is_none() => {
                let why = Some(WaitingFor::Preempted);
                store.request_as_keeper(self.lease.held, &base, Requested::Pause, why).await?;
                Ok(Some(store.plan(base.id).await?))
            }
            Displacement::Preempt | Displacement::Supersede => Ok(Some(base).filter(is_at_work)),
        }
    }
}

/// What the planner says while no plan is at work.
fn at_rest<T>(
    engine: &Engine,
    stored: &StoredTopology,
    seen: &Observation,
    ask: impl FnOnce(&Question) -> T,
) -> T {
    let (want, policy, terms) = (&stored.wanted, &engine.policy, &Terms::default());
    ask(&Question { want, seen, terms, policy, goal: Goal::Converge })
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
