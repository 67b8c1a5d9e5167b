//! What the target is told when slots become its own.
//!
//! A server that gets a slot which it imports takes a greater epoch, and tells every other node of all
//! its slots at once. For each of sixty slots that is sixty messages to every node of the cluster, each
//! of which compares all slots: on the six nodes of a test their clients waited for 8 ms each time. So
//! the target takes them together: one epoch, one announcement.
//!
//! Not always: Valkey, from 8 on, settles open slots by itself and has its replicas confirm each change.
//! A login may lack `MULTI`, without which the parts would be done one by one, and a part of them is
//! worse than none. And a node that loses all its slots to one that had none, by one announcement,
//! takes that one for its heir and follows it.

use super::talk::{Saying, SlotState};
use crate::domain::node::ClusterNodeId;

#[must_use]
pub fn sayings(slots: &[u16], target: &ClusterNodeId, together: bool) -> Vec<Saying> {
    let own = |&slot: &u16| Saying::SetSlot { slot, state: SlotState::Node(target.clone()) };
    if !together || slots.len() < 2 {
        return slots.iter().map(own).collect();
    }
    // Only for one that is imported are the others told: that one is the last.
    vec![Saying::TakeSlots { slots: slots.to_vec(), itself: target.clone() }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_taken_together_where_that_is_possible() {
        let id = ClusterNodeId("a".repeat(40));
        let own = |slot| Saying::SetSlot { slot, state: SlotState::Node(id.clone()) };
        let all = Saying::TakeSlots { slots: vec![3, 4], itself: id.clone() };
        assert_eq!(sayings(&[3, 4], &id, true), [all]);
        assert_eq!(sayings(&[3], &id, true), [own(3)]);
        assert_eq!(sayings(&[3, 4], &id, false), [own(3), own(4)]);
        assert_eq!(sayings(&[], &id, true), []);
    }
}
