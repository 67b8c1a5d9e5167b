//! Who takes over in a lone shard.

use super::members::no_member;
use super::{invalid, seat, unfit};
use crate::domain::intent::failover::copy_of;
use crate::domain::intent::{Amendment, FailoverIntent};
use crate::domain::lineage;
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Role};
use crate::domain::placement::Warning;
use crate::domain::planner::Terms;
use crate::domain::refusal::Refusal;
use crate::domain::step::command::FailoverMethod;
use crate::domain::succession::{best, lack};
use crate::domain::topology::{Shard, Topology};
use crate::domain::view::Primary;

pub fn amend(
    intent: &FailoverIntent,
    now: &Topology,
    shard: &Shard,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    refuse_other_names(intent, shard, now.layout.sentinels())?;
    let forced = match intent.method {
        FailoverMethod::Graceful => false,
        FailoverMethod::Force => true,
        FailoverMethod::Takeover => {
            return Err(invalid(
                "/intent/method",
                "takeover does without the votes of a cluster's primaries, and this is no cluster: ask for method force",
            ));
        }
    };
    let mut from = incumbent(intent, shard, seen)?;
    let mut successor = intent.to.clone();
    // Where all wait for each other, the one that led may go on. Sentinels choose for themselves.
    let unwatched = forced && now.layout.sentinels().is_empty();
    if let Some(followed) = lineage::waits_for(&from, shard, seen).filter(|_| unwatched) {
        match &successor {
            None if lineage::returned(shard, seen).as_ref() != Some(&from) => {
                return Err(unfit(
                    "/intent/to",
                    "all that answer wait for each other, and it cannot be told who has the newest data: name in `to` the one that is to go on",
                ));
            }
            Some(to) if *to != from => {}
            Some(_) | None => (from, successor) = (followed.clone(), Some(from)),
        }
    }
    let from_id = seen.report(&from).map(|r| r.identity());
    let from_id = from_id.unwrap_or_else(|| crate::domain::node::ClusterNodeId(String::new()));
    let drained = now.spec.drained();
    let rival = |node: &Address| {
        forced && seen.report(node).is_some_and(|r| r.role == Role::Primary && !r.loading)
    };
    let to = match &successor {
        Some(to) if *to == from => {
            return Err(unfit("/intent/to", format!("{to} is the primary already")));
        }
        Some(to) if rival(to) => to.clone(),
        Some(to) => match lack(to, &from, &from_id, intent.method, seen) {
            None => to.clone(),
            Some(why) => return Err(unfit("/intent/to", format!("{to} {why}"))),
        },
        None => best(&shard.members, drained, &from, &from_id, intent.method, seen)
            .map_err(|whys| unfit("/intent", none_fit(&whys)))?,
    };
    if !forced {
        could_come_back(&from, &to, now, seen)?;
    }
    let seats = [(shard.id, seat(&from, &to, intent.method, seen))].into();
    let terms = Terms { seats, seats_only: true, ..Terms::default() };
    let mut warnings = Vec::new();
    if drained.contains(&to) {
        warnings.push(Warning {
            code: "successor_drained".to_owned(),
            message: format!("{to} is drained: undrain it, or have another replica take over"),
        });
    }
    if forced {
        warnings.extend(copy_of(&terms, seen));
        if seen.report(&from).is_none() {
            warnings.push(Warning {
                code: "not_fenced".to_owned(),
                message: format!(
                    "{from} does not answer and cannot be told: should it live and be reached by clients, two nodes take writes until Reeve reaches it"
                ),
            });
        }
    }
    warnings.extend(silent_sentinels(now, seen));
    Ok(Amendment { spec: None, layout: now.layout.clone(), terms, warnings })
}

/// Who does not hear of the new primary goes on naming the old one to clients.
fn silent_sentinels(now: &Topology, seen: &Observation) -> Option<Warning> {
    let all = now.layout.sentinels();
    let silent = all.iter().filter(|sentinel| seen.report(sentinel).is_none());
    let silent: Vec<String> = silent.map(ToString::to_string).collect();
    if silent.is_empty() {
        return None;
    }
    let message = format!(
        "{} of {} Sentinels do not answer ({}): they name the old primary to clients until they are back, and the plan waits for those that are only slow; better mend them first",
        silent.len(),
        all.len(),
        silent.join(", ")
    );
    Some(Warning { code: "sentinels_silent".to_owned(), message })
}

fn refuse_other_names(
    intent: &FailoverIntent,
    shard: &Shard,
    sentinels: &[Address],
) -> Result<(), Refusal> {
    let named = |name: &String| shard.id.0.to_string() == *name || shard.index.to_string() == *name;
    if intent.shard.as_ref().is_some_and(|name| !named(name)) {
        return Err(invalid("/intent/shard", "there is one shard, with the index 0; leave it out"));
    }
    for (field, node) in [("/intent/node", &intent.node), ("/intent/to", &intent.to)] {
        if let Some(node) = node.as_ref().filter(|node| !shard.members.contains(node)) {
            return Err(invalid(field, no_member(node, sentinels)));
        }
    }
    Ok(())
}

/// The primary, also one that is dead. Of two that both take writes, the one that is not to go on.
fn incumbent(
    intent: &FailoverIntent,
    shard: &Shard,
    seen: &Observation,
) -> Result<Address, Refusal> {
    if let Primary::Contested(several) = lineage::primary_of(shard, seen) {
        let names: Vec<String> = several.iter().map(ToString::to_string).collect();
        let names = names.join(" and ");
        return match (&intent.to, intent.method, several.as_slice()) {
            (Some(to), FailoverMethod::Force, [a, b]) if to == a || to == b => {
                Ok(if to == a { b.clone() } else { a.clone() })
            }
            _ => Err(unfit(
                "/intent",
                format!(
                    "{names} all take writes: ask for method force and name in `to` the one that is to go on; what the others took meanwhile is lost"
                ),
            )),
        };
    }
    lineage::incumbent(shard, seen).ok_or_else(|| {
        unfit(
            "/intent",
            "none of the nodes that answer is primary or follows one: bring more of them back",
        )
    })
}

/// The old primary has to follow the new one.
fn could_come_back(
    from: &Address,
    to: &Address,
    now: &Topology,
    seen: &Observation,
) -> Result<(), Refusal> {
    let (Some(old), Some(new)) = (seen.report(from), seen.report(to)) else { return Ok(()) };
    if !old.capabilities().can_replicate_from(new.capabilities()) {
        return Err(unfit(
            "/intent/to",
            format!(
                "{to} ({:?} {}) writes what {from} ({:?} {}) cannot load, so that it could not follow: upgrade {from} first, or name another replica",
                new.flavor, new.version, old.flavor, old.version
            ),
        ));
    }
    let named = now.spec.credentials().replication.is_some();
    if new.requires_login && !old.has_replication_login && !named {
        return Err(unfit(
            "/intent",
            format!(
                "{to} demands a login, and {from} has no masterauth to log in with, so that it could not follow: name a credential in spec.credentials.replication (PUT), or set masterauth there"
            ),
        ));
    }
    Ok(())
}

fn none_fit(whys: &[String]) -> String {
    if whys.is_empty() {
        return "there is no replica that could take over: add one first".to_owned();
    }
    format!("no replica can take over: {}", whys.join("; "))
}
