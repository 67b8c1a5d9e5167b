//! What a step can cost, and who accepted it.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Kinds of harm, the least first.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    Default,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum HazardKind {
    #[default]
    None,
    WritePause,
    RedundancyLoss,
    Outage,
    DataLoss,
}

/// One possible harm of one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Hazard {
    /// By which it is accepted, for example `flush:127.0.0.1:7001`.
    pub id: String,
    pub kind: HazardKind,
    /// The key of the step that has it.
    pub step: String,
    pub why: String,
    /// How long it is expected to last, in milliseconds, where it passes by itself.
    pub expected_ms: Option<u64>,
}

/// The ceiling that a caller may accept as a whole; `data_loss` is not among them, since each such
/// hazard is accepted by its id.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Ceiling {
    #[default]
    None,
    WritePause,
    RedundancyLoss,
    Outage,
}

impl Ceiling {
    fn kind(self) -> HazardKind {
        match self {
            Self::None => HazardKind::None,
            Self::WritePause => HazardKind::WritePause,
            Self::RedundancyLoss => HazardKind::RedundancyLoss,
            Self::Outage => HazardKind::Outage,
        }
    }
}

/// What the caller consented to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
pub struct Accepted {
    pub ceiling: Ceiling,
    /// Ids of accepted hazards.
    pub ids: BTreeSet<String>,
}

impl Accepted {
    /// Whether a hazard needs no further consent. A write pause that is expected to stay below
    /// `free_pause_ms` needs none.
    #[must_use]
    pub fn covers(&self, hazard: &Hazard, free_pause_ms: u64) -> bool {
        let short = hazard.kind == HazardKind::WritePause
            && hazard.expected_ms.is_some_and(|ms| ms < free_pause_ms);
        short
            || self.ids.contains(&hazard.id)
            || (hazard.kind != HazardKind::DataLoss && hazard.kind <= self.ceiling.kind())
    }

    /// Those of `hazards` that still need consent.
    #[must_use]
    pub fn lacking(&self, hazards: &[Hazard], free_pause_ms: u64) -> Vec<Hazard> {
        hazards.iter().filter(|h| !self.covers(h, free_pause_ms)).cloned().collect()
    }
}

impl fmt::Display for HazardKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::WritePause => "write_pause",
            Self::RedundancyLoss => "redundancy_loss",
            Self::Outage => "outage",
            Self::DataLoss => "data_loss",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hazard(kind: HazardKind, expected_ms: Option<u64>) -> Hazard {
        Hazard { id: "x:1".into(), kind, step: "x".into(), why: String::new(), expected_ms }
    }

    #[test]
    fn data_loss_is_accepted_by_id_alone() {
        let ceiling = Accepted { ceiling: Ceiling::Outage, ids: BTreeSet::new() };
        assert!(ceiling.covers(&hazard(HazardKind::RedundancyLoss, None), 250));
        assert!(!ceiling.covers(&hazard(HazardKind::DataLoss, None), 250));
        let named = Accepted { ceiling: Ceiling::None, ids: ["x:1".to_owned()].into() };
        assert!(named.covers(&hazard(HazardKind::DataLoss, None), 250));
    }

    #[test]
    fn only_a_short_write_pause_is_free() {
        let nothing = Accepted::default();
        assert!(nothing.covers(&hazard(HazardKind::WritePause, Some(100)), 250));
        assert!(!nothing.covers(&hazard(HazardKind::WritePause, Some(250)), 250));
        assert!(!nothing.covers(&hazard(HazardKind::WritePause, None), 250));
    }
}
