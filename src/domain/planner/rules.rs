//! The rules, stage by stage.
//!
//! 1. *Marks*: what Reeve left and nothing needs any more goes first.
//! 2. *Strangers*: a node that knows members of another cluster stops the plan, whatever else was
//!    accepted: that cluster's data was not.
//! 3. *Resets*: nodes that may be emptied are, before anybody meets them. Replicas go first: one
//!    that is promoted when its primary is gone would hold keys once more.
//! 4. *Forget*: all nodes at once forget the identities that resets took away; while one still
//!    knows them it would spread them, and keep their slots for them.
//! 5. *Configure*, then *rewrite*: lasting settings, written before temporary ones hide them.
//! 6. *Prepare*: temporary settings; each node its epoch and slots while it is still alone.
//! 7. *Join*: introductions, and replicas as soon as each can; of a cluster in use one full copy at a
//!    time for each primary and each machine.
//! 8. *Seats*: where a primary is to change, the next one takes over when it has the data; one shard
//!    after the other. Before it, epochs: a primary that others do not believe is given a greater one.
//! 9. *Move*: slots that others serve move to where they are wanted, when those who get them have
//!    their replicas, and the functions of the others. Slots that are half-way go before everything
//!    else that is lasting. What keys servers still drop afterwards is waited for.
//! 10. *Leave*: nodes that are no longer wanted go, and at once all others forget them.
//! 11. *Settle*: agreement.
//!
//! A topology with one lone shard has stages of its own ([`lone`]), of which some are these.
//!
//! Of a topology that is to be gone, only the first three and the config files are left to do. A
//! plan that changes primaries and nothing else has stages of its own: in an emergency it must not
//! wait for anything that it does not need.

use std::collections::{BTreeMap, BTreeSet};

use super::{Goal, Leaver, Question, ResetTerm, Seat};
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{
    ClusterView, Mark, MarkKind, OpenSlotsMark, Peer, Role, Sighting,
};
use crate::domain::slot::SlotSet;
use crate::domain::spec::Mode;
use crate::domain::step::agree::AwaitAgreement;
use crate::domain::step::bump::BumpEpoch;
use crate::domain::step::claim::ClaimSlots;
use crate::domain::step::command::FailoverMethod;
use crate::domain::step::configure::Configure;
use crate::domain::step::failover::FailOver;
use crate::domain::step::forget::Forget;
use crate::domain::step::leave::Leave;
use crate::domain::step::meet::Meet;
use crate::domain::step::replicate::Replicate;
use crate::domain::step::reset::ResetNode;
use crate::domain::step::restore::RestoreSettings;
use crate::domain::step::rewrite::RewriteConfig;
use crate::domain::step::slots::MoveSlots;
use crate::domain::step::sync::AwaitSync;
use crate::domain::step::temporary::SetTemporary;
use crate::domain::step::{Action, Blocker, Check, Step};
use crate::domain::succession::{best, expected};
use crate::domain::topology::{Layout, Shard};
use crate::domain::view::agreed_primary;

pub(super) mod functions;
mod lone;
mod moves;
mod watched;

use self::moves::{close, draining, move_slots, moves, trim};

/// Whether replicas, and primaries without slots, may make themselves useful elsewhere.
const REPLICA_MIGRATION: &str = "cluster-allow-replica-migration";

type Stage = fn(&Question) -> Result<Vec<Step>, Vec<Blocker>>;

const CONVERGE: &[Stage] = &[
    restore_settings,
    strangers,
    close,
    reset_replicas,
    resets,
    forget,
    configure,
    rewrite,
    functions::before_claims,
    prepare,
    join,
    epochs,
    seats,
    functions::before_moves,
    move_slots,
    trim,
    leave,
    forget,
    settle,
];
const SEATS: &[Stage] = &[restore_settings, epochs, seats, follow, rewrite];
const WIND_DOWN: &[Stage] = &[close, restore_settings, rewrite];

pub(super) fn stages(q: &Question) -> &'static [Stage] {
    match q.want.spec.mode() {
        Mode::Cluster => cluster_stages(q),
        Mode::Replication => lone::stages(q),
        Mode::Sentinel => watched::stages(q),
    }
}

fn cluster_stages(q: &Question) -> &'static [Stage] {
    match q.goal {
        Goal::Converge if q.terms.seats_only => SEATS,
        Goal::Converge => CONVERGE,
        Goal::WindDown => WIND_DOWN,
    }
}

