//! Where requests are handed in: each becomes a stored plan, or a refusal with nothing changed.
//!
//! A request is answered from a fresh look, and bound to it: a proposed plan starts only while the
//! world is as it was ([`Observation::fingerprint`]).

use std::collections::BTreeSet;

use super::Engine;
use super::look::{LoginError, Logins};
use crate::clock;
use crate::domain::event::EventType;
use crate::domain::hazard::{Accepted, Ceiling, Hazard};
use crate::domain::health::Health;
use crate::domain::id::{PlanId, TopologyId};
use crate::domain::intent::{Amendment, CreateIntent, Intent, create};
use crate::domain::node::{Address, Labels, NodeKind};
use crate::domain::observation::{Observation, Sighting};
use crate::domain::placement::Warning;
use crate::domain::plan::{Plan, PlanState, Requested};
use crate::domain::planner::{self, Forecast, ForecastStep, Goal, Question, Terms};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::spec::Spec;
use crate::domain::topology::{Layout, Topology};
use crate::fleet::Ask;
use crate::store::StoreError;
use crate::store::nodes::{NewNode, Node};
use crate::store::plans::{Move, NewPlan};
use crate::store::topologies::{NewTopology, StoredTopology};

/// What goes with every request that makes a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanOptions {
    pub start: bool,
    pub accept_hazard: Ceiling,
    pub accept: BTreeSet<String>,
    pub expect_fingerprint: Option<String>,
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

/// What a request would do.
#[derive(Debug, Clone, PartialEq)]
pub struct Preview {
    pub intent: Intent,
    pub from_version: i32,
    pub to_version: i32,
    pub fingerprint: String,
    pub layout: Layout,
    pub terms: Terms,
    pub hazards: Vec<Hazard>,
    /// Those that the request did not accept.
    pub lacking: Vec<Hazard>,
    pub warnings: Vec<Warning>,
    pub steps: Vec<ForecastStep>,
}

#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("REEVE_SECRET_KEY is not set, so credentials cannot be used")]
    NoSecretKey,
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

/// A request for a new topology, thought through.
struct Draft {
    wanted: Topology,
    preview: Preview,
}

/// Tries again when somebody moved the plan between reading and writing. (A macro, since futures of
/// async closures are not known to be `Send`.)
macro_rules! again {
    ($attempt:expr) => {{
        for _ in 0..5 {
            match $attempt.await {
                Err(DeskError::Store(StoreError::Moved(_))) => {}
                done => return done,
            }
        }
        $attempt.await
    }};
}

impl Engine {
    /// What creating a topology would do; nothing is stored, no node is changed.
    pub async fn preview_create(&self, request: &CreateRequest) -> Result<Preview, DeskError> {
        Ok(self.draft(request).await?.preview)
    }

    /// Stores a new topology with the plan that creates it.
    pub async fn create(&self, request: &CreateRequest, actor: &str) -> Result<Plan, DeskError> {
        let Draft { wanted, preview } = self.draft(request).await?;
        expect_fingerprint(&request.options, &preview)?;
        if request.options.start && !preview.lacking.is_empty() {
            return Err(Refusal::ConsentRequired(preview.lacking).into());
        }
        let id = PlanId(clock::new_id());
        let accepted = request.options.accepted();
        let plan = new_plan(id, &wanted, &preview, &accepted, &request.options, actor);
        // Kept with the node, so that it can be looked at when the topology is gone.
        let login = wanted.spec.credentials().admin.clone();
        let new = |n: &crate::domain::spec::NodeSpec, kind| NewNode {
            address: n.address.clone(),
            zone: n.zone.clone(),
            host: n.host.clone(),
            labels: Labels::new(),
            credential: login.clone(),
            kind,
            maintenance: false,
        };
        let data = wanted.spec.nodes().iter().map(|n| new(n, NodeKind::Data));
        let sentinels = wanted.spec.sentinels().iter().map(|n| new(n, NodeKind::Sentinel));
        let nodes: Vec<NewNode> = data.chain(sentinels).collect();
        self.store
            .create_topology(&NewTopology {
                wanted: &wanted,
                labels: &request.labels,
                nodes: &nodes,
                plan: &plan,
                actor,
            })
            .await?;
        self.ring(wanted.id);
        Ok(self.store.plan(id).await?)
    }

