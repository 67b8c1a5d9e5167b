//! Gives one node the lasting settings and the replication login that the topology wants.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::command::{Command, Verb};
use super::{Action, Check, StepKey, seen_or_wait};
use crate::domain::node::Address;
use crate::domain::observation::{Mark, MarkKind, Observation, Report, Sighting};
use crate::domain::size::bytes;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configure {
    pub node: Address,
    pub settings: BTreeMap<String, String>,
    /// Whether the replication login is to be the topology's.
    pub login: bool,
}

impl Configure {
    fn differing<'a>(&'a self, report: &'a Report) -> Vec<(&'a String, &'a String)> {
        let differs = |(name, value): &(&String, &String)| {
            !report.settings.get(*name).is_some_and(|now| same_value(now, value))
        };
        self.settings.iter().filter(differs).collect()
    }

    fn needs_login(&self, report: &Report) -> bool {
        self.login && report.replication_login_as_wanted == Some(false)
    }
}

impl Action for Configure {
    fn key(&self) -> StepKey {
        format!("configure:{}", self.node)
    }

    fn title(&self) -> String {
        let mut what: Vec<_> = self.settings.iter().map(|(n, v)| format!("{n} to {v}")).collect();
        if self.login {
            what.push("the replication login".to_owned());
        }
        format!("Set {} on {}", what.join(", "), self.node)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.node.clone()]
    }

    fn check(&self, seen: &Observation) -> Check {
        match seen_or_wait(&self.node, seen) {
            Err(wait) => wait,
            Ok(r) if self.differing(r).is_empty() && !self.needs_login(r) => Check::Done,
            Ok(_) => Check::Ready,
        }
    }

    fn effect(&self, world: &mut Observation) {
        let marks = self.marks(world);
        world.marks.extend(marks);
        if let Some(Sighting::Seen(report)) = world.nodes.get_mut(&self.node) {
            report.settings.extend(self.settings.clone());
            if self.login {
                report.replication_login_as_wanted = Some(true);
                report.has_replication_login = true;
            }
        }
    }

    fn commands(&self, seen: &Observation) -> Vec<Command> {
        let Some(report) = seen.report(&self.node) else { return vec![] };
        let set = |(name, value): (&String, &String)| {
            Command::new(&self.node, Verb::ConfigSet { name: name.clone(), value: value.clone() })
        };
        let mut commands: Vec<_> = self.differing(report).into_iter().map(set).collect();
        if self.needs_login(report) {
            commands.push(Command::new(&self.node, Verb::SetReplicationLogin));
        }
        commands
    }

    fn marks(&self, seen: &Observation) -> Vec<Mark> {
        let mark = Mark { node: self.node.clone(), what: MarkKind::Unwritten };
        if seen.marks.contains(&mark) { vec![] } else { vec![mark] }
    }
}

/// Whether two ways of writing a setting mean the same: servers answer `2147483648` for `2gb`.
pub(in crate::domain) fn same_value(left: &str, right: &str) -> bool {
    left == right || matches!((bytes(left), bytes(right)), (Some(a), Some(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::same_value;

    #[test]
    fn sizes_are_compared_by_what_they_mean() {
        assert!(same_value("2147483648", "2gb"));
        assert!(same_value("1000", "1k"));
        assert!(!same_value("1024", "1k"));
        assert!(same_value("allkeys-lru", "allkeys-lru"));
        assert!(!same_value("", "0"));
        assert!(!same_value("99999999999999999999gb", "1gb"));
    }
}
