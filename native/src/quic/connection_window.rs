//! The receive window of a connection.
use std::sync::Mutex;

use quinn::VarInt;

use crate::stream::window_growth::INITIAL_STREAM_WINDOW;
use crate::sync::lock;

/// Window of a connection besides those of its streams: for streams that are not accepted yet.
const BASE: u64 = 1 << 20;
/// Minimum change of a connection's window, as each change is sent in a frame.
const STEP: u64 = 1 << 20;

/// The receive window of a connection: finite, but at least the sum of its streams' windows, so that an unread stream does not block
/// others.
pub struct ConnectionWindow(Mutex<Windows>);

#[derive(Clone, Copy)]
pub struct Windows {
    /// Initial window of a stream.
    start: u64,
    base: u64,
    /// Sum of the largest window of each open stream.
    pub streams: u64,
    pub open: usize,
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
    pub fn add_stream(&self, connection: &quinn::Connection) -> u64 {
        let mut start = 0;
        self.change(connection, |windows| {
            start = windows.start;
            windows.streams += start;
            windows.open += 1;
        });
        start
    }

    pub fn change(&self, connection: &quinn::Connection, change: impl FnOnce(&mut Windows)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::window_growth::MAX_WINDOW;

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
}
