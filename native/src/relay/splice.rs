//! The copy between two streams: both ways at once, each direction with its own end, memory bounded by the windows, and no end that is
//! not one. After a tunnel is set up, this is all that touches its bytes.
use std::future::Future;
use std::pin::{pin, Pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout, timeout_at, Instant};

use crate::error::{NetError, NetErrorCode};
use crate::relay::budget::TunnelUsage;
use crate::relay::rate::RateLimiter;
use crate::stream::half::{ReadHalf, Reader, WriteHalf, Writer, RESET_CODE};
use crate::stream::read_buffer::ReadBuffer;
use crate::stream::tcp_socket::MAX_IO_SLICES;
use crate::stream::{CancelSignal, Halves, Handover};

/// How long a copy goes on after one end was reset, or takes no more. What was received before can still be delivered meanwhile: the last
/// bytes of an upload, or the answer to an upload that was refused. At most three copies carry a tunnel (lb, proxy, agent): after 2 s none is
/// left.
const GRACE_PERIOD: Duration = Duration::from_millis(500);

/// How long RESET_STREAM waits for what was written before it. QUIC drops what was not sent by then, and quinn does not tell when all is
/// sent.
const RESET_DELAY: Duration = Duration::from_millis(100);

/// How long a TCP peer that still sends is read, and ignored, before its socket is closed. With the grace before, less than 2 s.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// After so long in one write, the source is watched for a reset. Shorter writes cost nothing.
const BLOCKED_AFTER: Duration = Duration::from_millis(100);

/// For a client to read its answer before the first bytes of a server that speaks first.
const HEAD_START: Duration = Duration::from_millis(1);

/// Chunks taken at a time in a conversation; a download soon has more.
const INITIAL_CHUNKS: usize = 4;

/// Bytes in a QUIC packet, about.
const CHUNK_BYTES: usize = 1_200;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Side {
    A,
    B,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

#[derive(Debug)]
pub struct SpliceOutcome {
    pub a_to_b: u64,
    pub b_to_a: u64,
    pub error: Option<(NetError, Option<Side>)>,
}

/// What one direction has copied, and what holds it back.
struct ByteCounter<'a> {
    copied: AtomicU64,
    /// There is something to copy, and its turn has not come.
    waiting: AtomicBool,
    limiter: &'a RateLimiter,
    usage: &'a TunnelUsage,
    direction: Side,
}

impl<'a> ByteCounter<'a> {
    fn new(limiter: &'a RateLimiter, usage: &'a TunnelUsage, direction: Side) -> Self {
        Self {
            copied: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            limiter,
            usage,
            direction,
        }
    }

    async fn wait(&self, bytes: usize) {
        self.holds(bytes);
        if self.limiter.is_free() {
            return;
        }
        self.waiting.store(true, Ordering::Relaxed);
        Box::pin(self.limiter.take(bytes)).await; // apart: copies without a pace are to stay small
        self.waiting.store(false, Ordering::Relaxed);
    }

    /// `bytes` were read, and wait for the sink.
    fn holds(&self, bytes: usize) {
        self.usage.set_waiting(self.direction as usize, bytes);
    }

    fn clear_waiting(&self) {
        self.usage.clear_waiting(self.direction as usize);
    }

