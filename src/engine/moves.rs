//! Steps that move slots, within a plan's turn: they are carried on for a while, side by side, and
//! tell how far they have come.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Engine;
use super::hub::StepProgress;
use super::lease::Lease;
use super::look::{Logins, target};
use super::mover::{self, Job, Moved, Reins, Side, Tally};
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{Observation, Role};
use crate::domain::plan::{Plan, Progress};
use crate::domain::step::Action;
use crate::domain::step::pressure::room;
use crate::domain::step::slots::{End, MoveSlots};
use crate::fleet::{Fence, Target};

/// For how long slots are moved before everything is looked at again: as often as a topology is
/// watched.
const STRETCH: Duration = Duration::from_secs(1);
/// Progress is told this often.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// What one plan has moved so far, for progress alone.
#[derive(Debug, Default)]
pub(super) struct Course {
    began: Option<Instant>,
    slots: u64,
    keys: u64,
    /// What was told last.
    pub progress: Option<Progress>,
}

/// What a turn knows.
pub(super) struct Turn<'a> {
    pub engine: &'a Engine,
    pub plan: &'a Plan,
    pub lease: &'a Lease,
    pub seen: &'a Observation,
    pub logins: &'a Logins,
    pub fence: Fence,
    /// Has all moves of the turn stop when one of them is through.
    pub halt: &'a AtomicBool,
}

/// How long a stretch of a step may take at most.
pub(super) fn patience(step: &MoveSlots) -> Duration {
    let worst = step.big.iter().map(|b| b.expected_ms).max().unwrap_or(0);
    // The last batch may begin when all of the time has passed.
    STRETCH + mover::GRACE + Duration::from_millis(worst.saturating_mul(4)) + mover::PATIENCE
}

/// Carries a step on, and says what came of it and whether it got anywhere.
pub(super) async fn carry_on(
    turn: &Turn<'_>,
    step: &MoveSlots,
    course: &mut Course,
) -> (Moved, bool) {
    let tally = Tally::default();
    let job = job(turn, step);
    let until = Instant::now() + STRETCH;
    let reins = Reins { lease: turn.lease, until, halt: turn.halt };
    let began = *course.began.get_or_insert_with(Instant::now);
    let mut moving = Box::pin(mover::carry(&job, &reins, &tally));
    let moved = loop {
        tokio::select! {
            moved = &mut moving => break moved,
            () = tokio::time::sleep(TELL_EVERY) => {
                let told = turn.tell(step, &course.with(&tally), &tally, began).await;
                course.progress = Some(told);
            }
        }
    };
    drop(moving);
    let after = course.with(&tally);
    let progressed = moved.goes_on || (after.slots, after.keys) != (course.slots, course.keys);
    if progressed {
        course.progress = Some(turn.tell(step, &after, &tally, began).await);
    }
    (course.slots, course.keys) = (after.slots, after.keys);
    // Another pair may be waiting for one of these nodes.
    turn.halt.store(true, Ordering::Relaxed);
    (moved, progressed)
}

fn job<'a>(turn: &'a Turn<'a>, step: &'a MoveSlots) -> Job<'a> {
    let seen = turn.seen;
    let side = |address: &Address, id: &ClusterNodeId| Side {
        target: Target { fence: Some(turn.fence), ..target(address, turn.logins) },
        id: id.clone(),
    };
    let ends = [&step.from, &step.to];
    let views = ends.iter().filter_map(|end| seen.view(&end.address));
    let open = views.flat_map(|v| &v.open).map(|o| o.slot);
    let open: BTreeSet<u16> = open.filter(|slot| step.slots.contains(*slot)).collect();
    let shown = |id: &ClusterNodeId| {
        let peer = seen.view(&step.to.address).and_then(|v| v.peers.get(id));
        peer.map(|p| p.slots.clone()).unwrap_or_default()
    };
    let known = shown(&step.from.id).union(&shown(&step.to.id));
    let primary = |a: &&Address| {
        seen.report(a).is_some_and(|r| r.role == Role::Primary)
            && ends.iter().all(|e| e.address != **a)
    };
    let knows = |a: &&Address| seen.view(a).filter(|v| v.peers.contains_key(&step.to.id));
    let others = seen.nodes.keys().filter(primary);
    let others = others.filter_map(|a| Some(side(a, &knows(&a)?.my_id))).collect();
    let held = seen.view(&step.from.address).map(|v| v.my_slots()).unwrap_or_default();
    let End { address, id } = &step.to;
    let peer = seen.view(&step.from.address).and_then(|v| v.peers.get(id));
    Job {
        fleet: &*turn.engine.fleet,
        source: side(&step.from.address, &step.from.id),
        target: side(address, id),
        receiver: peer.and_then(|p| p.address.clone()).unwrap_or_else(|| address.clone()),
        others,
        slots: step.left(seen),
        all: held.difference(&step.slots).is_empty(),
        open,
        estranged: step.left(seen).difference(&known).iter().collect(),
        max_latency_ms: step.max_latency_ms,
        big: &step.big,
        small: turn.engine.surveyed.of(&step.from.id),
        how: step.how,
        together: step.together(seen),
        free_stall_ms: turn.engine.policy.free_pause_ms,
        room: seen.report(address).and_then(|r| room(&r.memory)),
    }
}

impl Course {
    fn with(&self, tally: &Tally) -> Self {
        Self {
            began: self.began,
            slots: self.slots + tally.slots.load(Ordering::Relaxed),
            keys: self.keys + tally.keys.load(Ordering::Relaxed),
            progress: None,
        }
    }
}

impl Turn<'_> {
    async fn tell(
        &self,
        step: &MoveSlots,
        so_far: &Course,
        tally: &Tally,
        began: Instant,
    ) -> Progress {
        let keys_left = tally.keys_left.load(Ordering::Relaxed);
        let slots_left = (step.left(self.seen).count() as u64)
            .saturating_sub(tally.slots.load(Ordering::Relaxed));
        let (done, left, unit) = if so_far.keys + keys_left > 0 {
            (so_far.keys, keys_left, "keys")
        } else {
            (so_far.slots, slots_left, "slots")
        };
        let seconds = began.elapsed().as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let rate = done as f64 / seconds;
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let eta = (rate > 0.0).then(|| left as f64 / rate);
        let progress = Progress {
            done,
            total: done + left,
            unit: unit.to_owned(),
            rate_per_second: Some(rate),
            eta_seconds: eta,
        };
        let (held, plan) = (self.lease.held, self.plan);
        let told = StepProgress {
            kind: "progress",
            plan: Some(plan.id),
            step: step.key(),
            steps_done: plan.steps_done,
            steps_total: plan.steps_total,
            progress: progress.clone(),
            note: None,
        };
        // Progress is never needed: while the database is away, nobody is told.
        let stored =
            self.engine.store.record_progress(held, plan.id, &told.step, &told.progress).await;
        if let Err(error) = stored {
            tracing::debug!(error = &error as &dyn std::error::Error, "progress is not stored");
        }
        self.engine.hub.tell_progress(told);
        progress
    }
}
