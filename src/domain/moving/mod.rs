//! Moving slots between two nodes that serve: what is said while it goes on, how fast it may go,
//! and in which order. Nothing here does I/O; `engine/mover` carries it out.

pub mod talk;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A key whose move stalls its node for longer than any batch may: it is moved last, and alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct BigKey {
    pub slot: u16,
    /// Its name, with bytes that are no printable ASCII as `\xNN`.
    pub key: String,
    /// What `MEMORY USAGE` says.
    pub bytes: u64,
    /// How long the node that gives it away is expected to stand still, in milliseconds.
    pub expected_ms: u64,
}
