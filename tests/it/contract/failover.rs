//! Failovers that somebody asks for.

use std::collections::BTreeSet;

use reeve::domain::node::ClusterNodeId;
use reeve::domain::observation::{ClusterView, Report, Role};
use reeve::domain::slot::key_slot;
use reeve::domain::step::command::{FailoverMethod, Verb};

use super::bench::{Bench, World};
use super::cluster::{follow, joined};
use super::single::set;

const SHARE: &str = "0-5460";
const GRACEFUL: Verb = Verb::Failover(FailoverMethod::Graceful);
const FORCE: Verb = Verb::Failover(FailoverMethod::Force);
const TAKEOVER: Verb = Verb::Failover(FailoverMethod::Takeover);

/// Three primaries on 0 to 2, and replicas of those that are named.
async fn cluster(world: World, primaries: &[usize]) -> Bench {
    let mut slots = vec![SHARE, "5461-10922", "10923-16383"];
    slots.extend(primaries.iter().map(|_| ""));
    let bench = joined(world, &slots).await;
    for (replica, primary) in (3..).zip(primaries) {
        follow(&bench, replica, *primary).await;
    }
    for node in 0..slots.len() {
        // None goes to help another primary.
        bench.send(node, &[set("cluster-migration-barrier", "9")]).await;
        let followers = |v: &ClusterView| v.peers.values().filter(|p| p.primary.is_some()).count();
        let all = |v: &ClusterView| v.state_ok && followers(v) == primaries.len();
        bench.until_view(node, "serves, and knows who follows whom", all).await;
    }
    bench
}

/// No replica takes over by itself.
async fn by_hand(bench: &Bench, nodes: usize) {
    for node in 0..nodes {
        bench.send(node, &[set("cluster-replica-no-failover", "yes")]).await;
    }
}

async fn patient(bench: &Bench, nodes: usize, ms: u64) {
    for node in 0..nodes {
        bench.send(node, &[set("cluster-node-timeout", &ms.to_string())]).await;
    }
}

/// Keys of the first share, of which there are enough.
fn keys() -> impl Iterator<Item = String> {
    (0..).map(|n| format!("key-{n}")).filter(|key| key_slot(key.as_bytes()) <= 5460)
}

async fn greatest_epoch(bench: &Bench, node: usize) -> u64 {
    bench.view(node).await.peers.values().map(|p| p.epoch).max().unwrap()
}

/// Every node of these sees that one of them owns the first share, with an epoch of its own that is
/// greater than this, and that others follow it; and all is well.
async fn owned(bench: &Bench, nodes: &[usize], owner: usize, followers: &[usize], above: u64) {
    let new = bench.id(owner).await;
    let mut following = Vec::new();
    for node in followers {
        let linked = |r: &Report| r.replication.link_up;
        following.push(bench.until(*node, "has a link", linked).await.cluster.unwrap().my_id);
    }
    let follows = |v: &ClusterView, id: &ClusterNodeId| {
        v.peers[id].primary.as_ref() == Some(&new) && v.peers[id].role == Role::Replica
    };
    for node in nodes {
        let holds = |v: &ClusterView| {
            let owner = &v.peers[&new];
            let epochs = v.peers.values().filter(|p| p.role == Role::Primary).map(|p| p.epoch);
            let epochs: Vec<u64> = epochs.collect();
            owner.slots.to_string() == SHARE
                && owner.role == Role::Primary
                && owner.epoch > above
                && epochs.iter().collect::<BTreeSet<_>>().len() == epochs.len()
                && following.iter().all(|id| follows(v, id))
                && v.peers.values().all(|p| p.linked && !p.failed && !p.suspect)
                && v.state_ok
        };
        bench.until_view(*node, "sees the owner, and those that follow it", holds).await;
    }
}

/// Writes to node 0, which pauses them for a failover that comes to nothing.
async fn held_for_long(bench: &Bench) {
    bench.pass(100).await;
    let began = bench.now_ms();
    bench.put(0, &keys().next().unwrap()).unwrap();
    let waited = bench.now_ms() - began;
    assert!((3500..6500).contains(&waited), "waited {waited} ms");
}

