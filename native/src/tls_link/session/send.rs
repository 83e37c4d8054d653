//! The output of a session: frames and data that wait for the link, and the peer's credit for them.
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::{Session, State};
use crate::sync::{lock, wait_for};
use crate::tls_link::frame::{put, put_data_header, Control, MAX_DATA};
use crate::tls_link::stream::Stream;

/// Small frames beyond this many bytes wait as bulk data does: the peer reads slowly.
const MAX_SMALL: usize = 64 << 10;

/// Frames and data that wait for the link.
#[derive(Default)]
pub(super) struct Outgoing {
    /// Frames without data and small DATA frames, which are sent first. Bounded by the streams and by [`MAX_SMALL`].
    small: Vec<u8>,
    /// Bytes that were ever put into `small`.
    small_total: u64,
    /// Frames that were ever put there.
    small_frames: u64,
    /// The token of the last PING. Earlier ones need no answer: a peer that does not read cannot fill the memory.
    pong: Option<[u8; 8]>,
    /// Bulk data, one chunk for each stream.
    bulk: VecDeque<(Arc<Stream>, Bytes)>,
    /// The last frame.
    close: Option<Control>,
    is_closed: bool,
}

/// Bytes to send as TLS records of their own: frames, and after them the data of the last frame.
#[derive(Default)]
pub struct Piece {
    pub frames: Vec<u8>,
    pub data: Bytes,
}

#[derive(Default)]
pub struct Batch {
    pub pieces: Vec<Piece>,
    /// Bytes of small frames up to here; see [`Session::batch_written`].
    mark: u64,
    /// Nothing follows.
    pub is_last: bool,
}

impl Outgoing {
    /// Queues a frame without data; after the last frame nothing more.
    pub(super) fn put(&mut self, stream: u32, frame: &Control) {
        if self.is_closed {
            return;
        }
        let before = self.small.len();
        put(&mut self.small, stream, frame);
        self.added_small(before);
    }

    fn put_data(&mut self, stream: u32, data: &[u8]) {
        if self.is_closed {
            return;
        }
        let before = self.small.len();
        put_data_header(&mut self.small, stream, data.len());
        self.small.extend_from_slice(data);
        self.added_small(before);
    }

    /// A frame was added to `small`, which had `before` bytes.
    fn added_small(&mut self, before: usize) {
        self.small_total += (self.small.len() - before) as u64;
        self.small_frames += 1;
    }

    /// Queues the answer to a PING.
    pub(super) fn put_pong(&mut self, token: [u8; 8]) {
        self.pong = Some(token);
    }

    /// Drops bulk data, and sends `frame` last.
    pub(super) fn close(&mut self, frame: Option<Control>) {
        self.bulk.clear();
        (self.close, self.is_closed) = (frame, true);
    }
}

impl Session {
    /// Credit of a stream, at most `want`. `takes`: it is used up.
    pub fn send_credit(&self, stream: &Arc<Stream>, want: u64, takes: bool) -> u64 {
        let of_stream = stream.take_credit(want);
        if of_stream == 0 {
            return 0;
        }
        let mut state = lock(&self.state);
        let credit = of_stream.min(state.send_credit);
        if takes {
            state.send_credit -= credit;
        }
        if credit == 0 {
            state.starved.insert(stream.id);
        }
        drop(state);
        stream.return_credit(if takes { of_stream - credit } else { of_stream });
        credit
    }

    /// Sends a frame without data.
    pub fn send(&self, stream: u32, frame: &Control) {
        lock(&self.state).out.put(stream, frame);
        self.to_send.notify_one();
    }

    /// As [`Session::send`], now if the link is free: a sender that has used up its credit waits for it.
    pub fn send_now(&self, stream: u32, frame: &Control) {
        lock(&self.state).out.put(stream, frame);
        self.pump();
    }

