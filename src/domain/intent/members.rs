//! Other members: a replica more, a replica less, one node in another's place. All are one thing: a
//! layout with the same shards and other members, and terms that say who leaves and who takes over
//! from a primary that does.

use std::collections::{BTreeMap, BTreeSet};

use super::create::{cannot_be_read, lacks, replication_login, twins};
use super::reshape::reshaped;
use super::{
    AddReplicaIntent, Amendment, NodeChoice, RemoveReplicaIntent, ReplaceNodeIntent, lone,
    shard_named, shard_with, shards_of,
};
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{ClusterView, Observation, Report, Role, Sighting};
use crate::domain::placement::Warning;
use crate::domain::planner::{Leaver, Seat, Terms};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::slot::SlotSet;
use crate::domain::spec::{ClusterSpec, NodeSpec, Spec};
use crate::domain::step::command::FailoverMethod;
use crate::domain::succession::{best, expected};
use crate::domain::topology::{Layout, Shard, Shards, Topology};
use crate::domain::view;

type Row = (Shard, SlotSet);

pub fn add_replica(
    intent: &AddReplicaIntent,
    now: &Topology,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    if let Some(shard) = lone::of(now) {
        return lone::members::add_replica(intent, now, shard, seen);
    }
    let (spec, shards) = shards_of(now, "add_replica")?;
    let node = match &intent.node {
        Some(choice) => chosen(choice, "/intent/node", spec, shards)?,
        None => spare(spec, now, seen)?,
    };
    let shard = match &intent.shard {
        Some(name) => shard_named(name, shards)?.0.id,
        None => {
            let fewest = shards.iter().map(|(shard, _)| shard).min_by_key(|shard| {
                (shard.members.len(), same_zone(shard, &node, spec), shard.index)
            });
            fewest
                .map(|shard| shard.id)
                .ok_or_else(|| invalid("/intent/shard", "there is no shard"))?
        }
    };
    let mut rows = shards.as_slice().to_vec();
    for (row, _) in rows.iter_mut().filter(|(row, _)| row.id == shard) {
        row.members.push(node.address.clone());
    }
    changed(now, with_node(spec, &node), rows, "/intent/node", seen)
}

pub fn remove_replica(
    intent: &RemoveReplicaIntent,
    now: &Topology,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    if let Some(shard) = lone::of(now) {
        return lone::members::remove_replica(intent, now, shard, seen);
    }
    let (spec, shards) = shards_of(now, "remove_replica")?;
    let node = &intent.node;
    let (shard, slots) = shard_with(node, "/intent/node", shards)?;
    if view::owner_shown(slots, seen).and_then(|id| view::address_of(id, seen)) == Some(node) {
        let why = format!(
            "{node} is the primary of shard {}: have a replica take over first ({{\"kind\": \"failover\", \"node\": \"{node}\"}}), or put another node in its place (replace_node)",
            shard.index
        );
        return Err(unfit("/intent/node", why));
    }
    let mut rows = shards.as_slice().to_vec();
    for (row, _) in &mut rows {
        row.members.retain(|m| m != node);
    }
    changed(now, without_node(spec, node), rows, "/intent/node", seen)
}

pub fn replace_node(
    intent: &ReplaceNodeIntent,
    now: &Topology,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    if let Some(shard) = lone::of(now) {
        return lone::members::replace_node(intent, now, shard, seen);
    }
    let (spec, shards) = shards_of(now, "replace_node")?;
    let old = &intent.node;
    shard_with(old, "/intent/node", shards)?;
    let new = chosen(&intent.with, "/intent/with", spec, shards)?;
    let mut rows = shards.as_slice().to_vec();
    for member in rows.iter_mut().flat_map(|(row, _)| &mut row.members).filter(|m| *m == old) {
        *member = new.address.clone();
    }
    let spec = with_node(&without_node(spec, old), &new);
    changed(now, spec, rows, "/intent/with", seen)
}

