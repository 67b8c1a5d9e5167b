//! Where everybody goes: the topology of a choice, laid out by the general placement.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::choice::Choice;
use super::request::Needs;
use super::sizing::Sizing;
use crate::domain::id::{ShardId, TopologyId};
use crate::domain::node::Address;
use crate::domain::placement::{Placed, Request, place};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::spec::{
    ClusterOverrides, ClusterSpec, FailoverSpec, Mode, NodeSpec, PlacementSpec, ReplicationSpec,
    SentinelSpec, Spec, TlsSpec,
};
use crate::domain::topology::{Layout, Topology};

const DATA_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26_379;

/// The topology, and who begins as primary.
pub(super) struct Plan {
    pub topology: Topology,
    pub primaries: BTreeMap<ShardId, Address>,
}

pub(super) fn plan(needs: &Needs, choice: &mut Choice, sizing: &Sizing) -> Result<Plan, Refusal> {
    let count = choice.shards * (choice.replicas + 1);
    let (nodes, sentinels) = match &needs.nodes {
        Some(nodes) => (nodes.clone(), on_given(needs, choice, nodes)),
        None => made_up(needs, choice, count),
    };
    let placement = PlacementSpec::default();
    let overrides = ClusterOverrides::default();
    let small = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    let request = Request {
        topology: TopologyId(Uuid::nil()),
        nodes: &nodes,
        shards: small(choice.shards),
        replicas: small(choice.replicas),
        overrides: &overrides,
        placement: &placement,
        previous: None,
    };
    let Placed { shards, primaries, warnings, .. } = place(&request).map_err(at_the_request)?;
    // Who has no part is left out of the spec, so that placement comes to the same when it is posted.
    let members: BTreeSet<Address> =
        shards.iter().flat_map(|(shard, _)| shard.members.clone()).collect();
    let nodes: Vec<NodeSpec> = nodes.into_iter().filter(|n| members.contains(&n.address)).collect();
    for warning in warnings.into_iter().filter(|w| w.code != "spare_nodes") {
        choice.notices.add(&warning.code, super::Severity::Warning, warning.message);
    }
    let settings = settings(needs, choice, sizing);
    let credentials = needs.credentials.clone();
    let failover = FailoverSpec::default();
    let (spec, layout) = match (choice.mode, shards.as_slice()) {
        (Mode::Replication, [(shard, _)]) => {
            let spec = ReplicationSpec {
                replicas: small(choice.replicas),
                nodes,
                credentials,
                tls: None,
                placement,
                settings,
                failover,
                overrides: Default::default(),
            };
            (Spec::Replication(spec), Layout::Replication { shard: shard.clone() })
        }
        (Mode::Sentinel, [(shard, _)]) => {
            let addresses = sentinels.iter().map(|s| s.address.clone()).collect();
            let spec = SentinelSpec {
                replicas: small(choice.replicas),
                nodes,
                master_name: needs.name.clone(),
                quorum: Some(small(sentinels.len() / 2 + 1)),
                sentinels,
                down_after_ms: Some(needs.assume.down_after_ms as u32),
                failover_timeout_ms: Some(60_000),
                parallel_syncs: Some(1),
                credentials,
                tls: None,
                placement,
                settings,
                failover,
                overrides: Default::default(),
            };
            let layout = Layout::Sentinel { shard: shard.clone(), sentinels: addresses };
            (Spec::Sentinel(spec), layout)
        }
        (Mode::Cluster | Mode::Replication | Mode::Sentinel, _) => {
            let spec = ClusterSpec {
                shards: small(choice.shards),
                replicas_per_shard: small(choice.replicas),
                nodes,
                credentials,
                tls: None,
                placement,
                settings,
                failover,
                overrides,
            };
            (Spec::Cluster(spec), Layout::Cluster { shards })
        }
    };
    let wrong = spec.validate();
    if !wrong.is_empty() {
        return Err(at_the_request(Refusal::Invalid(wrong)));
    }
    let spec = if needs.tls { encrypted(spec) } else { spec };
    let (id, name) = (TopologyId(Uuid::nil()), needs.name.clone());
    Ok(Plan { topology: Topology { id, name, version: 1, spec, layout }, primaries })
}

fn encrypted(mut spec: Spec) -> Spec {
    let tls = Some(TlsSpec { ca: None });
    match &mut spec {
        Spec::Cluster(s) => s.tls = tls,
        Spec::Replication(s) => s.tls = tls,
        Spec::Sentinel(s) => s.tls = tls,
    }
    spec
}

/// What is wrong with the spec, told of the request that it was made of.
fn at_the_request(refusal: Refusal) -> Refusal {
    let of_request = |error: FieldError| {
        let pointer = error.pointer.strip_prefix("/spec").unwrap_or(&error.pointer);
        let pointer = if pointer.starts_with("/nodes") || pointer.starts_with("/sentinels") {
            pointer.to_owned()
        } else {
            "/node_count".to_owned()
        };
        FieldError::new(pointer, error.detail)
    };
    match refusal {
        Refusal::Invalid(errors) => Refusal::Invalid(errors.into_iter().map(of_request).collect()),
        other => other,
    }
}

