//! What holds a move up, and what does not: the dead, replicas that fall behind, targets that are full.

use super::drain::after;
use super::drift::{differences, primaries};
use super::members::bury;
use super::moves::{four, from_to, removing};
use super::*;
use crate::domain::intent::{Intent, remove_shard, reshard};
use crate::domain::moving::survey::Figures;
use crate::domain::observation::{MarkKind, OpenSlot};
use crate::domain::step::slots::MoveSlots;

fn moves_of(next: &Next) -> Vec<&MoveSlots> {
    match next {
        Next::Act(steps) => steps.iter().filter_map(Step::moves).collect(),
        Next::Converged | Next::Wait(_) | Next::Stuck(_) => vec![],
    }
}

fn replica_of(now: &Topology, shard: usize, seen: &Observation) -> Address {
    let leads = primaries(now, seen);
    let (shard, _) = now.layout.shards()[shard];
    shard.members.iter().find(|m| !leads.contains(m)).unwrap().clone()
}

#[test]
fn a_shard_goes_although_its_replica_is_dead() {
    let (now, mut seen) = four();
    let dead = replica_of(&now, 3, &seen);
    bury(&mut seen, &dead);
    let intent = removing(3);
    let apart = Intent::RemoveShard(intent.clone()).apart(&now, &seen);
    assert_eq!(apart, [dead.clone()].into());
    let policy = Policy::default();
    assert_eq!(unsettled(&now, &BTreeSet::new(), &apart, &seen, &policy), vec![]);
    let amended = remove_shard::amend(&intent, &now, &Figures::default(), &seen).unwrap();
    let (want, terms) = after(&now, amended);
    assert!(terms.apart.is_empty(), "it is no member any more");
    let plan = forecast(&ask(&want, &seen, &terms, &policy));
    assert_eq!(plan.blockers, vec![]);
    for step in &plan.steps {
        let nodes = step.step.action().nodes();
        assert!(!nodes.contains(&dead), "{}", step.key);
    }
    assert_eq!(differences(&want, &plan.world), Vec::<String>::new());
    // Once it is back it may tell the others of who is gone.
    assert!(plan.world.marks.iter().all(|m| matches!(m.what, MarkKind::Identity(_))));
    assert!(plan.world.marks.iter().any(|m| m.node == dead));
    // One that is dead in another shard holds it up as before.
    let (now, mut seen) = four();
    let other = replica_of(&now, 0, &seen);
    bury(&mut seen, &other);
    assert!(Intent::RemoveShard(removing(3)).apart(&now, &seen).is_empty());
}

/// It was frozen, another one was elected, and it wakes up: their epochs decide who goes on. To move
/// slots from one to the other would take sides, and be refused besides: both hold their keys.
#[test]
fn a_primary_that_wakes_up_beside_its_heir_is_waited_for() {
    let (now, mut seen) = four();
    let (woken, heir) = (primaries(&now, &seen)[0].clone(), replica_of(&now, 0, &seen));
    let [old, new] = [&woken, &heir].map(|node| seen.view(node).unwrap().my_id.clone());
    let nodes: Vec<Address> = seen.nodes.keys().filter(|node| **node != woken).cloned().collect();
    for node in &nodes {
        change(&mut seen, node, |report| {
            let Some(view) = report.cluster.as_mut() else { return };
            let Some(theirs) = view.peers.get_mut(&old) else { return };
            let (slots, epoch) = (std::mem::take(&mut theirs.slots), theirs.epoch);
            let Some(peer) = view.peers.get_mut(&new) else { return };
            (peer.role, peer.primary) = (Role::Primary, None);
            (peer.slots, peer.epoch) = (slots, epoch + 10);
        });
    }
    change(&mut seen, &heir, |report| report.role = Role::Primary);
    for node in [&woken, &heir] {
        change(&mut seen, node, |report| report.keys = 7);
    }
    let (policy, terms) = (Policy::default(), Terms::default());
    let told = next(&ask(&now, &seen, &terms, &policy));
    assert!(matches!(told, Next::Wait(_)), "{told:?}");
    let plan = forecast(&ask(&now, &seen, &terms, &policy));
    assert!(plan.steps.iter().all(|s| s.step.moves().is_none()), "{:?}", plan.steps);
}

/// A primary that dies in the middle of a slot, at either end: its heir takes its place, and nobody
/// waits for it.
#[test]
fn slots_go_on_with_an_heir() {
    for dies in [0, 1] {
        let (now, mut seen) = four();
        let (want, mut terms) =
            after(&now, reshard::amend(&from_to(0, 1, 100), &now, &seen).unwrap());
        let leads = primaries(&now, &seen);
        let (dead, heir) = (leads[dies].clone(), replica_of(&now, dies, &seen));
        let policy = Policy::default();
        let before = next(&ask(&want, &seen, &terms, &policy));
        let step = moves_of(&before)[0].clone();
        let slot = step.slots.iter().next().unwrap();
        let open = |giving, other: &ClusterNodeId| OpenSlot { slot, giving, other: other.clone() };
        for (end, giving, other) in [(&step.from, true, &step.to), (&step.to, false, &step.from)] {
            change(&mut seen, &end.address, |r| {
                r.cluster.as_mut().unwrap().open.push(open(giving, &other.id));
            });
        }
        seen.marks = step.marks(&seen);
        elects(&mut seen, &dead, &heir);
        let shard = now.layout.shards()[dies].0.id;
        terms.apart = [dead.clone()].into();
        terms.lost = [(dead.clone(), shard)].into();
        let thinned = want.without(&terms.apart);
        let asked = ask(&thinned, &seen, &terms, &policy);
        let now_due = next(&asked);
        let moved = moves_of(&now_due);
        let ends = (&moved[0].from.address, &moved[0].to.address);
        let expected = if dies == 0 { (&heir, &leads[1]) } else { (&leads[0], &heir) };
        assert_eq!(ends, expected);
        assert_eq!(moved[0].slots.to_string(), slot.to_string(), "what is half-way goes first");
        let plan = forecast(&asked);
        assert_eq!(plan.blockers, vec![]);
        for step in &plan.steps {
            assert!(!step.step.action().nodes().contains(&dead), "{}", step.key);
        }
        // Given up, it closes what is open.
        let given_up = forecast(&Question { goal: Goal::WindDown, ..asked });
        let open = given_up.world.nodes.keys().filter_map(|a| given_up.world.view(a));
        assert!(open.flat_map(|v| &v.open).next().is_none());
    }
}

