//! What is begun is brought to an end: through crashes, frozen nodes, pauses and second thoughts.

use std::time::Duration;

use reeve::demo::servers::Signal;
use serde_json::json;

use crate::support::plans::{ends, id, plan, terminal_events};
use crate::support::world::World;
use crate::support::{Dice, repeats, until};

#[tokio::test]
async fn a_server_that_is_killed_in_mid_create_finishes_after_its_restart() {
    let mut dice = Dice::new(11);
    for _ in 0..repeats() {
        let mut world = World::with(&[("REEVE_LEASE_TTL_MS", "2000")]).await;
        world.add_nodes(6, &[]).await;
        let made =
            world.client.create_topology(&world.cluster("killed", 3, 1), None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(dice.below(700))).await;
        world.server.kill9();
        world.server.restart().await.unwrap();
        ends(&world, &id(&made), "succeeded", Duration::from_secs(30)).await;
        assert_eq!(terminal_events(&world, &id(&made)).await, 1);
        world.check_cluster(&[]);
        world.settings_are_back();
    }
}

#[tokio::test]
async fn a_node_that_freezes_in_mid_create_is_waited_for() {
    let mut dice = Dice::new(23);
    for _ in 0..repeats() {
        let mut world = World::with_nodes(6).await;
        let made =
            world.client.create_topology(&world.cluster("frozen", 3, 1), None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(dice.below(400))).await;
        let node = dice.below(6) as usize;
        world.nodes[node].signal(Signal::STOP).unwrap();
        tokio::time::sleep(Duration::from_secs(4)).await;
        world.nodes[node].signal(Signal::CONT).unwrap();
        ends(&world, &id(&made), "succeeded", Duration::from_secs(40)).await;
        assert_eq!(terminal_events(&world, &id(&made)).await, 1);
        world.check_cluster(&[]);
        world.settings_are_back();
    }
}

#[tokio::test]
async fn a_node_that_stays_away_fails_the_plan_which_can_be_retried() {
    let mut world = World::with(&[("REEVE_WAIT_DEADLINE_MS", "3000")]).await;
    world.add_nodes(6, &[]).await;
    let made = world.client.create_topology(&world.cluster("away", 3, 1), None).await.unwrap();
    let away = 4;
    world.nodes[away].signal(Signal::STOP).unwrap();
    let failed = ends(&world, &id(&made), "failed", Duration::from_secs(40)).await;
    let error = &failed["error"];
    assert!(error["message"].as_str().unwrap().contains(&world.nodes[away].address()), "{error}");
    assert!(!error["recovery"].as_str().unwrap().is_empty());
    assert_eq!(terminal_events(&world, &id(&made)).await, 1);
    // On every node that answers nothing temporary is left.
    for node in (0..6).filter(|n| *n != away) {
        let timeout = world.ask(node, &["CONFIG", "GET", "cluster-node-timeout"]);
        assert_eq!(timeout, "cluster-node-timeout\n15000");
    }
    world.nodes[away].signal(Signal::CONT).unwrap();
    let path = format!("/v1/plans/{}/retry", id(&made));
    let retried = world.client.post(&path, &json!({})).await.unwrap();
    assert_eq!(retried["retry_of"], made["id"]);
    ends(&world, &id(&retried), "succeeded", Duration::from_secs(40)).await;
    world.check_cluster(&[]);
    world.settings_are_back();
    // Now that the cluster is made and in use, its creation cannot be tried once more.
    let error = world.client.post(&path, &json!({})).await.unwrap_err();
    assert_eq!(error.code(), Some("unsettled"));
}

#[tokio::test]
async fn pause_resume_and_cancel_leave_nothing_temporary_behind() {
    let mut world = World::with_nodes(6).await;
    let made = world.client.create_topology(&world.cluster("reins", 3, 1), None).await.unwrap();
    let at = |verb: &str| format!("/v1/plans/{}/{verb}", id(&made));
    // A frozen node holds the plan in the middle for as long as the test needs.
    world.nodes[5].signal(Signal::STOP).unwrap();
    until("it runs", Duration::from_secs(5), async || {
        let plan = plan(&world, &id(&made)).await?;
        if plan["state"] == "running" { Ok(()) } else { Err(plan.to_string()) }
    })
    .await;
    world.client.post(&at("pause"), &json!({})).await.unwrap();
    let paused = ends(&world, &id(&made), "paused", Duration::from_secs(10)).await;
    assert_eq!(paused["waiting_for"], "operator");
    for node in 0..5 {
        let timeout = world.ask(node, &["CONFIG", "GET", "cluster-node-timeout"]);
        assert_eq!(timeout, "cluster-node-timeout\n15000");
    }
    // Another plan cannot start, and the topology cannot be forgotten.
    let repair = json!({ "intent": { "kind": "repair" } });
    let error = world.client.post("/v1/topologies/reins/plans", &repair).await.unwrap_err();
    assert_eq!(error.code(), Some("plan_active"));
    let etag = world.client.etag("/v1/topologies/reins").await.unwrap();
    let error = world.client.delete("/v1/topologies/reins", etag.as_deref()).await.unwrap_err();
    assert_eq!(error.code(), Some("plan_active"));

    world.client.post(&at("resume"), &json!({})).await.unwrap();
    world.client.post(&at("cancel"), &json!({})).await.unwrap();
    ends(&world, &id(&made), "cancelled", Duration::from_secs(10)).await;
    let error = world.client.post(&at("pause"), &json!({})).await.unwrap_err();
    assert_eq!(error.code(), Some("plan_state"));
    assert_eq!(terminal_events(&world, &id(&made)).await, 1);

    world.nodes[5].signal(Signal::CONT).unwrap();
    let retried = world.client.post(&at("retry"), &json!({})).await.unwrap();
    ends(&world, &id(&retried), "succeeded", Duration::from_secs(30)).await;
    world.check_cluster(&[]);
    world.settings_are_back();
}

