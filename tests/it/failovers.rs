//! Failovers as they happen: each is told once, to webhooks too, with who, when, for how long and how
//! much was lost.

use std::time::{Duration, Instant};

use reeve::demo::servers::Signal;
use serde_json::{Value, json};

use super::metrics::{Shown, assert_enough, scrape};
use crate::support::orders::{carry_out, phase, shards};
use crate::support::receiver::{Receiver, journal, subscribe, takes, verify, world};
use crate::support::seconds::Seconds;
use crate::support::watched::Watched;
use crate::support::world::World;
use crate::support::{Dice, repeats, until};

const TYPES: &str = "types=failover.*,primary.changed";
/// What the independent client cannot tell apart, on a machine that does other things too.
const BLUR_MS: u64 = 25;

/// A cluster whose nodes elect after two seconds, also when they were started again.
async fn make_orders(world: &mut World) {
    world.add_nodes(6, &[("cluster-node-timeout", "2000")]).await;
    world.create(&world.cluster("orders", 3, 1)).await;
}

async fn told_since(world: &World, id: i64) -> Vec<Value> {
    let events = journal(world, TYPES).await;
    events.into_iter().filter(|event| event["id"].as_i64().unwrap() > id).collect()
}

async fn newest(world: &World) -> i64 {
    let events = journal(world, "topology=orders").await;
    events.last().unwrap()["id"].as_i64().unwrap()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    kinds
}

fn of<'a>(events: &'a [Value], kind: &str) -> &'a Value {
    &events.iter().find(|e| e["type"] == kind).unwrap()["data"]
}

