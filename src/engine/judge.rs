//! Judges what a look showed, while no plan is at work: what lasts is told as findings, and is told
//! to be over when its end has lasted too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Engine;
use crate::domain::diagnosis::drift::{self, Differences};
use crate::domain::diagnosis::steady::Steady;
use crate::domain::diagnosis::{
    Finding, Rule, Subject, crowded, leaderless, lone, returned, watched,
};
use crate::domain::id::TopologyId;
use crate::domain::observation::Observation;
use crate::domain::topology::Topology;
use crate::store::StoreError;
use crate::store::leases::Held;
use crate::store::topologies::StoredTopology;

/// The rules that are judged here: what waits until nothing else is at work, and what does not.
const RULES: &[Rule] = &[Rule::Drift];
const ALARMS: &[Rule] = &[
    Rule::SplitBrain,
    Rule::EmptiedPrimary,
    Rule::SentinelsDisagree,
    Rule::NoPrimary,
    Rule::StrangeReplica,
    Rule::CrowdedPrimaries,
    Rule::ReturnedNode,
];
/// Where nodes elect a new primary, that is over by then as a rule.
const LASTS_AT_LEAST: Duration = Duration::from_secs(10);
/// After a failover Sentinels differ for a moment.
const DISAGREE_AT_LEAST: Duration = Duration::from_secs(10);
/// A finding that is open is written this often at least.
const WRITE_AT_LEAST: Duration = Duration::from_secs(5);

/// What was told of one topology. Begun anew after each plan, since what was about to be told before
/// it is no longer so.
#[derive(Debug)]
pub struct Judge {
    began: Instant,
    drift: Steady<String>,
    /// What is told at once, as it was told last.
    alarms: Vec<Finding>,
    alarmed: Instant,
    /// Since when the Sentinels name different primaries.
    disagree_since: Option<Instant>,
    /// Since when there is what counts only when it lasts.
    since: BTreeMap<(Rule, Subject), Instant>,
    /// The differences that the open finding tells of; none where none is open.
    told: Differences,
    written: Instant,
}

impl Judge {
    /// Takes up what was told before, by whomever.
    pub async fn resume(engine: &Engine, topology: TopologyId) -> Result<Self, StoreError> {
        let open = engine.store.open_findings(topology).await?;
        let of_drift = open.iter().filter(|f| f.finding.rule == Rule::Drift);
        let told: Differences = of_drift.flat_map(|f| drift::told(&f.finding.evidence)).collect();
        let drift = Steady::resume(told.keys().cloned().collect());
        let now = Instant::now();
        let open = open.into_iter().map(|f| f.finding);
        let alarms = open.filter(|f| ALARMS.contains(&f.rule)).collect();
        Ok(Self {
            began: now,
            drift,
            alarms,
            alarmed: now,
            disagree_since: None,
            since: BTreeMap::new(),
            told,
            written: now,
        })
    }

    /// Notes one look, and writes what follows from it where it is due.
    pub async fn note(
        &mut self,
        engine: &Engine,
        held: Held,
        stored: &StoredTopology,
        seen: &Observation,
    ) -> Result<(), StoreError> {
        let wanted = &stored.wanted;
        self.note_alarms(engine, held, stored, seen).await?;
        if !stored.created || stored.active_plan.is_some() {
            self.drift.interrupt();
            return Ok(());
        }
        let now = drift::differences(wanted, seen, &engine.policy);
        let mut keys: BTreeSet<String> = now.keys().cloned().collect();
        // Of whom is not seen, nobody can say that it is as wanted again.
        let judged = |node| seen.report(node).is_some_and(|r| !r.loading);
        if !wanted.layout.members().into_iter().all(judged) {
            keys.extend(self.told.keys().cloned());
        }
        let lasting = self.drift.note(self.began.elapsed(), &keys);
        let words = |key: &String| {
            let words = now.get(key).or_else(|| self.told.get(key))?;
            Some((key.clone(), words.clone()))
        };
        let lasting: Differences = lasting.iter().filter_map(words).collect();
        let refresh = !lasting.is_empty() && self.written.elapsed() >= WRITE_AT_LEAST;
        if lasting == self.told && !refresh {
            return Ok(());
        }
        let offers =
            if lasting.is_empty() { vec![] } else { engine.ways_out(stored, seen).await? };
        let finding = drift::finding(&wanted.name, &lasting, &offers);
        engine.store.record_findings(held, RULES, finding.as_slice()).await?;
        (self.told, self.written) = (lasting, Instant::now());
        Ok(())
    }

    /// Sentinels that have not agreed for a while.
    fn disagreement(&mut self, wanted: &Topology, seen: &Observation) -> Option<Finding> {
        let Some(finding) = watched::disagreement(wanted, seen) else {
            self.disagree_since = None;
            return None;
        };
        let since = *self.disagree_since.get_or_insert_with(Instant::now);
        (since.elapsed() >= DISAGREE_AT_LEAST).then_some(finding)
    }

    /// Those of them that have been there for a while, or were told of already.
    fn lasting(&mut self, mut now: Vec<Finding>) -> Vec<Finding> {
        let about = |f: &Finding| (f.rule, f.subject.clone());
        self.since.retain(|key, _| now.iter().any(|f| about(f) == *key));
        now.retain(|finding| {
            let since = self.since.entry(about(finding)).or_insert_with(Instant::now);
            since.elapsed() >= LASTS_AT_LEAST
                || self.alarms.iter().any(|told| about(told) == about(finding))
        });
        now
    }

    /// What cannot wait until it lasts.
    async fn note_alarms(
        &mut self,
        engine: &Engine,
        held: Held,
        stored: &StoredTopology,
        seen: &Observation,
    ) -> Result<(), StoreError> {
        if !stored.created {
            return Ok(());
        }
        let mut now = lone::findings(&stored.wanted, seen);
        now.extend(self.disagreement(&stored.wanted, seen));
        let mut slow = leaderless::findings(&stored.wanted, seen);
        // While a plan is at work, those that leave still follow, and primaries change.
        let idle = stored.active_plan.is_none();
        if idle {
            slow.extend(lone::strange_replicas(&stored.wanted, seen));
            slow.extend(returned::findings(&stored.wanted, &stored.leavers, seen));
        }
        let crowd = crowded::findings(&stored.wanted, seen).filter(|_| idle);
        slow.extend(crowd.unwrap_or_else(|| {
            // Nobody can say that it is over.
            let told = self.alarms.iter().filter(|f| f.rule == Rule::CrowdedPrimaries);
            told.cloned().collect()
        }));
        now.extend(self.lasting(slow));
        let about = |f: &Finding| (f.rule, f.subject.clone());
        let same = now.iter().map(about).eq(self.alarms.iter().map(about));
        let refresh = !now.is_empty() && self.alarmed.elapsed() >= WRITE_AT_LEAST;
        if same && !refresh {
            return Ok(());
        }
        engine.store.record_findings(held, ALARMS, &now).await?;
        (self.alarms, self.alarmed) = (now, Instant::now());
        Ok(())
    }
}
