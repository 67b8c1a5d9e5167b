//! A private PostgreSQL, a Reeve server as a process of its own, and as many Redis nodes as a test
//! wants. All of it ends with the test.

use std::path::PathBuf;
use std::process::Command;

use reeve::client::Client;
use reeve::demo::servers::{Folder, Postgres, Redis, RedisOptions, Server, ServerOptions};
use serde_json::{Value, json};

pub struct World {
    pub folder: Folder,
    pub postgres: Postgres,
    pub server: Server,
    pub client: Client,
    pub nodes: Vec<Redis>,
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
        let server = Server::start(options).await.unwrap();
        let client = Client::new(&server.url(), server.token()).unwrap();
        Self { folder, postgres, server, client, nodes: Vec::new() }
    }

    /// With blank cluster nodes.
    pub async fn with_nodes(count: usize) -> Self {
        let mut world = Self::new().await;
        world.add_nodes(count, &[]).await;
        world
    }

    /// Starts blank cluster nodes with further lines of configuration.
    pub async fn add_nodes(&mut self, count: usize, config: &[(&str, &str)]) {
        for _ in 0..count {
            let dir = self.folder.join(&format!("node-{}", self.nodes.len()));
            let mut options = RedisOptions::cluster(dir);
            for (name, value) in config {
                options = options.with(name, value);
            }
            self.nodes.push(Redis::start(options).await.unwrap());
        }
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
        let address = self.nodes[0].address();
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

pub fn redis_cli(port: u16, words: &[&str]) -> String {
    let output = Command::new("redis-cli")
        .args(["-p", &port.to_string(), "--no-auth-warning"])
        .args(words)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
