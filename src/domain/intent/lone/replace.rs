//! Another spec for a topology with a lone shard: other members, settings, logins, places.

use std::collections::BTreeSet;

use super::members::{Fields, terms};
use super::{create::laid_out, drain, invalid, watched};
use crate::domain::intent::create::{cannot_be_read, first_fault, mixed_versions};
use crate::domain::intent::{Amendment, ReplaceSpecIntent, field_of, replace::left_alone};
use crate::domain::lineage;
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Sighting};
use crate::domain::placement::{self, Warning};
use crate::domain::planner::Terms;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::spec::{NodeSpec, Spec};
use crate::domain::topology::{Shard, Topology};

pub fn amend(
    intent: &ReplaceSpecIntent,
    now: &Topology,
    shard: &Shard,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let new = possible(intent, now)?;
    let (members, mut warnings) = if alike(&now.spec, new) {
        (shard.clone(), vec![])
    } else {
        placed(now, new, shard, seen)?
    };
    let field = |node: &Address| field_of(node, new.nodes());
    let fields = Fields { comer: &field, goer: "/spec/nodes" };
    let mut errors = unread(shard, &members, &field, seen);
    let (lacking, unwise) = watched::checked(Some(&now.spec), new, seen)?;
    errors.extend(lacking);
    warnings.extend(unwise);
    let mut way = Terms::default();
    match terms(now, new, &members, &fields, seen) {
        Ok(terms) => way = terms,
        Err(more) => errors.extend(more),
    }
    let away: BTreeSet<Address> = new.drained().difference(now.spec.drained()).cloned().collect();
    if !away.is_empty() {
        match drain::handover(shard, &away, new.drained(), seen) {
            Ok(seat) => seat.into_iter().for_each(|seat| {
                way.seats.entry(shard.id).or_insert(seat);
            }),
            Err(why) => errors.push(FieldError::new("/spec/overrides/drained", why)),
        }
        warnings.extend(drain::without(&members, new.drained()));
    }
    way.unwatch = watched::leaving(&now.spec, new);
    if !errors.is_empty() {
        let redis = first_fault(new.nodes().iter().map(|n| &n.address), seen);
        return Err(Refusal::NodesUnfit { errors, redis });
    }
    warnings.extend(mixed_versions(new.nodes(), seen));
    warnings.extend(left_alone(now.spec.settings(), new.settings()));
    let layout = laid_out(new, members);
    Ok(Amendment { spec: Some(new.clone()), layout, terms: way, warnings })
}

/// The new spec, where it is one that a plan could make of this topology.
pub(in crate::domain::intent) fn possible<'a>(
    intent: &'a ReplaceSpecIntent,
    now: &Topology,
) -> Result<&'a Spec, Refusal> {
    let new = &*intent.spec;
    if new.mode() != now.spec.mode() {
        return Err(invalid(
            "/spec/mode",
            "the mode of a topology stays as it is; make a new topology for another mode",
        ));
    }
    let wrong: Vec<_> = new.validate().into_iter().map(|e| e.under("/spec")).collect();
    let wrong: Vec<_> = wrong.into_iter().chain(watched::renamed(&now.spec, new)).collect();
    if !wrong.is_empty() {
        return Err(Refusal::Invalid(wrong));
    }
    Ok(new)
}

/// Whether placement would be asked the same.
fn alike(old: &Spec, new: &Spec) -> bool {
    let nodes = |spec: &Spec| spec.nodes().iter().cloned().collect::<BTreeSet<NodeSpec>>();
    let shape = |spec: &Spec| (spec.lone_replicas(), spec.placement().clone());
    shape(old) == shape(new) && nodes(old) == nodes(new)
}

fn placed(
    now: &Topology,
    new: &Spec,
    shard: &Shard,
    seen: &Observation,
) -> Result<(Shard, Vec<Warning>), Refusal> {
    // Who is first stays first, and so stays where there are to be fewer members.
    let primary = lineage::incumbent(shard, seen);
    let mut led = shard.clone();
    led.members.sort_by_key(|m| (Some(m) != primary.as_ref(), new.drained().contains(m)));
    let usable =
        |n: &&NodeSpec| shard.members.contains(&n.address) || !new.drained().contains(&n.address);
    let usable: Vec<NodeSpec> = new.nodes().iter().filter(usable).cloned().collect();
    let place = |nodes: &[NodeSpec]| placement::place_lone(now.id, new, nodes, Some(&led));
    let placed = place(&usable).or_else(|_| place(new.nodes()))?;
    // Those who stay keep their order; who is new comes after them.
    let stay = shard.members.iter().filter(|m| placed.shard.members.contains(m));
    let come = placed.shard.members.iter().filter(|m| !shard.members.contains(m));
    let members = stay.chain(come).cloned().collect();
    Ok((Shard { members, ..placed.shard.clone() }, placed.warnings))
}

/// Members that stay and cannot be read as the new spec says.
fn unread(
    old: &Shard,
    new: &Shard,
    field: &impl Fn(&Address) -> String,
    seen: &Observation,
) -> Vec<FieldError> {
    let wrong = |node: &Address| match seen.sighting(node) {
        Sighting::Silent(s) => {
            let why = cannot_be_read(&s.code, &s.message, "spec.credentials.admin");
            Some(FieldError::new(field(node), format!("{node} {why}")))
        }
        Sighting::Seen(_) | Sighting::Unknown => None,
    };
    let stay = new.members.iter().filter(|m| old.members.contains(m));
    stay.filter_map(wrong).collect()
}
