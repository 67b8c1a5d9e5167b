//! Slots on the move, as one server has it: what `CLUSTER SETSLOT` makes of them, and who is served
//! meanwhile or sent on.
//!
//! Up to Redis 7.0 nobody but the node itself knows that a slot is open, and nothing but a command
//! closes it. Valkey, from 8 on, tells its replicas, and follows the failovers of the other end.

use super::bus::Kind;
use super::keys::Change;
use super::server::Server;
use super::table::{Ms, Table};
use super::verbs::Refusal;
use crate::domain::moving::talk::SlotState;
use crate::domain::node::{Address, Capabilities, ClusterNodeId, Version};
use crate::domain::slot::{SLOTS, SlotSet};

impl Server {
    pub fn set_slot(&mut self, slot: u16, state: &SlotState, now: Ms) -> Result<(), Refusal> {
        self.may_set_slot(slot, state)?;
        let was_mine = self.table.owner(slot) == Some(&self.table.my_id);
        let imported = self.table.importing.contains_key(&slot);
        if self.tracks_open_slots() {
            self.write(Change::SetSlot(slot, state.clone()));
        } else {
            self.turn_slot(slot, state);
        }
        if let SlotState::Node(owner) = state {
            let mine = *owner == self.table.my_id;
            if mine && imported {
                self.announce_slots(now);
            }
            let migrates = self.settings.is_on("cluster-allow-replica-migration");
            if was_mine && !mine && migrates && self.table.me.slots.is_empty() && self.since_7_0() {
                self.become_replica_of(owner);
            }
        }
        self.judge_state(now);
        Ok(())
    }

    /// In one transaction, which goes on after an error.
    pub fn take_together(
        &mut self,
        slots: &[u16],
        itself: &ClusterNodeId,
        now: Ms,
    ) -> Result<(), Refusal> {
        self.table.bump_epoch();
        let (own, mut said) = (SlotState::Node(itself.clone()), Ok(()));
        for (n, &slot) in slots.iter().enumerate() {
            if n + 1 < slots.len() {
                said = said.and(self.set_slot(slot, &SlotState::Stable, now));
            }
            said = said.and(self.set_slot(slot, &own, now));
        }
        said
    }

    fn may_set_slot(&self, slot: u16, state: &SlotState) -> Result<(), Refusal> {
        if !self.clustered {
            return Err(Refusal::err("This instance has cluster support disabled"));
        }
        if self.is_replica() {
            return Err(Refusal::err("Please use SETSLOT only with masters."));
        }
        if slot >= SLOTS {
            return Err(Refusal::err("Invalid or out of range slot"));
        }
        let mine = self.table.owner(slot) == Some(&self.table.my_id);
        let (other, unknown) = match state {
            SlotState::Importing(_) if mine => {
                return Err(Refusal::err(format!("I'm already the owner of hash slot {slot}")));
            }
            SlotState::Migrating(_) if !mine => {
                return Err(Refusal::err(format!("I'm not the owner of hash slot {slot}")));
            }
            SlotState::Importing(other) | SlotState::Migrating(other) => {
                (other, "I don't know about node")
            }
            SlotState::Node(owner) => (owner, "Unknown node"),
            SlotState::Stable => return Ok(()),
        };
        let Some(peer) = self.table.get(other) else {
            return Err(Refusal::err(format!("{unknown} {other}")));
        };
        let myself = *other == self.table.my_id;
        let settles = matches!(state, SlotState::Node(_));
        if myself && !settles && self.tracks_open_slots() {
            return Err(Refusal::err("Target node is myself"));
        }
        if peer.replica && self.since_7_0() {
            return Err(Refusal::err("Target node is not a master"));
        }
        if settles && mine && !myself && self.keys.contains_key(&slot) {
            return Err(Refusal::err(format!(
                "Can't assign hashslot {slot} to a different node while I still hold keys for this \
                 hash slot."
            )));
        }
        Ok(())
    }

    /// What a command, or a primary's word for it, makes of a slot.
    pub fn turn_slot(&mut self, slot: u16, state: &SlotState) {
        let empty = !self.keys.contains_key(&slot);
        let table = &mut self.table;
        match state {
            SlotState::Importing(from) => {
                table.importing.insert(slot, from.clone());
            }
            SlotState::Migrating(to) => {
                table.migrating.insert(slot, to.clone());
            }
            SlotState::Node(owner) => {
                if empty {
                    table.migrating.remove(&slot);
                }
                table.assign(slot, owner);
                if table.shard_head().0 == owner {
                    table.importing.remove(&slot);
                }
            }
            SlotState::Stable => {
                table.importing.remove(&slot);
                table.migrating.remove(&slot);
            }
        }
    }

