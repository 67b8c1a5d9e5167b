//! Slots move to where they are wanted, shards come and go: at every point each slot is served, and
//! nobody leaves who is still needed.

use proptest::sample::Index;

use super::dissolve::{back, made};
use super::drain::after;
use super::drift::{differences, primaries};
use super::replace::{cluster, newcomer, put, puts_back};
use super::*;
use crate::domain::intent::rebalance::{BalanceBy, Weight};
use crate::domain::intent::reshard::SlotMove;
use crate::domain::intent::{
    AddShardIntent, Amendment, NodeChoice, RebalanceIntent, RemoveShardIntent, ReshardIntent,
    add_shard, rebalance, remove_shard, reshard,
};
use crate::domain::moving::survey::Figures;
use crate::domain::observation::SlotJobView;
use crate::domain::refusal::Refusal;
use crate::domain::step::slots::MoveMethod;
use crate::domain::topology::Shard;
use crate::domain::view::{ReplicaState, agreed_primary};

pub(super) fn slots_of(shard: usize, topology: &Topology) -> SlotSet {
    topology.layout.shards()[shard].1.clone()
}

pub(super) fn from_to(from: usize, to: usize, count: u16) -> ReshardIntent {
    let step =
        SlotMove { from: from.to_string(), to: to.to_string(), slots: None, count: Some(count) };
    ReshardIntent { moves: vec![step], max_latency_ms: None }
}

fn weighted(weights: &[f64]) -> RebalanceIntent {
    let weights = weights.iter().enumerate();
    let weights = weights.map(|(i, w)| (i.to_string(), Weight::new(*w).unwrap())).collect();
    RebalanceIntent { weights, ..RebalanceIntent::default() }
}

pub(super) fn adding(nodes: &[NodeSpec], rebalance: bool) -> AddShardIntent {
    AddShardIntent { nodes: nodes.iter().cloned().map(NodeChoice::New).collect(), rebalance }
}

pub(super) fn removing(shard: usize) -> RemoveShardIntent {
    RemoveShardIntent { shard: Some(shard.to_string()), primary: None }
}

/// One of the four, as chance has it.
pub(super) fn asked(
    kind: u8,
    (one, other): (Index, Index),
    count: u16,
    now: &Topology,
    seen: &mut Observation,
) -> Result<Amendment, Refusal> {
    let shards = now.layout.shards().len();
    let (one, other) = (one.index(shards), other.index(shards));
    match kind {
        0 => reshard::amend(&from_to(one, other, count), now, seen),
        1 => {
            let weights: Vec<f64> =
                (0..shards).map(|s| f64::from(u8::from(s != one)) + 0.5).collect();
            rebalance::amend(&weighted(&weights), now, &Figures::default(), seen)
        }
        2 => {
            let nodes: Vec<NodeSpec> =
                (0..=count % 3).map(|n| newcomer(seen, n, &format!("z{n}"))).collect();
            add_shard::amend(&adding(&nodes, !count.is_multiple_of(4)), now, seen)
        }
        _ => remove_shard::amend(&removing(one), now, &Figures::default(), seen),
    }
}

fn replicas_follow(shard: &Shard, slots: &SlotSet, primary: &Address, seen: &Observation) -> bool {
    let status = crate::domain::view::shard(shard, slots, seen);
    status.primary.as_ref() == Some(primary)
        && status.replicas.iter().all(|r| r.state == ReplicaState::Online)
}

/// What must hold while a step is taken.
fn is_safe(step: &Step, want: &Topology, world: &Observation) -> Result<(), TestCaseError> {
    match step {
        Step::Leave(leave) => {
            let slots = world.view(&leave.node).unwrap().my_slots();
            prop_assert!(slots.is_empty(), "{} leaves with {slots}", leave.node);
        }
        Step::MoveSlots(step) => {
            let shards = want.layout.shards();
            let (shard, slots) =
                shards.iter().find(|(s, _)| s.members.contains(&step.to.address)).unwrap();
            prop_assert!(
                replicas_follow(shard, slots, &step.to.address, world),
                "{}",
                step.to.address
            );
            prop_assert!(step.slots.difference(slots).is_empty(), "they move once");
        }
        _ => {}
    }
    Ok(())
}

/// The world when nothing is left to do. A forecast takes each step once, so that a prefix in which
/// some have left may need another one for those who leave later.
pub(super) fn carried_out(
    want: &Topology,
    terms: &Terms,
    seen: &Observation,
) -> Result<Observation, TestCaseError> {
    let mut world = seen.clone();
    for _ in 0..4 {
        let plan = forecast(&ask(want, &world, terms, &Policy::default()));
        prop_assert_eq!(&plan.blockers, &vec![]);
        if plan.steps.is_empty() {
            break;
        }
        world = plan.world;
    }
    prop_assert_eq!(differences(want, &world), Vec::<String>::new());
    Ok(world)
}

