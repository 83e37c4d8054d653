//! A request stream: its halves, and how it ends. The receiving half returns credit for what is read, and the sending half waits for credit,
//! so that a slow end of a tunnel stops the other one, whatever window the client offers.
use std::fmt::Write;
use std::future::Future;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use tokio::sync::Notify;

use super::connection::Streams;
use super::head::{self, Framing};
use crate::error::{NetError, NetErrorCode};
use crate::http::head::HeadScanner;
use crate::stream::tcp_socket::{READ_ENDED, WRITE_ENDED};
use crate::sync::{lock, wait_for};

/// Longest response head in bytes, with what the proxy adds to that of an origin.
const MAX_RESPONSE_HEAD: usize = 128 << 10;
/// What follows a response head in the same write, up to this size, waits for no credit: an error response must not wait for a client that
/// grants none.
const SMALL_BODY: usize = 16 << 10;
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A stream without its halves.
pub struct Stream {
    sending: Mutex<Sending>,
    receiving: Mutex<Option<RecvStream>>,
    /// Notified when credit or a reset has arrived.
    send_waker: SharedWaker,
    /// Notified when data or an end has arrived.
    receive_waker: SharedWaker,
    is_connect: bool,
    has_response: AtomicBool,
    streams: Arc<Streams>,
}

enum Sending {
    Head(SendResponse<Bytes>, HeadScanner),
    Body(SendStream<Bytes>),
    Over,
}

/// Wakes all that wait: `h2` remembers one waker for each direction.
struct SharedWaker {
    notify: Arc<NotifyWaker>,
    waker: Waker,
}

struct NotifyWaker(Notify);

impl Wake for NotifyWaker {
    fn wake(self: Arc<Self>) {
        self.0.notify_waiters();
    }
}

impl SharedWaker {
    fn new() -> Self {
        let notify = Arc::new(NotifyWaker(Notify::new()));
        Self {
            waker: Waker::from(notify.clone()),
            notify,
        }
    }

    /// Resolves with what `poll` returns, which is called again after each notification.
    async fn wait<T>(&self, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
        wait_for(&self.notify.0, || match poll(&mut Context::from_waker(&self.waker)) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        })
        .await
    }
}

/// Both halves own the stream, which can only be reset as a whole: without both ends, the last one resets it.
struct Owner {
    stream: Arc<Stream>,
    ended: AtomicU8,
}

/// The receiving half.
pub struct RecvHalf {
    owner: Arc<Owner>,
    framing: Framing,
    /// Received, and not returned yet.
    rest: Bytes,
    has_ended: bool,
}

/// The sending half.
pub struct SendHalf {
    owner: Arc<Owner>,
}

/// Creates the halves of a stream.
pub fn open(
    is_connect: bool,
    framing: Framing,
    body: RecvStream,
    respond: SendResponse<Bytes>,
    streams: Arc<Streams>,
) -> (RecvHalf, SendHalf) {
    streams.opened();
    let stream = Arc::new(Stream {
        sending: Mutex::new(Sending::Head(respond, HeadScanner::new(MAX_RESPONSE_HEAD))),
        receiving: Mutex::new(Some(body)),
        send_waker: SharedWaker::new(),
        receive_waker: SharedWaker::new(),
        is_connect,
        has_response: AtomicBool::new(false),
        streams,
    });
    let owner = Arc::new(Owner {
        stream,
        ended: AtomicU8::new(0),
    });
    let reader = RecvHalf {
        owner: owner.clone(),
        framing,
        rest: Bytes::new(),
        has_ended: false,
    };
    (reader, SendHalf { owner })
}

impl Drop for Owner {
    fn drop(&mut self) {
        let Self { stream, ended } = self;
        let mut sending = lock(&stream.sending);
        if *ended.get_mut() != READ_ENDED | WRITE_ENDED {
            let was_reset = sending.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready();
            sending.reset(stream.reason());
            stream.streams.ended(was_reset && !stream.has_response());
        } else {
            stream.streams.ended(false);
        }
        // without them `h2` ends the stream: after an early response with RST_STREAM(NO_ERROR) (RFC 9113 §8.1)
        *sending = Sending::Over;
        drop(sending);
        drop(lock(&stream.receiving).take());
        if stream.has_response() {
            stream.streams.remove_window();
        }
    }
}

