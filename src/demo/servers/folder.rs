//! A folder for what servers write.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{ServerError, random_hex};

/// Removed with all that is in it when dropped, unless it is kept.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    /// A new one among the system's temporary files.
    pub fn fresh(prefix: &str) -> Result<Self, ServerError> {
        let name = format!("{prefix}-{}", random_hex(5)?);
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path)
            .map_err(ServerError::io(format!("cannot make {}", path.display())))?;
        Self::open(path)
    }

    /// The one at `path`, which is made, or is there and empty.
    pub fn at(path: &Path) -> Result<Self, ServerError> {
        let what = || ServerError::io(format!("cannot use {}", path.display()));
        fs::create_dir_all(path).map_err(what())?;
        if fs::read_dir(path).map_err(what())?.next().is_some() {
            return Err(ServerError::NotEmpty(path.to_owned()));
        }
        Self::open(path.canonicalize().map_err(what())?)
    }

    /// Others may pass through, since PostgreSQL refuses to run as root, but not look around.
    fn open(path: PathBuf) -> Result<Self, ServerError> {
        let folder = Self { path, keep: false };
        fs::set_permissions(&folder.path, fs::Permissions::from_mode(0o711)).map_err(
            ServerError::io(format!("cannot set the mode of {}", folder.path.display())),
        )?;
        Ok(folder)
    }

    pub fn keep(&mut self) {
        self.keep = true;
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder below it, by name; it need not be there yet.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed stays; there is nobody to tell.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
