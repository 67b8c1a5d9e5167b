//! Failovers as they happen: what one look after the other shows of each shard becomes `detected`,
//! `started`, `completed` or `failed`, each once for each failover, whoever caused it.
//!
//! What is told of time are bounds. A primary was there when it last answered, and was not when it
//! first failed to; its successor did not serve when it last said so, and did when it first said
//! that. In between nobody looked.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Timestamp;
use super::event::EventType;
use super::id::{InstanceId, PlanId, ShardId};
use super::node::Address;
use super::observation::{ClusterView, Mark, MarkKind, Observation, Report, Role};
use super::planner::Seat;
use super::slot::SlotSet;
use super::topology::{Layout, Shard};
use super::view;

/// What a server may take to answer, beyond what it took the last time.
const SLACK: TimeDelta = TimeDelta::milliseconds(10);
/// An answer that takes so much longer than twice the time of the last one may not come at all.
const LATE: TimeDelta = TimeDelta::milliseconds(100);
/// A new primary that does not serve yet is waited for before it is told of.
const SETTLES_WITHIN: TimeDelta = TimeDelta::seconds(3);
/// After this nobody is expected to take over any more: four of Redis' longest usual timeouts.
const TAKES_OVER_WITHIN: TimeDelta = TimeDelta::seconds(70);

/// Why the primary of a shard became another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The old primary did not answer, and the nodes (or their Sentinels) elected another.
    Election,
    /// A plan of Reeve's.
    Planned,
    /// Somebody else's hand: the old primary was well.
    External,
}

/// Why nobody took over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NotTaken {
    /// The old primary serves again.
    PrimaryReturned,
    /// There is still no primary.
    NoSuccessor,
    /// The node that a plan had named did not become primary.
    GivenUp,
}

/// What `failover.detected` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailoverDetected {
    /// The same in all that is told of this failover.
    pub failover: Uuid,
    pub shard: ShardId,
    pub old_primary: Address,
    pub detected_at: DateTime<Utc>,
    /// Which instance noticed.
    pub detected_by: InstanceId,
    /// When the old primary last answered.
    pub last_seen_at: Option<DateTime<Utc>>,
}

/// What `failover.started` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailoverStarted {
    pub failover: Uuid,
    pub shard: ShardId,
    pub old_primary: Address,
    pub cause: Cause,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanId>,
    pub detected_at: DateTime<Utc>,
    pub detected_by: InstanceId,
    pub started_at: DateTime<Utc>,
}

/// What `failover.completed` says, and `primary.changed`, which comes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailoverCompleted {
    pub failover: Uuid,
    pub shard: ShardId,
    pub old_primary: Address,
    pub new_primary: Address,
    pub cause: Cause,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanId>,
    pub detected_at: DateTime<Utc>,
    pub detected_by: InstanceId,
    pub completed_at: DateTime<Utc>,
    /// For how long nobody took writes; left out where nobody can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable_ms: Option<Bounds>,
    /// What the old primary had taken, when last seen, and the new one had not; left out where
    /// nothing is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub possibly_lost: Option<Loss>,
}

/// What `failover.failed` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailoverFailed {
    pub failover: Uuid,
    pub shard: ShardId,
    pub old_primary: Address,
    pub reason: NotTaken,
    pub detected_at: DateTime<Utc>,
    pub failed_at: DateTime<Utc>,
    /// For how long nobody took writes until the old primary did again; left out where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable_ms: Option<Bounds>,
    /// How many keys fewer the old primary has than when it last answered, where it was started anew:
    /// empty, or from an older dump.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_keys: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Bounds {
    pub at_least: u64,
    pub at_most: u64,
}

