//! Plans: their rows and the moves of their life. Each move is a compare-and-set on the state.

use chrono::{DateTime, Utc};
use serde_json::json as value;
use sqlx::{Postgres, Transaction};

use super::{Store, StoreError, document, journal, json, steps, violated, word};
use crate::domain::event::{EventType, NewEvent};
use crate::domain::hazard::{Accepted, Hazard};
use crate::domain::id::{PlanId, TopologyId};
use crate::domain::intent::Intent;
use crate::domain::placement::Warning;
use crate::domain::plan::{Plan, PlanError, PlanState, Requested, WaitingFor};
use crate::domain::planner::{ForecastStep, Terms};
use crate::domain::refusal::Refusal;

/// A plan that is to be stored.
#[derive(Debug)]
pub struct NewPlan<'a> {
    pub id: PlanId,
    pub topology_id: TopologyId,
    pub topology: &'a str,
    pub intent: &'a Intent,
    pub terms: &'a Terms,
    /// Queued, or only proposed.
    pub start: bool,
    pub from_version: i32,
    pub to_version: i32,
    pub fingerprint: &'a str,
    pub accepted: &'a Accepted,
    pub hazards: &'a [Hazard],
    pub warnings: &'a [Warning],
    pub retry_of: Option<PlanId>,
    pub requested_by: &'a str,
    pub reason: Option<&'a str>,
    pub steps: &'a [ForecastStep],
}

impl NewPlan<'_> {
    fn state(&self) -> PlanState {
        if self.start { PlanState::Queued } else { PlanState::Proposed }
    }

    /// The events that a new plan begins with: proposed, then queued if it is to start.
    #[must_use]
    pub fn events(&self) -> Vec<NewEvent> {
        let about = value!({
            "intent": self.intent.kind(), "from_version": self.from_version,
            "to_version": self.to_version, "steps_total": self.steps.len(), "reason": self.reason,
        });
        let event = |kind, data| NewEvent::new(kind, data).of_plan(self.id).by(self.requested_by);
        let mut events = vec![event(EventType::PlanProposed, about)];
        if self.start {
            events.push(event(EventType::PlanQueued, value!({})));
        }
        events
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct PlanFilter {
    pub topology: Option<String>,
    pub state: Option<PlanState>,
    pub kind: Option<String>,
    /// The plan after which the page begins; plans are listed from the newest.
    pub after: Option<PlanId>,
    pub visible: Option<Vec<String>>,
}

struct PlanRow {
    id: uuid::Uuid,
    topology_id: uuid::Uuid,
    topology: String,
    intent: serde_json::Value,
    terms: serde_json::Value,
    state: String,
    requested: Option<String>,
    waiting_for: Option<String>,
    from_version: i32,
    to_version: i32,
    fingerprint: String,
    accepted: serde_json::Value,
    hazards: serde_json::Value,
    warnings: serde_json::Value,
    retry_of: Option<uuid::Uuid>,
    requested_by: String,
    reason: Option<String>,
    error: Option<serde_json::Value>,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    steps_done: i64,
    steps_total: i64,
}

impl TryFrom<PlanRow> for Plan {
    type Error = StoreError;

    fn try_from(row: PlanRow) -> Result<Self, StoreError> {
        let requested = row.requested.map(|r| word("plans", "requested", r)).transpose()?;
        let waiting_for = row.waiting_for.map(|w| word("plans", "waiting_for", w)).transpose()?;
        Ok(Self {
            id: PlanId(row.id),
            topology_id: TopologyId(row.topology_id),
            topology: row.topology,
            intent: document("plans", "intent", row.intent)?,
            terms: document("plans", "terms", row.terms)?,
            state: word("plans", "state", row.state)?,
            requested,
            waiting_for,
            from_version: row.from_version,
            to_version: row.to_version,
            fingerprint: row.fingerprint,
            accepted: document("plans", "accepted", row.accepted)?,
            hazards: document("plans", "hazards", row.hazards)?,
            warnings: document("plans", "warnings", row.warnings)?,
            retry_of: row.retry_of.map(PlanId),
            requested_by: row.requested_by,
            reason: row.reason,
            error: row.error.map(|e| document("plans", "error", e)).transpose()?,
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
            steps_done: row.steps_done,
            steps_total: row.steps_total,
        })
    }
}

/// Locks the topology first, as everything does that locks one of its plans: so nobody waits in a
/// circle.
async fn hold_topology(
    tx: &mut Transaction<'_, Postgres>,
    topology: TopologyId,
) -> Result<(), StoreError> {
    let held =
        sqlx::query_scalar!("SELECT id FROM topologies WHERE id = $1 FOR UPDATE", topology.0)
            .fetch_optional(&mut **tx)
            .await?;
    match held {
        Some(_) => Ok(()),
        None => Err(Refusal::NotFound { kind: "topology", name: topology.to_string() }.into()),
    }
}

/// Stores a plan and its forecast; its events are the caller's to append.
pub(super) async fn insert(
    tx: &mut Transaction<'_, Postgres>,
    plan: &NewPlan<'_>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO plans (id, topology_id, topology, intent, terms, state, from_version, to_version,
                            fingerprint, accepted, hazards, warnings, retry_of, requested_by, reason)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        plan.id.0,
        plan.topology_id.0,
        plan.topology,
        json(plan.intent)?,
        json(plan.terms)?,
        plan.state().as_str(),
        plan.from_version,
        plan.to_version,
        plan.fingerprint,
        json(plan.accepted)?,
        json(&plan.hazards)?,
        json(&plan.warnings)?,
        plan.retry_of.map(|p| p.0),
        plan.requested_by,
        plan.reason
    )
    .execute(&mut **tx)
    .await
    .map_err(|error| match violated(&error) {
        Some("plans_active_key") => StoreError::Moved("the active plan"),
        _ => error.into(),
    })?;
    steps::insert(tx, plan.id, plan.steps).await
}

