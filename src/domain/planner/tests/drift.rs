//! What nodes came to by themselves: told, accepted, or taken back.

use proptest::sample::Index;

use super::dissolve::{back, made};
use super::*;
use crate::domain::intent::accept_drift;
use crate::domain::refusal::Refusal;
use crate::domain::step::agree::AwaitAgreement;
use crate::domain::step::replicate::Replicate;
use crate::domain::view::agreed_primary;

fn accept(now: &Topology, seen: &Observation) -> Result<Topology, Refusal> {
    let amended = accept_drift::amend(now, seen)?;
    assert_eq!(amended.terms, Terms::default());
    let (spec, layout) = (amended.spec.unwrap(), amended.layout);
    Ok(Topology { version: now.version + 1, spec, layout, ..now.clone() })
}

pub(super) fn differences(want: &Topology, seen: &Observation) -> Vec<String> {
    let former = want.layout.members().into_iter().cloned().collect();
    let told = unsettled(want, &former, &BTreeSet::new(), seen, &Policy::default());
    told.into_iter().map(|d| d.detail).collect()
}

pub(super) fn placed_again(topology: &Topology) -> Layout {
    let (Spec::Cluster(spec), Layout::Cluster { shards }) = (&topology.spec, &topology.layout)
    else {
        unreachable!()
    };
    let placed = placement::place(&placement::Request {
        topology: topology.id,
        nodes: &spec.nodes,
        shards: spec.shards,
        replicas: spec.replicas_per_shard,
        overrides: &spec.overrides,
        placement: &spec.placement,
        previous: Some(shards),
    });
    Layout::Cluster { shards: placed.unwrap().shards }
}

/// Somebody tells a replica to follow another primary, and everybody hears of it.
fn repoint(world: &mut Observation, want: &Topology, replica: &Address, primary: &Address) {
    Replicate { node: replica.clone(), primary: primary.clone() }.effect(world);
    agree(world, want);
}

pub(super) fn agree(world: &mut Observation, want: &Topology) {
    let members = want.layout.members().into_iter().cloned().collect();
    AwaitAgreement::of(members).effect(world);
}

pub(super) fn primaries(want: &Topology, seen: &Observation) -> Vec<Address> {
    let shards = want.layout.shards().into_iter();
    shards.map(|(shard, slots)| agreed_primary(shard, &slots, seen).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_as_wanted_is_accepted_as_it_is(spec in specs(), keys in 0u64..2) {
        let (now, seen) = made(&spec, keys);
        prop_assert_eq!(differences(&now, &seen), Vec::<String>::new());
        let accepted = accept(&now, &seen).unwrap();
        prop_assert_eq!(&accepted.layout, &now.layout);
        prop_assert_eq!(&accepted.spec, &now.spec);
    }

    #[test]
    fn drift_is_told_and_then_accepted_or_taken_back(
        spec in specs(), keys in 0u64..2, moves in prop::collection::vec((any::<Index>(), any::<Index>()), 1..4),
    ) {
        let (now, mut seen) = made(&spec, keys);
        let policy = Policy::default();
        let primaries = primaries(&now, &seen);
        let members = now.layout.members();
        let replicas: Vec<_> = members.into_iter().filter(|m| !primaries.contains(m)).cloned().collect();
        prop_assume!(!replicas.is_empty());
        for (replica, primary) in moves {
            repoint(&mut seen, &now, replica.get(&replicas), primary.get(&primaries));
        }
        let home = |m: &Address| {
            let of = now.layout.shards().iter().position(|(s, _)| s.members.contains(m)).unwrap();
            seen.report(m).unwrap().replication.primary.as_ref() == Some(&primaries[of])
        };
        let moved: Vec<_> = replicas.iter().filter(|r| !home(r)).collect();
        let told = differences(&now, &seen);
        prop_assert_eq!(told.len(), moved.len(), "{:?}", told);

        let accepted = accept(&now, &seen).unwrap();
        prop_assert_eq!(differences(&accepted, &seen), Vec::<String>::new());
        let terms = Terms::default();
        let plan = forecast(&ask(&accepted, &seen, &terms, &policy));
        prop_assert_eq!((plan.steps.len(), plan.blockers), (0, vec![]));
        let got = serde_json::to_string(&accepted.spec).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Spec>(&got).unwrap(), &accepted.spec);
        prop_assert_eq!(accepted.spec.validate(), vec![]);
        prop_assert_eq!(placed_again(&accepted), accepted.layout.clone(), "PUT of what GET gave");
        let ids = |t: &Topology| t.layout.shards().iter().map(|(s, _)| s.id).collect::<Vec<_>>();
        prop_assert_eq!(ids(&accepted), ids(&now));

        // To go back is to plan back: each replica once, and nothing else.
        let (target, terms) = back(&accepted, &now, &seen).unwrap();
        let plan = forecast(&ask(&target, &seen, &terms, &policy));
        prop_assert_eq!(&plan.blockers, &vec![]);
        let sending: Vec<_> = plan.steps.iter().filter(|s| !s.commands.is_empty()).collect();
        prop_assert!(sending.iter().all(|s| s.step.kind() == "replicate"));
        prop_assert_eq!(sending.len(), moved.len());
        prop_assert_eq!(differences(&target, &plan.world), Vec::<String>::new());
    }
}

