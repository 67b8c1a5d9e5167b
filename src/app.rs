//! The composition root: settings in, a running service out.

use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock;
use crate::domain::access::Role;
use crate::domain::id::{InstanceId, TokenId};
use crate::domain::policy::Policy;
use crate::domain::receiver::{Allowed, ParseAllowedError};
use crate::engine::courier::Caller;
use crate::engine::{Engine, Options};
use crate::fleet::metered::Metered;
use crate::fleet::redis::{ParseReachError, Reach, RedisFleet, Timeouts};
use crate::http::auth::digest;
use crate::http::listener::{PATIENCE, Patient};
use crate::http::{self, App};
use crate::settings::Settings;
use crate::shutdown;
use crate::store::credentials::SecretKey;
use crate::store::leases::Instance;
use crate::store::tokens::Token;
use crate::store::{Store, StoreError};
use crate::telemetry::{self, TelemetryError};

/// How long the start waits for a database that is away.
const DATABASE_WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error("the database at REEVE_DATABASE_URL cannot be used: {0}")]
    Store(#[from] StoreError),
    #[error("cannot listen on {address}: {source}; choose another with REEVE_LISTEN")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("REEVE_NODE_ALLOW_CIDRS: {0}")]
    Reach(#[from] ParseReachError),
    #[error("REEVE_WEBHOOK_ALLOW_CIDRS: {0}")]
    Receivers(#[from] ParseAllowedError),
    #[error("TLS cannot be set up")]
    Tls(#[from] tokio_rustls::rustls::Error),
    #[error("the machine gives no random numbers")]
    NoRandomness,
    #[error("serving failed")]
    Io(#[from] std::io::Error),
}

/// Runs the service until it is told to stop.
pub async fn serve(settings: Settings, migrate: bool) -> Result<(), ServeError> {
    telemetry::init_logs(&settings.log, settings.log_format)?;
    let metrics = telemetry::init_metrics()?;
    let store = Store::new(&settings.database_url, settings.lease_ttl)?;
    store.reach(DATABASE_WITHIN).await?;
    if migrate {
        store.migrate().await?;
    }
    ensure_admin(&store, settings.admin_token.as_deref()).await?;

    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|source| ServeError::Listen { address: settings.listen, source })?;
    let address = listener.local_addr()?;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let engine = engine(&settings, store.clone(), address)?;
    engine.start(&stop, &tasks);
    tasks.spawn(upkeep(metrics.clone(), stop.clone()));
    tokio::spawn(shutdown::on_signal(stop.clone()));

    let app = App { engine, metrics, stop: stop.clone(), tasks: tasks.clone() };
    let graceful = stop.clone();
    let listener = Patient::new(listener, PATIENCE);
    let serving = axum::serve(listener, http::router(app))
        .with_graceful_shutdown(async move { graceful.cancelled().await });
    tracing::info!("listening on http://{address}");
    let mut serving = std::pin::pin!(serving.into_future());
    tokio::select! {
        served = &mut serving => served?,
        () = stop.cancelled() => {
            // Requests and turns in hand end by themselves; whoever hangs is left behind.
            tasks.close();
            let rest = async { let _ = tokio::join!(&mut serving, tasks.wait()); };
            if tokio::time::timeout(shutdown::PATIENCE, rest).await.is_err() {
                tracing::warn!("some work did not end in time");
            }
        }
    }
    // Closing waits for connections in use, which is not worth more time now.
    let _ = tokio::time::timeout(Duration::from_millis(500), store.close()).await;
    tracing::info!("stopped");
    Ok(())
}

fn engine(
    settings: &Settings,
    store: Store,
    listen: SocketAddr,
) -> Result<Arc<Engine>, ServeError> {
    let defaults = Policy::default();
    let policy = Policy {
        max_retries: settings.max_retries.unwrap_or(defaults.max_retries),
        backoff_base_ms: settings.backoff_base_ms.unwrap_or(defaults.backoff_base_ms),
        wait_deadline_ms: settings.wait_deadline_ms.unwrap_or(defaults.wait_deadline_ms),
        ..defaults
    };
    let reach = settings.node_allow_cidrs.as_deref().map(Reach::parse).transpose()?;
    let receivers = settings.webhook_allow_cidrs.as_deref().map(Allowed::parse).transpose()?;
    let timeouts = Timeouts { send: settings.commands_within(), ..Timeouts::default() };
    let redis = RedisFleet::new(timeouts, reach.unwrap_or_default(), clock::now);
    let me = Instance {
        id: InstanceId(clock::new_id()),
        host: hostname(),
        pid: std::process::id(),
        listen: listen.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let options = Options {
        me,
        policy,
        watch_interval: settings.watch_interval,
        lease_ttl: settings.lease_ttl,
        commands_within: settings.commands_within(),
        secret_key: settings.secret_key.map(SecretKey::new),
        caller: Caller::new(receivers.unwrap_or_default())?,
    };
    Ok(Engine::new(store, Arc::new(Metered::new(redis)), options))
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Keeps the memory of histograms bounded, and what is touched seldom from being forgotten.
async fn upkeep(metrics: metrics_exporter_prometheus::PrometheusHandle, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(5)) => {
                metrics::gauge!("reeve_streams").increment(0.0);
                metrics.run_upkeep();
            }
        }
    }
}

/// Sees that somebody can log in: the token from the settings, or one that is made now and printed
/// once, outside of the log.
async fn ensure_admin(store: &Store, given: Option<&str>) -> Result<(), ServeError> {
    let secret = match given {
        Some(secret) => secret.to_owned(),
        None if store.has_admin_token().await? => return Ok(()),
        None => {
            let mut bytes = [0u8; 24];
            getrandom::fill(&mut bytes).map_err(|_| ServeError::NoRandomness)?;
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            let secret = format!("reeve_admin_{hex}");
            eprintln!("The first admin's token, shown this once: {secret}");
            secret
        }
    };
    let token = Token {
        id: TokenId(clock::new_id()),
        name: "admin".to_owned(),
        role: Role::Admin,
        scope: None,
        created_by: "settings".to_owned(),
        created_at: clock::now(),
        expires_at: None,
    };
    // Whoever changes the setting means the old one to be void.
    store.replace_settings_token(&token, &digest(&secret)).await?;
    Ok(())
}
