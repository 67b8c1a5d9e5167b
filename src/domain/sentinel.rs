//! What one Sentinel says: whom it watches, and how it finds them.
//!
//! A Sentinel's word is an opinion. Several are compared before anything is believed, and who is
//! primary is confirmed by the node itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::node::Address;
use super::observation::{Observation, Report, Role};

/// How often a Sentinel asks a replica for its role while it fails over.
const ASKS_EACH_MS: u64 = 1_000;
/// Begun so much after a Sentinel asked a replica, its promotion falls just before it is asked again;
/// begun later than that, just after.
pub const RIPE_MS: u64 = 300;
const LATE_MS: u64 = 650;

/// One Sentinel, as it shows itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
pub struct SentinelView {
    /// The id by which the others know it.
    pub my_id: String,
    /// Whether it mistrusts its clock, and so does nothing for a while.
    pub tilt: bool,
    /// The deployments that it watches, by the names that clients ask for; only the one that was asked
    /// about, if one was.
    pub watches: BTreeMap<String, Watch>,
}

/// What a Sentinel knows of one deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
pub struct Watch {
    /// Whom it takes for the primary; null where it names nobody that could be reached.
    pub primary: Option<Address>,
    /// The primary's process, once the Sentinel has spoken to it.
    pub run_id: String,
    pub flags: BTreeSet<String>,
    /// The number of the failover that made this primary one; the greatest is the newest.
    pub epoch: u64,
    pub quorum: u16,
    pub down_after_ms: u64,
    pub failover_timeout_ms: u64,
    pub parallel_syncs: u64,
    /// What a failover that is under way has come to.
    pub failover: Option<String>,
    pub replicas: Vec<WatchedReplica>,
    /// The other Sentinels, by their ids.
    pub sentinels: BTreeMap<String, WatchedSentinel>,
    /// Why a failover could not be agreed on now (`CKQUORUM`); null where it could.
    pub no_quorum: Option<String>,
}

/// A replica as a Sentinel sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WatchedReplica {
    pub address: Address,
    /// Its process, once the Sentinel has spoken to it.
    pub run_id: String,
    pub flags: BTreeSet<String>,
    pub link_up: bool,
    pub priority: u64,
    pub offset: u64,
    /// How old what it knows of the replica is.
    pub age_ms: u64,
}

/// Another Sentinel as a Sentinel sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WatchedSentinel {
    pub address: Option<Address>,
    pub down: bool,
    /// Whether it has not announced itself for some time, as one that watches does every two seconds.
    #[serde(default)]
    pub quiet: bool,
}

impl Watch {
    /// Whether the Sentinel holds the primary for down, by itself or together with others.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.has("s_down") || self.has("o_down")
    }

    /// Whether the Sentinel leads a failover.
    #[must_use]
    pub fn fails_over(&self) -> bool {
        self.failover.is_some() || self.has("failover_in_progress")
    }

    #[must_use]
    pub fn has(&self, flag: &str) -> bool {
        self.flags.contains(flag)
    }

    /// The primary as the node is called here: a Sentinel knows IP addresses, and a node may have been
    /// named by its host; its process tells.
    #[must_use]
    pub fn primary_in<'a>(&'a self, seen: &'a Observation) -> Option<&'a Address> {
        called(self.primary.as_ref(), &self.run_id, seen)
    }
}

impl WatchedReplica {
    #[must_use]
    pub fn is_down(&self) -> bool {
        ["s_down", "o_down", "disconnected"].iter().any(|flag| self.flags.contains(*flag))
    }

    /// The same as [`Watch::primary_in`].
    #[must_use]
    pub fn address_in<'a>(&'a self, seen: &'a Observation) -> &'a Address {
        called(Some(&self.address), &self.run_id, seen).unwrap_or(&self.address)
    }
}

fn called<'a>(
    told: Option<&'a Address>,
    run_id: &str,
    seen: &'a Observation,
) -> Option<&'a Address> {
    let same = |a: &&Address| seen.report(a).is_some_and(|r| r.run_id == run_id);
    let known = told.filter(|a| seen.nodes.contains_key(*a));
    known.or_else(|| seen.nodes.keys().find(same)).or(told)
}

