//! Replication: a replica's link to its primary, the first full copy, and writes that follow.

use std::collections::BTreeMap;

use super::dice::Dice;
use super::keys::Change;
use super::server::{Life, Server};
use super::table::Ms;
use crate::domain::node::Address;

/// What a full copy of little data takes at least and at most, and what it takes to go on where
/// one was.
const FULL_MS: std::ops::Range<Ms> = 50..900;
const PARTIAL_MS: Ms = 20;
/// How many bytes a ping from the primary is.
const PING_BYTES: u64 = 14;
/// How often a replica without link tries again, as servers do.
const RETRY_MS: Ms = 1000;

/// One server's part in replication.
#[derive(Debug, Clone)]
pub(super) struct Sync {
    pub link: SyncLink,
    /// Which history its data belongs to, and which one it shared before, up to where.
    pub replid: String,
    pub before: Option<(String, u64)>,
    /// Whether it counts what it writes: from its first replica on.
    pub counts: bool,
    pub offset: u64,
    /// From where on it could repeat what it wrote, if it were kept for ever.
    pub kept_from: u64,
    pub last_io: Ms,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SyncLink {
    /// No link; the next try is due at this time.
    Down {
        retry_at: Ms,
    },
    /// A copy is on its way and there at this time.
    Copying {
        from: Address,
        start: u64,
        done_at: Ms,
        full: bool,
    },
    Up {
        from: Address,
        start: u64,
    },
}

impl Sync {
    pub fn new(dice: &mut Dice) -> Self {
        Self {
            link: SyncLink::Down { retry_at: 0 },
            replid: dice.hex(),
            before: None,
            counts: false,
            offset: 0,
            kept_from: 0,
            last_io: 0,
        }
    }

    pub fn stop(&mut self) {
        self.link = SyncLink::Down { retry_at: 0 };
    }

    /// A history of its own from here on, which those who shared the old one can follow.
    pub fn promote(&mut self, replid: String) {
        self.stop();
        self.go_on_in(replid);
    }

    fn go_on_in(&mut self, replid: String) {
        let before = std::mem::replace(&mut self.replid, replid);
        self.before = Some((before, self.offset));
    }

    /// Whether one who was in that history that far has nothing that this one has not.
    fn leads(&self, replid: &str, offset: u64) -> bool {
        let before = self.before.as_ref().map(|(id, up_to)| (id.as_str(), *up_to));
        let histories = [Some((self.replid.as_str(), self.offset)), before];
        histories.into_iter().flatten().any(|(id, up_to)| id == replid && offset <= up_to)
    }

    pub fn is_up(&self) -> bool {
        matches!(self.link, SyncLink::Up { .. })
    }

    fn source(&self) -> Option<(&Address, u64)> {
        match &self.link {
            SyncLink::Down { .. } => None,
            SyncLink::Copying { from, start, .. } | SyncLink::Up { from, start } => {
                Some((from, *start))
            }
        }
    }
}

impl Server {
    /// Whom it replicates from: its primary as its table has it.
    pub fn upstream(&self) -> Option<Address> {
        if !self.clustered {
            return self.follows.clone();
        }
        let id = self.table.me.primary.as_ref().filter(|_| self.is_replica())?;
        self.table.get(id)?.address.clone()
    }

    /// `REPLICAOF`: what it has stays until its new primary says whether it can go on from there.
    pub fn replica_of(&mut self, primary: &Address, now: Ms) {
        if self.follows.as_ref() != Some(primary) {
            self.follows = Some(primary.clone());
            self.stream.clear();
            self.sync.link = SyncLink::Down { retry_at: now };
        }
    }

