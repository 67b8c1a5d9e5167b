//! The order in which slots move without losing anything, as rules for what is said to nodes.
//!
//! Known is only what was confirmed: a command counts as carried out when its answer said so, a slot
//! as empty when its source listed no key while it gave the slot away, and a look takes back what it
//! does not show any more. So a rule is broken where a mover relies on what nobody told it.

use std::collections::{BTreeMap, BTreeSet};

use reeve::domain::moving::talk::{Answer, Saying, SlotState};
use reeve::domain::node::{Address, ClusterNodeId};
use reeve::domain::observation::OpenSlot;
use reeve::domain::slot::{SlotSet, key_slot};

use super::record::{Entry, Sight};

type Place = (ClusterNodeId, u16);

/// Where a record breaks a rule.
pub fn broken(record: &[Entry]) -> Vec<String> {
    let mut known = Known::default();
    let mut broken = Vec::new();
    for entry in record {
        match entry {
            Entry::Said { at, to, sayings } => {
                known.places.insert(to.clone(), at.clone());
                let wrong = sayings.iter().filter_map(|saying| {
                    let why = known.said(to, saying).err()?;
                    Some(format!("{saying:?} to {to}: {why}"))
                });
                broken.extend(wrong.collect::<Vec<_>>());
                sayings.iter().for_each(|saying| known.may_have_run(to, saying));
            }
            Entry::Heard { to, heard } => {
                heard.iter().for_each(|(saying, answer)| known.heard(to, saying, answer));
            }
            Entry::Looked(sight) => broken.extend(known.looked(sight).err()),
        }
    }
    broken
}

/// What was confirmed so far.
#[derive(Default)]
struct Known {
    places: BTreeMap<ClusterNodeId, Address>,
    /// Who takes a slot from whom, and who gives it to whom.
    takes: BTreeMap<Place, ClusterNodeId>,
    gives: BTreeMap<Place, ClusterNodeId>,
    /// Where no key was listed under that.
    empty: BTreeSet<Place>,
    /// What each showed as its own, and what changed since.
    showed: BTreeMap<ClusterNodeId, SlotSet>,
    gained: BTreeSet<Place>,
    parted: BTreeSet<Place>,
    /// Who may own a slot by now, since it was told to.
    may_own: BTreeSet<Place>,
    /// Who got slots, and from whom.
    got: BTreeSet<(ClusterNodeId, ClusterNodeId)>,
}

impl Known {
    fn owns(&self, node: &ClusterNodeId, slot: u16) -> bool {
        let place = (node.clone(), slot);
        let showed = self.showed.get(node).is_some_and(|slots| slots.contains(slot));
        self.gained.contains(&place) || (showed && !self.parted.contains(&place))
    }

    fn gains(&mut self, place: Place) {
        self.parted.remove(&place);
        self.gained.insert(place);
    }

    fn parts_with(&mut self, place: Place) {
        self.gained.remove(&place);
        self.parted.insert(place);
    }

    /// Whether this may be said now.
    fn said(&self, to: &ClusterNodeId, saying: &Saying) -> Result<(), String> {
        match saying {
            Saying::SetSlot { slot, state: SlotState::Migrating(target) } => {
                let takes = self.takes.get(&(target.clone(), *slot)) == Some(to);
                ensure(takes, || format!("{target} does not take the slot yet"))
            }
            Saying::SetSlot { slot, state: SlotState::Node(owner) } if owner == to => {
                self.may_get(to, *slot)
            }
            Saying::TakeSlots { slots, .. } => {
                slots.iter().try_for_each(|slot| self.may_get(to, *slot))
            }
            Saying::SetSlot { slot, state: SlotState::Node(owner) } => {
                ensure(self.owns(owner, *slot), || {
                    format!("{owner} does not own the slot itself yet")
                })
            }
            Saying::Migrate { to: receiver, keys, .. } => {
                let slot = keys.first().map(|key| key_slot(&key.0)).ok_or("it has no keys")?;
                let target = self.gives.get(&(to.clone(), slot));
                let target = target.ok_or("it does not give the slot")?;
                let place = (target.clone(), slot);
                ensure(self.places.get(target) == Some(receiver), || {
                    "it gives it elsewhere".into()
                })?;
                let serves = self.owns(to, slot) && !self.may_own.contains(&place);
                ensure(serves, || format!("what it replaces at {target} may be newer"))?;
                let takes = self.takes.get(&place) == Some(to);
                ensure(takes, || format!("{target} does not take the slot"))
            }
            _ => Ok(()),
        }
    }

