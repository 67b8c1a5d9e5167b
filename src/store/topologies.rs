//! Wanted topologies, their versions, and what was last seen of them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{Postgres, Transaction};

use super::leases::{self, Held};
use super::nodes::NewNode;
use super::plans::NewPlan;
use super::{Store, StoreError, document, journal, json, marks, nodes, plans, violated};
use crate::domain::event::{EventType, NewEvent};
use crate::domain::health::Health;
use crate::domain::id::{PlanId, ShardId, TopologyId};
use crate::domain::node::{Address, Labels};
use crate::domain::observation::{Mark, Observation};
use crate::domain::planner::{Leaver, Seat, Terms};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::spec::Spec;
use crate::domain::topology::{Layout, Topology};
use crate::domain::view;

/// A topology with what surrounds its wanted shape.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTopology {
    pub wanted: Topology,
    pub labels: Labels,
    pub revision: i32,
    /// Whether the plan that creates it has succeeded.
    pub created: bool,
    pub active_plan: Option<PlanId>,
    /// Who is to leave by its plans that are active, or by the last one where that broke off.
    pub leavers: BTreeMap<Address, Leaver>,
    /// Which changes of primary those are about.
    pub seats: BTreeMap<ShardId, Seat>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl StoredTopology {
    /// The layout as it stands while its plans are at work.
    #[must_use]
    pub fn standing(&self, seen: &Observation) -> Cow<'_, Layout> {
        view::standing(&self.wanted.layout, &self.leavers, &self.seats, seen)
    }
}

/// One version, as it was.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredVersion {
    pub wanted: Topology,
    pub parent: Option<i32>,
    pub plan: Option<PlanId>,
    pub author: String,
    pub created_at: DateTime<Utc>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopologyFilter {
    /// The name after which the page begins.
    pub after: Option<String>,
    /// Restricts to these names where the reader may not see all.
    pub visible: Option<Vec<String>>,
}

/// Everything that a new topology brings along.
#[derive(Debug)]
pub struct NewTopology<'a> {
    pub wanted: &'a Topology,
    pub labels: &'a Labels,
    pub nodes: &'a [NewNode],
    pub plan: &'a NewPlan<'a>,
    pub actor: &'a str,
}

struct TopologyRow {
    id: uuid::Uuid,
    name: String,
    labels: serde_json::Value,
    version: i32,
    revision: i32,
    created: bool,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    spec: serde_json::Value,
    layout: serde_json::Value,
    active_plan: Option<uuid::Uuid>,
    terms: Option<serde_json::Value>,
}

impl TryFrom<TopologyRow> for StoredTopology {
    type Error = StoreError;

