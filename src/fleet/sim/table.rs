//! What one simulated server believes of its cluster: who is there, in which role, with which slots
//! and epochs. Only beliefs: nothing here knows another server's table.
//!
//! Sources of the rules in this folder: `cluster.c` of Redis 7.0 (`clusterProcessPacket`,
//! `clusterCron`, `clusterUpdateSlotsConfigWith`, `clusterHandleSlaveFailover`,
//! `clusterHandleManualFailover`, `clusterUpdateState`), and where they differ 6.2, 7.2 and Valkey 9.

use std::collections::BTreeMap;

use super::failover::Manual;
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::slot::SlotSet;

/// How long a node that was forgotten is not learned again.
pub(super) const BLACKLIST_MS: u64 = 60_000;

/// Points in virtual time are milliseconds; 0 is never.
pub(super) type Ms = u64;

#[derive(Debug, Clone)]
pub(super) struct Table {
    pub my_id: ClusterNodeId,
    pub me: Peer,
    /// Everybody else, by id; by a provisional one while they shake hands.
    pub others: BTreeMap<ClusterNodeId, Peer>,
    pub current_epoch: u64,
    pub last_vote_epoch: u64,
    /// Slots half-way, and who has the other end. What was migrating stays so when somebody else claims
    /// it, so a slot can be both.
    pub migrating: BTreeMap<u16, ClusterNodeId>,
    pub importing: BTreeMap<u16, ClusterNodeId>,
    /// Ids that were forgotten, and until when they are not learned again.
    pub blacklist: BTreeMap<ClusterNodeId, Ms>,
    pub state_ok: bool,
    pub first_judged: Ms,
    pub in_minority: Ms,
    pub election: Election,
    pub manual: Manual,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Peer {
    /// None is `noaddr`; for the node itself: that it did not yet learn its own.
    pub address: Option<Address>,
    /// Told by itself or by gossip; nobody knows while it shakes hands.
    pub replica: bool,
    pub primary: Option<ClusterNodeId>,
    /// What a primary and its replicas have in common; empty while nobody told.
    pub shard: String,
    pub epoch: u64,
    pub slots: SlotSet,
    pub handshake: bool,
    /// Whether the first word to it is `MEET`.
    pub meet: bool,
    pub suspect: bool,
    pub failed: bool,
    pub failed_at: Ms,
    pub known_since: Ms,
    pub ping_sent: Ms,
    pub pong_received: Ms,
    pub data_received: Ms,
    pub link: Option<Link>,
    /// When it last was seen to have a connection to this node, too.
    pub linked_back_at: Ms,
    /// Which primaries hold it for failed, and when they said so.
    pub reports: BTreeMap<ClusterNodeId, Ms>,
    pub offset: u64,
    pub voted_at: Ms,
    /// Whether replicas of others may come to its help when it has none.
    pub had_replicas: bool,
    pub orphaned_at: Ms,
}

/// A connection to a peer's bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub number: u64,
    pub since: Ms,
}

/// A replica's candidacy.
#[derive(Debug, Clone, Default)]
pub(super) struct Election {
    pub at: Ms,
    pub asked: bool,
    pub votes: usize,
    pub epoch: u64,
    pub rank: u64,
}

/// What a claim of slots changed.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// What the node itself lost.
    pub mine: SlotSet,
    /// What the node, or the primary that it follows, lost.
    pub from_my_shard: usize,
}

impl Table {
    pub fn new(my_id: ClusterNodeId, shard: String) -> Self {
        Self {
            my_id,
            me: Peer { shard, ..Peer::default() },
            others: BTreeMap::new(),
            current_epoch: 0,
            last_vote_epoch: 0,
            migrating: BTreeMap::new(),
            importing: BTreeMap::new(),
            blacklist: BTreeMap::new(),
            state_ok: false,
            first_judged: 0,
            in_minority: 0,
            election: Election::default(),
            manual: Manual::Nothing,
        }
    }

