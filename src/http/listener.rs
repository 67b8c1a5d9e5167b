//! Connections that do not wait for their peers for ever.
//!
//! A reader that stops reading fills its socket, and what is written to it waits. It may do so for
//! a while; then its connection ends, and with it all that was kept for it. A stream loses nothing
//! by that: its client goes on behind the last event that it has read.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};

/// How long a peer may take nothing of what is sent to it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A listener whose connections end when their peer takes nothing for a while.
#[derive(Debug)]
pub struct Patient {
    listener: TcpListener,
    patience: Duration,
}

impl Patient {
    #[must_use]
    pub fn new(listener: TcpListener, patience: Duration) -> Self {
        Self { listener, patience }
    }
}

impl Listener for Patient {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // An event must not wait for the one after it. Where that cannot be had, it is only slow.
        let _ = stream.set_nodelay(true);
        (Connection { stream, patience: self.patience, stalled: None }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    patience: Duration,
    /// Runs while something waits to be sent and nothing goes out.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    fn judge<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        stalled.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.judge(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.judge(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use axum::Router;
    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use futures::stream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::*;

    struct Gone(Arc<AtomicBool>);

    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn who_takes_nothing_is_dropped_and_who_is_slow_is_not() {
        let (made, gone) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let flood = {
            let (made, gone) = (made.clone(), gone.clone());
            move || {
                let (made, gone) = (made.clone(), Gone(gone.clone()));
                async move {
                    Body::from_stream(stream::repeat_with(move || {
                        let _kept = &gone;
                        made.fetch_add(1, Ordering::SeqCst);
                        Ok::<_, io::Error>(Bytes::from(vec![0; 1 << 14]))
                    }))
                }
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listener = Patient::new(listener, Duration::from_millis(400));
        let router = Router::new().route("/", get(flood));
        tokio::spawn(async move { axum::serve(listener, router).await });

        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut buffer = vec![0; 1 << 22];
        // Slow, but it takes something now and then.
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(1) {
            assert!(client.read(&mut buffer).await.unwrap() > 0);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(!gone.load(Ordering::SeqCst));
        // Now it takes nothing.
        let stopped = Instant::now();
        while !gone.load(Ordering::SeqCst) {
            assert!(stopped.elapsed() < Duration::from_secs(10), "it is kept for ever");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(stopped.elapsed() >= Duration::from_millis(300));
    }
}
