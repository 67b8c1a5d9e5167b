//! One end of a move: what is said to it, and what its answers mean.

use std::time::Duration;

use crate::domain::fault::{Fault, ROLE_CHANGED};
use crate::domain::moving::talk::{Answer, Key, Lane, Saying};
use crate::domain::node::ClusterNodeId;
use crate::fleet::{Fleet, Talk, Target};

/// What is short is answered within this time, or the node hangs. Valkey has its replicas confirm
/// the state of a slot, for up to 2 s.
pub const SHORT: Duration = Duration::from_secs(4);

/// A node, as the cluster node that is meant.
#[derive(Debug, Clone)]
pub struct Side {
    pub target: Target,
    pub id: ClusterNodeId,
}

impl Side {
    pub async fn talk(
        &self,
        fleet: &dyn Fleet,
        lane: Lane,
        within: Duration,
        sayings: &[Saying],
    ) -> Result<Vec<Answer>, Fault> {
        let talk = Talk { target: &self.target, lane, identity: &self.id, within };
        Ok(fleet.converse(&talk, sayings).await?)
    }

    pub fn done(&self, answer: Answer) -> Result<(), Fault> {
        match answer {
            Answer::Done | Answer::Nothing => Ok(()),
            other => Err(self.unexpected(other)),
        }
    }

    /// A number; of what is not there, 0.
    pub fn number(&self, answer: Answer) -> Result<u64, Fault> {
        match answer {
            Answer::Number(number) => Ok(number),
            Answer::Nothing => Ok(0),
            other => Err(self.unexpected(other)),
        }
    }

    pub fn keys(&self, answer: Answer) -> Result<Vec<Key>, Fault> {
        match answer {
            Answer::Keys(keys) => Ok(keys),
            other => Err(self.unexpected(other)),
        }
    }

    pub fn text(&self, answer: Answer) -> Result<String, Fault> {
        match answer {
            Answer::Text(text) => Ok(text),
            Answer::Nothing => Ok(String::new()),
            other => Err(self.unexpected(other)),
        }
    }

    /// What a refusal means here. Another role, or another node where the slot went, is for the next
    /// look to sort out.
    pub fn unexpected(&self, answer: Answer) -> Fault {
        let node = &self.target.address;
        let Answer::Refused { code, message } = answer else {
            return Fault::new("unexpected_reply", format!("{answer:?}"), node);
        };
        // What the other end said to this one.
        let theirs = message.split_once("replied with error: ").map(|(_, theirs)| theirs);
        let (code, message) = match theirs.and_then(|t| t.split_once(' ')) {
            Some((code, _)) => (code.to_owned(), message),
            None => (code, message),
        };
        let moved_on = [
            "SETSLOT only with",
            "not the owner",
            "know about node",
            "Unknown node",
            "not a master",
        ];
        let other_role = code == "READONLY" || moved_on.iter().any(|words| message.contains(words));
        Fault::new(if other_role { ROLE_CHANGED } else { &code }, message, node)
    }
}
