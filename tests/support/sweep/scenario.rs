//! What is carried out, and from where.

use reeve::domain::intent::{self, Intent};
use reeve::domain::node::Address;
use reeve::domain::plan::PlanState;
use reeve::domain::slot::{SlotSet, key_slot};
use reeve::domain::spec::{ClusterSpec, NodeSpec, Spec};

use super::case::Case;
use crate::support::instance::{options, told};

/// The library of functions that all primaries have.
pub const COMMON: &str = "common";

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
    /// Another spec: two blank nodes come in the place of a primary and of another shard's replica;
    /// outside of clusters one in the place of the primary.
    ReplaceSpec,
    /// Some slots with keys, and some without, go from one shard to another.
    Reshard,
    /// The same slots go back to where they were, since every shard is to have its share.
    Rebalance,
    /// Two blank nodes become one more shard, with a share of the slots.
    AddShard,
    /// A shard with few slots goes, and its nodes leave.
    RemoveShard,
    /// One Sentinel more watches.
    AddSentinel,
    /// A Sentinel stops watching, and the others forget it.
    RemoveSentinel,
}

impl Case {
    pub fn spec(&self) -> Spec {
        if self.lone {
            return self.lone_spec();
        }
        Spec::Cluster(ClusterSpec {
            shards: 3,
            replicas_per_shard: 1,
            nodes: self.in_zones(&self.nodes),
            credentials: Default::default(),
            tls: None,
            placement: Default::default(),
            settings: Default::default(),
            failover: Default::default(),
            overrides: Default::default(),
        })
    }

    /// These in the zones, in turn.
    pub fn in_zones(&self, nodes: &[Address]) -> Vec<NodeSpec> {
        let zoned = nodes.iter().zip(self.zones.iter().cycle());
        let node = |(address, zone): (&Address, &&str)| NodeSpec {
            address: address.clone(),
            zone: (*zone).to_owned(),
            host: None,
        };
        zoned.map(node).collect()
    }

