//! The crash sweep: an operation is carried out once to count its calls to nodes, commands and looks;
//! then once more for each call and each way in which it can go wrong, and each time the world must
//! come out the same.
//!
//! The engine and the database are the real ones; the nodes are simulated, so that a fault can be
//! put exactly where it is wanted and a minute passes in no time. A process that dies is a keeper
//! that is dropped in the middle of its turn; its successor is another instance that takes the lease
//! over, knows nothing, and looks.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

use reeve::clock;
use reeve::demo::servers::{Folder, Postgres};
use reeve::domain::hazard::Ceiling;
use reeve::domain::id::{InstanceId, PlanId, TopologyId};
use reeve::domain::intent::{self, Intent};
use reeve::domain::moving::talk::{Answer, Saying};
use reeve::domain::node::{Address, Labels};
use reeve::domain::observation::{MarkKind, Observation, Report, Sighting};
use reeve::domain::plan::{Plan, PlanState};
use reeve::domain::planner;
use reeve::domain::policy::Policy;
use reeve::domain::receiver::Allowed;
use reeve::domain::slot::{SLOTS, key_slot};
use reeve::domain::spec::{ClusterSpec, NodeSpec, Spec};
use reeve::domain::step::command::Verb;
use reeve::engine::courier::Caller;
use reeve::engine::desk::{CreateRequest, PlanOptions};
use reeve::engine::keeper::{KeepError, Keeper};
use reeve::engine::lease::Lease;
use reeve::engine::{Engine, Options};
use reeve::fleet::sim::{CallFault, CallOutcome, LookFault, SimFleet, SimOptions};
use reeve::fleet::{Ask, Fleet, FleetError, Talk, Target};
use reeve::store::leases::Instance;
use reeve::store::{Store, StoreError};

/// A lease that no case outlives; who dies has it expire.
const TTL: Duration = Duration::from_secs(600);
/// Turns until a case is given up.
const TURNS: usize = 800;
/// After the end, so long that whatever was late has come.
const AFTERWARDS_MS: u64 = 180_000;

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

    fn fault(self) -> Option<CallFault> {
        Some(match self {
            Self::DieBefore => CallFault::DieBefore,
            Self::DieAfter => CallFault::DieAfter,
            Self::LoseReply => CallFault::LoseReply,
            Self::Late => CallFault::Late { after_ms: 400 },
            Self::LateAndDie => CallFault::Late { after_ms: 60_000 },
            Self::Freeze => CallFault::Freeze,
            Self::FrozenSender => return None,
        })
    }
}

/// What goes wrong where: commands and looks are counted apart, from the operation's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Command(u64, Way),
    Look(u64, LookFault),
}

/// What is carried out, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// A cluster on blank nodes.
    Create,
    /// A cluster with keys goes.
    Dissolve,
    /// A dissolve that was cancelled when some nodes were blank is gone back from.
    Revert,
    /// A replica becomes the primary of its shard.
    Failover,
    /// A blank node becomes one more replica.
    AddReplica,
    /// A shard's only replica goes.
    RemoveReplica,
    /// A blank node comes in the place of a primary.
    ReplaceNode,
    /// The zone with most primaries is drained.
    Drain,
    /// Another spec: two blank nodes come in the place of a primary and of another shard's replica.
    ReplaceSpec,
    /// Some slots with keys, and some without, go from one shard to another.
    Reshard,
}

/// A mistake that is made on purpose, to see that the sweep finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// Nodes are taken for fenced that are not.
    NoFence,
    /// Looks show what was there before the last command.
    StaleLooks,
    /// Marks are not in the database yet when their commands go out.
    LateMarks,
    /// The database lets every holder of a lease write, whoever came after it.
    NoToken,
}

/// What a sweep found.
#[derive(Debug, Default)]
pub struct Findings {
    pub commands: u64,
    pub looks: u64,
    pub cases: usize,
    pub divergences: Vec<String>,
}

pub struct Sweep {
    _folder: Folder,
    _postgres: Postgres,
    store: Store,
    mistake: Option<Mistake>,
    cases: u32,
}

