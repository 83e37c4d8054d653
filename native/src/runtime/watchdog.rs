//! Detects a runtime that no longer runs tasks and timers. Each check spawns a task, which the next check expects to have finished; nothing
//! runs in the background.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

const NONE: u64 = u64::MAX;
const TICK: Duration = Duration::from_millis(1);

pub struct RuntimeWatchdog {
    start: Instant,
    /// When the pending tick was spawned, in milliseconds from `start`; `NONE` if there is none.
    tick_sent_at: AtomicU64,
}

impl RuntimeWatchdog {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            tick_sent_at: AtomicU64::new(NONE),
        })
    }

    /// How long the pending tick is overdue. If there is none, returns zero and spawns the next tick.
    pub fn stalled_for(self: &Arc<Self>, runtime: &Handle) -> Duration {
        let now = self.start.elapsed().as_millis() as u64;
        let tick_sent_at = self.tick_sent_at.load(Ordering::Acquire);
        if tick_sent_at != NONE {
            return Duration::from_millis(now.saturating_sub(tick_sent_at));
        }
        self.tick_sent_at.store(now, Ordering::Release);
        let watchdog = self.clone();
        runtime.spawn(async move {
            tokio::time::sleep(TICK).await; // checks the timers too
            watchdog.tick_sent_at.store(NONE, Ordering::Release);
        });
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap()
    }

    #[test]
    fn a_runtime_that_runs_is_never_late() {
        let (runtime, watchdog) = (runtime(), RuntimeWatchdog::new());
        for _ in 0..3 {
            assert_eq!(watchdog.stalled_for(runtime.handle()), Duration::ZERO);
            while watchdog.tick_sent_at.load(Ordering::Acquire) != NONE {
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn a_runtime_whose_threads_are_all_held_is_late_until_they_are_let_go() {
        let (runtime, watchdog) = (runtime(), RuntimeWatchdog::new());
        let (free, held) = std::sync::mpsc::channel::<()>();
        let (holds, holding) = std::sync::mpsc::channel::<()>();
        runtime.spawn(async move {
            holds.send(()).unwrap();
            let _ = held.recv();
        });
        holding.recv().unwrap();
        assert_eq!(watchdog.stalled_for(runtime.handle()), Duration::ZERO);
        std::thread::sleep(Duration::from_millis(50));
        assert!(watchdog.stalled_for(runtime.handle()) >= Duration::from_millis(49));
        free.send(()).unwrap();
        while watchdog.stalled_for(runtime.handle()) != Duration::ZERO {
            std::thread::yield_now();
        }
    }
}
