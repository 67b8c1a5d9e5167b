//! Moves slots with their keys from one node to another, while both serve.
//!
//! The order is what keeps data safe, whatever ends in the middle:
//!
//! 1. the target takes each slot (`IMPORTING`), and only then the source gives it (`MIGRATING`): the
//!    other way round clients would be sent to a node that sends them back;
//! 2. keys go over until the source, which takes no new ones any more, lists none;
//! 3. the slot becomes the target's on the target first (`NODE`), with a greater epoch, by which all
//!    others come to believe it; were keys left with the source, it would drop them then.
//!
//! It can stop between any two batches. Slots may be open then; they are marked, and whoever goes on
//! begins with them.

mod atomic;
mod drain;
mod side;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::{join, join_all, join3};
use tokio::sync::Notify;

pub use self::side::Side;
use super::lease::Lease;
use crate::domain::fault::{Fault, KEYS_LEFT_BEHIND};
use crate::domain::moving::pace::Pace;
use crate::domain::moving::survey::Small;
use crate::domain::moving::talk::{Answer, Key, Lane, Saying, SlotState};
use crate::domain::moving::{self, BigKey, KeyKind, chunk, closing};
use crate::domain::node::{Address, MovedBy};
use crate::domain::slot::SlotSet;
use crate::domain::step::slots::{MIGRATE_WITHIN_MS, MoveMethod};
use crate::fleet::Fleet;

/// How many short questions go out in one batch: the server answers them all before it serves others.
const PIPELINE: usize = 400;
/// The same of those that look keys up, and of those that list the keys of a slot.
const SIZES: usize = 512;
const LISTS: usize = 4;
/// How many keys of a slot are looked at before it is opened.
const LISTED: u32 = 2000;
/// How often it is measured how long clients wait.
const PROBE_EVERY: Duration = Duration::from_millis(25);
/// How often a node may say that its replicas did not confirm (Valkey 8 and later), and how long to
/// wait between.
const CONFIRMATIONS: u32 = 10;
const CONFIRM_AFTER: Duration = Duration::from_millis(200);

/// For how much longer than it should a move goes on to end what it has begun.
pub const GRACE: Duration = Duration::from_millis(250);

/// How long one batch of usual keys may take, with all that goes wrong.
pub const PATIENCE: Duration = Duration::from_millis(MIGRATE_WITHIN_MS + 4000);

/// Keys that the source listed of slots.
type Listed = Vec<(u16, Vec<Key>)>;

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
    /// Whether the source has no others.
    pub all: bool,
    /// Those of them that are half-way already.
    pub open: BTreeSet<u16>,
    /// Those of them of which the target does not know that they are the source's.
    pub estranged: BTreeSet<u16>,
    pub max_latency_ms: u64,
    /// Keys that may stall their node although it takes long.
    pub big: &'a [BigKey],
    /// Slots whose keys were looked at a moment ago.
    pub small: Arc<Small>,
    pub how: MoveMethod,
    /// Whether the target may take the slots of a chunk together.
    pub together: bool,
    /// A stall of that many milliseconds needs nobody's consent.
    pub free_stall_ms: u64,
    /// How many bytes the target should take before it is looked at again.
    pub room: Option<u64>,
}

/// Until when it may go on.
pub struct Reins<'a> {
    pub lease: &'a Lease,
    pub until: Instant,
    /// Has everybody stop at the next safe point.
    pub halt: &'a AtomicBool,
}

impl Reins<'_> {
    /// Whether more may be begun.
    fn loose(&self, within: Duration) -> bool {
        let time = !self.halt.load(Ordering::Relaxed) && Instant::now() < self.until;
        time && self.lease.lasts(within)
    }

    /// Whether what was begun may be brought to its end: slots are better not left open.
    fn lasts(&self, within: Duration) -> bool {
        Instant::now() < self.until + GRACE && self.lease.lasts(within)
    }
}

/// How far it has come, for whoever watches.
#[derive(Debug, Default)]
pub struct Tally {
    pub slots: AtomicU64,
    pub keys: AtomicU64,
    /// Keys that are still to go, as far as they were counted.
    pub keys_left: AtomicU64,
    pub bytes: AtomicU64,
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
    let by = match job.how {
        MoveMethod::Keys => None,
        MoveMethod::Atomic => Some(MovedBy::Source),
        MoveMethod::Import => Some(MovedBy::Target),
    };
    if let Some(by) = by {
        let ended = atomic::carry(job, by, reins, tally).await;
        let goes_on = *ended.as_ref().unwrap_or(&false);
        return Moved { goes_on, fault: ended.err(), ..Moved::default() };
    }
    let pace = Mutex::new(Pace::new(job.max_latency_ms));
    let mut moved = Moved::default();
    let together = match may_take_together(job).await {
        Ok(together) => together,
        Err(fault) => return Moved { fault: Some(fault), ..moved },
    };
    let mover = Mover { job, reins, tally, pace: &pace, together };
    let over = Notify::new();
    let moving = async {
        let ended = mover.run(&mut moved).await;
        over.notify_one();
        ended
    };
    let (ended, ()) = join(moving, probe(job, &pace, &over)).await;
    Moved { fault: ended.err(), ..moved }
}

