//! Create, on real nodes.

use serde_json::{Value, json};

use crate::support::world::{World, redis_cli};

fn zone_of(body: &Value, address: &Value) -> Value {
    let nodes = body["spec"]["nodes"].as_array().unwrap();
    nodes.iter().find(|n| n["address"] == *address).unwrap()["zone"].clone()
}

#[tokio::test]
async fn six_nodes_become_three_shards_with_a_replica_each() {
    let world = World::with_nodes(6).await;
    let body = world.cluster("orders", 3, 1);
    let plan = world.create(&body).await;
    world.check_cluster(&[]);
    world.settings_are_back();
    assert_eq!(plan["progress"]["percent"], 100);
    assert!(plan["steps"].as_array().unwrap().iter().all(|s| s["state"] == "done"), "{plan:#}");

    let topology = world.client.get("/v1/topologies/orders").await.unwrap();
    assert_eq!(topology["status"]["phase"], "steady", "{topology:#}");
    let shards = topology["status"]["shards"].as_array().unwrap();
    let zones: std::collections::BTreeSet<String> =
        shards.iter().map(|s| zone_of(&body, &s["primary"]).to_string()).collect();
    assert_eq!(zones.len(), 3, "each zone holds one primary");
    for shard in shards {
        assert_ne!(
            zone_of(&body, &shard["primary"]),
            zone_of(&body, &shard["replicas"][0]["address"])
        );
        assert_eq!(shard["replicas"][0]["state"], "online");
    }

    // A client that asks for the slot's owner writes there, and the replica gets it.
    let slots = world.client.get("/v1/topologies/orders/slots").await.unwrap();
    assert_eq!(slots["assigned"], 16384);
    assert_eq!(slots["uncovered"], "");
    let owner = slots["shards"][2]["primary"].as_str().unwrap();
    let port = owner.rsplit(':').next().unwrap().parse().unwrap();
    assert_eq!(redis_cli(port, &["SET", "user:123", "x"]), "OK", "12893 is in the last third");

    let survives = world.client.get("/v1/topologies/orders/survivability").await.unwrap();
    assert_eq!(
        survives["survives"],
        json!({ "any_node": true, "any_host": false, "any_zone": true })
    );
    assert!(survives["node_pairs"]["survived"].as_u64() < survives["node_pairs"]["total"].as_u64());
}

#[tokio::test]
async fn nine_nodes_put_every_shard_in_every_zone() {
    let world = World::with_nodes(9).await;
    let body = world.cluster("nine", 3, 2);
    world.create(&body).await;
    world.check_cluster(&[]);
    world.settings_are_back();
    let topology = world.client.get("/v1/topologies/nine").await.unwrap();
    for shard in topology["layout"]["shards"].as_array().unwrap() {
        let zones: std::collections::BTreeSet<String> = shard["members"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| zone_of(&body, m).to_string())
            .collect();
        assert_eq!(zones.len(), 3, "{shard}");
    }
}

#[tokio::test]
async fn three_primaries_need_no_replicas() {
    let world = World::with_nodes(3).await;
    world.create(&world.cluster("bare", 3, 0)).await;
    world.check_cluster(&[]);
    world.settings_are_back();
}

#[tokio::test]
async fn nodes_with_a_password_are_served_with_the_stored_one() {
    let mut world = World::new().await;
    // No masterauth: Reeve gives the replicas their login.
    world.add_nodes(6, &[("requirepass", "s3cret-pass")]).await;
    let mut body = world.cluster("locked", 3, 1);

    let refused = world.client.create_topology(&body, None).await.unwrap_err();
    assert_eq!(refused.code(), Some("nodes_unfit"));
    assert!(refused.to_string().contains("POST /v1/credentials"), "{refused}");

    let credential = json!({ "name": "wrong", "password": "nope" });
    world.client.post("/v1/credentials", &credential).await.unwrap();
    body["spec"]["credentials"] = json!({ "admin": "wrong" });
    let refused = world.client.create_topology(&body, None).await.unwrap_err();
    assert!(refused.to_string().contains("refuses the login"), "{refused}");

    let credential = json!({ "name": "orders", "password": "s3cret-pass" });
    world.client.post("/v1/credentials", &credential).await.unwrap();
    body["spec"]["credentials"] = json!({ "admin": "orders" });
    let refused = world.client.create_topology(&body, None).await.unwrap_err();
    assert!(refused.to_string().contains("/spec/credentials/replication"), "{refused}");

    body["spec"]["credentials"] = json!({ "admin": "orders", "replication": "orders" });
    let plan = world.create(&body).await;
    world.check_cluster(&["-a", "s3cret-pass", "--no-auth-warning"]);
    let all = format!("{plan} {}", world.client.get("/v1/events?limit=200").await.unwrap());
    assert!(!all.contains("s3cret-pass"), "the password shows");
    assert!(!world.server.log_tail(10_000).contains("s3cret-pass"), "the password is logged");
    let steps = plan["steps"].as_array().unwrap();
    assert!(steps.iter().any(|s| s["kind"] == "rewrite_config" && s["state"] == "done"));
}

