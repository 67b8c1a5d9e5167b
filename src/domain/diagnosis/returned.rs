//! Nodes that were taken out while they did not answer, and are back: each holds what it had then, and
//! believes that it is a member still.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Finding, Remedy, Rule, Severity, Subject};
use crate::domain::intent::repair;
use crate::domain::node::Address;
use crate::domain::observation::Observation;
use crate::domain::planner::Leaver;
use crate::domain::topology::Topology;

/// `standing` are those that a plan was to take out and did not: that plan is gone on with.
#[must_use]
pub fn findings(
    want: &Topology,
    standing: &BTreeMap<Address, Leaver>,
    seen: &Observation,
) -> Vec<Finding> {
    let back = repair::returned(want, seen).into_keys();
    back.filter(|node| !standing.contains_key(node)).map(|node| finding(node, seen)).collect()
}

fn finding(node: Address, seen: &Observation) -> Finding {
    let keys = seen.report(&node).map_or(0, |report| report.keys);
    Finding {
        rule: Rule::ReturnedNode,
        severity: Severity::Warning,
        title: format!("{node} was taken out while it was dead, and is back"),
        detail: format!(
            "It still holds itself for a member and has {keys} keys; the members do not let it in. Clients that still have its address read what is old there"
        ),
        evidence: json!({ "node": node, "keys": keys }),
        subject: Subject { node: Some(node), shard: None },
        remedy: Remedy {
            text: "Make it blank with a repair; then add_replica or replace_node takes it. Or stop it.".to_owned(),
            intent: Some(json!({ "kind": "repair" })),
        },
    }
}
