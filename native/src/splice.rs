//! The copy between two streams: both ways at once, each direction with its own end, memory bounded by the windows, and no end that is
//! not one. After a tunnel is set up, this is all that touches its bytes.
use std::future::Future;
use std::pin::{pin, Pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout, timeout_at, Instant};

use crate::budget::Holder;
use crate::error::{Fault, FaultCode};
use crate::half::{ReadBuffer, Reader, Sink, Source, Writer, RESET, VECTORS};
use crate::rate::Pace;
use crate::stream::{Halves, Stop, Taking};

/// How long a copy goes on after one end was reset, or takes no more. What was received before can still be delivered meanwhile: the last
/// bytes of an upload, or the answer to an upload that was refused. At most three copies carry a tunnel (lb, proxy, agent): after 2 s none is
/// left.
const GRACE: Duration = Duration::from_millis(500);

/// How long RESET_STREAM waits for what was written before it. QUIC drops what was not sent by then, and quinn does not tell when all is
/// sent.
const SETTLE: Duration = Duration::from_millis(100);

/// How long a TCP peer that still sends is read, and ignored, before its socket is closed. With the grace before, less than 2 s.
const LAST_READS: Duration = Duration::from_secs(1);

/// After so long in one write, the source is watched for a reset. Shorter writes cost nothing.
const BLOCKED: Duration = Duration::from_millis(100);

/// For a client to read its answer before the first bytes of a server that speaks first.
const HEAD_START: Duration = Duration::from_millis(1);

/// Chunks taken at a time in a conversation; a download soon has more.
const FEW: usize = 4;

/// Bytes in a QUIC packet, about.
const CHUNK: usize = 1_200;

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
pub struct Outcome {
    pub a_to_b: u64,
    pub b_to_a: u64,
    pub fault: Option<(Fault, Option<Side>)>,
}

/// What one direction has copied, and what holds it back.
struct Meter<'a> {
    copied: AtomicU64,
    /// There is something to copy, and its turn has not come.
    waiting: AtomicBool,
    pace: &'a Pace,
    holder: &'a Holder,
    direction: Side,
}

impl<'a> Meter<'a> {
    fn new(pace: &'a Pace, holder: &'a Holder, direction: Side) -> Self {
        Self {
            copied: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            pace,
            holder,
            direction,
        }
    }

    async fn wait(&self, bytes: usize) {
        self.holds(bytes);
        if self.pace.is_free() {
            return;
        }
        self.waiting.store(true, Ordering::Relaxed);
        Box::pin(self.pace.take(bytes)).await; // apart: copies without a pace are to stay small
        self.waiting.store(false, Ordering::Relaxed);
    }

    /// `bytes` were read, and wait for the sink.
    fn holds(&self, bytes: usize) {
        self.holder.waits_with(self.direction as usize, bytes);
    }

    fn passed_on(&self) {
        self.holder.passed_on(self.direction as usize);
    }

