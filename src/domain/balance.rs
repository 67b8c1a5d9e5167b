//! Who serves which slots, so that all have their share and as little as possible moves.
//!
//! By slots, each shard is to have its weight's share of the 16384, the fractions to the largest
//! remainders; what one has too many goes to those that lack some, in one piece where it can. By
//! keys or bytes, which no choice of slots divides exactly, the heaviest slots that fit go first,
//! so that few move. Either way a shard only gives or only takes.

use std::collections::BTreeMap;

use super::slot::{SLOTS, SlotSet};

/// One shard as it stands, and its part of the whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Stake {
    pub slots: SlotSet,
    /// Finite and not negative. Whoever has 0 ends empty.
    pub weight: f64,
}

/// What is to be even.
#[derive(Debug, Clone, Copy)]
pub enum Cost<'a> {
    Slots,
    /// Of each slot; of those that are left out, nothing.
    Of(&'a BTreeMap<u16, u64>),
}

impl Cost<'_> {
    fn of(&self, slot: u16) -> u64 {
        match self {
            Self::Slots => 1,
            Self::Of(costs) => costs.get(&slot).copied().unwrap_or(0),
        }
    }

    fn sum(&self, slots: &SlotSet) -> u64 {
        match self {
            Self::Slots => slots.count() as u64,
            Self::Of(_) => slots.iter().map(|slot| self.of(slot)).sum(),
        }
    }
}

/// What each shard is to serve, so that the shares fit the weights. Where no shard deviates from its
/// share by more than `threshold_percent`, nothing moves.
#[must_use]
pub fn balanced(stakes: &[Stake], cost: Cost, threshold_percent: u32) -> Vec<SlotSet> {
    let total: u64 = stakes.iter().map(|s| cost.sum(&s.slots)).sum();
    // Where there is nothing to weigh, slots are.
    let cost = if total == 0 { Cost::Slots } else { cost };
    let before: Vec<SlotSet> = stakes.iter().map(|s| s.slots.clone()).collect();
    let held: Vec<u64> = before.iter().map(|slots| cost.sum(slots)).collect();
    let quotas = quotas(stakes, held.iter().sum());
    let limit = f64::from(threshold_percent) / 100.0;
    let far = |(held, quota): (&u64, &f64)| (as_f64(*held) - quota).abs() > quota * limit;
    let stays = |s: &Stake| s.weight <= 0.0 && !s.slots.is_empty();
    if !held.iter().zip(&quotas).any(far) && !stakes.iter().any(stays) {
        return before;
    }
    match cost {
        Cost::Slots => handed_over(before, &whole(&quotas, &held)),
        Cost::Of(_) => by_cost(before, stakes, &quotas, cost),
    }
}

/// What each of these serves, and then each of `more` that come, where these give them equal shares.
/// Of these none takes anything.
#[must_use]
pub fn grown(before: &[SlotSet], more: usize) -> Vec<SlotSet> {
    let (old, parts) = (before.len(), before.len() + more);
    let all = before.iter().map(SlotSet::count).sum::<usize>();
    let (each, over) = (all / parts.max(1), all % parts.max(1));
    // Whoever has more than its share already keeps one of what is left over.
    let comers: Vec<usize> = (0..more).map(|i| each + usize::from(i + old < over)).collect();
    let held: Vec<usize> = before.iter().map(SlotSet::count).collect();
    let mut targets = levelled(&held, comers.iter().sum());
    targets.extend(comers);
    let slots = before.iter().cloned().chain((0..more).map(|_| SlotSet::empty()));
    handed_over(slots.collect(), &targets)
}

/// One that can take slots in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taker {
    pub slots: SlotSet,
    /// How many bytes it has room for; nothing where it has no limit.
    pub room: Option<u64>,
}

/// More bytes than there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom {
    pub needed: u64,
    pub room: u64,
}

