//! The server is killed at a random moment of each operation on a running cluster: after its restart
//! the plan ends as if nothing had been. (Creating, failing over and replacing a node have tests of
//! their own, beside what else is tried of them.)

use std::time::Duration;

use reeve::client::ClientError;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::orders::{PLANS, TOPOLOGY, is_blank, phase, shards};
use crate::support::plans::{ends, id, terminal_events};
use crate::support::world::World;
use crate::support::{Dice, repeats, until};

const SOON: Duration = Duration::from_secs(40);

/// A cluster of three shards with a replica each, and two blank nodes, whichever those are.
struct Trial {
    world: World,
    spares: [usize; 2],
    dice: Dice,
}

impl Trial {
    async fn new() -> Self {
        let mut world = World::with(&[("REEVE_LEASE_TTL_MS", "1000")]).await;
        let config = [("cluster-node-timeout", "1000"), ("repl-diskless-sync-delay", "0")];
        world.add_nodes(8, &config).await;
        let mut body = world.cluster("orders", 3, 1);
        body["spec"]["nodes"] = Value::Array(world.node_specs()[..6].to_vec());
        world.create(&body).await;
        for n in 0..30 {
            let set = world.ask(0, &["-c", "SET", &format!("key:{n}"), "x"]);
            assert!(set.ends_with("OK"), "{set}");
        }
        Self { world, spares: [6, 7], dice: Dice::new(303) }
    }

    fn address(&self, node: usize) -> String {
        self.world.nodes[node].address()
    }

    async fn spec(&self) -> Value {
        self.world.client.get(TOPOLOGY).await.unwrap()["spec"].clone()
    }

    /// The addresses of a zone's nodes.
    async fn there(&self, zone: &str) -> Vec<String> {
        let spec = self.spec().await;
        let nodes = spec["nodes"].as_array().unwrap().iter().filter(|n| n["zone"] == zone);
        nodes.map(|n| n["address"].as_str().unwrap().to_owned()).collect()
    }

    /// Asks for it and kills the server at some moment of its first `within_ms`.
    async fn kill(
        &mut self,
        within_ms: u64,
        ask: impl AsyncFn(&World) -> Result<Value, ClientError>,
    ) {
        // What the operation before left is seen a moment later.
        let plan =
            until("it is taken", SOON, async || ask(&self.world).await.map_err(|e| e.to_string()))
                .await;
        sleep(Duration::from_millis(self.dice.below(within_ms))).await;
        self.world.server.kill9();
        self.world.server.restart().await.unwrap();
        ends(&self.world, &id(&plan), "succeeded", SOON).await;
        assert_eq!(terminal_events(&self.world, &id(&plan)).await, 1);
    }

    async fn kill_plan(&mut self, within_ms: u64, intent: Value) {
        let body = json!({ "intent": intent });
        self.kill(within_ms, async |world| world.client.submit(PLANS, &body, None).await).await;
    }

    async fn a_replica_comes_and_goes(&mut self, shard: usize) {
        let spare = self.spares[0];
        let node = json!({ "address": self.address(spare), "zone": "a" });
        let add = json!({ "kind": "add_replica", "shard": shard.to_string(), "node": node });
        self.kill_plan(700, add).await;
        assert!(shards(&self.world).await[shard].1.contains(&spare));
        let remove = json!({ "kind": "remove_replica", "node": self.address(spare) });
        self.kill_plan(500, remove).await;
        assert!(is_blank(&self.world, spare));
    }

    async fn a_zone_is_drained(&mut self, zone: &str) {
        let away = self.there(zone).await;
        self.kill_plan(600, json!({ "kind": "drain", "zone": zone })).await;
        for (primary, _) in shards(&self.world).await {
            assert!(!away.contains(&self.address(primary)), "{away:?}");
        }
        self.kill_plan(60, json!({ "kind": "undrain", "zone": zone })).await;
        assert_eq!(self.spec().await["overrides"]["drained"], Value::Null);
    }

    /// One spec puts the blank nodes in the place of a primary and of another shard's replica.
    async fn a_spec_is_put(&mut self, shard: usize) {
        let now = shards(&self.world).await;
        let leave = [now[shard].0, now[(shard + 1) % 3].1[0]];
        let mut spec = self.spec().await;
        for (old, new) in leave.into_iter().zip(self.spares) {
            let (old, new) = (self.address(old), self.address(new));
            let nodes = spec["nodes"].as_array_mut().unwrap();
            nodes.iter_mut().find(|n| n["address"] == old).unwrap()["address"] = json!(new);
        }
        let body = json!({ "spec": spec });
        self.kill(1500, async |world| {
            let tag = world.client.etag(TOPOLOGY).await?;
            world.client.put(TOPOLOGY, &body, tag.as_deref()).await
        })
        .await;
        assert!(leave.into_iter().all(|node| is_blank(&self.world, node)));
        assert_eq!(self.spec().await, spec);
        self.spares = leave;
    }
}

#[tokio::test]
async fn whatever_is_under_way_is_finished_after_a_restart() {
    let mut trial = Trial::new().await;
    for turn in 0..usize::try_from(repeats()).unwrap() {
        trial.a_replica_comes_and_goes(turn % 3).await;
        trial.a_zone_is_drained(["a", "b", "c"][turn % 3]).await;
        trial.a_spec_is_put(turn % 3).await;
        phase(&trial.world, "steady").await;
        let members: Vec<usize> = (0..8).filter(|n| !trial.spares.contains(n)).collect();
        for node in &members {
            assert_eq!(trial.world.ask(*node, &["CLUSTER", "NODES"]).lines().count(), 6);
        }
        trial.world.check_cluster_of(members[0], &[]);
    }
    println!("{} kills of each of five operations", repeats());
}
