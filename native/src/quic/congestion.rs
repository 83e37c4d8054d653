//! Congestion control: quinn's, but for the end of a connection, and with no larger window than its path is good for. A sender may
//! always send less than its controller allows, so the name of an algorithm still says how it answers loss. The one that does not answer every
//! loss has a name of its own.
use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{BbrConfig, Controller, ControllerFactory, ControllerMetrics, CubicConfig, NewRenoConfig};
use quinn_proto::RttEstimator;

use crate::quic::window::ConnectionWindow;

/// What may be under way before anything is known of the path: 32 packets of the smallest size, as quic-go and Chromium do. quinn's
/// window is two of the largest packets here, and one is an attempt at a larger size.
const INITIAL_WINDOW: u64 = 32 * 1_200;

/// The largest window that a path is good for: a cap on the bytes in flight. More would only stand in the receiver's buffer, in front of what
/// other tunnels say. A cap never makes a connection send more than its controller allows.
struct WindowCap {
    /// Without any delay, in bytes.
    base: u64,
    /// For each second of delay, in bytes.
    bytes_per_second: f64,
}

/// No connection is faster: encryption alone takes longer.
const BULK_CAP: WindowCap = WindowCap {
    base: 256 * 1024,
    bytes_per_second: 1.25e9,
};

/// Beside a conversation, which waits for whatever is under way: a quarter slower, and a quarter of the wait.
const INTERACTIVE_CAP: WindowCap = WindowCap {
    base: 48 * 1024,
    bytes_per_second: 0.5e9,
};

/// After so much silence a conversation is over.
const INTERACTIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// What is said in a conversation, and what is not, in bytes.
const INTERACTIVE_WRITE: usize = 1_200;
const BULK_WRITE: usize = 16_384;

/// Losses that say nothing of how much there is room for: radio and worn cables lose so many without any queue before them. BBR goes on
/// below the same share (draft-ietf-ccwg-bbr, `BBR.LossThresh`).
const TOLERATED_LOSS_PERCENT: u64 = 2;
/// Packets of which the share is known.
const LOSS_SAMPLE_PACKETS: u64 = 2_048;
/// So many lost packets are no share yet: at the start one may be of thirty.
const MIN_TOLERATED_PACKETS: u64 = 2;

/// There is no conversation.
const NEVER: u64 = u64::MAX;

/// Of a connection that is not about to be closed.
const NOT_CLOSING: u64 = u64::MAX;

/// None when nothing of that name is known.
pub fn named(name: &str) -> Option<Arc<dyn ControllerFactory + Send + Sync>> {
    Some(match name {
        // RFC 9438
        "cubic" => Arc::new(CappedFactory::standard(cubic())),
        // not RFC 9438: see `Losses`
        "cubic-loss-tolerant" => Arc::new(CappedFactory::loss_tolerant(cubic())),
        "bbr" => Arc::new(CappedFactory::standard({
            let mut config = BbrConfig::default();
            config.initial_window(INITIAL_WINDOW);
            config
        })),
        "newreno" => Arc::new(CappedFactory::standard({
            let mut config = NewRenoConfig::default();
            config.initial_window(INITIAL_WINDOW);
            config
        })),
        _ => return None,
    })
}

fn cubic() -> CubicConfig {
    let mut config = CubicConfig::default();
    config.initial_window(INITIAL_WINDOW);
    config
}

/// Closes a connection. quinn (up to 0.11.19, its issue 2785) would hold the news back while the congestion window is full, and so for
/// ever, because nobody counts acknowledgements any more: the peer would find out by the silence.
pub fn close(connection: &quinn::Connection, code: u32, reason: &[u8]) {
    lift_cap(connection);
    connection.close(code.into(), reason);
}

/// Before quinn itself closes the connection: with its end point, or with its last handle.
pub fn lift_cap(connection: &quinn::Connection) {
    if let Some(signals) = ConnectionSignals::of(connection) {
        let sent = connection.stats().udp_tx.datagrams;
        let _ = signals
            .datagrams_before_close
            .compare_exchange(NOT_CLOSING, sent, Ordering::Relaxed, Ordering::Relaxed);
        // fails where it was closed before
    }
}