/// What each of these serves when they have taken in all of `going` in equal shares; whoever has no
/// room for its share gets less. `bytes` are those of a slot.
pub fn spread(
    going: &SlotSet,
    takers: &[Taker],
    bytes: impl Fn(u16) -> u64,
) -> Result<Vec<SlotSet>, NoRoom> {
    let mut rooms: Vec<u64> = takers.iter().map(|t| t.room.unwrap_or(u64::MAX)).collect();
    let mut taken: Vec<Vec<u16>> = vec![vec![]; takers.len()];
    let (each, over) = match takers.len() {
        0 => (0, 0),
        n => (going.count() / n, going.count() % n),
    };
    let mut slots = going.iter().peekable();
    for (i, (room, taken)) in rooms.iter_mut().zip(&mut taken).enumerate() {
        let share = each + usize::from(i < over);
        while let Some(slot) = slots.next_if(|s| taken.len() < share && bytes(*s) <= *room) {
            *room -= bytes(slot);
            taken.push(slot);
        }
    }
    // What did not fit goes wherever it fits, the heaviest first.
    let mut rest: Vec<u16> = slots.collect();
    rest.sort_by_key(|slot| (std::cmp::Reverse(bytes(*slot)), *slot));
    for slot in rest {
        let fits = (0..rooms.len()).filter(|i| bytes(slot) <= rooms[*i]);
        let Some(at) = fits.min_by_key(|i| (taken[*i].len(), std::cmp::Reverse(rooms[*i]))) else {
            let needed = going.iter().map(&bytes).fold(0, u64::saturating_add);
            let rooms = takers.iter().map(|t| t.room.unwrap_or(u64::MAX));
            return Err(NoRoom { needed, room: rooms.fold(0, u64::saturating_add) });
        };
        rooms[at] -= bytes(slot);
        taken[at].push(slot);
    }
    let with = |(taker, taken): (&Taker, Vec<u16>)| taker.slots.union(&taken.into_iter().collect());
    Ok(takers.iter().zip(taken).map(with).collect())
}

/// Each one's part of `total` by its weight.
fn quotas(stakes: &[Stake], total: u64) -> Vec<f64> {
    let weights: f64 = stakes.iter().map(|s| s.weight).sum();
    // Without any weight nobody could have anything: then all are alike.
    let part = |s: &Stake| {
        if weights > 0.0 { s.weight / weights } else { 1.0 / as_f64(stakes.len() as u64) }
    };
    stakes.iter().map(|s| as_f64(total) * part(s)).collect()
}

/// The quotas as whole slots: the largest remainders are rounded up, and of equal ones those of
/// shards that would have to give one more away otherwise.
fn whole(quotas: &[f64], held: &[u64]) -> Vec<usize> {
    let mut targets: Vec<usize> = quotas.iter().map(|q| floor(*q)).collect();
    let left = usize::from(SLOTS).saturating_sub(targets.iter().sum());
    let mut order: Vec<usize> = (0..quotas.len()).filter(|i| quotas[*i] > 0.0).collect();
    order.sort_by(|a, b| {
        let rest = |i: usize| quotas[i] - as_f64(targets[i] as u64);
        let surplus = |i: usize| held[i].saturating_sub(targets[i] as u64);
        rest(*b).total_cmp(&rest(*a)).then(surplus(*b).cmp(&surplus(*a)))
    });
    for i in order.into_iter().cycle().take(left) {
        targets[i] += 1;
    }
    targets
}

/// What is left to each when together they give `taken` away, those with most the most.
fn levelled(held: &[usize], taken: usize) -> Vec<usize> {
    let over = |level: usize| held.iter().map(|h| h.saturating_sub(level)).sum::<usize>();
    let all = 0..=usize::from(SLOTS);
    // The least level above which there is no more than what is to be taken.
    let levels: Vec<usize> = all.collect();
    let level = levels.partition_point(|level| over(*level) > taken);
    let mut short = taken.saturating_sub(over(level));
    let lowered = |h: &usize| {
        let left = (*h).min(level);
        let gives = usize::from(short > 0 && left == level && left > 0);
        short -= gives;
        left - gives
    };
    held.iter().map(lowered).collect()
}

