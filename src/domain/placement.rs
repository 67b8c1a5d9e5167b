//! Which node plays which part: a pure function from the nodes at hand to shards, spread over
//! zones and hosts so that one failure takes as little as possible.
//!
//! A layout is judged by a [`Score`], compared from left to right. First comes safety, for each of
//! what `placement.spread` names in its order: no domain (a zone or a host) holds half of the
//! primaries, no replica is in its primary's domain, no two replicas of a shard are in one. Then
//! comes evenness: of primaries, and of the load after the loss of any one domain.
//!
//! Three stages make the layout. Primaries are dealt one by one, each to the domain where it costs
//! least; these costs are convex, so dealing greedily is optimal for the first domains in `spread`.
//! Replicas are dealt from the domains with most nodes left. Swaps then improve the score until
//! none does, or until an effort that depends on the number of nodes alone is spent. In a new
//! layout, on what `spread` names first, the first two goals are reached whenever any layout
//! reaches both: with primaries dealt within Hall's condition, a replica in its primary's domain
//! can always be swapped away. The rest is as good as the search finds it.
//!
//! What a previous layout says stays: a member stays in its shard, and its first member stays the
//! first. Nothing depends on the order in which nodes are listed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::balance::{Taker, grown, spread};
use super::id::{ShardId, TopologyId};
use super::node::Address;
use super::refusal::{FieldError, Refusal};
use super::slot::SlotSet;
use super::spec::{ClusterOverrides, NodeSpec, PlacementSpec, ShardOverride, Spec, Spread};
use super::topology::{Shard, Shards, ShardsError};

/// What is to be placed.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub topology: TopologyId,
    pub nodes: &'a [NodeSpec],
    pub shards: u16,
    /// Of each shard.
    pub replicas: u16,
    /// Shards of the previous layout that are to have another number.
    pub overrides: &'a ClusterOverrides,
    pub placement: &'a PlacementSpec,
    pub previous: Option<&'a Shards>,
}

/// A layout, and what to know about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    pub shards: Shards,
    /// Who should start as primary, by shard: its first member.
    pub primaries: BTreeMap<ShardId, Address>,
    /// Nodes without a part, in address order.
    pub spares: Vec<Address>,
    pub warnings: Vec<Warning>,
}

/// Something that is not wrong but should be known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Warning {
    /// For programs, for example `replica_shares_zone_with_primary`.
    pub code: String,
    pub message: String,
}

/// Gives every shard its members.
pub fn place(request: &Request) -> Result<Placed, Refusal> {
    let mut ground = Ground::survey(request)?;
    let seeds = ground.seeds(request);
    ground.refuse_unknown(request, &seeds)?;
    ground.sizes = seeds.iter().map(|seed| seed.size).collect();
    let mut board = Board::deal(&ground, &seeds);
    board.improve();
    let lacks: Vec<Lack> = ground
        .levels
        .iter()
        .flat_map(|level| board.lacks(level, request.previous.is_some()))
        .collect();
    if request.placement.strict && !lacks.is_empty() {
        return Err(Refusal::Placement(ground.errors(request, &lacks)));
    }
    board.placed(seeds, lacks.iter().map(Lack::warning).collect())
}

/// Gives the one shard of a spec without slots its members; those of `previous` keep their parts.
pub fn place_lone(
    topology: TopologyId,
    spec: &Spec,
    nodes: &[NodeSpec],
    previous: Option<&Shard>,
) -> Result<PlacedLone, Refusal> {
    let broken =
        |why: ShardsError| Refusal::Invalid(vec![FieldError::new("/spec/nodes", why.to_string())]);
    // To placement it is a shard like any other, with all the slots.
    let whole = |shard: &Shard| Shards::new(vec![(shard.clone(), SlotSet::all())]);
    let previous = previous.map(whole).transpose().map_err(broken)?;
    let placed = place(&Request {
        topology,
        nodes,
        shards: 1,
        replicas: spec.lone_replicas().unwrap_or(0),
        overrides: &ClusterOverrides::default(),
        placement: spec.placement(),
        previous: previous.as_ref(),
    })?;
    let shard = placed.shards.as_slice().first().map(|(shard, _)| shard.clone());
    let shard = shard.ok_or(ShardsError::EmptyShard).map_err(broken)?;
    Ok(PlacedLone { shard, warnings: placed.warnings })
}

/// A lone shard, whose first member should start as primary.
#[derive(Debug, Clone, PartialEq)]
pub struct PlacedLone {
    pub shard: Shard,
    pub warnings: Vec<Warning>,
}

/// The nodes in address order, and what they are spread over. Everything below calls a node by its
/// position here.
struct Ground<'a> {
    nodes: Vec<&'a NodeSpec>,
    levels: Vec<Level<'a>>,
    shards: usize,
    /// Of each shard that does not deviate.
    members: usize,
    /// The members of each shard.
    sizes: Vec<usize>,
}

/// Zones or hosts: the domains that fail together.
struct Level<'a> {
    over: Spread,
    names: Vec<&'a str>,
    /// The domain of each node.
    of: Vec<usize>,
    /// The nodes in each domain.
    size: Vec<i64>,
    /// Most primaries in one domain that leave a majority elsewhere. Two shards or one have no
    /// majority to save.
    cap: i64,
}

/// A shard before it is filled.
struct Seed {
    id: ShardId,
    index: u16,
    /// How many members it is to have.
    size: usize,
    slots: SlotSet,
    /// Members that stay, in their previous order.
    stay: Vec<usize>,
    /// Whether the first of them was the first before, and so stays primary.
    led: bool,
    previous: Vec<Address>,
}

impl<'a> Ground<'a> {
    fn survey(request: &Request<'a>) -> Result<Self, Refusal> {
        let invalid = |pointer: &str, detail: String| {
            Err(Refusal::Invalid(vec![FieldError::new(pointer, detail)]))
        };
        let (shards, members) = (usize::from(request.shards), usize::from(request.replicas) + 1);
        let by_address: BTreeMap<_, _> = request.nodes.iter().map(|n| (&n.address, n)).collect();
        let nodes: Vec<_> = by_address.into_values().collect();
        if shards == 0 {
            return invalid("/spec/shards", "a topology has at least one shard".into());
        }
        let deviating = &request.overrides.shards;
        let needed = shards.saturating_sub(deviating.len()) * members
            + deviating.iter().map(|o| usize::from(o.replicas) + 1).sum::<usize>();
        if nodes.len() < needed {
            let detail = format!(
                "{} with {} each{} need {needed} nodes, {} are given; add {} or ask for fewer",
                count(shards, "shard"),
                count(members - 1, "replica"),
                if deviating.is_empty() { "" } else { " (but for the overrides)" },
                nodes.len(),
                needed - nodes.len()
            );
            return invalid("/spec/nodes", detail);
        }
        let mut levels: Vec<Level> = Vec::new();
        for &over in &request.placement.spread {
            if levels.iter().all(|level| level.over != over) {
                levels.push(Level::survey(over, &nodes, shards));
            }
        }
        Ok(Self { nodes, levels, shards, members, sizes: vec![] })
    }

    fn refuse_unknown(&self, request: &Request, seeds: &[Seed]) -> Result<(), Refusal> {
        let unknown = |(i, deviating): (usize, &ShardOverride)| {
            let known = seeds.iter().any(|seed| seed.id == deviating.shard);
            let pointer = format!("/spec/overrides/shards/{i}/shard");
            let detail = format!("there is no shard {}; take this override out", deviating.shard);
            (!known).then(|| FieldError::new(pointer, detail))
        };
        let listed = request.overrides.shards.iter().enumerate();
        let errors: Vec<_> = listed.filter_map(unknown).collect();
        if errors.is_empty() { Ok(()) } else { Err(Refusal::Invalid(errors)) }
    }

