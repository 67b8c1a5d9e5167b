//! An application beside the test: a stock client in a process of its own that writes without pause, of
//! a cluster (`tests/tools/cluster_client.py`) or of nodes outside of one
//! (`tests/tools/replication_client.py`).

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

pub struct Traffic {
    child: Child,
    out: BufReader<ChildStdout>,
}

/// What the application saw.
#[derive(Debug)]
pub struct Seen {
    pub acknowledged: u64,
    pub lost: Vec<Value>,
    pub errors: Value,
    /// Times between two writes, the longest first.
    pub gaps_ms: Vec<f64>,
    /// How often two nodes were primary at the same time; asked for outside of clusters alone.
    pub two: u64,
}

impl Traffic {
    /// Begins to write; returns when it does.
    pub fn start(seed: &str) -> Self {
        Self::run("cluster_client.py", &[seed, "app", "300"])
    }

    /// The same to whichever of these nodes is primary.
    pub fn to_primary_of(nodes: &[String], password: Option<&str>) -> Self {
        let nodes = nodes.join(",");
        let arguments: Vec<&str> = [nodes.as_str()].into_iter().chain(password).collect();
        Self::run("replication_client.py", &arguments)
    }

    /// The same, where blank nodes are among them: a primary is one that has a replica.
    pub fn to_followed_of(nodes: &[String]) -> Self {
        Self::run("replication_client.py", &[&nodes.join(","), "", "followed"])
    }

    fn run(script: &str, arguments: &[&str]) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(root.join(".venv/bin/python"))
            .arg(root.join("tests/tools").join(script))
            .args(arguments)
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
        let gaps = told["gaps_ms"].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
        assert_eq!(told["stale_reads"], 0, "{told:#}");
        Seen {
            acknowledged: told["acknowledged"].as_u64().unwrap(),
            lost: told["lost"].as_array().unwrap().clone(),
            errors: told["errors"].clone(),
            gaps_ms: gaps,
            two: told["two"].as_u64().unwrap_or(0),
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
