//! A new primary with replicas, on nodes that are blank, or that may be made so.
//!
//! Nodes that were started from Reeve's files are blank too, but each waits as a replica of a sibling
//! ([`files`](crate::domain::files)): nobody leads, so nobody takes writes, until one is detached.

use std::collections::{BTreeMap, BTreeSet};

use super::watched;
use crate::domain::id::TopologyId;
use crate::domain::intent::Amendment;
use crate::domain::intent::create::{
    cannot_be_read, first_fault, formats, mixed_versions, replication_login, resets,
};
use crate::domain::node::{Address, NodeKind};
use crate::domain::observation::{Observation, Report, Role, Sighting};
use crate::domain::placement;
use crate::domain::planner::{ResetTerm, Terms};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::spec::{NodeSpec, Spec};
use crate::domain::topology::{Layout, Shard};

pub fn amend(
    topology: TopologyId,
    spec: &Spec,
    reset_nodes: bool,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let placed = placement::place_lone(topology, spec, spec.nodes(), None)?;
    let mut errors = unfit(spec, reset_nodes, seen);
    let (lacking, unwise) = watched::checked(None, spec, seen)?;
    errors.extend(lacking);
    if !errors.is_empty() {
        let redis = first_fault(spec.nodes().iter().map(|n| &n.address), seen);
        return Err(Refusal::NodesUnfit { errors, redis });
    }
    let mut warnings = placed.warnings;
    warnings.extend(unwise);
    warnings.extend(mixed_versions(spec.nodes(), seen));
    let shard = placed.shard;
    let first = shard.members.first();
    let waits = |a: &&Address| seen.report(a).is_some_and(|r| waits_for_a_primary(r, seen));
    let detached =
        first.filter(waits).and_then(|a| Some((a.clone(), ResetTerm::of(seen.report(a)?)?)));
    let resets = if reset_nodes { resets(spec.nodes(), seen) } else { BTreeMap::new() };
    let terms = Terms {
        primaries: first.map(|first| (shard.id, first.clone())).into_iter().collect(),
        resets: resets.into_iter().chain(detached).collect(),
        forming: true,
        ..Terms::default()
    };
    Ok(Amendment { spec: None, layout: laid_out(spec, shard), terms, warnings })
}

/// The layout of a spec's mode.
pub(in crate::domain::intent) fn laid_out(spec: &Spec, shard: Shard) -> Layout {
    match spec {
        Spec::Sentinel(s) => {
            let sentinels = s.sentinels.iter().map(|n| n.address.clone()).collect();
            Layout::Sentinel { shard, sentinels }
        }
        Spec::Replication(_) | Spec::Cluster(_) => Layout::Replication { shard },
    }
}

fn unfit(spec: &Spec, reset_nodes: bool, seen: &Observation) -> Vec<FieldError> {
    let nodes = spec.nodes();
    let listed: BTreeSet<&Address> = nodes.iter().map(|n| &n.address).collect();
    let mut errors = Vec::new();
    for (i, node) in nodes.iter().enumerate() {
        let mut wrong = |detail: String| {
            let detail = format!("{} {detail}", node.address);
            errors.push(FieldError::new(format!("/spec/nodes/{i}/address"), detail));
        };
        match seen.sighting(&node.address) {
            Sighting::Unknown => wrong("was not looked at; try again".to_owned()),
            Sighting::Silent(s) => {
                wrong(cannot_be_read(&s.code, &s.message, "spec.credentials.admin"));
            }
            Sighting::Seen(report) => {
                let reset_nodes = reset_nodes || waits_for_a_primary(report, seen);
                lacks(report, &listed, reset_nodes).into_iter().for_each(wrong);
            }
        }
    }
    errors.extend(twins(nodes, seen));
    errors.extend(replication_login(spec, seen));
    errors.extend(formats(nodes, seen));
    errors
}

/// Whether a node holds nothing and follows one that holds nothing and follows in turn.
fn waits_for_a_primary(report: &Report, seen: &Observation) -> bool {
    let follows = |r: &Report| {
        r.role == Role::Replica
            && r.keys == 0
            && !r.functions
            && r.replication.replicas.is_empty()
            && !r.replication.link_up
    };
    let followed = report.replication.primary.as_ref().and_then(|p| seen.report(p));
    follows(report) && followed.is_some_and(follows)
}

/// What one node lacks; each entry continues a sentence that begins with its address. `listed` are
/// nodes that it may know.
pub(in crate::domain::intent) fn lacks(
    report: &Report,
    listed: &BTreeSet<&Address>,
    reset_nodes: bool,
) -> Vec<String> {
    if report.kind == NodeKind::Sentinel {
        return vec!["is a Sentinel; name data nodes here".to_owned()];
    }
    if report.cluster_enabled {
        return vec!["runs in cluster mode: start it with cluster-enabled no".to_owned()];
    }
    let mut lacks = Vec::new();
    if report.loading {
        lacks.push("still loads its data: try again when it is done".to_owned());
    }
    let link = &report.replication;
    let strangers: Vec<String> = link
        .replicas
        .iter()
        .map(|r| &r.address)
        .chain(&link.primary)
        .filter(|a| !listed.contains(a))
        .map(ToString::to_string)
        .collect();
    if !strangers.is_empty() {
        lacks.push(format!(
            "replicates with nodes that are not listed here ({}): detach it there first (REPLICAOF NO ONE), or adopt the whole deployment",
            strangers.join(", ")
        ));
    } else if !reset_nodes && report.keys > 0 {
        lacks.push(format!(
            "holds {} keys: empty it, or set reset_nodes and accept the hazard flush:<address>",
            report.keys
        ));
    } else if !reset_nodes && report.role == Role::Replica {
        lacks.push("is a replica already: detach it (REPLICAOF NO ONE), set reset_nodes, or adopt the deployment".to_owned());
    } else if !reset_nodes && !report.is_blank() {
        lacks.push("holds functions or has replicas: empty it (FUNCTION FLUSH) and detach them, or set reset_nodes".to_owned());
    }
    lacks
}

/// One process under two addresses.
pub(in crate::domain::intent) fn twins(nodes: &[NodeSpec], seen: &Observation) -> Vec<FieldError> {
    let mut first_with: BTreeMap<&str, &Address> = BTreeMap::new();
    let mut errors = Vec::new();
    for (i, node) in nodes.iter().enumerate() {
        let Some(report) = seen.report(&node.address) else { continue };
        if let Some(twin) = first_with.insert(&report.run_id, &node.address) {
            let detail = format!("{} is the same process as {twin}; name it once", node.address);
            errors.push(FieldError::new(format!("/spec/nodes/{i}/address"), detail));
        }
    }
    errors
}
