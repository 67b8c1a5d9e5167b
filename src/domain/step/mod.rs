//! Steps: the smallest resumable actions on nodes, as data.
//!
//! To add one: a file here that implements [`Action`], a variant of [`Step`], and a rule in
//! `planner`; the compiler lists what is missing. Its commands are data, so `engine/apply.rs` can
//! carry it out as it is.

pub mod agree;
pub mod await_choice;
pub mod await_watch;
pub mod bump;
pub mod cancel;
pub mod claim;
pub mod command;
pub mod configure;
pub mod failover;
pub mod follow;
pub mod forget;
pub mod forget_ghosts;
pub mod functions;
pub mod handover;
pub mod hold;
pub mod leave;
pub mod meet;
pub mod pressure;
pub mod release;
pub mod replicate;
pub mod reset;
pub mod restore;
pub mod rewrite;
pub mod slots;
pub mod switch_over;
pub mod sync;
pub mod temporary;
pub mod trim;
pub mod unwatch;
pub mod watch;

use serde::{Deserialize, Serialize};

use self::command::{Command, ShownCommand};
use super::event::NewEvent;
use super::hazard::Hazard;
use super::node::{Address, Capabilities, Flavor, Version};
use super::observation::{Mark, Observation, Report, Sighting};
use super::plan::WaitingFor;
use super::slot::SlotSet;

/// What a step is called within its plan; the same step has the same key in every re-plan.
pub type StepKey = String;

/// One step. Complete: it leaves no choice to whoever performs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Step {
    RestoreSettings(restore::RestoreSettings),
    RewriteConfig(rewrite::RewriteConfig),
    ResetNode(reset::ResetNode),
    Forget(forget::Forget),
    Configure(configure::Configure),
    SetTemporary(temporary::SetTemporary),
    ClaimSlots(claim::ClaimSlots),
    Meet(meet::Meet),
    Replicate(replicate::Replicate),
    AwaitAgreement(agree::AwaitAgreement),
    AwaitSync(sync::AwaitSync),
    BumpEpoch(bump::BumpEpoch),
    FailOver(failover::FailOver),
    Leave(leave::Leave),
    MoveSlots(slots::MoveSlots),
    CancelSlotJobs(cancel::CancelSlotJobs),
    CopyFunctions(functions::CopyFunctions),
    AwaitTrim(trim::AwaitTrim),
    Follow(follow::Follow),
    HandOver(handover::HandOver),
    HoldWrites(hold::HoldWrites),
    ReleaseWrites(release::ReleaseWrites),
    Watch(watch::Watch),
    AwaitWatch(await_watch::AwaitWatch),
    Unwatch(unwatch::Unwatch),
    ForgetGhosts(forget_ghosts::ForgetGhosts),
    AwaitChoice(await_choice::AwaitChoice),
    SwitchOver(switch_over::SwitchOver),
}

/// Where a step stands, judged from what was seen alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    Done,
    Ready,
    Waiting(Wait),
    Blocked(Blocker),
}

/// What has to come about before a step can go on; it costs no attempt but has a deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    pub reason: WaitingFor,
    pub nodes: Vec<Address>,
    pub why: String,
    /// How far it has come: `done` of `total` nodes.
    pub done: usize,
    pub total: usize,
}

/// Why a step can never go on unless somebody acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    pub code: &'static str,
    pub node: Option<Address>,
    pub why: String,
    pub recovery: &'static str,
}

/// One implementation per step.
pub trait Action {
    fn key(&self) -> StepKey;

    /// One line for people.
    fn title(&self) -> String;

    /// The nodes that it sends commands to, or waits for.
    fn nodes(&self) -> Vec<Address>;

    fn hazards(&self) -> Vec<Hazard> {
        Vec::new()
    }

    /// Precondition, verification, resume and dry run in one question.
    fn check(&self, seen: &Observation) -> Check;

    /// The world if the step worked.
    fn effect(&self, world: &mut Observation);

