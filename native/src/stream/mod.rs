//! A stream as JavaScript holds it: two queues of calls, one for each half.
pub mod buffered;
pub mod deferral;
mod op_queue;
pub mod read_buffer;
pub mod reader;
pub mod reset_on_drop;
pub mod stdio;
pub mod tcp_socket;
pub mod tls_transport;
pub mod udp_peer;
pub mod window_growth;
pub mod writer;

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::addon::completion_queue::{Promise, Value};
use crate::error::NetError;
use crate::relay::budget::{Relayed, TunnelUsage};
pub use op_queue::CancelSignal;
use op_queue::{OnPanic, OpQueue, TakenHalf};
use read_buffer::ReadBuffer;
use reader::{ReadHalf, Reader};
use writer::{WriteHalf, Writer};

/// Most bytes that one read of JavaScript returns.
const LARGEST_READ: usize = 64 << 10;
/// Maximum time that `close` spends on flushing writes.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Stream {
    /// A reset ends both directions.
    resets_both: bool,
    /// How large the reads of JavaScript have become.
    read_size: AtomicUsize,
    reading: OpQueue<Box<Reader>, ReadOp>,
    writing: OpQueue<Box<Writer>, WriteOp>,
}

enum ReadOp {
    Next(Promise),
    Unread(Bytes),
    Take(oneshot::Sender<Box<Reader>>, Arc<CancelSignal>),
}

enum WriteOp {
    Data(Bytes, Promise),
    Finish,
    Close(Option<Box<Reader>>),
    Take(oneshot::Sender<Box<Writer>>, Arc<CancelSignal>),
}

/// Both halves of one stream. Boxed: they change hands often, and a stream whose halves a splice has taken is small.
pub struct Halves {
    pub reader: Box<Reader>,
    pub writer: Box<Writer>,
}

impl Halves {
    pub fn new(read_half: ReadHalf, write_half: WriteHalf) -> Self {
        Self {
            reader: Box::new(Reader::new(read_half, Arc::default())),
            writer: Box::new(Writer::new(write_half, Arc::default())),
        }
    }
}

/// Halves that are being handed over to a splice.
pub struct Handover {
    reader: TakenHalf<Box<Reader>>,
    writer: TakenHalf<Box<Writer>>,
}

impl Handover {
    /// As [`Writer::write_now`], if the writer is available.
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

impl Stream {
    pub fn new(halves: Halves) -> Arc<Self> {
        let Halves { reader, writer } = halves;
        let (reader_drop, writer_drop) = (reader.on_drop().clone(), writer.on_drop().clone());
        let resets_both = writer.resets_both();
        Arc::new(Self {
            resets_both,
            read_size: AtomicUsize::new(0),
            reading: OpQueue::new(reader, reader_drop),
            writing: OpQueue::new(writer, writer_drop),
        })
    }

    /// A stream that had ended before JavaScript received it.
    pub fn dead() -> Arc<Self> {
        Arc::new(Self {
            resets_both: true,
            read_size: AtomicUsize::new(0),
            reading: OpQueue::dead(),
            writing: OpQueue::dead(),
        })
    }

    pub fn read(self: &Arc<Self>, runtime: &Handle, promise: Promise) {
        self.push_read(runtime, ReadOp::Next(promise));
    }

    /// Puts bytes back, to be read next.
    pub fn unread(self: &Arc<Self>, runtime: &Handle, data: Bytes) {
        self.push_read(runtime, ReadOp::Unread(data));
    }

    pub fn write(self: &Arc<Self>, runtime: &Handle, data: Bytes, promise: Promise) {
        self.push_write(runtime, WriteOp::Data(data, promise));
    }

    pub fn close_write(self: &Arc<Self>, runtime: &Handle) {
        self.push_write(runtime, WriteOp::Finish);
    }

