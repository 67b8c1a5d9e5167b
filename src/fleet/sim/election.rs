//! Who has failed, who takes its place, and whether the cluster is fit to serve.

use super::bus::{Kind, Packet};
use super::failover::Manual;
use super::server::Server;
use super::table::{Election, Ms, Peer};
use crate::domain::node::ClusterNodeId;
use crate::domain::slot::SlotSet;

/// How long a primary that just started does not serve.
const WRITABLE_DELAY_MS: Ms = 2000;

impl Server {
    /// Suspicion becomes certainty when most primaries that serve slots share it.
    pub fn fail_if_agreed(&mut self, id: &ClusterNodeId, now: Ms) {
        let (_, quorum) = self.table.quorum();
        let (timeout, votes) = (self.node_timeout(), !self.is_replica());
        let Some(peer) = self.table.others.get_mut(id) else { return };
        peer.reports.retain(|_, at| now - *at <= timeout * 2);
        if !peer.suspect || peer.failed || peer.reports.len() + usize::from(votes) < quorum {
            return;
        }
        (peer.failed, peer.suspect, peer.failed_at) = (true, false, now);
        if votes {
            self.tell_all(&Kind::Fail(id.clone()), now);
        }
        self.judge_state(now);
    }

    /// Whether the cluster is fit to serve, as this node sees it.
    pub fn judge_state(&mut self, now: Ms) {
        let full = self.settings.is_on("cluster-require-full-coverage");
        let delay = self.node_timeout().clamp(500, 5000);
        let primary = !self.is_replica();
        let table = &mut self.table;
        if table.first_judged == 0 {
            table.first_judged = now;
        }
        if primary && !table.state_ok && now - table.first_judged < WRITABLE_DELAY_MS {
            return;
        }
        let serves = |p: &Peer| !p.replica && !p.slots.is_empty();
        let covered = || {
            let living = table.all().filter(|(_, p)| !p.failed);
            let slots = living.flat_map(|(_, p)| p.slots.ranges().iter().copied());
            slots.collect::<SlotSet>() == SlotSet::all()
        };
        let mut ok = !full || covered();
        let reachable = table.all().filter(|(_, p)| serves(p) && !p.has_failed()).count();
        if reachable < table.quorum().1 {
            ok = false;
            table.in_minority = now;
        }
        // Back from a minority, a primary waits to hear whether somebody took its place.
        if ok && !table.state_ok && primary && now - table.in_minority < delay {
            return;
        }
        table.state_ok = ok;
    }

    /// A replica of a failed primary, or one that may stand all the same, asks the others to let it
    /// take over.
    pub fn stand_for_election(&mut self, now: Ms) {
        let Some(primary) = self.table.me.primary.clone().filter(|_| self.is_replica()) else {
            return;
        };
        let timeout = self.node_timeout();
        let manual = self.table.manual.is_under_way();
        let serves = |p: &&Peer| !p.slots.is_empty();
        let Some(failed) = self.table.get(&primary).filter(serves).map(|p| p.failed) else {
            return;
        };
        let barred = self.settings.is_on("cluster-replica-no-failover");
        let called = failed && !barred && !self.is_too_stale(now);
        if !called && !self.table.manual.may_stand() {
            return;
        }
        let auth_timeout = (timeout * 2).max(2000);
        let mut age = now.saturating_sub(self.table.election.at);
        if self.table.election.at == 0 || age > auth_timeout * 2 {
            let rank = if manual { 0 } else { self.rank(&primary) };
            let delay = if manual { 0 } else { 500 + self.dice.below(500) + rank * 1000 };
            self.table.election = Election { at: now + delay, rank, ..Election::default() };
            age = 0;
        }
        if !self.table.election.asked && !manual {
            let rank = self.rank(&primary);
            let election = &mut self.table.election;
            if rank > election.rank {
                election.at += (rank - election.rank) * 1000;
                election.rank = rank;
            }
        }
        if now < self.table.election.at || age > auth_timeout {
            return;
        }
        if !self.table.election.asked {
            self.table.current_epoch += 1;
            self.table.election.epoch = self.table.current_epoch;
            self.table.election.asked = true;
            self.tell_all(&Kind::AskVote { force: manual }, now);
        } else if self.table.election.votes >= self.table.quorum().1 {
            self.table.me.epoch = self.table.me.epoch.max(self.table.election.epoch);
            self.take_over(&primary, now);
        }
    }

    /// Whether it was without its primary for too long to stand.
    fn is_too_stale(&self, now: Ms) -> bool {
        let factor = self.settings.number("cluster-replica-validity-factor");
        let age = now.saturating_sub(self.sync.last_io).saturating_sub(self.node_timeout());
        let period = self.settings.number("repl-ping-replica-period") * 1000;
        factor != 0 && age > period + self.node_timeout() * factor
    }

    /// How many of its siblings have more of the data.
    fn rank(&self, primary: &ClusterNodeId) -> u64 {
        let sibling = |p: &&Peer| p.replica && p.primary.as_ref() == Some(primary);
        let ahead = |p: &&Peer| p.offset > self.sync.offset;
        self.table.others.values().filter(sibling).filter(ahead).count() as u64
    }

    /// Becomes primary with the epoch that it has, and tells everybody.
    pub fn take_over(&mut self, primary: &ClusterNodeId, now: Ms) {
        let my_id = self.table.my_id.clone();
        self.table.make_primary(&my_id);
        let slots = self.table.others.get_mut(primary).map(|p| std::mem::take(&mut p.slots));
        self.table.me.slots = self.table.me.slots.union(&slots.unwrap_or_default());
        let new = self.dice.hex();
        self.sync.promote(new);
        self.judge_state(now);
        self.tell_all(&Kind::Pong, now);
        self.table.manual = Manual::Nothing;
    }

    /// One vote an epoch, for a replica that knows all newer claims and whose primary has failed, or
    /// is to be replaced all the same.
    pub fn vote(&mut self, packet: &Packet, force: bool, now: Ms) {
        let patience = self.node_timeout() * 2;
        if self.is_replica() || self.table.me.slots.is_empty() {
            return;
        }
        if packet.current_epoch < self.table.current_epoch
            || self.table.last_vote_epoch == self.table.current_epoch
        {
            return;
        }
        let candidate = self.table.others.get(&packet.sender).filter(|p| p.replica);
        let Some(id) = candidate.and_then(|p| p.primary.clone()) else { return };
        let Some(primary) = self.table.get(&id).filter(|p| p.failed || force) else { return };
        let limited = !self.begins_elections_anew();
        let voted_lately = limited && primary.voted_at != 0 && now - primary.voted_at < patience;
        let newer = |p: &Peer| {
            p.epoch > packet.config_epoch && !p.slots.intersection(&packet.slots).is_empty()
        };
        if voted_lately || self.table.all().any(|(_, p)| newer(p)) {
            return;
        }
        if let Some(primary) = self.table.get_mut(&id) {
            primary.voted_at = now;
        }
        self.table.last_vote_epoch = self.table.current_epoch;
        self.say(&packet.sender, Kind::Vote, now);
    }

    pub fn count_vote(&mut self, packet: &Packet, now: Ms) {
        let voter = self.table.others.get(&packet.sender);
        let may = voter.is_some_and(|p| !p.replica && !p.slots.is_empty());
        if may && packet.current_epoch >= self.table.election.epoch {
            self.table.election.votes += 1;
            self.stand_for_election(now);
        }
    }
}
