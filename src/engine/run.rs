//! The plan in hand: what one look leads to, turn by turn, until the plan ends or pauses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use futures::future::join_all;

use super::Engine;
use super::apply::apply;
use super::functions;
use super::handover;
use super::hub::StepProgress;
use super::keeper::KeepError;
use super::lease::Lease;
use super::look::{Cleared, LoginError, Logins};
use super::mover::{Moved, Stall};
use super::moves::{self, Course};
use super::verdict;
use super::watcher::Watch;
use crate::clock::{self, jitter};
use crate::domain::Timestamp;
use crate::domain::event::{EventType, NewEvent};
use crate::domain::failovers::Glance;
use crate::domain::fault::{Fault, NO_REPLY, Retry};
use crate::domain::health::Health;
use crate::domain::id::{PlanId, ShardId};
use crate::domain::intent::{Intent, failover, members};
use crate::domain::moving::BigKey;
use crate::domain::node::Address;
use crate::domain::observation::{Mark, MarkKind, Observation};
use crate::domain::placement::Warning;
use crate::domain::plan::{
    Plan, PlanError, PlanState, Progress, Requested, StepRecord, StepState, WaitingFor,
};
use crate::domain::planner::{self, Goal, Next, Question, Seat, Terms};
use crate::domain::step::command::FailoverMethod;
use crate::domain::step::slots::MoveSlots;
use crate::domain::step::{Action, Check, Step, StepKey, Wait};
use crate::domain::topology::Topology;
use crate::domain::view;
use crate::fleet::Fence;
use crate::store::StoreError;
use crate::store::leases::{DATABASE_RESTORED, Held};
use crate::store::plans::Move;
use crate::store::steps::Round;
use crate::store::topologies::StoredTopology;

/// Between looks while a plan waits for nodes to agree.
const POLL_FIRST: Duration = Duration::from_millis(20);
const POLL_LAST: Duration = Duration::from_millis(250);
/// Progress is told this often at most.
const TELL_AT_MOST: Duration = Duration::from_millis(250);
/// How long a node is waited for that handed over and is gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// A sight that is older is no ground for commands.
const STALE: Duration = Duration::from_secs(3);
/// Beside the commands' own time, a lease is stretched by this much before they are sent.
const SPARE: Duration = Duration::from_secs(1);

/// The warning of a plan that was found to know less than the nodes do. Whoever resumes it then
/// has seen it.
const WORLD_AHEAD: &str = "world_ahead";

/// What is remembered of the plan in hand between turns; nothing that a restart would miss.
pub(super) struct Run {
    pub plan: PlanId,
    lease: Arc<Lease>,
    stored: StoredTopology,
    /// What it makes: without the members that it leaves apart.
    want: Topology,
    /// Who was a member before it.
    before: BTreeSet<Address>,
    /// Whether it moves slots: then it goes on without members of old that die on the way.
    moves: bool,
    logins: Logins,
    /// Where nothing can still run that was sent before.
    cleared: Cleared,
    /// Steps that were never begun, as far as the database knows; looked at once.
    unbegun: Option<Vec<Step>>,
    /// Steps that were begun and not yet seen to be done.
    begun: BTreeMap<StepKey, Step>,
    tries: BTreeMap<StepKey, Tries>,
    /// Moves of slots that stopped for a look: how far they were, and whether they got on last time.
    courses: BTreeMap<StepKey, (Course, bool)>,
    /// Steps of the winding down that their nodes refuse; their marks stay for a repair.
    given_up: BTreeSet<StepKey>,
    /// Whether all nodes agreed once: a cluster forms only once, and what comes later is no reason
    /// to hurry it again.
    formed: bool,
    /// When something last moved on.
    moved_at: Instant,
    /// How far the wait had come then.
    wait_mark: usize,
    poll: Duration,
    told: Option<(Instant, StepProgress)>,
}

#[derive(Debug, Default)]
struct Tries {
    count: u32,
    not_before: Option<Instant>,
    last: Option<Fault>,
}

