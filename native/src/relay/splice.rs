//! Relays data between two streams, both directions concurrently, and counts it. Each direction ends on its own, memory is bounded by the
//! windows, and a truncated stream never looks complete. Once a tunnel is set up, only this code touches its data.
use std::future::{pending, poll_fn, Future};
use std::pin::{pin, Pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, sleep_until, timeout, timeout_at, Instant, Sleep};

use super::ends::{CopyError, End, Side, TunnelEnds};
use crate::error::{NetError, NetErrorCode};
use crate::relay::budget::TunnelUsage;
use crate::relay::rate::RateLimiter;
use crate::stream::read_buffer::ReadBuffer;
use crate::stream::reader::{ReadHalf, Reader};
use crate::stream::reset_on_drop::RESET_CODE;
use crate::stream::tcp_socket::MAX_IO_SLICES;
use crate::stream::writer::{WriteHalf, Writer};
use crate::stream::{CancelSignal, Halves, Handover};

/// How long a splice continues after one side was reset or stopped reading, to deliver data received before: the end of an upload, or the
/// response to a rejected one. A tunnel passes at most three splices (lb, proxy, agent), so it ends within 2 s.
const GRACE_PERIOD: Duration = Duration::from_millis(500);

/// How long to delay RESET_STREAM after a write. QUIC discards unsent data on reset, and quinn does not report when all is sent.
const RESET_DELAY: Duration = Duration::from_millis(100);

/// How long data of a TCP peer that still sends is read and discarded before its socket is closed. Together with the grace period, less
/// than 2 s.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// If a write takes longer than this, the source is watched for a reset. Shorter writes have no overhead.
const BLOCKED_AFTER: Duration = Duration::from_millis(100);

/// Delay before the first bytes of a server that speaks first, so that the client can read its response on its own.
const HEAD_START: Duration = Duration::from_millis(1);

/// Chunks per read at first; the number grows for bulk data.
const INITIAL_CHUNKS: usize = 4;

/// Approximate bytes per QUIC chunk.
const CHUNK_BYTES: usize = 1_200;

#[derive(Debug)]
pub struct SpliceOutcome {
    pub a_to_b: u64,
    pub b_to_a: u64,
    /// Datagrams of peers that were dropped because they were not read.
    pub dropped: u64,
    pub error: Option<(NetError, Option<Side>)>,
}

/// Counts the bytes of one direction and applies its limits.
pub(super) struct ByteCounter<'a> {
    /// Data waits for the rate limiter.
    waiting: AtomicBool,
    limiter: &'a RateLimiter,
    usage: &'a TunnelUsage,
    direction: Side,
}

impl<'a> ByteCounter<'a> {
    pub(super) fn new(limiter: &'a RateLimiter, usage: &'a TunnelUsage, direction: Side) -> Self {
        Self {
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
        Box::pin(self.limiter.take(bytes)).await; // boxed: splices without a limit stay small
        self.waiting.store(false, Ordering::Relaxed);
    }

    /// Reports that `bytes` bytes were read and wait for the sink.
    pub(super) fn holds(&self, bytes: usize) {
        self.usage.set_waiting(self.direction as usize, bytes);
    }

    pub(super) fn clear_waiting(&self) {
        self.usage.clear_waiting(self.direction as usize);
    }

    /// Reports that `bytes` bytes, all that waited, were written.
    fn count(&self, bytes: usize) {
        self.clear_waiting();
        self.add(bytes);
    }

    /// Reports that `bytes` bytes were written, and others may wait.
    pub(super) fn add(&self, bytes: usize) {
        self.usage.add_copied(self.direction as usize, bytes);
    }

    fn copied(&self) -> u64 {
        self.usage.copied(self.direction as usize)
    }
}

/// Waits for the halves, then relays.
pub async fn run(
    halves: Box<(Handover, Handover)>,
    prologue_to_a: Bytes,
    idle: Option<Duration>,
    limiter: &RateLimiter,
    cancel: &CancelSignal,
) -> SpliceOutcome {
    // boxed: the task should not be larger than the splice needs
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
            dropped: 0,
            error: Some((error.clone(), None)),
        },
    }
}

