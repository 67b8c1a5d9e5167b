//! What nodes hear of each other, believe, and forget.

use std::collections::BTreeSet;

use reeve::demo::servers::free_port;
use reeve::domain::node::{Address, ClusterNodeId};
use reeve::domain::observation::{ClusterView, Role};
use reeve::domain::step::command::Verb;

use super::bench::{Bench, World};
use super::cluster::{joined, meet_all};

/// Introductions in a chain reach everybody; one to nobody comes to nothing.
pub async fn meetings(world: World) {
    let bench = world.start(4).await;
    for node in 0..3 {
        bench.send(node, &[Verb::Meet(bench.address(node + 1))]).await;
    }
    let mut ids = BTreeSet::new();
    for node in 0..4 {
        ids.insert(bench.id(node).await);
    }
    for node in 0..4 {
        let view = bench
            .until_view(node, "knows all", |v| {
                v.known() == ids.iter().collect() && !v.shaking_hands()
            })
            .await;
        for (id, peer) in &view.peers {
            let there = (0..4).map(|n| bench.address(n)).find(|a| peer.address.as_ref() == Some(a));
            assert!(there.is_some() && peer.bus_port == there.unwrap().default_bus_port(), "{id}");
            assert_eq!((peer.role, peer.suspect, peer.failed), (Role::Primary, false, false));
        }
    }
    for node in 0..4 {
        // Nobody set epochs: the nodes part them, all or all but one.
        let of =
            |v: &ClusterView| v.peers.values().map(|p| p.epoch).collect::<BTreeSet<_>>().len() == 4;
        bench.until_view(node, "sees an epoch for each", of).await;
    }
    let refusal = bench.refusal(0, Verb::SetConfigEpoch(9)).await;
    assert!(refusal.starts_with("ERR The user can assign a config epoch only when"), "{refusal}");

    let free = free_port().unwrap();
    let nowhere: Address = format!("127.0.0.1:{}", free.number()).parse().unwrap();
    bench.send(0, &[Verb::Meet(nowhere.clone()), Verb::Meet(nowhere.clone())]).await;
    let view = bench.view(0).await;
    let hoped: Vec<_> = view.peers.values().filter(|p| p.handshake).collect();
    assert_eq!(hoped.len(), 1, "a second MEET changes nothing: {hoped:?}");
    assert_eq!(hoped[0].address.as_ref(), Some(&nowhere));
    assert!(!view.known().iter().any(|id| !ids.contains(id)));
    bench.until_view(0, "gave up", |v| !v.shaking_hands() && v.peers.len() == 4).await;
}

async fn stays_away(bench: &Bench, node: usize, id: &ClusterNodeId) {
    for _ in 0..10 {
        assert!(!bench.view(node).await.peers.contains_key(id), "it came back");
        bench.pass(250).await;
    }
}

/// A node that is forgotten is not learned again by gossip at once, although it lives and others
/// speak of it. (Whoever is to stay away is reset first: see the next contract.)
pub async fn forgetting(world: World) {
    let bench = joined(world, &["0-16383", "", ""]).await;
    let ids = [bench.id(0).await, bench.id(1).await, bench.id(2).await];
    let follow = Verb::Replicate(ids[0].clone());
    bench.send(1, &[follow]).await;
    bench.until_view(1, "is a replica", |v| v.me().unwrap().role == Role::Replica).await;

    let forget = |n: usize| Verb::Forget(ids[n].clone());
    let own = bench.refusal(0, forget(0)).await;
    assert!(own.starts_with("ERR ") && own.contains("myself"), "{own}");
    assert!(bench.refusal(1, forget(0)).await.starts_with("ERR Can't forget my "));
    let nobody = ClusterNodeId("0123456789012345678901234567890123456789".to_owned());
    let unknown = bench.refusal(0, Verb::Forget(nobody.clone())).await;
    assert_eq!(unknown, format!("ERR Unknown node {nobody}"));

    bench.send(0, &[forget(2)]).await;
    assert!(!bench.view(0).await.peers.contains_key(&ids[2]));
    if bench.world.forgets_together() {
        bench.send(0, &[forget(2)]).await;
        let gone = |v: &ClusterView| !v.peers.contains_key(&ids[2]);
        bench.until_view(1, "was told to forget", gone).await;
    } else {
        assert_eq!(bench.refusal(0, forget(2)).await, format!("ERR Unknown node {}", ids[2]));
        assert!(bench.view(1).await.peers.contains_key(&ids[2]));
    }
    if bench.world.comes_back() {
        let back = |v: &ClusterView| v.known().contains(&ids[2]);
        bench.until_view(0, "was met again by the forgotten one", back).await;
    } else {
        stays_away(&bench, 0, &ids[2]).await;
    }
    // It was told nothing, and knows them still.
    assert!(bench.view(2).await.peers.contains_key(&ids[0]));
}