    /// `REPLICAOF NO ONE`.
    pub fn replica_of_none(&mut self) {
        if self.follows.take().is_some() {
            let history = self.dice.hex();
            self.sync.promote(history);
        }
    }
}

/// Lets a primary speak to its replicas now and then, as it does about every ten seconds.
pub(super) fn ping_replicas(primary: &mut Server) {
    let period = primary.settings.number("repl-ping-replica-period").max(1) * 10;
    // While it is paused a replica waits to reach an offset, which a ping would move on.
    let paused = primary.table.manual.is_under_way();
    if primary.sync.counts
        && !paused
        && !primary.is_replica()
        && primary.ticks.is_multiple_of(period)
    {
        primary.sync.offset += PING_BYTES;
    }
}

/// Brings every replica's link one step further.
pub(super) fn replicate(servers: &mut BTreeMap<Address, Server>, now: Ms) {
    let replicas: Vec<Address> = servers
        .iter()
        .filter(|(_, s)| s.is_running() && (s.is_replica() || s.sync.source().is_some()))
        .map(|(address, _)| address.clone())
        .collect();
    for address in replicas {
        let Some(mut replica) = servers.remove(&address) else { continue };
        step(&mut replica, servers, now);
        servers.insert(address, replica);
    }
}

fn step(replica: &mut Server, servers: &mut BTreeMap<Address, Server>, now: Ms) {
    let Some(upstream) = replica.upstream() else { return replica.sync.stop() };
    let Some(primary) = servers.get_mut(&upstream) else { return replica.sync.stop() };
    if let Some((from, start)) = replica.sync.source()
        && (*from != upstream || start != primary.start || primary.life == Life::Down)
    {
        replica.stream.clear();
        replica.sync.link = SyncLink::Down { retry_at: now + RETRY_MS };
    }
    if !primary.is_running() {
        // Frozen: the connection stays until nothing came for too long.
        let patience = replica.settings.number("repl-timeout") * 1000;
        if replica.sync.is_up() && now.saturating_sub(replica.sync.last_io) > patience {
            replica.sync.link = SyncLink::Down { retry_at: now + RETRY_MS };
        }
        return;
    }
    // Who was promoted cuts its replicas off, so that they hear of its new history.
    if !replica.clustered && replica.sync.is_up() && replica.sync.replid != primary.sync.replid {
        replica.sync.link = SyncLink::Down { retry_at: now };
    }
    match replica.sync.link.clone() {
        SyncLink::Up { .. } => {
            replica.sync.last_io = now;
            replica.sync.offset = primary.sync.offset;
        }
        SyncLink::Down { retry_at } if now < retry_at => {}
        SyncLink::Down { .. } if primary.is_replica() && !primary.sync.is_up() => {
            replica.sync.link = SyncLink::Down { retry_at: now + RETRY_MS };
        }
        SyncLink::Down { .. } => begin(replica, primary, now),
        SyncLink::Copying { done_at, .. } if now < done_at => {}
        SyncLink::Copying { from, start, full, .. } => {
            // To have a part of a history and to be sent the rest is to have it all.
            replica.keys.clone_from(&primary.keys);
            replica.libraries.clone_from(&primary.libraries);
            if replica.tracks_open_slots() {
                replica.table.migrating.clone_from(&primary.table.migrating);
                replica.table.importing.clone_from(&primary.table.importing);
            }
            if full {
                replica.sync.replid.clone_from(&primary.sync.replid);
                replica.sync.before = None;
                replica.sync.kept_from = primary.sync.offset;
            } else if replica.sync.replid != primary.sync.replid {
                replica.sync.go_on_in(primary.sync.replid.clone());
            }
            replica.sync.offset = primary.sync.offset;
            replica.sync.counts = true;
            replica.sync.last_io = now;
            replica.changes.clear();
            replica.stream.clear();
            replica.sync.link = SyncLink::Up { from, start };
        }
    }
}

/// Goes on where it was if the primary has all of its history and can repeat the rest, else copies
/// everything; a primary that sends without a disk waits for more replicas first.
fn begin(replica: &mut Server, primary: &mut Server, now: Ms) {
    let kept = primary.settings.number("repl-backlog-size");
    let kept_from = primary.sync.offset.saturating_sub(kept).max(primary.sync.kept_from);
    let shared = primary.sync.leads(&replica.sync.replid, replica.sync.offset);
    let full = !(shared && replica.sync.offset >= kept_from && primary.sync.counts);
    if !primary.sync.counts {
        (primary.sync.counts, primary.sync.kept_from) = (true, primary.sync.offset);
    }
    let diskless = primary.settings.is_on("repl-diskless-sync");
    let delay = primary.settings.number("repl-diskless-sync-delay") * 1000;
    let copying = FULL_MS.start + primary.dice.below(FULL_MS.end - FULL_MS.start);
    let takes = match (full, diskless) {
        (false, _) => PARTIAL_MS,
        (true, true) => copying + delay,
        (true, false) => copying,
    };
    replica.sync.link = SyncLink::Copying {
        from: primary.address.clone(),
        start: primary.start,
        done_at: now + takes,
        full,
    };
}

/// Hands a server's writes to the replicas that are linked to it.
pub(super) fn spread(servers: &mut BTreeMap<Address, Server>, from: &Address) {
    let Some(primary) = servers.get_mut(from) else { return };
    let (changes, start) = (std::mem::take(&mut primary.changes), primary.start);
    if changes.is_empty() {
        return;
    }
    let offset = primary.sync.offset;
    let follows = |s: &Server| s.sync.is_up() && s.sync.source() == Some((from, start));
    let replicas = servers.iter().filter(|(_, s)| follows(s)).map(|(a, _)| a.clone());
    let replicas: Vec<Address> = replicas.collect();
    for address in replicas {
        let Some(replica) = servers.get_mut(&address) else { continue };
        if replica.is_running() {
            changes.iter().for_each(|change: &Change| replica.write(change.clone()));
            replica.sync.offset = offset;
            spread(servers, &address);
        } else {
            replica.stream.extend(changes.iter().cloned());
        }
    }
}
