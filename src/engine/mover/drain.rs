//! The keys of open slots: batch by batch, until the source lists none.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Chunk, Item, Job, LISTED, LISTS, Listed, Moved, Mover, PATIENCE, Queues, Stall};
use crate::domain::fault::{Fault, TARGET_FULL, UNREACHABLE};
use crate::domain::moving::BigKey;
use crate::domain::moving::talk::{Answer, Key, Lane, Saying, SlotState};
use crate::domain::step::slots::MIGRATE_WITHIN_MS;

/// How often the source may fail to hand a batch over before it is given up.
const FAILURES: u32 = 3;

/// What goes out together: of each slot some keys.
#[derive(Default)]
struct Batch {
    parts: Vec<(u16, Vec<Key>)>,
    /// What each key takes, with its slot.
    sizes: Vec<(u16, u64)>,
    /// The one big key that it consists of.
    big: Option<BigKey>,
}

impl Mover<'_> {
    /// Moves the keys of open slots; gives the slots that have none any more. A key that nobody accepted
    /// keeps its slot open.
    pub(super) async fn drain(&self, chunk: Chunk, moved: &mut Moved) -> Result<Vec<u16>, Fault> {
        let Chunk { mut slots, mut queues, .. } = chunk;
        let mut failures = 0;
        while let Some(batch) = self.next_batch(&mut queues, moved) {
            if !self.reins.lasts(batch.within()) {
                break;
            }
            let listed = match self.hand_over(batch, &queues, moved).await? {
                Ok(listed) => listed,
                Err(fault) => {
                    failures += 1;
                    if failures >= FAILURES {
                        return Err(fault);
                    }
                    // Nobody knows which keys went over.
                    self.list(&queues.keys().copied().collect::<Vec<_>>(), LISTS).await?
                }
            };
            self.queue(listed, &mut queues).await?;
        }
        slots.retain(|slot| !queues.contains_key(slot));
        Ok(slots)
    }

    /// The target takes these slots, and the source gives them: from now on no new key comes into them
    /// there, so only a list that is made from now on can say that there is none left. Gives those that
    /// move; the others were the target's already.
    pub(super) async fn hand_out(&self, slots: &[u16]) -> Result<Vec<u16>, Fault> {
        self.acquaint(slots).await?;
        let job = self.job;
        let takes = |&slot: &u16| {
            let state = SlotState::Importing(job.source.id.clone());
            Saying::SetSlot { slot, state }
        };
        let asked: Vec<Saying> = slots.iter().map(takes).collect();
        let mut moving = Vec::new();
        for (&slot, answer) in slots.iter().zip(self.confirmed(&job.target, &asked).await?) {
            match answer {
                // It was moved before, but not closed everywhere.
                Answer::Refused { message, .. } if message.contains("already the owner") => {}
                answer => {
                    job.target.done(answer)?;
                    moving.push(slot);
                }
            }
        }
        let gives = |&slot: &u16| {
            let state = SlotState::Migrating(job.target.id.clone());
            Saying::SetSlot { slot, state }
        };
        let asked: Vec<Saying> = moving.iter().map(gives).collect();
        for answer in self.confirmed(&job.source, &asked).await? {
            job.source.done(answer)?;
        }
        Ok(moving)
    }

    /// Queues what was listed; a slot of which nothing was is done.
    pub(super) async fn queue(&self, listed: Listed, queues: &mut Queues) -> Result<(), Fault> {
        let (unknown, done): (Listed, Listed) =
            listed.into_iter().partition(|(_, keys)| !keys.is_empty());
        for (slot, _) in done {
            queues.remove(&slot);
        }
        for (slot, items) in self.measure(unknown).await? {
            queues.insert(slot, items.into());
        }
        Ok(())
    }

    /// As many keys as may go together; when only big ones are left, one of those; nothing if none
    /// of them may.
    fn next_batch(&self, queues: &mut Queues, moved: &mut Moved) -> Option<Batch> {
        let all = queues.iter().flat_map(|(slot, queue)| queue.iter().map(|item| (*slot, item)));
        let usual = all.filter(|(_, item)| item.stall_ms.is_none());
        let mut usual = usual.map(|(slot, item)| (slot, item.bytes)).peekable();
        if usual.peek().is_none() {
            return self.next_big(queues, moved);
        }
        let mut room = self.pace.lock().unwrap_or_else(PoisonError::into_inner).share(usual);
        let mut batch = Batch::default();
        for (&slot, queue) in queues.iter_mut() {
            let Some(count) = whole(queue, room, batch.parts.is_empty()) else { break };
            room = room.saturating_sub(count);
            let mut part = Vec::with_capacity(count);
            let mut kept = VecDeque::new();
            while part.len() < count
                && let Some(item) = queue.pop_front()
            {
                if item.stall_ms.is_some() {
                    kept.push_back(item);
                } else {
                    batch.sizes.push((slot, item.bytes));
                    part.push(item.key);
                }
            }
            queue.append(&mut kept);
            if !part.is_empty() {
                batch.parts.push((slot, part));
            }
        }
        Some(batch)
    }

    fn next_big(&self, queues: &mut Queues, moved: &mut Moved) -> Option<Batch> {
        let mut held = Vec::new();
        for (&slot, queue) in queues.iter_mut() {
            for i in 0..queue.len() {
                let Some(big) = queue.get(i).and_then(|item| item.big(slot)) else { continue };
                if !self.allowed(&big) {
                    held.push(big);
                } else if let Some(item) = queue.remove(i) {
                    let parts = vec![(slot, vec![item.key])];
                    return Some(Batch { parts, sizes: vec![(slot, item.bytes)], big: Some(big) });
                }
            }
        }
        moved.held.append(&mut held);
        None
    }

    /// Sends a batch, and lists again the slots of which nothing is left. The inner error is one that
    /// may pass.
    async fn hand_over(
        &self,
        batch: Batch,
        queues: &Queues,
        moved: &mut Moved,
    ) -> Result<Result<Listed, Fault>, Fault> {
        let job = self.job;
        let within = batch.within();
        // The target may take as long for a big key.
        let within_ms = batch.big.as_ref().map_or(0, |b| b.expected_ms) + MIGRATE_WITHIN_MS;
        let mut asked = Vec::new();
        let mut emptied = Vec::new();
        for (slot, keys) in batch.parts {
            let to = job.receiver.clone();
            asked.push(Saying::Migrate { to, keys, within_ms });
            if queues.get(&slot).is_none_or(VecDeque::is_empty) {
                asked.push(Saying::ListKeys { slot, at_most: LISTED });
                emptied.push(slot);
            }
        }
        let began = Instant::now();
        let answers = job.source.talk(job.fleet, Lane::Bulk, within, &asked).await?;
        let wall = began.elapsed();
        let mut failed = None;
        let mut listed = Listed::new();
        let mut emptied = emptied.into_iter();
        for answer in answers {
            match answer {
                Answer::Keys(keys) => listed.extend(emptied.next().map(|slot| (slot, keys))),
                Answer::Refused { code, message } if code == "IOERR" => {
                    let target = &job.target.target.address;
                    let why = format!(
                        "{} cannot hand keys over to it: {message}",
                        job.source.target.address
                    );
                    failed = Some(Fault::new(UNREACHABLE, why, target));
                }
                answer => job.source.done(answer).map_err(|fault| job.blamed(fault))?,
            }
        }
        if let Some(fault) = failed {
            return Ok(Err(fault));
        }
        let count = batch.sizes.len() as u64;
        let bytes = batch.sizes.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        self.tally.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.tally.keys.fetch_add(count, Ordering::Relaxed);
        let left = self.tally.keys_left.load(Ordering::Relaxed).saturating_sub(count);
        self.tally.keys_left.store(left, Ordering::Relaxed);
        if let Some(key) = batch.big {
            let actual_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
            moved.stalls.push(Stall { key, actual_ms });
        } else {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.took(batch.sizes, wall);
        }
        Ok(Ok(listed))
    }
}

/// How many keys of a slot join a batch that has room for so many: all of them, if that is not far more,
/// since what is left of a slot costs a command of its own. A slot that does not fit waits, unless it
/// would be the first.
fn whole(queue: &VecDeque<Item>, room: usize, is_first: bool) -> Option<usize> {
    let usual = queue.iter().filter(|item| item.stall_ms.is_none()).count();
    if usual <= room.saturating_mul(2) {
        return Some(usual);
    }
    is_first.then_some(room)
}

impl Job<'_> {
    /// What the target refused for want of memory is no fault of the source that tells it.
    fn blamed(&self, fault: Fault) -> Fault {
        if fault.code != "OOM" {
            return fault;
        }
        let target = &self.target.target.address;
        let why = format!("{target} takes no more keys: {}", fault.message);
        Fault::new(TARGET_FULL, why, target)
    }
}

impl Batch {
    /// How long the source may take.
    fn within(&self) -> Duration {
        let stall_ms = self.big.as_ref().map_or(0, |big| big.expected_ms);
        PATIENCE + Duration::from_millis(stall_ms.saturating_mul(4))
    }
}
