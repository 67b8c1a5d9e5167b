//! How many keys go in one batch: as many as cost less than clients may be kept waiting.
//!
//! A server runs a whole `MIGRATE` before it serves anybody else, and several that arrive together
//! one after the other; so it is the sum of a batch that counts. What keys cost is learned from how
//! long batches take. Measured on Redis 7.0 over loopback: 6 µs a key and 30 µs a KiB.

use std::time::Duration;

const KEY_US: f64 = 6.0;
const KIB_US: f64 = 30.0;
/// The part of the allowed latency that a batch aims at: the target serves the same batch, and a
/// client may meet the end of one and the whole of the next.
const AIM: f64 = 0.5;
/// A batch is never cut below this part of the aim: what is slow then is not the batch.
const LEAST: f64 = 0.05;
/// The weight of the newest measurement.
const NEWEST: f64 = 0.2;
/// The part of the time in which a server may be busy with moving.
const DUTY: f64 = 0.9;

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

    /// How many of these keys, given by their sizes in bytes, go in the next batch: at least one.
    #[must_use]
    pub fn share(&self, sizes: impl IntoIterator<Item = u64>) -> usize {
        let mut left = self.limit_us * AIM * self.factor;
        let fits = sizes.into_iter().take_while(|bytes| {
            left -= cost(*bytes) * self.scale;
            left >= 0.0
        });
        fits.count().max(1)
    }

    /// A batch of keys of these sizes took so long.
    pub fn took(&mut self, sizes: impl IntoIterator<Item = u64>, wall: Duration) {
        let predicted: f64 = sizes.into_iter().map(cost).sum();
        let wall_us = wall.as_secs_f64() * 1e6;
        if predicted > 0.0 {
            let here = (wall_us / predicted).clamp(0.1, 20.0);
            self.scale += (here - self.scale) * NEWEST;
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

    /// How long to leave the servers to others after a batch that took so long.
    #[must_use]
    pub fn rest(&self, wall: Duration) -> Duration {
        wall.mul_f64(1.0 / DUTY - 1.0).min(Duration::from_millis(50))
    }

    fn back_off(&mut self) {
        self.factor = (self.factor / 2.0).max(LEAST);
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
fn cost(bytes: u64) -> f64 {
    KEY_US + bytes as f64 / 1024.0 * KIB_US
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small keys on a server that takes what was measured.
    fn settled(max_latency_ms: u64) -> Pace {
        let mut pace = Pace::new(max_latency_ms);
        for _ in 0..50 {
            let n = pace.share(std::iter::repeat_n(100, 100_000));
            pace.took(std::iter::repeat_n(100, n), Duration::from_micros(9 * n as u64));
        }
        pace
    }

    #[test]
    fn a_batch_stays_below_what_clients_may_wait() {
        for limit in [1, 5, 20] {
            let batch = settled(limit).share(std::iter::repeat_n(100, 100_000)) as u64;
            assert!(9 * batch <= limit * 1000 && 9 * batch >= limit * 1000 / 3, "{limit}: {batch}");
        }
    }

    #[test]
    fn it_backs_off_when_servers_are_slow_and_comes_back() {
        let mut pace = settled(5);
        let usual = pace.share(std::iter::repeat_n(100, 100_000));
        for _ in 0..3 {
            pace.took(std::iter::repeat_n(100, usual), Duration::from_millis(20));
        }
        let slow = pace.share(std::iter::repeat_n(100, 100_000));
        assert!(slow * 8 <= usual, "{slow} of {usual}");
        pace.probed(Duration::from_millis(11));
        assert!(pace.share(std::iter::repeat_n(100, 100_000)) <= slow);
        for _ in 0..50 {
            let n = pace.share(std::iter::repeat_n(100, 100_000));
            pace.took(std::iter::repeat_n(100, n), Duration::from_micros(9 * n as u64));
        }
        assert!(pace.share(std::iter::repeat_n(100, 100_000)) * 2 > usual);
    }

    #[test]
    fn a_key_that_is_too_big_goes_alone() {
        assert_eq!(Pace::new(5).share([100_000_000, 100]), 1);
        assert_eq!(Pace::new(5).share([100_000_000]), 1);
    }
}
