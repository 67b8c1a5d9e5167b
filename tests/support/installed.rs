//! Servers that run on the files of an advice, on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reeve::demo::servers::{Folder, Port, free_port};
use serde_json::Value;

use super::world::redis_cli;

/// What stands in every `secrets.conf`.
pub const PASSWORD: &str = "0123456789abcdef";

/// A process that does not outlive its test.
pub struct Running {
    pub child: Child,
    pub port: u16,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    pub fn ask(&self, words: &[&str]) -> String {
        redis_cli(self.port, &[&["-a", PASSWORD], words].concat())
    }

    pub fn setting(&self, name: &str) -> String {
        self.ask(&["CONFIG", "GET", name]).lines().nth(1).unwrap_or_default().to_owned()
    }

    pub fn role(&self) -> String {
        self.ask(&["ROLE"]).lines().next().unwrap_or_default().to_owned()
    }
}

/// The advised files on this machine, in a folder of their own instead of `/etc` and `/var/lib`.
pub struct Installed {
    folder: Folder,
    server: PathBuf,
}

impl Installed {
    pub fn new(server: &Path, files: &Value) -> Self {
        let folder = Folder::fresh("reeve-test").unwrap();
        for file in files.as_array().unwrap().iter().filter(|f| !f["node"].is_null()) {
            let path = folder.join(file["path"].as_str().unwrap());
            let home = path.parent().unwrap().to_owned();
            let port = file["node"].as_str().unwrap().rsplit_once(':').unwrap().1;
            let here = home.display().to_string();
            let content = file["content"].as_str().unwrap();
            let content = content
                .replace(&format!("/etc/redis/{port}"), &here)
                .replace(&format!("/var/lib/redis/{port}"), &format!("{here}/data"));
            fs::create_dir_all(home.join("data")).unwrap();
            // The secrets, as the file itself says that they are to be made.
            let secrets = content.lines().filter_map(|line| {
                let line = line.strip_prefix("#   ").filter(|l| l.contains("<password"))?;
                Some(format!("{}{PASSWORD}\n", line.split('<').next()?))
            });
            let secrets: String = secrets.collect();
            if !secrets.is_empty() {
                fs::write(home.join("secrets.conf"), secrets).unwrap();
            }
            fs::write(path, content).unwrap();
        }
        Self { folder, server: server.to_owned() }
    }

    /// Starts a node from its file and waits until it answers.
    pub async fn start(&self, address: &str) -> Running {
        let port: u16 = address.rsplit_once(':').unwrap().1.parse().unwrap();
        let home = self.folder.join(&address.replace(':', "-"));
        let mut command = Command::new(&self.server);
        let sentinel = home.join("sentinel.conf");
        if sentinel.exists() {
            command.arg(sentinel).arg("--sentinel");
        } else {
            command.arg(home.join("redis.conf"));
        }
        let log = fs::File::options().append(true).create(true).open(home.join("log")).unwrap();
        command.stdin(Stdio::null()).stderr(log.try_clone().unwrap()).stdout(log);
        let mut running = Running { child: command.spawn().unwrap(), port };
        let began = Instant::now();
        while running.ask(&["PING"]) != "PONG" {
            let log = || fs::read_to_string(home.join("log")).unwrap();
            assert!(running.child.try_wait().unwrap().is_none(), "{address} ended\n{}", log());
            assert!(began.elapsed() < Duration::from_secs(15), "{address}\n{}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        running
    }
}

/// So many addresses on this machine, held for as long as the ports are.
pub fn addresses(count: usize) -> (Vec<Port>, Vec<String>) {
    let ports: Vec<Port> = (0..count).map(|_| free_port().unwrap()).collect();
    let addresses = ports.iter().map(|p| format!("127.0.0.1:{}", p.number())).collect();
    (ports, addresses)
}
