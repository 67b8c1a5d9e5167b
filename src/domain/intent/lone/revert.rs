//! An older version of a topology with a lone shard is wanted again.

use super::members::{departures, succession};
use super::{unjudged, watched};
use crate::domain::intent::{Amendment, about};
use crate::domain::lineage;
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Report, Role};
use crate::domain::planner::{ResetTerm, Terms};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::topology::{Shard, Topology};
use crate::domain::view::Primary;

/// `shard` is the older version's.
pub fn amend(
    now: &Topology,
    older: &Topology,
    shard: &Shard,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let refuse = |errors: Vec<FieldError>| match errors.as_slice() {
        [] => Ok(()),
        [_, ..] => Err(Refusal::NodesUnfit { errors, redis: None }),
    };
    let mut terms = Terms { unwatch: watched::leaving(&now.spec, &older.spec), ..Terms::default() };
    if let Some(current) = super::of(now) {
        terms.leavers = departures(current, shard, seen);
        let primary = lineage::incumbent(current, seen);
        match succession(current, shard, primary, older.spec.drained(), seen) {
            Ok(seat) => terms.seats.extend(seat.map(|seat| (shard.id, seat))),
            Err(why) => refuse(vec![FieldError::new("/intent/version", why)])?,
        }
    }
    let served =
        !terms.seats.is_empty() || matches!(lineage::primary_of(shard, seen), Primary::Settled(_));
    if !served {
        let unread = |node: &Address| {
            let why = unjudged(node, seen)?;
            let detail = format!(
                "{why}, and no other node is primary: bring it back, since it may hold the data"
            );
            Some(about(node, &older.spec, detail))
        };
        refuse(shard.members.iter().filter_map(unread).collect())?;
        begin_anew(shard, &mut terms, seen).map_err(|why| Refusal::NodesUnfit {
            errors: vec![FieldError::new("/intent/version", why)],
            redis: None,
        })?;
    }
    Ok(Amendment {
        spec: Some(older.spec.clone()),
        layout: older.layout.clone(),
        terms,
        warnings: vec![],
    })
}

/// Where nobody is primary: the first member begins if nothing is left anywhere.
fn begin_anew(shard: &Shard, terms: &mut Terms, seen: &Observation) -> Result<(), String> {
    let reports = || shard.members.iter().filter_map(|m| Some((m, seen.report(m)?)));
    let holds = |(_, r): &(&Address, &Report)| r.keys > 0;
    if let Some((node, report)) = reports().find(holds) {
        return Err(format!(
            "{node} holds {} keys, and nobody is primary: have it take over first (REPLICAOF NO ONE there, or failover with method force), then revert",
            report.keys
        ));
    }
    terms.forming = true;
    let remains = reports().filter(|(_, r)| !r.is_blank());
    let reset = |(node, r): (&Address, &Report)| Some((node.clone(), ResetTerm::of(r)?));
    terms.resets = remains.filter_map(reset).collect();
    let leads = |(_, r): &(&Address, &Report)| r.role == Role::Primary;
    let first = reports().find(leads).or_else(|| reports().next());
    let first = first.ok_or_else(|| "the version has no members".to_owned())?;
    terms.primaries.insert(shard.id, first.0.clone());
    Ok(())
}
