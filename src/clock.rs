//! The edge where time and fresh ids come from. Everything inside takes them as values; what must
//! be ordered or fenced uses the database's clock instead.

use chrono::{DateTime, Utc};
use uuid::Uuid;

#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
pub fn now() -> DateTime<Utc> {
    Utc::now()
}

/// A new id (UUID v7, RFC 9562): ascending by time.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that makes ids")]
pub fn new_id() -> Uuid {
    Uuid::now_v7()
}

/// A number between 0 and 1, for jitter.
#[must_use]
pub fn jitter() -> f64 {
    let mut bytes = [0u8; 4];
    // Without randomness there is no jitter, which is no reason to fail.
    match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}
