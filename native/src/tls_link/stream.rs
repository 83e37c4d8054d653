//! A stream of a TLS link: what has arrived and is not read, credit in both directions, and how each direction ends.
use std::collections::VecDeque;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use quinn::{ReadError, VarInt};
use tokio::sync::Notify;

use super::frame::{Control, ProtocolError};
use super::session::Session;
use super::window::window_of_path;
use crate::error::NetError;
use crate::relay::budget;
use crate::stream::buffered::BufferedStream;
use crate::stream::read_buffer::LARGE_READ;
use crate::stream::window_growth::{max_window, Growth, GROWTHS};
use crate::sync::lock;

/// Writes up to this size are sent in one record with other small frames, ahead of bulk data.
const SMALL_WRITE: usize = 4 << 10;
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
    /// Bytes read since the last credit.
    read: u64,
    total_read: u64,
    /// The part of the session's window for this stream; 0 until it is accepted.
    share: u64,
    has_reader: bool,
    is_accepted: bool,

    send: Direction,
    /// Bytes that may still be sent.
    credit: u64,
    /// The code of the peer's STOP.
    stopped: Option<u32>,
    /// A chunk waits to be sent. There is at most one, which bounds the memory and serves the streams in turn.
    is_queued: bool,

    is_released: bool,
}

