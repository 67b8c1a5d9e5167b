//! Which architecture, and how many of what. The tree: does it fit one node? Must a replica take over
//! by itself? That gives replication, Sentinel or Cluster.

use std::collections::BTreeSet;

use super::request::Needs;
use super::sizing::Node;
use super::{Notice, Notices};
use crate::domain::diagnosis::Severity;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::spec::{MAX_NODES, Mode};

/// A cluster needs a majority of primaries to elect a new one.
const LEAST_SHARDS: usize = 3;
/// Each replica costs its primary a stream.
const MOST_REPLICAS: usize = 5;

/// What is to be laid out.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub mode: Mode,
    pub shards: usize,
    pub replicas: usize,
    pub sentinels: usize,
    /// Whether the Sentinels have servers of their own.
    pub apart: bool,
    pub rationale: Vec<String>,
    pub notices: Notices,
}

pub(super) fn choose(needs: &Needs) -> Result<Choice, Refusal> {
    let (mode, rationale, notices) = mode(needs);
    let mut choice =
        Choice { mode, shards: 1, replicas: 0, sentinels: 0, apart: false, rationale, notices };
    match mode {
        Mode::Cluster => choice.cluster(needs)?,
        Mode::Replication | Mode::Sentinel => choice.one_shard(needs)?,
    }
    choice.common(needs);
    Ok(choice)
}

/// Why one node is not enough for all of it, if it is not.
fn beyond_one(needs: &Needs) -> Vec<String> {
    beyond(needs, needs.ops)
}

/// Why one primary is not enough, if it is not: reads that replicas serve are not the primary's.
pub(super) fn beyond_one_primary(needs: &Needs) -> Vec<String> {
    beyond(needs, if needs.scales_reads() { needs.writes() } else { needs.ops })
}

/// Why one primary is not enough, where it has so many operations a second.
fn beyond(needs: &Needs, ops: f64) -> Vec<String> {
    let assume = &needs.assume;
    let mut why = Vec::new();
    if needs.planned_gb() > assume.one_primary_gb {
        why.push(format!(
            "{} GiB of data are more than the {} GiB that one primary copies, saves and loads in reasonable time",
            tidy(needs.planned_gb()), assume.one_primary_gb
        ));
    }
    let node = Node::of(needs, Mode::Sentinel, 1);
    let largest = assume.largest_server_gb;
    let (memory, there) = match needs.node_memory_gb {
        Some(memory) => (memory, format!("each has {memory} GiB")),
        None => (largest, format!("the largest has {largest} GiB (assumptions.largest_server_gb)")),
    };
    if node.total_gb > memory {
        why.push(format!(
            "{} GiB of data need {} GiB of memory on one server, and {there}",
            tidy(needs.planned_gb()),
            tidy(node.total_gb)
        ));
    }
    if ops > assume.node_ops {
        why.push(format!(
            "{} operations a second are more than the {} that one node serves",
            tidy(ops),
            assume.node_ops
        ));
    }
    why
}