    /// Brings the world to where the operation begins.
    pub async fn prepare(&mut self, scenario: Scenario) -> Result<(), String> {
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
            if self.lone {
                self.layers.application.put_on(&self.first(true)?, &key)?;
            } else {
                self.layers.application.put(&key)?;
            }
        }
        if matches!(scenario, Scenario::AddShard | Scenario::RemoveShard) {
            self.load_functions();
        }
        self.sim.advance(5000);
        Box::pin(self.prepare_slots(scenario)).await?;
        if scenario == Scenario::Revert {
            self.submit(Scenario::Dissolve).await?;
            // Replicas go first, in one round; then the primaries would.
            let begun = self.sim.calls().len();
            while self.sim.calls().len() < begun + if self.lone { 1 } else { 3 } {
                self.turn().await?;
            }
            let plan = self.plan.ok_or("no plan")?;
            self.engine.cancel_plan(plan, "sweep").await.map_err(told)?;
            Box::pin(self.drive_until(None, PlanState::Cancelled)).await?;
        }
        Ok(())
    }

    /// Each primary has a library that all have, and one that each has otherwise.
    fn load_functions(&self) {
        let is_primary = |n: &&Address| self.sim.inspect(n).is_some_and(|i| i.primary);
        for node in self.nodes.iter().filter(is_primary) {
            self.sim.load_functions(node, COMMON, "the same");
            self.sim.load_functions(node, "disputed", &node.to_string());
        }
    }

    /// Brings slots to where they are to move from.
    async fn prepare_slots(&mut self, scenario: Scenario) -> Result<(), String> {
        let steps = match scenario {
            Scenario::Rebalance => vec![self.moving(2, 0)],
            Scenario::RemoveShard => vec![self.adding(false), self.moving(0, 3)],
            Scenario::AddShard => {
                self.layers.application.turn_to(&SlotSet::all());
                return Ok(());
            }
            _ => return Ok(()),
        };
        for intent in steps {
            self.hand_in(&intent).await?;
            self.drive(None).await?;
            self.sim.advance(5000);
        }
        Ok(())
    }

    /// Some slots go from one shard to another: four with keys and four without, since each slot is
    /// several commands. They are what the application writes to.
    fn moving(&self, from: usize, to: usize) -> Intent {
        let share = SlotSet::shares(3).swap_remove(from);
        let keys = self.layers.application.keys();
        let with_keys: SlotSet = keys.iter().map(|key| key_slot(key.as_bytes())).collect();
        let full = share.intersection(&with_keys);
        let empty = share.difference(&with_keys);
        let slots: SlotSet = full.iter().take(4).chain(empty.iter().take(4)).collect();
        self.layers.application.turn_to(&slots);
        let (from, to, slots) = (from.to_string(), to.to_string(), Some(slots));
        let moves = vec![intent::reshard::SlotMove { from, to, slots, count: None }];
        Intent::Reshard(intent::ReshardIntent { moves, max_latency_ms: None })
    }

    fn adding(&self, rebalance: bool) -> Intent {
        let node = |(address, zone): (&Address, &str)| {
            let (address, zone) = (address.clone(), zone.to_owned());
            intent::NodeChoice::New(NodeSpec { address, zone, host: None })
        };
        let nodes = [(&self.guest, "d"), (&self.second, "e")].map(node).to_vec();
        Intent::AddShard(intent::AddShardIntent { nodes, rebalance })
    }

    /// A node of a shard that gives slots, and one of a shard that gets them.
    pub async fn ends(&self, scenario: Scenario) -> Result<(Address, Address), String> {
        let stored = self.store.topology(&self.name).await.map_err(told)?;
        let shards = stored.wanted.layout.shards();
        let of = |index: usize| {
            let shard = shards.iter().find(|(shard, _)| usize::from(shard.index) == index);
            shard.map(|(shard, _)| shard.members[0].clone()).ok_or("no such shard")
        };
        Ok(match scenario {
            Scenario::Rebalance => (of(0)?, of(2)?),
            Scenario::AddShard => (of(0)?, self.guest.clone()),
            Scenario::RemoveShard => (self.guest.clone(), of(0)?),
            _ => (of(0)?, of(1)?),
        })
    }

    pub async fn submit(&mut self, scenario: Scenario) -> Result<(), String> {
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
            Scenario::ReplaceSpec if self.lone => self.replace_primary().await?,
            Scenario::ReplaceSpec => self.replace_two().await?,
            Scenario::Reshard => self.moving(0, 1),
            Scenario::Rebalance => Intent::Rebalance(intent::RebalanceIntent {
                threshold_percent: Some(0),
                ..Default::default()
            }),
            Scenario::AddShard => self.adding(true),
            Scenario::RemoveShard => {
                self.leavers = [self.guest.clone(), self.second.clone()].into();
                let (shard, primary) = (None, Some(self.guest.clone()));
                Intent::RemoveShard(intent::RemoveShardIntent { shard, primary })
            }
            Scenario::AddSentinel => {
                let address = self.guest_sentinel.clone();
                let node = NodeSpec { address, zone: "d".to_owned(), host: None };
                let node = intent::NodeChoice::New(node);
                Intent::AddSentinel(intent::AddSentinelIntent { node })
            }
            Scenario::RemoveSentinel => {
                let node = self.sentinels.first().cloned().ok_or("no Sentinel")?;
                Intent::RemoveSentinel(intent::RemoveSentinelIntent { node })
            }
        };
        self.hand_in(&intent).await
    }

    pub async fn hand_in(&mut self, intent: &Intent) -> Result<(), String> {
        let flushes = self.nodes.iter().map(|n| format!("flush:{n}")).collect();
        let submitted = self.engine.submit(&self.name, intent, &options(flushes), "sweep").await;
        self.plan = Some(submitted.map_err(told)?.id);
        Ok(())
    }

    /// The zone of a node.
    pub fn zone(&self, node: &Address) -> String {
        let spec = self.spec();
        let found = spec.nodes().iter().find(|n| n.address == *node);
        found.map(|n| n.zone.clone()).unwrap_or_default()
    }

    pub async fn replace_two(&mut self) -> Result<Intent, String> {
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

    pub fn guest_choice(&self) -> intent::NodeChoice {
        let address = self.guest.clone();
        intent::NodeChoice::New(NodeSpec { address, zone: "d".to_owned(), host: None })
    }

    /// The first node that is a primary, or a replica.
    pub fn first(&self, primary: bool) -> Result<Address, String> {
        let is = |n: &&Address| self.sim.inspect(n).is_some_and(|i| i.primary == primary);
        self.nodes.iter().find(is).cloned().ok_or_else(|| "no such node".to_owned())
    }
}
