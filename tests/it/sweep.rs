//! Every command of every operation, gone wrong in every way: the world comes out the same.

use reeve::domain::node::{Flavor, Version};

use crate::support::sweep::{Findings, Mistake, Scenario, Sweep, Way};

async fn sweep(scenario: Scenario) {
    go_wrong(scenario, &Way::ALL).await;
}

/// Slots move: primaries fail over meanwhile, too.
async fn sweep_of_moves(scenario: Scenario) {
    go_wrong(scenario, &[Way::MOVING.as_slice(), &Way::ALL].concat()).await;
}

async fn go_wrong(scenario: Scenario, ways: &[Way]) {
    let stride = match scenario {
        Scenario::ReplaceNode | Scenario::ReplaceSpec | Scenario::RemoveShard => 61,
        // A quarter of all slots moves in each case.
        Scenario::AddShard => 199,
        _ => 23,
    };
    Sweep::new().await.through(scenario, ways, stride).await;
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
async fn a_put_that_replaces_two_nodes_comes_out_the_same_whatever_goes_wrong() {
    sweep(Scenario::ReplaceSpec).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reshard_comes_out_the_same_whatever_goes_wrong() {
    sweep_of_moves(Scenario::Reshard).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_comes_out_the_same_whatever_goes_wrong() {
    sweep_of_moves(Scenario::Rebalance).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_added_shard_comes_out_the_same_whatever_goes_wrong() {
    sweep_of_moves(Scenario::AddShard).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_shard_comes_out_the_same_whatever_goes_wrong() {
    sweep_of_moves(Scenario::RemoveShard).await;
}

/// Redis 8.4 has the target take the slots: whoever follows finds the job again.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_comes_out_the_same_whatever_goes_wrong() {
    let ways = [Way::MOVING.as_slice(), &Way::ALL].concat();
    Sweep::of(Flavor::Redis, Version::new(8, 4, 0))
        .await
        .through(Scenario::Reshard, &ways, 23)
        .await;
}

/// For so long that their replicas are elected meanwhile: that was once not gone on from.
#[tokio::test(flavor = "multi_thread")]
async fn a_reshard_outlasts_nodes_that_freeze() {
    let found = Sweep::new().await.run(Scenario::Reshard, &[Way::Freeze], false, 3).await;
    assert!(found.cases > 10, "{found:?}");
    assert!(found.divergences.is_empty(), "{}", found.divergences.join("\n"));
}

/// Each mistake shows only when something goes wrong: undisturbed, all comes out well.
async fn with(mistake: Mistake, way: Way) -> Findings {
    Sweep::with_mistake(mistake).await.run(Scenario::Create, &[way], false, 3).await
}

fn finds(found: &Findings) {
    let disturbed = found.divergences.iter().all(|d| !d.contains("undisturbed"));
    assert!(!found.divergences.is_empty() && disturbed, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_finds_a_lease_that_does_not_fence_the_database() {
    finds(&with(Mistake::NoToken, Way::FrozenSender).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_finds_marks_that_come_after_their_commands() {
    finds(&with(Mistake::LateMarks, Way::DieAfter).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_finds_nodes_that_are_not_fenced() {
    finds(&with(Mistake::NoFence, Way::LateAndDie).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_finds_steps_that_are_judged_from_stale_looks() {
    finds(&with(Mistake::StaleLooks, Way::LoseReply).await);
}

async fn moving_with(mistake: Mistake, way: Way) -> Findings {
    Sweep::with_mistake(mistake).await.run(Scenario::Reshard, &[way], false, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_finds_slots_that_go_before_they_are_empty() {
    let found = moving_with(Mistake::NodeTooEarly, Way::DieAfter).await;
    let all = found.divergences.join("\n");
    assert!(all.contains("undisturbed") && all.contains("would drop the keys"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_finds_keys_that_do_not_replace_others() {
    finds(&moving_with(Mistake::NoReplace, Way::LoseSource).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_finds_slots_that_are_not_opened_again_after_a_failover() {
    finds(&moving_with(Mistake::NoRearming, Way::LoseSource).await);
    finds(&moving_with(Mistake::NoRearming, Way::LoseTarget).await);
}
