//! Copies function libraries: what one node dumps is restored on another, and what is too much of it
//! is deleted there. That it is done is for the next look to say.

use std::time::Duration;

use super::look::{Logins, target};
use super::mover::Side;
use crate::domain::fault::Fault;
use crate::domain::functions::drift;
use crate::domain::moving::talk::{Answer, Lane, Saying};
use crate::domain::node::Address;
use crate::domain::observation::Observation;
use crate::domain::placement::Warning;
use crate::domain::step::functions::CopyFunctions;
use crate::fleet::{Fence, Fleet, Target};

/// How long either node may take: to compile what is restored takes a while.
pub(super) const WITHIN: Duration = Duration::from_secs(5);

/// The warning is what a person should know of libraries that were left.
pub(super) async fn copy(
    fleet: &dyn Fleet,
    step: &CopyFunctions,
    seen: &Observation,
    logins: &Logins,
    fence: Fence,
) -> Result<Option<Warning>, Fault> {
    let side = |node: &Address| {
        let id = seen.report(node)?.identity();
        let target = Target { fence: Some(fence), ..target(node, logins) };
        Some(Side { target, id })
    };
    // The next look tells who is there.
    let (Some(from), Some(node)) = (side(&step.from), side(&step.node)) else { return Ok(None) };
    let dumped = from.talk(fleet, Lane::Control, WITHIN, &[Saying::DumpFunctions]).await?;
    for answer in dumped {
        let Answer::Bytes(dump) = answer else { return Err(from.unexpected(answer)) };
        let mut sayings = vec![Saying::RestoreFunctions(dump)];
        sayings.extend(step.excess().into_keys().map(Saying::DeleteLibrary));
        for answer in node.talk(fleet, Lane::Control, WITHIN, &sayings).await? {
            node.done(answer)?;
        }
    }
    Ok(drift(&step.disputed))
}
