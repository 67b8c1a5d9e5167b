//! What `/metrics` shows of the nodes that this instance watches. A gauge that nobody sets any more
//! is gone after a minute, so a topology is shown by whoever keeps it.

use std::collections::BTreeMap;

use crate::domain::failovers::{Bounds, Cause, NotTaken, Told};
use crate::domain::health::Health;
use crate::domain::node::Address;
use crate::domain::observation::Observation;
use crate::domain::view;
use crate::store::topologies::StoredTopology;

/// Shows how the nodes and shards of a topology are.
pub fn show(stored: &StoredTopology, seen: &Observation, health: &BTreeMap<Address, Health>) {
    let topology = &stored.wanted.name;
    begin_counting(topology);
    for node in seen.nodes.keys() {
        let up = health.get(node) == Some(&Health::Up);
        let labels = [("topology", topology.clone()), ("node", node.to_string())];
        metrics::gauge!("reeve_node_up", &labels).set(f64::from(u8::from(up)));
    }
    for shard in view::shards(&stored.standing(seen), seen) {
        let labels = [("topology", topology.clone()), ("shard", shard.id.to_string())];
        let primary = f64::from(u8::from(shard.primary.is_some()));
        metrics::gauge!("reeve_shard_has_primary", &labels).set(primary);
        for replica in shard.replicas {
            let labels = [("topology", topology.clone()), ("node", replica.address.to_string())];
            if let Some(bytes) = replica.lag_bytes {
                metrics::gauge!("reeve_replica_lag_bytes", &labels).set(bytes as f64);
            }
            if let Some(seconds) = replica.lag_seconds {
                metrics::gauge!("reeve_replica_lag_seconds", &labels).set(seconds as f64);
            }
        }
    }
}

/// So that the first of each is an increase: Prometheus sees none in a counter that begins at 1.
fn begin_counting(topology: &str) {
    let topology = topology.to_owned();
    metrics::counter!("reeve_failovers_detected_total", "topology" => topology.clone())
        .increment(0);
    for cause in [Cause::Planned, Cause::Election, Cause::External] {
        let (topology, cause) = (topology.clone(), word(&cause));
        metrics::counter!("reeve_failovers_total", "topology" => topology, "cause" => cause)
            .increment(0);
    }
    for reason in [NotTaken::PrimaryReturned, NotTaken::NoSuccessor, NotTaken::GivenUp] {
        let (topology, reason) = (topology.clone(), word(&reason));
        metrics::counter!("reeve_failovers_failed_total", "topology" => topology, "reason" => reason)
            .increment(0);
    }
}

/// Counts what is told of a failover.
pub fn count_failover(topology: &str, told: &Told) {
    let topology = topology.to_owned();
    match told {
        Told::Detected(_) => {
            metrics::counter!("reeve_failovers_detected_total", "topology" => topology)
                .increment(1);
        }
        Told::Started(_) => {}
        Told::Completed(done) => {
            let cause = word(&done.cause);
            metrics::counter!("reeve_failovers_total", "topology" => topology.clone(), "cause" => cause)
                .increment(1);
            count_unavailability(topology, done.unavailable_ms);
        }
        Told::Failed(failed) => {
            let reason = word(&failed.reason);
            metrics::counter!("reeve_failovers_failed_total", "topology" => topology.clone(), "reason" => reason)
                .increment(1);
            count_unavailability(topology, failed.unavailable_ms);
        }
    }
}

fn count_unavailability(topology: String, bounds: Option<Bounds>) {
    if let Some(bounds) = bounds {
        metrics::histogram!("reeve_unavailability_seconds", "topology" => topology)
            .record(bounds.at_most as f64 / 1000.0);
    }
}

/// The word by which a value goes in JSON.
fn word(value: &impl serde::Serialize) -> String {
    let json = serde_json::to_value(value).unwrap_or_default();
    json.as_str().unwrap_or_default().to_owned()
}
