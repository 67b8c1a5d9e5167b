//! Whoever is to get its first slots has the function libraries of the others before.
//!
//! On a primary that serves, libraries are its clients' own: those are compared, and never changed.

use std::collections::{BTreeMap, BTreeSet};

use super::moves::moves;
use super::{Question, claims};
use crate::domain::functions::{Compared, Libraries, compare};
use crate::domain::node::Address;
use crate::domain::observation::{Report, Role};
use crate::domain::step::functions::CopyFunctions;
use crate::domain::step::{Blocker, Step};

/// Slots that nobody has are claimed while a node is still alone.
pub fn before_claims(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    Ok(copies(q, &claimants(q)))
}

pub fn before_moves(q: &Question) -> Result<Vec<Step>, Vec<Blocker>> {
    Ok(copies(q, &receivers(q)))
}

/// Whether it matters which libraries there are: somebody is to get its first slots, and those who serve
/// have functions.
pub fn matter(q: &Question) -> bool {
    let begins = |q| !claimants(q).is_empty() || !receivers(q).is_empty();
    donors(q).values().any(|report| report.functions) && begins(q)
}

/// What those who serve do not have alike, where it matters.
pub fn disputed(q: &Question) -> BTreeMap<String, BTreeMap<Address, String>> {
    match matter(q).then(|| read(&donors(q))) {
        Some(Ok(libraries)) => compare(&libraries).disputed,
        Some(Err(_)) | None => BTreeMap::new(),
    }
}

fn claimants(q: &Question) -> BTreeSet<Address> {
    let gets = |claim: &Step| claim.slots().is_some_and(|slots| !slots.is_empty());
    let gets = claims(q).into_iter().filter(gets).flat_map(|claim| claim.action().nodes());
    begin(q, gets)
}

fn receivers(q: &Question) -> BTreeSet<Address> {
    begin(q, moves(q).into_iter().map(|step| step.to.address))
}

/// Those of these nodes that have no slots yet, and can have functions.
fn begin(q: &Question, nodes: impl Iterator<Item = Address>) -> BTreeSet<Address> {
    let begins = |node: &Address| {
        let can = q.seen.report(node).is_some_and(|r| r.capabilities().functions);
        can && q.seen.view(node).is_some_and(|v| v.my_slots().is_empty())
    };
    nodes.filter(begins).collect()
}

/// The primaries that serve, those that leave among them.
fn donors<'a>(q: &Question<'a>) -> BTreeMap<Address, &'a Report> {
    let members = q.want.layout.members();
    let nodes: BTreeSet<&Address> = members.into_iter().chain(q.terms.leavers.keys()).collect();
    let serves = |report: &&Report| {
        let slots = report.cluster.as_ref().is_some_and(|v| !v.my_slots().is_empty());
        report.role == Role::Primary && slots && report.capabilities().functions
    };
    let report = |node: &Address| Some((node.clone(), q.seen.report(node).filter(serves)?));
    nodes.into_iter().filter_map(report).collect()
}

/// Their libraries, or one of them of whom they were not read.
fn read(donors: &BTreeMap<Address, &Report>) -> Result<BTreeMap<Address, Libraries>, Address> {
    let libraries = |(node, report): (&Address, &&Report)| {
        Ok((node.clone(), report.libraries().ok_or_else(|| node.clone())?))
    };
    donors.iter().map(libraries).collect()
}

fn copies(q: &Question, nodes: &BTreeSet<Address>) -> Vec<Step> {
    let donors = donors(q);
    if nodes.is_empty() || !donors.values().any(|report| report.functions) {
        return vec![];
    }
    let (from, Compared { common, disputed }) = match read(&donors) {
        // It is waited for; nothing is known to be copied.
        Err(unread) => (unread, Compared::default()),
        Ok(libraries) => {
            let compared = compare(&libraries);
            let least = libraries.iter().min_by_key(|(_, all)| all.len()).map(|(node, _)| node);
            match least.filter(|_| !compared.common.is_empty()) {
                Some(least) => (least.clone(), compared),
                None => return vec![],
            }
        }
    };
    let step = |node: &Address| {
        Step::CopyFunctions(CopyFunctions {
            node: node.clone(),
            from: from.clone(),
            libraries: common.clone(),
            disputed: disputed.clone(),
        })
    };
    nodes.iter().map(step).collect()
}
