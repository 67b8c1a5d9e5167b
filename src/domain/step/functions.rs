//! Gives a primary without slots the function libraries of those that serve: clients call functions
//! where the keys are.
//!
//! What the donor dumps replaces libraries of the same name, so that it can be said again whatever came
//! of it before; there is nobody yet who could call what is replaced. A dump holds all that its donor has:
//! what others do not have alike is deleted again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::command::{Command, ShownCommand};
use super::{Action, Check, StepKey, Wait, seen_or_wait};
use crate::domain::functions::Libraries;
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Sighting};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyFunctions {
    pub node: Address,
    /// Whose dump it gets.
    pub from: Address,
    /// What it is to have: libraries that all primaries that serve have alike.
    pub libraries: Libraries,
    /// What else there is, by name: who has it, and as what.
    pub disputed: BTreeMap<String, BTreeMap<Address, String>>,
}

impl CopyFunctions {
    /// What comes with the dump and is not to stay.
    #[must_use]
    pub fn excess(&self) -> Libraries {
        let theirs = |had: &BTreeMap<Address, String>| had.get(&self.from).cloned();
        let excess = self.disputed.iter();
        excess.filter_map(|(name, had)| Some((name.clone(), theirs(had)?))).collect()
    }
}

impl Action for CopyFunctions {
    fn key(&self) -> StepKey {
        format!("copy_functions:{}", self.node)
    }

    fn title(&self) -> String {
        let names: Vec<&str> = self.libraries.keys().map(String::as_str).collect();
        let (from, node) = (&self.from, &self.node);
        match names.as_slice() {
            [] => format!("Copy the function libraries of {from} to {node}"),
            [one] => format!("Copy the function library {one} from {from} to {node}"),
            several => {
                format!("Copy the function libraries {} from {from} to {node}", several.join(", "))
            }
        }
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.node.clone(), self.from.clone()]
    }

    fn check(&self, seen: &Observation) -> Check {
        for node in [&self.node, &self.from] {
            let report = match seen_or_wait(node, seen) {
                Err(wait) => return wait,
                Ok(report) => report,
            };
            if report.libraries().is_none() {
                let why = format!("the function libraries of {node} were not read yet");
                return Check::Waiting(Wait::for_gossip(node, why));
            }
        }
        let there = seen.report(&self.node).and_then(|r| r.libraries()).unwrap_or_default();
        let has = |(name, digest): (&String, &String)| there.get(name) == Some(digest);
        let excess = self.excess();
        if self.libraries.iter().all(has) && !excess.iter().any(has) {
            Check::Done
        } else {
            Check::Ready
        }
    }

    fn effect(&self, world: &mut Observation) {
        let Some(Sighting::Seen(report)) = world.nodes.get_mut(&self.node) else { return };
        let mut libraries = report.libraries().unwrap_or_default();
        libraries.retain(|name, _| !self.excess().contains_key(name));
        libraries.extend(self.libraries.clone());
        report.functions = !libraries.is_empty();
        report.libraries = Some(libraries);
    }

    /// What is restored is known only when it was dumped; `engine/functions` passes it on.
    fn commands(&self, _seen: &Observation) -> Vec<Command> {
        vec![]
    }

    fn shown(&self, _seen: &Observation) -> Vec<ShownCommand> {
        let shown = |node: &Address, command: String| ShownCommand { node: node.clone(), command };
        let mut commands = vec![
            shown(&self.from, "FUNCTION DUMP".to_owned()),
            shown(&self.node, "FUNCTION RESTORE <what was dumped> REPLACE".to_owned()),
        ];
        let excess = self.excess();
        let delete = |name: &String| shown(&self.node, format!("FUNCTION DELETE {name}"));
        commands.extend(excess.keys().map(delete));
        commands
    }
}