    /// Takes both halves after the pending operations have completed.
    pub fn take(&self, cancel: &Arc<CancelSignal>) -> Handover {
        Handover {
            reader: self.reading.take(cancel, ReadOp::Take),
            writer: self.writing.take(cancel, WriteOp::Take),
        }
    }

    /// Runs `work`, and fails when the peer disconnects meanwhile. `cancel` is signalled when the stream is ended locally.
    pub async fn while_connected<T>(
        &self,
        cancel: &Arc<CancelSignal>,
        work: impl Future<Output = Result<T, NetError>>,
    ) -> Result<T, NetError> {
        let stopped_by_peer = match self.resets_both {
            true => None, // the reader reports it
            false => self.writing.peek(|writer| writer.stopped_by_peer()),
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

    /// Resolves when the peer resets the stream, even if nothing reads. `None` if the stream is in use or has ended.
    pub fn reset_by_peer(&self) -> Option<impl Future<Output = NetError> + Send + 'static> {
        self.writing.peek(|writer| writer.stopped_by_peer())
    }

    /// The counters of the splice that uses this stream. `None` without one.
    pub fn relayed(&self) -> Option<Relayed> {
        self.reading.splice()?.usage().map(TunnelUsage::relayed)
    }

    pub fn reset(&self, code: u32) {
        self.writing.on_drop.set_code(code);
        if self.writing.is_spliced() {
            self.reading.on_drop.set_code(code);
        }
        if self.resets_both {
            // set before either half is dropped, as a task may drop it later
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

    /// Closes both directions gracefully; resets a stream that is being spliced.
    pub fn close(self: &Arc<Self>, runtime: &Handle) {
        if self.reading.is_spliced() || self.writing.is_spliced() {
            return self.abort();
        }
        self.reading.on_drop.set_code(0);
        self.reading.on_drop.set_finish_on_drop();
        let reader = self.reading.abort();
        let writing = self.writing.is_busy();
        self.push_write(runtime, WriteOp::Close(reader));
        if writing {
            let stream = self.clone();
            // not in the writing task: the timer is for a write that hangs
            runtime.spawn(async move {
                tokio::time::sleep(FLUSH_TIMEOUT).await;
                drop(stream.writing.abort());
            });
        }
    }

    /// Resets both directions.
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

    async fn run_reads(self: Arc<Self>, mut reader: Box<Reader>, mut op: ReadOp) {
        let _guard = OnPanic(&self.reading);
        loop {
            match op {
                ReadOp::Next(promise) => {
                    let mut buffer = ReadBuffer::resume(LARGEST_READ, self.read_size.load(Ordering::Relaxed));
                    let data = reader.read_with(&mut buffer).await;
                    self.read_size.store(buffer.size(), Ordering::Relaxed);
                    promise.settle(data.map(|data| data.map_or(Value::Null, Value::Bytes)));
                }
                ReadOp::Unread(data) => reader.unread(&data),
                ReadOp::Take(to, cancel) => return self.reading.hand_over(reader, to, cancel),
            }
            match self.reading.next(reader) {
                Some((half, next)) => (reader, op) = (half, next),
                None => return,
            }
        }
    }

    async fn run_writes(self: Arc<Self>, mut writer: Box<Writer>, mut op: WriteOp) {
        let _guard = OnPanic(&self.writing);
        loop {
            match op {
                WriteOp::Data(data, promise) => promise.settle(writer.write(data).await.map(|()| Value::Undefined)),
                WriteOp::Finish => drop(writer.finish().await), // the next write reports the error
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

/// Finishes the stream. A TCP peer gets time to read what was sent.
async fn close(mut writer: Box<Writer>, reader: Option<Box<Reader>>) {
    let finished = timeout(FLUSH_TIMEOUT, writer.finish()).await;
    let read_to_end = reader.as_ref().is_some_and(|reader| reader.has_ended());
    if let (Ok(Ok(())), false, Some(tcp)) = (finished, read_to_end, writer.tcp()) {
        tcp.linger().await;
    }
}
