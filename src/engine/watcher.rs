//! Tells what a look changed: who went silent or came back, who is primary now, whether slots are
//! uncovered. Keeps the past.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Engine;
use super::look::{Logins, silence, target};
use crate::domain::Timestamp;
use crate::domain::event::{EventType, NewEvent};
use crate::domain::health::{Health, MISSES_UNTIL_DOWN};
use crate::domain::id::ShardId;
use crate::domain::lineage::{self, Claim};
use crate::domain::node::Address;
use crate::domain::observation::{EmptiedMark, Mark, MarkKind, Observation, Role, Sighting};
use crate::domain::spec::Spec;
use crate::domain::step::failover::{rest, rests};
use crate::domain::topology::{Layout, Shard};
use crate::domain::view;
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
    primaries: BTreeMap<ShardId, Address>,
    covered: Option<bool>,
    /// When each shard was last seen with a primary, and since when without.
    absences: BTreeMap<ShardId, Absence>,
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

/// How long a shard was without a primary, as far as looks could tell.
#[derive(Debug, Clone, Copy)]
struct Absence {
    last_with: Timestamp,
    without: Option<(Timestamp, Timestamp)>,
}

impl Absence {
    /// Notes one look.
    fn note(
        book: &mut BTreeMap<ShardId, Self>,
        shard: ShardId,
        present: bool,
        now: Timestamp,
    ) -> Self {
        let absence = book.entry(shard).or_insert(Self { last_with: now, without: None });
        if !present {
            let since = absence.without.map_or(now, |(since, _)| since);
            absence.without = Some((since, now));
        }
        let told = *absence;
        if present {
            *absence = Self { last_with: now, without: None };
        }
        told
    }

    fn since(&self, now: Timestamp) -> Timestamp {
        self.without.map_or(now, |(since, _)| since)
    }

    fn bounds(&self, now: Timestamp) -> serde_json::Value {
        let least = self.without.map_or(0, |(from, to)| (to - from).num_milliseconds());
        let most = (now - self.last_with).num_milliseconds();
        json!({ "at_least": least.max(0), "at_most": most.max(0) })
    }
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

    /// Notes one look and returns the events that tell of changes.
    pub fn note(&mut self, seen: &BTreeMap<Address, Sighting>) -> Vec<NewEvent> {
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

    /// Whether somebody has missed a look and should be looked at again soon.
    #[must_use]
    pub fn has_suspects(&self) -> bool {
        self.health.values().any(|h| *h == Health::Suspect)
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
            watch.note_shape(stored, &seen);
            watch.rests.clear();
            watch.seen = Some(Arc::new(seen));
        }
        Ok(watch)
    }

    /// Notes one look: remembers it, and writes it with its events where it is due.
    pub async fn note(
        &mut self,
        engine: &Engine,
        held: Held,
        stored: &StoredTopology,
        seen: Arc<Observation>,
    ) -> Result<(), StoreError> {
        self.pending.extend(self.health.note(&seen.nodes));
        let shape = self.note_shape(stored, &seen);
        // While a topology is made, primaries appear and slots are not covered yet: no news.
        if stored.created {
            self.pending.extend(shape);
        } else {
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
        }
        Ok(())
    }

    fn note_shape(&mut self, stored: &StoredTopology, seen: &Observation) -> Vec<NewEvent> {
        let mut events = Vec::new();
        let shards = view::shards(&stored.wanted.layout, seen);
        if let Some(shard) = stored.wanted.layout.lone() {
            self.note_lives(shard, seen);
            events.extend(self.note_rivals(shard, seen));
        }
        let clustered = matches!(stored.wanted.layout, Layout::Cluster { .. });
        events.extend(self.note_sentinels(stored, seen));
        for shard in &shards {
            let at = crate::clock::now();
            let absence = Absence::note(&mut self.absences, shard.id, shard.primary.is_some(), at);
            let Some(now) = &shard.primary else { continue };
            let before = self.primaries.insert(shard.id, now.clone());
            if let Some(before) = before.filter(|b| b != now) {
                // One that Reeve had a hand in rests already.
                let voted = seen.report(now).filter(|r| r.cluster_enabled);
                let elected = voted.filter(|r| rests(shard.id, r, seen).is_none());
                self.rests.extend(elected.map(|r| rest(shard.id, now, r, true)));
                events.push(NewEvent::new(
                    EventType::PrimaryChanged,
                    json!({ "shard": shard.id, "old_primary": before, "new_primary": now,
                            "cause": "observed", "detected_at": absence.since(at),
                            "completed_at": at, "unavailable_ms": absence.bounds(at) }),
                ));
            }
        }
        let without: Vec<_> = shards.iter().filter(|s| s.primary.is_none()).map(|s| s.id).collect();
        let covered = without.is_empty();
        match self.covered.replace(covered).filter(|_| clustered) {
            Some(true) if !covered => {
                events.push(NewEvent::new(EventType::SlotsUncovered, json!({ "shards": without })))
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

/// Looks at the registered nodes that belong to no topology, on one instance, so that what happens
/// to them is told once.
pub(super) async fn watch_spares(engine: Arc<Engine>, stop: CancellationToken) {
    let (mut book, mut pending) = (HealthBook::default(), Vec::new());
    loop {
        if !engine.eldest.load(Ordering::Relaxed) {
            (book, pending) = Default::default();
        } else if let Err(error) = look_at_spares(&engine, &mut book, &mut pending).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "spare nodes cannot be watched"
            );
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(engine.watch_interval * 2) => {}
        }
    }
}

async fn look_at_spares(
    engine: &Engine,
    book: &mut HealthBook,
    pending: &mut Vec<NewEvent>,
) -> Result<(), StoreError> {
    let filter = NodeFilter { unassigned: true, ..NodeFilter::default() };
    let nodes = engine.store.nodes(&filter, i64::MAX).await?;
    if nodes.is_empty() {
        return Ok(());
    }
    let ask = Ask::default();
    let looks = nodes.iter().map(|node| {
        let ask = &ask;
        async move {
            // Without its login a node would look broken, which it is not.
            let admin = engine.login("credential", node.credential.as_deref()).await.ok()?;
            let logins = Logins { admin, ..Logins::default() };
            let sighting = match engine.fleet.look(&target(&node.address, &logins), ask).await {
                Ok(report) => Sighting::Seen(Box::new(report)),
                Err(error) => silence(error, node.sighting.as_ref()),
            };
            Some((node.address.clone(), sighting))
        }
    });
    let seen: BTreeMap<Address, Sighting> = join_all(looks).await.into_iter().flatten().collect();
    for node in &nodes {
        book.resume(node.address.clone(), node.health);
    }
    pending.extend(book.note(&seen));
    engine.store.record_spares(&seen, &book.health, pending).await?;
    pending.clear();
    Ok(())
}
