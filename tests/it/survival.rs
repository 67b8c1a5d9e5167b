//! What was computed to be survived, against what real processes then do by themselves: of each mode
//! the first row always, all of them in `make soak`.

use std::time::{Duration, Instant};

use reeve::domain::slot::{SlotSet, key_slot};
use serde_json::{Value, json};

use crate::advice::Advised;
use crate::support::installed::Running;
use crate::support::{repeats, until};

/// Who is lost, by what they are in the layout.
#[derive(Debug, Clone, Copy)]
enum Part {
    Primary(usize),
    /// Of a shard, one of its replicas.
    Replica(usize, usize),
    Sentinel(usize),
    /// All that is in the zone with the most primaries.
    Zone,
}
use Part::{Primary, Replica, Sentinel, Zone};

/// The zones of the data nodes, the Sentinels' zones, who is lost, and how that ends.
type Row = (&'static str, &'static str, &'static [Part], &'static str);

const CLUSTERS: &[Row] = &[
    ("abcabc", "", &[Zone], "failover"),
    ("abc", "", &[Primary(1)], "data_unavailable"),
    ("ababab", "", &[Zone], "no_quorum"),
    ("abcabc", "", &[Primary(0), Primary(2)], "no_quorum"),
    ("abcabcabc", "", &[Primary(1), Replica(1, 0)], "failover"),
    // Five shards: three primaries are a majority.
    ("abcdeabcde", "", &[Primary(0), Primary(3)], "failover"),
];

const WATCHED: &[Row] = &[
    ("abc", "abc", &[Zone], "failover"),
    ("ab", "abc", &[Primary(0), Sentinel(2)], "failover"),
    ("ab", "aab", &[Zone], "no_quorum"),
    ("abc", "abcab", &[Primary(0), Sentinel(1), Sentinel(2)], "failover"),
    ("abc", "abc", &[Primary(0), Replica(0, 0)], "writes_refused"),
    ("abc", "abc", &[Sentinel(0), Sentinel(1)], "intact"),
];

const LONE: &[Row] = &[
    ("abc", "", &[Primary(0)], "no_quorum"),
    ("ab", "", &[Replica(0, 0)], "intact"),
    ("abc", "", &[Replica(0, 0), Replica(0, 1)], "writes_refused"),
];

#[tokio::test]
async fn clusters_survive_in_fact_what_they_survive_in_theory() {
    all("cluster", CLUSTERS).await;
}

#[tokio::test]
async fn watched_shards_survive_in_fact_what_they_survive_in_theory() {
    all("sentinel", WATCHED).await;
}

#[tokio::test]
async fn replicas_survive_in_fact_what_they_survive_in_theory() {
    all("replication", LONE).await;
}

/// The unit leaves a primary down until another one has taken over: it comes back as its replica.
#[tokio::test]
async fn a_primary_that_its_unit_starts_again_finds_another_in_its_place() {
    let mut advised = made("sentinel", "abc", "abc").await;
    let files = advised.advice["config_files"].as_array().unwrap();
    let unit = files.iter().find(|f| f["path"] == "systemd/redis@.service").unwrap();
    let pause =
        unit["content"].as_str().unwrap().lines().find_map(|l| l.strip_prefix("RestartSec="));
    let pause: u64 = pause.unwrap().parse().unwrap();
    let lost = lost(&advised, &[Primary(0)]).remove(0);
    drop(advised.running.remove(&lost));
    tokio::time::sleep(Duration::from_secs(pause)).await;
    let write =
        || advised.running.values().filter(|node| node.ask(&["SET", "key", "value"]) == "OK");
    assert_eq!(write().count(), 1, "another one takes writes after {pause} s");
    let again = advised.installed.start(&lost).await;
    until("it follows that one", Duration::from_secs(20), async || {
        let (role, key) = (again.ask(&["ROLE"]).replace('\n', ":"), again.ask(&["GET", "key"]));
        let follows = role.starts_with("slave:") && role.contains(":connected:") && key == "value";
        if follows { Ok(()) } else { Err(format!("{role} {key}")) }
    })
    .await;
    assert_eq!(write().count(), 1);
}

