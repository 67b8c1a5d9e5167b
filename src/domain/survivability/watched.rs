//! What a deployment survives that Sentinels watch.
//!
//! A primary that is lost is replaced when the quorum holds it for down and a majority of *all*
//! Sentinels agrees to the failover; what is left of them counts. (Source: the Redis Sentinel
//! documentation, "Quorum".) While the primary is there, nothing depends on Sentinels.

use std::collections::BTreeSet;

use super::{Group, Loss, Lost, NodePairs, Outcome, Part, Survivability, Survives, is, subject};
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Sighting};
use crate::domain::spec::SentinelSpec;

/// The nodes of such a deployment, and what a failover takes.
pub(super) struct Watched<'a> {
    group: &'a Group,
    sentinels: Vec<Part>,
    /// All that there are, those that are silent included: each counts for the majority.
    all: usize,
    quorum: usize,
}

impl<'a> Watched<'a> {
    pub fn new(spec: &SentinelSpec, group: &'a Group, seen: &Observation) -> Self {
        let silent = |a: &Address| matches!(seen.sighting(a), Sighting::Silent(_));
        let living = spec.sentinels.iter().filter(|n| !silent(&n.address));
        let part = |n: &crate::domain::spec::NodeSpec| Part {
            address: n.address.clone(),
            zone: n.zone.clone(),
            host: n.machine().to_owned(),
        };
        Self {
            group,
            sentinels: living.map(part).collect(),
            all: spec.sentinels.len(),
            quorum: usize::from(spec.effective_quorum()),
        }
    }

    pub fn survivability(&self) -> Survivability {
        let one = |part: &Part| self.loss(nodes(&[part]));
        let losses: Vec<Loss> = self.parts().map(one).collect();
        let named = |of: fn(&Part) -> &String| -> BTreeSet<String> {
            self.parts().map(|p| of(p).clone()).collect()
        };
        let host = |host: String| self.loss(Lost { hosts: vec![host], ..Lost::default() });
        let zone = |zone: String| self.loss(Lost { zones: vec![zone], ..Lost::default() });
        let hosts: Vec<Loss> = named(|p| &p.host).into_iter().map(host).collect();
        let zones: Vec<Loss> = named(|p| &p.zone).into_iter().map(zone).collect();
        let all = |losses: &[Loss]| losses.iter().all(|loss| loss.outcome.survived());
        Survivability {
            survives: Survives {
                any_node: all(&losses),
                any_host: all(&hosts),
                any_zone: all(&zones),
            },
            node_pairs: self.pairs(),
            losses: [losses, hosts, zones].concat(),
        }
    }

    /// What one failure would do.
    pub fn loss(&self, lost: Lost) -> Loss {
        let hit = |p: &&Part| {
            lost.nodes.contains(&p.address)
                || lost.hosts.contains(&p.host)
                || lost.zones.contains(&p.zone)
        };
        let taken = self.group.members.iter().filter(hit).count();
        let left = self.sentinels.iter().filter(|p| !hit(p)).count();
        let leads = |p: &&Part| self.group.leader().is_none_or(|leader| *leader == p.address);
        let headless = self.group.members.iter().filter(hit).any(|p| leads(&p));
        let emptied = taken == self.group.members.len();
        let outcome = if emptied {
            Outcome::DataUnavailable
        } else if headless && left < self.needed() {
            Outcome::NoQuorum
        } else if headless {
            Outcome::Failover
        } else {
            Outcome::Intact
        };
        let lost_shards = (!outcome.survived()).then_some(self.group.id);
        Loss {
            outcome,
            shards_lost: lost_shards.into_iter().collect(),
            slots_lost: 0,
            voters_left: left,
            voters_needed: self.needed(),
            why: self.why(&lost, outcome, left, taken),
            lost,
        }
    }

    fn needed(&self) -> usize {
        self.quorum.max(self.all / 2 + 1)
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.group.members.iter().chain(&self.sentinels)
    }

    fn pairs(&self) -> NodePairs {
        let parts: Vec<&Part> = self.parts().collect();
        let mut pairs = NodePairs { total: 0, survived: 0 };
        for (i, one) in parts.iter().enumerate() {
            for other in &parts[i + 1..] {
                pairs.total += 1;
                let survived = self.loss(nodes(&[one, other])).outcome.survived();
                pairs.survived += usize::from(survived);
            }
        }
        pairs
    }

