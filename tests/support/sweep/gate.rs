//! A fleet that holds its caller up at a certain command.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::BoxFuture;
use tokio::sync::Notify;

use reeve::domain::moving::talk::{Answer, Saying};
use reeve::domain::step::command::Verb;
use reeve::fleet::sim::{Sent, SimFleet};
use reeve::fleet::{Fleet, FleetError, Talk, Target};

use crate::support::shim::Shim;

/// Once, when that command is about to be sent.
#[derive(Clone)]
pub struct Gate {
    sim: Arc<SimFleet>,
    index: u64,
    pub reached: Arc<Notify>,
    pub open: Arc<Notify>,
    used: Arc<AtomicBool>,
}

impl Gate {
    pub fn new(sim: Arc<SimFleet>, index: u64) -> Self {
        let (reached, open, used) = Default::default();
        Self { sim, index, reached, open, used }
    }

    /// Whoever is to send so many commands waits if that one is among them.
    async fn pass(&self, commands: usize) {
        let next = self.sim.commands();
        let due = commands > 0 && next + commands as u64 > self.index;
        if due && !self.used.swap(true, Ordering::Relaxed) {
            self.reached.notify_one();
            self.open.notified().await;
        }
    }
}

impl Shim for Gate {
    fn behind(&self) -> &dyn Fleet {
        &*self.sim
    }

    fn send<'a>(
        &'a self,
        target: &'a Target,
        verbs: &'a [Verb],
    ) -> BoxFuture<'a, Result<(), FleetError>> {
        Box::pin(async move {
            self.pass(verbs.len()).await;
            self.sim.send(target, verbs).await
        })
    }

    fn converse<'a>(
        &'a self,
        talk: &'a Talk<'a>,
        sayings: &'a [Saying],
    ) -> BoxFuture<'a, Result<Vec<Answer>, FleetError>> {
        Box::pin(async move {
            let commands = sayings.iter().filter(|s| Sent::Saying((*s).clone()).changes());
            self.pass(commands.count()).await;
            self.sim.converse(talk, sayings).await
        })
    }
}
