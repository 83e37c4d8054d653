//! A request stream: its halves, and how it ends. The receiving half returns credit for what is read, and the sending half waits for credit,
//! so that a slow end of a tunnel stops the other one, whatever window the client offers.
use std::fmt::Write;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{ready, Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Response};

use super::body::{Body, Part};
use super::errors::{malformed, read_failure, request_failure, stream_failure};
use super::head::{self, Asked, Framing};
use super::shared_waker::SharedWaker;
use super::streams::Streams;
use crate::error::{NetError, NetErrorCode};
use crate::http::head::HeadScanner;
use crate::stream::tcp_socket::{READ_ENDED, WRITE_ENDED};
use crate::sync::lock;

/// Longest head in bytes that is written, with what the proxy adds to that of an origin.
const MAX_HEAD: usize = 128 << 10;
/// Data in the same write after a response head, up to this size, waits for no credit: an error response must not wait for a client that
/// grants none.
const SMALL_BODY: usize = 16 << 10;

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
    is_refused: AtomicBool,
    /// It counts as a stream with a window of its own.
    has_window: AtomicBool,
    streams: Arc<Streams>,
}

/// The role of this side of the stream.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Client { is_connect: bool },
    Server { is_connect: bool, is_head: bool },
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
    /// No request has been sent yet.
    Idle,
    /// The response to a request.
    Response(ResponseFuture, Asked),
    Body(RecvStream),
    Over,
}

/// A stream that is to be reset: it was dropped without both ends.
pub struct CutStream {
    sending: Sending,
    reason: Reason,
    has_response: bool,
}

/// The receiving side of a stream.
enum Received {
    Head(Bytes, Framing),
    /// Credit for the data must be returned.
    Data(Bytes),
    Trailers(HeaderMap),
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
    /// Known once the head is written.
    body: Body,
    has_ended: bool,
}

/// Creates the halves of a stream that a client has opened.
pub fn accept(
    method: &Method,
    framing: Framing,
    body: RecvStream,
    respond: SendResponse<Bytes>,
    streams: Arc<Streams>,
) -> (RecvHalf, SendHalf) {
    let sending = Sending::Response(respond, HeadScanner::new(MAX_HEAD));
    let role = Role::Server {
        is_connect: method == Method::CONNECT,
        is_head: method == Method::HEAD,
    };
    halves(role, sending, Receiving::Body(body), framing, streams)
}

/// Creates the halves of a stream to a server. It begins when the head of its request is written. `is_connect`: it becomes a tunnel.
pub fn open(is_connect: bool, request: SendRequest<Bytes>, streams: Arc<Streams>) -> (RecvHalf, SendHalf) {
    let sending = Sending::Request(request, HeadScanner::new(MAX_HEAD));
    halves(Role::Client { is_connect }, sending, Receiving::Idle, Framing::Raw, streams)
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
        is_refused: AtomicBool::new(false),
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
    let writer = SendHalf {
        owner,
        body: Body::Raw,
        has_ended: false,
    };
    (reader, writer)
}

impl Drop for Owner {
    fn drop(&mut self) {
        let Self { stream, ended } = self;
        let sending = std::mem::replace(&mut *lock(&stream.sending), Sending::Over);
        if *ended.get_mut() != READ_ENDED | WRITE_ENDED {
            stream.streams.cut(CutStream {
                sending,
                reason: stream.reason(),
                has_response: stream.has_response(),
            });
        } else {
            stream.streams.ended(false);
            drop(sending);
        }
        // without both of them `h2` ends the stream: after an early response with RST_STREAM(NO_ERROR) (RFC 9113 §8.1)
        *lock(&stream.receiving) = Receiving::Over;
        if stream.has_window.load(Ordering::Relaxed) {
            stream.streams.remove_window();
        }
    }
}

