//! `reeve demo`: a whole deployment on this machine, made through the REST API as any client would
//! make it, for people who want to see it work before they read on.

mod create;
mod keys;
mod report;
mod screen;
pub mod servers;
mod stage;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::screen::{Screen, seconds};
use self::servers::{Folder, ServerError};
use self::stage::Stage;
use crate::client::{Client, ClientError};

const NAME: &str = "demo";
const KEYS: usize = 1000;

#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// End when everything is shown, instead of staying up until Ctrl-C
    #[arg(long)]
    pub exit: bool,
    /// Leave the data folder behind
    #[arg(long)]
    pub keep: bool,
    /// The data folder, new or empty; a temporary one when left out
    #[arg(long, value_name = "PATH")]
    pub dir: Option<PathBuf>,
    /// The port of the REST API; another one is used when it is taken
    #[arg(long, value_name = "N", default_value_t = 7380)]
    pub port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the plan {0}")]
    Plan(String),
    #[error("the stream of the plan's events ended before the plan did")]
    NoEnd,
    #[error("{0}")]
    Keys(String),
    #[error("Reeve's server is gone")]
    Gone,
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
    #[error("interrupted")]
    Interrupted,
}

/// Runs the demo to its end. All that it started ends with it, however it ends.
pub async fn run(args: DemoArgs) -> Result<(), DemoError> {
    let mut signals = Signals::new()?;
    let mut screen = Screen::new();
    let mut folder = match &args.dir {
        Some(dir) => Folder::at(dir)?,
        None => Folder::fresh("reeve-demo")?,
    };
    if args.keep {
        folder.keep();
    }
    let mut stage = Stage::new(folder);
    let mut shown = tokio::select! {
        shown = show(&args, &mut stage, &mut screen) => shown,
        () = signals.any() => Err(DemoError::Interrupted),
    };
    if shown.is_ok() && !args.exit {
        screen.heading("Everything stays up until you press Ctrl-C.");
        shown = tokio::select! {
            () = stage.gone() => Err(DemoError::Gone),
            () = signals.any() => Ok(()),
        };
    }
    screen.clear();
    let failed = matches!(&shown, Err(error) if !matches!(error, DemoError::Interrupted));
    if let Some(log) = stage.log().filter(|_| failed) {
        screen.heading("The end of the server's log:");
        screen.line(&log);
    }
    screen.heading("Stopping.");
    stage.end().await;
    if args.keep {
        screen.line(&format!("The data stays in {}", stage.folder().display()));
    }
    shown
}

async fn show(args: &DemoArgs, stage: &mut Stage, screen: &mut Screen) -> Result<(), DemoError> {
    screen.line("Starting, on this machine alone");
    stage.start(args.port, screen).await?;
    let client = Client::new(&stage.url()?, stage.token()?)?;

    screen
        .heading("Creating the cluster: 3 shards with 1 replica each, on 6 of 7 nodes in 3 zones");
    let body = json!({
        "name": NAME,
        "spec": { "mode": "cluster", "shards": 3, "replicas_per_shard": 1, "nodes": stage.nodes() },
    });
    let took = create::create(&client, &body, screen).await?;
    screen.line(&format!("  {}  done", seconds(took)));

    let path = format!("/v1/topologies/{NAME}");
    screen.heading("Using it");
    let slots = client.get(&format!("{path}/slots")).await?;
    let (took, spread) = keys::write_and_read(&slots, KEYS).await?;
    let took = took.as_secs_f64();
    screen.line(&format!("  {KEYS} keys written and read again in {took:.2} s"));
    for (node, count) in spread {
        screen.line(&format!("  {count:>4} of them on {node}"));
    }

    let topology = report::steady(&client, &path).await?;
    screen.heading("What it looks like");
    for line in report::layout(&topology) {
        screen.line(&line);
    }
    let survivability = client.get(&format!("{path}/survivability")).await?;
    screen.heading("What it survives");
    for line in report::survivability(&survivability) {
        screen.line(&line);
    }
    screen.heading("Try it");
    let (primary, zone) = report::first_primary(&topology);
    for line in report::hints(client.base(), client.token(), &path, zone) {
        screen.line(&line);
    }
    if let Some(pid) = stage.pid_of(primary) {
        screen.line("");
        screen.line("  Kill the first primary and see its replica take over (in the events, too):");
        screen.line(&format!("    kill -9 {pid}"));
    }
    Ok(())
}

/// What ends a program that runs in a terminal.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> Result<Self, DemoError> {
        let on = |kind| signal(kind).map_err(DemoError::Signals);
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(on);
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    async fn any(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Between looks at what is awaited.
const POLL: Duration = Duration::from_millis(100);
