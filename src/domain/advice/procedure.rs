//! What happens when a primary fails, what a person does, and how to practise it, with the addresses
//! and times of one topology.

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::plan::Plan;
use super::request::Needs;
use super::timing::{self, Bounds};
use crate::domain::node::Address;
use crate::domain::spec::Mode;
use crate::domain::topology::Topology;

/// What happens by itself, and what people do.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct FailoverProcedure {
    /// What each shell needs once, before any of the commands.
    pub preparation: Vec<Task>,
    pub automatic: Automatic,
    pub manual: Vec<Task>,
    pub verification: Vec<Task>,
    pub rehearsal: Vec<Task>,
    /// How to get the primary back to where it was.
    pub going_back: Vec<Task>,
}

/// What happens by itself when a primary dies.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Automatic {
    /// Who sees to it.
    pub by: String,
    pub steps: Vec<TimedStep>,
    /// For how long writes fail; null where they fail until somebody acts.
    pub unavailable: Option<Bounds>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = AutomaticStep)]
pub struct TimedStep {
    /// After the primary has died.
    pub after: Bounds,
    pub text: String,
}

/// Something that a person does: over the API, or by hand.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = ProcedureTask)]
pub struct Task {
    pub text: String,
    pub api: Option<ApiCall>,
    /// The same at a shell. It reads the password from REDISCLI_AUTH.
    pub command: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ApiCall {
    pub method: String,
    pub path: String,
    #[schema(value_type = Option<Object>)]
    pub body: Option<Value>,
}

/// The procedure, with the first shard for an example.
pub(super) fn procedure(needs: &Needs, plan: &Plan) -> FailoverProcedure {
    let guide = Guide::of(needs, plan);
    FailoverProcedure {
        preparation: guide.preparation(),
        automatic: guide.automatic(),
        manual: guide.manual(),
        verification: guide.verification(),
        rehearsal: guide.rehearsal(),
        going_back: guide.going_back(),
    }
}

struct Guide<'a> {
    needs: &'a Needs,
    topology: &'a Topology,
    mode: Mode,
    primary: Option<&'a Address>,
    replica: Option<&'a Address>,
    sentinel: Option<&'a Address>,
    zone: Option<&'a str>,
}

impl<'a> Guide<'a> {
    fn of(needs: &'a Needs, plan: &'a Plan) -> Self {
        let shards = plan.topology.layout.shards();
        let members = shards.first().map_or(&[][..], |(shard, _)| &shard.members);
        let (primary, replica) = (members.first(), members.get(1));
        let places = plan.topology.places();
        Self {
            needs,
            topology: &plan.topology,
            mode: plan.topology.spec.mode(),
            primary,
            replica,
            sentinel: plan.topology.layout.sentinels().first(),
            zone: primary.and_then(|p| places.get(p).map(|place| place.zone.as_str())),
        }
    }

    fn path(&self, below: &str) -> String {
        format!("/v1/topologies/{}{below}", self.needs.name)
    }

    fn get(&self, below: &str) -> Option<ApiCall> {
        Some(ApiCall { method: "GET".to_owned(), path: self.path(below), body: None })
    }

    fn post(&self, below: &str, body: Value) -> Option<ApiCall> {
        Some(ApiCall { method: "POST".to_owned(), path: self.path(below), body: Some(body) })
    }

    fn failover(&self, to: Option<&Address>, method: &str) -> Option<ApiCall> {
        let mut intent = json!({ "kind": "failover", "method": method });
        match self.primary {
            Some(primary) if self.mode == Mode::Cluster => intent["node"] = json!(primary),
            Some(_) | None => intent["shard"] = json!("0"),
        }
        if let Some(to) = to {
            intent["to"] = json!(to);
        }
        let options = match (method, self.primary) {
            ("graceful", _) | (_, None) => json!({ "accept_hazard": "write_pause" }),
            (_, Some(from)) => json!({ "accept": [format!("lost_writes:{from}")] }),
        };
        self.post("/plans", json!({ "intent": intent, "plan": options }))
    }

    /// A command of the command line client to a node.
    fn cli(&self, node: Option<&Address>, words: &str) -> Option<String> {
        let node = node?;
        let program = self.needs.software.cli();
        let tls = if self.needs.tls { " --tls --cacert ca.crt" } else { "" };
        Some(format!("{program} -h {} -p {}{tls} {words}", node.host(), node.port()))
    }

