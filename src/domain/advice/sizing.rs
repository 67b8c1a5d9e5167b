//! How large: shards, replicas and memory, each number with its formula.

use serde::Serialize;
use utoipa::ToSchema;

use super::request::Needs;
use crate::domain::spec::Mode;

const MB_PER_GB: f64 = 1024.0;
/// The least backlog, in MiB.
const LEAST_BACKLOG_MB: f64 = 32.0;
/// The least output buffer of a replica, in MiB: what servers have by default.
const LEAST_BUFFER_MB: f64 = 256.0;

/// What one data node holds and needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Node {
    /// The data of its shard when it has grown as planned, the fullest shard's.
    pub data_gb: f64,
    /// Bytes a second that are written to it.
    pub write_rate: f64,
    pub backlog_mb: f64,
    pub maxmemory_mb: f64,
    /// What may pile up for a replica that takes a full copy.
    pub buffer_mb: f64,
    pub fork_gb: f64,
    /// What the server must have.
    pub total_gb: f64,
}

impl Node {
    /// A node of one of so many shards. More data never makes it smaller, more shards never larger.
    pub(super) fn of(needs: &Needs, mode: Mode, shards: usize) -> Self {
        let assume = &needs.assume;
        let count = shards.max(1) as f64;
        let skew = if mode == Mode::Cluster { 1.0 + assume.skew_percent / 100.0 } else { 1.0 };
        let data_gb = needs.planned_gb() / count * skew;
        let write_rate = needs.writes() * assume.write_bytes / count;
        let missed_mb = write_rate * assume.outage_seconds / f64::from(1 << 20);
        let backlog_mb = missed_mb.max(LEAST_BACKLOG_MB).ceil();
        let full_mb = data_gb * MB_PER_GB / (1.0 - assume.headroom_percent / 100.0);
        let maxmemory_mb = (full_mb + backlog_mb).ceil();
        let buffer_mb = (maxmemory_mb / 8.0).floor().max(LEAST_BUFFER_MB);
        let fork_gb = data_gb * assume.copy_on_write_percent / 100.0;
        let resident_gb = (maxmemory_mb * assume.fragmentation_ratio + buffer_mb) / MB_PER_GB;
        let total_gb = resident_gb + fork_gb + assume.system_gb;
        Self { data_gb, write_rate, backlog_mb, maxmemory_mb, buffer_mb, fork_gb, total_gb }
    }

    /// Whether a full copy ends before more has piled up than the buffer takes.
    pub(super) fn copies_in_time(&self, needs: &Needs) -> bool {
        let seconds = self.data_gb * MB_PER_GB / needs.assume.copy_mb_per_second;
        self.write_rate * seconds / f64::from(1 << 20) <= self.buffer_mb
    }
}

/// The numbers of the advice.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Sizing {
    pub shards: usize,
    pub replicas_per_shard: usize,
    pub data_nodes: usize,
    pub sentinels: usize,
    /// Memory that each server of a data node needs; at most `node_memory_gb` where that was given.
    pub memory_per_node_gb: f64,
    pub maxmemory_mb: u64,
    pub disk_per_node_gb: u64,
    /// How each number came about.
    pub figures: Vec<Figure>,
}

/// One number, and what it came from.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Figure {
    pub name: String,
    pub value: f64,
    pub unit: String,
    pub formula: String,
    /// The assumptions that it hangs on, by the names in `assumptions`.
    pub assumptions: Vec<String>,
}

/// The whole sizing of a choice.
pub(super) fn sizing(
    needs: &Needs,
    mode: Mode,
    shards: usize,
    replicas: usize,
    sentinels: usize,
) -> Sizing {
    let node = Node::of(needs, mode, shards);
    let nodes = shards * (replicas + 1);
    let disk_gb = disk_gb(needs, &node);
    Sizing {
        shards,
        replicas_per_shard: replicas,
        data_nodes: nodes,
        sentinels,
        // Rounding must not say more than the server has.
        memory_per_node_gb: round_up(node.total_gb).min(given(needs, &node)),
        maxmemory_mb: node.maxmemory_mb as u64,
        disk_per_node_gb: disk_gb,
        figures: figures(needs, mode, shards, replicas, &node, disk_gb),
    }
}

/// An append-only file of up to twice the data while it is rewritten, the new one beside it, and a
/// snapshot.
fn disk_gb(needs: &Needs, node: &Node) -> u64 {
    let times = if needs.assume.persistence { 4.0 } else { 1.0 };
    (node.data_gb * times).ceil().max(1.0) as u64
}

