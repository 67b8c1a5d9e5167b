//! One case: a world, an operation, and what goes wrong in it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use reeve::domain::id::{PlanId, TopologyId};
use reeve::domain::node::{Address, Flavor, Labels, Version};
use reeve::domain::plan::{Plan, PlanState, WaitingFor};
use reeve::engine::Engine;
use reeve::engine::desk::CreateRequest;
use reeve::engine::keeper::{KeepError, Keeper};
use reeve::fleet::sim::{CallOutcome, SimFleet, SimOptions};
use reeve::store::{Store, StoreError};

use super::application::Application;
use super::gate::Gate;
use super::layers::Layers;
use super::{Fault, Mistake, Scenario, Way};
use crate::support::instance::{engine, ensure, keeper, options, options_of_nodes, told};
use crate::support::shim::Shimmed;

/// Turns until a case is given up.
const TURNS: usize = 800;

pub struct Case {
    pub store: Store,
    pub sim: Arc<SimFleet>,
    pub engine: Arc<Engine>,
    pub keeper: Option<Keeper>,
    pub name: String,
    pub topology: Option<TopologyId>,
    pub plan: Option<PlanId>,
    pub nodes: Vec<Address>,
    /// The zones that they are in, in turn.
    pub zones: &'static [&'static str],
    /// A blank node that the cluster does not know at first.
    pub guest: Address,
    /// Another one.
    pub second: Address,
    /// Who is to leave.
    pub leavers: BTreeSet<Address>,
    /// Whether it is one primary with two replicas outside of clusters.
    pub lone: bool,
    pub sentinels: Vec<Address>,
    /// A Sentinel that watches nobody at first.
    pub guest_sentinel: Address,
    pub layers: Layers,
    /// Looks that were there before the operation was handed in.
    pub looks_before: u64,
    /// When the turn in hand began, by the database's clock.
    pub turn_began: Option<chrono::DateTime<chrono::Utc>>,
    /// How much of the waits of the last plan has passed.
    pub waited: u64,
}

