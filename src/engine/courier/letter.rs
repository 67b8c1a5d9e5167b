//! What is sent: a CloudEvents 1.0 event in structured mode, with the journal's event in `data`.

use chrono::{DateTime, Utc};
use serde_json::json;

use crate::store::deliveries::{Claim, TEST};

/// The media type of what is sent.
pub const CONTENT_TYPE: &str = "application/cloudevents+json; charset=utf-8";
/// With `source`, an `id` is one event and no other.
const SOURCE: &str = "/v1/events";

pub struct Letter {
    /// The same in each attempt: whoever sees it again has had it before.
    pub id: String,
    pub body: String,
}

/// The body of a delivery, always the same for the same event; `None` where its event is gone.
pub fn write(claim: &Claim, now: DateTime<Utc>) -> Option<Letter> {
    let (id, kind, time, subject, data) = match &claim.event {
        Some(event) => {
            let data = serde_json::to_value(event).ok()?;
            (event.id.to_string(), event.kind.as_str(), event.at, event.topology.as_deref(), data)
        }
        None if claim.is_test() => {
            let data = json!({ "webhook": claim.webhook, "at": now });
            (format!("test-{}", claim.id), TEST, now, None, data)
        }
        None => return None,
    };
    let mut body = json!({
        "specversion": "1.0", "id": id, "source": SOURCE, "type": kind, "time": time,
        "datacontenttype": "application/json", "data": data,
    });
    if let Some(subject) = subject {
        body["subject"] = subject.into();
    }
    Some(Letter { id, body: body.to_string() })
}