impl Run {
    /// Takes a plan in hand, wherever it stands.
    pub async fn resume(
        engine: &Engine,
        lease: Arc<Lease>,
        mut stored: StoredTopology,
        plan: &Plan,
    ) -> Result<Self, KeepError> {
        // A plan that is to make way may not be the one that made the present version.
        let wanted = &stored.wanted;
        if wanted.version != plan.to_version
            && let Some(own) =
                engine.store.version(wanted.id, &wanted.name, plan.to_version).await?
        {
            stored.wanted = own.wanted;
        }
        let (id, name) = (stored.wanted.id, &stored.wanted.name);
        let from = engine.store.version(id, name, plan.from_version).await?;
        let before = from.iter().flat_map(|v| v.wanted.layout.members()).cloned().collect();
        let logins = engine.logins(&stored.wanted.spec).await?;
        let logins = logins.with_sentinels(&plan.terms.unwatch);
        let steps = engine.store.steps(plan.id, 0, i64::MAX).await?;
        let agreed = |s: &StepRecord| {
            matches!(s.step, Step::AwaitAgreement(_)) && s.state == StepState::Done
        };
        let formed = steps.iter().any(agreed);
        let moves = steps.iter().any(|s| s.step.moves().is_some());
        let unbegun = steps.iter().filter(|s| s.state == StepState::Pending);
        let unbegun = unbegun.map(|s| s.step.clone()).collect();
        let begun = steps.into_iter().filter(|s| s.state == StepState::Running);
        Ok(Self {
            plan: plan.id,
            lease,
            want: stored.wanted.without(&plan.terms.apart),
            stored,
            before,
            moves,
            logins,
            cleared: Cleared::default(),
            unbegun: Some(unbegun),
            begun: begun.map(|s| (s.key, s.step)).collect(),
            tries: BTreeMap::new(),
            courses: BTreeMap::new(),
            given_up: BTreeSet::new(),
            formed,
            moved_at: Instant::now(),
            wait_mark: 0,
            poll: POLL_FIRST,
            told: None,
        })
    }

