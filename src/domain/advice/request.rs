//! What people tell of their needs, and what of it makes no sense.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::assumptions::Assumptions;
use crate::domain::files::Software;
use crate::domain::node::{Flavor, Version};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::spec::{CredentialNames, MAX_NODES, Mode, NodeSpec};

/// More than this is a slip of the keyboard.
const MOST_GB: f64 = 1e9;
const MOST_OPS: f64 = 1e12;
const MOST_ZONES: usize = 50;
const MOST_SENTINELS: usize = 100;
const LONGEST_VERSION: usize = 40;

/// What a team knows of what it needs. What is left out is assumed, and told.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdviceRequest {
    /// The mode, where it is decided already.
    #[serde(default)]
    pub ha_mode: Option<Mode>,
    /// What must grow beyond one node.
    #[serde(default)]
    pub scale_requirement: Option<Scale>,
    /// How many servers (machines) there are at most. A Sentinel is small and may share one.
    #[serde(default)]
    #[schema(value_type = Option<i64>, minimum = 2, maximum = 1000)]
    pub node_count: Option<f64>,
    /// The data in GiB as it is now, as `used_memory_dataset` of `INFO memory` shows it.
    #[schema(exclusive_minimum = 0, maximum = 1_000_000_000.0)]
    pub data_size_gb: f64,
    /// Operations a second at the busiest time, reads and writes together.
    #[schema(exclusive_minimum = 0, maximum = 1_000_000_000_000.0)]
    pub ops_per_second: f64,
    /// The zones (failure domains), as their number or by their names; three when left out.
    #[serde(default)]
    pub zones: Option<Zones>,
    /// The memory of each server in GiB; as much as it takes when left out.
    #[serde(default)]
    #[schema(exclusive_minimum = 0, maximum = 1_000_000_000.0)]
    pub node_memory_gb: Option<f64>,
    /// By how much the data is to grow before the deployment is changed.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 10_000)]
    pub growth_percent: Option<f64>,
    /// Whether a replica must take over without anybody's help; yes when left out.
    #[serde(default)]
    pub automatic_failover: Option<bool>,
    /// Which failure must be survived; the advice says so where it is not.
    #[serde(default)]
    pub survive: Option<Domain>,
    /// For example `7.2` or `valkey-9.0`.
    #[serde(default)]
    #[schema(max_length = 40)]
    pub redis_version: Option<String>,
    /// The topology's name; `redis` when left out.
    #[serde(default)]
    #[schema(pattern = "^[a-z][a-z0-9-]{0,62}$")]
    pub name: Option<String>,
    /// The stored credentials that the topology is to use; when left out, one that is named after
    /// the topology.
    #[serde(default)]
    pub credentials: Option<CredentialNames>,
    /// Whether nodes are to speak TLS, to clients and with each other.
    #[serde(default)]
    pub tls: bool,
    /// The data nodes that there are, instead of `node_count` and `zones`. Example addresses are
    /// made up when they are left out.
    #[serde(default)]
    #[schema(min_items = 2, max_items = 1000)]
    pub nodes: Option<Vec<NodeSpec>>,
    /// The Sentinels that there are; beside the data nodes when left out.
    #[serde(default)]
    #[schema(min_items = 1, max_items = 100)]
    pub sentinels: Option<Vec<NodeSpec>>,
    #[serde(default)]
    pub assumptions: Assumptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ScaleRequirement)]
pub enum Scale {
    ReadScale,
    WriteScale,
    Both,
}

/// What fails together, the smaller first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = FailureDomain)]
pub enum Domain {
    Node,
    Host,
    Zone,
}

/// How many zones, or their names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "zones are a number (3) or a list of names ([\"a\", \"b\", \"c\"])")]
#[schema(as = AdviceZones)]
pub enum Zones {
    Count(i64),
    Names(Vec<String>),
}

/// The request, made whole.
#[derive(Debug, Clone)]
pub(super) struct Needs {
    pub mode: Option<Mode>,
    pub scale: Option<Scale>,
    pub servers: Option<usize>,
    pub data_gb: f64,
    pub ops: f64,
    pub zones: Vec<String>,
    pub node_memory_gb: Option<f64>,
    pub growth_percent: f64,
    pub automatic: Option<bool>,
    pub survive: Option<Domain>,
    pub software: Software,
    pub name: String,
    pub credentials: CredentialNames,
    pub tls: bool,
    pub nodes: Option<Vec<NodeSpec>>,
    pub sentinels: Option<Vec<NodeSpec>>,
    pub assume: Assumptions,
    /// What was left out and counts: fields by name.
    pub assumed_zones: bool,
    pub assumed_growth: bool,
}

