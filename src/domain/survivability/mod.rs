//! What a topology survives: every loss of one node, one host, one zone and one pair of nodes is
//! tried, so that nobody has to believe a rule of thumb.
//!
//! A shard without its primary is served again once a replica is promoted. Who promotes it is a
//! matter of the mode ([`Electors`]). In a cluster it takes the votes of a majority of *all*
//! primaries that own slots, given by those that are left (the Redis Cluster specification, "Replica
//! election and promotion"); a shard without slots has no vote and nothing to lose. With Sentinels it
//! takes a majority of *all* Sentinels, and the quorum where that is more: the quorum alone says that
//! the primary is down, and authorises nobody (`sentinelGetLeader`). In replication mode nothing
//! promotes by itself.

mod imagined;
mod strangers;
#[cfg(test)]
mod tests;
mod trial;
mod why;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::imagined::{Promoted, Survivor, WhatIfOutcome, imagine};
pub use self::strangers::strangers;
use self::trial::Trial;
use super::id::ShardId;
use super::node::Address;
use super::observation::{Observation, Sighting};
use super::slot::SlotSet;
use super::spec::Spec;
use super::topology::{Shard, Topology};
use super::view;

/// What a topology survives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Survivability {
    pub survives: Survives,
    pub node_pairs: NodePairs,
    /// One for each node, then each host, then each zone.
    pub losses: Vec<Loss>,
}

/// Whether every loss of a kind ends `intact` or in a `failover`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Survives {
    pub any_node: bool,
    pub any_host: bool,
    pub any_zone: bool,
}

/// How many of all pairs of nodes may be lost at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodePairs {
    pub total: usize,
    pub survived: usize,
}

/// What fails at the same time: these nodes and all that is on these hosts and in these zones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Lost {
    pub nodes: Vec<Address>,
    pub hosts: Vec<String>,
    pub zones: Vec<String>,
}

/// What one failure does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Loss {
    pub lost: Lost,
    pub outcome: Outcome,
    /// The shards that nobody serves afterwards.
    pub shards_lost: Vec<ShardId>,
    pub slots_lost: usize,
    /// Who can vote for a new primary and is left: primaries with slots, or Sentinels. In
    /// replication mode nobody votes.
    pub voters_left: usize,
    /// How many of them a promotion takes.
    pub voters_needed: usize,
    pub why: String,
}

/// How a failure ends, the best first. The worst that holds is told: `data_unavailable` comes
/// before `no_quorum`, because a promotion can be made by hand (a `failover` with method `force` or
/// `takeover`), while a shard without members can only be restored; and that before `writes_refused`,
/// because there reads are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// No primary is lost.
    Intact,
    /// Every primary that is lost has a replica left, and enough voters to promote it.
    Failover,
    /// Every shard has or gets a primary, but one has fewer replicas left than
    /// `min-replicas-to-write` asks for, so it takes no writes until one is back.
    WritesRefused,
    /// Replicas are left, but too few voters to promote them by themselves.
    NoQuorum,
    /// Some shard has no member left.
    DataUnavailable,
}

impl Outcome {
    #[must_use]
    pub fn survived(self) -> bool {
        self <= Self::Failover
    }
}

/// A node with a part, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub address: Address,
    pub zone: String,
    pub host: String,
}

/// A shard as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub id: ShardId,
    pub slots: SlotSet,
    /// Never empty, as in a layout.
    pub members: Vec<Part>,
    /// `None` while nobody can say who it is; then the loss of any member is taken for its loss.
    pub primary: Option<Address>,
    /// Its primary does not answer now: it has no vote in what comes next.
    pub mute: bool,
    /// With fewer replicas its primary takes no writes (`min-replicas-to-write`).
    pub least_replicas: usize,
}

impl Group {
    /// The primary, if it is known. One that is no member tells as little as none.
    fn leader(&self) -> Option<&Address> {
        self.primary.as_ref().filter(|p| self.members.iter().any(|m| m.address == **p))
    }
}

/// Who promotes a replica where a primary is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Electors {
    /// A majority of the primaries that own slots.
    Primaries,
    /// Sentinels. `parts` are those that answer, of `all`; `needed` counts the others too.
    Sentinels { parts: Vec<Part>, all: usize, needed: usize },
    /// A person.
    Nobody,
}

/// A topology as far as its survival goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scene {
    pub groups: Vec<Group>,
    pub electors: Electors,
}

