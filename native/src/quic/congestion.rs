//! Congestion control: quinn's algorithms with a cap on the window, and without a window while a connection closes. A sender may always
//! send less than its controller permits, so each algorithm still responds to loss as its name says. The variant that tolerates some loss
//! has a name of its own.
use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{BbrConfig, Controller, ControllerFactory, ControllerMetrics, CubicConfig, NewRenoConfig};
use quinn_proto::RttEstimator;

use super::losses::Losses;
use super::signals::ConnectionSignals;

/// Initial congestion window: 32 packets of minimum size, as in quic-go and Chromium. quinn's is two of the largest packets here, one of
/// which is an MTU probe.
const INITIAL_WINDOW: u64 = 32 * 1_200;

/// A cap on the bytes in flight. A larger window would only queue at the receiver and delay other tunnels. The cap never makes a connection
/// send more than its controller permits.
struct WindowCap {
    /// Bytes without any delay.
    base: u64,
    /// Bytes per second of round-trip time: the highest throughput that the cap permits.
    bytes_per_second: f64,
}

/// For bulk data. The cap permits 10 Gbit/s on long paths and more on short ones, where encryption is the limit.
const BULK_CAP: WindowCap = WindowCap {
    base: 512 * 1024,
    bytes_per_second: 1.25e9,
};

/// While interactive data is sent, which waits for whatever is in flight: a quarter less throughput for a quarter of the wait.
const INTERACTIVE_CAP: WindowCap = WindowCap {
    base: 48 * 1024,
    bytes_per_second: 0.5e9,
};

fn cap(signals: &ConnectionSignals, now: Instant) -> &'static WindowCap {
    match signals.is_interactive(now) {
        true => &INTERACTIVE_CAP,
        false => &BULK_CAP,
    }
}

/// The algorithm of this name, if it exists.
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

struct CappedFactory<F> {
    factory: Arc<F>,
    loss_tolerant: bool,
}

impl<F> CappedFactory<F> {
    /// Its controllers ignore tolerable losses.
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
        Box::new(CappedController {
            inner,
            cap: u64::MAX,
            losses: self.loss_tolerant.then(|| Losses::new(current_mtu)),
            signals: ConnectionSignals::new(now, INITIAL_WINDOW),
        })
    }
}

pub struct CappedController {
    inner: Box<dyn Controller>,
    /// See [`WindowCap`]. A large buffer at a near receiver causes no loss, so loss-based controllers would not stop growing.
    cap: u64,
    /// Only if the controller is loss-tolerant.
    losses: Option<Losses>,
    signals: Arc<ConnectionSignals>,
}

impl CappedController {
    pub fn signals(&self) -> &Arc<ConnectionSignals> {
        &self.signals
    }
}