impl Bounds {
    /// Parts of a millisecond are in favour of the truth.
    fn new(at_least: TimeDelta, at_most: TimeDelta) -> Self {
        let ms = |time: TimeDelta| u64::try_from(time.num_milliseconds()).unwrap_or(0);
        let at_most = ms(at_most).saturating_add(1);
        Self { at_least: ms(at_least).min(at_most), at_most }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Loss {
    /// Of the replication stream.
    pub bytes: u64,
    /// Since the new primary last heard of the old one.
    pub seconds: u64,
}

/// One line for the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Told {
    Detected(FailoverDetected),
    Started(FailoverStarted),
    Completed(FailoverCompleted),
    Failed(FailoverFailed),
}

impl Told {
    /// The plan that brought it about.
    #[must_use]
    pub fn plan(&self) -> Option<PlanId> {
        match self {
            Self::Started(started) => started.plan,
            Self::Completed(completed) => completed.plan,
            Self::Detected(_) | Self::Failed(_) => None,
        }
    }

    #[must_use]
    pub fn kind(&self) -> EventType {
        match self {
            Self::Detected(_) => EventType::FailoverDetected,
            Self::Started(_) => EventType::FailoverStarted,
            Self::Completed(_) => EventType::FailoverCompleted,
            Self::Failed(_) => EventType::FailoverFailed,
        }
    }
}

/// One question to one node, and when there was an answer or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance {
    pub asked: Timestamp,
    pub ended: Timestamp,
    /// Whether the answer is still to come: what was seen before stands.
    pub late: bool,
}

/// What a look showed.
#[derive(Clone, Copy)]
pub struct Look<'a> {
    pub now: Timestamp,
    pub by: InstanceId,
    pub layout: &'a Layout,
    pub seen: &'a Observation,
    /// The nodes that were asked.
    pub glances: &'a BTreeMap<Address, Glance>,
    /// Whether a node has missed several looks in a row.
    pub down: &'a dyn Fn(&Address) -> bool,
    /// The plan that is at work.
    pub plan: Option<PlanId>,
}

/// The shards of a topology, and the failovers under way.
#[derive(Debug, Default)]
pub struct Failovers(BTreeMap<ShardId, Track>);

/// What is known of one shard.
#[derive(Debug, Default)]
struct Track {
    primary: Option<Address>,
    /// The primary as it last served.
    alive: Option<Alive>,
    /// Since when, at the latest, it does not.
    gone: Option<Gone>,
    /// How long it did not, once it does again.
    away: Option<Bounds>,
    /// What it had as which process when it last served.
    life: Option<(String, u64)>,
    /// How many keys it came back without.
    missing: Option<u64>,
    /// The other members, as each last was when it did not serve.
    idle: BTreeMap<Address, Idle>,
    /// When a member that did not serve before first did.
    served: BTreeMap<Address, Timestamp>,
    /// Another one is primary, but is not yet told of.
    changed: Option<Timestamp>,
    open: Option<Open>,
}

