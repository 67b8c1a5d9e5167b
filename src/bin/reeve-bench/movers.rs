//! Those who move slots.

use std::time::{Duration, Instant};

use reeve::domain::slot::SlotSet;
use serde_json::json;
use tokio::time::sleep;

use super::bench::{Error, contestant};
use super::cluster::Cluster;

/// Between looks at what servers do by themselves.
const POLL: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mover {
    Reeve,
    /// `redis-cli --cluster`, with `--cluster-pipeline` where it is given.
    Cli {
        pipeline: Option<u32>,
    },
    /// `CLUSTER MIGRATESLOTS` (Valkey 9) and nothing around it.
    Bare,
}

/// One who gives or takes slots.
#[derive(Debug, Clone)]
pub struct End {
    pub id: String,
    pub address: String,
}

impl Mover {
    pub fn name(self) -> String {
        match self {
            Self::Reeve => "reeve".to_owned(),
            Self::Cli { pipeline: None } => "redis-cli".to_owned(),
            Self::Cli { pipeline: Some(n) } => format!("redis-cli, pipeline {n}"),
            Self::Bare => "bare commands".to_owned(),
        }
    }

    /// Moves slots, which are the lowest of the source; how long until it says that it is done.
    pub async fn reshard(
        self,
        cluster: &Cluster<'_>,
        from: &End,
        to: &End,
        slots: &SlotSet,
    ) -> Result<Duration, Error> {
        match self {
            Self::Reeve => {
                let moves = json!([{"from": from.address, "to": to.address, "slots": slots}]);
                let intent = json!({"kind": "reshard", "moves": moves});
                cluster.bench.plan(cluster.name, intent).await
            }
            Self::Cli { pipeline } => {
                let count = slots.count().to_string();
                let words = ["reshard", &from.address, "--cluster-from", &from.id, "--cluster-to"];
                let more = [&to.id, "--cluster-slots", &count, "--cluster-yes"];
                redis_cli(&[&words[..], &more[..]].concat(), pipeline).await
            }
            Self::Bare => migrate(from, to, slots).await,
        }
    }

    /// Gives all primaries equal shares.
    pub async fn rebalance(self, cluster: &Cluster<'_>) -> Result<Duration, Error> {
        match self {
            Self::Reeve => cluster.bench.plan(cluster.name, json!({"kind": "rebalance"})).await,
            Self::Cli { pipeline } => {
                let nodes = cluster.addresses();
                let first = nodes.first().ok_or("a cluster without nodes")?;
                let words = ["rebalance", first.as_str(), "--cluster-use-empty-masters"];
                redis_cli(&words, pipeline).await
            }
            Self::Bare => Err("no command rebalances".into()),
        }
    }
}

async fn redis_cli(words: &[&str], pipeline: Option<u32>) -> Result<Duration, Error> {
    let mut command = contestant("redis-cli");
    command.arg("--cluster").args(words);
    if let Some(pipeline) = pipeline {
        command.args(["--cluster-pipeline", &pipeline.to_string()]);
    }
    let begun = Instant::now();
    let output = command.output().await?;
    if output.status.success() {
        return Ok(begun.elapsed());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let last: Vec<&str> = said.lines().rev().take(5).collect();
    Err(format!("redis-cli {words:?}: {last:?}").into())
}

async fn migrate(from: &End, to: &End, slots: &SlotSet) -> Result<Duration, Error> {
    let client = redis::Client::open(format!("redis://{}/", from.address))?;
    let mut source = client.get_multiplexed_async_connection().await?;
    let mut command = redis::cmd("CLUSTER");
    command.arg("MIGRATESLOTS").arg("SLOTSRANGE");
    for range in slots.ranges() {
        command.arg(range.first()).arg(range.last());
    }
    let begun = Instant::now();
    command.arg("NODE").arg(&to.id).query_async::<()>(&mut source).await?;
    loop {
        let jobs: Vec<redis::Value> =
            redis::cmd("CLUSTER").arg("GETSLOTMIGRATIONS").query_async(&mut source).await?;
        // The newest comes first.
        let newest = jobs.into_iter().next().ok_or("the job is not there")?;
        let newest: Vec<(String, redis::Value)> = redis::from_redis_value(newest)?;
        let state = newest.into_iter().find(|(name, _)| name == "state").map(|(_, state)| state);
        let state: String = redis::from_redis_value(state.ok_or("a job without a state")?)?;
        match state.as_str() {
            "success" => return Ok(begun.elapsed()),
            "failed" | "cancelled" => return Err(format!("the job has {state}").into()),
            _ => sleep(POLL).await,
        }
    }
}
