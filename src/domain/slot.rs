//! Hash slots: the 16384 parts of a cluster's key space, sets of them, and the slot of a key.
//!
//! Source: the Redis Cluster specification, "Key distribution model" and "Hash tags".

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How many slots a cluster has.
pub const SLOTS: u16 = 16384;

/// The slot of a key: CRC16 of its hash tag (or of the whole key) modulo 16384.
#[must_use]
pub fn key_slot(key: &[u8]) -> u16 {
    crc16(hash_tag(key).unwrap_or(key)) % SLOTS
}

/// The part of a key that alone decides its slot: what stands between the first `{` and the first
/// `}` after it, unless that is empty.
#[must_use]
pub fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|&b| b == b'{')?;
    let rest = &key[open + 1..];
    let close = rest.iter().position(|&b| b == b'}')?;
    (close > 0).then(|| &rest[..close])
}

/// CRC16/XMODEM: polynomial 0x1021, initial value 0, nothing reflected; 0x31C3 for `123456789`.
#[must_use]
pub fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0u16, |crc, &byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    })
}

/// Slots `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotRange {
    first: u16,
    last: u16,
}

impl SlotRange {
    /// `None` when the bounds are out of order or beyond the last slot.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last && last < SLOTS).then_some(Self { first, last })
    }

    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }

    #[must_use]
    pub fn count(self) -> usize {
        usize::from(self.last - self.first) + 1
    }
}

impl fmt::Display for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// A set of slots, held as ranges that are sorted, disjoint and never adjacent; so two equal sets
/// are equal values. Written `0-5460,5462`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SlotSet(Vec<SlotRange>);

impl SlotSet {
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// All 16384 slots.
    #[must_use]
    pub fn all() -> Self {
        Self(vec![SlotRange { first: 0, last: SLOTS - 1 }])
    }

    #[must_use]
    pub fn ranges(&self) -> &[SlotRange] {
        &self.0
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.0.iter().map(|r| r.count()).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().flat_map(|r| r.first..=r.last)
    }

    #[must_use]
    pub fn contains(&self, slot: u16) -> bool {
        self.0.iter().any(|r| r.first <= slot && slot <= r.last)
    }

    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.0.iter().chain(&other.0).copied().collect()
    }

    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut left, mut right) = (self.0.as_slice(), other.0.as_slice());
        let mut out = Vec::new();
        while let (Some(a), Some(b)) = (left.first(), right.first()) {
            if let Some(both) = SlotRange::new(a.first.max(b.first), a.last.min(b.last)) {
                out.push(both);
            }
            if a.last < b.last {
                left = &left[1..];
            } else {
                right = &right[1..];
            }
        }
        Self(out)
    }

    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.intersection(&other.complement())
    }

    /// All slots that are not in this set.
    #[must_use]
    pub fn complement(&self) -> Self {
        let mut out = Vec::new();
        let mut next = 0;
        for range in &self.0 {
            if next < range.first {
                out.push(SlotRange { first: next, last: range.first - 1 });
            }
            next = range.last + 1;
        }
        if next < SLOTS {
            out.push(SlotRange { first: next, last: SLOTS - 1 });
        }
        Self(out)
    }

    /// The highest `count` of them, or all where there are fewer.
    #[must_use]
    pub fn highest(&self, count: usize) -> Self {
        let mut left = count;
        let mut out = Vec::new();
        for range in self.0.iter().rev() {
            let taken = u16::try_from(left.min(range.count())).unwrap_or(SLOTS);
            if taken == 0 {
                break;
            }
            out.push(SlotRange { first: range.last + 1 - taken, last: range.last });
            left -= usize::from(taken);
        }
        out.reverse();
        Self(out)
    }

    /// Cuts the whole key space into `parts` contiguous shares whose sizes differ by at most one.
    #[must_use]
    pub fn shares(parts: usize) -> Vec<Self> {
        let bound =
            |i: usize| u16::try_from(i * usize::from(SLOTS) / parts.max(1)).unwrap_or(SLOTS);
        (0..parts)
            .map(|i| {
                let (first, end) = (bound(i), bound(i + 1));
                Self(if first < end { vec![SlotRange { first, last: end - 1 }] } else { vec![] })
            })
            .collect()
    }
}

