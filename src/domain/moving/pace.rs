//! How many keys go in one batch: as many as cost less than clients may be kept waiting.
//!
//! A server runs a whole `MIGRATE` before it serves anybody else, and several that arrive together
//! one after the other; so it is the sum of a batch that counts. What keys cost is learned from how
//! long batches take. Measured on Redis 7.0 over loopback: 100 µs for each slot of which there are
//! keys, since each takes a `MIGRATE` of its own, 6 µs a key and 30 µs a KiB.

use std::time::Duration;

const SLOT_US: f64 = 100.0;
const KEY_US: f64 = 6.0;
const KIB_US: f64 = 30.0;
/// The part of the allowed latency that a batch aims at: the target serves the same batch, and a client
/// that is sent on there may wait at both, and meet the end of one batch and the whole of the next.
const AIM: f64 = 0.25;
/// A batch is never cut below this part of the aim: what is slow then is not the batch.
const LEAST: f64 = 0.05;
/// The weight of the newest measurement.
const NEWEST: f64 = 0.2;

/// Additive-increase would take too long to find back: it grows by a quarter, and halves.
#[derive(Debug, Clone, PartialEq)]
pub struct Pace {
    limit_us: f64,
    /// Between [`LEAST`] and 1.
    factor: f64,
    /// How much more, or less, keys cost here than elsewhere.
    scale: f64,
}

impl Pace {
    #[must_use]
    pub fn new(max_latency_ms: u64) -> Self {
        let limit_us = u32::try_from(max_latency_ms.max(1)).map_or(f64::MAX, f64::from) * 1000.0;
        Self { limit_us, factor: 0.5, scale: 1.0 }
    }

    /// How many of these keys, each given by its slot and its size in bytes, go in the next batch: at
    /// least one.
    #[must_use]
    pub fn share(&self, keys: impl IntoIterator<Item = (u16, u64)>) -> usize {
        let room = self.limit_us * AIM * self.factor / self.scale;
        sums(keys).take_while(|sum| *sum <= room).count().max(1)
    }

    /// A batch of these keys took so long.
    pub fn took(&mut self, keys: impl IntoIterator<Item = (u16, u64)>, wall: Duration) {
        let predicted = sums(keys).last().unwrap_or(0.0);
        let wall_us = wall.as_secs_f64() * 1e6;
        if predicted > 0.0 {
            // One that the machine was busy with something else for says little.
            let here = (wall_us / predicted).clamp(self.scale / 2.0, self.scale * 2.0);
            self.scale = (self.scale + (here - self.scale) * NEWEST).clamp(0.1, 20.0);
        }
        if wall_us > self.limit_us {
            self.back_off();
        } else {
            self.factor = (self.factor * 1.25).min(1.0);
        }
    }

    /// A ping on another connection took so long: that is what clients feel.
    pub fn probed(&mut self, wall: Duration) {
        if wall.as_secs_f64() * 1e6 > 2.0 * self.limit_us {
            self.back_off();
        }
    }

    fn back_off(&mut self) {
        self.factor = (self.factor / 2.0).max(LEAST);
    }
}

/// What the first key costs, the first two, and so on.
fn sums(keys: impl IntoIterator<Item = (u16, u64)>) -> impl Iterator<Item = f64> {
    let mut last = None;
    let mut sum = 0.0;
    keys.into_iter().map(move |(slot, bytes)| {
        #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
        let size = KEY_US + bytes as f64 / 1024.0 * KIB_US;
        let call = if last.replace(slot) == Some(slot) { 0.0 } else { SLOT_US };
        sum += call + size;
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many small keys, all of one slot.
    fn keys(n: usize) -> impl Iterator<Item = (u16, u64)> {
        std::iter::repeat_n((1, 100), n)
    }

    fn batch(pace: &Pace) -> usize {
        pace.share(keys(100_000))
    }

    fn wall(keys: usize) -> Duration {
        Duration::from_micros(100 + 9 * keys as u64)
    }

    /// Small keys on a server that takes what was measured.
    fn settled(max_latency_ms: u64) -> Pace {
        let mut pace = Pace::new(max_latency_ms);
        for _ in 0..50 {
            let n = batch(&pace);
            pace.took(keys(n), wall(n));
        }
        pace
    }

    #[test]
    fn a_batch_stays_below_what_clients_may_wait() {
        for limit in [1, 5, 20] {
            let took = wall(batch(&settled(limit)));
            let limit = Duration::from_millis(limit);
            assert!(took <= limit / 2 && took >= limit / 8, "{limit:?}: {took:?}");
        }
    }

    #[test]
    fn few_keys_of_many_slots_cost_more_than_many_of_few() {
        let pace = settled(5);
        let sparse = pace.share((0..1000).flat_map(|slot| [(slot, 100); 10]));
        assert!(sparse * 3 / 2 < batch(&pace), "{sparse}");
    }

    #[test]
    fn it_backs_off_when_servers_are_slow_and_comes_back() {
        let mut pace = settled(5);
        let usual = batch(&pace);
        for _ in 0..3 {
            pace.took(keys(usual), Duration::from_millis(20));
        }
        let slow = batch(&pace);
        assert!(slow * 8 <= usual, "{slow} of {usual}");
        pace.probed(Duration::from_millis(11));
        assert!(batch(&pace) <= slow);
        for _ in 0..50 {
            let n = batch(&pace);
            pace.took(keys(n), wall(n));
        }
        assert!(batch(&pace) * 2 > usual);
    }

    #[test]
    fn one_batch_that_stood_still_is_no_measure() {
        let mut pace = settled(5);
        let usual = batch(&pace);
        pace.took(keys(usual), Duration::from_millis(500));
        for _ in 0..5 {
            let n = batch(&pace);
            pace.took(keys(n), wall(n));
        }
        assert!(batch(&pace) * 10 > usual * 9);
    }

    #[test]
    fn a_key_that_is_too_big_goes_alone() {
        assert_eq!(Pace::new(5).share([(1, 100_000_000), (1, 100)]), 1);
        assert_eq!(Pace::new(5).share([(1, 100_000_000)]), 1);
    }
}
