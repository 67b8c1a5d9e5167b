//! The command line: `serve`, `migrate`, `openapi`, `health`, `demo`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use reeve::settings::{Flags, Settings};
use reeve::store::Store;
use reeve::{app, demo, http};

/// The HTTP control plane for Redis high availability.
///
/// Start with `reeve demo`, which needs nothing but redis-server and PostgreSQL's binaries. To run
/// it for real: `reeve serve` with REEVE_DATABASE_URL set.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API and keep the topologies
    Serve {
        #[command(flatten)]
        flags: Box<Flags>,
        /// A TOML file with settings, named as the flags are, with underscores
        #[arg(long, env = "REEVE_CONFIG")]
        config: Option<PathBuf>,
        /// Do not migrate the database first
        #[arg(long)]
        no_migrate: bool,
    },
    /// Bring the database up to this version's schema
    Migrate {
        /// PostgreSQL, for example postgres://reeve:secret@127.0.0.1/reeve
        #[arg(long, env = "REEVE_DATABASE_URL", hide_env_values = true)]
        database_url: String,
    },
    /// Print the OpenAPI document
    Openapi,
    /// Ask a server whether it is ready; for container health checks
    Health {
        /// The server's URL
        #[arg(long, env = "REEVE_URL", default_value = "http://127.0.0.1:7380")]
        url: String,
    },
    /// Start a private PostgreSQL, seven Redis nodes and a server, and make a cluster of them
    Demo(demo::DemoArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let done: Result<(), Box<dyn std::error::Error>> = match Cli::parse().command {
        Command::Serve { flags, config, no_migrate } => {
            match Settings::resolve(*flags, config.as_deref()) {
                Ok(settings) => app::serve(settings, !no_migrate).await.map_err(Into::into),
                Err(error) => Err(error.into()),
            }
        }
        Command::Migrate { database_url } => migrate(&database_url).await,
        Command::Openapi => {
            println!("{}", http::openapi::text());
            Ok(())
        }
        Command::Health { url } => health(&url).await,
        Command::Demo(args) => demo::run(args).await.map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reeve: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn migrate(database_url: &str) -> Result<(), Box<dyn std::error::Error>> {
    Store::new(database_url, Duration::from_secs(30))?.migrate().await?;
    println!("the database is up to date");
    Ok(())
}

async fn health(url: &str) -> Result<(), Box<dyn std::error::Error>> {
    let answer = reqwest::get(format!("{}/readyz", url.trim_end_matches('/'))).await?;
    if answer.status().is_success() {
        return Ok(());
    }
    Err(format!("{url} answers {}", answer.status()).into())
}

/// An error with its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}
