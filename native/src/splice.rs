//! The copy between two streams: both ways at once, each direction with its own end, memory bounded by the windows, and no end that is
//! not one. After a tunnel is set up, this is all that touches its bytes.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, Instant};

use crate::error::Fault;
use crate::half::{ReadBuffer, Reader, Sink, Source, Writer, VECTORS};
use crate::rate::Pace;
use crate::stream::{Halves, Stop, Taking};

/// When a sink takes no more, the other direction may still bring what its peer sent before it went: an answer to an upload it refused.
const GRACE: Duration = Duration::from_secs(1);

/// Chunks taken at a time in a conversation; a download soon has more.
const FEW: usize = 4;

/// Bytes in a QUIC packet, about.
const CHUNK: usize = 1_200;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Side {
    A,
    B,
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
}

impl<'a> Meter<'a> {
    fn new(pace: &'a Pace) -> Self {
        Self {
            copied: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            pace,
        }
    }

    async fn wait(&self, bytes: usize) {
        if self.pace.is_free() {
            return;
        }
        self.waiting.store(true, Ordering::Relaxed);
        Box::pin(self.pace.take(bytes)).await; // apart: copies without a pace are to stay small
        self.waiting.store(false, Ordering::Relaxed);
    }

    fn count(&self, bytes: usize) {
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

/// Copies until both directions have ended, or has a fault: dropped, the halves that have not ended are reset.
async fn splice(a: &mut Halves, b: &mut Halves, prologue_to_a: Bytes, idle: Option<Duration>, pace: &Pace, stop: &Stop) -> Outcome {
    let (a_tcp, b_tcp) = (a.reader.tcp().cloned(), b.reader.tcp().cloned());
    let (a_to_b, b_to_a) = (Meter::new(pace), Meter::new(pace));
    let fault = {
        let up = pump(&mut a.reader, &mut b.writer, Bytes::new(), &a_to_b);
        let down = pump(&mut b.reader, &mut a.writer, prologue_to_a, &b_to_a);
        tokio::pin!(up, down);
        let idle_watch = watch_idle(idle, &a_to_b, &b_to_a);
        tokio::pin!(idle_watch);
        let grace = sleep(Duration::MAX);
        tokio::pin!(grace);
        let (mut up_done, mut down_done) = (false, false);
        let mut first: Option<(Fault, Option<Side>)> = None;
        loop {
            let (result, source, sink) = tokio::select! {
                result = &mut up, if !up_done => { up_done = true; (result, Side::A, Side::B) }
                result = &mut down, if !down_done => { down_done = true; (result, Side::B, Side::A) }
                // a direction that has ended reads no more, and so would not notice the reset of what it read from
                fault = reset_of(&a_tcp), if up_done && !down_done => (Err(Broken::Source(fault)), Side::A, Side::B),
                fault = reset_of(&b_tcp), if down_done && !up_done => (Err(Broken::Source(fault)), Side::B, Side::A),
                fault = &mut idle_watch => break Some((fault, None)),
                () = stop.stopped() => break Some((Fault::cancelled(), None)),
                () = &mut grace, if first.is_some() => break first,
            };
            match result {
                Ok(()) => {}
                Err(Broken::Source(fault)) => break Some(first.unwrap_or((fault, Some(source)))),
                Err(Broken::Sink(fault)) => {
                    first.get_or_insert((fault, Some(sink)));
                    grace.as_mut().reset(Instant::now() + GRACE);
                }
            }
            if up_done && down_done {
                break first;
            }
        }
    };
    if fault.is_none() {
        tokio::select! {
            _ = async { tokio::join!(received(&a.writer), received(&b.writer)) } => {}
            () = stop.stopped() => {}
        }
    }
    if let Some(code) = fault
        .as_ref()
        .and_then(|(fault, _)| fault.app_code)
        .and_then(|code| u32::try_from(code).ok())
    {
        for half in [a.reader.on_drop(), b.reader.on_drop(), a.writer.on_drop(), b.writer.on_drop()] {
            half.set_code(code);
        }
    }
    Outcome {
        a_to_b: a_to_b.copied.into_inner(),
        b_to_a: b_to_a.copied.into_inner(),
        fault,
    }
}

async fn reset_of(tcp: &Option<std::sync::Arc<crate::half::Tcp>>) -> Fault {
    match tcp {
        Some(tcp) => tcp.reset().await,
        None => std::future::pending().await,
    }
}

/// One direction, to its end. The sink is finished when the source is. A sink that fails stops its source at once.
async fn pump(reader: &mut Reader, writer: &mut Writer, prologue: Bytes, meter: &Meter<'_>) -> Result<(), Broken> {
    let result = copy(reader, writer, prologue, meter).await;
    if let Err(Broken::Sink(_)) = result {
        if let Source::Quic(stream) = &mut reader.source {
            let _ = stream.stop(quinn::VarInt::from_u32(crate::half::RESET)); // fails where it has ended
        }
    }
    result
}

async fn copy(reader: &mut Reader, writer: &mut Writer, prologue: Bytes, meter: &Meter<'_>) -> Result<(), Broken> {
    let prefix = std::mem::take(&mut reader.prefix);
    let bytes = prefix.len();
    meter.wait(bytes).await;
    writer.write_chunks(&mut [prologue, prefix]).await.map_err(Broken::Sink)?;
    meter.count(bytes);
    match (&reader.source, &writer.sink) {
        (Source::Quic(_), Sink::Tcp(_)) => copy_chunks(reader, writer, meter).await?,
        _ => copy_buffers(reader, writer, meter).await?,
    }
    writer.finish().await.map_err(Broken::Sink)
}

async fn copy_chunks(reader: &mut Reader, writer: &mut Writer, meter: &Meter<'_>) -> Result<(), Broken> {
    let mut chunks = Vec::new();
    let limit = meter.pace.quantum().map_or(VECTORS, |bytes| (bytes / CHUNK).clamp(1, VECTORS));
    let few = FEW.min(limit);
    let mut most = few;
    while let Some(n) = reader.read_chunks(&mut chunks, most).await.map_err(Broken::Source)? {
        let bytes: usize = chunks[..n].iter().map(Bytes::len).sum();
        meter.wait(bytes).await;
        writer.write_chunks(&mut chunks[..n]).await.map_err(Broken::Sink)?;
        meter.count(bytes);
        if n == most {
            most = (2 * most).min(limit);
        } else if n == 1 && most > few {
            (most, chunks) = (few, Vec::new());
        }
    }
    Ok(())
}

async fn copy_buffers(reader: &mut Reader, writer: &mut Writer, meter: &Meter<'_>) -> Result<(), Broken> {
    let mut buffer = meter.pace.quantum().map_or_else(ReadBuffer::default, ReadBuffer::new);
    let mut stopped = Box::pin(stopped(writer));
    let mut stop: Option<Fault> = None;
    loop {
        let data = tokio::select! {
            biased;
            data = reader.read_with(&mut buffer) => data.map_err(Broken::Source)?,
            fault = &mut stopped, if stop.is_none() => match fault.code {
                // as with a TCP peer that has closed: fine if nothing more was to be said, a reset if there was
                "stopped" => {
                    stop = Some(fault);
                    continue;
                }
                _ => return Err(Broken::Sink(fault)),
            },
        };
        let Some(data) = data else { return Ok(()) };
        if let Some(fault) = stop {
            return Err(Broken::Sink(fault));
        }
        let bytes = data.len();
        meter.wait(bytes).await;
        writer.write(data).await.map_err(Broken::Sink)?;
        meter.count(bytes);
    }
}

/// Resolves when a QUIC peer sends STOP_SENDING, or its connection is lost, also while there is nothing to write.
fn stopped(writer: &Writer) -> impl std::future::Future<Output = Fault> {
    let stopped = match &writer.sink {
        Sink::Quic(stream, _) => Some(stream.stopped()),
        _ => None,
    };
    async move {
        match stopped {
            None => std::future::pending().await,
            Some(stopped) => match stopped.await {
                Ok(Some(code)) => Fault::stopped(code),
                Ok(None) => std::future::pending().await,
                Err(quinn::StoppedError::ConnectionLost(e)) => Fault::quic_lost(&e),
                Err(_) => Fault::closed(),
            },
        }
    }
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
            return Fault::new("timed-out", format!("Nothing was copied for {} ms", limit.as_millis()));
        }
    }
}
