//! A compose file that starts all nodes on one machine, from the files beside it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde_json::{Map, json};

use super::software::Software;
use super::{File, Place, Resources, folder, patient, yaml};
use crate::domain::node::Address;
use crate::domain::topology::Topology;

/// The compose file.
#[must_use]
pub fn compose(topology: &Topology, software: &Software, resources: Resources) -> File {
    let data: Vec<&Address> = topology.spec.nodes().iter().map(|n| &n.address).collect();
    let sentinels: Vec<&Address> = topology.spec.sentinels().iter().map(|n| &n.address).collect();
    let subnet = subnet(data.iter().chain(&sentinels).copied());
    let (mut services, mut volumes) = (Map::new(), Map::new());
    // Who has which address: another node of that machine shares it.
    let mut hosts: BTreeMap<&str, String> = BTreeMap::new();
    let kinds = data.iter().map(|n| (n, false)).chain(sentinels.iter().map(|n| (n, true)));
    for (node, watches) in kinds {
        let name = name(node, watches);
        let place = Place::machine(node);
        let mut command = vec![software.server().to_owned()];
        if watches {
            command.push(format!("{}/sentinel.conf", place.config));
            command.push("--sentinel".to_owned());
        } else {
            command.push(format!("{}/redis.conf", place.config));
            command = patient(command, &place.data, resources.restart_seconds);
        }
        let port = node.port().to_string();
        let mut ping =
            ["CMD", software.cli(), "-h", node.host(), "-p", &port].map(str::to_owned).to_vec();
        if topology.spec.tls().is_some() {
            ping.extend([
                "--tls".to_owned(),
                "--cacert".to_owned(),
                format!("{}/tls/ca.crt", place.config),
            ]);
        }
        ping.push("ping".to_owned());
        let mut service = json!({
            "image": software.image(),
            "command": command,
            "restart": "unless-stopped",
            "stop_grace_period": "2m",
            "ulimits": { "nofile": 65536 },
            "volumes": [
                format!("./{}:{}", folder(node), place.config),
                format!("{name}:{}", place.data),
            ],
            // Whoever is asked for a password is up too.
            "healthcheck": {
                "test": ping,
                "interval": "5s",
                "timeout": "3s",
                "retries": 10,
            },
        });
        if !watches {
            service["mem_limit"] = format!("{}m", resources.memory_mb).into();
        }
        match (&subnet, hosts.get(node.host())) {
            (None, _) => service["network_mode"] = "host".into(),
            (Some(_), Some(neighbour)) => {
                service["network_mode"] = format!("service:{neighbour}").into();
            }
            (Some(_), None) => {
                service["networks"] = json!({ "nodes": { "ipv4_address": node.host() } });
                hosts.insert(node.host(), name.clone());
            }
        }
        services.insert(name.clone(), service);
        volumes.insert(name, json!({}));
    }
    let mut file = json!({ "name": topology.name, "services": services, "volumes": volumes });
    if let Some(subnet) = subnet {
        file["networks"] = json!({ "nodes": { "ipam": { "config": [{ "subnet": subnet }] } } });
    }
    let head = "\
# All nodes on one machine, to try the topology out. The folders with the nodes' files lie beside this
# file; make first what each file says that it needs (secrets.conf, certificates). The servers must be able to write to their
# folders (in these images they run as user 999): chown -R 999:999 */
# Then: docker compose up -d
";
    let content = format!("{head}{}", yaml::document(&file));
    File { path: "compose.yaml".to_owned(), node: None, content }
}

fn name(node: &Address, watches: bool) -> String {
    let kind = if watches { "sentinel" } else { "redis" };
    format!("{kind}-{}", folder(node).replace('.', "-").to_ascii_lowercase())
}

/// The network that has all nodes, where all have private addresses in it; else they live on the
/// machine's own network.
fn subnet<'a>(nodes: impl Iterator<Item = &'a Address>) -> Option<String> {
    let mut hosts = Vec::new();
    for node in nodes {
        let ip: Ipv4Addr = node.host().parse().ok()?;
        // The first address is the network's gateway.
        if !ip.is_private() || ip.octets()[2..] == [0, 1] {
            return None;
        }
        hosts.push(ip);
    }
    let [a, b, ..] = hosts.first()?.octets();
    let together = hosts.iter().all(|ip| ip.octets()[..2] == [a, b]);
    together.then(|| format!("{a}.{b}.0.0/16"))
}
