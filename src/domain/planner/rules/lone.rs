//! The stages of a topology with one lone shard, as far as they are the same whoever watches it.
//!
//! What a node was told and has yet to be told comes first: a hand-over that was left between two
//! primaries, writes that wait for nobody. Then as in a cluster: strangers, resets, settings, and
//! replicas before anybody takes over or leaves.

use std::collections::BTreeMap;

use super::{
    Copying, Goal, Leaver, Question, Seat, Stage, changes_members, configure, peopled, prepare,
    reachable_marks, reset_replicas, resets, restore_settings, rewrite,
};
use crate::domain::lineage::{self, deposition};
use crate::domain::node::Address;
use crate::domain::observation::{Mark, MarkKind, PausedMark, Report, Role};
use crate::domain::step::command::FailoverMethod;
use crate::domain::step::follow::{Follow, GivesUp};
use crate::domain::step::handover::HandOver;
use crate::domain::step::hold::HoldWrites;
use crate::domain::step::leave::Leave;
use crate::domain::step::release::ReleaseWrites;
use crate::domain::step::sync::AwaitSync;
use crate::domain::step::{Action, Blocker, Check, Step};
use crate::domain::succession::{best, expected};
use crate::domain::topology::{Layout, Shard};
use crate::domain::view::{Primary, agreed_primary, follows};

const CONVERGE: &[Stage] = &[
    headless,
    release,
    restore_settings,
    strangers,
    reset_replicas_in_turn,
    resets_in_turn,
    configure,
    prepare,
    hold,
    join,
    seats,
    rewrite_members,
    leave,
    rewrite,
    settle,
];
const SEATS: &[Stage] =
    &[headless, release, restore_settings, seats, hold, join_answering, rewrite];
const WIND_DOWN: &[Stage] = &[headless, release, restore_settings, rewrite];

pub(super) fn stages(q: &Question) -> &'static [Stage] {
    match q.goal {
        Goal::Converge if q.terms.seats_only => SEATS,
        Goal::Converge => CONVERGE,
        Goal::WindDown => WIND_DOWN,
    }
}

/// Whether nothing but taking marks away is left to do.
pub(super) fn formed(q: &Question) -> bool {
    let done = |step: &Step| step.action().check(q.seen) == Check::Done;
    let known = shard(q).is_none_or(|shard| primary(q, shard).is_some());
    known && follows_all(q).iter().all(done) && settles(q).iter().all(done)
}

/// Marks of a lone shard whose traces are gone, by what is seen.
pub(super) fn is_settled(q: &Question, mark: &Mark) -> bool {
    let report = q.seen.report(&mark.node);
    match &mark.what {
        MarkKind::Paused(pause) => {
            let mut reports = q.seen.nodes.keys().filter_map(|a| q.seen.report(a));
            reports.any(|r| r.observed_at >= pause.until)
        }
        MarkKind::Deposed(deposed) => {
            let role = |node: &Address| q.seen.report(node).map(|r| r.role);
            let followed = report.and_then(|r| r.replication.primary.as_ref());
            // It follows; or it was never taken over from and goes on.
            let follows = followed.is_some_and(|p| role(p) == Some(Role::Primary));
            let given_up = report.is_some_and(|r| r.role == Role::Primary)
                && role(&deposed.successor) == Some(Role::Replica)
                && !q.terms.seats.values().any(|seat| seat.from == mark.node);
            let left =
                !q.terms.leavers.contains_key(&mark.node) || report.is_some_and(Report::is_blank);
            let gone = !q.want.layout.members().contains(&mark.node) && left;
            // A restart would bring it back as what its file says.
            let written = !q.seen.marks_on(&mark.node).any(|m| m.what == MarkKind::Unwritten);
            (follows && written) || given_up || gone
        }
        MarkKind::Emptied(emptied) => {
            report.is_some_and(|r| r.run_id != emptied.run_id || r.role != Role::Primary)
        }
        MarkKind::Identity(_) => {
            let wanted = q.want.layout.members().contains(&mark.node)
                && !q.terms.resets.contains_key(&mark.node)
                && !q.terms.leavers.contains_key(&mark.node);
            report.is_some_and(|r| r.is_blank()) || (q.goal == Goal::Converge && wanted)
        }
        MarkKind::Setting(_) | MarkKind::Unwritten | MarkKind::Hold(_) | MarkKind::OpenSlots(_) => {
            false
        }
    }
}

