//! Gives the settings of one node the values back that its marks remember.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::command::{Command, Verb};
use super::{Action, Check, StepKey, seen_or_wait};
use crate::domain::node::Address;
use crate::domain::observation::{MarkKind, Observation, Sighting};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreSettings {
    pub node: Address,
    pub settings: BTreeMap<String, String>,
}

impl Action for RestoreSettings {
    fn key(&self) -> StepKey {
        format!("restore_settings:{}", self.node)
    }

    fn title(&self) -> String {
        let settings: Vec<_> = self.settings.iter().map(|(n, v)| format!("{n} ({v})")).collect();
        format!("Restore {} on {}", settings.join(" and "), self.node)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.node.clone()]
    }

    /// Done when the node shows the original values; the marks themselves are taken away by
    /// whoever looked ([`crate::domain::planner::settled_marks`]).
    fn check(&self, seen: &Observation) -> Check {
        match seen_or_wait(&self.node, seen) {
            Err(wait) => wait,
            Ok(report) => {
                let restored = |(n, v): (&String, &String)| report.settings.get(n) == Some(v);
                if self.settings.iter().all(restored) { Check::Done } else { Check::Ready }
            }
        }
    }

    fn effect(&self, world: &mut Observation) {
        if let Some(Sighting::Seen(report)) = world.nodes.get_mut(&self.node) {
            report.settings.extend(self.settings.clone());
        }
        world.marks.retain(|m| {
            m.node != self.node
                || !matches!(&m.what, MarkKind::Setting(s) if self.settings.contains_key(&s.name))
        });
    }

    fn commands(&self, _seen: &Observation) -> Vec<Command> {
        let set = |(name, value): (&String, &String)| {
            Command::new(&self.node, Verb::ConfigSet { name: name.clone(), value: value.clone() })
        };
        self.settings.iter().map(set).collect()
    }
}