/// The Sentinels of one deployment, and whom they are to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watchers {
    /// The name under which they watch it.
    pub name: String,
    pub sentinels: Vec<Address>,
    /// The data nodes.
    pub members: Vec<Address>,
    /// Nodes that they may know, whatever has become of them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub apart: BTreeSet<Address>,
}

impl Watchers {
    /// What a Sentinel still lacks to do its part; nothing if it could.
    #[must_use]
    pub fn lacking(&self, sentinel: &Address, seen: &Observation) -> Option<String> {
        let estranged = self.estranged(sentinel, seen);
        estranged.or_else(|| {
            let watch = seen.watch(sentinel, &self.name)?;
            let named = watch.primary_in(seen);
            let known = |a: &Address| {
                watch.replicas.iter().any(|r| r.address_in(seen) == a && !r.is_down())
            };
            let mut replicas = self.members.iter().filter(|a| Some(*a) != named);
            match replicas.find(|a| !known(a)) {
                Some(missing) => Some(format!("does not know the replica {missing} yet")),
                None => watch.no_quorum.clone(),
            }
        })
    }

    /// What keeps a Sentinel from agreeing with the others that the primary is down.
    #[must_use]
    pub fn estranged(&self, sentinel: &Address, seen: &Observation) -> Option<String> {
        let Some(view) = seen.report(sentinel).map(|r| &r.sentinel) else {
            return Some("does not answer".to_owned());
        };
        let Some(view) = view else { return Some("is no Sentinel".to_owned()) };
        let Some(watch) = view.watches.get(&self.name) else {
            return Some(format!("does not watch `{}` yet", self.name));
        };
        let believed = self.believed(seen).map(|(primary, _)| primary);
        let named = watch.primary_in(seen);
        if view.tilt {
            return Some("mistrusts its clock (tilt)".to_owned());
        } else if named.is_none() || named != believed {
            let names = |a: Option<&Address>| a.map_or("nobody".to_owned(), Address::to_string);
            return Some(format!(
                "takes {} for the primary, which is {}",
                names(named),
                names(believed)
            ));
        } else if watch.is_down() || watch.has("disconnected") {
            return Some("does not reach the primary".to_owned());
        } else if watch.fails_over() {
            return Some("leads a failover".to_owned());
        }
        let others = self.sentinels.iter().filter(|a| *a != sentinel);
        for other in others {
            let id = seen.report(other).and_then(|r| r.sentinel.as_ref()).map(|v| &v.my_id);
            let Some(id) = id else { return Some(format!("waits for {other}")) };
            match watch.sentinels.get(id) {
                None => return Some(format!("does not know the Sentinel {other} yet")),
                Some(known) if known.down => {
                    return Some(format!("does not reach the Sentinel {other}"));
                }
                Some(_) => {}
            }
        }
        None
    }

    /// A Sentinel that this one knows although it is not wanted, if there is one.
    #[must_use]
    pub fn superfluous(&self, sentinel: &Address, seen: &Observation) -> Option<String> {
        let gone = self.ghosts(sentinel, seen);
        let strange = self.strangers(sentinel, seen);
        let replica = gone.replicas.first().map(ToString::to_string);
        let name = replica.or(strange.values().next().map(ToString::to_string));
        let name = name.or(gone.sentinels.first().cloned())?;
        Some(format!("still counts {name} in"))
    }

    /// Who is to have this replica promoted, of the Sentinels that reach it and act. Whoever leads tells
    /// its own clients last, when the other replicas follow: so the one with the fewest clients, and of
    /// several the one that is listed last, since clients ask in the order in which they list.
    #[must_use]
    pub fn leader(&self, to: &Address, seen: &Observation) -> Option<&Address> {
        let clients = |s: &&Address| seen.report(s).map_or(u64::MAX, |r| r.connected_clients);
        let reaches = |s: &&Address| self.replica(s, to, seen).is_some_and(|r| !r.is_down());
        let acts = |s: &&Address| !mistrusts_its_clock(s, seen);
        self.sentinels.iter().rev().filter(acts).filter(reaches).min_by_key(clients)
    }

