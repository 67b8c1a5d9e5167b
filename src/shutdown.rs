//! Ending well: the first signal asks everyone to stop, a second one, or ten seconds, ends it.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long work that is asked to stop may take.
pub const PATIENCE: Duration = Duration::from_secs(9);

/// Cancels `stop` at SIGTERM or SIGINT; a second signal ends the process at once.
pub async fn on_signal(stop: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut wait = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    wait().await;
    tracing::info!("stopping");
    stop.cancel();
    wait().await;
    tracing::warn!("told twice to stop: ending at once");
    std::process::exit(130);
}
