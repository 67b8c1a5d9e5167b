//! What follows from an observation: who is primary, how each shard and the whole are doing.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::id::ShardId;
use super::lineage;
use super::node::{Address, ClusterNodeId};
use super::observation::{ClusterView, Observation, Peer, Report, Role, Sighting};
use super::planner::{Leaver, Seat};
use super::slot::SlotSet;
use super::topology::{Layout, Shard};

/// Who is primary of a shard, as far as it can be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Primary {
    Settled(Address),
    /// Several claim it and no majority agrees on one.
    Contested(Vec<Address>),
    None,
}

impl Primary {
    #[must_use]
    pub fn settled(&self) -> Option<&Address> {
        match self {
            Self::Settled(address) => Some(address),
            Self::Contested(_) | Self::None => None,
        }
    }
}

/// The primary of a shard: the member that says so itself. Where several do (a node that came back
/// believes in its old role), the highest configuration epoch wins, if a majority of the nodes
/// that were seen shows the same owner.
#[must_use]
pub fn primary_of(shard: &Shard, slots: &SlotSet, seen: &Observation) -> Primary {
    if lineage::is_lone(shard, seen) {
        return lineage::primary_of(shard, seen);
    }
    let primaries: Vec<&Address> = shard
        .members
        .iter()
        .filter(|a| seen.report(a).is_some_and(|r| r.role == Role::Primary))
        .collect();
    let serving = |wanted: &SlotSet| -> Vec<&Address> {
        let serves = |v: &ClusterView| !v.my_slots().intersection(wanted).is_empty();
        primaries.iter().copied().filter(|a| seen.view(a).is_some_and(serves)).collect()
    };
    // One that serves what the shard is to serve; else one that serves anything, since slots move.
    let mut claimants = serving(slots);
    if claimants.is_empty() {
        claimants = serving(&SlotSet::all());
    }
    // One that serves nothing, if the shard's slots are all with others and wait to be moved. Were
    // some with nobody, it might be a node that came back empty.
    if claimants.is_empty() && slots.difference(&served(seen)).is_empty() {
        let known = |a: &&Address| slots.is_empty() || majority_knows(a, seen);
        claimants = primaries.iter().copied().filter(known).collect();
    }
    match claimants.as_slice() {
        [] => Primary::None,
        [one] => Primary::Settled((*one).clone()),
        several => {
            let epoch = |a: &&&Address| seen.view(a).map_or(0, |v| v.my_epoch);
            let top = several.iter().max_by_key(epoch).filter(|a| majority_shows(a, slots, seen));
            match top {
                Some(address) => Primary::Settled((**address).clone()),
                None => Primary::Contested(several.iter().map(|a| (*a).clone()).collect()),
            }
        }
    }
}

/// The slots that nodes serve by their own word.
#[must_use]
pub fn served(seen: &Observation) -> SlotSet {
    served_by(seen, |_| true)
}

/// The same of those nodes that count.
#[must_use]
pub fn served_by(seen: &Observation, counts: impl Fn(&Address) -> bool) -> SlotSet {
    let primary =
        |a: &&Address| counts(a) && seen.report(a).is_some_and(|r| r.role == Role::Primary);
    let views = seen.nodes.keys().filter(primary).filter_map(|a| seen.view(a));
    views.fold(SlotSet::empty(), |all, v| all.union(&v.my_slots()))
}

/// The primary that a plan may act on: settled, and shown as such by a majority of the nodes that
/// were seen. A node that alone believes in its role is none to make replicas of.
#[must_use]
pub fn agreed_primary(shard: &Shard, slots: &SlotSet, seen: &Observation) -> Option<Address> {
    let primary = primary_of(shard, slots, seen).settled()?.clone();
    let agreed = lineage::is_lone(shard, seen) || majority_shows(&primary, slots, seen);
    agreed.then_some(primary)
}

/// Who serves most of these slots, as a majority of the nodes that were seen shows it; that node may
/// be dead.
#[must_use]
pub fn owner_shown<'a>(slots: &SlotSet, seen: &'a Observation) -> Option<&'a ClusterNodeId> {
    let views = seen.nodes.keys().filter_map(|a| seen.view(a));
    let views: Vec<&ClusterView> = views.filter(|v| v.peers.len() > 1).collect();
    let mut shown: BTreeMap<&ClusterNodeId, usize> = BTreeMap::new();
    for view in &views {
        let served = |p: &Peer| p.slots.intersection(slots).count();
        let owner = view.peers.iter().filter(|(_, p)| served(p) > 0);
        if let Some((id, _)) = owner.max_by_key(|(_, p)| served(p)) {
            *shown.entry(id).or_default() += 1;
        }
    }
    shown.into_iter().find(|(_, votes)| votes * 2 > views.len()).map(|(id, _)| id)
}

