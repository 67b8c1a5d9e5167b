//! One call to an endpoint: whoever chose its URL must get nothing out of it but the call.
//!
//! Each call is a connection of its own, to an address that was judged after its name was resolved,
//! so no name can lead elsewhere between the two. Redirects are not followed, proxies not asked, and
//! of the answer only its status and `Retry-After` count.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, crypto};
use tokio_util::task::AbortOnDropHandle;
use url::{Host, Url};

use super::letter::{self, Letter};
use crate::domain::receiver::Allowed;

/// For the whole call.
const WITHIN: Duration = Duration::from_secs(15);
/// For one of the addresses that a name has.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// So much of an answer is taken, for so long, lest the endpoint see its answer cut off; it is thrown
/// away.
const ANSWER_AT_MOST: usize = 16 << 10;
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Largest head of an answer.
const HEAD_AT_MOST: usize = 16 << 10;

type Lookup =
    Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// Calls endpoints.
#[derive(Clone)]
pub struct Caller {
    allowed: Allowed,
    tls: TlsConnector,
    lookup: Lookup,
}

/// What an endpoint answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub retry_after: Option<Duration>,
}

impl Answer {
    /// What is wrong with it, if it is no success.
    pub fn fault(self) -> Option<String> {
        match self.status {
            200..=299 => None,
            300..=399 => Some(format!("it answered {}: redirects are not followed", self.status)),
            status => Some(format!("it answered {status}")),
        }
    }
}

impl Caller {
    /// Trusts the certificates that the system trusts.
    pub fn new(allowed: Allowed) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        // Where there are none, calls by https say so.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let lookup: Lookup = Arc::new(|name, port| {
            Box::pin(async move { Ok(tokio::net::lookup_host((name, port)).await?.collect()) })
        });
        Ok(Self { allowed, tls: Arc::new(tls).into(), lookup })
    }

    /// Reads a URL that somebody wants to be called, or says why it will not be. A name that does not
    /// resolve now may do so later.
    pub async fn judge(&self, text: &str) -> Result<Url, String> {
        let url = self.allowed.url(text)?;
        match timeout(CONNECT_WITHIN, self.addresses(&url)).await {
            Ok(Err(Unfit::Refused(why))) => Err(why),
            Ok(Ok(_) | Err(Unfit::Unknown(_))) | Err(_) => Ok(url),
        }
    }

    /// Sends a signed letter; an error says why no answer came.
    pub(super) async fn call(
        &self,
        url: &str,
        letter: Letter,
        at: DateTime<Utc>,
        signature: String,
    ) -> Result<Answer, String> {
        let url = self.allowed.url(url)?;
        let called = self.exchange(&url, letter, at, signature);
        timeout(WITHIN, called)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", WITHIN.as_secs())))
    }

    async fn exchange(
        &self,
        url: &Url,
        letter: Letter,
        at: DateTime<Utc>,
        signature: String,
    ) -> Result<Answer, String> {
        let host = url.host_str().unwrap_or_default();
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let request = Request::post(path)
            .header(HOST, host)
            .header(CONTENT_TYPE, letter::CONTENT_TYPE)
            .header(USER_AGENT, concat!("reeve/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", letter.id)
            .header("webhook-timestamp", at.timestamp())
            .header("webhook-signature", signature)
            .body(Full::new(Bytes::from(letter.body)))
            .map_err(|error| format!("the URL cannot be called: {error}"))?;
        let socket = self.connect(url).await?;
        if url.scheme() == "http" {
            return converse(socket, request).await;
        }
        let name = match url.host() {
            Some(Host::Domain(name)) => ServerName::try_from(name.to_owned()).ok(),
            Some(Host::Ipv4(ip)) => Some(ServerName::from(std::net::IpAddr::from(ip))),
            Some(Host::Ipv6(ip)) => Some(ServerName::from(std::net::IpAddr::from(ip))),
            None => None,
        };
        let name = name.ok_or("the URL has no name that a certificate could have")?;
        let socket = self.tls.connect(name, socket).await;
        converse(socket.map_err(|error| format!("TLS failed: {error}"))?, request).await
    }

    async fn connect(&self, url: &Url) -> Result<TcpStream, String> {
        let addresses = self.addresses(url).await.map_err(Unfit::words)?;
        let mut last = "its name has no address".to_owned();
        for address in addresses {
            match timeout(CONNECT_WITHIN, TcpStream::connect(address)).await {
                Ok(Ok(socket)) => {
                    // It is one letter and one answer, so there is nothing to wait for.
                    let _ = socket.set_nodelay(true);
                    return Ok(socket);
                }
                Ok(Err(error)) => last = format!("{address}: {error}"),
                Err(_) => {
                    last =
                        format!("{address}: no connection within {} s", CONNECT_WITHIN.as_secs());
                }
            }
        }
        Err(last)
    }

    /// The addresses that may be connected to.
    async fn addresses(&self, url: &Url) -> Result<Vec<SocketAddr>, Unfit> {
        let port = url.port_or_known_default().unwrap_or(443);
        let found = match url.host() {
            Some(Host::Ipv4(ip)) => vec![(ip, port).into()],
            Some(Host::Ipv6(ip)) => vec![(ip, port).into()],
            Some(Host::Domain(name)) => (self.lookup)(name.to_owned(), port)
                .await
                .map_err(|error| Unfit::Unknown(format!("{name} does not resolve: {error}")))?,
            None => vec![],
        };
        let mut refused = None;
        let mut fit = Vec::new();
        for address in found {
            match self.allowed.address(address.ip()) {
                Ok(()) => fit.push(address),
                Err(why) => refused = Some(why),
            }
        }
        match refused {
            Some(why) if fit.is_empty() => Err(Unfit::Refused(why)),
            Some(_) | None => Ok(fit),
        }
    }
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

/// Why there is no address to connect to.
enum Unfit {
    Refused(String),
    Unknown(String),
}

impl Unfit {
    fn words(self) -> String {
        match self {
            Self::Refused(why) | Self::Unknown(why) => why,
        }
    }
}

async fn converse(
    socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Answer, String> {
    let words = |error: hyper::Error| match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_AT_MOST)
        .handshake(TokioIo::new(socket))
        .await
        .map_err(words)?;
    let _driving = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender.send_request(request).await.map_err(words)?;
    let answer = Answer {
        status: response.status().as_u16(),
        retry_after: retry_after(response.headers(), crate::clock::now()),
    };
    let _ = timeout(ANSWER_WITHIN, throw_away(response)).await;
    Ok(answer)
}

async fn throw_away(mut response: Response<Incoming>) {
    let mut left = ANSWER_AT_MOST;
    while let Some(Ok(frame)) = response.body_mut().frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(length) else { return };
        left = rest;
    }
}

