//! A simulated fleet: servers that take the same commands as real ones and do with them what real
//! ones do, in virtual time, the same in every run of one seed; and faults on the way to them.
//!
//! It knows commands, not effects: no code here asks what a plan wants. The contract in
//! `tests/it/contract.rs` holds it and real servers to the same assertions, so that it cannot
//! promise what they do not keep.
//!
//! Time passes with every call and with [`SimFleet::advance`], and in no other way.

mod bus;
mod calls;
mod clients;
mod dice;
mod election;
mod exchange;
mod failover;
mod functions;
mod handover;
mod jobs;
mod keys;
mod migrate;
mod packet;
mod port;
mod report;
mod sentinel;
mod server;
mod settings;
mod slots;
mod switching;
mod sync;
mod table;
mod verbs;
mod watching;
mod world;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

pub use self::calls::{CallFault, CallOutcome, CallRecord, LookFault, Sent};
pub use self::clients::Holding;
pub use self::verbs::Refusal;
use self::world::{START, World};
use crate::domain::node::{Address, Flavor, Version};

/// The simulation, as one process that uses it sees it.
#[derive(Debug)]
pub struct SimFleet {
    world: Arc<Mutex<World>>,
    process: u64,
    deaths: watch::Sender<u64>,
}

/// What kind of server to add.
#[derive(Debug, Clone)]
pub struct SimOptions {
    pub flavor: Flavor,
    pub version: Version,
    pub cluster: bool,
    /// Whether it is a Sentinel, which keeps no data.
    pub sentinel: bool,
    /// Settings that its config file gives it.
    pub config: BTreeMap<String, String>,
    /// Whether it has a config file that it can rewrite.
    pub config_file: bool,
    /// For how long it has been running.
    pub uptime_ms: u64,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            flavor: Flavor::Redis,
            version: Version::new(7, 0, 15),
            cluster: true,
            sentinel: false,
            config: BTreeMap::new(),
            config_file: true,
            uptime_ms: 60_000,
        }
    }
}

impl SimOptions {
    #[must_use]
    pub fn of(flavor: Flavor, version: Version) -> Self {
        Self { flavor, version, ..Self::default() }
    }

    /// A Sentinel.
    #[must_use]
    pub fn watching(flavor: Flavor, version: Version) -> Self {
        Self { cluster: false, sentinel: true, ..Self::of(flavor, version) }
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.config.insert(name.to_owned(), value.to_owned());
        self
    }
}

/// What a server that starts again finds on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    Everything,
    /// `nodes.conf`, and no keys: as with `save ""`.
    ClusterOnly,
    Nothing,
}

impl SimFleet {
    #[must_use]
    pub fn new(seed: u64) -> Arc<Self> {
        let mut world = World::new(seed);
        (world.calls.ms_per_call, world.calls.timeout_ms) = (5, 1000);
        Arc::new(Self::of(Arc::new(Mutex::new(world)), 0))
    }

    fn of(world: Arc<Mutex<World>>, process: u64) -> Self {
        Self { world, process, deaths: watch::Sender::new(0) }
    }

    /// The same servers as another process reaches them, over connections of its own.
    #[must_use]
    pub fn another_process(&self, process: u64) -> Arc<Self> {
        Arc::new(Self::of(self.world.clone(), process))
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much virtual time a call takes, and how long one waits that gets no answer.
    pub fn set_timing(&self, ms_per_call: u64, timeout_ms: u64) {
        let mut world = self.lock();
        (world.calls.ms_per_call, world.calls.timeout_ms) = (ms_per_call, timeout_ms);
    }

    pub fn add_node(&self, address: &Address, options: &SimOptions) {
        self.lock().add(address.clone(), options);
    }

    pub fn advance(&self, ms: u64) {
        self.lock().advance(ms);
    }

    /// Virtual time since the beginning.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.lock().elapsed()
    }

    /// Stops a node as `SIGSTOP` does: connections to it stay, and nothing answers.
    pub fn freeze(&self, node: &Address) {
        self.lock().freeze(node);
    }

    /// What was sent to it before runs first.
    pub fn thaw(&self, node: &Address) {
        self.lock().thaw(node);
    }

    /// Ends a node as a crash does.
    pub fn kill(&self, node: &Address) {
        self.lock().kill(node);
    }

    pub fn restart(&self, node: &Address, keep: Keep) {
        self.lock().restart(node, keep);
    }

    /// Lets every call to a node take this much longer; beyond the time-out it does not answer.
    pub fn slow(&self, node: &Address, ms: u64) {
        if let Some(server) = self.lock().servers.get_mut(node) {
            server.slow_ms = ms;
        }
    }

    /// Orders a fault for the command with that index (see [`CallRecord::index`]); it happens once.
    pub fn fault_at(&self, index: u64, fault: CallFault) {
        self.lock().calls.faults.insert(index, fault);
    }

    /// The same for looks, which are counted by themselves.
    pub fn look_fault_at(&self, index: u64, fault: LookFault) {
        self.lock().calls.look_faults.insert(index, fault);
    }

    /// Lets a replica of the shard that a node is in take over, by force, just before the command with
    /// that index.
    pub fn take_over_at(&self, index: u64, member: &Address) {
        self.lock().calls.takeovers.insert(index, member.clone());
    }

    /// When the last failover that was ordered so was over, if there was one.
    #[must_use]
    pub fn taken_over_ms(&self) -> Option<u64> {
        let world = self.lock();
        world.calls.taken_over_at.map(|at| at - START)
    }

    /// Takes back the faults that were ordered and did not happen yet.
    pub fn no_more_faults(&self) {
        let mut world = self.lock();
        world.calls.faults.clear();
        world.calls.look_faults.clear();
        world.calls.takeovers.clear();
    }

    /// Every command that was sent, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<CallRecord> {
        self.lock().calls.records.clone()
    }

    /// How many commands were sent: the index of the next one.
    #[must_use]
    pub fn commands(&self) -> u64 {
        self.lock().calls.records.len() as u64
    }

    /// How many looks there were.
    #[must_use]
    pub fn looks(&self) -> u64 {
        self.lock().calls.looks
    }

    /// The nodes that any command was sent to.
    #[must_use]
    pub fn touched(&self) -> BTreeSet<Address> {
        self.lock().calls.records.iter().map(|record| record.node.clone()).collect()
    }

    /// Counts how often a fault ended this process. From then on its calls never resolve, until
    /// [`process_restart`](Self::process_restart).
    #[must_use]
    pub fn died(&self) -> watch::Receiver<u64> {
        self.deaths.subscribe()
    }

    /// This process ended, if it had not yet, and is there again: its connections are closed and
    /// what it had lost is forgotten; commands on their way still run.
    pub fn process_restart(&self) {
        let mut world = self.lock();
        world.calls.process_ended(self.process);
        world.calls.dead.remove(&self.process);
    }
}
