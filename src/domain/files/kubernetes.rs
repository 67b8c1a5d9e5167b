//! Kubernetes manifests: in each zone a StatefulSet of its own, so that it is known before a pod is
//! scheduled which zone it will be in, and the layout can rely on it.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use uuid::Uuid;

use super::software::Software;
use super::{File, Place, Resources, patient, redis_conf, sentinel_conf, yaml};
use crate::domain::node::Address;
use crate::domain::spec::{Mode, NodeSpec, Spec};
use crate::domain::topology::{Layout, Topology};

const DATA_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26_379;
/// Where pods have their certificates.
const TLS: &str = "/data/tls";

/// The manifests, and the spec of the same topology with the names that its pods will have.
#[must_use]
pub fn kubernetes(
    topology: &Topology,
    software: &Software,
    resources: Resources,
) -> (File, Option<Spec>) {
    let plan = Plan::of(topology);
    let mut manifests = vec![plan.namespace(), plan.config()];
    for (kind, zones) in [(Kind::Data, &plan.data), (Kind::Sentinel, &plan.sentinels)] {
        if zones.is_empty() {
            continue;
        }
        manifests.extend([plan.service(kind), plan.disruption_budget(kind)]);
        for zone in zones {
            manifests.push(plan.stateful_set(kind, zone, software, resources));
        }
    }
    let head = format!(
        "\
# {} on Kubernetes. Before: make the password known, with
#   kubectl create namespace {ns}
#   kubectl -n {ns} create secret generic {app} --from-literal=password=$(openssl rand -hex 32)
# and to Reeve: POST /v1/credentials with what this prints:
#   kubectl -n {ns} get secret {app} -o jsonpath='{{.data.password}}' | base64 -d
# Nodes must carry the label topology.kubernetes.io/zone. Then: kubectl apply -f kubernetes.yaml
# Reeve must run where it can resolve and reach the pods, that is in the same cluster; post
# kubernetes-topology.json to it when all pods run. The pods restart only when they are deleted
# (updateStrategy OnDelete), one at a time by the disruption budget.
",
        topology.name,
        ns = plan.app,
        app = plan.app
    );
    let tls = if plan.has_tls() {
        format!(
            "#\n# For TLS, with a certificate for *.{app}.{app}.svc.cluster.local (and *.{app}-sentinel… where there are\n# Sentinels) and for localhost:\n#   kubectl -n {app} create secret generic {} --from-file=node.crt --from-file=node.key --from-file=ca.crt\n",
            plan.tls_secret(),
            app = plan.app
        )
    } else {
        String::new()
    };
    let documents: Vec<String> = manifests.iter().map(yaml::document).collect();
    let content = format!("{head}{tls}---\n{}", documents.join("---\n"));
    (File { path: "kubernetes.yaml".to_owned(), node: None, content }, plan.spec())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Sentinel,
}

/// The nodes of one zone.
struct ZoneSet {
    /// As the label of Kubernetes' nodes says it.
    zone: String,
    /// As a part of names.
    word: String,
    /// The pods' addresses, in the order of their ordinals, each for a node of the topology.
    pods: Vec<(Address, Address)>,
}

/// Pods' names are made of it, with the zone's and a number, and have at most 63 characters.
const LONGEST_APP: usize = 24;

struct Plan<'a> {
    topology: &'a Topology,
    /// The name of everything, and of the namespace. Short, since pods' names are made of it.
    app: String,
    data: Vec<ZoneSet>,
    sentinels: Vec<ZoneSet>,
}

impl<'a> Plan<'a> {
    fn of(topology: &'a Topology) -> Self {
        let app = app(&topology.name);
        let zones = |kind: Kind, nodes: &[NodeSpec]| {
            let mut by_zone: BTreeMap<&str, Vec<&Address>> = BTreeMap::new();
            for node in nodes {
                by_zone.entry(&node.zone).or_default().push(&node.address);
            }
            let set = |(i, (zone, nodes)): (usize, (&str, Vec<&Address>))| {
                let word = word(zone, i);
                let pod = |(ordinal, node): (usize, &Address)| {
                    let (prefix, service, port) = match kind {
                        Kind::Data => (format!("{app}-{word}"), app.clone(), DATA_PORT),
                        Kind::Sentinel => (
                            format!("{app}-sentinel-{word}"),
                            format!("{app}-sentinel"),
                            SENTINEL_PORT,
                        ),
                    };
                    let host = format!("{prefix}-{ordinal}.{service}.{app}.svc.cluster.local");
                    let pod = format!("{host}:{port}").parse().ok()?;
                    Some((pod, node.clone()))
                };
                let pods = nodes.into_iter().enumerate().filter_map(pod).collect();
                ZoneSet { zone: zone.to_owned(), word, pods }
            };
            by_zone.into_iter().enumerate().map(set).collect::<Vec<_>>()
        };
        let data = zones(Kind::Data, topology.spec.nodes());
        let sentinels = zones(Kind::Sentinel, topology.spec.sentinels());
        Self { topology, app, data, sentinels }
    }

