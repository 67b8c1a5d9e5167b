//! A zone or a node is drained for maintenance on real nodes, and comes back.

use std::time::Duration;

use reeve::demo::servers::Signal;
use serde_json::{Value, json};

use crate::support::orders::{PLANS, TOPOLOGY, carry_out, refused};
use crate::support::traffic::Traffic;
use crate::support::world::World;
use crate::support::{repeats, until};

const SOON: Duration = Duration::from_secs(30);

async fn orders(nodes: usize, replicas: u16) -> World {
    let mut world = World::new().await;
    world.add_nodes(nodes, &[("cluster-node-timeout", "500")]).await;
    world.create(&world.cluster("orders", 3, replicas)).await;
    world
}

/// The addresses of a zone's nodes.
fn there(world: &World, zone: &str) -> Vec<String> {
    let specs = world.node_specs();
    let of_zone = specs.iter().filter(|n| n["zone"] == zone);
    of_zone.map(|n| n["address"].as_str().unwrap().to_owned()).collect()
}

async fn topology(world: &World) -> Value {
    world.client.get(TOPOLOGY).await.unwrap()
}

async fn primaries(world: &World) -> Vec<String> {
    let topology = topology(world).await;
    let shards = topology["status"]["shards"].as_array().unwrap();
    shards.iter().map(|s| s["primary"].as_str().unwrap_or("").to_owned()).collect()
}

fn intent(kind: &str, field: &str, value: &str) -> Value {
    let mut intent = json!({ "kind": kind });
    intent[field] = json!(value);
    json!({ "intent": intent })
}

async fn drained(world: &World) -> Value {
    topology(world).await["spec"]["overrides"]["drained"].clone()
}

#[tokio::test]
async fn a_zone_is_drained_under_writes_and_comes_back() {
    let mut world = orders(6, 1).await;
    let soaks = repeats() > 3;
    let traffic = Traffic::start(&world.nodes[0].address());
    for turn in 0..if soaks { 9 } else { 0 } {
        let zone = ["a", "b", "c"][turn % 3];
        carry_out(&world, &intent("drain", "zone", zone)).await;
        carry_out(&world, &intent("undrain", "zone", zone)).await;
    }
    let before = primaries(&world).await;
    let version = topology(&world).await["version"].as_u64().unwrap();
    let zone = ["a", "b", "c"].into_iter().find(|z| there(&world, z).contains(&before[0])).unwrap();
    let away = there(&world, zone);
    let drain = intent("drain", "zone", zone);
    let preview = world.client.post(&format!("{PLANS}/preview"), &drain).await.unwrap();
    let codes: Vec<_> =
        preview["warnings"].as_array().unwrap().iter().map(|w| &w["code"]).collect();
    assert!(codes.contains(&&json!("no_replica_outside")), "{preview:#}");
    assert_eq!(drained(&world).await, Value::Null, "a preview stores nothing");

    let plan = carry_out(&world, &drain).await;
    let seen = traffic.stop();
    println!(
        "{} writes, longest gap {} ms, errors {}",
        seen.acknowledged, seen.gaps_ms[0], seen.errors
    );
    let enough = if soaks { 10_000 } else { 50 };
    assert!(seen.lost.is_empty() && seen.acknowledged > enough, "{seen:?}");
    assert_eq!(seen.errors, json!({}), "{seen:?}");
    let kinds: Vec<_> =
        plan["steps"].as_array().unwrap().iter().map(|s| s["kind"].clone()).collect();
    assert!(kinds.iter().all(|k| k == "fail_over" || k == "await_sync"), "{kinds:?}");
    assert!(primaries(&world).await.iter().all(|p| !away.contains(p)));
    assert_eq!(plan["to_version"], version + 1);
    let mut sorted = away.clone();
    sorted.sort();
    let mut names: Vec<String> = serde_json::from_value(drained(&world).await).unwrap();
    names.sort();
    assert_eq!(names, sorted);
    world.check_cluster(&[]);

    // Once more is nothing more.
    let again = carry_out(&world, &drain).await;
    assert_eq!((&again["steps"], &again["to_version"]), (&json!([]), &plan["to_version"]));

    // Its nodes may go and come back: the cluster serves all the while.
    let gone: Vec<usize> = (0..6).filter(|n| away.contains(&world.nodes[*n].address())).collect();
    for node in &gone {
        world.nodes[*node].signal(Signal::STOP).unwrap();
    }
    let undrain = intent("undrain", "zone", zone);
    let proposed = json!({ "intent": undrain["intent"], "plan": { "start": false } });
    world.client.submit(PLANS, &proposed, None).await.unwrap();
    for node in &gone {
        world.nodes[*node].signal(Signal::CONT).unwrap();
    }
    let serving = primaries(&world).await;
    let back = carry_out(&world, &undrain).await;
    assert_eq!(back["steps"], json!([]));
    assert_eq!(drained(&world).await, Value::Null);
    assert_eq!(primaries(&world).await, serving);
    let problem = refused(&world, &undrain).await;
    assert_eq!((problem.status, problem.code.as_deref()), (409, Some("nodes_unfit")));
}

