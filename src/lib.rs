//! Reeve keeps Redis (and Valkey) deployments in the shape that their owners asked for.
//! `ARCHITECTURE.md` is the map.

pub mod clock;
pub mod domain;
pub mod engine;
pub mod fleet;
pub mod store;