/// Every prefix is safe and leads to the end, and back to what was before.
fn goes_well(
    now: &Topology,
    want: &Topology,
    terms: &Terms,
    mut seen: Observation,
    stopped: Index,
) -> Result<Observation, TestCaseError> {
    let policy = Policy::default();
    let before = seen.clone();
    let plan = forecast(&ask(want, &seen, terms, &policy));
    prop_assert_eq!(&plan.blockers, &vec![]);
    let stopped = stopped.index(plan.steps.len().max(1));
    for (i, step) in plan.steps.iter().enumerate() {
        is_safe(&step.step, want, &seen)?;
        step.step.action().effect(&mut seen);
        prop_assert_eq!(owned(&seen), SlotSet::all(), "{}", step.key);
        if i != stopped {
            continue;
        }
        carried_out(want, terms, &seen)?;
        let wind_down = Question { goal: Goal::WindDown, ..ask(want, &seen, terms, &policy) };
        let cancelled = forecast(&wind_down).world;
        prop_assert!(
            cancelled.marks.iter().all(|m| m.what.identity().is_some()),
            "after {}",
            step.key
        );
        let (older, terms) = back(want, now, &cancelled).unwrap();
        let undone = carried_out(&older, &terms, &cancelled)?;
        prop_assert_eq!(owned(&undone), SlotSet::all());
    }
    let world = plan.world;
    prop_assert_eq!(&world.marks, &vec![]);
    prop_assert_eq!(differences(want, &world), Vec::<String>::new());
    for (shard, slots) in want.layout.shards().into_iter().filter(|(_, slots)| !slots.is_empty()) {
        let primary = agreed_primary(shard, &slots, &world).unwrap();
        prop_assert_eq!(world.view(&primary).unwrap().my_slots(), slots.clone());
        prop_assert!(replicas_follow(shard, &slots, &primary, &world));
    }
    for node in terms.leavers.keys() {
        prop_assert!(world.report(node).unwrap().is_blank(), "{node}");
    }
    for (address, report) in before.nodes.keys().map(|a| (a, before.report(a).unwrap())) {
        prop_assert_eq!(&report.settings, &world.report(address).unwrap().settings);
    }
    Ok(world)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn each_intent_is_safe_at_every_point(
        spec in specs(), keys in 0u64..2, kind in 0u8..4, ends in any::<(Index, Index)>(),
        count in 1u16..9000, stopped in any::<Index>(),
    ) {
        let (now, mut seen) = made(&spec, keys);
        let Ok(amendment) = asked(kind, ends, count, &now, &mut seen) else { return Ok(()) };
        let (want, terms) = after(&now, amendment);
        let world = goes_well(&now, &want, &terms, seen, stopped)?;
        puts_back(&want, &world);
    }

    #[test]
    fn intents_follow_upon_each_other(
        spec in specs(), kinds in prop::collection::vec((0u8..4, any::<(Index, Index)>(), 1u16..3000), 3),
    ) {
        let (mut now, mut seen) = made(&spec, 1);
        for (kind, ends, count) in kinds {
            let Ok(amendment) = asked(kind, ends, count, &now, &mut seen) else { continue };
            let (want, terms) = after(&now, amendment);
            let plan = forecast(&ask(&want, &seen, &terms, &Policy::default()));
            prop_assert_eq!(&plan.blockers, &vec![]);
            prop_assert_eq!(differences(&want, &plan.world), Vec::<String>::new());
            (now, seen) = (want, plan.world);
            puts_back(&now, &seen);
        }
    }

    #[test]
    fn another_number_of_shards_is_put(
        spec in specs(), keys in 0u64..2, more in 0u16..3, stopped in any::<Index>(),
    ) {
        let (now, mut seen) = made(&spec, keys);
        let mut wanted = cluster(&now);
        let each = wanted.replicas_per_shard + 1;
        prop_assume!(more > 0 || wanted.shards > 3);
        if more > 0 {
            wanted.shards += more;
            let comers = (0..more * each).map(|n| newcomer(&mut seen, n, &format!("z{}", n % 3)));
            wanted.nodes.extend(comers.collect::<Vec<_>>());
        } else {
            wanted.shards -= 1;
        }
        let (want, terms) = put(&now, wanted, &seen).unwrap();
        let counts: Vec<usize> = want.layout.shards().iter().map(|(_, s)| s.count()).collect();
        prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
        let moved: usize = now.layout.shards().iter().zip(want.layout.shards())
            .map(|((_, old), (_, new))| old.difference(&new).count()).sum();
        prop_assert!(moved <= usize::from(crate::domain::slot::SLOTS) / counts.len() * usize::from(more.max(1)) + usize::from(more));
        let world = goes_well(&now, &want, &terms, seen, stopped)?;
        puts_back(&want, &world);
    }
}

