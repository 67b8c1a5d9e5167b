//! A scene laid out so that one failure costs no more than the parts that it takes.

use std::collections::BTreeMap;

use super::{Electors, Group, Loss, Lost, NodePairs, Outcome, Part, Scene};

pub(super) struct Trial<'a> {
    pub(super) groups: &'a [Group],
    pub(super) electors: &'a Electors,
    /// The members of all groups, then the Sentinels.
    pub(super) parts: Vec<Seated<'a>>,
    /// How many have a vote, whether they answer or not.
    pub(super) voters: usize,
    /// How many of them can give it now.
    present: usize,
}

/// A part, and what hangs on it.
pub(super) struct Seated<'a> {
    pub(super) part: &'a Part,
    /// What it is in its group, if it is no Sentinel.
    member: Option<Member>,
}

struct Member {
    /// Index of its group.
    group: usize,
    /// How many members its group has, itself included.
    of: usize,
    /// How many of them it takes to go on taking writes.
    least: usize,
    /// Whether the group has anything to lose.
    counts: bool,
    /// Its loss is the loss of its group's primary, or must be taken for it.
    leads: bool,
    /// And with it the loss of a vote.
    votes: bool,
}

/// What a failure does to one shard that has something to lose.
#[derive(Default)]
struct Hit {
    taken: usize,
    led: bool,
}

/// The shards that a failure hits, by index, the worse in the earlier list.
pub(super) struct Toll {
    pub(super) emptied: Vec<usize>,
    pub(super) headless: Vec<usize>,
    pub(super) thinned: Vec<usize>,
    /// Of those that have or get a primary, who takes no writes with so few replicas.
    pub(super) refusing: Vec<usize>,
    pub(super) voters_left: usize,
    /// Whether whoever lost a primary gets another.
    pub(super) answered: bool,
}

impl<'a> Trial<'a> {
    pub(super) fn new(scene: &'a Scene) -> Self {
        let Scene { groups, electors } = scene;
        let counts = |g: &Group| *electors != Electors::Primaries || !g.slots.is_empty();
        let mut parts = Vec::new();
        for (index, group) in groups.iter().enumerate() {
            let leader = group.leader();
            parts.extend(group.members.iter().map(|part| {
                let leads = leader.is_none_or(|leader| *leader == part.address);
                let member = Member {
                    group: index,
                    of: group.members.len(),
                    least: group.least_replicas + 1,
                    counts: counts(group),
                    leads,
                    votes: leads && !group.mute,
                };
                Seated { part, member: Some(member) }
            }));
        }
        let (voters, present) = match electors {
            Electors::Primaries => {
                let all = groups.iter().filter(|g| counts(g));
                (all.clone().count(), all.filter(|g| !g.mute).count())
            }
            Electors::Sentinels { parts: sentinels, all, .. } => {
                parts.extend(sentinels.iter().map(|part| Seated { part, member: None }));
                (*all, sentinels.len())
            }
            Electors::Nobody => (0, 0),
        };
        Self { groups, electors, parts, voters, present }
    }

    /// How many votes a promotion takes.
    pub(super) fn needed(&self) -> usize {
        match self.electors {
            Electors::Primaries => self.voters / 2 + 1,
            Electors::Sentinels { needed, .. } => *needed,
            Electors::Nobody => 1,
        }
    }

    /// The parts by host or by zone.
    pub(super) fn domains(
        &self,
        of: impl Fn(&'a Part) -> &'a String,
    ) -> BTreeMap<&'a String, Vec<usize>> {
        let mut domains: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (i, seated) in self.parts.iter().enumerate() {
            domains.entry(of(seated.part)).or_default().push(i);
        }
        domains
    }

    /// Tries all pairs. It says what [`Self::loss`] says too, without what that allocates.
    pub(super) fn pairs(&self) -> NodePairs {
        let (mut total, mut survived) = (0, 0);
        for (i, a) in self.parts.iter().enumerate() {
            for b in &self.parts[i + 1..] {
                total += 1;
                survived += usize::from(self.pair_survived(a, b));
            }
        }
        NodePairs { total, survived }
    }

