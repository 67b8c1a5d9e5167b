//! What lies in slots that may move: how many keys, how large, and which of them are big. A survey
//! says what to ask next and makes of the answers what it can; whoever carries it out may end it at
//! any time. Each batch is short, so that no server stands still for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::talk::{Answer, Key, Saying};
use super::{BigKey, Estimate, KeyKind, is_big, predicted_stall_ms};
use crate::domain::node::Address;
use crate::domain::observation::Observation;
use crate::domain::placement::Warning;
use crate::domain::slot::SlotSet;
use crate::domain::step::slots::MoveSlots;

const COUNTED_AT_ONCE: usize = 1024;
const LISTED_AT_ONCE: u64 = 2000;
const SIZED_AT_ONCE: usize = 1000;
/// Of one slot. Listing more would hold its server up.
const LISTED_OF_A_SLOT: u64 = 5000;
/// Of one server.
const SIZED_AT_MOST: u64 = 200_000;

/// Keys that a pair of nodes moves in a second, side by side with its clients.
const KEYS_PER_SECOND: f64 = 100_000.0;
const SECONDS_PER_EMPTY_SLOT: f64 = 0.0001;

/// What is known of what lies in slots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Figures {
    /// Keys in each slot that was counted.
    pub keys: BTreeMap<u16, u64>,
    /// Bytes in each slot that was counted; what was not looked at is taken to be like the rest.
    pub bytes: BTreeMap<u16, u64>,
    pub big: Vec<BigKey>,
    /// Slots of which every key was looked at and none is big.
    pub small: Small,
    /// How many keys were looked at, one by one.
    pub looked_at: u64,
    /// Why some could not be looked at.
    pub failures: Vec<String>,
}

/// Slots without big keys: how many keys each holds, and how large these are on average.
pub type Small = BTreeMap<u16, (u64, u64)>;

/// How closely slots are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    Counts,
    Sizes,
}

/// The survey of some slots of one node.
#[derive(Debug)]
pub struct Survey {
    depth: Depth,
    max_latency_ms: u64,
    uncounted: VecDeque<u16>,
    unlisted: VecDeque<u16>,
    unsized_keys: VecDeque<(u16, Key)>,
    untyped: VecDeque<(u16, Key, u64)>,
    asked: Asked,
    keys: BTreeMap<u16, u64>,
    /// Of each slot, how many keys were sized, and their bytes together.
    sized: BTreeMap<u16, (u64, u64)>,
    big: Vec<BigKey>,
    listed: u64,
}

/// What the answers that come next are about.
#[derive(Debug)]
enum Asked {
    Nothing,
    Counts(Vec<u16>),
    Lists(Vec<u16>),
    Sizes(Vec<(u16, Key)>),
    Types(Vec<(u16, Key, u64)>),
}

impl Survey {
    #[must_use]
    pub fn new(slots: &SlotSet, depth: Depth, max_latency_ms: u64) -> Self {
        Self {
            depth,
            max_latency_ms,
            uncounted: slots.iter().collect(),
            unlisted: VecDeque::new(),
            unsized_keys: VecDeque::new(),
            untyped: VecDeque::new(),
            asked: Asked::Nothing,
            keys: BTreeMap::new(),
            sized: BTreeMap::new(),
            big: vec![],
            listed: 0,
        }
    }

    /// Whether the number of keys in each slot is known.
    #[must_use]
    pub fn has_counted(&self) -> bool {
        self.uncounted.is_empty()
    }

    /// What to say next; nothing when all is known.
    pub fn ask(&mut self) -> Vec<Saying> {
        if !self.uncounted.is_empty() {
            let slots = first(&mut self.uncounted, COUNTED_AT_ONCE);
            let sayings = slots.iter().map(|slot| Saying::CountKeys { slot: *slot }).collect();
            self.asked = Asked::Counts(slots);
            return sayings;
        }
        if !self.untyped.is_empty() {
            let keys = first(&mut self.untyped, SIZED_AT_ONCE);
            let sayings = keys.iter().map(|(_, key, _)| Saying::TypeOf { key: key.clone() });
            let sayings = sayings.collect();
            self.asked = Asked::Types(keys);
            return sayings;
        }
        if !self.unsized_keys.is_empty() {
            let keys = first(&mut self.unsized_keys, SIZED_AT_ONCE);
            let sayings = keys.iter().map(|(_, key)| Saying::Size { key: key.clone() }).collect();
            self.asked = Asked::Sizes(keys);
            return sayings;
        }
        let (mut slots, mut sayings, mut names) = (vec![], vec![], 0);
        while names < LISTED_AT_ONCE && self.listed < SIZED_AT_MOST {
            let Some(slot) = self.unlisted.pop_front() else { break };
            let count = self.keys.get(&slot).copied().unwrap_or(0).min(LISTED_OF_A_SLOT);
            let at_most = u32::try_from(count.min(SIZED_AT_MOST - self.listed)).unwrap_or(0);
            names += count;
            self.listed += u64::from(at_most);
            slots.push(slot);
            sayings.push(Saying::ListKeys { slot, at_most });
        }
        self.asked = Asked::Lists(slots);
        sayings
    }

