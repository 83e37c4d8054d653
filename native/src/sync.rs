use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Locks a mutex even if a thread panicked while it held it: one panic must not make every later call panic too.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Resolves with what `check` returns, which is called again after each notification.
pub async fn wait_for<T>(notify: &Notify, mut check: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(value) = check() {
            return value;
        }
        let changed = notify.notified();
        tokio::pin!(changed);
        changed.as_mut().enable(); // before the check: what happens after it wakes this task
        if let Some(value) = check() {
            return value;
        }
        changed.await;
    }
}
