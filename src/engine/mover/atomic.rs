//! Slots that the server moves as a whole: Reeve asks for it and waits. With Valkey 9 it is the source
//! that is asked, with Redis 8.4 the target.
//!
//! A job goes on by itself when nobody watches it, and ends with all of its slots at the target or
//! none. So whoever takes over finds it running, or over, and asks again only in the second case.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Job, Reins, Side, Tally, side};
use crate::domain::fault::{Fault, SLOT_JOB_FAILED};
use crate::domain::moving::talk::{Answer, JobState, Lane, Saying, SlotJob};
use crate::domain::node::MovedBy;
use crate::domain::slot::SlotSet;

/// How often the server is asked how far it is.
const POLL: Duration = Duration::from_millis(20);

/// Has the job's slots moved by one of its ends; says whether that still goes on.
pub(super) async fn carry(
    job: &Job<'_>,
    by: MovedBy,
    reins: &Reins<'_>,
    tally: &Tally,
) -> Result<bool, Fault> {
    let mover = Atomic { job, by };
    // What ended before is no news.
    let before = mover.jobs().await?;
    if !before.iter().any(|j| mover.goes_on(j)) {
        mover.begin().await?;
    }
    loop {
        tokio::time::sleep(POLL).await;
        let now = mover.jobs().await?;
        let retried = now.iter().find(|j| mover.goes_on(j) && j.state == JobState::Failed);
        if let Some(retried) = retried {
            // The server would try for ever; how often is for the plan to say.
            mover.cancel(retried).await?;
            return Err(mover.failed(retried));
        }
        if !now.iter().any(|j| mover.goes_on(j)) {
            let ended =
                |j: &&SlotJob| !before.iter().any(|b| b.name == j.name && b.state == j.state);
            return match now.iter().find(ended) {
                Some(j) if j.state != JobState::Succeeded => Err(mover.failed(j)),
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

struct Atomic<'a> {
    job: &'a Job<'a>,
    by: MovedBy,
}

impl Atomic<'_> {
    fn side(&self) -> &Side {
        match self.by {
            MovedBy::Source => &self.job.source,
            MovedBy::Target => &self.job.target,
        }
    }

    fn goes_on(&self, job: &SlotJob) -> bool {
        job.state == JobState::Running
            || (self.by == MovedBy::Target && job.state == JobState::Failed)
    }

    async fn begin(&self) -> Result<(), Fault> {
        let slots = self.job.slots.clone();
        let asked = match self.by {
            MovedBy::Source => Saying::MigrateSlots { slots, to: self.job.target.id.clone() },
            MovedBy::Target => Saying::ImportSlots { slots },
        };
        for answer in self.ask(asked).await? {
            self.side().done(answer)?;
        }
        Ok(())
    }

    async fn cancel(&self, job: &SlotJob) -> Result<(), Fault> {
        for answer in self.ask(Saying::CancelImport { name: job.name.clone() }).await? {
            self.side().number(answer)?;
        }
        Ok(())
    }

    /// The jobs that move some of these slots from one of the two ends to the other.
    async fn jobs(&self) -> Result<Vec<SlotJob>, Fault> {
        let asked = match self.by {
            MovedBy::Source => Saying::SlotJobs,
            MovedBy::Target => Saying::Imports,
        };
        let mut jobs = Vec::new();
        for answer in self.ask(asked).await? {
            match answer {
                Answer::Jobs(some) => jobs.extend(some),
                other => return Err(self.side().unexpected(other)),
            }
        }
        let gives = self.by == MovedBy::Source;
        let touches = |slots: &SlotSet| !slots.intersection(&self.job.slots).is_empty();
        jobs.retain(|j| j.giving == gives && touches(&j.slots));
        Ok(jobs)
    }

    async fn ask(&self, saying: Saying) -> Result<Vec<Answer>, Fault> {
        self.side().talk(self.job.fleet, Lane::Control, side::SHORT, &[saying]).await
    }

    fn failed(&self, job: &SlotJob) -> Fault {
        let why = format!("its slot migration {} ended: {}", job.name, job.message);
        Fault::new(SLOT_JOB_FAILED, why, &self.side().target.address)
    }
}