/// The slots that a cluster node serves: by its own word, or as others show it.
#[must_use]
pub fn slots_of(id: &ClusterNodeId, seen: &Observation) -> SlotSet {
    let own = seen.by_cluster_id(id).and_then(|a| seen.view(a)).map(ClusterView::my_slots);
    let shown = || {
        let views = seen.nodes.keys().filter_map(|a| seen.view(a));
        views.filter_map(|v| v.peers.get(id)).map(|p| &p.slots).max_by_key(|s| s.count()).cloned()
    };
    own.or_else(shown).unwrap_or_default()
}

/// Whether all that answer and know a cluster node believe that it has failed.
#[must_use]
pub fn has_failed(id: &ClusterNodeId, seen: &Observation) -> bool {
    let views = seen.nodes.keys().filter_map(|a| seen.view(a)).filter(|v| v.my_id != *id);
    let mut known = views.filter_map(|v| v.peers.get(id)).peekable();
    known.peek().is_some() && known.all(|p| p.failed)
}

/// Members that are dead as the cluster itself has it: they do not answer, most of the members that
/// do show them as failed, and nobody shows them with slots.
#[must_use]
pub fn dead_members(layout: &Layout, seen: &Observation) -> BTreeSet<Address> {
    if let Some(shard) = layout.lone() {
        return lineage::dead_members(shard, seen);
    }
    let members = layout.members();
    let views: Vec<&ClusterView> = members.iter().filter_map(|m| seen.view(m)).collect();
    let dead = |node: &&Address| {
        let at_node = |p: &&Peer| p.address.as_ref() == Some(*node);
        let shown = || views.iter().filter_map(|v| v.peers.values().find(at_node));
        seen.report(node).is_none()
            && shown().all(|p| p.slots.is_empty())
            && shown().filter(|p| p.failed).count() * 2 > views.len()
    };
    members.into_iter().filter(dead).cloned().collect()
}

/// Where a cluster node lives: by its own word, or by what others say.
#[must_use]
pub fn address_of<'a>(id: &ClusterNodeId, seen: &'a Observation) -> Option<&'a Address> {
    let told = || {
        let views = seen.nodes.keys().filter_map(|a| seen.view(a));
        views.filter_map(|v| v.peers.get(id)).find_map(|p| p.address.as_ref())
    };
    seen.by_cluster_id(id).or_else(told)
}

/// The cluster node that lives at an address: by its own word, or by what others say.
#[must_use]
pub fn identity_at<'a>(node: &Address, seen: &'a Observation) -> Option<&'a ClusterNodeId> {
    if let Some(view) = seen.view(node) {
        return Some(&view.my_id);
    }
    let views = seen.nodes.keys().filter_map(|a| seen.view(a));
    let mut told = views.flat_map(|v| &v.peers).filter(|(_, p)| p.address.as_ref() == Some(node));
    told.next().map(|(id, _)| id)
}

/// Whether most show the owner of a shard as what it says: as serving some of these slots, or some of
/// those that it serves while they move.
fn majority_shows(owner: &Address, slots: &SlotSet, seen: &Observation) -> bool {
    let own = seen.view(owner).map(ClusterView::my_slots).unwrap_or_default();
    let serves =
        |slots: &SlotSet| majority(owner, seen, |p| !p.slots.intersection(slots).is_empty());
    if own.is_empty() {
        return !slots.is_empty() && majority_knows(owner, seen);
    }
    serves(slots) || (own.intersection(slots).is_empty() && serves(&own))
}

/// Whether most know a node as a primary that is well.
fn majority_knows(node: &Address, seen: &Observation) -> bool {
    majority(node, seen, |p| p.role == Role::Primary && !p.failed && !p.handshake)
}

/// Nodes that met nobody have no say: spares, and nodes that were reset.
fn majority(node: &Address, seen: &Observation, holds: impl Fn(&Peer) -> bool) -> bool {
    let Some(id) = seen.view(node).map(|v| &v.my_id) else { return false };
    let views = seen.nodes.keys().filter_map(|a| seen.view(a));
    let views: Vec<&ClusterView> = views.filter(|v| v.peers.len() > 1).collect();
    let agreeing = views.iter().filter(|v| v.peers.get(id).is_some_and(&holds));
    agreeing.count() * 2 > views.len()
}