    /// Everybody, the node itself included.
    pub fn all(&self) -> impl Iterator<Item = (&ClusterNodeId, &Peer)> {
        std::iter::once((&self.my_id, &self.me)).chain(&self.others)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = (&ClusterNodeId, &mut Peer)> {
        std::iter::once((&self.my_id, &mut self.me)).chain(&mut self.others)
    }

    pub fn get(&self, id: &ClusterNodeId) -> Option<&Peer> {
        if *id == self.my_id { Some(&self.me) } else { self.others.get(id) }
    }

    pub fn get_mut(&mut self, id: &ClusterNodeId) -> Option<&mut Peer> {
        if *id == self.my_id { Some(&mut self.me) } else { self.others.get_mut(id) }
    }

    /// Whose slots the node speaks for: its own, or its primary's.
    pub fn shard_head(&self) -> (&ClusterNodeId, &Peer) {
        let head = self.me.primary.as_ref().and_then(|id| Some((id, self.get(id)?)));
        head.unwrap_or((&self.my_id, &self.me))
    }

    pub fn owner(&self, slot: u16) -> Option<&ClusterNodeId> {
        self.all().find(|(_, peer)| peer.slots.contains(slot)).map(|(id, _)| id)
    }

    pub fn assigned(&self) -> SlotSet {
        self.all().flat_map(|(_, peer)| peer.slots.ranges().iter().copied()).collect()
    }

    /// How many primaries serve slots, and how many of them it takes to decide.
    pub fn quorum(&self) -> (usize, usize) {
        let size = self.all().filter(|(_, p)| !p.replica && !p.slots.is_empty()).count();
        (size, size / 2 + 1)
    }

    /// Primary again, by its own word or by force.
    pub fn make_primary(&mut self, id: &ClusterNodeId) {
        let followed = self.get(id).is_some_and(|peer| peer.primary.is_some());
        self.set_primary(id, None);
        let mine = *id == self.my_id;
        if let Some(peer) = self.get_mut(id) {
            peer.replica = false;
            peer.had_replicas |= followed && !mine;
        }
    }

    /// Gives `claimer` the slots that it may have: those that nobody has, and those of nodes with a
    /// lower epoch; never those that are `fixed`.
    pub fn claim(
        &mut self,
        claimer: &ClusterNodeId,
        epoch: u64,
        slots: &SlotSet,
        fixed: &SlotSet,
    ) -> Taken {
        let mut taken = Taken::default();
        if *claimer == self.my_id {
            return taken;
        }
        let wanted = slots.difference(fixed);
        let head = self.shard_head().0.clone();
        let mine = self.my_id.clone();
        let mut gained = wanted.difference(&self.assigned());
        for (id, peer) in self.all_mut().filter(|(id, p)| *id != claimer && p.epoch < epoch) {
            let lost = peer.slots.intersection(&wanted);
            if lost.is_empty() {
                continue;
            }
            peer.slots = peer.slots.difference(&lost);
            if *id == head {
                taken.from_my_shard += lost.count();
            }
            if *id == mine {
                taken.mine = lost.clone();
            }
            gained = gained.union(&lost);
        }
        // A new primary may ask for help too, where there are replicas that could give it.
        let has_replicas = self.all().any(|(_, p)| p.replica && p.primary.is_some());
        if let Some(peer) = self.get_mut(claimer) {
            peer.had_replicas |= has_replicas && peer.slots.is_empty() && !gained.is_empty();
            peer.slots = peer.slots.union(&gained);
        }
        taken
    }

    /// Strikes a node: its slots are nobody's, its replicas follow nobody.
    pub fn remove(&mut self, id: &ClusterNodeId) {
        self.set_primary(id, None);
        self.others.remove(id);
        for (_, peer) in self.all_mut() {
            peer.reports.remove(id);
            if peer.primary.as_ref() == Some(id) {
                peer.primary = None;
            }
        }
    }

    pub fn is_blacklisted(&self, id: &ClusterNodeId, now: Ms) -> bool {
        self.blacklist.get(id).is_some_and(|&until| until > now)
    }

    /// Whose connection this is.
    pub fn by_link(&self, number: u64) -> Option<ClusterNodeId> {
        let mine = |peer: &Peer| peer.link.is_some_and(|link| link.number == number);
        self.others.iter().find(|(_, peer)| mine(peer)).map(|(id, _)| id.clone())
    }
}

impl Peer {
    pub fn has_failed(&self) -> bool {
        self.failed || self.suspect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ClusterNodeId {
        ClusterNodeId(name.to_owned())
    }

    #[test]
    fn the_higher_epoch_takes_the_slots_and_nobody_takes_what_is_fixed() {
        let mut table = Table::new(id("a"), String::new());
        table.me.slots = "0-99".parse().unwrap();
        table.me.epoch = 2;
        table.others.insert(id("b"), Peer { epoch: 1, ..Peer::default() });
        let all: SlotSet = "0-199".parse().unwrap();
        let taken = table.claim(&id("b"), 1, &all, &SlotSet::empty());
        assert!(taken.mine.is_empty());
        assert_eq!(table.others[&id("b")].slots.to_string(), "100-199");
        table.others.insert(id("c"), Peer { epoch: 3, ..Peer::default() });
        let taken = table.claim(&id("c"), 3, &all, &"7".parse().unwrap());
        assert_eq!((taken.from_my_shard, taken.mine.count()), (99, 99));
        assert_eq!(table.me.slots.to_string(), "7");
        assert_eq!(table.owner(100), Some(&id("c")));
    }

    #[test]
    fn a_node_that_is_struck_leaves_nothing() {
        let mut table = Table::new(id("a"), String::new());
        table.others.insert(id("b"), Peer { slots: SlotSet::all(), ..Peer::default() });
        let follower = Peer { replica: true, primary: Some(id("b")), ..Peer::default() };
        table.others.insert(id("c"), follower);
        table.remove(&id("b"));
        assert!(table.assigned().is_empty());
        assert_eq!(table.others[&id("c")].primary, None);
    }
}
