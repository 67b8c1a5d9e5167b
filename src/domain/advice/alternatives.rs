//! What else there is, and what it gives up.

use serde::Serialize;
use utoipa::ToSchema;

use super::choice::{Choice, beyond_one_primary, choose};
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

/// Everything else that could be had with as many servers as it takes.
pub(super) fn alternatives(needs: &Needs, chosen: &Choice) -> Vec<Alternative> {
    let one_would_do = beyond_one_primary(needs).is_empty() && !needs.scales_writes();
    let other = |mode: Mode, gains: &str, gives_up: &str| {
        let asked = Needs {
            mode: Some(mode),
            servers: None,
            nodes: None,
            sentinels: None,
            ..needs.clone()
        };
        let other = choose(&asked).ok().filter(|_| mode != chosen.mode)?;
        if other.notices.0.iter().any(|notice| notice.code == "too_many_readers") {
            return None;
        }
        let mode = match mode {
            Mode::Replication => "replication",
            Mode::Sentinel => "sentinel",
            Mode::Cluster => "cluster",
        };
        // Sentinels share the servers of data nodes.
        let servers = (other.shards * (other.replicas + 1)).max(other.sentinels);
        let ask = match needs.servers {
            Some(there) if there < servers => format!("ha_mode: {mode}, node_count: {servers}"),
            Some(_) | None => format!("ha_mode: {mode}"),
        };
        Some(alternative(&other, other.replicas, gains, gives_up, &ask))
    };
    let replication = || {
        other(
            Mode::Replication,
            "the fewest parts: no Sentinels, any client",
            "automatic failover: writes fail until somebody asks for one",
        )
    };
    let sentinel = || {
        other(
            Mode::Sentinel,
            "a replica takes over by itself",
            if chosen.mode == Mode::Replication {
                "simplicity: three Sentinels, and clients that ask them for the primary"
            } else {
                "growth of writes and data beyond one node"
            },
        )
    };
    let cluster = other(
        Mode::Cluster,
        "room for more data and writes than one node has, and a failure touches a part of the keys only",
        "commands over keys of several slots (E504), databases other than 0, and clients that do not know clusters",
    );
    let redundant = (chosen.mode == Mode::Cluster && chosen.replicas == 1).then(|| {
        alternative(
            chosen,
            2,
            "each shard stays redundant while a zone or a node is away",
            "a third of the memory that is paid for",
            &format!("node_count: {}", chosen.shards * 3),
        )
    });
    let lone = if one_would_do { [replication(), sentinel()] } else { [None, None] };
    lone.into_iter().chain([cluster, redundant]).flatten().collect()
}

fn alternative(
    choice: &Choice,
    replicas: usize,
    gains: &str,
    gives_up: &str,
    ask: &str,
) -> Alternative {
    Alternative {
        architecture: choice.mode,
        shards: choice.shards,
        replicas_per_shard: replicas,
        nodes: choice.shards * (replicas + 1) + choice.sentinels,
        gains: gains.to_owned(),
        gives_up: gives_up.to_owned(),
        ask: ask.to_owned(),
    }
}