    /// One sentence that a person can check.
    fn why(&self, lost: &Lost, outcome: Outcome, left: usize, taken: usize) -> String {
        let (subject, plural) = subject(lost);
        let holds = if plural { "hold" } else { "holds" };
        let votes = format!(
            "{left} of {} Sentinels {} left and {} {} needed",
            self.all,
            is(left),
            self.needed(),
            is(self.needed())
        );
        match outcome {
            Outcome::DataUnavailable => {
                format!("{subject} {holds} every data node, so nothing is served until one is back")
            }
            Outcome::NoQuorum => {
                format!("{subject} {holds} the primary; {votes}, so no replica is promoted by them")
            }
            Outcome::Failover => {
                format!("{subject} {holds} the primary; {votes}, so a replica takes over")
            }
            Outcome::Intact if left < self.needed() => format!(
                "{subject} {holds} no primary; {votes}, so a primary that is lost next is not replaced"
            ),
            Outcome::Intact if taken == 0 => {
                format!("{subject} {holds} no data node; {votes} for the next failover")
            }
            Outcome::Intact => {
                format!(
                    "{subject} {holds} no primary, only replicas; {votes} for the next failover"
                )
            }
        }
    }
}

fn nodes(parts: &[&Part]) -> Lost {
    Lost { nodes: parts.iter().map(|p| p.address.clone()).collect(), ..Lost::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::{ShardId, TopologyId};
    use crate::domain::slot::SlotSet;
    use crate::domain::spec::Spec;

    fn part(n: usize, zone: char) -> Part {
        Part {
            address: format!("127.0.0.1:{}", 7000 + n).parse().unwrap(),
            zone: zone.to_string(),
            host: format!("host-{n}"),
        }
    }

    fn group(zones: &str) -> Group {
        let members: Vec<Part> = zones.chars().enumerate().map(|(i, z)| part(i, z)).collect();
        Group {
            id: ShardId::derive(TopologyId(uuid::Uuid::nil()), 0),
            slots: SlotSet::empty(),
            primary: Some(members[0].address.clone()),
            lone: true,
            members,
        }
    }

    fn spec(zones: &str, quorum: Option<u16>) -> SentinelSpec {
        let sentinel = |(i, z): (usize, char)| {
            serde_json::json!({ "address": format!("127.0.0.1:{}", 26000 + i),
                                "zone": z.to_string(), "host": format!("watch-{i}") })
        };
        let sentinels: Vec<_> = zones.chars().enumerate().map(sentinel).collect();
        let spec = serde_json::json!({
            "mode": "sentinel", "master_name": "m", "replicas": 1, "quorum": quorum,
            "sentinels": sentinels,
            "nodes": [{ "address": "127.0.0.1:7000", "zone": "a" },
                      { "address": "127.0.0.1:7001", "zone": "b" }],
        });
        match serde_json::from_value(spec).unwrap() {
            Spec::Sentinel(spec) => spec,
            Spec::Cluster(_) | Spec::Replication(_) => unreachable!(),
        }
    }

    fn tried(data: &str, sentinels: &str, quorum: Option<u16>) -> Survivability {
        let group = group(data);
        Watched::new(&spec(sentinels, quorum), &group, &Observation::default()).survivability()
    }

    #[test]
    fn three_zones_survive_the_loss_of_any() {
        let all = tried("abc", "abc", None);
        assert!(all.survives.any_node && all.survives.any_host && all.survives.any_zone);
        assert_eq!((all.node_pairs.total, all.node_pairs.survived), (15, 15));
        assert_eq!(all.losses[0].outcome, Outcome::Failover);
        assert_eq!((all.losses[0].voters_left, all.losses[0].voters_needed), (3, 2));
    }

    #[test]
    fn sentinels_with_the_primary_are_lost_with_it() {
        let all = tried("ab", "aab", None);
        assert!(all.survives.any_node && !all.survives.any_zone);
        let zone = all.losses.iter().find(|l| l.lost.zones == ["a"]).unwrap();
        assert_eq!((zone.outcome, zone.voters_left), (Outcome::NoQuorum, 1));
    }

    #[test]
    fn a_quorum_above_the_majority_is_needed_too() {
        let all = tried("ab", "abc", Some(3));
        assert_eq!(all.losses[0].voters_needed, 3);
        assert!(!all.survives.any_zone && all.survives.any_node);
    }
}
