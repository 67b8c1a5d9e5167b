//! The same for topologies with one lone shard.

use super::*;
use crate::domain::diagnosis::{Rule, leaderless, lone};
use crate::domain::intent::{
    AddReplicaIntent, DissolveIntent, DrainIntent, FailoverIntent, NodeChoice, RemoveReplicaIntent,
    RepairIntent, ReplaceNodeIntent, accept_drift, dissolve, drain, failover, members, repair,
};
use crate::domain::lineage;
use crate::domain::observation::{DeposedMark, EmptiedMark, History, Mark, MarkKind};
use crate::domain::refusal::Refusal;
use crate::domain::step::command::FailoverMethod;
use crate::domain::view::{self, Phase, Primary, ReplicaState};

fn lone(replicas: u16, count: u16) -> Spec {
    let nodes: Vec<NodeSpec> = (0..count).map(|n| node(n, &format!("z{n}"))).collect();
    serde_json::from_value(serde_json::json!({
        "mode": "replication", "replicas": replicas, "nodes": nodes,
    }))
    .unwrap()
}

fn address(n: u16) -> Address {
    node(n, "").address
}

fn lone_world(count: u16, keys: u64) -> Observation {
    let sight = |n: u16| {
        let alone = blank(&address(n), keys);
        let replication = Replication { replid: format!("history of {n}"), ..Default::default() };
        let alone = Report { cluster_enabled: false, cluster: None, replication, ..alone };
        (address(n), Sighting::Seen(Box::new(alone)))
    };
    Observation { nodes: (0..count).map(sight).collect(), marks: vec![] }
}

fn report(world: &mut Observation, n: u16) -> &mut Report {
    match world.nodes.get_mut(&address(n)) {
        Some(Sighting::Seen(report)) => report,
        other => panic!("{other:?}"),
    }
}

/// A made topology, and the world in which it is.
fn made(replicas: u16, count: u16) -> (Topology, Observation) {
    let spec = lone(replicas, count);
    let seen = lone_world(count, 0);
    let (want, terms) = draft(&spec, &seen, false);
    let mut world = fold(&want, &seen, &terms);
    let primary = lead(&want, &world);
    for n in 0..count {
        if address(n) == primary || report(&mut world, n).role == Role::Replica {
            report(&mut world, n).keys = 9;
        }
    }
    (want, world)
}

fn lead(want: &Topology, seen: &Observation) -> Address {
    match lineage::primary_of(want.layout.lone().unwrap(), seen) {
        Primary::Settled(node) => node,
        other => panic!("{other:?}"),
    }
}

/// The world after a plan, which must leave nothing to do and no mark.
fn fold(want: &Topology, seen: &Observation, terms: &Terms) -> Observation {
    let policy = Policy::default();
    let plan = forecast(&ask(want, seen, terms, &policy));
    assert_eq!(plan.blockers, vec![]);
    assert_eq!(plan.world.marks, vec![]);
    assert_eq!(next(&ask(want, &plan.world, terms, &policy)), Next::Converged);
    let again = forecast(&ask(want, &plan.world, &Terms::default(), &policy));
    assert_eq!(again.steps, vec![], "it needs no repair");
    plan.world
}

fn kinds(want: &Topology, seen: &Observation, terms: &Terms) -> Vec<&'static str> {
    let policy = Policy::default();
    forecast(&ask(want, seen, terms, &policy)).steps.iter().map(|s| s.step.kind()).collect()
}

fn amended(now: &Topology, amendment: crate::domain::intent::Amendment) -> (Topology, Terms) {
    let spec = amendment.spec.unwrap_or_else(|| now.spec.clone());
    let want = Topology { spec, layout: amendment.layout, ..now.clone() };
    (want.without(&amendment.terms.apart), amendment.terms)
}

#[test]
fn a_create_makes_one_primary_and_replicas() {
    for (replicas, count) in [(0, 1), (1, 2), (2, 3), (4, 6)] {
        let spec = lone(replicas, count);
        let seen = lone_world(count, 0);
        let (want, terms) = draft(&spec, &seen, false);
        let world = fold(&want, &seen, &terms);
        let primary = lead(&want, &world);
        assert_eq!(terms.primaries.values().next(), Some(&primary));
        let life = view::Life { created: true, plan_active: false };
        assert_eq!(view::phase(&want.layout, &world, life), Phase::Steady);
    }
}

