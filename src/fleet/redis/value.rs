//! Plain ways into the answers of a server: as text, as a list, as pairs. What has another shape
//! than was hoped for reads as absent.

use std::borrow::Cow;

use redis::Value;

/// A scalar as text; bytes that are not UTF-8 are replaced.
pub(super) fn text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes)),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.into()),
        Value::Int(number) => Some(number.to_string().into()),
        Value::Okay => Some("OK".into()),
        _ => None,
    }
}

pub(super) fn items(value: &Value) -> impl Iterator<Item = &Value> {
    match value {
        Value::Array(items) | Value::Set(items) => items.as_slice(),
        _ => &[],
    }
    .iter()
}

/// The fields of a map, or of the flat list that RESP2 writes in its place.
pub(super) fn pairs(value: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    let (map, flat) = match value {
        Value::Map(pairs) => (pairs.as_slice(), [].as_slice()),
        Value::Array(items) => ([].as_slice(), items.as_slice()),
        _ => ([].as_slice(), [].as_slice()),
    };
    let flat = flat.chunks_exact(2).filter_map(|pair| Some((pair.first()?, pair.get(1)?)));
    map.iter().map(|(key, value)| (key, value)).chain(flat)
}

/// The value of one field.
pub(super) fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    pairs(value)
        .find(|(key, _)| text(key).is_some_and(|key| key.eq_ignore_ascii_case(name)))
        .map(|(_, value)| value)
}
