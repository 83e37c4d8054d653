//! A stream as JavaScript holds it: two lanes, each an ordered queue of calls on one half. A lane runs a task only while it has calls.
use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, Notify};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::completion_queue::{Promise, Value};
use crate::error::NetError;
use crate::half::{ReadHalf, Reader, ResetOnDrop, WriteHalf, Writer};
use crate::lock;

/// How long `close` goes on sending what was written before it.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Stream {
    /// TCP knows no reset of one direction.
    is_tcp: bool,
    reading: OpQueue<Reader, ReadOp>,
    writing: OpQueue<Writer, WriteOp>,
}

struct OpQueue<H, C> {
    on_drop: Arc<ResetOnDrop>,
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

enum ReadOp {
    Next(Promise),
    Take(oneshot::Sender<Reader>, Arc<CancelSignal>),
}

enum WriteOp {
    Data(Bytes, Promise),
    Finish,
    Close(Option<Reader>),
    Take(oneshot::Sender<Writer>, Arc<CancelSignal>),
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

/// Both halves of one stream.
pub struct Halves {
    pub reader: Reader,
    pub writer: Writer,
}

impl Halves {
    pub fn new(read_half: ReadHalf, write_half: WriteHalf) -> Self {
        Self {
            reader: Reader::new(read_half, Arc::default()),
            writer: Writer::new(write_half, Arc::default()),
        }
    }
}

/// Halves that a copy waits for.
pub struct Handover {
    reader: TakenHalf<Reader>,
    writer: TakenHalf<Writer>,
}

impl Handover {
    /// As [`Writer::write_now`], where nothing is to be waited for.
    pub fn write_now(&mut self, data: &mut Bytes) {
        if let TakenHalf::Now(writer) = &mut self.writer {
            writer.write_now(data);
        }
    }

    pub async fn halves(self) -> Result<Halves, NetError> {
        let reader = self.reader.half().await?;
        let writer = self.writer.half().await?;
        Ok(Halves { reader, writer })
    }
}

impl From<Halves> for Handover {
    fn from(halves: Halves) -> Self {
        Self {
            reader: TakenHalf::Now(halves.reader),
            writer: TakenHalf::Now(halves.writer),
        }
    }
}

/// A half that is on its way to a copy.
enum TakenHalf<H> {
    Now(H),
    /// Once the calls made before are done.
    Later(oneshot::Receiver<H>),
}

impl<H> TakenHalf<H> {
    async fn half(self) -> Result<H, NetError> {
        match self {
            Self::Now(half) => Ok(half),
            Self::Later(half) => half.await.map_err(|_| NetError::closed()),
        }
    }
}

impl<H, C> OpQueue<H, C> {
    fn new(half: H, on_drop: Arc<ResetOnDrop>) -> Self {
        Self {
            on_drop,
            state: Mutex::new(State {
                phase: Phase::Idle(half),
                pending: VecDeque::new(),
            }),
        }
    }

    fn dead() -> Self {
        Self {
            on_drop: Arc::default(),
            state: Mutex::new(State {
                phase: Phase::Dead,
                pending: VecDeque::new(),
            }),
        }
    }