impl Stream {
    /// A stream without halves.
    pub fn new(id: u32, window: u64, credit: u64) -> Arc<Self> {
        Arc::new(Self {
            id,
            state: Mutex::new(State {
                receive: Direction::Open,
                chunks: VecDeque::new(),
                unread: 0,
                allowed: window,
                window,
                read: 0,
                total_read: 0,
                share: 0,
                has_reader: false,
                is_accepted: false,
                send: Direction::Open,
                credit,
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
        let reader = RecvHalf {
            session: session.clone(),
            stream: stream.clone(),
            growth: None,
        };
        (reader, SendHalf { session, stream }, state.share)
    }

    /// Stores data. Returns how much of it is discarded because the stream has no reader any more.
    pub fn receive_data(&self, bytes: &[u8]) -> Result<usize, ProtocolError> {
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
        state.store(bytes);
        drop(state);
        self.receiving.notify_waiters();
        Ok(0)
    }

    /// Records FIN or RESET of the peer. Returns whether the stream is over.
    fn receive_end(&self, end: Direction) -> Result<bool, ProtocolError> {
        let mut state = lock(&self.state);
        if state.receive != Direction::Open {
            return ProtocolError::new(format!("a second end of stream {}", self.id));
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
        state.credit = add_credit(state.credit, bytes)?;
        drop(state);
        self.sending.notify_waiters();
        Ok(())
    }

    /// Takes up to `want` bytes of credit.
    pub fn take_credit(&self, want: u64) -> u64 {
        let mut state = lock(&self.state);
        let taken = want.min(state.credit);
        state.credit -= taken;
        taken
    }

    pub fn return_credit(&self, bytes: u64) {
        lock(&self.state).credit += bytes;
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

    /// Wakes those that wait for credit.
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
    fn store(&mut self, mut bytes: &[u8]) {
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
        let size = match self.chunks.is_empty() {
            true => bytes.len(), // usually read at once
            false => bytes.len().max(MIN_CHUNK),
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

/// Resolves with what `check` returns, which is called again after each notification.
pub async fn wait_for<T>(notify: &Notify, mut check: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(value) = check() {
            return value;
        }
        let changed = notify.notified();
        tokio::pin!(changed);
        changed.as_mut().enable(); // before the check: what happens after it wakes this task
        if let Some(value) = check() {
            return value;
        }
        changed.await;
    }
}

/// The receiving half. The owner stops the stream before dropping a half that has not ended.
pub struct RecvHalf {
    session: Arc<Session>,
    stream: Arc<Stream>,
    /// Present once the window has grown.
    growth: Option<Arc<Growth<BufferedStream>>>,
}

impl RecvHalf {
    /// The next data, at most `most` bytes; `None` at the end. Data before a reset or the loss of the session is returned first.
    pub async fn read(&mut self, most: usize) -> Result<Option<Bytes>, NetError> {
        let mut chunks = [Bytes::new()];
        let count = self.read_chunks(&mut chunks, most).await?;
        let [chunk] = chunks;
        Ok(count.map(|_| chunk))
    }

    /// Fills `chunks` with data that has arrived, at most `most` bytes. Returns how many it has filled; `None` at the end.
    pub async fn read_chunks(&mut self, chunks: &mut [Bytes], most: usize) -> Result<Option<usize>, NetError> {
        let (session, stream) = (self.session.clone(), self.stream.clone());
        let (count, bytes, is_over) = wait_for(&stream.receiving, || {
            let mut state = lock(&stream.state);
            if state.chunks.is_empty() {
                return match (state.receive, session.ended()) {
                    (Direction::Finished, _) => Some(Ok((0, 0, false))),
                    (Direction::Reset(code), _) => Some(Err(NetError::quic_read(&ReadError::Reset(VarInt::from_u32(code))))),
                    (Direction::Open, Some(ended)) => Some(Err(ended.error())),
                    (Direction::Open, None) => None,
                };
            }
            let (count, bytes) = state.take(chunks, most);
            Some(Ok((count, bytes, state.is_over())))
        })
        .await?;
        if count == 0 {
            return Ok(None);
        }
        self.consumed(bytes);
        if is_over {
            session.release(&stream);
        }
        Ok(Some(count))
    }

    /// Resolves when the peer resets the stream or the session is lost, even if nothing reads. Does not resolve at a regular end.
    pub async fn reset(&mut self) -> NetError {
        let (session, stream) = (&self.session, &self.stream);
        wait_for(&stream.receiving, || match (lock(&stream.state).receive, session.ended()) {
            (Direction::Reset(code), _) => Some(NetError::quic_read(&ReadError::Reset(VarInt::from_u32(code)))),
            (Direction::Open, Some(ended)) => Some(ended.error()),
            _ => None,
        })
        .await
    }

    /// Whether the peer has aborted both directions, and so wants no answer.
    pub fn is_abandoned(&self) -> bool {
        let state = lock(&self.stream.state);
        matches!(state.receive, Direction::Reset(_)) && state.stopped.is_some()
    }

    /// Sends STOP: the rest of the data is discarded.
    pub fn stop(&mut self, code: u32) {
        let was_open = lock(&self.stream.state).receive == Direction::Open;
        self.discard();
        if was_open {
            self.session.send(self.stream.id, &Control::Stop(code));
        }
    }

    /// Discards what is unread, and what arrives from now on.
    fn discard(&mut self) {
        let (discarded, is_over) = {
            let mut state = lock(&self.stream.state);
            state.has_reader = false;
            (state.discard(), state.is_over())
        };
        self.session.read(discarded);
        if is_over {
            self.session.release(&self.stream);
        }
    }

    /// Maximum bytes per read: data that is read and not passed on adds to the window.
    pub fn batch(&self) -> usize {
        usize::try_from(lock(&self.stream.state).window / 2).unwrap_or(LARGE_READ)
    }

    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Returns credit for bytes that were read, once half of the window was. A reader that keeps up gets a larger window.
    fn consumed(&mut self, bytes: usize) {
        let (before, total_read, keeps_up) = {
            let mut state = lock(&self.stream.state);
            state.read += bytes as u64;
            state.total_read += bytes as u64;
            if state.read < (state.window / 2).max(1) || state.receive != Direction::Open {
                drop(state);
                return self.session.read(bytes);
            }
            (state.window, state.total_read, state.chunks.is_empty())
        };
        // without the lock: the growth of others is looked at
        let window = match keeps_up {
            true => self.session.grown(before, total_read),
            false => before,
        };
        // before the stream has it, as the release of the stream takes it back
        self.session.add_window(window - before);
        let credit = {
            let mut state = lock(&self.stream.state);
            if state.is_released {
                drop(state);
                self.session.remove_window(window - before);
                return self.session.read(bytes);
            }
            state.window = window;
            state.share += window - before;
            let credit = std::mem::take(&mut state.read) + window - before;
            state.allowed += credit;
            credit
        };
        self.count_growth(window, before);
        self.session.read(bytes);
        let credit = u32::try_from(credit).unwrap_or(u32::MAX);
        self.session.send(self.stream.id, &Control::Credit(credit));
    }

    /// Counts the growth of the window among that of all streams of the process.
    fn count_growth(&mut self, window: u64, before: u64) {
        if let Some(growth) = &self.growth {
            growth.is_used.store(true, Ordering::Relaxed);
        }
        if window == before {
            return;
        }
        let stream = &self.stream;
        let growth = self
            .growth
            .get_or_insert_with(|| GROWTHS.add(BufferedStream::TlsLink(stream.clone())));
        GROWTHS.count(growth, window - u64::from(self.session.config.stream_window));
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        self.growth.iter().for_each(|growth| GROWTHS.count(growth, 0));
        self.discard();
    }
}

impl State {
    /// Moves data into `chunks`. Returns how many it has filled, and their bytes.
    fn take(&mut self, chunks: &mut [Bytes], most: usize) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        for slot in chunks {
            let Some(first) = self.chunks.front_mut() else { break };
            if bytes >= most {
                break;
            }
            let left = most - bytes;
            *slot = match first.len() > left {
                true => first.split_to(left).freeze(),
                false => self.chunks.pop_front().unwrap_or_default().freeze(),
            };
            bytes += slot.len();
            count += 1;
        }
        self.unread -= bytes;
        (count, bytes)
    }
}

/// The largest window that a stream may have now. `start` is its initial one.
pub fn grown(start: u64, window: u64, total_read: u64, min_round_trip: std::time::Duration) -> u64 {
    if !budget::has_room() || window == 0 {
        return window;
    }
    if GROWTHS.sum() > 0 {
        GROWTHS.sweep(Instant::now(), BufferedStream::held);
    }
    let most = max_window(start, GROWTHS.sum(), total_read).min(window_of_path(min_round_trip));
    (2 * window).min(most).max(window)
}

/// The sending half. The owner resets the stream before dropping a half that has not ended.
pub struct SendHalf {
    session: Arc<Session>,
    stream: Arc<Stream>,
}

impl SendHalf {
    /// Resolves when all of the data was taken for sending.
    pub async fn write(&mut self, mut data: Bytes) -> Result<(), NetError> {
        while !data.is_empty() {
            let credit = self.credit(data.len(), true).await?;
            let part = data.split_to(credit);
            if part.len() <= SMALL_WRITE && self.session.send_small(self.stream.id, &part) {
                continue;
            }
            lock(&self.stream.state).is_queued = true;
            self.session.send_bulk(&self.stream, part);
            self.taken().await?;
        }
        Ok(())
    }

    /// Resolves when the stream may send, with how many bytes. Errors are left to the next write.
    pub async fn room(&mut self) -> usize {
        self.credit(LARGE_READ, false).await.unwrap_or(LARGE_READ)
    }

    pub async fn finish(&mut self) -> Result<(), NetError> {
        self.taken().await?;
        self.end(Direction::Finished, &Control::Fin);
        Ok(())
    }

    /// Aborts the direction. What was not taken for sending is dropped.
    pub fn reset(&mut self, code: u32) {
        self.end(Direction::Reset(code), &Control::Reset(code));
    }

    fn end(&mut self, end: Direction, frame: &Control) {
        let (was_queued, is_over) = {
            let mut state = lock(&self.stream.state);
            if state.send != Direction::Open {
                return;
            }
            state.send = end;
            (std::mem::take(&mut state.is_queued), state.is_over())
        };
        if was_queued {
            self.session.drop_bulk(&self.stream);
        }
        self.session.send(self.stream.id, frame);
        if is_over {
            self.session.release(&self.stream);
        }
    }

    /// Resolves when the peer stops reading or the session is lost, even if there is nothing to write.
    pub fn stopped(&self) -> impl Future<Output = NetError> + Send + 'static {
        let (session, stream) = (self.session.clone(), self.stream.clone());
        async move {
            wait_for(&stream.sending, || {
                let state = lock(&stream.state);
                match (state.send, state.stopped, session.ended()) {
                    (Direction::Open, Some(code), _) => Some(NetError::stopped(VarInt::from_u32(code))),
                    (Direction::Open, None, Some(ended)) => Some(ended.error()),
                    _ => None,
                }
            })
            .await
        }
    }

    /// Resolves when everything sent so far was passed to the system, or never will be.
    pub async fn flushed(&self) {
        self.session.flushed().await
    }

    /// Why nothing more can be written.
    fn failure(&self, state: &State) -> Option<NetError> {
        match (state.send, state.stopped, self.session.ended()) {
            (Direction::Finished | Direction::Reset(_), _, _) => Some(NetError::closed()),
            (_, Some(code), _) => Some(NetError::stopped(VarInt::from_u32(code))),
            (_, _, Some(ended)) => Some(ended.error()),
            _ => None,
        }
    }

    /// The credit, up to `want` bytes, once there is some and no chunk is queued. `takes`: it is used up.
    async fn credit(&self, want: usize, takes: bool) -> Result<usize, NetError> {
        wait_for(&self.stream.sending, || {
            {
                let state = lock(&self.stream.state);
                if let Some(error) = self.failure(&state) {
                    return Some(Err(error));
                }
                if state.is_queued {
                    return None;
                }
            }
            match self.session.credit(&self.stream, want as u64, takes) {
                0 => None,
                credit => Some(Ok(credit as usize)),
            }
        })
        .await
    }

    /// Resolves when no chunk is queued.
    async fn taken(&self) -> Result<(), NetError> {
        wait_for(&self.stream.sending, || {
            let state = lock(&self.stream.state);
            if !state.is_queued {
                return Some(Ok(()));
            }
            self.failure(&state).map(Err)
        })
        .await
    }
}