    fn automatic(&self) -> Automatic {
        let step = |after, text: String| TimedStep { after, text };
        let primary = name(self.primary);
        match self.mode {
            Mode::Cluster => {
                let timeout = self.needs.assume.node_timeout_ms;
                let (found, until) = (timing::cluster_detects(timeout), timing::cluster(timeout));
                let mut steps = vec![step(
                    found,
                    format!("the other nodes find {primary} dead (cluster-node-timeout is {timeout} ms) and a majority of the primaries agrees"),
                )];
                match self.replica {
                    Some(replica) => steps.extend([
                        step(
                            until,
                            format!("the replica with most of the data ({replica} if none is better) is elected by that majority and serves the shard's slots; clients that know clusters follow"),
                        ),
                        step(
                            until,
                            "Reeve tells of it: primary.changed and slots.covered in the journal".to_owned(),
                        ),
                    ]),
                    None => steps.push(step(
                        found,
                        "nobody can take over, since no shard has a replica: the whole cluster refuses clients (CLUSTERDOWN) until it is back; Reeve tells of it (slots.uncovered in the journal)".to_owned(),
                    )),
                }
                Automatic {
                    by: "the cluster's own nodes".to_owned(),
                    steps,
                    unavailable: self.replica.map(|_| until),
                }
            }
            Mode::Sentinel => {
                let down_after = self.needs.assume.down_after_ms;
                let until = timing::sentinel(down_after);
                Automatic {
                    by: "the Sentinels".to_owned(),
                    steps: vec![
                        step(
                            timing::sentinel_detects(down_after),
                            format!("Sentinels find {primary} down (down-after-milliseconds is {down_after}) and a quorum of them agrees"),
                        ),
                        step(
                            until,
                            format!("a leader that a majority of all Sentinels elected promotes the best replica ({} if none is better) and has the others follow it", name(self.replica)),
                        ),
                        step(
                            Bounds { at_most_ms: until.at_most_ms + 1_000, ..until },
                            "clients that ask Sentinels find the new primary".to_owned(),
                        ),
                    ],
                    unavailable: Some(Bounds { at_most_ms: until.at_most_ms + 1_000, ..until }),
                }
            }
            Mode::Replication => Automatic {
                by: "nobody: Reeve tells of it (failover.detected and the finding no_primary; node.down where it stays away), and a person asks for a failover".to_owned(),
                steps: vec![step(
                    Bounds { at_least_ms: 1_000, at_most_ms: 5_000 },
                    format!("Reeve finds {primary} down; the replicas go on answering reads"),
                )],
                unavailable: None,
            },
        }
    }

    fn preparation(&self) -> Vec<Task> {
        let names = &self.needs.credentials;
        let Some(name) = &names.admin else { return vec![] };
        let watch =
            names.sentinel.as_ref().filter(|other| self.mode == Mode::Sentinel && *other != name);
        let sentinels = watch.map_or(String::new(), |other| {
            format!("; those to Sentinels need the password of {other} in it")
        });
        vec![Task {
            text: format!(
                "The commands below read the password of the credential {name} from REDISCLI_AUTH{sentinels}; where a credential has a user name, add --user NAME"
            ),
            api: None,
            command: Some("read -rs REDISCLI_AUTH && export REDISCLI_AUTH".to_owned()),
        }]
    }

    /// Has every process of a zone stop, or start.
    fn zone_units(&self, zone: &str, verb: &str) -> String {
        let sentinels: Vec<&Address> = self.topology.layout.sentinels().iter().collect();
        let places = self.topology.places();
        let there = places.iter().filter(|(_, place)| place.zone == zone);
        let commands = there.map(|(node, _)| {
            let unit = if sentinels.contains(node) { "redis-sentinel" } else { "redis" };
            format!("ssh {} systemctl {verb} {unit}@{}", node.host(), node.port())
        });
        commands.collect::<Vec<_>>().join(" & ")
    }