/// End of the grace period, once it has begun.
type Grace = Option<Instant>;

/// Relays until both directions have ended or one side has failed. Halves that have not ended are reset when they are dropped.
async fn splice(
    a: &mut Halves,
    b: &mut Halves,
    prologue_to_a: Bytes,
    idle: Option<Duration>,
    limiter: &RateLimiter,
    cancel: &CancelSignal,
) -> SpliceOutcome {
    let usage = TunnelUsage::new(a.reader.buffered().chain(b.reader.buffered()).collect());
    cancel.began(&usage);
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
            to.reader.on_drop().set_finish_on_drop(); // the data has arrived, or had its time
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
        a_to_b: a_to_b.copied(),
        b_to_a: b_to_a.copied(),
        dropped: a.reader.dropped_datagrams() + b.reader.dropped_datagrams(),
        error: match end {
            End::Broken(error, side) => Some((error, side)),
            _ => None,
        },
    }
}

/// Waits until the data written has arrived: without limit if both directions have ended, within the grace period before a reset.
async fn deliver_rest(end: &End, a: &Halves, b: &Halves, grace: Grace) {
    match end {
        End::Complete => drop(tokio::join!(received(&a.writer), received(&b.writer))),
        End::Closed(Side::A) => closed(&b.writer).await,
        End::Closed(Side::B) => closed(&a.writer).await,
        End::Broken(_, None) => {} // cancelled, closed or idle
        End::Broken(_, Some(side)) => {
            let to = match side {
                Side::A => &b.writer,
                Side::B => &a.writer,
            };
            let until = grace.unwrap_or_else(|| Instant::now() + GRACE_PERIOD);
            let _ = timeout_at(until, to.wait_sent(RESET_DELAY)).await; // what is not sent by then is lost
        }
    }
}

/// Runs both directions. Each notices a reset of its source; a sink that has nothing to write is watched here.
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
    // TCP has no STOP_SENDING, and the direction that reads from it reports a reset until it has ended
    let (a_sends_stop, b_sends_stop) = (a.writer.tcp().is_none(), b.writer.tcp().is_none());
    let greeted = (!a_sends_stop).then_some(a_to_b);
    let up = copy_direction(&mut a.reader, &mut b.writer, Bytes::new(), a_to_b, None);
    let down = copy_direction(&mut b.reader, &mut a.writer, prologue_to_a, b_to_a, greeted);
    let idle_watch = async {
        match idle {
            Some(limit) => Box::pin(watch_idle(limit, a_to_b, b_to_a)).await,
            None => pending().await,
        }
    };
    let cut = a_to_b.usage.is_cut();
    let mut grace = None;
    tokio::pin!(up, down, a_stopped, b_stopped, idle_watch, cut);
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
            () = expired(&mut grace) => Some(ends.after_grace()),
        };
        if let Some(end) = over {
            return end;
        }
        if until.is_none() && ends.has_grace() {
            let at = Instant::now() + GRACE_PERIOD;
            *until = Some(at);
            grace = Some(Box::pin(sleep_until(at)));
        }
    }
}

/// Resolves when the timer has expired. Does not resolve without one.
async fn expired(timer: &mut Option<Pin<Box<Sleep>>>) {
    match timer {
        Some(timer) => timer.await,
        None => pending().await,
    }
}

/// Relays one direction until its end, then finishes the sink. If the sink fails, its source is stopped at once.
async fn copy_direction(
    reader: &mut Reader,
    writer: &mut Writer,
    prologue: Bytes,
    counter: &ByteCounter<'_>,
    greeted: Option<&ByteCounter<'_>>,
) -> Result<(), CopyError> {
    let result = copy(reader, writer, prologue, counter, greeted).await;
    counter.usage.end(counter.direction as usize);
    if let Err(CopyError::Write(error)) = &result {
        let code = if error.is_close() { 0 } else { RESET_CODE };
        match &mut reader.half {
            ReadHalf::Quic(stream) => drop(stream.stop(code.into())), // fails if it has ended
            ReadHalf::TlsLink(stream) => stream.stop(code),
            ReadHalf::Tcp(_) | ReadHalf::Tls(..) | ReadHalf::Udp(_) | ReadHalf::Http2(_) | ReadHalf::Stdio(_) => {}
        }
    }
    result
}

