//! Slots that are elsewhere than wanted, and slots that are half-way.
//!
//! A slot that is open is closed by moving it on, never back: of its keys some are at either end, and
//! only the end that gets them can serve all. Where it is wanted elsewhere it moves once more.

use std::collections::{BTreeMap, BTreeSet};

use super::{Goal, Leaver, Question, peopled, primary, shards};
use crate::domain::node::{Address, ClusterNodeId, MovedBy};
use crate::domain::observation::{ClusterView, Observation, OpenSlot, Report, Role, SlotJobView};
use crate::domain::slot::SlotSet;
use crate::domain::step::cancel::CancelSlotJobs;
use crate::domain::step::slots::{End, MoveMethod, MoveSlots};
use crate::domain::step::trim::AwaitTrim;
use crate::domain::step::{Blocker, Step};
use crate::domain::topology::Shard;
use crate::domain::view::address_of;

/// Slots that are served elsewhere than wanted move, the greatest moves first; pairs that have no
/// node in common at the same time.
pub fn move_slots(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    foreign(q)?;
    let mut moves = moves(q);
    moves.sort_by_key(|step| std::cmp::Reverse(step.slots.count()));
    Ok(moves.into_iter().map(Step::MoveSlots).collect())
}

/// Servers that drop what has moved away are waited for: until then they count keys that are not theirs.
pub fn trim(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let trims = parties(q).filter(|party| party.view.trims);
    Ok(trims.map(|party| Step::AwaitTrim(AwaitTrim { node: party.end.address })).collect())
}

/// Slots that are half-way and that Reeve opened, or is to close. While a plan winds down, those at
/// nodes that do not answer are left for a repair.
pub fn close(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let cancels = cancels(q);
    if !cancels.is_empty() {
        return Ok(cancels);
    }
    let open = open_slots(q).intersection(&ours(q));
    if open.is_empty() {
        return Ok(vec![]);
    }
    let mut steps: Vec<MoveSlots> =
        moves(q).into_iter().filter_map(|step| part_of(step, &open)).collect();
    let covered = steps.iter().fold(SlotSet::empty(), |all, s| all.union(&s.slots));
    let rest = open.difference(&covered);
    steps.extend(half_way(q).into_iter().filter_map(|step| part_of(step, &rest)));
    let seen = |end: &End| q.seen.report(&end.address).is_some();
    steps.retain(|s| q.goal == Goal::Converge || (seen(&s.from) && seen(&s.to)));
    Ok(steps.into_iter().map(Step::MoveSlots).collect())
}

/// Jobs of servers that Reeve began, and that are not what is wanted now.
fn cancels(q: &Question) -> Vec<Step> {
    let (ours, moves) = (ours(q), moves(q));
    let wanted = |job: &SlotJobView| {
        let fits = |m: &MoveSlots| {
            job.from.as_ref().is_none_or(|from| *from == m.from.id)
                && job.to.as_ref().is_none_or(|to| *to == m.to.id)
                && job.slots.difference(&m.slots).is_empty()
        };
        q.goal == Goal::Converge && moves.iter().any(fits)
    };
    let stray = |p: &Party| {
        let began = |job: &&SlotJobView| !job.slots.intersection(&ours).is_empty();
        p.view.jobs.iter().filter(began).any(|job| !wanted(job))
    };
    let step = |p: Party| Step::CancelSlotJobs(CancelSlotJobs { node: p.end });
    parties(q).filter(stray).map(step).collect()
}

/// The nodes of shards that give their last slot away, until all of them know that it is gone: they
/// must not make themselves useful elsewhere for it, a primary together with its replicas.
pub fn draining(q: &Question) -> BTreeSet<Address> {
    if q.goal == Goal::WindDown {
        return BTreeSet::new();
    }
    let moves = moves(q);
    let people = |party: &Party| {
        let of_shard =
            |(shard, _): &&(Shard, SlotSet)| peopled(q, shard).members.contains(&party.end.address);
        let members = shards(q).iter().find(of_shard).map(|(s, _)| peopled(q, s).members);
        let leaver = q.terms.leavers.get(&party.end.address);
        let leave = |l: &&Leaver| leaver.is_some_and(|p| p.shard == l.shard);
        let leavers = q.terms.leavers.iter().filter(|(_, l)| leave(l)).map(|(node, _)| node);
        members.unwrap_or_default().into_iter().chain(leavers.cloned()).collect::<Vec<_>>()
    };
    let mut draining = BTreeSet::new();
    for party in parties(q) {
        let gives = moves.iter().filter(|step| step.from == party.end);
        let given = gives.fold(SlotSet::empty(), |all, step| all.union(&step.slots));
        if !party.view.my_slots().difference(&given).is_empty() {
            continue;
        }
        let people = people(&party);
        let shows =
            |v: &ClusterView| v.peers.get(&party.end.id).is_some_and(|peer| !peer.slots.is_empty());
        let unaware = people.iter().filter_map(|node| q.seen.view(node)).any(shows);
        if !given.is_empty() || unaware {
            draining.extend(people);
        }
    }
    draining
}

