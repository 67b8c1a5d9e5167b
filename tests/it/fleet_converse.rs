//! What the adapter promises of conversing with real nodes while slots move.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reeve::domain::credential::Credential;
use reeve::domain::id::TopologyId;
use reeve::domain::moving::talk::{Answer, JobState, Key, Lane, Saying, SlotJob, SlotState};
use reeve::domain::node::{Address, ClusterNodeId};
use reeve::fleet::{Fence, Fleet, FleetError, Talk, Target};

use crate::contract::bench::{Bench, World};
use crate::contract::cluster::joined;
use crate::fleet::deafened;
use crate::support::until;
use crate::support::world::redis_cli;

const HALVES: [&str; 2] = ["0-8191", "8192-16383"];

/// Two nodes, each with half of the slots, and their identities.
struct Pair {
    bench: Bench,
    ids: Vec<ClusterNodeId>,
}

impl Pair {
    async fn of(world: World) -> Self {
        let bench = joined(world, &HALVES).await;
        let ids = vec![bench.id(0).await, bench.id(1).await];
        for node in 0..2 {
            bench.until_view(node, "serves", |view| view.state_ok).await;
        }
        Self { bench, ids }
    }

    async fn say(&self, node: usize, sayings: &[Saying]) -> Vec<Answer> {
        self.ask(&self.bench.target(node), node, Lane::Control, sayings).await.unwrap()
    }

    /// One saying, one answer.
    async fn one(&self, node: usize, saying: Saying) -> Answer {
        self.say(node, &[saying]).await.remove(0)
    }

    async fn ask(
        &self,
        target: &Target,
        node: usize,
        lane: Lane,
        sayings: &[Saying],
    ) -> Result<Vec<Answer>, FleetError> {
        converse(self.bench.fleet(), target, &self.ids[node], lane, sayings).await
    }

    fn migrate(&self, keys: &[Key]) -> Saying {
        Saying::Migrate { to: self.bench.address(1), keys: keys.to_vec(), within_ms: 5000 }
    }

    fn set(&self, slot: u16, state: fn(ClusterNodeId) -> SlotState, node: usize) -> Saying {
        Saying::SetSlot { slot, state: state(self.ids[node].clone()) }
    }

    /// Says something to a node past the fleet.
    fn cli(&self, node: usize, words: &[&str]) -> String {
        redis_cli(self.bench.address(node).port(), words)
    }
}

const WITHIN: Duration = Duration::from_secs(5);

async fn converse(
    fleet: &dyn Fleet,
    target: &Target,
    identity: &ClusterNodeId,
    lane: Lane,
    sayings: &[Saying],
) -> Result<Vec<Answer>, FleetError> {
    fleet.converse(&Talk { target, lane, identity, within: WITHIN }, sayings).await
}

/// A bulk of any bytes to a node, past the fleet; the first line of the answer, and the bulk in it.
fn raw(node: &Address, words: &[&[u8]]) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect((node.host(), node.port())).unwrap();
    let mut packed = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        packed.extend(format!("${}\r\n", word.len()).bytes());
        packed.extend(*word);
        packed.extend(b"\r\n");
    }
    stream.write_all(&packed).unwrap();
    let (mut reader, mut line) = (BufReader::new(stream), String::new());
    reader.read_line(&mut line).unwrap();
    let length = line.strip_prefix('$').and_then(|length| length.trim().parse().ok());
    let mut bulk = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut bulk).unwrap();
    (line.trim().to_owned(), bulk)
}

/// Of slot 0, like all keys here.
fn key(name: &[u8]) -> Key {
    Key([b"{06S}", name].concat())
}

fn words(answer: &Answer) -> String {
    match answer {
        Answer::Refused { code, message } => format!("{code} {message}"),
        other => format!("{other:?}"),
    }
}

