//! How long a failover takes, from the timeouts that it waits for.

use serde::Serialize;
use utoipa::ToSchema;

use super::assumptions::Assumptions;
use crate::domain::spec::Mode;

/// Between these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = MillisecondBounds)]
pub struct Bounds {
    pub at_least_ms: u64,
    pub at_most_ms: u64,
}

impl Bounds {
    pub(super) fn new(at_least: f64, at_most: f64) -> Self {
        Self { at_least_ms: at_least.max(0.0) as u64, at_most_ms: at_most.max(0.0) as u64 }
    }
}

/// When the others have found out that a primary is dead: a ping goes unanswered for the timeout, and
/// is sent at least every half of it; then a majority must have said so to one of them, which they do
/// with their next pings.
pub(super) fn cluster_detects(node_timeout_ms: f64) -> Bounds {
    Bounds::new(node_timeout_ms, node_timeout_ms * 2.0 + 500.0)
}

/// Until writes are taken again: then a replica waits half a second and up to another, by chance, and
/// a second more for each replica that has more of the data; is elected; and the others learn of it.
/// (Measured with a
/// timeout of 5000 ms: 7.2 to 9.2 s; with 1000 ms on a busy machine: 2.6 to 3.9 s.)
pub(super) fn cluster(node_timeout_ms: f64) -> Bounds {
    let Bounds { at_least_ms, at_most_ms } = cluster_detects(node_timeout_ms);
    Bounds { at_least_ms: at_least_ms + 500, at_most_ms: at_most_ms + 1_500 }
}

/// When a Sentinel finds the primary down, and a quorum agrees: pings go out each second, and the
/// others are asked each second.
pub(super) fn sentinel_detects(down_after_ms: f64) -> Bounds {
    Bounds::new(down_after_ms, down_after_ms + 2_000.0)
}

/// Until writes are taken again: the Sentinels elect a leader, which promotes a replica. (Measured
/// with 5000 ms: 5.4 s, and 6.2 s until a client that asks Sentinels writes again.)
pub(super) fn sentinel(down_after_ms: f64) -> Bounds {
    let Bounds { at_least_ms, at_most_ms } = sentinel_detects(down_after_ms);
    Bounds { at_least_ms: at_least_ms + 200, at_most_ms: at_most_ms + 2_000 }
}

/// How long a server that ended stays down, so that another one takes over as soon as is said here.
///
/// Under Sentinels a primary that comes back at once waits as a replica, which they see only when they
/// have asked it twice more (measured: 35.8 s until writes are taken, instead of 6.2 s). In a cluster one
/// that keeps nothing on disk must not come back as an empty primary.
pub(super) fn restart_seconds(mode: Mode, assume: &Assumptions) -> u64 {
    const SPARE: u64 = 5;
    let after = |bounds: Bounds| bounds.at_most_ms / 1000 + SPARE;
    match mode {
        Mode::Sentinel => after(sentinel(assume.down_after_ms)),
        Mode::Cluster if !assume.persistence => after(cluster(assume.node_timeout_ms)),
        Mode::Cluster | Mode::Replication => 1,
    }
}
