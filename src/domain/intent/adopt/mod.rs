//! Adopt: a cluster that runs becomes a topology as it is. Nothing changes on nodes, so it is read
//! whatever state it is in; what could not be taken as plain is told by warnings.

mod circle;
mod owners;
mod warnings;

use std::collections::{BTreeMap, BTreeSet};

use self::circle::Circle;
use self::owners::{Owner, Parts};
use super::create::{cannot_be_read, first_fault};
use super::lone;
use super::reshape::reshaped;
use crate::domain::id::{ShardId, TopologyId};
use crate::domain::node::{Address, ClusterNodeId, NodeKind};
use crate::domain::observation::{Observation, Sighting};
use crate::domain::placement::Warning;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::slot::SlotSet;
use crate::domain::spec::{ClusterSpec, CredentialNames, MAX_NODES, NodeSpec, Spec};
use crate::domain::topology::{Layout, Shard, Shards};

/// The zone of nodes for which none is given.
pub const UNKNOWN_ZONE: &str = "unknown";

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub topology: TopologyId,
    /// Nodes of the cluster; any that answers leads to the others.
    pub seeds: &'a [Address],
    pub zones: &'a BTreeMap<Address, String>,
    pub credentials: &'a CredentialNames,
}

/// A cluster as a topology.
#[derive(Debug, Clone, PartialEq)]
pub struct Adoption {
    pub spec: Spec,
    pub layout: Layout,
    /// The first seed that answered.
    pub seed: Address,
    pub warnings: Vec<Warning>,
}

/// The addresses to look at before `adopt` can be asked, as far as they are known by now: first
/// the seeds, then whom those know, and so on.
pub fn unasked(seeds: &[Address], seen: &Observation) -> Result<BTreeSet<Address>, Refusal> {
    let ids: BTreeSet<&ClusterNodeId> =
        seeds.iter().filter_map(|s| seen.view(s)).map(|v| &v.my_id).collect();
    let known = ids.into_iter().flat_map(|id| circle::unasked(id, seen));
    let fresh = seeds.iter().filter(|s| !seen.nodes.contains_key(s));
    let mut unasked: BTreeSet<Address> = fresh.chain(known).cloned().collect();
    unasked.extend(lone::adopt::unasked(seen));
    unasked.extend(lone::adopt_watched::unasked(seeds, seen));
    // A node may be known by two addresses.
    if seen.nodes.len() + unasked.len() > 2 * MAX_NODES {
        return Err(too_many());
    }
    Ok(unasked)
}

/// The seen cluster as spec and layout. `seen` holds a look at every address that [`unasked`] named.
pub fn adopt(request: &Request, seen: &Observation) -> Result<Adoption, Refusal> {
    if let Some(name) = lone::adopt_watched::meant(request.seeds, seen)? {
        return lone::adopt_watched::adopt(request, &name, seen);
    }
    let (seed, first) = match seed(request, seen)? {
        Seed::Cluster(seed, first) => (seed, first),
        Seed::Lone(seed) => return lone::adopt::adopt(request, seed, seen),
    };
    let circle = Circle::around(first, seen);
    refuse_other_clusters(request, seed, &circle, seen)?;
    let parts = Parts::of(&circle.parties);
    refuse_shapeless(seed, &circle, &parts)?;
    let (shards, given) = shards(request.topology, &parts.owners);
    let zones = zones(request, &circle, seen)?;
    let zone = |a: &Address| zones.get(a).map_or(UNKNOWN_ZONE, |z| z.as_str()).to_owned();
    let members = shards.iter().flat_map(|(shard, _)| &shard.members);
    let placed: BTreeSet<&Address> = members.clone().collect();
    let spares = circle.parties.iter().map(|p| p.address).filter(|a| !placed.contains(a));
    let node = |a: &Address| NodeSpec { address: a.clone(), zone: zone(a), host: None };
    let bare = ClusterSpec {
        shards: 0,
        replicas_per_shard: 0,
        nodes: members.chain(spares).map(node).collect(),
        credentials: request.credentials.clone(),
        tls: None,
        placement: Default::default(),
        settings: BTreeMap::new(),
        failover: Default::default(),
        overrides: Default::default(),
    };
    let warnings = warnings::warnings(&warnings::Ground {
        circle: &circle,
        parts: &parts,
        shards: &shards,
        given: &given,
        zones: &zones,
        nodes: &bare.nodes,
        seeds: request.seeds,
        seen,
    });
    let spec = Spec::Cluster(reshaped(bare, &shards));
    let wrong = spec.validate();
    if !wrong.is_empty() {
        let at_seeds = |e: FieldError| FieldError::new("/seeds", e.detail);
        return Err(Refusal::Invalid(wrong.into_iter().map(at_seeds).collect()));
    }
    let shards = Shards::new(shards)
        .map_err(|why| Refusal::Invalid(vec![FieldError::new("/seeds", why.to_string())]))?;
    Ok(Adoption { spec, layout: Layout::Cluster { shards }, seed: seed.clone(), warnings })
}

