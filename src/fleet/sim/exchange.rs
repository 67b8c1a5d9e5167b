//! One batch over one connection: it goes out as a whole, its parts run in order, and a fault may
//! meet each of them.

use super::calls::{CallFault, CallOutcome, CallRecord, HELD_MS, Line, Sent};
use super::handover::name_of;
use super::keys::Value;
use super::port::{End, rejected};
use super::server::{Life, Server};
use super::table::Ms;
use super::verbs::Refusal;
use super::world::World;
use crate::domain::fault::ANOTHER_NODE;
use crate::domain::moving::talk::{Answer, Key, Saying, Standing};
use crate::domain::node::{Address, MovedBy};
use crate::domain::slot::key_slot;
use crate::domain::step::command::Verb;
use crate::fleet::{FleetError, Target};

impl World {
    pub fn line(&self, process: u64, target: &Target) -> Line {
        Line { process, target: target.clone(), lane: None, within: self.calls.timeout_ms }
    }

    pub fn open(&mut self, line: &Line) -> Result<(), FleetError> {
        self.calls.open(line).map_err(|refusal| rejected(&line.target, refusal))
    }

    pub fn exchange(&mut self, line: &Line, said: &[Sent]) -> End<Vec<Result<Answer, Refusal>>> {
        if said.is_empty() {
            return End::With(Ok(vec![]));
        }
        let node = &line.target.address;
        let frozen = self.servers.get(node).is_some_and(|s| s.life == Life::Frozen);
        let known = self.calls.has_session(line);
        if let Err(error) = self.reach(node, line.within) {
            // The connection for commands is tried before anything is at stake, so a node that is
            // frozen already never gets them; one for moves is written to at once.
            if frozen && known && line.lane.is_some() {
                self.keep(line, said, None);
                return End::With(Err(late(line)));
            }
            return End::With(Err(error));
        }
        if !known && let Err(error) = self.open(line).and_then(|()| self.identify(line)) {
            return End::With(Err(error));
        }
        let mut answers = Vec::new();
        for (at, sent) in said.iter().enumerate() {
            let index = self.calls.records.len() as u64;
            if sent.changes()
                && let Some(member) = self.calls.takeovers.remove(&index)
            {
                self.take_over(&member);
            }
            let fault = sent.changes().then(|| self.calls.faults.remove(&index)).flatten();
            match fault {
                Some(CallFault::DieBefore) => return End::Never,
                Some(CallFault::Late { after_ms }) => {
                    let due = Some(self.now + after_ms);
                    return self.lose(line, &said[at..], due);
                }
                Some(CallFault::Freeze) => {
                    self.freeze(node);
                    return self.lose(line, &said[at..], None);
                }
                Some(CallFault::DieAfter | CallFault::LoseReply) | None => {}
            }
            let until = self.now + line.within;
            if !self.outlast(node, sent, until) {
                self.keep(line, &said[at..], Some(self.now));
                return End::With(Err(late(line)));
            }
            let result = self.run(line, sent);
            match fault {
                Some(CallFault::DieAfter) => return End::Never,
                Some(CallFault::LoseReply) => {
                    self.calls.abandon(line);
                    self.advance(line.within);
                    return End::With(Err(late(line)));
                }
                Some(CallFault::DieBefore | CallFault::Late { .. } | CallFault::Freeze) | None => {}
            }
            if self.now > until {
                self.keep(line, &said[at + 1..], Some(self.now));
                return End::With(Err(late(line)));
            }
            // The rest waits for the answer of this one.
            if let (Sent::Verb(Verb::Confirm(_)), Err(refusal)) = (sent, &result) {
                return End::With(Err(rejected(&line.target, refusal.clone())));
            }
            // The batch went out as a whole: what follows a refusal runs as well.
            answers.push(result);
        }
        End::With(Ok(answers))
    }

