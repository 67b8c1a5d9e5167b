//! Tells what a look changed: who went silent or came back, which failovers begin and end, whether
//! slots are uncovered. Keeps the past.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Engine;
use super::gauges;
use super::look::{Logins, target};
use super::lookout::Lookout;
use crate::domain::event::{EventType, NewEvent};
use crate::domain::failovers::{Cause, Failovers, Glance, Look, Told};
use crate::domain::health::{Health, MISSES_UNTIL_DOWN};
use crate::domain::id::{PlanId, ShardId};
use crate::domain::lineage::{self, Claim};
use crate::domain::node::Address;
use crate::domain::observation::{EmptiedMark, Mark, MarkKind, Observation, Role, Sighting};
use crate::domain::spec::Spec;
use crate::domain::step::failover::{rest, rests};
use crate::domain::topology::{Layout, Shard};
use crate::domain::view::{self, ShardStatus};
use crate::fleet::Ask;
use crate::store::StoreError;
use crate::store::leases::Held;
use crate::store::nodes::NodeFilter;
use crate::store::topologies::StoredTopology;

/// Unchanged sights are written this often at least, changed ones this often at most.
const WRITE_AT_LEAST: Duration = Duration::from_secs(5);
const WRITE_AT_MOST: Duration = Duration::from_millis(1000);

/// What was told of one topology so far.
#[derive(Debug, Default)]
pub struct Watch {
    pub seen: Option<Arc<Observation>>,
    pub health: HealthBook,
    failovers: Failovers,
    covered: Option<bool>,
    /// Whom each Sentinel names.
    named: BTreeMap<Address, Address>,
    /// What each node of a lone shard had when it was seen last.
    lives: BTreeMap<Address, Life>,
    /// Those who took writes at the same time, by the last look that could tell.
    rivals: Vec<Claim>,
    written: Option<(Instant, String)>,
    /// Events that the journal has not taken yet, and marks that go with them.
    pending: Vec<NewEvent>,
    rests: Vec<Mark>,
}

/// One life of a node, from start to end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Life {
    run_id: String,
    leads: bool,
    keys: u64,
    offset: u64,
}

/// The health of some nodes, and how many looks in a row each has missed.
#[derive(Debug, Default)]
pub struct HealthBook {
    misses: BTreeMap<Address, u32>,
    pub health: BTreeMap<Address, Health>,
}

impl HealthBook {
    /// Takes up what was known of a node, so that it is not told again.
    fn resume(&mut self, node: Address, health: Health) {
        if !self.health.contains_key(&node) {
            let down = if health == Health::Down { MISSES_UNTIL_DOWN } else { 0 };
            self.misses.insert(node.clone(), down);
            self.health.insert(node, health);
        }
    }

    /// Notes what one look showed of these nodes, and returns the events that tell of changes.
    pub fn note<'a>(
        &mut self,
        seen: impl Iterator<Item = (&'a Address, &'a Sighting)>,
    ) -> Vec<NewEvent> {
        let mut events = Vec::new();
        for (address, sighting) in seen {
            let misses = self.misses.entry(address.clone()).or_default();
            let detail = match sighting {
                Sighting::Seen(_) => {
                    *misses = 0;
                    None
                }
                Sighting::Silent(s) => {
                    *misses = misses.saturating_add(1);
                    Some(s)
                }
                Sighting::Unknown => continue,
            };
            let next = Health::after(*misses);
            let before = self.health.insert(address.clone(), next).unwrap_or_default();
            if let Some(kind) = before.event(next) {
                let data = match detail {
                    None => json!({ "node": address }),
                    Some(s) => {
                        json!({ "node": address, "since": s.since, "code": s.code, "message": s.message })
                    }
                };
                events.push(NewEvent::new(kind, data).by("reeve"));
            }
        }
        events
    }

    /// Those that have missed a look and should be looked at again soon.
    pub fn suspects(&self) -> impl Iterator<Item = &Address> {
        self.health.iter().filter(|(_, health)| **health == Health::Suspect).map(|(node, _)| node)
    }

    fn is_down(&self, node: &Address) -> bool {
        self.health.get(node) == Some(&Health::Down)
    }
}

