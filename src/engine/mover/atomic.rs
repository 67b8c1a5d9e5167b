//! Slots that the server moves as a whole (Valkey 9): Reeve asks for it and waits.
//!
//! A job goes on by itself when nobody watches it, and ends with all of its slots at the target or
//! none. So whoever takes over finds it running, or over, and asks again only in the second case.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Job, Reins, Tally, side};
use crate::domain::fault::{Fault, SLOT_JOB_FAILED};
use crate::domain::moving::talk::{Answer, JobState, Lane, Saying, SlotJob};
use crate::domain::slot::SlotSet;

/// How often the server is asked how far it is.
const POLL: Duration = Duration::from_millis(20);

/// Has the job's slots moved; says whether that still goes on.
pub(super) async fn carry(job: &Job<'_>, reins: &Reins<'_>, tally: &Tally) -> Result<bool, Fault> {
    let Job { source, target, .. } = job;
    // What ended before is no news.
    let before: Vec<SlotJob> = ours(job).await?;
    let running = |jobs: &[SlotJob]| jobs.iter().any(|j| j.state == JobState::Running);
    if !running(&before) {
        let (slots, to) = (job.slots.clone(), target.id.clone());
        let asked = [Saying::MigrateSlots { slots, to }];
        let answers = source.talk(job.fleet, Lane::Control, side::SHORT, &asked).await?;
        for answer in answers {
            source.done(answer)?;
        }
    }
    loop {
        tokio::time::sleep(POLL).await;
        let now = ours(job).await?;
        if !running(&now) {
            let ended =
                |j: &&SlotJob| !before.iter().any(|b| b.name == j.name && b.state == j.state);
            return match now.iter().find(ended) {
                Some(j) if j.state != JobState::Succeeded => {
                    let node = &source.target.address;
                    let why = format!("its slot migration {} ended: {}", j.name, j.message);
                    Err(Fault::new(SLOT_JOB_FAILED, why, node))
                }
                Some(_) | None => {
                    tally.slots.fetch_add(job.slots.count() as u64, Ordering::Relaxed);
                    Ok(false)
                }
            };
        }
        if !reins.loose(side::SHORT) {
            return Ok(true);
        }
    }
}

/// The jobs that give some of these slots away.
async fn ours(job: &Job<'_>) -> Result<Vec<SlotJob>, Fault> {
    let answers =
        job.source.talk(job.fleet, Lane::Control, side::SHORT, &[Saying::SlotJobs]).await?;
    let mut jobs = Vec::new();
    for answer in answers {
        match answer {
            Answer::Jobs(some) => jobs.extend(some),
            other => return Err(job.source.unexpected(other)),
        }
    }
    let touches = |slots: &SlotSet| !slots.intersection(&job.slots).is_empty();
    jobs.retain(|j| j.giving && touches(&j.slots));
    Ok(jobs)
}