/// Every move that is left, between nodes that serve.
pub fn moves(q: &Question) -> Vec<MoveSlots> {
    let mut moves = Vec::new();
    for (shard, slots) in shards(q) {
        let to = primary(q, shard, slots);
        let Some(to) = to.and_then(|to| Party::seen(&to, q.seen)) else { continue };
        for from in parties(q).filter(|from| from.end != to.end) {
            let gives = |o: &&OpenSlot| o.giving && o.other == to.end.id;
            let takes = |o: &&OpenSlot| !o.giving && o.other == from.end.id;
            let gives = from.view.open.iter().filter(gives);
            let open = gives.chain(to.view.open.iter().filter(takes)).map(|o| o.slot);
            // Moved, but not closed at both ends.
            let open: SlotSet = open.collect();
            let moved = open.intersection(&to.view.my_slots());
            // An old primary that woke up and whoever was elected in its place both say that the shard's
            // slots are theirs: the greater epoch decides that, and not a move.
            let heir = peopled(q, shard).members.contains(&from.end.address);
            let both = from.view.my_slots().intersection(&to.view.my_slots()).difference(&open);
            let contested = if heir { both } else { SlotSet::empty() };
            let slots = from.view.my_slots().union(&moved).intersection(slots);
            let slots = slots.difference(&bound_elsewhere(q, &from, &to)).difference(&contested);
            if !slots.is_empty() {
                moves.push(step(q, &from, &to, slots));
            }
        }
    }
    moves
}

/// Slots that one node gives to another than `to`, who has some of their keys.
fn bound_elsewhere(q: &Question, from: &Party, to: &Party) -> SlotSet {
    let other =
        |o: &&OpenSlot| o.giving && resolve(q, &o.other).is_some_and(|node| node != to.end.address);
    from.view.open.iter().filter(other).map(|o| o.slot).collect()
}

/// Moves that were begun, whatever is wanted.
fn half_way(q: &Question) -> Vec<MoveSlots> {
    let mut pairs: BTreeMap<(Address, Address), BTreeSet<u16>> = BTreeMap::new();
    for party in parties(q) {
        for open in &party.view.open {
            let other = || resolve(q, &open.other);
            let owner = || {
                let owns = |p: &Party| p.view.my_slots().contains(open.slot);
                parties(q).find(owns).map(|p| p.end.address)
            };
            let here = party.end.address.clone();
            let gone = || owner().filter(|_| !party.view.my_slots().contains(open.slot));
            let pair = if open.giving {
                // Where it is through, whoever owns it now is the one to close it with: after a
                // failover that may be another node than the one that it was given to.
                gone().or_else(other).map(|to| (here, to))
            } else {
                owner().filter(|owner| *owner != here).or_else(other).map(|from| (from, here))
            };
            if let Some((from, to)) = pair.filter(|(from, to)| from != to) {
                pairs.entry((from, to)).or_default().insert(open.slot);
            }
        }
    }
    let step = |((from, to), slots): ((Address, Address), BTreeSet<u16>)| {
        let (from, to) = (Party::seen(&from, q.seen)?, Party::seen(&to, q.seen)?);
        Some(step(q, &from, &to, slots.into_iter().collect()))
    };
    pairs.into_iter().filter_map(step).collect()
}

