//! Plans: their rows and the moves of their life. Each move is a compare-and-set on the state.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json as value;
use sqlx::{Postgres, Transaction};

use super::leases::{self, Held};
use super::{Store, StoreError, document, journal, json, steps, topologies, violated, word};
use crate::domain::event::{EventType, NewEvent};
use crate::domain::hazard::{Accepted, Hazard};
use crate::domain::id::{PlanId, TopologyId};
use crate::domain::intent::Intent;
use crate::domain::moving::Estimate;
use crate::domain::node::Address;
use crate::domain::placement::Warning;
use crate::domain::plan::{
    Displacement, Displaces, Plan, PlanError, PlanState, Requested, WaitingFor,
};
use crate::domain::planner::{ForecastStep, Terms};
use crate::domain::refusal::Refusal;
use crate::domain::spec::Spec;
use crate::domain::topology::Layout;

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
    /// What it makes of the topology; nothing where the wanted shape stays as it is.
    pub becomes: Option<(&'a Spec, &'a Layout)>,
    pub fingerprint: &'a str,
    pub prints: &'a BTreeMap<Address, String>,
    pub accepted: &'a Accepted,
    pub hazards: &'a [Hazard],
    pub warnings: &'a [Warning],
    pub estimate: &'a Estimate,
    pub retry_of: Option<PlanId>,
    pub displaces: Option<Displaces>,
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
    prints: serde_json::Value,
    accepted: serde_json::Value,
    hazards: serde_json::Value,
    warnings: serde_json::Value,
    estimate: serde_json::Value,
    retry_of: Option<uuid::Uuid>,
    displaces: Option<uuid::Uuid>,
    displaces_by: Option<String>,
    displaced_by: Option<uuid::Uuid>,
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
        let by = row.displaces_by.map(|b| word::<Displacement>("plans", "displaces_by", b));
        let displaces = row.displaces.zip(by.transpose()?);
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
            prints: document("plans", "prints", row.prints)?,
            accepted: document("plans", "accepted", row.accepted)?,
            hazards: document("plans", "hazards", row.hazards)?,
            warnings: document("plans", "warnings", row.warnings)?,
            estimate: document("plans", "estimate", row.estimate)?,
            retry_of: row.retry_of.map(PlanId),
            displaces: displaces.map(|(plan, by)| Displaces { plan: PlanId(plan), by }),
            displaced_by: row.displaced_by.map(PlanId),
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
pub(super) async fn hold_topology(
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
                            fingerprint, accepted, hazards, warnings, retry_of, requested_by, reason,
                            displaces, displaces_by, prints, estimate)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)",
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
        plan.reason,
        plan.displaces.map(|d| d.plan.0),
        plan.displaces.map(|d| d.by.as_str()),
        json(plan.prints)?,
        json(plan.estimate)?
    )
    .execute(&mut **tx)
    .await
    .map_err(|error| match violated(&error) {
        Some("plans_active_key" | "plans_displacing_key") => StoreError::Moved("the active plan"),
        _ => error.into(),
    })?;
    insert_shape(tx, plan).await?;
    steps::insert(tx, plan.id, plan.steps).await
}

