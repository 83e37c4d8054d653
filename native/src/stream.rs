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

use crate::error::Fault;
use crate::half::{OnDrop, Reader, Sink, Source, Writer};
use crate::hub::{Js, Promise};
use crate::lock;

/// How long `close` goes on sending what was written before it.
const FLUSH: Duration = Duration::from_secs(10);

pub struct Stream {
    /// TCP knows no reset of one direction.
    is_tcp: bool,
    reading: Lane<Reader, Read>,
    writing: Lane<Writer, Write>,
}

struct Lane<H, C> {
    on_drop: Arc<OnDrop>,
    state: Mutex<State<H, C>>,
}

struct State<H, C> {
    phase: Phase<H>,
    queue: VecDeque<C>,
}

enum Phase<H> {
    Idle(H),
    /// A task has the half and works the queue off.
    Busy(AbortHandle),
    /// A copy has the half.
    Spliced(Arc<Stop>),
    Dead,
}

enum Read {
    Next(Promise),
    Take(oneshot::Sender<Reader>, Arc<Stop>),
}

enum Write {
    Data(Bytes, Promise),
    Finish,
    Close(Option<Reader>),
    Take(oneshot::Sender<Writer>, Arc<Stop>),
}

/// Ends a copy from outside.
#[derive(Default)]
pub struct Stop(Notify);

impl Stop {
    pub fn stop(&self) {
        self.0.notify_one(); // kept for a copy that has not come to wait yet
    }

    pub async fn stopped(&self) {
        self.0.notified().await
    }
}

/// Both halves of one stream.
pub struct Halves {
    pub reader: Reader,
    pub writer: Writer,
}

impl Halves {
    pub fn new(source: Source, sink: Sink) -> Self {
        Self {
            reader: Reader::new(source, Arc::default()),
            writer: Writer::new(sink, Arc::default()),
        }
    }
}

/// Halves that a copy waits for.
pub struct Taking {
    reader: Taken<Reader>,
    writer: Taken<Writer>,
}

impl Taking {
    /// As [`Writer::write_now`], where nothing is to be waited for.
    pub fn write_now(&mut self, data: &mut Bytes) {
        if let Taken::Now(writer) = &mut self.writer {
            writer.write_now(data);
        }
    }

    pub async fn halves(self) -> Result<Halves, Fault> {
        let reader = self.reader.half().await?;
        let writer = self.writer.half().await?;
        Ok(Halves { reader, writer })
    }
}

impl From<Halves> for Taking {
    fn from(halves: Halves) -> Self {
        Self {
            reader: Taken::Now(halves.reader),
            writer: Taken::Now(halves.writer),
        }
    }
}

/// A half that is on its way to a copy.
enum Taken<H> {
    Now(H),
    /// Once the calls made before are done.
    Later(oneshot::Receiver<H>),
}

impl<H> Taken<H> {
    async fn half(self) -> Result<H, Fault> {
        match self {
            Self::Now(half) => Ok(half),
            Self::Later(half) => half.await.map_err(|_| Fault::closed()),
        }
    }
}

impl<H, C> Lane<H, C> {
    fn new(half: H, on_drop: Arc<OnDrop>) -> Self {
        Self {
            on_drop,
            state: Mutex::new(State {
                phase: Phase::Idle(half),
                queue: VecDeque::new(),
            }),
        }
    }

    fn dead() -> Self {
        Self {
            on_drop: Arc::default(),
            state: Mutex::new(State {
                phase: Phase::Dead,
                queue: VecDeque::new(),
            }),
        }
    }