impl Watch {
    /// Takes up what an earlier process knew, so that a restart is not told as news.
    pub async fn resume(engine: &Engine, stored: &StoredTopology) -> Result<Self, StoreError> {
        let mut watch = Self::default();
        let filter =
            NodeFilter { topology: Some(stored.wanted.name.clone()), ..NodeFilter::default() };
        for node in engine.store.nodes(&filter, i64::MAX).await? {
            watch.health.resume(node.address, node.health);
        }
        if let Some((_, seen)) = engine.store.observation(stored.wanted.id, None).await? {
            let told = engine.store.open_failovers(stored.wanted.id).await?;
            let layout = stored.standing(&seen);
            watch.failovers = Failovers::resume(&layout, &stored.seats, &seen, &told);
            watch.note_shape(stored, &seen);
            watch.rests.clear();
            watch.seen = Some(Arc::new(seen));
        }
        Ok(watch)
    }

    /// Notes one look, at the nodes that `glances` names: remembers it, and writes it with its events
    /// where it is due.
    pub async fn note(
        &mut self,
        engine: &Engine,
        held: Held,
        stored: &StoredTopology,
        plan: Option<PlanId>,
        seen: Arc<Observation>,
        glances: &BTreeMap<Address, Glance>,
    ) -> Result<(), StoreError> {
        let looked = |node: &Address| glances.get(node).is_some_and(|glance| !glance.late);
        self.pending.extend(self.health.note(seen.nodes.iter().filter(|(node, _)| looked(node))));
        let health = &self.health;
        let failovers = self.failovers.note(&Look {
            now: crate::clock::now(),
            by: engine.me.id,
            layout: &stored.standing(&seen),
            seen: &seen,
            glances,
            down: &|node| health.is_down(node),
            plan,
        });
        let shape = self.note_shape(stored, &seen);
        // While a topology is made, primaries appear and slots are not covered yet: no news.
        if stored.created {
            for told in &failovers {
                self.note_failover(told, stored, &seen);
            }
            self.pending.extend(shape);
        } else {
            self.failovers.settle();
            self.rests.clear();
        }
        engine.remember(stored.wanted.id, seen.clone());
        self.seen = Some(seen.clone());

        let fingerprint = seen.fingerprint();
        let (age, changed) = match &self.written {
            None => (Duration::MAX, true),
            Some((at, last)) => (at.elapsed(), *last != fingerprint),
        };
        let due = (changed && age >= WRITE_AT_MOST) || age >= WRITE_AT_LEAST;
        if due || !self.pending.is_empty() || !self.rests.is_empty() {
            let health = &self.health.health;
            let (events, marks) = (&self.pending, &self.rests);
            engine.store.record_look(held, &seen, health, changed, marks, events).await?;
            self.pending.clear();
            self.rests.clear();
            self.written = Some((Instant::now(), fingerprint));
            gauges::show(stored, &seen, health);
        }
        Ok(())
    }

    /// What is to be looked at many times a second: the other members of shards whose primary is
    /// missing.
    #[must_use]
    pub fn heirs(&self, stored: &StoredTopology) -> BTreeSet<Address> {
        let shards = stored.wanted.layout.shards();
        let troubled = shards.iter().filter(|(shard, _)| self.failovers.is_troubled(shard.id));
        let members = troubled.flat_map(|(shard, _)| &shard.members);
        let silent =
            |node: &&Address| self.seen.as_ref().is_some_and(|seen| seen.report(node).is_none());
        members.filter(|node| !silent(node)).cloned().collect()
    }

