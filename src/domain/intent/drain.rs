//! Drain: what a zone or a node serves is handed over before somebody works on it. Members and data
//! stay; the spec remembers who is drained, so that nobody gives them a shard meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use super::failover::{incumbent, objection};
use super::{Amendment, DrainIntent, UndrainIntent, lone, shards_of};
use crate::domain::id::ShardId;
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::Observation;
use crate::domain::placement::Warning;
use crate::domain::planner::{Seat, Terms};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::slot::SlotSet;
use crate::domain::spec::{ClusterOverrides, ClusterSpec, Spec};
use crate::domain::step::command::FailoverMethod;
use crate::domain::succession::{expected, fittest};
use crate::domain::survivability::{self, Group, Lost, what_if};
use crate::domain::topology::{Shard, Topology};
use crate::domain::view;

pub fn drain(
    intent: &DrainIntent,
    now: &Topology,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let away = named(intent.zone.as_deref(), intent.node.as_ref(), &now.spec)?;
    if let Some(shard) = lone::of(now) {
        let drained = now.spec.drained().union(&away).cloned().collect();
        return lone::drain::amend(now, shard, &away, drained, seen);
    }
    let (spec, shards) = shards_of(now, "drain")?;
    let drained: BTreeSet<Address> = spec.overrides.drained.union(&away).cloned().collect();
    let seats = handover(shards.as_slice(), &away, &drained, "/intent", seen)
        .map_err(|errors| Refusal::NodesUnfit { errors, redis: None })?;
    let warnings = without(now, &drained, &seats, seen);
    let terms = Terms { seats, seats_only: true, ..Terms::default() };
    Ok(amendment(now, spec, drained, terms, warnings))
}

/// They may serve again. Nothing moves.
pub fn undrain(intent: &UndrainIntent, now: &Topology) -> Result<Amendment, Refusal> {
    let back = named(intent.zone.as_deref(), intent.node.as_ref(), &now.spec)?;
    let drained = now.spec.drained();
    if drained.is_disjoint(&back) {
        let (field, why) = match (&intent.zone, &intent.node) {
            (Some(zone), _) => ("/intent/zone", format!("no node in zone `{zone}` is drained")),
            (None, Some(node)) => ("/intent/node", format!("{node} is not drained")),
            (None, None) => ("/intent", "none of them is drained".to_owned()),
        };
        let why = format!("{why}; what is drained stands in `spec.overrides.drained`");
        let errors = vec![FieldError::new(field, why)];
        return Err(Refusal::NodesUnfit { errors, redis: None });
    }
    let drained = drained.difference(&back).cloned().collect();
    if lone::of(now).is_some() {
        return Ok(lone::drain::undrain(now, drained));
    }
    let (spec, _) = shards_of(now, "undrain")?;
    let terms = Terms { seats_only: true, ..Terms::default() };
    Ok(amendment(now, spec, drained, terms, vec![]))
}

/// The nodes that a request means: members and spares of the topology.
pub(super) fn named(
    zone: Option<&str>,
    node: Option<&Address>,
    spec: &Spec,
) -> Result<BTreeSet<Address>, Refusal> {
    let invalid =
        |field: &str, why: String| Err(Refusal::Invalid(vec![FieldError::new(field, why)]));
    match (zone, node) {
        (Some(zone), None) => {
            let there = spec.nodes().iter().filter(|n| n.zone == zone);
            let there: BTreeSet<Address> = there.map(|n| n.address.clone()).collect();
            if !there.is_empty() {
                return Ok(there);
            }
            let zones: BTreeSet<&str> = spec.nodes().iter().map(|n| n.zone.as_str()).collect();
            let zones: Vec<&str> = zones.into_iter().collect();
            let why = format!(
                "no node of this topology is in zone `{zone}`; its zones are {}",
                zones.join(", ")
            );
            invalid("/intent/zone", why)
        }
        (None, Some(node)) if spec.nodes().iter().any(|n| n.address == *node) => {
            Ok([node.clone()].into())
        }
        (None, Some(node)) => {
            let why = format!("{node} is no node of this topology; its nodes stand in `spec`");
            invalid("/intent/node", why)
        }
        (None, None) | (Some(_), Some(_)) => {
            invalid("/intent", "name either a `zone` or a `node`".to_owned())
        }
    }
}

