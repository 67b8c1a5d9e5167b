//! Deployments that Sentinels watch: each operation, from one settled world to the next.

use super::*;
use crate::domain::intent::{
    AddSentinelIntent, Amendment, FailoverIntent, NodeChoice, RemoveReplicaIntent,
    RemoveSentinelIntent, ReplaceNodeIntent, dissolve, failover, members, repair, sentinels,
};
use crate::domain::observation::MarkKind;
use crate::domain::sentinel::{SentinelView, WatchedReplica, WatchedSentinel, Watchers};
use crate::domain::topology::Topology;

fn watcher(n: u16) -> NodeSpec {
    let zone = ["a", "b", "c"][usize::from(n % 3)].to_owned();
    NodeSpec { address: format!("10.0.1.{}:26379", n + 1).parse().unwrap(), zone, host: None }
}

fn spec_of(data: u16, sentinels: u16) -> Spec {
    let zones = ["a", "b", "c"];
    let nodes: Vec<_> = (0..data).map(|n| node(n, zones[usize::from(n % 3)])).collect();
    let sentinels: Vec<_> = (0..sentinels).map(watcher).collect();
    let json = serde_json::json!({
        "mode": "sentinel", "master_name": "m", "replicas": data - 1, "nodes": nodes,
        "sentinels": sentinels, "down_after_ms": 5000,
    });
    serde_json::from_value(json).unwrap()
}

fn lone(address: &Address) -> Sighting {
    let mut report = blank(address, 0);
    (report.cluster_enabled, report.cluster) = (false, None);
    report.replication.replid = format!("history of {address}");
    for (name, value) in [("replica-priority", "100"), ("repl-diskless-sync-delay", "5")] {
        report.settings.insert(name.to_owned(), value.to_owned());
    }
    Sighting::Seen(Box::new(report))
}

fn sentinel(address: &Address) -> Sighting {
    let mut report = blank(address, 0);
    (report.cluster_enabled, report.cluster) = (false, None);
    (report.kind, report.role) = (NodeKind::Sentinel, Role::Sentinel);
    let my_id = format!("id of {address}");
    report.sentinel = Some(SentinelView { my_id, ..SentinelView::default() });
    Sighting::Seen(Box::new(report))
}

fn world(data: u16, sentinels: u16) -> Observation {
    let data = (0..data).map(|n| node(n, "a").address).map(|a| (a.clone(), lone(&a)));
    let all = (0..sentinels).map(|n| watcher(n).address).map(|a| (a.clone(), sentinel(&a)));
    Observation { nodes: data.chain(all).collect(), marks: vec![] }
}

fn amended(now: &Topology, amendment: &Amendment) -> Topology {
    Topology {
        version: now.version + 1,
        spec: amendment.spec.clone().unwrap_or_else(|| now.spec.clone()),
        layout: amendment.layout.clone(),
        ..now.clone()
    }
}

/// Carries a plan out as its forecast goes; the kinds of its steps and the world after it.
fn carried_out(
    want: &Topology,
    terms: &Terms,
    seen: &Observation,
) -> (Vec<&'static str>, Observation) {
    let policy = Policy::default();
    let want = &want.without(&terms.apart);
    let asked = Question { want, seen, terms, policy: &policy, goal: Goal::Converge };
    let forecast = forecast(&asked);
    assert_eq!(forecast.blockers, vec![]);
    let kinds: Vec<_> = forecast.steps.iter().map(|s| s.step.kind()).collect();
    // Holds are none of this mode.
    let left: Vec<_> =
        forecast.world.marks.iter().filter(|m| m.what != MarkKind::Unwritten).collect();
    assert!(left.is_empty(), "{kinds:?}: {left:?}");
    (kinds, forecast.world)
}

fn settled(want: &Topology, seen: &Observation) {
    let none = BTreeSet::new();
    let left = unsettled(want, &none, &none, seen, &Policy::default());
    assert!(left.is_empty(), "{left:?}");
}

