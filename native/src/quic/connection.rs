//! A QUIC connection: its streams, requests on them, and its end.
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::signals::{self, ConnectionSignals};
use super::transport::INITIAL_STREAMS;
use super::window::Flow;
use crate::addon::accept_queue::AcceptQueue;
use crate::error::{NetError, NetErrorCode};
use crate::http::head::{head_timeout, read_head, HeadLimits, Incoming};
use crate::http::pending_heads::PendingHeads;
use crate::net::address::canonical;
use crate::stream::half::{ReadHalf, WriteHalf};
use crate::stream::Halves;

/// Maximum time to wait for CONNECTION_CLOSE to be sent.
pub const CLOSE_NOTIFY_TIMEOUT: Duration = Duration::from_millis(700);

/// Sets `connection_window` of [`Transport`] of an open connection.
pub fn set_connection_window(connection: &Connection, bytes: u32) {
    if let Some(signals) = ConnectionSignals::of(connection) {
        signals.window.set_base(connection, bytes);
    }
}

/// The halves of a stream, with flow control per stream.
fn halves(connection: &Connection, signals: &Option<Arc<ConnectionSignals>>, send: SendStream, recv: RecvStream) -> Halves {
    let mut halves = Halves::new(ReadHalf::Quic(recv), WriteHalf::Quic(send, signals.clone()));
    halves.reader.flow = Flow::new(connection, signals);
    halves
}

pub fn alpn(connection: &Connection) -> String {
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    data.and_then(|data| data.protocol)
        .map(|p| String::from_utf8_lossy(&p).into_owned())
        .unwrap_or_default()
}

pub fn peer_certificate(connection: &Connection) -> Option<Bytes> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.first().map(|certificate| Bytes::copy_from_slice(certificate))
}

pub fn remote(connection: &Connection) -> String {
    canonical(connection.remote_address()).to_string()
}

pub async fn open_stream(connection: &Connection) -> Result<Halves, NetError> {
    let (send, recv) = connection.open_bi().await.map_err(|e| NetError::quic_lost(&e))?;
    Ok(halves(connection, &ConnectionSignals::of(connection), send, recv))
}

/// Sends a request. Returns the stream, which holds the bytes after the response head, and the head. If cancelled, the stream is reset.
pub async fn request(connection: Connection, head: Bytes, limit: Duration, bytes: usize) -> Result<(Halves, Bytes), NetError> {
    let all = async {
        let mut halves = open_stream(&connection).await?;
        halves.writer.write(head).await?;
        match read_head(&mut halves, bytes).await? {
            Some(answer) => Ok((halves, answer)),
            // no response: the reader knows whether it was an end or a reset
            None => Err(halves
                .reader
                .read()
                .await
                .err()
                .unwrap_or_else(|| NetError::remote(NetErrorCode::HeadTruncated, "The stream ended without a response"))),
        }
    };
    match timeout(limit, all).await {
        Ok(result) => result,
        Err(_) => Err(NetError::new(
            NetErrorCode::TimedOut,
            format!("No response within {} ms", limit.as_millis()),
        )),
    }
}

/// The streams that the peer opens. It may have `max` of them open.
struct Streams {
    connection: Connection,
    signals: Option<Arc<ConnectionSignals>>,
    allowed: u32,
    max: u32,
}

impl Streams {
    fn new(connection: Connection, max: u32) -> Self {
        Self {
            signals: ConnectionSignals::of(&connection),
            connection,
            allowed: max.min(INITIAL_STREAMS),
            max,
        }
    }

    /// The next stream; `None` once the connection has ended.
    async fn accept(&mut self) -> Option<Halves> {
        let (send, recv) = self.connection.accept_bi().await.ok()?;
        let halves = halves(&self.connection, &self.signals, send, recv);
        let open = self.signals.as_ref().map_or(usize::MAX, |signals| signals.window.streams());
        if self.allowed < self.max && open > self.allowed as usize / 2 {
            self.allowed = self.allowed.saturating_mul(2).min(self.max);
            self.connection.set_max_concurrent_bi_streams(self.allowed.into());
        }
        Some(halves)
    }
}

/// Accepts streams until the connection ends. The peer may have `max` of them open.
pub async fn accept_streams(connection: Connection, accept_queue: Arc<AcceptQueue<Halves>>, max: u32) {
    let mut streams = Streams::new(connection, max);
    loop {
        accept_queue.space().await; // meanwhile the stream limit applies backpressure
        let Some(halves) = streams.accept().await else {
            return accept_queue.close();
        };
        let _ = accept_queue.push(halves); // if the queue is closed, the stream is reset
    }
}

/// Accepts requests on streams of the peer until the connection ends. The peer may have `max` streams open.
pub async fn accept_requests(connection: Connection, accept_queue: Arc<AcceptQueue<Incoming>>, limits: HeadLimits, max: u32) {
    let pending_heads = PendingHeads::new(limits.pending, 0); // one peer: no limit per address
    let remote = remote(&connection);
    let mut heads = JoinSet::new();
    let mut streams = Streams::new(connection, max);
    loop {
        accept_queue.space().await;
        while heads.try_join_next().is_some() {}
        let Some(mut halves) = streams.accept().await else {
            return accept_queue.close();
        };
        let (accept_queue, remote, mut permit) = (accept_queue.clone(), remote.clone(), pending_heads.acquire(None));
        let mut request = Box::pin(async move {
            let head = tokio::select! {
                biased; // see `head_timeout`
                head = read_head(&mut halves, limits.bytes) => head,
                late = head_timeout(limits.time) => Err(late),
                evicted = permit.evicted() => Err(evicted),
            };
            if let Some(head) = head.transpose() {
                let _ = accept_queue.push(Incoming {
                    halves: Some(halves),
                    remote,
                    head: head.map(Some),
                }); // if the queue is closed, the stream is reset
            }
        });
        // the head usually arrives with the stream and needs no task
        if request.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            heads.spawn(request);
        }
    }
}

/// Resolves with the reason once the connection has ended; if it was closed locally, once CONNECTION_CLOSE was sent.
pub async fn closed(connection: &Connection) -> ConnectionError {
    let error = connection.closed().await;
    if error == ConnectionError::LocallyClosed {
        let _ = timeout(CLOSE_NOTIFY_TIMEOUT, close_notified(connection)).await;
        // the network may be down
    }
    error
}

/// Resolves when CONNECTION_CLOSE was sent or cannot be sent any more.
pub async fn close_notified(connection: &Connection) {
    while !signals::close_sent(connection) {
        match connection.close_reason() {
            None | Some(ConnectionError::LocallyClosed) => tokio::time::sleep(Duration::from_millis(1)).await,
            Some(_) => return,
        }
    }
}

/// Application error code, reason, whether the peer closed it, and the cause as the contract names it.
pub fn describe(error: &ConnectionError) -> (u64, String, bool, &'static str) {
    match error {
        ConnectionError::ApplicationClosed(close) => (
            close.error_code.into_inner(),
            String::from_utf8_lossy(&close.reason).into_owned(),
            true,
            "application",
        ),
        ConnectionError::LocallyClosed => (0, String::new(), false, "application"),
        ConnectionError::TimedOut => (0, error.to_string(), false, "timed-out"),
        ConnectionError::Reset => (0, error.to_string(), true, "reset"),
        ConnectionError::ConnectionClosed(_) => (0, error.to_string(), true, "transport"),
        _ => (0, error.to_string(), false, "transport"),
    }
}
