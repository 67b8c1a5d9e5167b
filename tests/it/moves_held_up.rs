//! What comes in the way of moving slots, and is dealt with: nodes that are dead and stay so, targets
//! that are full.

use std::time::Duration;

use serde_json::{Value, json};

use crate::moves::{CONFIG, LEASE, fill, is_well, none_is_open};
use crate::support::orders::{PLANS, TOPOLOGY, carry_out, is_blank, phase, shards};
use crate::support::plans::{ends, id, plan};
use crate::support::until;
use crate::support::world::World;

const SOON: Duration = Duration::from_secs(50);

/// A cluster of three shards on the first six nodes, with keys; the others are blank.
async fn orders(others: usize, keys: u32, env: &[(&str, &str)]) -> World {
    let env: Vec<_> = env.iter().copied().chain([LEASE]).collect();
    let mut world = World::with(&env).await;
    world.add_nodes(6 + others, CONFIG).await;
    let mut body = world.cluster("orders", 3, 1);
    body["spec"]["nodes"] = Value::Array(world.node_specs()[..6].to_vec());
    world.create(&body).await;
    fill(&world, keys).await;
    world
}

fn slowly(from: &str, to: &str, count: u16) -> Value {
    json!({ "intent": { "kind": "reshard", "max_latency_ms": 1,
        "moves": [{ "from": from, "to": to, "count": count }] } })
}

/// Slots that a primary serves by its own word.
async fn count_of(world: &World, shard: usize) -> u64 {
    let slots = world.client.get(&format!("{TOPOLOGY}/slots")).await.unwrap();
    slots["shards"][shard]["count"].as_u64().unwrap()
}

/// A shard goes although its replica is dead; when that one is back, the others do not know it.
#[tokio::test]
async fn a_dead_replica_does_not_keep_its_shard() {
    let mut world = orders(2, 2000, &[]).await;
    let nodes = world.node_specs();
    carry_out(&world, &json!({ "intent": { "kind": "add_shard", "nodes": nodes[6..] } })).await;
    phase(&world, "steady").await;
    let (primary, replicas) = shards(&world).await[3].clone();
    let dead = replicas[0];
    world.nodes[dead].kill();
    let body = json!({ "intent": { "kind": "remove_shard", "shard": "3" } });
    // Until the cluster itself has it for dead, the plan is refused.
    let submitted = until("it is taken", SOON, async || {
        world.client.submit(PLANS, &body, None).await.map_err(|e| e.to_string())
    })
    .await;
    ends(&world, &id(&submitted), "succeeded", SOON).await;
    assert!(is_blank(&world, primary));
    phase(&world, "steady").await;
    world.nodes[dead].restart().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    carry_out(&world, &json!({ "intent": { "kind": "repair" } })).await;
    let known = world.ask(0, &["CLUSTER", "NODES"]);
    assert_eq!(known.lines().count(), 6, "{known}");
}

/// A target without room holds its pair up, says so, and goes on when there is some; where none comes
/// the plan ends with the reason, and a retry brings to its end what is half-way.
#[tokio::test]
async fn a_full_target_is_waited_for() {
    let world = orders(0, 30_000, &[("REEVE_WAIT_DEADLINE_MS", "6000")]).await;
    let target = shards(&world).await[1].0;
    let limit = |full: bool| {
        let info = world.ask(target, &["INFO", "memory"]);
        let used = info.lines().find_map(|l| l.trim().strip_prefix("used_memory:")).unwrap();
        // Of what it uses, some is buffers that come and go.
        let bytes = if full { used.parse::<u64>().unwrap() * 9 / 10 } else { 0 };
        world.ask(target, &["CONFIG", "SET", "maxmemory", &bytes.to_string()]);
    };
    let submitted = world.client.submit(PLANS, &slowly("0", "1", 4000), None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    limit(true);
    // By what it shows, or by what it says to the keys that come.
    until("it waits for room", SOON, async || {
        let plan = plan(&world, &id(&submitted)).await?;
        let refused = plan["steps"].to_string().contains("target_full");
        let waits = plan["waiting_for"] == "memory" || (plan["waiting_for"] == "retry" && refused);
        if waits && plan["state"] == "running" { Ok(()) } else { Err(plan.to_string()) }
    })
    .await;
    limit(false);
    ends(&world, &id(&submitted), "succeeded", SOON).await;
    is_well(&world).await;
    assert_eq!(count_of(&world, 1).await, 5461 + 4000);

    let submitted = world.client.submit(PLANS, &slowly("2", "1", 5000), None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    limit(true);
    // Slots that are open are brought to their end before, as far as the full node lets keys through.
    let plan = ends(&world, &id(&submitted), "failed", 4 * SOON).await;
    let error = &plan["error"];
    assert_eq!(
        (&error["code"], &error["node"]),
        (&json!("target_full"), &json!(world.nodes[target].address()))
    );
    limit(false);
    let retry = format!("/v1/plans/{}/retry", id(&plan));
    let plan = world.client.submit(&retry, &json!({}), Some(50)).await.unwrap();
    assert_eq!(plan["state"], "succeeded", "{plan:#}");
    is_well(&world).await;
    none_is_open(&world);
}
