//! What is carried out, and from where.

use reeve::domain::intent::{self, Intent};
use reeve::domain::node::Address;
use reeve::domain::plan::PlanState;
use reeve::domain::slot::{SLOTS, key_slot};
use reeve::domain::spec::{ClusterSpec, NodeSpec, Spec};

use super::case::Case;
use super::instance::{options, told};

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

impl Case {
    pub fn spec(&self) -> Spec {
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
