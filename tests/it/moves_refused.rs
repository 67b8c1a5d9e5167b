//! Moves of slots that make no sense, or for which there is no room: each is refused before anything is
//! stored, and no node is touched. Previews touch none either.

use reeve::client::{ClientError, Problem};
use serde_json::{Value, json};

use crate::support::orders::{PLANS, TOPOLOGY, refused};
use crate::support::world::World;

/// Four shards without replicas, with keys, and two blank nodes that are in no topology.
async fn orders() -> World {
    let mut world = World::new().await;
    world.add_nodes(6, &[("cluster-node-timeout", "1000")]).await;
    world.create(&world.cluster_of("orders", 0..4)).await;
    for n in 0..40 {
        let set = world.ask(0, &["-c", "SET", &format!("key:{n}"), "x"]);
        assert!(set.ends_with("OK"), "{set}");
    }
    world
}

fn told(problem: &Problem) -> (u16, &str, &str) {
    let pointer = problem.errors.first().map_or("", |e| e.pointer.as_str());
    (problem.status, problem.code.as_deref().unwrap_or(""), pointer)
}

async fn preview(world: &World, intent: &Value) -> Result<Value, Problem> {
    match world.client.post(&format!("{PLANS}/preview"), &json!({ "intent": intent })).await {
        Ok(preview) => Ok(preview),
        Err(ClientError::Problem(problem)) => Err(*problem),
        Err(other) => panic!("{other:#?}"),
    }
}

#[tokio::test]
async fn what_makes_no_sense_names_its_field() {
    let world = orders().await;
    let untouched = world.untouched();
    let one = |step: Value| json!({ "kind": "reshard", "moves": [step] });
    let topology = world.client.get(TOPOLOGY).await.unwrap();
    let member = &topology["layout"]["shards"][0]["members"][0];
    let new = &world.node_specs()[4];
    let cases = [
        (json!({ "kind": "reshard" }), "/intent/moves"),
        (json!({ "kind": "reshard", "moves": [] }), "/intent/moves"),
        (one(json!({ "from": "0", "to": "1" })), "/intent/moves/0"),
        (one(json!({ "from": "9", "to": "1", "count": 1 })), "/intent/moves/0/from"),
        (one(json!({ "from": "0", "to": "127.0.0.1:1", "count": 1 })), "/intent/moves/0/to"),
        (one(json!({ "from": "0", "to": member, "count": 1 })), "/intent/moves/0/to"),
        (one(json!({ "from": "0", "to": "1", "count": 4097 })), "/intent/moves/0/count"),
        (one(json!({ "from": "0", "to": "1", "count": -1 })), "/intent/moves/0/count"),
        (one(json!({ "from": "0", "to": "1", "slots": "9-1" })), "/intent/moves/0/slots"),
        (one(json!({ "from": "0", "to": "1", "slots": "16383" })), "/intent/moves/0/slots"),
        (one(json!({ "from": "0", "to": "1", "count": 1, "fast": true })), "/intent/moves/0/fast"),
        (
            json!({ "kind": "reshard", "max_latency_ms": 1001,
                    "moves": [{ "from": "0", "to": "1", "count": 1 }] }),
            "/intent/max_latency_ms",
        ),
        (
            json!({ "kind": "reshard", "moves": [{ "from": "0", "to": "1", "slots": "0-9" },
                                                 { "from": "0", "to": "2", "slots": "9-10" }] }),
            "/intent/moves/1/slots",
        ),
        (json!({ "kind": "rebalance", "by": "luck" }), "/intent/by"),
        (json!({ "kind": "rebalance", "weights": { "0": -1 } }), "/intent/weights/0"),
        (json!({ "kind": "rebalance", "weights": { "x/y": 1 } }), "/intent/weights/x~1y"),
        (
            json!({ "kind": "rebalance", "weights": { "0": 0, "1": 0, "2": 0, "3": 0 } }),
            "/intent/weights",
        ),
        (json!({ "kind": "rebalance", "threshold_percent": 101 }), "/intent/threshold_percent"),
        (json!({ "kind": "add_shard" }), "/intent/nodes"),
        (json!({ "kind": "add_shard", "nodes": [] }), "/intent/nodes"),
        (json!({ "kind": "add_shard", "nodes": [new, new] }), "/intent/nodes/1"),
        (json!({ "kind": "add_shard", "nodes": [world.node_specs()[0]] }), "/intent/nodes/0"),
        // A spare of the topology it is not.
        (json!({ "kind": "add_shard", "nodes": [new["address"]] }), "/intent/nodes/0"),
        (json!({ "kind": "remove_shard" }), "/intent"),
        (json!({ "kind": "remove_shard", "shard": "7" }), "/intent/shard"),
        (json!({ "kind": "remove_shard", "primary": new["address"] }), "/intent/primary"),
    ];
    for (intent, at) in cases {
        let problem = refused(&world, &json!({ "intent": intent })).await;
        assert_eq!(told(&problem), (422, "invalid_body", at), "{intent}: {problem:?}");
        let previewed = preview(&world, &intent).await.unwrap_err();
        assert_eq!(told(&previewed), told(&problem), "{intent}");
    }
    assert_eq!(untouched, world.untouched());
    let plans = world.client.get("/v1/plans?topology=orders").await.unwrap();
    assert_eq!(plans["items"].as_array().unwrap().len(), 1, "nothing but the create is stored");
}

