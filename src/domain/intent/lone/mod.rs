//! The intents on a topology with one lone shard: one primary with replicas, whoever watches them.

pub(super) mod adopt;
pub(super) mod adopt_watched;
pub(super) mod create;
pub(super) mod drain;
pub(super) mod drift;
pub(super) mod failover;
pub(super) mod members;
pub(super) mod replace;
pub(super) mod revert;
pub(super) mod watched;

use crate::domain::node::Address;
use crate::domain::observation::{Observation, Sighting};
use crate::domain::planner::Seat;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::slot::SlotSet;
use crate::domain::step::command::FailoverMethod;
use crate::domain::succession::expected;
use crate::domain::topology::{Shard, Topology};

/// The lone shard of a topology that has one.
pub(super) fn of(now: &Topology) -> Option<&Shard> {
    now.layout.lone()
}

/// Why a node cannot be judged, if it cannot; continues a sentence that begins with its address.
pub(super) fn unjudged(node: &Address, seen: &Observation) -> Option<String> {
    match seen.sighting(node) {
        Sighting::Seen(report) if report.loading => Some("still loads its data".to_owned()),
        Sighting::Seen(report) if report.cluster_enabled => Some("runs in cluster mode".to_owned()),
        Sighting::Seen(_) => None,
        Sighting::Silent(silence) => Some(format!("does not answer ({})", silence.message)),
        Sighting::Unknown => Some("was not looked at".to_owned()),
    }
}

/// A change of primary.
fn seat(from: &Address, to: &Address, method: FailoverMethod, seen: &Observation) -> Seat {
    let expected_ms = expected(method, from, to, seen);
    let from_id = seen.report(from).map(|r| r.identity());
    let from_id = from_id.unwrap_or_else(|| crate::domain::node::ClusterNodeId(String::new()));
    let (from, to) = (from.clone(), to.clone());
    Seat { from, from_id, slots: SlotSet::empty(), to, method, expected_ms }
}

fn invalid(pointer: &str, why: impl Into<String>) -> Refusal {
    Refusal::Invalid(vec![FieldError::new(pointer, why.into())])
}

fn unfit(pointer: &str, why: impl Into<String>) -> Refusal {
    Refusal::NodesUnfit { errors: vec![FieldError::new(pointer, why.into())], redis: None }
}
