use serde_json::json;

use super::*;
use crate::domain::id::TopologyId;
use crate::domain::slot::SlotSet;
use crate::domain::spec::Spec;
use crate::domain::topology::{Shard, Shards};

fn shard(n: u32, members: &[&str]) -> Shard {
    Shard {
        id: ShardId::derive(TopologyId(uuid::Uuid::nil()), n),
        index: 0,
        members: members.iter().map(|m| m.parse().unwrap()).collect(),
    }
}

fn topology(spec: serde_json::Value, layout: Layout) -> Topology {
    let spec: Spec = serde_json::from_value(spec).unwrap();
    let id = TopologyId(uuid::Uuid::nil());
    Topology { id, name: "orders".into(), version: 1, spec, layout }
}

fn nodes(addresses: &[&str]) -> serde_json::Value {
    addresses.iter().map(|a| json!({ "address": a, "zone": "a" })).collect()
}

fn sentinel() -> Topology {
    let data = ["10.0.1.1:6379", "10.0.1.2:6379", "10.0.1.3:6379"];
    let watch = ["10.0.1.1:26379", "10.0.1.2:26379", "10.0.1.3:26379"];
    let spec = json!({ "mode": "sentinel", "replicas": 2, "nodes": nodes(&data),
        "master_name": "orders", "sentinels": nodes(&watch), "down_after_ms": 5000,
        "credentials": { "admin": "orders-admin", "sentinel": "orders-watch" },
        "settings": { "maxmemory": "16gb" } });
    let sentinels = watch.iter().map(|a| a.parse().unwrap()).collect();
    topology(spec, Layout::Sentinel { shard: shard(0, &data), sentinels })
}

/// The lines of one file that say something.
fn lines<'a>(files: &'a [File], path: &str) -> Vec<&'a str> {
    let file = files.iter().find(|f| f.path == path).unwrap_or_else(|| panic!("no {path}"));
    file.content.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).collect()
}

#[test]
fn data_nodes_boot_as_replicas_of_a_sibling() {
    let topology = sentinel();
    let made = files(&topology, &BTreeMap::new());
    assert_eq!(made.len(), 3 + 3 + 3);
    let guard = |n: u8| lines(&made, &format!("10.0.1.{n}-6379/guard.conf"))[0];
    assert_eq!(guard(1), "replicaof 10.0.1.2 6379");
    assert_eq!(guard(2), "replicaof 10.0.1.1 6379");
    assert_eq!(guard(3), "replicaof 10.0.1.1 6379");
    let conf = lines(&made, "10.0.1.1-6379/redis.conf");
    for line in [
        "bind 10.0.1.1 127.0.0.1",
        "port 6379",
        "protected-mode yes",
        "include /etc/redis/6379/secrets.conf",
        "include /etc/redis/6379/guard.conf",
        "maxmemory 16gb",
        "client-output-buffer-limit replica 2048mb 512mb 60",
        "min-replicas-to-write 1",
        "min-replicas-max-lag 10",
        "appendonly yes",
        "dir /var/lib/redis/6379",
    ] {
        assert!(conf.contains(&line), "{line} is not in\n{}", conf.join("\n"));
    }
    // After a failover the files follow.
    let now = BTreeMap::from([(shard(0, &[]).id, "10.0.1.3:6379".parse().unwrap())]);
    let made = files(&topology, &now);
    let guard = |n: u8| lines(&made, &format!("10.0.1.{n}-6379/guard.conf"))[0];
    assert_eq!(guard(1), "replicaof 10.0.1.3 6379");
    assert_eq!(guard(3), "replicaof 10.0.1.1 6379");
    let sentinel = lines(&made, "10.0.1.2-26379/sentinel.conf");
    assert!(sentinel.contains(&"sentinel monitor orders 10.0.1.3 6379 2"));
    assert!(sentinel.contains(&"sentinel down-after-milliseconds orders 5000"));
}

#[test]
fn no_file_holds_a_secret_and_each_says_where_it_belongs() {
    for file in files(&sentinel(), &BTreeMap::new()) {
        let login = ["requirepass", "masterauth", "auth-pass", "sentinel-pass"];
        let said = file.content.lines().filter(|l| !l.starts_with('#'));
        assert!(!said.clone().any(|l| login.iter().any(|w| l.contains(w))), "{}", file.path);
        assert!(!file.path.ends_with("guard.conf") || file.content.contains("replicaof"));
        assert!(file.content.contains("Install"), "{}", file.path);
        if file.path.ends_with("redis.conf") {
            assert!(file.content.contains("requirepass <password of credential orders-admin>"));
        }
        if file.path.ends_with("sentinel.conf") {
            let line = "sentinel sentinel-pass <password of credential orders-watch>";
            assert!(file.content.contains(line), "{}", file.content);
        }
    }
}

