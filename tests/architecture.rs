//! Holds the code to the table of layers: what each may import of this crate.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A layer, and the modules of this crate that it may name.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("settings", &[]),
    ("telemetry", &["settings"]),
    ("shutdown", &[]),
    ("domain", &["domain"]),
    ("fleet", &["fleet", "domain"]),
    ("store", &["store", "domain", "clock"]),
    ("engine", &["engine", "domain", "fleet", "store", "clock"]),
    ("http", &["http", "domain", "store", "engine", "clock"]),
    ("client", &["client", "domain"]),
    ("demo", &["demo", "client", "domain", "clock"]),
    (
        "app",
        &[
            "settings",
            "telemetry",
            "shutdown",
            "clock",
            "domain",
            "fleet",
            "store",
            "engine",
            "http",
        ],
    ),
    ("lib", &[]),
    ("main", &["app", "demo", "http", "settings", "store", "client"]),
    ("bin", &["demo", "client", "domain", "clock"]),
];

/// Crates that the pure core must not name: they would bring I/O, a clock or randomness.
const IMPURE: &[&str] = &[
    "tokio::",
    "sqlx::",
    " redis::",
    "axum::",
    "reqwest::",
    "futures::",
    "tracing::",
    "metrics::",
    "getrandom::",
    "std::fs",
    "std::io",
    "std::net::Tcp",
    "std::net::Udp",
    "std::time::SystemTime",
    "std::time::Instant",
    "Instant::now",
    "std::env",
    "std::process",
    "std::thread",
    "use std::{",
    "Utc::now",
    "Local::now",
    "now_v7",
    "new_v4",
    "async fn",
];

/// What its tests may name all the same: a clock, to see that something is fast enough.
const TIMING: &[&str] = &["std::time::Instant", "Instant::now"];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The layer that a file belongs to: its first folder, or its own name.
fn layer(file: &Path) -> String {
    let inside = file.strip_prefix(src()).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The code of a file without its comments, so that prose may name what it likes.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let lines = text.lines().map(|l| l.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The code without the tests at its end.
fn without_tests(code: &str) -> &str {
    code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
}

/// Whether it is `tests.rs`, or below its folder.
fn is_of_tests(file: &Path) -> bool {
    let inside = file.strip_prefix(src()).unwrap();
    inside.iter().any(|part| part == "tests" || part == "tests.rs")
}

/// The top-level modules of this crate that the code names.
fn imports(code: &str) -> BTreeSet<String> {
    let word = |rest: &str| {
        rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>()
    };
    let mut found = BTreeSet::new();
    for marker in ["crate::", "reeve::"] {
        for (at, _) in code.match_indices(marker) {
            let rest = &code[at + marker.len()..];
            match rest.strip_prefix('{') {
                None => {
                    found.insert(word(rest));
                }
                Some(list) => {
                    let list = list.split('}').next().unwrap_or_default();
                    found.extend(list.split(',').map(|part| word(part.trim())));
                }
            }
        }
    }
    found.retain(|m| !m.is_empty() && m.chars().next().is_some_and(char::is_lowercase));
    found
}

#[test]
fn layers_import_only_what_the_table_allows() {
    let mut wrong = Vec::new();
    for file in sources(&src()) {
        let layer = layer(&file);
        let row = MAY_IMPORT.iter().find(|(l, _)| *l == layer);
        let Some((_, allowed)) = row else {
            wrong.push(format!("{} is in no layer of the table", file.display()));
            continue;
        };
        for module in imports(&code(&file)) {
            if !allowed.contains(&module.as_str()) {
                wrong.push(format!("{} imports crate::{module}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_domain_is_pure() {
    let mut wrong = Vec::new();
    for file in sources(&src().join("domain")) {
        let code = code(&file);
        let lives = if is_of_tests(&file) { "" } else { without_tests(&code) };
        let tests = &code[lives.len()..];
        let named = IMPURE.iter().filter(|word| {
            lives.contains(*word) || (tests.contains(*word) && !TIMING.contains(word))
        });
        wrong.extend(named.map(|word| format!("{}: {word}", file.display())));
        // A file is of tests by its name only where no build but that of tests has it.
        for (at, _) in code.match_indices("mod tests;") {
            if !code[..at].trim_end().ends_with("#[cfg(test)]") {
                wrong.push(format!("{}: mod tests; without #[cfg(test)]", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn sql_is_in_the_store_alone_and_commands_to_nodes_leave_from_one_place() {
    let mut wrong = Vec::new();
    for file in sources(&src()) {
        let (layer, code) = (layer(&file), code(&file));
        let code = without_tests(&code);
        if layer != "store" && code.contains("sqlx::query") {
            wrong.push(format!("{} has SQL", file.display()));
        }
        let applies = file.ends_with("engine/apply.rs") || layer == "fleet";
        if !applies && code.contains("fleet.send(") {
            wrong.push(format!("{} sends commands", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_test_sees_what_it_looks_for() {
    let seen =
        imports("use crate::fleet::Fleet; let x = crate::store::Y; use crate::{http, app::Z};");
    assert_eq!(seen, ["app", "fleet", "http", "store"].map(str::to_owned).into());
}
