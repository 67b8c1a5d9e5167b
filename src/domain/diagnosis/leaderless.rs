//! Shards without a primary that answers: nobody takes their writes. Where nodes elect somebody that
//! is soon over, so it counts only when it lasts.

use serde_json::json;

use super::{Finding, Remedy, Rule, Severity, Subject};
use crate::domain::lineage;
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Report, Role, Sighting};
use crate::domain::topology::{Layout, Shard, Topology};
use crate::domain::view::{self, Primary};

/// One for each such shard. Two that claim to be primary are another matter.
#[must_use]
pub fn findings(want: &Topology, seen: &Observation) -> Vec<Finding> {
    let leads = |primary: &Address| seen.report(primary).is_some();
    let without = |shard: &Shard, slots: &_| match view::primary_of(shard, slots, seen) {
        Primary::Settled(primary) => !leads(&primary),
        Primary::Contested(_) => false,
        Primary::None => true,
    };
    let shards = want.layout.shards().into_iter();
    let without = shards.filter(|(shard, slots)| without(shard, slots));
    without.map(|(shard, _)| finding(want, shard, seen)).collect()
}

fn finding(want: &Topology, shard: &Shard, seen: &Observation) -> Finding {
    let told: Vec<String> = shard.members.iter().map(|m| stands(m, seen)).collect();
    Finding {
        rule: Rule::NoPrimary,
        severity: Severity::Critical,
        title: format!("Shard {} has no primary that answers", shard.index),
        detail: format!("{}; nobody takes its writes", told.join("; ")),
        evidence: json!({ "shard": shard.id, "members": told }),
        subject: Subject { node: None, shard: Some(shard.id) },
        remedy: Remedy { text: remedy(want, shard, seen), intent: None },
    }
}

/// What a member says of itself.
fn stands(node: &Address, seen: &Observation) -> String {
    let report = match seen.sighting(node) {
        Sighting::Silent(silence) => {
            return format!("{node} does not answer ({})", silence.message);
        }
        Sighting::Unknown => return format!("{node} was not seen yet"),
        Sighting::Seen(report) => report,
    };
    match (&report.role, &report.replication.primary) {
        (Role::Replica, Some(primary)) if report.replication.link_up => {
            format!("{node} follows {primary}")
        }
        (Role::Replica, Some(primary)) => format!("{node} waits for {primary}"),
        (Role::Replica, None) => format!("{node} is a replica of nobody"),
        (Role::Primary | Role::Sentinel, _) => format!("{node} has no slots"),
    }
}

fn remedy(want: &Topology, shard: &Shard, seen: &Observation) -> String {
    let offset = |(_, report): &(&Address, &Report)| report.replication.offset;
    let there = shard.members.iter().filter_map(|m| Some((m, seen.report(m)?)));
    let returned = lineage::returned(shard, seen);
    let returned = returned.filter(|_| want.layout.sentinels().is_empty());
    let fullest = returned.clone().or_else(|| Some(there.max_by_key(offset)?.0.clone()));
    let Some(fullest) = fullest else {
        return "No node of the shard answers: start them, those with the data first.".to_owned();
    };
    let force = format!(
        "{{\"kind\": \"failover\", \"shard\": \"{}\", \"method\": \"force\", \"to\": \"{fullest}\"}}",
        shard.index
    );
    match want.layout {
        Layout::Cluster { .. } => format!(
            "The cluster elects a replica by itself while a majority of its primaries answers: start nodes that are down. Where no replica was elected, ask for {force}, or for method takeover without a majority; what the old primary took last is lost."
        ),
        Layout::Sentinel { .. } => format!(
            "Sentinels promote a replica by themselves while their quorum and a majority of them answer: see that they run. Or ask for {force}; what the old primary took last is lost."
        ),
        Layout::Replication { .. } | Layout::Gone if returned.is_some() => format!(
            "All that answer wait for each other. Ask for {force}: {fullest} led before, and has what the others copied of it."
        ),
        Layout::Replication { .. } | Layout::Gone => format!(
            "Start the old primary again, or ask for {force}: {fullest} has most of the data, and what only the old primary had is lost."
        ),
    }
}