/// Whether the peer of a connection that this side has closed was sent that: nothing else is sent after the end. quinn-proto (0.11.19) does
/// not count the frame.
pub fn close_sent(connection: &quinn::Connection) -> bool {
    ConnectionSignals::of(connection)
        .is_some_and(|signals| connection.stats().udp_tx.datagrams > signals.datagrams_before_close.load(Ordering::Relaxed))
}

/// What the controller of a connection is told by others. Shared by its copies, of which quinn shows one.
pub struct ConnectionSignals {
    /// Datagrams that were sent before it was closed, or `NOT_CLOSING`.
    datagrams_before_close: AtomicU64,
    since: Instant,
    /// When something short was said last, in milliseconds from `since`, or `NEVER`.
    last_interactive_at: AtomicU64,
    /// The stream on which that was.
    interactive_stream: AtomicU64,
    /// The receive windows of its streams.
    pub window: ConnectionWindow,
    /// Smoothed, in microseconds.
    round_trip: AtomicU64,
    congestion_window: AtomicU64,
}

impl ConnectionSignals {
    /// None once a connection is of another kind, which it never is.
    pub fn of(connection: &quinn::Connection) -> Option<Arc<Self>> {
        let controller = connection.congestion_state().into_any().downcast::<CappedController>().ok()?;
        Some(controller.signals)
    }

    /// So many bytes were written to a stream. Something short is part of a conversation, unless a lot follows it.
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

    /// The path's round trip time, smoothed.
    pub fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip.load(Ordering::Relaxed))
    }

    /// What may be under way, in bytes.
    pub fn congestion_window(&self) -> u64 {
        self.congestion_window.load(Ordering::Relaxed)
    }

    fn cap(&self, now: Instant) -> &'static WindowCap {
        match self.last_interactive_at.load(Ordering::Relaxed) {
            NEVER => &BULK_CAP,
            at if now.saturating_duration_since(self.since) > Duration::from_millis(at) + INTERACTIVE_TIMEOUT => &BULK_CAP,
            _ => &INTERACTIVE_CAP,
        }
    }
}

struct CappedFactory<F> {
    factory: Arc<F>,
    loss_tolerant: bool,
}

impl<F> CappedFactory<F> {
    /// Its controllers hear of no losses that are by chance.
    fn loss_tolerant(factory: F) -> Self {
        let factory = Arc::new(factory);
        Self {
            factory,
            loss_tolerant: true,
        }
    }

    fn standard(factory: F) -> Self {
        let factory = Arc::new(factory);
        Self {
            factory,
            loss_tolerant: false,
        }
    }
}

impl<F: ControllerFactory + Send + Sync + 'static> ControllerFactory for CappedFactory<F> {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = self.factory.clone().build(now, current_mtu);
        let signals = Arc::new(ConnectionSignals {
            datagrams_before_close: AtomicU64::new(NOT_CLOSING),
            since: now,
            last_interactive_at: AtomicU64::new(NEVER),
            interactive_stream: AtomicU64::new(0),
            window: ConnectionWindow::default(),
            round_trip: AtomicU64::new(0),
            congestion_window: AtomicU64::new(INITIAL_WINDOW),
        });
        Box::new(CappedController {
            inner,
            cap: u64::MAX,
            losses: self.loss_tolerant.then(|| Losses::new(current_mtu)),
            signals,
        })
    }
}

/// Whether what is lost is lost by chance: there are few, and nothing has to wait on the way, as it would before a router that has too much.
#[derive(Clone, Default)]
struct Losses {
    mtu: u64,
    /// Bytes, of the last [`LOSS_SAMPLE_PACKETS`] packets or so.
    arrived: u64,
    lost: u64,
    queued: bool,
}

impl Losses {
    fn new(mtu: u16) -> Self {
        Self {
            mtu: mtu.into(),
            ..Self::default()
        }
    }

