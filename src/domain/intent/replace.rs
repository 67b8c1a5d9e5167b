//! Another spec: other members, settings, logins, places, another number of shards. New shards get
//! equal shares of the others' slots; of too many those go whose nodes do, else the last ones.
//!
//! Placement is asked only where something changed that it depends on, so that what was laid out
//! otherwise, by a person or by drift that was accepted, stays as it is.

use std::collections::{BTreeMap, BTreeSet};

use super::create::{cannot_be_read, first_fault, mixed_versions};
use super::drain::{handover, without};
use super::members::{Fields, terms};
use super::moves::{Row, checked, taken_over};
use super::{Amendment, ReplaceSpecIntent, field_of, lone, shards_of};
use crate::domain::id::TopologyId;
use crate::domain::moving::survey::Figures;
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Sighting};
use crate::domain::placement::{self, Warning};
use crate::domain::planner::Terms;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::spec::{ClusterSpec, NodeSpec, Spec};
use crate::domain::topology::{Layout, Shard, Shards, Topology};
use crate::domain::view;

/// The layout of the new spec and the way there. `seen` holds a fresh look, with the logins of the
/// new spec, at its nodes and at those of the current one.
pub fn amend(
    intent: &ReplaceSpecIntent,
    now: &Topology,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    if let Some(shard) = lone::of(now) {
        return lone::replace::amend(intent, now, shard, seen);
    }
    let new = possible(intent, now)?;
    let (old, shards) = shards_of(now, "replace_spec")?;
    let (rows, mut warnings) = if alike(old, new) {
        (shards.as_slice().to_vec(), vec![])
    } else {
        placed(now.id, new, shards, seen)?
    };
    refuse_moves(shards, &rows)?;
    warnings.extend(checked(shards, &rows, "/spec/shards", seen)?);
    let field = |node: &Address| field_of(node, &new.nodes);
    let fields = Fields { comer: &field, goer: "/spec/nodes" };
    let mut errors = unread(shards, &rows, &field, seen);
    let mut way = Terms::default();
    match terms(now, new, &rows, &fields, seen) {
        Ok(terms) => way = terms,
        Err(more) => errors.extend(more),
    }
    let away: BTreeSet<Address> =
        new.overrides.drained.difference(&old.overrides.drained).cloned().collect();
    match handover(
        &staying(shards, &rows),
        &away,
        &new.overrides.drained,
        "/spec/overrides/drained",
        seen,
    ) {
        Ok(seats) => seats.into_iter().for_each(|(shard, seat)| {
            way.seats.entry(shard).or_insert(seat);
        }),
        Err(more) => errors.extend(more),
    }
    if !errors.is_empty() {
        let redis = first_fault(new.nodes.iter().map(|n| &n.address), seen);
        return Err(Refusal::NodesUnfit { errors, redis });
    }
    let shards = Shards::new(rows)
        .map_err(|why| Refusal::Invalid(vec![FieldError::new("/spec/nodes", why.to_string())]))?;
    let layout = Layout::Cluster { shards };
    let wanted = Topology { spec: (*intent.spec).clone(), layout, ..now.clone() };
    if !away.is_empty() {
        warnings.extend(without(&wanted, &new.overrides.drained, &way.seats, seen));
    }
    warnings.extend(mixed_versions(&new.nodes, seen));
    warnings.extend(left_alone(&old.settings, &new.settings));
    Ok(Amendment { spec: Some(wanted.spec), layout: wanted.layout, terms: way, warnings })
}

/// The new spec, where it is one that a plan could make of this topology.
pub(super) fn possible<'a>(
    intent: &'a ReplaceSpecIntent,
    now: &Topology,
) -> Result<&'a ClusterSpec, Refusal> {
    let invalid = |field: &str, why: &str| Refusal::Invalid(vec![FieldError::new(field, why)]);
    let new = match (&now.spec, &*intent.spec) {
        (Spec::Cluster(_), Spec::Cluster(new)) => new,
        (Spec::Cluster(_) | Spec::Replication(_) | Spec::Sentinel(_), _) => {
            return Err(invalid(
                "/spec/mode",
                "the mode of a topology stays as it is; make a new topology for another mode",
            ));
        }
    };
    let wrong = intent.spec.validate();
    if !wrong.is_empty() {
        return Err(Refusal::Invalid(wrong.into_iter().map(|e| e.under("/spec")).collect()));
    }
    Ok(new)
}

/// Whether placement would be asked the same.
fn alike(old: &ClusterSpec, new: &ClusterSpec) -> bool {
    let nodes = |spec: &ClusterSpec| spec.nodes.iter().cloned().collect::<BTreeSet<NodeSpec>>();
    let shards = |spec: &ClusterSpec| spec.overrides.shards.clone();
    let shape = |spec: &ClusterSpec| (spec.shards, spec.replicas_per_shard, spec.placement.clone());
    shape(old) == shape(new) && nodes(old) == nodes(new) && shards(old) == shards(new)
}

