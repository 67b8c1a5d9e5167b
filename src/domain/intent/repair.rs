//! Repair: the topology as it is wanted, once more. Nodes that were taken out while they did not
//! answer, and that are back, are taken out now; slots that anybody left half-way are moved on.

use std::collections::{BTreeMap, BTreeSet};

use super::Amendment;
use crate::domain::id::ShardId;
use crate::domain::lineage;
use crate::domain::node::Address;
use crate::domain::observation::Observation;
use crate::domain::planner::{Leaver, Moving, Terms};
use crate::domain::topology::Topology;

/// Outside of clusters a dead node is left as it is, so that what can be mended is.
fn dead(now: &Topology, seen: &Observation) -> BTreeSet<Address> {
    now.layout.lone().map(|shard| lineage::dead_members(shard, seen)).unwrap_or_default()
}

#[must_use]
pub fn amend(now: &Topology, seen: &Observation) -> Amendment {
    let moving = Moving { closes_foreign: true, ..Moving::default() };
    let terms =
        Terms { leavers: returned(now, seen), moving, apart: dead(now, seen), ..Terms::default() };
    Amendment { spec: None, layout: now.layout.clone(), terms, warnings: vec![] }
}

/// Nodes with a mark of an identity that are not wanted, and that know others.
#[must_use]
pub fn returned(now: &Topology, seen: &Observation) -> BTreeMap<Address, Leaver> {
    let members = now.layout.members();
    // It is of no shard any more.
    let shard = ShardId(now.id.0);
    let marked = seen.marks.iter().filter(|m| m.what.identity().is_some()).map(|m| &m.node);
    let back = |node: &Address| {
        if now.layout.lone().is_some() {
            let report = seen.report(node).filter(|r| !r.is_blank() && !r.cluster_enabled)?;
            let leaver = Leaver { shard, identity: report.identity(), bares: None };
            return Some((node.clone(), leaver));
        }
        let view = seen.view(node).filter(|v| v.peers.len() > 1)?;
        let knows =
            members.iter().filter_map(|m| seen.view(m)).any(|m| view.peers.contains_key(&m.my_id));
        let leaver = Leaver { shard, identity: view.my_id.clone(), bares: None };
        knows.then(|| (node.clone(), leaver))
    };
    marked.filter(|node| !members.contains(node)).filter_map(back).collect()
}