    /// On a connection for moves that was opened just now the node says who it is.
    fn identify(&mut self, line: &Line) -> Result<(), FleetError> {
        let Some((_, meant)) = &line.lane else { return Ok(()) };
        let server = self.servers.get(&line.target.address);
        let own = |s: &&Server| s.clustered && s.table.my_id == *meant;
        if server.filter(|s| own(s) || s.run_id == meant.0).is_some() {
            return Ok(());
        }
        let clustered = server.filter(|s| s.clustered);
        let said = clustered.map_or("somebody else", |s| s.table.my_id.0.as_str());
        let refusal = Refusal::new(ANOTHER_NODE, format!("it is {said} and not {meant}"));
        self.calls.abandon(line);
        Err(rejected(&line.target, refusal))
    }

    fn run(&mut self, line: &Line, sent: &Sent) -> Result<Answer, Refusal> {
        // Sent before it runs: what it sets off may take a while.
        let index = sent.changes().then(|| self.record(line, sent, CallOutcome::Late));
        let result = self.execute(&line.target, sent);
        if let Some(index) = index {
            let outcome = result.clone().map(|_| ());
            self.calls.note(index, CallOutcome::Ran(outcome));
        }
        result
    }

    /// A primary takes no writes while it has fewer replicas than it is to have.
    pub fn is_guarded(&self, node: &Address) -> Result<(), Refusal> {
        let Some(server) = self.servers.get(node).filter(|s| !s.is_replica()) else {
            return Ok(());
        };
        let needed = server.settings.number("min-replicas-to-write");
        if needed > self.attached(node).len() as u64 {
            return Err(Refusal::new("NOREPLICAS", "Not enough good replicas to write."));
        }
        Ok(())
    }

    /// Lets a node do what was said to it.
    pub fn execute(&mut self, target: &Target, sent: &Sent) -> Result<Answer, Refusal> {
        let (node, now) = (&target.address, self.now);
        if sent.writes() {
            self.is_guarded(node)?;
        }
        let Some(server) = self.servers.get_mut(node) else { return Ok(Answer::Done) };
        let result = match sent {
            Sent::Verb(Verb::CancelSlotJobs) if server.moved_by() == Some(MovedBy::Target) => {
                self.cancel_imports(node, None).map(|_| Answer::Done)
            }
            Sent::Verb(Verb::CancelSlotJobs) | Sent::Saying(Saying::CancelSlotJobs) => {
                self.cancel_slot_jobs(node).map(|()| Answer::Done)
            }
            Sent::Verb(verb) => server.execute(verb, target, now).map(|()| Answer::Done),
            Sent::Saying(Saying::SetSlot { slot, state }) => {
                let (slot, state) = (*slot, state.clone());
                self.job_bars(node).and_then(|()| match self.servers.get_mut(node) {
                    Some(server) => server.set_slot(slot, &state, now).map(|()| Answer::Done),
                    None => Ok(Answer::Done),
                })
            }
            Sent::Saying(Saying::TakeSlots { slots, itself }) => {
                self.job_bars(node).and_then(|()| match self.servers.get_mut(node) {
                    Some(server) => server.take_together(slots, itself, now).map(|()| Answer::Done),
                    None => Ok(Answer::Done),
                })
            }
            Sent::Saying(Saying::Migrate { to, keys, within_ms }) => {
                self.migrate(node, to, keys, *within_ms)
            }
            Sent::Saying(Saying::MigrateSlots { slots, to }) => {
                self.migrate_slots(node, slots, to).map(|()| Answer::Done)
            }
            Sent::Saying(Saying::SlotJobs) => self.slot_jobs(node, MovedBy::Source),
            Sent::Saying(Saying::ImportSlots { slots }) => {
                self.import_slots(node, slots).map(|()| Answer::Done)
            }
            Sent::Saying(Saying::Imports) => self.slot_jobs(node, MovedBy::Target),
            Sent::Saying(Saying::CancelImport { name }) => {
                self.cancel_imports(node, Some(name)).map(Answer::Number)
            }
            Sent::Saying(Saying::RestoreFunctions(dump)) => {
                server.restore_functions(dump).map(|()| Answer::Done)
            }
            Sent::Saying(Saying::DeleteLibrary(name)) => {
                server.delete_library(name).map(|()| Answer::Done)
            }
            Sent::Saying(Saying::CountKeys { slot }) => {
                Ok(Answer::Number(server.keys_in(*slot).count() as u64))
            }
            Sent::Saying(Saying::ListKeys { slot, at_most }) => {
                let at_most = usize::try_from(*at_most).unwrap_or(usize::MAX);
                let keys = server.keys_in(*slot).take(at_most);
                Ok(Answer::Keys(keys.map(|key| Key(key.clone().into_bytes())).collect()))
            }
            Sent::Saying(Saying::Size { key }) => {
                server.tell_of(key, |value| Answer::Number(value.bytes))
            }
            Sent::Saying(Saying::TypeOf { key }) => {
                server.tell_of(key, |_| Answer::Text("string".to_owned()))
            }
            Sent::Saying(Saying::Ping | Saying::TryTransaction) => Ok(Answer::Done),
            Sent::Saying(Saying::CountListeners { .. }) => Ok(Answer::Number(0)),
            Sent::Saying(Saying::Command(verb)) => {
                server.execute(verb, target, now).map(|()| Answer::Done)
            }
            Sent::Saying(Saying::Stand) => {
                let role = server.role();
                let attached = self.attached(node);
                let server = self.servers.get(node);
                let standing =
                    server.map(|s| Standing { role, replication: s.replication(now, attached) });
                Ok(standing.map_or(Answer::Nothing, |s| Answer::Standing(Box::new(s))))
            }
            Sent::Saying(Saying::DumpFunctions) => server.dump_functions(),
        };
        self.settle(node);
        result
    }