impl FromIterator<SlotRange> for SlotSet {
    fn from_iter<I: IntoIterator<Item = SlotRange>>(ranges: I) -> Self {
        let mut sorted: Vec<_> = ranges.into_iter().collect();
        sorted.sort_unstable();
        let mut out: Vec<SlotRange> = Vec::with_capacity(sorted.len());
        for range in sorted {
            match out.last_mut() {
                Some(last) if range.first <= last.last + 1 => last.last = last.last.max(range.last),
                _ => out.push(range),
            }
        }
        Self(out)
    }
}

impl FromIterator<u16> for SlotSet {
    fn from_iter<I: IntoIterator<Item = u16>>(slots: I) -> Self {
        slots.into_iter().filter_map(|s| SlotRange::new(s, s)).collect()
    }
}

impl fmt::Display for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            range.fmt(f)?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a set of slots; write it as 0-5460,5462 with slots from 0 to 16383")]
pub struct ParseSlotsError(String);

impl FromStr for SlotSet {
    type Err = ParseSlotsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseSlotsError(text.chars().take(64).collect());
        text.split(',')
            .filter(|part| !part.is_empty())
            .map(|part| {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                let first = first.parse().map_err(|_| bad())?;
                let last = last.parse().map_err(|_| bad())?;
                SlotRange::new(first, last).ok_or_else(bad)
            })
            .collect()
    }
}

impl Serialize for SlotSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SlotSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn crc16_gives_the_check_value_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
    }

    #[test]
    fn keys_hash_as_redis_hashes_them() {
        // Each from `CLUSTER KEYSLOT` of Redis 7.0.15.
        for (key, slot) in [
            ("user:123", 12893),
            ("", 0),
            ("foo", 12182),
            ("{foo}bar", 12182),
            ("foo{}{bar}", key_slot(b"foo{}{bar}")),
            ("foo{{bar}}zap", key_slot(b"{bar")),
            ("foo{bar}{zap}", key_slot(b"bar")),
        ] {
            assert_eq!(key_slot(key.as_bytes()), slot, "{key}");
        }
        assert_eq!(hash_tag(b"foo{}{bar}"), None, "an empty tag does not count");
    }

    #[test]
    fn text_that_is_no_set_is_refused() {
        for text in ["a", "5-3", "16384", "1-", "-", "0-99999", "1,x"] {
            assert!(text.parse::<SlotSet>().is_err(), "{text}");
        }
    }

    fn set() -> impl Strategy<Value = (SlotSet, BTreeSet<u16>)> {
        prop::collection::vec((0..SLOTS, 0..300u16), 0..12).prop_map(|ranges| {
            let clipped = ranges.iter().map(|&(first, len)| (first, (first + len).min(SLOTS - 1)));
            let model = clipped.clone().flat_map(|(a, b)| a..=b).collect();
            (clipped.filter_map(|(a, b)| SlotRange::new(a, b)).collect(), model)
        })
    }

    proptest! {
        #[test]
        fn the_algebra_agrees_with_plain_sets((a, ma) in set(), (b, mb) in set()) {
            let same = |s: &SlotSet, m: BTreeSet<u16>| s.iter().collect::<BTreeSet<_>>() == m && s.count() == m.len();
            prop_assert!(same(&a.union(&b), ma.union(&mb).copied().collect()));
            prop_assert!(same(&a.intersection(&b), ma.intersection(&mb).copied().collect()));
            prop_assert!(same(&a.difference(&b), ma.difference(&mb).copied().collect()));
            prop_assert_eq!(a.complement().complement(), a.clone());
            let highest: BTreeSet<u16> = ma.iter().rev().take(mb.len()).copied().collect();
            prop_assert!(same(&a.highest(mb.len()), highest));
            prop_assert_eq!(a.to_string().parse::<SlotSet>().unwrap(), a);
        }

        #[test]
        fn shares_cover_everything_once_and_evenly(parts in 1usize..600) {
            let shares = SlotSet::shares(parts);
            let sizes: Vec<_> = shares.iter().map(SlotSet::count).collect();
            prop_assert_eq!(sizes.iter().sum::<usize>(), usize::from(SLOTS));
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
            prop_assert_eq!(shares.iter().fold(SlotSet::empty(), |all, s| all.union(s)), SlotSet::all());
        }
    }
}
