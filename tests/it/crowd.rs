//! Many who follow one plan: each sees every event once and in order, and the server stays small.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use reeve::client::sse::{Parser, SseEvent};
use reeve::demo::servers::Signal;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::world::World;
use crate::support::{Dice, until};

const CROWD: usize = 500;
/// What each client is cut off.
const CUTS: usize = 3;

/// A follower that costs as little as one can: a socket, and a parser.
struct Reader {
    socket: TcpStream,
    parser: Parser,
    status: u16,
}

impl Reader {
    /// Asks in HTTP/1.0, so that the answer comes without chunks.
    async fn open(
        server: SocketAddr,
        token: &str,
        path: &str,
        after: Option<i64>,
        buffer: Option<u32>,
    ) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(size) = buffer {
            socket.set_recv_buffer_size(size).unwrap();
        }
        let mut socket = socket.connect(server).await.unwrap();
        let resume = after.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        let request = format!(
            "GET {path} HTTP/1.0\r\nhost: reeve\r\nauthorization: Bearer {token}\r\n{resume}\r\n"
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            assert_eq!(socket.read(&mut byte).await.unwrap(), 1, "{head:?}");
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { socket, parser: Parser::default(), status }
    }

    /// What comes next; none at the end.
    async fn read(&mut self) -> Option<Vec<SseEvent>> {
        let mut bytes = [0; 4096];
        let length = self.socket.read(&mut bytes).await.unwrap();
        (length > 0).then(|| self.parser.push(&bytes[..length]))
    }
}

fn id(event: &SseEvent) -> Option<i64> {
    event.id.as_ref().map(|id| id.parse().unwrap())
}

/// One number of a process from `/proc`, in KiB.
fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

/// A counter of the server's.
async fn counter(world: &World, name: &str) -> u64 {
    let url = format!("{}/metrics", world.server.url());
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    let value = text.lines().find_map(|l| l.strip_prefix(name));
    value.map_or(0, |v| v.trim().parse::<f64>().unwrap() as u64)
}

const TAIL: &str = "reeve_journal_reads_total{by=\"tail\"}";
const REPLAY: &str = "reeve_journal_reads_total{by=\"replay\"}";

fn raise_limit_of_files() {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
}

