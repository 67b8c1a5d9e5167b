//! A topology's spec is replaced, on real nodes.

use std::time::Duration;

use reeve::client::{ClientError, Problem};
use serde_json::{Value, json};

use crate::support::orders::{PLANS, TOPOLOGY, is_blank};
use crate::support::plans::{ends, id};
use crate::support::traffic::Traffic;
use crate::support::until;
use crate::support::world::World;

const SOON: Duration = Duration::from_secs(40);

/// A cluster of three shards with a replica each on the first six nodes.
async fn orders(others: usize) -> World {
    let mut world = World::new().await;
    let config = [("cluster-node-timeout", "1000"), ("repl-diskless-sync-delay", "0")];
    world.add_nodes(6 + others, &config).await;
    let mut body = world.cluster("orders", 3, 1);
    body["spec"]["nodes"] = Value::Array(world.node_specs()[..6].to_vec());
    world.create(&body).await;
    for n in 0..30 {
        let set = world.ask(0, &["-c", "SET", &format!("key:{n}"), "x"]);
        assert!(set.ends_with("OK"), "{set}");
    }
    world
}

async fn topology(world: &World) -> Value {
    world.client.get(TOPOLOGY).await.unwrap()
}

async fn put(world: &World, spec: &Value) -> Result<Value, Problem> {
    let tag = world.client.etag(TOPOLOGY).await.unwrap().unwrap();
    put_at(world, &json!({ "spec": spec }), Some(&tag)).await
}

async fn put_at(world: &World, body: &Value, tag: Option<&str>) -> Result<Value, Problem> {
    match world.client.put(TOPOLOGY, body, tag).await {
        Ok(plan) => Ok(plan),
        Err(ClientError::Problem(problem)) => Err(*problem),
        Err(other) => panic!("{other:#?}"),
    }
}

/// Puts the spec and waits for the plan's end.
async fn carry_out(world: &World, spec: &Value) -> Value {
    let plan = put(world, spec).await.unwrap();
    assert_eq!(plan["intent"]["kind"], "replace_spec");
    ends(world, &id(&plan), "succeeded", SOON).await
}

/// What GET gives is put without a step and without a version.
async fn puts_back(world: &World) {
    let now = topology(world).await;
    let plan = until("it is settled", SOON, async || {
        put(world, &now["spec"]).await.map_err(|p| format!("{p:?}"))
    })
    .await;
    let plan = ends(world, &id(&plan), "succeeded", SOON).await;
    assert_eq!(plan["steps"], json!([]), "{plan:#}");
    let after = topology(world).await;
    assert_eq!((&after["version"], &after["layout"]), (&now["version"], &now["layout"]));
}

fn number(world: &World, address: &Value) -> usize {
    world.nodes.iter().position(|n| *address == n.address()).unwrap()
}

