//! What was seen of a topology's nodes at one time, and the marks that Reeve left on them.
//!
//! Sight is three-valued: a node that does not answer is `Silent`, one that was never asked is
//! `Unknown`; neither says that the node is gone.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::functions::Libraries;
use super::id::ShardId;
use super::node::{Address, Capabilities, ClusterNodeId, Flavor, NodeKind, Version};
use super::sentinel::{SentinelView, Watch};
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
    /// Its libraries of functions, each by name with a digest of its code; null where nobody asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub libraries: Option<Libraries>,
    /// How many clients are connected, Reeve among them.
    #[serde(default)]
    pub connected_clients: u64,
    pub cluster_enabled: bool,
    /// Its view of the cluster, where it is a cluster node.
    pub cluster: Option<ClusterView>,
    /// What it watches, where it is a Sentinel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentinel: Option<SentinelView>,
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
    /// The history that its data belongs to.
    pub replid: String,
    pub connected_replicas: u32,
    /// The history that it shared before, if it left one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<History>,
    /// `replica-priority`: the lowest is promoted first, 0 never; null where the node does not say.
    #[serde(default)]
    pub priority: Option<u32>,
    /// Whether a replica refuses writes; null on a primary.
    #[serde(default)]
    pub read_only: Option<bool>,
    /// A failover that it was asked for with `FAILOVER` and that is not over, in the server's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<String>,
    /// The replicas that are connected to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<Attached>,
}

/// A history, and up to which offset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ReplicationHistory)]
pub struct History {
    pub replid: String,
    pub offset: u64,
}

