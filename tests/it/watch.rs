//! Watching: what happens to nodes is seen within seconds and told once.

use std::time::{Duration, Instant};

use reeve::demo::servers::Signal;
use serde_json::Value;

use crate::support::until;
use crate::support::world::World;

async fn phase(world: &World) -> String {
    let topology = world.client.get("/v1/topologies/watched").await.unwrap();
    topology["status"]["phase"].as_str().unwrap().to_owned()
}

async fn becomes(world: &World, wanted: &[&str], within: Duration) {
    until("the phase", within, async || {
        let now = phase(world).await;
        if wanted.contains(&now.as_str()) { Ok(()) } else { Err(now) }
    })
    .await;
}

fn index_of(world: &World, address: &Value) -> usize {
    world.nodes.iter().position(|n| *address == n.address()).unwrap()
}

async fn told(world: &World, kind: &str) -> usize {
    let page = world.client.get(&format!("/v1/events?types={kind}&limit=200")).await.unwrap();
    page["items"].as_array().unwrap().len()
}

#[tokio::test]
async fn death_freeze_and_return_show_within_three_seconds() {
    let mut world = World::with_nodes(6).await;
    world.create(&world.cluster("watched", 3, 1)).await;
    becomes(&world, &["steady"], Duration::from_secs(3)).await;
    let topology = world.client.get("/v1/topologies/watched").await.unwrap();
    let shard = &topology["status"]["shards"][0];
    let replica = index_of(&world, &shard["replicas"][0]["address"]);
    let primary = index_of(&world, &shard["primary"]);
    let three = Duration::from_secs(3);

    world.nodes[replica].signal(Signal::STOP).unwrap();
    becomes(&world, &["degraded"], three).await;
    world.nodes[replica].signal(Signal::CONT).unwrap();
    becomes(&world, &["steady"], three).await;

    world.nodes[replica].kill();
    becomes(&world, &["degraded"], three).await;
    // It comes back within the node timeout, so nobody fails over.
    world.nodes[replica].restart().await.unwrap();
    becomes(&world, &["steady"], three + Duration::from_secs(3)).await;

    world.nodes[primary].kill();
    becomes(&world, &["down"], three).await;
    until("the node is down", Duration::from_secs(5), async || {
        let nodes = world.client.get("/v1/nodes?health=down").await.unwrap();
        let down = nodes["items"].as_array().unwrap();
        if down.len() == 1 && down[0]["address"] == world.nodes[primary].address() {
            Ok(())
        } else {
            Err(nodes.to_string())
        }
    })
    .await;
    // The cluster elects the replica by itself; Reeve sees it and tells.
    becomes(&world, &["degraded"], Duration::from_secs(45)).await;
    until("each is told once", Duration::from_secs(5), async || {
        let told = [
            told(&world, "primary.changed").await,
            told(&world, "slots.uncovered").await,
            told(&world, "slots.covered").await,
        ];
        if told == [1, 1, 1] { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_hung_node_delays_no_other_topology() {
    let mut world = World::with_nodes(6).await;
    let of = |name: &str, from: usize| {
        let mut body = world.cluster(name, 3, 0);
        body["spec"]["nodes"] = world.node_specs()[from..from + 3].into();
        body
    };
    let (watched, other) = (of("watched", 0), of("other", 3));
    world.create(&watched).await;
    world.create(&other).await;
    world.nodes[0].signal(Signal::STOP).unwrap();
    becomes(&world, &["down"], Duration::from_secs(3)).await;

    // The other one is looked at each second all the same, and its own news comes in time.
    let looked_at = async || {
        let other = world.client.get("/v1/topologies/other").await.unwrap();
        assert_eq!(other["status"]["phase"], "steady");
        other["status"]["observed_at"].as_str().unwrap().to_owned()
    };
    let mut looks = std::collections::BTreeSet::new();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        looks.insert(looked_at().await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(looks.len() >= 4, "{looks:?}");
    world.nodes[0].signal(Signal::CONT).unwrap();
    becomes(&world, &["steady"], Duration::from_secs(5)).await;
}

#[tokio::test]
async fn spares_and_registered_nodes_are_watched_too() {
    let mut world = World::with_nodes(1).await;
    let body = serde_json::json!({ "address": world.nodes[0].address(), "zone": "a" });
    let node = world.client.post("/v1/nodes", &body).await.unwrap();
    assert_eq!(node["health"], "up");
    assert_eq!(node["report"]["role"], "primary");
    world.nodes[0].kill();
    let path = format!("/v1/nodes/{}", node["id"].as_str().unwrap());
    until("it is down", Duration::from_secs(10), async || {
        let node = world.client.get(&path).await.unwrap();
        if node["health"] == "down" { Ok(()) } else { Err(node.to_string()) }
    })
    .await;
    world.client.delete(&path, None).await.unwrap();
    assert!(world.client.get(&path).await.is_err());
}
