//! Real nodes, spoken to over the Redis protocol (RESP2), each by itself.
//!
//! A node may be frozen, restarted, replaced by something else, or out to leak a password into an
//! error message. So every call ends within a known time, nothing that a node says is taken for
//! granted, and an answer that did not come is told apart from a command that was never sent.

mod connection;
mod converse;
mod fence;
mod info;
mod lanes;
mod listen;
mod look;
mod nodes;
mod reach;
mod send;
mod sentinel;
mod value;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::{BoxFuture, FutureExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use self::connection::{Lost, Node, io_words, unreachable};
pub use self::reach::{ParseReachError, Reach};
use super::{Ask, Fleet, FleetError, Published, Talk, Target};
use crate::domain::moving::talk::{Answer, Saying};
use crate::domain::node::Address;
use crate::domain::observation::Report;
use crate::domain::step::command::Verb;

/// A node that nobody called for this long is forgotten, and its connections closed, when the next
/// new one comes.
const IDLE: TimeDelta = TimeDelta::minutes(10);

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To connect and log in.
    pub connect: Duration,
    /// For the answers to a look.
    pub look: Duration,
    /// For the answers to commands. One that takes longer is not lost: its node is barred until it
    /// answers again. What is said while slots move names its own time.
    pub send: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            look: Duration::from_millis(800),
            send: Duration::from_secs(10),
        }
    }
}

/// The nodes out there.
pub struct RedisFleet {
    timeouts: Timeouts,
    reach: Arc<Reach>,
    clock: fn() -> DateTime<Utc>,
    nodes: Mutex<HashMap<Address, Arc<Node>>>,
}

impl RedisFleet {
    #[must_use]
    pub fn new(timeouts: Timeouts, reach: Reach, clock: fn() -> DateTime<Utc>) -> Self {
        Self { timeouts, reach: Arc::new(reach), clock, nodes: Mutex::default() }
    }

    fn node(&self, address: &Address) -> Arc<Node> {
        let now = (self.clock)();
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = nodes.get(address) {
            node.touch(now);
            return node.clone();
        }
        nodes.retain(|_, node| now - node.used() < IDLE);
        let node = Arc::new(Node::new(now, self.reach.clone()));
        nodes.insert(address.clone(), node.clone());
        node
    }

    async fn look(&self, node: &Node, target: &Target, ask: &Ask) -> Result<Report, FleetError> {
        // The parts have limits of their own; this one also covers waiting for other callers.
        let within = self.timeouts.connect + self.timeouts.look;
        match timeout(within, look::look(node, target, ask, &self.timeouts, self.clock)).await {
            Ok(seen) => seen,
            Err(_) => Err(unreachable(target, Lost::Late(within))),
        }
    }
}

impl Fleet for RedisFleet {
    fn look<'a>(
        &'a self,
        target: &'a Target,
        ask: &'a Ask,
    ) -> BoxFuture<'a, Result<Report, FleetError>> {
        async move { self.look(&self.node(&target.address), target, ask).await }.boxed()
    }

    fn knock<'a>(&'a self, node: &'a Address, port: u16) -> BoxFuture<'a, Result<(), FleetError>> {
        async move {
            let within = self.timeouts.connect;
            let connect = async { TcpStream::connect(self.reach.resolve(node, port).await?).await };
            let message = match timeout(within, connect).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => io_words(error),
                Err(_) => Lost::Late(within).to_string(),
            };
            let message = format!("port {port}: {message}");
            Err(FleetError::Unreachable { node: node.clone(), message })
        }
        .boxed()
    }

    fn fence<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), FleetError>> {
        async move {
            let within = self.timeouts.connect + self.timeouts.look;
            let node = self.node(&target.address);
            match timeout(within, node.fence(target, &self.timeouts)).await {
                Ok(fenced) => fenced,
                Err(_) => Err(unreachable(target, Lost::Late(within))),
            }
        }
        .boxed()
    }

    fn send<'a>(
        &'a self,
        target: &'a Target,
        verbs: &'a [Verb],
    ) -> BoxFuture<'a, Result<(), FleetError>> {
        async move {
            let node = self.node(&target.address);
            let capabilities = match node.facts().await {
                Some(facts) => facts.capabilities,
                None => self.look(&node, target, &Ask::default()).await?.capabilities(),
            };
            send::send(&node, target, verbs, capabilities, &self.timeouts).await
        }
        .boxed()
    }

    fn converse<'a>(
        &'a self,
        talk: &'a Talk<'a>,
        sayings: &'a [Saying],
    ) -> BoxFuture<'a, Result<Vec<Answer>, FleetError>> {
        async move {
            let node = self.node(&talk.target.address);
            converse::converse(&node, talk, sayings, &self.timeouts).await
        }
        .boxed()
    }

    fn listen<'a>(
        &'a self,
        target: &'a Target,
        channels: &'a [&'a str],
    ) -> BoxFuture<'a, Result<Published, FleetError>> {
        listen::listen(target, channels, &self.reach, &self.timeouts).boxed()
    }
}
