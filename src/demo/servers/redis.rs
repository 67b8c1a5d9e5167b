//! A Redis or Valkey node.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::process::Process;
use super::{Port, ServerError, free_port, on_path};

const READY_WITHIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);
const REMEDY: &str =
    "install it (Debian: apt-get install redis-server), or name the program in REEVE_REDIS_SERVER";

/// What kind of node to start.
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    /// Where it keeps its files; made if it is not there.
    pub dir: PathBuf,
    /// A free one, when left out.
    pub port: Option<u16>,
    /// What `REEVE_REDIS_SERVER` says, or else `redis-server`, when left out.
    pub binary: Option<PathBuf>,
    /// Lines for its configuration, after those that every node has (which save nothing to disk).
    pub config: Vec<(String, String)>,
    pub cluster: bool,
    /// Whether it is a Sentinel, which always has a file.
    pub sentinel: bool,
    /// Whether it is configured by a file, which it can then rewrite.
    pub with_config_file: bool,
}

impl RedisOptions {
    /// A blank node that can join a cluster.
    #[must_use]
    pub fn cluster(dir: PathBuf) -> Self {
        Self { dir, cluster: true, ..Self::default() }
    }

    /// A Sentinel that watches nobody yet.
    #[must_use]
    pub fn sentinel(dir: PathBuf) -> Self {
        Self { dir, sentinel: true, with_config_file: true, ..Self::default() }
    }

    /// With one more line of configuration.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.config.push((name.to_owned(), value.to_owned()));
        self
    }

    fn lines(&self, port: u16) -> Vec<(String, String)> {
        let port = port.to_string();
        let dir = self.dir.display().to_string();
        let log = self.log().display().to_string();
        let mut lines =
            vec![("port", port.as_str()), ("bind", "127.0.0.1"), ("dir", &dir), ("logfile", &log)];
        if !self.sentinel {
            lines.push(("save", ""));
        }
        if self.cluster {
            lines.push(("cluster-enabled", "yes"));
        }
        let own = lines.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        own.chain(self.config.iter().cloned()).collect()
    }

    fn log(&self) -> PathBuf {
        self.dir.join("redis.log")
    }
}

/// A node that runs, or can be started again on what it has.
#[derive(Debug)]
pub struct Redis {
    options: RedisOptions,
    binary: PathBuf,
    port: u16,
    _claim: Option<Port>,
    process: Process,
}

impl Redis {
    /// Starts a node and waits until it answers.
    pub async fn start(options: RedisOptions) -> Result<Self, ServerError> {
        let binary = binary(options.binary.as_deref())?;
        let claim = if options.port.is_none() { Some(free_port()?) } else { None };
        let port = claim.as_ref().map(Port::number).or(options.port).ok_or(ServerError::NoPort)?;
        let what = || ServerError::io(format!("cannot use {}", options.dir.display()));
        fs::create_dir_all(&options.dir).map_err(what())?;
        let process = spawn(&binary, &options, port)?;
        let mut redis = Self { options, binary, port, _claim: claim, process };
        redis.ready().await?;
        Ok(redis)
    }

    /// Starts it again with the files and the port that it has; ends it before, if it runs.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.stop().await;
        self.process = spawn(&self.binary, &self.options, self.port)?;
        self.ready().await
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.options.dir
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// As a crash would: with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// In an orderly way.
    pub async fn stop(&mut self) {
        // A frozen node would not even see it.
        let _ = self.process.signal(Signal::CONT);
        self.process.end(Signal::TERM, Duration::from_secs(5)).await;
    }

    /// For example [`Signal::STOP`] to freeze it, and [`Signal::CONT`] to go on.
    pub fn signal(&mut self, signal: Signal) -> Result<(), ServerError> {
        let what = format!("cannot signal {}", self.address());
        self.process.signal(signal).map_err(ServerError::io(what))
    }

    async fn ready(&mut self) -> Result<(), ServerError> {
        let until = Instant::now() + READY_WITHIN;
        loop {
            let why = if let Some(status) = self.process.ended() {
                format!("it ended by itself ({status})")
            } else if Instant::now() >= until {
                format!("no answer within {READY_WITHIN:?}")
            } else if answers(self.port).await {
                return Ok(());
            } else {
                sleep(POLL).await;
                continue;
            };
            let server = format!("{} on port {}", self.binary.display(), self.port);
            return Err(ServerError::start(&server, why, &self.options.log()));
        }
    }
}

