//! Replication outside of clusters: who follows whom, and how one hands over to another.

use reeve::domain::fault::ANOTHER_NODE;
use reeve::domain::moving::talk::{Answer, Saying, Standing};
use reeve::domain::node::ClusterNodeId;
use reeve::domain::observation::{History, Report, Role};
use reeve::domain::step::command::Verb;
use reeve::fleet::FleetError;

use super::bench::{Bench, World};

/// Node 0 with the others as its replicas, all of which have what was written.
async fn formed(world: World, count: usize) -> Bench {
    let bench = world.start_lone(count).await;
    bench.put(0, "first").unwrap();
    for node in 1..count {
        bench.send(node, &[Verb::ReplicaOf(bench.address(0))]).await;
    }
    for node in 1..count {
        follows(&bench, node, 0).await;
    }
    bench
        .until(0, "its replicas are online", |r| {
            let online = r.replication.replicas.iter().filter(|a| a.state == "online");
            online.count() == count - 1
        })
        .await;
    level(&bench, count).await;
    bench
}

async fn follows(bench: &Bench, node: usize, primary: usize) -> Report {
    let address = bench.address(primary);
    bench
        .until(node, "it follows", |r| {
            r.replication.primary.as_ref() == Some(&address) && r.replication.link_up
        })
        .await
}

async fn level(bench: &Bench, count: usize) {
    let offset = bench.look(0).await.replication.offset;
    for node in 1..count {
        bench.until(node, "it has all", |r| r.replication.offset >= offset).await;
    }
}

async fn standing(bench: &Bench, node: usize) -> Standing {
    match bench.answer(node, Saying::Stand).await {
        Answer::Standing(standing) => *standing,
        other => panic!("{other:?}"),
    }
}

/// A replica has its primary's keys and history, refuses writes, and is known to it.
pub async fn following(world: World) {
    let bench = formed(world, 3).await;
    let (primary, replica) = (bench.look(0).await, bench.look(1).await);
    assert_eq!((primary.role, replica.role), (Role::Primary, Role::Replica));
    assert_eq!((primary.keys, replica.keys), (1, 1));
    assert_eq!(primary.replication.replid, replica.replication.replid);
    assert_eq!(
        (replica.replication.read_only, replica.replication.priority),
        (Some(true), Some(100))
    );
    assert_eq!((primary.replication.read_only, primary.replication.priority), (None, None));
    let mut attached: Vec<_> =
        primary.replication.replicas.iter().map(|a| a.address.clone()).collect();
    attached.sort();
    let mut replicas = vec![bench.address(1), bench.address(2)];
    replicas.sort();
    assert_eq!((attached, primary.replication.connected_replicas), (replicas, 2));
    assert!(bench.put(1, "second").unwrap_err().starts_with("READONLY"));
    assert!(bench.refusal(1, Verb::FlushAll).await.starts_with("READONLY"));
    // To be told the same again changes nothing.
    bench.send(1, &[Verb::ReplicaOf(bench.address(0))]).await;
    assert!(bench.look(1).await.replication.link_up);
    // A chain passes everything on.
    bench.send(2, &[Verb::ReplicaOf(bench.address(1))]).await;
    follows(&bench, 2, 1).await;
    bench.put(0, "third").unwrap();
    bench.until(2, "it comes by way of another", |r| r.keys == 2).await;
}

/// Who wants replicas takes no writes without them, and is not emptied, unless it is told to want none.
pub async fn guarding_its_writes(world: World) {
    let bench = formed(world, 3).await;
    let wants = |count: &str| Verb::ConfigSet {
        name: "min-replicas-to-write".to_owned(),
        value: count.to_owned(),
    };
    bench.send(1, &[wants("1"), Verb::ReplicaOfNone]).await;
    assert!(bench.refusal(1, Verb::FlushAll).await.starts_with("NOREPLICAS"));
    assert_eq!(bench.look(1).await.keys, 1);
    bench.send(1, &[wants("0"), Verb::FlushAll, wants("1")]).await;
    assert_eq!(bench.look(1).await.keys, 0);
    assert!(bench.put(1, "second").unwrap_err().starts_with("NOREPLICAS"));
}

/// The old primary lets go before the new one takes over; each goes on from what it has.
pub async fn handing_over(world: World) {
    let bench = formed(world, 3).await;
    let history = bench.look(0).await.replication.replid;
    bench.say(0, Saying::Command(Verb::PauseWrites { ms: 5_000 })).await;
    let offset = standing(&bench, 0).await.replication.offset;
    let caught_up = bench.until(1, "it has all", |r| r.replication.offset >= offset).await;
    assert_eq!(caught_up.replication.offset, offset);
    bench.say(0, Saying::Command(Verb::ReplicaOf(bench.address(1)))).await;
    let let_go = standing(&bench, 0).await;
    assert_eq!((let_go.role, let_go.replication.offset), (Role::Replica, offset));
    assert_eq!(let_go.replication.primary, Some(bench.address(1)));
    bench.say(1, Saying::Command(Verb::ReplicaOfNone)).await;
    let new = standing(&bench, 1).await;
    assert_eq!((new.role, new.replication.offset), (Role::Primary, offset));
    let before = Some(History { replid: history.clone(), offset: offset + 1 });
    assert_eq!(new.replication.before, before);
    assert_ne!(new.replication.replid, history);
    bench.say(0, Saying::Command(Verb::Unpause)).await;
    assert!(bench.put(0, "late").unwrap_err().starts_with("READONLY"));
    bench.put(1, "second").unwrap();
    bench.send(2, &[Verb::ReplicaOf(bench.address(1))]).await;
    for node in [0, 2] {
        let now = follows(&bench, node, 1).await;
        assert_eq!(now.replication.replid, new.replication.replid, "node {node}");
        // Who copied everything anew would have no history before.
        assert_eq!(now.replication.before.map(|b| b.replid), Some(history.clone()), "node {node}");
        bench.until(node, "it has the new key", |r| r.keys == 2).await;
    }
}

