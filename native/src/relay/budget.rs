//! The memory budget of all tunnels of the process, for data that is not yet relayed or not yet acknowledged. At half of it, windows
//! stop growing; at two thirds, JavaScript refuses new tunnels; at nine tenths, the tunnels that hold most are closed.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::error::{NetError, NetErrorCode};
use crate::stream::buffered::BufferedStream;
use crate::sync::lock;

/// Interval of measurements while a tunnel waits for its peer.
const SLOW_INTERVAL: Duration = Duration::from_millis(100);
/// That interval while more than a quarter of the budget is used.
const FAST_INTERVAL: Duration = Duration::from_millis(20);

// Process-wide, like the runtime.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);
static USED: AtomicU64 = AtomicU64::new(0);
static TUNNELS: Mutex<Vec<Weak<TunnelUsage>>> = Mutex::new(Vec::new());
static WAKE: Notify = Notify::const_new();
static ASLEEP: AtomicBool = AtomicBool::new(false);
static STARTED: AtomicBool = AtomicBool::new(false);

/// Sets the bytes that tunnels may buffer; 0 for no limit.
pub fn set_limit(runtime: &Handle, bytes: u64) {
    LIMIT.store(if bytes == 0 { u64::MAX } else { bytes }, Ordering::Relaxed);
    if bytes == 0 {
        USED.store(0, Ordering::Relaxed);
    } else if !STARTED.swap(true, Ordering::AcqRel) {
        runtime.spawn(watch());
    }
    lock(&TUNNELS).retain(|tunnel| tunnel.strong_count() > 0);
    WAKE.notify_one();
}

/// Bytes that tunnels buffered at the last measurement.
pub fn used() -> u64 {
    USED.load(Ordering::Relaxed)
}

/// Whether windows may grow.
pub fn has_room() -> bool {
    used() < LIMIT.load(Ordering::Relaxed) / 2
}

async fn watch() {
    loop {
        let limit = LIMIT.load(Ordering::Relaxed);
        if limit == u64::MAX {
            USED.store(0, Ordering::Relaxed);
            WAKE.notified().await; // set_limit wakes it
            continue;
        }
        if !measure(limit) {
            ASLEEP.store(true, Ordering::SeqCst);
            // a tunnel that began to wait since the measurement may not have woken this task
            if !measure(limit) {
                WAKE.notified().await;
            }
            ASLEEP.store(false, Ordering::SeqCst);
        }
        tokio::time::sleep(if used() > limit / 4 { FAST_INTERVAL } else { SLOW_INTERVAL }).await;
    }
}

/// Measures all waiting tunnels and closes those over budget. Returns whether any tunnel waits.
fn measure(limit: u64) -> bool {
    let mut waiting = Vec::new();
    lock(&TUNNELS).retain(|tunnel| {
        let Some(tunnel) = tunnel.upgrade() else { return false };
        if tunnel.waits() {
            waiting.push(tunnel);
        }
        true
    });
    let mut held: Vec<(u64, Arc<TunnelUsage>)> = waiting.into_iter().map(|tunnel| (tunnel.measure(), tunnel)).collect();
    let used = held.iter().map(|(bytes, _)| bytes).sum();
    let any = !held.is_empty();
    let cut = excess(limit, used, &mut held);
    for (bytes, tunnel) in &held[..cut] {
        tunnel.cut(*bytes);
    }
    let freed: u64 = held[..cut].iter().map(|(bytes, _)| bytes).sum();
    USED.store(used - freed, Ordering::Relaxed);
    any
}

/// Sorts by size, the largest first, and returns how many must be closed.
fn excess<T>(limit: u64, used: u64, held: &mut [(u64, T)]) -> usize {
    if used <= limit / 10 * 9 {
        return 0;
    }
    held.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    let mut left = used;
    held.iter()
        .take_while(|(bytes, _)| {
            let goes = left > limit / 4 * 3;
            left = left.saturating_sub(*bytes);
            goes
        })
        .count()
}

