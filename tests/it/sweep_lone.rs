//! The same for topologies of mode replication: every command of every operation, gone wrong in every
//! way.

use crate::support::sweep::{Scenario, Sweep, Way};

async fn sweep(scenario: Scenario) {
    let stride = match scenario {
        Scenario::ReplaceNode | Scenario::ReplaceSpec => 23,
        _ => 11,
    };
    Sweep::lone().await.through(scenario, &Way::ALL, stride).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_comes_out_the_same_whatever_goes_wrong() {
    sweep(Scenario::Create).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dissolve_comes_out_the_same_whatever_goes_wrong() {
    sweep(Scenario::Dissolve).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revert_comes_out_the_same_whatever_goes_wrong() {
    sweep(Scenario::Revert).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_comes_out_the_same_whatever_goes_wrong() {
    sweep(Scenario::Failover).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_added_replica_comes_out_the_same_whatever_goes_wrong() {
    sweep(Scenario::AddReplica).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_replica_comes_out_the_same_whatever_goes_wrong() {
    sweep(Scenario::RemoveReplica).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_primary_comes_out_the_same_whatever_goes_wrong() {
    sweep(Scenario::ReplaceNode).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_zone_comes_out_the_same_whatever_goes_wrong() {
    sweep(Scenario::Drain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_comes_out_the_same_whatever_goes_wrong() {
    sweep(Scenario::ReplaceSpec).await;
}
