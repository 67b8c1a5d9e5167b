//! `Idempotency-Key`: a repeated POST gets the first answer, and does nothing.
//!
//! The key is taken in the database before the handler runs, so of all repeats, on whichever
//! instance, one runs. The answer is kept as soon as there is one; a process that dies in between
//! lets the key go after a while, and a repeat runs again.
//!
//! A request with a key is carried out to its end even if its client hangs up: whoever repeats it
//! shall find its answer, not half a request.
//!
//! An answer may hold a secret that is shown once, and a body a password. So answers rest sealed
//! under a key made from the caller's bearer token, which is not stored, and the digest that tells
//! requests apart contains that token as well. No route has to say that it has secrets.

use std::pin::pin;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::Instrument;

use super::App;
use super::auth::{self, Caller};
use super::error::{ApiError, Problem};
use super::extract;
use super::routes::plans::{self, Made};
use crate::clock;
use crate::domain::id::PlanId;
use crate::store::credentials::SecretKey;
use crate::store::idempotency::{Claim, KeyedRequest};

pub const HEADER: &str = "Idempotency-Key";
/// Tells an answer that was given before.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// A request in flight is held on this often; see the store for how long that lasts.
const HOLD_EVERY: Duration = Duration::from_secs(4);
/// How often it is tried to keep an answer; a database that is away longer costs the answer.
const KEEP_ATTEMPTS: u32 = 3;
/// Larger answers than this are not given.
const ANSWER_LIMIT: usize = 64 << 20;

/// Middleware: has each POST with a key carried out once.
pub async fn once(State(app): State<App>, request: Request, next: Next) -> Response {
    let keyed = request.method() == Method::POST && request.uri().path().starts_with("/v1/");
    let key = if keyed { read_key(request.headers()) } else { Ok(None) };
    match key {
        Ok(None) => next.run(request).await,
        Ok(Some(key)) => answer(app, key, request, next).await.unwrap_or_else(refuse),
        Err(error) => refuse(error),
    }
}

fn refuse(error: ApiError) -> Response {
    error.into_response()
}

fn read_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let printable = |key: &&str| (1..=255).contains(&key.len()) && !key.contains('\t');
    // `to_str` lets printable ASCII and tabs through.
    match (value.to_str().ok().filter(printable), values.next()) {
        (Some(key), None) => Ok(Some(key.to_owned())),
        _ => Err(ApiError::new(
            "invalid_parameter",
            format!(
                "{HEADER} is one value of 1 to 255 printable ASCII characters, for example a UUID"
            ),
        )),
    }
}

async fn answer(app: App, key: String, request: Request, next: Next) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    // First of all: what is unauthenticated is not stored.
    let caller = auth::caller(&parts, &app.engine).await?;
    let secret = auth::bearer(&parts).unwrap_or_default().to_owned();
    let body = extract::whole(body).await?;
    // Waiting is no part of what is carried out: the answer is kept first, and a repeat waits, too.
    let wait = plans::take_wait(&mut parts.headers);
    let seal = seal(&secret, &key);
    let request = fingerprint(&secret, &parts, &body);
    let keyed = KeyedRequest { token: caller.token.id, key, request, holder: clock::new_id() };
    let (mut response, replayed) = match app.engine.store.claim_key(&keyed, &seal).await? {
        Claim::Ours => {
            let request = Request::from_parts(parts, Body::from(body));
            let work = carry_out(app.clone(), keyed, seal, request, next).in_current_span();
            let done = app.tasks.spawn(work).await;
            (done.map_err(|_| ApiError::new("internal", "the request was given up"))?, false)
        }
        Claim::Answered(answer) => (Answer::read(&answer)?.into_response(), true),
        claim => return Err(refusal(&claim)),
    };
    if let Some(Made(plan)) = response.extensions().get::<Made>().copied()
        && !wait.is_zero()
    {
        response = waited(&app, &caller, plan, wait, response).await;
    }
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

fn refusal(claim: &Claim) -> ApiError {
    match claim {
        Claim::Reused => ApiError::new(
            "idempotency_key_reused",
            format!(
                "this {HEADER} stands for a request with another method, path or body; send a new key with a new request"
            ),
        ),
        Claim::Revoked => ApiError::new("unauthorized", "the token is unknown, expired or revoked"),
        Claim::InFlight | Claim::Ours | Claim::Answered(_) => ApiError::new(
            "idempotency_in_flight",
            format!(
                "a request with this {HEADER} is being carried out; repeat it shortly for its answer"
            ),
        ),
    }
}

/// The plan after the wait, or the answer that there is if it cannot be read now.
async fn waited(
    app: &App,
    caller: &Caller,
    plan: PlanId,
    wait: Duration,
    answer: Response,
) -> Response {
    plans::waited(app, caller, plan, wait).await.unwrap_or(answer)
}

