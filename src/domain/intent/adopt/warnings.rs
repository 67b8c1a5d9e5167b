//! What was not plain about a cluster that is adopted, and what was made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use super::UNKNOWN_ZONE;
use super::circle::Circle;
use super::owners::Parts;
use crate::domain::intent::create::mixed_versions;
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Role};
use crate::domain::placement::Warning;
use crate::domain::slot::SlotSet;
use crate::domain::spec::NodeSpec;
use crate::domain::topology::Shard;

/// What warnings are told from.
pub(super) struct Ground<'a> {
    pub circle: &'a Circle<'a>,
    pub parts: &'a Parts<'a>,
    pub shards: &'a [(Shard, SlotSet)],
    /// Slots that nobody serves, by the number of the shard that they went to.
    pub given: &'a BTreeMap<usize, SlotSet>,
    pub zones: &'a BTreeMap<Address, &'a String>,
    pub nodes: &'a [NodeSpec],
    pub seeds: &'a [Address],
    pub seen: &'a Observation,
}

pub(super) fn warnings(ground: &Ground) -> Vec<Warning> {
    let mut all = seats(ground);
    all.extend(acquaintance(ground));
    all.extend(slots(ground));
    all.extend(parts(ground));
    all.extend(login(ground));
    all.extend(mixed_versions(ground.nodes, ground.seen));
    all
}

fn warning(code: &str, message: String) -> Warning {
    Warning { code: code.to_owned(), message }
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|i| i.to_string()).collect::<Vec<_>>().join(", ")
}

/// Who does not answer, and of whom the zone is not known.
fn seats(ground: &Ground) -> Vec<Warning> {
    let mut all = Vec::new();
    let zoneless: Vec<_> =
        ground.nodes.iter().map(|n| &n.address).filter(|a| !ground.zones.contains_key(a)).collect();
    if !zoneless.is_empty() {
        all.push(warning(
            "zone_unknown",
            format!(
                "zones does not name {}, which got the zone `{UNKNOWN_ZONE}`: what is said of the loss of a zone does not count there",
                list(zoneless)
            ),
        ));
    }
    let parties = &ground.circle.parties;
    for party in parties.iter().filter(|p| p.voice.is_none()) {
        all.push(warning(
            "node_silent",
            format!(
                "{} does not answer, and was taken for what the others say of it",
                party.address
            ),
        ));
    }
    let silent = |s: &&Address| ground.seen.report(s).is_none();
    let strange = |s: &&Address| !parties.iter().any(|p| p.address == *s);
    for seed in ground.seeds.iter().filter(silent).filter(strange) {
        all.push(warning(
            "seed_unknown",
            format!("the seed {seed} does not answer, and no node of the cluster knows it: it was left out"),
        ));
    }
    all
}

/// Who knows whom, where that is not plain.
fn acquaintance(ground: &Ground) -> Vec<Warning> {
    let Ground { circle, seen, .. } = ground;
    let mut all = Vec::new();
    for id in &circle.nameless {
        all.push(warning(
            "node_without_address",
            format!("nodes know {id}, but no address of it: it was left out; if it is gone, CLUSTER FORGET it on every node"),
        ));
    }
    for address in &circle.outsiders {
        all.push(warning(
            "node_outside",
            format!("nodes know {address}, which answers and knows none of them: it was left out; if it is not to come back, CLUSTER FORGET it on every node"),
        ));
    }
    for (id, address) in &circle.ghosts {
        all.push(warning(
            "node_replaced",
            format!("nodes still know {id} at {address}, where another node is now: it was left out; CLUSTER FORGET it on every node"),
        ));
    }
    for party in circle.parties.iter().filter(|p| p.voice.is_none()) {
        if let Some(now) = seen.view(party.address).map(|v| &v.my_id) {
            all.push(warning(
                "node_replaced",
                format!(
                    "nodes know {} as {}, but it is {now} by now and none of them knows that: it was taken for what it was",
                    party.address, party.id
                ),
            ));
        }
    }
    for address in &circle.greeting {
        all.push(warning(
            "node_in_handshake",
            format!("{address} was introduced to a node and is not known yet: it was left out"),
        ));
    }
    all
}

/// Slots that nobody, or more than one, serves.
fn slots(ground: &Ground) -> Vec<Warning> {
    let mut all = Vec::new();
    for (i, slots) in ground.given {
        all.push(warning(
            "slots_uncovered",
            format!(
                "nobody serves slots {slots}: they were given to shard {i}, and a repair would assign them to its primary"
            ),
        ));
    }
    for (node, slots) in &ground.parts.overruled {
        all.push(warning(
            "slots_contested",
            format!("{node} claims slots {slots}, which others claim with a higher epoch: they count for those"),
        ));
    }
    for party in &ground.circle.parties {
        let open = party.voice.map(|(_, v)| v.open.as_slice()).unwrap_or_default();
        if !open.is_empty() {
            all.push(warning(
                "slots_open",
                format!(
                    "{} has slots half-way to or from other nodes ({}): they count for whoever owns them now",
                    party.address,
                    list(open.iter().map(|o| o.slot).collect::<BTreeSet<_>>())
                ),
            ));
        }
    }
    for (owner, (shard, slots)) in ground.parts.owners.iter().zip(ground.shards) {
        if !owner.answers {
            all.push(warning(
                "shard_without_primary",
                format!(
                    "shard {} has no primary that answers: {} is the last that was known, and slots {slots} stay with its shard",
                    shard.index, owner.node
                ),
            ));
        }
    }
    all
}

/// Nodes whose part is not plain.
fn parts(ground: &Ground) -> Vec<Warning> {
    let mut all = Vec::new();
    for party in &ground.parts.idle {
        let address = party.address;
        let keys = party.voice.map_or(0, |(report, _)| report.keys);
        let message = match party.voice.map(|(report, _)| report.role) {
            Some(Role::Replica) => format!(
                "{address} follows nobody who serves slots: it is a spare in the spec, though the cluster has it for a replica; make it a primary's replica (CLUSTER REPLICATE) or take it out of the cluster"
            ),
            Some(Role::Primary | Role::Sentinel) | None if keys > 0 => format!(
                "{address} is a primary without slots and holds {keys} keys that nobody can reach: it is a spare in the spec"
            ),
            Some(Role::Primary | Role::Sentinel) | None => {
                format!("{address} is a primary without slots and keys: it is a spare in the spec")
            }
        };
        all.push(warning("primary_without_slots", message));
    }
    for (node, home) in &ground.parts.lost {
        let message = match home {
            Some(primary) => format!(
                "{node} does not answer, serves no slots and follows nobody who does: it was counted to the shard of {primary}, which lacks a member"
            ),
            None => format!(
                "{node} does not answer, serves no slots and follows nobody who does: it is a spare in the spec"
            ),
        };
        all.push(warning("part_unknown", message));
    }
    all
}

/// A login that the nodes do not have.
fn login(ground: &Ground) -> Option<Warning> {
    let differs = |n: &&NodeSpec| {
        let report = ground.seen.report(&n.address);
        report.and_then(|r| r.replication_login_as_wanted) == Some(false)
    };
    let nodes: Vec<_> = ground.nodes.iter().filter(differs).map(|n| &n.address).collect();
    (!nodes.is_empty()).then(|| {
        warning(
            "replication_login_differs",
            format!(
                "{} have another replication login than credentials.replication: a repair would set it",
                list(nodes)
            ),
        )
    })
}
