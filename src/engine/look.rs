//! Looking at nodes: all of them at once, each for itself, so that one that hangs costs nobody else
//! time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::join_all;

use super::Engine;
use crate::clock;
use crate::domain::credential::Credential;
use crate::domain::fault::Fault;
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Sighting, Silence};
use crate::domain::spec::{CredentialNames, Spec};
use crate::domain::step::reset::LEAST_REPLICAS;
use crate::fleet::{Ask, Fence, FleetError, Target};
use crate::store::StoreError;

/// The logins that a topology uses, opened.
#[derive(Debug, Clone, Default)]
pub struct Logins {
    pub admin: Option<Arc<Credential>>,
    pub replication: Option<Arc<Credential>>,
    /// What Reeve logs in to Sentinels with; those log in to data nodes as Reeve does.
    pub sentinel: Option<Arc<Credential>>,
    /// The nodes that are Sentinels.
    pub sentinels: BTreeSet<Address>,
}

/// A credential that cannot be used, by the name that the spec gives it.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error("there is no credential `{name}`; store it with POST /v1/credentials")]
    Missing { field: &'static str, name: String },
    #[error("REEVE_SECRET_KEY is not set, so no credential can be opened")]
    NoKey,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LoginError {
    /// Whether it stays until somebody does something about it.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Missing { .. } | Self::NoKey | Self::Store(StoreError::Sealed) => true,
            Self::Store(_) => false,
        }
    }
}

impl Logins {
    /// The same, where these nodes are Sentinels too.
    #[must_use]
    pub fn with_sentinels<'a>(mut self, nodes: impl IntoIterator<Item = &'a Address>) -> Self {
        self.sentinels.extend(nodes.into_iter().cloned());
        self
    }
}

impl Engine {
    /// What the nodes of a spec are logged in to with.
    pub async fn logins(&self, spec: &Spec) -> Result<Logins, LoginError> {
        let logins = self.named_logins(spec.credentials()).await?;
        Ok(logins.with_sentinels(spec.sentinels().iter().map(|n| &n.address)))
    }

    /// The same where nobody knows yet which nodes are Sentinels.
    pub async fn named_logins(&self, names: &CredentialNames) -> Result<Logins, LoginError> {
        Ok(Logins {
            admin: self.login("admin", names.admin.as_deref()).await?,
            replication: self.login("replication", names.replication.as_deref()).await?,
            sentinel: self.login("sentinel", names.sentinel.as_deref()).await?,
            sentinels: BTreeSet::new(),
        })
    }

    pub(super) async fn login(
        &self,
        field: &'static str,
        name: Option<&str>,
    ) -> Result<Option<Arc<Credential>>, LoginError> {
        let Some(name) = name else { return Ok(None) };
        let key = self.secret_key.as_ref().ok_or(LoginError::NoKey)?;
        match self.store.credential(key, name).await? {
            Some(credential) => Ok(Some(Arc::new(credential))),
            None => Err(LoginError::Missing { field, name: name.to_owned() }),
        }
    }

    /// One round over all nodes of a spec, and over `also`, for whoever asks once: libraries of functions
    /// are read, too. Who was silent before keeps the time since when.
    pub async fn look(
        &self,
        spec: &Spec,
        also: &BTreeSet<Address>,
        logins: &Logins,
        before: Option<&Observation>,
    ) -> Observation {
        self.round(everybody(spec, also), &ask(Some(spec), true), logins, before, None).await
    }

    /// The same for whoever sends commands under a lease: a node is taken for seen only when nothing
    /// can still run there that was sent before. So what a look shows cannot be overtaken.
    pub async fn look_past(
        &self,
        spec: &Spec,
        also: &BTreeSet<Address>,
        logins: &Logins,
        before: Option<&Observation>,
        barred: (Fence, &Cleared),
        libraries: bool,
    ) -> Observation {
        let ask = ask(Some(spec), libraries);
        self.round(everybody(spec, also), &ask, logins, before, Some(barred)).await
    }

    /// One round over nodes of which no spec is known yet.
    pub async fn look_at(&self, nodes: &BTreeSet<Address>, logins: &Logins) -> Observation {
        self.round(nodes.iter(), &ask(None, false), logins, None, None).await
    }

