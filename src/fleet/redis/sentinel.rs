//! What a Sentinel says of those that it watches: `SENTINEL MASTERS`, `REPLICAS`, `SENTINELS`,
//! `CKQUORUM`.
//!
//! What has an odd shape is left out. The answers in the tests are from real servers.

use std::collections::{BTreeMap, BTreeSet};

use redis::{Pipeline, Value};

use super::info::address;
use super::value::{items, pairs, text};
use crate::domain::node::Address;
use crate::domain::sentinel::{SentinelView, Watch, WatchedReplica, WatchedSentinel};

/// Sentinels announce themselves every two seconds: one that has not for so long watches no more.
const QUIET_MS: u64 = 10_000;

/// A Sentinel may watch very many; of so many it is asked the rest.
const WATCHES: usize = 64;
/// Of each, so many replicas and Sentinels are believed to be.
const INSTANCES: usize = 1000;
/// Questions about each.
const EACH: usize = 3;

/// All that it watches, or the one that is asked about.
pub(super) fn view(masters: Option<&Value>, only: Option<&str>) -> SentinelView {
    let named = |name: &str| only.is_none_or(|only| only == name);
    let watch = |fields: &Value| {
        let fields = Fields::of(fields);
        let name = fields.text("name");
        (!name.is_empty() && named(&name)).then(|| (name, fields.watch()))
    };
    let watches = masters.into_iter().flat_map(items).filter_map(watch);
    SentinelView { watches: watches.take(WATCHES).collect(), ..SentinelView::default() }
}

/// What else to ask about each of those.
pub(super) fn questions(names: &[String]) -> Pipeline {
    let mut batch = redis::pipe();
    for name in names {
        for question in ["REPLICAS", "SENTINELS", "CKQUORUM"] {
            batch.cmd("SENTINEL").arg(question).arg(name);
        }
    }
    batch
}

/// Adds the answers to [`questions`].
pub(super) fn complete(view: &mut SentinelView, names: &[String], replies: &[Value]) {
    for (name, answers) in names.iter().zip(replies.chunks_exact(EACH)) {
        let (Some(watch), [replicas, sentinels, quorum]) = (view.watches.get_mut(name), answers)
        else {
            continue;
        };
        let fields = |list| items(list).take(INSTANCES).map(Fields::of);
        watch.replicas = fields(replicas).filter_map(|f| f.replica()).collect();
        watch.sentinels = fields(sentinels).filter_map(|f| f.sentinel()).collect();
        watch.no_quorum = match quorum {
            Value::ServerError(error) => {
                let words = error.details().unwrap_or_default();
                Some(format!("{} {words}", error.code()).trim_end().to_owned())
            }
            _ => None,
        };
    }
}

/// One list of names and values.
struct Fields(BTreeMap<String, String>);

impl Fields {
    fn of(value: &Value) -> Self {
        let both = |(name, value)| Some((text(name)?.into_owned(), text(value)?.into_owned()));
        Self(pairs(value).filter_map(both).collect())
    }

    fn text(&self, name: &str) -> String {
        self.0.get(name).cloned().unwrap_or_default()
    }

    fn number<T: std::str::FromStr + Default>(&self, name: &str) -> T {
        self.0.get(name).and_then(|v| v.parse().ok()).unwrap_or_default()
    }

    fn address(&self) -> Option<Address> {
        address(self.0.get("ip")?, self.number("port"))
    }

    fn flags(&self) -> BTreeSet<String> {
        let flags = self.text("flags");
        flags.split(',').filter(|f| !f.is_empty()).map(str::to_owned).collect()
    }

    fn watch(&self) -> Watch {
        Watch {
            primary: self.address(),
            run_id: self.text("runid"),
            flags: self.flags(),
            epoch: self.number("config-epoch"),
            quorum: self.number("quorum"),
            down_after_ms: self.number("down-after-milliseconds"),
            failover_timeout_ms: self.number("failover-timeout"),
            parallel_syncs: self.number("parallel-syncs"),
            failover: self.0.get("failover-state").cloned(),
            ..Watch::default()
        }
    }

