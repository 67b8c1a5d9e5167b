//! Settings: flags, then `REEVE_*` variables, then a TOML file, then defaults.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde::Deserialize;

/// Flags and variables of `reeve serve`; a setting that is given by neither comes from the file.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Flags {
    /// PostgreSQL, for example postgres://reeve:secret@127.0.0.1/reeve
    #[arg(long, env = "REEVE_DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,

    /// Where to listen [default: 127.0.0.1:7380]; port 0 picks a free one and prints it
    #[arg(long, env = "REEVE_LISTEN")]
    pub listen: Option<SocketAddr>,

    /// The first admin's bearer token, at least 24 characters; made and printed once if there is none
    #[arg(long, env = "REEVE_ADMIN_TOKEN", hide_env_values = true)]
    pub admin_token: Option<String>,

    /// 32 bytes in base64 that seal stored credentials; without it, none can be stored
    #[arg(long, env = "REEVE_SECRET_KEY", hide_env_values = true)]
    pub secret_key: Option<String>,

    /// Which log lines to show, for example info or reeve=debug,info
    #[arg(long, env = "REEVE_LOG")]
    pub log: Option<String>,

    /// pretty or json
    #[arg(long, env = "REEVE_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,

    /// Where nodes may live: address ranges such as 10.0.0.0/8, with commas between them
    /// [default: anywhere but link-local addresses]
    #[arg(long, env = "REEVE_NODE_ALLOW_CIDRS")]
    pub node_allow_cidrs: Option<String>,

    /// Address ranges beside the public ones that webhooks may be sent to, such as 10.0.0.0/8, with
    /// commas between them [default: none]
    #[arg(long, env = "REEVE_WEBHOOK_ALLOW_CIDRS")]
    pub webhook_allow_cidrs: Option<String>,

    /// How often each topology is looked at, in milliseconds [default: 1000]
    #[arg(long, env = "REEVE_WATCH_INTERVAL_MS")]
    pub watch_interval_ms: Option<u64>,

    /// How long a topology stays with an instance that is not heard of, in milliseconds
    /// [default: 10000]; another takes it over then
    #[arg(long, env = "REEVE_LEASE_TTL_MS")]
    pub lease_ttl_ms: Option<u64>,

    /// How often a failed command is sent again after its first attempt [default: 5]
    #[arg(long, env = "REEVE_MAX_RETRIES")]
    pub max_retries: Option<u32>,

    /// The first pause before a retry, in milliseconds; each further one is twice as long
    /// [default: 1000]
    #[arg(long, env = "REEVE_BACKOFF_BASE_MS")]
    pub backoff_base_ms: Option<u64>,

    /// How long a plan waits for nodes to answer or agree before it fails, in milliseconds
    /// [default: 60000]
    #[arg(long, env = "REEVE_WAIT_DEADLINE_MS")]
    pub wait_deadline_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Pretty,
    Json,
}

/// Settings as they hold.
#[derive(Debug, Clone)]
pub struct Settings {
    pub database_url: String,
    pub listen: SocketAddr,
    pub admin_token: Option<String>,
    pub secret_key: Option<[u8; 32]>,
    pub log: String,
    pub log_format: LogFormat,
    pub node_allow_cidrs: Option<String>,
    pub webhook_allow_cidrs: Option<String>,
    pub watch_interval: Duration,
    pub lease_ttl: Duration,
    pub max_retries: Option<u32>,
    pub backoff_base_ms: Option<u64>,
    pub wait_deadline_ms: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(
        "no database: give --database-url or REEVE_DATABASE_URL, for example postgres://reeve:secret@127.0.0.1/reeve"
    )]
    NoDatabase,
    #[error(
        "REEVE_ADMIN_TOKEN has {0} characters; give at least 24, for example from `openssl rand -hex 24`"
    )]
    ShortToken(usize),
    #[error("REEVE_SECRET_KEY is not 32 bytes in base64; make one with `openssl rand -base64 32`")]
    BadKey,
    #[error("REEVE_WATCH_INTERVAL_MS is {0}; give 50 to 60000")]
    BadInterval(u64),
    #[error("REEVE_LEASE_TTL_MS is {0}; give 1000 to 600000")]
    BadLease(u64),
    #[error("REEVE_BACKOFF_BASE_MS is {0}; give at most 60000")]
    BadBackoff(u64),
    #[error("the settings file {path} cannot be read")]
    File { path: PathBuf, source: std::io::Error },
    #[error("the settings file {path} does not make sense")]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
}

