//! Connections for sending, and what goes wrong on them: who may send, which commands were lost on
//! the way and may still run, and the faults that a test ordered.

use std::collections::{BTreeMap, BTreeSet};

use super::table::Ms;
use super::verbs::Refusal;
use super::world::World;
use crate::domain::moving::talk::{Lane, Saying};
use crate::domain::node::{Address, ClusterNodeId};
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
    pub sent: Sent,
    /// When it was sent.
    pub at_ms: u64,
    pub outcome: CallOutcome,
}

/// What can be sent, over either way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    Verb(Verb),
    Saying(Saying),
}

impl Sent {
    /// Whether it is more than a question. Questions are not counted among commands, and nothing is
    /// left of one whose answer nobody waits for.
    #[must_use]
    pub fn changes(&self) -> bool {
        match self {
            Self::Verb(_)
            | Self::Saying(
                Saying::SetSlot { .. }
                | Saying::TakeSlots { .. }
                | Saying::Migrate { .. }
                | Saying::RestoreFunctions(_)
                | Saying::DeleteLibrary(_)
                | Saying::MigrateSlots { .. }
                | Saying::CancelSlotJobs
                | Saying::ImportSlots { .. }
                | Saying::CancelImport { .. }
                | Saying::Command(_),
            ) => true,
            Self::Saying(
                Saying::CountKeys { .. }
                | Saying::ListKeys { .. }
                | Saying::Size { .. }
                | Saying::TypeOf { .. }
                | Saying::Ping
                | Saying::TryTransaction
                | Saying::CountListeners { .. }
                | Saying::DumpFunctions
                | Saying::SlotJobs
                | Saying::Imports
                | Saying::Stand,
            ) => false,
        }
    }

    /// Whether a node that takes no writes lets it wait.
    pub(super) fn writes(&self) -> bool {
        match self {
            Self::Verb(verb) | Self::Saying(Saying::Command(verb)) => {
                matches!(verb, Verb::FlushAll | Verb::FlushFunctions)
            }
            Self::Saying(saying) => {
                matches!(
                    saying,
                    Saying::Migrate { .. } | Saying::RestoreFunctions(_) | Saying::DeleteLibrary(_)
                )
            }
        }
    }
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

/// Over which connection something is sent, and for how long its answer is waited for.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub process: u64,
    pub target: Target,
    /// One of those for moves, and the node that is meant; nothing for the one for commands.
    pub lane: Option<(Lane, ClusterNodeId)>,
    pub within: Ms,
}

impl Line {
    fn session(&self) -> Session {
        let lane = self.lane.as_ref().map(|(lane, _)| *lane);
        Session { process: self.process, fence: self.target.fence, lane }
    }
}

/// A connection for sending that a node holds open.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Session {
    process: u64,
    fence: Option<Fence>,
    lane: Option<Lane>,
}

/// Commands that lie between their sender and the node.
#[derive(Debug)]
pub(super) struct Pending {
    line: Line,
    /// Whether the sender still knows that it lost them.
    remembered: bool,
    /// None: as soon as the node thaws.
    pub due: Option<Ms>,
    pub commands: Vec<(u64, Sent)>,
}

impl Pending {
    fn node(&self) -> &Address {
        &self.line.target.address
    }
}

#[derive(Debug, Default)]
pub(super) struct Calls {
    pub records: Vec<CallRecord>,
    pub faults: BTreeMap<u64, CallFault>,
    pub look_faults: BTreeMap<u64, LookFault>,
    /// Whose replica takes over just before a command.
    pub takeovers: BTreeMap<u64, Address>,
    /// When the last of these was over.
    pub taken_over_at: Option<Ms>,
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

    pub fn has_session(&self, line: &Line) -> bool {
        let open = self.sessions.get(&line.target.address);
        open.is_some_and(|open| open.contains(&line.session()))
    }

    /// Opens a connection: ends those of earlier holders and what was lost on them; refused while a
    /// later holder is connected.
    pub fn open(&mut self, line: &Line) -> Result<(), Refusal> {
        let node = &line.target.address;
        let open = self.sessions.entry(node.clone()).or_default();
        let session = line.session();
        let token_there = |s: &Session| {
            let (there, mine) = (s.fence?, session.fence?);
            (there.topology == mine.topology).then_some((there.token, mine.token))
        };
        if open.iter().any(|s| token_there(s).is_some_and(|(there, mine)| there > mine)) {
            return Err(Refusal::new("FENCED", "a later holder of the lease is connected"));
        }
        open.retain(|s| token_there(s).is_none_or(|(there, mine)| there >= mine));
        if !open.contains(&session) {
            open.push(session.clone());
        }
        self.end(|p| {
            let theirs = p.line.session();
            let earlier = token_there(&theirs).is_some_and(|(there, mine)| there <= mine);
            let own = theirs.process == session.process && p.remembered;
            p.node() == node && (earlier || own)
        });
        Ok(())
    }

    /// The sender gives a connection up.
    pub fn abandon(&mut self, line: &Line) {
        if let Some(open) = self.sessions.get_mut(&line.target.address) {
            open.retain(|s| *s != line.session());
        }
    }

    pub fn hold(&mut self, line: &Line, commands: Vec<(u64, Sent)>, due: Option<Ms>) {
        self.pending.push(Pending { line: line.clone(), remembered: true, due, commands });
    }

    /// The sender ended: its connections close, and it forgets what it had lost.
    pub fn process_ended(&mut self, process: u64) {
        for open in self.sessions.values_mut() {
            open.retain(|s| s.process != process);
        }
        for pending in self.pending.iter_mut().filter(|p| p.line.process == process) {
            pending.remembered = false;
        }
    }

    /// The node's process ended, and with it every connection.
    pub fn node_ended(&mut self, node: &Address) {
        self.sessions.remove(node);
        self.end(|p| p.node() == node);
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
        let place = usize::try_from(index).ok().and_then(|at| self.records.get_mut(at));
        if let Some(record) = place {
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
            if self.servers.get(pending.node()).is_some_and(|s| s.is_running()) {
                self.run_late(pending);
            } else {
                pending.due = None;
                self.calls.pending.push(pending);
            }
        }
    }

    pub fn run_thawed(&mut self, node: &Address) {
        for pending in self.calls.take(|p| p.node() == node && p.due.is_none()) {
            self.run_late(pending);
        }
    }

    /// Whether a node lets this command wait, and all that came after it on its connection.
    pub fn holds_back(&self, node: &Address, sent: &Sent) -> bool {
        let paused = self.servers.get(node).is_some_and(|server| server.is_paused(self.now));
        paused && sent.writes()
    }

    fn run_late(&mut self, mut pending: Pending) {
        for (at, (index, sent)) in pending.commands.clone().into_iter().enumerate() {
            if self.holds_back(pending.node(), &sent) {
                pending.commands.drain(..at);
                pending.due = Some(self.now + HELD_MS);
                return self.calls.pending.push(pending);
            }
            let result = self.execute(&pending.line.target, &sent);
            let (at_ms, result) = (self.elapsed(), result.map(|_| ()));
            self.calls.note(index, CallOutcome::RanLate { at_ms, result });
        }
    }
}
