//! Steps of plans, and the rounds in which they are carried out.

use chrono::{DateTime, Utc};
use serde_json::json as value;
use sqlx::{Postgres, Transaction};

use std::time::Duration;

use super::leases::{self, Held};
use super::{Store, StoreError, document, journal, json, marks, plans, word};
use crate::domain::event::{EventType, NewEvent};
use crate::domain::id::PlanId;
use crate::domain::observation::Mark;
use crate::domain::plan::{Plan, PlanError, Progress, StepRecord};
use crate::domain::planner::ForecastStep;
use crate::domain::step::{Step, StepKey};

/// What one look led to, committed before the commands that follow from it are sent.
#[derive(Debug, Default)]
pub struct Round {
    /// Steps that were seen to be done.
    pub done: Vec<StepKey>,
    /// Steps that begin, or are tried again.
    pub begun: Vec<Step>,
    /// What is told of steps that begin for the first time, by their keys.
    pub told: Vec<(StepKey, NewEvent)>,
    pub marks_set: Vec<Mark>,
    pub marks_cleared: Vec<Mark>,
}

impl Round {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
            && self.begun.is_empty()
            && self.marks_set.is_empty()
            && self.marks_cleared.is_empty()
    }
}

struct StepRow {
    key: String,
    position: i32,
    step: serde_json::Value,
    state: String,
    attempts: i32,
    progress: Option<serde_json::Value>,
    error: Option<serde_json::Value>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}

impl TryFrom<StepRow> for StepRecord {
    type Error = StoreError;

    fn try_from(row: StepRow) -> Result<Self, StoreError> {
        Ok(Self {
            key: row.key,
            position: row.position,
            step: document("steps", "step", row.step)?,
            state: word("steps", "state", row.state)?,
            attempts: row.attempts,
            progress: row.progress.map(|p| document("steps", "progress", p)).transpose()?,
            error: row.error.map(|e| document("steps", "error", e)).transpose()?,
            started_at: row.started_at,
            finished_at: row.finished_at,
        })
    }
}

pub(super) async fn insert(
    tx: &mut Transaction<'_, Postgres>,
    plan: PlanId,
    steps: &[ForecastStep],
) -> Result<(), StoreError> {
    let steps: Vec<&Step> = steps.iter().map(|s| &s.step).collect();
    upsert(tx, plan, &steps, false).await
}