    /// The shards to be: those that stay, in their order, and new ones after them. Where there are
    /// too many, shards that lost all their members go first, then the last.
    fn seeds(&self, request: &Request) -> Vec<Seed> {
        let position: BTreeMap<_, _> =
            self.nodes.iter().enumerate().map(|(i, n)| (&n.address, i)).collect();
        let size = |id: ShardId| {
            request.overrides.replicas_of(id).map_or(self.members, |r| usize::from(r) + 1)
        };
        let mut old: Vec<Seed> = Vec::new();
        for (shard, slots) in request.previous.into_iter().flatten() {
            let stay = shard.members.iter().filter_map(|m| position.get(m).copied()).collect();
            let led = shard.members.first().is_some_and(|m| position.contains_key(m));
            let (id, index, slots) = (shard.id, shard.index, slots.clone());
            let size = size(id);
            old.push(Seed { id, index, size, slots, stay, led, previous: shard.members.clone() });
        }
        let mut going = SlotSet::empty();
        while old.len() > self.shards {
            let emptied = old.iter().rposition(|seed| seed.stay.is_empty());
            going = going.union(&old.remove(emptied.unwrap_or(old.len() - 1)).slots);
        }
        let mut used: BTreeSet<ShardId> = old.iter().map(|seed| seed.id).collect();
        let mut fresh = (0..).map(|ordinal| ShardId::derive(request.topology, ordinal));
        let (kept, mut next) =
            (old.len(), old.iter().map(|s| s.index.saturating_add(1)).max().unwrap_or(0));
        while old.len() < self.shards {
            let Some(id) = fresh.find(|id| used.insert(*id)) else { break };
            let (slots, index) = (SlotSet::empty(), next);
            next = next.saturating_add(1);
            let (stay, previous, size) = (vec![], vec![], size(id));
            old.push(Seed { id, index, size, slots, stay, led: false, previous });
        }
        let slots = self.slots(&old[..kept], &going);
        old.iter_mut().zip(slots).for_each(|(seed, slots)| seed.slots = slots);
        for seed in &mut old {
            self.trim(&mut seed.stay, seed.size);
        }
        old
    }

    /// What each shard serves: as it did, but for what shards that go leave to the others, or what
    /// new ones get from them.
    fn slots(&self, kept: &[Seed], going: &SlotSet) -> Vec<SlotSet> {
        let held: Vec<SlotSet> = kept.iter().map(|seed| seed.slots.clone()).collect();
        if held.is_empty() {
            return SlotSet::shares(self.shards);
        }
        let takers: Vec<Taker> =
            held.iter().map(|slots| Taker { slots: slots.clone(), room: None }).collect();
        // Without limits there is always room.
        let held = spread(going, &takers, |_| 0).unwrap_or(held);
        grown(&held, self.shards - kept.len())
    }

    /// Keeps of a shard with too many members the first, and those that share least.
    fn trim(&self, stay: &mut Vec<usize>, members: usize) {
        if stay.len() <= members {
            return;
        }
        let mut kept = vec![stay[0]];
        while kept.len() < members {
            let shared = |node: usize| -> Vec<(bool, usize)> {
                let same = |level: &Level, other: usize| level.of[node] == level.of[other];
                let each = self.levels.iter();
                each.map(|l| (same(l, kept[0]), kept[1..].iter().filter(|k| same(l, **k)).count()))
                    .collect()
            };
            let rest = stay.iter().copied().filter(|node| !kept.contains(node));
            let Some(next) = rest.min_by_key(|&node| shared(node)) else { break };
            kept.push(next);
        }
        stay.retain(|node| kept.contains(node));
    }

    /// The problems, each at the node that the request lists where it is about one.
    fn errors(&self, request: &Request, lacks: &[Lack]) -> Vec<FieldError> {
        let listed: BTreeMap<_, _> =
            request.nodes.iter().enumerate().map(|(i, n)| (&n.address, i)).collect();
        let mut errors = Vec::new();
        for lack in lacks {
            for (node, what) in &lack.cases {
                let at = node.and_then(|node| listed.get(&self.nodes[node].address));
                let pointer = at.map_or("/spec/nodes".into(), |i| format!("/spec/nodes/{i}"));
                errors.push(FieldError::new(pointer, format!("{what}; {}", lack.cure)));
            }
        }
        errors
    }
}

impl<'a> Level<'a> {
    fn survey(over: Spread, nodes: &[&'a NodeSpec], shards: usize) -> Self {
        let name = |node: &&'a NodeSpec| match over {
            Spread::Zone => node.zone.as_str(),
            Spread::Host => node.machine(),
        };
        let names: Vec<&str> =
            nodes.iter().map(name).collect::<BTreeSet<_>>().into_iter().collect();
        let of: Vec<usize> =
            nodes.iter().map(|node| names.partition_point(|known| *known < name(node))).collect();
        let mut size = vec![0; names.len()];
        for &domain in &of {
            size[domain] += 1;
        }
        let cap = if shards < 3 { i64::MAX } else { int((shards - 1) / 2) };
        Self { over, names, of, size, cap }
    }

    fn word(&self) -> &'static str {
        match self.over {
            Spread::Zone => "zone",
            Spread::Host => "host",
        }
    }

    /// How many primaries one domain has too many.
    fn excess(&self, primaries: i64) -> i64 {
        primaries.saturating_sub(self.cap).max(0)
    }
}

/// What is bad about a layout, compared from left to right: three terms of safety for each level,
/// then the unevenness of primaries on each, then that of the load after a loss on each. A level
/// that is not spread over counts nothing.
type Score = [i64; 10];

const HALF: usize = 0;
const WITH_PRIMARY: usize = 1;
const AMONG_REPLICAS: usize = 2;
const SAFETY_TERMS: usize = 3;
const UNEVEN: usize = 6;
const AFTER_LOSS: usize = 8;

/// Who sits where: the members of each shard from its start onward, its primary first; the spares
/// after all shards.
struct Board<'a> {
    ground: &'a Ground<'a>,
    seats: Vec<usize>,
    /// The first seat of each shard, and of the spares.
    starts: Vec<usize>,
    /// The shard that each seat belongs to; spares have the number after the last shard.
    shard_at: Vec<usize>,
    /// The shard in which a node must stay.
    home: Vec<Option<usize>>,
    /// Whether a shard's primary is settled.
    led: Vec<bool>,
    /// Whether somebody stays in a shard, who then is its primary: who is new has no data.
    settled: Vec<bool>,
    tallies: Vec<Tally>,
    score: Score,
    effort: usize,
}

/// What the score counts on one level, kept while seats change.
struct Tally {
    /// The primaries in each domain.
    primaries: Vec<i64>,
    /// The replicas in each domain whose primary is elsewhere.
    guests: Vec<i64>,
    /// The same by the primary's domain: at `primary's * domains + replica's`.
    flows: Vec<i32>,
    /// Scratch, all zero between uses.
    seen: Vec<i64>,
}

impl Tally {
    fn new(domains: usize) -> Self {
        let none = || vec![0; domains];
        Self { primaries: none(), guests: none(), flows: vec![0; domains * domains], seen: none() }
    }

    /// Replicas in their primary's domain, and pairs of replicas in one domain.
    fn shared(&mut self, of: &[usize], shard: &[usize]) -> (i64, i64) {
        let [primary, replicas @ ..] = shard else { return (0, 0) };
        let (mut with_primary, mut among) = (0, 0);
        for replica in replicas {
            with_primary += i64::from(of[*replica] == of[*primary]);
            among += self.seen[of[*replica]];
            self.seen[of[*replica]] += 1;
        }
        for replica in replicas {
            self.seen[of[*replica]] = 0;
        }
        (with_primary, among)
    }
}