    /// Any Sentinel that would promote this replica, if it were to fail over now.
    #[must_use]
    pub fn leader_now(&self, to: &Address, seen: &Observation) -> Option<&Address> {
        self.sentinels.iter().rev().find(|s| self.would_choose(s, to, seen))
    }

    /// Whether it is time to have this Sentinel do so. While it fails over, it asks a replica for its role
    /// once a second: if it asked just before, it learns of the promotion a second late.
    #[must_use]
    pub fn is_ripe(&self, leader: &Address, to: &Address, seen: &Observation) -> bool {
        let age = self.replica(leader, to, seen).map(|r| r.age_ms);
        self.would_choose(leader, to, seen)
            && age.is_some_and(|age| age >= RIPE_MS && !(LATE_MS..ASKS_EACH_MS).contains(&age))
    }

    /// After how long the most impatient of the Sentinels hold a primary for down.
    #[must_use]
    pub fn down_after_ms(&self, seen: &Observation) -> Option<u64> {
        let watches = self.sentinels.iter().filter_map(|s| seen.watch(s, &self.name));
        watches.map(|w| w.down_after_ms).min()
    }

    fn replica<'a>(
        &self,
        sentinel: &Address,
        replica: &Address,
        seen: &'a Observation,
    ) -> Option<&'a WatchedReplica> {
        let known = &seen.watch(sentinel, &self.name)?.replicas;
        known.iter().find(|r| r.address_in(seen) == replica)
    }

    /// Whether a Sentinel would promote this replica: the one with the lowest priority. Of several, what it
    /// knows of their data would decide, which may be old.
    #[must_use]
    pub fn would_choose(&self, sentinel: &Address, to: &Address, seen: &Observation) -> bool {
        if mistrusts_its_clock(sentinel, seen) {
            return false;
        }
        let Some(watch) = seen.watch(sentinel, &self.name) else { return false };
        let usable = || watch.replicas.iter().filter(|r| !r.is_down() && r.priority > 0);
        let Some(own) = usable().find(|r| r.address_in(seen) == to) else { return false };
        usable().all(|r| r.address_in(seen) == to || r.priority > own.priority)
    }

    /// The greatest epoch that a Sentinel has.
    #[must_use]
    pub fn newest_epoch(&self, seen: &Observation) -> u64 {
        let watches = self.sentinels.iter().filter_map(|s| seen.watch(s, &self.name));
        watches.map(|w| w.epoch).max().unwrap_or(0)
    }

    /// Whom the Sentinels name as primary with the greatest epoch, if that node says so too.
    #[must_use]
    pub fn believed<'a>(&self, seen: &'a Observation) -> Option<(&'a Address, u64)> {
        let watches = self.sentinels.iter().filter_map(|s| seen.watch(s, &self.name));
        let newest = watches.max_by_key(|w| w.epoch)?;
        let primary = newest.primary_in(seen)?;
        let says_so = seen.report(primary).is_some_and(|r| r.role == Role::Primary);
        says_so.then_some((primary, newest.epoch))
    }

    /// Whom a Sentinel knows although they are not there any more: the ids of Sentinels, and replicas.
    /// Who lives is no ghost, unless it was seen to have nothing to do with this deployment.
    #[must_use]
    pub fn ghosts(&self, sentinel: &Address, seen: &Observation) -> Ghosts {
        let Some(watch) = seen.watch(sentinel, &self.name) else { return Ghosts::default() };
        let wanted: BTreeSet<&String> = self.ids(seen).collect();
        let apart = |a: Option<&Address>| a.is_some_and(|a| self.apart.contains(a));
        let others = watch.sentinels.iter().filter(|(id, _)| !wanted.contains(id));
        let others = others.filter(|(_, other)| !apart(other.address.as_ref()));
        let idle = |id: &String| seen.nodes.keys().any(|a| self.is_idle(a, id, seen));
        let sentinels = others
            .filter(|(id, other)| other.down || other.quiet || idle(id))
            .map(|(id, _)| id.clone());
        let foreign = |r: &&WatchedReplica| {
            let at = r.address_in(seen);
            !self.members.contains(at) && !self.apart.contains(at)
        };
        let follows = |a: &Address| seen.report(a).is_some_and(|r| r.replication.primary.is_some());
        let gone = |r: &&WatchedReplica| {
            let at = r.address_in(seen);
            (seen.report(at).is_some() && !follows(at)) || (r.is_down() && !follows(at))
        };
        let replicas = watch.replicas.iter().filter(foreign).filter(gone);
        let replicas = replicas.map(|r| r.address_in(seen).clone()).collect();
        Ghosts { sentinels: sentinels.collect(), replicas }
    }

    /// Sentinels that take part although nobody wants them to: they live, and nothing shows that they
    /// stopped.
    #[must_use]
    pub fn strangers(&self, sentinel: &Address, seen: &Observation) -> BTreeMap<String, Address> {
        let Some(watch) = seen.watch(sentinel, &self.name) else { return BTreeMap::new() };
        let ghosts = self.ghosts(sentinel, seen).sentinels;
        let wanted: BTreeSet<&String> = self.ids(seen).collect();
        // One that does not answer may be any of those that are only known by their address.
        let by_address = |a: Option<&Address>| {
            a.is_some_and(|a| self.sentinels.contains(a) || self.apart.contains(a))
        };
        let strange = |(id, other): &(&String, &WatchedSentinel)| {
            !wanted.contains(id) && !ghosts.contains(*id) && !by_address(other.address.as_ref())
        };
        let others = watch.sentinels.iter().filter(strange);
        others.filter_map(|(id, o)| Some((id.clone(), o.address.clone()?))).collect()
    }

    /// Those of the Sentinels that are gone: they do not answer, and all others that do miss them too.
    #[must_use]
    pub fn dead(&self, seen: &Observation) -> BTreeSet<Address> {
        let watches: Vec<&Watch> =
            self.sentinels.iter().filter_map(|s| seen.watch(s, &self.name)).collect();
        let missed = |node: &&Address| {
            let known = watches.iter().flat_map(|w| w.sentinels.values());
            let mut known = known.filter(|o| o.address.as_ref() == Some(*node)).peekable();
            known.peek().is_some() && known.all(|o| o.down)
        };
        let silent = |node: &&Address| seen.report(node).is_none();
        self.sentinels.iter().filter(silent).filter(missed).cloned().collect()
    }

    fn ids<'a>(&'a self, seen: &'a Observation) -> impl Iterator<Item = &'a String> {
        let views = self.sentinels.iter().filter_map(|s| seen.report(s)?.sentinel.as_ref());
        views.map(|view| &view.my_id)
    }

    /// Whether a node is the Sentinel of that id and watches no such deployment.
    fn is_idle(&self, node: &Address, id: &str, seen: &Observation) -> bool {
        let view = seen.report(node).and_then(|r| r.sentinel.as_ref());
        view.is_some_and(|v| v.my_id == id && !v.watches.contains_key(&self.name))
    }
}

