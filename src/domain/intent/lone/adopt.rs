//! A primary with replicas that runs becomes a topology as it is: from any of its nodes to its
//! primary, and from there to all who follow, by way of others too.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::id::ShardId;
use crate::domain::intent::adopt::{Adoption, Request, UNKNOWN_ZONE};
use crate::domain::intent::create::mixed_versions;
use crate::domain::lineage;
use crate::domain::node::{Address, NodeKind};
use crate::domain::observation::{Observation, Report, Role, Sighting};
use crate::domain::placement::Warning;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::spec::{NodeSpec, ReplicationSpec, Spec};
use crate::domain::topology::{Layout, Shard};

/// The nodes that those that were seen know by replication, and that were not looked at yet.
pub fn unasked(seen: &Observation) -> BTreeSet<Address> {
    let reports = seen.nodes.keys().filter_map(|a| lone(a, seen));
    let known = reports.flat_map(neighbours);
    known.filter(|a| !seen.nodes.contains_key(*a)).cloned().collect()
}

/// The deployment that a node outside of clusters belongs to, as a topology of mode replication.
pub fn adopt(request: &Request, seed: &Address, seen: &Observation) -> Result<Adoption, Refusal> {
    let at_seeds = |why: String| Refusal::Invalid(vec![FieldError::new("/seeds", why)]);
    let names = Names::of(seen);
    let primary = head(seed, &names, seen).map_err(at_seeds)?;
    let members = following(&primary, &names, seen);
    refuse_others(request, seed, &members, &names)?;
    let zones = zones(request, &members, &names)?;
    let zone = |a: &Address| zones.get(a).cloned().unwrap_or_else(|| UNKNOWN_ZONE.to_owned());
    let node = |a: &Address| NodeSpec { address: a.clone(), zone: zone(a), host: None };
    let shard = shard(request, members.clone());
    let spec = Spec::Replication(ReplicationSpec {
        replicas: u16::try_from(members.len().saturating_sub(1)).unwrap_or(u16::MAX),
        nodes: members.iter().map(node).collect(),
        credentials: request.credentials.clone(),
        tls: None,
        placement: Default::default(),
        settings: BTreeMap::new(),
        failover: Default::default(),
        overrides: Default::default(),
    });
    let wrong = spec.validate();
    if !wrong.is_empty() {
        return Err(Refusal::Invalid(
            wrong.into_iter().map(|e| FieldError::new("/seeds", e.detail)).collect(),
        ));
    }
    let warnings = warnings(&shard, &primary, &zones, &spec, seen);
    Ok(Adoption { spec, layout: Layout::Replication { shard }, seed: seed.clone(), warnings })
}

/// The one shard of these members.
pub(super) fn shard(request: &Request, members: Vec<Address>) -> Shard {
    Shard { id: ShardId::derive(request.topology, 0), index: 0, members }
}

/// A node outside of clusters that was seen.
fn lone<'a>(node: &Address, seen: &'a Observation) -> Option<&'a Report> {
    seen.report(node).filter(|r| r.kind == NodeKind::Data && !r.cluster_enabled)
}

fn neighbours(report: &Report) -> impl Iterator<Item = &Address> {
    let replicas = report.replication.replicas.iter().map(|r| &r.address);
    report.replication.primary.iter().chain(replicas)
}

/// One name for each process: nodes may be known by several, of which that counts by which its
/// replicas call it.
pub(super) struct Names<'a>(BTreeMap<&'a Address, &'a Address>);

impl<'a> Names<'a> {
    pub fn of(seen: &'a Observation) -> Self {
        let mut called: BTreeSet<&Address> = BTreeSet::new();
        let mut by_process: BTreeMap<&str, Vec<&Address>> = BTreeMap::new();
        for (address, sighting) in &seen.nodes {
            if let Sighting::Seen(report) = sighting {
                called.extend(&report.replication.primary);
                by_process.entry(&report.run_id).or_default().push(address);
            }
        }
        let mut names = BTreeMap::new();
        for all in by_process.values() {
            let name = all.iter().find(|a| called.contains(*a)).or(all.first());
            for address in all {
                names.extend(name.map(|name| (*address, *name)));
            }
        }
        Self(names)
    }

    pub fn name<'b>(&'b self, address: &'b Address) -> &'b Address {
        self.0.get(address).copied().unwrap_or(address)
    }
}