    /// `bytes` were written.
    fn count(&self, bytes: usize) {
        self.passed_on();
        self.copied.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

enum Broken {
    /// Nothing more comes: what came so far is not all.
    Source(Fault),
    /// Nothing more is taken.
    Sink(Fault),
}

/// Waits for the halves, then copies.
pub async fn run(halves: Box<(Taking, Taking)>, prologue_to_a: Bytes, idle: Option<Duration>, pace: &Pace, stop: &Stop) -> Outcome {
    // apart: what waits here is not to be as large as what copies
    let taken = Box::pin(async {
        let (a, b) = *halves;
        Ok((a.halves().await?, b.halves().await?))
    });
    let mut taken = tokio::select! {
        taken = taken => taken,
        () = stop.stopped() => Err(Fault::cancelled()),
    };
    match &mut taken {
        Ok((a, b)) => splice(a, b, prologue_to_a, idle, pace, stop).await,
        Err(fault) => Outcome {
            a_to_b: 0,
            b_to_a: 0,
            fault: Some((fault.clone(), None)),
        },
    }
}

/// How a copy ended.
enum End {
    /// Both directions have ended in good order.
    Complete,
    /// This side has ended its direction, and takes no more: its peer closed the stream, which is no fault.
    Closed(Side),
    Broken(Fault, Option<Side>),
}

/// When the grace of a copy is over, once it has begun.
type Grace = Option<Instant>;

/// Copies until both directions have ended, or one end is gone. Halves that have not ended are reset when they are dropped.
async fn splice(a: &mut Halves, b: &mut Halves, prologue_to_a: Bytes, idle: Option<Duration>, pace: &Pace, stop: &Stop) -> Outcome {
    let holder = Holder::new([a.reader.stream(), b.reader.stream()].into_iter().flatten().collect());
    let (a_to_b, b_to_a) = (Meter::new(pace, &holder, Side::A), Meter::new(pace, &holder, Side::B));
    let mut grace = None;
    let end = copy_both(a, b, prologue_to_a, idle, (&a_to_b, &b_to_a), stop, &mut grace).await;
    tokio::select! {
        () = Box::pin(deliver_rest(&end, a, b, grace)) => {}
        () = stop.stopped() => {}
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
            to.reader.on_drop().set_quiet(); // all that was written has arrived, or had its time
        }
        End::Broken(fault, _) => {
            if let Some(code) = fault.app_code.and_then(|code| u32::try_from(code).ok()) {
                for half in [a.reader.on_drop(), b.reader.on_drop(), a.writer.on_drop(), b.writer.on_drop()] {
                    half.set_code(code);
                }
            }
        }
    }
    Outcome {
        a_to_b: a_to_b.copied.into_inner(),
        b_to_a: b_to_a.copied.into_inner(),
        fault: match end {
            End::Broken(fault, side) => Some((fault, side)),
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
            let until = grace.unwrap_or_else(|| Instant::now() + GRACE);
            let _ = timeout_at(until, to.sent(SETTLE)).await; // what a sink has not taken by then is lost
        }
    }
}

/// Runs both directions. Each notices a reset of its source; sinks that wait for something to write are watched here.
async fn copy_both(
    a: &mut Halves,
    b: &mut Halves,
    prologue_to_a: Bytes,
    idle: Option<Duration>,
    (a_to_b, b_to_a): (&Meter<'_>, &Meter<'_>),
    stop: &Stop,
    until: &mut Grace,
) -> End {
    let (a_leaves, b_leaves) = (a.writer.leaves(), b.writer.leaves());
    // TCP has no STOP_SENDING, and the direction that reads from it tells of a reset until it has ended
    let (a_stops, b_stops) = (a.writer.tcp().is_none(), b.writer.tcp().is_none());
    let greeted = (!a_stops).then_some(a_to_b);
    let up = pump(&mut a.reader, &mut b.writer, Bytes::new(), a_to_b, None);
    let down = pump(&mut b.reader, &mut a.writer, prologue_to_a, b_to_a, greeted);
    let idle_watch = watch_idle(idle, a_to_b, b_to_a);
    let cut = a_to_b.holder.is_cut();
    let grace = sleep(Duration::MAX);
    tokio::pin!(up, down, a_leaves, b_leaves, idle_watch, cut, grace);
    let mut ends = Ends::default();
    loop {
        let (up_done, down_done) = (ends.done[0], ends.done[1]);
        let over = tokio::select! {
            biased;
            result = &mut up, if !up_done => ends.ended(Side::A, result),
            result = &mut down, if !down_done => ends.ended(Side::B, result),
            fault = &mut a_leaves, if ends.left[0].is_none() && !down_done && (up_done || a_stops) => ends.leaves(Side::A, fault),
            fault = &mut b_leaves, if ends.left[1].is_none() && !up_done && (down_done || b_stops) => ends.leaves(Side::B, fault),
            fault = &mut idle_watch => Some(End::Broken(fault, None)),
            () = stop.stopped() => Some(End::Broken(Fault::cancelled(), None)),
            fault = &mut cut => Some(End::Broken(fault, None)),
            () = &mut grace, if until.is_some() => Some(ends.after_grace()),
        };
        if let Some(end) = over {
            return end;
        }
        if until.is_none() && ends.has_grace() {
            let at = Instant::now() + GRACE;
            *until = Some(at);
            grace.as_mut().reset(at);
        }
    }
}

/// What is known of the ends of a copy while it goes on.
#[derive(Default)]
struct Ends {
    /// Directions that are over, by the side that they come from.
    done: [bool; 2],
    /// Why a side takes no more, although nothing is being written to it.
    left: [Option<Fault>; 2],
    /// The first sink that failed.
    failed: Option<(Fault, Side)>,
}

impl Ends {
    /// A direction is over. `Some` where the copy is.
    fn ended(&mut self, from: Side, result: Result<(), Broken>) -> Option<End> {
        self.done[from as usize] = true;
        let to = from.other();
        match result {
            Ok(()) => {}
            Err(Broken::Source(fault)) => return Some(self.broken(fault, from)),
            // what still came for a peer that had closed its stream is nothing that it misses
            Err(Broken::Sink(fault)) if fault.is_close() && self.done[to as usize] && self.failed.is_none() => {
                return Some(End::Closed(to))
            }
            Err(Broken::Sink(fault)) => self.failed = self.failed.take().or(Some((fault, to))),
        }
        if self.done != [true, true] {
            return self.gone(from);
        }
        Some(match self.failed.take() {
            None => End::Complete,
            Some((fault, side)) => End::Broken(fault, Some(side)),
        })
    }

