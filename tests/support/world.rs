//! A private PostgreSQL, a Reeve server as a process of its own, and as many Redis nodes as a test
//! wants. All of it ends with the test.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;

use futures::future::join_all;
use reeve::client::Client;
use reeve::demo::servers::{Folder, Postgres, Redis, RedisOptions, Server, ServerOptions, Signal};
use serde_json::{Value, json};

pub struct World {
    pub folder: Folder,
    pub postgres: Postgres,
    pub server: Server,
    pub client: Client,
    pub nodes: Vec<Redis>,
    options: ServerOptions,
    servers: usize,
}

impl World {
    /// A server on an empty database, without nodes.
    pub async fn new() -> Self {
        Self::with(&[]).await
    }

    /// The same with more settings, by the names of their variables.
    pub async fn with(env: &[(&str, &str)]) -> Self {
        let folder = Folder::fresh("reeve-test").unwrap();
        let postgres = Postgres::start(&folder.join("postgres")).await.unwrap();
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_reeve"));
        let mut options = ServerOptions::new(binary, folder.join("reeve"), postgres.url()).unwrap();
        options = options.with("REEVE_NODE_ALLOW_CIDRS", "127.0.0.0/8,::1/128");
        for (name, value) in env {
            options = options.with(name, value);
        }
        let server = Server::start(options.clone()).await.unwrap();
        let client = client_of(&server);
        Self { folder, postgres, server, client, nodes: Vec::new(), options, servers: 1 }
    }

    /// One more server on the same database, with the same settings and a port of its own.
    pub async fn another_server(&mut self) -> Server {
        let mut options = self.options.clone();
        options.dir = self.folder.join(&format!("reeve-{}", self.servers));
        self.servers += 1;
        Server::start(options).await.unwrap()
    }

    /// With blank cluster nodes.
    pub async fn with_nodes(count: usize) -> Self {
        let mut world = Self::new().await;
        world.add_nodes(count, &[]).await;
        world
    }

    /// Starts blank cluster nodes with further lines of configuration.
    pub async fn add_nodes(&mut self, count: usize, config: &[(&str, &str)]) {
        self.add_nodes_of(None, count, config).await;
    }

    /// The same of another program than the usual one.
    pub async fn add_nodes_of(
        &mut self,
        binary: Option<PathBuf>,
        count: usize,
        config: &[(&str, &str)],
    ) {
        let start = |number: usize| {
            let options = RedisOptions {
                binary: binary.clone(),
                ..RedisOptions::cluster(self.folder.join(&format!("node-{number}")))
            };
            let options = config.iter().fold(options, |all, (name, value)| all.with(name, value));
            async move { Redis::start(options).await.unwrap() }
        };
        let numbers = self.nodes.len()..self.nodes.len() + count;
        let started = join_all(numbers.map(start)).await;
        self.nodes.extend(started);
    }

    /// Starts blank nodes outside of clusters, which can rewrite their config files.
    pub async fn add_lone_nodes(&mut self, count: usize, config: &[(&str, &str)]) {
        self.add_lone_nodes_of(None, count, config, true).await;
    }

    /// The same of another program, and with or without a file.
    pub async fn add_lone_nodes_of(
        &mut self,
        binary: Option<PathBuf>,
        count: usize,
        config: &[(&str, &str)],
        with_config_file: bool,
    ) {
        let start = |number: usize| {
            let options = RedisOptions {
                binary: binary.clone(),
                dir: self.folder.join(&format!("node-{number}")),
                with_config_file,
                ..RedisOptions::default()
            };
            let options = config.iter().fold(options, |all, (name, value)| all.with(name, value));
            async move { Redis::start(options).await.unwrap() }
        };
        let numbers = self.nodes.len()..self.nodes.len() + count;
        let started = join_all(numbers.map(start)).await;
        self.nodes.extend(started);
    }

    /// A request for one primary with replicas, of these nodes.
    pub fn replication(&self, name: &str, nodes: Range<usize>) -> Value {
        let (replicas, nodes) = (nodes.len() - 1, &self.node_specs()[nodes]);
        json!({
            "name": name,
            "spec": { "mode": "replication", "replicas": replicas, "nodes": nodes },
        })
    }

    /// All nodes as a spec lists them, zones a, b and c in turn.
    pub fn node_specs(&self) -> Vec<Value> {
        let zones = ["a", "b", "c"];
        let spec =
            |(i, node): (usize, &Redis)| json!({ "address": node.address(), "zone": zones[i % 3] });
        self.nodes.iter().enumerate().map(spec).collect()
    }

    /// A request for a cluster of all nodes.
    pub fn cluster(&self, name: &str, shards: u16, replicas: u16) -> Value {
        json!({
            "name": name,
            "spec": { "mode": "cluster", "shards": shards, "replicas_per_shard": replicas,
                      "nodes": self.node_specs() },
        })
    }

    /// A request for a cluster of some of the nodes, each a primary.
    pub fn cluster_of(&self, name: &str, nodes: Range<usize>) -> Value {
        let (shards, nodes) = (nodes.len(), &self.node_specs()[nodes]);
        json!({
            "name": name,
            "spec": { "mode": "cluster", "shards": shards, "replicas_per_shard": 0, "nodes": nodes },
        })
    }

