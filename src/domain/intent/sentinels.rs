//! The Sentinels of a topology: one more, one less; what stands against those that a spec names, and
//! what is unwise about them.

use std::collections::{BTreeMap, BTreeSet};

use super::create::cannot_be_read;
use super::lone::watched::watchers;
use super::members::left_apart;
use super::{AddSentinelIntent, Amendment, NodeChoice, RemoveSentinelIntent};
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Report, Sighting};
use crate::domain::placement::Warning;
use crate::domain::planner::Terms;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::spec::{NodeSpec, SentinelSpec, Spec};
use crate::domain::topology::{Layout, Topology};
use crate::domain::view;

pub fn add(
    intent: &AddSentinelIntent,
    now: &Topology,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let spec = spec_of(now, "add_sentinel")?;
    let node = added(intent, now)?;
    let mut new = spec.clone();
    new.sentinels.push(node.clone());
    if let Some(errors) = unfit(&new, &|_| "/intent/node".to_owned(), seen, &node.address) {
        return Err(Refusal::NodesUnfit { errors, redis: None });
    }
    amended(now, new, BTreeSet::new(), seen)
}

pub fn remove(
    intent: &RemoveSentinelIntent,
    now: &Topology,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let spec = spec_of(now, "remove_sentinel")?;
    removed(intent, now)?;
    let mut new = spec.clone();
    new.sentinels.retain(|n| n.address != intent.node);
    amended(now, new, BTreeSet::from([intent.node.clone()]), seen)
}

/// The node that is to be added, where that is possible by itself.
pub(super) fn added(intent: &AddSentinelIntent, now: &Topology) -> Result<NodeSpec, Refusal> {
    let spec = spec_of(now, "add_sentinel")?;
    let node = match &intent.node {
        NodeChoice::New(node) => node.clone(),
        NodeChoice::Spare(address) => {
            let why = format!(
                "no Sentinel of this topology is a spare: name {address} with its zone ({{\"address\": \"{address}\", \"zone\": …}})"
            );
            return Err(invalid("/intent/node", why));
        }
    };
    let mut all = spec.sentinels.iter().chain(&spec.nodes);
    match all.find(|n| n.address == node.address) {
        Some(_) => {
            let why = format!("{} is a node of this topology already", node.address);
            Err(invalid("/intent/node", why))
        }
        None => Ok(node),
    }
}

/// Refuses what cannot be taken out.
pub(super) fn removed(intent: &RemoveSentinelIntent, now: &Topology) -> Result<(), Refusal> {
    let spec = spec_of(now, "remove_sentinel")?;
    let node = &intent.node;
    if !spec.sentinels.iter().any(|n| n.address == *node) {
        let why = format!("{node} is no Sentinel of this topology; they stand in `spec.sentinels`");
        return Err(invalid("/intent/node", why));
    }
    let left = spec.sentinels.len() - 1;
    if left == 0 {
        let why = format!("{node} is the only Sentinel: add another one first (add_sentinel)");
        return Err(invalid("/intent/node", why));
    }
    match spec.quorum {
        Some(quorum) if usize::from(quorum) > left => Err(invalid(
            "/intent/node",
            format!(
                "{left} Sentinels could never reach the quorum of {quorum}: lower `spec.quorum` first, or add another one"
            ),
        )),
        Some(_) | None => Ok(()),
    }
}

fn amended(
    now: &Topology,
    spec: SentinelSpec,
    unwatch: BTreeSet<Address>,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let wanted = Spec::Sentinel(spec.clone());
    let wrong = wanted.validate();
    if !wrong.is_empty() {
        return Err(Refusal::Invalid(wrong.into_iter().map(|e| e.under("/spec")).collect()));
    }
    let Layout::Sentinel { shard, .. } = &now.layout else { return Err(gone("this")) };
    let sentinels = spec.sentinels.iter().map(|n| n.address.clone()).collect();
    let layout = Layout::Sentinel { shard: shard.clone(), sentinels };
    let mut warnings = concerns_or_refusal(&spec, "/intent/node")?;
    let mut apart = view::dead_members(&layout, seen);
    apart.extend(watchers(&spec, shard).dead(seen));
    warnings.extend(apart.iter().map(left_apart));
    let terms = Terms { unwatch, apart, ..Terms::default() };
    Ok(Amendment { spec: Some(wanted), layout, terms, warnings })
}

fn spec_of<'a>(now: &'a Topology, what: &str) -> Result<&'a SentinelSpec, Refusal> {
    match (&now.spec, &now.layout) {
        (Spec::Sentinel(spec), Layout::Sentinel { .. }) => Ok(spec),
        (Spec::Sentinel(_) | Spec::Replication(_) | Spec::Cluster(_), _) => Err(gone(what)),
    }
}

fn gone(what: &str) -> Refusal {
    let why = format!("{what} is there for topologies of mode sentinel that have members");
    Refusal::Unsupported(why)
}

fn invalid(pointer: &str, why: String) -> Refusal {
    Refusal::Invalid(vec![FieldError::new(pointer, why)])
}