impl Sweep {
    pub async fn new() -> Self {
        let folder = Folder::fresh("reeve-sweep").unwrap();
        let postgres = Postgres::start(&folder.join("postgres")).await.unwrap();
        let store = Store::new(&postgres.url(), TTL).unwrap();
        store.migrate().await.unwrap();
        Self { _folder: folder, _postgres: postgres, store, mistake: None, cases: 0 }
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
        let commands = (0..findings.commands).flat_map(command);
        // Of few commands, each counts.
        let commands = commands.step_by(if findings.commands < 5 { stride.min(3) } else { stride });
        // There are many more looks than commands, and to miss one changes less.
        let looks = (0..findings.looks).filter(|_| looks).flat_map(look);
        let looks = looks.step_by(if stride > 1 { stride * 7 } else { 1 });
        let faults: Vec<Fault> = commands.chain(looks).collect();
        for fault in faults {
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
        let mut case = Case::new(self.store.clone(), self.cases, self.mistake);
        if let Err(wrong) = case.prepare(scenario).await {
            return Some(format!("preparing it: {wrong}"));
        }
        let commands = case.sim.calls().len() as u64;
        let fault = fault.map(|fault| match fault {
            Fault::Command(index, way) => Fault::Command(commands + index, way),
            look @ Fault::Look(..) => look,
        });
        let done = Box::pin(case.operate(scenario, fault)).await;
        counted.commands = case.sim.calls().len() as u64 - commands;
        counted.looks = case.sim.looks() - case.looks_before;
        let wrong = match done {
            Ok(()) => case.check(scenario).await.err(),
            Err(wrong) => Some(wrong),
        };
        let wrong = wrong.map(|w| format!("{w}\n{}", case.story(commands)));
        case.tidy_up().await;
        wrong
    }
}

struct Case {
    store: Store,
    sim: Arc<SimFleet>,
    engine: Arc<Engine>,
    keeper: Option<Keeper>,
    name: String,
    topology: Option<TopologyId>,
    plan: Option<PlanId>,
    nodes: Vec<Address>,
    /// The zones that they are in, in turn.
    zones: &'static [&'static str],
    /// A blank node that the cluster does not know at first.
    guest: Address,
    /// Another one.
    second: Address,
    /// Who is to leave.
    leavers: BTreeSet<Address>,
    keys: BTreeSet<String>,
    mistake: Option<Mistake>,
    /// Looks that were there before the operation was handed in.
    looks_before: u64,
    /// When the turn in hand began, by the database's clock.
    turn_began: Option<chrono::DateTime<chrono::Utc>>,
}

impl Case {
    fn new(store: Store, number: u32, mistake: Option<Mistake>) -> Self {
        let sim = SimFleet::new(u64::from(number % 7));
        let host = format!("10.{}.{}", number / 250 % 250, number % 250);
        let address = |i: usize| format!("{host}.{}:7000", i + 1).parse::<Address>().unwrap();
        let nodes: Vec<Address> = (0..6).map(address).collect();
        let (guest, second) = (address(6), address(7));
        for node in nodes.iter().chain([&guest, &second]) {
            sim.add_node(node, &options_of_nodes());
        }
        let engine = engine(&store, &sim, mistake);
        Self {
            store,
            sim,
            engine,
            keeper: None,
            name: format!("case-{number}"),
            topology: None,
            plan: None,
            nodes,
            zones: &["a", "b", "c"],
            guest,
            second,
            leavers: BTreeSet::new(),
            keys: BTreeSet::new(),
            mistake,
            looks_before: 0,
            turn_began: None,
        }
    }

    fn spec(&self) -> Spec {
        let node = |(i, address): (usize, &Address)| NodeSpec {
            address: address.clone(),
            zone: self.zones[i % self.zones.len()].to_owned(),
            host: None,
        };
        Spec::Cluster(ClusterSpec {
            shards: 3,
            replicas_per_shard: 1,
            nodes: self.nodes.iter().enumerate().map(node).collect(),
            credentials: Default::default(),
            tls: None,
            placement: Default::default(),
            settings: Default::default(),
            failover: Default::default(),
            overrides: Default::default(),
        })
    }

