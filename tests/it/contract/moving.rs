//! Slots that move: what each command does, and what is left when somebody fails on the way.
//!
//! The keys are of slot 5061. Node 0 has it at first, node 1 is to get it.

use reeve::domain::fault::ANOTHER_NODE;
use reeve::domain::moving::talk::{Answer, JobState, Key, Saying, SlotJob, SlotState};
use reeve::domain::node::{ClusterNodeId, Flavor, Version};
use reeve::domain::observation::{ClusterView, OpenSlot, Role};
use reeve::domain::slot::SlotSet;
use reeve::domain::step::command::{FailoverMethod, Verb};
use reeve::fleet::FleetError;

use super::bench::{Bench, World};
use super::cluster::{follow, joined};
use super::single::set;

const SHARES: [&str; 3] = ["0-5460", "5461-10922", "10923-16383"];
const SLOT: u16 = 5061;
const GRACEFUL: Verb = Verb::Failover(FailoverMethod::Graceful);

fn key(n: usize) -> String {
    format!("{{bar}}{n}")
}

fn name(key: &str) -> Key {
    Key(key.as_bytes().to_vec())
}

fn turn(slot: u16, state: SlotState) -> Saying {
    Saying::SetSlot { slot, state }
}

fn importing(from: &ClusterNodeId) -> Saying {
    turn(SLOT, SlotState::Importing(from.clone()))
}

fn migrating(to: &ClusterNodeId) -> Saying {
    turn(SLOT, SlotState::Migrating(to.clone()))
}

fn owned(by: &ClusterNodeId) -> Saying {
    turn(SLOT, SlotState::Node(by.clone()))
}

fn sends(bench: &Bench, to: usize, keys: std::ops::Range<usize>) -> Saying {
    let keys = keys.map(|n| name(&key(n))).collect();
    Saying::Migrate { to: bench.address(to), keys, within_ms: 1000 }
}

impl World {
    fn since_7_0(&self) -> bool {
        self.flavor == Flavor::Valkey || self.version >= Version::new(7, 0, 0)
    }

    /// Whether replicas know which slots are open, and both ends follow failovers.
    fn tracks_open_slots(&self) -> bool {
        self.flavor == Flavor::Valkey && self.version.major >= 8
    }
}

/// Three primaries that serve, and a replica of each that is named; and everybody's id.
async fn cluster(world: World, primaries: &[usize]) -> (Bench, Vec<ClusterNodeId>) {
    let mut slots = SHARES.to_vec();
    slots.extend(primaries.iter().map(|_| ""));
    sharing(world, &slots, primaries).await
}

async fn sharing(world: World, slots: &[&str], primaries: &[usize]) -> (Bench, Vec<ClusterNodeId>) {
    let bench = joined(world, slots).await;
    for (replica, primary) in (3..).zip(primaries) {
        follow(&bench, replica, *primary).await;
    }
    let mut ids = Vec::new();
    for node in 0..slots.len() {
        // None goes to help another primary.
        bench.send(node, &[set("cluster-migration-barrier", "9")]).await;
        let followers = |v: &ClusterView| v.peers.values().filter(|p| p.primary.is_some()).count();
        let all = |v: &ClusterView| v.state_ok && followers(v) == primaries.len();
        bench.until_view(node, "serves, and knows who follows whom", all).await;
        ids.push(bench.id(node).await);
    }
    (bench, ids)
}

/// Opens the slot in the right order.
async fn open(bench: &Bench, ids: &[ClusterNodeId], from: usize, to: usize) {
    bench.say(to, importing(&ids[from])).await;
    bench.say(from, migrating(&ids[to])).await;
}

async fn count(bench: &Bench, node: usize) -> u64 {
    match bench.answer(node, Saying::CountKeys { slot: SLOT }).await {
        Answer::Number(count) => count,
        other => panic!("{other:?}"),
    }
}

async fn counts(bench: &Bench, node: usize, wanted: u64) {
    let began = bench.now_ms();
    while count(bench, node).await != wanted {
        assert!(bench.now_ms() - began < 5000, "node {node} does not come to {wanted} keys");
        bench.pass(25).await;
    }
}

