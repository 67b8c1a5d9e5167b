//! Which topologies this instance keeps: leases are taken, renewed, shared fairly and handed over.
//!
//! Postgres decides who holds a lease. What is here is a memory of it, which may be wrong in one
//! direction only: [`Lease::lasts`] never says that a lease lasts longer than the database does.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Engine, keeper};
use crate::store::StoreError;
use crate::store::leases::{Beat, Held};

/// How often leases are looked after: often enough that two renewals may fail.
const PARTS_OF_TTL: u32 = 3;
/// And this often at least, so that what nobody holds is taken soon.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// A process that was held up for this long between a check and what follows is not noticed.
const MARGIN: Duration = Duration::from_millis(200);

/// A lease in this process's hands.
#[derive(Debug)]
pub struct Lease {
    pub held: Held,
    /// Ends its keeper after the turn in hand: it is lost, or to be handed over.
    pub over: CancellationToken,
    /// Whether a plan is being carried out.
    pub busy: AtomicBool,
    /// Until when it surely lasts. This clock goes on while the process is frozen.
    until: Mutex<Instant>,
    bell: Notify,
}

impl Lease {
    /// A lease that was asked for at `asked` and granted for `ttl`.
    #[must_use]
    pub fn new(held: Held, asked: Instant, ttl: Duration) -> Self {
        Self {
            held,
            over: CancellationToken::new(),
            busy: AtomicBool::new(false),
            until: Mutex::new(asked + ttl),
            bell: Notify::new(),
        }
    }

    /// Whether it surely lasts for another `time`.
    #[must_use]
    pub fn lasts(&self, time: Duration) -> bool {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        !self.over.is_cancelled() && Instant::now() + time + MARGIN < until
    }

    /// The database stretched it by `time` from a moment after `asked`.
    pub fn stretched(&self, asked: Instant, time: Duration) {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = (*until).max(asked + time);
    }

    /// Has the topology looked at now.
    pub fn ring(&self) {
        self.bell.notify_one();
    }

    pub(super) async fn rung(&self) {
        self.bell.notified().await;
    }
}

/// Looks after this instance's leases until it is to stop; then lets others know that it goes.
pub(super) async fn tend(engine: Arc<Engine>, stop: CancellationToken, tasks: TaskTracker) {
    let period = (engine.lease_ttl / PARTS_OF_TTL).min(LOOK_AFTER);
    while !stop.is_cancelled() {
        match engine.tend_once().await {
            Ok(taken) => {
                for lease in taken {
                    tasks.spawn(keeper::keep(engine.clone(), lease, stop.clone()));
                }
            }
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "leases cannot be looked after"
            ),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = engine.arrivals.notified() => {}
            () = tokio::time::sleep(period) => {}
        }
    }
    if let Err(error) = engine.store.leave(engine.me.id).await {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot say that it leaves");
    }
}

impl Engine {
    /// One round: says that it lives, renews what it holds, takes or hands over what is due to be.
    /// Returns the leases that it took.
    pub async fn tend_once(&self) -> Result<Vec<Arc<Lease>>, StoreError> {
        let ttl = self.lease_ttl;
        let beat = self.store.beat(&self.me, ttl).await?;
        self.notice_restore(beat.newest_event).await?;
        self.eldest.store(beat.eldest, Ordering::Relaxed);

        let mine = self.leases();
        if !mine.is_empty() {
            let asked = Instant::now();
            let held: Vec<Held> = mine.iter().map(|l| l.held).collect();
            let renewed = self.store.renew(self.me.id, &held, ttl).await?;
            let renewed: HashSet<Held> = renewed.into_iter().collect();
            for lease in &mine {
                if renewed.contains(&lease.held) {
                    lease.stretched(asked, ttl);
                } else {
                    tracing::warn!(topology = %lease.held.topology, "lost the lease");
                    self.let_go(lease);
                }
            }
        }

        let mut mine = self.leases();
        mine.retain(|lease| !lease.over.is_cancelled());
        let share = share(&beat);
        let mut taken = Vec::new();
        if mine.len() > share {
            // Idle ones go first: a plan that is handed over has to look again.
            mine.sort_by_key(|lease| !lease.busy.load(Ordering::Relaxed));
            for lease in mine.drain(share..) {
                lease.over.cancel();
            }
        } else if mine.len() < share {
            let asked = Instant::now();
            let room = i64::try_from(share - mine.len()).unwrap_or(i64::MAX);
            for held in self.store.take(self.me.id, room, ttl).await? {
                let lease = Arc::new(Lease::new(held, asked, ttl));
                self.hold(&lease);
                taken.push(lease);
            }
        }
        metrics::gauge!("reeve_leases_held").set(self.leases().len() as f64);
        Ok(taken)
    }
}

/// How many topologies an instance may keep. Rounded up, so that none waits for an instance that may
/// be gone; but while somebody is left without its part, rounded down.
fn share(beat: &Beat) -> usize {
    let instances = beat.instances.max(1);
    let least = beat.topologies / instances;
    let left_out = beat.poorest.is_some_and(|poorest| poorest < least);
    let most = (beat.topologies + instances - 1) / instances;
    usize::try_from(if left_out { least } else { most }).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_left_without_its_part() {
        let share = |topologies, instances, poorest| {
            share(&Beat { instances, topologies, poorest, eldest: true, newest_event: 0 })
        };
        assert_eq!(share(4, 1, None), 4);
        assert_eq!(share(4, 2, Some(2)), 2);
        assert_eq!(share(5, 2, Some(2)), 3);
        assert_eq!(share(1, 2, Some(0)), 1);
        assert_eq!((share(4, 3, Some(0)), share(4, 3, Some(1))), (1, 2));
        assert_eq!(share(0, 3, Some(0)), 0);
    }
}