    pub async fn turn(
        &mut self,
        engine: &Engine,
        watch: &mut Watch,
        plan: &Plan,
    ) -> Result<Duration, KeepError> {
        let held = self.lease.held;
        let spec = &self.stored.wanted.spec;
        let barred = (fence(held), &self.cleared);
        let marks = engine.store.marks(plan.topology_id).await?;
        let marked = marks.iter().map(|m| &m.node);
        let also = plan.terms.others().chain(marked).cloned().collect();
        let before = watch.seen.as_deref();
        let (want, terms, policy) = (&self.want, &plan.terms, &engine.policy);
        let libraries = before.is_some_and(|seen| {
            let goal = Goal::Converge;
            planner::compares_functions(&Question { want, seen, terms, policy, goal })
        });
        let asked = clock::now();
        let mut seen = engine.look_past(spec, &also, &self.logins, before, barred, libraries).await;
        let looked_at = Instant::now();
        seen.marks = marks;
        let glances = glances(asked, clock::now(), &seen);
        let noted = Arc::new(seen.clone());
        watch.note(engine, held, &self.stored, Some(plan.id), noted, &glances).await?;

        if let Some(why) = self.stale(plan, &seen) {
            // Where this process knows why the world is ahead, all plans pause for that.
            if !engine.notice_restore(engine.store.newest_event().await?).await? {
                self.pause_stale(engine, plan, why).await?;
            }
            return Ok(Duration::ZERO);
        }
        if plan.state == PlanState::Queued && plan.requested.is_none() {
            let started = Move::to(PlanState::Running, EventType::PlanStarted);
            engine.store.move_plan(Some(held), plan, &started, "reeve").await?;
            return Ok(Duration::ZERO);
        }
        let winding_down = is_winding_down(plan);
        // What is seen is accepted as it is: nothing is to be done to any node.
        let untouched = matches!(plan.intent, Intent::AcceptDrift(_));
        let goal = if winding_down || untouched { Goal::WindDown } else { Goal::Converge };
        let lost = self.lost(&seen);
        let terms = Terms {
            forming: plan.terms.forming && !self.formed,
            apart: plan.terms.apart.iter().chain(lost.keys()).cloned().collect(),
            lost,
            ..plan.terms.clone()
        };
        let want = &self.want.without(&terms.apart);
        let asked = Question { want, seen: &seen, terms: &terms, policy, goal };
        let (settled, formed) = (planner::settled_marks(&asked), planner::has_formed(&asked));
        seen.marks.retain(|m| !settled.contains(m));
        let done: Vec<StepKey> = self
            .begun
            .iter()
            .filter(|(_, step)| match step {
                Step::AwaitAgreement(_) => formed,
                step => step.action().check(&seen) == Check::Done,
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in &done {
            let step = self.begun.remove(key);
            self.formed |= matches!(step, Some(Step::AwaitAgreement(_)));
            self.tries.remove(key);
            self.courses.remove(key);
            self.moved();
        }
        let round = Round { done, marks_cleared: settled, ..Round::default() };
        let asked = Question { want, seen: &seen, terms: &terms, policy, goal };
        let mut next = planner::next(&asked);
        if let Next::Act(steps) = &mut next {
            steps.retain(|s| !self.given_up.contains(&s.action().key()));
            if steps.is_empty() {
                next = Next::Converged;
            }
        }
        match next {
            Next::Act(steps) => {
                // After a stall the sight is stale, and commands must not follow from it.
                if looked_at.elapsed() > STALE {
                    self.commit(engine, plan, round).await?;
                    return Ok(Duration::ZERO);
                }
                self.tell_held_up(engine, plan, &seen, &steps).await?;
                self.act(engine, plan, &seen, steps, round).await
            }
            Next::Wait(waits) => self.wait(engine, plan, waits, round).await,
            // In an emergency nobody waits.
            Next::Converged
                if ((winding_down || !terms.seats_only) && is_patient(watch, &seen))
                    || self.waits_for_the_old(&terms, &seen) =>
            {
                self.commit(engine, plan, round).await?;
                Ok(POLL_LAST)
            }
            Next::Converged => {
                self.commit(engine, plan, round).await?;
                for node in terms.lost.keys() {
                    engine.store.warn(held, plan.id, &members::left_apart(node)).await?;
                }
                for node in terms.unreached(&seen).filter(|_| !winding_down) {
                    engine.store.warn(held, plan.id, &members::unreached(node)).await?;
                }
                let other = failover::elected_another(&terms, &want.layout, &seen);
                self.finish(engine, plan, other).await?;
                Ok(Duration::ZERO)
            }
            Next::Stuck(blockers) => {
                self.commit(engine, plan, round).await?;
                self.doom(engine, plan, None, verdict::blocked(&blockers)).await?;
                Ok(Duration::ZERO)
            }
        }
    }

    /// Whether a node that handed over went silent a moment ago: its config file is behind.
    fn waits_for_the_old(&self, terms: &Terms, seen: &Observation) -> bool {
        let graceful = |seat: &Seat| seat.method == FailoverMethod::Graceful;
        let missing = |m: &Mark| m.what.hold().is_none() && seen.report(&m.node).is_none();
        self.want.layout.lone().is_some()
            && !terms.seats.is_empty()
            && terms.seats.values().all(graceful)
            && seen.marks.iter().any(missing)
            && self.moved_at.elapsed() < PATIENCE
    }

    async fn commit(
        &mut self,
        engine: &Engine,
        plan: &Plan,
        round: Round,
    ) -> Result<(), KeepError> {
        if !round.is_empty() {
            engine.store.record_round(self.lease.held, plan, &round, Duration::ZERO).await?;
        }
        Ok(())
    }

    /// Members of old that are dead, so that others have taken over what they had: slots do not wait
    /// for them.
    fn lost(&self, seen: &Observation) -> BTreeMap<Address, ShardId> {
        if !self.moves {
            return BTreeMap::new();
        }
        let mut dead = view::dead_members(&self.want.layout, seen);
        dead.retain(|node| self.before.contains(node));
        let shards = self.want.layout.shards();
        let shard_of = |node: &Address| shards.iter().find(|(s, _)| s.members.contains(node));
        dead.into_iter().filter_map(|node| Some((node.clone(), shard_of(&node)?.0.id))).collect()
    }

    /// Why the plan must not go on from what it remembers, if the world is not as it knows it.
    fn stale(&mut self, plan: &Plan, seen: &Observation) -> Option<String> {
        let unbegun = self.unbegun.take().unwrap_or_default();
        let told = |w: &Warning| w.code == WORLD_AHEAD || w.code == DATABASE_RESTORED;
        if is_winding_down(plan) || plan.warnings.iter().any(told) {
            return None;
        }
        if plan.state == PlanState::Queued {
            let bound =
                !plan.intent.is_emergency() && plan.displaces.is_none() && !plan.prints.is_empty();
            // One that does not answer now is waited for by the steps that need it.
            let now = seen.prints().into_iter().filter(|(a, _)| seen.report(a).is_some());
            let moved =
                |(a, print): &(Address, String)| plan.prints.get(a).is_some_and(|p| p != print);
            let moved: Vec<_> = now.filter(moved).map(|(a, _)| a.to_string()).collect();
            return (bound && !moved.is_empty())
                .then(|| format!("{} no longer as when this plan was made", are(&moved)));
        }
        let ahead = planner::ahead_of_record(&unbegun, seen);
        let first = ahead.first()?;
        Some(format!(
            "{} of its steps are done although the database says that they were never begun, such as {first}: the database may have been restored from a backup that is older than the nodes, or somebody else is at work",
            ahead.len()
        ))
    }

    async fn pause_stale(
        &self,
        engine: &Engine,
        plan: &Plan,
        why: String,
    ) -> Result<(), KeepError> {
        let held = self.lease.held;
        tracing::warn!(plan = %plan.id, why, "a plan pauses");
        let mut to = Move::to(PlanState::Paused, EventType::PlanPaused);
        to.waiting_for = Some(WaitingFor::Stale);
        to.data = serde_json::json!({ "waiting_for": WaitingFor::Stale, "why": why });
        let message = format!("{why}. Look at the topology; then resume the plan, or cancel it");
        let warning = Warning { code: WORLD_AHEAD.to_owned(), message };
        // With the move: a warning alone would say that somebody had seen it.
        to.warning = Some(warning);
        Ok(engine.store.move_plan(Some(held), plan, &to, "reeve").await?)
    }

    fn moved(&mut self) {
        self.moved_at = Instant::now();
        self.poll = POLL_FIRST;
    }

    /// Begins the steps whose time has come, all side by side.
    async fn act(
        &mut self,
        engine: &Engine,
        plan: &Plan,
        seen: &Observation,
        steps: Vec<Step>,
        mut round: Round,
    ) -> Result<Duration, KeepError> {
        let hazards: Vec<_> = steps.iter().flat_map(|s| s.action().hazards()).collect();
        if !plan.accepted.lacking(&hazards, engine.policy.free_pause_ms).is_empty() {
            self.commit(engine, plan, round).await?;
            let (held, why) = (self.lease.held, Some(WaitingFor::Consent));
            engine.store.request_as_keeper(held, plan, Requested::Pause, why).await?;
            return Ok(Duration::ZERO);
        }
        self.moves |= steps.iter().any(|s| s.moves().is_some());
        // A step that is ready again although its commands were taken had no effect.
        for step in &steps {
            let key = step.action().key();
            let tries = self.tries.entry(key).or_default();
            if tries.count > 0 && tries.not_before.is_none() {
                tries.last.get_or_insert_with(|| verdict::no_effect(step));
                let pause = engine.policy.backoff_ms(tries.count, jitter());
                tries.not_before = Some(Instant::now() + Duration::from_millis(pause));
            }
        }
        let now = Instant::now();
        let exhausted = steps.iter().find_map(|s| {
            let tries = self.tries.get(&s.action().key())?;
            let last = tries.last.clone()?;
            (tries.count > engine.policy.max_retries).then(|| (s.clone(), last))
        });
        if let Some((step, fault)) = exhausted {
            self.commit(engine, plan, round).await?;
            if is_winding_down(plan) {
                self.given_up.insert(step.action().key());
                return Ok(Duration::ZERO);
            }
            self.doom(engine, plan, Some(&step), verdict::failed(&fault)).await?;
            return Ok(Duration::ZERO);
        }
        let time_of = |s: &Step| self.tries.get(&s.action().key()).and_then(|t| t.not_before);
        let (due, later): (Vec<Step>, Vec<Step>) =
            steps.into_iter().partition(|s| time_of(s).is_none_or(|at| at <= now));
        if due.is_empty() {
            let until = later.iter().filter_map(time_of).min().unwrap_or(now);
            self.commit(engine, plan, round).await?;
            self.waits_for(engine, plan, Some(WaitingFor::Retry)).await?;
            return Ok(until.saturating_duration_since(now).min(engine.watch_interval));
        }

        round.marks_set = due.iter().flat_map(|s| s.action().marks(seen)).collect();
        let tells = |s: &Step| {
            let key = s.action().key();
            s.action()
                .tells(seen)
                .into_iter()
                .map(move |event| (key.clone(), event))
                .collect::<Vec<_>>()
        };
        round.told = due.iter().flat_map(tells).collect();
        // What goes on where it stopped for the look is not begun again.
        let goes_on = |s: &Step| self.courses.contains_key(&s.action().key());
        round.begun = due.iter().filter(|s| !goes_on(s)).cloned().collect();
        let patience = due.iter().map(|s| match s {
            Step::MoveSlots(step) => moves::patience(step),
            Step::CopyFunctions(_) => functions::WITHIN * 2,
            _ => Duration::ZERO,
        });
        let within = patience.fold(engine.commands_within, Duration::max) + SPARE;
        let held = self.lease.held;
        let recording = Instant::now();
        engine.store.record_round(held, plan, &round, within).await?;
        self.lease.stretched(recording, within);
        self.waits_for(engine, plan, None).await?;
        // Whoever was frozen since must not send what it has on its lips.
        if recording.elapsed() > STALE || !self.lease.lasts(engine.commands_within) {
            return Ok(Duration::ZERO);
        }
        let outcomes = self.carry_out(engine, plan, seen, &due).await?;
        self.moved();
        for outcome in &outcomes {
            if let Err(Fault { code, node: Some(node), .. }) = outcome
                && code == NO_REPLY
            {
                self.cleared.bar(node);
            }
        }
        for (step, outcome) in due.iter().zip(outcomes) {
            let key = step.action().key();
            self.begun.entry(key.clone()).or_insert_with(|| step.clone());
            // Whoever got on has failed at nothing so far.
            if self.courses.get(&key).is_some_and(|(_, got_on)| *got_on) {
                self.tries.remove(&key);
                if outcome.is_ok() {
                    continue;
                }
            }
            let tries = self.tries.entry(key).or_default();
            tries.count += 1;
            tries.not_before = None;
            tries.last = None;
            metrics::counter!("reeve_steps_total", "kind" => step.kind(),
                "outcome" => if outcome.is_ok() { "sent" } else { "failed" })
            .increment(1);
            match outcome {
                Ok(warning) => {
                    if let Some(warning) = warning {
                        engine.store.warn(held, plan.id, &warning).await?;
                    }
                    let marks_cleared = step.action().clears();
                    self.commit(engine, plan, Round { marks_cleared, ..Round::default() }).await?;
                }
                Err(fault) if fault.retry() == Retry::Never && is_winding_down(plan) => {
                    tracing::warn!(plan = %plan.id, step = step.action().key(), code = fault.code, "a node refuses to be put back");
                    self.given_up.insert(step.action().key());
                }
                Err(fault) if fault.retry() == Retry::Never => {
                    self.doom(engine, plan, Some(step), verdict::failed(&fault)).await?;
                    return Ok(Duration::ZERO);
                }
                Err(fault) => {
                    let pause = engine.policy.backoff_ms(tries.count, jitter());
                    tries.not_before = Some(Instant::now() + Duration::from_millis(pause));
                    tries.last = Some(fault.clone());
                    engine
                        .store
                        .record_failure(held, plan, step, &verdict::failed(&fault), pause)
                        .await?;
                }
            }
        }
        Ok(Duration::ZERO)
    }

    /// Nothing is ready: waits for nodes to answer or agree, up to a deadline since the last
    /// progress.
    async fn wait(
        &mut self,
        engine: &Engine,
        plan: &Plan,
        waits: Vec<(Step, Wait)>,
        mut round: Round,
    ) -> Result<Duration, KeepError> {
        // Steps that send nothing begin by being waited for.
        let sends_nothing = |s: &&Step| {
            matches!(
                s,
                Step::AwaitAgreement(_)
                    | Step::AwaitSync(_)
                    | Step::AwaitTrim(_)
                    | Step::AwaitWatch(_)
                    | Step::AwaitChoice(_)
            )
        };
        let silent = waits.iter().map(|(s, _)| s).filter(sends_nothing);
        let fresh = silent.filter(|s| !self.begun.contains_key(&s.action().key()));
        round.begun = fresh.cloned().collect();
        for step in &round.begun {
            self.begun.insert(step.action().key(), step.clone());
        }
        self.commit(engine, plan, round).await?;

        let mark = waits.iter().map(|(_, w)| w.done).sum();
        // Only what was not reached before counts: nodes that waver must not wait for ever.
        if mark > self.wait_mark {
            self.wait_mark = mark;
            self.moved();
        }
        let Some((step, wait)) =
            waits.iter().find(|(_, w)| w.reason == WaitingFor::Node).or(waits.last())
        else {
            return Ok(self.poll);
        };
        // These end by themselves, however long they take.
        if matches!(wait.reason, WaitingFor::Hold | WaitingFor::Sync) {
            self.moved_at = Instant::now();
            self.waits_for(engine, plan, Some(wait.reason)).await?;
        }
        if self.moved_at.elapsed() >= Duration::from_millis(engine.policy.wait_deadline_ms) {
            self.doom(engine, plan, Some(step), verdict::timed_out(wait)).await?;
            return Ok(Duration::ZERO);
        }
        self.tell(engine, plan, step, wait).await?;
        // A wait that is short is not worth a word in the plan.
        if self.moved_at.elapsed() > Duration::from_secs(1) {
            self.waits_for(engine, plan, Some(wait.reason)).await?;
        }
        let pause = self.poll;
        self.poll = (self.poll * 5 / 4).min(POLL_LAST);
        Ok(pause)
    }

    /// Has all steps carried out side by side, each as far as it may go in this turn.
    async fn carry_out(
        &mut self,
        engine: &Engine,
        plan: &Plan,
        seen: &Observation,
        due: &[Step],
    ) -> Result<Vec<Result<Option<Warning>, Fault>>, KeepError> {
        let fence = fence(self.lease.held);
        let (lease, logins, halt) = (&*self.lease, &self.logins, &AtomicBool::new(false));
        let turn = &moves::Turn { engine, plan, lease, seen, logins, fence, halt };
        let courses = due.iter().map(|step| self.courses.remove(&step.action().key()));
        let courses: Vec<_> = courses.map(|c| c.unwrap_or_default().0).collect();
        let carried = due.iter().zip(courses).map(|(step, mut course)| async move {
            match step {
                Step::MoveSlots(step) => {
                    let (moved, got_on) = moves::carry_on(turn, step, &mut course).await;
                    (None, Some((moved, course, got_on)))
                }
                Step::CopyFunctions(step) => {
                    let copied = functions::copy(&*engine.fleet, step, seen, logins, fence).await;
                    (Some(copied), None)
                }
                Step::HandOver(step) => {
                    let handed = handover::conduct(&*engine.fleet, step, seen, logins, fence).await;
                    (Some(handed), None)
                }
                Step::SwitchOver(step) => {
                    let switched = handover::switch(&*engine.fleet, step, seen, logins, fence);
                    (Some(switched.await), None)
                }
                step => (Some(apply(&*engine.fleet, step, seen, logins, fence).await), None),
            }
        });
        let mut outcomes = Vec::new();
        for (step, carried) in due.iter().zip(join_all(carried).await) {
            let (moved, course, got_on) = match carried {
                (Some(outcome), _) => {
                    outcomes.push(outcome);
                    continue;
                }
                (None, Some(moved)) => moved,
                (None, None) => continue,
            };
            self.courses.insert(step.action().key(), (course, got_on));
            if let Step::MoveSlots(step) = step {
                self.note(engine, plan, step, &moved).await?;
            }
            outcomes.push(moved.fault.map_or(Ok(None), Err));
        }
        Ok(outcomes)
    }

    /// Big keys: those that have moved are told, and those that nobody accepted become hazards.
    async fn note(
        &self,
        engine: &Engine,
        plan: &Plan,
        step: &MoveSlots,
        moved: &Moved,
    ) -> Result<(), KeepError> {
        let held = self.lease.held;
        if !moved.stalls.is_empty() {
            let events: Vec<NewEvent> = moved.stalls.iter().map(|s| told(plan, step, s)).collect();
            engine.store.record_events(held, &events).await?;
        }
        if !moved.held.is_empty() {
            let mut terms = plan.terms.clone();
            let known = |key: &BigKey| (key.slot, key.key.clone());
            let newer: BTreeSet<_> = moved.held.iter().map(known).collect();
            terms.moving.big.retain(|key| !newer.contains(&known(key)));
            terms.moving.big.extend(moved.held.iter().cloned());
            let step = MoveSlots { big: moved.held.clone(), ..step.clone() };
            engine.store.record_terms(held, plan, &terms, &step.hazards()).await?;
        }
        Ok(())
    }

    async fn waits_for(
        &mut self,
        engine: &Engine,
        plan: &Plan,
        waiting_for: Option<WaitingFor>,
    ) -> Result<(), KeepError> {
        // What a plan that winds down waits for is told by what was asked of it.
        if plan.waiting_for != waiting_for && !is_winding_down(plan) {
            engine.store.set_waiting(self.lease.held, plan.id, waiting_for).await?;
        }
        Ok(())
    }

    async fn tell(
        &mut self,
        engine: &Engine,
        plan: &Plan,
        step: &Step,
        wait: &Wait,
    ) -> Result<(), KeepError> {
        // What moves slots and has to wait is as far as it was.
        let course = self.courses.get(&step.action().key()).and_then(|(c, _)| c.progress.as_ref());
        let moved = course.map(|p| Progress { eta_seconds: None, ..p.clone() });
        let progress = moved.unwrap_or_else(|| Progress {
            done: wait.done as u64,
            total: wait.total as u64,
            unit: "nodes".to_owned(),
            rate_per_second: None,
            eta_seconds: None,
        });
        let told = StepProgress {
            kind: "progress",
            plan: Some(plan.id),
            step: step.action().key(),
            steps_done: plan.steps_done,
            steps_total: plan.steps_total,
            progress,
            note: Some(wait.why.clone()),
        };
        let fresh = self.told.as_ref().is_none_or(|(at, last)| {
            at.elapsed() >= TELL_AT_MOST && (*last != told || at.elapsed() >= TELL_AT_MOST * 8)
        });
        if fresh {
            engine
                .store
                .record_progress(self.lease.held, plan.id, &told.step, &told.progress)
                .await?;
            engine.hub.tell_progress(told.clone());
            self.told = Some((Instant::now(), told));
        }
        Ok(())
    }

    /// Tells of moves that wait while others go on.
    async fn tell_held_up(
        &mut self,
        engine: &Engine,
        plan: &Plan,
        seen: &Observation,
        acting: &[Step],
    ) -> Result<(), KeepError> {
        let begun = self.begun.values().filter(|s| s.moves().is_some() && !acting.contains(s));
        let wait = |step: &Step| match step.action().check(seen) {
            Check::Waiting(wait) => Some((step.clone(), wait)),
            Check::Done | Check::Ready | Check::Blocked(_) => None,
        };
        match begun.filter_map(wait).next() {
            Some((step, wait)) => self.tell(engine, plan, &step, &wait).await,
            None => Ok(()),
        }
    }

    /// Decides that the plan fails. What it left on nodes is taken away first; then it ends.
    async fn doom(
        &mut self,
        engine: &Engine,
        plan: &Plan,
        step: Option<&Step>,
        error: PlanError,
    ) -> Result<(), KeepError> {
        // While winding down there is nothing to fail for: what cannot be taken away now stays
        // marked, and the plan ends as it was going to.
        if is_winding_down(plan) {
            return self.finish(engine, plan, None).await;
        }
        let event = step.map(|step| {
            NewEvent::new(
                EventType::PlanStepFailed,
                serde_json::json!({ "step": step.action().key(), "kind": step.kind(),
                    "error": error, "final": true }),
            )
            .of_plan(plan.id)
            .by("reeve")
        });
        let events: Vec<_> = event.into_iter().collect();
        engine.store.doom_plan(self.lease.held, plan, &error, &events).await?;
        self.begun.clear();
        self.tries.clear();
        self.moved();
        Ok(())
    }

    /// Nothing is left to do: the plan ends, or pauses, as was asked. What succeeded otherwise than it
    /// was meant says so.
    async fn finish(
        &mut self,
        engine: &Engine,
        plan: &Plan,
        warning: Option<Warning>,
    ) -> Result<(), KeepError> {
        let mut to = match (&plan.error, plan.requested) {
            (Some(error), _) => {
                let mut to = Move::to(PlanState::Failed, EventType::PlanFailed);
                to.data = serde_json::json!({ "error": error });
                to
            }
            (None, Some(Requested::Cancel)) => {
                Move::to(PlanState::Cancelled, EventType::PlanCancelled)
            }
            (None, Some(Requested::Supersede)) => {
                Move::to(PlanState::Superseded, EventType::PlanSuperseded)
            }
            (None, Some(Requested::Pause)) => {
                let waiting_for = match plan.waiting_for {
                    Some(WaitingFor::Preempted) => WaitingFor::Preempted,
                    Some(WaitingFor::Consent) => WaitingFor::Consent,
                    Some(_) | None => WaitingFor::Operator,
                };
                let mut to = Move::to(PlanState::Paused, EventType::PlanPaused);
                to.waiting_for = Some(waiting_for);
                to.data = serde_json::json!({ "waiting_for": waiting_for });
                to
            }
            (None, None) => {
                let mut to = Move::to(PlanState::Succeeded, EventType::PlanSucceeded);
                if let Some(warning) = &warning {
                    to.data = serde_json::json!({ "warnings": [warning] });
                }
                to.warning = warning;
                to
            }
        };
        if to.state.is_final() {
            let marks = engine.store.marks(plan.topology_id).await?;
            // A shard rests longer than its plan.
            let left = marks.iter().filter(|m| !matches!(m.what, MarkKind::Hold(_))).count();
            to.data["marks_left"] = left.into();
        }
        engine.store.move_plan(Some(self.lease.held), plan, &to, "reeve").await?;
        metrics::counter!("reeve_plans_total", "kind" => plan.intent.kind(), "state" => to.state.as_str())
            .increment(1);
        Ok(())
    }
}

/// A big key that has moved, with what was foretold and what it took.
fn told(plan: &Plan, step: &MoveSlots, Stall { key, actual_ms }: &Stall) -> NewEvent {
    let data = serde_json::json!({
        "step": step.key(), "slot": key.slot, "key": key.key, "bytes": key.bytes,
        "expected_ms": key.expected_ms, "actual_ms": actual_ms,
    });
    NewEvent::new(EventType::PlanBigKeyMoved, data).of_plan(plan.id).by("reeve")
}

fn are(nodes: &[String]) -> String {
    match nodes {
        [one] => format!("{one} is"),
        several => format!("{} are", several.join(", ")),
    }
}

/// When the nodes of a round were asked, and had answered or not.
fn glances(asked: Timestamp, ended: Timestamp, seen: &Observation) -> BTreeMap<Address, Glance> {
    let glance = |node| {
        let ended = seen.report(node).map_or(ended, |report| report.observed_at);
        Glance { asked, ended, late: false }
    };
    seen.nodes.keys().map(|node| (node.clone(), glance(node))).collect()
}

fn fence(held: Held) -> Fence {
    Fence { topology: held.topology, token: held.token }
}

/// Whether the plan goes on only to take away what it left on nodes.
pub(super) fn is_winding_down(plan: &Plan) -> bool {
    plan.requested.is_some() || plan.error.is_some()
}

/// Whether a node that carries marks only missed a look: it is waited for until it is surely down.
fn is_patient(watch: &Watch, seen: &Observation) -> bool {
    let missing = |node| seen.report(node).is_none();
    let down = |node| watch.health.health.get(node) == Some(&Health::Down);
    let ours = |node| seen.nodes.contains_key(node);
    seen.marks.iter().any(|m| ours(&m.node) && missing(&m.node) && !down(&m.node))
}

/// Ends a plan whose nodes nobody can log in to any more: what it left on them stays marked.
pub(super) async fn end_locked_out(
    engine: &Engine,
    held: Held,
    plan: &Plan,
    why: &LoginError,
) -> Result<(), StoreError> {
    let error = PlanError {
        code: "secret_key_missing".to_owned(),
        message: why.to_string(),
        node: None,
        recovery: "Start Reeve with the REEVE_SECRET_KEY that sealed the credential, or store the credential again under its name; then retry the plan.".to_owned(),
    };
    let (state, event) = match plan.requested {
        Some(Requested::Cancel) => (PlanState::Cancelled, EventType::PlanCancelled),
        Some(Requested::Pause | Requested::Supersede) | None => {
            (PlanState::Failed, EventType::PlanFailed)
        }
    };
    let mut to = Move::to(state, event);
    to.data = serde_json::json!({ "error": error });
    to.error = Some(error);
    engine.store.move_plan(Some(held), plan, &to, "reeve").await
}
