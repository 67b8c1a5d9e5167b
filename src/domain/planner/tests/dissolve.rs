//! Dissolve, and back again from wherever it came to.

use proptest::sample::Index;

use super::*;
use crate::domain::intent::{RevertIntent, dissolve, revert};
use crate::domain::step::Check;
use crate::domain::view::agreed_primary;

/// A cluster in use as its create plan leaves it, with keys on every primary and its replicas.
pub(super) fn made(spec: &Spec, keys: u64) -> (Topology, Observation) {
    let seen = world(spec, 0);
    let (want, terms) = draft(spec, &seen, false);
    let mut world = forecast(&ask(&want, &seen, &terms, &Policy::default())).world;
    for member in want.layout.members() {
        change(&mut world, member, |r| r.keys = keys);
    }
    (want, world)
}

fn gone(now: &Topology, seen: &Observation) -> (Topology, Terms) {
    let members = now.layout.members().into_iter().cloned().collect();
    let amended = dissolve::amend(now, &members, seen).unwrap();
    (Topology { version: now.version + 1, layout: amended.layout, ..now.clone() }, amended.terms)
}

pub(super) fn back(
    now: &Topology,
    older: &Topology,
    seen: &Observation,
) -> Result<(Topology, Terms), crate::domain::refusal::Refusal> {
    let intent = RevertIntent { version: older.version };
    let amended = revert::amend(&intent, now, Some(older), seen)?;
    let (spec, layout) = (amended.spec.unwrap(), amended.layout);
    Ok((Topology { version: now.version + 1, spec, layout, ..now.clone() }, amended.terms))
}

fn blank_again(world: &Observation, topology: &Topology) -> bool {
    topology.layout.members().iter().all(|m| world.report(m).unwrap().is_blank())
}

/// Every world that a plan passes through, from its beginning to its end.
fn passages(plan: &Forecast, from: &Observation) -> Vec<Observation> {
    let mut worlds = vec![from.clone()];
    for step in &plan.steps {
        let mut next = worlds[worlds.len() - 1].clone();
        step.step.action().effect(&mut next);
        worlds.push(next);
    }
    worlds
}