    /// Adds a call. `start` makes the task where none runs; a lane that is gone drops the call, which settles its promise.
    fn push(&self, op: C, start: impl FnOnce(H, C) -> AbortHandle) {
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
    fn next(&self, half: H) -> Option<(H, C)> {
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
    fn take(&self, cancel: &Arc<CancelSignal>, op: impl FnOnce(oneshot::Sender<H>, Arc<CancelSignal>) -> C) -> TakenHalf<H> {
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
    fn hand_over(&self, half: H, to: oneshot::Sender<H>, cancel: Arc<CancelSignal>) {
        let mut state = lock(&self.state);
        if matches!(state.phase, Phase::Busy(_)) {
            state.phase = Phase::Spliced(cancel);
            state.pending.clear();
            let _ = to.send(half); // a copy that gave up drops the half, and so aborts it
        }
    }

    /// Ends the lane now: the half is dropped wherever it is, calls under way are settled with `closed`.
    fn abort(&self) -> Option<H> {
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
    fn borrow(&self, cancel: &Arc<CancelSignal>) -> Option<BorrowedHalf<'_, H, C>> {
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
    fn peek<T>(&self, look: impl FnOnce(&H) -> T) -> Option<T> {
        match &lock(&self.state).phase {
            Phase::Idle(half) => Some(look(half)),
            _ => None,
        }
    }

    fn is_spliced(&self) -> bool {
        matches!(lock(&self.state).phase, Phase::Spliced(_))
    }
}

/// A half that is lent from its lane.
struct BorrowedHalf<'a, H, C> {
    ops: &'a OpQueue<H, C>,
    half: Option<H>,
}

impl<H, C> Drop for BorrowedHalf<'_, H, C> {
    fn drop(&mut self) {
        let mut state = lock(&self.ops.state);
        if let (Phase::Spliced(_), Some(half)) = (&state.phase, self.half.take()) {
            state.phase = Phase::Idle(half);
        }
    }
}

impl Stream {
    pub fn new(halves: Halves) -> Arc<Self> {
        let Halves { reader, writer } = halves;
        let (reader_drop, writer_drop) = (reader.on_drop().clone(), writer.on_drop().clone());
        let is_tcp = writer.tcp().is_some();
        Arc::new(Self {
            is_tcp,
            reading: OpQueue::new(reader, reader_drop),
            writing: OpQueue::new(writer, writer_drop),
        })
    }

    /// A stream that was over before anybody could use it.
    pub fn dead() -> Arc<Self> {
        Arc::new(Self {
            is_tcp: true,
            reading: OpQueue::dead(),
            writing: OpQueue::dead(),
        })
    }

    pub fn read(self: &Arc<Self>, runtime: &Handle, promise: Promise) {
        self.push_read(runtime, ReadOp::Next(promise));
    }

    pub fn write(self: &Arc<Self>, runtime: &Handle, data: Bytes, promise: Promise) {
        self.push_write(runtime, WriteOp::Data(data, promise));
    }

    pub fn close_write(self: &Arc<Self>, runtime: &Handle) {
        self.push_write(runtime, WriteOp::Finish);
    }

    /// Takes both halves once the calls made before are done.
    pub fn take(&self, cancel: &Arc<CancelSignal>) -> Handover {
        Handover {
            reader: self.reading.take(cancel, ReadOp::Take),
            writer: self.writing.take(cancel, WriteOp::Take),
        }
    }

    /// Does `work` for the peer, and gives it up where the peer goes away meanwhile. `cancel` is told where the stream is ended from here.
    pub async fn while_connected<T>(
        &self,
        cancel: &Arc<CancelSignal>,
        work: impl Future<Output = Result<T, NetError>>,
    ) -> Result<T, NetError> {
        let stopped_by_peer = match self.is_tcp {
            true => None, // the reader tells of it
            false => self.writing.peek(Writer::stopped_by_peer),
        };
        let mut borrowed = self.reading.borrow(cancel);
        let gone = async {
            match borrowed.as_mut().and_then(|borrowed| borrowed.half.as_mut()) {
                Some(reader) => reader.peer_gone().await,
                None => std::future::pending().await,
            }
        };
        let stopped = async {
            match stopped_by_peer {
                Some(stopped_by_peer) => NetError::abandoned(&stopped_by_peer.await.message),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            error = gone => Err(error),
            error = stopped => Err(error),
        }
    }

    /// Resolves when the peer resets the stream, also while nobody reads; `None` where the stream is in use, or has ended.
    pub fn reset_by_peer(&self) -> Option<impl Future<Output = NetError> + Send + 'static> {
        self.writing.peek(Writer::stopped_by_peer)
    }

    pub fn reset(&self, code: u32) {
        self.writing.on_drop.set_code(code);
        if self.writing.is_spliced() {
            self.reading.on_drop.set_code(code);
        }
        if self.is_tcp {
            // before either half is dropped, which may be in a task that is ended later
            self.reading.on_drop.set_aborted();
            self.writing.on_drop.set_aborted();
            drop(self.reading.abort());
        }
        drop(self.writing.abort());
    }

    pub fn stop_read(&self, code: u32) {
        self.reading.on_drop.set_code(code);
        if !self.reading.is_spliced() {
            self.reading.on_drop.set_finish_on_drop();
        }
        drop(self.reading.abort());
    }

    /// Ends both directions in good order; a copy is aborted.
    pub fn close(self: &Arc<Self>, runtime: &Handle) {
        if self.reading.is_spliced() || self.writing.is_spliced() {
            return self.abort();
        }
        self.reading.on_drop.set_code(0);
        self.reading.on_drop.set_finish_on_drop();
        let reader = self.reading.abort();
        let writing = matches!(lock(&self.writing.state).phase, Phase::Busy(_));
        self.push_write(runtime, WriteOp::Close(reader));
        if writing {
            let stream = self.clone();
            // not a timer in the task: a write that hangs is what it is for
            runtime.spawn(async move {
                tokio::time::sleep(FLUSH_TIMEOUT).await;
                drop(stream.writing.abort());
            });
        }
    }

    /// Ends both directions at once, as a reset.
    pub fn abort(&self) {
        drop(self.reading.abort());
        drop(self.writing.abort());
    }

    fn push_read(self: &Arc<Self>, runtime: &Handle, op: ReadOp) {
        self.reading
            .push(op, |half, op| runtime.spawn(self.clone().run_reads(half, op)).abort_handle());
    }

    fn push_write(self: &Arc<Self>, runtime: &Handle, op: WriteOp) {
        self.writing
            .push(op, |half, op| runtime.spawn(self.clone().run_writes(half, op)).abort_handle());
    }

    async fn run_reads(self: Arc<Self>, mut reader: Reader, mut op: ReadOp) {
        let _guard = OnPanic(&self.reading);
        loop {
            match op {
                ReadOp::Next(promise) => promise.settle(reader.read().await.map(|data| data.map_or(Value::Null, Value::Bytes))),
                ReadOp::Take(to, cancel) => return self.reading.hand_over(reader, to, cancel),
            }
            match self.reading.next(reader) {
                Some((half, next)) => (reader, op) = (half, next),
                None => return,
            }
        }
    }

    async fn run_writes(self: Arc<Self>, mut writer: Writer, mut op: WriteOp) {
        let _guard = OnPanic(&self.writing);
        loop {
            match op {
                WriteOp::Data(data, promise) => promise.settle(writer.write(data).await.map(|()| Value::Undefined)),
                WriteOp::Finish => drop(writer.finish().await), // the next write tells what was wrong
                WriteOp::Take(to, cancel) => return self.writing.hand_over(writer, to, cancel),
                WriteOp::Close(reader) => return close(writer, reader).await,
            }
            match self.writing.next(writer) {
                Some((half, next)) => (writer, op) = (half, next),
                None => return,
            }
        }
    }
}

/// Calls that wait behind one that panicked are settled too.
struct OnPanic<'a, H, C>(&'a OpQueue<H, C>);

impl<H, C> Drop for OnPanic<'_, H, C> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            drop(self.0.abort());
        }
    }
}

/// The good end of a stream: finish, and for TCP let the peer read it.
async fn close(mut writer: Writer, reader: Option<Reader>) {
    let finished = timeout(FLUSH_TIMEOUT, writer.finish()).await;
    let read_to_end = reader.as_ref().is_some_and(Reader::has_ended);
    if let (Ok(Ok(())), false, Some(tcp)) = (finished, read_to_end, writer.tcp()) {
        tcp.linger().await;
    }
}