    fn note_failover(&mut self, told: &Told, stored: &StoredTopology, seen: &Observation) {
        let data = serde_json::to_value(told).unwrap_or_default();
        let event = |kind, data| NewEvent { plan: told.plan(), ..NewEvent::new(kind, data) };
        self.pending.push(event(told.kind(), data.clone()).by("reeve"));
        gauges::count_failover(&stored.wanted.name, told);
        if let Told::Completed(done) = told {
            self.pending.push(event(EventType::PrimaryChanged, data).by("reeve"));
            // One that Reeve had a hand in rests already.
            let now = seen.report(&done.new_primary).filter(|_| done.cause != Cause::Planned);
            let now = now.filter(|r| r.cluster_enabled && rests(done.shard, r, seen).is_none());
            self.rests.extend(now.map(|r| rest(done.shard, &done.new_primary, r, true)));
        }
    }

    fn note_shape(&mut self, stored: &StoredTopology, seen: &Observation) -> Vec<NewEvent> {
        let mut events = Vec::new();
        let shards = view::shards(&stored.standing(seen), seen);
        if let Some(shard) = stored.wanted.layout.lone() {
            self.note_lives(shard, seen);
            events.extend(self.note_rivals(shard, seen));
        }
        let clustered = matches!(stored.wanted.layout, Layout::Cluster { .. });
        events.extend(self.note_sentinels(stored, seen));
        // While a plan has a shard handed over it has no primary for a moment.
        let handed_over = |shard: ShardId| {
            let order = |m: &Mark| matches!(&m.what, MarkKind::Hold(hold) if hold.shard == shard && !hold.elected);
            stored.active_plan.is_some() && seen.marks.iter().any(order)
        };
        let mut without = view::headless(&stored.standing(seen), seen);
        without.retain(|shard| !handed_over(*shard));
        // One that was started again takes nothing for a moment, although it has its slots.
        let serves = |s: &ShardStatus| {
            let view = s.primary.as_ref().and_then(|primary| seen.view(primary));
            s.slots.is_empty() || view.is_none_or(|view| view.state_ok)
        };
        let again = self.covered != Some(true);
        let covered = without.is_empty() && (!again || shards.iter().all(serves));
        match self.covered.replace(covered).filter(|_| clustered) {
            Some(true) if !covered => {
                events.push(NewEvent::new(EventType::SlotsUncovered, json!({ "shards": without })));
            }
            Some(false) if covered => {
                events.push(NewEvent::new(EventType::SlotsCovered, json!({})));
            }
            Some(_) | None => {}
        }
        events.into_iter().map(|e| e.by("reeve")).collect()
    }

    /// Sentinels that name another primary to clients than before.
    fn note_sentinels(&mut self, stored: &StoredTopology, seen: &Observation) -> Vec<NewEvent> {
        let Spec::Sentinel(spec) = &stored.wanted.spec else { return vec![] };
        let mut events = Vec::new();
        for sentinel in stored.wanted.layout.sentinels() {
            let Some(watch) = seen.watch(sentinel, &spec.master_name) else { continue };
            let Some(now) = watch.primary_in(seen) else { continue };
            let before = self.named.insert(sentinel.clone(), now.clone());
            if let Some(before) = before.filter(|before| before != now) {
                events.push(NewEvent::new(
                    EventType::SentinelSwitched,
                    json!({ "sentinel": sentinel, "old_primary": before, "new_primary": now,
                            "epoch": watch.epoch, "detected_at": crate::clock::now() }),
                ));
            }
        }
        events
    }

