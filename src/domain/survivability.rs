//! What a cluster survives: every loss of one node, one host, one zone and one pair of nodes is
//! tried, so that nobody has to believe a rule of thumb.
//!
//! The rules are Redis Cluster's. A shard without its primary is served again once a replica is
//! promoted, and a promotion takes the votes of a majority of *all* primaries that own slots; the
//! votes come from those that are left. (Source: the Redis Cluster specification, "Replica election
//! and promotion".) A shard without slots has no vote and nothing to lose.

mod watched;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use self::watched::Watched;
use super::id::ShardId;
use super::node::Address;
use super::observation::{Observation, Sighting};
use super::slot::SlotSet;
use super::spec::Spec;
use super::topology::{Shard, Topology};
use super::view;

/// What a topology survives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Survivability {
    pub survives: Survives,
    pub node_pairs: NodePairs,
    /// One for each node, then each host, then each zone.
    pub losses: Vec<Loss>,
}

/// Whether every loss of a kind ends `intact` or in a `failover`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Survives {
    pub any_node: bool,
    pub any_host: bool,
    pub any_zone: bool,
}

/// How many of all pairs of nodes may be lost at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodePairs {
    pub total: usize,
    pub survived: usize,
}

/// What fails at the same time: these nodes and all that is on these hosts and in these zones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Lost {
    pub nodes: Vec<Address>,
    pub hosts: Vec<String>,
    pub zones: Vec<String>,
}

/// What one failure does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Loss {
    pub lost: Lost,
    pub outcome: Outcome,
    /// The shards that nobody serves afterwards.
    pub shards_lost: Vec<ShardId>,
    pub slots_lost: usize,
    /// Primaries with slots that are left.
    pub voters_left: usize,
    /// The majority that a promotion takes.
    pub voters_needed: usize,
    pub why: String,
}

/// How a failure ends, the best first. The worst that holds is told: `data_unavailable` comes
/// before `no_quorum`, because votes can be overruled by hand (`CLUSTER FAILOVER TAKEOVER`), while
/// a shard without members can only be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// No primary is lost.
    Intact,
    /// Every primary that is lost has a replica left, and enough voters to promote it.
    Failover,
    /// Replicas are left, but too few voters to promote them.
    NoQuorum,
    /// Some shard has no member left.
    DataUnavailable,
}

impl Outcome {
    #[must_use]
    pub fn survived(self) -> bool {
        self <= Self::Failover
    }
}

/// A member of a shard, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub address: Address,
    pub zone: String,
    pub host: String,
}

/// A shard as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub id: ShardId,
    pub slots: SlotSet,
    /// Never empty, as in a layout.
    pub members: Vec<Part>,
    /// `None` while nobody can say who it is; then the loss of any member is taken for its loss.
    pub primary: Option<Address>,
    /// Whether it is a lone shard: it serves without slots, and nobody votes.
    pub lone: bool,
}

impl Group {
    fn serves(&self) -> bool {
        self.lone || !self.slots.is_empty()
    }

    /// The primary, if it is known. One that is no member tells as little as none.
    fn leader(&self) -> Option<&Address> {
        self.primary.as_ref().filter(|p| self.members.iter().any(|m| m.address == **p))
    }
}

/// The shards with the places of their members, and with the primaries that are seen.
#[must_use]
pub fn groups(wanted: &Topology, seen: &Observation) -> Vec<Group> {
    let places = wanted.places();
    let part = |address: &Address| {
        let place = places.get(address);
        Part {
            address: address.clone(),
            zone: place.map_or(String::new(), |p| p.zone.clone()),
            host: place.map_or(address.host().to_owned(), |p| p.machine().to_owned()),
        }
    };
    // Who is silent now is no help in the next loss.
    let silent = |a: &&Address| matches!(seen.sighting(a), Sighting::Silent(_));
    let living = |shard: &Shard| {
        let living: Vec<_> = shard.members.iter().filter(|a| !silent(a)).map(part).collect();
        if living.is_empty() { shard.members.iter().map(part).collect() } else { living }
    };
    let group = |(shard, slots): (&Shard, SlotSet)| Group {
        id: shard.id,
        members: living(shard),
        primary: view::primary_of(shard, &slots, seen).settled().cloned(),
        lone: wanted.layout.lone().is_some(),
        slots,
    };
    wanted.layout.shards().into_iter().map(group).collect()
}