    /// `rtt`: of late, and the least.
    fn arrived(&mut self, bytes: u64, rtt: [Duration; 2]) {
        let [late, least] = rtt;
        self.arrived += bytes;
        self.forget();
        self.queued = late > least + least / 8 + Duration::from_millis(1);
    }

    fn lost(&mut self, bytes: u64) {
        self.lost += bytes;
        self.forget();
    }

    fn forget(&mut self) {
        if self.arrived + self.lost > LOSS_SAMPLE_PACKETS * self.mtu {
            self.arrived /= 2;
            self.lost /= 2;
        }
    }

    fn are_tolerable(&self) -> bool {
        let share = (self.arrived + self.lost) * TOLERATED_LOSS_PERCENT / 100;
        !self.queued && self.lost <= share.max(MIN_TOLERATED_PACKETS * self.mtu)
    }
}

struct CappedController {
    inner: Box<dyn Controller>,
    /// See [`WindowCap`]. Controllers that wait for loss find none where the receiver's buffer is large and near.
    cap: u64,
    /// Where it is lenient.
    losses: Option<Losses>,
    signals: Arc<ConnectionSignals>,
}

impl Controller for CappedController {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        // a window that is larger than what it lets be under way must not grow (RFC 9002 §7.8): it would take long to shrink
        let limited = app_limited || self.inner.window() >= self.cap;
        self.inner.on_ack(now, sent, bytes, limited, rtt);
        if let Some(losses) = &mut self.losses {
            losses.arrived(bytes, [rtt.get(), rtt.min()]);
        }
        let WindowCap { base, bytes_per_second } = self.signals.cap(now);
        self.cap = base + (rtt.min().as_secs_f64() * bytes_per_second) as u64;
        self.signals.round_trip.store(rtt.get().as_micros() as u64, Ordering::Relaxed);
        let window = self.inner.window().min(self.cap);
        self.signals.congestion_window.store(window, Ordering::Relaxed);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        // none are lost where a router has marked packets instead (ECN)
        if let Some(losses) = self.losses.as_mut().filter(|_| lost_bytes > 0) {
            losses.lost(lost_bytes);
            if losses.are_tolerable() && !is_persistent_congestion {
                return;
            }
            losses.lost = 0; // they are answered
        }
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        if let Some(losses) = &mut self.losses {
            losses.mtu = new_mtu.into();
        }
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.signals.datagrams_before_close.load(Ordering::Relaxed) != NOT_CLOSING {
            return u64::MAX; // not even paced
        }
        self.inner.window().min(self.cap)
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            cap: self.cap,
            losses: self.losses.clone(),
            signals: self.signals.clone(),
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quinn_proto::{Dir, Side, StreamId};

    fn signals(now: Instant) -> Arc<ConnectionSignals> {
        let controller = named("cubic").unwrap().build(now, 1_200);
        controller.into_any().downcast::<CappedController>().unwrap().signals
    }

    fn stream(index: u64) -> StreamId {
        StreamId::new(Side::Client, Dir::Bi, index)
    }

    #[test]
    fn beside_a_conversation_less_is_under_way_until_it_is_over() {
        let start = Instant::now();
        let signals = signals(start);
        assert_eq!(signals.cap(start).base, BULK_CAP.base);
        signals.record_write(stream(1), INTERACTIVE_WRITE);
        assert_eq!(signals.cap(Instant::now()).base, INTERACTIVE_CAP.base);
        signals.record_write(stream(2), BULK_WRITE);
        assert_eq!(signals.cap(Instant::now()).base, INTERACTIVE_CAP.base);
        let later = Instant::now() + INTERACTIVE_TIMEOUT + Duration::from_millis(1);
        assert_eq!(signals.cap(later).base, BULK_CAP.base);
    }

    #[test]
    fn a_download_is_no_conversation_though_it_begins_like_one() {
        let start = Instant::now();
        let signals = signals(start);
        signals.record_write(stream(1), INTERACTIVE_WRITE);
        signals.record_write(stream(1), BULK_WRITE);
        assert_eq!(signals.cap(start).base, BULK_CAP.base);
    }

