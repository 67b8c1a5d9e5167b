//! What the target is told when slots become its own.
//!
//! A server that gets a slot which it imports takes a greater epoch, and tells every other node of all
//! its slots at once. For each of sixty slots that is sixty messages to every node of the cluster, each
//! of which walks through all slots: on the six nodes of a test their clients waited for 8 ms each
//! time. So it is told to take the greater epoch once and before anything else, most slots become its
//! own without having been imported at that moment, and only the last one has it tell the others.
//!
//! Valkey, from 8 on, settles open slots by itself and has its replicas confirm each change: it is
//! told each slot as it is.

use super::talk::{Saying, SlotState};
use crate::domain::node::ClusterNodeId;
use crate::domain::step::command::Verb;

/// In batches: each may go out only when all of the one before it is done, since a claim without the
/// greater epoch loses against the source's, and the keys go with it.
#[must_use]
pub fn batches(slots: &[u16], target: &ClusterNodeId, tracks_open_slots: bool) -> Vec<Vec<Saying>> {
    let own = |&slot: &u16| Saying::SetSlot { slot, state: SlotState::Node(target.clone()) };
    let Some((last, rest)) = slots.split_last().filter(|(_, rest)| !rest.is_empty()) else {
        return vec![slots.iter().map(own).collect()];
    };
    if tracks_open_slots {
        return vec![slots.iter().map(own).collect()];
    }
    let quietly =
        |slot: &u16| [Saying::SetSlot { slot: *slot, state: SlotState::Stable }, own(slot)];
    let claims = rest.iter().flat_map(quietly).chain([own(last)]).collect();
    vec![vec![Saying::Command(Verb::BumpEpoch)], claims]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(slots: &[u16], tracks_open_slots: bool) -> Vec<Vec<String>> {
        let word = |saying: &Saying| match saying {
            Saying::SetSlot { slot, state: SlotState::Node(_) } => format!("node {slot}"),
            Saying::SetSlot { slot, state: SlotState::Stable } => format!("stable {slot}"),
            Saying::Command(Verb::BumpEpoch) => "bump".to_owned(),
            other => format!("{other:?}"),
        };
        let batches = batches(slots, &ClusterNodeId("a".repeat(40)), tracks_open_slots);
        batches.iter().map(|batch| batch.iter().map(word).collect()).collect()
    }

    #[test]
    fn the_greater_epoch_comes_first_and_the_others_are_told_once() {
        let claims = ["stable 3", "node 3", "stable 4", "node 4", "node 9"].map(str::to_owned);
        assert_eq!(said(&[3, 4, 9], false), [vec!["bump".to_owned()], claims.to_vec()]);
    }

    #[test]
    fn one_slot_and_slots_that_are_tracked_are_told_as_they_are() {
        assert_eq!(said(&[3], false), [["node 3"]]);
        assert_eq!(said(&[3, 4], true), [["node 3", "node 4"]]);
    }
}
