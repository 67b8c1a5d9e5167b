//! The commands that change a node, as data: what a preview shows is what will be sent.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::node::{Address, Capabilities, ClusterNodeId, MovedBy};
use crate::domain::slot::SlotSet;

/// One command to one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub node: Address,
    pub verb: Verb,
}

/// What may be said to a node. There is no other way to change one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    ConfigSet {
        name: String,
        value: String,
    },
    ConfigRewrite,
    /// Sets `masteruser` and `masterauth` to the topology's replication credential, which only the
    /// adapter knows.
    SetReplicationLogin,
    SetConfigEpoch(u64),
    AddSlots(SlotSet),
    /// The adapter resolves the host first, since `CLUSTER MEET` takes IP literals only.
    Meet(Address),
    Replicate(ClusterNodeId),
    /// Strikes a node from the list of those that this one knows.
    Forget(ClusterNodeId),
    /// Makes a replica the primary of its shard. That it is taken says nothing of how it ends.
    Failover(FailoverMethod),
    /// Gives the node a greater epoch than all that it knows, unless it has the greatest.
    BumpEpoch,
    /// Has a server that moves slots as a whole give that up (Valkey 9, Redis 8.4).
    CancelSlotJobs,
    /// Asks the node who it is, on the connection on which the rest follows; what comes after is sent
    /// only if it is still this one. An address may have been given to another node since the look.
    Confirm(ClusterNodeId),
    FlushAll,
    FlushFunctions,
    /// Ends the connections of all clients. They come back, and find out who is who now.
    DropClients,
    ResetHard,
    /// Makes a node outside of clusters a replica; its name is resolved by the node.
    ReplicaOf(Address),
    /// Makes a replica outside of clusters a primary, with what it has.
    ReplicaOfNone,
    /// Has whoever writes wait for at most as long.
    PauseWrites {
        ms: u64,
    },
    Unpause,
    /// Has a Sentinel watch a primary. The adapter resolves the host first, since Sentinels take IP
    /// literals unless they are told otherwise.
    Watch {
        name: String,
        primary: Address,
        quorum: u16,
    },
    SetWatch {
        name: String,
        option: String,
        value: String,
    },
    /// Sets what a Sentinel logs in to the nodes of a deployment with, which only the adapter knows.
    SetWatchLogin(String),
    Unwatch(String),
    /// Has a Sentinel forget all that it knows of a deployment but who is its primary; it finds the
    /// replicas and the other Sentinels again.
    ResetWatch(String),
    /// Has a Sentinel make a replica the primary, without asking the others.
    FailOverWatch(String),
    FlushSentinelConfig,
}

/// How a replica is made primary of its shard.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    Default,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum FailoverMethod {
    /// The primary pauses writes until the replica has them all; nothing is lost.
    #[default]
    Graceful,
    /// The replica does not ask its primary; a majority of the primaries votes.
    Force,
    /// Nobody is asked.
    Takeover,
}

/// A command as a preview shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShownCommand {
    pub node: Address,
    /// As one would type it after `redis-cli`; secrets are `***`.
    pub command: String,
}

impl Command {
    #[must_use]
    pub fn new(node: &Address, verb: Verb) -> Self {
        Self { node: node.clone(), verb }
    }

    #[must_use]
    pub fn shown(&self, capabilities: Capabilities) -> ShownCommand {
        ShownCommand { node: self.node.clone(), command: self.verb.shown(capabilities) }
    }
}

