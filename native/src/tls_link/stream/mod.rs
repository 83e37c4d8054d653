//! A stream of a TLS link: its unread data, the credit in both directions, and the end of each direction. Its owner has the two
//! halves, the session the rest.
mod recv;
mod send;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use tokio::sync::Notify;

pub use self::recv::RecvHalf;
pub use self::send::SendHalf;
use super::frame::ProtocolError;
use super::session::Session;
use crate::sync::lock;

/// Minimum size of the buffers that hold data behind other data. Without it a peer could make a few bytes cost an allocation each.
const MIN_CHUNK: usize = 4 << 10;
/// Maximum credit in bytes. More is a violation: no side allows it.
const MAX_CREDIT: u64 = 1 << 40;

pub struct Stream {
    pub id: u32,
    state: Mutex<State>,
    /// Notified when data, an end or a reset has arrived.
    receiving: Notify,
    /// Notified when credit or STOP has arrived, and when a chunk was taken for sending.
    sending: Notify,
}

/// How a direction ends.
#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Open,
    Finished,
    Reset(u32),
}

struct State {
    receive: Direction,
    chunks: VecDeque<BytesMut>,
    /// Bytes in `chunks`.
    unread: usize,
    /// Bytes that the peer may still send.
    allowed: u64,
    window: u64,
    total_read: u64,
    /// The part of the session's window for this stream; 0 until it is accepted.
    share: u64,
    has_reader: bool,
    is_accepted: bool,

    send: Direction,
    /// Bytes that may still be sent.
    send_credit: u64,
    /// The code of the peer's STOP.
    stopped: Option<u32>,
    /// A chunk waits to be sent. There is at most one, which bounds the memory and serves the streams in turn.
    is_queued: bool,

    is_released: bool,
}

impl Stream {
    /// A stream without halves.
    pub fn new(id: u32, window: u64, send_credit: u64) -> Arc<Self> {
        Arc::new(Self {
            id,
            state: Mutex::new(State {
                receive: Direction::Open,
                chunks: VecDeque::new(),
                unread: 0,
                allowed: window,
                window,
                total_read: 0,
                share: 0,
                has_reader: false,
                is_accepted: false,
                send: Direction::Open,
                send_credit,
                stopped: None,
                is_queued: false,
                is_released: false,
            }),
            receiving: Notify::new(),
            sending: Notify::new(),
        })
    }

    /// Creates the halves, and returns the window that counts for the session.
    pub fn accept(self: &Arc<Self>, session: &Arc<Session>) -> (RecvHalf, SendHalf, u64) {
        let mut state = lock(&self.state);
        (state.is_accepted, state.has_reader) = (true, true);
        state.share = state.window;
        let (session, stream) = (session.clone(), self.clone());
        let reader = RecvHalf::new(session.clone(), stream.clone());
        (reader, SendHalf::new(session, stream), state.share)
    }

    /// Stores data, of whose frame `missing` bytes follow. Returns how much of it is discarded because the stream has no reader any more.
    pub fn receive_data(&self, bytes: &[u8], missing: usize) -> Result<usize, ProtocolError> {
        let mut state = lock(&self.state);
        if state.receive != Direction::Open {
            return ProtocolError::new(format!("data after the end of stream {}", self.id));
        }
        let Some(allowed) = state.allowed.checked_sub(bytes.len() as u64) else {
            return ProtocolError::new(format!("more data than credit on stream {}", self.id));
        };
        state.allowed = allowed;
        if state.is_accepted && !state.has_reader {
            return Ok(bytes.len());
        }
        state.store(bytes, missing);
        drop(state);
        self.receiving.notify_waiters();
        Ok(0)
    }

    /// Records FIN or RESET of the peer. Returns whether the stream is over.
    fn receive_end(&self, end: Direction) -> Result<bool, ProtocolError> {
        let mut state = lock(&self.state);
        if state.receive != Direction::Open {
            return ProtocolError::new(format!("stream {} was ended twice", self.id));
        }
        state.receive = end;
        let is_over = state.is_over();
        drop(state);
        self.receiving.notify_waiters();
        Ok(is_over)
    }

    pub fn receive_fin(&self) -> Result<bool, ProtocolError> {
        self.receive_end(Direction::Finished)
    }

    pub fn receive_reset(&self, code: u32) -> Result<bool, ProtocolError> {
        self.receive_end(Direction::Reset(code))
    }

    pub fn receive_stop(&self, code: u32) {
        lock(&self.state).stopped.get_or_insert(code);
        self.sending.notify_waiters();
    }

    pub fn receive_credit(&self, bytes: u32) -> Result<(), ProtocolError> {
        let mut state = lock(&self.state);
        state.send_credit = add_credit(state.send_credit, bytes)?;
        drop(state);
        self.sending.notify_waiters();
        Ok(())
    }

    /// Takes up to `want` bytes of credit.
    pub fn take_credit(&self, want: u64) -> u64 {
        let mut state = lock(&self.state);
        let taken = want.min(state.send_credit);
        state.send_credit -= taken;
        taken
    }

    pub fn return_credit(&self, bytes: u64) {
        lock(&self.state).send_credit += bytes;
    }

    /// The chunk of this stream was taken for sending, or dropped.
    pub fn chunk_taken(&self) {
        lock(&self.state).is_queued = false;
        self.sending.notify_waiters();
    }

    /// Wakes all that wait on this stream.
    pub fn wake(&self) {
        self.receiving.notify_waiters();
        self.sending.notify_waiters();
    }

    /// Wakes the tasks that wait for credit.
    pub fn wake_sender(&self) {
        self.sending.notify_waiters();
    }

    /// Bytes received and not read.
    pub fn held(&self) -> u64 {
        lock(&self.state).unread as u64
    }

    /// The part of the session's window that the stream has.
    pub fn share(&self) -> u64 {
        lock(&self.state).share
    }
}

/// Adds credit that the peer has granted.
pub fn add_credit(credit: u64, bytes: u32) -> Result<u64, ProtocolError> {
    match credit + u64::from(bytes) {
        _ if bytes == 0 => ProtocolError::new("credit of 0 bytes"),
        sum if sum > MAX_CREDIT => ProtocolError::new("too much credit"),
        sum => Ok(sum),
    }
}

impl State {
    fn store(&mut self, mut bytes: &[u8], missing: usize) {
        self.unread += bytes.len();
        if let Some(last) = self.chunks.back_mut() {
            let spare = last.capacity() - last.len();
            let (now, rest) = bytes.split_at(bytes.len().min(spare));
            last.extend_from_slice(now);
            bytes = rest;
        }
        if bytes.is_empty() {
            return;
        }
        // the rest of the frame too, as far as the peer has credit for it
        let frame = bytes.len() + missing.min(usize::try_from(self.allowed).unwrap_or(usize::MAX));
        let size = match self.chunks.is_empty() {
            true => frame, // usually read at once
            false => frame.max(MIN_CHUNK),
        };
        let mut chunk = BytesMut::with_capacity(size);
        chunk.extend_from_slice(bytes);
        self.chunks.push_back(chunk);
    }

    fn discard(&mut self) -> usize {
        self.chunks = VecDeque::new();
        std::mem::take(&mut self.unread)
    }

    /// Both directions have ended and nothing is unread. True once.
    fn is_over(&mut self) -> bool {
        let is_over = self.receive != Direction::Open && self.send != Direction::Open && self.unread == 0 && self.is_accepted;
        is_over && !std::mem::replace(&mut self.is_released, true)
    }
}
