//! UDP flows over QUIC. A datagram that fits into a packet travels in a DATAGRAM frame (RFC 9221) with the header of HTTP/3 (RFC 9297 §2.1), so
//! that a lost packet delays no other one. All else is on the stream of the flow, as capsules.
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendDatagramError, SendStream, StreamId};
use tokio::sync::Notify;

use super::signals::ConnectionSignals;
use crate::error::NetError;
use crate::relay::capsule::{put_varint, read_varint, Piece, Splitter, UDP};
use crate::relay::datagram_queue::Queue;
use crate::sync::{lock, wait_for};

/// Bytes of datagrams that wait in quinn to be sent: as many as one system call sends.
pub const SEND_BUFFER: usize = 64 << 10;
/// Bytes of datagrams that wait in quinn until [`receive`] has its turn, which drops none of them: quinn takes hundreds of packets from the
/// socket at once.
pub const RECEIVE_BUFFER: usize = 1 << 20;
/// Most bytes that are read or written at once. The others wait in queues that drop the oldest.
pub const BATCH: usize = 16 << 10;
/// Datagrams received before other tasks get their turn.
const RECEIVE_BATCH: usize = 64;

/// What precedes each payload of a flow: the id of its stream, divided by four, and the context id of UDP payloads.
fn encode_header(stream: StreamId) -> Bytes {
    let mut header = BytesMut::new();
    put_varint(&mut header, stream.index());
    put_varint(&mut header, UDP);
    header.freeze()
}

/// Splits a datagram of a peer into the id of its stream, divided by four, and the UDP payload. `None` if the header is incomplete or the context
/// is another.
pub fn parse(datagram: &[u8]) -> Option<(u64, &[u8])> {
    let mut rest = datagram;
    let stream = read_varint(&mut rest)?;
    (read_varint(&mut rest)? == UDP).then_some((stream, rest))
}

/// The flows of a connection.
#[derive(Default)]
pub struct Flows {
    inboxes: Mutex<HashMap<u64, Arc<Inbox>>>,
    /// Held by the flow that waits for room in quinn: each sends one datagram in its turn.
    turn: tokio::sync::Mutex<()>,
}

impl Flows {
    /// Gives a datagram to its flow. One that belongs to none is dropped: its flow has ended.
    fn deliver(&self, datagram: &[u8]) {
        let Some((stream, payload)) = parse(datagram) else { return };
        let inbox = lock(&self.inboxes).get(&stream).cloned();
        inbox.iter().for_each(|inbox| inbox.push(payload));
    }
}