impl Verb {
    /// The words to send, but for what only the adapter knows: the login and resolved addresses.
    #[must_use]
    pub fn words(&self, capabilities: Capabilities) -> Vec<String> {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        match self {
            Self::ConfigSet { name, value } => {
                vec!["CONFIG".into(), "SET".into(), name.clone(), value.clone()]
            }
            Self::ConfigRewrite => words("CONFIG REWRITE"),
            Self::SetReplicationLogin => words("CONFIG SET masteruser *** masterauth ***"),
            Self::SetConfigEpoch(epoch) => words(&format!("CLUSTER SET-CONFIG-EPOCH {epoch}")),
            Self::AddSlots(slots) if capabilities.slot_ranges => {
                let bounds = slots.ranges().iter().flat_map(|r| [r.first(), r.last()]);
                words("CLUSTER ADDSLOTSRANGE")
                    .into_iter()
                    .chain(bounds.map(|s| s.to_string()))
                    .collect()
            }
            Self::AddSlots(slots) => words("CLUSTER ADDSLOTS")
                .into_iter()
                .chain(slots.iter().map(|s| s.to_string()))
                .collect(),
            Self::Meet(to) => words(&format!("CLUSTER MEET {} {}", to.host(), to.port())),
            Self::Replicate(primary) => words(&format!("CLUSTER REPLICATE {primary}")),
            Self::Forget(id) => words(&format!("CLUSTER FORGET {id}")),
            Self::Failover(FailoverMethod::Graceful) => words("CLUSTER FAILOVER"),
            Self::Failover(FailoverMethod::Force) => words("CLUSTER FAILOVER FORCE"),
            Self::Failover(FailoverMethod::Takeover) => words("CLUSTER FAILOVER TAKEOVER"),
            Self::BumpEpoch => words("CLUSTER BUMPEPOCH"),
            Self::CancelSlotJobs => words(match capabilities.atomic_slots {
                Some(MovedBy::Target) => "CLUSTER MIGRATION CANCEL ALL",
                Some(MovedBy::Source) | None => "CLUSTER CANCELSLOTMIGRATIONS",
            }),
            Self::Confirm(_) => words("CLUSTER MYID"),
            // What frees the memory must not block the node.
            Self::FlushAll => words("FLUSHALL ASYNC"),
            Self::FlushFunctions => words("FUNCTION FLUSH ASYNC"),
            Self::DropClients => words("CLIENT KILL TYPE normal"),
            Self::ReplicaOf(to) => words(&format!("REPLICAOF {} {}", to.host(), to.port())),
            Self::ReplicaOfNone => words("REPLICAOF NO ONE"),
            Self::PauseWrites { ms } => words(&format!("CLIENT PAUSE {ms} WRITE")),
            Self::Unpause => words("CLIENT UNPAUSE"),
            Self::ResetHard => words("CLUSTER RESET HARD"),
            Self::Watch { name, primary, quorum } => {
                let (host, port) = (primary.host(), primary.port());
                words(&format!("SENTINEL MONITOR {name} {host} {port} {quorum}"))
            }
            Self::SetWatch { name, option, value } => {
                words(&format!("SENTINEL SET {name} {option} {value}"))
            }
            Self::SetWatchLogin(name) => {
                words(&format!("SENTINEL SET {name} auth-user *** auth-pass ***"))
            }
            Self::Unwatch(name) => words(&format!("SENTINEL REMOVE {name}")),
            Self::ResetWatch(name) => words(&format!("SENTINEL RESET {name}")),
            Self::FailOverWatch(name) => words(&format!("SENTINEL FAILOVER {name}")),
            Self::FlushSentinelConfig => words("SENTINEL FLUSHCONFIG"),
        }
    }

    /// The same on one line; slots that have to be named one by one are written as a shell expands
    /// them.
    #[must_use]
    pub fn shown(&self, capabilities: Capabilities) -> String {
        match self {
            Self::AddSlots(slots) if !capabilities.slot_ranges => {
                let ranges =
                    slots.ranges().iter().map(|r| format!("{{{}..{}}}", r.first(), r.last()));
                format!("CLUSTER ADDSLOTS {}", ranges.collect::<Vec<_>>().join(" "))
            }
            Self::ConfigSet { name, value } if value.is_empty() || value.contains(' ') => {
                format!("CONFIG SET {name} \"{value}\"")
            }
            Self::ConfigSet { .. }
            | Self::ConfigRewrite
            | Self::SetReplicationLogin
            | Self::SetConfigEpoch(_)
            | Self::AddSlots(_)
            | Self::Meet(_)
            | Self::Replicate(_)
            | Self::Forget(_)
            | Self::Failover(_)
            | Self::BumpEpoch
            | Self::CancelSlotJobs
            | Self::Confirm(_)
            | Self::FlushAll
            | Self::FlushFunctions
            | Self::DropClients
            | Self::ReplicaOf(_)
            | Self::ReplicaOfNone
            | Self::PauseWrites { .. }
            | Self::Unpause
            | Self::ResetHard
            | Self::Watch { .. }
            | Self::SetWatch { .. }
            | Self::SetWatchLogin(_)
            | Self::Unwatch(_)
            | Self::ResetWatch(_)
            | Self::FailOverWatch(_)
            | Self::FlushSentinelConfig => self.words(capabilities).join(" "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::node::{Flavor, Version};

    #[test]
    fn slots_are_given_as_the_version_can_take_them() {
        let verb = Verb::AddSlots("0-2,7".parse().unwrap());
        let v7 = Capabilities::of(Flavor::Redis, Version::new(7, 0, 0));
        let v6 = Capabilities::of(Flavor::Redis, Version::new(6, 2, 0));
        assert_eq!(verb.words(v7).join(" "), "CLUSTER ADDSLOTSRANGE 0 2 7 7");
        assert_eq!(verb.words(v6).join(" "), "CLUSTER ADDSLOTS 0 1 2 7");
        assert_eq!(verb.shown(v6), "CLUSTER ADDSLOTS {0..2} {7..7}");
    }
}
