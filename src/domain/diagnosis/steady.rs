//! Hysteresis: what is seen counts once it was so at every look over a while, and so does its end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long something must last: gossip in flight is over by then.
pub const LASTS: Duration = Duration::from_secs(1);

/// What counts, and what is about to change in that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steady<T> {
    counts: BTreeSet<T>,
    /// What is otherwise than it counts, and since when.
    turning: BTreeMap<T, Duration>,
}

impl<T: Ord + Clone> Steady<T> {
    /// Takes up what counted before.
    #[must_use]
    pub fn resume(counts: BTreeSet<T>) -> Self {
        Self { counts, turning: BTreeMap::new() }
    }

    /// Notes one look, at a time that only grows. Returns what counts now.
    pub fn note(&mut self, at: Duration, seen: &BTreeSet<T>) -> &BTreeSet<T> {
        let turned = |t: &&T| seen.contains(t) != self.counts.contains(t);
        let turned: BTreeSet<T> = seen.union(&self.counts).filter(turned).cloned().collect();
        self.turning.retain(|t, _| turned.contains(t));
        for it in turned {
            let since = *self.turning.entry(it.clone()).or_insert(at);
            if at.saturating_sub(since) >= LASTS {
                self.turning.remove(&it);
                if !self.counts.remove(&it) {
                    self.counts.insert(it);
                }
            }
        }
        &self.counts
    }

    /// Forgets what was about to change: nobody looked for a while.
    pub fn interrupt(&mut self) {
        self.turning.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(steady: &mut Steady<char>, ms: u64, seen: &str) -> String {
        steady.note(Duration::from_millis(ms), &seen.chars().collect()).iter().collect()
    }

    #[test]
    fn what_lasts_counts_and_what_flaps_does_not() {
        let mut steady = Steady::resume(BTreeSet::new());
        assert_eq!(at(&mut steady, 0, "a"), "");
        assert_eq!(at(&mut steady, 250, "ab"), "");
        assert_eq!(at(&mut steady, 999, "a"), "");
        assert_eq!(at(&mut steady, 1000, "ab"), "a", "b began anew");
        assert_eq!(at(&mut steady, 1500, "b"), "a");
        assert_eq!(at(&mut steady, 2000, "b"), "ab");
        assert_eq!(at(&mut steady, 2400, "ab"), "ab", "a came back in time");
        assert_eq!(at(&mut steady, 3000, ""), "ab");
        assert_eq!(at(&mut steady, 4000, ""), "");
    }

    #[test]
    fn a_pause_in_looking_counts_nothing() {
        let mut steady = Steady::resume("a".chars().collect());
        assert_eq!(at(&mut steady, 0, "b"), "a");
        steady.interrupt();
        assert_eq!(at(&mut steady, 60_000, "b"), "a");
        assert_eq!(at(&mut steady, 61_000, "b"), "b");
    }
}