    /// What it would send, given what was seen; nothing for a step that only waits.
    fn commands(&self, seen: &Observation) -> Vec<Command>;

    /// The same for people, as the versions that were seen understand it.
    fn shown(&self, seen: &Observation) -> Vec<ShownCommand> {
        let commands = self.commands(seen);
        commands.iter().map(|c| c.shown(capabilities(&c.node, seen))).collect()
    }

    /// What the journal is told when it is begun first.
    fn tells(&self, _seen: &Observation) -> Vec<NewEvent> {
        Vec::new()
    }

    /// What it leaves on nodes; to be committed before the first command.
    fn marks(&self, _seen: &Observation) -> Vec<Mark> {
        Vec::new()
    }

    /// Marks that go with its success, where the node cannot show that they are gone.
    fn clears(&self) -> Vec<Mark> {
        Vec::new()
    }
}

impl Step {
    #[must_use]
    pub fn action(&self) -> &dyn Action {
        match self {
            Self::RestoreSettings(s) => s,
            Self::RewriteConfig(s) => s,
            Self::ResetNode(s) => s,
            Self::Forget(s) => s,
            Self::Configure(s) => s,
            Self::SetTemporary(s) => s,
            Self::ClaimSlots(s) => s,
            Self::Meet(s) => s,
            Self::Replicate(s) => s,
            Self::AwaitAgreement(s) => s,
            Self::AwaitSync(s) => s,
            Self::BumpEpoch(s) => s,
            Self::FailOver(s) => s,
            Self::Leave(s) => s,
            Self::MoveSlots(s) => s,
            Self::CancelSlotJobs(s) => s,
            Self::CopyFunctions(s) => s,
            Self::AwaitTrim(s) => s,
            Self::Follow(s) => s,
            Self::HandOver(s) => s,
            Self::HoldWrites(s) => s,
            Self::ReleaseWrites(s) => s,
            Self::Watch(s) => s,
            Self::AwaitWatch(s) => s,
            Self::Unwatch(s) => s,
            Self::ForgetGhosts(s) => s,
            Self::AwaitChoice(s) => s,
            Self::SwitchOver(s) => s,
        }
    }

    /// The move, if it is one.
    #[must_use]
    pub fn moves(&self) -> Option<&slots::MoveSlots> {
        match self {
            Self::MoveSlots(step) => Some(step),
            Self::ClaimSlots(_)
            | Self::RestoreSettings(_)
            | Self::RewriteConfig(_)
            | Self::ResetNode(_)
            | Self::Forget(_)
            | Self::Configure(_)
            | Self::SetTemporary(_)
            | Self::Meet(_)
            | Self::Replicate(_)
            | Self::AwaitAgreement(_)
            | Self::AwaitSync(_)
            | Self::BumpEpoch(_)
            | Self::FailOver(_)
            | Self::CancelSlotJobs(_)
            | Self::CopyFunctions(_)
            | Self::AwaitTrim(_)
            | Self::Follow(_)
            | Self::HandOver(_)
            | Self::HoldWrites(_)
            | Self::ReleaseWrites(_)
            | Self::Watch(_)
            | Self::AwaitWatch(_)
            | Self::Unwatch(_)
            | Self::ForgetGhosts(_)
            | Self::AwaitChoice(_)
            | Self::SwitchOver(_)
            | Self::Leave(_) => None,
        }
    }

    /// The slots that somebody is to serve after it.
    #[must_use]
    pub fn slots(&self) -> Option<&SlotSet> {
        match self {
            Self::ClaimSlots(step) => Some(&step.slots),
            Self::MoveSlots(step) => Some(&step.slots),
            Self::RestoreSettings(_)
            | Self::RewriteConfig(_)
            | Self::ResetNode(_)
            | Self::Forget(_)
            | Self::Configure(_)
            | Self::SetTemporary(_)
            | Self::Meet(_)
            | Self::Replicate(_)
            | Self::AwaitAgreement(_)
            | Self::AwaitSync(_)
            | Self::BumpEpoch(_)
            | Self::FailOver(_)
            | Self::CancelSlotJobs(_)
            | Self::CopyFunctions(_)
            | Self::AwaitTrim(_)
            | Self::Follow(_)
            | Self::HandOver(_)
            | Self::HoldWrites(_)
            | Self::ReleaseWrites(_)
            | Self::Watch(_)
            | Self::AwaitWatch(_)
            | Self::Unwatch(_)
            | Self::ForgetGhosts(_)
            | Self::AwaitChoice(_)
            | Self::SwitchOver(_)
            | Self::Leave(_) => None,
        }
    }