/// Made, with keys.
fn made(data: u16, sentinels: u16) -> (Topology, Observation) {
    let (spec, blank) = (spec_of(data, sentinels), world(data + 1, sentinels + 1));
    let amendment = create::amend(TOPOLOGY, &spec, false, &blank).unwrap();
    let layout = amendment.layout.clone();
    let want = Topology { id: TOPOLOGY, name: "t".to_owned(), version: 1, spec, layout };
    let (kinds, mut seen) = carried_out(&want, &amendment.terms, &blank);
    let at = |kind: &str| kinds.iter().position(|k| *k == kind).unwrap();
    assert!(at("follow") < at("watch") && at("watch") < at("await_watch"), "{kinds:?}");
    settled(&want, &seen);
    let members = want.layout.members();
    for (address, sighting) in &mut seen.nodes {
        if let Sighting::Seen(report) = sighting
            && members.contains(address)
        {
            (report.keys, report.replication.offset) = (3, 100);
        }
    }
    settled(&want, &seen);
    (want, seen)
}

#[test]
fn a_failover_goes_through_a_sentinel() {
    let (now, seen) = made(3, 3);
    let amendment = failover::amend(&FailoverIntent::default(), &now, &seen).unwrap();
    let (kinds, after) = carried_out(&now, &amendment.terms, &seen);
    let switch = ["set_temporary", "await_choice", "switch_over"];
    assert_eq!(kinds[..3], switch, "{kinds:?}");
    settled(&now, &after);
    let leads = |seen: &Observation| {
        let lead = |a: &&Address| seen.report(a).is_some_and(|r| r.role == Role::Primary);
        now.layout.members().into_iter().find(lead).cloned()
    };
    assert_ne!(leads(&seen), leads(&after));
    let shard = now.layout.lone().unwrap();
    assert_eq!(crate::domain::sentinel::named(&shard.members, &after).cloned(), leads(&after));
}

#[test]
fn sentinels_that_do_not_answer_are_warned_of() {
    let (now, mut seen) = made(2, 3);
    let asked = FailoverIntent::default();
    assert_eq!(failover::amend(&asked, &now, &seen).unwrap().warnings, vec![]);
    let silent = now.layout.sentinels()[0].clone();
    seen.nodes.remove(&silent);
    let warnings = failover::amend(&asked, &now, &seen).unwrap().warnings;
    assert_eq!(warnings[0].code, "sentinels_silent");
    assert!(warnings[0].message.starts_with("1 of 3 Sentinels do not answer"), "{warnings:?}");
}

#[test]
fn an_old_primary_that_came_back_is_waited_for() {
    let (now, mut seen) = made(3, 3);
    let shard = now.layout.lone().unwrap().clone();
    let leads = crate::domain::sentinel::named(&shard.members, &seen).unwrap().clone();
    let back = shard.members.iter().find(|m| **m != leads).unwrap();
    if let Some(Sighting::Seen(report)) = seen.nodes.get_mut(back) {
        (report.role, report.replication.primary) = (Role::Primary, None);
    }
    let policy = Policy::default();
    let terms = repair::amend(&now, &seen).terms;
    let asked =
        Question { want: &now, seen: &seen, terms: &terms, policy: &policy, goal: Goal::Converge };
    assert!(matches!(next(&asked), Next::Wait(_)), "{:?}", next(&asked));
}

/// A replica is to leave: what is wanted and how, the node, and the world before.
fn leaving() -> (Topology, Amendment, Address, Observation) {
    let (now, seen) = made(3, 3);
    let shard = now.layout.lone().unwrap();
    let leads = crate::domain::sentinel::named(&shard.members, &seen).unwrap();
    let node = shard.members.iter().find(|m| *m != leads).unwrap().clone();
    let intent = RemoveReplicaIntent { node: node.clone() };
    let amendment = members::remove_replica(&intent, &now, &seen).unwrap();
    (amended(&now, &amendment), amendment, node, seen)
}