/// How a topology is doing; the first that holds, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Deleting,
    /// Its first plan has not succeeded yet.
    Creating,
    /// Some shard has no primary that serves, or nodes say that the cluster is down.
    Down,
    /// None of its nodes was seen.
    Unknown,
    /// It serves, but a node is silent or a replica does not follow.
    Degraded,
    /// A plan is active.
    Changing,
    Steady,
}

impl Phase {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deleting => "deleting",
            Self::Creating => "creating",
            Self::Down => "down",
            Self::Unknown => "unknown",
            Self::Degraded => "degraded",
            Self::Changing => "changing",
            Self::Steady => "steady",
        }
    }
}

/// One shard as it is seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ShardStatus {
    pub id: ShardId,
    /// Null while there is none, or while several claim it.
    pub primary: Option<Address>,
    pub replicas: Vec<ReplicaStatus>,
    /// The slots that its primary says it serves.
    #[schema(value_type = String)]
    pub slots: SlotSet,
}

/// One replica as it is seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaStatus {
    pub address: Address,
    pub state: ReplicaState,
    /// Bytes that it has yet to take from its primary.
    pub lag_bytes: Option<u64>,
    /// Seconds since it last heard from its primary.
    pub lag_seconds: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    Online,
    /// It takes a full copy of its primary's data.
    Syncing,
    LinkDown,
    /// It is a replica of another replica, and gets the data by way of that.
    Chained,
    /// It is no replica of this shard's primary.
    Detached,
    Loading,
    Silent,
    Unknown,
}

/// Each shard of a layout as it is seen.
#[must_use]
pub fn shards(layout: &Layout, seen: &Observation) -> Vec<ShardStatus> {
    layout.shards().iter().map(|(s, slots)| shard(s, slots, seen)).collect()
}

/// A layout as it stands while plans are at work: with the members that are to leave and did not yet,
/// one of which may lead its shard all the while.
#[must_use]
pub fn standing<'a>(
    layout: &'a Layout,
    leavers: &BTreeMap<Address, Leaver>,
    seats: &BTreeMap<ShardId, Seat>,
    seen: &Observation,
) -> Cow<'a, Layout> {
    let stays = |(node, leaver): &(&Address, &Leaver)| {
        // One that is dead is missed where it led.
        let led = || seats.values().any(|seat| seat.from == **node);
        let Some(report) = seen.report(node) else { return led() };
        if report.cluster_enabled {
            return report.identity() == leaver.identity;
        }
        let begun = seen.marks_on(node).any(|m| m.what.identity() == Some(&leaver.identity));
        !(report.is_blank() || begun && report.role == Role::Primary)
    };
    let stay: Vec<_> = leavers.iter().filter(stays).collect();
    if stay.is_empty() {
        return Cow::Borrowed(layout);
    }
    let with = stay.into_iter().map(|(node, leaver)| (node.clone(), leaver.shard));
    Cow::Owned(layout.clone().with(with))
}

/// Whether nobody serves some slot that the layout has, or some shard has no primary although its
/// slots are not with other shards, from where they are yet to move.
#[must_use]
pub fn is_uncovered(layout: &Layout, seen: &Observation) -> bool {
    let wanted = layout.shards();
    let all = wanted.iter().fold(SlotSet::empty(), |all, (_, slots)| all.union(slots));
    let missing = all.difference(&served(seen));
    !headless(layout, seen).is_empty() || !(missing.is_empty() || on_their_way(&missing, seen))
}

/// The shards that have no primary, although their slots are not with other shards, from where they are
/// yet to move.
#[must_use]
pub fn headless(layout: &Layout, seen: &Observation) -> Vec<ShardId> {
    let wanted = layout.shards();
    let slotted = wanted.iter().any(|(_, slots)| !slots.is_empty());
    let headless = |(shard, slots): &&(&Shard, SlotSet)| {
        let elsewhere = served_by(seen, |node| !shard.members.contains(node));
        let moves = slotted && slots.difference(&elsewhere).is_empty();
        primary_of(shard, slots, seen).settled().is_none() && !moves
    };
    wanted.iter().filter(headless).map(|(shard, _)| shard.id).collect()
}

