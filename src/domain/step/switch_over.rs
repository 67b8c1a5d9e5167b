//! Has a Sentinel make a replica the primary, and tell the others.
//!
//! Gracefully, the old primary has let go before, or takes part itself (Valkey 9). By force nobody is
//! asked, and the old primary takes writes until it is told, at the latest by the Sentinels after some
//! ten seconds.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::command::{Command, FailoverMethod, Verb};
use super::let_go::deposed;
use super::reset::unwritten;
use super::{Action, Blocker, Check, StepKey, Wait, seen_or_wait};
use crate::domain::hazard::{Hazard, HazardKind};
use crate::domain::id::ShardId;
use crate::domain::node::Address;
use crate::domain::observation::{Mark, Observation, Role, Sighting};
use crate::domain::sentinel::{WatchedReplica, Watchers};
use crate::domain::view::follows;

/// How long clients wait when the old primary takes part.
const COORDINATED_MS: u64 = 1_500;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchOver {
    pub shard: ShardId,
    /// Who leads it.
    pub sentinel: Address,
    pub watchers: Watchers,
    pub from: Address,
    pub to: Address,
    pub method: FailoverMethod,
    /// Whether the old primary takes part.
    pub coordinated: bool,
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
}

impl Action for SwitchOver {
    fn key(&self) -> StepKey {
        format!("switch_over:{}", self.to)
    }

    fn title(&self) -> String {
        let how = match (self.is_forced(), self.coordinated) {
            (true, _) => ", without asking anybody",
            (false, true) => ", together with the old primary",
            (false, false) => "",
        };
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
        } else if self.coordinated {
            let why = format!("writes wait until {} has what {} has", self.to, self.from);
            let id = format!("write_pause:{}", self.from);
            hazard(id, HazardKind::WritePause, why, Some(COORDINATED_MS))
        } else {
            vec![]
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
            let lets_go = follows(from, Some(&self.to), seen);
            if !lets_go && !self.coordinated {
                return wait(format!("{} has not let go yet", self.from));
            }
            if !lets_go && !to.replication.link_up {
                return wait(format!("{} does not replicate from {}", self.to, self.from));
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

    fn commands(&self, _seen: &Observation) -> Vec<Command> {
        let (name, coordinated) = (self.watchers.name.clone(), self.coordinated);
        vec![Command::new(&self.sentinel, Verb::FailOverWatch { name, coordinated })]
    }

    /// Sentinels have data nodes write their files: with settings in them that hold for a while.
    fn marks(&self, seen: &Observation) -> Vec<Mark> {
        let deposed = deposed(&self.from, &self.to, self.shard, self.is_forced(), seen);
        let differs = |node: &Address| {
            let changes = [&self.from, &self.to].contains(&node);
            changes || seen.marks_on(node).any(|m| m.what.setting().is_some())
        };
        let data = self.data().into_iter().filter(|node| seen.report(node).is_some());
        let data = data.filter(|node| differs(node));
        let files = data.flat_map(|node| unwritten(&node, seen));
        deposed.filter(|_| !self.coordinated).into_iter().chain(files).collect()
    }
}