/// Runs the handler and keeps what it answers.
async fn carry_out(
    app: App,
    keyed: KeyedRequest,
    seal: SecretKey,
    request: Request,
    next: Next,
) -> Response {
    let store = &app.engine.store;
    let response = {
        let mut running = pin!(next.run(request));
        loop {
            tokio::select! {
                response = &mut running => break response,
                () = tokio::time::sleep(HOLD_EVERY) => {
                    if let Err(error) = store.hold_key(&keyed).await {
                        warn(&error, "a key in flight cannot be held");
                    }
                }
            }
        }
    };
    let (answer, response) = Answer::of(response).await;
    let Some(text) = answer.and_then(|a| serde_json::to_string(&a).ok()) else {
        if let Err(error) = store.free_key(&keyed).await {
            warn(&error, "a key cannot be freed; it frees itself after a while");
        }
        return response;
    };
    for attempt in 1..=KEEP_ATTEMPTS {
        let mut nonce = [0; 12];
        if getrandom::fill(&mut nonce).is_err() {
            break;
        }
        match store.answer_key(&keyed, &seal, nonce, &text).await {
            Ok(_) => break,
            Err(error) => warn(&error, "an answer cannot be kept for repeats"),
        }
        if attempt < KEEP_ATTEMPTS {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    response
}

fn warn(error: &crate::store::StoreError, what: &str) {
    tracing::warn!(error = error as &dyn std::error::Error, "{what}");
}

/// Tells requests apart. Each part is preceded by its length, so that none runs into the next.
fn fingerprint(secret: &str, parts: &Parts, body: &[u8]) -> Vec<u8> {
    let path = parts.uri.path_and_query().map_or("", |p| p.as_str());
    let mut digest = Sha256::new();
    for part in [
        b"reeve request",
        secret.as_bytes(),
        parts.method.as_str().as_bytes(),
        path.as_bytes(),
        body,
    ] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().to_vec()
}

/// The key that seals an answer. A bearer token is as hard to guess as a key has to be, and the
/// database knows only another digest of it.
fn seal(secret: &str, key: &str) -> SecretKey {
    let mut digest = Sha256::new();
    for part in ["reeve answer", secret, key] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    SecretKey::new(digest.finalize().into())
}

/// An answer as it is kept: a problem by its parts, since the request's id belongs to one request
/// alone, and anything else as it went out.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
    problem: Option<Problem>,
    /// The plan that was made, for whoever waits for its end.
    plan: Option<PlanId>,
}

impl Answer {
    /// The answer if it is one to keep, and the response to go out.
    async fn of(response: Response) -> (Option<Self>, Response) {
        let status = response.status();
        let problem = response.extensions().get::<std::sync::Arc<Problem>>().cloned();
        if !is_final(status) || !(status.is_success() || problem.is_some()) {
            return (None, response);
        }
        let plan = response.extensions().get::<Made>().map(|made| made.0);
        let (parts, body) = response.into_parts();
        let Ok(bytes) = to_bytes(body, ANSWER_LIMIT).await else {
            let error = ApiError::new("internal", "the answer could not be read");
            return (None, error.into_response());
        };
        let header = |(name, value): (&HeaderName, &HeaderValue)| {
            Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
        };
        let answer = Self {
            status: status.as_u16(),
            headers: parts.headers.iter().filter_map(header).collect(),
            body: String::from_utf8_lossy(&bytes).into_owned(),
            problem: problem.map(|p| (*p).clone()),
            plan,
        };
        (Some(answer), Response::from_parts(parts, Body::from(bytes)))
    }

    fn read(text: &str) -> Result<Self, ApiError> {
        serde_json::from_str(text).map_err(|_| {
            ApiError::new("internal", "the first answer was kept by a version that differs")
        })
    }
}

/// Whether a repeat shall see this answer: it is what became of the request, and not of the moment
/// in which it came.
fn is_final(status: StatusCode) -> bool {
    let passing = [
        StatusCode::UNAUTHORIZED,
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::TOO_EARLY,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    status.is_success() || (status.is_client_error() && !passing.contains(&status))
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        if let Some(problem) = self.problem {
            return ApiError::from(problem).into_response();
        }
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::OK);
        let mut response = (status, self.body).into_response();
        for (name, value) in self.headers {
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse())
                && name != header::CONTENT_LENGTH
            {
                response.headers_mut().insert(name, value);
            }
        }
        if let Some(plan) = self.plan {
            response.extensions_mut().insert(Made(plan));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(path: &str) -> Parts {
        Request::post(path).body(()).unwrap().into_parts().0
    }

    #[test]
    fn keys_are_short_and_printable() {
        let read = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(HEADER, HeaderValue::from_bytes(value).unwrap());
            }
            read_key(&headers).map_err(|_| ())
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[b"a b~"]), Ok(Some("a b~".to_owned())));
        assert_eq!(read(&["x".repeat(255).as_bytes()]).map(|k| k.is_some()), Ok(true));
        let long = "x".repeat(256);
        for wrong in [&b""[..], b"a\tb", "\u{e4}".as_bytes(), long.as_bytes()] {
            assert_eq!(read(&[wrong]), Err(()), "{wrong:?}");
        }
        assert_eq!(read(&[b"a", b"b"]), Err(()), "which of the two would it be");
    }

    #[test]
    fn whatever_differs_makes_another_request() {
        let first = fingerprint("secret", &parts("/v1/tokens"), b"{}");
        assert_eq!(first, fingerprint("secret", &parts("/v1/tokens"), b"{}"));
        for other in [
            fingerprint("other", &parts("/v1/tokens"), b"{}"),
            fingerprint("secret", &parts("/v1/tokens?x=1"), b"{}"),
            fingerprint("secret", &parts("/v1/tokens"), b"{ }"),
            fingerprint("secret", &parts("/v1/token"), b"s{}"),
        ] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn what_passes_by_itself_is_not_kept() {
        let kept = |status| is_final(StatusCode::from_u16(status).unwrap());
        assert!([200, 201, 202, 204, 400, 403, 404, 409, 412, 415, 422].into_iter().all(kept));
        assert!(![401, 408, 425, 429, 500, 502, 503, 504].into_iter().any(kept));
    }
}