/// Whoever finds two replicas of each other can go on from there.
pub async fn dying_between_two_primaries(world: World) {
    let bench = formed(world, 2).await;
    bench.send(0, &[Verb::ReplicaOf(bench.address(1))]).await;
    bench.pass(1_500).await;
    let (one, two) = (bench.look(0).await, bench.look(1).await);
    assert_eq!((one.role, two.role), (Role::Replica, Role::Replica));
    assert_eq!((one.keys, two.keys), (1, 1));
    assert_eq!(one.replication.offset, two.replication.offset);
    for node in 0..2 {
        assert!(bench.put(node, "key").unwrap_err().starts_with("READONLY"));
    }
    bench.send(1, &[Verb::ReplicaOfNone]).await;
    follows(&bench, 0, 1).await;
    bench.put(1, "second").unwrap();
    bench.until(0, "it follows", |r| r.keys == 2).await;
}

/// Writes wait for as long as they were told to, or until they may go on; all else goes on.
pub async fn waiting_writes(world: World) {
    let bench = formed(world, 2).await;
    bench.send(0, &[Verb::PauseWrites { ms: 700 }]).await;
    let began = bench.now_ms();
    let report = bench.look(0).await;
    assert_eq!(report.keys, 1);
    bench.put(0, "second").unwrap();
    let waited = bench.now_ms() - began;
    assert!((500..3_000).contains(&waited), "{waited} ms");
    bench.send(0, &[Verb::PauseWrites { ms: 60_000 }]).await;
    bench.send(0, &[Verb::Unpause]).await;
    let began = bench.now_ms();
    bench.put(0, "third").unwrap();
    assert!(bench.now_ms() - began < 2_000);
    // Nothing waits here, and that is no error.
    bench.send(0, &[Verb::Unpause]).await;
}

/// After a restart a node is what its file says, whatever it was.
pub async fn what_the_file_says(world: World) {
    let mut bench = formed(world, 2).await;
    bench.send(1, &[Verb::ReplicaOfNone]).await;
    bench.send(0, &[Verb::ReplicaOf(bench.address(1)), Verb::ConfigRewrite]).await;
    follows(&bench, 0, 1).await;
    bench.restart(0, true).await;
    let back = follows(&bench, 0, 1).await;
    assert_eq!(back.role, Role::Replica);
    // It was not written that it is one no more.
    bench.send(0, &[Verb::ReplicaOfNone]).await;
    bench.restart(0, true).await;
    follows(&bench, 0, 1).await;
}

/// A primary that comes back with nothing empties those that follow it.
pub async fn an_empty_primary(world: World) {
    let mut bench = formed(world, 2).await;
    let before = bench.look(0).await;
    bench.restart(0, true).await;
    let back = bench.until(0, "it is back", |_| true).await;
    assert_eq!((back.role, back.keys), (Role::Primary, 0));
    assert_ne!(back.run_id, before.run_id);
    assert_ne!(back.replication.replid, before.replication.replid);
    bench
        .until(1, "its replica has nothing either", |r| r.keys == 0 && r.replication.link_up)
        .await;
}

/// What is meant for one process is not said to another.
pub async fn which_process_is_meant(world: World) {
    let bench = formed(world, 2).await;
    let id = bench.look(0).await.identity();
    bench.send(0, &[Verb::Confirm(id.clone()), Verb::Unpause]).await;
    let other = ClusterNodeId(bench.look(1).await.run_id);
    let flush = [Verb::Confirm(other.clone()), Verb::FlushAll];
    match bench.try_send(0, &flush).await {
        Err(FleetError::Rejected { code, .. }) => assert_eq!(code, ANOTHER_NODE),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.look(0).await.keys, 1);
    let said = bench.try_converse(0, &other, &[Saying::Command(Verb::ReplicaOfNone)]).await;
    assert!(matches!(said, Err(FleetError::Rejected { code, .. }) if code == ANOTHER_NODE));
    assert!(bench.try_converse(0, &id, &[Saying::Stand]).await.is_ok());
    // Nor is a cluster made of it.
    let told = bench.refusal(0, Verb::ResetHard).await;
    assert!(told.contains("cluster support disabled"), "{told}");
}
