//! A node's health, with hysteresis: one miss makes it suspect, several in a row make it down, one
//! answer makes it up.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::event::EventType;

/// How many misses in a row make a node `down`.
pub const MISSES_UNTIL_DOWN: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    Up,
    /// It missed an answer and is looked at more often.
    Suspect,
    Down,
    #[default]
    Unknown,
}

impl Health {
    /// The health after one more look: `misses` counts the unanswered ones in a row, 0 after an
    /// answer.
    #[must_use]
    pub fn after(misses: u32) -> Self {
        match misses {
            0 => Self::Up,
            m if m < MISSES_UNTIL_DOWN => Self::Suspect,
            _ => Self::Down,
        }
    }

    /// The event that tells of a change, if it is worth one.
    #[must_use]
    pub fn event(self, next: Self) -> Option<EventType> {
        match (self, next) {
            (Self::Down, Self::Up) => Some(EventType::NodeRecovered),
            (Self::Unknown | Self::Suspect, Self::Up) => Some(EventType::NodeUp),
            (Self::Up | Self::Unknown, Self::Suspect) => Some(EventType::NodeSuspect),
            (Self::Up | Self::Unknown | Self::Suspect, Self::Down) => Some(EventType::NodeDown),
            (Self::Up, Self::Up)
            | (Self::Suspect, Self::Suspect)
            | (Self::Down, Self::Down | Self::Suspect)
            | (_, Self::Unknown) => None,
        }
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_miss_makes_suspect_several_make_down_one_answer_makes_up() {
        let path: Vec<_> = [0, 1, 2, 3, 4, 0].iter().map(|&m| Health::after(m)).collect();
        use Health as H;
        assert_eq!(path, [H::Up, H::Suspect, H::Suspect, H::Down, H::Down, H::Up]);
        let told: Vec<_> = path.windows(2).filter_map(|w| w[0].event(w[1])).collect();
        assert_eq!(told, [EventType::NodeSuspect, EventType::NodeDown, EventType::NodeRecovered]);
    }
}
