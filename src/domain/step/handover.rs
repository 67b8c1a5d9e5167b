//! One node hands a lone shard over to another: without loss while it lives, by force when not.
//!
//! The old primary becomes a replica before the new one becomes primary, so that no two nodes ever
//! take writes; if nobody comes to promote the new one, for a moment none does, and whoever looks
//! next goes on from there. The mark that the old one is deposed is committed before, since a node
//! that dies with it comes back as what its config file says.

use serde::{Deserialize, Serialize};

use super::command::{Command, FailoverMethod, Verb};
use super::failover::LAG_AT_MOST;
use super::hold::paused;
use super::reset::unwritten;
use super::{Action, Blocker, Check, StepKey, Wait, seen_or_wait};
use crate::domain::hazard::{Hazard, HazardKind};
use crate::domain::id::ShardId;
use crate::domain::node::Address;
use crate::domain::observation::{
    Attached, DeposedMark, History, Mark, MarkKind, Observation, Report, Role, Sighting,
};
use crate::domain::plan::WaitingFor;

/// For how long writes wait at most.
pub const PAUSE_MS: u32 = 5_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOver {
    pub shard: ShardId,
    /// The shard's position, for people.
    pub index: u16,
    pub from: Address,
    pub to: Address,
    pub method: FailoverMethod,
    /// Who follows the new primary from then on.
    pub others: Vec<Address>,
    /// How long writes are expected to wait.
    pub expected_ms: Option<u64>,
}

impl HandOver {
    /// Whether it was begun: then the world may be anywhere between before and after.
    fn is_begun(&self, seen: &Observation) -> bool {
        let of = |mark: &DeposedMark| mark.successor == self.to;
        seen.marks_on(&self.from).filter_map(|m| m.what.deposed()).any(of)
    }

    fn is_forced(&self) -> bool {
        match self.method {
            FailoverMethod::Graceful => false,
            FailoverMethod::Force | FailoverMethod::Takeover => true,
        }
    }

    fn waits(&self, why: String) -> Check {
        let nodes = vec![self.to.clone()];
        let reason = WaitingFor::Convergence;
        Check::Waiting(Wait { reason, nodes, why, done: 0, total: 1 })
    }

    fn blocked(&self, code: &'static str, why: String, recovery: &'static str) -> Check {
        Check::Blocked(Blocker { code, node: Some(self.to.clone()), why, recovery })
    }

    /// Whether the replica can take over now, while its primary lives.
    fn prepared(&self, to: &Report, from: &Report) -> Check {
        let lag = from.replication.offset.saturating_sub(to.replication.offset);
        if to.replication.sync_in_progress || !to.replication.link_up {
            self.waits(format!("{} does not replicate from {} yet", self.to, self.from))
        } else if lag > LAG_AT_MOST {
            self.waits(format!("{} is {lag} bytes behind {}", self.to, self.from))
        } else if let Some(state) = &from.replication.failover {
            self.waits(format!(
                "{} is in a failover that somebody else asked for ({state})",
                self.from
            ))
        } else if !from.capabilities().can_replicate_from(to.capabilities()) {
            self.blocked(
                "incompatible_version",
                format!(
                    "{} ({:?} {}) could not load what {} ({:?} {}) writes, so that it could not follow it",
                    self.from, from.flavor, from.version, self.to, to.flavor, to.version
                ),
                "Upgrade the old primary's successor last, or ask for method force and replace the old primary.",
            )
        } else {
            Check::Ready
        }
    }

    /// Where the replica is primary already.
    fn taken_over(&self, seen: &Observation) -> Check {
        let old = seen.report(&self.from).filter(|r| r.role == Role::Primary);
        match old {
            // One that has yet to become a replica of it.
            Some(_) if !self.is_begun(seen) && !self.is_forced() => {
                self.waits(format!("{} does not follow {} yet", self.to, self.from))
            }
            Some(_) if !self.is_begun(seen) => Check::Ready,
            Some(_) | None => Check::Done,
        }
    }
}

impl Action for HandOver {
    fn key(&self) -> StepKey {
        format!("hand_over:{}", self.to)
    }

    fn title(&self) -> String {
        let how = if self.is_forced() { ", without asking it" } else { "" };
        format!("Make {} primary in place of {}{how}", self.to, self.from)
    }

    fn nodes(&self) -> Vec<Address> {
        [&self.to, &self.from].into_iter().chain(&self.others).cloned().collect()
    }