/// Nodes as they boot from Reeve's files: each follows a sibling, which follows in turn.
fn guarded(count: u16) -> Observation {
    let mut world = lone_world(count, 0);
    for n in 0..count {
        let sibling = address(if n == 0 { 1 } else { 0 });
        let report = report(&mut world, n);
        report.role = Role::Replica;
        report.replication.primary = Some(sibling);
    }
    world
}

#[test]
fn nodes_that_wait_as_replicas_of_each_other_are_blank_and_one_is_detached() {
    for (replicas, count) in [(1, 2), (2, 3), (4, 6)] {
        let (spec, seen) = (lone(replicas, count), guarded(count));
        let (want, terms) = draft(&spec, &seen, false);
        assert_eq!(
            terms.resets.keys().collect::<Vec<_>>(),
            terms.primaries.values().collect::<Vec<_>>()
        );
        let policy = Policy::default();
        let plan = forecast(&ask(&want, &seen, &terms, &policy));
        assert_eq!(plan.hazards(), vec![], "nothing is lost");
        let world = fold(&want, &seen, &terms);
        assert_eq!(terms.primaries.values().next(), Some(&lead(&want, &world)));
    }
    let refused = |seen: &Observation| match create::amend(TOPOLOGY, &lone(2, 3), false, seen) {
        Err(Refusal::NodesUnfit { errors, .. }) => errors.len(),
        other => panic!("{other:?}"),
    };
    // One that leads has a deployment, also where it is empty just now.
    let mut led = guarded(3);
    report(&mut led, 0).role = Role::Primary;
    report(&mut led, 0).replication.primary = None;
    assert_eq!(refused(&led), 2);
    // Whoever is followed and holds something, or is not named here, is somebody's.
    let mut holds = guarded(3);
    report(&mut holds, 1).keys = 1;
    assert_eq!(refused(&holds), 2, "it, and the one that follows it");
    let mut elsewhere = guarded(3);
    report(&mut elsewhere, 2).replication.primary = Some(address(9));
    assert_eq!(refused(&elsewhere), 1);
    let mut fed = guarded(3);
    report(&mut fed, 2).replication.link_up = true;
    assert_eq!(refused(&fed), 1);
}

#[test]
fn nodes_that_hold_something_are_refused_or_emptied_by_name() {
    let (spec, seen) = (lone(1, 2), lone_world(2, 5));
    let refused = create::amend(TOPOLOGY, &spec, false, &seen);
    assert!(matches!(refused, Err(Refusal::NodesUnfit { errors, .. }) if errors.len() == 2));
    let (want, terms) = draft(&spec, &seen, true);
    let policy = Policy::default();
    let plan = forecast(&ask(&want, &seen, &terms, &policy));
    let ids: Vec<String> = plan.hazards().into_iter().map(|h| h.id).collect();
    assert_eq!(ids, ["flush:10.0.0.1:7000", "flush:10.0.0.2:7000"]);
    fold(&want, &seen, &terms);
    // A node of a cluster is no such node.
    let wrong = create::amend(TOPOLOGY, &spec, true, &world(&spec, 0));
    assert!(matches!(wrong, Err(Refusal::NodesUnfit { .. })));
}

#[test]
fn a_failover_hands_over_and_the_others_follow() {
    let (want, seen) = made(2, 3);
    let before = lead(&want, &seen);
    let amendment = failover::amend(&FailoverIntent::default(), &want, &seen).unwrap();
    let (want, terms) = amended(&want, amendment);
    let steps = kinds(&want, &seen, &terms);
    assert_eq!(steps[0], "hand_over", "{steps:?}");
    assert!(steps.contains(&"release_writes") && steps.contains(&"rewrite_config"), "{steps:?}");
    let after = fold(&want, &seen, &terms);
    assert_ne!(lead(&want, &after), before);
}

#[test]
fn a_hand_over_that_was_left_half_way_goes_first_whatever_the_plan() {
    let (want, mut seen) = made(2, 3);
    let from = lead(&want, &seen);
    let to = want.layout.lone().unwrap().members.iter().find(|m| **m != from).unwrap().clone();
    if let Some(Sighting::Seen(report)) = seen.nodes.get_mut(&from) {
        report.role = Role::Replica;
        report.replication.primary = Some(to.clone());
    }
    let deposed = DeposedMark {
        shard: want.layout.lone().unwrap().id,
        successor: to.clone(),
        run_id: from.to_string(),
        replid: String::new(),
        offset: 0,
        forced: false,
    };
    seen.marks.push(Mark { node: from.clone(), what: MarkKind::Deposed(deposed) });
    assert!(matches!(lineage::primary_of(want.layout.lone().unwrap(), &seen), Primary::None));
    let (terms, policy) = (Terms::default(), Policy::default());
    for goal in [Goal::Converge, Goal::WindDown] {
        let asked = Question { want: &want, seen: &seen, terms: &terms, policy: &policy, goal };
        let Next::Act(steps) = next(&asked) else { panic!("{goal:?}: {:?}", next(&asked)) };
        assert_eq!(steps[0].action().key(), format!("hand_over:{to}"), "{goal:?}");
    }
}

