//! A deployment that Sentinels watch becomes a topology as it is: from any of them to the others, to the
//! primary that they name, and to all who follow it.

use std::collections::{BTreeMap, BTreeSet};

use super::adopt::{self, Names};
use super::watched::agreed;
use crate::domain::intent::adopt::{Adoption, Request, UNKNOWN_ZONE};
use crate::domain::intent::create::{cannot_be_read, mixed_versions};
use crate::domain::intent::sentinels::concerns;
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Role, Sighting};
use crate::domain::placement::Warning;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::sentinel::{Watch, Watchers};
use crate::domain::spec::{NodeSpec, SentinelSpec, Spec};
use crate::domain::topology::Layout;

/// Whom the Sentinels that were seen know of the deployment that is meant, and that were not looked at
/// yet.
pub fn unasked(seeds: &[Address], seen: &Observation) -> BTreeSet<Address> {
    let Ok(Some(name)) = meant(seeds, seen) else { return BTreeSet::new() };
    let watches = seen.nodes.keys().filter_map(|a| seen.watch(a, &name));
    let known = watches.flat_map(|w| {
        let replicas = w.replicas.iter().map(|r| &r.address);
        let others = w.sentinels.values().filter_map(|o| o.address.as_ref());
        w.primary.iter().chain(replicas).chain(others)
    });
    known.filter(|a| !seen.nodes.contains_key(*a)).cloned().collect()
}

/// The name of the deployment that is meant by the seeds: the only one that a Sentinel among them
/// watches, or the one that has another seed among its nodes. `None` where no seed is a Sentinel.
pub fn meant(seeds: &[Address], seen: &Observation) -> Result<Option<String>, Refusal> {
    let sentinel =
        |(i, s): (usize, &Address)| Some((i, s.clone(), seen.report(s)?.sentinel.as_ref()?));
    let Some((i, sentinel, view)) = seeds.iter().enumerate().find_map(sentinel) else {
        return Ok(None);
    };
    let refuse =
        |why: String| Err(Refusal::Invalid(vec![FieldError::new(format!("/seeds/{i}"), why)]));
    let names: Vec<&String> = view.watches.keys().collect();
    if let [only] = names.as_slice() {
        return Ok(Some((*only).clone()));
    }
    if names.is_empty() {
        return refuse(format!("{sentinel} watches nobody: name one that does"));
    }
    let has_seed = |w: &Watch| {
        let replicas = w.replicas.iter().map(|r| r.address_in(seen));
        w.primary_in(seen).into_iter().chain(replicas).any(|a| seeds.contains(a))
    };
    let by_seed: Vec<&String> =
        view.watches.iter().filter(|(_, w)| has_seed(w)).map(|(name, _)| name).collect();
    match by_seed.as_slice() {
        [only] => Ok(Some((*only).clone())),
        _ => {
            let names: Vec<&str> = names.iter().map(|n| n.as_str()).collect();
            refuse(format!(
                "{sentinel} watches several deployments ({}): name a data node of the one that is meant among the seeds, too",
                names.join(", ")
            ))
        }
    }
}

