//! The crash sweep: an operation is carried out once to count its calls to nodes, commands and looks;
//! then once more for each call and each way in which it can go wrong, and each time the world must
//! come out the same.
//!
//! The engine and the database are the real ones; the nodes are simulated, so that a fault can be
//! put exactly where it is wanted and a minute passes in no time. A process that dies is a keeper
//! that is dropped in the middle of its turn; its successor is another instance that takes the lease
//! over, knows nothing, and looks.

mod application;
mod case;
mod check;
mod gate;
mod layers;
mod lone;
mod mistaken;
mod scenario;

use std::collections::BTreeMap;

use reeve::demo::servers::{Folder, Postgres};
use reeve::domain::moving::talk::Saying;
use reeve::domain::node::{Flavor, Version};
use reeve::fleet::sim::{CallFault, CallRecord, LookFault, Sent};
use reeve::store::Store;

use self::case::Case;
pub use self::mistaken::Mistake;
pub use self::scenario::Scenario;
use crate::support::instance::TTL;
use crate::support::repeats;

/// Of many commands of one kind, so many first ones and one of so many others.
const FIRST: u64 = 12;
const NOW_AND_THEN: u64 = 331;

/// Ways in which a command can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    DieBefore,
    DieAfter,
    LoseReply,
    /// It runs while its sender still waits for the answer.
    Late,
    /// It runs a minute later, unless somebody prevents it, and its sender dies meanwhile.
    LateAndDie,
    /// The node freezes with it, and thaws some seconds later.
    Freeze,
    /// The sender freezes before its batch, another takes over and finishes, then it thaws with the
    /// batch on its lips.
    FrozenSender,
    /// Just before it, in the shard that gives slots a replica takes over.
    LoseSource,
    /// The same in the shard that gets them.
    LoseTarget,
}

impl Way {
    pub const ALL: [Self; 7] = [
        Self::DieBefore,
        Self::DieAfter,
        Self::LoseReply,
        Self::Late,
        Self::LateAndDie,
        Self::Freeze,
        Self::FrozenSender,
    ];
    /// What can also happen while slots move.
    pub const MOVING: [Self; 2] = [Self::LoseSource, Self::LoseTarget];

    fn fault(self) -> Option<CallFault> {
        Some(match self {
            Self::DieBefore => CallFault::DieBefore,
            Self::DieAfter => CallFault::DieAfter,
            Self::LoseReply => CallFault::LoseReply,
            Self::Late => CallFault::Late { after_ms: 400 },
            Self::LateAndDie => CallFault::Late { after_ms: 60_000 },
            Self::Freeze => CallFault::Freeze,
            Self::FrozenSender | Self::LoseSource | Self::LoseTarget => return None,
        })
    }
}

/// What goes wrong where: commands and looks are counted apart, from the operation's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Command(u64, Way),
    Look(u64, LookFault),
}

/// What a sweep found.
#[derive(Debug, Default)]
pub struct Findings {
    pub commands: u64,
    pub looks: u64,
    pub cases: usize,
    pub divergences: Vec<String>,
    /// What each command of the undisturbed run was, but for its slot.
    kinds: Vec<String>,
}

pub struct Sweep {
    _folder: Folder,
    _postgres: Postgres,
    store: Store,
    mistake: Option<Mistake>,
    /// Whether it is one primary with two replicas outside of clusters.
    lone: bool,
    /// What the nodes are.
    servers: (Flavor, Version),
    /// How many Sentinels watch it.
    watchers: usize,
    cases: u32,
}

impl Sweep {
    pub async fn new() -> Self {
        let folder = Folder::fresh("reeve-sweep").unwrap();
        let postgres = Postgres::start(&folder.join("postgres")).await.unwrap();
        let store = Store::new(&postgres.url(), TTL).unwrap();
        store.migrate().await.unwrap();
        Self {
            _folder: folder,
            _postgres: postgres,
            store,
            mistake: None,
            lone: false,
            servers: (Flavor::Redis, Version::new(7, 0, 15)),
            watchers: 0,
            cases: 0,
        }
    }

