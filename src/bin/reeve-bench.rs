//! `make bench`: how long it takes until a cluster is really there, made by Reeve and made by
//! `redis-cli --cluster create`, in one run on this machine and by the same judge.
//!
//! Each round takes fresh nodes with their default settings (but for saving to disk, which is off
//! for both). Which of the two goes first changes from round to round.

use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use futures::StreamExt;
use futures::future::try_join_all;
use redis::aio::MultiplexedConnection;
use reeve::client::Client;
use reeve::demo::servers::{Folder, Postgres, Redis, RedisOptions, Server, ServerOptions};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

const POLL: Duration = Duration::from_millis(10);
/// A node does not call its cluster well within 2 s of its start (CLUSTER_WRITABLE_DELAY in Redis'
/// cluster.c), whoever made the cluster; that is not what is measured.
const SETTLE: Duration = Duration::from_millis(2500);
const GIVE_UP: Duration = Duration::from_secs(180);
const ZONES: [&str; 3] = ["a", "b", "c"];

type Error = Box<dyn std::error::Error>;

/// Compares Reeve's create with `redis-cli --cluster create`: shards of two nodes each.
#[derive(Parser)]
struct Args {
    /// Sizes of clusters, in nodes
    #[arg(long, value_delimiter = ',', default_value = "6,30")]
    nodes: Vec<usize>,
    /// How often each of the two makes a cluster of each size
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if args.nodes.iter().any(|n| *n < 6 || n % 2 == 1) || args.rounds == 0 {
        eprintln!("sizes are even numbers from 6 on, and there is at least one round");
        return ExitCode::from(2);
    }
    match measure(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the benchmark broke off: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether Reeve is as much faster as it should be, at every size.
async fn measure(args: &Args) -> Result<bool, Error> {
    let folder = Folder::fresh("reeve-bench")?;
    let postgres = Postgres::start(&folder.join("postgres")).await?;
    let options = ServerOptions::new(reeve_binary()?, folder.join("reeve"), postgres.url())?;
    let server = Server::start(options).await?;
    let client = Client::new(&server.url(), server.token())?;
    println!("{}, {}", version("redis-server").await?, version("redis-cli").await?);
    println!(
        "done: every node says ok, all agree on members, roles and slots, replicas have their data"
    );

    let mut all_met = true;
    for &size in &args.nodes {
        println!("\n{size} nodes, {} shards with 1 replica each\n", size / 2);
        println!("  round  reeve done  plan says  redis-cli done  returns  ratio");
        let mut rounds = vec![];
        for round in 0..args.rounds {
            let name = format!("bench-{size}-{round}");
            let dir = folder.join(&name);
            let (ours, theirs) = if round % 2 == 0 {
                let ours = with_reeve(&client, &name, size, &dir.join("reeve")).await?;
                (ours, with_redis_cli(size, &dir.join("cli")).await?)
            } else {
                let theirs = with_redis_cli(size, &dir.join("cli")).await?;
                (with_reeve(&client, &name, size, &dir.join("reeve")).await?, theirs)
            };
            row(&(round + 1).to_string(), &ours, &theirs);
            rounds.push((ours, theirs));
        }
        let ours = median(rounds.iter().map(|(ours, _)| ours));
        let theirs = median(rounds.iter().map(|(_, theirs)| theirs));
        let ratio = row("median", &ours, &theirs);
        let wanted = if size >= 30 { 10.0 } else { 5.0 };
        let met = ratio >= wanted;
        println!(
            "  {}: {ratio:.1} times as fast, {wanted} wanted",
            if met { "met" } else { "MISSED" }
        );
        all_met &= met;
    }
    Ok(all_met)
}

/// How long until the judge was satisfied, and until the maker itself said that it was done.
struct Times {
    done: Duration,
    said: Duration,
}

async fn with_reeve(client: &Client, name: &str, size: usize, dir: &Path) -> Result<Times, Error> {
    let nodes = nodes(size, dir).await?;
    let judge = Judge::new(&nodes).await?;
    let spec: Vec<Value> = (nodes.iter().zip(ZONES.iter().cycle()))
        .map(
            |(node, zone)| json!({"address": node.address(), "zone": zone, "host": node.address()}),
        )
        .collect();
    let body = json!({"name": name, "spec": {
        "mode": "cluster", "shards": size / 2, "replicas_per_shard": 1, "nodes": spec }});
    let begun = Instant::now();
    let made = async {
        let plan = client.create_topology(&body, None).await?;
        let id = plan["id"].as_str().unwrap_or_default().to_owned();
        let mut events = client.events(&format!("/v1/plans/{id}/stream"), None);
        while let Some(event) = events.next().await {
            let event = event?;
            match event.event.as_str() {
                "plan.succeeded" => return Ok(begun.elapsed()),
                "plan.failed" | "plan.cancelled" => return Err(event.data.into()),
                _ => {}
            }
        }
        Err::<_, Error>("the plan's stream has no end".into())
    };
    let (said, done) = tokio::try_join!(made, judge.satisfied(begun))?;
    // Forgotten, so that nothing watches nodes that are gone while others are measured.
    let path = format!("/v1/topologies/{name}");
    let tag = client.etag(&path).await?;
    client.delete(&path, tag.as_deref()).await?;
    let registered = client.get("/v1/nodes?limit=200").await?;
    for node in registered["items"].as_array().into_iter().flatten() {
        let id = node["id"].as_str().unwrap_or_default();
        client.delete(&format!("/v1/nodes/{id}"), None).await?;
    }
    Ok(Times { done, said })
}

async fn with_redis_cli(size: usize, dir: &Path) -> Result<Times, Error> {
    let nodes = nodes(size, dir).await?;
    let judge = Judge::new(&nodes).await?;
    let mut command = tokio::process::Command::new("redis-cli");
    command.args(["--cluster", "create"]).args(nodes.iter().map(Redis::address));
    command.args(["--cluster-replicas", "1", "--cluster-yes"]);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let begun = Instant::now();
    let made = async {
        let output = command.output().await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(begun.elapsed()) } else { Err::<_, Error>(said.into()) }
    };
    let (said, done) = tokio::try_join!(made, judge.satisfied(begun))?;
    Ok(Times { done, said })
}

async fn nodes(size: usize, dir: &Path) -> Result<Vec<Redis>, Error> {
    let start = |n: usize| Redis::start(RedisOptions::cluster(dir.join(n.to_string())));
    let nodes = try_join_all((0..size).map(start)).await?;
    sleep(SETTLE).await;
    Ok(nodes)
}

/// Says when a cluster is really there. It asks the nodes themselves and knows nothing of who
/// makes it.
struct Judge(Vec<MultiplexedConnection>);

impl Judge {
    async fn new(nodes: &[Redis]) -> Result<Self, Error> {
        let connect = |node: &Redis| {
            let client = redis::Client::open(format!("redis://{}/", node.address()));
            async move { client?.get_multiplexed_async_connection().await }
        };
        Ok(Self(try_join_all(nodes.iter().map(connect)).await?))
    }

