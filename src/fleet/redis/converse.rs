//! Conversing: what is said while slots move or a shard is handed over goes out in one batch, and every answer is read, each as
//! what its question asks for.
//!
//! Hundreds of thousands of keys pass here each second: names are written once, and taken out of
//! the answers as they are.

use redis::{Cmd, Pipeline, ServerError, Value};

use super::Timeouts;
use super::connection::{Node, without_secrets};
use super::info::Info;
use super::look::replication;
use super::nodes;
use super::value::{field, text};
use crate::domain::moving::talk::{Answer, JobState, Key, Saying, SlotJob, SlotState, Standing};
use crate::domain::node::{Address, Capabilities, ClusterNodeId};
use crate::domain::slot::SlotSet;
use crate::fleet::{FleetError, Talk, Target};

/// The code of an answer that has not the shape of one.
const UNEXPECTED: &str = "unexpected_reply";

pub(super) async fn converse(
    node: &Node,
    talk: &Talk<'_>,
    sayings: &[Saying],
    times: &Timeouts,
) -> Result<Vec<Answer>, FleetError> {
    if sayings.is_empty() {
        return Ok(Vec::new());
    }
    let mut batch = Pipeline::with_capacity(sayings.len());
    let mut counts = Vec::with_capacity(sayings.len());
    for saying in sayings {
        let before = batch.len();
        match saying {
            Saying::TakeSlots { slots, itself } => transaction(&mut batch, take(slots, itself)),
            Saying::TryTransaction => transaction(&mut batch, []),
            saying => {
                batch.add_command(command(saying, talk.target));
            }
        }
        counts.push(batch.len() - before);
    }
    let mut replies = node.talk(talk, &batch, times).await?.into_iter();
    let answers = sayings.iter().zip(counts).map(|(saying, count)| match saying {
        Saying::TakeSlots { .. } | Saying::TryTransaction => {
            outcome(saying, replies.by_ref().take(count), talk.target)
        }
        saying => answer(saying, replies.next().unwrap_or(Value::Nil), talk.target),
    });
    Ok(answers.collect())
}

fn transaction(batch: &mut Pipeline, commands: impl IntoIterator<Item = String>) {
    let (first, last) = (["MULTI".to_owned()], ["EXEC".to_owned()]);
    for command in first.into_iter().chain(commands).chain(last) {
        let mut words = Cmd::new();
        for word in command.split(' ') {
            words.arg(word);
        }
        batch.add_command(words);
    }
}

/// A slot that is not imported at that moment is assigned without a word to the others; the last one has
/// them told of all.
fn take(slots: &[u16], itself: &ClusterNodeId) -> impl Iterator<Item = String> {
    let last = slots.last();
    let quietly = slots.iter().filter(move |slot| Some(*slot) != last);
    let quietly = quietly.flat_map(move |slot| {
        [format!("CLUSTER SETSLOT {slot} STABLE"), format!("CLUSTER SETSLOT {slot} NODE {itself}")]
    });
    let claims =
        quietly.chain(last.map(move |slot| format!("CLUSTER SETSLOT {slot} NODE {itself}")));
    ["CLUSTER BUMPEPOCH".to_owned()].into_iter().chain(claims)
}

/// Done when all of a transaction was.
fn outcome(saying: &Saying, replies: impl Iterator<Item = Value>, target: &Target) -> Answer {
    let mut last = None;
    for reply in replies {
        if let Value::ServerError(error) = &reply {
            return refused(saying, error, target);
        }
        last = Some(reply);
    }
    let results = match last {
        Some(Value::Array(results)) => results,
        _ => return unexpected(),
    };
    let errors = results.iter().filter_map(|result| match result {
        Value::ServerError(error) => Some(refused(saying, error, target)),
        _ => None,
    });
    errors.into_iter().next().unwrap_or(Answer::Done)
}

