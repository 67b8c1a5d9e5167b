//! Who leads a lone shard: without a cluster's votes it is told by roles, by who follows whom, and by
//! what Reeve itself did.
//!
//! A node that says it is a primary is one only where something speaks for it: keys, a follower, a
//! history. A node that is blank says so too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::node::Address;
use super::observation::{DeposedMark, History, MarkKind, Observation, Report, Role, Sighting};
use super::sentinel;
use super::topology::Shard;
use super::view::{self, Primary};

/// The primary of a lone shard. Of two that claim it, one that Reeve deposed for the other is none.
#[must_use]
pub fn primary_of(shard: &Shard, seen: &Observation) -> Primary {
    // Where Sentinels watch, it is theirs to say.
    if let Some(named) = sentinel::named(&shard.members, seen) {
        return Primary::Settled(named.clone());
    }
    let claimants: Vec<&Address> = claimants(shard, seen);
    let standing: Vec<&Address> =
        claimants.iter().copied().filter(|node| !is_deposed(node, seen)).collect();
    let weighty: Vec<&Address> =
        standing.iter().copied().filter(|node| has_weight(node, shard, seen)).collect();
    match (weighty.as_slice(), standing.as_slice()) {
        ([one], _) => Primary::Settled((*one).clone()),
        ([], [one]) if may_lead(one, shard, seen) => Primary::Settled((*one).clone()),
        ([], _) => Primary::None,
        (several, _) => Primary::Contested(several.iter().map(|node| (*node).clone()).collect()),
    }
}

/// The primary of a lone shard, also one that is dead: whom most of the replicas that answer follow.
#[must_use]
pub fn incumbent(shard: &Shard, seen: &Observation) -> Option<Address> {
    if let Primary::Settled(node) = primary_of(shard, seen) {
        return Some(node);
    }
    // One that answers and is a replica itself is none to take over from, but for a hand-over.
    let most = followed(shard, seen).into_iter().max_by_key(|(_, votes)| *votes);
    most.map(|(node, _)| node.clone())
}

/// The member that this one waits for as a replica, where nobody leads.
#[must_use]
pub fn waits_for<'a>(node: &Address, shard: &'a Shard, seen: &Observation) -> Option<&'a Address> {
    let report = seen.report(node).filter(|r| r.role == Role::Replica && !r.loading)?;
    let followed = report.replication.primary.as_ref()?;
    let alone = primary_of(shard, seen) == Primary::None;
    shard.members.iter().find(|m| alone && *m == followed && *m != node)
}

/// Whoever led before and came back as a replica, as a node does whose file has it follow a sibling,
/// while nobody leads: it has what the others copied of it, unless it came back with less. Nobody where
/// two were followed by as many, since then it might be either.
#[must_use]
pub fn returned(shard: &Shard, seen: &Observation) -> Option<Address> {
    let mut followed = followed(shard, seen).into_iter().collect::<Vec<_>>();
    followed.sort_by_key(|(_, votes)| std::cmp::Reverse(*votes));
    let (led, votes) = followed.first().copied()?;
    let tied = followed.get(1).is_some_and(|(_, others)| *others == votes);
    let report = seen.report(led).filter(|_| !tied && shard.members.contains(led))?;
    let fullest = members_seen(shard, seen).all(|(_, other)| other.keys <= report.keys);
    (fullest && waits_for(led, shard, seen).is_some()).then(|| led.clone())
}

/// Whom the replicas that answer follow, each with how many do.
fn followed<'a>(shard: &'a Shard, seen: &'a Observation) -> BTreeMap<&'a Address, usize> {
    let mut followed: BTreeMap<&Address, usize> = BTreeMap::new();
    let replicas = members_seen(shard, seen).filter(|(_, r)| r.role == Role::Replica);
    for primary in replicas.filter_map(|(_, r)| r.replication.primary.as_ref()) {
        *followed.entry(primary).or_default() += 1;
    }
    followed
}

/// Whether it is a shard of nodes outside of clusters, as far as they were seen.
#[must_use]
pub fn is_lone(shard: &Shard, seen: &Observation) -> bool {
    let mut reports = members_seen(shard, seen).peekable();
    reports.peek().is_some() && reports.all(|(_, r)| !r.cluster_enabled)
}

/// The mark by which a node is no primary any more, while its successor is one.
#[must_use]
pub fn deposition<'a>(node: &'a Address, seen: &'a Observation) -> Option<&'a DeposedMark> {
    let leads = |a: &Address| seen.report(a).is_some_and(|r| r.role == Role::Primary);
    let marks = || seen.marks_on(node).filter_map(|m| m.what.deposed());
    // The successor may have had one in turn.
    let further = |mark: &DeposedMark| {
        let mut passed = BTreeSet::from([node]);
        let mut at = &mark.successor;
        while passed.insert(at) {
            let mut next = seen.marks_on(at).filter_map(|m| m.what.deposed());
            match next.next() {
                _ if leads(at) => return at != node,
                Some(mark) => at = &mark.successor,
                None => return false,
            }
        }
        false
    };
    marks().find(|mark| further(mark))
}

