//! An application that writes while slots move, and remembers what was acknowledged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;

use reeve::domain::moving::talk::{Answer, Lane, Saying};
use reeve::domain::node::Address;
use reeve::domain::slot::{SlotSet, key_slot};
use reeve::fleet::sim::SimFleet;
use reeve::fleet::{Fleet, FleetError, Talk};

use crate::support::shim::Shim;

/// For so long after a failover it looks for the new primary. Within a round trip of the failover no
/// mover can know of it, and what it has said to the target already may run: what the new primary
/// took meanwhile is lost then, as servers have it.
const LOOKS_AROUND_MS: u64 = 25;
/// New keys that it writes beside those that are there.
const NEW: usize = 40;

#[derive(Clone)]
pub struct Application {
    sim: Arc<SimFleet>,
    written: Arc<Mutex<Written>>,
}

#[derive(Default)]
struct Written {
    /// The number of the last acknowledged write of each key.
    acknowledged: BTreeMap<String, u64>,
    /// Those that it writes once more.
    busy_with: Vec<String>,
    turns: usize,
}

impl Application {
    pub fn new(sim: Arc<SimFleet>) -> Self {
        Self { sim, written: Arc::default() }
    }

    pub fn put(&self, key: &str) -> Result<(), String> {
        self.acknowledged(key, self.sim.put(key)?);
        Ok(())
    }

    /// The same on one node, outside of clusters.
    pub fn put_on(&self, node: &Address, key: &str) -> Result<(), String> {
        self.acknowledged(key, self.sim.put_on(node, key)?);
        Ok(())
    }

    fn acknowledged(&self, key: &str, number: u64) {
        self.written.lock().unwrap().acknowledged.insert(key.to_owned(), number);
    }

    /// Keys that are not as they were acknowledged.
    pub fn lost(&self) -> Vec<String> {
        let there = self.sim.surviving_values();
        let written = self.written.lock().unwrap();
        let lost = written.acknowledged.iter().filter(|(key, n)| there.get(*key) != Some(n));
        lost.map(|(key, n)| format!("{key} of write {n}: {:?}", there.get(key))).collect()
    }

    /// Keys that one node does not hold, outside of clusters: there each is written but once.
    pub fn lost_on(&self, node: &Address) -> Vec<String> {
        let there = self.sim.inspect(node).map(|held| held.keys).unwrap_or_default();
        self.keys().into_iter().filter(|key| !there.contains(key)).collect()
    }

    /// Keys that were acknowledged.
    pub fn keys(&self) -> Vec<String> {
        self.written.lock().unwrap().acknowledged.keys().cloned().collect()
    }

    /// From now on it writes to these slots.
    pub fn turn_to(&self, slots: &SlotSet) {
        let keys = self.keys().into_iter().filter(|key| slots.contains(key_slot(key.as_bytes())));
        self.written.lock().unwrap().busy_with = keys.collect();
    }

    /// Writes a key once more, or another one into its slot.
    fn write(&self) {
        let looks_around = |at| self.sim.now_ms() < at + LOOKS_AROUND_MS;
        if self.sim.taken_over_ms().is_some_and(looks_around) {
            return;
        }
        let key = {
            let mut written = self.written.lock().unwrap();
            let turn = written.turns;
            written.turns += 1;
            let at = turn % written.busy_with.len().max(1);
            let Some(key) = written.busy_with.get(at).cloned() else { return };
            let comes = turn % 3 == 2 && turn / 3 < NEW;
            if comes { format!("{{{key}}}:{turn}") } else { key }
        };
        // What is refused was not written.
        let _ = self.put(&key);
    }
}

/// A fleet whose nodes are written to between any two batches.
pub struct Busy {
    pub fleet: Arc<dyn Fleet>,
    pub application: Application,
}

impl Shim for Busy {
    fn behind(&self) -> &dyn Fleet {
        &*self.fleet
    }

    fn converse<'a>(
        &'a self,
        talk: &'a Talk<'a>,
        sayings: &'a [Saying],
    ) -> BoxFuture<'a, Result<Vec<Answer>, FleetError>> {
        if talk.lane != Lane::Probe {
            self.application.write();
        }
        self.fleet.converse(talk, sayings)
    }
}
