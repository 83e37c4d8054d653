//! Connections, streams and requests that wait to be accepted. An item settles a pending `accept` directly, without a task in between.
use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::Notify;

use crate::addon::completion_queue::{Promise, Value};
use crate::sync::{lock, wait_for};

/// Maximum number of items in one batch.
const MAX_BATCH: usize = 256;

pub struct AcceptQueue<T> {
    state: Mutex<State<T>>,
    space: Notify,
    capacity: usize,
}

struct State<T> {
    items: VecDeque<T>,
    waiting: VecDeque<PendingAccept<T>>,
    closed: bool,
}

struct PendingAccept<T> {
    promise: Promise,
    /// Converts one or more items.
    to_value: Box<dyn Fn(Vec<T>) -> Value + Send>,
}

impl<T> AcceptQueue<T> {
    /// Producers should wait for [`AcceptQueue::space`] when the queue holds `capacity` items.
    pub fn new(capacity: usize) -> Self {
        Self {
            state: Mutex::new(State {
                items: VecDeque::new(),
                waiting: VecDeque::new(),
                closed: false,
            }),
            space: Notify::new(),
            capacity,
        }
    }

    /// Returns the item if the queue is closed.
    pub fn push(&self, item: T) -> Result<(), T> {
        let waiting = {
            let mut state = lock(&self.state);
            if state.closed {
                return Err(item);
            }
            match state.waiting.pop_front() {
                Some(waiting) => waiting,
                None => {
                    state.items.push_back(item);
                    return Ok(());
                }
            }
        };
        waiting.promise.settle(Ok((waiting.to_value)(vec![item])));
        Ok(())
    }

    /// Settles `promise` with the queued items, or with the next one; with null once the queue is closed.
    pub fn accept(&self, promise: Promise, max: usize, to_value: impl Fn(Vec<T>) -> Value + Send + 'static) {
        let mut state = lock(&self.state);
        if state.items.is_empty() {
            match state.closed {
                true => promise.settle(Ok(Value::Null)),
                false => state.waiting.push_back(PendingAccept {
                    promise,
                    to_value: Box::new(to_value),
                }),
            }
            return;
        }
        let n = state.items.len().min(max).min(MAX_BATCH);
        let items = state.items.drain(..n).collect();
        drop(state);
        self.space.notify_waiters();
        promise.settle(Ok(to_value(items)));
    }

    pub fn len(&self) -> usize {
        lock(&self.state).items.len()
    }

    pub fn is_full(&self) -> bool {
        self.len() >= self.capacity
    }

    /// Resolves when the queue has space.
    pub async fn space(&self) {
        wait_for(&self.space, || (!self.is_full()).then_some(())).await
    }

    /// Closes the queue to new items. Queued items can still be accepted; after these, `accept` settles with null.
    pub fn finish(&self) {
        let waiting = {
            let mut state = lock(&self.state);
            state.closed = true;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(|w| w.promise.settle(Ok(Value::Null)));
    }

    /// Closes the queue, drops its items and settles every pending `accept` with null.
    pub fn close(&self) {
        let (items, waiting) = {
            let mut state = lock(&self.state);
            state.closed = true;
            (std::mem::take(&mut state.items), std::mem::take(&mut state.waiting))
        };
        drop(items);
        waiting.into_iter().for_each(|w| w.promise.settle(Ok(Value::Null)));
        self.space.notify_waiters();
    }
}