fn kinds(plan: &Forecast) -> Vec<&'static str> {
    plan.steps.iter().map(|s| s.step.kind()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn dissolving_leaves_blank_nodes_and_no_mark(spec in specs(), keys in 0u64..2) {
        let (now, seen) = made(&spec, keys);
        let (want, terms) = gone(&now, &seen);
        let policy = Policy::default();
        let plan = forecast(&ask(&want, &seen, &terms, &policy));
        prop_assert_eq!(&plan.blockers, &vec![]);
        prop_assert_eq!(&plan.world.marks, &vec![]);
        prop_assert!(blank_again(&plan.world, &now));
        // Each node with keys is a hazard of its own; without keys, only the service is lost.
        let ids: Vec<_> = plan.hazards().into_iter().map(|h| h.id).collect();
        let flushed = |a: &Address| ids.contains(&format!("flush:{a}"));
        let stopped = ids.iter().filter(|id| id.starts_with("outage:")).count();
        let shards = now.layout.shards().len();
        if keys > 0 {
            prop_assert!(now.layout.members().into_iter().all(flushed));
            prop_assert_eq!(stopped, 0);
        } else {
            prop_assert!(!now.layout.members().into_iter().any(flushed));
            prop_assert_eq!(stopped, shards);
        }
        // No replica is left to be promoted when the first primary goes.
        let mut replicas_left = now.layout.members().len() - shards;
        for (step, before) in plan.steps.iter().zip(passages(&plan, &seen)) {
            let node = &step.step.action().nodes()[0];
            match before.report(node).unwrap().role {
                Role::Replica => replicas_left -= 1,
                Role::Primary | Role::Sentinel => prop_assert_eq!(replicas_left, 0),
            }
        }
    }

    #[test]
    fn there_is_a_way_back_from_every_prefix(
        spec in specs(), keys in 0u64..2, stopped in any::<Index>(), stopped_again in any::<Index>(),
    ) {
        let (older, seen) = made(&spec, keys);
        let (want, terms) = gone(&older, &seen);
        let policy = Policy::default();
        let dissolving = forecast(&ask(&want, &seen, &terms, &policy));
        let worlds = passages(&dissolving, &seen);
        let world = stopped.get(&worlds);
        // What was begun can be carried to its end, by the same plan or by a new one.
        let (again, fresh) = {
            let members = older.layout.members().into_iter().cloned().collect();
            let amended = dissolve::amend(&want, &members, world).unwrap();
            (Topology { layout: amended.layout, ..want.clone() }, amended.terms)
        };
        for terms in [&terms, &fresh] {
            let rest = forecast(&ask(&again, world, terms, &policy));
            prop_assert_eq!(&rest.blockers, &vec![]);
            prop_assert_eq!(&rest.world.marks, &vec![]);
            prop_assert!(blank_again(&rest.world, &older));
        }

        let (target, pins) = back(&want, &older, world).unwrap();
        let plan = forecast(&ask(&target, world, &pins, &policy));
        prop_assert_eq!(&plan.blockers, &vec![]);
        prop_assert_eq!(&plan.hazards(), &vec![], "nothing more is lost on the way back");
        prop_assert_eq!(&plan.world.marks, &vec![]);
        prop_assert_eq!(owned(&plan.world), SlotSet::all());
        prop_assert_eq!(next(&ask(&target, &plan.world, &pins, &policy)), Next::Converged);
        let repair = forecast(&ask(&target, &plan.world, &Terms::default(), &policy));
        prop_assert_eq!(kinds(&repair), Vec::<&str>::new());
        for (shard, slots) in target.layout.shards() {
            prop_assert!(agreed_primary(shard, &slots, &plan.world).is_some());
        }
        // No step of the way back drops a key.
        let worlds = passages(&plan, world);
        for (step, worlds) in plan.steps.iter().zip(worlds.windows(2)) {
            let [before, after] = worlds else { unreachable!() };
            for member in target.layout.members() {
                let (was, is) = (before.report(member).unwrap(), after.report(member).unwrap());
                prop_assert_eq!(was.keys, is.keys, "{} drops keys", &step.key);
                let demoted = was.role == Role::Primary && is.role == Role::Replica;
                prop_assert!(!demoted || was.keys == 0, "{} drops a copy", &step.key);
            }
            prop_assert!(owned(before).difference(&owned(after)).is_empty());
        }
        // It can be taken up from everywhere on it, by the same plan or by a new one.
        let world = stopped_again.get(&worlds);
        let (once_more, fresh) = back(&want, &older, world).unwrap();
        for (target, terms) in [(&target, &pins), (&once_more, &fresh)] {
            let rest = forecast(&ask(target, world, terms, &policy));
            prop_assert_eq!(&rest.blockers, &vec![]);
            prop_assert_eq!(&rest.world.marks, &vec![]);
            prop_assert_eq!(owned(&rest.world), SlotSet::all());
        }
    }

    #[test]
    fn going_back_to_the_same_shape_does_nothing(spec in specs(), keys in 0u64..2) {
        let (older, seen) = made(&spec, keys);
        let now = Topology { version: 2, ..older.clone() };
        let (target, terms) = back(&now, &older, &seen).unwrap();
        prop_assert_eq!(&terms, &Terms::default());
        let plan = forecast(&ask(&target, &seen, &terms, &Policy::default()));
        prop_assert_eq!(kinds(&plan), Vec::<&str>::new());
    }
}

fn six() -> Spec {
    spec(3, 1, (0..6).map(|n| node(n, &format!("z{}", n % 3))).collect())
}

fn silence(world: &mut Observation, node: &Address) {
    let silence = Silence {
        since: chrono::DateTime::UNIX_EPOCH,
        code: "unreachable".to_owned(),
        message: "refused".to_owned(),
    };
    world.nodes.insert(node.clone(), Sighting::Silent(silence));
}

#[test]
fn nobody_can_consent_to_losing_what_was_not_seen() {
    let (now, mut seen) = made(&six(), 5);
    let node = now.spec.nodes()[2].address.clone();
    silence(&mut seen, &node);
    let members = now.layout.members().into_iter().cloned().collect();
    let refused = dissolve::amend(&now, &members, &seen).unwrap_err().to_string();
    assert!(refused.contains("/spec/nodes/2/address"), "{refused}");
}