async fn all(mode: &str, rows: &[Row]) {
    let count = if repeats() > 3 { rows.len() } else { 1 };
    let mut wrong = Vec::new();
    for (zones, watch, loses, outcome) in &rows[..count] {
        let what = format!("{loses:?} of a {mode} in {zones} {watch}");
        let advised = made(mode, zones, watch).await;
        let lost = lost(&advised, loses);
        let topology = advised.get("").await;
        let shards = topology["status"]["shards"].as_array().unwrap().clone();
        let index = |id: &Value| shards.iter().position(|s| s["id"] == *id).unwrap();
        let told = advised.what_if(&json!({ "nodes": lost })).await;
        assert_eq!(told["outcome"], *outcome, "{what}: {told:#}");
        let bounds = advised.advice["failover_procedure"]["automatic"]["unavailable"].clone();
        let tried = tried(advised, &lost, told["outcome"].as_str().unwrap()).await;
        println!("{what}: {} {tried:?} {bounds}", told["why"]);
        if tried.outcome != *outcome {
            wrong.push(format!("{what}: {told:#}\n{tried:?}"));
            continue;
        }
        if tried.outcome == "failover" {
            // The machine of a test does other things too.
            let (least, most) = (&bounds["at_least_ms"], &bounds["at_most_ms"]);
            let after = tried.after.as_millis() as u64;
            assert!(after >= least.as_u64().unwrap(), "{what}: {after} {bounds}");
            assert!(after <= most.as_u64().unwrap() + 5000, "{what}: {after} {bounds}");
        }
        // Who took over is one of those that were named, in the shards that were named.
        let promoted = told["promoted"].as_array().unwrap();
        assert_eq!(tried.promoted.len(), promoted.len(), "{what}: {told:#}\n{tried:?}");
        for (shard, node) in &tried.promoted {
            let named = promoted.iter().find(|p| index(&p["shard"]) == *shard).unwrap();
            assert!(named["candidates"].as_array().unwrap().contains(node), "{what}: {node}");
        }
        let unserved: Vec<usize> =
            told["shards_lost"].as_array().unwrap().iter().map(index).collect();
        assert_eq!(tried.unserved, unserved, "{what}: {told:#}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A deployment of so many nodes, each on a machine of its own.
async fn made(mode: &str, zones: &str, watch: &str) -> Advised {
    let label = |nodes: &mut Value, zones: &str, name: &str| {
        let nodes = nodes.as_array_mut().unwrap().iter_mut();
        for (i, (node, zone)) in nodes.zip(zones.chars()).enumerate() {
            node["zone"] = json!(zone.to_string());
            node["host"] = json!(format!("{name}-{i}"));
        }
    };
    let adapt = |request: &mut Value| {
        label(&mut request["nodes"], zones, "data");
        if !watch.is_empty() {
            label(&mut request["sentinels"], watch, "watch");
        }
        request["assumptions"] = json!({ "node_timeout_ms": 1000, "down_after_ms": 1000 });
        if zones.len() == 10 {
            // 0.42 × 1.1 in shards of 0.1.
            request["data_size_gb"] = json!(0.42);
            request["assumptions"]["shard_gb"] = json!(0.1);
        }
    };
    Advised::made(mode, zones.len(), watch.len(), adapt).await
}

fn lost(advised: &Advised, loses: &[Part]) -> Vec<String> {
    let layout = advised.advice["layout"].as_array().unwrap();
    let spec = &advised.advice["topology"]["spec"];
    let address = |node: &Value| node["address"].as_str().unwrap().to_owned();
    let of = |part: &Part| match *part {
        Primary(shard) => vec![address(&layout[shard]["members"][0])],
        Replica(shard, n) => vec![address(&layout[shard]["members"][n + 1])],
        Sentinel(n) => vec![address(&spec["sentinels"][n])],
        Zone => {
            let leads =
                |zone: &&str| layout.iter().filter(|s| s["members"][0]["zone"] == **zone).count();
            let zone = ["a", "b", "c"].into_iter().max_by_key(leads).unwrap();
            let all = [&spec["nodes"], &spec["sentinels"]];
            let all = all.into_iter().filter_map(Value::as_array).flatten();
            all.filter(|n| n["zone"] == zone).map(address).collect()
        }
    };
    loses.iter().flat_map(of).collect()
}

/// What a deployment did by itself.
#[derive(Debug)]
struct Tried {
    outcome: &'static str,
    /// Shards that have another primary, and who that is.
    promoted: Vec<(usize, Value)>,
    /// Shards that nobody leads.
    unserved: Vec<usize>,
    after: Duration,
}

/// Kills them, and watches the others until what was told is so, or too long.
async fn tried(mut advised: Advised, lost: &[String], told: &str) -> Tried {
    // Nobody votes twice for a shard within a short time after the cluster was formed.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let running = std::mem::take(&mut advised.running);
    let (dead, left): (Vec<_>, Vec<_>) = running.into_iter().partition(|(n, _)| lost.contains(n));
    let began = Instant::now();
    drop(dead);
    let ends = |after: Duration, outcome: &str| match outcome {
        // Another one took over: that is the end.
        "failover" => true,
        // It takes until the dead are found out that nodes say so.
        "intact" => after > Duration::from_secs(3),
        // Who is not to come back is given the time that a failover would have taken, and more.
        _ => after > Duration::from_secs(12),
    };
    loop {
        let tried = look(&advised, &left, began);
        let over = tried.after > Duration::from_secs(20);
        if over || (tried.outcome == told && ends(tried.after, told)) {
            return tried;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn look(advised: &Advised, left: &[(String, Running)], began: Instant) -> Tried {
    let (mut promoted, mut unserved) = (vec![], vec![]);
    let (mut empty, mut refused, mut silent) = (false, false, false);
    for (index, shard) in advised.advice["layout"].as_array().unwrap().iter().enumerate() {
        let members = shard["members"].as_array().unwrap();
        let is_member = |node: &str| members.iter().any(|m| m["address"] == node);
        let alive: Vec<_> = left.iter().filter(|(node, _)| is_member(node)).collect();
        let key = key_of(shard["slots"].as_str().unwrap());
        let said = |node: &Running| node.ask(&["SET", &key, "value"]);
        let leads = |said: &str| said == "OK" || said.starts_with("NOREPLICAS");
        let answers: Vec<_> = alive.iter().map(|(node, r)| (node, said(r))).collect();
        match answers.iter().find(|(_, said)| leads(said)) {
            Some((node, said)) => {
                refused |= said != "OK";
                if members[0]["address"] != ***node {
                    promoted.push((index, json!(node)));
                }
            }
            None => {
                silent = true;
                empty |= alive.is_empty();
                if !is_led(&alive) {
                    unserved.push(index);
                }
            }
        }
    }
    let outcome = match (empty, silent, refused, promoted.is_empty()) {
        (true, ..) => "data_unavailable",
        (_, true, ..) => "no_quorum",
        (_, _, true, _) => "writes_refused",
        (.., false) => "failover",
        (.., true) => "intact",
    };
    Tried { outcome, promoted, unserved, after: began.elapsed() }
}

/// Whether a primary is left, also one whose cluster is down.
fn is_led(alive: &[&(String, Running)]) -> bool {
    alive.iter().any(|(_, node)| node.role() == "master")
}

/// A key of these slots; any where there are none.
fn key_of(slots: &str) -> String {
    let slots: SlotSet = serde_json::from_value(json!(slots)).unwrap();
    let fits = |key: &String| slots.is_empty() || slots.contains(key_slot(key.as_bytes()));
    (0..100_000).map(|i| format!("key-{i}")).find(fits).unwrap()
}
