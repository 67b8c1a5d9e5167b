//! The settings of a simulated server: what it is started with, what `CONFIG SET` takes, what
//! `CONFIG REWRITE` keeps.

use std::collections::BTreeMap;

use super::verbs::Refusal;
use crate::domain::node::{Flavor, Version};
use crate::domain::size::bytes;

/// How a setting's values are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Number,
    /// A number of bytes, which may be written with a unit and is always answered without.
    Bytes,
    Switch,
    Text,
    /// Only the config file can set it.
    Fixed,
}

/// The settings that the simulation knows, with the values that a server has by itself.
const KNOWN: &[(&str, Form, &str)] = &[
    ("appendonly", Form::Switch, "no"),
    ("cluster-allow-replica-migration", Form::Switch, "yes"),
    ("cluster-enabled", Form::Fixed, "no"),
    ("cluster-migration-barrier", Form::Number, "1"),
    ("cluster-node-timeout", Form::Number, "15000"),
    ("cluster-replica-no-failover", Form::Switch, "no"),
    ("cluster-replica-validity-factor", Form::Number, "10"),
    ("cluster-require-full-coverage", Form::Switch, "yes"),
    ("masterauth", Form::Text, ""),
    ("masteruser", Form::Text, ""),
    ("maxmemory", Form::Bytes, "0"),
    ("maxmemory-policy", Form::Text, "noeviction"),
    ("min-replicas-max-lag", Form::Number, "10"),
    ("min-replicas-to-write", Form::Number, "0"),
    ("port", Form::Fixed, "6379"),
    ("repl-backlog-size", Form::Bytes, "1048576"),
    ("repl-diskless-sync", Form::Switch, "yes"),
    ("repl-diskless-sync-delay", Form::Number, "5"),
    ("repl-ping-replica-period", Form::Number, "10"),
    ("repl-timeout", Form::Number, "60"),
    ("replica-priority", Form::Number, "100"),
    ("save", Form::Text, ""),
    ("timeout", Form::Number, "0"),
];

#[derive(Debug, Clone)]
pub(super) struct Settings {
    now: BTreeMap<&'static str, String>,
    /// What the server would start with again.
    file: BTreeMap<&'static str, String>,
    /// Whether there is a config file to rewrite.
    writable: bool,
    old: bool,
}

impl Settings {
    pub fn new(
        flavor: Flavor,
        version: Version,
        given: &BTreeMap<String, String>,
        writable: bool,
    ) -> Self {
        let old = flavor == Flavor::Redis && version < Version::new(7, 0, 0);
        let mut file: BTreeMap<_, _> =
            KNOWN.iter().map(|(name, _, value)| (*name, (*value).to_owned())).collect();
        if old {
            file.insert("repl-diskless-sync", "no".to_owned());
        }
        for (name, form, _) in KNOWN {
            if let Some(value) = given.get(*name) {
                file.insert(name, read(*form, value).unwrap_or_else(|| value.clone()));
            }
        }
        Self { now: file.clone(), file, writable, old }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.now.get(name).map(String::as_str)
    }

    pub fn all(&self) -> BTreeMap<String, String> {
        owned(&self.now)
    }

    pub fn written(&self) -> BTreeMap<String, String> {
        owned(&self.file)
    }

    pub fn number(&self, name: &str) -> u64 {
        self.get(name).and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    pub fn is_on(&self, name: &str) -> bool {
        self.get(name) == Some("yes")
    }

    pub fn set(&mut self, name: &str, value: &str) -> Result<(), Refusal> {
        let name = name.to_ascii_lowercase();
        let Some((name, form, _)) = KNOWN.iter().find(|(known, ..)| *known == name) else {
            return Err(Refusal::err(if self.old {
                format!("Unsupported CONFIG parameter: {name}")
            } else {
                format!("Unknown option or number of arguments for CONFIG SET - '{name}'")
            }));
        };
        match read(*form, value) {
            Some(value) => {
                self.now.insert(name, value);
                Ok(())
            }
            None if self.old && *form == Form::Fixed => {
                Err(Refusal::err(format!("Unsupported CONFIG parameter: {name}")))
            }
            None if self.old => {
                Err(Refusal::err(format!("Invalid argument '{value}' for CONFIG SET '{name}'")))
            }
            None => {
                let why = match form {
                    Form::Fixed => "can't set immutable config",
                    Form::Switch => "argument must be 'yes' or 'no'",
                    Form::Bytes => "argument must be a memory value",
                    Form::Number | Form::Text => "argument couldn't be parsed into an integer",
                };
                Err(Refusal::err(format!(
                    "CONFIG SET failed (possibly related to argument '{name}') - {why}"
                )))
            }
        }
    }

    pub fn rewrite(&mut self) -> Result<(), Refusal> {
        if !self.writable {
            return Err(Refusal::err("The server is running without a config file"));
        }
        self.file.clone_from(&self.now);
        Ok(())
    }

    /// As after a start: what was set and not written is gone.
    pub fn reload(&mut self) {
        self.now.clone_from(&self.file);
    }
}

fn owned(values: &BTreeMap<&'static str, String>) -> BTreeMap<String, String> {
    values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

/// The value as the server answers it, or nothing if it does not take it.
fn read(form: Form, value: &str) -> Option<String> {
    match form {
        Form::Number => value.parse::<u64>().ok().map(|n| n.to_string()),
        Form::Bytes => bytes(value).map(|n| n.to_string()),
        Form::Switch => matches!(value, "yes" | "no").then(|| value.to_owned()),
        Form::Text => Some(value.to_owned()),
        Form::Fixed => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_written_is_gone_after_a_start() {
        let given = BTreeMap::new();
        let mut settings = Settings::new(Flavor::Redis, Version::new(7, 0, 15), &given, true);
        settings.set("maxmemory", "100mb").unwrap();
        settings.rewrite().unwrap();
        settings.set("cluster-node-timeout", "500").unwrap();
        assert_eq!(settings.get("maxmemory"), Some("104857600"));
        assert_eq!(settings.number("cluster-node-timeout"), 500);
        settings.reload();
        assert_eq!(settings.get("maxmemory"), Some("104857600"));
        assert_eq!(settings.number("cluster-node-timeout"), 15000);
    }

    #[test]
    fn odd_names_and_values_are_refused() {
        let given = BTreeMap::new();
        let mut settings = Settings::new(Flavor::Redis, Version::new(6, 2, 14), &given, false);
        for (name, value) in [("nonsense", "1"), ("maxmemory", "much"), ("cluster-enabled", "yes")]
        {
            assert_eq!(settings.set(name, value).unwrap_err().code, "ERR", "{name}");
        }
        assert_eq!(settings.rewrite().unwrap_err().code, "ERR");
        assert_eq!(settings.get("repl-diskless-sync"), Some("no"));
    }
}
