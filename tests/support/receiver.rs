//! An endpoint for webhooks: a real HTTP server that keeps what it gets and answers as it is told.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::until;
use super::world::World;

/// How an endpoint answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Status(u16),
    /// To `http://127.0.0.1:1/`.
    Redirect,
    /// Never.
    Hang,
}

/// One call.
#[derive(Debug, Clone)]
pub struct Call {
    pub at: Instant,
    pub headers: BTreeMap<String, String>,
    pub body: String,
    pub json: Value,
    /// Whether it was answered with success.
    pub taken: bool,
}

#[derive(Clone)]
struct Inside {
    calls: Arc<Mutex<Vec<Call>>>,
    manner: Arc<Mutex<Manner>>,
}

pub struct Receiver {
    pub port: u16,
    inside: Inside,
    serving: JoinHandle<()>,
}

impl Receiver {
    pub async fn start() -> Self {
        Self::answering(Manner::Status(204)).await
    }

    pub async fn answering(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let inside = Inside { calls: Arc::default(), manner: Arc::new(Mutex::new(manner)) };
        let serving = serve(listener, inside.clone());
        Self { port, inside, serving }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/reeve", self.port)
    }

    pub fn answer(&self, manner: Manner) {
        *self.inside.manner.lock().unwrap() = manner;
    }

    /// All calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.inside.calls.lock().unwrap().clone()
    }

    /// Those that were answered with success.
    pub fn taken(&self) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.taken).collect()
    }

    /// Nobody listens any more.
    pub async fn go_down(&mut self) {
        self.serving.abort();
        let _ = (&mut self.serving).await;
    }

    pub async fn come_back(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        self.serving = serve(listener, self.inside.clone());
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn serve(listener: TcpListener, inside: Inside) -> JoinHandle<()> {
    let router = Router::new().route("/{*path}", post(take)).with_state(inside);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() })
}

async fn take(
    State(inside): State<Inside>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, HeaderMap) {
    let manner = *inside.manner.lock().unwrap();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let json = serde_json::from_str(&body).unwrap();
    let text = |value: &axum::http::HeaderValue| value.to_str().unwrap().to_owned();
    let named = headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let taken = matches!(manner, Manner::Status(200..=299));
    let call = Call { at: Instant::now(), headers: named, body, json, taken };
    inside.calls.lock().unwrap().push(call);
    let mut said = HeaderMap::new();
    let status = match manner {
        Manner::Status(status) => status,
        Manner::Redirect => {
            said.insert("location", "http://127.0.0.1:1/".parse().unwrap());
            307
        }
        Manner::Hang => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            200
        }
    };
    (StatusCode::from_u16(status).unwrap(), said)
}

/// A world in which webhooks may be sent to this machine.
pub async fn world() -> World {
    World::with(&[("REEVE_WEBHOOK_ALLOW_CIDRS", "127.0.0.0/8")]).await
}

/// Subscribes a receiver, and returns the webhook with its secret.
pub async fn subscribe(world: &World, receiver: &Receiver, events: &[&str]) -> Value {
    let body = json!({ "url": receiver.url(), "events": events });
    world.client.post("/v1/webhooks", &body).await.unwrap()
}

/// Has the reference library look at each call; fails if it finds one that nobody signed.
pub fn verify(calls: &[Call], secret: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut python = Command::new(root.join(".venv/bin/python"))
        .arg(root.join("tests/tools/verify_webhooks.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = python.stdin.take().unwrap();
    for call in calls {
        let line = json!({ "secret": secret, "headers": call.headers, "body": call.body });
        writeln!(input, "{line}").unwrap();
    }
    drop(input);
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    let verified: usize = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    assert_eq!(verified, calls.len());
}

/// The journal from this event on, whole.
pub async fn journal(world: &World, filter: &str) -> Vec<Value> {
    let (mut events, mut cursor) = (vec![], String::new());
    loop {
        let path = format!("/v1/events?limit=200&{filter}{cursor}");
        let page = world.client.get(&path).await.unwrap();
        events.extend(page["items"].as_array().unwrap().clone());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return events,
        }
    }
}

/// Waits until a receiver took this many different events.
pub async fn takes(receiver: &Receiver, count: usize, within: Duration) -> Vec<Call> {
    until("what it takes", within, async || {
        let taken = receiver.taken();
        let ids: std::collections::BTreeSet<_> =
            taken.iter().map(|call| call.headers["webhook-id"].clone()).collect();
        if ids.len() >= count { Ok(taken) } else { Err(format!("{} of {count}", ids.len())) }
    })
    .await
}
