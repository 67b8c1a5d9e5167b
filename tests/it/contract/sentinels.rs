//! What Sentinels do: how they find each other, agree, fail over and forget.

use reeve::domain::node::{Address, NodeKind};
use reeve::domain::observation::Role;
use reeve::domain::sentinel::Watch;
use reeve::domain::step::command::Verb;

use super::bench::{Bench, World};
use super::single::set;

/// The name under which all watch the deployment.
const NAME: &str = "m";
const DOWN_AFTER_MS: u64 = 1000;

/// One primary (node 0), replicas of it, and Sentinels that watch them.
struct Watched {
    bench: Bench,
    data: usize,
    all: usize,
}

impl Watched {
    async fn start(world: World, data: usize, sentinels: usize) -> Self {
        let watched = Self::blank(world, data, sentinels).await;
        let primary = watched.bench.address(0);
        for replica in 1..data {
            watched.bench.send(replica, &[Verb::ReplicaOf(primary.clone())]).await;
        }
        for replica in 1..data {
            watched.bench.until(replica, "follows", |r| r.replication.link_up).await;
        }
        for sentinel in watched.sentinels() {
            watched.watch(sentinel).await;
        }
        watched.until_complete().await;
        watched
    }

    async fn blank(world: World, data: usize, sentinels: usize) -> Self {
        let bench = world.start_watched(data, sentinels).await;
        Self { bench, data, all: data + sentinels }
    }

    fn sentinels(&self) -> std::ops::Range<usize> {
        self.data..self.all
    }

    async fn watch(&self, sentinel: usize) {
        let (primary, quorum) = (self.bench.address(0), 2);
        let option = |option: &str, value: u64| Verb::SetWatch {
            name: NAME.to_owned(),
            option: option.to_owned(),
            value: value.to_string(),
        };
        let verbs = [
            Verb::Watch { name: NAME.to_owned(), primary, quorum },
            option("down-after-milliseconds", DOWN_AFTER_MS),
            option("failover-timeout", 10_000),
        ];
        self.bench.send(sentinel, &verbs).await;
    }

    async fn view(&self, sentinel: usize) -> Option<Watch> {
        self.bench.look(sentinel).await.sentinel.unwrap().watches.remove(NAME)
    }

    async fn until(&self, sentinel: usize, what: &str, holds: impl Fn(&Watch) -> bool) -> Watch {
        let holds = |r: &reeve::domain::observation::Report| {
            r.sentinel.as_ref().and_then(|s| s.watches.get(NAME)).is_some_and(&holds)
        };
        let report = self.bench.until(sentinel, what, holds).await;
        report.sentinel.unwrap().watches.remove(NAME).unwrap()
    }

    /// Every one of these knows all others of them, and all replicas.
    async fn until_these_know(&self, sentinels: &[usize]) {
        for sentinel in sentinels {
            self.until(*sentinel, "knows everybody", |w| {
                w.sentinels.len() == sentinels.len() - 1
                    && w.sentinels.values().all(|o| !o.down)
                    && w.replicas.len() == self.data - 1
                    && w.replicas.iter().all(|r| !r.is_down() && r.link_up)
                    && w.no_quorum.is_none()
                    && !w.is_down()
                    && !w.fails_over()
            })
            .await;
        }
    }

    async fn until_complete(&self) {
        self.until_these_know(&self.sentinels().collect::<Vec<_>>()).await;
    }

    /// All name the same new primary; who that is.
    async fn until_another_leads(&self, old: &Address) -> Address {
        let mut named = None;
        for sentinel in self.sentinels() {
            let w = self
                .until(sentinel, "names another primary", |w| {
                    w.primary.as_ref() != Some(old) && !w.fails_over()
                })
                .await;
            let other = named.get_or_insert(w.primary.clone());
            assert_eq!(*other, w.primary);
        }
        named.flatten().unwrap()
    }
}

