//! Dissolve: every member becomes a blank node that belongs to nobody.

use std::collections::{BTreeMap, BTreeSet};

use super::{Amendment, about, lone, unjudged};
use crate::domain::node::Address;
use crate::domain::observation::Observation;
use crate::domain::planner::{ResetTerm, Terms};
use crate::domain::refusal::Refusal;
use crate::domain::spec::Mode;
use crate::domain::topology::{Layout, Topology};

/// No members, and terms to empty those that there are. `former` are the members of the last
/// version that had some; they are asked for only where `now` has none any more, since an earlier
/// dissolve was not carried to its end. Spares are left as they are.
pub fn amend(
    now: &Topology,
    former: &BTreeSet<Address>,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let members: BTreeSet<&Address> = match &now.layout {
        Layout::Cluster { .. } | Layout::Replication { .. } | Layout::Sentinel { .. } => {
            now.layout.members()
        }
        Layout::Gone => former.iter().collect(),
    };
    let unjudged = match now.spec.mode() {
        Mode::Cluster => unjudged,
        Mode::Replication | Mode::Sentinel => lone::unjudged,
    };
    let errors: Vec<_> = members
        .iter()
        .filter_map(|node| {
            let why = unjudged(node, seen)?;
            let detail = format!(
                "{why}, so nobody can say what would be lost with it: bring it back and ask again, or forget the topology without touching its nodes (DELETE)"
            );
            Some(about(node, &now.spec, detail))
        })
        .collect();
    if !errors.is_empty() {
        return Err(Refusal::NodesUnfit { errors, redis: None });
    }
    let reset = |node: &&Address| {
        let report = seen.report(node).filter(|r| !r.is_blank())?;
        Some(((*node).clone(), ResetTerm::of(report)?))
    };
    let resets: BTreeMap<Address, ResetTerm> = members.iter().filter_map(reset).collect();
    let unwatch = now.spec.sentinels().iter().map(|n| n.address.clone()).collect();
    let terms = Terms { resets, unwatch, ..Terms::default() };
    Ok(Amendment { spec: None, layout: Layout::Gone, terms, warnings: vec![] })
}
