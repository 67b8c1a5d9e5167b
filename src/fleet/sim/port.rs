//! The simulation as a [`Fleet`]: each call takes virtual time, meets the node as it is, and may
//! meet a fault on its way.

use std::future::pending;

use futures::future::{BoxFuture, FutureExt};

use super::SimFleet;
use super::calls::{CallFault, CallOutcome, CallRecord, HELD_MS, LookFault};
use super::server::Life;
use super::table::Ms;
use super::verbs::Refusal;
use super::world::{START, World};
use crate::domain::moving::talk::{Answer, Saying};
use crate::domain::node::Address;
use crate::domain::observation::Report;
use crate::domain::step::command::Verb;
use crate::fleet::{Ask, Fleet, FleetError, Talk, Target};

/// How a call ends for its caller.
enum End<T> {
    With(Result<T, FleetError>),
    /// The caller does not live to see it.
    Never,
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
            let opened = world.reach(&target.address).and_then(|()| world.open(process, target));
            End::With(opened)
        })
    }

    fn send<'a>(
        &'a self,
        target: &'a Target,
        verbs: &'a [Verb],
    ) -> BoxFuture<'a, Result<(), FleetError>> {
        self.call(move |world, process| world.send(process, target, verbs))
    }

    fn converse<'a>(
        &'a self,
        talk: &'a Talk<'a>,
        _sayings: &'a [Saying],
    ) -> BoxFuture<'a, Result<Vec<Answer>, FleetError>> {
        self.call(move |_, _| End::With(Err(refused(&talk.target.address))))
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
            Some(LookFault::Fail) => return End::With(Err(self.no_answer(&target.address))),
            None => {}
        }
        if let Err(error) = self.reach(&target.address) {
            return End::With(Err(error));
        }
        let replicas = self.servers.values().filter(|s| s.is_running() && s.sync.is_up());
        let replicas = replicas.filter(|s| s.upstream().as_ref() == Some(&target.address)).count();
        let report = self.servers.get(&target.address).map(|server| {
            server.report(target, ask, self.now, u32::try_from(replicas).unwrap_or(u32::MAX))
        });
        End::With(report.ok_or_else(|| refused(&target.address)))
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
    fn reach(&mut self, node: &Address) -> Result<(), FleetError> {
        let slow = self.servers.get(node).map_or(0, |s| s.slow_ms);
        if slow >= self.calls.timeout_ms {
            return Err(self.no_answer(node));
        }
        self.advance(self.calls.ms_per_call + slow);
        match self.servers.get(node).map(|s| s.life) {
            Some(Life::Running) => Ok(()),
            Some(Life::Frozen) => Err(self.no_answer(node)),
            Some(Life::Down) | None => Err(refused(node)),
        }
    }

    fn no_answer(&mut self, node: &Address) -> FleetError {
        let within = self.calls.timeout_ms;
        self.advance(within);
        let message = format!("no answer within {within} ms");
        FleetError::Unreachable { node: node.clone(), message }
    }

    fn open(&mut self, process: u64, target: &Target) -> Result<(), FleetError> {
        self.calls.open(process, target).map_err(|refusal| rejected(target, refusal))
    }

    fn send(&mut self, process: u64, target: &Target, verbs: &[Verb]) -> End<()> {
        if verbs.is_empty() {
            return End::With(Ok(()));
        }
        // A connection is tried before anything is at stake, so a node that is frozen already
        // never gets the commands.
        if let Err(error) = self.reach(&target.address) {
            return End::With(Err(error));
        }
        if !self.calls.has_session(process, target)
            && let Err(error) = self.open(process, target)
        {
            return End::With(Err(error));
        }
        let mut first_refusal = None;
        for (at, verb) in verbs.iter().enumerate() {
            let index = self.calls.records.len() as u64;
            let fault = self.calls.faults.remove(&index);
            match fault {
                Some(CallFault::DieBefore) => return End::Never,
                Some(CallFault::Late { after_ms }) => {
                    let due = Some(self.now + after_ms);
                    return self.lose(process, target, &verbs[at..], due);
                }
                Some(CallFault::Freeze) => {
                    self.freeze(&target.address);
                    return self.lose(process, target, &verbs[at..], None);
                }
                Some(CallFault::DieAfter | CallFault::LoseReply) | None => {}
            }
            if !self.outlast(&target.address, verb) {
                self.keep(process, target, &verbs[at..], Some(self.now));
                return End::With(Err(self.late(target)));
            }
            let result = self.run(process, target, verb);
            match fault {
                Some(CallFault::DieAfter) => return End::Never,
                Some(CallFault::LoseReply) => {
                    self.calls.abandon(process, target);
                    return End::With(Err(self.unsure(target)));
                }
                _ => {}
            }
            // The rest waits for the answer of this one.
            if let (Verb::Confirm(_), Err(refusal)) = (verb, &result) {
                return End::With(Err(rejected(target, refusal.clone())));
            }
            // The batch went out as a whole: what follows a refusal runs as well.
            first_refusal = first_refusal.or(result.err());
        }
        End::With(first_refusal.map_or(Ok(()), |refusal| Err(rejected(target, refusal))))
    }

    fn run(&mut self, process: u64, target: &Target, verb: &Verb) -> Result<(), Refusal> {
        let now = self.now;
        let result = match self.servers.get_mut(&target.address) {
            Some(server) => server.execute(verb, target, now),
            None => Ok(()),
        };
        self.settle(&target.address);
        self.record(process, target, verb, CallOutcome::Ran(result.clone()));
        result
    }

    /// Waits until the node takes the command; whether it does before the caller gives up.
    fn outlast(&mut self, node: &Address, verb: &Verb) -> bool {
        let until = self.now + self.calls.timeout_ms;
        while self.holds_back(node, verb) {
            if self.now >= until {
                return false;
            }
            self.advance(HELD_MS);
        }
        true
    }

    /// Commands get lost on their way: they may run later.
    fn lose(&mut self, process: u64, target: &Target, verbs: &[Verb], due: Option<Ms>) -> End<()> {
        self.keep(process, target, verbs, due);
        End::With(Err(self.unsure(target)))
    }

    /// The caller gives up waiting for commands that may run later.
    fn keep(&mut self, process: u64, target: &Target, verbs: &[Verb], due: Option<Ms>) {
        let mut commands = Vec::new();
        // Nothing follows a question whose answer did not come.
        let sent = match verbs {
            [question @ Verb::Confirm(_), ..] => std::slice::from_ref(question),
            all => all,
        };
        for verb in sent {
            let index = self.record(process, target, verb, CallOutcome::Late);
            commands.push((index, verb.clone()));
        }
        self.calls.hold(process, target, commands, due);
        self.calls.abandon(process, target);
    }

    fn record(&mut self, process: u64, target: &Target, verb: &Verb, outcome: CallOutcome) -> u64 {
        let index = self.calls.records.len() as u64;
        let (node, verb, at_ms) = (target.address.clone(), verb.clone(), self.elapsed());
        self.calls.records.push(CallRecord { index, process, node, verb, at_ms, outcome });
        index
    }

    fn unsure(&mut self, target: &Target) -> FleetError {
        self.advance(self.calls.timeout_ms);
        self.late(target)
    }

    fn late(&self, target: &Target) -> FleetError {
        let within = self.calls.timeout_ms;
        let message = format!("no answer within {within} ms");
        FleetError::Ambiguous { node: target.address.clone(), message }
    }
}

fn refused(node: &Address) -> FleetError {
    FleetError::Unreachable { node: node.clone(), message: "connection refused".to_owned() }
}

fn rejected(target: &Target, Refusal { code, message }: Refusal) -> FleetError {
    FleetError::Rejected { node: target.address.clone(), code, message }
}
