//! Has one Sentinel watch the deployment, as it is wanted.
//!
//! What a Sentinel logs in with cannot be read there; but one with the wrong login holds a primary for
//! down that answers everybody else, and then it is told again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::command::{Command, Verb};
use super::{Action, Blocker, Check, StepKey, Wait, seen_or_wait};
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Role, Sighting};
use crate::domain::sentinel::Watch as Seen;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    pub sentinel: Address,
    pub name: String,
    /// Whom to begin with.
    pub primary: Address,
    /// The data nodes, any of which may be primary by now.
    pub members: Vec<Address>,
    pub quorum: u16,
    /// Further options, where they are not as the Sentinel has them by itself.
    pub options: BTreeMap<String, u64>,
    /// Whether it needs a login for the data nodes.
    pub login: bool,
}

impl Watch {
    fn differing(&self, now: &Seen) -> Vec<(&str, u64)> {
        let has = |option: &str| match option {
            "down-after-milliseconds" => Some(now.down_after_ms),
            "failover-timeout" => Some(now.failover_timeout_ms),
            "parallel-syncs" => Some(now.parallel_syncs),
            _ => None,
        };
        let quorum = (now.quorum != self.quorum).then_some(("quorum", u64::from(self.quorum)));
        let options = self.options.iter().map(|(option, value)| (option.as_str(), *value));
        quorum.into_iter().chain(options.filter(|(o, value)| has(o) != Some(*value))).collect()
    }

    /// Whether the Sentinel alone does not get on with a primary that answers.
    fn is_locked_out(&self, now: &Seen, seen: &Observation) -> bool {
        let well = now.primary_in(seen).and_then(|a| seen.report(a));
        let well = well.is_some_and(|r| r.role == Role::Primary && !r.loading);
        self.login && well && (now.is_down() || now.has("disconnected"))
    }

    /// Whether what it watches under this name is not this deployment.
    fn is_elsewhere(&self, now: &Seen, seen: &Observation) -> bool {
        let ours = |a: &Address| self.members.contains(a);
        !now.primary_in(seen).is_some_and(ours)
            && !now.replicas.iter().any(|r| ours(r.address_in(seen)))
    }
}

impl Action for Watch {
    fn key(&self) -> StepKey {
        format!("watch:{}", self.sentinel)
    }

    fn title(&self) -> String {
        format!("Have {} watch `{}` with quorum {}", self.sentinel, self.name, self.quorum)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.sentinel.clone()]
    }

    fn check(&self, seen: &Observation) -> Check {
        let report = match seen_or_wait(&self.sentinel, seen) {
            Ok(report) => report,
            Err(wait) => return wait,
        };
        let Some(view) = &report.sentinel else {
            return Check::Blocked(Blocker {
                code: "not_a_sentinel",
                node: Some(self.sentinel.clone()),
                why: format!("{} is no Sentinel", self.sentinel),
                recovery: "Name a server that was started with --sentinel, then retry the plan.",
            });
        };
        match view.watches.get(&self.name) {
            None => match seen_or_wait(&self.primary, seen) {
                Ok(_) => Check::Ready,
                Err(wait) => wait,
            },
            Some(now) if self.is_elsewhere(now, seen) => Check::Blocked(Blocker {
                code: "watches_another",
                node: Some(self.sentinel.clone()),
                why: format!(
                    "{} watches another deployment under the name `{}`",
                    self.sentinel, self.name
                ),
                recovery: "Give one of the two another master_name, or send SENTINEL REMOVE to it if nobody needs the other. Then retry the plan.",
            }),
            Some(now) if !self.differing(now).is_empty() => Check::Ready,
            Some(now) if self.is_locked_out(now, seen) => Check::Ready,
            Some(_) => Check::Done,
        }
    }

    fn effect(&self, world: &mut Observation) {
        let run_id = world.report(&self.primary).map(|r| r.run_id.clone()).unwrap_or_default();
        let Some(Sighting::Seen(report)) = world.nodes.get_mut(&self.sentinel) else { return };
        let Some(view) = &mut report.sentinel else { return };
        let fresh = || Seen {
            primary: Some(self.primary.clone()),
            run_id,
            no_quorum: Some("it does not know the others yet".to_owned()),
            ..Seen::default()
        };
        let watch = view.watches.entry(self.name.clone()).or_insert_with(fresh);
        watch.quorum = self.quorum;
        for (option, value) in &self.options {
            match option.as_str() {
                "down-after-milliseconds" => watch.down_after_ms = *value,
                "failover-timeout" => watch.failover_timeout_ms = *value,
                "parallel-syncs" => watch.parallel_syncs = *value,
                _ => {}
            }
        }
        watch.flags.retain(|f| f != "s_down" && f != "o_down" && f != "disconnected");
    }

    fn commands(&self, seen: &Observation) -> Vec<Command> {
        let now = seen.watch(&self.sentinel, &self.name);
        let say = |verb| Command::new(&self.sentinel, verb);
        let name = || self.name.clone();
        let mut commands = Vec::new();
        if now.is_none() {
            let (primary, quorum) = (self.primary.clone(), self.quorum);
            commands.push(say(Verb::Watch { name: name(), primary, quorum }));
        }
        let fresh = Seen { quorum: self.quorum, ..Seen::default() };
        if self.login && now.is_none_or(|now| self.is_locked_out(now, seen)) {
            commands.push(say(Verb::SetWatchLogin(name())));
        }
        let set = |(option, value): (&str, u64)| {
            let (option, value) = (option.to_owned(), value.to_string());
            say(Verb::SetWatch { name: name(), option, value })
        };
        commands.extend(self.differing(now.unwrap_or(&fresh)).into_iter().map(set));
        commands
    }
}

/// Waits for whoever is to be told of a deployment.
pub(super) fn waiting(node: &Address, why: String) -> Check {
    Check::Waiting(Wait::for_gossip(node, why))
}
