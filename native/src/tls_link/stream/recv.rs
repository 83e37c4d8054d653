//! The receiving half of a stream: reads received data and returns credit for it.
use std::sync::atomic::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use quinn::{ReadError, VarInt};

use super::{Direction, State, Stream};
use crate::error::NetError;
use crate::stream::buffered::BufferedStream;
use crate::stream::read_buffer::LARGE_READ;
use crate::stream::window_growth::{Growth, GROWTHS, UNPROVEN_DRAIN};
use crate::sync::{lock, wait_for};
use crate::tls_link::frame::Control;
use crate::tls_link::session::Session;

/// The receiving half. The owner stops the stream before dropping a half that has not ended.
pub struct RecvHalf {
    session: Arc<Session>,
    stream: Arc<Stream>,
    /// Present once the window has grown.
    growth: Option<Arc<Growth<BufferedStream>>>,
    /// It has carried bulk data.
    is_bulk: bool,
}

impl RecvHalf {
    pub(super) fn new(session: Arc<Session>, stream: Arc<Stream>) -> Self {
        Self {
            session,
            stream,
            growth: None,
            is_bulk: false,
        }
    }

    /// The next data, at most `max` bytes; `None` at the end. Data before a reset or the loss of the session is returned first.
    pub async fn read(&mut self, max: usize) -> Result<Option<Bytes>, NetError> {
        let mut chunks = [Bytes::new()];
        let count = self.read_chunks(&mut chunks, max).await?;
        let [chunk] = chunks;
        Ok(count.map(|_| chunk))
    }

    /// Fills `chunks` with data that has arrived, at most `max` bytes. Returns how many it has filled; `None` at the end.
    pub async fn read_chunks(&mut self, chunks: &mut [Bytes], max: usize) -> Result<Option<usize>, NetError> {
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
            let (count, bytes) = state.take(chunks, max);
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

    /// Discards unread data, and all data that arrives later.
    fn discard(&mut self) {
        let (discarded, is_over) = {
            let mut state = lock(&self.stream.state);
            state.has_reader = false;
            (state.discard(), state.is_over())
        };
        self.session.consume(discarded);
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

    /// Reports that bytes were read, and returns credit once half of the window is missing. A reader that keeps up gets a larger window.
    fn consumed(&mut self, bytes: usize) {
        self.session.consume(bytes);
        let (before, total_read, keeps_up, missing) = {
            let mut state = lock(&self.stream.state);
            state.total_read += bytes as u64;
            if state.receive != Direction::Open {
                return;
            }
            let window = state.window;
            (window, state.total_read, state.chunks.is_empty(), state.missing_credit(window))
        };
        if total_read > UNPROVEN_DRAIN && !std::mem::replace(&mut self.is_bulk, true) {
            self.session.add_bulk();
        }
        // without the lock: the session and the growth of others are looked at
        let usable = self.session.usable_window(before);
        if missing.saturating_sub(before - usable) < (usable / 2).max(1) {
            return;
        }
        let window = match keeps_up && usable == before {
            true => self.session.grown_window(before, total_read),
            false => before,
        };
        // before the stream has it, as the release of the stream takes it back
        self.session.add_window(window - before);
        let credit = {
            let mut state = lock(&self.stream.state);
            if state.is_released {
                drop(state);
                return self.session.remove_window(window - before);
            }
            state.window = window;
            state.share += window - before;
            let credit = state.missing_credit(usable + window - before);
            state.allowed += credit;
            credit
        };
        self.count_growth(window, before);
        let credit = u32::try_from(credit).unwrap_or(u32::MAX);
        self.session.send_now(self.stream.id, &Control::Credit(credit));
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
        if self.is_bulk {
            self.session.remove_bulk();
        }
        self.discard();
    }
}

impl State {
    /// Credit that the peer lacks to fill a window of this size.
    fn missing_credit(&self, window: u64) -> u64 {
        window.saturating_sub(self.allowed + self.unread as u64)
    }

    /// Moves data into `chunks`. Returns how many it has filled, and their bytes.
    fn take(&mut self, chunks: &mut [Bytes], max: usize) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        for slot in chunks {
            let Some(first) = self.chunks.front_mut() else { break };
            if bytes >= max {
                break;
            }
            let left = max - bytes;
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
