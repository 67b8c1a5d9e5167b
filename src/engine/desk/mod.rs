//! Where requests are handed in: each becomes a stored plan, or a refusal with nothing changed.
//!
//! - [`adopt`] takes over a cluster that runs, [`create`] makes a topology with its first plan, [`submit`] plans on one that exists.
//! - [`survey`] looks into the slots that a plan moves.
//! - [`reins`] start, pause, resume, cancel and retry; [`nodes`] registers single nodes.
//!
//! A request is answered from a fresh look, and bound to it: a proposed plan starts only while the
//! world is as it was ([`Observation::fingerprint`]).

mod adopt;
mod create;
mod nodes;
mod reins;
mod submit;
mod survey;

use std::collections::{BTreeMap, BTreeSet};

use super::Engine;
use super::look::LoginError;
use crate::domain::hazard::{Accepted, Ceiling, Hazard};
use crate::domain::id::PlanId;
use crate::domain::intent::{Amendment, Intent};
use crate::domain::moving::Estimate;
use crate::domain::node::{Address, Labels};
use crate::domain::observation::Observation;
use crate::domain::placement::Warning;
use crate::domain::plan::{Displaces, Plan};
use crate::domain::planner::{self, Forecast, ForecastStep, Goal, Question, Terms};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::slot::SlotSet;
use crate::domain::spec::{CredentialNames, Spec};
use crate::domain::topology::{Layout, Topology};
use crate::store::StoreError;
use crate::store::plans::NewPlan;
use crate::store::topologies::StoredTopology;

/// How often a plan that was stored is read.
const READ_AT_MOST: usize = 3;

/// What goes with every request that makes a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanOptions {
    pub start: bool,
    pub accept_hazard: Ceiling,
    pub accept: BTreeSet<String>,
    pub expect_fingerprint: Option<String>,
    /// Whether it takes the place of the active plan, which ends at its next safe point.
    pub supersede: bool,
    /// Whether slots that are to move are looked into at length: a preview has time for that.
    pub thorough: bool,
    pub reason: Option<String>,
}

impl PlanOptions {
    fn accepted(&self) -> Accepted {
        Accepted { ceiling: self.accept_hazard, ids: self.accept.clone() }
    }
}

/// A topology that somebody asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateRequest {
    pub name: String,
    pub labels: Labels,
    pub spec: Spec,
    pub reset_nodes: bool,
    pub options: PlanOptions,
}

/// A cluster that runs and is to be a topology.
#[derive(Debug, Clone, PartialEq)]
pub struct AdoptRequest {
    pub name: String,
    pub labels: Labels,
    pub seeds: Vec<Address>,
    pub credentials: CredentialNames,
    pub zones: BTreeMap<Address, String>,
}

/// What a request would do.
#[derive(Debug, Clone, PartialEq)]
pub struct Preview {
    pub intent: Intent,
    pub from_version: i32,
    pub to_version: i32,
    pub fingerprint: String,
    pub prints: BTreeMap<Address, String>,
    pub layout: Layout,
    pub terms: Terms,
    pub hazards: Vec<Hazard>,
    /// Those that the request did not accept.
    pub lacking: Vec<Hazard>,
    pub warnings: Vec<Warning>,
    pub estimate: Estimate,
    pub steps: Vec<ForecastStep>,
}

/// A request, thought through.
pub(super) struct Draft {
    /// The topology as it is to be.
    pub wanted: Topology,
    /// Whether that is another shape than it has.
    pub reshapes: bool,
    pub preview: Preview,
    pub displaces: Option<Displaces>,
}

#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("REEVE_SECRET_KEY is not set, so credentials cannot be used")]
    NoSecretKey,
    #[error("the plan {plan} is stored, but could not be read again")]
    Unread { plan: PlanId, source: StoreError },
}

impl From<LoginError> for DeskError {
    fn from(error: LoginError) -> Self {
        match error {
            LoginError::Missing { field, .. } => {
                let pointer = match field {
                    "credential" => "/credential".to_owned(),
                    field => format!("/spec/credentials/{field}"),
                };
                Refusal::Invalid(vec![FieldError::new(pointer, error.to_string())]).into()
            }
            LoginError::NoKey => Self::NoSecretKey,
            LoginError::Store(error) => error.into(),
        }
    }
}

