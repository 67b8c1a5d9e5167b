//! Other members of a lone shard: a replica more, a replica less, one node in another's place.

use std::collections::{BTreeMap, BTreeSet};

use super::create::{lacks, twins};
use super::{invalid, seat, unfit};
use crate::domain::intent::create::{cannot_be_read, replication_login};
use crate::domain::intent::{
    AddReplicaIntent, Amendment, NodeChoice, RemoveReplicaIntent, ReplaceNodeIntent,
};
use crate::domain::lineage;
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Report, Sighting};
use crate::domain::placement::Warning;
use crate::domain::planner::{Leaver, Seat, Terms};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::spec::{NodeSpec, Spec};
use crate::domain::step::command::FailoverMethod;
use crate::domain::succession::best;
use crate::domain::topology::{Shard, Topology};

pub fn add_replica(
    intent: &AddReplicaIntent,
    now: &Topology,
    shard: &Shard,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    refuse_other_shard(intent.shard.as_deref(), shard)?;
    let node = match &intent.node {
        Some(choice) => chosen(choice, "/intent/node", now, shard)?,
        None => spare(now, seen)?,
    };
    let mut new = shard.clone();
    new.members.push(node.address.clone());
    let spec = with_node(&now.spec, &node);
    let field = |_: &Address| "/intent/node".to_owned();
    change(now, spec, new, &Fields { comer: &field, goer: "/intent/node" }, seen)
}

pub fn remove_replica(
    intent: &RemoveReplicaIntent,
    now: &Topology,
    shard: &Shard,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let node = &intent.node;
    refuse_outsider(node, shard, now.layout.sentinels())?;
    if lineage::incumbent(shard, seen).as_ref() == Some(node) {
        let why = format!(
            "{node} is the primary: have a replica take over first ({{\"kind\": \"failover\", \"node\": \"{node}\"}}), or put another node in its place (replace_node)"
        );
        return Err(unfit("/intent/node", why));
    }
    let mut new = shard.clone();
    new.members.retain(|m| m != node);
    let spec = without_node(&now.spec, node);
    let field = |_: &Address| "/intent/node".to_owned();
    change(now, spec, new, &Fields { comer: &field, goer: "/intent/node" }, seen)
}

pub fn replace_node(
    intent: &ReplaceNodeIntent,
    now: &Topology,
    shard: &Shard,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let old = &intent.node;
    refuse_outsider(old, shard, now.layout.sentinels())?;
    let node = chosen(&intent.with, "/intent/with", now, shard)?;
    let mut new = shard.clone();
    for member in new.members.iter_mut().filter(|m| *m == old) {
        *member = node.address.clone();
    }
    let spec = with_node(&without_node(&now.spec, old), &node);
    let field = |_: &Address| "/intent/with".to_owned();
    change(now, spec, new, &Fields { comer: &field, goer: "/intent/node" }, seen)
}

/// Where a request names those who come, and those who go.
pub(in crate::domain::intent) struct Fields<'a> {
    pub comer: &'a dyn Fn(&Address) -> String,
    pub goer: &'a str,
}

/// The same shard with other members.
fn change(
    now: &Topology,
    spec: Spec,
    new: Shard,
    fields: &Fields,
    seen: &Observation,
) -> Result<Amendment, Refusal> {
    let replicas = u16::try_from(new.members.len().saturating_sub(1)).unwrap_or(u16::MAX);
    let nodes = spec.nodes().to_vec();
    let spec = spec.with_nodes(nodes, replicas);
    let wrong = spec.validate();
    if !wrong.is_empty() {
        return Err(Refusal::Invalid(wrong.into_iter().map(|e| e.under("/spec")).collect()));
    }
    let mut terms = terms(now, &spec, &new, fields, seen)
        .map_err(|errors| Refusal::NodesUnfit { errors, redis: None })?;
    let warnings = crowded(now, &spec, &new);
    if spec.placement().strict && !warnings.is_empty() {
        let told = warnings.into_iter().map(|w| FieldError::new(fields.goer, w.message));
        return Err(Refusal::Placement(told.collect()));
    }
    terms.apart = lineage::dead_members(&new, seen);
    let left = terms.apart.iter().map(left_apart);
    // Sentinels tell clients where to go; without them clients have lists.
    let unasked = now.layout.sentinels().is_empty();
    let listed = terms.leavers.keys().filter(|_| unasked).map(still_listed);
    let warnings = warnings.into_iter().chain(left).chain(listed).collect();
    let layout = now.layout.clone().with_lone(new);
    Ok(Amendment { spec: Some(spec), layout, terms, warnings })
}

fn still_listed(node: &Address) -> Warning {
    let message = format!(
        "{node} ends as a blank server that takes the writes of whoever still has its address, and keeps them to itself: have clients ask GET …/endpoints, or take it out of their lists first"
    );
    Warning { code: "clients_of_leaver".to_owned(), message }
}

