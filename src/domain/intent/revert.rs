//! Revert: an older version is wanted again. There is no undo code: the planner makes it so from
//! whatever is seen, be it a cluster in use or what a dissolve left half-done. Slots that are
//! elsewhere move, and members that the older version did not have leave.
//!
//! Who is primary is adopted where anybody is. A shard whose slots others serve is founded anew. Only
//! one whose slots nobody owns is given a primary here, and only where every node that could hold its
//! keys was seen.

use std::collections::{BTreeMap, BTreeSet};

use super::members::succession;
use super::{Amendment, RevertIntent, about, lone, unjudged};
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{Observation, Report, Role};
use crate::domain::planner::{Leaver, ResetTerm, Terms};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::slot::SlotSet;
use crate::domain::spec::Spec;
use crate::domain::topology::{Layout, Shard, Topology};
use crate::domain::view::{self, agreed_primary};

/// The older version's spec and layout. `older` is that version, if there is one; `seen` holds a
/// fresh look at the nodes of its spec and of the current one.
pub fn amend(
    intent: &RevertIntent,
    now: &Topology,
    older: Option<&Topology>,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let older = target(intent, now, older)?;
    if let Some(shard) = lone::of(older) {
        return lone::revert::amend(now, older, shard, seen);
    }
    let going = departing(now, older, seen)
        .map_err(|errors| Refusal::NodesUnfit { errors, redis: None })?;
    let mut terms = Terms { forming: nothing_left(older, seen), ..going };
    let mut orphans: Vec<(&Shard, SlotSet)> = older.layout.shards();
    orphans.retain(|(shard, slots)| agreed_primary(shard, slots, seen).is_none());
    orphans.retain(|(shard, slots)| {
        let Some(node) = founder(shard, slots, seen) else { return true };
        terms.founders.insert(shard.id, node);
        terms.resets.extend(bereft(shard, seen));
        false
    });
    let mut errors: Vec<FieldError> =
        orphans.iter().flat_map(|(shard, _)| unknowable(shard, &older.spec, seen)).collect();
    if terms.forming {
        terms.resets = remains(older, seen);
    }
    for (shard, slots) in &orphans {
        match heir(shard, slots, seen) {
            Ok(node) => {
                terms.primaries.insert(shard.id, node);
            }
            Err(why) => errors.push(FieldError::new("/intent/version", why)),
        }
    }
    if !errors.is_empty() {
        return Err(Refusal::NodesUnfit { errors, redis: None });
    }
    Ok(Amendment {
        spec: Some(older.spec.clone()),
        layout: older.layout.clone(),
        terms,
        warnings: vec![],
    })
}

fn target<'a>(
    intent: &RevertIntent,
    now: &Topology,
    older: Option<&'a Topology>,
) -> Result<&'a Topology, Refusal> {
    let invalid = |why: String| Refusal::Invalid(vec![FieldError::new("/intent/version", why)]);
    let wanted = intent.version;
    if wanted == now.version {
        return Err(invalid(format!(
            "version {wanted} is the current one; to make the nodes agree with it, ask for repair"
        )));
    }
    let Some(older) = older.filter(|t| t.version == wanted && wanted >= 1) else {
        return Err(invalid(format!(
            "there is no version {wanted}; name one that GET /v1/topologies/{}/versions lists",
            now.name
        )));
    };
    match &older.layout {
        Layout::Cluster { .. } | Layout::Replication { .. } | Layout::Sentinel { .. } => Ok(older),
        Layout::Gone => {
            Err(invalid(format!("version {wanted} has no members; to get there, ask for dissolve")))
        }
    }
}

/// Members of now that the older version does not know leave, unless they are blank; and others take
/// over from those that are primaries of a shard that stays.
fn departing(
    now: &Topology,
    older: &Topology,
    seen: &Observation,
) -> Result<Terms, Vec<FieldError>> {
    let before = older.layout.members();
    let mut terms = Terms::default();
    let mut errors = Vec::new();
    for (shard, slots) in now.layout.shards() {
        let blank = |m: &&Address| seen.report(m).is_some_and(Report::is_blank);
        let goes = shard.members.iter().filter(|m| !before.contains(m) && !blank(m));
        let goes: Vec<&Address> = goes.collect();
        for node in &goes {
            match identity_among(node, &before, seen) {
                Some(identity) => {
                    let leaver = Leaver { shard: shard.id, identity, bares: None };
                    terms.leavers.insert((*node).clone(), leaver);
                }
                None => {
                    let detail = format!(
                        "is a member now and was none in version {}, and whether it is in this cluster cannot be told: take it out first, or keep it",
                        older.version
                    );
                    errors.push(about(node, &now.spec, detail));
                }
            }
        }
        let stays = older.layout.shards().into_iter().find(|(old, _)| old.id == shard.id);
        let primary = agreed_primary(shard, &slots, seen);
        let left = primary.as_ref().filter(|primary| goes.contains(primary));
        if let (Some((then, _)), Some(primary)) = (stays, left) {
            let drained = older.spec.drained();
            match succession(shard, then, &slots, Some(primary.clone()), drained, seen) {
                Ok(seat) => terms.seats.extend(seat.map(|seat| (shard.id, seat))),
                Err(why) => errors.push(FieldError::new("/intent/version", why)),
            }
        }
    }
    if errors.is_empty() { Ok(terms) } else { Err(errors) }
}

