use proptest::prelude::*;

use super::*;
use crate::domain::id::TopologyId;

fn of_cluster(groups: &[Group]) -> Scene {
    Scene { groups: groups.to_vec(), electors: Electors::Primaries }
}

fn survivability(groups: &[Group]) -> Survivability {
    super::survivability(&of_cluster(groups))
}

fn what_if(groups: &[Group], fail: &Lost) -> Loss {
    super::what_if(&of_cluster(groups), fail)
}

/// Shards of members `zone` + number on a host of its own each; the first is the primary.
fn cluster(shards: &[&[&str]]) -> Vec<Group> {
    let shares = SlotSet::shares(shards.len());
    let part = |name: &&str| Part {
        address: format!("{name}:6379").parse().unwrap(),
        zone: name[..1].to_owned(),
        host: format!("host-{name}"),
    };
    let group = |(i, (members, slots)): (usize, (&&[&str], SlotSet))| {
        let members: Vec<Part> = members.iter().map(part).collect();
        let id = ShardId::derive(TopologyId(uuid::Uuid::nil()), u32::try_from(i).unwrap());
        let primary = Some(members[0].address.clone());
        Group { id, slots, primary, members, mute: false, least_replicas: 0 }
    };
    shards.iter().zip(shares).enumerate().map(group).collect()
}

fn nodes(names: &[&str]) -> Lost {
    let nodes = names.iter().map(|n| format!("{n}:6379").parse().unwrap()).collect();
    Lost { nodes, ..Lost::default() }
}

#[test]
fn six_nodes_in_three_zones_survive_any_single_loss_but_not_every_pair() {
    let groups = cluster(&[&["a1", "b2"], &["b1", "c2"], &["c1", "a2"]]);
    let all = survivability(&groups);
    assert_eq!(all.survives, Survives { any_node: true, any_host: true, any_zone: true });
    // Of the 15 pairs, 3 are whole shards and 3 are two primaries.
    assert_eq!(all.node_pairs, NodePairs { total: 15, survived: 9 });
    assert_eq!(all.losses.len(), 6 + 6 + 3);

    let shard = what_if(&groups, &nodes(&["a1", "b2"]));
    assert_eq!(shard.outcome, Outcome::DataUnavailable);
    assert_eq!((shard.slots_lost, shard.voters_left), (5461, 2));
    assert_eq!(shard.shards_lost, [groups[0].id]);

    let primaries = what_if(&groups, &nodes(&["a1", "b1"]));
    assert_eq!(primaries.outcome, Outcome::NoQuorum);
    assert_eq!((primaries.voters_left, primaries.voters_needed), (1, 2));
    assert_eq!(primaries.shards_lost, [groups[0].id, groups[1].id]);
    assert_eq!(
        primaries.why,
        "nodes a1:6379 and b1:6379 hold the primaries of shards 0 and 1; 1 of 3 voters is left \
         and 2 are needed, so no replica is promoted and the whole cluster goes down"
    );

    let replicas = what_if(&groups, &nodes(&["b2", "c2"]));
    assert_eq!((replicas.outcome, replicas.slots_lost), (Outcome::Intact, 0));
    let zone = what_if(&groups, &Lost { zones: vec!["a".into()], ..Lost::default() });
    assert_eq!(zone.outcome, Outcome::Failover);
    assert_eq!(
        zone.why,
        "zone a holds the primary of shard 0; 2 of 3 voters are left and 2 are needed, so a \
         replica takes over"
    );
    assert!(all.losses.contains(&zone));
}

#[test]
fn a_zone_with_most_primaries_takes_the_cluster_down() {
    let groups = cluster(&[&["a1", "b1"], &["a2", "b2"], &["b3", "a3"]]);
    let all = survivability(&groups);
    assert_eq!(all.survives, Survives { any_node: true, any_host: true, any_zone: false });
    let outcomes: Vec<_> = all.losses[12..].iter().map(|l| (l.outcome, l.voters_left)).collect();
    assert_eq!(outcomes, [(Outcome::NoQuorum, 1), (Outcome::Failover, 2)]);
}

#[test]
fn without_replicas_no_node_is_survived() {
    let all = survivability(&cluster(&[&["a1"], &["b1"], &["c1"]]));
    assert_eq!(all.survives, Survives { any_node: false, any_host: false, any_zone: false });
    assert_eq!(all.node_pairs, NodePairs { total: 3, survived: 0 });
    assert!(all.losses.iter().all(|l| l.outcome == Outcome::DataUnavailable && l.voters_left == 2));
}