/// The first seed that answers.
enum Seed<'a> {
    Cluster(&'a Address, &'a ClusterNodeId),
    /// One outside of clusters.
    Lone(&'a Address),
}

fn seed<'a>(request: &Request<'a>, seen: &'a Observation) -> Result<Seed<'a>, Refusal> {
    let (mut first, mut silent): (Option<Seed>, _) = (None, Vec::new());
    for (i, seed) in request.seeds.iter().enumerate() {
        let mut unread = |detail: String| {
            silent.push(FieldError::new(format!("/seeds/{i}"), format!("{seed} {detail}")));
        };
        match seen.sighting(seed) {
            Sighting::Unknown => unread("was not looked at; try again".to_owned()),
            Sighting::Silent(s) => {
                let login = "credentials.admin (credentials.sentinel where it is a Sentinel)";
                unread(cannot_be_read(&s.code, &s.message, login));
            }
            Sighting::Seen(report) if report.kind == NodeKind::Sentinel => {
                return Err(no_data_node(seed, "is a Sentinel"));
            }
            Sighting::Seen(report) if report.loading => {
                unread("still loads its data: try again when it is done".to_owned());
            }
            Sighting::Seen(report) if !report.cluster_enabled => {
                if matches!(first, Some(Seed::Cluster(..))) {
                    return Err(other_kind(i, seed));
                }
                first = first.or(Some(Seed::Lone(seed)));
            }
            Sighting::Seen(_) if matches!(first, Some(Seed::Lone(_))) => {
                return Err(other_kind(i, seed));
            }
            Sighting::Seen(report) => match &report.cluster {
                Some(view) => first = first.or(Some(Seed::Cluster(seed, &view.my_id))),
                None => unread("does not let this user see the cluster: give the ACL user the rights that the documentation lists".to_owned()),
            },
        }
    }
    let redis = first_fault(request.seeds.iter(), seen);
    first.ok_or(Refusal::NodesUnfit { errors: silent, redis })
}

fn no_data_node(seed: &Address, what: &str) -> Refusal {
    Refusal::Unsupported(format!(
        "{seed} {what} and does not say whom it watches: give the ACL user the rights that the documentation lists, or name data nodes"
    ))
}

fn other_kind(i: usize, seed: &Address) -> Refusal {
    let why = format!(
        "{seed} is of another kind than the seeds before it, of which one runs in cluster mode and one does not: name seeds of one deployment"
    );
    Refusal::Invalid(vec![FieldError::new(format!("/seeds/{i}"), why)])
}

fn refuse_other_clusters(
    request: &Request,
    first: &Address,
    circle: &Circle,
    seen: &Observation,
) -> Result<(), Refusal> {
    let inside: BTreeSet<&ClusterNodeId> = circle.parties.iter().map(|p| p.id).collect();
    let outside = |(i, seed): (usize, &Address)| {
        let id = &seen.view(seed)?.my_id;
        (!inside.contains(id)).then(|| {
            FieldError::new(
                format!("/seeds/{i}"),
                format!("{seed} and {first} do not know each other, so they are not of one cluster: name seeds of one"),
            )
        })
    };
    let errors: Vec<_> = request.seeds.iter().enumerate().filter_map(outside).collect();
    if errors.is_empty() { Ok(()) } else { Err(Refusal::Invalid(errors)) }
}

