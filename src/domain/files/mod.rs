//! The files that the nodes of a topology are started with: a `redis.conf` for each data node, a
//! `sentinel.conf` for each Sentinel, made of the topology alone.
//!
//! - No file holds a secret. Each node reads its passwords from a `secrets.conf` of its own, which is
//!   made on the machine and described in the file that includes it.
//! - In replication and sentinel mode each data node boots as a replica of a sibling, by a
//!   `guard.conf` of its own. A primary that is started again without its data would otherwise have
//!   its replicas copy the emptiness. The guard is an include because `CONFIG REWRITE` leaves includes
//!   alone, while it takes `replicaof` out of the file of a node that was promoted; and a `replicaof`
//!   that it adds stands behind the include and wins, so a replica comes back to its real primary.
//! - What the spec's `settings` say goes before what is the default here.

mod compose;
mod conf;
mod data;
mod kubernetes;
mod sentinel;
mod software;
mod systemd;
#[cfg(test)]
mod tests;
mod yaml;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::compose::compose;
pub use self::kubernetes::kubernetes;
pub use self::software::Software;
pub use self::systemd::systemd;
use super::id::ShardId;
use super::node::Address;
use super::topology::{Layout, Topology};

/// A file, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ConfigFile)]
pub struct File {
    /// A name of its own among all files, with a folder for each node; the first lines of the file
    /// say where it belongs on the machine.
    pub path: String,
    /// The node that reads it; null for a file that is for all of them.
    pub node: Option<Address>,
    pub content: String,
}

/// What each data node gets of whatever runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    pub memory_mb: u64,
    pub disk_gb: u64,
    /// How long a server that ended stays down.
    pub restart_seconds: u64,
}

/// Where the process that reads a file has its things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The folder of the node's configuration, which the server may write to.
    pub config: String,
    /// The folder of its data.
    pub data: String,
    /// Whether it listens on all interfaces of its (own) network, as in a container.
    pub everywhere: bool,
    /// Whether `guard.conf` and `secrets.conf` are made by whoever starts it.
    pub prepared: bool,
}

impl Place {
    /// On a machine, where several nodes may be neighbours: told apart by their ports.
    #[must_use]
    pub fn machine(node: &Address) -> Self {
        let port = node.port();
        Self {
            config: format!("/etc/redis/{port}"),
            data: format!("/var/lib/redis/{port}"),
            everywhere: false,
            prepared: false,
        }
    }
}

/// The files of all nodes of a topology, spares included. `primaries` are those that are seen; where
/// nobody is, the first member stands for the primary.
#[must_use]
pub fn files(topology: &Topology, primaries: &BTreeMap<ShardId, Address>) -> Vec<File> {
    let mut files = Vec::new();
    for node in topology.spec.nodes() {
        let (node, place) = (&node.address, Place::machine(&node.address));
        files.push(file(node, "redis.conf", data::conf(topology, node, &place)));
        if let Some(sibling) = sibling(topology, node, primaries) {
            files.push(file(node, "guard.conf", data::guard(node, sibling, &place)));
        }
    }
    for node in topology.spec.sentinels() {
        let (node, place) = (&node.address, Place::machine(&node.address));
        let content = sentinel::conf(topology, node, primaries, &place);
        files.push(file(node, "sentinel.conf", content));
    }
    files
}

/// The `redis.conf` of one node that lives elsewhere than on a machine of its own.
#[must_use]
pub fn redis_conf(topology: &Topology, node: &Address, place: &Place) -> String {
    data::conf(topology, node, place)
}

/// The `sentinel.conf` of one Sentinel that lives elsewhere than on a machine of its own.
#[must_use]
pub fn sentinel_conf(topology: &Topology, node: &Address, place: &Place) -> String {
    sentinel::conf(topology, node, &BTreeMap::new(), place)
}

/// The folder of a node's files.
#[must_use]
pub fn folder(node: &Address) -> String {
    format!("{}-{}", node.host().replace(':', "-"), node.port())
}

/// The command of a container whose server, once it ended, stays down for so long.
fn patient(command: Vec<String>, data: &str, restart_seconds: u64) -> Vec<String> {
    if restart_seconds <= 1 {
        return command;
    }
    let began = format!("{data}/.began");
    let script = format!(
        "trap exit TERM; if [ -f {began} ]; then sleep {restart_seconds} & wait; fi; touch {began}; exec {}",
        command.join(" ")
    );
    ["sh", "-c", &script].map(str::to_owned).to_vec()
}

fn file(node: &Address, name: &str, content: String) -> File {
    File { path: format!("{}/{name}", folder(node)), node: Some(node.clone()), content }
}

/// Of whom a data node boots as a replica: of its shard's primary, or of the next member if it is
/// that itself. Nobody in cluster mode, where each node remembers its part, and for spares.
#[must_use]
pub fn sibling<'a>(
    topology: &'a Topology,
    node: &Address,
    primaries: &'a BTreeMap<ShardId, Address>,
) -> Option<&'a Address> {
    let shard = match &topology.layout {
        Layout::Replication { shard } | Layout::Sentinel { shard, .. } => shard,
        Layout::Cluster { .. } | Layout::Gone => return None,
    };
    if !shard.members.contains(node) {
        return None;
    }
    let primary = primaries.get(&shard.id).or(shard.members.first())?;
    if primary == node { shard.members.iter().find(|m| *m != node) } else { Some(primary) }
}