fn mode(needs: &Needs) -> (Mode, Vec<String>, Notices) {
    let mut notices = Notices::default();
    let too_much = beyond_one(needs);
    let automatic = needs.automatic.unwrap_or(true);
    let mut rationale = Vec::new();
    let fits = || {
        format!(
            "{} GiB and {} operations a second fit one node (up to {} GiB and {} operations a second)",
            tidy(needs.planned_gb()),
            tidy(needs.ops),
            needs.assume.one_primary_gb,
            needs.assume.node_ops
        )
    };
    let fitting = if !too_much.is_empty() {
        rationale.extend(too_much);
        rationale.push(if beyond_one_primary(needs).is_empty() {
            format!(
                "the {} writes a second among them fit one primary, so Sentinel with replicas that serve the reads is an alternative; Redis Cluster is what leaves room to grow",
                tidy(needs.writes())
            )
        } else {
            "so the data is spread over shards: Redis Cluster".to_owned()
        });
        Mode::Cluster
    } else if needs.scales_writes() {
        rationale
            .push("writes are to scale, which takes several primaries: Redis Cluster".to_owned());
        Mode::Cluster
    } else if automatic {
        rationale.push(fits());
        rationale.push(
            "a replica is to take over by itself, which Sentinels see to and the application's client must know".to_owned(),
        );
        Mode::Sentinel
    } else {
        rationale.push(fits());
        rationale.push("a person may see to a failover, so replication is enough".to_owned());
        Mode::Replication
    };
    let Some(wanted) = needs.mode else {
        // A third server is what Sentinels need to outvote a lost one.
        if fitting == Mode::Sentinel && needs.servers.is_some_and(|n| n < 3) {
            notices.add(
                "sentinel_needs_three_servers",
                Severity::Critical,
                "with two servers no majority of Sentinels is left when one is lost, so nothing fails over by itself: add a third, small one that runs a Sentinel only, and ask again with node_count 3",
            );
            rationale.push("two servers cannot outvote each other, so replication with a failover by request is all that they can have".to_owned());
            return (Mode::Replication, rationale, notices);
        }
        return (fitting, rationale, notices);
    };
    if wanted != fitting {
        rationale = vec![format!("{} was asked for", word(wanted))];
    }
    if wanted == Mode::Cluster && fitting != Mode::Cluster {
        notices.add(
            "cluster_not_needed",
            Severity::Info,
            "one primary would do: Sentinel takes fewer nodes, and has no crossed slots (E504)",
        );
    }
    if wanted != Mode::Cluster {
        let too_much = beyond_one_primary(needs);
        if !too_much.is_empty() {
            notices.add(
                "beyond_one_primary",
                Severity::Critical,
                format!("{}; take ha_mode cluster, or keep less in it", too_much.join("; ")),
            );
        }
        if needs.scales_writes() {
            notices.add(
                "no_write_scaling",
                Severity::Critical,
                format!("{} has one primary, which takes all writes: take ha_mode cluster to scale them", word(wanted)),
            );
        }
    }
    if wanted == Mode::Replication && needs.automatic == Some(true) {
        notices.add(
            "no_automatic_failover",
            Severity::Critical,
            "in replication mode nothing fails over by itself: take ha_mode sentinel, or have somebody on call who asks for a failover",
        );
    }
    (wanted, rationale, notices)
}

impl Choice {
    fn one_shard(&mut self, needs: &Needs) -> Result<(), Refusal> {
        let node = Node::of(needs, self.mode, 1);
        let largest = needs.assume.largest_server_gb;
        if let Some(memory) = needs.node_memory_gb.filter(|gb| node.total_gb > *gb) {
            return refuse(
                "/node_memory_gb",
                format!(
                    "{} GiB of data in one shard need {} GiB on each server, which have {memory}: take larger servers, or ha_mode cluster",
                    tidy(needs.planned_gb()),
                    tidy(node.total_gb)
                ),
            );
        }
        if node.total_gb > largest {
            return refuse(
                "/data_size_gb",
                format!(
                    "{} GiB of data in one shard need a server of {} GiB, and the largest has {largest} (assumptions.largest_server_gb): take ha_mode cluster",
                    tidy(needs.planned_gb()),
                    tidy(node.total_gb)
                ),
            );
        }
        let (mut replicas, mut readers) = (2, 0);
        if needs.scales_reads() {
            readers = (needs.reads() / needs.assume.node_ops).ceil().clamp(1.0, 1e6) as usize;
            replicas = replicas.max(readers + 1);
            self.rationale.push(format!(
                "replicas serve the {} reads a second, {readers} of them at {} each and one more so that one may fail",
                tidy(needs.reads()), needs.assume.node_ops
            ));
            if replicas > MOST_REPLICAS {
                self.notices.add(
                    "too_many_readers",
                    Severity::Critical,
                    format!("the reads need {replicas} replicas, and more than {MOST_REPLICAS} cost the primary too much: take ha_mode cluster, whose shards read in parallel"),
                );
                replicas = MOST_REPLICAS;
            }
        }
        match self.mode {
            Mode::Sentinel => {
                self.sentinels(needs, replicas)?;
                if needs.automatic == Some(false) {
                    self.notices.add(
                        "failover_is_automatic",
                        Severity::Info,
                        "Sentinels promote a replica by themselves; take ha_mode replication to have nobody do so unasked",
                    );
                }
            }
            Mode::Replication | Mode::Cluster => {
                let room = needs.servers.map_or(replicas, |n| n.saturating_sub(1));
                self.replicas = replicas.min(room);
                self.notices.add(
                    "failover_by_request",
                    if needs.automatic == Some(false) { Severity::Info } else { Severity::Warning },
                    "nobody promotes a replica until somebody asks: POST …/plans with the intent failover",
                );
            }
        }
        if self.replicas < replicas {
            let overloaded = self.replicas < readers;
            self.notices.add(
                "few_replicas",
                if overloaded { Severity::Warning } else { Severity::Info },
                format!(
                    "the servers leave room for {} of {replicas} replicas: {}{}",
                    self.replicas,
                    match self.replicas {
                        _ if overloaded => "the reads are more than they serve",
                        n if readers > 0 && n == readers =>
                            "while one is away, the reads are more than the others serve",
                        0 | 1 => "while one is away, there is none",
                        _ => "while one is away, there is less redundancy",
                    },
                    self.more_replicas(needs, replicas)
                ),
            );
        }
        Ok(())
    }