    /// The kind's name, as the API shows it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::RestoreSettings(_) => "restore_settings",
            Self::RewriteConfig(_) => "rewrite_config",
            Self::ResetNode(_) => "reset_node",
            Self::Forget(_) => "forget",
            Self::Configure(_) => "configure",
            Self::SetTemporary(_) => "set_temporary",
            Self::ClaimSlots(_) => "claim_slots",
            Self::Meet(_) => "meet",
            Self::Replicate(_) => "replicate",
            Self::AwaitAgreement(_) => "await_agreement",
            Self::AwaitSync(_) => "await_sync",
            Self::BumpEpoch(_) => "bump_epoch",
            Self::FailOver(_) => "fail_over",
            Self::Leave(_) => "leave",
            Self::MoveSlots(_) => "move_slots",
            Self::CancelSlotJobs(_) => "cancel_slot_jobs",
            Self::CopyFunctions(_) => "copy_functions",
            Self::AwaitTrim(_) => "await_trim",
            Self::Follow(_) => "follow",
            Self::HandOver(_) => "hand_over",
            Self::HoldWrites(_) => "hold_writes",
            Self::ReleaseWrites(_) => "release_writes",
            Self::Watch(_) => "watch",
            Self::AwaitWatch(_) => "await_watch",
            Self::Unwatch(_) => "unwatch",
            Self::ForgetGhosts(_) => "forget_ghosts",
            Self::AwaitChoice(_) => "await_choice",
            Self::SwitchOver(_) => "switch_over",
        }
    }
}

impl Wait {
    /// Waits for nodes that do not answer.
    #[must_use]
    pub fn for_nodes(nodes: Vec<Address>, seen: &Observation) -> Self {
        let words: Vec<_> = nodes.iter().map(|n| silence(n, seen)).collect();
        let total = nodes.len();
        // To load what is on the disk takes as long as it takes.
        let loads = nodes.iter().all(|n| seen.report(n).is_some_and(|r| r.loading));
        let reason = if loads { WaitingFor::Sync } else { WaitingFor::Node };
        Self { reason, nodes, why: words.join("; "), done: 0, total }
    }

    /// Waits until gossip has told one node something.
    #[must_use]
    pub fn for_gossip(node: &Address, why: String) -> Self {
        let reason = WaitingFor::Convergence;
        Self { reason, nodes: vec![node.clone()], why, done: 0, total: 1 }
    }
}

/// What a node's version can do; of one that was not seen, the least.
fn capabilities(node: &Address, seen: &Observation) -> Capabilities {
    let oldest = Capabilities::of(Flavor::Redis, Version::new(6, 2, 0));
    seen.report(node).map_or(oldest, Report::capabilities)
}

fn silence(node: &Address, seen: &Observation) -> String {
    match seen.sighting(node) {
        Sighting::Silent(s) => format!("{node} does not answer ({})", s.message),
        Sighting::Seen(report) if report.loading => format!("{node} loads its data"),
        Sighting::Seen(_) | Sighting::Unknown => format!("{node} was not seen yet"),
    }
}

/// `Err` is the answer for a node that cannot be judged since it was not seen.
fn seen_or_wait<'a>(
    node: &Address,
    seen: &'a Observation,
) -> Result<&'a super::observation::Report, Check> {
    let report = seen.report(node).filter(|r| !r.loading);
    report.ok_or_else(|| Check::Waiting(Wait::for_nodes(vec![node.clone()], seen)))
}
