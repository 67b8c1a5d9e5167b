//! What moves of slots keep within: no slot moves that need not, none is ever without an owner, no
//! node gets more than it has room for.

use proptest::sample::Index;

use super::dissolve::made;
use super::drain::after;
use super::drift::{differences, primaries};
use super::moves::{carried_out, from_to};
use super::*;
use crate::domain::intent::rebalance::RebalanceIntent;
use crate::domain::intent::remove_shard::RemoveShardIntent;
use crate::domain::intent::{rebalance, remove_shard, reshard};
use crate::domain::moving::survey::Figures;
use crate::domain::observation::OpenSlot;
use crate::domain::slot::SLOTS;
use crate::domain::step::slots::{End, MoveSlots};

fn moves(plan: &Forecast) -> Vec<&MoveSlots> {
    let moves = plan.steps.iter().filter_map(|s| match &s.step {
        Step::MoveSlots(step) => Some(step),
        _ => None,
    });
    moves.collect()
}

/// The slots of a move that were begun: some are through, some are open at both ends.
fn broken_off(step: &MoveSlots, through: usize, open: usize, world: &mut Observation) {
    world.marks.extend(step.marks(world));
    let through: SlotSet = step.slots.iter().take(through).collect();
    MoveSlots { slots: through.clone(), ..step.clone() }.effect(world);
    let left = step.slots.difference(&through);
    for (end, giving, other) in [(&step.from, true, &step.to), (&step.to, false, &step.from)] {
        change(world, &end.address, |report| {
            let view = report.cluster.as_mut().unwrap();
            let opened = left.iter().take(open);
            view.open.extend(opened.map(|slot| OpenSlot { slot, giving, other: other.id.clone() }));
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_rebalance_moves_the_fewest_slots_and_each_once(
        spec in specs(), uneven in prop::collection::vec((any::<(Index, Index)>(), 1u16..2500), 0..4),
    ) {
        let (mut now, mut seen) = made(&spec, 1);
        let shards = now.layout.shards().len();
        for ((from, to), count) in uneven {
            let intent = from_to(from.index(shards), to.index(shards), count);
            let Ok(amended) = reshard::amend(&intent, &now, &seen) else { continue };
            let (want, terms) = after(&now, amended);
            seen = carried_out(&want, &terms, &seen)?;
            now = want;
        }
        let mut held: Vec<usize> = now.layout.shards().iter().map(|(_, s)| s.count()).collect();
        let intent = RebalanceIntent { threshold_percent: Some(0), ..RebalanceIntent::default() };
        let amended = rebalance::amend(&intent, &now, &Figures::default(), &seen).unwrap();
        let (want, terms) = after(&now, amended);
        let plan = forecast(&ask(&want, &seen, &terms, &Policy::default()));
        prop_assert_eq!(&plan.blockers, &vec![]);
        prop_assert_eq!(differences(&want, &plan.world), Vec::<String>::new());
        // Those that have most may keep one more, as far as there are any.
        let (each, over) = (usize::from(SLOTS) / shards, usize::from(SLOTS) % shards);
        held.sort_unstable_by_key(|held| std::cmp::Reverse(*held));
        let kept = held.iter().enumerate().map(|(i, h)| (*h).min(each + usize::from(i < over)));
        let least = usize::from(SLOTS) - kept.sum::<usize>();
        let moved: usize = moves(&plan).iter().map(|step| step.slots.count()).sum();
        prop_assert_eq!(moved, least);
    }

    #[test]
    fn a_move_that_breaks_off_anywhere_leaves_every_slot_owned_and_is_finished(
        spec in specs(), kind in 0u8..4, ends in any::<(Index, Index)>(), count in 1u16..4000,
        which in any::<Index>(), through in any::<Index>(), open in 0usize..200,
    ) {
        let (now, mut seen) = made(&spec, 1);
        let asked = super::moves::asked(kind, ends, count, &now, &mut seen);
        let Ok(amendment) = asked else { return Ok(()) };
        let (want, terms) = after(&now, amendment);
        let plan = forecast(&ask(&want, &seen, &terms, &Policy::default()));
        let moves = moves(&plan);
        prop_assume!(!moves.is_empty());
        let broken = moves[which.index(moves.len())];
        for step in &plan.steps {
            if step.step == Step::MoveSlots(broken.clone()) {
                break;
            }
            step.step.action().effect(&mut seen);
            prop_assert_eq!(owned(&seen), SlotSet::all());
        }
        broken_off(broken, through.index(broken.slots.count() + 1), open, &mut seen);
        prop_assert_eq!(owned(&seen), SlotSet::all());
        let world = carried_out(&want, &terms, &seen)?;
        prop_assert_eq!(owned(&world), SlotSet::all());
        prop_assert_eq!(&world.marks, &vec![]);
        let policy = Policy::default();
        let wind_down = Question { goal: Goal::WindDown, ..ask(&want, &seen, &terms, &policy) };
        let cancelled = forecast(&wind_down).world;
        prop_assert_eq!(owned(&cancelled), SlotSet::all());
        let views = cancelled.nodes.keys().filter_map(|node| cancelled.view(node));
        prop_assert!(views.flat_map(|view| &view.open).next().is_none(), "a cancel closes them");
    }

    #[test]
    fn a_removed_shard_overfills_nobody(
        shards in 4u16..7, gone in any::<Index>(), heaviest in 1u64..5000, seed in any::<u64>(),
        free in prop::collection::vec(prop::option::of(0u64..40_000_000), 6),
    ) {
        let nodes = (0..shards).map(|n| node(n, &format!("z{}", n % 3))).collect();
        let (now, mut seen) = made(&super::spec(shards, 0, nodes), 9);
        let leads = primaries(&now, &seen);
        for (lead, free) in leads.iter().zip(&free) {
            let used_bytes = 5_000_000;
            let max_bytes = free.map_or(0, |free| used_bytes + free);
            change(&mut seen, lead, |r| r.memory = Memory { used_bytes, max_bytes, ..Memory::default() });
        }
        let gone = gone.index(usize::from(shards));
        let bytes = |slot: u16| (seed ^ u64::from(slot)).wrapping_mul(0x9E37_79B9_7F4A_7C15) % heaviest;
        let going = now.layout.shards()[gone].1.clone();
        let figures =
            Figures { bytes: going.iter().map(|s| (s, bytes(s))).collect(), ..Figures::default() };
        let intent = RemoveShardIntent { shard: Some(gone.to_string()), primary: None };
        let Ok(amended) = remove_shard::amend(&intent, &now, &figures, &seen) else {
            let room = |i: usize| free[i].map_or(u64::MAX, |free| free / 6 * 5);
            let rooms = (0..usize::from(shards)).filter(|i| *i != gone).map(room);
            let room = rooms.fold(0, u64::saturating_add);
            let needed: u64 = going.iter().map(bytes).sum();
            prop_assert!(needed + heaviest * u64::from(shards) > room, "{needed} fit in {room}");
            return Ok(());
        };
        let (want, terms) = after(&now, amended);
        let plan = forecast(&ask(&want, &seen, &terms, &Policy::default()));
        prop_assert_eq!(&plan.blockers, &vec![]);
        for (lead, free) in leads.iter().zip(&free) {
            let into = moves(&plan).into_iter().filter(|step| step.to.address == *lead);
            let taken: u64 = into.flat_map(|step| step.slots.iter().map(bytes)).sum();
            // A key takes a fifth more while it arrives.
            prop_assert!(free.is_none_or(|free| taken * 6 / 5 <= free), "{lead}: {taken} of {free:?}");
        }
    }
}

/// A primary that was cut off when its replica was elected took slots meanwhile: it gives them to the
/// new one, and follows it.
#[test]
fn whoever_kept_slots_through_an_election_gives_them_to_the_new_primary() {
    let nodes = (0..6).map(|n| node(n, &format!("z{}", n % 3))).collect();
    let (now, mut seen) = made(&super::spec(3, 1, nodes), 9);
    let old = primaries(&now, &seen)[0].clone();
    let (shard, slots) = now.layout.shards()[0].clone();
    let new = shard.members.iter().find(|m| **m != old).unwrap().clone();
    let id = |node: &Address, seen: &Observation| seen.view(node).unwrap().my_id.clone();
    let (old_id, new_id) = (id(&old, &seen), id(&new, &seen));
    let kept: SlotSet = slots.iter().take(4).collect();
    let nodes: Vec<Address> = seen.nodes.keys().cloned().collect();
    for node in &nodes {
        change(&mut seen, node, |report| {
            if *node == new {
                report.role = Role::Primary;
                report.replication.primary = None;
            }
            let view = report.cluster.as_mut().unwrap();
            view.current_epoch = 50;
            if *node == new {
                view.my_epoch = 50;
            }
            let peer = view.peers.get_mut(&new_id).unwrap();
            (peer.role, peer.primary, peer.epoch) = (Role::Primary, None, 50);
            peer.slots = slots.difference(&kept);
            view.peers.get_mut(&old_id).unwrap().slots = kept.clone();
        });
    }
    let plan = forecast(&ask(&now, &seen, &Terms::default(), &Policy::default()));
    assert_eq!(plan.blockers, vec![]);
    let moves = moves(&plan);
    assert_eq!((moves[0].from.address.clone(), moves[0].slots.clone()), (old.clone(), kept));
    assert_eq!(moves[0].to.address, new);
    assert_eq!(differences(&now, &plan.world), Vec::<String>::new());
    assert_eq!(plan.world.report(&old).unwrap().role, Role::Replica);
}

/// A slot went to a node that lost it to its heir, and its source still shows it as on its way.
#[test]
fn a_slot_that_is_through_is_closed_with_its_owner() {
    let nodes = (0..3).map(|n| node(n, "a")).collect();
    let (now, seen) = made(&super::spec(3, 0, nodes), 9);
    let (want, terms) = after(&now, reshard::amend(&from_to(0, 1, 1), &now, &seen).unwrap());
    let before = forecast(&ask(&want, &seen, &terms, &Policy::default()));
    let step = moves(&before)[0].clone();
    let slot = step.slots.iter().next().unwrap();
    let mut seen = carried_out(&want, &terms, &seen).unwrap();
    let third = primaries(&now, &seen)[2].clone();
    let end = End { address: third.clone(), id: seen.view(&third).unwrap().my_id.clone() };
    let elsewhere = MoveSlots { to: end.clone(), ..step.clone() };
    change(&mut seen, &step.from.address, |r| {
        let open = OpenSlot { slot, giving: true, other: end.id.clone() };
        r.cluster.as_mut().unwrap().open.push(open);
    });
    seen.marks.extend(elsewhere.marks(&seen));
    let plan = forecast(&ask(&want, &seen, &Terms::default(), &Policy::default()));
    assert_eq!(plan.blockers, vec![]);
    assert_eq!(moves(&plan)[0].to, step.to);
    assert_eq!((plan.world.marks.len(), differences(&want, &plan.world).len()), (0, 0));
}

#[test]
fn nothing_moves_while_the_cluster_is_down_at_either_end() {
    let nodes = (0..3).map(|n| node(n, "a")).collect();
    let (now, seen) = made(&super::spec(3, 0, nodes), 9);
    let (want, terms) = after(&now, reshard::amend(&from_to(0, 1, 5), &now, &seen).unwrap());
    let plan = forecast(&ask(&want, &seen, &terms, &Policy::default()));
    let step = moves(&plan)[0].clone();
    assert_eq!(step.check(&seen), Check::Ready);
    for end in [&step.from, &step.to] {
        let mut down = seen.clone();
        change(&mut down, &end.address, |r| r.cluster.as_mut().unwrap().state_ok = false);
        assert!(matches!(step.check(&down), Check::Waiting(_)), "{}", end.address);
        // To whoever only does not know an owner it is told.
        change(&mut down, &end.address, |r| {
            let view = r.cluster.as_mut().unwrap();
            view.peers.values_mut().for_each(|p| p.slots = p.slots.difference(&step.slots));
        });
        let waits = matches!(step.check(&down), Check::Waiting(_));
        assert!(!waits, "{}", end.address);
    }
}
