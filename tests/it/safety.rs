//! The rules for moving slots find what breaks them, and a move of real nodes' slots breaks none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use redis::aio::MultiplexedConnection;
use serde_json::json;

use reeve::demo::servers::{Folder, Postgres, Redis, RedisOptions};
use reeve::domain::intent::Intent;
use reeve::domain::moving::talk::{Answer, Key, Saying, SlotState};
use reeve::domain::node::{Address, ClusterNodeId};
use reeve::domain::plan::{Plan, PlanState};
use reeve::domain::slot::SlotSet;
use reeve::engine::desk::CreateRequest;
use reeve::engine::keeper::Keeper;
use reeve::fleet::redis::{Reach, RedisFleet, Timeouts};
use reeve::store::Store;

use crate::support::instance::{TTL, engine, keeper, options};
use crate::support::record::{Entry, Record, Recorder, Sight};
use crate::support::safety::broken;
use crate::support::shim::Shimmed;
use crate::support::until;

/// The keys of the real cluster.
const KEYS: u32 = 20_000;

/// The slot of the key `foo`.
const SLOT: u16 = 12182;

fn id(name: &str) -> ClusterNodeId {
    ClusterNodeId(name.to_owned())
}

fn place(name: &str) -> Address {
    let port = if name == "source" { 7001 } else { 7002 };
    format!("10.0.0.1:{port}").parse().unwrap()
}

fn said(to: &str, saying: Saying, answer: Answer) -> [Entry; 2] {
    let said = Entry::Said { at: place(to), to: id(to), sayings: vec![saying.clone()] };
    [said, Entry::Heard { to: id(to), heard: vec![(saying, answer)] }]
}

fn set(to: &str, state: SlotState) -> [Entry; 2] {
    said(to, Saying::SetSlot { slot: SLOT, state }, Answer::Done)
}

fn listed(keys: &[&str]) -> [Entry; 2] {
    let keys = keys.iter().map(|key| Key(key.as_bytes().to_vec())).collect();
    said("source", Saying::ListKeys { slot: SLOT, at_most: 10 }, Answer::Keys(keys))
}

fn migrated() -> [Entry; 2] {
    let keys = vec![Key(b"foo".to_vec())];
    let saying = Saying::Migrate { to: place("target"), keys, within_ms: 1 };
    said("source", saying, Answer::Done)
}

fn looked(node: &str, primary: bool, epoch: u64, slots: &str) -> [Entry; 2] {
    let other = if node == "source" { "target" } else { "source" };
    let sight = Sight {
        at: place(node),
        node: id(node),
        primary,
        epoch,
        slots: slots.parse::<SlotSet>().unwrap(),
        open: vec![],
        epochs: [(id(other), 7)].into(),
    };
    [Entry::Looked(sight.clone()), Entry::Looked(sight)]
}

/// A slot with one key moves as it should.
fn well() -> Vec<[Entry; 2]> {
    vec![
        looked("source", true, 7, "12182"),
        looked("target", true, 1, ""),
        set("target", SlotState::Importing(id("source"))),
        set("source", SlotState::Migrating(id("target"))),
        listed(&["foo"]),
        migrated(),
        listed(&[]),
        set("target", SlotState::Node(id("target"))),
        set("source", SlotState::Node(id("target"))),
        set("other", SlotState::Node(id("target"))),
        looked("target", true, 8, "12182"),
    ]
}

fn verdict(record: Vec<[Entry; 2]>) -> Vec<String> {
    broken(&record.into_iter().flatten().collect::<Vec<_>>())
}

/// Without these entries.
fn without(left_out: &[usize]) -> Vec<String> {
    let kept = well().into_iter().enumerate().filter(|(i, _)| !left_out.contains(i));
    verdict(kept.map(|(_, entry)| entry).collect())
}

fn swapped(one: usize, other: usize) -> Vec<String> {
    let mut record = well();
    record.swap(one, other);
    verdict(record)
}

fn finds(broken: &[String], what: &str) {
    assert!(broken.iter().any(|b| b.contains(what)), "{what}: {broken:#?}");
}

#[test]
fn the_right_order_breaks_no_rule() {
    assert_eq!(verdict(well()), Vec::<String>::new());
    // What was moved, and is closed by whoever comes later.
    let owner = Answer::Refused { code: "ERR".into(), message: "I'm already the owner of".into() };
    let takes = Saying::SetSlot { slot: SLOT, state: SlotState::Importing(id("source")) };
    let again = vec![
        said("target", takes, owner),
        set("target", SlotState::Node(id("target"))),
        set("source", SlotState::Node(id("target"))),
    ];
    assert_eq!(verdict(again), Vec::<String>::new());
}

#[test]
fn the_target_takes_before_the_source_gives() {
    finds(&swapped(2, 3), "does not take the slot yet");
    finds(&without(&[2]), "does not take the slot yet");
}

#[test]
fn a_slot_is_given_when_it_is_empty_and_no_sooner() {
    finds(&without(&[6]), "would drop the keys");
    finds(&without(&[4, 5, 6]), "would drop the keys");
    finds(&swapped(3, 6), "would drop the keys");
    finds(&without(&[3, 5]), "new keys may come");
}

#[test]
fn the_target_is_told_first() {
    finds(&swapped(7, 8), "does not own the slot itself yet");
    finds(&swapped(7, 9), "does not own the slot itself yet");
}

#[test]
fn a_target_gets_an_epoch() {
    finds(&without(&[2, 3, 5]), "gets no epoch");
    let mut record = well();
    record[10] = looked("target", true, 7, "12182");
    finds(&verdict(record), "with epoch 7 against 7");
}

