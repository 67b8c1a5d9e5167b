//! What is to be done: from what is wanted and what is seen to the next steps, or to all of them.
//!
//! The planner does not know which intent it serves, remembers nothing and decides nothing twice:
//! whoever carries a plan out asks again after each look. Its rules stand in [`rules`]; a stage
//! is entered only when the one before it has nothing left to do, so their order is the safety
//! argument.

mod rules;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::functions::drift;
use super::hazard::Hazard;
use super::id::ShardId;
use super::moving::BigKey;
use super::node::{Address, ClusterNodeId};
use super::observation::{Mark, Observation, Report, Role, Sighting};
use super::placement::Warning;
use super::plan::WaitingFor;
use super::policy::Policy;
use super::refusal::FieldError;
use super::slot::SlotSet;
use super::step::command::{FailoverMethod, ShownCommand};
use super::step::{Blocker, Check, Step, StepKey, Wait};
use super::topology::{Layout, Topology};

/// What an intent says beyond the shape, valid for its plan alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Terms {
    /// Who is to be primary of a shard.
    pub primaries: BTreeMap<ShardId, Address>,
    /// Nodes that may be emptied, each as it was when that was accepted.
    pub resets: BTreeMap<Address, ResetTerm>,
    /// Whether the cluster is new and without data, so that it may form with impatient settings.
    pub forming: bool,
    /// Who is to take over in a shard that is served.
    pub seats: BTreeMap<ShardId, Seat>,
    /// Whether changes of primary are all that there is to do, and nothing else is waited for.
    pub seats_only: bool,
    /// Nodes that are to leave the cluster.
    pub leavers: BTreeMap<Address, Leaver>,
    /// Sentinels that are to watch no more.
    pub unwatch: BTreeSet<Address>,
    /// Members of the cluster that are left out of account, whatever has become of them.
    pub apart: BTreeSet<Address>,
    /// Members of old that died while slots move, each with its shard. They are left apart as well, for as
    /// long as they are dead; never stored.
    #[serde(skip)]
    pub lost: BTreeMap<Address, ShardId>,
    /// Who begins as primary of a shard that is new in a cluster in use, and that slots will move to.
    pub founders: BTreeMap<ShardId, Address>,
    /// How slots are moved, where they are.
    pub moving: Moving,
}

/// How slots are moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Moving {
    /// How long clients may wait because of it, in milliseconds; big keys excepted.
    pub max_latency_ms: u64,
    /// Keys that stall their node for longer, as far as they are known.
    pub big: Vec<BigKey>,
    /// Whether slots that somebody else left half-way are moved on, too.
    pub closes_foreign: bool,
}

impl Default for Moving {
    fn default() -> Self {
        Self { max_latency_ms: 5, big: vec![], closes_foreign: false }
    }
}

/// A change of primary: needed while the slots are `from`'s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    pub from: Address,
    pub from_id: ClusterNodeId,
    /// What it was seen to serve.
    pub slots: SlotSet,
    pub to: Address,
    pub method: FailoverMethod,
    /// How long writes are expected to wait, in milliseconds.
    pub expected_ms: Option<u64>,
}

/// A node that is to leave, as it was when that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaver {
    /// The shard that it was a member of, and where that stands.
    pub shard: ShardId,
    pub identity: ClusterNodeId,
    /// The shard, by position, that is left without any replica.
    pub bares: Option<u16>,
}

impl Terms {
    /// The nodes that a plan is about beside those of the spec.
    pub fn others(&self) -> impl Iterator<Item = &Address> {
        self.leavers.keys().chain(self.resets.keys()).chain(&self.unwatch)
    }

    /// Nodes that were to leave, and are not there to see that they have.
    pub fn unreached<'a>(&'a self, seen: &'a Observation) -> impl Iterator<Item = &'a Address> {
        let marked = |node: &&Address| seen.marks_on(node).any(|m| m.what.identity().is_some());
        self.leavers.keys().filter(|node| seen.report(node).is_none()).filter(marked)
    }
}