/// It froze at the hand-over, somebody else was elected, and it thaws before it leaves: the Sentinels make
/// it a replica. What nobody converts may have what nobody else has.
#[test]
fn a_leaver_that_comes_back_as_primary_is_waited_for() {
    let (want, amendment, node, mut seen) = leaving();
    if let Some(Sighting::Seen(report)) = seen.nodes.get_mut(&node) {
        (report.role, report.replication.primary) = (Role::Primary, None);
    }
    let (terms, policy) = (&amendment.terms, Policy::default());
    let next = |seen: &Observation| {
        next(&Question { want: &want, seen, terms, policy: &policy, goal: Goal::Converge })
    };
    let told = next(&seen);
    assert!(
        matches!(&told, Next::Wait(waits) if waits.iter().any(|(s, _)| s.kind() == "leave")),
        "{told:?}"
    );
    for sighting in seen.nodes.values_mut() {
        if let Sighting::Seen(report) = sighting
            && let Some(view) = &mut report.sentinel
        {
            for watch in view.watches.values_mut() {
                watch.replicas.retain(|replica| replica.address != node);
            }
        }
    }
    let told = next(&seen);
    assert!(
        matches!(&told, Next::Stuck(blockers) if blockers[0].code == "node_has_keys"),
        "{told:?}"
    );
}

/// A Sentinel that still lists who left makes it a replica again: the next one is not kept waiting until
/// those before it know all replicas. One that could lead a failover is left all the same.
#[test]
fn whoever_left_is_forgotten_in_time() {
    let (want, amendment, node, mut seen) = leaving();
    seen.nodes.insert(node.clone(), lone(&node));
    let (terms, policy) = (&amendment.terms, Policy::default());
    let next = |seen: &Observation| {
        next(&Question { want: &want, seen, terms, policy: &policy, goal: Goal::Converge })
    };
    let mut forgotten = Vec::new();
    for _ in 0..2 {
        let told = next(&seen);
        let Next::Act(steps) = &told else { panic!("{told:?}") };
        assert!(steps.iter().all(|s| s.kind() == "forget_ghosts"), "{told:?}");
        let sentinel = steps[0].action().nodes().remove(0);
        if let Some(Sighting::Seen(report)) = seen.nodes.get_mut(&sentinel) {
            let watch = report.sentinel.as_mut().unwrap().watches.get_mut("m").unwrap();
            watch.replicas.clear();
        }
        forgotten.push(sentinel);
    }
    assert_ne!(forgotten[0], forgotten[1]);
    let told = next(&seen);
    assert!(matches!(told, Next::Wait(_)), "the last one alone could lead: {told:?}");
}

#[test]
fn sentinels_come_and_go() {
    let (now, seen) = made(2, 3);
    let add = AddSentinelIntent { node: NodeChoice::New(watcher(3)) };
    let amendment = sentinels::add(&add, &now, &seen).unwrap();
    assert_eq!(amendment.warnings[0].code, "even_sentinels");
    let more = amended(&now, &amendment);
    let (kinds, seen) = carried_out(&more, &amendment.terms, &seen);
    // A quorum of three of four, on each.
    assert_eq!(kinds, ["watch", "watch", "watch", "watch", "await_watch"]);
    settled(&more, &seen);
    let remove = RemoveSentinelIntent { node: watcher(0).address };
    let amendment = sentinels::remove(&remove, &more, &seen).unwrap();
    let fewer = amended(&more, &amendment);
    let (kinds, seen) = carried_out(&fewer, &amendment.terms, &seen);
    let ghosts = kinds.iter().filter(|k| **k == "forget_ghosts").count();
    assert_eq!((ghosts, kinds.contains(&"unwatch")), (3, true), "{kinds:?}");
    settled(&fewer, &seen);
}

#[test]
fn one_that_still_watches_is_a_stranger() {
    let (now, mut seen) = made(2, 3);
    let address = watcher(9).address;
    for n in 0..3 {
        if let Some(Sighting::Seen(report)) = seen.nodes.get_mut(&watcher(n).address) {
            let watch = report.sentinel.as_mut().unwrap().watches.get_mut("m").unwrap();
            let other =
                WatchedSentinel { address: Some(address.clone()), down: false, quiet: false };
            watch.sentinels.insert("another".to_owned(), other);
        }
    }
    let (none, policy) = (BTreeSet::new(), Policy::default());
    let left = differences(&now, &none, &none, &seen, &policy);
    let told = left.iter().filter(|d| d.key.starts_with("stranger_sentinel"));
    assert_eq!(told.count(), 1, "{left:?}");
}