    /// How to have more replicas where Sentinels have servers of their own.
    fn more_replicas(&self, needs: &Needs, wanted: usize) -> String {
        let beside = needs.servers.unwrap_or(0).min(self.sentinels + 1).min(wanted + 1);
        if !self.apart || beside <= self.replicas + 1 {
            return String::new();
        }
        format!(
            "; {} servers have room for all, and with node_count {beside} the Sentinels run beside the data nodes, of which {} are replicas then",
            wanted + 1 + self.sentinels,
            beside - 1
        )
    }

    /// Sentinels beside the data nodes where there are few servers, else on their own.
    fn sentinels(&mut self, needs: &Needs, replicas: usize) -> Result<(), Refusal> {
        let given = needs.sentinels.as_ref().map(Vec::len);
        let sentinels = given.unwrap_or(needs.assume.sentinels as usize);
        self.sentinels = sentinels;
        if sentinels < 3 {
            self.notices.add(
                "few_sentinels",
                Severity::Critical,
                format!(
                    "{sentinels} Sentinel{} cannot outvote a lost one: take 3",
                    if sentinels == 1 { "" } else { "s" }
                ),
            );
        } else if sentinels.is_multiple_of(2) {
            self.notices.add(
                "even_sentinels",
                Severity::Warning,
                format!(
                    "{sentinels} Sentinels survive no more losses than {}: take an odd number",
                    sentinels - 1
                ),
            );
        }
        self.replicas = replicas;
        let Some(servers) = needs.servers else { return Ok(()) };
        if given.is_some() || needs.nodes.is_some() {
            self.replicas = replicas.min(servers.saturating_sub(1));
            return Ok(());
        }
        if servers < sentinels {
            return refuse(
                "/node_count",
                format!(
                    "{sentinels} Sentinels need as many servers, since two on one are lost together, and there are {servers}: add small ones that run a Sentinel only, or take ha_mode replication"
                ),
            );
        }
        self.apart = servers >= sentinels + 2;
        let room = if self.apart { servers - sentinels } else { servers };
        self.replicas = replicas.min(room - 1);
        self.rationale.push(if self.apart {
            format!("{sentinels} of the {servers} servers run a Sentinel only, so that none is lost with the primary")
        } else {
            format!("with {servers} servers each Sentinel shares one with a data node")
        });
        Ok(())
    }

