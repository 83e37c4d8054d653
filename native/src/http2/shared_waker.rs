//! A waker for many tasks: `h2` remembers one for each direction of a stream.
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::Notify;

use crate::sync::wait_for;

/// Wakes all that wait.
pub struct SharedWaker {
    notify: Arc<NotifyWaker>,
    waker: Waker,
}

struct NotifyWaker(Notify);

impl Wake for NotifyWaker {
    fn wake(self: Arc<Self>) {
        self.0.notify_waiters();
    }
}

impl SharedWaker {
    pub fn new() -> Self {
        let notify = Arc::new(NotifyWaker(Notify::new()));
        Self {
            waker: Waker::from(notify.clone()),
            notify,
        }
    }

    /// For a poll after which a notification wakes all that wait.
    pub fn context(&self) -> Context<'_> {
        Context::from_waker(&self.waker)
    }

    pub fn notify(&self) {
        self.notify.0.notify_waiters();
    }

    /// Resolves with what `poll` returns, which is called again after each notification.
    pub async fn wait<T>(&self, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
        wait_for(&self.notify.0, || match poll(&mut self.context()) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        })
        .await
    }
}