/// A node that may be emptied, while it is still what was meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetTerm {
    /// The identity to be rid of: a hard reset gives a cluster node another one. Others have none
    /// but their process.
    pub identity: ClusterNodeId,
    /// The process that was looked at.
    pub run_id: String,
    /// How many keys it had.
    pub keys: u64,
    /// Whether it had functions, which go too.
    #[serde(default)]
    pub functions: bool,
    /// Whether a cluster in use loses slots with it.
    #[serde(default)]
    pub serves: bool,
}

impl ResetTerm {
    /// What a node is now, if it can be told.
    #[must_use]
    pub fn of(report: &Report) -> Option<Self> {
        let serves = match &report.cluster {
            Some(view) => !view.my_slots().is_empty(),
            None if report.cluster_enabled => return None,
            None => !report.replication.replicas.is_empty(),
        };
        Some(Self {
            identity: report.identity(),
            run_id: report.run_id.clone(),
            keys: report.keys,
            functions: report.functions,
            serves: report.role == Role::Primary && serves,
        })
    }

    /// Whether it is a node outside of clusters, which has no identity beside its process.
    #[must_use]
    pub fn is_lone(&self) -> bool {
        self.identity.0 == self.run_id
    }
}

/// What the planner is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    pub want: &'a Topology,
    pub seen: &'a Observation,
    pub terms: &'a Terms,
    pub policy: &'a Policy,
    pub goal: Goal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Make it as wanted.
    Converge,
    /// Take away what the plan left on nodes that answer, and nothing else.
    WindDown,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Nothing is left.
    Converged,
    /// These steps are ready and touch no node in common.
    Act(Vec<Step>),
    /// Nothing is ready; these have to come about first.
    Wait(Vec<(Step, Wait)>),
    Stuck(Vec<Blocker>),
}

/// The next steps.
#[must_use]
pub fn next(question: &Question) -> Next {
    for stage in rules::stages(question) {
        let steps = match stage(question) {
            Ok(steps) => steps,
            Err(blockers) => return Next::Stuck(blockers),
        };
        let (mut ready, mut waits, mut blockers) = (Vec::new(), Vec::new(), Vec::new());
        let mut busy = BTreeSet::new();
        for step in steps {
            match step.action().check(question.seen) {
                Check::Done => {}
                Check::Waiting(wait) => waits.push((step, wait)),
                Check::Blocked(blocker) => blockers.push(blocker),
                Check::Ready => {
                    let nodes = step.action().nodes();
                    if nodes.iter().all(|n| !busy.contains(n)) {
                        busy.extend(nodes);
                        ready.push(step);
                    }
                }
            }
        }
        if !blockers.is_empty() {
            return Next::Stuck(blockers);
        }
        if !ready.is_empty() {
            return Next::Act(ready);
        }
        if !waits.is_empty() {
            return Next::Wait(waits);
        }
    }
    Next::Converged
}

/// Marks whose traces are seen to be gone and that nothing needs any more: to be forgotten.
#[must_use]
pub fn settled_marks(question: &Question) -> Vec<Mark> {
    rules::settled_marks(question)
}

/// The whole plan as it would go if every step worked.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    pub steps: Vec<ForecastStep>,
    pub blockers: Vec<Blocker>,
    /// The world at the end.
    pub world: Observation,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ForecastStep {
    pub key: StepKey,
    pub step: Step,
    pub commands: Vec<ShownCommand>,
}

impl Forecast {
    #[must_use]
    pub fn hazards(&self) -> Vec<Hazard> {
        self.steps.iter().flat_map(|s| s.step.action().hazards()).collect()
    }
}

