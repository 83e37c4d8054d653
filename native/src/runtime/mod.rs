//! The environment of the process: the tokio runtime, the allocator, and the service manager.
pub mod allocator;
pub mod process;
pub mod watchdog;

use std::sync::OnceLock;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

/// The runtime, one per process, as its threads cost memory. The first engine chooses the number of threads.
pub fn handle(threads: u32) -> std::io::Result<&'static Handle> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if RUNTIME.get().is_none() {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.clamp(1, 64) as usize)
            // only used to release memory
            .max_blocking_threads(2)
            .thread_name("reverse-http")
            .enable_all()
            .build()?;
        let _ = RUNTIME.set(runtime); // another environment may have set it first
    }
    RUNTIME
        .get()
        .map(Runtime::handle)
        .ok_or_else(|| std::io::Error::other("no runtime"))
}

/// How often free memory is returned to the system.
const RELEASE_INTERVAL: Duration = Duration::from_secs(60);
/// Delay before the first release: memory needed only at startup is free by then.
const STARTUP_TIME: Duration = Duration::from_secs(5);

pub async fn release_memory_periodically() {
    tokio::time::sleep(STARTUP_TIME).await;
    loop {
        allocator::release();
        tokio::time::sleep(RELEASE_INTERVAL).await;
    }
}