impl CutStream {
    /// Resets it, which discards what the connection has not written.
    pub fn reset(mut self, streams: &Streams) {
        let was_reset = self.sending.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready();
        self.sending.reset(self.reason);
        streams.ended(was_reset && !self.has_response);
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
            Role::Client { is_connect: true } | Role::Server { is_connect: true, .. } if self.has_response() => Reason::CONNECT_ERROR,
            Role::Client { .. } => Reason::CANCEL,
            Role::Server { .. } if self.is_refused.load(Ordering::Relaxed) => Reason::REFUSED_STREAM,
            Role::Server { .. } => Reason::INTERNAL_ERROR,
        }
    }

    /// Nothing has looked at the request: the client may send it again (RFC 9113 §8.7).
    pub fn refuse(&self) {
        self.is_refused.store(true, Ordering::Relaxed);
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
            Receiving::Response(response, asked) => {
                // a tunnel has no use for them
                if matches!(asked, Asked::Content { .. }) {
                    match ready!(response.poll_informational(context)) {
                        Some(Ok(interim)) => {
                            let head = Received::Head(head::interim_head(&interim), Framing::Raw);
                            return Poll::Ready(Some(Ok(head)));
                        }
                        Some(Err(error)) => return Poll::Ready(Some(Err(request_failure(&error)))),
                        None => {} // the final one follows
                    }
                }
                let response = ready!(Pin::new(response).poll(context));
                let ((head, framing), body) = match response {
                    Ok(response) => {
                        let has_body = !response.body().is_end_stream();
                        (head::response_head(&response, asked, has_body), response.into_body())
                    }
                    Err(error) => return Poll::Ready(Some(Err(request_failure(&error)))),
                };
                self.has_response.store(true, Ordering::Relaxed);
                *receiving = Receiving::Body(body);
                Poll::Ready(Some(Ok(Received::Head(head, framing))))
            }
            Receiving::Body(body) => {
                let received = match ready!(body.poll_data(context)) {
                    Some(data) => data.map(Received::Data),
                    None => match ready!(body.poll_trailers(context)) {
                        Ok(None) => return Poll::Ready(None),
                        trailers => trailers.map(|trailers| Received::Trailers(trailers.unwrap_or_default())),
                    },
                };
                Poll::Ready(Some(received.map_err(|error| read_failure(&error))))
            }
            Receiving::Over => Poll::Ready(None),
        }
    }
}

