//! `sentinel.conf` of a Sentinel.

use std::collections::BTreeMap;

use super::conf::Conf;
use super::data::{acl, bind, named, password, secrets, tls_files, user};
use super::{Place, folder};
use crate::domain::id::ShardId;
use crate::domain::node::Address;
use crate::domain::spec::{SentinelSpec, Spec};
use crate::domain::topology::{Layout, Topology};

/// Empty for a topology that has no Sentinels.
pub(super) fn conf(
    topology: &Topology,
    node: &Address,
    primaries: &BTreeMap<ShardId, Address>,
    place: &Place,
) -> String {
    let (Spec::Sentinel(spec), Layout::Sentinel { shard, .. }) = (&topology.spec, &topology.layout)
    else {
        return String::new();
    };
    let none = BTreeMap::new();
    let mut conf = Conf::new(&none);
    conf.part(&format!(
        "{node}: a Sentinel that watches {}, for Redis 6.2 and later and for Valkey.\nInstall {}/sentinel.conf as {}/sentinel.conf; the Sentinel writes to it, so its folder must\nbe writable. Run it with: redis-server {}/sentinel.conf --sentinel",
        topology.name,
        folder(node),
        place.config,
        place.config,
    ));
    match &spec.tls {
        Some(_) => {
            conf.part(&format!("Network. {}", tls_files(node, &place.config)));
        }
        None => conf.part("Network."),
    }
    conf.fixed("bind", &bind(node, place));
    if spec.tls.is_some() {
        conf.fixed("port", "0");
        conf.fixed("tls-port", &node.port().to_string());
        conf.fixed("tls-cert-file", &format!("{}/tls/node.crt", place.config));
        conf.fixed("tls-key-file", &format!("{}/tls/node.key", place.config));
        conf.fixed("tls-ca-cert-file", &format!("{}/tls/ca.crt", place.config));
        conf.fixed("tls-auth-clients", "optional");
        conf.fixed("tls-replication", "yes");
    } else {
        conf.fixed("port", &node.port().to_string());
    }
    let locked = spec.credentials.sentinel.is_some();
    conf.fixed("protected-mode", if locked { "yes" } else { "no" });
    let names = spec.nodes.iter().chain(&spec.sentinels).any(|n| named(&n.address));
    if names {
        conf.say("Some nodes are known by name.");
        conf.fixed("sentinel", "resolve-hostnames yes");
        conf.fixed("sentinel", "announce-hostnames yes");
        conf.fixed("sentinel", &format!("announce-ip {}", node.host()));
    }

    let quorum = quorum(spec);
    let name = &spec.master_name;
    conf.part(&format!(
        "What it watches. {quorum} of {} Sentinels must find the primary down; a failover then needs the\nvotes of a majority of all of them.",
        spec.sentinels.len()
    ));
    if let Some(primary) = primaries.get(&shard.id).or(shard.members.first()) {
        conf.fixed(
            "sentinel",
            &format!("monitor {name} {} {} {quorum}", primary.host(), primary.port()),
        );
        if let Some(ms) = spec.down_after_ms {
            conf.fixed("sentinel", &format!("down-after-milliseconds {name} {ms}"));
        }
        if let Some(ms) = spec.failover_timeout_ms {
            conf.fixed("sentinel", &format!("failover-timeout {name} {ms}"));
        }
        if let Some(count) = spec.parallel_syncs {
            conf.fixed("sentinel", &format!("parallel-syncs {name} {count}"));
        }
    }
    conf.fixed("sentinel", "deny-scripts-reconfig yes");
    login(&mut conf, spec, place);

    conf.part("The process.");
    conf.fixed("dir", &place.data);
    conf.fixed("logfile", "\"\"");
    conf.fixed("daemonize", "no");
    conf.fixed("supervised", "auto");
    conf.finish()
}

/// The majority, unless the spec says otherwise.
fn quorum(spec: &SentinelSpec) -> usize {
    spec.quorum.map_or(spec.sentinels.len() / 2 + 1, usize::from)
}

fn login(conf: &mut Conf, spec: &SentinelSpec, place: &Place) {
    let (names, name) = (&spec.credentials, &spec.master_name);
    let (mut passwords, mut logins, mut users) = (vec![], vec![], vec![]);
    if let Some(admin) = &names.admin {
        let auth = format!("sentinel auth-pass {name} {}", password(admin));
        logins.push(format!("sentinel auth-user {name} {}", user(admin)));
        logins.push(auth.clone());
        passwords.push(auth);
    }
    if let Some(own) = &names.sentinel {
        let peers = format!("sentinel sentinel-pass {}", password(own));
        passwords.extend([format!("requirepass {}", password(own)), peers.clone()]);
        logins.extend([format!("sentinel sentinel-user {}", user(own)), peers]);
        users.push(acl(own, "allchannels +@all"));
    }
    if passwords.is_empty() {
        conf.part("Login: none, neither to the data nodes nor between Sentinels.");
        return;
    }
    secrets(conf, place, &passwords, &logins, &users);
}
