//! A plan on a topology that exists.
//!
//! A plan begins only where the topology is as wanted, so that none finishes by surprise what an
//! earlier one left undone. What leads back to that state, and emergencies, may begin anywhere.

use std::collections::BTreeSet;

use super::survey::AT_LENGTH;
use super::{DeskError, Draft, PlanOptions, Preview, new_plan, refuse_unless_agreed};
use crate::clock;
use crate::domain::hazard::Accepted;
use crate::domain::id::PlanId;
use crate::domain::intent::{
    Intent, accept_drift, add_shard, dissolve, drain, failover, members, rebalance, remove_shard,
    repair, replace, reshard, revert, sentinels,
};
use crate::domain::moving::survey::Figures;
use crate::domain::node::Address;
use crate::domain::observation::Observation;
use crate::domain::plan::{Displacement, Displaces, Plan, PlanState};
use crate::domain::planner::{self, Moving, ResetTerm, Terms};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::settled::{self, Offer, Standing};
use crate::domain::spec::{Mode, Spec};
use crate::domain::step::reset::hazard_id;
use crate::domain::topology::{Layout, Topology};
use crate::domain::view;
use crate::engine::Engine;
use crate::store::StoreError;
use crate::store::leases::Held;
use crate::store::topologies::StoredTopology;

/// What there was before, so far as a new plan depends on it.
struct Past {
    /// The version that a revert names, if there is one.
    older: Option<Topology>,
    /// The members of the last version that had some.
    former: BTreeSet<Address>,
    /// The version before the current one.
    parent: Option<i32>,
    /// The last plan, if it ended without success and could be tried again.
    unfinished: Option<Plan>,
}

impl Engine {
    /// What an intent would do to a topology that exists.
    pub async fn preview_plan(
        &self,
        name: &str,
        intent: &Intent,
        options: &PlanOptions,
    ) -> Result<Preview, DeskError> {
        let stored = self.store.topology(name).await?;
        let thorough = PlanOptions { thorough: true, ..options.clone() };
        Ok(self.draft_plan(&stored, intent, &thorough).await?.preview)
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
        self.submit_on(&stored, intent, options, actor).await
    }

    /// The same on a topology as somebody read it: if another version was made of it since, it is
    /// refused.
    pub async fn submit_on(
        &self,
        stored: &StoredTopology,
        intent: &Intent,
        options: &PlanOptions,
        actor: &str,
    ) -> Result<Plan, DeskError> {
        let draft = self.draft_plan(stored, intent, options).await?;
        refuse_unless_agreed(options, &draft.preview)?;
        let id = PlanId(clock::new_id());
        let accepted = options.accepted();
        self.store.add_plan(&new_plan(id, &draft, &accepted, options, actor)).await?;
        self.ring(stored.wanted.id);
        self.stored_plan(id).await
    }

    async fn draft_plan(
        &self,
        stored: &StoredTopology,
        intent: &Intent,
        options: &PlanOptions,
    ) -> Result<Draft, DeskError> {
        if options.supersede && !options.start {
            return Err(Refusal::Invalid(vec![FieldError::new(
                "/plan/supersede",
                "a plan that is only proposed takes nobody's place; have it start, or leave supersede out",
            )])
            .into());
        }
        let active = match stored.active_plan {
            Some(id) => Some(self.store.plan(id).await?),
            None => None,
        };
        if let Err(refusal) = refuse_kind(stored, intent) {
            // While a plan is at work the ways out that the refusal names are not open.
            let waits = matches!(refusal, Refusal::Unsettled { .. }) && !options.supersede;
            let active = active.filter(|_| waits);
            return Err(active.map_or(refusal, |active| Refusal::PlanActive(active.id)).into());
        }
        // Said before anything is looked at, where nothing that is seen could change it.
        if let Some(active) =
            active.as_ref().filter(|_| !options.supersede && !intent.is_emergency())
        {
            return Err(Refusal::PlanActive(active.id).into());
        }
        let now = &stored.wanted;
        intent.refuse_impossible(now)?;
        let new: Vec<_> = intent.newcomers(now).into_iter().collect();
        self.refuse_taken(&new, Some(&now.name)).await?;
        let past = self.past(stored, Some(intent)).await?;
        let mut seen =
            self.survey(now, &now.spec, past.older.as_ref(), newcomers(intent, now)).await?;
        // A plan that is only proposed takes nobody's place: it starts when the other is over.
        let displaces = if options.start {
            displaced(active.as_ref(), stored, intent, options, &seen)?
        } else if let Some(active) = &active {
            return Err(Refusal::PlanActive(active.id).into());
        } else {
            None
        };
        if displaces.is_none() {
            self.refuse_unsettled(stored, intent, &past, &seen)?;
        }
        // With other logins, and with an eye on other settings.
        if let Some(spec) = intent.new_spec().filter(|spec| **spec != now.spec) {
            seen = self.survey(now, spec, past.older.as_ref(), newcomers(intent, now)).await?;
        }
        let draft = self.amended(stored, intent, &past, &seen, options).await?;
        Ok(Draft { displaces, ..draft })
    }

