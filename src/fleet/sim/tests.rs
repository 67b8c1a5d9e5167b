//! The simulation by itself; how it compares with real servers is in `tests/it/contract.rs`.

mod moving;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::timeout;
use uuid::Uuid;

use super::*;
use crate::domain::id::TopologyId;
use crate::domain::observation::{Report, Role};
use crate::domain::slot::SlotSet;
use crate::domain::step::command::{FailoverMethod, Verb};
use crate::fleet::{Ask, Fence, Fleet, FleetError, Target};

fn address(port: u16) -> Address {
    format!("10.0.0.1:{port}").parse().unwrap()
}

fn target(port: u16, token: i64) -> Target {
    let fence = Some(Fence { topology: TopologyId(Uuid::nil()), token });
    Target { address: address(port), login: None, replication: None, fence }
}

fn set(value: u64) -> Verb {
    Verb::ConfigSet { name: "maxmemory".to_owned(), value: value.to_string() }
}

fn fleet(nodes: u16) -> Arc<SimFleet> {
    let fleet = SimFleet::new(7);
    let options = SimOptions::default()
        .with("cluster-node-timeout", "500")
        .with("repl-diskless-sync-delay", "0");
    (1..=nodes).for_each(|port| fleet.add_node(&address(port), &options));
    fleet
}

async fn look(fleet: &SimFleet, port: u16) -> Report {
    fleet.look(&target(port, 1), &Ask::default()).await.unwrap()
}

fn maxmemory(fleet: &SimFleet) -> String {
    fleet.inspect(&address(1)).unwrap().settings["maxmemory"].clone()
}

/// Three primaries on 1 to 3 and their replicas on 4 to 6.
async fn cluster() -> Arc<SimFleet> {
    let fleet = fleet(6);
    form(&fleet).await;
    fleet
}

async fn form(fleet: &SimFleet) {
    let shares = SlotSet::shares(3);
    for port in 1..=6u16 {
        let mut verbs = vec![Verb::SetConfigEpoch(port.into())];
        verbs.extend(shares.get(usize::from(port) - 1).cloned().map(Verb::AddSlots));
        fleet.send(&target(port, 1), &verbs).await.unwrap();
    }
    for port in 1..=6 {
        let meets: Vec<_> = (port + 1..=6).map(|other| Verb::Meet(address(other))).collect();
        fleet.send(&target(port, 1), &meets).await.unwrap();
    }
    fleet.advance(1000);
    for port in 4..=6 {
        let primary = fleet.inspect(&address(port - 3)).unwrap().id;
        fleet.send(&target(port, 1), &[Verb::Replicate(primary)]).await.unwrap();
    }
    fleet.advance(2000);
}