/// Slots go from those with more than their target to those with less, the largest amounts first, so
/// that there are few pairs; always the highest of the giver's, so that ranges stay whole.
fn handed_over(mut slots: Vec<SlotSet>, targets: &[usize]) -> Vec<SlotSet> {
    let mut givers = Vec::new();
    let mut takers = Vec::new();
    for (i, (slots, target)) in slots.iter().zip(targets).enumerate() {
        let held = slots.count();
        if held > *target {
            givers.push((i, held - target));
        } else if held < *target {
            takers.push((i, target - held));
        }
    }
    givers.sort_by_key(|(i, amount)| (std::cmp::Reverse(*amount), *i));
    takers.sort_by_key(|(i, amount)| (std::cmp::Reverse(*amount), *i));
    let mut takers = takers.into_iter();
    let mut taker = takers.next();
    for (from, mut surplus) in givers {
        while let Some((to, lacks)) = taker.filter(|_| surplus > 0) {
            let moved = slots[from].highest(surplus.min(lacks));
            let count = moved.count();
            slots[from] = slots[from].difference(&moved);
            slots[to] = slots[to].union(&moved);
            surplus -= count;
            taker = if lacks > count { Some((to, lacks - count)) } else { takers.next() };
        }
    }
    slots
}

/// From each that has more than its quota the heaviest slots go that neither end is worse off for.
fn by_cost(before: Vec<SlotSet>, stakes: &[Stake], quotas: &[f64], cost: Cost) -> Vec<SlotSet> {
    let mut slots: Vec<Vec<u16>> = before.iter().map(|s| s.iter().collect()).collect();
    let held: Vec<f64> = before.iter().map(|s| as_f64(cost.sum(s))).collect();
    let mut lacks: Vec<f64> = quotas.iter().zip(&held).map(|(quota, held)| quota - held).collect();
    let empties = |i: usize| stakes[i].weight <= 0.0;
    let mut givers: Vec<usize> =
        (0..stakes.len()).filter(|i| lacks[*i] < 0.0 || empties(*i)).collect();
    givers.sort_by(|a, b| lacks[*a].total_cmp(&lacks[*b]).then(a.cmp(b)));
    let takers: Vec<usize> = (0..stakes.len()).filter(|i| !givers.contains(i)).collect();
    for from in givers {
        let mut heaviest: Vec<u16> = before[from].iter().collect();
        heaviest.sort_by_key(|slot| std::cmp::Reverse((cost.of(*slot), *slot)));
        let mut kept = Vec::new();
        for slot in heaviest {
            let weight = as_f64(cost.of(slot));
            let most = |a: &&usize, b: &&usize| lacks[**a].total_cmp(&lacks[**b]).then(b.cmp(a));
            let fewest = |i: &&usize| (slots[**i].len(), **i);
            let to = match weight > 0.0 {
                true => takers.iter().max_by(most),
                false => takers.iter().min_by_key(fewest),
            };
            let fits = |to: usize| weight > 0.0 && weight <= -lacks[from] && weight <= lacks[to];
            match to.copied().filter(|to| empties(from) || fits(*to)) {
                Some(to) => {
                    lacks[from] += weight;
                    lacks[to] -= weight;
                    slots[to].push(slot);
                }
                None => kept.push(slot),
            }
        }
        slots[from] = kept;
    }
    slots.into_iter().map(|slots| slots.into_iter().collect()).collect()
}

