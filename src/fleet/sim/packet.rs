//! What a server makes of a packet.

use super::bus::{Envelope, Gossip, Kind, Outgoing, Packet};
use super::failover::Manual;
use super::server::Server;
use super::table::{BLACKLIST_MS, Election, Ms, Peer, Table};
use crate::domain::node::ClusterNodeId;

impl Server {
    pub fn receive(&mut self, envelope: Envelope, now: Ms) {
        let Outgoing { link, opened_by_sender, packet, .. } = envelope.out;
        // On a connection of its own, whose it is; nobody's if it was closed meanwhile.
        let peer = if opened_by_sender { None } else { self.table.by_link(link) };
        if !opened_by_sender && peer.is_none() {
            return;
        }
        let known = self.hear(&packet, now);
        self.hear_of_pause(&packet);
        match &packet.kind {
            Kind::Ping | Kind::Meet => {
                self.greet(&packet, known, link, now);
                self.follow(&packet, None, now);
            }
            Kind::Pong => self.follow(&packet, peer, now),
            Kind::Fail(_)
            | Kind::Update { .. }
            | Kind::AskVote { .. }
            | Kind::Vote
            | Kind::AskPause
                if !known => {}
            Kind::Fail(id) => {
                if let Some(failing) = self.table.others.get_mut(id)
                    && !failing.failed
                {
                    (failing.failed, failing.suspect, failing.failed_at) = (true, false, now);
                    self.judge_state(now);
                }
            }
            Kind::Update { id, epoch, slots } => {
                if self.table.get(id).is_none_or(|owner| owner.epoch >= *epoch) {
                    return;
                }
                self.table.make_primary(id);
                if let Some(owner) = self.table.get_mut(id) {
                    owner.epoch = *epoch;
                }
                self.believe(id, *epoch, slots, now);
            }
            Kind::AskVote { force } => self.vote(&packet, *force, now),
            Kind::Vote => self.count_vote(&packet, now),
            Kind::AskPause => self.pause_for(&packet.sender, now),
        }
        self.catch_up(now);
    }

    /// Takes the sender's epochs; says whether it is known at all.
    fn hear(&mut self, packet: &Packet, now: Ms) -> bool {
        let Some(sender) = self.table.others.get_mut(&packet.sender) else { return false };
        sender.data_received = now;
        if !sender.handshake {
            sender.epoch = sender.epoch.max(packet.config_epoch);
            sender.offset = packet.offset;
            sender.shard.clone_from(&packet.shard);
            self.table.current_epoch = self.table.current_epoch.max(packet.current_epoch);
        }
        true
    }

    /// Answers a ping or a meet, and takes up whoever wants to be met.
    fn greet(&mut self, packet: &Packet, known: bool, link: u64, now: Ms) {
        let meets = matches!(packet.kind, Kind::Meet);
        if meets || self.table.me.address.is_none() {
            self.table.me.address = Some(self.address.clone());
        }
        if !known && meets {
            let stranger = Peer {
                address: Some(packet.from.clone()),
                handshake: true,
                known_since: now,
                ..Peer::default()
            };
            let provisional = self.dice.id();
            self.table.others.insert(provisional, stranger);
        }
        let answer = self.packet(Kind::Pong, Some(&packet.sender), now);
        let to = packet.from.clone();
        self.outbox.push(Outgoing { to, link, opened_by_sender: false, packet: answer });
        // A node that moved tells so by itself.
        if let Some(sender) = self.table.others.get_mut(&packet.sender)
            && !sender.handshake
            && sender.address.as_ref() != Some(&packet.from)
        {
            sender.address = Some(packet.from.clone());
            sender.link = None;
        }
    }

    /// What pings and pongs tell of the sender. `peer` is whose connection it came back on.
    fn follow(&mut self, packet: &Packet, peer: Option<ClusterNodeId>, now: Ms) {
        let sender = &packet.sender;
        // Looked up before a handshake ends: that packet introduces the node and tells no more.
        let known = self.table.others.contains_key(sender);
        if let Some(mut id) = peer {
            if self.table.others.get(&id).is_some_and(|p| p.handshake) {
                if known {
                    self.table.others.remove(&id);
                    return;
                }
                self.table.finish_handshake(&id, packet);
                id.clone_from(sender);
            } else if id != *sender {
                // Another node lives there now.
                if let Some(gone) = self.table.others.get_mut(&id) {
                    (gone.address, gone.link) = (None, None);
                }
                return;
            }
            self.heard_back(&id, now);
        }
        if !known {
            return;
        }
        self.take_role(packet);
        self.take_slots(packet, now);
        let Some(is_replica) = self.table.others.get(sender).map(|peer| peer.replica) else {
            return;
        };
        if !self.is_replica() && !is_replica && packet.config_epoch == self.table.me.epoch {
            self.part_epochs(sender);
        }
        for told in &packet.gossip {
            self.listen_to(told, sender, is_replica, now);
        }
        for (id, ttl) in &packet.forgotten {
            let mine = *id == self.table.my_id || self.table.me.primary.as_ref() == Some(id);
            if !mine && self.table.others.contains_key(id) {
                self.table.blacklist.insert(id.clone(), now + (*ttl).min(BLACKLIST_MS));
                self.table.remove(id);
            }
        }
        self.judge_state(now);
    }

    fn heard_back(&mut self, id: &ClusterNodeId, now: Ms) {
        let undo_after = self.node_timeout() * 2;
        let Some(peer) = self.table.others.get_mut(id) else { return };
        (peer.pong_received, peer.data_received, peer.ping_sent) = (now, now, 0);
        let harmless = peer.replica || peer.slots.is_empty();
        if peer.suspect {
            peer.suspect = false;
        } else if peer.failed && (harmless || now - peer.failed_at > undo_after) {
            peer.failed = false;
        }
    }

