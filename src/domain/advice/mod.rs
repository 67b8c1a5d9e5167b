//! Advice: from what a team knows of its needs to what it should run, why, and everything to run it.
//!
//! Nothing here is a second truth: the layout comes from [`placement`](super::placement), what it
//! survives from [`survivability`](super::survivability), the files from [`files`](super::files), and
//! the topology is a spec that can be posted as it is. What the sizing takes for granted stands in
//! [`Assumptions`], which the request can override and the answer shows.

mod alternatives;
mod assumptions;
mod choice;
mod plan;
mod procedure;
mod request;
mod sizing;
#[cfg(test)]
mod tests;
mod timing;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use utoipa::ToSchema;

pub use self::alternatives::Alternative;
pub use self::assumptions::Assumptions;
use self::choice::choose;
use self::plan::{Plan, plan};
pub use self::procedure::{ApiCall, Automatic, FailoverProcedure, Task, TimedStep};
use self::request::Needs;
pub use self::request::{AdviceRequest, Domain, Scale, Zones};
pub use self::sizing::{Figure, Sizing};
pub use self::timing::Bounds;
use super::diagnosis::Severity;
use super::files::{self, File, Resources, compose, kubernetes, systemd};
use super::id::ShardId;
use super::node::Address;
use super::observation::Observation;
use super::refusal::Refusal;
use super::spec::{Mode, Spec};
use super::survivability::{self, Scene, Survivability};

/// What to run, why, and everything to run it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Advice {
    pub recommended_architecture: Mode,
    pub rationale: Vec<String>,
    pub alternatives: Vec<Alternative>,
    /// To be sent to `POST /v1/topologies` as it is.
    pub topology: AdvisedTopology,
    /// Who plays which part in it.
    pub layout: Vec<AdvisedShard>,
    pub sizing: Sizing,
    /// All that the sizing took for granted, whether it was given or not.
    pub assumptions: Assumptions,
    pub config_files: Vec<File>,
    pub failover_procedure: FailoverProcedure,
    pub survivability: Survivability,
    /// The worst first.
    pub warnings: Vec<Notice>,
}

/// The body of `POST /v1/topologies`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct AdvisedTopology {
    pub name: String,
    pub spec: Spec,
}

/// A shard, its first member the one that begins as primary.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct AdvisedShard {
    pub id: ShardId,
    pub index: u16,
    pub members: Vec<AdvisedMember>,
    /// For example `0-5460`; empty in modes without slots.
    pub slots: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct AdvisedMember {
    pub address: Address,
    pub zone: String,
    pub primary: bool,
}

/// Something to know before one follows the advice, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = AdviceWarning)]
pub struct Notice {
    /// For programs, for example `too_few_nodes`.
    pub code: String,
    pub severity: Severity,
    pub message: String,
}

/// The notices of one piece of advice, in the order in which they came up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Notices(Vec<Notice>);

/// Advises, or says what of the request makes no sense.
pub fn advise(request: &AdviceRequest) -> Result<Advice, Refusal> {
    let needs = request.needs()?;
    let mut choice = choose(&needs)?;
    let sizing =
        sizing::sizing(&needs, choice.mode, choice.shards, choice.replicas, choice.sentinels);
    let plan = plan(&needs, &mut choice, &sizing)?;
    let sizing = Sizing { sentinels: plan.topology.spec.sentinels().len(), ..sizing };
    let scene = scene(&plan);
    let survivability = survivability::survivability(&scene);
    judge(&needs, &mut choice, &lasting(scene, &survivability));
    if survivability.survives.any_zone && may_crowd(&plan) {
        choice.notices.add(
            "primaries_may_crowd",
            Severity::Info,
            "the loss of any zone is survived while the primaries are spread over the zones, as they are at first: where failovers have brought too many into one, the finding crowded_primaries says so and which shard to hand back",
        );
    }
    let alternatives = alternatives::alternatives(&needs, &choice);
    let mut warnings = choice.notices.0;
    warnings.sort_by_key(|notice| notice.severity);
    Ok(Advice {
        recommended_architecture: choice.mode,
        rationale: choice.rationale,
        alternatives,
        layout: layout(&plan),
        config_files: config_files(&needs, &plan, &sizing),
        failover_procedure: procedure::procedure(&needs, &plan),
        topology: AdvisedTopology { name: needs.name.clone(), spec: plan.topology.spec },
        sizing,
        assumptions: needs.assume,
        survivability,
        warnings,
    })
}

