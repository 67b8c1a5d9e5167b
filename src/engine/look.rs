//! Looking at nodes: all of them at once, each for itself, so that one that hangs costs nobody else
//! time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::join_all;

use super::Engine;
use crate::clock;
use crate::domain::credential::Credential;
use crate::domain::fault::Fault;
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Sighting, Silence};
use crate::domain::spec::{CredentialNames, Spec};
use crate::fleet::{Ask, FleetError, Target};
use crate::store::StoreError;

/// The logins that a topology uses, opened.
#[derive(Debug, Clone, Default)]
pub struct Logins {
    pub admin: Option<Arc<Credential>>,
    pub replication: Option<Arc<Credential>>,
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

impl Engine {
    pub async fn logins(&self, names: &CredentialNames) -> Result<Logins, LoginError> {
        Ok(Logins {
            admin: self.login("admin", names.admin.as_deref()).await?,
            replication: self.login("replication", names.replication.as_deref()).await?,
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

    /// One round over all nodes of a spec. Who was silent before keeps the time since when.
    pub async fn look(
        &self,
        spec: &Spec,
        logins: &Logins,
        before: Option<&Observation>,
    ) -> Observation {
        let ask = ask(spec);
        let looks = spec.nodes().iter().chain(spec.sentinels()).map(|node| {
            let target = target(&node.address, logins);
            let ask = &ask;
            async move {
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

/// How to reach one node of a topology.
#[must_use]
pub fn target(address: &Address, logins: &Logins) -> Target {
    Target {
        address: address.clone(),
        login: logins.admin.clone(),
        replication: logins.replication.clone(),
    }
}

/// The settings that plans for this spec read or write.
fn ask(spec: &Spec) -> Ask {
    let mut settings: BTreeSet<String> = spec.settings().keys().cloned().collect();
    settings.insert("cluster-node-timeout".to_owned());
    settings.insert("repl-diskless-sync-delay".to_owned());
    Ask { settings }
}

pub(super) fn silence(error: FleetError, before: Option<&Sighting>) -> Sighting {
    let fault = Fault::from(error);
    let since = match before {
        Some(Sighting::Silent(s)) => s.since,
        Some(Sighting::Seen(_) | Sighting::Unknown) | None => clock::now(),
    };
    Sighting::Silent(Silence { since, code: fault.code, message: fault.message })
}
