//! What a simulated Sentinel does by itself ten times a second: it pings, asks for `INFO`, says hello,
//! finds out who is down, and asks the others whether they think so too.

use std::collections::BTreeMap;

use super::sentinel::{Instance, Other, Sentinel, Watched};
use super::server::{Life, Server};
use super::table::Ms;
use crate::domain::node::Address;

type Servers = BTreeMap<Address, Server>;

const PING_MS: Ms = 1000;
const INFO_MS: Ms = 10_000;
const INFO_IN_HASTE_MS: Ms = 1000;
pub(super) const HELLO_MS: Ms = 2000;
const ASK_AGAIN_MS: Ms = 5000;
/// How long one that was to follow may say that it is primary before it is told again.
const CONVERT_MS: Ms = HELLO_MS * 4;
/// By how much Sentinels keep out of each other's way.
const DESYNC_MS: Ms = 1000;

/// One Sentinel's turn.
pub(super) fn tick(servers: &mut Servers, me: &Address, now: Ms) {
    let Some(mut server) = servers.remove(me) else { return };
    if let Some(mut sentinel) = server.sentinel.take() {
        if server.is_running() {
            let names: Vec<String> = sentinel.watches.keys().cloned().collect();
            for name in names {
                let delay = server.dice.below(DESYNC_MS);
                turn(&mut sentinel, &name, me, servers, now, delay);
            }
        }
        server.sentinel = Some(sentinel);
    }
    servers.insert(me.clone(), server);
}

fn turn(s: &mut Sentinel, name: &str, me: &Address, servers: &mut Servers, now: Ms, delay: Ms) {
    let id = s.id.clone();
    let Some(w) = s.watches.get_mut(name) else { return };
    w.ping(servers, now);
    w.inform(servers, now);
    if now.saturating_sub(w.hello_at) >= HELLO_MS {
        w.hello_at = now;
        hello(s, name, me, servers, now);
    }
    let Some(w) = s.watches.get_mut(name) else { return };
    w.judge(now);
    let epoch = s.epoch;
    w.ask_others(&id, epoch, servers, now);
    w.agree(now);
    let patient = now.saturating_sub(w.tried_at) > w.failover_timeout * 2 || w.tried_at == 0;
    if w.agreed_down && w.failover.is_none() && patient {
        s.epoch += 1;
        w.begin(s.epoch, now, false);
        if let Some(failover) = &mut w.failover {
            failover.begins_at = now + delay;
        }
    }
    let switched = w.switch(&id, servers, now);
    if switched {
        hello(s, name, me, servers, now);
    }
}

impl Watched {
    fn ping(&mut self, servers: &Servers, now: Ms) {
        for (at, instance) in instances(self) {
            let server = servers.get(&at);
            instance.linked = server.is_some_and(|s| s.life != Life::Down);
            // What it publishes there is a write, and its pings come after it.
            let answers = server.is_some_and(|s| s.is_running() && !s.is_paused(now));
            if answers {
                instance.heard_at = now;
            }
        }
        for other in self.sentinels.values_mut() {
            if servers.get(&other.at).is_some_and(Server::is_running) {
                other.heard_at = now;
            }
        }
    }

    fn inform(&mut self, servers: &mut Servers, now: Ms) {
        let hasty = self.agreed_down || self.failover.is_some();
        let primary = self.at.clone();
        let due = |(at, instance): &(Address, &mut Instance)| {
            let haste = *at != primary && (hasty || !instance.link_up);
            let period = if haste { INFO_IN_HASTE_MS } else { INFO_MS };
            instance.info_at.is_none_or(|at| now.saturating_sub(at) >= period)
        };
        let due: Vec<Address> = instances(self).filter(due).map(|(at, _)| at).collect();
        for at in due {
            if !servers.get(&at).is_some_and(Server::is_running) {
                continue;
            }
            if at == primary {
                self.hear_primary(servers, now);
            } else {
                self.hear_replica(&at, servers, now);
            }
        }
    }

    fn hear_primary(&mut self, servers: &Servers, now: Ms) {
        let Some(server) = servers.get(&self.at) else { return };
        note(&mut self.primary, server, now);
        let follows = |s: &&Server| {
            s.is_running() && s.sync.is_up() && s.upstream().as_ref() == Some(&self.at)
        };
        let attached: Vec<Address> =
            servers.values().filter(follows).map(|s| s.address.clone()).collect();
        for at in attached {
            self.replicas.entry(at).or_insert_with(|| Instance::new(true, now));
        }
    }

    fn hear_replica(&mut self, at: &Address, servers: &mut Servers, now: Ms) {
        let Some(server) = servers.get(at) else { return };
        let Some(replica) = self.replicas.get_mut(at) else { return };
        note(replica, server, now);
        let replica = replica.clone();
        if self.promotes(at) {
            return;
        }
        let sane = !self.primary.replica
            && !self.primary.down
            && self.primary.info_at.is_some_and(|at| now.saturating_sub(at) < INFO_MS * 2);
        let strays = !replica.replica && now.saturating_sub(replica.role_at) > CONVERT_MS;
        let elsewhere = replica.replica
            && replica.upstream.as_ref() != Some(&self.at)
            && now.saturating_sub(replica.upstream_at) > self.failover_timeout;
        if sane && !replica.down && self.failover.is_none() && (strays || elsewhere) {
            obey(servers, at, Some(&self.at.clone()), now);
        }
    }

