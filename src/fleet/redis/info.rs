//! The text of `INFO`: lines of `name:value` under headings. What is missing or odd reads as
//! `None`, 0 or false, for a node that says something strange is still a node that answered.

use std::collections::HashMap;

use crate::domain::node::{Address, Flavor, NodeKind, Version};
use crate::domain::observation::{Attached, History, Role};

pub(super) struct Info<'a>(HashMap<&'a str, &'a str>);

impl<'a> Info<'a> {
    pub fn parse(text: &'a str) -> Self {
        Self(text.lines().filter_map(|line| line.trim_end().split_once(':')).collect())
    }

    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).copied()
    }

    pub fn text(&self, name: &str) -> String {
        self.get(name).unwrap_or_default().to_owned()
    }

    /// `None` also for `-1`, which Redis writes where there is nothing to count.
    pub fn count(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    pub fn number(&self, name: &str) -> u64 {
        self.count(name).unwrap_or(0)
    }

    pub fn is(&self, name: &str, value: &str) -> bool {
        self.get(name) == Some(value)
    }

    /// Whether this is the `INFO` of a server that Reeve knows.
    pub fn is_credible(&self) -> bool {
        self.0.contains_key("redis_version") || self.0.contains_key("valkey_version")
    }

    /// Valkey keeps saying `redis_version:7.2.4`; its own version stands beside it.
    pub fn server(&self) -> (Flavor, Version) {
        match self.get("valkey_version") {
            Some(version) => (Flavor::Valkey, Version::parse(version)),
            None => {
                let valkey = self.is("server_name", "valkey");
                let flavor = if valkey { Flavor::Valkey } else { Flavor::Redis };
                (flavor, Version::parse(self.get("redis_version").unwrap_or_default()))
            }
        }
    }

    /// The mode is `redis_mode`, and since Valkey 9 `server_mode`.
    pub fn kind(&self) -> NodeKind {
        match self.get("redis_mode").or_else(|| self.get("server_mode")) {
            Some("sentinel") => NodeKind::Sentinel,
            Some(_) | None => NodeKind::Data,
        }
    }

    /// The role of a data node.
    pub fn role(&self) -> Role {
        if self.is("role", "slave") || self.is("role", "replica") {
            Role::Replica
        } else {
            Role::Primary
        }
    }

    /// The history that it shared before; one of zeros is none.
    pub fn history_before(&self) -> Option<History> {
        let replid = self.get("master_replid2").filter(|id| id.bytes().any(|b| b != b'0'))?;
        Some(History { replid: replid.to_owned(), offset: self.count("second_repl_offset")? })
    }

    /// The replicas that are connected: `slave0:ip=10.0.0.2,port=6379,state=online,offset=42,lag=1`.
    pub fn replicas(&self) -> Vec<Attached> {
        let numbered = |name: &str| {
            let digits = name.strip_prefix("slave").unwrap_or_default();
            !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
        };
        let attached = |line: &str| {
            let field = |name: &str| line.split(',').find_map(|part| part.strip_prefix(name));
            let number = |name: &str| field(name).and_then(|n| n.parse::<u64>().ok());
            let port = u16::try_from(number("port=")?).ok()?;
            Some(Attached {
                address: address(field("ip=")?, port)?,
                state: field("state=")?.to_owned(),
                offset: number("offset=").unwrap_or(0),
                lag_seconds: number("lag=").unwrap_or(0),
            })
        };
        let lines = self.0.iter().filter(|(name, _)| numbered(name));
        let mut replicas: Vec<_> = lines.filter_map(|(_, line)| attached(line)).collect();
        replicas.sort_by(|a, b| a.address.cmp(&b.address));
        replicas
    }

    /// Keys in all databases: `db0:keys=3,expires=0,avg_ttl=0` and so on.
    pub fn keys(&self) -> u64 {
        let database = |name: &str| {
            let digits = name.strip_prefix("db").unwrap_or_default();
            !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
        };
        self.0
            .iter()
            .filter(|(name, _)| database(name))
            .filter_map(|(_, value)| value.split(',').find_map(|part| part.strip_prefix("keys=")))
            .filter_map(|keys| keys.parse().ok())
            .fold(0, u64::saturating_add)
    }

    /// Whose replica it is.
    pub fn primary(&self) -> Option<Address> {
        let port = self.count("master_port").and_then(|port| u16::try_from(port).ok())?;
        address(self.get("master_host")?, port)
    }
}