impl<'a> Board<'a> {
    /// Seats everybody, greedily.
    fn deal(ground: &'a Ground<'a>, seeds: &[Seed]) -> Self {
        let nodes = ground.nodes.len();
        let mut home = vec![None; nodes];
        for (s, seed) in seeds.iter().enumerate() {
            for &node in &seed.stay {
                home[node] = Some(s);
            }
        }
        let mut free: Vec<bool> = home.iter().map(Option::is_none).collect();
        let mut shards = deal_primaries(ground, seeds, &mut free);
        deal_replicas(ground, &mut shards, &mut free);
        let spares = (0..nodes).filter(|&node| free[node]);
        let mut starts = vec![0];
        starts.extend(ground.sizes.iter().scan(0, |seat, size| {
            *seat += size;
            Some(*seat)
        }));
        let shard_at = |seat| starts[1..].partition_point(|start| *start <= seat);
        let mut board = Self {
            ground,
            seats: shards.into_iter().flatten().chain(spares).collect(),
            shard_at: (0..nodes).map(shard_at).collect(),
            starts,
            home,
            led: seeds.iter().map(|seed| seed.led).collect(),
            settled: seeds.iter().map(|seed| !seed.stay.is_empty()).collect(),
            tallies: ground.levels.iter().map(|level| Tally::new(level.names.len())).collect(),
            score: [0; 10],
            effort: 8_000 + 300 * nodes,
        };
        for shard in 0..ground.shards {
            board.count(shard, 1);
        }
        board
    }

    fn shard(&self, shard: usize) -> &[usize] {
        &self.seats[self.starts[shard]..self.starts[shard + 1]]
    }

    /// Whether a seat is a primary's.
    fn is_first(&self, seat: usize) -> bool {
        self.starts[self.shard_at[seat]] == seat && seat < self.seated()
    }

    /// Adds what a shard contributes to the score, or takes it away (`sign` -1).
    fn count(&mut self, shard: usize, sign: i64) {
        let replicas = int(self.ground.members - 1);
        let shard = &self.seats[self.starts[shard]..self.starts[shard + 1]];
        for (l, (level, tally)) in self.ground.levels.iter().zip(&mut self.tallies).enumerate() {
            let (with_primary, among) = tally.shared(&level.of, shard);
            let score = &mut self.score;
            score[SAFETY_TERMS * l + WITH_PRIMARY] += sign * with_primary;
            score[SAFETY_TERMS * l + AMONG_REPLICAS] += sign * among;

            let domains = level.names.len();
            let at = level.of[shard[0]];
            let (before, after) = (tally.primaries[at], tally.primaries[at] + sign);
            score[SAFETY_TERMS * l + HALF] += level.excess(after) - level.excess(before);
            score[UNEVEN + l] += after * after - before * before;
            // When domain z is lost, domain y serves the primaries that it has and its share of
            // z's: r·p(y) + flow(z, y) in units of 1/r. The squares of that over all z ≠ y, without
            // what depends on the p(y) alone, sum up to Σ flow² + 2r Σ p(y)·guests(y).
            score[AFTER_LOSS + l] += 2 * replicas * sign * tally.guests[at];
            tally.primaries[at] = after;
            for replica in &shard[1..] {
                let to = level.of[*replica];
                if to != at {
                    let flow = i64::from(tally.flows[at * domains + to]);
                    score[AFTER_LOSS + l] +=
                        sign * (2 * flow + sign + 2 * replicas * tally.primaries[to]);
                    tally.flows[at * domains + to] += if sign > 0 { 1 } else { -1 };
                    tally.guests[to] += sign;
                }
            }
        }
    }

    /// Moves nodes as long as that makes the score better. First only replicas of unsafe shards
    /// swap, which leaves the dealt primaries as they are; then everybody may; and where no swap
    /// helps any more, three trade places.
    fn improve(&mut self) {
        let best = self.ideal();
        while self.score != best && self.swap_replicas() {}
        while self.score != best && (self.swap_any() || self.turn(true) || self.turn(false)) {}
    }

    /// The seats that belong to shards; those after them are the spares'.
    fn seated(&self) -> usize {
        self.starts[self.ground.shards]
    }

    /// Whether a pass over the replicas of unsafe shards improved anything.
    fn swap_replicas(&mut self) -> bool {
        let mut improved = false;
        for x in 0..self.seated() {
            if !self.is_first(x) && self.is_unsafe(self.shard_at[x]) {
                for y in 0..self.seats.len() {
                    improved |= !self.is_first(y) && self.try_turn(&[x, y]);
                }
            }
        }
        improved
    }

    /// Whether a pass over all pairs improved anything.
    fn swap_any(&mut self) -> bool {
        let mut improved = false;
        for x in 0..self.seated() {
            for y in x + 1..self.seats.len() {
                improved |= self.try_turn(&[x, y]);
            }
        }
        improved
    }

    /// Whether some three who traded places, one of them of an unsafe shard or any, improved it.
    fn turn(&mut self, of_unsafe: bool) -> bool {
        for x in 0..self.seated() {
            if of_unsafe && !self.is_unsafe(self.shard_at[x]) {
                continue;
            }
            for y in (0..self.seats.len()).filter(|y| *y != x) {
                // Two spares would not both have to move.
                let others = if y < self.seated() { self.seats.len() } else { self.seated() };
                if self.effort == 0 || !self.may_sit(self.seats[y], x) {
                    continue;
                }
                for z in (0..others).filter(|z| *z != x && *z != y) {
                    if self.try_turn(&[x, y, z]) {
                        return true;
                    }
                }
            }
        }
        false
    }

    /// Whether members of a shard share more domains than so many members must.
    fn is_unsafe(&mut self, shard: usize) -> bool {
        let shard = &self.seats[self.starts[shard]..self.starts[shard + 1]];
        self.ground.levels.iter().zip(&mut self.tallies).any(|(level, tally)| {
            tally.shared(&level.of, shard) > least_shared(shard.len() - 1, level.names.len())
        })
    }

    /// Moves the node of each seat to the seat before it, and the first one's to the last, if all
    /// may move and it makes the score better.
    fn try_turn<const N: usize>(&mut self, seats: &[usize; N]) -> bool {
        for (i, &seat) in seats.iter().enumerate() {
            let (node, next) = (self.seats[seat], self.seats[seats[(i + 1) % N]]);
            // Nodes that are alike need not move both, and so a shorter turn does the same.
            if self.ground.levels.iter().all(|level| level.of[node] == level.of[next])
                || !self.may_sit(next, seat)
            {
                return false;
            }
        }
        let members = self.ground.members;
        if self.effort == 0
            || seats
                .iter()
                .all(|s| !self.is_first(*s) && self.shard_at[*s] == self.shard_at[seats[0]])
        {
            return false;
        }
        self.effort = self.effort.saturating_sub(members * N);
        let mut shards = [None; N];
        for (i, &seat) in seats.iter().enumerate().filter(|(_, seat)| **seat < self.seated()) {
            if !shards.contains(&Some(self.shard_at[seat])) {
                shards[i] = Some(self.shard_at[seat]);
            }
        }
        let before = self.score;
        self.change(&shards, |all| seats.windows(2).for_each(|pair| all.swap(pair[0], pair[1])));
        let better = self.score < before;
        if !better {
            self.change(&shards, |all| {
                seats.windows(2).rev().for_each(|pair| all.swap(pair[0], pair[1]))
            });
        }
        better
    }

    /// Changes the seats of these shards and keeps the score right.
    fn change(&mut self, shards: &[Option<usize>], how: impl FnOnce(&mut [usize])) {
        shards.iter().flatten().for_each(|&shard| self.count(shard, -1));
        how(&mut self.seats);
        shards.iter().flatten().for_each(|&shard| self.count(shard, 1));
    }

    /// Whether a node may move to a seat.
    fn may_sit(&self, node: usize, seat: usize) -> bool {
        let shard = self.shard_at[seat];
        let at_home = self.home[node] == Some(shard);
        let first = self.is_first(seat);
        (at_home || self.home[node].is_none())
            && !(first && (self.led[shard] || (self.settled[shard] && !at_home)))
    }
}

