//! What people post: the wanted topology in their own words. Placement turns a spec into a layout.
//!
//! `validate` finds what is wrong with a spec by itself, all of it at once; what is wrong with the
//! nodes that it names is for the intent to find.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::id::ShardId;
use super::node::Address;
use super::refusal::FieldError;

/// Most nodes of one topology: the upper bound that Redis Cluster's documentation recommends.
pub const MAX_NODES: usize = 1000;

/// The wanted topology. `mode` decides which fields there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum Spec {
    Cluster(ClusterSpec),
    Replication(ReplicationSpec),
    Sentinel(SentinelSpec),
}

/// Redis Cluster: shards that share the 16384 hash slots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterSpec {
    /// How many shards. Redis Cluster needs 3 primaries to elect a new one.
    #[schema(minimum = 3, maximum = 1000)]
    pub shards: u16,
    /// How many replicas each shard has beside its primary.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 999)]
    pub replicas_per_shard: u16,
    /// The nodes to use; those beyond the need stay spares.
    #[schema(min_items = 3, max_items = 1000)]
    pub nodes: Vec<NodeSpec>,
    #[serde(default)]
    pub credentials: CredentialNames,
    #[serde(default)]
    pub tls: Option<TlsSpec>,
    #[serde(default)]
    pub placement: PlacementSpec,
    /// Server settings (`CONFIG SET`) that every node of the topology gets and keeps.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    #[serde(default)]
    pub failover: FailoverSpec,
    /// What deviates in single shards and nodes. Plans write it; a new topology has none.
    #[serde(default, skip_serializing_if = "ClusterOverrides::is_empty")]
    pub overrides: ClusterOverrides,
}

/// Where shards and nodes are not like the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterOverrides {
    #[serde(default)]
    #[schema(max_items = 1000)]
    pub shards: Vec<ShardOverride>,
    /// Nodes that are drained: no shard is given to them while another node is fit.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<Address>, max_items = 1000)]
    pub drained: BTreeSet<Address>,
}

/// One shard that has another number of replicas than `replicas_per_shard`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShardOverride {
    /// The shard's id, as `layout` shows it.
    pub shard: ShardId,
    #[schema(minimum = 0, maximum = 999)]
    pub replicas: u16,
}

impl ClusterOverrides {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shards.is_empty() && self.drained.is_empty()
    }

    /// How many replicas a shard is to have, if it deviates.
    #[must_use]
    pub fn replicas_of(&self, shard: ShardId) -> Option<u16> {
        self.shards.iter().find(|o| o.shard == shard).map(|o| o.replicas)
    }
}

/// One primary with replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicationSpec {
    #[schema(minimum = 0, maximum = 999)]
    pub replicas: u16,
    #[schema(min_items = 1, max_items = 1000)]
    pub nodes: Vec<NodeSpec>,
    #[serde(default)]
    pub credentials: CredentialNames,
    #[serde(default)]
    pub tls: Option<TlsSpec>,
    #[serde(default)]
    pub placement: PlacementSpec,
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    #[serde(default)]
    pub failover: FailoverSpec,
    /// What deviates in single nodes. Plans write it; a new topology has none.
    #[serde(default, skip_serializing_if = "LoneOverrides::is_empty")]
    pub overrides: LoneOverrides,
}

/// Where nodes of a topology with one shard are not like the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NodeOverrides)]
pub struct LoneOverrides {
    /// Nodes that are drained: they do not become primary while another node is fit.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<Address>, max_items = 1000)]
    pub drained: BTreeSet<Address>,
}

impl LoneOverrides {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.drained.is_empty()
    }
}