fn command(saying: &Saying, target: &Target) -> Cmd {
    let mut words = Cmd::new();
    match saying {
        Saying::SetSlot { slot, state } => {
            words.arg("CLUSTER").arg("SETSLOT").arg(slot);
            match state {
                SlotState::Importing(from) => words.arg("IMPORTING").arg(&from.0),
                SlotState::Migrating(to) => words.arg("MIGRATING").arg(&to.0),
                SlotState::Node(owner) => words.arg("NODE").arg(&owner.0),
                SlotState::Stable => words.arg("STABLE"),
            }
        }
        // Several commands, see `transaction`.
        Saying::TakeSlots { .. } | Saying::TryTransaction => words.arg("EXEC"),
        Saying::CountKeys { slot } => words.arg("CLUSTER").arg("COUNTKEYSINSLOT").arg(slot),
        Saying::ListKeys { slot, at_most } => {
            words.arg("CLUSTER").arg("GETKEYSINSLOT").arg(slot).arg(at_most)
        }
        Saying::Size { key } => words.arg("MEMORY").arg("USAGE").arg(&key.0[..]),
        Saying::TypeOf { key } => words.arg("TYPE").arg(&key.0[..]),
        Saying::Migrate { to, keys, within_ms } => {
            words = migrate(to, keys, *within_ms, target);
            &mut words
        }
        Saying::Ping => words.arg("PING"),
        Saying::CountListeners { channel } => words.arg("PUBSUB").arg("NUMSUB").arg(channel),
        Saying::DumpFunctions => words.arg("FUNCTION").arg("DUMP"),
        Saying::RestoreFunctions(dump) => {
            words.arg("FUNCTION").arg("RESTORE").arg(&dump[..]).arg("REPLACE")
        }
        Saying::DeleteLibrary(name) => words.arg("FUNCTION").arg("DELETE").arg(name),
        Saying::MigrateSlots { slots, to } => {
            words.arg("CLUSTER").arg("MIGRATESLOTS").arg("SLOTSRANGE");
            for range in slots.ranges() {
                words.arg(range.first()).arg(range.last());
            }
            words.arg("NODE").arg(&to.0)
        }
        Saying::SlotJobs => words.arg("CLUSTER").arg("GETSLOTMIGRATIONS"),
        Saying::CancelSlotJobs => words.arg("CLUSTER").arg("CANCELSLOTMIGRATIONS"),
        Saying::ImportSlots { slots } => {
            words.arg("CLUSTER").arg("MIGRATION").arg("IMPORT");
            for range in slots.ranges() {
                words.arg(range.first()).arg(range.last());
            }
            &mut words
        }
        Saying::Imports => words.arg("CLUSTER").arg("MIGRATION").arg("STATUS").arg("ALL"),
        Saying::CancelImport { name } => {
            words.arg("CLUSTER").arg("MIGRATION").arg("CANCEL").arg("ID").arg(name)
        }
        Saying::Stand => words.arg("INFO").arg("replication"),
        // None of those that are said like this is written differently by versions.
        Saying::Command(verb) => words.arg(verb.words(Capabilities::OLDEST)),
    };
    words
}

/// The node logs in at the other one as Reeve does: a topology has one login.
fn migrate(to: &Address, keys: &[Key], within_ms: u64, target: &Target) -> Cmd {
    let mut words = Cmd::with_capacity(keys.len() + 11, keys.iter().map(|key| key.0.len()).sum());
    words.arg("MIGRATE").arg(to.host()).arg(to.port()).arg("").arg(0).arg(within_ms).arg("REPLACE");
    if let Some(login) = &target.login {
        match &login.username {
            Some(user) => words.arg("AUTH2").arg(user).arg(login.reveal()),
            None => words.arg("AUTH").arg(login.reveal()),
        };
    }
    words.arg("KEYS");
    for key in keys {
        words.arg(&key.0[..]);
    }
    words
}

