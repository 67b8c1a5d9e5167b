//! Nodes that do not answer.

use reeve::domain::id::TopologyId;
use reeve::fleet::{Ask, Fence, FleetError, Target};

use super::bench::World;
use super::single::set;

fn is_unreachable<T: std::fmt::Debug>(outcome: Result<T, FleetError>) {
    assert!(matches!(outcome, Err(FleetError::Unreachable { .. })), "{outcome:?}");
}

/// A node that is frozen gets no command at all, takes connections, and goes on as if nothing had
/// been.
pub async fn frozen(world: World) {
    let mut bench = world.start(1).await;
    bench.send(0, &[set("maxmemory", "1mb")]).await;
    let before = bench.look(0).await;
    bench.freeze(0);
    let (target, began) = (bench.target(0), bench.now_ms());
    is_unreachable(bench.try_look(0).await);
    is_unreachable(bench.try_send(0, &[set("maxmemory", "2mb")]).await);
    is_unreachable(bench.fleet().fence(&target).await);
    assert!(bench.now_ms() - began < 8000);
    bench.fleet().knock(&target.address, target.address.port()).await.unwrap();
    bench.thaw(0);
    bench.pass(100).await;
    let after = bench.look(0).await;
    assert_eq!(after.memory.max_bytes, 1 << 20, "what could not be sent never runs");
    assert_eq!(after.run_id, before.run_id);
    bench.fleet().fence(&target).await.unwrap();
    bench.send(0, &[set("maxmemory", "2mb")]).await;
    assert_eq!(bench.look(0).await.memory.max_bytes, 2 << 20);
}

/// A node that is dead refuses everything, and is another process when it is back.
pub async fn killed(world: World) {
    let mut bench = world.start(1).await;
    let before = bench.look(0).await;
    let (target, bus) = (bench.target(0), bench.address(0).default_bus_port().unwrap());
    bench.fleet().knock(&target.address, bus).await.unwrap();
    bench.kill(0);
    let refused = bench.try_look(0).await.unwrap_err();
    let want = format!("{} cannot be reached: connection refused", target.address);
    assert_eq!(refused.to_string(), want);
    is_unreachable(bench.try_send(0, &[set("maxmemory", "1mb")]).await);
    is_unreachable(bench.fleet().fence(&target).await);
    let closed = bench.fleet().knock(&target.address, bus).await.unwrap_err();
    assert!(closed.to_string().ends_with(&format!("port {bus}: connection refused")), "{closed}");
    bench.restart(0, true).await;
    let after = bench.look(0).await;
    assert_ne!(after.run_id, before.run_id);
    assert!(after.uptime_seconds <= before.uptime_seconds + 1);
}

/// Who holds a later token ends the connections of earlier holders and shuts them out.
pub async fn fenced(world: World) {
    let bench = world.start(1).await;
    let heir = bench.another_process();
    let topology = TopologyId(uuid::Uuid::from_u128(1));
    let of = |token| Target { fence: Some(Fence { topology, token }), ..bench.target(0) };
    bench.fleet().send(&of(1), &[set("maxmemory", "1mb")]).await.unwrap();
    heir.fence(&of(2)).await.unwrap();
    heir.fence(&of(2)).await.unwrap();
    let late = bench.fleet().send(&of(1), &[set("maxmemory", "3mb")]).await;
    assert!(
        matches!(&late, Err(FleetError::Rejected { code, .. }) if code == "FENCED"),
        "{late:?}"
    );
    let late = bench.fleet().fence(&of(1)).await;
    assert!(
        matches!(&late, Err(FleetError::Rejected { code, .. }) if code == "FENCED"),
        "{late:?}"
    );
    heir.send(&of(2), &[set("maxmemory", "2mb")]).await.unwrap();
    // Another topology's holder is nobody's rival, and looking is free.
    let topology = TopologyId(uuid::Uuid::from_u128(2));
    let foreign = Target { fence: Some(Fence { topology, token: 1 }), ..bench.target(0) };
    bench.fleet().fence(&foreign).await.unwrap();
    let seen = bench.fleet().look(&of(1), &Ask::default()).await.unwrap();
    assert_eq!(seen.memory.max_bytes, 2 << 20);
}
