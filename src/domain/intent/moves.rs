//! What intents that move slots have in common: who is meant, how fast it may go, and what stands
//! against it.

use super::shard_with;
use crate::domain::moving::survey::Figures;
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Report};
use crate::domain::placement::Warning;
use crate::domain::planner::Moving;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::slot::SlotSet;
use crate::domain::topology::{Shard, Shards};
use crate::domain::view::{self, ReplicaState};

pub(super) type Row = (Shard, SlotSet);

/// Since this can be set, a primary that gave its last slot away can be kept from following another.
const REPLICA_MIGRATION: &str = "cluster-allow-replica-migration";
/// So many primaries that serve can still elect one when another is lost.
const ELECTORATE: usize = 3;

/// How slots are to be moved, within what may be asked for.
pub(super) fn moving(max_latency_ms: Option<u64>) -> Result<Moving, FieldError> {
    match max_latency_ms {
        None => Ok(Moving::default()),
        Some(ms @ 1..=1000) => Ok(Moving { max_latency_ms: ms, ..Moving::default() }),
        Some(ms) => Err(FieldError::new(
            "/intent/max_latency_ms",
            format!("{ms} is not from 1 to 1000 milliseconds; leave it out for 5"),
        )),
    }
}

/// The shard that a request means by its id, its index, or the address of one of its members.
pub(super) fn meant<'a>(
    name: &str,
    field: &str,
    shards: &'a Shards,
) -> Result<&'a Row, FieldError> {
    let named =
        |(shard, _): &&Row| shard.id.0.to_string() == name || shard.index.to_string() == name;
    if let Some(found) = shards.iter().find(named) {
        return Ok(found);
    }
    if let Ok(node) = name.parse::<Address>() {
        return shard_with(&node, field, shards).map_err(|refusal| only(refusal, field));
    }
    let all: Vec<String> = shards.iter().map(|(s, _)| s.index.to_string()).collect();
    let why = format!(
        "there is no shard `{name}`; name one by its id, by the address of a member, or by its index, of which there are {}",
        all.join(", ")
    );
    Err(FieldError::new(field, why))
}

fn only(refusal: Refusal, field: &str) -> FieldError {
    match refusal {
        Refusal::Invalid(mut errors) if !errors.is_empty() => errors.swap_remove(0),
        other => FieldError::new(field, other.to_string()),
    }
}

/// What to know of slots that are to be where `after` has them, or all that stands against it, at
/// `field`.
pub(super) fn checked(
    before: &Shards,
    after: &[Row],
    field: &str,
    seen: &Observation,
) -> Result<Vec<Warning>, Refusal> {
    let old = |shard: &Shard| before.iter().find(|(s, _)| s.id == shard.id);
    let mut errors = Vec::new();
    let mut warnings = Vec::new();
    for (shard, slots) in after {
        let Some((_, held)) = old(shard) else { continue };
        if let Some(why) = unmovable(shard, slots, held, seen) {
            errors.push(why);
        } else if slots.is_empty() && !held.is_empty() {
            errors.extend(unemptied(shard, seen));
        }
        errors.extend(unreadable(shard, slots, held, before, seen));
        if !slots.difference(held).is_empty() && is_bare(shard, held, seen) {
            let message = format!(
                "no replica of shard {} has its data: keys that move there are on one node alone",
                shard.index
            );
            warnings.push(Warning { code: "target_without_replica".to_owned(), message });
        }
    }
    let serving = after.iter().filter(|(_, slots)| !slots.is_empty()).count();
    let emptied = |(shard, held): &&Row| {
        let left = after.iter().find(|(s, _)| s.id == shard.id);
        !held.is_empty() && left.is_none_or(|(_, slots)| slots.is_empty())
    };
    if serving < ELECTORATE && before.iter().any(|row| emptied(&row)) {
        errors.push(format!(
            "{serving} shards would serve slots, and only a majority of at least {ELECTORATE} primaries that serve can elect a new one: leave slots to {ELECTORATE} shards"
        ));
    }
    if errors.is_empty() {
        return Ok(warnings);
    }
    let errors = errors.into_iter().map(|why| FieldError::new(field, why)).collect();
    Err(Refusal::NodesUnfit { errors, redis: None })
}

