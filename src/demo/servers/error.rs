//! Why a server could not be had.

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("{program} is not installed; {remedy}")]
    Missing { program: String, remedy: &'static str },
    #[error("{server} did not start: {why}{}", shown(.log))]
    Start { server: String, why: String, log: String },
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("found no free port on 127.0.0.1")]
    NoPort,
    #[error("{} is not empty; name a new or an empty folder", .0.display())]
    NotEmpty(PathBuf),
    #[error("the system gives no random bytes")]
    Random,
}

impl ServerError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| Self::Io { what, source }
    }

    pub(super) fn start(server: &str, why: impl Into<String>, log: &Path) -> Self {
        Self::Start { server: server.to_owned(), why: why.into(), log: tail(log, 15) }
    }
}

/// The last lines of a file; nothing where it cannot be read.
pub(super) fn tail(file: &Path, lines: usize) -> String {
    let text = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn shown(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("\n{log}") }
}