/// `Retry-After`: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = DateTime::parse_from_rfc2822(value).ok()?;
    (at.to_utc() - now).to_std().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn letter() -> Letter {
        Letter { id: "1".to_owned(), body: "{}".to_owned() }
    }

    /// A caller for whom each name has what `lookup` says at the n-th time.
    fn caller(ranges: &str, lookup: fn(usize) -> Vec<SocketAddr>) -> Caller {
        let asked = Arc::new(AtomicUsize::new(0));
        let lookup: Lookup = Arc::new(move |_, port| {
            let mut found = lookup(asked.fetch_add(1, Ordering::Relaxed));
            found.iter_mut().for_each(|address| address.set_port(port));
            Box::pin(async move { Ok(found) })
        });
        Caller { lookup, ..Caller::new(Allowed::parse(ranges).unwrap()).unwrap() }
    }

    async fn call(caller: &Caller, url: &str) -> Result<Answer, String> {
        caller.call(url, letter(), crate::clock::now(), "v1,x".to_owned()).await
    }

    fn at(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap(), 0)
    }

    /// Answers each connection with the same text, and counts them.
    async fn endpoint(answer: &'static str) -> (u16, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, calls) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
        let counted = calls.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let mut text = [0; 4096];
                let _ = socket.read(&mut text).await;
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        (port, calls)
    }

    #[tokio::test]
    async fn names_that_lead_inside_are_refused_before_a_connection_is_opened() {
        let (port, calls) = endpoint("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let url = format!("http://inside.example:{port}/");
        for address in ["127.0.0.1", "::1", "10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1"] {
            let listed: fn(usize) -> Vec<SocketAddr> = match address {
                "127.0.0.1" => |_| vec![at("127.0.0.1")],
                "::1" => |_| vec![at("::1")],
                "10.0.0.1" => |_| vec![at("10.0.0.1")],
                "169.254.169.254" => |_| vec![at("169.254.169.254")],
                _ => |_| vec![at("::ffff:127.0.0.1")],
            };
            let caller = caller("", listed);
            assert!(caller.judge(&url).await.is_err(), "{address}");
            let why = call(&caller, &url).await.unwrap_err();
            assert!(why.contains("is"), "{why}");
        }
        assert_eq!(calls.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_name_that_leads_elsewhere_at_the_second_look_leads_nowhere() {
        let (port, calls) = endpoint("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let rebound = caller("", |n| match n {
            0 => vec![at("93.184.216.34")],
            _ => vec![at("127.0.0.1")],
        });
        let url = format!("http://rebinding.example:{port}/");
        assert!(rebound.judge(&url).await.is_ok());
        let why = call(&rebound, &url).await.unwrap_err();
        assert!(why.contains("loopback"), "{why}");
        assert_eq!(calls.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn redirects_are_not_followed_and_answers_not_believed() {
        let (inside, calls) = endpoint("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let local = caller("127.0.0.0/8", |_| vec![at("127.0.0.1")]);
        let (port, _) =
            endpoint("HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:1/\r\n\r\n").await;
        let answer = call(&local, &format!("http://a.example:{port}/")).await.unwrap();
        assert_eq!(answer.status, 307);
        assert!(answer.fault().unwrap().contains("redirects"));
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        let (port, _) = endpoint("HTTP/1.1 503 Busy\r\nretry-after: 120\r\n\r\n").await;
        let answer = call(&local, &format!("http://127.0.0.1:{port}/")).await.unwrap();
        assert_eq!(answer.retry_after, Some(Duration::from_secs(120)));
        let (port, _) = endpoint("+OK this is no web server\r\n").await;
        assert!(call(&local, &format!("http://127.0.0.1:{port}/")).await.is_err());
        assert_eq!(
            call(&local, &format!("http://127.0.0.1:{inside}/x?y")).await.unwrap().status,
            200
        );
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = DateTime::from_timestamp(1_000_000_000, 0).unwrap();
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(read("30"), Some(Duration::from_secs(30)));
        assert_eq!(read("Sun, 09 Sep 2001 01:47:40 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(read("Sun, 09 Sep 2001 01:00:00 GMT"), None);
        assert_eq!(read("soon"), None);
    }
}
