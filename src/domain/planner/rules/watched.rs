//! The stages of a lone shard that Sentinels watch, where they differ from those of one that nobody
//! watches ([`lone`](super::lone)).
//!
//! Sentinels are told of the deployment when its replicas follow, and have to know all of it before
//! anything else is done. Those that leave stop watching first, and only then the others forget them:
//! one that still watches introduces itself again. Before a topology is dissolved all of them stop, for
//! they would fail over while it is taken apart.
//!
//! Who is primary is theirs to say: what changes it goes through one of them. An old primary that came
//! back is made a replica by them, and is only waited for.

use std::collections::{BTreeMap, BTreeSet};

use super::lone::{
    self, follows_all, leads, leave, primary, release, relief, resets_in_turn, rewrite_members,
    settles, shard,
};
use super::{Goal, Question, Seat, Stage, configure, prepare, restore_settings, rewrite};
use crate::domain::lineage::deposition;
use crate::domain::node::Address;
use crate::domain::observation::Role;
use crate::domain::sentinel::Watchers;
use crate::domain::spec::{SentinelSpec, Spec};
use crate::domain::step::await_choice::AwaitChoice;
use crate::domain::step::await_watch::AwaitWatch;
use crate::domain::step::command::FailoverMethod;
use crate::domain::step::forget_ghosts::ForgetGhosts;
use crate::domain::step::switch_over::{SwitchOver, pause_ms};
use crate::domain::step::unwatch::Unwatch;
use crate::domain::step::watch::Watch;
use crate::domain::step::{Blocker, Check, Step};
use crate::domain::topology::{Layout, Shard};
use crate::domain::view::follows;

/// By which Sentinels choose: the lowest is promoted first.
const PRIORITY: &str = "replica-priority";
/// The priority of the one that is to take over, and the least that others may have meanwhile.
const FIRST: &str = "1";
const LATER: &str = "100";

const CONVERGE: &[Stage] = &[
    unwatch_all,
    resume,
    release,
    restore_settings,
    strangers,
    resets_in_turn,
    configure,
    rewrite_members,
    prepare,
    join,
    watch,
    seats,
    leave,
    rewrite,
    unwatch,
    forget_ghosts,
    settle,
];
const SEATS: &[Stage] =
    &[resume, release, restore_settings, prepare, seats, join_answering, settle_answering, rewrite];
const WIND_DOWN: &[Stage] = &[resume, release, restore_settings, rewrite];

pub(super) fn stages(q: &Question) -> &'static [Stage] {
    match q.goal {
        Goal::Converge if q.terms.seats_only => SEATS,
        Goal::Converge => CONVERGE,
        Goal::WindDown => WIND_DOWN,
    }
}

/// The settings that serve while a primary changes: the one that is to take over is the first choice.
pub(super) fn temporary(q: &Question, node: &Address) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let Some(seat) = pending(q) else { return settings };
    if q.goal == Goal::WindDown {
        return settings;
    }
    let now = |node: &Address, name: &str| {
        q.seen.report(node).and_then(|r| r.settings.get(name)).map(String::as_str)
    };
    if *node == seat.to {
        settings.insert(PRIORITY.to_owned(), FIRST.to_owned());
    } else if *node != seat.from && matches!(now(node, PRIORITY), Some(FIRST)) {
        settings.insert(PRIORITY.to_owned(), LATER.to_owned());
    }
    settings
}

fn spec<'a>(q: &Question<'a>) -> Option<&'a SentinelSpec> {
    match &q.want.spec {
        Spec::Sentinel(spec) => Some(spec),
        Spec::Cluster(_) | Spec::Replication(_) => None,
    }
}

fn watchers(q: &Question) -> Option<Watchers> {
    let (spec, shard) = (spec(q)?, shard(q)?);
    let apart = q.terms.apart.iter().chain(q.terms.leavers.keys()).cloned().collect();
    Some(Watchers {
        name: spec.master_name.clone(),
        sentinels: q.want.layout.sentinels().to_vec(),
        members: shard.members.clone(),
        apart,
    })
}

/// The same with those that answer, for whoever has no time.
fn answering(q: &Question) -> Option<Watchers> {
    let mut watchers = watchers(q)?;
    let answers = |node: &Address| q.seen.report(node).is_some();
    let gone = watchers.sentinels.iter().chain(&watchers.members).filter(|n| !answers(n));
    watchers.apart.extend(gone.cloned().collect::<Vec<_>>());
    watchers.sentinels.retain(answers);
    watchers.members.retain(answers);
    Some(watchers)
}

