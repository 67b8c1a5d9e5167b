//! Reading requests: bodies, paths and queries whose every fault names its field.

use axum::body::Body as RawBody;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::ApiError;
use super::strict::Strict;
use crate::domain::refusal::FieldError;
use crate::domain::spec::{ClusterSpec, ReplicationSpec, SentinelSpec, Spec};

/// Largest body that is taken.
const BODY_LIMIT: usize = 1 << 20;
/// Largest body that is read to its end before it is refused.
const PATIENCE_LIMIT: usize = 64 << 20;

/// A JSON body. What does not fit is told by a JSON pointer.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::new(
                "unsupported_media_type",
                "send the body as JSON, with Content-Type: application/json",
            ));
        }
        let bytes = whole(request.into_body()).await?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| {
            ApiError::new("invalid_json", format!("the body cannot be read as JSON: {e}"))
        })?;
        if let Some(pointer) = nul_in(&value) {
            return Err(invalid(FieldError::new(pointer, "text must not contain NUL (\\u0000)")));
        }
        Ok(Self(read(value, "").map_err(invalid)?))
    }
}

/// Where a text, or a field's name, contains a NUL, which the database cannot hold.
fn nul_in(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => text.contains('\0').then(String::new),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(i, item)| nul_in(item).map(|below| format!("/{i}{below}"))),
        Value::Object(fields) => fields.iter().find_map(|(name, field)| {
            if name.contains('\0') {
                return Some(String::new());
            }
            nul_in(field).map(|below| format!("/{name}{below}"))
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json") || essence.ends_with("+json")
}

/// Reads the body up to its limit. What is too much is read on and thrown away for a while: most
/// clients look at the answer only when they have sent everything.
pub(super) async fn whole(body: RawBody) -> Result<Vec<u8>, ApiError> {
    let mut chunks = body.into_data_stream();
    let (mut bytes, mut length) = (Vec::new(), 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|e| {
            ApiError::new("invalid_json", format!("the body did not arrive whole: {e}"))
        })?;
        length += chunk.len();
        if length <= BODY_LIMIT {
            bytes.extend_from_slice(&chunk);
        } else if length > PATIENCE_LIMIT {
            break;
        }
    }
    if length > BODY_LIMIT {
        return Err(ApiError::new("body_too_large", "a body has at most 1 MiB"));
    }
    Ok(bytes)
}

/// The problem of a body whose fields do not fit.
#[must_use]
pub fn invalid(error: FieldError) -> ApiError {
    let detail = match error.pointer.as_str() {
        "" => error.detail.clone(),
        pointer => format!("{pointer}: {}", error.detail),
    };
    ApiError::new("invalid_body", detail).with_errors(vec![error])
}

/// Reads a value, telling faults by pointers below `prefix`.
pub fn read<T: DeserializeOwned>(value: Value, prefix: &str) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(Strict(value)).map_err(|error| {
        let path: String = error
            .path()
            .iter()
            .map(|segment| match segment {
                serde_path_to_error::Segment::Seq { index } => format!("/{index}"),
                serde_path_to_error::Segment::Map { key } => {
                    format!("/{}", key.replace('~', "~0").replace('/', "~1"))
                }
                serde_path_to_error::Segment::Enum { .. }
                | serde_path_to_error::Segment::Unknown => String::new(),
            })
            .collect();
        let detail = error.inner().to_string();
        // serde names a field that is missing or unknown in its words, not in its path.
        let named = ["missing field `", "unknown field `"].iter().find_map(|start| {
            detail.strip_prefix(start).and_then(|rest| rest.split('`').next()).map(str::to_owned)
        });
        let pointer = match named {
            Some(name) if !path.ends_with(&format!("/{name}")) => format!("{prefix}{path}/{name}"),
            Some(_) | None => format!("{prefix}{path}"),
        };
        FieldError { pointer, detail: plain(detail) }
    })
}

/// Serde's words for what it expected, without the names that types have in this program.
fn plain(detail: String) -> String {
    const WHOLE: [&str; 8] = ["i64", "u64", "i32", "u32", "i16", "u16", "usize", "u8"];
    let Some((found, expected)) = detail.rsplit_once(", expected ") else { return detail };
    let (expected, place) = expected.split_once(" at ").unwrap_or((expected, ""));
    let words = match expected {
        "f64" | "f32" => "a number",
        number if WHOLE.contains(&number) => "a whole number, and not one that is too large",
        thing if thing.starts_with("struct ") || thing == "a map" => "an object",
        "a sequence" => "a list",
        "a boolean" => "true or false",
        _ => return detail,
    };
    let place = if place.is_empty() { String::new() } else { format!(" at {place}") };
    format!("{found}, expected {words}{place}")
}

