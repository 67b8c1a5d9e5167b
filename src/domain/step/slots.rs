//! Moves slots with their keys from one primary to another.
//!
//! It is bounded by time, not by slots: whoever performs it stops at a safe point, between slots,
//! and the next look shows the remainder.

use serde::{Deserialize, Serialize};

use super::command::{Command, ShownCommand};
use super::pressure::pressure;
use super::trim::trims;
use super::{Action, Check, StepKey, Wait, seen_or_wait};
use crate::domain::hazard::{Hazard, HazardKind};
use crate::domain::moving::BigKey;
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{
    ClusterView, Mark, MarkKind, Observation, OpenSlotsMark, Role, Sighting,
};
use crate::domain::slot::SlotSet;

/// For how long one `MIGRATE` may wait for the other node at a time, in milliseconds.
pub const MIGRATE_WITHIN_MS: u64 = 5000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveSlots {
    pub from: End,
    pub to: End,
    pub slots: SlotSet,
    pub how: MoveMethod,
    /// How long clients of either node may wait because of it, in milliseconds; keys that are big
    /// excepted.
    pub max_latency_ms: u64,
    /// Keys that are known to stall their node for longer.
    pub big: Vec<BigKey>,
}

/// A node at one end of a move, as the cluster node that is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub address: Address,
    pub id: ClusterNodeId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoveMethod {
    /// Reeve opens each slot, has its keys migrated, and closes it.
    Keys,
    /// The source moves the slots as a whole (Valkey 9).
    Atomic,
    /// The target moves the slots as a whole (Redis 8.4).
    Import,
}

impl MoveSlots {
    /// Whether the target may take the slots of a chunk in one go, see [`crate::domain::moving::closing`].
    #[must_use]
    pub fn together(&self, seen: &Observation) -> bool {
        let slots = |end| self.view_of(end, seen).map(ClusterView::my_slots).unwrap_or_default();
        let gives_all = slots(&self.from).difference(&self.slots).is_empty();
        let all_to_a_new_one = gives_all && slots(&self.to).is_empty();
        let report = seen.report(&self.to.address);
        report.is_some_and(|r| !r.capabilities().tracks_open_slots) && !all_to_a_new_one
    }

    /// Those of its slots that are not yet done: `from` still has them, or either end shows them
    /// as half-way.
    #[must_use]
    pub fn left(&self, seen: &Observation) -> SlotSet {
        let (from, to) = (self.view_of(&self.from, seen), self.view_of(&self.to, seen));
        let held = from.map(|v| v.my_slots().intersection(&self.slots)).unwrap_or_default();
        let left = held.union(&self.open(seen));
        match to {
            Some(view) => left.union(&self.slots.difference(&view.my_slots())),
            None => self.slots.clone(),
        }
    }

    /// Those of its slots that either end shows as half-way.
    fn open(&self, seen: &Observation) -> SlotSet {
        let views = [&self.from, &self.to].into_iter().filter_map(|end| self.view_of(end, seen));
        let open = views.flat_map(|view| &view.open).map(|open| open.slot);
        open.filter(|slot| self.slots.contains(*slot)).collect()
    }

    fn view_of<'a>(&self, end: &End, seen: &'a Observation) -> Option<&'a ClusterView> {
        seen.view(&end.address).filter(|v| v.my_id == end.id)
    }
}

impl Action for MoveSlots {
    fn key(&self) -> StepKey {
        format!("move_slots:{}:{}", self.from.address, self.to.address)
    }

