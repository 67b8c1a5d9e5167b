//! The table: requirements, and what they come to, each with its reason. Then properties.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::placement::{Request, place};
use crate::domain::spec::ClusterOverrides;

/// Architecture, shards, replicas of each, Sentinels, and the codes of all warnings that are more
/// than information; or the field that is refused.
enum Comes {
    To(&'static str, usize, usize, usize, &'static [&'static str]),
    Refused(&'static str),
}
use Comes::{Refused, To};

fn ask(value: &Value) -> Result<Advice, Refusal> {
    advise(&serde_json::from_value(value.clone()).unwrap())
}

fn table() -> Vec<(&'static str, Value, Comes)> {
    let base = |more: Value| {
        let mut ask = json!({ "data_size_gb": 10, "ops_per_second": 1000 });
        ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ask
    };
    vec![
        // Does it fit one node? Must a replica take over by itself?
        (
            "fits one node; failover is automatic when nothing is said",
            json!({ "data_size_gb": 50, "ops_per_second": 50_000 }),
            To("sentinel", 1, 2, 3, &[]),
        ),
        (
            "tiny things fit too",
            json!({ "data_size_gb": 0.001, "ops_per_second": 1 }),
            To("sentinel", 1, 2, 3, &[]),
        ),
        (
            "just below both limits",
            json!({ "data_size_gb": 99.9, "ops_per_second": 99_999 }),
            To("sentinel", 1, 2, 3, &[]),
        ),
        (
            "exactly at both limits is not beyond them",
            json!({ "data_size_gb": 100, "ops_per_second": 100_000 }),
            To("sentinel", 1, 2, 3, &[]),
        ),
        (
            "beyond 100 GiB: 101 × 1.1 in shards of 25",
            json!({ "data_size_gb": 101, "ops_per_second": 1000 }),
            To("cluster", 5, 1, 0, &[]),
        ),
        (
            "beyond 100,000 operations: two shards would do, three can vote",
            json!({ "data_size_gb": 10, "ops_per_second": 150_000 }),
            To("cluster", 3, 1, 0, &[]),
        ),
        (
            "a million operations are ten shards",
            json!({ "data_size_gb": 10, "ops_per_second": 1_000_000 }),
            To("cluster", 10, 1, 0, &[]),
        ),
        (
            "200 × 1.1 in shards of 25",
            json!({ "data_size_gb": 200, "ops_per_second": 50_000 }),
            To("cluster", 9, 1, 0, &[]),
        ),
        (
            "a person may fail over: replication, without a warning",
            base(json!({ "automatic_failover": false })),
            To("replication", 1, 2, 0, &[]),
        ),
        (
            "automatic failover is given up by mode: that is told",
            base(json!({ "ha_mode": "replication" })),
            To("replication", 1, 2, 0, &["failover_by_request"]),
        ),
        (
            "and contradicts the demand for it",
            base(json!({ "ha_mode": "replication", "automatic_failover": true })),
            To("replication", 1, 2, 0, &["failover_by_request", "no_automatic_failover"]),
        ),
        (
            "automatic failover and too much data: a cluster has both",
            json!({ "data_size_gb": 101, "ops_per_second": 10, "automatic_failover": false }),
            To("cluster", 5, 1, 0, &[]),
        ),
        (
            "growth counts: 50 GiB and 150 percent more are 125",
            json!({ "data_size_gb": 50, "ops_per_second": 10, "growth_percent": 150 }),
            To("cluster", 6, 1, 0, &[]),
        ),
        (
            "growth within the limit does not",
            json!({ "data_size_gb": 50, "ops_per_second": 10, "growth_percent": 100 }),
            To("sentinel", 1, 2, 3, &[]),
        ),
        // How many servers?
        (
            "two servers, by request: a primary and a replica",
            base(json!({ "automatic_failover": false, "node_count": 2 })),
            To("replication", 1, 1, 0, &[]),
        ),
        (
            "two servers cannot outvote each other",
            base(json!({ "node_count": 2 })),
            To("replication", 1, 1, 0, &["failover_by_request", "sentinel_needs_three_servers"]),
        ),
        (
            "the seed's three zones: a data node and a Sentinel in each",
            base(json!({ "node_count": 3, "zones": ["a", "b", "c"] })),
            To("sentinel", 1, 2, 3, &[]),
        ),
        (
            "a fourth server stays for a replacement",
            base(json!({ "node_count": 4 })),
            To("sentinel", 1, 2, 3, &[]),
        ),
        (
            "the seed's least for production: two data nodes and three Sentinels on five servers",
            base(json!({ "node_count": 5 })),
            To("sentinel", 1, 1, 3, &[]),
        ),
        (
            "six servers: three of each, apart",
            base(json!({ "node_count": 6 })),
            To("sentinel", 1, 2, 3, &[]),
        ),
        (
            "Sentinels on two servers were asked for",
            base(json!({ "node_count": 2, "ha_mode": "sentinel" })),
            Refused("/node_count"),
        ),
        ("one server", base(json!({ "node_count": 1 })), Refused("/node_count")),
        ("half a server", base(json!({ "node_count": 2.5 })), Refused("/node_count")),
        (
            "a number of servers as some clients write it",
            base(json!({ "node_count": 6.0, "ha_mode": "cluster" })),
            To("cluster", 3, 1, 0, &[]),
        ),
        (
            "10^20 servers",
            base(json!({ "node_count": 100_000_000_000_000_000_000u128 as f64 })),
            Refused("/node_count"),
        ),
        ("minus five servers", base(json!({ "node_count": -5 })), Refused("/node_count")),
        (
            "more servers than a topology may have",
            base(json!({ "node_count": 1001 })),
            Refused("/node_count"),
        ),
        (
            "the seed's least cluster",
            base(json!({ "scale_requirement": "write_scale", "node_count": 6 })),
            To("cluster", 3, 1, 0, &[]),
        ),
        (
            "the seed's recommended cluster",
            json!({ "data_size_gb": 60, "ops_per_second": 10, "scale_requirement": "write_scale", "node_count": 9 }),
            To("cluster", 3, 2, 0, &[]),
        ),
        (
            "no more than two replicas without a reason; three servers are left",
            json!({ "data_size_gb": 60, "ops_per_second": 10, "scale_requirement": "write_scale", "node_count": 12 }),
            To("cluster", 3, 2, 0, &[]),
        ),
        (
            "seven servers: one is left",
            base(json!({ "ha_mode": "cluster", "node_count": 7 })),
            To("cluster", 3, 1, 0, &[]),
        ),
        (
            "four nodes for a cluster: it runs, and loses data with any node",
            base(json!({ "ha_mode": "cluster", "node_count": 4 })),
            To(
                "cluster",
                3,
                0,
                0,
                &[
                    "host_loss_not_survived",
                    "node_loss_not_survived",
                    "too_few_nodes",
                    "zone_loss_not_survived",
                ],
            ),
        ),
        (
            "two nodes for data that needs a cluster",
            json!({ "data_size_gb": 200, "ops_per_second": 10, "node_count": 2 }),
            Refused("/node_count"),
        ),
        (
            "six servers for nine shards: larger ones, told as a warning",
            json!({ "data_size_gb": 200, "ops_per_second": 10, "node_count": 6 }),
            To("cluster", 3, 1, 0, &["few_shards"]),
        ),
        (
            "eighteen servers are enough for nine shards",
            json!({ "data_size_gb": 200, "ops_per_second": 10, "node_count": 18 }),
            To("cluster", 9, 1, 0, &[]),
        ),
        (
            "six servers for the load of ten shards: critical, and 34 MB of writes a second outrun copies",
            json!({ "data_size_gb": 10, "ops_per_second": 1_000_000, "node_count": 6 }),
            To("cluster", 3, 1, 0, &["few_shards", "full_copy_may_fail"]),
        ),
        (
            "servers of at most 32 GiB: as many shards as that takes",
            json!({ "data_size_gb": 300, "ops_per_second": 10, "assumptions": { "largest_server_gb": 32 } }),
            To("cluster", 19, 1, 0, &[]),
        ),
        (
            "60 GiB are too much for one server of 64: a cluster by itself",
            json!({ "data_size_gb": 60, "ops_per_second": 10, "assumptions": { "largest_server_gb": 64 } }),
            To("cluster", 3, 1, 0, &[]),
        ),
        (
            "two replicas for the reads of three, and none to spare",
            json!({ "data_size_gb": 10, "ops_per_second": 400_000, "scale_requirement": "read_scale", "ha_mode": "sentinel", "node_count": 3 }),
            To("sentinel", 1, 2, 3, &["few_replicas", "full_copy_may_fail"]),
        ),
        (
            "a password for nodes and none for Sentinels",
            base(json!({ "credentials": { "admin": "ops" } })),
            To("sentinel", 1, 2, 3, &["sentinels_without_password"]),
        ),
        // Contradictions.
        (
            "Sentinel with 500 GiB",
            json!({ "data_size_gb": 500, "ops_per_second": 10, "ha_mode": "sentinel" }),
            To("sentinel", 1, 2, 3, &["beyond_one_primary"]),
        ),
        (
            "replication with more data than the largest server has",
            json!({ "data_size_gb": 5000, "ops_per_second": 10, "ha_mode": "replication" }),
            Refused("/data_size_gb"),
        ),
        (
            "replication cannot scale writes",
            base(
                json!({ "ha_mode": "replication", "automatic_failover": false, "scale_requirement": "write_scale" }),
            ),
            To("replication", 1, 2, 0, &["no_write_scaling"]),
        ),
        (
            "neither can Sentinel",
            base(json!({ "ha_mode": "sentinel", "scale_requirement": "both" })),
            To("sentinel", 1, 2, 3, &["no_write_scaling"]),
        ),
        (
            "a cluster that is not needed is not wrong",
            base(json!({ "ha_mode": "cluster" })),
            To("cluster", 3, 1, 0, &[]),
        ),
        (
            "to survive a zone in one zone",
            base(json!({ "zones": 1, "survive": "zone" })),
            To("sentinel", 1, 2, 3, &["single_zone", "zone_loss_not_survived"]),
        ),
        (
            "to survive a node without automatic failover",
            base(json!({ "automatic_failover": false, "survive": "node" })),
            To("replication", 1, 2, 0, &["node_loss_not_survived"]),
        ),
        (
            "Sentinels that a cluster has no use for",
            base(
                json!({ "ha_mode": "cluster", "sentinels": [{ "address": "10.0.0.9:26379", "zone": "a" }] }),
            ),
            To("cluster", 3, 1, 0, &["sentinels_unused"]),
        ),
        (
            "Sentinels that are not to act: that is told",
            base(json!({ "ha_mode": "sentinel", "automatic_failover": false })),
            To("sentinel", 1, 2, 3, &[]),
        ),
        // Scaling.
        (
            "writes scale by primaries",
            base(json!({ "scale_requirement": "write_scale" })),
            To("cluster", 3, 1, 0, &[]),
        ),
        (
            "both scale in a cluster",
            base(json!({ "scale_requirement": "both" })),
            To("cluster", 3, 1, 0, &[]),
        ),
        (
            "reads scale by replicas: one carries 40,000, one may fail",
            json!({ "data_size_gb": 10, "ops_per_second": 50_000, "scale_requirement": "read_scale" }),
            To("sentinel", 1, 2, 3, &[]),
        ),
        (
            "240,000 reads need three replicas, and one more that may fail; writes fit the primary",
            json!({ "data_size_gb": 10, "ops_per_second": 300_000, "scale_requirement": "read_scale", "ha_mode": "sentinel" }),
            To("sentinel", 1, 4, 3, &["full_copy_may_fail", "replicas_share_zone"]),
        ),
        (
            "800,000 reads need nine replicas: more than a primary should feed",
            json!({ "data_size_gb": 10, "ops_per_second": 1_000_000, "scale_requirement": "read_scale", "ha_mode": "sentinel" }),
            To(
                "sentinel",
                1,
                5,
                3,
                &[
                    "beyond_one_primary",
                    "full_copy_may_fail",
                    "replica_shares_zone_with_primary",
                    "replicas_share_zone",
                    "too_many_readers",
                ],
            ),
        ),
        (
            "a cluster reads from two replicas of each shard: 720,000 over 3 × 3 × 100,000",
            json!({ "data_size_gb": 10, "ops_per_second": 900_000, "scale_requirement": "read_scale" }),
            To("cluster", 3, 3, 0, &["full_copy_may_fail", "replicas_share_zone"]),
        ),
        // Zones.
        (
            "one zone",
            base(json!({ "zones": 1 })),
            To("sentinel", 1, 2, 3, &["single_zone", "zone_loss_not_survived"]),
        ),
        (
            "two zones: one has two of three Sentinels",
            base(json!({ "zones": 2 })),
            To("sentinel", 1, 2, 3, &["replicas_share_zone", "zone_loss_not_survived"]),
        ),
        (
            "a cluster in two zones: one has half of the primaries",
            base(json!({ "zones": ["x", "y"], "ha_mode": "cluster" })),
            To("cluster", 3, 1, 0, &["zone_holds_half_of_primaries", "zone_loss_not_survived"]),
        ),
        (
            "five zones",
            base(json!({ "zones": 5, "ha_mode": "cluster" })),
            To("cluster", 3, 1, 0, &[]),
        ),
        ("no zones at all", base(json!({ "zones": 0 })), Refused("/zones")),
        ("a zone twice", base(json!({ "zones": ["a", "a"] })), Refused("/zones/1")),
        // Memory of the servers.
        (
            "10 GiB do not fit 8: three shards do",
            base(json!({ "node_memory_gb": 8 })),
            To("cluster", 3, 1, 0, &[]),
        ),
        ("10 GiB fit 32", base(json!({ "node_memory_gb": 32 })), To("sentinel", 1, 2, 3, &[])),
        (
            "Sentinel on servers that are too small",
            base(json!({ "node_memory_gb": 8, "ha_mode": "sentinel" })),
            Refused("/node_memory_gb"),
        ),
        (
            "servers that the system fills",
            base(json!({ "node_memory_gb": 1 })),
            Refused("/node_memory_gb"),
        ),
        (
            "six servers of 64 GiB for 200",
            json!({ "data_size_gb": 200, "ops_per_second": 10, "node_memory_gb": 64, "node_count": 6 }),
            Refused("/node_memory_gb"),
        ),
        (
            "fourteen do",
            json!({ "data_size_gb": 200, "ops_per_second": 10, "node_memory_gb": 64, "node_count": 14 }),
            To("cluster", 7, 1, 0, &[]),
        ),
        // Assumptions.
        (
            "two Sentinels",
            base(json!({ "assumptions": { "sentinels": 2 } })),
            To(
                "sentinel",
                1,
                2,
                2,
                &["few_sentinels", "host_loss_not_survived", "zone_loss_not_survived"],
            ),
        ),
        (
            "four Sentinels, two of them in one zone",
            base(json!({ "assumptions": { "sentinels": 4 } })),
            To("sentinel", 1, 2, 4, &["even_sentinels", "zone_loss_not_survived"]),
        ),
        (
            "five Sentinels in five zones",
            base(json!({ "assumptions": { "sentinels": 5 }, "zones": 5 })),
            To("sentinel", 1, 2, 5, &[]),
        ),
        (
            "nothing on disk",
            base(json!({ "assumptions": { "persistence": false } })),
            To("sentinel", 1, 2, 3, &["no_persistence"]),
        ),
        (
            "2 GB of writes a second outrun every copy",
            json!({ "data_size_gb": 90, "ops_per_second": 100_000, "assumptions": { "write_percent": 100, "write_bytes": 20_000 } }),
            To("sentinel", 1, 2, 3, &["full_copy_may_fail"]),
        ),
        (
            "half a Sentinel",
            base(json!({ "assumptions": { "sentinels": 2.5 } })),
            Refused("/assumptions/sentinels"),
        ),
        (
            "no such eviction",
            base(json!({ "assumptions": { "eviction": "random" } })),
            Refused("/assumptions/eviction"),
        ),
        (
            "more than all of it free",
            base(json!({ "assumptions": { "headroom_percent": 100 } })),
            Refused("/assumptions/headroom_percent"),
        ),
        // Nonsense.
        ("no data", json!({ "data_size_gb": 0, "ops_per_second": 10 }), Refused("/data_size_gb")),
        (
            "less than no data",
            json!({ "data_size_gb": -1, "ops_per_second": 10 }),
            Refused("/data_size_gb"),
        ),
        (
            "10^18 GiB",
            json!({ "data_size_gb": 1e18, "ops_per_second": 10 }),
            Refused("/data_size_gb"),
        ),
        (
            "more than 1000 nodes hold",
            json!({ "data_size_gb": 1e7, "ops_per_second": 10 }),
            Refused("/data_size_gb"),
        ),
        (
            "more operations than 1000 nodes serve",
            json!({ "data_size_gb": 10, "ops_per_second": 1e11 }),
            Refused("/ops_per_second"),
        ),
        (
            "no operations",
            json!({ "data_size_gb": 10, "ops_per_second": 0 }),
            Refused("/ops_per_second"),
        ),
        ("shrinking", base(json!({ "growth_percent": -10 })), Refused("/growth_percent")),
        ("too old a version", base(json!({ "redis_version": "5.0" })), Refused("/redis_version")),
        (
            "no version at all",
            base(json!({ "redis_version": "latest" })),
            Refused("/redis_version"),
        ),
        ("a name that no topology can have", base(json!({ "name": "Orders!" })), Refused("/name")),
        (
            "servers twice",
            base(
                json!({ "node_count": 3, "nodes": [{ "address": "a:1", "zone": "a" }, { "address": "b:1", "zone": "b" }] }),
            ),
            Refused("/node_count"),
        ),
        (
            "no password is told",
            base(json!({ "credentials": {} })),
            To("sentinel", 1, 2, 3, &["no_password"]),
        ),
        (
            "nodes that there are: three hosts in three zones",
            base(json!({ "nodes": [
                { "address": "192.168.1.1:6379", "zone": "a" }, { "address": "192.168.2.1:6379", "zone": "b" },
                { "address": "192.168.3.1:6379", "zone": "c" }] })),
            To("sentinel", 1, 2, 3, &[]),
        ),
        (
            "machines that share an address: their Sentinels have ports of their own",
            base(json!({ "nodes": [
                { "address": "127.0.0.1:7001", "zone": "a", "host": "one" },
                { "address": "127.0.0.1:7002", "zone": "b", "host": "two" },
                { "address": "127.0.0.1:7003", "zone": "c", "host": "three" }] })),
            To("sentinel", 1, 2, 3, &[]),
        ),
        (
            "nodes on one machine: its Sentinels fall with it",
            base(json!({ "nodes": [
                { "address": "127.0.0.1:7001", "zone": "a" }, { "address": "127.0.0.1:7002", "zone": "b" },
                { "address": "127.0.0.1:7003", "zone": "c" }] })),
            To(
                "sentinel",
                1,
                2,
                1,
                &[
                    "few_machines",
                    "host_loss_not_survived",
                    "single_host",
                    "zone_loss_not_survived",
                ],
            ),
        ),
    ]
}

#[test]
fn requirements_come_to_what_the_table_says() {
    let rows = table();
    assert!(rows.len() >= 40);
    let mut wrong = Vec::new();
    for (why, request, comes) in rows {
        let got = match ask(&request) {
            Ok(advice) => {
                let codes: std::collections::BTreeSet<_> = advice
                    .warnings
                    .iter()
                    .filter(|w| w.severity != Severity::Info)
                    .map(|w| w.code.clone())
                    .collect();
                let (s, sizing) = (advice.recommended_architecture, &advice.sizing);
                let mode = serde_json::to_value(s).unwrap().as_str().unwrap().to_owned();
                let codes = codes.into_iter().collect::<Vec<_>>();
                format!(
                    "{mode} {} {} {} {codes:?}",
                    sizing.shards, sizing.replicas_per_shard, sizing.sentinels
                )
            }
            Err(Refusal::Invalid(errors)) => {
                assert!(errors.iter().all(|e| e.detail.len() > 15), "{errors:?}");
                format!("refused {}", errors[0].pointer)
            }
            Err(other) => format!("{other}"),
        };
        let want = match comes {
            To(mode, shards, replicas, sentinels, codes) => {
                format!("{mode} {shards} {replicas} {sentinels} {codes:?}")
            }
            Refused(pointer) => format!("refused {pointer}"),
        };
        if got != want {
            wrong.push(format!("{why}: {request}\n  want {want}\n  got  {got}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The seed's layouts, out of the general placement.
#[test]
fn the_production_layouts_come_out_of_the_general_placement() {
    let zones_of = |request: Value| -> Vec<Vec<String>> {
        let advice = ask(&request).unwrap();
        assert!(advice.survivability.survives.any_zone && advice.survivability.survives.any_node);
        let of = |shard: &AdvisedShard| shard.members.iter().map(|m| m.zone.clone()).collect();
        advice.layout.iter().map(of).collect()
    };
    // A primary or replica in each zone, each with a Sentinel.
    let three = json!({ "data_size_gb": 10, "ops_per_second": 10 });
    let mut zones = zones_of(three.clone()).remove(0);
    zones.sort();
    assert_eq!(zones, ["a", "b", "c"]);
    let advice = ask(&three).unwrap();
    let sentinels: Vec<_> = advice.topology.spec.sentinels().iter().map(|s| &s.zone).collect();
    assert_eq!(sentinels, ["a", "b", "c"]);

    for (count, replicas) in [(6, 1), (9, 2)] {
        let shards = zones_of(
            json!({ "data_size_gb": 60, "ops_per_second": 10, "ha_mode": "cluster", "node_count": count }),
        );
        let mut primaries: Vec<_> = shards.iter().map(|s| s[0].clone()).collect();
        primaries.sort();
        assert_eq!(primaries, ["a", "b", "c"], "one primary in each zone");
        for shard in &shards {
            let apart: std::collections::BTreeSet<_> = shard.iter().collect();
            assert_eq!((shard.len(), apart.len()), (replicas + 1, replicas + 1), "{shard:?}");
        }
    }
    // A whole zone and one node more: what nine nodes survive and six do not.
    let more = |count: usize| {
        let advice = ask(&json!({ "data_size_gb": 60, "ops_per_second": 10, "ha_mode": "cluster", "node_count": count })).unwrap();
        advice.survivability.node_pairs
    };
    let (six, nine) = (more(6), more(9));
    assert_eq!((six.total, six.survived), (15, 9));
    assert_eq!((nine.total, nine.survived), (36, 33));
}

#[test]
fn each_number_says_where_it_comes_from() {
    let advice =
        ask(&json!({ "data_size_gb": 40, "ops_per_second": 20_000, "growth_percent": 50 }))
            .unwrap();
    let value = |name: &str| advice.sizing.figures.iter().find(|f| f.name == name).unwrap().value;
    assert!((value("planned_data") - 60.0).abs() < 1e-9);
    // 4000 writes × 512 B × 120 s.
    assert!((value("repl_backlog") - 235.0).abs() < 1e-9);
    // 60 / 0.8 and the backlog.
    assert!((value("maxmemory") - 77_035.0).abs() < 1e-9);
    let known = serde_json::to_value(&advice.assumptions).unwrap();
    for figure in &advice.sizing.figures {
        assert!(figure.formula.len() > 10, "{figure:?}");
        for name in &figure.assumptions {
            assert!(known.get(name).is_some(), "{name} is no assumption");
        }
    }
    assert_eq!(advice.topology.spec.settings()["maxmemory"], "77035mb");
}

#[test]
fn reads_that_replicas_serve_are_no_reason_against_one_primary() {
    let many = json!({ "data_size_gb": 10, "ops_per_second": 150_000, "scale_requirement": "read_scale", "node_count": 6 });
    let advice = ask(&many).unwrap();
    let reasons = advice.rationale.join("; ");
    assert!(reasons.contains("the 30000 writes a second among them fit one primary"), "{reasons}");
    let sentinel = advice.alternatives.iter().find(|a| a.architecture == Mode::Sentinel).unwrap();
    assert_eq!((sentinel.replicas_per_shard, &*sentinel.ask), (3, "ha_mode: sentinel"));
}

#[test]
fn a_force_names_the_loss_that_it_accepts() {
    for mode in ["replication", "sentinel", "cluster"] {
        let ask = json!({ "data_size_gb": 1, "ops_per_second": 10, "ha_mode": mode });
        let advice = super::advise(&serde_json::from_value(ask).unwrap()).unwrap();
        let body = advice.failover_procedure.manual[1].api.clone().unwrap().body.unwrap();
        let primary = &advice.layout[0].members[0].address;
        assert_eq!(body["plan"], json!({ "accept": [format!("lost_writes:{primary}")] }));
    }
}

#[test]
fn alternatives_are_as_large_as_they_would_have_to_be() {
    let of = |request: Value| -> Vec<(Mode, usize, usize, usize)> {
        let all = ask(&request).unwrap().alternatives;
        all.iter().map(|a| (a.architecture, a.shards, a.replicas_per_shard, a.nodes)).collect()
    };
    assert_eq!(
        of(json!({ "data_size_gb": 10, "ops_per_second": 1000 })),
        [(Mode::Replication, 1, 2, 3), (Mode::Cluster, 3, 1, 6)]
    );
    // 500 × 1.1 in shards of 25.
    assert_eq!(
        of(json!({ "data_size_gb": 500, "ops_per_second": 1000, "ha_mode": "sentinel" })),
        [(Mode::Cluster, 22, 1, 44)]
    );
    assert_eq!(
        of(json!({ "data_size_gb": 200, "ops_per_second": 1000 })),
        [(Mode::Cluster, 9, 2, 27)],
        "nothing else has room for it"
    );
    assert_eq!(
        of(json!({ "data_size_gb": 10, "ops_per_second": 1000, "ha_mode": "cluster" })),
        [(Mode::Replication, 1, 2, 3), (Mode::Sentinel, 1, 2, 6), (Mode::Cluster, 3, 2, 9)]
    );
}

#[test]
fn the_procedure_names_real_nodes_and_computed_times() {
    let advice = ask(&json!({ "data_size_gb": 200, "ops_per_second": 10, "assumptions": { "node_timeout_ms": 2000 } })).unwrap();
    let procedure = &advice.failover_procedure;
    // Measured with a timeout of 2000 ms: 4.2 s.
    let bounds = procedure.automatic.unavailable.unwrap();
    assert!(bounds.at_least_ms <= 4200 && 4200 <= bounds.at_most_ms, "{bounds:?}");
    let replica = &advice.layout[0].members[1].address;
    let command = procedure.manual[0].command.clone().unwrap();
    assert_eq!(command, format!("redis-cli -h {} -p 6379 cluster failover", replica.host()));
    let body = procedure.manual[0].api.clone().unwrap().body.unwrap();
    assert_eq!(body["intent"]["to"], json!(replica));
    assert!(procedure.going_back[0].text.starts_with("Wait 9.0 s"), "{:?}", procedure.going_back);
    let login = procedure.preparation[0].command.clone().unwrap();
    assert!(login.contains("export REDISCLI_AUTH"), "{login}");
    let zone = procedure.rehearsal.last().unwrap().command.clone().unwrap();
    let primary = &advice.layout[0].members[0].address;
    assert!(zone.contains(&format!("ssh {} systemctl stop redis@6379", primary.host())), "{zone}");

    // One that is dead for a second only is not missed.
    let killed = &procedure.rehearsal[2].text;
    assert!(killed.contains("1 s later, before the others miss it"), "{killed}");

    let advice = ask(&json!({ "data_size_gb": 1, "ops_per_second": 10 })).unwrap();
    let killed = &advice.failover_procedure.rehearsal[2].text;
    assert!(killed.contains("14 s later, as a replica; expect writes to fail"), "{killed}");
    let unit = advice.config_files.iter().find(|f| f.path == "systemd/redis@.service").unwrap();
    assert!(unit.content.contains("\nRestartSec=14\n"), "{}", unit.content);
    // Measured with 5000 ms: 5.4 s, and 6.2 s for a client that asks Sentinels.
    let bounds = advice.failover_procedure.automatic.unavailable.unwrap();
    assert!(bounds.at_least_ms <= 5400 && 6200 <= bounds.at_most_ms, "{bounds:?}");
    let advice =
        ask(&json!({ "data_size_gb": 1, "ops_per_second": 10, "automatic_failover": false }))
            .unwrap();
    assert_eq!(advice.failover_procedure.automatic.unavailable, None);
}

fn requests() -> impl Strategy<Value = Value> {
    let mode = prop::option::of(prop::sample::select(vec!["replication", "sentinel", "cluster"]));
    let scale = prop::option::of(prop::sample::select(vec!["read_scale", "write_scale", "both"]));
    let numbers = (0.1..600.0f64, 1.0..3e6f64, prop::option::of(12.0..512.0f64), 0.0..50.0f64);
    let counts = (prop::option::of(2..60i64), 1..6i64, prop::option::of(prop::bool::ANY));
    (mode, scale, numbers, counts).prop_map(|(mode, scale, numbers, counts)| {
        let (data, ops, memory, growth) = numbers;
        let (servers, zones, automatic) = counts;
        json!({ "ha_mode": mode, "scale_requirement": scale, "data_size_gb": data,
            "ops_per_second": ops, "node_memory_gb": memory, "growth_percent": growth,
            "node_count": servers, "zones": zones, "automatic_failover": automatic })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn more_data_never_gives_fewer_shards(request in requests(), factor in 1.0..20.0f64) {
        let mut larger = request.clone();
        larger["data_size_gb"] = json!(request["data_size_gb"].as_f64().unwrap() * factor);
        if let (Ok(less), Ok(more)) = (ask(&request), ask(&larger)) {
            prop_assert!(less.sizing.shards <= more.sizing.shards);
            prop_assert!(less.sizing.shards > 1 || less.sizing.memory_per_node_gb <= more.sizing.memory_per_node_gb || more.sizing.shards > 1);
        }
    }

    #[test]
    fn what_is_advised_can_be_had(request in requests()) {
        let advice = match ask(&request) {
            Ok(advice) => advice,
            // What cannot be had names the field to change.
            Err(Refusal::Invalid(errors)) => {
                for error in &errors {
                    prop_assert!(request.pointer(&error.pointer).is_some(), "{error:?}");
                }
                return Ok(());
            }
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        };
        let spec = &advice.topology.spec;
        prop_assert_eq!(spec.validate(), vec![]);
        // It is posted as it was made, and placed as it was shown.
        let text = serde_json::to_value(spec).unwrap();
        prop_assert_eq!(&serde_json::from_value::<Spec>(text).unwrap(), spec);
        let (overrides, placement) = (ClusterOverrides::default(), crate::domain::spec::PlacementSpec::default());
        let placed = place(&Request {
            topology: crate::domain::id::TopologyId(uuid::Uuid::nil()),
            nodes: spec.nodes(),
            shards: advice.sizing.shards as u16,
            replicas: advice.sizing.replicas_per_shard as u16,
            overrides: &overrides,
            placement: &placement,
            previous: None,
        }).unwrap();
        prop_assert!(placed.spares.is_empty());
        for shard in &advice.layout {
            prop_assert_eq!(placed.primaries.get(&shard.id), Some(&shard.members[0].address));
        }
        // Of every warning of placement the advice has told.
        for warning in &placed.warnings {
            prop_assert!(advice.warnings.iter().any(|w| w.code == warning.code));
        }
        let nodes = advice.sizing.data_nodes;
        prop_assert_eq!(nodes, spec.nodes().len());
        if let Some(memory) = request["node_memory_gb"].as_f64() {
            prop_assert!(advice.sizing.memory_per_node_gb <= memory);
            let limit = advice.sizing.maxmemory_mb as f64 / 1024.0;
            prop_assert!(limit < memory);
        }
        if let Some(servers) = request["node_count"].as_i64() {
            let hosts: std::collections::BTreeSet<_> =
                spec.nodes().iter().chain(spec.sentinels()).map(|n| n.machine()).collect();
            prop_assert!(hosts.len() as i64 <= servers);
        }
        // A file for each node, and none of them holds a line that is empty of meaning.
        for node in spec.nodes().iter().chain(spec.sentinels()) {
            prop_assert!(advice.config_files.iter().any(|f| f.node.as_ref() == Some(&node.address)));
        }
    }
}