/// A Sentinel that watches nobody, and what it refuses.
pub async fn blank_sentinels(world: World) {
    let watched = Watched::blank(world, 1, 2).await;
    let bench = &watched.bench;
    let report = bench.look(1).await;
    assert_eq!((report.kind, report.role), (NodeKind::Sentinel, Role::Sentinel));
    assert!(!report.cluster_enabled && report.cluster.is_none() && report.keys == 0);
    let view = report.sentinel.unwrap();
    assert_eq!((view.my_id.len(), view.tilt, view.watches.len()), (40, false, 0));
    assert_ne!(bench.look(2).await.sentinel.unwrap().my_id, view.my_id);
    assert!(bench.look(0).await.sentinel.is_none(), "a data node is none");

    let (name, primary) = (NAME.to_owned(), bench.address(0));
    let unknown = "ERR No such master with that name";
    assert_eq!(bench.refusal(1, Verb::Unwatch(name.clone())).await, unknown);
    let failover = Verb::FailOverWatch(name.clone());
    assert_eq!(bench.refusal(1, failover.clone()).await, unknown);
    let watch = |quorum| Verb::Watch { name: name.clone(), primary: primary.clone(), quorum };
    assert_eq!(bench.refusal(1, watch(0)).await, "ERR Quorum must be 1 or greater.");
    bench.send(1, &[Verb::ResetWatch(name.clone()), watch(2)]).await;
    assert_eq!(bench.refusal(1, watch(2)).await, "ERR Duplicate master name.");
    assert_eq!(bench.refusal(1, failover).await, "NOGOODSLAVE No suitable replica to promote");
    let option = |option: &str, value: &str| Verb::SetWatch {
        name: name.clone(),
        option: option.to_owned(),
        value: value.to_owned(),
    };
    let refusal = bench.refusal(1, option("quorum", "0")).await;
    assert_eq!(refusal, "ERR Invalid argument '0' for SENTINEL SET 'quorum'");
    let refusal = bench.refusal(1, option("nonsense", "1")).await;
    assert!(refusal.starts_with("ERR Unknown option or number of arguments"), "{refusal}");
    let verbs = [option("quorum", "3"), option("parallel-syncs", "2"), Verb::FlushSentinelConfig];
    bench.send(1, &verbs).await;
    let w = watched.view(1).await.unwrap();
    assert_eq!((w.primary, w.epoch, w.quorum), (Some(primary), 0, 3));
    assert_eq!((w.down_after_ms, w.failover_timeout_ms, w.parallel_syncs), (30_000, 180_000, 2));
    assert!(w.no_quorum.unwrap().starts_with("NOQUORUM 1 usable Sentinels."));
    bench.send(1, &[Verb::Unwatch(name)]).await;
    assert!(watched.view(1).await.is_none());
}

/// They find the replicas, and each other by what they publish there; what they know outlives them.
pub async fn they_find_each_other(world: World) {
    let mut watched = Watched::start(world, 2, 3).await;
    let (primary, replica) = (watched.bench.look(0).await, watched.bench.look(1).await);
    let ids: Vec<String> = {
        let mut ids = vec![];
        for sentinel in watched.sentinels() {
            ids.push(watched.bench.look(sentinel).await.sentinel.unwrap().my_id);
        }
        ids
    };
    let w = watched.until(2, "has spoken to all", |w| w.replicas[0].run_id.len() == 40).await;
    assert_eq!((w.primary, w.run_id), (Some(watched.bench.address(0)), primary.run_id));
    assert_eq!(
        (&w.replicas[0].address, &w.replicas[0].run_id),
        (&watched.bench.address(1), &replica.run_id)
    );
    assert_eq!(w.replicas[0].priority, 100);
    for (at, id) in ids.iter().enumerate().skip(1) {
        assert_eq!(w.sentinels[id].address, Some(watched.bench.address(2 + at)));
    }
    // Another priority is known at the next INFO, which comes each ten seconds.
    watched.bench.send(1, &[set("replica-priority", "7")]).await;
    watched.until(2, "knows the priority", |w| w.replicas[0].priority == 7).await;
    watched.bench.restart(2, true).await;
    assert_eq!(watched.bench.look(2).await.sentinel.unwrap().my_id, ids[0]);
    watched.until_complete().await;
    assert_eq!(watched.view(2).await.unwrap().down_after_ms, DOWN_AFTER_MS);
}

/// A dead primary is replaced when the quorum and a majority agree; it comes back as a replica.
pub async fn a_dead_primary_is_replaced(world: World) {
    let mut watched = Watched::start(world, 3, 3).await;
    let old = watched.bench.address(0);
    watched.bench.send(2, &[set("replica-priority", "1")]).await;
    for sentinel in watched.sentinels() {
        let chosen = watched.bench.address(2);
        watched
            .until(sentinel, "knows the priority", |w| {
                w.replicas.iter().any(|r| r.address == chosen && r.priority == 1)
            })
            .await;
    }
    watched.bench.kill(0);
    assert_eq!(watched.until_another_leads(&old).await, watched.bench.address(2));
    let epochs = [watched.view(3).await.unwrap().epoch, watched.view(4).await.unwrap().epoch];
    assert!(epochs[0] > 0 && epochs[0] == epochs[1], "{epochs:?}");
    watched.bench.until(2, "is primary", |r| r.role == Role::Primary).await;
    let new = watched.bench.address(2);
    let follows = |r: &reeve::domain::observation::Report| {
        r.replication.primary.as_ref() == Some(&new) && r.replication.link_up
    };
    watched.bench.until(1, "follows the new one", follows).await;
    watched.bench.restart(0, true).await;
    watched.bench.until(0, "is made a replica", follows).await;
}

/// Without a majority nothing happens.
pub async fn a_minority_does_nothing(world: World) {
    let mut watched = Watched::start(world, 2, 3).await;
    watched.bench.kill(3);
    watched.bench.kill(4);
    let alone = watched.until(2, "misses the others", |w| w.no_quorum.is_some()).await;
    assert!(alone.no_quorum.unwrap().starts_with("NOQUORUM 1 usable Sentinels."));
    assert!(alone.sentinels.values().all(|other| other.down) && alone.sentinels.len() == 2);
    watched.bench.kill(0);
    watched.until(2, "holds the primary for down", |w| w.has("s_down")).await;
    watched.bench.pass(4 * DOWN_AFTER_MS).await;
    let w = watched.view(2).await.unwrap();
    assert!(!w.has("o_down") && w.primary == Some(watched.bench.address(0)));
    assert_eq!(watched.bench.look(1).await.role, Role::Replica);
}