    fn hazards(&self) -> Vec<Hazard> {
        let hazard = |id, kind, why, expected_ms| {
            vec![Hazard { id, kind, step: self.key(), why, expected_ms }]
        };
        if self.is_forced() {
            let why =
                format!("writes that {} took and {} does not have are lost", self.from, self.to);
            hazard(format!("lost_writes:{}", self.from), HazardKind::DataLoss, why, None)
        } else {
            let why = format!("writes wait until {} has what {} has", self.to, self.from);
            let id = format!("write_pause:{}", self.from);
            hazard(id, HazardKind::WritePause, why, self.expected_ms)
        }
    }

    fn check(&self, seen: &Observation) -> Check {
        let to = match seen_or_wait(&self.to, seen) {
            Err(wait) => return wait,
            Ok(to) => to,
        };
        if to.role == Role::Primary {
            return self.taken_over(seen);
        }
        if to.replication.primary.as_ref() != Some(&self.from) {
            return self.waits(format!("{} does not follow {} yet", self.to, self.from));
        }
        if self.is_forced() {
            return match to.replication.sync_in_progress {
                true => self.blocked(
                    "full_sync",
                    format!(
                        "{} has only a part of its primary's data: it was taking a full copy",
                        self.to
                    ),
                    "Have another replica take over, or bring the primary back.",
                ),
                false => Check::Ready,
            };
        }
        let from = match seen_or_wait(&self.from, seen) {
            Err(wait) => return wait,
            Ok(from) => from,
        };
        match from.role {
            // It has let go already: nobody takes writes until this is through.
            Role::Replica if self.is_begun(seen) => Check::Ready,
            Role::Replica | Role::Sentinel => {
                self.waits(format!("{} is no primary now", self.from))
            }
            Role::Primary => self.prepared(to, from),
        }
    }

    fn effect(&self, world: &mut Observation) {
        let marks = self.marks(world);
        world.marks.extend(marks);
        let Some(Sighting::Seen(new)) = world.nodes.get_mut(&self.to) else { return };
        let (replid, offset) = (new.replication.replid.clone(), new.replication.offset);
        new.role = Role::Primary;
        new.replication.primary = None;
        new.replication.link_up = false;
        new.replication.before = Some(History { replid, offset: offset + 1 });
        new.replication.replid = format!("(new history of {})", self.to);
        let followers: Vec<&Address> = self.others.iter().chain([&self.from]).collect();
        let attached = |node: &&Address| Attached {
            address: (*node).clone(),
            state: "online".to_owned(),
            offset,
            lag_seconds: 0,
        };
        new.replication.replicas = followers.iter().map(attached).collect();
        for node in followers {
            let Some(Sighting::Seen(report)) = world.nodes.get_mut(node) else { continue };
            report.role = Role::Replica;
            report.replication.replicas.clear();
            report.replication.primary = Some(self.to.clone());
            report.replication.link_up = true;
        }
    }

    /// Roughly: what is said in between depends on what the nodes answer.
    fn commands(&self, seen: &Observation) -> Vec<Command> {
        let pause = Command::new(&self.from, Verb::PauseWrites { ms: u64::from(PAUSE_MS) });
        let demote = Command::new(&self.from, Verb::ReplicaOf(self.to.clone()));
        let promote = Command::new(&self.to, Verb::ReplicaOfNone);
        let repoint =
            self.others.iter().map(|node| Command::new(node, Verb::ReplicaOf(self.to.clone())));
        let unpause = Command::new(&self.from, Verb::Unpause);
        let lives = seen.report(&self.from).is_some();
        let graceful = !self.is_forced();
        graceful
            .then_some(pause)
            .into_iter()
            .chain(lives.then_some(demote))
            .chain([promote])
            .chain(repoint.collect::<Vec<_>>())
            .chain(graceful.then_some(unpause))
            .collect()
    }

    fn marks(&self, seen: &Observation) -> Vec<Mark> {
        let from = seen.report(&self.from);
        let to = seen.report(&self.to).map(|r| &r.replication);
        let deposed = MarkKind::Deposed(DeposedMark {
            shard: self.shard,
            successor: self.to.clone(),
            run_id: from.map(|r| r.run_id.clone()).unwrap_or_default(),
            replid: to.map(|r| r.replid.clone()).unwrap_or_default(),
            offset: to.map_or(0, |r| r.offset),
            forced: self.is_forced(),
        });
        let deposed = Mark { node: self.from.clone(), what: deposed };
        let deposed = (!self.is_begun(seen)).then_some(deposed);
        let pause = from.filter(|r| r.role == Role::Primary && !self.is_forced());
        let pause = pause.map(|r| paused(&self.from, r, PAUSE_MS));
        let seen_ones = self.nodes().into_iter().filter(|node| seen.report(node).is_some());
        let files = seen_ones.flat_map(|node| unwritten(&node, seen));
        deposed.into_iter().chain(pause).chain(files).collect()
    }
}
