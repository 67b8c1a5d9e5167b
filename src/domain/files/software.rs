//! Which server program, and where containers get it.

use crate::domain::node::{Flavor, Version};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Software {
    pub flavor: Flavor,
    pub version: Version,
}

impl Software {
    /// Reads `7.2`, `redis 7.2.4` or `valkey-9.0`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        let behind = |name| Some(text.strip_prefix(name)?.trim_start_matches([' ', '-', ':', '@']));
        let (flavor, number) = match (behind("valkey"), behind("redis")) {
            (Some(number), _) => (Flavor::Valkey, number),
            (None, number) => (Flavor::Redis, number.unwrap_or(&text)),
        };
        let parts: Vec<&str> = number.split('.').collect();
        let is_number =
            |part: &&str| (1..=4).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        let whole = (1..=3).contains(&parts.len()) && parts.iter().all(is_number);
        whole.then(|| Self { flavor, version: Version::parse(number) })
    }

    #[must_use]
    pub fn title(&self) -> &'static str {
        match self.flavor {
            Flavor::Redis => "Redis",
            Flavor::Valkey => "Valkey",
        }
    }

    /// The server's program.
    #[must_use]
    pub fn server(&self) -> &'static str {
        match self.flavor {
            Flavor::Redis => "redis-server",
            Flavor::Valkey => "valkey-server",
        }
    }

    /// The command line client's program.
    #[must_use]
    pub fn cli(&self) -> &'static str {
        match self.flavor {
            Flavor::Redis => "redis-cli",
            Flavor::Valkey => "valkey-cli",
        }
    }

    /// The container image, by the series that gets fixes.
    #[must_use]
    pub fn image(&self) -> String {
        let Version { major, minor, .. } = self.version;
        match self.flavor {
            Flavor::Redis => format!("redis:{major}.{minor}"),
            Flavor::Valkey => format!("valkey/valkey:{major}.{minor}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_people_write_them() {
        for (text, image) in [
            ("7.2", "redis:7.2"),
            ("redis 6.2.14", "redis:6.2"),
            ("Valkey-9.0", "valkey/valkey:9.0"),
            ("8", "redis:8.0"),
        ] {
            assert_eq!(Software::parse(text).unwrap().image(), image, "{text}");
        }
        for text in ["", "latest", "7.x", "7..2", "-1", "99999999", "7.2; rm -rf /"] {
            assert_eq!(Software::parse(text), None, "{text}");
        }
    }
}