/// Who a node is in the cluster of these members.
fn identity_among(
    node: &Address,
    members: &BTreeSet<&Address>,
    seen: &Observation,
) -> Option<ClusterNodeId> {
    let id = view::identity_at(node, seen)?;
    let knows = |m: &&&Address| seen.view(m).is_some_and(|v| v.peers.contains_key(id));
    members.iter().any(|m| knows(&m)).then(|| id.clone())
}

/// Who begins a shard anew whose slots others serve: a member that holds nothing. Replicas still show
/// what their primary had.
fn founder(shard: &Shard, slots: &SlotSet, seen: &Observation) -> Option<Address> {
    let elsewhere = view::served_by(seen, |node| !shard.members.contains(node));
    let serves = |m: &Address| seen.view(m).is_some_and(|v| !v.my_slots().is_empty());
    if !slots.difference(&elsewhere).is_empty() || shard.members.iter().any(serves) {
        return None;
    }
    let holds = |r: &&Report| r.role == Role::Primary && r.keys > 0;
    if shard.members.iter().filter_map(|m| seen.report(m)).any(|r| holds(&r)) {
        return None;
    }
    let primary = |m: &&Address| seen.report(m).is_some_and(|r| r.role == Role::Primary);
    shard.members.iter().find(primary).cloned()
}

/// Replicas of a primary that left, which would keep its identity alive: they begin blank.
fn bereft(shard: &Shard, seen: &Observation) -> BTreeMap<Address, ResetTerm> {
    let ghosts = seen.ghosts();
    let reset = |node: &Address| {
        let followed = seen.view(node)?.me()?.primary.as_ref()?;
        let report = seen.report(node).filter(|_| ghosts.contains(followed))?;
        Some((node.clone(), ResetTerm::of(report)?))
    };
    shard.members.iter().filter_map(reset).collect()
}

/// Nodes that may hold what a shard without a primary has lost.
fn unknowable(shard: &Shard, spec: &Spec, seen: &Observation) -> Vec<FieldError> {
    let why = |node| {
        let why = unjudged(node, seen)?;
        let detail = format!(
            "{why}, and nobody else is seen to serve its shard: bring it back, since it may hold the shard's keys"
        );
        Some(about(node, spec, detail))
    };
    shard.members.iter().filter_map(why).collect()
}

/// Whether the members are as new: no keys anywhere, no slot with anybody.
fn nothing_left(older: &Topology, seen: &Observation) -> bool {
    let members = older.layout.members();
    members.iter().all(|m| seen.report(m).is_some_and(|r| r.keys == 0))
        && owners(&SlotSet::all(), seen).is_empty()
}

fn remains(older: &Topology, seen: &Observation) -> BTreeMap<Address, ResetTerm> {
    let reset = |node: &Address| {
        let report = seen.report(node).filter(|r| !r.is_blank())?;
        Some((node.clone(), ResetTerm::of(report)?))
    };
    older.layout.members().into_iter().filter_map(reset).collect()
}

/// Who is to serve a shard that has no agreed primary.
fn heir(shard: &Shard, slots: &SlotSet, seen: &Observation) -> Result<Address, String> {
    let owners = owners(slots, seen);
    let primary = view::primary_of(shard, slots, seen).settled().cloned();
    match (primary, owners.first()) {
        // Whoever serves it was left alone by the rest, and nobody says otherwise.
        (Some(primary), Some(_))
            if owners.iter().all(|id| seen.view(&primary).is_some_and(|v| v.my_id == **id)) =>
        {
            Ok(primary)
        }
        (_, Some(id)) => Err(format!(
            "shard {} has no primary that the nodes agree on, but {} owns slots of it: wait until they agree",
            shard.index,
            seen.by_cluster_id(id).map_or_else(|| format!("node {id}"), ToString::to_string)
        )),
        // The fullest, so that no keys are dropped: if it holds any, the plan stops and says so.
        (_, None) => {
            let keys = |m: &&Address| seen.report(m).map_or(0, |r| r.keys);
            let fullest = shard.members.iter().rev().max_by_key(keys);
            fullest.cloned().ok_or_else(|| format!("shard {} has no members", shard.index))
        }
    }
}

/// The ids of those who own some of these slots, as anybody sees it; nodes that were reset own
/// nothing any more.
fn owners<'a>(slots: &SlotSet, seen: &'a Observation) -> BTreeSet<&'a ClusterNodeId> {
    let ghosts = seen.ghosts();
    let views = seen.nodes.keys().filter_map(|a| seen.view(a));
    views
        .flat_map(|v| &v.peers)
        .filter(|(id, p)| !p.slots.intersection(slots).is_empty() && !ghosts.contains(id))
        .map(|(id, _)| id)
        .collect()
}