#[test]
fn replicas_leave_and_are_forgotten() {
    let (now, seen) = made(3, 3);
    let shard = now.layout.lone().unwrap();
    let leads = crate::domain::sentinel::named(&shard.members, &seen).unwrap().clone();
    let node = shard.members.iter().find(|m| **m != leads).unwrap().clone();
    let amendment = members::remove_replica(&RemoveReplicaIntent { node }, &now, &seen).unwrap();
    let fewer = amended(&now, &amendment);
    let (kinds, seen) = carried_out(&fewer, &amendment.terms, &seen);
    assert_eq!(kinds.iter().filter(|k| **k == "forget_ghosts").count(), 3, "{kinds:?}");
    settled(&fewer, &seen);
    // And the primary, in whose place another one comes.
    let with = NodeChoice::New(node_of(3));
    let intent = ReplaceNodeIntent { node: leads, with };
    let amendment = members::replace_node(&intent, &fewer, &seen).unwrap();
    let other = amended(&fewer, &amendment);
    let (kinds, seen) = carried_out(&other, &amendment.terms, &seen);
    let at = |kind: &str| kinds.iter().position(|k| *k == kind).unwrap();
    assert!(at("follow") < at("switch_over") && at("switch_over") < at("leave"), "{kinds:?}");
    settled(&other, &seen);
}

fn node_of(n: u16) -> NodeSpec {
    node(n, "a")
}

#[test]
fn nobody_watches_while_it_is_taken_apart() {
    let (now, seen) = made(2, 3);
    let amendment = dissolve::amend(&now, &BTreeSet::new(), &seen).unwrap();
    let gone = amended(&now, &amendment);
    let (kinds, _) = carried_out(&gone, &amendment.terms, &seen);
    assert_eq!(kinds[..3], ["unwatch"; 3], "{kinds:?}");
    assert!(kinds[3..].contains(&"reset_node"), "{kinds:?}");
}

#[test]
fn the_sentinel_with_the_fewest_clients_leads_when_it_is_time() {
    let (now, mut seen) = made(3, 3);
    let shard = now.layout.lone().unwrap().clone();
    let leads = crate::domain::sentinel::named(&shard.members, &seen).unwrap().clone();
    let to = shard.members.iter().find(|m| **m != leads).unwrap().clone();
    let watchers = Watchers {
        name: "m".to_owned(),
        sentinels: now.layout.sentinels().to_vec(),
        members: shard.members,
        apart: BTreeSet::new(),
    };
    let [first, second, third] = [0, 1, 2].map(|n| watcher(n).address);
    assert_eq!(watchers.leader(&to, &seen), Some(&third));
    for (sentinel, clients) in [(&first, 3), (&second, 1), (&third, 2)] {
        let Some(Sighting::Seen(report)) = seen.nodes.get_mut(sentinel) else { panic!() };
        report.connected_clients = clients;
    }
    assert_eq!(watchers.leader(&to, &seen), Some(&second));
    let changed = |of: &dyn Fn(&mut WatchedReplica)| {
        let mut seen = seen.clone();
        let Some(Sighting::Seen(report)) = seen.nodes.get_mut(&second) else { panic!() };
        let watch = report.sentinel.as_mut().unwrap().watches.get_mut("m").unwrap();
        watch.replicas.iter_mut().for_each(of);
        seen
    };
    let cut_off = changed(&|replica| {
        replica.flags.insert("s_down".to_owned());
    });
    assert_eq!(watchers.leader(&to, &cut_off), Some(&third));
    let mut tilted = seen.clone();
    let Some(Sighting::Seen(report)) = tilted.nodes.get_mut(&second) else { panic!() };
    report.sentinel.as_mut().unwrap().tilt = true;
    assert_eq!(watchers.leader(&to, &tilted), Some(&third));
    for (age_ms, ripe) in [
        (0, false),
        (299, false),
        (300, true),
        (649, true),
        (650, false),
        (999, false),
        (1000, true),
    ] {
        let asked = changed(&|replica| {
            replica.priority = if replica.address == to { 1 } else { 100 };
            replica.age_ms = age_ms;
        });
        assert_eq!(watchers.is_ripe(&second, &to, &asked), ripe, "{age_ms}");
        let all_alike = changed(&|replica| replica.age_ms = age_ms);
        assert!(!watchers.is_ripe(&second, &to, &all_alike), "nobody is preferred");
    }
}