async fn a_slot_moves(world: World) {
    let pair = Pair::of(world).await;
    let (source, target) = (pair.bench.address(0), pair.bench.address(1));
    let binary = key(b"\0\xff\r\n$5");
    let large: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[0]).collect();
    let value = |n: usize| if n == 0 { large.as_slice() } else { b"value" };
    let mut keys = vec![binary.clone()];
    keys.extend((1..300).map(|n| key(n.to_string().as_bytes())));
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(raw(&source, &[b"SET", &key.0, value(n)]).0, "+OK");
    }

    let set = |state, node| pair.set(0, state, node);
    assert_eq!(pair.one(1, set(SlotState::Importing, 0)).await, Answer::Done);
    let gone = key(b"gone");
    let list = Saying::ListKeys { slot: 0, at_most: 1000 };
    let opened = [
        set(SlotState::Migrating, 1),
        list.clone(),
        Saying::CountKeys { slot: 0 },
        Saying::Size { key: gone.clone() },
        Saying::TypeOf { key: gone.clone() },
        pair.migrate(slice::from_ref(&gone)),
        Saying::TypeOf { key: binary.clone() },
        Saying::Size { key: binary.clone() },
    ];
    let mut answers = pair.say(0, &opened).await;
    let Some(Answer::Number(size)) = answers.pop() else { panic!("{answers:?}") };
    assert!((1 << 20..3 << 20).contains(&size), "{size}");
    let Answer::Keys(listed) = answers.remove(1) else { panic!("{answers:?}") };
    let sorted = |keys: &[Key]| keys.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(sorted(&listed), sorted(&keys));
    let nothing = || Answer::Nothing;
    let text = Answer::Text("string".to_owned());
    let expected = [Answer::Done, Answer::Number(300), nothing(), nothing(), nothing(), text];
    assert_eq!(answers, expected);

    let all = [pair.migrate(&[listed, vec![gone]].concat()), list];
    let moved = pair.ask(&pair.bench.target(0), 0, Lane::Bulk, &all).await.unwrap();
    assert_eq!(moved, [Answer::Done, Answer::Keys(Vec::new())]);
    assert_eq!(pair.one(1, set(SlotState::Node, 1)).await, Answer::Done);
    assert_eq!(pair.one(0, set(SlotState::Node, 1)).await, Answer::Done);
    for (n, key) in keys.iter().enumerate() {
        assert!(raw(&target, &[b"GET", &key.0]).1 == value(n), "{key}");
    }
    let view = pair.bench.view(0).await;
    assert!(view.open.is_empty() && !view.my_slots().contains(0), "{view:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_moves_on_redis_7_0() {
    a_slot_moves(World::redis_7_0()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_moves_on_redis_6_2() {
    a_slot_moves(World::redis_6_2()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_moves_on_valkey_9() {
    a_slot_moves(World::valkey_9()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_stand_among_the_answers() {
    let pair = Pair::of(World::redis_7_0()).await;
    assert!(pair.say(0, &[]).await.is_empty());
    pair.bench.put(0, key(b"x").to_string().as_str()).unwrap();
    let nobody = ClusterNodeId("0".repeat(40));
    let batch = [
        Saying::CountKeys { slot: 0 },
        pair.set(0, SlotState::Importing, 1),
        Saying::Ping,
        pair.set(9000, SlotState::Migrating, 1),
        Saying::SetSlot { slot: 0, state: SlotState::Node(nobody) },
        pair.set(0, SlotState::Node, 1),
        Saying::RestoreFunctions(b"nonsense".to_vec()),
        Saying::SlotJobs,
        pair.migrate(&[key(b"x")]),
        Saying::CountKeys { slot: 0 },
    ];
    let answers = pair.say(0, &batch).await;
    let expected = [
        "Number(1)",
        "ERR I'm already the owner of hash slot 0",
        "Done",
        "ERR I'm not the owner of hash slot 9000",
        "ERR Unknown node",
        "ERR Can't assign hashslot 0 to a different node while I still hold keys",
        "ERR DUMP payload version or checksum are wrong",
        "ERR unknown subcommand 'GETSLOTMIGRATIONS'",
        "ERR Target instance replied with error: MOVED 0 127.0.0.1:",
        "Number(1)",
    ];
    assert_eq!(answers.len(), expected.len());
    for (answer, expected) in answers.iter().zip(expected) {
        assert!(words(answer).starts_with(expected), "{answer:?} is not {expected}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_whoever_is_meant_hears_anything() {
    let pair = Pair::of(World::redis_7_0()).await;
    let target = pair.bench.target(0);
    let stable = [pair.set(5, SlotState::Migrating, 1)];
    let code = |outcome| match outcome {
        Err(FleetError::Rejected { code, .. }) => code,
        other => format!("{other:?}"),
    };
    for _ in 0..2 {
        assert_eq!(code(pair.ask(&target, 1, Lane::Control, &stable).await), "another_node");
    }
    assert!(pair.bench.view(0).await.open.is_empty());
    pair.ask(&target, 0, Lane::Control, &stable).await.unwrap();
    assert_eq!(pair.bench.view(0).await.open.len(), 1);
    assert_eq!(code(pair.ask(&target, 1, Lane::Control, &stable).await), "another_node");

    // Whoever was quiet for a while is asked again.
    pair.ask(&target, 0, Lane::Control, &[Saying::Ping]).await.unwrap();
    pair.cli(0, &["CLUSTER", "RESET", "HARD"]);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(code(pair.ask(&target, 0, Lane::Control, &[Saying::Ping]).await), "another_node");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_died_while_idle_costs_nothing() {
    let mut pair = Pair::of(World::redis_7_0()).await;
    assert_eq!(pair.one(0, Saying::Ping).await, Answer::Done);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    pair.bench.restart(0, true).await;
    assert_eq!(pair.one(0, Saying::Ping).await, Answer::Done);
}

fn held(bench: &Bench, address: &str) -> Target {
    let fence = Fence { topology: TopologyId(uuid::Uuid::from_u128(0x17)), token: 1 };
    Target { address: address.parse().unwrap(), fence: Some(fence), ..bench.target(0) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_node_leaves_its_answers_unsure() {
    let mut pair = Pair::of(World::redis_7_0()).await;
    let target = held(&pair.bench, &pair.bench.address(0).to_string());
    for lane in [Lane::Control, Lane::Probe] {
        pair.ask(&target, 0, lane, &[Saying::Ping]).await.unwrap();
    }
    pair.bench.freeze(0);
    let within = Duration::from_millis(300);
    let talk = Talk { target: &target, lane: Lane::Control, identity: &pair.ids[0], within };
    let began = Instant::now();
    let unsure = pair.bench.fleet().converse(&talk, &[Saying::Ping]).await;
    assert!(matches!(unsure, Err(FleetError::Ambiguous { .. })), "{unsure:?}");
    assert!(began.elapsed() < Duration::from_millis(600), "{:?}", began.elapsed());
    for lane in [Lane::Control, Lane::Bulk] {
        let began = Instant::now();
        let talk = Talk { lane, ..talk };
        let unsent = pair.bench.fleet().converse(&talk, &[Saying::Ping]).await;
        assert!(matches!(unsent, Err(FleetError::Unreachable { .. })), "{unsent:?}");
        assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    }
    pair.bench.thaw(0);
    pair.bench.fleet().fence(&target).await.unwrap();
    for lane in [Lane::Control, Lane::Bulk, Lane::Probe] {
        pair.ask(&target, 0, lane, &[Saying::Ping]).await.unwrap();
    }
    until("only what is used is left", Duration::from_secs(5), async || {
        let clients = pair.cli(0, &["CLIENT", "LIST"]).matches("name=reeve:").count();
        if clients == 4 { Ok(()) } else { Err(format!("{clients}")) }
    })
    .await;
}

const DEAF: Saying = Saying::CountKeys { slot: 4711 };

fn deaf(pair: &Pair) -> Target {
    held(&pair.bench, &deafened(pair.bench.address(0).port(), b"4711").to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_fence_no_lost_batch_runs_any_more() {
    let pair = Pair::of(World::redis_7_0()).await;
    let target = deaf(&pair);
    let clients = || {
        let list = pair.cli(0, &["CLIENT", "LIST"]);
        let ours = list.lines().filter(|line| line.contains("name=reeve:"));
        ours.filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect::<BTreeSet<_>>()
    };
    let within = Duration::from_millis(200);
    let talk = |lane| Talk { target: &target, lane, identity: &pair.ids[0], within };
    let fleet = pair.bench.fleet();
    fleet.fence(&target).await.unwrap();
    // One batch is late, nobody waits any more for another.
    let (late, forsaken) = (talk(Lane::Control), Talk { within: WITHIN, ..talk(Lane::Bulk) });
    for talk in [&late, &forsaken, &talk(Lane::Probe)] {
        fleet.converse(talk, &[Saying::Ping]).await.unwrap();
    }
    let before = clients();
    assert_eq!(before.len(), 4);
    let unsure = fleet.converse(&late, &[DEAF]).await;
    assert!(matches!(unsure, Err(FleetError::Ambiguous { .. })), "{unsure:?}");
    let dropped = tokio::time::timeout(within, fleet.converse(&forsaken, &[DEAF])).await;
    dropped.unwrap_err();
    assert_eq!(clients(), before);
    fleet.fence(&target).await.unwrap();
    let after = clients();
    assert_eq!((after.len(), after.intersection(&before).count()), (2, 1), "{before:?} {after:?}");
    fleet.converse(&talk(Lane::Probe), &[Saying::Ping]).await.unwrap();
    assert_eq!(clients(), after, "a lane that lost nothing goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_lane_waits_for_another() {
    let pair = Pair::of(World::redis_7_0()).await;
    let target = deaf(&pair);
    let bulk = async {
        let began = Instant::now();
        let within = Duration::from_secs(2);
        let talk = Talk { target: &target, lane: Lane::Bulk, identity: &pair.ids[0], within };
        let unsure = pair.bench.fleet().converse(&talk, &[DEAF]).await;
        assert!(matches!(unsure, Err(FleetError::Ambiguous { .. })), "{unsure:?}");
        assert!(began.elapsed() >= within);
    };
    let others = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let began = Instant::now();
        for lane in [Lane::Control, Lane::Probe] {
            pair.ask(&target, 0, lane, &[Saying::Ping]).await.unwrap();
        }
        pair.bench.fleet().look(&target, &Default::default()).await.unwrap();
        pair.bench.fleet().send(&target, &[]).await.unwrap();
        pair.bench.fleet().fence(&target).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    };
    tokio::join!(bulk, others);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_handed_over_with_the_topologys_login() {
    let pair = Pair::of(World::redis_7_0()).await;
    for node in 0..2 {
        pair.cli(node, &["ACL", "SETUSER", "mover", "on", ">pass word", "+@all", "~*", "&*"]);
        pair.cli(node, &["ACL", "SETUSER", "default", "-restore-asking"]);
    }
    pair.bench.put(0, key(b"x").to_string().as_str()).unwrap();
    let login = |password: &str| {
        let login = Credential::new(Some("mover".to_owned()), password.to_owned());
        Target { login: Some(Arc::new(login)), ..pair.bench.target(0) }
    };
    let batch = [pair.set(0, SlotState::Migrating, 1), pair.migrate(&[key(b"x")])];
    pair.one(1, pair.set(0, SlotState::Importing, 0)).await;
    let without = pair.say(0, &batch).await;
    assert!(words(&without[1]).contains("replied with error: NOPERM"), "{without:?}");
    let wrong = pair.ask(&login("wrong"), 0, Lane::Control, &batch).await;
    assert!(
        matches!(&wrong, Err(FleetError::Rejected { code, .. }) if code == "WRONGPASS"),
        "{wrong:?}"
    );
    let moved = pair.ask(&login("pass word"), 0, Lane::Control, &batch).await.unwrap();
    assert_eq!(moved, [Answer::Done, Answer::Done]);
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_are_copied() {
    let pair = Pair::of(World::redis_7_0()).await;
    let library = "#!lua name=mine\nredis.register_function('f', function() return 1 end)";
    assert_eq!(pair.cli(0, &["FUNCTION", "LOAD", library]), "mine");
    let Answer::Bytes(dump) = pair.one(0, Saying::DumpFunctions).await else { panic!() };
    for _ in 0..2 {
        assert_eq!(pair.one(1, Saying::RestoreFunctions(dump.clone())).await, Answer::Done);
    }
    assert!(pair.cli(1, &["FUNCTION", "LIST"]).contains("mine"));
    // One that has none says so in its own way, and it may be restored all the same.
    pair.cli(0, &["FUNCTION", "FLUSH"]);
    let Answer::Bytes(none) = pair.one(0, Saying::DumpFunctions).await else { panic!() };
    assert_eq!(pair.one(1, Saying::RestoreFunctions(none)).await, Answer::Done);
    assert!(pair.cli(1, &["FUNCTION", "LIST"]).contains("mine"));
}

#[tokio::test(flavor = "multi_thread")]
async fn valkey_9_moves_slots_by_itself() {
    let mut pair = Pair::of(World::valkey_9()).await;
    for n in 0..50 {
        pair.bench.put(0, key(format!("{n}").as_bytes()).to_string().as_str()).unwrap();
    }
    let jobs = async |node| match pair.one(node, Saying::SlotJobs).await {
        Answer::Jobs(jobs) => jobs,
        other => panic!("{other:?}"),
    };
    let start = |slots: &str| Saying::MigrateSlots {
        slots: slots.parse().unwrap(),
        to: pair.ids[1].clone(),
    };
    assert_eq!(jobs(0).await, []);
    assert_eq!(pair.one(0, start("0-10,20")).await, Answer::Done);
    let finished = |job: &SlotJob| job.state == JobState::Succeeded;
    until("the job is done", Duration::from_secs(10), async || {
        let both = (jobs(0).await, jobs(1).await);
        let done = both.0.iter().chain(&both.1).all(finished);
        if done { Ok(()) } else { Err(format!("{both:?}")) }
    })
    .await;
    let (given, taken) = (jobs(0).await.remove(0), jobs(1).await.remove(0));
    assert!(given.giving && given.other.as_ref() == Some(&pair.ids[1]), "{given:?}");
    assert!(!taken.giving && taken.other.as_ref() == Some(&pair.ids[0]), "{taken:?}");
    assert_eq!(
        (given.name, given.slots.to_string()),
        (taken.name, taken.slots.to_string()),
        "one job, seen from both sides"
    );
    assert_eq!(pair.one(1, Saying::CountKeys { slot: 0 }).await, Answer::Number(50));

    let refused = pair.one(0, start("0-10")).await;
    assert_eq!(words(&refused), "ERR Slots are not served by this node.");
    let begun = start("30-40");
    let again = start("40-41");
    pair.bench.freeze(1);
    assert_eq!(pair.one(0, begun).await, Answer::Done);
    let jobs = pair.say(0, &[Saying::SlotJobs, again, Saying::CancelSlotJobs]).await;
    let Answer::Jobs(running) = &jobs[0] else { panic!("{jobs:?}") };
    assert!(running.iter().any(|job| job.state == JobState::Running), "{running:?}");
    assert_eq!(words(&jobs[1]), "ERR I am already migrating slot 40.");
    assert_eq!(jobs[2], Answer::Done);
    pair.bench.thaw(1);
    let after = pair.say(0, &[Saying::SlotJobs, Saying::CancelSlotJobs]).await;
    let Answer::Jobs(ended) = &after[0] else { panic!("{after:?}") };
    let cancelled = ended.iter().filter(|job| job.state == JobState::Cancelled);
    assert_eq!(cancelled.map(|job| job.slots.to_string()).collect::<Vec<_>>(), ["30-40"]);
    assert_eq!(words(&after[1]), "ERR No migrations ongoing");
}
