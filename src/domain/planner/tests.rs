//! Properties that every plan must have, whatever the nodes.

mod adopt;
mod bounds;
mod crowded;
mod dissolve;
mod drain;
mod drift;
mod functions;
mod held_up;
mod lone;
mod members;
mod moves;
mod replace;
mod watched;

use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::domain::id::TopologyId;
use crate::domain::intent::create;
use crate::domain::node::NodeKind;
use crate::domain::node::{Flavor, Version};
use crate::domain::observation::{
    ClusterView, Memory, Peer, Persistence, Replication, Report, Role, Sighting, Silence,
};
use crate::domain::placement;
use crate::domain::slot::SlotSet;
use crate::domain::spec::{NodeSpec, Spec};
use crate::domain::step::Action;
use crate::domain::topology::Layout;

const TOPOLOGY: TopologyId = TopologyId(Uuid::from_u128(7));

fn node(n: u16, zone: &str) -> NodeSpec {
    NodeSpec {
        address: format!("10.0.0.{}:7000", n + 1).parse().unwrap(),
        zone: zone.to_owned(),
        host: None,
    }
}

fn spec(shards: u16, replicas: u16, nodes: Vec<NodeSpec>) -> Spec {
    let json = serde_json::json!({
        "mode": "cluster", "shards": shards, "replicas_per_shard": replicas, "nodes": nodes,
    });
    serde_json::from_value(json).unwrap()
}

/// A node that was just started.
fn blank(address: &Address, keys: u64) -> Report {
    let id = ClusterNodeId(format!("{:0>40}", address.to_string().replace(['.', ':'], "0")));
    let me = Peer {
        address: Some(address.clone()),
        bus_port: None,
        role: Role::Primary,
        primary: None,
        epoch: 0,
        linked: true,
        suspect: false,
        failed: false,
        handshake: false,
        slots: SlotSet::empty(),
    };
    Report {
        observed_at: chrono::DateTime::UNIX_EPOCH,
        kind: NodeKind::Data,
        flavor: Flavor::Redis,
        version: Version::new(7, 0, 15),
        run_id: address.to_string(),
        uptime_seconds: 10,
        loading: false,
        role: Role::Primary,
        replication: Replication::default(),
        memory: Memory::default(),
        persistence: Persistence::default(),
        keys,
        functions: false,
        libraries: None,
        connected_clients: 1,
        cluster_enabled: true,
        sentinel: None,
        cluster: Some(ClusterView {
            my_id: id.clone(),
            state_ok: false,
            my_epoch: 0,
            current_epoch: 0,
            peers: [(id, me)].into(),
            open: vec![],
            health: BTreeMap::new(),
            jobs: vec![],
            trims: false,
        }),
        settings: [
            ("cluster-node-timeout".to_owned(), "15000".to_owned()),
            ("cluster-allow-replica-migration".to_owned(), "yes".to_owned()),
            ("repl-diskless-sync-delay".to_owned(), "5".to_owned()),
        ]
        .into(),
        has_replication_login: false,
        replication_login_as_wanted: None,
        requires_login: false,
        bus_reachable: Some(true),
    }
}

fn world(spec: &Spec, keys: u64) -> Observation {
    let sight =
        |n: &NodeSpec| (n.address.clone(), Sighting::Seen(Box::new(blank(&n.address, keys))));
    Observation { nodes: spec.nodes().iter().map(sight).collect(), marks: vec![] }
}

fn draft(spec: &Spec, seen: &Observation, reset: bool) -> (Topology, Terms) {
    let amended = create::amend(TOPOLOGY, spec, reset, seen).unwrap();
    let wanted = Topology {
        id: TOPOLOGY,
        name: "t".to_owned(),
        version: 1,
        spec: spec.clone(),
        layout: amended.layout,
    };
    (wanted, amended.terms)
}

fn ask<'a>(
    want: &'a Topology,
    seen: &'a Observation,
    terms: &'a Terms,
    policy: &'a Policy,
) -> Question<'a> {
    Question { want, seen, terms, policy, goal: Goal::Converge }
}

/// Which slots anybody claims.
fn owned(world: &Observation) -> SlotSet {
    world
        .nodes
        .keys()
        .filter_map(|a| world.view(a))
        .fold(SlotSet::empty(), |all, v| all.union(&v.my_slots()))
}

