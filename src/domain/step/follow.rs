//! Makes one node outside of clusters the replica of another.
//!
//! It gives up whatever data of its own it has. So it must have none, or somebody accepted that by
//! name, or another node took over from it, which was accepted then: what it wrote since is told in
//! the journal before it goes.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::command::{Command, Verb};
use super::reset::unwritten;
use super::{Action, Blocker, Check, StepKey, seen_or_wait};
use crate::domain::event::{EventType, NewEvent};
use crate::domain::hazard::{Hazard, HazardKind};
use crate::domain::lineage::{deposition, is_emptied};
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{Attached, Mark, Observation, Report, Role, Sighting};
use crate::domain::view::follows;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    pub node: Address,
    pub primary: Address,
    /// Data of its own that may be given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gives_up: Option<GivesUp>,
}

/// What a node gives up when it follows another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivesUp {
    pub keys: u64,
    /// The process that was looked at.
    pub run_id: String,
}

impl GivesUp {
    /// What following `primary` would cost a node: keys of its own, or the only copy of those of
    /// another history.
    #[must_use]
    pub fn of(node: &Address, primary: &Address, seen: &Observation) -> Option<Self> {
        let (report, theirs) = (seen.report(node)?, seen.report(primary)?);
        let empty = || theirs.keys == 0 || is_emptied(primary, seen);
        let own = match report.role {
            Role::Primary => true,
            Role::Replica => empty() && !report.shares(&theirs.replication.replid),
            Role::Sentinel => false,
        };
        (own && report.keys > 0).then(|| Self { keys: report.keys, run_id: report.run_id.clone() })
    }

    /// Whether a node has more, or is another process, than when it was accepted.
    fn is_exceeded(&self, now: &Self) -> bool {
        now.run_id != self.run_id || now.keys > self.keys
    }
}

/// The id of the hazard that a node's own data is given up.
#[must_use]
pub fn hazard_id(node: &Address) -> String {
    format!("discard:{node}")
}

impl Follow {
    fn blocked(&self, code: &'static str, why: String, recovery: &'static str) -> Check {
        Check::Blocked(Blocker { code, node: Some(self.node.clone()), why, recovery })
    }

    /// How much a node wrote that its successor does not have, as far as that can be told.
    fn lost_bytes(&self, report: &Report, seen: &Observation) -> Option<u64> {
        let mark = deposition(&self.node, seen)?;
        let successor = seen.report(&mark.successor)?;
        let left = successor.replication.before.as_ref().filter(|b| b.replid == mark.replid);
        // The offset there is that of the first byte that is no longer shared.
        let shared = left.map_or(mark.offset, |b| b.offset.saturating_sub(1).max(mark.offset));
        let same = report.replication.replid == mark.replid;
        same.then(|| report.replication.offset.saturating_sub(shared))
    }
}

impl Action for Follow {
    fn key(&self) -> StepKey {
        format!("follow:{}", self.node)
    }