/// The same shards with other members. What is wrong with a new one is told at `pointer`.
fn changed(
    now: &Topology,
    spec: ClusterSpec,
    rows: Vec<Row>,
    pointer: &str,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let fields = Fields { comer: &|_| pointer.to_owned(), goer: "/intent/node" };
    change(now, spec, rows, pointer, &fields, seen)
}

/// Other shards, or the same with other members. What is wrong as a whole is told at `pointer`.
pub(super) fn change(
    now: &Topology,
    spec: ClusterSpec,
    rows: Vec<Row>,
    pointer: &str,
    fields: &Fields,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let spec = reshaped(spec, &rows);
    let wrong = Spec::Cluster(spec.clone()).validate();
    if !wrong.is_empty() {
        return Err(Refusal::Invalid(wrong.into_iter().map(|e| e.under("/spec")).collect()));
    }
    let mut terms = terms(now, &spec, &rows, fields, seen)
        .map_err(|errors| Refusal::NodesUnfit { errors, redis: None })?;
    let shards = Shards::new(rows).map_err(|why| invalid("/intent", why.to_string()))?;
    let warnings = crowded(&spec, now, &shards);
    if spec.placement.strict && !warnings.is_empty() {
        let told = warnings.into_iter().map(|w| FieldError::new(pointer, w.message));
        return Err(Refusal::Placement(told.collect()));
    }
    let layout = Layout::Cluster { shards };
    // Of several dead nodes each is replaced in its turn.
    terms.apart = view::dead_members(&layout, seen);
    let warnings = warnings.into_iter().chain(terms.apart.iter().map(left_apart)).collect();
    Ok(Amendment { spec: Some(Spec::Cluster(spec)), layout, terms, warnings })
}

/// That a dead member still is one.
#[must_use]
pub fn left_apart(node: &Address) -> Warning {
    let message = format!(
        "{node} is dead and left as it is: replace it (replace_node) or take it out next (remove_replica; remove_sentinel if it is one)"
    );
    Warning { code: "left_apart".to_owned(), message }
}

/// That a node that was to leave was not there at the end.
#[must_use]
pub fn unreached(node: &Address) -> Warning {
    let message = format!(
        "{node} did not answer at the end: it was taken out without having been made blank, and stays out; when it is back, a plan with the intent repair makes it blank"
    );
    Warning { code: "leaver_unreached".to_owned(), message }
}

/// Where a request names those who come, and those who go.
pub(super) struct Fields<'a> {
    pub comer: &'a dyn Fn(&Address) -> String,
    pub goer: &'a str,
}

/// Who leaves, who takes over and who begins, so that the shards are those of `rows`; or all that
/// stands against it.
pub(super) fn terms(
    now: &Topology,
    spec: &ClusterSpec,
    rows: &[Row],
    fields: &Fields,
    seen: &Observation,
) -> Result<Terms, Vec<FieldError>> {
    let before = now.layout.members();
    let drained = &spec.overrides.drained;
    let mut errors = Vec::new();
    let mut terms = Terms::default();
    for (old, slots) in now.layout.shards() {
        let primary = view::agreed_primary(old, &slots, seen);
        let Some((new, _)) = rows.iter().find(|(row, _)| row.id == old.id) else {
            match dissolved(old, &slots, primary.as_ref(), seen) {
                Ok(leavers) => terms.leavers.extend(leavers),
                Err(why) => errors.push(FieldError::new(fields.goer, why)),
            }
            continue;
        };
        if new.members == old.members {
            continue;
        }
        let newcomers = new.members.iter().filter(|m| !before.contains(m));
        errors.extend(
            newcomers.flat_map(|m| unsuitable(m, primary.as_ref(), &(fields.comer)(m), seen)),
        );
        match departures(old, new, primary.as_ref(), seen) {
            Ok(leavers) => terms.leavers.extend(leavers),
            Err(why) => errors.push(FieldError::new(fields.goer, why)),
        }
        match succession(old, new, &slots, primary, drained, seen) {
            Ok(seat) => terms.seats.extend(seat.map(|seat| (old.id, seat))),
            Err(why) => errors.push(FieldError::new(fields.goer, why)),
        }
    }
    let known = |shard: &Shard| now.layout.shards().iter().any(|(old, _)| old.id == shard.id);
    for (shard, _) in rows.iter().filter(|(row, _)| !known(row)) {
        errors.extend(unsuited(shard, &before, fields, seen));
        let first = shard.members.first();
        terms.founders.extend(first.map(|first| (shard.id, first.clone())));
    }
    errors.extend(twins(&spec.nodes, seen));
    errors.extend(replication_login(&Spec::Cluster(spec.clone()), seen));
    if errors.is_empty() { Ok(terms) } else { Err(errors) }
}

