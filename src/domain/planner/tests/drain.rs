//! What is drained serves nothing, and all else stays as it is.

use super::dissolve::made;
use super::drift::{differences, primaries};
use super::*;
use crate::domain::intent::{Amendment, DrainIntent, UndrainIntent, drain};
use crate::domain::refusal::Refusal;

pub(super) fn after(now: &Topology, amended: Amendment) -> (Topology, Terms) {
    let (spec, layout) = (amended.spec.unwrap_or(now.spec.clone()), amended.layout);
    let version = if (&spec, &layout) == (&now.spec, &now.layout) { 0 } else { 1 };
    (Topology { version: now.version + version, spec, layout, ..now.clone() }, amended.terms)
}

fn zone(zone: &str) -> DrainIntent {
    DrainIntent { zone: Some(zone.to_owned()), node: None }
}

fn drained(topology: &Topology) -> &BTreeSet<Address> {
    let Spec::Cluster(spec) = &topology.spec else { unreachable!() };
    &spec.overrides.drained
}

pub(super) fn silence(world: &mut Observation, node: &Address) {
    let silence = Silence {
        since: chrono::DateTime::UNIX_EPOCH,
        code: "unreachable".to_owned(),
        message: "refused".to_owned(),
    };
    world.nodes.insert(node.clone(), Sighting::Silent(silence));
}

/// Three shards on nodes 1 to 6 in three zones.
fn three() -> (Topology, Observation) {
    made(&spec(3, 1, (0..6).map(|n| node(n, &format!("z{}", n % 3))).collect()), 1)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_drained_zone_serves_nothing_and_undrained_all_is_as_before(
        spec in specs(), keys in 0u64..2, at in 0usize..4,
    ) {
        let (now, seen) = made(&spec, keys);
        let zones: BTreeSet<&str> = spec.nodes().iter().map(|n| n.zone.as_str()).collect();
        let name = zones.iter().nth(at % zones.len()).unwrap();
        let there: BTreeSet<Address> =
            spec.nodes().iter().filter(|n| n.zone == *name).map(|n| n.address.clone()).collect();
        let leads = |shard: &&(&crate::domain::topology::Shard, SlotSet)| {
            primaries(&now, &seen).iter().any(|p| there.contains(p) && shard.0.members.contains(p))
        };
        let shards = now.layout.shards();
        let alone: Vec<_> = shards.iter().filter(leads)
            .filter(|(s, _)| s.members.iter().all(|m| there.contains(m))).collect();
        let policy = Policy::default();
        let amended = match drain::drain(&zone(name), &now, &seen) {
            Ok(amended) => amended,
            Err(Refusal::NodesUnfit { errors, .. }) => {
                // Each shard that nobody outside could take over is named with what to do.
                prop_assert_eq!(errors.len(), alone.len());
                prop_assert!(errors.iter().all(|e| e.detail.contains("add_replica")));
                return Ok(());
            }
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        };
        prop_assert_eq!(alone.len(), 0);
        let (want, terms) = after(&now, amended);
        prop_assert_eq!(drained(&want), &there);
        prop_assert_eq!(&want.layout, &now.layout);
        prop_assert_eq!(want.spec.validate(), vec![]);
        let plan = forecast(&ask(&want, &seen, &terms, &policy));
        prop_assert_eq!(&plan.blockers, &vec![]);
        for step in &plan.steps {
            prop_assert!(["fail_over", "await_sync"].contains(&step.step.kind()), "{}", step.key);
        }
        prop_assert!(primaries(&want, &plan.world).iter().all(|p| !there.contains(p)));
        prop_assert_eq!(differences(&want, &plan.world), Vec::<String>::new());

        // Once more is nothing more.
        let (again, terms) = after(&want, drain::drain(&zone(name), &want, &plan.world).unwrap());
        prop_assert_eq!(&again, &want);
        prop_assert_eq!(forecast(&ask(&again, &plan.world, &terms, &policy)).steps.len(), 0);

        let back = UndrainIntent { zone: Some((*name).to_owned()), node: None };
        let (undrained, terms) = after(&want, drain::undrain(&back, &want).unwrap());
        prop_assert_eq!(&undrained.spec, &now.spec);
        prop_assert_eq!(forecast(&ask(&undrained, &plan.world, &terms, &policy)).steps.len(), 0);
        prop_assert!(drain::undrain(&back, &undrained).is_err());
    }

    #[test]
    fn whoever_is_silent_there_hinders_nothing(spec in specs(), at in 0usize..4) {
        let (now, mut seen) = made(&spec, 1);
        let zones: BTreeSet<&str> = spec.nodes().iter().map(|n| n.zone.as_str()).collect();
        prop_assume!(zones.len() > 2);
        let intent = zone(zones.iter().nth(at % zones.len()).unwrap());
        let intents = crate::domain::intent::Intent::Drain(intent.clone());
        let leading = primaries(&now, &seen);
        for node in intents.apart(&now, &seen).iter().filter(|n| !leading.contains(n)) {
            silence(&mut seen, node);
        }
        let policy = Policy::default();
        let apart = intents.apart(&now, &seen);
        let left = unsettled(&now, &BTreeSet::new(), &apart, &seen, &policy);
        prop_assert_eq!(left, vec![]);
        if let Ok(amended) = drain::drain(&intent, &now, &seen) {
            let (want, terms) = after(&now, amended);
            let plan = forecast(&ask(&want, &seen, &terms, &policy));
            prop_assert_eq!(&plan.blockers, &vec![]);
            let waits = plan.steps.iter().filter(|s| s.step.action().nodes().iter().any(|n| seen.report(n).is_none()));
            prop_assert_eq!(waits.count(), 0);
        }
    }
}

