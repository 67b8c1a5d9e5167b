//! The connections to one node: one for looking, one for sending, and those of `lanes.rs`, kept for
//! as long as they work.
//!
//! Looking and sending are apart because a server answers in order: a long `FLUSHALL` would hold up
//! every look behind it.
//!
//! A connection that lost an answer is never used again. If it was sending, its command may still
//! run, even minutes later on a frozen process; so the server's name for it (`CLIENT INFO`) is
//! kept, and whatever connection is opened next first kills it there. Looks start over on a new
//! connection then, so what they read cannot be overtaken by the lost command; and so does sending,
//! so that a fence is one for every connection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, ServerError, Value,
};
use tokio::time::timeout;

use super::info::Info;
use super::lanes::Lanes;
use super::reach::Reach;
use super::value::text;
use super::{Timeouts, fence};
use crate::domain::Timestamp;
use crate::domain::credential::Credential;
use crate::domain::fault::ANOTHER_NODE;
use crate::domain::node::{Capabilities, NodeKind};
use crate::fleet::{Fence, FleetError, Target};

/// One node's connections.
pub(super) struct Node {
    looking: tokio::sync::Mutex<Option<Arc<Link>>>,
    sending: tokio::sync::Mutex<Option<Link>>,
    pub(super) lanes: Lanes,
    /// Connections of ours whose last command may still run.
    lost: Mutex<Vec<ClientName>>,
    /// How many were lost.
    losses: AtomicU64,
    used: Mutex<Timestamp>,
    reach: Arc<Reach>,
}

/// One open connection, with whose login it was opened. An address has one login at a time; so a
/// rotated password leaves no old connection behind.
pub(super) struct Link {
    connection: MultiplexedConnection,
    login: Option<Arc<Credential>>,
    /// On whose behalf it sends.
    fence: Option<Fence>,
    name: Option<ClientName>,
    /// How many connections had been lost when it was opened, all of which it has killed.
    losses: u64,
    /// Learned by the first look. It cannot change while the connection lasts.
    pub facts: OnceLock<Facts>,
}

/// What decides which questions a server understands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub capabilities: Capabilities,
    pub clustered: bool,
    pub kind: NodeKind,
}

/// How a server calls one of its clients. The address is there because ids start again at 1 when a
/// server starts again.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ClientName {
    id: String,
    address: String,
}

/// Why an answer did not come.
pub(super) enum Lost {
    Late(Duration),
    Broken(String),
}

impl Node {
    pub fn new(now: Timestamp, reach: Arc<Reach>) -> Self {
        let (looking, sending, lanes, lost, losses) = Default::default();
        Self { looking, sending, lanes, lost, losses, used: Mutex::new(now), reach }
    }

    pub fn touch(&self, now: Timestamp) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    pub fn used(&self) -> Timestamp {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection for looking, and whether it was opened just now. Whoever comes while it is
    /// being opened waits for the same one.
    pub async fn looking(
        &self,
        target: &Target,
        times: &Timeouts,
    ) -> Result<(Arc<Link>, bool), FleetError> {
        let mut slot = self.looking.lock().await;
        let fits = |link: &&Arc<Link>| link.login == target.login && self.knows_all_losses(link);
        if let Some(link) = slot.as_ref().filter(fits) {
            return Ok((link.clone(), false));
        }
        let link = Arc::new(self.open(target, times.connect).await?);
        *slot = Some(link.clone());
        Ok((link, true))
    }

    /// Drops a connection for looking, unless another took its place already.
    pub async fn hang_up(&self, link: &Arc<Link>) {
        let mut slot = self.looking.lock().await;
        slot.take_if(|now| Arc::ptr_eq(now, link));
    }

    /// What the last look learned, if its connection is still there.
    pub async fn facts(&self) -> Option<Facts> {
        let slot = self.looking.lock().await;
        slot.as_ref().filter(|link| self.knows_all_losses(link))?.facts.get().copied()
    }

    /// Sends commands, one batch at a time, and reads all answers; where `identity` is given, only
    /// if the node still has it, as it says on the same connection.
    pub async fn send(
        &self,
        target: &Target,
        identity: Option<&str>,
        commands: &Pipeline,
        within: Duration,
        times: &Timeouts,
    ) -> Result<Vec<Value>, FleetError> {
        let Ok(mut slot) = timeout(within, self.sending.lock()).await else {
            return Err(unreachable(target, "an earlier command still runs there"));
        };
        self.make_ready(&mut slot, target, times).await?;
        let Some(link) = slot.as_ref() else { return Err(unreachable(target, "no connection")) };
        if let Some(identity) = identity {
            link.confirm(target, identity, times.look).await?;
        }
        match link.ask(commands, within).await {
            Ok(replies) => Ok(replies),
            Err(lost) => {
                slot.take().into_iter().for_each(|link| self.abandon(&link));
                Err(ambiguous(target, &lost))
            }
        }
    }

    /// Sees that nothing sent before can still run on the node.
    pub async fn fence(&self, target: &Target, times: &Timeouts) -> Result<(), FleetError> {
        let Ok(mut slot) = timeout(times.connect, self.sending.lock()).await else {
            return Err(unreachable(target, "an earlier command still runs there"));
        };
        self.make_ready(&mut slot, target, times).await
    }

    /// Leaves in the slot a connection that works and belongs to the target's holder.
    async fn make_ready(
        &self,
        slot: &mut Option<Link>,
        target: &Target,
        times: &Timeouts,
    ) -> Result<(), FleetError> {
        // An idle connection may have died unnoticed: try it while nothing is at stake. Its answer
        // also says that nothing sent before on it is still to come.
        if let Some(link) = slot.as_ref() {
            let fits = link.is_of(target) && self.knows_all_losses(link);
            if fits && link.ping(times.look).await.is_ok() {
                return Ok(());
            }
            slot.take().into_iter().for_each(|link| self.abandon(&link));
        }
        *slot = Some(self.take_over(target, times).await?);
        Ok(())
    }

    /// A new connection on behalf of the target's holder.
    pub async fn take_over(&self, target: &Target, times: &Timeouts) -> Result<Link, FleetError> {
        let link = self.open(target, times.connect).await?;
        if let Some(fence) = target.fence {
            fence::take_over(&link, target, fence, times.look).await?;
        }
        Ok(link)
    }

    /// Counts a connection as lost: the next look, and whatever is sent next, starts on a new one,
    /// which kills it.
    pub fn abandon(&self, link: &Link) {
        // The name comes first: whoever knows of the loss then also finds whom to kill.
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).extend(link.name.clone());
        self.losses.fetch_add(1, Ordering::SeqCst);
    }