#[tokio::test]
async fn a_proposed_plan_starts_only_while_the_world_is_as_it_was() {
    let world = World::with_nodes(3).await;
    let mut body = world.cluster("later", 3, 0);
    let preview = world.client.post("/v1/topologies/preview", &body).await.unwrap();
    body["plan"] = json!({ "start": false, "expect_fingerprint": preview["fingerprint"] });
    let before = world.untouched();
    let proposed = world.client.create_topology(&body, None).await.unwrap();
    assert_eq!(proposed["state"], "proposed");
    assert_eq!(before, world.untouched());
    world.ask(1, &["CLUSTER", "RESET", "HARD"]);
    let start = format!("/v1/plans/{}/start", id(&proposed));
    let error = world.client.post(&start, &json!({})).await.unwrap_err();
    assert_eq!(error.code(), Some("stale_fingerprint"));
    let cancel = format!("/v1/plans/{}/cancel", id(&proposed));
    world.client.post(&cancel, &json!({})).await.unwrap();
    ends(&world, &id(&proposed), "cancelled", Duration::from_secs(5)).await;
    let retry = format!("/v1/plans/{}/retry", id(&proposed));
    let retried = world.client.post(&retry, &json!({})).await.unwrap();
    ends(&world, &id(&retried), "succeeded", Duration::from_secs(30)).await;
    world.check_cluster(&[]);
}

#[tokio::test]
async fn a_database_that_goes_away_for_a_while_loses_nothing() {
    let mut world = World::with_nodes(6).await;
    let made = world.client.create_topology(&world.cluster("outage", 3, 1), None).await.unwrap();
    world.postgres.kill();
    let away = world.client.get("/v1/topologies").await.unwrap_err();
    assert_eq!(away.code(), Some("database_unavailable"), "{away}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.postgres.restart().await.unwrap();
    ends(&world, &id(&made), "succeeded", Duration::from_secs(40)).await;
    assert_eq!(terminal_events(&world, &id(&made)).await, 1);
    world.check_cluster(&[]);
    world.settings_are_back();
}

#[tokio::test]
async fn sigterm_ends_the_server_in_time_and_the_plan_goes_on_afterwards() {
    let mut world = World::with_nodes(6).await;
    let made = world.client.create_topology(&world.cluster("term", 3, 1), None).await.unwrap();
    // A follower must not keep the server from ending.
    let url = format!("{}/v1/events/stream", world.server.url());
    let stream = reqwest::Client::new().get(url).bearer_auth(world.server.token());
    let stream = stream.send().await.unwrap();
    let began = std::time::Instant::now();
    let status = world.server.sigterm().await.expect("it ended by itself");
    assert!(status.success(), "{status}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    drop(stream);
    world.server.restart().await.unwrap();
    ends(&world, &id(&made), "succeeded", Duration::from_secs(30)).await;
    world.check_cluster(&[]);
    world.settings_are_back();
}

#[tokio::test]
async fn a_repair_brings_back_what_came_apart() {
    let world = World::with_nodes(6).await;
    world.create(&world.cluster("apart", 3, 1)).await;
    let nothing = json!({ "intent": { "kind": "repair" } });
    let preview = world.client.post("/v1/topologies/apart/plans/preview", &nothing).await.unwrap();
    assert_eq!(preview["steps"], json!([]), "a whole cluster needs no repair");

    // A replica is torn out: it forgets everybody and is forgotten by nobody's doing.
    let topology = world.client.get("/v1/topologies/apart").await.unwrap();
    let replica = topology["status"]["shards"][1]["replicas"][0]["address"].clone();
    let node = world.nodes.iter().position(|n| replica == n.address()).unwrap();
    let old = world.ask(node, &["CLUSTER", "MYID"]);
    world.ask(node, &["CLUSTER", "RESET", "HARD"]);
    for other in (0..6).filter(|n| *n != node) {
        world.ask(other, &["CLUSTER", "FORGET", &old]);
    }
    let plan = world.client.post("/v1/topologies/apart/plans", &nothing).await.unwrap();
    let done = ends(&world, &id(&plan), "succeeded", Duration::from_secs(60)).await;
    let kinds: Vec<&str> =
        done["steps"].as_array().unwrap().iter().map(|s| s["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"meet") && kinds.contains(&"replicate"), "{kinds:?}");
    assert!(!kinds.contains(&"set_temporary"), "a live cluster is not hurried");
    world.check_cluster(&[]);
    world.settings_are_back();
}