    /// Brings the world to where the operation begins.
    async fn prepare(&mut self, scenario: Scenario) -> Result<(), String> {
        if scenario == Scenario::Create {
            return Ok(());
        }
        if scenario == Scenario::Drain {
            // Of three primaries two are in one of them.
            self.zones = &["a", "b"];
        }
        self.create().await?;
        self.drive(None).await?;
        for i in 0..60 {
            let key = format!("key-{i}");
            self.sim.put(&key)?;
            self.keys.insert(key);
        }
        self.sim.advance(5000);
        if scenario == Scenario::Revert {
            self.submit(Scenario::Dissolve).await?;
            // Replicas go first, in one round; then the primaries would.
            let begun = self.sim.calls().len();
            while self.sim.calls().len() < begun + 3 {
                self.turn().await?;
            }
            let plan = self.plan.ok_or("no plan")?;
            self.engine.cancel_plan(plan, "sweep").await.map_err(told)?;
            self.drive_until(None, PlanState::Cancelled).await?;
        }
        Ok(())
    }

    /// Hands the operation in, and sees it through whatever happens to it.
    async fn operate(&mut self, scenario: Scenario, fault: Option<Fault>) -> Result<(), String> {
        match scenario {
            Scenario::Create => self.create().await?,
            Scenario::Dissolve
            | Scenario::Revert
            | Scenario::Failover
            | Scenario::AddReplica
            | Scenario::RemoveReplica
            | Scenario::ReplaceNode
            | Scenario::Drain
            | Scenario::ReplaceSpec
            | Scenario::Reshard => self.submit(scenario).await?,
        }
        // A look that fails for the request itself refuses it, and that was all.
        self.looks_before = self.sim.looks();
        match fault {
            Some(Fault::Command(index, way)) => {
                if let Some(fault) = way.fault() {
                    self.sim.fault_at(index, fault);
                }
            }
            Some(Fault::Look(index, fault)) => {
                self.sim.look_fault_at(self.looks_before + index, fault);
            }
            None => {}
        }
        match fault {
            Some(Fault::Command(index, Way::FrozenSender)) => {
                Box::pin(self.drive_past_a_frozen_one(index)).await
            }
            Some(_) | None => self.drive(fault).await,
        }
    }

    /// A keeper is held up when the command with that index comes up; another finishes; then the
    /// first goes on from there.
    async fn drive_past_a_frozen_one(&mut self, index: u64) -> Result<(), String> {
        let gate = Arc::new(Gate::new(self.sim.clone(), index));
        // Whoever prepared this makes room.
        self.keeper = None;
        self.expire().await;
        let held_up = engine_on(&self.store, gate.clone());
        let mut old = keeper(&held_up, &self.store).await?;
        let frozen = loop {
            let turn = old.turn();
            let mut turn = Box::pin(turn);
            let ended = tokio::select! {
                biased;
                () = gate.reached.notified() => None,
                ended = &mut turn => Some(ended),
            };
            match ended {
                None => break turn,
                Some(Ok(Some(pause))) => {
                    self.sim.advance(pause.as_millis().min(250) as u64);
                }
                Some(Ok(None)) => return Ok(()),
                Some(Err(KeepError::Store(StoreError::Moved(_)))) => {}
                Some(Err(error)) => return Err(format!("a turn failed: {}", told(error))),
            }
            if self.plan().await?.state.is_final() {
                return Ok(());
            }
        };
        self.sim = self.sim.another_process(1);
        self.expire().await;
        self.engine = engine(&self.store, &self.sim, self.mistake);
        self.drive(None).await?;
        let before = self.journal().await?;
        gate.open.notify_one();
        let thawed = tokio::time::timeout(Duration::from_secs(20), frozen).await;
        ensure(thawed.is_ok(), || "the thawed one hangs".to_owned())?;
        for _ in 0..3 {
            let _ = old.turn().await;
        }
        let after = self.journal().await?;
        ensure(before == after, || format!("the thawed one wrote: {:?}", after.get(before.len()..)))
    }

    /// The lease runs out.
    async fn expire(&self) {
        sqlx::query("UPDATE leases SET expires_at = '-infinity' WHERE topology_id = $1")
            .bind(self.topology.unwrap().0)
            .execute(self.store.pool())
            .await
            .unwrap();
    }