/// One way in which the nodes are not as wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub kind: DifferenceKind,
    /// The same for the same difference at every look, whatever the words say of counts.
    pub key: String,
    pub why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DifferenceKind {
    /// A node cannot be judged: it is silent, or loads its data.
    Sight,
    /// Something is on its way, and a plan would only wait for it.
    Wait,
    /// Something is otherwise, and a plan would change it, or stop at it.
    Deed,
}

/// How the nodes differ from what is wanted: what a plan with no terms would do, for people. Empty
/// where the topology is settled.
///
/// `former` are the members of the last version that had some: of a topology that is to be gone,
/// each must be blank. How members do that are `apart`, since they are to go, does not matter.
#[must_use]
pub fn unsettled(
    want: &Topology,
    former: &BTreeSet<Address>,
    apart: &BTreeSet<Address>,
    seen: &Observation,
    policy: &Policy,
) -> Vec<FieldError> {
    let differences = differences(want, former, apart, seen, policy);
    differences.into_iter().map(|d| FieldError::new("", d.why)).collect()
}

/// The same, each by its kind.
#[must_use]
pub fn differences(
    want: &Topology,
    former: &BTreeSet<Address>,
    apart: &BTreeSet<Address>,
    seen: &Observation,
    policy: &Policy,
) -> Vec<Difference> {
    let terms = Terms { apart: apart.clone(), ..Terms::default() };
    let want = &want.without(apart);
    let members: BTreeSet<&Address> = match &want.layout {
        Layout::Cluster { .. } | Layout::Replication { .. } | Layout::Sentinel { .. } => {
            want.layout.members()
        }
        Layout::Gone => former.iter().collect(),
    };
    let gone = want.layout == Layout::Gone;
    let of_node = |node: &&Address| {
        let (kind, why) = match seen.sighting(node) {
            Sighting::Silent(s) => {
                (DifferenceKind::Sight, format!("{node} does not answer ({})", s.message))
            }
            Sighting::Unknown => (DifferenceKind::Sight, format!("{node} was not seen yet")),
            Sighting::Seen(r) if gone && !r.is_blank() => {
                let keys = r.keys;
                let why =
                    format!("{node} is to be blank, but holds {keys} keys or knows other nodes");
                (DifferenceKind::Deed, why)
            }
            Sighting::Seen(r) if r.loading => {
                (DifferenceKind::Sight, format!("{node} still loads its data"))
            }
            Sighting::Seen(_) => return None,
        };
        Some(Difference { kind, key: format!("node:{node}"), why })
    };
    let told = |wait: &Wait| wait.nodes.iter().all(|n| members.contains(n));
    let of_step = |step: &Step| {
        let action = step.action();
        let (kind, why) = match action.check(seen) {
            // Waiting for nodes that do not answer is no news after these.
            Check::Waiting(wait) if wait.reason == WaitingFor::Node && told(&wait) => return None,
            Check::Waiting(wait) => (DifferenceKind::Wait, wait.why),
            Check::Ready | Check::Blocked(_) => (DifferenceKind::Deed, action.title()),
            // Needed only for what comes before it.
            Check::Done => return None,
        };
        Some(Difference { kind, key: action.key(), why })
    };
    let of_blocker = |blocker: &Blocker| {
        let node = blocker.node.as_ref().map(|n| format!(":{n}")).unwrap_or_default();
        Difference {
            kind: DifferenceKind::Deed,
            key: format!("{}{node}", blocker.code),
            why: format!("{}. {}", blocker.why, blocker.recovery),
        }
    };
    let forecast = forecast(&Question { want, seen, terms: &terms, policy, goal: Goal::Converge });
    let nodes = members.iter().filter_map(of_node);
    let steps = forecast.steps.iter().filter_map(|s| of_step(&s.step));
    nodes.chain(steps).chain(forecast.blockers.iter().map(of_blocker)).collect()
}