impl Store {
    /// Stores a plan on a topology that exists.
    pub async fn add_plan(&self, plan: &NewPlan<'_>) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        hold_topology(&mut tx, plan.topology_id).await?;
        let inserted = insert(&mut tx, plan).await;
        if let Err(StoreError::Moved(_)) = inserted {
            drop(tx);
            return Err(match self.active_plan(plan.topology_id).await? {
                Some(active) => Refusal::PlanActive(active.id).into(),
                None => StoreError::Moved("the active plan"),
            });
        }
        inserted?;
        journal::append(&mut tx, Some(plan.topology_id), &plan.events()).await?;
        Ok(tx.commit().await?)
    }

    pub async fn plan(&self, id: PlanId) -> Result<Plan, StoreError> {
        let row = sqlx::query_as!(
            PlanRow,
            "SELECT p.*, (SELECT count(*) FROM steps s WHERE s.plan_id = p.id AND s.state = 'done') AS \"steps_done!\",
                    (SELECT count(*) FROM steps s WHERE s.plan_id = p.id) AS \"steps_total!\"
             FROM plans p WHERE p.id = $1",
            id.0
        )
        .fetch_optional(&self.pool)
        .await?;
        row.ok_or(Refusal::NotFound { kind: "plan", name: id.to_string() })?.try_into()
    }

    /// The plan that holds the topology, if one does.
    pub async fn active_plan(&self, topology: TopologyId) -> Result<Option<Plan>, StoreError> {
        let id = sqlx::query_scalar!(
            "SELECT id FROM plans WHERE topology_id = $1 AND state IN ('queued', 'running', 'paused')",
            topology.0
        )
        .fetch_optional(&self.pool)
        .await?;
        match id {
            Some(id) => Ok(Some(self.plan(PlanId(id)).await?)),
            None => Ok(None),
        }
    }

    /// Plans from the newest, at most `limit`.
    pub async fn plans(&self, filter: &PlanFilter, limit: i64) -> Result<Vec<Plan>, StoreError> {
        let rows = sqlx::query_as!(
            PlanRow,
            "SELECT p.*, (SELECT count(*) FROM steps s WHERE s.plan_id = p.id AND s.state = 'done') AS \"steps_done!\",
                    (SELECT count(*) FROM steps s WHERE s.plan_id = p.id) AS \"steps_total!\"
             FROM plans p
             WHERE ($1::uuid IS NULL OR p.id < $1) AND ($2::text IS NULL OR p.topology = $2)
               AND ($3::text IS NULL OR p.state = $3) AND ($4::text IS NULL OR p.intent->>'kind' = $4)
               AND ($5::text[] IS NULL OR p.topology = ANY($5))
             ORDER BY p.id DESC LIMIT $6",
            filter.after.map(|p| p.0),
            filter.topology,
            filter.state.map(PlanState::as_str),
            filter.kind,
            filter.visible.as_deref(),
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(Plan::try_from).collect()
    }

    /// Queues a proposed plan.
    pub async fn queue_plan(
        &self,
        plan: &Plan,
        accepted: &Accepted,
        actor: &str,
    ) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        hold_topology(&mut tx, plan.topology_id).await?;
        let done = sqlx::query!(
            "UPDATE plans SET state = 'queued', accepted = $2 WHERE id = $1 AND state = 'proposed'",
            plan.id.0,
            json(accepted)?
        )
        .execute(&mut *tx)
        .await;
        match done {
            Err(error) if violated(&error) == Some("plans_active_key") => {
                drop(tx);
                let active = self.active_plan(plan.topology_id).await?;
                return Err(match active {
                    Some(active) => Refusal::PlanActive(active.id).into(),
                    None => StoreError::Moved("the active plan"),
                });
            }
            Err(error) => return Err(error.into()),
            Ok(done) if done.rows_affected() == 0 => return Err(StoreError::Moved("the plan")),
            Ok(_) => {}
        }
        let event = NewEvent::new(EventType::PlanQueued, value!({})).of_plan(plan.id).by(actor);
        journal::append(&mut tx, Some(plan.topology_id), &[event]).await?;
        Ok(tx.commit().await?)
    }