/// What keeps the Sentinels of a spec from watching; all but `only` are members already, if it is given.
fn unfit(
    spec: &SentinelSpec,
    field: &dyn Fn(usize) -> String,
    seen: &Observation,
    only: &Address,
) -> Option<Vec<FieldError>> {
    let errors = all_unfit(spec, field, seen, &|a| a == only);
    (!errors.is_empty()).then_some(errors)
}

/// What keeps those Sentinels of a spec that are `new` from watching its data nodes.
pub(super) fn all_unfit(
    spec: &SentinelSpec,
    field: &dyn Fn(usize) -> String,
    seen: &Observation,
    new: &dyn Fn(&Address) -> bool,
) -> Vec<FieldError> {
    let mut ids: BTreeMap<&str, &Address> = BTreeMap::new();
    let mut errors = Vec::new();
    for (i, node) in spec.sentinels.iter().enumerate() {
        let address = &node.address;
        let view = seen.report(address).and_then(|r| r.sentinel.as_ref());
        let twin = view.and_then(|v| ids.insert(&v.my_id, address));
        if let Some(twin) = twin {
            errors.push(FieldError::new(
                field(i),
                format!(
                    "{address} has the same id as the Sentinel {twin}: it is the same process, or its sentinel.conf was copied; take the line `sentinel myid` out of it and restart it"
                ),
            ));
        }
        if new(address)
            && let Some(why) = lack(spec, seen.sighting(address), seen)
        {
            errors.push(FieldError::new(field(i), format!("{address} {why}")));
        }
    }
    errors
}

/// Continues a sentence that begins with the Sentinel's address.
fn lack(spec: &SentinelSpec, sighting: &Sighting, seen: &Observation) -> Option<String> {
    let report: &Report = match sighting {
        Sighting::Unknown => return Some("was not looked at; try again".to_owned()),
        Sighting::Silent(s) => {
            return Some(cannot_be_read(&s.code, &s.message, "spec.credentials.sentinel"));
        }
        Sighting::Seen(report) => report,
    };
    let Some(view) = &report.sentinel else {
        return Some("is no Sentinel: start it with --sentinel, or name it under nodes".to_owned());
    };
    let watch = view.watches.get(&spec.master_name)?;
    let primary = watch.primary_in(seen);
    let ours = primary.is_some_and(|p| spec.nodes.iter().any(|n| n.address == *p));
    (!ours).then(|| {
        let whom = primary.map_or("nobody".to_owned(), Address::to_string);
        format!(
            "watches another deployment ({whom}) under the name `{}`: choose another master_name, or send it SENTINEL REMOVE {}",
            spec.master_name, spec.master_name
        )
    })
}

/// What is unwise, as warnings; where the spec is strict, as a refusal.
pub(super) fn concerns_or_refusal(
    spec: &SentinelSpec,
    pointer: &str,
) -> Result<Vec<Warning>, Refusal> {
    let warnings = concerns(spec);
    if spec.placement.strict && !warnings.is_empty() {
        let told = warnings.into_iter().map(|w| FieldError::new(pointer, w.message));
        return Err(Refusal::Placement(told.collect()));
    }
    Ok(warnings)
}

/// What is unwise about the Sentinels of a spec.
#[must_use]
pub fn concerns(spec: &SentinelSpec) -> Vec<Warning> {
    let count = spec.sentinels.len();
    let (majority, quorum) = (count / 2 + 1, usize::from(spec.effective_quorum()));
    let mut warnings = Vec::new();
    let mut warn = |code: &str, message: String| {
        warnings.push(Warning { code: code.to_owned(), message });
    };
    if count < 3 {
        warn(
            "few_sentinels",
            format!(
                "with {count} Sentinels none may fail: a failover takes {majority} of them; have 3 or more"
            ),
        );
    } else if count.is_multiple_of(2) {
        warn(
            "even_sentinels",
            format!(
                "{count} Sentinels survive no more failures than {} would: a failover takes {majority} of them",
                count - 1
            ),
        );
    }
    if quorum != majority {
        let why = if quorum < majority {
            "so few may believe that the primary is down while the majority, which has to agree to a failover, sees it well"
        } else {
            "so many must believe that the primary is down that fewer failures are survived"
        };
        warn(
            "unusual_quorum",
            format!(
                "the quorum is {quorum} of {count} Sentinels, and the majority is {majority}: {why}"
            ),
        );
    }
    for (machine, on) in by(spec, NodeSpec::machine) {
        // Everything on one machine is a trial, and zones tell enough of it.
        if on > 1 && by(spec, NodeSpec::machine).len() > 1 {
            warn(
                "colocated_sentinels",
                format!("{on} Sentinels are on the host {machine}: they fail together"),
            );
        }
    }
    for (zone, on) in by(spec, |n| n.zone.as_str()) {
        if count - on < majority && count >= 3 {
            warn(
                "zone_holds_half_of_sentinels",
                format!(
                    "zone {zone} holds {on} of the {count} Sentinels: without it the others cannot agree to a failover"
                ),
            );
        }
    }
    warnings
}

fn by<'a>(
    spec: &'a SentinelSpec,
    place: impl Fn(&'a NodeSpec) -> &'a str,
) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for node in &spec.sentinels {
        *counts.entry(place(node)).or_default() += 1;
    }
    counts
}
