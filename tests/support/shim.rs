//! A fleet in front of another one, which does most things as that one does.

use futures::future::BoxFuture;

use reeve::domain::moving::talk::{Answer, Saying};
use reeve::domain::node::Address;
use reeve::domain::observation::Report;
use reeve::domain::step::command::Verb;
use reeve::fleet::{Ask, Fleet, FleetError, Published, Talk, Target};

pub trait Shim: Send + Sync + 'static {
    /// The fleet behind it.
    fn behind(&self) -> &dyn Fleet;

    fn look<'a>(
        &'a self,
        target: &'a Target,
        ask: &'a Ask,
    ) -> BoxFuture<'a, Result<Report, FleetError>> {
        self.behind().look(target, ask)
    }

    fn fence<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), FleetError>> {
        self.behind().fence(target)
    }

    fn send<'a>(
        &'a self,
        target: &'a Target,
        verbs: &'a [Verb],
    ) -> BoxFuture<'a, Result<(), FleetError>> {
        self.behind().send(target, verbs)
    }

    fn converse<'a>(
        &'a self,
        talk: &'a Talk<'a>,
        sayings: &'a [Saying],
    ) -> BoxFuture<'a, Result<Vec<Answer>, FleetError>> {
        self.behind().converse(talk, sayings)
    }
}

/// A shim as a fleet.
pub struct Shimmed<T>(pub T);

impl<T: Shim> Fleet for Shimmed<T> {
    fn look<'a>(
        &'a self,
        target: &'a Target,
        ask: &'a Ask,
    ) -> BoxFuture<'a, Result<Report, FleetError>> {
        self.0.look(target, ask)
    }

    fn knock<'a>(&'a self, node: &'a Address, port: u16) -> BoxFuture<'a, Result<(), FleetError>> {
        self.0.behind().knock(node, port)
    }

    fn fence<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), FleetError>> {
        self.0.fence(target)
    }

    fn send<'a>(
        &'a self,
        target: &'a Target,
        verbs: &'a [Verb],
    ) -> BoxFuture<'a, Result<(), FleetError>> {
        self.0.send(target, verbs)
    }

    fn converse<'a>(
        &'a self,
        talk: &'a Talk<'a>,
        sayings: &'a [Saying],
    ) -> BoxFuture<'a, Result<Vec<Answer>, FleetError>> {
        self.0.converse(talk, sayings)
    }

    fn listen<'a>(
        &'a self,
        target: &'a Target,
        channels: &'a [&'a str],
    ) -> BoxFuture<'a, Result<Published, FleetError>> {
        self.0.behind().listen(target, channels)
    }
}