pub(super) fn six() -> Spec {
    spec(3, 1, (0..8).map(|n| node(n, &format!("z{}", n % 3))).collect())
}

fn refusal(now: &Topology, seen: &Observation) -> String {
    accept(now, seen).unwrap_err().to_string()
}

#[test]
fn a_spare_that_became_a_primary_is_a_new_shard() {
    let (now, mut seen) = made(&six(), 5);
    let spare = now.spec.nodes().iter().map(|n| n.address.clone());
    let spare = spare.into_iter().find(|a| !now.layout.members().contains(a)).unwrap();
    let giver = primaries(&now, &seen)[0].clone();
    let half: SlotSet = "0-99".parse().unwrap();
    for (node, taken) in [(&giver, false), (&spare, true)] {
        change(&mut seen, node, |r| {
            let view = r.cluster.as_mut().unwrap();
            let me = view.peers.get_mut(&view.my_id).unwrap();
            me.slots = if taken { half.clone() } else { me.slots.difference(&half) };
            me.epoch = if taken { 9 } else { me.epoch };
        });
    }
    let members = now.layout.members().into_iter().cloned().chain([spare.clone()]).collect();
    AwaitAgreement::of(members).effect(&mut seen);
    let Layout::Cluster { shards } = accept(&now, &seen).unwrap().layout else { panic!() };
    assert_eq!(shards.len(), 4);
    let (last, slots) = &shards.as_slice()[3];
    assert_eq!((last.members.as_slice(), last.index, slots), ([spare].as_slice(), 3, &half));
    assert!(now.layout.shards().iter().all(|(s, _)| s.id != last.id));
}