    /// Looks every 10 ms; how long it took since `begun`.
    async fn satisfied(mut self, begun: Instant) -> Result<Duration, Error> {
        let look = async {
            loop {
                let size = self.0.len();
                let mut common: Option<Vec<String>> = None;
                let mut content = true;
                // One objection is enough, and the node that made it is asked first next time.
                for i in 0..size {
                    let view = view(&mut self.0[i], size).await?;
                    content = view.is_some() && (common.is_none() || common == view);
                    if !content {
                        self.0.swap(0, i);
                        break;
                    }
                    common = view;
                }
                if content {
                    return Ok::<_, Error>(begun.elapsed());
                }
                sleep(POLL).await;
            }
        };
        match timeout(GIVE_UP, look).await {
            Ok(done) => done,
            Err(_) => Err(format!("no working cluster after {GIVE_UP:?}").into()),
        }
    }
}

/// What one node believes of all, or `None` while it is not content itself.
async fn view(node: &mut MultiplexedConnection, size: usize) -> Result<Option<Vec<String>>, Error> {
    let (info, nodes, replication): (String, String, String) = redis::pipe()
        .cmd("CLUSTER")
        .arg("INFO")
        .cmd("CLUSTER")
        .arg("NODES")
        .cmd("INFO")
        .arg("replication")
        .query_async(node)
        .await?;
    let has = |text: &str, line: &str| text.lines().any(|l| l.trim() == line);
    let ready = has(&info, "cluster_state:ok")
        && (has(&replication, "role:master") || has(&replication, "master_link_status:up"));
    let replicas = |lines: &[String]| lines.iter().filter(|line| line.contains(" slave ")).count();
    // Before they are told to replicate, all may well agree that nobody does.
    let whole = |lines: &Vec<String>| lines.len() == size && replicas(lines) == size / 2;
    Ok(signature(&nodes).filter(|lines| ready && whole(lines)))
}

/// The members with their roles and slots, the same from wherever it is asked; `None` while some
/// member is not fully known or not well.
fn signature(nodes: &str) -> Option<Vec<String>> {
    let mut lines = vec![];
    for line in nodes.lines().filter(|line| !line.trim().is_empty()) {
        let fields: Vec<&str> = line.split(' ').collect();
        let [id, _, flags, primary, _, _, _, _, slots @ ..] = fields.as_slice() else {
            return None;
        };
        let role = flags.split(',').find(|flag| ["master", "slave"].contains(flag))?;
        let unwell = ["fail", "fail?", "handshake", "noaddr"];
        if flags.split(',').any(|flag| unwell.contains(&flag)) {
            return None;
        }
        lines.push(format!("{id} {role} {primary} {}", slots.join(" ")));
    }
    lines.sort_unstable();
    Some(lines)
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

fn median<'a>(rounds: impl Iterator<Item = &'a Times> + Clone) -> Times {
    let middle = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        let (low, high) = (times[(times.len() - 1) / 2], times[times.len() / 2]);
        (low + high) / 2
    };
    let done = middle(&mut rounds.clone().map(|times| times.done).collect());
    Times { done, said: middle(&mut rounds.map(|times| times.said).collect()) }
}

