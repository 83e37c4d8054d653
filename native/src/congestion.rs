//! Congestion control: quinn's, but for the end of a connection.
use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{BbrConfig, Controller, ControllerFactory, ControllerMetrics, CubicConfig, NewRenoConfig};
use quinn_proto::RttEstimator;

/// What may be under way before anything is known of the path: 32 packets of the smallest size, as quic-go and Chromium do. quinn's
/// window is two of the largest packets here, and one is an attempt at a larger size.
const INITIAL_WINDOW: u64 = 32 * 1_200;

/// None when nothing of that name is known.
pub fn named(name: &str) -> Option<Arc<dyn ControllerFactory + Send + Sync>> {
    Some(match name {
        "cubic" => Arc::new(Ending(Arc::new({
            let mut config = CubicConfig::default();
            config.initial_window(INITIAL_WINDOW);
            config
        }))),
        "bbr" => Arc::new(Ending(Arc::new(BbrConfig::default()))),
        "newreno" => Arc::new(Ending(Arc::new({
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
    if let Ok(controller) = connection.congestion_state().into_any().downcast::<EndingController>() {
        controller.ending.store(true, Ordering::Relaxed);
    }
}

struct Ending<F>(Arc<F>);

impl<F: ControllerFactory + Send + Sync + 'static> ControllerFactory for Ending<F> {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = self.0.clone().build(now, current_mtu);
        let ending = Arc::new(AtomicBool::new(false));
        Box::new(EndingController { inner, ending })
    }
}

struct EndingController {
    inner: Box<dyn Controller>,
    /// Shared by its copies: quinn shows one of those only.
    ending: Arc<AtomicBool>,
}

impl Controller for EndingController {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
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
        if self.ending.load(Ordering::Relaxed) {
            return u64::MAX; // not even paced
        }
        self.inner.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            ending: self.ending.clone(),
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
