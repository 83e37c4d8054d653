//! Counters of a session.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[derive(Default)]
pub struct Counters {
    /// Bytes on the wire.
    pub sent: AtomicU64,
    pub received: AtomicU64,
    /// Smoothed and minimum round-trip time in microseconds; 0 before the first.
    round_trip: AtomicU64,
    min_round_trip: AtomicU64,
}

impl Counters {
    /// Adds a sample. The caller holds the lock of the session: two samples at a time would lose one.
    pub fn add_round_trip(&self, sample: Duration) {
        let sample = u64::try_from(sample.as_micros()).unwrap_or(u64::MAX).max(1);
        let smoothed = match self.round_trip.load(Ordering::Relaxed) {
            0 => sample,
            before => (7 * before + sample) / 8, // RFC 9002 §5.3
        };
        self.round_trip.store(smoothed, Ordering::Relaxed);
        let least = match self.min_round_trip.load(Ordering::Relaxed) {
            0 => sample,
            least => least.min(sample),
        };
        self.min_round_trip.store(least, Ordering::Relaxed);
    }

    /// Bytes on the wire, both directions together.
    pub fn total(&self) -> u64 {
        self.sent.load(Ordering::Relaxed) + self.received.load(Ordering::Relaxed)
    }

    pub fn min_round_trip(&self) -> Duration {
        Duration::from_micros(self.min_round_trip.load(Ordering::Relaxed))
    }

    /// Round-trip time in ms, and bytes sent and received on the wire.
    pub fn describe(&self) -> Vec<f64> {
        let [sent, received, round_trip] =
            [&self.sent, &self.received, &self.round_trip].map(|counter| counter.load(Ordering::Relaxed) as f64);
        vec![round_trip / 1000.0, sent, received]
    }
}