pub(super) fn shard<'a>(q: &Question<'a>) -> Option<&'a Shard> {
    q.want.layout.lone()
}

pub(super) fn primary(q: &Question, shard: &Shard) -> Option<Address> {
    match q.terms.primaries.get(&shard.id) {
        Some(pinned) => Some(pinned.clone()),
        None => agreed_primary(&people(q, shard), &Default::default(), q.seen),
    }
}

/// The members, and those that are to leave but for those on their way out: such a one is a primary
/// with its copy of the data for a moment.
fn people(q: &Question, shard: &Shard) -> Shard {
    let mut people = peopled(q, shard);
    let leaving = |node: &Address| {
        let leaver = q.terms.leavers.get(node);
        leaver
            .is_some_and(|l| q.seen.marks_on(node).any(|m| m.what.identity() == Some(&l.identity)))
    };
    people.members.retain(|node| !leaving(node));
    people
}

/// A hand-over that was left when the old primary had let go and the new one had not taken over:
/// nobody takes writes.
fn headless(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let Some(shard) = shard(q) else { return Ok(vec![]) };
    let step = |mark: &Mark| {
        let (from, deposed) = (&mark.node, mark.what.deposed()?);
        let to = &deposed.successor;
        lineage::is_headless(from, q.seen)
            .then(|| Step::HandOver(hand_over(q, shard, from, to, deposed.forced)))
    };
    Ok(q.seen.marks.iter().filter_map(step).collect())
}

fn hand_over(q: &Question, shard: &Shard, from: &Address, to: &Address, forced: bool) -> HandOver {
    let method = if forced { FailoverMethod::Force } else { FailoverMethod::Graceful };
    let expected_ms = expected(method, from, to, q.seen);
    let (shard, index, others) = (shard.id, shard.index, others(q, shard, from, to));
    let (from, to) = (from.clone(), to.clone());
    HandOver { shard, index, from, to, method, others, expected_ms }
}

/// Who else follows the old primary, and is to follow the new one.
fn others(q: &Question, shard: &Shard, from: &Address, to: &Address) -> Vec<Address> {
    let people = people(q, shard);
    let other = |node: &&Address| *node != from && *node != to;
    let after =
        |node: &&Address| q.seen.report(node).is_some_and(|r| follows(r, Some(from), q.seen));
    people.members.iter().filter(other).filter(after).cloned().collect()
}

/// Writes that wait for nothing any more. One that is held until it follows its successor is left.
pub(super) fn release(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let mut pauses: BTreeMap<&Address, Vec<PausedMark>> = BTreeMap::new();
    for mark in reachable_marks(q) {
        if let MarkKind::Paused(pause) = &mark.what
            && q.seen.report(&mark.node).is_some()
            && !is_held(q, &mark.node)
        {
            pauses.entry(&mark.node).or_default().push(pause.clone());
        }
    }
    let step = |(node, pauses): (&Address, _)| {
        Step::ReleaseWrites(ReleaseWrites { node: node.clone(), pauses })
    };
    Ok(pauses.into_iter().map(step).collect())
}

/// Whether a node takes writes that another one took over from.
fn is_held(q: &Question, node: &Address) -> bool {
    let leads = q.seen.report(node).is_some_and(|r| r.role == Role::Primary);
    leads && deposition(node, q.seen).is_some()
}

fn reset_replicas_in_turn(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    Ok(not_in_place(q, reset_replicas(q)?))
}

pub(super) fn resets_in_turn(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    Ok(not_in_place(q, resets(q)?))
}

/// Without the nodes that were emptied and have their part: here they keep their identity.
fn not_in_place(q: &Question, mut steps: Vec<Step>) -> Vec<Step> {
    let Some(primary) = shard(q).and_then(|shard| primary(q, shard)) else { return steps };
    let members = q.want.layout.members();
    let in_place = |node: &Address| {
        let (Some(report), Some(term)) = (q.seen.report(node), q.terms.resets.get(node)) else {
            return false;
        };
        let attached = &report.replication.replicas;
        let leads = *node == primary
            && report.role == Role::Primary
            && !attached.is_empty()
            && attached.iter().all(|a| members.contains(&a.address));
        let changed = report.keys != term.keys || report.keys == 0;
        changed && (leads || follows(report, Some(&primary), q.seen))
    };
    steps.retain(|step| !step.action().nodes().iter().all(in_place));
    steps
}