    fn cluster(&mut self, needs: &Needs) -> Result<(), Refusal> {
        let by_data = shards_by_data(needs)?;
        let (by_load, readers) = shards_by_load(needs);
        let least = LEAST_SHARDS.max(by_data).max(by_load);
        let wanted = self.spread(needs, least, readers.max(1));
        let least_replicas = readers.max(1);
        match needs.servers {
            None => {
                self.shards = wanted;
                self.replicas = least_replicas;
            }
            Some(servers) if servers < LEAST_SHARDS => {
                return refuse(
                    "/node_count",
                    format!(
                        "a cluster has at least {LEAST_SHARDS} primaries, and 6 nodes with a replica each, and there are {servers}: add servers, or take ha_mode sentinel (3 servers) or replication (2), where one primary holds all"
                    ),
                );
            }
            Some(servers) if servers < 2 * LEAST_SHARDS => {
                self.shards = LEAST_SHARDS;
                self.replicas = 0;
                self.notices.add(
                    "too_few_nodes",
                    Severity::Critical,
                    format!("a cluster in production has at least 6 nodes, 3 primaries with a replica each, and there are {servers}: without replicas the loss of any node is a loss of data; add {}", 2 * wanted - servers),
                );
            }
            Some(servers) => {
                self.shards = wanted.min(servers / 2);
                let room = servers / self.shards - 1;
                // A second replica where there is room for it: it keeps the shard redundant while
                // one is away.
                self.replicas = least_replicas.max(2).min(room);
            }
        }
        let load = if needs.scales_reads() { "load, replicas serving reads" } else { "load" };
        let room = if self.shards < wanted {
            format!("; the servers leave room for {}", self.shards)
        } else {
            String::new()
        };
        self.rationale.push(format!(
            "{wanted} shards: {by_data} for the data, {by_load} for the {load}, {LEAST_SHARDS} at least for a majority{room}"
        ));
        if self.shards < wanted {
            self.too_few_for(needs, wanted)?;
        }
        if needs.servers.is_some() && self.replicas < readers {
            self.notices.add(
                "few_readers",
                if self.replicas == 0 { Severity::Critical } else { Severity::Warning },
                format!("the reads need {readers} replicas of each shard, and the servers leave room for {}", self.replicas),
            );
        }
        let node = Node::of(needs, Mode::Cluster, self.shards);
        if let Some(memory) = needs.node_memory_gb.filter(|gb| node.total_gb > *gb) {
            let servers = wanted * 2;
            return refuse(
                "/node_memory_gb",
                format!(
                    "{} shards need {} GiB on each server, which have {memory}: take {servers} servers (node_count), or larger ones",
                    self.shards,
                    tidy(node.total_gb)
                ),
            );
        }
        let nodes = self.shards * (self.replicas + 1);
        if nodes > MAX_NODES {
            let (pointer, cure) = if by_load > by_data {
                ("/ops_per_second", "say what one node serves (assumptions.node_ops)")
            } else {
                ("/data_size_gb", "take larger servers (node_memory_gb, assumptions.shard_gb)")
            };
            return refuse(
                pointer,
                format!(
                    "{} shards with {} replicas each are {nodes} nodes, and a topology has at most {MAX_NODES}: {cure}, or split the data over several topologies",
                    self.shards, self.replicas
                ),
            );
        }
        if self.replicas == 1 && needs.servers.is_none() {
            self.rationale.push(
                format!("one replica for each shard is the least; a second one ({} nodes for {} shards) keeps a shard redundant while a zone is away", self.shards * 3, self.shards),
            );
        }
        if needs.automatic == Some(false) {
            self.notices.add(
                "failover_is_automatic",
                Severity::Info,
                "a cluster elects new primaries by itself; cluster-replica-no-failover in `settings` has a replica not stand for it",
            );
        }
        if self.replicas > 0 && needs.scales_reads() {
            self.rationale.push(format!(
                "the replicas of each shard ({}) share the {} reads a second",
                self.replicas,
                tidy(needs.reads())
            ));
        }
        Ok(())
    }

    /// So many shards, or one more where the loss of the fullest zone would leave no majority of their
    /// primaries (four over three zones), and the servers leave room for it.
    fn spread(&mut self, needs: &Needs, shards: usize, replicas: usize) -> usize {
        let zones = needs.zones.len().max(1);
        let quorate = |shards: usize| shards - shards.div_ceil(zones) > shards / 2;
        let room = needs.servers.is_none_or(|n| n / (shards + 1) > replicas);
        if zones < 3 || quorate(shards) || !quorate(shards + 1) || !room {
            return shards;
        }
        self.rationale.push(format!(
            "{shards} primaries over {zones} zones have two in one, whose loss would leave no majority: one shard more"
        ));
        shards + 1
    }