pub(super) fn settled_marks(q: &Question) -> Vec<Mark> {
    let needed = TemporarySettings::of(q);
    let reports = q.seen.nodes.keys().filter_map(|a| q.seen.report(a));
    let restored = |mark: &&Mark| match &mark.what {
        MarkKind::Setting(s) => {
            let now = q.seen.report(&mark.node).and_then(|r| r.settings.get(&s.name));
            !needed.for_node(&mark.node).contains_key(&s.name) && now == Some(&s.original)
        }
        MarkKind::Unwritten => false,
        MarkKind::Paused(_) | MarkKind::Deposed(_) | MarkKind::Emptied(_) => {
            lone::is_settled(q, mark)
        }
        MarkKind::Identity(_) if is_lone(q) => lone::is_settled(q, mark),
        MarkKind::Identity(was) => identity_settled(q, &mark.node, &was.id),
        MarkKind::OpenSlots(open) => open_slots_settled(q, &mark.node, open),
        MarkKind::Hold(hold) => reports.clone().any(|r| r.observed_at >= hold.until),
    };
    q.seen.marks.iter().filter(restored).cloned().collect()
}

fn is_lone(q: &Question) -> bool {
    match q.want.spec.mode() {
        Mode::Cluster => false,
        Mode::Replication | Mode::Sentinel => true,
    }
}

/// Whether a node shows none of these slots as half-way, and no step is to move them.
fn open_slots_settled(q: &Question, node: &Address, mark: &OpenSlotsMark) -> bool {
    let open = |v: &ClusterView| {
        v.open.iter().any(|o| mark.slots.contains(o.slot))
            || v.jobs.iter().any(|job| !job.slots.intersection(&mark.slots).is_empty())
    };
    let needed = |step: &MoveSlots| !step.slots.intersection(&mark.slots).is_empty();
    q.seen.view(node).is_some_and(|v| !open(v)) && !moves(q).iter().any(needed)
}

/// Whether nobody can know an identity any more that a reset was to take away, or the reset was
/// given up.
fn identity_settled(q: &Question, node: &Address, id: &ClusterNodeId) -> bool {
    if q.seen.view(node).is_some_and(|v| v.my_id == *id) {
        let wanted = q.terms.resets.get(node).is_some_and(|term| term.identity == *id)
            || q.terms.leavers.get(node).is_some_and(|leaver| leaver.identity == *id)
            || !q.want.layout.members().contains(node);
        // A command that is not yet known to have failed may still run while a plan winds down.
        return q.goal == Goal::Converge && !wanted;
    }
    let knows = |a: &Address| q.seen.view(a).is_some_and(|v| v.peers.contains_key(id));
    let marked = q.seen.marks.iter().map(|m| &m.node).filter(|n| q.seen.nodes.contains_key(*n));
    // One that is left apart may still know it, and tell the others when it comes back.
    let asked = parts(q).into_iter().chain(&q.terms.apart).chain(marked).chain([node]);
    asked.into_iter().all(|a| q.seen.report(a).is_some()) && !q.seen.nodes.keys().any(knows)
}

fn leavers<'a>(q: &Question<'a>) -> Vec<&'a Address> {
    q.terms.leavers.keys().collect()
}

/// The nodes that the plan is about: the members, or those to be emptied where none are wanted.
fn parts<'a>(q: &Question<'a>) -> BTreeSet<&'a Address> {
    match &q.want.layout {
        Layout::Cluster { .. } | Layout::Replication { .. } | Layout::Sentinel { .. } => {
            q.want.layout.members()
        }
        Layout::Gone => q.terms.resets.keys().collect(),
    }
}

/// Whether a node may be a member of old of a topology that is to be gone.
fn former(q: &Question, node: &Address) -> bool {
    q.want.layout == Layout::Gone && q.want.spec.nodes().iter().any(|n| n.address == *node)
}

/// Nodes without a part, which may sit in the cluster all the same.
fn spares<'a>(q: &Question<'a>) -> BTreeSet<&'a Address> {
    match &q.want.layout {
        Layout::Cluster { .. } => q.want.spares(),
        Layout::Replication { .. } | Layout::Sentinel { .. } | Layout::Gone => BTreeSet::new(),
    }
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
    let shards: Vec<&Shard> = q.want.layout.shards().into_iter().map(|(s, _)| s).collect();
    let pinned =
        |s: &&'a Shard| s.members.iter().find(|m| Some(*m) == q.terms.primaries.get(&s.id));
    let primaries: BTreeSet<&Address> = shards.iter().filter_map(pinned).collect();
    let rest = shards.iter().flat_map(|s| &s.members).filter(|m| !primaries.contains(m));
    primaries.iter().copied().chain(rest).collect()
}

