//! Topologies that were running before they were stored.

use std::collections::BTreeMap;

use super::nodes::NewNode;
use super::{Store, StoreError, journal, json, nodes, topologies};
use crate::domain::event::{EventType, NewEvent};
use crate::domain::health::Health;
use crate::domain::node::{Address, Labels};
use crate::domain::observation::Observation;
use crate::domain::placement::Warning;
use crate::domain::topology::Topology;

/// Everything that an adopted topology brings along.
#[derive(Debug)]
pub struct NewAdoption<'a> {
    pub wanted: &'a Topology,
    pub labels: &'a Labels,
    pub nodes: &'a [NewNode],
    /// What it was made from.
    pub seen: &'a Observation,
    pub health: &'a BTreeMap<Address, Health>,
    pub seed: &'a Address,
    pub warnings: &'a [Warning],
    pub actor: &'a str,
}

impl Store {
    /// Stores a topology that is there already, with its nodes and what was seen of them, all or
    /// nothing. It has no plan, and counts as created.
    pub async fn adopt_topology(&self, new: &NewAdoption<'_>) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let wanted = new.wanted;
        topologies::insert(&mut tx, wanted, new.labels, None, new.actor).await?;
        let registered = topologies::enlist(&mut tx, wanted, new.nodes, new.actor).await?;
        topologies::adopt_marks(&mut tx, wanted, new.nodes).await?;
        nodes::record_sightings(&mut tx, &new.seen.nodes, new.health).await?;
        sqlx::query!(
            "UPDATE topologies SET created = true, observation = $2, observed_at = clock_timestamp()
             WHERE id = $1",
            wanted.id.0,
            json(new.seen)?
        )
        .execute(&mut *tx)
        .await?;
        let created = serde_json::json!({
            "version": wanted.version, "mode": wanted.spec.mode(), "labels": new.labels,
            "adopted": true, "seed": new.seed, "warnings": new.warnings,
        });
        let created = NewEvent::new(EventType::TopologyCreated, created).by(new.actor);
        journal::append(&mut tx, None, &registered).await?;
        journal::append(&mut tx, Some(wanted.id), &[created]).await?;
        journal::ring(&mut tx, wanted.id).await?;
        Ok(tx.commit().await?)
    }
}
