//! What Reeve knows and decides. Pure: no I/O, no clock, no randomness; whatever changes with time
//! or chance comes in as a value.
//!
//! The words are those of `ARCHITECTURE.md`, one per concept. The invariants:
//!
//! - A [`topology::Shards`] covers every slot exactly once.
//! - Who is primary is seen ([`view`]), never stored; only a plan's terms pin one, while it runs.
//! - A step is complete data: whoever performs it has nothing left to choose.
//! - [`step::Action::check`] alone says whether a step is done, ready, waiting or blocked, and it
//!   says so of what was seen, never of a command's reply.

pub mod access;
pub mod advice;
pub mod balance;
pub mod credential;
pub mod diagnosis;
pub mod event;
pub mod event_data;
pub mod failovers;
pub mod fault;
pub mod files;
pub mod functions;
pub mod handover;
pub mod hazard;
pub mod health;
pub mod id;
pub mod intent;
pub mod lineage;
pub mod moving;
pub mod node;
pub mod observation;
pub mod placement;
pub mod plan;
pub mod planner;
pub mod policy;
pub mod published;
pub mod receiver;
pub mod refusal;
mod schema;
pub mod sentinel;
pub mod settled;
pub mod size;
pub mod slot;
pub mod spec;
pub mod step;
pub mod succession;
pub mod survivability;
pub mod topology;
pub mod view;
pub mod webhook;

/// Times come from the database, or from the clock at the edge; here they are only compared.
pub type Timestamp = chrono::DateTime<chrono::Utc>;