    /// The amendment of a topology as it is seen now.
    async fn amended(
        &self,
        stored: &StoredTopology,
        intent: &Intent,
        past: &Past,
        seen: &Observation,
        options: &PlanOptions,
    ) -> Result<Draft, DeskError> {
        let now = &stored.wanted;
        let figures = match intent.weighs(now) {
            Some((slots, depth)) => {
                let logins = self.logins(&now.spec).await?;
                let latency = Moving::default().max_latency_ms;
                self.figures(&slots, depth, latency, &logins, seen, AT_LENGTH).await
            }
            None => Figures::default(),
        };
        let amendment = match intent {
            Intent::Repair(_) => repair::amend(now, seen),
            Intent::Failover(intent) => failover::amend(intent, now, seen)?,
            Intent::AddReplica(intent) => members::add_replica(intent, now, seen)?,
            Intent::RemoveReplica(intent) => members::remove_replica(intent, now, seen)?,
            Intent::ReplaceNode(intent) => members::replace_node(intent, now, seen)?,
            Intent::Drain(intent) => drain::drain(intent, now, seen)?,
            Intent::Undrain(intent) => drain::undrain(intent, now)?,
            Intent::ReplaceSpec(intent) => replace::amend(intent, now, seen)?,
            Intent::Dissolve(_) => dissolve::amend(now, &past.former, seen)?,
            Intent::Revert(intent) => revert::amend(intent, now, past.older.as_ref(), seen)?,
            Intent::AcceptDrift(_) => accept_drift::amend(now, seen)?,
            Intent::Reshard(intent) => reshard::amend(intent, now, seen)?,
            Intent::Rebalance(intent) => rebalance::amend(intent, now, &figures, seen)?,
            Intent::AddShard(intent) => add_shard::amend(intent, now, seen)?,
            Intent::RemoveShard(intent) => remove_shard::amend(intent, now, &figures, seen)?,
            Intent::AddSentinel(intent) => sentinels::add(intent, now, seen)?,
            Intent::RemoveSentinel(intent) => sentinels::remove(intent, now, seen)?,
            Intent::Create(_) => return Err(not_here().into()),
        };
        let spec = amendment.spec.clone().unwrap_or_else(|| now.spec.clone());
        let reshapes = spec != now.spec || amendment.layout != now.layout;
        let wanted = Topology {
            version: if reshapes { now.version + 1 } else { now.version },
            spec,
            layout: amendment.layout.clone(),
            ..now.clone()
        };
        let preview = self
            .forecast_with_moves(&wanted, seen, intent, now.version, amendment, options)
            .await?;
        Ok(Draft { wanted, reshapes, preview, displaces: None })
    }

    /// Thinks a plan through anew that waited for another to end: what it was made from is no
    /// longer so. Its hazards may need more consent than was given; then it pauses when it gets
    /// there. Whoever is `patient` is told `false` where it may be possible when a node that is
    /// silent answers again.
    pub(in crate::engine) async fn redraft(
        &self,
        held: Held,
        stored: &StoredTopology,
        plan: &Plan,
        patient: bool,
    ) -> Result<bool, DeskError> {
        let past = self.past(stored, Some(&plan.intent)).await?;
        let now = &stored.wanted;
        let by = plan.intent.new_spec().unwrap_or(&now.spec);
        let new = newcomers(&plan.intent, now);
        let seen = self.survey(now, by, past.older.as_ref(), new).await?;
        let options = PlanOptions {
            start: true,
            accept_hazard: plan.accepted.ceiling,
            accept: plan.accepted.ids.clone(),
            expect_fingerprint: None,
            supersede: false,
            thorough: false,
            reason: plan.reason.clone(),
        };
        let silent = seen.nodes.keys().any(|node| seen.report(node).is_none());
        let draft = match self.amended(stored, &plan.intent, &past, &seen, &options).await {
            Err(DeskError::Refused(_)) if silent && patient => return Ok(false),
            draft => draft?,
        };
        let accepted = still_meant(plan, &draft.preview.terms);
        let new = new_plan(plan.id, &draft, &accepted, &options, &plan.requested_by);
        self.store.redraft_plan(held, &new).await?;
        Ok(true)
    }