/// A failover without need: everybody sees it, the old primary and the siblings follow, and no write
/// that was acknowledged is lost, not even of those that came meanwhile.
pub async fn graceful(world: World) {
    let bench = cluster(world, &[0, 0]).await;
    let refused = bench.refusal(0, GRACEFUL).await;
    assert_eq!(refused, "ERR You should send CLUSTER FAILOVER to a replica");
    for verb in [FORCE, TAKEOVER] {
        assert_eq!(bench.refusal(1, verb).await, refused);
    }
    let mut keys = keys();
    let mut written = 0;
    for key in keys.by_ref().take(20) {
        bench.put(0, &key).unwrap();
        written += 1;
    }
    let before = greatest_epoch(&bench, 1).await;
    bench.send(3, &[GRACEFUL]).await;
    let sent_on = loop {
        match bench.put(0, &keys.next().unwrap()) {
            Ok(()) => written += 1,
            Err(refusal) => break refusal,
        }
        bench.pass(1).await;
    };
    let to = bench.address(3);
    assert!(sent_on.starts_with("MOVED ") && sent_on.ends_with(&to.to_string()), "{sent_on}");
    let promoted = bench.look(3).await;
    assert_eq!((promoted.role, promoted.keys), (Role::Primary, written));
    owned(&bench, &[0, 1, 2, 3, 4], 3, &[0, 4], before).await;
    for key in keys.by_ref().take(5) {
        bench.put(3, &key).unwrap();
    }
    let all = written + 5;
    let replid = bench.look(3).await.replication.replid;
    for node in [0, 4] {
        let replica = bench.until(node, "has all keys", |r| r.keys == all).await;
        assert_eq!(replica.replication.primary, Some(to.clone()));
        assert_eq!(replica.replication.replid, replid);
    }
    assert!(bench.refusal(3, GRACEFUL).await.starts_with("ERR You should send"));
}

/// With a dead primary it takes force, and the others' votes; with one that hangs as well.
pub async fn forced(world: World) {
    let mut bench = cluster(world, &[0]).await;
    by_hand(&bench, 4).await;
    bench.put(0, &keys().next().unwrap()).unwrap();
    bench.until(3, "has the key", |r| r.keys == 1).await;
    let (old, before) = (bench.id(0).await, greatest_epoch(&bench, 1).await);
    bench.kill(0);
    bench.until_view(3, "holds it for failed", |v| v.peers[&old].failed).await;
    let refused = bench.refusal(3, GRACEFUL).await;
    assert!(
        refused.ends_with(" is down or failed, please use CLUSTER FAILOVER FORCE"),
        "{refused}"
    );
    bench.pass(3000).await;
    assert_eq!(bench.look(3).await.role, Role::Replica, "it does not take over by itself");
    bench.send(3, &[FORCE]).await;
    let promoted = bench.until(3, "took over", |r| r.role == Role::Primary).await;
    assert_eq!(promoted.keys, 1);
    bench.restart(0, true).await;
    owned(&bench, &[0, 1, 2, 3], 3, &[0], before).await;
    assert_eq!(bench.look(0).await.keys, 1);

    // Nobody knows yet that it hangs. It never stood for election before.
    by_hand(&bench, 1).await;
    let before = greatest_epoch(&bench, 1).await;
    bench.freeze(3);
    bench.send(0, &[FORCE]).await;
    bench.until(0, "took over", |r| r.role == Role::Primary).await;
    bench.thaw(3);
    owned(&bench, &[0, 1, 2, 3], 0, &[3], before).await;
}

/// Without a majority votes are of no use; who asks nobody takes over all the same, and those that
/// come back follow.
pub async fn taken_over(world: World) {
    let mut bench = cluster(world, &[0, 1]).await;
    by_hand(&bench, 5).await;
    let before = greatest_epoch(&bench, 2).await;
    bench.kill(0);
    bench.kill(1);
    bench.until_view(2, "serves no more", |v| !v.state_ok).await;
    bench.send(3, &[FORCE]).await;
    bench.pass(1500).await;
    assert_eq!(bench.look(3).await.role, Role::Replica, "one vote of three");
    bench.send(3, &[TAKEOVER]).await;
    bench.send(4, &[TAKEOVER]).await;
    for node in [3, 4] {
        assert_eq!(bench.look(node).await.role, Role::Primary, "it is done when it is answered");
    }
    for node in [2, 3, 4] {
        bench.until_view(node, "serves again", |v| v.state_ok).await;
    }
    bench.restart(0, true).await;
    bench.restart(1, true).await;
    let heir = bench.address(4);
    bench.until(1, "follows", |r| r.replication.primary.as_ref() == Some(&heir)).await;
    owned(&bench, &[0, 1, 2, 3, 4], 3, &[0], before).await;
}

/// Back and forth: at once where neither the replica nor the voters were asked before, and after a
/// while anywhere.
pub async fn failing_back(world: World) {
    let bench = cluster(world, &[0]).await;
    let all = [0, 1, 2, 3];
    for (owner, follower, pause) in [(3, 0, 0), (0, 3, 0), (3, 0, 5000)] {
        bench.pass(pause).await;
        let before = greatest_epoch(&bench, 1).await;
        bench.send(owner, &[GRACEFUL]).await;
        bench.until(owner, "took over", |r| r.role == Role::Primary).await;
        owned(&bench, &all, owner, &[follower], before).await;
    }
}