impl Controller for CappedController {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        // a window above the cap must not grow (RFC 9002 §7.8): it would take long to shrink
        let limited = app_limited || self.inner.window() >= self.cap;
        self.inner.on_ack(now, sent, bytes, limited, rtt);
        if let Some(losses) = &mut self.losses {
            losses.arrived(bytes, [rtt.get(), rtt.min()]);
        }
        let WindowCap { base, bytes_per_second } = cap(&self.signals, now);
        self.cap = base + (rtt.min().as_secs_f64() * bytes_per_second) as u64;
        self.signals.record_path(rtt.get(), self.inner.window().min(self.cap));
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        // zero bytes: packets were marked (ECN), not lost
        if let Some(losses) = self.losses.as_mut().filter(|_| lost_bytes > 0) {
            losses.lost(lost_bytes);
            if losses.are_tolerable() && !is_persistent_congestion {
                return;
            }
            losses.lost = 0; // the controller has responded to them
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
        if self.signals.is_closing() {
            return u64::MAX; // disables pacing too
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
    use std::time::Duration;

    use super::super::losses::LOSS_SAMPLE_PACKETS;
    use super::super::signals::{BULK_WRITE, INTERACTIVE_TIMEOUT, INTERACTIVE_WRITE};
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
    fn less_is_in_flight_while_traffic_is_interactive() {
        let start = Instant::now();
        let signals = signals(start);
        assert_eq!(cap(&signals, start).base, BULK_CAP.base);
        signals.record_write(stream(1), INTERACTIVE_WRITE);
        assert_eq!(cap(&signals, Instant::now()).base, INTERACTIVE_CAP.base);
        signals.record_write(stream(2), BULK_WRITE);
        assert_eq!(cap(&signals, Instant::now()).base, INTERACTIVE_CAP.base);
        let later = Instant::now() + INTERACTIVE_TIMEOUT + Duration::from_millis(1);
        assert_eq!(cap(&signals, later).base, BULK_CAP.base);
    }

    #[test]
    fn bulk_data_after_a_small_write_is_not_interactive() {
        let start = Instant::now();
        let signals = signals(start);
        signals.record_write(stream(1), INTERACTIVE_WRITE);
        signals.record_write(stream(1), BULK_WRITE);
        assert_eq!(cap(&signals, start).base, BULK_CAP.base);
    }

    const MTU: u64 = 1_200;
    const MS: Duration = Duration::from_millis(1);

    /// A controller with a number of acknowledged packets.
    fn controller(name: &str, acknowledged: u64) -> CappedController {
        let controller = named(name).unwrap().build(Instant::now(), MTU as u16);
        let mut controller = *controller.into_any().downcast::<CappedController>().unwrap();
        if let Some(losses) = &mut controller.losses {
            losses.arrived(acknowledged * MTU, [MS, MS]);
        }
        controller
    }

    /// The fraction of the window left after a number of packets is lost.
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

    /// The most packets that may be lost one by one, beside those acknowledged, before the window shrinks.
    fn tolerated(acknowledged: u64) -> usize {
        let mut cubic = controller("cubic-loss-tolerant", acknowledged);
        (0..).take_while(|_| left(&mut cubic, 1, false) == 1.0).count()
    }

    #[test]
    fn a_window_stays_where_few_are_lost_and_no_queue_is_before_them() {
        // two in a hundred, and two standard deviations more
        assert_eq!([20, 100, 1_000, 2_000].map(tolerated), [1, 4, 29, 54]);
        let mut cubic = controller("cubic-loss-tolerant", 1_000);
        assert_eq!(left(&mut cubic, 30, false), 0.7);
        assert_eq!(left(&mut cubic, 29, false), 1.0, "those before are answered");
    }

    /// How often the window shrinks while packets are lost at random.
    fn shrinks(loss: f64) -> usize {
        let mut cubic = controller("cubic-loss-tolerant", 0);
        let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut shrinks = 0;
        for _ in 0..20_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            if (random as f64) < loss * u64::MAX as f64 {
                shrinks += usize::from(left(&mut cubic, 1, false) < 1.0);
            } else {
                cubic.losses.as_mut().unwrap().arrived(MTU, [MS, MS]);
            }
        }
        shrinks
    }

    #[test]
    fn a_window_stays_on_a_path_that_loses_one_packet_in_a_hundred_at_random() {
        assert_eq!(shrinks(0.01), 0);
        assert!(shrinks(0.05) > 5);
    }

    #[test]
    fn a_window_shrinks_where_many_are_lost_or_marked_or_for_long_or_there_is_a_queue() {
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
    fn clones_of_a_controller_share_its_signals() {
        let controller = named("bbr").unwrap().build(Instant::now(), 1_200);
        let shown = controller.clone_box().into_any().downcast::<CappedController>().unwrap();
        shown.signals.record_write(stream(1), INTERACTIVE_WRITE);
        let controller = controller.into_any().downcast::<CappedController>().unwrap();
        assert!(controller.signals.is_interactive(Instant::now()));
    }
}