    /// A side takes no more. `Some` where that ends the copy.
    fn leaves(&mut self, side: Side, fault: Fault) -> Option<End> {
        self.left[side as usize] = Some(fault);
        self.gone(side)
    }

    /// A side that was reset, and whose direction is over, has neither something to say nor to hear.
    fn gone(&mut self, side: Side) -> Option<End> {
        let fault = self.left[side as usize].as_ref()?;
        if !self.done[side as usize] || fault.is_close() {
            return None;
        }
        let fault = fault.clone();
        Some(self.broken(fault, side))
    }

    /// Whether the copy is to end soon.
    fn has_grace(&self) -> bool {
        let leaves = |side: Side| {
            let done = self.done[side as usize];
            self.left[side as usize].as_ref().is_some_and(|fault| done || !fault.is_close())
        };
        self.failed.is_some() || leaves(Side::A) || leaves(Side::B)
    }

    fn after_grace(&mut self) -> End {
        let [a, b] = std::mem::take(&mut self.left).map(|left| left.filter(|fault| !fault.is_close()));
        let first = self
            .failed
            .take()
            .or(a.map(|fault| (fault, Side::A)))
            .or(b.map(|fault| (fault, Side::B)));
        match first {
            Some((fault, side)) => End::Broken(fault, Some(side)),
            None if self.done[Side::A as usize] => End::Closed(Side::A),
            None => End::Closed(Side::B),
        }
    }