    /// Takes the answers in; the error is one that makes it useless to go on.
    pub fn hear(&mut self, answers: Vec<Answer>) -> Result<(), String> {
        let refused = answers.iter().find_map(|answer| match answer {
            Answer::Refused { code, message } => Some(format!("{code} {message}")),
            Answer::Done
            | Answer::Nothing
            | Answer::Number(_)
            | Answer::Keys(_)
            | Answer::Text(_)
            | Answer::Bytes(_)
            | Answer::Jobs(_)
            | Answer::Standing(_) => None,
        });
        match std::mem::replace(&mut self.asked, Asked::Nothing) {
            Asked::Nothing => {}
            Asked::Counts(slots) => self.count(slots, answers),
            Asked::Lists(slots) => {
                for (slot, answer) in slots.into_iter().zip(answers) {
                    let keys = if let Answer::Keys(keys) = answer { keys } else { vec![] };
                    self.unsized_keys.extend(keys.into_iter().map(|key| (slot, key)));
                }
            }
            Asked::Sizes(keys) => {
                for ((slot, key), answer) in keys.into_iter().zip(answers) {
                    let Answer::Number(bytes) = answer else { continue };
                    let (count, sum) = self.sized.entry(slot).or_default();
                    *count += 1;
                    *sum = sum.saturating_add(bytes);
                    // Which type it has is of account only if it could make the key a big one.
                    let worst = predicted_stall_ms(KeyKind::Collection, bytes);
                    if is_big(worst, self.max_latency_ms) {
                        self.untyped.push_back((slot, key, bytes));
                    }
                }
            }
            Asked::Types(keys) => {
                for ((slot, key, bytes), answer) in keys.into_iter().zip(answers) {
                    let Answer::Text(name) = answer else { continue };
                    let expected_ms = predicted_stall_ms(KeyKind::of(&name), bytes);
                    if is_big(expected_ms, self.max_latency_ms) {
                        self.big.push(BigKey { slot, key: key.to_string(), bytes, expected_ms });
                    }
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    fn count(&mut self, slots: Vec<u16>, answers: Vec<Answer>) {
        for (slot, answer) in slots.into_iter().zip(answers) {
            let Answer::Number(count) = answer else { continue };
            self.keys.insert(slot, count);
            if count > 0 && self.depth == Depth::Sizes {
                self.unlisted.push_back(slot);
            }
        }
    }

    /// What is known by now.
    #[must_use]
    pub fn figures(self) -> Figures {
        let looked_at: u64 = self.sized.values().map(|(count, _)| count).sum();
        let sum = self.sized.values().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let mean = |count: u64| {
            u64::try_from(u128::from(sum) * u128::from(count) / u128::from(looked_at.max(1)))
        };
        let bytes = |(slot, count): (&u16, &u64)| {
            let (sized, bytes) = self.sized.get(slot).copied().unwrap_or_default();
            let others = mean(count.saturating_sub(sized)).unwrap_or(u64::MAX);
            (*slot, bytes.saturating_add(others))
        };
        let small = |(slot, (sized, bytes)): (&u16, &(u64, u64))| {
            let whole = self.keys.get(slot) == Some(sized)
                && !self.big.iter().any(|b| b.slot == *slot)
                && !self.untyped.iter().any(|(s, ..)| s == slot);
            whole.then_some((*slot, (*sized, bytes / sized.max(&1))))
        };
        let small = self.sized.iter().filter_map(small).collect();
        let known = looked_at > 0 || self.keys.values().all(|count| *count == 0);
        let bytes = if known { self.keys.iter().map(bytes).collect() } else { BTreeMap::new() };
        Figures { keys: self.keys, bytes, big: self.big, small, looked_at, failures: vec![] }
    }
}

fn first<T>(queue: &mut VecDeque<T>, count: usize) -> Vec<T> {
    queue.drain(..count.min(queue.len())).collect()
}

impl Figures {
    /// Both; the slots of one are none of the other's.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.keys.extend(other.keys);
        self.bytes.extend(other.bytes);
        self.big.extend(other.big);
        self.small.extend(other.small);
        self.looked_at += other.looked_at;
        self.failures.extend(other.failures);
        self
    }

    /// How much these moves are, and how long they are likely to take: pairs without a node in
    /// common go side by side, all others one after the other.
    #[must_use]
    pub fn estimate(&self, moves: &[&MoveSlots]) -> Estimate {
        let slots = moves.iter().fold(SlotSet::empty(), |all, step| all.union(&step.slots));
        let sum = |of: &BTreeMap<u16, u64>| -> Option<u64> {
            slots.iter().map(|slot| of.get(&slot).copied()).sum()
        };
        let mut busy: BTreeMap<&Address, f64> = BTreeMap::new();
        for step in moves {
            let seconds: f64 = step.slots.iter().map(|slot| self.seconds(slot)).sum();
            for end in [&step.from, &step.to] {
                *busy.entry(&end.address).or_default() += seconds;
            }
        }
        let keys = sum(&self.keys);
        let seconds = keys.map(|_| busy.into_values().fold(0.0, f64::max));
        Estimate { seconds, slots: Some(slots.count() as u64), keys, bytes: sum(&self.bytes) }
    }

    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn seconds(&self, slot: u16) -> f64 {
        let stalls = self.big.iter().filter(|b| b.slot == slot).map(|b| b.expected_ms);
        let stalls = stalls.sum::<u64>() as f64 / 1000.0;
        match self.keys.get(&slot).copied().unwrap_or(0) {
            0 => SECONDS_PER_EMPTY_SLOT,
            keys => keys as f64 / KEYS_PER_SECOND + stalls,
        }
    }

    /// What is not known of these moves and would better be.
    #[must_use]
    pub fn warnings(&self, moves: &[&MoveSlots]) -> Vec<Warning> {
        let warning = |code: &str, message| Warning { code: code.to_owned(), message };
        let mut warnings = Vec::new();
        if !self.failures.is_empty() {
            let message = format!(
                "what is in the slots that move is not known in full, so big keys among them may hold their node up unannounced: {}",
                self.failures.join("; ")
            );
            warnings.push(warning("survey_failed", message));
        }
        let slots = moves.iter().flat_map(|step| step.slots.iter());
        let keys: u64 = slots.filter_map(|slot| self.keys.get(&slot)).sum();
        if self.looked_at < keys {
            let message = format!(
                "{} of the {keys} keys that move were looked at: big ones among the others hold their node up unannounced",
                self.looked_at
            );
            warnings.push(warning("big_keys_unsurveyed", message));
        }
        warnings
    }

    /// The bytes of a slot: as surveyed, or its even share of what its node uses.
    #[must_use]
    pub fn bytes_at(&self, slot: u16, node: &Address, seen: &Observation) -> u64 {
        let even = || {
            let report = seen.report(node)?;
            let slots = report.cluster.as_ref()?.my_slots().count() as u64;
            Some(report.memory.used_bytes / slots.max(1))
        };
        self.bytes.get(&slot).copied().or_else(even).unwrap_or(0)
    }

    /// What each target has too little memory for, in words that begin with its address.
    #[must_use]
    pub fn overfull(&self, moves: &[&MoveSlots], seen: &Observation) -> Vec<String> {
        let targets: BTreeSet<&Address> = moves.iter().map(|step| &step.to.address).collect();
        let lacking = |target: &Address| {
            let room = room(target, seen)?;
            let into = moves.iter().filter(|step| step.to.address == *target);
            let bytes =
                into.flat_map(|step| step.slots.iter().map(move |slot| (slot, &step.from.address)));
            let bytes = bytes.map(|(slot, from)| self.bytes_at(slot, from, seen));
            let bytes: u64 = bytes.fold(0, u64::saturating_add);
            (bytes > room).then(|| format!(
                "{target} has room for {room} bytes (five sixths of what maxmemory leaves free), and {bytes} would move to it: raise its maxmemory, or move less to it"
            ))
        };
        targets.into_iter().filter_map(lacking).collect()
    }
}

/// How many bytes of keys a node may take in: what is free, with a fifth more for each byte, since a
/// key takes more while it arrives. Nothing where there is no limit.
#[must_use]
pub fn room(node: &Address, seen: &Observation) -> Option<u64> {
    let memory = &seen.report(node)?.memory;
    let free = memory.max_bytes.saturating_sub(memory.used_bytes);
    (memory.max_bytes > 0).then_some(free / 6 * 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server with keys of some sizes in its slots.
    fn answer(saying: &Saying, keys: &BTreeMap<u16, Vec<(&str, u64)>>) -> Answer {
        let of = |slot: &u16| keys.get(slot).cloned().unwrap_or_default();
        let name = |key: &str| Key(key.as_bytes().to_vec());
        match saying {
            Saying::CountKeys { slot } => Answer::Number(of(slot).len() as u64),
            Saying::ListKeys { slot, at_most } => {
                let keys = of(slot).into_iter().take(*at_most as usize);
                Answer::Keys(keys.map(|(key, _)| name(key)).collect())
            }
            Saying::Size { key } => {
                let mut all = keys.values().flatten();
                all.find(|(k, _)| name(k) == *key)
                    .map_or(Answer::Nothing, |(_, b)| Answer::Number(*b))
            }
            Saying::TypeOf { key } => {
                let text = key.to_string().starts_with("text");
                Answer::Text(if text { "string" } else { "hash" }.to_owned())
            }
            other => panic!("{other:?}"),
        }
    }

    fn surveyed(keys: &BTreeMap<u16, Vec<(&str, u64)>>, rounds: usize) -> Figures {
        let mut survey = Survey::new(&SlotSet::all(), Depth::Sizes, 5);
        for _ in 0..rounds {
            let sayings = survey.ask();
            assert!(sayings.len() <= COUNTED_AT_ONCE);
            if sayings.is_empty() {
                break;
            }
            survey.hear(sayings.iter().map(|s| answer(s, keys)).collect()).unwrap();
        }
        survey.figures()
    }

    #[test]
    fn big_keys_are_found_and_all_is_counted() {
        let keys = BTreeMap::from([
            (7, vec![("hash:1", 1_000_000), ("text:1", 1_000_000), ("small", 100)]),
            (9000, vec![("text:2", 20_000_000)]),
        ]);
        let found = surveyed(&keys, usize::MAX);
        assert_eq!(
            (found.keys[&7], found.keys[&9000], found.keys[&8], found.looked_at),
            (3, 1, 0, 4)
        );
        assert_eq!((found.bytes[&7], found.bytes[&9000]), (2_000_100, 20_000_000));
        let big: Vec<_> =
            found.big.iter().map(|b| (b.slot, b.key.as_str(), b.expected_ms)).collect();
        assert_eq!(big, [(7, "hash:1", 30), (9000, "text:2", 40)]);
    }

    #[test]
    fn what_was_not_reached_is_taken_to_be_like_the_rest() {
        let keys = BTreeMap::from([(1, vec![("a", 10), ("b", 30)]), (2, vec![("c", 1), ("d", 1)])]);
        // Sixteen rounds count, one lists, one sizes.
        assert_eq!(surveyed(&keys, 18).looked_at, 4);
        let counted = surveyed(&keys, 16);
        assert_eq!((counted.keys[&1], counted.bytes.len()), (2, 0), "of no size is nothing known");
        let mut survey = Survey::new(&"1-2".parse().unwrap(), Depth::Sizes, 5);
        let counts = survey.ask();
        survey.hear(counts.iter().map(|s| answer(s, &keys)).collect()).unwrap();
        let lists = survey.ask();
        let Answer::Keys(one) = answer(&lists[0], &keys) else { panic!() };
        survey.hear(vec![Answer::Keys(one), Answer::Keys(vec![])]).unwrap();
        let sizes = survey.ask();
        survey.hear(sizes.iter().map(|s| answer(s, &keys)).collect()).unwrap();
        assert_eq!(survey.figures().bytes, [(1, 40), (2, 40)].into());
    }

    #[test]
    fn a_refusal_ends_it_with_what_is_known() {
        let mut survey = Survey::new(&"1-2".parse().unwrap(), Depth::Sizes, 5);
        survey.ask();
        let refused = Answer::Refused { code: "NOPERM".to_owned(), message: "no".to_owned() };
        let heard = survey.hear(vec![Answer::Number(0), refused]);
        assert_eq!(heard, Err("NOPERM no".to_owned()));
        assert_eq!(survey.figures().keys, [(1, 0)].into());
    }
}
