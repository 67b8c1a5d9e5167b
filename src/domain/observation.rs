//! What was seen of a topology's nodes at one time, and the marks that Reeve left on them.
//!
//! Sight is three-valued: a node that does not answer is `Silent`, one that was never asked is
//! `Unknown`; neither says that the node is gone.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::node::{Address, Capabilities, ClusterNodeId, Flavor, NodeKind, Version};
use super::slot::SlotSet;

/// Everything that the planner may know of the world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default, ToSchema)]
pub struct Observation {
    /// By address.
    pub nodes: BTreeMap<Address, Sighting>,
    pub marks: Vec<Mark>,
}

/// What is known of one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "sight", rename_all = "snake_case")]
pub enum Sighting {
    Seen(Box<Report>),
    Silent(Silence),
    Unknown,
}

/// A node that was asked and did not answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Silence {
    pub since: DateTime<Utc>,
    /// What the last attempt met: an error's code and its words.
    pub code: String,
    pub message: String,
}

/// What one node said of itself, in one round of questions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    pub observed_at: DateTime<Utc>,
    pub kind: NodeKind,
    pub flavor: Flavor,
    #[schema(value_type = String)]
    pub version: Version,
    /// Changes with each start of the process.
    pub run_id: String,
    pub uptime_seconds: u64,
    pub loading: bool,
    pub role: Role,
    pub replication: Replication,
    pub memory: Memory,
    pub persistence: Persistence,
    /// Keys in all databases together.
    pub keys: u64,
    /// Whether functions are loaded (Redis 7.0 and later).
    pub functions: bool,
    pub cluster_enabled: bool,
    /// Its view of the cluster, where it is a cluster node.
    pub cluster: Option<ClusterView>,
    /// Values of the settings that were asked for.
    pub settings: BTreeMap<String, String>,
    /// Whether a replica's login to its primary is configured.
    pub has_replication_login: bool,
    /// Whether that login is the one that the topology names; null where it names none.
    pub replication_login_as_wanted: Option<bool>,
    /// Whether clients must log in.
    pub requires_login: bool,
    /// Whether its cluster bus port took a connection; null where nobody tried.
    #[serde(default)]
    pub bus_reachable: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = NodeRole)]
pub enum Role {
    Primary,
    Replica,
    Sentinel,
}

/// The replication part of `INFO`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
pub struct Replication {
    /// Whose replica it is, as it was told.
    pub primary: Option<Address>,
    pub link_up: bool,
    pub sync_in_progress: bool,
    /// Seconds since the primary was last heard; null on a primary.
    pub last_io_seconds: Option<u64>,
    /// Bytes: written by a primary, or processed by a replica.
    pub offset: u64,
    pub replid: String,
    pub connected_replicas: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
pub struct Memory {
    pub used_bytes: u64,
    /// 0 where no limit is set.
    pub max_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
pub struct Persistence {
    pub aof_enabled: bool,
    pub last_bgsave_ok: bool,
    /// Unix time in seconds of the last snapshot.
    pub last_save_at: u64,
}

/// `CLUSTER INFO` and `CLUSTER NODES` of one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClusterView {
    pub my_id: ClusterNodeId,
    pub state_ok: bool,
    pub my_epoch: u64,
    pub current_epoch: u64,
    /// Every node that it knows, itself included.
    pub peers: BTreeMap<ClusterNodeId, Peer>,
    /// Slots that it is moving, seen by itself alone.
    pub open: Vec<OpenSlot>,
    /// Health by node id as `CLUSTER SHARDS` gives it (7.0 and later).
    pub health: BTreeMap<ClusterNodeId, String>,
}

/// One line of `CLUSTER NODES`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Peer {
    /// As gossip has it; null while it is not known (`noaddr`).
    pub address: Option<Address>,
    pub bus_port: Option<u16>,
    pub role: Role,
    /// Whose replica it is.
    pub primary: Option<ClusterNodeId>,
    pub epoch: u64,
    pub linked: bool,
    /// `fail?`: this node does not reach it.
    pub suspect: bool,
    /// `fail`: a majority does not reach it.
    pub failed: bool,
    /// It did not shake hands yet; its id is provisional.
    pub handshake: bool,
    #[schema(value_type = String)]
    pub slots: SlotSet,
}