/// A primary is dead, and one of its replicas serves its slots.
fn elects(seen: &mut Observation, dead: &Address, heir: &Address) {
    let (id, heir_id) =
        (seen.view(dead).unwrap().my_id.clone(), seen.view(heir).unwrap().my_id.clone());
    bury(seen, dead);
    let addresses: Vec<Address> =
        seen.nodes.keys().filter(|a| seen.view(a).is_some()).cloned().collect();
    let epoch =
        addresses.iter().filter_map(|a| seen.view(a)).map(|v| v.current_epoch).max().unwrap() + 1;
    for address in &addresses {
        change(seen, address, |r| {
            let view = r.cluster.as_mut().unwrap();
            view.current_epoch = epoch;
            let slots = std::mem::take(&mut view.peers.get_mut(&id).unwrap().slots);
            let peer = view.peers.get_mut(&heir_id).unwrap();
            (peer.role, peer.primary, peer.slots, peer.epoch) = (Role::Primary, None, slots, epoch);
        });
    }
    change(seen, heir, |r| {
        (r.role, r.replication.primary) = (Role::Primary, None);
        r.cluster.as_mut().unwrap().my_epoch = epoch;
    });
}

#[test]
fn a_pair_waits_for_its_target_and_others_go_on() {
    let (now, seen) = four();
    let mut intent = from_to(0, 1, 50);
    intent.moves.extend(from_to(2, 3, 50).moves);
    let (want, terms) = after(&now, reshard::amend(&intent, &now, &seen).unwrap());
    let leads = primaries(&now, &seen);
    let replica = replica_of(&now, 1, &seen);
    let policy = Policy::default();
    let due = |seen: &Observation| -> Vec<Address> {
        let next = next(&ask(&want, seen, &terms, &policy));
        moves_of(&next).iter().map(|m| m.to.address.clone()).collect()
    };
    assert_eq!(due(&seen), [leads[1].clone(), leads[3].clone()]);
    type Trouble = fn(&mut Report);
    let full = |evicts| Memory { used_bytes: 99, max_bytes: 100, evicts };
    let troubles: [(&Address, Trouble, WaitingFor); 5] = [
        (&replica, |r| r.replication.link_up = false, WaitingFor::ReplicaLag),
        (&replica, |r| r.replication.sync_in_progress = true, WaitingFor::Sync),
        (&leads[1], |r| r.replication.offset += 1 << 26, WaitingFor::ReplicaLag),
        (
            &replica,
            |r| (r.replication.offset, r.replication.last_io_seconds) = (0, Some(16)),
            WaitingFor::ReplicaLag,
        ),
        (
            &leads[1],
            |r| r.memory = Memory { used_bytes: 99, max_bytes: 100, evicts: false },
            WaitingFor::Memory,
        ),
    ];
    for (node, trouble, reason) in troubles {
        let mut seen = seen.clone();
        change(&mut seen, &leads[1], |r| r.replication.offset += 100);
        change(&mut seen, &replica, |r| r.replication.offset += 100);
        assert_eq!(due(&seen).len(), 2);
        change(&mut seen, node, trouble);
        assert_eq!(due(&seen), [leads[3].clone()], "{reason:?}");
        let forecast = forecast(&ask(&want, &seen, &terms, &policy));
        let held = forecast.steps.iter().filter_map(|s| s.step.moves());
        let held = held.filter(|m| m.to.address == leads[1]).map(|m| m.check(&seen)).next();
        let Some(Check::Waiting(wait)) = held else { panic!("{held:?}") };
        assert_eq!(
            (wait.reason, &wait.nodes),
            (
                reason,
                &vec![if reason == WaitingFor::Memory {
                    leads[1].clone()
                } else {
                    replica.clone()
                }]
            )
        );
        // What is half-way is brought to its end.
        let step = forecast
            .steps
            .iter()
            .filter_map(|s| s.step.moves())
            .find(|m| m.to.address == leads[1])
            .unwrap();
        let slot = step.slots.iter().next().unwrap();
        let open = OpenSlot { slot, giving: true, other: step.to.id.clone() };
        change(&mut seen, &step.from.address, |r| r.cluster.as_mut().unwrap().open.push(open));
        let one = MoveSlots { slots: [slot].into_iter().collect(), ..step.clone() };
        assert_eq!(
            (one.check(&seen), matches!(step.check(&seen), Check::Waiting(_))),
            (Check::Ready, true)
        );
    }
    // One that makes room by itself is never full.
    let mut seen = seen;
    change(&mut seen, &leads[1], |r| r.memory = full(true));
    assert_eq!(due(&seen).len(), 2);
}
