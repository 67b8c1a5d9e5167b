//! What all parts share: a Reeve server on a private PostgreSQL, and how results are told.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures::StreamExt;
use reeve::client::Client;
use reeve::demo::servers::{Folder, Postgres, Server, ServerOptions};
use serde_json::{Value, json};
use tokio::process::Command;

pub type Error = Box<dyn std::error::Error>;

/// Who works on nodes does so from another machine in life; here nobody may take the processor from
/// them.
const NICENESS: u8 = 10;

pub struct Bench {
    pub client: Client,
    // Dropped in this order.
    server: Server,
    _postgres: Postgres,
    pub folder: Folder,
}

impl Bench {
    pub async fn start() -> Result<Self, Error> {
        Self::with(&[]).await
    }

    /// The same with more settings, by the names of their variables.
    pub async fn with(env: &[(&str, &str)]) -> Result<Self, Error> {
        let folder = Folder::fresh("reeve-bench")?;
        let postgres = Postgres::start(&folder.join("postgres")).await?;
        let options = ServerOptions::new(reeve_binary()?, folder.join("reeve"), postgres.url())?;
        let options = ServerOptions { niceness: NICENESS, ..options };
        let options = env.iter().fold(options, |all, (name, value)| all.with(name, value));
        let server = Server::start(options).await?;
        let client = Client::new(&server.url(), server.token())?;
        println!("{}, {}", version("redis-server").await?, version("redis-cli").await?);
        Ok(Self { client, server, _postgres: postgres, folder })
    }

    /// Of the server.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Has a plan made and carried out; how long that took since `begun`.
    pub async fn carry_out(
        &self,
        path: &str,
        body: &Value,
        begun: Instant,
    ) -> Result<Duration, Error> {
        let plan = self.client.submit(path, body, None).await?;
        let id = plan["id"].as_str().unwrap_or_default();
        let mut events = self.client.events(&format!("/v1/plans/{id}/stream"), None);
        while let Some(event) = events.next().await {
            let event = event?;
            match event.event.as_str() {
                "plan.succeeded" => return Ok(begun.elapsed()),
                "plan.failed" | "plan.cancelled" | "plan.paused" => return Err(event.data.into()),
                _ => {}
            }
        }
        Err("the plan's stream has no end".into())
    }

    /// The same on a topology that exists.
    pub async fn plan(&self, topology: &str, intent: Value) -> Result<Duration, Error> {
        let path = format!("/v1/topologies/{topology}/plans");
        self.carry_out(&path, &json!({ "intent": intent }), Instant::now()).await
    }

    /// So that nothing watches nodes that are gone while others are measured.
    pub async fn forget(&self, topology: &str) -> Result<(), Error> {
        let path = format!("/v1/topologies/{topology}");
        let tag = self.client.etag(&path).await?;
        self.client.delete(&path, tag.as_deref()).await?;
        let registered = self.client.get("/v1/nodes?limit=200").await?;
        for node in registered["items"].as_array().into_iter().flatten() {
            let id = node["id"].as_str().unwrap_or_default();
            self.client.delete(&format!("/v1/nodes/{id}"), None).await?;
        }
        Ok(())
    }
}

/// A contestant's program.
pub fn contestant(program: &str) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", &NICENESS.to_string(), program]).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Tells whether something is as it should be.
pub fn tell(met: bool, what: &str) -> bool {
    println!("  {}: {what}", if met { "met" } else { "MISSED" });
    met
}

/// The middle one, or between the two in the middle; nothing of nothing.
pub fn median(times: impl IntoIterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.into_iter().collect();
    times.sort_unstable();
    let middle = |i: usize| times.get(i).copied().unwrap_or_default();
    (middle(times.len().saturating_sub(1) / 2) + middle(times.len() / 2)) / 2
}

/// The server's program, which is built beside this one.
fn reeve_binary() -> Result<PathBuf, Error> {
    let beside = std::env::current_exe()?.with_file_name("reeve");
    if beside.is_file() {
        return Ok(beside);
    }
    Err(format!("there is no {}; build it with: cargo build --release --bins", beside.display())
        .into())
}

async fn version(program: &str) -> Result<String, Error> {
    let asked = Command::new(program).arg("--version").output().await;
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
    fn the_median_is_in_the_middle() {
        let seconds = |all: &[u64]| median(all.iter().map(|s| Duration::from_secs(*s)));
        assert_eq!(seconds(&[5, 1, 3]), Duration::from_secs(3));
        assert_eq!(seconds(&[5, 1]), Duration::from_secs(3));
        assert_eq!(seconds(&[]), Duration::ZERO);
    }
}
