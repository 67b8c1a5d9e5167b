//! Moves slots with their keys from one node to another, while both serve.
//!
//! The order is what keeps data safe, whatever ends in the middle:
//!
//! 1. the target takes each slot (`IMPORTING`), and only then the source gives it (`MIGRATING`): the
//!    other way round clients would be sent to a node that sends them back;
//! 2. keys go over until the source, which takes no new ones any more, lists none;
//! 3. the slot becomes the target's on the target first (`NODE`): that gives it a greater epoch, by
//!    which all others come to believe it; were keys left with the source, it would drop them then.
//!
//! It can stop between any two batches. Slots may be open then; they are marked, and whoever goes on
//! begins with them.

mod atomic;
mod drain;
mod side;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::{join, join_all};
use tokio::sync::Notify;

pub use self::side::Side;
use super::lease::Lease;
use crate::domain::fault::{Fault, KEYS_LEFT_BEHIND};
use crate::domain::moving::pace::Pace;
use crate::domain::moving::talk::{Answer, Key, Lane, Saying, SlotState};
use crate::domain::moving::{self, BigKey, KeyKind, chunk};
use crate::domain::node::Address;
use crate::domain::slot::SlotSet;
use crate::domain::step::slots::{MIGRATE_WITHIN_MS, MoveMethod};
use crate::fleet::Fleet;

/// How many short questions go out in one batch.
const PIPELINE: usize = 1024;
/// How many keys of a slot are looked at before it is opened.
const LISTED: u32 = 1000;
/// How often it is measured how long clients wait.
const PROBE_EVERY: Duration = Duration::from_millis(25);
/// How often a node may say that its replicas did not confirm (Valkey 8 and later), and how long to
/// wait between.
const CONFIRMATIONS: u32 = 10;
const CONFIRM_AFTER: Duration = Duration::from_millis(200);

/// How long one batch of usual keys may take, with all that goes wrong.
pub const PATIENCE: Duration = Duration::from_millis(MIGRATE_WITHIN_MS + 4000);

/// What is to be moved, between whom.
pub struct Job<'a> {
    pub fleet: &'a dyn Fleet,
    pub source: Side,
    pub target: Side,
    /// Where the source reaches the target.
    pub receiver: Address,
    /// Other primaries, which are told at the end of each slot.
    pub others: Vec<Side>,
    pub slots: SlotSet,
    /// Those of them that are half-way already.
    pub open: BTreeSet<u16>,
    /// Those of them of which the target does not know that they are the source's.
    pub estranged: BTreeSet<u16>,
    pub max_latency_ms: u64,
    /// Keys that may stall their node although it takes long.
    pub big: &'a [BigKey],
    pub how: MoveMethod,
    /// A stall of that many milliseconds needs nobody's consent.
    pub free_stall_ms: u64,
}

/// Until when it may go on.
pub struct Reins<'a> {
    pub lease: &'a Lease,
    pub until: Instant,
    /// Has everybody stop at the next safe point.
    pub halt: &'a AtomicBool,
}

impl Reins<'_> {
    fn loose(&self, within: Duration) -> bool {
        let time = !self.halt.load(Ordering::Relaxed) && Instant::now() < self.until;
        time && self.lease.lasts(within)
    }
}

/// How far it has come, for whoever watches.
#[derive(Debug, Default)]
pub struct Tally {
    pub slots: AtomicU64,
    pub keys: AtomicU64,
    /// Keys that are still to go, as far as they were counted.
    pub keys_left: AtomicU64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Moved {
    /// Big keys that have moved.
    pub stalls: Vec<Stall>,
    /// Big keys that nobody accepted; their slots stayed where they are.
    pub held: Vec<BigKey>,
    /// Whether the server goes on by itself.
    pub goes_on: bool,
    /// Why it broke off, if it did.
    pub fault: Option<Fault>,
}

/// A big key that has moved, and how long that took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stall {
    pub key: BigKey,
    pub actual_ms: u64,
}