/// Four shards on nodes 1 to 8 in three zones, with keys.
pub(super) fn four() -> (Topology, Observation) {
    made(&spec(4, 1, (0..8).map(|n| node(n, &format!("z{}", n % 3))).collect()), 9)
}

fn pointer(refused: Result<Amendment, Refusal>) -> String {
    match refused {
        Err(Refusal::Invalid(errors) | Refusal::NodesUnfit { errors, .. }) => {
            errors[0].pointer.clone()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reshard_that_makes_no_sense_is_told_where() {
    let (now, seen) = four();
    let step = |from: &str, to: &str, slots: Option<&str>, count| SlotMove {
        from: from.to_owned(),
        to: to.to_owned(),
        slots: slots.map(|s| s.parse().unwrap()),
        count,
    };
    let refused = |moves: Vec<SlotMove>| {
        pointer(reshard::amend(&ReshardIntent { moves, max_latency_ms: None }, &now, &seen))
    };
    assert_eq!(refused(vec![]), "/intent/moves");
    assert_eq!(refused(vec![step("9", "1", None, Some(1))]), "/intent/moves/0/from");
    assert_eq!(refused(vec![step("0", "10.9.9.9:1", None, Some(1))]), "/intent/moves/0/to");
    assert_eq!(refused(vec![step("0", "0", None, Some(1))]), "/intent/moves/0/to");
    assert_eq!(refused(vec![step("0", "1", None, None)]), "/intent/moves/0");
    assert_eq!(refused(vec![step("0", "1", Some("1"), Some(1))]), "/intent/moves/0");
    assert_eq!(refused(vec![step("0", "1", Some("16383"), None)]), "/intent/moves/0/slots");
    assert_eq!(refused(vec![step("0", "1", Some(""), None)]), "/intent/moves/0/slots");
    assert_eq!(refused(vec![step("0", "1", None, Some(0))]), "/intent/moves/0/count");
    assert_eq!(refused(vec![step("0", "1", None, Some(4097))]), "/intent/moves/0/count");
    let twice = vec![step("0", "1", Some("0-9"), None), step("0", "2", Some("9"), None)];
    assert_eq!(refused(twice), "/intent/moves/1/slots");
    let mut slow = from_to(0, 1, 1);
    slow.max_latency_ms = Some(0);
    assert_eq!(pointer(reshard::amend(&slow, &now, &seen)), "/intent/max_latency_ms");
    // By the address of a member, and by id.
    let (shard, _) = now.layout.shards()[2];
    let by = |name: String| step(&name, "0", None, Some(7));
    for name in [shard.id.0.to_string(), shard.members[1].to_string()] {
        let intent = ReshardIntent { moves: vec![by(name)], max_latency_ms: Some(20) };
        let amended = reshard::amend(&intent, &now, &seen).unwrap();
        assert_eq!(amended.layout.shards()[0].1.count(), 4103);
        assert_eq!(amended.terms.moving.max_latency_ms, 20);
    }
}

#[test]
fn a_shard_is_emptied_only_where_its_nodes_stay_who_they_are() {
    let (now, mut seen) = four();
    let all = from_to(3, 0, 4096);
    assert!(reshard::amend(&all, &now, &seen).is_ok());
    let weights = weighted(&[1.0, 1.0, 1.0, 0.0]);
    let amended = rebalance::amend(&weights, &now, &Figures::default(), &seen).unwrap();
    assert!(amended.layout.shards()[3].1.is_empty());
    let two = weighted(&[1.0, 1.0, 0.0, 0.0]);
    let refused = rebalance::amend(&two, &now, &Figures::default(), &seen);
    assert!(refused.unwrap_err().to_string().contains("majority"), "two cannot elect");
    let member = now.layout.shards()[3].0.members[0].clone();
    change(&mut seen, &member, |r| {
        r.settings.remove("cluster-allow-replica-migration");
    });
    let refused = reshard::amend(&all, &now, &seen).unwrap_err().to_string();
    assert!(refused.contains("remove_shard"), "{refused}");
    assert!(remove_shard::amend(&removing(3), &now, &Figures::default(), &seen).is_ok());
}

#[test]
fn shards_are_weighed_by_what_is_in_them() {
    let (now, seen) = four();
    let by = |by| RebalanceIntent { by, ..RebalanceIntent::default() };
    let unknown = rebalance::amend(&by(BalanceBy::Keys), &now, &Figures::default(), &seen);
    assert_eq!(pointer(unknown), "/intent/by");
    // Slot 0 has as many keys as the first quarter, and the second quarter has none.
    let keys = (0..crate::domain::slot::SLOTS).map(|s| match s {
        0 => (s, 4096),
        4096..8192 => (s, 0),
        _ => (s, 1),
    });
    let figures = Figures { keys: keys.collect(), ..Figures::default() };
    let amended = rebalance::amend(&by(BalanceBy::Keys), &now, &figures, &seen).unwrap();
    let held = |slots: &SlotSet| slots.iter().map(|s| figures.keys[&s]).sum::<u64>();
    let held: Vec<u64> = amended.layout.shards().iter().map(|(_, s)| held(s)).collect();
    assert_eq!(held, [4096, 4095, 4096, 4096], "the heaviest slot alone is a share");
    assert_eq!(amended.warnings, vec![]);
    let even = rebalance::amend(&by(BalanceBy::Slots), &now, &figures, &seen).unwrap();
    assert_eq!((&even.layout, even.warnings[0].code.as_str()), (&now.layout, "balanced"));
    let mut intent = weighted(&[0.0, 0.0, 0.0, 0.0]);
    assert_eq!(pointer(rebalance::amend(&intent, &now, &figures, &seen)), "/intent/weights");
    intent = weighted(&[1.0]);
    let twice = now.layout.shards()[0].0.members[0].to_string();
    intent.weights.insert(twice.clone(), Weight::new(2.0).unwrap());
    let at = pointer(rebalance::amend(&intent, &now, &figures, &seen));
    assert_eq!(at, format!("/intent/weights/{twice}"));
    intent = RebalanceIntent { threshold_percent: Some(101), ..RebalanceIntent::default() };
    assert_eq!(
        pointer(rebalance::amend(&intent, &now, &figures, &seen)),
        "/intent/threshold_percent"
    );
}

#[test]
fn a_new_shard_is_led_from_where_few_are() {
    let (now, mut seen) = four();
    let nodes = [newcomer(&mut seen, 0, "z0"), newcomer(&mut seen, 1, "z7")];
    let amended = add_shard::amend(&adding(&nodes, true), &now, &seen).unwrap();
    let (shard, slots) = amended.layout.shards()[4].clone();
    assert_eq!((shard.index, slots.count()), (4, 3276));
    assert_eq!(shard.members[0], nodes[1].address, "z7 has no primary yet");
    assert_eq!(amended.terms.founders, [(shard.id, nodes[1].address.clone())].into());
    assert_eq!(amended.warnings, vec![]);
    let (want, _) = after(&now, amended);
    let spec = cluster(&want);
    assert_eq!((spec.shards, spec.nodes.len(), spec.overrides.shards.len()), (5, 10, 0));

    let alone = add_shard::amend(&adding(&nodes[..1], false), &now, &seen).unwrap();
    let codes: Vec<_> = alone.warnings.iter().map(|w| w.code.as_str()).collect();
    assert_eq!(codes, ["no_replica", "replicas_deviate"]);
    assert_eq!(cluster(&after(&now, alone).0).overrides.shards[0].replicas, 0);

    let refused = |nodes: &[NodeSpec], seen: &Observation| {
        pointer(add_shard::amend(&adding(nodes, true), &now, seen))
    };
    assert_eq!(refused(&[], &seen), "/intent/nodes");
    let twice = [nodes[0].clone(), nodes[0].clone()];
    assert_eq!(refused(&twice, &seen), "/intent/nodes/1");
    let member = node(0, "z0");
    assert_eq!(refused(&[nodes[0].clone(), member], &seen), "/intent/nodes/1");
    change(&mut seen, &nodes[1].address, |r| r.keys = 1);
    assert_eq!(refused(&nodes, &seen), "/intent/nodes/1");
    change(&mut seen, &nodes[1].address, |r| (r.keys, r.version) = (0, Version::new(6, 2, 0)));
    assert_eq!(refused(&nodes, &seen), "/intent/nodes/1", "it cannot read what the others write");
}

#[test]
fn a_shard_goes_where_there_is_room_for_what_it_has() {
    let (now, mut seen) = four();
    let leads = primaries(&now, &seen);
    let slots = slots_of(3, &now);
    let bytes = slots.iter().map(|s| (s, 1000)).collect();
    let figures = Figures { bytes, ..Figures::default() };
    let limit = |seen: &mut Observation, node: &Address, free: u64| {
        change(seen, node, |r| {
            r.memory = Memory { used_bytes: 5_000_000, max_bytes: 5_000_000 + free, evicts: false };
        });
    };
    limit(&mut seen, &leads[0], 120_000);
    let amended = remove_shard::amend(&removing(3), &now, &figures, &seen).unwrap();
    let gained: Vec<usize> = now
        .layout
        .shards()
        .iter()
        .zip(amended.layout.shards())
        .map(|((_, old), (_, new))| new.difference(old).count())
        .collect();
    assert_eq!(gained.iter().sum::<usize>(), 4096);
    assert_eq!(gained[0], 100, "five sixths of what is free");
    assert_eq!(amended.terms.leavers.len(), 2);
    let spec = cluster(&after(&now, amended).0);
    assert_eq!((spec.shards, spec.nodes.len()), (3, 6));

    leads.iter().for_each(|node| limit(&mut seen, node, 120_000));
    let refused = remove_shard::amend(&removing(3), &now, &figures, &seen).unwrap_err();
    let told = refused.to_string();
    assert!(told.contains("4096000 bytes") && told.contains("300000"), "{told}");

    let (three, seen) = made(&super::spec(3, 0, (0..3).map(|n| node(n, "a")).collect()), 1);
    let few = remove_shard::amend(&removing(1), &three, &figures, &seen);
    assert_eq!(pointer(few), "/intent/shard");
    let nobody = RemoveShardIntent::default();
    assert_eq!(pointer(remove_shard::amend(&nobody, &now, &figures, &seen)), "/intent");
}

/// Redis 8.4: the target is told to take slots, and to give that up.
#[test]
fn an_import_is_the_targets_to_do_and_to_give_up() {
    let spec = spec(3, 0, (0..3).map(|n| node(n, "z")).collect());
    let (now, mut seen) = made(&spec, 5);
    for member in now.layout.members() {
        change(&mut seen, member, |r| r.version = Version::new(8, 4, 0));
    }
    let (want, terms) = after(&now, reshard::amend(&from_to(0, 1, 7), &now, &seen).unwrap());
    let policy = Policy::default();
    let plan = forecast(&ask(&want, &seen, &terms, &policy));
    let moves = plan.steps.iter().find_map(|s| s.step.moves()).unwrap();
    assert_eq!(moves.how, MoveMethod::Import);
    let shown = &plan.steps.iter().find(|s| s.step.moves().is_some()).unwrap().commands;
    assert_eq!(shown[0].node, moves.to.address);
    assert!(shown[0].command.starts_with("CLUSTER MIGRATION IMPORT "), "{shown:?}");

    let (from, to) = (moves.from.clone(), moves.to.clone());
    seen.marks = moves.marks(&seen);
    let (giver, taker) = (Some(from.id.clone()), Some(to.id.clone()));
    let job = SlotJobView { slots: moves.slots.clone(), from: giver, to: taker };
    change(&mut seen, &to.address, |r| r.cluster.as_mut().unwrap().jobs = vec![job]);
    let goes_on = next(&ask(&want, &seen, &terms, &policy));
    assert!(matches!(&goes_on, Next::Act(steps) if steps[0].moves() == Some(moves)), "{goes_on:?}");
    let wind_down = Question { goal: Goal::WindDown, ..ask(&want, &seen, &terms, &policy) };
    let given_up = forecast(&wind_down);
    let shown: Vec<_> = given_up.steps.iter().flat_map(|s| &s.commands).collect();
    assert!(shown.iter().all(|c| c.node == to.address), "{shown:?}");
    let words: Vec<&str> = shown.iter().map(|c| c.command.as_str()).collect();
    assert_eq!(words, ["CLUSTER MYID", "CLUSTER MIGRATION CANCEL ALL"]);
    assert_eq!(given_up.world.view(&to.address).unwrap().jobs, []);

    // It is over, and the source drops what it gave away.
    moves.effect(&mut seen);
    change(&mut seen, &to.address, |r| r.cluster.as_mut().unwrap().jobs.clear());
    change(&mut seen, &from.address, |r| r.cluster.as_mut().unwrap().trims = true);
    seen.marks.clear();
    let waits = next(&ask(&want, &seen, &terms, &policy));
    let trims = |step: &Step| matches!(step, Step::AwaitTrim(step) if step.node == from.address);
    assert!(matches!(&waits, Next::Wait(waits) if trims(&waits[0].0)), "{waits:?}");
    let back = ask(&now, &seen, &terms, &policy);
    assert!(matches!(next(&back), Next::Wait(_)), "no other job begins meanwhile");
}
