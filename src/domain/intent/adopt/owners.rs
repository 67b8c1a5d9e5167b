//! Who serves which slots, and who belongs to whom, as the nodes of a cluster tell it, sick or well.

use std::collections::{BTreeMap, BTreeSet};

use super::circle::Party;
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{Peer, Role};
use crate::domain::slot::SlotSet;

/// A node that serves slots, and those that belong to it.
#[derive(Debug)]
pub(super) struct Owner<'a> {
    pub node: &'a Address,
    pub answers: bool,
    pub slots: SlotSet,
    pub others: BTreeSet<&'a Address>,
}

/// A cluster's parts.
#[derive(Debug, Default)]
pub(super) struct Parts<'a> {
    /// By their first slots.
    pub owners: Vec<Owner<'a>>,
    /// Claims that others with a higher epoch overrule.
    pub overruled: BTreeMap<&'a Address, SlotSet>,
    /// Those that answer and have no part.
    pub idle: Vec<&'a Party<'a>>,
    /// Those that do not answer and of which nobody knows the shard, with the one where they are
    /// missed; without one they have no part.
    pub lost: BTreeMap<&'a Address, Option<&'a Address>>,
}

/// What a node is, in its own words or, while it is silent, in those of the others.
struct Part<'a> {
    role: Role,
    primary: Option<&'a ClusterNodeId>,
    epoch: u64,
    slots: SlotSet,
}

impl<'a> Parts<'a> {
    pub fn of(parties: &'a [Party<'a>]) -> Self {
        let told: BTreeMap<&ClusterNodeId, (&Party, Part)> =
            parties.iter().filter_map(|p| Some((p.id, (p, part(p)?)))).collect();
        let mut parts = Self::default();
        let heirs = parts.settle(&told);
        for party in parties {
            if parts.owners.iter().any(|o| o.node == party.address) {
                continue;
            }
            let home = home(party.id, &told, &heirs);
            match home.and_then(|h| parts.owners.iter_mut().find(|o| o.node == h)) {
                Some(owner) => {
                    owner.others.insert(party.address);
                }
                None if party.voice.is_some() => parts.idle.push(party),
                None => {
                    parts.lost.insert(party.address, None);
                }
            }
        }
        parts.miss();
        parts
    }

    /// Gives each slot to whoever claims it with the highest epoch. Returns where each claimant is
    /// at home: with itself, or where most of what it claims has gone.
    fn settle(
        &mut self,
        told: &BTreeMap<&'a ClusterNodeId, (&'a Party<'a>, Part<'a>)>,
    ) -> BTreeMap<&'a ClusterNodeId, &'a Address> {
        let claims = |(_, part): &&(&'a Party<'a>, Part<'a>)| {
            part.role == Role::Primary && !part.slots.is_empty()
        };
        let mut claimants: Vec<&(&Party, Part)> = told.values().filter(claims).collect();
        let backers = |party: &Party| party.entries.iter().filter(|p| !p.slots.is_empty()).count();
        claimants.sort_by_key(|(party, part)| {
            (std::cmp::Reverse((part.epoch, backers(party))), party.id)
        });
        let mut taken = SlotSet::empty();
        let mut heirs = BTreeMap::new();
        for (party, part) in claimants {
            let slots = part.slots.difference(&taken);
            let overruled = part.slots.intersection(&taken);
            taken = taken.union(&slots);
            let heir = if slots.is_empty() {
                let common = |o: &&Owner| o.slots.intersection(&part.slots).count();
                self.owners.iter().max_by_key(common).map(|o| o.node)
            } else {
                let (node, answers) = (party.address, party.voice.is_some());
                self.owners.push(Owner { node, answers, slots, others: BTreeSet::new() });
                Some(party.address)
            };
            heirs.extend(heir.map(|heir| (party.id, heir)));
            if !overruled.is_empty() {
                self.overruled.insert(party.address, overruled);
            }
        }
        self.owners.sort_by_key(|o| o.slots.iter().next());
        heirs
    }

    /// Whoever is lost was most likely the primary of a shard that lacks a member now: each goes to
    /// the one that lacks most, while there is one.
    fn miss(&mut self) {
        let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
        for owner in &self.owners {
            *sizes.entry(owner.others.len()).or_default() += 1;
        }
        let rule = sizes.into_iter().max_by_key(|(size, owners)| (*owners, *size));
        let Some((rule, _)) = rule else { return };
        for (node, home) in &mut self.lost {
            let short = self.owners.iter_mut().filter(|o| o.others.len() < rule);
            if let Some(owner) = short.min_by_key(|o| o.others.len()) {
                owner.others.insert(node);
                *home = Some(owner.node);
            }
        }
    }
}

/// `None` for a node of which nobody says anything.
fn part<'a>(party: &Party<'a>) -> Option<Part<'a>> {
    let of = |peer: &'a Peer, epoch| Part {
        role: peer.role,
        primary: peer.primary.as_ref(),
        epoch,
        slots: peer.slots.clone(),
    };
    if let Some((_, view)) = party.voice {
        return view.me().map(|me| of(me, view.my_epoch));
    }
    let same =
        |a: &Peer, b: &Peer| (a.role, &a.primary, &a.slots) == (b.role, &b.primary, &b.slots);
    let shown = |peer: &Peer| party.entries.iter().filter(|p| same(p, peer)).count();
    let best = party.entries.iter().copied().max_by_key(|p| (p.epoch, shown(p)))?;
    Some(of(best, best.epoch))
}

/// Where a node belongs: to the claimant that it is or follows, over any number of others.
fn home<'a>(
    id: &'a ClusterNodeId,
    told: &BTreeMap<&'a ClusterNodeId, (&'a Party<'a>, Part<'a>)>,
    heirs: &BTreeMap<&'a ClusterNodeId, &'a Address>,
) -> Option<&'a Address> {
    let mut asked = BTreeSet::new();
    let mut id = id;
    while asked.insert(id) {
        if let Some(heir) = heirs.get(id) {
            return Some(heir);
        }
        id = told.get(id)?.1.primary?;
    }
    None
}