/// Whether slots that no node claims are shown by most of them with primaries whose answer is older:
/// those were looked at before they got them.
fn on_their_way(slots: &SlotSet, seen: &Observation) -> bool {
    const OLDER: TimeDelta = TimeDelta::milliseconds(100);
    let newest = seen.nodes.keys().filter_map(|a| seen.report(a)).map(|r| r.observed_at).max();
    let leads = |id: &ClusterNodeId| {
        let node = seen.by_cluster_id(id).and_then(|node| seen.report(node));
        let old = |report: &&Report| newest.is_some_and(|at| at - report.observed_at > OLDER);
        node.filter(old).is_some_and(|report| report.role == Role::Primary)
    };
    let shown = |view: &&ClusterView| {
        let owners = view.peers.iter().filter(|(id, _)| leads(id));
        let theirs = owners.fold(SlotSet::empty(), |all, (_, peer)| all.union(&peer.slots));
        slots.difference(&theirs).is_empty()
    };
    let views: Vec<&ClusterView> = seen.nodes.keys().filter_map(|a| seen.view(a)).collect();
    views.iter().filter(|view| shown(view)).count() * 2 > views.len()
}

/// One shard as it is seen.
#[must_use]
pub fn shard(shard: &Shard, slots: &SlotSet, seen: &Observation) -> ShardStatus {
    let primary = primary_of(shard, slots, seen).settled().cloned();
    let served = primary.as_ref().and_then(|p| seen.view(p)).map(ClusterView::my_slots);
    let replicas = shard.members.iter().filter(|m| Some(*m) != primary.as_ref());
    ShardStatus {
        id: shard.id,
        replicas: replicas.map(|m| replica_status(m, shard, primary.as_ref(), seen)).collect(),
        slots: served.unwrap_or_default(),
        primary,
    }
}

fn replica_status(
    node: &Address,
    shard: &Shard,
    primary: Option<&Address>,
    seen: &Observation,
) -> ReplicaStatus {
    let (state, lag_bytes, lag_seconds) = match seen.sighting(node) {
        Sighting::Silent(_) => (ReplicaState::Silent, None, None),
        Sighting::Unknown => (ReplicaState::Unknown, None, None),
        Sighting::Seen(report) => {
            let ahead = primary.and_then(|p| seen.report(p)).map(|p| p.replication.offset);
            let lag = ahead.map(|o| o.saturating_sub(report.replication.offset));
            (replica_state(report, shard, primary, seen), lag, report.replication.last_io_seconds)
        }
    };
    ReplicaStatus { address: node.clone(), state, lag_bytes, lag_seconds }
}

fn replica_state(
    report: &Report,
    shard: &Shard,
    primary: Option<&Address>,
    seen: &Observation,
) -> ReplicaState {
    if report.loading {
        ReplicaState::Loading
    } else if !follows(report, primary, seen) {
        let chained = lineage::is_chained(report, shard, seen);
        if chained { ReplicaState::Chained } else { ReplicaState::Detached }
    } else if report.replication.sync_in_progress {
        ReplicaState::Syncing
    } else if report.replication.link_up {
        ReplicaState::Online
    } else {
        ReplicaState::LinkDown
    }
}

/// Whether a node is a replica of `primary`; in a cluster that is told by ids, since addresses may
/// differ by vantage point. While there is no primary every replica counts as following.
#[must_use]
pub fn follows(report: &Report, primary: Option<&Address>, seen: &Observation) -> bool {
    if report.role != Role::Replica {
        return false;
    }
    let Some(primary) = primary else { return true };
    match (&report.cluster, seen.view(primary)) {
        (Some(view), Some(theirs)) => {
            view.me().and_then(|me| me.primary.as_ref()) == Some(&theirs.my_id)
        }
        (None, _) | (_, None) => report.replication.primary.as_ref() == Some(primary),
    }
}

/// What the phase depends on beside the nodes.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    /// Whether its first plan has succeeded.
    pub created: bool,
    pub plan_active: bool,
}

#[must_use]
pub fn phase(layout: &Layout, seen: &Observation, life: Life) -> Phase {
    let members = layout.members();
    let reports: Vec<&Report> = members.iter().filter_map(|m| seen.report(m)).collect();
    let statuses = shards(layout, seen);
    let cluster_fails = || {
        let views: Vec<_> = reports.iter().filter_map(|r| r.cluster.as_ref()).collect();
        views.iter().filter(|v| !v.state_ok).count() * 2 > views.len()
    };
    let serves = !is_uncovered(layout, seen) && !cluster_fails();
    let watched = layout.sentinels().iter().all(|s| seen.report(s).is_some());
    let well = watched
        && reports.len() == members.len()
        && statuses.iter().flat_map(|s| &s.replicas).all(|r| r.state == ReplicaState::Online);
    if *layout == Layout::Gone {
        Phase::Deleting
    } else if !life.created {
        Phase::Creating
    } else if reports.is_empty() {
        Phase::Unknown
    } else if !serves {
        Phase::Down
    } else if !well {
        Phase::Degraded
    } else if life.plan_active {
        Phase::Changing
    } else {
        Phase::Steady
    }
}
