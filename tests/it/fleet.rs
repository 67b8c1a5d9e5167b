//! What the adapter promises of real nodes: `redis-server`, or what `REEVE_REDIS_SERVER` names.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use futures::future::join_all;
use reeve::demo::servers::{Folder, Redis, RedisOptions, Signal, free_port};
use reeve::domain::credential::Credential;
use reeve::domain::id::TopologyId;
use reeve::domain::node::Address;
use reeve::domain::observation::{ClusterView, Report, Role};
use reeve::domain::slot::SlotSet;
use reeve::domain::step::command::Verb;
use reeve::fleet::redis::{Reach, RedisFleet, Timeouts};
use reeve::fleet::{Ask, Fence, Fleet, FleetError, Target};

use crate::support::until;
use crate::support::world::redis_cli;

const CLUSTER: &[(&str, &str)] = &[("cluster-enabled", "yes"), ("cluster-node-timeout", "1000")];

struct Node {
    redis: Redis,
    _folder: Folder,
}

impl Node {
    async fn start(config: &[(&str, &str)]) -> Self {
        let folder = Folder::fresh("reeve-test").unwrap();
        let options = RedisOptions { dir: folder.join("node"), ..RedisOptions::default() };
        let options = config.iter().fold(options, |all, (name, value)| all.with(name, value));
        let options = RedisOptions { with_config_file: true, ..options };
        Self { redis: Redis::start(options).await.unwrap(), _folder: folder }
    }

    fn target(&self) -> Target {
        target(&self.redis.address())
    }

    fn login(&self, user: Option<&str>, password: &str) -> Target {
        Target { login: credential(user, password), ..self.target() }
    }

    /// Says something to the node past the fleet.
    fn say(&self, words: &[&str]) -> String {
        redis_cli(self.redis.port(), words)
    }
}

fn fleet_with(timeouts: Timeouts) -> RedisFleet {
    RedisFleet::new(timeouts, Reach::default(), reeve::clock::now)
}

fn fleet() -> RedisFleet {
    fleet_with(Timeouts::default())
}

fn target(address: &str) -> Target {
    let address = address.parse().unwrap();
    Target { address, login: None, replication: None, fence: None }
}

fn credential(user: Option<&str>, password: &str) -> Option<Arc<Credential>> {
    Some(Arc::new(Credential::new(user.map(str::to_owned), password.to_owned())))
}

fn config_set(name: &str, value: &str) -> Verb {
    Verb::ConfigSet { name: name.to_owned(), value: value.to_owned() }
}

async fn look(fleet: &RedisFleet, target: &Target) -> Report {
    fleet.look(target, &Ask::default()).await.unwrap()
}

async fn view(fleet: &RedisFleet, target: &Target) -> ClusterView {
    look(fleet, target).await.cluster.unwrap()
}

fn code(outcome: Result<impl std::fmt::Debug, FleetError>) -> String {
    match outcome {
        Err(FleetError::Rejected { code, .. }) => code,
        other => format!("{other:?}"),
    }
}

