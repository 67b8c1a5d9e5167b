//! Who belongs to the cluster of a node: those who know each other, and those of whom they know
//! that do not answer.
//!
//! A node that is known and does not know anybody in turn is not followed: it was reset, and may
//! be at home in another cluster by now.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{ClusterView, Observation, Peer, Report, Sighting};

/// A cluster as its nodes know each other.
#[derive(Debug)]
pub(super) struct Circle<'a> {
    /// In the order of their addresses.
    pub parties: Vec<Party<'a>>,
    /// Known, without an address.
    pub nameless: BTreeSet<&'a ClusterNodeId>,
    /// Known, answering, and knowing nobody of the cluster.
    pub outsiders: BTreeSet<&'a Address>,
    /// Known at an address at which somebody else of the cluster is.
    pub ghosts: BTreeMap<&'a ClusterNodeId, &'a Address>,
    /// Introduced to somebody, and not yet known.
    pub greeting: BTreeSet<&'a Address>,
}

/// A node of the cluster.
#[derive(Debug, Clone)]
pub(super) struct Party<'a> {
    pub id: &'a ClusterNodeId,
    /// As the others have it, where it answers there; else where it answers.
    pub address: &'a Address,
    /// What it says of itself; none while it does not answer.
    pub voice: Option<(&'a Report, &'a ClusterView)>,
    /// What the others say of it.
    pub entries: Vec<&'a Peer>,
}

impl<'a> Circle<'a> {
    /// The circle around a node that answers.
    pub fn around(first: &'a ClusterNodeId, seen: &'a Observation) -> Self {
        let voices = voices(seen);
        let core = core(first, &voices);
        let mut circle = Self {
            parties: vec![],
            nameless: BTreeSet::new(),
            outsiders: BTreeSet::new(),
            ghosts: BTreeMap::new(),
            greeting: BTreeSet::new(),
        };
        let mut entries: BTreeMap<&ClusterNodeId, Vec<&Peer>> = BTreeMap::new();
        for view in core.iter().filter_map(|id| voices.get(id)).map(|v| v.view) {
            for (id, peer) in view.peers.iter().filter(|(id, _)| **id != view.my_id) {
                if peer.handshake {
                    circle.greeting.extend(&peer.address);
                } else {
                    entries.entry(id).or_default().push(peer);
                }
            }
        }
        for id in &core {
            let Some(voice) = voices.get(id) else { continue };
            let entries = entries.remove(id).unwrap_or_default();
            let known = most_common(entries.iter().filter_map(|p| p.address.as_ref()));
            let here = known.filter(|a| voice.at.contains(a)).or(voice.at.first().copied());
            let Some(address) = here else { continue };
            let voice = Some((voice.report, voice.view));
            circle.parties.push(Party { id, address, voice, entries });
        }
        // Of several that were at one address, the last to be heard of counts.
        let mut silent: Vec<_> = entries.into_iter().collect();
        silent.sort_by_key(|(_, entries)| {
            std::cmp::Reverse(entries.iter().map(|p| (!p.failed, p.epoch)).max())
        });
        for (id, entries) in silent {
            let address = most_common(entries.iter().filter_map(|p| p.address.as_ref()));
            match (address, voices.get(id)) {
                (_, Some(voice)) => circle.outsiders.extend(voice.at.first()),
                (None, None) => {
                    circle.nameless.insert(id);
                }
                (Some(address), None) if circle.parties.iter().any(|p| p.address == address) => {
                    circle.ghosts.insert(id, address);
                }
                (Some(address), None) => {
                    circle.parties.push(Party { id, address, voice: None, entries });
                }
            }
        }
        circle.parties.sort_by_key(|p| p.address);
        let met: BTreeSet<&Address> = circle.parties.iter().map(|p| p.address).collect();
        circle.greeting.retain(|a| !met.contains(a));
        circle
    }
}

/// The addresses that those around a node know and that were not looked at yet.
pub(super) fn unasked<'a>(
    first: &'a ClusterNodeId,
    seen: &'a Observation,
) -> impl Iterator<Item = &'a Address> {
    let voices = voices(seen);
    let views = core(first, &voices).into_iter().filter_map(move |id| Some(voices.get(id)?.view));
    let peers = views.flat_map(|v| v.peers.values()).filter(|p| !p.handshake);
    peers.filter_map(|p| p.address.as_ref()).filter(|a| !seen.nodes.contains_key(a))
}

/// What one node said, and at which addresses.
struct Voice<'a> {
    at: Vec<&'a Address>,
    report: &'a Report,
    view: &'a ClusterView,
}

fn voices(seen: &Observation) -> BTreeMap<&ClusterNodeId, Voice<'_>> {
    let mut voices: BTreeMap<&ClusterNodeId, Voice> = BTreeMap::new();
    for (address, sighting) in &seen.nodes {
        let report = match sighting {
            Sighting::Seen(report) => report,
            Sighting::Silent(_) | Sighting::Unknown => continue,
        };
        let Some(view) = &report.cluster else { continue };
        let voice = Voice { at: vec![], report, view };
        voices.entry(&view.my_id).or_insert(voice).at.push(address);
    }
    voices
}

/// Those who know each other, starting from one.
fn core<'a>(
    first: &'a ClusterNodeId,
    voices: &BTreeMap<&'a ClusterNodeId, Voice<'a>>,
) -> BTreeSet<&'a ClusterNodeId> {
    let mut core = BTreeSet::from([first]);
    let mut next = vec![first];
    while let Some(id) = next.pop() {
        let Some(voice) = voices.get(id) else { continue };
        for (other, _) in voice.view.peers.iter().filter(|(_, p)| !p.handshake) {
            let knows = |v: &Voice| v.view.peers.get(id).is_some_and(|p| !p.handshake);
            if voices.get(other).is_some_and(knows) && core.insert(other) {
                next.push(other);
            }
        }
    }
    core
}

/// Ties go to the first in order.
fn most_common<'a>(addresses: impl Iterator<Item = &'a Address>) -> Option<&'a Address> {
    let mut count: BTreeMap<&Address, usize> = BTreeMap::new();
    for address in addresses {
        *count.entry(address).or_default() += 1;
    }
    let best = count.into_iter().max_by_key(|(a, n)| (*n, std::cmp::Reverse(*a)));
    best.map(|(address, _)| address)
}
