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

/// One for the whole cluster, with the first handover that spreads them again. None while a shard has
/// no primary: that is told otherwise.
#[must_use]
pub fn finding(want: &Topology, seen: &Observation) -> Option<Finding> {
    let Layout::Cluster { .. } = want.layout else { return None };
    let shards = want.layout.shards();
    let served = shards.iter().filter(|(_, slots)| !slots.is_empty());
    let led: Option<Vec<(&Shard, Address)>> = served
        .map(|&(shard, ref slots)| match view::primary_of(shard, slots, seen) {
            Primary::Settled(primary) if seen.report(&primary).is_some() => Some((shard, primary)),
            Primary::Settled(_) | Primary::Contested(_) | Primary::None => None,
        })
        .collect();
    let crowd = Crowd { places: want.places(), led: led?, seen };
    crowd.finding("zone", |place| &place.zone).or_else(|| crowd.finding("host", NodeSpec::machine))
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
        let (place, there) = counts.iter().find(|(_, there)| fatal(**there))?;
        // Somebody else could lead one of them where that makes no crowd.
        let better = |node: &&Address| {
            let room = at(node).map(|p| counts.get(&p).copied().unwrap_or(0));
            room.is_some_and(|n| !fatal(n + 1)) && at(node).as_ref() != Some(place)
        };
        let (shard, primary, to) = self.led.iter().find_map(|(shard, primary)| {
            let here = at(primary).as_ref() == Some(place);
            let ready = |node: &&Address| self.follows(node, primary);
            let to = shard.members.iter().filter(better).find(ready).filter(|_| here)?;
            Some((shard, primary, to))
        })?;
        let left = all - there;
        Some(Finding {
            rule: Rule::CrowdedPrimaries,
            severity: Severity::Warning,
            title: format!("The loss of {kind} {place} would leave no majority of primaries"),
            detail: format!(
                "{there} of {all} primaries are in {kind} {place} since shards failed over: without it {left} are left, and it takes {needed} to elect any replica, so the whole cluster would be down"
            ),
            evidence: json!({ "kind": kind, "place": place, "primaries": counts, "needed": needed }),
            subject: Subject::default(),
            remedy: Remedy {
                text: format!(
                    "Hand shard {} over to {to}, which is elsewhere; a plan does it without losing a write.",
                    shard.index
                ),
                intent: Some(json!({
                    "kind": "failover", "method": "graceful", "node": primary, "to": to,
                })),
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