#[test]
fn an_old_primary_that_is_back_is_held_and_follows_with_a_receipt() {
    let (want, mut seen) = made(2, 3);
    let from = lead(&want, &seen);
    let silence = Silence {
        since: chrono::DateTime::UNIX_EPOCH,
        code: "unreachable".to_owned(),
        message: "connection refused".to_owned(),
    };
    let back = seen.nodes.insert(from.clone(), Sighting::Silent(silence)).unwrap();
    let force = FailoverIntent { method: FailoverMethod::Force, ..Default::default() };
    let amendment = failover::amend(&force, &want, &seen).unwrap();
    let (want, terms) = amended(&want, amendment);
    let policy = Policy::default();
    let plan = forecast(&ask(&want, &seen, &terms, &policy));
    assert_eq!(plan.hazards()[0].id, format!("lost_writes:{from}"));
    let mut world = plan.world;
    assert!(world.marks.iter().any(|m| m.what.deposed().is_some()), "{:?}", world.marks);
    // It comes back with more than the new one got.
    world.nodes.insert(from.clone(), back);
    let to = lead(&want, &world);
    assert_ne!(to, from);
    assert_eq!(lineage::rivals(want.layout.lone().unwrap(), &world).len(), 2);
    let repair = repair::amend(&want, &world);
    let steps = forecast(&ask(&want, &world, &repair.terms, &policy)).steps;
    let kinds: Vec<_> = steps.iter().map(|s| s.step.kind()).collect();
    assert_eq!(kinds[..2], ["hold_writes", "follow"], "{kinds:?}");
    assert!(steps.iter().all(|s| s.step.action().hazards().is_empty()), "it was accepted before");
    let told = steps[1].step.action().tells(&world);
    assert_eq!(told[0].kind.as_str(), "failover.writes_lost");
    fold(&want, &world, &repair.terms);
}

#[test]
fn two_primaries_wait_for_a_person() {
    let (want, mut seen) = made(2, 3);
    let primary = lead(&want, &seen);
    let rival = (0..3).find(|n| address(*n) != primary).unwrap();
    let alone = report(&mut seen, rival);
    (alone.role, alone.replication.primary) = (Role::Primary, None);
    let policy = Policy::default();
    let repair = repair::amend(&want, &seen);
    let plan = forecast(&ask(&want, &seen, &repair.terms, &policy));
    assert_eq!(plan.blockers[0].code, "two_primaries");
    let graceful = failover::amend(&FailoverIntent::default(), &want, &seen);
    assert!(matches!(graceful, Err(Refusal::NodesUnfit { .. })));
    let decided = FailoverIntent {
        to: Some(primary.clone()),
        method: FailoverMethod::Force,
        ..Default::default()
    };
    let (want, terms) = amended(&want, failover::amend(&decided, &want, &seen).unwrap());
    let plan = forecast(&ask(&want, &seen, &terms, &policy));
    assert_eq!(plan.hazards()[0].id, format!("lost_writes:{}", address(rival)));
    assert_eq!(lead(&want, &fold(&want, &seen, &terms)), primary);
}

#[test]
fn findings_name_the_node_with_the_data() {
    let (want, mut seen) = made(2, 3);
    let primary = lead(&want, &seen);
    let back = (0..3).find(|n| address(*n) != primary).unwrap();
    let alone = report(&mut seen, back);
    (alone.role, alone.keys, alone.replication.primary) = (Role::Primary, 0, None);
    let mark = EmptiedMark { run_id: alone.run_id.clone(), keys: 9, offset: 5 };
    seen.marks.push(Mark { node: address(back), what: MarkKind::Emptied(mark) });
    // One that came back with nothing beside a primary with the data is not to be replaced.
    assert_eq!(lone::findings(&want, &seen), vec![]);
    report(&mut seen, back).keys = 1;
    let found = lone::findings(&want, &seen);
    assert_eq!(found.iter().map(|f| f.rule).collect::<Vec<_>>(), [Rule::SplitBrain]);
    assert!(found[0].remedy.text.contains(&format!("for example {primary};")), "{found:?}");
    // With nobody else it is.
    report(&mut seen, back).keys = 0;
    for n in 0..3 {
        if n != back {
            let other = report(&mut seen, n);
            (other.role, other.replication.primary) = (Role::Replica, Some(address(back)));
        }
    }
    let found = lone::findings(&want, &seen);
    assert_eq!(found.iter().map(|f| f.rule).collect::<Vec<_>>(), [Rule::EmptiedPrimary]);
}

