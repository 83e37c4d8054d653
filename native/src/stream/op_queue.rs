//! Queue of operations on one half of a stream. A task runs only while there are operations.
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::{oneshot, Notify};
use tokio::task::AbortHandle;

use super::reset_on_drop::ResetOnDrop;
use crate::error::NetError;
use crate::relay::budget::TunnelUsage;
use crate::sync::lock;

pub struct OpQueue<H, C> {
    pub on_drop: Arc<ResetOnDrop>,
    state: Mutex<State<H, C>>,
}

struct State<H, C> {
    phase: Phase<H>,
    pending: VecDeque<C>,
}

enum Phase<H> {
    Idle(H),
    /// A task has the half and processes the queue.
    Busy(AbortHandle),
    /// A splice has the half.
    Spliced(Arc<CancelSignal>),
    Dead,
}

/// The interface of a splice for its streams: they can cancel it, and read its counters.
#[derive(Default)]
pub struct CancelSignal {
    cancel: Notify,
    usage: OnceLock<Arc<TunnelUsage>>,
}

impl CancelSignal {
    pub fn cancel(&self) {
        self.cancel.notify_one(); // stored for a splice that does not wait yet
    }

    pub async fn cancelled(&self) {
        self.cancel.notified().await
    }

    /// The splice has begun to relay.
    pub fn began(&self, usage: &Arc<TunnelUsage>) {
        let _ = self.usage.set(usage.clone()); // a splice begins once
    }

    /// `None` until it has begun.
    pub fn usage(&self) -> Option<&TunnelUsage> {
        self.usage.get().map(Arc::as_ref)
    }
}

/// A half that is being handed over to a splice.
pub enum TakenHalf<H> {
    Now(H),
    /// After the pending operations have completed.
    Later(oneshot::Receiver<H>),
}

impl<H> TakenHalf<H> {
    pub async fn half(self) -> Result<H, NetError> {
        match self {
            Self::Now(half) => Ok(half),
            Self::Later(half) => half.await.map_err(|_| NetError::closed()),
        }
    }
}

impl<H, C> OpQueue<H, C> {
    pub fn new(half: H, on_drop: Arc<ResetOnDrop>) -> Self {
        Self {
            on_drop,
            state: Mutex::new(State {
                phase: Phase::Idle(half),
                pending: VecDeque::new(),
            }),
        }
    }

    pub fn dead() -> Self {
        Self {
            on_drop: Arc::default(),
            state: Mutex::new(State {
                phase: Phase::Dead,
                pending: VecDeque::new(),
            }),
        }
    }

    /// Adds an operation. `start` spawns the task if none runs. A dead queue drops the operation, which settles its promise.
    pub fn push(&self, op: C, start: impl FnOnce(H, C) -> AbortHandle) {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut state.phase, Phase::Dead) {
            Phase::Idle(half) => state.phase = Phase::Busy(start(half, op)),
            Phase::Busy(task) => {
                state.phase = Phase::Busy(task);
                state.pending.push_back(op);
            }
            gone => state.phase = gone,
        }
    }

    /// The task's next operation. Without one, the half becomes idle. `None` also if the queue was aborted.
    pub fn next(&self, half: H) -> Option<(H, C)> {
        let mut state = lock(&self.state);
        if !matches!(state.phase, Phase::Busy(_)) {
            return None;
        }
        let op = state.pending.pop_front();
        if op.is_none() {
            state.phase = Phase::Idle(half);
            return None;
        }
        op.map(|op| (half, op))
    }

    /// Takes the half for a splice, immediately if the queue is idle. Otherwise `op` creates the operation that hands it over.
    pub fn take(&self, cancel: &Arc<CancelSignal>, op: impl FnOnce(oneshot::Sender<H>, Arc<CancelSignal>) -> C) -> TakenHalf<H> {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut state.phase, Phase::Dead) {
            Phase::Idle(half) => {
                state.phase = Phase::Spliced(cancel.clone());
                TakenHalf::Now(half)
            }
            phase => {
                let (to, half) = oneshot::channel();
                if matches!(phase, Phase::Busy(_)) {
                    state.pending.push_back(op(to, cancel.clone()));
                }
                state.phase = phase;
                TakenHalf::Later(half)
            }
        }
    }

    /// Hands the half to a splice and drops pending operations.
    pub fn hand_over(&self, half: H, to: oneshot::Sender<H>, cancel: Arc<CancelSignal>) {
        let mut state = lock(&self.state);
        if matches!(state.phase, Phase::Busy(_)) {
            state.phase = Phase::Spliced(cancel);
            state.pending.clear();
            let _ = to.send(half); // if the splice was cancelled, the half is dropped and so reset
        }
    }

    /// Aborts the queue: the half is dropped wherever it is, and pending operations settle with `closed`.
    pub fn abort(&self) -> Option<H> {
        let mut state = lock(&self.state);
        state.pending.clear();
        match std::mem::replace(&mut state.phase, Phase::Dead) {
            Phase::Idle(half) => Some(half),
            Phase::Busy(task) => {
                task.abort();
                None
            }
            Phase::Spliced(cancel) => {
                cancel.cancel();
                None
            }
            Phase::Dead => None,
        }
    }

    /// Borrows the half of an idle queue. It returns when the guard is dropped, unless the queue was aborted.
    pub fn borrow(&self, cancel: &Arc<CancelSignal>) -> Option<BorrowedHalf<'_, H, C>> {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut state.phase, Phase::Dead) {
            Phase::Idle(half) => {
                state.phase = Phase::Spliced(cancel.clone());
                Some(BorrowedHalf {
                    ops: self,
                    half: Some(half),
                })
            }
            phase => {
                state.phase = phase;
                None
            }
        }
    }

    /// Reads from the half of an idle queue.
    pub fn peek<T>(&self, look: impl FnOnce(&H) -> T) -> Option<T> {
        match &lock(&self.state).phase {
            Phase::Idle(half) => Some(look(half)),
            _ => None,
        }
    }

    pub fn is_busy(&self) -> bool {
        matches!(lock(&self.state).phase, Phase::Busy(_))
    }

    pub fn is_spliced(&self) -> bool {
        matches!(lock(&self.state).phase, Phase::Spliced(_))
    }

    /// The signal of the splice that has the half.
    pub fn splice(&self) -> Option<Arc<CancelSignal>> {
        match &lock(&self.state).phase {
            Phase::Spliced(signal) => Some(signal.clone()),
            _ => None,
        }
    }
}

/// A borrowed half.
pub struct BorrowedHalf<'a, H, C> {
    ops: &'a OpQueue<H, C>,
    pub half: Option<H>,
}

impl<H, C> Drop for BorrowedHalf<'_, H, C> {
    fn drop(&mut self) {
        let mut state = lock(&self.ops.state);
        if let (Phase::Spliced(_), Some(half)) = (&state.phase, self.half.take()) {
            state.phase = Phase::Idle(half);
        }
    }
}

/// Settles the operations behind one that panicked.
pub struct OnPanic<'a, H, C>(pub &'a OpQueue<H, C>);

impl<H, C> Drop for OnPanic<'_, H, C> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            drop(self.0.abort());
        }
    }
}