async fn opened(bench: &Bench, node: usize) -> Vec<OpenSlot> {
    bench.view(node).await.open
}

fn giving(to: &ClusterNodeId) -> Vec<OpenSlot> {
    vec![OpenSlot { slot: SLOT, giving: true, other: to.clone() }]
}

fn taking(from: &ClusterNodeId) -> Vec<OpenSlot> {
    vec![OpenSlot { slot: SLOT, giving: false, other: from.clone() }]
}

fn put(bench: &Bench, keys: std::ops::Range<usize>) {
    keys.for_each(|n| bench.put(0, &key(n)).unwrap());
}

/// Lets a replica take its primary's place, and waits until some see that it has its slots.
async fn replaced(bench: &Bench, ids: &[ClusterNodeId], old: usize, new: usize, seen_by: &[usize]) {
    bench.send(new, &[GRACEFUL]).await;
    bench.until(new, "took over", |r| r.role == Role::Primary).await;
    bench.until(old, "follows", |r| r.role == Role::Replica && r.replication.link_up).await;
    for node in seen_by {
        let sees = |v: &ClusterView| {
            let (old, new) = (&v.peers[&ids[old]], &v.peers[&ids[new]]);
            new.role == Role::Primary && new.slots.count() > 5000 && old.role == Role::Replica
        };
        bench.until_view(*node, "sees the new primary", sees).await;
    }
}

/// Who may say what of a slot, and what is refused.
pub async fn slot_states(world: World) {
    let (bench, ids) = cluster(world, &[0]).await;
    let nobody = ClusterNodeId("0".repeat(40));
    let own = bench.refused(0, importing(&ids[1])).await;
    assert_eq!(own, format!("ERR I'm already the owner of hash slot {SLOT}"));
    let foreign = bench.refused(1, migrating(&ids[0])).await;
    assert_eq!(foreign, format!("ERR I'm not the owner of hash slot {SLOT}"));
    for (node, saying) in [(1, importing(&nobody)), (0, migrating(&nobody))] {
        let unknown = bench.refused(node, saying).await;
        assert_eq!(unknown, format!("ERR I don't know about node {nobody}"));
    }
    assert_eq!(bench.refused(0, owned(&nobody)).await, format!("ERR Unknown node {nobody}"));
    let replica = bench.refused(3, turn(SLOT, SlotState::Stable)).await;
    assert_eq!(replica, "ERR Please use SETSLOT only with masters.");
    if bench.world.since_7_0() {
        assert_eq!(bench.refused(0, migrating(&ids[3])).await, "ERR Target node is not a master");
    }
    put(&bench, 0..1);
    let guarded = bench.refused(0, owned(&ids[1])).await;
    let why = "to a different node while I still hold keys for this hash slot.";
    assert_eq!(guarded, format!("ERR Can't assign hashslot {SLOT} {why}"));

    open(&bench, &ids, 0, 1).await;
    assert_eq!(opened(&bench, 0).await, giving(&ids[1]));
    assert_eq!(opened(&bench, 1).await, taking(&ids[0]));
    let at_replica = if bench.world.tracks_open_slots() { giving(&ids[1]) } else { vec![] };
    assert_eq!(opened(&bench, 3).await, at_replica);
    for node in [0, 1] {
        bench.say(node, turn(SLOT, SlotState::Stable)).await;
        assert_eq!(opened(&bench, node).await, vec![]);
    }
}