/// Settings that every node gets and keeps; the rest stands in the files alone.
fn settings(needs: &Needs, choice: &Choice, sizing: &Sizing) -> BTreeMap<String, String> {
    let assume = &needs.assume;
    let backlog = sizing.figures.iter().find(|f| f.name == "repl_backlog").map_or(0.0, |f| f.value);
    let mut settings = vec![
        ("maxmemory", format!("{}mb", sizing.maxmemory_mb)),
        ("maxmemory-policy", assume.eviction.clone()),
        ("repl-backlog-size", format!("{backlog:.0}mb")),
        ("appendonly", if assume.persistence { "yes" } else { "no" }.to_owned()),
    ];
    if !assume.persistence {
        settings.push(("save", String::new()));
    }
    if choice.mode == Mode::Cluster {
        settings.push(("cluster-node-timeout", format!("{:.0}", assume.node_timeout_ms)));
    } else {
        let least = if choice.replicas > 1 { "1" } else { "0" };
        settings.push(("min-replicas-to-write", least.to_owned()));
        settings.push(("min-replicas-max-lag", "10".to_owned()));
    }
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Nodes with example addresses, dealt over the zones.
fn made_up(needs: &Needs, choice: &Choice, count: usize) -> (Vec<NodeSpec>, Vec<NodeSpec>) {
    let zones = &needs.zones;
    let mut hosts = vec![0usize; zones.len()];
    let mut dealt = |i: usize| -> (String, String) {
        let zone = i % zones.len().max(1);
        let n = hosts.get_mut(zone).map_or(0, |n| {
            *n += 1;
            *n - 1
        });
        (host(zone, n), zones.get(zone).cloned().unwrap_or_default())
    };
    let node = |(host, zone): (String, String), port: u16| -> Option<NodeSpec> {
        Some(NodeSpec { address: format!("{host}:{port}").parse().ok()?, zone, host: None })
    };
    let nodes: Vec<NodeSpec> = (0..count).filter_map(|i| node(dealt(i), DATA_PORT)).collect();
    if choice.mode != Mode::Sentinel {
        return (nodes, vec![]);
    }
    if let Some(given) = &needs.sentinels {
        return (nodes, given.clone());
    }
    let sentinel = |i: usize| match nodes.get(i).filter(|_| !choice.apart) {
        Some(beside) => {
            node((beside.address.host().to_owned(), beside.zone.clone()), SENTINEL_PORT)
        }
        None => node(dealt(i), SENTINEL_PORT),
    };
    let sentinels: Vec<_> = (0..choice.sentinels).map(sentinel).collect();
    (nodes.clone(), sentinels.into_iter().flatten().collect())
}

/// The `n`-th host of a zone.
fn host(zone: usize, n: usize) -> String {
    if n < 200 {
        format!("10.0.{}.{}", zone + 1, 11 + n)
    } else {
        format!("10.{}.{}.{}", zone + 1, n / 200, 11 + n % 200)
    }
}

/// Sentinels on the machines that were given, in other zones first, unless they were given too.
fn on_given(needs: &Needs, choice: &mut Choice, nodes: &[NodeSpec]) -> Vec<NodeSpec> {
    if choice.mode != Mode::Sentinel {
        return vec![];
    }
    if let Some(given) = &needs.sentinels {
        return given.clone();
    }
    let mut by_zone: BTreeMap<&str, Vec<&NodeSpec>> = BTreeMap::new();
    let mut machines = BTreeSet::new();
    for node in nodes {
        if machines.insert(node.machine()) {
            by_zone.entry(&node.zone).or_default().push(node);
        }
    }
    let mut found = Vec::new();
    let longest = by_zone.values().map(Vec::len).max().unwrap_or(0);
    for round in 0..longest {
        found.extend(by_zone.values().filter_map(|zone| zone.get(round).copied()));
    }
    if found.len() < choice.sentinels {
        choice.notices.add(
            "few_machines",
            super::Severity::Critical,
            format!(
                "{} Sentinels need as many machines, and the nodes are on {}: give `sentinels` on others",
                choice.sentinels,
                found.len()
            ),
        );
    }
    // Machines may share an address, as containers of one host do.
    let mut taken: BTreeSet<Address> = nodes.iter().map(|n| n.address.clone()).collect();
    let beside = |node: &NodeSpec| {
        let ports = (SENTINEL_PORT..SENTINEL_PORT + 1000).filter_map(|port| {
            let host = node.address.to_string();
            let host = host.rsplit_once(':')?.0;
            format!("{host}:{port}").parse::<Address>().ok()
        });
        let address = ports.into_iter().find(|a| !taken.contains(a))?;
        taken.insert(address.clone());
        Some(NodeSpec { address, zone: node.zone.clone(), host: node.host.clone() })
    };
    let found: Vec<NodeSpec> =
        found.into_iter().take(choice.sentinels).filter_map(beside).collect();
    choice.sentinels = found.len();
    found
}
