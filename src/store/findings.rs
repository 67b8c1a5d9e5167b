//! Findings: opened once, kept up to date, closed when they are not seen any more.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::leases::{self, Held};
use super::{Store, StoreError, document, journal, json as written, word};
use crate::clock::new_id;
use crate::domain::diagnosis::{Finding, Rule};
use crate::domain::event::{EventType, NewEvent};
use crate::domain::id::{FindingId, TopologyId};

/// A finding with its life.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredFinding {
    pub id: FindingId,
    pub finding: Finding,
    pub opened_at: DateTime<Utc>,
    pub last_seen_at: DateTime<Utc>,
    pub closed_at: Option<DateTime<Utc>>,
}

/// How many findings of a topology are open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenFindings {
    pub critical: i64,
    pub warning: i64,
    pub info: i64,
}

struct FindingRow {
    id: Uuid,
    rule: String,
    severity: String,
    title: String,
    detail: String,
    evidence: Value,
    subject: Value,
    remedy: Value,
    opened_at: DateTime<Utc>,
    last_seen_at: DateTime<Utc>,
    closed_at: Option<DateTime<Utc>>,
}

impl TryFrom<FindingRow> for StoredFinding {
    type Error = StoreError;

    fn try_from(row: FindingRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: FindingId(row.id),
            finding: Finding {
                rule: word("findings", "rule", row.rule)?,
                severity: word("findings", "severity", row.severity)?,
                title: row.title,
                detail: row.detail,
                evidence: row.evidence,
                subject: document("findings", "subject", row.subject)?,
                remedy: document("findings", "remedy", row.remedy)?,
            },
            opened_at: row.opened_at,
            last_seen_at: row.last_seen_at,
            closed_at: row.closed_at,
        })
    }
}

impl Store {
    /// Findings of a topology, at most `limit`: those that are open first, and of each the newest
    /// first. The page begins after `(closed, id)`.
    pub async fn findings(
        &self,
        topology: TopologyId,
        after: Option<(bool, FindingId)>,
        limit: i64,
    ) -> Result<Vec<StoredFinding>, StoreError> {
        let rows = sqlx::query_as!(
            FindingRow,
            "SELECT id, rule, severity, title, detail, evidence, subject, remedy,
                    opened_at, last_seen_at, closed_at
             FROM findings
             WHERE topology_id = $1
               AND ($2::bool IS NULL OR (closed_at IS NOT NULL) > $2
                    OR ((closed_at IS NOT NULL) = $2 AND id < $3))
             ORDER BY closed_at IS NOT NULL, id DESC LIMIT $4",
            topology.0,
            after.map(|(closed, _)| closed),
            after.map(|(_, id)| id.0),
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(StoredFinding::try_from).collect()
    }

    /// Those that are open.
    pub async fn open_findings(
        &self,
        topology: TopologyId,
    ) -> Result<Vec<StoredFinding>, StoreError> {
        let rows = sqlx::query_as!(
            FindingRow,
            "SELECT id, rule, severity, title, detail, evidence, subject, remedy,
                    opened_at, last_seen_at, closed_at
             FROM findings WHERE topology_id = $1 AND closed_at IS NULL",
            topology.0
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(StoredFinding::try_from).collect()
    }

    pub async fn count_findings(&self, topology: TopologyId) -> Result<OpenFindings, StoreError> {
        let counts = sqlx::query_as!(
            OpenFindings,
            "SELECT count(*) FILTER (WHERE severity = 'critical') AS \"critical!\",
                    count(*) FILTER (WHERE severity = 'warning') AS \"warning!\",
                    count(*) FILTER (WHERE severity = 'info') AS \"info!\"
             FROM findings WHERE topology_id = $1 AND closed_at IS NULL",
            topology.0
        );
        Ok(counts.fetch_one(&self.pool).await?)
    }

    /// Makes `now` all that is open by these rules: what is new is opened, what is known is brought
    /// up to date, and the rest is closed; with the events that tell of it.
    pub async fn record_findings(
        &self,
        held: Held,
        rules: &[Rule],
        now: &[Finding],
    ) -> Result<(), StoreError> {
        let topology = held.topology.0;
        let mut tx = self.pool.begin().await?;
        // First of all locks, as everywhere.
        let there = sqlx::query_scalar!(
            "SELECT id FROM topologies WHERE id = $1 FOR NO KEY UPDATE",
            topology
        )
        .fetch_optional(&mut *tx)
        .await?;
        if there.is_none() {
            return Ok(());
        }
        let mut events = Vec::new();
        let mut open = Vec::new();
        for finding in now {
            let known = sqlx::query_scalar!(
                "UPDATE findings SET severity = $4, title = $5, detail = $6, evidence = $7, remedy = $8,
                        last_seen_at = clock_timestamp()
                 WHERE topology_id = $1 AND rule = $2 AND subject = $3 AND closed_at IS NULL
                 RETURNING id",
                topology,
                finding.rule.as_str(),
                written(&finding.subject)?,
                finding.severity.as_str(),
                finding.title,
                finding.detail,
                finding.evidence,
                written(&finding.remedy)?
            )
            .fetch_optional(&mut *tx)
            .await?;
            if let Some(id) = known {
                open.push(id);
                continue;
            }
            let id = new_id();
            sqlx::query!(
                "INSERT INTO findings (id, topology_id, rule, subject, severity, title, detail, evidence, remedy)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                id,
                topology,
                finding.rule.as_str(),
                written(&finding.subject)?,
                finding.severity.as_str(),
                finding.title,
                finding.detail,
                finding.evidence,
                written(&finding.remedy)?
            )
            .execute(&mut *tx)
            .await?;
            open.push(id);
            let data = json!({
                "finding": id, "rule": finding.rule, "severity": finding.severity,
                "title": finding.title, "detail": finding.detail, "evidence": finding.evidence,
                "subject": finding.subject, "remedy": finding.remedy,
            });
            events.push(NewEvent::new(EventType::FindingOpened, data).by("reeve"));
        }
        let rules: Vec<String> = rules.iter().map(|r| r.as_str().to_owned()).collect();
        let closed = sqlx::query!(
            "UPDATE findings SET closed_at = clock_timestamp()
             WHERE topology_id = $1 AND rule = ANY($2) AND closed_at IS NULL AND id <> ALL($3)
             RETURNING id, rule, severity, title, subject",
            topology,
            &rules,
            &open
        )
        .fetch_all(&mut *tx)
        .await?;
        events.extend(closed.into_iter().map(|f| {
            let data = json!({
                "finding": f.id, "rule": f.rule, "severity": f.severity, "title": f.title,
                "subject": f.subject,
            });
            NewEvent::new(EventType::FindingClosed, data).by("reeve")
        }));
        leases::hold(&mut tx, held, Duration::ZERO).await?;
        journal::append(&mut tx, Some(held.topology), &events).await?;
        Ok(tx.commit().await?)
    }
}
