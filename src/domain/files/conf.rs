//! A configuration file in the making. What the topology's settings say goes before the default.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

pub(super) struct Conf<'a> {
    text: String,
    settings: &'a BTreeMap<String, String>,
    used: BTreeSet<&'a str>,
}

impl<'a> Conf<'a> {
    pub(super) fn new(settings: &'a BTreeMap<String, String>) -> Self {
        Self { text: String::new(), settings, used: BTreeSet::new() }
    }

    /// Lines for people.
    pub(super) fn say(&mut self, lines: &str) {
        for line in lines.lines() {
            self.text.push_str(format!("# {line}").trim_end());
            self.text.push('\n');
        }
    }

    /// A new part, with its reason.
    pub(super) fn part(&mut self, lines: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.say(lines);
    }

    /// A line that the settings have no say in.
    pub(super) fn fixed(&mut self, name: &str, value: &str) {
        // Writing to a text does not fail.
        let _ = writeln!(self.text, "{name} {value}");
    }

    /// What the settings say, or else this.
    pub(super) fn set(&mut self, name: &'static str, default: &str) {
        match self.settings.get_key_value(name) {
            Some((name, value)) => {
                self.used.insert(name);
                self.setting(name, value);
            }
            None => self.setting(name, default),
        }
    }

    /// What the settings say beyond that.
    pub(super) fn finish(mut self) -> String {
        let all = self.settings;
        let left: Vec<_> = all.iter().filter(|(n, _)| !self.used.contains(n.as_str())).collect();
        if !left.is_empty() {
            self.part("What the topology's settings say beyond that.");
        }
        for (name, value) in left {
            self.setting(name, value);
        }
        self.text
    }

    /// One setting, as CONFIG SET takes it, in as many lines as a file needs: before 7.0 each pair of
    /// `save` and each class of clients had a line of its own.
    fn setting(&mut self, name: &str, value: &str) {
        let words: Vec<String> = value.split_whitespace().map(word).collect();
        let a_line = match name {
            "save" => 2,
            "client-output-buffer-limit" => 4,
            "oom-score-adj-values" | "latency-tracking-info-percentiles" => words.len(),
            _ => 0,
        };
        if a_line > 0 && !words.is_empty() {
            for chunk in words.chunks(a_line) {
                self.fixed(name, &chunk.join(" "));
            }
        } else {
            self.fixed(name, &word(value));
        }
    }
}

/// One word, in quotes where it needs them, so that no value can become a line of its own.
fn word(value: &str) -> String {
    let bare = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\' | '#');
    if !value.is_empty() && value.chars().all(bare) {
        return value.to_owned();
    }
    let mut quoted = String::from("\"");
    for byte in value.bytes() {
        match byte {
            b'"' | b'\\' => {
                quoted.push('\\');
                quoted.push(char::from(byte));
            }
            b' '..=b'~' => quoted.push(char::from(byte)),
            other => {
                let _ = write!(quoted, "\\x{other:02x}");
            }
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_becomes_a_line_of_its_own() {
        let settings = BTreeMap::from([
            ("notify-keyspace-events".to_owned(), "x\nloadmodule /tmp/evil.so".to_owned()),
            ("save".to_owned(), "900 1 300 10".to_owned()),
            ("maxmemory".to_owned(), "2gb".to_owned()),
            ("client-output-buffer-limit".to_owned(), "normal 0 0 0 replica 1gb 1gb 60".to_owned()),
            ("proc-title-template".to_owned(), "{title} \"x\" # \u{e9}".to_owned()),
        ]);
        let mut conf = Conf::new(&settings);
        conf.part("Memory.");
        conf.set("maxmemory", "1gb");
        conf.set("maxmemory-policy", "noeviction");
        conf.set("logfile", "");
        assert_eq!(
            conf.finish(),
            "# Memory.\nmaxmemory 2gb\nmaxmemory-policy noeviction\nlogfile \"\"\n\n\
             # What the topology's settings say beyond that.\n\
             client-output-buffer-limit normal 0 0 0\n\
             client-output-buffer-limit replica 1gb 1gb 60\n\
             notify-keyspace-events \"x\\x0aloadmodule /tmp/evil.so\"\n\
             proc-title-template \"{title} \\\"x\\\" # \\xc3\\xa9\"\n\
             save 900 1\nsave 300 10\n"
        );
    }
}