#[test]
fn a_node_that_was_written_to_since_is_not_emptied() {
    let (now, mut seen) = made(&six(), 5);
    let (want, terms) = gone(&now, &seen);
    let node = now.spec.nodes()[0].address.clone();
    change(&mut seen, &node, |r| r.keys = 6);
    let plan = forecast(&ask(&want, &seen, &terms, &Policy::default()));
    assert_eq!(plan.blockers.first().map(|b| b.code), Some("node_has_keys"));
    assert!(plan.steps.iter().all(|s| s.key != format!("reset_node:{node}")));
}

#[test]
fn a_reset_that_was_given_up_leaves_no_mark_for_long() {
    let (now, mut seen) = made(&six(), 5);
    let (want, terms) = gone(&now, &seen);
    let policy = Policy::default();
    let Next::Act(steps) = next(&ask(&want, &seen, &terms, &policy)) else { panic!() };
    // The marks were committed; then the process died, and the commands were never sent.
    let marks: Vec<_> = steps.iter().flat_map(|s| s.action().marks(&seen)).collect();
    seen.marks.clone_from(&marks);
    assert_eq!(marks.len(), 3);
    assert!(seen.ghosts().is_empty(), "who still has its identity is nobody's ghost");
    assert!(settled_marks(&ask(&want, &seen, &terms, &policy)).is_empty());
    let (target, terms) = back(&want, &now, &seen).unwrap();
    assert_eq!(settled_marks(&ask(&target, &seen, &terms, &policy)), marks);
    assert_eq!(forecast(&ask(&target, &seen, &terms, &policy)).steps.len(), 0);
}

#[test]
fn a_mark_stays_while_an_unseen_member_may_know_the_identity() {
    let (now, seen) = made(&six(), 5);
    let (want, terms) = gone(&now, &seen);
    let policy = Policy::default();
    let dissolving = forecast(&ask(&want, &seen, &terms, &policy));
    let mut half = passages(&dissolving, &seen).swap_remove(1);
    let reset = half.marks[0].node.clone();
    let wind_down = |world: &Observation| {
        let q = Question { goal: Goal::WindDown, ..ask(&want, world, &terms, &policy) };
        forecast(&q)
    };
    assert_eq!(wind_down(&half).world.marks.len(), 1, "the others still know it");
    assert_eq!(wind_down(&half).steps.len(), 0);
    // On the way back all forget it, but for one who does not answer.
    let (target, pins) = back(&want, &now, &half).unwrap();
    let silent = now.layout.members().into_iter().find(|m| **m != reset).unwrap().clone();
    for node in now.layout.members() {
        let ids = half.ghosts().into_iter().map(|id| (id.clone(), reset.clone())).collect();
        let forget = crate::domain::step::forget::Forget { node: node.clone(), ids };
        if *node != silent {
            forget.effect(&mut half);
            assert_eq!(forget.check(&half), Check::Done);
        }
    }
    silence(&mut half, &silent);
    assert!(settled_marks(&ask(&target, &half, &pins, &policy)).is_empty());
}

#[test]
fn ghosts_never_block_and_strangers_always_do() {
    let (now, seen) = made(&six(), 5);
    let (want, terms) = gone(&now, &seen);
    let policy = Policy::default();
    let dissolving = forecast(&ask(&want, &seen, &terms, &policy));
    for mut world in passages(&dissolving, &seen) {
        // Redis forgets the address of a node that answers under another identity.
        let ghosts: Vec<_> = world.ghosts().into_iter().cloned().collect();
        for member in now.layout.members() {
            change(&mut world, member, |r| {
                let peers = &mut r.cluster.as_mut().unwrap().peers;
                peers.iter_mut().filter(|(id, _)| ghosts.contains(id)).for_each(|(_, peer)| {
                    peer.address = None;
                    peer.failed = true;
                });
            });
        }
        let (target, pins) = back(&want, &now, &world).unwrap();
        let plan = forecast(&ask(&target, &world, &pins, &policy));
        assert_eq!(plan.blockers, vec![]);
        let rest = forecast(&ask(&want, &world, &terms, &policy));
        assert_eq!(rest.blockers, vec![]);

        let Some(node) =
            now.layout.members().into_iter().find(|m| world.view(m).unwrap().peers.len() > 1)
        else {
            continue;
        };
        change(&mut world, node, |r| {
            let view = r.cluster.as_mut().unwrap();
            let mut stranger = view.me().unwrap().clone();
            stranger.address = Some("10.9.9.9:7000".parse().unwrap());
            stranger.slots = SlotSet::empty();
            view.peers.insert(ClusterNodeId("e".repeat(40)), stranger);
        });
        for (want, terms) in [(&target, &pins), (&want, &terms)] {
            let plan = forecast(&ask(want, &world, terms, &policy));
            assert_eq!(plan.blockers.first().map(|b| b.code), Some("stranger"));
            assert_eq!(plan.steps.len(), 0);
        }
    }
}

