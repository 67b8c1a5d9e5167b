//! What must hold in the end.

use std::collections::BTreeSet;

use reeve::domain::id::TopologyId;
use reeve::domain::intent::{Intent, RepairIntent};
use reeve::domain::node::Address;
use reeve::domain::observation::{Mark, MarkKind, Observation, Sighting};
use reeve::domain::plan::Plan;
use reeve::domain::planner;
use reeve::fleet::sim::SimFleet;
use reeve::fleet::{Ask, Fleet, Target};

use super::Scenario;
use super::case::Case;
use super::scenario::COMMON;
use crate::support::instance::{ensure, options_of_nodes, policy, told};
use crate::support::safety::broken;

/// After the end, so long that whatever was late has come.
const AFTERWARDS_MS: u64 = 180_000;
/// Looks of the watch after the end.
const TURNS_AFTERWARDS: usize = 40;

impl Case {
    /// What must hold in the end, also when whatever was late has come.
    pub async fn check(&mut self, scenario: Scenario) -> Result<(), String> {
        // One that was never reached must not meet those who check.
        self.sim.no_more_faults();
        // One that froze when the plan needed it no more.
        for node in self.nodes.iter().chain([&self.guest, &self.second]) {
            self.sim.thaw(node);
        }
        self.sim.advance(AFTERWARDS_MS);
        let plan = self.plan().await?;
        let topology = self.topology.ok_or("no topology")?;
        let mut marks = self.marks_left(topology).await?;
        // Of a member that was dead, and was left apart, the watch takes them back when it has returned.
        if plan.warnings.iter().any(|w| w.code == "left_apart") {
            for _ in 0..TURNS_AFTERWARDS {
                if marks.is_empty() {
                    break;
                }
                Box::pin(self.turn()).await?;
                marks = self.marks_left(topology).await?;
            }
        }
        // One that was to leave and was away is made blank by whoever asks for it, as the warning says.
        if plan.warnings.iter().any(|w| w.code == "leaver_unreached") {
            self.hand_in(&Intent::Repair(RepairIntent {})).await?;
            Box::pin(self.drive(None)).await?;
            marks = self.marks_left(topology).await?;
        }
        ensure(marks.is_empty(), || format!("marks are left: {marks:?}"))?;
        self.check_journal(&plan).await?;
        let touched = self.sim.touched();
        let guests: &[&Address] = match scenario {
            Scenario::AddReplica | Scenario::ReplaceNode => &[&self.guest],
            Scenario::ReplaceSpec if self.lone => &[&self.guest],
            Scenario::ReplaceSpec | Scenario::AddShard | Scenario::RemoveShard => {
                &[&self.guest, &self.second]
            }
            Scenario::Create
            | Scenario::Dissolve
            | Scenario::Revert
            | Scenario::Failover
            | Scenario::RemoveReplica
            | Scenario::Reshard
            | Scenario::Rebalance
            | Scenario::AddSentinel
            | Scenario::RemoveSentinel
            | Scenario::Drain => &[],
        };
        let members: BTreeSet<Address> =
            self.nodes.iter().chain(guests.iter().copied()).cloned().collect();
        let newcomer = (scenario == Scenario::AddSentinel).then_some(&self.guest_sentinel);
        let watchers = self.sentinels.iter().chain(newcomer);
        let ours: BTreeSet<Address> = members.iter().chain(watchers).cloned().collect();
        ensure(touched.is_subset(&ours), || format!("touched {touched:?}"))?;
        let blank = options_of_nodes(!self.lone);
        let fresh = SimFleet::new(0);
        fresh.add_node(&self.nodes[0], &blank);
        let original = fresh.inspect(&self.nodes[0]).ok_or("no such node")?.settings;
        for node in &members {
            let now = self.sim.inspect(node).ok_or("no such node")?;
            for name in [
                "cluster-node-timeout",
                "repl-diskless-sync-delay",
                "replica-priority",
                "min-replicas-to-write",
            ] {
                let (is, was) = (now.settings.get(name), original.get(name));
                ensure(is == was, || format!("{name} of {node} is {is:?}, was {was:?}"))?;
                let is = now.written.get(name);
                ensure(is == was, || format!("{name} in {node}'s file is {is:?}, was {was:?}"))?;
            }
            if scenario == Scenario::Dissolve || self.leavers.contains(node) {
                let alone = now.slots.is_empty() && now.knows.is_empty();
                let blank = alone && now.keys.is_empty() && now.libraries.is_empty();
                ensure(blank && now.primary, || format!("{node} is not blank: {now:?}"))?;
            }
        }
        if scenario == Scenario::AddShard {
            self.check_functions()?;
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
            | Scenario::Rebalance
            | Scenario::AddShard
            | Scenario::RemoveShard
            | Scenario::AddSentinel
            | Scenario::RemoveSentinel
            | Scenario::ReplaceSpec => self.check_cluster(topology).await,
            Scenario::Drain => {
                self.check_drained().await?;
                self.check_cluster(topology).await
            }
        }
    }