/// Moves as much as may be.
pub async fn carry(job: &Job<'_>, reins: &Reins<'_>, tally: &Tally) -> Moved {
    if job.how == MoveMethod::Atomic {
        let ended = atomic::carry(job, reins, tally).await;
        let goes_on = *ended.as_ref().unwrap_or(&false);
        return Moved { goes_on, fault: ended.err(), ..Moved::default() };
    }
    let pace = Mutex::new(Pace::new(job.max_latency_ms));
    let mut mover =
        Mover { job, reins, tally, pace: &pace, sizes: HashMap::new(), moved: Moved::default() };
    let over = Notify::new();
    let moving = async {
        let ended = mover.run().await;
        over.notify_one();
        ended
    };
    let (ended, ()) = join(moving, probe(job, &pace, &over)).await;
    Moved { fault: ended.err(), ..mover.moved }
}

/// Measures how long clients wait meanwhile.
async fn probe(job: &Job<'_>, pace: &Mutex<Pace>, over: &Notify) {
    loop {
        tokio::select! {
            () = over.notified() => return,
            () = tokio::time::sleep(PROBE_EVERY) => {}
        }
        let ends = [&job.source, &job.target];
        let pings = ends.map(|side| async {
            let began = Instant::now();
            let answered = side.talk(job.fleet, Lane::Probe, side::SHORT, &[Saying::Ping]).await;
            answered.is_ok().then(|| began.elapsed())
        });
        for wall in join_all(pings).await.into_iter().flatten() {
            pace.lock().unwrap_or_else(PoisonError::into_inner).probed(wall);
        }
    }
}

struct Mover<'a> {
    job: &'a Job<'a>,
    reins: &'a Reins<'a>,
    tally: &'a Tally,
    pace: &'a Mutex<Pace>,
    /// What keys are known to take, of the chunk in hand.
    sizes: HashMap<Key, Sized>,
    moved: Moved,
}

/// What one key takes.
#[derive(Debug, Clone, Copy)]
struct Sized {
    bytes: u64,
    /// How long it stalls its node, where it is big.
    stall_ms: Option<u64>,
}