    /// Whether a node may be told that a slot is its own.
    fn may_get(&self, node: &ClusterNodeId, slot: u16) -> Result<(), String> {
        let place = (node.clone(), slot);
        if self.owns(node, slot) {
            return Ok(());
        }
        let source = self.takes.get(&place);
        let source = source.ok_or("it does not take the slot, and gets no epoch for it")?;
        let given = (source.clone(), slot);
        let gives = self.gives.get(&given) == Some(node);
        ensure(gives, || format!("{source} does not give the slot: new keys may come"))?;
        let empty = self.empty.contains(&given);
        ensure(empty, || format!("{source} would drop the keys that it has left"))
    }

    /// From now on it may have been done, whatever comes back.
    fn may_have_run(&mut self, to: &ClusterNodeId, saying: &Saying) {
        if let Saying::TakeSlots { slots, .. } = saying {
            self.may_own.extend(slots.iter().map(|slot| (to.clone(), *slot)));
        }
        if let Saying::SetSlot { slot, state: SlotState::Node(owner) } = saying
            && owner == to
        {
            self.may_own.insert((to.clone(), *slot));
        }
    }

    fn heard(&mut self, to: &ClusterNodeId, saying: &Saying, answer: &Answer) {
        match (saying, answer) {
            (Saying::SetSlot { slot, state }, Answer::Done) => self.turned(to, *slot, state),
            (Saying::TakeSlots { slots, .. }, Answer::Done) => {
                let own = SlotState::Node(to.clone());
                slots.iter().for_each(|slot| self.turned(to, *slot, &own));
            }
            (Saying::SetSlot { slot, .. }, Answer::Refused { message, .. })
                if message.contains("already the owner") =>
            {
                self.gains((to.clone(), *slot));
            }
            (Saying::ListKeys { slot, .. }, Answer::Keys(keys)) => {
                let place = (to.clone(), *slot);
                if keys.is_empty() && self.gives.contains_key(&place) {
                    self.empty.insert(place);
                } else {
                    self.empty.remove(&place);
                }
            }
            _ => {}
        }
    }

    fn turned(&mut self, node: &ClusterNodeId, slot: u16, state: &SlotState) {
        let place = (node.clone(), slot);
        match state {
            SlotState::Importing(from) => {
                self.may_own.remove(&place);
                self.takes.insert(place, from.clone());
            }
            SlotState::Migrating(to) => {
                self.empty.remove(&place);
                self.gives.insert(place, to.clone());
            }
            SlotState::Node(owner) if owner == node => {
                let from = self.takes.remove(&place);
                self.got.extend(from.map(|from| (node.clone(), from)));
                self.gains(place);
            }
            SlotState::Node(_) => {
                self.gives.remove(&place);
                self.empty.remove(&place);
                self.parts_with(place);
            }
            SlotState::Stable => {
                self.takes.remove(&place);
                self.gives.remove(&place);
                self.empty.remove(&place);
            }
        }
    }

    /// What is not shown is not so any more. Whoever got slots has a greater epoch than whoever had
    /// them, or all others go on to believe that one.
    fn looked(&mut self, sight: &Sight) -> Result<(), String> {
        let Sight { node, .. } = sight;
        self.places.insert(node.clone(), sight.at.clone());
        let shown = |(at, slot): &Place, other: &ClusterNodeId, giving| {
            let open = OpenSlot { slot: *slot, giving, other: other.clone() };
            at != node || (sight.primary && sight.open.contains(&open))
        };
        self.takes.retain(|place, from| shown(place, from, false));
        self.gives.retain(|place, to| shown(place, to, true));
        let gives = &self.gives;
        self.empty.retain(|place| gives.contains_key(place));
        self.gained.retain(|(at, _)| at != node);
        self.parted.retain(|(at, _)| at != node);
        let slots = if sight.primary { sight.slots.clone() } else { SlotSet::empty() };
        self.showed.insert(node.clone(), slots);
        let (judged, later) =
            std::mem::take(&mut self.got).into_iter().partition(|(to, _)| to == node);
        self.got = later;
        let judged: BTreeSet<_> = judged;
        for (_, from) in judged {
            let theirs = sight.epochs.get(&from).copied().unwrap_or(0);
            ensure(!sight.primary || sight.epoch > theirs, || {
                format!("{node} got slots from {from} with epoch {} against {theirs}", sight.epoch)
            })?;
        }
        Ok(())
    }
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}
