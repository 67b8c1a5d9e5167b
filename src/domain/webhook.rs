//! Webhooks: what an endpoint subscribed to, and what follows from how it answers.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::event::EventType;

/// How long after each failed attempt the next one comes, at the earliest.
const SCHEDULE: [Duration; 10] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_mins(5),
    Duration::from_mins(30),
    Duration::from_hours(2),
    Duration::from_hours(5),
    Duration::from_hours(10),
    Duration::from_hours(14),
    Duration::from_hours(20),
    Duration::from_hours(24),
];
/// The longest pause that an endpoint can ask for by `Retry-After`.
const PAUSE_AT_MOST: Duration = Duration::from_hours(24);
/// A pause is up to so much longer, so that what failed together does not come back together.
const JITTER: f64 = 0.2;
/// An endpoint that failed for this long without a success is disabled.
pub const FAILING_AT_MOST: Duration = Duration::from_hours(5 * 24);

/// How far a delivery has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It is to be tried, for the first time or again.
    Pending,
    Delivered,
    /// Nobody tries any more; `redeliver` does.
    Failed,
}

/// One attempt to hand an event over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attempt {
    pub at: DateTime<Utc>,
    /// What the endpoint answered; null where no answer came.
    pub status: Option<u16>,
    pub duration_ms: u64,
    /// Why it failed, in words; null where it did not.
    pub error: Option<String>,
}

/// Why a webhook gets nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DisabledBecause {
    /// An admin asked for it.
    Asked,
    /// It answered 410 (gone).
    Gone,
    /// It failed for five days without a success.
    Failing,
}

impl DisabledBecause {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Gone => "gone",
            Self::Failing => "failing",
        }
    }
}

/// What comes after an attempt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    Delivered,
    /// Again, after this pause.
    Again(Duration),
    /// It was the last attempt.
    GiveUp,
    /// The endpoint wants nothing any more.
    Gone,
}

/// Judges an attempt: `failures` counts those that failed before it, `jitter` is between 0 and 1.
#[must_use]
pub fn judge(
    status: Option<u16>,
    retry_after: Option<Duration>,
    failures: u32,
    jitter: f64,
) -> Verdict {
    match status {
        Some(200..=299) => return Verdict::Delivered,
        Some(410) => return Verdict::Gone,
        Some(_) | None => {}
    }
    let pause = usize::try_from(failures).ok().and_then(|n| SCHEDULE.get(n));
    let Some(pause) = pause else { return Verdict::GiveUp };
    let asked = retry_after.unwrap_or_default().min(PAUSE_AT_MOST);
    Verdict::Again(pause.mul_f64(1.0 + JITTER * jitter.clamp(0.0, 1.0)).max(asked))
}

/// What is wrong with a type that somebody wants to subscribe to: one that there is, or a beginning
/// of some with `*` behind it.
#[must_use]
pub fn fault_of_type(wanted: &str) -> Option<String> {
    let known = |start: &str| EventType::ALL.iter().any(|t| t.as_str().starts_with(start));
    let fits = match wanted.strip_suffix('*') {
        Some(start) => known(start),
        None => EventType::parse(wanted).is_some(),
    };
    (!fits).then(|| {
        format!("there is no event type `{wanted}`; write one such as failover.completed, or failover.* for all that begin so")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_tried_again_for_three_days_and_then_given_up() {
        let pauses: Vec<Verdict> = (0..11).map(|n| judge(Some(500), None, n, 0.0)).collect();
        assert_eq!(pauses[0], Verdict::Again(Duration::from_secs(5)));
        assert_eq!(pauses[9], Verdict::Again(Duration::from_hours(24)));
        assert_eq!(pauses[10], Verdict::GiveUp);
        assert_eq!(judge(None, None, u32::MAX, 0.0), Verdict::GiveUp);
    }

    #[test]
    fn an_endpoint_may_ask_for_time_and_say_that_it_is_gone() {
        let asked = |seconds| judge(Some(429), Some(Duration::from_secs(seconds)), 0, 1.0);
        assert_eq!(asked(1), Verdict::Again(Duration::from_secs(6)));
        assert_eq!(asked(60), Verdict::Again(Duration::from_secs(60)));
        assert_eq!(asked(u64::MAX), Verdict::Again(PAUSE_AT_MOST));
        assert_eq!(judge(Some(410), None, 0, 0.0), Verdict::Gone);
        assert_eq!(judge(Some(204), None, 3, 0.0), Verdict::Delivered);
        assert!(matches!(judge(Some(302), None, 0, 0.0), Verdict::Again(_)), "no redirects");
    }

    #[test]
    fn only_types_that_there_are_can_be_subscribed_to() {
        for good in ["*", "plan.*", "node.down", "failover.completed"] {
            assert_eq!(fault_of_type(good), None, "{good}");
        }
        for bad in ["", "plan", "nodes.*", "node.*down", "Node.down", "**"] {
            assert!(fault_of_type(bad).is_some(), "{bad}");
        }
    }
}
