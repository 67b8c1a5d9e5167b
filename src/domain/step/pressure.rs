//! Whether a node can take more keys just now. One whose replicas fall behind would lose what it took
//! when it fails, and one that is full refuses it; both are waited for.

use super::Wait;
use super::slots::End;
use crate::domain::node::Address;
use crate::domain::observation::{ClusterView, Memory, Observation, Peer, Report};
use crate::domain::plan::WaitingFor;

/// How far a replica may be behind: well below what a server keeps for it before it cuts it off
/// (`client-output-buffer-limit`, 64 MiB for a minute).
const LAG_BYTES: u64 = 32 << 20;
/// For how long it may not have heard of its primary, which speaks to it at least each ten seconds.
const LAG_SECONDS: u64 = 15;

/// What more keys have to wait for at `to`, if they do.
pub fn pressure(to: &End, seen: &Observation) -> Option<Wait> {
    let report = seen.report(&to.address)?;
    let memory = || {
        let why = format!(
            "{} is full: it uses {} bytes of its maxmemory of {}",
            to.address, report.memory.used_bytes, report.memory.max_bytes
        );
        (room(&report.memory) == Some(0)).then(|| wait(WaitingFor::Memory, &to.address, why))
    };
    memory().or_else(|| behind(to, report, seen))
}

/// How many more bytes a node should take; none where nothing limits it. What it keeps free is for
/// writes of its clients meanwhile.
#[must_use]
pub fn room(memory: &Memory) -> Option<u64> {
    let limited = memory.max_bytes > 0 && !memory.evicts;
    let kept_free = memory.max_bytes / 50;
    limited.then(|| memory.max_bytes.saturating_sub(memory.used_bytes).saturating_sub(kept_free))
}

/// A replica that answers and is not where it should be. One that does not answer is for others to
/// judge.
fn behind(to: &End, report: &Report, seen: &Observation) -> Option<Wait> {
    let follows =
        |v: &ClusterView| v.me().and_then(|me: &Peer| me.primary.as_ref()) == Some(&to.id);
    let replicas = seen.nodes.keys().filter(|a| seen.view(a).is_some_and(follows));
    let of = |(node, replica): (&Address, &Report)| {
        let link = &replica.replication;
        let lag = report.replication.offset.saturating_sub(link.offset);
        let silence = link.last_io_seconds.unwrap_or(0);
        let to = &to.address;
        if link.sync_in_progress {
            let why = format!("{node} takes a full copy from {to}");
            Some(wait(WaitingFor::Sync, node, why))
        } else if !link.link_up {
            let why = format!("{node} has no replication link to {to}");
            Some(wait(WaitingFor::ReplicaLag, node, why))
        } else if lag > LAG_BYTES {
            let why = format!("{node} is {lag} bytes behind {to}");
            Some(wait(WaitingFor::ReplicaLag, node, why))
        } else if lag > 0 && silence > LAG_SECONDS {
            let why = format!("{node} has not heard of {to} for {silence} seconds");
            Some(wait(WaitingFor::ReplicaLag, node, why))
        } else {
            None
        }
    };
    replicas.filter_map(|node| Some((node, seen.report(node)?))).find_map(of)
}

fn wait(reason: WaitingFor, node: &Address, why: String) -> Wait {
    Wait { reason, nodes: vec![node.clone()], why, done: 0, total: 1 }
}
