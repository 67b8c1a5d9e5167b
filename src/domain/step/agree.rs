//! Waits until every node sees the same cluster: the same members, roles, slots and epochs, all
//! links up, and the state ok. It sends nothing. Spares that sit in the cluster and do nothing there
//! have no say.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::command::Command;
use super::{Action, Check, StepKey, Wait};
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{ClusterView, Observation, Peer, Report, Role, Sighting};
use crate::domain::plan::WaitingFor;
use crate::domain::slot::SlotSet;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitAgreement {
    pub members: Vec<Address>,
    /// Nodes that the members may know, whatever has become of them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub apart: BTreeSet<Address>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spares: Vec<Address>,
}

impl AwaitAgreement {
    #[must_use]
    pub fn of(members: Vec<Address>) -> Self {
        Self { members, apart: BTreeSet::new(), spares: vec![] }
    }

    /// What each node still lacks; nothing when all agree. One reason a node is enough.
    #[must_use]
    pub fn lacking<'a>(&self, seen: &'a Observation) -> BTreeMap<Address, String> {
        let ids: BTreeSet<&ClusterNodeId> =
            self.members.iter().filter_map(|m| seen.view(m)).map(|v| &v.my_id).collect();
        let spares: BTreeSet<&Address> = self.spares.iter().collect();
        let left_out = |view: &'a ClusterView| {
            let apart = view.peers.iter().filter(|(_, p)| self.is_apart(p)).map(|(id, _)| id);
            apart.chain(seen.idle_in(view, &spares)).collect::<BTreeSet<_>>()
        };
        let model = self.members.iter().find_map(|m| seen.view(m)).map(|v| shape(v, &left_out(v)));
        let mut lacking = BTreeMap::new();
        for member in &self.members {
            let why = match seen.report(member) {
                None => Some("does not answer".to_owned()),
                Some(report) => match &report.cluster {
                    None => Some("does not run in cluster mode".to_owned()),
                    Some(view) => {
                        let left_out = left_out(view);
                        self.lack_of(report, view, &ids, &left_out).or_else(|| {
                            let same = Some(shape(view, &left_out)) == model;
                            (!same)
                                .then(|| "sees other roles or slots than the first node".to_owned())
                        })
                    }
                },
            };
            if let Some(why) = why {
                lacking.insert(member.clone(), why);
            }
        }
        lacking
    }

    fn is_apart(&self, peer: &Peer) -> bool {
        peer.address.as_ref().is_some_and(|a| self.apart.contains(a))
    }

    fn lack_of(
        &self,
        report: &Report,
        view: &ClusterView,
        ids: &BTreeSet<&ClusterNodeId>,
        left_out: &BTreeSet<&ClusterNodeId>,
    ) -> Option<String> {
        let name = |p: &Peer| p.address.as_ref().map_or("a node".to_owned(), ToString::to_string);
        let counted = || view.peers.iter().filter(|(id, _)| !left_out.contains(id));
        let others = || counted().filter(|(id, _)| **id != view.my_id).map(|(_, p)| p);
        let known: BTreeSet<&ClusterNodeId> =
            counted().filter(|(_, p)| !p.handshake).map(|(id, _)| id).collect();
        if report.loading {
            Some("loads its data".to_owned())
        } else if view.shaking_hands() {
            Some("still shakes hands".to_owned())
        } else if known != *ids {
            Some(format!("knows {} of {} nodes", known.len(), self.members.len()))
        } else if let Some(peer) = others().find(|p| p.failed || p.suspect) {
            Some(format!("believes that {} has failed", name(peer)))
        } else if let Some(peer) = others().find(|p| !p.linked) {
            Some(format!("has no link to the bus of {}", name(peer)))
        } else if !view.state_ok {
            Some("says that the cluster state is not ok".to_owned())
        } else if report.role == Role::Replica && !report.replication.link_up {
            Some("has no replication link to its primary".to_owned())
        } else if distinct_epochs(view.peers.values()) {
            None
        } else {
            Some("sees two primaries with one epoch".to_owned())
        }
    }
}

/// Who serves what as one node sees it, without those who have no say.
fn shape<'a>(
    view: &'a ClusterView,
    left_out: &BTreeSet<&ClusterNodeId>,
) -> Vec<(&'a ClusterNodeId, Role, Option<&'a ClusterNodeId>, &'a SlotSet)> {
    view.signature().into_iter().filter(|(id, ..)| !left_out.contains(id)).collect()
}

fn distinct_epochs<'a>(peers: impl Iterator<Item = &'a Peer>) -> bool {
    let mut epochs = BTreeSet::new();
    peers.filter(|p| p.role == Role::Primary && !p.slots.is_empty()).all(|p| epochs.insert(p.epoch))
}

impl Action for AwaitAgreement {
    fn key(&self) -> StepKey {
        "await_agreement".to_owned()
    }

    fn title(&self) -> String {
        format!("Wait until all {} nodes agree and replicate", self.members.len())
    }

    fn nodes(&self) -> Vec<Address> {
        self.members.clone()
    }

    fn check(&self, seen: &Observation) -> Check {
        let lacking = self.lacking(seen);
        let Some((first, why)) = lacking.first_key_value() else { return Check::Done };
        let silent = lacking.keys().any(|m| seen.report(m).is_none());
        let copies = |r: &Report| r.loading || r.replication.sync_in_progress;
        let copying = lacking.keys().filter_map(|m| seen.report(m)).any(copies);
        let more = match lacking.len() {
            1 => String::new(),
            n => format!(", and {} more nodes lack something", n - 1),
        };
        Check::Waiting(Wait {
            reason: match (silent, copying) {
                (true, _) => WaitingFor::Node,
                (false, true) => WaitingFor::Sync,
                (false, false) => WaitingFor::Convergence,
            },
            why: format!("{first} {why}{more}"),
            done: self.members.len() - lacking.len(),
            total: self.members.len(),
            nodes: lacking.into_keys().collect(),
        })
    }

    /// Everybody learns what each says of itself.
    fn effect(&self, world: &mut Observation) {
        let truth: BTreeMap<ClusterNodeId, Peer> = self
            .members
            .iter()
            .filter_map(|m| world.view(m))
            .filter_map(|v| Some((v.my_id.clone(), v.me()?.clone())))
            .map(|(id, me)| (id, Peer { linked: true, suspect: false, failed: false, ..me }))
            .collect();
        let epoch = truth.values().map(|p| p.epoch).max().unwrap_or(0);
        for member in &self.members {
            if let Some(Sighting::Seen(report)) = world.nodes.get_mut(member) {
                report.replication.link_up |= report.role == Role::Replica;
                if let Some(view) = &mut report.cluster {
                    view.peers.retain(|_, p| self.is_apart(p));
                    view.peers.extend(truth.clone());
                    view.state_ok = true;
                    view.current_epoch = view.current_epoch.max(epoch);
                }
            }
        }
    }

    fn commands(&self, _seen: &Observation) -> Vec<Command> {
        vec![]
    }
}
