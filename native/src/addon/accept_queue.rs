//! What arrived and waits to be accepted: connections, streams, requests. A waiting `accept` is answered by whoever brings the next item,
//! without a task in between.
use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::Notify;

use crate::addon::completion_queue::{Promise, Value};
use crate::sync::lock;

/// Items handed to JavaScript in one batch.
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
    /// Makes the answer of one item or more.
    to_value: Box<dyn Fn(Vec<T>) -> Value + Send>,
}

impl<T> AcceptQueue<T> {
    /// Whoever brings items should wait for [`AcceptQueue::space`] while there are `capacity` of them.
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

    /// Gives the item back where nobody will ever ask for it.
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

    /// Settles `promise` with what is there, now or later; with null once it is closed.
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
        self.space.notify_one();
        promise.settle(Ok(to_value(items)));
    }

    pub fn len(&self) -> usize {
        lock(&self.state).items.len()
    }

    pub fn is_full(&self) -> bool {
        self.len() >= self.capacity
    }

    /// Resolves when there is room for more.
    pub async fn space(&self) {
        while self.is_full() {
            self.space.notified().await;
        }
    }

    /// Nothing more comes: answers everybody with null once what is there was asked for.
    pub fn finish(&self) {
        let waiting = {
            let mut state = lock(&self.state);
            state.closed = true;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(|w| w.promise.settle(Ok(Value::Null)));
    }

    /// Answers everybody who waits with null, and drops what was not asked for.
    pub fn close(&self) {
        let (items, waiting) = {
            let mut state = lock(&self.state);
            state.closed = true;
            (std::mem::take(&mut state.items), std::mem::take(&mut state.waiting))
        };
        drop(items);
        waiting.into_iter().for_each(|w| w.promise.settle(Ok(Value::Null)));
        self.space.notify_one();
    }
}
