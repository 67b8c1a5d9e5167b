//! From shards as they are seen to the words of a spec.

use std::collections::BTreeMap;

use crate::domain::node::Address;
use crate::domain::slot::SlotSet;
use crate::domain::spec::{ClusterOverrides, ClusterSpec, ShardOverride};
use crate::domain::topology::Shard;

/// The spec with as many shards and replicas as there are; the most common number of replicas is
/// the rule, and what deviates from it an override. Of the drained nodes those stay that the spec still names.
pub(super) fn reshaped(spec: ClusterSpec, rows: &[(Shard, SlotSet)]) -> ClusterSpec {
    let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    let replicas = |shard: &Shard| count(shard.members.len().saturating_sub(1));
    let mut common: BTreeMap<u16, usize> = BTreeMap::new();
    for (shard, _) in rows {
        *common.entry(replicas(shard)).or_default() += 1;
    }
    let rule = common
        .iter()
        .max_by_key(|(n, shards)| {
            (**shards, **n == spec.replicas_per_shard, std::cmp::Reverse(**n))
        })
        .map_or(spec.replicas_per_shard, |(n, _)| *n);
    let deviating = rows.iter().map(|(s, _)| (s.id, replicas(s))).filter(|(_, n)| *n != rule);
    let shards = deviating.map(|(shard, replicas)| ShardOverride { shard, replicas }).collect();
    let named = |node: &Address| spec.nodes.iter().any(|n| n.address == *node);
    let drained = spec.overrides.drained.iter().filter(|n| named(n)).cloned().collect();
    ClusterSpec {
        shards: count(rows.len()),
        replicas_per_shard: rule,
        overrides: ClusterOverrides { shards, drained },
        ..spec
    }
}