#[test]
fn while_the_primary_is_unknown_any_member_may_be_it() {
    let mut groups = cluster(&[&["a1", "b2"], &["b1", "c2"], &["c1", "a2"]]);
    groups[0].primary = None;
    let loss = what_if(&groups, &nodes(&["b2", "b1"]));
    assert_eq!((loss.outcome, loss.voters_left), (Outcome::NoQuorum, 1));
    assert!(loss.why.contains("may hold the primaries of shards 0 and 1"), "{}", loss.why);
    assert_eq!(what_if(&groups, &nodes(&["b2"])).outcome, Outcome::Failover);
}

#[test]
fn a_shard_without_slots_neither_votes_nor_counts() {
    let mut groups = cluster(&[&["a1", "b2"], &["b1", "c2"], &["c1", "a2"]]);
    let mut empty = cluster(&[&["a9"]]).remove(0);
    empty.slots = SlotSet::empty();
    groups.push(empty);
    let loss = what_if(&groups, &nodes(&["a9"]));
    assert_eq!((loss.outcome, loss.voters_left, loss.voters_needed), (Outcome::Intact, 3, 2));
}

#[test]
fn a_primary_that_is_silent_now_has_no_vote_in_what_comes_next() {
    let mut groups = cluster(&[&["a1", "b2"], &["b1", "c2"], &["c1", "a2"]]);
    groups[0].mute = true;
    let loss = what_if(&groups, &nodes(&["b1"]));
    assert_eq!((loss.outcome, loss.voters_left, loss.voters_needed), (Outcome::NoQuorum, 1, 2));
    // Its own replica is no further loss of a vote.
    let loss = what_if(&groups, &nodes(&["a1"]));
    assert_eq!((loss.outcome, loss.voters_left), (Outcome::Failover, 2));
    groups[1].mute = true;
    let loss = what_if(&groups, &nodes(&["a2"]));
    assert_eq!((loss.outcome, loss.voters_left), (Outcome::NoQuorum, 1));
    assert!(
        loss.why
            .contains("1 of 3 voters is left and 2 are needed, so the whole cluster stays down"),
        "{}",
        loss.why
    );
}

