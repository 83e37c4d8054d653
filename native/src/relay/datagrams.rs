//! Relays between a stream of capsules and a UDP socket that is connected to a destination. No datagram is cut or merged. Where the stream is
//! slower than the destination, the oldest datagrams are dropped and counted.
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::time::{sleep, Instant};

use super::budget::TunnelUsage;
use super::capsule::{self, Capsule, Decoder};
use super::ends::Side;
use super::splice::received;
use crate::error::{NetError, NetErrorCode};
use crate::relay::rate::RateLimiter;
use crate::stream::half::{Reader, Writer};
use crate::stream::read_buffer::ReadBuffer;
use crate::stream::{CancelSignal, Halves, Handover};
use crate::sync::{lock, wait_for};

/// Limit on what waits for the stream: a few of the largest datagrams, or some hundreds of 1,200 bytes.
const QUEUE_BYTES: usize = 256 << 10;
/// What a waiting datagram counts for besides its bytes.
const QUEUE_OVERHEAD: usize = 128;
/// Most bytes that are written to the stream at once.
const BATCH_BYTES: usize = 64 << 10;
/// Datagrams received before the stream gets its turn.
const RECEIVE_BATCH: usize = 64;
/// Longest UDP datagram that a socket delivers.
const RECEIVE_BUFFER: usize = 65_536;
/// Pause after an error of the socket that may persist.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

thread_local! {
    /// Shared by the flows of a thread: a flow that waits holds no buffer.
    static BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; RECEIVE_BUFFER]);
}

/// How a flow has ended. Bytes are those of UDP payloads.
pub struct FlowOutcome {
    pub a_to_b: u64,
    pub b_to_a: u64,
    pub datagrams_to_b: u64,
    pub datagrams_to_a: u64,
    pub dropped: u64,
    pub error: Option<(NetError, Option<Side>)>,
}

/// What a flow has relayed so far, and what waits for the stream.
#[derive(Default)]
struct Flow {
    bytes: [AtomicU64; 2],
    datagrams: [AtomicU64; 2],
    dropped: AtomicU64,
    queue: Mutex<Queue>,
    queued: Notify,
}

