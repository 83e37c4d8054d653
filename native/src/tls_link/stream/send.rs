//! The sending half of a stream: writes as far as the peer's credit allows, one chunk at a time.
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use quinn::VarInt;

use super::{Direction, State, Stream};
use crate::error::NetError;
use crate::stream::read_buffer::LARGE_READ;
use crate::sync::{lock, wait_for};
use crate::tls_link::frame::Control;
use crate::tls_link::session::Session;

/// Writes up to this size are sent in one record with other small frames, ahead of bulk data.
const SMALL_WRITE: usize = 4 << 10;

/// The sending half. The owner resets the stream before dropping a half that has not ended.
pub struct SendHalf {
    session: Arc<Session>,
    stream: Arc<Stream>,
}

impl SendHalf {
    pub(super) fn new(session: Arc<Session>, stream: Arc<Stream>) -> Self {
        Self { session, stream }
    }

    /// Resolves when all of the data was taken for sending.
    pub async fn write(&mut self, mut data: Bytes) -> Result<(), NetError> {
        while !data.is_empty() {
            let credit = self.send_credit(data.len(), true).await?;
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
        self.send_credit(LARGE_READ, false).await.unwrap_or(LARGE_READ)
    }

    pub async fn finish(&mut self) -> Result<(), NetError> {
        self.taken().await?;
        self.end(Direction::Finished, &Control::Fin);
        Ok(())
    }

    /// Aborts the direction, and drops data that is not being sent yet.
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
    async fn send_credit(&self, want: usize, takes: bool) -> Result<usize, NetError> {
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
            match self.session.send_credit(&self.stream, want as u64, takes) {
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