    fn knows_all_losses(&self, link: &Link) -> bool {
        link.losses == self.losses.load(Ordering::SeqCst)
    }

    async fn open(&self, target: &Target, within: Duration) -> Result<Link, FleetError> {
        match timeout(within, self.greet(target)).await {
            Ok(greeted) => greeted,
            Err(_) => Err(unreachable(target, Lost::Late(within))),
        }
    }

    /// Connects, logs in, asks the server how it calls this connection, and kills the lost ones.
    ///
    /// Each is sent alone: of a batch that breaks off, the client library keeps no answer, and a
    /// server that turns a client away (`DENIED`, too many clients) says why and hangs up.
    async fn greet(&self, target: &Target) -> Result<Link, FleetError> {
        let failed = |error: RedisError| unreachable(target, words(&error));
        let mut connection = connect(target, &self.reach).await.map_err(failed)?;
        if let Some(login) = &target.login {
            let mut auth = redis::cmd("AUTH");
            auth.arg(login.username.as_deref()).arg(login.reveal());
            let reply = connection.send_packed_command(&auth).await.map_err(failed)?;
            if let Value::ServerError(error) = reply {
                return Err(rejected(target, &error));
            }
        }
        let who = redis::cmd("CLIENT").arg("INFO").to_owned();
        let who = connection.send_packed_command(&who).await.map_err(failed)?;
        if let Value::ServerError(error) = &who
            && turns_away(error)
        {
            return Err(rejected(target, error));
        }
        let losses = self.losses.load(Ordering::SeqCst);
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for client in &lost {
            let mut kill = redis::cmd("CLIENT");
            kill.arg("KILL").arg("ID").arg(&client.id).arg("ADDR").arg(&client.address);
            // Refused for want of a permission, it would be refused again: no need to look.
            connection.send_packed_command(&kill).await.map_err(failed)?;
        }
        let mut left = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(|client| !lost.contains(client));
        let name = text(&who).and_then(|who| ClientName::parse(&who));
        let (login, fence) = (target.login.clone(), target.fence);
        Ok(Link { connection, login, fence, name, losses, facts: OnceLock::new() })
    }
}

impl Link {
    /// Sends commands in one go; the answers are as many, errors among them.
    pub async fn ask(&self, commands: &Pipeline, within: Duration) -> Result<Vec<Value>, Lost> {
        let mut connection = self.connection.clone();
        let count = commands.len();
        match timeout(within, connection.send_packed_commands(commands, 0, count)).await {
            Ok(Ok(replies)) => Ok(replies),
            Ok(Err(error)) => Err(Lost::Broken(words(&error))),
            Err(_) => Err(Lost::Late(within)),
        }
    }

    /// Whether it was opened with the target's login, for its holder.
    pub fn is_of(&self, target: &Target) -> bool {
        self.login == target.login && self.fence == target.fence
    }