#[test]
fn versions_that_make_no_sense_are_refused_at_their_field() {
    let (now, seen) = made(&six(), 0);
    let next = Topology { version: 3, ..now.clone() };
    for (version, older) in [(3, Some(&next)), (0, None), (7, None), (2, Some(&now))] {
        let refused = revert::amend(&RevertIntent { version }, &next, older, &seen).unwrap_err();
        assert!(refused.to_string().contains("(/intent/version)"), "{refused}");
    }
    let gone = Topology { version: 2, layout: Layout::Gone, ..now };
    let refused = revert::amend(&RevertIntent { version: 2 }, &next, Some(&gone), &seen);
    assert!(refused.unwrap_err().to_string().contains("dissolve"));
}

#[test]
fn slots_that_somebody_owns_are_not_taken_by_going_back() {
    let (older, mut seen) = made(&six(), 5);
    // Somebody moved the first shard's slots to the second one, and its nodes were reset since.
    let shards = older.layout.shards();
    let (first, slots) = &shards[0];
    let taker = shards[1].0.members[0].clone();
    let taker_id = seen.view(&taker).unwrap().my_id.clone();
    let policy = Policy::default();
    let now = Topology { version: 2, ..older.clone() };
    for member in older.layout.members() {
        let all = slots.union(&shards[1].1);
        let old = seen.view(&first.members[0]).unwrap().my_id.clone();
        change(&mut seen, member, |r| {
            let peers = &mut r.cluster.as_mut().unwrap().peers;
            peers.get_mut(&old).unwrap().slots = SlotSet::empty();
            peers.get_mut(&taker_id).unwrap().slots = all;
        });
    }
    // Nobody claims them: they are moved back, with their keys.
    let (wanted, terms) = back(&now, &older, &seen).unwrap();
    let plan = forecast(&ask(&wanted, &seen, &terms, &policy));
    assert!(plan.blockers.is_empty(), "{plan:#?}");
    assert!(plan.steps.iter().all(|s| !matches!(s.step, Step::ClaimSlots(_))), "{plan:#?}");
    let moved = |s: &&ForecastStep| matches!(&s.step, Step::MoveSlots(m) if m.slots == *slots && m.from.address == taker);
    assert_eq!(plan.steps.iter().filter(moved).count(), 1, "{plan:#?}");
}

#[test]
fn an_only_copy_on_a_replica_is_not_given_up() {
    let (older, mut seen) = made(&six(), 5);
    let (first, slots) = older.layout.shards().into_iter().next().unwrap();
    let primary = agreed_primary(first, &slots, &seen).unwrap();
    let replica = first.members.iter().find(|m| **m != primary).unwrap();
    // Its primary was emptied by hand; everybody still shows the identity that it had.
    change(&mut seen, &primary, |r| *r = blank(&primary, 0));
    change(&mut seen, &primary, |r| {
        let view = r.cluster.as_mut().unwrap();
        let mut me = view.me().unwrap().clone();
        me.slots = SlotSet::empty();
        view.my_id = ClusterNodeId("d".repeat(40));
        view.peers = [(view.my_id.clone(), me)].into();
    });
    let now = Topology { version: 2, ..older.clone() };
    let refused = back(&now, &older, &seen).unwrap_err().to_string();
    assert!(refused.contains("owns slots of it"), "{refused}");
    let terms = Terms { primaries: [(first.id, primary.clone())].into(), ..Terms::default() };
    let plan = forecast(&ask(&now, &seen, &terms, &Policy::default()));
    assert!(!plan.blockers.is_empty());
    assert_eq!(plan.world.report(replica).unwrap().keys, 5);
}
