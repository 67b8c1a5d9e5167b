//! Drain and undrain in a lone shard: whether another node takes over.

use std::collections::BTreeSet;

use super::seat;
use crate::domain::intent::Amendment;
use crate::domain::lineage;
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Report};
use crate::domain::placement::Warning;
use crate::domain::planner::{Seat, Terms};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::step::command::FailoverMethod;
use crate::domain::succession::fittest;
use crate::domain::topology::{Shard, Topology};

/// `away` are the nodes that are drained now, `drained` all that are.
pub fn amend(
    now: &Topology,
    shard: &Shard,
    away: &BTreeSet<Address>,
    drained: BTreeSet<Address>,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let seat = handover(shard, away, &drained, seen).map_err(|why| Refusal::NodesUnfit {
        errors: vec![FieldError::new("/intent", why)],
        redis: None,
    })?;
    let seats = seat.map(|seat| (shard.id, seat)).into_iter().collect();
    let terms = Terms { seats, seats_only: true, ..Terms::default() };
    let warnings = without(shard, &drained);
    Ok(Amendment {
        spec: Some(now.spec.clone().with_drained(drained)),
        layout: now.layout.clone(),
        terms,
        warnings,
    })
}

/// They may serve again. Nothing moves.
pub fn undrain(now: &Topology, drained: BTreeSet<Address>) -> Amendment {
    let terms = Terms { seats_only: true, ..Terms::default() };
    let spec = Some(now.spec.clone().with_drained(drained));
    Amendment { spec, layout: now.layout.clone(), terms, warnings: vec![] }
}

/// Who takes over from the primary, if that is `away`; or what is lacking.
pub(super) fn handover(
    shard: &Shard,
    away: &BTreeSet<Address>,
    drained: &BTreeSet<Address>,
    seen: &Observation,
) -> Result<Option<Seat>, String> {
    let none = "none of the nodes that answer is primary or follows one: bring more of them back";
    let from = lineage::incumbent(shard, seen).ok_or_else(|| none.to_owned())?;
    if !away.contains(&from) {
        return Ok(None);
    }
    let silent = || {
        format!(
            "{from} is the primary and does not answer: have a replica take over first (failover with method force)"
        )
    };
    let from_id = seen.report(&from).map(Report::identity).ok_or_else(silent)?;
    let method = FailoverMethod::Graceful;
    let outside: Vec<Address> =
        shard.members.iter().filter(|m| !drained.contains(m)).cloned().collect();
    let to = fittest(&outside, &from, &from_id, method, seen).map_err(|whys| {
        if whys.is_empty() {
            format!("there is no replica outside of what is drained that could take over from {from}: add one in another zone first (add_replica)")
        } else {
            format!("{from} is the primary, and nobody can take over: {}", whys.join("; "))
        }
    })?;
    Ok(Some(seat(&from, &to, method, seen)))
}

/// What redundancy is left while the drained nodes are away.
pub(super) fn without(shard: &Shard, drained: &BTreeSet<Address>) -> Vec<Warning> {
    let mut outside = shard.members.iter().filter(|m| !drained.contains(m));
    match (outside.next(), outside.next()) {
        (Some(last), None) if shard.members.len() > 1 => {
            let message = format!(
                "while the drained nodes are away, {last} is all that there is: nobody takes over from it"
            );
            vec![Warning { code: "no_replica_outside".to_owned(), message }]
        }
        _ => vec![],
    }
}