    fn manual(&self) -> Vec<Task> {
        let (primary, replica) = (self.primary, self.replica);
        if replica.is_none() {
            return vec![Task {
                text: format!(
                    "Bring {} back with its data: no shard has a replica to promote. Add some before anything fails (the intent add_replica)",
                    name(primary)
                ),
                api: self.get("/findings"),
                command: None,
            }];
        }
        let mut tasks = vec![Task {
            text: format!(
                "Hand over before a maintenance, while {} lives: nothing is lost{}",
                name(primary),
                match self.mode {
                    Mode::Sentinel =>
                        " (by hand, with sentinel failover, the old primary would take writes for up to ten seconds more, and lose them)",
                    Mode::Replication =>
                        ". By hand, the other replicas have to be told of it, too (replicaof)",
                    Mode::Cluster => "",
                }
            ),
            api: self.failover(replica, "graceful"),
            command: match self.mode {
                Mode::Cluster => self.cli(replica, "cluster failover"),
                // By hand Sentinels leave the old primary writable for about ten seconds.
                Mode::Sentinel => None,
                Mode::Replication => {
                    let to = replica
                        .map(|r| format!("failover to {} {} timeout 5000", r.host(), r.port()));
                    to.and_then(|words| self.cli(primary, &words))
                }
            },
        }];
        let forced = match self.mode {
            Mode::Cluster => self.cli(replica, "cluster failover force"),
            Mode::Sentinel => {
                self.cli(self.sentinel, &format!("sentinel failover {}", self.needs.name))
            }
            Mode::Replication => self.cli(replica, "replicaof no one"),
        };
        tasks.push(Task {
            text: format!(
                "Promote {} when {} is dead and nothing has taken its place: what was not copied is lost, so the plan names that loss, and `accept` is the consent to it",
                name(replica),
                name(primary),
            ) + if self.mode == Mode::Replication {
                ". By hand, the other replicas have to be told of it, too (replicaof)"
            } else {
                ""
            },
            api: self.failover(replica, "force"),
            command: forced,
        });
        if self.mode == Mode::Cluster {
            tasks.push(Task {
                text: "Only where the majority of the primaries is gone for good: promote without votes. Make sure first that the lost side cannot come back and serve".to_owned(),
                api: self.failover(replica, "takeover"),
                command: self.cli(replica, "cluster failover takeover"),
            });
        }
        tasks
    }

    fn verification(&self) -> Vec<Task> {
        let mut tasks = vec![
            Task {
                text: "The phase is steady, each shard has one primary, each replica is online"
                    .to_owned(),
                api: self.get(""),
                command: self.cli(self.primary, "info replication"),
            },
            Task {
                text: "Clients are told the new primary".to_owned(),
                api: self.get("/endpoints"),
                command: match self.mode {
                    Mode::Cluster => self.cli(self.primary, "cluster nodes"),
                    Mode::Sentinel => self.cli(
                        self.sentinel,
                        &format!("sentinel get-master-addr-by-name {}", self.needs.name),
                    ),
                    Mode::Replication => self.cli(self.replica, "role"),
                },
            },
        ];
        match self.mode {
            Mode::Cluster => tasks.push(Task {
                text: "All 16384 slots are served".to_owned(),
                api: self.get("/slots"),
                command: self.cli(self.primary, "cluster info"),
            }),
            Mode::Sentinel => tasks.push(Task {
                text: "A quorum and a majority of the Sentinels can be reached, from each of them"
                    .to_owned(),
                api: None,
                command: self.cli(self.sentinel, &format!("sentinel ckquorum {}", self.needs.name)),
            }),
            Mode::Replication => {}
        }
        tasks.push(Task {
            text: "What happened when, with both addresses".to_owned(),
            api: Some(ApiCall {
                method: "GET".to_owned(),
                path: format!(
                    "/v1/events?topology={}&types=failover.*,primary.changed",
                    self.needs.name
                ),
                body: None,
            }),
            command: None,
        });
        tasks
    }