fn left_apart(node: &Address) -> Warning {
    let message = format!(
        "{node} is dead and left as it is: replace it (replace_node) or take it out (remove_replica) next"
    );
    Warning { code: "left_apart".to_owned(), message }
}

/// Who leaves and who takes over, so that the members are those of `new`; or all that stands against
/// it.
pub(in crate::domain::intent) fn terms(
    now: &Topology,
    spec: &Spec,
    new: &Shard,
    fields: &Fields,
    seen: &Observation,
) -> Result<Terms, Vec<FieldError>> {
    let Some(old) = super::of(now) else { return Ok(Terms::default()) };
    let mut errors = Vec::new();
    let primary = lineage::incumbent(old, seen);
    let listed: BTreeSet<&Address> = old.members.iter().chain(&new.members).collect();
    for node in new.members.iter().filter(|m| !old.members.contains(m)) {
        let pointer = (fields.comer)(node);
        errors.extend(unsuitable(node, primary.as_ref(), &listed, &pointer, seen));
    }
    let leavers = departures(old, new, seen);
    let seat = succession(old, new, primary, spec.drained(), seen);
    let seat = seat.unwrap_or_else(|why| {
        errors.push(FieldError::new(fields.goer, why));
        None
    });
    errors.extend(twins(spec.nodes(), seen));
    errors.extend(replication_login(spec, seen));
    let seats = seat.map(|seat| (old.id, seat)).into_iter().collect();
    if errors.is_empty() { Ok(Terms { leavers, seats, ..Terms::default() }) } else { Err(errors) }
}

/// What keeps a node from becoming a member.
fn unsuitable(
    node: &Address,
    primary: Option<&Address>,
    listed: &BTreeSet<&Address>,
    pointer: &str,
    seen: &Observation,
) -> Vec<FieldError> {
    let wrong = |detail: String| FieldError::new(pointer, format!("{node} {detail}"));
    let report = match seen.sighting(node) {
        Sighting::Unknown => return vec![wrong("was not looked at; try again".to_owned())],
        Sighting::Silent(s) => {
            return vec![wrong(cannot_be_read(&s.code, &s.message, "spec.credentials.admin"))];
        }
        Sighting::Seen(report) => report,
    };
    let follows = report.replication.primary.as_ref().is_some_and(|p| Some(p) == primary);
    let mut errors: Vec<FieldError> = match follows {
        // It is there already, whoever saw to that.
        true => vec![],
        false => lacks(report, listed, false).into_iter().map(wrong).collect(),
    };
    if let Some((primary, theirs)) = primary.and_then(|p| Some((p, seen.report(p)?)))
        && !report.capabilities().can_replicate_from(theirs.capabilities())
    {
        errors.push(wrong(format!(
            "runs {:?} {}, which cannot load what {primary} ({:?} {}) writes: use the same version or a newer one",
            report.flavor, report.version, theirs.flavor, theirs.version
        )));
    }
    errors
}

/// Who leaves. One that does not answer is left as it is.
pub(in crate::domain::intent) fn departures(
    old: &Shard,
    new: &Shard,
    seen: &Observation,
) -> BTreeMap<Address, Leaver> {
    let bares = (new.members.len() == 1).then_some(old.index);
    let goes = old.members.iter().filter(|m| !new.members.contains(m));
    let leaver = |node: &Address| {
        let report = seen.report(node).filter(|r| !r.is_blank())?;
        let leaver = Leaver { shard: old.id, identity: report.identity(), bares };
        Some((node.clone(), leaver))
    };
    goes.filter_map(leaver).collect()
}

/// Who takes over from a primary that leaves: a replica that has the data already, else one that
/// comes.
pub(in crate::domain::intent) fn succession(
    old: &Shard,
    new: &Shard,
    primary: Option<Address>,
    drained: &BTreeSet<Address>,
    seen: &Observation,
) -> Result<Option<Seat>, String> {
    let Some(from) = primary.filter(|node| !new.members.contains(node)) else { return Ok(None) };
    let Some(from_id) = seen.report(&from).map(Report::identity) else {
        return Err(format!(
            "{from} is the primary and does not answer: have a replica take over first (failover with method force)"
        ));
    };
    let method = FailoverMethod::Graceful;
    let stay: Vec<Address> =
        new.members.iter().filter(|m| old.members.contains(m)).cloned().collect();
    let heir = best(&stay, drained, &from, &from_id, method, seen);
    let comers = || new.members.iter().filter(|m| !old.members.contains(m));
    let comer = || comers().min_by_key(|m| drained.contains(m)).cloned();
    let to = heir.ok().or_else(comer);
    let to = to.ok_or_else(|| format!("{from} is the primary, and nobody else can take over"))?;
    Ok(Some(seat(&from, &to, method, seen)))
}

