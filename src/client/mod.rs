//! Reeve's API as any client uses it: plain HTTP with a token, JSON in and out, and event streams
//! that survive being cut. The command line and the demo stand on it.

mod error;
mod events;
pub mod sse;

use std::time::Duration;

use futures::stream::BoxStream;
use reqwest::header::{ETAG, HeaderMap, HeaderValue, IF_MATCH};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;

pub use self::error::{
    ClientError, FieldProblem, HazardProblem, OfferProblem, Problem, RedisProblem,
};
use self::events::Follow;
pub use self::sse::SseEvent;

/// How long an answer may take; waiting that the request itself asks for comes on top.
const ANSWER: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(5);

/// Speaks to one Reeve server.
#[derive(Debug, Clone)]
pub struct Client {
    base: String,
    token: String,
    http: reqwest::Client,
}

impl Client {
    /// For the server at `base`, such as `http://127.0.0.1:7380`.
    pub fn new(base: &str, token: &str) -> Result<Self, ClientError> {
        let base = base.trim_end_matches('/');
        if !base.starts_with("http://") {
            return Err(ClientError::Url(base.to_owned()));
        }
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .user_agent(concat!("reeve/", env!("CARGO_PKG_VERSION")))
            // What is asked of a control plane is never meant for a proxy or for another server.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| ClientError::lost(base, &error))?;
        Ok(Self { base: base.to_owned(), token: token.to_owned(), http })
    }

    /// The server's address, without a slash at the end.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.json(self.request(Method::GET, path).timeout(ANSWER)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.json(self.request(Method::POST, path).timeout(ANSWER).json(body)).await
    }

    /// `if_match` is the ETag that the change is based on, where the resource asks for one.
    pub async fn put(
        &self,
        path: &str,
        body: &Value,
        if_match: Option<&str>,
    ) -> Result<Value, ClientError> {
        self.change(Method::PUT, path, Some(body), if_match).await
    }

    pub async fn patch(
        &self,
        path: &str,
        body: &Value,
        if_match: Option<&str>,
    ) -> Result<Value, ClientError> {
        self.change(Method::PATCH, path, Some(body), if_match).await
    }

    pub async fn delete(&self, path: &str, if_match: Option<&str>) -> Result<Value, ClientError> {
        self.change(Method::DELETE, path, None, if_match).await
    }

    /// The ETag that changes to a resource are to be based on, if it has one.
    pub async fn etag(&self, path: &str) -> Result<Option<String>, ClientError> {
        let response = self.answer(self.request(Method::GET, path).timeout(ANSWER)).await?;
        let tag = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok());
        Ok(tag.map(str::to_owned))
    }

    /// Posts a topology and gives the plan that makes it; `wait` as for [`Self::submit`].
    pub async fn create_topology(
        &self,
        body: &Value,
        wait: Option<u8>,
    ) -> Result<Value, ClientError> {
        self.submit("/v1/topologies", body, wait).await
    }

    /// Posts what makes a plan and gives that plan; with `wait`, as it stands when it ended or when
    /// so many seconds (at most 60) have passed.
    pub async fn submit(
        &self,
        path: &str,
        body: &Value,
        wait: Option<u8>,
    ) -> Result<Value, ClientError> {
        let mut request = self.request(Method::POST, path).json(body);
        let patience = Duration::from_secs(wait.unwrap_or(0).into());
        if let Some(seconds) = wait {
            request = request.header("prefer", format!("wait={seconds}"));
        }
        self.json(request.timeout(ANSWER + patience)).await
    }

    /// Follows a stream of events, such as `/v1/plans/{id}/stream`, from the one after
    /// `last_event_id` on. A cut is mended: the stream goes on behind the last event that came. It
    /// ends when the server says that there is nothing more to come, or with an error.
    #[must_use]
    pub fn events(
        &self,
        path: &str,
        last_event_id: Option<String>,
    ) -> BoxStream<'static, Result<SseEvent, ClientError>> {
        Follow::new(self.clone(), path.to_owned(), last_event_id).stream()
    }

    async fn change(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        if_match: Option<&str>,
    ) -> Result<Value, ClientError> {
        let mut headers = HeaderMap::new();
        if let Some(tag) = if_match {
            let tag = HeaderValue::from_str(tag).map_err(|_| ClientError::Tag(tag.to_owned()))?;
            headers.insert(IF_MATCH, tag);
        }
        let request = self.request(method, path).timeout(ANSWER).headers(headers);
        self.json(match body {
            Some(body) => request.json(body),
            None => request,
        })
        .await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    /// The answer's body; null where it has none.
    async fn json(&self, request: RequestBuilder) -> Result<Value, ClientError> {
        let response = self.answer(request).await?;
        let (url, status) = (response.url().to_string(), response.status().as_u16());
        let body = response.bytes().await.map_err(|error| ClientError::lost(&url, &error))?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).map_err(|_| ClientError::unreadable(url, status, &body))
    }

    /// An answer that is no error.
    async fn answer(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response =
            request.send().await.map_err(|error| ClientError::lost(&self.base, &error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let url = response.url().to_string();
        let body = response.bytes().await.map_err(|error| ClientError::lost(&url, &error))?;
        Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => ClientError::Problem(Box::new(problem)),
            Err(_) => ClientError::unreadable(url, status.as_u16(), &body),
        })
    }
}
