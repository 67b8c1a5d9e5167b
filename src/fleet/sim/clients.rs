//! The simulation seen by those who keep data in it: writing keys, and finding out whether they are
//! still there.

use std::collections::{BTreeMap, BTreeSet};

use super::SimFleet;
use super::calls::HELD_MS;
use super::server::{Change, Life, Server};
use super::world::World;
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::slot::{SlotSet, key_slot};

/// How often a client lets itself be sent on.
const MOVES: usize = 5;

/// What one server holds and believes: nothing that it would have to be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    pub running: bool,
    pub primary: bool,
    pub id: ClusterNodeId,
    pub epoch: u64,
    /// The slots that it says are its own.
    pub slots: SlotSet,
    /// Everybody that it knows, but itself and those that it shakes hands with.
    pub knows: BTreeSet<ClusterNodeId>,
    pub keys: BTreeSet<String>,
    /// Settings as they are, and as they would be after a restart.
    pub settings: BTreeMap<String, String>,
    pub written: BTreeMap<String, String>,
}

impl SimFleet {
    /// Writes a key as a client of the cluster does: asks any node, and goes where it is sent. While a
    /// node takes no writes for the sake of a failover, time passes until it answers.
    pub fn put(&self, key: &str) -> Result<Address, String> {
        self.lock().put(key)
    }

    /// Writes a key on one node, or says in the node's words why it cannot be.
    pub fn put_on(&self, node: &Address, key: &str) -> Result<(), String> {
        self.lock().put_on(node, key)
    }

    /// Leaves a key on a node whatever that believes: what an earlier life may have left there.
    pub fn plant(&self, node: &Address, key: &str) {
        let mut world = self.lock();
        if let Some(server) = world.servers.get_mut(node) {
            server.write(Change::Put(key.to_owned()));
        }
        world.settle(node);
    }

    /// Who holds which keys, whether they run or not.
    #[must_use]
    pub fn keys(&self) -> BTreeMap<Address, BTreeSet<String>> {
        let world = self.lock();
        world.servers.iter().map(|(address, s)| (address.clone(), s.all_keys())).collect()
    }

    /// The keys that the owners of their slots hold: what clients can reach, or could if the owner
    /// were not merely stopped. Of two that claim a slot, the one with the higher epoch owns it.
    #[must_use]
    pub fn surviving_keys(&self) -> BTreeSet<String> {
        let world = self.lock();
        let living = world.servers.values().filter(|s| s.life != Life::Down && !s.is_replica());
        let mut owners: Vec<&Server> = living.collect();
        owners.sort_by_key(|s| std::cmp::Reverse(s.table.me.epoch));
        let mut covered = SlotSet::empty();
        let mut keys = BTreeSet::new();
        for owner in owners {
            let own = owner.table.me.slots.difference(&covered);
            let held = owner.keys.iter().filter(|(slot, _)| own.contains(**slot));
            keys.extend(held.flat_map(|(_, keys)| keys.iter().cloned()));
            covered = covered.union(&own);
        }
        keys
    }

    /// What one server holds and believes.
    #[must_use]
    pub fn inspect(&self, node: &Address) -> Option<Holding> {
        let world = self.lock();
        let server = world.servers.get(node)?;
        let knows = server.table.others.iter().filter(|(_, peer)| !peer.handshake);
        Some(Holding {
            running: server.is_running(),
            primary: !server.is_replica(),
            id: server.table.my_id.clone(),
            epoch: server.table.me.epoch,
            slots: server.table.me.slots.clone(),
            knows: knows.map(|(id, _)| id.clone()).collect(),
            keys: server.all_keys(),
            settings: server.settings.all(),
            written: server.settings.written(),
        })
    }

    /// Lets a node hold functions, which only a look shows.
    pub fn load_functions(&self, node: &Address) {
        if let Some(server) = self.lock().servers.get_mut(node) {
            server.functions = true;
        }
    }
}

impl Server {
    fn all_keys(&self) -> BTreeSet<String> {
        self.keys.values().flatten().cloned().collect()
    }
}

impl World {
    fn put(&mut self, key: &str) -> Result<Address, String> {
        let answering = |s: &&Server| s.is_running() && s.clustered;
        let first = self.servers.values().filter(answering).find(|s| s.table.state_ok);
        let mut at = first.ok_or("CLUSTERDOWN The cluster is down")?.address.clone();
        for _ in 0..MOVES {
            let refusal = match self.put_on(&at, key) {
                Ok(()) => return Ok(at),
                Err(refusal) => refusal,
            };
            let moved = refusal.strip_prefix("MOVED ").and_then(|rest| rest.split(' ').nth(1));
            at = moved.and_then(|to| to.parse().ok()).ok_or(refusal)?;
        }
        Err(format!("{at} sends on and on"))
    }

    fn put_on(&mut self, at: &Address, key: &str) -> Result<(), String> {
        loop {
            if self.try_put(at, key)? {
                return Ok(());
            }
            self.advance(HELD_MS);
        }
    }

    /// Whether the key was taken; if not, its client is kept waiting.
    fn try_put(&mut self, at: &Address, key: &str) -> Result<bool, String> {
        let server = self.servers.get_mut(at).filter(|s| s.is_running());
        let server = server.ok_or_else(|| format!("{at} does not answer"))?;
        if server.clustered {
            let slot = key_slot(key.as_bytes());
            let Some(owner) = server.table.owner(slot) else {
                return Err("CLUSTERDOWN Hash slot not served".to_owned());
            };
            if !server.table.state_ok {
                return Err("CLUSTERDOWN The cluster is down".to_owned());
            }
            if *owner != server.table.my_id {
                let to = server.table.get(owner).and_then(|peer| peer.address.as_ref());
                return Err(format!(
                    "MOVED {slot} {}",
                    to.map_or("?".to_owned(), Address::to_string)
                ));
            }
        } else if server.is_replica() {
            return Err("READONLY You can't write against a read only replica.".to_owned());
        }
        if server.is_paused(self.now) {
            return Ok(false);
        }
        server.write(Change::Put(key.to_owned()));
        self.settle(at);
        Ok(true)
    }
}