    /// Creates it and waits for the end.
    pub async fn create(&self, body: &Value) -> Value {
        let plan = self.client.create_topology(body, Some(60)).await.unwrap();
        assert_eq!(plan["state"], "succeeded", "{plan:#}");
        plan
    }

    /// One command to one node, as text; errors too.
    pub fn ask(&self, node: usize, words: &[&str]) -> String {
        redis_cli(self.nodes[node].port(), words)
    }

    /// Everything about the nodes that a refused request must leave alone.
    pub fn untouched(&self) -> Vec<String> {
        let of = |i: usize| {
            let nodes = self.ask(i, &["CLUSTER", "NODES"]);
            // Ping and pong times move by themselves.
            let nodes: Vec<String> = nodes
                .lines()
                .map(|l| {
                    let words: Vec<_> = l.split(' ').collect();
                    [&words[..4.min(words.len())], &words[6.min(words.len())..]].concat().join(" ")
                })
                .collect();
            let keys = self.ask(i, &["DBSIZE"]);
            let timeout = self.ask(i, &["CONFIG", "GET", "cluster-node-timeout"]);
            let delay = self.ask(i, &["CONFIG", "GET", "repl-diskless-sync-delay"]);
            format!("{} {keys} {timeout} {delay}", nodes.join("; "))
        };
        (0..self.nodes.len()).map(of).collect()
    }

    /// How often each node was given each command that changes something.
    pub fn commands(&self) -> Vec<BTreeMap<String, u64>> {
        let of = |node: usize| {
            let stats = self.ask(node, &["INFO", "commandstats"]);
            let lines = stats.lines().filter_map(|line| {
                let (name, rest) = line.trim().strip_prefix("cmdstat_")?.split_once(":calls=")?;
                let changes = CHANGING.contains(&name).then(|| name.to_owned())?;
                Some((changes, rest.split(',').next()?.parse().ok()?))
            });
            lines.collect()
        };
        (0..self.nodes.len()).map(of).collect()
    }

    /// Freezes PostgreSQL with all its processes, until the value is dropped.
    pub fn freeze_postgres(&self) -> Frozen {
        let postmaster = self.postgres.pid().unwrap();
        signal(postmaster, Signal::STOP);
        let children: Vec<u32> = children(postmaster);
        children.iter().for_each(|child| signal(*child, Signal::STOP));
        Frozen([vec![postmaster], children].concat())
    }

    /// Keeps the database as it is, for [`World::put_back`].
    pub async fn back_up(&mut self) {
        self.postgres.stop().await;
        copy(&self.folder.join("postgres/data"), &self.folder.join("postgres/backup"));
        self.postgres.restart().await.unwrap();
    }

    /// Puts the database back to what it was at the backup. It does not run afterwards.
    pub async fn put_back(&mut self) {
        self.postgres.stop().await;
        let data = self.folder.join("postgres/data");
        fs::remove_dir_all(&data).unwrap();
        copy(&self.folder.join("postgres/backup"), &data);
    }

    /// Settings that a create changes for a while are as they were.
    pub fn settings_are_back(&self) {
        for node in 0..self.nodes.len() {
            for (name, value) in
                [("cluster-node-timeout", "15000"), ("repl-diskless-sync-delay", "5")]
            {
                let now = self.ask(node, &["CONFIG", "GET", name]);
                assert_eq!(now, format!("{name}\n{value}"), "on node {node}");
            }
        }
    }

    /// What `redis-cli --cluster check` says, which must be nothing bad.
    pub fn check_cluster(&self, login: &[&str]) {
        self.check_cluster_of(0, login);
    }

    /// The same of the cluster that this node is a member of.
    pub fn check_cluster_of(&self, node: usize, login: &[&str]) {
        let address = self.nodes[node].address();
        let output = Command::new("redis-cli")
            .args(login)
            .args(["--cluster", "check", &address])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("[OK] All nodes agree about slots configuration."), "{text}");
        assert!(text.contains("[OK] All 16384 slots covered."), "{text}");
        assert!(!text.contains("[ERR]") && !text.contains("[WARNING]"), "{text}");
    }
}

const CHANGING: &[&str] = &[
    "config|set",
    "config|rewrite",
    "flushall",
    "cluster|addslots",
    "cluster|addslotsrange",
    "cluster|forget",
    "cluster|meet",
    "cluster|replicate",
    "cluster|reset",
    "cluster|set-config-epoch",
];

/// Processes that stand still.
pub struct Frozen(Vec<u32>);

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.iter().for_each(|pid| signal(*pid, Signal::CONT));
    }
}

fn signal(pid: u32, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    // It may have ended.
    let _ = rustix::process::kill_process(pid, signal);
}

fn children(parent: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent_of = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    pids.filter(|pid| parent_of(*pid) == Some(parent)).collect()
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}

pub fn client_of(server: &Server) -> Client {
    Client::new(&server.url(), server.token()).unwrap()
}

pub fn redis_cli(port: u16, words: &[&str]) -> String {
    let output = Command::new("redis-cli")
        .args(["-p", &port.to_string(), "--no-auth-warning"])
        .args(words)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
