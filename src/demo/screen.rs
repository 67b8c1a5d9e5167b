//! The terminal, or whatever stands in for it.

use std::io::{IsTerminal, Write, stdout};
use std::time::Duration;

/// How much of a passing line is shown: one that wraps could not be overwritten.
const WIDTH: usize = 78;

/// Writes lines; those that pass are overwritten by the next one. Whether anybody reads them is
/// not the demo's concern.
pub(super) struct Screen {
    terminal: bool,
    passing: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { terminal: stdout().is_terminal(), passing: false }
    }

    pub(super) fn line(&mut self, text: &str) {
        self.clear();
        let _ = writeln!(stdout(), "{text}");
    }

    pub(super) fn heading(&mut self, text: &str) {
        self.line("");
        self.line(text);
    }

    /// A line that the next one replaces; only for people who watch.
    pub(super) fn passing(&mut self, text: &str) {
        if self.terminal {
            let short: String = text.chars().filter(|c| !c.is_control()).take(WIDTH).collect();
            let _ = write!(stdout(), "\r\x1b[2K{short}");
            let _ = stdout().flush();
            self.passing = true;
        }
    }

    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.passing) {
            let _ = write!(stdout(), "\r\x1b[2K");
            let _ = stdout().flush();
        }
    }
}

/// A duration as it stands before each line of a list.
pub(super) fn seconds(time: Duration) -> String {
    format!("{:>5.2} s", time.as_secs_f64())
}
