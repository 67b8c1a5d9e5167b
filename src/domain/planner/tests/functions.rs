//! Libraries of functions: whoever begins to serve has those that all others have alike.

use proptest::sample::Index;

use super::dissolve::made;
use super::drain::after;
use super::moves::{adding, carried_out, removing};
use super::replace::newcomer;
use super::*;
use crate::domain::functions::{Libraries, compare, digest};
use crate::domain::intent::{add_shard, remove_shard};
use crate::domain::moving::survey::Figures;

/// Gives each shard libraries of these codes; none where it is 0.
fn load(now: &Topology, codes: &[[u8; 3]], seen: &mut Observation) -> BTreeMap<Address, Libraries> {
    let mut loaded = BTreeMap::new();
    for ((shard, _), codes) in now.layout.shards().into_iter().zip(codes) {
        let some = ["a", "b", "c"].into_iter().zip(codes).filter(|(_, code)| **code > 0);
        let libraries: Libraries =
            some.map(|(name, code)| (name.to_owned(), digest(&[*code]))).collect();
        for member in &shard.members {
            change(seen, member, |r| {
                (r.functions, r.libraries) = (!libraries.is_empty(), Some(libraries.clone()));
            });
        }
        let leads = |m: &&Address| seen.report(m).is_some_and(|r| r.role == Role::Primary);
        let primary = shard.members.iter().find(leads).unwrap();
        loaded.insert(primary.clone(), libraries);
    }
    loaded
}

fn copies(plan: &Forecast) -> Vec<&Step> {
    let copies = |step: &&Step| matches!(step, Step::CopyFunctions(_));
    plan.steps.iter().map(|s| &s.step).filter(copies).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whoever_begins_to_serve_has_what_all_others_have(
        spec in specs(), same in 0u8..2, codes in prop::collection::vec(prop::array::uniform2(0u8..3), 6),
        members in 1u16..4, stopped in any::<Index>(),
    ) {
        let (now, mut seen) = made(&spec, 1);
        let codes: Vec<[u8; 3]> = codes.into_iter().map(|[b, c]| [same, b, c]).collect();
        let loaded = load(&now, &codes, &mut seen);
        let common = compare(&loaded).common;
        let nodes: Vec<NodeSpec> =
            (0..members).map(|n| newcomer(&mut seen, n, &format!("z{n}"))).collect();
        let Ok(amendment) = add_shard::amend(&adding(&nodes, true), &now, &seen) else {
            return Ok(());
        };
        let (want, terms) = after(&now, amendment);
        let policy = Policy::default();
        let plan = forecast(&ask(&want, &seen, &terms, &policy));
        prop_assert_eq!(&plan.blockers, &vec![]);
        prop_assert_eq!(copies(&plan).len(), usize::from(!common.is_empty()));
        let told = functions_drift(&ask(&want, &seen, &terms, &policy));
        prop_assert_eq!(told.is_some(), !compare(&loaded).disputed.is_empty());
        let stopped = stopped.index(plan.steps.len());
        for (i, step) in plan.steps.iter().enumerate() {
            if let Step::MoveSlots(step) = &step.step {
                let there = seen.report(&step.to.address).unwrap().libraries();
                prop_assert_eq!(there.as_ref(), Some(&common), "before {}", step.title());
            }
            step.step.action().effect(&mut seen);
            for (node, libraries) in &loaded {
                let now = seen.report(node).unwrap().libraries();
                prop_assert_eq!(now.as_ref(), Some(libraries), "{} changes", step.key);
            }
            if i == stopped {
                carried_out(&want, &terms, &seen)?;
            }
        }
    }

    #[test]
    fn nothing_moves_before_libraries_were_read(spec in specs(), code in 1u8..3) {
        let (now, mut seen) = made(&spec, 1);
        let loaded = load(&now, &[[code, 0, 0]; 6], &mut seen);
        for node in loaded.keys() {
            change(&mut seen, node, |r| r.libraries = None);
        }
        let node = newcomer(&mut seen, 0, "z0");
        let amendment = add_shard::amend(&adding(&[node], true), &now, &seen).unwrap();
        let (want, terms) = after(&now, amendment);
        let policy = Policy::default();
        prop_assert!(compares_functions(&ask(&want, &seen, &terms, &policy)));
        let plan = forecast(&ask(&want, &seen, &terms, &policy));
        prop_assert!(plan.steps.iter().all(|s| s.step.moves().is_none()));
        let asked = ask(&want, &plan.world, &terms, &policy);
        prop_assert!(matches!(next(&asked), Next::Wait(_)), "{:?}", next(&asked));
    }

    #[test]
    fn whoever_leaves_keeps_none(spec in specs(), code in 1u8..3) {
        let (now, mut seen) = made(&spec, 0);
        load(&now, &[[code, 0, 0]; 6], &mut seen);
        let amended = remove_shard::amend(&removing(0), &now, &Figures::default(), &seen);
        let Ok(amendment) = amended else { return Ok(()) };
        let (want, terms) = after(&now, amendment);
        let policy = Policy::default();
        let plan = forecast(&ask(&want, &seen, &terms, &policy));
        for step in &plan.steps {
            let Step::Leave(leave) = &step.step else { continue };
            let role = seen.report(&leave.node).unwrap().role;
            let words: Vec<&str> = step.commands.iter().map(|c| c.command.as_str()).collect();
            let expected = match role {
                Role::Primary => vec!["CLUSTER MYID", "FUNCTION FLUSH ASYNC", "CLUSTER RESET HARD"],
                _ => vec!["CLUSTER MYID", "CLUSTER RESET HARD"],
            };
            prop_assert_eq!(words, expected);
        }
        prop_assert!(!compares_functions(&ask(&now, &seen, &Terms::default(), &policy)));
    }
}

/// Of those who have all that is common, the one with the least besides is copied from, and what it has
/// besides is deleted again.
#[test]
fn what_only_the_donor_has_does_not_stay() {
    let spec = spec(3, 0, (0..3).map(|n| node(n, "z")).collect());
    let (now, mut seen) = made(&spec, 1);
    let loaded = load(&now, &[[1, 1, 1], [1, 2, 0], [1, 0, 2]], &mut seen);
    let comer = newcomer(&mut seen, 0, "z");
    let amendment =
        add_shard::amend(&adding(std::slice::from_ref(&comer), true), &now, &seen).unwrap();
    let (want, terms) = after(&now, amendment);
    let plan = forecast(&ask(&want, &seen, &terms, &Policy::default()));
    let [Step::CopyFunctions(step)] = copies(&plan)[..] else { panic!("{plan:#?}") };
    assert_eq!(step.excess().len(), 1);
    let (donor, excess) = (&step.from, step.excess());
    let shown = plan.steps.iter().find(|s| s.key == step.key()).unwrap();
    let shown: Vec<String> =
        shown.commands.iter().map(|c| format!("{} {}", c.node, c.command)).collect();
    let name = excess.keys().next().unwrap();
    assert_eq!(
        shown,
        [
            format!("{donor} FUNCTION DUMP"),
            format!("{} FUNCTION RESTORE <what was dumped> REPLACE", comer.address),
            format!("{} FUNCTION DELETE {name}", comer.address),
        ]
    );
    // Whoever broke off between the last two finds it again.
    change(&mut seen, &comer.address, |r| {
        (r.functions, r.libraries) = (true, Some(loaded[donor].clone()));
    });
    assert_eq!(step.check(&seen), Check::Ready);
    step.effect(&mut seen);
    assert_eq!(step.check(&seen), Check::Done);
}
