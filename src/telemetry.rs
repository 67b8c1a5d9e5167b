//! Logs to stdout, and metrics for `/metrics`.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::settings::LogFormat;

/// A gauge that nobody touches for this long is forgotten.
const IDLE: Duration = Duration::from_mins(1);

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("REEVE_LOG is not a log filter; write it as info or as reeve=debug,info")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("logging cannot be set up")]
    Log(#[from] TryInitError),
    #[error("metrics cannot be set up")]
    Metrics(#[from] BuildError),
}

pub fn init_logs(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let registry = tracing_subscriber::registry().with(EnvFilter::try_new(filter)?);
    match format {
        LogFormat::Pretty => registry.with(tracing_subscriber::fmt::layer()).try_init()?,
        LogFormat::Json => registry.with(tracing_subscriber::fmt::layer().json()).try_init()?,
    }
    Ok(())
}

/// Installs the recorder; its handle renders what `/metrics` shows.
pub fn init_metrics() -> Result<PrometheusHandle, TelemetryError> {
    let seconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    let outages = [0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0];
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &seconds)?
        .set_buckets_for_metric(Matcher::Full("reeve_unavailability_seconds".to_owned()), &outages)?
        // So that what another instance shows now is not shown here too.
        .idle_timeout(MetricKindMask::GAUGE, Some(IDLE))
        .install_recorder()?;
    describe();
    Ok(handle)
}

fn describe() {
    use metrics::{
        describe_counter as counter, describe_gauge as gauge, describe_histogram as histogram,
    };
    counter!("reeve_http_requests_total", "Requests, by method, route and status.");
    histogram!("reeve_http_request_seconds", "How long requests took, by route.");
    gauge!("reeve_streams", "Event streams that are open.");
    counter!(
        "reeve_journal_reads_total",
        "Reads of the journal, for all followers at once (tail) or for one (replay)."
    );
    counter!("reeve_plans_total", "Plans that ended or paused, by kind and state.");
    counter!("reeve_steps_total", "Attempts at steps, by kind and outcome.");
    counter!("reeve_node_commands_total", "Commands sent to nodes, by command and outcome.");
    histogram!("reeve_node_command_seconds", "How long nodes took to answer, by kind of call.");
    gauge!("reeve_leases_held", "Topologies that this instance keeps.");
    gauge!("reeve_node_up", "Whether a node answers (1), by topology and node.");
    gauge!("reeve_shard_has_primary", "Whether a shard has a primary (1), by topology and shard.");
    gauge!("reeve_replica_lag_bytes", "Bytes that a replica has yet to take from its primary.");
    gauge!("reeve_replica_lag_seconds", "Seconds since a replica last heard of its primary.");
    counter!("reeve_failovers_detected_total", "Primaries that were missed, by topology.");
    counter!("reeve_failovers_total", "Failovers that were completed, by topology and cause.");
    counter!("reeve_failovers_failed_total", "Failovers in which nobody took over, by reason.");
    histogram!(
        "reeve_unavailability_seconds",
        "How long a shard took no writes at most in a failover, by topology."
    );
    counter!("reeve_webhook_attempts_total", "Attempts to deliver an event, by outcome.");
    histogram!("reeve_webhook_attempt_seconds", "How long attempts to deliver took.");
    gauge!("reeve_webhook_waiting", "Deliveries that wait, by webhook.");
    gauge!("reeve_webhook_oldest_seconds", "Age of the oldest delivery that waits, by webhook.");
}