    /// The same with other servers.
    pub async fn of(flavor: Flavor, version: Version) -> Self {
        Self { servers: (flavor, version), ..Self::new().await }
    }

    /// The same of a topology of mode replication.
    pub async fn lone() -> Self {
        Self { lone: true, ..Self::new().await }
    }

    /// The same with Sentinels that watch it.
    pub async fn watched() -> Self {
        Self { watchers: 3, ..Self::lone().await }
    }

    pub async fn with_mistake(mistake: Mistake) -> Self {
        let sweep = Self { mistake: Some(mistake), ..Self::new().await };
        if mistake == Mistake::NoToken {
            sqlx::raw_sql(
                "CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN NEW.token := 1; NEW.expires_at := ''infinity''; RETURN NEW; END';
                 CREATE TRIGGER same BEFORE UPDATE ON leases FOR EACH ROW
                 WHEN (NEW.expires_at <> '-infinity') EXECUTE FUNCTION same()",
            )
            .execute(sweep.store.pool())
            .await
            .unwrap();
        }
        sweep
    }

    /// Sweeps an operation, and fails if any case diverges: with the counts of `make soak` every one of
    /// them, else every `stride`-th, of each way some.
    pub async fn through(mut self, scenario: Scenario, ways: &[Way], stride: usize) {
        let stride = if repeats() > 3 { 1 } else { stride };
        let found = self.run(scenario, ways, true, stride).await;
        println!(
            "sweep of {scenario:?} with {} Sentinels: {} commands, {} looks, {} cases, {} divergences",
            self.watchers,
            found.commands,
            found.looks,
            found.cases,
            found.divergences.len()
        );
        assert!(found.cases > 0 && found.commands > 0, "{found:?}");
        assert!(found.divergences.is_empty(), "{}", found.divergences.join("\n"));
    }

    /// Every command in each of these ways, and every look where `looks`; or every `stride`-th case
    /// of them.
    pub async fn run(
        &mut self,
        scenario: Scenario,
        ways: &[Way],
        looks: bool,
        stride: usize,
    ) -> Findings {
        let mut findings = Findings::default();
        let wrong = Box::pin(self.case(scenario, None, &mut findings)).await;
        if let Some(wrong) = wrong {
            findings.divergences.push(format!("{scenario:?} undisturbed: {wrong}"));
            return findings;
        }
        let command = |index| ways.iter().map(move |way| Fault::Command(index, *way));
        let look = |index| [LookFault::Die, LookFault::Fail].map(|f| Fault::Look(index, f));
        let (rare, usual): (Vec<u64>, Vec<u64>) =
            chosen(&findings.kinds).into_iter().partition(|&index| is_rare(&findings.kinds, index));
        // Of few commands, each counts.
        let step = if findings.commands < 5 { stride.min(3) } else { stride };
        let usual = usual.into_iter().flat_map(command).step_by(step);
        let commands = rare.into_iter().flat_map(command).chain(usual);
        // There are many more looks than commands, and to miss one changes less.
        let looks = (0..findings.looks).filter(|_| looks).flat_map(look);
        let looks = looks.step_by(if stride > 1 { stride * 7 } else { 1 });
        let faults: Vec<Fault> = commands.chain(looks).collect();
        let chosen = Chosen::of_environment();
        for (n, fault) in faults.iter().copied().enumerate() {
            if n > 0 && n.is_multiple_of(200) {
                println!("{scenario:?}: {n} of {} cases", faults.len());
            }
            if !chosen.has(n, fault) {
                // Its number is its own in every run, and so is what it draws.
                self.cases += 1;
                continue;
            }
            findings.cases += 1;
            let mut counted = Findings::default();
            let wrong = Box::pin(self.case(scenario, Some(fault), &mut counted)).await;
            if let Some(wrong) = wrong {
                findings.divergences.push(format!("{scenario:?} {fault:?}: {wrong}"));
                // Of a mistake nothing more is asked than that it shows.
                if self.mistake.is_some() {
                    break;
                }
            }
        }
        findings
    }