    fn pair_survived(&self, a: &Seated, b: &Seated) -> bool {
        let leads = |m: Option<&Member>| usize::from(m.is_some_and(|m| m.leads));
        let votes = |m: Option<&Member>| usize::from(m.is_some_and(|m| m.votes));
        let [left, right] = [a, b].map(|s| s.member.as_ref().filter(|m| m.counts));
        let together = matches!((left, right), (Some(l), Some(r)) if l.group == r.group);
        // Who has too few members left takes no writes, or is gone.
        let few = |m: Option<&Member>, gone: usize| m.is_some_and(|m| m.of < m.least + gone);
        let (few, headless, lost) = if together {
            (few(left, 2), leads(left).max(leads(right)), votes(left).max(votes(right)))
        } else {
            (few(left, 1) || few(right, 1), leads(left) + leads(right), votes(left) + votes(right))
        };
        let sentinels = usize::from(a.member.is_none()) + usize::from(b.member.is_none());
        !few && self.answers(headless, self.voters_left(lost, sentinels))
    }

    /// Who can vote after so many primaries that could and Sentinels are lost.
    fn voters_left(&self, primaries: usize, sentinels: usize) -> usize {
        match self.electors {
            Electors::Primaries => self.present.saturating_sub(primaries),
            Electors::Sentinels { .. } => self.present.saturating_sub(sentinels),
            Electors::Nobody => 0,
        }
    }

    /// Whether so many shards that lost their primary get another. A cluster without a majority is
    /// down in any case.
    fn answers(&self, headless: usize, voters_left: usize) -> bool {
        let waits = *self.electors == Electors::Primaries || headless > 0;
        !waits || voters_left >= self.needed()
    }

    /// What the loss of the parts `at` does.
    pub(super) fn loss(&self, lost: Lost, at: &[usize]) -> Loss {
        let toll = self.toll(at);
        let outcome = if !toll.emptied.is_empty() {
            Outcome::DataUnavailable
        } else if !toll.answered {
            Outcome::NoQuorum
        } else if !toll.refusing.is_empty() {
            Outcome::WritesRefused
        } else if !toll.headless.is_empty() {
            Outcome::Failover
        } else {
            Outcome::Intact
        };
        let mut unserved = toll.emptied.clone();
        if !toll.answered {
            unserved.extend(&toll.headless);
            unserved.sort_unstable();
        }
        Loss {
            outcome,
            shards_lost: unserved.iter().map(|&g| self.groups[g].id).collect(),
            slots_lost: self.slots(&unserved),
            voters_left: toll.voters_left,
            voters_needed: self.needed(),
            why: self.why(&lost, at, &toll),
            lost,
        }
    }

    pub(super) fn slots(&self, groups: &[usize]) -> usize {
        groups.iter().map(|&g| self.groups[g].slots.count()).sum()
    }

    pub(super) fn toll(&self, at: &[usize]) -> Toll {
        let mut hits: BTreeMap<usize, Hit> = BTreeMap::new();
        let mut sentinels = 0;
        for seated in at.iter().map(|&i| &self.parts[i]) {
            match &seated.member {
                None => sentinels += 1,
                Some(member) if member.counts => {
                    let hit = hits.entry(member.group).or_default();
                    hit.taken += 1;
                    hit.led |= member.leads;
                }
                Some(_) => {}
            }
        }
        let (mut emptied, mut headless, mut thinned) = (vec![], vec![], vec![]);
        let mut refusing = vec![];
        for (group, hit) in hits {
            let Group { members, least_replicas, .. } = &self.groups[group];
            let left = members.len() - hit.taken;
            if left == 0 {
                emptied.push(group);
                continue;
            }
            let list = if hit.led { &mut headless } else { &mut thinned };
            list.push(group);
            if left < least_replicas + 1 {
                refusing.push(group);
            }
        }
        // A shard that is emptied has lost its vote like one that lost its primary.
        let voted = emptied.iter().chain(&headless).filter(|&&g| !self.groups[g].mute).count();
        let voters_left = self.voters_left(voted, sentinels);
        let answered = self.answers(headless.len(), voters_left);
        if !answered {
            refusing.retain(|group| !headless.contains(group));
        }
        Toll { emptied, headless, thinned, refusing, voters_left, answered }
    }
}