/// What keeps a plan from knowing whose data counts.
pub(super) fn strangers(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let Some(shard) = shard(q) else { return dependants(q) };
    let people = people(q, shard);
    let mut blockers = Vec::new();
    if let Primary::Contested(several) = lineage::primary_of(&people, q.seen)
        && !q.terms.primaries.contains_key(&shard.id)
        && !several.iter().any(|node| q.terms.seats.values().any(|seat| seat.from == *node))
    {
        let names: Vec<String> = several.iter().map(ToString::to_string).collect();
        blockers.push(Blocker {
            code: "two_primaries",
            node: several.first().cloned(),
            why: format!("{} all take writes for shard {}", names.join(" and "), shard.index),
            recovery: "Decide whose data counts, and ask for a failover with method force to that node; what the others took meanwhile is lost.",
        });
    }
    for node in &people.members {
        let Some(report) = q.seen.report(node).filter(|r| r.role == Role::Replica) else {
            continue;
        };
        let Some(followed) = &report.replication.primary else { continue };
        let known = people.members.contains(followed)
            || q.terms.apart.contains(followed)
            || q.terms.resets.contains_key(node)
            || q.seen.marks_on(followed).any(|m| m.what.deposed().is_some());
        if !known && primary(q, shard).is_none() {
            blockers.push(Blocker {
                code: "stranger",
                node: Some(node.clone()),
                why: format!("{node} is a replica of {followed}, which is no node of this topology"),
                recovery: "If the node is to be ours, detach it (REPLICAOF NO ONE) and see what it holds; if its primary is, add that to the spec. Then retry the plan.",
            });
        }
    }
    if blockers.is_empty() { Ok(vec![]) } else { Err(blockers) }
}

/// Replicas that nobody named would be emptied with their primary.
fn dependants(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let mut blockers = Vec::new();
    for node in q.terms.resets.keys() {
        let Some(report) = q.seen.report(node) else { continue };
        let ours = |a: &&Address| q.seen.report(a).is_some_and(|r| follows(r, Some(node), q.seen));
        // One that missed a look may be among them; it is emptied before its primary is, so waited for.
        let unseen = |a: &&Address| *a != node && q.seen.report(a).is_none();
        let unseen = q.terms.resets.keys().filter(unseen).count();
        let ours = q.seen.nodes.keys().filter(ours).count() + unseen;
        let attached = report.replication.replicas.len();
        if report.keys > 0 && attached > ours {
            blockers.push(Blocker {
                code: "stranger",
                node: Some(node.clone()),
                why: format!("{attached} replicas are connected to {node}, and only {ours} of them are of this topology; the others would be emptied with it"),
                recovery: "Detach those (REPLICAOF NO ONE), or add them to the topology first. Then retry the plan.",
            });
        }
    }
    if blockers.is_empty() { Ok(vec![]) } else { Err(blockers) }
}

/// Writes to a node that another one took over from wait until it follows.
fn hold(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let Some(shard) = shard(q) else { return Ok(vec![]) };
    let held = shard.members.iter().filter(|node| is_held(q, node));
    Ok(held.map(|node| Step::HoldWrites(HoldWrites { node: node.clone() })).collect())
}

fn join(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let mut steps = follows_all(q);
    if !changes_members(q) {
        steps.extend(settles(q));
    } else if !q.terms.forming {
        // Nobody leaves or takes over before the replicas have the data.
        steps.extend(settles(q));
    }
    Ok(steps)
}

/// After a change of primary nobody waits for those that do not answer.
fn join_answering(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let mut steps = join(q)?;
    steps.retain(|step| step.action().nodes().iter().all(|n| q.seen.report(n).is_some()));
    Ok(steps)
}

