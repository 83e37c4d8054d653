//! Signals between the streams of a connection, its congestion controller and its close.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use super::congestion::CappedController;
use super::connection_window::ConnectionWindow;
use super::datagrams::Flows;
use super::socket::Socket;
use crate::sync::lock;

/// Interactive traffic has ended after this time without a small write.
pub const INTERACTIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Writes up to this size are interactive; from the second size on they are bulk data, in bytes.
pub const INTERACTIVE_WRITE: usize = 1_200;
pub const BULK_WRITE: usize = 16_384;

/// Minimum interval between probes of a connection.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// No interactive write yet.
const NEVER: u64 = u64::MAX;

/// The connection is not being closed.
const NOT_CLOSING: u64 = u64::MAX;

/// Shared state of a connection and its controller. quinn gives access to a clone of the controller, which shares it.
pub struct ConnectionSignals {
    /// Datagrams sent before the close, or `NOT_CLOSING`.
    datagrams_before_close: AtomicU64,
    since: Instant,
    /// Time of the last interactive write, in milliseconds from `since`, or `NEVER`.
    last_interactive_at: AtomicU64,
    /// The stream of that write.
    interactive_stream: AtomicU64,
    /// The receive windows of the connection.
    pub window: ConnectionWindow,
    /// The UDP flows of the connection.
    pub flows: Flows,
    /// Smoothed round-trip time, in microseconds.
    round_trip: AtomicU64,
    congestion_window: AtomicU64,
    /// The endpoint's; set after the handshake.
    socket: OnceLock<Weak<Socket>>,
    probe: Mutex<ProbeState>,
    /// A probe has found that the peer's process is gone.
    is_peer_gone: AtomicBool,
}

#[derive(Default)]
struct ProbeState {
    is_running: bool,
    last_start: Option<Instant>,
}

/// The turn of a probe; ends when it is dropped.
pub struct ProbeTurn(Arc<ConnectionSignals>);

impl Drop for ProbeTurn {
    fn drop(&mut self) {
        lock(&self.0.probe).is_running = false;
    }
}

impl ConnectionSignals {
    /// The signals of a new connection, whose controller has this initial window.
    pub fn new(now: Instant, initial_window: u64) -> Arc<Self> {
        Arc::new(Self {
            datagrams_before_close: AtomicU64::new(NOT_CLOSING),
            since: now,
            last_interactive_at: AtomicU64::new(NEVER),
            interactive_stream: AtomicU64::new(0),
            window: ConnectionWindow::default(),
            flows: Flows::default(),
            round_trip: AtomicU64::new(0),
            congestion_window: AtomicU64::new(initial_window),
            socket: OnceLock::new(),
            probe: Mutex::default(),
            is_peer_gone: AtomicBool::new(false),
        })
    }

    /// The signals of a connection; always present, as all controllers are of this type.
    pub fn of(connection: &quinn::Connection) -> Option<Arc<Self>> {
        let controller = connection.congestion_state().into_any().downcast::<CappedController>().ok()?;
        Some(controller.signals().clone())
    }

    /// Records a write to a stream. A small one is interactive, unless bulk data follows on the same stream.
    pub fn record_write(&self, stream: quinn::StreamId, bytes: usize) {
        let stream = quinn::VarInt::from(stream).into_inner();
        if bytes <= INTERACTIVE_WRITE {
            self.interactive_stream.store(stream, Ordering::Relaxed);
            self.last_interactive_at
                .store(self.since.elapsed().as_millis() as u64, Ordering::Relaxed);
        } else if bytes >= BULK_WRITE && self.interactive_stream.load(Ordering::Relaxed) == stream {
            self.last_interactive_at.store(NEVER, Ordering::Relaxed);
        }
    }

    /// The smoothed round-trip time.
    pub fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip.load(Ordering::Relaxed))
    }

    /// The congestion window, in bytes.
    pub fn congestion_window(&self) -> u64 {
        self.congestion_window.load(Ordering::Relaxed)
    }

    /// Records the controller's estimates of the path.
    pub fn record_path(&self, round_trip: Duration, congestion_window: u64) {
        self.round_trip.store(round_trip.as_micros() as u64, Ordering::Relaxed);
        self.congestion_window.store(congestion_window, Ordering::Relaxed);
    }

    /// Whether interactive data is being sent.
    pub fn is_interactive(&self, now: Instant) -> bool {
        match self.last_interactive_at.load(Ordering::Relaxed) {
            NEVER => false,
            at => now.saturating_duration_since(self.since) <= Duration::from_millis(at) + INTERACTIVE_TIMEOUT,
        }
    }

    /// Tells the connection the socket of its endpoint, which it does not keep open.
    pub fn set_socket(&self, socket: &Weak<Socket>) {
        let _ = self.socket.set(socket.clone()); // it never changes
    }

    pub fn socket(&self) -> Option<Arc<Socket>> {
        self.socket.get()?.upgrade()
    }

    /// The turn of a probe; `None` while another one runs or if the last one started less than a second ago.
    pub fn begin_probe(self: &Arc<Self>) -> Option<ProbeTurn> {
        let mut probe = lock(&self.probe);
        if probe.is_running || probe.last_start.is_some_and(|at| at.elapsed() < PROBE_INTERVAL) {
            return None;
        }
        *probe = ProbeState {
            is_running: true,
            last_start: Some(Instant::now()),
        };
        Some(ProbeTurn(self.clone()))
    }

    /// Records that the peer's process is gone, which is why the connection will be closed.
    pub fn set_peer_gone(&self) {
        self.is_peer_gone.store(true, Ordering::Relaxed);
    }

    pub fn is_peer_gone(&self) -> bool {
        self.is_peer_gone.load(Ordering::Relaxed)
    }

    /// Whether the connection is being closed.
    pub fn is_closing(&self) -> bool {
        self.datagrams_before_close.load(Ordering::Relaxed) != NOT_CLOSING
    }
}

/// Closes a connection. quinn (up to 0.11.19, issue 2785) does not send CONNECTION_CLOSE while the congestion window is full. As it no
/// longer counts acknowledgements, it never would, and the peer would only notice by a timeout.
pub fn close(connection: &quinn::Connection, code: u32, reason: &[u8]) {
    lift_cap(connection);
    connection.close(code.into(), reason);
}

/// Call this before quinn closes the connection itself: with its endpoint or its last handle.
pub fn lift_cap(connection: &quinn::Connection) {
    if let Some(signals) = ConnectionSignals::of(connection) {
        let sent = connection.stats().udp_tx.datagrams;
        let _ = signals
            .datagrams_before_close
            .compare_exchange(NOT_CLOSING, sent, Ordering::Relaxed, Ordering::Relaxed);
        // fails if it was closed before
    }
}

/// Whether CONNECTION_CLOSE was sent: it is the only datagram after the close. quinn-proto (0.11.19) does not count the frame.
pub fn close_sent(connection: &quinn::Connection) -> bool {
    ConnectionSignals::of(connection)
        .is_some_and(|signals| connection.stats().udp_tx.datagrams > signals.datagrams_before_close.load(Ordering::Relaxed))
}
