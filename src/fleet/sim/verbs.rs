//! What each command does on a simulated server, and in which words it refuses.

use super::failover::Manual;
use super::keys::Change;
use super::server::Server;
use super::table::{BLACKLIST_MS, Ms, Peer};
use crate::domain::fault::ANOTHER_NODE;
use crate::domain::node::{Address, ClusterNodeId, Version};
use crate::domain::slot::SlotSet;
use crate::domain::step::command::Verb;
use crate::fleet::Target;

/// An error as a server answers it: its first word and the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: String,
    pub message: String,
}

impl Refusal {
    pub(super) fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }

    pub(super) fn err(message: impl Into<String>) -> Self {
        Self::new("ERR", message)
    }
}

impl Server {
    pub fn execute(&mut self, verb: &Verb, target: &Target, now: Ms) -> Result<(), Refusal> {
        if self.sentinel.is_some() {
            return self.watch_over(verb, target, now);
        }
        match verb {
            Verb::ConfigSet { name, value } => self.settings.set(name, value),
            Verb::ConfigRewrite => {
                self.settings.rewrite()?;
                self.follows_by_file.clone_from(&self.follows);
                Ok(())
            }
            Verb::ReplicaOf(_) | Verb::ReplicaOfNone if self.clustered => {
                Err(Refusal::err("REPLICAOF not allowed in cluster mode."))
            }
            Verb::ReplicaOf(primary) => {
                self.replica_of(primary, now);
                Ok(())
            }
            Verb::ReplicaOfNone => {
                self.replica_of_none();
                Ok(())
            }
            Verb::PauseWrites { ms } => {
                self.paused_until = self.paused_until.max(now + ms);
                Ok(())
            }
            Verb::Unpause => {
                self.paused_until = 0;
                Ok(())
            }
            Verb::FlushFunctions => self.flush_functions(),
            Verb::DropClients => Ok(()),
            Verb::Confirm(id) if id.0 == self.run_id => Ok(()),
            Verb::Confirm(id) if !self.clustered => {
                let said = format!("it is {} and not {id}", self.run_id);
                Err(Refusal::new(ANOTHER_NODE, said))
            }
            Verb::SetReplicationLogin => {
                let Some(login) = &target.replication else {
                    let why = "the topology names no credential for replication";
                    return Err(Refusal::new("no_login", why));
                };
                self.settings.set("masteruser", login.username.as_deref().unwrap_or_default())?;
                self.settings.set("masterauth", login.reveal())
            }
            Verb::Watch { .. }
            | Verb::SetWatch { .. }
            | Verb::SetWatchLogin(_)
            | Verb::Unwatch(_)
            | Verb::ResetWatch(_)
            | Verb::FailOverWatch(_)
            | Verb::FlushSentinelConfig => self.watch_over(verb, target, now),
            Verb::FlushAll if self.is_replica() => {
                Err(Refusal::new("READONLY", "You can't write against a read only replica."))
            }
            Verb::FlushAll => {
                self.write(Change::Flush);
                Ok(())
            }
            Verb::SetConfigEpoch(_)
            | Verb::AddSlots(_)
            | Verb::Meet(_)
            | Verb::Replicate(_)
            | Verb::ResetHard
            | Verb::Forget(_)
            | Verb::Failover(_)
            | Verb::BumpEpoch
            | Verb::CancelSlotJobs
                if !self.clustered =>
            {
                Err(Refusal::err("This instance has cluster support disabled"))
            }
            Verb::SetConfigEpoch(epoch) => self.set_config_epoch(*epoch),
            Verb::AddSlots(slots) => self.add_slots(slots, now),
            Verb::Meet(other) => {
                self.meet(other, now);
                Ok(())
            }
            Verb::Replicate(primary) => self.replicate(primary),
            Verb::ResetHard => self.reset_hard(now),
            Verb::Forget(id) => self.forget(id, now),
            Verb::Failover(method) => self.fail_over(*method, now),
            Verb::BumpEpoch => {
                self.table.bump_epoch();
                Ok(())
            }
            Verb::CancelSlotJobs => Ok(()),
            Verb::Confirm(id) if *id == self.table.my_id => Ok(()),
            Verb::Confirm(id) => {
                let said = format!("it is {} and not {id}", self.table.my_id);
                Err(Refusal::new(ANOTHER_NODE, said))
            }
        }
    }