/// Who is, or is to be, primary of a shard: a member, or one that is still to leave it.
fn primary(q: &Question, shard: &Shard, slots: &SlotSet) -> Option<Address> {
    match q.terms.primaries.get(&shard.id) {
        Some(pinned) => elected(q, shard, slots, pinned).or_else(|| Some(pinned.clone())),
        // While nobody of a new shard serves anything, each of its nodes is as good a primary.
        None if !serves(q, shard) && q.terms.founders.contains_key(&shard.id) => {
            q.terms.founders.get(&shard.id).cloned()
        }
        None => agreed_primary(&peopled(q, shard), slots, q.seen),
    }
}

/// Who was elected in the place of a primary that a plan had just made, and froze: that is adopted.
fn elected(q: &Question, shard: &Shard, slots: &SlotSet, pinned: &Address) -> Option<Address> {
    let other = agreed_primary(&peopled(q, shard), slots, q.seen).filter(|node| node != pinned)?;
    let view = q.seen.view(&other).filter(|_| !q.terms.resets.contains_key(&other))?;
    let serves = !slots.is_empty() && slots.difference(&view.my_slots()).is_empty();
    serves.then_some(other)
}

/// Whether some member of a shard serves slots.
fn serves(q: &Question, shard: &Shard) -> bool {
    let views = shard.members.iter().filter_map(|m| q.seen.view(m));
    views.into_iter().any(|v| !v.my_slots().is_empty())
}

/// The shard with those that are to leave it.
fn peopled(q: &Question, shard: &Shard) -> Shard {
    let of_shard = q.terms.leavers.iter().filter(|(_, leaver)| leaver.shard == shard.id);
    let members = shard.members.iter().chain(of_shard.map(|(node, _)| node));
    Shard { members: members.cloned().collect(), ..shard.clone() }
}

/// Those who are to leave and answer as who they were.
fn leavers_here<'a>(q: &Question<'a>) -> impl Iterator<Item = (&'a Address, &'a Leaver)> + use<'a> {
    let seen = q.seen;
    let here = move |(node, leaver): &(&Address, &Leaver)| {
        seen.view(node).is_some_and(|v| v.my_id == leaver.identity)
    };
    q.terms.leavers.iter().filter(here)
}

fn agreement(q: &Question) -> AwaitAgreement {
    let all = |nodes: Vec<&Address>| nodes.into_iter().cloned().collect::<Vec<_>>();
    let members = all(members(q));
    let apart = q.terms.apart.iter().filter(|node| !members.contains(node)).cloned().collect();
    AwaitAgreement { members, apart, spares: all(spares(q).into_iter().collect()) }
}

/// The settings that serve for a while: impatient ones while a cluster without data forms; and that
/// nobody who gives its last slot away follows another primary for it.
struct TemporarySettings {
    forming: BTreeMap<String, String>,
    draining: BTreeSet<Address>,
    switching: BTreeMap<Address, BTreeMap<String, String>>,
}

impl TemporarySettings {
    fn of(q: &Question) -> Self {
        let switching = |node: &&Address| ((*node).clone(), watched::temporary(q, node));
        let parts = parts(q);
        let switching = parts.iter().chain(&leavers(q)).map(switching).collect();
        Self { forming: forming_settings(q), draining: draining(q), switching }
    }

    fn for_node(&self, node: &Address) -> BTreeMap<String, String> {
        let stay = (REPLICA_MIGRATION.to_owned(), "no".to_owned());
        let stays = self.draining.contains(node).then_some(stay);
        let switching = self.switching.get(node).cloned().unwrap_or_default();
        self.forming.clone().into_iter().chain(stays).chain(switching).collect()
    }
}

