//! Create: a new cluster on nodes that are blank, or that may be made so.
//!
//! All that is wrong with any node is found at once, before anything is touched.

use std::collections::{BTreeMap, BTreeSet};

use super::{Amendment, lone};
use crate::domain::fault::Fault;
use crate::domain::id::TopologyId;
use crate::domain::node::{Address, ClusterNodeId, NodeKind};
use crate::domain::observation::{ClusterView, Observation, Report, Sighting};
use crate::domain::placement::{self, Warning};
use crate::domain::planner::{ResetTerm, Terms};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::spec::{ClusterSpec, NodeSpec, Spec};
use crate::domain::topology::Layout;

/// The new topology, or everything that stands against it. `seen` holds a fresh look at every
/// node of the spec.
pub fn amend(
    topology: TopologyId,
    spec: &Spec,
    reset_nodes: bool,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let cluster = match spec {
        Spec::Cluster(cluster) => cluster,
        Spec::Replication(_) | Spec::Sentinel(_) => {
            return lone::create::amend(topology, spec, reset_nodes, seen);
        }
    };
    let placed = placement::place(&placement::Request {
        topology,
        nodes: &cluster.nodes,
        shards: cluster.shards,
        replicas: cluster.replicas_per_shard,
        overrides: &cluster.overrides,
        placement: &cluster.placement,
        previous: None,
    })?;
    let errors = unfit(cluster, reset_nodes, seen);
    if !errors.is_empty() {
        return Err(Refusal::NodesUnfit {
            errors,
            redis: first_fault(cluster.nodes.iter().map(|n| &n.address), seen),
        });
    }
    let mut warnings = placed.warnings;
    warnings.extend(mixed_versions(&cluster.nodes, seen));
    let terms = Terms {
        primaries: placed.primaries,
        resets: if reset_nodes { resets(&cluster.nodes, seen) } else { BTreeMap::new() },
        forming: true,
        ..Terms::default()
    };
    let layout = Layout::Cluster { shards: placed.shards };
    Ok(Amendment { spec: None, layout, terms, warnings })
}

/// The first error that a node itself answered with, for the problem's `redis` member.
pub(super) fn first_fault<'a>(
    mut nodes: impl Iterator<Item = &'a Address>,
    seen: &Observation,
) -> Option<Fault> {
    nodes.find_map(|node| match seen.sighting(node) {
        Sighting::Silent(s) if s.code.chars().all(|c| c.is_ascii_uppercase()) => {
            Some(Fault::new(&s.code, s.message.clone(), node))
        }
        Sighting::Silent(_) | Sighting::Seen(_) | Sighting::Unknown => None,
    })
}

fn unfit(spec: &ClusterSpec, reset_nodes: bool, seen: &Observation) -> Vec<FieldError> {
    let ids = identities(&spec.nodes, seen);
    let mut errors = Vec::new();
    for (i, node) in spec.nodes.iter().enumerate() {
        let mut wrong = |detail: String| {
            errors.push(FieldError::new(
                format!("/spec/nodes/{i}/address"),
                format!("{} {detail}", node.address),
            ));
        };
        match seen.sighting(&node.address) {
            Sighting::Unknown => wrong("was not looked at; try again".to_owned()),
            Sighting::Silent(s) => {
                wrong(cannot_be_read(&s.code, &s.message, "spec.credentials.admin"))
            }
            Sighting::Seen(report) => {
                for detail in lacks(report, &ids, reset_nodes) {
                    wrong(detail);
                }
            }
        }
    }
    errors.extend(twins(&spec.nodes, seen));
    errors.extend(replication_login(&Spec::Cluster(spec.clone()), seen));
    errors.extend(formats(&spec.nodes, seen));
    errors
}

/// Why a node does not show itself, and what to do; `login` is where the request names the login.
pub(super) fn cannot_be_read(code: &str, message: &str, login: &str) -> String {
    match code {
        "NOAUTH" => {
            format!("demands a login: store it with POST /v1/credentials and name it in {login}")
        }
        "WRONGPASS" => {
            format!("refuses the login ({message}): correct the credential that {login} names")
        }
        "NOPERM" => format!(
            "does not let this user look ({message}): give the ACL user the rights that the documentation lists"
        ),
        "unreachable" | "no_reply" => {
            format!("does not answer ({message}): start it, or correct the address or the firewall")
        }
        _ => format!("answers with an error ({code} {message}): mend it on the node"),
    }
}

/// What one node lacks; each entry continues a sentence that begins with its address.
pub(super) fn lacks(
    report: &Report,
    ids: &BTreeSet<&ClusterNodeId>,
    reset_nodes: bool,
) -> Vec<String> {
    if report.kind == NodeKind::Sentinel {
        return vec!["is a Sentinel; name data nodes here".to_owned()];
    }
    let Some(view) = report.cluster.as_ref().filter(|_| report.cluster_enabled) else {
        return vec!["does not run in cluster mode: start it with cluster-enabled yes".to_owned()];
    };
    let mut lacks = Vec::new();
    if report.loading {
        lacks.push("still loads its data: try again when it is done".to_owned());
    }
    if report.bus_reachable == Some(false) {
        lacks.push(
            "does not take connections on its cluster bus port (its port + 10000 unless announced otherwise): open it in the firewall, from every node and from Reeve".to_owned(),
        );
    }
    let foreign = foreigners(view, ids);
    if let Some(first) = foreign.first() {
        lacks.push(format!(
            "belongs to another cluster (it knows {} nodes that are not listed here, such as {first}): take it out of that cluster first, or adopt the whole cluster",
            foreign.len()
        ));
    } else if !reset_nodes && report.keys > 0 {
        lacks.push(format!(
            "holds {} keys: empty it, or set reset_nodes and accept the hazard flush:<address>",
            report.keys
        ));
    } else if !reset_nodes && !report.is_blank() {
        lacks.push("carries remains of an earlier cluster (known nodes, slots, an epoch or functions): CLUSTER RESET HARD it, or set reset_nodes (and accept the hazard flush:<address> if it has functions)".to_owned());
    }
    lacks
}