    async fn past(
        &self,
        stored: &StoredTopology,
        intent: Option<&Intent>,
    ) -> Result<Past, StoreError> {
        let (id, name) = (stored.wanted.id, stored.wanted.name.as_str());
        let versions = self.store.versions(id, name, None, i64::MAX).await?;
        let of = |version| versions.iter().find(|v| v.wanted.version == version);
        let older = intent.and_then(Intent::back_to).and_then(of).map(|v| v.wanted.clone());
        let peopled = versions.iter().find(|v| v.wanted.layout != Layout::Gone);
        let members = |v: &crate::store::topologies::StoredVersion| -> BTreeSet<Address> {
            v.wanted.layout.members().into_iter().cloned().collect()
        };
        let last = self.store.last_ended_plan(id).await?;
        Ok(Past {
            older,
            former: peopled.map(members).unwrap_or_default(),
            parent: of(stored.wanted.version).and_then(|v| v.parent),
            unfinished: last.filter(|p| {
                p.state != PlanState::Succeeded && p.to_version == stored.wanted.version
            }),
        })
    }

    /// A fresh look at every node that the topology has, or had at another version; at those that
    /// are to come, with their bus ports; and at those that Reeve left marks on. It is taken as `by`
    /// says: with its logins, at its settings.
    pub(super) async fn survey(
        &self,
        now: &Topology,
        by: &Spec,
        other: Option<&Topology>,
        newcomers: Newcomers,
    ) -> Result<Observation, DeskError> {
        let versions = || other.into_iter().chain([now]).map(|t| &t.spec);
        let sentinels = || versions().flat_map(Spec::sentinels).map(|n| &n.address);
        let logins = self.logins(by).await?;
        let logins = logins.with_sentinels(sentinels().chain(&newcomers.sentinels));
        let marks = self.store.marks(now.id).await?;
        let before = versions().flat_map(Spec::nodes).map(|n| &n.address).chain(sentinels());
        let marked = marks.iter().map(|m| m.node.clone());
        let knock = !newcomers.all.is_empty() && now.spec.mode() == Mode::Cluster;
        let also = newcomers.all.into_iter().chain(before.cloned()).chain(marked).collect();
        let mut seen = self.look(by, &also, &logins, None).await;
        if knock {
            self.knock_at_buses(&mut seen).await;
        }
        seen.marks = marks;
        Ok(seen)
    }

    fn refuse_unsettled(
        &self,
        stored: &StoredTopology,
        intent: &Intent,
        past: &Past,
        seen: &Observation,
    ) -> Result<(), Refusal> {
        let now = &stored.wanted;
        let gone = now.layout == Layout::Gone;
        match intent {
            Intent::Repair(_)
            | Intent::Revert(_)
            | Intent::AcceptDrift(_)
            | Intent::Failover(_) => return Ok(()),
            // What was never made, or is half gone already, is as it may be.
            Intent::Dissolve(_) if gone || !stored.created => return Ok(()),
            Intent::Create(_)
            | Intent::Dissolve(_)
            | Intent::AddReplica(_)
            | Intent::RemoveReplica(_)
            | Intent::ReplaceNode(_)
            | Intent::Drain(_)
            | Intent::Undrain(_)
            | Intent::ReplaceSpec(_)
            | Intent::Reshard(_)
            | Intent::Rebalance(_)
            | Intent::AddShard(_)
            | Intent::AddSentinel(_)
            | Intent::RemoveSentinel(_)
            | Intent::RemoveShard(_) => {}
        }
        let apart = intent.apart(now, seen);
        let differences = planner::unsettled(now, &past.former, &apart, seen, &self.policy);
        if differences.is_empty() {
            return Ok(());
        }
        // Where no plan leads back to what is wanted, there is nothing to finish first.
        if intent.is_dissolve() && planner::is_blocked(now, seen, &self.policy) {
            return Ok(());
        }
        Err(Refusal::Unsettled { differences, offers: self.offers(stored, past, seen) })
    }

