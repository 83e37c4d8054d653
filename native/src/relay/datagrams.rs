//! Relays between a stream of capsules and a UDP socket that is connected to a destination. No datagram is cut or merged. Where the stream is
//! slower than the destination, the oldest datagrams are dropped and counted.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::time::{sleep, Instant};

use super::budget::TunnelUsage;
use super::capsule::{Capsule, Decoder};
use super::datagram_queue::{with_buffer, Batch, Queue};
use super::ends::Side;
use super::splice::received;
use crate::error::{NetError, NetErrorCode};
use crate::quic::datagrams::Sender;
use crate::relay::rate::RateLimiter;
use crate::stream::read_buffer::ReadBuffer;
use crate::stream::reader::Reader;
use crate::stream::writer::Writer;
use crate::stream::{CancelSignal, Halves, Handover};
use crate::sync::{lock, wait_for};

/// Most bytes that are written to the stream at once.
const BATCH_BYTES: usize = 64 << 10;
/// Datagrams received before the stream gets its turn.
const RECEIVE_BATCH: usize = 64;
/// Pause after an error of the socket that may persist.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// How a flow has ended. Bytes are those of UDP payloads.
pub struct FlowOutcome {
    pub a_to_b: u64,
    pub b_to_a: u64,
    pub datagrams_to_b: u64,
    pub datagrams_to_a: u64,
    pub dropped: u64,
    pub error: Option<(NetError, Option<Side>)>,
}

/// The counters of a flow, its datagrams that wait for the stream, and its rate limits.
struct Flow<'a> {
    limiter: &'a RateLimiter,
    /// Counts bytes.
    usage: Arc<TunnelUsage>,
    datagrams: [AtomicU64; 2],
    dropped: AtomicU64,
    queue: Mutex<Queue>,
    queued: Notify,
}

impl<'a> Flow<'a> {
    fn new(usage: Arc<TunnelUsage>, limiter: &'a RateLimiter) -> Self {
        Self {
            limiter,
            usage,
            datagrams: Default::default(),
            dropped: AtomicU64::new(0),
            queue: Mutex::default(),
            queued: Notify::new(),
        }
    }

    fn count(&self, from: Side, datagrams: usize, bytes: usize) {
        self.datagrams[from as usize].fetch_add(datagrams as u64, Ordering::Relaxed);
        self.usage.add_copied(from as usize, bytes);
    }

    fn count_dropped(&self, datagrams: usize) {
        self.dropped.fetch_add(datagrams as u64, Ordering::Relaxed);
    }

