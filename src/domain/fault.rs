//! What went wrong on a node, and whether to try again.
//!
//! Source of the error words: `redis/redis` 7.0 and the Redis Cluster specification; reference
//! codes E501 to E506 are Reeve's own, each with a page under `/errors`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::node::Address;

/// A failed command, as plans and problems show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fault {
    /// The error's first word as the server said it (`CLUSTERDOWN`), or Reeve's own word
    /// (`unreachable`, `no_reply`).
    pub code: String,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Address>,
}

/// Whether the same command may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// After a while, at most as often as the policy says.
    Later,
    /// It would fail again: somebody must change something first.
    Never,
}

/// Nothing listens there, or the connection broke before the command was sent.
pub const UNREACHABLE: &str = "unreachable";
/// The command was sent and no reply came: it may have run, or may still run.
pub const NO_REPLY: &str = "no_reply";

/// The node at the address is not the one that was meant; nothing was sent to it.
pub const ANOTHER_NODE: &str = "another_node";

/// Somebody else is primary now than when it was looked.
pub const ROLE_CHANGED: &str = "role_changed";

/// A slot has moved although its old owner still holds keys of it.
pub const KEYS_LEFT_BEHIND: &str = "keys_left_behind";

/// A server gave up moving slots as a whole.
pub const SLOT_JOB_FAILED: &str = "slot_job_failed";

/// A node has no memory left for keys that are to move there.
pub const TARGET_FULL: &str = "target_full";

impl Fault {
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>, node: &Address) -> Self {
        Self { code: code.to_owned(), message: message.into(), node: Some(node.clone()) }
    }

    #[must_use]
    pub fn retry(&self) -> Retry {
        match self.code.as_str() {
            UNREACHABLE | NO_REPLY | ANOTHER_NODE | ROLE_CHANGED | SLOT_JOB_FAILED
            | TARGET_FULL | "FENCED" | "CLUSTERDOWN" | "MOVED" | "ASK" | "TRYAGAIN" | "LOADING"
            | "BUSY" | "MASTERDOWN" | "NOREPLICAS" | "NOMASTERLINK" | "INPROG" | "NOGOODSLAVE"
            | "NOQUORUM" => Retry::Later,
            _ => Retry::Never,
        }
    }

    /// The reference code of the errors that have one.
    #[must_use]
    pub fn reference(&self) -> Option<&'static str> {
        Some(match self.code.as_str() {
            "CLUSTERDOWN" => "E501",
            "MOVED" => "E502",
            "ASK" => "E503",
            "CROSSSLOT" => "E504",
            "INPROG" | "NOTLEADER" => "E505",
            "READONLY" => "E506",
            _ => return None,
        })
    }

    /// What a person can do about it.
    #[must_use]
    pub fn recovery(&self) -> &'static str {
        match self.code.as_str() {
            UNREACHABLE => {
                "Check that the node runs and that Reeve's host may connect to it, then retry the plan."
            }
            NO_REPLY => {
                "The node took the command but did not answer. See whether it hangs (a long script, swapping, a stopped process), then retry the plan; what already happened is recognised."
            }
            ANOTHER_NODE => {
                "Another node answers at this address than the one that was looked at. Find out which process listens there, then retry the plan."
            }
            SLOT_JOB_FAILED => {
                "The slots are where they were. See what the message names (memory of the target, a failover, the link between the nodes), then retry the plan."
            }
            ROLE_CHANGED => "Retry the plan: it looks again who is primary.",
            KEYS_LEFT_BEHIND => {
                "Keys of a slot lie with a node that does not serve it any more, where no client reaches them. Look at them there (CLUSTER GETKEYSINSLOT); what is still needed has to be written to the new owner."
            }
            "CLUSTERDOWN" => {
                "Check that every primary runs and that all slots are covered (GET …/slots), then retry the plan."
            }
            "MOVED" => "The slot is on another node than expected. Retry the plan: it looks again.",
            "ASK" => "The slot is being moved. Retry the plan when the move is over.",
            "CROSSSLOT" => {
                "The keys of one command lie in different slots. Give them a common hash tag."
            }
            "READONLY" => {
                "The node is a replica now. Retry the plan: it looks again who is primary."
            }
            "NOAUTH" | "WRONGPASS" => {
                "Store the right password with POST /v1/credentials and name it in spec.credentials.admin."
            }
            "NOPERM" => {
                "Give the ACL user that Reeve logs in with the command that is named, then retry the plan."
            }
            "INPROG" => {
                "A Sentinel is at work on a failover already. See how it ends (GET …/endpoints); then ask again, or retry the plan."
            }
            "NOGOODSLAVE" => {
                "The Sentinel knows no replica that it would promote: see that replicas follow and are heard of by it (SENTINEL REPLICAS), then retry the plan."
            }
            "NOQUORUM" => {
                "Too few Sentinels are left to agree: bring them back, or take those out that are gone (remove_sentinel)."
            }
            "LOADING" => "The node loads its data. Retry the plan when it is done.",
            "MISCONF" => {
                "The node cannot write its snapshot. Free or mend its disk, then retry the plan."
            }
            "OOM" | TARGET_FULL => {
                "The node has no memory left under its maxmemory. Raise it or choose another node, then retry the plan."
            }
            "no_effect" => {
                "Compare what the node shows with what was asked for. Clients that go on writing to a node that leaves have to be pointed elsewhere; a setting has to be spelt as the server itself spells it (CONFIG GET). Then retry the plan."
            }
            _ => "Read the message, mend the cause on the node, then retry the plan.",
        }
    }
}