/// Somebody else moves slots: whose they are in the end cannot be told.
fn foreign(q: &Question) -> Result<(), Vec<Blocker>> {
    let ours = ours(q);
    let blocker = |party: Party| {
        let open: SlotSet = party.view.open.iter().map(|o| o.slot).collect();
        let open = party.view.jobs.iter().fold(open, |all, job| all.union(&job.slots));
        let foreign = open.difference(&ours);
        (!foreign.is_empty()).then(|| Blocker {
            code: "open_slot",
            node: Some(party.end.address.clone()),
            why: format!("{} shows slots {foreign} as half-way, and not because of Reeve", party.end.address),
            recovery: "Somebody else moves slots, or broke off. Let them finish; where nobody is at it, ask for a repair, which moves on what is half-way.",
        })
    };
    let blockers: Vec<Blocker> = parties(q).filter_map(blocker).collect();
    if blockers.is_empty() { Ok(()) } else { Err(blockers) }
}

/// The slots that are open because of Reeve, or that are to be closed all the same.
fn ours(q: &Question) -> SlotSet {
    if q.terms.moving.closes_foreign {
        return SlotSet::all();
    }
    let marked = q.seen.marks.iter().filter_map(|m| m.what.open_slots()).map(|open| &open.slots);
    marked.fold(SlotSet::empty(), |all, slots| all.union(slots))
}

fn open_slots(q: &Question) -> SlotSet {
    parties(q).flat_map(|p| &p.view.open).map(|o| o.slot).collect()
}

/// A primary that may give or take slots.
struct Party<'a> {
    end: End,
    report: &'a Report,
    view: &'a ClusterView,
}

impl<'a> Party<'a> {
    fn seen(node: &Address, seen: &'a Observation) -> Option<Self> {
        let report = seen.report(node).filter(|r| r.role == Role::Primary)?;
        let view = report.cluster.as_ref()?;
        let end = End { address: node.clone(), id: view.my_id.clone() };
        Some(Self { end, report, view })
    }
}

/// The primaries among the members and those who leave.
fn parties<'a>(q: &Question<'a>) -> impl Iterator<Item = Party<'a>> {
    let leavers = q.terms.leavers.keys();
    let nodes: BTreeSet<&Address> = q.want.layout.members().into_iter().chain(leavers).collect();
    nodes.into_iter().filter_map(|node| Party::seen(node, q.seen))
}

/// Where the primary is that once had this identity, or that took over from it.
fn resolve(q: &Question, id: &ClusterNodeId) -> Option<Address> {
    if let Some(party) = parties(q).find(|p| p.end.id == *id) {
        return Some(party.end.address);
    }
    let marked = q.seen.marks.iter().find_map(|m| {
        let ours = m.what.open_slots().is_some_and(|o| o.from == *id || o.to == *id);
        // Each end has its own.
        (ours && q.seen.view(&m.node).is_none_or(|v| v.my_id == *id)).then_some(&m.node)
    });
    let node = address_of(id, q.seen).or(marked)?;
    let of_node = |(shard, _): &&(Shard, SlotSet)| {
        peopled(q, shard).members.contains(node) || q.terms.lost.get(node) == Some(&shard.id)
    };
    let (shard, slots) = shards(q).iter().find(of_node)?;
    primary(q, shard, slots)
}

fn step(q: &Question, from: &Party, to: &Party, slots: SlotSet) -> MoveSlots {
    let begun = from.view.open.iter().chain(&to.view.open).map(|o| o.slot);
    let begun = begun.collect::<SlotSet>().intersection(&slots);
    let can = [from, to].map(|party| party.report.capabilities().atomic_slots);
    let how = match can {
        [Some(MovedBy::Source), Some(MovedBy::Source)] => MoveMethod::Atomic,
        [Some(MovedBy::Target), Some(MovedBy::Target)] => MoveMethod::Import,
        [Some(MovedBy::Source | MovedBy::Target) | None, _] => MoveMethod::Keys,
    };
    // What was begun key by key ends so.
    let (how, slots) = match how {
        MoveMethod::Atomic | MoveMethod::Import if !begun.is_empty() => (MoveMethod::Keys, begun),
        how => (how, slots),
    };
    let big = q.terms.moving.big.iter().filter(|b| slots.contains(b.slot)).cloned().collect();
    let max_latency_ms = q.terms.moving.max_latency_ms;
    MoveSlots { from: from.end.clone(), to: to.end.clone(), slots, how, max_latency_ms, big }
}

/// The part of a step that is about some slots, if there is one.
fn part_of(step: MoveSlots, slots: &SlotSet) -> Option<MoveSlots> {
    let slots = step.slots.intersection(slots);
    (!slots.is_empty()).then_some(MoveSlots { slots, how: MoveMethod::Keys, ..step })
}
