//! Intents: the changes that people ask for. Each amends the wanted topology and adds terms; what
//! is done about it on nodes is the planner's matter.

pub mod accept_drift;
pub mod add_shard;
pub mod adopt;
pub mod create;
pub mod dissolve;
pub mod drain;
pub mod failover;
mod lone;
pub mod members;
mod moves;
pub mod rebalance;
pub mod remove_shard;
pub mod repair;
pub mod replace;
mod reshape;
pub mod reshard;
pub mod revert;
pub mod sentinels;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::add_shard::AddShardIntent;
use self::rebalance::BalanceBy;
pub use self::rebalance::RebalanceIntent;
pub use self::remove_shard::RemoveShardIntent;
pub use self::reshard::ReshardIntent;
use super::moving::survey::Depth;
use super::node::Address;
use super::observation::{Observation, Sighting};
use super::placement::Warning;
use super::planner::Terms;
use super::refusal::{FieldError, Refusal};
use super::slot::SlotSet;
use super::spec::{ClusterSpec, NodeSpec, Spec};
use super::step::command::FailoverMethod;
use super::topology::{Layout, Shard, Shards, Topology};
use super::view;

/// What a plan is for. A new kind is additive; a kind never changes its meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Intent {
    /// Make a new topology on its nodes (`POST /v1/topologies`).
    Create(CreateIntent),
    /// Make the topology as it is wanted once more: leftover marks, nodes that lost each other,
    /// replicas that do not follow, slots that nobody owns.
    Repair(RepairIntent),
    /// Make an older version the wanted one again. Slots move back with their keys, and members that
    /// it did not have leave.
    Revert(RevertIntent),
    /// Make what is seen the wanted topology. Nothing is changed on nodes.
    AcceptDrift(AcceptDriftIntent),
    /// Empty every member and leave it alone again. Each node with keys is a hazard of its own.
    Dissolve(DissolveIntent),
    /// Make a replica the primary of its shard.
    Failover(FailoverIntent),
    /// Give a shard one more replica.
    AddReplica(AddReplicaIntent),
    /// Take a replica out of the cluster; it is blank afterwards.
    RemoveReplica(RemoveReplicaIntent),
    /// Put one node in the place of another, which leaves the cluster.
    ReplaceNode(ReplaceNodeIntent),
    /// Have others serve what a zone or a node serves, for as long as it is drained.
    Drain(DrainIntent),
    /// Let what was drained serve again. Nothing moves.
    Undrain(UndrainIntent),
    /// Want another spec (`PUT /v1/topologies/{name}`).
    ReplaceSpec(ReplaceSpecIntent),
    /// Have other shards serve these slots.
    Reshard(ReshardIntent),
    /// Give every shard its share, by slots, keys or bytes.
    Rebalance(RebalanceIntent),
    /// Form one more shard of nodes that come, and give it slots.
    AddShard(AddShardIntent),
    /// Give a shard's slots to the others and take its nodes out; they are blank afterwards.
    RemoveShard(RemoveShardIntent),
    /// One Sentinel more.
    AddSentinel(AddSentinelIntent),
    /// One Sentinel less: it stops watching, and then the others forget it one after the other.
    RemoveSentinel(RemoveSentinelIntent),
}

/// Which shard, and how. One of `shard`, `node` and `to` is enough to tell the shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailoverIntent {
    /// The shard's id, or its index from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 36)]
    pub shard: Option<String>,
    /// A node of the shard, such as its primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Address>,
    /// The replica that is to take over; the best one when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Address>,
    #[serde(default)]
    pub method: FailoverMethod,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddReplicaIntent {
    /// The shard's id, or its index from 0; the one with the fewest replicas when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 36)]
    pub shard: Option<String>,
    /// The node to use; a spare node of the topology when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeChoice>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveReplicaIntent {
    pub node: Address,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplaceNodeIntent {
    pub node: Address,
    pub with: NodeChoice,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddSentinelIntent {
    /// The Sentinel, with its zone.
    pub node: NodeChoice,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveSentinelIntent {
    pub node: Address,
}

/// A zone or a node, one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainIntent {
    /// All nodes of the topology in this zone, spares too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 128)]
    pub zone: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Address>,
}

/// A zone or a node, one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UndrainIntent {
    /// All nodes in this zone that are drained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 128)]
    pub zone: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Address>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplaceSpecIntent {
    pub spec: Box<Spec>,
}

/// A node that is new to the topology, or the address of one of its spare nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "name a node as {\"address\": \"HOST:PORT\", \"zone\": \"a\"}, or a spare of the topology by its address alone"
)]
pub enum NodeChoice {
    Spare(Address),
    New(NodeSpec),
}