    fn title(&self) -> String {
        format!("Make {} a replica of {}", self.node, self.primary)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.node.clone()]
    }

    fn hazards(&self) -> Vec<Hazard> {
        let hazard = |given: &GivesUp| Hazard {
            id: hazard_id(&self.node),
            kind: HazardKind::DataLoss,
            step: self.key(),
            why: format!(
                "{} holds {} keys that {} does not take over from it; they are lost",
                self.node, given.keys, self.primary
            ),
            expected_ms: None,
        };
        self.gives_up.iter().map(hazard).collect()
    }

    fn check(&self, seen: &Observation) -> Check {
        let report = match seen_or_wait(&self.node, seen) {
            Err(wait) => return wait,
            Ok(report) => report,
        };
        let primary = match seen_or_wait(&self.primary, seen) {
            Err(wait) => return wait,
            Ok(primary) => primary,
        };
        if follows(report, Some(&self.primary), seen) {
            return Check::Done;
        }
        if primary.role != Role::Primary {
            return self.blocked(
                "wrong_role",
                format!("{} is no primary, and a replica of a replica is never made", self.primary),
                "A failover happened in the middle of the plan. Look at the topology; then ask for repair.",
            );
        }
        if !report.capabilities().can_replicate_from(primary.capabilities()) {
            return self.blocked(
                "incompatible_version",
                format!(
                    "{} runs {:?} {}, which cannot load what {} ({:?} {}) writes",
                    self.node, report.flavor, report.version,
                    self.primary, primary.flavor, primary.version
                ),
                "Bring the node to the version of its primary, or to a newer one; then retry the plan.",
            );
        }
        let given = GivesUp::of(&self.node, &self.primary, seen);
        let now = given.filter(|_| deposition(&self.node, seen).is_none());
        match (now, &self.gives_up) {
            (None, _) => Check::Ready,
            (Some(now), Some(given)) if !given.is_exceeded(&now) => Check::Ready,
            (Some(now), Some(_)) => self.blocked(
                "node_has_keys",
                format!(
                    "{} was restarted, or holds more ({} keys) than when its loss was accepted",
                    self.node, now.keys
                ),
                "See that nobody writes to the node any more, and look at what it holds now. Then ask for the same again with fresh consent.",
            ),
            (Some(now), None) => self.blocked(
                "node_has_keys",
                format!(
                    "{} holds {} keys of its own, which becoming a replica of {} would destroy",
                    self.node, now.keys, self.primary
                ),
                "Where they are needed, make the node the primary (failover with method force); else ask for repair and accept the hazard that it names.",
            ),
        }
    }

    fn effect(&self, world: &mut Observation) {
        let marks = self.marks(world);
        world.marks.extend(marks);
        let Some(primary) = world.report(&self.primary) else { return };
        let (functions, libraries) = (primary.functions, primary.libraries.clone());
        let (keys, link) = (primary.keys, primary.replication.clone());
        for (address, sighting) in &mut world.nodes {
            let Sighting::Seen(report) = sighting else { continue };
            report.replication.replicas.retain(|attached| attached.address != self.node);
            if *address == self.primary {
                report.replication.replicas.push(Attached {
                    address: self.node.clone(),
                    state: "online".to_owned(),
                    offset: link.offset,
                    lag_seconds: 0,
                });
            }
        }
        let Some(Sighting::Seen(report)) = world.nodes.get_mut(&self.node) else { return };
        (report.role, report.keys) = (Role::Replica, keys);
        (report.functions, report.libraries) = (functions, libraries);
        report.replication.primary = Some(self.primary.clone());
        (report.replication.link_up, report.replication.sync_in_progress) = (true, false);
        (report.replication.offset, report.replication.replid) = (link.offset, link.replid);
    }

    fn commands(&self, seen: &Observation) -> Vec<Command> {
        let confirm = seen.report(&self.node).map(|r| Verb::Confirm(confirmed(r)));
        let verbs = confirm.into_iter().chain([Verb::ReplicaOf(self.primary.clone())]);
        verbs.map(|verb| Command::new(&self.node, verb)).collect()
    }

    fn marks(&self, seen: &Observation) -> Vec<Mark> {
        unwritten(&self.node, seen)
    }

    /// The receipt of what is lost, before it is.
    fn tells(&self, seen: &Observation) -> Vec<NewEvent> {
        let (Some(mark), Some(report)) = (deposition(&self.node, seen), seen.report(&self.node))
        else {
            return vec![];
        };
        if report.role != Role::Primary {
            return vec![];
        }
        let bytes = self.lost_bytes(report, seen);
        // Of one that was silent when it was deposed only its history is known.
        let restarted = match mark.run_id.as_str() {
            "" => report.replication.replid != mark.replid,
            run_id => report.run_id != run_id,
        };
        let data = json!({
            "shard": mark.shard, "node": self.node, "successor": mark.successor,
            "replid": report.replication.replid, "offset": report.replication.offset,
            "promoted_replid": mark.replid, "promoted_offset": mark.offset,
            "keys": report.keys, "restarted": restarted,
            // Of another history nobody can say how much it was.
            "possibly_lost": { "bytes": bytes, "seconds": null },
        });
        vec![NewEvent::new(EventType::FailoverWritesLost, data)]
    }
}

/// Who is to hear a command outside of clusters.
pub(super) fn confirmed(report: &Report) -> ClusterNodeId {
    report.identity()
}