    /// The topology's spec, with pods for its nodes.
    fn spec(&self) -> Option<Spec> {
        let pods: BTreeMap<&Address, &Address> = self
            .data
            .iter()
            .chain(&self.sentinels)
            .flat_map(|zone| zone.pods.iter().map(|(pod, node)| (node, pod)))
            .collect();
        let moved = |nodes: &[NodeSpec]| -> Option<Vec<NodeSpec>> {
            let node = |n: &NodeSpec| {
                let address = (*pods.get(&n.address)?).clone();
                // Each pod is kept on a machine of its own.
                Some(NodeSpec { address, zone: n.zone.clone(), host: None })
            };
            nodes.iter().map(node).collect()
        };
        let mut spec = self.topology.spec.clone();
        match &mut spec {
            Spec::Cluster(s) => s.nodes = moved(&s.nodes)?,
            Spec::Replication(s) => s.nodes = moved(&s.nodes)?,
            Spec::Sentinel(s) => {
                s.nodes = moved(&s.nodes)?;
                s.sentinels = moved(&s.sentinels)?;
            }
        }
        Some(spec)
    }

    /// The same topology among pods, for the renderer.
    fn among_pods(&self) -> Option<Topology> {
        let spec = self.spec()?;
        let mut layout = self.topology.layout.clone();
        // Every pod reads the same file; who boots after whom is decided when it starts.
        let members = || spec.nodes().iter().map(|n| n.address.clone()).collect();
        match &mut layout {
            Layout::Replication { shard } => shard.members = members(),
            Layout::Sentinel { shard, sentinels } => {
                shard.members = members();
                *sentinels = spec.sentinels().iter().map(|n| n.address.clone()).collect();
            }
            Layout::Cluster { .. } | Layout::Gone => {}
        }
        Some(Topology { spec, layout, ..self.topology.clone() })
    }

    fn labels(&self, kind: Kind) -> Value {
        let part = match kind {
            Kind::Data => "data",
            Kind::Sentinel => "sentinel",
        };
        json!({ "app.kubernetes.io/name": self.app, "app.kubernetes.io/component": part })
    }

    fn has_tls(&self) -> bool {
        self.topology.spec.tls().is_some()
    }

    fn tls_secret(&self) -> String {
        format!("{}-tls", self.app)
    }

    fn service_name(&self, kind: Kind) -> String {
        match kind {
            Kind::Data => self.app.clone(),
            Kind::Sentinel => format!("{}-sentinel", self.app),
        }
    }

    fn meta(&self, name: &str) -> Value {
        json!({ "name": name, "namespace": self.app })
    }

    fn namespace(&self) -> Value {
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": self.app } })
    }