/// The deployment of that name.
pub fn adopt(request: &Request, name: &str, seen: &Observation) -> Result<Adoption, Refusal> {
    let at_seeds = |why: String| Refusal::Invalid(vec![FieldError::new("/seeds", why)]);
    let sentinels = sentinels(name, seen);
    let watchers = Watchers {
        name: name.to_owned(),
        sentinels: sentinels.watching.clone(),
        members: vec![],
        apart: BTreeSet::new(),
    };
    let Some((primary, _)) = watchers.believed(seen) else {
        let newest = sentinels.watches(name, seen).into_iter().max_by_key(|w| w.epoch);
        let named = newest.and_then(|w| w.primary_in(seen));
        let why = match named.map(|named| (named, seen.sighting(named))) {
            None => "name nobody as primary: wait for their failover".to_owned(),
            Some((named, Sighting::Silent(s))) => {
                let why = cannot_be_read(&s.code, &s.message, "credentials.admin");
                format!("name {named} as primary, which {why}")
            }
            Some((named, _)) => format!(
                "name {named} as primary, which does not answer here as one: wait for their failover, or open the way to it"
            ),
        };
        return Err(at_seeds(format!("the Sentinels of `{name}` {why}")));
    };
    let names = Names::of(seen);
    let mut members = adopt::following(names.name(primary), &names, seen);
    let watches = sentinels.watches(name, seen);
    // Those that Sentinels reach, and that do not follow just now.
    for replica in watches.iter().flat_map(|w| &w.replicas).filter(|r| !r.is_down()) {
        let at = names.name(replica.address_in(seen));
        if !members.contains(at) && seen.report(at).is_some_and(|r| r.role == Role::Replica) {
            members.push(at.clone());
        }
    }
    let zone = |a: &Address| {
        let zone = request.zones.iter().find(|(named, _)| names.name(named) == a);
        zone.map_or_else(|| UNKNOWN_ZONE.to_owned(), |(_, zone)| zone.clone())
    };
    let node = |a: &Address| NodeSpec { address: a.clone(), zone: zone(a), host: None };
    refuse_unknown(request, &names, &members, &sentinels.all)?;
    let shard = adopt::shard(request, members.clone());
    let count = sentinels.all.len();
    let quorum = watches.first().map(|w| w.quorum).filter(|q| usize::from(*q) != count / 2 + 1);
    let option = |of: Figure| agreed(&watches, of);
    let spec = SentinelSpec {
        replicas: u16::try_from(members.len().saturating_sub(1)).unwrap_or(u16::MAX),
        nodes: members.iter().map(node).collect(),
        master_name: name.to_owned(),
        quorum,
        sentinels: sentinels.all.iter().map(node).collect(),
        down_after_ms: option(|w| w.down_after_ms).and_then(|v| u32::try_from(v).ok()),
        failover_timeout_ms: option(|w| w.failover_timeout_ms).and_then(|v| u32::try_from(v).ok()),
        parallel_syncs: option(|w| w.parallel_syncs).and_then(|v| u16::try_from(v).ok()),
        credentials: request.credentials.clone(),
        tls: None,
        placement: Default::default(),
        settings: BTreeMap::new(),
        failover: Default::default(),
        overrides: Default::default(),
    };
    let mut warnings = concerns(&spec);
    warnings.extend(sentinels.warnings(&spec, &watches, seen));
    let wanted = Spec::Sentinel(spec);
    let wrong = wanted.validate();
    if !wrong.is_empty() {
        return Err(Refusal::Invalid(
            wrong.into_iter().map(|e| FieldError::new("/seeds", e.detail)).collect(),
        ));
    }
    warnings.extend(mixed_versions(wanted.nodes(), seen));
    let layout = Layout::Sentinel { shard, sentinels: sentinels.all };
    let seed = request.seeds.iter().find(|s| seen.report(s).is_some());
    let seed = seed.or(request.seeds.first()).cloned().unwrap_or_else(|| primary.clone());
    Ok(Adoption { spec: wanted, layout, seed, warnings })
}

fn refuse_unknown(
    request: &Request,
    names: &Names,
    members: &[Address],
    sentinels: &[Address],
) -> Result<(), Refusal> {
    let all = || members.iter().chain(sentinels);
    let ours = |a: &Address| all().any(|m| m == names.name(a) || m == a);
    let seeds = request.seeds.iter().enumerate().filter(|(_, s)| !ours(s));
    let seeds = seeds.map(|(i, s)| {
        let why = format!("{s} is of another deployment: name seeds of one");
        FieldError::new(format!("/seeds/{i}"), why)
    });
    let zones = request.zones.keys().filter(|z| !ours(z)).map(|z| {
        let nodes: Vec<String> = all().map(ToString::to_string).collect();
        let why = format!(
            "{z} is no node of this deployment, whose nodes are {}: correct the address, or leave it out",
            nodes.join(", ")
        );
        FieldError::new(format!("/zones/{z}"), why)
    });
    let errors: Vec<_> = seeds.chain(zones).collect();
    if errors.is_empty() { Ok(()) } else { Err(Refusal::Invalid(errors)) }
}