/// What keeps nodes from forming a new shard of a cluster in use.
fn unsuited(
    shard: &Shard,
    before: &BTreeSet<&Address>,
    fields: &Fields,
    seen: &Observation,
) -> Vec<FieldError> {
    // Whoever reads the newest of formats reads those of all others.
    let format = |m: &&&Address| seen.report(m).map(|r| r.capabilities().rdb_version);
    let newest = before.iter().filter(|m| seen.view(m).is_some()).max_by_key(format).copied();
    let of = |node: &Address| {
        let pointer = (fields.comer)(node);
        let first = shard.members.first().filter(|first| *first != node);
        let mut errors = unsuitable(node, newest, &pointer, seen);
        errors.extend(first.and_then(|first| cannot_load(node, first, &pointer, seen)));
        errors
    };
    shard.members.iter().flat_map(of).collect()
}

/// Who leaves with a shard that goes, when others have its slots.
fn dissolved(
    old: &Shard,
    slots: &SlotSet,
    primary: Option<&Address>,
    seen: &Observation,
) -> Result<BTreeMap<Address, Leaver>, String> {
    if primary.is_none() && !slots.is_empty() {
        return Err(format!(
            "shard {} has no primary that the nodes agree on, and its slots have to move away first: wait until they agree, or ask for a failover",
            old.index
        ));
    }
    departures(old, &Shard { members: vec![], ..old.clone() }, primary, seen)
}

/// What keeps a node from becoming a member.
fn unsuitable(
    node: &Address,
    primary: Option<&Address>,
    pointer: &str,
    seen: &Observation,
) -> Vec<FieldError> {
    let wrong = |detail: String| FieldError::new(pointer, format!("{node} {detail}"));
    let report = match seen.sighting(node) {
        Sighting::Unknown => return vec![wrong("was not looked at; try again".to_owned())],
        Sighting::Silent(s) => {
            return vec![wrong(cannot_be_read(&s.code, &s.message, "spec.credentials.admin"))];
        }
        Sighting::Seen(report) => report,
    };
    let own: BTreeSet<&ClusterNodeId> = report.cluster.iter().map(|v| &v.my_id).collect();
    let mut errors: Vec<FieldError> = if is_idle(report, primary, seen) {
        vec![]
    } else {
        lacks(report, &own, false).into_iter().map(wrong).collect()
    };
    errors.extend(primary.and_then(|primary| cannot_load(node, primary, pointer, seen)));
    errors
}

/// That a node could not take over what another one writes, if so.
fn cannot_load(
    node: &Address,
    other: &Address,
    pointer: &str,
    seen: &Observation,
) -> Option<FieldError> {
    let (report, theirs) = (seen.report(node)?, seen.report(other)?);
    let reads = report.capabilities().can_replicate_from(theirs.capabilities());
    (!reads).then(|| {
        let why = format!(
            "{node} runs {:?} {}, which cannot load what {other} ({:?} {}) writes: use the same version or a newer one",
            report.flavor, report.version, theirs.flavor, theirs.version
        );
        FieldError::new(pointer, why)
    })
}

