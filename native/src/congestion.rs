//! Congestion control: quinn's, but for the end of a connection, and with no larger window than its path is good for.
use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{BbrConfig, Controller, ControllerFactory, ControllerMetrics, CubicConfig, NewRenoConfig};
use quinn_proto::RttEstimator;

/// What may be under way before anything is known of the path: 32 packets of the smallest size, as quic-go and Chromium do. quinn's
/// window is two of the largest packets here, and one is an attempt at a larger size.
const INITIAL_WINDOW: u64 = 32 * 1_200;

/// What may be under way on a path without any delay. More would only stand in the receiver's buffer, in front of what other tunnels say.
const WINDOW_AT_HAND: u64 = 256 * 1024;

/// No connection is faster than this, in bytes a second: encryption alone takes longer. So a path of a given delay needs no larger window.
const FASTEST: f64 = 1.25e9;

/// Of a connection that is not about to be closed.
const OPEN: u64 = u64::MAX;

/// None when nothing of that name is known.
pub fn named(name: &str) -> Option<Arc<dyn ControllerFactory + Send + Sync>> {
    Some(match name {
        "cubic" => Arc::new(Guided(Arc::new({
            let mut config = CubicConfig::default();
            config.initial_window(INITIAL_WINDOW);
            config
        }))),
        "bbr" => Arc::new(Guided(Arc::new(BbrConfig::default()))),
        "newreno" => Arc::new(Guided(Arc::new({
            let mut config = NewRenoConfig::default();
            config.initial_window(INITIAL_WINDOW);
            config
        }))),
        _ => return None,
    })
}

/// Closes a connection. quinn (up to 0.11.19, its issue 2785) would hold the news back while the congestion window is full, and so for
/// ever, because nobody counts acknowledgements any more: the peer would find out by the silence.
pub fn close(connection: &quinn::Connection, code: u32, reason: &[u8]) {
    open_window(connection);
    connection.close(code.into(), reason);
}

/// Before quinn itself closes the connection: with its end point, or with its last handle.
pub fn open_window(connection: &quinn::Connection) {
    if let Some(sent_before) = sent_before_end(connection) {
        let sent = connection.stats().udp_tx.datagrams;
        let _ = sent_before.compare_exchange(OPEN, sent, Ordering::Relaxed, Ordering::Relaxed);
        // fails where it was closed before
    }
}

/// Whether the peer of a connection that this side has closed was sent that: nothing else is sent after the end. quinn-proto (0.11.19) does
/// not count the frame.
pub fn has_told(connection: &quinn::Connection) -> bool {
    sent_before_end(connection).is_some_and(|before| connection.stats().udp_tx.datagrams > before.load(Ordering::Relaxed))
}

fn sent_before_end(connection: &quinn::Connection) -> Option<Arc<AtomicU64>> {
    let controller = connection.congestion_state().into_any().downcast::<GuidedController>().ok()?;
    Some(controller.sent_before_end)
}

struct Guided<F>(Arc<F>);

impl<F: ControllerFactory + Send + Sync + 'static> ControllerFactory for Guided<F> {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = self.0.clone().build(now, current_mtu);
        let sent_before_end = Arc::new(AtomicU64::new(OPEN));
        Box::new(GuidedController {
            inner,
            most: u64::MAX,
            sent_before_end,
        })
    }
}

struct GuidedController {
    inner: Box<dyn Controller>,
    /// The largest window that the delay of the path makes useful. Controllers that wait for loss find none where the receiver's buffer is
    /// large and near.
    most: u64,
    /// Datagrams that were sent before it was closed, or `OPEN`. Shared by its copies: quinn shows one of those only.
    sent_before_end: Arc<AtomicU64>,
}

impl Controller for GuidedController {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
        self.most = WINDOW_AT_HAND + (rtt.min().as_secs_f64() * FASTEST) as u64;
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.sent_before_end.load(Ordering::Relaxed) != OPEN {
            return u64::MAX; // not even paced
        }
        self.inner.window().min(self.most)
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            most: self.most,
            sent_before_end: self.sent_before_end.clone(),
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