    /// Fewer shards than the data or the load asks for.
    fn too_few_for(&mut self, needs: &Needs, wanted: usize) -> Result<(), Refusal> {
        let node = Node::of(needs, Mode::Cluster, self.shards);
        let largest = needs.assume.largest_server_gb;
        if needs.node_memory_gb.is_none() && node.total_gb > largest {
            return refuse(
                "/node_count",
                format!(
                    "{} shards need servers of {} GiB, and the largest has {largest} (assumptions.largest_server_gb): take {} servers",
                    self.shards,
                    tidy(node.total_gb),
                    wanted * 2
                ),
            );
        }
        let each = needs.ops / self.shards as f64;
        let overloaded = !needs.scales_reads() && each > needs.assume.node_ops
            || needs.writes() / self.shards as f64 > needs.assume.node_ops;
        self.notices.add(
            "few_shards",
            if overloaded { Severity::Critical } else { Severity::Warning },
            format!(
                "{wanted} shards would do, and the servers leave room for {}, each with {} GiB and {} operations a second: take {} servers",
                self.shards, tidy(node.data_gb), tidy(each), wanted * 2
            ),
        );
        Ok(())
    }

    /// What concerns every mode.
    fn common(&mut self, needs: &Needs) {
        if needs.scales_reads() && self.replicas > 0 {
            self.notices.add(
                "stale_reads",
                Severity::Info,
                "a replica answers with what it has, which is behind the primary (GET …/endpoints tells by how many bytes): read from replicas only what may be old",
            );
        }
        let node = Node::of(needs, self.mode, self.shards);
        if !node.copies_in_time(needs) {
            self.notices.add(
                "full_copy_may_fail",
                Severity::Critical,
                format!("while a full copy of {} GiB takes its time, more is written than a replica's buffer takes ({} MiB), so that copies start over and over: take more shards, raise client-output-buffer-limit (and memory with it), or say how fast the network (assumptions.copy_mb_per_second) and how small the writes are (assumptions.write_bytes)", tidy(node.data_gb), node.buffer_mb),
            );
        }
        if !needs.assume.persistence {
            let (severity, text) = match self.mode {
                Mode::Cluster => (
                    Severity::Critical,
                    "nodes keep nothing on disk: a primary that comes back before a replica was elected is empty, and so are its replicas then; the units that come with this wait for that long before they start a node again",
                ),
                Mode::Replication | Mode::Sentinel => (
                    Severity::Warning,
                    "nodes keep nothing on disk: when all are away at once, all data is lost (each boots as a replica, so that a primary that comes back empty takes nobody's data)",
                ),
            };
            self.notices.add("no_persistence", severity, text);
        }
        if needs.assumed_growth {
            self.notices.add(
                "growth_unknown",
                Severity::Info,
                "this is sized for the data of today; give growth_percent to plan ahead",
            );
        }
        if needs.assumed_zones {
            self.notices.add(
                "zones_assumed",
                Severity::Info,
                "three zones are assumed; give zones as they are",
            );
        }
        if needs.nodes.is_none() {
            self.notices.add(
                "example_addresses",
                Severity::Info,
                "the addresses are examples; give nodes to have the files and commands with real ones",
            );
        }
        let names = &needs.credentials;
        match &names.admin {
            Some(admin) => {
                let watched = names.sentinel.iter().filter(|_| self.mode == Mode::Sentinel);
                let all: BTreeSet<&String> =
                    [admin].into_iter().chain(&names.replication).chain(watched).collect();
                let each: Vec<String> = all.iter().map(|n| format!("{{\"name\": \"{n}\", \"password\": …}}")).collect();
                let same = if names.replication.as_ref().is_some_and(|name| name != admin) {
                    ". Without user names the credentials admin and replication must have the same password: a node has one"
                } else {
                    ""
                };
                self.notices.add(
                    "credential_needed",
                    Severity::Info,
                    format!("before the topology is posted, POST /v1/credentials with {}, with the passwords that each node's secrets.conf has{same}", each.join(", and with ")),
                );
            }
            None => self.notices.add(
                "no_password",
                Severity::Warning,
                "whoever reaches a node may read and change everything: name a credential (credentials.admin)",
            ),
        }
        if self.mode == Mode::Sentinel && names.admin.is_some() && names.sentinel.is_none() {
            self.notices.add(
                "sentinels_without_password",
                Severity::Warning,
                "whoever reaches a Sentinel may have it fail over: name a credential for them, too (credentials.sentinel)",
            );
        }
        if needs.sentinels.is_some() && self.mode != Mode::Sentinel {
            self.notices.add(
                "sentinels_unused",
                Severity::Warning,
                format!("the Sentinels that were given have no part in {}: leave them out, or take ha_mode sentinel", word(self.mode)),
            );
        }
        if needs.tls {
            self.notices.add(
                "tls_not_spoken",
                Severity::Critical,
                "Reeve does not speak TLS to nodes yet: it refuses this topology until it does, and its files and procedure are for running it by hand; leave `tls` out to have one that Reeve makes and keeps",
            );
        }
        let used = self.shards * (self.replicas + 1) + if self.apart { self.sentinels } else { 0 };
        if let Some(left) = needs.servers.and_then(|n| n.checked_sub(used)).filter(|n| *n > 0) {
            self.notices.add(
                "servers_left",
                Severity::Info,
                format!("{left} of the servers have no part; keep them to replace others"),
            );
        }
    }
}

