//! What is different outside of clusters: one primary with two replicas, and Sentinels that may watch
//! them.

use std::collections::BTreeSet;

use reeve::domain::intent::{self, Intent};
use reeve::domain::node::Address;
use reeve::domain::spec::{ReplicationSpec, SentinelSpec, Spec};
use reeve::fleet::sim::SimOptions;

use super::case::Case;
use crate::support::instance::{ensure, told};

impl Case {
    /// So many Sentinels, and the one that watches nobody at first.
    pub fn add_watchers(&mut self, count: usize) {
        let host = self.nodes[0].host().trim_end_matches(".1").to_owned();
        let address = |i: usize| format!("{host}.{}:26379", 10 + i).parse::<Address>().unwrap();
        self.sentinels = (0..count).map(address).collect();
        let SimOptions { flavor, version, .. } = SimOptions::default();
        let options = SimOptions::watching(flavor, version);
        for sentinel in self.all_sentinels() {
            self.sim.add_node(sentinel, &options);
        }
    }

    /// Those that watch, and the one that does not at first.
    pub fn all_sentinels(&self) -> impl Iterator<Item = &Address> {
        let guest = (!self.sentinels.is_empty()).then_some(&self.guest_sentinel);
        self.sentinels.iter().chain(guest)
    }

    pub fn lone_spec(&self) -> Spec {
        if self.sentinels.is_empty() {
            return Spec::Replication(ReplicationSpec {
                replicas: 2,
                nodes: self.in_zones(&self.nodes),
                credentials: Default::default(),
                tls: None,
                placement: Default::default(),
                settings: Default::default(),
                failover: Default::default(),
                overrides: Default::default(),
            });
        }
        Spec::Sentinel(SentinelSpec {
            replicas: 2,
            nodes: self.in_zones(&self.nodes),
            master_name: "swept".to_owned(),
            quorum: None,
            sentinels: self.in_zones(&self.sentinels),
            down_after_ms: Some(3000),
            failover_timeout_ms: Some(10_000),
            parallel_syncs: Some(1),
            credentials: Default::default(),
            tls: None,
            placement: Default::default(),
            settings: Default::default(),
            failover: Default::default(),
            overrides: Default::default(),
        })
    }

    /// Another spec: a blank node comes in the place of the primary.
    pub async fn replace_primary(&mut self) -> Result<Intent, String> {
        let stored = self.store.topology(&self.name).await.map_err(told)?;
        let primary = self.first(true)?;
        let mut nodes = stored.wanted.spec.nodes().to_vec();
        for node in nodes.iter_mut().filter(|n| n.address == primary) {
            node.address = self.guest.clone();
        }
        self.leavers = [primary].into();
        let spec = Box::new(stored.wanted.spec.with_nodes(nodes, 2));
        Ok(Intent::ReplaceSpec(intent::ReplaceSpecIntent { spec }))
    }

    /// The one node that takes writes, now and after each is started again.
    pub fn one_primary(&self, members: &BTreeSet<&Address>) -> Result<Address, String> {
        let mut leading = Vec::new();
        for node in members {
            let now = self.sim.inspect(node).ok_or("no such node")?;
            let leads_by_file = now.follows_by_file.is_none();
            ensure(leads_by_file == now.primary, || {
                format!("{node} would start as something else: {now:?}")
            })?;
            leading.extend(now.primary.then_some(*node));
        }
        match leading[..] {
            [primary] => Ok(primary.clone()),
            _ => Err(format!("primaries: {leading:?}")),
        }
    }
}