    async fn journal(&self) -> Result<Vec<(i64, String)>, String> {
        sqlx::query_as("SELECT id, type FROM events ORDER BY id")
            .fetch_all(self.store.pool())
            .await
            .map_err(told)
    }

    async fn create(&mut self) -> Result<(), String> {
        let request = CreateRequest {
            name: self.name.clone(),
            labels: Labels::new(),
            spec: self.spec(),
            reset_nodes: false,
            options: options(BTreeSet::new()),
        };
        let plan = self.engine.create(&request, "sweep").await.map_err(told)?;
        self.topology = Some(plan.topology_id);
        self.plan = Some(plan.id);
        Ok(())
    }

    async fn submit(&mut self, scenario: Scenario) -> Result<(), String> {
        let intent = match scenario {
            Scenario::Create => return Err("a create is not submitted".to_owned()),
            Scenario::Dissolve => Intent::Dissolve(Default::default()),
            Scenario::Revert => Intent::Revert(intent::RevertIntent { version: 1 }),
            Scenario::Failover => Intent::Failover(intent::FailoverIntent {
                shard: Some("0".to_owned()),
                ..Default::default()
            }),
            Scenario::AddReplica => Intent::AddReplica(intent::AddReplicaIntent {
                shard: None,
                node: Some(self.guest_choice()),
            }),
            Scenario::RemoveReplica => {
                let node = self.first(false)?;
                self.leavers.insert(node.clone());
                Intent::RemoveReplica(intent::RemoveReplicaIntent { node })
            }
            Scenario::ReplaceNode => {
                let node = self.first(true)?;
                self.leavers.insert(node.clone());
                let with = self.guest_choice();
                Intent::ReplaceNode(intent::ReplaceNodeIntent { node, with })
            }
            Scenario::Drain => {
                let primaries = |zone: &&&str| {
                    let leads = |n: &&Address| self.sim.inspect(n).is_some_and(|i| i.primary);
                    self.nodes.iter().filter(leads).filter(|n| self.zone(n) == **zone).count()
                };
                let zone = self.zones.iter().max_by_key(primaries).map(|z| (*z).to_owned());
                Intent::Drain(intent::DrainIntent { zone, node: None })
            }
            Scenario::ReplaceSpec => self.replace_two().await?,
            Scenario::Reshard => {
                // Each slot is several commands.
                let slots = self.keys.iter().map(|key| key_slot(key.as_bytes()));
                let full = slots.filter(|slot| *slot < SLOTS / 3).take(4);
                let slots = Some(full.chain(0..4).collect());
                let (from, to) = ("0".to_owned(), "1".to_owned());
                let moves = vec![intent::reshard::SlotMove { from, to, slots, count: None }];
                Intent::Reshard(intent::reshard::ReshardIntent { moves, max_latency_ms: None })
            }
        };
        let flushes = self.nodes.iter().map(|n| format!("flush:{n}")).collect();
        let submitted = self.engine.submit(&self.name, &intent, &options(flushes), "sweep").await;
        self.plan = Some(submitted.map_err(told)?.id);
        Ok(())
    }

    /// The zone of a node.
    fn zone(&self, node: &Address) -> String {
        let spec = self.spec();
        let found = spec.nodes().iter().find(|n| n.address == *node);
        found.map(|n| n.zone.clone()).unwrap_or_default()
    }

    async fn replace_two(&mut self) -> Result<Intent, String> {
        let stored = self.store.topology(&self.name).await.map_err(told)?;
        let primary = self.first(true)?;
        let shards = stored.wanted.layout.shards();
        let other = shards.iter().find(|(shard, _)| !shard.members.contains(&primary));
        let members = other.map(|(shard, _)| shard.members.clone()).ok_or("no other shard")?;
        let is_replica = |n: &&Address| self.sim.inspect(n).is_some_and(|i| !i.primary);
        let replica = members.iter().find(is_replica).cloned().ok_or("no replica")?;
        let Spec::Cluster(mut spec) = stored.wanted.spec else { return Err("no cluster".into()) };
        for (old, new) in [(&primary, &self.guest), (&replica, &self.second)] {
            for node in spec.nodes.iter_mut().filter(|n| n.address == *old) {
                node.address = new.clone();
            }
        }
        self.leavers = [primary, replica].into();
        let spec = Box::new(Spec::Cluster(spec));
        Ok(Intent::ReplaceSpec(intent::ReplaceSpecIntent { spec }))
    }

