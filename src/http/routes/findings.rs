//! Findings: what was diagnosed about a topology, with the evidence and what mends it.

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::topologies::find;
use crate::domain::diagnosis::{Remedy, Rule, Severity, Subject};
use crate::domain::id::FindingId;
use crate::http::App;
use crate::http::auth::Viewer;
use crate::http::error::ApiError;
use crate::http::extract::{Path, Query};
use crate::http::page::{Page, bad_cursor};
use crate::store::findings::StoredFinding;

/// One diagnosed fault or risk.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Finding)]
pub struct FindingView {
    id: FindingId,
    rule: Rule,
    severity: Severity,
    title: String,
    detail: String,
    /// What it was told from; its shape goes with the rule. Of `drift`: `differences`, each with a
    /// `key` and a `detail`.
    #[schema(value_type = Object)]
    evidence: Value,
    subject: Subject,
    remedy: Remedy,
    opened_at: DateTime<Utc>,
    last_seen_at: DateTime<Utc>,
    /// Null while it is open.
    closed_at: Option<DateTime<Utc>>,
    /// Until when it is not to be told; null where it is.
    muted_until: Option<DateTime<Utc>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct FindingList {
    items: Vec<FindingView>,
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListFindings {
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    cursor: Option<String>,
}

impl From<StoredFinding> for FindingView {
    fn from(stored: StoredFinding) -> Self {
        let finding = stored.finding;
        Self {
            id: stored.id,
            rule: finding.rule,
            severity: finding.severity,
            title: finding.title,
            detail: finding.detail,
            evidence: finding.evidence,
            subject: finding.subject,
            remedy: finding.remedy,
            opened_at: stored.opened_at,
            last_seen_at: stored.last_seen_at,
            closed_at: stored.closed_at,
            muted_until: None,
        }
    }
}

/// Findings: those that are open first, the newest first.
#[utoipa::path(get, path = "/v1/topologies/{name}/findings", operation_id = "list_findings", tag = "topologies",
    params(("name" = String, Path), ListFindings),
    responses((status = 200, description = "A page of findings.", body = FindingList)))]
pub async fn list(
    State(app): State<App>,
    Viewer(caller): Viewer,
    Path(name): Path<String>,
    Query(query): Query<ListFindings>,
) -> Result<Json<FindingList>, ApiError> {
    let stored = find(&app, &caller, &name).await?;
    let page = Page::read(query.limit, query.cursor.as_deref())?;
    let after = page.after.as_deref().map(read_key).transpose()?;
    let mut items = app.engine.store.findings(stored.wanted.id, after, page.fetch()).await?;
    let next_cursor = page.cut(&mut items, key);
    Ok(Json(FindingList { items: items.into_iter().map(FindingView::from).collect(), next_cursor }))
}

fn key(finding: &StoredFinding) -> String {
    let state = if finding.closed_at.is_some() { "closed" } else { "open" };
    format!("{state} {}", finding.id)
}

fn read_key(key: &str) -> Result<(bool, FindingId), ApiError> {
    let (state, id) = key.split_once(' ').ok_or_else(bad_cursor)?;
    let id = FindingId(id.parse::<Uuid>().map_err(|_| bad_cursor())?);
    match state {
        "open" => Ok((false, id)),
        "closed" => Ok((true, id)),
        _ => Err(bad_cursor()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_no_page_gave_is_refused() {
        let id = "01a203a3-faa5-7044-844c-286351a91d99";
        let read = |key: &str| read_key(key).ok().map(|(closed, id)| (closed, id.to_string()));
        assert_eq!(read(&format!("closed {id}")), Some((true, id.to_owned())));
        assert_eq!(read(&format!("open {id}")), Some((false, id.to_owned())));
        for key in ["", id, "open", "open x", "ajar 01a203a3-faa5-7044-844c-286351a91d99"] {
            assert_eq!(read(key), None, "{key}");
        }
    }
}
