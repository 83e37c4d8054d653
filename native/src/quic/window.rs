//! Flow control of streams: receive windows are sized for what their readers drain in some round trips, send windows for the path. Together
//! with the window of the connection they bound the memory for data that is unread or unacknowledged.
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::signals::ConnectionSignals;
use crate::relay::budget;
use crate::stream::buffered::BufferedStream;
use crate::stream::window_growth::{max_window, Growth, GROWTHS, MAX_WINDOW};

/// Lower bound of the round-trip time: the engine takes this long itself.
const MIN_ROUND_TRIP: Duration = Duration::from_micros(500);

/// Round trips for which a window holds what its reader drains. A lost packet holds up all data behind it for one more round trip, for two if
/// it is lost again: with room for two, a window would not grow on a path that loses a packet in each of them. On a short path a retransmission
/// costs less time than a larger window.
fn round_trips_held(round_trip: Duration) -> f64 {
    if round_trip < LONG_PATH {
        2.0
    } else {
        4.0
    }
}

const LONG_PATH: Duration = Duration::from_millis(10);

/// Send window of a stream: twice the congestion window keeps the path full. With more, data would leave the CPU caches before it is sent.
pub fn send_window(congestion_window: u64) -> u64 {
    (2 * congestion_window).clamp(MIN_SEND_WINDOW, MAX_WINDOW)
}

const MIN_SEND_WINDOW: u64 = 512 << 10;

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
        let wanted = ((round_trips_held(round_trip) * in_round_trip) as u64).clamp(self.start, max_window.max(self.start));
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

/// Flow control of the reader of a QUIC stream.
pub struct Flow {
    connection: quinn::Connection,
    signals: Arc<ConnectionSignals>,
    receive: Receive,
    /// Part of the connection's window for this stream.
    share: u64,
    /// Present once the window has grown.
    growth: Option<Arc<Growth<BufferedStream>>>,
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
            GROWTHS.sweep(now, BufferedStream::held);
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
            .get_or_insert_with(|| GROWTHS.add(BufferedStream::Quic(self.connection.clone(), stream.id())));
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
    use crate::stream::window_growth::{INITIAL_STREAM_WINDOW, UNPROVEN_DRAIN};

    const MS: Duration = Duration::from_millis(1);

    /// The windows of a stream, round trip by round trip, whose reader drains at most `rate` bytes per millisecond.
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
    fn a_window_is_a_multiple_of_what_is_drained_in_a_round_trip() {
        // 20 MB/s
        assert_eq!(windows(50 * MS, 20_000, 20).last(), Some(&4_000_000));
        assert_eq!(windows(9 * MS, 20_000, 20).last(), Some(&360_000));
        assert_eq!(
            windows(MS, 20_000, 20).last(),
            Some(&INITIAL_STREAM_WINDOW),
            "on a short path it stays small"
        );
    }

    #[test]
    fn a_window_grows_on_a_long_path_that_loses_a_packet_in_each_round_trip() {
        let (mut now, mut receive) = (Instant::now(), Receive::new(INITIAL_STREAM_WINDOW, Instant::now()));
        for _ in 0..20 {
            now += 2 * 50 * MS; // the second half of the time for the retransmission
            receive.drained(receive.window, now, 50 * MS, MAX_WINDOW);
        }
        assert_eq!(receive.window, MAX_WINDOW);
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
    fn the_send_window_is_twice_the_congestion_window() {
        assert_eq!(send_window(0), MIN_SEND_WINDOW);
        assert_eq!(send_window(1 << 20), 2 << 20);
        assert_eq!(send_window(u64::MAX / 2), MAX_WINDOW);
    }
}
