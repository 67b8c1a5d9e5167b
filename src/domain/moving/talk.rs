//! What is said to a node while slots move or a shard is handed over, and what it answers. Several of
//! these go out in one batch, and each has its answer.

use std::fmt;

use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{Replication, Role};
use crate::domain::slot::SlotSet;
use crate::domain::step::command::Verb;

/// A key's name, which may be any bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub Vec<u8>);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&byte| match byte {
            b'\\' => f.write_str("\\\\"),
            b' '..=b'~' => write!(f, "{}", char::from(byte)),
            _ => write!(f, "\\x{byte:02x}"),
        })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The connections to one node that a move uses. A server answers each in order, so what must not
/// wait behind a long `MIGRATE` has a connection of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Slot states, and whatever is short.
    Control,
    /// Keys.
    Bulk,
    /// Pings that show how long clients wait.
    Probe,
}

/// One thing to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saying {
    /// `CLUSTER SETSLOT`.
    SetSlot { slot: u16, state: SlotState },
    /// `MULTI` and `EXEC` with nothing between them: whether the login may do that.
    TryTransaction,
    /// All at once (`MULTI`): the node takes a greater epoch and these slots, which it imports, and has
    /// the others told with the last of them.
    TakeSlots { slots: Vec<u16>, itself: ClusterNodeId },
    /// `CLUSTER COUNTKEYSINSLOT`: a number.
    CountKeys { slot: u16 },
    /// `CLUSTER GETKEYSINSLOT`: keys.
    ListKeys { slot: u16, at_most: u32 },
    /// `MEMORY USAGE`, from five elements of the key: a number of bytes, or nothing where it is gone.
    Size { key: Key },
    /// `TYPE`: a text, or nothing where the key is gone.
    TypeOf { key: Key },
    /// `MIGRATE … REPLACE … KEYS …` with the topology's login; the keys are of one slot. Nothing
    /// where none of the keys was there.
    Migrate { to: Address, keys: Vec<Key>, within_ms: u64 },
    /// `PING`.
    Ping,
    /// `PUBSUB NUMSUB`: a number.
    CountListeners { channel: String },
    /// `FUNCTION DUMP`: bytes.
    DumpFunctions,
    /// `FUNCTION RESTORE … REPLACE`, of what another node dumped.
    RestoreFunctions(Vec<u8>),
    /// `FUNCTION DELETE`, of a library.
    DeleteLibrary(String),
    /// `CLUSTER MIGRATESLOTS` (Valkey 9): the server moves the slots by itself, as one job.
    MigrateSlots { slots: SlotSet, to: ClusterNodeId },
    /// `CLUSTER GETSLOTMIGRATIONS` (Valkey 9): jobs.
    SlotJobs,
    /// `CLUSTER CANCELSLOTMIGRATIONS` (Valkey 9): all jobs in which this node gives slots away.
    CancelSlotJobs,
    /// `CLUSTER MIGRATION IMPORT` (Redis 8.4): the server takes the slots by itself, as one job.
    ImportSlots { slots: SlotSet },
    /// `CLUSTER MIGRATION STATUS ALL` (Redis 8.4): jobs.
    Imports,
    /// `CLUSTER MIGRATION CANCEL` (Redis 8.4) of the job of that name: how many that were.
    CancelImport { name: String },
    /// `INFO replication`: how it stands.
    Stand,
    /// A command that changes the node.
    Command(Verb),
}

/// What `CLUSTER SETSLOT` makes of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotState {
    /// The node takes it from another one.
    Importing(ClusterNodeId),
    /// The node gives it to another one.
    Migrating(ClusterNodeId),
    /// It is that node's.
    Node(ClusterNodeId),
    /// It is not moving any more.
    Stable,
}

/// What a node said to one saying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// What was asked for is not there.
    Nothing,
    Number(u64),
    Keys(Vec<Key>),
    Text(String),
    Bytes(Vec<u8>),
    Jobs(Vec<SlotJob>),
    Standing(Box<Standing>),
    /// An error; the code is its first word.
    Refused {
        code: String,
        message: String,
    },
}

/// How a node stands in replication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub role: Role,
    pub replication: Replication,
}

/// One job of the server's own (Valkey 9, Redis 8.4), on either side of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotJob {
    pub name: String,
    /// Whether this node gives the slots away.
    pub giving: bool,
    pub slots: SlotSet,
    /// The other node.
    pub other: Option<ClusterNodeId>,
    pub state: JobState,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    Running,
    Succeeded,
    /// Redis 8.4 tries such a job again, unless its target is told to cancel it.
    Failed,
    Cancelled,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_in_printable_ascii() {
        assert_eq!(Key(b"user:1\\ \xff\n".to_vec()).to_string(), r"user:1\\ \xff\x0a");
    }
}