    /// Adds a call. `start` makes the task where none runs; a lane that is gone drops the call, which settles its promise.
    fn push(&self, call: C, start: impl FnOnce(H, C) -> AbortHandle) {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut state.phase, Phase::Dead) {
            Phase::Idle(half) => state.phase = Phase::Busy(start(half, call)),
            Phase::Busy(task) => {
                state.phase = Phase::Busy(task);
                state.queue.push_back(call);
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
        let call = state.queue.pop_front();
        if call.is_none() {
            state.phase = Phase::Idle(half);
            return None;
        }
        call.map(|call| (half, call))
    }

    /// Takes the half for a copy: at once where no call is under way, and without a task. `call` makes the call that waits for the others.
    fn take(&self, stop: &Arc<Stop>, call: impl FnOnce(oneshot::Sender<H>, Arc<Stop>) -> C) -> Taken<H> {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut state.phase, Phase::Dead) {
            Phase::Idle(half) => {
                state.phase = Phase::Spliced(stop.clone());
                Taken::Now(half)
            }
            phase => {
                let (to, half) = oneshot::channel();
                if matches!(phase, Phase::Busy(_)) {
                    state.queue.push_back(call(to, stop.clone()));
                }
                state.phase = phase;
                Taken::Later(half)
            }
        }
    }

    /// Hands the half to a copy; calls made after that are dropped.
    fn give(&self, half: H, to: oneshot::Sender<H>, stop: Arc<Stop>) {
        let mut state = lock(&self.state);
        if matches!(state.phase, Phase::Busy(_)) {
            state.phase = Phase::Spliced(stop);
            state.queue.clear();
            let _ = to.send(half); // a copy that gave up drops the half, and so aborts it
        }
    }

    /// Ends the lane now: the half is dropped wherever it is, calls under way are settled with `closed`.
    fn kill(&self) -> Option<H> {
        let mut state = lock(&self.state);
        state.queue.clear();
        match std::mem::replace(&mut state.phase, Phase::Dead) {
            Phase::Idle(half) => Some(half),
            Phase::Busy(task) => {
                task.abort();
                None
            }
            Phase::Spliced(stop) => {
                stop.stop();
                None
            }
            Phase::Dead => None,
        }
    }

    /// The half, where no call is under way. It goes back to its lane when it is dropped, unless that was ended meanwhile.
    fn lend(&self, stop: &Arc<Stop>) -> Option<Lent<'_, H, C>> {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut state.phase, Phase::Dead) {
            Phase::Idle(half) => {
                state.phase = Phase::Spliced(stop.clone());
                Some(Lent {
                    lane: self,
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
struct Lent<'a, H, C> {
    lane: &'a Lane<H, C>,
    half: Option<H>,
}

impl<H, C> Drop for Lent<'_, H, C> {
    fn drop(&mut self) {
        let mut state = lock(&self.lane.state);
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
            reading: Lane::new(reader, reader_drop),
            writing: Lane::new(writer, writer_drop),
        })
    }

    /// A stream that was over before anybody could use it.
    pub fn dead() -> Arc<Self> {
        Arc::new(Self {
            is_tcp: true,
            reading: Lane::dead(),
            writing: Lane::dead(),
        })
    }

    pub fn read(self: &Arc<Self>, runtime: &Handle, promise: Promise) {
        self.push_read(runtime, Read::Next(promise));
    }

    pub fn write(self: &Arc<Self>, runtime: &Handle, data: Bytes, promise: Promise) {
        self.push_write(runtime, Write::Data(data, promise));
    }

    pub fn close_write(self: &Arc<Self>, runtime: &Handle) {
        self.push_write(runtime, Write::Finish);
    }

    /// Takes both halves once the calls made before are done.
    pub fn take(&self, stop: &Arc<Stop>) -> Taking {
        Taking {
            reader: self.reading.take(stop, Read::Take),
            writer: self.writing.take(stop, Write::Take),
        }
    }

