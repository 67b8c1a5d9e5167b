//! The cluster bus: what servers say to each other, and when a server speaks by itself.

use std::collections::BTreeMap;

use super::server::{Life, Server};
use super::table::{Link, Ms, Peer};
use crate::domain::node::{Address, ClusterNodeId, Flavor, Version};
use crate::domain::slot::SlotSet;

/// What a packet says, beside the header that every packet has.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Ping,
    Pong,
    Meet,
    Fail(ClusterNodeId),
    Update {
        id: ClusterNodeId,
        epoch: u64,
        slots: SlotSet,
    },
    AskVote {
        /// Although the primary has not failed: somebody wants it so.
        force: bool,
    },
    Vote,
    /// A replica asks its primary to pause writes.
    AskPause,
}

/// The header tells of the sender; a replica speaks for its primary's slots and epoch.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub kind: Kind,
    pub sender: ClusterNodeId,
    pub from: Address,
    pub replica: bool,
    pub primary: Option<ClusterNodeId>,
    pub shard: String,
    pub current_epoch: u64,
    pub config_epoch: u64,
    pub slots: SlotSet,
    pub offset: u64,
    /// Whether the sender is a primary that pauses writes for a failover.
    pub paused: bool,
    pub gossip: Vec<Gossip>,
    /// Who was forgotten of late, and for how long (Redis 7.2 and later).
    pub forgotten: Vec<(ClusterNodeId, Ms)>,
}

/// What a packet says of a third.
#[derive(Debug, Clone)]
pub(super) struct Gossip {
    pub id: ClusterNodeId,
    pub address: Option<Address>,
    pub replica: bool,
    pub has_failed: bool,
    pub pong_received: Ms,
}

/// A packet on a connection.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub to: Address,
    /// The number that the end which opened the connection gave it.
    pub link: u64,
    /// Whether the sender opened it; otherwise this is an answer on it.
    pub opened_by_sender: bool,
    pub packet: Packet,
}

/// A packet on its way from one process to another.
#[derive(Debug, Clone)]
pub(super) struct Envelope {
    /// Which start of the other process it is for.
    pub to_start: u64,
    pub out: Outgoing,
}

/// The other servers, as far as the kernel of a machine shows them: whether connections are taken,
/// and whether they hold one.
pub(super) struct Around<'a>(pub &'a BTreeMap<Address, Server>);

impl Around<'_> {
    fn listens(&self, address: &Address) -> bool {
        self.0.get(address).is_some_and(|s| s.life != Life::Down && s.clustered)
    }

    fn is_linked(&self, address: &Address, to: &ClusterNodeId) -> bool {
        let linked = |s: &Server| s.table.others.get(to).is_some_and(|peer| peer.link.is_some());
        self.0.get(address).is_some_and(linked)
    }
}

impl Server {
    /// What a server does ten times a second.
    pub fn tick(&mut self, now: Ms, around: &Around) {
        self.ticks += 1;
        self.reconnect(now, around);
        self.introduce_again(now, around);
        if self.ticks.is_multiple_of(10) {
            self.ping_somebody(now);
        }
        self.ping_the_unheard(now, around);
        self.press_on(now);
        self.stand_for_election(now);
        self.migrate_to_an_orphan(now);
        if !self.table.state_ok {
            self.judge_state(now);
        }
    }

    /// Opens the connections that are missing; the first word is `MEET` where it was told to meet.
    fn reconnect(&mut self, now: Ms, around: &Around) {
        let patience = self.node_timeout().max(1000);
        self.table.others.retain(|_, p| !(p.handshake && now - p.known_since > patience));
        let lacking: Vec<_> = self
            .table
            .others
            .iter()
            .filter(|(_, p)| p.link.is_none())
            .filter_map(|(id, p)| Some((id.clone(), p.address.clone()?)))
            .filter(|(_, address)| around.listens(address))
            .collect();
        for (id, _) in lacking {
            let number = self.next_link;
            self.next_link += 1;
            let Some(peer) = self.table.others.get_mut(&id) else { continue };
            peer.link = Some(Link { number, since: now });
            let (meet, waiting_since) = (std::mem::take(&mut peer.meet), peer.ping_sent);
            self.say(&id, if meet { Kind::Meet } else { Kind::Ping }, now);
            // A new connection is no sign of life: the wait for a pong goes on.
            if let Some(peer) = self.table.others.get_mut(&id)
                && waiting_since != 0
            {
                peer.ping_sent = waiting_since;
            }
        }
    }

    /// Valkey, from 8.1 on, says `MEET` again to those that it knows and that have no connection to
    /// it: so a node that was forgotten, and was not told, comes back by itself.
    fn introduce_again(&mut self, now: Ms, around: &Around) {
        if self.flavor != Flavor::Valkey || self.version < Version::new(8, 1, 0) {
            return;
        }
        let patience = self.node_timeout().max(1000);
        let mut unlinked = Vec::new();
        for (id, peer) in &mut self.table.others {
            let back = |a: &Address| around.is_linked(a, &self.table.my_id);
            if peer.handshake || peer.link.is_none() || peer.address.as_ref().is_some_and(back) {
                peer.linked_back_at = now;
            } else if !peer.has_failed() && now - peer.linked_back_at > patience {
                peer.linked_back_at = now;
                unlinked.push(id.clone());
            }
        }
        for id in unlinked {
            self.say(&id, Kind::Meet, now);
        }
    }

