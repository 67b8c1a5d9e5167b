//! Makes a replica the primary of its shard.
//!
//! `OK` from the server means that it tries. So nothing is done before every node that answers shows
//! the new owner; and before the command goes out, a mark has the shard rest: voters refuse a second
//! vote for the same shard within twice the node timeout, and a node that was elected a moment ago
//! may take its old votes for new ones (redis#8752). The next attempt, and the next failover, come
//! after that time.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::claim::no_cluster;
use super::command::{Command, FailoverMethod, Verb};
use super::{Action, Blocker, Check, StepKey, Wait, seen_or_wait};
use crate::domain::hazard::{Hazard, HazardKind};
use crate::domain::id::ShardId;
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{
    ClusterView, HoldMark, Mark, MarkKind, Observation, Report, Role, Sighting,
};
use crate::domain::plan::WaitingFor;
use crate::domain::slot::SlotSet;

/// Bytes that a replica may be behind when the primary is to pause for it. The attempt has five
/// seconds (`CLUSTER_MF_TIMEOUT`), and writes wait meanwhile.
pub const LAG_AT_MOST: u64 = 1 << 20;
/// A node whose timeout is not known has the server's default.
const NODE_TIMEOUT_MS: i64 = 15_000;
/// An attempt takes at most as long.
const ATTEMPT_MS: i64 = 5_000;
const REST_AT_MOST_MS: i64 = 600_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailOver {
    pub shard: ShardId,
    /// The shard's position, for people.
    pub index: u16,
    pub slots: SlotSet,
    pub from: Address,
    pub from_id: ClusterNodeId,
    pub to: Address,
    pub method: FailoverMethod,
    /// How long writes are expected to wait.
    pub expected_ms: Option<u64>,
}

/// How many primaries that serve slots a node reaches, and how many of them are a majority.
#[must_use]
pub fn votes(view: &ClusterView) -> (usize, usize) {
    let voters = || view.peers.values().filter(|p| p.role == Role::Primary && !p.slots.is_empty());
    let reached = voters().filter(|p| !p.failed && !p.suspect).count();
    (reached, voters().count() / 2 + 1)
}

/// The mark by which a shard rests after this node became its primary, or is told to.
#[must_use]
pub fn rest(shard: ShardId, node: &Address, report: &Report, elected: bool) -> Mark {
    let timeout = report.settings.get("cluster-node-timeout");
    let timeout = timeout.and_then(|t| t.parse().ok()).unwrap_or(NODE_TIMEOUT_MS);
    let rest = timeout.saturating_mul(4).saturating_add(1000).clamp(ATTEMPT_MS, REST_AT_MOST_MS);
    let until = report.observed_at + TimeDelta::milliseconds(rest);
    Mark { node: node.clone(), what: MarkKind::Hold(HoldMark { shard, until, elected }) }
}

/// Until when a shard is left to rest, if it is at `now` as the node that is to act knows it.
#[must_use]
pub fn rests(shard: ShardId, report: &Report, seen: &Observation) -> Option<HoldMark> {
    let holds = seen.marks.iter().filter_map(|m| m.what.hold());
    let now = report.observed_at;
    // One that lies further ahead was written by a clock that was wrong.
    let latest = now + TimeDelta::milliseconds(REST_AT_MOST_MS);
    holds
        .filter(|h| h.shard == shard && h.until > now && h.until <= latest)
        .max_by_key(|h| h.until)
        .cloned()
}

impl FailOver {
    /// Nodes of the cluster that answer and show another owner of the slots, or the old primary, if
    /// that answers, in its old part.
    fn dissent<'a>(&'a self, id: &ClusterNodeId, seen: &'a Observation) -> Vec<&'a Address> {
        let follows = seen.view(&self.from).is_some_and(|v| v.my_id == self.from_id);
        let demoted = |v: &ClusterView| {
            let from = v.peers.get(&self.from_id);
            !follows
                || from.is_none_or(|p| p.role == Role::Replica && p.primary.as_ref() == Some(id))
        };
        let shows = |v: &ClusterView| {
            let others = v.peers.iter().filter(|(other, _)| *other != id);
            let mine = v.peers.get(id).is_some_and(|p| self.slots.difference(&p.slots).is_empty());
            mine && demoted(v)
                && others
                    .fold(SlotSet::empty(), |all, (_, p)| all.union(&p.slots))
                    .intersection(&self.slots)
                    .is_empty()
        };
        let member = |a: &&Address| seen.view(a).is_some_and(|v| v.peers.contains_key(id));
        seen.nodes.keys().filter(member).filter(|a| !seen.view(a).is_some_and(shows)).collect()
    }

