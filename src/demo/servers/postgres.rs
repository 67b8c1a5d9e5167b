//! A private PostgreSQL, for work that may be thrown away: it does not wait for the disk.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Signal, geteuid};
use tokio::time::{Instant, sleep};

use super::error::tail;
use super::process::Process;
use super::{Port, ServerError, free_port, on_path, random_hex};

/// The oldest version that Reeve supports.
const OLDEST: u32 = 15;
const READY_WITHIN: Duration = Duration::from_secs(30);
const INIT_WITHIN: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(10);
const REMEDY: &str = "install version 15 or newer (Debian: apt-get install postgresql), or name the folder of its programs in REEVE_PG_BIN";
/// Who may run it when root asks, which PostgreSQL refuses to be.
const STAND_INS: [&str; 2] = ["postgres", "nobody"];

/// A server that runs, or can be started again on the data that it has.
#[derive(Debug)]
pub struct Postgres {
    bin: PathBuf,
    dir: PathBuf,
    port: Port,
    password: String,
    user: Option<User>,
    process: Option<Process>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
}

impl Postgres {
    /// Makes a database cluster in `dir`, which is made if it is not there, and starts it.
    pub async fn start(dir: &Path) -> Result<Self, ServerError> {
        let bin = programs()?;
        let user = if geteuid().is_root() { Some(stand_in()?) } else { None };
        let what = || ServerError::io(format!("cannot use {}", dir.display()));
        fs::create_dir_all(dir).map_err(what())?;
        let dir = dir.canonicalize().map_err(what())?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).map_err(what())?;
        if let Some(user) = &user {
            chown(&dir, Some(user.uid), Some(user.gid)).map_err(what())?;
            may_enter(&dir, user)?;
        }
        let (port, password) = (free_port()?, random_hex(16)?);
        let mut postgres = Self { bin, dir, port, password, user, process: None };
        postgres.init().await?;
        postgres.restart().await?;
        Ok(postgres)
    }

    /// For `REEVE_DATABASE_URL`: the superuser, on the database `postgres`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// The same, on another database, which need not be there yet.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://reeve:{}@{}/{database}", self.password, self.address())
    }

    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    /// Its version, such as `15.14`.
    #[must_use]
    pub fn version(&self) -> String {
        version(&self.bin).unwrap_or_default()
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Stops it in an orderly way; clients are cut off, nothing that was committed is lost.
    pub async fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.end(Signal::INT, Duration::from_secs(10)).await;
        }
    }

    /// As a crash would: with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts it on the data and the port that it has; stops it before, if it runs.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.stop().await;
        let until = Instant::now() + READY_WITHIN;
        loop {
            let mut process = self.spawn()?;
            while process.ended().is_none() && Instant::now() < until {
                if self.is_ready(process.pid()) {
                    self.process = Some(process);
                    return Ok(());
                }
                sleep(POLL).await;
            }
            // After a crash its helpers may need a moment to notice that they are orphans.
            let orphans = tail(&self.log(), 5).contains("pre-existing shared memory block");
            if !orphans || Instant::now() >= until {
                let why = match process.ended() {
                    Some(status) => format!("it ended by itself ({status})"),
                    None => format!("it was not ready within {READY_WITHIN:?}"),
                };
                return Err(ServerError::start("PostgreSQL", why, &self.log()));
            }
            sleep(POLL * 10).await;
        }
    }

    async fn init(&self) -> Result<(), ServerError> {
        let failed = || ServerError::io("cannot prepare PostgreSQL's data");
        let secret = self.dir.join("password");
        fs::write(&secret, &self.password).map_err(failed())?;
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).map_err(failed())?;
        if let Some(user) = &self.user {
            chown(&secret, Some(user.uid), Some(user.gid)).map_err(failed())?;
        }
        let mut command = self.command("initdb")?;
        command.arg("--pgdata").arg(self.data()).arg("--pwfile").arg(&secret).args([
            "--username=reeve",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        ]);
        // Interrupted, it may leave shared memory behind: let it go on for the moment that it takes.
        let mut initdb = Process::spawn(&mut command).map_err(failed())?.parting_with(Signal::CONT);
        let ended = initdb.wait(INIT_WITHIN).await;
        let _ = fs::remove_file(&secret);
        match ended {
            Some(status) if status.success() => Ok(()),
            ended => {
                let why =
                    ended.map_or("initdb took too long".to_owned(), |s| format!("initdb {s}"));
                Err(ServerError::start("PostgreSQL", why, &self.log()))
            }
        }
    }

    fn spawn(&self) -> Result<Process, ServerError> {
        let mut command = self.command("postgres")?;
        command.arg("-D").arg(self.data());
        let port = format!("port={}", self.port.number());
        for setting in [
            port.as_str(),
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=200",
            "fsync=off",
            "full_page_writes=off",
        ] {
            command.args(["-c", setting]);
        }
        let process = Process::spawn(&mut command);
        // SIGQUIT ends it at once, but without leaving its shared memory behind.
        process
            .map(|process| process.parting_with(Signal::QUIT))
            .map_err(ServerError::io("cannot run PostgreSQL"))
    }

    /// One of its programs, with nothing of this process's surroundings but the search path.
    fn command(&self, program: &str) -> Result<Command, ServerError> {
        let failed = || ServerError::io(format!("cannot write {}", self.log().display()));
        let log = File::options().append(true).create(true).open(self.log()).map_err(failed())?;
        let mut command = Command::new(self.bin.join(program));
        command.env_clear().env("LC_ALL", "C").env("TZ", "UTC").current_dir(&self.dir);
        command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(failed())?).stderr(log);
        if let Some(user) = &self.user {
            // With another user's id, root's supplementary groups are dropped too.
            command.uid(user.uid).gid(user.gid);
        }
        Ok(command)
    }

    /// The server writes its process id and its state into this file, as `pg_ctl` reads it.
    fn is_ready(&self, pid: u32) -> bool {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        lines.first() == Some(&pid.to_string().as_str()) && lines.get(7) == Some(&"ready")
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }
}