impl Settings {
    pub fn resolve(flags: Flags, file: Option<&Path>) -> Result<Self, SettingsError> {
        let file = file.map(read_file).transpose()?.unwrap_or_default();
        let admin_token = flags.admin_token.or(file.admin_token);
        if let Some(token) = admin_token.as_ref().filter(|t| t.len() < 24) {
            return Err(SettingsError::ShortToken(token.len()));
        }
        let key = |text: String| -> Result<[u8; 32], SettingsError> {
            let bytes = STANDARD.decode(text.trim()).map_err(|_| SettingsError::BadKey)?;
            bytes.try_into().map_err(|_| SettingsError::BadKey)
        };
        let interval = flags.watch_interval_ms.or(file.watch_interval_ms).unwrap_or(1000);
        if !(50..=60_000).contains(&interval) {
            return Err(SettingsError::BadInterval(interval));
        }
        let lease_ttl = flags.lease_ttl_ms.or(file.lease_ttl_ms).unwrap_or(10_000);
        if !(1000..=600_000).contains(&lease_ttl) {
            return Err(SettingsError::BadLease(lease_ttl));
        }
        let backoff_base_ms = flags.backoff_base_ms.or(file.backoff_base_ms);
        if let Some(base) = backoff_base_ms.filter(|ms| *ms > 60_000) {
            return Err(SettingsError::BadBackoff(base));
        }
        Ok(Self {
            database_url: flags
                .database_url
                .or(file.database_url)
                .ok_or(SettingsError::NoDatabase)?,
            listen: flags.listen.or(file.listen).unwrap_or(([127, 0, 0, 1], 7380).into()),
            admin_token,
            secret_key: flags.secret_key.or(file.secret_key).map(key).transpose()?,
            log: flags.log.or(file.log).unwrap_or_else(|| "info".to_owned()),
            log_format: flags.log_format.or(file.log_format).unwrap_or(LogFormat::Pretty),
            node_allow_cidrs: flags.node_allow_cidrs.or(file.node_allow_cidrs),
            webhook_allow_cidrs: flags.webhook_allow_cidrs.or(file.webhook_allow_cidrs),
            watch_interval: Duration::from_millis(interval),
            lease_ttl: Duration::from_millis(lease_ttl),
            max_retries: flags.max_retries.or(file.max_retries),
            backoff_base_ms,
            wait_deadline_ms: flags.wait_deadline_ms.or(file.wait_deadline_ms),
        })
    }
}

impl Settings {
    /// How long the commands of one step may take: well within a lease, so that a lease need not be
    /// stretched far for them, and a topology whose instance died is not left alone for longer.
    #[must_use]
    pub fn commands_within(&self) -> Duration {
        (self.lease_ttl / 2).clamp(Duration::from_secs(1), Duration::from_secs(10))
    }
}

fn read_file(path: &Path) -> Result<Flags, SettingsError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| SettingsError::File { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|source| SettingsError::Toml { path: path.to_owned(), source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Flags {
        Flags { database_url: Some("postgres://x".to_owned()), ..Flags::default() }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "listen = \"127.0.0.1:1\"\nwatch_interval_ms = 200\n").unwrap();
        let given = Flags { watch_interval_ms: Some(300), ..flags() };
        let settings = Settings::resolve(given, Some(file.path())).unwrap();
        assert_eq!(settings.listen.port(), 1);
        assert_eq!(settings.watch_interval, Duration::from_millis(300));
        assert_eq!(Settings::resolve(flags(), None).unwrap().listen.port(), 7380);
    }

    #[test]
    fn nonsense_is_refused_with_what_to_do() {
        let refused = |flags| Settings::resolve(flags, None).unwrap_err().to_string();
        assert!(refused(Flags::default()).contains("REEVE_DATABASE_URL"));
        assert!(refused(Flags { admin_token: Some("short".into()), ..flags() }).contains("24"));
        assert!(
            refused(Flags { secret_key: Some("c2hvcnQ=".into()), ..flags() }).contains("openssl")
        );
        assert!(refused(Flags { watch_interval_ms: Some(1), ..flags() }).contains("50"));
    }
}