/// A slot is opened, emptied and closed in the right order, while somebody writes.
pub async fn moved(world: World) {
    let (bench, ids) = cluster(world, &[0]).await;
    put(&bench, 0..6);
    assert_eq!(count(&bench, 0).await, 6);
    counts(&bench, 3, 6).await;
    let sized = bench.answer(0, Saying::Size { key: name(&key(0)) }).await;
    assert!(matches!(sized, Answer::Number(30..200)), "{sized:?}");
    let typed = bench.answer(0, Saying::TypeOf { key: name(&key(0)) }).await;
    assert_eq!(typed, Answer::Text("string".to_owned()));
    for saying in [Saying::TypeOf { key: name("{bar}x") }, Saying::Size { key: name("{bar}x") }] {
        assert_eq!(bench.answer(0, saying).await, Answer::Nothing);
    }
    let elsewhere = bench.refused(1, Saying::Size { key: name(&key(0)) }).await;
    assert_eq!(elsewhere, format!("MOVED {SLOT} {}", bench.address(0)));

    open(&bench, &ids, 0, 1).await;
    let asked = format!("ASK {SLOT} {}", bench.address(1));
    assert_eq!(bench.put(0, &key(6)).unwrap_err(), asked, "no key is made there any more");
    bench.put(0, &key(5)).unwrap();
    assert!(bench.put(1, &key(6)).unwrap_err().starts_with("MOVED "), "it did not ask");
    bench.follow(0, &key(6));
    assert_eq!(count(&bench, 1).await, 1);
    for saying in [Saying::TypeOf { key: name(&key(6)) }, Saying::Size { key: name(&key(6)) }] {
        assert_eq!(bench.answer(0, saying).await, Answer::Nothing, "it is elsewhere");
    }

    assert_eq!(bench.answer(0, sends(&bench, 1, 90..92)).await, Answer::Nothing);
    bench.say(0, sends(&bench, 1, 0..3)).await;
    assert_eq!((count(&bench, 0).await, count(&bench, 1).await), (3, 4));
    assert_eq!(bench.put(0, &key(0)).unwrap_err(), asked);
    let listed = bench.answer(0, Saying::ListKeys { slot: SLOT, at_most: 2 }).await;
    assert!(matches!(&listed, Answer::Keys(keys) if keys.len() == 2), "{listed:?}");
    let both = vec![sends(&bench, 1, 0..6), Saying::ListKeys { slot: SLOT, at_most: 9 }];
    assert_eq!(bench.converse(0, &both).await, [Answer::Done, Answer::Keys(vec![])]);
    counts(&bench, 3, 0).await;

    let before = bench.view(1).await;
    bench.say(1, owned(&ids[1])).await;
    let view = bench.view(1).await;
    assert_eq!((view.my_epoch, view.current_epoch), (before.current_epoch + 1, view.my_epoch));
    assert!(view.open.is_empty() && view.my_slots().contains(SLOT));
    bench.say(0, owned(&ids[1])).await;
    assert_eq!(opened(&bench, 0).await, vec![]);
    for node in 0..4 {
        let sees = |v: &ClusterView| v.peers[&ids[1]].slots.contains(SLOT) && v.open.is_empty();
        bench.until_view(node, "sees whose it is", sees).await;
    }
    assert_eq!(count(&bench, 1).await, 7);
    // The next one takes no new epoch.
    for (node, state) in [
        (1, SlotState::Importing(ids[0].clone())),
        (0, SlotState::Migrating(ids[1].clone())),
        (1, SlotState::Node(ids[1].clone())),
    ] {
        bench.say(node, turn(7, state)).await;
    }
    assert_eq!(bench.view(1).await.my_epoch, view.my_epoch);
}

/// Several slots become the target's in one go: all of them and with a greater epoch than the source's,
/// and the others hear of it at once.
pub async fn taken_together(world: World) {
    let (bench, ids) = cluster(world, &[0]).await;
    let slots = vec![SLOT, 7, 8, 9];
    for &slot in &slots {
        bench.say(1, turn(slot, SlotState::Importing(ids[0].clone()))).await;
        bench.say(0, turn(slot, SlotState::Migrating(ids[1].clone()))).await;
    }
    let before = bench.view(1).await;
    bench.say(1, Saying::TakeSlots { slots: slots.clone(), itself: ids[1].clone() }).await;
    let view = bench.view(1).await;
    assert_eq!((view.my_epoch, view.current_epoch), (before.current_epoch + 1, view.my_epoch));
    assert!(view.open.is_empty(), "{:?}", view.open);
    assert!(slots.iter().all(|slot| view.my_slots().contains(*slot)));
    for &slot in &slots {
        bench.say(0, turn(slot, SlotState::Node(ids[1].clone()))).await;
    }
    for node in 0..4 {
        let sees = |v: &ClusterView| {
            let theirs = &v.peers[&ids[1]].slots;
            slots.iter().all(|slot| theirs.contains(*slot)) && v.open.is_empty()
        };
        bench.until_view(node, "sees whose they are", sees).await;
    }
    // A replica takes none.
    let refused = Saying::TakeSlots { slots: vec![10, 11], itself: ids[1].clone() };
    let refused = bench.refused(3, refused).await;
    assert!(refused.contains("SETSLOT only with masters"), "{refused}");
}

