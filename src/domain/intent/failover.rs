//! Failover: a replica becomes the primary of its shard. Nothing of the wanted topology changes, since
//! who is primary is seen and never wanted; only this plan's terms name one.

use super::{Amendment, FailoverIntent, lone, shard_named, shard_with, shards_of};
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::Observation;
use crate::domain::placement::Warning;
use crate::domain::planner::{Seat, Terms};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::slot::SlotSet;
use crate::domain::step::command::FailoverMethod;
use crate::domain::step::failover::votes;
use crate::domain::succession::{best, expected, lack};
use crate::domain::topology::{Layout, Shard, Shards, Topology};
use crate::domain::view;

/// The terms that name the next primary. `seen` holds a fresh look at every node.
pub fn amend(
    intent: &FailoverIntent,
    now: &Topology,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    if let Some(shard) = lone::of(now) {
        return lone::failover::amend(intent, now, shard, seen);
    }
    let (spec, shards) = shards_of(now, "failover")?;
    let drained = &spec.overrides.drained;
    let (shard, slots) = meant(intent, shards)?;
    let (from, from_id) = incumbent(shard, slots, seen).map_err(|why| unfit("/intent", why))?;
    let to = match &intent.to {
        Some(to) if *to == from => {
            return Err(unfit(
                "/intent/to",
                format!("{to} is the primary of shard {} already", shard.index),
            ));
        }
        Some(to) => match lack(to, &from, &from_id, intent.method, seen) {
            None => to.clone(),
            Some(why) => return Err(unfit("/intent/to", format!("{to} {why}"))),
        },
        None => best(&shard.members, drained, &from, &from_id, intent.method, seen)
            .map_err(|whys| unfit("/intent", none_fit(shard, &whys)))?,
    };
    if let Some(why) = objection(intent.method, shard, &from, &to, seen) {
        return Err(unfit("/intent/method", why));
    }
    let warning = drained.contains(&to).then(|| Warning {
        code: "successor_drained".to_owned(),
        message: format!("{to} is drained: undrain it, or have another replica take over"),
    });
    let expected_ms = expected(intent.method, &from, &to, seen);
    let slots = view::slots_of(&from_id, seen);
    let seat = Seat { from, from_id, slots, to, method: intent.method, expected_ms };
    let seats = [(shard.id, seat)].into();
    let terms = Terms { seats, seats_only: true, ..Terms::default() };
    let mut warnings: Vec<Warning> = warning.into_iter().collect();
    match intent.method {
        FailoverMethod::Graceful => {}
        FailoverMethod::Force | FailoverMethod::Takeover => warnings.extend(copy_of(&terms, seen)),
    }
    Ok(Amendment { spec: None, layout: now.layout.clone(), terms, warnings })
}

/// Where the nodes elected somebody else than the plan was to make primary.
#[must_use]
pub fn elected_another(terms: &Terms, layout: &Layout, seen: &Observation) -> Option<Warning> {
    let told = layout.shards().into_iter().filter_map(|(shard, slots)| {
        let seat = terms.seats.get(&shard.id).filter(|_| terms.seats_only)?;
        let now = view::agreed_primary(shard, &slots, seen).filter(|now| *now != seat.to)?;
        Some(format!(
            "{now} is primary of shard {} now and {} is not: somebody else, or the nodes themselves, made it so while the plan was under way",
            shard.index, seat.to
        ))
    });
    let told: Vec<String> = told.collect();
    (!told.is_empty())
        .then(|| Warning { code: "elected_another".to_owned(), message: told.join("; ") })
}

/// What the next primary has. A replica whose primary died in its first full copy may have nothing.
pub(super) fn copy_of(terms: &Terms, seen: &Observation) -> Vec<Warning> {
    let told = |seat: &Seat| {
        let report = seen.report(&seat.to)?;
        let message = format!(
            "{} holds {} keys, at replication offset {}: clients will find that, and nothing newer",
            seat.to, report.keys, report.replication.offset
        );
        let code = if report.keys == 0 { "empty_copy" } else { "unconfirmed_copy" };
        Some(Warning { code: code.to_owned(), message })
    };
    terms.seats.values().filter_map(told).collect()
}

/// The primary of a shard, also one that is dead: whom most nodes show as the owner of its slots.
pub(super) fn incumbent(
    shard: &Shard,
    slots: &SlotSet,
    seen: &Observation,
) -> Result<(Address, ClusterNodeId), String> {
    let owner = view::owner_shown(slots, seen);
    let found = owner.and_then(|id| Some((view::address_of(id, seen)?.clone(), id.clone())));
    found.ok_or_else(|| {
        format!(
            "the nodes that answer do not agree on who serves shard {}: wait until they do, or bring more of them back",
            shard.index
        )
    })
}

fn meant<'a>(intent: &FailoverIntent, shards: &'a Shards) -> Result<&'a (Shard, SlotSet), Refusal> {
    let by_name = intent.shard.as_deref().map(|name| shard_named(name, shards)).transpose()?;
    let of = |node: &Option<Address>, field| {
        node.as_ref().map(|node| shard_with(node, field, shards)).transpose()
    };
    let named = [by_name, of(&intent.node, "/intent/node")?, of(&intent.to, "/intent/to")?];
    let mut named = named.into_iter().flatten();
    let Some(first) = named.next() else {
        return Err(Refusal::Invalid(vec![FieldError::new(
            "/intent",
            "name the shard by `shard` (its id or index), or by `node` or `to` (one of its nodes)",
        )]));
    };
    if named.all(|other| other.0.id == first.0.id) {
        return Ok(first);
    }
    Err(Refusal::Invalid(vec![FieldError::new(
        "/intent",
        "`shard`, `node` and `to` name different shards",
    )]))
}

/// Why a method does not fit how the cluster does, if it does not.
pub(super) fn objection(
    method: FailoverMethod,
    shard: &Shard,
    from: &Address,
    to: &Address,
    seen: &Observation,
) -> Option<String> {
    let (reached, needed) = votes(seen.view(to)?);
    match method {
        FailoverMethod::Graceful | FailoverMethod::Force if reached < needed => Some(format!(
            "{needed} primaries have to vote for the new primary of shard {}, and {to} reaches {reached}: bring primaries back, or ask for method takeover, which asks nobody",
            shard.index
        )),
        FailoverMethod::Takeover if reached >= needed => Some(format!(
            "{to} reaches {reached} primaries, a majority: ask for method force, by which they vote"
        )),
        FailoverMethod::Takeover if seen.report(from).is_some() => Some(format!(
            "{from} answers, so that two nodes would take writes for shard {}: stop it first",
            shard.index
        )),
        FailoverMethod::Graceful | FailoverMethod::Force | FailoverMethod::Takeover => None,
    }
}

fn none_fit(shard: &Shard, whys: &[String]) -> String {
    if whys.is_empty() {
        return format!("shard {} has no replica that could take over: add one first", shard.index);
    }
    format!("no replica of shard {} can take over: {}", shard.index, whys.join("; "))
}

fn unfit(pointer: &str, why: String) -> Refusal {
    Refusal::NodesUnfit { errors: vec![FieldError::new(pointer, why)], redis: None }
}
