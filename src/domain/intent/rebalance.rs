//! Rebalance: every shard gets its share, by slots, keys or bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::moves::{self, checked, meant};
use super::{Amendment, shards_of};
use crate::domain::balance::{Cost, Stake, balanced};
use crate::domain::id::ShardId;
use crate::domain::moving::survey::Figures;
use crate::domain::observation::Observation;
use crate::domain::placement::Warning;
use crate::domain::planner::Terms;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::slot::SlotSet;
use crate::domain::topology::{Layout, Shards, Topology};

/// Deviations up to this are left alone.
const THRESHOLD_PERCENT: u32 = 2;

/// Shares that are to be even, or as weighted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RebalanceIntent {
    /// How much a shard is to have beside the others, by its id, its index, or the address of a
    /// member; 1 for those that are not named. A shard of weight 0 ends without slots.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, f64>)]
    pub weights: BTreeMap<String, Weight>,
    #[serde(default)]
    pub by: BalanceBy,
    /// Where no shard deviates from its share by more than this, in percent of the share, nothing
    /// moves; 2 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 100)]
    pub threshold_percent: Option<u32>,
    /// How long clients may wait because of it, in milliseconds; 5 when left out. Keys that stall
    /// their node for longer are hazards, each by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1000)]
    pub max_latency_ms: Option<u64>,
}

/// What is to be even.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BalanceBy {
    #[default]
    Slots,
    Keys,
    /// Memory that keys take, from a sample of them.
    Bytes,
}

/// From 0 to a million.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Weight(f64);

// It is a number.
impl Eq for Weight {}

impl Weight {
    #[must_use]
    pub fn new(weight: f64) -> Option<Self> {
        (0.0..=1_000_000.0).contains(&weight).then_some(Self(weight))
    }
}

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let weight = f64::deserialize(deserializer)?;
        let why = || serde::de::Error::custom("a weight is a number from 0 to 1000000");
        Self::new(weight).ok_or_else(why)
    }
}

pub fn amend(
    intent: &RebalanceIntent,
    now: &Topology,
    figures: &Figures,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let weights = weights(intent, now)?;
    let (_, shards) = shards_of(now, "rebalance")?;
    let moving = moves::moving(intent.max_latency_ms).map_err(|e| Refusal::Invalid(vec![e]))?;
    let stake = |(shard, slots): &super::moves::Row| Stake {
        slots: slots.clone(),
        weight: weights.get(&shard.id).map_or(1.0, |weight| weight.0),
    };
    let stakes: Vec<Stake> = shards.iter().map(stake).collect();
    let threshold = intent.threshold_percent.unwrap_or(THRESHOLD_PERCENT);
    let slots = balanced(&stakes, cost(intent.by, figures)?, threshold);
    let rows = shards.iter().zip(slots).map(|((shard, _), slots)| (shard.clone(), slots));
    let rows: Vec<_> = rows.collect();
    let mut warnings = checked(shards, &rows, "/intent/weights", seen)?;
    if rows == shards.as_slice() {
        let message = format!(
            "no shard deviates from its share by more than {threshold} %, so nothing moves"
        );
        warnings.push(Warning { code: "balanced".to_owned(), message });
    }
    let shards = Shards::new(rows)
        .map_err(|why| Refusal::Invalid(vec![FieldError::new("/intent", why.to_string())]))?;
    let layout = Layout::Cluster { shards };
    Ok(Amendment { spec: None, layout, terms: Terms { moving, ..Terms::default() }, warnings })
}

/// The weight of each shard that has one, or everything that is wrong with the request by itself.
pub(super) fn weights(
    intent: &RebalanceIntent,
    now: &Topology,
) -> Result<BTreeMap<ShardId, Weight>, Refusal> {
    let (_, shards) = shards_of(now, "rebalance")?;
    let mut errors: Vec<FieldError> =
        moves::moving(intent.max_latency_ms).err().into_iter().collect();
    if intent.threshold_percent.is_some_and(|percent| percent > 100) {
        let why = "a percentage from 0 to 100; leave it out for 2";
        errors.push(FieldError::new("/intent/threshold_percent", why));
    }
    let mut weights = BTreeMap::new();
    for (name, weight) in &intent.weights {
        let field = format!("/intent/weights/{}", name.replace('~', "~0").replace('/', "~1"));
        match meant(name, &field, shards) {
            Ok((shard, _)) if weights.insert(shard.id, *weight).is_some() => {
                let why = format!("shard {} is named twice; give it one weight", shard.index);
                errors.push(FieldError::new(field, why));
            }
            Ok(_) => {}
            Err(error) => errors.push(error),
        }
    }
    let none = |weight: &Weight| weight.0 <= 0.0;
    if weights.len() == shards.len() && weights.values().all(none) {
        let why = "all weights are 0, so nobody would serve anything; give one shard more";
        errors.push(FieldError::new("/intent/weights", why));
    }
    if errors.is_empty() { Ok(weights) } else { Err(Refusal::Invalid(errors)) }
}

fn cost(by: BalanceBy, figures: &Figures) -> Result<Cost<'_>, Refusal> {
    let costs = match by {
        BalanceBy::Slots => return Ok(Cost::Slots),
        BalanceBy::Keys => &figures.keys,
        BalanceBy::Bytes => &figures.bytes,
    };
    let known: SlotSet = costs.keys().copied().collect();
    if known == SlotSet::all() {
        return Ok(Cost::Of(costs));
    }
    let whys = figures.failures.join("; ");
    let why = format!(
        "what is in slots {} is not known ({whys}): try again, or balance by slots",
        known.complement()
    );
    let errors = vec![FieldError::new("/intent/by", why)];
    Err(Refusal::NodesUnfit { errors, redis: None })
}
