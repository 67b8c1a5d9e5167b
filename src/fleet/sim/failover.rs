//! Failovers that somebody asks for: what `CLUSTER FAILOVER` does on the replica that gets it and on
//! its primary, until an election decides or the time is up.

use super::bus::{Kind, Packet};
use super::server::Server;
use super::table::{Election, Ms, Table};
use super::verbs::Refusal;
use super::world::World;
use crate::domain::node::{Address, ClusterNodeId, Flavor, Version};
use crate::domain::step::command::FailoverMethod;

/// How long one may take; after twice that time a primary takes writes whatever has become of it.
const PATIENCE_MS: Ms = 5000;

/// By when all have heard a word, at the latest.
const WORD_MS: Ms = 10;

/// What a server does for a failover that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Manual {
    #[default]
    Nothing,
    /// The replica waits to hear how much its primary had written when it paused, and then until it
    /// has all of that.
    CatchingUp { until: Ms, to: Option<u64> },
    /// The replica may stand for election although its primary lives.
    MayStand { until: Ms },
    /// The primary takes no writes.
    Paused { until: Ms, replica: ClusterNodeId },
}

impl Manual {
    pub fn is_under_way(&self) -> bool {
        *self != Self::Nothing
    }

    pub fn may_stand(&self) -> bool {
        matches!(self, Self::MayStand { .. })
    }

    fn is_late(&self, now: Ms) -> bool {
        match self {
            Self::Nothing => false,
            Self::CatchingUp { until, .. }
            | Self::MayStand { until }
            | Self::Paused { until, .. } => *until < now,
        }
    }
}

impl Server {
    /// Whether it takes no writes: clients wait for their answers until it does again.
    pub fn is_paused(&self, now: Ms) -> bool {
        if now < self.paused_until {
            return true;
        }
        match &self.table.manual {
            Manual::Paused { until, .. } => now < until + PATIENCE_MS,
            Manual::Nothing | Manual::CatchingUp { .. } | Manual::MayStand { .. } => false,
        }
    }

    pub fn fail_over(&mut self, method: FailoverMethod, now: Ms) -> Result<(), Refusal> {
        if !self.is_replica() {
            return Err(Refusal::err("You should send CLUSTER FAILOVER to a replica"));
        }
        let renamed = self.flavor == Flavor::Valkey && self.version.major >= 8;
        let (word, named) = if renamed { ("primary", "Primary") } else { ("master", "Master") };
        let known = self.table.me.primary.clone();
        let known = known.and_then(|id| Some((self.table.others.get(&id)?, id)));
        let Some((peer, primary)) = known else {
            return Err(Refusal::err(format!("I'm a replica but my {word} is unknown to me")));
        };
        let lost = peer.failed || peer.link.is_none();
        let until = now + PATIENCE_MS;
        match method {
            FailoverMethod::Graceful if lost => {
                return Err(Refusal::err(format!(
                    "{named} is down or failed, please use CLUSTER FAILOVER FORCE"
                )));
            }
            FailoverMethod::Graceful => {
                self.table.manual = Manual::CatchingUp { until, to: None };
                self.say(&primary, Kind::AskPause, now);
            }
            FailoverMethod::Force => {
                self.may_stand(until);
                // Others do at their next tick.
                if self.begins_elections_anew() {
                    self.stand_for_election(now);
                }
            }
            FailoverMethod::Takeover => {
                self.table.bump_epoch();
                self.take_over(&primary, now);
            }
        }
        Ok(())
    }

    /// Valkey, from 8.1 on, lets no failover begin with what is left of an earlier election, and
    /// votes however lately it did so for a replica of the same primary. Elsewhere a node that won,
    /// was made a replica and stands again soon "wins" at once, with its old votes and old epoch.
    pub fn begins_elections_anew(&self) -> bool {
        self.flavor == Flavor::Valkey && self.version >= Version::new(8, 1, 0)
    }

    /// A replica asks its primary to take no writes until it has them all.
    pub fn pause_for(&mut self, replica: &ClusterNodeId, now: Ms) {
        let follows = |id: &ClusterNodeId| *id == self.table.my_id;
        let sender = self.table.others.get(replica);
        if sender.and_then(|p| p.primary.as_ref()).is_some_and(follows) {
            let (until, replica) = (now + PATIENCE_MS, replica.clone());
            self.table.manual = Manual::Paused { until, replica: replica.clone() };
            self.say(&replica, Kind::Ping, now);
        }
    }

    /// The first word of the paused primary says how far it came.
    pub fn hear_of_pause(&mut self, packet: &Packet) {
        let mine = self.is_replica() && self.table.me.primary.as_ref() == Some(&packet.sender);
        if let Manual::CatchingUp { to: to @ None, .. } = &mut self.table.manual
            && packet.paused
            && mine
        {
            *to = Some(packet.offset);
        }
    }

    /// What a server does ten times a second for a failover that is under way.
    pub fn press_on(&mut self, now: Ms) {
        if self.table.manual.is_late(now) {
            self.table.manual = Manual::Nothing;
        }
        if let Manual::Paused { replica, .. } = &self.table.manual {
            self.say(&replica.clone(), Kind::Ping, now);
        }
        self.catch_up(now);
    }

    /// Goes on as soon as the replica has all that its primary had written when it paused.
    pub fn catch_up(&mut self, now: Ms) {
        if let Manual::CatchingUp { until, to: Some(offset) } = self.table.manual
            && offset == self.sync.offset
            && self.is_replica()
        {
            self.may_stand(until);
            self.stand_for_election(now);
        }
    }

    fn may_stand(&mut self, until: Ms) {
        self.table.manual = Manual::MayStand { until };
        if self.begins_elections_anew() {
            self.table.election = Election::default();
        }
    }
}

impl World {
    /// In the shard of this node a replica takes over by force and with the votes of the others, as
    /// somebody else may have it do. Nothing else is done until all have heard of it.
    pub fn take_over(&mut self, member: &Address) {
        let serves = |s: &Server| {
            let primary = s.upstream().and_then(|up| self.servers.get(&up));
            primary.is_some_and(|p| p.is_running() && !p.table.me.slots.is_empty())
        };
        let of_shard = |s: &&Server| s.address == *member || s.upstream().as_ref() == Some(member);
        let able = |s: &&Server| s.is_running() && s.is_replica() && s.sync.is_up() && serves(s);
        let replica = self.servers.values().filter(of_shard).find(able);
        let Some(address) = replica.map(|s| s.address.clone()) else { return };
        let now = self.now;
        let Some(replica) = self.servers.get_mut(&address) else { return };
        // One that does not know its primary cannot.
        let _ = replica.fail_over(FailoverMethod::Force, now);
        self.settle(&address);
        while self.servers.get(&address).is_some_and(Server::is_replica) {
            if self.now > now + PATIENCE_MS {
                return;
            }
            self.advance(WORD_MS);
        }
        self.advance(WORD_MS);
        self.calls.taken_over_at = Some(self.now);
    }
}

impl Table {
    /// A new epoch without asking anybody, unless the node has the greatest already.
    pub fn bump_epoch(&mut self) {
        let greatest = self.all().map(|(_, peer)| peer.epoch).max().unwrap_or(0);
        if self.me.epoch == 0 || self.me.epoch != greatest.max(self.current_epoch) {
            self.current_epoch += 1;
            self.me.epoch = self.current_epoch;
        }
    }
}
