//! Add a shard: nodes that come form it, and the others give it slots.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::members::{Fields, change, chosen, with_node};
use super::moves::{Row, checked};
use super::{Amendment, NodeChoice, shards_of};
use crate::domain::balance::grown;
use crate::domain::node::Address;
use crate::domain::observation::Observation;
use crate::domain::placement::Warning;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::slot::SlotSet;
use crate::domain::spec::{ClusterSpec, NodeSpec};
use crate::domain::topology::{Shards, Topology};
use crate::domain::view;

/// One more shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddShardIntent {
    /// Its members: nodes that are new to the topology, or the addresses of its spare nodes. One in
    /// a zone with few primaries becomes the primary, the first of equals.
    #[schema(min_items = 1, max_items = 1000)]
    pub nodes: Vec<NodeChoice>,
    /// Whether the other shards give it an equal share of the slots; otherwise it begins without any.
    #[serde(default = "yes")]
    pub rebalance: bool,
}

fn yes() -> bool {
    true
}

pub fn amend(
    intent: &AddShardIntent,
    now: &Topology,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let nodes = members(intent, now)?;
    let (spec, shards) = shards_of(now, "add_shard")?;
    let drained = &spec.overrides.drained;
    let spec = nodes.iter().fold(spec.clone(), |spec, node| with_node(&spec, node));
    let replicas = spec.replicas_per_shard;
    let mut addresses: Vec<Address> = nodes.iter().map(|n| n.address.clone()).collect();
    let led = |zone: &str| primaries_in(zone, &spec, shards, seen);
    let first = (0..nodes.len())
        .min_by_key(|i| (drained.contains(&nodes[*i].address), led(&nodes[*i].zone), *i));
    addresses[..=first.unwrap_or(0)].rotate_right(1);
    let mut rows = shards.as_slice().to_vec();
    let mut shard = shards.fresh(now.id);
    shard.members = addresses;
    if intent.rebalance {
        let before: Vec<SlotSet> = rows.iter().map(|(_, slots)| slots.clone()).collect();
        let mut after = grown(&before, 1);
        rows.push((shard, after.pop().unwrap_or_default()));
        rows.iter_mut().zip(after).for_each(|(row, slots)| row.1 = slots);
    } else {
        rows.push((shard, SlotSet::empty()));
    }
    let comer = |node: &Address| {
        let at = nodes.iter().position(|n| n.address == *node);
        at.map_or("/intent/nodes".to_owned(), |i| format!("/intent/nodes/{i}"))
    };
    let moves = checked(shards, &rows, "/intent/nodes", seen)?;
    let fields = Fields { comer: &comer, goer: "/intent" };
    let mut amendment = change(now, spec, rows, "/intent/nodes", &fields, seen)?;
    amendment.warnings.extend(moves);
    if nodes.len() != usize::from(replicas) + 1 {
        let message = format!(
            "the shard has {} members, and {} would be usual: it stands in spec.overrides",
            nodes.len(),
            replicas + 1
        );
        amendment.warnings.push(Warning { code: "replicas_deviate".to_owned(), message });
    }
    Ok(amendment)
}

/// The nodes that are to be members, or everything that is wrong with the list by itself.
pub(super) fn members(intent: &AddShardIntent, now: &Topology) -> Result<Vec<NodeSpec>, Refusal> {
    let (spec, shards) = shards_of(now, "add_shard")?;
    let mut nodes: Vec<NodeSpec> = Vec::new();
    let mut errors = Vec::new();
    if intent.nodes.is_empty() {
        let why = "name at least one node; with replicas a shard survives the loss of one";
        errors.push(FieldError::new("/intent/nodes", why));
    }
    for (i, choice) in intent.nodes.iter().enumerate() {
        let field = format!("/intent/nodes/{i}");
        match chosen(choice, &field, spec, shards) {
            Ok(node) if nodes.iter().any(|n| n.address == node.address) => {
                let why = format!("{} is listed twice; name each node once", node.address);
                errors.push(FieldError::new(field, why));
            }
            Ok(node) => nodes.push(node),
            Err(Refusal::Invalid(more)) => errors.extend(more),
            Err(other) => return Err(other),
        }
    }
    if errors.is_empty() { Ok(nodes) } else { Err(Refusal::Invalid(errors)) }
}

fn primaries_in(zone: &str, spec: &ClusterSpec, shards: &Shards, seen: &Observation) -> usize {
    let leads = |(shard, slots): &&Row| {
        let primary = view::agreed_primary(shard, slots, seen);
        spec.nodes.iter().any(|n| Some(&n.address) == primary.as_ref() && n.zone == zone)
    };
    shards.iter().filter(leads).count()
}
