//! Replicas: how a node becomes one, and how one takes its primary's place.

use reeve::domain::observation::{ClusterView, Role};
use reeve::domain::step::command::Verb;

use super::bench::World;
use super::cluster::{follow, joined};

/// Who may follow whom, and what follows from it.
pub async fn replicating(world: World) {
    let bench = joined(world, &["0-16383", "", ""]).await;
    let ids = [bench.id(0).await, bench.id(1).await, bench.id(2).await];
    let to = |n: usize| Verb::Replicate(ids[n].clone());
    let nobody = "0123456789012345678901234567890123456789";
    let unknown = Verb::Replicate(reeve::domain::node::ClusterNodeId(nobody.to_owned()));
    assert_eq!(bench.refusal(1, unknown).await, format!("ERR Unknown node {nobody}"));
    assert_eq!(bench.refusal(1, to(1)).await, "ERR Can't replicate myself");
    let full = bench.refusal(0, to(1)).await;
    assert!(full.starts_with("ERR To set a master the node must be empty"), "{full}");

    bench.until_view(0, "serves", |v| v.state_ok).await;
    bench.put(0, "key").unwrap();
    follow(&bench, 1, 0).await;
    let replica = bench.until(1, "has the key", |r| r.keys == 1).await;
    assert_eq!((replica.role, replica.replication.sync_in_progress), (Role::Replica, false));
    assert_eq!(replica.replication.primary, Some(bench.address(0)));
    let silence = replica.replication.last_io_seconds;
    assert!(silence.is_some_and(|seconds| seconds < 5), "{silence:?}");
    let primary = bench.look(0).await;
    // Nothing is counted before the first replica comes.
    assert!(replica.replication.offset < 30 && primary.replication.offset < 30);
    assert_eq!(primary.replication.connected_replicas, 1);
    assert_eq!(primary.replication.replid, replica.replication.replid);
    let own = replica.cluster.unwrap();
    assert_eq!((own.my_epoch, own.my_slots().count()), (1, 0), "a replica has its primary's epoch");

    let followed = |v: &ClusterView| v.peers[&ids[1]].primary.as_ref() == Some(&ids[0]);
    for node in [0, 2] {
        let view = bench.until_view(node, "sees the replica", followed).await;
        assert_eq!((view.peers[&ids[1]].role, view.peers[&ids[1]].epoch), (Role::Replica, 1));
    }
    let chained = bench.refusal(2, to(1)).await;
    assert!(chained.starts_with("ERR I can only replicate a "), "{chained}");
    assert!(bench.refusal(1, Verb::FlushAll).await.starts_with("READONLY "));
    assert!(bench.put(1, "key").unwrap_err().starts_with("MOVED "));
    bench.put(0, "another").unwrap();
    let further = bench.until(1, "has the other key", |r| r.keys == 2).await;
    assert!(further.replication.offset >= 30, "{:?}", further.replication);
    bench.send(0, &[Verb::FlushAll]).await;
    bench.until(1, "is emptied with its primary", |r| r.keys == 0).await;
    // The same once more is no error.
    bench.send(1, &[to(0)]).await;
    bench.until(1, "is linked again", |r| r.replication.link_up).await;
    for node in 0..3 {
        bench.until_view(node, "serves", |v| v.state_ok).await;
    }
}

/// A primary that hangs for long is replaced as well; it still believes in itself when it wakes, and
/// is told better at once.
pub async fn a_sleeper_is_replaced(world: World) {
    let mut bench = joined(world, &["0-5460", "5461-10922", "10923-16383", ""]).await;
    follow(&bench, 3, 0).await;
    for node in 0..4 {
        bench.until_view(node, "serves", |v| v.state_ok).await;
    }
    let (old, new) = (bench.id(0).await, bench.id(3).await);
    bench.freeze(0);
    bench.until(3, "took over", |r| r.role == Role::Primary).await;
    let settled = |v: &ClusterView| v.state_ok && v.peers[&new].slots.count() == 5461;
    bench.until_view(1, "serves with the new primary", settled).await;
    bench.thaw(0);
    let back = bench
        .until(0, "follows its heir", |r| r.role == Role::Replica && r.replication.link_up)
        .await;
    assert_eq!(back.replication.primary, Some(bench.address(3)));
    for node in 0..4 {
        bench
            .until_view(node, "sees all well", |v| {
                v.state_ok
                    && v.peers[&old].primary.as_ref() == Some(&new)
                    && v.peers.values().all(|p| p.linked && !p.failed && !p.suspect)
            })
            .await;
    }
}

