//! Thresholds: how patient, how persistent, how careful. Settings may change each.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// How often a failed command is sent again after its first attempt.
    pub max_retries: u32,
    /// The first pause before a retry, in milliseconds; each further one is twice as long.
    pub backoff_base_ms: u64,
    /// How long a plan waits for nodes to answer or agree before it fails, in milliseconds.
    pub wait_deadline_ms: u64,
    /// A write pause that is expected to be shorter needs no consent, in milliseconds.
    pub free_pause_ms: u64,
    /// `cluster-node-timeout` while a cluster without data forms, in milliseconds: gossip pings a
    /// peer every half of it, and a primary leaves the state `fail` after it (at least 500).
    pub forming_node_timeout_ms: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            max_retries: 5,
            backoff_base_ms: 1000,
            wait_deadline_ms: 60_000,
            free_pause_ms: 250,
            forming_node_timeout_ms: 500,
        }
    }
}

impl Policy {
    /// The pause before retry number `retry` (from 1), in milliseconds: exponential, with `jitter`
    /// between 0 and 1 taking away up to half of it, so that plans that failed together do not
    /// come back together.
    #[must_use]
    pub fn backoff_ms(&self, retry: u32, jitter: f64) -> u64 {
        let whole = self.backoff_base_ms.saturating_mul(1 << retry.saturating_sub(1).min(16));
        let half = whole / 2;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "the product lies between 0 and half"
        )]
        let taken = (half as f64 * jitter.clamp(0.0, 1.0)) as u64;
        whole - taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_and_jitter_takes_at_most_half() {
        let policy = Policy::default();
        let waits: Vec<_> = (1..=5).map(|n| policy.backoff_ms(n, 0.0)).collect();
        assert_eq!(waits, [1000, 2000, 4000, 8000, 16000]);
        assert_eq!(policy.backoff_ms(1, 1.0), 500);
    }
}