/// Whether a node is in the cluster already and does nothing there.
fn is_idle(report: &Report, primary: Option<&Address>, seen: &Observation) -> bool {
    let theirs = primary.and_then(|p| seen.view(p));
    let knows = |v: &ClusterView| theirs.is_some_and(|t| v.peers.contains_key(&t.my_id));
    let unused = |v: &ClusterView| v.my_slots().is_empty() && knows(v);
    report.role == Role::Primary && report.keys == 0 && report.cluster.as_ref().is_some_and(unused)
}

/// Who leaves a shard.
fn departures(
    old: &Shard,
    new: &Shard,
    primary: Option<&Address>,
    seen: &Observation,
) -> Result<BTreeMap<Address, Leaver>, String> {
    let bares = (new.members.len() == 1).then_some(old.index);
    let mut leavers = BTreeMap::new();
    for node in old.members.iter().filter(|m| !new.members.contains(m)) {
        let identity = view::identity_at(node, seen).ok_or_else(|| {
            format!("{node} does not answer, and no other node knows who it is: bring it back, or accept what is seen (accept_drift)")
        })?;
        // One that is dead is no replica that anybody could lose.
        let bares = bares.filter(|_| !view::has_failed(identity, seen) && primary != Some(node));
        let leaver = Leaver { shard: old.id, identity: identity.clone(), bares };
        leavers.insert(node.clone(), leaver);
    }
    Ok(leavers)
}

/// Who takes over from a primary that leaves: a replica that has the data already, else one that
/// comes.
pub(super) fn succession(
    old: &Shard,
    new: &Shard,
    slots: &SlotSet,
    primary: Option<Address>,
    drained: &BTreeSet<Address>,
    seen: &Observation,
) -> Result<Option<Seat>, String> {
    let owner = view::owner_shown(slots, seen);
    let owner_at = owner.and_then(|id| view::address_of(id, seen));
    let leaves = |node: &Address| !new.members.contains(node);
    let Some(from) = primary else {
        // A dead owner that leaves would take its slots with it.
        return match owner_at.filter(|node| leaves(node)) {
            Some(node) => Err(format!(
                "{node} serves shard {} and does not answer: have a replica take over first (failover with method force)",
                old.index
            )),
            None => Ok(None),
        };
    };
    let Some(from_id) = seen.view(&from).map(|v| v.my_id.clone()).filter(|_| leaves(&from)) else {
        return Ok(None);
    };
    let method = FailoverMethod::Graceful;
    let stay: Vec<Address> =
        new.members.iter().filter(|m| old.members.contains(m)).cloned().collect();
    let heir = best(&stay, drained, &from, &from_id, method, seen);
    let newcomers = || new.members.iter().filter(|m| !old.members.contains(m));
    let newcomer = || newcomers().min_by_key(|m| drained.contains(m)).cloned();
    match heir.ok().or_else(newcomer) {
        Some(to) => {
            let expected_ms = expected(method, &from, &to, seen);
            let slots = view::slots_of(&from_id, seen);
            Ok(Some(Seat { from, from_id, slots, to, method, expected_ms }))
        }
        None => Err(format!(
            "{from} is the primary of shard {} and nobody else of it can take over",
            old.index
        )),
    }
}

/// What is lacking in shards whose members change: nobody to take over, or nobody elsewhere.
fn crowded(spec: &ClusterSpec, now: &Topology, shards: &Shards) -> Vec<Warning> {
    let place: BTreeMap<&Address, &NodeSpec> = spec.nodes.iter().map(|n| (&n.address, n)).collect();
    let before = now.layout.shards();
    let mut warnings = Vec::new();
    for (shard, _) in shards {
        let same = before.iter().any(|(old, _)| old.id == shard.id && old.members == shard.members);
        let zones: BTreeSet<&str> =
            shard.members.iter().filter_map(|m| Some(place.get(m)?.zone.as_str())).collect();
        let machines: BTreeSet<&str> =
            shard.members.iter().filter_map(|m| Some(place.get(m)?.machine())).collect();
        let many = shard.members.len() > 1 && !same;
        let had = |n| before.iter().any(|(old, _)| old.id == shard.id && old.members.len() == n);
        if shard.members.len() == 1 && !had(1) {
            let message = format!("shard {} has no replica then", shard.index);
            warnings.push(Warning { code: "no_replica".to_owned(), message });
        }
        for (code, word, alone) in [
            ("shard_in_one_zone", "in one zone", zones.len() == 1),
            ("shard_on_one_host", "on one host", machines.len() == 1),
        ] {
            if many && alone {
                let message = format!(
                    "all members of shard {} are {word}: the shard is lost with it",
                    shard.index
                );
                warnings.push(Warning { code: code.to_owned(), message });
            }
        }
    }
    warnings
}