#[test]
fn the_json_is_that_of_the_contract() {
    let groups = cluster(&[&["a1", "b2"], &["b1", "c2"], &["c1", "a2"]]);
    let json = serde_json::to_value(survivability(&groups)).unwrap();
    assert_eq!(
        json["survives"],
        serde_json::json!({"any_node": true, "any_host": true, "any_zone": true})
    );
    assert_eq!(json["node_pairs"], serde_json::json!({"total": 15, "survived": 9}));
    let keys: Vec<_> = json["losses"][0].as_object().unwrap().keys().cloned().collect();
    let mut wanted =
        ["lost", "outcome", "shards_lost", "slots_lost", "voters_left", "voters_needed", "why"];
    wanted.sort_unstable();
    assert_eq!(keys.into_iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>(), wanted);
    assert_eq!(json["losses"][0]["outcome"], "failover");
    assert_eq!(
        json["losses"][0]["lost"],
        serde_json::json!({"nodes": ["a1:6379"], "hosts": [], "zones": []})
    );
    let fail: Lost = serde_json::from_str(r#"{"zones": ["a"]}"#).unwrap();
    assert_eq!(fail.zones, ["a"]);
}

#[test]
fn a_thousand_nodes_are_tried_quickly() {
    let names: Vec<[String; 2]> = (0..500)
        .map(|i| {
            [format!("{}{i}", ["a", "b", "c"][i % 3]), format!("{}{i}r", ["b", "c", "a"][i % 3])]
        })
        .collect();
    let rows: Vec<Vec<&str>> =
        names.iter().map(|r| r.iter().map(String::as_str).collect()).collect();
    let groups = cluster(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let start = std::time::Instant::now();
    let all = survivability(&groups);
    assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(all.node_pairs, NodePairs { total: 499_500, survived: 499_000 });
    assert!(all.survives.any_zone);
}

/// Members as (zone, host), whether the primary is known, whether the shard owns slots.
type Sketch = Vec<(Vec<(u8, u8)>, bool, bool)>;

fn drawn(sketch: &Sketch) -> Vec<Group> {
    let mut number = 0;
    let shares = SlotSet::shares(sketch.len());
    let mut groups = Vec::new();
    for (i, ((places, known, owns), share)) in sketch.iter().zip(shares).enumerate() {
        let members: Vec<Part> = places
            .iter()
            .map(|(zone, host)| {
                number += 1;
                let address = format!("n{number}:1").parse().unwrap();
                Part { address, zone: format!("z{zone}"), host: format!("h{host}") }
            })
            .collect();
        groups.push(Group {
            id: ShardId::derive(TopologyId(uuid::Uuid::nil()), u32::try_from(i).unwrap()),
            slots: if *owns { share } else { SlotSet::empty() },
            primary: known.then(|| members[members.len() / 2].address.clone()),
            members,
            mute: false,
            least_replicas: 0,
        });
    }
    groups
}

/// The same in sets, from the definition.
fn naive(groups: &[Group], gone: &BTreeSet<&Address>) -> (Outcome, Vec<ShardId>, usize, usize) {
    let owners: Vec<&Group> = groups.iter().filter(|g| !g.slots.is_empty()).collect();
    let left = |g: &Group| g.members.iter().filter(|m| !gone.contains(&m.address)).count();
    let headless = |g: &Group| match &g.primary {
        Some(primary) => gone.contains(primary),
        None => g.members.iter().any(|m| gone.contains(&m.address)),
    };
    let voters = owners.iter().filter(|g| !headless(g)).count();
    let quorum = 2 * voters > owners.len();
    let outcome = if owners.iter().any(|g| left(g) == 0) {
        Outcome::DataUnavailable
    } else if !quorum {
        Outcome::NoQuorum
    } else if owners.iter().any(|g| headless(g)) {
        Outcome::Failover
    } else {
        Outcome::Intact
    };
    let lost = owners.iter().filter(|g| left(g) == 0 || (headless(g) && !quorum));
    let slots = lost.clone().map(|g| g.slots.count()).sum();
    (outcome, lost.map(|g| g.id).collect(), slots, voters)
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let members = prop::collection::vec((0..4u8, 0..5u8), 1..5);
    prop::collection::vec((members, prop::bool::weighted(0.8), prop::bool::weighted(0.9)), 1..6)
}

proptest! {
    #[test]
    fn every_outcome_is_that_of_plain_sets(
        sketch in sketch(),
        zones in prop::collection::btree_set(0..5u8, 0..3),
        hosts in prop::collection::btree_set(0..6u8, 0..3),
        nodes in prop::collection::btree_set(0..14usize, 0..4),
    ) {
        let groups = drawn(&sketch);
        let parts: Vec<&Part> = groups.iter().flat_map(|g| &g.members).collect();
        let fail = Lost {
            zones: zones.iter().map(|z| format!("z{z}")).collect(),
            hosts: hosts.iter().map(|h| format!("h{h}")).collect(),
            nodes: nodes
                .iter()
                .filter_map(|&n| parts.get(n))
                .map(|p| p.address.clone())
                .collect(),
        };
        let hit = |p: &Part| {
            fail.zones.contains(&p.zone)
                || fail.hosts.contains(&p.host)
                || fail.nodes.contains(&p.address)
        };
        let gone = parts.iter().filter(|p| hit(p)).map(|p| &p.address).collect();
        let loss = what_if(&groups, &fail);
        let (outcome, shards, slots, voters) = naive(&groups, &gone);
        prop_assert_eq!(loss.outcome, outcome);
        prop_assert_eq!((loss.slots_lost, loss.voters_left), (slots, voters));
        prop_assert_eq!(loss.shards_lost, shards);
    }

    #[test]
    fn the_summary_is_that_of_all_its_losses(sketch in sketch()) {
        let groups = drawn(&sketch);
        let all = survivability(&groups);
        let parts: Vec<&Part> = groups.iter().flat_map(|g| &g.members).collect();
        let mut pairs = NodePairs { total: 0, survived: 0 };
        for (i, a) in parts.iter().enumerate() {
            for b in &parts[i + 1..] {
                pairs.total += 1;
                let gone = [&a.address, &b.address].into();
                pairs.survived += usize::from(naive(&groups, &gone).0.survived());
            }
        }
        prop_assert_eq!(all.node_pairs, pairs);
        let hosts: BTreeSet<_> = parts.iter().map(|p| &p.host).collect();
        let zones: BTreeSet<_> = parts.iter().map(|p| &p.zone).collect();
        prop_assert_eq!(all.losses.len(), parts.len() + hosts.len() + zones.len());
        for loss in &all.losses {
            prop_assert_eq!(loss, &what_if(&groups, &loss.lost));
        }
        let survived = |of: fn(&Lost) -> bool| {
            all.losses.iter().filter(|l| of(&l.lost)).all(|l| l.outcome.survived())
        };
        let survives = Survives {
            any_node: survived(|l| !l.nodes.is_empty()),
            any_host: survived(|l| !l.hosts.is_empty()),
            any_zone: survived(|l| !l.zones.is_empty()),
        };
        prop_assert_eq!(all.survives, survives);
    }
}

fn part(name: &str) -> Part {
    Part {
        address: format!("{name}:6379").parse().unwrap(),
        zone: name[..1].to_owned(),
        host: format!("host-{name}"),
    }
}

/// One shard of these members, the first of them primary.
fn one_shard(members: &[&str], electors: Electors) -> Scene {
    let mut groups = cluster(&[members]);
    groups[0].slots = SlotSet::empty();
    Scene { groups, electors }
}

fn watched_by(sentinels: &[&str], needed: usize) -> Electors {
    let parts: Vec<Part> = sentinels.iter().map(|s| part(s)).collect();
    Electors::Sentinels { all: parts.len(), parts, needed }
}

#[test]
fn three_zones_with_a_sentinel_each_survive_any_zone() {
    let scene = one_shard(&["a1", "b1", "c1"], watched_by(&["a9", "b9", "c9"], 2));
    let all = super::survivability(&scene);
    assert_eq!(all.survives, Survives { any_node: true, any_host: true, any_zone: true });
    // Of the 15 pairs none takes all data, and the 3 pairs of Sentinels leave the primary alone.
    assert_eq!(all.node_pairs, NodePairs { total: 15, survived: 15 });
    assert_eq!(all.losses.len(), 6 + 6 + 3);
    let zone = super::what_if(&scene, &Lost { zones: vec!["a".into()], ..Lost::default() });
    assert_eq!((zone.outcome, zone.voters_left, zone.voters_needed), (Outcome::Failover, 2, 2));
    assert_eq!(
        zone.why,
        "zone a holds the primary; 2 of 3 Sentinels are left and 2 are needed, so a replica takes over"
    );
    let sentinels = super::what_if(&scene, &nodes(&["b9", "c9"]));
    assert_eq!(sentinels.outcome, Outcome::Intact);
    assert!(sentinels.why.ends_with("so the next loss of a primary goes unanswered"));
    let most = super::what_if(&scene, &nodes(&["a1", "b9", "c9"]));
    assert_eq!(most.outcome, Outcome::NoQuorum);
    assert_eq!(most.shards_lost, [scene.groups[0].id]);
}

/// The guard against writes that are lost with a primary that was cut off costs something: a promoted
/// replica without replicas takes none.
#[test]
fn a_primary_without_the_replicas_that_it_is_to_have_refuses_writes() {
    let mut scene = one_shard(&["a1", "b1", "c1"], watched_by(&["a9", "b9", "c9"], 2));
    scene.groups[0].least_replicas = 1;
    let all = super::survivability(&scene);
    assert_eq!(all.survives, Survives { any_node: true, any_host: true, any_zone: true });
    assert_eq!(all.node_pairs, NodePairs { total: 15, survived: 12 });
    let loss = super::what_if(&scene, &nodes(&["a1", "b1"]));
    assert_eq!((loss.outcome, loss.shards_lost), (Outcome::WritesRefused, vec![]));
    assert_eq!(
        loss.why,
        "nodes a1:6379 and b1:6379 hold the primary; 3 of 3 Sentinels are left and 2 are needed, so a \
         replica takes over; the primary then has fewer replicas than min-replicas-to-write asks for, \
         so writes are refused until one is back"
    );
    let unanswered = super::what_if(&scene, &nodes(&["a1", "b1", "b9", "c9"]));
    assert_eq!(unanswered.outcome, Outcome::NoQuorum);
    assert!(!unanswered.why.contains("min-replicas"), "{}", unanswered.why);

    let mut groups = cluster(&[&["a1", "b2"], &["b1", "c2"], &["c1", "a2"]]);
    groups.iter_mut().for_each(|group| group.least_replicas = 1);
    let zone = what_if(&groups, &Lost { zones: vec!["a".into()], ..Lost::default() });
    assert_eq!(zone.outcome, Outcome::WritesRefused);
    assert!(zone.why.contains("shards 0 and 2 then have fewer"), "{}", zone.why);
}

#[test]
fn a_zone_with_most_sentinels_goes_unanswered() {
    let scene = one_shard(&["a1", "b1"], watched_by(&["a8", "a9", "b9"], 2));
    let all = super::survivability(&scene);
    assert_eq!(all.survives, Survives { any_node: true, any_host: true, any_zone: false });
    // A quorum of all Sentinels needs all of them.
    let scene = one_shard(&["a1", "b1"], watched_by(&["a8", "a9", "b9"], 3));
    let loss = super::what_if(&scene, &nodes(&["a1", "b9"]));
    assert_eq!((loss.outcome, loss.voters_left), (Outcome::NoQuorum, 2));
}

#[test]
fn nothing_promotes_by_itself_in_replication_mode() {
    let scene = one_shard(&["a1", "b1", "c1"], Electors::Nobody);
    let all = super::survivability(&scene);
    let outcomes: Vec<_> = all.losses[..3].iter().map(|l| l.outcome).collect();
    assert_eq!(outcomes, [Outcome::NoQuorum, Outcome::Intact, Outcome::Intact]);
    assert_eq!(all.node_pairs, NodePairs { total: 3, survived: 1 });
    let all = super::what_if(&scene, &nodes(&["a1", "b1", "c1"]));
    assert_eq!(all.outcome, Outcome::DataUnavailable);
}

#[test]
fn a_thousand_nodes_and_sentinels_are_imagined_quickly() {
    let names: Vec<String> = (0..1000).map(|i| format!("{}{i}", ["a", "b", "c"][i % 3])).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let scene = one_shard(&names[..500], watched_by(&names[500..], 251));
    let seen = Observation::default();
    let start = std::time::Instant::now();
    let fail = Lost { zones: vec!["a".into()], ..nodes(&["b1"]) };
    let outcome = imagine(&scene, &seen, &fail);
    assert!(start.elapsed() < std::time::Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(outcome.loss.outcome, Outcome::Failover);
    assert_eq!(outcome.promoted[0].candidates.len(), outcome.survivors.len());
    assert_eq!(outcome.memory.maxmemory_bytes, None);
}

proptest! {
    /// The modes with one shard, against the definition in plain sets.
    #[test]
    fn one_shard_and_its_sentinels_are_those_of_plain_sets(
        members in prop::collection::vec(0..3u8, 1..5),
        sentinels in prop::collection::vec(0..3u8, 0..5),
        known in prop::bool::ANY,
        quorum in 0..5usize,
        least in 0..3usize,
        gone in prop::collection::btree_set(0..10usize, 0..4),
    ) {
        let zone = |z: &u8| ["a", "b", "c"][usize::from(*z)];
        let name = |(i, z): (usize, &u8)| format!("{}{i}", zone(z));
        let data: Vec<String> = members.iter().enumerate().map(name).collect();
        let watch: Vec<String> =
            sentinels.iter().enumerate().map(|(i, z)| format!("{}s{i}", zone(z))).collect();
        let needed = quorum.max(watch.len() / 2 + 1);
        let data: Vec<&str> = data.iter().map(String::as_str).collect();
        let watch: Vec<&str> = watch.iter().map(String::as_str).collect();
        let mut scene = one_shard(&data, watched_by(&watch, needed));
        if !known {
            scene.groups[0].primary = None;
        }
        scene.groups[0].least_replicas = least;
        let all: Vec<&str> = data.iter().chain(&watch).copied().collect();
        let lost: BTreeSet<&str> = gone.iter().filter_map(|&i| all.get(i)).copied().collect();
        let loss = super::what_if(&scene, &nodes(&lost.iter().copied().collect::<Vec<_>>()));
        let left = data.iter().filter(|n| !lost.contains(*n)).count();
        let voters = watch.iter().filter(|n| !lost.contains(*n)).count();
        let headless =
            if known { lost.contains(data[0]) } else { data.iter().any(|n| lost.contains(n)) };
        let outcome = match (left, headless, voters >= needed) {
            (0, ..) => Outcome::DataUnavailable,
            (_, true, false) => Outcome::NoQuorum,
            (left, ..) if left < data.len() && left - 1 < least => Outcome::WritesRefused,
            (_, true, true) => Outcome::Failover,
            (_, false, _) => Outcome::Intact,
        };
        prop_assert_eq!((loss.outcome, loss.voters_left), (outcome, voters));
        let pairs = super::survivability(&scene).node_pairs;
        let mut survived = 0;
        for (i, a) in all.iter().enumerate() {
            for b in &all[i + 1..] {
                survived += usize::from(super::what_if(&scene, &nodes(&[a, b])).outcome.survived());
            }
        }
        prop_assert_eq!(pairs.survived, survived);
    }
}
