//! Moving slots between two nodes that serve: what is said while it goes on, how fast it may go,
//! and in which order. Nothing here does I/O; `engine/mover` carries it out.

pub mod chunk;
pub mod pace;
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

/// How long a node stands still while it gives a key away, in milliseconds: 30 ms a MiB for what has
/// many small parts, 2 ms a MiB for a string (measured on Redis 7.0; a hash of a million fields, 61
/// MiB, took 1.85 s).
#[must_use]
pub fn predicted_stall_ms(kind: &str, bytes: u64) -> u64 {
    let per_mib = if kind == "string" { 2 } else { 30 };
    bytes.saturating_mul(per_mib) / (1024 * 1024)
}

/// Whether a key stalls its node for so much longer than a batch may that it is announced, and moves
/// alone.
#[must_use]
pub fn is_big(stall_ms: u64, max_latency_ms: u64) -> bool {
    stall_ms > max_latency_ms.saturating_mul(4)
}

/// From this size on a key's type is asked for, since it decides how long it takes.
pub const LARGE_BYTES: u64 = 256 * 1024;