/// What is sent on before the other end is open leads nowhere; the way back is open only when the
/// owner has closed the slot.
pub async fn opened_the_wrong_way(world: World) {
    let (bench, ids) = cluster(world, &[]).await;
    put(&bench, 0..2);
    let refused =
        format!("ERR Target instance replied with error: MOVED {SLOT} {}", bench.address(0));
    assert_eq!(bench.refused(0, sends(&bench, 1, 0..2)).await, refused);
    bench.say(0, migrating(&ids[1])).await;
    assert!(bench.put(0, &key(9)).unwrap_err().starts_with("ASK "));
    assert_eq!(bench.refused(0, sends(&bench, 1, 0..2)).await, refused);
    assert_eq!((count(&bench, 0).await, count(&bench, 1).await), (2, 0));
    let foreign = bench.refused(1, sends(&bench, 0, 0..2)).await;
    assert_eq!(foreign, format!("MOVED {SLOT} {}", bench.address(0)));
    bench.say(1, importing(&ids[0])).await;
    bench.say(0, sends(&bench, 1, 0..2)).await;

    let back = bench.refused(1, sends(&bench, 0, 0..2)).await;
    assert!(back.starts_with("ERR Target instance replied with error: ASK "), "{back}");
    bench.say(0, turn(SLOT, SlotState::Stable)).await;
    bench.say(1, sends(&bench, 0, 0..2)).await;
    assert_eq!((count(&bench, 0).await, count(&bench, 1).await), (2, 0));
    let keys = vec![name(&key(0)), name("foo")];
    let crossing = Saying::Migrate { to: bench.address(1), keys, within_ms: 1000 };
    assert!(bench.refused(0, crossing).await.starts_with("CROSSSLOT "));
}

/// Whoever gives a slot to its new owner while the old one has keys of it destroys them.
pub async fn closed_too_early(world: World) {
    let (bench, ids) = cluster(world, &[0]).await;
    put(&bench, 0..6);
    counts(&bench, 3, 6).await;
    open(&bench, &ids, 0, 1).await;
    bench.say(0, sends(&bench, 1, 0..2)).await;
    bench.say(1, owned(&ids[1])).await;
    counts(&bench, 0, 0).await;
    assert_eq!(count(&bench, 1).await, 2);
    if bench.world.tracks_open_slots() {
        counts(&bench, 3, 0).await;
        assert_eq!(opened(&bench, 0).await, vec![]);
    } else {
        bench.pass(300).await;
        assert_eq!(count(&bench, 3).await, 4, "its replica is told nothing");
        assert_eq!(opened(&bench, 0).await, giving(&ids[1]), "only a command ends it");
    }
    bench.say(0, owned(&ids[1])).await;
    assert_eq!(opened(&bench, 0).await, vec![]);
}