#[tokio::test]
async fn nodes_come_and_go_in_one_put_under_writes() {
    let world = orders(2).await;
    puts_back(&world).await;
    let now = topology(&world).await;
    let shards = now["status"]["shards"].as_array().unwrap();
    let (primary, replica) = (&shards[0]["primary"], &shards[1]["replicas"][0]["address"]);
    let (primary, replica) = (number(&world, primary), number(&world, replica));
    let mut spec = now["spec"].clone();
    let nodes = spec["nodes"].as_array_mut().unwrap();
    for (old, new) in [(primary, 6), (replica, 7)] {
        let node = nodes.iter_mut().find(|n| n["address"] == world.nodes[old].address()).unwrap();
        node["address"] = json!(world.nodes[new].address());
    }
    let body = json!({ "intent": { "kind": "replace_spec", "spec": spec } });
    let untouched = world.untouched();
    let preview = world.client.post(&format!("{PLANS}/preview"), &body).await.unwrap();
    let kinds: Vec<_> =
        preview["steps"].as_array().unwrap().iter().map(|s| s["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds.iter().filter(|k| **k == "leave").count(), 2, "{kinds:?}");
    assert_eq!(untouched, world.untouched());

    let traffic = Traffic::start(shards[2]["primary"].as_str().unwrap());
    carry_out(&world, &spec).await;
    let seen = traffic.stop();
    println!(
        "{} writes, longest gap {} ms, errors {}",
        seen.acknowledged, seen.gaps_ms[0], seen.errors
    );
    assert!(seen.lost.is_empty() && seen.acknowledged > 100, "{seen:?}");
    assert!(is_blank(&world, primary) && is_blank(&world, replica));
    let after = topology(&world).await;
    assert_eq!((&after["spec"], &after["version"]), (&spec, &json!(2)));
    world.check_cluster_of(6, &[]);
    let free = world.client.get("/v1/nodes?unassigned=true").await.unwrap();
    assert_eq!(free["items"].as_array().unwrap().len(), 2);
    puts_back(&world).await;
}

#[tokio::test]
async fn settings_are_put_and_replicas_are_added() {
    let world = orders(3).await;
    let mut spec = topology(&world).await["spec"].clone();
    spec["settings"] = json!({ "maxmemory": "64mb" });
    let plan = carry_out(&world, &spec).await;
    let kinds: Vec<_> =
        plan["steps"].as_array().unwrap().iter().map(|s| s["kind"].clone()).collect();
    assert!(kinds.iter().all(|k| k == "configure" || k == "rewrite_config"), "{kinds:?}");
    for node in 0..6 {
        assert_eq!(world.ask(node, &["CONFIG", "GET", "maxmemory"]), "maxmemory\n67108864");
    }
    puts_back(&world).await;
    spec["replicas_per_shard"] = json!(2);
    spec["nodes"].as_array_mut().unwrap().extend(world.node_specs()[6..].to_vec());
    carry_out(&world, &spec).await;
    assert_eq!(world.ask(8, &["CONFIG", "GET", "maxmemory"]), "maxmemory\n67108864");
    world.check_cluster(&[]);
    puts_back(&world).await;
}

#[tokio::test]
async fn what_get_gave_plans_nothing_after_other_plans() {
    let world = orders(1).await;
    let add = json!({ "intent": { "kind": "add_replica", "node": world.node_specs()[6] } });
    let plan = world.client.submit(PLANS, &add, Some(40)).await.unwrap();
    assert_eq!(plan["state"], "succeeded", "{plan:#}");
    puts_back(&world).await;
    let drain = json!({ "intent": { "kind": "drain", "node": world.nodes[0].address() } });
    let plan = world.client.submit(PLANS, &drain, Some(40)).await.unwrap();
    assert_eq!(plan["state"], "succeeded", "{plan:#}");
    puts_back(&world).await;
    // Forgotten and taken over as it is.
    let tag = world.client.etag(TOPOLOGY).await.unwrap();
    world.client.delete(TOPOLOGY, tag.as_deref()).await.unwrap();
    let adopt = json!({ "name": "orders", "seeds": [world.nodes[0].address()] });
    world.client.post("/v1/adoptions", &adopt).await.unwrap();
    puts_back(&world).await;
}

#[tokio::test]
async fn what_cannot_work_is_refused_and_touches_nothing() {
    let world = orders(1).await;
    let spec = topology(&world).await["spec"].clone();
    let tag = world.client.etag(TOPOLOGY).await.unwrap().unwrap();
    let untouched = world.untouched();
    let without = put_at(&world, &json!({ "spec": spec }), None).await.unwrap_err();
    assert_eq!((without.status, without.code.as_deref()), (428, Some("precondition_required")));
    let stale = put_at(&world, &json!({ "spec": spec }), Some("\"7-1\"")).await.unwrap_err();
    assert_eq!((stale.status, stale.code.as_deref()), (412, Some("precondition_failed")));
    let with = |change: &dyn Fn(&mut Value)| {
        let mut spec = spec.clone();
        change(&mut spec);
        spec
    };
    let dead = json!({ "address": "127.0.0.1:1", "zone": "a" });
    let cases = [
        (with(&|s| s["shards"] = json!(4)), 422, "invalid_body", "need 8 nodes"),
        (
            with(&|s| *s = json!({ "mode": "replication", "replicas": 1, "nodes": s["nodes"] })),
            422,
            "invalid_body",
            "/spec/mode",
        ),
        (with(&|s| s["nodes"][0]["zone"] = json!("")), 422, "invalid_body", "/spec/nodes/0/zone"),
        (with(&|s| s["colour"] = json!(1)), 422, "invalid_body", "/spec/colour"),
        (
            with(&|s| {
                s["nodes"].as_array_mut().unwrap().pop();
            }),
            422,
            "invalid_body",
            "need 6 nodes",
        ),
        (with(&|s| s["nodes"][0] = dead.clone()), 409, "nodes_unfit", "does not answer"),
        (
            with(&|s| s["overrides"] = json!({ "drained": ["127.0.0.1:1"] })),
            422,
            "invalid_body",
            "/spec/overrides/drained/0",
        ),
        (
            with(&|s| s["credentials"]["replication"] = json!("nobody")),
            422,
            "invalid_body",
            "/spec/credentials/replication",
        ),
    ];
    for (spec, status, code, word) in cases {
        let problem = put(&world, &spec).await.unwrap_err();
        let told = format!("{} {:?}", problem.detail.as_deref().unwrap_or(""), problem.errors);
        assert_eq!((problem.status, problem.code.as_deref()), (status, Some(code)), "{told}");
        assert!(told.contains(word), "{told}");
    }
    // By POST it can only be previewed, and what is wrong is told where that body has it.
    let bad =
        json!({ "intent": { "kind": "replace_spec", "spec": with(&|s| s["shards"] = json!(2)) } });
    match world.client.post(&format!("{PLANS}/preview"), &bad).await {
        Err(ClientError::Problem(p)) => {
            assert!(format!("{:?}", p.errors).contains("/intent/spec/shards"), "{p:?}");
        }
        other => panic!("{other:?}"),
    }
    match world.client.post(PLANS, &bad).await {
        Err(ClientError::Problem(p)) => assert_eq!(p.status, 422),
        other => panic!("{other:?}"),
    }
    assert_eq!(untouched, world.untouched());
    assert_eq!(topology(&world).await["version"], 1);
    // Labels change the revision, and with it what may be put.
    let labels = json!({ "labels": { "team": "shop" } });
    world.client.patch(TOPOLOGY, &labels, Some(&tag)).await.unwrap();
    let stale = put_at(&world, &json!({ "spec": spec }), Some(&tag)).await.unwrap_err();
    assert_eq!(stale.status, 412);
}
