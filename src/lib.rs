//! Reeve keeps Redis (and Valkey) deployments in the shape that their owners asked for.
//! `ARCHITECTURE.md` is the map.

pub mod app;
pub mod client;
pub mod clock;
pub mod demo;
pub mod domain;
pub mod engine;
pub mod fleet;
pub mod http;
pub mod settings;
pub mod shutdown;
pub mod store;
pub mod telemetry;