impl Needs {
    /// The data at the end of the time that is planned for.
    pub(super) fn planned_gb(&self) -> f64 {
        self.data_gb * (1.0 + self.growth_percent / 100.0)
    }

    pub(super) fn writes(&self) -> f64 {
        self.ops * self.assume.write_percent / 100.0
    }

    pub(super) fn reads(&self) -> f64 {
        self.ops - self.writes()
    }

    pub(super) fn scales_reads(&self) -> bool {
        matches!(self.scale, Some(Scale::ReadScale | Scale::Both))
    }

    pub(super) fn scales_writes(&self) -> bool {
        matches!(self.scale, Some(Scale::WriteScale | Scale::Both))
    }
}

impl AdviceRequest {
    /// Everything that makes no sense at once, or the needs.
    pub(super) fn needs(&self) -> Result<Needs, Refusal> {
        let mut wrong = Wrong::default();
        wrong.number(
            "/data_size_gb",
            self.data_size_gb,
            MOST_GB,
            "the data in GiB, 0.1 if it is tiny",
        );
        wrong.number(
            "/ops_per_second",
            self.ops_per_second,
            MOST_OPS,
            "the operations a second at the busiest time, 1 if there are hardly any",
        );
        if let Some(memory) = self.node_memory_gb {
            wrong.number(
                "/node_memory_gb",
                memory,
                MOST_GB,
                "the memory of one server in GiB, or leave it out",
            );
        }
        let growth = self.growth_percent.unwrap_or(0.0);
        if !(0.0..=10_000.0).contains(&growth) {
            wrong.say("/growth_percent", "give a growth of 0 to 10000 percent; plan for a smaller deployment where data shrinks");
        }
        self.judge_nodes(&mut wrong);
        let zones = self.zones(&mut wrong);
        let software = self.software(&mut wrong);
        let name = self.name.clone().unwrap_or_else(|| "redis".to_owned());
        if !is_name(&name) {
            wrong.say("/name", "a topology's name begins with a lower-case letter and has at most 63 lower-case letters, digits and hyphens");
        }
        wrong.0.extend(self.assumptions.wrong());
        if !wrong.0.is_empty() {
            return Err(Refusal::Invalid(wrong.0));
        }
        let own = || {
            let name = Some(format!("{name}-admin"));
            CredentialNames { admin: name.clone(), replication: name.clone(), sentinel: name }
        };
        Ok(Needs {
            mode: self.ha_mode,
            scale: self.scale_requirement,
            servers: self.servers(),
            data_gb: self.data_size_gb,
            ops: self.ops_per_second,
            zones,
            node_memory_gb: self.node_memory_gb,
            growth_percent: growth,
            automatic: self.automatic_failover,
            survive: self.survive,
            software,
            credentials: self.credentials.clone().unwrap_or_else(own),
            name,
            tls: self.tls,
            nodes: self.nodes.clone(),
            sentinels: self.sentinels.clone(),
            assume: self.assumptions.clone(),
            assumed_zones: self.zones.is_none() && self.nodes.is_none(),
            assumed_growth: self.growth_percent.is_none(),
        })
    }

    fn servers(&self) -> Option<usize> {
        let counted = self.node_count.map(|n| n as usize);
        counted.or(self.nodes.as_ref().map(Vec::len))
    }

