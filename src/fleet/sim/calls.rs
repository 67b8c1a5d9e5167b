//! Connections for sending, and what goes wrong on them: who may send, which commands were lost on
//! the way and may still run, and the faults that a test ordered.

use std::collections::{BTreeMap, BTreeSet};

use super::table::Ms;
use super::verbs::Refusal;
use super::world::World;
use crate::domain::node::Address;
use crate::domain::step::command::Verb;
use crate::fleet::{Fence, Target};

/// How often it is seen whether a node takes what it held back.
pub(super) const HELD_MS: Ms = 5;

/// What goes wrong with one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallFault {
    /// The caller ends before the command is sent.
    DieBefore,
    /// The caller ends after the command ran and before the rest of its batch is sent.
    DieAfter,
    /// The command ran, and its reply and the rest of the batch are lost.
    LoseReply,
    /// The command and the rest of its batch run only after this time, unless their connection is
    /// ended before.
    Late { after_ms: u64 },
    /// The node freezes just as the command arrives: it and the rest run when the node thaws,
    /// unless the node ends before.
    Freeze,
}

/// What goes wrong with one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookFault {
    /// The caller ends.
    Die,
    /// No answer comes.
    Fail,
}

/// One command that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRecord {
    /// Commands are counted in the order in which they are sent, by all processes together.
    pub index: u64,
    pub process: u64,
    pub node: Address,
    pub verb: Verb,
    /// When it was sent.
    pub at_ms: u64,
    pub outcome: CallOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallOutcome {
    /// It ran and was answered; or the caller did not live to hear it.
    Ran(Result<(), Refusal>),
    /// It did not run yet, and may.
    Late,
    /// It ran long after it was sent.
    RanLate { at_ms: u64, result: Result<(), Refusal> },
    /// It never ran and never will.
    NeverRan,
}

/// A connection for sending that a node holds open.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Session {
    process: u64,
    fence: Option<Fence>,
}

/// Commands that lie between their sender and the node.
#[derive(Debug)]
pub(super) struct Pending {
    pub node: Address,
    session: Session,
    /// Whether the sender still knows that it lost them.
    remembered: bool,
    /// None: as soon as the node thaws.
    pub due: Option<Ms>,
    pub commands: Vec<(u64, Verb)>,
    pub target: Target,
}

#[derive(Debug, Default)]
pub(super) struct Calls {
    pub records: Vec<CallRecord>,
    pub faults: BTreeMap<u64, CallFault>,
    pub look_faults: BTreeMap<u64, LookFault>,
    pub looks: u64,
    /// Processes that ended and were not started again.
    pub dead: BTreeSet<u64>,
    pub ms_per_call: Ms,
    pub timeout_ms: Ms,
    sessions: BTreeMap<Address, Vec<Session>>,
    pending: Vec<Pending>,
}

impl Calls {
    pub fn next_due(&self) -> Option<Ms> {
        self.pending.iter().filter_map(|p| p.due).min()
    }

    pub fn has_session(&self, process: u64, target: &Target) -> bool {
        let session = Session { process, fence: target.fence };
        self.sessions.get(&target.address).is_some_and(|open| open.contains(&session))
    }

    /// Opens a connection: ends those of earlier holders and what was lost on them; refused while a
    /// later holder is connected.
    pub fn open(&mut self, process: u64, target: &Target) -> Result<(), Refusal> {
        let open = self.sessions.entry(target.address.clone()).or_default();
        let token_there = |s: &Session| {
            let (there, mine) = (s.fence?, target.fence?);
            (there.topology == mine.topology).then_some((there.token, mine.token))
        };
        if open.iter().any(|s| token_there(s).is_some_and(|(there, mine)| there > mine)) {
            return Err(Refusal::new("FENCED", "a later holder of the lease is connected"));
        }
        open.retain(|s| token_there(s).is_none_or(|(there, mine)| there >= mine));
        let session = Session { process, fence: target.fence };
        if !open.contains(&session) {
            open.push(session);
        }
        self.end(|p| {
            let earlier = token_there(&p.session).is_some_and(|(there, mine)| there <= mine);
            let own = p.session.process == process && p.remembered;
            p.node == target.address && (earlier || own)
        });
        Ok(())
    }

