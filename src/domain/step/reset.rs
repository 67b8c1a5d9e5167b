//! Makes one node blank: its keys and its membership of whatever cluster go. Only for a node that a
//! plan's terms name, and only while it is still the one that they mean.

use serde::{Deserialize, Serialize};

use super::command::{Command, Verb};
use super::{Action, Blocker, Check, StepKey, seen_or_wait};
use crate::domain::hazard::{Hazard, HazardKind};
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{
    ClusterView, IdentityMark, Mark, MarkKind, Observation, Peer, Report, Role, SettingMark,
    Sighting,
};
use crate::domain::planner::ResetTerm;
use crate::domain::slot::SlotSet;

/// A primary with fewer replicas takes no writes, and `FLUSHALL` is one.
pub const LEAST_REPLICAS: &str = "min-replicas-to-write";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetNode {
    pub node: Address,
    /// What it was when its loss was accepted.
    pub term: ResetTerm,
}

/// The id of the hazard of emptying a node.
#[must_use]
pub fn hazard_id(node: &Address) -> String {
    format!("flush:{node}")
}

/// What empties a node outside of clusters. Its copy of the data must not be writable for longer than
/// it takes to run the next command, so that all goes out at once. Clients that have been idle would
/// go on with a server that takes their writes and keeps them from nobody else: they have to look anew.
pub(super) fn emptying(
    node: &Address,
    identity: &ClusterNodeId,
    seen: &Observation,
) -> Vec<Command> {
    let report = seen.report(node);
    let detach = report.is_none_or(|report| report.role != Role::Primary);
    let functions = report.is_some_and(|report| report.functions);
    let verbs = detach.then_some(Verb::ReplicaOfNone).into_iter().chain([Verb::FlushAll]);
    let verbs = verbs.chain(functions.then_some(Verb::FlushFunctions));
    let verbs = unguarded(node, seen, verbs).into_iter().chain([Verb::DropClients]);
    confirmed(node, identity, verbs)
}

/// What takes a cluster node out of its cluster, with keys if it `flushes`. A primary with keys refuses
/// the reset and keeps its functions over it, so it is emptied first; a replica refuses to be emptied,
/// and is by the reset.
pub(super) fn resetting(
    node: &Address,
    identity: &ClusterNodeId,
    flushes: bool,
    seen: &Observation,
) -> Vec<Command> {
    let primary = seen.report(node).filter(|report| report.role == Role::Primary);
    let functions = primary.is_some_and(|report| report.functions);
    let keys = primary.is_some() && flushes;
    let writes = keys.then_some(Verb::FlushAll).into_iter();
    let writes = writes.chain(functions.then_some(Verb::FlushFunctions));
    confirmed(node, identity, writes.chain([Verb::ResetHard]))
}

fn confirmed(
    node: &Address,
    identity: &ClusterNodeId,
    verbs: impl IntoIterator<Item = Verb>,
) -> Vec<Command> {
    let verbs = [Verb::Confirm(identity.clone())].into_iter().chain(verbs);
    verbs.map(|verb| Command::new(node, verb)).collect()
}

/// What a node outside of clusters says to this setting, if it says more than 0.
fn guard(node: &Address, seen: &Observation) -> Option<String> {
    let report = seen.report(node).filter(|report| !report.cluster_enabled)?;
    let value = report.settings.get(LEAST_REPLICAS)?;
    (value != "0").then(|| value.clone())
}

/// Writes that a node takes although nobody follows it.
fn unguarded(
    node: &Address,
    seen: &Observation,
    verbs: impl IntoIterator<Item = Verb>,
) -> Vec<Verb> {
    let set = |value: &str| {
        let name = LEAST_REPLICAS.to_owned();
        Verb::ConfigSet { name, value: value.to_owned() }
    };
    let guard = guard(node, seen);
    let (off, on) = (guard.as_ref().map(|_| set("0")), guard.as_deref().map(set));
    off.into_iter().chain(verbs).chain(on).collect()
}

/// The mark by which a setting is put back if that broke off in the middle.
pub(super) fn guard_mark(node: &Address, seen: &Observation) -> Option<Mark> {
    let name = LEAST_REPLICAS.to_owned();
    let marked = |m: &Mark| m.what.setting().is_some_and(|setting| setting.name == name);
    let original = guard(node, seen).filter(|_| !seen.marks_on(node).any(marked))?;
    Some(Mark { node: node.clone(), what: MarkKind::Setting(SettingMark { name, original }) })
}

/// The mark that a node's config file is behind, unless it is there.
pub(super) fn unwritten(node: &Address, seen: &Observation) -> Vec<Mark> {
    let mark = Mark { node: node.clone(), what: MarkKind::Unwritten };
    if seen.marks.contains(&mark) { vec![] } else { vec![mark] }
}