    fn guest_choice(&self) -> intent::NodeChoice {
        let address = self.guest.clone();
        intent::NodeChoice::New(NodeSpec { address, zone: "d".to_owned(), host: None })
    }

    /// The first node that is a primary, or a replica.
    fn first(&self, primary: bool) -> Result<Address, String> {
        let is = |n: &&Address| self.sim.inspect(n).is_some_and(|i| i.primary == primary);
        self.nodes.iter().find(is).cloned().ok_or_else(|| "no such node".to_owned())
    }

    async fn drive(&mut self, fault: Option<Fault>) -> Result<(), String> {
        self.drive_until(fault, PlanState::Succeeded).await
    }

    /// Turn after turn until the plan has ended; a dead process is followed by another.
    async fn drive_until(&mut self, fault: Option<Fault>, wanted: PlanState) -> Result<(), String> {
        let mut frozen_since = None;
        for _ in 0..TURNS {
            let plan = self.plan().await?;
            if plan.state.is_final() {
                let said = format!("it {} ({:?})", plan.state, plan.error);
                return if plan.state == wanted { Ok(()) } else { Err(said) };
            }
            if plan.state == PlanState::Paused && plan.requested.is_none() {
                return Err(format!("it paused ({:?}): {:?}", plan.waiting_for, plan.warnings));
            }
            self.turn().await?;
            let calls = self.sim.calls();
            match fault {
                Some(Fault::Command(index, Way::LateAndDie)) => {
                    let record = calls.get(usize::try_from(index).unwrap_or(0));
                    if record.is_some_and(|r| r.outcome == CallOutcome::Late) {
                        self.die().await;
                    }
                }
                Some(Fault::Command(index, Way::Freeze)) => {
                    let record = calls.get(usize::try_from(index).unwrap_or(0));
                    if let Some(record) = record.filter(|r| r.outcome == CallOutcome::Late) {
                        let since = *frozen_since.get_or_insert(self.sim.now_ms());
                        if self.sim.now_ms() - since > 4000 {
                            self.sim.thaw(&record.node.clone());
                        }
                    }
                }
                Some(_) | None => {}
            }
        }
        Err(format!("it did not end within {TURNS} turns: {:?}", self.plan().await?.waiting_for))
    }

    async fn plan(&self) -> Result<Plan, String> {
        let plan = self.plan.ok_or("no plan")?;
        self.store.plan(plan).await.map_err(told)
    }

