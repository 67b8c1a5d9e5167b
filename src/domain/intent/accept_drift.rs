//! Accept drift: what is seen becomes what is wanted. Nothing changes on nodes, so it must be plain
//! what is seen: all agree, every slot is served once, and the spec names everybody.

use std::collections::{BTreeMap, BTreeSet};

use super::reshape::reshaped;
use super::{Amendment, about, lone, unjudged};
use crate::domain::id::{ShardId, TopologyId};
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{Observation, Role};
use crate::domain::planner::Terms;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::slot::SlotSet;
use crate::domain::spec::{ClusterSpec, Spec};
use crate::domain::step::agree::AwaitAgreement;
use crate::domain::step::configure::same_value;
use crate::domain::topology::{Layout, Shard, Shards, Topology};

/// The seen shape as layout and spec. `seen` holds a fresh look at every node of the spec.
pub fn amend(now: &Topology, seen: &Observation) -> Result<Amendment, Refusal> {
    if let Some(shard) = lone::of(now) {
        return lone::drift::amend(now, shard, seen);
    }
    let (Spec::Cluster(spec), Layout::Cluster { shards }) = (&now.spec, &now.layout) else {
        return Err(Refusal::Unsupported(
            "a topology that is to have no members takes nothing of what is seen: revert it first"
                .to_owned(),
        ));
    };
    let refuse = |errors: Vec<FieldError>| match errors.as_slice() {
        [] => Ok(()),
        [_, ..] => Err(Refusal::unsettled(errors)),
    };
    let members = now.layout.members();
    refuse(members.iter().filter_map(|m| Some(about(m, &now.spec, unjudged(m, seen)?))).collect())?;
    let parties = parties(now, seen);
    let (owners, mut errors) = owners(&now.spec, &parties, seen);
    errors.extend(unclear(now, &parties, seen));
    refuse(errors)?;
    let rows = shards_seen(now.id, shards, &owners).map_err(Refusal::unsettled)?;
    let spec = ClusterSpec { settings: settings(&spec.settings, &parties, seen)?, ..spec.clone() };
    let spec = Spec::Cluster(reshaped(spec, &rows));
    refuse(spec.validate().into_iter().map(|e| e.under("/spec")).collect())?;
    let shards = Shards::new(rows).map_err(|why| {
        Refusal::unsettled(vec![FieldError::new("/layout/shards", why.to_string())])
    })?;
    Ok(Amendment {
        spec: Some(spec),
        layout: Layout::Cluster { shards },
        terms: Terms::default(),
        warnings: vec![],
    })
}

/// The nodes of the spec that take part: those that members know. A member that nobody knows any
/// more has become a spare, and a spare that does nothing stays one.
fn parties(now: &Topology, seen: &Observation) -> Vec<Address> {
    let (members, spares) = (now.layout.members(), now.spares());
    let mut known: BTreeSet<&ClusterNodeId> = BTreeSet::new();
    for view in members.iter().filter_map(|m| seen.view(m)).filter(|v| v.peers.len() > 1) {
        let idle = seen.idle_in(view, &spares);
        known.extend(view.known().difference(&idle));
    }
    let nodes = now.spec.nodes().iter().map(|n| &n.address);
    let party = |a: &&Address| seen.view(a).is_some_and(|v| known.contains(&v.my_id));
    let parties: BTreeSet<Address> = nodes.filter(party).cloned().collect();
    parties.into_iter().collect()
}

/// What keeps the seen shape from being one that all see.
fn unclear(now: &Topology, parties: &[Address], seen: &Observation) -> Vec<FieldError> {
    let (spec, spares) = (&now.spec, now.spares());
    let ids: BTreeSet<&ClusterNodeId> =
        parties.iter().filter_map(|p| seen.view(p)).map(|v| &v.my_id).collect();
    let mut errors = Vec::new();
    for node in parties {
        let Some(view) = seen.view(node) else { continue };
        let idle = seen.idle_in(view, &spares);
        let known = |id: &ClusterNodeId| ids.contains(id) || idle.contains(id);
        for (id, peer) in view.peers.iter().filter(|(id, p)| !p.handshake && !known(id)) {
            let at = peer.address.as_ref().map_or(String::new(), |a| format!(" at {a}"));
            let detail = format!(
                "knows the cluster node {id}{at}, which no node of the spec is: take it out of the cluster (CLUSTER FORGET) first"
            );
            errors.push(about(node, spec, detail));
        }
        if let Some(open) = view.open.first() {
            let detail = format!("has slot {} half-way to or from another node", open.slot);
            errors.push(about(node, spec, detail));
        }
        let login = seen.report(node).and_then(|r| r.replication_login_as_wanted);
        if login == Some(false) {
            errors.push(about(node, spec, "has another replication login than the spec names"));
        }
    }
    if errors.is_empty() {
        let spares = spares.into_iter().filter(|s| !parties.contains(s)).cloned().collect();
        let agreement = AwaitAgreement { spares, ..AwaitAgreement::of(parties.to_vec()) };
        let lacking = agreement.lacking(seen);
        errors.extend(lacking.iter().map(|(node, why)| about(node, spec, why)));
    }
    errors
}

/// A primary that serves slots, and who follows it.
struct Owner {
    node: Address,
    slots: SlotSet,
    replicas: BTreeSet<Address>,
}

impl Owner {
    fn is_member(&self, shard: &Shard) -> bool {
        shard.members.contains(&self.node)
    }
}

