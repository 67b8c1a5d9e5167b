//! What can happen to a lone shard that no quorum keeps from it: two nodes that take writes, and a
//! primary that was started anew with nothing.

use std::collections::BTreeSet;

use serde_json::json;

use super::{Finding, Remedy, Rule, Severity, Subject};
use crate::domain::lineage::{self, Claim};
use crate::domain::node::Address;
use crate::domain::observation::{EmptiedMark, Mark, Observation, Report, Role};
use crate::domain::topology::{Shard, Topology};

#[must_use]
pub fn findings(want: &Topology, seen: &Observation) -> Vec<Finding> {
    let Some(shard) = want.layout.lone() else { return vec![] };
    split(shard, seen).into_iter().chain(emptied(shard, seen)).collect()
}

/// Nodes that follow the primary and are none of the topology: one that was replaced while it was dead
/// comes back like this. It does no harm, but nobody looks after it.
#[must_use]
pub fn strange_replicas(want: &Topology, seen: &Observation) -> Vec<Finding> {
    let Some(shard) = want.layout.lone() else { return vec![] };
    let primary = lineage::primary_of(shard, seen);
    let Some((primary, report)) = primary.settled().and_then(|p| Some((p, seen.report(p)?))) else {
        return vec![];
    };
    let ours: BTreeSet<&Address> = want.spec.nodes().iter().map(|n| &n.address).collect();
    let attached = report.replication.replicas.iter().map(|a| &a.address);
    let finding = |node: &Address| {
        Finding {
        rule: Rule::StrangeReplica,
        severity: Severity::Info,
        title: format!("{node} follows {primary} and is no node of this topology"),
        detail: format!("{primary} lists {node} among its replicas"),
        evidence: json!({ "node": node, "primary": primary }),
        subject: Subject { node: Some(node.clone()), shard: Some(shard.id) },
        remedy: Remedy {
            text: "Detach it (REPLICAOF NO ONE) and empty it (FLUSHALL); add_replica takes it then, if it is to be one. Leave it where somebody keeps it on purpose.".to_owned(),
            intent: None,
        },
    }
    };
    // Whoever has a mark was taken out by a plan: `returned` tells of it.
    let marked = |node: &Address| seen.marks_on(node).any(|m| m.what.identity().is_some());
    attached.filter(|node| !ours.contains(node) && !marked(node)).map(finding).collect()
}

fn split(shard: &Shard, seen: &Observation) -> Option<Finding> {
    let claims = lineage::rivals(shard, seen);
    // Whoever has most of the data, not whoever came back with nothing.
    let fullest = claims.iter().max_by_key(|c| {
        let report = seen.report(&c.node);
        report.map(|r| (r.keys > 0, r.replication.replicas.len(), r.keys, r.replication.offset))
    })?;
    let names: Vec<String> = claims.iter().map(|c| c.node.to_string()).collect();
    let told: Vec<String> = claims.iter().map(Claim::to_string).collect();
    let text = format!(
        "Decide whose data counts, and ask for a failover with method force that names it in `to`, for example {}; what the others took meanwhile is lost. Where Reeve made the failover itself, repair does the rest.",
        fullest.node
    );
    Some(Finding {
        rule: Rule::SplitBrain,
        severity: Severity::Critical,
        title: format!("{} take writes at the same time", names.join(" and ")),
        detail: told.join("; "),
        evidence: json!({ "claims": claims }),
        subject: Subject { node: None, shard: Some(shard.id) },
        remedy: Remedy { text, intent: None },
    })
}

fn emptied<'a>(shard: &'a Shard, seen: &'a Observation) -> impl Iterator<Item = Finding> + 'a {
    let finding = |mark: &EmptiedMark, node: &Address| {
        let keys =
            |a: &&Address| seen.report(a).is_some_and(|r| r.keys > 0 && r.role == Role::Replica);
        let full: Vec<_> = shard.members.iter().filter(keys).collect();
        let still = match full.first() {
            Some(first) => format!("{first} still holds keys"),
            None => "its replicas have copied that by now".to_owned(),
        };
        let text = match full.first() {
            Some(first) => format!("Have {first} take over before it copies the empty primary: {{\"kind\": \"failover\", \"method\": \"force\", \"to\": \"{first}\"}}."),
            None => "Restore the data from a snapshot. Start data nodes as replicas of a sibling, or with persistence, so that none comes back as an empty primary.".to_owned(),
        };
        Finding {
            rule: Rule::EmptiedPrimary,
            severity: Severity::Critical,
            title: format!("{node} was started anew without the {} keys that it had", mark.keys),
            detail: format!(
                "The process of {node} is another one and has none of the {} keys that the one before had at offset {}; {still}",
                mark.keys, mark.offset
            ),
            evidence: json!({
                "node": node, "run_id": mark.run_id, "keys_before": mark.keys,
                "offset_before": mark.offset, "nodes_with_keys": full,
            }),
            subject: Subject { node: Some(node.clone()), shard: Some(shard.id) },
            remedy: Remedy { text, intent: None },
        }
    };
    // Beside another one with the data it is one that came back: it is to follow, and not to be replaced.
    let another = |node: &Address| {
        let leads = |r: &Report| r.role == Role::Primary && r.keys > 0;
        shard.members.iter().any(|m| m != node && seen.report(m).is_some_and(leads))
    };
    let alone = move |m: &&Mark| !another(&m.node);
    let of_shard = seen.marks.iter().filter(|m| shard.members.contains(&m.node));
    of_shard.filter(alone).filter_map(move |m| Some(finding(m.what.emptied()?, &m.node)))
}