#[tokio::test]
async fn one_seed_is_one_run() {
    let runs = join_all((0..2).map(|_| async {
        let fleet = cluster().await;
        fleet.kill(&address(2));
        fleet.advance(5000);
        join_all([1, 3, 4, 5, 6].map(|port| look(&fleet, port))).await
    }));
    let runs = runs.await;
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn a_cluster_forms_and_keeps_its_keys_over_a_failover() {
    let fleet = cluster().await;
    for port in 1..=6 {
        let report = look(&fleet, port).await;
        let view = report.cluster.unwrap();
        assert!(view.state_ok && !view.shaking_hands() && view.known().len() == 6, "{view:#?}");
        assert_eq!(report.replication.link_up, port > 3);
    }
    let keys: BTreeSet<String> = (0..60).map(|n| format!("key-{n}")).collect();
    for key in &keys {
        fleet.put(key).unwrap();
    }
    fleet.kill(&address(1));
    fleet.advance(10_000);
    assert_eq!(fleet.surviving_keys(), keys);
    assert!(fleet.inspect(&address(4)).unwrap().primary);
    fleet.restart(&address(1), Keep::ClusterOnly);
    fleet.advance(5000);
    let back = fleet.inspect(&address(1)).unwrap();
    assert!(!back.primary && back.keys == fleet.inspect(&address(4)).unwrap().keys);
}

#[tokio::test]
async fn who_was_replaced_without_need_copies_only_what_it_lacks() {
    let fleet = cluster().await;
    fleet.put("before").unwrap();
    let verb = Verb::Failover(FailoverMethod::Graceful);
    for port in 4..=6 {
        fleet.send(&target(port, 1), std::slice::from_ref(&verb)).await.unwrap();
    }
    for n in 0..300 {
        fleet.put(&format!("key-{n}")).unwrap();
        for port in 1..=6 {
            let report = look(&fleet, port).await;
            assert!(!report.replication.sync_in_progress, "all was copied to {port}");
        }
    }
    fleet.advance(1000);
    for (old, new) in [(1, 4), (2, 5), (3, 6)] {
        let (old, new) = (look(&fleet, old).await, look(&fleet, new).await);
        assert_eq!((new.role, old.role), (Role::Primary, Role::Replica));
        assert_eq!(old.keys, new.keys);
        assert_eq!(old.replication.replid, new.replication.replid);
    }
    assert_eq!(fleet.surviving_keys().len(), 301);
}

#[tokio::test]
async fn a_restart_ends_a_failover_and_what_was_held_back_runs_later() {
    let fleet = cluster().await;
    fleet.put("key").unwrap();
    fleet.freeze(&address(1));
    let verb = Verb::Failover(FailoverMethod::Graceful);
    fleet.send(&target(4, 1), &[verb]).await.unwrap();
    fleet.restart(&address(4), Keep::Everything);
    fleet.thaw(&address(1));
    fleet.restart(&address(1), Keep::Everything);
    fleet.advance(5000);
    assert!(fleet.inspect(&address(1)).unwrap().primary);

    // The replica has nothing of what it would have to reach: its primary pauses in vain.
    fleet.freeze(&address(4));
    fleet.freeze(&address(1));
    fleet.thaw(&address(4));
    let verb = Verb::Failover(FailoverMethod::Graceful);
    fleet.send(&target(4, 1), &[verb]).await.unwrap();
    fleet.advance(20);
    fleet.kill(&address(4));
    fleet.thaw(&address(1));
    fleet.plant(&address(1), "another");
    let sent = fleet.send(&target(1, 1), &[Verb::FlushAll]).await;
    assert!(matches!(sent, Err(FleetError::Ambiguous { .. })), "{sent:?}");
    assert!(!fleet.inspect(&address(1)).unwrap().keys.is_empty());
    fleet.advance(6000);
    assert!(fleet.inspect(&address(1)).unwrap().keys.is_empty());
    let late = fleet.calls().pop().unwrap().outcome;
    assert!(matches!(late, CallOutcome::RanLate { result: Ok(()), .. }), "{late:?}");
}

#[tokio::test]
async fn a_lost_reply_is_unsure_and_the_rest_of_the_batch_is_lost() {
    let fleet = fleet(1);
    fleet.fault_at(1, CallFault::LoseReply);
    let sent = fleet.send(&target(1, 1), &[set(1), set(2), set(3)]).await;
    assert!(matches!(sent, Err(FleetError::Ambiguous { .. })), "{sent:?}");
    assert_eq!(maxmemory(&fleet), "2");
    assert_eq!(fleet.calls().len(), 2);
    assert_eq!(fleet.touched(), [address(1)].into());
}

#[tokio::test]
async fn a_late_command_runs_unless_its_connection_was_ended() {
    for (fenced, ran) in [(false, "7"), (true, "0")] {
        let fleet = fleet(1);
        fleet.fault_at(0, CallFault::Late { after_ms: 60_000 });
        let sent = fleet.send(&target(1, 1), &[set(7)]).await;
        assert!(matches!(sent, Err(FleetError::Ambiguous { .. })), "{sent:?}");
        look(&fleet, 1).await;
        fleet.process_restart();
        if fenced {
            fleet.another_process(1).fence(&target(1, 2)).await.unwrap();
        }
        fleet.advance(61_000);
        assert_eq!(maxmemory(&fleet), ran);
        let late = matches!(fleet.calls()[0].outcome, CallOutcome::RanLate { .. });
        assert_eq!(late, !fenced);
    }
}

#[tokio::test]
async fn a_frozen_node_runs_what_it_had_before_anything_newer() {
    let fleet = fleet(1);
    fleet.fault_at(0, CallFault::Freeze);
    let sent = fleet.send(&target(1, 1), &[set(7), set(8)]).await;
    assert!(matches!(sent, Err(FleetError::Ambiguous { .. })), "{sent:?}");
    let unsent = fleet.send(&target(1, 1), &[set(9)]).await;
    assert!(matches!(unsent, Err(FleetError::Unreachable { .. })), "{unsent:?}");
    let unfenced = fleet.fence(&target(1, 1)).await;
    assert!(matches!(unfenced, Err(FleetError::Unreachable { .. })), "{unfenced:?}");
    fleet.thaw(&address(1));
    assert_eq!(maxmemory(&fleet), "8");
}

#[tokio::test]
async fn a_later_holder_shuts_an_earlier_one_out() {
    let fleet = fleet(1);
    let heir = fleet.another_process(1);
    fleet.send(&target(1, 1), &[set(1)]).await.unwrap();
    heir.fence(&target(1, 2)).await.unwrap();
    let refused = fleet.send(&target(1, 1), &[set(7)]).await;
    assert!(matches!(refused, Err(FleetError::Rejected { code, .. }) if code == "FENCED"));
    heir.send(&target(1, 2), &[set(2)]).await.unwrap();
    assert_eq!(maxmemory(&fleet), "2");
}

#[tokio::test]
async fn a_dead_process_hears_nothing_until_it_starts_again() {
    for (fault, value) in [(CallFault::DieBefore, "1"), (CallFault::DieAfter, "2")] {
        let fleet = fleet(1);
        let died = fleet.died();
        fleet.fault_at(1, fault);
        let (short, to) = (Duration::from_millis(5), target(1, 1));
        let verbs = [set(1), set(2), set(3)];
        let never = fleet.send(&to, &verbs);
        assert!(timeout(short, never).await.is_err());
        assert!(died.has_changed().unwrap());
        assert!(timeout(short, look(&fleet, 1)).await.is_err());
        fleet.process_restart();
        look(&fleet, 1).await;
        assert_eq!(maxmemory(&fleet), value);
    }
}