/// A primary that dies is replaced by its replica, with a higher epoch and all its slots and keys;
/// when it comes back, it follows.
pub async fn the_dead_are_replaced(world: World) {
    let mut bench = joined(world, &["0-5460", "5461-10922", "10923-16383", ""]).await;
    follow(&bench, 3, 0).await;
    for node in 0..4 {
        bench.until_view(node, "serves", |v| v.state_ok).await;
    }
    // Slot 3300 or so.
    bench.put(0, "bar").or_else(|_| bench.put(0, "b")).unwrap();
    bench.until(3, "has the key", |r| r.keys == 1).await;
    let (old, new) = (bench.id(0).await, bench.id(3).await);
    let before = bench.view(1).await.current_epoch;

    bench.kill(0);
    bench.until_view(1, "holds it for failed", |v| v.peers[&old].failed).await;
    let promoted = bench.until(3, "took over", |r| r.role == Role::Primary).await;
    assert_eq!((promoted.keys, &promoted.replication.primary), (1, &None));
    let view = promoted.cluster.unwrap();
    assert!(view.my_epoch > before && view.current_epoch >= view.my_epoch);
    assert_eq!(view.my_slots().to_string(), "0-5460");
    for node in [1, 2, 3] {
        let view = bench
            .until_view(node, "serves with the new primary", |v| {
                v.state_ok && v.peers[&new].slots.to_string() == "0-5460"
            })
            .await;
        assert_eq!(view.peers[&new].role, Role::Primary);
        assert!(view.peers[&old].failed && view.peers[&old].slots.is_empty());
        assert!(!view.peers[&old].linked);
        if bench.look(node).await.capabilities().cluster_shards {
            assert_eq!(view.health.get(&old).map(String::as_str), Some("fail"));
        }
    }

    bench.restart(0, true).await;
    let back = bench
        .until(0, "follows its heir", |r| r.role == Role::Replica && r.replication.link_up)
        .await;
    assert_eq!((back.keys, back.replication.primary), (1, Some(bench.address(3))));
    assert_eq!(back.cluster.unwrap().my_id, old);
    for node in 0..4 {
        bench
            .until_view(node, "sees all well", |v| {
                v.state_ok
                    && v.peers[&old].primary.as_ref() == Some(&new)
                    && v.peers.values().all(|p| p.linked && !p.failed && !p.suspect)
            })
            .await;
    }
}

/// A primary whose last replica took over for it, and so is alone, gets one from whoever has two.
pub async fn orphans_are_adopted(world: World) {
    let slots = ["0-5460", "5461-10922", "10923-16383", "", "", ""];
    let mut bench = joined(world, &slots).await;
    for node in 0..6 {
        // A primary whose slots are heard of when there are replicas already would be helped, too.
        let all =
            |v: &ClusterView| v.peers.values().map(|p| p.slots.count()).sum::<usize>() == 16384;
        bench.until_view(node, "knows whose all slots are", all).await;
    }
    follow(&bench, 3, 0).await;
    follow(&bench, 4, 1).await;
    follow(&bench, 5, 1).await;
    let ids = [bench.id(3).await, bench.id(4).await, bench.id(5).await];
    for node in 0..6 {
        let replicas = |v: &ClusterView| v.peers.values().filter(|p| p.primary.is_some()).count();
        bench.until_view(node, "serves", |v| v.state_ok && replicas(v) == 3).await;
    }
    bench.kill(0);
    let (goes, stays) = if ids[1] < ids[2] { (4, 5) } else { (5, 4) };
    let moved = bench
        .until(goes, "went to the orphan", |r| {
            r.replication.primary == Some(bench.address(3)) && r.replication.link_up
        })
        .await;
    assert_eq!(moved.cluster.unwrap().me().unwrap().primary.as_ref(), Some(&ids[0]));
    assert_eq!(bench.look(stays).await.replication.primary, Some(bench.address(1)));
}

/// Without a replica the slots of a dead primary are served by nobody, and then none are.
pub async fn an_uncovered_slot_stops_all(world: World) {
    let mut bench = joined(world, &["0-5460", "5461-10922", "10923-16383"]).await;
    for node in 0..3 {
        bench.until_view(node, "serves", |v| v.state_ok).await;
    }
    let dead = bench.id(0).await;
    bench.kill(0);
    for node in [1, 2] {
        let view = bench.until_view(node, "serves no more", |v| !v.state_ok).await;
        assert!(view.peers[&dead].failed && !view.peers[&dead].suspect);
        assert_eq!(view.peers[&dead].slots.to_string(), "0-5460", "they are still its own");
    }
    assert!(bench.put(1, "key").unwrap_err().starts_with("CLUSTERDOWN"));
    bench.kill(1);
    bench.pass(3000).await;
    let alone = bench.view(2).await;
    assert!(alone.peers.values().any(|p| p.suspect && !p.failed), "one vote is no majority");
    bench.restart(0, true).await;
    bench.restart(1, true).await;
    for node in 0..3 {
        bench.until_view(node, "serves again", |v| v.state_ok).await;
    }
}
