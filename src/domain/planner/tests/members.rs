//! Members of a cluster in use come and go, and shards fail over: at every point each slot is served,
//! and no shard has fewer copies than it had or is to have.

use std::collections::BTreeSet;

use proptest::sample::Index;

use super::dissolve::made;
use super::*;
use crate::domain::intent::{
    AddReplicaIntent, Amendment, FailoverIntent, Intent, NodeChoice, RemoveReplicaIntent,
    ReplaceNodeIntent, failover, members,
};
use crate::domain::observation::MarkKind;
use crate::domain::refusal::Refusal;
use crate::domain::topology::Shard;
use crate::domain::view::agreed_primary;

/// How many members of a shard have its data, one that is still to leave counted.
fn copies(shard: &Shard, terms: &Terms, world: &Observation) -> usize {
    let of_shard = terms.leavers.iter().filter(|(_, l)| l.shard == shard.id);
    let leavers = of_shard.filter(|(a, l)| world.view(a).is_some_and(|v| v.my_id == l.identity));
    let people = shard.members.iter().chain(leavers.map(|(node, _)| node));
    let serves = |r: &Report| r.cluster.as_ref().is_some_and(|v| !v.my_slots().is_empty());
    let has = |a: &&Address| {
        world
            .report(a)
            .is_some_and(|r| serves(r) || (r.role == Role::Replica && r.replication.link_up))
    };
    people.filter(has).count()
}

fn amended(now: &Topology, amendment: &Amendment) -> Topology {
    let spec = amendment.spec.clone().unwrap_or_else(|| now.spec.clone());
    let layout = amendment.layout.clone();
    Topology { version: now.version + 1, spec, layout, ..now.clone() }
}

