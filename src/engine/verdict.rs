//! How a plan's failure is told: its code, its words, and what to do next.

use crate::domain::fault::{ANOTHER_NODE, Fault, NO_REPLY, TARGET_FULL, UNREACHABLE};
use crate::domain::plan::{PlanError, WaitingFor};
use crate::domain::step::{Blocker, Step, Wait};

/// A command that failed.
pub(super) fn failed(fault: &Fault) -> PlanError {
    let code = match fault.code.as_str() {
        UNREACHABLE | NO_REPLY | ANOTHER_NODE | TARGET_FULL | "no_effect" => fault.code.clone(),
        _ => fault.reference().unwrap_or("rejected").to_owned(),
    };
    let message = match code.as_str() {
        UNREACHABLE | NO_REPLY | ANOTHER_NODE | TARGET_FULL | "no_effect" => fault.message.clone(),
        _ => format!("{} {}", fault.code, fault.message),
    };
    PlanError { code, message, node: fault.node.clone(), recovery: fault.recovery().to_owned() }
}

/// Commands that were taken and left no trace.
pub(super) fn no_effect(step: &Step) -> Fault {
    let node = step.action().nodes().into_iter().next();
    Fault {
        code: "no_effect".to_owned(),
        message: format!(
            "the node took the commands of “{}”, but does not show their effect",
            step.action().title()
        ),
        node,
    }
}

/// Steps that can never go on by themselves.
pub(super) fn blocked(blockers: &[Blocker]) -> PlanError {
    let whys: Vec<_> = blockers.iter().map(|b| b.why.as_str()).collect();
    let first = blockers.first();
    PlanError {
        code: first.map_or("blocked", |b| b.code).to_owned(),
        message: whys.join("; "),
        node: first.and_then(|b| b.node.clone()),
        recovery: first.map_or("", |b| b.recovery).to_owned(),
    }
}

/// A wait that took too long.
pub(super) fn timed_out(wait: &Wait) -> PlanError {
    let (code, recovery) = match wait.reason {
        WaitingFor::Node => (UNREACHABLE, "Bring the node back, then retry the plan."),
        WaitingFor::Memory => (
            TARGET_FULL,
            "Raise the node's maxmemory, or delete keys there; then retry the plan. What has moved stays.",
        ),
        WaitingFor::ReplicaLag => (
            "replica_lag",
            "See why the replica does not keep up (its link, its disk, a full CPU), then retry the plan. What has moved stays.",
        ),
        WaitingFor::Operator
        | WaitingFor::Consent
        | WaitingFor::Convergence
        | WaitingFor::Retry
        | WaitingFor::Hold
        | WaitingFor::Sync
        | WaitingFor::Preempted
        | WaitingFor::Stale => (
            "convergence_timeout",
            "See that every node reaches every other on its cluster bus port (the client port + 10000), then retry the plan.",
        ),
    };
    PlanError {
        code: code.to_owned(),
        message: wait.why.clone(),
        node: wait.nodes.first().cloned(),
        recovery: recovery.to_owned(),
    }
}