    /// What failed first is the reason.
    fn broken(&mut self, fault: Fault, side: Side) -> End {
        let (fault, side) = self.failed.take().unwrap_or((fault, side));
        End::Broken(fault, Some(side))
    }
}

/// One direction, to its end. The sink is finished when the source is. A sink that fails stops its source at once.
async fn pump(
    reader: &mut Reader,
    writer: &mut Writer,
    prologue: Bytes,
    meter: &Meter<'_>,
    greeted: Option<&Meter<'_>>,
) -> Result<(), Broken> {
    let result = copy(reader, writer, prologue, meter, greeted).await;
    if let (Err(Broken::Sink(fault)), Source::Quic(stream)) = (&result, &mut reader.source) {
        let code = if fault.is_close() { 0 } else { RESET };
        let _ = stream.stop(quinn::VarInt::from_u32(code)); // fails where it has ended
    }
    result
}

async fn copy(
    reader: &mut Reader,
    writer: &mut Writer,
    mut prologue: Bytes,
    meter: &Meter<'_>,
    greeted: Option<&Meter<'_>>,
) -> Result<(), Broken> {
    let mut reset = None;
    if let Some(up) = greeted {
        let greeting = std::mem::take(&mut prologue);
        meter.holds(greeting.len());
        deliver(reader, pin!(writer.write(greeting)), &mut reset).await?;
        meter.passed_on();
        Box::pin(give_head_start(reader, up)).await?; // apart: copies are to stay small
        if reader.prefix.is_empty() {
            return deliver(reader, pin!(writer.finish()), &mut reset).await;
        }
    }
    let prefix = std::mem::take(&mut reader.prefix);
    let bytes = prefix.len();
    let write = async {
        meter.wait(bytes).await;
        writer.write_chunks(&mut [prologue, prefix]).await
    };
    deliver(reader, pin!(write), &mut reset).await?;
    meter.count(bytes);
    match (&reader.source, &writer.sink) {
        (Source::Quic(_), Sink::Tcp(_)) => copy_chunks(reader, writer, meter, &mut reset).await?,
        _ => copy_buffers(reader, writer, meter, &mut reset).await?,
    }
    deliver(reader, pin!(writer.finish()), &mut reset).await
}

/// Reads what the source says first, and holds it back where the client may not have read its answer yet: many clients lose what they read
/// in one go with it. A client that has sent bytes of its own, with its head or since, gets the server's answer at once: only what a server
/// says unasked waits.
async fn give_head_start(reader: &mut Reader, up: &Meter<'_>) -> Result<(), Broken> {
    let greeted_at = Instant::now();
    if reader.prefix.is_empty() {
        reader.prefix = reader.read().await.map_err(Broken::Source)?.unwrap_or_default();
    }
    if up.copied.load(Ordering::Relaxed) == 0 && greeted_at.elapsed() < HEAD_START {
        sleep(HEAD_START).await;
    }
    Ok(())
}

/// Why the source was reset, and how long what came before can still be delivered.
type SourceReset = Option<(Fault, Instant)>;

/// Completes `write`, and notices meanwhile when the source is reset: then the sink has a moment for what was read before.
async fn deliver(
    reader: &mut Reader,
    mut write: Pin<&mut impl Future<Output = Result<(), Fault>>>,
    reset: &mut SourceReset,
) -> Result<(), Broken> {
    if reset.is_none() {
        tokio::select! {
            biased;
            written = &mut write => return written.map_err(Broken::Sink),
            fault = async { sleep(BLOCKED).await; reader.reset().await } => *reset = Some((fault, Instant::now() + GRACE)),
        }
    }
    let Some((fault, until)) = reset else { return Ok(()) };
    match Box::pin(timeout_at(*until, write)).await {
        Ok(written) => written.map_err(Broken::Sink),
        Err(_) => Err(Broken::Source(fault.clone())),
    }
}

async fn copy_chunks(reader: &mut Reader, writer: &mut Writer, meter: &Meter<'_>, reset: &mut SourceReset) -> Result<(), Broken> {
    let mut chunks = Vec::new();
    let limit = meter.pace.quantum().map_or(VECTORS, |bytes| (bytes / CHUNK).clamp(1, VECTORS));
    let few = FEW.min(limit);
    let mut most = few;
    while let Some(n) = reader.read_chunks(&mut chunks, most).await.map_err(Broken::Source)? {
        let bytes: usize = chunks[..n].iter().map(Bytes::len).sum();
        let write = async {
            meter.wait(bytes).await;
            writer.write_chunks(&mut chunks[..n]).await
        };
        deliver(reader, pin!(write), reset).await?;
        meter.count(bytes);
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

async fn copy_buffers(reader: &mut Reader, writer: &mut Writer, meter: &Meter<'_>, reset: &mut SourceReset) -> Result<(), Broken> {
    let mut buffer = meter.pace.quantum().map_or_else(ReadBuffer::default, ReadBuffer::new);
    loop {
        let room = async {
            meter.holds(0);
            buffer.limit(writer.room().await);
            meter.passed_on();
            Ok(())
        };
        deliver(reader, pin!(room), reset).await?;
        let Some(data) = reader.read_with(&mut buffer).await.map_err(Broken::Source)? else {
            return Ok(());
        };
        let bytes = data.len();
        let write = async {
            meter.wait(bytes).await;
            writer.write(data).await
        };
        deliver(reader, pin!(write), reset).await?;
        meter.count(bytes);
        reader.drained(bytes);
    }
}

/// Resolves when a peer whose direction is cut short has what was written: a socket that is closed while there is something to read is reset, and
/// its peer may lose the rest of an answer (RFC 9112 §9.6).
async fn closed(writer: &Writer) {
    let Some(tcp) = writer.tcp() else { return received(writer).await };
    let both = async { tokio::join!(writer.sent(SETTLE), tcp.linger()) };
    let _ = timeout(LAST_READS, both).await; // what it has not taken by then is lost
}

/// Resolves when a QUIC peer has all, or never will: until then, closing the connection would cut off what is still under way.
async fn received(writer: &Writer) {
    if let Sink::Quic(stream, _) = &writer.sink {
        let _ = stream.stopped().await; // a connection that is lost says so itself
    }
}

/// Resolves once nothing was copied for `limit`.
async fn watch_idle(limit: Option<Duration>, a_to_b: &Meter<'_>, b_to_a: &Meter<'_>) -> Fault {
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
            return Fault::new(FaultCode::TimedOut, format!("Nothing was copied for {} ms", limit.as_millis()));
        }
    }
}