/// What a topology survives as it is seen.
#[must_use]
pub fn of(wanted: &Topology, seen: &Observation) -> Survivability {
    let groups = groups(wanted, seen);
    match (&wanted.spec, groups.as_slice()) {
        (Spec::Sentinel(spec), [group]) => Watched::new(spec, group, seen).survivability(),
        (Spec::Sentinel(_) | Spec::Cluster(_) | Spec::Replication(_), groups) => {
            survivability(groups)
        }
    }
}

/// What one failure would do to a topology as it is seen.
#[must_use]
pub fn loss(wanted: &Topology, seen: &Observation, fail: &Lost) -> Loss {
    let groups = groups(wanted, seen);
    match (&wanted.spec, groups.as_slice()) {
        (Spec::Sentinel(spec), [group]) => Watched::new(spec, group, seen).loss(fail.clone()),
        (Spec::Sentinel(_) | Spec::Cluster(_) | Spec::Replication(_), groups) => {
            what_if(groups, fail)
        }
    }
}

/// Tries every failure.
#[must_use]
pub fn survivability(groups: &[Group]) -> Survivability {
    let cluster = Cluster::new(groups);
    let nodes: Vec<Loss> = (0..cluster.parts.len())
        .map(|i| {
            let lost =
                Lost { nodes: vec![cluster.parts[i].part.address.clone()], ..Lost::default() };
            cluster.loss(lost, &[i])
        })
        .collect();
    let hosts: Vec<Loss> = cluster
        .domains(|part| &part.host)
        .into_iter()
        .map(|(host, at)| cluster.loss(Lost { hosts: vec![host.clone()], ..Lost::default() }, &at))
        .collect();
    let zones: Vec<Loss> = cluster
        .domains(|part| &part.zone)
        .into_iter()
        .map(|(zone, at)| cluster.loss(Lost { zones: vec![zone.clone()], ..Lost::default() }, &at))
        .collect();
    let all = |losses: &[Loss]| losses.iter().all(|loss| loss.outcome.survived());
    Survivability {
        survives: Survives { any_node: all(&nodes), any_host: all(&hosts), any_zone: all(&zones) },
        node_pairs: cluster.pairs(),
        losses: [nodes, hosts, zones].concat(),
    }
}

/// What one failure would do. What `fail` names and no shard has is lost without harm.
#[must_use]
pub fn what_if(groups: &[Group], fail: &Lost) -> Loss {
    let cluster = Cluster::new(groups);
    let nodes: BTreeSet<_> = fail.nodes.iter().collect();
    let hosts: BTreeSet<_> = fail.hosts.iter().collect();
    let zones: BTreeSet<_> = fail.zones.iter().collect();
    let hit =
        |p: &Part| nodes.contains(&p.address) || hosts.contains(&p.host) || zones.contains(&p.zone);
    let at: Vec<usize> = (0..cluster.parts.len()).filter(|&i| hit(cluster.parts[i].part)).collect();
    cluster.loss(fail.clone(), &at)
}

/// The groups, laid out so that one failure costs no more than the members that it takes.
struct Cluster<'a> {
    groups: &'a [Group],
    parts: Vec<Member<'a>>,
    /// How many shards own slots; each has one vote.
    voters: usize,
}

struct Member<'a> {
    part: &'a Part,
    /// Index of its group.
    group: usize,
    /// How many members its group has, itself included.
    of: usize,
    owns_slots: bool,
    /// Its loss is the loss of its group's primary, or must be taken for it.
    leads: bool,
}

/// What a failure does to one shard that owns slots.
#[derive(Default)]
struct Hit {
    taken: usize,
    led: bool,
}

/// The shards that a failure hits, by index, the worse in the earlier list.
struct Toll {
    emptied: Vec<usize>,
    headless: Vec<usize>,
    thinned: Vec<usize>,
    voters_left: usize,
}

