//! Waits until every Sentinel knows all of the deployment and could agree on a failover. It sends
//! nothing: Sentinels find the replicas and each other by themselves.

use serde::{Deserialize, Serialize};

use super::command::Command;
use super::{Action, Check, StepKey, Wait};
use crate::domain::node::Address;
use crate::domain::observation::{Observation, Role, Sighting};
use crate::domain::plan::WaitingFor;
use crate::domain::sentinel::{Watch, WatchedReplica, WatchedSentinel, Watchers};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitWatch {
    pub watchers: Watchers,
    /// Whether it is waited for before others come and go, and not at the end.
    #[serde(default)]
    pub early: bool,
}

impl Action for AwaitWatch {
    fn key(&self) -> StepKey {
        if self.early { "await_watch:early" } else { "await_watch" }.to_owned()
    }

    fn title(&self) -> String {
        let count = self.watchers.sentinels.len();
        format!(
            "Wait until all {count} Sentinels know the deployment and could agree on a failover"
        )
    }

    fn nodes(&self) -> Vec<Address> {
        self.watchers.sentinels.clone()
    }

    fn check(&self, seen: &Observation) -> Check {
        let all = &self.watchers.sentinels;
        let lack = |s: &Address| {
            let why = self.watchers.lacking(s, seen);
            Some((s.clone(), why.or_else(|| self.watchers.superfluous(s, seen))?))
        };
        let lacking: Vec<(Address, String)> = all.iter().filter_map(lack).collect();
        let Some((first, why)) = lacking.first() else { return Check::Done };
        let more = match lacking.len() {
            1 => String::new(),
            n => format!(", and {} more Sentinels lack something", n - 1),
        };
        let silent = lacking.iter().any(|(s, _)| seen.report(s).is_none());
        Check::Waiting(Wait {
            reason: if silent { WaitingFor::Node } else { WaitingFor::Convergence },
            why: format!("{first} {why}{more}"),
            done: all.len() - lacking.len(),
            total: all.len(),
            nodes: lacking.iter().map(|(s, _)| s.clone()).collect(),
        })
    }

    fn effect(&self, world: &mut Observation) {
        let w = &self.watchers;
        let primary = |a: &&Address| world.report(a).is_some_and(|r| r.role == Role::Primary);
        let believed = w.believed(world).map(|(a, epoch)| (a.clone(), epoch));
        let any = || w.members.iter().find(primary).map(|a| (a.clone(), 0));
        let Some((primary, epoch)) = believed.or_else(any) else { return };
        let ids: Vec<(Address, String)> = w
            .sentinels
            .iter()
            .filter_map(|s| Some((s.clone(), world.report(s)?.sentinel.as_ref()?.my_id.clone())))
            .collect();
        let run_id = |a: &Address| world.report(a).map(|r| r.run_id.clone()).unwrap_or_default();
        let replica = |a: &Address| WatchedReplica {
            address: a.clone(),
            run_id: run_id(a),
            flags: ["slave".to_owned()].into(),
            link_up: true,
            priority: 100,
            offset: 0,
            age_ms: 0,
        };
        let replicas: Vec<_> = w.members.iter().filter(|a| **a != primary).map(replica).collect();
        let run_id = run_id(&primary);
        for sentinel in &w.sentinels {
            let others = ids.iter().filter(|(a, _)| a != sentinel);
            let others = others.map(|(a, id)| {
                (
                    id.clone(),
                    WatchedSentinel { address: Some(a.clone()), down: false, quiet: false },
                )
            });
            let others = others.collect();
            let Some(Sighting::Seen(report)) = world.nodes.get_mut(sentinel) else { continue };
            let Some(view) = &mut report.sentinel else { continue };
            let Some(watch) = view.watches.get_mut(&w.name) else { continue };
            *watch = Watch {
                primary: Some(primary.clone()),
                run_id: run_id.clone(),
                flags: ["master".to_owned()].into(),
                epoch,
                failover: None,
                replicas: replicas.clone(),
                sentinels: others,
                no_quorum: None,
                ..watch.clone()
            };
            view.tilt = false;
        }
    }

    fn commands(&self, _seen: &Observation) -> Vec<Command> {
        vec![]
    }
}