/// Follows a plan to its end, cut off at random; the ids that it saw.
async fn follow(server: SocketAddr, token: Arc<str>, plan: Arc<str>, seed: u64) -> Vec<i64> {
    let mut dice = Dice::new(seed);
    let path = format!("/v1/plans/{plan}/stream");
    let (mut seen, mut cuts) = (Vec::new(), 0);
    tokio::time::sleep(Duration::from_millis(dice.below(300))).await;
    loop {
        let mut reader = Reader::open(server, &token, &path, seen.last().copied(), None).await;
        match reader.status {
            200 => {}
            204 => return seen,
            // Told to come back: the machine is busy with others.
            503 => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            other => panic!("{other}"),
        }
        let most = if cuts < CUTS { 1 + dice.below(25) as usize } else { usize::MAX };
        cuts += 1;
        let mut came = 0;
        while came < most
            && let Some(events) = reader.read().await
        {
            // What came after the cut did not come.
            for id in events.iter().filter_map(id).take(most - came) {
                came += 1;
                seen.push(id);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_who_are_cut_off_see_each_event_once_and_in_order() {
    raise_limit_of_files();
    let mut world = World::with_nodes(6).await;
    let pid = world.server.pid();
    let plan = world.client.create_topology(&world.cluster("crowd", 3, 1), None).await.unwrap();
    let name: Arc<str> = plan["id"].as_str().unwrap().into();
    // A frozen node spreads the events over some seconds.
    world.nodes[4].signal(Signal::STOP).unwrap();
    let before = memory(pid, "VmRSS:");
    let (tail, replay) = (counter(&world, TAIL).await, counter(&world, REPLAY).await);
    let began = Instant::now();
    let token: Arc<str> = world.server.token().into();
    let crowd: Vec<_> = (0..CROWD)
        .map(|n| {
            let seed = n as u64;
            tokio::spawn(follow(world.server.address(), token.clone(), name.clone(), seed))
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let open = until("the crowd is there", Duration::from_secs(30), async || {
        let open = counter(&world, "reeve_streams").await;
        if open > CROWD as u64 / 2 { Ok(open) } else { Err(format!("{open} streams")) }
    })
    .await;
    // The API answers others meanwhile.
    let asked = Instant::now();
    world.client.get("/v1/topologies").await.unwrap();
    let asked = asked.elapsed();
    world.nodes[4].signal(Signal::CONT).unwrap();
    let all = tokio::time::timeout(Duration::from_secs(120), join_all(crowd)).await.unwrap();
    let took = began.elapsed();
    let peak = memory(pid, "VmHWM:");
    let tail = counter(&world, TAIL).await - tail;
    let replay = counter(&world, REPLAY).await - replay;

    let page = world.client.get(&format!("/v1/events?plan={name}&limit=200")).await.unwrap();
    let journal: Vec<i64> =
        page["items"].as_array().unwrap().iter().map(|e| e["id"].as_i64().unwrap()).collect();
    println!(
        "{CROWD} followers ({open} streams at once), {} events, {took:.1?}: {tail} reads of the tail, {replay} replays, another request took {asked:.1?}, memory {before} KiB before and {peak} KiB at most",
        journal.len()
    );
    for seen in all {
        assert_eq!(seen.unwrap(), journal);
    }
    assert!(replay <= (CROWD * (CUTS + 2)) as u64, "{replay} replays");
    assert!(peak < before + 200 * 1024, "from {before} KiB to {peak} KiB");
    until("nobody is left", Duration::from_secs(10), async || {
        match counter(&world, "reeve_streams").await {
            0 => Ok(()),
            some => Err(format!("{some} streams are open")),
        }
    })
    .await;
}

/// Reads from a stream until the event with this id.
async fn read_up_to(reader: &mut Reader, last: i64) -> Vec<i64> {
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        let events = reader.read().await.expect("the stream goes on");
        seen.extend(events.iter().filter_map(id));
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_costs_one_read_however_many_follow_and_who_reads_nothing_harms_nobody() {
    raise_limit_of_files();
    let world = World::new().await;
    let pid = world.server.pid();
    let (server, token) = (world.server.address(), world.server.token().to_owned());
    let mut db = PgConnection::connect(&world.postgres.url()).await.unwrap();
    let mut write = async |count: i64, size: i32| -> i64 {
        // As the store writes them: ids under the lock, at the end.
        let mut tx = db.begin().await.unwrap();
        sqlx::query("SELECT pg_advisory_xact_lock(7380)").execute(&mut *tx).await.unwrap();
        sqlx::query(
            "INSERT INTO events (id, type, at, data)
             SELECT nextval('event_ids'), 'node.up', now(), jsonb_build_object('x', repeat('x', $2))
             FROM generate_series(1, $1)",
        )
        .bind(count)
        .bind(size)
        .execute(&mut *tx)
        .await
        .unwrap();
        sqlx::query("SELECT pg_notify('reeve_events', '')").execute(&mut *tx).await.unwrap();
        let last: i64 =
            sqlx::query_scalar("SELECT max(id) FROM events").fetch_one(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        last
    };
    let path = "/v1/events/stream";
    for crowd in [1, CROWD] {
        let open = (0..crowd).map(|_| Reader::open(server, &token, path, None, None));
        let mut readers = join_all(open).await;
        assert!(readers.iter().all(|r| r.status == 200));
        let (tail, replay) = (counter(&world, TAIL).await, counter(&world, REPLAY).await);
        let (began, events) = (Instant::now(), 50);
        let mut delays = Duration::ZERO;
        for _ in 0..events {
            let wrote = Instant::now();
            let last = write(1, 100).await;
            let seen = join_all(readers.iter_mut().map(|r| read_up_to(r, last))).await;
            assert!(seen.iter().all(|s| s == &[last]));
            delays += wrote.elapsed();
        }
        let tail = counter(&world, TAIL).await - tail;
        let replay = counter(&world, REPLAY).await - replay;
        println!(
            "{crowd} followers, {events} events one by one: {tail} reads of the tail, {replay} replays, {:.1?} from the write until all have it",
            delays / events
        );
        // One for each event, and one for each second in which nothing came.
        let seconds = began.elapsed().as_secs() + 2;
        assert!(tail <= u64::from(events) + seconds, "{tail} reads");
        assert_eq!(replay, 0);
    }

    // Far more than a socket holds, for one who reads, one who is slow, and some who do not read.
    let mut reader = Reader::open(server, &token, path, None, None).await;
    let mut slow = Reader::open(server, &token, path, None, Some(4096)).await;
    let open = (0..20).map(|_| Reader::open(server, &token, path, None, Some(4096)));
    let stuck = join_all(open).await;
    let before = memory(pid, "VmRSS:");
    let began = Instant::now();
    let (mut last, mut seen) = (0, Vec::new());
    for _ in 0..20 {
        last = write(200, 4000).await;
        seen.extend(read_up_to(&mut reader, last).await);
    }
    let took = began.elapsed();
    assert_eq!(seen.len(), 4000);
    assert!(seen.windows(2).all(|w| w[0] < w[1]), "in order, none twice");
    let lagged = tokio::time::timeout(Duration::from_secs(30), read_up_to(&mut slow, last));
    assert_eq!(lagged.await.unwrap(), seen, "who is slow loses nothing");
    let after = memory(pid, "VmRSS:");
    println!(
        "4000 events of 4 KiB in {took:.1?} past 20 who read nothing: memory {before} KiB before and {after} KiB after"
    );
    assert!(after < before + 100 * 1024, "from {before} KiB to {after} KiB");
    drop(stuck);
}