impl<'a> Cluster<'a> {
    fn new(groups: &'a [Group]) -> Self {
        let mut parts = Vec::new();
        for (index, group) in groups.iter().enumerate() {
            let leader = group.leader();
            parts.extend(group.members.iter().map(|part| Member {
                part,
                group: index,
                of: group.members.len(),
                owns_slots: group.serves(),
                leads: leader.is_none_or(|leader| *leader == part.address),
            }));
        }
        Self { groups, parts, voters: groups.iter().filter(|g| g.serves()).count() }
    }

    fn needed(&self) -> usize {
        if self.groups.iter().any(|g| g.lone) { 0 } else { self.voters / 2 + 1 }
    }

    /// The members by host or by zone.
    fn domains(&self, of: impl Fn(&'a Part) -> &'a String) -> BTreeMap<&'a String, Vec<usize>> {
        let mut domains: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (i, member) in self.parts.iter().enumerate() {
            domains.entry(of(member.part)).or_default().push(i);
        }
        domains
    }

    /// Tries all pairs. A pair is survived exactly if it takes no shard whole and leaves enough
    /// voters; that is what [`Self::loss`] says too, without what it allocates.
    fn pairs(&self) -> NodePairs {
        let votes = |m: &Member| usize::from(m.owns_slots && m.leads);
        let needed = self.needed();
        let (mut total, mut survived) = (0, 0);
        for (i, a) in self.parts.iter().enumerate() {
            for b in &self.parts[i + 1..] {
                let (emptied, gone) = if a.group == b.group {
                    (a.owns_slots && a.of == 2, votes(a).max(votes(b)))
                } else {
                    let alone = |m: &Member| m.owns_slots && m.of == 1;
                    (alone(a) || alone(b), votes(a) + votes(b))
                };
                total += 1;
                survived += usize::from(!emptied && self.voters - gone >= needed);
            }
        }
        NodePairs { total, survived }
    }

