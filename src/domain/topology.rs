//! The wanted topology: valid by construction, versioned, and silent about who is primary, which
//! is seen and never stored.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::id::{ShardId, TopologyId};
use super::node::Address;
use super::slot::SlotSet;
use super::spec::{NodeSpec, Spec};

/// What is wanted of one deployment, at one version.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    pub id: TopologyId,
    pub name: String,
    pub version: i32,
    pub spec: Spec,
    pub layout: Layout,
}

/// Which node plays which part. A mode owns only what it can have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum Layout {
    Replication { shard: Shard },
    Sentinel { shard: Shard, sentinels: Vec<Address> },
    Cluster { shards: Shards },
    Gone,
}

/// One primary and its replicas; in cluster mode it serves the slots that [`Shards`] gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    pub id: ShardId,
    /// Position among the shards, from 0, for people.
    pub index: u16,
    pub members: Vec<Address>,
}

/// The shards of a cluster, whose slots are disjoint and together complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(Shard, SlotSet)>", into = "Vec<(Shard, SlotSet)>")]
pub struct Shards(Vec<(Shard, SlotSet)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShardsError {
    #[error("two shards serve the same slot")]
    Overlap,
    #[error("some slots are served by no shard")]
    Incomplete,
    #[error("a node is a member twice")]
    SharedMember,
    #[error("a shard has no member")]
    EmptyShard,
}

impl Shards {
    /// Proves what the type promises.
    pub fn new(shards: Vec<(Shard, SlotSet)>) -> Result<Self, ShardsError> {
        let mut members = BTreeSet::new();
        let mut covered = SlotSet::empty();
        for (shard, slots) in &shards {
            if shard.members.is_empty() {
                return Err(ShardsError::EmptyShard);
            }
            if !shard.members.iter().all(|m| members.insert(m)) {
                return Err(ShardsError::SharedMember);
            }
            if !covered.intersection(slots).is_empty() {
                return Err(ShardsError::Overlap);
            }
            covered = covered.union(slots);
        }
        if covered == SlotSet::all() { Ok(Self(shards)) } else { Err(ShardsError::Incomplete) }
    }

    pub fn iter(&self) -> std::slice::Iter<'_, (Shard, SlotSet)> {
        self.0.iter()
    }

    #[must_use]
    pub fn as_slice(&self) -> &[(Shard, SlotSet)] {
        &self.0
    }

    /// A shard beside these, still without members.
    #[must_use]
    pub fn fresh(&self, topology: TopologyId) -> Shard {
        let used = |id: &ShardId| self.0.iter().any(|(shard, _)| shard.id == *id);
        // There is always one more ordinal than there are shards.
        let ordinals = 0..=u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        let mut ids = ordinals.map(|ordinal| ShardId::derive(topology, ordinal));
        let id = ids.find(|id| !used(id)).unwrap_or(ShardId(topology.0));
        let index =
            self.0.iter().map(|(shard, _)| shard.index.saturating_add(1)).max().unwrap_or(0);
        Shard { id, index, members: vec![] }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> IntoIterator for &'a Shards {
    type Item = &'a (Shard, SlotSet);
    type IntoIter = std::slice::Iter<'a, (Shard, SlotSet)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl TryFrom<Vec<(Shard, SlotSet)>> for Shards {
    type Error = ShardsError;

    fn try_from(shards: Vec<(Shard, SlotSet)>) -> Result<Self, ShardsError> {
        Self::new(shards)
    }
}

impl From<Shards> for Vec<(Shard, SlotSet)> {
    fn from(shards: Shards) -> Self {
        shards.0
    }
}

impl Layout {
    /// Every shard with its slots; modes without slots have an empty set.
    #[must_use]
    pub fn shards(&self) -> Vec<(&Shard, SlotSet)> {
        match self {
            Self::Replication { shard } | Self::Sentinel { shard, .. } => {
                vec![(shard, SlotSet::empty())]
            }
            Self::Cluster { shards } => {
                shards.iter().map(|(s, slots)| (s, slots.clone())).collect()
            }
            Self::Gone => vec![],
        }
    }

    #[must_use]
    pub fn sentinels(&self) -> &[Address] {
        match self {
            Self::Sentinel { sentinels, .. } => sentinels,
            Self::Replication { .. } | Self::Cluster { .. } | Self::Gone => &[],
        }
    }

    /// The one shard of a topology without slots; such a shard is called lone.
    #[must_use]
    pub fn lone(&self) -> Option<&Shard> {
        match self {
            Self::Replication { shard } | Self::Sentinel { shard, .. } => Some(shard),
            Self::Cluster { .. } | Self::Gone => None,
        }
    }

    /// The same with further members of shards that it has.
    #[must_use]
    pub fn with(mut self, members: impl IntoIterator<Item = (Address, ShardId)>) -> Self {
        for (node, id) in members {
            let known = self.members().contains(&node);
            let shard = match &mut self {
                Self::Replication { shard } | Self::Sentinel { shard, .. } => Some(shard),
                Self::Cluster { shards } => {
                    shards.0.iter_mut().map(|(shard, _)| shard).find(|shard| shard.id == id)
                }
                Self::Gone => None,
            };
            if let Some(shard) = shard.filter(|shard| shard.id == id && !known) {
                shard.members.push(node);
            }
        }
        self
    }

    /// The same with other members of the lone shard.
    #[must_use]
    pub fn with_lone(mut self, other: Shard) -> Self {
        match &mut self {
            Self::Replication { shard } | Self::Sentinel { shard, .. } => *shard = other,
            Self::Cluster { .. } | Self::Gone => {}
        }
        self
    }

    /// All data nodes that are members, in address order.
    #[must_use]
    pub fn members(&self) -> BTreeSet<&Address> {
        match self {
            Self::Replication { shard } | Self::Sentinel { shard, .. } => {
                shard.members.iter().collect()
            }
            Self::Cluster { shards } => shards.iter().flat_map(|(s, _)| &s.members).collect(),
            Self::Gone => BTreeSet::new(),
        }
    }
}

impl Topology {
    /// The same without these members, but for one of each shard.
    #[must_use]
    pub fn without(&self, nodes: &BTreeSet<Address>) -> Self {
        if let Some(shard) = self.layout.lone() {
            let mut left = shard.clone();
            left.members.retain(|m| !nodes.contains(m));
            let layout = self.layout.clone();
            let mut layout = if left.members.is_empty() { layout } else { layout.with_lone(left) };
            if let Layout::Sentinel { sentinels, .. } = &mut layout
                && sentinels.iter().any(|s| !nodes.contains(s))
            {
                sentinels.retain(|s| !nodes.contains(s));
            }
            return Self { layout, ..self.clone() };
        }
        let Layout::Cluster { shards } = &self.layout else { return self.clone() };
        let thinned = |(shard, slots): &(Shard, SlotSet)| {
            let mut left = shard.clone();
            left.members.retain(|m| !nodes.contains(m));
            (if left.members.is_empty() { shard.clone() } else { left }, slots.clone())
        };
        let shards = Shards(shards.iter().map(thinned).collect());
        Self { layout: Layout::Cluster { shards }, ..self.clone() }
    }

    /// The data nodes that the spec names without giving them a part.
    #[must_use]
    pub fn spares(&self) -> BTreeSet<&Address> {
        let members = self.layout.members();
        let nodes = self.spec.nodes().iter().map(|n| &n.address);
        nodes.filter(|a| !members.contains(a)).collect()
    }

    /// The zone and machine of each node that the spec names.
    #[must_use]
    pub fn places(&self) -> BTreeMap<&Address, &NodeSpec> {
        self.spec.nodes().iter().chain(self.spec.sentinels()).map(|n| (&n.address, n)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(n: u32, members: &[&str]) -> Shard {
        Shard {
            id: ShardId::derive(TopologyId(uuid::Uuid::nil()), n),
            index: 0,
            members: members.iter().map(|m| m.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn shards_prove_that_slots_are_disjoint_and_complete() {
        let halves = SlotSet::shares(2);
        let (a, b) = (shard(0, &["a:1"]), shard(1, &["b:1"]));
        let made = |x: SlotSet, y: SlotSet| Shards::new(vec![(a.clone(), x), (b.clone(), y)]);
        assert!(made(halves[0].clone(), halves[1].clone()).is_ok());
        assert_eq!(made(SlotSet::all(), halves[1].clone()), Err(ShardsError::Overlap));
        assert_eq!(made(halves[0].clone(), SlotSet::empty()), Err(ShardsError::Incomplete));
        let twice = Shards::new(vec![(a.clone(), halves[0].clone()), (a, halves[1].clone())]);
        assert_eq!(twice, Err(ShardsError::SharedMember));
    }
}