fn forming_settings(q: &Question) -> BTreeMap<String, String> {
    let empty = |s: &Sighting| !matches!(s, Sighting::Seen(report) if report.keys > 0);
    let without_data = q.seen.nodes.values().all(empty);
    let mut settings = BTreeMap::new();
    if q.goal == Goal::Converge && q.terms.forming && without_data && !formed(q) {
        let timeout = q.policy.forming_node_timeout_ms.to_string();
        if !is_lone(q) {
            settings.insert("cluster-node-timeout".to_owned(), timeout);
        }
        settings.insert("repl-diskless-sync-delay".to_owned(), "0".to_owned());
    }
    settings
}

/// Whether nothing but taking marks away is left to do.
pub(super) fn formed(q: &Question) -> bool {
    if is_lone(q) {
        return lone::formed(q);
    }
    let done = |step: &Step| step.action().check(q.seen) == Check::Done;
    claims(q).iter().all(done) && joins(q).iter().all(done) && settles(q).iter().all(done)
}

/// Marks on nodes that do not answer stay for a later repair when a plan winds down.
fn restore_settings(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let needed = TemporarySettings::of(q);
    let mut originals: BTreeMap<&Address, BTreeMap<String, String>> = BTreeMap::new();
    for mark in reachable_marks(q) {
        if let MarkKind::Setting(s) = &mark.what
            && !needed.for_node(&mark.node).contains_key(&s.name)
        {
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
    // Nobody waits for a node that is not wanted, or in an emergency.
    let (waits, parts, seen) = (q.goal == Goal::Converge && !q.terms.seats_only, parts(q), q.seen);
    seen.marks.iter().filter(move |m| {
        (waits && parts.contains(&m.node)) || matches!(seen.sighting(&m.node), Sighting::Seen(_))
    })
}

/// A node that was not seen may be a replica: nothing else goes before it was.
fn reset_replicas(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let mut steps = resets(q)?;
    steps.retain(|step| {
        let nodes = step.action().nodes();
        nodes.iter().any(|n| q.seen.report(n).is_none_or(|r| r.role == Role::Replica))
    });
    Ok(steps)
}

fn resets(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let members = parts(q);
    let step = |(node, term): (&Address, &ResetTerm)| {
        Step::ResetNode(ResetNode { node: node.clone(), term: term.clone() })
    };
    Ok(q.terms.resets.iter().filter(|(n, _)| members.contains(n)).map(step).collect())
}

fn forget(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let ghosts = q.seen.ghosts();
    // One that only does not answer here may be well, and whoever serves slots is still needed.
    let dead = |id: &ClusterNodeId, peer: &Peer| {
        ghosts.contains(id) || (peer.failed && peer.slots.is_empty())
    };
    let step = |node: &Address| {
        let view = q.seen.view(node)?;
        let ids: BTreeMap<ClusterNodeId, Address> = view
            .peers
            .iter()
            .filter(|(id, peer)| !peer.handshake && dead(id, peer))
            .filter_map(|(id, peer)| Some((id.clone(), left(q, id, peer)?)))
            .collect();
        (!ids.is_empty()).then(|| Step::Forget(Forget { node: node.clone(), ids }))
    };
    Ok(q.want.layout.members().into_iter().filter_map(step).collect())
}

/// The node whose identity this is or was, if that one has left the cluster or is to: it was reset, or
/// it is not wanted any more and does not answer. Where it came back to the cluster by itself, it
/// goes first.
fn left(q: &Question, id: &ClusterNodeId, peer: &Peer) -> Option<Address> {
    let marked = q.seen.marks.iter().find(|m| m.what.identity() == Some(id)).map(|m| &m.node);
    if q.seen.ghosts().contains(id) {
        return marked.cloned();
    }
    if let Some((node, leaver)) = q.terms.leavers.iter().find(|(_, l)| l.identity == *id) {
        // Others of its shard who are still to leave would tell of it again.
        let last = !leavers_here(q).any(|(_, other)| other.shard == leaver.shard);
        return (last && q.seen.report(node).is_none()).then(|| node.clone());
    }
    let members = q.want.layout.members();
    let gone = |node: &&Address| {
        !members.contains(node)
            && !q.terms.apart.contains(*node)
            && q.seen.view(node).is_none_or(|v| v.my_id != *id)
    };
    let has_mark = |a: &&Address| q.seen.marks_on(a).any(|m| m.what.identity().is_some());
    marked.or(peer.address.as_ref().filter(has_mark)).filter(gone).cloned()
}

/// Whether a leaver is gone without having been reset: it does not answer, and the members that know
/// it agree that it is dead and serves nothing.
fn is_dead(q: &Question, node: &Address, id: &ClusterNodeId) -> bool {
    let views = q.want.layout.members().into_iter().filter_map(|m| q.seen.view(m));
    let mut known = views.filter_map(|v| v.peers.get(id));
    q.seen.report(node).is_none() && known.all(|p| p.failed && p.slots.is_empty())
}

fn strangers(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let (members, spares) = (parts(q), spares(q));
    let now = members.iter().filter_map(|m| q.seen.view(m)).map(|v| &v.my_id);
    // What nodes were before their reset may linger with those that are still to be reset.
    let before = q.terms.resets.values().map(|term| &term.identity);
    let marked = q.seen.marks.iter().filter_map(|m| m.what.identity());
    let leaving = q.terms.leavers.values().map(|leaver| &leaver.identity);
    let ours: BTreeSet<&ClusterNodeId> = now.chain(before).chain(marked).chain(leaving).collect();
    let mut blockers = Vec::new();
    for member in &members {
        let Some(view) = q.seen.view(member) else { continue };
        let idle = q.seen.idle_in(view, &spares);
        let known = |id: &ClusterNodeId| ours.contains(id) || idle.contains(id);
        for (id, peer) in view.peers.iter().filter(|(id, p)| !p.handshake && !known(id)) {
            // A member that does not answer has an id that is not known now; its address is.
            let known =
                |a: &Address| members.contains(a) || former(q, a) || q.terms.apart.contains(a);
            if peer.address.as_ref().is_some_and(known) || left(q, id, peer).is_some() {
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
        .filter_map(|m| Some((&m.node, m.what.setting()?.name.as_str())))
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
    let needed = TemporarySettings::of(q);
    let step = |node: &Address| {
        let settings = needed.for_node(node);
        (!settings.is_empty())
            .then(|| Step::SetTemporary(SetTemporary { node: node.clone(), settings }))
    };
    let leavers = q.terms.leavers.keys().filter(|node| q.seen.report(node).is_some());
    let mut steps: Vec<Step> = members(q).into_iter().chain(leavers).filter_map(step).collect();
    if !is_lone(q) {
        steps.extend(claims(q));
    }
    Ok(steps)
}

/// Epochs for all while the cluster forms, later for pinned primaries alone; slots for primaries,
/// so far as nobody owns them.
fn claims(q: &Question) -> Vec<Step> {
    let mut slots_of: BTreeMap<Address, SlotSet> = BTreeMap::new();
    let moving = moves(q).iter().fold(SlotSet::empty(), |all, step| all.union(&step.slots));
    // What belongs to a node that does not answer now is moved when it, or its heir, does.
    let peers = q.seen.nodes.keys().filter_map(|a| q.seen.view(a)).flat_map(|v| &v.peers);
    let silent = peers.filter(|(id, _)| q.seen.by_cluster_id(id).is_none());
    let unseen = silent.fold(SlotSet::empty(), |all, (_, peer)| all.union(&peer.slots));
    for (shard, slots) in shards(q) {
        if let Some(primary) = primary(q, shard, slots) {
            slots_of.insert(primary, slots.difference(&moving).difference(&unseen));
        }
    }
    // Whoever is to serve slots from now on gets an epoch of its own in a cluster that has some.
    let top = q.seen.nodes.keys().filter_map(|a| q.seen.view(a)).map(|v| v.current_epoch).max();
    let pinned: BTreeSet<&Address> = q.terms.primaries.values().collect();
    let claim = |(i, node): (usize, &Address)| {
        let slots = slots_of.remove(node).unwrap_or_default();
        let next = i as u64 + 1;
        let epoch = if q.terms.forming {
            Some(next)
        } else {
            pinned.contains(node).then(|| top.unwrap_or(0).saturating_add(next))
        };
        (epoch.is_some() || !slots.is_empty())
            .then(|| Step::ClaimSlots(ClaimSlots { node: node.clone(), epoch, slots }))
    };
    members(q).into_iter().enumerate().filter_map(claim).collect()
}

fn join(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    Ok(joins(q))
}

fn joins(q: &Question) -> Vec<Step> {
    // Those who leave still have to give their data away; one that was forgotten while it was dead, and is
    // back, stays out.
    let views = || q.want.layout.members().into_iter().filter_map(|m| q.seen.view(m));
    let known = |leaver: &Leaver| views().any(|v| v.peers.contains_key(&leaver.identity));
    let leavers = leavers_here(q).filter(|(_, leaver)| known(leaver)).map(|(node, _)| node);
    let known: Vec<&Address> = members(q).into_iter().chain(leavers).collect();
    let mut steps = Vec::new();
    for (i, node) in members(q).iter().enumerate() {
        let others: Vec<Address> = known[i + 1..].iter().map(|a| (*a).clone()).collect();
        if !others.is_empty() {
            steps.push(Step::Meet(Meet { node: (*node).clone(), others }));
        }
    }
    let mut copying = Copying::seen(q);
    let moves = moves(q);
    for (shard, slots) in shards(q) {
        let Some(primary) = primary(q, shard, slots) else { continue };
        // One that was cut off from an election may still serve something, and gives that first.
        let gives = |node: &Address| moves.iter().any(|step| step.from.address == *node);
        for node in shard.members.iter().filter(|m| **m != primary && !gives(m)) {
            let step = Replicate { node: node.clone(), primary: primary.clone() };
            let undone = step.check(q.seen) != Check::Done;
            if q.terms.forming || !undone || copying.takes(q, node, &primary) {
                steps.push(Step::Replicate(step));
            }
            // Nobody leaves, takes over, or begins to serve, before the replicas have the data. Where
            // slots move to one that serves, the move itself minds its replicas.
            let gets_slots = moves.iter().any(|step| step.to.address == primary);
            let waits = if gets_slots && serves(q, shard) {
                changes_members_of(q, shard)
            } else {
                changes_members(q) || gets_slots
            };
            if !q.terms.forming && waits {
                let (node, primary) = (node.clone(), primary.clone());
                steps.push(Step::AwaitSync(AwaitSync { node, primary }));
            }
        }
    }
    // While slots move, views differ all the time.
    if !changes_members(q) && moves.is_empty() {
        steps.extend(settles(q));
    }
    steps
}

/// Whether nodes come and go in a cluster that is in use.
fn changes_members(q: &Question) -> bool {
    !q.terms.leavers.is_empty() || !q.terms.seats.is_empty()
}

fn changes_members_of(q: &Question, shard: &Shard) -> bool {
    let leaves = q.terms.leavers.values().any(|leaver| leaver.shard == shard.id);
    leaves || q.terms.seats.contains_key(&shard.id)
}

/// Full copies under way: a fork and a stream of all the data each. One at a time for each primary
/// and each machine.
struct Copying<'a> {
    primaries: BTreeSet<Address>,
    machines: BTreeSet<&'a str>,
    machine_of: BTreeMap<&'a Address, &'a str>,
}

impl<'a> Copying<'a> {
    fn seen(q: &Question<'a>) -> Self {
        let places = q.want.places();
        let machine_of = places.into_iter().map(|(a, place)| (a, place.machine())).collect();
        let mut copying =
            Self { primaries: BTreeSet::new(), machines: BTreeSet::new(), machine_of };
        for (address, sighting) in &q.seen.nodes {
            let Sighting::Seen(report) = sighting else { continue };
            let link = &report.replication;
            if report.role == Role::Replica && (link.sync_in_progress || !link.link_up) {
                copying.note(address, report.replication.primary.as_ref());
            }
        }
        copying
    }

    fn note(&mut self, node: &Address, primary: Option<&Address>) {
        self.primaries.extend(primary.cloned());
        self.machines.extend(self.machine_of.get(node));
        self.machines.extend(primary.and_then(|p| self.machine_of.get(p)));
    }

    /// Whether one more copy may begin; if so, it is counted.
    fn takes(&mut self, q: &Question, node: &Address, primary: &Address) -> bool {
        let machine = |a: &Address| self.machine_of.get(a).copied();
        let busy = self.primaries.contains(primary)
            || [node, primary].into_iter().filter_map(machine).any(|m| self.machines.contains(m));
        if !busy && q.seen.report(node).is_some() {
            self.note(node, Some(primary));
        }
        !busy
    }
}

/// A primary whose slots others show with a dead node, at no smaller epoch. One that is only not seen
/// from here may well serve them.
pub(super) fn epochs(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let mut steps = Vec::new();
    let concerned = |shard: &Shard| !q.terms.seats_only || q.terms.seats.contains_key(&shard.id);
    for (shard, slots) in shards(q).iter().filter(|(shard, _)| concerned(shard)) {
        let claims = |m: &&Address| {
            let serves = |v: &ClusterView| !v.my_slots().intersection(slots).is_empty();
            q.seen.report(m).is_some_and(|r| r.role == Role::Primary)
                && q.seen.view(m).is_some_and(serves)
        };
        let people = peopled(q, shard);
        let claimants: Vec<&Address> = people.members.iter().filter(claims).collect();
        let ([node], Some(view)) =
            (claimants.as_slice(), claimants.first().and_then(|n| q.seen.view(n)))
        else {
            continue;
        };
        let others = q.seen.nodes.keys().filter_map(|a| q.seen.view(a)).flat_map(|v| &v.peers);
        let shadow = others
            .filter(|(id, p)| **id != view.my_id && p.epoch >= view.my_epoch)
            .filter(|(id, p)| p.failed && q.seen.by_cluster_id(id).is_none())
            .filter(|(_, p)| !p.slots.intersection(&view.my_slots()).is_empty())
            .map(|(_, p)| p.epoch)
            .max();
        if let Some(above) = shadow {
            steps.push(Step::BumpEpoch(BumpEpoch { node: (*node).clone(), above }));
        }
    }
    Ok(steps)
}

/// Changes of primary that are still to be made, one at a time: a voter has one vote in each epoch,
/// so of replicas that stand at the same time several may fail, and writes wait for nothing.
fn seats(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let step = |(shard, slots): &(Shard, SlotSet)| {
        let elected = agreed_primary(&peopled(q, shard), slots, q.seen);
        let seat = match q.terms.seats.get(&shard.id) {
            // Where somebody else was elected meanwhile, that one is adopted.
            Some(seat) if elected.as_ref().is_none_or(|p| *p == seat.from || *p == seat.to) => {
                seat.clone()
            }
            Some(_) | None => relief(q, shard, elected.as_ref()?)?,
        };
        Some(Step::FailOver(FailOver {
            shard: shard.id,
            index: shard.index,
            slots: seat.slots,
            from: seat.from,
            from_id: seat.from_id,
            to: seat.to,
            method: seat.method,
            expected_ms: seat.expected_ms,
        }))
    };
    let mut steps = Vec::new();
    for step in shards(q).iter().filter_map(step) {
        let done = step.action().check(q.seen) == Check::Done;
        steps.push(step);
        if !done {
            break;
        }
    }
    Ok(steps)
}

/// Who takes over from one that is to leave and was elected on the way.
fn relief(q: &Question, shard: &Shard, from: &Address) -> Option<Seat> {
    let (from_id, slots) = q.seen.view(from).map(|v| (v.my_id.clone(), v.my_slots()))?;
    let leaves = q.terms.leavers.get(from).is_some_and(|l| l.identity == from_id);
    let method = FailoverMethod::Graceful;
    let drained = q.want.spec.drained();
    let fit = leaves.then(|| best(&shard.members, drained, from, &from_id, method, q.seen).ok())?;
    // Nobody is fit yet: the first member is waited for.
    let to = fit.or_else(|| shard.members.first().cloned())?;
    let expected_ms = expected(method, from, &to, q.seen);
    Some(Seat { from: from.clone(), from_id, slots, to, method, expected_ms })
}

/// After a change of primary: those that answer follow the new one.
fn follow(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let mut steps = Vec::new();
    for (shard, slots) in shards(q).iter().filter(|(s, _)| q.terms.seats.contains_key(&s.id)) {
        let Some(primary) = agreed_primary(shard, slots, q.seen) else { continue };
        let others = shard.members.iter().filter(|m| **m != primary);
        let answer = others.filter(|m| q.seen.report(m).is_some());
        steps.extend(answer.map(|node| {
            Step::AwaitSync(AwaitSync { node: node.clone(), primary: primary.clone() })
        }));
    }
    Ok(steps)
}

fn leave(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    let stays = |(node, leaver): &(&Address, &Leaver)| !is_dead(q, node, &leaver.identity);
    let step = |(node, leaver): (&Address, &Leaver)| {
        Step::Leave(Leave {
            node: node.clone(),
            identity: leaver.identity.clone(),
            bares: leaver.bares,
        })
    };
    Ok(q.terms.leavers.iter().filter(stays).map(step).collect())
}

fn settle(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    Ok(settles(q))
}

fn settles(q: &Question) -> Vec<Step> {
    if members(q).is_empty() { vec![] } else { vec![Step::AwaitAgreement(agreement(q))] }
}
