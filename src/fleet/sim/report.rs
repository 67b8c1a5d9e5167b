//! What a simulated server says of itself: the same report that a real one's answers make.

use std::collections::BTreeMap;

use chrono::TimeDelta;

use super::server::Server;
use super::sync::SyncLink;
use super::table::{Ms, Peer, Table};
use crate::domain::Timestamp;
use crate::domain::functions::{Libraries, digest};
use crate::domain::node::{Capabilities, ClusterNodeId, NodeKind};
use crate::domain::observation::{
    self, Attached, ClusterView, History, Memory, OpenSlot, Persistence, Replication, Report, Role,
};
use crate::fleet::{Ask, Target};

/// Settings whose value is nobody's to see.
const SECRET: [&str; 2] = ["masterauth", "requirepass"];

/// 2026-01-01: virtual time has to begin somewhere.
const BEGINNING: i64 = 1_767_225_600;

pub(super) fn timestamp(at: Ms) -> Timestamp {
    let since = TimeDelta::milliseconds(i64::try_from(at).unwrap_or(i64::MAX / 2));
    Timestamp::from_timestamp(BEGINNING, 0).unwrap_or_default() + since
}

impl Server {
    pub fn report(&self, target: &Target, ask: &Ask, now: Ms, replicas: Vec<Attached>) -> Report {
        let setting = |name: &str| self.settings.get(name).map(str::to_owned);
        let password = setting("masterauth").unwrap_or_default();
        let user = setting("masteruser").filter(|user| !user.is_empty());
        let shown = |name: &&String| !SECRET.contains(&name.to_ascii_lowercase().as_str());
        let kind = match self.sentinel {
            Some(_) => NodeKind::Sentinel,
            None => NodeKind::Data,
        };
        Report {
            observed_at: timestamp(now),
            kind,
            flavor: self.flavor,
            version: self.version,
            run_id: self.run_id.clone(),
            uptime_seconds: (now - self.started_at) / 1000,
            loading: false,
            role: match kind {
                NodeKind::Sentinel => Role::Sentinel,
                NodeKind::Data => role(self.is_replica()),
            },
            sentinel: self.watching(ask.master.as_deref(), now),
            replication: self.replication(now, replicas),
            memory: Memory {
                used_bytes: self.used_bytes(),
                max_bytes: self.settings.number("maxmemory"),
                evicts: self.evicts(),
            },
            persistence: Persistence {
                aof_enabled: self.settings.is_on("appendonly"),
                last_bgsave_ok: true,
                last_save_at: timestamp(self.started_at).timestamp().unsigned_abs(),
            },
            keys: self.key_count() as u64,
            functions: !self.libraries.is_empty(),
            libraries: (ask.libraries && self.can_have_functions()).then(|| self.digests()),
            connected_clients: 1,
            cluster_enabled: self.clustered,
            cluster: self.clustered.then(|| self.view()),
            settings: ask
                .settings
                .iter()
                .filter(shown)
                .filter_map(|name| Some((name.clone(), setting(&name.to_ascii_lowercase())?)))
                .collect(),
            has_replication_login: !password.is_empty(),
            replication_login_as_wanted: target
                .replication
                .as_ref()
                .map(|wanted| user == wanted.username && password == wanted.reveal()),
            requires_login: false,
            bus_reachable: None,
        }
    }

    fn digests(&self) -> Libraries {
        let digested = |(name, code): (&String, &String)| (name.clone(), digest(code.as_bytes()));
        self.libraries.iter().map(digested).collect()
    }

    pub fn role(&self) -> Role {
        role(self.is_replica())
    }

    pub fn replication(&self, now: Ms, replicas: Vec<Attached>) -> Replication {
        let replica = self.is_replica();
        let (link_up, copying) = match &self.sync.link {
            SyncLink::Up { .. } => (true, false),
            SyncLink::Copying { full, .. } => (false, *full),
            SyncLink::Down { .. } => (false, false),
        };
        Replication {
            primary: self.upstream(),
            link_up: replica && link_up,
            sync_in_progress: replica && copying,
            last_io_seconds: (replica && link_up)
                .then(|| now.saturating_sub(self.sync.last_io) / 1000),
            offset: self.sync.offset,
            replid: self.sync.replid.clone(),
            connected_replicas: u32::try_from(replicas.len()).unwrap_or(u32::MAX),
            before: self
                .sync
                .before
                .as_ref()
                .map(|(replid, up_to)| History { replid: replid.clone(), offset: up_to + 1 }),
            priority: u32::try_from(self.settings.number("replica-priority"))
                .ok()
                .filter(|_| replica),
            read_only: replica.then_some(true),
            failover: None,
            replicas,
        }
    }

    fn view(&self) -> ClusterView {
        let table = &self.table;
        let open = |giving| {
            move |(slot, other): (&u16, &ClusterNodeId)| OpenSlot {
                slot: *slot,
                giving,
                other: other.clone(),
            }
        };
        // Of a slot that is both, one end is shown.
        let taking = table.importing.iter().filter(|(slot, _)| !table.migrating.contains_key(slot));
        let mut open: Vec<_> =
            table.migrating.iter().map(open(true)).chain(taking.map(open(false))).collect();
        open.sort_by_key(|open| open.slot);
        ClusterView {
            my_id: table.my_id.clone(),
            state_ok: table.state_ok,
            my_epoch: table.shard_head().1.epoch,
            current_epoch: table.current_epoch,
            peers: table.all().map(|(id, peer)| (id.clone(), self.peer(id, peer))).collect(),
            open,
            health: self.health(),
            jobs: vec![],
            trims: false,
        }
    }

    fn peer(&self, id: &ClusterNodeId, peer: &Peer) -> observation::Peer {
        let myself = *id == self.table.my_id;
        let known = peer.primary.as_ref().and_then(|id| self.table.get(id));
        // A node that does not know its own address still knows its ports.
        let address = if myself { Some(&self.address) } else { peer.address.as_ref() };
        observation::Peer {
            address: peer.address.clone(),
            bus_port: address.and_then(crate::domain::node::Address::default_bus_port),
            role: role(peer.replica),
            primary: peer.primary.clone(),
            epoch: known.unwrap_or(peer).epoch,
            linked: myself || peer.link.is_some(),
            suspect: peer.suspect,
            failed: peer.failed,
            handshake: peer.handshake,
            slots: peer.slots.clone(),
        }
    }

    /// As `CLUSTER SHARDS` has it: primaries, and the replicas of primaries that are known.
    fn health(&self) -> BTreeMap<ClusterNodeId, String> {
        if !Capabilities::of(self.flavor, self.version).cluster_shards {
            return BTreeMap::new();
        }
        let listed = |(id, peer): &(&ClusterNodeId, &Peer)| {
            !peer.handshake && (!peer.replica || self.table.heads(id).is_some())
        };
        let word = |(id, peer): (&ClusterNodeId, &Peer)| {
            let offset = if *id == self.table.my_id { self.sync.offset } else { peer.offset };
            let word = match peer {
                Peer { failed: true, .. } => "fail",
                Peer { replica: true, .. } if offset == 0 => "loading",
                _ => "online",
            };
            (id.clone(), word.to_owned())
        };
        self.table.all().filter(listed).map(word).collect()
    }
}

impl Table {
    fn heads(&self, id: &ClusterNodeId) -> Option<&Peer> {
        self.get(self.get(id)?.primary.as_ref()?)
    }
}

fn role(replica: bool) -> Role {
    if replica { Role::Replica } else { Role::Primary }
}