impl Mover<'_> {
    async fn run(&mut self) -> Result<(), Fault> {
        let mut left = self.count().await?;
        let mut open = self.job.open.clone();
        let mut last: Vec<u16> = Vec::new();
        while self.reins.loose(side::SHORT) {
            let mut slots = chunk::next(&left, &open);
            if slots.is_empty() {
                break;
            }
            self.sizes.clear();
            // What is open already cannot wait.
            let closed =
                |slot: &&u16| !open.contains(slot) && left.get(slot).is_some_and(|n| *n > 0);
            let closed: Vec<u16> = slots.iter().filter(closed).copied().collect();
            let big = self.weigh(&closed).await?;
            for slot in &slots {
                left.remove(slot);
                open.remove(slot);
            }
            slots.retain(|slot| !big.contains_key(slot));
            last.extend(big.into_iter().filter(|(_, may)| *may).map(|(slot, _)| slot));
            if !self.chunk(&slots).await? {
                return Ok(());
            }
        }
        // Slots with big keys come last, and alone.
        for slot in last {
            self.sizes.clear();
            if !self.reins.loose(side::SHORT) || !self.chunk(&[slot]).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// How many keys the source holds in each slot.
    async fn count(&mut self) -> Result<BTreeMap<u16, u64>, Fault> {
        let slots: Vec<u16> = self.job.slots.iter().collect();
        let mut counts = BTreeMap::new();
        for some in slots.chunks(PIPELINE) {
            let asked: Vec<Saying> = some.iter().map(|&slot| Saying::CountKeys { slot }).collect();
            let answers = self.ask(&self.job.source, &asked).await?;
            for (slot, answer) in some.iter().zip(answers) {
                counts.insert(*slot, self.job.source.number(answer)?);
            }
        }
        let all = counts.values().fold(0u64, |sum, n| sum.saturating_add(*n));
        self.tally.keys_left.store(all, Ordering::Relaxed);
        Ok(counts)
    }

    /// Looks at the keys of slots before they are opened. Gives the slots that have big ones, and
    /// whether they may move, which they do last; one that may not stays where it is.
    async fn weigh(&mut self, slots: &[u16]) -> Result<BTreeMap<u16, bool>, Fault> {
        let mut found = BTreeMap::new();
        let listed = self.list(slots).await?;
        let all: Vec<Key> = listed.values().flatten().cloned().collect();
        self.measure(&all).await?;
        for (slot, keys) in &listed {
            let big: Vec<BigKey> = keys.iter().filter_map(|key| self.big(*slot, key)).collect();
            let held: Vec<BigKey> = big.iter().filter(|b| !self.allowed(b)).cloned().collect();
            if !big.is_empty() {
                found.insert(*slot, held.is_empty());
            }
            self.moved.held.extend(held);
        }
        Ok(found)
    }

    async fn list(&self, slots: &[u16]) -> Result<BTreeMap<u16, Vec<Key>>, Fault> {
        let list = |&slot: &u16| Saying::ListKeys { slot, at_most: LISTED };
        let asked: Vec<Saying> = slots.iter().map(list).collect();
        let answers = self.ask(&self.job.source, &asked).await?;
        let keys = |(slot, answer): (&u16, Answer)| Ok((*slot, self.job.source.keys(answer)?));
        slots.iter().zip(answers).map(keys).collect()
    }

    /// Finds out what keys take, of those that it is not known of.
    async fn measure(&mut self, keys: &[Key]) -> Result<(), Fault> {
        let source = &self.job.source;
        let unknown: Vec<&Key> = keys.iter().filter(|k| !self.sizes.contains_key(*k)).collect();
        for some in unknown.chunks(PIPELINE) {
            let size = |key: &&Key| Saying::Size { key: (*key).clone() };
            let asked: Vec<Saying> = some.iter().map(size).collect();
            let answers = self.ask(source, &asked).await?;
            let mut large = Vec::new();
            for (key, answer) in some.iter().zip(answers) {
                // One that is gone takes nothing.
                let bytes = source.number(answer)?;
                self.sizes.insert((*key).clone(), Sized { bytes, stall_ms: None });
                if moving::may_be_big(bytes, self.job.max_latency_ms) {
                    large.push((*key, bytes));
                }
            }
            let kind = |(key, _): &(&Key, u64)| Saying::TypeOf { key: (*key).clone() };
            let asked: Vec<Saying> = large.iter().map(kind).collect();
            let answers = self.ask(source, &asked).await?;
            for ((key, bytes), answer) in large.into_iter().zip(answers) {
                let kind = KeyKind::of(&source.text(answer)?);
                let stall = moving::predicted_stall_ms(kind, bytes);
                let stall_ms = moving::is_big(stall, self.job.max_latency_ms).then_some(stall);
                self.sizes.insert(key.clone(), Sized { bytes, stall_ms });
            }
        }
        Ok(())
    }

    /// The key as one that is announced, if it is big.
    fn big(&self, slot: u16, key: &Key) -> Option<BigKey> {
        let Sized { bytes, stall_ms } = *self.sizes.get(key)?;
        Some(BigKey { slot, key: key.to_string(), bytes, expected_ms: stall_ms? })
    }

    /// Whether a key may stall its node for so long.
    fn allowed(&self, big: &BigKey) -> bool {
        let named = |b: &&BigKey| b.slot == big.slot && b.key == big.key;
        let accepted = self.job.big.iter().find(named).map_or(0, |b| b.expected_ms);
        // It may have grown a little since it was announced.
        big.expected_ms <= self.job.free_stall_ms.max(accepted.saturating_mul(3) / 2)
    }

    /// Opens some slots, moves their keys and closes them; says whether it came to the end.
    async fn chunk(&mut self, slots: &[u16]) -> Result<bool, Fault> {
        let job = self.job;
        if slots.is_empty() {
            return Ok(true);
        }
        self.acquaint(slots).await?;
        let takes = |&slot: &u16| {
            let state = SlotState::Importing(job.source.id.clone());
            Saying::SetSlot { slot, state }
        };
        let asked: Vec<Saying> = slots.iter().map(takes).collect();
        let answers = self.confirmed(&job.target, &asked).await?;
        let mut moving = Vec::new();
        for (&slot, answer) in slots.iter().zip(answers) {
            match answer {
                // It was moved before, but not closed everywhere.
                Answer::Refused { message, .. } if message.contains("already the owner") => {}
                answer => {
                    job.target.done(answer)?;
                    moving.push(slot);
                }
            }
        }
        if !self.drain(&moving).await? {
            return Ok(false);
        }
        self.close(slots).await?;
        self.tally.slots.fetch_add(slots.len() as u64, Ordering::Relaxed);
        Ok(true)
    }

    /// After a failover of the source, a target that takes slots from the old one counts them as
    /// nobody's: before Valkey 8 it serves nothing then, and refuses their keys, until it is told
    /// whose they are.
    async fn acquaint(&self, slots: &[u16]) -> Result<(), Fault> {
        let job = self.job;
        let asked: Vec<Saying> = slots
            .iter()
            .filter(|slot| job.estranged.contains(slot))
            .map(|&slot| Saying::SetSlot { slot, state: SlotState::Node(job.source.id.clone()) })
            .collect();
        for answer in self.confirmed(&job.target, &asked).await? {
            job.target.done(answer)?;
        }
        Ok(())
    }

    /// Gives slots without keys to the target: there first, then everywhere.
    async fn close(&self, slots: &[u16]) -> Result<(), Fault> {
        let job = self.job;
        let own = |&slot: &u16| {
            let state = SlotState::Node(job.target.id.clone());
            Saying::SetSlot { slot, state }
        };
        let asked: Vec<Saying> = slots.iter().map(own).collect();
        for answer in self.confirmed(&job.target, &asked).await? {
            job.target.done(answer)?;
        }
        for answer in self.confirmed(&job.source, &asked).await? {
            match answer {
                // It gave its last slot away and follows the new owner already.
                Answer::Refused { message, .. } if message.contains("SETSLOT only with") => {}
                Answer::Refused { message, .. } if message.contains("still hold keys") => {
                    let node = &job.source.target.address;
                    return Err(Fault::new(KEYS_LEFT_BEHIND, message, node));
                }
                answer => job.source.done(answer)?,
            }
        }
        // The others would learn it from gossip; told now, they send clients on at once.
        let asked = &asked;
        let tell = |side| async move { drop(self.ask(side, asked).await) };
        join_all(job.others.iter().map(tell)).await;
        Ok(())
    }

    /// Asks on the control lane; the answers, errors among them.
    async fn ask(&self, side: &Side, sayings: &[Saying]) -> Result<Vec<Answer>, Fault> {
        if sayings.is_empty() {
            return Ok(vec![]);
        }
        side.talk(self.job.fleet, Lane::Control, side::SHORT, sayings).await
    }

    /// The same, once more for what the node's replicas did not confirm in time: that did not happen.
    async fn confirmed(&self, side: &Side, sayings: &[Saying]) -> Result<Vec<Answer>, Fault> {
        let mut answers = self.ask(side, sayings).await?;
        for _ in 0..CONFIRMATIONS {
            let unconfirmed =
                |a: &Answer| matches!(a, Answer::Refused { code, .. } if code == "NOREPLICAS");
            let again: Vec<usize> =
                (0..answers.len()).filter(|&i| answers.get(i).is_some_and(unconfirmed)).collect();
            if again.is_empty() {
                break;
            }
            tokio::time::sleep(CONFIRM_AFTER).await;
            let asked: Vec<Saying> =
                again.iter().filter_map(|&i| sayings.get(i).cloned()).collect();
            for (i, answer) in again.into_iter().zip(self.ask(side, &asked).await?) {
                if let Some(place) = answers.get_mut(i) {
                    *place = answer;
                }
            }
        }
        Ok(answers)
    }
}
