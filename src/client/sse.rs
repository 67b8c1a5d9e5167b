//! Server-sent events, read as the bytes come in. Pure: it knows no connection.
//!
//! Source: the WHATWG HTML standard, "Parsing an event stream". What was begun when a stream ends
//! is no event, so a parser is used for one connection only.

use std::time::Duration;

use serde_json::Value;

/// One message of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    /// Only of a message that can be resumed after.
    pub id: Option<String>,
    /// The type; `message` where none is given.
    pub event: String,
    pub data: String,
}

impl SseEvent {
    /// The data as the JSON object that Reeve sends; null if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_default()
    }
}

/// Turns bytes into messages, however they are cut into pieces.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    /// The last line ended with a CR, so a LF that follows belongs to it.
    after_cr: bool,
    begun: bool,
    id: Option<String>,
    event: String,
    data: Option<String>,
    retry: Option<Duration>,
    last_id: Option<String>,
}

impl Parser {
    /// The messages that these bytes complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<SseEvent> {
        let mut events = Vec::new();
        for &byte in bytes {
            let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => events.extend(self.end_line()),
                _ => self.line.push(byte),
            }
        }
        events
    }

    /// Where to go on after all that came: the last id, even one that no message came with.
    #[must_use]
    pub fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    /// How long to wait before connecting again, if the server has said so.
    #[must_use]
    pub fn retry(&self) -> Option<Duration> {
        self.retry
    }

    fn end_line(&mut self) -> Option<SseEvent> {
        let bytes = std::mem::take(&mut self.line);
        let mut line = &*String::from_utf8_lossy(&bytes);
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix('\u{feff}').unwrap_or(line);
        }
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "retry" if value.bytes().all(|b| b.is_ascii_digit()) => {
                self.retry = value.parse().ok().map(Duration::from_millis).or(self.retry);
            }
            // A comment has an empty name; a field that nobody knows is left out.
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<SseEvent> {
        let id = self.id.take();
        if id.is_some() {
            self.last_id.clone_from(&id);
        }
        let event = Some(std::mem::take(&mut self.event)).filter(|event| !event.is_empty());
        let data = self.data.take()?;
        Some(SseEvent { id, event: event.unwrap_or_else(|| "message".to_owned()), data })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(id: Option<&str>, event: &str, data: &str) -> SseEvent {
        SseEvent { id: id.map(str::to_owned), event: event.to_owned(), data: data.to_owned() }
    }

    const STREAM: &str = "\u{feff}retry: 2000\n\n: a comment\nid: 7\nevent: plan.started\ndata: {\"type\":\"plan.started\"}\n\nevent: progress\ndata: one\ndata:  two\ndata\nunknown: x\n\nid: 8\nevent: empty\n\ndata:ü\n\ndata: never ended";

    fn want() -> Vec<SseEvent> {
        vec![
            event(Some("7"), "plan.started", "{\"type\":\"plan.started\"}"),
            event(None, "progress", "one\n two\n"),
            event(None, "message", "ü"),
        ]
    }

    #[test]
    fn each_way_to_end_a_line_reads_the_same() {
        for end in ["\n", "\r\n", "\r"] {
            let mut parser = Parser::default();
            let stream = STREAM.replace('\n', end);
            assert_eq!(parser.push(stream.as_bytes()), want(), "{end:?}");
            assert_eq!(parser.retry(), Some(Duration::from_millis(2000)));
            assert_eq!(parser.last_id(), Some("8"));
        }
    }

    #[test]
    fn a_retry_that_is_no_number_changes_nothing() {
        let mut parser = Parser::default();
        assert_eq!(parser.push(b"retry: 5\nretry: soon\nretry: -1\nretry:\n\n"), []);
        assert_eq!(parser.retry(), Some(Duration::from_millis(5)));
    }

    #[test]
    fn data_is_json_or_null() {
        assert_eq!(event(None, "x", "{\"a\":1}").json(), serde_json::json!({"a": 1}));
        assert_eq!(event(None, "x", "{").json(), Value::Null);
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_the_bytes_are_cut(
            cuts in prop::collection::vec(0usize..260, 0..12),
            end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
        ) {
            let stream = STREAM.replace('\n', end).into_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.sort_unstable();
            cuts.push(stream.len());
            let (mut parser, mut events, mut from) = (Parser::default(), vec![], 0);
            for cut in cuts {
                events.extend(parser.push(&stream[from..cut]));
                from = cut;
            }
            prop_assert_eq!(events, want());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            Parser::default().push(&bytes);
        }
    }
}