    fn relayed(&self) -> u64 {
        self.datagrams.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn outcome(self, error: Option<(NetError, Option<Side>)>) -> FlowOutcome {
        let [datagrams_to_b, datagrams_to_a] = self.datagrams.map(AtomicU64::into_inner);
        FlowOutcome {
            a_to_b: self.usage.copied(0),
            b_to_a: self.usage.copied(1),
            datagrams_to_b,
            datagrams_to_a,
            dropped: self.dropped.into_inner(),
            error,
        }
    }
}

/// Waits for the halves of the stream, then relays. `prologue` is written to it first. The flow ends when either direction of the stream ends,
/// or with `timed-out` after `idle` without a datagram; then the stream is finished, not reset. `datagrams`: its peer takes QUIC DATAGRAM frames.
pub async fn run(
    handover: Box<Handover>,
    socket: UdpSocket,
    prologue: Bytes,
    idle: Option<Duration>,
    limiter: &RateLimiter,
    cancel: &CancelSignal,
    datagrams: bool,
) -> FlowOutcome {
    let taken = tokio::select! {
        taken = handover.halves() => taken,
        () = cancel.cancelled() => Err(NetError::cancelled()),
    };
    let mut stream = match taken {
        Ok(stream) => stream,
        Err(error) => return Flow::new(Arc::default(), limiter).outcome(Some((error, None))),
    };
    let sender = match datagrams.then(|| stream.reader.open_flow()).flatten() {
        Some((receiver, sender)) => {
            stream.reader.set_datagrams(receiver);
            Some(sender)
        }
        None => None,
    };
    let flow = Flow::new(TunnelUsage::new(stream.reader.buffered().collect()), limiter);
    cancel.began(&flow.usage);
    let error = relay(&mut stream, sender, &socket, prologue, idle, cancel, &flow).await.err();
    flow.count_dropped(stream.reader.dropped_datagrams() as usize);
    drop(socket);
    if error
        .as_ref()
        .is_none_or(|(error, side)| error.code == NetErrorCode::TimedOut && side.is_none())
    {
        tokio::select! {
            () = finish(&mut stream) => {}
            () = cancel.cancelled() => {}
        }
    }
    flow.outcome(error)
}

/// Finishes the stream, and waits until the peer has received all data: closing the connection would discard it.
async fn finish(stream: &mut Halves) {
    let Halves { reader, writer } = stream;
    reader.on_drop().set_code(0);
    reader.on_drop().set_finish_on_drop();
    if writer.finish().await.is_ok() {
        received(writer).await;
    }
}

async fn relay(
    stream: &mut Halves,
    sender: Option<Sender>,
    socket: &UdpSocket,
    prologue: Bytes,
    idle: Option<Duration>,
    cancel: &CancelSignal,
    flow: &Flow<'_>,
) -> Result<(), (NetError, Option<Side>)> {
    let Halves { reader, writer } = stream;
    let stopped = writer.stopped_by_peer();
    let written = async {
        writer.write(prologue).await?;
        sender.into_iter().for_each(|sender| writer.set_datagrams(sender));
        write_capsules(writer, flow).await
    };
    let closed = tokio::select! {
        biased;
        sent = send_datagrams(reader, socket, flow) => return sent.map_err(|error| (error, Some(Side::A))),
        Err(error) = written => error,
        error = stopped => error,
        error = watch_idle(idle, flow) => return Err((error, None)),
        () = receive_datagrams(socket, flow) => return Ok(()),
        () = cancel.cancelled() => return Err((NetError::cancelled(), None)),
        error = flow.usage.is_cut() => return Err((error, None)),
    };
    // a peer that has closed the stream has ended the flow
    match closed.is_close() {
        true => Ok(()),
        false => Err((closed, Some(Side::A))),
    }
}

/// Sends the datagrams of the stream until its end.
async fn send_datagrams(reader: &mut Reader, socket: &UdpSocket, flow: &Flow<'_>) -> Result<(), NetError> {
    let (mut decoder, mut buffer) = (Decoder::default(), ReadBuffer::default());
    while let Some(data) = reader.read_with(&mut buffer).await? {
        decoder.push(&data);
        while let Some(capsule) = decoder.next_capsule()? {
            let Capsule::Payload(payload) = capsule else {
                flow.count_dropped(1);
                continue;
            };
            if !flow.limiter.is_free() {
                flow.usage.set_waiting(Side::A as usize, payload.len());
                flow.limiter.take(payload.len()).await;
                flow.usage.clear_waiting(Side::A as usize);
            }
            match send(socket, &payload).await {
                true => flow.count(Side::A, 1, payload.len()),
                false => flow.count_dropped(1),
            }
        }
        reader.drained(data.len());
    }
    match decoder.is_complete() {
        true => Ok(()),
        false => Err(NetError::remote(NetErrorCode::Reset, "The stream ended within a capsule")),
    }
}

/// Whether the datagram was sent. Otherwise it is too long for the system, or there is no route. An ICMP error of an earlier datagram fails one
/// send, and never ends the flow: anyone can forge it.
async fn send(socket: &UdpSocket, payload: &[u8]) -> bool {
    socket.send(payload).await.is_ok() || socket.send(payload).await.is_ok()
}

/// Receives datagrams and queues them for the stream. Never ends.
async fn receive_datagrams(socket: &UdpSocket, flow: &Flow<'_>) {
    loop {
        let received = match socket.readable().await {
            Ok(()) => with_buffer(|buffer| receive_ready(socket, buffer, flow)),
            Err(error) => Err(error),
        };
        match received {
            Ok(()) => tokio::task::yield_now().await, // for the stream
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {} // an ICMP error, which was reported now
            Err(_) => sleep(ERROR_PAUSE).await,
        }
    }
}

/// Queues datagrams that have arrived. Returns the socket's error, if there was one.
fn receive_ready(socket: &UdpSocket, buffer: &mut [u8], flow: &Flow<'_>) -> std::io::Result<()> {
    for _ in 0..RECEIVE_BATCH {
        let length = socket.try_recv(buffer)?;
        flow.count_dropped(lock(&flow.queue).push(&buffer[..length]));
        flow.queued.notify_one();
    }
    Ok(())
}

/// Writes queued datagrams to the stream. Returns only with an error.
async fn write_capsules(writer: &mut Writer, flow: &Flow<'_>) -> Result<(), NetError> {
    let direction = Side::B as usize;
    loop {
        wait_for(&flow.queued, || (!lock(&flow.queue).is_empty()).then_some(())).await;
        flow.usage.set_waiting(direction, lock(&flow.queue).bytes());
        // datagrams that the stream does not accept yet stay in the queue, which drops the oldest
        let room = writer.room().await.min(BATCH_BYTES);
        let batch = lock(&flow.queue).take(room);
        if let Some(Batch {
            capsules,
            datagrams,
            bytes,
        }) = batch
        {
            flow.limiter.take(bytes).await;
            writer.write(capsules).await?;
            flow.count(Side::B, datagrams, bytes);
        }
        flow.usage.clear_waiting(direction);
    }
}

/// Resolves once no datagram was relayed for `limit`.
async fn watch_idle(limit: Option<Duration>, flow: &Flow<'_>) -> NetError {
    let Some(limit) = limit else { return std::future::pending().await };
    let (mut seen, mut since) = (0, Instant::now());
    loop {
        // at most an eighth late, without touching a timer per datagram
        sleep((limit / 8).max(Duration::from_millis(1))).await;
        let relayed = flow.relayed();
        if relayed != seen {
            (seen, since) = (relayed, Instant::now());
        } else if since.elapsed() >= limit {
            let message = format!("No datagram was relayed for {} ms", limit.as_millis());
            return NetError::new(NetErrorCode::TimedOut, message);
        }
    }
}