    /// Does `work` for the peer, and gives it up where the peer goes away meanwhile. `stop` is told where the stream is ended from here.
    pub async fn while_there<T>(&self, stop: &Arc<Stop>, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        let leaves = match self.is_tcp {
            true => None, // the reader tells of it
            false => self.writing.peek(Writer::leaves),
        };
        let mut lent = self.reading.lend(stop);
        let gone = async {
            match lent.as_mut().and_then(|lent| lent.half.as_mut()) {
                Some(reader) => reader.abandoned().await,
                None => std::future::pending().await,
            }
        };
        let left = async {
            match leaves {
                Some(leaves) => Fault::abandoned(&leaves.await.message),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            fault = gone => Err(fault),
            fault = left => Err(fault),
        }
    }

    /// Resolves when the peer resets the stream, also while nobody reads; `None` where the stream is in use, or has ended.
    pub fn reset_by_peer(&self) -> Option<impl Future<Output = Fault> + Send + 'static> {
        self.writing.peek(Writer::leaves)
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
            drop(self.reading.kill());
        }
        drop(self.writing.kill());
    }

    pub fn stop_read(&self, code: u32) {
        self.reading.on_drop.set_code(code);
        if !self.reading.is_spliced() {
            self.reading.on_drop.set_quiet();
        }
        drop(self.reading.kill());
    }

    /// Ends both directions in good order; a copy is aborted.
    pub fn close(self: &Arc<Self>, runtime: &Handle) {
        if self.reading.is_spliced() || self.writing.is_spliced() {
            return self.abort();
        }
        self.reading.on_drop.set_code(0);
        self.reading.on_drop.set_quiet();
        let reader = self.reading.kill();
        let writing = matches!(lock(&self.writing.state).phase, Phase::Busy(_));
        self.push_write(runtime, Write::Close(reader));
        if writing {
            let stream = self.clone();
            // not a timer in the task: a write that hangs is what it is for
            runtime.spawn(async move {
                tokio::time::sleep(FLUSH).await;
                drop(stream.writing.kill());
            });
        }
    }

    /// Ends both directions at once, as a reset.
    pub fn abort(&self) {
        drop(self.reading.kill());
        drop(self.writing.kill());
    }

    fn push_read(self: &Arc<Self>, runtime: &Handle, call: Read) {
        self.reading
            .push(call, |half, call| runtime.spawn(self.clone().work_reads(half, call)).abort_handle());
    }

    fn push_write(self: &Arc<Self>, runtime: &Handle, call: Write) {
        self.writing.push(call, |half, call| {
            runtime.spawn(self.clone().work_writes(half, call)).abort_handle()
        });
    }

    async fn work_reads(self: Arc<Self>, mut reader: Reader, mut call: Read) {
        let _guard = OnPanic(&self.reading);
        loop {
            match call {
                Read::Next(promise) => promise.settle(reader.read().await.map(|data| data.map_or(Js::Null, Js::Bytes))),
                Read::Take(to, stop) => return self.reading.give(reader, to, stop),
            }
            match self.reading.next(reader) {
                Some((half, next)) => (reader, call) = (half, next),
                None => return,
            }
        }
    }

    async fn work_writes(self: Arc<Self>, mut writer: Writer, mut call: Write) {
        let _guard = OnPanic(&self.writing);
        loop {
            match call {
                Write::Data(data, promise) => promise.settle(writer.write(data).await.map(|()| Js::Undefined)),
                Write::Finish => drop(writer.finish().await), // the next write tells what was wrong
                Write::Take(to, stop) => return self.writing.give(writer, to, stop),
                Write::Close(reader) => return close(writer, reader).await,
            }
            match self.writing.next(writer) {
                Some((half, next)) => (writer, call) = (half, next),
                None => return,
            }
        }
    }
}

/// Calls that wait behind one that panicked are settled too.
struct OnPanic<'a, H, C>(&'a Lane<H, C>);

impl<H, C> Drop for OnPanic<'_, H, C> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            drop(self.0.kill());
        }
    }
}

/// The good end of a stream: finish, and for TCP let the peer read it.
async fn close(mut writer: Writer, reader: Option<Reader>) {
    let finished = timeout(FLUSH, writer.finish()).await;
    let read_to_end = reader.as_ref().is_some_and(Reader::has_ended);
    if let (Ok(Ok(())), false, Some(tcp)) = (finished, read_to_end, writer.tcp()) {
        tcp.linger().await;
    }
}
