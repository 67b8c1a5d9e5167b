//! What it takes to watch many nodes, and how soon the death of one is noticed.
//!
//! The nodes are real servers that do little themselves (`hz 1`), each reached at ten addresses of
//! this machine; to Reeve each address is a node, looked at each second.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use reeve::demo::servers::{Redis, RedisOptions};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::bench::{Bench, Error, tell};

/// Addresses of one server; Redis binds to 16 at most.
const EACH: usize = 10;
const MEASURED: Duration = Duration::from_secs(30);
/// Spare nodes are looked at each second interval.
const INTERVAL_MS: &str = "500";
const KILLED: usize = 20;
const NOTICED_WITHIN: Duration = Duration::from_secs(10);

/// Watches so many nodes; whether one core was enough.
pub async fn measure(nodes: usize) -> Result<bool, Error> {
    let bench = Bench::with(&[("REEVE_WATCH_INTERVAL_MS", INTERVAL_MS)]).await?;
    let mut servers = start(&bench, nodes.div_ceil(EACH)).await?;
    let addresses: Vec<Vec<String>> =
        servers.iter().enumerate().map(|(n, server)| at(n, server.port())).collect();
    let register = |address: &String| {
        let body = json!({ "address": address, "zone": "a" });
        let client = bench.client.clone();
        async move { client.post("/v1/nodes", &body).await }
    };
    let all: Vec<_> = addresses.iter().flatten().map(register).collect();
    let registered: Vec<Value> = stream::iter(all).buffer_unordered(16).try_collect().await?;
    println!("watch {} nodes ({} servers) for {MEASURED:?}", registered.len(), servers.len());
    sleep(Duration::from_secs(5)).await;

    let (begun, before) = (Instant::now(), cpu_seconds(bench.pid())?);
    let mut ages = vec![];
    while begun.elapsed() < MEASURED {
        ages.extend(ages_of_sights(&bench).await?);
        sleep(Duration::from_secs(2)).await;
    }
    let cores = (cpu_seconds(bench.pid())? - before) / begun.elapsed().as_secs_f64();
    let megabytes = resident_bytes(bench.pid())? >> 20;

    let mut noticed = vec![];
    for (server, addresses) in servers.iter_mut().zip(&addresses).take(KILLED) {
        noticed.extend(death_noticed(&bench, server, addresses).await?);
    }
    println!("  {cores:.2} cores, {megabytes} MiB");
    println!(
        "  age of what is shown: p50 {:?}, p99 {:?}",
        part(&mut ages, 50),
        part(&mut ages, 99)
    );
    println!(
        "  a death is told after: p50 {:?}, p99 {:?}",
        part(&mut noticed, 50),
        part(&mut noticed, 99)
    );
    Ok(tell(cores <= 1.0, "at most one core"))
}

fn at(server: usize, port: u16) -> Vec<String> {
    (0..EACH).map(|n| format!("127.1.{server}.{}:{port}", n + 1)).collect()
}

async fn start(bench: &Bench, count: usize) -> Result<Vec<Redis>, Error> {
    let start = |n: usize| {
        let addresses: Vec<String> = (0..EACH).map(|i| format!("127.1.{n}.{}", i + 1)).collect();
        let dir = bench.folder.join(&format!("watched-{n}"));
        let options = RedisOptions { dir, ..RedisOptions::default() };
        // The first is the one at which it is asked whether it runs.
        let bind = format!("127.0.0.1 {}", addresses.join(" "));
        Redis::start(options.with("bind", &bind).with("hz", "1"))
    };
    let starting: Vec<_> = (0..count).map(start).collect();
    Ok(stream::iter(starting).buffered(8).try_collect().await?)
}

/// How old what Reeve shows of each node is.
async fn ages_of_sights(bench: &Bench) -> Result<Vec<Duration>, Error> {
    let (mut ages, mut cursor) = (vec![], String::new());
    loop {
        let page = bench.client.get(&format!("/v1/nodes?limit=200{cursor}")).await?;
        let now = reeve::clock::now();
        for node in page["items"].as_array().into_iter().flatten() {
            let at = node["report"]["observed_at"].as_str().unwrap_or_default();
            let at: DateTime<Utc> = at.parse()?;
            ages.push((now - at).to_std().unwrap_or_default());
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(ages),
        }
    }
}

/// Kills a server; how long after it each of its addresses was told to be suspect.
async fn death_noticed(
    bench: &Bench,
    server: &mut Redis,
    addresses: &[String],
) -> Result<Vec<Duration>, Error> {
    let mut events = bench.client.events("/v1/events/stream?types=node.suspect,node.down", None);
    // So that the stream is open before anything happens.
    sleep(Duration::from_millis(300)).await;
    server.kill();
    let killed = Instant::now();
    let mut noticed: BTreeMap<String, Duration> = BTreeMap::new();
    while noticed.len() < addresses.len() {
        let next = tokio::time::timeout(NOTICED_WITHIN, events.next()).await;
        let Ok(Some(event)) = next else {
            return Err(format!("{} of {} were noticed", noticed.len(), addresses.len()).into());
        };
        let event: Value = serde_json::from_str(&event?.data)?;
        let node = event["data"]["node"].as_str().unwrap_or_default().to_owned();
        if addresses.contains(&node) {
            noticed.entry(node).or_insert(killed.elapsed());
        }
    }
    Ok(noticed.into_values().collect())
}

fn part(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times.get(last * percent / 100).copied().unwrap_or_default()
}

/// Processor time that a process has used so far.
fn cpu_seconds(pid: u32) -> Result<f64, Error> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> =
        stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0);
    // User and system time, in hundredths of a second on every Linux that there is.
    Ok((ticks(11) + ticks(12)) / 100.0)
}

fn resident_bytes(pid: u32) -> Result<u64, Error> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kilobytes.unwrap_or(0) << 10)
}
