//! Logs to stdout, and metrics for `/metrics`.

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::settings::LogFormat;

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
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &seconds)?
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
}