/// Who takes over from each primary that is `away`; or, for each shard without an heir among those
/// that are not drained, what is lacking.
pub(super) fn handover(
    rows: &[(Shard, SlotSet)],
    away: &BTreeSet<Address>,
    drained: &BTreeSet<Address>,
    field: &str,
    seen: &Observation,
) -> Result<BTreeMap<ShardId, Seat>, Vec<FieldError>> {
    let mut seats = BTreeMap::new();
    let mut errors = Vec::new();
    let concerned = |(shard, _): &&(Shard, SlotSet)| shard.members.iter().any(|m| away.contains(m));
    for (shard, slots) in rows.iter().filter(concerned) {
        let seat = match incumbent(shard, slots, seen) {
            Ok((from, _)) if !away.contains(&from) => continue,
            Ok((from, from_id)) => seat(shard, from, from_id, drained, seen),
            Err(why) => Err(why),
        };
        match seat {
            Ok(seat) => {
                seats.insert(shard.id, seat);
            }
            Err(why) => errors.push(FieldError::new(field, why)),
        }
    }
    if errors.is_empty() { Ok(seats) } else { Err(errors) }
}

fn seat(
    shard: &Shard,
    from: Address,
    from_id: ClusterNodeId,
    drained: &BTreeSet<Address>,
    seen: &Observation,
) -> Result<Seat, String> {
    let method = FailoverMethod::Graceful;
    let outside: Vec<Address> =
        shard.members.iter().filter(|m| !drained.contains(m)).cloned().collect();
    let to = fittest(&outside, &from, &from_id, method, seen).map_err(|whys| {
        let index = shard.index;
        if whys.is_empty() {
            format!(
                "shard {index} has no replica outside of what is drained that could take over from {from}: add one in another zone first ({{\"kind\": \"add_replica\", \"shard\": \"{index}\", \"node\": …}})"
            )
        } else {
            format!("shard {index}, which {from} serves, has nobody to take over: {}", whys.join("; "))
        }
    })?;
    if let Some(why) = objection(method, shard, &from, &to, seen) {
        return Err(why);
    }
    let expected_ms = expected(method, &from, &to, seen);
    let slots = view::slots_of(&from_id, seen);
    Ok(Seat { from, from_id, slots, to, method, expected_ms })
}

/// What redundancy is left while the drained nodes are away and their shards are handed over.
pub(super) fn without(
    wanted: &Topology,
    drained: &BTreeSet<Address>,
    seats: &BTreeMap<ShardId, Seat>,
    seen: &Observation,
) -> Vec<Warning> {
    let warning = |code: &str, message| Warning { code: code.to_owned(), message };
    let seated = |mut group: Group| {
        if let Some(seat) = seats.get(&group.id) {
            group.primary = Some(seat.to.clone());
        }
        group
    };
    let groups: Vec<Group> = survivability::groups(wanted, seen).into_iter().map(seated).collect();
    let nodes = drained.iter().cloned().collect();
    let gone = what_if(&groups, &Lost { nodes, ..Lost::default() });
    let mut warnings = Vec::new();
    if !gone.outcome.survived() {
        warnings.push(warning(
            "drained_not_survived",
            format!("if all that is drained goes: {}", gone.why),
        ));
    }
    let thinned = |mut group: Group| {
        group.members.retain(|m| !drained.contains(&m.address));
        (!group.members.is_empty()).then_some(group)
    };
    let outside: Vec<Group> = groups.into_iter().filter_map(thinned).collect();
    for (shard, _) in wanted.layout.shards() {
        let Some(group) = outside.iter().find(|g| g.id == shard.id) else { continue };
        let [last] = group.members.as_slice() else { continue };
        if shard.members.iter().any(|m| drained.contains(m)) {
            let message = format!(
                "while the drained nodes are away, {} is all that shard {} has: nobody takes over from it",
                last.address, shard.index
            );
            warnings.push(warning("no_replica_outside", message));
        }
    }
    let zones: BTreeSet<&String> =
        outside.iter().flat_map(|g| &g.members).map(|m| &m.zone).collect();
    for zone in zones {
        let loss = what_if(&outside, &Lost { zones: vec![zone.clone()], ..Lost::default() });
        if loss.voters_left < loss.voters_needed {
            let message =
                format!("while the drained nodes are away: if zone {zone} fails, {}", loss.why);
            warnings.push(warning("no_majority_outside", message));
        }
    }
    warnings
}

fn amendment(
    now: &Topology,
    spec: &ClusterSpec,
    drained: BTreeSet<Address>,
    terms: Terms,
    warnings: Vec<Warning>,
) -> Amendment {
    let overrides = ClusterOverrides { drained, ..spec.overrides.clone() };
    let spec = Spec::Cluster(ClusterSpec { overrides, ..spec.clone() });
    Amendment { spec: Some(spec), layout: now.layout.clone(), terms, warnings }
}
