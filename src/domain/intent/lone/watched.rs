//! What intents on a lone shard add where Sentinels watch it.

use std::collections::BTreeSet;

use crate::domain::intent::sentinels::{all_unfit, concerns_or_refusal};
use crate::domain::node::Address;
use crate::domain::observation::Observation;
use crate::domain::placement::Warning;
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::sentinel::{Watch, Watchers};
use crate::domain::spec::{NodeSpec, SentinelSpec, Spec};
use crate::domain::topology::{Shard, Topology};

/// The Sentinels and data nodes that are to know each other.
#[must_use]
pub fn watchers(spec: &SentinelSpec, shard: &Shard) -> Watchers {
    Watchers {
        name: spec.master_name.clone(),
        sentinels: spec.sentinels.iter().map(|n| n.address.clone()).collect(),
        members: shard.members.clone(),
        apart: BTreeSet::new(),
    }
}

/// Members of a topology that are dead, Sentinels among them.
#[must_use]
pub fn dead_sentinels(now: &Topology, seen: &Observation) -> BTreeSet<Address> {
    match (&now.spec, now.layout.lone()) {
        (Spec::Sentinel(spec), Some(shard)) => watchers(spec, shard).dead(seen),
        (Spec::Sentinel(_) | Spec::Cluster(_) | Spec::Replication(_), _) => BTreeSet::new(),
    }
}

/// What stands against the Sentinels of a new spec, of which those in `old` watch already; and what is
/// unwise about them.
pub(super) fn checked(
    old: Option<&Spec>,
    new: &Spec,
    seen: &Observation,
) -> Result<(Vec<FieldError>, Vec<Warning>), Refusal> {
    let Spec::Sentinel(spec) = new else { return Ok((vec![], vec![])) };
    let before =
        |a: &Address| old.is_some_and(|old| old.sentinels().iter().any(|n| n.address == *a));
    let field = |i: usize| format!("/spec/sentinels/{i}/address");
    let errors = all_unfit(spec, &field, seen, &|a| !before(a));
    let told = match old {
        // What was unwise before is known.
        Some(Spec::Sentinel(old))
            if old.sentinels == spec.sentinels && old.quorum == spec.quorum =>
        {
            vec![]
        }
        Some(_) | None => concerns_or_refusal(spec, "/spec/sentinels")?,
    };
    Ok((errors, told))
}

/// Those that watch and are not wanted any more.
pub(super) fn leaving(old: &Spec, new: &Spec) -> BTreeSet<Address> {
    let stays = |a: &Address| new.sentinels().iter().any(|n| n.address == *a);
    let old = old.sentinels().iter().map(|n| &n.address);
    old.filter(|a| !stays(a)).cloned().collect()
}

/// A name that clients ask for is not changed while they do.
pub(super) fn renamed(old: &Spec, new: &Spec) -> Option<FieldError> {
    let (Spec::Sentinel(old), Spec::Sentinel(new)) = (old, new) else { return None };
    (old.master_name != new.master_name).then(|| {
        FieldError::new(
            "/spec/master_name",
            format!(
                "clients ask Sentinels for `{}`: the name stays as it is while the topology is there",
                old.master_name
            ),
        )
    })
}

/// The spec with the Sentinels and options that are seen, where all Sentinels have the same.
pub(super) fn drifted(spec: Spec, shard: &Shard, seen: &Observation) -> Result<Spec, Refusal> {
    let Spec::Sentinel(mut spec) = spec else { return Ok(spec) };
    let known = watchers(&spec, shard);
    let mut errors = Vec::new();
    let (mut stay, mut come) = (Vec::new(), BTreeSet::new());
    for (i, node) in spec.sentinels.iter().enumerate() {
        match seen.report(&node.address) {
            None => errors.push(FieldError::new(
                format!("/spec/sentinels/{i}/address"),
                format!("{} does not answer", node.address),
            )),
            Some(_) if seen.watch(&node.address, &spec.master_name).is_some() => {
                stay.push(node.clone());
                come.extend(known.strangers(&node.address, seen).into_values());
            }
            Some(_) => {}
        }
    }
    if stay.is_empty() {
        errors.push(FieldError::new("/spec/sentinels", "no Sentinel watches the topology"));
    }
    let zone = || crate::domain::intent::adopt::UNKNOWN_ZONE.to_owned();
    let new = |address: Address| NodeSpec { address, zone: zone(), host: None };
    stay.extend(come.into_iter().map(new));
    let watches: Vec<&Watch> =
        known.sentinels.iter().filter_map(|s| seen.watch(s, &known.name)).collect();
    spec.sentinels = stay;
    match options(&mut spec, &watches) {
        Ok(()) => {}
        Err(option) => errors.push(FieldError::new(
            "/spec/sentinels",
            format!("the Sentinels do not agree on {option}"),
        )),
    }
    if errors.is_empty() { Ok(Spec::Sentinel(spec)) } else { Err(Refusal::unsettled(errors)) }
}

/// Takes over the options that Sentinels have, as far as the spec names any; or the first on which they
/// do not agree.
fn options(spec: &mut SentinelSpec, watches: &[&Watch]) -> Result<(), &'static str> {
    let quorum = agreed(watches, |w| u64::from(w.quorum)).ok_or("quorum")?;
    let majority = spec.sentinels.len() / 2 + 1;
    spec.quorum = u16::try_from(quorum).ok().filter(|q| usize::from(*q) != majority);
    if spec.down_after_ms.is_some() {
        let seen = agreed(watches, |w| w.down_after_ms).ok_or("down-after-milliseconds")?;
        spec.down_after_ms = u32::try_from(seen).ok();
    }
    if spec.failover_timeout_ms.is_some() {
        let seen = agreed(watches, |w| w.failover_timeout_ms).ok_or("failover-timeout")?;
        spec.failover_timeout_ms = u32::try_from(seen).ok();
    }
    if spec.parallel_syncs.is_some() {
        let seen = agreed(watches, |w| w.parallel_syncs).ok_or("parallel-syncs")?;
        spec.parallel_syncs = u16::try_from(seen).ok();
    }
    Ok(())
}

/// What all of them have, if it is the same.
pub(super) fn agreed(watches: &[&Watch], of: impl Fn(&Watch) -> u64) -> Option<u64> {
    let first = of(watches.first()?);
    watches.iter().all(|w| of(w) == first).then_some(first)
}
