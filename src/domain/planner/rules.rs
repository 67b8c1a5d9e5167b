//! The rules, stage by stage.
//!
//! 1. *Marks*: what Reeve left and nothing needs any more goes first.
//! 2. *Strangers*: a node that knows members of another cluster stops the plan, whatever else was
//!    accepted: that cluster's data was not.
//! 3. *Resets*: nodes that may be emptied are, before anybody meets them.
//! 4. *Configure*, then *rewrite*: lasting settings, written before temporary ones hide them.
//! 5. *Prepare*: temporary settings; each node its epoch and slots while it is still alone.
//! 6. *Join*: introductions, replicas as soon as each can, and agreement.

use std::collections::{BTreeMap, BTreeSet};

use super::{Goal, Question, ResetTerm};
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{Mark, MarkKind, Sighting};
use crate::domain::slot::SlotSet;
use crate::domain::step::agree::AwaitAgreement;
use crate::domain::step::claim::ClaimSlots;
use crate::domain::step::configure::Configure;
use crate::domain::step::meet::Meet;
use crate::domain::step::replicate::Replicate;
use crate::domain::step::reset::ResetNode;
use crate::domain::step::restore::RestoreSettings;
use crate::domain::step::rewrite::RewriteConfig;
use crate::domain::step::temporary::SetTemporary;
use crate::domain::step::{Blocker, Check, Step};
use crate::domain::topology::{Layout, Shard};
use crate::domain::view::agreed_primary;

type Stage = fn(&Question) -> Result<Vec<Step>, Vec<Blocker>>;

const CONVERGE: &[Stage] =
    &[restore_settings, strangers, resets, configure, rewrite, prepare, join];
const WIND_DOWN: &[Stage] = &[restore_settings, rewrite];

pub(super) fn stages(goal: Goal) -> &'static [Stage] {
    match goal {
        Goal::Converge => CONVERGE,
        Goal::WindDown => WIND_DOWN,
    }
}

pub(super) fn settled_marks(q: &Question) -> Vec<Mark> {
    let needed = temporary_settings_needed(q);
    let restored = |mark: &&Mark| match &mark.what {
        MarkKind::Setting(s) => {
            let now = q.seen.report(&mark.node).and_then(|r| r.settings.get(&s.name));
            !needed && now == Some(&s.original)
        }
        MarkKind::Unwritten => false,
    };
    q.seen.marks.iter().filter(restored).cloned().collect()
}

/// The shards, where the topology is a cluster; the other modes have rules of their own.
fn shards<'a>(q: &Question<'a>) -> &'a [(Shard, SlotSet)] {
    match &q.want.layout {
        Layout::Cluster { shards } => shards.as_slice(),
        Layout::Replication { .. } | Layout::Sentinel { .. } | Layout::Gone => &[],
    }
}

/// Every member, the primaries first: the order of epochs and of introductions.
fn members<'a>(q: &Question<'a>) -> Vec<&'a Address> {
    let pinned = |(s, _): &'a (Shard, SlotSet)| {
        s.members.iter().find(|m| Some(*m) == q.terms.primaries.get(&s.id))
    };
    let primaries: BTreeSet<&Address> = shards(q).iter().filter_map(pinned).collect();
    let rest = shards(q).iter().flat_map(|(s, _)| &s.members).filter(|m| !primaries.contains(m));
    primaries.iter().copied().chain(rest).collect()
}

/// Who is, or is to be, primary of a shard.
fn primary<'a>(q: &Question<'a>, shard: &'a Shard, slots: &SlotSet) -> Option<&'a Address> {
    let settled = match q.terms.primaries.get(&shard.id) {
        Some(pinned) => pinned.clone(),
        None => agreed_primary(shard, slots, q.seen)?,
    };
    shard.members.iter().find(|m| **m == settled)
}

fn agreement(q: &Question) -> AwaitAgreement {
    AwaitAgreement { members: members(q).into_iter().cloned().collect() }
}

/// Impatient settings serve only while a cluster without data forms.
fn temporary_settings_needed(q: &Question) -> bool {
    let empty = |s: &Sighting| !matches!(s, Sighting::Seen(report) if report.keys > 0);
    let without_data = q.seen.nodes.values().all(empty);
    q.goal == Goal::Converge && q.terms.forming && without_data && !formed(q)
}

/// Whether nothing but taking marks away is left to do.
fn formed(q: &Question) -> bool {
    let done = |step: &Step| step.action().check(q.seen) == Check::Done;
    claims(q).iter().all(done) && joins(q).iter().all(done)
}

/// Marks on nodes that do not answer stay for a later repair when a plan winds down.
fn restore_settings(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    if temporary_settings_needed(q) {
        return Ok(vec![]);
    }
    let mut originals: BTreeMap<&Address, BTreeMap<String, String>> = BTreeMap::new();
    for mark in reachable_marks(q) {
        if let MarkKind::Setting(s) = &mark.what {
            let of_node = originals.entry(&mark.node).or_default();
            of_node.insert(s.name.clone(), s.original.clone());
        }
    }
    let step = |(node, settings): (&Address, _)| {
        Step::RestoreSettings(RestoreSettings { node: node.clone(), settings })
    };
    Ok(originals.into_iter().map(step).collect())
}

fn reachable_marks<'a>(q: &Question<'a>) -> impl Iterator<Item = &'a Mark> {
    let (goal, seen) = (q.goal, q.seen);
    seen.marks.iter().filter(move |m| {
        goal == Goal::Converge || matches!(seen.sighting(&m.node), Sighting::Seen(_))
    })
}

