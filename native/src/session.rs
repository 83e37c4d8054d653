//! A session with a peer, over QUIC or over a TLS link: streams in both directions, requests on them, and its end.
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::addon::accept_queue::AcceptQueue;
use crate::error::{NetError, NetErrorCode};
use crate::http::head::{head_timeout, read_head, HeadLimits, Incoming};
use crate::http::pending_heads::PendingHeads;
use crate::net::tcp::outbound_proxy::OutboundProxy;
use crate::net::tls::{ClientTls, ServerTls};
use crate::quic::handshake_limits::{HandshakeLimits, SuppressedErrors};
use crate::quic::transport::Transport;
use crate::quic::{self, connection, probe, signals};
use crate::stream::reader::ReadHalf;
use crate::stream::writer::WriteHalf;
use crate::stream::Halves;
use crate::tls_link;

/// Where and how to open a session of either kind, as JavaScript passes it.
#[napi_derive::napi(object, object_to_js = false)]
pub struct ConnectSession {
    pub host: String,
    pub port: u16,
    pub server_name: Option<String>,
    pub tls: ClientTls,
    pub alpn: Vec<String>,
    pub transport: Transport,
    pub timeout_ms: u32,
    /// Over TCP only.
    pub outbound_proxy: Option<OutboundProxy>,
}

#[derive(Clone)]
pub enum Session {
    Quic(quinn::Connection),
    TlsLink(Arc<tls_link::session::Session>),
}

/// A listener for sessions of either kind.
pub enum SessionListener {
    Quic(quic::listener::Listener),
    TlsLink(tls_link::listener::Listener),
}

impl SessionListener {
    pub fn address(&self) -> &str {
        match self {
            Self::Quic(listener) => &listener.address,
            Self::TlsLink(listener) => &listener.address,
        }
    }

    pub fn accept_queue(&self) -> &AcceptQueue<HandshakeResult> {
        match self {
            Self::Quic(listener) => &listener.accept_queue,
            Self::TlsLink(listener) => &listener.accept_queue,
        }
    }

    pub fn suppressed(&self) -> &Arc<SuppressedErrors> {
        match self {
            Self::Quic(listener) => &listener.suppressed,
            Self::TlsLink(listener) => &listener.suppressed,
        }
    }

    /// Maximum number of streams that a peer may have open.
    pub fn max_streams(&self) -> u32 {
        match self {
            Self::Quic(listener) => listener.max_streams(),
            Self::TlsLink(listener) => listener.max_streams(),
        }
    }

    pub fn set_tls(&self, tls: &ServerTls) -> Result<(), NetError> {
        match self {
            Self::Quic(listener) => listener.set_tls(tls),
            Self::TlsLink(listener) => listener.set_tls(tls),
        }
    }

    pub fn configure(&self, transport: Transport, limits: HandshakeLimits) -> Result<(), NetError> {
        match self {
            Self::Quic(listener) => listener.configure(transport, limits),
            Self::TlsLink(listener) => {
                listener.configure((&transport).into(), limits);
                Ok(())
            }
        }
    }

    pub fn stop_accepting(&self) {
        match self {
            Self::Quic(listener) => listener.stop_accepting(),
            Self::TlsLink(listener) => listener.stop_accepting(),
        }
    }

    /// Closes all sessions. Resolves when the peers of `sessions` have been notified.
    pub async fn close(&self, code: u32, reason: &str, sessions: Vec<Session>) {
        match self {
            Self::Quic(listener) => {
                let connections = sessions.into_iter().filter_map(|session| match session {
                    Session::Quic(connection) => Some(connection),
                    Session::TlsLink(_) => None,
                });
                listener.close(code, reason, connections.collect()).await;
            }
            Self::TlsLink(listener) => {
                let sessions = sessions.into_iter().filter_map(|session| match session {
                    Session::TlsLink(session) => Some(session),
                    Session::Quic(_) => None,
                });
                listener.close(code, reason, sessions.collect()).await;
            }
        }
    }