#[tokio::test]
async fn who_is_silent_in_the_zone_does_not_hinder() {
    let mut world = orders(6, 1).await;
    let leading = primaries(&world).await;
    let replica = (0..6).find(|n| !leading.contains(&world.nodes[*n].address())).unwrap();
    let zone = world.node_specs()[replica]["zone"].as_str().unwrap().to_owned();
    world.nodes[replica].signal(Signal::STOP).unwrap();
    let plan = carry_out(&world, &intent("drain", "zone", &zone)).await;
    assert_eq!(plan["to_version"], 2);
    let away = there(&world, &zone);
    assert!(primaries(&world).await.iter().all(|p| !away.contains(p)));
    // Another one that is silent hinders, since its shard could not be judged.
    let other = ["a", "b", "c"].into_iter().find(|z| *z != zone).unwrap();
    let problem = refused(&world, &intent("drain", "zone", other)).await;
    assert_eq!(problem.code.as_deref(), Some("unsettled"), "{problem:?}");
    world.nodes[replica].signal(Signal::CONT).unwrap();
}

#[tokio::test]
async fn what_cannot_work_is_refused_and_touches_nothing() {
    let world = orders(6, 1).await;
    let untouched = world.untouched();
    let cases = [
        (json!({ "kind": "drain" }), 422, "either a `zone` or a `node`"),
        (
            json!({ "kind": "drain", "zone": "a", "node": "127.0.0.1:1" }),
            422,
            "either a `zone` or a `node`",
        ),
        (json!({ "kind": "drain", "zone": "x" }), 422, "its zones are a, b, c"),
        (json!({ "kind": "drain", "node": "127.0.0.1:1" }), 422, "is no node of this topology"),
        (json!({ "kind": "drain", "zone": "a", "shard": 1 }), 422, "shard"),
        (json!({ "kind": "undrain", "zone": "a" }), 409, "no node in zone `a` is drained"),
        (json!({ "kind": "undrain", "node": world.nodes[0].address() }), 409, "is not drained"),
        (json!({ "kind": "undrain" }), 422, "either a `zone` or a `node`"),
    ];
    for (intent, status, word) in cases {
        let problem = refused(&world, &json!({ "intent": intent })).await;
        let told = format!("{} {:?}", problem.detail.as_deref().unwrap_or(""), problem.errors);
        assert_eq!(problem.status, status, "{intent}: {told}");
        assert!(told.contains(word), "{intent}: {told}");
    }
    assert_eq!(untouched, world.untouched());
    // With one replica each, its shards have nobody left when a second zone is to be drained.
    carry_out(&world, &intent("drain", "zone", "a")).await;
    let problem = until("the last zone but one is refused", SOON, async || {
        let problem = refused(&world, &intent("drain", "zone", "b")).await;
        if problem.code.as_deref() == Some("nodes_unfit") {
            Ok(problem)
        } else {
            Err(format!("{problem:?}"))
        }
    })
    .await;
    assert_eq!(problem.status, 409);
    assert!(format!("{:?}", problem.errors).contains("add_replica"), "{problem:?}");
    assert_eq!(topology(&world).await["version"], 2);
}