/// What is lacking with these members: nobody to take over, or nobody elsewhere.
fn crowded(now: &Topology, spec: &Spec, new: &Shard) -> Vec<Warning> {
    let place: BTreeMap<&Address, &NodeSpec> =
        spec.nodes().iter().map(|n| (&n.address, n)).collect();
    let before = super::of(now).map(|shard| &shard.members);
    let same = before == Some(&new.members);
    let warning =
        |code: &str, message: &str| Warning { code: code.to_owned(), message: message.to_owned() };
    let mut warnings = Vec::new();
    if new.members.len() == 1 && before.is_none_or(|b| b.len() > 1) {
        warnings.push(warning("no_replica", "there is no replica then"));
    }
    let places = || new.members.iter().filter_map(|m| place.get(m));
    let zones: BTreeSet<&str> = places().map(|n| n.zone.as_str()).collect();
    let machines: BTreeSet<&str> = places().map(|n| n.machine()).collect();
    if new.members.len() > 1 && !same {
        if zones.len() == 1 {
            warnings.push(warning(
                "shard_in_one_zone",
                "all members are in one zone: the data is lost with it",
            ));
        }
        if machines.len() == 1 {
            warnings.push(warning(
                "shard_on_one_host",
                "all members are on one host: the data is lost with it",
            ));
        }
    }
    warnings
}

fn refuse_other_shard(named: Option<&str>, shard: &Shard) -> Result<(), Refusal> {
    match named {
        Some(name) if name != shard.id.0.to_string() && name != shard.index.to_string() => {
            Err(invalid("/intent/shard", "there is one shard, with the index 0; leave it out"))
        }
        Some(_) | None => Ok(()),
    }
}

fn refuse_outsider(node: &Address, shard: &Shard, sentinels: &[Address]) -> Result<(), Refusal> {
    if shard.members.contains(node) {
        return Ok(());
    }
    Err(invalid("/intent/node", no_member(node, sentinels)))
}

/// Why nothing can be done to a node as to a member.
pub(super) fn no_member(node: &Address, sentinels: &[Address]) -> String {
    if sentinels.contains(node) {
        return format!(
            "{node} is a Sentinel of this topology, and no data node; the members stand in `layout`"
        );
    }
    format!("{node} is no member of this topology; its members stand in `layout`")
}

fn chosen(
    choice: &NodeChoice,
    pointer: &str,
    now: &Topology,
    shard: &Shard,
) -> Result<NodeSpec, Refusal> {
    let address = choice.address();
    if shard.members.contains(address) {
        return Err(invalid(pointer, format!("{address} is a member already")));
    }
    let named = now.spec.nodes().iter().find(|n| n.address == *address);
    match (choice, named) {
        (NodeChoice::New(node), _) => Ok(node.clone()),
        (NodeChoice::Spare(_), Some(node)) => Ok(node.clone()),
        (NodeChoice::Spare(_), None) => Err(invalid(
            pointer,
            format!(
                "{address} is no spare node of this topology; give it as an object with its zone: {{\"address\": \"{address}\", \"zone\": \"…\"}}"
            ),
        )),
    }
}

/// A spare of the topology, not drained if possible, in the zone with the fewest members.
fn spare(now: &Topology, seen: &Observation) -> Result<NodeSpec, Refusal> {
    let (nodes, members) = (now.spec.nodes(), now.layout.members());
    let in_zone = |zone: &str| {
        nodes.iter().filter(|n| n.zone == zone && members.contains(&n.address)).count()
    };
    let spares = nodes.iter().filter(|n| !members.contains(&n.address));
    let usable = spares.filter(|n| seen.report(&n.address).is_some_and(Report::is_blank));
    let drained = |n: &NodeSpec| now.spec.drained().contains(&n.address);
    usable.min_by_key(|n| (drained(n), in_zone(&n.zone), &n.address)).cloned().ok_or_else(|| {
        invalid(
            "/intent/node",
            "the topology has no spare node that is blank; name one with its zone",
        )
    })
}

fn with_node(spec: &Spec, node: &NodeSpec) -> Spec {
    let mut nodes = spec.nodes().to_vec();
    nodes.retain(|n| n.address != node.address);
    nodes.push(node.clone());
    spec.clone().with_nodes(nodes, spec.lone_replicas().unwrap_or(0))
}

fn without_node(spec: &Spec, node: &Address) -> Spec {
    let nodes = spec.nodes().iter().filter(|n| n.address != *node).cloned().collect();
    let mut drained = spec.drained().clone();
    drained.remove(node);
    let replicas = spec.lone_replicas().unwrap_or(0);
    spec.clone().with_nodes(nodes, replicas).with_drained(drained)
}
