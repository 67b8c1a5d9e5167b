//! One simulated server: a process with a config file, keys, a cluster table and a replication
//! link. It knows no other server; what it has to say to them lies in its outbox.

use std::collections::{BTreeMap, BTreeSet};

use super::bus::{Envelope, Outgoing};
use super::dice::Dice;
use super::failover::Manual;
use super::keys::{Change, Keys, Value};
use super::sentinel::Sentinel;
use super::settings::Settings;
use super::sync::Sync;
use super::table::{Ms, Table};
use super::{Keep, SimOptions};
use crate::domain::node::{Address, Flavor, Version};
use crate::domain::slot::SlotSet;

/// Whether a process is there, and moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Running,
    /// Stopped: the kernel still takes connections and data for it.
    Frozen,
    Down,
}

#[derive(Debug, Clone)]
pub(super) struct Server {
    pub address: Address,
    pub flavor: Flavor,
    pub version: Version,
    pub life: Life,
    /// How much longer than others it takes for every call.
    pub slow_ms: u64,
    /// Counts the starts of the process: connections do not outlive one.
    pub start: u64,
    pub run_id: String,
    pub started_at: Ms,
    pub clustered: bool,
    /// Whose replica it is outside of clusters, now and by its config file.
    pub follows: Option<Address>,
    pub follows_by_file: Option<Address>,
    /// Until when `CLIENT PAUSE` has writes wait.
    pub paused_until: Ms,
    /// What it watches, if it is a Sentinel.
    pub sentinel: Option<Sentinel>,
    pub settings: Settings,
    pub table: Table,
    pub keys: Keys,
    /// Libraries of functions by name, each with its code.
    pub libraries: BTreeMap<String, String>,
    pub sync: Sync,
    pub dice: Dice,
    pub ticks: u64,
    pub next_link: u64,
    /// What arrived while it was frozen.
    pub inbox: Vec<Envelope>,
    pub outbox: Vec<Outgoing>,
    /// Writes that its replicas have yet to get.
    pub changes: Vec<Change>,
    /// Writes that its primary sent while it was frozen.
    pub stream: Vec<Change>,
    /// Until when it drops keys of slots that are not its own.
    pub trims_until: Ms,
    /// Keys that another node sent and that it did not take yet; who sent them does not wait any more.
    pub arriving: Vec<(String, Value)>,
}

impl Server {
    pub fn new(address: Address, options: &SimOptions, now: Ms, mut dice: Dice) -> Self {
        let (flavor, version) = (options.flavor, options.version);
        let settings = Settings::new(flavor, version, &options.config, options.config_file);
        Self {
            address,
            flavor,
            version,
            life: Life::Running,
            slow_ms: 0,
            start: 1,
            run_id: dice.hex(),
            started_at: now,
            clustered: options.cluster,
            follows: None,
            follows_by_file: None,
            paused_until: 0,
            sentinel: options.sentinel.then(|| Sentinel::new(dice.hex())),
            settings,
            table: Table::new(dice.id(), dice.hex()),
            keys: Keys::new(),
            libraries: BTreeMap::new(),
            sync: Sync::new(&mut dice),
            ticks: dice.below(10),
            dice,
            next_link: 1,
            inbox: vec![],
            outbox: vec![],
            changes: vec![],
            stream: vec![],
            trims_until: 0,
            arriving: vec![],
        }
    }

    pub fn is_running(&self) -> bool {
        self.life == Life::Running
    }

    pub fn is_replica(&self) -> bool {
        if self.clustered { self.table.me.replica } else { self.follows.is_some() }
    }

    pub fn node_timeout(&self) -> Ms {
        self.settings.number("cluster-node-timeout")
    }

    /// Whether its version is at least this one; Valkey began as Redis 7.2.
    pub fn is_from(&self, redis: Version, valkey: Version) -> bool {
        self.version
            >= match self.flavor {
                Flavor::Redis => redis,
                Flavor::Valkey => valkey,
            }
    }

    /// Ends the process as a crash does: what was on its way to it is lost.
    pub fn die(&mut self) {
        self.life = Life::Down;
        self.inbox.clear();
        self.stream.clear();
        self.arriving.clear();
        self.outbox.clear();
        self.changes.clear();
    }

    /// A new process on what the old one left on disk.
    pub fn start_again(&mut self, keep: Keep, now: Ms) {
        self.die();
        self.life = Life::Running;
        self.start += 1;
        self.run_id = self.dice.hex();
        self.started_at = now;
        self.settings.reload();
        self.follows.clone_from(&self.follows_by_file);
        self.paused_until = 0;
        self.sync = Sync::new(&mut self.dice);
        match keep {
            Keep::Everything => {}
            Keep::ClusterOnly => self.keys.clear(),
            Keep::Nothing => {
                self.keys.clear();
                self.table = Table::new(self.dice.id(), self.dice.hex());
            }
        }
        if keep != Keep::Everything {
            self.libraries.clear();
        }
        self.table.restarted(now);
        match &mut self.sentinel {
            Some(sentinel) if keep != Keep::Nothing => sentinel.restarted(now),
            Some(sentinel) => *sentinel = Sentinel::new(self.dice.hex()),
            None => {}
        }
        self.compare_keys_with_slots();
    }

    /// What a server does at its start with keys in slots that are not its own: Redis claims what
    /// nobody has and opens the others for import; Valkey 8 deletes the keys.
    fn compare_keys_with_slots(&mut self) {
        if self.is_replica() || !self.clustered {
            return;
        }
        let deletes = self.flavor == Flavor::Valkey && self.version.major >= 8;
        let held: Vec<u16> = self.keys.keys().copied().collect();
        for slot in held {
            match self.table.owner(slot).cloned() {
                _ if self.table.importing.contains_key(&slot) => {}
                Some(owner) if owner == self.table.my_id => {}
                Some(_) if deletes => {
                    self.keys.remove(&slot);
                }
                Some(owner) => {
                    self.table.importing.insert(slot, owner);
                }
                None => {
                    let one: SlotSet = [slot].into_iter().collect();
                    self.table.me.slots = self.table.me.slots.union(&one);
                }
            }
        }
    }
}

impl Table {
    /// What `nodes.conf` keeps over a restart; who was shaking hands is not in it.
    fn restarted(&mut self, now: Ms) {
        self.others.retain(|_, peer| !peer.handshake);
        for peer in self.others.values_mut() {
            (peer.link, peer.ping_sent, peer.pong_received, peer.data_received) = (None, 0, 0, 0);
            peer.reports.clear();
            (peer.voted_at, peer.orphaned_at) = (0, 0);
            if peer.failed {
                peer.failed_at = now;
            }
        }
        let followed: BTreeSet<_> = self.all().filter_map(|(_, p)| p.primary.clone()).collect();
        for (id, peer) in &mut self.others {
            peer.had_replicas = followed.contains(id);
        }
        self.blacklist.clear();
        self.state_ok = false;
        (self.first_judged, self.in_minority) = (0, 0);
        self.election = Default::default();
        self.manual = Manual::Nothing;
    }
}
