//! The queue of calls on one half of a stream. It runs a task only while it has calls.
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::sync::{oneshot, Notify};
use tokio::task::AbortHandle;

use super::half::ResetOnDrop;
use crate::error::NetError;
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
    /// A task has the half and works the queue off.
    Busy(AbortHandle),
    /// A copy has the half.
    Spliced(Arc<CancelSignal>),
    Dead,
}

/// Ends a copy from outside.
#[derive(Default)]
pub struct CancelSignal(Notify);

impl CancelSignal {
    pub fn cancel(&self) {
        self.0.notify_one(); // kept for a copy that has not come to wait yet
    }

    pub async fn cancelled(&self) {
        self.0.notified().await
    }
}

/// A half that is on its way to a copy.
pub enum TakenHalf<H> {
    Now(H),
    /// Once the calls made before are done.
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

    /// Adds a call. `start` makes the task where none runs; a lane that is gone drops the call, which settles its promise.
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

    /// The task's next call; gives the half back where there is none. `None` also where the lane was ended meanwhile.
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

    /// Takes the half for a copy: at once where no call is under way, and without a task. `op` makes the call that waits for the others.
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

    /// Hands the half to a copy; calls made after that are dropped.
    pub fn hand_over(&self, half: H, to: oneshot::Sender<H>, cancel: Arc<CancelSignal>) {
        let mut state = lock(&self.state);
        if matches!(state.phase, Phase::Busy(_)) {
            state.phase = Phase::Spliced(cancel);
            state.pending.clear();
            let _ = to.send(half); // a copy that gave up drops the half, and so aborts it
        }
    }

    /// Ends the lane now: the half is dropped wherever it is, calls under way are settled with `closed`.
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

    /// The half, where no call is under way. It goes back to its lane when it is dropped, unless that was ended meanwhile.
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

    /// Looks at the half, where no call is under way.
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
}

/// A half that is lent from its lane.
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

/// Calls that wait behind one that panicked are settled too.
pub struct OnPanic<'a, H, C>(pub &'a OpQueue<H, C>);

impl<H, C> Drop for OnPanic<'_, H, C> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            drop(self.0.abort());
        }
    }
}