impl Board<'_> {
    /// A score that no layout of so many shards over so many domains can beat, and that well-shaped
    /// nodes reach; then there is nothing to search for.
    fn ideal(&self) -> Score {
        let (shards, replicas) = (int(self.ground.shards), int(self.ground.members - 1));
        let mut score = [0; 10];
        if self.ground.sizes.iter().any(|size| *size != self.ground.members) {
            // Deviating shards come from a layout that is mostly kept: the search is short.
            return [i64::MIN; 10];
        }
        for (l, level) in self.ground.levels.iter().enumerate() {
            let domains = int(level.names.len());
            let room: i64 = level.size.iter().map(|&size| size.min(level.cap)).sum();
            let (with_primary, among) = least_shared(self.ground.members - 1, level.names.len());
            score[SAFETY_TERMS * l + HALF] = (shards - room).max(0);
            score[SAFETY_TERMS * l + WITH_PRIMARY] = shards * with_primary;
            score[SAFETY_TERMS * l + AMONG_REPLICAS] = shards * among;
            score[UNEVEN + l] = even_squares(shards, domains);
            if domains > 1 {
                let guests = shards * replicas;
                score[AFTER_LOSS + l] = even_squares(guests, domains * (domains - 1))
                    + 2 * replicas * guests * (shards / domains);
            }
        }
        score
    }

    /// What the layout lacks on one level; `kept` says whether members of an earlier one stay.
    fn lacks(&self, level: &Level, kept: bool) -> Vec<Lack> {
        let shards = self.ground.shards;
        let members = self.ground.sizes.iter().copied().max().unwrap_or(0);
        let word = level.word();
        let within = match level.over {
            Spread::Zone => "in",
            Spread::Host => "on",
        };
        let at = format!("{within} {word}");
        let stays = if kept {
            " (a member stays in its shard while the spec lists it, so also take out the one that should move)"
        } else {
            ""
        };
        if let ([only], true) = (level.names.as_slice(), self.seated() > 1) {
            let what = format!(
                "all {} nodes are {at} {only}, whose loss takes them all",
                self.seats.len()
            );
            let cure = format!(
                "add nodes {within} other {word}s, or leave {word} out of placement.spread"
            );
            return vec![Lack { code: format!("single_{word}"), cases: vec![(None, what)], cure }];
        }

        let mut primaries = vec![0; level.names.len()];
        let (mut half, mut with_primary, mut among) = (vec![], vec![], vec![]);
        let (mut crowded, mut doubled) = (BTreeSet::new(), BTreeSet::new());
        for s in 0..shards {
            let [primary, replicas @ ..] = self.shard(s) else { continue };
            let home = level.of[*primary];
            primaries[home] += 1;
            let mut guests: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            for &replica in replicas {
                guests.entry(level.of[replica]).or_default().push(replica);
            }
            for (domain, mut together) in guests {
                together.sort_unstable();
                let name = level.names[domain];
                if domain == home {
                    crowded.insert(name);
                    for replica in together {
                        let what = format!(
                            "replica {} of shard {s} is {at} {name} like its primary {}",
                            self.address(replica),
                            self.address(*primary)
                        );
                        with_primary.push((Some(replica), what));
                    }
                } else if let [_, second, ..] = together[..] {
                    doubled.insert(name);
                    let names: Vec<_> =
                        together.iter().map(|&n| self.address(n).to_string()).collect();
                    let what =
                        format!("replicas {} of shard {s} are all {at} {name}", list(&names));
                    among.push((Some(second), what));
                }
            }
        }
        let holders = (0..primaries.len()).filter(|&d| primaries[d] > level.cap);
        for (name, held) in holders.map(|d| (level.names[d], primaries[d])) {
            let what = format!(
                "{word} {name} holds {held} of the {shards} primaries, so its loss leaves no majority to elect new ones"
            );
            half.push((None, what));
        }

        let cap = level.cap;
        let missing = int(shards) - level.size.iter().map(|&size| size.min(cap)).sum::<i64>();
        let full = (0..level.size.len()).filter(|&d| level.size[d] >= cap).map(|d| level.names[d]);
        let half_cure = if missing > 0 {
            let elsewhere = names(word, full.collect());
            format!(
                "add {missing} or more nodes outside of {elsewhere}, since no {word} may hold more than {cap} of the primaries"
            )
        } else {
            format!(
                "the nodes could do with {cap} in each {word}: fail a shard over to another {word}, or add a node there"
            )
        };
        let with_primary_cure = format!(
            "add {} outside of {}{stays}",
            count(with_primary.len(), "node"),
            names(word, crowded.into_iter().collect())
        );
        let more = members.saturating_sub(level.names.len());
        let among_cure = if more > 0 {
            format!(
                "shards of {members} members need {members} {word}s: add nodes {within} {}{stays}",
                count(more, &format!("more {word}"))
            )
        } else {
            format!("add nodes outside of {}{stays}", names(word, doubled.into_iter().collect()))
        };
        [
            (format!("{word}_holds_half_of_primaries"), half, half_cure),
            (format!("replica_shares_{word}_with_primary"), with_primary, with_primary_cure),
            (format!("replicas_share_{word}"), among, among_cure),
        ]
        .into_iter()
        .filter(|(_, cases, _)| !cases.is_empty())
        .map(|(code, cases, cure)| Lack { code, cases, cure })
        .collect()
    }

    fn address(&self, node: usize) -> &Address {
        &self.ground.nodes[node].address
    }

    fn placed(self, seeds: Vec<Seed>, mut warnings: Vec<Warning>) -> Result<Placed, Refusal> {
        let (shards, members, seated) = (self.ground.shards, self.ground.members, self.seated());
        let mut primaries = BTreeMap::new();
        let mut made = Vec::with_capacity(shards);
        for (s, seed) in seeds.into_iter().enumerate() {
            let mut nodes: Vec<Address> =
                self.shard(s).iter().map(|&n| self.address(n).clone()).collect();
            nodes[1..].sort_unstable();
            primaries.insert(seed.id, nodes[0].clone());
            let same: BTreeSet<_> = seed.previous.iter().collect();
            // Whoever wrote the previous members may have had another order, which is no change.
            let unchanged =
                seed.previous.len() == nodes.len() && nodes.iter().all(|n| same.contains(n));
            let members = if unchanged { seed.previous } else { nodes };
            made.push((Shard { id: seed.id, index: seed.index, members }, seed.slots));
        }
        let mut spares: Vec<_> =
            self.seats[seated..].iter().map(|&n| self.address(n).clone()).collect();
        spares.sort_unstable();
        if !spares.is_empty() {
            let names: Vec<_> = spares.iter().map(ToString::to_string).collect();
            let message = format!(
                "{} with {} each{} need {seated} nodes, so {} stay{} spare",
                count(shards, "shard"),
                count(members - 1, "replica"),
                if self.ground.sizes.iter().all(|size| *size == members) {
                    ""
                } else {
                    " (but for the overrides)"
                },
                list(&names),
                if names.len() == 1 { "s" } else { "" },
            );
            warnings.push(Warning { code: "spare_nodes".into(), message });
        }
        let shards = Shards::new(made).map_err(|why| {
            Refusal::Invalid(vec![FieldError::new("/spec/nodes", why.to_string())])
        })?;
        Ok(Placed { shards, primaries, spares, warnings })
    }
}

/// The nodes that are free in each domain of each level.
fn left(ground: &Ground, free: &[bool]) -> Vec<Vec<i64>> {
    let on = |level: &Level| {
        let mut left = vec![0; level.names.len()];
        for (&domain, &free) in level.of.iter().zip(free) {
            left[domain] += i64::from(free);
        }
        left
    };
    ground.levels.iter().map(on).collect()
}