    /// `bytes` were written.
    fn count(&self, bytes: usize) {
        self.clear_waiting();
        self.copied.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

enum CopyError {
    /// Nothing more comes: what came so far is not all.
    Read(NetError),
    /// Nothing more is taken.
    Write(NetError),
}

/// Waits for the halves, then copies.
pub async fn run(
    halves: Box<(Handover, Handover)>,
    prologue_to_a: Bytes,
    idle: Option<Duration>,
    limiter: &RateLimiter,
    cancel: &CancelSignal,
) -> SpliceOutcome {
    // apart: what waits here is not to be as large as what copies
    let taken = Box::pin(async {
        let (a, b) = *halves;
        Ok((a.halves().await?, b.halves().await?))
    });
    let mut taken = tokio::select! {
        taken = taken => taken,
        () = cancel.cancelled() => Err(NetError::cancelled()),
    };
    match &mut taken {
        Ok((a, b)) => splice(a, b, prologue_to_a, idle, limiter, cancel).await,
        Err(error) => SpliceOutcome {
            a_to_b: 0,
            b_to_a: 0,
            error: Some((error.clone(), None)),
        },
    }
}

/// How a copy ended.
enum End {
    /// Both directions have ended in good order.
    Complete,
    /// This side has ended its direction, and takes no more: its peer closed the stream, which is no fault.
    Closed(Side),
    Broken(NetError, Option<Side>),
}

/// When the grace of a copy is over, once it has begun.
type Grace = Option<Instant>;

/// Copies until both directions have ended, or one end is gone. Halves that have not ended are reset when they are dropped.
async fn splice(
    a: &mut Halves,
    b: &mut Halves,
    prologue_to_a: Bytes,
    idle: Option<Duration>,
    limiter: &RateLimiter,
    cancel: &CancelSignal,
) -> SpliceOutcome {
    let usage = TunnelUsage::new([a.reader.stream(), b.reader.stream()].into_iter().flatten().collect());
    let (a_to_b, b_to_a) = (
        ByteCounter::new(limiter, &usage, Side::A),
        ByteCounter::new(limiter, &usage, Side::B),
    );
    let mut grace = None;
    let end = copy_both(a, b, prologue_to_a, idle, (&a_to_b, &b_to_a), cancel, &mut grace).await;
    tokio::select! {
        () = Box::pin(deliver_rest(&end, a, b, grace)) => {}
        () = cancel.cancelled() => {}
    }
    match &end {
        End::Complete => {}
        End::Closed(side) => {
            let (from, to) = match side {
                Side::A => (&*a, &*b),
                Side::B => (&*b, &*a),
            };
            from.writer.on_drop().set_code(0);
            to.reader.on_drop().set_code(0);
            to.reader.on_drop().set_finish_on_drop(); // all that was written has arrived, or had its time
        }
        End::Broken(error, _) => {
            if let Some(code) = error.app_code.and_then(|code| u32::try_from(code).ok()) {
                for half in [a.reader.on_drop(), b.reader.on_drop(), a.writer.on_drop(), b.writer.on_drop()] {
                    half.set_code(code);
                }
            }
        }
    }
    SpliceOutcome {
        a_to_b: a_to_b.copied.into_inner(),
        b_to_a: b_to_a.copied.into_inner(),
        error: match end {
            End::Broken(error, side) => Some((error, side)),
            _ => None,
        },
    }
}

/// Waits until what was written has arrived: to the end where the sinks have ended, within the grace before a reset.
async fn deliver_rest(end: &End, a: &Halves, b: &Halves, grace: Grace) {
    match end {
        End::Complete => drop(tokio::join!(received(&a.writer), received(&b.writer))),
        End::Closed(Side::A) => closed(&b.writer).await,
        End::Closed(Side::B) => closed(&a.writer).await,
        End::Broken(_, None) => {} // cancelled, or idle for too long
        End::Broken(_, Some(side)) => {
            let to = match side {
                Side::A => &b.writer,
                Side::B => &a.writer,
            };
            let until = grace.unwrap_or_else(|| Instant::now() + GRACE_PERIOD);
            let _ = timeout_at(until, to.sent(RESET_DELAY)).await; // what a sink has not taken by then is lost
        }
    }
}

/// Runs both directions. Each notices a reset of its source; sinks that wait for something to write are watched here.
async fn copy_both(
    a: &mut Halves,
    b: &mut Halves,
    prologue_to_a: Bytes,
    idle: Option<Duration>,
    (a_to_b, b_to_a): (&ByteCounter<'_>, &ByteCounter<'_>),
    cancel: &CancelSignal,
    until: &mut Grace,
) -> End {
    let (a_stopped, b_stopped) = (a.writer.stopped_by_peer(), b.writer.stopped_by_peer());
    // TCP has no STOP_SENDING, and the direction that reads from it tells of a reset until it has ended
    let (a_sends_stop, b_sends_stop) = (a.writer.tcp().is_none(), b.writer.tcp().is_none());
    let greeted = (!a_sends_stop).then_some(a_to_b);
    let up = copy_direction(&mut a.reader, &mut b.writer, Bytes::new(), a_to_b, None);
    let down = copy_direction(&mut b.reader, &mut a.writer, prologue_to_a, b_to_a, greeted);
    let idle_watch = watch_idle(idle, a_to_b, b_to_a);
    let cut = a_to_b.usage.is_cut();
    let grace = sleep(Duration::MAX);
    tokio::pin!(up, down, a_stopped, b_stopped, idle_watch, cut, grace);
    let mut ends = TunnelEnds::default();
    loop {
        let (up_done, down_done) = (ends.done[0], ends.done[1]);
        let over = tokio::select! {
            biased;
            result = &mut up, if !up_done => ends.ended(Side::A, result),
            result = &mut down, if !down_done => ends.ended(Side::B, result),
            error = &mut a_stopped, if ends.stopped[0].is_none() && !down_done && (up_done || a_sends_stop) => ends.stopped(Side::A, error),
            error = &mut b_stopped, if ends.stopped[1].is_none() && !up_done && (down_done || b_sends_stop) => ends.stopped(Side::B, error),
            error = &mut idle_watch => Some(End::Broken(error, None)),
            () = cancel.cancelled() => Some(End::Broken(NetError::cancelled(), None)),
            error = &mut cut => Some(End::Broken(error, None)),
            () = &mut grace, if until.is_some() => Some(ends.after_grace()),
        };
        if let Some(end) = over {
            return end;
        }
        if until.is_none() && ends.has_grace() {
            let at = Instant::now() + GRACE_PERIOD;
            *until = Some(at);
            grace.as_mut().reset(at);
        }
    }
}

/// What is known of the ends of a copy while it goes on.
#[derive(Default)]
struct TunnelEnds {
    /// Directions that are over, by the side that they come from.
    done: [bool; 2],
    /// Why a side takes no more, although nothing is being written to it.
    stopped: [Option<NetError>; 2],
    /// The first sink that failed.
    failed: Option<(NetError, Side)>,
}

impl TunnelEnds {
    /// A direction is over. `Some` where the copy is.
    fn ended(&mut self, from: Side, result: Result<(), CopyError>) -> Option<End> {
        self.done[from as usize] = true;
        let to = from.other();
        match result {
            Ok(()) => {}
            Err(CopyError::Read(error)) => return Some(self.broken(error, from)),
            // what still came for a peer that had closed its stream is nothing that it misses
            Err(CopyError::Write(error)) if error.is_close() && self.done[to as usize] && self.failed.is_none() => {
                return Some(End::Closed(to))
            }
            Err(CopyError::Write(error)) => self.failed = self.failed.take().or(Some((error, to))),
        }
        if self.done != [true, true] {
            return self.gone(from);
        }
        Some(match self.failed.take() {
            None => End::Complete,
            Some((error, side)) => End::Broken(error, Some(side)),
        })
    }

    /// A side takes no more. `Some` where that ends the copy.
    fn stopped(&mut self, side: Side, error: NetError) -> Option<End> {
        self.stopped[side as usize] = Some(error);
        self.gone(side)
    }

    /// A side that was reset, and whose direction is over, has neither something to say nor to hear.
    fn gone(&mut self, side: Side) -> Option<End> {
        let error = self.stopped[side as usize].as_ref()?;
        if !self.done[side as usize] || error.is_close() {
            return None;
        }
        let error = error.clone();
        Some(self.broken(error, side))
    }

    /// Whether the copy is to end soon.
    fn has_grace(&self) -> bool {
        let must_end = |side: Side| {
            let done = self.done[side as usize];
            self.stopped[side as usize].as_ref().is_some_and(|error| done || !error.is_close())
        };
        self.failed.is_some() || must_end(Side::A) || must_end(Side::B)
    }

    fn after_grace(&mut self) -> End {
        let [a, b] = std::mem::take(&mut self.stopped).map(|stopped| stopped.filter(|error| !error.is_close()));
        let first = self
            .failed
            .take()
            .or(a.map(|error| (error, Side::A)))
            .or(b.map(|error| (error, Side::B)));
        match first {
            Some((error, side)) => End::Broken(error, Some(side)),
            None if self.done[Side::A as usize] => End::Closed(Side::A),
            None => End::Closed(Side::B),
        }
    }

    /// What failed first is the reason.
    fn broken(&mut self, error: NetError, side: Side) -> End {
        let (error, side) = self.failed.take().unwrap_or((error, side));
        End::Broken(error, Some(side))
    }
}

/// One direction, to its end. The sink is finished when the source is. A sink that fails stops its source at once.
async fn copy_direction(
    reader: &mut Reader,
    writer: &mut Writer,
    prologue: Bytes,
    counter: &ByteCounter<'_>,
    greeted: Option<&ByteCounter<'_>>,
) -> Result<(), CopyError> {
    let result = copy(reader, writer, prologue, counter, greeted).await;
    if let (Err(CopyError::Write(error)), ReadHalf::Quic(stream)) = (&result, &mut reader.half) {
        let code = if error.is_close() { 0 } else { RESET_CODE };
        let _ = stream.stop(quinn::VarInt::from_u32(code)); // fails where it has ended
    }
    result
}

async fn copy(
    reader: &mut Reader,
    writer: &mut Writer,
    mut prologue: Bytes,
    counter: &ByteCounter<'_>,
    greeted: Option<&ByteCounter<'_>>,
) -> Result<(), CopyError> {
    let mut reset = None;
    if let Some(up) = greeted {
        let greeting = std::mem::take(&mut prologue);
        counter.holds(greeting.len());
        deliver(reader, pin!(writer.write(greeting)), &mut reset).await?;
        counter.clear_waiting();
        Box::pin(give_head_start(reader, up)).await?; // apart: copies are to stay small
        if reader.prefix.is_empty() {
            return deliver(reader, pin!(writer.finish()), &mut reset).await;
        }
    }
    let prefix = std::mem::take(&mut reader.prefix);
    let bytes = prefix.len();
    let write = async {
        counter.wait(bytes).await;
        writer.write_chunks(&mut [prologue, prefix]).await
    };
    deliver(reader, pin!(write), &mut reset).await?;
    counter.count(bytes);
    match (&reader.half, &writer.half) {
        (ReadHalf::Quic(_), WriteHalf::Tcp(_)) => copy_chunks(reader, writer, counter, &mut reset).await?,
        _ => copy_buffers(reader, writer, counter, &mut reset).await?,
    }
    deliver(reader, pin!(writer.finish()), &mut reset).await
}

/// Reads what the source says first, and holds it back where the client may not have read its answer yet: many clients lose what they read
/// in one go with it. A client that has sent bytes of its own, with its head or since, gets the server's answer at once: only what a server
/// says unasked waits.
async fn give_head_start(reader: &mut Reader, up: &ByteCounter<'_>) -> Result<(), CopyError> {
    let greeted_at = Instant::now();
    if reader.prefix.is_empty() {
        reader.prefix = reader.read().await.map_err(CopyError::Read)?.unwrap_or_default();
    }
    if up.copied.load(Ordering::Relaxed) == 0 && greeted_at.elapsed() < HEAD_START {
        sleep(HEAD_START).await;
    }
    Ok(())
}

/// Why the source was reset, and how long what came before can still be delivered.
type SourceReset = Option<(NetError, Instant)>;

/// Completes `write`, and notices meanwhile when the source is reset: then the sink has a moment for what was read before.
async fn deliver(
    reader: &mut Reader,
    mut write: Pin<&mut impl Future<Output = Result<(), NetError>>>,
    reset: &mut SourceReset,
) -> Result<(), CopyError> {
    if reset.is_none() {
        tokio::select! {
            biased;
            written = &mut write => return written.map_err(CopyError::Write),
            error = async { sleep(BLOCKED_AFTER).await; reader.reset().await } => *reset = Some((error, Instant::now() + GRACE_PERIOD)),
        }
    }
    let Some((error, until)) = reset else { return Ok(()) };
    match Box::pin(timeout_at(*until, write)).await {
        Ok(written) => written.map_err(CopyError::Write),
        Err(_) => Err(CopyError::Read(error.clone())),
    }
}

async fn copy_chunks(
    reader: &mut Reader,
    writer: &mut Writer,
    counter: &ByteCounter<'_>,
    reset: &mut SourceReset,
) -> Result<(), CopyError> {
    let mut chunks = Vec::new();
    let limit = counter
        .limiter
        .quantum()
        .map_or(MAX_IO_SLICES, |bytes| (bytes / CHUNK_BYTES).clamp(1, MAX_IO_SLICES));
    let few = INITIAL_CHUNKS.min(limit);
    let mut most = few;
    while let Some(n) = reader.read_chunks(&mut chunks, most).await.map_err(CopyError::Read)? {
        let bytes: usize = chunks[..n].iter().map(Bytes::len).sum();
        let write = async {
            counter.wait(bytes).await;
            writer.write_chunks(&mut chunks[..n]).await
        };
        deliver(reader, pin!(write), reset).await?;
        counter.count(bytes);
        reader.drained(bytes);
        let limit = limit.min(reader.batch() * n / bytes.max(1)).max(few);
        if n == most {
            most = (2 * most).min(limit);
        } else if n == 1 && most > few {
            (most, chunks) = (few, Vec::new());
        }
    }
    Ok(())
}

async fn copy_buffers(
    reader: &mut Reader,
    writer: &mut Writer,
    counter: &ByteCounter<'_>,
    reset: &mut SourceReset,
) -> Result<(), CopyError> {
    let mut buffer = counter.limiter.quantum().map_or_else(ReadBuffer::default, ReadBuffer::new);
    loop {
        let room = async {
            counter.holds(0);
            buffer.limit(writer.room().await);
            counter.clear_waiting();
            Ok(())
        };
        deliver(reader, pin!(room), reset).await?;
        let Some(data) = reader.read_with(&mut buffer).await.map_err(CopyError::Read)? else {
            return Ok(());
        };
        let bytes = data.len();
        let write = async {
            counter.wait(bytes).await;
            writer.write(data).await
        };
        deliver(reader, pin!(write), reset).await?;
        counter.count(bytes);
        reader.drained(bytes);
    }
}

/// Resolves when a peer whose direction is cut short has what was written: a socket that is closed while there is something to read is reset, and
/// its peer may lose the rest of an answer (RFC 9112 §9.6).
async fn closed(writer: &Writer) {
    let Some(tcp) = writer.tcp() else { return received(writer).await };
    let both = async { tokio::join!(writer.sent(RESET_DELAY), tcp.linger()) };
    let _ = timeout(LINGER_TIMEOUT, both).await; // what it has not taken by then is lost
}

/// Resolves when a QUIC peer has all, or never will: until then, closing the connection would cut off what is still under way.
async fn received(writer: &Writer) {
    if let WriteHalf::Quic(stream, _) = &writer.half {
        let _ = stream.stopped().await; // a connection that is lost says so itself
    }
}

/// Resolves once nothing was copied for `limit`.
async fn watch_idle(limit: Option<Duration>, a_to_b: &ByteCounter<'_>, b_to_a: &ByteCounter<'_>) -> NetError {
    let Some(limit) = limit else { return std::future::pending().await };
    let copied = || a_to_b.copied.load(Ordering::Relaxed) + b_to_a.copied.load(Ordering::Relaxed);
    let waiting = || a_to_b.waiting.load(Ordering::Relaxed) || b_to_a.waiting.load(Ordering::Relaxed);
    let (mut seen, mut since) = (copied(), Instant::now());
    loop {
        // late by an eighth at most, and no timer is touched for every packet
        sleep((limit / 8).max(Duration::from_millis(1))).await;
        if copied() != seen || waiting() {
            (seen, since) = (copied(), Instant::now());
        } else if since.elapsed() >= limit {
            return NetError::new(NetErrorCode::TimedOut, format!("Nothing was copied for {} ms", limit.as_millis()));
        }
    }
}