async fn may_take_together(job: &Job<'_>) -> Result<bool, Fault> {
    if !job.together {
        return Ok(false);
    }
    let asked = [Saying::TryTransaction];
    let answers = job.target.talk(job.fleet, Lane::Control, side::SHORT, &asked).await?;
    Ok(answers == [Answer::Done])
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
    together: bool,
}

/// A key, and what it takes.
#[derive(Debug)]
struct Item {
    key: Key,
    bytes: u64,
    /// How long it stalls its node, where it is big.
    stall_ms: Option<u64>,
}

impl Item {
    /// The key as one that is announced, if it is big.
    fn big(&self, slot: u16) -> Option<BigKey> {
        let expected_ms = self.stall_ms?;
        Some(BigKey { slot, key: self.key.to_string(), bytes: self.bytes, expected_ms })
    }
}

/// The slots that are left.
struct Left {
    /// With how many keys each holds.
    keys: BTreeMap<u16, u64>,
    open: BTreeSet<u16>,
    /// Those with big keys come last, and alone.
    big: Vec<u16>,
}

/// Slots that are open together.
#[derive(Default)]
struct Chunk {
    slots: Vec<u16>,
    queues: Queues,
    /// Slots with big keys, which are not opened yet.
    big: Vec<u16>,
    /// Big keys that may not move; their slots stay where they are.
    held: Vec<BigKey>,
}

/// What the source listed of each open slot, and did not hand over yet; a slot without any has to be
/// listed again, until it has none.
type Queues = BTreeMap<u16, VecDeque<Item>>;

impl Left {
    /// What is to be opened next, and whose keys have to be looked at before: what is open already cannot
    /// wait.
    fn next(&mut self) -> Option<(Vec<u16>, Vec<u16>)> {
        let slots = chunk::next(&self.keys, &self.open);
        if slots.is_empty() {
            return self.big.pop().map(|slot| (vec![slot], vec![]));
        }
        let mut unknown = Vec::new();
        for slot in &slots {
            let keys = self.keys.remove(slot);
            if !self.open.remove(slot) && keys.is_some_and(|keys| keys > 0) {
                unknown.push(*slot);
            }
        }
        Some((slots, unknown))
    }
}

