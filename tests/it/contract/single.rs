//! What one node does with what it is told.

use reeve::domain::observation::{Replication, Role};
use reeve::domain::slot::SlotSet;
use reeve::domain::step::command::Verb;
use reeve::fleet::FleetError;

use super::bench::World;
use super::cluster::{follow, joined};

pub fn set(name: &str, value: &str) -> Verb {
    Verb::ConfigSet { name: name.to_owned(), value: value.to_owned() }
}

fn slots(text: &str) -> Verb {
    Verb::AddSlots(text.parse().unwrap())
}

/// A node that nobody has touched.
pub async fn blank_nodes(world: World) {
    let bench = world.start(2).await;
    let asked =
        ["maxmemory", "cluster-node-timeout", "repl-diskless-sync-delay", "no-such-setting"];
    let report = bench.asked(0, &asked).await;
    assert_eq!((report.flavor, report.version), (bench.world.flavor, bench.world.version));
    assert_eq!((report.role, report.keys, report.loading), (Role::Primary, 0, false));
    assert!(report.cluster_enabled && !report.functions);
    assert!(!report.requires_login && !report.has_replication_login);
    assert_eq!((report.replication_login_as_wanted, report.bus_reachable), (None, None));
    assert_eq!(report.memory.max_bytes, 0);
    assert!(report.persistence.last_bgsave_ok && !report.persistence.aof_enabled);
    let values: Vec<_> = report.settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let expected =
        [("cluster-node-timeout", "1000"), ("maxmemory", "0"), ("repl-diskless-sync-delay", "0")];
    assert_eq!(values, expected);
    let alone = Replication { replid: report.replication.replid.clone(), ..Default::default() };
    assert_eq!(report.replication, alone);
    assert_eq!((report.replication.replid.len(), report.run_id.len()), (40, 40));

    let modern = report.capabilities().cluster_shards;
    let view = report.cluster.unwrap();
    assert!(view.is_blank() && !view.state_ok && view.open.is_empty());
    assert_eq!((view.my_epoch, view.current_epoch, view.my_id.0.len()), (0, 0, 40));
    let me = view.me().unwrap();
    let bus = bench.address(0).default_bus_port();
    assert_eq!((&me.address, me.bus_port), (&None, bus), "it learns its address when it is met");
    assert!(me.linked && !me.handshake && !me.failed && !me.suspect);
    assert_eq!((me.role, &me.primary, me.epoch), (Role::Primary, &None, 0));
    let health = view.health.get(&view.my_id).map(String::as_str);
    assert_eq!(health, modern.then_some("online"));

    let other = bench.look(1).await;
    assert_ne!(other.run_id, report.run_id);
    assert_ne!(other.cluster.unwrap().my_id, view.my_id);
    assert!(bench.put(0, "key").unwrap_err().starts_with("CLUSTERDOWN"));
}

/// Epochs are set once, slots are taken all or none, and a lone owner of all serves after a while.
pub async fn epochs_and_slots(world: World) {
    let bench = world.start(1).await;
    bench.send(0, &[Verb::SetConfigEpoch(5), slots("0-99")]).await;
    assert_eq!(
        bench.refusal(0, Verb::SetConfigEpoch(6)).await,
        "ERR Node config epoch is already non-zero"
    );
    assert_eq!(bench.refusal(0, slots("90-100")).await, "ERR Slot 90 is already busy");
    let view = bench.view(0).await;
    assert_eq!((view.my_epoch, view.current_epoch, view.state_ok), (5, 5, false));
    assert_eq!(view.my_slots().to_string(), "0-99");
    // The batch goes on after a refusal, and tells of the first.
    let sent = bench.try_send(0, &[slots("0"), slots("100-16383")]).await;
    assert!(sent.unwrap_err().to_string().ends_with("ERR: Slot 0 is already busy"));
    assert_eq!(bench.view(0).await.my_slots(), SlotSet::all());
    bench.until_view(0, "serves", |v| v.state_ok).await;
    bench.put(0, "key").unwrap();
    assert_eq!(bench.look(0).await.keys, 1);
}

/// Settings hold at once and survive a restart only if they were written.
pub async fn settings(world: World) {
    let mut bench = world.start(1).await;
    let before = bench.look(0).await;
    let verbs =
        [set("maxmemory", "100mb"), Verb::ConfigRewrite, set("cluster-node-timeout", "777")];
    bench.send(0, &verbs).await;
    let asked = ["maxmemory", "cluster-node-timeout"];
    let now = bench.asked(0, &asked).await;
    assert_eq!(now.settings["maxmemory"], "104857600");
    assert_eq!(now.memory.max_bytes, 104_857_600);
    assert_eq!(now.settings["cluster-node-timeout"], "777");
    for (name, value) in [
        ("no-such-setting", "1"),
        ("maxmemory", "much"),
        ("appendonly", "perhaps"),
        ("cluster-node-timeout", "soon"),
        ("cluster-enabled", "no"),
    ] {
        let refusal = bench.refusal(0, set(name, value)).await;
        assert!(refusal.starts_with("ERR ") && refusal.contains(name), "{refusal}");
    }
    bench.restart(0, true).await;
    let after = bench.asked(0, &asked).await;
    assert_eq!(after.settings["maxmemory"], "104857600");
    assert_eq!(after.settings["cluster-node-timeout"], "1000");
    assert_ne!(after.run_id, before.run_id);
    assert_eq!(after.cluster.unwrap().my_id, before.cluster.unwrap().my_id);
}

/// A primary with keys refuses a reset; a replica is emptied by it.
pub async fn resets(world: World) {
    let bench = joined(world, &["0-16383", ""]).await;
    follow(&bench, 1, 0).await;
    bench.until_view(0, "serves", |v| v.state_ok).await;
    bench.put(0, "key").unwrap();
    bench.until(1, "has the key", |r| r.keys == 1).await;
    let ids = [bench.id(0).await, bench.id(1).await];
    assert_eq!(
        bench.refusal(0, Verb::ResetHard).await,
        "ERR CLUSTER RESET can't be called with master nodes containing keys"
    );
    bench.send(1, &[Verb::ResetHard]).await;
    bench.send(0, &[Verb::FlushAll, Verb::ResetHard]).await;
    for (node, old) in ids.iter().enumerate() {
        let report = bench.look(node).await;
        assert_eq!((report.role, report.keys), (Role::Primary, 0));
        assert_eq!((&report.replication.primary, report.replication.link_up), (&None, false));
        let view = report.cluster.unwrap();
        assert!(view.is_blank() && view.my_id != *old);
        assert_eq!((view.my_epoch, view.current_epoch), (0, 0));
        bench.until_view(node, "serves no more", |v| !v.state_ok).await;
    }
}

/// What follows the question who a node is reaches only the node that is meant.
pub async fn whoever_is_meant(world: World) {
    let bench = joined(world, &["0-16383", ""]).await;
    bench.until_view(0, "serves", |v| v.state_ok).await;
    bench.put(0, "key").unwrap();
    let (mine, yours) = (bench.id(0).await, bench.id(1).await);
    let batch = |id| [Verb::Confirm(id), Verb::FlushAll, Verb::ResetHard];
    let refused = bench.fleet().send(&bench.target(0), &batch(yours)).await;
    assert!(
        matches!(&refused, Err(FleetError::Rejected { code, .. }) if code == "another_node"),
        "{refused:?}"
    );
    assert_eq!((bench.look(0).await.keys, bench.id(0).await), (1, mine.clone()));
    bench.send(0, &batch(mine.clone())).await;
    assert!(bench.look(0).await.keys == 0 && bench.id(0).await != mine);
}
