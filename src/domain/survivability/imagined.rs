//! An imagined loss in full: beside its outcome, who would take over, and what memory is left.

use serde::Serialize;
use utoipa::ToSchema;

use super::{Hits, Loss, Lost, Part, Scene, what_if};
use crate::domain::id::ShardId;
use crate::domain::node::Address;
use crate::domain::observation::{Memory, Observation};

/// What one imagined failure does, and what is left.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct WhatIfOutcome {
    #[serde(flatten)]
    pub loss: Loss,
    /// One for each shard that loses its primary and gets another by itself.
    pub promoted: Vec<Promoted>,
    /// The data nodes that are left, shard by shard.
    pub survivors: Vec<Survivor>,
    pub memory: MemoryLeft,
}

/// Who takes over in a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Promoted {
    pub shard: ShardId,
    /// The replicas that are left, the likeliest first: the one with most of the data, as far as
    /// that was seen.
    pub candidates: Vec<Address>,
}

/// A data node that is left. Its memory is null where the node was not seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Survivor {
    pub address: Address,
    pub shard: ShardId,
    pub used_bytes: Option<u64>,
    /// Null also where no limit is set.
    pub maxmemory_bytes: Option<u64>,
}

/// The memory of the survivors together, as far as it was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct MemoryLeft {
    pub used_bytes: u64,
    /// Null unless all of them have a limit.
    pub maxmemory_bytes: Option<u64>,
    /// Survivors whose limit is below what their shard's primary held: what does not fit is evicted
    /// or refused once they serve.
    pub short: Vec<Address>,
}

/// Imagines a loss.
#[must_use]
pub fn imagine(scene: &Scene, seen: &Observation, fail: &Lost) -> WhatIfOutcome {
    let loss = what_if(scene, fail);
    let hit = Hits::of(fail);
    let memory = |node: &Address| seen.report(node).map(|r| &r.memory);
    let limit = |m: Option<&Memory>| m.map(|m| m.max_bytes).filter(|bytes| *bytes > 0);
    let offset = |part: &&Part| seen.report(&part.address).map(|r| r.replication.offset);
    let (mut promoted, mut survivors, mut short) = (vec![], vec![], vec![]);
    for group in &scene.groups {
        let mut left: Vec<&Part> = group.members.iter().filter(|m| !hit.on(m)).collect();
        left.sort_by_key(|part| std::cmp::Reverse(offset(part)));
        let leader = group.leader();
        let headless = match leader {
            Some(leader) => left.iter().all(|m| m.address != *leader),
            None => left.len() < group.members.len(),
        };
        let served = !loss.shards_lost.contains(&group.id);
        if headless && served && !left.is_empty() {
            let candidates = left.iter().map(|part| part.address.clone()).collect();
            promoted.push(Promoted { shard: group.id, candidates });
        }
        let held = leader.and_then(memory).map(|m| m.used_bytes);
        for part in left {
            let of = memory(&part.address);
            if matches!((limit(of), held), (Some(limit), Some(held)) if limit < held) {
                short.push(part.address.clone());
            }
            survivors.push(Survivor {
                address: part.address.clone(),
                shard: group.id,
                used_bytes: of.map(|m| m.used_bytes),
                maxmemory_bytes: limit(of),
            });
        }
    }
    let memory = MemoryLeft {
        used_bytes: survivors.iter().filter_map(|s| s.used_bytes).sum(),
        maxmemory_bytes: survivors.iter().map(|s| s.maxmemory_bytes).sum(),
        short,
    };
    WhatIfOutcome { loss, promoted, survivors, memory }
}