async fn copy(
    reader: &mut Reader,
    writer: &mut Writer,
    prologue: Bytes,
    counter: &ByteCounter<'_>,
    greeted: Option<&ByteCounter<'_>>,
) -> Result<(), CopyError> {
    let mut reset = None;
    // boxed, as are the rare cases below: what is idle stays small
    if Box::pin(begin(reader, writer, prologue, counter, greeted, &mut reset)).await? {
        match (&reader.half, &writer.half) {
            (ReadHalf::Quic(_) | ReadHalf::TlsLink(_), WriteHalf::Tcp(_)) => copy_chunks(reader, writer, counter, &mut reset).await?,
            #[cfg(target_os = "linux")]
            (ReadHalf::Tcp(_), WriteHalf::Tcp(_)) if counter.limiter.is_free() => {
                Box::pin(copy_tcp(reader, writer, counter, &mut reset)).await?;
            }
            _ => {
                copy_buffers(reader, writer, counter, &mut reset, usize::MAX).await?;
            }
        }
    }
    deliver(reader, pin!(writer.finish()), &mut reset).await
}

/// Writes the prologue and what was read before. Returns whether the direction goes on.
async fn begin(
    reader: &mut Reader,
    writer: &mut Writer,
    mut prologue: Bytes,
    counter: &ByteCounter<'_>,
    greeted: Option<&ByteCounter<'_>>,
    reset: &mut SourceReset,
) -> Result<bool, CopyError> {
    if let Some(up) = greeted {
        let greeting = std::mem::take(&mut prologue);
        counter.holds(greeting.len());
        deliver(reader, pin!(writer.write(greeting)), reset).await?;
        counter.clear_waiting();
        give_head_start(reader, up).await?;
        if reader.prefix.is_empty() {
            return Ok(false);
        }
    }
    let prefix = std::mem::take(&mut reader.prefix);
    let bytes = prefix.len();
    let write = async {
        counter.wait(bytes).await;
        writer.write_chunks(&mut [prologue, prefix]).await
    };
    deliver(reader, pin!(write), reset).await?;
    counter.count(bytes);
    Ok(true)
}

/// Reads the first bytes of the source and delays them if the client may not have read its response yet: many clients lose data that they
/// read together with it. Only a server that speaks first is delayed, not the response to bytes of the client.
async fn give_head_start(reader: &mut Reader, up: &ByteCounter<'_>) -> Result<(), CopyError> {
    let greeted_at = Instant::now();
    if reader.prefix.is_empty() {
        reader.prefix = reader.read().await.map_err(CopyError::Read)?.unwrap_or_default();
    }
    if up.copied() == 0 && greeted_at.elapsed() < HEAD_START {
        sleep(HEAD_START).await;
    }
    Ok(())
}

/// Why the source was reset, and until when data received before can be delivered.
pub(super) type SourceReset = Option<(NetError, Instant)>;

/// Completes `write` and watches the source for a reset meanwhile; then the sink gets the grace period for data read before.
pub(super) async fn deliver(
    reader: &mut Reader,
    mut write: Pin<&mut impl Future<Output = Result<(), NetError>>>,
    reset: &mut SourceReset,
) -> Result<(), CopyError> {
    // most writes complete at once
    if let Poll::Ready(written) = poll_fn(|context| Poll::Ready(write.as_mut().poll(context))).await {
        return written.map_err(CopyError::Write);
    }
    Box::pin(deliver_blocked(reader, write, reset)).await // boxed: splices stay small
}