/// Every member but the primary follows it. In use, one full copy at a time for each primary and each
/// machine.
pub(super) fn follows_all(q: &Question) -> Vec<Step> {
    let Some(shard) = shard(q) else { return vec![] };
    let Some(primary) = primary(q, shard) else { return vec![] };
    let mut copying = Copying::seen(q);
    let mut steps = Vec::new();
    for node in shard.members.iter().filter(|m| **m != primary) {
        let deposed = deposition(node, q.seen).is_some();
        let gives_up = GivesUp::of(node, &primary, q.seen).filter(|_| !deposed);
        let step = Follow { node: node.clone(), primary: primary.clone(), gives_up };
        let undone = step.check(q.seen) != Check::Done;
        // Whoever shares the history goes on where it is.
        let copies = || !shares_history(q, node, &primary);
        if q.terms.forming || !undone || !copies() || copying.takes(q, node, &primary) {
            steps.push(Step::Follow(step));
        }
    }
    steps
}

fn shares_history(q: &Question, node: &Address, primary: &Address) -> bool {
    let (Some(own), Some(theirs)) = (q.seen.report(node), q.seen.report(primary)) else {
        return false;
    };
    own.role == Role::Replica && theirs.shares(&own.replication.replid)
}

fn settle(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    Ok(settles(q))
}

pub(super) fn settles(q: &Question) -> Vec<Step> {
    let Some(shard) = shard(q) else { return vec![] };
    // Where nobody leads that answers, whoever did is waited for.
    let primary = primary(q, shard).or_else(|| lineage::incumbent(&people(q, shard), q.seen));
    let Some(primary) = primary.or_else(|| shard.members.first().cloned()) else { return vec![] };
    let replicas = shard.members.iter().filter(|m| **m != primary);
    let step = |node: &Address| AwaitSync { node: node.clone(), primary: primary.clone() };
    replicas.map(|node| Step::AwaitSync(step(node))).collect()
}

/// The change of primary that is still to be made.
fn seats(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let Some(shard) = shard(q) else { return Ok(vec![]) };
    let leads = leads(q, shard);
    let seat = match q.terms.seats.get(&shard.id) {
        // Where somebody else took over meanwhile, that one is adopted. Who let go may have left since.
        Some(seat) if leads.as_ref() == Some(&seat.to) => None,
        Some(seat) if leads.as_ref().is_none_or(|p| *p == seat.from) => Some(seat.clone()),
        Some(_) | None => leads.and_then(|from| relief(q, shard, &from)),
    };
    let step = |seat: Seat| {
        let forced = seat.method != FailoverMethod::Graceful;
        let step = hand_over(q, shard, &seat.from, &seat.to, forced);
        Step::HandOver(HandOver { expected_ms: seat.expected_ms, ..step })
    };
    Ok(seat.map(step).into_iter().collect())
}

/// Who is primary now, one that is to leave included.
pub(super) fn leads(q: &Question, shard: &Shard) -> Option<Address> {
    agreed_primary(&people(q, shard), &Default::default(), q.seen)
}

/// Who takes over from one that is to leave and became primary on the way.
pub(super) fn relief(q: &Question, shard: &Shard, from: &Address) -> Option<Seat> {
    let leaves = q.terms.leavers.contains_key(from) && !shard.members.contains(from);
    let from_id = q.seen.report(from).filter(|_| leaves)?.identity();
    let (method, drained) = (FailoverMethod::Graceful, q.want.spec.drained());
    let fit = best(&shard.members, drained, from, &from_id, method, q.seen).ok();
    let to = fit.or_else(|| shard.members.first().cloned())?;
    let expected_ms = expected(method, from, &to, q.seen);
    let (from, slots) = (from.clone(), Default::default());
    Some(Seat { from, from_id, slots, to, method, expected_ms })
}

/// Config files, when everybody has the part that it keeps.
pub(super) fn rewrite_members(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let mut steps = rewrite(q)?;
    steps.retain(|step| step.action().nodes().iter().all(|n| !q.terms.leavers.contains_key(n)));
    Ok(steps)
}

/// Those that are not wanted any more.
pub(super) fn leave(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let step = |(node, leaver): (&Address, &Leaver)| {
        let (node, identity) = (node.clone(), leaver.identity.clone());
        Step::Leave(Leave { node, identity, bares: leaver.bares })
    };
    let gone = q.want.layout == Layout::Gone;
    let leavers = q.terms.leavers.iter().filter(|_| !gone);
    Ok(leavers.map(step).collect())
}