/// The memory that was given, where the node fits into it.
fn given(needs: &Needs, node: &Node) -> f64 {
    needs.node_memory_gb.filter(|gb| node.total_gb <= *gb).unwrap_or(f64::INFINITY)
}

/// To a tenth, upwards but for what is noise.
fn round_up(gb: f64) -> f64 {
    (gb * 10.0 - 1e-9).ceil() / 10.0
}

fn figures(
    needs: &Needs,
    mode: Mode,
    shards: usize,
    replicas: usize,
    node: &Node,
    disk_gb: u64,
) -> Vec<Figure> {
    let assume = &needs.assume;
    let figure = |name: &str, value: f64, unit: &str, formula: String, from: &[&str]| Figure {
        name: name.to_owned(),
        value: (value * 1000.0).round() / 1000.0,
        unit: unit.to_owned(),
        formula,
        assumptions: from.iter().map(|name| (*name).to_owned()).collect(),
    };
    let skew = if mode == Mode::Cluster {
        format!(" × {:.2} (the fullest shard)", 1.0 + assume.skew_percent / 100.0)
    } else {
        String::new()
    };
    let load = if needs.scales_reads() {
        (needs.writes() / shards as f64).max(needs.ops / (shards * (replicas + 1)) as f64)
    } else {
        needs.ops / shards as f64
    };
    let load_formula = if needs.scales_reads() {
        format!(
            "the greater of writes / shards and ops_per_second / nodes = max({:.0} / {shards}, {:.0} / {}): replicas serve reads",
            needs.writes(),
            needs.ops,
            shards * (replicas + 1)
        )
    } else {
        format!("ops_per_second / shards = {:.0} / {shards}", needs.ops)
    };
    vec![
        figure(
            "planned_data",
            needs.planned_gb(),
            "GiB",
            format!(
                "data_size_gb × (1 + growth) = {} × {:.2}",
                needs.data_gb,
                1.0 + needs.growth_percent / 100.0
            ),
            &[],
        ),
        figure(
            "data_per_shard",
            node.data_gb,
            "GiB",
            format!("planned_data / shards{skew} = {:.3} / {shards}{skew}", needs.planned_gb()),
            if mode == Mode::Cluster { &["skew_percent"] } else { &[] },
        ),
        figure("ops_per_primary", load, "1/s", load_formula, &["write_percent", "node_ops"]),
        figure(
            "write_rate",
            node.write_rate / f64::from(1 << 20),
            "MiB/s",
            format!(
                "writes / shards × write_bytes = {:.0} / {shards} × {} B",
                needs.writes(),
                assume.write_bytes
            ),
            &["write_percent", "write_bytes"],
        ),
        figure(
            "repl_backlog",
            node.backlog_mb,
            "MiB",
            format!(
                "write_rate × outage_seconds ({}), at least {LEAST_BACKLOG_MB} MiB",
                assume.outage_seconds
            ),
            &["outage_seconds"],
        ),
        figure(
            "maxmemory",
            node.maxmemory_mb,
            "MiB",
            format!("data_per_shard / (1 - headroom {}%) + repl_backlog", assume.headroom_percent),
            &["headroom_percent"],
        ),
        figure(
            "replica_buffer",
            node.buffer_mb,
            "MiB",
            format!(
                "maxmemory / 8, at least {LEAST_BUFFER_MB} MiB: what may pile up during a full copy"
            ),
            &[],
        ),
        figure(
            "copy_on_write",
            node.fork_gb,
            "GiB",
            format!(
                "data_per_shard × {}%: written to while a fork saves",
                assume.copy_on_write_percent
            ),
            &["copy_on_write_percent"],
        ),
        figure(
            "memory_per_node",
            round_up(node.total_gb).min(given(needs, node)),
            "GiB",
            format!(
                "maxmemory × fragmentation {} + replica_buffer + copy_on_write + system {}",
                assume.fragmentation_ratio, assume.system_gb
            ),
            &["fragmentation_ratio", "system_gb"],
        ),
        figure(
            "full_copy",
            node.data_gb * MB_PER_GB / assume.copy_mb_per_second,
            "s",
            format!("data_per_shard / {} MiB/s", assume.copy_mb_per_second),
            &["copy_mb_per_second"],
        ),
        figure(
            "disk_per_node",
            disk_gb as f64,
            "GiB",
            if assume.persistence {
                "4 × data_per_shard: append-only file, its next one while it is rewritten, and a snapshot".to_owned()
            } else {
                "data_per_shard: the file that a full copy may need".to_owned()
            },
            &["persistence"],
        ),
    ]
}