impl Flow {
    fn count(&self, from: Side, datagrams: usize, bytes: usize) {
        self.datagrams[from as usize].fetch_add(datagrams as u64, Ordering::Relaxed);
        self.bytes[from as usize].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn count_dropped(&self, datagrams: usize) {
        self.dropped.fetch_add(datagrams as u64, Ordering::Relaxed);
    }

    fn relayed(&self) -> u64 {
        self.datagrams.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn outcome(self, error: Option<(NetError, Option<Side>)>) -> FlowOutcome {
        let ([a_to_b, b_to_a], [datagrams_to_b, datagrams_to_a]) =
            (self.bytes.map(AtomicU64::into_inner), self.datagrams.map(AtomicU64::into_inner));
        FlowOutcome {
            a_to_b,
            b_to_a,
            datagrams_to_b,
            datagrams_to_a,
            dropped: self.dropped.into_inner(),
            error,
        }
    }
}

/// Encoded datagrams that wait for the stream.
#[derive(Default)]
struct Queue {
    capsules: VecDeque<(Bytes, usize)>,
    bytes: usize,
}

impl Queue {
    /// Adds a datagram, and returns how many older ones were dropped for it.
    fn push(&mut self, payload: &[u8]) -> usize {
        let capsule = capsule::encode(payload);
        let size = capsule.len() + QUEUE_OVERHEAD;
        let mut dropped = 0;
        while self.bytes + size > QUEUE_BYTES && self.pop().is_some() {
            dropped += 1;
        }
        self.bytes += size;
        self.capsules.push_back((capsule, payload.len()));
        dropped
    }

    fn pop(&mut self) -> Option<(Bytes, usize)> {
        let (capsule, payload) = self.capsules.pop_front()?;
        self.bytes -= capsule.len() + QUEUE_OVERHEAD;
        Some((capsule, payload))
    }

    /// Takes the oldest datagrams, at least one, up to `max` bytes.
    fn take(&mut self, max: usize) -> Option<Batch> {
        let (first, payload) = self.pop()?;
        let mut batch = Batch {
            capsules: first,
            datagrams: 1,
            bytes: payload,
        };
        let mut joined = BytesMut::new();
        while let Some((next, _)) = self.capsules.front() {
            let held = if joined.is_empty() { batch.capsules.len() } else { joined.len() };
            if held + next.len() > max {
                break;
            }
            if joined.is_empty() {
                joined.reserve(max.min(held + self.bytes));
                joined.extend_from_slice(&batch.capsules);
            }
            if let Some((next, payload)) = self.pop() {
                joined.extend_from_slice(&next);
                batch.datagrams += 1;
                batch.bytes += payload;
            }
        }
        if !joined.is_empty() {
            batch.capsules = joined.freeze();
        }
        Some(batch)
    }
}

/// Datagrams to be written at once.
struct Batch {
    capsules: Bytes,
    datagrams: usize,
    /// Of their payloads.
    bytes: usize,
}

/// Waits for the halves of the stream, then relays. `prologue` is written to it first. The flow ends when either direction of the stream ends,
/// or with `timed-out` after `idle` without a datagram; then the stream is finished, not reset.
pub async fn run(
    handover: Box<Handover>,
    socket: UdpSocket,
    prologue: Bytes,
    idle: Option<Duration>,
    limiter: &RateLimiter,
    cancel: &CancelSignal,
) -> FlowOutcome {
    let flow = Flow::default();
    let taken = tokio::select! {
        taken = handover.halves() => taken,
        () = cancel.cancelled() => Err(NetError::cancelled()),
    };
    let mut stream = match taken {
        Ok(stream) => stream,
        Err(error) => return flow.outcome(Some((error, None))),
    };
    let error = relay(&mut stream, &socket, prologue, idle, limiter, cancel, &flow).await.err();
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

/// Finishes the stream, and waits until the peer has what was written: closing the connection would discard that.
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
    socket: &UdpSocket,
    prologue: Bytes,
    idle: Option<Duration>,
    limiter: &RateLimiter,
    cancel: &CancelSignal,
    flow: &Flow,
) -> Result<(), (NetError, Option<Side>)> {
    let usage = TunnelUsage::new(stream.reader.buffered().into_iter().collect());
    let Halves { reader, writer } = stream;
    let stopped = writer.stopped_by_peer();
    let written = async {
        writer.write(prologue).await?;
        write_capsules(writer, limiter, &usage, flow).await
    };
    let closed = tokio::select! {
        biased;
        sent = send_datagrams(reader, socket, limiter, flow) => return sent.map_err(|error| (error, Some(Side::A))),
        Err(error) = written => error,
        error = stopped => error,
        error = watch_idle(idle, flow) => return Err((error, None)),
        () = receive_datagrams(socket, flow) => return Ok(()),
        () = cancel.cancelled() => return Err((NetError::cancelled(), None)),
        error = usage.is_cut() => return Err((error, None)),
    };
    // a peer that has closed the stream has ended the flow
    match closed.is_close() {
        true => Ok(()),
        false => Err((closed, Some(Side::A))),
    }
}

/// Sends the datagrams of the stream until its end.
async fn send_datagrams(reader: &mut Reader, socket: &UdpSocket, limiter: &RateLimiter, flow: &Flow) -> Result<(), NetError> {
    let (mut decoder, mut buffer) = (Decoder::default(), ReadBuffer::default());
    while let Some(data) = reader.read_with(&mut buffer).await? {
        decoder.push(&data);
        while let Some(capsule) = decoder.next_capsule()? {
            let Capsule::Payload(payload) = capsule else {
                flow.count_dropped(1);
                continue;
            };
            limiter.take(payload.len()).await;
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
async fn receive_datagrams(socket: &UdpSocket, flow: &Flow) {
    loop {
        let received = match socket.readable().await {
            Ok(()) => BUFFER.with_borrow_mut(|buffer| receive_ready(socket, buffer, flow)),
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
fn receive_ready(socket: &UdpSocket, buffer: &mut [u8], flow: &Flow) -> std::io::Result<()> {
    for _ in 0..RECEIVE_BATCH {
        let length = socket.try_recv(buffer)?;
        let dropped = match buffer.get(..length) {
            Some(payload) if length <= capsule::MAX_PAYLOAD => lock(&flow.queue).push(payload),
            _ => 1,
        };
        flow.count_dropped(dropped);
        flow.queued.notify_one();
    }
    Ok(())
}

/// Writes queued datagrams to the stream. Returns only with an error.
async fn write_capsules(writer: &mut Writer, limiter: &RateLimiter, usage: &TunnelUsage, flow: &Flow) -> Result<(), NetError> {
    let direction = Side::B as usize;
    loop {
        wait_for(&flow.queued, || (!lock(&flow.queue).capsules.is_empty()).then_some(())).await;
        usage.set_waiting(direction, lock(&flow.queue).bytes);
        // what the stream does not take stays in the queue, which drops the oldest
        let room = writer.room().await.min(BATCH_BYTES);
        let batch = lock(&flow.queue).take(room);
        if let Some(Batch {
            capsules,
            datagrams,
            bytes,
        }) = batch
        {
            limiter.take(bytes).await;
            writer.write(capsules).await?;
            flow.count(Side::B, datagrams, bytes);
        }
        usage.clear_waiting(direction);
    }
}

/// Resolves once no datagram was relayed for `limit`.
async fn watch_idle(limit: Option<Duration>, flow: &Flow) -> NetError {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The first bytes of the payloads in a batch.
    fn firsts(batch: &Batch) -> Vec<u8> {
        let mut decoder = Decoder::default();
        decoder.push(&batch.capsules);
        let mut all = Vec::new();
        while let Some(Capsule::Payload(payload)) = decoder.next_capsule().unwrap() {
            all.push(payload[0]);
        }
        assert_eq!(all.len(), batch.datagrams);
        all
    }

    #[test]
    fn a_full_queue_drops_the_oldest_and_says_how_many() {
        let mut queue = Queue::default();
        let dropped: usize = (0..10).map(|n| queue.push(&vec![n; 60_000])).sum();
        assert_eq!((dropped, queue.capsules.len()), (6, 4));
        assert!(queue.bytes <= QUEUE_BYTES);
        assert_eq!(firsts(&queue.take(BATCH_BYTES).unwrap()), [6]);
        // one that is larger than all that wait is queued alone
        assert_eq!(queue.push(&vec![20; capsule::MAX_PAYLOAD]), 0);
    }

    #[test]
    fn many_small_datagrams_take_no_more_memory() {
        let mut queue = Queue::default();
        let dropped: usize = (0..100_000).map(|_| queue.push(b"")).sum();
        assert_eq!(dropped + queue.capsules.len(), 100_000);
        assert!(queue.capsules.len() * QUEUE_OVERHEAD <= QUEUE_BYTES);
        while queue.take(usize::MAX).is_some() {}
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn a_batch_has_whole_datagrams_in_order() {
        let mut queue = Queue::default();
        for n in 0..5 {
            assert_eq!(queue.push(&[n; 1_000]), 0);
        }
        let all: Vec<_> = std::iter::from_fn(|| queue.take(2_500)).collect();
        assert_eq!(all.iter().map(firsts).collect::<Vec<_>>(), [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(all.iter().map(|batch| batch.bytes).sum::<usize>(), 5_000);
    }
}
