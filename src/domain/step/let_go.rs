//! Has a primary let go of its part: it becomes a replica of the one that is to take over from it, which
//! has all that it ever took, since it takes no writes any more.
//!
//! So no two nodes ever take writes. If nobody goes on from here, Sentinels do: they hold a primary for
//! down that says it is a replica.

use serde::{Deserialize, Serialize};

use super::command::{Command, Verb};
use super::reset::unwritten;
use super::{Action, Check, StepKey, Wait, seen_or_wait};
use crate::domain::hazard::{Hazard, HazardKind};
use crate::domain::id::ShardId;
use crate::domain::node::Address;
use crate::domain::observation::{DeposedMark, Mark, MarkKind, Observation, Role, Sighting};
use crate::domain::view::follows;

/// The setting by which a primary refuses writes, and a number of replicas that nobody has.
pub const FENCE: (&str, &str) = ("min-replicas-to-write", "99");
/// How long it takes until Sentinels name the new primary.
const EXPECTED_MS: u64 = 1_500;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetGo {
    pub shard: ShardId,
    pub from: Address,
    pub to: Address,
}

impl Action for LetGo {
    fn key(&self) -> StepKey {
        format!("let_go:{}", self.from)
    }

    fn title(&self) -> String {
        format!("Have {} let go, with nothing that {} has not", self.from, self.to)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.from.clone(), self.to.clone()]
    }

    fn hazards(&self) -> Vec<Hazard> {
        vec![Hazard {
            id: format!("write_pause:{}", self.from),
            kind: HazardKind::WritePause,
            step: self.key(),
            why: format!(
                "writes are refused from when {} lets go until Sentinels name {} to clients",
                self.from, self.to
            ),
            expected_ms: Some(EXPECTED_MS),
        }]
    }

    fn check(&self, seen: &Observation) -> Check {
        let (to, from) = match (seen_or_wait(&self.to, seen), seen_or_wait(&self.from, seen)) {
            (Err(wait), _) | (_, Err(wait)) => return wait,
            (Ok(to), Ok(from)) => (to, from),
        };
        let wait = |why| Check::Waiting(Wait::for_gossip(&self.to, why));
        if to.role == Role::Primary || follows(from, Some(&self.to), seen) {
            return Check::Done;
        }
        if from.role != Role::Primary {
            return wait(format!("{} is no primary now", self.from));
        }
        let missing = from.replication.offset.saturating_sub(to.replication.offset);
        let fenced = from.settings.get(FENCE.0).is_some_and(|value| value == FENCE.1);
        if !follows(to, Some(&self.from), seen) || !to.replication.link_up {
            wait(format!("{} does not replicate from {}", self.to, self.from))
        } else if !fenced {
            wait(format!("{} still takes writes", self.from))
        } else if missing > 0 {
            wait(format!("{} is {missing} bytes behind {}", self.to, self.from))
        } else {
            Check::Ready
        }
    }

    fn effect(&self, world: &mut Observation) {
        let marks = self.marks(world);
        world.marks.extend(marks);
        let Some(Sighting::Seen(from)) = world.nodes.get_mut(&self.from) else { return };
        from.role = Role::Replica;
        from.replication.primary = Some(self.to.clone());
        from.replication.link_up = false;
    }

    fn commands(&self, _seen: &Observation) -> Vec<Command> {
        vec![Command::new(&self.from, Verb::ReplicaOf(self.to.clone()))]
    }

    fn marks(&self, seen: &Observation) -> Vec<Mark> {
        let deposed = deposed(&self.from, &self.to, self.shard, false, seen);
        deposed.into_iter().chain(unwritten(&self.from, seen)).collect()
    }
}

/// The mark that a node is no primary any more, unless it has it already.
pub(super) fn deposed(
    from: &Address,
    to: &Address,
    shard: ShardId,
    forced: bool,
    seen: &Observation,
) -> Option<Mark> {
    let link = seen.report(to).map(|r| &r.replication);
    let mark = DeposedMark {
        shard,
        successor: to.clone(),
        run_id: seen.report(from).map(|r| r.run_id.clone()).unwrap_or_default(),
        replid: link.map(|l| l.replid.clone()).unwrap_or_default(),
        offset: link.map_or(0, |l| l.offset),
        forced,
    };
    let has = seen.marks_on(from).filter_map(|m| m.what.deposed()).any(|m| m.successor == *to);
    (!has).then(|| Mark { node: from.clone(), what: MarkKind::Deposed(mark) })
}