#[test]
fn a_node_that_follows_unasked_is_told() {
    let (want, mut seen) = made(1, 2);
    assert_eq!(lone::strange_replicas(&want, &seen), vec![]);
    let primary = lead(&want, &seen);
    let n = (0..2).find(|n| address(*n) == primary).unwrap();
    let mut attached = report(&mut seen, n).replication.replicas[0].clone();
    attached.address = address(77);
    report(&mut seen, n).replication.replicas.push(attached);
    let found = lone::strange_replicas(&want, &seen);
    assert_eq!((found.len(), found[0].subject.node.clone()), (1, Some(address(77))));
}

#[test]
fn a_shard_without_a_primary_is_a_finding_that_says_who_is_there() {
    let (want, mut seen) = made(1, 2);
    assert_eq!(leaderless::findings(&want, &seen), vec![]);
    for n in 0..2 {
        let waits = report(&mut seen, n);
        (waits.role, waits.replication.link_up) = (Role::Replica, false);
        waits.replication.primary = Some(address(1 - n));
        waits.replication.replicas.clear();
        waits.replication.offset = u64::from(n);
    }
    let found = leaderless::findings(&want, &seen);
    assert_eq!((found.len(), found[0].rule), (1, Rule::NoPrimary));
    assert!(
        found[0].detail.contains(&format!("{} waits for {}", address(0), address(1))),
        "{found:?}"
    );
    assert!(found[0].remedy.text.contains(&format!("\"to\": \"{}\"", address(1))), "{found:?}");
}

#[test]
fn nobody_follows_an_emptied_primary_without_consent() {
    let (want, mut seen) = made(2, 3);
    let primary = lead(&want, &seen);
    let n = (0..3).find(|n| address(*n) == primary).unwrap();
    let anew = report(&mut seen, n);
    (anew.keys, anew.run_id, anew.replication.offset) = (0, "anew".to_owned(), 0);
    anew.replication.replid = "another history".to_owned();
    anew.replication.before = None::<History>;
    let mark = EmptiedMark { run_id: "anew".to_owned(), keys: 9, offset: 70 };
    seen.marks.push(Mark { node: primary.clone(), what: MarkKind::Emptied(mark) });
    // Its replicas were pointed elsewhere in time.
    for other in (0..3).filter(|o| *o != n) {
        report(&mut seen, other).replication.primary = Some(address(9));
        report(&mut seen, other).replication.link_up = false;
    }
    let policy = Policy::default();
    let repair = repair::amend(&want, &seen);
    let plan = forecast(&ask(&want, &seen, &repair.terms, &policy));
    let ids: Vec<String> = plan.hazards().into_iter().map(|h| h.id).collect();
    let discard = |o: &u16| format!("discard:{}", address(*o));
    let expected: Vec<String> = (0..3).filter(|o| *o != n).map(|o| discard(&o)).collect();
    let stuck = plan.blockers.iter().any(|b| b.code == "stranger");
    assert!(ids == expected || stuck, "{ids:?} {:?}", plan.blockers);
}

#[test]
fn members_come_and_go() {
    let (now, seen) = made(1, 4);
    let primary = lead(&now, &seen);
    let spare = now.spares().into_iter().next().unwrap().clone();
    let add = AddReplicaIntent { node: Some(NodeChoice::Spare(spare.clone())), shard: None };
    let (want, terms) = amended(&now, members::add_replica(&add, &now, &seen).unwrap());
    let more = fold(&want, &seen, &terms);
    assert_eq!(want.spec.lone_replicas(), Some(2));
    let remove = RemoveReplicaIntent { node: spare.clone() };
    let (less, terms) = amended(&want, members::remove_replica(&remove, &want, &more).unwrap());
    let after = fold(&less, &more, &terms);
    assert!(after.report(&spare).unwrap().is_blank());
    let gone = RemoveReplicaIntent { node: primary.clone() };
    assert!(members::remove_replica(&gone, &want, &more).is_err());
    // Another node in the primary's place: it copies, takes over, and the old one is blank.
    let other = now.spares().into_iter().find(|s| **s != spare).unwrap().clone();
    let replace = ReplaceNodeIntent { node: primary.clone(), with: NodeChoice::Spare(other) };
    let (want, terms) = amended(&want, members::replace_node(&replace, &want, &more).unwrap());
    let after = fold(&want, &more, &terms);
    assert!(after.report(&primary).unwrap().is_blank());
    assert_ne!(lead(&want, &after), primary);
}

