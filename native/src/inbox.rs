//! What arrived and waits to be accepted: connections, streams, requests. A waiting `accept` is answered by whoever brings the next item,
//! without a task in between.
use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::Notify;

use crate::hub::{Js, Promise};
use crate::lock;

/// Items handed to JavaScript in one batch.
const BATCH: usize = 256;

pub struct Inbox<T> {
    state: Mutex<State<T>>,
    space: Notify,
    capacity: usize,
}

struct State<T> {
    items: VecDeque<T>,
    waiting: VecDeque<Waiting<T>>,
    closed: bool,
}

struct Waiting<T> {
    promise: Promise,
    /// Makes the answer of one item or more.
    answer: Box<dyn Fn(Vec<T>) -> Js + Send>,
}

impl<T> Inbox<T> {
    /// Whoever brings items should wait for [`Inbox::space`] while there are `capacity` of them.
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
        waiting.promise.settle(Ok((waiting.answer)(vec![item])));
        Ok(())
    }

    /// Settles `promise` with what is there, now or later; with null once it is closed.
    pub fn accept(&self, promise: Promise, most: usize, answer: impl Fn(Vec<T>) -> Js + Send + 'static) {
        let mut state = lock(&self.state);
        if state.items.is_empty() {
            match state.closed {
                true => promise.settle(Ok(Js::Null)),
                false => state.waiting.push_back(Waiting {
                    promise,
                    answer: Box::new(answer),
                }),
            }
            return;
        }
        let n = state.items.len().min(most).min(BATCH);
        let items = state.items.drain(..n).collect();
        drop(state);
        self.space.notify_one();
        promise.settle(Ok(answer(items)));
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
        waiting.into_iter().for_each(|w| w.promise.settle(Ok(Js::Null)));
    }

    /// Answers everybody who waits with null, and drops what was not asked for.
    pub fn close(&self) {
        let (items, waiting) = {
            let mut state = lock(&self.state);
            state.closed = true;
            (std::mem::take(&mut state.items), std::mem::take(&mut state.waiting))
        };
        drop(items);
        waiting.into_iter().for_each(|w| w.promise.settle(Ok(Js::Null)));
        self.space.notify_one();
    }
}