/// Given away before the new owner was told: only who tracks open slots takes it.
pub async fn closed_at_the_source_first(world: World) {
    let (bench, ids) = cluster(world, &[]).await;
    open(&bench, &ids, 0, 1).await;
    bench.say(0, owned(&ids[1])).await;
    assert!(!bench.view(0).await.my_slots().contains(SLOT));
    if bench.world.tracks_open_slots() {
        let mine = |v: &ClusterView| v.my_slots().contains(SLOT) && v.open.is_empty();
        bench.until_view(1, "took what was given away", mine).await;
    } else {
        bench.pass(1500).await;
        let view = bench.view(1).await;
        assert!(!view.my_slots().contains(SLOT), "nobody has it");
        assert_eq!(view.open, taking(&ids[0]));
        let before = view.my_epoch;
        bench.say(1, owned(&ids[1])).await;
        assert!(bench.view(1).await.my_epoch > before);
    }
    for node in 0..3 {
        let sees = |v: &ClusterView| v.peers[&ids[1]].slots.contains(SLOT) && v.state_ok;
        bench.until_view(node, "sees whose it is", sees).await;
    }
}

/// The source is replaced half-way. Up to 7.0 its heir knows of nothing, and the target holds the slot
/// for nobody's, so that it serves nothing at all until it is told otherwise.
pub async fn the_source_fails_over(world: World) {
    let (bench, ids) = cluster(world, &[0, 1]).await;
    put(&bench, 0..6);
    open(&bench, &ids, 0, 1).await;
    bench.say(0, sends(&bench, 1, 0..2)).await;
    counts(&bench, 3, 4).await;
    replaced(&bench, &ids, 0, 3, &[2]).await;
    if bench.world.tracks_open_slots() {
        let follows = |v: &ClusterView| v.open == taking(&ids[3]);
        bench.until_view(1, "follows the failover", follows).await;
        assert_eq!(opened(&bench, 3).await, giving(&ids[1]));
        assert!(bench.put(3, &key(0)).unwrap_err().starts_with("ASK "));
    } else {
        bench.until_view(1, "serves no more", |v| !v.state_ok).await;
        assert_eq!(opened(&bench, 1).await, taking(&ids[0]));
        for node in [0, 3] {
            assert_eq!(opened(&bench, node).await, vec![]);
        }
        bench.put(3, &key(0)).unwrap();
        let unserved = "ERR Target instance replied with error: CLUSTERDOWN Hash slot not served";
        assert_eq!(bench.refused(3, sends(&bench, 1, 2..3)).await, unserved);
        bench.say(1, importing(&ids[3])).await;
        bench.say(3, migrating(&ids[1])).await;
        assert_eq!(bench.refused(3, sends(&bench, 1, 2..3)).await, unserved);
        bench.pass(1500).await;
        assert!(!bench.view(1).await.state_ok, "it does not come to itself");
        // It has to be told whose the slot is.
        bench.say(1, owned(&ids[3])).await;
        assert_eq!(opened(&bench, 1).await, taking(&ids[3]));
        bench.until_view(1, "serves again", |v| v.state_ok).await;
    }
    bench.say(3, sends(&bench, 1, 0..6)).await;
    assert_eq!((count(&bench, 3).await, count(&bench, 1).await), (0, 6));
    bench.say(1, owned(&ids[1])).await;
    bench.say(3, owned(&ids[1])).await;
    for node in 0..5 {
        let sees = |v: &ClusterView| {
            v.peers[&ids[1]].slots.contains(SLOT) && v.state_ok && v.open.is_empty()
        };
        bench.until_view(node, "sees whose it is", sees).await;
    }
}