    fn title(&self) -> String {
        let (from, to) = (&self.from.address, &self.to.address);
        match self.slots.count() {
            1 => format!("Move slot {} from {from} to {to}", self.slots),
            n => format!("Move {n} slots from {from} to {to}"),
        }
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.from.address.clone(), self.to.address.clone()]
    }

    fn hazards(&self) -> Vec<Hazard> {
        let hazard = |big: &BigKey| Hazard {
            id: format!("stall:{}:{}", big.slot, big.key),
            kind: HazardKind::WritePause,
            step: self.key(),
            why: format!(
                "key {} in slot {} takes {} bytes: while it moves, {} answers nobody",
                big.key, big.slot, big.bytes, self.from.address
            ),
            expected_ms: Some(big.expected_ms),
        };
        self.big.iter().map(hazard).collect()
    }

    fn check(&self, seen: &Observation) -> Check {
        for end in [&self.from, &self.to] {
            if let Err(wait) = seen_or_wait(&end.address, seen) {
                return wait;
            }
        }
        if self.left(seen).is_empty() {
            return Check::Done;
        }
        // After an election, or a restart under another identity, another step takes its place.
        for end in [&self.from, &self.to] {
            let meant = |v: &ClusterView| v.me().is_some_and(|me| me.role == Role::Primary);
            if !self.view_of(end, seen).is_some_and(meant) {
                let why = format!("{} is not the primary any more that it was", end.address);
                return Check::Waiting(Wait::for_gossip(&end.address, why));
            }
        }
        let knows = |a: &End, b: &End| {
            self.view_of(a, seen).is_some_and(|v| v.peers.get(&b.id).is_some_and(|p| !p.handshake))
        };
        for (one, other) in [(&self.from, &self.to), (&self.to, &self.from)] {
            if !knows(one, other) {
                let why = format!("{} does not know {} yet", one.address, other.address);
                return Check::Waiting(Wait::for_gossip(&one.address, why));
            }
        }
        // Where a slot has no owner it is the target that has not heard of a failover, and is told;
        // but one that has just joined has only not heard of all owners yet.
        for end in [&self.from, &self.to] {
            let owned = |v: &ClusterView| {
                v.peers.values().fold(SlotSet::empty(), |all, p| all.union(&p.slots))
            };
            let new = |v: &ClusterView| v.my_slots().is_empty() && v.open.is_empty();
            let down = |v: &ClusterView| !v.state_ok && (new(v) || owned(v) == SlotSet::all());
            if self.view_of(end, seen).is_some_and(down) {
                let why =
                    format!("the cluster is down as {} sees it: keys are refused", end.address);
                return Check::Waiting(Wait::for_gossip(&end.address, why));
            }
        }
        // The epoch by which others will believe the target is one above all that it knows: one that
        // has just joined would get one that is too small, lose the slots again and drop their keys.
        let epochs = |v: &ClusterView| {
            v.peers.values().map(|p| p.epoch).fold(v.current_epoch.max(v.my_epoch), u64::max)
        };
        let top = seen.nodes.keys().filter_map(|a| seen.view(a)).map(epochs).max();
        if self.view_of(&self.to, seen).map(epochs) < top {
            let why = format!("{} does not know the cluster's epoch yet", self.to.address);
            return Check::Waiting(Wait::for_gossip(&self.to.address, why));
        }
        // What is half-way is better brought to its end, however its target does.
        let fresh = !self.left(seen).difference(&self.open(seen)).is_empty();
        let trims = || [&self.from, &self.to].into_iter().find_map(|end| trims(&end.address, seen));
        let wait = pressure(&self.to, seen).or_else(trims).filter(|_| fresh);
        wait.map_or(Check::Ready, Check::Waiting)
    }

    fn effect(&self, world: &mut Observation) {
        let epochs = world.nodes.keys().filter_map(|a| world.view(a)).map(|v| v.current_epoch);
        let epoch = epochs.max().unwrap_or(0).saturating_add(1);
        let keys = |end: &End| world.report(&end.address).map_or(0, |r| r.keys);
        let owned = self.view_of(&self.from, world).map_or(0, |v| v.my_slots().count() as u64);
        let moved = self.slots.count() as u64;
        // As if keys lay evenly.
        let share = keys(&self.from) * moved.min(owned) / owned.max(1);
        for (address, sighting) in &mut world.nodes {
            let Sighting::Seen(report) = sighting else { continue };
            if *address == self.from.address {
                report.keys = report.keys.saturating_sub(share);
            } else if *address == self.to.address {
                report.keys = report.keys.saturating_add(share);
            }
            let Some(view) = &mut report.cluster else { continue };
            view.current_epoch = view.current_epoch.max(epoch);
            view.open.retain(|open| !self.slots.contains(open.slot));
            if view.my_id == self.to.id {
                view.my_epoch = epoch;
            }
            for (id, peer) in &mut view.peers {
                if *id == self.to.id {
                    peer.slots = peer.slots.union(&self.slots);
                    peer.epoch = epoch;
                } else {
                    peer.slots = peer.slots.difference(&self.slots);
                }
            }
        }
    }

    /// They depend on what is in the slots; `engine/mover` finds out as it goes.
    fn commands(&self, _seen: &Observation) -> Vec<Command> {
        vec![]
    }

    fn shown(&self, seen: &Observation) -> Vec<ShownCommand> {
        let (from, to) = (&self.from, &self.to);
        let slots = self.left(seen);
        let shown = |node: &Address, command: String| ShownCommand { node: node.clone(), command };
        let ranges = slots.ranges().iter().map(|r| format!("{} {}", r.first(), r.last()));
        let ranges = ranges.collect::<Vec<String>>().join(" ");
        match self.how {
            MoveMethod::Atomic => {
                let command = format!("CLUSTER MIGRATESLOTS SLOTSRANGE {ranges} NODE {}", to.id);
                return vec![shown(&from.address, command)];
            }
            MoveMethod::Import => {
                return vec![shown(&to.address, format!("CLUSTER MIGRATION IMPORT {ranges}"))];
            }
            MoveMethod::Keys => {}
        }
        let each = braces(&slots);
        let (host, port) = (to.address.host(), to.address.port());
        let everybody = seen.nodes.keys().filter(|a| **a != from.address && **a != to.address);
        let primaries = everybody
            .filter(|a| seen.report(a).is_some_and(|r| r.role == Role::Primary))
            .filter(|a| seen.view(a).is_some_and(|v| v.peers.contains_key(&to.id)));
        let told = [&from.address].into_iter().chain(primaries);
        let closed = format!("CLUSTER SETSLOT {each} NODE {}", to.id);
        let mut commands = vec![
            shown(&to.address, format!("CLUSTER SETSLOT {each} IMPORTING {}", from.id)),
            shown(&from.address, format!("CLUSTER SETSLOT {each} MIGRATING {}", to.id)),
            shown(&from.address, format!("CLUSTER GETKEYSINSLOT {each} 1000")),
            shown(
                &from.address,
                format!("MIGRATE {host} {port} \"\" 0 {MIGRATE_WITHIN_MS} REPLACE KEYS <its keys>"),
            ),
        ];
        // Of each chunk the last slot is not `STABLE` before: by it the others are told of all.
        let stable = format!("CLUSTER SETSLOT {each} STABLE");
        let together = ["MULTI", "CLUSTER BUMPEPOCH", &stable, &closed, "EXEC"];
        let taken = if self.together(seen) { &together[..] } else { &[closed.as_str()] };
        commands.extend(taken.iter().map(|command| shown(&to.address, (*command).to_owned())));
        commands.extend(told.map(|node| shown(node, closed.clone())));
        commands
    }

    fn marks(&self, seen: &Observation) -> Vec<Mark> {
        let slots = self.left(seen);
        let covered = |node: &Address| {
            let open = seen.marks_on(node).filter_map(|m| m.what.open_slots());
            let same = open.filter(|o| (&o.from, &o.to) == (&self.from.id, &self.to.id));
            same.fold(SlotSet::empty(), |all, o| all.union(&o.slots))
        };
        let mark = |end: &End| Mark {
            node: end.address.clone(),
            what: MarkKind::OpenSlots(OpenSlotsMark {
                slots: slots.clone(),
                from: self.from.id.clone(),
                to: self.to.id.clone(),
            }),
        };
        let lacking = |end: &&End| !slots.difference(&covered(&end.address)).is_empty();
        [&self.from, &self.to].into_iter().filter(lacking).map(mark).collect()
    }
}

/// Slots as a shell expands them.
fn braces(slots: &SlotSet) -> String {
    let ranges: Vec<String> = slots
        .ranges()
        .iter()
        .map(|r| match r.count() {
            1 => r.first().to_string(),
            _ => format!("{{{}..{}}}", r.first(), r.last()),
        })
        .collect();
    match ranges.as_slice() {
        [one] => one.clone(),
        several => format!("{{{}}}", several.join(",")),
    }
}