/// The shards and who promotes in them, with the places of all, and with the primaries that are
/// seen. Without an observation any member may be the primary.
#[must_use]
pub fn scene(wanted: &Topology, seen: &Observation) -> Scene {
    let places = wanted.places();
    let part = |address: &Address| {
        let place = places.get(address);
        Part {
            address: address.clone(),
            zone: place.map_or(String::new(), |p| p.zone.clone()),
            host: place.map_or(address.host().to_owned(), |p| p.machine().to_owned()),
        }
    };
    // Who is silent now is no help in the next loss.
    let answers = |a: &&Address| !matches!(seen.sighting(a), Sighting::Silent(_));
    let living = |shard: &Shard| {
        let living: Vec<_> = shard.members.iter().filter(answers).map(part).collect();
        if living.is_empty() { shard.members.iter().map(part).collect() } else { living }
    };
    let least = wanted.spec.settings().get("min-replicas-to-write");
    let least_replicas = least.and_then(|n| n.parse().ok()).unwrap_or(0);
    let group = |(shard, slots): (&Shard, SlotSet)| {
        let primary = view::primary_of(shard, &slots, seen).settled().cloned();
        let mute = match &primary {
            Some(primary) => !answers(&primary),
            None => !shard.members.iter().any(|member| answers(&member)),
        };
        let (id, members) = (shard.id, living(shard));
        Group { id, mute, least_replicas, members, primary, slots }
    };
    let electors = match &wanted.spec {
        Spec::Cluster(_) => Electors::Primaries,
        Spec::Replication(_) => Electors::Nobody,
        Spec::Sentinel(spec) => {
            let all = wanted.layout.sentinels();
            let majority = all.len() / 2 + 1;
            Electors::Sentinels {
                parts: all.iter().filter(answers).map(part).collect(),
                all: all.len(),
                needed: spec.quorum.map_or(majority, |q| majority.max(usize::from(q))),
            }
        }
    };
    Scene { groups: wanted.layout.shards().into_iter().map(group).collect(), electors }
}

/// Tries every failure.
#[must_use]
pub fn survivability(scene: &Scene) -> Survivability {
    let trial = Trial::new(scene);
    let node = |i: usize| {
        let nodes = vec![trial.parts[i].part.address.clone()];
        trial.loss(Lost { nodes, ..Lost::default() }, &[i])
    };
    let nodes: Vec<Loss> = (0..trial.parts.len()).map(node).collect();
    let hosts: Vec<Loss> = trial
        .domains(|part| &part.host)
        .into_iter()
        .map(|(host, at)| trial.loss(Lost { hosts: vec![host.clone()], ..Lost::default() }, &at))
        .collect();
    let zones: Vec<Loss> = trial
        .domains(|part| &part.zone)
        .into_iter()
        .map(|(zone, at)| trial.loss(Lost { zones: vec![zone.clone()], ..Lost::default() }, &at))
        .collect();
    let all = |losses: &[Loss]| losses.iter().all(|loss| loss.outcome.survived());
    Survivability {
        survives: Survives { any_node: all(&nodes), any_host: all(&hosts), any_zone: all(&zones) },
        node_pairs: trial.pairs(),
        losses: [nodes, hosts, zones].concat(),
    }
}

/// What one failure would do. What `fail` names and nobody has is lost without harm.
#[must_use]
pub fn what_if(scene: &Scene, fail: &Lost) -> Loss {
    let trial = Trial::new(scene);
    let hit = Hits::of(fail);
    let at: Vec<usize> = (0..trial.parts.len()).filter(|&i| hit.on(trial.parts[i].part)).collect();
    trial.loss(fail.clone(), &at)
}

/// Which parts a failure takes.
struct Hits<'a> {
    nodes: BTreeSet<&'a Address>,
    hosts: BTreeSet<&'a String>,
    zones: BTreeSet<&'a String>,
}

impl<'a> Hits<'a> {
    fn of(fail: &'a Lost) -> Self {
        Self {
            nodes: fail.nodes.iter().collect(),
            hosts: fail.hosts.iter().collect(),
            zones: fail.zones.iter().collect(),
        }
    }

    fn on(&self, part: &Part) -> bool {
        self.nodes.contains(&part.address)
            || self.hosts.contains(&part.host)
            || self.zones.contains(&part.zone)
    }
}
