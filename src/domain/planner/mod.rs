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

use super::hazard::Hazard;
use super::id::ShardId;
use super::node::{Address, Capabilities, ClusterNodeId, Flavor, Version};
use super::observation::{Mark, Observation};
use super::policy::Policy;
use super::refusal::FieldError;
use super::step::command::ShownCommand;
use super::step::{Blocker, Check, Step, StepKey, Wait};
use super::topology::Topology;

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
}

/// A node that may be emptied, while it is still what was meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetTerm {
    /// The identity to be rid of: a hard reset gives the node another one.
    pub identity: ClusterNodeId,
    /// The process that was looked at.
    pub run_id: String,
    /// How many keys it had.
    pub keys: u64,
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
    for stage in rules::stages(question.goal) {
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

    /// How the plan differs from nothing to do, for people.
    #[must_use]
    pub fn differences(&self) -> Vec<FieldError> {
        let steps = self.steps.iter().map(|s| FieldError::new("", s.step.action().title()));
        let blockers = self.blockers.iter().map(|b| FieldError::new("", b.why.clone()));
        steps.chain(blockers).collect()
    }
}

/// Folds the effects of the steps until nothing is left. Waits are taken to end well.
#[must_use]
pub fn forecast(question: &Question) -> Forecast {
    let mut forecast = Forecast { steps: vec![], blockers: vec![], world: question.seen.clone() };
    // Each step is taken at most once, so a world that no step improves ends the loop.
    let mut taken = BTreeSet::new();
    loop {
        let asked = Question { seen: &forecast.world, ..*question };
        let settled = settled_marks(&asked);
        let steps = match next(&asked) {
            Next::Converged => break,
            Next::Stuck(blockers) => {
                forecast.blockers = blockers;
                break;
            }
            Next::Act(steps) => steps,
            Next::Wait(waits) => waits.into_iter().map(|(step, _)| step).collect(),
        };
        forecast.world.marks.retain(|m| !settled.contains(m));
        let mut fresh = false;
        for step in steps {
            let action = step.action();
            if !taken.insert(action.key()) {
                continue;
            }
            fresh = true;
            let commands = action.commands(&forecast.world);
            let shown = commands.iter().map(|c| c.shown(capabilities(&c.node, &forecast.world)));
            let shown = shown.collect();
            action.effect(&mut forecast.world);
            forecast.steps.push(ForecastStep { key: action.key(), step, commands: shown });
        }
        if !fresh {
            break;
        }
    }
    forecast
}

fn capabilities(node: &Address, seen: &Observation) -> Capabilities {
    let oldest = Capabilities::of(Flavor::Redis, Version::new(6, 2, 0));
    seen.report(node).map_or(oldest, super::observation::Report::capabilities)
}