/// Gives every shard its primary, in front of the members that stay. The new primaries come in
/// address order.
fn deal_primaries(ground: &Ground, seeds: &[Seed], free: &mut [bool]) -> Vec<Vec<usize>> {
    let (shards, nodes) = (int(ground.shards), int(ground.nodes.len()));
    let replicas = int(ground.members - 1);
    let mut held: Vec<Vec<i64>> =
        ground.levels.iter().map(|level| vec![0; level.names.len()]).collect();
    let mut left = left(ground, free);

    // With p primaries in a domain of n nodes, their replicas find nodes - n - (shards - p) seats
    // elsewhere: what is missing of replicas * p must share the domain (Hall's theorem).
    let crowd = |size: i64, p: i64| ((replicas - 1) * p + shards + size - nodes).max(0);
    let cost = |held: &[Vec<i64>], left: &[Vec<i64>], node: usize| {
        let mut cost = [0; 8];
        for (l, level) in ground.levels.iter().enumerate() {
            let domain = level.of[node];
            let (p, size) = (held[l][domain], level.size[domain]);
            cost[2 * l] = level.excess(p + 1) - level.excess(p);
            cost[2 * l + 1] = if replicas == 0 { 0 } else { crowd(size, p + 1) - crowd(size, p) };
            cost[4 + l] = p;
            cost[6 + l] = -left[l][domain];
        }
        cost
    };
    let hold = |held: &mut [Vec<i64>], node: usize| {
        for (level, held) in ground.levels.iter().zip(held) {
            held[level.of[node]] += 1;
        }
    };

    let mut chosen: Vec<Option<usize>> =
        seeds.iter().map(|seed| seed.stay.first().copied().filter(|_| seed.led)).collect();
    for node in chosen.iter().flatten() {
        hold(&mut held, *node);
    }
    for (seed, chosen) in seeds.iter().zip(&mut chosen).filter(|(_, chosen)| chosen.is_none()) {
        *chosen = seed.stay.iter().copied().min_by_key(|&node| (cost(&held, &left, node), node));
        if let Some(node) = *chosen {
            hold(&mut held, node);
        }
    }
    let mut new = BTreeSet::new();
    for _ in chosen.iter().filter(|chosen| chosen.is_none()) {
        let candidates = (0..free.len()).filter(|&node| free[node]);
        let Some(node) = candidates.min_by_key(|&node| (cost(&held, &left, node), node)) else {
            break;
        };
        free[node] = false;
        hold(&mut held, node);
        for (level, left) in ground.levels.iter().zip(&mut left) {
            left[level.of[node]] -= 1;
        }
        new.insert(node);
    }
    let mut new = new.into_iter();
    let seat = |(seed, chosen): (&Seed, Option<usize>)| -> Vec<usize> {
        let first = chosen.or_else(|| new.next());
        let others = seed.stay.iter().copied().filter(|node| Some(*node) != first);
        first.into_iter().chain(others).collect()
    };
    seeds.iter().zip(chosen).map(seat).collect()
}

/// Fills the shards, one replica each in turn, from the domains that have most nodes left among
/// those that share least.
fn deal_replicas(ground: &Ground, shards: &mut [Vec<usize>], free: &mut [bool]) {
    let mut left = left(ground, free);
    let domains: Vec<usize> = ground.levels.iter().map(|level| level.names.len()).collect();
    let mut flows: Vec<Vec<i32>> = domains.iter().map(|d| vec![0; d * d]).collect();
    let flow = |l: usize, from: usize, to: usize| {
        let of = &ground.levels[l].of;
        of[from] * domains[l] + of[to]
    };
    for shard in shards.iter() {
        for replica in &shard[1..] {
            for (l, flows) in flows.iter_mut().enumerate() {
                flows[flow(l, shard[0], *replica)] += 1;
            }
        }
    }
    let most = ground.sizes.iter().copied().max().unwrap_or(0);
    for filled in 1..most {
        let sized = shards.iter_mut().zip(&ground.sizes);
        for (shard, _) in sized.filter(|(s, size)| s.len() == filled && filled < **size) {
            let primary = shard[0];
            let mut near: Vec<Vec<i64>> = domains.iter().map(|d| vec![0; *d]).collect();
            for (level, near) in ground.levels.iter().zip(&mut near) {
                for replica in &shard[1..] {
                    near[level.of[*replica]] += 1;
                }
            }
            let cost = |node: usize| {
                let mut cost = [0; 8];
                for (l, level) in ground.levels.iter().enumerate() {
                    let domain = level.of[node];
                    cost[2 * l] = i64::from(domain == level.of[primary]);
                    cost[2 * l + 1] = near[l][domain];
                    cost[4 + l] = -left[l][domain];
                    cost[6 + l] = i64::from(flows[l][flow(l, primary, node)]);
                }
                cost
            };
            let candidates = (0..free.len()).filter(|&node| free[node]);
            let Some(node) = candidates.min_by_key(|&node| (cost(node), node)) else { return };
            free[node] = false;
            for (l, level) in ground.levels.iter().enumerate() {
                left[l][level.of[node]] -= 1;
                flows[l][flow(l, primary, node)] += 1;
            }
            shard.push(node);
        }
    }
}

/// One way in which a layout is less than what `spread` asks for.
struct Lack {
    code: String,
    /// What is the matter, and with which node if it is one's.
    cases: Vec<(Option<usize>, String)>,
    cure: String,
}

impl Lack {
    /// All cases in one message.
    fn warning(&self) -> Warning {
        const SHOWN: usize = 3;
        let mut parts: Vec<&str> =
            self.cases.iter().take(SHOWN).map(|(_, what)| what.as_str()).collect();
        let more = format!("{} more like these", self.cases.len().saturating_sub(SHOWN));
        if self.cases.len() > SHOWN {
            parts.push(&more);
        }
        parts.push(&self.cure);
        Warning { code: self.code.clone(), message: parts.join("; ") }
    }
}

/// The least of replicas in their primary's domain and of pairs of replicas in one domain that so
/// many replicas over so many domains come to.
fn least_shared(replicas: usize, domains: usize) -> (i64, i64) {
    let replicas = int(replicas);
    match int(domains) {
        ..=1 => (replicas, replicas * (replicas - 1) / 2),
        domains => (0, (even_squares(replicas, domains - 1) - replicas) / 2),
    }
}

/// The sum of the squares of `parts` numbers that are as even as can be and sum up to `total`.
fn even_squares(total: i64, parts: i64) -> i64 {
    let (each, over) = (total / parts, total % parts);
    parts * each * each + over * (2 * each + 1)
}