#[tokio::test]
async fn an_acl_user_is_enough() {
    let mut world = World::new().await;
    let user = "reeve on >acl-pass ~* &* +@all";
    let config = [("user", user), ("requirepass", "other"), ("masterauth", "other")];
    world.add_nodes(6, &config).await;
    let credential = json!({ "name": "acl", "username": "reeve", "password": "acl-pass" });
    world.client.post("/v1/credentials", &credential).await.unwrap();
    let mut body = world.cluster("acl", 3, 1);
    body["spec"]["credentials"] = json!({ "admin": "acl" });
    world.create(&body).await;
    world.check_cluster(&["--user", "reeve", "-a", "acl-pass", "--no-auth-warning"]);
}

#[tokio::test]
async fn settings_are_given_and_written_to_the_config_file() {
    let world = World::with_nodes(3).await;
    let mut body = world.cluster("set", 3, 0);
    body["spec"]["settings"] = json!({ "maxmemory": "64mb", "maxmemory-policy": "allkeys-lru" });
    let preview = world.client.post("/v1/topologies/preview", &body).await.unwrap();
    let commands: Vec<&str> = preview["steps"][0]["commands"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["command"].as_str().unwrap())
        .collect();
    assert_eq!(commands, ["CONFIG SET maxmemory 64mb", "CONFIG SET maxmemory-policy allkeys-lru"]);
    let plan = world.create(&body).await;
    for node in 0..3 {
        assert_eq!(world.ask(node, &["CONFIG", "GET", "maxmemory"]), "maxmemory\n67108864");
    }
    // Whether they last is said, one way or the other.
    let warned = plan["warnings"].as_array().unwrap().iter().any(|w| w["code"] == "not_persisted");
    let has_file = !world.ask(0, &["INFO", "server"]).contains("config_file:\r\n");
    assert_eq!(warned, !has_file, "{plan:#}");
    world.settings_are_back();
}

#[tokio::test]
async fn nodes_with_keys_are_emptied_only_with_consent_to_each() {
    let world = World::with_nodes(3).await;
    // A node that serves itself holds keys.
    assert_eq!(world.ask(0, &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]), "OK");
    crate::support::until("it serves", std::time::Duration::from_secs(10), async || {
        let said = world.ask(0, &["SET", "precious", "1"]);
        if said == "OK" { Ok(()) } else { Err(said) }
    })
    .await;
    let before = world.untouched();
    let mut body = world.cluster("reset", 3, 0);
    let refused = world.client.create_topology(&body, None).await.unwrap_err();
    assert_eq!(refused.code(), Some("nodes_unfit"));
    assert!(refused.to_string().contains("/spec/nodes/0/address"), "{refused}");

    body["reset_nodes"] = json!(true);
    let refused = world.client.create_topology(&body, None).await.unwrap_err();
    assert_eq!(refused.code(), Some("consent_required"));
    let hazard = format!("flush:{}", world.nodes[0].address());
    assert!(refused.to_string().contains(&hazard), "{refused}");
    // A ceiling does not reach to data loss, and another node's hazard is another.
    body["plan"] = json!({ "accept_hazard": "outage", "accept": ["flush:127.0.0.1:1"] });
    let refused = world.client.create_topology(&body, None).await.unwrap_err();
    assert_eq!(refused.code(), Some("consent_required"));
    assert_eq!(before, world.untouched(), "nothing was touched so far");
    let none = world.client.get("/v1/topologies").await.unwrap();
    assert_eq!(none["items"], json!([]), "nothing was stored so far");

    // What is only proposed needs no consent yet; a retry of it does.
    body["plan"] = json!({ "start": false });
    let proposed = world.client.create_topology(&body, None).await.unwrap();
    let at = |verb: &str| format!("/v1/plans/{}/{verb}", proposed["id"].as_str().unwrap());
    let nothing = json!({});
    let error = world.client.post(&at("start"), &nothing).await.unwrap_err();
    assert_eq!(error.code(), Some("consent_required"));
    world.client.post(&at("cancel"), &nothing).await.unwrap();
    let error = world.client.post(&at("retry"), &nothing).await.unwrap_err();
    assert_eq!(error.code(), Some("consent_required"));
    assert_eq!(before, world.untouched(), "nothing was touched so far");
    let etag = world.client.etag("/v1/topologies/reset").await.unwrap();
    world.client.delete("/v1/topologies/reset", etag.as_deref()).await.unwrap();

    body["plan"] = json!({ "accept": [hazard] });
    world.create(&body).await;
    let topology = world.client.get("/v1/topologies/reset").await.unwrap();
    let member = topology["layout"]["shards"][0]["members"][0].as_str().unwrap();
    let port = member.rsplit(':').next().unwrap().parse().unwrap();
    assert_eq!(redis_cli(port, &["DBSIZE"]), "0");
}

#[tokio::test]
async fn what_was_left_of_the_same_nodes_can_be_made_anew() {
    let world = World::with_nodes(6).await;
    world.create(&world.cluster("first", 3, 1)).await;
    let etag = world.client.etag("/v1/topologies/first").await.unwrap().unwrap();
    world.client.delete("/v1/topologies/first", Some(&etag)).await.unwrap();
    let mut body = world.cluster("second", 3, 1);
    let refused = world.client.create_topology(&body, None).await.unwrap_err();
    assert!(refused.to_string().contains("remains of an earlier cluster"), "{refused}");
    body["reset_nodes"] = json!(true);
    let hazards: Vec<String> =
        world.nodes.iter().map(|n| format!("flush:{}", n.address())).collect();
    body["plan"] = json!({ "accept": hazards });
    world.create(&body).await;
    world.check_cluster(&[]);
}
