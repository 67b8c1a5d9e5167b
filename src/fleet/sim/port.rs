//! The simulation as a [`Fleet`]: each call takes virtual time, meets the node as it is, and may
//! meet a fault on its way.

use std::future::pending;

use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};

use super::SimFleet;
use super::calls::{Line, LookFault, Sent};
use super::server::Life;
use super::table::Ms;
use super::verbs::Refusal;
use super::world::{START, World};
use crate::domain::moving::talk::{Answer, Saying};
use crate::domain::node::Address;
use crate::domain::observation::{Attached, Report};
use crate::domain::step::command::Verb;
use crate::fleet::{Ask, Fleet, FleetError, Published, Talk, Target};

/// How a call ends for its caller.
pub(super) enum End<T> {
    With(Result<T, FleetError>),
    /// The caller does not live to see it.
    Never,
}

impl<T> End<T> {
    fn map<U>(self, then: impl FnOnce(T) -> Result<U, FleetError>) -> End<U> {
        match self {
            Self::With(result) => End::With(result.and_then(then)),
            Self::Never => End::Never,
        }
    }
}

impl Fleet for SimFleet {
    fn look<'a>(
        &'a self,
        target: &'a Target,
        ask: &'a Ask,
    ) -> BoxFuture<'a, Result<Report, FleetError>> {
        self.call(move |world, _| world.look(target, ask))
    }

    fn knock<'a>(&'a self, node: &'a Address, port: u16) -> BoxFuture<'a, Result<(), FleetError>> {
        self.call(move |world, _| End::With(world.knock(node, port)))
    }

    fn fence<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), FleetError>> {
        self.call(move |world, process| {
            let line = world.line(process, target);
            let reached = world.reach(&target.address, line.within);
            End::With(reached.and_then(|()| world.open(&line)))
        })
    }

    fn send<'a>(
        &'a self,
        target: &'a Target,
        verbs: &'a [Verb],
    ) -> BoxFuture<'a, Result<(), FleetError>> {
        self.call(move |world, process| {
            let said: Vec<_> = verbs.iter().cloned().map(Sent::Verb).collect();
            world.exchange(&world.line(process, target), &said).map(|answers| {
                let refusal = answers.into_iter().find_map(Result::err);
                refusal.map_or(Ok(()), |refusal| Err(rejected(target, refusal)))
            })
        })
    }

    fn converse<'a>(
        &'a self,
        talk: &'a Talk<'a>,
        sayings: &'a [Saying],
    ) -> BoxFuture<'a, Result<Vec<Answer>, FleetError>> {
        self.call(move |world, process| {
            let said: Vec<_> = sayings.iter().cloned().map(Sent::Saying).collect();
            let line = Line {
                process,
                target: talk.target.clone(),
                lane: Some((talk.lane, talk.identity.clone())),
                within: u64::try_from(talk.within.as_millis()).unwrap_or(Ms::MAX),
            };
            let heard = |result: Result<_, Refusal>| {
                result.unwrap_or_else(|Refusal { code, message }| Answer::Refused { code, message })
            };
            world.exchange(&line, &said).map(|answers| Ok(answers.into_iter().map(heard).collect()))
        })
    }

    /// Nothing is published here: what counts is what looks show.
    fn listen<'a>(
        &'a self,
        _target: &'a Target,
        _channels: &'a [&'a str],
    ) -> BoxFuture<'a, Result<Published, FleetError>> {
        async { Ok(futures::stream::pending().boxed()) }.boxed()
    }
}

impl SimFleet {
    fn call<'a, T: Send + 'a>(
        &'a self,
        doing: impl FnOnce(&mut World, u64) -> End<T> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, FleetError>> {
        async move {
            let end = {
                let mut world = self.lock();
                if world.calls.dead.contains(&self.process) {
                    End::Never
                } else {
                    let end = doing(&mut world, self.process);
                    if matches!(end, End::Never) {
                        world.calls.dead.insert(self.process);
                        self.deaths.send_modify(|count| *count += 1);
                    }
                    end
                }
            };
            match end {
                End::With(result) => result,
                End::Never => pending().await,
            }
        }
        .boxed()
    }
}

impl World {
    pub fn elapsed(&self) -> u64 {
        self.now - START
    }

    fn look(&mut self, target: &Target, ask: &Ask) -> End<Report> {
        let index = self.calls.looks;
        self.calls.looks += 1;
        match self.calls.look_faults.remove(&index) {
            Some(LookFault::Die) => return End::Never,
            Some(LookFault::Fail) => {
                return End::With(Err(self.no_answer(&target.address, self.calls.timeout_ms)));
            }
            None => {}
        }
        if let Err(error) = self.reach(&target.address, self.calls.timeout_ms) {
            return End::With(Err(error));
        }
        let replicas = self.attached(&target.address);
        let jobs = self.under_way(&target.address);
        let report = self.servers.get(&target.address).map(|server| {
            let mut report = server.report(target, ask, self.now, replicas);
            if let Some(view) = &mut report.cluster {
                (view.jobs, view.trims) = (jobs, server.trims_until > self.now);
            }
            report
        });
        End::With(report.ok_or_else(|| refused(&target.address)))
    }

    /// The replicas that are connected to a node.
    pub fn attached(&self, node: &Address) -> Vec<Attached> {
        let replicas = self.servers.values().filter(|s| s.is_running() && s.sync.is_up());
        let attached = replicas.filter(|s| s.upstream().as_ref() == Some(node)).map(|s| Attached {
            address: s.address.clone(),
            state: "online".to_owned(),
            offset: s.sync.offset,
            lag_seconds: 0,
        });
        attached.collect()
    }

    fn knock(&mut self, node: &Address, port: u16) -> Result<(), FleetError> {
        self.advance(self.calls.ms_per_call);
        // The kernel takes connections for a frozen process as well.
        let server = self.servers.get(node).filter(|s| s.life != Life::Down);
        let bus = server.filter(|s| s.clustered).and_then(|s| s.address.default_bus_port());
        if server.is_some_and(|s| s.address.port() == port) || bus == Some(port) {
            return Ok(());
        }
        let message = format!("port {port}: connection refused");
        Err(FleetError::Unreachable { node: node.clone(), message })
    }

    /// Time passes; then the node answers, or not.
    pub fn reach(&mut self, node: &Address, within: Ms) -> Result<(), FleetError> {
        let slow = self.servers.get(node).map_or(0, |s| s.slow_ms);
        if slow >= within {
            return Err(self.no_answer(node, within));
        }
        self.advance(self.calls.ms_per_call + slow);
        match self.servers.get(node).map(|s| s.life) {
            Some(Life::Running) => Ok(()),
            Some(Life::Frozen) => Err(self.no_answer(node, within)),
            Some(Life::Down) | None => Err(refused(node)),
        }
    }

    fn no_answer(&mut self, node: &Address, within: Ms) -> FleetError {
        self.advance(within);
        let message = format!("no answer within {within} ms");
        FleetError::Unreachable { node: node.clone(), message }
    }
}

fn refused(node: &Address) -> FleetError {
    FleetError::Unreachable { node: node.clone(), message: "connection refused".to_owned() }
}

pub(super) fn rejected(target: &Target, Refusal { code, message }: Refusal) -> FleetError {
    FleetError::Rejected { node: target.address.clone(), code, message }
}
