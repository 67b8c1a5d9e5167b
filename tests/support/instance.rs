//! An instance of Reeve within the test: the engine, and a keeper that the test has take its turns.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reeve::clock;
use reeve::domain::hazard::Ceiling;
use reeve::domain::id::InstanceId;
use reeve::domain::policy::Policy;
use reeve::domain::receiver::Allowed;
use reeve::engine::courier::Caller;
use reeve::engine::desk::PlanOptions;
use reeve::engine::keeper::Keeper;
use reeve::engine::lease::Lease;
use reeve::engine::{Engine, Options};
use reeve::fleet::Fleet;
use reeve::fleet::sim::SimOptions;
use reeve::store::Store;
use reeve::store::leases::Instance;

/// A lease that no case outlives; who dies has it expire.
pub const TTL: Duration = Duration::from_secs(600);

pub async fn keeper(engine: &Arc<Engine>, store: &Store) -> Result<Keeper, String> {
    let taken = store.take(engine.me.id, 1, TTL).await.map_err(told)?;
    let held = *taken.first().ok_or("no lease to take")?;
    let lease = Arc::new(Lease::new(held, Instant::now(), TTL));
    Ok(Keeper::new(engine.clone(), lease))
}

/// An error with what caused it.
pub fn told(error: impl std::error::Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(told, ": {error}");
        cause = error.source();
    }
    told
}

/// A shard rests for four times the node timeout after a failover, and every poll of that is a turn.
pub fn options_of_nodes(cluster: bool) -> SimOptions {
    let options = SimOptions { cluster, ..SimOptions::default() };
    options.with("cluster-node-timeout", "5000")
}

pub fn policy() -> Policy {
    Policy { backoff_base_ms: 1, ..Policy::default() }
}

pub fn engine(store: &Store, fleet: Arc<dyn Fleet>) -> Arc<Engine> {
    let me = Instance {
        id: InstanceId(clock::new_id()),
        host: "sweep".to_owned(),
        pid: 1,
        listen: "-".to_owned(),
        version: "-".to_owned(),
    };
    let options = Options {
        me,
        policy: policy(),
        watch_interval: Duration::from_millis(250),
        lease_ttl: TTL,
        commands_within: Duration::from_secs(1),
        secret_key: None,
        caller: Caller::new(Allowed::default()).unwrap(),
    };
    Engine::new(store.clone(), fleet, options)
}

pub fn options(accept: BTreeSet<String>) -> PlanOptions {
    PlanOptions {
        start: true,
        accept_hazard: Ceiling::Outage,
        accept,
        expect_fingerprint: None,
        supersede: false,
        thorough: false,
        reason: None,
    }
}

pub fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}
