//! Registered nodes and what was last seen of each.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{Postgres, Transaction};

use super::{Store, StoreError, document, journal, json, violated, word};
use crate::clock::new_id;
use crate::domain::event::{EventType, NewEvent};
use crate::domain::health::Health;
use crate::domain::id::NodeId;
use crate::domain::node::{Address, Labels, NodeKind};
use crate::domain::observation::Sighting;
use crate::domain::refusal::Refusal;
use crate::domain::spec::{NodeSpec, Spec};

/// A registered node.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub id: NodeId,
    pub address: Address,
    pub zone: String,
    pub host: Option<String>,
    pub labels: Labels,
    pub credential: Option<String>,
    pub kind: NodeKind,
    pub maintenance: bool,
    pub health: Health,
    pub sighting: Option<Sighting>,
    pub observed_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    /// Names of the topologies that it belongs to.
    pub topologies: Vec<String>,
}

/// What is known of a node when it is registered.
#[derive(Debug, Clone, PartialEq)]
pub struct NewNode {
    pub address: Address,
    pub zone: String,
    pub host: Option<String>,
    pub labels: Labels,
    pub credential: Option<String>,
    pub kind: NodeKind,
    pub maintenance: bool,
}

impl NewNode {
    /// The nodes that a spec names.
    #[must_use]
    pub fn of_spec(spec: &Spec) -> Vec<Self> {
        // Kept with the node, so that it can be looked at when the topology is gone.
        let names = spec.credentials();
        let login = |kind| match kind {
            NodeKind::Data => names.admin.clone(),
            NodeKind::Sentinel => names.sentinel.clone(),
        };
        let new = |n: &NodeSpec, kind| Self {
            address: n.address.clone(),
            zone: n.zone.clone(),
            host: n.host.clone(),
            labels: Labels::new(),
            credential: login(kind),
            kind,
            maintenance: false,
        };
        let data = spec.nodes().iter().map(|n| new(n, NodeKind::Data));
        let sentinels = spec.sentinels().iter().map(|n| new(n, NodeKind::Sentinel));
        data.chain(sentinels).collect()
    }
}

/// What a `PATCH` may change; a field that is left out stays.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeChange {
    pub zone: Option<String>,
    pub host: Option<Option<String>>,
    pub labels: Option<Labels>,
    pub credential: Option<Option<String>>,
    pub maintenance: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeFilter {
    pub topology: Option<String>,
    pub zone: Option<String>,
    pub health: Option<Health>,
    /// `primary`, `replica` or `sentinel`, as last seen.
    pub role: Option<String>,
    pub unassigned: bool,
    /// The address after which the page begins.
    pub after: Option<String>,
    /// Restricts to nodes of these topologies where the reader may not see all.
    pub visible: Option<Vec<String>>,
}

struct NodeRow {
    id: uuid::Uuid,
    address: String,
    zone: String,
    host: Option<String>,
    labels: serde_json::Value,
    credential: Option<String>,
    kind: String,
    maintenance: bool,
    health: String,
    sighting: Option<serde_json::Value>,
    observed_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    topologies: Vec<String>,
}

impl TryFrom<NodeRow> for Node {
    type Error = StoreError;

    fn try_from(row: NodeRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: NodeId(row.id),
            address: word("nodes", "address", row.address)?,
            zone: row.zone,
            host: row.host,
            labels: document("nodes", "labels", row.labels)?,
            credential: row.credential,
            kind: word("nodes", "kind", row.kind)?,
            maintenance: row.maintenance,
            health: word("nodes", "health", row.health)?,
            // What an older version saw and this one cannot read is simply not known.
            sighting: row.sighting.and_then(|s| serde_json::from_value(s).ok()),
            observed_at: row.observed_at,
            created_at: row.created_at,
            topologies: row.topologies,
        })
    }
}