fn answer(saying: &Saying, reply: Value, target: &Target) -> Answer {
    if let Value::ServerError(error) = &reply {
        return refused(saying, error, target);
    }
    let read = match saying {
        Saying::SetSlot { .. }
        | Saying::TakeSlots { .. }
        | Saying::TryTransaction
        | Saying::RestoreFunctions(_)
        | Saying::DeleteLibrary(_)
        | Saying::MigrateSlots { .. }
        | Saying::CancelSlotJobs => done(&reply, "OK"),
        // `REPLICAOF` says more where it changes nothing.
        Saying::Command(_) => done(&reply, "OK").or_else(|| text(&reply).map(|_| Answer::Done)),
        Saying::Stand => standing(&reply),
        Saying::Ping => done(&reply, "PONG"),
        Saying::CountListeners { channel } => field(&reply, channel).and_then(number),
        Saying::Migrate { .. } => {
            done(&reply, "OK").or_else(|| done(&reply, "NOKEY").map(|_| Answer::Nothing))
        }
        Saying::CountKeys { .. } | Saying::Size { .. } | Saying::CancelImport { .. } => {
            number(&reply)
        }
        Saying::ListKeys { .. } => keys(reply),
        Saying::TypeOf { .. } => kind(reply),
        Saying::DumpFunctions => bytes(reply),
        Saying::SlotJobs => jobs(&reply, target),
        // It names the job, which is found by its slots.
        Saying::ImportSlots { .. } => text(&reply).map(|_| Answer::Done),
        Saying::Imports => imports(&reply, target),
    };
    read.unwrap_or_else(unexpected)
}

fn unexpected() -> Answer {
    Answer::Refused {
        code: UNEXPECTED.to_owned(),
        message: "the answer is none that this command has".to_owned(),
    }
}

fn refused(saying: &Saying, error: &ServerError, target: &Target) -> Answer {
    // In a slot that is given away, a key that is not there any more is one to be asked for elsewhere.
    let elsewhere = matches!(saying, Saying::Size { .. } | Saying::TypeOf { .. });
    if elsewhere && error.code() == "ASK" {
        return Answer::Nothing;
    }
    let message = error.details().unwrap_or_else(|| error.code());
    Answer::Refused { code: error.code().to_owned(), message: without_secrets(message, target) }
}

fn done(reply: &Value, word: &str) -> Option<Answer> {
    match reply {
        Value::Okay => word == "OK",
        Value::SimpleString(said) => said == word,
        _ => false,
    }
    .then_some(Answer::Done)
}

fn standing(reply: &Value) -> Option<Answer> {
    let said = text(reply)?;
    let info = Info::parse(&said);
    info.get("role")?;
    let role = info.role();
    Some(Answer::Standing(Box::new(Standing { role, replication: replication(&info, role) })))
}

fn number(reply: &Value) -> Option<Answer> {
    match reply {
        Value::Int(number) => Some(Answer::Number(u64::try_from(*number).ok()?)),
        Value::Nil => Some(Answer::Nothing),
        _ => None,
    }
}

fn keys(reply: Value) -> Option<Answer> {
    let Value::Array(items) = reply else { return None };
    let name = |item| match item {
        Value::BulkString(name) => Some(Key(name)),
        _ => None,
    };
    items.into_iter().map(name).collect::<Option<_>>().map(Answer::Keys)
}

fn kind(reply: Value) -> Option<Answer> {
    match reply {
        Value::SimpleString(kind) if kind == "none" => Some(Answer::Nothing),
        Value::SimpleString(kind) => Some(Answer::Text(kind)),
        _ => None,
    }
}

fn bytes(reply: Value) -> Option<Answer> {
    match reply {
        Value::BulkString(bytes) => Some(Answer::Bytes(bytes)),
        Value::Nil => Some(Answer::Nothing),
        _ => None,
    }
}

/// All of them or none: a job that was left out would be taken for one that is not there.
pub(super) fn jobs(reply: &Value, target: &Target) -> Option<Answer> {
    let Value::Array(items) = reply else { return None };
    items.iter().map(|item| job(item, target)).collect::<Option<_>>().map(Answer::Jobs)
}

