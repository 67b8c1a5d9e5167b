//! A child process that does not outlive its value.

use std::fmt;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use super::leash::Leash;

const POLL: Duration = Duration::from_millis(5);
/// How long one that is dropped may take to tidy up.
const PARTING: Duration = Duration::from_secs(2);

pub(super) struct Process {
    child: Child,
    parting: Signal,
    _leash: Arc<Leash>,
}

impl Process {
    /// Starts a command; where its output goes is for the caller to say.
    pub(super) fn spawn(command: &mut Command) -> io::Result<Self> {
        let leash = Leash::hold()?;
        let child = command.stdin(Stdio::null()).process_group(leash.group()).spawn()?;
        Ok(Self { child, parting: Signal::KILL, _leash: leash })
    }

    /// Has it end by this signal when it is dropped, for one that would leave something behind in
    /// the system when killed.
    pub(super) fn parting_with(mut self, signal: Signal) -> Self {
        self.parting = signal;
        self
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Does nothing to a process that has ended: its id may be another's by now.
    pub(super) fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if self.ended().is_none() {
            kill_process(Pid::from_child(&self.child), signal)?;
        }
        Ok(())
    }

    /// At once, whatever it is doing, even nothing at all.
    pub(super) fn kill(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end by a signal, and kills it when it has not within the time; `None` then.
    pub(super) async fn end(&mut self, signal: Signal, within: Duration) -> Option<ExitStatus> {
        let asked = self.signal(signal);
        let ended = if asked.is_ok() { self.wait(within).await } else { None };
        if ended.is_none() {
            self.kill();
        }
        ended
    }

    /// How it ended, if it does within the time.
    pub(super) async fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + within;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() >= until {
                return None;
            }
            sleep(POLL).await;
        }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.parting != Signal::KILL && self.signal(self.parting).is_ok() {
            let until = Instant::now() + PARTING;
            while self.ended().is_none() && Instant::now() < until {
                std::thread::sleep(POLL);
            }
        }
        self.kill();
    }
}