#[test]
fn shards_are_handed_over_one_after_the_other() {
    let nodes = (0..6).map(|n| node(n, if n < 3 { "a" } else { "b" })).collect();
    let spec = spec(3, 1, nodes);
    let (now, seen) = made(&spec, 1);
    let primaries = primaries(&now, &seen);
    let one = DrainIntent { zone: None, node: Some(primaries[0].clone()) };
    let (want, mut terms) = after(&now, drain::drain(&one, &now, &seen).unwrap());
    for node in &primaries[1..] {
        let intent = DrainIntent { zone: None, node: Some(node.clone()) };
        terms.seats.extend(drain::drain(&intent, &now, &seen).unwrap().terms.seats);
    }
    assert_eq!(terms.seats.len(), 3);
    let policy = Policy::default();
    let Next::Act(steps) = next(&ask(&want, &seen, &terms, &policy)) else { panic!() };
    assert_eq!(steps.len(), 1);
    let plan = forecast(&ask(&want, &seen, &terms, &policy));
    assert_eq!(plan.steps.iter().filter(|s| s.step.kind() == "fail_over").count(), 3);
}

#[test]
fn warnings_say_what_is_left() {
    let (now, seen) = three();
    let amended = drain::drain(&zone("z0"), &now, &seen).unwrap();
    let codes: Vec<_> = amended.warnings.iter().map(|w| w.code.as_str()).collect();
    assert_eq!(codes.iter().filter(|c| **c == "no_replica_outside").count(), 2, "{codes:?}");
    // Two of three primaries are in one of the zones that are left.
    assert!(codes.contains(&"no_majority_outside"), "{codes:?}");
    assert!(!codes.contains(&"drained_not_survived"), "{codes:?}");
    // A primary that is drained already: if it goes too, two of three are gone.
    let (mut want, _) = after(&now, amended);
    let Spec::Cluster(spec) = &mut want.spec else { unreachable!() };
    let leading = primaries(&now, &seen);
    let last = now.layout.members().into_iter().find(|m| !leading.contains(m)).cloned();
    spec.overrides.drained = leading[..2].iter().cloned().collect();
    let intent = DrainIntent { zone: None, node: last };
    let told = drain::drain(&intent, &want, &seen).unwrap().warnings;
    assert!(told.iter().any(|w| w.code == "drained_not_survived"), "{told:?}");
}

#[test]
fn what_is_named_must_be_there() {
    let (now, seen) = three();
    let refused = |zone: Option<&str>, node: Option<&str>| {
        let node = node.map(|n| n.parse().unwrap());
        let intent = DrainIntent { zone: zone.map(str::to_owned), node };
        drain::drain(&intent, &now, &seen).unwrap_err().to_string()
    };
    assert!(refused(None, None).contains("either a `zone` or a `node`"));
    assert!(refused(Some("z0"), Some("10.0.0.1:7000")).contains("either a `zone` or a `node`"));
    assert!(refused(Some("z9"), None).contains("its zones are z0, z1, z2"));
    assert!(refused(None, Some("10.9.9.9:1")).contains("is no node of this topology"));
}

#[test]
fn nobody_is_failed_over_to_what_is_drained_while_another_is_fit() {
    use crate::domain::intent::{FailoverIntent, failover};
    let nodes = (0..9).map(|n| node(n, &format!("z{}", n % 3))).collect();
    let (now, seen) = made(&spec(3, 2, nodes), 1);
    let (shard, _) = now.layout.shards()[0].clone();
    let primary = primaries(&now, &seen)[0].clone();
    let replicas: Vec<_> = shard.members.iter().filter(|m| **m != primary).cloned().collect();
    let fail_over = |now: &Topology, to| {
        let intent = FailoverIntent { shard: Some("0".to_owned()), to, ..Default::default() };
        let amended = failover::amend(&intent, now, &seen).unwrap();
        (amended.terms.seats[&shard.id].to.clone(), amended.warnings.len())
    };
    for away in &replicas {
        let one = DrainIntent { zone: None, node: Some(away.clone()) };
        let (want, _) = after(&now, drain::drain(&one, &now, &seen).unwrap());
        assert_ne!(fail_over(&want, None).0, *away);
        assert_eq!(fail_over(&want, Some(away.clone())), (away.clone(), 1));
        let other = replicas.iter().find(|r| *r != away).unwrap();
        let two = DrainIntent { zone: None, node: Some(other.clone()) };
        let (want, _) = after(&want, drain::drain(&two, &want, &seen).unwrap());
        assert!(replicas.contains(&fail_over(&want, None).0));
    }
}
