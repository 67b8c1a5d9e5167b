//! One test binary, so that the crate is linked once. Everything here runs on real servers.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

#[path = "../architecture.rs"]
mod architecture;
#[path = "../support/mod.rs"]
mod support;

mod create;
mod demo;
mod docker;
mod endurance;
mod fleet;
mod openapi;
mod refusals;
mod stream;
mod watch;