/// What is read of a watch, to compare Sentinels by.
type Figure = fn(&Watch) -> u64;

/// The Sentinels of a deployment, each by one name.
struct Sentinels {
    watching: Vec<Address>,
    /// Those too that do not answer here, and that others hear.
    all: Vec<Address>,
    silent: Vec<Address>,
    gone: Vec<Address>,
}

fn sentinels(name: &str, seen: &Observation) -> Sentinels {
    let mut by_id: BTreeMap<&String, Address> = BTreeMap::new();
    for (address, sighting) in &seen.nodes {
        if let crate::domain::observation::Sighting::Seen(report) = sighting
            && let Some(view) = &report.sentinel
            && view.watches.contains_key(name)
        {
            by_id.entry(&view.my_id).or_insert_with(|| address.clone());
        }
    }
    let watching: Vec<Address> = by_id.values().cloned().collect();
    let watches = watching.iter().filter_map(|a| seen.watch(a, name));
    let mut known: BTreeMap<&Address, bool> = BTreeMap::new();
    for (id, other) in watches.flat_map(|w| &w.sentinels) {
        if let Some(address) = other.address.as_ref().filter(|_| !by_id.contains_key(id)) {
            *known.entry(address).or_default() |= !other.down;
        }
    }
    let of = |lives: bool| {
        known.iter().filter(|(_, l)| **l == lives).map(|(a, _)| (*a).clone()).collect::<Vec<_>>()
    };
    let (silent, gone) = (of(true), of(false));
    let mut all: Vec<Address> = watching.iter().chain(&silent).cloned().collect();
    all.sort();
    Sentinels { watching, all, silent, gone }
}

impl Sentinels {
    fn watches<'a>(&self, name: &str, seen: &'a Observation) -> Vec<&'a Watch> {
        self.watching.iter().filter_map(|a| seen.watch(a, name)).collect()
    }

    fn warnings(
        &self,
        spec: &SentinelSpec,
        watches: &[&Watch],
        seen: &Observation,
    ) -> Vec<Warning> {
        let warning = |code: &str, message: String| Warning { code: code.to_owned(), message };
        let mut warnings = Vec::new();
        for sentinel in &self.silent {
            warnings.push(warning(
                "silent_sentinel",
                format!("{sentinel} watches too and does not answer here: open the way to it, or name its login in credentials.sentinel"),
            ));
        }
        for sentinel in &self.gone {
            warnings.push(warning(
                "ghost_sentinel",
                format!("the others still count the Sentinel {sentinel}, which is gone: repair has them forget it"),
            ));
        }
        let options: [(&str, Figure); 4] = [
            ("quorum", |w| u64::from(w.quorum)),
            ("down-after-milliseconds", |w| w.down_after_ms),
            ("failover-timeout", |w| w.failover_timeout_ms),
            ("parallel-syncs", |w| w.parallel_syncs),
        ];
        for (name, of) in options {
            if agreed(watches, of).is_none() {
                warnings.push(warning(
                    "sentinels_differ",
                    format!("the Sentinels do not agree on {name}; what the spec says counts from the next plan on"),
                ));
            }
        }
        for (i, node) in spec.nodes.iter().enumerate() {
            if i > 0 && seen.report(&node.address).is_none() {
                warnings.push(warning(
                    "silent_member",
                    format!(
                        "{} is known to the primary or to Sentinels and does not answer here",
                        node.address
                    ),
                ));
            }
        }
        let unplaced = spec.nodes.iter().chain(&spec.sentinels);
        let unplaced = unplaced.filter(|n| n.zone == UNKNOWN_ZONE).count();
        if unplaced > 0 {
            let message = format!(
                "{unplaced} nodes have no zone: name them with `zones`, or later in the spec (PUT)"
            );
            warnings.push(warning("zone_unknown", message));
        }
        warnings
    }
}
