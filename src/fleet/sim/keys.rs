//! What a simulated server keeps: keys by slot, each with a value of which only a number and a size
//! are of interest; and the writes that change it, as they are replicated.

use std::collections::BTreeMap;

use super::server::Server;
use crate::domain::moving::talk::SlotState;
use crate::domain::node::Version;
use crate::domain::slot::{SlotSet, key_slot};

/// No slot that is listed is without keys.
pub(super) type Keys = BTreeMap<u16, BTreeMap<String, Value>>;

/// What a server needs by itself.
const BARE_BYTES: u64 = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Value {
    /// Which write of all it was.
    pub number: u64,
    pub bytes: u64,
}

/// A write, as it is replicated.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Put(String, Value),
    Del(Vec<String>),
    Drop(SlotSet),
    Flush,
    Load(BTreeMap<String, String>),
    Unload(String),
    UnloadAll,
    /// Valkey's, from 8 on.
    SetSlot(u16, SlotState),
}

impl Server {
    /// A write on a primary, or one that a replica is sent.
    pub fn write(&mut self, change: Change) {
        let bytes = match &change {
            Change::Put(key, value) => {
                let slot = self.keys.entry(key_slot(key.as_bytes())).or_default();
                slot.insert(key.clone(), *value);
                30 + key.len() as u64 + value.bytes
            }
            Change::Del(keys) => {
                for key in keys {
                    if let Some(slot) = self.keys.get_mut(&key_slot(key.as_bytes())) {
                        slot.remove(key);
                    }
                }
                self.keys.retain(|_, keys| !keys.is_empty());
                30 + keys.iter().map(|key| key.len() as u64).sum::<u64>()
            }
            Change::Drop(slots) => {
                self.keys.retain(|slot, _| !slots.contains(*slot));
                30
            }
            Change::Flush => {
                self.keys.clear();
                18
            }
            Change::Load(libraries) => {
                self.libraries.extend(libraries.clone());
                60 + libraries.values().map(|code| code.len() as u64).sum::<u64>()
            }
            Change::Unload(library) => {
                self.libraries.remove(library);
                40 + library.len() as u64
            }
            Change::UnloadAll => {
                self.libraries.clear();
                30
            }
            Change::SetSlot(slot, state) => {
                self.turn_slot(*slot, state);
                90
            }
        };
        if self.sync.counts {
            self.sync.offset += bytes;
        }
        self.changes.push(change);
    }

    /// Deletes the keys of slots that went to another node. Before 7.2 replicas are not told, and
    /// keep them.
    pub fn drop_keys(&mut self, slots: SlotSet) {
        if self.is_from(Version::new(7, 2, 0), Version::new(7, 2, 0)) {
            self.write(Change::Drop(slots));
        } else {
            self.keys.retain(|slot, _| !slots.contains(*slot));
        }
    }

    pub fn key_count(&self) -> usize {
        self.keys.values().map(BTreeMap::len).sum()
    }

    pub fn keys_in(&self, slot: u16) -> impl Iterator<Item = &String> {
        self.keys.get(&slot).into_iter().flat_map(BTreeMap::keys)
    }

    pub fn value(&self, key: &str) -> Option<Value> {
        self.keys.get(&key_slot(key.as_bytes()))?.get(key).copied()
    }

    pub fn used_bytes(&self) -> u64 {
        let sizes = self.keys.values().flat_map(BTreeMap::values).map(|value| value.bytes);
        BARE_BYTES + sizes.sum::<u64>()
    }

    /// Whether it takes no more for want of memory.
    pub fn is_full(&self) -> bool {
        let limit = self.settings.number("maxmemory");
        limit != 0 && self.used_bytes() > limit && !self.evicts()
    }

    pub fn evicts(&self) -> bool {
        self.settings.get("maxmemory-policy").is_some_and(|policy| policy != "noeviction")
    }
}
