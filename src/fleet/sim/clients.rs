//! The simulation seen by those who keep data in it: writing keys, and finding out whether they are
//! still there.

use std::collections::{BTreeMap, BTreeSet};

use super::SimFleet;
use super::calls::HELD_MS;
use super::keys::{Change, Value};
use super::server::{Life, Server};
use super::world::World;
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::slot::{SlotSet, key_slot};

/// How often a client lets itself be sent on.
const MOVES: usize = 5;
/// What a key takes unless something else is said.
const KEY_BYTES: u64 = 100;

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
    /// Libraries of functions, each with its code.
    pub libraries: BTreeMap<String, String>,
    /// Settings as they are, and as they would be after a restart.
    pub settings: BTreeMap<String, String>,
    pub written: BTreeMap<String, String>,
    /// Whose replica it would be after a restart, outside of clusters.
    pub follows_by_file: Option<Address>,
}

impl SimFleet {
    /// Writes a key as a client of the cluster does: asks any node, and goes where it is sent. While a
    /// node takes no writes for the sake of a failover, time passes until it answers. Each write has
    /// a number, greater than those of all earlier ones, which is the key's value.
    pub fn put(&self, key: &str) -> Result<u64, String> {
        self.lock().follow(key, |world, at, asking| world.put_on(at, key, asking))
    }

    /// What a client of the cluster reads.
    pub fn get(&self, key: &str) -> Result<Option<u64>, String> {
        self.lock().follow(key, |world, at, asking| world.get_on(at, key, asking))
    }

    /// Writes a key on one node, or says in the node's words why it cannot be.
    pub fn put_on(&self, node: &Address, key: &str) -> Result<u64, String> {
        self.lock().put_on(node, key, false)
    }

    /// The same after `ASKING`.
    pub fn put_asking(&self, node: &Address, key: &str) -> Result<u64, String> {
        self.lock().put_on(node, key, true)
    }

    /// Leaves a key on a node whatever that believes: what an earlier life may have left there.
    pub fn plant(&self, node: &Address, key: &str) {
        self.plant_sized(node, key, KEY_BYTES);
    }

    /// The same of a size.
    pub fn plant_sized(&self, node: &Address, key: &str, bytes: u64) {
        let mut world = self.lock();
        world.written += 1;
        let number = world.written;
        if let Some(server) = world.servers.get_mut(node) {
            server.write(Change::Put(key.to_owned(), Value { number, bytes }));
        }
        world.settle(node);
    }

    /// Who holds which keys, whether they run or not.
    #[must_use]
    pub fn keys(&self) -> BTreeMap<Address, BTreeSet<String>> {
        let world = self.lock();
        world.servers.iter().map(|(address, s)| (address.clone(), s.all_keys())).collect()
    }

    /// The keys that clients can reach, or could if the owners of their slots were not merely stopped.
    #[must_use]
    pub fn surviving_keys(&self) -> BTreeSet<String> {
        self.surviving_values().into_keys().collect()
    }

    /// The same with the number of the write that each holds. Of two that claim a slot, the one with
    /// the higher epoch owns it; what it sends clients on for is where it sends them.
    #[must_use]
    pub fn surviving_values(&self) -> BTreeMap<String, u64> {
        let world = self.lock();
        let living = world.servers.values().filter(|s| s.life != Life::Down && !s.is_replica());
        let mut owners: Vec<&Server> = living.collect();
        owners.sort_by_key(|s| std::cmp::Reverse(s.table.me.epoch));
        let mut covered = SlotSet::empty();
        let mut values = BTreeMap::new();
        for owner in &owners {
            let own = owner.table.me.slots.difference(&covered);
            let sent_on = own.iter().filter_map(|slot| {
                let to = owner.table.migrating.get(&slot)?;
                let imports =
                    |s: &&&Server| s.table.my_id == *to && s.table.importing.contains_key(&slot);
                owners.iter().find(imports)?.keys.get(&slot)
            });
            let held = own.iter().filter_map(|slot| owner.keys.get(&slot));
            // What the owner has itself counts.
            let reached = sent_on.chain(held).flatten();
            values.extend(reached.map(|(key, value)| (key.clone(), value.number)));
            covered = covered.union(&own);
        }
        values
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
            libraries: server.libraries.clone(),
            settings: server.settings.all(),
            written: server.settings.written(),
            follows_by_file: server.follows_by_file.clone(),
        })
    }

    /// Loads a library of functions on a primary, in the place of one of that name.
    pub fn load_functions(&self, node: &Address, name: &str, code: &str) {
        let mut world = self.lock();
        if let Some(server) = world.servers.get_mut(node) {
            server.write(Change::Load([(name.to_owned(), code.to_owned())].into()));
        }
        world.settle(node);
    }
}

impl Server {
    fn all_keys(&self) -> BTreeSet<String> {
        self.keys.values().flat_map(BTreeMap::keys).cloned().collect()
    }

    /// Whether a client's command for a key is taken here, or why not.
    fn takes(&self, key: &str, asking: bool) -> Result<(), String> {
        if self.clustered {
            let served = self.serves(key_slot(key.as_bytes()), key, asking);
            return served.map_err(|refusal| format!("{} {}", refusal.code, refusal.message));
        }
        Ok(())
    }
}

impl World {
    /// Asks any node, and goes where it is sent.
    fn follow<T>(
        &mut self,
        key: &str,
        ask: impl Fn(&mut Self, &Address, bool) -> Result<T, String>,
    ) -> Result<T, String> {
        let answering = |s: &&Server| s.is_running() && s.clustered;
        let first = self.servers.values().filter(answering).find(|s| s.table.state_ok);
        let mut at = first.ok_or("CLUSTERDOWN The cluster is down")?.address.clone();
        let mut asking = false;
        for _ in 0..MOVES {
            let refusal = match ask(self, &at, asking) {
                Ok(answer) => return Ok(answer),
                Err(refusal) => refusal,
            };
            let mut words = refusal.split(' ');
            let (word, _, to) = (words.next(), words.next(), words.next());
            asking = word == Some("ASK");
            let sent_on = asking || word == Some("MOVED");
            let to = to.filter(|_| sent_on).and_then(|to| to.parse().ok());
            at = to.ok_or(refusal)?;
        }
        Err(format!("{at} sends on and on for {key}"))
    }

    fn get_on(&mut self, at: &Address, key: &str, asking: bool) -> Result<Option<u64>, String> {
        let server = self.servers.get(at).filter(|s| s.is_running());
        let server = server.ok_or_else(|| format!("{at} does not answer"))?;
        server.takes(key, asking)?;
        Ok(server.value(key).map(|value| value.number))
    }

    fn put_on(&mut self, at: &Address, key: &str, asking: bool) -> Result<u64, String> {
        loop {
            let server = self.servers.get_mut(at).filter(|s| s.is_running());
            let server = server.ok_or_else(|| format!("{at} does not answer"))?;
            server.takes(key, asking)?;
            if server.is_replica() && !server.clustered {
                return Err("READONLY You can't write against a read only replica.".to_owned());
            }
            let paused = server.is_paused(self.now);
            self.is_guarded(at).map_err(|r| format!("{} {}", r.code, r.message))?;
            if paused {
                // Its client is kept waiting.
                self.advance(HELD_MS);
                continue;
            }
            self.written += 1;
            let value = Value { number: self.written, bytes: KEY_BYTES };
            let Some(server) = self.servers.get_mut(at) else { continue };
            server.write(Change::Put(key.to_owned(), value));
            self.settle(at);
            return Ok(value.number);
        }
    }
}