fn same_zone(shard: &Shard, node: &NodeSpec, spec: &ClusterSpec) -> usize {
    let zone_of = |a: &Address| spec.nodes.iter().find(|n| n.address == *a).map(|n| &n.zone);
    shard.members.iter().filter(|m| zone_of(m) == Some(&node.zone)).count()
}

pub(super) fn chosen(
    choice: &NodeChoice,
    pointer: &str,
    spec: &ClusterSpec,
    shards: &Shards,
) -> Result<NodeSpec, Refusal> {
    let address = choice.address();
    let member = shards.iter().find(|(shard, _)| shard.members.contains(address));
    if let Some((shard, _)) = member {
        let why = format!("{address} is a member of shard {} already", shard.index);
        return Err(invalid(pointer, why));
    }
    let named = spec.nodes.iter().find(|n| n.address == *address);
    match (choice, named) {
        (NodeChoice::New(node), _) => Ok(node.clone()),
        (NodeChoice::Spare(_), Some(node)) => Ok(node.clone()),
        (NodeChoice::Spare(_), None) => Err(invalid(
            pointer,
            format!(
                "{address} is no spare node of this topology; give it as an object with its zone: {{\"address\": \"{address}\", \"zone\": \"…\"}}"
            ),
        )),
    }
}

/// A spare of the topology, not drained if possible, in the zone with the fewest members.
fn spare(spec: &ClusterSpec, now: &Topology, seen: &Observation) -> Result<NodeSpec, Refusal> {
    let members = now.layout.members();
    let in_zone = |zone: &str| {
        spec.nodes.iter().filter(|n| n.zone == zone && members.contains(&n.address)).count()
    };
    let spares = spec.nodes.iter().filter(|n| !members.contains(&n.address));
    let some_member = members.iter().copied().find(|m| seen.view(m).is_some());
    let usable = spares.filter(|n| {
        let fit = |r: &Report| r.is_blank() || is_idle(r, some_member, seen);
        seen.report(&n.address).is_some_and(fit)
    });
    let drained = |n: &NodeSpec| spec.overrides.drained.contains(&n.address);
    usable.min_by_key(|n| (drained(n), in_zone(&n.zone), &n.address)).cloned().ok_or_else(|| {
        invalid(
            "/intent/node",
            "the topology has no spare node that is blank; name one with its zone".to_owned(),
        )
    })
}

pub(super) fn with_node(spec: &ClusterSpec, node: &NodeSpec) -> ClusterSpec {
    let mut nodes: Vec<NodeSpec> = spec.nodes.clone();
    nodes.retain(|n| n.address != node.address);
    nodes.push(node.clone());
    ClusterSpec { nodes, ..spec.clone() }
}

pub(super) fn without_node(spec: &ClusterSpec, node: &Address) -> ClusterSpec {
    let nodes = spec.nodes.iter().filter(|n| n.address != *node).cloned().collect();
    ClusterSpec { nodes, ..spec.clone() }
}

fn invalid(pointer: &str, why: impl Into<String>) -> Refusal {
    Refusal::Invalid(vec![FieldError::new(pointer, why.into())])
}

fn unfit(pointer: &str, why: String) -> Refusal {
    Refusal::NodesUnfit { errors: vec![FieldError::new(pointer, why)], redis: None }
}
