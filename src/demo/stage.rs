//! The servers of the demo, started in order and ended in the reverse order.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Instant;

use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::screen::{Screen, seconds};
use super::servers::{
    Folder, Port, Postgres, Redis, RedisOptions, Server, ServerError, ServerOptions, free_port,
    random_hex,
};
use super::{DemoError, POLL};

/// A zone and a machine for each node. All run here; where they would be is made up.
const PLACES: [(&str, &str); 7] =
    [("a", "a1"), ("b", "b1"), ("c", "c1"), ("a", "a2"), ("b", "b2"), ("c", "c2"), ("a", "a3")];

/// Where the nodes listen, if all of these are free.
const PORTS: RangeInclusive<u16> = 7001..=7007;

pub(super) struct Stage {
    server: Option<Server>,
    nodes: Vec<Redis>,
    ports: Vec<Port>,
    postgres: Option<Postgres>,
    folder: Folder,
}

impl Stage {
    pub(super) fn new(folder: Folder) -> Self {
        Self { server: None, nodes: vec![], ports: vec![], postgres: None, folder }
    }

    pub(super) async fn start(&mut self, port: u16, screen: &mut Screen) -> Result<(), DemoError> {
        // First, since a node wants to be up for 2 s before it calls its cluster well.
        let begun = Instant::now();
        self.ports = match PORTS.map(Port::claim_with_bus).collect() {
            Some(ports) => ports,
            None => PORTS.map(|_| free_port()).collect::<Result<_, _>>()?,
        };
        let nodes = self.ports.iter().zip(1..).map(|(port, n)| Redis::start(self.node(port, n)));
        self.nodes = try_join_all(nodes).await?;
        let numbers: Vec<_> = self.ports.iter().map(|port| port.number().to_string()).collect();
        started(screen, "7 Redis nodes", &format!("ports {}", numbers.join(" ")), begun);

        screen.passing("  starting PostgreSQL …");
        let begun = Instant::now();
        let postgres = Postgres::start(&self.folder.join("postgres")).await?;
        let what = format!("PostgreSQL {}", postgres.version());
        started(screen, &what, &postgres.address(), begun);
        let database_url = postgres.url();
        self.postgres = Some(postgres);

        let begun = Instant::now();
        let binary = std::env::current_exe().map_err(|source| ServerError::Io {
            what: "cannot find reeve itself".into(),
            source,
        })?;
        let mut options = ServerOptions::new(binary, self.folder.join("reeve"), database_url)?;
        options.token = format!("demo-{}", random_hex(12)?);
        options.listen.set_port(port);
        if port != 0 {
            let claim = match Port::claim(port) {
                Some(claim) => claim,
                None => free_port()?,
            };
            if claim.number() != port {
                let used = claim.number();
                screen.line(&format!("  port {port} is taken; using {used} instead"));
            }
            options.listen.set_port(claim.number());
            self.ports.push(claim);
        }
        let server = Server::start(options).await?;
        started(screen, "Reeve", &server.url(), begun);
        self.server = Some(server);
        Ok(())
    }

    /// A node that notices a dead peer soon, since people are watching.
    fn node(&self, port: &Port, n: usize) -> RedisOptions {
        let options = RedisOptions::cluster(self.folder.join(&format!("redis-{n}")));
        let options = options.with("cluster-node-timeout", "2000");
        RedisOptions { port: Some(port.number()), with_config_file: true, ..options }
    }

    /// The nodes as a spec names them.
    pub(super) fn nodes(&self) -> Value {
        let node = |(node, (zone, host)): (&Redis, &(&str, &str))| json!({"address": node.address(), "zone": zone, "host": host});
        self.nodes.iter().zip(&PLACES).map(node).collect()
    }

    pub(super) fn pid_of(&self, address: &str) -> Option<u32> {
        self.nodes.iter().find(|node| node.address() == address).map(Redis::pid)
    }

    pub(super) fn url(&self) -> Result<String, DemoError> {
        self.server.as_ref().map(Server::url).ok_or(DemoError::Gone)
    }

    pub(super) fn token(&self) -> Result<&str, DemoError> {
        self.server.as_ref().map(Server::token).ok_or(DemoError::Gone)
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn log(&self) -> Option<String> {
        self.server.as_ref().map(|server| server.log_tail(15)).filter(|log| !log.is_empty())
    }

    /// Comes back when Reeve's server has ended.
    pub(super) async fn gone(&mut self) {
        while self.server.as_mut().is_some_and(Server::is_running) {
            sleep(POLL).await;
        }
    }

    pub(super) async fn end(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.sigterm().await;
        }
        self.nodes.clear();
        if let Some(mut postgres) = self.postgres.take() {
            postgres.stop().await;
        }
    }
}

fn started(screen: &mut Screen, what: &str, at: &str, begun: Instant) {
    screen.line(&format!("  {}  {what:<17} {at}", seconds(begun.elapsed())));
}
