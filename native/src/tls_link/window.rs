//! Receive windows of the TLS link: of a stream, and of all streams of a session together.
use std::time::{Duration, Instant};

use crate::relay::budget;
use crate::stream::buffered::BufferedStream;
use crate::stream::window_growth::{max_window, GROWTHS, UNPROVEN_DRAIN};

/// Window of a session besides those of its streams: for streams that are not accepted yet.
const BASE: u64 = 1 << 20;
/// Credit of the session is sent only once this much has accumulated, not for every read.
const STEP: u64 = 256 << 10;
/// A window may grow to this on any path. With less, a reader on a short path waits for credit; with more, other streams wait behind its
/// data.
const SHORT_PATH_WINDOW: u64 = 512 << 10;
/// Rate in bytes per microsecond for which a window may grow.
const PATH_RATE: u64 = 1_000;

/// The same while small frames wait behind the data: without any round trip, the rate to which they limit it, and the least for one of many
/// streams.
const INTERACTIVE_WINDOW: u64 = 48 << 10;
const INTERACTIVE_PATH_RATE: u64 = 500;
const MIN_INTERACTIVE_WINDOW: u64 = 32 << 10;

/// How far a window may grow on a path with this minimum round-trip time.
pub fn window_of_path(min_round_trip: Duration) -> u64 {
    let path = u64::try_from(min_round_trip.as_micros()).unwrap_or(u64::MAX);
    path.saturating_mul(PATH_RATE).max(SHORT_PATH_WINDOW)
}

/// The largest window that a stream may have now. `start` is its initial one. It does not grow for data that may only have moved to the
/// kernel's buffers: a peer that reads nothing would hold twice as much, and a path needs no larger window so early.
pub fn grown_window(start: u64, window: u64, total_read: u64, min_round_trip: Duration) -> u64 {
    if total_read <= UNPROVEN_DRAIN || !budget::has_room() || window == 0 {
        return window;
    }
    if GROWTHS.sum() > 0 {
        GROWTHS.sweep(Instant::now(), BufferedStream::held);
    }
    let max = max_window(start, GROWTHS.sum(), total_read).min(window_of_path(min_round_trip));
    (2 * window).min(max).max(window)
}

/// How much of its window each of `bulk_streams` may use while small frames of other streams wait behind their data: the peer has less on its
/// way, all of them together.
pub fn interactive_window(min_round_trip: Duration, bulk_streams: u64) -> u64 {
    let path = u64::try_from(min_round_trip.as_micros()).unwrap_or(u64::MAX);
    let all = path.saturating_mul(INTERACTIVE_PATH_RATE).saturating_add(INTERACTIVE_WINDOW);
    (all / bulk_streams.max(1)).max(MIN_INTERACTIVE_WINDOW)
}

/// The receive window of a session: finite, but at least the sum of its streams' windows, so that an unread stream stops no other.
pub struct SessionWindow {
    base: u64,
    /// Sum of the windows of accepted streams.
    streams: u64,
    /// Bytes that the peer may still send.
    allowed: u64,
    /// Bytes received and not read.
    unread: u64,
}

impl SessionWindow {
    /// `bytes` as with [`SessionWindow::set_base`].
    pub fn new(bytes: u32) -> Self {
        let base = base(bytes);
        Self {
            base,
            streams: 0,
            allowed: base,
            unread: 0,
        }
    }

    /// The credit that the peer has from the start.
    pub fn initial(&self) -> u32 {
        u32::try_from(self.allowed).unwrap_or(u32::MAX)
    }

    /// Sets the bytes besides the windows of the streams; 0 for the default.
    pub fn set_base(&mut self, bytes: u32) {
        self.base = base(bytes);
    }

    pub fn add(&mut self, window: u64) {
        self.streams += window;
    }

    pub fn remove(&mut self, window: u64) {
        self.streams = self.streams.saturating_sub(window);
    }

    /// Returns false if the peer had no credit for these bytes.
    pub fn received(&mut self, bytes: u64) -> bool {
        let Some(allowed) = self.allowed.checked_sub(bytes) else {
            return false;
        };
        self.allowed = allowed;
        self.unread += bytes;
        true
    }

    pub fn consume(&mut self, bytes: u64) {
        self.unread = self.unread.saturating_sub(bytes);
    }

    /// Grants the peer more credit, once it is worth a frame.
    pub fn grant(&mut self) -> Option<u32> {
        let missing = (self.base + self.streams).saturating_sub(self.allowed + self.unread);
        if missing < (self.base / 2).clamp(1, STEP) {
            return None;
        }
        let credit = u32::try_from(missing).unwrap_or(u32::MAX);
        self.allowed += u64::from(credit);
        Some(credit)
    }
}

fn base(bytes: u32) -> u64 {
    match bytes {
        0 => BASE,
        bytes => bytes.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_room_for_all_that_its_streams_may_send() {
        let mut window = SessionWindow::new(0);
        assert_eq!(window.grant(), None);
        for _ in 0..100 {
            window.add(256 << 10);
            window.grant();
        }
        // none of them is read
        assert!(window.received(100 * (256 << 10)));
        assert!(window.allowed >= BASE - STEP);
    }

    #[test]
    fn a_peer_gets_back_what_was_read_and_no_more() {
        let mut window = SessionWindow::new(1_000);
        assert!(window.received(1_000));
        assert!(!window.received(1));
        window.consume(499);
        assert_eq!(window.grant(), None, "not each read is a frame");
        window.consume(1);
        assert_eq!(window.grant(), Some(500));
        assert!(window.received(500) && !window.received(1));
    }

    #[test]
    fn a_window_that_was_closed_is_given_back_as_its_data_is_read() {
        let mut window = SessionWindow::new(1_000);
        window.add(10_000);
        assert_eq!(window.grant(), Some(10_000));
        assert!(window.received(10_500));
        window.remove(10_000);
        window.consume(10_500);
        assert_eq!(window.grant(), Some(500));
    }

    #[test]
    fn a_window_grows_once_its_data_has_left_the_kernel_s_buffers() {
        let (start, path) = (256 << 10, Duration::from_micros(100));
        assert_eq!(grown_window(start, start, UNPROVEN_DRAIN, path), start);
        assert_eq!(grown_window(start, start, UNPROVEN_DRAIN + 1, path), 2 * start);
    }

    #[test]
    fn streams_share_what_may_be_on_its_way_while_small_frames_wait() {
        let path = Duration::from_micros(200);
        let one = interactive_window(path, 1);
        assert!(one < SHORT_PATH_WINDOW / 2 && one == interactive_window(path, 0));
        assert_eq!(interactive_window(path, 2), one / 2);
        assert_eq!(interactive_window(path, 1_000), MIN_INTERACTIVE_WINDOW);
        assert!(
            interactive_window(Duration::from_millis(50), 1) > 16 << 20,
            "on a long path nothing changes"
        );
    }

    #[test]
    fn a_long_path_gets_a_larger_window() {
        assert_eq!(window_of_path(Duration::from_micros(100)), SHORT_PATH_WINDOW);
        assert_eq!(window_of_path(Duration::from_millis(50)), 50_000_000);
        assert_eq!(window_of_path(Duration::MAX), u64::MAX);
    }
}
