//! What works in the background, and the desk where requests are handed in.
//!
//! - [`desk`] turns a request into a stored plan, or into a refusal.
//! - [`lease`] sees that each topology is kept by one instance, and that the instances share them.
//! - [`keeper`] is one task per topology: it looks, and hands what it saw to the plan in hand
//!   ([`run`]), which has the planner decide and [`apply`] carry out.
//! - [`mover`] moves the slots of a step, for a while at a time; [`moves`] tells how far it is.
//! - [`finish`] has an old primary that comes back made a replica.
//! - [`handover`] conducts a change of primary outside of clusters, which is a matter of milliseconds.
//! - [`judge`] tells faults and risks as findings, while no plan is at work.
//! - [`restored`] notices that the database was put back to an older state.
//! - [`lookout`] looks at each node for itself; [`watcher`] tells what a look changed: health,
//!   failovers, the past.
//! - [`courier`] hands events to webhooks.
//! - [`hub`] listens to the database and passes progress on; [`tail`] reads what is new in the
//!   journal, once for all streams, and [`guests`] sees that no stream outlives its token.
//!
//! Everything in memory here is a cache: a process that starts anew reads Postgres, looks at the
//! nodes, and goes on.

pub mod apply;
pub mod courier;
pub mod desk;
mod ears;
mod finish;
mod functions;
mod gauges;
pub mod guests;
mod handover;
pub mod hub;
mod judge;
pub mod keeper;
pub mod lease;
pub mod look;
mod lookout;
mod mover;
mod moves;
mod restored;
mod run;
mod surveyed;
pub mod tail;
mod verdict;
mod watcher;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::courier::Caller;
use self::guests::Guests;
use self::hub::Hub;
use self::lease::Lease;
use self::restored::NewestEvent;
use self::surveyed::Surveyed;
use self::tail::Tail;
use crate::domain::id::TopologyId;
use crate::domain::observation::Observation;
use crate::domain::policy::Policy;
use crate::fleet::Fleet;
use crate::store::Store;
use crate::store::credentials::SecretKey;
use crate::store::leases::Instance;

/// What the background work and the desk share.
pub struct Engine {
    pub store: Store,
    pub fleet: Arc<dyn Fleet>,
    pub hub: Hub,
    pub tail: Tail,
    pub guests: Arc<Guests>,
    pub policy: Policy,
    /// How often each topology is looked at while nothing is done to it.
    pub watch_interval: Duration,
    /// Without it, credentials can be neither stored nor used.
    pub secret_key: Option<SecretKey>,
    /// Calls the endpoints of webhooks.
    pub caller: Caller,
    /// What was seen last, by topology.
    seen: RwLock<HashMap<TopologyId, Arc<Observation>>>,
    pub me: Instance,
    pub lease_ttl: Duration,
    /// How long the commands of one step may take; a lease covers them before they are sent.
    pub commands_within: Duration,
    /// What this instance holds now.
    leases: Mutex<HashMap<TopologyId, Arc<Lease>>>,
    /// Has leases looked after now, since there may be a new one to take.
    arrivals: Notify,
    /// Whether this instance is the one that watches spare nodes: of all, the one that is there for
    /// longest.
    eldest: AtomicBool,
    newest_event: NewestEvent,
    surveyed: Surveyed,
}

/// How the engine is to work.
#[derive(Debug, Clone)]
pub struct Options {
    pub me: Instance,
    pub policy: Policy,
    pub watch_interval: Duration,
    pub lease_ttl: Duration,
    pub commands_within: Duration,
    pub secret_key: Option<SecretKey>,
    pub caller: Caller,
}

impl Engine {
    #[must_use]
    pub fn new(store: Store, fleet: Arc<dyn Fleet>, options: Options) -> Arc<Self> {
        Arc::new(Self {
            store,
            fleet,
            hub: Hub::new(),
            surveyed: Surveyed::default(),
            tail: Tail::new(),
            guests: Arc::default(),
            policy: options.policy,
            watch_interval: options.watch_interval,
            secret_key: options.secret_key,
            caller: options.caller,
            seen: RwLock::default(),
            me: options.me,
            lease_ttl: options.lease_ttl,
            commands_within: options.commands_within,
            leases: Mutex::default(),
            arrivals: Notify::new(),
            eldest: AtomicBool::new(false),
            newest_event: NewestEvent::default(),
        })
    }

    /// Starts everything that works in the background; `tasks` ends when it has stopped.
    pub fn start(self: &Arc<Self>, stop: &CancellationToken, tasks: &TaskTracker) {
        tasks.spawn(hub::listen(self.clone(), stop.clone()));
        tasks.spawn(tail::run(self.clone(), stop.clone()));
        tasks.spawn(guests::watch(self.clone(), stop.clone()));
        tasks.spawn(watcher::watch_spares(self.clone(), stop.clone()));
        tasks.spawn(courier::run(self.clone(), stop.clone()));
        tasks.spawn(courier::keep_up(self.clone(), stop.clone()));
        tasks.spawn(lease::tend(self.clone(), stop.clone(), tasks.clone()));
    }

    /// What was last seen of a topology by this process, if it keeps it.
    #[must_use]
    pub fn last_seen(&self, topology: TopologyId) -> Option<Arc<Observation>> {
        self.seen.read().unwrap_or_else(PoisonError::into_inner).get(&topology).cloned()
    }

    fn remember(&self, topology: TopologyId, seen: Arc<Observation>) {
        self.seen.write().unwrap_or_else(PoisonError::into_inner).insert(topology, seen);
    }

    /// Has a topology looked at now, or taken if nobody keeps it yet.
    pub fn ring(&self, topology: TopologyId) {
        match self.leases.lock().unwrap_or_else(PoisonError::into_inner).get(&topology) {
            Some(lease) => lease.ring(),
            None => self.arrivals.notify_one(),
        }
    }

    fn leases(&self) -> Vec<Arc<Lease>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn hold(&self, lease: &Arc<Lease>) {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(older) = leases.insert(lease.held.topology, lease.clone()) {
            older.over.cancel();
        }
    }

    /// Ends the keeper of a lease and forgets what it saw, unless a newer lease took its place.
    fn let_go(&self, lease: &Lease) {
        lease.over.cancel();
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let topology = lease.held.topology;
        if leases.get(&topology).is_some_and(|l| l.held == lease.held) {
            leases.remove(&topology);
            self.seen.write().unwrap_or_else(PoisonError::into_inner).remove(&topology);
        }
    }
}