    /// One turn of the keeper, or of the one that follows a keeper that dies in it.
    async fn turn(&mut self) -> Result<(), String> {
        let mut deaths = self.sim.died();
        deaths.mark_unchanged();
        if self.mistake == Some(Mistake::LateMarks) {
            let now = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(self.store.pool());
            self.turn_began = Some(now.await.map_err(told)?);
        }
        let keeper = match &mut self.keeper {
            Some(keeper) => keeper,
            none => none.insert(keeper(&self.engine, &self.store).await?),
        };
        let turned = tokio::select! {
            biased;
            turned = keeper.turn() => turned,
            _ = deaths.changed() => {
                self.die().await;
                return Ok(());
            }
        };
        match turned {
            Ok(Some(pause)) => {
                // Those who poll let time pass.
                self.sim.advance(pause.as_millis().min(250) as u64);
                if !pause.is_zero() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(KeepError::Store(StoreError::Moved(_))) => Ok(()),
            Err(error) => Err(format!("a turn failed: {}", told(error))),
        }
    }

    /// The process ends; the lease runs out; another instance comes.
    async fn die(&mut self) {
        self.keeper = None;
        self.sim.process_restart();
        if let Some(began) = self.turn_began {
            // Whoever dies before it wrote them leaves no marks.
            sqlx::query("DELETE FROM marks WHERE created_at >= $1")
                .bind(began)
                .execute(self.store.pool())
                .await
                .unwrap();
        }
        self.expire().await;
        self.engine = engine(&self.store, &self.sim, self.mistake);
    }

    /// What must hold in the end, also when whatever was late has come.
    async fn check(&mut self, scenario: Scenario) -> Result<(), String> {
        // One that was never reached must not meet those who check.
        self.sim.no_more_faults();
        self.sim.advance(AFTERWARDS_MS);
        let plan = self.plan().await?;
        let topology = self.topology.ok_or("no topology")?;
        let mut marks = self.store.marks(topology).await.map_err(told)?;
        // A shard rests longer than its plan; the watch forgets it when that is over.
        marks.retain(|m| !matches!(m.what, MarkKind::Hold(_)));
        ensure(marks.is_empty(), || format!("marks are left: {marks:?}"))?;
        self.check_journal(&plan).await?;
        let touched = self.sim.touched();
        let guests: &[&Address] = match scenario {
            Scenario::AddReplica | Scenario::ReplaceNode => &[&self.guest],
            Scenario::ReplaceSpec => &[&self.guest, &self.second],
            Scenario::Create
            | Scenario::Dissolve
            | Scenario::Revert
            | Scenario::Failover
            | Scenario::RemoveReplica
            | Scenario::Reshard
            | Scenario::Drain => &[],
        };
        let members: BTreeSet<Address> =
            self.nodes.iter().chain(guests.iter().copied()).cloned().collect();
        ensure(touched.is_subset(&members), || format!("touched {touched:?}"))?;
        let blank = options_of_nodes();
        let fresh = SimFleet::new(0);
        fresh.add_node(&self.nodes[0], &blank);
        let original = fresh.inspect(&self.nodes[0]).ok_or("no such node")?.settings;
        for node in &members {
            let now = self.sim.inspect(node).ok_or("no such node")?;
            for name in ["cluster-node-timeout", "repl-diskless-sync-delay"] {
                let (is, was) = (now.settings.get(name), original.get(name));
                ensure(is == was, || format!("{name} of {node} is {is:?}, was {was:?}"))?;
            }
            if scenario == Scenario::Dissolve || self.leavers.contains(node) {
                let blank = now.keys.is_empty() && now.slots.is_empty() && now.knows.is_empty();
                ensure(blank && now.primary, || format!("{node} is not blank: {now:?}"))?;
            }
        }
        match scenario {
            Scenario::Dissolve => Ok(()),
            Scenario::Create
            | Scenario::Revert
            | Scenario::Failover
            | Scenario::AddReplica
            | Scenario::RemoveReplica
            | Scenario::ReplaceNode
            | Scenario::Reshard
            | Scenario::ReplaceSpec => self.check_cluster(topology).await,
            Scenario::Drain => {
                self.check_drained().await?;
                self.check_cluster(topology).await
            }
        }
    }

    /// What is drained serves nothing.
    async fn check_drained(&self) -> Result<(), String> {
        let stored = self.store.topology(&self.name).await.map_err(told)?;
        let Spec::Cluster(spec) = stored.wanted.spec else { return Err("no cluster".into()) };
        ensure(spec.overrides.drained.len() == 3, || format!("{:?}", spec.overrides))?;
        for node in &spec.overrides.drained {
            let now = self.sim.inspect(node).ok_or("no such node")?;
            ensure(!now.primary && now.slots.is_empty(), || format!("{node} serves: {now:?}"))?;
        }
        Ok(())
    }

    async fn check_journal(&self, plan: &Plan) -> Result<(), String> {
        let rows: Vec<(String, i64)> =
            sqlx::query_as("SELECT type, seq FROM events WHERE topology_id = $1 ORDER BY id")
                .bind(plan.topology_id.0)
                .fetch_all(self.store.pool())
                .await
                .map_err(told)?;
        for (i, (_, seq)) in rows.iter().enumerate() {
            ensure(*seq == i as i64 + 1, || format!("seq {seq} at place {}", i + 1))?;
        }
        let ends: Vec<String> = sqlx::query_scalar(
            "SELECT type FROM events WHERE plan_id = $1 AND type IN
             ('plan.succeeded', 'plan.failed', 'plan.cancelled', 'plan.superseded')",
        )
        .bind(plan.id.0)
        .fetch_all(self.store.pool())
        .await
        .map_err(told)?;
        ensure(ends.len() == 1, || format!("the plan ended as {ends:?}"))
    }

    async fn check_cluster(&self, topology: TopologyId) -> Result<(), String> {
        let stored = self.store.topology_by_id(topology).await.map_err(told)?;
        let wanted = stored.ok_or("the topology is gone")?.wanted;
        let mut seen = Observation::default();
        for node in self.nodes.iter().chain([&self.guest, &self.second]) {
            let target =
                Target { address: node.clone(), login: None, replication: None, fence: None };
            let report = self.sim.look(&target, &Ask::default()).await.map_err(told)?;
            seen.nodes.insert(node.clone(), Sighting::Seen(Box::new(report)));
        }
        let left =
            planner::unsettled(&wanted, &BTreeSet::new(), &BTreeSet::new(), &seen, &policy());
        ensure(left.is_empty(), || format!("it is not settled: {left:?}"))?;
        let keys = self.sim.surviving_keys();
        let lost: Vec<_> = self.keys.difference(&keys).collect();
        ensure(lost.is_empty(), || format!("{} keys are lost: {lost:?}", lost.len()))
    }

    /// What was sent, for whoever has to find out why.
    fn story(&self, from: u64) -> String {
        let mut story = String::new();
        for call in self.sim.calls().iter().skip(usize::try_from(from).unwrap_or(0)) {
            let index = call.index - from;
            let _ = writeln!(
                story,
                "    {index} at {} ms to {}: {:?}: {:?}",
                call.at_ms, call.node, call.sent, call.outcome
            );
        }
        story
    }

    async fn tidy_up(self) {
        sqlx::raw_sql(
            "TRUNCATE events, plans, steps, plan_shapes, marks, leases, observations,
             topology_nodes, topology_versions, topologies, nodes CASCADE",
        )
        .execute(self.store.pool())
        .await
        .unwrap();
    }
}

async fn keeper(engine: &Arc<Engine>, store: &Store) -> Result<Keeper, String> {
    let taken = store.take(engine.me.id, 1, TTL).await.map_err(told)?;
    let held = *taken.first().ok_or("no lease to take")?;
    let lease = Arc::new(Lease::new(held, Instant::now(), TTL));
    Ok(Keeper::new(engine.clone(), lease))
}

/// An error with what caused it.
fn told(error: impl std::error::Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(told, ": {error}");
        cause = error.source();
    }
    told
}