    /// Whoever is new has what all others have alike, and those have what they had.
    fn check_functions(&self) -> Result<(), String> {
        for (nodes, count) in
            [(self.nodes.as_slice(), 2), (&[self.guest.clone(), self.second.clone()], 1)]
        {
            for node in nodes {
                let has = self.sim.inspect(node).ok_or("no such node")?.libraries;
                let well = has.len() == count && has.contains_key(COMMON);
                ensure(well, || format!("{node} has the functions {has:?}"))?;
            }
        }
        Ok(())
    }

    /// A shard rests longer than its plan; the watch forgets it when that is over.
    async fn marks_left(&self, topology: TopologyId) -> Result<Vec<Mark>, String> {
        let mut marks = self.store.marks(topology).await.map_err(told)?;
        marks.retain(|m| !matches!(m.what, MarkKind::Hold(_)));
        Ok(marks)
    }

    /// What is drained serves nothing.
    pub async fn check_drained(&self) -> Result<(), String> {
        let stored = self.store.topology(&self.name).await.map_err(told)?;
        let drained = stored.wanted.spec.drained();
        let all = if self.lone { !drained.is_empty() } else { drained.len() == 3 };
        ensure(all, || format!("drained {drained:?}"))?;
        for node in drained {
            let now = self.sim.inspect(node).ok_or("no such node")?;
            ensure(!now.primary && now.slots.is_empty(), || format!("{node} serves: {now:?}"))?;
        }
        Ok(())
    }

    pub async fn check_journal(&self, plan: &Plan) -> Result<(), String> {
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

    pub async fn check_cluster(&self, topology: TopologyId) -> Result<(), String> {
        let stored = self.store.topology_by_id(topology).await.map_err(told)?;
        let wanted = stored.ok_or("the topology is gone")?.wanted;
        let mut seen = Observation::default();
        let nodes = self.nodes.iter().chain([&self.guest, &self.second]);
        for node in nodes.chain(self.all_sentinels()) {
            let target =
                Target { address: node.clone(), login: None, replication: None, fence: None };
            let report = self.sim.look(&target, &Ask::default()).await.map_err(told)?;
            seen.nodes.insert(node.clone(), Sighting::Seen(Box::new(report)));
        }
        let left =
            planner::unsettled(&wanted, &BTreeSet::new(), &BTreeSet::new(), &seen, &policy());
        ensure(left.is_empty(), || format!("it is not settled: {left:?}"))?;
        let lost = if self.lone {
            let primary = self.one_primary(&wanted.layout.members())?;
            self.layers.application.lost_on(&primary)
        } else {
            self.layers.application.lost()
        };
        ensure(lost.is_empty(), || format!("{} keys are lost: {lost:?}", lost.len()))
    }

    /// Where slots moved in an order that may lose something, whether or not it did.
    pub fn broken_rules(&self) -> Option<String> {
        let broken = broken(&self.layers.record.lock().unwrap());
        (!broken.is_empty()).then(|| format!("rules are broken:\n{}", broken.join("\n")))
    }
}