/// Nodes of a cluster that is not the one to be made; to reset one of theirs would hurt them.
fn foreigners(view: &ClusterView, ids: &BTreeSet<&ClusterNodeId>) -> Vec<String> {
    let foreign = view.peers.iter().filter(|(id, p)| !ids.contains(id) && !p.handshake);
    foreign.map(|(id, p)| p.address.as_ref().map_or(id.to_string(), Address::to_string)).collect()
}

fn identities<'a>(nodes: &[NodeSpec], seen: &'a Observation) -> BTreeSet<&'a ClusterNodeId> {
    nodes.iter().filter_map(|n| seen.view(&n.address)).map(|v| &v.my_id).collect()
}

/// Nodes that were started from one copied nodes.conf, or are one process under two addresses.
pub(super) fn twins(nodes: &[NodeSpec], seen: &Observation) -> Vec<FieldError> {
    let mut first_with: BTreeMap<&ClusterNodeId, &Address> = BTreeMap::new();
    let mut errors = Vec::new();
    for (i, node) in nodes.iter().enumerate() {
        let Some(view) = seen.view(&node.address) else { continue };
        if let Some(twin) = first_with.insert(&view.my_id, &node.address) {
            errors.push(FieldError::new(
                format!("/spec/nodes/{i}/address"),
                format!(
                    "{} has the same cluster id as {twin}: it is the same process, or its nodes.conf was copied; remove one, or delete its nodes.conf and restart it",
                    node.address
                ),
            ));
        }
    }
    errors
}

/// Where clients must log in, replicas must too.
pub(super) fn replication_login(spec: &Spec, seen: &Observation) -> Option<FieldError> {
    let reports = || spec.nodes().iter().filter_map(|n| Some((n, seen.report(&n.address)?)));
    let closed = reports().any(|(_, r)| r.requires_login);
    let (without, _) = reports().find(|(_, r)| !r.has_replication_login)?;
    let replicas = match spec {
        Spec::Cluster(spec) => spec.replicas_per_shard,
        Spec::Replication(_) | Spec::Sentinel(_) => spec.lone_replicas().unwrap_or(0),
    };
    let needed = replicas > 0 && spec.credentials().replication.is_none();
    (closed && needed).then(|| {
        FieldError::new(
            "/spec/credentials/replication",
            format!(
                "nodes demand a login, but {} has no masterauth to log in to its primary with: name a stored credential here and Reeve sets it on every node",
                without.address
            ),
        )
    })
}

/// Any member may become primary of its shard, so each must read what any other writes.
pub(super) fn formats(nodes: &[NodeSpec], seen: &Observation) -> Vec<FieldError> {
    let reports =
        || nodes.iter().enumerate().filter_map(|(i, n)| Some((i, n, seen.report(&n.address)?)));
    let Some((_, newest, newest_report)) =
        reports().max_by_key(|(_, _, r)| r.capabilities().rdb_version)
    else {
        return vec![];
    };
    reports()
        .filter(|(_, _, r)| !r.capabilities().can_replicate_from(newest_report.capabilities()))
        .map(|(i, node, report)| {
            FieldError::new(
                format!("/spec/nodes/{i}/address"),
                format!(
                    "{} runs {:?} {}, which cannot load what {} ({:?} {}) writes: use one version for all nodes",
                    node.address, report.flavor, report.version,
                    newest.address, newest_report.flavor, newest_report.version
                ),
            )
        })
        .collect()
}

pub(super) fn mixed_versions(nodes: &[NodeSpec], seen: &Observation) -> Option<Warning> {
    let versions: BTreeSet<_> = nodes
        .iter()
        .filter_map(|n| seen.report(&n.address))
        .map(|r| format!("{:?} {}", r.flavor, r.version))
        .collect();
    (versions.len() > 1).then(|| Warning {
        code: "mixed_versions".to_owned(),
        message: format!(
            "the nodes run different versions ({}); bring them to one version",
            versions.into_iter().collect::<Vec<_>>().join(", ")
        ),
    })
}

pub(super) fn resets(nodes: &[NodeSpec], seen: &Observation) -> BTreeMap<Address, ResetTerm> {
    nodes
        .iter()
        .filter_map(|n| Some((&n.address, seen.report(&n.address)?)))
        .filter(|(_, r)| !r.is_blank())
        // Whoever makes a cluster of these nodes knows that the earlier one is at its end.
        .filter_map(|(a, r)| Some((a.clone(), ResetTerm { serves: false, ..ResetTerm::of(r)? })))
        .collect()
}
