//! What works in the background, and the desk where requests are handed in.
//!
//! - [`desk`] turns a request into a stored plan, or into a refusal.
//! - [`keeper`] is one task per topology: it looks, and hands what it saw to the plan in hand
//!   ([`run`]), which has the planner decide and [`apply`] carry out.
//! - [`watcher`] tells what a look changed: health, primaries, the past.
//! - [`hub`] wakes whoever follows the journal and passes progress on.
//!
//! Everything in memory here is a cache: a process that starts anew reads Postgres, looks at the
//! nodes, and goes on.

pub mod apply;
pub mod desk;
pub mod hub;
mod keeper;
pub mod look;
mod run;
mod verdict;
mod watcher;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::hub::Hub;
use crate::domain::id::TopologyId;
use crate::domain::observation::Observation;
use crate::domain::policy::Policy;
use crate::fleet::Fleet;
use crate::store::Store;
use crate::store::credentials::SecretKey;

/// What the background work and the desk share.
pub struct Engine {
    pub store: Store,
    pub fleet: Arc<dyn Fleet>,
    pub hub: Hub,
    pub policy: Policy,
    /// How often each topology is looked at while nothing is done to it.
    pub watch_interval: Duration,
    /// Without it, credentials can be neither stored nor used.
    pub secret_key: Option<SecretKey>,
    /// What was seen last, by topology.
    seen: RwLock<HashMap<TopologyId, Arc<Observation>>>,
    /// Wakes the keeper of a topology before its time.
    bells: Mutex<HashMap<TopologyId, Arc<Notify>>>,
    /// Wakes the supervisor, which starts keepers for new topologies.
    arrivals: Notify,
}

impl Engine {
    #[must_use]
    pub fn new(
        store: Store,
        fleet: Arc<dyn Fleet>,
        policy: Policy,
        watch_interval: Duration,
        secret_key: Option<SecretKey>,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            fleet,
            hub: Hub::new(),
            policy,
            watch_interval,
            secret_key,
            seen: RwLock::default(),
            bells: Mutex::default(),
            arrivals: Notify::new(),
        })
    }

    /// Starts everything that works in the background; `tasks` ends when it has stopped.
    pub fn start(self: &Arc<Self>, stop: &CancellationToken, tasks: &TaskTracker) {
        tasks.spawn(hub::listen(self.clone(), stop.clone()));
        tasks.spawn(watcher::watch_spares(self.clone(), stop.clone()));
        tasks.spawn(supervise(self.clone(), stop.clone(), tasks.clone()));
    }

    /// What was last seen of a topology by this process.
    #[must_use]
    pub fn last_seen(&self, topology: TopologyId) -> Option<Arc<Observation>> {
        self.seen.read().unwrap_or_else(PoisonError::into_inner).get(&topology).cloned()
    }

    fn remember(&self, topology: TopologyId, seen: Arc<Observation>) {
        self.seen.write().unwrap_or_else(PoisonError::into_inner).insert(topology, seen);
    }

    fn forget(&self, topology: TopologyId) {
        self.seen.write().unwrap_or_else(PoisonError::into_inner).remove(&topology);
        self.bells.lock().unwrap_or_else(PoisonError::into_inner).remove(&topology);
    }

    /// Has a topology looked at now, and a keeper started if it is new.
    pub fn ring(&self, topology: TopologyId) {
        let bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        match bells.get(&topology) {
            Some(bell) => bell.notify_one(),
            None => self.arrivals.notify_one(),
        }
    }

    /// The bell of a topology; `None` when its keeper is at work already.
    fn hang_bell(&self, topology: TopologyId) -> Option<Arc<Notify>> {
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        if bells.contains_key(&topology) {
            return None;
        }
        let bell = Arc::new(Notify::new());
        bells.insert(topology, bell.clone());
        Some(bell)
    }
}

/// Sees that every topology has its keeper. Postgres is asked each second; a ring only hurries.
async fn supervise(engine: Arc<Engine>, stop: CancellationToken, tasks: TaskTracker) {
    loop {
        match engine.store.topology_ids().await {
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "topologies cannot be listed"
            ),
            Ok(ids) => {
                for id in ids {
                    if let Some(bell) = engine.hang_bell(id) {
                        tasks.spawn(keeper::keep(engine.clone(), id, bell, stop.clone()));
                    }
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = engine.arrivals.notified() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}