    fn rehearsal(&self) -> Vec<Task> {
        let unit = |signal: &str| {
            let node = self.primary?;
            Some(format!("ssh {} systemctl kill -s {signal} redis@{}", node.host(), node.port()))
        };
        let expected = match self.automatic().unavailable {
            Some(Bounds { at_least_ms, at_most_ms }) => format!(
                "expect writes to fail for {} to {} s",
                seconds(at_least_ms),
                seconds(at_most_ms)
            ),
            None if self.replica.is_none() => "nothing takes over: it has to come back".to_owned(),
            None => "nothing takes over until you ask for a failover with method force".to_owned(),
        };
        let mut tasks = vec![Task {
            text: "Ask first what would happen, with no node touched".to_owned(),
            api: self.post("/what-if", json!({ "fail": { "zones": [self.zone] } })),
            command: None,
        }];
        let then = match self.replica {
            Some(_) => "see that it becomes a replica",
            None => "see that all slots are served again",
        };
        tasks.extend(self.replica.map(|replica| {
            Task {
                text:
                    "Hand over and back under load: no acknowledged write may be missing afterwards"
                        .to_owned(),
                api: self.failover(Some(replica), "graceful"),
                command: None,
            }
        }));
        tasks.extend([
            Task { text: self.killed(&expected), api: None, command: unit("KILL") },
            Task {
                text: format!(
                    "Freeze the primary, as a stuck disk would; {expected}. Then let it go on (CONT) and {then}"
                ),
                api: None,
                command: unit("STOP"),
            },
        ]);
        if let Some(zone) = self.zone {
            tasks.push(Task {
                text: format!(
                    "{}Stop everything in zone {zone} at once, what-if tells what comes of it; start it again afterwards (the same with start)",
                    match self.replica {
                        Some(_) => format!("Hand back first, so that zone {zone} has the primary again. "),
                        None => String::new(),
                    }
                ),
                api: self.post("/what-if", json!({ "fail": { "zones": [zone] } })),
                command: Some(self.zone_units(zone, "stop")),
            });
        }
        tasks
    }

    /// What comes of a primary that dies and is started again.
    fn killed(&self, expected: &str) -> String {
        let assume = &self.needs.assume;
        let down = timing::restart_seconds(self.mode, assume);
        if self.mode == Mode::Cluster && assume.persistence {
            // It has to start and load within that time, too.
            let misses = if assume.node_timeout_ms >= (down * 2000) as f64 {
                "before the others miss it: it goes on as primary when it has loaded its data, and nothing fails over"
            } else if self.replica.is_none() {
                "about when the others miss it: it goes on as primary when it has loaded its data"
            } else {
                "about when the others miss it: it goes on as primary, or finds that a replica was elected and follows it"
            };
            return format!("Kill the primary; systemd starts it again {down} s later, {misses}");
        }
        format!(
            "Kill the primary; systemd starts it again {down} s later, as a replica; {expected}"
        )
    }

    fn going_back(&self) -> Vec<Task> {
        let hold = match self.mode {
            Mode::Cluster => format!(
                "Wait {} s after a failover (four node timeouts and one second): voters refuse the same shard sooner. Then hand the shard back",
                seconds((self.needs.assume.node_timeout_ms * 4.0) as u64 + 1_000)
            ),
            Mode::Sentinel => "Wait until all Sentinels name the same primary and the old one is an online replica: it follows a sibling at first, and Sentinels have it follow the new primary about a minute later (a plan with the intent repair does at once). Then hand it back".to_owned(),
            Mode::Replication => "Wait until the old primary is an online replica. Then hand it back".to_owned(),
        };
        if self.replica.is_none() {
            return vec![];
        }
        let needed = match self.mode {
            Mode::Cluster => {
                "It is needed where too many primaries have come together in one zone (the finding crowded_primaries names the shard); else every member is as good as the others"
            }
            Mode::Sentinel | Mode::Replication => {
                "It is not needed: every member is as good as the others"
            }
        };
        vec![Task {
            text: format!("{hold}. {needed}"),
            api: self.back(),
            command: match self.mode {
                Mode::Cluster => self.cli(self.primary, "cluster failover"),
                Mode::Sentinel | Mode::Replication => None,
            },
        }]
    }

    /// The failover to who was primary first.
    fn back(&self) -> Option<ApiCall> {
        let mut intent = json!({ "kind": "failover", "method": "graceful" });
        match self.replica {
            Some(replica) if self.mode == Mode::Cluster => intent["node"] = json!(replica),
            Some(_) | None => intent["shard"] = json!("0"),
        }
        if let Some(primary) = self.primary {
            intent["to"] = json!(primary);
        }
        let options = json!({ "accept_hazard": "write_pause" });
        self.post("/plans", json!({ "intent": intent, "plan": options }))
    }
}

fn name(node: Option<&Address>) -> String {
    node.map_or_else(|| "a replica".to_owned(), ToString::to_string)
}

fn seconds(ms: u64) -> String {
    format!("{:.1}", ms as f64 / 1000.0)
}