    fn take_role(&mut self, packet: &Packet) {
        let Some(primary) = &packet.primary else {
            return self.table.make_primary(&packet.sender);
        };
        if let Some(sender) = self.table.others.get_mut(&packet.sender) {
            if !sender.replica {
                sender.slots = Default::default();
            }
            sender.replica = true;
        }
        // A primary that this node does not know is nobody that it could follow.
        let known = self.table.get(primary).is_some();
        self.table.set_primary(&packet.sender, known.then(|| primary.clone()));
    }

    fn take_slots(&mut self, packet: &Packet, now: Ms) {
        let Some(sender) = self.table.get(&packet.sender) else { return };
        let head = if sender.replica { sender.primary.as_ref() } else { Some(&packet.sender) };
        let Some(head) = head.and_then(|id| self.table.get(id)) else { return };
        if head.slots == packet.slots {
            return;
        }
        if !sender.replica {
            self.believe(&packet.sender.clone(), packet.config_epoch, &packet.slots, now);
        }
        // Whoever claims what a newer owner has is told who that is.
        let newer = self.table.all().find(|(id, owner)| {
            **id != packet.sender
                && owner.epoch > packet.config_epoch
                && !owner.slots.intersection(&packet.slots).is_empty()
        });
        if let Some((id, owner)) = newer {
            let (id, epoch, slots) = (id.clone(), owner.epoch, owner.slots.clone());
            self.say(&packet.sender, Kind::Update { id, epoch, slots }, now);
        }
    }

    /// A claim of slots, and what follows from it: a primary that lost its last slot to another
    /// becomes that one's replica, and its replicas with it; keys of slots lost are deleted.
    pub fn believe(
        &mut self,
        owner: &ClusterNodeId,
        epoch: u64,
        slots: &crate::domain::slot::SlotSet,
        now: Ms,
    ) {
        self.follow_open_slots(owner, epoch, slots);
        // What is being imported only a command moves, except where open slots follow failovers.
        let importing = self.table.importing.keys().filter(|_| !self.tracks_open_slots());
        let fixed = importing.copied().collect();
        let taken = self.table.claim(owner, epoch, slots, &fixed);
        let migrates = self.settings.is_on("cluster-allow-replica-migration")
            || slots.count() == taken.from_my_shard;
        let upstream = self.table.me.primary.as_ref().and_then(|id| self.table.get(id));
        let chained = upstream.and_then(|peer| peer.primary.clone());
        if taken.from_my_shard > 0 && migrates && self.table.shard_head().1.slots.is_empty() {
            self.become_replica_of(owner);
        } else if let Some(top) = chained.filter(|top| *top != self.table.my_id) {
            self.become_replica_of(&top);
        } else if !taken.mine.is_empty() {
            self.drop_keys(taken.mine);
        }
        self.judge_state(now);
    }

    pub fn become_replica_of(&mut self, primary: &ClusterNodeId) {
        let joins = !self.table.share_shard(&self.table.my_id, primary);
        if !self.table.me.replica && (joins || !self.tracks_open_slots()) {
            self.table.migrating.clear();
            self.table.importing.clear();
        }
        if let Some(shard) = self.table.get(primary).map(|peer| peer.shard.clone()) {
            self.table.me.shard = shard;
        }
        self.table.me.replica = true;
        let my_id = self.table.my_id.clone();
        self.table.set_primary(&my_id, Some(primary.clone()));
        self.sync.stop();
        self.table.manual = Manual::Nothing;
        if self.begins_elections_anew() {
            self.table.election = Election::default();
        }
    }

    /// Two primaries with one epoch: the one whose id is the smaller takes a new one.
    fn part_epochs(&mut self, sender: &ClusterNodeId) {
        if *sender > self.table.my_id {
            self.table.current_epoch += 1;
            self.table.me.epoch = self.table.current_epoch;
        }
    }

    fn listen_to(&mut self, told: &Gossip, sender: &ClusterNodeId, is_replica: bool, now: Ms) {
        if told.id == self.table.my_id {
            return;
        }
        let timeout = self.node_timeout();
        let Some(peer) = self.table.others.get_mut(&told.id) else {
            if told.address.is_some() && !self.table.is_blacklisted(&told.id, now) {
                let peer = Peer {
                    address: told.address.clone(),
                    replica: told.replica,
                    known_since: now,
                    ..Peer::default()
                };
                self.table.others.insert(told.id.clone(), peer);
            }
            return;
        };
        if told.has_failed {
            if !is_replica {
                peer.reports.insert(sender.clone(), now);
                self.fail_if_agreed(&told.id, now);
            }
            return;
        }
        if !is_replica {
            peer.reports.remove(sender);
        }
        peer.reports.retain(|_, at| now - *at <= timeout * 2);
        if peer.ping_sent == 0 && peer.reports.is_empty() && told.pong_received <= now + 500 {
            peer.pong_received = peer.pong_received.max(told.pong_received);
        }
        if peer.has_failed() && told.address.is_some() && told.address != peer.address {
            peer.address.clone_from(&told.address);
            peer.link = None;
        }
    }
}

impl Table {
    /// The provisional id gives way to the true one.
    fn finish_handshake(&mut self, provisional: &ClusterNodeId, packet: &Packet) {
        let Some(mut peer) = self.others.remove(provisional) else { return };
        peer.handshake = false;
        peer.replica = packet.replica;
        peer.shard.clone_from(&packet.shard);
        self.others.insert(packet.sender.clone(), peer);
    }
}