fn binary(named: Option<&Path>) -> Result<PathBuf, ServerError> {
    let set = || std::env::var_os("REEVE_REDIS_SERVER").map(PathBuf::from);
    let program = named.map(Path::to_owned).or_else(set).unwrap_or_else(|| "redis-server".into());
    let found = if program.components().count() > 1 {
        program.is_file().then(|| program.clone())
    } else {
        on_path(&program.to_string_lossy())
    };
    let program = program.display().to_string();
    found.ok_or(ServerError::Missing { program, remedy: REMEDY })
}

fn spawn(binary: &Path, options: &RedisOptions, port: u16) -> Result<Process, ServerError> {
    let failed = || ServerError::io(format!("cannot run {}", binary.display()));
    // What it says before it opens its log, such as a fault in its configuration.
    let output = File::options().append(true).create(true).open(options.log()).map_err(failed())?;
    let mut command = Command::new(binary);
    command.stdout(output.try_clone().map_err(failed())?).stderr(output);
    let lines = options.lines(port);
    if options.with_config_file {
        let file = options.dir.join("redis.conf");
        // A file that is there may hold what the node itself has written.
        if !file.exists() {
            let text: String = lines.iter().map(config_line).collect();
            fs::write(&file, text).map_err(failed())?;
        }
        command.arg(file);
        if options.sentinel {
            command.arg("--sentinel");
        }
    } else {
        for (name, value) in &lines {
            command.arg(format!("--{name}"));
            match value.as_str() {
                "" => command.arg(""),
                value => command.args(value.split_whitespace()),
            };
        }
    }
    Process::spawn(command.stdin(Stdio::null())).map_err(failed())
}

fn config_line((name, value): &(String, String)) -> String {
    if value.is_empty() { format!("{name} \"\"\n") } else { format!("{name} {value}\n") }
}

/// Whether a node listens and is not still loading. Whether it lets anybody in does not matter.
async fn answers(port: u16) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        stream.write_all(b"PING\r\n").await.ok()?;
        let mut answer = [0; 64];
        let length = stream.read(&mut answer).await.ok()?;
        Some(answer[..length].to_vec())
    };
    match timeout(Duration::from_secs(1), asked).await {
        Ok(Some(answer)) => is_ready(&answer),
        Ok(None) | Err(_) => false,
    }
}

fn is_ready(answer: &[u8]) -> bool {
    matches!(answer.first(), Some(b'+' | b'-')) && !answer.starts_with(b"-LOADING")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::servers::Folder;

    #[test]
    fn a_locked_node_is_ready_and_a_loading_one_is_not() {
        for (answer, ready) in [
            ("+PONG\r\n", true),
            ("-NOAUTH Authentication required.\r\n", true),
            ("-LOADING Redis is loading the dataset in memory\r\n", false),
            ("", false),
            ("HTTP/1.1 400", false),
        ] {
            assert_eq!(is_ready(answer.as_bytes()), ready, "{answer}");
        }
    }

    #[tokio::test]
    async fn a_node_dies_freezes_and_comes_back() {
        let folder = Folder::fresh("reeve-test").unwrap();
        let options = RedisOptions {
            with_config_file: true,
            ..RedisOptions::cluster(folder.join("node")).with("requirepass", "secret")
        };
        let mut node = Redis::start(options).await.unwrap();
        let (port, first) = (node.port(), node.pid());
        node.signal(Signal::STOP).unwrap();
        let frozen = timeout(Duration::from_millis(200), answers(port)).await;
        assert!(frozen.is_err() || !frozen.unwrap_or(true));
        node.signal(Signal::CONT).unwrap();
        assert!(answers(port).await);
        node.kill();
        assert!(!answers(port).await);
        node.restart().await.unwrap();
        assert_eq!(node.port(), port);
        assert_ne!(node.pid(), first);
        drop(node);
        assert!(!answers(port).await);
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_node_is_told() {
        let folder = Folder::fresh("reeve-test").unwrap();
        let options = RedisOptions::cluster(folder.join("node")).with("no-such-setting", "1");
        let error = Redis::start(options).await.unwrap_err().to_string();
        assert!(error.contains("no-such-setting"), "{error}");
        let missing = RedisOptions { binary: Some("no-such-redis".into()), ..Default::default() };
        let error = Redis::start(missing).await.unwrap_err().to_string();
        assert!(error.contains("apt-get install redis-server"), "{error}");
    }
}
