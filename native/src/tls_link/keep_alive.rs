//! When a side of a link pings. It knows neither the session nor the socket.
use std::time::Duration;

use tokio::time::Instant;

/// Bytes moved in an interval by a link on which there are only pings.
const IDLE_BYTES: u64 = 1024;

/// The pings of one side. On a link that carries data they also measure the round trip. On an idle one, a PING of the peer is as good as one of
/// this side, so that only one of both pings.
pub struct KeepAlive {
    interval: Duration,
    /// When the current interval has begun.
    since: Instant,
    /// Bytes that had been moved then.
    moved: u64,
}

impl KeepAlive {
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            since: now,
            moved: 0,
        }
    }

    /// When the interval ends.
    pub fn ends_at(&self) -> Instant {
        self.since + self.interval
    }

    /// Call this when the interval has ended: begins the next one, and returns whether to ping. `peer` is when the last PING of the peer arrived,
    /// `moved` the number of bytes moved so far.
    pub fn next(&mut self, now: Instant, peer: Option<Instant>, moved: u64) -> bool {
        let is_idle = moved - self.moved < IDLE_BYTES;
        self.moved = moved;
        match peer.filter(|at| is_idle && *at > self.since && now < *at + self.interval) {
            Some(at) => {
                self.since = at;
                false
            }
            None => {
                self.since = now;
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(3);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_idle_side_pings_after_an_interval_without_a_ping_of_the_peer() {
        let start = Instant::now();
        let mut pings = KeepAlive::new(INTERVAL, start);
        assert!(pings.next(start + INTERVAL, None, 200));
        let (at, peer) = (start + 2 * INTERVAL, start + 2 * INTERVAL - SECOND);
        assert!(!pings.next(at, Some(peer), 300), "the peer has pinged");
        assert_eq!(pings.ends_at(), peer + INTERVAL);
        assert!(pings.next(peer + INTERVAL, Some(peer), 400), "and not since then");
        assert_eq!(pings.ends_at(), peer + 2 * INTERVAL);
    }

    #[test]
    fn a_side_that_has_not_run_for_long_pings() {
        let start = Instant::now();
        let mut pings = KeepAlive::new(INTERVAL, start);
        assert!(pings.next(start + 3 * INTERVAL, Some(start + SECOND), 0));
    }

    #[test]
    fn a_side_whose_link_carries_data_pings_whatever_the_peer_does() {
        let start = Instant::now();
        let mut pings = KeepAlive::new(INTERVAL, start);
        assert!(pings.next(start + INTERVAL, Some(start + SECOND), IDLE_BYTES));
        let (at, peer) = (start + 2 * INTERVAL, start + INTERVAL + SECOND);
        assert!(!pings.next(at, Some(peer), 2 * IDLE_BYTES - 1), "it is idle again");
    }
}
