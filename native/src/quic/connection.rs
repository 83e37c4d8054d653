//! A QUIC connection: its streams and its end.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use super::probe::PEER_GONE;
use super::signals::{self, ConnectionSignals};
use super::transport::INITIAL_STREAMS;
use super::window::Flow;
use crate::error::NetError;
use crate::net::address::canonical;
use crate::stream::reader::ReadHalf;
use crate::stream::writer::WriteHalf;
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

/// The streams that the peer opens. It may have `max` of them open.
pub struct Streams {
    connection: Connection,
    signals: Option<Arc<ConnectionSignals>>,
    allowed: u32,
    max: u32,
}

impl Streams {
    pub fn new(connection: Connection, max: u32) -> Self {
        Self {
            signals: ConnectionSignals::of(&connection),
            connection,
            allowed: max.min(INITIAL_STREAMS),
            max,
        }
    }

    /// The next stream; `None` once the connection has ended.
    pub async fn accept(&mut self) -> Option<Halves> {
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

/// Round-trip time in ms, packets sent and lost, bytes sent and received, congestion window, MTU, and how often the peer has validated a path
/// (PATH_CHALLENGE frames received).
pub fn stats(connection: &Connection) -> Vec<f64> {
    let stats = connection.stats();
    let path = stats.path;
    let counts = [
        path.sent_packets,
        path.lost_packets,
        stats.udp_tx.bytes,
        stats.udp_rx.bytes,
        path.cwnd,
        path.current_mtu.into(),
        stats.frame_rx.path_challenge,
    ];
    std::iter::once(path.rtt.as_secs_f64() * 1000.0)
        .chain(counts.into_iter().map(|n| n as f64))
        .collect()
}

/// Application error code, reason, whether the peer closed it, and the cause as the contract names it.
pub fn describe(connection: &Connection, error: &ConnectionError) -> (u64, String, bool, &'static str) {
    match error {
        ConnectionError::LocallyClosed if ConnectionSignals::of(connection).is_some_and(|signals| signals.is_peer_gone()) => {
            (0, PEER_GONE.into(), false, "timed-out")
        }
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
