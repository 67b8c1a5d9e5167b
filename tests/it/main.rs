//! One test binary, so that the crate is linked once. Everything here runs on real servers.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

#[path = "../architecture.rs"]
mod architecture;
#[path = "../support/mod.rs"]
mod support;

mod adopt;
mod advice;
mod contract;
mod create;
mod crowd;
mod demo;
mod docker;
mod drain;
mod endurance;
mod failover;
mod failovers;
mod fleet;
mod fleet_converse;
mod idempotency;
mod instances;
mod interrupted;
mod journal;
mod lifecycle;
mod members;
mod metrics;
mod moves;
mod moves_held_up;
mod moves_refused;
mod openapi;
mod outage;
mod put;
mod refusals;
mod replication;
mod safety;
mod sentinel;
mod stream;
mod survival;
mod sweep;
mod sweep_lone;
mod sweep_watched;
mod watch;
mod webhooks;