    fn judge_nodes(&self, wrong: &mut Wrong) {
        match self.node_count {
            Some(_) if self.nodes.is_some() => {
                wrong.say("/node_count", "give node_count, or the nodes themselves, not both");
            }
            Some(n) if n.fract() != 0.0 => wrong.say("/node_count", format!("{n} is no number of servers: give a whole one, or leave it out")),
            Some(n) if n < 2.0 => wrong.say("/node_count", format!("{n} server{} nothing to fail over to; give 2 (replication), 3 with zones of their own (sentinel) or 6 (cluster), or leave it out", if n == 1.0 { " has" } else { "s have" })),
            Some(n) if n > MAX_NODES as f64 => wrong.say("/node_count", format!("a topology has at most {MAX_NODES} nodes; split the data over several topologies")),
            Some(_) | None => {}
        }
        if self.nodes.as_ref().is_some_and(|nodes| nodes.len() < 2) {
            wrong.say("/nodes", "one node has nothing to fail over to; name at least 2");
        }
        if self.sentinels.as_ref().is_some_and(|s| s.is_empty() || s.len() > MOST_SENTINELS) {
            wrong.say(
                "/sentinels",
                format!("name 1 to {MOST_SENTINELS} Sentinels, 3 as a rule, or leave them out"),
            );
        }
        let mut seen = BTreeSet::new();
        let lists = [("nodes", &self.nodes), ("sentinels", &self.sentinels)];
        for (list, nodes) in lists {
            let nodes = nodes.iter().flatten();
            for (i, node) in nodes.enumerate() {
                if !seen.insert(&node.address) {
                    wrong.say(
                        &format!("/{list}/{i}/address"),
                        format!("{} is listed twice; name each once", node.address),
                    );
                }
                if node.zone.trim().is_empty() || node.zone.len() > 128 {
                    wrong.say(
                        &format!("/{list}/{i}/zone"),
                        "a zone is a name of 1 to 128 characters",
                    );
                }
                if node.host.as_ref().is_some_and(|h| h.is_empty() || h.len() > 253) {
                    wrong.say(
                        &format!("/{list}/{i}/host"),
                        "a host is a name of 1 to 253 characters; leave it out to use the address's",
                    );
                }
            }
        }
        if seen.len() > MAX_NODES {
            wrong.say("/nodes", format!("a topology has at most {MAX_NODES} nodes"));
        }
    }

    fn zones(&self, wrong: &mut Wrong) -> Vec<String> {
        const LETTERS: [&str; 26] = [
            "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q",
            "r", "s", "t", "u", "v", "w", "x", "y", "z",
        ];
        if let Some(nodes) = &self.nodes {
            if self.zones.is_some() {
                wrong.say("/zones", "each of `nodes` says its zone; leave zones out");
            }
            let zones: BTreeSet<_> = nodes.iter().map(|n| n.zone.clone()).collect();
            return zones.into_iter().collect();
        }
        let named = |count: usize| -> Vec<String> {
            let letter =
                |i: usize| LETTERS.get(i).map_or_else(|| format!("zone-{i}"), |l| (*l).to_owned());
            (0..count).map(letter).collect()
        };
        match &self.zones {
            None => named(3),
            Some(Zones::Count(n)) => match usize::try_from(*n) {
                Ok(count) if (1..=MOST_ZONES).contains(&count) => named(count),
                Ok(_) | Err(_) => {
                    wrong.say(
                        "/zones",
                        format!("give 1 to {MOST_ZONES} zones; 1 where there are none"),
                    );
                    vec![]
                }
            },
            Some(Zones::Names(names)) => {
                if names.is_empty() || names.len() > MOST_ZONES {
                    wrong.say("/zones", format!("name 1 to {MOST_ZONES} zones"));
                }
                for (i, name) in names.iter().enumerate() {
                    if name.trim().is_empty() || name.len() > 128 {
                        wrong
                            .say(&format!("/zones/{i}"), "a zone is a name of 1 to 128 characters");
                    } else if names[..i].contains(name) {
                        wrong.say(&format!("/zones/{i}"), format!("{name} is listed twice"));
                    }
                }
                names.clone()
            }
        }
    }

    fn software(&self, wrong: &mut Wrong) -> Software {
        const OLDEST: Version = Version::new(6, 2, 0);
        let usual = Software { flavor: Flavor::Redis, version: Version::new(7, 2, 0) };
        let Some(text) = &self.redis_version else { return usual };
        match Software::parse(text).filter(|_| text.len() <= LONGEST_VERSION) {
            Some(software) if software.version >= OLDEST => software,
            Some(_) => {
                wrong.say("/redis_version", format!("{text} is older than 6.2, the oldest version that Reeve works with; give a newer one"));
                usual
            }
            None => {
                wrong.say("/redis_version", "write a version as 7.2, or valkey-9.0");
                usual
            }
        }
    }
}

fn is_name(name: &str) -> bool {
    let fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.len() <= 63 && name.chars().all(fit)
}

#[derive(Default)]
struct Wrong(Vec<FieldError>);

impl Wrong {
    fn say(&mut self, pointer: &str, detail: impl Into<String>) {
        self.0.push(FieldError::new(pointer, detail));
    }

    /// A number above 0 that is no slip.
    fn number(&mut self, pointer: &str, number: f64, most: f64, give: &str) {
        if !number.is_finite() || number <= 0.0 {
            self.say(pointer, format!("{number} makes no sense: give {give}"));
        } else if number > most {
            self.say(pointer, format!("{number:e} is more than any deployment has: give {give}"));
        }
    }
}