/// Whether something stands between the nodes and what is wanted that no plan can take away.
#[must_use]
pub fn is_blocked(want: &Topology, seen: &Observation, policy: &Policy) -> bool {
    let terms = Terms::default();
    let asked = Question { want, seen, terms: &terms, policy, goal: Goal::Converge };
    !forecast(&asked).blockers.is_empty()
}

/// Whether all nodes agree, and on what is wanted: nodes that wait to be told their parts agree too.
#[must_use]
pub fn has_formed(question: &Question) -> bool {
    rules::formed(question)
}

/// Whether the libraries of functions matter now, so that a look is to read them: that takes longer than
/// all else.
#[must_use]
pub fn compares_functions(question: &Question) -> bool {
    rules::functions::matter(question)
}

/// What to know of libraries of functions that whoever begins to serve does not get.
#[must_use]
pub fn functions_drift(question: &Question) -> Option<Warning> {
    drift(&rules::functions::disputed(question))
}

/// Those of `pending`, steps that the database says were never begun, that are done all the same
/// although nothing but their commands brings them about: proof that the world is ahead of this
/// database.
#[must_use]
pub fn ahead_of_record(pending: &[Step], seen: &Observation) -> Vec<StepKey> {
    let ours = |step: &&Step| match step {
        Step::ResetNode(_)
        | Step::Configure(_)
        | Step::SetTemporary(_)
        | Step::ClaimSlots(_)
        | Step::Leave(_)
        | Step::Replicate(_) => true,
        // Gossip introduces nodes too, and spreads what was forgotten; the others need no command
        // of ours.
        Step::Meet(_)
        | Step::Forget(_)
        | Step::AwaitAgreement(_)
        | Step::AwaitSync(_)
        | Step::BumpEpoch(_)
        // Nodes elect by themselves, and then another step moves the slots.
        | Step::FailOver(_)
        | Step::MoveSlots(_)
        // Whoever hears of a new primary in a hand-over follows at once.
        | Step::HandOver(_)
        | Step::Follow(_)
        | Step::CancelSlotJobs(_)
        // A client may have loaded them.
        | Step::CopyFunctions(_)
        | Step::AwaitTrim(_)
        | Step::HoldWrites(_)
        | Step::ReleaseWrites(_)
        // Sentinels take note of the settings of others, and people talk to them.
        | Step::Watch(_)
        | Step::AwaitWatch(_)
        | Step::Unwatch(_)
        | Step::ForgetGhosts(_)
        | Step::AwaitChoice(_)
        | Step::SwitchOver(_)
        | Step::RestoreSettings(_)
        | Step::RewriteConfig(_) => false,
    };
    let done = |step: &&Step| step.action().check(seen) == Check::Done;
    pending.iter().filter(ours).filter(done).map(|step| step.action().key()).collect()
}

/// Folds the effects of the steps until nothing is left. Waits are taken to end well.
#[must_use]
pub fn forecast(question: &Question) -> Forecast {
    let mut forecast = Forecast { steps: vec![], blockers: vec![], world: question.seen.clone() };
    // Each step is taken at most once, so a world that no step improves ends the loop.
    let mut taken = BTreeSet::new();
    loop {
        let settled = settled_marks(&Question { seen: &forecast.world, ..*question });
        forecast.world.marks.retain(|m| !settled.contains(m));
        let asked = Question { seen: &forecast.world, ..*question };
        let steps = match next(&asked) {
            Next::Converged => break,
            Next::Stuck(blockers) => {
                forecast.blockers = blockers;
                break;
            }
            Next::Act(steps) => steps,
            Next::Wait(waits) => waits.into_iter().map(|(step, _)| step).collect(),
        };
        let mut fresh = false;
        for step in steps {
            let action = step.action();
            if !taken.insert(action.key()) {
                continue;
            }
            fresh = true;
            let shown = action.shown(&forecast.world);
            action.effect(&mut forecast.world);
            forecast.steps.push(ForecastStep { key: action.key(), step, commands: shown });
        }
        if !fresh {
            break;
        }
    }
    forecast
}