fn int(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// `1 shard`, `2 shards`.
fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// `zone a`, `zones a and b`.
fn names(word: &str, names: Vec<&str>) -> String {
    let plural = if names.len() == 1 { "" } else { "s" };
    format!("{word}{plural} {}", list(&names))
}

/// `a, b and c`; of a long list the first few and how many more.
fn list<S: AsRef<str>>(names: &[S]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match shown.as_slice() {
        all if names.len() > SHOWN => {
            format!("{} and {} more", all.join(", "), names.len() - SHOWN)
        }
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        all => all.join(""),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn topology() -> TopologyId {
        TopologyId(uuid::Uuid::nil())
    }

    fn node(number: usize, zone: &str, host: &str) -> NodeSpec {
        let address = format!("{host}:{}", 7001 + number).parse().unwrap();
        NodeSpec { address, zone: zone.into(), host: None }
    }

    /// One node a letter, in the zone of that name, each on its own host.
    fn zoned(zones: &str) -> Vec<NodeSpec> {
        zones.chars().enumerate().map(|(i, z)| node(i, &z.to_string(), &format!("h{i}"))).collect()
    }

    /// The same, all on one machine.
    fn local(zones: &str) -> Vec<NodeSpec> {
        zones.chars().enumerate().map(|(i, z)| node(i, &z.to_string(), "127.0.0.1")).collect()
    }

    fn strict() -> PlacementSpec {
        PlacementSpec { strict: true, ..PlacementSpec::default() }
    }

    fn over(spread: &[Spread]) -> PlacementSpec {
        PlacementSpec { spread: spread.to_vec(), strict: false }
    }

    fn request<'a>(
        nodes: &'a [NodeSpec],
        shards: u16,
        replicas: u16,
        placement: &'a PlacementSpec,
    ) -> Request<'a> {
        const NONE: &ClusterOverrides =
            &ClusterOverrides { shards: vec![], drained: BTreeSet::new() };
        let (topology, overrides, previous) = (topology(), NONE, None);
        Request { topology, nodes, shards, replicas, overrides, placement, previous }
    }

    fn placed(nodes: &[NodeSpec], shards: u16, replicas: u16) -> Placed {
        place(&request(nodes, shards, replicas, &PlacementSpec::default())).unwrap()
    }

    /// The zones of each shard, its primary's first.
    fn zones(nodes: &[NodeSpec], placed: &Placed) -> Vec<String> {
        let zone = |a: &Address| nodes.iter().find(|n| n.address == *a).unwrap().zone.clone();
        placed.shards.iter().map(|(s, _)| s.members.iter().map(zone).collect::<String>()).collect()
    }

    fn sorted(text: &str) -> String {
        let mut letters: Vec<char> = text.chars().collect();
        letters.sort_unstable();
        letters.into_iter().collect()
    }

    fn codes(placed: &Placed) -> Vec<&str> {
        placed.warnings.iter().map(|w| w.code.as_str()).collect()
    }

    fn primaries_by_zone(nodes: &[NodeSpec], placed: &Placed) -> BTreeMap<String, usize> {
        let mut count = BTreeMap::new();
        for primary in placed.primaries.values() {
            let node = nodes.iter().find(|n| n.address == *primary).unwrap();
            *count.entry(node.zone.clone()).or_default() += 1;
        }
        count
    }

    #[test]
    fn six_nodes_in_three_zones() {
        for order in ["abcabc", "aabbcc", "cbaabc"] {
            let nodes = zoned(order);
            let placed = place(&request(&nodes, 3, 1, &strict())).unwrap();
            let zones = zones(&nodes, &placed);
            assert_eq!(sorted(&zones.iter().map(|z| &z[..1]).collect::<String>()), "abc");
            assert_eq!(sorted(&zones.iter().map(|z| &z[1..]).collect::<String>()), "abc");
            assert!(zones.iter().all(|z| z[..1] != z[1..]), "{zones:?}");
            assert_eq!((placed.warnings, placed.spares), (vec![], vec![]));
            let slots: Vec<_> = placed.shards.iter().map(|(_, slots)| slots.clone()).collect();
            assert_eq!(slots, SlotSet::shares(3));
            let indices: Vec<_> = placed.shards.iter().map(|(s, _)| s.index).collect();
            assert_eq!(indices, [0, 1, 2]);
        }
    }

    #[test]
    fn nine_nodes_in_three_zones_give_every_shard_all_zones() {
        let nodes = zoned("aaabbbccc");
        let placed = place(&request(&nodes, 3, 2, &strict())).unwrap();
        let zones = zones(&nodes, &placed);
        assert!(zones.iter().all(|z| sorted(z) == "abc"), "{zones:?}");
        assert_eq!(sorted(&zones.iter().map(|z| &z[..1]).collect::<String>()), "abc");
    }

    #[test]
    fn primaries_without_replicas() {
        let nodes = zoned("aabbcc");
        let placed = placed(&nodes[..], 3, 0);
        assert_eq!(sorted(&zones(&nodes, &placed).concat()), "abc");
        assert_eq!((placed.spares.len(), codes(&placed)), (3, vec!["spare_nodes"]));
    }

    #[test]
    fn a_seventh_node_stays_spare() {
        let nodes = zoned("aaabbcc");
        let placed = placed(&nodes, 3, 1);
        let zones = zones(&nodes, &placed);
        assert_eq!(sorted(&zones.iter().map(|z| &z[..1]).collect::<String>()), "abc");
        assert!(zones.iter().all(|z| z[..1] != z[1..]), "{zones:?}");
        assert_eq!((placed.spares.len(), codes(&placed)), (1, vec!["spare_nodes"]));
        assert!(placed.warnings[0].message.contains(&placed.spares[0].to_string()));
    }

    #[test]
    fn uneven_zones_give_what_they_can_and_say_what_they_lack() {
        let nodes = zoned("aaaabc");
        let placed = placed(&nodes, 3, 1);
        assert_eq!(primaries_by_zone(&nodes, &placed).into_values().collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!(codes(&placed), ["replica_shares_zone_with_primary"]);
        let message = &placed.warnings[0].message;
        assert!(
            message
                .ends_with("is in zone a like its primary h0:7001; add 1 node outside of zone a"),
            "{message}"
        );

        let Err(Refusal::Placement(errors)) = place(&request(&nodes, 3, 1, &strict())) else {
            panic!()
        };
        assert_eq!(errors.len(), 1);
        let at: usize = errors[0].pointer.strip_prefix("/spec/nodes/").unwrap().parse().unwrap();
        assert!((1..4).contains(&at) && errors[0].detail.contains(&nodes[at].address.to_string()));

        let cured = zoned("aaaabcb");
        assert_eq!(place(&request(&cured, 3, 1, &strict())).map(|p| p.spares.len()), Ok(1));
    }

    #[test]
    fn two_zones_cannot_keep_a_majority() {
        let nodes = zoned("aaabbb");
        let placed = placed(&nodes, 3, 1);
        assert_eq!(codes(&placed), ["zone_holds_half_of_primaries"]);
        let message = &placed.warnings[0].message;
        assert!(message.contains("holds 2 of the 3 primaries"), "{message}");
        assert!(message.contains("add 1 or more nodes outside of zones a and b"), "{message}");
    }

    #[test]
    fn one_machine_disturbs_no_zones_and_is_told_once() {
        let nodes = local("abcabc");
        let placed = placed(&nodes, 3, 1);
        assert_eq!(zones(&nodes, &placed).iter().map(|z| &z[..1]).collect::<String>(), "abc");
        assert!(zones(&nodes, &placed).iter().all(|z| z[..1] != z[1..]));
        assert_eq!(codes(&placed), ["single_host"]);
        assert_eq!(
            placed.warnings[0].message,
            "all 6 nodes are on host 127.0.0.1, whose loss takes them all; add nodes on other hosts, \
             or leave host out of placement.spread"
        );
        let zone_alone = over(&[Spread::Zone]);
        assert_eq!(place(&request(&nodes, 3, 1, &zone_alone)).unwrap().warnings, []);
    }

    #[test]
    fn many_cases_of_one_lack_are_one_warning() {
        let nodes: Vec<_> =
            (0..40).map(|i| node(i, ["a", "b"][usize::from(i == 39)], &format!("h{i}"))).collect();
        let placed = placed(&nodes, 20, 1);
        let shared =
            placed.warnings.iter().find(|w| w.code == "replica_shares_zone_with_primary").unwrap();
        assert!(
            shared.message.contains("; 16 more like these; add 19 nodes outside of zone a"),
            "{}",
            shared.message
        );
    }

    #[test]
    fn hosts_are_spread_within_zones() {
        let pairs = [("a", "h1"), ("a", "h1"), ("a", "h2"), ("a", "h2"), ("a", "h3"), ("a", "h3")];
        let nodes: Vec<_> = pairs.iter().enumerate().map(|(i, (z, h))| node(i, z, h)).collect();
        assert_eq!(codes(&placed(&nodes, 3, 1)), ["single_zone"]);
    }

    #[test]
    fn nothing_matters_when_spread_is_empty() {
        let nodes = zoned("aaaaaa");
        let placed =
            place(&request(&nodes, 3, 1, &PlacementSpec { spread: vec![], strict: true })).unwrap();
        assert_eq!(placed.warnings, []);
    }

    #[test]
    fn too_few_nodes_are_refused() {
        let nodes = zoned("abcab");
        let Err(Refusal::Invalid(errors)) =
            place(&request(&nodes, 3, 1, &PlacementSpec::default()))
        else {
            panic!()
        };
        assert_eq!(errors[0].pointer, "/spec/nodes");
        assert_eq!(
            errors[0].detail,
            "3 shards with 1 replica each need 6 nodes, 5 are given; add 1 or ask for fewer"
        );
        assert!(matches!(
            place(&request(&nodes, 0, 1, &PlacementSpec::default())),
            Err(Refusal::Invalid(_))
        ));
    }

    fn again(nodes: &[NodeSpec], shards: u16, replicas: u16, previous: &Placed) -> Placed {
        let placement = PlacementSpec::default();
        let previous = Some(&previous.shards);
        place(&Request { previous, ..request(nodes, shards, replicas, &placement) }).unwrap()
    }

    #[test]
    fn a_deviating_shard_stays_as_it_is_and_the_others_are_filled() {
        let nodes = zoned("abcabcabc");
        let before = placed(&nodes[..6], 3, 1);
        let id = before.shards.as_slice()[1].0.id;
        let overrides = ClusterOverrides {
            shards: vec![crate::domain::spec::ShardOverride { shard: id, replicas: 3 }],
            drained: BTreeSet::new(),
        };
        let placement = PlacementSpec::default();
        let previous = Some(&before.shards);
        let ask = Request { overrides: &overrides, previous, ..request(&nodes, 3, 1, &placement) };
        let after = place(&ask).unwrap();
        let sizes: Vec<_> = after.shards.iter().map(|(s, _)| s.members.len()).collect();
        assert_eq!(sizes, [2, 4, 2]);
        assert_eq!(after.spares.len(), 1);
        for ((old, _), (new, _)) in before.shards.iter().zip(&after.shards) {
            assert!(old.members.iter().all(|m| new.members.contains(m)));
        }
        let same = place(&Request { previous: Some(&after.shards), ..ask }).unwrap();
        assert_eq!(same.shards, after.shards);
        let elsewhere = TopologyId(uuid::Uuid::from_u128(1));
        let fresh = Request { topology: elsewhere, previous: None, ..ask };
        let refused = place(&fresh).unwrap_err();
        assert!(refused.to_string().contains("/spec/overrides/shards/0/shard"), "{refused}");
        let short = place(&Request { nodes: &nodes[..7], ..ask }).unwrap_err().to_string();
        assert!(short.contains("need 8 nodes"), "{short}");
    }

    #[test]
    fn a_lost_node_is_replaced_and_the_rest_stays() {
        let nodes = zoned("aabbccabc");
        let before = placed(&nodes[..6], 3, 1);
        let gone = before.primaries.values().next().unwrap();
        let left: Vec<_> = nodes.iter().filter(|n| n.address != *gone).cloned().collect();
        let after = again(&left, 3, 1, &before);
        for ((old, slots), (new, same)) in before.shards.iter().zip(&after.shards) {
            assert_eq!((old.id, old.index, slots), (new.id, new.index, same));
            assert!(old.members.iter().filter(|m| *m != gone).all(|m| new.members.contains(m)));
        }
        let first = after.shards.iter().next().unwrap();
        assert_eq!(
            first.0.members[0],
            before.shards.iter().next().unwrap().0.members[1],
            "it has the data"
        );
        assert!(zones(&left, &after).iter().all(|z| z[..1] != z[1..]));
    }

    #[test]
    fn shards_come_and_go_and_the_others_keep_their_ids() {
        let nodes = zoned("abcabcabcd");
        let three = placed(&nodes[..6], 3, 1);
        let four = again(&nodes, 4, 1, &three);
        let ids = |p: &Placed| p.shards.iter().map(|(s, _)| s.id).collect::<Vec<_>>();
        assert_eq!(ids(&four)[..3], ids(&three));
        assert_eq!(ids(&four)[3], ShardId::derive(topology(), 3));
        for ((_, before), (_, after)) in three.shards.iter().zip(&four.shards) {
            assert!(after.difference(before).is_empty(), "they only give");
        }
        assert!(four.shards.iter().all(|(_, slots)| slots.count() == 4096));
        let back = again(&nodes, 3, 1, &four);
        assert_eq!(ids(&back), ids(&three));
        for ((_, before), (_, after)) in four.shards.iter().zip(&back.shards) {
            assert!(before.difference(after).is_empty(), "they only take");
        }
        let less = again(&nodes, 3, 0, &three);
        assert_eq!(less.primaries, three.primaries);
    }

    #[test]
    fn an_order_that_somebody_else_gave_is_kept() {
        let nodes = zoned("abcabc");
        let members = |a: usize, b: usize| vec![nodes[a].address.clone(), nodes[b].address.clone()];
        let shard = |index: u16, members| Shard {
            id: ShardId::derive(topology(), 9 - u32::from(index)),
            index,
            members,
        };
        let slots: Vec<SlotSet> =
            ["0-99", "100-16000", "16001-16383"].iter().map(|s| s.parse().unwrap()).collect();
        let rows = [shard(0, members(5, 0)), shard(1, members(4, 1)), shard(2, members(2, 3))];
        let previous = Shards::new(rows.into_iter().zip(slots).collect()).unwrap();
        let placement = PlacementSpec::default();
        let placed =
            place(&Request { previous: Some(&previous), ..request(&nodes, 3, 1, &placement) })
                .unwrap();
        assert_eq!(placed.shards, previous);
    }

    #[test]
    fn large_topologies_are_placed_quickly() {
        let shapes =
            [(60, 20, 2, 500), (60, 19, 2, 500), (1000, 333, 2, 20_000), (1000, 1, 999, 20_000)];
        for (count, shards, replicas, millis) in shapes {
            for zones in [3, 7] {
                let zone = |i: usize| format!("z{}", (i * i + i / 3) % zones);
                let host = |i: usize| format!("h{}", i * 7 % (count / 2));
                let nodes: Vec<_> = (0..count).map(|i| node(i, &zone(i), &host(i))).collect();
                let start = std::time::Instant::now();
                let placed = placed(&nodes, shards, replicas);
                let took = start.elapsed();
                assert_eq!(placed.primaries.len(), usize::from(shards));
                assert!(took < std::time::Duration::from_millis(millis), "{took:?}");
            }
        }
    }

    /// Nodes in random zones and on random hosts, shards, and replicas.
    fn fleet(most: usize) -> impl Strategy<Value = (Vec<NodeSpec>, u16, u16)> {
        fleet_of(1..=4, most)
    }

    fn fleet_of(
        shards: std::ops::RangeInclusive<u16>,
        most: usize,
    ) -> impl Strategy<Value = (Vec<NodeSpec>, u16, u16)> {
        (shards, 0..=3u16)
            .prop_filter("too many", move |(s, r)| usize::from(s * (r + 1)) <= most)
            .prop_flat_map(move |(s, r)| {
                let needed = usize::from(s * (r + 1));
                let nodes = prop::collection::vec((0..4usize, 0..6usize), needed..=most);
                nodes.prop_map(move |places| {
                    let place = |(i, (z, h)): (usize, &(usize, usize))| {
                        node(i, &format!("z{z}"), &format!("h{h}"))
                    };
                    (places.iter().enumerate().map(place).collect(), s, r)
                })
            })
    }

    fn sizes(nodes: &[NodeSpec]) -> Vec<usize> {
        let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
        for node in nodes {
            *sizes.entry(&node.zone).or_default() += 1;
        }
        sizes.into_values().collect()
    }

    /// Whether some placement has neither a replica in its primary's zone nor half of the
    /// primaries in one zone, by trying all of them.
    fn possible(
        left: &mut Vec<usize>,
        held: &mut [usize],
        shards: usize,
        replicas: usize,
        cap: usize,
        known: &mut HashSet<(Vec<usize>, Vec<usize>)>,
    ) -> bool {
        fn replicas_from(
            zone: usize,
            home: usize,
            need: usize,
            left: &mut Vec<usize>,
            then: &mut dyn FnMut(&mut Vec<usize>) -> bool,
        ) -> bool {
            if need == 0 {
                return then(left);
            }
            (zone..left.len()).any(|z| {
                if z == home || left[z] == 0 {
                    return false;
                }
                left[z] -= 1;
                let found = replicas_from(z, home, need - 1, left, then);
                left[z] += 1;
                found
            })
        }
        if held.iter().sum::<usize>() == shards {
            return true;
        }
        if !known.insert((left.clone(), held.to_vec())) {
            return false;
        }
        (0..left.len()).any(|home| {
            if left[home] == 0 || held[home] == cap {
                return false;
            }
            left[home] -= 1;
            held[home] += 1;
            let found = replicas_from(0, home, replicas, left, &mut |left| {
                possible(left, &mut held.to_vec(), shards, replicas, cap, known)
            });
            left[home] += 1;
            held[home] -= 1;
            found
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn everybody_has_one_part((nodes, shards, replicas) in fleet(14)) {
            let placed = placed(&nodes, shards, replicas);
            prop_assert_eq!(placed.shards.len(), usize::from(shards));
            let mut all: Vec<&Address> = placed.spares.iter().collect();
            for (shard, _) in &placed.shards {
                prop_assert_eq!(shard.members.len(), usize::from(replicas) + 1);
                prop_assert_eq!(&placed.primaries[&shard.id], &shard.members[0]);
                prop_assert!(shard.members[1..].is_sorted());
                all.extend(&shard.members);
            }
            all.sort_unstable();
            let mut given: Vec<_> = nodes.iter().map(|n| &n.address).collect();
            given.sort_unstable();
            prop_assert_eq!(all, given);
        }

        #[test]
        fn the_order_of_nodes_does_not_matter(
            ((nodes, shards, replicas), shuffled) in
                fleet(14).prop_flat_map(|f| (Just(f.clone()), Just(f.0).prop_shuffle()))
        ) {
            prop_assert_eq!(placed(&nodes, shards, replicas), placed(&shuffled, shards, replicas));
        }

        #[test]
        fn what_is_placed_stays((nodes, shards, replicas) in fleet(14)) {
            let before = placed(&nodes, shards, replicas);
            let after = again(&nodes, shards, replicas, &before);
            prop_assert_eq!(before.shards, after.shards);
            prop_assert_eq!(before.primaries, after.primaries);
            prop_assert_eq!(before.spares, after.spares);
        }

        #[test]
        fn whoever_stays_stays_in_its_shard(
            (nodes, shards, replicas) in fleet(12),
            gone in prop::collection::vec(any::<bool>(), 12),
            (other_shards, other_replicas) in (1..=5u16, 0..=3u16),
        ) {
            let before = placed(&nodes, shards, replicas);
            let here = nodes.into_iter().zip(gone).filter(|(_, gone)| !gone);
            let mut left: Vec<_> = here.map(|(node, _)| node).collect();
            left.extend((20..40).map(|i| node(i, &format!("z{}", i % 3), &format!("g{i}"))));
            let after = again(&left, other_shards, other_replicas, &before);
            for (old, slots) in &before.shards {
                let Some((new, same)) = after.shards.iter().find(|(s, _)| s.id == old.id) else {
                    continue;
                };
                let is_left = |m: &&Address| left.iter().any(|n| n.address == **m);
                let stays: Vec<_> = old.members.iter().filter(is_left).collect();
                let kept = stays.iter().filter(|m| new.members.contains(m)).count();
                prop_assert_eq!(kept, stays.len().min(usize::from(other_replicas) + 1));
                if let Some(first) = stays.first().filter(|m| ***m == old.members[0]) {
                    prop_assert_eq!(&new.members[0], *first);
                }
                prop_assert!(stays.is_empty() || stays.contains(&&new.members[0]));
                prop_assert!(shards != other_shards || (slots, old.index) == (same, new.index));
            }
            let ids: Vec<_> = after.shards.iter().map(|(shard, _)| shard.id).collect();
            let kept = before.shards.iter().filter(|(shard, _)| ids.contains(&shard.id)).count();
            prop_assert_eq!(kept, usize::from(shards.min(other_shards)));
            let same = again(&left, other_shards, other_replicas, &after);
            prop_assert_eq!(same.shards, after.shards);
        }

        /// With as many nodes in each zone, and no more members in a shard than there are zones.
        #[test]
        fn even_zones_lack_nothing(
            more in 0..3u16, replicas in 0..3u16, each in 1..5u16, hosts in 1..3u16,
        ) {
            let zones = (replicas + 1 + more).max(3);
            let shards = zones * each / (replicas + 1);
            let (cap, places) = (shards.saturating_sub(1) / 2, zones * each.min(hosts));
            if shards < 3 || zones * each.min(cap) < shards || places * cap < shards {
                return Ok(());
            }
            let host = |i: u16| format!("h{}", i % (zones * hosts));
            let domains = |i: u16| (format!("z{}", i % zones), host(i));
            let nodes: Vec<_> = (0..zones * each)
                .map(|i| (usize::from(i), domains(i)))
                .map(|(i, (zone, host))| node(i, &zone, &host))
                .collect();
            let placed = place(&request(&nodes, shards, replicas, &strict()));
            prop_assert!(placed.is_ok(), "{:?}", placed);
        }

        #[test]
        fn no_zone_holds_half_where_the_nodes_can_give_that(
            (nodes, shards, replicas) in fleet_of(3..=4, 14)
        ) {
            let cap = usize::from((shards - 1) / 2);
            let room: usize = sizes(&nodes).iter().map(|&n| n.min(cap)).sum();
            let feasible = room >= usize::from(shards);
            let placed = placed(&nodes, shards, replicas);
            let most = primaries_by_zone(&nodes, &placed).into_values().max().unwrap();
            prop_assert_eq!(most <= cap, feasible);
            let told = ["zone_holds_half_of_primaries", "single_zone"];
            prop_assert_eq!(codes(&placed).iter().any(|code| told.contains(code)), !feasible);
        }

        #[test]
        fn members_are_in_different_zones_where_these_have_room(
            (nodes, shards, replicas) in fleet(9)
        ) {
            // Each zone may give each shard one member (Gale and Ryser).
            let room: usize = sizes(&nodes).iter().map(|&n| n.min(usize::from(shards))).sum();
            if room >= usize::from(shards * (replicas + 1)) {
                let placed = placed(&nodes, shards, replicas);
                let shared = ["replica_shares_zone_with_primary", "replicas_share_zone"];
                let told = codes(&placed).iter().any(|code| shared.contains(code));
                prop_assert!(!told, "{:?}", placed);
            }
        }

        #[test]
        fn zones_are_safe_where_any_placement_is((nodes, shards, replicas) in fleet(9)) {
            let cap = if shards < 3 { usize::MAX } else { usize::from((shards - 1) / 2) };
            let mut left = sizes(&nodes);
            let mut held = vec![0; left.len()];
            let (count, each) = (usize::from(shards), usize::from(replicas));
            let feasible = possible(&mut left, &mut held, count, each, cap, &mut HashSet::new());
            let placed = placed(&nodes, shards, replicas);
            let shared = codes(&placed).contains(&"replica_shares_zone_with_primary");
            let apart = !shared && (left.len() > 1 || replicas == 0);
            let most = primaries_by_zone(&nodes, &placed).into_values().max().unwrap();
            prop_assert_eq!(apart && most <= cap, feasible, "{:?}", placed);
        }
    }
}