/// A shard rests for four times the node timeout after a failover, and every poll of that is a turn.
fn options_of_nodes() -> SimOptions {
    SimOptions::default().with("cluster-node-timeout", "5000")
}

fn policy() -> Policy {
    Policy { backoff_base_ms: 1, ..Policy::default() }
}

fn engine(store: &Store, sim: &Arc<SimFleet>, mistake: Option<Mistake>) -> Arc<Engine> {
    let fleet: Arc<dyn Fleet> = match mistake {
        Some(mistake) => Arc::new(mistaken::Mistaken::new(sim.clone(), mistake)),
        None => sim.clone(),
    };
    engine_on(store, fleet)
}

fn engine_on(store: &Store, fleet: Arc<dyn Fleet>) -> Arc<Engine> {
    let me = Instance {
        id: InstanceId(clock::new_id()),
        host: "sweep".to_owned(),
        pid: 1,
        listen: "-".to_owned(),
        version: "-".to_owned(),
    };
    let options = Options {
        me,
        policy: policy(),
        watch_interval: Duration::from_millis(250),
        lease_ttl: TTL,
        commands_within: Duration::from_secs(1),
        secret_key: None,
        caller: Caller::new(Allowed::default()).unwrap(),
    };
    Engine::new(store.clone(), fleet, options)
}

