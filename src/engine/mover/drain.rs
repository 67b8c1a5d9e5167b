//! The keys of open slots: batch by batch, until the source lists none.

use std::collections::{BTreeMap, VecDeque};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{LISTED, Mover, PATIENCE, Stall};
use crate::domain::fault::{Fault, UNREACHABLE};
use crate::domain::moving::BigKey;
use crate::domain::moving::talk::{Answer, Key, Lane, Saying, SlotState};
use crate::domain::step::slots::MIGRATE_WITHIN_MS;

/// How often the source may fail to hand a batch over before it is given up.
const FAILURES: u32 = 3;

/// What the source listed of each open slot, and did not hand over yet; a slot without any has to be
/// listed again, until it has none.
type Queues = BTreeMap<u16, VecDeque<Key>>;

/// What goes out together: of each slot some keys.
struct Batch {
    parts: Vec<(u16, Vec<Key>)>,
    /// The one big key that it consists of.
    big: Option<BigKey>,
    /// How long the source may take.
    within: Duration,
}

impl Mover<'_> {
    /// Opens slots at the source, and moves their keys; says whether none is left. A key that nobody
    /// accepted keeps its slot open.
    pub(super) async fn drain(&mut self, slots: &[u16]) -> Result<bool, Fault> {
        let mut queues = self.give(slots).await?;
        let mut failures = 0;
        loop {
            self.measure_all(&queues).await?;
            queues.retain(|_, keys| !keys.is_empty());
            if queues.is_empty() {
                return Ok(true);
            }
            let Some(batch) = self.next_batch(&mut queues) else { return Ok(false) };
            if !self.reins.loose(batch.within) {
                return Ok(false);
            }
            if let Err(fault) = self.hand_over(batch, &mut queues).await? {
                failures += 1;
                if failures >= FAILURES {
                    return Err(fault);
                }
            }
        }
    }

    /// From now on no new key comes into these slots at the source.
    async fn give(&self, slots: &[u16]) -> Result<Queues, Fault> {
        let job = self.job;
        let give = |&slot: &u16| {
            let state = SlotState::Migrating(job.target.id.clone());
            Saying::SetSlot { slot, state }
        };
        let asked: Vec<Saying> = slots.iter().map(give).collect();
        for answer in self.confirmed(&job.source, &asked).await? {
            job.source.done(answer)?;
        }
        // A list from before would not show what was written until then.
        let listed = self.list(slots).await?;
        Ok(listed.into_iter().map(|(slot, keys)| (slot, keys.into())).collect())
    }

    async fn measure_all(&mut self, queues: &Queues) -> Result<(), Fault> {
        let unknown = queues.values().flatten().filter(|key| !self.sizes.contains_key(*key));
        let unknown: Vec<Key> = unknown.cloned().collect();
        self.measure(&unknown).await
    }

    /// As many keys as may go together; when only big ones are left, one of those; nothing if none
    /// of them may.
    fn next_batch(&mut self, queues: &mut Queues) -> Option<Batch> {
        let bytes = |key: &Key| self.sizes.get(key).map_or(0, |s| s.bytes);
        let is_big = |slot: u16, key: &Key| self.big(slot, key).is_some();
        let usual = queues.iter().flat_map(|(slot, keys)| keys.iter().map(|key| (*slot, key)));
        let usual = usual.filter(|(slot, key)| !is_big(*slot, key));
        let sizes: Vec<u64> = usual.take(LISTED as usize).map(|(_, key)| bytes(key)).collect();
        if sizes.is_empty() {
            return self.next_big(queues);
        }
        let mut room = self.pace.lock().unwrap_or_else(PoisonError::into_inner).share(sizes);
        let mut parts = Vec::new();
        for (&slot, keys) in queues.iter_mut() {
            let mut part = Vec::new();
            let mut kept = VecDeque::new();
            while room > 0
                && let Some(key) = keys.pop_front()
            {
                if is_big(slot, &key) {
                    kept.push_back(key);
                } else {
                    room -= 1;
                    part.push(key);
                }
            }
            keys.append(&mut kept);
            if !part.is_empty() {
                parts.push((slot, part));
            }
        }
        Some(Batch { parts, big: None, within: PATIENCE })
    }

    fn next_big(&mut self, queues: &mut Queues) -> Option<Batch> {
        let all = queues.iter().flat_map(|(slot, keys)| keys.iter().map(|key| (*slot, key)));
        let big: Vec<(BigKey, Key)> =
            all.filter_map(|(slot, key)| Some((self.big(slot, key)?, key.clone()))).collect();
        let (allowed, held): (Vec<_>, Vec<_>) =
            big.into_iter().partition(|(big, _)| self.allowed(big));
        let Some((big, key)) = allowed.into_iter().next() else {
            self.moved.held.extend(held.into_iter().map(|(big, _)| big));
            return None;
        };
        if let Some(keys) = queues.get_mut(&big.slot) {
            keys.retain(|k| *k != key);
        }
        let within = PATIENCE + Duration::from_millis(big.expected_ms.saturating_mul(4));
        Some(Batch { parts: vec![(big.slot, vec![key])], big: Some(big), within })
    }

    /// Sends a batch, and lists again the slots of which nothing is left. The inner error is one that
    /// may pass: nobody knows then which keys went over, so they are listed again.
    async fn hand_over(
        &mut self,
        batch: Batch,
        queues: &mut Queues,
    ) -> Result<Result<(), Fault>, Fault> {
        let job = self.job;
        let count = batch.parts.iter().map(|(_, keys)| keys.len() as u64).sum::<u64>();
        let sizes: Vec<u64> = batch
            .parts
            .iter()
            .flat_map(|(_, keys)| keys)
            .map(|key| self.sizes.remove(key).map_or(0, |s| s.bytes))
            .collect();
        // The target may take as long for a big key.
        let within_ms = batch.big.as_ref().map_or(0, |b| b.expected_ms) + MIGRATE_WITHIN_MS;
        let mut asked = Vec::new();
        let mut listed = Vec::new();
        for (slot, keys) in batch.parts {
            let to = job.receiver.clone();
            asked.push(Saying::Migrate { to, keys, within_ms });
            if queues.get(&slot).is_none_or(VecDeque::is_empty) {
                asked.push(Saying::ListKeys { slot, at_most: LISTED });
                listed.push(slot);
            }
        }
        let began = Instant::now();
        let answers = job.source.talk(job.fleet, Lane::Bulk, batch.within, &asked).await?;
        let wall = began.elapsed();
        let mut failed = None;
        let mut listed = listed.into_iter();
        for answer in answers {
            match answer {
                Answer::Keys(keys) => {
                    if let Some(slot) = listed.next() {
                        queues.insert(slot, keys.into());
                    }
                }
                Answer::Refused { code, message } if code == "IOERR" => {
                    let target = &job.target.target.address;
                    let why = format!(
                        "{} cannot hand keys over to it: {message}",
                        job.source.target.address
                    );
                    failed = Some(Fault::new(UNREACHABLE, why, target));
                }
                answer => job.source.done(answer)?,
            }
        }
        if let Some(fault) = failed {
            let slots: Vec<u16> = queues.keys().copied().collect();
            for (slot, keys) in self.list(&slots).await? {
                queues.insert(slot, keys.into());
            }
            return Ok(Err(fault));
        }
        self.tally.keys.fetch_add(count, Ordering::Relaxed);
        let left = self.tally.keys_left.load(Ordering::Relaxed).saturating_sub(count);
        self.tally.keys_left.store(left, Ordering::Relaxed);
        if let Some(key) = batch.big {
            let actual_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
            self.moved.stalls.push(Stall { key, actual_ms });
            return Ok(Ok(()));
        }
        let rest = {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.took(sizes, wall);
            pace.rest(wall)
        };
        tokio::time::sleep(rest).await;
        Ok(Ok(()))
    }
}
