//! Sentinels that do not agree: clients that ask different ones write to different nodes.

use serde_json::json;

use super::{Finding, Remedy, Rule, Severity, Subject};
use crate::domain::observation::Observation;
use crate::domain::spec::Spec;
use crate::domain::topology::Topology;

/// What Sentinels say that name different primaries; nothing where all name one. After a failover they
/// differ for a moment, so it counts only when it lasts.
#[must_use]
pub fn disagreement(want: &Topology, seen: &Observation) -> Option<Finding> {
    let (Spec::Sentinel(spec), Some(shard)) = (&want.spec, want.layout.lone()) else { return None };
    let sentinels = want.layout.sentinels().iter();
    let told: Vec<_> =
        sentinels.filter_map(|s| Some((s, seen.watch(s, &spec.master_name)?))).collect();
    let named = |i: usize| told.get(i).and_then(|(_, w)| w.primary_in(seen));
    if (1..told.len()).all(|i| named(i) == named(0)) {
        return None;
    }
    let word = |(sentinel, watch): &(&_, &crate::domain::sentinel::Watch)| {
        let primary = watch.primary_in(seen).map_or("nobody".to_owned(), ToString::to_string);
        format!("{sentinel} names {primary} at epoch {}", watch.epoch)
    };
    let words: Vec<String> = told.iter().map(word).collect();
    let evidence = told.iter().map(|(sentinel, watch)| {
        let primary = watch.primary_in(seen);
        let report = primary.and_then(|p| seen.report(p));
        json!({
            "sentinel": sentinel, "primary": primary, "epoch": watch.epoch,
            "role": report.map(|r| r.role), "offset": report.map(|r| r.replication.offset),
            "replid": report.map(|r| &r.replication.replid),
            "connected_clients": report.map(|r| r.connected_clients),
        })
    });
    Some(Finding {
        rule: Rule::SentinelsDisagree,
        severity: Severity::Critical,
        title: "The Sentinels name different primaries".to_owned(),
        detail: words.join("; "),
        evidence: json!({ "sentinels": evidence.collect::<Vec<_>>() }),
        subject: Subject { node: None, shard: Some(shard.id) },
        remedy: Remedy {
            text: "See that the Sentinels reach the data nodes and each other: the one with the greatest epoch is right, and the others learn of it by what is published there.".to_owned(),
            intent: None,
        },
    })
}