/// One slot that is half-way from one node to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OpenSlot {
    pub slot: u16,
    /// Whether this node gives the slot away (`MIGRATING`) or takes it (`IMPORTING`).
    pub giving: bool,
    pub other: ClusterNodeId,
}

/// What Reeve left on a node and must take away again; committed before the command that leaves it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Mark {
    pub node: Address,
    pub what: MarkKind,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(tag = "mark", rename_all = "snake_case")]
pub enum MarkKind {
    /// A setting that is changed for a while.
    Setting(SettingMark),
    /// Lasting settings that were set but perhaps not yet written to the config file.
    Unwritten,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct SettingMark {
    pub name: String,
    /// The value that it had before.
    pub original: String,
}

impl Observation {
    #[must_use]
    pub fn sighting(&self, node: &Address) -> &Sighting {
        self.nodes.get(node).unwrap_or(&Sighting::Unknown)
    }

    /// What the node said, if it answered.
    #[must_use]
    pub fn report(&self, node: &Address) -> Option<&Report> {
        match self.sighting(node) {
            Sighting::Seen(report) => Some(report),
            Sighting::Silent(_) | Sighting::Unknown => None,
        }
    }

    /// The node's view of the cluster, if it answered and has one.
    #[must_use]
    pub fn view(&self, node: &Address) -> Option<&ClusterView> {
        self.report(node)?.cluster.as_ref()
    }

    /// The address of the node that has this cluster id, among those that answered.
    #[must_use]
    pub fn by_cluster_id(&self, id: &ClusterNodeId) -> Option<&Address> {
        self.nodes.keys().find(|a| self.view(a).is_some_and(|v| v.my_id == *id))
    }

    pub fn marks_on<'a>(&'a self, node: &'a Address) -> impl Iterator<Item = &'a Mark> {
        self.marks.iter().filter(move |m| m.node == *node)
    }

    /// A digest of what a plan's safety hangs on: who is there, as which process and cluster node,
    /// in which role, at which epoch, with which slots. Offsets and times are left out.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for (address, sighting) in &self.nodes {
            hash.update(format!("{address}|"));
            match sighting {
                Sighting::Seen(r) => {
                    hash.update(format!("{}|{:?}|{:?}|", r.run_id, r.role, r.replication.primary));
                    hash.update(format!("keys:{}|", r.keys > 0));
                    if let Some(view) = &r.cluster {
                        let slots = view.my_slots();
                        hash.update(format!("{}|{}|{slots}|", view.my_id, view.my_epoch));
                        let peers: Vec<_> = view.peers.keys().map(|p| p.0.as_str()).collect();
                        hash.update(peers.join(","));
                    }
                }
                Sighting::Silent(_) => hash.update("silent"),
                Sighting::Unknown => hash.update("unknown"),
            }
            hash.update("\n");
        }
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl Report {
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        Capabilities::of(self.flavor, self.version)
    }
}

impl ClusterView {
    #[must_use]
    pub fn me(&self) -> Option<&Peer> {
        self.peers.get(&self.my_id)
    }

    /// The slots that the node says it serves itself.
    #[must_use]
    pub fn my_slots(&self) -> SlotSet {
        self.me().map(|p| p.slots.clone()).unwrap_or_default()
    }

    /// Whether it has met nobody and was given nothing.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.peers.len() <= 1 && self.my_epoch == 0 && self.my_slots().is_empty()
    }

    /// The ids that it knows and has shaken hands with, its own included.
    #[must_use]
    pub fn known(&self) -> BTreeSet<&ClusterNodeId> {
        self.peers.iter().filter(|(_, p)| !p.handshake).map(|(id, _)| id).collect()
    }

    #[must_use]
    pub fn shaking_hands(&self) -> bool {
        self.peers.values().any(|p| p.handshake)
    }

    /// Who serves what as this node sees it: what two nodes must have in common to agree.
    #[must_use]
    pub fn signature(&self) -> Vec<(&ClusterNodeId, Role, Option<&ClusterNodeId>, &SlotSet)> {
        self.peers
            .iter()
            .filter(|(_, p)| !p.handshake)
            .map(|(id, p)| (id, p.role, p.primary.as_ref(), &p.slots))
            .collect()
    }
}
