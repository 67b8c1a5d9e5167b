//! Carries one step out: the only code that changes a node.
//!
//! A step's commands are data that the domain laid out from what was seen, so there is nothing left
//! to decide here but which refusals are none. An `Ok` says that the commands were taken; whether
//! the step is done is for the next look to say.

use std::collections::BTreeMap;

use crate::domain::fault::{Fault, Retry};
use crate::domain::node::Address;
use crate::domain::observation::Observation;
use crate::domain::placement::Warning;
use crate::domain::step::Step;
use crate::domain::step::command::Verb;
use crate::engine::look::{Logins, target};
use crate::fleet::{Fence, Fleet, Target};

/// Sends a step's commands; the warnings are what a person should know although it went well.
pub async fn apply(
    fleet: &dyn Fleet,
    step: &Step,
    seen: &Observation,
    logins: &Logins,
    fence: Fence,
) -> Result<Option<Warning>, Fault> {
    let mut by_node: BTreeMap<Address, Vec<Verb>> = BTreeMap::new();
    for command in step.action().commands(seen) {
        by_node.entry(command.node).or_default().push(command.verb);
    }
    for (node, verbs) in by_node {
        let target = Target { fence: Some(fence), ..target(&node, logins) };
        if let Err(error) = fleet.send(&target, &verbs).await {
            return forgive(step, error.into());
        }
    }
    Ok(None)
}

/// Refusals that do not stop a step.
fn forgive(step: &Step, fault: Fault) -> Result<Option<Warning>, Fault> {
    match step {
        // The settings hold until the node restarts, and nothing can be done from here.
        Step::RewriteConfig(s) if fault.retry() == Retry::Never => Ok(Some(Warning {
            code: "not_persisted".to_owned(),
            message: format!(
                "{} cannot write its config file ({}): its settings are lost when it restarts; put them where it is started",
                s.node, fault.message
            ),
        })),
        // Gossip may have withdrawn what the last look showed; the next look tells.
        Step::Replicate(_) if fault.message.contains("Unknown node") => Ok(None),
        // An election went before; the next look tells who is primary.
        Step::FailOver(_)
            if fault.message.contains("to a replica")
                || fault.message.contains("is down or failed") =>
        {
            Ok(None)
        }
        // Somebody was quicker; the next look tells what it watches.
        Step::Watch(_) if fault.message.contains("Duplicate master name") => Ok(None),
        Step::Unwatch(_) if fault.message.contains("No such master") => Ok(None),
        // It is the last of their commands; a login that may not end clients goes without.
        Step::Leave(_) | Step::ResetNode(_)
            if fault.code == "NOPERM" && fault.message.contains("'client") =>
        {
            Ok(None)
        }
        // They are over already.
        Step::CancelSlotJobs(_) if fault.message.contains("No migrations ongoing") => Ok(None),
        // Whoever does not know it need not forget it.
        Step::Forget(_) if fault.message.contains("Unknown node") => Ok(None),
        Step::RestoreSettings(_)
        | Step::RewriteConfig(_)
        | Step::ResetNode(_)
        | Step::Forget(_)
        | Step::Configure(_)
        | Step::SetTemporary(_)
        | Step::ClaimSlots(_)
        | Step::Meet(_)
        | Step::Replicate(_)
        | Step::AwaitAgreement(_)
        | Step::AwaitSync(_)
        | Step::BumpEpoch(_)
        | Step::FailOver(_)
        | Step::MoveSlots(_)
        | Step::CancelSlotJobs(_)
        | Step::CopyFunctions(_)
        | Step::AwaitTrim(_)
        | Step::Follow(_)
        | Step::HandOver(_)
        | Step::HoldWrites(_)
        | Step::ReleaseWrites(_)
        | Step::Watch(_)
        | Step::AwaitWatch(_)
        | Step::Unwatch(_)
        | Step::ForgetGhosts(_)
        | Step::AwaitChoice(_)
        | Step::SwitchOver(_)
        | Step::Leave(_) => Err(fault),
    }
}