    /// In an emergency only what this plan's own kind left is waited for.
    fn heeds(&self, hold: &HoldMark) -> bool {
        match self.method {
            FailoverMethod::Graceful => true,
            FailoverMethod::Force | FailoverMethod::Takeover => !hold.elected,
        }
    }

    fn blocked(&self, code: &'static str, why: String, recovery: &'static str) -> Check {
        Check::Blocked(Blocker { code, node: Some(self.to.clone()), why, recovery })
    }

    /// Whether the replica can be told now.
    fn prepared(&self, report: &Report, view: &ClusterView, seen: &Observation) -> Check {
        let (reached, needed) = votes(view);
        match self.method {
            FailoverMethod::Graceful => {
                let from = match seen_or_wait(&self.from, seen) {
                    Err(wait) => return wait,
                    Ok(from) => from,
                };
                let lag = from.replication.offset.saturating_sub(report.replication.offset);
                let lacks = if report.replication.sync_in_progress || !report.replication.link_up {
                    format!("{} does not replicate from {} yet", self.to, self.from)
                } else if lag > LAG_AT_MOST {
                    format!("{} is {lag} bytes behind {}", self.to, self.from)
                } else if from.cluster.as_ref().is_some_and(|v| votes(v).1 > needed) {
                    // A node that came a moment ago has yet to hear who serves what.
                    format!("{} does not know all primaries yet", self.to)
                } else {
                    return self.elected(reached, needed, seen);
                };
                Check::Waiting(Wait::for_gossip(&self.to, lacks))
            }
            FailoverMethod::Force => self.elected(reached, needed, seen),
            FailoverMethod::Takeover if reached >= needed => self.blocked(
                "majority_alive",
                format!("{} reaches {reached} primaries, a majority: they can vote", self.to),
                "Ask for a failover with method force; takeover is for a cluster that has lost the majority of its primaries.",
            ),
            FailoverMethod::Takeover if seen.report(&self.from).is_some() => self.blocked(
                "old_primary_answers",
                format!("{} answers, so that two nodes would take writes", self.from),
                "Stop it first, or bring back so many primaries that a majority can vote; then ask for the failover again.",
            ),
            FailoverMethod::Takeover => Check::Ready,
        }
    }

    fn elected(&self, reached: usize, needed: usize, seen: &Observation) -> Check {
        if reached >= needed {
            return Check::Ready;
        }
        let majority = |(reached, needed)| needed > 1 && reached >= needed;
        let views = seen.nodes.keys().filter_map(|a| seen.view(a));
        if views.map(votes).any(majority) {
            let why = format!("{} does not reach a majority of the primaries yet", self.to);
            return Check::Waiting(Wait::for_gossip(&self.to, why));
        }
        self.blocked(
            "no_majority",
            format!(
                "{} reaches {reached} of the {needed} primaries that have to vote for it",
                self.to
            ),
            "Bring primaries back. Where they are lost for good, ask for a failover with method takeover, which asks nobody.",
        )
    }
}

impl Action for FailOver {
    fn key(&self) -> StepKey {
        format!("fail_over:{}", self.to)
    }