/// What a node shows after `CLUSTER RESET HARD`.
pub(super) fn blank_out(node: &Address, world: &mut Observation) {
    let Some(Sighting::Seen(report)) = world.nodes.get_mut(node) else { return };
    report.keys = 0;
    (report.functions, report.libraries) = (false, None);
    report.role = Role::Primary;
    report.replication.primary = None;
    report.replication.replicas.clear();
    if !report.cluster_enabled {
        report.replication.link_up = false;
        for sighting in world.nodes.values_mut() {
            if let Sighting::Seen(other) = sighting {
                other.replication.replicas.retain(|attached| attached.address != *node);
            }
        }
        return;
    }
    let id = ClusterNodeId(format!("(new id of {})", node));
    let me = Peer {
        address: Some(node.clone()),
        bus_port: None,
        role: Role::Primary,
        primary: None,
        epoch: 0,
        linked: true,
        suspect: false,
        failed: false,
        handshake: false,
        slots: SlotSet::empty(),
    };
    report.cluster = Some(ClusterView {
        my_id: id.clone(),
        state_ok: false,
        my_epoch: 0,
        current_epoch: 0,
        peers: [(id, me)].into(),
        open: vec![],
        health: [].into(),
        jobs: vec![],
        trims: false,
    });
}

impl Action for ResetNode {
    fn key(&self) -> StepKey {
        format!("reset_node:{}", self.node)
    }

    fn title(&self) -> String {
        match (self.term.is_lone(), self.hazards().is_empty()) {
            (true, true) => format!("Detach {}, which holds nothing", self.node),
            (true, false) => format!("Empty {}", self.node),
            (false, _) => format!("Empty {} and reset its cluster identity", self.node),
        }
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.node.clone()]
    }

    fn hazards(&self) -> Vec<Hazard> {
        let hazard = |id, kind, why| Hazard { id, kind, step: self.key(), why, expected_ms: None };
        if self.term.keys > 0 || self.term.functions {
            let why = format!(
                "{} loses its {} keys, its functions and its place in the cluster that it belongs to",
                self.node, self.term.keys
            );
            vec![hazard(hazard_id(&self.node), HazardKind::DataLoss, why)]
        } else if self.term.serves {
            let what = if self.term.is_lone() { "clients" } else { "slots" };
            let why =
                format!("nobody serves the {what} of {} any more; it holds no keys", self.node);
            vec![hazard(format!("outage:{}", self.node), HazardKind::Outage, why)]
        } else {
            vec![]
        }
    }

    fn check(&self, seen: &Observation) -> Check {
        match seen_or_wait(&self.node, seen) {
            Err(wait) => wait,
            Ok(r) => match &r.cluster {
                Some(view) if view.my_id != self.term.identity => Check::Done,
                None if r.is_blank() => Check::Done,
                _ if self.holds_more_than_accepted(r) => Check::Blocked(Blocker {
                    code: "node_has_keys",
                    node: Some(self.node.clone()),
                    why: format!(
                        "{} was restarted, or holds more ({} keys) than when its loss was accepted ({} keys)",
                        self.node, r.keys, self.term.keys
                    ),
                    recovery: "See that nobody writes to the node any more, and look at what it holds now. Then ask for the same again with fresh consent: dissolve once more, or delete the topology and create it anew.",
                }),
                Some(_) | None => Check::Ready,
            },
        }
    }

    fn effect(&self, world: &mut Observation) {
        let marks = self.marks(world);
        world.marks.extend(marks);
        blank_out(&self.node, world);
    }

    fn commands(&self, seen: &Observation) -> Vec<Command> {
        if self.term.is_lone() {
            return emptying(&self.node, &self.term.identity, seen);
        }
        resetting(&self.node, &self.term.identity, true, seen)
    }

    fn marks(&self, seen: &Observation) -> Vec<Mark> {
        let guard = guard_mark(&self.node, seen);
        if self.term.is_lone() {
            return unwritten(&self.node, seen).into_iter().chain(guard).collect();
        }
        let what = MarkKind::Identity(IdentityMark { id: self.term.identity.clone() });
        let mark = Mark { node: self.node.clone(), what };
        let mark = (!seen.marks.contains(&mark)).then_some(mark);
        mark.into_iter().chain(guard).collect()
    }
}

impl ResetNode {
    /// Consent was given for that process and those keys, not for what came since.
    fn holds_more_than_accepted(&self, report: &Report) -> bool {
        let restarted = report.run_id != self.term.run_id;
        let functions = report.functions && !self.term.functions && self.term.keys == 0;
        let keys = match &report.cluster {
            Some(_) => restarted || report.keys > self.term.keys,
            // Outside of clusters nothing else tells that it was emptied before, perhaps with the
            // primary that it follows. Where no key is left, none is lost.
            None => report.keys > 0 && (restarted || report.keys != self.term.keys),
        };
        keys || functions
    }
}