/// The server's program, which is built beside this one.
fn reeve_binary() -> Result<std::path::PathBuf, Error> {
    let beside = std::env::current_exe()?.with_file_name("reeve");
    if beside.is_file() {
        return Ok(beside);
    }
    Err(format!("there is no {}; build it with: cargo build --release --bins", beside.display())
        .into())
}

async fn version(program: &str) -> Result<String, Error> {
    let asked = tokio::process::Command::new(program).arg("--version").output().await;
    let said = asked.map_err(|error| format!("cannot run {program}: {error}"))?.stdout;
    let said = String::from_utf8_lossy(&said).into_owned();
    let number = said.split_whitespace().find_map(|word| {
        let word = word.strip_prefix("v=").unwrap_or(word);
        word.starts_with(|c: char| c.is_ascii_digit()).then_some(word)
    });
    Ok(format!("{program} {}", number.unwrap_or("of unknown version")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_gives_the_same_signature_when_they_agree() {
        let a = "1 h:1@2 myself,master - 0 0 1 connected 0-1\n2 h:2@3 slave 1 0 5 1 connected\n";
        let b = "2 h:2@3 myself,slave 1 0 0 1 connected\n1 h:1@2 master - 0 9 1 connected 0-1\n";
        assert_eq!(signature(a), signature(b));
        assert_eq!(signature(a).map(|lines| lines.len()), Some(2));
        assert_ne!(signature(a), signature(&a.replace("0-1", "0-2")));
        for bad in ["master,fail?", "handshake", "master,fail", "noaddr"] {
            assert_eq!(signature(&b.replace(" master ", &format!(" {bad} "))), None);
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let times: Vec<Times> = [5, 1, 3]
            .map(|s| Times { done: Duration::from_secs(s), said: Duration::from_secs(s + 1) })
            .into();
        assert_eq!(median(times.iter()).done, Duration::from_secs(3));
        assert_eq!(median(times[1..].iter()).said, Duration::from_secs(3));
    }
}
