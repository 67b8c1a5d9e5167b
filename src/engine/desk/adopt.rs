//! A cluster that runs becomes a topology. Everything here looks, and nothing is sent to nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, timeout_at};

use super::{AdoptRequest, DeskError};
use crate::clock;
use crate::domain::health::Health;
use crate::domain::id::TopologyId;
use crate::domain::intent::adopt;
use crate::domain::moving::talk::{Answer, Lane, Saying};
use crate::domain::node::{Address, NodeKind};
use crate::domain::observation::{Observation, Sighting};
use crate::domain::placement::Warning;
use crate::domain::published::{self, HELLO};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::topology::Topology;
use crate::engine::Engine;
use crate::engine::look::{LoginError, Logins, target};
use crate::fleet::Talk;
use crate::store::StoreError;
use crate::store::adoptions::NewAdoption;
use crate::store::nodes::NewNode;

/// Sentinels announce themselves each two seconds.
const ANNOUNCE_WITHIN: Duration = Duration::from_secs(3);

impl Engine {
    /// Stores the cluster of these seeds as a topology, as it is. Returns what was not plain about it.
    pub async fn adopt(
        &self,
        request: &AdoptRequest,
        actor: &str,
    ) -> Result<Vec<Warning>, DeskError> {
        self.refuse_name(&request.name).await?;
        let logins = self.named_logins(&request.credentials).await.map_err(at_credentials)?;
        let mut seeds = request.seeds.clone();
        let mut seen = self.look_around(&seeds, Observation::default(), &logins).await?;
        if let Some((seed, announced)) = self.announced(&seeds, &seen, &logins).await {
            seeds.extend(announced.iter().cloned());
            seen = self.look_around(&seeds, seen, &logins).await?;
            if !announced.iter().any(|a| seen.report(a).is_some()) {
                return Err(cannot_be_read(seed, &seeds[seed], &announced).into());
            }
        }
        let id = TopologyId(clock::new_id());
        let adoption = adopt::adopt(
            &adopt::Request {
                topology: id,
                seeds: &seeds,
                zones: &request.zones,
                credentials: &request.credentials,
            },
            &seen,
        )?;
        let (spec, layout) = (adoption.spec, adoption.layout);
        let wanted = Topology { id, name: request.name.clone(), version: 1, spec, layout };
        self.refuse_adopted(&wanted, &request.seeds).await?;
        let seen = of_topology(&wanted, &seen);
        let added = self
            .store
            .adopt_topology(&NewAdoption {
                wanted: &wanted,
                labels: &request.labels,
                nodes: &NewNode::of_spec(&wanted.spec),
                seen: &seen,
                health: &health(&seen),
                seed: &adoption.seed,
                warnings: &adoption.warnings,
                actor,
            })
            .await;
        match added {
            // Somebody was quicker.
            Err(StoreError::Refused(Refusal::NodeTaken(errors))) => {
                let at_seeds = |e: FieldError| FieldError::new("/seeds", e.detail);
                return Err(Refusal::NodeTaken(errors.into_iter().map(at_seeds).collect()).into());
            }
            added => added?,
        }
        self.ring(id);
        Ok(adoption.warnings)
    }

    /// A look at the seeds, at whom those know, and so on.
    async fn look_around(
        &self,
        seeds: &[Address],
        mut seen: Observation,
        logins: &Logins,
    ) -> Result<Observation, DeskError> {
        loop {
            let next = adopt::unasked(seeds, &seen)?;
            if next.is_empty() {
                return Ok(seen);
            }
            seen.nodes.extend(self.look_at(&next, logins).await.nodes);
            // A Sentinel has another login, or none: who refuses that of data nodes may be one.
            let refuses = |a: &&Address| match seen.sighting(a) {
                Sighting::Silent(s) => s.code.chars().all(|c| c.is_ascii_uppercase()),
                Sighting::Seen(_) | Sighting::Unknown => false,
            };
            let refuse: BTreeSet<Address> = next.iter().filter(refuses).cloned().collect();
            let logins = logins.clone().with_sentinels(&refuse);
            let again = self.look_at(&refuse, &logins).await.nodes;
            let is_sentinel = |s: &Sighting| match s {
                Sighting::Seen(report) => report.sentinel.is_some(),
                Sighting::Silent(_) | Sighting::Unknown => false,
            };
            seen.nodes.extend(again.into_iter().filter(|(_, s)| is_sentinel(s)));
        }
    }