/// The first slot of a shard.
async fn slot(world: &World, shard: usize) -> u16 {
    let topology = world.client.get("/v1/topologies/orders").await.unwrap();
    let slots = topology["status"]["shards"][shard]["slots"].as_str().unwrap();
    slots.split(['-', ',']).next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn each_election_is_told_once_in_time_and_with_true_bounds() {
    let mut world = world().await;
    make_orders(&mut world).await;
    // Nodes refuse an election too soon after another, or worse (redis#8752).
    tells_each(&mut world, 3, Duration::from_secs(10)).await;
}

#[tokio::test]
async fn sentinels_elections_are_told_once_in_time_and_with_true_bounds() {
    let env = [("REEVE_WEBHOOK_ALLOW_CIDRS", "127.0.0.0/8")];
    let mut watched = Watched::start_with(&env, 3, 3).await;
    watched.create().await;
    tells_each(&mut watched.world, 1, Duration::ZERO).await;
}

/// Kills and freezes primaries of so many shards at random; those of one shard rest for so long between.
async fn tells_each(world: &mut World, count: usize, rest: Duration) {
    let receiver = Receiver::start().await;
    let webhook = subscribe(world, &receiver, &["failover.*", "primary.changed"]).await;
    let (mut dice, kills) = (Dice::new(11), repeats());
    let freezes = kills.div_ceil(4);
    let mut spreads = vec![];
    let mut rested = vec![Instant::now(); count];
    for round in 0..kills + freezes {
        phase(world, "steady").await;
        let frozen = round % 5 == 1;
        let shard = usize::try_from(dice.below(count as u64)).unwrap();
        tokio::time::sleep_until(rested[shard].into()).await;
        let (primary, replicas) = shards(world).await[shard].clone();
        let all = replicas.iter().chain([&primary]);
        let ports: Vec<u16> = all.map(|node| world.nodes[*node].port()).collect();
        let slot = if count > 1 { slot(world, shard).await } else { 0 };
        let client = Seconds::watch(slot, &ports);
        let (before, taken) = (newest(world).await, receiver.taken().len());
        tokio::time::sleep(Duration::from_millis(1000 + dice.below(1000))).await;
        let broken = Instant::now();
        if frozen {
            world.nodes[primary].signal(Signal::STOP).unwrap();
        } else {
            world.nodes[primary].kill();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        // Sentinels that split their votes try again after twice the failover timeout.
        client.taken_after(broken + Duration::from_millis(400), Duration::from_secs(60)).await;
        let calls = until("the webhook", Duration::from_secs(5), async || {
            let calls = receiver.taken()[taken..].to_vec();
            if calls.len() >= 4 { Ok(calls) } else { Err(format!("{} calls", calls.len())) }
        })
        .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        rested[shard] = Instant::now() + rest;
        let (gap, first) = client.longest_gap();
        let events = told_since(world, before).await;
        let names =
            ["failover.completed", "failover.detected", "failover.started", "primary.changed"];
        assert_eq!(kinds(&events), names, "{events:#?}");
        let done = of(&events, "failover.completed");
        assert_eq!(done, of(&events, "primary.changed"));
        assert_eq!(done["cause"], "election");
        assert_eq!(done["old_primary"], world.nodes[primary].address());
        let leads = |node: &&usize| world.ask(**node, &["ROLE"]).starts_with("master");
        let heir = *replicas.iter().find(leads).unwrap();
        assert_eq!(done["new_primary"], world.nodes[heir].address());
        assert!(events.iter().all(|e| e["data"]["failover"] == done["failover"]), "{events:#?}");
        assert!(done["possibly_lost"]["bytes"].is_u64(), "{done}");
        let bound = |name: &str| done["unavailable_ms"][name].as_u64().unwrap();
        let (least, most) = (bound("at_least"), bound("at_most"));
        let measured = u64::try_from(gap.as_millis()).unwrap();
        let what = if frozen { "frozen" } else { "killed" };
        let late = calls.iter().find(|c| c.json["type"] == "failover.completed").unwrap();
        let late = late.at.saturating_duration_since(first);
        println!(
            "{what}: {measured} ms without writes, told {least} to {most}, notified after {late:?}"
        );
        assert!(
            least <= measured + BLUR_MS && measured <= most + BLUR_MS,
            "{least} {measured} {most}"
        );
        spreads.push(most - least);
        assert!(late < Duration::from_secs(2), "{late:?}");
        // The reference library takes no letter that is older than five minutes.
        verify(&calls, webhook["secret"].as_str().unwrap());
        if frozen {
            world.nodes[primary].signal(Signal::CONT).unwrap();
        } else {
            world.nodes[primary].restart().await.unwrap();
        }
    }
    spreads.sort_unstable();
    println!("bounds are apart by {spreads:?} ms");
    assert!(*spreads.last().unwrap() <= 1200, "{spreads:?}");
    // Each was told by webhook, and nothing else was.
    let told = journal(world, TYPES).await;
    let calls = takes(&receiver, told.len(), Duration::from_secs(5)).await;
    assert_eq!(calls.len(), told.len());
}

#[tokio::test]
async fn planned_and_external_switchovers_are_told_as_such() {
    let world = World::with_nodes(6).await;
    world.create(&world.cluster("orders", 3, 1)).await;
    let before = newest(&world).await;
    let (old, replicas) = shards(&world).await[0].clone();
    let intent = json!({ "intent": { "kind": "failover", "shard": "0" } });
    let plan = carry_out(&world, &intent).await;
    let events = told_since(&world, before).await;
    assert_eq!(kinds(&events), ["failover.completed", "failover.started", "primary.changed"]);
    let done = of(&events, "failover.completed");
    assert_eq!((&done["cause"], &done["plan"]), (&json!("planned"), &plan["id"]));
    assert_eq!(done["old_primary"], world.nodes[old].address());
    assert_eq!(done["new_primary"], world.nodes[replicas[0]].address());
    assert!(done.get("possibly_lost").is_none(), "{done}");

    let before = newest(&world).await;
    let (old, replicas) = shards(&world).await[1].clone();
    assert_eq!(world.ask(replicas[0], &["CLUSTER", "FAILOVER"]), "OK");
    let events = until("it is told", Duration::from_secs(5), async || {
        let events = told_since(&world, before).await;
        if events.len() >= 3 { Ok(events) } else { Err(format!("{events:?}")) }
    })
    .await;
    assert_eq!(kinds(&events), ["failover.completed", "failover.started", "primary.changed"]);
    let done = of(&events, "failover.completed");
    assert_eq!(done["cause"], "external");
    assert_eq!(done["old_primary"], world.nodes[old].address());
}

#[tokio::test]
async fn a_primary_that_comes_back_and_a_killed_server_tell_it_once() {
    let mut world = world().await;
    let receiver = Receiver::start().await;
    subscribe(&world, &receiver, &["*"]).await;
    make_orders(&mut world).await;
    phase(&world, "steady").await;
    // Frozen for less than the nodes take to elect.
    let before = newest(&world).await;
    let (primary, _) = shards(&world).await[2].clone();
    let slow = ["CONFIG", "SET", "cluster-node-timeout", "20000"];
    (0..6).for_each(|node| assert_eq!(world.ask(node, &slow), "OK"));
    world.nodes[primary].signal(Signal::STOP).unwrap();
    until("it is noticed", Duration::from_secs(10), async || {
        let events = told_since(&world, before).await;
        if kinds(&events) == ["failover.detected"] { Ok(()) } else { Err(format!("{events:?}")) }
    })
    .await;
    world.nodes[primary].signal(Signal::CONT).unwrap();
    let events = until("it is over", Duration::from_secs(5), async || {
        let events = told_since(&world, before).await;
        if events.len() > 1 { Ok(events) } else { Err(format!("{events:?}")) }
    })
    .await;
    assert_eq!(kinds(&events), ["failover.detected", "failover.failed"]);
    assert_eq!(of(&events, "failover.failed")["reason"], "primary_returned");
    let mut shown = Shown::new();
    scrape(&world, &mut shown).await;

    // Reeve is killed between the notice and the election.
    let fast = ["CONFIG", "SET", "cluster-node-timeout", "2000"];
    (0..6).for_each(|node| assert_eq!(world.ask(node, &fast), "OK"));
    phase(&world, "steady").await;
    let before = newest(&world).await;
    world.nodes[primary].kill();
    until("it is noticed", Duration::from_secs(5), async || {
        let events = told_since(&world, before).await;
        if events.is_empty() { Err("nothing".to_owned()) } else { Ok(()) }
    })
    .await;
    world.server.kill9();
    world.server.restart().await.unwrap();
    world.client = crate::support::world::client_of(&world.server);
    let events = until("it is told", Duration::from_secs(30), async || {
        let events = told_since(&world, before).await;
        if kinds(&events).contains(&"primary.changed") {
            Ok(events)
        } else {
            Err(format!("{events:?}"))
        }
    })
    .await;
    let names = ["failover.completed", "failover.detected", "failover.started", "primary.changed"];
    assert_eq!(kinds(&events), names, "{events:#?}");
    let done = of(&events, "failover.completed");
    assert!(events.iter().all(|e| e["data"]["failover"] == done["failover"]), "{events:#?}");
    scrape(&world, &mut shown).await;
    assert_enough(&shown);
}