/// The target is replaced half-way: clients are sent to the old one until both ends are told.
pub async fn the_target_fails_over(world: World) {
    let (bench, ids) = cluster(world, &[0, 1]).await;
    put(&bench, 0..6);
    open(&bench, &ids, 0, 1).await;
    bench.say(0, sends(&bench, 1, 0..2)).await;
    counts(&bench, 4, 2).await;
    replaced(&bench, &ids, 1, 4, &[0, 2]).await;
    if bench.world.tracks_open_slots() {
        bench.until_view(0, "follows the failover", |v| v.open == giving(&ids[4])).await;
        assert_eq!(opened(&bench, 4).await, taking(&ids[0]));
    } else {
        assert_eq!(opened(&bench, 0).await, giving(&ids[1]));
        for node in [1, 4] {
            assert_eq!(opened(&bench, node).await, vec![]);
        }
        let asked = format!("ASK {SLOT} {}", bench.address(1));
        assert_eq!(bench.put(0, &key(0)).unwrap_err(), asked);
        for to in [1, 4] {
            let refused = bench.refused(0, sends(&bench, to, 2..3)).await;
            assert!(refused.starts_with("ERR Target instance replied with error: MOVED "));
        }
        open(&bench, &ids, 0, 4).await;
    }
    let asked = format!("ASK {SLOT} {}", bench.address(4));
    assert_eq!(bench.put(0, &key(0)).unwrap_err(), asked);
    bench.say(0, sends(&bench, 4, 0..6)).await;
    bench.say(4, owned(&ids[4])).await;
    bench.say(0, owned(&ids[4])).await;
    assert_eq!((count(&bench, 0).await, count(&bench, 4).await), (0, 6));
    for node in 0..5 {
        let sees = |v: &ClusterView| {
            v.peers[&ids[4]].slots.contains(SLOT) && v.state_ok && v.open.is_empty()
        };
        bench.until_view(node, "sees whose it is", sees).await;
    }
}

/// Whoever loses its last slot follows the new owner, and its replica with it; or neither does.
pub async fn the_last_slot(world: World) {
    for migrates in [true, false] {
        let slots = [&SLOT.to_string(), "0-5060", "5062-16383", ""];
        let (bench, ids) = sharing(world.clone(), &slots, &[0]).await;
        for node in 0..4 {
            let switch =
                set("cluster-allow-replica-migration", if migrates { "yes" } else { "no" });
            bench.send(node, &[switch]).await;
        }
        let asked = bench.asked(0, &["cluster-allow-replica-migration"]).await;
        assert_eq!(asked.settings.len(), 1);
        open(&bench, &ids, 0, 1).await;
        bench.say(1, owned(&ids[1])).await;
        if migrates {
            for node in [0, 3] {
                let follows = |v: &ClusterView| v.me().unwrap().primary.as_ref() == Some(&ids[1]);
                bench.until_view(node, "follows the new owner", follows).await;
            }
            let late = bench.refused(0, owned(&ids[1])).await;
            assert_eq!(late, "ERR Please use SETSLOT only with masters.");
        } else {
            bench.until_view(0, "lost its last slot", |v| v.my_slots().is_empty()).await;
            bench.pass(1500).await;
            bench.say(0, owned(&ids[1])).await;
            let view = bench.view(0).await;
            assert_eq!((view.me().unwrap().role, view.open), (Role::Primary, vec![]));
            let replica = bench.view(3).await;
            assert_eq!(replica.me().unwrap().primary.as_ref(), Some(&ids[0]));
        }
        for node in 0..4 {
            bench.until_view(node, "serves", |v| v.state_ok && v.open.is_empty()).await;
        }
    }
}

/// Given away by its own word, the last slot makes a replica of its owner at once, from 7.0 on.
pub async fn the_last_slot_given_away(world: World) {
    let slots = [&SLOT.to_string(), "0-5060", "5062-16383"];
    let (bench, ids) = sharing(world, &slots, &[]).await;
    bench.say(0, owned(&ids[1])).await;
    let role = if bench.world.since_7_0() { Role::Replica } else { Role::Primary };
    assert_eq!(bench.view(0).await.me().unwrap().role, role);
}

/// A target that does not answer may have got the keys all the same: the source keeps them, and its
/// are the newer ones.
pub async fn a_target_that_hangs(world: World) {
    let (mut bench, ids) = cluster(world, &[]).await;
    put(&bench, 0..3);
    open(&bench, &ids, 0, 1).await;
    bench.freeze(1);
    let Saying::Migrate { to, keys, .. } = sends(&bench, 1, 0..3) else { panic!() };
    let hung = bench.refused(0, Saying::Migrate { to, keys, within_ms: 300 }).await;
    assert!(hung.starts_with("IOERR "), "{hung}");
    bench.put(0, &key(0)).unwrap();
    bench.thaw(1);
    counts(&bench, 1, 3).await;
    assert_eq!(count(&bench, 0).await, 3);
    for node in 0..2 {
        bench.until_view(node, "serves", |v| v.state_ok).await;
    }
    bench.say(0, sends(&bench, 1, 0..3)).await;
    assert_eq!((count(&bench, 0).await, count(&bench, 1).await), (0, 3));
    // Back where it was, with nobody at the other end.
    bench.say(0, turn(SLOT, SlotState::Stable)).await;
    bench.say(1, sends(&bench, 0, 0..3)).await;
    bench.kill(1);
    let dead = bench.refused(0, sends(&bench, 1, 0..3)).await;
    assert!(dead.starts_with("IOERR "), "{dead}");
    assert_eq!(count(&bench, 0).await, 3);
}