    fn set_config_epoch(&mut self, epoch: u64) -> Result<(), Refusal> {
        if !self.table.others.is_empty() {
            return Err(Refusal::err(
                "The user can assign a config epoch only when the node does not know any other node.",
            ));
        }
        if self.table.me.epoch != 0 {
            return Err(Refusal::err("Node config epoch is already non-zero"));
        }
        self.table.me.epoch = epoch;
        self.table.current_epoch = self.table.current_epoch.max(epoch);
        Ok(())
    }

    /// All or nothing.
    fn add_slots(&mut self, slots: &SlotSet, now: Ms) -> Result<(), Refusal> {
        let busy = self.table.assigned().intersection(slots);
        if let Some(slot) = busy.iter().next() {
            return Err(Refusal::err(format!("Slot {slot} is already busy")));
        }
        self.table.me.slots = self.table.me.slots.union(slots);
        self.table.importing.retain(|slot, _| !slots.contains(*slot));
        self.judge_state(now);
        Ok(())
    }

    /// Begins a handshake with whoever lives there, unless one is under way.
    fn meet(&mut self, other: &Address, now: Ms) {
        let shakes = |p: &Peer| p.handshake && p.address.as_ref() == Some(other);
        if self.table.others.values().any(shakes) {
            return;
        }
        let stranger = Peer {
            address: Some(other.clone()),
            handshake: true,
            meet: true,
            known_since: now,
            ..Peer::default()
        };
        let provisional = self.dice.id();
        self.table.others.insert(provisional, stranger);
    }

    fn replicate(&mut self, primary: &ClusterNodeId) -> Result<(), Refusal> {
        let Some(peer) = self.table.get(primary) else {
            return Err(Refusal::err(format!("Unknown node {primary}")));
        };
        if *primary == self.table.my_id {
            return Err(Refusal::err("Can't replicate myself"));
        }
        if peer.replica {
            return Err(Refusal::err("I can only replicate a master, not a replica."));
        }
        let full = !self.table.me.slots.is_empty() || self.key_count() > 0;
        if !self.is_replica() && full {
            return Err(Refusal::err(
                "To set a master the node must be empty and without assigned slots.",
            ));
        }
        // Also of the primary that it has: the link is made anew.
        self.become_replica_of(primary);
        Ok(())
    }

    fn reset_hard(&mut self, now: Ms) -> Result<(), Refusal> {
        if !self.is_replica() && self.key_count() > 0 {
            return Err(Refusal::err(
                "CLUSTER RESET can't be called with master nodes containing keys",
            ));
        }
        if self.is_replica() {
            let new = self.dice.hex();
            self.sync.promote(new);
            self.keys.clear();
            self.libraries.clear();
        }
        let shard = self.dice.hex();
        let table = &mut self.table;
        table.others.clear();
        table.migrating.clear();
        table.importing.clear();
        table.me = Peer { address: table.me.address.take(), shard, ..Peer::default() };
        (table.current_epoch, table.last_vote_epoch) = (0, 0);
        // An election is not forgotten.
        table.manual = Manual::Nothing;
        table.my_id = self.dice.id();
        self.judge_state(now);
        Ok(())
    }

    fn forget(&mut self, id: &ClusterNodeId, now: Ms) -> Result<(), Refusal> {
        let newer = self.is_from(Version::new(7, 2, 0), Version::new(7, 2, 0));
        if *id == self.table.my_id {
            return Err(Refusal::err("I tried hard but I can't forget myself..."));
        }
        if !self.table.others.contains_key(id) {
            // Later versions remember what they were told to forget.
            return if newer && self.table.is_blacklisted(id, now) {
                Ok(())
            } else {
                Err(Refusal::err(format!("Unknown node {id}")))
            };
        }
        if self.table.me.primary.as_ref() == Some(id) {
            return Err(Refusal::err("Can't forget my master!"));
        }
        self.table.blacklist.insert(id.clone(), now + BLACKLIST_MS);
        self.table.remove(id);
        self.judge_state(now);
        Ok(())
    }
}
