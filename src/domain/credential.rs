//! A login. It never shows itself: `Debug` prints stars, and it has no `Serialize`.

use std::fmt;

#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// The ACL user; the default user when left out.
    pub username: Option<String>,
    password: String,
}

impl Credential {
    #[must_use]
    pub fn new(username: Option<String>, password: String) -> Self {
        Self { username, password }
    }

    /// The password itself, for the one who logs in.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.password
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({:?}, ***)", self.username)
    }
}