impl Mover<'_> {
    /// While the keys of one chunk go over, the next is opened and the one before closed: the servers
    /// need not wait for that.
    async fn run(&self, moved: &mut Moved) -> Result<(), Fault> {
        let (keys, open) = (self.count().await?, self.job.open.clone());
        let mut left = Left { keys, open, big: Vec::new() };
        let mut chunk = Chunk::default();
        let mut drained = Vec::new();
        loop {
            left.big.append(&mut chunk.big);
            moved.held.append(&mut chunk.held);
            let next = if self.goes_on() { left.next() } else { None };
            if chunk.slots.is_empty() && next.is_none() {
                return self.close(&drained).await;
            }
            let (over, opened, closed) =
                join3(self.drain(chunk, moved), self.open(next), self.close(&drained)).await;
            closed?;
            (drained, chunk) = (over?, opened?);
        }
    }

    /// Whether more slots may be opened.
    fn goes_on(&self) -> bool {
        let fits = |room| self.tally.bytes.load(Ordering::Relaxed) <= room;
        self.reins.loose(side::SHORT) && self.job.room.is_none_or(fits)
    }

    /// How many keys the source holds in each slot.
    async fn count(&self) -> Result<BTreeMap<u16, u64>, Fault> {
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

    /// Opens slots, after a look at their keys: one with a big key comes later, or stays closed. What was
    /// listed before goes over first; what was written since shows in the list that follows it.
    async fn open(&self, next: Option<(Vec<u16>, Vec<u16>)>) -> Result<Chunk, Fault> {
        let Some((slots, unknown)) = next else { return Ok(Chunk::default()) };
        let mut chunk = Chunk { slots, ..Chunk::default() };
        let known = |(slot, keys): &(u16, Vec<Key>)| {
            self.job.small.get(slot).is_some_and(|(count, _)| *count == keys.len() as u64)
        };
        let (small, unknown): (Listed, Listed) =
            self.list(&unknown, LISTS).await?.into_iter().partition(known);
        for (slot, keys) in small {
            let bytes = self.job.small.get(&slot).map_or(0, |(_, mean)| *mean);
            let item = |key| Item { key, bytes, stall_ms: None };
            chunk.queues.insert(slot, keys.into_iter().map(item).collect());
        }
        for (slot, items) in self.measure(unknown).await? {
            let big: Vec<BigKey> = items.iter().filter_map(|item| item.big(slot)).collect();
            if big.is_empty() {
                chunk.queues.insert(slot, items.into());
                continue;
            }
            chunk.slots.retain(|s| *s != slot);
            let (_, held): (Vec<_>, Vec<_>) = big.into_iter().partition(|b| self.allowed(b));
            if held.is_empty() {
                chunk.big.push(slot);
            }
            chunk.held.extend(held);
        }
        let moving = self.hand_out(&chunk.slots).await?;
        // Those that the target had already go first: the others hear of it by the last one.
        chunk.slots.sort_by_key(|slot| moving.contains(slot));
        chunk.queues.retain(|slot, queue| !queue.is_empty() && moving.contains(slot));
        let unlisted = moving.iter().filter(|slot| !chunk.queues.contains_key(slot));
        // These held none a moment ago, or are few.
        let listed = self.list(&unlisted.copied().collect::<Vec<_>>(), PIPELINE).await?;
        self.queue(listed, &mut chunk.queues).await?;
        Ok(chunk)
    }

    async fn list(&self, slots: &[u16], at_once: usize) -> Result<Listed, Fault> {
        let list = |&slot: &u16| Saying::ListKeys { slot, at_most: LISTED };
        let mut listed = Listed::with_capacity(slots.len());
        for some in slots.chunks(at_once) {
            let asked: Vec<Saying> = some.iter().map(list).collect();
            for (slot, answer) in some.iter().zip(self.ask(&self.job.source, &asked).await?) {
                listed.push((*slot, self.job.source.keys(answer)?));
            }
        }
        Ok(listed)
    }

    /// Finds out what keys take.
    async fn measure(&self, listed: Listed) -> Result<Vec<(u16, Vec<Item>)>, Fault> {
        let source = &self.job.source;
        let asked: Vec<Saying> = listed
            .iter()
            .flat_map(|(_, keys)| keys)
            .map(|k| Saying::Size { key: k.clone() })
            .collect();
        let mut sizes = Vec::with_capacity(asked.len());
        for some in asked.chunks(SIZES) {
            for answer in self.ask(source, some).await? {
                // One that is gone takes nothing.
                sizes.push(source.number(answer)?);
            }
        }
        let mut sizes = sizes.into_iter();
        let mut item = |key| Item { key, bytes: sizes.next().unwrap_or(0), stall_ms: None };
        let mut items: Vec<(u16, Vec<Item>)> = listed
            .into_iter()
            .map(|(slot, keys)| (slot, keys.into_iter().map(&mut item).collect()))
            .collect();
        let mut large: Vec<&mut Item> = items
            .iter_mut()
            .flat_map(|(_, items)| items)
            .filter(|item| moving::may_be_big(item.bytes, self.job.max_latency_ms))
            .collect();
        let kinds: Vec<Saying> =
            large.iter().map(|item| Saying::TypeOf { key: item.key.clone() }).collect();
        for (item, answer) in large.iter_mut().zip(self.ask(source, &kinds).await?) {
            // It may have gone since.
            if answer != Answer::Nothing {
                let kind = KeyKind::of(&source.text(answer)?);
                let stall = moving::predicted_stall_ms(kind, item.bytes);
                let is_big = moving::is_big(stall, self.job.max_latency_ms);
                item.stall_ms = is_big.then_some(stall);
            }
        }
        Ok(items)
    }

    /// Whether a key may stall its node for so long.
    fn allowed(&self, big: &BigKey) -> bool {
        let named = |b: &&BigKey| b.slot == big.slot && b.key == big.key;
        let accepted = self.job.big.iter().find(named).map_or(0, |b| b.expected_ms);
        // It may have grown a little since it was announced.
        big.expected_ms <= self.job.free_stall_ms.max(accepted.saturating_mul(3) / 2)
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
        if slots.is_empty() {
            return Ok(());
        }
        let job = self.job;
        let own = |&slot: &u16| {
            let state = SlotState::Node(job.target.id.clone());
            Saying::SetSlot { slot, state }
        };
        let taken = closing::sayings(slots, &job.target.id, self.together);
        let mut answers = self.confirmed(&job.target, &taken).await?;
        // A node without memory queues no command, and nothing of the transaction is done.
        if answers.iter().any(|a| matches!(a, Answer::Refused { code, .. } if code == "OOM")) {
            let each = closing::sayings(slots, &job.target.id, false);
            answers = self.confirmed(&job.target, &each).await?;
        }
        for answer in answers {
            job.target.done(answer)?;
        }
        let asked: Vec<Saying> = slots.iter().map(own).collect();
        for answer in self.confirmed(&job.source, &asked).await? {
            match answer {
                // It gave its last slot away and follows the new owner already.
                Answer::Refused { message, .. }
                    if job.all && message.contains("SETSLOT only with") => {}
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
        self.tally.slots.fetch_add(slots.len() as u64, Ordering::Relaxed);
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