    /// One case: what is wrong in the end; counts the operation's calls.
    async fn case(
        &mut self,
        scenario: Scenario,
        fault: Option<Fault>,
        counted: &mut Findings,
    ) -> Option<String> {
        self.cases += 1;
        let mut case =
            Case::new(self.store.clone(), self.cases, self.mistake, self.lone, self.servers);
        case.add_watchers(self.watchers);
        if let Err(wrong) = Box::pin(case.prepare(scenario)).await {
            return Some(format!("preparing it: {wrong}"));
        }
        let commands = case.sim.commands();
        let fault = fault.map(|fault| match fault {
            Fault::Command(index, way) => Fault::Command(commands + index, way),
            look @ Fault::Look(..) => look,
        });
        let done = Box::pin(case.operate(scenario, fault)).await;
        counted.commands = case.sim.commands() - commands;
        counted.looks = case.sim.looks() - case.looks_before;
        if fault.is_none() {
            counted.kinds = case.sim.calls().iter().skip(commands as usize).map(kind).collect();
        }
        let wrong = match done {
            Ok(()) => case.check(scenario).await.err(),
            Err(wrong) => Some(wrong),
        };
        let all = [wrong, case.broken_rules()].into_iter().flatten().reduce(|a, b| a + "\n" + &b);
        let wrong = all.map(|w| format!("{w}\n{}", case.story(commands)));
        case.tidy_up().await;
        wrong
    }
}

/// Which cases are meant, where not all are.
struct Chosen {
    /// To look at one again, as it was told: `REEVE_SWEEP_CASE='Command(9, LoseTarget)'`.
    case: Option<String>,
    /// Whole sweeps may be shared among several runs: `REEVE_SWEEP_PART=1/4`.
    part: Option<(usize, usize)>,
}

impl Chosen {
    fn of_environment() -> Self {
        let part = std::env::var("REEVE_SWEEP_PART").ok().map(|said| {
            let (part, of) = said.split_once('/').expect("a part, and of how many: 1/4");
            (part.parse().unwrap(), of.parse().unwrap())
        });
        Self { case: std::env::var("REEVE_SWEEP_CASE").ok(), part }
    }

    fn has(&self, n: usize, fault: Fault) -> bool {
        self.part.is_none_or(|(part, of)| n % of == part - 1)
            && self.case.as_ref().is_none_or(|case| format!("{fault:?}") == *case)
    }
}

/// A command, but for the slot that it is about.
fn kind(call: &CallRecord) -> String {
    match &call.sent {
        Sent::Saying(Saying::SetSlot { state, .. }) => format!("{} {state:?}", call.node),
        Sent::Saying(Saying::TakeSlots { .. }) => format!("{} takes slots", call.node),
        sent => format!("{} {sent:?}", call.node),
    }
}

/// Whether a command is about functions: of hundreds it is one.
fn is_rare(kinds: &[String], index: u64) -> bool {
    let kind = usize::try_from(index).ok().and_then(|index| kinds.get(index));
    kind.is_some_and(|kind| kind.contains("Functions") || kind.contains("Library"))
}

/// All commands; of many of one kind the first and then one now and then.
fn chosen(kinds: &[String]) -> Vec<u64> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut counts_in = |kind| {
        let count = counts.entry(kind).or_default();
        *count += 1;
        *count <= FIRST || count.is_multiple_of(NOW_AND_THEN)
    };
    let chosen = kinds.iter().zip(0..).filter(|(kind, _)| counts_in(kind.as_str()));
    chosen.map(|(_, index)| index).collect()
}
