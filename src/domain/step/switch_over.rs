//! Has a Sentinel make a replica the primary, and tell the others.
//!
//! Gracefully, the old primary lets go first: while writes wait, it becomes a replica of the one that is
//! to take over, which has all that it ever took. So no two nodes ever take writes. If nobody goes on from
//! there, Sentinels do: they hold a primary for down that says it is a replica. By force nobody is asked,
//! and the old primary takes writes until it is told, at the latest by the Sentinels after some ten
//! seconds.

use std::collections::BTreeSet;

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
    DeposedMark, Mark, MarkKind, Observation, Report, Role, Sighting,
};
use crate::domain::sentinel::{WatchedReplica, Watchers};
use crate::domain::view::follows;

/// How long it takes until Sentinels name the new primary.
const EXPECTED_MS: u64 = 1_000;
/// How long writes wait at most for the old primary to let go.
const PAUSE_AT_MOST_MS: u32 = 5_000;

/// What a pause holds up are the Sentinels' own messages too: one that is half as long as the time after
/// which they hold a primary for down is none that they notice.
#[must_use]
pub fn pause_ms(down_after_ms: Option<u64>) -> u32 {
    let half = down_after_ms.map(|ms| ms / 2).and_then(|ms| u32::try_from(ms).ok());
    half.unwrap_or(PAUSE_AT_MOST_MS).min(PAUSE_AT_MOST_MS)
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchOver {
    pub shard: ShardId,
    /// Who leads it.
    pub sentinel: Address,
    pub watchers: Watchers,
    pub from: Address,
    pub to: Address,
    pub method: FailoverMethod,
    /// How long writes wait at most for the old primary to let go.
    pub pause_ms: u32,
}

impl SwitchOver {
    fn is_forced(&self) -> bool {
        match self.method {
            FailoverMethod::Graceful => false,
            FailoverMethod::Force | FailoverMethod::Takeover => true,
        }
    }

    /// The data nodes, one that is to leave included.
    fn data(&self) -> BTreeSet<Address> {
        self.watchers.members.iter().chain([&self.from, &self.to]).cloned().collect()
    }

    fn is_under_way(&self, seen: &Observation) -> bool {
        let mut watches =
            self.watchers.sentinels.iter().filter_map(|s| seen.watch(s, &self.watchers.name));
        watches.any(|w| w.fails_over())
    }

    /// Whether the old primary has let go already, or why it cannot now.
    fn lets_go(&self, to: &Report, from: &Report, seen: &Observation) -> Result<bool, String> {
        let lag = from.replication.offset.saturating_sub(to.replication.offset);
        if follows(from, Some(&self.to), seen) {
            Ok(true)
        } else if from.role != Role::Primary {
            Err(format!("{} is no primary now", self.from))
        } else if !follows(to, Some(&self.from), seen) || !to.replication.link_up {
            Err(format!("{} does not replicate from {}", self.to, self.from))
        } else if lag > LAG_AT_MOST {
            Err(format!("{} is {lag} bytes behind {}", self.to, self.from))
        } else {
            Ok(false)
        }
    }

    /// The mark that the old one is no primary any more, unless it has it already.
    fn deposed(&self, seen: &Observation) -> Option<Mark> {
        let link = seen.report(&self.to).map(|r| &r.replication);
        let mark = DeposedMark {
            shard: self.shard,
            successor: self.to.clone(),
            run_id: seen.report(&self.from).map(|r| r.run_id.clone()).unwrap_or_default(),
            replid: link.map(|l| l.replid.clone()).unwrap_or_default(),
            offset: link.map_or(0, |l| l.offset),
            forced: self.is_forced(),
        };
        let mut has = seen.marks_on(&self.from).filter_map(|m| m.what.deposed());
        let has = has.any(|m| m.successor == self.to);
        (!has).then(|| Mark { node: self.from.clone(), what: MarkKind::Deposed(mark) })
    }
}

impl Action for SwitchOver {
    fn key(&self) -> StepKey {
        format!("switch_over:{}", self.to)
    }

    fn title(&self) -> String {
        let how = if self.is_forced() { ", without asking anybody" } else { "" };
        format!("Have {} make {} primary in place of {}{how}", self.sentinel, self.to, self.from)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.sentinel.clone(), self.to.clone(), self.from.clone()]
    }

    fn hazards(&self) -> Vec<Hazard> {
        let hazard = |id, kind, why, expected_ms| {
            vec![Hazard { id, kind, step: self.key(), why, expected_ms }]
        };
        if self.is_forced() {
            let why = format!(
                "writes that {} has not are lost, and for up to about ten seconds {} may take more that are",
                self.to, self.from
            );
            hazard(format!("lost_writes:{}", self.from), HazardKind::DataLoss, why, None)
        } else {
            let why = format!(
                "writes are refused from when {} lets go until Sentinels name {} to clients",
                self.from, self.to
            );
            let id = format!("write_pause:{}", self.from);
            hazard(id, HazardKind::WritePause, why, Some(EXPECTED_MS))
        }
    }

    fn check(&self, seen: &Observation) -> Check {
        let to = match seen_or_wait(&self.to, seen) {
            Err(wait) => return wait,
            Ok(to) => to,
        };
        let wait = |why| Check::Waiting(Wait::for_gossip(&self.to, why));
        if to.role == Role::Primary {
            return Check::Done;
        }
        if self.is_under_way(seen) {
            return wait(format!("a Sentinel leads a failover, and {} is no primary yet", self.to));
        }
        if to.replication.sync_in_progress {
            return Check::Blocked(Blocker {
                code: "full_sync",
                node: Some(self.to.clone()),
                why: format!("{} has only a part of its primary's data", self.to),
                recovery: "Have another replica take over, or bring the primary back.",
            });
        }
        if !self.is_forced() {
            let from = match seen_or_wait(&self.from, seen) {
                Err(wait) => return wait,
                Ok(from) => from,
            };
            match self.lets_go(to, from, seen) {
                Err(why) => return wait(why),
                Ok(false) if !self.watchers.is_ripe(&self.sentinel, &self.to, seen) => {
                    return wait(format!("a moment is to pass until {} begins", self.sentinel));
                }
                Ok(_) => {}
            }
        }
        if self.watchers.would_choose(&self.sentinel, &self.to, seen) {
            Check::Ready
        } else {
            wait(format!("{} would not choose {} now", self.sentinel, self.to))
        }
    }

    fn effect(&self, world: &mut Observation) {
        let marks = self.marks(world);
        world.marks.extend(marks);
        let run_id = |a: &Address, world: &Observation| {
            world.report(a).map(|r| r.run_id.clone()).unwrap_or_default()
        };
        let (new, old) = (run_id(&self.to, world), run_id(&self.from, world));
        for node in self.data() {
            let Some(Sighting::Seen(report)) = world.nodes.get_mut(&node) else { continue };
            let leads = node == self.to;
            report.role = if leads { Role::Primary } else { Role::Replica };
            report.replication.primary = (!leads).then(|| self.to.clone());
            report.replication.link_up = !leads;
        }
        let epoch = self.watchers.newest_epoch(world) + 1;
        for sentinel in &self.watchers.sentinels {
            let Some(Sighting::Seen(report)) = world.nodes.get_mut(sentinel) else { continue };
            let Some(view) = &mut report.sentinel else { continue };
            let Some(watch) = view.watches.get_mut(&self.watchers.name) else { continue };
            (watch.primary, watch.run_id, watch.epoch) =
                (Some(self.to.clone()), new.clone(), epoch);
            watch.replicas.retain(|r| r.address != self.to);
            watch.replicas.push(WatchedReplica {
                address: self.from.clone(),
                run_id: old.clone(),
                flags: ["slave".to_owned()].into(),
                link_up: true,
                priority: 100,
                offset: 0,
                age_ms: 0,
            });
        }
    }

    /// Roughly: what is said in between depends on what the nodes answer.
    fn commands(&self, seen: &Observation) -> Vec<Command> {
        let leads = seen.report(&self.from).is_some_and(|r| r.role == Role::Primary);
        let say = |verb| Command::new(&self.from, verb);
        let pause = say(Verb::PauseWrites { ms: self.pause_ms.into() });
        let let_go = [pause, say(Verb::ReplicaOf(self.to.clone()))];
        let fail_over = Verb::FailOverWatch(self.watchers.name.clone());
        let_go
            .into_iter()
            .chain([say(Verb::Unpause)])
            .filter(|_| leads && !self.is_forced())
            .chain([Command::new(&self.sentinel, fail_over)])
            .collect()
    }

    /// Sentinels have data nodes write their files: with settings in them that hold for a while.
    fn marks(&self, seen: &Observation) -> Vec<Mark> {
        let from = seen.report(&self.from).filter(|r| r.role == Role::Primary);
        let pause = from.filter(|_| !self.is_forced());
        let pause = pause.map(|r| paused(&self.from, r, self.pause_ms));
        let differs = |node: &Address| {
            let changes = [&self.from, &self.to].contains(&node);
            changes || seen.marks_on(node).any(|m| m.what.setting().is_some())
        };
        let data = self.data().into_iter().filter(|node| seen.report(node).is_some());
        let data = data.filter(|node| differs(node));
        let files = data.flat_map(|node| unwritten(&node, seen));
        self.deposed(seen).into_iter().chain(pause).chain(files).collect()
    }
}
