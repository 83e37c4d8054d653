//! A connection to a server, with many streams. A server that speaks HTTP/1.1 is recognized before anything is asked of it.
use std::future::{poll_fn, Future};
use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{ready, Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, SendRequest};
use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::connection::Transport;
use super::stream;
use super::streams::{Streams, CONNECTION_WINDOW, DATA_FRAME_BUDGET, MAX_FORGOTTEN, SEND_BUFFER, STREAM_WINDOW};
use crate::error::{NetError, NetErrorCode};
use crate::stream::reader::ReadHalf;
use crate::stream::writer::WriteHalf;
use crate::stream::Halves;

/// Protocols to offer (RFC 7301). Servers that know neither are taken for the latter.
pub const ALPN: &[&str] = &["h2", "http/1.1"];
/// Longest list of fields of a response in bytes, as HPACK counts them.
const MAX_FIELDS: u32 = 64 << 10;
/// Interval of pings, which keep the connection open in middleboxes and detect a peer that is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Time for the answer to a ping. It comes after the data that waits to be sent.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The type of a SETTINGS frame (RFC 9113 §6.5), and where a frame has its type.
const SETTINGS: u8 = 4;
const TYPE_AT: usize = 3;

type Connection = client::Connection<Box<dyn Transport>, Bytes>;

/// A connection. Its streams outlive it.
pub struct Client {
    requests: SendRequest<Bytes>,
    streams: Arc<Streams>,
    task: AbortHandle,
}

/// Starts HTTP/2 within `limit`. `not-http2`: the server speaks something else.
pub async fn open(transport: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, limit: Duration) -> Result<Client, NetError> {
    let opening = async {
        let transport: Box<dyn Transport> = Box::new(Checked { transport, read: 0 });
        let (requests, mut connection) = client::Builder::new()
            .enable_push(false)
            .initial_max_send_streams(0) // until the settings of the server are known
            .max_header_list_size(MAX_FIELDS)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_reset_streams(MAX_FORGOTTEN)
            .data_frame_budget(DATA_FRAME_BUDGET)
            .handshake(transport)
            .await
            .map_err(|error| failure(&error))?;
        let settings = poll_fn(|context| match Pin::new(&mut connection).poll(context) {
            Poll::Ready(Ok(())) => Poll::Ready(Err(not_http2())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(failure(&error))),
            Poll::Pending if connection.max_concurrent_send_streams() > 0 => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        });
        settings.await?;
        Ok((requests, connection))
    };
    let (requests, connection) = timeout(limit, opening)
        .await
        .map_err(|_| NetError::remote(NetErrorCode::TimedOut, "The server did not start HTTP/2 in time"))??;
    let streams = Arc::<Streams>::default();
    let task = tokio::spawn(run(connection, streams.clone())).abort_handle();
    Ok(Client { requests, streams, task })
}

fn failure(error: &h2::Error) -> NetError {
    match error.get_io() {
        Some(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => not_http2(),
        _ => NetError::remote(NetErrorCode::Reset, format!("The connection was lost: {error}")),
    }
}

fn not_http2() -> NetError {
    NetError::remote(NetErrorCode::NotHttp2, "The server does not speak HTTP/2")
}

impl Client {
    /// Opens a stream, which begins when a request is written to it. `limit`: as many streams are open as the server allows. `closed`: the
    /// connection is lost, or takes no more streams.
    pub fn open_stream(&self) -> Result<Halves, NetError> {
        let mut requests = self.requests.clone();
        if let Poll::Ready(Err(error)) = requests.poll_ready(&mut Context::from_waker(Waker::noop())) {
            return Err(NetError::remote(
                NetErrorCode::Closed,
                format!("The connection takes no more streams: {error}"),
            ));
        }
        if self.streams.open() >= requests.current_max_send_streams() {
            return Err(NetError::new(
                NetErrorCode::Limit,
                "As many streams are open as the server allows on a connection",
            ));
        }
        let (reader, writer) = stream::open(requests, self.streams.clone());
        Ok(Halves::new(ReadHalf::Http2(reader), WriteHalf::Http2(writer)))
    }

    /// Resets all streams.
    pub fn abort(&self) {
        self.task.abort();
    }
}

/// Runs the connection until it is lost, or until nothing uses it any more.
async fn run(mut connection: Connection, streams: Arc<Streams>) {
    let pings = connection.ping_pong();
    let lost = keep_alive(pings);
    tokio::pin!(lost);
    let mut window = CONNECTION_WINDOW;
    loop {
        tokio::select! {
            biased;
            // its streams learn how it ended
            _ = &mut connection => return,
            () = streams.changed() => {
                if window != streams.window() {
                    window = streams.window();
                    connection.set_target_window_size(window);
                }
            }
            () = &mut lost => return,
        }
    }
}

/// Resolves when the peer does not answer.
async fn keep_alive(pings: Option<PingPong>) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        sleep(KEEP_ALIVE).await;
        if !matches!(timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

/// A transport whose first frame must be SETTINGS, as that of every server (RFC 9113 §3.4): `h2` would wait for the rest of another one, whose
/// length may be any.
struct Checked<T> {
    transport: T,
    /// Bytes that were read, up to those that are checked.
    read: usize,
}

impl<T: AsyncRead + Unpin> AsyncRead for Checked<T> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.transport).poll_read(context, buffer))?;
        if self.read <= TYPE_AT {
            let new = &buffer.filled()[before..];
            if new.get(TYPE_AT - self.read).is_some_and(|kind| *kind != SETTINGS) {
                return Poll::Ready(Err(Error::from(ErrorKind::InvalidData)));
            }
            self.read += new.len();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Checked<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(context)
    }
}
