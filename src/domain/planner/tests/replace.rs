//! Another spec: what it changes is done, and what it does not change is left alone.

use proptest::sample::Index;

use super::dissolve::made;
use super::drain::after;
use super::drift::{differences, primaries};
use super::*;
use crate::domain::intent::{
    AddReplicaIntent, DrainIntent, NodeChoice, ReplaceSpecIntent, drain, members, replace,
};
use crate::domain::refusal::Refusal;
use crate::domain::spec::ClusterSpec;

pub(super) fn put(
    now: &Topology,
    spec: ClusterSpec,
    seen: &Observation,
) -> Result<(Topology, Terms), Refusal> {
    let intent = ReplaceSpecIntent { spec: Box::new(Spec::Cluster(spec)) };
    Ok(after(now, replace::amend(&intent, now, seen)?))
}

pub(super) fn cluster(topology: &Topology) -> ClusterSpec {
    let Spec::Cluster(spec) = &topology.spec else { unreachable!() };
    let json = serde_json::to_string(spec).unwrap();
    serde_json::from_str(&json).unwrap()
}

pub(super) fn newcomer(seen: &mut Observation, n: u16, zone: &str) -> NodeSpec {
    let new = node(100 + n, zone);
    seen.nodes.insert(new.address.clone(), Sighting::Seen(Box::new(blank(&new.address, 0))));
    new
}