    /// The Sentinels that watch a data node which was named without them, and which of the seeds that is:
    /// each announces itself there, and one that answers here leads to the others.
    async fn announced(
        &self,
        seeds: &[Address],
        seen: &Observation,
        logins: &Logins,
    ) -> Option<(usize, BTreeSet<Address>)> {
        let report = |a: &Address| seen.report(a).filter(|r| !r.cluster_enabled);
        let of_kind = |kind| seeds.iter().position(|s| report(s).is_some_and(|r| r.kind == kind));
        let (None, Some(seed)) = (of_kind(NodeKind::Sentinel), of_kind(NodeKind::Data)) else {
            return None;
        };
        let (target, identity) = (target(&seeds[seed], logins), report(&seeds[seed])?.identity());
        let (lane, within) = (Lane::Control, ANNOUNCE_WITHIN);
        let talk = Talk { target: &target, lane, identity: &identity, within };
        let count = Saying::CountListeners { channel: HELLO.to_owned() };
        let listeners = match self.fleet.converse(&talk, &[count]).await.as_deref() {
            Ok([Answer::Number(listeners)]) => usize::try_from(*listeners).unwrap_or(usize::MAX),
            Ok(_) | Err(_) => usize::MAX,
        };
        if listeners == 0 {
            return None;
        }
        let mut published = self.fleet.listen(&target, &[HELLO]).await.ok()?;
        let (until, mut announced) = (Instant::now() + ANNOUNCE_WITHIN, BTreeSet::new());
        while announced.len() < listeners
            && let Ok(Some(message)) = timeout_at(until, published.next()).await
        {
            announced.extend(published::announced(&message.text));
        }
        (!announced.is_empty()).then_some((seed, announced))
    }

    async fn refuse_adopted(&self, wanted: &Topology, seeds: &[Address]) -> Result<(), DeskError> {
        let addresses: Vec<Address> =
            wanted.spec.nodes().iter().map(|n| n.address.clone()).collect();
        let taken = self.store.nodes_taken(&addresses).await?;
        let error = |(address, topology): (Address, String)| {
            let seed = seeds.iter().position(|s| *s == address);
            let pointer = seed.map_or("/seeds".to_owned(), |i| format!("/seeds/{i}"));
            let detail = format!(
                "{address} belongs to the topology `{topology}`: use that, or delete it first, which leaves its nodes as they are"
            );
            FieldError::new(pointer, detail)
        };
        let mut errors: Vec<FieldError> = taken.into_iter().map(error).collect();
        // What the request itself names comes first.
        errors.sort_by_key(|e| e.pointer == "/seeds");
        if errors.is_empty() { Ok(()) } else { Err(Refusal::NodeTaken(errors).into()) }
    }
}

fn cannot_be_read(i: usize, seed: &Address, sentinels: &BTreeSet<Address>) -> Refusal {
    let names: Vec<String> = sentinels.iter().map(ToString::to_string).collect();
    let why = format!(
        "{seed} is watched by Sentinels that cannot be read here ({}): open the way to them, or name their login in credentials.sentinel",
        names.join(", ")
    );
    Refusal::Invalid(vec![FieldError::new(format!("/seeds/{i}"), why)])
}

fn at_credentials(error: LoginError) -> DeskError {
    match error {
        LoginError::Missing { field, .. } => {
            let pointer = format!("/credentials/{field}");
            Refusal::Invalid(vec![FieldError::new(pointer, error.to_string())]).into()
        }
        LoginError::NoKey | LoginError::Store(_) => error.into(),
    }
}

/// What was seen of the nodes by the addresses that they have in the spec.
fn of_topology(wanted: &Topology, seen: &Observation) -> Observation {
    let nodes = wanted.spec.nodes().iter().chain(wanted.spec.sentinels()).map(|n| &n.address);
    let nodes = nodes.map(|a| (a.clone(), seen.sighting(a).clone())).collect();
    Observation { nodes, marks: vec![] }
}

/// Whoever does not answer is left for the watcher to tell.
fn health(seen: &Observation) -> BTreeMap<Address, Health> {
    let of = |sighting: &Sighting| match sighting {
        Sighting::Seen(_) => Health::Up,
        Sighting::Silent(_) | Sighting::Unknown => Health::Unknown,
    };
    seen.nodes.iter().map(|(address, sighting)| (address.clone(), of(sighting))).collect()
}
