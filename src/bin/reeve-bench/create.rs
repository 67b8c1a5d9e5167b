//! How long it takes until a cluster is really there.
//!
//! Each round takes fresh nodes. Which of the two goes first changes from round to round.

use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use reeve::demo::servers::{Redis, RedisOptions};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::bench::{Bench, Error, contestant, median, tell};
use super::judge::{Judge, Member};

/// A node does not call its cluster well within 2 s of its start (CLUSTER_WRITABLE_DELAY in Redis'
/// cluster.c), whoever made the cluster; that is not what is measured.
const SETTLE: Duration = Duration::from_millis(2500);
const ZONES: [&str; 3] = ["a", "b", "c"];

/// Whether Reeve is as much faster as it should be, at every size.
pub async fn measure(bench: &Bench, sizes: &[usize], rounds: usize) -> Result<bool, Error> {
    println!(
        "\ndone: every node says ok, all agree on members, roles and slots, replicas have their data"
    );
    let mut all_met = true;
    for &size in sizes {
        println!("\n{size} nodes, {} shards with 1 replica each\n", size / 2);
        println!("  round  reeve done  plan says  redis-cli done  returns  ratio");
        let mut all = vec![];
        for round in 0..rounds {
            let name = format!("bench-{size}-{round}");
            let dir = bench.folder.join(&name);
            let (ours, theirs) = if round % 2 == 0 {
                let ours = with_reeve(bench, &name, size, &dir.join("reeve")).await?;
                (ours, with_redis_cli(size, &dir.join("cli")).await?)
            } else {
                let theirs = with_redis_cli(size, &dir.join("cli")).await?;
                (with_reeve(bench, &name, size, &dir.join("reeve")).await?, theirs)
            };
            row(&(round + 1).to_string(), &ours, &theirs);
            all.push((ours, theirs));
        }
        let middle = |of: fn(&(Times, Times)) -> &Times| Times {
            done: median(all.iter().map(|both| of(both).done)),
            said: median(all.iter().map(|both| of(both).said)),
        };
        let ratio = row("median", &middle(|both| &both.0), &middle(|both| &both.1));
        let wanted = if size >= 30 { 10.0 } else { 5.0 };
        all_met &= tell(ratio >= wanted, &format!("{ratio:.1} times as fast, {wanted} wanted"));
    }
    Ok(all_met)
}

/// How long until the judge was satisfied, and until the maker itself said that it was done.
struct Times {
    done: Duration,
    said: Duration,
}

async fn with_reeve(bench: &Bench, name: &str, size: usize, dir: &Path) -> Result<Times, Error> {
    let nodes = nodes(size, dir).await?;
    let mut judge = Judge::new(&nodes).await?;
    let spec: Vec<Value> = (nodes.iter().zip(ZONES.iter().cycle()))
        .map(
            |(node, zone)| json!({"address": node.address(), "zone": zone, "host": node.address()}),
        )
        .collect();
    let body = json!({"name": name, "spec": {
        "mode": "cluster", "shards": size / 2, "replicas_per_shard": 1, "nodes": spec }});
    let begun = Instant::now();
    let made = bench.carry_out("/v1/topologies", &body, begun);
    let (said, done) = tokio::try_join!(made, judge.satisfied(begun, is_whole))?;
    bench.forget(name).await?;
    Ok(Times { done, said })
}

async fn with_redis_cli(size: usize, dir: &Path) -> Result<Times, Error> {
    let nodes = nodes(size, dir).await?;
    let mut judge = Judge::new(&nodes).await?;
    let mut command = contestant("redis-cli");
    command.args(["--cluster", "create"]).args(nodes.iter().map(Redis::address));
    command.args(["--cluster-replicas", "1", "--cluster-yes"]);
    let begun = Instant::now();
    let made = async {
        let output = command.output().await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(begun.elapsed()) } else { Err::<_, Error>(said.into()) }
    };
    let (said, done) = tokio::try_join!(made, judge.satisfied(begun, is_whole))?;
    Ok(Times { done, said })
}

async fn nodes(size: usize, dir: &Path) -> Result<Vec<Redis>, Error> {
    let start = |n: usize| Redis::start(RedisOptions::cluster(dir.join(n.to_string())));
    let nodes = try_join_all((0..size).map(start)).await?;
    sleep(SETTLE).await;
    Ok(nodes)
}

/// Before they are told to replicate, all may well agree that nobody does.
fn is_whole(members: &[Member]) -> bool {
    members.iter().filter(|m| !m.is_primary).count() == members.len() / 2
}

fn row(name: &str, ours: &Times, theirs: &Times) -> f64 {
    let ratio = theirs.done.as_secs_f64() / ours.done.as_secs_f64();
    let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
    println!(
        "  {name:<6} {:>10}  {:>9}  {:>14}  {:>7}  {ratio:>5.1}",
        seconds(ours.done),
        seconds(ours.said),
        seconds(theirs.done),
        seconds(theirs.said)
    );
    ratio
}
