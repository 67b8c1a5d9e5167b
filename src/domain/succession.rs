//! Who can take over from a primary, and what that costs.

use std::collections::BTreeSet;

use super::node::{Address, ClusterNodeId};
use super::observation::{Observation, Report, Role, Sighting};
use super::step::command::FailoverMethod;
use super::step::failover::LAG_AT_MOST;

/// What a graceful failover takes beside the time to catch up, and bytes that are caught up in a
/// millisecond; measured over loopback (the write gap was 44 to 52 ms).
const PAUSE_MS: u64 = 50;
/// The same outside of clusters, where Reeve does it.
const LONE_PAUSE_MS: u64 = 10;
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
    // Of those that have most of the data the first, as the layout has them. Outside of clusters whoever
    // runs the nodes may say who is to go first.
    let rank = |m: &&Address| {
        let report = seen.report(m);
        let alone = report.filter(|r| r.cluster.is_none());
        let priority = alone.and_then(|r| r.replication.priority).unwrap_or(100);
        (std::cmp::Reverse(priority), report.map_or(0, |r| r.replication.offset))
    };
    let found = fit.rev().max_by_key(rank).cloned();
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
    let alone = seen.report(from).is_some_and(|r| !r.cluster_enabled);
    let pause = if alone { LONE_PAUSE_MS } else { PAUSE_MS };
    (method == FailoverMethod::Graceful).then_some(pause + lag / BYTES_PER_MS)
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
    let follows = match &report.cluster {
        Some(view) => view.me().and_then(|me| me.primary.as_ref()) == Some(from_id),
        None => report.replication.primary.as_ref() == Some(from),
    };
    let ahead = seen.report(from).map_or(0, |r| r.replication.offset);
    let lag = ahead.saturating_sub(report.replication.offset);
    if report.loading {
        Some("still loads its data: try again when it is done".to_owned())
    } else if report.role != Role::Replica || !follows {
        Some(format!("is no replica of {from}"))
    } else if report.replication.sync_in_progress {
        Some(format!("still takes a full copy from {from}: try again when it is done"))
    } else if report.cluster.is_none() && report.replication.priority == Some(0) {
        Some("has replica-priority 0, by which it is never to be promoted".to_owned())
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
