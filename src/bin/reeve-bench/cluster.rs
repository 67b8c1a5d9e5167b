//! A cluster of primaries alone, which Reeve made and knows.

use std::collections::BTreeMap;
use std::path::PathBuf;

use futures::future::try_join_all;
use reeve::demo::servers::{Redis, RedisOptions};
use reeve::domain::slot::SlotSet;
use serde_json::{Value, json};

use super::bench::{Bench, Error};
use super::judge::{Judge, Member};

pub struct Cluster<'a> {
    pub bench: &'a Bench,
    pub name: &'a str,
    pub judge: Judge,
    nodes: Vec<Redis>,
}

impl<'a> Cluster<'a> {
    /// With all slots in equal parts; of another program than the usual one where one is named.
    pub async fn create(
        bench: &'a Bench,
        name: &'a str,
        size: usize,
        program: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let dir = bench.folder.join(name);
        let start = |n: usize| {
            let cluster = RedisOptions::cluster(dir.join(n.to_string()));
            let options = RedisOptions { binary: program.clone(), ..cluster };
            // Else a primary that gives its last slot away follows another at once, with its data.
            Redis::start(options.with("cluster-allow-replica-migration", "no"))
        };
        let nodes = try_join_all((0..size).map(start)).await?;
        let judge = Judge::new(&nodes).await?;
        let spec: Vec<Value> =
            nodes.iter().map(|n| json!({"address": n.address(), "zone": "a"})).collect();
        let body = json!({"name": name, "spec": {
            "mode": "cluster", "shards": size, "replicas_per_shard": 0, "nodes": spec }});
        bench.carry_out("/v1/topologies", &body, std::time::Instant::now()).await?;
        let mut cluster = Self { bench, name, judge, nodes };
        let owners = cluster.owners().await?;
        let lowest = |node: &Redis| owners.get(&node.address()).and_then(|s| s.iter().next());
        cluster.nodes.sort_by_key(lowest);
        Ok(cluster)
    }

    /// What all nodes agree on, once it is so.
    pub async fn members(
        &mut self,
        fits: impl Fn(&[Member]) -> bool,
    ) -> Result<Vec<Member>, Error> {
        self.judge.members(fits).await
    }

    /// Which node serves what.
    pub async fn owners(&mut self) -> Result<BTreeMap<String, SlotSet>, Error> {
        let members = self.members(|_| true).await?;
        Ok(members.into_iter().map(|m| (m.address.clone(), m.slots())).collect())
    }

    /// In the order of the slots that they had at first.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(Redis::address).collect()
    }

    /// Has Reeve take what somebody else made of it for what is wanted.
    pub async fn accept(&self) -> Result<(), Error> {
        self.bench.plan(self.name, json!({"kind": "accept_drift"})).await?;
        Ok(())
    }

    pub async fn forget(self) -> Result<(), Error> {
        self.bench.forget(self.name).await
    }
}