#[test]
fn what_is_not_plain_is_not_accepted() {
    let (now, made) = made(&six(), 5);
    let first = primaries(&now, &made)[0].clone();
    let other = primaries(&now, &made)[1].clone();

    let mut silent = made.clone();
    let why = Silence {
        since: chrono::DateTime::UNIX_EPOCH,
        code: "unreachable".to_owned(),
        message: "refused".to_owned(),
    };
    silent.nodes.insert(first.clone(), Sighting::Silent(why));
    assert!(refusal(&now, &silent).contains("does not answer"));
    assert!(differences(&now, &silent)[0].contains("does not answer"));

    let mut stranger = made.clone();
    change(&mut stranger, &first, |r| {
        let view = r.cluster.as_mut().unwrap();
        let peer = view.me().unwrap().clone();
        view.peers.insert(ClusterNodeId("e".repeat(40)), peer);
    });
    assert!(refusal(&now, &stranger).contains("which no node of the spec is"));

    let mut open = made.clone();
    change(&mut open, &first, |r| {
        let other = ClusterNodeId("e".repeat(40));
        let slot = crate::domain::observation::OpenSlot { slot: 7, giving: true, other };
        r.cluster.as_mut().unwrap().open = vec![slot];
    });
    assert!(refusal(&now, &open).contains("slot 7"));

    let mut uncovered = made.clone();
    change(&mut uncovered, &first, |r| {
        let view = r.cluster.as_mut().unwrap();
        let me = view.peers.get_mut(&view.my_id).unwrap();
        me.slots = me.slots.difference(&"0-9".parse().unwrap());
    });
    agree(&mut uncovered, &now);
    assert!(refusal(&now, &uncovered).contains("nobody serves slots"));

    let mut contested = made.clone();
    change(&mut contested, &first, |r| {
        let view = r.cluster.as_mut().unwrap();
        view.peers.get_mut(&view.my_id).unwrap().slots = SlotSet::all();
    });
    assert!(refusal(&now, &contested).contains("sees other roles or slots"));
    agree(&mut contested, &now);
    assert!(refusal(&now, &contested).contains("two shards serve the same slot"));

    let settings: std::collections::BTreeMap<String, String> =
        [("maxmemory".to_owned(), "2gb".to_owned())].into();
    let Spec::Cluster(cluster) = &now.spec else { panic!() };
    let spec = Spec::Cluster(crate::domain::spec::ClusterSpec { settings, ..cluster.clone() });
    let sized = Topology { spec, ..now };
    let mut set = made;
    for member in sized.layout.members() {
        change(&mut set, member, |r| {
            r.settings.insert("maxmemory".to_owned(), "2147483648".to_owned());
        });
    }
    assert_eq!(accept(&sized, &set).unwrap().spec, sized.spec, "a size stays as it was written");
    change(&mut set, &other, |r| {
        r.settings.insert("maxmemory".to_owned(), "5".to_owned());
    });
    assert!(refusal(&sized, &set).contains("/spec/settings/maxmemory"));
    for member in sized.layout.members() {
        change(&mut set, member, |r| {
            r.settings.insert("maxmemory".to_owned(), "5".to_owned());
        });
    }
    assert_eq!(accept(&sized, &set).unwrap().spec.settings()["maxmemory"], "5");
}

#[test]
fn what_was_dissolved_half_way_is_told_although_no_members_are_wanted() {
    let (older, seen) = made(&six(), 5);
    let want = Topology { version: 2, layout: Layout::Gone, ..older.clone() };
    let former = older.layout.members().into_iter().cloned().collect();
    let policy = Policy::default();
    assert_eq!(unsettled(&want, &former, &BTreeSet::new(), &seen, &policy).len(), 6);
    let blank = world(&want.spec, 0);
    assert_eq!(unsettled(&want, &former, &BTreeSet::new(), &blank, &policy), vec![]);
}

#[test]
fn a_world_that_is_ahead_of_its_record_is_noticed() {
    let spec = six();
    let seen = world(&spec, 0);
    let (want, terms) = draft(&spec, &seen, false);
    let plan = forecast(&ask(&want, &seen, &terms, &Policy::default()));
    let steps: Vec<Step> = plan.steps.iter().map(|s| s.step.clone()).collect();
    assert_eq!(ahead_of_record(&steps, &seen), Vec::<StepKey>::new());
    let ahead = ahead_of_record(&steps, &plan.world);
    assert!(ahead.iter().any(|key| key.starts_with("claim_slots:")));
    assert!(ahead.iter().any(|key| key.starts_with("replicate:")));
    assert!(!ahead.iter().any(|key| key.starts_with("meet:") || key == "await_agreement"));
}