    /// Sends data ahead of bulk data. Returns false if too much waits.
    pub fn send_small(&self, stream: u32, data: &[u8]) -> bool {
        let mut state = lock(&self.state);
        if state.out.small.len() > MAX_SMALL {
            return false;
        }
        state.out.put_data(stream, data);
        drop(state);
        self.to_send.notify_one();
        true
    }

    /// Queues a chunk, and sends it now if the link is free.
    pub fn send_bulk(&self, stream: &Arc<Stream>, data: Bytes) {
        let mut state = lock(&self.state);
        if state.out.is_closed {
            return; // the writer sees the end
        }
        state.out.bulk.push_back((stream.clone(), data));
        drop(state);
        self.pump();
    }

    fn pump(&self) {
        match self.link.get().and_then(Weak::upgrade) {
            Some(link) => link.pump(),
            None => self.to_send.notify_one(),
        }
    }

    /// Drops the queued chunk of a stream.
    pub fn drop_bulk(&self, stream: &Arc<Stream>) {
        let mut dropped = 0;
        lock(&self.state).out.bulk.retain(|(queued, data)| {
            let is_kept = queued.id != stream.id;
            if !is_kept {
                dropped += data.len() as u64;
            }
            is_kept
        });
        self.return_credit(dropped);
    }

    fn return_credit(&self, bytes: u64) {
        let mut state = lock(&self.state);
        state.send_credit += bytes;
        state.wake_starved();
    }

    /// Takes the next frames, up to `budget` bytes of bulk data. Small frames go first; bulk data of several streams takes turns.
    pub fn next(&self, budget: usize) -> Batch {
        let mut batch = Batch::default();
        let mut taken = Vec::new();
        {
            let mut state = lock(&self.state);
            let out = &mut state.out;
            if let Some(token) = out.pong.take() {
                out.put(0, &Control::Pong(token));
            }
            let mut frames = std::mem::take(&mut out.small);
            let mut left = budget;
            while left > 0 {
                let Some((stream, mut data)) = out.bulk.pop_front() else { break };
                let part = data.split_to(data.len().min(left).min(MAX_DATA));
                left -= part.len();
                put_data_header(&mut frames, stream.id, part.len());
                batch.pieces.push(Piece {
                    frames: std::mem::take(&mut frames),
                    data: part,
                });
                match data.is_empty() {
                    true => taken.push(stream),
                    false => out.bulk.push_back((stream, data)),
                }
            }
            if let Some(frame) = out.close.take() {
                put(&mut frames, 0, &frame);
            }
            if !frames.is_empty() {
                batch.pieces.push(Piece {
                    frames,
                    data: Bytes::new(),
                });
            }
            (batch.mark, batch.is_last) = (out.small_total, out.is_closed);
        }
        taken.iter().for_each(|stream| stream.chunk_taken());
        batch
    }

    /// How many small frames were ever queued.
    pub fn small_frames(&self) -> u64 {
        lock(&self.state).out.small_frames
    }

    pub fn has_more(&self) -> bool {
        let out = &lock(&self.state).out;
        !out.small.is_empty() || !out.bulk.is_empty() || out.pong.is_some() || out.close.is_some()
    }

    /// Reports that a batch was passed to the system.
    pub fn batch_written(&self, batch: &Batch) {
        if self.flushed.fetch_max(batch.mark, Ordering::AcqRel) < batch.mark {
            self.has_flushed.notify_waiters();
        }
    }

    /// Resolves when the small frames sent so far were passed to the system, or the session has ended.
    pub async fn flushed(&self) {
        let mark = lock(&self.state).out.small_total;
        wait_for(&self.has_flushed, || {
            (self.flushed.load(Ordering::Acquire) >= mark || self.ended().is_some()).then_some(())
        })
        .await;
    }
}

impl State {
    /// Wakes the streams that wait for credit of the session.
    pub(super) fn wake_starved(&mut self) {
        for id in self.starved.drain() {
            if let Some(stream) = self.streams.get(&id) {
                stream.wake_sender();
            }
        }
    }
}
