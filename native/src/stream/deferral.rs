//! Lets a task that sends run after other ready tasks, which may write more: what they write is then sent together.
use std::task::{Context, Poll};

/// After this many deferrals without another write, a task is no longer deferred.
pub const MAX_EMPTY_DEFERRALS: u32 = 8;
/// Except every 64th time, to see whether there are other writers now.
const RETRY_EVERY: u32 = 64;

/// A write wakes the task that sends, and tokio polls the task that was woken last first. The task yields once instead, as long as that gains
/// writes.
#[derive(Default)]
pub struct Deferral {
    /// The number of writes when the task was deferred.
    seen_writes: Option<u64>,
    /// Consecutive deferrals without another write.
    empty_deferrals: u32,
    polls: u32,
}

impl Deferral {
    /// Pending if the task is to yield, which it does once. `writes` is the number of writes so far.
    pub fn poll(&mut self, writes: u64, cx: &mut Context<'_>) -> Poll<()> {
        match self.seen_writes.take() {
            Some(seen_writes) if seen_writes == writes => self.empty_deferrals = self.empty_deferrals.saturating_add(1),
            Some(_) => self.empty_deferrals = 0,
            None => {
                self.polls = self.polls.wrapping_add(1);
                if self.empty_deferrals < MAX_EMPTY_DEFERRALS || self.polls.is_multiple_of(RETRY_EVERY) {
                    self.seen_writes = Some(writes);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(())
    }
}