    /// Asks whether the node is the one that is meant, by its cluster id or by its process's run id.
    pub async fn confirm(
        &self,
        target: &Target,
        identity: &str,
        within: Duration,
    ) -> Result<(), FleetError> {
        let mut who = redis::pipe();
        who.cmd("CLUSTER").arg("MYID").cmd("INFO").arg("server");
        let said = self.ask(&who, within).await.map_err(|lost| unreachable(target, lost))?;
        let (id, info) = (said.first(), said.get(1).and_then(text).unwrap_or_default());
        let run_id = Info::parse(&info).text("run_id");
        let id = match id {
            Some(Value::ServerError(error)) if run_id.is_empty() => {
                return Err(rejected(target, error));
            }
            id => id.and_then(text).unwrap_or_default(),
        };
        if id == identity || run_id == identity {
            return Ok(());
        }
        let said = if id.is_empty() { run_id.as_str() } else { &*id };
        let message = format!("it is {said} and not {identity}");
        let (node, code) = (target.address.clone(), ANOTHER_NODE.to_owned());
        Err(FleetError::Rejected { node, code, message })
    }

    async fn ping(&self, within: Duration) -> Result<(), Lost> {
        let mut ping = redis::pipe();
        ping.cmd("PING");
        self.ask(&ping, within).await.map(|_| ())
    }
}

impl ClientName {
    /// Reads the answer to `CLIENT INFO`: `id=14 addr=127.0.0.1:52992 laddr=…`.
    fn parse(line: &str) -> Option<Self> {
        let field = |name| line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name));
        Some(Self { id: field("id=")?.to_owned(), address: field("addr=")?.to_owned() })
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late(within) => write!(f, "no answer within {} ms", within.as_millis()),
            Self::Broken(message) => f.write_str(message),
        }
    }
}

/// The login stays out of this: the library's own would hide the server's words. Time limits are
/// set around each call instead of here, so that there is one of each.
async fn connect(target: &Target, reach: &Reach) -> Result<MultiplexedConnection, RedisError> {
    let socket = reach.resolve(&target.address, target.address.port()).await?;
    let info = ConnectionAddr::Tcp(socket.ip().to_string(), socket.port())
        .into_connection_info()?
        .set_redis_settings(RedisConnectionInfo::default().set_skip_set_lib_name())
        .set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await
}

/// Whether a server's first answer means that it will not talk at all.
fn turns_away(error: &ServerError) -> bool {
    matches!(error.code(), "NOAUTH" | "DENIED" | "BUSY")
        || error.details().is_some_and(|words| words.contains("max number of clients"))
}

pub(super) fn unreachable(target: &Target, message: impl fmt::Display) -> FleetError {
    FleetError::Unreachable { node: target.address.clone(), message: message.to_string() }
}

pub(super) fn ambiguous(target: &Target, lost: &Lost) -> FleetError {
    FleetError::Ambiguous { node: target.address.clone(), message: lost.to_string() }
}

pub(super) fn rejected(target: &Target, error: &ServerError) -> FleetError {
    let message = error.details().unwrap_or_else(|| error.code());
    FleetError::Rejected {
        node: target.address.clone(),
        code: error.code().to_owned(),
        message: without_secrets(message, target),
    }
}

/// A server that does not know a command repeats what it was given, passwords as well and perhaps
/// cut short.
pub(super) fn without_secrets(message: &str, target: &Target) -> String {
    let message = message.split(", with args beginning with").next().unwrap_or_default();
    [&target.login, &target.replication]
        .into_iter()
        .flatten()
        .map(|credential| credential.reveal())
        .filter(|secret| !secret.is_empty())
        .fold(message.to_owned(), |message, secret| message.replace(secret, "***"))
}

/// What went wrong, in words that a person can use.
pub(super) fn words(error: &RedisError) -> String {
    if error.is_connection_refusal() {
        "connection refused".to_owned()
    } else if error.is_connection_dropped() {
        "the connection was closed".to_owned()
    } else if error.is_io_error() {
        error.to_string()
    } else if error.kind() == ErrorKind::Parse {
        "it does not speak Redis' protocol".to_owned()
    } else {
        format!("the connection failed: {}", error.category())
    }
}

pub(super) fn io_words(error: io::Error) -> String {
    words(&RedisError::from(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        let credential =
            |password: &str| Some(Arc::new(Credential::new(None, password.to_owned())));
        Target {
            address: "127.0.0.1:7001".parse().unwrap(),
            login: credential("hunter2"),
            replication: credential("s3cret"),
            fence: None,
        }
    }

    #[test]
    fn no_message_shows_a_secret() {
        for message in [
            "unknown command `CONFIG`, with args beginning with: `SET`, `masterauth`, `s3cr",
            "Invalid argument 's3cret' for CONFIG SET 'masterauth', nor 'hunter2'",
        ] {
            let shown = without_secrets(message, &target());
            assert!(!shown.contains("s3cr") && !shown.contains("hunter2"), "{shown}");
        }
        assert_eq!(without_secrets("Unknown node", &target()), "Unknown node");
    }

    #[test]
    fn a_client_is_named_by_id_and_address() {
        let name = ClientName::parse("id=14 addr=[::1]:52992 laddr=[::1]:17100 fd=14 name= age=0");
        let expected = ClientName { id: "14".to_owned(), address: "[::1]:52992".to_owned() };
        assert_eq!(name, Some(expected));
        assert_eq!(ClientName::parse("PONG"), None);
    }
}