fn owners(spec: &Spec, parties: &[Address], seen: &Observation) -> (Vec<Owner>, Vec<FieldError>) {
    let served = |node: &Address| seen.view(node).map(|v| v.my_slots()).unwrap_or_default();
    let is_primary = |n: &&Address| seen.report(n).is_some_and(|r| r.role == Role::Primary);
    let serving = parties.iter().filter(is_primary).filter(|n| !served(n).is_empty());
    let mut owners: Vec<Owner> = serving
        .map(|n| Owner { node: n.clone(), slots: served(n), replicas: BTreeSet::new() })
        .collect();
    let mut errors = Vec::new();
    for node in parties {
        if owners.iter().any(|o| o.node == *node) {
            continue;
        }
        let followed = seen.view(node).and_then(|v| v.me()?.primary.as_ref());
        let primary = followed.and_then(|id| seen.by_cluster_id(id));
        match owners.iter_mut().find(|o| Some(&o.node) == primary) {
            Some(owner) => {
                owner.replicas.insert(node.clone());
            }
            None => errors.push(about(
                node,
                spec,
                "serves no slots and follows nobody who does: make it a replica, or take it out of the cluster",
            )),
        }
    }
    let covered = owners.iter().fold(SlotSet::empty(), |all, o| all.union(&o.slots));
    if covered != SlotSet::all() {
        errors.push(FieldError::new(
            "/layout/shards",
            format!("nobody serves slots {}: repair that first", covered.complement()),
        ));
    }
    (owners, errors)
}

/// The shards by their ids, with those who serve them now; whoever serves slots beside them is a
/// new shard.
fn shards_seen(
    topology: TopologyId,
    wanted: &Shards,
    owners: &[Owner],
) -> Result<Vec<(Shard, SlotSet)>, Vec<FieldError>> {
    let mut left: Vec<&Owner> = owners.iter().collect();
    let mut found: BTreeMap<ShardId, &Owner> = BTreeMap::new();
    // A shard is first of all where its members are, then where its slots are.
    for by_member in [true, false] {
        for (shard, slots) in wanted {
            let common = |o: &Owner| o.slots.intersection(slots).count();
            let fits = |o: &Owner| if by_member { o.is_member(shard) } else { common(o) > 0 };
            let candidates = left.iter().enumerate().filter(|(_, o)| fits(o));
            let best = candidates.max_by_key(|(_, o)| common(o)).map(|(i, _)| i);
            if let Some(i) = best.filter(|_| !found.contains_key(&shard.id)) {
                found.insert(shard.id, left.remove(i));
            }
        }
    }
    let mut rows = Vec::new();
    let mut errors = Vec::new();
    for (i, (shard, _)) in wanted.iter().enumerate() {
        match found.get(&shard.id) {
            Some(owner) => rows.push((row(shard, owner), owner.slots.clone())),
            None => errors.push(FieldError::new(
                format!("/layout/shards/{i}"),
                format!("no primary serves shard {} any more", shard.index),
            )),
        }
    }
    let used: BTreeSet<ShardId> = wanted.iter().map(|(shard, _)| shard.id).collect();
    let fresh = (0..).map(|n| ShardId::derive(topology, n)).filter(|id| !used.contains(id));
    let next = wanted.iter().map(|(shard, _)| shard.index + 1).max().unwrap_or(0);
    for ((owner, id), index) in left.into_iter().zip(fresh).zip(next..) {
        let shard = Shard { id, index, members: vec![owner.node.clone()] };
        rows.push((row(&shard, owner), owner.slots.clone()));
    }
    if errors.is_empty() { Ok(rows) } else { Err(errors) }
}

/// Those who stay keep their order; who is new comes after them.
fn row(shard: &Shard, owner: &Owner) -> Shard {
    let is: BTreeSet<&Address> = owner.replicas.iter().chain([&owner.node]).collect();
    let stay = shard.members.iter().filter(|m| is.contains(m));
    let new = is.iter().copied().filter(|m| !shard.members.contains(m));
    Shard { members: stay.chain(new).cloned().collect(), ..shard.clone() }
}

/// The values that all nodes have of the settings that the spec names.
pub(super) fn settings(
    wanted: &BTreeMap<String, String>,
    parties: &[Address],
    seen: &Observation,
) -> Result<BTreeMap<String, String>, Refusal> {
    let mut settings = BTreeMap::new();
    let mut errors = Vec::new();
    for (name, wanted) in wanted {
        // What is only changed for a while is what it was before.
        let original = |node: &Address| {
            let mut settings = seen.marks_on(node).filter_map(|m| m.what.setting());
            settings.find(|s| s.name == *name).map(|s| s.original.clone())
        };
        let now = |node: &Address| {
            original(node).or_else(|| seen.report(node)?.settings.get(name).cloned())
        };
        let values: BTreeSet<Option<String>> = parties.iter().map(now).collect();
        match values.first() {
            Some(Some(value)) if values.len() == 1 => {
                // A size is kept as it was written.
                let value = if same_value(value, wanted) { wanted } else { value };
                settings.insert(name.clone(), value.clone());
            }
            Some(_) | None => {
                let shown = |node: &Address| {
                    format!("{node}: {}", now(node).unwrap_or_else(|| "none".to_owned()))
                };
                let all: Vec<_> = parties.iter().map(shown).collect();
                errors.push(FieldError::new(
                    format!("/spec/settings/{name}"),
                    format!("the nodes have different values ({})", all.join(", ")),
                ));
            }
        }
    }
    if errors.is_empty() { Ok(settings) } else { Err(Refusal::unsettled(errors)) }
}