fn asked(
    kind: u8,
    one: &Address,
    now: &Topology,
    seen: &Observation,
    new: &NodeSpec,
) -> Result<Amendment, Refusal> {
    let with = NodeChoice::New(new.clone());
    match kind {
        0 => {
            let node = Some(with);
            members::add_replica(&AddReplicaIntent { shard: None, node }, now, seen)
        }
        1 => members::remove_replica(&RemoveReplicaIntent { node: one.clone() }, now, seen),
        2 => {
            let node = one.clone();
            members::replace_node(&ReplaceNodeIntent { node, with }, now, seen)
        }
        _ => {
            let intent = FailoverIntent { node: Some(one.clone()), ..Default::default() };
            failover::amend(&intent, now, seen)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_is_given_up_before_it_is_had_elsewhere(
        spec in specs(), one in any::<Index>(), kind in 0u8..4, keys in 0u64..2,
    ) {
        let (now, mut seen) = made(&spec, keys);
        let new = node(200, "z");
        let sighting = Sighting::Seen(Box::new(blank(&new.address, 0)));
        seen.nodes.insert(new.address.clone(), sighting);
        let all: Vec<Address> = now.layout.members().into_iter().cloned().collect();
        let one = one.get(&all);
        let Ok(amendment) = asked(kind, one, &now, &seen, &new) else { return Ok(()) };
        let (want, terms, policy) = (amended(&now, &amendment), &amendment.terms, Policy::default());
        let before = seen.clone();
        let plan = forecast(&ask(&want, &seen, terms, &policy));
        prop_assert_eq!(&plan.blockers, &vec![]);
        for step in &plan.steps {
            step.step.action().effect(&mut seen);
            prop_assert_eq!(owned(&seen), SlotSet::all(), "{}", step.key);
            for (shard, _) in want.layout.shards() {
                let had = now.layout.shards();
                let had = had.iter().find(|(s, _)| s.id == shard.id).unwrap();
                let least = copies(had.0, terms, &before).min(shard.members.len());
                prop_assert!(copies(shard, terms, &seen) >= least, "{}", step.key);
            }
            // Whoever dies here and starts again finds its way.
            let rest = forecast(&ask(&want, &seen, terms, &policy));
            prop_assert_eq!(&rest.blockers, &vec![]);
            let left = unsettled(&want, &BTreeSet::new(), &BTreeSet::new(), &rest.world, &policy);
            prop_assert!(left.is_empty(), "after {}: {:?}", step.key, left);
        }
        // Who left is blank, who came follows, and only the rest of a shard may be marked.
        for node in terms.leavers.keys() {
            prop_assert!(plan.world.report(node).unwrap().is_blank());
        }
        prop_assert!(plan.world.marks.iter().all(|m| matches!(m.what, MarkKind::Hold(_))));
        for (shard, slots) in want.layout.shards() {
            let primary = agreed_primary(shard, &slots, &plan.world).unwrap();
            if let Some(seat) = terms.seats.get(&shard.id) {
                prop_assert_eq!(primary, seat.to.clone());
            }
        }
    }
}

/// Whoever is dead shows so with all others.
pub(super) fn bury(seen: &mut Observation, node: &Address) {
    let id = seen.view(node).unwrap().my_id.clone();
    super::drain::silence(seen, node);
    let others: Vec<Address> = seen
        .nodes
        .keys()
        .filter(|a| seen.view(a).is_some_and(|v| v.peers.contains_key(&id)))
        .cloned()
        .collect();
    for other in &others {
        change(seen, other, |r| {
            r.cluster.as_mut().unwrap().peers.get_mut(&id).unwrap().failed = true;
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Two dead replicas are replaced one after the other, and neither is waited for.
    #[test]
    fn the_dead_are_replaced_one_by_one(
        spec in specs(), keys in 0u64..2, first in any::<Index>(), second in any::<Index>(),
    ) {
        let (mut now, mut seen) = made(&spec, keys);
        let leading = super::drift::primaries(&now, &seen);
        let replicas = now.layout.members().into_iter().filter(|m| !leading.contains(m));
        let mut replicas: Vec<Address> = replicas.cloned().collect();
        prop_assume!(replicas.len() > 1);
        let first = replicas.remove(first.index(replicas.len()));
        let second = second.get(&replicas).clone();
        bury(&mut seen, &first);
        bury(&mut seen, &second);
        let policy = Policy::default();
        for (n, dead, left) in [(200, &first, Some(&second)), (201, &second, None)] {
            let new = node(n, "z");
            let sighting = Sighting::Seen(Box::new(blank(&new.address, 0)));
            seen.nodes.insert(new.address.clone(), sighting);
            let intent = ReplaceNodeIntent { node: dead.clone(), with: NodeChoice::New(new) };
            let apart = Intent::ReplaceNode(intent.clone()).apart(&now, &seen);
            let left_apart: BTreeSet<Address> = left.cloned().into_iter().collect();
            prop_assert_eq!(unsettled(&now, &BTreeSet::new(), &apart, &seen, &policy), vec![]);
            let amendment = members::replace_node(&intent, &now, &seen).unwrap();
            prop_assert_eq!(&amendment.terms.apart, &left_apart);
            let want = amended(&now, &amendment);
            let thinned = want.without(&left_apart);
            let plan = forecast(&ask(&thinned, &seen, &amendment.terms, &policy));
            prop_assert_eq!(&plan.blockers, &vec![]);
            for step in &plan.steps {
                let nodes = step.step.action().nodes();
                prop_assert!(nodes.iter().all(|n| seen.report(n).is_some()), "{}", step.key);
            }
            // Once it is back it may tell the others of who was replaced meanwhile.
            let forgotten = |m: &Mark| m.node == *dead && m.what.identity().is_some();
            prop_assert!(plan.world.marks.iter().any(forgotten));
            (now, seen) = (want, plan.world);
        }
        prop_assert_eq!(super::drift::differences(&now, &seen), Vec::<String>::new());
    }
}

/// A primary that only does not answer is no reason to give another one a greater epoch.
#[test]
fn an_epoch_is_bumped_past_the_dead_alone() {
    let (now, mut seen) = made(&spec(3, 1, (0..6).map(|n| node(n, "a")).collect()), 3);
    let shards = now.layout.shards();
    let (shard, slots) = &shards[0];
    let primary = agreed_primary(shard, slots, &seen).unwrap();
    let other = shard.members.iter().find(|m| **m != primary).unwrap();
    let (id, mine) = (seen.view(other).unwrap().my_id.clone(), seen.view(&primary).unwrap());
    let (my_id, epoch) = (mine.my_id.clone(), mine.my_epoch);
    // All but the primary itself show the other one in its place.
    let addresses: Vec<Address> = seen.nodes.keys().filter(|a| **a != primary).cloned().collect();
    let show = |seen: &mut Observation, failed: bool| {
        for address in &addresses {
            change(seen, address, |r| {
                let peers = &mut r.cluster.as_mut().unwrap().peers;
                let taken = std::mem::take(&mut peers.get_mut(&my_id).unwrap().slots);
                let peer = peers.get_mut(&id).unwrap();
                peer.slots = peer.slots.union(&taken);
                (peer.role, peer.primary, peer.epoch, peer.failed) =
                    (Role::Primary, None, epoch + 3, failed);
            });
        }
    };
    show(&mut seen, false);
    let silence = Silence {
        since: chrono::DateTime::UNIX_EPOCH,
        code: "unreachable".to_owned(),
        message: String::new(),
    };
    seen.nodes.insert(other.clone(), Sighting::Silent(silence));
    let (terms, policy) = (Terms::default(), Policy::default());
    let bumps = |seen: &Observation| {
        let question = ask(&now, seen, &terms, &policy);
        rules::epochs(&question).unwrap().len()
    };
    assert_eq!(bumps(&seen), 0);
    let addresses: Vec<Address> =
        addresses.iter().filter(|a| seen.report(a).is_some()).cloned().collect();
    for address in &addresses {
        change(&mut seen, address, |r| {
            r.cluster.as_mut().unwrap().peers.get_mut(&id).unwrap().failed = true;
        });
    }
    assert_eq!(bumps(&seen), 1);
}
