//! `redis.conf` of a data node, and the guard by which it boots as a replica.

use super::conf::Conf;
use super::{Place, folder};
use crate::domain::node::Address;
use crate::domain::size::bytes;
use crate::domain::spec::{Mode, Spec};
use crate::domain::topology::{Layout, Topology};

/// A replica that is this much behind in seconds counts as none for `min-replicas-to-write`.
const MAX_LAG_SECONDS: &str = "10";

/// The least that a replica's output buffer may hold, in bytes: what servers have by default.
const LEAST_BUFFER: u64 = 256 << 20;

pub(super) fn conf(topology: &Topology, node: &Address, place: &Place) -> String {
    let spec = &topology.spec;
    let mode = spec.mode();
    let mut conf = Conf::new(spec.settings());
    let kind = match mode {
        Mode::Cluster => "a node of the cluster",
        Mode::Replication => "a data node of the replication",
        Mode::Sentinel => "a data node, watched by Sentinels, of",
    };
    conf.part(&format!(
        "{node}: {kind} {}, for Redis 6.2 and later and for Valkey.\nInstall {}/redis.conf as {}/redis.conf; the server must be able to write\nto that folder, since what Reeve changes is kept by CONFIG REWRITE.",
        topology.name,
        folder(node),
        place.config,
    ));
    network(&mut conf, node, spec, place);
    if spec.tls().is_some() {
        encryption(&mut conf, node, mode, &place.config);
    }
    login(&mut conf, spec, place);
    replication(&mut conf, topology, node, place);
    if mode == Mode::Cluster {
        cluster(&mut conf);
    }
    memory(&mut conf);
    persistence(&mut conf);

    conf.part("The process.");
    conf.fixed("dir", &place.data);
    conf.set("logfile", "");
    conf.fixed("daemonize", "no");
    conf.fixed("supervised", "auto");
    conf.finish()
}

/// The guard against an emptied primary.
pub(super) fn guard(node: &Address, sibling: &Address, place: &Place) -> String {
    format!(
        "# {node} boots as a replica of {sibling}, also where it was primary before. So a primary that\n\
         # comes back without its data cannot have its replicas copy the emptiness: it follows them, or\n\
         # waits. Whoever is to be primary is promoted by Reeve or by Sentinels.\n\
         # Install as {}/guard.conf; redis.conf includes it.\n\
         replicaof {} {}\n",
        place.config,
        sibling.host(),
        sibling.port()
    )
}

fn network(conf: &mut Conf, node: &Address, spec: &Spec, place: &Place) {
    conf.part(match (place.everywhere, named(node)) {
        (true, _) => "Network: all interfaces, since the container has a network of its own.",
        (false, true) => {
            "Network: all interfaces, since the node is known by a name. Better name one address."
        }
        (false, false) => "Network: the address by which the node is known, and this machine.",
    });
    conf.fixed("bind", &bind(node, place));
    conf.fixed("port", &if spec.tls().is_some() { 0 } else { node.port() }.to_string());
    if spec.credentials().admin.is_some() {
        conf.set("protected-mode", "yes");
    } else {
        conf.say("Without a password, protected mode would let nobody in but this machine: keep others\nout by the network, or name a credential in the spec.");
        conf.set("protected-mode", "no");
    }
    conf.set("tcp-backlog", "511");
    conf.set("tcp-keepalive", "60");
    conf.set("timeout", "0");
}

/// Whether a node is known by a name rather than by an IP address.
pub(super) fn named(node: &Address) -> bool {
    node.host().parse::<std::net::IpAddr>().is_err()
}

pub(super) fn bind(node: &Address, place: &Place) -> String {
    let host = node.host();
    match host.parse::<std::net::IpAddr>() {
        Ok(ip) if !place.everywhere && ip.is_loopback() => host.to_owned(),
        Ok(_) if !place.everywhere => format!("{host} 127.0.0.1"),
        Ok(_) | Err(_) => "* -::*".to_owned(),
    }
}

fn encryption(conf: &mut Conf, node: &Address, mode: Mode, folder: &str) {
    conf.part(&tls_files(node, folder));
    conf.fixed("tls-port", &node.port().to_string());
    conf.set("tls-cert-file", &format!("{folder}/tls/node.crt"));
    conf.set("tls-key-file", &format!("{folder}/tls/node.key"));
    conf.set("tls-ca-cert-file", &format!("{folder}/tls/ca.crt"));
    conf.set("tls-auth-clients", "optional");
    conf.fixed("tls-replication", "yes");
    if mode == Mode::Cluster {
        conf.fixed("tls-cluster", "yes");
    }
}

/// What lies beside the file of a node that speaks TLS.
pub(super) fn tls_files(node: &Address, folder: &str) -> String {
    format!(
        "TLS on all ways. {folder}/tls has node.crt, a certificate for {} that is fit for servers and for\n\
         clients, its key node.key, and ca.crt, whose authority signs those of all nodes.",
        node.host()
    )
}

fn login(conf: &mut Conf, spec: &Spec, place: &Place) {
    let names = spec.credentials();
    let Some(admin) = &names.admin else {
        conf.part("Login: none. Name a credential in the spec (credentials.admin) to have one.");
        return;
    };
    let replication = names.replication.as_ref().unwrap_or(admin);
    let passwords = [
        format!("requirepass {}", password(admin)),
        format!("masterauth {}", password(replication)),
    ];
    let logins = [
        format!("masteruser {}", user(replication)),
        format!("masterauth {}", password(replication)),
    ];
    let mut users = vec![acl(admin, "~* &* +@all")];
    if replication != admin {
        users.push(acl(replication, "+psync +replconf +ping"));
    }
    secrets(conf, place, &passwords, &logins, &users);
}

