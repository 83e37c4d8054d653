//! A connection of a client: delivers its requests, and bounds its resources. An idle one counts as a pending request head.
use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{sleep, timeout, Instant};

use super::flush::{self, Flush};
use super::head::request_head;
use super::stream;
use super::streams::{Streams, CONNECTION_WINDOW, DATA_FRAME_BUDGET, MAX_FORGOTTEN, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW};
use crate::addon::accept_queue::AcceptQueue;
use crate::error::{NetError, NetErrorCode};
use crate::http::head::{HeadLimits, Incoming, TlsPeer};
use crate::http::pending_heads::{HeadPermit, PendingHeads};
use crate::net::address::AddressKey;
use crate::stream::reader::ReadHalf;
use crate::stream::tcp_socket::{Tcp, READ_ENDED, WRITE_ENDED};
use crate::stream::writer::WriteHalf;
use crate::stream::Halves;

/// The connection preface of a client (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How many more requests a client may reset before their response than it lets complete.
const MAX_RESETS: usize = 200;
/// How long a connection without a request stays open.
const IDLE: Duration = Duration::from_secs(180);
/// The same once the listener has stopped accepting.
const DRAINING: Duration = Duration::from_millis(500);
/// How long the last frames may take.
pub(super) const LAST_FRAMES: Duration = Duration::from_secs(1);

pub(super) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

type Connection = server::Connection<Box<dyn Transport>, Bytes>;
type Accepted = (Request<RecvStream>, SendResponse<Bytes>);

/// Whether a listener goes on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenerState {
    Accepting,
    /// It accepts, but clients that have had a request served should go elsewhere.
    Draining,
    /// It has stopped accepting.
    Stopped,
}

/// The client, and the resources of its listener.
pub struct Client {
    pub remote: String,
    pub peer: TlsPeer,
    pub key: Option<AddressKey>,
    pub pending: Arc<PendingHeads>,
    pub accept_queue: Arc<AcceptQueue<Incoming>>,
    pub listener: watch::Receiver<ListenerState>,
}

/// Starts HTTP/2 on a stream. `None`: the peer has sent nothing, as health checks do, or has gone. A stream that begins with something else is
/// returned with an error.
pub async fn open<T>(mut stream: T, tcp: &Arc<Tcp>, limits: &HeadLimits) -> Result<Option<Http2>, (T, NetError)>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut read = BytesMut::with_capacity(PREFACE.len());
    while read.len() < PREFACE.len() {
        let room = (PREFACE.len() - read.len()) as u64;
        if !matches!((&mut stream).take(room).read_buf(&mut read).await, Ok(1..)) {
            return Ok(None);
        }
        if !PREFACE.starts_with(&read) {
            return Err((stream, not_http2(&read)));
        }
    }
    let streams = Arc::default();
    let (stream, flush) = flush::watch(stream, &streams);
    let (reader, writer) = tokio::io::split(stream);
    let transport: Box<dyn Transport> = Box::new(tokio::io::join(PREFACE.chain(reader), writer));
    let connection = server::Builder::new()
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(limits.bytes).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(MAX_FORGOTTEN)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .enable_connect_protocol()
        .handshake(transport)
        .await;
    let Ok(connection) = connection else { return Ok(None) };
    Ok(Some(Http2 {
        connection,
        tcp: tcp.clone(),
        streams,
        flush,
    }))
}

fn not_http2(first: &[u8]) -> NetError {
    let message = match first.first() {
        Some(0x16) => "This is TLS, but this port accepts only HTTP/2 without TLS",
        Some(0x04 | 0x05) => "This is SOCKS, but this port accepts only HTTP/2",
        Some(b'A'..=b'Z') => "This is HTTP/1.1, but this port accepts only HTTP/2",
        _ => "This is not HTTP/2",
    };
    NetError::remote(NetErrorCode::NotHttp2, message)
}

pub struct Http2 {
    connection: Connection,
    tcp: Arc<Tcp>,
    streams: Arc<Streams>,
    flush: Flush,
}