    /// What the loss of the members `at` does.
    fn loss(&self, lost: Lost, at: &[usize]) -> Loss {
        let toll = self.toll(at);
        let quorum = toll.voters_left >= self.needed();
        let outcome = if !toll.emptied.is_empty() {
            Outcome::DataUnavailable
        } else if !quorum {
            Outcome::NoQuorum
        } else if !toll.headless.is_empty() {
            Outcome::Failover
        } else {
            Outcome::Intact
        };
        let mut unserved = toll.emptied.clone();
        if !quorum {
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

    fn slots(&self, groups: &[usize]) -> usize {
        groups.iter().map(|&g| self.groups[g].slots.count()).sum()
    }

    fn toll(&self, at: &[usize]) -> Toll {
        let mut hits: BTreeMap<usize, Hit> = BTreeMap::new();
        for member in at.iter().map(|&i| &self.parts[i]).filter(|m| m.owns_slots) {
            let hit = hits.entry(member.group).or_default();
            hit.taken += 1;
            hit.led |= member.leads;
        }
        let (mut emptied, mut headless, mut thinned) = (vec![], vec![], vec![]);
        for (group, hit) in hits {
            if hit.taken == self.groups[group].members.len() {
                emptied.push(group);
            } else if hit.led {
                headless.push(group);
            } else {
                thinned.push(group);
            }
        }
        let voters_left = self.voters - emptied.len() - headless.len();
        Toll { emptied, headless, thinned, voters_left }
    }

    /// One sentence that a person can check.
    fn why(&self, lost: &Lost, at: &[usize], toll: &Toll) -> String {
        let (subject, plural) = subject(lost);
        let holds = if plural { "hold" } else { "holds" };
        if self.voters == 0 {
            return String::from(
                "no shard owns slots, so there are no voters and nothing is served",
            );
        }
        if at.is_empty() {
            return format!("{subject} {holds} no member of any shard");
        }
        if self.groups.iter().any(|g| g.lone) {
            return match (toll.emptied.as_slice(), toll.headless.as_slice()) {
                ([], []) => format!("{subject} {holds} no primary, only replicas"),
                ([], _) => format!("{subject} {holds} the primary; a replica can take over"),
                (_, _) => format!(
                    "{subject} {holds} every member, so nothing is served until one is back"
                ),
            };
        }
        let doubt = toll.headless.iter().any(|&g| self.groups[g].leader().is_none());
        let primaries = {
            let noun = if toll.headless.len() == 1 { "the primary of" } else { "the primaries of" };
            format!("{noun} {}", shards(&toll.headless))
        };
        let votes = format!(
            "{} of {} voters {} left and {} {} needed",
            toll.voters_left,
            self.voters,
            is(toll.voters_left),
            self.needed(),
            is(self.needed()),
        );
        let quorum = toll.voters_left >= self.needed();
        match (toll.emptied.as_slice(), toll.headless.as_slice()) {
            ([], []) if toll.thinned.is_empty() => {
                format!(
                    "{subject} {holds} members of shards without slots alone, so no key is lost"
                )
            }
            ([], []) => format!(
                "{subject} {holds} no primary, only replicas of {}; all primaries are left",
                shards(&toll.thinned)
            ),
            ([], _) => {
                let holds = if doubt { "may hold" } else { holds };
                let then = match (quorum, toll.headless.len()) {
                    (true, 1) => "so a replica takes over",
                    (true, _) => "so a replica of each takes over",
                    (false, _) => "so no replica is promoted and the whole cluster goes down",
                };
                format!("{subject} {holds} {primaries}; {votes}, {then}")
            }
            (emptied, headless) => {
                let slots = self.slots(emptied);
                let maybe = if doubt { "perhaps " } else { "" };
                let also = match (headless, quorum) {
                    ([], true) => String::new(),
                    ([], false) => format!("; {votes}, so the whole cluster goes down"),
                    (_, true) => {
                        format!(", and {maybe}{primaries}; {votes}, so replicas take over there")
                    }
                    (_, false) => format!(
                        ", and {maybe}{primaries}; {votes}, so no replica is promoted and the whole cluster goes down"
                    ),
                };
                format!(
                    "{subject} {holds} every member of {}, whose {slots} {} not served until one is back (nor is the rest, unless cluster-require-full-coverage is no){also}",
                    shards(emptied),
                    if slots == 1 { "slot is" } else { "slots are" },
                )
            }
        }
    }
}

/// Who fails, and whether that is grammatically more than one.
fn subject(lost: &Lost) -> (String, bool) {
    let named = |one: &str, names: Vec<String>| match names.len() {
        0 => None,
        1 => Some(format!("{one} {}", list(&names))),
        _ => Some(format!("{one}s {}", list(&names))),
    };
    let nodes = lost.nodes.iter().map(ToString::to_string).collect();
    let parts: Vec<String> = [
        named("zone", lost.zones.clone()),
        named("host", lost.hosts.clone()),
        named("node", nodes),
    ]
    .into_iter()
    .flatten()
    .collect();
    match lost.zones.len() + lost.hosts.len() + lost.nodes.len() {
        0 => (String::from("nothing"), false),
        count => (list(&parts), count > 1),
    }
}

fn shards(indices: &[usize]) -> String {
    let names: Vec<String> = indices.iter().map(ToString::to_string).collect();
    format!("{} {}", if names.len() == 1 { "shard" } else { "shards" }, list(&names))
}

fn is(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

/// `a, b and c`; of a long list the first few and how many more.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] if names.len() <= SHOWN => format!("{} and {last}", first.join(", ")),
        many => {
            let shown: Vec<&str> = many.iter().take(SHOWN).map(String::as_str).collect();
            format!("{} and {} more", shown.join(", "), many.len() - SHOWN)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::id::TopologyId;

    /// Shards of members `zone` + number on a host of its own each; the first is the primary.
    fn cluster(shards: &[&[&str]]) -> Vec<Group> {
        let shares = SlotSet::shares(shards.len());
        let part = |name: &&str| Part {
            address: format!("{name}:6379").parse().unwrap(),
            zone: name[..1].to_owned(),
            host: format!("host-{name}"),
        };
        let group = |(i, (members, slots)): (usize, (&&[&str], SlotSet))| {
            let members: Vec<Part> = members.iter().map(part).collect();
            let id = ShardId::derive(TopologyId(uuid::Uuid::nil()), u32::try_from(i).unwrap());
            Group { id, slots, primary: Some(members[0].address.clone()), members, lone: false }
        };
        shards.iter().zip(shares).enumerate().map(group).collect()
    }

    fn nodes(names: &[&str]) -> Lost {
        let nodes = names.iter().map(|n| format!("{n}:6379").parse().unwrap()).collect();
        Lost { nodes, ..Lost::default() }
    }

    #[test]
    fn six_nodes_in_three_zones_survive_any_single_loss_but_not_every_pair() {
        let groups = cluster(&[&["a1", "b2"], &["b1", "c2"], &["c1", "a2"]]);
        let all = survivability(&groups);
        assert_eq!(all.survives, Survives { any_node: true, any_host: true, any_zone: true });
        // Of the 15 pairs, 3 are whole shards and 3 are two primaries.
        assert_eq!(all.node_pairs, NodePairs { total: 15, survived: 9 });
        assert_eq!(all.losses.len(), 6 + 6 + 3);

        let shard = what_if(&groups, &nodes(&["a1", "b2"]));
        assert_eq!(shard.outcome, Outcome::DataUnavailable);
        assert_eq!((shard.slots_lost, shard.voters_left), (5461, 2));
        assert_eq!(shard.shards_lost, [groups[0].id]);

        let primaries = what_if(&groups, &nodes(&["a1", "b1"]));
        assert_eq!(primaries.outcome, Outcome::NoQuorum);
        assert_eq!((primaries.voters_left, primaries.voters_needed), (1, 2));
        assert_eq!(primaries.shards_lost, [groups[0].id, groups[1].id]);
        assert_eq!(
            primaries.why,
            "nodes a1:6379 and b1:6379 hold the primaries of shards 0 and 1; 1 of 3 voters is left \
             and 2 are needed, so no replica is promoted and the whole cluster goes down"
        );

        let replicas = what_if(&groups, &nodes(&["b2", "c2"]));
        assert_eq!((replicas.outcome, replicas.slots_lost), (Outcome::Intact, 0));
        let zone = what_if(&groups, &Lost { zones: vec!["a".into()], ..Lost::default() });
        assert_eq!(zone.outcome, Outcome::Failover);
        assert_eq!(
            zone.why,
            "zone a holds the primary of shard 0; 2 of 3 voters are left and 2 are needed, so a \
             replica takes over"
        );
        assert!(all.losses.contains(&zone));
    }

    #[test]
    fn a_zone_with_most_primaries_takes_the_cluster_down() {
        let groups = cluster(&[&["a1", "b1"], &["a2", "b2"], &["b3", "a3"]]);
        let all = survivability(&groups);
        assert_eq!(all.survives, Survives { any_node: true, any_host: true, any_zone: false });
        let outcomes: Vec<_> =
            all.losses[12..].iter().map(|l| (l.outcome, l.voters_left)).collect();
        assert_eq!(outcomes, [(Outcome::NoQuorum, 1), (Outcome::Failover, 2)]);
    }

    #[test]
    fn without_replicas_no_node_is_survived() {
        let all = survivability(&cluster(&[&["a1"], &["b1"], &["c1"]]));
        assert_eq!(all.survives, Survives { any_node: false, any_host: false, any_zone: false });
        assert_eq!(all.node_pairs, NodePairs { total: 3, survived: 0 });
        assert!(
            all.losses.iter().all(|l| l.outcome == Outcome::DataUnavailable && l.voters_left == 2)
        );
    }

    #[test]
    fn while_the_primary_is_unknown_any_member_may_be_it() {
        let mut groups = cluster(&[&["a1", "b2"], &["b1", "c2"], &["c1", "a2"]]);
        groups[0].primary = None;
        let loss = what_if(&groups, &nodes(&["b2", "b1"]));
        assert_eq!((loss.outcome, loss.voters_left), (Outcome::NoQuorum, 1));
        assert!(loss.why.contains("may hold the primaries of shards 0 and 1"), "{}", loss.why);
        assert_eq!(what_if(&groups, &nodes(&["b2"])).outcome, Outcome::Failover);
    }

    #[test]
    fn a_shard_without_slots_neither_votes_nor_counts() {
        let mut groups = cluster(&[&["a1", "b2"], &["b1", "c2"], &["c1", "a2"]]);
        let mut empty = cluster(&[&["a9"]]).remove(0);
        empty.slots = SlotSet::empty();
        groups.push(empty);
        let loss = what_if(&groups, &nodes(&["a9"]));
        assert_eq!((loss.outcome, loss.voters_left, loss.voters_needed), (Outcome::Intact, 3, 2));
    }

    #[test]
    fn the_json_is_that_of_the_contract() {
        let groups = cluster(&[&["a1", "b2"], &["b1", "c2"], &["c1", "a2"]]);
        let json = serde_json::to_value(survivability(&groups)).unwrap();
        assert_eq!(
            json["survives"],
            serde_json::json!({"any_node": true, "any_host": true, "any_zone": true})
        );
        assert_eq!(json["node_pairs"], serde_json::json!({"total": 15, "survived": 9}));
        let keys: Vec<_> = json["losses"][0].as_object().unwrap().keys().cloned().collect();
        let mut wanted =
            ["lost", "outcome", "shards_lost", "slots_lost", "voters_left", "voters_needed", "why"];
        wanted.sort_unstable();
        assert_eq!(
            keys.into_iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>(),
            wanted
        );
        assert_eq!(json["losses"][0]["outcome"], "failover");
        assert_eq!(
            json["losses"][0]["lost"],
            serde_json::json!({"nodes": ["a1:6379"], "hosts": [], "zones": []})
        );
        let fail: Lost = serde_json::from_str(r#"{"zones": ["a"]}"#).unwrap();
        assert_eq!(fail.zones, ["a"]);
    }

    #[test]
    fn a_thousand_nodes_are_tried_quickly() {
        let names: Vec<[String; 2]> = (0..500)
            .map(|i| {
                [
                    format!("{}{i}", ["a", "b", "c"][i % 3]),
                    format!("{}{i}r", ["b", "c", "a"][i % 3]),
                ]
            })
            .collect();
        let rows: Vec<Vec<&str>> =
            names.iter().map(|r| r.iter().map(String::as_str).collect()).collect();
        let groups = cluster(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let start = std::time::Instant::now();
        let all = survivability(&groups);
        assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(all.node_pairs, NodePairs { total: 499_500, survived: 499_000 });
        assert!(all.survives.any_zone);
    }

    /// Members as (zone, host), whether the primary is known, whether the shard owns slots.
    type Sketch = Vec<(Vec<(u8, u8)>, bool, bool)>;

    fn drawn(sketch: &Sketch) -> Vec<Group> {
        let mut number = 0;
        let shares = SlotSet::shares(sketch.len());
        let mut groups = Vec::new();
        for (i, ((places, known, owns), share)) in sketch.iter().zip(shares).enumerate() {
            let members: Vec<Part> = places
                .iter()
                .map(|(zone, host)| {
                    number += 1;
                    let address = format!("n{number}:1").parse().unwrap();
                    Part { address, zone: format!("z{zone}"), host: format!("h{host}") }
                })
                .collect();
            groups.push(Group {
                lone: false,
                id: ShardId::derive(TopologyId(uuid::Uuid::nil()), u32::try_from(i).unwrap()),
                slots: if *owns { share } else { SlotSet::empty() },
                primary: known.then(|| members[members.len() / 2].address.clone()),
                members,
            });
        }
        groups
    }

    /// The same in sets, from the definition.
    fn naive(groups: &[Group], gone: &BTreeSet<&Address>) -> (Outcome, Vec<ShardId>, usize, usize) {
        let owners: Vec<&Group> = groups.iter().filter(|g| !g.slots.is_empty()).collect();
        let left = |g: &Group| g.members.iter().filter(|m| !gone.contains(&m.address)).count();
        let headless = |g: &Group| match &g.primary {
            Some(primary) => gone.contains(primary),
            None => g.members.iter().any(|m| gone.contains(&m.address)),
        };
        let voters = owners.iter().filter(|g| !headless(g)).count();
        let quorum = 2 * voters > owners.len();
        let outcome = if owners.iter().any(|g| left(g) == 0) {
            Outcome::DataUnavailable
        } else if !quorum {
            Outcome::NoQuorum
        } else if owners.iter().any(|g| headless(g)) {
            Outcome::Failover
        } else {
            Outcome::Intact
        };
        let lost = owners.iter().filter(|g| left(g) == 0 || (headless(g) && !quorum));
        let slots = lost.clone().map(|g| g.slots.count()).sum();
        (outcome, lost.map(|g| g.id).collect(), slots, voters)
    }

    fn sketch() -> impl Strategy<Value = Sketch> {
        let members = prop::collection::vec((0..4u8, 0..5u8), 1..5);
        prop::collection::vec((members, prop::bool::weighted(0.8), prop::bool::weighted(0.9)), 1..6)
    }

    proptest! {
        #[test]
        fn every_outcome_is_that_of_plain_sets(
            sketch in sketch(),
            zones in prop::collection::btree_set(0..5u8, 0..3),
            hosts in prop::collection::btree_set(0..6u8, 0..3),
            nodes in prop::collection::btree_set(0..14usize, 0..4),
        ) {
            let groups = drawn(&sketch);
            let parts: Vec<&Part> = groups.iter().flat_map(|g| &g.members).collect();
            let fail = Lost {
                zones: zones.iter().map(|z| format!("z{z}")).collect(),
                hosts: hosts.iter().map(|h| format!("h{h}")).collect(),
                nodes: nodes
                    .iter()
                    .filter_map(|&n| parts.get(n))
                    .map(|p| p.address.clone())
                    .collect(),
            };
            let hit = |p: &Part| {
                fail.zones.contains(&p.zone)
                    || fail.hosts.contains(&p.host)
                    || fail.nodes.contains(&p.address)
            };
            let gone = parts.iter().filter(|p| hit(p)).map(|p| &p.address).collect();
            let loss = what_if(&groups, &fail);
            let (outcome, shards, slots, voters) = naive(&groups, &gone);
            prop_assert_eq!(loss.outcome, outcome);
            prop_assert_eq!((loss.slots_lost, loss.voters_left), (slots, voters));
            prop_assert_eq!(loss.shards_lost, shards);
        }

        #[test]
        fn the_summary_is_that_of_all_its_losses(sketch in sketch()) {
            let groups = drawn(&sketch);
            let all = survivability(&groups);
            let parts: Vec<&Part> = groups.iter().flat_map(|g| &g.members).collect();
            let mut pairs = NodePairs { total: 0, survived: 0 };
            for (i, a) in parts.iter().enumerate() {
                for b in &parts[i + 1..] {
                    pairs.total += 1;
                    let gone = [&a.address, &b.address].into();
                    pairs.survived += usize::from(naive(&groups, &gone).0.survived());
                }
            }
            prop_assert_eq!(all.node_pairs, pairs);
            let hosts: BTreeSet<_> = parts.iter().map(|p| &p.host).collect();
            let zones: BTreeSet<_> = parts.iter().map(|p| &p.zone).collect();
            prop_assert_eq!(all.losses.len(), parts.len() + hosts.len() + zones.len());
            for loss in &all.losses {
                prop_assert_eq!(loss, &what_if(&groups, &loss.lost));
            }
            let survived = |of: fn(&Lost) -> bool| {
                all.losses.iter().filter(|l| of(&l.lost)).all(|l| l.outcome.survived())
            };
            let survives = Survives {
                any_node: survived(|l| !l.nodes.is_empty()),
                any_host: survived(|l| !l.hosts.is_empty()),
                any_zone: survived(|l| !l.zones.is_empty()),
            };
            prop_assert_eq!(all.survives, survives);
        }
    }
}
