//! Postgres through sqlx: the only shared state. Concrete on purpose: row locks, transactions and
//! constraints are its logic, and a second implementation would have to lie about them.
//!
//! To add a query, write it in the file of its table family and run `make sqlx`.

pub mod adoptions;
pub mod credentials;
pub mod deliveries;
pub mod findings;
pub mod idempotency;
pub mod journal;
pub mod leases;
pub mod marks;
pub mod nodes;
pub mod plans;
pub mod steps;
pub mod tokens;
pub mod topologies;
pub mod webhooks;

use std::borrow::Cow;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use sqlx::PgPool;
use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::domain::refusal::Refusal;

static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// Between two tries to reach a database that is away.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a database may take to let anybody in who brings its schema up to date.
const MIGRATES_WITHIN: Duration = Duration::from_secs(20);

/// The database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    /// For signs of life and leases, which must not wait behind whatever else is going on.
    beats: PgPool,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// What was asked for contradicts what is stored.
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    #[error("migrating the database failed")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("{table}.{column} holds something that this version cannot read")]
    Inconsistent { table: &'static str, column: &'static str, source: serde_json::Error },
    /// A row was not as the caller had read it; nothing was written.
    #[error("{0} changed in the meantime")]
    Moved(&'static str),
    /// The writer's lease is no longer its own; nothing was written.
    #[error("the lease of the topology is lost")]
    Fenced,
    #[error("a stored credential cannot be opened: REEVE_SECRET_KEY is not the one that sealed it")]
    Sealed,
}

impl StoreError {
    /// Whether the database itself is away, as opposed to what was asked of it. Class 57P: operator
    /// intervention (shutdown, crash recovery); 08: connection.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        let broken = matches!(self, Self::Database(error) if is_outage(error));
        broken || self.sqlstate().is_some_and(|c| c.starts_with("57P") || c.starts_with("08"))
    }

    /// Whether what was asked for came upon somebody else's work, and may well succeed a moment
    /// later: a lock that was not granted in time (55P03), a statement or a transaction that took
    /// too long (57014, 25P03), a deadlock or a conflict (class 40).
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let state = self.sqlstate();
        state.is_some_and(|c| matches!(&*c, "55P03" | "57014" | "25P03") || c.starts_with("40"))
    }

    /// Whether a value was one that the database cannot hold, such as a year before time began
    /// (class 22: data exception).
    #[must_use]
    pub fn is_out_of_range(&self) -> bool {
        self.sqlstate().is_some_and(|c| c.starts_with("22"))
    }

    /// What the database answered with (PostgreSQL's appendix A).
    fn sqlstate(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Database(sqlx::Error::Database(e)) => e.code(),
            Self::Database(_)
            | Self::Refused(_)
            | Self::Migrate(_)
            | Self::Inconsistent { .. }
            | Self::Moved(_)
            | Self::Fenced
            | Self::Sealed => None,
        }
    }
}

impl Store {
    /// Connects on first use, so that a database that is away delays nobody's start but is told by
    /// whoever asks for it.
    ///
    /// An instance that stands still in the middle of a transaction keeps its locks. So that it
    /// holds nobody up beyond a lease's time, the database ends such a transaction after a third of
    /// it, and nobody waits longer for a lock; but not sooner than a busy machine may pause a process.
    pub fn new(url: &str, lease_ttl: Duration) -> Result<Self, StoreError> {
        let third = format!("{}ms", (lease_ttl / 3).max(Duration::from_secs(2)).as_millis());
        let options: PgConnectOptions = url.parse()?;
        // A database that hangs must not hang everything with it.
        let options = options.options([
            ("statement_timeout", "15s"),
            ("lock_timeout", &third),
            ("idle_in_transaction_session_timeout", &third),
        ]);
        let pool = |connections, options| {
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(Duration::from_secs(5))
                .connect_lazy_with(options)
        };
        Ok(Self { pool: pool(16, options.clone()), beats: pool(1, options) })
    }

    /// Waits for a database that is away, as when all of a machine starts at once, but not longer than
    /// this.
    pub async fn reach(&self, within: Duration) -> Result<(), StoreError> {
        let began = Instant::now();
        loop {
            match self.pool.acquire().await.map_err(StoreError::from) {
                Ok(_) => return Ok(()),
                Err(error) if !error.is_outage() || began.elapsed() >= within => return Err(error),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "waiting for the database"
                    );
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Brings the schema up to date. A database that is slow to let anybody in is asked again.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let began = Instant::now();
        loop {
            match MIGRATOR.run(&self.pool).await {
                Err(MigrateError::Execute(error))
                    if began.elapsed() < MIGRATES_WITHIN && is_outage(&error) =>
                {
                    tokio::time::sleep(AGAIN).await;
                }
                ended => return Ok(ended?),
            }
        }
    }

    /// Whether the database answers and has every migration that this version needs.
    pub async fn ready(&self) -> Result<bool, StoreError> {
        let applied: Vec<i64> =
            sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
                .fetch_all(&self.pool)
                .await?;
        Ok(MIGRATOR.iter().all(|m| applied.contains(&m.version)))
    }

    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub async fn close(&self) {
        self.beats.close().await;
        self.pool.close().await;
    }
}

fn is_outage(error: &sqlx::Error) -> bool {
    matches!(
        error,
        sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
    )
}

/// Reads an enum from the word that a text column holds.
fn word<T: DeserializeOwned>(
    table: &'static str,
    column: &'static str,
    word: String,
) -> Result<T, StoreError> {
    document(table, column, serde_json::Value::String(word))
}

/// Reads a value from a jsonb column.
fn document<T: DeserializeOwned>(
    table: &'static str,
    column: &'static str,
    json: serde_json::Value,
) -> Result<T, StoreError> {
    serde_json::from_value(json).map_err(|source| StoreError::Inconsistent {
        table,
        column,
        source,
    })
}

/// Writes a value for a jsonb column.
fn json<T: serde::Serialize>(value: &T) -> Result<serde_json::Value, StoreError> {
    serde_json::to_value(value).map_err(|source| StoreError::Inconsistent {
        table: "(written)",
        column: "(written)",
        source,
    })
}

/// The constraint that a write violated, if that is what happened.
fn violated(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error().and_then(|e| e.constraint())
}
