//! A stream of bytes within a WebSocket, with the calls of a non-blocking socket. Two tasks move its frames.
use std::io::{Error, ErrorKind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::rand;
use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::frame::{encode, Control, Decoder, Outgoing, Side};
use crate::error::{NetError, NetErrorCode};
use crate::stream::read_buffer::ReadBuffer;
use crate::stream::reader::Reader;
use crate::stream::writer::Writer;
use crate::stream::Halves;
use crate::sync::{lock, wait_for};

/// Bytes that wait for the program in one direction, and for the network in the other; reading and writing pause above.
const MAX_WAITING: usize = 128 << 10;

/// How long the last frames may take to reach the peer.
const LINGER: Duration = Duration::from_millis(600);

/// If it is dropped before [`WebSocket::shut_down`], the connection below is reset.
pub struct WebSocket {
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
    runtime: Handle,
}

#[derive(Default)]
struct Shared {
    received: Mutex<Received>,
    to_send: Mutex<ToSend>,
    /// Notified of every change of each.
    received_changed: Notify,
    to_send_changed: Notify,
}

#[derive(Default)]
struct Received {
    data: BytesMut,
    /// Nothing follows: the peer's end, or an error.
    end: Option<Result<(), (ErrorKind, String)>>,
}

#[derive(Default)]
struct ToSend {
    data: BytesMut,
    /// Payload of the last ping. Earlier ones need no answer (RFC 6455 §5.5.3).
    pong: Option<Bytes>,
    /// A close frame follows, and the end.
    is_last: bool,
    /// Nothing can be sent any more.
    has_failed: bool,
}

impl WebSocket {
    /// Starts on a stream whose upgrade is complete.
    pub fn start(halves: Halves, side: Side) -> Self {
        let shared = Arc::new(Shared::default());
        let tasks = [
            tokio::spawn(shared.clone().receive(halves.reader, side)).abort_handle(),
            tokio::spawn(shared.clone().send(halves.writer, side)).abort_handle(),
        ];
        Self {
            shared,
            tasks,
            runtime: Handle::current(),
        }
    }

    /// Resolves when there is something to read, or the end.
    pub async fn readable(&self) {
        wait_for(&self.shared.received_changed, || {
            let received = lock(&self.shared.received);
            (!received.data.is_empty() || received.end.is_some()).then_some(())
        })
        .await;
    }

    /// Appends received data to `to`; 0 at the end.
    pub fn try_read(&self, to: &mut BytesMut) -> std::io::Result<usize> {
        let mut received = lock(&self.shared.received);
        if received.data.is_empty() {
            return match &received.end {
                None => Err(ErrorKind::WouldBlock.into()),
                Some(Ok(())) => Ok(0),
                Some(Err((kind, message))) => Err(Error::new(*kind, message.clone())),
            };
        }
        let bytes = received.data.len();
        if to.is_empty() {
            *to = std::mem::take(&mut received.data);
        } else {
            to.extend_from_slice(&received.data);
            received.data = BytesMut::new(); // an idle connection holds no buffer
        }
        drop(received);
        self.shared.received_changed.notify_waiters();
        Ok(bytes)
    }

    /// Resolves when something can be written, or nothing any more.
    pub async fn writable(&self) {
        wait_for(&self.shared.to_send_changed, || {
            let to_send = lock(&self.shared.to_send);
            (to_send.data.len() < MAX_WAITING || to_send.has_failed).then_some(())
        })
        .await;
    }

    /// Takes a part of the bytes and returns how many.
    pub fn try_write(&self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut to_send = lock(&self.shared.to_send);
        if to_send.has_failed {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let part = bytes.len().min(MAX_WAITING.saturating_sub(to_send.data.len()));
        if part == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        to_send.data.extend_from_slice(bytes.get(..part).unwrap_or_default());
        drop(to_send);
        self.shared.to_send_changed.notify_waiters();
        Ok(part)
    }

    /// Ends the writing direction after all written data.
    pub fn shut_down(&self) {
        lock(&self.shared.to_send).is_last = true;
        self.shared.to_send_changed.notify_waiters();
    }
}

impl Drop for WebSocket {
    fn drop(&mut self) {
        let tasks = self.tasks.clone();
        if !lock(&self.shared.to_send).is_last {
            return tasks.iter().for_each(AbortHandle::abort);
        }
        // the runtime is not that of the thread, which may be JavaScript's
        self.runtime.spawn(async move {
            sleep(LINGER).await;
            tasks.iter().for_each(AbortHandle::abort);
        });
    }
}

impl Shared {
    async fn receive(self: Arc<Self>, mut reader: Box<Reader>, side: Side) {
        let mut decoder = Decoder::new(side);
        let mut buffer = ReadBuffer::default();
        let end = loop {
            wait_for(&self.received_changed, || {
                (lock(&self.received).data.len() < MAX_WAITING).then_some(())
            })
            .await;
            let bytes = match reader.read_with(&mut buffer).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break Ok(()),
                Err(error) => break Err(describe(&error)),
            };
            let (mut pong, mut is_closed) = (None, false);
            let decoded = decoder.push(&bytes, &mut lock(&self.received).data, |control| match control {
                Control::Ping(payload) => pong = Some(payload),
                Control::Close => is_closed = true,
            });
            if pong.is_some() {
                lock(&self.to_send).pong = pong;
                self.to_send_changed.notify_waiters();
            }
            if is_closed {
                lock(&self.received).end.get_or_insert(Ok(())); // its end of the connection follows
            }
            self.received_changed.notify_waiters();
            if let Err(message) = decoded {
                break Err((ErrorKind::InvalidData, message.to_owned()));
            }
        };
        lock(&self.received).end.get_or_insert(end);
        self.received_changed.notify_waiters();
    }

    async fn send(self: Arc<Self>, mut writer: Box<Writer>, side: Side) {
        if let Err(error) = self.send_all(&mut writer, side).await {
            lock(&self.received).end.get_or_insert(Err(describe(&error)));
            self.received_changed.notify_waiters();
        }
        lock(&self.to_send).has_failed = true;
        self.to_send_changed.notify_waiters();
    }

    /// Sends until the last frame.
    async fn send_all(&self, writer: &mut Writer, side: Side) -> Result<(), NetError> {
        loop {
            let (data, pong, is_last) = wait_for(&self.to_send_changed, || {
                let mut to_send = lock(&self.to_send);
                let has_any = !to_send.data.is_empty() || to_send.pong.is_some() || to_send.is_last;
                has_any.then(|| (std::mem::take(&mut to_send.data), to_send.pong.take(), to_send.is_last))
            })
            .await;
            self.to_send_changed.notify_waiters();
            let mut frames = BytesMut::new();
            if let Some(payload) = &pong {
                encode(Outgoing::Pong(payload), masking_key(side)?, &mut frames);
            }
            if !data.is_empty() {
                encode(Outgoing::Data(&data), masking_key(side)?, &mut frames);
            }
            if is_last {
                encode(Outgoing::Close, masking_key(side)?, &mut frames);
            }
            writer.write(frames.freeze()).await?;
            if is_last {
                return writer.finish().await;
            }
        }
    }
}

fn masking_key(side: Side) -> Result<Option<[u8; 4]>, NetError> {
    if side == Side::Server {
        return Ok(None);
    }
    let mut key = [0; 4];
    match rand::fill(&mut key) {
        Ok(()) => Ok(Some(key)),
        Err(_) => Err(NetError::new(NetErrorCode::Internal, "The system has no random numbers")),
    }
}

fn describe(error: &NetError) -> (ErrorKind, String) {
    let kind = match error.code {
        NetErrorCode::Reset => ErrorKind::ConnectionReset,
        _ => ErrorKind::Other,
    };
    (kind, error.message.clone())
}