/// One primary with replicas, and Sentinels that watch them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SentinelSpec {
    #[schema(minimum = 1, maximum = 999)]
    pub replicas: u16,
    #[schema(min_items = 2, max_items = 1000)]
    pub nodes: Vec<NodeSpec>,
    /// The name by which clients ask Sentinels for the primary.
    #[schema(min_length = 1, max_length = 128)]
    pub master_name: String,
    /// How many Sentinels must agree that the primary is down; the majority when left out.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1000)]
    pub quorum: Option<u16>,
    #[schema(min_items = 1, max_items = 1000)]
    pub sentinels: Vec<NodeSpec>,
    #[serde(default)]
    #[schema(minimum = 1)]
    pub down_after_ms: Option<u32>,
    #[serde(default)]
    #[schema(minimum = 1)]
    pub failover_timeout_ms: Option<u32>,
    #[serde(default)]
    #[schema(minimum = 1)]
    pub parallel_syncs: Option<u16>,
    #[serde(default)]
    pub credentials: CredentialNames,
    #[serde(default)]
    pub tls: Option<TlsSpec>,
    #[serde(default)]
    pub placement: PlacementSpec,
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    #[serde(default)]
    pub failover: FailoverSpec,
    /// What deviates in single nodes. Plans write it; a new topology has none.
    #[serde(default, skip_serializing_if = "LoneOverrides::is_empty")]
    pub overrides: LoneOverrides,
}

/// A node as a spec names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    pub address: Address,
    /// The failure domain that the node is in, for example a data centre.
    #[schema(min_length = 1, max_length = 128)]
    pub zone: String,
    /// The machine that the node runs on; the host part of the address when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 253)]
    pub host: Option<String>,
}

impl NodeSpec {
    /// The machine that the node is taken to run on.
    #[must_use]
    pub fn machine(&self) -> &str {
        self.host.as_deref().unwrap_or(self.address.host())
    }
}

/// Stored credentials, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CredentialNames {
    /// What Reeve logs in with.
    #[serde(default)]
    pub admin: Option<String>,
    /// What replicas log in to their primary with (`masteruser`, `masterauth`); left as the nodes
    /// have it when null.
    #[serde(default)]
    pub replication: Option<String>,
    /// What Reeve logs in to Sentinels with.
    #[serde(default)]
    pub sentinel: Option<String>,
}

/// TLS towards the nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsSpec {
    /// Certificates in PEM that may sign the nodes' certificates; the system's when left out.
    #[serde(default)]
    pub ca: Option<String>,
}

/// How nodes are spread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlacementSpec {
    /// Over what to spread, the most important first.
    #[serde(default = "PlacementSpec::everything")]
    pub spread: Vec<Spread>,
    /// Whether to refuse what cannot be spread, instead of warning.
    #[serde(default)]
    pub strict: bool,
}

impl PlacementSpec {
    fn everything() -> Vec<Spread> {
        vec![Spread::Zone, Spread::Host]
    }
}

impl Default for PlacementSpec {
    fn default() -> Self {
        Self { spread: Self::everything(), strict: false }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    Zone,
    Host,
}

/// Whether Reeve itself may fail a shard over where the native mechanism cannot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailoverSpec {
    #[serde(default)]
    pub mode: FailoverMode,
    #[serde(default = "FailoverSpec::grace")]
    #[schema(maximum = 3600)]
    pub grace_seconds: u32,
    #[serde(default = "FailoverSpec::cooldown")]
    #[schema(maximum = 604_800)]
    pub cooldown_seconds: u32,
}

impl FailoverSpec {
    fn grace() -> u32 {
        1
    }

    fn cooldown() -> u32 {
        600
    }
}