/// The change of primary that is still to be made.
fn pending(q: &Question) -> Option<Seat> {
    let shard = shard(q)?;
    let now = leads(q, shard);
    let seat = match q.terms.seats.get(&shard.id) {
        // Where somebody else took over meanwhile, that one is adopted.
        Some(seat) if now.as_ref().is_none_or(|p| *p == seat.from || *p == seat.to) => {
            Some(seat.clone())
        }
        Some(_) | None => now.and_then(|from| relief(q, shard, &from)),
    };
    seat.filter(|seat| q.seen.report(&seat.to).is_none_or(|r| r.role != Role::Primary))
}

fn seats(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let (Some(shard), Some(watchers), Some(seat)) = (shard(q), watchers(q), pending(q)) else {
        return Ok(vec![]);
    };
    let (from, to) = (seat.from, seat.to);
    let leader = match seat.method {
        FailoverMethod::Graceful => watchers.leader(&to, q.seen),
        // There is no time to lose.
        FailoverMethod::Force | FailoverMethod::Takeover => watchers.leader_now(&to, q.seen),
    };
    let leader = leader.or_else(|| watchers.leader(&to, q.seen)).or(watchers.sentinels.first());
    let Some(sentinel) = leader.cloned() else { return Ok(vec![]) };
    let choice =
        AwaitChoice { sentinel: sentinel.clone(), to: to.clone(), watchers: watchers.clone() };
    let steps = [
        Step::AwaitChoice(choice),
        switch_over(q, shard, watchers, sentinel, (from, to), seat.method),
    ];
    let undone = |step: &Step| step.action().check(q.seen) != Check::Done;
    Ok(steps.into_iter().find(undone).into_iter().collect())
}

fn switch_over(
    q: &Question,
    shard: &Shard,
    watchers: Watchers,
    sentinel: Address,
    (from, to): (Address, Address),
    method: FailoverMethod,
) -> Step {
    let pause_ms = pause_ms(watchers.down_after_ms(q.seen));
    Step::SwitchOver(SwitchOver { shard: shard.id, sentinel, watchers, from, to, method, pause_ms })
}

/// A change of primary that was left when the old one had let go: nobody takes writes.
fn resume(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let (Some(shard), Some(watchers)) = (shard(q), answering(q)) else { return Ok(vec![]) };
    let step = |from: &Address| {
        let mark = q.seen.marks_on(from).find_map(|m| m.what.deposed())?;
        let to = &mark.successor;
        let let_go = q.seen.report(from).is_some_and(|r| follows(r, Some(to), q.seen));
        let waits = q.seen.report(to).is_some_and(|r| r.role == Role::Replica);
        let leader = watchers.leader_now(to, q.seen).or(watchers.sentinels.first())?.clone();
        let (pair, graceful) = ((from.clone(), to.clone()), FailoverMethod::Graceful);
        (let_go && waits).then(|| switch_over(q, shard, watchers.clone(), leader, pair, graceful))
    };
    let marked: BTreeSet<&Address> = q.seen.marks.iter().map(|m| &m.node).collect();
    Ok(marked.into_iter().filter_map(step).collect())
}

/// Of a topology that is to be gone nobody may go on failing over.
fn unwatch_all(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    if q.want.layout == Layout::Gone { unwatch(q) } else { Ok(vec![]) }
}

/// One that does not answer cannot be told; where it still watches it is a stranger when it is back.
fn unwatch(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let Some(spec) = spec(q) else { return Ok(vec![]) };
    let name = &spec.master_name;
    let answers = q.terms.unwatch.iter().filter(|s| q.seen.report(s).is_some());
    let step = |sentinel: &Address| {
        Step::Unwatch(Unwatch { sentinel: sentinel.clone(), name: name.clone() })
    };
    Ok(answers.map(step).collect())
}

/// Nodes of others, and Sentinels that take part unasked.
fn strangers(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let mut blockers = lone::strangers(q).err().unwrap_or_default();
    let Some(watchers) = watchers(q) else {
        return if blockers.is_empty() { Ok(vec![]) } else { Err(blockers) };
    };
    let mut told = BTreeSet::new();
    for sentinel in &watchers.sentinels {
        for (id, address) in watchers.strangers(sentinel, q.seen) {
            if q.terms.unwatch.contains(&address) || !told.insert(id) {
                continue;
            }
            blockers.push(Blocker {
                code: "stranger_sentinel",
                node: Some(sentinel.clone()),
                why: format!(
                    "{sentinel} knows the Sentinel {address}, which is none of this topology and takes part in it"
                ),
                recovery: "If it is to go, send it SENTINEL REMOVE with the master_name, and the others forget it by a repair ten seconds later; if it is to stay, add it (accept_drift, or PUT with it among the sentinels). Then retry the plan.",
            });
        }
    }
    blockers.extend(twins(q, &watchers));
    if blockers.is_empty() { Ok(vec![]) } else { Err(blockers) }
}