/// What others see of a node that is somebody else now, by a reset or by the loss of its
/// `nodes.conf`: the old id without an address, until it is forgotten.
pub async fn the_old_identity_lingers(world: World) {
    let mut bench = joined(world, &["0-16383", "", ""]).await;
    let reset = bench.id(1).await;
    bench.send(1, &[Verb::ResetHard]).await;
    assert_ne!(bench.id(1).await, reset);
    let lost = bench.id(2).await;
    bench.restart(2, false).await;
    assert_ne!(bench.id(2).await, lost);
    for old in [&reset, &lost] {
        bench
            .until_view(0, "lost the way to it", |v| {
                v.peers.get(old).is_some_and(|p| !p.linked && p.address.is_none())
            })
            .await;
    }
    let view = bench.view(0).await;
    assert_eq!(view.peers.len(), 3);
    bench.send(0, &[Verb::Forget(reset.clone()), Verb::Forget(lost.clone())]).await;
    assert_eq!(bench.view(0).await.peers.len(), 1);
    // Under their new ids they are welcome at once.
    meet_all(&bench, 3).await;
    stays_away(&bench, 0, &reset).await;
    assert!(!bench.view(0).await.peers.contains_key(&lost));
}

/// Two that claim the same slots: the higher epoch has them, and whoever is left without any
/// follows it.
pub async fn rival_claims(world: World) {
    let bench = joined(world, &["0-19", "10-99", "50-16383"]).await;
    let ids = [bench.id(0).await, bench.id(1).await, bench.id(2).await];
    for node in 0..3 {
        let view = bench
            .until_view(node, "sees the claims settled", |v| {
                let slots = ids.each_ref().map(|id| v.peers[id].slots.to_string());
                slots == ["0-9", "10-49", "50-16383"]
            })
            .await;
        assert_eq!(ids.each_ref().map(|id| view.peers[id].epoch), [1, 2, 3]);
        assert!(view.peers.values().all(|p| p.role == Role::Primary));
    }
}

/// Primaries with one epoch part: the one with the smaller id takes the next, and with it the slots.
pub async fn one_epoch_for_two(world: World) {
    let bench = world.start(2).await;
    for node in 0..2 {
        let slots = "0-16383".parse().unwrap();
        bench.send(node, &[Verb::SetConfigEpoch(4), Verb::AddSlots(slots)]).await;
    }
    let ids = [bench.id(0).await, bench.id(1).await];
    bench.send(0, &[Verb::Meet(bench.address(1))]).await;
    let (winner, loser) = if ids[0] < ids[1] { (0, 1) } else { (1, 0) };
    // Without slots, and somebody else has them all: it becomes a replica.
    let lost = bench
        .until(loser, "follows the winner", |r| r.role == Role::Replica && r.replication.link_up)
        .await;
    assert_eq!(lost.replication.primary, Some(bench.address(winner)));
    let won = bench.view(winner).await;
    assert_eq!((won.my_epoch, won.my_slots().count()), (5, 16384));
}
