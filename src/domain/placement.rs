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
//! none does, or until an effort that depends on the number of nodes alone is spent. For a new
//! layout the first two goals are reached whenever any layout reaches both: with primaries dealt
//! within Hall's condition, a replica in its primary's domain can always be swapped away.
//!
//! What a previous layout says stays: a member stays in its shard, and its first member stays the
//! first. Nothing depends on the order in which nodes are listed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::id::{ShardId, TopologyId};
use super::node::Address;
use super::refusal::{FieldError, Refusal};
use super::slot::SlotSet;
use super::spec::{NodeSpec, PlacementSpec, Spread};
use super::topology::{Shard, Shards};

/// What is to be placed.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub topology: TopologyId,
    pub nodes: &'a [NodeSpec],
    pub shards: u16,
    /// Of each shard.
    pub replicas: u16,
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
    let ground = Ground::survey(request)?;
    let seeds = ground.seeds(request);
    let mut board = Board::deal(&ground, &seeds);
    board.improve();
    let lacks: Vec<Lack> =
        ground.levels.iter().flat_map(|level| board.lacks(level, request.previous.is_some())).collect();
    if request.placement.strict && !lacks.is_empty() {
        return Err(Refusal::Placement(ground.errors(request, &lacks)));
    }
    board.placed(seeds, lacks.iter().map(Lack::warning).collect())
}