/// Receives the datagrams of a connection until it ends. Without flows it discards them: one that waited would keep the packets that came with it.
pub async fn receive(connection: &Connection) {
    let Some(signals) = ConnectionSignals::of(connection) else {
        return;
    };
    let mut received = 0;
    while let Ok(datagram) = connection.read_datagram().await {
        signals.flows.deliver(&datagram);
        received += 1;
        if received == RECEIVE_BATCH {
            received = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// The datagrams of a flow that have arrived. The oldest are dropped for new ones.
#[derive(Default)]
pub struct Inbox {
    queue: Mutex<Queue>,
    changed: Notify,
    dropped: AtomicU64,
}

impl Inbox {
    fn push(&self, payload: &[u8]) {
        let dropped = lock(&self.queue).push(payload);
        self.dropped.fetch_add(dropped as u64, Ordering::Relaxed);
        self.changed.notify_one();
    }

    fn take(&self) -> Option<Bytes> {
        lock(&self.queue).take(BATCH).map(|batch| batch.capsules)
    }

    /// Memory of the queued datagrams.
    pub fn held(&self) -> u64 {
        lock(&self.queue).bytes() as u64
    }
}

/// Begins a flow on a stream: from now on its datagrams are expected.
pub fn open(connection: &Connection, stream: StreamId) -> Option<(Receiver, Sender)> {
    let signals = ConnectionSignals::of(connection)?;
    let inbox = Arc::<Inbox>::default();
    lock(&signals.flows.inboxes).insert(stream.index(), inbox.clone());
    let receiver = Receiver {
        signals: signals.clone(),
        stream: stream.index(),
        inbox,
        splitter: Splitter::default(),
        from_stream: 0,
        has_ended: false,
    };
    let sender = Sender {
        connection: connection.clone(),
        signals,
        header: encode_header(stream),
        splitter: Splitter::default(),
    };
    Some((receiver, sender))
}

/// Reads a flow as capsules.
pub struct Receiver {
    signals: Arc<ConnectionSignals>,
    /// The id of the stream, divided by four.
    stream: u64,
    inbox: Arc<Inbox>,
    splitter: Splitter,
    /// Bytes read from the stream, for its flow control.
    from_stream: usize,
    /// The stream has ended.
    has_ended: bool,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        lock(&self.signals.flows.inboxes).remove(&self.stream);
    }
}

impl Receiver {
    /// Takes bytes that were read from the stream before.
    pub fn unread(&mut self, data: &[u8]) {
        self.splitter.push(data);
    }

    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Datagrams that were dropped because they were not read.
    pub fn dropped(&self) -> u64 {
        self.inbox.dropped.load(Ordering::Relaxed)
    }

    /// Returns how many bytes were read from the stream since the last call.
    pub fn take_from_stream(&mut self) -> usize {
        std::mem::take(&mut self.from_stream)
    }

    /// The next capsules, from datagrams or from the stream; `None` at the end of the stream.
    pub async fn read(&mut self, stream: &mut RecvStream) -> Result<Option<Bytes>, NetError> {
        loop {
            match self.splitter.next_piece() {
                Some(Piece::Datagram { capsule: bytes, .. } | Piece::Other(bytes)) => return Ok(Some(bytes)),
                None if self.has_ended => return Ok(self.read_rest()),
                None => {}
            }
            let Self { inbox, splitter, .. } = self;
            tokio::select! { // in random order: neither starves the other
                datagrams = wait_for(&inbox.changed, || inbox.take()), if splitter.is_between() => return Ok(Some(datagrams)),
                chunk = stream.read_chunk(BATCH, true) => match chunk.map_err(|e| NetError::quic_read(&e))? {
                    Some(chunk) => {
                        self.from_stream += chunk.bytes.len();
                        self.splitter.push(&chunk.bytes);
                    }
                    None => self.has_ended = true,
                },
            }
        }
    }

    /// The rest after the end of the stream: datagrams that have overtaken the end, and an incomplete capsule.
    fn read_rest(&mut self) -> Option<Bytes> {
        let datagrams = match self.splitter.is_between() {
            true => self.inbox.take(),
            false => None,
        };
        datagrams.or_else(|| Some(self.splitter.rest()).filter(|rest| !rest.is_empty()))
    }
}

/// Writes capsules to a flow.
pub struct Sender {
    connection: Connection,
    signals: Arc<ConnectionSignals>,
    header: Bytes,
    splitter: Splitter,
}

impl Sender {
    /// Resolves when quinn has taken the datagrams, and the stream the rest.
    pub async fn write(&mut self, stream: &mut SendStream, capsules: &[u8]) -> Result<(), NetError> {
        self.splitter.push(capsules);
        while let Some(piece) = self.splitter.next_piece() {
            let bytes = match piece {
                Piece::Datagram { capsule, prefix } if self.send(&capsule[prefix..]).await? => continue,
                Piece::Datagram { capsule: bytes, .. } | Piece::Other(bytes) => bytes,
            };
            stream.write_chunk(bytes).await.map_err(|e| NetError::quic_write(&e))?;
        }
        Ok(())
    }

    /// Writes the part of a capsule that was written last, before the stream is finished.
    pub async fn flush(&mut self, stream: &mut SendStream) -> Result<(), NetError> {
        match self.splitter.rest() {
            rest if rest.is_empty() => Ok(()),
            rest => stream.write_chunk(rest).await.map_err(|e| NetError::quic_write(&e)),
        }
    }

    /// Returns false if the datagram does not fit into a packet.
    async fn send(&self, payload: &[u8]) -> Result<bool, NetError> {
        let bytes = self.header.len() + payload.len();
        if self.connection.max_datagram_size().is_none_or(|max| bytes > max) {
            return Ok(false);
        }
        let datagram = [&self.header, payload].concat();
        let _turn = self.signals.flows.turn.lock().await;
        match self.connection.send_datagram_wait(datagram.into()).await {
            Ok(()) => Ok(true),
            Err(SendDatagramError::ConnectionLost(e)) => Err(NetError::quic_lost(&e)),
            Err(_) => Ok(false), // packets have become smaller meanwhile
        }
    }
}
