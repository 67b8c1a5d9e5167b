//! What can go wrong between a client and Reeve, in words for people.

use std::error::Error;
use std::fmt;

use serde::Deserialize;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Reeve says no, and why.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The request or its answer got lost.
    #[error("no answer from {url}: {why}")]
    Lost { url: String, why: String },
    /// Something answered, but hardly Reeve.
    #[error("{url} answered {status} with what Reeve would not say: {excerpt}")]
    Unreadable { url: String, status: u16, excerpt: String },
    #[error("`{0}` is no address of a Reeve server; write it as http://127.0.0.1:7380")]
    Url(String),
    #[error("`{0}` is no ETag; use the one that a GET of the resource gave")]
    Tag(String),
}

/// An error as Reeve tells it (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Problem {
    pub title: String,
    pub status: u16,
    #[serde(default)]
    pub detail: Option<String>,
    /// The name by which `/errors/<code>` explains it.
    #[serde(default)]
    pub code: Option<String>,
    #[serde(default)]
    pub request_id: Option<String>,
    /// What is wrong with which field of the body.
    #[serde(default)]
    pub errors: Vec<FieldProblem>,
    #[serde(default)]
    pub redis: Option<RedisProblem>,
    /// Hazards that lack consent.
    #[serde(default)]
    pub hazards: Vec<HazardProblem>,
    /// What may be asked for instead.
    #[serde(default)]
    pub offers: Vec<OfferProblem>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct FieldProblem {
    /// A JSON pointer into the body; empty for the whole.
    pub pointer: String,
    pub detail: String,
}

/// A hazard that is to be accepted by its id.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct HazardProblem {
    pub id: String,
    pub why: String,
}

/// A way out, and how to ask for it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct OfferProblem {
    pub offer: String,
    pub detail: String,
}

/// What a Redis node answered.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RedisProblem {
    pub code: String,
    #[serde(default)]
    pub node: Option<String>,
    pub message: String,
}

impl ClientError {
    /// The problem's code, such as `plan_active`.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Problem(problem) => problem.code.as_deref(),
            Self::Lost { .. } | Self::Unreadable { .. } | Self::Url(_) | Self::Tag(_) => None,
        }
    }

    /// Whether the same request may well succeed a little later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        let busy = |status: u16| status >= 500 || status == 429;
        match self {
            Self::Problem(problem) => busy(problem.status),
            Self::Unreadable { status, .. } => busy(*status),
            Self::Lost { .. } => true,
            Self::Url(_) | Self::Tag(_) => false,
        }
    }

    pub(super) fn lost(url: &str, error: &reqwest::Error) -> Self {
        // reqwest says little itself; what happened stands in the last of its causes.
        let mut cause: &dyn Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        let why =
            if error.is_timeout() { "it took too long".to_owned() } else { cause.to_string() };
        Self::Lost { url: url.to_owned(), why }
    }

    pub(super) fn unreadable(url: String, status: u16, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let excerpt = match text.trim() {
            "" => "nothing".to_owned(),
            text => text.chars().take(200).collect(),
        };
        Self::Unreadable { url, status, excerpt }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.title, self.status)?;
        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        f.write_str(")")?;
        if let Some(detail) = &self.detail {
            write!(f, "\n  {detail}")?;
        }
        for error in &self.errors {
            match error.pointer.as_str() {
                "" => write!(f, "\n  - {}", error.detail)?,
                pointer => write!(f, "\n  - {pointer}: {}", error.detail)?,
            }
        }
        for hazard in &self.hazards {
            write!(f, "\n  - {}: {}", hazard.id, hazard.why)?;
        }
        for offer in &self.offers {
            write!(f, "\n  {}: {}", offer.offer, offer.detail)?;
        }
        if let Some(redis) = &self.redis {
            let node = redis.node.as_deref().unwrap_or("a node");
            write!(f, "\n  {node} said: {}", redis.message)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_shows_all_that_it_knows() {
        let problem: Problem = serde_json::from_value(serde_json::json!({
            "type": "/errors/nodes_unfit",
            "title": "Nodes cannot be used",
            "status": 409,
            "detail": "2 nodes are not fit; nothing was changed",
            "code": "nodes_unfit",
            "errors": [
                {"pointer": "/spec/nodes/0/address", "detail": "it has keys"},
                {"pointer": "", "detail": "versions differ"},
            ],
            "redis": {"code": "NOAUTH", "node": "h:1", "message": "NOAUTH Authentication required."},
        }))
        .unwrap();
        let want = "Nodes cannot be used (409 nodes_unfit)\n  2 nodes are not fit; nothing was changed\n  - /spec/nodes/0/address: it has keys\n  - versions differ\n  h:1 said: NOAUTH Authentication required.";
        assert_eq!(ClientError::Problem(Box::new(problem)).to_string(), want);
    }

    #[test]
    fn ways_out_are_shown() {
        let problem: Problem = serde_json::from_value(serde_json::json!({
            "title": "Not as wanted", "status": 409,
            "hazards": [{"id": "flush:h:1", "kind": "data_loss", "why": "it loses 3 keys"}],
            "offers": [{"offer": "repair", "detail": "makes it so"}],
        }))
        .unwrap();
        let want = "Not as wanted (409)\n  - flush:h:1: it loses 3 keys\n  repair: makes it so";
        assert_eq!(problem.to_string(), want);
    }

    #[test]
    fn a_short_problem_will_do() {
        let short: Problem = serde_json::from_str(r#"{"title":"Gone","status":410}"#).unwrap();
        assert_eq!(short.to_string(), "Gone (410)");
    }
}