/// Whether a Sentinel does nothing for a while (tilt), or is none.
fn mistrusts_its_clock(sentinel: &Address, seen: &Observation) -> bool {
    seen.report(sentinel).and_then(|r| r.sentinel.as_ref()).is_none_or(|view| view.tilt)
}

/// Whom Sentinels name as primary of a shard with the greatest epoch, if that node says so too; nobody
/// where no Sentinel watches it.
#[must_use]
pub fn named<'a>(members: &[Address], seen: &'a Observation) -> Option<&'a Address> {
    let views = seen.nodes.keys().filter_map(|a| seen.report(a)?.sentinel.as_ref());
    let ours = |w: &&Watch| {
        let known = |a: &Address| members.contains(a);
        w.primary_in(seen).is_some_and(known)
    };
    let newest = views.flat_map(|v| v.watches.values()).filter(ours).max_by_key(|w| w.epoch)?;
    let primary = newest.primary_in(seen)?;
    let says_so = |r: &Report| r.role == Role::Primary && !r.loading;
    seen.report(primary).is_some_and(says_so).then_some(primary)
}

/// Who is known and not there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ghosts {
    pub sentinels: BTreeSet<String>,
    pub replicas: BTreeSet<Address>,
}

impl Ghosts {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sentinels.is_empty() && self.replicas.is_empty()
    }
}
