//! A fleet that is wrong in one way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;

use reeve::domain::moving::talk::{Answer, Saying};
use reeve::domain::node::Address;
use reeve::domain::observation::Report;
use reeve::domain::step::command::Verb;
use reeve::fleet::sim::SimFleet;
use reeve::fleet::{Ask, Fleet, FleetError, Talk, Target};

/// A mistake that is made on purpose, to see that the sweep finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// Nodes are taken for fenced that are not.
    NoFence,
    /// Looks show what was there before the last command.
    StaleLooks,
    /// Marks are not in the database yet when their commands go out.
    LateMarks,
    /// The database lets every holder of a lease write, whoever came after it.
    NoToken,
}

pub struct Mistaken {
    sim: Arc<SimFleet>,
    mistake: Mistake,
    before: Mutex<BTreeMap<Address, Report>>,
}

impl Mistaken {
    pub fn new(sim: Arc<SimFleet>, mistake: Mistake) -> Self {
        Self { sim, mistake, before: Mutex::default() }
    }
}

impl Fleet for Mistaken {
    fn look<'a>(
        &'a self,
        target: &'a Target,
        ask: &'a Ask,
    ) -> BoxFuture<'a, Result<Report, FleetError>> {
        Box::pin(async move {
            let now = self.sim.look(target, ask).await?;
            if self.mistake != Mistake::StaleLooks {
                return Ok(now);
            }
            let mut before = self.before.lock().unwrap();
            Ok(before.insert(target.address.clone(), now.clone()).unwrap_or(now))
        })
    }

    fn knock<'a>(&'a self, node: &'a Address, port: u16) -> BoxFuture<'a, Result<(), FleetError>> {
        self.sim.knock(node, port)
    }

    fn fence<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), FleetError>> {
        if self.mistake == Mistake::NoFence {
            return Box::pin(async { Ok(()) });
        }
        self.sim.fence(target)
    }

    fn send<'a>(
        &'a self,
        target: &'a Target,
        verbs: &'a [Verb],
    ) -> BoxFuture<'a, Result<(), FleetError>> {
        // Without fences, connections belong to nobody.
        let fence = target.fence.filter(|_| self.mistake != Mistake::NoFence);
        let target = Target { fence, ..target.clone() };
        Box::pin(async move { self.sim.send(&target, verbs).await })
    }

    fn converse<'a>(
        &'a self,
        talk: &'a Talk<'a>,
        sayings: &'a [Saying],
    ) -> BoxFuture<'a, Result<Vec<Answer>, FleetError>> {
        self.sim.converse(talk, sayings)
    }
}