#[tokio::test]
async fn what_cannot_be_now_is_refused_with_its_figures() {
    let world = orders().await;
    let untouched = world.untouched();
    // The nodes that would take the slots in use more than they may already.
    for node in 0..4 {
        world.ask(node, &["CONFIG", "SET", "maxmemory", "1mb"]);
    }
    let remove = json!({ "kind": "remove_shard", "primary": world.nodes[3].address() });
    let problem = preview(&world, &remove).await.unwrap_err();
    assert_eq!(told(&problem), (409, "nodes_unfit", "/intent/primary"), "{problem:?}");
    assert!(problem.errors[0].detail.contains("room for 0 bytes"), "{problem:?}");
    // One that holds keys, and one that is another's.
    world.ask(4, &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    let add =
        json!({ "kind": "add_shard", "nodes": [world.node_specs()[5], world.node_specs()[4]] });
    let problem = preview(&world, &add).await.unwrap_err();
    assert_eq!(told(&problem), (409, "nodes_unfit", "/intent/nodes/1"), "{problem:?}");
    world.ask(4, &["CLUSTER", "DELSLOTSRANGE", "0", "16383"]);
    assert_eq!(untouched, world.untouched());
}

#[tokio::test]
async fn previews_tell_all_and_touch_nothing() {
    let world = orders().await;
    let untouched = world.untouched();
    let slots = world.client.get(&format!("{TOPOLOGY}/slots")).await.unwrap();
    let count = |shard: &Value| shard["count"].as_u64().unwrap();
    assert_eq!(
        slots["shards"].as_array().unwrap().iter().map(count).collect::<Vec<_>>(),
        [4096; 4]
    );
    assert_eq!((&slots["assigned"], &slots["open"]), (&json!(16384), &json!([])));
    let kinds = |preview: &Value| {
        let steps = preview["steps"].as_array().unwrap().iter();
        steps.map(|s| s["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let count = |preview: &Value, kind: &str| kinds(preview).iter().filter(|k| *k == kind).count();

    let topology = world.client.get(TOPOLOGY).await.unwrap();
    let other = &topology["layout"]["shards"][1]["members"][0];
    let reshard = json!({ "kind": "reshard", "max_latency_ms": 7,
                          "moves": [{ "from": "0", "to": other, "slots": "0-99" }] });
    let told = preview(&world, &reshard).await.unwrap();
    assert_eq!(
        (told["estimate"]["slots"].as_u64(), count(&told, "move_slots")),
        (Some(100), 1),
        "{told:#}"
    );
    let step =
        told["steps"].as_array().unwrap().iter().find(|s| s["kind"] == "move_slots").unwrap();
    let commands = step["commands"].to_string();
    for shown in ["SETSLOT {0..99} IMPORTING", "BUMPEPOCH", "SETSLOT {0..99} NODE"] {
        assert!(commands.contains(shown), "{shown}: {step:#}");
    }

    let add = json!({ "kind": "add_shard", "nodes": world.node_specs()[4..6] });
    let told = preview(&world, &add).await.unwrap();
    assert_eq!(told["estimate"]["slots"], 3276, "{told:#}");
    assert_eq!(
        (count(&told, "move_slots"), count(&told, "replicate")),
        (4, 1),
        "{:?}",
        kinds(&told)
    );
    assert_eq!(told["layout"]["shards"][4]["index"], 4);

    let remove = json!({ "kind": "remove_shard", "shard": "2" });
    let told = preview(&world, &remove).await.unwrap();
    assert_eq!((count(&told, "move_slots"), count(&told, "leave")), (3, 1), "{:?}", kinds(&told));

    let even = preview(&world, &json!({ "kind": "rebalance" })).await.unwrap();
    assert_eq!(even["steps"], json!([]));
    assert_eq!(even["warnings"][0]["code"], "balanced");
    let weights = json!({ "kind": "rebalance", "weights": { "0": 3 } });
    let told = preview(&world, &weights).await.unwrap();
    // Three sixths of all for one shard.
    assert_eq!((told["estimate"]["slots"].as_u64(), count(&told, "move_slots")), (Some(4096), 3));
    assert_eq!(untouched, world.untouched());
}
