//! The reins of a plan: start, pause, resume, cancel, retry.

use std::collections::BTreeSet;

use super::submit::{Newcomers, newcomers};
use super::{DeskError, Draft, PlanOptions, new_plan, refuse_active};
use crate::clock;
use crate::domain::event::EventType;
use crate::domain::hazard::Accepted;
use crate::domain::id::PlanId;
use crate::domain::intent::{Amendment, Intent};
use crate::domain::plan::{Displacement, Plan, PlanState, Requested, WaitingFor};
use crate::domain::refusal::{FieldError, Refusal};
use crate::engine::Engine;
use crate::store::StoreError;
use crate::store::plans::Move;
use crate::store::topologies::StoredTopology;

/// Tries again when somebody moved the plan between reading and writing. (A macro, since futures of
/// async closures are not known to be `Send`.)
macro_rules! again {
    ($attempt:expr) => {{
        for _ in 0..5 {
            match $attempt.await {
                Err(DeskError::Store(StoreError::Moved(_))) => {}
                done => return done,
            }
        }
        $attempt.await
    }};
}

impl Engine {
    /// Starts a plan that was only proposed, if the world is still as it was then.
    pub async fn start_plan(
        &self,
        id: PlanId,
        accept: &BTreeSet<String>,
        actor: &str,
    ) -> Result<Plan, DeskError> {
        let plan = self.store.plan(id).await?;
        if plan.state != PlanState::Proposed {
            return Err(illegal(&plan, "start"));
        }
        let accepted = with(&plan.accepted, accept);
        let lacking = accepted.lacking(&plan.hazards, self.policy.free_pause_ms);
        if !lacking.is_empty() {
            return Err(Refusal::ConsentRequired(lacking).into());
        }
        let stored = self.store.topology(&plan.topology).await?;
        // A create plan's version was made with it.
        if !is_at(&stored, &plan, plan.from_version.max(1)) {
            return Err(gone_on().into());
        }
        let older = match plan.intent.back_to() {
            Some(version) => {
                let (id, name) = (stored.wanted.id, &stored.wanted.name);
                self.store.version(id, name, version).await?.map(|v| v.wanted)
            }
            None => None,
        };
        let now = &stored.wanted;
        let by = plan.intent.new_spec().unwrap_or(&now.spec);
        let new = newcomers(&plan.intent, now);
        let seen = self.survey(now, by, older.as_ref(), new).await?.fingerprint();
        if seen != plan.fingerprint {
            return Err(Refusal::StaleFingerprint { expected: plan.fingerprint, seen }.into());
        }
        self.store.queue_plan(&plan, &accepted, actor).await?;
        self.ring(plan.topology_id);
        self.stored_plan(id).await
    }

    /// Has a plan pause at its next safe point.
    pub async fn pause_plan(&self, id: PlanId, actor: &str) -> Result<Plan, DeskError> {
        again!(self.pause_once(id, actor))
    }

    async fn pause_once(&self, id: PlanId, actor: &str) -> Result<Plan, DeskError> {
        let plan = self.store.plan(id).await?;
        match plan.state {
            PlanState::Running if plan.requested.is_none() && plan.error.is_none() => {
                self.store.request(&plan, Requested::Pause).await?;
                self.ring(plan.topology_id);
            }
            // One that made way for an emergency would go on by itself: now it waits for a person.
            PlanState::Paused
                if plan.waiting_for == Some(WaitingFor::Preempted) && plan.requested.is_none() =>
            {
                let mut to = Move::to(PlanState::Paused, EventType::PlanPaused);
                to.waiting_for = Some(WaitingFor::Operator);
                to.data = serde_json::json!({ "waiting_for": WaitingFor::Operator });
                self.store.move_plan(None, &plan, &to, actor).await?;
            }
            PlanState::Running
                if plan.requested == Some(Requested::Pause)
                    && plan.waiting_for == Some(WaitingFor::Preempted) =>
            {
                self.store.request(&plan, Requested::Pause).await?;
            }
            // To pause twice is to pause.
            PlanState::Paused => {}
            PlanState::Running if plan.requested == Some(Requested::Pause) => {}
            PlanState::Running
            | PlanState::Proposed
            | PlanState::Queued
            | PlanState::Succeeded
            | PlanState::Failed
            | PlanState::Cancelled
            | PlanState::Superseded => return Err(illegal(&plan, "pause")),
        }
        self.stored_plan(id).await
    }

    pub async fn resume_plan(
        &self,
        id: PlanId,
        accept: &BTreeSet<String>,
        actor: &str,
    ) -> Result<Plan, DeskError> {
        again!(self.resume_once(id, accept, actor))
    }

