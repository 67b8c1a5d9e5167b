//! Servers that run on the files of an advice, on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reeve::demo::servers::{Folder, Port, free_port};
use serde_json::Value;

use super::world::redis_cli;

/// Every password of every node.
pub const PASSWORD: &str = "0123456789abcdef";

/// A process that does not outlive its test.
pub struct Running {
    pub child: Child,
    pub port: u16,
    /// How `redis-cli` gets in.
    access: Vec<String>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    pub fn ask(&self, words: &[&str]) -> String {
        let access: Vec<&str> = self.access.iter().map(String::as_str).collect();
        redis_cli(self.port, &[&access, words].concat())
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
    with_users: bool,
}

impl Installed {
    pub fn new(server: &Path, files: &Value) -> Self {
        Self::install(server, files, false)
    }

    /// The same with credentials that name users, each with the name of its credential.
    pub fn with_users(server: &Path, files: &Value) -> Self {
        Self::install(server, files, true)
    }

    fn install(server: &Path, files: &Value, with_users: bool) -> Self {
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
            for (name, text) in secrets(&content, with_users) {
                fs::write(home.join(name), text).unwrap();
            }
            if content.contains("tls-port") {
                certify(&folder, &home.join("tls"));
            }
            fs::write(path, content).unwrap();
        }
        Self { folder, server: server.to_owned(), with_users }
    }

    pub fn has_users(&self) -> bool {
        self.with_users
    }

    /// How `redis-cli` gets in.
    fn access(home: &Path) -> Vec<String> {
        let mut access = vec!["-a".to_owned(), PASSWORD.to_owned()];
        let users = fs::read_to_string(home.join("users.acl")).unwrap_or_default();
        let admin = users.lines().find_map(|l| l.strip_suffix("+@all")?.split(' ').nth(1));
        access.extend(admin.into_iter().flat_map(|user| ["--user".to_owned(), user.to_owned()]));
        let authority = home.join("tls/ca.crt");
        if authority.exists() {
            access.extend(["--tls".to_owned(), "--cacert".to_owned()]);
            access.push(authority.display().to_string());
        }
        access
    }

    /// Starts a node from its file and waits until it answers.
    pub async fn start(&self, address: &str) -> Running {
        let port: u16 = address.rsplit_once(':').unwrap().1.parse().unwrap();
        let home = self.folder.join(&address.replace(':', "-"));
        let mut command = Command::new(&self.server);
        let sentinel = home.join("sentinel.conf").exists();
        if sentinel {
            command.arg(home.join("sentinel.conf")).arg("--sentinel");
        } else {
            command.arg(home.join("redis.conf"));
        }
        let log = fs::File::options().append(true).create(true).open(home.join("log")).unwrap();
        command.stdin(Stdio::null()).stderr(log.try_clone().unwrap()).stdout(log);
        let access = Self::access(&home);
        let mut running = Running { child: command.spawn().unwrap(), port, access };
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

/// The files of secrets, as the file of a node itself says that they are to be made.
fn secrets(content: &str, with_users: bool) -> Vec<(&'static str, String)> {
    let (passwords, users) = content.split_once("# or, where").unwrap_or((content, ""));
    let of = |text: &str, fits: &dyn Fn(&str) -> bool| -> String {
        let lines = text.lines().filter_map(|line| line.strip_prefix("#   "));
        lines.filter(|line| fits(line)).map(|line| filled(line) + "\n").collect()
    };
    let is_user = |line: &str| line.starts_with("user ");
    let files = if with_users {
        let secrets = of(users, &|line| !is_user(line));
        vec![("secrets.conf", secrets), ("users.acl", of(users, &is_user))]
    } else {
        vec![("secrets.conf", of(passwords, &|line| line.contains("<password")))]
    };
    files.into_iter().filter(|(_, text)| !text.is_empty()).collect()
}

/// A line with passwords and users in place of what describes them.
fn filled(line: &str) -> String {
    let mut parts = line.split('<');
    let mut text = parts.next().unwrap().to_owned();
    for part in parts {
        let (what, rest) = part.split_once('>').unwrap();
        let (kind, credential) = what.split_once(" of credential ").unwrap();
        text += if kind == "user" { credential } else { PASSWORD };
        text += rest;
    }
    text
}

/// A certificate of an authority that all nodes share.
fn certify(folder: &Folder, home: &Path) {
    let openssl = |words: &str| {
        let words = words.split(' ');
        let output = Command::new("openssl").current_dir(folder.path()).args(words).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    if !folder.join("ca.crt").exists() {
        openssl(&format!("req -x509 {key} -keyout ca.key -out ca.crt -subj /CN=authority"));
    }
    fs::create_dir_all(home).unwrap();
    let to = home.display();
    let name = "-subj /CN=node -addext subjectAltName=IP:127.0.0.1";
    openssl(&format!(
        "req -x509 -CA ca.crt -CAkey ca.key {key} {name} -keyout {to}/node.key -out {to}/node.crt"
    ));
    fs::copy(folder.join("ca.crt"), home.join("ca.crt")).unwrap();
}

/// So many addresses on this machine, held for as long as the ports are.
pub fn addresses(count: usize) -> (Vec<Port>, Vec<String>) {
    let ports: Vec<Port> = (0..count).map(|_| free_port().unwrap()).collect();
    let addresses = ports.iter().map(|p| format!("127.0.0.1:{}", p.number())).collect();
    (ports, addresses)
}