/// The nodes in address order, and what they are spread over. Everything below calls a node by its
/// position here.
struct Ground<'a> {
    nodes: Vec<&'a NodeSpec>,
    levels: Vec<Level<'a>>,
    shards: usize,
    /// Of each shard.
    members: usize,
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
        if nodes.len() < shards * members {
            let detail = format!(
                "{} with {} each need {} nodes, {} are given; add {} or ask for fewer",
                count(shards, "shard"),
                count(members - 1, "replica"),
                shards * members,
                nodes.len(),
                shards * members - nodes.len()
            );
            return invalid("/spec/nodes", detail);
        }
        let mut levels: Vec<Level> = Vec::new();
        for &over in &request.placement.spread {
            if levels.iter().all(|level| level.over != over) {
                levels.push(Level::survey(over, &nodes, shards));
            }
        }
        Ok(Self { nodes, levels, shards, members })
    }

    /// The shards to be: those that stay, in their order, and new ones after them. Where there are
    /// too many, shards that lost all their members go first, then the last.
    fn seeds(&self, request: &Request) -> Vec<Seed> {
        let position: BTreeMap<_, _> = self.nodes.iter().enumerate().map(|(i, n)| (&n.address, i)).collect();
        let mut old: Vec<Seed> = Vec::new();
        for (shard, slots) in request.previous.into_iter().flatten() {
            let stay = shard.members.iter().filter_map(|m| position.get(m).copied()).collect();
            let led = shard.members.first().is_some_and(|m| position.contains_key(m));
            let (id, index, slots) = (shard.id, shard.index, slots.clone());
            old.push(Seed { id, index, slots, stay, led, previous: shard.members.clone() });
        }
        let resized = old.len() != self.shards;
        while old.len() > self.shards {
            let emptied = old.iter().rposition(|seed| seed.stay.is_empty());
            old.remove(emptied.unwrap_or(old.len() - 1));
        }
        let mut used: BTreeSet<ShardId> = old.iter().map(|seed| seed.id).collect();
        let mut fresh = (0..).map(|ordinal| ShardId::derive(request.topology, ordinal));
        while old.len() < self.shards {
            let Some(id) = fresh.find(|id| used.insert(*id)) else { break };
            let slots = SlotSet::empty();
            old.push(Seed { id, index: 0, slots, stay: vec![], led: false, previous: vec![] });
        }
        if resized {
            for ((seed, slots), index) in old.iter_mut().zip(SlotSet::shares(self.shards)).zip(0..) {
                (seed.index, seed.slots) = (index, slots);
            }
        }
        for seed in &mut old {
            self.trim(&mut seed.stay);
        }
        old
    }

    /// Keeps of a shard with too many members the first, and those that share least.
    fn trim(&self, stay: &mut Vec<usize>) {
        if stay.len() <= self.members {
            return;
        }
        let mut kept = vec![stay[0]];
        while kept.len() < self.members {
            let shared = |node: usize| -> Vec<(bool, usize)> {
                let same = |level: &Level, other: usize| level.of[node] == level.of[other];
                let each = self.levels.iter();
                each.map(|l| (same(l, kept[0]), kept[1..].iter().filter(|k| same(l, **k)).count())).collect()
            };
            let rest = stay.iter().copied().filter(|node| !kept.contains(node));
            let Some(next) = rest.min_by_key(|&node| shared(node)) else { break };
            kept.push(next);
        }
        stay.retain(|node| kept.contains(node));
    }

    /// The problems, each at the node that the request lists where it is about one.
    fn errors(&self, request: &Request, lacks: &[Lack]) -> Vec<FieldError> {
        let listed: BTreeMap<_, _> = request.nodes.iter().enumerate().map(|(i, n)| (&n.address, i)).collect();
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
        let names: Vec<&str> = nodes.iter().map(name).collect::<BTreeSet<_>>().into_iter().collect();
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

/// Who sits where: the members of shard `s` at `s * members` onward, its primary first; the spares
/// after all shards.
struct Board<'a> {
    ground: &'a Ground<'a>,
    seats: Vec<usize>,
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
        let mut free = home.iter().map(Option::is_none).collect();
        let mut shards = deal_primaries(ground, seeds, &mut free);
        deal_replicas(ground, &mut shards, &mut free);
        let spares = (0..nodes).filter(|&node| free[node]);
        let mut board = Self {
            ground,
            seats: shards.into_iter().flatten().chain(spares).collect(),
            home,
            led: seeds.iter().map(|seed| seed.led).collect(),
            settled: seeds.iter().map(|seed| !seed.stay.is_empty()).collect(),
            tallies: ground.levels.iter().map(|level| Tally::new(level.names.len())).collect(),
            score: [0; 10],
            effort: 20_000 + 1_500 * nodes,
        };
        for shard in 0..ground.shards {
            board.count(shard, 1);
        }
        board
    }

    fn shard(&self, shard: usize) -> &[usize] {
        &self.seats[shard * self.ground.members..][..self.ground.members]
    }

    /// Adds what a shard contributes to the score, or takes it away (`sign` -1).
    fn count(&mut self, shard: usize, sign: i64) {
        let (members, replicas) = (self.ground.members, int(self.ground.members - 1));
        let shard = &self.seats[shard * members..][..members];
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
            // z's: r·p(y) + flow(z, y) in units of 1/r. Summed and squared over all z ≠ y, and
            // without what depends on the p(y) alone, this is Σ flow² + 2r Σ p(y)·guests(y).
            score[AFTER_LOSS + l] += 2 * replicas * sign * tally.guests[at];
            tally.primaries[at] = after;
            for replica in &shard[1..] {
                let to = level.of[*replica];
                if to != at {
                    let flow = i64::from(tally.flows[at * domains + to]);
                    score[AFTER_LOSS + l] += sign * (2 * flow + sign + 2 * replicas * tally.primaries[to]);
                    tally.flows[at * domains + to] += if sign > 0 { 1 } else { -1 };
                    tally.guests[to] += sign;
                }
            }
        }
    }

    /// Swaps whatever makes the score better. First replicas of shards that share a domain move,
    /// which leaves the dealt primaries as they are; then everything may.
    fn improve(&mut self) {
        let best = self.ideal();
        let shared = (0..self.ground.shards).flat_map(|s| (1..self.ground.members).map(move |m| (s, m)));
        let shared: Vec<_> = shared.map(|(s, m)| s * self.ground.members + m).collect();
        while self.score != best && self.pass_over_replicas(&shared) {}
        while self.score != best && self.pass_over_all() {}
    }

    /// Whether a pass over the replicas of unsafe shards improved anything.
    fn pass_over_replicas(&mut self, replicas: &[usize]) -> bool {
        let (members, all) = (self.ground.members, self.ground.shards * self.ground.members);
        let mut improved = false;
        for &x in replicas {
            if !self.is_unsafe(x / members) {
                continue;
            }
            for y in (0..self.seats.len()).filter(|y| *y >= all || y % members != 0) {
                improved |= self.try_swap(x, y);
            }
        }
        improved
    }

    fn pass_over_all(&mut self) -> bool {
        let mut improved = false;
        for x in 0..self.ground.shards * self.ground.members {
            for y in x + 1..self.seats.len() {
                improved |= self.try_swap(x, y);
            }
        }
        improved
    }

    /// Whether members of a shard share more domains than so many members must.
    fn is_unsafe(&mut self, shard: usize) -> bool {
        let members = self.ground.members;
        let shard = &self.seats[shard * members..][..members];
        self.ground.levels.iter().zip(&mut self.tallies).any(|(level, tally)| {
            tally.shared(&level.of, shard) > least_shared(members - 1, level.names.len())
        })
    }

    /// Swaps two seats if both may be and it makes the score better.
    fn try_swap(&mut self, x: usize, y: usize) -> bool {
        let members = self.ground.members;
        let (a, b) = (self.seats[x], self.seats[y]);
        let alike = self.ground.levels.iter().all(|level| level.of[a] == level.of[b]);
        if alike || self.effort == 0 || !self.may_sit(a, y) || !self.may_sit(b, x) {
            return false;
        }
        let shards: &[usize] = match (x / members, y / members) {
            (s, t) if s == t => &[s],
            (s, t) if t >= self.ground.shards => &[s],
            (s, t) => &[s, t],
        };
        self.effort = self.effort.saturating_sub(members * shards.len());
        let before = self.score;
        self.swap(shards, x, y);
        let better = self.score < before;
        if !better {
            self.swap(shards, x, y);
        }
        better
    }

    fn swap(&mut self, shards: &[usize], x: usize, y: usize) {
        shards.iter().for_each(|&s| self.count(s, -1));
        self.seats.swap(x, y);
        shards.iter().for_each(|&s| self.count(s, 1));
    }

    /// Whether a node may move to a seat.
    fn may_sit(&self, node: usize, seat: usize) -> bool {
        let shard = seat / self.ground.members;
        let at_home = self.home[node] == Some(shard);
        let spare = shard >= self.ground.shards;
        let first = !spare && seat % self.ground.members == 0;
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
        let (shards, members) = (self.ground.shards, self.ground.members);
        let word = level.word();
        let at = match level.over {
            Spread::Zone => "in zone",
            Spread::Host => "on host",
        };
        let stays = if kept {
            " (a member stays in its shard while the spec lists it, so also take out the one that should move)"
        } else {
            ""
        };
        if let ([only], true) = (level.names.as_slice(), shards * members > 1) {
            let what = format!("all {} nodes are {at} {only}, whose loss takes them all", self.seats.len());
            let cure = format!("add nodes in other {word}s, or leave {word} out of placement.spread");
            let cure = cure.replace("in other hosts", "on other hosts");
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
                    let names: Vec<_> = together.iter().map(|&n| self.address(n).to_string()).collect();
                    let what = format!("replicas {} of shard {s} are all {at} {name}", list(&names));
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
            format!("add {missing} or more nodes outside of {elsewhere}, where at most {cap} primaries can be in each {word}")
        } else {
            format!("the nodes have room for at most {cap} in each {word}: fail a shard over to another {word}, or add a node there")
        };
        let with_primary_cure = format!(
            "add {} outside of {}{stays}",
            count(with_primary.len(), "node"),
            names(word, crowded.into_iter().collect())
        );
        let more = members.saturating_sub(level.names.len());
        let among_cure = if more > 0 {
            format!("shards of {members} members need {members} {word}s: add nodes in {}{stays}", count(more, &format!("more {word}")))
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
        let (shards, members) = (self.ground.shards, self.ground.members);
        let mut primaries = BTreeMap::new();
        let mut made = Vec::with_capacity(shards);
        for (s, seed) in seeds.into_iter().enumerate() {
            let mut nodes: Vec<Address> = self.shard(s).iter().map(|&n| self.address(n).clone()).collect();
            nodes[1..].sort_unstable();
            primaries.insert(seed.id, nodes[0].clone());
            let same: BTreeSet<_> = seed.previous.iter().collect();
            // Whoever wrote the previous members may have had another order, which is no change.
            let unchanged = seed.previous.len() == members && nodes.iter().all(|n| same.contains(n));
            let members = if unchanged { seed.previous } else { nodes };
            made.push((Shard { id: seed.id, index: seed.index, members }, seed.slots));
        }
        let mut spares: Vec<_> = self.seats[shards * members..].iter().map(|&n| self.address(n).clone()).collect();
        spares.sort_unstable();
        if !spares.is_empty() {
            let names: Vec<_> = spares.iter().map(ToString::to_string).collect();
            let message = format!(
                "{} with {} each need {} nodes, so {} stay{} spare",
                count(shards, "shard"),
                count(members - 1, "replica"),
                shards * members,
                list(&names),
                if names.len() == 1 { "s" } else { "" },
            );
            warnings.push(Warning { code: "spare_nodes".into(), message });
        }
        let shards = Shards::new(made)
            .map_err(|why| Refusal::Invalid(vec![FieldError::new("/spec/nodes", why.to_string())]))?;
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
fn deal_primaries(ground: &Ground, seeds: &[Seed], free: &mut Vec<bool>) -> Vec<Vec<usize>> {
    let (shards, nodes) = (int(ground.shards), int(ground.nodes.len()));
    let replicas = int(ground.members - 1);
    let mut held: Vec<Vec<i64>> = ground.levels.iter().map(|level| vec![0; level.names.len()]).collect();
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
    let mut hold = |held: &mut [Vec<i64>], node: usize| {
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
        let Some(node) = candidates.min_by_key(|&node| (cost(&held, &left, node), node)) else { break };
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
    for filled in 1..ground.members {
        for shard in shards.iter_mut().filter(|shard| shard.len() == filled) {
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
        let mut parts: Vec<&str> = self.cases.iter().take(SHOWN).map(|(_, what)| what.as_str()).collect();
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
        all if names.len() > SHOWN => format!("{} and {} more", all.join(", "), names.len() - SHOWN),
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        all => all.join(""),
    }
}