    fn judge(&mut self, now: Ms) {
        let down_after = self.down_after;
        let fell_silent = |heard: Ms| now.saturating_sub(heard) > down_after;
        for replica in self.replicas.values_mut() {
            replica.down = fell_silent(replica.heard_at);
        }
        for other in self.sentinels.values_mut() {
            other.down = fell_silent(other.heard_at);
        }
        let demoted = self.primary.replica
            && now.saturating_sub(self.primary.role_at) > down_after + INFO_MS * 2;
        self.primary.down = fell_silent(self.primary.heard_at) || demoted;
    }

    /// Asks whether the others hold the primary for down, and for their votes where a failover waits.
    fn ask_others(&mut self, me: &str, epoch: u64, servers: &mut Servers, now: Ms) {
        if !self.primary.down {
            return;
        }
        let candidate = self.failover.as_ref().map(|_| me.to_owned());
        for other in self.sentinels.values_mut() {
            let asked = other.says_down_at.is_some_and(|at| now.saturating_sub(at) < PING_MS);
            if asked && candidate.is_none() {
                continue;
            }
            let Some(server) = servers.get_mut(&other.at).filter(|s| s.is_running()) else {
                continue;
            };
            let Some(theirs) = &mut server.sentinel else { continue };
            let Some(watched) = theirs.watches.values_mut().find(|w| w.at == self.at) else {
                continue;
            };
            other.says_down_at = watched.primary.down.then_some(now);
            if let Some(me) = &candidate {
                theirs.epoch = theirs.epoch.max(epoch);
                if watched.vote.as_ref().is_none_or(|(_, at)| *at < epoch) {
                    watched.vote = Some((me.clone(), epoch));
                    watched.tried_at = now;
                }
                other.vote.clone_from(&watched.vote);
            }
        }
    }

    fn agree(&mut self, now: Ms) {
        let recent =
            |o: &&Other| o.says_down_at.is_some_and(|at| now.saturating_sub(at) < ASK_AGAIN_MS);
        let votes = 1 + self.sentinels.values().filter(recent).count();
        self.agreed_down = self.primary.down && votes >= usize::from(self.quorum);
    }

    /// Takes over who is primary from somebody who knows better.
    pub fn move_to(&mut self, primary: &Address, now: Ms) {
        if self.at == *primary {
            return;
        }
        let known: Vec<Address> = self.replicas.keys().cloned().chain([self.at.clone()]).collect();
        self.reset(true, now);
        self.at = primary.clone();
        for at in known.into_iter().filter(|at| at != primary) {
            self.replicas.insert(at, Instance::new(true, now));
        }
    }
}

/// What is said where the others listen: at the data nodes that they know, too.
fn hello(s: &mut Sentinel, name: &str, me: &Address, servers: &mut Servers, now: Ms) {
    let Some(w) = s.watches.get(name) else { return };
    let places: Vec<Address> = w.replicas.keys().chain([&w.at]).cloned().collect();
    let takes = |at: &Address| servers.get(at).is_some_and(|s| s.is_running() && !s.is_paused(now));
    let places: Vec<Address> = places.into_iter().filter(takes).collect();
    let told_primary = w.told_primary();
    let (id, epoch, config_epoch) = (s.id.clone(), s.epoch, w.config_epoch);
    for server in servers.values_mut().filter(|s| s.is_running()) {
        let Some(other) = &mut server.sentinel else { continue };
        let Some(theirs) = other.watches.get_mut(name) else { continue };
        if !places.iter().any(|at| theirs.at == *at || theirs.replicas.contains_key(at)) {
            continue;
        }
        other.epoch = other.epoch.max(epoch);
        theirs.sentinels.retain(|known, o| *known == id || o.at != *me);
        let fresh =
            || Other { at: me.clone(), heard_at: now, down: false, says_down_at: None, vote: None };
        theirs.sentinels.entry(id.clone()).or_insert_with(fresh).at = me.clone();
        if config_epoch > theirs.config_epoch {
            theirs.config_epoch = config_epoch;
            theirs.move_to(&told_primary, now);
        }
    }
}

fn instances(w: &mut Watched) -> impl Iterator<Item = (Address, &mut Instance)> {
    let primary = std::iter::once((w.at.clone(), &mut w.primary));
    primary.chain(w.replicas.iter_mut().map(|(at, instance)| (at.clone(), instance)))
}

/// Reads the answer to `INFO`.
fn note(instance: &mut Instance, server: &Server, now: Ms) {
    instance.info_at = Some(now);
    instance.run_id.clone_from(&server.run_id);
    if instance.replica != server.is_replica() {
        (instance.replica, instance.role_at) = (server.is_replica(), now);
    }
    let upstream = server.upstream();
    if instance.upstream != upstream {
        (instance.upstream, instance.upstream_at) = (upstream, now);
    }
    instance.link_up = server.sync.is_up();
    instance.priority = server.settings.number("replica-priority");
    instance.offset = server.sync.offset;
}

/// Has a data node follow another, or nobody, as Sentinels do: the rest is lost, and its clients have to
/// come again.
pub(super) fn obey(servers: &mut Servers, node: &Address, primary: Option<&Address>, now: Ms) {
    if let Some(server) = servers.get_mut(node).filter(|s| s.is_running()) {
        match primary {
            Some(primary) => server.replica_of(primary, now),
            None => server.replica_of_none(),
        }
        // Without a file to write it goes on all the same.
        if server.settings.rewrite().is_ok() {
            server.follows_by_file.clone_from(&server.follows);
        }
    }
}