impl RecvHalf {
    /// The next bytes, at most `max`, or a whole head; `None` at the end. Data that arrived before a reset is returned first.
    pub async fn read(&mut self, max: usize) -> Result<Option<Bytes>, NetError> {
        while self.rest.is_empty() {
            if self.has_ended {
                return Ok(None);
            }
            let stream = &self.owner.stream;
            let received = stream.receive_waker.wait(|context| stream.poll_received(context)).await;
            let trailers = match received.transpose()? {
                Some(Received::Head(head, framing)) => {
                    self.framing = framing;
                    return Ok(Some(head));
                }
                Some(Received::Data(data)) => {
                    self.rest = data;
                    continue;
                }
                Some(Received::Trailers(trailers)) => trailers,
                None => HeaderMap::new(),
            };
            self.has_ended = true;
            return Ok(match self.framing {
                Framing::Raw => None,
                Framing::Chunked => Some(head::last_chunk(&trailers)),
            });
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
    fn send_request(&self, request: &mut SendRequest<Bytes>, head: &[u8]) -> Result<(SendStream<Bytes>, Body), NetError> {
        let (wanted, framing) = head::request(head).ok_or_else(|| malformed("request"))?;
        let asked = Asked::of(&wanted);
        if matches!(asked, Asked::Tunnel(Some(_))) && !request.is_extended_connect_protocol_enabled() {
            return Err(NetError::remote(
                NetErrorCode::Reset,
                "The server does not serve extended CONNECT (RFC 8441)",
            ));
        }
        let (response, body) = request
            .send_request(wanted, framing.is_empty())
            .map_err(|error| request_failure(&error))?;
        *lock(&self.receiving) = Receiving::Response(response, asked);
        // from now on the connection may resolve futures that waited for it
        self.receive_waker.notify();
        self.send_waker.notify();
        Ok((body, framing))
    }

    /// Parses the head of a response. A tunnel, and the response to HEAD, have no framing.
    fn parse_response(&self, head: &[u8]) -> Result<(Response<()>, Body), NetError> {
        let (response, body) = head::response(head).ok_or_else(|| malformed("response"))?;
        let is_unframed = match self.role {
            Role::Server { is_connect: true, .. } => response.status().is_success(),
            Role::Server { is_head, .. } => is_head,
            Role::Client { .. } => false,
        };
        Ok((response, if is_unframed { Body::Raw } else { body }))
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
        let Some(Part { mut content, end }) = self.write_head(data)? else {
            return Ok(());
        };
        let stream = &self.owner.stream;
        while !content.is_empty() {
            let sent = stream
                .send_waker
                .wait(|context| {
                    let mut sending = lock(&stream.sending);
                    let Sending::Body(body) = &mut *sending else {
                        return Poll::Ready(Err(NetError::closed()));
                    };
                    body.reserve_capacity(content.len());
                    let room = match body.capacity() {
                        0 => match body.poll_capacity(context) {
                            Poll::Pending => return Poll::Pending,
                            Poll::Ready(Some(Ok(room))) => room,
                            Poll::Ready(_) => 0,
                        },
                        room => room,
                    };
                    let part = content.split_to(room.min(content.len()));
                    if part.is_empty() || body.send_data(part, false).is_err() {
                        return Poll::Ready(Err(stream.send_failure(&mut sending)));
                    }
                    Poll::Ready(Ok(()))
                })
                .await;
            sent?;
        }
        match end {
            Some(trailers) => self.send_end(trailers),
            None => Ok(()),
        }
    }

    /// Sends the head; that of a response may have interim ones before it. Returns the data after it; `None` if it is not complete.
    fn write_head(&mut self, mut data: Bytes) -> Result<Option<Part>, NetError> {
        let stream = &self.owner.stream;
        let mut sending = lock(&stream.sending);
        loop {
            let scanner = match &mut *sending {
                Sending::Request(_, scanner) | Sending::Response(_, scanner) => scanner,
                Sending::Body(_) | Sending::Over => return self.body.take(data).map(Some),
            };
            let Some((head, rest)) = scanner.push(data)? else { return Ok(None) };
            let mut body;
            (body, self.body) = match &mut *sending {
                Sending::Request(request, _) => stream.send_request(request, &head)?,
                Sending::Response(respond, scanner) => {
                    let (response, framing) = stream.parse_response(&head)?;
                    if response.status().is_informational() {
                        if respond.send_informational(response).is_err() {
                            return Err(stream.send_failure(&mut sending));
                        }
                        *scanner = HeadScanner::new(MAX_HEAD);
                        data = rest;
                        continue;
                    }
                    let Ok(body) = respond.send_response(response, framing.is_empty()) else {
                        return Err(stream.send_failure(&mut sending));
                    };
                    stream.has_response.store(true, Ordering::Relaxed);
                    (body, framing)
                }
                Sending::Body(_) | Sending::Over => return Err(NetError::closed()), // handled above
            };
            self.has_ended = self.body.is_empty();
            let mut part = match rest.is_empty() {
                true => Part::default(),
                false => self.body.take(rest)?,
            };
            let is_small = !part.content.is_empty() && part.content.len() <= SMALL_BODY;
            if is_small && body.send_data(part.content.clone(), false).is_ok() {
                part.content = Bytes::new();
            }
            *sending = Sending::Body(body);
            stream.add_window();
            return Ok(Some(part));
        }
    }

    /// Ends the direction.
    pub fn finish(&mut self) -> Result<(), NetError> {
        if self.has_ended {
            return Ok(());
        }
        if !self.body.may_end() {
            return Err(NetError::new(NetErrorCode::Internal, "The body is not complete"));
        }
        self.send_end(HeaderMap::new())
    }

    fn send_end(&mut self, trailers: HeaderMap) -> Result<(), NetError> {
        let stream = &self.owner.stream;
        let mut sending = lock(&stream.sending);
        self.has_ended = match &mut *sending {
            Sending::Body(body) if trailers.is_empty() => body.send_data(Bytes::new(), true).is_ok(),
            Sending::Body(body) => body.send_trailers(trailers).is_ok(),
            _ => false,
        };
        match self.has_ended {
            true => Ok(()),
            false => Err(stream.send_failure(&mut sending)),
        }
    }

    /// Resolves when the connection has written what was sent.
    pub async fn flushed(&self) {
        self.owner.stream.streams.flushed().await;
    }

    pub fn stopped(&self) -> impl Future<Output = NetError> + Send + 'static {
        self.owner.stream.clone().reset()
    }

    /// The direction has ended.
    pub fn end(&self) {
        self.owner.ended.fetch_or(WRITE_ENDED, Ordering::AcqRel);
    }
}