impl NodeChoice {
    #[must_use]
    pub fn address(&self) -> &Address {
        match self {
            Self::Spare(address) => address,
            Self::New(node) => &node.address,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateIntent {
    /// Whether nodes that hold keys or remains of a cluster may be emptied.
    #[serde(default)]
    pub reset_nodes: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RepairIntent {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevertIntent {
    /// The version to go back to, as `GET /v1/topologies/{name}/versions` lists it.
    #[schema(minimum = 1)]
    pub version: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceptDriftIntent {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DissolveIntent {}

impl Intent {
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Repair(_) => "repair",
            Self::Revert(_) => "revert",
            Self::AcceptDrift(_) => "accept_drift",
            Self::Dissolve(_) => "dissolve",
            Self::Failover(_) => "failover",
            Self::AddReplica(_) => "add_replica",
            Self::RemoveReplica(_) => "remove_replica",
            Self::ReplaceNode(_) => "replace_node",
            Self::Drain(_) => "drain",
            Self::Undrain(_) => "undrain",
            Self::ReplaceSpec(_) => "replace_spec",
            Self::Reshard(_) => "reshard",
            Self::Rebalance(_) => "rebalance",
            Self::AddShard(_) => "add_shard",
            Self::RemoveShard(_) => "remove_shard",
            Self::AddSentinel(_) => "add_sentinel",
            Self::RemoveSentinel(_) => "remove_sentinel",
        }
    }

    /// Whether it may begin where the topology is not as wanted, and go before another plan.
    #[must_use]
    pub fn is_emergency(&self) -> bool {
        matches!(self, Self::Repair(_) | Self::Failover(_))
    }

    /// Refuses what is impossible by itself, before anything is looked at.
    pub fn refuse_impossible(&self, now: &Topology) -> Result<(), Refusal> {
        match self {
            Self::Drain(i) => drain::named(i.zone.as_deref(), i.node.as_ref(), &now.spec).map(drop),
            Self::Undrain(i) => {
                drain::named(i.zone.as_deref(), i.node.as_ref(), &now.spec).map(drop)
            }
            Self::ReplaceSpec(replace) => match lone::of(now) {
                Some(_) => lone::replace::possible(replace, now).map(drop),
                None => replace::possible(replace, now).map(drop),
            },
            Self::Reshard(reshard) => reshard::moved(reshard, now).map(drop),
            Self::Rebalance(rebalance) => rebalance::weights(rebalance, now).map(drop),
            Self::AddShard(add) => add_shard::members(add, now).map(drop),
            Self::RemoveShard(remove) => remove_shard::meant(remove, now).map(drop),
            Self::AddSentinel(add) => sentinels::added(add, now).map(drop),
            Self::RemoveSentinel(remove) => sentinels::removed(remove, now).map(drop),
            Self::Create(_)
            | Self::Repair(_)
            | Self::Revert(_)
            | Self::AcceptDrift(_)
            | Self::Dissolve(_)
            | Self::Failover(_)
            | Self::AddReplica(_)
            | Self::RemoveReplica(_)
            | Self::ReplaceNode(_) => Ok(()),
        }
    }

    /// The nodes that it brings into the topology, each with the field that names it.
    #[must_use]
    pub fn newcomers(&self, now: &Topology) -> BTreeMap<Address, String> {
        let choice = match self {
            Self::AddReplica(add) => add.node.as_ref(),
            Self::AddSentinel(add) => Some(&add.node),
            Self::ReplaceNode(replace) => Some(&replace.with),
            Self::ReplaceSpec(replace) => {
                let known =
                    |node: &&NodeSpec| now.spec.nodes().iter().any(|n| n.address == node.address);
                let nodes = replace.spec.nodes();
                let new = nodes.iter().filter(|n| !known(n)).map(|n| &n.address);
                return new.map(|a| (a.clone(), field_of(a, nodes))).collect();
            }
            Self::AddShard(add) => {
                let field = |i| format!("/intent/nodes/{i}");
                let nodes = add.nodes.iter().enumerate();
                return nodes.map(|(i, node)| (node.address().clone(), field(i))).collect();
            }
            Self::Reshard(_)
            | Self::Rebalance(_)
            | Self::RemoveShard(_)
            | Self::Drain(_)
            | Self::Undrain(_)
            | Self::Create(_)
            | Self::Repair(_)
            | Self::Revert(_)
            | Self::AcceptDrift(_)
            | Self::Dissolve(_)
            | Self::Failover(_)
            | Self::RemoveSentinel(_)
            | Self::RemoveReplica(_) => None,
        };
        choice.map(|c| (c.address().clone(), "/intent".to_owned())).into_iter().collect()
    }

    /// The Sentinels that it brings in.
    #[must_use]
    pub fn new_sentinels(&self) -> BTreeSet<Address> {
        match self {
            Self::AddSentinel(add) => [add.node.address().clone()].into(),
            other => {
                let sentinels = other.new_spec().map_or(&[][..], Spec::sentinels);
                sentinels.iter().map(|n| n.address.clone()).collect()
            }
        }
    }

    /// The nodes that it takes out or that are worked on, where members are exchanged all that are dead,
    /// and where a shard goes its own dead: however they do, it may begin.
    #[must_use]
    pub fn apart(&self, now: &Topology, seen: &Observation) -> BTreeSet<Address> {
        let named = |zone: &Option<String>, node: &Option<Address>| {
            drain::named(zone.as_deref(), node.as_ref(), &now.spec).unwrap_or_default()
        };
        let dead = || {
            let mut dead = view::dead_members(&now.layout, seen);
            dead.extend(lone::watched::dead_sentinels(now, seen));
            dead
        };
        match self {
            Self::AddReplica(_) => dead(),
            Self::RemoveReplica(remove) => {
                dead().into_iter().chain([remove.node.clone()]).collect()
            }
            Self::ReplaceNode(replace) => {
                dead().into_iter().chain([replace.node.clone()]).collect()
            }
            Self::AddSentinel(_) => dead(),
            Self::RemoveSentinel(remove) => {
                dead().into_iter().chain([remove.node.clone()]).collect()
            }
            Self::Drain(drain) => named(&drain.zone, &drain.node),
            Self::Undrain(undrain) => named(&undrain.zone, &undrain.node),
            Self::ReplaceSpec(replace) => {
                let stays = |a: &Address| replace.spec.nodes().iter().any(|n| n.address == *a);
                let gone = now.spec.nodes().iter().map(|n| &n.address).filter(|a| !stays(a));
                gone.cloned().collect()
            }
            // Nobody misses its dead replicas; all others are needed until its slots are elsewhere.
            Self::RemoveShard(remove) => {
                let goes = remove_shard::meant(remove, now).map(|(shard, _)| &shard.members);
                let goes = |node: &Address| goes.as_ref().is_ok_and(|all| all.contains(node));
                dead().into_iter().filter(goes).collect()
            }
            Self::Reshard(_)
            | Self::Rebalance(_)
            | Self::AddShard(_)
            | Self::Create(_)
            | Self::Repair(_)
            | Self::Revert(_)
            | Self::AcceptDrift(_)
            | Self::Dissolve(_)
            | Self::Failover(_) => BTreeSet::new(),
        }
    }

    /// The spec that is wanted from now on, where the request has one.
    #[must_use]
    pub fn new_spec(&self) -> Option<&Spec> {
        match self {
            Self::ReplaceSpec(replace) => Some(&replace.spec),
            Self::Reshard(_)
            | Self::Rebalance(_)
            | Self::AddShard(_)
            | Self::RemoveShard(_)
            | Self::Create(_)
            | Self::Repair(_)
            | Self::Revert(_)
            | Self::AcceptDrift(_)
            | Self::Dissolve(_)
            | Self::Failover(_)
            | Self::AddReplica(_)
            | Self::RemoveReplica(_)
            | Self::ReplaceNode(_)
            | Self::AddSentinel(_)
            | Self::RemoveSentinel(_)
            | Self::Drain(_)
            | Self::Undrain(_) => None,
        }
    }

    /// The version of the topology that it goes back to, if it does.
    #[must_use]
    pub fn back_to(&self) -> Option<i32> {
        match self {
            Self::Revert(revert) => Some(revert.version),
            Self::Reshard(_)
            | Self::Rebalance(_)
            | Self::AddShard(_)
            | Self::RemoveShard(_)
            | Self::Drain(_)
            | Self::Undrain(_)
            | Self::ReplaceSpec(_)
            | Self::Create(_)
            | Self::Repair(_)
            | Self::AcceptDrift(_)
            | Self::Dissolve(_)
            | Self::Failover(_)
            | Self::AddReplica(_)
            | Self::RemoveReplica(_)
            | Self::AddSentinel(_)
            | Self::RemoveSentinel(_)
            | Self::ReplaceNode(_) => None,
        }
    }

    /// The slots whose content decides what it amounts to, and how closely they have to be looked at.
    #[must_use]
    pub fn weighs(&self, now: &Topology) -> Option<(SlotSet, Depth)> {
        match self {
            Self::Rebalance(rebalance) => match rebalance.by {
                BalanceBy::Slots => None,
                BalanceBy::Keys => Some((SlotSet::all(), Depth::Counts)),
                BalanceBy::Bytes => Some((SlotSet::all(), Depth::Sizes)),
            },
            Self::RemoveShard(remove) => {
                let (_, slots) = remove_shard::meant(remove, now).ok()?;
                Some((slots.clone(), Depth::Sizes))
            }
            Self::Reshard(_)
            | Self::AddShard(_)
            | Self::Drain(_)
            | Self::Undrain(_)
            | Self::ReplaceSpec(_)
            | Self::Create(_)
            | Self::Repair(_)
            | Self::Revert(_)
            | Self::AcceptDrift(_)
            | Self::Dissolve(_)
            | Self::Failover(_)
            | Self::AddReplica(_)
            | Self::RemoveReplica(_)
            | Self::AddSentinel(_)
            | Self::RemoveSentinel(_)
            | Self::ReplaceNode(_) => None,
        }
    }

    #[must_use]
    pub fn is_dissolve(&self) -> bool {
        matches!(self, Self::Dissolve(_))
    }
}

/// What an intent makes of the topology.
#[derive(Debug, Clone, PartialEq)]
pub struct Amendment {
    /// The new spec; none where it stays as it is.
    pub spec: Option<Spec>,
    pub layout: Layout,
    pub terms: Terms,
    pub warnings: Vec<Warning>,
}

/// Something wrong with a node that the topology's spec lists; the pointer leads there.
fn about(node: &Address, spec: &Spec, detail: impl std::fmt::Display) -> FieldError {
    FieldError::new(field_of(node, spec.nodes()), format!("{node} {detail}"))
}

/// Where a spec lists a node.
fn field_of(node: &Address, nodes: &[NodeSpec]) -> String {
    let at = nodes.iter().position(|n| n.address == *node);
    at.map_or("/spec/nodes".to_owned(), |i| format!("/spec/nodes/{i}/address"))
}

/// Why a node cannot be judged, if it cannot; continues a sentence that begins with its address.
fn unjudged(node: &Address, seen: &Observation) -> Option<String> {
    match seen.sighting(node) {
        Sighting::Seen(report) if report.loading => Some("still loads its data".to_owned()),
        Sighting::Seen(report) if report.cluster.is_none() => {
            Some("does not run in cluster mode".to_owned())
        }
        Sighting::Seen(_) => None,
        Sighting::Silent(silence) => Some(format!("does not answer ({})", silence.message)),
        Sighting::Unknown => Some("was not looked at".to_owned()),
    }
}

/// The shards of a topology that is a cluster.
fn shards_of<'a>(now: &'a Topology, what: &str) -> Result<(&'a ClusterSpec, &'a Shards), Refusal> {
    match (&now.spec, &now.layout) {
        (Spec::Cluster(spec), Layout::Cluster { shards }) => Ok((spec, shards)),
        (Spec::Cluster(_) | Spec::Replication(_) | Spec::Sentinel(_), _) => {
            Err(Refusal::Unsupported(format!(
                "{what} is for topologies of mode cluster that have members"
            )))
        }
    }
}

/// The shard that a request names by its id or index.
fn shard_named<'a>(name: &str, shards: &'a Shards) -> Result<&'a (Shard, SlotSet), Refusal> {
    let named = |(shard, _): &&(Shard, SlotSet)| {
        shard.id.0.to_string() == name || shard.index.to_string() == name
    };
    shards.iter().find(named).ok_or_else(|| {
        let all: Vec<_> = shards.iter().map(|(s, _)| s.index.to_string()).collect();
        Refusal::Invalid(vec![FieldError::new(
            "/intent/shard",
            format!(
                "there is no shard `{name}`; name one by its id or by its index, of which there are {}",
                all.join(", ")
            ),
        )])
    })
}

/// The shard that a node is a member of.
fn shard_with<'a>(
    node: &Address,
    field: &str,
    shards: &'a Shards,
) -> Result<&'a (Shard, SlotSet), Refusal> {
    shards.iter().find(|(shard, _)| shard.members.contains(node)).ok_or_else(|| {
        Refusal::Invalid(vec![FieldError::new(
            field,
            format!("{node} is no member of this topology; its members stand in `layout`"),
        )])
    })
}