async fn insert_shape(
    tx: &mut Transaction<'_, Postgres>,
    plan: &NewPlan<'_>,
) -> Result<(), StoreError> {
    let Some((spec, layout)) = plan.becomes else { return Ok(()) };
    sqlx::query!(
        "INSERT INTO plan_shapes (plan_id, spec, layout) VALUES ($1, $2, $3)",
        plan.id.0,
        json(spec)?,
        json(layout)?
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// A plan that is queued makes its version the wanted one, if nothing else was made of the topology
/// since it was thought out. Returns the event that tells of it.
async fn advance_version(
    tx: &mut Transaction<'_, Postgres>,
    plan: PlanId,
    actor: &str,
) -> Result<Vec<NewEvent>, StoreError> {
    let row = sqlx::query!(
        "SELECT p.topology_id, p.from_version, p.to_version, s.spec AS \"spec?\",
                s.layout AS \"layout?\", t.version
         FROM plans p JOIN topologies t ON t.id = p.topology_id
              LEFT JOIN plan_shapes s ON s.plan_id = p.id
         WHERE p.id = $1",
        plan.0
    )
    .fetch_one(&mut **tx)
    .await?;
    let shape = row.spec.zip(row.layout);
    let based_on = if shape.is_some() { row.from_version } else { row.to_version };
    if row.version != based_on {
        return Err(StoreError::Moved("the topology"));
    }
    let Some((spec, layout)) = shape else { return Ok(vec![]) };
    let topology = TopologyId(row.topology_id);
    let wanted: Spec = document("plan_shapes", "spec", spec.clone())?;
    sqlx::query!(
        "INSERT INTO topology_versions (topology_id, version, parent, spec, layout, plan_id, author)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        topology.0,
        row.to_version,
        row.from_version,
        spec,
        layout,
        plan.0,
        actor
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "UPDATE topologies SET version = $2, updated_at = now() WHERE id = $1",
        topology.0,
        row.to_version
    )
    .execute(&mut **tx)
    .await?;
    let mut events = topologies::tie(tx, topology, &wanted, actor).await?;
    let data = value!({ "version": row.to_version, "parent": row.from_version });
    events.push(NewEvent::new(EventType::TopologyChanged, data).of_plan(plan).by(actor));
    Ok(events)
}

impl Store {
    /// Stores a plan on a topology that exists.
    pub async fn add_plan(&self, plan: &NewPlan<'_>) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        hold_topology(&mut tx, plan.topology_id).await?;
        let displaced = plan.displaces.map(|d| d.plan.0);
        let in_the_way = sqlx::query_scalar!(
            "SELECT id FROM plans WHERE topology_id = $1 AND state IN ('queued', 'running', 'paused')
             AND $2 AND id IS DISTINCT FROM $3 LIMIT 1",
            plan.topology_id.0,
            plan.start,
            displaced
        )
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(active) = in_the_way {
            return Err(Refusal::PlanActive(PlanId(active)).into());
        }
        insert(&mut tx, plan).await?;
        let mut events = plan.events();
        // What supersedes another is thought through anew when that one has ended.
        let waits = plan.displaces.is_some_and(|d| d.by == Displacement::Supersede);
        if plan.start && !waits {
            events.extend(advance_version(&mut tx, plan.id, plan.requested_by).await?);
        }
        if let Some(displaces) = plan.displaces {
            events.extend(make_way(&mut tx, displaces, plan.requested_by).await?);
        }
        journal::append(&mut tx, Some(plan.topology_id), &events).await?;
        journal::ring(&mut tx, plan.topology_id).await?;
        Ok(tx.commit().await?)
    }

    pub async fn plan(&self, id: PlanId) -> Result<Plan, StoreError> {
        let row = sqlx::query_as!(
            PlanRow,
            "SELECT p.*, (SELECT count(*) FROM steps s WHERE s.plan_id = p.id AND s.state = 'done') AS \"steps_done!\",
                    (SELECT count(*) FROM steps s WHERE s.plan_id = p.id) AS \"steps_total!\",
                    (SELECT d.id FROM plans d WHERE d.displaces = p.id AND d.state IN ('queued', 'running', 'paused')) AS displaced_by
             FROM plans p WHERE p.id = $1",
            id.0
        )
        .fetch_optional(&self.pool)
        .await?;
        row.ok_or(Refusal::NotFound { kind: "plan", name: id.to_string() })?.try_into()
    }

    /// The plan that holds the topology, if one does; not one that is to take its place.
    pub async fn active_plan(&self, topology: TopologyId) -> Result<Option<Plan>, StoreError> {
        let id = sqlx::query_scalar!(
            "SELECT id FROM plans WHERE topology_id = $1 AND state IN ('queued', 'running', 'paused')
             ORDER BY displaces NULLS FIRST LIMIT 1",
            topology.0
        )
        .fetch_optional(&self.pool)
        .await?;
        match id {
            Some(id) => Ok(Some(self.plan(PlanId(id)).await?)),
            None => Ok(None),
        }
    }

    /// The plan of a topology that ended last, of those that were begun or made a version.
    pub async fn last_ended_plan(&self, topology: TopologyId) -> Result<Option<Plan>, StoreError> {
        let id = sqlx::query_scalar!(
            "SELECT id FROM plans p WHERE topology_id = $1 AND finished_at IS NOT NULL
             AND (started_at IS NOT NULL
                  OR EXISTS (SELECT 1 FROM topology_versions v WHERE v.plan_id = p.id))
             ORDER BY finished_at DESC, id DESC LIMIT 1",
            topology.0
        )
        .fetch_optional(&self.pool)
        .await?;
        match id {
            Some(id) => Ok(Some(self.plan(PlanId(id)).await?)),
            None => Ok(None),
        }
    }

    /// Whether a plan ever had a part in how its topology is: it was begun, or made a version.
    pub async fn took_part(&self, plan: PlanId) -> Result<bool, StoreError> {
        let part = sqlx::query_scalar!(
            "SELECT started_at IS NOT NULL
                 OR EXISTS (SELECT 1 FROM topology_versions v WHERE v.plan_id = p.id) AS \"part!\"
             FROM plans p WHERE id = $1",
            plan.0
        );
        Ok(part.fetch_one(&self.pool).await?)
    }

    /// Replaces what a queued plan was made from, now that the plan whose place it takes has ended.
    pub async fn redraft_plan(&self, held: Held, plan: &NewPlan<'_>) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        hold_topology(&mut tx, plan.topology_id).await?;
        let done = sqlx::query!(
            "UPDATE plans SET terms = $2, from_version = $3, to_version = $4, fingerprint = $5,
                 prints = $6, hazards = $7, warnings = $8, accepted = $9, estimate = $10,
                 displaces = NULL, displaces_by = NULL
             WHERE id = $1 AND state = 'queued' AND requested IS NULL",
            plan.id.0,
            json(plan.terms)?,
            plan.from_version,
            plan.to_version,
            plan.fingerprint,
            json(plan.prints)?,
            json(&plan.hazards)?,
            json(&plan.warnings)?,
            json(plan.accepted)?,
            json(plan.estimate)?
        )
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::Moved("the plan"));
        }
        sqlx::query!("DELETE FROM steps WHERE plan_id = $1", plan.id.0).execute(&mut *tx).await?;
        sqlx::query!("DELETE FROM plan_shapes WHERE plan_id = $1", plan.id.0)
            .execute(&mut *tx)
            .await?;
        steps::insert(&mut tx, plan.id, plan.steps).await?;
        insert_shape(&mut tx, plan).await?;
        let events = advance_version(&mut tx, plan.id, plan.requested_by).await?;
        leases::hold(&mut tx, held, Duration::ZERO).await?;
        journal::append(&mut tx, Some(plan.topology_id), &events).await?;
        Ok(tx.commit().await?)
    }

    /// Plans from the newest, at most `limit`.
    pub async fn plans(&self, filter: &PlanFilter, limit: i64) -> Result<Vec<Plan>, StoreError> {
        let rows = sqlx::query_as!(
            PlanRow,
            "SELECT p.*, (SELECT count(*) FROM steps s WHERE s.plan_id = p.id AND s.state = 'done') AS \"steps_done!\",
                    (SELECT count(*) FROM steps s WHERE s.plan_id = p.id) AS \"steps_total!\",
                    (SELECT d.id FROM plans d WHERE d.displaces = p.id AND d.state IN ('queued', 'running', 'paused')) AS displaced_by
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
            Err(error)
                if matches!(
                    violated(&error),
                    Some("plans_active_key" | "plans_displacing_key")
                ) =>
            {
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
        let queued = NewEvent::new(EventType::PlanQueued, value!({})).of_plan(plan.id).by(actor);
        let mut events = vec![queued];
        events.extend(advance_version(&mut tx, plan.id, actor).await?);
        journal::append(&mut tx, Some(plan.topology_id), &events).await?;
        journal::ring(&mut tx, plan.topology_id).await?;
        Ok(tx.commit().await?)
    }

    /// Notes what somebody asks of an active plan; whoever carries it out grants it.
    pub async fn request(&self, plan: &Plan, requested: Requested) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let done = sqlx::query!(
            "UPDATE plans SET requested = $2,
                 waiting_for = CASE WHEN $2 = 'pause' THEN 'operator' ELSE waiting_for END
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
        journal::ring(&mut tx, plan.topology_id).await?;
        Ok(tx.commit().await?)
    }

    /// The same by the plan's keeper, which need not be woken.
    pub async fn request_as_keeper(
        &self,
        held: Held,
        plan: &Plan,
        requested: Requested,
        waiting_for: Option<WaitingFor>,
    ) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let done = sqlx::query!(
            "UPDATE plans SET requested = $2, waiting_for = $5
             WHERE id = $1 AND state = $3 AND requested IS NOT DISTINCT FROM $4",
            plan.id.0,
            requested.as_str(),
            plan.state.as_str(),
            plan.requested.map(Requested::as_str),
            waiting_for.map(WaitingFor::as_str)
        )
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::Moved("the plan"));
        }
        leases::hold(&mut tx, held, Duration::ZERO).await?;
        Ok(tx.commit().await?)
    }

    /// Moves a plan on. `error` is kept where one is given, and `accepted` and `waiting_for`
    /// replace what was; the request that led here is granted with it. Keepers prove their lease;
    /// people need none.
    pub async fn move_plan(
        &self,
        held: Option<Held>,
        plan: &Plan,
        to: &Move,
        actor: &str,
    ) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        hold_topology(&mut tx, plan.topology_id).await?;
        let done = sqlx::query!(
            "UPDATE plans SET state = $3, requested = NULL, waiting_for = $4,
                 error = coalesce($5, error), accepted = coalesce($6, accepted),
                 warnings = warnings || $9,
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
            plan.requested.map(Requested::as_str),
            json(&to.warning.as_slice())?
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
        // A failover says nothing about who is in the cluster.
        if to.state == PlanState::Succeeded && !matches!(plan.intent, Intent::Failover(_)) {
            topologies::untie(&mut tx, plan.topology_id).await?;
        }
        let mut events = vec![NewEvent::new(to.event, to.data.clone()).of_plan(plan.id).by(actor)];
        if to.state.is_final() {
            events.extend(give_way_back(&mut tx, plan).await?);
        }
        let dissolved = to.state == PlanState::Succeeded && plan.intent.is_dissolve();
        if dissolved {
            events.extend(topologies::forget(&mut tx, plan.topology_id, actor).await?);
        }
        if let Some(held) = held {
            leases::hold(&mut tx, held, Duration::ZERO).await?;
        }
        journal::append(&mut tx, Some(plan.topology_id), &events).await?;
        if held.is_none() {
            journal::ring(&mut tx, plan.topology_id).await?;
        }
        if dissolved {
            sqlx::query!("DELETE FROM topologies WHERE id = $1", plan.topology_id.0)
                .execute(&mut *tx)
                .await?;
        }
        Ok(tx.commit().await?)
    }

    /// Has a preempted plan go on whose emergency is over.
    pub async fn resume_preempted_plan(&self, held: Held, plan: &Plan) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        hold_topology(&mut tx, plan.topology_id).await?;
        let events: Vec<_> = resume_preempted(&mut tx, plan.id, None).await?.into_iter().collect();
        leases::hold(&mut tx, held, Duration::ZERO).await?;
        journal::append(&mut tx, Some(plan.topology_id), &events).await?;
        Ok(tx.commit().await?)
    }

    /// Decides that a plan fails; it goes on only to wind down.
    pub async fn doom_plan(
        &self,
        held: Held,
        plan: &Plan,
        error: &PlanError,
        events: &[NewEvent],
    ) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        hold_topology(&mut tx, plan.topology_id).await?;
        sqlx::query!(
            "UPDATE plans SET error = $2, waiting_for = NULL WHERE id = $1 AND error IS NULL",
            plan.id.0,
            json(error)?
        )
        .execute(&mut *tx)
        .await?;
        steps::fail_running(&mut tx, plan.id, error).await?;
        leases::hold(&mut tx, held, Duration::ZERO).await?;
        journal::append(&mut tx, Some(plan.topology_id), events).await?;
        Ok(tx.commit().await?)
    }

    /// Says what a running plan waits for.
    pub async fn set_waiting(
        &self,
        held: Held,
        plan: PlanId,
        waiting_for: Option<WaitingFor>,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "UPDATE plans SET waiting_for = $2 WHERE id = $1 AND state = 'running'
             AND EXISTS (SELECT 1 FROM leases WHERE topology_id = $3 AND token = $4
                         AND expires_at > clock_timestamp())",
            plan.0,
            waiting_for.map(WaitingFor::as_str),
            held.topology.0,
            held.token
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Adds a warning that carrying the plan out brought up.
    pub async fn warn(
        &self,
        held: Held,
        plan: PlanId,
        warning: &Warning,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "UPDATE plans SET warnings = warnings || $2 WHERE id = $1 AND NOT warnings @> $2
             AND EXISTS (SELECT 1 FROM leases WHERE topology_id = $3 AND token = $4
                         AND expires_at > clock_timestamp())",
            plan.0,
            json(&[warning])?,
            held.topology.0,
            held.token
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

/// Has an active plan make way for another. One that was not begun has nothing to take away: it is
/// superseded at once.
async fn make_way(
    tx: &mut Transaction<'_, Postgres>,
    displaces: Displaces,
    actor: &str,
) -> Result<Option<NewEvent>, StoreError> {
    if displaces.by == Displacement::Preempt {
        // The keeper asks for the pause; a plan that is not at work is out of the way as it is.
        return Ok(None);
    }
    let ended = sqlx::query!(
        "UPDATE plans SET state = 'superseded', finished_at = now(), waiting_for = NULL
         WHERE id = $1 AND state = 'queued'",
        displaces.plan.0
    )
    .execute(&mut **tx)
    .await?;
    if ended.rows_affected() == 1 {
        steps::skip_pending(tx, displaces.plan).await?;
        let end = NewEvent::new(EventType::PlanSuperseded, value!({}));
        return Ok(Some(end.of_plan(displaces.plan).by(actor)));
    }
    sqlx::query!(
        "UPDATE plans SET requested = 'supersede' WHERE id = $1 AND state IN ('running', 'paused')",
        displaces.plan.0
    )
    .execute(&mut **tx)
    .await?;
    Ok(None)
}

/// When a plan is over, the one that it preempted goes on.
async fn give_way_back(
    tx: &mut Transaction<'_, Postgres>,
    over: &Plan,
) -> Result<Option<NewEvent>, StoreError> {
    let Some(Displaces { plan, by: Displacement::Preempt }) = over.displaces else {
        return Ok(None);
    };
    // The emergency may have done some of the plan's steps: it lays out anew what is left, also if a
    // person is to have it go on.
    steps::skip_unbegun(tx, plan).await?;
    // One that has not come to rest yet need not any more.
    sqlx::query!(
        "UPDATE plans SET requested = NULL, waiting_for = NULL
         WHERE id = $1 AND state = 'running' AND requested = 'pause' AND waiting_for = 'preempted'",
        plan.0
    )
    .execute(&mut **tx)
    .await?;
    resume_preempted(tx, plan, Some(over.id)).await
}

async fn resume_preempted(
    tx: &mut Transaction<'_, Postgres>,
    plan: PlanId,
    after: Option<PlanId>,
) -> Result<Option<NewEvent>, StoreError> {
    let resumed = sqlx::query!(
        "UPDATE plans SET state = 'running', waiting_for = NULL
         WHERE id = $1 AND state = 'paused' AND waiting_for = 'preempted' AND requested IS NULL",
        plan.0
    )
    .execute(&mut **tx)
    .await?;
    let event = || NewEvent::new(EventType::PlanResumed, value!({ "after": after }));
    Ok((resumed.rows_affected() == 1).then(|| event().of_plan(plan).by("reeve")))
}

/// One move in a plan's life, with the event that tells of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Move {
    pub state: PlanState,
    pub waiting_for: Option<WaitingFor>,
    pub error: Option<PlanError>,
    pub accepted: Option<Accepted>,
    /// A warning that goes with the plan from now on.
    pub warning: Option<Warning>,
    pub event: EventType,
    pub data: serde_json::Value,
}

impl Move {
    #[must_use]
    pub fn to(state: PlanState, event: EventType) -> Self {
        let (waiting_for, error, accepted, warning) = (None, None, None, None);
        Self { state, waiting_for, error, accepted, warning, event, data: value!({}) }
    }
}