fn specs() -> impl Strategy<Value = Spec> {
    (3u16..7, 0u16..3, 0u16..3, 1usize..5).prop_flat_map(|(shards, replicas, spare, zones)| {
        let count = shards * (replicas + 1) + spare;
        Just((0..count).collect::<Vec<_>>()).prop_shuffle().prop_map(move |order| {
            let nodes = order.iter().map(|&n| node(n, &format!("z{}", usize::from(n) % zones)));
            spec(shards, replicas, nodes.collect())
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn folding_effects_leaves_nothing_to_do_and_no_mark(spec in specs(), keys in 0u64..2) {
        let seen = world(&spec, keys);
        let (want, terms) = draft(&spec, &seen, true);
        let policy = Policy::default();
        let plan = forecast(&ask(&want, &seen, &terms, &policy));
        prop_assert_eq!(&plan.blockers, &vec![]);
        prop_assert_eq!(&plan.world.marks, &vec![]);
        prop_assert_eq!(next(&ask(&want, &plan.world, &terms, &policy)), Next::Converged);
        prop_assert_eq!(owned(&plan.world), SlotSet::all());
        let again = forecast(&ask(&want, &plan.world, &Terms::default(), &policy));
        prop_assert_eq!(again.steps.len(), 0, "a made cluster needs no repair");
        // Settings are as they were before.
        for (address, before) in &seen.nodes {
            let (Sighting::Seen(before), Some(after)) = (before, plan.world.report(address)) else {
                return Err(TestCaseError::fail("a node vanished"));
            };
            prop_assert_eq!(&before.settings, &after.settings);
        }
    }

    #[test]
    fn no_prefix_harms_and_every_prefix_leads_to_the_end(spec in specs(), keys in 0u64..2) {
        let seen = world(&spec, keys);
        let (want, terms) = draft(&spec, &seen, keys > 0);
        let policy = Policy::default();
        let plan = forecast(&ask(&want, &seen, &terms, &policy));
        let mut now = seen;
        for step in &plan.steps {
            let owned_before = owned(&now);
            let action: &dyn Action = step.step.action();
            let before = now.clone();
            action.effect(&mut now);
            for (address, held) in before.nodes.keys().map(|a| (a, before.report(a).unwrap())) {
                let after = now.report(address).unwrap();
                // Here every node holds the only copy of its keys: they go with consent alone...
                let named = action.hazards().iter().any(|h| h.id == format!("flush:{address}"));
                prop_assert!(after.keys == held.keys || named, "{} drops keys", action.key());
                // ...and to become a replica is to lose what one holds.
                let demoted = held.role == Role::Primary && after.role == Role::Replica;
                prop_assert!(!demoted || held.keys == 0, "{} drops a copy", action.key());
            }
            prop_assert!(
                owned_before.difference(&owned(&now)).is_empty(),
                "{} gives up slots", action.key()
            );
            // A controller that dies here and starts again finds its way from what it sees.
            let rest = forecast(&ask(&want, &now, &terms, &policy));
            prop_assert_eq!(&rest.blockers, &vec![]);
            prop_assert_eq!(&rest.world.marks, &vec![]);
            prop_assert_eq!(owned(&rest.world), SlotSet::all());
            // Somebody who gives up here can take everything temporary away.
            let wind_down = Question { goal: Goal::WindDown, ..ask(&want, &now, &terms, &policy) };
            prop_assert_eq!(forecast(&wind_down).world.marks, vec![]);
        }
    }

    #[test]
    fn a_step_that_was_ready_is_done_after_its_effect(spec in specs(), keys in 0u64..2) {
        let mut now = world(&spec, keys);
        let (want, terms) = draft(&spec, &now, true);
        let policy = Policy::default();
        loop {
            let steps = match next(&ask(&want, &now, &terms, &policy)) {
                Next::Act(steps) => steps,
                Next::Wait(waits) => waits.into_iter().map(|(s, _)| s).collect(),
                Next::Converged => break,
                Next::Stuck(blockers) => return Err(TestCaseError::fail(format!("{blockers:?}"))),
            };
            for step in steps {
                step.action().effect(&mut now);
                prop_assert_eq!(step.action().check(&now), Check::Done, "{}", step.action().key());
            }
            let settled = settled_marks(&ask(&want, &now, &terms, &policy));
            now.marks.retain(|m| !settled.contains(m));
        }
    }

    #[test]
    fn the_plan_does_not_depend_on_the_order_of_nodes(spec in specs()) {
        let Spec::Cluster(cluster) = &spec else { unreachable!() };
        let mut sorted = cluster.clone();
        sorted.nodes.sort();
        let sorted = Spec::Cluster(sorted);
        let seen = world(&spec, 0);
        let policy = Policy::default();
        let keys = |spec: &Spec| {
            let (want, terms) = draft(spec, &seen, false);
            let plan = forecast(&ask(&want, &seen, &terms, &policy));
            (want.layout, plan.steps.into_iter().map(|s| s.step).collect::<Vec<_>>())
        };
        prop_assert_eq!(keys(&spec), keys(&sorted));
    }

    #[test]
    fn shares_are_even_and_putting_what_was_got_changes_nothing(spec in specs()) {
        let seen = world(&spec, 0);
        let (want, _) = draft(&spec, &seen, false);
        let Layout::Cluster { shards } = &want.layout else { unreachable!() };
        let sizes: Vec<_> = shards.iter().map(|(_, s)| s.count()).collect();
        prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);

        let got = serde_json::to_string(&spec).unwrap();
        let Spec::Cluster(put) = serde_json::from_str(&got).unwrap() else { unreachable!() };
        let placed = placement::place(&placement::Request {
            topology: TOPOLOGY,
            nodes: &put.nodes,
            shards: put.shards,
            replicas: put.replicas_per_shard,
            overrides: &put.overrides,
            placement: &put.placement,
            previous: Some(shards),
        }).unwrap();
        prop_assert_eq!(&placed.shards, shards);
    }
}

#[test]
fn nothing_is_flushed_that_was_not_named() {
    let spec = spec(3, 0, (0..3).map(|n| node(n, "a")).collect());
    let seen = world(&spec, 5);
    assert!(create::amend(TOPOLOGY, &spec, false, &seen).is_err(), "keys and no consent");
    let (want, mut terms) = draft(&spec, &seen, true);
    let policy = Policy::default();
    let plan = forecast(&ask(&want, &seen, &terms, &policy));
    let ids: Vec<_> = plan.hazards().into_iter().map(|h| h.id).collect();
    assert_eq!(ids, ["flush:10.0.0.1:7000", "flush:10.0.0.2:7000", "flush:10.0.0.3:7000"]);

    // Terms that name one node only stop at the others, and do not flush them.
    terms.resets.retain(|a, _| a.to_string() == "10.0.0.1:7000");
    let plan = forecast(&ask(&want, &seen, &terms, &policy));
    assert_eq!(plan.blockers.first().map(|b| b.code), Some("node_has_keys"));
    assert_eq!(plan.hazards().len(), 1);
}

#[test]
fn a_reset_is_for_the_process_that_was_meant() {
    let spec = spec(3, 0, (0..3).map(|n| node(n, "a")).collect());
    let seen = world(&spec, 5);
    let (want, terms) = draft(&spec, &seen, true);
    // Another process answers at the address now, with other keys.
    let mut moved = seen;
    let address = spec.nodes()[0].address.clone();
    if let Some(Sighting::Seen(report)) = moved.nodes.get_mut(&address) {
        let view = report.cluster.as_mut().unwrap();
        let me = view.peers.remove(&view.my_id).unwrap();
        view.my_id = ClusterNodeId("f".repeat(40));
        view.peers.insert(view.my_id.clone(), me);
    }
    let plan = forecast(&ask(&want, &moved, &terms, &Policy::default()));
    assert!(plan.steps.iter().all(|s| s.key != format!("reset_node:{address}")));
    assert_eq!(plan.blockers.first().map(|b| b.code), Some("node_has_keys"));
}

#[test]
fn strangers_stop_the_plan_before_anything_is_sent() {
    let spec = spec(3, 0, (0..3).map(|n| node(n, "a")).collect());
    let mut seen = world(&spec, 0);
    let (want, terms) = draft(&spec, &seen, false);
    let address = spec.nodes()[1].address.clone();
    if let Some(Sighting::Seen(report)) = seen.nodes.get_mut(&address) {
        let view = report.cluster.as_mut().unwrap();
        let mut stranger = view.me().unwrap().clone();
        stranger.address = Some("10.9.9.9:7000".parse().unwrap());
        view.peers.insert(ClusterNodeId("e".repeat(40)), stranger);
    }
    let plan = forecast(&ask(&want, &seen, &terms, &Policy::default()));
    assert_eq!(plan.steps.len(), 0);
    assert_eq!(plan.blockers.first().map(|b| b.code), Some("stranger"));
}

#[test]
fn a_silent_node_is_waited_for_and_its_marks_are_kept() {
    let spec = spec(3, 0, (0..3).map(|n| node(n, "a")).collect());
    let seen = world(&spec, 0);
    let (want, terms) = draft(&spec, &seen, false);
    let policy = Policy::default();
    let Next::Act(steps) = next(&ask(&want, &seen, &terms, &policy)) else { panic!() };
    let mut now = seen;
    for step in &steps {
        step.action().effect(&mut now);
    }
    assert_eq!(now.marks.len(), 6);
    let silent = spec.nodes()[2].address.clone();
    let silence = Silence {
        since: chrono::DateTime::UNIX_EPOCH,
        code: "unreachable".to_owned(),
        message: "refused".to_owned(),
    };
    now.nodes.insert(silent.clone(), Sighting::Silent(silence));
    // The others go on; then the plan waits for the silent one and says so.
    for _ in 0..10 {
        match next(&ask(&want, &now, &terms, &policy)) {
            Next::Act(steps) => steps.iter().for_each(|s| s.action().effect(&mut now)),
            Next::Wait(waits) => {
                assert!(waits.iter().any(|(_, w)| w.nodes.contains(&silent)));
                let q = Question { goal: Goal::WindDown, ..ask(&want, &now, &terms, &policy) };
                let left = forecast(&q).world.marks;
                assert_eq!(left.len(), 2, "what cannot be taken away stays marked");
                assert!(left.iter().all(|m| m.node == silent));
                return;
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("it never waits");
}

fn change(world: &mut Observation, address: &Address, change: impl FnOnce(&mut Report)) {
    match world.nodes.get_mut(address) {
        Some(Sighting::Seen(report)) => change(report),
        other => panic!("{other:?}"),
    }
}

#[test]
fn consent_to_a_flush_ends_with_what_it_was_given_for() {
    let spec = spec(3, 0, (0..3).map(|n| node(n, "a")).collect());
    let seen = world(&spec, 5);
    let (want, terms) = draft(&spec, &seen, true);
    let policy = Policy::default();
    let address = spec.nodes()[0].address.clone();
    let code = |now: &Observation| {
        let plan = forecast(&ask(&want, now, &terms, &policy));
        assert_eq!(plan.hazards().len(), 0, "nothing is flushed before the plan stops");
        plan.blockers.first().map(|b| b.code)
    };
    let mut restarted = seen.clone();
    change(&mut restarted, &address, |r| r.run_id = "another".to_owned());
    assert_eq!(code(&restarted), Some("node_has_keys"));
    let mut fuller = seen.clone();
    change(&mut fuller, &address, |r| r.keys = 6);
    assert_eq!(code(&fuller), Some("node_has_keys"));
    // It was taken into another cluster since, with its id, its process and its keys.
    let mut joined = seen;
    change(&mut joined, &address, |r| {
        let view = r.cluster.as_mut().unwrap();
        let mut other = view.me().unwrap().clone();
        other.address = Some("10.9.9.9:7000".parse().unwrap());
        view.peers.insert(ClusterNodeId("e".repeat(40)), other);
    });
    assert_eq!(code(&joined), Some("stranger"));
}

#[test]
fn a_cluster_with_data_is_never_hurried() {
    let spec = spec(3, 1, (0..6).map(|n| node(n, &format!("z{}", n % 3))).collect());
    let seen = world(&spec, 0);
    let (want, terms) = draft(&spec, &seen, false);
    let policy = Policy::default();
    let mut made = forecast(&ask(&want, &seen, &terms, &policy)).world;
    // In use, and one node lost sight of another.
    let primary = terms.primaries.values().next().unwrap().clone();
    change(&mut made, &primary, |r| {
        r.keys = 100;
        r.cluster.as_mut().unwrap().state_ok = false;
    });
    let kinds = |plan: Forecast| plan.steps.iter().map(|s| s.step.kind()).collect::<Vec<_>>();
    let plan = forecast(&ask(&want, &made, &terms, &policy));
    assert!(!kinds(plan).contains(&"set_temporary"));
}

#[test]
fn who_alone_believes_to_be_primary_gets_no_replicas() {
    let spec = spec(3, 1, (0..6).map(|n| node(n, &format!("z{}", n % 3))).collect());
    let seen = world(&spec, 0);
    let (want, terms) = draft(&spec, &seen, false);
    let policy = Policy::default();
    let mut made = forecast(&ask(&want, &seen, &terms, &policy)).world;
    let (shard, slots) = want.layout.shards().into_iter().next().unwrap();
    let (old, new) = (shard.members[0].clone(), shard.members[1].clone());
    let (old_id, new_id) =
        (made.view(&old).unwrap().my_id.clone(), made.view(&new).unwrap().my_id.clone());
    // The others elected the replica, which Reeve cannot reach; the old primary does not know.
    for node in want.layout.members() {
        if *node != old {
            change(&mut made, node, |r| {
                let peers = &mut r.cluster.as_mut().unwrap().peers;
                peers.get_mut(&old_id).unwrap().slots = SlotSet::empty();
                peers.get_mut(&new_id).unwrap().slots = slots.clone();
                peers.get_mut(&new_id).unwrap().role = Role::Primary;
            });
        }
    }
    let silence = Silence {
        since: chrono::DateTime::UNIX_EPOCH,
        code: "unreachable".to_owned(),
        message: "refused".to_owned(),
    };
    made.nodes.insert(new, Sighting::Silent(silence));
    assert_eq!(crate::domain::view::agreed_primary(shard, &slots, &made), None);
    // Nothing is sent to anybody; the plan waits for the node that cannot be reached.
    let next = next(&ask(&want, &made, &Terms::default(), &policy));
    assert!(matches!(next, Next::Wait(_)), "{next:?}");
}