    /// A primary that comes back as another process without a key is marked before anybody is told to
    /// follow it.
    fn note_lives(&mut self, shard: &Shard, seen: &Observation) {
        for node in &shard.members {
            let Some(report) = seen.report(node).filter(|r| !r.loading) else { continue };
            let life = Life {
                run_id: report.run_id.clone(),
                leads: report.role == Role::Primary,
                keys: report.keys,
                offset: report.replication.offset,
            };
            let Some(before) = self.lives.insert(node.clone(), life) else { continue };
            let anew = before.run_id != report.run_id && before.leads && before.keys > 0;
            if anew && report.role == Role::Primary && report.keys == 0 {
                let (run_id, keys, offset) = (report.run_id.clone(), before.keys, before.offset);
                let what = MarkKind::Emptied(EmptiedMark { run_id, keys, offset });
                self.rests.push(Mark { node: node.clone(), what });
            }
        }
    }

    /// Two that take writes are told of at the first look that shows them, and told to be over when
    /// each of them was seen not to.
    fn note_rivals(&mut self, shard: &Shard, seen: &Observation) -> Option<NewEvent> {
        let now = lineage::rivals(shard, seen);
        let unseen = self.rivals.iter().any(|claim| seen.report(&claim.node).is_none());
        if now.is_empty() == self.rivals.is_empty() || (now.is_empty() && unseen) {
            return None;
        }
        let before = std::mem::replace(&mut self.rivals, now);
        let (kind, claims) = if before.is_empty() {
            (EventType::SplitBrainDetected, &self.rivals)
        } else {
            (EventType::SplitBrainResolved, &before)
        };
        Some(NewEvent::new(kind, json!({ "shard": shard.id, "claims": claims })))
    }
}

/// What was told of nodes that no topology names.
#[derive(Default)]
struct Spares {
    book: HealthBook,
    lookout: Lookout,
    seen: Observation,
    pending: Vec<NewEvent>,
    written: Option<Instant>,
}

/// Looks at the registered nodes that belong to no topology, on one instance, so that what happens
/// to them is told once.
pub(super) async fn watch_spares(engine: Arc<Engine>, stop: CancellationToken) {
    let (mut spares, period) = (Spares::default(), engine.watch_interval * 2);
    loop {
        let began = Instant::now();
        if !engine.eldest.load(Ordering::Relaxed) {
            spares = Spares::default();
        } else if let Err(error) = spares.look(&engine).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "spare nodes cannot be watched"
            );
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(period.saturating_sub(began.elapsed())) => {}
        }
    }
}

impl Spares {
    async fn look(&mut self, engine: &Arc<Engine>) -> Result<(), StoreError> {
        let filter = NodeFilter { unassigned: true, ..NodeFilter::default() };
        let nodes = engine.store.nodes(&filter, i64::MAX).await?;
        let mut targets = Vec::new();
        for node in nodes {
            // Without its login a node would look broken, which it is not.
            let login = engine.login("credential", node.credential.as_deref()).await;
            let Ok(admin) = login else { continue };
            targets.push(target(&node.address, &Logins { admin, ..Logins::default() }));
            let before = node.sighting.unwrap_or(Sighting::Unknown);
            self.seen.nodes.entry(node.address.clone()).or_insert(before);
            self.book.resume(node.address, node.health);
        }
        let there: BTreeSet<Address> = targets.iter().map(|t| t.address.clone()).collect();
        self.seen.nodes.retain(|node, _| there.contains(node));
        let ask = Arc::new(Ask::default());
        let round = self.lookout.round(engine, targets, &ask, &self.seen).await;
        let looked = |node: &Address| round.glances.get(node).is_some_and(|glance| !glance.late);
        self.seen = round.seen;
        self.seen.nodes.retain(|node, _| there.contains(node));
        let news = self.book.note(self.seen.nodes.iter().filter(|(node, _)| looked(node)));
        self.pending.extend(news);
        let due = self.written.is_none_or(|at| at.elapsed() >= WRITE_AT_LEAST);
        if (due || !self.pending.is_empty()) && !there.is_empty() {
            let (seen, health) = (&self.seen.nodes, &self.book.health);
            engine.store.record_spares(seen, health, &self.pending).await?;
            self.pending.clear();
            self.written = Some(Instant::now());
        }
        Ok(())
    }
}