/// Whether a node has let go in a hand-over, and its successor has not taken over: nobody takes writes.
#[must_use]
pub fn is_headless(node: &Address, seen: &Observation) -> bool {
    let follows =
        |a: &Address, b: &Address| seen.report(a).is_some_and(|r| view::follows(r, Some(b), seen));
    let mut marks = seen.marks_on(node).filter_map(|m| m.what.deposed());
    marks.any(|mark| follows(node, &mark.successor) && follows(&mark.successor, node))
}

/// Two nodes that take writes for one shard, each with what speaks for it; empty where there are not
/// two.
#[must_use]
pub fn rivals(shard: &Shard, seen: &Observation) -> Vec<Claim> {
    let claimants = claimants(shard, seen);
    let counts = |node: &&&Address| {
        (has_weight(node, shard, seen) || is_deposed(node, seen)) && !is_held(node, seen)
    };
    let claims = claimants.iter().filter(counts).filter_map(|node| Claim::of(node, seen));
    let claims: Vec<Claim> = claims.collect();
    if claims.len() > 1 { claims } else { vec![] }
}

/// What speaks for a node that takes writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub node: Address,
    pub run_id: String,
    pub replid: String,
    pub before: Option<History>,
    pub offset: u64,
    pub keys: u64,
    pub connected_clients: u64,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at offset {} of {} with {} keys and {} clients",
            self.node, self.offset, self.replid, self.keys, self.connected_clients
        )
    }
}

impl Claim {
    fn of(node: &Address, seen: &Observation) -> Option<Self> {
        let report = seen.report(node)?;
        Some(Self {
            node: node.clone(),
            run_id: report.run_id.clone(),
            replid: report.replication.replid.clone(),
            before: report.replication.before.clone(),
            offset: report.replication.offset,
            keys: report.keys,
            connected_clients: report.connected_clients,
        })
    }
}

/// Whether a primary was started anew without what it had.
#[must_use]
pub fn is_emptied(node: &Address, seen: &Observation) -> bool {
    let run_id = seen.report(node).map(|r| &r.run_id);
    let of = |kind: &MarkKind| matches!(kind, MarkKind::Emptied(e) if Some(&e.run_id) == run_id);
    seen.marks_on(node).any(|m| of(&m.what))
}

/// Whether a replica gets its data by way of another replica of the shard, whose links are up.
#[must_use]
pub fn is_chained(report: &Report, shard: &Shard, seen: &Observation) -> bool {
    let up = report.role == Role::Replica && report.replication.link_up;
    let parent = report.replication.primary.as_ref().filter(|p| shard.members.contains(p));
    let parent = parent.and_then(|p| seen.report(p));
    up && parent.is_some_and(|p| p.role == Role::Replica && p.replication.link_up)
}

/// Replicas that do not answer and that the primary does not hear from either.
#[must_use]
pub fn dead_members(shard: &Shard, seen: &Observation) -> BTreeSet<Address> {
    let primary = primary_of(shard, seen).settled().cloned();
    let Some(primary) = primary.as_ref().and_then(|p| seen.report(p)) else {
        return BTreeSet::new();
    };
    let attached = |node: &Address| primary.replication.replicas.iter().any(|r| r.address == *node);
    let dead =
        |node: &&Address| matches!(seen.sighting(node), Sighting::Silent(_)) && !attached(node);
    shard.members.iter().filter(dead).cloned().collect()
}

fn members_seen<'a>(
    shard: &'a Shard,
    seen: &'a Observation,
) -> impl Iterator<Item = (&'a Address, &'a Report)> {
    shard.members.iter().filter_map(|node| Some((node, seen.report(node)?)))
}

/// Those who say that they are primary and serve.
fn claimants<'a>(shard: &'a Shard, seen: &'a Observation) -> Vec<&'a Address> {
    let serves = |r: &Report| r.role == Role::Primary && !r.loading;
    members_seen(shard, seen).filter(|(_, r)| serves(r)).map(|(node, _)| node).collect()
}

fn is_deposed(node: &Address, seen: &Observation) -> bool {
    deposition(node, seen).is_some()
}

/// Whether writes to it wait because Reeve had them wait.
fn is_held(node: &Address, seen: &Observation) -> bool {
    let Some(now) = seen.report(node).map(|r| r.observed_at) else { return false };
    let mut marks = seen.marks_on(node);
    marks.any(|m| matches!(&m.what, MarkKind::Paused(paused) if paused.until > now))
}

fn has_weight(node: &Address, shard: &Shard, seen: &Observation) -> bool {
    let followed = || {
        let mut replicas = members_seen(shard, seen).filter(|(_, r)| r.role == Role::Replica);
        replicas.any(|(_, r)| r.replication.primary.as_ref() == Some(node))
    };
    seen.report(node).is_some_and(|r| r.keys > 0) || followed()
}

/// Whether a node without keys and followers is the primary all the same: nobody who answers follows
/// another, and it is the only one, had replicas before, or all others were seen.
fn may_lead(node: &Address, shard: &Shard, seen: &Observation) -> bool {
    let others = || members_seen(shard, seen).filter(|(other, _)| *other != node);
    let led_otherwise = others().any(|(_, r)| r.role == Role::Replica);
    let known = shard.members.len() == 1
        || others().count() + 1 == shard.members.len()
        || seen.report(node).is_some_and(|r| r.replication.offset > 0);
    !led_otherwise && known
}
