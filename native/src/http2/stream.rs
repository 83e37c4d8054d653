//! A request stream: its halves, and how it ends. The receiving half returns credit for what is read, and the sending half waits for credit,
//! so that a slow end of a tunnel stops the other one, whatever window the client offers.
use std::fmt::Write;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};

use super::errors::{malformed, read_failure, request_failure, stream_failure};
use super::head::{self, Framing};
use super::shared_waker::SharedWaker;
use super::streams::Streams;
use crate::error::{NetError, NetErrorCode};
use crate::http::head::HeadScanner;
use crate::stream::tcp_socket::{READ_ENDED, WRITE_ENDED};
use crate::sync::lock;

/// Longest head in bytes that is written, with what the proxy adds to that of an origin.
const MAX_HEAD: usize = 128 << 10;
/// What follows a response head in the same write, up to this size, waits for no credit: an error response must not wait for a client that
/// grants none.
const SMALL_BODY: usize = 16 << 10;
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A stream without its halves.
pub struct Stream {
    sending: Mutex<Sending>,
    receiving: Mutex<Receiving>,
    /// Notified when credit or a reset has arrived.
    send_waker: SharedWaker,
    /// Notified when data or an end has arrived.
    receive_waker: SharedWaker,
    role: Role,
    has_response: AtomicBool,
    /// It counts among those that have a window of their own.
    has_window: AtomicBool,
    streams: Arc<Streams>,
}

/// What this side of the stream is.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Client,
    Server { is_connect: bool },
}

enum Sending {
    /// The head of a request is expected.
    Request(SendRequest<Bytes>, HeadScanner),
    /// The head of a response is expected.
    Response(SendResponse<Bytes>, HeadScanner),
    Body(SendStream<Bytes>),
    Over,
}

enum Receiving {
    /// Nothing has been asked for yet.
    Idle,
    /// The response to a request, which may be an extended CONNECT for a protocol.
    Response(ResponseFuture, Option<Protocol>),
    Body(RecvStream),
    Over,
}

