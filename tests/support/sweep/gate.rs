//! A fleet that holds its caller up at a certain command.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::BoxFuture;
use tokio::sync::Notify;

use reeve::domain::moving::talk::{Answer, Saying};
use reeve::domain::node::Address;
use reeve::domain::observation::Report;
use reeve::domain::step::command::Verb;
use reeve::fleet::sim::SimFleet;
use reeve::fleet::{Ask, Fleet, FleetError, Talk, Target};

/// A fleet that holds its caller up, once, when a certain command is about to be sent.
pub struct Gate {
    sim: Arc<SimFleet>,
    index: u64,
    pub reached: Notify,
    pub open: Notify,
    used: AtomicBool,
}

impl Gate {
    pub fn new(sim: Arc<SimFleet>, index: u64) -> Self {
        let (reached, open, used) = Default::default();
        Self { sim, index, reached, open, used }
    }
}

impl Fleet for Gate {
    fn look<'a>(
        &'a self,
        target: &'a Target,
        ask: &'a Ask,
    ) -> BoxFuture<'a, Result<Report, FleetError>> {
        self.sim.look(target, ask)
    }

    fn knock<'a>(&'a self, node: &'a Address, port: u16) -> BoxFuture<'a, Result<(), FleetError>> {
        self.sim.knock(node, port)
    }

    fn fence<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), FleetError>> {
        self.sim.fence(target)
    }

    fn send<'a>(
        &'a self,
        target: &'a Target,
        verbs: &'a [Verb],
    ) -> BoxFuture<'a, Result<(), FleetError>> {
        Box::pin(async move {
            let next = self.sim.calls().len() as u64;
            let due = next + verbs.len() as u64 > self.index;
            if due && !self.used.swap(true, Ordering::Relaxed) {
                self.reached.notify_one();
                self.open.notified().await;
            }
            self.sim.send(target, verbs).await
        })
    }

    fn converse<'a>(
        &'a self,
        talk: &'a Talk<'a>,
        sayings: &'a [Saying],
    ) -> BoxFuture<'a, Result<Vec<Answer>, FleetError>> {
        self.sim.converse(talk, sayings)
    }
}