    /// Notes what somebody asks of an active plan; whoever carries it out grants it.
    pub async fn request(&self, plan: &Plan, requested: Requested) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let done = sqlx::query!(
            "UPDATE plans SET requested = $2
             WHERE id = $1 AND state = $3 AND requested IS NOT DISTINCT FROM $4",
            plan.id.0,
            requested.as_str(),
            plan.state.as_str(),
            plan.requested.map(Requested::as_str)
        )
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::Moved("the plan"));
        }
        sqlx::query!("SELECT pg_notify($1, '') AS \"sent: ()\"", journal::CHANNEL)
            .fetch_one(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    /// Moves a plan on. `error` is kept where one is given, and `accepted` and `waiting_for`
    /// replace what was; the request that led here is granted with it.
    pub async fn move_plan(&self, plan: &Plan, to: &Move, actor: &str) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        hold_topology(&mut tx, plan.topology_id).await?;
        let done = sqlx::query!(
            "UPDATE plans SET state = $3, requested = NULL, waiting_for = $4,
                 error = coalesce($5, error), accepted = coalesce($6, accepted),
                 started_at = CASE WHEN $3 = 'running' THEN coalesce(started_at, now()) ELSE started_at END,
                 finished_at = CASE WHEN $7 THEN now() END
             WHERE id = $1 AND state = $2 AND requested IS NOT DISTINCT FROM $8",
            plan.id.0,
            plan.state.as_str(),
            to.state.as_str(),
            to.waiting_for.map(WaitingFor::as_str),
            to.error.as_ref().map(json).transpose()?,
            to.accepted.as_ref().map(json).transpose()?,
            to.state.is_final(),
            plan.requested.map(Requested::as_str)
        )
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::Moved("the plan"));
        }
        if to.state.is_final() {
            steps::skip_pending(&mut tx, plan.id).await?;
        }
        if to.state == PlanState::Succeeded && matches!(plan.intent, Intent::Create(_)) {
            sqlx::query!("UPDATE topologies SET created = true WHERE id = $1", plan.topology_id.0)
                .execute(&mut *tx)
                .await?;
        }
        let event = NewEvent::new(to.event, to.data.clone()).of_plan(plan.id).by(actor);
        journal::append(&mut tx, Some(plan.topology_id), &[event]).await?;
        Ok(tx.commit().await?)
    }

    /// Decides that a plan fails; it goes on only to wind down.
    pub async fn doom_plan(
        &self,
        plan: &Plan,
        error: &PlanError,
        events: &[NewEvent],
    ) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query!(
            "UPDATE plans SET error = $2, waiting_for = NULL WHERE id = $1 AND error IS NULL",
            plan.id.0,
            json(error)?
        )
        .execute(&mut *tx)
        .await?;
        steps::fail_running(&mut tx, plan.id, error).await?;
        journal::append(&mut tx, Some(plan.topology_id), events).await?;
        Ok(tx.commit().await?)
    }

    /// Says what a running plan waits for.
    pub async fn set_waiting(
        &self,
        plan: PlanId,
        waiting_for: Option<WaitingFor>,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "UPDATE plans SET waiting_for = $2 WHERE id = $1",
            plan.0,
            waiting_for.map(WaitingFor::as_str)
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Adds a warning that carrying the plan out brought up.
    pub async fn warn(&self, plan: PlanId, warning: &Warning) -> Result<(), StoreError> {
        sqlx::query!(
            "UPDATE plans SET warnings = warnings || $2 WHERE id = $1 AND NOT warnings @> $2",
            plan.0,
            json(&[warning])?
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

/// One move in a plan's life, with the event that tells of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Move {
    pub state: PlanState,
    pub waiting_for: Option<WaitingFor>,
    pub error: Option<PlanError>,
    pub accepted: Option<Accepted>,
    pub event: EventType,
    pub data: serde_json::Value,
}

impl Move {
    #[must_use]
    pub fn to(state: PlanState, event: EventType) -> Self {
        Self { state, waiting_for: None, error: None, accepted: None, event, data: value!({}) }
    }
}