    /// The sender gives a connection up.
    pub fn abandon(&mut self, process: u64, target: &Target) {
        let session = Session { process, fence: target.fence };
        if let Some(open) = self.sessions.get_mut(&target.address) {
            open.retain(|s| *s != session);
        }
    }

    pub fn hold(
        &mut self,
        process: u64,
        target: &Target,
        commands: Vec<(u64, Verb)>,
        due: Option<Ms>,
    ) {
        self.pending.push(Pending {
            node: target.address.clone(),
            session: Session { process, fence: target.fence },
            remembered: true,
            due,
            commands,
            target: target.clone(),
        });
    }

    /// The sender ended: its connections close, and it forgets what it had lost.
    pub fn process_ended(&mut self, process: u64) {
        for open in self.sessions.values_mut() {
            open.retain(|s| s.process != process);
        }
        for pending in self.pending.iter_mut().filter(|p| p.session.process == process) {
            pending.remembered = false;
        }
    }

    /// The node's process ended, and with it every connection.
    pub fn node_ended(&mut self, node: &Address) {
        self.sessions.remove(node);
        self.end(|p| p.node == *node);
    }

    fn end(&mut self, which: impl Fn(&Pending) -> bool) {
        let (ended, left) = std::mem::take(&mut self.pending).into_iter().partition(|p| which(p));
        self.pending = left;
        let ended: Vec<Pending> = ended;
        for (index, _) in ended.iter().flat_map(|p| &p.commands) {
            self.note(*index, CallOutcome::NeverRan);
        }
    }

    pub fn note(&mut self, index: u64, outcome: CallOutcome) {
        if let Some(record) = self.records.iter_mut().find(|r| r.index == index) {
            record.outcome = outcome;
        }
    }

    fn take(&mut self, which: impl Fn(&Pending) -> bool) -> Vec<Pending> {
        let (taken, left) = std::mem::take(&mut self.pending).into_iter().partition(|p| which(p));
        self.pending = left;
        taken
    }
}

impl World {
    /// Runs what is due; on a frozen node it waits on until that thaws.
    pub fn run_due(&mut self) {
        let now = self.now;
        for mut pending in self.calls.take(|p| p.due.is_some_and(|due| due <= now)) {
            if self.servers.get(&pending.node).is_some_and(|s| s.is_running()) {
                self.run_late(pending);
            } else {
                pending.due = None;
                self.calls.pending.push(pending);
            }
        }
    }

    pub fn run_thawed(&mut self, node: &Address) {
        for pending in self.calls.take(|p| p.node == *node && p.due.is_none()) {
            self.run_late(pending);
        }
    }

    /// Whether a node lets this command wait, and all that came after it on its connection.
    pub fn holds_back(&self, node: &Address, verb: &Verb) -> bool {
        let paused = self.servers.get(node).is_some_and(|server| server.is_paused(self.now));
        paused && matches!(verb, Verb::FlushAll)
    }

    fn run_late(&mut self, mut pending: Pending) {
        for (at, (index, verb)) in pending.commands.clone().into_iter().enumerate() {
            if self.holds_back(&pending.node, &verb) {
                pending.commands.drain(..at);
                pending.due = Some(self.now + HELD_MS);
                return self.calls.pending.push(pending);
            }
            let Some(server) = self.servers.get_mut(&pending.node) else { return };
            let result = server.execute(&verb, &pending.target, self.now);
            self.settle(&pending.node);
            let at_ms = self.elapsed();
            self.calls.note(index, CallOutcome::RanLate { at_ms, result });
        }
    }
}