/// `PUT` of what `GET` gives is no change, in whatever order.
pub(super) fn puts_back(now: &Topology, seen: &Observation) {
    let mut spec = cluster(now);
    assert_eq!(put(now, spec.clone(), seen).unwrap(), (now.clone(), Terms::default()));
    spec.nodes.reverse();
    spec.settings.insert("maxmemory-policy".to_owned(), "noeviction".to_owned());
    let (want, terms) = put(now, spec, seen).unwrap();
    assert_eq!((&want.layout, terms), (&now.layout, Terms::default()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_get_gave_changes_nothing_also_after_other_plans(
        spec in specs(), keys in 0u64..2, shard in any::<Index>(), away in any::<Index>(),
    ) {
        let (now, mut seen) = made(&spec, keys);
        puts_back(&now, &seen);
        let policy = Policy::default();
        let new = newcomer(&mut seen, 0, "z9");
        let add = AddReplicaIntent {
            shard: Some(shard.index(now.layout.shards().len()).to_string()),
            node: Some(NodeChoice::New(new)),
        };
        let (now, terms) = after(&now, members::add_replica(&add, &now, &seen).unwrap());
        seen = forecast(&ask(&now, &seen, &terms, &policy)).world;
        puts_back(&now, &seen);
        let nodes: Vec<_> = now.layout.members().into_iter().cloned().collect();
        let away = DrainIntent { zone: None, node: Some(away.get(&nodes).clone()) };
        if let Ok(amended) = drain::drain(&away, &now, &seen) {
            let (now, terms) = after(&now, amended);
            seen = forecast(&ask(&now, &seen, &terms, &policy)).world;
            puts_back(&now, &seen);
        }
    }

    #[test]
    fn several_nodes_come_and_go_at_once(
        spec in specs(), keys in 0u64..2, gone in prop::collection::vec(any::<Index>(), 1..4),
    ) {
        let (now, mut seen) = made(&spec, keys);
        let members: Vec<Address> = now.layout.members().into_iter().cloned().collect();
        let gone: BTreeSet<Address> = gone.iter().map(|i| i.get(&members).clone()).collect();
        let mut wanted = cluster(&now);
        // Without spares, so that whoever is new is needed.
        wanted.nodes.retain(|n| members.contains(&n.address) && !gone.contains(&n.address));
        for (i, old) in gone.iter().enumerate() {
            let zone = now.places()[old].zone.clone();
            wanted.nodes.push(newcomer(&mut seen, u16::try_from(i).unwrap(), &zone));
        }
        let (want, terms) = put(&now, wanted.clone(), &seen).unwrap();
        prop_assert_eq!(&want.spec, &Spec::Cluster(wanted));
        prop_assert_eq!(terms.leavers.keys().cloned().collect::<BTreeSet<_>>(), gone.clone());
        let leading = primaries(&now, &seen);
        prop_assert_eq!(terms.seats.len(), leading.iter().filter(|p| gone.contains(p)).count());
        let plan = forecast(&ask(&want, &seen, &terms, &Policy::default()));
        prop_assert_eq!(&plan.blockers, &vec![]);
        prop_assert_eq!(&plan.world.marks.iter().filter(|m| m.what.identity().is_some()).count(), &0);
        let keys_of: Vec<_> = plan.steps.iter().map(|s| s.key.as_str()).collect();
        prop_assert_eq!(differences(&want, &plan.world), Vec::<String>::new(), "{:?}", keys_of);
        prop_assert!(gone.iter().all(|n| plan.world.report(n).unwrap().is_blank()));
        puts_back(&want, &plan.world);
    }

    #[test]
    fn fewer_replicas_leave_the_primaries_alone(spec in specs(), keys in 0u64..2) {
        let (now, seen) = made(&spec, keys);
        let mut wanted = cluster(&now);
        prop_assume!(wanted.replicas_per_shard > 0);
        wanted.replicas_per_shard -= 1;
        let (want, terms) = put(&now, wanted, &seen).unwrap();
        prop_assert!(terms.seats.is_empty());
        prop_assert_eq!(terms.leavers.len(), now.layout.shards().len());
        let plan = forecast(&ask(&want, &seen, &terms, &Policy::default()));
        prop_assert_eq!(&plan.blockers, &vec![]);
        prop_assert_eq!(primaries(&want, &plan.world), primaries(&now, &seen));
        prop_assert_eq!(differences(&want, &plan.world), Vec::<String>::new());
        puts_back(&want, &plan.world);
    }

    #[test]
    fn settings_alone_touch_settings_alone(spec in specs()) {
        let (now, seen) = made(&spec, 1);
        let mut wanted = cluster(&now);
        wanted.settings.insert("maxmemory".to_owned(), "1gb".to_owned());
        let (want, terms) = put(&now, wanted, &seen).unwrap();
        prop_assert_eq!(&terms, &Terms::default());
        let plan = forecast(&ask(&want, &seen, &terms, &Policy::default()));
        prop_assert!(plan.steps.iter().all(|s| ["configure", "rewrite_config"].contains(&s.step.kind())));
        prop_assert!(!plan.steps.is_empty());
    }
}

#[test]
fn a_spec_that_drains_hands_over_as_drain_does() {
    let nodes = (0..6).map(|n| node(n, &format!("z{}", n % 3))).collect();
    let (now, mut seen) = made(&spec(3, 1, nodes), 1);
    let away = primaries(&now, &seen)[0].clone();
    let mut wanted = cluster(&now);
    wanted.overrides.drained.insert(away.clone());
    wanted.nodes.push(newcomer(&mut seen, 0, "z4"));
    wanted.overrides.shards.push(crate::domain::spec::ShardOverride {
        shard: now.layout.shards()[1].0.id,
        replicas: 2,
    });
    let (want, terms) = put(&now, wanted, &seen).unwrap();
    let plan = forecast(&ask(&want, &seen, &terms, &Policy::default()));
    assert_eq!(plan.blockers, vec![]);
    assert!(!primaries(&want, &plan.world).contains(&away));
    assert_eq!(want.layout.shards()[1].0.members.len(), 3);
    assert_eq!(differences(&want, &plan.world), Vec::<String>::new());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let nodes = (0..6).map(|n| node(n, &format!("z{}", n % 3))).collect();
    let (now, seen) = made(&spec(3, 1, nodes), 1);
    let refused = |change: &dyn Fn(&mut ClusterSpec)| {
        let mut wanted = cluster(&now);
        change(&mut wanted);
        put(&now, wanted, &seen).unwrap_err()
    };
    let many = refused(&|s| s.shards = 4);
    assert!(matches!(&many, Refusal::Invalid(e) if e[0].pointer == "/spec/nodes"), "{many}");
    let two = refused(&|s| s.shards = 2);
    assert!(matches!(&two, Refusal::Invalid(e) if e[0].pointer == "/spec/shards"), "{two}");
    let few = refused(&|s| s.nodes.truncate(5));
    assert!(matches!(&few, Refusal::Invalid(e) if e[0].pointer == "/spec/nodes"), "{few}");
    let stray = refused(&|s| {
        s.overrides.drained.insert("10.9.9.9:1".parse().unwrap());
    });
    assert!(
        matches!(&stray, Refusal::Invalid(e) if e[0].pointer == "/spec/overrides/drained/0"),
        "{stray}"
    );
}
