//! What else there is, and what it gives up.

use serde::Serialize;
use utoipa::ToSchema;

use super::choice::{LEAST_SHARDS, beyond_one};
use super::request::Needs;
use crate::domain::spec::Mode;

/// Another way, with what is gained and what is lost by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Alternative {
    pub architecture: Mode,
    pub shards: usize,
    pub replicas_per_shard: usize,
    /// Data nodes and Sentinels together.
    pub nodes: usize,
    pub gains: String,
    pub gives_up: String,
    /// What to ask for to have the advice for it.
    pub ask: String,
}

pub(super) fn alternatives(needs: &Needs, chosen: Mode, replicas: usize) -> Vec<Alternative> {
    let fits = beyond_one(needs).is_empty();
    let writes = needs.scales_writes();
    let mut all = Vec::new();
    let one_shard =
        |mode: Mode, sentinels: usize, gains: &str, gives_up: &str, ask: &str| Alternative {
            architecture: mode,
            shards: 1,
            replicas_per_shard: 2,
            nodes: 3 + sentinels,
            gains: gains.to_owned(),
            gives_up: gives_up.to_owned(),
            ask: ask.to_owned(),
        };
    if chosen != Mode::Replication && fits && !writes {
        all.push(one_shard(
            Mode::Replication,
            0,
            "the fewest parts: no Sentinels, any client",
            "automatic failover: writes fail until somebody asks for one",
            "ha_mode: replication",
        ));
    }
    if chosen != Mode::Sentinel && fits && !writes {
        all.push(one_shard(
            Mode::Sentinel,
            3,
            "a replica takes over by itself",
            if chosen == Mode::Replication {
                "simplicity: three Sentinels, and clients that ask them for the primary"
            } else {
                "growth of writes and data beyond one node"
            },
            "ha_mode: sentinel",
        ));
    }
    if chosen != Mode::Cluster {
        all.push(Alternative {
            architecture: Mode::Cluster,
            shards: LEAST_SHARDS,
            replicas_per_shard: 1,
            nodes: 2 * LEAST_SHARDS,
            gains: "room for more data and writes than one node has, and a failure touches a part of the keys only".to_owned(),
            gives_up: "commands over keys of several slots (E504), databases other than 0, and clients that do not know clusters".to_owned(),
            ask: "ha_mode: cluster".to_owned(),
        });
    }
    if chosen == Mode::Cluster && replicas == 1 {
        all.push(Alternative {
            architecture: Mode::Cluster,
            shards: LEAST_SHARDS,
            replicas_per_shard: 2,
            nodes: 3 * LEAST_SHARDS,
            gains: "each shard stays redundant while a zone or a node is away".to_owned(),
            gives_up: "a third of the memory that is paid for".to_owned(),
            ask: "node_count: three times the number of shards".to_owned(),
        });
    }
    all
}