    async fn draft(&self, request: &CreateRequest) -> Result<Draft, DeskError> {
        let wrong = request.spec.validate();
        if !wrong.is_empty() {
            let wrong = wrong.into_iter().map(|e| e.under("/spec")).collect();
            return Err(Refusal::Invalid(wrong).into());
        }
        self.refuse_name(&request.name).await?;
        let logins = self.logins(request.spec.credentials()).await?;
        self.refuse_taken(&request.spec).await?;
        let mut seen = self.look(&request.spec, &logins, None).await;
        self.knock_at_buses(&mut seen).await;
        let id = TopologyId(clock::new_id());
        let amendment = create::amend(id, &request.spec, request.reset_nodes, &seen)?;
        let wanted = Topology {
            id,
            name: request.name.clone(),
            version: 1,
            spec: request.spec.clone(),
            layout: amendment.layout.clone(),
        };
        let intent = Intent::Create(CreateIntent { reset_nodes: request.reset_nodes });
        let preview = self.forecast(&wanted, &seen, intent, 0, amendment, &request.options)?;
        Ok(Draft { wanted, preview })
    }

    /// Told before anything about nodes, which would be those of the topology itself.
    async fn refuse_name(&self, name: &str) -> Result<(), DeskError> {
        match self.store.topology(name).await {
            Ok(_) => Err(Refusal::NameTaken(name.to_owned()).into()),
            Err(StoreError::Refused(Refusal::NotFound { .. })) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn refuse_taken(&self, spec: &Spec) -> Result<(), DeskError> {
        let addresses: Vec<Address> = spec.nodes().iter().map(|n| n.address.clone()).collect();
        let taken = self.store.nodes_taken(&addresses).await?;
        let errors: Vec<FieldError> = taken
            .into_iter()
            .filter_map(|(address, topology)| {
                let i = addresses.iter().position(|a| *a == address)?;
                Some(FieldError::new(
                    format!("/spec/nodes/{i}/address"),
                    format!(
                        "{address} belongs to the topology `{topology}`; name a node that is free"
                    ),
                ))
            })
            .collect();
        if errors.is_empty() { Ok(()) } else { Err(Refusal::NodeTaken(errors).into()) }
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
        let Forecast { steps, blockers, .. } = planner::forecast(&Question {
            want: wanted,
            seen,
            terms: &amendment.terms,
            policy: &self.policy,
            goal: Goal::Converge,
        });
        if !blockers.is_empty() {
            let errors = blockers
                .into_iter()
                .map(|b| FieldError::new("", format!("{}. {}", b.why, b.recovery)));
            return Err(Refusal::NodesUnfit { errors: errors.collect(), redis: None }.into());
        }
        let hazards: Vec<Hazard> = steps.iter().flat_map(|s| s.step.action().hazards()).collect();
        Ok(Preview {
            intent,
            from_version,
            to_version: wanted.version,
            fingerprint: seen.fingerprint(),
            layout: amendment.layout,
            terms: amendment.terms,
            lacking: options.accepted().lacking(&hazards, self.policy.free_pause_ms),
            hazards,
            warnings: amendment.warnings,
            steps,
        })
    }

    /// What an intent would do to a topology that exists.
    pub async fn preview_plan(
        &self,
        name: &str,
        intent: &Intent,
        options: &PlanOptions,
    ) -> Result<Preview, DeskError> {
        let stored = self.store.topology(name).await?;
        Ok(self.draft_plan(&stored, intent, options).await?.1)
    }

    /// Stores a plan for an intent on a topology that exists.
    pub async fn submit(
        &self,
        name: &str,
        intent: &Intent,
        options: &PlanOptions,
        actor: &str,
    ) -> Result<Plan, DeskError> {
        let stored = self.store.topology(name).await?;
        refuse_active(&stored)?;
        let (wanted, preview) = self.draft_plan(&stored, intent, options).await?;
        expect_fingerprint(options, &preview)?;
        if options.start && !preview.lacking.is_empty() {
            return Err(Refusal::ConsentRequired(preview.lacking).into());
        }
        let id = PlanId(clock::new_id());
        let accepted = options.accepted();
        self.store.add_plan(&new_plan(id, &wanted, &preview, &accepted, options, actor)).await?;
        self.ring(wanted.id);
        Ok(self.store.plan(id).await?)
    }

    async fn draft_plan(
        &self,
        stored: &StoredTopology,
        intent: &Intent,
        options: &PlanOptions,
    ) -> Result<(Topology, Preview), DeskError> {
        let wanted = stored.wanted.clone();
        let terms = match intent {
            Intent::Repair(_) if stored.created => Terms::default(),
            Intent::Repair(_) => {
                return Err(Refusal::Unsettled(vec![FieldError::new(
                    "/intent/kind",
                    format!(
                        "`{}` was never created to its end; retry its create plan",
                        wanted.name
                    ),
                )])
                .into());
            }
            Intent::Create(_) => {
                return Err(Refusal::Invalid(vec![FieldError::new(
                    "/intent/kind",
                    "a topology is created by POST /v1/topologies; name another kind here",
                )])
                .into());
            }
        };
        let seen = self.fresh_look(&wanted).await?;
        let amendment = Amendment { layout: wanted.layout.clone(), terms, warnings: vec![] };
        let version = wanted.version;
        let preview = self.forecast(&wanted, &seen, intent.clone(), version, amendment, options)?;
        Ok((wanted, preview))
    }

    async fn fresh_look(&self, wanted: &Topology) -> Result<Observation, DeskError> {
        let logins = self.logins(wanted.spec.credentials()).await?;
        let mut seen = self.look(&wanted.spec, &logins, None).await;
        seen.marks = self.store.marks(wanted.id).await?;
        Ok(seen)
    }

    /// Starts a plan that was only proposed, if the world is still as it was then.
    pub async fn start_plan(
        &self,
        id: PlanId,
        accept: &BTreeSet<String>,
        actor: &str,
    ) -> Result<Plan, DeskError> {
        let plan = self.store.plan(id).await?;
        if plan.state != PlanState::Proposed {
            return Err(illegal(&plan, "start"));
        }
        let accepted = with(&plan.accepted, accept);
        let lacking = accepted.lacking(&plan.hazards, self.policy.free_pause_ms);
        if !lacking.is_empty() {
            return Err(Refusal::ConsentRequired(lacking).into());
        }
        let stored = self.store.topology(&plan.topology).await?;
        let seen = self.fresh_look(&stored.wanted).await?.fingerprint();
        if seen != plan.fingerprint {
            return Err(Refusal::StaleFingerprint { expected: plan.fingerprint, seen }.into());
        }
        self.store.queue_plan(&plan, &accepted, actor).await?;
        self.ring(plan.topology_id);
        Ok(self.store.plan(id).await?)
    }

    /// Has a plan pause at its next safe point.
    pub async fn pause_plan(&self, id: PlanId) -> Result<Plan, DeskError> {
        again!(self.pause_once(id))
    }

    async fn pause_once(&self, id: PlanId) -> Result<Plan, DeskError> {
        let plan = self.store.plan(id).await?;
        match plan.state {
            PlanState::Running if plan.requested.is_none() && plan.error.is_none() => {
                self.store.request(&plan, Requested::Pause).await?;
                self.ring(plan.topology_id);
            }
            // To pause twice is to pause.
            PlanState::Paused => {}
            PlanState::Running if plan.requested == Some(Requested::Pause) => {}
            PlanState::Running
            | PlanState::Proposed
            | PlanState::Queued
            | PlanState::Succeeded
            | PlanState::Failed
            | PlanState::Cancelled
            | PlanState::Superseded => return Err(illegal(&plan, "pause")),
        }
        Ok(self.store.plan(id).await?)
    }

    pub async fn resume_plan(
        &self,
        id: PlanId,
        accept: &BTreeSet<String>,
        actor: &str,
    ) -> Result<Plan, DeskError> {
        again!(self.resume_once(id, accept, actor))
    }

    async fn resume_once(
        &self,
        id: PlanId,
        accept: &BTreeSet<String>,
        actor: &str,
    ) -> Result<Plan, DeskError> {
        let plan = self.store.plan(id).await?;
        if plan.state != PlanState::Paused || plan.requested.is_some() {
            return Err(illegal(&plan, "resume"));
        }
        let accepted = with(&plan.accepted, accept);
        let lacking = accepted.lacking(&plan.hazards, self.policy.free_pause_ms);
        if !lacking.is_empty() {
            return Err(Refusal::ConsentRequired(lacking).into());
        }
        let mut to = Move::to(PlanState::Running, EventType::PlanResumed);
        to.accepted = Some(accepted);
        self.store.move_plan(&plan, &to, actor).await?;
        self.ring(plan.topology_id);
        Ok(self.store.plan(id).await?)
    }

    /// Ends a plan: at once where it did nothing yet, else at its next safe point.
    pub async fn cancel_plan(&self, id: PlanId, actor: &str) -> Result<Plan, DeskError> {
        again!(self.cancel_once(id, actor))
    }

    async fn cancel_once(&self, id: PlanId, actor: &str) -> Result<Plan, DeskError> {
        let plan = self.store.plan(id).await?;
        match plan.state {
            PlanState::Proposed | PlanState::Queued => {
                let to = Move::to(PlanState::Cancelled, EventType::PlanCancelled);
                self.store.move_plan(&plan, &to, actor).await?;
            }
            PlanState::Running | PlanState::Paused => {
                self.store.request(&plan, Requested::Cancel).await?;
                self.ring(plan.topology_id);
            }
            PlanState::Cancelled => {}
            PlanState::Succeeded | PlanState::Failed | PlanState::Superseded => {
                return Err(illegal(&plan, "cancel"));
            }
        }
        Ok(self.store.plan(id).await?)
    }

    /// Makes a new plan that goes on where one ended without success.
    pub async fn retry_plan(
        &self,
        id: PlanId,
        accept: &BTreeSet<String>,
        actor: &str,
    ) -> Result<Plan, DeskError> {
        let old = self.store.plan(id).await?;
        if !matches!(old.state, PlanState::Failed | PlanState::Cancelled) {
            return Err(illegal(&old, "retry"));
        }
        let stored = self.store.topology(&old.topology).await?;
        refuse_active(&stored)?;
        // What was once made is in use: its creation is over, however that plan ended.
        let over = stored.created && matches!(old.intent, Intent::Create(_));
        let gone_on =
            stored.wanted.id != old.topology_id || stored.wanted.version != old.to_version;
        if over || gone_on {
            return Err(Refusal::Unsettled(vec![FieldError::new(
                "",
                "the topology has gone on since that plan; ask for what is wanted now",
            )])
            .into());
        }
        let seen = self.fresh_look(&stored.wanted).await?;
        let amendment = Amendment {
            layout: stored.wanted.layout.clone(),
            terms: old.terms.clone(),
            warnings: vec![],
        };
        let options = PlanOptions {
            start: true,
            accept_hazard: old.accepted.ceiling,
            // Consent to a loss is for the moment at which it is given.
            accept: accept.clone(),
            expect_fingerprint: None,
            reason: old.reason.clone(),
        };
        let preview = self.forecast(
            &stored.wanted,
            &seen,
            old.intent.clone(),
            old.from_version,
            amendment,
            &options,
        )?;
        if !preview.lacking.is_empty() {
            return Err(Refusal::ConsentRequired(preview.lacking).into());
        }
        let new_id = PlanId(clock::new_id());
        let accepted = options.accepted();
        let mut plan = new_plan(new_id, &stored.wanted, &preview, &accepted, &options, actor);
        plan.retry_of = Some(old.id);
        self.store.add_plan(&plan).await?;
        self.ring(stored.wanted.id);
        Ok(self.store.plan(new_id).await?)
    }

    /// Registers a node and looks at it once. A node that does not answer is registered all the
    /// same: it may be started later, and its health says how it is.
    pub async fn register_node(&self, node: &NewNode, actor: &str) -> Result<Node, DeskError> {
        let admin = self.login("credential", node.credential.as_deref()).await?;
        let logins = Logins { admin, replication: None };
        let target = super::look::target(&node.address, &logins);
        let (health, sighting) = match self.fleet.look(&target, &Ask::default()).await {
            Ok(report) => (Health::Up, Sighting::Seen(Box::new(report))),
            Err(error) => (Health::Unknown, super::look::silence(error, None)),
        };
        let kind = match &sighting {
            Sighting::Seen(report) => report.kind,
            Sighting::Silent(_) | Sighting::Unknown => node.kind,
        };
        let node = NewNode { kind, ..node.clone() };
        let id = self.store.register_node(&node, actor).await?;
        let seen = [(node.address.clone(), sighting)].into();
        self.store.record_spares(&seen, &[(node.address, health)].into(), &[]).await?;
        Ok(self.store.node(id).await?)
    }
}

fn new_plan<'a>(
    id: PlanId,
    wanted: &'a Topology,
    preview: &'a Preview,
    accepted: &'a Accepted,
    options: &'a PlanOptions,
    actor: &'a str,
) -> NewPlan<'a> {
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
        accepted,
        hazards: &preview.hazards,
        warnings: &preview.warnings,
        retry_of: None,
        requested_by: actor,
        reason: options.reason.as_deref(),
        steps: &preview.steps,
    }
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

fn with(accepted: &Accepted, more: &BTreeSet<String>) -> Accepted {
    let ids = accepted.ids.union(more).cloned().collect();
    Accepted { ceiling: accepted.ceiling, ids }
}

fn illegal(plan: &Plan, action: &'static str) -> DeskError {
    Refusal::PlanState { plan: plan.id, state: plan.state, action }.into()
}