/// An address from a host and a port as servers write them: IPv6 without brackets, and an empty
/// host, `?` or port 0 for what they do not know.
pub(super) fn address(host: &str, port: u16) -> Option<Address> {
    let text =
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    text.parse().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Cut from the answers of a replica of Redis 7.0.15 and of a Valkey 9.1.2.
    pub const REPLICA: &str = "# Server\r\nredis_version:7.0.15\r\nredis_mode:cluster\r\n\
        run_id:c9f372ba18d9b63d95e7b746d1381ef1be45add0\r\nuptime_in_seconds:61\r\n\
        \r\n# Memory\r\nused_memory:1642008\r\nmaxmemory:0\r\n\
        \r\n# Persistence\r\nloading:0\r\nrdb_last_save_time:1795354858\r\n\
        rdb_last_bgsave_status:ok\r\naof_enabled:0\r\n\
        \r\n# Replication\r\nrole:slave\r\nmaster_host:::1\r\nmaster_port:17110\r\n\
        master_link_status:up\r\nmaster_last_io_seconds_ago:3\r\nmaster_sync_in_progress:0\r\n\
        slave_repl_offset:240\r\nconnected_slaves:0\r\n\
        master_replid:5b0b8b1d5f0e6d8a3d2f0f4c0d6f8f5e3a1c7b9d\r\nmaster_repl_offset:196\r\n\
        \r\n# Cluster\r\ncluster_enabled:1\r\n\
        \r\n# Keyspace\r\ndb0:keys=3,expires=0,avg_ttl=0\r\ndb7:keys=39,expires=1,avg_ttl=5\r\n";
    pub const VALKEY: &str = "# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\n\
        valkey_version:9.1.2\r\nserver_mode:cluster\r\n";

    #[test]
    fn a_replica_is_read() {
        let info = Info::parse(REPLICA);
        assert_eq!(info.server(), (Flavor::Redis, Version::new(7, 0, 15)));
        assert_eq!(info.kind(), NodeKind::Data);
        assert_eq!(info.keys(), 42);
        assert_eq!(info.primary().map(|a| a.to_string()).as_deref(), Some("[::1]:17110"));
        assert!(info.is("cluster_enabled", "1"));
    }

    #[test]
    fn who_is_connected_and_what_went_before_is_read() {
        let info = Info::parse(
            "role:master\nslave0:ip=127.0.0.1,port=7003,state=online,offset=42,lag=1\n\
             slave1:ip=::1,port=7002,state=wait_bgsave,offset=0,lag=0\nslaves:x\n\
             master_replid2:aa00\nsecond_repl_offset:43\n",
        );
        let shown: Vec<_> =
            info.replicas().iter().map(|r| (r.address.to_string(), r.offset)).collect();
        assert_eq!(shown, [("127.0.0.1:7003".to_owned(), 42), ("[::1]:7002".to_owned(), 0)]);
        let before = History { replid: "aa00".to_owned(), offset: 43 };
        assert_eq!((info.role(), info.history_before()), (Role::Primary, Some(before)));
        let none = Info::parse("master_replid2:0000\nsecond_repl_offset:-1\n");
        assert_eq!(none.history_before(), None);
    }

    #[test]
    fn valkey_and_sentinel_are_told_apart() {
        assert_eq!(Info::parse(VALKEY).server(), (Flavor::Valkey, Version::new(9, 1, 2)));
        for mode in ["redis_mode", "server_mode"] {
            let text = format!("{mode}:sentinel\r\n");
            assert_eq!(Info::parse(&text).kind(), NodeKind::Sentinel);
        }
    }

    #[test]
    fn odd_values_read_as_nothing() {
        let info =
            Info::parse("master_last_io_seconds_ago:-1\nmaster_host:?\nmaster_port:0\ndb0:x");
        assert_eq!(info.count("master_last_io_seconds_ago"), None);
        assert_eq!((info.primary(), info.keys(), info.number("absent")), (None, 0, 0));
        assert!(!info.is_credible());
    }

    proptest! {
        #[test]
        fn no_text_trips_it(
            text in any::<String>(),
            at in 0..REPLICA.len(),
            junk in any::<char>(),
        ) {
            let mut mutated = REPLICA.to_owned();
            mutated.insert(at, junk);
            for text in [text, mutated, format!("db1:keys={}\ndb2:keys=9", u64::MAX)] {
                let info = Info::parse(&text);
                let _ = (info.server(), info.kind(), info.keys(), info.primary());
                let _ = (info.role(), info.replicas(), info.history_before());
            }
        }
    }
}
