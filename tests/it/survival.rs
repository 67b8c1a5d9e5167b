//! What was computed to be survived, against what real processes then do by themselves. The first
//! three cases run always, all ten in `make soak`.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::advice::{advice, request};
use crate::support::installed::{Installed, Running, addresses};
use crate::support::world::World;
use crate::support::{repeats, until};

/// Who is lost, by what they are in the layout.
#[derive(Debug, Clone, Copy)]
enum Loses {
    Primary,
    Replica,
    /// The zone of the first shard's primary.
    Zone,
    TwoPrimaries,
    Shard,
    PrimaryAndTwoSentinels,
    TwoSentinels,
}

const CASES: &[(&str, Loses, &str)] = &[
    ("cluster", Loses::Zone, "failover"),
    ("sentinel", Loses::Zone, "failover"),
    ("replication", Loses::Primary, "no_quorum"),
    ("cluster", Loses::Primary, "failover"),
    ("cluster", Loses::TwoPrimaries, "no_quorum"),
    ("cluster", Loses::Shard, "data_unavailable"),
    ("sentinel", Loses::Primary, "failover"),
    ("sentinel", Loses::PrimaryAndTwoSentinels, "no_quorum"),
    ("sentinel", Loses::TwoSentinels, "intact"),
    ("replication", Loses::Replica, "intact"),
];

#[tokio::test]
async fn what_is_survived_in_theory_is_survived_in_fact() {
    let count = if repeats() > 3 { CASES.len() } else { 3 };
    for (mode, loses, outcome) in &CASES[..count] {
        match *mode {
            "cluster" => Box::pin(of_cluster(*loses, outcome)).await,
            _ => Box::pin(of_one_shard(mode, *loses, outcome)).await,
        }
    }
}

fn survived(outcome: &str) -> bool {
    matches!(outcome, "intact" | "failover")
}