/// Reads a spec. Its `mode` is read first, so that faults below it keep their pointers.
pub fn read_spec(value: Value, prefix: &str) -> Result<Spec, FieldError> {
    let Value::Object(mut fields) = value else {
        return Err(FieldError::new(prefix, "a spec is an object with a mode"));
    };
    let mode = fields.remove("mode");
    let rest = Value::Object(fields);
    match mode.as_ref().and_then(Value::as_str) {
        Some("cluster") => read::<ClusterSpec>(rest, prefix).map(Spec::Cluster),
        Some("replication") => read::<ReplicationSpec>(rest, prefix).map(Spec::Replication),
        Some("sentinel") => read::<SentinelSpec>(rest, prefix).map(Spec::Sentinel),
        Some(_) | None => Err(FieldError::new(
            format!("{prefix}/mode"),
            "the mode is one of `cluster`, `sentinel`, `replication`",
        )),
    }
}

/// Parameters of the path.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        refuse_nul(parts.uri.path())?;
        axum::extract::Path::<T>::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(path)| Self(path))
            .map_err(|e| ApiError::new("invalid_parameter", e.body_text()))
    }
}

/// Parameters of the query. An unknown one is refused, since a misspelt filter would otherwise
/// quietly show everything.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        refuse_nul(parts.uri.query().unwrap_or_default())?;
        axum::extract::Query::<T>::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|e| ApiError::new("invalid_parameter", e.body_text()))
    }
}

fn refuse_nul(encoded: &str) -> Result<(), ApiError> {
    if encoded.contains("%00") {
        return Err(ApiError::new("invalid_parameter", "a parameter must not contain NUL (%00)"));
    }
    Ok(())
}

/// What `If-Match` says, if it was sent. It is judged after the body, so that a body that makes no
/// sense is told first.
#[derive(Debug)]
pub struct Precondition(Option<String>);

/// The version and revision that `If-Match` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IfMatch {
    pub version: i32,
    pub revision: i32,
}

impl IfMatch {
    #[must_use]
    pub fn etag(version: i32, revision: i32) -> String {
        format!("\"{version}-{revision}\"")
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Precondition {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let value = parts.headers.get(header::IF_MATCH);
        Ok(Self(value.map(|v| v.to_str().unwrap_or_default().to_owned())))
    }
}

impl Precondition {
    pub fn read(&self) -> Result<IfMatch, ApiError> {
        let Some(text) = &self.0 else {
            return Err(ApiError::new(
                "precondition_required",
                "send If-Match with the ETag of the version that you read, so that nobody's change is lost",
            ));
        };
        let parse = || {
            let (version, revision) = text.strip_prefix('"')?.strip_suffix('"')?.split_once('-')?;
            Some(IfMatch { version: version.parse().ok()?, revision: revision.parse().ok()? })
        };
        parse().ok_or_else(|| {
            ApiError::new(
                "precondition_failed",
                "If-Match takes the one ETag that GET gives (as in \"3-1\"), and neither * nor a list: read the topology again and repeat the request with its ETag",
            )
        })
    }
}

/// What was read is no longer what there is.
#[must_use]
pub fn stale() -> ApiError {
    ApiError::new(
        "precondition_failed",
        "the topology is at another version or revision than If-Match names; read it again and repeat the request with its ETag",
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn faults_are_told_in_plain_words() {
        let told = |value| read_spec(value, "/spec").unwrap_err().detail;
        let spec = |shards, nodes| json!({ "mode": "cluster", "shards": shards, "nodes": nodes });
        assert_eq!(
            told(spec(json!("3"), json!([]))),
            "invalid type: string \"3\", expected a whole number, and not one that is too large"
        );
        assert_eq!(told(spec(json!(3), json!(7))), "invalid type: integer `7`, expected a list");
        assert_eq!(
            told(json!({ "mode": "cluster", "shards": 3, "nodes": [], "placement": 1 })),
            "invalid type: integer `1`, expected an object"
        );
    }

    #[test]
    fn faults_name_their_field() {
        let pointer = |value| read_spec(value, "/spec").unwrap_err().pointer;
        let node = json!({ "address": "127.0.0.1:7001", "zone": "a" });
        assert_eq!(pointer(json!({ "mode": "pool" })), "/spec/mode");
        assert_eq!(pointer(json!({ "mode": "cluster", "nodes": [] })), "/spec/shards");
        assert_eq!(
            pointer(
                json!({ "mode": "cluster", "shards": 3, "nodes": [node, { "address": "x", "zone": "a" }] })
            ),
            "/spec/nodes/1/address"
        );
        assert_eq!(
            pointer(json!({ "mode": "cluster", "shards": "3", "nodes": [] })),
            "/spec/shards"
        );
        assert_eq!(
            pointer(json!({ "mode": "cluster", "shards": 3, "nodes": [], "colour": 1 })),
            "/spec/colour"
        );
    }
}
