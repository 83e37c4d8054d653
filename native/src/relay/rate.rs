//! Rate limits in bytes per second: a token bucket that any number of tunnels share. Waiters are served in turn, a quantum at a time, so
//! that none starves.
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{sleep, Instant};

/// Maximum bytes taken at once.
const MAX_QUANTUM: usize = 64 << 10;
const MIN_QUANTUM: usize = 512;
/// Quanta per second.
const QUANTA_PER_SECOND: f64 = 100.0;

pub struct Rate {
    per_second: f64,
    burst: f64,
    quantum: usize,
    /// tokio's mutex is fair: it serves waiters in order
    bucket: Mutex<Bucket>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Rate {
    /// `burst` bytes, at least one quantum, may pass at once after a pause.
    pub fn new(per_second: f64, burst: f64) -> Arc<Self> {
        let per_second = per_second.max(1.0);
        let quantum = (per_second / QUANTA_PER_SECOND).clamp(MIN_QUANTUM as f64, MAX_QUANTUM as f64);
        let burst = burst.max(quantum);
        Arc::new(Self {
            per_second,
            burst,
            quantum: quantum as usize,
            bucket: Mutex::new(Bucket {
                tokens: burst,
                at: Instant::now(),
            }),
        })
    }

    /// Resolves when `bytes` bytes may pass. If cancelled, only the quanta granted before are consumed.
    pub async fn take(&self, mut bytes: usize) {
        while bytes > 0 {
            let quantum = bytes.min(self.quantum);
            self.take_quantum(quantum as f64).await;
            bytes -= quantum;
        }
    }

    async fn take_quantum(&self, bytes: f64) {
        let mut bucket = self.bucket.lock().await;
        loop {
            let now = Instant::now();
            let filled = bucket.tokens + (now - bucket.at).as_secs_f64() * self.per_second;
            *bucket = Bucket {
                tokens: filled.min(self.burst),
                at: now,
            };
            if bucket.tokens >= bytes {
                bucket.tokens -= bytes;
                return;
            }
            // the other waiters queue for the mutex
            sleep(Duration::from_secs_f64((bytes - bucket.tokens) / self.per_second)).await;
        }
    }
}

/// The rates that limit a tunnel.
#[derive(Default)]
pub struct RateLimiter(Vec<Arc<Rate>>);

impl RateLimiter {
    pub fn new(rates: Vec<Arc<Rate>>) -> Self {
        Self(rates)
    }

    pub fn is_free(&self) -> bool {
        self.0.is_empty()
    }

    /// Maximum bytes per read; `None` for no limit.
    pub fn quantum(&self) -> Option<usize> {
        self.0.iter().map(|rate| rate.quantum).min()
    }

    /// Resolves when `bytes` bytes may pass all rates.
    pub async fn take(&self, mut bytes: usize) {
        let Some(quantum) = self.quantum() else { return };
        while bytes > 0 {
            let part = bytes.min(quantum);
            for rate in &self.0 {
                rate.take(part).await;
            }
            bytes -= part;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[tokio::test(start_paused = true)]
    async fn the_burst_goes_at_once_and_the_rest_at_the_rate() {
        let (rate, start) = (Rate::new(MIB as f64, MIB as f64), Instant::now());
        rate.take(MIB).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        rate.take(10 * MIB).await;
        let took = start.elapsed().as_secs_f64();
        assert!((9.99..10.5).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_pause_no_more_than_the_burst_goes_at_once() {
        let rate = Rate::new(MIB as f64, MIB as f64);
        rate.take(MIB).await;
        sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        rate.take(3 * MIB).await;
        assert!(start.elapsed() >= Duration::from_millis(1_990), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_greedy_tunnel_leaves_a_modest_one_its_share() {
        let rate = Rate::new(MIB as f64, 0.0);
        let greedy = (0..3).map(|_| {
            tokio::spawn({
                let rate = rate.clone();
                async move { rate.take(100 * MIB).await }
            })
        });
        let greedy: Vec<_> = greedy.collect();
        tokio::task::yield_now().await;
        let start = Instant::now();
        rate.take(MIB).await;
        // it got a quarter of the rate
        let took = start.elapsed().as_secs_f64();
        assert!((3.5..4.5).contains(&took), "{took}");
        greedy.iter().for_each(|task| task.abort());
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_waiter_delays_no_other() {
        let rate = Rate::new(1_024.0, 0.0);
        rate.take(512).await;
        let first = tokio::spawn({
            let rate = rate.clone();
            async move { rate.take(100 * MIB).await }
        });
        tokio::task::yield_now().await;
        first.abort();
        let start = Instant::now();
        rate.take(512).await;
        assert!(start.elapsed() <= Duration::from_millis(510), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_narrowest_of_several_rates_counts() {
        let limiter = RateLimiter::new(vec![Rate::new(100.0 * MIB as f64, 0.0), Rate::new(MIB as f64, 0.0)]);
        let start = Instant::now();
        limiter.take(2 * MIB).await;
        let took = start.elapsed().as_secs_f64();
        assert!((1.9..2.1).contains(&took), "{took}");
        assert_eq!(limiter.quantum(), Some(10_485));
    }

    #[tokio::test(start_paused = true)]
    async fn without_rates_nothing_waits() {
        let start = Instant::now();
        RateLimiter::default().take(usize::MAX).await;
        assert_eq!((start.elapsed(), RateLimiter::default().quantum()), (Duration::ZERO, None));
    }
}
