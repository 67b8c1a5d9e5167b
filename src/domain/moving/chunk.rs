//! Which slots are opened together: few enough that each is open for a short time only, since
//! commands on several keys of an open slot are refused; enough that round trips do not count.

use std::collections::{BTreeMap, BTreeSet};

/// Empty slots cost the servers next to nothing.
const EMPTY: usize = 100;
/// Slots with keys, and the keys that they hold together.
const DENSE: usize = 64;
const KEYS: u64 = 4000;

/// The slots to move next, of those that are left with how many keys they hold: what is open
/// already, then empty ones, then those with keys. Never none while some are left.
#[must_use]
pub fn next(left: &BTreeMap<u16, u64>, open: &BTreeSet<u16>) -> Vec<u16> {
    let begun: Vec<u16> = left.keys().filter(|s| open.contains(s)).copied().collect();
    if !begun.is_empty() {
        return take(&begun, left);
    }
    let empty = left.iter().filter(|(_, keys)| **keys == 0).map(|(slot, _)| *slot);
    let empty: Vec<u16> = empty.take(EMPTY).collect();
    if !empty.is_empty() {
        return empty;
    }
    let all: Vec<u16> = left.keys().copied().collect();
    take(&all, left)
}

fn take(slots: &[u16], keys: &BTreeMap<u16, u64>) -> Vec<u16> {
    let mut sum = 0u64;
    let fits = |slot: &&u16| {
        sum = sum.saturating_add(keys.get(*slot).copied().unwrap_or(0));
        sum <= KEYS
    };
    let fit = slots.iter().take(DENSE).take_while(fits).count();
    slots.iter().take(fit.max(1)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_goes_first_then_what_is_empty() {
        let left: BTreeMap<u16, u64> = (0..300).map(|s| (s, u64::from(s >= 150))).collect();
        assert_eq!(next(&left, &[7, 200].into()), [7, 200]);
        assert_eq!(next(&left, &BTreeSet::new()), (0..100).collect::<Vec<_>>());
        let dense: BTreeMap<u16, u64> = (0..300).map(|s| (s, 122)).collect();
        assert_eq!(next(&dense, &BTreeSet::new()), (0..32).collect::<Vec<_>>());
        let huge: BTreeMap<u16, u64> = (0..3).map(|s| (s, 1_000_000)).collect();
        assert_eq!(next(&huge, &BTreeSet::new()), [0]);
        assert_eq!(next(&BTreeMap::new(), &BTreeSet::new()), Vec::<u16>::new());
    }
}