    const MTU: u64 = 1_200;
    const MS: Duration = Duration::from_millis(1);

    /// One whose peer has acknowledged so many packets.
    fn controller(name: &str, acknowledged: u64) -> CappedController {
        let controller = named(name).unwrap().build(Instant::now(), MTU as u16);
        let mut controller = *controller.into_any().downcast::<CappedController>().unwrap();
        if let Some(losses) = &mut controller.losses {
            losses.arrived(acknowledged * MTU, [MS, MS]);
        }
        controller
    }

    /// What is left of its window when so many packets are lost at once.
    fn left(controller: &mut CappedController, lost: u64, is_persistent: bool) -> f64 {
        let before = controller.window();
        let now = Instant::now() + MS;
        controller.on_congestion_event(now, now, is_persistent, lost * MTU);
        controller.window() as f64 / before as f64
    }

    #[test]
    fn algorithms_of_an_rfc_answer_every_loss() {
        assert_eq!(left(&mut controller("cubic", 1_000), 1, false), 0.7); // RFC 9438 §4.6
        assert_eq!(left(&mut controller("newreno", 1_000), 1, false), 0.5); // RFC 9002 §7.3.2
    }

    #[test]
    fn a_window_stays_where_few_are_lost_and_no_queue_is_before_them() {
        let mut cubic = controller("cubic-loss-tolerant", 1_000);
        for _ in 0..20 {
            assert_eq!(left(&mut cubic, 1, false), 1.0);
        }
        assert_eq!(left(&mut cubic, 1, false), 0.7);
        assert_eq!(left(&mut cubic, 20, false), 1.0, "those before are answered");
        assert_eq!(left(&mut controller("cubic-loss-tolerant", 20), MIN_TOLERATED_PACKETS, false), 1.0);
    }

    #[test]
    fn a_window_shrinks_where_many_are_lost_or_marked_or_for_long_or_there_is_a_queue() {
        assert_eq!(left(&mut controller("cubic-loss-tolerant", 1_000), 21, false), 0.7);
        assert_eq!(
            left(&mut controller("cubic-loss-tolerant", 20), MIN_TOLERATED_PACKETS + 1, false),
            0.7
        );
        assert_eq!(left(&mut controller("cubic-loss-tolerant", 1_000), 0, false), 0.7, "marked");
        assert!(left(&mut controller("cubic-loss-tolerant", 1_000), 1, true) < 0.1, "for long");
        let mut queued = controller("cubic-loss-tolerant", 1_000);
        queued.losses.as_mut().unwrap().arrived(MTU, [112 * MS, 100 * MS]);
        assert_eq!(left(&mut queued, 1, false), 1.0);
        queued.losses.as_mut().unwrap().arrived(MTU, [114 * MS, 100 * MS]);
        assert_eq!(left(&mut queued, 1, false), 0.7);
    }

    #[test]
    fn losses_of_long_ago_do_not_count() {
        let mut cubic = controller("cubic-loss-tolerant", 1_000);
        assert_eq!(left(&mut cubic, 20, false), 1.0);
        for _ in 0..LOSS_SAMPLE_PACKETS {
            cubic.losses.as_mut().unwrap().arrived(MTU, [MS, MS]);
        }
        assert_eq!(left(&mut cubic, 20, false), 1.0);
    }

    #[test]
    fn a_connection_and_what_quinn_shows_of_it_have_the_same_notes() {
        let controller = named("bbr").unwrap().build(Instant::now(), 1_200);
        let shown = controller.clone_box().into_any().downcast::<CappedController>().unwrap();
        shown.signals.record_write(stream(1), INTERACTIVE_WRITE);
        let controller = controller.into_any().downcast::<CappedController>().unwrap();
        assert_ne!(controller.signals.last_interactive_at.load(Ordering::Relaxed), NEVER);
    }
}