impl Sending {
    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<Result<Reason, h2::Error>> {
        match self {
            Self::Head(respond, _) => respond.poll_reset(context),
            Self::Body(body) => body.poll_reset(context),
            Self::Over => Poll::Pending,
        }
    }

    fn reset(&mut self, reason: Reason) {
        match self {
            Self::Head(respond, _) => respond.send_reset(reason),
            Self::Body(body) => body.send_reset(reason),
            Self::Over => {}
        }
    }
}

impl Stream {
    fn has_response(&self) -> bool {
        self.has_response.load(Ordering::Relaxed)
    }

    /// Why the stream is reset (RFC 9113 §8.5).
    fn reason(&self) -> Reason {
        match self.is_connect && self.has_response() {
            true => Reason::CONNECT_ERROR,
            false => Reason::INTERNAL_ERROR,
        }
    }

    /// Bytes received and not read.
    pub fn held(&self) -> u64 {
        let mut receiving = lock(&self.receiving);
        receiving.as_mut().map_or(0, |body| body.flow_control().used_capacity() as u64)
    }

    /// Resolves when the client resets the stream or the connection is lost, even if nothing is read or written. Does not resolve at a regular
    /// end.
    pub async fn reset(self: Arc<Self>) -> NetError {
        self.send_waker
            .wait(|context| lock(&self.sending).poll_reset(context).map(|reason| failure(&reason)))
            .await
    }

    /// Why nothing can be sent any more.
    fn send_failure(&self, sending: &mut Sending) -> NetError {
        match sending.poll_reset(&mut Context::from_waker(&self.send_waker.waker)) {
            Poll::Ready(reason) => failure(&reason),
            Poll::Pending => NetError::closed(),
        }
    }
}

fn failure(reason: &Result<Reason, h2::Error>) -> NetError {
    match reason {
        Ok(reason) => NetError::remote(NetErrorCode::Reset, format!("The stream was reset with the error code {reason:?}")),
        Err(error) => lost(error),
    }
}

fn read_failure(error: &h2::Error) -> NetError {
    match error.reason() {
        Some(reason) if error.is_reset() => failure(&Ok(reason)),
        _ => lost(error),
    }
}

fn lost(error: &h2::Error) -> NetError {
    let is_closed = error
        .get_io()
        .is_some_and(|error| matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe));
    let message = match is_closed {
        true => "The connection was closed before the stream had ended".to_owned(),
        false => format!("The connection was lost: {error}"),
    };
    NetError::remote(NetErrorCode::Reset, message)
}

impl RecvHalf {
    /// The next bytes, at most `max`; `None` at the end. What arrived before a reset is returned first.
    pub async fn read(&mut self, max: usize) -> Result<Option<Bytes>, NetError> {
        while self.rest.is_empty() {
            if self.has_ended {
                return Ok(None);
            }
            let stream = &self.owner.stream;
            let data = stream
                .receive_waker
                .wait(|context| match &mut *lock(&stream.receiving) {
                    Some(body) => body.poll_data(context),
                    None => Poll::Ready(None),
                })
                .await;
            self.rest = match data {
                Some(Ok(data)) => data,
                Some(Err(error)) => return Err(read_failure(&error)),
                None => {
                    self.has_ended = true;
                    match self.framing {
                        Framing::Raw => return Ok(None),
                        Framing::Chunked => return Ok(Some(Bytes::from_static(LAST_CHUNK))),
                    }
                }
            };
        }
        let data = self.rest.split_to(self.rest.len().min(max.max(1)));
        if let Some(body) = &mut *lock(&self.owner.stream.receiving) {
            let _ = body.flow_control().release_capacity(data.len()); // fails if the stream has ended
        }
        Ok(Some(match self.framing {
            Framing::Raw => data,
            Framing::Chunked => chunk(&data),
        }))
    }

