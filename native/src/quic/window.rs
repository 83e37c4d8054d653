//! Flow control: receive windows of streams, sized for what their readers drain in two round trips, receive windows of connections, the sum
//! of these, and send windows. They bound the memory for data that is unread or unacknowledged.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use quinn::{StreamId, VarInt};

use crate::quic::congestion::ConnectionSignals;
use crate::relay::budget;
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
/// Data up to this size may only have moved to the kernel's socket buffers. What is drained beyond was read by the application: the window
/// may grow by that amount regardless of other streams.
const UNPROVEN_DRAIN: u64 = 512 << 10;
/// Window of a connection besides those of its streams: for streams that are not accepted yet.
const BASE: u64 = 1 << 20;
/// Minimum change of a connection's window, as each change is sent in a frame.
const STEP: u64 = 1 << 20;
/// Lower bound of the round-trip time: the engine takes this long itself.
const MIN_ROUND_TRIP: Duration = Duration::from_micros(500);

/// Send window of a stream: twice the congestion window keeps the path full. With more, data would leave the CPU caches before it is sent.
pub fn send_window(congestion_window: u64) -> u64 {
    (2 * congestion_window).clamp(MIN_SEND_WINDOW, MAX_WINDOW)
}

const MIN_SEND_WINDOW: u64 = 512 << 10;

/// Process-wide, like the runtime.
static GROWTHS: Growths<(quinn::Connection, StreamId)> = Growths::new();

/// The largest permitted window for a stream with an initial window of `start` that has drained `total` bytes, while all streams have grown
/// by `grown`.
fn max_window(start: u64, grown: u64, total: u64) -> u64 {
    let shared = GROWTH.saturating_sub(grown) / SHARE;
    let proven = total.saturating_sub(UNPROVEN_DRAIN);
    start.saturating_add(shared.max(proven)).min(MAX_WINDOW)
}

/// The receive window of one stream.
struct Receive {
    start: u64,
    window: u64,
    /// Bytes drained in total.
    total: u64,
    /// Bytes drained since `since`.
    drained: u64,
    since: Instant,
    /// When the next round trip is over.
    due: Instant,
}

impl Receive {
    fn new(start: u64, now: Instant) -> Self {
        Self {
            start,
            window: start,
            total: 0,
            drained: 0,
            since: now,
            due: now,
        }
    }

    /// Records drained bytes. Returns the new window if it changes: at most doubled or halved, once per round trip.
    fn drained(&mut self, bytes: u64, now: Instant, round_trip: Duration, max_window: u64) -> Option<u64> {
        self.total += bytes;
        self.drained += bytes;
        if now < self.due {
            return None;
        }
        let round_trip = round_trip.max(MIN_ROUND_TRIP);
        let took = now.saturating_duration_since(self.since).max(round_trip);
        let in_round_trip = self.drained as f64 * round_trip.as_secs_f64() / took.as_secs_f64();
        let wanted = ((2.0 * in_round_trip) as u64).clamp(self.start, max_window.max(self.start));
        (self.drained, self.since, self.due) = (0, now, now + round_trip);
        let window = match wanted {
            wanted if wanted > self.window => wanted.min(2 * self.window),
            wanted if wanted < self.window / 2 || max_window < self.window => wanted.max(self.window / 2),
            _ => self.window,
        };
        let changed = window != self.window;
        self.window = window;
        changed.then_some(window)
    }
}

/// The growth of all windows. A stream that has grown and become idle would keep its part of [`GROWTH`] while it is open, so the idle ones
/// are swept when others want more.
struct Growths<S> {
    sum: AtomicU64,
    grown: Mutex<Grown<S>>,
}

struct Grown<S> {
    streams: Vec<Weak<Growth<S>>>,
    swept: Option<Instant>,
}

/// The growth counted for one stream.
struct Growth<S> {
    stream: S,
    counted: AtomicU64,
    /// Drained since the last sweep.
    is_used: AtomicBool,
}

/// Minimum interval between sweeps. A stream that was not drained between two of them is idle or stuck.
const SWEEP: Duration = Duration::from_secs(1);

