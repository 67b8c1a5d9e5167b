//! Nodes: where a process is (address, zone, host) and what its server version can do.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// `host:port`, the name by which people, plans and hazards call a node. IPv6 literals stand in
/// brackets: `[::1]:7001`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port of the cluster bus unless the node announces another one: client port + 10000.
    /// `None` when there is no such port.
    #[must_use]
    pub fn default_bus_port(&self) -> Option<u16> {
        self.port.checked_add(10_000)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address; write it as host:port, for example 10.0.0.7:6379 or [::1]:6379")]
pub struct ParseAddressError(String);

impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseAddressError(text.chars().take(80).collect());
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(v6) => {
                let parsed: std::net::Ipv6Addr = v6.parse().map_err(|_| bad())?;
                parsed.to_string()
            }
            None => {
                let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
                if host.is_empty() || host.len() > 253 || !host.chars().all(word) {
                    return Err(bad());
                }
                host.to_ascii_lowercase()
            }
        };
        // `u16::from_str` would also take `+6379`.
        if !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let port: u16 = port.parse().map_err(|_| bad())?;
        if port == 0 { Err(bad()) } else { Ok(Self { host, port }) }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The id that a node gave itself, 40 hex digits: a node of Redis Cluster for good (`CLUSTER MYID`),
/// another one for as long as its process runs (`run_id`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct ClusterNodeId(pub String);

impl fmt::Display for ClusterNodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub type Labels = BTreeMap<String, String>;

/// Who made the server.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Flavor {
    Redis,
    Valkey,
}

/// What kind of process a node is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    Data,
    Sentinel,
}

/// A server's version, for example 7.0.15. What cannot be read counts as 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
    pub patch: u16,
}

impl Version {
    #[must_use]
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch }
    }

    /// Reads `7.0.15`, and as much as there is of anything else.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut parts = text.split(['.', '-']).map(|p| p.parse().unwrap_or(0));
        let mut next = || parts.next().unwrap_or(0);
        Self { major: next(), minor: next(), patch: next() }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::parse(&String::deserialize(deserializer)?))
    }
}

/// Which end of a move has slots move as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MovedBy {
    /// `CLUSTER MIGRATESLOTS` (Valkey 9.0).
    Source,
    /// `CLUSTER MIGRATION IMPORT` (Redis 8.4).
    Target,
}

/// What a server offers, told from its flavor and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// `CLUSTER ADDSLOTSRANGE` (Redis 7.0, every Valkey); before, each slot is named.
    pub slot_ranges: bool,
    /// `CLUSTER SHARDS` (Redis 7.0, every Valkey).
    pub cluster_shards: bool,
    /// `FUNCTION LIST` (Redis 7.0, every Valkey).
    pub functions: bool,
    /// Whether slots move as a whole, and who is told to move them.
    pub atomic_slots: Option<MovedBy>,
    /// Whether its replicas know which slots are open, and both ends follow failovers (Valkey 8.0).
    pub tracks_open_slots: bool,
    /// The version of the RDB format that it writes; a replica must be able to read its primary's.
    pub rdb_version: u16,
}

impl Capabilities {
    /// What every server can do.
    pub const OLDEST: Self = Self {
        slot_ranges: false,
        cluster_shards: false,
        functions: false,
        atomic_slots: None,
        tracks_open_slots: false,
        rdb_version: 9,
    };

    #[must_use]
    pub fn of(flavor: Flavor, version: Version) -> Self {
        let from_7 = flavor == Flavor::Valkey || version >= Version::new(7, 0, 0);
        let rdb_version = match flavor {
            Flavor::Valkey if version.major >= 9 => 80,
            Flavor::Valkey => 11,
            Flavor::Redis if version < Version::new(7, 0, 0) => 9,
            Flavor::Redis if version < Version::new(7, 2, 0) => 10,
            Flavor::Redis if version < Version::new(7, 4, 0) => 11,
            Flavor::Redis => 12,
        };
        Self {
            slot_ranges: from_7,
            cluster_shards: from_7,
            functions: from_7,
            atomic_slots: match flavor {
                Flavor::Valkey if version.major >= 9 => Some(MovedBy::Source),
                Flavor::Redis if version >= Version::new(8, 4, 0) => Some(MovedBy::Target),
                Flavor::Valkey | Flavor::Redis => None,
            },
            tracks_open_slots: flavor == Flavor::Valkey && version.major >= 8,
            rdb_version,
        }
    }

    /// Whether a replica with these capabilities can load what a primary with `primary`'s writes.
    /// Valkey refuses the numbers that only Redis uses (12 to 79).
    #[must_use]
    pub fn can_replicate_from(self, primary: Self) -> bool {
        let foreign = self.rdb_version >= 80 && (12..80).contains(&primary.rdb_version);
        primary.rdb_version <= self.rdb_version && !foreign
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_write_alike() {
        for text in ["127.0.0.1:7001", "[::1]:7001", "redis-0.cache.svc:6379"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("Redis-A:1".parse::<Address>().unwrap().to_string(), "redis-a:1");
        for text in ["", "a", ":1", "a:", "a:0", "a:65536", "::1:7001", "a b:1", "[x]:1", "a:+1"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn versions_that_cannot_be_read_do_not_panic() {
        assert_eq!(Version::parse("7.0.15"), Version::new(7, 0, 15));
        assert_eq!(Version::parse("9.1-rc1"), Version::new(9, 1, 0));
        assert_eq!(Version::parse("…"), Version::new(0, 0, 0));
    }

    #[test]
    fn a_replica_must_read_its_primarys_format() {
        let of = |flavor, major, minor| Capabilities::of(flavor, Version::new(major, minor, 0));
        assert!(of(Flavor::Redis, 7, 0).can_replicate_from(of(Flavor::Redis, 6, 2)));
        assert!(!of(Flavor::Redis, 6, 2).can_replicate_from(of(Flavor::Redis, 7, 0)));
        assert!(of(Flavor::Valkey, 9, 0).can_replicate_from(of(Flavor::Redis, 7, 2)));
        assert!(!of(Flavor::Valkey, 9, 0).can_replicate_from(of(Flavor::Redis, 7, 4)));
    }
}
