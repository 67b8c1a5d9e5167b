//! Marks: what Reeve left on nodes. Each is committed before the command that leaves its trace.

use std::time::Duration;

use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use super::leases::{self, Held};
use super::{Store, StoreError, document, json};
use crate::domain::id::{PlanId, TopologyId};
use crate::domain::observation::{Mark, MarkKind};

/// Notes marks; one that is already there keeps its older original, which is the one to go back to.
pub async fn set(
    tx: &mut Transaction<'_, Postgres>,
    topology: TopologyId,
    plan: Option<PlanId>,
    marks: &[Mark],
) -> Result<(), StoreError> {
    for mark in marks {
        sqlx::query!(
            "INSERT INTO marks (topology_id, node, key, mark, plan_id) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (topology_id, node, key) DO NOTHING",
            topology.0,
            mark.node.to_string(),
            key(mark),
            json(mark)?,
            plan.map(|p| p.0)
        )
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

/// Forgets marks whose traces are gone.
pub async fn clear(
    tx: &mut Transaction<'_, Postgres>,
    topology: TopologyId,
    marks: &[Mark],
) -> Result<(), StoreError> {
    for mark in marks {
        sqlx::query!(
            "DELETE FROM marks WHERE topology_id = $1 AND node = $2 AND key = $3",
            topology.0,
            mark.node.to_string(),
            key(mark)
        )
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

fn key(mark: &Mark) -> String {
    match &mark.what {
        MarkKind::Setting(s) => format!("setting:{}", s.name),
        MarkKind::Unwritten => "unwritten".to_owned(),
        MarkKind::Identity(was) => format!("identity:{}", was.id),
        MarkKind::Hold(hold) => {
            format!("hold:{}:{}", hold.shard, hold.until.timestamp_millis())
        }
        MarkKind::OpenSlots(open) => {
            format!("open:{}:{}:{}", open.from, open.to, in_short(open.slots.to_string()))
        }
        MarkKind::Paused(paused) => format!("paused:{}", paused.until.timestamp_millis()),
        MarkKind::Deposed(deposed) => format!("deposed:{}:{}", deposed.successor, deposed.run_id),
        MarkKind::Emptied(emptied) => format!("emptied:{}", emptied.run_id),
    }
}

/// What is too long for an index (PostgreSQL takes some 2,700 bytes) is told apart by its digest.
fn in_short(text: String) -> String {
    const LONGEST: usize = 2200;
    if text.len() <= LONGEST {
        return text;
    }
    Uuid::new_v5(&Uuid::nil(), text.as_bytes()).to_string()
}

impl Store {
    pub async fn marks(&self, topology: TopologyId) -> Result<Vec<Mark>, StoreError> {
        let marks = sqlx::query_scalar!(
            "SELECT mark FROM marks WHERE topology_id = $1 ORDER BY node, key",
            topology.0
        )
        .fetch_all(&self.pool)
        .await?;
        marks.into_iter().map(|m| document("marks", "mark", m)).collect()
    }

    /// Forgets marks whose traces are gone, while no plan is at work.
    pub async fn clear_marks(&self, held: Held, marks: &[Mark]) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        clear(&mut tx, held.topology, marks).await?;
        leases::hold(&mut tx, held, Duration::ZERO).await?;
        Ok(tx.commit().await?)
    }
}