/// The topology as it is when it has just been made.
fn scene(plan: &Plan) -> Scene {
    let mut scene = survivability::scene(&plan.topology, &Observation::default());
    for group in &mut scene.groups {
        group.primary = plan.primaries.get(&group.id).cloned();
    }
    scene
}

/// What will be survived also after a failover: where there is one shard, any member may be its
/// primary then.
fn lasting(mut scene: Scene, now: &Survivability) -> Survivability {
    let [only] = scene.groups.as_mut_slice() else { return now.clone() };
    only.primary = None;
    survivability::survivability(&scene)
}

/// Whether failovers may bring so many primaries of a cluster into one zone that its loss leaves no
/// majority of them.
fn may_crowd(plan: &Plan) -> bool {
    let (shards, places) = (plan.topology.layout.shards(), plan.topology.places());
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (shard, _) in &shards {
        let zones = shard.members.iter().filter_map(|m| Some(places.get(m)?.zone.as_str()));
        for zone in zones.collect::<BTreeSet<_>>() {
            *counts.entry(zone).or_default() += 1;
        }
    }
    let needed = shards.len() / 2 + 1;
    shards.len() > 1 && counts.values().any(|there| shards.len() - there < needed)
}

/// What is not survived is told, as bad as it is taken for.
fn judge(needs: &Needs, choice: &mut choice::Choice, survivability: &Survivability) {
    let survives = survivability.survives;
    let cures = match choice.mode {
        Mode::Replication => "take ha_mode sentinel to have a replica take over by itself",
        Mode::Sentinel => {
            "spread data nodes and Sentinels so that no domain has half of the Sentinels or all of the data: three zones with a data node and a Sentinel each"
        }
        Mode::Cluster => {
            "spread the nodes over three zones or more, each with the same number of them, and give each shard a replica"
        }
    };
    let kinds = [
        (Domain::Node, "node", survives.any_node),
        (Domain::Host, "host", survives.any_host),
        (Domain::Zone, "zone", survives.any_zone),
    ];
    for (domain, word, survived) in kinds {
        let demanded = needs.survive.is_some_and(|wanted| wanted >= domain);
        // In replication mode no loss of a primary is; that is told once.
        if survived || (choice.mode == Mode::Replication && !demanded) {
            continue;
        }
        let of = |loss: &&survivability::Loss| match domain {
            Domain::Node => !loss.lost.nodes.is_empty(),
            Domain::Host => !loss.lost.hosts.is_empty(),
            Domain::Zone => !loss.lost.zones.is_empty(),
        };
        let losses = survivability.losses.iter();
        let Some(loss) = losses.filter(of).find(|loss| !loss.outcome.survived()) else { continue };
        let severity =
            if demanded || domain != Domain::Zone { Severity::Critical } else { Severity::Warning };
        let code = format!("{word}_loss_not_survived");
        choice.notices.add(&code, severity, format!("{}: {cures}", loss.why));
    }
}

fn layout(plan: &Plan) -> Vec<AdvisedShard> {
    let places = plan.topology.places();
    let shard = |(shard, slots): (&super::topology::Shard, super::slot::SlotSet)| AdvisedShard {
        id: shard.id,
        index: shard.index,
        slots: slots.to_string(),
        members: shard
            .members
            .iter()
            .map(|address| AdvisedMember {
                address: address.clone(),
                zone: places.get(address).map(|p| p.zone.clone()).unwrap_or_default(),
                primary: plan.primaries.get(&shard.id) == Some(address),
            })
            .collect(),
    };
    plan.topology.layout.shards().into_iter().map(shard).collect()
}

fn config_files(needs: &Needs, plan: &Plan, sizing: &Sizing) -> Vec<File> {
    let topology = &plan.topology;
    let software = &needs.software;
    let mut all = files::files(topology, &plan.primaries);
    let resources = Resources {
        memory_mb: (sizing.memory_per_node_gb * 1024.0) as u64,
        disk_gb: sizing.disk_per_node_gb,
        restart_seconds: timing::restart_seconds(topology.spec.mode(), &needs.assume),
    };
    let has_sentinels = !topology.spec.sentinels().is_empty();
    all.extend(systemd(software, has_sentinels, resources.restart_seconds));
    all.push(compose(topology, software, resources));
    let (manifests, spec) = kubernetes(topology, software, resources);
    all.push(manifests);
    if let Some(spec) = spec {
        let body = AdvisedTopology { name: topology.name.clone(), spec };
        let content = serde_json::to_string_pretty(&body).unwrap_or_default() + "\n";
        all.push(File { path: "kubernetes-topology.json".to_owned(), node: None, content });
    }
    all
}