impl Default for FailoverSpec {
    fn default() -> Self {
        Self {
            mode: FailoverMode::default(),
            grace_seconds: Self::grace(),
            cooldown_seconds: Self::cooldown(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailoverMode {
    Off,
    /// Decide and record, but do nothing.
    #[default]
    Shadow,
    Auto,
}

impl Spec {
    #[must_use]
    pub fn mode(&self) -> Mode {
        match self {
            Self::Cluster(_) => Mode::Cluster,
            Self::Replication(_) => Mode::Replication,
            Self::Sentinel(_) => Mode::Sentinel,
        }
    }

    /// The data nodes that the spec names.
    #[must_use]
    pub fn nodes(&self) -> &[NodeSpec] {
        match self {
            Self::Cluster(s) => &s.nodes,
            Self::Replication(s) => &s.nodes,
            Self::Sentinel(s) => &s.nodes,
        }
    }

    #[must_use]
    pub fn sentinels(&self) -> &[NodeSpec] {
        match self {
            Self::Sentinel(s) => &s.sentinels,
            Self::Cluster(_) | Self::Replication(_) => &[],
        }
    }

    #[must_use]
    pub fn placement(&self) -> &PlacementSpec {
        match self {
            Self::Cluster(s) => &s.placement,
            Self::Replication(s) => &s.placement,
            Self::Sentinel(s) => &s.placement,
        }
    }

    #[must_use]
    pub fn failover(&self) -> &FailoverSpec {
        match self {
            Self::Cluster(s) => &s.failover,
            Self::Replication(s) => &s.failover,
            Self::Sentinel(s) => &s.failover,
        }
    }

    /// The nodes that are drained.
    #[must_use]
    pub fn drained(&self) -> &BTreeSet<Address> {
        match self {
            Self::Cluster(s) => &s.overrides.drained,
            Self::Replication(s) => &s.overrides.drained,
            Self::Sentinel(s) => &s.overrides.drained,
        }
    }

    /// The same with other nodes drained.
    #[must_use]
    pub fn with_drained(mut self, drained: BTreeSet<Address>) -> Self {
        match &mut self {
            Self::Cluster(s) => s.overrides.drained = drained,
            Self::Replication(s) => s.overrides.drained = drained,
            Self::Sentinel(s) => s.overrides.drained = drained,
        }
        self
    }

    /// How many replicas there are beside the one primary, in the modes that have one.
    #[must_use]
    pub fn lone_replicas(&self) -> Option<u16> {
        match self {
            Self::Cluster(_) => None,
            Self::Replication(s) => Some(s.replicas),
            Self::Sentinel(s) => Some(s.replicas),
        }
    }

    /// The same with other data nodes, in the modes that have one shard, and with as many replicas.
    #[must_use]
    pub fn with_nodes(mut self, data: Vec<NodeSpec>, replicas: u16) -> Self {
        match &mut self {
            Self::Cluster(s) => s.nodes = data,
            Self::Replication(ReplicationSpec { nodes, replicas: count, .. })
            | Self::Sentinel(SentinelSpec { nodes, replicas: count, .. }) => {
                (*nodes, *count) = (data, replicas);
            }
        }
        self
    }

    /// The same with other lasting settings.
    #[must_use]
    pub fn with_settings(mut self, settings: BTreeMap<String, String>) -> Self {
        match &mut self {
            Self::Cluster(s) => s.settings = settings,
            Self::Replication(s) => s.settings = settings,
            Self::Sentinel(s) => s.settings = settings,
        }
        self
    }

    #[must_use]
    pub fn credentials(&self) -> &CredentialNames {
        match self {
            Self::Cluster(s) => &s.credentials,
            Self::Replication(s) => &s.credentials,
            Self::Sentinel(s) => &s.credentials,
        }
    }

    #[must_use]
    pub fn settings(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Cluster(s) => &s.settings,
            Self::Replication(s) => &s.settings,
            Self::Sentinel(s) => &s.settings,
        }
    }

    #[must_use]
    pub fn tls(&self) -> Option<&TlsSpec> {
        match self {
            Self::Cluster(s) => s.tls.as_ref(),
            Self::Replication(s) => s.tls.as_ref(),
            Self::Sentinel(s) => s.tls.as_ref(),
        }
    }

    /// Everything that is wrong with the spec by itself. Pointers are relative to the spec.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldError> {
        let mut wrong = Vec::new();
        let mut seen = BTreeMap::new();
        for (list, nodes) in [("nodes", self.nodes()), ("sentinels", self.sentinels())] {
            for (i, node) in nodes.iter().enumerate() {
                if let Some(first) = seen.insert(&node.address, i) {
                    let detail = format!(
                        "{} is listed twice (first as node {first}); name each node once",
                        node.address
                    );
                    wrong.push(FieldError::new(format!("/{list}/{i}/address"), detail));
                }
                let control = node.zone.contains(char::is_control);
                if node.zone.trim().is_empty() || node.zone.len() > 128 || control {
                    wrong.push(FieldError::new(
                        format!("/{list}/{i}/zone"),
                        "a zone is a name of 1 to 128 characters on one line; use one name for all nodes where there are no zones",
                    ));
                }
                if node.host.as_ref().is_some_and(|h| h.is_empty() || h.len() > 253) {
                    wrong.push(FieldError::new(
                        format!("/{list}/{i}/host"),
                        "a host is a name of 1 to 253 characters; leave it out to use the address's",
                    ));
                }
            }
        }
        if seen.len() > MAX_NODES {
            wrong.push(FieldError::new("/nodes", format!("at most {MAX_NODES} nodes")));
        }
        if self.tls().is_some() {
            wrong.push(FieldError::new(
                "/tls",
                "TLS towards the nodes is not available yet; leave tls null",
            ));
        }
        for name in self.settings().keys() {
            if let Some(why) = reserved_setting(name) {
                wrong.push(FieldError::new(format!("/settings/{name}"), why));
            }
        }
        match self {
            Self::Cluster(cluster) => wrong.extend(cluster.validate()),
            Self::Replication(_) => wrong.extend(self.validate_lone()),
            Self::Sentinel(spec) => {
                wrong.extend(self.validate_lone());
                wrong.extend(spec.validate());
            }
        }
        wrong
    }

    /// What is wrong with a spec of one shard.
    fn validate_lone(&self) -> Vec<FieldError> {
        let mut wrong = Vec::new();
        let distinct: BTreeSet<_> = self.nodes().iter().map(|n| &n.address).collect();
        for (i, node) in self.drained().iter().enumerate() {
            if !distinct.contains(node) {
                wrong.push(FieldError::new(
                    format!("/overrides/drained/{i}"),
                    format!("{node} is none of `nodes`; take it out of `drained`"),
                ));
            }
        }
        let needed = usize::from(self.lone_replicas().unwrap_or(0)) + 1;
        if distinct.len() < needed {
            wrong.push(FieldError::new(
                "/nodes",
                format!(
                    "a primary with {} replicas needs {needed} nodes, {} are given; add nodes or ask for fewer",
                    needed - 1,
                    distinct.len()
                ),
            ));
        }
        wrong
    }
}

impl SentinelSpec {
    /// How many Sentinels must agree that the primary is down.
    #[must_use]
    pub fn effective_quorum(&self) -> u16 {
        let majority = self.sentinels.len() / 2 + 1;
        self.quorum.unwrap_or_else(|| u16::try_from(majority).unwrap_or(u16::MAX))
    }

    /// The options that each Sentinel is told, where they are not left to it.
    #[must_use]
    pub fn options(&self) -> BTreeMap<String, u64> {
        let options = [
            ("down-after-milliseconds", self.down_after_ms.map(u64::from)),
            ("failover-timeout", self.failover_timeout_ms.map(u64::from)),
            ("parallel-syncs", self.parallel_syncs.map(u64::from)),
        ];
        options.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    fn validate(&self) -> Vec<FieldError> {
        let mut wrong = Vec::new();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let name = &self.master_name;
        if name.is_empty() || name.len() > 128 || !name.chars().all(plain) {
            wrong.push(FieldError::new(
                "/master_name",
                "a name has 1 to 128 letters, digits, dots, hyphens and underscores, as in sentinel.conf",
            ));
        }
        if self.sentinels.is_empty() {
            wrong.push(FieldError::new("/sentinels", "name at least one Sentinel; 3 are wise"));
        }
        if usize::from(self.effective_quorum()) > self.sentinels.len() || self.quorum == Some(0) {
            wrong.push(FieldError::new(
                "/quorum",
                format!(
                    "{} Sentinels cannot reach a quorum of {}; leave it out for the majority",
                    self.sentinels.len(),
                    self.effective_quorum()
                ),
            ));
        }
        let zero = [
            ("/down_after_ms", self.down_after_ms == Some(0)),
            ("/failover_timeout_ms", self.failover_timeout_ms == Some(0)),
            ("/parallel_syncs", self.parallel_syncs == Some(0)),
        ];
        let too_small = zero.into_iter().filter(|(_, zero)| *zero);
        wrong.extend(too_small.map(|(field, _)| FieldError::new(field, "must be at least 1")));
        wrong
    }
}

impl ClusterSpec {
    /// How many nodes the shards need.
    #[must_use]
    pub fn needed(&self) -> usize {
        let replicas = usize::from(self.replicas_per_shard);
        let overrides = &self.overrides.shards;
        let deviating: usize = overrides.iter().map(|o| usize::from(o.replicas) + 1).sum();
        let others = usize::from(self.shards).saturating_sub(overrides.len());
        others * (replicas + 1) + deviating
    }

    fn validate(&self) -> Vec<FieldError> {
        let mut wrong = Vec::new();
        if self.shards < 3 {
            wrong.push(FieldError::new(
                "/shards",
                format!(
                    "{} shards cannot elect a primary: Redis Cluster needs a majority of at least 3; ask for 3 or more, or for mode replication",
                    self.shards
                ),
            ));
        }
        let mut named = BTreeSet::new();
        for (i, deviating) in self.overrides.shards.iter().enumerate() {
            if !named.insert(deviating.shard) {
                wrong.push(FieldError::new(
                    format!("/overrides/shards/{i}/shard"),
                    "the shard is listed twice; name each once",
                ));
            }
        }
        let distinct: BTreeSet<_> = self.nodes.iter().map(|n| &n.address).collect();
        for (i, node) in self.overrides.drained.iter().enumerate() {
            if !distinct.contains(node) {
                wrong.push(FieldError::new(
                    format!("/overrides/drained/{i}"),
                    format!("{node} is none of `nodes`; take it out of `drained`"),
                ));
            }
        }
        if self.shards >= 3 && distinct.len() < self.needed() {
            wrong.push(FieldError::new(
                "/nodes",
                format!(
                    "{} shards with {} replicas each{} need {} nodes, {} are given; add nodes or ask for fewer",
                    self.shards,
                    self.replicas_per_shard,
                    if self.overrides.shards.is_empty() { "" } else { " (but for the overrides)" },
                    self.needed(),
                    distinct.len()
                ),
            ));
        }
        for (i, node) in self.nodes.iter().enumerate() {
            if node.address.default_bus_port().is_none() {
                wrong.push(FieldError::new(
                    format!("/nodes/{i}/address"),
                    "the cluster bus listens on the port + 10000, so a cluster node's port is at most 55535",
                ));
            }
        }
        wrong
    }
}

/// Settings that Reeve or the deployment's shape decides, so that a spec must not.
fn reserved_setting(name: &str) -> Option<&'static str> {
    let simple = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || !name.chars().all(simple) {
        return Some(
            "a setting's name has lower-case letters, digits and hyphens, as in redis.conf",
        );
    }
    match name {
        "masterauth" | "masteruser" | "primaryauth" | "primaryuser" => {
            Some("replication's login comes from credentials.replication")
        }
        "requirepass" => Some("passwords do not belong into settings; see POST /v1/credentials"),
        "replicaof"
        | "slaveof"
        | "cluster-enabled"
        | "cluster-config-file"
        | "port"
        | "bind"
        | "tls-port"
        | "dir"
        | "dbfilename" => Some("this is decided where the node is started, not here; remove it"),
        _ => None,
    }
}

/// The three kinds of deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    Replication,
    Sentinel,
    Cluster,
}