    /// Waits until the node takes the command; whether it does before the caller gives up.
    fn outlast(&mut self, node: &Address, sent: &Sent, until: Ms) -> bool {
        while self.holds_back(node, sent) {
            if self.now >= until {
                return false;
            }
            self.advance(HELD_MS);
        }
        true
    }

    /// Commands get lost on their way: they may run later.
    fn lose<T>(&mut self, line: &Line, said: &[Sent], due: Option<Ms>) -> End<T> {
        self.keep(line, said, due);
        self.advance(line.within);
        End::With(Err(late(line)))
    }

    /// The caller gives up waiting for commands that may run later.
    fn keep(&mut self, line: &Line, said: &[Sent], due: Option<Ms>) {
        let mut commands = Vec::new();
        // Nothing follows a question whose answer did not come.
        let all = match said {
            [question @ Sent::Verb(Verb::Confirm(_)), ..] => std::slice::from_ref(question),
            all => all,
        };
        for sent in all.iter().filter(|sent| sent.changes()) {
            let index = self.record(line, sent, CallOutcome::Late);
            commands.push((index, sent.clone()));
        }
        self.calls.hold(line, commands, due);
        self.calls.abandon(line);
    }

    fn record(&mut self, line: &Line, sent: &Sent, outcome: CallOutcome) -> u64 {
        let index = self.calls.records.len() as u64;
        let (process, node) = (line.process, line.target.address.clone());
        let (sent, at_ms) = (sent.clone(), self.elapsed());
        self.calls.records.push(CallRecord { index, process, node, sent, at_ms, outcome });
        index
    }
}

impl Server {
    /// What is told of a key. Of one that is to be asked for elsewhere, the port says that it is not
    /// there.
    fn tell_of(&self, key: &Key, tell: impl Fn(Value) -> Answer) -> Result<Answer, Refusal> {
        let key = name_of(key);
        match self.serves(key_slot(key.as_bytes()), &key, false) {
            Ok(()) => Ok(self.value(&key).map_or(Answer::Nothing, tell)),
            Err(refusal) if refusal.code == "ASK" => Ok(Answer::Nothing),
            Err(refusal) => Err(refusal),
        }
    }
}

fn late(line: &Line) -> FleetError {
    let message = format!("no answer within {} ms", line.within);
    FleetError::Ambiguous { node: line.target.address.clone(), message }
}
