//! Introduces one node to others. Each node meets all that come after it, so that nobody depends on
//! gossip to hear of anybody.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::claim::no_cluster;
use super::command::{Command, Verb};
use super::{Action, Check, StepKey, Wait, seen_or_wait};
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{ClusterView, Observation, Sighting};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meet {
    pub node: Address,
    pub others: Vec<Address>,
}

impl Meet {
    /// Those that the node does not know yet, with the ids that they have.
    fn strangers<'a>(&'a self, view: &ClusterView, seen: &'a Observation) -> Vec<&'a Address> {
        let known: BTreeSet<&ClusterNodeId> = view.known();
        // One that does not show itself is known by its address, as gossip has it.
        let at = |a: &Address| {
            let peers = view.peers.values().filter(|p| !p.handshake);
            peers.filter_map(|p| p.address.as_ref()).any(|there| there == a)
        };
        let unknown =
            |a: &&Address| !seen.view(a).map_or_else(|| at(a), |v| known.contains(&v.my_id));
        self.others.iter().filter(unknown).collect()
    }

    /// Nodes that are in one cluster with any of these, such as one that is to leave it: gossip
    /// introduces them too.
    fn bystanders(&self, world: &Observation) -> Vec<Address> {
        let parties = || self.others.iter().chain([&self.node]);
        let knows = |a: &Address, b: &Address| {
            let id = world.view(b).map(|v| &v.my_id);
            world.view(a).is_some_and(|v| id.is_some_and(|id| v.peers.contains_key(id)))
        };
        let beside = |a: &&Address| {
            !parties().any(|p| p == *a) && parties().any(|p| knows(a, p) && knows(p, a))
        };
        world.nodes.keys().filter(beside).cloned().collect()
    }
}

impl Action for Meet {
    fn key(&self) -> StepKey {
        format!("meet:{}", self.node)
    }

    fn title(&self) -> String {
        match self.others.as_slice() {
            [one] => format!("Introduce {} to {one}", self.node),
            several => format!("Introduce {} to {} other nodes", self.node, several.len()),
        }
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.node.clone()]
    }

    fn check(&self, seen: &Observation) -> Check {
        let report = match seen_or_wait(&self.node, seen) {
            Err(wait) => return wait,
            Ok(report) => report,
        };
        let Some(view) = &report.cluster else { return Check::Blocked(no_cluster(&self.node)) };
        let strangers = self.strangers(view, seen);
        let silent: Vec<_> =
            strangers.iter().filter(|a| seen.view(a).is_none()).map(|a| (*a).clone()).collect();
        if strangers.is_empty() {
            Check::Done
        } else if !silent.is_empty() {
            Check::Waiting(Wait::for_nodes(silent, seen))
        } else if view.shaking_hands() {
            // A handshake that fails is dropped after the node timeout; then MEET goes out again.
            let why = format!("{} shakes hands with {} nodes", self.node, strangers.len());
            Check::Waiting(Wait::for_gossip(&self.node, why))
        } else {
            Check::Ready
        }
    }

    fn effect(&self, world: &mut Observation) {
        let bystanders = self.bystanders(world);
        for other in &self.others {
            introduce(world, &self.node, other);
            introduce(world, other, &self.node);
        }
        for bystander in &bystanders {
            for party in self.others.iter().chain([&self.node]) {
                introduce(world, bystander, party);
                introduce(world, party, bystander);
            }
        }
    }

    fn commands(&self, seen: &Observation) -> Vec<Command> {
        let Some(view) = seen.view(&self.node) else { return vec![] };
        let meet = |other: &Address| Command::new(&self.node, Verb::Meet(other.clone()));
        self.strangers(view, seen).into_iter().map(meet).collect()
    }
}

/// Tells `knower` what `known` says of itself.
fn introduce(world: &mut Observation, knower: &Address, known: &Address) {
    let Some(view) = world.view(known) else { return };
    let (id, Some(peer)) = (view.my_id.clone(), view.me().cloned()) else { return };
    if let Some(Sighting::Seen(report)) = world.nodes.get_mut(knower)
        && let Some(view) = &mut report.cluster
    {
        view.peers.insert(id, peer);
    }
}
