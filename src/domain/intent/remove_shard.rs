//! Remove a shard: the others take its slots, then its nodes leave the cluster.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::members::{Fields, change, without_node};
use super::moves::{Row, checked, taken_over};
use super::{Amendment, shard_named, shard_with, shards_of};
use crate::domain::moving::survey::Figures;
use crate::domain::node::Address;
use crate::domain::observation::Observation;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::topology::Topology;

/// The shard that goes, by either field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveShardIntent {
    /// The shard's id, or its index from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 36)]
    pub shard: Option<String>,
    /// A node of the shard, such as its primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<Address>,
}

/// The others get its slots in equal shares, as far as they have room.
pub fn amend(
    intent: &RemoveShardIntent,
    now: &Topology,
    figures: &Figures,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let (gone, _) = meant(intent, now)?;
    let field = if intent.shard.is_some() { "/intent/shard" } else { "/intent/primary" };
    let (spec, shards) = shards_of(now, "remove_shard")?;
    let mut rows: Vec<Row> = shards.iter().filter(|(s, _)| s.id != gone.id).cloned().collect();
    let slots = taken_over(shards, &rows, figures, field, seen)?;
    rows.iter_mut().zip(slots).for_each(|(row, slots)| row.1 = slots);
    let moves = checked(shards, &rows, field, seen)?;
    let spec = gone.members.iter().fold(spec.clone(), |spec, node| without_node(&spec, node));
    let fields = Fields { comer: &|_| field.to_owned(), goer: field };
    let mut amendment = change(now, spec, rows, field, &fields, seen)?;
    amendment.warnings.extend(moves);
    Ok(amendment)
}

/// The shard that goes, if it may.
pub(super) fn meant<'a>(intent: &RemoveShardIntent, now: &'a Topology) -> Result<&'a Row, Refusal> {
    let (_, shards) = shards_of(now, "remove_shard")?;
    let invalid = |field: &str, why: String| Refusal::Invalid(vec![FieldError::new(field, why)]);
    let by_name = intent.shard.as_deref().map(|name| shard_named(name, shards)).transpose()?;
    let node = intent.primary.as_ref();
    let by_node = node.map(|node| shard_with(node, "/intent/primary", shards)).transpose()?;
    let (row, field) = match (by_name, by_node) {
        (Some(one), Some(other)) if one.0.id != other.0.id => {
            let why = "`shard` and `primary` name different shards; one of them is enough";
            return Err(invalid("/intent/primary", why.to_owned()));
        }
        (Some(row), _) => (row, "/intent/shard"),
        (None, Some(row)) => (row, "/intent/primary"),
        (None, None) => {
            let why =
                "name the shard by `shard` (its id or index) or by `primary` (one of its nodes)";
            return Err(invalid("/intent", why.to_owned()));
        }
    };
    if shards.len() <= 3 {
        let why = format!(
            "{} shards would be left, and they cannot elect a primary: Redis Cluster needs a majority of at least 3",
            shards.len().saturating_sub(1)
        );
        return Err(invalid(field, why));
    }
    Ok(row)
}
