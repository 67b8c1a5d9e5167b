//! Moving slots between two nodes that serve: what is said while it goes on, how fast it may go,
//! and in which order. Nothing here does I/O; `engine/mover` carries it out.

pub mod chunk;
pub mod closing;
pub mod pace;
pub mod survey;
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

/// What a plan is expected to take and move; null where that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Estimate {
    /// For moving the slots; what comes before and after it is not counted.
    pub seconds: Option<f64>,
    /// Slots that move, or that are given to nodes for the first time.
    pub slots: Option<u64>,
    /// Keys in slots that move.
    pub keys: Option<u64>,
    /// Memory that these keys take, from a sample.
    pub bytes: Option<u64>,
}

/// What the time that a key's move takes depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// One piece of memory, copied as it is.
    Text,
    /// Many elements, each written and read by itself.
    Collection,
}

impl KeyKind {
    /// By the answer to `TYPE`.
    #[must_use]
    pub fn of(name: &str) -> Self {
        if name == "string" { Self::Text } else { Self::Collection }
    }
}

/// How long a node is expected to stand still while a key moves, in milliseconds.
#[must_use]
pub fn predicted_stall_ms(kind: KeyKind, bytes: u64) -> u64 {
    let per_megabyte = match kind {
        KeyKind::Text => 2,
        KeyKind::Collection => 30,
    };
    bytes.saturating_mul(per_megabyte).div_ceil(1_000_000)
}

/// Whether a stall is too long for a key to go with others, so that it is announced and moved alone.
#[must_use]
pub fn is_big(stall_ms: u64, max_latency_ms: u64) -> bool {
    stall_ms > max_latency_ms.saturating_mul(4)
}

/// Whether a key may be big, so that its type is asked for.
#[must_use]
pub fn may_be_big(bytes: u64, max_latency_ms: u64) -> bool {
    is_big(predicted_stall_ms(KeyKind::Collection, bytes), max_latency_ms)
}