impl Case {
    pub fn new(
        store: Store,
        number: u32,
        mistake: Option<Mistake>,
        lone: bool,
        (flavor, version): (Flavor, Version),
    ) -> Self {
        let sim = SimFleet::new(u64::from(number % 7));
        let host = format!("10.{}.{}", number / 250 % 250, number % 250);
        let address = |i: usize| format!("{host}.{}:7000", i + 1).parse::<Address>().unwrap();
        let nodes: Vec<Address> = (0..if lone { 3 } else { 6 }).map(address).collect();
        let (guest, second) = (address(6), address(7));
        for node in nodes.iter().chain([&guest, &second]) {
            let options = SimOptions { flavor, version, ..options_of_nodes(!lone) };
            sim.add_node(node, &options);
        }
        let application = Application::new(sim.clone());
        let layers = Layers { application, record: Arc::default(), mistake };
        let engine = engine(&store, layers.over(sim.clone(), &sim));
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
            lone,
            sentinels: vec![],
            guest_sentinel: address(19),
            layers,
            looks_before: 0,
            turn_began: None,
            waited: 0,
        }
    }

    /// Another instance, which knows nothing yet.
    fn another_engine(&self) -> Arc<Engine> {
        engine(&self.store, self.layers.over(self.sim.clone(), &self.sim))
    }

    /// Hands the operation in, and sees it through whatever happens to it.
    pub async fn operate(
        &mut self,
        scenario: Scenario,
        fault: Option<Fault>,
    ) -> Result<(), String> {
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
            | Scenario::Reshard
            | Scenario::Rebalance
            | Scenario::AddShard
            | Scenario::RemoveShard
            | Scenario::AddSentinel
            | Scenario::RemoveSentinel => self.submit(scenario).await?,
        }
        // A look that fails for the request itself refuses it, and that was all.
        self.looks_before = self.sim.looks();
        match fault {
            Some(Fault::Command(index, Way::LoseSource)) => {
                self.sim.take_over_at(index, &self.ends(scenario).await?.0);
            }
            Some(Fault::Command(index, Way::LoseTarget)) => {
                self.sim.take_over_at(index, &self.ends(scenario).await?.1);
            }
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
    pub async fn drive_past_a_frozen_one(&mut self, index: u64) -> Result<(), String> {
        let gate = Gate::new(self.sim.clone(), index);
        // Whoever prepared this makes room.
        self.keeper = None;
        self.expire().await;
        let behind_it = Arc::new(Shimmed(gate.clone()));
        let held_up = engine(&self.store, self.layers.over(behind_it, &self.sim));
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
        self.engine = self.another_engine();
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
    pub async fn expire(&self) {
        sqlx::query("UPDATE leases SET expires_at = '-infinity' WHERE topology_id = $1")
            .bind(self.topology.unwrap().0)
            .execute(self.store.pool())
            .await
            .unwrap();
    }

    pub async fn journal(&self) -> Result<Vec<(i64, String)>, String> {
        sqlx::query_as("SELECT id, type FROM events ORDER BY id")
            .fetch_all(self.store.pool())
            .await
            .map_err(told)
    }

    pub async fn create(&mut self) -> Result<(), String> {
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

    pub async fn drive(&mut self, fault: Option<Fault>) -> Result<(), String> {
        Box::pin(self.drive_until(fault, PlanState::Succeeded)).await
    }

    /// Turn after turn until the plan has ended; a dead process is followed by another.
    pub async fn drive_until(
        &mut self,
        fault: Option<Fault>,
        wanted: PlanState,
    ) -> Result<(), String> {
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

    pub async fn plan(&self) -> Result<Plan, String> {
        let plan = self.plan.ok_or("no plan")?;
        self.store.plan(plan).await.map_err(told)
    }

    /// One turn of the keeper, or of the one that follows a keeper that dies in it.
    pub async fn turn(&mut self) -> Result<(), String> {
        let mut deaths = self.sim.died();
        deaths.mark_unchanged();
        if self.layers.mistake == Some(Mistake::LateMarks) {
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
                // Those who poll let time pass; who tries again after a millisecond here does so after a
                // second elsewhere, also where the turn itself took longer than that.
                let retries = self.plan().await?.waiting_for == Some(WaitingFor::Retry);
                let passed = if retries { pause.as_micros() } else { pause.as_millis().min(250) };
                let waits = self.waits_of_retries().await?;
                let waited = waits.saturating_sub(std::mem::replace(&mut self.waited, waits));
                self.sim.advance((passed as u64).max(waited * 1000));
                if !pause.is_zero() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(KeepError::Store(StoreError::Moved(_))) => Ok(()),
            // On a machine that does much else the database may be late.
            Err(KeepError::Store(error)) if error.is_outage() => Ok(()),
            Err(error) => Err(format!("a turn failed: {}", told(error))),
        }
    }

    /// How long the plan said that it would wait before it tries again, in all, in milliseconds.
    async fn waits_of_retries(&self) -> Result<u64, String> {
        let all: i64 = sqlx::query_scalar(
            "SELECT coalesce(sum((data->>'retry_in_ms')::bigint), 0)::bigint FROM events
             WHERE plan_id = $1 AND type = 'plan.step_failed'",
        )
        .bind(self.plan.ok_or("no plan")?.0)
        .fetch_one(self.store.pool())
        .await
        .map_err(told)?;
        Ok(all.unsigned_abs())
    }

    /// The process ends; the lease runs out; another instance comes.
    pub async fn die(&mut self) {
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
        self.engine = self.another_engine();
    }

    pub fn story(&self, from: u64) -> String {
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

    pub async fn tidy_up(self) {
        sqlx::raw_sql(
            "TRUNCATE events, plans, steps, plan_shapes, marks, leases, observations,
             topology_nodes, topology_versions, topologies, nodes CASCADE",
        )
        .execute(self.store.pool())
        .await
        .unwrap();
    }
}