/// The folder with the newest programs that there are.
fn programs() -> Result<PathBuf, ServerError> {
    let missing = || ServerError::Missing { program: "PostgreSQL".to_owned(), remedy: REMEDY };
    let usable = |bin: &PathBuf| bin.join("initdb").is_file() && bin.join("postgres").is_file();
    let number = |bin: &PathBuf| major(&version(bin)?);
    if let Some(named) = std::env::var_os("REEVE_PG_BIN").map(PathBuf::from) {
        return Some(named).filter(usable).ok_or_else(missing);
    }
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let on_path = on_path("postgres").and_then(|file| Some(file.parent()?.to_owned()));
    let debian = debian.map(|entry| entry.path().join("bin"));
    // Of two that are as new, the last one is taken.
    let folders = on_path.into_iter().chain(debian).filter(usable);
    let versions = folders.filter_map(|bin| Some((number(&bin)?, bin)));
    let newest = versions.filter(|(major, _)| *major >= OLDEST).max_by_key(|(major, _)| *major);
    newest.map(|(_, bin)| bin).ok_or_else(missing)
}

fn version(bin: &Path) -> Option<String> {
    let said = Command::new(bin.join("postgres")).arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&said.stdout).split_whitespace().nth(2)?.to_owned())
}

fn major(version: &str) -> Option<u32> {
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn stand_in() -> Result<User, ServerError> {
    let known =
        fs::read_to_string("/etc/passwd").map_err(ServerError::io("cannot read /etc/passwd"))?;
    STAND_INS.iter().find_map(|name| user(&known, name)).ok_or_else(|| ServerError::Start {
        server: "PostgreSQL".to_owned(),
        why: format!("it refuses to run as root, and there is no user {}", STAND_INS.join(" or ")),
        log: String::new(),
    })
}

fn user(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
        (fields[0] == name).then(|| User { name: name.to_owned(), uid, gid })
    })
}

/// Every folder above must let the user pass.
fn may_enter(dir: &Path, user: &User) -> Result<(), ServerError> {
    let shut = dir.ancestors().skip(1).find(|folder| {
        fs::metadata(folder).is_ok_and(|it| {
            let mode = it.mode();
            let bits = match (it.uid() == user.uid, it.gid() == user.gid) {
                (true, _) => mode >> 6,
                (false, true) => mode >> 3,
                (false, false) => mode,
            };
            bits & 1 == 0
        })
    });
    let Some(shut) = shut else { return Ok(()) };
    Err(ServerError::Start {
        server: "PostgreSQL".to_owned(),
        why: format!(
            "it runs as the user {}, who may not enter {}; name a folder elsewhere, such as in /var/tmp",
            user.name,
            shut.display()
        ),
        log: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection, PgConnection};

    use super::*;
    use crate::demo::servers::Folder;

    #[test]
    fn versions_and_users_are_read() {
        assert_eq!(major("15.14"), Some(15));
        assert_eq!(major("18beta1"), Some(18));
        assert_eq!(major("devel"), None);
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbad\nnobody:x:65534:65533:n:/:/bin/false\n";
        let nobody = User { name: "nobody".to_owned(), uid: 65534, gid: 65533 };
        assert_eq!(user(passwd, "nobody"), Some(nobody));
        assert_eq!(user(passwd, "postgres"), None);
    }

    #[tokio::test]
    async fn what_is_committed_survives_a_stop_and_a_crash() {
        let folder = Folder::fresh("reeve-test").unwrap();
        let mut postgres = Postgres::start(&folder.join("postgres")).await.unwrap();
        let url = postgres.url();
        let mut db = PgConnection::connect(&url).await.unwrap();
        sqlx::query("CREATE TABLE t AS SELECT 1 AS n").execute(&mut db).await.unwrap();
        for crash in [false, true] {
            if crash {
                postgres.kill();
            } else {
                postgres.stop().await;
            }
            assert!(PgConnection::connect(&url).await.is_err());
            postgres.restart().await.unwrap();
            let mut db = PgConnection::connect(&url).await.unwrap();
            sqlx::query("INSERT INTO t SELECT max(n) + 1 FROM t").execute(&mut db).await.unwrap();
        }
        let mut db = PgConnection::connect(&url).await.unwrap();
        let n: i32 = sqlx::query_scalar("SELECT max(n) FROM t").fetch_one(&mut db).await.unwrap();
        assert_eq!(n, 3);
        drop(postgres);
        assert!(PgConnection::connect(&url).await.is_err());
    }
}
