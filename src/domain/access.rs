//! Who may do what: roles, and the topologies that a token is limited to.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::node::Labels;

/// What a token may do; each role may all that the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Also makes and steers plans.
    Operator,
    /// Also tokens and credentials.
    Admin,
}

impl Role {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// The topologies that a token is limited to: those that are named, and those that carry all of
/// the labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    #[serde(default)]
    pub names: Vec<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl Scope {
    #[must_use]
    pub fn covers(&self, name: &str, labels: &Labels) -> bool {
        let labelled = !self.labels.is_empty()
            && self.labels.iter().all(|(k, v)| labels.get(k).is_some_and(|l| l == v));
        labelled || self.names.iter().any(|n| n == name)
    }

    /// The names of those that it covers; and those that it names, there or not: what became of a
    /// topology is told to whoever might see it, also when it is gone.
    #[must_use]
    pub fn among(&self, topologies: &[(String, Labels)]) -> Vec<String> {
        let covered = topologies.iter().filter(|(name, labels)| self.covers(name, labels));
        let covered: BTreeSet<&String> = covered.map(|(name, _)| name).chain(&self.names).collect();
        covered.into_iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_scope_covers_nothing() {
        let labels: Labels = [("team".to_owned(), "shop".to_owned())].into();
        assert!(!Scope::default().covers("orders", &labels));
        assert!(
            Scope { names: vec!["orders".into()], ..Scope::default() }.covers("orders", &labels)
        );
        let by_label = Scope { labels: labels.clone(), ..Scope::default() };
        assert!(by_label.covers("orders", &labels));
        assert!(!by_label.covers("orders", &Labels::new()));
    }

    #[test]
    fn roles_are_ordered() {
        assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
    }
}