fn shards_by_data(needs: &Needs) -> Result<usize, Refusal> {
    let assume = &needs.assume;
    let most = MAX_NODES / 2;
    let Some(memory) = needs.node_memory_gb else {
        let planned = needs.planned_gb() * (1.0 + assume.skew_percent / 100.0);
        // Beyond what a topology can have it is refused later, with the number.
        let usual = (planned / assume.shard_gb).ceil().clamp(1.0, 1e12) as usize;
        let largest = assume.largest_server_gb;
        let small = |shards: &usize| Node::of(needs, Mode::Cluster, *shards).total_gb <= largest;
        return (usual..=most.max(usual)).find(small).map_or_else(
            || {
                let node = Node::of(needs, Mode::Cluster, most.max(usual));
                refuse(
                    "/assumptions/largest_server_gb",
                    format!(
                        "{} GiB of data over {} shards still need {} GiB on each server, and the largest has {largest}: say how large servers may be, or split the data over several topologies",
                        tidy(needs.planned_gb()), most.max(usual), tidy(node.total_gb)
                    ),
                )
            },
            Ok,
        );
    };
    let fits = |shards: &usize| {
        let node = Node::of(needs, Mode::Cluster, *shards);
        node.total_gb <= memory && node.data_gb <= assume.one_primary_gb
    };
    (1..=most).find(fits).map_or_else(
        || {
            let node = Node::of(needs, Mode::Cluster, most);
            refuse(
                "/node_memory_gb",
                format!(
                    "{} GiB of data over the most shards that a topology can have ({most}) still need {} GiB on each server, which have {memory}: take larger servers, or split the data over several topologies",
                    tidy(needs.planned_gb()), tidy(node.total_gb)
                ),
            )
        },
        Ok,
    )
}

/// Shards for the load, and the replicas that the reads need.
fn shards_by_load(needs: &Needs) -> (usize, usize) {
    const READERS: f64 = 3.0;
    let node_ops = needs.assume.node_ops;
    let count = |load: f64| load.ceil().clamp(1.0, 1e12);
    if !needs.scales_reads() {
        return (count(needs.ops / node_ops) as usize, 0);
    }
    let for_writes = count(needs.writes() / node_ops);
    let shards = for_writes.max(count(needs.reads() / (node_ops * READERS)));
    let replicas = count(needs.reads() / (node_ops * shards.max(LEAST_SHARDS as f64)));
    (shards as usize, replicas as usize)
}

fn refuse<T>(pointer: &str, detail: String) -> Result<T, Refusal> {
    Err(Refusal::Invalid(vec![FieldError::new(pointer, detail)]))
}

/// The mode as people call it.
pub(super) fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::Replication => "replication",
        Mode::Sentinel => "Sentinel",
        Mode::Cluster => "Redis Cluster",
    }
}

/// A number without digits that nobody needs.
pub(super) fn tidy(number: f64) -> String {
    if number >= 1000.0 {
        format!("{number:.0}")
    } else {
        format!("{}", (number * 10.0).round() / 10.0)
    }
}

impl Notices {
    pub(super) fn add(&mut self, code: &str, severity: Severity, message: impl Into<String>) {
        self.0.push(Notice { code: code.to_owned(), severity, message: message.into() });
    }
}