/// A replica that won an election not long ago, and was made a replica again, "wins" at once with
/// that old election, and everybody takes it back; later Valkeys begin anew.
pub async fn a_stale_election(world: World) {
    let anew = world.begins_elections_anew();
    let bench = cluster(world, &[0]).await;
    patient(&bench, 4, 3000).await;
    let all = [0, 1, 2, 3];
    let (ids, began) = ([bench.id(0).await, bench.id(3).await], bench.now_ms());
    for (owner, follower) in [(3, 0), (0, 3)] {
        let before = greatest_epoch(&bench, 1).await;
        bench.send(owner, &[GRACEFUL]).await;
        bench.until(owner, "took over", |r| r.role == Role::Primary).await;
        owned(&bench, &all, owner, &[follower], before).await;
    }
    let (before, replid) =
        (greatest_epoch(&bench, 1).await, bench.look(0).await.replication.replid);
    bench.send(3, &[GRACEFUL]).await;
    assert!(bench.now_ms() - began < 6000, "too slow for this");
    if anew {
        return owned(&bench, &all, 3, &[0], before).await;
    }
    // Its primary takes no writes until the time is up.
    held_for_long(&bench).await;
    owned(&bench, &all, 0, &[3], before - 1).await;
    let view = bench.view(1).await;
    assert_eq!((view.peers[&ids[0]].epoch, view.current_epoch), (before, before));
    assert_eq!(bench.look(3).await.replication.replid, replid);
}

/// Nobody votes twice against one primary within two node timeouts, and the writes that were held
/// for it are taken in the end; later Valkeys vote as often as they are asked.
pub async fn voters_are_asked_twice(world: World) {
    let anew = world.begins_elections_anew();
    let bench = cluster(world, &[0, 0]).await;
    patient(&bench, 5, 3000).await;
    let (all, began) = ([0, 1, 2, 3, 4], bench.now_ms());
    for (owner, followers) in [(3, [0, 4]), (0, [3, 4])] {
        let before = greatest_epoch(&bench, 1).await;
        bench.send(owner, &[GRACEFUL]).await;
        bench.until(owner, "took over", |r| r.role == Role::Primary).await;
        owned(&bench, &all, owner, &followers, before).await;
    }
    let before = greatest_epoch(&bench, 1).await;
    bench.send(4, &[GRACEFUL]).await;
    assert!(bench.now_ms() - began < 6000, "too slow for this");
    if anew {
        return owned(&bench, &all, 4, &[0, 3], before).await;
    }
    held_for_long(&bench).await;
    owned(&bench, &all, 0, &[3, 4], before - 1).await;
    let view = bench.view(1).await;
    assert!(view.current_epoch > before, "there was an election");
    assert_eq!(greatest_epoch(&bench, 1).await, before, "that nobody won");
}

/// A replica that is reset gives its failover up; its primary takes writes again when the time is up.
pub async fn given_up(world: World) {
    let mut bench = cluster(world, &[0]).await;
    let before = greatest_epoch(&bench, 1).await;
    bench.freeze(0);
    bench.send(3, &[GRACEFUL]).await;
    bench.pass(50).await;
    bench.send(3, &[Verb::ResetHard]).await;
    bench.thaw(0);
    held_for_long(&bench).await;
    let view = bench.view(3).await;
    assert!(view.is_blank() && view.me().unwrap().role == Role::Primary);
    assert_eq!(bench.view(0).await.my_slots().to_string(), SHARE);
    assert_eq!(greatest_epoch(&bench, 1).await, before);
}

/// A greater epoch for who asks, and none for who has the greatest.
pub async fn bumped(world: World) {
    let bench = cluster(world, &[0]).await;
    let id = bench.id(0).await;
    let before = bench.view(0).await.current_epoch;
    bench.send(0, &[Verb::BumpEpoch]).await;
    for node in 0..4 {
        let greater = |v: &ClusterView| v.peers[&id].epoch == before + 1;
        let view = bench.until_view(node, "sees the greater epoch", greater).await;
        assert_eq!(view.current_epoch, before + 1);
    }
    bench.send(0, &[Verb::BumpEpoch]).await;
    assert_eq!(bench.view(0).await.my_epoch, before + 1, "it has the greatest");
    // A replica takes one for itself, and speaks for its primary all the same.
    bench.send(3, &[Verb::BumpEpoch]).await;
    let view = bench.view(3).await;
    assert_eq!((view.my_epoch, view.current_epoch), (before + 1, before + 2));
}