    /// As [`SessionListener::close`] without waiting.
    pub fn abort(&self) {
        match self {
            Self::Quic(listener) => listener.abort(),
            Self::TlsLink(listener) => listener.stop_accepting(),
        }
    }
}

/// A finished handshake.
pub enum HandshakeResult {
    Connected(Unaccepted),
    Failed { remote: String, error: NetError },
}

/// A session that is closed if it is dropped before it was accepted.
pub struct Unaccepted(Option<Session>);

impl From<Session> for Unaccepted {
    fn from(session: Session) -> Self {
        Self(Some(session))
    }
}

impl Unaccepted {
    pub fn accept(mut self) -> Option<Session> {
        self.0.take()
    }
}

impl Drop for Unaccepted {
    fn drop(&mut self) {
        self.0.iter().for_each(|session| session.close(0, ""));
    }
}

/// Why a session has ended: application error code, reason, whether the peer closed it, and the cause as the contract names it.
pub type Closed = (u64, String, bool, &'static str);

impl Session {
    /// What carries it, as the contract names it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Quic(_) => "quic",
            Self::TlsLink(link) if link.peer.is_in_web_socket => "websocket",
            Self::TlsLink(_) => "tls",
        }
    }

    pub fn remote(&self) -> String {
        match self {
            Self::Quic(quic) => connection::remote(quic),
            Self::TlsLink(link) => link.peer.remote.clone(),
        }
    }

    pub fn alpn(&self) -> String {
        match self {
            Self::Quic(quic) => connection::alpn(quic),
            Self::TlsLink(link) => link.peer.alpn.clone(),
        }
    }

    pub fn peer_certificate(&self) -> Option<Bytes> {
        match self {
            Self::Quic(quic) => connection::peer_certificate(quic),
            Self::TlsLink(link) => link.peer.certificate.clone(),
        }
    }

    pub async fn open_stream(&self) -> Result<Halves, NetError> {
        match self {
            Self::Quic(quic) => connection::open_stream(quic).await,
            Self::TlsLink(link) => Ok(halves(link.open().await?)),
        }
    }

    /// Sends a request. Returns the stream, which holds the bytes after the response head, and the head. If cancelled, the stream is reset. With
    /// `datagrams` what follows the response are the capsules of a UDP flow, whose peer takes DATAGRAM frames if this is QUIC.
    pub async fn request(&self, head: Bytes, limit: Duration, bytes: usize, datagrams: bool) -> Result<(Halves, Bytes), NetError> {
        let all = async {
            let mut halves = self.open_stream().await?;
            // before the response, which datagrams may overtake
            let flow = datagrams.then(|| halves.reader.open_flow()).flatten();
            halves.writer.write(head).await?;
            match read_head(&mut halves, bytes).await? {
                Some(answer) => {
                    if let Some((receiver, sender)) = flow {
                        halves.reader.set_datagrams(receiver);
                        halves.writer.set_datagrams(sender);
                    }
                    Ok((halves, answer))
                }
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

    /// The streams that the peer opens. Over QUIC it may have `max` of them open; over a TLS link its settings have said so.
    fn streams(&self, max: u32) -> Streams {
        match self {
            Self::Quic(quic) => Streams::Quic(connection::Streams::new(quic.clone(), max)),
            Self::TlsLink(link) => Streams::TlsLink(link.clone()),
        }
    }

    /// Accepts streams until the session ends. The peer may have `max` of them open.
    pub async fn accept_streams(self, accept_queue: Arc<AcceptQueue<Halves>>, max: u32) {
        let mut streams = self.streams(max);
        loop {
            accept_queue.space().await; // meanwhile the stream limit applies backpressure
            let Some(halves) = streams.accept().await else {
                return accept_queue.close();
            };
            let _ = accept_queue.push(halves); // if the queue is closed, the stream is reset
        }
    }

    /// Accepts requests on streams of the peer until the session ends. The peer may have `max` streams open.
    pub async fn accept_requests(self, accept_queue: Arc<AcceptQueue<Incoming>>, limits: HeadLimits, max: u32) {
        let pending_heads = PendingHeads::new(limits.pending, limits.pending_per_address);
        let remote = self.remote();
        let mut heads = JoinSet::new();
        let mut streams = self.streams(max);
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
                if let Some(head) = head.transpose().filter(|_| !is_abandoned(&halves)) {
                    let _ = accept_queue.push(Incoming::new(Some(halves), remote, head.map(Some)));
                    // if the queue is closed, the stream is reset
                }
            });
            // the head usually arrives with the stream and needs no task
            if request.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                heads.spawn(request);
            }
        }
    }

    pub fn close(&self, code: u32, reason: &str) {
        match self {
            Self::Quic(quic) => signals::close(quic, code, reason.as_bytes()),
            Self::TlsLink(link) => link.close(code, reason),
        }
    }

    /// Resolves once the session has ended; if it was closed locally, once the peer has been notified.
    pub async fn closed(&self) -> Closed {
        match self {
            Self::Quic(quic) => connection::describe(quic, &connection::closed(quic).await),
            Self::TlsLink(link) => link.closed().await.describe(),
        }
    }

    /// Whether the process of a silent peer is gone; see [`probe::probe`]. Over TCP the peer's system reports it.
    pub async fn probe(&self) -> bool {
        match self {
            Self::Quic(quic) => probe::probe(quic).await,
            Self::TlsLink(_) => false,
        }
    }

    /// Sends a ping, which the peer acknowledges.
    pub fn ping(&self) {
        match self {
            Self::Quic(quic) => quic.ping(),
            Self::TlsLink(link) => link.ping(),
        }
    }

    /// Sets the receive window beyond the windows of the streams, in bytes; 0 for the default.
    pub fn set_window(&self, bytes: u32) {
        match self {
            Self::Quic(quic) => connection::set_connection_window(quic, bytes),
            Self::TlsLink(link) => link.set_window(bytes),
        }
    }

    /// How many more streams the peer permits and the initial send window of each; empty once the session is closed.
    pub fn peer_credit(&self) -> Vec<f64> {
        let (streams, bytes) = match self {
            Self::Quic(quic) => {
                let (streams, bytes) = quic.peer_bidi_credit();
                (streams as f64, bytes as f64)
            }
            Self::TlsLink(link) => match link.peer_credit() {
                Some((streams, bytes)) => (streams as f64, bytes.into()),
                None => return Vec::new(),
            },
        };
        vec![streams, bytes]
    }

    /// Round-trip time in ms. QUIC: packets sent and lost, bytes sent and received, congestion window, MTU and path
    /// challenges received. TLS link: bytes sent and received on the wire.
    pub fn stats(&self) -> Vec<f64> {
        match self {
            Self::Quic(quic) => connection::stats(quic),
            Self::TlsLink(link) => link.stats(),
        }
    }
}

enum Streams {
    Quic(connection::Streams),
    TlsLink(Arc<tls_link::session::Session>),
}

impl Streams {
    /// The next stream; `None` once the session has ended.
    async fn accept(&mut self) -> Option<Halves> {
        match self {
            Self::Quic(streams) => streams.accept().await,
            Self::TlsLink(link) => link.accept().await.map(halves),
        }
    }
}

/// Whether the request was given up meanwhile. QUIC drops its data then.
fn is_abandoned(halves: &Halves) -> bool {
    matches!(&halves.reader.half, ReadHalf::TlsLink(reader) if reader.is_abandoned())
}

fn halves((reader, writer): (tls_link::stream::RecvHalf, tls_link::stream::SendHalf)) -> Halves {
    Halves::new(ReadHalf::TlsLink(reader), WriteHalf::TlsLink(writer))
}