fn job(item: &Value, target: &Target) -> Option<SlotJob> {
    let word = |name| field(item, name).and_then(text);
    let giving = match word("operation")?.as_ref() {
        "EXPORT" => true,
        "IMPORT" => false,
        _ => return None,
    };
    let other = if giving { "target_node" } else { "source_node" };
    Some(SlotJob {
        name: word("name")?.into_owned(),
        giving,
        slots: word("slot_ranges")?.replace(' ', ",").parse::<SlotSet>().ok()?,
        other: word(other).and_then(|word| nodes::id(&word)),
        state: match word("state").unwrap_or_default().as_ref() {
            "success" => JobState::Succeeded,
            "failed" => JobState::Failed,
            "cancelled" => JobState::Cancelled,
            // It has many names for the ways there, and later versions have more.
            _ => JobState::Running,
        },
        message: without_secrets(&word("message").unwrap_or_default(), target),
    })
}

/// The same as Redis 8.4 tells of them.
pub(super) fn imports(reply: &Value, target: &Target) -> Option<Answer> {
    let Value::Array(items) = reply else { return None };
    items.iter().map(|item| import(item, target)).collect::<Option<_>>().map(Answer::Jobs)
}

fn import(item: &Value, target: &Target) -> Option<SlotJob> {
    let word = |name| field(item, name).and_then(text);
    let giving = match word("operation")?.as_ref() {
        "migrate" => true,
        "import" => false,
        _ => return None,
    };
    let other = if giving { "dest" } else { "source" };
    Some(SlotJob {
        name: word("id")?.into_owned(),
        giving,
        slots: word("slots")?.replace(' ', ",").parse::<SlotSet>().ok()?,
        other: word(other).and_then(|word| nodes::id(&word)),
        state: match word("state")?.as_ref() {
            "completed" => JobState::Succeeded,
            "failed" => JobState::Failed,
            "canceled" => JobState::Cancelled,
            // It has many names for the ways there.
            _ => JobState::Running,
        },
        message: without_secrets(&word("last_error").unwrap_or_default(), target),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::credential::Credential;
    use crate::domain::node::ClusterNodeId;

    fn target(login: Option<(Option<&str>, &str)>) -> Target {
        let login = login.map(|(user, password)| {
            Arc::new(Credential::new(user.map(str::to_owned), password.to_owned()))
        });
        let address = "127.0.0.1:7001".parse().unwrap();
        Target { address, login, replication: None, fence: None }
    }

    fn said(saying: &Saying, target: &Target) -> String {
        let words = command(saying, target);
        let words = words.args_iter().map(|word| match word {
            redis::Arg::Simple(b"") => "\"\"".to_owned(),
            redis::Arg::Simple(word) => Key(word.to_vec()).to_string(),
            _ => "cursor".to_owned(),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    fn key(name: &[u8]) -> Key {
        Key(name.to_vec())
    }

    #[test]
    fn sayings_become_commands() {
        let id = || ClusterNodeId("ab".repeat(20));
        let slots = || "0-10,20".parse().unwrap();
        let state = |state| Saying::SetSlot { slot: 5, state };
        for (saying, words) in [
            (state(SlotState::Importing(id())), "CLUSTER SETSLOT 5 IMPORTING ID"),
            (state(SlotState::Migrating(id())), "CLUSTER SETSLOT 5 MIGRATING ID"),
            (state(SlotState::Node(id())), "CLUSTER SETSLOT 5 NODE ID"),
            (state(SlotState::Stable), "CLUSTER SETSLOT 5 STABLE"),
            (Saying::CountKeys { slot: 5 }, "CLUSTER COUNTKEYSINSLOT 5"),
            (Saying::ListKeys { slot: 5, at_most: 9 }, "CLUSTER GETKEYSINSLOT 5 9"),
            (Saying::Size { key: key(b"a\xff") }, r"MEMORY USAGE a\xff"),
            (Saying::TypeOf { key: key(b"a") }, "TYPE a"),
            (Saying::Ping, "PING"),
            (Saying::DumpFunctions, "FUNCTION DUMP"),
            (Saying::RestoreFunctions(b"x\0".to_vec()), r"FUNCTION RESTORE x\x00 REPLACE"),
            (Saying::DeleteLibrary("l".to_owned()), "FUNCTION DELETE l"),
            (
                Saying::MigrateSlots { slots: slots(), to: id() },
                "CLUSTER MIGRATESLOTS SLOTSRANGE 0 10 20 20 NODE ID",
            ),
            (Saying::SlotJobs, "CLUSTER GETSLOTMIGRATIONS"),
            (Saying::CancelSlotJobs, "CLUSTER CANCELSLOTMIGRATIONS"),
            (Saying::ImportSlots { slots: slots() }, "CLUSTER MIGRATION IMPORT 0 10 20 20"),
            (Saying::Imports, "CLUSTER MIGRATION STATUS ALL"),
        ] {
            assert_eq!(said(&saying, &target(None)), words.replace("ID", &id().0));
        }
        let cancel = Saying::CancelImport { name: "x".to_owned() };
        assert_eq!(said(&cancel, &target(None)), "CLUSTER MIGRATION CANCEL ID x");
    }

    #[test]
    fn a_node_that_gives_keys_logs_in_as_reeve_does() {
        let saying = Saying::Migrate {
            to: "[::1]:7002".parse().unwrap(),
            keys: vec![key(b"a"), key(b"\0b")],
            within_ms: 900,
        };
        for (login, auth) in [
            (None, ""),
            (Some((None, "pw")), "AUTH pw "),
            (Some((Some("bob"), "pw")), "AUTH2 bob pw "),
        ] {
            let words = format!(r#"MIGRATE ::1 7002 "" 0 900 REPLACE {auth}KEYS a \x00b"#);
            assert_eq!(said(&saying, &target(login)), words);
        }
    }

    fn text_of(words: &str) -> Value {
        Value::BulkString(words.as_bytes().to_vec())
    }

    fn is_unexpected(saying: &Saying, reply: Value) -> bool {
        let answer = answer(saying, reply, &target(None));
        matches!(answer, Answer::Refused { code, .. } if code == UNEXPECTED)
    }

    #[test]
    fn an_answer_is_what_was_asked_for_or_none() {
        let migrate =
            Saying::Migrate { to: "h:1".parse().unwrap(), keys: Vec::new(), within_ms: 1 };
        let nokey = || Value::SimpleString("NOKEY".to_owned());
        let (size, kind) = (Saying::Size { key: key(b"a") }, Saying::TypeOf { key: key(b"a") });
        let list = Saying::ListKeys { slot: 1, at_most: 1 };
        let names = Value::Array(vec![text_of("a"), Value::BulkString(b"\xff".to_vec())]);
        for (saying, reply, expected) in [
            (&migrate, Value::Okay, Answer::Done),
            (&migrate, nokey(), Answer::Nothing),
            (&Saying::Ping, Value::SimpleString("PONG".to_owned()), Answer::Done),
            (&size, Value::Int(7), Answer::Number(7)),
            (&size, Value::Nil, Answer::Nothing),
            (&kind, Value::SimpleString("hash".to_owned()), Answer::Text("hash".to_owned())),
            (&kind, Value::SimpleString("none".to_owned()), Answer::Nothing),
            (&list, names, Answer::Keys(vec![key(b"a"), key(b"\xff")])),
            (
                &Saying::CountListeners { channel: "c".to_owned() },
                Value::Array(vec![text_of("c"), Value::Int(3)]),
                Answer::Number(3),
            ),
            (&Saying::DumpFunctions, text_of("x"), Answer::Bytes(b"x".to_vec())),
            (&Saying::SlotJobs, Value::Array(Vec::new()), Answer::Jobs(Vec::new())),
        ] {
            assert_eq!(answer(saying, reply, &target(None)), expected);
        }
        for (saying, reply) in [
            (&Saying::Ping, nokey()),
            (&size, Value::Int(-1)),
            (&size, text_of("7")),
            (&list, Value::Array(vec![Value::Int(1)])),
            (&list, Value::Nil),
            (&kind, Value::Nil),
            (&Saying::CancelSlotJobs, nokey()),
            (&Saying::SlotJobs, Value::Array(vec![Value::Nil])),
            (&Saying::SlotJobs, text_of("none")),
        ] {
            assert!(is_unexpected(saying, reply.clone()), "{saying:?}: {reply:?}");
        }
    }

    /// As Valkey 9.1 answers.
    fn job_of(state: &str, ranges: &str, message: &str) -> Value {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let words = [
            ("name", "d4c8686b603ef04f7451c16766f1842167fa5880"),
            ("operation", "EXPORT"),
            ("slot_ranges", ranges),
            ("target_node", &a),
            ("source_node", &b),
            ("state", state),
            ("message", message),
        ];
        let words = words.iter().flat_map(|(name, value)| [text_of(name), text_of(value)]);
        Value::Array(words.chain([text_of("cow_size"), Value::Int(0)]).collect())
    }

    #[test]
    fn jobs_are_read() {
        let target = target(Some((None, "hunter2")));
        let states = ["success", "failed", "cancelled", "snapshotting", "something-new"];
        let jobs = states.map(|state| job_of(state, "0-10 20", "not hunter2"));
        let read = answer(&Saying::SlotJobs, Value::Array(jobs.to_vec()), &target);
        let Answer::Jobs(read) = read else { panic!("{read:?}") };
        assert_eq!(read[0].slots.to_string(), "0-10,20");
        assert_eq!(read[0].other, Some(ClusterNodeId("a".repeat(40))));
        assert!(read[0].giving && read[0].message == "not ***");
        use JobState::{Cancelled, Failed, Running, Succeeded};
        let states: Vec<_> = read.iter().map(|job| job.state).collect();
        assert_eq!(states, [Succeeded, Failed, Cancelled, Running, Running]);
        let odd = Value::Array(vec![job_of("success", "0-99999", "")]);
        assert!(is_unexpected(&Saying::SlotJobs, odd));
    }

    /// As the source of Redis 8.4 and its documentation have it; no such server was asked.
    fn task_of(operation: &str, state: &str, slots: &str, error: &str) -> Value {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let words = [
            ("id", "24cf41718b20f7f05901743dffc40bc9b15db339"),
            ("slots", slots),
            ("source", &a),
            ("dest", &b),
            ("operation", operation),
            ("state", state),
            ("last_error", error),
        ];
        let words = words.iter().flat_map(|(name, value)| [text_of(name), text_of(value)]);
        let numbers = ["retries", "create_time", "start_time", "end_time", "write_pause_ms"];
        let numbers = numbers.iter().flat_map(|name| [text_of(name), Value::Int(-1)]);
        Value::Array(words.chain(numbers).collect())
    }

    #[test]
    fn imports_are_read() {
        let target = target(Some((None, "hunter2")));
        let read = |tasks: Vec<Value>| answer(&Saying::Imports, Value::Array(tasks), &target);
        let states = ["completed", "failed", "canceled", "accumulate-buffer", "none"];
        let tasks = states.map(|state| task_of("import", state, "0-10 20-20", "not hunter2"));
        let Answer::Jobs(jobs) = read(tasks.to_vec()) else { panic!() };
        assert_eq!((jobs[0].slots.to_string(), jobs[0].giving), ("0-10,20".to_owned(), false));
        assert_eq!(jobs[0].other, Some(ClusterNodeId("a".repeat(40))));
        assert_eq!(jobs[0].message, "not ***");
        use JobState::{Cancelled, Failed, Running, Succeeded};
        let states: Vec<_> = jobs.iter().map(|job| job.state).collect();
        assert_eq!(states, [Succeeded, Failed, Cancelled, Running, Running]);
        let Answer::Jobs(jobs) = read(vec![task_of("migrate", "handoff", "5-5", "")]) else {
            panic!()
        };
        assert!(jobs[0].giving && jobs[0].other == Some(ClusterNodeId("b".repeat(40))));
        for odd in [task_of("import", "none", "0-99999", ""), task_of("trim", "none", "1-1", "")] {
            assert!(is_unexpected(&Saying::Imports, Value::Array(vec![odd])));
        }
        let begun = Saying::ImportSlots { slots: "1".parse().unwrap() };
        let id = text_of("24cf41718b20f7f05901743dffc40bc9b15db339");
        assert_eq!(answer(&begun, id, &target), Answer::Done);
        let cancel = Saying::CancelImport { name: "x".to_owned() };
        assert_eq!(answer(&cancel, Value::Int(1), &target), Answer::Number(1));
    }
}
