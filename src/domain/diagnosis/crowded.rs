//! Primaries that failovers have brought together: a loss that the layout would survive takes so many
//! of them that no majority is left to elect anybody.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Finding, Remedy, Rule, Severity, Subject};
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Role};
use crate::domain::spec::NodeSpec;
use crate::domain::topology::{Layout, Shard, Topology};
use crate::domain::view::{self, Primary};

/// One for the whole cluster, with a handover that begins to spread them again. `None` while that cannot
/// be told, since a shard has no primary that answers: that is told otherwise.
#[must_use]
pub fn findings(want: &Topology, seen: &Observation) -> Option<Vec<Finding>> {
    let Layout::Cluster { .. } = want.layout else { return Some(vec![]) };
    let shards = want.layout.shards();
    let served = shards.iter().filter(|(_, slots)| !slots.is_empty());
    let led: Option<Vec<(&Shard, Address)>> = served
        .map(|&(shard, ref slots)| match view::primary_of(shard, slots, seen) {
            Primary::Settled(primary) if seen.report(&primary).is_some() => Some((shard, primary)),
            Primary::Settled(_) | Primary::Contested(_) | Primary::None => None,
        })
        .collect();
    let crowd = Crowd { places: want.places(), led: led?, seen };
    let finding = crowd.finding("zone", |place| &place.zone);
    Some(finding.or_else(|| crowd.finding("host", NodeSpec::machine)).into_iter().collect())
}

struct Crowd<'a> {
    places: BTreeMap<&'a Address, &'a NodeSpec>,
    /// Each shard, with its primary.
    led: Vec<(&'a Shard, Address)>,
    seen: &'a Observation,
}

impl Crowd<'_> {
    fn finding(&self, kind: &str, of: impl Fn(&NodeSpec) -> &str) -> Option<Finding> {
        let at = |node: &Address| self.places.get(node).map(|place| of(place).to_owned());
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (_, primary) in &self.led {
            *counts.entry(at(primary)?).or_default() += 1;
        }
        let (all, needed) = (self.led.len(), self.led.len() / 2 + 1);
        let fatal = |there: usize| there + needed > all;
        // Somebody else could lead a shard of the crowd, where that makes no other crowd.
        let moves = self.led.iter().flat_map(|(shard, primary)| {
            let here = at(primary).filter(|here| counts.get(here).is_some_and(|n| fatal(*n)));
            let better = |node: &&Address| {
                let there = at(node).filter(|there| here.as_ref().is_some_and(|h| h != there));
                there.is_some_and(|there| !fatal(counts.get(&there).map_or(1, |n| n + 1)))
            };
            let to: Vec<&Address> = shard.members.iter().filter(better).collect();
            to.into_iter().map(move |to| (*shard, primary, to))
        });
        let moves: Vec<(&Shard, &Address, &Address)> = moves.collect();
        let ready = moves.iter().find(|(_, primary, to)| self.follows(to, primary));
        let (shard, primary, to) = *ready.or_else(|| moves.first())?;
        let place = at(primary)?;
        let there = counts.get(&place).copied().unwrap_or(0);
        let left = all - there;
        let when = if ready.is_some() {
            "; a plan does it without losing a write."
        } else {
            ", when it follows again."
        };
        Some(Finding {
            rule: Rule::CrowdedPrimaries,
            severity: Severity::Warning,
            title: format!("The loss of {kind} {place} would leave no majority of primaries"),
            detail: format!(
                "{there} of {all} primaries are in {kind} {place}: without it {left} are left, and it takes {needed} to elect any replica, so the whole cluster would be down"
            ),
            evidence: json!({ "kind": kind, "place": place, "primaries": counts, "needed": needed }),
            subject: Subject::default(),
            remedy: Remedy {
                text: format!("Hand shard {} over to {to}, which is elsewhere{when}", shard.index),
                intent: ready.map(|_| {
                    json!({ "kind": "failover", "method": "graceful", "node": primary, "to": to })
                }),
            },
        })
    }

    fn follows(&self, node: &Address, primary: &Address) -> bool {
        self.seen.report(node).is_some_and(|r| {
            let follows = r.role == Role::Replica && r.replication.link_up;
            follows && r.replication.primary.as_ref() == Some(primary)
        })
    }
}