/// Bytes that a tunnel has relayed, by direction.
pub struct Relayed {
    pub bytes: [u64; 2],
    pub states: [DirectionState; 2],
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DirectionState {
    Open,
    /// Data waits for its reader.
    Blocked,
    Ended,
}

/// The bytes that one tunnel has relayed, and its memory usage.
#[derive(Default)]
pub struct TunnelUsage {
    streams: Vec<BufferedStream>,
    /// Per direction.
    copied: [AtomicU64; 2],
    ended: [AtomicBool; 2],
    /// Per direction: 1 plus the bytes that were read and not written yet; 0 if only the source is waited for.
    waiting: [AtomicU64; 2],
    /// Usage at the last measurement.
    measured: AtomicU64,
    /// The data of its streams was copied out of packets and has not changed since.
    is_compact: AtomicBool,
    /// Usage when it was closed.
    cut: AtomicU64,
    cut_notice: Notify,
}

impl TunnelUsage {
    pub fn new(streams: Vec<BufferedStream>) -> Arc<Self> {
        let usage = Arc::new(Self {
            streams,
            ..Self::default()
        });
        if LIMIT.load(Ordering::Relaxed) != u64::MAX {
            lock(&TUNNELS).push(Arc::downgrade(&usage));
        }
        usage
    }

    /// Reports that a direction (0 or 1) has passed on `bytes` bytes.
    pub fn add_copied(&self, direction: usize, bytes: usize) {
        self.copied[direction].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes that a direction has passed on.
    pub fn copied(&self, direction: usize) -> u64 {
        self.copied[direction].load(Ordering::Relaxed)
    }

    /// Reports that a direction has ended.
    pub fn end(&self, direction: usize) {
        self.ended[direction].store(true, Ordering::Relaxed);
    }

    pub fn relayed(&self) -> Relayed {
        let state = |direction: usize| match self.ended[direction].load(Ordering::Relaxed) {
            true => DirectionState::Ended,
            false if self.waiting[direction].load(Ordering::Relaxed) > 0 => DirectionState::Blocked,
            false => DirectionState::Open,
        };
        Relayed {
            bytes: [0, 1].map(|direction| self.copied(direction)),
            states: [0, 1].map(state),
        }
    }

    /// Reports that a direction (0 or 1) waits for its sink, with `bytes` bytes read.
    pub fn set_waiting(&self, direction: usize, bytes: usize) {
        // ordered with the watcher: either it sees this tunnel, or this tunnel wakes it
        self.waiting[direction].store(bytes as u64 + 1, Ordering::SeqCst);
        if ASLEEP.load(Ordering::SeqCst) {
            WAKE.notify_one();
        }
    }

    pub fn clear_waiting(&self, direction: usize) {
        self.waiting[direction].store(0, Ordering::Relaxed);
    }

    /// Resolves with the reason when this tunnel must be closed.
    pub async fn is_cut(&self) -> NetError {
        self.cut_notice.notified().await;
        let held = self.cut.load(Ordering::Relaxed) >> 10;
        let limit = LIMIT.load(Ordering::Relaxed) >> 20;
        let message =
            format!("The tunnel buffered {held} KiB, more than others, while nearly all of the {limit} MiB for buffers were used");
        NetError::new(NetErrorCode::Limit, message)
    }

    fn waits(&self) -> bool {
        self.waiting.iter().any(|bytes| bytes.load(Ordering::SeqCst) > 0)
    }

    /// Measures the usage. If it has not changed, the peer is stuck, and the data is copied out of the packets, which take more memory.
    fn measure(&self) -> u64 {
        let held = self.held();
        if self.measured.swap(held, Ordering::Relaxed) != held {
            self.is_compact.store(false, Ordering::Relaxed);
            return held;
        }
        if self.is_compact.swap(true, Ordering::Relaxed) {
            return held;
        }
        self.streams.iter().for_each(BufferedStream::compact);
        let compact = self.held();
        self.measured.store(compact, Ordering::Relaxed);
        compact
    }

    fn held(&self) -> u64 {
        let copied: u64 = self
            .waiting
            .iter()
            .map(|bytes| bytes.load(Ordering::Relaxed).saturating_sub(1))
            .sum();
        let is_compact = self.is_compact.load(Ordering::Relaxed);
        let streams: u64 = self.streams.iter().map(|stream| stream.memory(is_compact)).sum();
        TUNNEL_OVERHEAD + copied + streams
    }

    fn cut(&self, held: u64) {
        self.cut.store(held, Ordering::Relaxed);
        self.cut_notice.notify_one(); // stored for a splice that does not wait for it yet
    }
}

/// Memory of a tunnel besides its buffers.
const TUNNEL_OVERHEAD: u64 = 32 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(limit: u64, held: &[u64]) -> Vec<u64> {
        let mut held: Vec<(u64, ())> = held.iter().map(|bytes| (*bytes, ())).collect();
        let used = held.iter().map(|(bytes, ())| bytes).sum();
        let count = excess(limit, used, &mut held);
        held[..count].iter().map(|(bytes, ())| *bytes).collect()
    }

