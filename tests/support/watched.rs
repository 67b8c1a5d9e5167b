//! A deployment that Sentinels watch, on real servers, as tests build and ask about it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use reeve::demo::servers::{Redis, RedisOptions};
use serde_json::{Value, json};

use super::until;
use super::world::{World, redis_cli};

pub const NAME: &str = "orders";
pub const DOWN_AFTER_MS: u64 = 1000;

/// Data nodes are `world.nodes`; the Sentinels stand beside them.
pub struct Watched {
    pub world: World,
    pub sentinels: Vec<Redis>,
    binary: Option<PathBuf>,
}

impl Watched {
    pub async fn start(data: usize, sentinels: usize) -> Self {
        Self::start_with(&[], data, sentinels).await
    }

    pub async fn start_with(env: &[(&str, &str)], data: usize, sentinels: usize) -> Self {
        Self::with(None, env, data, sentinels, &[]).await
    }

    pub async fn with(
        binary: Option<PathBuf>,
        env: &[(&str, &str)],
        data: usize,
        sentinels: usize,
        config: &[(&str, &str)],
    ) -> Self {
        let world = World::with(env).await;
        let mut watched = Self { world, sentinels: vec![], binary };
        for _ in 0..data {
            watched.add_node(config).await;
        }
        for _ in 0..sentinels {
            watched.add_sentinel().await;
        }
        watched
    }

    /// One more data node; its number.
    pub async fn add_node(&mut self, config: &[(&str, &str)]) -> usize {
        let number = self.world.nodes.len();
        let options = RedisOptions {
            binary: self.binary.clone(),
            dir: self.world.folder.join(&format!("node-{number}")),
            with_config_file: true,
            ..RedisOptions::default()
        };
        let options = config.iter().fold(options, |all, (name, value)| all.with(name, value));
        self.world.nodes.push(Redis::start(options).await.unwrap());
        number
    }

    /// One more Sentinel; its number.
    pub async fn add_sentinel(&mut self) -> usize {
        self.add_sentinel_with(&[]).await
    }

    pub async fn add_sentinel_with(&mut self, config: &[(&str, &str)]) -> usize {
        let number = self.sentinels.len();
        let dir = self.world.folder.join(&format!("sentinel-{number}"));
        let options = RedisOptions { binary: self.binary.clone(), ..RedisOptions::sentinel(dir) };
        let options = config.iter().fold(options, |all, (name, value)| all.with(name, value));
        self.sentinels.push(Redis::start(options).await.unwrap());
        number
    }

    pub fn sentinel_spec(&self, number: usize) -> Value {
        let zone = ["a", "b", "c"][number % 3];
        json!({ "address": self.sentinels[number].address(), "zone": zone })
    }

    /// A request for a deployment of all nodes.
    pub fn body(&self) -> Value {
        let sentinels = 0..self.sentinels.len();
        json!({
            "name": NAME,
            "spec": {
                "mode": "sentinel", "master_name": NAME,
                "replicas": self.world.nodes.len() - 1, "nodes": self.world.node_specs(),
                "sentinels": sentinels.map(|n| self.sentinel_spec(n)).collect::<Vec<_>>(),
                "down_after_ms": DOWN_AFTER_MS, "failover_timeout_ms": 20_000, "parallel_syncs": 1,
            },
        })
    }

    pub async fn create(&self) -> Value {
        self.world.create(&self.body()).await
    }

    pub fn ask(&self, sentinel: usize, words: &[&str]) -> String {
        redis_cli(self.sentinels[sentinel].port(), words)
    }

