//! Changes settings of one node for the time of a plan; a mark remembers what they were.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::command::{Command, Verb};
use super::{Action, Check, StepKey, seen_or_wait};
use crate::domain::node::Address;
use crate::domain::observation::{Mark, MarkKind, Observation, SettingMark, Sighting};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetTemporary {
    pub node: Address,
    pub settings: BTreeMap<String, String>,
}

impl SetTemporary {
    /// What still differs. A setting that the node does not have (it reported none) is left alone.
    fn differing<'a>(&'a self, seen: &'a Observation) -> Vec<(&'a String, &'a String, &'a String)> {
        let Some(report) = seen.report(&self.node) else { return vec![] };
        self.settings
            .iter()
            .filter_map(|(name, value)| Some((name, value, report.settings.get(name)?)))
            .filter(|(_, value, now)| value != now)
            .collect()
    }
}

impl Action for SetTemporary {
    fn key(&self) -> StepKey {
        format!("set_temporary:{}", self.node)
    }

    fn title(&self) -> String {
        let settings: Vec<_> = self.settings.iter().map(|(n, v)| format!("{n} to {v}")).collect();
        format!("Set {} on {} for a while", settings.join(" and "), self.node)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.node.clone()]
    }

    fn check(&self, seen: &Observation) -> Check {
        match seen_or_wait(&self.node, seen) {
            Err(wait) => wait,
            Ok(_) if self.differing(seen).is_empty() => Check::Done,
            Ok(_) => Check::Ready,
        }
    }

    fn effect(&self, world: &mut Observation) {
        let marks = self.marks(world);
        world.marks.extend(marks);
        if let Some(Sighting::Seen(report)) = world.nodes.get_mut(&self.node) {
            for (name, value) in &self.settings {
                if let Some(now) = report.settings.get_mut(name) {
                    now.clone_from(value);
                }
            }
        }
    }

    fn commands(&self, seen: &Observation) -> Vec<Command> {
        let set = |(name, value, _): (&String, &String, &String)| {
            Command::new(&self.node, Verb::ConfigSet { name: name.clone(), value: value.clone() })
        };
        self.differing(seen).into_iter().map(set).collect()
    }

    /// A mark that is already there keeps the older original: that is the one to go back to.
    fn marks(&self, seen: &Observation) -> Vec<Mark> {
        let marked = |name: &str| {
            seen.marks_on(&self.node)
                .any(|m| matches!(&m.what, MarkKind::Setting(s) if s.name == name))
        };
        self.differing(seen)
            .into_iter()
            .filter(|(name, ..)| !marked(name))
            .map(|(name, _, original)| Mark {
                node: self.node.clone(),
                what: MarkKind::Setting(SettingMark {
                    name: name.clone(),
                    original: original.clone(),
                }),
            })
            .collect()
    }
}
