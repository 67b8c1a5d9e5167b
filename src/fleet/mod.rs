//! The port to the nodes: to look at one, to knock at one of its ports, to send it commands, to talk
//! to it while slots move.
//!
//! Nothing here decides anything. Commands come from `engine/apply` and `engine/mover` alone; everything else in
//! Reeve only looks.

pub mod metered;
pub mod redis;
pub mod sim;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::domain::credential::Credential;
use crate::domain::fault::{Fault, NO_REPLY, UNREACHABLE};
use crate::domain::id::TopologyId;
use crate::domain::moving::talk::{Answer, Lane, Saying};
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::Report;
use crate::domain::step::command::Verb;

/// The nodes, real or simulated.
pub trait Fleet: Send + Sync + 'static {
    /// Asks a node everything that a report holds, in as few round trips as its version allows.
    /// Must return within a bounded time whatever the node does.
    fn look<'a>(
        &'a self,
        target: &'a Target,
        ask: &'a Ask,
    ) -> BoxFuture<'a, Result<Report, FleetError>>;

    /// Opens and closes a TCP connection to one of the node's ports.
    fn knock<'a>(&'a self, node: &'a Address, port: u16) -> BoxFuture<'a, Result<(), FleetError>>;

    /// Makes sure that nothing that was sent to the node before can still run there: what this
    /// process lost the reply of, and what earlier holders of the topology's lease sent. `Ok` says
    /// that the node answered on a connection of the present holder, after those of earlier ones
    /// were ended there.
    fn fence<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), FleetError>>;

    /// Sends commands in order over one connection and stops counting at the first that fails:
    /// `Ok` says that every one was answered with success.
    fn send<'a>(
        &'a self,
        target: &'a Target,
        verbs: &'a [Verb],
    ) -> BoxFuture<'a, Result<(), FleetError>>;

    /// Says several things to a node in one batch, and gives the answer to each, errors among them.
    /// Each lane of a node is a connection of its own, which belongs to the target's fence; on a
    /// connection that was opened just now the node is first asked who it is.
    fn converse<'a>(
        &'a self,
        talk: &'a Talk<'a>,
        sayings: &'a [Saying],
    ) -> BoxFuture<'a, Result<Vec<Answer>, FleetError>>;

    /// Hears what a node publishes on these channels from now on, until the connection ends. Messages
    /// may be lost.
    fn listen<'a>(
        &'a self,
        target: &'a Target,
        channels: &'a [&'a str],
    ) -> BoxFuture<'a, Result<Published, FleetError>>;
}

/// What a node publishes, as it comes.
pub type Published = BoxStream<'static, Message>;

/// One message that a node published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub channel: String,
    pub text: String,
}

/// To whom something is said while slots move, and how long the answers may take.
#[derive(Debug, Clone, Copy)]
pub struct Talk<'a> {
    pub target: &'a Target,
    pub lane: Lane,
    /// The cluster node that is meant: another one at this address gets to hear nothing.
    pub identity: &'a ClusterNodeId,
    pub within: Duration,
}

/// Whom a connection for sending belongs to: the holder of a topology's lease, by the lease's
/// token, which only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    pub topology: TopologyId,
    pub token: i64,
}

/// Where a node is and how to log in there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub address: Address,
    pub login: Option<Arc<Credential>>,
    /// What it is to log in to others with, where the topology names it: a data node to its primary, a
    /// Sentinel to those that it watches.
    pub replication: Option<Arc<Credential>>,
    /// On whose behalf commands are sent; nothing for whoever only looks.
    pub fence: Option<Fence>,
}

/// What a look should read beside the usual.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ask {
    /// Names of settings to read.
    pub settings: BTreeSet<String>,
    /// The one deployment that Sentinels are asked about, by its name; all that they watch if none.
    pub master: Option<String>,
    /// Whether libraries of functions are read, with all their code.
    pub libraries: bool,
}

/// Why a node did not do or say what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FleetError {
    /// Nothing was sent: no connection.
    #[error("{node} cannot be reached: {message}")]
    Unreachable { node: Address, message: String },
    /// Something was sent and no answer came; it may have run, or may still run.
    #[error("{node} did not answer: {message}")]
    Ambiguous { node: Address, message: String },
    /// The node answered with an error. `code` is its first word.
    #[error("{node} answered {code}: {message}")]
    Rejected { node: Address, code: String, message: String },
}

impl From<FleetError> for Fault {
    fn from(error: FleetError) -> Self {
        match error {
            FleetError::Unreachable { node, message } => Self::new(UNREACHABLE, message, &node),
            FleetError::Ambiguous { node, message } => Self::new(NO_REPLY, message, &node),
            FleetError::Rejected { node, code, message } => Self::new(&code, message, &node),
        }
    }
}