/// Sentinels with one id take each other's place with all others.
fn twins(q: &Question, watchers: &Watchers) -> Option<Blocker> {
    let mut ids: BTreeMap<&String, &Address> = BTreeMap::new();
    for sentinel in &watchers.sentinels {
        let Some(view) = q.seen.report(sentinel).and_then(|r| r.sentinel.as_ref()) else {
            continue;
        };
        if let Some(twin) = ids.insert(&view.my_id, sentinel) {
            return Some(Blocker {
                code: "sentinel_id_twice",
                node: Some(sentinel.clone()),
                why: format!("{sentinel} and {twin} have the same id"),
                recovery: "Stop one of them, take the line `sentinel myid` out of its sentinel.conf, and start it again. Then retry the plan.",
            });
        }
    }
    None
}

/// Replicas follow; but old primaries that Sentinels know are theirs to convert.
fn join(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let mut steps = follows_all(q);
    steps.retain(|step| !step.action().nodes().iter().any(|node| is_converted(q, node)));
    steps.extend(settles(q));
    Ok(steps)
}

/// After a change of primary nobody waits for those that do not answer.
fn join_answering(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let mut steps = join(q)?;
    steps.retain(|step| step.action().nodes().iter().all(|n| q.seen.report(n).is_some()));
    Ok(steps)
}

fn is_converted(q: &Question, node: &Address) -> bool {
    let Some(watchers) = watchers(q) else { return false };
    let leads = q.seen.report(node).is_some_and(|r| r.role == Role::Primary);
    let known = |s: &Address| {
        let watch = q.seen.watch(s, &watchers.name);
        watch.is_some_and(|w| w.replicas.iter().any(|r| r.address_in(q.seen) == node))
    };
    leads && deposition(node, q.seen).is_none() && watchers.sentinels.iter().any(known)
}

fn watch(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let (Some(spec), Some(watchers), Some(shard)) = (spec(q), watchers(q), shard(q)) else {
        return Ok(vec![]);
    };
    let Some(primary) = primary(q, shard) else { return Ok(vec![]) };
    let step = |sentinel: &Address| {
        Step::Watch(Watch {
            sentinel: sentinel.clone(),
            name: watchers.name.clone(),
            primary: primary.clone(),
            members: shard.members.iter().chain(q.terms.leavers.keys()).cloned().collect(),
            quorum: spec.effective_quorum(),
            options: spec.options(),
            login: spec.credentials.admin.is_some(),
        })
    };
    let mut steps: Vec<Step> = watchers.sentinels.iter().map(step).collect();
    // Before anybody leaves or takes over, all know of the deployment. Whoever has left is to be forgotten
    // before anybody makes it a replica again.
    let stays = |step: &Step| step.action().check(q.seen) != Check::Done;
    let changes = pending(q).is_some() || leave(q)?.iter().any(stays);
    if changes || !q.terms.unwatch.is_empty() {
        let known = Watchers {
            apart: watchers.apart.iter().chain(&q.terms.unwatch).cloned().collect(),
            ..watchers
        };
        steps.push(Step::AwaitWatch(AwaitWatch { watchers: known, early: true }));
    }
    Ok(steps)
}

/// One Sentinel after the other.
fn forget_ghosts(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let Some(watchers) = watchers(q) else { return Ok(vec![]) };
    // Those that left are gone by now.
    let here: BTreeSet<&Address> = q.terms.apart.iter().collect();
    let apart = watchers.apart.iter().filter(|a| here.contains(a)).cloned().collect();
    let watchers = Watchers { apart, ..watchers };
    let step = |sentinel: &Address| {
        let ghosts = watchers.ghosts(sentinel, q.seen);
        let (sentinel, watchers) = (sentinel.clone(), watchers.clone());
        (!ghosts.is_empty()).then_some(Step::ForgetGhosts(ForgetGhosts {
            sentinel,
            watchers,
            ghosts,
        }))
    };
    Ok(watchers.sentinels.iter().find_map(step).into_iter().collect())
}

fn settle(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let mut steps = settles(q);
    steps.extend(settled(q));
    Ok(steps)
}

fn settled(q: &Question) -> Vec<Step> {
    let Some(watchers) = watchers(q) else { return vec![] };
    let watchers = Watchers { apart: q.terms.apart.clone(), ..watchers };
    vec![Step::AwaitWatch(AwaitWatch { watchers, early: false })]
}

fn settle_answering(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let await_watch = |watchers| Step::AwaitWatch(AwaitWatch { watchers, early: false });
    Ok(answering(q).map(await_watch).into_iter().collect())
}