    /// Says to everybody what it owns, with an epoch that nobody voted for.
    pub fn announce_slots(&mut self, now: Ms) {
        self.table.bump_epoch();
        self.judge_state(now);
        self.tell_all(&Kind::Pong, now);
    }

    /// Whether a client that asks for a key is served here; in which words it is sent on if not.
    pub fn serves(&self, slot: u16, key: &str, asking: bool) -> Result<(), Refusal> {
        let owner = self.owner_up(slot)?;
        if *owner == self.table.my_id {
            return match self.table.migrating.get(&slot) {
                Some(to) if self.value(key).is_none() => Err(self.send_on("ASK", slot, to)),
                Some(_) | None => Ok(()),
            };
        }
        if asking && !self.is_replica() && self.table.importing.contains_key(&slot) {
            return Ok(());
        }
        Err(self.send_on("MOVED", slot, owner))
    }

    /// Whether it gives keys of a slot away: that works at either end of an open one.
    pub fn hands_out(&self, slot: u16) -> Result<(), Refusal> {
        let owner = self.owner_up(slot)?;
        if *owner == self.table.my_id || self.table.importing.contains_key(&slot) {
            return Ok(());
        }
        Err(self.send_on("MOVED", slot, owner))
    }

    fn owner_up(&self, slot: u16) -> Result<&ClusterNodeId, Refusal> {
        let down = |why| Refusal::new("CLUSTERDOWN", why);
        let owner = self.table.owner(slot).ok_or_else(|| down("Hash slot not served"))?;
        if self.table.state_ok { Ok(owner) } else { Err(down("The cluster is down")) }
    }

    fn send_on(&self, word: &str, slot: u16, to: &ClusterNodeId) -> Refusal {
        let address = self.table.get(to).and_then(|peer| peer.address.as_ref());
        let address = address.map_or_else(|| "?".to_owned(), Address::to_string);
        Refusal::new(word, format!("{slot} {address}"))
    }

    /// Whether its replicas know which slots are open, and both ends follow failovers.
    pub fn tracks_open_slots(&self) -> bool {
        Capabilities::of(self.flavor, self.version).tracks_open_slots
    }

    /// Whether it refuses to give slots to replicas, and follows at once whom it gives its last one.
    fn since_7_0(&self) -> bool {
        self.is_from(Version::new(7, 0, 0), Version::new(7, 2, 0))
    }

    /// What another's claim tells those that track open slots: who took over at the other end, and
    /// that a slot was given away. Comes before the claim itself.
    pub fn follow_open_slots(&mut self, sender: &ClusterNodeId, epoch: u64, claimed: &SlotSet) {
        if !self.tracks_open_slots() {
            return;
        }
        let primary = !self.is_replica();
        let table = &mut self.table;
        let ours = table.share_shard(sender, &table.my_id);
        for (slot, to) in table.migrating.clone() {
            let peer = table.get(&to);
            let outdated = peer.is_some_and(|peer| peer.replica || peer.epoch < epoch);
            if claimed.contains(slot) {
                if table.yields(slot, sender, epoch) && !ours {
                    table.migrating.remove(&slot);
                }
            } else if to != *sender && outdated && table.share_shard(sender, &to) {
                table.migrating.insert(slot, sender.clone());
            }
        }
        for (slot, from) in table.importing.clone() {
            if claimed.contains(slot) {
                if from != *sender && table.yields(slot, sender, epoch) {
                    table.importing.remove(&slot);
                    if table.share_shard(sender, &from) {
                        table.importing.insert(slot, sender.clone());
                    }
                }
            } else if primary && from == *sender {
                table.importing.remove(&slot);
                if table.owner(slot) != Some(&table.my_id) {
                    let mine = table.my_id.clone();
                    table.assign(slot, &mine);
                    table.bump_epoch();
                }
            }
        }
    }
}

impl Table {
    pub fn assign(&mut self, slot: u16, owner: &ClusterNodeId) {
        let one: SlotSet = [slot].into_iter().collect();
        let before = self.owner(slot).cloned();
        if let Some(before) = before.and_then(|id| self.get_mut(&id)) {
            before.slots = before.slots.difference(&one);
        }
        if let Some(peer) = self.get_mut(owner) {
            peer.slots = peer.slots.union(&one);
        }
    }

    /// Whether a slot would go to who claims it.
    fn yields(&self, slot: u16, claimer: &ClusterNodeId, epoch: u64) -> bool {
        self.owner(slot).is_none_or(|owner| {
            owner != claimer && self.get(owner).is_none_or(|peer| peer.epoch < epoch)
        })
    }

    pub fn share_shard(&self, one: &ClusterNodeId, other: &ClusterNodeId) -> bool {
        let of = |id| self.get(id).map(|peer| &peer.shard).filter(|shard| !shard.is_empty());
        one == other || of(one).is_some_and(|shard| of(other) == Some(shard))
    }
}