impl Http2 {
    /// Delivers requests until the connection ends. The first one must come within `time`; until then the connection has `permit`.
    pub async fn serve(mut self, client: Client, permit: HeadPermit, time: Duration) {
        let mut is_new = true;
        let end = self.deliver(&client, permit, time, &mut is_new).await;
        let error = match end {
            Ended::Here(error, reason) => {
                self.connection.abrupt_shutdown(reason);
                let _ = timeout(LAST_FRAMES, poll_fn(|context| self.connection.poll_closed(context))).await;
                error
            }
            Ended::ByPeer(Some(error)) if error.is_go_away() && error.is_library() => Some(NetError::remote(
                NetErrorCode::HeadMalformed,
                format!("The client violated HTTP/2: {error}"),
            )),
            Ended::ByPeer(_) => None,
        };
        if let Some(error) = error.filter(|_| is_new) {
            let _ = client.accept_queue.push(Incoming::new(None, client.remote, Err(error)));
            // dropped if the queue is closed
        }
        let Self {
            connection, tcp, flush, ..
        } = self;
        drop((connection, flush)); // its streams learn that it is lost
        tcp.end(READ_ENDED | WRITE_ENDED);
        tcp.linger().await;
    }

    async fn deliver(&mut self, client: &Client, permit: HeadPermit, time: Duration, is_new: &mut bool) -> Ended {
        let mut permit = Some(permit);
        let mut listener = client.listener.clone();
        let mut is_draining = false;
        let mut window = CONNECTION_WINDOW;
        let idle = sleep(time);
        tokio::pin!(idle);
        loop {
            // a client that connects in order to send one request must get it served
            let leaves_at = if *is_new { ListenerState::Stopped } else { ListenerState::Draining };
            tokio::select! {
                biased;
                accepted = accept(&mut self.connection, &client.accept_queue) => match accepted {
                    Some(Ok(accepted)) => {
                        *is_new = false;
                        self.push(client, accepted);
                    }
                    Some(Err(error)) => return Ended::ByPeer(Some(error)),
                    None => return Ended::ByPeer(None),
                },
                () = self.flush.run() => {}
                () = self.streams.changed() => self.flush.take(),
                _ = listener.wait_for(|state| *state >= leaves_at), if !is_draining => {
                    is_draining = true;
                    self.connection.graceful_shutdown();
                    if permit.is_some() {
                        idle.as_mut().reset(Instant::now() + DRAINING);
                    }
                }
                error = evicted(&mut permit) => return Ended::Here(Some(error), Reason::NO_ERROR),
                () = &mut idle, if permit.is_some() => {
                    let error = NetError::remote(NetErrorCode::HeadTimeout, "No request was received in time");
                    return Ended::Here(Some(error), Reason::NO_ERROR);
                }
            }
            if self.streams.resets() > MAX_RESETS {
                return Ended::Here(None, Reason::ENHANCE_YOUR_CALM);
            }
            if window != self.streams.window() {
                window = self.streams.window();
                self.connection.set_target_window_size(window);
            }
            match (self.streams.has_open(), permit.is_some()) {
                (true, true) => permit = None,
                (false, false) => {
                    permit = Some(client.pending.acquire(client.key));
                    idle.as_mut().reset(Instant::now() + if is_draining { DRAINING } else { IDLE });
                }
                _ => {}
            }
        }
    }

    fn push(&self, client: &Client, (request, respond): Accepted) {
        let method = request.method().clone();
        let (head, framing) = request_head(&request, !request.body().is_end_stream());
        let (reader, writer) = stream::accept(&method, framing, request.into_body(), respond, self.streams.clone());
        let stream = reader.stream().clone();
        let halves = Halves::new(ReadHalf::Http2(reader), WriteHalf::Http2(writer));
        let mut incoming = Incoming::new(Some(halves), client.remote.clone(), Ok(Some(head)));
        incoming.peer = client.peer.clone();
        incoming.is_http2 = true;
        if let Err(incoming) = client.accept_queue.push(incoming) {
            stream.refuse();
            drop(incoming);
        }
    }
}

/// Which side has ended the connection, and why.
enum Ended {
    ByPeer(Option<h2::Error>),
    Here(Option<NetError>, Reason),
}

/// The next request; `None` at the end. The connection also runs while the queue is full.
async fn accept(connection: &mut Connection, accept_queue: &AcceptQueue<Incoming>) -> Option<Result<Accepted, h2::Error>> {
    if accept_queue.is_full() {
        tokio::select! {
            biased;
            closed = poll_fn(|context| connection.poll_closed(context)) => return closed.err().map(Err),
            () = accept_queue.space() => {}
        }
    }
    connection.accept().await
}

async fn evicted(permit: &mut Option<HeadPermit>) -> NetError {
    match permit {
        Some(permit) => permit.evicted().await,
        None => pending().await,
    }
}