/// The primary at the head of a node's chain.
fn head(seed: &Address, names: &Names, seen: &Observation) -> Result<Address, String> {
    let mut at = names.name(seed).clone();
    let mut passed = BTreeSet::from([at.clone()]);
    loop {
        let Some(report) = seen.report(&at) else {
            return Err(format!(
                "{at} is the primary of {seed} and does not answer: bring it back, or have a replica take over, and ask again"
            ));
        };
        if report.cluster_enabled {
            return Err(format!("{at} runs in cluster mode, and a node follows it that does not"));
        }
        let Some(next) =
            report.replication.primary.as_ref().filter(|_| report.role == Role::Replica)
        else {
            return Ok(at);
        };
        at = names.name(next).clone();
        if !passed.insert(at.clone()) {
            return Err(format!("{seed} and those that it follows go round in a circle"));
        }
    }
}

/// The primary, and all who follow it, the nearest first.
pub(super) fn following(primary: &Address, names: &Names, seen: &Observation) -> Vec<Address> {
    let mut members = vec![primary.clone()];
    let mut at = 0;
    while let Some(node) = members.get(at).cloned() {
        at += 1;
        let attached = seen.report(&node).into_iter().flat_map(|r| &r.replication.replicas);
        let attached = attached.map(|r| names.name(&r.address).clone());
        let follows = |a: &&Address| {
            lone(a, seen).is_some_and(|r| {
                r.role == Role::Replica
                    && r.replication.primary.as_ref().is_some_and(|p| names.name(p) == &node)
            })
        };
        let told = seen.nodes.keys().filter(follows).map(|a| names.name(a).clone());
        // Whoever does not answer there is known by its connection alone.
        let all: BTreeSet<Address> = attached.chain(told).collect();
        let fresh: Vec<Address> = all.into_iter().filter(|a| !members.contains(a)).collect();
        members.extend(fresh);
    }
    members
}

fn refuse_others(
    request: &Request,
    first: &Address,
    members: &[Address],
    names: &Names,
) -> Result<(), Refusal> {
    let outside = |(i, seed): (usize, &Address)| {
        (!members.contains(names.name(seed))).then(|| {
            let why = format!("{seed} and {first} are not of one deployment: name seeds of one");
            FieldError::new(format!("/seeds/{i}"), why)
        })
    };
    let errors: Vec<_> = request.seeds.iter().enumerate().filter_map(outside).collect();
    if errors.is_empty() { Ok(()) } else { Err(Refusal::Invalid(errors)) }
}

/// The zones by the addresses that nodes get in the spec; the request may name others of theirs.
fn zones(
    request: &Request,
    members: &[Address],
    names: &Names,
) -> Result<BTreeMap<Address, String>, Refusal> {
    let (mut zones, mut errors) = (BTreeMap::new(), Vec::new());
    for (named, zone) in request.zones {
        let node = names.name(named);
        if members.contains(node) {
            zones.insert(node.clone(), zone.clone());
        } else {
            let all: Vec<_> = members.iter().map(ToString::to_string).collect();
            errors.push(FieldError::new(
                format!("/zones/{named}"),
                format!("{named} is no node of this deployment, whose nodes are {}: correct the address, or leave it out", all.join(", ")),
            ));
        }
    }
    if errors.is_empty() { Ok(zones) } else { Err(Refusal::Invalid(errors)) }
}

fn warnings(
    shard: &Shard,
    primary: &Address,
    zones: &BTreeMap<Address, String>,
    spec: &Spec,
    seen: &Observation,
) -> Vec<Warning> {
    let warning = |code: &str, message: String| Warning { code: code.to_owned(), message };
    let mut warnings = Vec::new();
    for node in shard.members.iter().filter(|m| *m != primary) {
        match seen.report(node) {
            None => warnings.push(warning(
                "silent_member",
                format!("{node} is connected to a node of the deployment and does not answer here: open the way to it, or correct its replica-announce-ip"),
            )),
            Some(report) if lineage::is_chained(report, shard, seen) => warnings.push(warning(
                "chained_replica",
                format!("{node} is a replica of a replica: repair would make it one of {primary}"),
            )),
            Some(_) => {}
        }
    }
    if shard.members.len() == 1 {
        warnings.push(warning("no_replica", format!("{primary} has no replica")));
    }
    let unplaced = shard.members.iter().filter(|m| !zones.contains_key(*m)).count();
    if unplaced > 0 {
        warnings.push(warning(
            "zone_unknown",
            format!(
                "{unplaced} nodes have no zone: name them with `zones`, or later in the spec (PUT)"
            ),
        ));
    }
    warnings.extend(mixed_versions(spec.nodes(), seen));
    warnings
}