#[test]
fn keys_replace_others_only_while_their_source_serves() {
    finds(&without(&[3]), "does not give the slot");
    finds(&swapped(5, 7), "may be newer");
    finds(&swapped(5, 8), "does not give the slot");
}

#[test]
fn after_a_failover_both_are_told_again() {
    for (at, primary, what) in [("source", false, "does not give"), ("target", false, "not take")] {
        let mut record = well();
        record.insert(5, looked(at, primary, 7, ""));
        finds(&verdict(record), what);
    }
}

/// Real nodes, and an instance that dies in the middle: the next one goes on.
#[tokio::test]
async fn a_reshard_of_real_nodes_breaks_no_rule() {
    let folder = Folder::fresh("reeve-safety").unwrap();
    let postgres = Postgres::start(&folder.join("postgres")).await.unwrap();
    let store = Store::new(&postgres.url(), TTL).unwrap();
    store.migrate().await.unwrap();
    let mut nodes = Vec::new();
    for number in 0..6 {
        let options = RedisOptions::cluster(folder.join(&format!("node-{number}")));
        nodes.push(Redis::start(options.with("repl-diskless-sync-delay", "0")).await.unwrap());
    }
    let record = Record::default();
    let instance = || {
        let fleet = RedisFleet::new(Timeouts::default(), Reach::default(), reeve::clock::now);
        let recorder = Recorder { fleet: Arc::new(fleet), record: record.clone() };
        engine(&store, Arc::new(Shimmed(recorder)))
    };
    let first = instance();
    let node = |node: &Redis| json!({ "address": node.address(), "zone": "a" });
    let spec = json!({ "mode": "cluster", "shards": 3, "replicas_per_shard": 1,
        "nodes": nodes.iter().map(node).collect::<Vec<_>>() });
    let request = CreateRequest {
        name: "real".to_owned(),
        labels: Default::default(),
        spec: serde_json::from_value(spec).unwrap(),
        reset_nodes: false,
        options: options([].into()),
    };
    let plan = first.create(&request, "test").await.unwrap();
    let mut keeping = keeper(&first, &store).await.unwrap();
    see_through(&mut keeping, &store, &plan, None).await;
    for node in &nodes {
        fill(node).await;
    }
    let intent = json!({ "kind": "reshard", "max_latency_ms": 1, "moves": [
        { "from": "0", "to": "1", "count": 600 }, { "from": "1", "to": "2", "count": 300 }] });
    let intent: Intent = serde_json::from_value(intent).unwrap();
    let plan = first.submit("real", &intent, &options([].into()), "test").await.unwrap();
    let dies_at = Some(Instant::now() + Duration::from_millis(150));
    if !see_through(&mut keeping, &store, &plan, dies_at).await {
        drop(keeping);
        let runs_out = "UPDATE leases SET expires_at = '-infinity'";
        sqlx::query(runs_out).execute(store.pool()).await.unwrap();
        let second = instance();
        let mut keeping = keeper(&second, &store).await.unwrap();
        assert!(see_through(&mut keeping, &store, &plan, None).await);
    }
    let record = std::mem::take(&mut *record.lock().unwrap());
    let sayings = record.iter().filter_map(|entry| match entry {
        Entry::Said { sayings, .. } => Some(sayings),
        Entry::Heard { .. } | Entry::Looked(_) => None,
    });
    let (mut states, mut batches) = (0, 0);
    for saying in sayings.flatten() {
        states += match saying {
            Saying::SetSlot { .. } => 1,
            Saying::TakeSlots { slots, .. } => slots.len(),
            _ => 0,
        };
        batches += usize::from(matches!(saying, Saying::Migrate { .. }));
    }
    println!("{states} states of slots, {batches} batches of keys of one slot");
    assert!(states >= 900 * 5 && batches >= 500, "{states} {batches}");
    assert_eq!(broken(&record), Vec::<String>::new());
    let wanted = 2 * u64::from(KEYS);
    until("each key on a primary and its replica", Duration::from_secs(10), async || {
        let held: u64 = join_all(nodes.iter().map(size)).await.into_iter().sum();
        if held == wanted { Ok(()) } else { Err(held.to_string()) }
    })
    .await;
}

/// Turn after turn until the plan has succeeded; not, if it is to end before.
async fn see_through(
    keeper: &mut Keeper,
    store: &Store,
    plan: &Plan,
    dies_at: Option<Instant>,
) -> bool {
    let turns = async {
        loop {
            let plan = store.plan(plan.id).await.unwrap();
            if plan.state.is_final() {
                assert_eq!(plan.state, PlanState::Succeeded, "{:?}", plan.error);
                return true;
            }
            if let Ok(Some(pause)) = keeper.turn().await {
                tokio::time::sleep(pause.min(Duration::from_millis(100))).await;
            }
        }
    };
    let within = dies_at.map_or(Duration::from_secs(60), |at| at - Instant::now());
    let ended = tokio::time::timeout(within, turns).await;
    assert!(ended.is_ok() || dies_at.is_some(), "it does not end");
    ended.is_ok()
}

async fn connection(node: &Redis) -> MultiplexedConnection {
    let client = redis::Client::open(format!("redis://{}/", node.address())).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

async fn size(node: &Redis) -> u64 {
    redis::cmd("DBSIZE").query_async(&mut connection(node).await).await.unwrap()
}

/// Writes all keys of which the node serves the slots.
async fn fill(node: &Redis) {
    let mut node = connection(node).await;
    for first in (0..KEYS).step_by(1000) {
        let mut batch = redis::pipe();
        for n in first..first + 1000 {
            batch.set(format!("key:{n}"), "x".repeat(100)).ignore();
        }
        // What belongs elsewhere is refused.
        let _: Result<(), _> = batch.query_async(&mut node).await;
    }
}
