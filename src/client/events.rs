//! Following a stream of events across cuts.

use std::collections::VecDeque;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use reqwest::header::ACCEPT;
use reqwest::{Method, StatusCode};
use tokio::time::{Instant, sleep, timeout};

use super::sse::{Parser, SseEvent};
use super::{Client, ClientError};

/// Between attempts to connect, until the server names a time of its own.
const RETRY: Duration = Duration::from_secs(2);
/// The server sends a comment every 15 s; a connection that is silent for longer is dead.
const SILENCE: Duration = Duration::from_secs(45);
/// How long the server may be away before following is given up.
const PATIENCE: Duration = Duration::from_secs(120);

type Chunks = BoxStream<'static, reqwest::Result<Vec<u8>>>;

pub(super) struct Follow {
    client: Client,
    path: String,
    last_id: Option<String>,
    retry: Duration,
    connection: Option<Connection>,
    ready: VecDeque<SseEvent>,
    away_since: Option<Instant>,
    over: bool,
}

struct Connection {
    chunks: Chunks,
    parser: Parser,
    /// Whether it has brought anything.
    fruitful: bool,
}

impl Follow {
    pub(super) fn new(client: Client, path: String, last_id: Option<String>) -> Self {
        Self {
            client,
            path,
            last_id,
            retry: RETRY,
            connection: None,
            ready: VecDeque::new(),
            away_since: None,
            over: false,
        }
    }

    pub(super) fn stream(self) -> BoxStream<'static, Result<SseEvent, ClientError>> {
        stream::unfold(self, |mut follow| -> BoxFuture<'static, _> {
            Box::pin(async move { Some((follow.next().await?, follow)) })
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<Result<SseEvent, ClientError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                if event.id.is_some() {
                    self.last_id.clone_from(&event.id);
                }
                return Some(Ok(event));
            }
            if self.over {
                return None;
            }
            if self.connection.is_some() {
                self.read().await;
                continue;
            }
            match self.connect().await {
                Ok(Some(chunks)) => {
                    self.away_since = None;
                    let parser = Parser::default();
                    self.connection = Some(Connection { chunks, parser, fruitful: false });
                }
                Ok(None) => self.over = true,
                Err(error) => {
                    let since = *self.away_since.get_or_insert_with(Instant::now);
                    if !error.may_pass() || since.elapsed() > PATIENCE {
                        self.over = true;
                        return Some(Err(error));
                    }
                    sleep(self.retry).await;
                }
            }
        }
    }

    /// Takes what comes next on the connection, or notes that it is gone.
    async fn read(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        if let Ok(Some(Ok(bytes))) = timeout(SILENCE, connection.chunks.next()).await {
            self.ready.extend(connection.parser.push(&bytes));
            self.retry = connection.parser.retry().unwrap_or(self.retry);
            connection.fruitful |= !self.ready.is_empty();
            return;
        }
        // The usual end: all is said, and whoever asks again is told so. That needs no pause.
        let pause = !connection.fruitful;
        // All that came on it has been handed out.
        if let Some(id) = connection.parser.last_id() {
            self.last_id = Some(id.to_owned());
        }
        self.connection = None;
        if pause {
            sleep(self.retry).await;
        }
    }

    /// `None` when there is nothing more to come.
    async fn connect(&mut self) -> Result<Option<Chunks>, ClientError> {
        let mut request =
            self.client.request(Method::GET, &self.path).header(ACCEPT, "text/event-stream");
        if let Some(id) = &self.last_id {
            request = request.header("last-event-id", id);
        }
        let answer = timeout(super::ANSWER, self.client.answer(request)).await;
        let response = answer.unwrap_or_else(|_| {
            let why = "it took too long".to_owned();
            Err(ClientError::Lost { url: self.client.base.clone(), why })
        })?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        Ok(Some(response.bytes_stream().map(|chunk| chunk.map(|bytes| bytes.to_vec())).boxed()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\nretry: 1\n\n";

    /// Gives one answer to each connection, and tells what was asked.
    async fn server(answers: Vec<String>) -> (Client, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(&format!("http://{}", listener.local_addr().unwrap()), "t");
        let asked = Arc::new(Mutex::new(vec![]));
        let requests = asked.clone();
        tokio::spawn(async move {
            for answer in answers {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let length = socket.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..length]).to_lowercase();
                requests.lock().unwrap().push(request);
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (client.unwrap(), asked)
    }

    async fn ids(client: &Client) -> (Vec<String>, Option<ClientError>) {
        let (mut ids, mut error) = (vec![], None);
        let mut events = client.events("/v1/plans/x/stream", None);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => ids.extend(event.id),
                Err(e) => error = Some(e),
            }
        }
        (ids, error)
    }

    #[tokio::test]
    async fn a_cut_is_mended_and_204_is_the_end() {
        let answers = vec![
            format!("{OK}id: 1\ndata: a\n\ndata: progress\n\nid: 2\ndata: b\n\nid: 3\nda"),
            "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                .into(),
            format!("{OK}id: 3\ndata: c\n\n"),
            "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".into(),
        ];
        let (client, asked) = server(answers).await;
        let (ids, error) = ids(&client).await;
        assert_eq!(ids, ["1", "2", "3"]);
        assert!(error.is_none());
        let asked = asked.lock().unwrap();
        let resumed = |i: usize, id: &str| asked[i].contains(&format!("last-event-id: {id}\r\n"));
        assert!(!asked[0].contains("last-event-id"));
        assert!(resumed(1, "2") && resumed(2, "2") && resumed(3, "3"), "{asked:?}");
    }

    #[tokio::test]
    async fn who_is_cut_off_before_the_first_event_goes_on_from_where_the_stream_began() {
        let over = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".to_owned();
        let (client, asked) = server(vec![format!("{OK}id: 7\n\n"), over]).await;
        let (ids, error) = ids(&client).await;
        assert!(ids.is_empty() && error.is_none());
        let asked = asked.lock().unwrap();
        assert!(asked[1].contains("last-event-id: 7\r\n"), "{asked:?}");
    }

    #[tokio::test]
    async fn what_cannot_pass_ends_the_stream_with_the_problem() {
        let body = r#"{"title":"Gone","status":410,"code":"gone"}"#;
        let head =
            "HTTP/1.1 410 Gone\r\ncontent-type: application/problem+json\r\nconnection: close";
        let length = body.len();
        let (client, _) =
            server(vec![format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}")]).await;
        let (ids, error) = ids(&client).await;
        assert_eq!((ids.len(), error.unwrap().code()), (0, Some("gone")));
    }
}