    async fn round<'a>(
        &self,
        nodes: impl Iterator<Item = &'a Address>,
        ask: &Ask,
        logins: &Logins,
        before: Option<&Observation>,
        barred: Option<(Fence, &Cleared)>,
    ) -> Observation {
        let looks = nodes.map(|address| {
            let mut target = target(address, logins);
            async move {
                if let Some((fence, cleared)) = barred {
                    target.fence = Some(fence);
                    if !cleared.contains(&target.address) {
                        if let Err(error) = self.fleet.fence(&target).await {
                            return (target.address, Err(error));
                        }
                        cleared.insert(target.address.clone());
                    }
                }
                let looked = self.fleet.look(&target, ask).await;
                (target.address, looked)
            }
        });
        let nodes = join_all(looks).await.into_iter().map(|(address, looked)| {
            let sighting = match looked {
                Ok(report) => Sighting::Seen(Box::new(report)),
                Err(error) => silence(error, before.map(|b| b.sighting(&address))),
            };
            (address, sighting)
        });
        Observation { nodes: nodes.collect(), marks: vec![] }
    }

    /// Tries the cluster bus port of every node that was seen, and notes the answers.
    pub async fn knock_at_buses(&self, seen: &mut Observation) {
        let seen_ones: Vec<Address> =
            seen.nodes.keys().filter(|a| seen.report(a).is_some()).cloned().collect();
        let knocks = seen_ones.iter().filter_map(|address| {
            let port = address.default_bus_port()?;
            Some(async move { (address, self.fleet.knock(address, port).await.is_ok()) })
        });
        let answers: BTreeMap<&Address, bool> = join_all(knocks).await.into_iter().collect();
        for (address, sighting) in &mut seen.nodes {
            if let Sighting::Seen(report) = sighting {
                report.bus_reachable = answers.get(address).copied();
            }
        }
    }
}

/// The nodes on which nothing can still run that was sent before, or under an earlier lease.
#[derive(Debug, Default)]
pub struct Cleared(Mutex<BTreeSet<Address>>);

impl Cleared {
    fn contains(&self, node: &Address) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(node)
    }

    fn insert(&self, node: Address) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node);
    }

    /// After a command whose outcome is not known: the node is barred until it was fenced again.
    pub fn bar(&self, node: &Address) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
    }
}

/// The nodes that a spec names, and those beside them.
pub(super) fn everybody<'a>(
    spec: &'a Spec,
    also: &'a BTreeSet<Address>,
) -> impl Iterator<Item = &'a Address> + use<'a> {
    let named = spec.nodes().iter().chain(spec.sentinels()).map(|node| &node.address);
    named.chain(also).collect::<BTreeSet<_>>().into_iter()
}

/// How to reach one node of a topology.
#[must_use]
pub fn target(address: &Address, logins: &Logins) -> Target {
    let (login, replication) = match logins.sentinels.contains(address) {
        true => (&logins.sentinel, &logins.admin),
        false => (&logins.admin, &logins.replication),
    };
    let (login, replication) = (login.clone(), replication.clone());
    Target { address: address.clone(), login, replication, fence: None }
}

/// The settings that a spec names, and those that plans read or write.
pub(super) fn ask(spec: Option<&Spec>, libraries: bool) -> Ask {
    let mut settings: BTreeSet<String> =
        spec.into_iter().flat_map(|spec| spec.settings().keys()).cloned().collect();
    settings.insert("cluster-node-timeout".to_owned());
    settings.insert("repl-diskless-sync-delay".to_owned());
    settings.insert("cluster-allow-replica-migration".to_owned());
    settings.insert("replica-priority".to_owned());
    settings.insert(LEAST_REPLICAS.to_owned());
    let master = match spec {
        Some(Spec::Sentinel(spec)) => Some(spec.master_name.clone()),
        Some(Spec::Cluster(_) | Spec::Replication(_)) | None => None,
    };
    Ask { settings, master, libraries }
}

pub(super) fn silence(error: FleetError, before: Option<&Sighting>) -> Sighting {
    let fault = Fault::from(error);
    let since = match before {
        Some(Sighting::Silent(s)) => s.since,
        Some(Sighting::Seen(_) | Sighting::Unknown) | None => clock::now(),
    };
    Sighting::Silent(Silence { since, code: fault.code, message: fault.message })
}