    fn title(&self) -> String {
        let how = match self.method {
            FailoverMethod::Graceful => "",
            FailoverMethod::Force => ", without asking its primary",
            FailoverMethod::Takeover => ", without asking anybody",
        };
        format!("Make {} primary of shard {} in place of {}{how}", self.to, self.index, self.from)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.to.clone(), self.from.clone()]
    }

    fn hazards(&self) -> Vec<Hazard> {
        let hazard = |id: String, kind, why: String, expected_ms| {
            vec![Hazard { id, kind, step: self.key(), why, expected_ms }]
        };
        match self.method {
            FailoverMethod::Graceful => hazard(
                format!("write_pause:{}", self.from),
                HazardKind::WritePause,
                format!(
                    "writes to shard {} wait until {} has what {} has",
                    self.index, self.to, self.from
                ),
                self.expected_ms,
            ),
            FailoverMethod::Force => hazard(
                format!("lost_writes:{}", self.from),
                HazardKind::DataLoss,
                format!("writes that {} took and {} does not have are lost", self.from, self.to),
                None,
            ),
            FailoverMethod::Takeover => hazard(
                format!("lost_writes:{}", self.from),
                HazardKind::DataLoss,
                format!(
                    "writes that {} took and {} does not have are lost; and nobody has confirmed that it is down: while clients still reach it and the primaries on its side, two nodes take writes for shard {}, and those of {} are lost when it returns",
                    self.from, self.to, self.index, self.from
                ),
                None,
            ),
        }
    }

    fn check(&self, seen: &Observation) -> Check {
        let report = match seen_or_wait(&self.to, seen) {
            Err(wait) => return wait,
            Ok(report) => report,
        };
        let Some(view) = &report.cluster else { return Check::Blocked(no_cluster(&self.to)) };
        if report.role == Role::Primary && !self.slots.difference(&view.my_slots()).is_empty() {
            self.blocked(
                "wrong_role",
                format!("{} is a primary that does not serve shard {}", self.to, self.index),
                "Somebody else is at work on the cluster. Look at it, then ask for the failover again.",
            )
        } else if report.role == Role::Primary {
            match self.dissent(&view.my_id, seen).first() {
                None => Check::Done,
                Some(first) => Check::Waiting(Wait::for_gossip(
                    first,
                    format!(
                        "{first} does not show {} as primary in place of {} yet",
                        self.to, self.from
                    ),
                )),
            }
        } else if view.me().and_then(|me| me.primary.as_ref()) != Some(&self.from_id) {
            // An election may be under way; when it is over, that one is adopted.
            let why = format!("{} is no replica of {} now", self.to, self.from);
            Check::Waiting(Wait::for_gossip(&self.to, why))
        } else if let Some(hold) = rests(self.shard, report, seen).filter(|h| self.heeds(h)) {
            Check::Waiting(Wait {
                reason: WaitingFor::Hold,
                nodes: vec![self.to.clone()],
                why: format!(
                    "shard {} rests until {} after its last change of primary",
                    self.index,
                    hold.until.format("%H:%M:%S UTC")
                ),
                done: 0,
                total: 1,
            })
        } else {
            self.prepared(report, view, seen)
        }
    }

    fn effect(&self, world: &mut Observation) {
        let marks = self.marks(world);
        world.marks.extend(marks);
        let Some(to_id) = world.view(&self.to).map(|v| v.my_id.clone()) else { return };
        let views = world.nodes.keys().filter_map(|a| world.view(a));
        let epoch = views.map(|v| v.current_epoch.max(v.my_epoch)).max();
        let epoch = epoch.unwrap_or(0).saturating_add(1);
        let follows = world.report(&self.from).is_some();
        for (address, sighting) in &mut world.nodes {
            let Sighting::Seen(report) = sighting else { continue };
            let Some(view) = &mut report.cluster else { continue };
            let taken = match view.peers.get_mut(&self.from_id) {
                Some(from) => std::mem::take(&mut from.slots),
                None => continue,
            };
            for (id, peer) in &mut view.peers {
                if *id == to_id {
                    (peer.role, peer.primary, peer.epoch) = (Role::Primary, None, epoch);
                    peer.slots = peer.slots.union(&taken);
                } else if peer.primary.as_ref() == Some(&self.from_id)
                    || (*id == self.from_id && follows)
                {
                    (peer.role, peer.primary) = (Role::Replica, Some(to_id.clone()));
                }
            }
            view.current_epoch = epoch;
            let me = view.me().map(|me| (me.role, me.primary.as_ref() == Some(&to_id)));
            if view.my_id == to_id {
                view.my_epoch = epoch;
                report.role = Role::Primary;
                report.replication.primary = None;
            } else if me == Some((Role::Replica, true)) || *address == self.from {
                report.role = Role::Replica;
                report.replication.primary = Some(self.to.clone());
                report.replication.link_up = true;
            }
        }
    }

    fn commands(&self, seen: &Observation) -> Vec<Command> {
        let confirm = seen.view(&self.to).map(|v| Verb::Confirm(v.my_id.clone()));
        let verbs = confirm.into_iter().chain([Verb::Failover(self.method)]);
        verbs.map(|verb| Command::new(&self.to, verb)).collect()
    }

    fn marks(&self, seen: &Observation) -> Vec<Mark> {
        let report = seen.report(&self.to);
        report.map(|r| rest(self.shard, &self.to, r, false)).into_iter().collect()
    }
}
