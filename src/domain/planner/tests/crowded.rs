//! Primaries that failovers have brought together are told, with the handovers that spread them again.

use proptest::sample::Index;

use super::dissolve::made;
use super::*;
use crate::domain::diagnosis::crowded;
use crate::domain::intent::{FailoverIntent, Intent, failover};
use crate::domain::survivability::{Outcome, Survivability, scene, survivability};

fn survives(now: &Topology, seen: &Observation) -> Survivability {
    survivability(&scene(now, seen))
}

fn failed_over(now: &Topology, seen: &Observation, intent: &FailoverIntent) -> Observation {
    let terms = failover::amend(intent, now, seen).unwrap().terms;
    let mut world = forecast(&ask(now, seen, &terms, &Policy::default())).world;
    // The rest of a shard is over by the time that somebody asks again.
    world.marks.clear();
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn following_what_is_told_gets_back_what_was_survived(
        shards in 3u16..7, replicas in 1u16..3, order in prop::collection::vec(any::<Index>(), 1..9),
    ) {
        let zones = ["a", "b", "c"];
        let nodes = (0..shards * (replicas + 1)).map(|n| node(n, zones[usize::from(n) % 3]));
        let (now, mut seen) = made(&spec(shards, replicas, nodes.collect()), 1);
        prop_assert_eq!(crowded::findings(&now, &seen), Some(vec![]));
        let at_first = survives(&now, &seen).survives;
        for index in order {
            let members = now.layout.members();
            let to = (*index.get(&members.into_iter().collect::<Vec<_>>())).clone();
            if seen.report(&to).unwrap().role == Role::Replica {
                let intent = FailoverIntent { to: Some(to.clone()), node: Some(to), ..Default::default() };
                seen = failed_over(&now, &seen, &intent);
            }
        }
        let quorate = |all: &Survivability| all.losses.iter().all(|l| l.outcome != Outcome::NoQuorum);
        prop_assume!(at_first.any_zone);
        let mut handovers = 0;
        while let Some(found) = crowded::findings(&now, &seen).unwrap().pop() {
            prop_assert!(!survives(&now, &seen).survives.any_zone, "{:?}", found);
            let intent: Intent = serde_json::from_value(found.remedy.intent.unwrap()).unwrap();
            let Intent::Failover(intent) = intent else { panic!("{intent:?}") };
            seen = failed_over(&now, &seen, &intent);
            handovers += 1;
            prop_assert!(handovers <= shards, "it goes round in circles");
        }
        prop_assert!(quorate(&survives(&now, &seen)));
        prop_assert_eq!(survives(&now, &seen).survives, at_first);
    }
}
