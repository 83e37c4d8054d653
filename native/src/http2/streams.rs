//! The streams of a connection, and the limits that servers and clients have in common.
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::flush::Queue;
use super::stream::CutStream;

/// Concurrent streams of a connection. With their windows they stay below the largest window of a connection (RFC 9113 §6.9.1).
pub const MAX_STREAMS: u32 = 1_000;
/// Receive window of a stream in bytes: 40 MB/s over a path of 50 ms. It does not grow: `h2` has one for all streams. What a tunnel holds of it
/// counts for the memory budget.
pub const STREAM_WINDOW: u32 = 2 << 20;
/// Receive window of a connection in bytes, besides those of its open tunnels. Requests that have no response yet share it.
pub const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of a stream that wait for the socket.
pub const SEND_BUFFER: usize = 64 << 10;
/// Overhead in bytes of small DATA frames that are not read yet.
pub const DATA_FRAME_BUDGET: usize = 4 << 20;
/// Streams that were reset here, whose late frames are ignored.
pub const MAX_FORGOTTEN: usize = MAX_STREAMS as usize;

/// The streams of a connection.
#[derive(Default)]
pub struct Streams {
    open: AtomicUsize,
    /// Those that have a window of their own.
    windows: AtomicUsize,
    /// Requests that were reset before their response, less those that have completed.
    resets: AtomicUsize,
    pub(super) flush: Queue,
    changed: Notify,
}

impl Streams {
    pub fn opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// `was_reset`: by the peer, before its response.
    pub fn ended(&self, was_reset: bool) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        let count = |resets: usize| if was_reset { resets.checked_add(1) } else { resets.checked_sub(1) };
        let _ = self.resets.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count); // stays 0
        self.changed.notify_one();
    }

    /// Has the connection reset a stream after it has written what was sent there.
    pub fn cut(&self, stream: CutStream) {
        self.flush.reset(stream);
        self.changed.notify_one();
    }

    /// Resolves when the connection has written what was sent.
    pub async fn flushed(&self) {
        let flushed = self.flush.flushed();
        self.changed.notify_one();
        flushed.await;
    }

    pub fn add_window(&self) {
        self.windows.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
    }

    pub fn remove_window(&self) {
        self.windows.fetch_sub(1, Ordering::Relaxed);
        self.changed.notify_one();
    }

    pub fn has_open(&self) -> bool {
        self.open() > 0
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub fn resets(&self) -> usize {
        self.resets.load(Ordering::Relaxed)
    }

    /// Resolves after a change of the numbers.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The receive window of the connection. An unread tunnel stops no other.
    pub fn window(&self) -> u32 {
        let windows = u32::try_from(self.windows.load(Ordering::Relaxed)).unwrap_or(MAX_STREAMS);
        CONNECTION_WINDOW + windows.min(MAX_STREAMS) * STREAM_WINDOW
    }
}
