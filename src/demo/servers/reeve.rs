//! Reeve itself, as a process of its own.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::error::tail;
use super::process::Process;
use super::{ServerError, random_hex};

const READY_WITHIN: Duration = Duration::from_secs(30);
/// It promises to end within 10 s of SIGTERM.
const END_WITHIN: Duration = Duration::from_secs(12);
const POLL: Duration = Duration::from_millis(10);
const READY: &str = "listening on http://";

/// What to start, and with which settings.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The `reeve` program.
    pub binary: PathBuf,
    /// Where its log goes; made if it is not there.
    pub dir: PathBuf,
    pub database_url: String,
    /// Port 0 picks a free one.
    pub listen: SocketAddr,
    /// The first admin's bearer token.
    pub token: String,
    /// For stored credentials.
    pub secret_key: String,
    /// More settings, by the names of their variables.
    pub env: Vec<(String, String)>,
    /// How much it leaves the processor to others, from 0 to 19, as `nice` counts.
    pub niceness: u8,
}

impl ServerOptions {
    /// On any port of 127.0.0.1, with a token and a key of its own.
    pub fn new(binary: PathBuf, dir: PathBuf, database_url: String) -> Result<Self, ServerError> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|_| ServerError::Random)?;
        Ok(Self {
            binary,
            dir,
            database_url,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            token: random_hex(16)?,
            secret_key: STANDARD.encode(key),
            env: vec![],
            niceness: 0,
        })
    }

    /// With one more setting, by the name of its variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    fn log(&self) -> PathBuf {
        self.dir.join("reeve.log")
    }

    fn command(&self) -> Command {
        let mut command = Command::new("nice");
        command.args(["-n", &self.niceness.to_string()]).arg(&self.binary);
        command.arg("serve").current_dir(&self.dir);
        // Settings that are meant for somebody else.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("REEVE_") {
                command.env_remove(name);
            }
        }
        command
            .env("REEVE_DATABASE_URL", &self.database_url)
            .env("REEVE_LISTEN", self.listen.to_string())
            .env("REEVE_ADMIN_TOKEN", &self.token)
            .env("REEVE_SECRET_KEY", &self.secret_key)
            .env("REEVE_LOG_FORMAT", "json")
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// A server that runs, or can be started again where it was.
#[derive(Debug)]
pub struct Server {
    options: ServerOptions,
    process: Process,
}

impl Server {
    /// Starts a server and waits until it says that it listens.
    pub async fn start(options: ServerOptions) -> Result<Self, ServerError> {
        let what = format!("cannot use {}", options.dir.display());
        fs::create_dir_all(&options.dir).map_err(ServerError::io(what))?;
        let (process, listen) = launch(&options).await?;
        Ok(Self { options: ServerOptions { listen, ..options }, process })
    }

    /// Starts it again on the port that it had; ends it before, if it runs.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.sigterm().await;
        (self.process, self.options.listen) = launch(&self.options).await?;
        Ok(())
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.options.listen
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.options.listen)
    }

    #[must_use]
    pub fn token(&self) -> &str {
        &self.options.token
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// As a crash would: with SIGKILL.
    pub fn kill9(&mut self) {
        self.process.kill();
    }

    /// Asks it to end and waits for it; `None` when it had to be killed.
    pub async fn sigterm(&mut self) -> Option<ExitStatus> {
        self.process.end(Signal::TERM, END_WITHIN).await
    }

    /// For example [`Signal::STOP`] to freeze it, and [`Signal::CONT`] to go on.
    pub fn signal(&mut self, signal: Signal) -> Result<(), ServerError> {
        self.process.signal(signal).map_err(ServerError::io("cannot signal Reeve"))
    }

    /// Whether the process is there.
    pub fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// The last lines that it said.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.options.log(), lines)
    }
}

async fn launch(options: &ServerOptions) -> Result<(Process, SocketAddr), ServerError> {
    let failed = || ServerError::io(format!("cannot run {}", options.binary.display()));
    let log = File::options().append(true).create(true).open(options.log()).map_err(failed())?;
    let said_before = log.metadata().map_err(failed())?.len();
    let mut command = options.command();
    command.stdout(log.try_clone().map_err(failed())?).stderr(log);
    let mut process = Process::spawn(&mut command).map_err(failed())?;
    let until = Instant::now() + READY_WITHIN;
    loop {
        let said = fs::read(options.log()).unwrap_or_default();
        let new = said.get(usize::try_from(said_before).unwrap_or(0)..).unwrap_or_default();
        if let Some(address) = listening(&String::from_utf8_lossy(new)) {
            return Ok((process, address));
        }
        let why = match process.ended() {
            Some(status) => format!("it ended by itself ({status})"),
            None if Instant::now() >= until => format!("it was not ready within {READY_WITHIN:?}"),
            None => {
                sleep(POLL).await;
                continue;
            }
        };
        return Err(ServerError::start("Reeve", why, &options.log()));
    }
}

/// The address in the line that says where the server listens, whatever stands around it.
fn listening(log: &str) -> Option<SocketAddr> {
    log.match_indices(READY).find_map(|(at, _)| {
        let rest = &log[at + READY.len()..];
        // Cut short, an address may be one of a wrong port: it must have an end.
        let end = rest
            .find(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\\' | '/'))?;
        rest[..end].parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_read_from_whatever_log() {
        let at = |log| listening(log).map(|address| address.to_string());
        let want = Some("127.0.0.1:7380".to_owned());
        assert_eq!(at("INFO listening on http://127.0.0.1:7380\n"), want);
        assert_eq!(at(r#"{"message":"listening on http://127.0.0.1:7380","target":"x"}"#), want);
        assert_eq!(
            at("\u{1b}[2mlistening on http://[::1]:80\u{1b}[0m"),
            Some("[::1]:80".to_owned())
        );
        assert_eq!(at("x\nlistening on http://127.0.0.1:738"), None);
        assert_eq!(at("starting\n"), None);
    }
}
