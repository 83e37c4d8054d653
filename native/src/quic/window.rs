//! How much QUIC may have under way and unread: of a stream as much as its reader drains in two round trips, of a connection what its streams
//! may have. What a peer sends and nobody reads, and what is written and nobody acknowledges, is bounded by these.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use quinn::{StreamId, VarInt};

use crate::quic::congestion::ConnectionSignals;
use crate::relay::budget;
use crate::sync::lock;

/// Of a stream that nobody has read from yet, and of one whose reader is slow, in bytes.
pub const INITIAL_STREAM_WINDOW: u64 = 96 << 10;
/// Of one stream: enough for 300 MB/s at a round trip of 50 ms.
pub const MAX_WINDOW: u64 = 16 << 20;
/// Of all streams of the process together, beyond those with which they start: where many want more, each gets less. Streams that are not read
/// may hold all of it, as credit cannot be taken back.
const GROWTH: u64 = 32 << 20;
/// Of what is left of that, one stream takes a quarter at most.
const SHARE: u64 = 4;
/// The systems' socket buffers take as much from a stream whose reader reads nothing. What is drained beyond that has been read: a stream may
/// grow by so much whatever the others hold.
const UNPROVEN_DRAIN: u64 = 512 << 10;
/// Of a connection besides the windows of its streams: for those that the peer has opened and that were not accepted yet.
const BASE: u64 = 1 << 20;
/// A connection's window changes by at least this: each change is a frame.
const STEP: u64 = 1 << 20;
/// The engine itself takes as long, on however short a path.
const MIN_ROUND_TRIP: Duration = Duration::from_micros(500);

/// Bytes of one stream that are written and not acknowledged: twice what may be under way, so that the path stays full, and no more, so that
/// what is read ahead is sent before it has left the processor's caches.
pub fn send_window(congestion_window: u64) -> u64 {
    (2 * congestion_window).clamp(MIN_SEND_WINDOW, MAX_WINDOW)
}

const MIN_SEND_WINDOW: u64 = 512 << 10;

/// There is one set of threads for all engines of a process, and so one of these.
static GROWTHS: Growths<(quinn::Connection, StreamId)> = Growths::new();

/// The largest that a window may be now that started with `start` bytes, and has passed on `total`; all others have grown by `grown`.
fn max_window(start: u64, grown: u64, total: u64) -> u64 {
    let shared = GROWTH.saturating_sub(grown) / SHARE;
    let proven = total.saturating_sub(UNPROVEN_DRAIN);
    start.saturating_add(shared.max(proven)).min(MAX_WINDOW)
}

/// The receive window of a stream, as its reader drains it.
struct Receive {
    start: u64,
    window: u64,
    /// In all.
    total: u64,
    /// Since `since`.
    drained: u64,
    since: Instant,
    /// When a round trip has gone by.
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

    /// `bytes` were read and passed on. The new window, where it changes: at most twice or half the old one, once in a round trip.
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

/// What the windows of all streams have grown. A stream that grows and is then idle would keep its part of [`GROWTH`] for as long as it is
/// open, so streams that want more look at the others first.
struct Growths<S> {
    sum: AtomicU64,
    grown: Mutex<Grown<S>>,
}

struct Grown<S> {
    streams: Vec<Weak<Growth<S>>>,
    swept: Option<Instant>,
}

/// What the window of one stream counts in the sum.
struct Growth<S> {
    stream: S,
    counted: AtomicU64,
    /// It was drained since the last sweep.
    is_used: AtomicBool,
}

/// Streams are looked at this often, at most. One that was not drained between two sweeps is idle, or its reader is stuck.
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
        self.sum.fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed); // wraps where it has shrunk
    }

    /// Of streams that are not being drained, counts no more than they hold, as `held` tells.
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
        // asked without the lock: each connection has one of its own
        for growth in quiet {
            let counted = growth.counted.load(Ordering::Relaxed);
            if counted == 0 {
                continue;
            }
            let held = held(&growth.stream);
            // a stream that is drained meanwhile counts for itself
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

/// The receive window of a connection: finite, and never less than what its streams may have, so that one that is not read holds up no other.
pub struct ConnectionWindow(Mutex<Windows>);

#[derive(Clone, Copy)]
struct Windows {
    /// Of a new stream.
    start: u64,
    base: u64,
    /// The sum of the largest that each open stream has had.
    streams: u64,
    open: usize,
    /// What the connection has now.
    now: u64,
}

impl Windows {
    /// quinn renews it once an eighth was read: so much more than what may be under way.
    fn wanted(self) -> u64 {
        let wanted = (self.base + self.streams) * 5 / 4;
        // of a stranger not a byte more
        wanted.next_multiple_of(if self.base < BASE { 1 } else { STEP })
    }

    /// The new one, where it changes.
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
    /// Bytes besides the windows of the streams; 0 for as many as those usually have who said who they are.
    pub fn set_base(&self, connection: &quinn::Connection, bytes: u32) {
        self.change(connection, |windows| windows.base = base(bytes));
    }

    /// Streams that are open.
    pub fn streams(&self) -> usize {
        lock(&self.0).open
    }

    /// With what the handshake was made.
    pub fn begin(&self, start: u64, base_bytes: u32) {
        let mut windows = lock(&self.0);
        (windows.start, windows.base) = (start, base(base_bytes));
        windows.now = windows.wanted();
    }

    /// One more; the window that it has at first.
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

/// What a connection has before there is a stream; `bytes` as with [`ConnectionWindow::set_base`].
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

/// What the reader of a QUIC stream has to do with windows.
pub struct Flow {
    connection: quinn::Connection,
    signals: Arc<ConnectionSignals>,
    receive: Receive,
    /// Of the connection's window, this is for this stream.
    share: u64,
    /// Where the window has grown.
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

    /// Bytes that are read at a time: what is read and not passed on yet comes on top of the window.
    pub fn batch(&self) -> usize {
        (self.receive.window / 4) as usize
    }

    /// `bytes` were read and passed on.
    pub fn drained(&mut self, stream: &mut quinn::RecvStream, bytes: usize) {
        let (now, before) = (Instant::now(), self.receive.window);
        if let Some(growth) = &self.growth {
            growth.is_used.store(true, Ordering::Relaxed);
            // it was idle, and others have its part: it grows again, while the peer still has the credit that it was given
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
        let _ = stream.set_receive_window(window); // fails on a stream that has ended
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