    fn replica(&self) -> Option<WatchedReplica> {
        Some(WatchedReplica {
            address: self.address()?,
            run_id: self.text("runid"),
            flags: self.flags(),
            link_up: self.text("master-link-status") == "ok",
            priority: self.number("slave-priority"),
            offset: self.number("slave-repl-offset"),
            age_ms: self.number("info-refresh"),
        })
    }

    fn sentinel(&self) -> Option<(String, WatchedSentinel)> {
        let (id, flags) = (self.text("runid"), self.flags());
        let down = flags.contains("s_down") || flags.contains("disconnected");
        let quiet = self.number::<u64>("last-hello-message") > QUIET_MS;
        (!id.is_empty()).then(|| (id, WatchedSentinel { address: self.address(), down, quiet }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(words: &str) -> Value {
        Value::Array(words.split(' ').map(|w| Value::BulkString(w.into())).collect())
    }

    /// Cut from answers of Redis 7.0.15.
    const MASTER: &str = "name m ip 127.0.0.1 port 21000 runid 335b flags master,s_down \
        link-refcount 1 down-after-milliseconds 30000 config-epoch 4 num-slaves 1 quorum 2 \
        failover-timeout 180000 parallel-syncs 1 failover-state wait_promotion";
    const REPLICA: &str = "name 127.0.0.1:21001 ip 127.0.0.1 port 21001 runid e5c7 flags slave \
        info-refresh 1031 master-link-status err slave-priority 100 slave-repl-offset 7";
    const SENTINEL: &str = "name 97aa ip ::1 port 21003 runid 97aa flags s_down,sentinel";

    fn read(only: Option<&str>, details: &[Value]) -> SentinelView {
        let mut seen = view(Some(&Value::Array(vec![list(MASTER)])), only);
        let names: Vec<String> = seen.watches.keys().cloned().collect();
        complete(&mut seen, &names, details);
        seen
    }

    #[test]
    fn a_watch_is_read() {
        let details = [
            Value::Array(vec![list(REPLICA), Value::Nil]),
            Value::Array(vec![list(SENTINEL)]),
            Value::Okay,
        ];
        let seen = read(Some("m"), &details);
        let watch = &seen.watches["m"];
        assert_eq!(watch.primary, Some("127.0.0.1:21000".parse().unwrap()));
        assert_eq!((watch.epoch, watch.quorum, watch.down_after_ms), (4, 2, 30_000));
        assert!(watch.is_down() && watch.fails_over() && watch.no_quorum.is_none());
        let replica = &watch.replicas[0];
        assert_eq!((replica.priority, replica.offset, replica.age_ms), (100, 7, 1031));
        assert!(!replica.link_up && !replica.is_down() && watch.replicas.len() == 1);
        let other = &watch.sentinels["97aa"];
        assert_eq!((other.address.clone(), other.down), ("[::1]:21003".parse().ok(), true));
    }

    #[test]
    fn others_that_it_watches_are_left_out() {
        assert!(read(Some("other"), &[]).watches.is_empty());
        assert_eq!(read(None, &[]).watches.len(), 1);
    }

    #[test]
    fn a_missing_quorum_is_told_in_its_words() {
        let reply = b"-NOQUORUM 1 usable Sentinels.\r\n";
        let mut parsed = redis::parse_redis_value(reply).unwrap();
        if let Value::Array(items) = &mut parsed {
            parsed = items.remove(0);
        }
        let seen = read(None, &[Value::Nil, Value::Nil, parsed]);
        let why = seen.watches["m"].no_quorum.clone();
        assert_eq!(why.as_deref(), Some("NOQUORUM 1 usable Sentinels."));
    }

    proptest! {
        #[test]
        fn no_answer_trips_it(words in any::<Vec<String>>(), depth in 0..3usize) {
            let mut value = Value::Array(
                words.into_iter().map(|w| Value::BulkString(w.into_bytes())).collect(),
            );
            for _ in 0..depth {
                value = Value::Array(vec![value]);
            }
            let mut seen = view(Some(&value), None);
            let names: Vec<String> = seen.watches.keys().cloned().collect();
            complete(&mut seen, &names, &[value.clone(), value.clone(), value]);
        }
    }
}
