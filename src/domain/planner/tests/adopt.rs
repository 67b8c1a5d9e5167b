//! A cluster that runs becomes a topology: what is well is settled at once, and whatever is sick is
//! read and told.

use std::collections::BTreeSet;

use proptest::sample::Index;

use super::dissolve::made;
use super::drift::{agree, differences, placed_again, primaries, six};
use super::*;
use crate::domain::intent::adopt::{self, Adoption, UNKNOWN_ZONE};
use crate::domain::observation::OpenSlot;
use crate::domain::refusal::Refusal;
use crate::domain::spec::CredentialNames;

fn try_adopt(seeds: &[Address], seen: &Observation) -> Result<Adoption, Refusal> {
    let zones = seen.nodes.keys().map(|a| (a.clone(), "z".to_owned()));
    let members = known(seeds, seen);
    let ids: Vec<_> = seeds.iter().filter_map(|s| seen.view(s)).map(|v| &v.my_id).collect();
    let knows = |v: &ClusterView| ids.iter().any(|id| v.peers.contains_key(*id));
    let inside = |a: &Address| members.contains(a) && seen.view(a).is_none_or(knows);
    let zones = zones.filter(|(a, _)| inside(a)).collect();
    zoned(seeds, &zones, seen)
}

fn known(seeds: &[Address], seen: &Observation) -> BTreeSet<Address> {
    let views = seeds.iter().filter_map(|s| seen.view(s));
    views.flat_map(|v| v.peers.values()).filter_map(|p| p.address.clone()).collect()
}

fn zoned(
    seeds: &[Address],
    zones: &BTreeMap<Address, String>,
    seen: &Observation,
) -> Result<Adoption, Refusal> {
    let credentials = CredentialNames::default();
    let topology = TopologyId(Uuid::from_u128(8));
    adopt::adopt(&adopt::Request { topology, seeds, zones, credentials: &credentials }, seen)
}

fn topology(adoption: &Adoption) -> Topology {
    Topology {
        id: TopologyId(Uuid::from_u128(8)),
        name: "t".to_owned(),
        version: 1,
        spec: adoption.spec.clone(),
        layout: adoption.layout.clone(),
    }
}

fn codes(adoption: &Adoption) -> Vec<&str> {
    adoption.warnings.iter().map(|w| w.code.as_str()).collect()
}

/// Members and slots, whatever the shards are called.
fn shape(layout: &Layout) -> BTreeSet<(BTreeSet<Address>, SlotSet)> {
    let shards = layout.shards().into_iter();
    shards.map(|(s, slots)| (s.members.iter().cloned().collect(), slots)).collect()
}

/// A node dies, and everybody says so.
fn dies(world: &mut Observation, node: &Address) {
    let id = world.view(node).unwrap().my_id.clone();
    let silence = Silence {
        since: chrono::DateTime::UNIX_EPOCH,
        code: "unreachable".to_owned(),
        message: "connection refused".to_owned(),
    };
    world.nodes.insert(node.clone(), Sighting::Silent(silence));
    everybody(world, |view| {
        if let Some(peer) = view.peers.get_mut(&id) {
            (peer.failed, peer.linked) = (true, false);
        }
    });
}

fn everybody(world: &mut Observation, change: impl Fn(&mut ClusterView)) {
    for sighting in world.nodes.values_mut() {
        if let Sighting::Seen(report) = sighting
            && let Some(view) = report.cluster.as_mut().filter(|v| v.peers.len() > 1)
        {
            change(view);
        }
    }
}

/// A replica takes the place of its primary, and everybody hears of it.
fn fails_over(world: &mut Observation, from: &Address, to: &Address) {
    let slots = world.view(from).unwrap().my_slots();
    let (old, new) =
        (world.view(from).unwrap().my_id.clone(), world.view(to).unwrap().my_id.clone());
    change(world, to, |r| {
        r.role = Role::Primary;
        r.cluster.as_mut().unwrap().my_epoch = 99;
    });
    everybody(world, |view| {
        let mine = view.my_id == old;
        if let Some(peer) = view.peers.get_mut(&new) {
            (peer.role, peer.primary, peer.epoch, peer.slots) =
                (Role::Primary, None, 99, slots.clone());
        }
        if let Some(peer) = view.peers.get_mut(&old).filter(|_| !mine) {
            peer.slots = SlotSet::empty();
        }
    });
}

