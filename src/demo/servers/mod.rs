//! Real servers on this machine, for as long as somebody holds them: PostgreSQL, Redis, and Reeve
//! itself. The demo, the tests and the benchmark run on them.
//!
//! Each server ends when its value is dropped, by its process id and never by its name. If the
//! whole process dies first, by whatever signal, its [`leash`] ends them.

mod error;
mod folder;
mod leash;
mod port;
mod postgres;
mod process;
mod redis;
mod reeve;

use std::path::PathBuf;

pub use rustix::process::Signal;

pub use self::error::ServerError;
pub use self::folder::Folder;
pub use self::port::{Port, free_port};
pub use self::postgres::Postgres;
pub use self::redis::{Redis, RedisOptions};
pub use self::reeve::{Server, ServerOptions};

/// So many random bytes in hexadecimal: a password, a name.
pub fn random_hex(bytes: usize) -> Result<String, ServerError> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).map_err(|_| ServerError::Random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Where `PATH` has a program.
fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}