/// Clusters that a topology cannot describe.
fn refuse_shapeless(seed: &Address, circle: &Circle, parts: &Parts) -> Result<(), Refusal> {
    let refuse = |detail: String| Err(Refusal::Invalid(vec![FieldError::new("/seeds", detail)]));
    if circle.parties.len() > MAX_NODES {
        return Err(too_many());
    }
    match parts.owners.len() {
        0 if !circle.outsiders.is_empty() => refuse(format!(
            "{seed} knows {} nodes of which none knows it, such as {}: name one of those as seed",
            circle.outsiders.len(),
            circle.outsiders.first().map(ToString::to_string).unwrap_or_default()
        )),
        0 => refuse(format!(
            "no node of the cluster of {seed} serves slots, so there is nothing to adopt: create a topology on its nodes instead"
        )),
        n @ 1..3 => Err(Refusal::Unsupported(format!(
            "the cluster of {seed} has {n} primaries with slots; a topology has at least 3 shards, since fewer cannot elect a primary"
        ))),
        _ => Ok(()),
    }
}

fn too_many() -> Refusal {
    let detail =
        format!("the cluster has more than {MAX_NODES} nodes, the most that a topology has");
    Refusal::Invalid(vec![FieldError::new("/seeds", detail)])
}

/// Each owner with those that belong to it is a shard. Slots that nobody serves go to a shard too,
/// whose number comes with them: to the one that serves the slot before them, if its primary answers.
fn shards(
    topology: TopologyId,
    owners: &[Owner],
) -> (Vec<(Shard, SlotSet)>, BTreeMap<usize, SlotSet>) {
    let row = |(i, owner): (usize, &Owner)| {
        let index = u16::try_from(i).unwrap_or(u16::MAX);
        let others = owner.others.iter().copied().filter(|a| *a != owner.node);
        let shard = Shard {
            id: ShardId::derive(topology, u32::from(index)),
            index,
            members: [owner.node].into_iter().chain(others).cloned().collect(),
        };
        (shard, owner.slots.clone())
    };
    let mut rows: Vec<(Shard, SlotSet)> = owners.iter().enumerate().map(row).collect();
    let served = owners.iter().fold(SlotSet::empty(), |all, o| all.union(&o.slots));
    let nobody_answers = !owners.iter().any(|o| o.answers);
    let mut given: BTreeMap<usize, SlotSet> = BTreeMap::new();
    for range in served.complement().ranges() {
        let before = |owner: &Owner| {
            let ends = owner.slots.ranges().iter().map(|r| r.last());
            ends.filter(|last| *last < range.first()).max()
        };
        let able = owners.iter().enumerate().filter(|(_, o)| o.answers || nobody_answers);
        if let Some((i, _)) = able.max_by_key(|(i, o)| (before(o), std::cmp::Reverse(*i))) {
            let slots = given.entry(i).or_default();
            *slots = slots.union(&[*range].into_iter().collect());
        }
    }
    for (i, slots) in &given {
        if let Some((_, served)) = rows.get_mut(*i) {
            *served = served.union(slots);
        }
    }
    (rows, given)
}

/// The zones by the addresses that nodes get in the spec; the request may name others of theirs.
fn zones<'a>(
    request: &Request<'a>,
    circle: &Circle,
    seen: &Observation,
) -> Result<BTreeMap<Address, &'a String>, Refusal> {
    let (mut zones, mut errors) = (BTreeMap::new(), Vec::new());
    for (named, zone) in request.zones {
        let id = seen.view(named).map(|v| &v.my_id);
        let party = circle.parties.iter().find(|p| p.address == named || Some(p.id) == id);
        match party {
            Some(party) => {
                zones.insert(party.address.clone(), zone);
            }
            None => {
                let nodes: Vec<_> = circle.parties.iter().map(|p| p.address.to_string()).collect();
                errors.push(FieldError::new(
                    format!("/zones/{named}"),
                    format!("{named} is no node of this cluster, whose nodes are {}: correct the address, or leave it out", nodes.join(", ")),
                ));
            }
        }
    }
    if errors.is_empty() { Ok(zones) } else { Err(Refusal::Invalid(errors)) }
}
