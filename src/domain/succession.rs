//! Who can take over from a primary, and what that costs.

use std::collections::BTreeSet;

use super::node::{Address, ClusterNodeId};
use super::observation::{Observation, Report, Role, Sighting};
use super::step::command::FailoverMethod;
use super::step::failover::LAG_AT_MOST;

/// What a graceful failover takes beside the time to catch up, and bytes that are caught up in a
/// millisecond; measured over loopback (the write gap was 44 to 52 ms).
const PAUSE_MS: u64 = 50;
const BYTES_PER_MS: u64 = 100_000;

/// The fittest of some nodes to take over from a primary, one that is not drained where there is one;
/// or what each of them lacks.
pub fn best(
    members: &[Address],
    drained: &BTreeSet<Address>,
    from: &Address,
    from_id: &ClusterNodeId,
    method: FailoverMethod,
    seen: &Observation,
) -> Result<Address, Vec<String>> {
    let standing: Vec<Address> = members.iter().filter(|m| !drained.contains(m)).cloned().collect();
    fittest(&standing, from, from_id, method, seen)
        .or_else(|_| fittest(members, from, from_id, method, seen))
}

/// The fittest of some nodes to take over from a primary, or what each of them lacks.
pub fn fittest(
    members: &[Address],
    from: &Address,
    from_id: &ClusterNodeId,
    method: FailoverMethod,
    seen: &Observation,
) -> Result<Address, Vec<String>> {
    let others = || members.iter().filter(|m| *m != from);
    let fit = others().filter(|m| lack(m, from, from_id, method, seen).is_none());
    // Of those that have most of the data the first, as the layout has them.
    let offset = |m: &&Address| seen.report(m).map_or(0, |r| r.replication.offset);
    let found = fit.rev().max_by_key(offset).cloned();
    found.ok_or_else(|| {
        let why = |m| Some(format!("{m} {}", lack(m, from, from_id, method, seen)?));
        others().filter_map(why).collect()
    })
}

/// How long writes are expected to wait for a graceful failover.
#[must_use]
pub fn expected(
    method: FailoverMethod,
    from: &Address,
    to: &Address,
    seen: &Observation,
) -> Option<u64> {
    let offset = |node| seen.report(node).map_or(0, |r: &Report| r.replication.offset);
    // One that comes has caught up before.
    let follows = seen.report(to).is_some_and(|r| r.role == Role::Replica);
    let lag = if follows { offset(from).saturating_sub(offset(to)) } else { 0 };
    (method == FailoverMethod::Graceful).then_some(PAUSE_MS + lag / BYTES_PER_MS)
}

/// Why a node cannot take over, if it cannot; continues a sentence that begins with its address.
#[must_use]
pub fn lack(
    node: &Address,
    from: &Address,
    from_id: &ClusterNodeId,
    method: FailoverMethod,
    seen: &Observation,
) -> Option<String> {
    let report = match seen.sighting(node) {
        Sighting::Seen(report) => report,
        Sighting::Silent(s) => return Some(format!("does not answer ({})", s.message)),
        Sighting::Unknown => return Some("was not looked at".to_owned()),
    };
    let followed = report.cluster.as_ref().and_then(|v| v.me()?.primary.as_ref());
    let ahead = seen.report(from).map_or(0, |r| r.replication.offset);
    let lag = ahead.saturating_sub(report.replication.offset);
    if report.loading {
        Some("still loads its data: try again when it is done".to_owned())
    } else if report.role != Role::Replica || followed != Some(from_id) {
        Some(format!("is no replica of {from}"))
    } else if report.replication.sync_in_progress {
        Some(format!("still takes a full copy from {from}: try again when it is done"))
    } else if method == FailoverMethod::Graceful && seen.report(from).is_none() {
        Some(format!(
            "cannot take over gracefully while {from} does not answer: ask for method force"
        ))
    } else if method == FailoverMethod::Graceful && !report.replication.link_up {
        Some(format!("has no replication link to {from}: mend that first"))
    } else if method == FailoverMethod::Graceful && lag > LAG_AT_MOST {
        Some(format!(
            "is {lag} bytes behind {from}, and at most {LAG_AT_MOST} may be left when writes pause: try again when it has caught up"
        ))
    } else {
        None
    }
}