    #[test]
    fn nothing_is_cut_below_nine_tenths() {
        assert_eq!(cut(1_000, &[450, 450]), []);
        assert_eq!(cut(u64::MAX, &[1 << 60]), []);
    }

    #[test]
    fn those_that_hold_most_are_cut_until_three_quarters_are_used() {
        assert_eq!(cut(1_000, &[10, 500, 300, 100, 50]), [500]);
        assert_eq!(cut(1_000, &[100; 10]), [100, 100, 100]);
        assert_eq!(cut(1_000, &[1, 2_000]), [2_000]);
    }

    #[tokio::test]
    async fn no_tunnel_is_listed_while_there_is_no_limit() {
        set_limit(&Handle::current(), 1 << 40);
        let usage = TunnelUsage::new(Vec::new());
        assert_eq!(lock(&TUNNELS).len(), 1);
        USED.store(5, Ordering::Relaxed);
        set_limit(&Handle::current(), 0);
        for _ in 0..100 {
            drop(TunnelUsage::new(Vec::new()));
        }
        assert_eq!((lock(&TUNNELS).len(), used()), (1, 0));
        drop(usage);
        set_limit(&Handle::current(), 0);
        assert_eq!(lock(&TUNNELS).len(), 0);
    }

    #[test]
    fn what_a_tunnel_waits_with_is_copied_out_of_its_packets_once_it_is_stuck() {
        let usage = TunnelUsage::new(Vec::new());
        let mut is_compact = |bytes| {
            usage.set_waiting(0, bytes);
            assert_eq!(usage.measure(), TUNNEL_OVERHEAD + bytes as u64);
            usage.is_compact.load(Ordering::Relaxed)
        };
        assert_eq!([5, 6, 6, 6, 7, 7].map(&mut is_compact), [false, false, true, true, false, true]);
    }

    #[test]
    fn a_tunnel_tells_what_it_has_relayed_and_which_direction_waits_or_has_ended() {
        let usage = TunnelUsage::new(Vec::new());
        usage.add_copied(0, 5);
        usage.add_copied(0, 6);
        usage.set_waiting(0, 7);
        usage.end(1);
        let Relayed { bytes, states } = usage.relayed();
        assert_eq!((bytes, states), ([11, 0], [DirectionState::Blocked, DirectionState::Ended]));
        usage.clear_waiting(0);
        assert_eq!(usage.relayed().states[0], DirectionState::Open);
    }

    #[tokio::test]
    async fn a_tunnel_that_is_cut_hears_why_though_it_did_not_wait_for_that() {
        let usage = TunnelUsage::new(Vec::new());
        usage.set_waiting(0, 5_000);
        assert_eq!(usage.held(), TUNNEL_OVERHEAD + 5_000);
        usage.cut(usage.held());
        let error = usage.is_cut().await;
        assert!(
            error.code == NetErrorCode::Limit && error.message.contains("36 KiB"),
            "{}",
            error.message
        );
        usage.clear_waiting(0);
        assert!(!usage.waits());
    }
}