async fn until_seen(fleet: &RedisFleet, target: &Target, holds: impl Fn(&ClusterView) -> bool) {
    until("the node sees it", Duration::from_secs(15), async || {
        let view = view(fleet, target).await;
        if holds(&view) { Ok(()) } else { Err(format!("{view:#?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_seen_as_it_is() {
    let (a, b) = (Node::start(CLUSTER).await, Node::start(CLUSTER).await);
    let fleet = fleet();
    let (one, two) = (a.target(), b.target());

    let blank = look(&fleet, &one).await;
    assert!(blank.cluster_enabled && !blank.requires_login && !blank.has_replication_login);
    assert!(!blank.run_id.is_empty() && blank.role == Role::Primary && blank.keys == 0);
    let blank = blank.cluster.unwrap();
    assert!(blank.is_blank() && !blank.state_ok);
    let (my_id, your_id) = (blank.my_id, view(&fleet, &two).await.my_id);

    let verbs = [Verb::SetConfigEpoch(1), Verb::AddSlots(SlotSet::all())];
    fleet.send(&one, &verbs).await.unwrap();
    // CLUSTER MEET takes no names.
    let by_name: Address = format!("localhost:{}", b.redis.port()).parse().unwrap();
    fleet.send(&one, &[Verb::Meet(two.address.clone()), Verb::Meet(by_name)]).await.unwrap();
    until_seen(&fleet, &two, |v| v.known().contains(&my_id)).await;
    fleet.send(&two, &[Verb::Replicate(my_id.clone())]).await.unwrap();
    let follows = |v: &ClusterView| v.peers.get(&your_id)?.primary.clone();
    until_seen(&fleet, &one, |v| v.state_ok && follows(v).as_ref() == Some(&my_id)).await;

    let seen = view(&fleet, &one).await;
    assert_eq!((seen.my_epoch, seen.my_slots()), (1, SlotSet::all()));
    let peer = &seen.peers[&your_id];
    let bus = b.redis.port() + 10_000;
    assert_eq!((peer.role, peer.linked, peer.bus_port), (Role::Replica, true, Some(bus)));
    assert_eq!(peer.address.as_ref(), Some(&two.address));
    let modern = look(&fleet, &one).await.capabilities().cluster_shards;
    assert_eq!(seen.health.contains_key(&my_id), modern, "{:?}", seen.health);

    let taken = Verb::AddSlots("0-16383".parse().unwrap());
    assert_eq!(code(fleet.send(&one, &[taken]).await), "ERR");
    assert_eq!(a.say(&["SET", "key", "value"]), "OK");
    assert_eq!(code(fleet.send(&two, &[Verb::FlushAll]).await), "READONLY");
    fleet.send(&one, &[Verb::FlushAll, Verb::ResetHard]).await.unwrap();
    let after = view(&fleet, &one).await;
    assert!(after.is_blank() && after.my_id != my_id);

    fleet.knock(&two.address, bus).await.unwrap();
    let free = free_port().unwrap();
    let closed = fleet.knock(&two.address, free.number()).await.unwrap_err();
    assert!(closed.to_string().ends_with("connection refused"), "{closed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_and_the_replication_login_are_set_and_seen() {
    let node = Node::start(&[]).await;
    let fleet = fleet();
    let wanted = Target { replication: credential(Some("repl"), "s3cret"), ..node.target() };
    let settings = BTreeSet::from(["maxmemory".to_owned(), "masterauth".to_owned()]);
    let ask = Ask { settings, ..Ask::default() };
    let before = fleet.look(&wanted, &ask).await.unwrap();
    assert_eq!(before.replication_login_as_wanted, Some(false));
    assert!(!before.cluster_enabled && before.cluster.is_none());

    let verbs = [config_set("maxmemory", "100mb"), Verb::SetReplicationLogin, Verb::ConfigRewrite];
    fleet.send(&wanted, &verbs).await.unwrap();
    let after = fleet.look(&wanted, &ask).await.unwrap();
    assert_eq!(after.replication_login_as_wanted, Some(true));
    assert_eq!(after.memory.max_bytes, 104_857_600);
    assert_eq!(after.settings.get("maxmemory").map(String::as_str), Some("104857600"));
    assert_eq!(after.settings.len(), 1, "a secret is not shown");

    assert_eq!(node.say(&["SET", "key", "value"]), "OK");
    assert_eq!(look(&fleet, &wanted).await.keys, 1);
    fleet.send(&wanted, &[Verb::FlushAll]).await.unwrap();
    assert_eq!(look(&fleet, &wanted).await.keys, 0);

    assert_eq!(code(fleet.send(&wanted, &[config_set("nonsense", "1")]).await), "ERR");
    assert_eq!(code(fleet.send(&node.target(), &[Verb::SetReplicationLogin]).await), "no_login");
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_and_permissions_are_told_apart() {
    let node = Node::start(&[
        ("requirepass", "right"),
        ("user", "viewer on >look +info +client +cluster|info +cluster|nodes ~*"),
        ("user", "narrow on >look +info +client ~*"),
        ("user", "blind on >look +ping"),
        ("rename-command", "CONFIG \"\""),
    ])
    .await;
    let fleet = fleet();
    let ask = Ask::default();

    assert_eq!(code(fleet.look(&node.target(), &ask).await), "NOAUTH");
    let wrong = node.login(None, "wrong");
    assert_eq!(code(fleet.look(&wrong, &ask).await), "WRONGPASS");
    assert_eq!(code(fleet.send(&wrong, &[Verb::FlushAll]).await), "WRONGPASS");
    for (user, password) in [(None, "right"), (Some("default"), "right"), (Some("viewer"), "look")]
    {
        assert!(look(&fleet, &node.login(user, password)).await.requires_login);
    }
    let blind = node.login(Some("blind"), "look");
    assert_eq!(code(fleet.look(&blind, &ask).await), "NOPERM");
    // A cluster that may not be looked at is not the same as none.
    let narrow = node.login(Some("narrow"), "look");
    assert_eq!(code(fleet.look(&narrow, &ask).await), "NOPERM");
    let viewer = node.login(Some("viewer"), "look");
    assert_eq!(code(fleet.send(&viewer, &[Verb::FlushAll]).await), "NOPERM");

    // A server without CONFIG repeats what it was given.
    let secret = Target { replication: credential(None, "s3cret"), ..node.login(None, "right") };
    let refused = fleet.send(&secret, &[Verb::SetReplicationLogin]).await.unwrap_err();
    assert!(!format!("{refused} {refused:?}").contains("s3cret"), "{refused}");
    assert_eq!(code(Err::<(), _>(refused)), "ERR");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_is_seen_at_the_next_look() {
    let mut node = Node::start(&[]).await;
    let (fleet, target) = (fleet(), node.target());
    let before = look(&fleet, &target).await.run_id;
    fleet.send(&target, &[Verb::FlushAll]).await.unwrap();
    node.redis.restart().await.unwrap();
    fleet.send(&target, &[Verb::FlushAll]).await.unwrap();
    assert_ne!(look(&fleet, &target).await.run_id, before);

    node.redis.kill();
    let gone = fleet.look(&target, &Ask::default()).await.unwrap_err();
    let want = format!("{} cannot be reached: connection refused", target.address);
    assert_eq!(gone.to_string(), want);
    let gone = fleet.send(&target, &[Verb::FlushAll]).await;
    assert!(matches!(gone, Err(FleetError::Unreachable { .. })), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_node_holds_nobody_up() {
    let mut node = Node::start(&[]).await;
    let (fleet, target, ask) = (fleet(), node.target(), Ask::default());
    look(&fleet, &target).await;
    fleet.send(&target, &[Verb::FlushAll]).await.unwrap();
    node.redis.signal(Signal::STOP).unwrap();
    for _ in 0..2 {
        let start = Instant::now();
        for outcome in join_all((0..8).map(|_| fleet.look(&target, &ask))).await {
            assert!(matches!(outcome, Err(FleetError::Unreachable { .. })), "{outcome:?}");
        }
        assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
    }
    let start = Instant::now();
    let unsent = fleet.send(&target, &[Verb::FlushAll]).await;
    assert!(matches!(unsent, Err(FleetError::Unreachable { .. })), "{unsent:?}");
    assert!(start.elapsed() < Duration::from_millis(3000), "{:?}", start.elapsed());
    node.redis.signal(Signal::CONT).unwrap();
    look(&fleet, &target).await;
    fleet.send(&target, &[Verb::FlushAll]).await.unwrap();
}

/// Passes everything on, until a connection has sent these words: from then on it brings no more
/// answers, and the node does not learn that the other side hung up; as behind a dead link.
pub fn deafened(node: u16, words: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut upstream = TcpStream::connect(("127.0.0.1", node)).unwrap();
            let mut answers = upstream.try_clone().unwrap();
            let mut back = client.try_clone().unwrap();
            let deaf = Arc::new(AtomicBool::new(false));
            let hears = deaf.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 65536];
                while let Ok(count @ 1..) = client.read(&mut buffer) {
                    if buffer[..count].windows(words.len()).any(|part| part == words) {
                        deaf.store(true, Ordering::SeqCst);
                    }
                    upstream.write_all(&buffer[..count]).unwrap();
                }
            });
            std::thread::spawn(move || {
                let mut buffer = [0; 65536];
                while let Ok(count @ 1..) = answers.read(&mut buffer) {
                    if !hears.load(Ordering::SeqCst) {
                        let _ = back.write_all(&buffer[..count]);
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_ambiguous_and_its_connection_is_killed() {
    let node = Node::start(&[]).await;
    let fleet = fleet_with(Timeouts { send: Duration::from_millis(300), ..Timeouts::default() });
    let target = target(&deafened(node.redis.port(), b"CONFIG\r\n$3\r\nSET").to_string());
    // Whose last command was a CONFIG: looks end with one.
    let clients = || {
        let list = node.say(&["CLIENT", "LIST"]);
        let lines = list.lines().filter(|line| line.contains("cmd=config"));
        lines.filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect::<BTreeSet<_>>()
    };
    look(&fleet, &target).await;
    let looking = clients();
    let unsure = fleet.send(&target, &[config_set("maxmemory", "1gb")]).await;
    assert!(matches!(unsure, Err(FleetError::Ambiguous { .. })), "{unsure:?}");
    let sending: BTreeSet<_> = clients().difference(&looking).cloned().collect();
    assert_eq!(sending.len(), 1);
    assert_eq!(look(&fleet, &target).await.memory.max_bytes, 1 << 30, "it ran all the same");
    assert!(sending.is_disjoint(&clients()));
}

fn held(node: &Node, topology: u128, token: i64) -> Target {
    let fence = Fence { topology: TopologyId(uuid::Uuid::from_u128(topology)), token };
    Target { fence: Some(fence), ..node.target() }
}

/// The ids of the connections that somebody sends on, by their names without the topology.
fn holders(node: &Node) -> BTreeSet<(String, String)> {
    let list = node.say(&["CLIENT", "LIST"]);
    let field = |line: &str, name| {
        line.split(' ').find_map(|w| w.strip_prefix(name)).unwrap_or_default().to_owned()
    };
    let lines = list.lines().map(|line| (field(line, "name="), field(line, "id=")));
    let ours =
        lines.filter_map(|(name, id)| Some((name.strip_prefix("reeve:")?[34..].to_owned(), id)));
    ours.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_holder_of_a_lease_ends_the_connections_of_earlier_ones() {
    let node = Node::start(&[]).await;
    let (first, second, bystander) = (fleet(), fleet(), fleet());
    let (one, two, other) = (held(&node, 0x17, 1), held(&node, 0x17, 2), held(&node, 0x18, 1));
    bystander.fence(&other).await.unwrap();
    let bystanders = holders(&node);
    first.send(&one, &[config_set("maxmemory", "1gb")]).await.unwrap();
    assert_eq!(holders(&node).len(), 2);
    second.fence(&two).await.unwrap();
    let after = holders(&node);
    assert_eq!(after.len(), 2, "{after:?}");
    assert!(after.is_superset(&bystanders), "{after:?}");
    assert!(after.iter().any(|(name, _)| name == "17:2"), "{after:?}");

    assert_eq!(code(first.send(&one, &[config_set("maxmemory", "2gb")]).await), "FENCED");
    assert_eq!(code(first.fence(&one).await), "FENCED");
    assert_eq!(look(&first, &node.target()).await.memory.max_bytes, 1 << 30, "looking is free");
    second.send(&two, &[config_set("maxmemory", "3gb")]).await.unwrap();
    bystander.send(&other, &[config_set("timeout", "0")]).await.unwrap();
    assert_eq!(holders(&node), after);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_fence_no_lost_command_runs_any_more() {
    for by_another in [false, true] {
        let mut node = Node::start(&[]).await;
        let times = Timeouts { send: Duration::from_millis(300), ..Timeouts::default() };
        let (first, second) = (fleet_with(times), fleet_with(times));
        let (one, two) = (held(&node, 0x17, 1), held(&node, 0x17, 2));
        let (mut sent, mut lost) = (0, false);
        // Whether the freeze falls before a command is sent or after it is a matter of luck.
        for _ in 0..20 {
            let frozen = async {
                tokio::time::sleep(Duration::from_millis(30)).await;
                node.redis.signal(Signal::STOP).unwrap();
            };
            let sending = async {
                loop {
                    sent += 1;
                    let verb = config_set("maxmemory", &sent.to_string());
                    if let Err(error) = first.send(&one, &[verb]).await {
                        return error;
                    }
                }
            };
            let (_, error) = tokio::join!(frozen, sending);
            lost = matches!(error, FleetError::Ambiguous { .. });
            if lost {
                break;
            }
            node.redis.signal(Signal::CONT).unwrap();
        }
        assert!(lost, "no command was lost");
        let fence = async {
            let (fleet, target) = if by_another { (&second, &two) } else { (&first, &one) };
            assert!(fleet.fence(target).await.is_err(), "nothing is sure while it is frozen");
            node.redis.signal(Signal::CONT).unwrap();
            fleet.fence(target).await.unwrap();
        };
        fence.await;
        let now = node.say(&["CONFIG", "GET", "maxmemory"]);
        assert!(
            now.ends_with(&sent.to_string()) || now.ends_with(&(sent - 1).to_string()),
            "{now}"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(now, node.say(&["CONFIG", "GET", "maxmemory"]));
        assert_eq!(holders(&node).len(), 1);
    }
}

/// Answers every connection with `words`, and then hangs up or stays.
fn stranger(words: &'static [u8], stays: bool) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            std::thread::spawn(move || {
                let (mut socket, mut buffer) = (socket.unwrap(), [0; 4096]);
                if !words.is_empty() {
                    let _ = socket.read(&mut buffer);
                    let _ = socket.write_all(words);
                }
                while stays && matches!(socket.read(&mut buffer), Ok(1..)) {
                    let _ = socket.write_all(words);
                }
            });
        }
    });
    target(&address.to_string())
}

/// More answers than there are questions.
static PONGS: LazyLock<Vec<u8>> = LazyLock::new(|| b"+PONG\r\n".repeat(40));

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_told_within_the_time() {
    let fleet = fleet();
    let strangers = [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], false, "it does not speak Redis' protocol"),
        (b"\xff\xfe\x00junk", true, "it does not speak Redis' protocol"),
        (b"*99999999999\r\n", true, "no answer within 1000 ms"),
        (b"$999999999999\r\nab", true, "no answer within 1000 ms"),
        (b"%9223372036854775807\r\n", true, ""),
        (b"~-5\r\n|3\r\n", true, ""),
        (b"+PONG\r\n", true, "no answer within 800 ms"),
        (&PONGS[..], true, "it does not answer INFO as Redis does"),
        (b"", false, "the connection was closed"),
        (b"", true, "no answer within 1000 ms"),
        (b"-DENIED Redis is running in protected mode\r\n", false, "DENIED"),
        (b"-ERR max number of clients reached\r\n", false, "max number of clients"),
    ];
    let told = strangers.map(async |(words, stays, says)| {
        let target = stranger(words, stays);
        let start = Instant::now();
        let failed = fleet.look(&target, &Ask::default()).await.unwrap_err().to_string();
        let sent = fleet.send(&target, &[Verb::FlushAll]).await.unwrap_err();
        assert!(!matches!(sent, FleetError::Ambiguous { .. }), "{sent}");
        assert!(failed.contains(says), "{failed}");
        assert!(start.elapsed() < Duration::from_millis(4000), "{:?}", start.elapsed());
    });
    join_all(told).await;
    let nowhere = fleet.look(&target("nowhere.invalid:6379"), &Ask::default()).await;
    assert!(matches!(nowhere, Err(FleetError::Unreachable { .. })), "{nowhere:?}");
}