fn placed(
    topology: TopologyId,
    spec: &ClusterSpec,
    shards: &Shards,
    seen: &Observation,
) -> Result<(Vec<Row>, Vec<Warning>), Refusal> {
    // Who is first stays first, and so stays where a shard is to have fewer members.
    let led = |(shard, slots): &Row| {
        let primary = view::agreed_primary(shard, slots, seen);
        let mut led = shard.clone();
        led.members
            .sort_by_key(|m| (Some(m) != primary.as_ref(), spec.overrides.drained.contains(m)));
        (led, slots.clone())
    };
    let broken = |why: String| Refusal::Invalid(vec![FieldError::new("/spec/nodes", why)]);
    let previous =
        Shards::new(shards.iter().map(led).collect()).map_err(|e| broken(e.to_string()))?;
    let place = |nodes: &[NodeSpec]| {
        placement::place(&placement::Request {
            topology,
            nodes,
            shards: spec.shards,
            replicas: spec.replicas_per_shard,
            overrides: &spec.overrides,
            placement: &spec.placement,
            previous: Some(&previous),
        })
    };
    let member = |n: &NodeSpec| shards.iter().any(|(s, _)| s.members.contains(&n.address));
    let usable = |n: &&NodeSpec| member(n) || !spec.overrides.drained.contains(&n.address);
    let usable: Vec<NodeSpec> = spec.nodes.iter().filter(usable).cloned().collect();
    let placed = place(&usable).or_else(|_| place(&spec.nodes))?;
    // Those who stay keep their order; who is new comes after them.
    let rows = placed.shards.iter().map(|(new, slots)| {
        let old = shards.iter().find(|(old, _)| old.id == new.id).map(|(old, _)| old);
        let before = old.map_or(&[][..], |old| &old.members);
        let stay = before.iter().filter(|m| new.members.contains(m));
        let come = new.members.iter().filter(|m| !before.contains(m));
        (Shard { members: stay.chain(come).cloned().collect(), ..new.clone() }, slots.clone())
    });
    let rows: Vec<Row> = rows.collect();
    let rows = if rows.len() < shards.len() { fewer(shards, rows, seen)? } else { rows };
    Ok((rows, placed.warnings))
}

/// What shards leave to the others that go, by the room that these have.
fn fewer(shards: &Shards, rows: Vec<Row>, seen: &Observation) -> Result<Vec<Row>, Refusal> {
    let held = |(shard, _): Row| {
        let slots = shards.iter().find(|(old, _)| old.id == shard.id).map(|(_, slots)| slots);
        (shard, slots.cloned().unwrap_or_default())
    };
    let stay: Vec<Row> = rows.into_iter().map(held).collect();
    let slots = taken_over(shards, &stay, &Figures::default(), "/spec/shards", seen)?;
    Ok(stay.into_iter().zip(slots).map(|((shard, _), slots)| (shard, slots)).collect())
}

/// A member of one shard cannot become one of another in the same plan: while it changes sides its
/// first shard would lack it unnoticed.
fn refuse_moves(old: &Shards, rows: &[Row]) -> Result<(), Refusal> {
    for (shard, _) in old {
        let others = rows.iter().filter(|(row, _)| row.id != shard.id);
        let moved =
            |(row, _): &Row| row.members.iter().find(|m| shard.members.contains(m)).cloned();
        if let Some(node) = others.filter_map(moved).next() {
            return Err(Refusal::Unsupported(format!(
                "with this spec {node} would go from shard {} to another one, which takes two plans: remove_replica, then add_replica; or name another node for the shard that lacks one",
                shard.index
            )));
        }
    }
    Ok(())
}

/// Members that stay and cannot be read as the new spec says.
fn unread(
    old: &Shards,
    rows: &[Row],
    field: &impl Fn(&Address) -> String,
    seen: &Observation,
) -> Vec<FieldError> {
    let stay = staying(old, rows);
    let wrong = |node: &Address| match seen.sighting(node) {
        Sighting::Silent(s) => {
            let why = cannot_be_read(&s.code, &s.message, "spec.credentials.admin");
            Some(FieldError::new(field(node), format!("{node} {why}")))
        }
        Sighting::Seen(_) | Sighting::Unknown => None,
    };
    stay.iter().flat_map(|(shard, _)| &shard.members).filter_map(wrong).collect()
}

/// The shards with those of their members who stay.
fn staying(old: &Shards, rows: &[Row]) -> Vec<Row> {
    let stays = |new: &Shard, node: &Address| {
        old.iter().any(|(shard, _)| shard.id == new.id && shard.members.contains(node))
    };
    let thinned = |(new, slots): &Row| {
        let members = new.members.iter().filter(|m| stays(new, m)).cloned().collect();
        (Shard { members, ..new.clone() }, slots.clone())
    };
    rows.iter().map(thinned).collect()
}

/// Settings that nobody looks after any more.
pub(super) fn left_alone(
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
) -> Option<Warning> {
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    let names: Vec<&str> = gone.map(String::as_str).collect();
    (!names.is_empty()).then(|| Warning {
        code: "settings_left".to_owned(),
        message: format!("the nodes keep what they have of {}", names.join(", ")),
    })
}