impl<S> Growths<S> {
    const fn new() -> Self {
        let grown = Grown {
            streams: Vec::new(),
            swept: None,
        };
        Self {
            sum: AtomicU64::new(0),
            grown: Mutex::new(grown),
        }
    }

    fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }

    fn add(&self, stream: S) -> Arc<Growth<S>> {
        let growth = Arc::new(Growth {
            stream,
            counted: AtomicU64::new(0),
            is_used: AtomicBool::new(true),
        });
        lock(&self.grown).streams.push(Arc::downgrade(&growth));
        growth
    }

    fn count(&self, growth: &Growth<S>, bytes: u64) {
        let before = growth.counted.swap(bytes, Ordering::Relaxed);
        self.sum.fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed); // wraps on purpose if it has shrunk
    }

    /// Reduces the count of streams that are not drained to what they hold.
    fn sweep(&self, now: Instant, held: impl Fn(&S) -> u64) {
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

/// The receive window of a connection: finite, but at least the sum of its streams' windows, so that an unread stream does not block
/// others.
pub struct ConnectionWindow(Mutex<Windows>);

#[derive(Clone, Copy)]
struct Windows {
    /// Initial window of a stream.
    start: u64,
    base: u64,
    /// Sum of the largest window of each open stream.
    streams: u64,
    open: usize,
    /// The current window.
    now: u64,
}

impl Windows {
    /// A quarter more than needed, as quinn sends credit only after an eighth was read
    fn wanted(self) -> u64 {
        let wanted = (self.base + self.streams) * 5 / 4;
        // not rounded up for peers that are not authenticated
        wanted.next_multiple_of(if self.base < BASE { 1 } else { STEP })
    }

    /// Returns the new window if it changes.
    fn settle(&mut self) -> Option<u64> {
        let wanted = self.wanted();
        if wanted <= self.now && wanted > self.now / 2 {
            return None;
        }
        self.now = wanted;
        Some(wanted)
    }
}

impl Default for ConnectionWindow {
    fn default() -> Self {
        Self(Mutex::new(Windows {
            start: INITIAL_STREAM_WINDOW,
            base: BASE,
            streams: 0,
            open: 0,
            now: 0,
        }))
    }
}

impl ConnectionWindow {
    /// Sets the bytes besides the windows of the streams; 0 for the default of an authenticated peer.
    pub fn set_base(&self, connection: &quinn::Connection, bytes: u32) {
        self.change(connection, |windows| windows.base = base(bytes));
    }

    /// Number of open streams.
    pub fn streams(&self) -> usize {
        lock(&self.0).open
    }

    /// Sets the values used in the handshake.
    pub fn begin(&self, start: u64, base_bytes: u32) {
        let mut windows = lock(&self.0);
        (windows.start, windows.base) = (start, base(base_bytes));
        windows.now = windows.wanted();
    }

    /// Adds a stream and returns its initial window.
    fn add_stream(&self, connection: &quinn::Connection) -> u64 {
        let mut start = 0;
        self.change(connection, |windows| {
            start = windows.start;
            windows.streams += start;
            windows.open += 1;
        });
        start
    }

    fn change(&self, connection: &quinn::Connection, change: impl FnOnce(&mut Windows)) {
        let mut windows = lock(&self.0);
        change(&mut windows);
        if let Some(window) = windows.settle() {
            connection.set_receive_window(var_int(window));
        }
    }
}

fn base(bytes: u32) -> u64 {
    match bytes {
        0 => BASE,
        bytes => bytes.into(),
    }
}

/// The window of a connection without streams; `bytes` as with [`ConnectionWindow::set_base`].
pub fn initial_connection_window(bytes: u32) -> VarInt {
    let windows = Windows {
        start: INITIAL_STREAM_WINDOW,
        base: base(bytes),
        streams: 0,
        open: 0,
        now: 0,
    };
    var_int(windows.wanted())
}

fn var_int(bytes: u64) -> VarInt {
    VarInt::from_u64(bytes).unwrap_or(VarInt::MAX)
}

/// Flow control of the reader of a QUIC stream.
pub struct Flow {
    connection: quinn::Connection,
    signals: Arc<ConnectionSignals>,
    receive: Receive,
    /// Part of the connection's window for this stream.
    share: u64,
    /// Present once the window has grown.
    growth: Option<Arc<Growth<(quinn::Connection, StreamId)>>>,
}

impl Flow {
    pub fn new(connection: &quinn::Connection, signals: &Option<Arc<ConnectionSignals>>) -> Option<Box<Self>> {
        let signals = signals.clone()?;
        let start = signals.window.add_stream(connection);
        Some(Box::new(Self {
            connection: connection.clone(),
            signals,
            receive: Receive::new(start, Instant::now()),
            share: start,
            growth: None,
        }))
    }

    /// Maximum bytes per read: data that is read and not passed on adds to the window.
    pub fn batch(&self) -> usize {
        (self.receive.window / 4) as usize
    }

    /// Records bytes that were read and passed on.
    pub fn drained(&mut self, stream: &mut quinn::RecvStream, bytes: usize) {
        let (now, before) = (Instant::now(), self.receive.window);
        if let Some(growth) = &self.growth {
            growth.is_used.store(true, Ordering::Relaxed);
            // it was idle and lost its growth to others; it grows again while the peer uses the old credit
            self.receive.window = before.min(self.receive.start + growth.counted.load(Ordering::Relaxed));
        }
        if now >= self.receive.due && GROWTHS.sum() > 0 {
            GROWTHS.sweep(now, |(connection, id)| connection.held(*id));
        }
        let max_window = match budget::has_room() {
            true => max_window(self.receive.start, GROWTHS.sum(), self.receive.total + bytes as u64),
            false => self.receive.start,
        };
        self.receive.drained(bytes as u64, now, self.signals.round_trip(), max_window);
        let window = self.receive.window;
        if window == before {
            return;
        }
        let growth = self
            .growth
            .get_or_insert_with(|| GROWTHS.add((self.connection.clone(), stream.id())));
        GROWTHS.count(growth, window - self.receive.start);
        if window > self.share {
            let more = window - self.share;
            self.share = window;
            self.signals.window.change(&self.connection, |windows| windows.streams += more);
        }
        let _ = stream.set_receive_window(window); // fails if the stream has ended
    }

    /// The connection of the stream.
    pub fn connection(&self) -> &quinn::Connection {
        &self.connection
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.growth.iter().for_each(|growth| GROWTHS.count(growth, 0));
        self.signals.window.change(&self.connection, |windows| {
            windows.streams -= self.share;
            windows.open -= 1;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The windows of a stream whose reader drains all that it may, or `rate` bytes a millisecond, round trip by round trip.
    fn windows(round_trip: Duration, rate: u64, round_trips: usize) -> Vec<u64> {
        let (mut now, mut receive) = (Instant::now(), Receive::new(INITIAL_STREAM_WINDOW, Instant::now()));
        (0..round_trips)
            .map(|_| {
                now += round_trip;
                let drained = receive.window.min(rate.saturating_mul(round_trip.as_millis() as u64));
                receive.drained(drained, now, round_trip, MAX_WINDOW);
                receive.window
            })
            .collect()
    }

    #[test]
    fn a_window_doubles_with_each_round_trip_while_it_is_what_holds_up() {
        assert_eq!(
            windows(50 * MS, u64::MAX, 3),
            [2 * INITIAL_STREAM_WINDOW, 4 * INITIAL_STREAM_WINDOW, 8 * INITIAL_STREAM_WINDOW]
        );
        assert_eq!(windows(50 * MS, u64::MAX, 20).last(), Some(&MAX_WINDOW));
    }

    #[test]
    fn a_window_is_twice_what_is_drained_in_a_round_trip() {
        // 20 MB/s
        assert_eq!(windows(50 * MS, 20_000, 20).last(), Some(&2_000_000));
        assert_eq!(
            windows(MS, 20_000, 20).last(),
            Some(&INITIAL_STREAM_WINDOW),
            "on a short path it stays small"
        );
    }

    #[test]
    fn a_window_shrinks_when_its_reader_slows_down() {
        let (mut now, mut receive) = (Instant::now(), Receive::new(INITIAL_STREAM_WINDOW, Instant::now()));
        receive.window = MAX_WINDOW;
        for halved in 1..=7 {
            now += Duration::from_secs(1);
            assert_eq!(receive.drained(1_000, now, 50 * MS, MAX_WINDOW), Some(MAX_WINDOW >> halved));
        }
        assert!(receive.window < 2 * INITIAL_STREAM_WINDOW);
    }

    #[test]
    fn a_window_does_not_change_twice_in_a_round_trip() {
        let now = Instant::now();
        let mut receive = Receive::new(INITIAL_STREAM_WINDOW, now);
        assert_eq!(
            receive.drained(INITIAL_STREAM_WINDOW, now + 50 * MS, 50 * MS, MAX_WINDOW),
            Some(2 * INITIAL_STREAM_WINDOW)
        );
        assert_eq!(receive.drained(MAX_WINDOW, now + 99 * MS, 50 * MS, MAX_WINDOW), None);
        assert_eq!(
            receive.drained(0, now + 100 * MS, 50 * MS, MAX_WINDOW),
            Some(4 * INITIAL_STREAM_WINDOW)
        );
    }

    #[test]
    fn a_window_gives_way_to_what_there_may_be() {
        let now = Instant::now();
        let mut receive = Receive::new(INITIAL_STREAM_WINDOW, now);
        receive.window = 8 * INITIAL_STREAM_WINDOW;
        assert_eq!(
            receive.drained(8 * INITIAL_STREAM_WINDOW, now + 50 * MS, 50 * MS, 2 * INITIAL_STREAM_WINDOW),
            Some(4 * INITIAL_STREAM_WINDOW)
        );
        assert_eq!(
            receive.drained(8 * INITIAL_STREAM_WINDOW, now + 100 * MS, 50 * MS, 0),
            Some(2 * INITIAL_STREAM_WINDOW)
        );
    }

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
    fn a_stream_that_drains_grows_though_others_that_do_not_hold_all_growth() {
        let (mut now, mut receive) = (Instant::now(), Receive::new(INITIAL_STREAM_WINDOW, Instant::now()));
        let mut round_trips = 0;
        while receive.window < MAX_WINDOW {
            now += 50 * MS;
            let max_window = max_window(INITIAL_STREAM_WINDOW, u64::MAX, receive.total + receive.window);
            receive.drained(receive.window, now, 50 * MS, max_window);
            round_trips += 1;
            assert!(
                receive.window - INITIAL_STREAM_WINDOW <= receive.total.saturating_sub(UNPROVEN_DRAIN),
                "by what it drained"
            );
            assert!(round_trips < 20);
        }
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

    #[test]
    fn a_connection_has_room_for_all_that_its_streams_may_have_though_quinn_renews_late() {
        let mut windows = Windows {
            start: INITIAL_STREAM_WINDOW,
            base: BASE,
            streams: 0,
            open: 0,
            now: 0,
        };
        windows.settle();
        for streams in [
            0,
            INITIAL_STREAM_WINDOW,
            10 * INITIAL_STREAM_WINDOW,
            1_000 * INITIAL_STREAM_WINDOW,
            1_000 * MAX_WINDOW,
        ] {
            windows.streams = streams;
            windows.settle();
            assert!(windows.now - windows.now / 8 >= BASE + streams);
            assert!(windows.now <= 2 * (BASE + streams) + STEP);
        }
    }

    #[test]
    fn a_connection_gives_back_what_its_streams_no_longer_have() {
        let mut windows = Windows {
            start: INITIAL_STREAM_WINDOW,
            base: BASE,
            streams: 100 * MAX_WINDOW,
            open: 100,
            now: 0,
        };
        windows.settle();
        windows.streams = 99 * MAX_WINDOW;
        assert_eq!(windows.settle(), None, "not each change is a frame");
        windows.streams = 0;
        assert_eq!(windows.settle(), Some(windows.wanted()));
        assert!(windows.now < 2 * BASE + STEP);
    }

    #[test]
    fn what_is_read_ahead_is_twice_what_may_be_under_way() {
        assert_eq!(send_window(0), MIN_SEND_WINDOW);
        assert_eq!(send_window(1 << 20), 2 << 20);
        assert_eq!(send_window(u64::MAX / 2), MAX_WINDOW);
    }
}