/// Nobody is asked, and the old primary goes on for ten seconds.
pub async fn forced_failover(world: World) {
    let watched = Watched::start(world, 2, 3).await;
    let bench = &watched.bench;
    let failover = || Verb::FailOverWatch(NAME.to_owned());
    bench.send(2, &[failover()]).await;
    assert_eq!(bench.refusal(2, failover()).await, "INPROG Failover already in progress");
    assert!(watched.view(2).await.unwrap().fails_over());
    let began = bench.now_ms();
    bench.until(1, "is promoted", |r| r.role == Role::Primary).await;
    assert!(bench.now_ms() - began < 1500);
    assert_eq!(bench.look(0).await.role, Role::Primary);
    let old = bench.address(0);
    assert_eq!(watched.until_another_leads(&old).await, bench.address(1));
    bench.pass(3000).await;
    assert_eq!(bench.look(0).await.role, Role::Primary, "still");
    bench.until(0, "is made a replica", |r| r.role == Role::Replica).await;
    assert!(bench.now_ms() - began > 8000);
}

/// The old primary lets go first, and then is failed over from: nobody else takes writes meanwhile.
pub async fn failover_after_letting_go(world: World) {
    let watched = Watched::start(world, 3, 3).await;
    let bench = &watched.bench;
    bench.send(1, &[set("replica-priority", "1")]).await;
    let (old, new) = (bench.address(0), bench.address(1));
    watched
        .until(3, "knows the priority", |w| {
            w.replicas.iter().any(|r| r.address == new && r.priority == 1)
        })
        .await;
    bench.send(0, &[Verb::ReplicaOf(new.clone())]).await;
    bench.send(3, &[Verb::FailOverWatch(NAME.to_owned())]).await;
    bench.until(1, "is promoted", |r| r.role == Role::Primary).await;
    assert_eq!(bench.look(0).await.role, Role::Replica);
    assert_eq!(watched.until_another_leads(&old).await, new);
    for replica in [0, 2] {
        bench
            .until(replica, "follows the new one", |r| {
                r.replication.primary.as_ref() == Some(&new) && r.replication.link_up
            })
            .await;
    }
}

/// Who is gone stays known until a reset; who lives and still watches comes back after one.
pub async fn ghosts_and_resets(world: World) {
    let mut watched = Watched::start(world, 2, 3).await;
    let reset = || Verb::ResetWatch(NAME.to_owned());
    let dead = watched.bench.look(4).await.sentinel.unwrap().my_id;
    watched.bench.send(2, &[reset()]).await;
    assert!(watched.view(2).await.unwrap().sentinels.len() < 2);
    watched.until_complete().await;
    watched.bench.kill(4);
    watched.until(2, "misses it", |w| w.sentinels[&dead].down).await;
    watched.until(3, "misses it", |w| w.sentinels[&dead].down).await;
    assert!(watched.view(2).await.unwrap().no_quorum.is_none(), "two of three are enough");
    for sentinel in [2, 3] {
        watched.bench.send(sentinel, &[reset()]).await;
        watched.until(sentinel, "knows the other", |w| w.sentinels.len() == 1).await;
    }
    watched.until_these_know(&[2, 3]).await;
    // It lives on with what it knew, and introduces itself.
    watched.bench.restart(4, true).await;
    watched.until_complete().await;
    // It is told to stop; then it stays away.
    watched.bench.send(4, &[Verb::Unwatch(NAME.to_owned())]).await;
    for sentinel in [2, 3] {
        assert!(watched.view(sentinel).await.unwrap().sentinels.contains_key(&dead));
        watched.bench.send(sentinel, &[reset()]).await;
        watched.until(sentinel, "knows the other", |w| w.sentinels.len() == 1).await;
    }
    watched.bench.pass(5000).await;
    watched.until_these_know(&[2, 3]).await;
}

/// A replica that is taken out stays out, if all forget it soon.
pub async fn a_replica_that_left(world: World) {
    let watched = Watched::start(world, 3, 3).await;
    let bench = &watched.bench;
    bench.send(2, &[Verb::ReplicaOfNone]).await;
    bench.until(0, "misses it", |r| r.replication.connected_replicas == 1).await;
    for sentinel in watched.sentinels() {
        bench.send(sentinel, &[Verb::ResetWatch(NAME.to_owned())]).await;
    }
    for sentinel in watched.sentinels() {
        watched.until(sentinel, "knows the other", |w| w.replicas.len() == 1).await;
    }
    bench.pass(14_000).await;
    assert_eq!(bench.look(2).await.role, Role::Primary);
}