    /// Whom a Sentinel names to clients.
    pub fn named(&self, sentinel: usize) -> String {
        let told = self.ask(sentinel, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]);
        told.lines().collect::<Vec<_>>().join(":")
    }

    /// Every one of these Sentinels knows all others of them and all replicas, and could agree.
    pub fn complete(&self, sentinels: &[usize], replicas: usize) -> Result<(), String> {
        for sentinel in sentinels {
            let quorum = self.ask(*sentinel, &["SENTINEL", "CKQUORUM", NAME]);
            if !quorum.starts_with("OK") {
                return Err(format!("Sentinel {sentinel}: {quorum}"));
            }
            let master = self.ask(*sentinel, &["SENTINEL", "MASTER", NAME]);
            let field = |name: &str| {
                let mut lines = master.lines().skip_while(|l| *l != name);
                lines.nth(1).unwrap_or_default().to_owned()
            };
            let (others, known) = (field("num-other-sentinels"), field("num-slaves"));
            let wanted = ((sentinels.len() - 1).to_string(), replicas.to_string());
            if (others.clone(), known.clone()) != wanted {
                return Err(format!("Sentinel {sentinel} knows {others} others, {known} replicas"));
            }
        }
        Ok(())
    }

    /// The same of all of them, now.
    pub fn is_complete(&self) {
        let all: Vec<usize> = (0..self.sentinels.len()).collect();
        self.complete(&all, self.world.nodes.len() - 1).unwrap();
    }

    pub async fn becomes_complete(&self, sentinels: &[usize], replicas: usize) {
        until("all know all", Duration::from_secs(30), async || self.complete(sentinels, replicas))
            .await;
    }

    pub fn traffic(&self) -> Traffic {
        let all = |nodes: &[Redis]| nodes.iter().map(Redis::address).collect::<Vec<_>>().join(",");
        Traffic::start(&all(&self.sentinels), &all(&self.world.nodes))
    }

    pub fn guard(&self) -> Guard {
        Guard::over(self.sentinels.iter().map(Redis::port).collect())
    }

    /// Which data node says that it is primary; all who do.
    pub fn primaries(&self) -> Vec<usize> {
        let says = |n: &usize| self.world.ask(*n, &["ROLE"]).starts_with("master");
        (0..self.world.nodes.len()).filter(says).collect()
    }
}

/// Asks Sentinels all the time whether they could agree on a failover.
pub struct Guard {
    at: Arc<Mutex<Vec<u16>>>,
    stop: Arc<AtomicBool>,
    asking: JoinHandle<usize>,
}

impl Guard {
    fn over(ports: Vec<u16>) -> Self {
        let (at, stop) = (Arc::new(Mutex::new(ports)), Arc::new(AtomicBool::new(false)));
        let (all, stopped) = (at.clone(), stop.clone());
        let asking = std::thread::spawn(move || {
            let mut least = usize::MAX;
            while !stopped.load(Ordering::Relaxed) {
                let ports = all.lock().unwrap().clone();
                least = least.min(ports.into_iter().filter(|port| could_agree(*port)).count());
                std::thread::sleep(Duration::from_millis(20));
            }
            least
        });
        Self { at, stop, asking }
    }

    /// One more.
    pub fn ask(&self, sentinel: &Redis) {
        self.at.lock().unwrap().push(sentinel.port());
    }

    /// The least number of those that could agree at the same time.
    pub fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.asking.join().unwrap()
    }
}

fn could_agree(sentinel: u16) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(("127.0.0.1", sentinel))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(format!("SENTINEL CKQUORUM {NAME}\r\n").as_bytes())?;
        let mut answer = [0; 3];
        stream.read_exact(&mut answer)?;
        Ok(answer == *b"+OK")
    };
    ask().unwrap_or(false)
}

/// An application beside the test: a stock sentinel-aware client in a process of its own
/// (`tests/tools/sentinel_client.py`).
pub struct Traffic {
    child: Child,
    out: BufReader<ChildStdout>,
}

/// What it saw.
#[derive(Debug)]
pub struct Seen {
    pub acknowledged: u64,
    pub lost: Vec<Value>,
    pub errors: Value,
    pub gaps_ms: Vec<f64>,
    /// Who took writes, one after the other.
    pub takers: Vec<String>,
}

impl Traffic {
    fn start(sentinels: &str, nodes: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(root.join(".venv/bin/python"))
            .arg(root.join("tests/tools/sentinel_client.py"))
            .args([sentinels, NAME, nodes])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { child, out }
    }

    /// Has it stop, read everything once more, and tell.
    pub fn stop(mut self) -> Seen {
        drop(self.child.stdin.take());
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        assert!(self.child.wait().unwrap().success());
        let told: Value = serde_json::from_str(&line).unwrap();
        let list = |name: &str| told[name].as_array().unwrap().clone();
        Seen {
            acknowledged: told["acknowledged"].as_u64().unwrap(),
            lost: list("lost"),
            errors: told["errors"].clone(),
            gaps_ms: list("gaps_ms").iter().filter_map(Value::as_f64).collect(),
            takers: list("takers").iter().filter_map(|t| Some(t.as_str()?.to_owned())).collect(),
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