fn options(accept: BTreeSet<String>) -> PlanOptions {
    PlanOptions {
        start: true,
        accept_hazard: Ceiling::Outage,
        accept,
        expect_fingerprint: None,
        supersede: false,
        reason: None,
    }
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// A fleet that holds its caller up, once, when a certain command is about to be sent.
struct Gate {
    sim: Arc<SimFleet>,
    index: u64,
    pub reached: tokio::sync::Notify,
    pub open: tokio::sync::Notify,
    used: std::sync::atomic::AtomicBool,
}

impl Gate {
    fn new(sim: Arc<SimFleet>, index: u64) -> Self {
        let (reached, open, used) = Default::default();
        Self { sim, index, reached, open, used }
    }
}

impl Fleet for Gate {
    fn look<'a>(
        &'a self,
        target: &'a Target,
        ask: &'a Ask,
    ) -> BoxFuture<'a, Result<Report, FleetError>> {
        self.sim.look(target, ask)
    }

    fn knock<'a>(&'a self, node: &'a Address, port: u16) -> BoxFuture<'a, Result<(), FleetError>> {
        self.sim.knock(node, port)
    }

    fn fence<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), FleetError>> {
        self.sim.fence(target)
    }

    fn send<'a>(
        &'a self,
        target: &'a Target,
        verbs: &'a [Verb],
    ) -> BoxFuture<'a, Result<(), FleetError>> {
        Box::pin(async move {
            let next = self.sim.calls().len() as u64;
            let due = next + verbs.len() as u64 > self.index;
            if due && !self.used.swap(true, std::sync::atomic::Ordering::Relaxed) {
                self.reached.notify_one();
                self.open.notified().await;
            }
            self.sim.send(target, verbs).await
        })
    }

    fn converse<'a>(
        &'a self,
        talk: &'a Talk<'a>,
        sayings: &'a [Saying],
    ) -> BoxFuture<'a, Result<Vec<Answer>, FleetError>> {
        self.sim.converse(talk, sayings)
    }
}

mod mistaken {
    //! An adapter that is wrong in one way.

    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use futures::future::BoxFuture;
    use reeve::domain::moving::talk::{Answer, Saying};
    use reeve::domain::node::Address;
    use reeve::domain::observation::Report;
    use reeve::domain::step::command::Verb;
    use reeve::fleet::sim::SimFleet;
    use reeve::fleet::{Ask, Fleet, FleetError, Talk, Target};

    use super::Mistake;

    pub struct Mistaken {
        sim: Arc<SimFleet>,
        mistake: Mistake,
        before: Mutex<BTreeMap<Address, Report>>,
    }

    impl Mistaken {
        pub fn new(sim: Arc<SimFleet>, mistake: Mistake) -> Self {
            Self { sim, mistake, before: Mutex::default() }
        }
    }

    impl Fleet for Mistaken {
        fn look<'a>(
            &'a self,
            target: &'a Target,
            ask: &'a Ask,
        ) -> BoxFuture<'a, Result<Report, FleetError>> {
            Box::pin(async move {
                let now = self.sim.look(target, ask).await?;
                if self.mistake != Mistake::StaleLooks {
                    return Ok(now);
                }
                let mut before = self.before.lock().unwrap();
                Ok(before.insert(target.address.clone(), now.clone()).unwrap_or(now))
            })
        }

        fn knock<'a>(
            &'a self,
            node: &'a Address,
            port: u16,
        ) -> BoxFuture<'a, Result<(), FleetError>> {
            self.sim.knock(node, port)
        }

        fn fence<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), FleetError>> {
            if self.mistake == Mistake::NoFence {
                return Box::pin(async { Ok(()) });
            }
            self.sim.fence(target)
        }

        fn send<'a>(
            &'a self,
            target: &'a Target,
            verbs: &'a [Verb],
        ) -> BoxFuture<'a, Result<(), FleetError>> {
            // Without fences, connections belong to nobody.
            let fence = target.fence.filter(|_| self.mistake != Mistake::NoFence);
            let target = Target { fence, ..target.clone() };
            Box::pin(async move { self.sim.send(&target, verbs).await })
        }

        fn converse<'a>(
            &'a self,
            talk: &'a Talk<'a>,
            sayings: &'a [Saying],
        ) -> BoxFuture<'a, Result<Vec<Answer>, FleetError>> {
            self.sim.converse(talk, sayings)
        }
    }
}