/// Registers a node unless its address already is; the node's id either way.
pub(super) async fn ensure(
    tx: &mut Transaction<'_, Postgres>,
    node: &NewNode,
) -> Result<(NodeId, bool), StoreError> {
    let address = node.address.to_string();
    let id = new_id();
    let made = sqlx::query!(
        "INSERT INTO nodes (id, address, zone, host, labels, credential, kind, maintenance)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (address) DO NOTHING",
        id,
        address,
        node.zone,
        node.host,
        json(&node.labels)?,
        node.credential,
        kind(node.kind),
        node.maintenance
    )
    .execute(&mut **tx)
    .await?
    .rows_affected()
        == 1;
    let id = sqlx::query_scalar!("SELECT id FROM nodes WHERE address = $1", address)
        .fetch_one(&mut **tx)
        .await?;
    Ok((NodeId(id), made))
}

/// The event of a node that was registered.
pub(super) fn registered(address: &Address, zone: &str, id: NodeId, actor: &str) -> NewEvent {
    let data = serde_json::json!({ "node": id, "address": address, "zone": zone });
    NewEvent::new(EventType::NodeRegistered, data).by(actor)
}

pub(super) fn kind(kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::Data => "data",
        NodeKind::Sentinel => "sentinel",
    }
}

impl Store {
    /// Registers a node; its address must be new.
    pub async fn register_node(&self, node: &NewNode, actor: &str) -> Result<NodeId, StoreError> {
        let mut tx = self.pool.begin().await?;
        let (id, made) = ensure(&mut tx, node).await?;
        if !made {
            return Err(Refusal::NameTaken(node.address.to_string()).into());
        }
        journal::append(&mut tx, None, &[registered(&node.address, &node.zone, id, actor)]).await?;
        tx.commit().await?;
        Ok(id)
    }