/// Says what the file of secrets is made of, and includes it: `passwords`, or where the credentials name
/// users `logins`, and the users themselves.
///
/// Users have a file of their own: from an included file CONFIG REWRITE would write them once more into
/// the one that includes it, and servers do not start with a user that is there twice.
pub(super) fn secrets(
    conf: &mut Conf,
    place: &Place,
    passwords: &[String],
    logins: &[String],
    users: &[String],
) {
    let folder = &place.config;
    let lines = |lines: &[String]| lines.join("\n  ");
    conf.part(&format!(
        "Login. Passwords are in a file of their own (mode 0600, owned by the server's user), which\n\
         Reeve neither makes nor sees. {} {folder}/secrets.conf with these lines:\n  {}",
        if place.prepared { "The container makes" } else { "Make" },
        lines(passwords),
    ));
    let also = "or, where the credentials name users, with these";
    match users {
        _ if place.prepared => {}
        [] => conf.say(&format!("{also}:\n  {}", lines(logins))),
        users => conf.say(&format!(
            "{also},\n  aclfile {folder}/users.acl\n  {}\n\
             and {folder}/users.acl, also with mode 0600, with these:\n  user default off\n  {}",
            lines(logins),
            lines(users),
        )),
    }
    conf.fixed("include", &format!("{folder}/secrets.conf"));
}

pub(super) fn password(credential: &str) -> String {
    format!("<password of credential {credential}>")
}

pub(super) fn user(credential: &str) -> String {
    format!("<user of credential {credential}>")
}

/// A line of an ACL file.
pub(super) fn acl(credential: &str, may: &str) -> String {
    format!("user {} on >{} {may}", user(credential), password(credential))
}

fn replication(conf: &mut Conf, topology: &Topology, node: &Address, place: &Place) {
    let shard = match &topology.layout {
        Layout::Replication { shard } | Layout::Sentinel { shard, .. } => Some(shard),
        Layout::Cluster { .. } | Layout::Gone => None,
    };
    let guarded = shard.is_some_and(|s| s.members.len() > 1 && s.members.contains(node));
    if guarded {
        conf.part("Replication. The guard has the node boot as a replica; what CONFIG REWRITE adds at the end\nof this file goes before it.");
        conf.fixed("include", &format!("{}/guard.conf", place.config));
    } else {
        conf.part("Replication.");
    }
    conf.set("replica-read-only", "yes");
    conf.set("replica-serve-stale-data", "yes");
    conf.set("replica-priority", "100");
    conf.set("repl-diskless-sync", "yes");
    conf.set("repl-diskless-sync-delay", "5");
    conf.set("repl-timeout", "60");
    conf.say("How much a replica may miss and still catch up without a full copy: the write rate times\nthe outage that is to be bridged.");
    conf.set("repl-backlog-size", "64mb");
    conf.set("repl-backlog-ttl", "3600");
    let hard = topology.spec.settings().get("maxmemory").and_then(|size| bytes(size)).unwrap_or(0);
    let hard = (hard / 8).max(LEAST_BUFFER) >> 20;
    conf.say("What may pile up for a replica while it takes a full copy: an eighth of maxmemory.");
    conf.set("client-output-buffer-limit", &format!("replica {hard}mb {}mb 60", hard / 4));
    if let Some(shard) = shard {
        let enough = shard.members.len() > 2;
        conf.say(if enough {
            "A primary that no replica has followed for 10 seconds takes no more writes: it may be the\none that was cut off and replaced."
        } else {
            "With a single replica this would turn its every restart into an outage, so it is off: a\nprimary that is cut off goes on taking writes, which are lost when it comes back."
        });
        conf.set("min-replicas-to-write", if enough { "1" } else { "0" });
        conf.set("min-replicas-max-lag", MAX_LAG_SECONDS);
    }
}

fn cluster(conf: &mut Conf) {
    conf.part(
        "Cluster. The bus listens on the port + 10000, which must be open between all nodes.",
    );
    conf.fixed("cluster-enabled", "yes");
    conf.fixed("cluster-config-file", "nodes.conf");
    conf.set("cluster-node-timeout", "5000");
    conf.set("cluster-replica-validity-factor", "10");
    conf.set("cluster-migration-barrier", "1");
    conf.say("While some slots are served by nobody the rest is not served either. With no, the rest is.");
    conf.set("cluster-require-full-coverage", "yes");
    conf.set("cluster-allow-reads-when-down", "no");
}

fn memory(conf: &mut Conf) {
    conf.part("Memory. Without a limit the kernel ends the process when the machine is full.");
    conf.set("maxmemory", "0");
    conf.set("maxmemory-policy", "noeviction");
    conf.set("activedefrag", "no");
    conf.set("lazyfree-lazy-eviction", "yes");
    conf.set("lazyfree-lazy-expire", "yes");
    conf.set("lazyfree-lazy-server-del", "yes");
    conf.set("replica-lazy-flush", "yes");
}

fn persistence(conf: &mut Conf) {
    conf.part("Persistence: what a node still has after it was started again.");
    conf.set("appendonly", "yes");
    conf.set("appendfsync", "everysec");
    conf.set("no-appendfsync-on-rewrite", "no");
    conf.set("auto-aof-rewrite-percentage", "100");
    conf.set("auto-aof-rewrite-min-size", "64mb");
    conf.set("save", "3600 1");
    conf.set("stop-writes-on-bgsave-error", "yes");
    conf.set("rdbcompression", "yes");
    conf.set("rdbchecksum", "yes");
}
