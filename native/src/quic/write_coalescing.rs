//! The runtime of QUIC: tokio, with drivers that let pending writers share datagrams.
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};

use crate::stream::deferral::Deferral;

type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Number of writes to streams. Process-wide, like the runtime.
static WRITES: AtomicU64 = AtomicU64::new(0);

/// Records a write to a QUIC stream.
pub fn record_write() {
    WRITES.fetch_add(1, Ordering::Relaxed);
}

/// As quinn's runtime, but defers drivers until other writers have written.
#[derive(Debug)]
pub struct CoalescingRuntime;

impl Runtime for CoalescingRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, driver: Driver) {
        TokioRuntime.spawn(Box::pin(DeferredDriver::new(driver)));
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// A write wakes the connection's driver task. Without this, tokio polls it before other ready writers, and each write is sent in its own
/// datagram.
struct DeferredDriver {
    driver: Driver,
    deferral: Deferral,
}

impl DeferredDriver {
    fn new(driver: Driver) -> Self {
        Self {
            driver,
            deferral: Deferral::default(),
        }
    }
}

impl Future for DeferredDriver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.deferral.poll(WRITES.load(Ordering::Relaxed), cx).is_pending() {
            return Poll::Pending;
        }
        self.driver.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::deferral::MAX_EMPTY_DEFERRALS;
    use std::sync::Mutex;

    /// The events when one of several writers wakes a driver: `w` for a write, `D` for a poll of the driver.
    async fn polls(writers: usize) -> String {
        let events = Arc::new(Mutex::new(String::new()));
        let woken = Arc::new(tokio::sync::Notify::new());
        let (record, wait) = (events.clone(), woken.clone());
        let driver = async move {
            loop {
                wait.notified().await;
                crate::sync::lock(&record).push('D');
            }
        };
        let driver = tokio::spawn(DeferredDriver::new(Box::pin(driver)));
        for _ in 0..2 * MAX_EMPTY_DEFERRALS {
            let writers = (0..writers).map(|_| {
                let (record, wake) = (events.clone(), woken.clone());
                tokio::spawn(async move {
                    record_write();
                    crate::sync::lock(&record).push('w');
                    wake.notify_one();
                })
            });
            for writer in writers.collect::<Vec<_>>() {
                writer.await.unwrap();
            }
            while !crate::sync::lock(&events).ends_with('D') {
                tokio::task::yield_now().await;
            }
        }
        driver.abort();
        let events = crate::sync::lock(&events);
        events.clone()
    }

    /// On a single worker thread, which polls the task that was woken last first.
    fn on_a_worker(writers: usize) -> String {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        runtime.block_on(async { tokio::spawn(polls(writers)).await.unwrap() })
    }

    #[test]
    fn a_driver_runs_after_all_writers() {
        let events = on_a_worker(3);
        assert!(events.matches("wwwD").count() > 2 * MAX_EMPTY_DEFERRALS as usize - 3, "{events}");
    }

    #[test]
    fn a_driver_runs_once_for_a_single_writer() {
        let events = on_a_worker(1);
        assert_eq!(events.matches("wD").count(), 2 * MAX_EMPTY_DEFERRALS as usize, "{events}");
    }
}