    /// Once a second: of five at random, the one that was heard of the longest ago.
    fn ping_somebody(&mut self, now: Ms) {
        let ready: Vec<(Ms, ClusterNodeId)> = self
            .table
            .others
            .iter()
            .filter(|(_, p)| p.link.is_some() && p.ping_sent == 0 && !p.handshake)
            .map(|(id, p)| (p.pong_received, id.clone()))
            .collect();
        let picks = (0..5).filter_map(|_| {
            let at = usize::try_from(self.dice.below(ready.len() as u64)).unwrap_or(0);
            ready.get(at)
        });
        if let Some((_, id)) = picks.min() {
            self.say(&id.clone(), Kind::Ping, now);
        }
    }

    fn ping_the_unheard(&mut self, now: Ms, around: &Around) {
        let timeout = self.node_timeout();
        let mut to_ping = Vec::new();
        let mut changed = false;
        for (id, peer) in &mut self.table.others {
            if peer.handshake || peer.address.is_none() {
                continue;
            }
            let waited = if peer.ping_sent == 0 { 0 } else { now - peer.ping_sent };
            let silent = now.saturating_sub(peer.data_received);
            if let Some(link) = peer.link
                && now - link.since > timeout
                && waited > timeout / 2
                && silent > timeout / 2
            {
                peer.link = None;
            }
            if peer.ping_sent == 0 && now.saturating_sub(peer.pong_received) > timeout / 2 {
                if peer.link.is_some() && peer.address.as_ref().is_some_and(|a| around.listens(a)) {
                    to_ping.push(id.clone());
                    continue;
                }
                // To a connection that is only being opened: nobody hears it, but the wait begins.
                peer.ping_sent = now;
            }
            if peer.ping_sent != 0 && waited.min(silent) > timeout && !peer.has_failed() {
                peer.suspect = true;
                changed = true;
            }
        }
        for id in to_ping {
            self.say(&id, Kind::Ping, now);
        }
        if changed {
            self.judge_state(now);
        }
    }

    /// Says something over the connection to a peer, if there is one.
    pub fn say(&mut self, to: &ClusterNodeId, kind: Kind, now: Ms) {
        let packet = self.packet(kind, Some(to), now);
        let Some(peer) = self.table.others.get_mut(to) else { return };
        let (Some(address), Some(link)) = (peer.address.clone(), peer.link) else { return };
        if matches!(packet.kind, Kind::Ping) {
            peer.ping_sent = now;
        }
        let link = link.number;
        self.outbox.push(Outgoing { to: address, link, opened_by_sender: true, packet });
    }

    /// Says it to everybody that it is connected to.
    pub fn tell_all(&mut self, kind: &Kind, now: Ms) {
        let known = self.table.others.iter().filter(|(_, p)| !p.handshake);
        let known: Vec<_> = known.map(|(id, _)| id.clone()).collect();
        for id in known {
            self.say(&id, kind.clone(), now);
        }
    }

    pub fn packet(&mut self, kind: Kind, to: Option<&ClusterNodeId>, now: Ms) -> Packet {
        let gossips = matches!(kind, Kind::Ping | Kind::Pong | Kind::Meet);
        let gossip = if gossips { self.gossip(to) } else { vec![] };
        let tells = gossips && self.is_from(Version::new(7, 2, 0), Version::new(7, 2, 0));
        let forgotten = self.table.blacklist.iter().filter(|(_, until)| tells && **until > now);
        let forgotten = forgotten.map(|(id, until)| (id.clone(), until - now)).collect();
        let (_, head) = self.table.shard_head();
        Packet {
            kind,
            sender: self.table.my_id.clone(),
            from: self.address.clone(),
            replica: self.table.me.replica,
            primary: self.table.me.primary.clone(),
            shard: self.table.me.shard.clone(),
            current_epoch: self.table.current_epoch,
            config_epoch: head.epoch,
            slots: head.slots.clone(),
            offset: self.sync.offset,
            paused: !self.is_replica() && self.table.manual.is_under_way(),
            gossip,
            forgotten,
        }
    }

    /// A tenth of all others but at least three, at random, and everyone who is suspected.
    fn gossip(&mut self, to: Option<&ClusterNodeId>) -> Vec<Gossip> {
        let tellable = |p: &Peer| !p.handshake && p.address.is_some();
        let others = || self.table.others.iter().filter(|(id, p)| Some(*id) != to && tellable(p));
        let mut fresh: Vec<_> = others()
            .filter(|(_, p)| !p.suspect && (p.link.is_some() || !p.slots.is_empty()))
            .map(tell)
            .collect();
        let wanted = ((self.table.others.len() + 1) / 10).max(3);
        let mut gossip: Vec<Gossip> = others().filter(|(_, p)| p.suspect).map(tell).collect();
        for _ in 0..wanted.min(fresh.len()) {
            let at = usize::try_from(self.dice.below(fresh.len() as u64)).unwrap_or(0);
            gossip.push(fresh.swap_remove(at));
        }
        gossip
    }
}

fn tell((id, peer): (&ClusterNodeId, &Peer)) -> Gossip {
    Gossip {
        id: id.clone(),
        address: peer.address.clone(),
        replica: peer.replica,
        has_failed: peer.has_failed(),
        pong_received: peer.pong_received,
    }
}