    /// The files that all pods read, and the script by which each makes them its own.
    fn config(&self) -> Value {
        let place = Place {
            config: "/data".to_owned(),
            data: "/data".to_owned(),
            everywhere: true,
            prepared: true,
        };
        let mut data = json!({ "prepare.sh": self.prepare() });
        if let Some(topology) = self.among_pods() {
            if let Some(node) = topology.spec.nodes().first() {
                data["redis.conf"] = redis_conf(&topology, &node.address, &place).into();
            }
            if let Some(node) = topology.spec.sentinels().first() {
                data["sentinel.conf"] = sentinel_conf(&topology, &node.address, &place).into();
            }
        }
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": self.meta(&self.app),
            "data": data,
        })
    }

    fn prepare(&self) -> String {
        let credentials = self.topology.spec.credentials();
        let mut script = "\
set -eu
umask 077
me=\"$POD_NAME.$SERVICE\"
"
        .to_owned();
        if credentials.admin.is_some() {
            script.push_str(
                "if [ \"$PART\" = data ]; then\n  printf 'requirepass \"%s\"\\nmasterauth \"%s\"\\n' \"$PASSWORD\" \"$PASSWORD\" > /data/secrets.conf\nfi\n",
            );
        }
        script.push_str(
            "# What the server has rewritten stays.\nif [ \"$PART\" = data ] && [ ! -f /data/redis.conf ]; then cp /config/redis.conf /data/redis.conf; fi\n",
        );
        let first = self.pod(0);
        let second = self.pod(1);
        if let (true, Some(first), Some(second)) = (self.is_guarded(), first, second) {
            script.push_str(&format!(
                "if [ \"$PART\" = data ]; then\n  peer={first}\n  if [ \"$me\" = \"$peer\" ]; then peer={second}; fi\n  printf 'replicaof %s {DATA_PORT}\\nreplica-announce-ip %s\\n' \"$peer\" \"$me\" > /data/guard.conf\nfi\n"
            ));
        }
        if let Spec::Sentinel(spec) = &self.topology.spec {
            let name = &spec.master_name;
            script.push_str(
                "if [ \"$PART\" = sentinel ] && [ ! -f /data/sentinel.conf ]; then\n  sed \"s/^sentinel announce-ip .*/sentinel announce-ip $me/\" /config/sentinel.conf > /data/sentinel.conf\nfi\n",
            );
            if credentials.admin.is_some() || credentials.sentinel.is_some() {
                script.push_str(&format!(
                    "if [ \"$PART\" = sentinel ]; then\n  printf 'sentinel auth-pass {name} \"%s\"\\nrequirepass \"%s\"\\nsentinel sentinel-pass \"%s\"\\n' \"$PASSWORD\" \"$PASSWORD\" \"$PASSWORD\" > /data/secrets.conf\nfi\n"
                ));
            }
        }
        script
    }

    fn is_guarded(&self) -> bool {
        self.topology.spec.mode() != Mode::Cluster && self.topology.spec.nodes().len() > 1
    }

    /// The name of the pod that stands for the topology's `n`-th data node.
    fn pod(&self, n: usize) -> Option<String> {
        let node = &self.topology.spec.nodes().get(n)?.address;
        let mut pods = self.data.iter().flat_map(|zone| &zone.pods);
        pods.find(|(_, of)| of == node).map(|(pod, _)| pod.host().to_owned())
    }

    fn service(&self, kind: Kind) -> Value {
        let mut ports = match kind {
            Kind::Data => vec![json!({ "name": "redis", "port": DATA_PORT })],
            Kind::Sentinel => vec![json!({ "name": "sentinel", "port": SENTINEL_PORT })],
        };
        if self.topology.spec.mode() == Mode::Cluster {
            ports.push(json!({ "name": "bus", "port": DATA_PORT + 10_000 }));
        }
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": self.meta(&self.service_name(kind)),
            "spec": {
                // Headless: each pod has a name of its own, also while it is not ready.
                "clusterIP": "None",
                "publishNotReadyAddresses": true,
                "selector": self.labels(kind),
                "ports": ports,
            },
        })
    }

    fn disruption_budget(&self, kind: Kind) -> Value {
        json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": self.meta(&self.service_name(kind)),
            "spec": { "maxUnavailable": 1, "selector": { "matchLabels": self.labels(kind) } },
        })
    }

    fn stateful_set(
        &self,
        kind: Kind,
        zone: &ZoneSet,
        software: &Software,
        resources: Resources,
    ) -> Value {
        let service = self.service_name(kind);
        let mut labels = self.labels(kind);
        let selector = {
            labels["app.kubernetes.io/instance"] = format!("{service}-{}", zone.word).into();
            labels.clone()
        };
        let domain = format!("{service}.{}.svc.cluster.local", self.app);
        let (part, port, memory_mb, disk_gb) = match kind {
            Kind::Data => ("data", DATA_PORT, resources.memory_mb, resources.disk_gb),
            Kind::Sentinel => ("sentinel", SENTINEL_PORT, 128, 1),
        };
        let field = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
        let mut env = vec![
            json!({ "name": "POD_NAME", "valueFrom": field("metadata.name") }),
            json!({ "name": "POD_IP", "valueFrom": field("status.podIP") }),
            json!({ "name": "SERVICE", "value": domain }),
            json!({ "name": "PART", "value": part }),
        ];
        let locked = self.topology.spec.credentials().admin.is_some();
        if locked {
            let reference = json!({ "secretKeyRef": { "name": self.app, "key": "password" } });
            // The command line client reads REDISCLI_AUTH.
            env.push(json!({ "name": "PASSWORD", "valueFrom": reference }));
            env.push(json!({ "name": "REDISCLI_AUTH", "value": "$(PASSWORD)" }));
        }
        let mut command = vec![software.server().to_owned()];
        match kind {
            Kind::Data => {
                command.push("/data/redis.conf".to_owned());
                if self.topology.spec.mode() == Mode::Cluster {
                    command.extend(["--cluster-announce-ip", "$(POD_IP)"].map(str::to_owned));
                }
                command = patient(command, "/data", resources.restart_seconds);
            }
            Kind::Sentinel => {
                command.extend(["/data/sentinel.conf", "--sentinel"].map(str::to_owned));
            }
        }
        let ping = json!({ "exec": { "command": ["sh", "-c", format!(
            "{} -p {port}{} ping | grep -q -e PONG -e LOADING",
            software.cli(),
            if self.has_tls() { format!(" --tls --cacert {TLS}/ca.crt") } else { String::new() }
        )] } });
        let probe = |period: u32, failures: u32| {
            let mut probe = ping.clone();
            probe["periodSeconds"] = period.into();
            probe["failureThreshold"] = failures.into();
            probe["timeoutSeconds"] = 5.into();
            probe
        };
        let mut mounts = vec![
            json!({ "name": "data", "mountPath": "/data" }),
            json!({ "name": "config", "mountPath": "/config", "readOnly": true }),
        ];
        let mut volumes = vec![json!({ "name": "config", "configMap": { "name": self.app } })];
        if self.has_tls() {
            mounts.push(json!({ "name": "tls", "mountPath": TLS, "readOnly": true }));
            volumes.push(json!({ "name": "tls", "secret": { "secretName": self.tls_secret() } }));
        }
        let secure =
            json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
        let memory = format!("{memory_mb}Mi");
        // A Sentinel only pings and listens.
        let cpu = if part == "data" { "1" } else { "100m" };
        json!({
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": self.meta(&format!("{service}-{}", zone.word)),
            "spec": {
                "serviceName": service,
                "replicas": zone.pods.len(),
                "podManagementPolicy": "Parallel",
                "updateStrategy": { "type": "OnDelete" },
                "selector": { "matchLabels": selector },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": {
                        "terminationGracePeriodSeconds": 120,
                        "securityContext": {
                            "runAsNonRoot": true, "runAsUser": 999, "runAsGroup": 999, "fsGroup": 999,
                        },
                        "affinity": {
                            "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                                "nodeSelectorTerms": [{ "matchExpressions": [{
                                    "key": "topology.kubernetes.io/zone",
                                    "operator": "In",
                                    "values": [zone.zone],
                                }] }],
                            } },
                            "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [{
                                "topologyKey": "kubernetes.io/hostname",
                                "labelSelector": { "matchLabels": self.labels(kind) },
                            }] },
                        },
                        "initContainers": [{
                            "name": "prepare",
                            "image": software.image(),
                            "command": ["sh", "/config/prepare.sh"],
                            "env": env,
                            "volumeMounts": mounts,
                            "securityContext": secure,
                        }],
                        "containers": [{
                            "name": part,
                            "image": software.image(),
                            "command": command,
                            "env": env,
                            "ports": [{ "name": part, "containerPort": port }],
                            "resources": {
                                "requests": { "cpu": cpu, "memory": memory },
                                "limits": { "memory": memory },
                            },
                            // Loading a large file takes time.
                            "startupProbe": probe(5, 120),
                            "readinessProbe": probe(5, 3),
                            "livenessProbe": probe(10, 12),
                            "volumeMounts": mounts,
                            "securityContext": secure,
                        }],
                        "volumes": volumes,
                    },
                },
                "volumeClaimTemplates": [{
                    "metadata": { "name": "data" },
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "resources": { "requests": { "storage": format!("{disk_gb}Gi") } },
                    },
                }],
            },
        })
    }
}

/// A topology's name as the one of its namespace. What is too long is cut, and told from others that
/// begin alike by what it was.
fn app(name: &str) -> String {
    let trimmed = name.trim_end_matches('-');
    if name.len() <= LONGEST_APP && trimmed == name {
        return name.to_owned();
    }
    let tell = Uuid::new_v5(&Uuid::nil(), name.as_bytes()).simple().to_string();
    let head: String = name.chars().take(LONGEST_APP - 7).collect();
    format!("{}-{}", head.trim_end_matches('-'), &tell[..6])
}

/// A zone's name as a part of names in Kubernetes: itself where it is fit, else its number.
fn word(zone: &str, number: usize) -> String {
    let fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = |c: char| c.is_ascii_alphanumeric();
    let is_number = zone.strip_prefix('z').is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
    let short = zone.len() <= 20 && zone.starts_with(edges) && zone.ends_with(edges);
    if short && zone.chars().all(fit) && !is_number {
        zone.to_owned()
    } else {
        format!("z{number}")
    }
}