#[test]
fn a_cluster_node_has_a_bus_and_no_guard() {
    let halves = SlotSet::shares(3);
    let all = ["10.0.1.1:7001", "cache-2.internal:7001", "[::1]:7001"];
    let shards = (0..3).map(|i| (shard(i as u32, &all[i..=i]), halves[i].clone())).collect();
    let spec = json!({ "mode": "cluster", "shards": 3, "nodes": nodes(&all),
        "settings": { "cluster-node-timeout": "2000", "hz": "50", "save": "" } });
    let topology = topology(spec, Layout::Cluster { shards: Shards::new(shards).unwrap() });
    let made = files(&topology, &BTreeMap::new());
    assert_eq!(made.len(), 3);
    let conf = lines(&made, "10.0.1.1-7001/redis.conf");
    for line in [
        "cluster-enabled yes",
        "cluster-node-timeout 2000",
        "hz 50",
        "save \"\"",
        "protected-mode no",
    ] {
        assert!(conf.contains(&line), "{line} is not in\n{}", conf.join("\n"));
    }
    assert!(!conf.iter().any(|l| l.starts_with("include") || l.starts_with("min-replicas")));
    assert!(lines(&made, "cache-2.internal-7001/redis.conf").contains(&"bind * -::*"));
    assert!(lines(&made, "--1-7001/redis.conf").contains(&"bind ::1"));
}

#[test]
fn one_replica_does_not_guard_writes_and_a_lone_node_has_no_guard() {
    let of = |members: &[&str]| {
        let spec = json!({ "mode": "replication", "replicas": members.len() - 1, "nodes": nodes(members) });
        files(&topology(spec, Layout::Replication { shard: shard(0, members) }), &BTreeMap::new())
    };
    let two = of(&["10.0.1.1:1", "10.0.1.2:1"]);
    assert!(lines(&two, "10.0.1.1-1/redis.conf").contains(&"min-replicas-to-write 0"));
    assert_eq!(two.len(), 4);
    let lone = of(&["10.0.1.1:1"]);
    assert_eq!(lone.len(), 1);
    assert!(!lone[0].content.contains("guard.conf"));
}

#[test]
fn tls_is_on_all_ways() {
    let mut spec = json!({ "mode": "replication", "replicas": 1, "nodes": nodes(&["10.0.1.1:1", "10.0.1.2:1"]) });
    spec["tls"] = json!({ "ca": null });
    spec["credentials"] = json!({ "admin": "reeve", "replication": "replica" });
    let layout = Layout::Replication { shard: shard(0, &["10.0.1.1:1", "10.0.1.2:1"]) };
    let made = files(&topology(spec, layout), &BTreeMap::new());
    let conf = lines(&made, "10.0.1.1-1/redis.conf");
    for line in
        ["port 0", "tls-port 1", "tls-replication yes", "tls-cert-file /etc/redis/1/tls/node.crt"]
    {
        assert!(conf.contains(&line), "{line} is not in\n{}", conf.join("\n"));
    }
    // Users of their own are told too, each with what it needs.
    let content = &made[0].content;
    for line in [
        "/etc/redis/1/tls has node.crt, a certificate for 10.0.1.1",
        "#   aclfile /etc/redis/1/users.acl\n",
        "#   masteruser <user of credential replica>\n",
        "#   user default off\n",
        "#   user <user of credential replica> on ><password of credential replica> +psync +replconf +ping\n",
    ] {
        assert!(content.contains(line), "{line} is not in\n{content}");
    }
}

/// Each key of a compose service and of a manifest is looked at by real tools elsewhere
/// (`tests/it/advice.rs`); here only what hangs together.
#[test]
fn containers_get_the_files_of_their_node() {
    let topology = sentinel();
    let software = Software::parse("valkey-9.0").unwrap();
    let resources = Resources { memory_mb: 2048, disk_gb: 10, restart_seconds: 14 };
    let file = compose(&topology, &software, resources);
    for part in [
        "image: \"valkey/valkey:9.0\"",
        "\"./10.0.1.1-6379:/etc/redis/6379\"",
        "ipv4_address: \"10.0.1.1\"",
        // A Sentinel on the machine of a data node shares its network.
        "network_mode: \"service:redis-10-0-1-1-6379\"",
        "mem_limit: \"2048m\"",
        "subnet: \"10.0.0.0/16\"",
    ] {
        assert!(file.content.contains(part), "{part} is not in\n{}", file.content);
    }
    let (file, spec) = kubernetes(&topology, &software, resources);
    let spec = spec.unwrap();
    assert_eq!(spec.nodes().len(), 3);
    assert_eq!(
        spec.nodes()[0].address.to_string(),
        "orders-a-0.orders.orders.svc.cluster.local:6379"
    );
    for part in [
        "kind: PodDisruptionBudget",
        "topology.kubernetes.io/zone",
        "replicaof",
        "include /data/guard.conf",
        "if [ -f /data/.began ]; then sleep 14 & wait; fi; touch /data/.began; exec valkey-server /data/redis.conf",
    ] {
        assert!(file.content.contains(part), "{part} is not in\n{}", file.content);
    }
    let units = systemd(&software, true, 1);
    assert_eq!(units.len(), 3);
    assert!(
        units[0].content.contains("ExecStart=/usr/bin/valkey-server /etc/redis/%i/redis.conf\n")
    );
}