/// A node that is met by all and does nothing.
fn joins(world: &mut Observation, node: &Address) {
    let mine = world.view(node).unwrap().me().unwrap().clone();
    let id = world.view(node).unwrap().my_id.clone();
    let all: Vec<Address> = world.nodes.keys().cloned().collect();
    let known: BTreeMap<_, _> = all
        .iter()
        .filter_map(|a| world.view(a))
        .filter(|v| v.peers.len() > 1)
        .map(|v| (v.my_id.clone(), v.me().unwrap().clone()))
        .collect();
    everybody(world, |view| {
        view.peers.insert(id.clone(), mine.clone());
    });
    change(world, node, |r| {
        let view = r.cluster.as_mut().unwrap();
        view.peers.extend(known.clone());
        view.state_ok = true;
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_well_is_settled_at_once(spec in specs(), keys in 0u64..2, at in any::<Index>()) {
        let (now, seen) = made(&spec, keys);
        let members: Vec<Address> = now.layout.members().into_iter().cloned().collect();
        let adoption = try_adopt(&[at.get(&members).clone()], &seen).unwrap();
        prop_assert_eq!(codes(&adoption), Vec::<&str>::new());
        prop_assert_eq!(shape(&adoption.layout), shape(&now.layout));
        let adopted = topology(&adoption);
        prop_assert_eq!(differences(&adopted, &seen), Vec::<String>::new());
        let (terms, policy) = (Terms::default(), Policy::default());
        let repair = forecast(&ask(&adopted, &seen, &terms, &policy));
        prop_assert_eq!((repair.steps.len(), repair.blockers), (0, vec![]));
        prop_assert_eq!(placed_again(&adopted), adopted.layout.clone(), "PUT of what GET gave");
        let got = serde_json::to_string(&adopted.spec).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Spec>(&got).unwrap(), &adopted.spec);
        // Who is primary is first in each shard.
        let firsts: Vec<Address> =
            adopted.layout.shards().iter().map(|(s, _)| s.members[0].clone()).collect();
        prop_assert_eq!(firsts, primaries(&adopted, &seen));
    }

    #[test]
    fn whatever_is_sick_is_read_without_losing_a_node(
        spec in specs(), harm in prop::collection::vec((any::<Index>(), any::<Index>(), 0u8..6), 0..6),
    ) {
        let (now, mut seen) = made(&spec, 3);
        let members: Vec<Address> = now.layout.members().into_iter().cloned().collect();
        for (one, other, how) in harm {
            let (one, other) = (one.get(&members).clone(), other.get(&members).clone());
            if seen.view(&one).is_none() {
                continue;
            }
            match how {
                0 | 1 if one != members[0] => dies(&mut seen, &one),
                2 => change(&mut seen, &one, |r| {
                    let view = r.cluster.as_mut().unwrap();
                    let mine = view.my_id.clone();
                    let me = view.peers.get_mut(&mine).unwrap();
                    me.slots = me.slots.difference(&"0-99,9000-9100".parse().unwrap());
                }),
                3 if seen.view(&other).is_some() => fails_over(&mut seen, &one, &other),
                4 => {
                    let id = seen.view(&one).unwrap().my_id.clone();
                    let other = other_or(&members, &other, &one);
                    if seen.view(&other).is_some() {
                        change(&mut seen, &other, |r| {
                            r.cluster.as_mut().unwrap().peers.remove(&id);
                        });
                    }
                }
                _ => everybody(&mut seen, |view| {
                    let ghost = ClusterNodeId("e".repeat(40));
                    let peer = view.peers.values().next().unwrap().clone();
                    view.peers.insert(ghost, Peer { address: None, ..peer });
                }),
            }
        }
        let Ok(adoption) = try_adopt(&members[..1], &seen) else { return Ok(()) };
        prop_assert_eq!(adoption.spec.validate(), vec![]);
        let adopted = topology(&adoption);
        prop_assert_eq!(placed_again(&adopted), adopted.layout.clone());
        let named: BTreeSet<&Address> = adopted.spec.nodes().iter().map(|n| &n.address).collect();
        let told = |a: &Address| adoption.warnings.iter().any(|w| w.message.contains(&a.to_string()));
        for member in &members {
            prop_assert!(named.contains(member) || told(member), "{}: {:?}", member, adoption.warnings);
        }
    }
}

fn other_or(members: &[Address], other: &Address, not: &Address) -> Address {
    let is = members.iter().find(|m| *m == other && *m != not);
    is.or(members.iter().find(|m| *m != not)).unwrap().clone()
}

fn replica_of(now: &Topology, primary: &Address) -> Address {
    let (shard, _) =
        now.layout.shards().into_iter().find(|(s, _)| s.members.contains(primary)).unwrap();
    shard.members.iter().find(|m| *m != primary).unwrap().clone()
}

#[test]
fn a_primary_that_was_failed_over_and_is_gone_stays_with_its_shard() {
    let (now, mut seen) = made(&six(), 3);
    let primary = primaries(&now, &seen)[1].clone();
    let heir = replica_of(&now, &primary);
    fails_over(&mut seen, &primary, &heir);
    dies(&mut seen, &primary);
    let adoption = try_adopt(std::slice::from_ref(&heir), &seen).unwrap();
    assert_eq!(codes(&adoption), ["node_silent", "part_unknown"]);
    assert_eq!(shape(&adoption.layout), shape(&now.layout));
    let (shard, _) =
        adoption.layout.shards().into_iter().find(|(s, _)| s.members.contains(&heir)).unwrap();
    assert_eq!(shard.members, [heir, primary]);
    // It came back and does not know better yet: the higher epoch counts, and its shard is told.
    let (now, mut seen) = made(&six(), 3);
    let primary = primaries(&now, &seen)[1].clone();
    fails_over(&mut seen, &primary, &replica_of(&now, &primary));
    let adoption = try_adopt(&[primary], &seen).unwrap();
    assert_eq!(codes(&adoption), ["slots_contested"]);
    assert_eq!(shape(&adoption.layout), shape(&now.layout));
}

#[test]
fn a_shard_that_nobody_answers_for_keeps_its_slots() {
    let (now, mut seen) = made(&six(), 3);
    let primary = primaries(&now, &seen)[0].clone();
    let (other, replica) = (primaries(&now, &seen)[1].clone(), replica_of(&now, &primary));
    dies(&mut seen, &primary);
    dies(&mut seen, &replica);
    let adoption = try_adopt(&[primary.clone(), other.clone()], &seen).unwrap();
    assert_eq!(adoption.seed, other);
    assert_eq!(codes(&adoption), ["node_silent", "node_silent", "shard_without_primary"]);
    assert_eq!(shape(&adoption.layout), shape(&now.layout));
    let told = differences(&topology(&adoption), &seen);
    assert!(told.iter().all(|d| d.contains("does not answer")), "{told:?}");
}

#[test]
fn uncovered_slots_go_where_a_repair_assigns_them() {
    let (now, mut seen) = made(&six(), 0);
    let primary = primaries(&now, &seen)[1].clone();
    let hole: SlotSet = "6000-6010,7000".parse().unwrap();
    change(&mut seen, &primary, |r| {
        let view = r.cluster.as_mut().unwrap();
        let mine = view.my_id.clone();
        let me = view.peers.get_mut(&mine).unwrap();
        me.slots = me.slots.difference(&hole);
    });
    agree(&mut seen, &now);
    let adoption = try_adopt(std::slice::from_ref(&primary), &seen).unwrap();
    assert_eq!(codes(&adoption), ["slots_uncovered"]);
    assert!(adoption.warnings[0].message.contains("6000-6010,7000"));
    assert_eq!(shape(&adoption.layout), shape(&now.layout));
    let adopted = topology(&adoption);
    let (terms, policy) = (Terms::default(), Policy::default());
    let repair = forecast(&ask(&adopted, &seen, &terms, &policy));
    assert_eq!(repair.blockers, vec![]);
    assert_eq!(repair.steps[0].key, format!("claim_slots:{primary}"));
}

#[test]
fn an_idle_primary_is_a_spare_and_no_stranger() {
    let (now, mut seen) = made(&six(), 3);
    let spare = (*now.spares().first().unwrap()).clone();
    joins(&mut seen, &spare);
    let seed = primaries(&now, &seen)[0].clone();
    let adoption = try_adopt(std::slice::from_ref(&seed), &seen).unwrap();
    assert_eq!(codes(&adoption), ["primary_without_slots"]);
    let adopted = topology(&adoption);
    assert_eq!(adopted.spares(), [&spare].into());
    assert_eq!(differences(&adopted, &seen), Vec::<String>::new());
    assert_eq!(placed_again(&adopted), adopted.layout);
    // Also when it is away; and the spec may come to know it later.
    dies(&mut seen, &spare);
    assert_eq!(differences(&adopted, &seen), Vec::<String>::new());
    assert_eq!(codes(&try_adopt(&[seed], &seen).unwrap()), ["node_silent", "part_unknown"]);
    assert_eq!(differences(&now, &seen), Vec::<String>::new());
}

#[test]
fn who_is_not_understood_is_left_out_and_told() {
    let (now, made) = made(&six(), 3);
    let all = primaries(&now, &made);
    let ghost = ClusterNodeId("e".repeat(40));
    let told = |seen: &Observation| {
        let adoption = try_adopt(&all[..1], seen).unwrap();
        assert_eq!(shape(&adoption.layout), shape(&now.layout));
        codes(&adoption).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let stranger = |address: Option<&Address>, handshake| {
        let mut seen = made.clone();
        everybody(&mut seen, |view| {
            let peer = view.peers.values().next().unwrap().clone();
            let address = address.cloned();
            let blank = Peer {
                address,
                handshake,
                slots: SlotSet::empty(),
                role: Role::Primary,
                primary: None,
                ..peer
            };
            view.peers.insert(ghost.clone(), blank);
        });
        seen
    };
    let far = "10.0.9.9:7000".parse().unwrap();
    assert_eq!(told(&stranger(None, false)), ["node_without_address"]);
    assert_eq!(told(&stranger(Some(&far), true)), ["node_in_handshake"]);
    assert_eq!(told(&stranger(Some(&all[1]), false)), ["node_replaced"]);
    assert_eq!(told(&stranger(Some(&far), false)), ["zone_unknown", "node_silent", "part_unknown"]);

    let mut outside = stranger(Some(&far), false);
    let mut report = blank(&far, 0);
    report.cluster.as_mut().unwrap().my_id = ghost.clone();
    outside.nodes.insert(far.clone(), Sighting::Seen(Box::new(report)));
    assert_eq!(told(&outside), ["node_outside"]);

    let mut open = made.clone();
    change(&mut open, &all[0], |r| {
        let slot = OpenSlot { slot: 7, giving: true, other: ghost.clone() };
        r.cluster.as_mut().unwrap().open = vec![slot];
    });
    assert_eq!(told(&open), ["slots_open"]);
}

#[test]
fn who_was_reset_is_not_followed_into_another_cluster() {
    let (now, mut seen) = made(&six(), 3);
    let seed = primaries(&now, &seen)[0].clone();
    let replica = replica_of(&now, &seed);
    // It kept its id, forgot everybody, and met others.
    let far: Address = "10.0.9.9:7000".parse().unwrap();
    change(&mut seen, &replica, |r| {
        let view = r.cluster.as_mut().unwrap();
        let mine = view.my_id.clone();
        view.peers.retain(|id, _| *id == mine);
        let peer = Peer { address: Some(far.clone()), ..view.me().unwrap().clone() };
        view.peers.insert(ClusterNodeId("f".repeat(40)), peer);
    });
    let unasked = adopt::unasked(std::slice::from_ref(&seed), &seen).unwrap();
    assert_eq!(unasked, BTreeSet::new());
    let adoption = try_adopt(&[seed], &seen).unwrap();
    assert!(adoption.spec.nodes().iter().all(|n| n.address != replica && n.address != far));
    assert_eq!(codes(&adoption), ["node_outside"]);
}

#[test]
fn everybody_is_asked_by_and_by() {
    let (now, full) = made(&six(), 3);
    let members: BTreeSet<Address> = now.layout.members().into_iter().cloned().collect();
    let seeds = [primaries(&now, &full)[0].clone()];
    // Of the others, each knows but its neighbours.
    let mut seen = Observation::default();
    let mut rounds = 0;
    loop {
        let next = adopt::unasked(&seeds, &seen).unwrap();
        if next.is_empty() {
            break;
        }
        rounds += 1;
        for address in next {
            seen.nodes.insert(address.clone(), full.sighting(&address).clone());
        }
    }
    assert_eq!(rounds, 2);
    assert_eq!(seen.nodes.keys().cloned().collect::<BTreeSet<_>>(), members);
}

#[test]
fn a_node_with_two_names_is_one() {
    let (now, mut seen) = made(&six(), 3);
    let first = primaries(&now, &seen)[0].clone();
    let alias: Address = "redis-a:7000".parse().unwrap();
    seen.nodes.insert(alias.clone(), seen.sighting(&first).clone());
    let zones = [(alias.clone(), "a".to_owned())].into();
    let adoption = zoned(&[alias], &zones, &seen).unwrap();
    assert_eq!(shape(&adoption.layout), shape(&now.layout));
    let zone = |a: &Address| {
        let nodes = adoption.spec.nodes();
        nodes.iter().find(|n| n.address == *a).unwrap().zone.clone()
    };
    assert_eq!(zone(&first), "a");
    assert_eq!(adoption.spec.nodes().iter().filter(|n| n.zone == UNKNOWN_ZONE).count(), 5);
    assert_eq!(codes(&adoption), ["zone_unknown"]);
}

#[test]
fn what_is_no_cluster_is_refused() {
    let (now, made) = made(&six(), 3);
    let seeds = [primaries(&now, &made)[0].clone()];
    let why = |seeds: &[Address], zones: &[&Address], seen: &Observation| {
        let zones = zones.iter().map(|a| ((*a).clone(), "z".to_owned())).collect();
        zoned(seeds, &zones, seen).unwrap_err()
    };
    let pointer = |refusal: Refusal| match refusal {
        Refusal::Invalid(errors) | Refusal::NodesUnfit { errors, .. } => errors[0].pointer.clone(),
        other => panic!("{other}"),
    };
    let far: Address = "10.0.9.9:7000".parse().unwrap();
    assert_eq!(pointer(why(&seeds, &[&far], &made)), "/zones/10.0.9.9:7000");

    let mut two = made.clone();
    let mut report = blank(&far, 0);
    report.cluster.as_mut().unwrap().my_id = ClusterNodeId("e".repeat(40));
    two.nodes.insert(far.clone(), Sighting::Seen(Box::new(report.clone())));
    let both = [seeds[0].clone(), far.clone()];
    assert_eq!(pointer(why(&both, &[], &two)), "/seeds/1");
    let alone = [far.clone()];
    let text = why(&alone, &[], &two).to_string();
    assert!(text.contains("serves slots"), "{text}");

    report.cluster = None;
    report.cluster_enabled = false;
    two.nodes.insert(far.clone(), Sighting::Seen(Box::new(report)));
    let text = why(&both, &[], &two).to_string();
    assert!(text.contains("of another kind than the seeds before it"), "{text}");

    let mut silent = made.clone();
    dies(&mut silent, &seeds[0]);
    assert_eq!(pointer(why(&seeds, &[], &silent)), "/seeds/0");

    let few =
        super::super::tests::dissolve::made(&spec(3, 0, (0..3).map(|n| node(n, "z")).collect()), 0);
    let mut few_seen = few.1;
    let last = primaries(&few.0, &few_seen)[2].clone();
    let (slots, heir) =
        (few_seen.view(&last).unwrap().my_slots(), primaries(&few.0, &few_seen)[1].clone());
    for (node, takes) in [(&last, false), (&heir, true)] {
        change(&mut few_seen, node, |r| {
            let view = r.cluster.as_mut().unwrap();
            let mine = view.my_id.clone();
            let me = view.peers.get_mut(&mine).unwrap();
            me.slots = if takes { me.slots.union(&slots) } else { SlotSet::empty() };
        });
    }
    agree(&mut few_seen, &few.0);
    let text = why(&[heir], &[], &few_seen).to_string();
    assert!(text.contains("has 2 primaries with slots"), "{text}");
}
