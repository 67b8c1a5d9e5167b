//! What is seen of a lone shard becomes what is wanted: one primary, and who follows it.

use std::collections::BTreeSet;

use super::create::laid_out;
use super::{unjudged, watched};
use crate::domain::intent::accept_drift::settings;
use crate::domain::intent::{Amendment, about};
use crate::domain::lineage;
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Role};
use crate::domain::planner::Terms;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::topology::{Shard, Topology};
use crate::domain::view::{Primary, follows};

pub fn amend(now: &Topology, shard: &Shard, seen: &Observation) -> Result<Amendment, Refusal> {
    let refuse = |errors: Vec<FieldError>| {
        if errors.is_empty() { Ok(()) } else { Err(Refusal::unsettled(errors)) }
    };
    let unread = |node: &Address| Some(about(node, &now.spec, unjudged(node, seen)?));
    refuse(shard.members.iter().filter_map(unread).collect())?;
    let listed: Vec<Address> = now.spec.nodes().iter().map(|n| n.address.clone()).collect();
    let everybody = Shard { members: listed, ..shard.clone() };
    let primary = match lineage::primary_of(&everybody, seen) {
        Primary::Settled(node) => node,
        Primary::None => {
            let why = "none of the nodes is primary";
            return Err(Refusal::unsettled(vec![FieldError::new("/spec/nodes", why)]));
        }
        Primary::Contested(several) => {
            let why = "takes writes, and is not the only one";
            let errors = several.iter().map(|n| about(n, &now.spec, why)).collect();
            return Err(Refusal::unsettled(errors));
        }
    };
    let after =
        |node: &Address| seen.report(node).is_some_and(|r| follows(r, Some(&primary), seen));
    let mut errors = Vec::new();
    for node in &shard.members {
        let Some(report) = seen.report(node) else { continue };
        if *node != primary && !after(node) && report.role == Role::Replica {
            let followed = report.replication.primary.as_ref();
            let whom = followed.map_or("nobody".to_owned(), ToString::to_string);
            let detail = format!("is a replica of {whom} and not of {primary}");
            errors.push(about(node, &now.spec, detail));
        }
        if report.replication_login_as_wanted == Some(false) {
            let detail = "has another replication login than the spec names";
            errors.push(about(node, &now.spec, detail));
        }
    }
    refuse(errors)?;
    let stays = |node: &&Address| **node == primary || after(node);
    let mut members: Vec<Address> = shard.members.iter().filter(stays).cloned().collect();
    let come = everybody.members.iter().filter(|n| !members.contains(n) && stays(n));
    let come: Vec<Address> = come.cloned().collect();
    members.extend(come);
    let replicas = u16::try_from(members.len().saturating_sub(1)).unwrap_or(u16::MAX);
    let parties: Vec<Address> =
        members.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
    let settings = settings(now.spec.settings(), &parties, seen)?;
    let nodes = now.spec.nodes().to_vec();
    let spec = now.spec.clone().with_nodes(nodes, replicas).with_settings(settings);
    let spec = watched::drifted(spec, shard, seen)?;
    let layout = laid_out(&spec, Shard { members, ..shard.clone() });
    Ok(Amendment { spec: Some(spec), layout, terms: Terms::default(), warnings: vec![] })
}