    async fn resume_once(
        &self,
        id: PlanId,
        accept: &BTreeSet<String>,
        actor: &str,
    ) -> Result<Plan, DeskError> {
        let plan = self.store.plan(id).await?;
        if plan.state != PlanState::Paused || plan.requested.is_some() {
            return Err(illegal(&plan, "resume"));
        }
        let accepted = with(&plan.accepted, accept);
        let lacking = accepted.lacking(&plan.hazards, self.policy.free_pause_ms);
        if !lacking.is_empty() {
            return Err(Refusal::ConsentRequired(lacking).into());
        }
        // One that never began, and is to take another's place, is thought through anew first.
        let unbegun = plan.started_at.is_none()
            && plan.displaces.is_some_and(|d| d.by == Displacement::Supersede);
        let state = if unbegun { PlanState::Queued } else { PlanState::Running };
        let mut to = Move::to(state, EventType::PlanResumed);
        to.accepted = Some(accepted);
        self.store.move_plan(None, &plan, &to, actor).await?;
        self.ring(plan.topology_id);
        self.stored_plan(id).await
    }

    /// Ends a plan: at once where it did nothing yet, else at its next safe point.
    pub async fn cancel_plan(&self, id: PlanId, actor: &str) -> Result<Plan, DeskError> {
        again!(self.cancel_once(id, actor))
    }

    async fn cancel_once(&self, id: PlanId, actor: &str) -> Result<Plan, DeskError> {
        let plan = self.store.plan(id).await?;
        match plan.state {
            PlanState::Proposed | PlanState::Queued => {
                let to = Move::to(PlanState::Cancelled, EventType::PlanCancelled);
                self.store.move_plan(None, &plan, &to, actor).await?;
            }
            PlanState::Running | PlanState::Paused => {
                self.store.request(&plan, Requested::Cancel).await?;
                self.ring(plan.topology_id);
            }
            PlanState::Cancelled => {}
            PlanState::Succeeded | PlanState::Failed | PlanState::Superseded => {
                return Err(illegal(&plan, "cancel"));
            }
        }
        self.stored_plan(id).await
    }

    /// Makes a new plan that goes on where one ended without success.
    pub async fn retry_plan(
        &self,
        id: PlanId,
        accept: &BTreeSet<String>,
        actor: &str,
    ) -> Result<Plan, DeskError> {
        let old = self.store.plan(id).await?;
        if !matches!(old.state, PlanState::Failed | PlanState::Cancelled | PlanState::Superseded) {
            return Err(illegal(&old, "retry"));
        }
        let stored = self.store.topology(&old.topology).await?;
        refuse_active(&stored)?;
        // What was once made is in use: its creation is over, however that plan ended.
        let over = stored.created && matches!(old.intent, Intent::Create(_));
        // A plan that never had a part in anything has nothing to go on with.
        let idle = !self.store.took_part(old.id).await?;
        if over || idle || !is_at(&stored, &old, old.to_version) {
            return Err(gone_on().into());
        }
        let all = old.terms.others().cloned().collect();
        let others = Newcomers { all, sentinels: old.terms.unwatch.clone() };
        let seen = self.survey(&stored.wanted, &stored.wanted.spec, None, others).await?;
        let amendment = Amendment {
            spec: None,
            layout: stored.wanted.layout.clone(),
            terms: old.terms.clone(),
            warnings: vec![],
        };
        let options = PlanOptions {
            start: true,
            accept_hazard: old.accepted.ceiling,
            // Consent to a loss is for the moment at which it is given.
            accept: accept.clone(),
            expect_fingerprint: None,
            supersede: false,
            thorough: false,
            reason: old.reason.clone(),
        };
        let preview = self
            .forecast_with_moves(
                &stored.wanted,
                &seen,
                &old.intent,
                old.from_version,
                amendment,
                &options,
            )
            .await?;
        if !preview.lacking.is_empty() {
            return Err(Refusal::ConsentRequired(preview.lacking).into());
        }
        let new_id = PlanId(clock::new_id());
        let accepted = options.accepted();
        let wanted = stored.wanted.clone();
        let draft = Draft { wanted, reshapes: false, preview, displaces: None };
        let mut plan = new_plan(new_id, &draft, &accepted, &options, actor);
        plan.retry_of = Some(old.id);
        self.store.add_plan(&plan).await?;
        self.ring(stored.wanted.id);
        self.stored_plan(new_id).await
    }
}

fn with(accepted: &Accepted, more: &BTreeSet<String>) -> Accepted {
    let ids = accepted.ids.union(more).cloned().collect();
    Accepted { ceiling: accepted.ceiling, ids }
}

/// Whether it is the topology that the plan is about, at that version.
fn is_at(stored: &StoredTopology, plan: &Plan, version: i32) -> bool {
    stored.wanted.id == plan.topology_id && stored.wanted.version == version
}

fn gone_on() -> Refusal {
    let why = "the topology has gone on since that plan; ask for what is wanted now";
    Refusal::unsettled(vec![FieldError::new("", why)])
}

fn illegal(plan: &Plan, action: &'static str) -> DeskError {
    Refusal::PlanState { plan: plan.id, state: plan.state, action }.into()
}