    pub fn stream(&self) -> &Arc<Stream> {
        &self.owner.stream
    }

    /// The direction has ended, or the rest of it is not wanted.
    pub fn end(&self) {
        self.owner.ended.fetch_or(READ_ENDED, Ordering::AcqRel);
    }
}

/// One chunk (RFC 9112 §7.1).
fn chunk(data: &[u8]) -> Bytes {
    let mut chunk = BytesMut::with_capacity(data.len() + 16);
    let _ = write!(chunk, "{:x}\r\n", data.len()); // does not fail
    chunk.extend_from_slice(data);
    chunk.extend_from_slice(b"\r\n");
    chunk.freeze()
}

impl SendHalf {
    /// Sends a part of the response, which begins with its head. Resolves when the connection has taken all of it.
    pub async fn write(&mut self, data: Bytes) -> Result<(), NetError> {
        let Some(mut data) = self.write_head(data)? else { return Ok(()) };
        let stream = &self.owner.stream;
        while !data.is_empty() {
            let sent = stream
                .send_waker
                .wait(|context| {
                    let mut sending = lock(&stream.sending);
                    let Sending::Body(body) = &mut *sending else {
                        return Poll::Ready(Err(NetError::closed()));
                    };
                    body.reserve_capacity(data.len());
                    let room = match body.capacity() {
                        0 => match body.poll_capacity(context) {
                            Poll::Pending => return Poll::Pending,
                            Poll::Ready(Some(Ok(room))) => room,
                            Poll::Ready(_) => 0,
                        },
                        room => room,
                    };
                    let part = data.split_to(room.min(data.len()));
                    if part.is_empty() || body.send_data(part, false).is_err() {
                        return Poll::Ready(Err(stream.send_failure(&mut sending)));
                    }
                    Poll::Ready(Ok(()))
                })
                .await;
            sent?;
        }
        Ok(())
    }

    /// Sends the heads at the start of the response. Returns what follows them; `None` if the final one is not complete.
    fn write_head(&mut self, mut data: Bytes) -> Result<Option<Bytes>, NetError> {
        let stream = &self.owner.stream;
        let mut sending = lock(&stream.sending);
        loop {
            let Sending::Head(respond, scanner) = &mut *sending else {
                return Ok(Some(data));
            };
            let Some((head, rest)) = scanner.push(data)? else { return Ok(None) };
            let response = head::response(&head).ok_or_else(|| NetError::new(NetErrorCode::Internal, "This is not a response head"))?;
            if response.status().is_informational() {
                if respond.send_informational(response).is_err() {
                    return Err(stream.send_failure(&mut sending));
                }
                *scanner = HeadScanner::new(MAX_RESPONSE_HEAD);
                data = rest;
                continue;
            }
            let Ok(mut body) = respond.send_response(response, false) else {
                return Err(stream.send_failure(&mut sending));
            };
            let is_small = !rest.is_empty() && rest.len() <= SMALL_BODY;
            let is_sent = is_small && body.send_data(rest.clone(), false).is_ok();
            *sending = Sending::Body(body);
            stream.has_response.store(true, Ordering::Relaxed);
            stream.streams.add_window();
            return Ok(Some(if is_sent { Bytes::new() } else { rest }));
        }
    }

    /// Ends the response.
    pub fn finish(&mut self) -> Result<(), NetError> {
        let stream = &self.owner.stream;
        let mut sending = lock(&stream.sending);
        let is_sent = match &mut *sending {
            Sending::Body(body) => body.send_data(Bytes::new(), true).is_ok(),
            _ => false,
        };
        match is_sent {
            true => Ok(()),
            false => Err(stream.send_failure(&mut sending)),
        }
    }

    pub fn stopped(&self) -> impl Future<Output = NetError> + Send + 'static {
        self.owner.stream.clone().reset()
    }

    /// The direction has ended.
    pub fn end(&self) {
        self.owner.ended.fetch_or(WRITE_ENDED, Ordering::AcqRel);
    }
}