/// A target that is full takes nothing.
pub async fn a_full_target(world: World) {
    let (bench, ids) = cluster(world, &[]).await;
    put(&bench, 0..3);
    open(&bench, &ids, 0, 1).await;
    bench.send(1, &[set("maxmemory", "1")]).await;
    let full = bench.refused(0, sends(&bench, 1, 0..3)).await;
    assert!(full.starts_with("ERR Target instance replied with error: OOM "), "{full}");
    assert_eq!((count(&bench, 0).await, count(&bench, 1).await), (3, 0));
    bench.send(1, &[set("maxmemory", "0")]).await;
    bench.say(0, sends(&bench, 1, 0..3)).await;
    assert_eq!((count(&bench, 0).await, count(&bench, 1).await), (0, 3));
}

/// Functions are carried over as they are dumped, where there are any.
pub async fn functions(world: World) {
    let (bench, _) = cluster(world, &[1]).await;
    if !bench.world.since_7_0() {
        let unknown = bench.refused(0, Saying::DumpFunctions).await;
        assert!(unknown.starts_with("ERR unknown command `FUNCTION`"), "{unknown}");
        return assert_eq!(bench.libraries(0).await, None);
    }
    bench.load_functions(0, "l", 1);
    bench.load_functions(1, "l", 2);
    bench.load_functions(1, "own", 1);
    let Answer::Bytes(dump) = bench.answer(0, Saying::DumpFunctions).await else { panic!() };
    let (theirs, before) = (bench.libraries(0).await.unwrap(), bench.libraries(1).await.unwrap());
    assert!(theirs.len() == 1 && before.len() == 2 && theirs["l"] != before["l"]);
    for _ in 0..2 {
        bench.say(1, Saying::RestoreFunctions(dump.clone())).await;
        let after = bench.libraries(1).await.unwrap();
        assert_eq!((&after["l"], &after["own"]), (&theirs["l"], &before["own"]));
    }
    bench.say(1, Saying::DeleteLibrary("own".to_owned())).await;
    assert_eq!(bench.libraries(1).await.unwrap(), theirs);
    let gone = bench.refused(1, Saying::DeleteLibrary("own".to_owned())).await;
    assert_eq!(gone, "ERR Library not found");
    assert_eq!((bench.look(1).await.libraries, bench.libraries(2).await.unwrap().len()), (None, 0));
    bench.until(3, "is told", |r| r.functions).await;
    let Answer::Bytes(none) = bench.answer(2, Saying::DumpFunctions).await else { panic!() };
    bench.say(1, Saying::RestoreFunctions(none)).await;
    assert!(bench.look(1).await.functions && !bench.look(2).await.functions);
    let replica = bench.refused(3, Saying::RestoreFunctions(dump)).await;
    assert!(replica.starts_with("READONLY "), "{replica}");
    let junk = bench.refused(1, Saying::RestoreFunctions(b"junk".to_vec())).await;
    assert_eq!(junk, "ERR DUMP payload version or checksum are wrong");
    // A reset takes a replica's copy, and leaves a primary its own.
    for (node, kept) in [(3, false), (0, true)] {
        bench.send(node, &[Verb::ResetHard]).await;
        assert_eq!(bench.look(node).await.functions, kept, "node {node}");
    }
    bench.send(0, &[Verb::FlushFunctions]).await;
    bench.until(0, "has none", |r| !r.functions).await;
}