/// Whether it becomes so within the time that the timeouts of the tests leave for a failover.
async fn becomes(mut so: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(12) {
        if so() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    false
}

async fn of_cluster(loses: Loses, outcome: &str) {
    let mut world = World::new().await;
    world.add_nodes(6, &[("cluster-node-timeout", "1000")]).await;
    world.create(&world.cluster("orders", 3, 1)).await;
    let topology = world.client.get("/v1/topologies/orders").await.unwrap();
    let shards = topology["status"]["shards"].as_array().unwrap();
    let primary = |i: usize| shards[i]["primary"].as_str().unwrap().to_owned();
    let replica = |i: usize| shards[i]["replicas"][0]["address"].as_str().unwrap().to_owned();
    let nodes: Vec<String> = match loses {
        Loses::Primary => vec![primary(0)],
        Loses::TwoPrimaries => vec![primary(0), primary(1)],
        Loses::Shard => vec![primary(0), replica(0)],
        Loses::Replica => vec![replica(0)],
        Loses::Zone | Loses::PrimaryAndTwoSentinels | Loses::TwoSentinels => {
            let specs = world.node_specs();
            let at = |a: &str| specs.iter().find(|n| n["address"] == a).unwrap()["zone"].clone();
            let zone = at(&primary(0));
            let there = specs.iter().filter(|n| n["zone"] == zone);
            there.map(|n| n["address"].as_str().unwrap().to_owned()).collect()
        }
    };
    let fail = json!({ "fail": { "nodes": nodes } });
    let told = world.client.post("/v1/topologies/orders/what-if", &fail).await.unwrap();
    assert_eq!(told["outcome"], outcome, "{loses:?}: {told:#}");

    // Nobody votes twice for a shard within a short time after the cluster was formed.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (mut lost, mut left) = (vec![], vec![]);
    for (i, node) in world.nodes.iter().enumerate() {
        if nodes.contains(&node.address()) { lost.push(i) } else { left.push(i) }
    }
    lost.iter().for_each(|&i| world.nodes[i].kill());
    // It takes until the dead are found out that the cluster says so.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ok = |i: &usize| world.ask(*i, &["CLUSTER", "INFO"]).contains("cluster_state:ok");
    let serves = becomes(|| left.iter().all(ok)).await;
    assert_eq!(serves, survived(outcome), "{loses:?} of a cluster");
    if let Some(promoted) = told["promoted"].as_array().and_then(|p| p.first()) {
        let heir = promoted["candidates"][0].as_str().unwrap();
        let at = world.nodes.iter().position(|n| n.address() == heir).unwrap();
        assert!(world.ask(at, &["ROLE"]).starts_with("master"), "{heir} was to take over");
    }
}

async fn of_one_shard(mode: &str, loses: Loses, outcome: &str) {
    let (_ports, all) = addresses(6);
    let (nodes, watch) = all.split_at(3);
    let mut request = request(mode, nodes);
    request["assumptions"] = json!({ "down_after_ms": 1000 });
    if mode == "sentinel" {
        request["sentinels"] = crate::advice::specs(watch);
    }
    let advice = advice(request);
    let installed = Installed::new(Path::new("redis-server"), &advice["config_files"]);
    let mut data = Vec::new();
    for node in nodes {
        data.push((node.clone(), installed.start(node).await));
    }
    let members = advice["layout"][0]["members"].as_array().unwrap();
    let first = members[0]["address"].as_str().unwrap();
    let at = nodes.iter().position(|n| n == first).unwrap();
    assert_eq!(data[at].1.ask(&["REPLICAOF", "NO", "ONE"]), "OK");
    until("replicas follow and writes are taken", Duration::from_secs(20), async || {
        let info = data[at].1.ask(&["INFO", "replication"]);
        let ready = info.matches("state=online").count() == 2 && writes(&data[at].1);
        if ready { Ok(()) } else { Err(info) }
    })
    .await;
    let mut sentinels = Vec::new();
    if mode == "sentinel" {
        for node in watch {
            sentinels.push((node.clone(), installed.start(node).await));
        }
        for (_, sentinel) in &sentinels {
            until("the Sentinels know all", Duration::from_secs(30), async || {
                let said = sentinel.ask(&["SENTINEL", "MASTER", "orders"]).replace('\n', " ");
                let known = said.contains("num-slaves 2") && said.contains("num-other-sentinels 2");
                if known { Ok(()) } else { Err(said) }
            })
            .await;
        }
    }

    let zone = &members[0]["zone"];
    let in_zone = |node: &str| {
        let listed = ["nodes", "sentinels"].map(|list| &advice["topology"]["spec"][list]);
        let all = listed.into_iter().filter_map(Value::as_array).flatten();
        all.clone().any(|n| n["address"] == node && n["zone"] == *zone)
    };
    let other = |i: usize| members[i]["address"].as_str().unwrap().to_owned();
    let lost: Vec<String> = match loses {
        Loses::Primary | Loses::TwoPrimaries => vec![first.to_owned()],
        Loses::Replica => vec![other(1)],
        Loses::Zone => all.iter().filter(|n| in_zone(n)).cloned().collect(),
        Loses::Shard => nodes.to_vec(),
        Loses::TwoSentinels => watch[..2].to_vec(),
        Loses::PrimaryAndTwoSentinels => [&[first.to_owned()], &watch[..2]].concat(),
    };
    assert_eq!(told(&advice, &lost), outcome, "{loses:?} in mode {mode}");
    data.retain(|(node, _)| !lost.contains(node));
    sentinels.retain(|(node, _)| !lost.contains(node));
    let serves = becomes(|| data.iter().any(|(_, node)| writes(node))).await;
    assert_eq!(serves, survived(outcome), "{loses:?} in mode {mode}");
}

fn writes(node: &Running) -> bool {
    node.ask(&["SET", "key", "value"]) == "OK"
}

/// What was computed for the loss of these nodes of an advised topology.
fn told(advice: &Value, lost: &[String]) -> String {
    use reeve::domain::survivability::{Electors, Group, Lost, Part, Scene, what_if};
    let part = |n: &Value| Part {
        address: n["address"].as_str().unwrap().parse().unwrap(),
        zone: n["zone"].as_str().unwrap().to_owned(),
        host: n["address"].as_str().unwrap().to_owned(),
    };
    let parts = |list: &Value| list.as_array().unwrap().iter().map(part).collect::<Vec<_>>();
    let members = parts(&advice["layout"][0]["members"]);
    let group = Group {
        id: serde_json::from_value(advice["layout"][0]["id"].clone()).unwrap(),
        slots: reeve::domain::slot::SlotSet::empty(),
        primary: Some(members[0].address.clone()),
        members,
    };
    let electors = match advice["topology"]["spec"]["sentinels"].as_array() {
        Some(_) => Electors::Sentinels {
            parts: parts(&advice["topology"]["spec"]["sentinels"]),
            needed: 2,
        },
        None => Electors::Nobody,
    };
    let nodes = lost.iter().map(|n| n.parse().unwrap()).collect();
    let scene = Scene { groups: vec![group], electors };
    let loss = what_if(&scene, &Lost { nodes, ..Lost::default() });
    serde_json::to_value(loss.outcome).unwrap().as_str().unwrap().to_owned()
}
