//! Reshard: these slots go from this shard to that one.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::moves::{self, Row, checked, meant};
use super::{Amendment, shards_of};
use crate::domain::observation::Observation;
use crate::domain::planner::Terms;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::slot::SlotSet;
use crate::domain::topology::{Layout, Shards, Topology};

/// Slots that are to be served by other shards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReshardIntent {
    #[schema(min_items = 1, max_items = 1000)]
    pub moves: Vec<SlotMove>,
    /// How long clients may wait because of it, in milliseconds; 5 when left out. Keys that stall
    /// their node for longer are hazards, each by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1000)]
    pub max_latency_ms: Option<u64>,
}

/// Some slots from one shard to another; which ones is said by `slots` or by `count`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SlotMove {
    /// The shard that has them: its id, its index from 0, or the address of a member.
    #[schema(min_length = 1, max_length = 260)]
    pub from: String,
    /// The shard that gets them, named likewise.
    #[schema(min_length = 1, max_length = 260)]
    pub to: String,
    /// Which ones, for example `0-99,200`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub slots: Option<SlotSet>,
    /// How many; the highest are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 16384)]
    pub count: Option<u16>,
}

pub fn amend(
    intent: &ReshardIntent,
    now: &Topology,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let rows = moved(intent, now)?;
    let (_, shards) = shards_of(now, "reshard")?;
    let moving = moves::moving(intent.max_latency_ms).map_err(|e| Refusal::Invalid(vec![e]))?;
    let warnings = checked(shards, &rows, "/intent/moves", seen)?;
    let shards = Shards::new(rows)
        .map_err(|why| Refusal::Invalid(vec![FieldError::new("/intent/moves", why.to_string())]))?;
    let layout = Layout::Cluster { shards };
    Ok(Amendment { spec: None, layout, terms: Terms { moving, ..Terms::default() }, warnings })
}

/// The shards with their new slots, or everything that is wrong with the moves by themselves.
pub(super) fn moved(intent: &ReshardIntent, now: &Topology) -> Result<Vec<Row>, Refusal> {
    let (_, shards) = shards_of(now, "reshard")?;
    let mut rows = shards.as_slice().to_vec();
    let mut errors: Vec<FieldError> =
        moves::moving(intent.max_latency_ms).err().into_iter().collect();
    if intent.moves.is_empty() || intent.moves.len() > 1000 {
        errors.push(FieldError::new("/intent/moves", "name from 1 to 1000 moves"));
    }
    let mut named = SlotSet::empty();
    for (i, step) in intent.moves.iter().enumerate() {
        let field = |name: &str| format!("/intent/moves/{i}{name}");
        let ends = [("/from", &step.from), ("/to", &step.to)];
        let ends = ends.map(|(at, name)| meant(name, &field(at), shards));
        let (from, to) = match ends {
            [Ok((from, _)), Ok((to, _))] => (from, to),
            wrong => {
                errors.extend(wrong.into_iter().filter_map(Result::err));
                continue;
            }
        };
        if from.id == to.id {
            let why = format!("both ends are shard {}; name another one", from.index);
            errors.push(FieldError::new(field("/to"), why));
            continue;
        }
        // What others gave it in the same request is not its to give: that would be one move.
        let owned = shards.iter().find(|(s, _)| s.id == from.id).map(|(_, slots)| slots.clone());
        let owned = owned.unwrap_or_default();
        match chosen(step, &owned, &named) {
            Ok(slots) => {
                named = named.union(&slots);
                for (shard, held) in &mut rows {
                    if shard.id == from.id {
                        *held = held.difference(&slots);
                    } else if shard.id == to.id {
                        *held = held.union(&slots);
                    }
                }
            }
            Err((at, why)) => errors.push(FieldError::new(field(at), why)),
        }
    }
    if errors.is_empty() { Ok(rows) } else { Err(Refusal::Invalid(errors)) }
}

/// The slots that a move is about; or what is wrong with which of its fields.
fn chosen(
    step: &SlotMove,
    owned: &SlotSet,
    named: &SlotSet,
) -> Result<SlotSet, (&'static str, String)> {
    let from = &step.from;
    match (&step.slots, step.count) {
        (Some(slots), None) => {
            let foreign = slots.difference(owned);
            let twice = slots.intersection(named);
            if slots.is_empty() {
                Err(("/slots", "no slot is named; write them as 0-99,200".to_owned()))
            } else if !foreign.is_empty() {
                Err((
                    "/slots",
                    format!("slots {foreign} are not served by shard {from}, which has {owned}"),
                ))
            } else if !twice.is_empty() {
                Err((
                    "/slots",
                    format!("slots {twice} are in another move already; name each slot once"),
                ))
            } else {
                Ok(slots.clone())
            }
        }
        (None, Some(count)) => {
            let left = owned.difference(named);
            match usize::from(count) {
                0 => Err(("/count", "at least 1".to_owned())),
                n if n > left.count() => Err((
                    "/count",
                    format!(
                        "shard {from} has {} slots that are in no other move, fewer than {count}",
                        left.count()
                    ),
                )),
                n => Ok(left.highest(n)),
            }
        }
        (None, None) | (Some(_), Some(_)) => {
            Err(("", "say which slots move by either `slots` or `count`".to_owned()))
        }
    }
}