/// Writes steps behind those that are there. Those that `begin` count an attempt; a step that had
/// ended begins anew, since looking again found it undone.
async fn upsert(
    tx: &mut Transaction<'_, Postgres>,
    plan: PlanId,
    steps: &[&Step],
    begin: bool,
) -> Result<(), StoreError> {
    let (mut keys, mut kinds, mut titles) = (vec![], vec![], vec![]);
    let (mut documents, mut nodes, mut hazards) = (vec![], vec![], vec![]);
    for step in steps {
        let action = step.action();
        keys.push(action.key());
        kinds.push(step.kind().to_owned());
        titles.push(action.title());
        documents.push(json(step)?);
        nodes.push(json(&action.nodes())?);
        hazards.push(json(&action.hazards().into_iter().map(|h| h.id).collect::<Vec<_>>())?);
    }
    sqlx::query!(
        "INSERT INTO steps (plan_id, key, position, kind, title, step, nodes, hazards, state, attempts, started_at)
         SELECT $1, u.key, coalesce((SELECT max(position) + 1 FROM steps WHERE plan_id = $1), 0) + u.ord::int - 1,
                u.kind, u.title, u.step, u.nodes, u.hazards,
                CASE WHEN $8 THEN 'running' ELSE 'pending' END, CASE WHEN $8 THEN 1 ELSE 0 END,
                CASE WHEN $8 THEN clock_timestamp() END
         FROM unnest($2::text[], $3::text[], $4::text[], $5::jsonb[], $6::jsonb[], $7::jsonb[])
              WITH ORDINALITY AS u(key, kind, title, step, nodes, hazards, ord)
         ON CONFLICT (plan_id, key) DO UPDATE SET step = EXCLUDED.step, title = EXCLUDED.title,
             state = EXCLUDED.state, attempts = steps.attempts + EXCLUDED.attempts,
             started_at = coalesce(steps.started_at, EXCLUDED.started_at), finished_at = NULL",
        plan.0,
        &keys,
        &kinds,
        &titles,
        &documents,
        &nodes,
        &hazards,
        begin
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// What a plan leaves undone at its end was not needed.
pub(super) async fn skip_pending(
    tx: &mut Transaction<'_, Postgres>,
    plan: PlanId,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE steps SET state = 'skipped', finished_at = now()
         WHERE plan_id = $1 AND state IN ('pending', 'running')",
        plan.0
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Steps of the forecast that were not begun; those that were are still looked at.
pub(super) async fn skip_unbegun(
    tx: &mut Transaction<'_, Postgres>,
    plan: PlanId,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE steps SET state = 'skipped', finished_at = now()
         WHERE plan_id = $1 AND state = 'pending'",
        plan.0
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

pub(super) async fn fail_running(
    tx: &mut Transaction<'_, Postgres>,
    plan: PlanId,
    error: &PlanError,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE steps SET state = 'failed', finished_at = now(), error = $2
         WHERE plan_id = $1 AND state = 'running'",
        plan.0,
        json(error)?
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

impl Store {
    /// The steps of a plan in order, from `position` on.
    pub async fn steps(
        &self,
        plan: PlanId,
        from: i32,
        limit: i64,
    ) -> Result<Vec<StepRecord>, StoreError> {
        let rows = sqlx::query_as!(
            StepRow,
            "SELECT key, position, step, state, attempts, progress, error, started_at, finished_at
             FROM steps WHERE plan_id = $1 AND position >= $2 ORDER BY position LIMIT $3",
            plan.0,
            from,
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(StepRecord::try_from).collect()
    }

    /// Commits a round: what is done, what begins, and which marks come and go with it. The lease
    /// is stretched to cover the commands that follow, which may take `commands_within`.
    pub async fn record_round(
        &self,
        held: Held,
        plan: &Plan,
        round: &Round,
        commands_within: Duration,
    ) -> Result<(), StoreError> {
        // Nobody else begins steps of this plan while this holder may write.
        let before = match round.told.as_slice() {
            [] => vec![],
            [_, ..] => self.steps(plan.id, 0, i64::MAX).await?,
        };
        let attempted = |key: &StepKey| before.iter().any(|s| s.key == *key && s.attempts > 0);
        let mut tx = self.pool.begin().await?;
        plans::hold_topology(&mut tx, plan.topology_id).await?;
        let done = sqlx::query!(
            "UPDATE steps SET state = 'done', finished_at = clock_timestamp(), error = NULL,
                 started_at = coalesce(started_at, clock_timestamp())
             WHERE plan_id = $1 AND key = ANY($2) AND state <> 'done'
             RETURNING key, kind, title, attempts, position",
            plan.id.0,
            &round.done
        )
        .fetch_all(&mut *tx)
        .await?;
        let begun: Vec<&Step> = round.begun.iter().collect();
        upsert(&mut tx, plan.id, &begun, true).await?;
        marks::set(&mut tx, plan.topology_id, Some(plan.id), &round.marks_set).await?;
        marks::clear(&mut tx, plan.topology_id, &round.marks_cleared).await?;
        let mut done = done;
        done.sort_by_key(|r| r.position);
        let mut events: Vec<NewEvent> = done
            .into_iter()
            .map(|r| {
                NewEvent::new(
                    EventType::PlanStepDone,
                    value!({ "step": r.key, "kind": r.kind, "title": r.title, "attempts": r.attempts }),
                )
            })
            .collect();
        events.extend(round.begun.iter().map(|step| {
            let action = step.action();
            NewEvent::new(
                EventType::PlanStepStarted,
                value!({ "step": action.key(), "kind": step.kind(), "title": action.title(), "nodes": action.nodes() }),
            )
        }));
        let told = round.told.iter().filter(|(key, _)| !attempted(key));
        events.extend(told.map(|(_, event)| event.clone()));
        let events: Vec<_> = events.into_iter().map(|e| e.of_plan(plan.id).by("reeve")).collect();
        leases::hold(&mut tx, held, commands_within).await?;
        journal::append(&mut tx, Some(plan.topology_id), &events).await?;
        Ok(tx.commit().await?)
    }

    /// Notes how an attempt at a step failed, before it is tried again.
    pub async fn record_failure(
        &self,
        held: Held,
        plan: &Plan,
        step: &Step,
        error: &PlanError,
        retry_in_ms: u64,
    ) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        plans::hold_topology(&mut tx, plan.topology_id).await?;
        let key = step.action().key();
        let attempts = sqlx::query_scalar!(
            "UPDATE steps SET error = $3 WHERE plan_id = $1 AND key = $2 RETURNING attempts",
            plan.id.0,
            key,
            json(error)?
        )
        .fetch_one(&mut *tx)
        .await?;
        let event = NewEvent::new(
            EventType::PlanStepFailed,
            value!({ "step": key, "kind": step.kind(), "error": error, "attempt": attempts,
                     "final": false, "retry_in_ms": retry_in_ms }),
        );
        let event = event.of_plan(plan.id).by("reeve");
        leases::hold(&mut tx, held, Duration::ZERO).await?;
        journal::append(&mut tx, Some(plan.topology_id), &[event]).await?;
        Ok(tx.commit().await?)
    }

    /// Keeps how far a step has come, for whoever asks without following the stream.
    pub async fn record_progress(
        &self,
        held: Held,
        plan: PlanId,
        key: &str,
        progress: &Progress,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "UPDATE steps SET progress = $3 WHERE plan_id = $1 AND key = $2
             AND EXISTS (SELECT 1 FROM leases WHERE topology_id = $4 AND token = $5
                         AND expires_at > clock_timestamp())",
            plan.0,
            key,
            json(progress)?,
            held.topology.0,
            held.token
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
