//! How much the receive windows of all streams of the process have grown, and how much more they may: a bound of the memory for unread data.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crate::stream::buffered::BufferedStream;
use crate::sync::lock;

/// Initial receive window of a stream, and the minimum for slow readers, in bytes.
pub const INITIAL_STREAM_WINDOW: u64 = 96 << 10;
/// Maximum receive window of a stream: enough for 300 MB/s at a round-trip time of 50 ms.
pub const MAX_WINDOW: u64 = 16 << 20;
/// Total growth of all streams of the process beyond their initial windows, shared among them. Unread streams may keep all of it, as credit
/// cannot be revoked.
const GROWTH: u64 = 32 << 20;
/// One stream may take a quarter of the remaining growth.
const SHARE: u64 = 4;
/// Data up to this size may only have moved to the kernel's socket buffers. Data drained beyond that was read by the application: the window
/// may grow by that amount regardless of other streams.
pub const UNPROVEN_DRAIN: u64 = 512 << 10;

/// Process-wide, like the runtime.
pub static GROWTHS: Growths<BufferedStream> = Growths::new();

/// The largest permitted window for a stream with an initial window of `start` that has drained `total` bytes, while all streams have grown
/// by `grown`.
pub fn max_window(start: u64, grown: u64, total: u64) -> u64 {
    let shared = GROWTH.saturating_sub(grown) / SHARE;
    let proven = total.saturating_sub(UNPROVEN_DRAIN);
    start.saturating_add(shared.max(proven)).min(MAX_WINDOW)
}

/// The growth of all windows. A stream that has grown and become idle would keep its part of [`GROWTH`] while it is open, so the idle ones
/// are swept when others want more.
pub struct Growths<S> {
    sum: AtomicU64,
    grown: Mutex<Grown<S>>,
}

struct Grown<S> {
    streams: Vec<Weak<Growth<S>>>,
    swept: Option<Instant>,
}

/// The growth counted for one stream.
pub struct Growth<S> {
    stream: S,
    pub counted: AtomicU64,
    /// Drained since the last sweep.
    pub is_used: AtomicBool,
}

/// Minimum interval between sweeps. A stream that was not drained between two of them is idle or stuck.
const SWEEP: Duration = Duration::from_secs(1);

impl<S> Growths<S> {
    pub const fn new() -> Self {
        let grown = Grown {
            streams: Vec::new(),
            swept: None,
        };
        Self {
            sum: AtomicU64::new(0),
            grown: Mutex::new(grown),
        }
    }

    pub fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }

    pub fn add(&self, stream: S) -> Arc<Growth<S>> {
        let growth = Arc::new(Growth {
            stream,
            counted: AtomicU64::new(0),
            is_used: AtomicBool::new(true),
        });
        lock(&self.grown).streams.push(Arc::downgrade(&growth));
        growth
    }

    pub fn count(&self, growth: &Growth<S>, bytes: u64) {
        let before = growth.counted.swap(bytes, Ordering::Relaxed);
        self.sum.fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed); // wraps on purpose if it has shrunk
    }

    /// Reduces the count of streams that are not drained to the bytes that they buffer.
    pub fn sweep(&self, now: Instant, held: impl Fn(&S) -> u64) {
        let mut quiet = Vec::new();
        {
            let mut grown = lock(&self.grown);
            if grown.swept.is_some_and(|at| now < at + SWEEP) {
                return;
            }
            grown.swept = Some(now);
            grown.streams.retain(|growth| {
                let Some(growth) = growth.upgrade() else { return false };
                if !growth.is_used.swap(false, Ordering::Relaxed) {
                    quiet.push(growth);
                }
                true
            });
        }
        // without the lock: each connection has its own
        for growth in quiet {
            let counted = growth.counted.load(Ordering::Relaxed);
            if counted == 0 {
                continue;
            }
            let held = held(&growth.stream);
            // skips a stream that is drained meanwhile
            let changes = held < counted
                && growth
                    .counted
                    .compare_exchange(counted, held, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
            if changes {
                self.sum.fetch_sub(counted - held, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn where_many_windows_have_grown_another_grows_less() {
        assert_eq!(max_window(INITIAL_STREAM_WINDOW, 0, 0), INITIAL_STREAM_WINDOW + GROWTH / SHARE);
        assert_eq!(
            max_window(INITIAL_STREAM_WINDOW, GROWTH - (4 << 20), 0),
            INITIAL_STREAM_WINDOW + (1 << 20)
        );
        assert_eq!(max_window(INITIAL_STREAM_WINDOW, GROWTH, UNPROVEN_DRAIN), INITIAL_STREAM_WINDOW);
        assert_eq!(max_window(INITIAL_STREAM_WINDOW, u64::MAX, UNPROVEN_DRAIN), INITIAL_STREAM_WINDOW);
    }

    #[test]
    fn windows_that_have_grown_and_are_idle_leave_their_growth_to_others() {
        let growths = Growths::<u64>::new();
        let quiet: Vec<_> = (0..15)
            .map(|_| {
                let growth = growths.add(0); // it holds nothing
                growths.count(&growth, GROWTH / 15);
                growth
            })
            .collect();
        assert!(max_window(INITIAL_STREAM_WINDOW, growths.sum(), 0) < INITIAL_STREAM_WINDOW + (1 << 10));
        let start = Instant::now();
        for after in [0, 1_000] {
            growths.sweep(start + after * MS, |held| *held);
        }
        assert_eq!(growths.sum(), 0);
        assert_eq!(
            max_window(INITIAL_STREAM_WINDOW, growths.sum(), 0),
            INITIAL_STREAM_WINDOW + GROWTH / SHARE
        );
        quiet.iter().for_each(|growth| growths.count(growth, 0));
        assert_eq!(growths.sum(), 0, "nothing is given back twice");
        drop(quiet);
        growths.sweep(start + 2_000 * MS, |held| *held);
        assert!(lock(&growths.grown).streams.is_empty());
    }

    #[test]
    fn a_window_that_is_drained_or_is_full_still_counts() {
        let growths = Growths::<u64>::new();
        let (busy, stuck) = (growths.add(0), growths.add(3 << 20));
        for growth in [&busy, &stuck] {
            growths.count(growth, 4 << 20);
        }
        let start = Instant::now();
        for seconds in 0..5 {
            busy.is_used.store(true, Ordering::Relaxed);
            growths.sweep(start + seconds * SWEEP, |held| *held);
        }
        assert_eq!(growths.sum(), 7 << 20);
    }

    #[test]
    fn a_stream_between_two_reads_is_not_idle() {
        let growths = Growths::<u64>::new();
        let growth = growths.add(0);
        growths.count(&growth, 1 << 20);
        let start = Instant::now();
        growths.sweep(start, |held| *held);
        growths.sweep(start + SWEEP / 2, |held| *held);
        assert_eq!(growths.sum(), 1 << 20);
    }
}
