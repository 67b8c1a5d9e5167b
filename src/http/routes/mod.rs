//! One resource a file.

pub mod adoptions;
pub mod advice;
pub mod credentials;
pub mod events;
pub mod files;
pub mod findings;
pub mod instances;
pub mod keyslot;
pub mod me;
pub mod nodes;
pub mod ops;
pub mod pages;
pub mod plans;
pub mod shape;
pub mod tokens;
pub mod topologies;
pub mod webhooks;