#[derive(Debug, Clone)]
struct Alive {
    asked: Timestamp,
    took: TimeDelta,
    offset: Option<(String, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Gone {
    by: Timestamp,
    /// When it was last asked in vain.
    asked: Timestamp,
    /// It did not answer, as opposed to saying that it is no primary.
    silent: bool,
}

#[derive(Debug, Clone)]
struct Idle {
    asked: Timestamp,
    offset: (String, u64),
    /// When it last heard of its primary, as far as it ever said.
    heard: Option<Timestamp>,
}

/// A failover under way.
#[derive(Debug, Clone)]
struct Open {
    id: Uuid,
    detected_at: Timestamp,
    detected_by: InstanceId,
    started: bool,
    planned: bool,
    /// That nobody took over was told; nothing more is, unless somebody does.
    given_up: bool,
}

impl Failovers {
    /// Takes up what an earlier process saw, and what was told last of failovers that were under way.
    #[must_use]
    pub fn resume(
        layout: &Layout,
        seats: &BTreeMap<ShardId, Seat>,
        seen: &Observation,
        told: &[Told],
    ) -> Self {
        let mut failovers = Self::default();
        for (shard, slots) in layout.shards() {
            let track = failovers.0.entry(shard.id).or_default();
            if let Some(primary) = view::primary_of(shard, &slots, seen).settled() {
                track.primary = Some(primary.clone());
                track.life = seen.report(primary).map(|r| (r.run_id.clone(), r.keys));
                track.alive = seen.report(primary).map(|report| Alive {
                    asked: report.observed_at,
                    took: TimeDelta::zero(),
                    offset: Some(offset(report)),
                });
            } else if let Some(seat) = seats.get(&shard.id) {
                // Nobody led in the middle of a change that a plan makes.
                track.primary = Some(seat.from.clone());
            }
        }
        for told in told {
            let (shard, old, open, last_seen) = match told {
                Told::Detected(d) => {
                    let open = Open::new(d.failover, d.detected_at, d.detected_by);
                    (d.shard, &d.old_primary, open, d.last_seen_at)
                }
                Told::Started(s) => {
                    let open = Open::new(s.failover, s.detected_at, s.detected_by);
                    let planned = s.cause == Cause::Planned;
                    (s.shard, &s.old_primary, Open { started: true, planned, ..open }, None)
                }
                Told::Completed(_) | Told::Failed(_) => continue,
            };
            let Some(track) = failovers.0.get_mut(&shard) else { continue };
            if track.primary.is_none() {
                track.alive =
                    last_seen.map(|asked| Alive { asked, took: TimeDelta::zero(), offset: None });
            }
            track.primary = Some(old.clone());
            track.open = Some(open);
        }
        failovers
    }

    /// Forgets what was noted while it was no news, but not who is primary.
    pub fn settle(&mut self) {
        for track in self.0.values_mut() {
            track.open = None;
        }
    }

    /// Notes one look, and returns what it tells.
    pub fn note(&mut self, look: &Look<'_>) -> Vec<Told> {
        let shards = look.layout.shards();
        self.0.retain(|id, _| shards.iter().any(|(shard, _)| shard.id == *id));
        let mut told = Vec::new();
        for (shard, slots) in &shards {
            self.0.entry(shard.id).or_default().note(shard, slots, look, &mut told);
        }
        told
    }

    /// Whether the primary of this shard is missing, so that its other members are worth many looks.
    #[must_use]
    pub fn is_troubled(&self, shard: ShardId) -> bool {
        let track = self.0.get(&shard);
        track.is_some_and(|t| {
            let tired = t.open.as_ref().is_some_and(|open| open.given_up);
            t.changed.is_some() || (t.gone.is_some() && !tired)
        })
    }
}

impl Open {
    fn new(id: Uuid, detected_at: Timestamp, detected_by: InstanceId) -> Self {
        let (started, planned, given_up) = Default::default();
        Self { id, detected_at, detected_by, started, planned, given_up }
    }

    /// A failover is one of its shard at one time.
    fn begin(shard: ShardId, look: &Look<'_>) -> Self {
        let id = Uuid::new_v5(&shard.0, &look.now.timestamp_micros().to_be_bytes());
        Self::new(id, look.now, look.by)
    }
}

impl Track {
    fn note(&mut self, shard: &Shard, slots: &SlotSet, look: &Look<'_>, told: &mut Vec<Told>) {
        let settled = view::primary_of(shard, slots, look.seen).settled().cloned();
        let Some(old) = self.primary.clone() else {
            self.primary = settled;
            self.see(shard, look);
            return;
        };
        self.see(shard, look);
        match settled {
            Some(new) if new != old => self.change(shard, &old, &new, look, told),
            Some(_) | None => {
                self.changed = None;
                self.stay(shard, &old, look, told);
            }
        }
    }

    /// Notes when who served and who did not.
    fn see(&mut self, shard: &Shard, look: &Look<'_>) {
        for member in &shard.members {
            let Some(glance) = look.glances.get(member) else { continue };
            let report = look.seen.report(member).filter(|_| !glance.late);
            let is_primary = self.primary.as_ref() == Some(member);
            match report {
                Some(report) if serves(report) => {
                    self.served.entry(member.clone()).or_insert(glance.ended);
                    if is_primary {
                        if let (Some(alive), Some(gone)) = (&self.alive, self.gone) {
                            let least = (gone.asked - gone.by).max(TimeDelta::zero());
                            self.away = Some(Bounds::new(least, glance.ended - alive.asked));
                            let before = self.life.as_ref().filter(|(id, _)| *id != report.run_id);
                            let fewer = before.and_then(|(_, keys)| keys.checked_sub(report.keys));
                            self.missing = fewer.filter(|keys| *keys > 0);
                        }
                        self.life = Some((report.run_id.clone(), report.keys));
                        // Once a plan has told somebody to take over, it may be holding writes back.
                        let asked = match &self.alive {
                            Some(alive) if ordered(shard.id, member, look.seen) => alive.asked,
                            Some(_) | None => glance.asked,
                        };
                        let took = glance.ended - glance.asked;
                        self.alive = Some(Alive { asked, took, offset: Some(offset(report)) });
                        self.gone = None;
                    }
                }
                Some(report) => {
                    self.served.remove(member);
                    if is_primary {
                        let (by, asked) = (glance.ended, glance.asked);
                        self.gone.get_or_insert(Gone { by, asked, silent: false }).asked = asked;
                    }
                    // A replica without a link no longer says.
                    let before = self.idle.get(member).and_then(|idle| idle.heard);
                    let ago = report.replication.last_io_seconds;
                    let ago = ago.and_then(|s| TimeDelta::try_seconds(i64::try_from(s).ok()?));
                    let heard = ago.map(|ago| glance.asked - ago).or(before);
                    let idle = Idle { asked: glance.asked, offset: offset(report), heard };
                    self.idle.insert(member.clone(), idle);
                }
                None if is_primary => {
                    let took = self.alive.as_ref().map_or(TimeDelta::zero(), |a| a.took);
                    if glance.late && glance.ended - glance.asked < took * 2 + LATE {
                        continue;
                    }
                    let by = glance.ended.min(glance.asked + took + SLACK);
                    let (asked, silent) = (glance.asked, true);
                    let gone = self.gone.get_or_insert(Gone { by, asked, silent });
                    (gone.asked, gone.silent) = (asked, silent);
                }
                None => {}
            }
        }
        self.idle.retain(|member, _| shard.members.contains(member));
        self.served.retain(|member, _| shard.members.contains(member));
    }

    /// The primary is the one that it was, or there is none.
    fn stay(&mut self, shard: &Shard, old: &Address, look: &Look<'_>, told: &mut Vec<Told>) {
        // A shard of one has nobody to take over.
        if shard.members.len() < 2 {
            return;
        }
        // A shard rests for longer than its plan.
        let named = look.plan.is_some() && named(shard.id, old, look.seen);
        let silent = self.gone.is_some_and(|gone| gone.silent);
        let failed = silent && declared_failed(old, look.seen);
        if self.open.is_none() {
            // Where nobody answers, it is more likely that nobody can be heard.
            let heard = look.seen.nodes.keys().any(|node| look.seen.report(node).is_some());
            if (silent && heard && (failed || (look.down)(old))) || self.turned(old, look) {
                let open = Open::begin(shard.id, look);
                told.push(Told::Detected(FailoverDetected {
                    failover: open.id,
                    shard: shard.id,
                    old_primary: old.clone(),
                    detected_at: open.detected_at,
                    detected_by: open.detected_by,
                    last_seen_at: self.alive.as_ref().map(|a| a.asked),
                }));
                self.open = Some(open);
            } else if named && !silent {
                self.open = Some(Open { planned: true, ..Open::begin(shard.id, look) });
            }
        }
        let Some(open) = &mut self.open else { return };
        let heir = |member: &Address| member != old && look.seen.report(member).is_some();
        let elects = failed && shard.members.iter().any(heir);
        if !open.started && !open.given_up && (elects || named) {
            open.started = true;
            open.planned |= named;
            let cause = if open.planned { Cause::Planned } else { Cause::Election };
            told.push(started(open, shard, old, cause, look, look.now));
        }
        let reason = if self.gone.is_none() {
            match open.planned {
                true if named => return,
                true => NotTaken::GivenUp,
                false => NotTaken::PrimaryReturned,
            }
        } else if look.now - open.detected_at > TAKES_OVER_WITHIN && !open.given_up {
            NotTaken::NoSuccessor
        } else {
            return;
        };
        if !open.given_up {
            told.push(Told::Failed(FailoverFailed {
                failover: open.id,
                shard: shard.id,
                old_primary: old.clone(),
                reason,
                detected_at: open.detected_at,
                failed_at: look.now,
                unavailable_ms: self.away.filter(|_| reason == NotTaken::PrimaryReturned),
                missing_keys: self.missing.filter(|_| reason == NotTaken::PrimaryReturned),
            }));
        }
        open.given_up = true;
        if self.gone.is_none() {
            self.open = None;
        }
    }

    /// Another one is primary.
    fn change(
        &mut self,
        shard: &Shard,
        old: &Address,
        new: &Address,
        look: &Look<'_>,
        told: &mut Vec<Told>,
    ) {
        let since = *self.changed.get_or_insert(look.now);
        let serving = look.seen.report(new).is_some_and(serves);
        if !serving && look.now - since < SETTLES_WITHIN {
            return;
        }
        let silent = self.gone.is_some_and(|gone| gone.silent);
        let planned = holds(shard.id, new, look.seen)
            || deposed(old, new, look.seen)
            || self.open.as_ref().is_some_and(|open| open.planned)
            || (look.plan.is_some() && !silent);
        // Where Sentinels watch, they replace also one that came back as a replica.
        let watched = matches!(look.layout, Layout::Sentinel { .. }) && self.open.is_some();
        let cause = match (planned, silent || watched) {
            (true, _) => Cause::Planned,
            (false, true) => Cause::Election,
            (false, false) => Cause::External,
        };
        let served = self.served.get(new).copied();
        let completed_at = served.unwrap_or(look.now);
        let mut open = self.open.take().filter(|open| !open.given_up).unwrap_or_else(|| {
            let open = Open::begin(shard.id, look);
            // By the answer that shows it to be over.
            let detected_at = completed_at.min(open.detected_at);
            let open = Open { detected_at, ..open };
            if cause == Cause::Election {
                told.push(Told::Detected(FailoverDetected {
                    failover: open.id,
                    shard: shard.id,
                    old_primary: old.clone(),
                    detected_at: open.detected_at,
                    detected_by: open.detected_by,
                    last_seen_at: self.alive.as_ref().map(|a| a.asked),
                }));
            }
            open
        });
        // Of one look the answers are older than what was concluded from them.
        let completed_at = completed_at.max(open.detected_at);
        if !open.started {
            open.started = true;
            // Nobody saw it begin; it did before it was over.
            let began = self.gone.map_or(completed_at, |gone| gone.by.min(completed_at));
            told.push(started(&open, shard, old, cause, look, began));
        }
        told.push(Told::Completed(FailoverCompleted {
            failover: open.id,
            shard: shard.id,
            old_primary: old.clone(),
            new_primary: new.clone(),
            cause,
            plan: look.plan.filter(|_| cause == Cause::Planned),
            detected_at: open.detected_at,
            detected_by: open.detected_by,
            completed_at,
            unavailable_ms: served.filter(|_| serving).and_then(|at| self.bounds(new, at)),
            possibly_lost: self.loss(new).filter(|_| cause == Cause::Election),
        }));
        let asked = look.glances.get(new).map(|glance| glance.asked);
        self.alive = look.seen.report(new).map(|report| Alive {
            asked: asked.unwrap_or(report.observed_at),
            took: TimeDelta::zero(),
            offset: Some(offset(report)),
        });
        self.life = look.seen.report(new).map(|report| (report.run_id.clone(), report.keys));
        (self.away, self.missing) = (None, None);
        (self.primary, self.gone, self.changed) = (Some(new.clone()), None, None);
    }

    /// Whether the primary says that it is a replica, no plan made it one, and it has been so for longer
    /// than a change of primaries takes: one that was started again from a file that has it follow a
    /// sibling. Nobody takes writes.
    fn turned(&self, old: &Address, look: &Look<'_>) -> bool {
        let replica = look.seen.report(old).is_some_and(|report| report.role == Role::Replica);
        let lasts = self.gone.is_some_and(|gone| look.now - gone.by >= SETTLES_WITHIN);
        replica && lasts && look.plan.is_none()
    }

    fn bounds(&self, new: &Address, served: Timestamp) -> Option<Bounds> {
        let alive = self.alive.as_ref()?.asked;
        let gone = self.gone.map_or(served, |gone| gone.by);
        let idle = self.idle.get(new).map_or(gone, |idle| idle.asked);
        Some(Bounds::new(idle - gone, served - alive))
    }

    fn loss(&self, new: &Address) -> Option<Loss> {
        let alive = self.alive.as_ref()?;
        let ((history, had), idle) = (alive.offset.as_ref()?, self.idle.get(new)?);
        if *history != idle.offset.0 {
            return None;
        }
        let bytes = had.saturating_sub(idle.offset.1);
        let seconds = (alive.asked - idle.heard?).num_milliseconds();
        let seconds = u64::try_from(seconds).unwrap_or(0).div_ceil(1000);
        Some(Loss { bytes, seconds: if bytes == 0 { 0 } else { seconds.max(1) } })
    }
}

fn started(
    open: &Open,
    shard: &Shard,
    old: &Address,
    cause: Cause,
    look: &Look<'_>,
    started_at: Timestamp,
) -> Told {
    Told::Started(FailoverStarted {
        failover: open.id,
        shard: shard.id,
        old_primary: old.clone(),
        cause,
        plan: look.plan.filter(|_| cause == Cause::Planned),
        detected_at: open.detected_at,
        detected_by: open.detected_by,
        started_at,
    })
}

/// Whether a node takes writes, by its own word.
fn serves(report: &Report) -> bool {
    let in_cluster = |view: &ClusterView| view.state_ok && !view.my_slots().is_empty();
    report.role == Role::Primary
        && !report.loading
        && report.cluster.as_ref().is_none_or(in_cluster)
}

fn offset(report: &Report) -> (String, u64) {
    (report.replication.replid.clone(), report.replication.offset)
}

/// Whether those that decide about a successor count this node as failed.
fn declared_failed(node: &Address, seen: &Observation) -> bool {
    view::identity_at(node, seen).is_some_and(|id| {
        let views = seen.nodes.keys().filter(|a| *a != node).filter_map(|a| seen.view(a));
        views.filter_map(|v| v.peers.get(id)).any(|p| p.failed)
    })
}

/// Whether a plan told another node than the primary to take over.
fn named(shard: ShardId, primary: &Address, seen: &Observation) -> bool {
    seen.marks.iter().any(|mark| mark.node != *primary && is_order(shard, &mark.what))
}

/// Whether a plan told this node to take over.
fn holds(shard: ShardId, node: &Address, seen: &Observation) -> bool {
    seen.marks_on(node).any(|mark| is_order(shard, &mark.what))
}

/// Whether a plan has the primary make way.
fn ordered(shard: ShardId, primary: &Address, seen: &Observation) -> bool {
    let makes_way = |mark: &Mark| matches!(mark.what, MarkKind::Paused(_) | MarkKind::Deposed(_));
    named(shard, primary, seen) || seen.marks_on(primary).any(makes_way)
}

/// Whether a plan had a node take the place of the primary outside of clusters.
fn deposed(old: &Address, new: &Address, seen: &Observation) -> bool {
    seen.marks_on(old).filter_map(|mark| mark.what.deposed()).any(|d| d.successor == *new)
}

fn is_order(shard: ShardId, mark: &MarkKind) -> bool {
    matches!(mark, MarkKind::Hold(hold) if hold.shard == shard && !hold.elected)
}

#[cfg(test)]
mod tests;