fn resets(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let members: BTreeSet<&Address> = q.want.layout.members();
    let step = |(node, term): (&Address, &ResetTerm)| {
        Step::ResetNode(ResetNode { node: node.clone(), term: term.clone() })
    };
    Ok(q.terms.resets.iter().filter(|(n, _)| members.contains(n)).map(step).collect())
}

fn strangers(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let members = q.want.layout.members();
    let now = members.iter().filter_map(|m| q.seen.view(m)).map(|v| &v.my_id);
    // What nodes were before their reset may linger with those that are still to be reset.
    let before = q.terms.resets.values().map(|term| &term.identity);
    let ours: BTreeSet<&ClusterNodeId> = now.chain(before).collect();
    let mut blockers = Vec::new();
    for member in &members {
        let Some(view) = q.seen.view(member) else { continue };
        for (id, peer) in view.peers.iter().filter(|(id, p)| !p.handshake && !ours.contains(id)) {
            // A member that does not answer has an id that is not known now; its address is.
            if peer.address.as_ref().is_some_and(|a| members.contains(a)) {
                continue;
            }
            let address = peer.address.as_ref().map_or(String::new(), |a| format!(" at {a}"));
            blockers.push(Blocker {
                code: "stranger",
                node: Some((*member).clone()),
                why: format!(
                    "{member} knows the cluster node {id}{address}, which is no member of this topology"
                ),
                recovery: "If it is the old identity of a node that was reset, send CLUSTER FORGET with its id to every other node within a minute. If it belongs to another cluster, take it out there first. Then retry the plan.",
            });
        }
    }
    if blockers.is_empty() { Ok(vec![]) } else { Err(blockers) }
}

fn configure(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let settings = q.want.spec.settings();
    let login = q.want.spec.credentials().replication.is_some();
    if settings.is_empty() && !login {
        return Ok(vec![]);
    }
    let temporary: BTreeSet<(&Address, &str)> = q
        .seen
        .marks
        .iter()
        .filter_map(|m| match &m.what {
            MarkKind::Setting(s) => Some((&m.node, s.name.as_str())),
            MarkKind::Unwritten => None,
        })
        .collect();
    let step = |node: &Address| {
        // A setting that is temporarily otherwise is given its lasting value by its mark.
        let lasting = |(name, _): &(&String, &String)| !temporary.contains(&(node, name.as_str()));
        let settings = settings.iter().filter(lasting).map(|(n, v)| (n.clone(), v.clone()));
        Step::Configure(Configure { node: node.clone(), settings: settings.collect(), login })
    };
    Ok(members(q).into_iter().map(step).collect())
}

fn rewrite(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let tampered =
        |node: &Address| q.seen.marks_on(node).any(|m| matches!(m.what, MarkKind::Setting(_)));
    let pending =
        reachable_marks(q).filter(|m| m.what == MarkKind::Unwritten && !tampered(&m.node));
    Ok(pending.map(|m| Step::RewriteConfig(RewriteConfig { node: m.node.clone() })).collect())
}

fn prepare(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let mut steps = Vec::new();
    if temporary_settings_needed(q) {
        let settings: BTreeMap<String, String> = [
            ("cluster-node-timeout".to_owned(), q.policy.forming_node_timeout_ms.to_string()),
            ("repl-diskless-sync-delay".to_owned(), "0".to_owned()),
        ]
        .into();
        let step = |node: &Address| {
            Step::SetTemporary(SetTemporary { node: node.clone(), settings: settings.clone() })
        };
        steps.extend(members(q).into_iter().map(step));
    }
    steps.extend(claims(q));
    Ok(steps)
}

/// Epochs for all while the cluster forms; slots for primaries, so far as nobody owns them.
fn claims(q: &Question) -> Vec<Step> {
    let mut slots_of: BTreeMap<&Address, SlotSet> = BTreeMap::new();
    for (shard, slots) in shards(q) {
        if let Some(primary) = primary(q, shard, slots) {
            slots_of.insert(primary, slots.clone());
        }
    }
    let claim = |(i, node): (usize, &Address)| {
        let slots = slots_of.remove(node).unwrap_or_default();
        let epoch = q.terms.forming.then_some(i as u64 + 1);
        (epoch.is_some() || !slots.is_empty())
            .then(|| Step::ClaimSlots(ClaimSlots { node: node.clone(), epoch, slots }))
    };
    members(q).into_iter().enumerate().filter_map(claim).collect()
}

fn join(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    Ok(joins(q))
}

fn joins(q: &Question) -> Vec<Step> {
    let members = members(q);
    if members.is_empty() {
        return vec![];
    }
    let mut steps = Vec::new();
    for (i, node) in members.iter().enumerate() {
        let others: Vec<Address> = members[i + 1..].iter().map(|a| (*a).clone()).collect();
        if !others.is_empty() {
            steps.push(Step::Meet(Meet { node: (*node).clone(), others }));
        }
    }
    for (shard, slots) in shards(q) {
        let Some(primary) = primary(q, shard, slots) else { continue };
        let replicas = shard.members.iter().filter(|m| *m != primary);
        steps.extend(replicas.map(|node| {
            Step::Replicate(Replicate { node: node.clone(), primary: primary.clone() })
        }));
    }
    steps.push(Step::AwaitAgreement(agreement(q)));
    steps
}
