//! Typed ids. Resources that Reeve makes get a UUID v7 (RFC 9562), so they sort by age; making one
//! needs a clock and randomness and therefore happens outside of the domain (`clock::new_id`).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }
    )*};
}

ids! {
    /// A registered node. (What Redis Cluster calls a node id is a [`ClusterNodeId`](super::node::ClusterNodeId).)
    NodeId;
    /// A topology.
    TopologyId;
    /// A shard; stable over the life of its topology.
    ShardId;
    /// A plan.
    PlanId;
    /// An API token.
    TokenId;
    /// A process that works on the database.
    InstanceId;
    /// A diagnosed fault or risk.
    FindingId;
    /// An endpoint that subscribed to events.
    WebhookId;
    /// The attempts to hand one event to one endpoint.
    DeliveryId;
}

impl ShardId {
    /// The id of the `ordinal`-th shard that a topology ever had: derived (UUID v5), so that
    /// placement needs no randomness. (A preview of a new topology has another topology id, and so
    /// other shard ids, than the real call.)
    #[must_use]
    pub fn derive(topology: TopologyId, ordinal: u32) -> Self {
        Self(Uuid::new_v5(&topology.0, &ordinal.to_be_bytes()))
    }
}
