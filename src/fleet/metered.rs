//! A fleet that counts and times what goes to another one.

use std::time::Instant;

use futures::future::BoxFuture;

use super::{Ask, Fleet, FleetError, Published, Talk, Target};
use crate::domain::moving::talk::{Answer, Saying};
use crate::domain::node::{Address, Capabilities, Flavor, Version};
use crate::domain::observation::Report;
use crate::domain::step::command::Verb;

pub struct Metered<F> {
    inner: F,
}

impl<F> Metered<F> {
    #[must_use]
    pub fn new(inner: F) -> Self {
        Self { inner }
    }
}

impl<F: Fleet> Fleet for Metered<F> {
    fn look<'a>(
        &'a self,
        target: &'a Target,
        ask: &'a Ask,
    ) -> BoxFuture<'a, Result<Report, FleetError>> {
        Box::pin(timed("look", self.inner.look(target, ask)))
    }

    fn knock<'a>(&'a self, node: &'a Address, port: u16) -> BoxFuture<'a, Result<(), FleetError>> {
        Box::pin(timed("knock", self.inner.knock(node, port)))
    }

    fn fence<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), FleetError>> {
        Box::pin(timed("fence", self.inner.fence(target)))
    }

    fn send<'a>(
        &'a self,
        target: &'a Target,
        verbs: &'a [Verb],
    ) -> BoxFuture<'a, Result<(), FleetError>> {
        Box::pin(async move {
            let sent = timed("send", self.inner.send(target, verbs)).await;
            for verb in verbs {
                metrics::counter!("reeve_node_commands_total", "command" => name(verb), "outcome" => outcome(&sent))
                    .increment(1);
            }
            sent
        })
    }

    fn converse<'a>(
        &'a self,
        talk: &'a Talk<'a>,
        sayings: &'a [Saying],
    ) -> BoxFuture<'a, Result<Vec<Answer>, FleetError>> {
        Box::pin(timed("converse", self.inner.converse(talk, sayings)))
    }

    fn listen<'a>(
        &'a self,
        target: &'a Target,
        channels: &'a [&'a str],
    ) -> BoxFuture<'a, Result<Published, FleetError>> {
        Box::pin(timed("listen", self.inner.listen(target, channels)))
    }
}

async fn timed<T>(
    call: &'static str,
    doing: impl Future<Output = Result<T, FleetError>>,
) -> Result<T, FleetError> {
    let began = Instant::now();
    let done = doing.await;
    metrics::histogram!("reeve_node_command_seconds", "call" => call, "outcome" => outcome(&done))
        .record(began.elapsed().as_secs_f64());
    done
}

fn outcome<T>(done: &Result<T, FleetError>) -> &'static str {
    match done {
        Ok(_) => "ok",
        Err(FleetError::Unreachable { .. }) => "unreachable",
        Err(FleetError::Ambiguous { .. }) => "no_reply",
        Err(FleetError::Rejected { .. }) => "rejected",
    }
}

/// The command's words without its arguments.
fn name(verb: &Verb) -> String {
    let any = Capabilities::of(Flavor::Redis, Version::new(7, 0, 0));
    let upper = |w: &&str| w.chars().all(|c| c.is_ascii_uppercase() || c == '-');
    verb.shown(any).split(' ').take_while(upper).take(2).collect::<Vec<_>>().join(" ")
}