    fn offers(&self, stored: &StoredTopology, past: &Past, seen: &Observation) -> Vec<Offer> {
        let now = &stored.wanted;
        settled::offers(&Standing {
            created: stored.created,
            gone: now.layout == Layout::Gone,
            unfinished: past.unfinished.as_ref().map(|p| (p.id, p.intent.kind())),
            parent: past.parent,
            blocked: planner::is_blocked(now, seen, &self.policy),
            acceptable: accept_drift::amend(now, seen).is_ok(),
        })
    }

    /// The ways out for a topology that is not as wanted.
    pub(in crate::engine) async fn ways_out(
        &self,
        stored: &StoredTopology,
        seen: &Observation,
    ) -> Result<Vec<Offer>, StoreError> {
        let past = self.past(stored, None).await?;
        Ok(self.offers(stored, &past, seen))
    }
}

/// The consent that holds for the new terms as well: a loss was accepted of what a node was then, not
/// of what it has come to hold since.
fn still_meant(plan: &Plan, terms: &Terms) -> Accepted {
    let grown = |node: &Address, now: &ResetTerm| {
        plan.terms.resets.get(node).is_none_or(|then| {
            (&then.identity, &then.run_id) != (&now.identity, &now.run_id)
                || now.keys > then.keys
                || (now.functions && !then.functions)
        })
    };
    let other = terms.resets.iter().filter(|(node, now)| grown(node, now));
    let lapsed: BTreeSet<String> = other.map(|(node, _)| hazard_id(node)).collect();
    let ids = plan.accepted.ids.difference(&lapsed).cloned().collect();
    Accepted { ceiling: plan.accepted.ceiling, ids }
}

/// Kinds that do not fit how far the topology has come.
fn refuse_kind(stored: &StoredTopology, intent: &Intent) -> Result<(), Refusal> {
    // From an older version, or from what is seen, members may come back.
    let brings_back = match intent {
        Intent::Create(_) => return Err(not_here()),
        Intent::Dissolve(_) => return Ok(()),
        Intent::Revert(_) | Intent::AcceptDrift(_) => true,
        Intent::Repair(_)
        | Intent::Failover(_)
        | Intent::AddReplica(_)
        | Intent::RemoveReplica(_)
        | Intent::ReplaceNode(_)
        | Intent::Drain(_)
        | Intent::Undrain(_)
        | Intent::ReplaceSpec(_)
        | Intent::Reshard(_)
        | Intent::Rebalance(_)
        | Intent::AddShard(_)
        | Intent::AddSentinel(_)
        | Intent::RemoveSentinel(_)
        | Intent::RemoveShard(_) => false,
    };
    let name = &stored.wanted.name;
    let why = if !stored.created {
        format!("`{name}` was never created to its end; retry its create plan, or dissolve it")
    } else if stored.wanted.layout == Layout::Gone && !brings_back {
        format!("`{name}` is to be dissolved; retry that plan, or revert to an earlier version")
    } else {
        return Ok(());
    };
    Err(Refusal::unsettled(vec![FieldError::new("/intent/kind", why)]))
}

/// The nodes that an intent brings in.
#[derive(Debug, Default)]
pub(super) struct Newcomers {
    pub all: BTreeSet<Address>,
    pub sentinels: BTreeSet<Address>,
}

pub(super) fn newcomers(intent: &Intent, now: &Topology) -> Newcomers {
    let all = intent.newcomers(now).into_keys().collect();
    Newcomers { all, sentinels: intent.new_sentinels() }
}

fn not_here() -> Refusal {
    Refusal::Invalid(vec![FieldError::new(
        "/intent/kind",
        "a topology is created by POST /v1/topologies; name another kind here",
    )])
}

/// How the new plan takes the place of the active one, if there is one and it may.
fn displaced(
    active: Option<&Plan>,
    stored: &StoredTopology,
    intent: &Intent,
    options: &PlanOptions,
    seen: &Observation,
) -> Result<Option<Displaces>, Refusal> {
    let Some(active) = active else { return Ok(None) };
    // One at a time: who takes a place is not displaced in turn.
    if active.displaces.is_some() || active.displaced_by.is_some() {
        return Err(Refusal::PlanActive(active.id));
    }
    let displaces = |by| Ok(Some(Displaces { plan: active.id, by }));
    if options.supersede {
        return displaces(Displacement::Supersede);
    }
    let emergency = intent.is_emergency()
        && !active.intent.is_emergency()
        && view::is_uncovered(&stored.wanted.layout, seen);
    if emergency { displaces(Displacement::Preempt) } else { Err(Refusal::PlanActive(active.id)) }
}
