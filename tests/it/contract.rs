//! One contract for all that call themselves a fleet: the same assertions against the simulation and
//! against real servers of three versions. Where the two disagree, the simulation is wrong.
//!
//! Each contract is a function over a [`Bench`](bench::Bench); the macro makes a test of it in every
//! world (in the simulation with a few seeds), `contract::blank_nodes::sim_7_0`, `contract::blank_nodes::redis_7_0` and so on. Where
//! versions differ, the contract asks for the version.

pub mod bench;
pub mod cluster;
mod failover;
mod faults;
mod gossip;
mod lone;
mod moving;
mod replicas;
mod sentinels;
mod single;

macro_rules! contracts {
    ($($module:ident::$contract:ident,)*) => {$(
        mod $contract {
            use super::bench::World;
            use crate::support::repeats;

            #[tokio::test(flavor = "multi_thread")]
            async fn sim_7_0() {
                for seed in 0..repeats() {
                    super::$module::$contract(World::sim_7_0().seeded(seed)).await;
                }
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn sim_6_2() {
                for seed in 0..repeats() {
                    super::$module::$contract(World::sim_6_2().seeded(seed)).await;
                }
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn sim_valkey_9() {
                for seed in 0..repeats() {
                    super::$module::$contract(World::sim_valkey_9().seeded(seed)).await;
                }
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn redis_7_0() {
                super::$module::$contract(World::redis_7_0()).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn redis_6_2() {
                super::$module::$contract(World::redis_6_2()).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn valkey_9() {
                super::$module::$contract(World::valkey_9()).await;
            }
        }
    )*};
}

contracts! {
    single::blank_nodes,
    single::epochs_and_slots,
    single::settings,
    single::resets,
    single::whoever_is_meant,
    gossip::meetings,
    gossip::forgetting,
    gossip::the_old_identity_lingers,
    gossip::rival_claims,
    gossip::one_epoch_for_two,
    replicas::replicating,
    replicas::a_sleeper_is_replaced,
    replicas::the_dead_are_replaced,
    replicas::orphans_are_adopted,
    replicas::an_uncovered_slot_stops_all,
    failover::graceful,
    failover::forced,
    failover::taken_over,
    failover::failing_back,
    failover::a_stale_election,
    failover::voters_are_asked_twice,
    failover::given_up,
    failover::bumped,
    lone::following,
    lone::guarding_its_writes,
    lone::handing_over,
    lone::dying_between_two_primaries,
    lone::waiting_writes,
    lone::what_the_file_says,
    lone::an_empty_primary,
    lone::which_process_is_meant,
    moving::slot_states,
    moving::moved,
    moving::taken_together,
    moving::opened_the_wrong_way,
    moving::closed_too_early,
    moving::closed_at_the_source_first,
    moving::the_source_fails_over,
    moving::the_target_fails_over,
    moving::the_last_slot,
    moving::the_last_slot_given_away,
    moving::a_target_that_hangs,
    moving::a_full_target,
    moving::functions,
    moving::slot_jobs,
    moving::whoever_is_spoken_to,
    sentinels::blank_sentinels,
    sentinels::they_find_each_other,
    sentinels::a_dead_primary_is_replaced,
    sentinels::a_minority_does_nothing,
    sentinels::forced_failover,
    sentinels::failover_after_letting_go,
    sentinels::ghosts_and_resets,
    sentinels::a_replica_that_left,
    faults::frozen,
    faults::killed,
    faults::fenced,
}