#[test]
fn a_zone_is_drained_and_all_is_dissolved() {
    let (now, seen) = made(2, 3);
    let primary = lead(&now, &seen);
    let drain = DrainIntent { zone: None, node: Some(primary.clone()) };
    let (want, terms) = amended(&now, drain::drain(&drain, &now, &seen).unwrap());
    let after = fold(&want, &seen, &terms);
    assert_ne!(lead(&want, &after), primary);
    assert!(want.spec.drained().contains(&primary));
    let DissolveIntent {} = DissolveIntent::default();
    let gone = dissolve::amend(&want, &BTreeSet::new(), &after).unwrap();
    let (want, terms) = amended(&want, gone);
    let policy = Policy::default();
    let plan = forecast(&ask(&want, &after, &terms, &policy));
    assert_eq!(plan.blockers, vec![]);
    assert!(plan.world.nodes.keys().all(|a| plan.world.report(a).unwrap().is_blank()));
    assert_eq!(plan.world.marks, vec![]);
}

#[test]
fn who_wants_replicas_to_write_is_emptied_without_them_and_wants_them_again() {
    let (now, mut seen) = made(1, 2);
    for n in 0..2 {
        let guard = ("min-replicas-to-write".to_owned(), "1".to_owned());
        report(&mut seen, n).settings.extend([guard]);
    }
    let gone = dissolve::amend(&now, &BTreeSet::new(), &seen).unwrap();
    let (want, terms) = amended(&now, gone);
    let policy = Policy::default();
    let plan = forecast(&ask(&want, &seen, &terms, &policy));
    assert_eq!(plan.blockers, vec![]);
    let emptied = plan.steps.iter().find(|s| s.step.kind() == "reset_node").unwrap();
    let commands: Vec<&str> = emptied.commands.iter().map(|c| &*c.command).collect();
    let at = |words: &str| commands.iter().position(|c| c.starts_with(words)).unwrap();
    let (off, on) = ("CONFIG SET min-replicas-to-write 0", "CONFIG SET min-replicas-to-write 1");
    assert!(at(off) < at("FLUSHALL") && at("FLUSHALL") < at(on), "{commands:?}");
    assert_eq!(plan.world.marks, vec![]);
    // Broken off in the middle, it is put back.
    let node = emptied.step.action().nodes()[0].clone();
    seen.marks.extend(emptied.step.action().marks(&seen));
    let Some(Sighting::Seen(halted)) = seen.nodes.get_mut(&node) else { panic!() };
    halted.settings.insert("min-replicas-to-write".to_owned(), "0".to_owned());
    let plan = forecast(&ask(&want, &seen, &terms, &policy));
    assert_eq!(plan.steps[0].step.kind(), "restore_settings");
    assert_eq!((plan.blockers, plan.world.marks), (vec![], vec![]));
}

#[test]
fn a_chain_is_drift_and_flattened_by_a_repair() {
    let (want, mut seen) = made(2, 3);
    let primary = lead(&want, &seen);
    let mut others = (0..3).filter(|n| address(*n) != primary);
    let (parent, child) = (others.next().unwrap(), others.next().unwrap());
    report(&mut seen, child).replication.primary = Some(address(parent));
    let shard = want.layout.lone().unwrap();
    let status = view::shard(shard, &SlotSet::empty(), &seen);
    let state = status.replicas.iter().find(|r| r.address == address(child)).unwrap().state;
    assert_eq!(state, ReplicaState::Chained);
    assert!(accept_drift::amend(&want, &seen).is_err());
    let RepairIntent {} = RepairIntent::default();
    let repair = repair::amend(&want, &seen);
    assert_eq!(kinds(&want, &seen, &repair.terms)[0], "follow");
    fold(&want, &seen, &repair.terms);
}