async fn deliver_blocked(
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
    match timeout_at(*until, write).await {
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
    let mut max = few;
    while let Some(n) = reader.read_chunks(&mut chunks, max).await.map_err(CopyError::Read)? {
        let bytes: usize = chunks[..n].iter().map(Bytes::len).sum();
        let write = async {
            counter.wait(bytes).await;
            writer.write_chunks(&mut chunks[..n]).await
        };
        deliver(reader, pin!(write), reset).await?;
        counter.count(bytes);
        reader.drained(bytes);
        let limit = limit.min(reader.batch() * n / bytes.max(1)).max(few);
        if n == max {
            max = (2 * max).min(limit);
        } else if n == 1 && max > few {
            (max, chunks) = (few, Vec::new());
        }
    }
    Ok(())
}

/// Relays small traffic through memory and bulk data through the kernel.
#[cfg(target_os = "linux")]
async fn copy_tcp(reader: &mut Reader, writer: &mut Writer, counter: &ByteCounter<'_>, reset: &mut SourceReset) -> Result<(), CopyError> {
    use super::kernel_splice::{copy, Pause, BULK};
    let mut bulk = BULK;
    while copy_buffers(reader, writer, counter, reset, bulk).await? == Copied::Bulk {
        // boxed, as few tunnels need it
        if Box::pin(copy(reader, writer, counter, reset)).await? == Pause::Unavailable {
            bulk = usize::MAX;
        }
    }
    Ok(())
}

#[derive(PartialEq)]
enum Copied {
    /// The direction has ended.
    All,
    /// A read returned at least the number of bytes that means bulk data.
    Bulk,
}

/// Relays until the end of the direction, or until a read returns `bulk` bytes or more.
async fn copy_buffers(
    reader: &mut Reader,
    writer: &mut Writer,
    counter: &ByteCounter<'_>,
    reset: &mut SourceReset,
    bulk: usize,
) -> Result<Copied, CopyError> {
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
            return Ok(Copied::All);
        };
        let bytes = data.len();
        let write = async {
            counter.wait(bytes).await;
            writer.write(data).await
        };
        deliver(reader, pin!(write), reset).await?;
        counter.count(bytes);
        reader.drained(bytes);
        if bytes >= bulk {
            return Ok(Copied::Bulk);
        }
    }
}

/// Resolves when a peer whose direction was cut short has the data: closing a socket with unread data resets it, and the peer may lose the
/// end of a response (RFC 9112 §9.6).
async fn closed(writer: &Writer) {
    let Some(tcp) = writer.tcp() else { return received(writer).await };
    let both = async { tokio::join!(writer.wait_sent(RESET_DELAY), tcp.linger()) };
    let _ = timeout(LINGER_TIMEOUT, both).await; // what is not sent by then is lost
}

/// Resolves when a QUIC peer has received all data, or the kernel has that of a connection with other streams, or never will. What ends after
/// that, the process even, discards nothing.
pub(super) async fn received(writer: &Writer) {
    match &writer.half {
        WriteHalf::Quic(stream, _) => drop(stream.stopped().await), // a lost connection is reported elsewhere
        WriteHalf::TlsLink(stream) => stream.flushed().await,
        WriteHalf::Http2(stream) => stream.flushed().await,
        WriteHalf::Tcp(_) | WriteHalf::Tls(..) | WriteHalf::Udp(_) | WriteHalf::Stdio(_) => {}
    }
}

/// Resolves once no data was relayed for `limit`.
async fn watch_idle(limit: Duration, a_to_b: &ByteCounter<'_>, b_to_a: &ByteCounter<'_>) -> NetError {
    let copied = || a_to_b.copied() + b_to_a.copied();
    let waiting = || a_to_b.waiting.load(Ordering::Relaxed) || b_to_a.waiting.load(Ordering::Relaxed);
    let (mut seen, mut since) = (copied(), Instant::now());
    loop {
        // at most an eighth late, without touching a timer per packet
        sleep((limit / 8).max(Duration::from_millis(1))).await;
        if copied() != seen || waiting() {
            (seen, since) = (copied(), Instant::now());
        } else if since.elapsed() >= limit {
            return NetError::new(NetErrorCode::TimedOut, format!("No data was relayed for {} ms", limit.as_millis()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Size of the future that `start` returns.
    fn size<F>(_: impl FnOnce(Box<(Handover, Handover)>) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_splice_is_small() {
        let (limiter, cancel) = (RateLimiter::default(), CancelSignal::default());
        let bytes = size(|halves| run(halves, Bytes::new(), None, &limiter, &cancel));
        assert!(bytes <= 2_800, "{bytes} bytes"); // a process has thousands
    }
}