/// Rounding is of no account here: what is counted stays far below 2^53.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts of keys and bytes are shares, not sums of money"
)]
fn as_f64(n: u64) -> f64 {
    n as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a quota is between 0 and 16384"
)]
fn floor(quota: f64) -> usize {
    quota.clamp(0.0, f64::from(SLOTS)).floor() as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(slots: &[SlotSet]) -> Vec<usize> {
        slots.iter().map(SlotSet::count).collect()
    }

    fn stakes(slots: &[SlotSet], weights: &[f64]) -> Vec<Stake> {
        let weights = weights.iter().copied().chain(std::iter::repeat(1.0));
        slots.iter().cloned().zip(weights).map(|(slots, weight)| Stake { slots, weight }).collect()
    }

    /// All slots, dealt to some shards in ranges; some may have none.
    fn dealt() -> impl Strategy<Value = Vec<SlotSet>> {
        let cuts = prop::collection::vec((0..SLOTS, 0..9usize), 1..24);
        (1..9usize, cuts).prop_map(|(shards, mut cuts)| {
            cuts.sort_unstable();
            let mut owners = vec![0; usize::from(SLOTS)];
            for (from, owner) in cuts {
                owners[usize::from(from)..].fill(owner % shards);
            }
            let of = |shard| (0..SLOTS).filter(|s| owners[usize::from(*s)] == shard).collect();
            (0..shards).map(of).collect()
        })
    }

    fn weights() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec((0..4u32).prop_map(f64::from), 9)
    }

    /// Nothing is lost or doubled, and whoever gives does not take.
    fn is_sound(before: &[SlotSet], after: &[SlotSet]) -> Result<(), TestCaseError> {
        prop_assert_eq!(before.len(), after.len());
        prop_assert_eq!(counts(after).iter().sum::<usize>(), usize::from(SLOTS));
        let all = after.iter().fold(SlotSet::empty(), |all, s| all.union(s));
        prop_assert_eq!(all, SlotSet::all());
        for (old, new) in before.iter().zip(after) {
            prop_assert!(old.difference(new).is_empty() || new.difference(old).is_empty());
        }
        Ok(())
    }

    fn moved(before: &[SlotSet], after: &[SlotSet]) -> usize {
        before.iter().zip(after).map(|(old, new)| old.difference(new).count()).sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn equal_shares_take_the_fewest_moves(before in dealt()) {
            let after = balanced(&stakes(&before, &[]), Cost::Slots, 0);
            is_sound(&before, &after)?;
            let (least, most) = (counts(&after).into_iter().min(), counts(&after).into_iter().max());
            prop_assert!(most.unwrap() - least.unwrap() <= 1);
            // With so many shards of `each + 1`: those that have most now.
            let (each, over) = (usize::from(SLOTS) / before.len(), usize::from(SLOTS) % before.len());
            let mut held = counts(&before);
            held.sort_unstable_by_key(|held| std::cmp::Reverse(*held));
            let keep = |(i, held): (usize, &usize)| (*held).min(each + usize::from(i < over));
            let kept: usize = held.iter().enumerate().map(keep).sum();
            prop_assert_eq!(moved(&before, &after), usize::from(SLOTS) - kept);
            prop_assert_eq!(balanced(&stakes(&after, &[]), Cost::Slots, 0), after);
        }

        #[test]
        fn weighted_shares_are_within_one_of_their_quota(before in dealt(), weights in weights()) {
            let all = stakes(&before, &weights);
            prop_assume!(all.iter().any(|s| s.weight > 0.0));
            let after = balanced(&all, Cost::Slots, 0);
            is_sound(&before, &after)?;
            for (quota, (stake, slots)) in quotas(&all, u64::from(SLOTS)).iter().zip(all.iter().zip(&after)) {
                prop_assert!((quota - as_f64(slots.count() as u64)).abs() < 1.0);
                prop_assert!(stake.weight > 0.0 || slots.is_empty());
            }
        }

        #[test]
        fn by_cost_nobody_is_worse_off(
            before in dealt(), weights in weights(), seed in any::<u64>(), heaviest in 0u64..1000,
        ) {
            let mut state = seed | 1;
            let mut dice = || { state ^= state << 13; state ^= state >> 7; state ^= state << 17; state };
            let costs: BTreeMap<u16, u64> = (0..SLOTS).map(|s| (s, dice() % (heaviest + 1))).collect();
            let all = stakes(&before, &weights);
            prop_assume!(all.iter().any(|s| s.weight > 0.0));
            let cost = Cost::Of(&costs);
            let after = balanced(&all, cost, 0);
            is_sound(&before, &after)?;
            let total = costs.values().sum();
            prop_assume!(total > 0);
            let emptied = all.iter().any(|s| s.weight <= 0.0 && !s.slots.is_empty());
            let far = |slots: &SlotSet, quota: f64| (as_f64(cost.sum(slots)) - quota).abs();
            for (quota, (stake, slots)) in quotas(&all, total).iter().zip(all.iter().zip(&after)) {
                prop_assert!(stake.weight > 0.0 || slots.is_empty());
                // A shard that is emptied may leave the others with one slot too much.
                let most = far(&stake.slots, *quota) + if emptied { as_f64(heaviest) } else { 0.0 };
                prop_assert!(far(slots, *quota) <= most);
            }
        }

        #[test]
        fn small_deviations_move_nothing(before in dealt(), threshold in 0u32..100) {
            let after = balanced(&stakes(&before, &[]), Cost::Slots, threshold);
            let share = f64::from(SLOTS) / as_f64(before.len() as u64);
            let far = |s: &SlotSet| (as_f64(s.count() as u64) - share).abs() > share * f64::from(threshold) / 100.0;
            if !before.iter().any(far) {
                prop_assert_eq!(before, after);
            } else {
                let even = counts(&after);
                prop_assert!(even.iter().max().unwrap() - even.iter().min().unwrap() <= 1);
            }
        }

        #[test]
        fn newcomers_get_their_share_and_nobody_else_does(before in dealt(), more in 1usize..5) {
            let after = grown(&before, more);
            let empty = std::iter::repeat_n(SlotSet::empty(), more);
            let padded: Vec<SlotSet> = before.iter().cloned().chain(empty).collect();
            is_sound(&padded, &after)?;
            let each = usize::from(SLOTS) / after.len();
            for (i, slots) in after.iter().enumerate() {
                if i >= before.len() {
                    prop_assert!([each, each + 1].contains(&slots.count()));
                } else {
                    prop_assert!(slots.difference(&before[i]).is_empty());
                }
            }
            // From equal shares equal ones come about.
            let even = grown(&SlotSet::shares(before.len()), more);
            prop_assert!(counts(&even).iter().max().unwrap() - counts(&even).iter().min().unwrap() <= 1);
        }

        #[test]
        fn what_goes_is_taken_by_those_who_have_room(
            before in dealt(), rooms in prop::collection::vec(prop::option::of(0u64..40_000), 9), heaviest in 0u64..9,
        ) {
            prop_assume!(before.len() > 1);
            let (going, stay) = before.split_first().unwrap();
            let takers: Vec<Taker> = stay.iter().zip(rooms)
                .map(|(slots, room)| Taker { slots: slots.clone(), room }).collect();
            let bytes = |slot: u16| u64::from(slot) * 31 % (heaviest + 1);
            let sum = |slots: &SlotSet| slots.iter().map(bytes).sum::<u64>();
            match spread(going, &takers, bytes) {
                Ok(after) => {
                    let all: Vec<SlotSet> = [vec![SlotSet::empty()], after.clone()].concat();
                    is_sound(&before, &all)?;
                    for (taker, slots) in takers.iter().zip(&after) {
                        let takes = sum(&slots.difference(&taker.slots));
                        prop_assert!(taker.room.is_none_or(|room| takes <= room));
                    }
                    if takers.iter().all(|t| t.room.is_none_or(|room| sum(going) <= room)) {
                        let taken: Vec<usize> = takers.iter().zip(&after)
                            .map(|(t, slots)| slots.count() - t.slots.count()).collect();
                        prop_assert!(taken.iter().max().unwrap() - taken.iter().min().unwrap() <= 1);
                    }
                }
                Err(NoRoom { needed, room }) => {
                    prop_assert_eq!(needed, sum(going));
                    // Some slot fits nowhere: what is left of each room is less than it.
                    prop_assert!(room < needed + heaviest * takers.len() as u64);
                }
            }
        }
    }

    #[test]
    fn ranges_stay_whole() {
        let text = |slots: Vec<SlotSet>| slots.iter().map(SlotSet::to_string).collect::<Vec<_>>();
        let four = grown(&SlotSet::shares(3), 1);
        assert_eq!(
            text(four.clone()),
            ["0-4095", "5461-9556", "10922-15017", "4096-5460,9557-10921,15018-16383"]
        );
        let takers: Vec<Taker> =
            four[..3].iter().map(|s| Taker { slots: s.clone(), room: None }).collect();
        let three = spread(&four[3], &takers, |_| 1).unwrap();
        assert_eq!(counts(&three), [5462, 5461, 5461]);
        let six = grown(&SlotSet::shares(3), 3);
        assert!(six.iter().all(|s| s.ranges().len() <= 2), "{six:?}");
    }

    #[test]
    fn one_heavy_slot_does_not_go_back_and_forth() {
        let before = SlotSet::shares(2);
        let costs = BTreeMap::from([(0, 1000)]);
        let after = balanced(&stakes(&before, &[]), Cost::Of(&costs), 2);
        assert_eq!(after, before);
    }
}