/// A replica as the node that it is connected to shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = AttachedReplica)]
pub struct Attached {
    /// As the replica announces it, or where its connection comes from.
    pub address: Address,
    /// `online`, or a stage of its first full copy.
    pub state: String,
    pub offset: u64,
    /// Seconds since it last said how far it is.
    pub lag_seconds: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
pub struct Memory {
    pub used_bytes: u64,
    /// 0 where no limit is set.
    pub max_bytes: u64,
    /// Whether it drops keys to make room at the limit, rather than refuse writes.
    #[serde(default)]
    pub evicts: bool,
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
    /// Jobs in which the server itself moves slots as a whole, and which are not over: at the end that
    /// carries them out, which is the source with Valkey 9 and the target with Redis 8.4.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<SlotJobView>,
    /// Whether it still drops keys of slots that are not its own (any more), after such a job.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trims: bool,
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

/// Slots that move as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlotJobView {
    #[schema(value_type = String)]
    pub slots: SlotSet,
    /// Who gives them; null where the server does not say.
    #[serde(default)]
    pub from: Option<ClusterNodeId>,
    /// Who gets them; null where the server does not say.
    pub to: Option<ClusterNodeId>,
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
    /// A cluster identity that was taken from this node by a reset, or that is to be; others may
    /// still know it.
    Identity(IdentityMark),
    /// This node was told to take its shard over, or did so by itself. Until some time has passed the
    /// shard is left to rest: an election too soon after another is refused, or worse.
    Hold(HoldMark),
    /// Slots that may be half-way from one node to another, since Reeve moves them.
    OpenSlots(OpenSlotsMark),
    /// Writes to this node may wait, since it was told to let them.
    Paused(PausedMark),
    /// Another node was told to take over from this one, which may not know it yet.
    Deposed(DeposedMark),
    /// This primary was started anew without the keys that it had: nobody is to follow it unasked.
    Emptied(EmptiedMark),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct SettingMark {
    pub name: String,
    /// The value that it had before.
    pub original: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct IdentityMark {
    pub id: ClusterNodeId,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct HoldMark {
    pub shard: ShardId,
    pub until: DateTime<Utc>,
    /// Whether the nodes elected it by themselves: then only whoever has time waits.
    #[serde(default)]
    pub elected: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct OpenSlotsMark {
    #[schema(value_type = String)]
    pub slots: SlotSet,
    pub from: ClusterNodeId,
    pub to: ClusterNodeId,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct PausedMark {
    /// When it ends by itself.
    pub until: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct DeposedMark {
    pub shard: ShardId,
    pub successor: Address,
    /// The process that is deposed.
    pub run_id: String,
    /// The history that both shared, and how far the successor had it.
    pub replid: String,
    pub offset: u64,
    /// Whether it was not asked.
    pub forced: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct EmptiedMark {
    /// The process that has nothing.
    pub run_id: String,
    /// What the process before it had.
    pub keys: u64,
    pub offset: u64,
}

impl MarkKind {
    /// Who took over from the node, if the mark is about that.
    #[must_use]
    pub fn deposed(&self) -> Option<&DeposedMark> {
        let Self::Deposed(deposed) = self else { return None };
        Some(deposed)
    }

    /// What a primary had before it was started anew with nothing, if the mark is about that.
    #[must_use]
    pub fn emptied(&self) -> Option<&EmptiedMark> {
        let Self::Emptied(emptied) = self else { return None };
        Some(emptied)
    }

    /// The setting that is changed for a while, if the mark is about one.
    #[must_use]
    pub fn setting(&self) -> Option<&SettingMark> {
        let Self::Setting(setting) = self else { return None };
        Some(setting)
    }

    /// The rest of a shard, if the mark is about one.
    #[must_use]
    pub fn hold(&self) -> Option<&HoldMark> {
        let Self::Hold(hold) = self else { return None };
        Some(hold)
    }

    /// The slots that may be half-way, if the mark is about some.
    #[must_use]
    pub fn open_slots(&self) -> Option<&OpenSlotsMark> {
        let Self::OpenSlots(open) = self else { return None };
        Some(open)
    }

    /// The cluster identity that nobody is to know any more, if the mark is about one.
    #[must_use]
    pub fn identity(&self) -> Option<&ClusterNodeId> {
        let Self::Identity(was) = self else { return None };
        Some(&was.id)
    }
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

    /// What a Sentinel knows of the deployment of that name, if it answered and watches it.
    #[must_use]
    pub fn watch(&self, sentinel: &Address, name: &str) -> Option<&Watch> {
        self.report(sentinel)?.sentinel.as_ref()?.watches.get(name)
    }

    /// The address of the node that has this cluster id, among those that answered.
    #[must_use]
    pub fn by_cluster_id(&self, id: &ClusterNodeId) -> Option<&Address> {
        self.nodes.keys().find(|a| self.view(a).is_some_and(|v| v.my_id == *id))
    }

    /// Identities that a reset took from nodes, which show others now. Where the node was not seen
    /// it may still have its old one.
    #[must_use]
    pub fn ghosts(&self) -> BTreeSet<&ClusterNodeId> {
        let ghost = |mark: &'_ Mark| match &mark.what {
            MarkKind::Identity(was) => self.view(&mark.node).is_some_and(|v| v.my_id != was.id),
            MarkKind::Setting(_)
            | MarkKind::Unwritten
            | MarkKind::Hold(_)
            | MarkKind::OpenSlots(_)
            | MarkKind::Paused(_)
            | MarkKind::Deposed(_)
            | MarkKind::Emptied(_) => false,
        };
        let marks = self.marks.iter().filter(|m| ghost(m));
        marks.filter_map(|m| m.what.identity()).collect()
    }

    /// Those of these nodes that sit in the cluster of whoever has `view` and do nothing there: they
    /// serve no slots and follow nobody. They are told by what they answer, or else by the address
    /// that gossip has of them.
    #[must_use]
    pub fn idle_in<'a>(
        &self,
        view: &'a ClusterView,
        spares: &BTreeSet<&Address>,
    ) -> BTreeSet<&'a ClusterNodeId> {
        if spares.is_empty() {
            return BTreeSet::new();
        }
        let ids: BTreeSet<&ClusterNodeId> =
            spares.iter().filter_map(|a| self.view(a)).map(|v| &v.my_id).collect();
        let at_spare = |peer: &Peer| peer.address.as_ref().is_some_and(|a| spares.contains(a));
        let idle = |(id, peer): &(&ClusterNodeId, &Peer)| {
            peer.role == Role::Primary
                && peer.slots.is_empty()
                && (ids.contains(id) || at_spare(peer))
        };
        view.peers.iter().filter(idle).map(|(id, _)| id).collect()
    }

    pub fn marks_on<'a>(&'a self, node: &'a Address) -> impl Iterator<Item = &'a Mark> {
        self.marks.iter().filter(move |m| m.node == *node)
    }

    /// A digest of what a plan's safety hangs on: who is there, as which process and cluster node,
    /// in which role, at which epoch, with which slots. Offsets and times are left out.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for (address, print) in self.prints() {
            hash.update(format!("{address}|{print}|"));
            if let Some(view) = self.view(&address) {
                let peers: Vec<_> = view.peers.keys().map(|p| p.0.as_str()).collect();
                hash.update(format!("{}|{}", view.my_epoch, peers.join(",")));
            }
            hash.update("\n");
        }
        hex(&hash.finalize())
    }

    /// Each node's part of the fingerprint, without what gossip moves by itself (epochs, and who
    /// knows whom): whether each node is still what it was.
    #[must_use]
    pub fn prints(&self) -> BTreeMap<Address, String> {
        self.nodes.iter().map(|(address, sighting)| (address.clone(), sighting.print())).collect()
    }
}

impl Sighting {
    /// A node that does not answer has the same print as any other that does not.
    fn print(&self) -> String {
        let report = match self {
            Self::Seen(report) => report,
            Self::Silent(_) => return "silent".to_owned(),
            Self::Unknown => return "unknown".to_owned(),
        };
        let mut hash = Sha256::new();
        let replication = &report.replication.primary;
        hash.update(format!("{}|{:?}|{replication:?}|", report.run_id, report.role));
        hash.update(format!("keys:{}|", report.keys > 0));
        if let Some(view) = &report.cluster {
            hash.update(format!("{}|{}|", view.my_id, view.my_slots()));
        }
        if let Some(view) = &report.sentinel {
            let watches: Vec<_> = view.watches.keys().map(String::as_str).collect();
            hash.update(format!("{}|{}|", view.my_id, watches.join(",")));
        }
        hex(&hash.finalize()[..8])
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl Report {
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        Capabilities::of(self.flavor, self.version)
    }

    /// Whether it holds nothing and carries no remains of a deployment: of a cluster, or of another
    /// node's replication.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        let unused = match &self.cluster {
            Some(view) => view.is_blank() && view.open.is_empty(),
            None => {
                let alone = self.replication.replicas.is_empty();
                !self.cluster_enabled && self.role == Role::Primary && alone
            }
        };
        self.keys == 0 && !self.functions && unused
    }

    /// Its libraries of functions, if that is known: where there are no functions there is none.
    #[must_use]
    pub fn libraries(&self) -> Option<Libraries> {
        if self.functions { self.libraries.clone() } else { Some(Libraries::new()) }
    }

    /// Who it is: its cluster id, or where it has none the run id of its process.
    #[must_use]
    pub fn identity(&self) -> ClusterNodeId {
        let alone = || ClusterNodeId(self.run_id.clone());
        self.cluster.as_ref().map_or_else(alone, |view| view.my_id.clone())
    }

    /// Whether its data belongs to that history, as far as it goes.
    #[must_use]
    pub fn shares(&self, replid: &str) -> bool {
        let before = self.replication.before.as_ref().map(|b| b.replid.as_str());
        !replid.is_empty() && (self.replication.replid == replid || before == Some(replid))
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