/// What a stream receives.
enum Received {
    Head(Bytes),
    /// Its credit is to be returned.
    Data(Bytes),
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

/// Creates the halves of a stream that a client has opened.
pub fn accept(
    is_connect: bool,
    framing: Framing,
    body: RecvStream,
    respond: SendResponse<Bytes>,
    streams: Arc<Streams>,
) -> (RecvHalf, SendHalf) {
    let sending = Sending::Response(respond, HeadScanner::new(MAX_HEAD));
    halves(Role::Server { is_connect }, sending, Receiving::Body(body), framing, streams)
}

/// Creates the halves of a stream to a server. It begins when the head of its request is written.
pub fn open(request: SendRequest<Bytes>, streams: Arc<Streams>) -> (RecvHalf, SendHalf) {
    let sending = Sending::Request(request, HeadScanner::new(MAX_HEAD));
    halves(Role::Client, sending, Receiving::Idle, Framing::Raw, streams)
}

fn halves(role: Role, sending: Sending, receiving: Receiving, framing: Framing, streams: Arc<Streams>) -> (RecvHalf, SendHalf) {
    streams.opened();
    let stream = Arc::new(Stream {
        sending: Mutex::new(sending),
        receiving: Mutex::new(receiving),
        send_waker: SharedWaker::new(),
        receive_waker: SharedWaker::new(),
        role,
        has_response: AtomicBool::new(false),
        has_window: AtomicBool::new(false),
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
        *lock(&stream.receiving) = Receiving::Over;
        if stream.has_window.load(Ordering::Relaxed) {
            stream.streams.remove_window();
        }
    }
}

impl Sending {
    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<Result<Reason, h2::Error>> {
        match self {
            Self::Response(respond, _) => respond.poll_reset(context),
            Self::Body(body) => body.poll_reset(context),
            Self::Request(..) | Self::Over => Poll::Pending,
        }
    }

    fn reset(&mut self, reason: Reason) {
        match self {
            Self::Response(respond, _) => respond.send_reset(reason),
            Self::Body(body) => body.send_reset(reason),
            Self::Request(..) | Self::Over => {}
        }
    }
}

impl Stream {
    fn has_response(&self) -> bool {
        self.has_response.load(Ordering::Relaxed)
    }

    /// Why the stream is reset (RFC 9113 §8.5).
    fn reason(&self) -> Reason {
        match self.role {
            Role::Client | Role::Server { is_connect: true } if self.has_response() => Reason::CONNECT_ERROR,
            Role::Client => Reason::CANCEL,
            Role::Server { .. } => Reason::INTERNAL_ERROR,
        }
    }

    /// Bytes received and not read.
    pub fn held(&self) -> u64 {
        match &mut *lock(&self.receiving) {
            Receiving::Body(body) => body.flow_control().used_capacity() as u64,
            _ => 0,
        }
    }

    /// Resolves when the peer resets the stream or the connection is lost, even if nothing is read or written. Does not resolve at a regular
    /// end.
    pub async fn reset(self: Arc<Self>) -> NetError {
        self.send_waker
            .wait(|context| lock(&self.sending).poll_reset(context).map(|reason| stream_failure(&reason)))
            .await
    }

    fn add_window(&self) {
        self.has_window.store(true, Ordering::Relaxed);
        self.streams.add_window();
    }

    /// Why nothing can be sent any more.
    fn send_failure(&self, sending: &mut Sending) -> NetError {
        match sending.poll_reset(&mut self.send_waker.context()) {
            Poll::Ready(reason) => stream_failure(&reason),
            Poll::Pending => NetError::closed(),
        }
    }
}

impl Stream {
    fn poll_received(&self, context: &mut Context<'_>) -> Poll<Option<Result<Received, NetError>>> {
        let mut receiving = lock(&self.receiving);
        match &mut *receiving {
            Receiving::Idle => Poll::Pending,
            Receiving::Response(response, protocol) => {
                let response = std::task::ready!(Pin::new(response).poll(context));
                let (head, body) = match response {
                    Ok(response) => (head::response_head(&response, protocol.as_ref()), response.into_body()),
                    Err(error) => return Poll::Ready(Some(Err(request_failure(&error)))),
                };
                self.has_response.store(true, Ordering::Relaxed);
                *receiving = Receiving::Body(body);
                Poll::Ready(Some(Ok(Received::Head(head))))
            }
            Receiving::Body(body) => body
                .poll_data(context)
                .map(|data| data.map(|data| data.map(Received::Data).map_err(|error| read_failure(&error)))),
            Receiving::Over => Poll::Ready(None),
        }
    }
}

impl RecvHalf {
    /// The next bytes, at most `max`, or a whole head; `None` at the end. What arrived before a reset is returned first.
    pub async fn read(&mut self, max: usize) -> Result<Option<Bytes>, NetError> {
        while self.rest.is_empty() {
            if self.has_ended {
                return Ok(None);
            }
            let stream = &self.owner.stream;
            let received = stream.receive_waker.wait(|context| stream.poll_received(context)).await;
            self.rest = match received.transpose()? {
                Some(Received::Head(head)) => return Ok(Some(head)),
                Some(Received::Data(data)) => data,
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
        if let Receiving::Body(body) = &mut *lock(&self.owner.stream.receiving) {
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

impl Stream {
    /// Sends the head of a request, whose response can then be received.
    fn send_request(&self, request: &mut SendRequest<Bytes>, head: &[u8]) -> Result<SendStream<Bytes>, NetError> {
        let wanted = head::request(head).ok_or_else(|| malformed("request"))?;
        let protocol = wanted.extensions().get::<Protocol>().cloned();
        if protocol.is_some() && !request.is_extended_connect_protocol_enabled() {
            return Err(NetError::remote(
                NetErrorCode::Reset,
                "The server does not serve extended CONNECT (RFC 8441)",
            ));
        }
        let (response, body) = request.send_request(wanted, false).map_err(|error| request_failure(&error))?;
        *lock(&self.receiving) = Receiving::Response(response, protocol);
        // what waited for it may be resolved by the connection from now on
        self.receive_waker.notify();
        self.send_waker.notify();
        Ok(body)
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
    /// Sends a part of the request or the response, which begins with its head. Resolves when the connection has taken all of it.
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

    /// Sends the head, of a response with interim ones before it. Returns what follows it; `None` if it is not complete.
    fn write_head(&mut self, mut data: Bytes) -> Result<Option<Bytes>, NetError> {
        let stream = &self.owner.stream;
        let mut sending = lock(&stream.sending);
        loop {
            let scanner = match &mut *sending {
                Sending::Request(_, scanner) | Sending::Response(_, scanner) => scanner,
                Sending::Body(_) | Sending::Over => return Ok(Some(data)),
            };
            let Some((head, rest)) = scanner.push(data)? else { return Ok(None) };
            let mut body = match &mut *sending {
                Sending::Request(request, _) => stream.send_request(request, &head)?,
                Sending::Response(respond, scanner) => {
                    let response = head::response(&head).ok_or_else(|| malformed("response"))?;
                    if response.status().is_informational() {
                        if respond.send_informational(response).is_err() {
                            return Err(stream.send_failure(&mut sending));
                        }
                        *scanner = HeadScanner::new(MAX_HEAD);
                        data = rest;
                        continue;
                    }
                    let Ok(body) = respond.send_response(response, false) else {
                        return Err(stream.send_failure(&mut sending));
                    };
                    stream.has_response.store(true, Ordering::Relaxed);
                    body
                }
                Sending::Body(_) | Sending::Over => return Ok(Some(rest)),
            };
            let is_small = !rest.is_empty() && rest.len() <= SMALL_BODY;
            let is_sent = is_small && body.send_data(rest.clone(), false).is_ok();
            *sending = Sending::Body(body);
            stream.add_window();
            return Ok(Some(if is_sent { Bytes::new() } else { rest }));
        }
    }

    /// Ends the direction.
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