/// Why the slots of a shard cannot change, if they are to and cannot.
fn unmovable(shard: &Shard, slots: &SlotSet, held: &SlotSet, seen: &Observation) -> Option<String> {
    let serves = view::agreed_primary(shard, held, seen).is_some();
    // Whoever has nothing yet may be agreed on only as one that is to get something.
    let could = held.is_empty() && view::agreed_primary(shard, slots, seen).is_some();
    (slots != held && !serves && !could).then(|| {
        format!(
            "shard {} has no primary that the nodes agree on, to or from which slots could move: wait until they agree, or ask for a failover",
            shard.index
        )
    })
}

/// Why a shard cannot be left without slots: before Redis 7.0 its nodes would follow whoever got the
/// last one, by themselves.
fn unemptied(shard: &Shard, seen: &Observation) -> Option<String> {
    let fixed =
        |m: &&Address| seen.report(m).is_some_and(|r| !r.settings.contains_key(REPLICA_MIGRATION));
    let node = shard.members.iter().find(fixed)?;
    Some(format!(
        "shard {} would be left without slots, and {node} (before Redis 7.0) would make itself a replica of another shard then: leave it some, or ask for remove_shard",
        shard.index
    ))
}

/// Who would send keys to a shard that cannot read them.
fn unreadable(
    shard: &Shard,
    slots: &SlotSet,
    held: &SlotSet,
    before: &Shards,
    seen: &Observation,
) -> Option<String> {
    let at = |shard: &Shard, slots: &SlotSet| {
        let node = view::agreed_primary(shard, slots, seen)?;
        let report = seen.report(&node)?;
        Some((node, report))
    };
    let (to, target) = at(shard, held)?;
    let givers = before
        .iter()
        .filter(|(from, had)| from.id != shard.id && !slots.intersection(had).is_empty());
    let reads = |from: &Report| target.capabilities().can_replicate_from(from.capabilities());
    let mut foreign = givers.filter_map(|(s, had)| at(s, had)).filter(|(_, from)| !reads(from));
    let (from, source) = foreign.next()?;
    Some(format!(
        "{to} runs {:?} {}, which cannot load what {from} ({:?} {}) writes: move slots the other way, or bring it to that version first",
        target.flavor, target.version, source.flavor, source.version
    ))
}

/// Whether nobody but its primary has a shard's data.
fn is_bare(shard: &Shard, slots: &SlotSet, seen: &Observation) -> bool {
    let replicas = view::shard(shard, slots, seen).replicas;
    !replicas.iter().any(|r| r.state == ReplicaState::Online)
}

/// What each shard that stays serves when those of `before` that go have given it theirs.
pub(super) fn taken_over(
    before: &Shards,
    stay: &[Row],
    figures: &Figures,
    field: &str,
    seen: &Observation,
) -> Result<Vec<SlotSet>, Refusal> {
    use crate::domain::balance::{NoRoom, Taker, spread};
    use crate::domain::moving::survey::room;

    let stays = |shard: &Shard| stay.iter().any(|(s, _)| s.id == shard.id);
    let gone: Vec<&Row> = before.iter().filter(|(shard, _)| !stays(shard)).collect();
    let going = gone.iter().fold(SlotSet::empty(), |all, (_, slots)| all.union(slots));
    let bytes = |slot: u16| {
        let row = gone.iter().find(|(_, slots)| slots.contains(slot));
        let node = row.and_then(|(shard, slots)| view::agreed_primary(shard, slots, seen));
        node.map_or(0, |node| figures.bytes_at(slot, &node, seen))
    };
    let bytes: std::collections::BTreeMap<u16, u64> =
        going.iter().map(|slot| (slot, bytes(slot))).collect();
    let taker = |(shard, slots): &Row| {
        let node = view::agreed_primary(shard, slots, seen);
        Taker { slots: slots.clone(), room: node.and_then(|node| room(&node, seen)) }
    };
    let takers: Vec<Taker> = stay.iter().map(taker).collect();
    spread(&going, &takers, |slot| bytes.get(&slot).copied().unwrap_or(0)).map_err(
        |NoRoom { needed, room }| {
            let why = format!(
                "{needed} bytes would move to the other shards, which have room for {room} bytes (five sixths of what maxmemory leaves free): raise their maxmemory, or delete keys first"
            );
            let errors = vec![FieldError::new(field, why)];
            Refusal::NodesUnfit { errors, redis: None }
        },
    )
}