/// Servers that move slots by themselves, and others.
pub async fn slot_jobs(world: World) {
    let (mut bench, ids) = cluster(world, &[]).await;
    put(&bench, 0..6);
    let slots: SlotSet = format!("10-19,{SLOT}").parse().unwrap();
    let job = |to: &ClusterNodeId| Saying::MigrateSlots { slots: slots.clone(), to: to.clone() };
    if bench.world.flavor == Flavor::Redis {
        for saying in [job(&ids[1]), Saying::SlotJobs, Saying::CancelSlotJobs] {
            let unknown = bench.refused(0, saying).await;
            assert!(unknown.to_lowercase().starts_with("err unknown subcommand"), "{unknown}");
        }
        return;
    }
    let said = bench.refused(0, job(&ids[0])).await;
    assert_eq!(said, "ERR Target node can not be this node.");
    assert_eq!(bench.refused(1, job(&ids[0])).await, "ERR Slots are not served by this node.");
    assert_eq!(bench.refused(0, Saying::CancelSlotJobs).await, "ERR No migrations ongoing");
    bench.say(0, turn(9, SlotState::Migrating(ids[1].clone()))).await;
    assert_eq!(bench.refused(0, job(&ids[1])).await, "ERR Slots are being manually migrated");
    bench.say(0, turn(9, SlotState::Stable)).await;

    let before = bench.view(1).await.my_epoch;
    bench.say(0, job(&ids[1])).await;
    let sees = |v: &ClusterView| v.my_slots().contains(SLOT) && v.my_slots().contains(19);
    let view = bench.until_view(1, "has them", sees).await;
    assert!(view.my_epoch > before);
    counts(&bench, 0, 0).await;
    assert_eq!(count(&bench, 1).await, 6);
    let ended = ended(&bench, 0).await;
    assert_eq!((ended.state, ended.giving), (JobState::Succeeded, true));
    assert_eq!((ended.slots, ended.other.as_ref()), (slots.clone(), Some(&ids[1])));
    let Answer::Jobs(taken) = bench.answer(1, Saying::SlotJobs).await else { panic!() };
    assert!(taken.iter().any(|job| job.name == ended.name && !job.giving));

    // One that cannot go on is cancelled.
    let back = Saying::MigrateSlots { slots: slots.clone(), to: ids[0].clone() };
    bench.freeze(0);
    bench.say(1, back.clone()).await;
    assert_eq!(bench.refused(1, back).await, "ERR I am already migrating slot 10.");
    let barred = bench.refused(1, turn(6000, SlotState::Migrating(ids[2].clone()))).await;
    assert_eq!(barred, "ERR Slot export in progress.");
    bench.say(1, Saying::CancelSlotJobs).await;
    bench.thaw(0);
    let Answer::Jobs(jobs) = bench.answer(1, Saying::SlotJobs).await else { panic!() };
    assert!(jobs.iter().any(|job| job.giving && job.state == JobState::Cancelled));
    assert_eq!(count(&bench, 1).await, 6);
}

/// The last job of a node, once it has ended.
async fn ended(bench: &Bench, node: usize) -> SlotJob {
    let began = bench.now_ms();
    loop {
        let Answer::Jobs(jobs) = bench.answer(node, Saying::SlotJobs).await else { panic!() };
        match jobs.into_iter().find(|job| job.giving) {
            Some(job) if job.state != JobState::Running => return job,
            other => assert!(bench.now_ms() - began < 5000, "{other:?}"),
        }
        bench.pass(25).await;
    }
}

/// Somebody else at the address hears nothing.
pub async fn whoever_is_spoken_to(world: World) {
    let (bench, ids) = cluster(world, &[]).await;
    put(&bench, 0..1);
    let wrong = bench.try_converse(0, &ids[1], &[turn(SLOT, SlotState::Stable)]).await;
    assert!(
        matches!(&wrong, Err(FleetError::Rejected { code, .. }) if code == ANOTHER_NODE),
        "{wrong:?}"
    );
    assert_eq!(count(&bench, 0).await, 1);
}
