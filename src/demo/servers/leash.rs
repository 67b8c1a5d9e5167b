//! What ends the servers when this process can no longer do it itself.
//!
//! All servers share a process group whose leader is a small shell that reads from a pipe. The
//! other end is held by this process alone, so the shell reads its end however this process dies,
//! and then ends the group. The group also keeps a Ctrl-C at the terminal from the servers, which
//! are to be stopped in order.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};

static LEASH: Mutex<Weak<Leash>> = Mutex::new(Weak::new());

/// SIGINT stops PostgreSQL, Redis and Reeve in an orderly way; what does not stop is killed.
const WATCH: &str = "trap '' INT TERM HUP; read -r _; kill -INT 0; sleep 3; kill -KILL 0";

pub(super) struct Leash {
    shell: Child,
}

impl Leash {
    /// The one leash of this process; it lasts as long as somebody holds it.
    pub(super) fn hold() -> io::Result<Arc<Self>> {
        let mut leash = LEASH.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leash) = leash.upgrade() {
            return Ok(leash);
        }
        let shell = Command::new("/bin/sh")
            .args(["-c", WATCH])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let new = Arc::new(Self { shell });
        *leash = Arc::downgrade(&new);
        Ok(new)
    }

    pub(super) fn group(&self) -> i32 {
        i32::try_from(self.shell.id()).unwrap_or(0)
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        // Every server of the group has ended before, since each holds the leash.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