    fn try_from(row: TopologyRow) -> Result<Self, StoreError> {
        let terms: Vec<Terms> = match row.terms {
            Some(terms) => document("plans", "terms", terms)?,
            None => vec![],
        };
        Ok(Self {
            wanted: Topology {
                id: TopologyId(row.id),
                name: row.name,
                version: row.version,
                spec: document("topology_versions", "spec", row.spec)?,
                layout: document("topology_versions", "layout", row.layout)?,
            },
            labels: document("topologies", "labels", row.labels)?,
            revision: row.revision,
            created: row.created,
            active_plan: row.active_plan.map(PlanId),
            leavers: terms.iter().flat_map(|t| t.leavers.clone()).collect(),
            seats: terms.iter().flat_map(|t| t.seats.clone()).collect(),
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

impl Store {
    /// Stores a new topology, its nodes and its plan, all or nothing.
    pub async fn create_topology(&self, new: &NewTopology<'_>) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let wanted = new.wanted;
        insert(&mut tx, wanted, new.labels, Some(new.plan.id), new.actor).await?;
        let registered = enlist(&mut tx, wanted, new.nodes, new.actor).await?;
        adopt_marks(&mut tx, wanted, new.nodes).await?;
        plans::insert(&mut tx, new.plan).await?;
        let created = serde_json::json!({
            "version": wanted.version, "mode": wanted.spec.mode(), "labels": new.labels,
        });
        let mut events = vec![NewEvent::new(EventType::TopologyCreated, created).by(new.actor)];
        events.extend(new.plan.events());
        journal::append(&mut tx, None, &registered).await?;
        journal::append(&mut tx, Some(wanted.id), &events).await?;
        journal::ring(&mut tx, wanted.id).await?;
        Ok(tx.commit().await?)
    }

    pub async fn topology(&self, name: &str) -> Result<StoredTopology, StoreError> {
        let row = sqlx::query_as!(
            TopologyRow,
            "SELECT t.id, t.name, t.labels, t.version, t.revision, t.created, t.created_at, t.updated_at,
                    v.spec, v.layout,
                    (SELECT p.id FROM plans p WHERE p.topology_id = t.id
                       AND p.state IN ('queued', 'running', 'paused')
                     ORDER BY p.displaces NULLS LAST LIMIT 1) AS active_plan,
                    (SELECT jsonb_agg(p.terms) FROM plans p WHERE p.topology_id = t.id
                       AND (p.state IN ('queued', 'running', 'paused')
                         OR (p.state IN ('failed', 'cancelled')
                           AND p.id = (SELECT max(l.id::text)::uuid FROM plans l WHERE l.topology_id = t.id)))) AS terms
             FROM topologies t JOIN topology_versions v ON v.topology_id = t.id AND v.version = t.version
             WHERE t.name = $1",
            name
        )
        .fetch_optional(&self.pool)
        .await?;
        row.ok_or_else(|| unknown(name))?.try_into()
    }

    /// The same by id; `None` when it was deleted.
    pub async fn topology_by_id(
        &self,
        id: TopologyId,
    ) -> Result<Option<StoredTopology>, StoreError> {
        let name = sqlx::query_scalar!("SELECT name FROM topologies WHERE id = $1", id.0)
            .fetch_optional(&self.pool)
            .await?;
        let Some(name) = name else { return Ok(None) };
        match self.topology(&name).await {
            Ok(stored) => Ok(Some(stored)),
            Err(StoreError::Refused(Refusal::NotFound { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Topologies by name, at most `limit`.
    pub async fn topologies(
        &self,
        filter: &TopologyFilter,
        limit: i64,
    ) -> Result<Vec<StoredTopology>, StoreError> {
        let rows = sqlx::query_as!(
            TopologyRow,
            "SELECT t.id, t.name, t.labels, t.version, t.revision, t.created, t.created_at, t.updated_at,
                    v.spec, v.layout,
                    (SELECT p.id FROM plans p WHERE p.topology_id = t.id
                       AND p.state IN ('queued', 'running', 'paused')
                     ORDER BY p.displaces NULLS LAST LIMIT 1) AS active_plan,
                    (SELECT jsonb_agg(p.terms) FROM plans p WHERE p.topology_id = t.id
                       AND (p.state IN ('queued', 'running', 'paused')
                         OR (p.state IN ('failed', 'cancelled')
                           AND p.id = (SELECT max(l.id::text)::uuid FROM plans l WHERE l.topology_id = t.id)))) AS terms
             FROM topologies t JOIN topology_versions v ON v.topology_id = t.id AND v.version = t.version
             WHERE ($1::text IS NULL OR t.name > $1) AND ($2::text[] IS NULL OR t.name = ANY($2))
             ORDER BY t.name LIMIT $3",
            filter.after,
            filter.visible.as_deref(),
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(StoredTopology::try_from).collect()
    }

    /// One version of a topology.
    pub async fn version(
        &self,
        id: TopologyId,
        name: &str,
        version: i32,
    ) -> Result<Option<StoredVersion>, StoreError> {
        let found = self.versions(id, name, version.checked_add(1), 1).await?;
        Ok(found.into_iter().find(|v| v.wanted.version == version))
    }

    /// Every topology's name and labels, for whoever decides what a token may see.
    pub async fn topology_labels(&self) -> Result<Vec<(String, Labels)>, StoreError> {
        let rows = sqlx::query!("SELECT name, labels FROM topologies ORDER BY name")
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter()
            .map(|r| Ok((r.name, document("topologies", "labels", r.labels)?)))
            .collect()
    }

    pub async fn versions(
        &self,
        id: TopologyId,
        name: &str,
        after: Option<i32>,
        limit: i64,
    ) -> Result<Vec<StoredVersion>, StoreError> {
        let rows = sqlx::query!(
            "SELECT version, parent, spec, layout, plan_id, author, created_at FROM topology_versions
             WHERE topology_id = $1 AND ($2::int IS NULL OR version < $2)
             ORDER BY version DESC LIMIT $3",
            id.0,
            after,
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|r| {
                Ok(StoredVersion {
                    wanted: Topology {
                        id,
                        name: name.to_owned(),
                        version: r.version,
                        spec: document("topology_versions", "spec", r.spec)?,
                        layout: document("topology_versions", "layout", r.layout)?,
                    },
                    parent: r.parent,
                    plan: r.plan_id.map(PlanId),
                    author: r.author,
                    created_at: r.created_at,
                })
            })
            .collect()
    }

    /// Replaces the labels, if version and revision are still these.
    pub async fn relabel(
        &self,
        id: TopologyId,
        version: i32,
        revision: i32,
        labels: &Labels,
        actor: &str,
    ) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let done = sqlx::query!(
            "UPDATE topologies SET labels = $4, revision = revision + 1, updated_at = now()
             WHERE id = $1 AND version = $2 AND revision = $3",
            id.0,
            version,
            revision,
            json(labels)?
        )
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::Moved("the topology"));
        }
        let event = NewEvent::new(
            EventType::TopologyChanged,
            serde_json::json!({ "version": version, "labels": labels }),
        );
        journal::append(&mut tx, Some(id), &[event.by(actor)]).await?;
        Ok(tx.commit().await?)
    }

    /// Forgets a topology; its nodes stay registered, and as they are.
    pub async fn delete_topology(
        &self,
        id: TopologyId,
        version: i32,
        revision: i32,
        actor: &str,
    ) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let held = sqlx::query_scalar!(
            "SELECT id FROM topologies WHERE id = $1 AND version = $2 AND revision = $3 FOR UPDATE",
            id.0,
            version,
            revision
        )
        .fetch_optional(&mut *tx)
        .await?;
        if held.is_none() {
            return Err(StoreError::Moved("the topology"));
        }
        let active = sqlx::query_scalar!(
            "SELECT id FROM plans WHERE topology_id = $1 AND state IN ('queued', 'running', 'paused')",
            id.0
        )
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(plan) = active {
            return Err(Refusal::PlanActive(PlanId(plan)).into());
        }
        let left = sqlx::query_scalar!(
            "SELECT m.node FROM marks m JOIN nodes n ON n.address = m.node
             WHERE m.topology_id = $1 AND m.key LIKE 'setting:%' AND n.health <> 'down'
             ORDER BY m.node LIMIT 1",
            id.0
        )
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(node) = left {
            return Err(Refusal::InUse(format!(
                "temporary settings are still in force on {node}; retry the plan that left them, or run a repair plan, and delete the topology then"
            ))
            .into());
        }
        let events = forget(&mut tx, id, actor).await?;
        // It goes with the topology: locked now, since nothing may be waited for after the journal.
        sqlx::query_scalar!("SELECT token FROM leases WHERE topology_id = $1 FOR UPDATE", id.0)
            .fetch_optional(&mut *tx)
            .await?;
        journal::append(&mut tx, Some(id), &events).await?;
        sqlx::query!("DELETE FROM topologies WHERE id = $1", id.0).execute(&mut *tx).await?;
        Ok(tx.commit().await?)
    }

    /// Keeps what was seen, as part of the past too where it `changed`, with the marks that follow
    /// from it and the events that tell of it.
    pub async fn record_look(
        &self,
        held: Held,
        seen: &Observation,
        health: &BTreeMap<Address, Health>,
        changed: bool,
        marks: &[Mark],
        events: &[NewEvent],
    ) -> Result<(), StoreError> {
        let id = held.topology;
        let mut tx = self.pool.begin().await?;
        // The topology's row before its nodes', as for a plan that ties nodes: the other way round, each
        // could wait for the other.
        let observation = json(seen)?;
        let known = sqlx::query!(
            "UPDATE topologies SET observation = $2, observed_at = clock_timestamp() WHERE id = $1",
            id.0,
            observation
        )
        .execute(&mut *tx)
        .await?;
        if known.rows_affected() == 0 {
            // It was deleted while it was looked at.
            return Ok(());
        }
        nodes::record_sightings(&mut tx, &seen.nodes, health).await?;
        if changed {
            sqlx::query!(
                "INSERT INTO observations (topology_id, observation) VALUES ($1, $2)",
                id.0,
                observation
            )
            .execute(&mut *tx)
            .await?;
            // The past is for finding out what happened, not for the archive.
            sqlx::query!(
                "DELETE FROM observations WHERE topology_id = $1 AND at < now() - interval '7 days'",
                id.0
            )
            .execute(&mut *tx)
            .await?;
        }
        marks::set(&mut tx, id, None, marks).await?;
        leases::hold(&mut tx, held, Duration::ZERO).await?;
        journal::append(&mut tx, Some(id), events).await?;
        Ok(tx.commit().await?)
    }

    /// What was seen last, or at a time in the past; with the time of that sight.
    pub async fn observation(
        &self,
        id: TopologyId,
        at: Option<DateTime<Utc>>,
    ) -> Result<Option<(DateTime<Utc>, Observation)>, StoreError> {
        let found = match at {
            None => sqlx::query!(
                "SELECT observed_at AS \"at!\", observation AS \"observation!\" FROM topologies
                 WHERE id = $1 AND observation IS NOT NULL",
                id.0
            )
            .fetch_optional(&self.pool)
            .await?
            .map(|r| (r.at, r.observation)),
            Some(at) => sqlx::query!(
                "SELECT at, observation FROM observations WHERE topology_id = $1 AND at <= $2
                 ORDER BY at DESC LIMIT 1",
                id.0,
                at
            )
            .fetch_optional(&self.pool)
            .await?
            .map(|r| (r.at, r.observation)),
        };
        found.map(|(at, o)| Ok((at, document("topologies", "observation", o)?))).transpose()
    }
}

/// A topology with its lease and its first version.
pub(super) async fn insert(
    tx: &mut Transaction<'_, Postgres>,
    wanted: &Topology,
    labels: &Labels,
    plan: Option<PlanId>,
    actor: &str,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO topologies (id, name, labels, version) VALUES ($1, $2, $3, $4)",
        wanted.id.0,
        wanted.name,
        json(labels)?,
        wanted.version
    )
    .execute(&mut **tx)
    .await
    .map_err(|error| match violated(&error) {
        Some("topologies_name_key") => Refusal::NameTaken(wanted.name.clone()).into(),
        _ => StoreError::from(error),
    })?;
    sqlx::query!("INSERT INTO leases (topology_id) VALUES ($1)", wanted.id.0)
        .execute(&mut **tx)
        .await?;
    sqlx::query!(
        "INSERT INTO topology_versions (topology_id, version, parent, spec, layout, plan_id, author)
         VALUES ($1, $2, NULL, $3, $4, $5, $6)",
        wanted.id.0,
        wanted.version,
        json(&wanted.spec)?,
        json(&wanted.layout)?,
        plan.map(|p| p.0),
        actor
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Ends what hangs on a topology that is about to be deleted, and returns the events that tell of it.
pub(super) async fn forget(
    tx: &mut Transaction<'_, Postgres>,
    id: TopologyId,
    actor: &str,
) -> Result<Vec<NewEvent>, StoreError> {
    let superseded = sqlx::query_scalar!(
        "UPDATE plans SET state = 'superseded', finished_at = now()
         WHERE topology_id = $1 AND state = 'proposed' RETURNING id",
        id.0
    )
    .fetch_all(&mut **tx)
    .await?;
    let nothing = || serde_json::json!({});
    let end = |p| NewEvent::new(EventType::PlanSuperseded, nothing()).of_plan(PlanId(p));
    let gone = NewEvent::new(EventType::TopologyDeleted, nothing());
    Ok(superseded.into_iter().map(end).chain([gone]).map(|e| e.by(actor)).collect())
}

/// Ties the nodes that a new version names to the topology, and registers those that are new.
pub(super) async fn tie(
    tx: &mut Transaction<'_, Postgres>,
    id: TopologyId,
    spec: &Spec,
    actor: &str,
) -> Result<Vec<NewEvent>, StoreError> {
    // In address order, so that two requests for the same nodes do not wait for each other.
    let mut nodes = NewNode::of_spec(spec);
    nodes.sort_by(|a, b| a.address.cmp(&b.address));
    let mut events = Vec::new();
    for node in &nodes {
        let (node_id, made) = nodes::ensure(tx, node).await?;
        if made {
            events.push(nodes::registered(&node.address, &node.zone, node_id, actor));
        }
    }
    let addresses: Vec<String> = spec.nodes().iter().map(|n| n.address.to_string()).collect();
    sqlx::query!(
        "INSERT INTO topology_nodes (topology_id, node_id, kind)
         SELECT $1, n.id, 'data' FROM nodes n WHERE n.address = ANY($2) ORDER BY n.address
         ON CONFLICT DO NOTHING",
        id.0,
        &addresses
    )
    .execute(&mut **tx)
    .await?;
    let elsewhere = sqlx::query!(
        "SELECT n.address FROM nodes n JOIN topology_nodes tn ON tn.node_id = n.id
         WHERE n.address = ANY($2) AND tn.topology_id <> $1 AND tn.kind = 'data'",
        id.0,
        &addresses
    )
    .fetch_all(&mut **tx)
    .await?;
    let taken = |address: String| {
        FieldError::new("/intent", format!("{address} belongs to another topology by now"))
    };
    if elsewhere.is_empty() {
        return Ok(events);
    }
    Err(Refusal::NodeTaken(elsewhere.into_iter().map(|r| taken(r.address)).collect()).into())
}

/// Sets nodes free that the topology names no more. One that has a mark is still to be seen to.
pub(super) async fn untie(
    tx: &mut Transaction<'_, Postgres>,
    id: TopologyId,
) -> Result<(), StoreError> {
    sqlx::query!(
        "DELETE FROM topology_nodes tn USING nodes n, topologies t, topology_versions v
         WHERE tn.topology_id = $1 AND n.id = tn.node_id AND tn.kind = 'data'
           AND t.id = $1 AND v.topology_id = $1 AND v.version = t.version
           AND NOT v.spec -> 'nodes' @> jsonb_build_array(jsonb_build_object('address', n.address))
           AND NOT EXISTS (SELECT 1 FROM marks m WHERE m.topology_id = $1 AND m.node = n.address)",
        id.0
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Takes over what a topology that is gone left on these nodes, so that it is taken away now and
/// the oldest original is the one to go back to.
pub(super) async fn adopt_marks(
    tx: &mut Transaction<'_, Postgres>,
    wanted: &Topology,
    nodes: &[NewNode],
) -> Result<(), StoreError> {
    let addresses: Vec<String> = nodes.iter().map(|n| n.address.to_string()).collect();
    sqlx::query!(
        "UPDATE marks SET topology_id = $1
         WHERE node = ANY($2) AND topology_id NOT IN (SELECT id FROM topologies)",
        wanted.id.0,
        &addresses
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Registers the nodes that are new and ties all of them to the topology.
pub(super) async fn enlist(
    tx: &mut Transaction<'_, Postgres>,
    wanted: &Topology,
    new_nodes: &[NewNode],
    actor: &str,
) -> Result<Vec<NewEvent>, StoreError> {
    let mut events = Vec::new();
    let mut taken = Vec::new();
    // In address order, so that two requests for the same nodes do not wait for each other.
    let mut ordered: Vec<(usize, &NewNode)> = new_nodes.iter().enumerate().collect();
    ordered.sort_by_key(|(_, node)| &node.address);
    for (i, node) in ordered {
        let (id, made) = nodes::ensure(tx, node).await?;
        if made {
            events.push(nodes::registered(&node.address, &node.zone, id, actor));
        }
        let tied = sqlx::query!(
            "INSERT INTO topology_nodes (topology_id, node_id, kind) VALUES ($1, $2, $3)
             ON CONFLICT DO NOTHING",
            wanted.id.0,
            id.0,
            nodes::kind(node.kind)
        )
        .execute(&mut **tx)
        .await?;
        if tied.rows_affected() == 0 {
            taken.push(FieldError::new(
                format!("/spec/nodes/{i}/address"),
                format!("{} belongs to another topology; name a node that is free", node.address),
            ));
        }
    }
    if taken.is_empty() { Ok(events) } else { Err(Refusal::NodeTaken(taken).into()) }
}

fn unknown(name: &str) -> StoreError {
    Refusal::NotFound { kind: "topology", name: name.to_owned() }.into()
}