    pub async fn node(&self, id: NodeId) -> Result<Node, StoreError> {
        let row = sqlx::query_as!(
            NodeRow,
            "SELECT n.*, ARRAY(SELECT t.name FROM topology_nodes tn JOIN topologies t ON t.id = tn.topology_id
                               WHERE tn.node_id = n.id ORDER BY t.name) AS \"topologies!\"
             FROM nodes n WHERE n.id = $1",
            id.0
        )
        .fetch_optional(&self.pool)
        .await?;
        row.ok_or(Refusal::NotFound { kind: "node", name: id.to_string() })?.try_into()
    }

    /// Nodes by address, at most `limit`.
    pub async fn nodes(&self, filter: &NodeFilter, limit: i64) -> Result<Vec<Node>, StoreError> {
        let rows = sqlx::query_as!(
            NodeRow,
            "SELECT * FROM (
                 SELECT n.*, ARRAY(SELECT t.name FROM topology_nodes tn JOIN topologies t ON t.id = tn.topology_id
                                   WHERE tn.node_id = n.id ORDER BY t.name) AS \"topologies!\"
                 FROM nodes n) q
             WHERE ($1::text IS NULL OR address > $1)
               AND ($2::text IS NULL OR $2 = ANY(\"topologies!\"))
               AND ($3::text IS NULL OR zone = $3)
               AND ($4::text IS NULL OR health = $4)
               AND ($5::text IS NULL OR sighting->>'role' = $5)
               AND (NOT $6 OR cardinality(\"topologies!\") = 0)
               AND ($7::text[] IS NULL OR \"topologies!\" && $7)
             ORDER BY address LIMIT $8",
            filter.after,
            filter.topology,
            filter.zone,
            filter.health.map(Health::as_str),
            filter.role,
            filter.unassigned,
            filter.visible.as_deref(),
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(Node::try_from).collect()
    }

    pub async fn change_node(&self, id: NodeId, change: &NodeChange) -> Result<Node, StoreError> {
        let labels = change.labels.as_ref().map(json).transpose()?;
        let done = sqlx::query!(
            "UPDATE nodes SET zone = coalesce($2, zone),
                 host = CASE WHEN $3 THEN $4 ELSE host END,
                 labels = coalesce($5, labels),
                 credential = CASE WHEN $6 THEN $7 ELSE credential END,
                 maintenance = coalesce($8, maintenance)
             WHERE id = $1",
            id.0,
            change.zone,
            change.host.is_some(),
            change.host.clone().flatten(),
            labels,
            change.credential.is_some(),
            change.credential.clone().flatten(),
            change.maintenance
        )
        .execute(&self.pool)
        .await?;
        if done.rows_affected() == 0 {
            return Err(Refusal::NotFound { kind: "node", name: id.to_string() }.into());
        }
        self.node(id).await
    }

    /// Forgets a node that no topology names, with the marks on it.
    pub async fn delete_node(&self, id: NodeId, events: &[NewEvent]) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        // One that was taken out while it was down is kept for its marks alone.
        sqlx::query!(
            "DELETE FROM topology_nodes tn USING nodes n, topologies t, topology_versions v
             WHERE tn.node_id = $1 AND tn.kind = 'data' AND n.id = $1 AND n.health = 'down'
               AND t.id = tn.topology_id AND v.topology_id = t.id AND v.version = t.version
               AND NOT v.spec -> 'nodes' @> jsonb_build_array(jsonb_build_object('address', n.address))
               AND NOT EXISTS (SELECT 1 FROM plans p WHERE p.topology_id = t.id
                               AND p.state IN ('queued', 'running', 'paused'))",
            id.0
        )
        .execute(&mut *tx)
        .await?;
        let deleted =
            sqlx::query_scalar!("DELETE FROM nodes WHERE id = $1 RETURNING address", id.0)
                .fetch_optional(&mut *tx)
                .await;
        let address = match deleted {
            Err(error) if violated(&error) == Some("topology_nodes_node_id_fkey") => {
                return Err(Refusal::InUse(
                    "the node belongs to a topology; remove it there first. One that was removed while it did not answer is given up when it is down and no plan is active; one that is back is taken out by repair".to_owned(),
                )
                .into());
            }
            Err(error) => return Err(error.into()),
            Ok(None) => {
                return Err(Refusal::NotFound { kind: "node", name: id.to_string() }.into());
            }
            Ok(Some(address)) => address,
        };
        sqlx::query!("DELETE FROM marks WHERE node = $1", address).execute(&mut *tx).await?;
        journal::append(&mut tx, None, events).await?;
        Ok(tx.commit().await?)
    }

    /// The names of the topologies that hold any of these data nodes, by address.
    pub async fn nodes_taken(
        &self,
        addresses: &[Address],
    ) -> Result<Vec<(Address, String)>, StoreError> {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let rows = sqlx::query!(
            "SELECT n.address, t.name FROM nodes n
             JOIN topology_nodes tn ON tn.node_id = n.id AND tn.kind = 'data'
             JOIN topologies t ON t.id = tn.topology_id WHERE n.address = ANY($1)",
            &addresses
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(|r| Ok((word("nodes", "address", r.address)?, r.name))).collect()
    }

    /// Keeps what was seen of nodes that no topology names, with the events that tell of it.
    pub async fn record_spares(
        &self,
        seen: &BTreeMap<Address, Sighting>,
        health: &BTreeMap<Address, Health>,
        events: &[NewEvent],
    ) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        record_sightings(&mut tx, seen, health).await?;
        journal::append(&mut tx, None, events).await?;
        Ok(tx.commit().await?)
    }
}

pub(super) async fn record_sightings(
    tx: &mut Transaction<'_, Postgres>,
    seen: &BTreeMap<Address, Sighting>,
    health: &BTreeMap<Address, Health>,
) -> Result<(), StoreError> {
    let addresses: Vec<String> = seen.keys().map(ToString::to_string).collect();
    let of = |a: &Address| health.get(a).copied().unwrap_or_default().as_str().to_owned();
    let health: Vec<String> = seen.keys().map(of).collect();
    let sightings: Vec<serde_json::Value> = seen.values().map(json).collect::<Result<_, _>>()?;
    sqlx::query!(
        "UPDATE nodes n SET health = u.health, sighting = u.sighting, observed_at = clock_timestamp()
         FROM unnest($1::text[], $2::text[], $3::jsonb[]) AS u(address, health, sighting)
         WHERE n.address = u.address",
        &addresses,
        &health,
        &sightings
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
