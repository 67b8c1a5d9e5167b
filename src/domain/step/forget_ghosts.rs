//! Has one Sentinel forget those that are gone, which by itself it never does.
//!
//! `SENTINEL RESET` takes away everything that it knows: the other Sentinels it finds again within two
//! seconds, the replicas within ten. Therefore one after the other, and only while all others could
//! agree on a failover, and nobody needs one.
//!
//! A Sentinel that still lists a replica that left makes it one again, ten to twenty seconds after it
//! sees it as a primary. So that all have forgotten it by then, the next one does not wait until
//! those before it know all replicas again; one that could lead a failover there is always.

use serde::{Deserialize, Serialize};

use super::command::{Command, Verb};
use super::watch::waiting;
use super::{Action, Check, StepKey, seen_or_wait};
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Sighting};
use crate::domain::sentinel::{Ghosts, Watchers};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgetGhosts {
    pub sentinel: Address,
    pub watchers: Watchers,
    pub ghosts: Ghosts,
}

impl ForgetGhosts {
    fn left(&self, seen: &Observation) -> bool {
        let Some(watch) = seen.watch(&self.sentinel, &self.watchers.name) else { return false };
        let known = |r: &Address| watch.replicas.iter().any(|w| w.address_in(seen) == r);
        self.ghosts.sentinels.iter().any(|id| watch.sentinels.contains_key(id))
            || self.ghosts.replicas.iter().any(known)
    }

    /// Another Sentinel that is needed meanwhile, and what it lacks.
    fn unfit(&self, seen: &Observation) -> Option<(&Address, String)> {
        let others = || self.watchers.sentinels.iter().filter(|s| **s != self.sentinel);
        let lacking = |s| self.watchers.lacking(s, seen);
        let hurry = !self.ghosts.replicas.is_empty() && others().any(|s| lacking(s).is_none());
        let lacks = |s| if hurry { self.watchers.estranged(s, seen) } else { lacking(s) };
        others().find_map(|s| Some((s, lacks(s)?)))
    }

    fn names(&self, seen: &Observation) -> Vec<String> {
        let watch = seen.watch(&self.sentinel, &self.watchers.name);
        let sentinel = |id: &String| {
            let address = watch.and_then(|w| w.sentinels.get(id)?.address.as_ref());
            address.map_or(format!("the Sentinel {id}"), |a| format!("the Sentinel {a}"))
        };
        let sentinels = self.ghosts.sentinels.iter().map(sentinel);
        sentinels.chain(self.ghosts.replicas.iter().map(Address::to_string)).collect()
    }
}

impl Action for ForgetGhosts {
    fn key(&self) -> StepKey {
        format!("forget_ghosts:{}", self.sentinel)
    }

    fn title(&self) -> String {
        let count = self.ghosts.sentinels.len() + self.ghosts.replicas.len();
        format!("Have {} forget {count} nodes that are gone", self.sentinel)
    }

    fn nodes(&self) -> Vec<Address> {
        vec![self.sentinel.clone()]
    }

    fn check(&self, seen: &Observation) -> Check {
        if let Err(wait) = seen_or_wait(&self.sentinel, seen) {
            return wait;
        }
        if !self.left(seen) {
            return Check::Done;
        }
        let watch = seen.watch(&self.sentinel, &self.watchers.name);
        if watch.is_some_and(|w| w.is_down() || w.fails_over()) {
            let why = format!("{} has more urgent things to do", self.sentinel);
            return waiting(&self.sentinel, why);
        }
        match self.unfit(seen) {
            Some((other, why)) => {
                let names = self.names(seen).join(", ");
                let why = format!("{} is to forget {names}, but {other} {why}", self.sentinel);
                waiting(other, why)
            }
            None => Check::Ready,
        }
    }

    fn effect(&self, world: &mut Observation) {
        let replicas: Vec<Address> = self.ghosts.replicas.iter().cloned().collect();
        let Some(Sighting::Seen(report)) = world.nodes.get_mut(&self.sentinel) else { return };
        let Some(view) = &mut report.sentinel else { return };
        let Some(watch) = view.watches.get_mut(&self.watchers.name) else { return };
        watch.sentinels.retain(|id, _| !self.ghosts.sentinels.contains(id));
        watch.replicas.retain(|r| !replicas.contains(&r.address));
    }

    fn commands(&self, _seen: &Observation) -> Vec<Command> {
        vec![Command::new(&self.sentinel, Verb::ResetWatch(self.watchers.name.clone()))]
    }
}