impl Engine {
    /// A plan that was stored or moved just now. That is so whatever comes of reading it, so a
    /// connection that is hard to get is waited for.
    async fn stored_plan(&self, plan: PlanId) -> Result<Plan, DeskError> {
        let mut read = self.store.plan(plan).await;
        for _ in 1..READ_AT_MOST {
            match read {
                Err(error) if error.is_outage() || error.is_busy() => {}
                done => return Ok(done?),
            }
            read = self.store.plan(plan).await;
        }
        read.map_err(|source| DeskError::Unread { plan, source })
    }

    fn forecast(
        &self,
        wanted: &Topology,
        seen: &Observation,
        intent: Intent,
        from_version: i32,
        amendment: Amendment,
        options: &PlanOptions,
    ) -> Result<Preview, DeskError> {
        let question = Question {
            want: &wanted.without(&amendment.terms.apart),
            seen,
            terms: &amendment.terms,
            policy: &self.policy,
            goal: Goal::Converge,
        };
        let drift = planner::functions_drift(&question);
        let Forecast { steps, blockers, .. } = planner::forecast(&question);
        if !blockers.is_empty() {
            let errors = blockers
                .into_iter()
                .map(|b| FieldError::new("", format!("{}. {}", b.why, b.recovery)));
            return Err(Refusal::NodesUnfit { errors: errors.collect(), redis: None }.into());
        }
        let slots = steps.iter().filter_map(|s| s.step.slots());
        let slots = slots.fold(SlotSet::empty(), |all, s| all.union(s)).count() as u64;
        let hazards: Vec<Hazard> = steps.iter().flat_map(|s| s.step.action().hazards()).collect();
        Ok(Preview {
            intent,
            from_version,
            to_version: wanted.version,
            fingerprint: seen.fingerprint(),
            prints: seen.prints(),
            layout: amendment.layout,
            terms: amendment.terms,
            lacking: options.accepted().lacking(&hazards, self.policy.free_pause_ms),
            hazards,
            warnings: amendment.warnings.into_iter().chain(drift).collect(),
            estimate: Estimate { slots: Some(slots), ..Estimate::default() },
            steps,
        })
    }
}

fn new_plan<'a>(
    id: PlanId,
    draft: &'a Draft,
    accepted: &'a Accepted,
    options: &'a PlanOptions,
    actor: &'a str,
) -> NewPlan<'a> {
    let Draft { wanted, reshapes, preview, displaces } = draft;
    NewPlan {
        id,
        topology_id: wanted.id,
        topology: &wanted.name,
        intent: &preview.intent,
        terms: &preview.terms,
        start: options.start,
        from_version: preview.from_version,
        to_version: preview.to_version,
        fingerprint: &preview.fingerprint,
        prints: &preview.prints,
        accepted,
        hazards: &preview.hazards,
        warnings: &preview.warnings,
        estimate: &preview.estimate,
        becomes: reshapes.then_some((&wanted.spec, &wanted.layout)),
        retry_of: None,
        displaces: *displaces,
        requested_by: actor,
        reason: options.reason.as_deref(),
        steps: &preview.steps,
    }
}

/// What stands against a draft that is to be stored.
fn refuse_unless_agreed(options: &PlanOptions, preview: &Preview) -> Result<(), Refusal> {
    expect_fingerprint(options, preview)?;
    if options.start && !preview.lacking.is_empty() {
        return Err(Refusal::ConsentRequired(preview.lacking.clone()));
    }
    Ok(())
}

fn expect_fingerprint(options: &PlanOptions, preview: &Preview) -> Result<(), Refusal> {
    match &options.expect_fingerprint {
        Some(expected) if *expected != preview.fingerprint => Err(Refusal::StaleFingerprint {
            expected: expected.clone(),
            seen: preview.fingerprint.clone(),
        }),
        Some(_) | None => Ok(()),
    }
}

fn refuse_active(stored: &StoredTopology) -> Result<(), Refusal> {
    stored.active_plan.map_or(Ok(()), |plan| Err(Refusal::PlanActive(plan)))
}
