//! A connection to a server, with many streams. A server that speaks HTTP/1.1 is recognized before anything is asked of it.
use std::future::{pending, poll_fn, Future};
use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{ready, Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::{self, SendRequest};
use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::connection::{Transport, LAST_FRAMES};
use super::errors::{not_http2, read_failure};
use super::flush::{self, Flush};
use super::stream;
use super::streams::{Streams, CONNECTION_WINDOW, DATA_FRAME_BUDGET, MAX_FORGOTTEN, SEND_BUFFER, STREAM_WINDOW};
use crate::error::{NetError, NetErrorCode};
use crate::stream::read_buffer::ReadBuffer;
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
/// Bytes in each direction between a connection and the stream that carries it.
const PIPE: usize = 64 << 10;
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
    let streams = Arc::<Streams>::default();
    let (transport, flush) = flush::watch(transport, &streams);
    let opening = async {
        let transport: Box<dyn Transport> = Box::new(Checked { transport, read: 0 });
        // no streams until the settings of the server are known
        let (requests, mut connection) = builder(0).handshake(transport).await.map_err(|error| failure(&error))?;
        let settings = poll_fn(|context| match Pin::new(&mut connection).poll(context) {
            Poll::Ready(Ok(())) => Poll::Ready(Err(not_http2())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(failure(&error))),
            Poll::Pending if connection.max_concurrent_send_streams() > 0 => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        });
        settings.await?;
        Ok((requests, connection))
    };
    let (requests, mut connection) = timeout(limit, opening)
        .await
        .map_err(|_| NetError::remote(NetErrorCode::TimedOut, "The server did not start HTTP/2 in time"))??;
    let lost = keep_alive(connection.ping_pong());
    let task = tokio::spawn(run(connection, streams.clone(), flush, lost)).abort_handle();
    Ok(Client { requests, streams, task })
}

/// The settings of a connection whose peer accepts `streams` before it has said how many.
fn builder(streams: usize) -> client::Builder {
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .initial_max_send_streams(streams)
        .max_header_list_size(MAX_FIELDS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(MAX_FORGOTTEN)
        .data_frame_budget(DATA_FRAME_BUDGET);
    builder
}

fn failure(error: &h2::Error) -> NetError {
    match error.get_io() {
        Some(error) if error.kind() == ErrorKind::UnexpectedEof => not_http2(),
        _ => read_failure(error),
    }
}

/// Starts HTTP/2 on a stream whose other end is known to speak it, and returns the only stream of the connection, which ends with it. Nothing
/// is waited for. `not-http2` when reading: the other end speaks something else. It is not pinged, which servers of gRPC take for a flood.
pub async fn open_over(carrier: Halves) -> Result<Halves, NetError> {
    let (near, far) = tokio::io::duplex(PIPE);
    let streams = Arc::<Streams>::default();
    let (transport, flush) = flush::watch(near, &streams);
    let transport: Box<dyn Transport> = Box::new(Checked { transport, read: 0 });
    let (requests, connection) = builder(1).handshake(transport).await.map_err(|error| failure(&error))?;
    let (reader, writer) = stream::open(false, requests, streams.clone());
    tokio::spawn(async move {
        let (carrying, running) = (carry(carrier, far), run(connection, streams, flush, pending()));
        tokio::pin!(carrying, running);
        tokio::select! {
            () = &mut running => drop(timeout(LAST_FRAMES, carrying).await),
            () = &mut carrying => running.await, // its stream learns of the end
        }
    });
    Ok(Halves::new(ReadHalf::Http2(reader), WriteHalf::Http2(writer)))
}

/// Moves the bytes of a connection over a stream, until either ends.
async fn carry(carrier: Halves, pipe: DuplexStream) {
    let Halves { mut reader, mut writer } = carrier;
    reader.on_drop().set_code(0);
    reader.on_drop().set_finish_on_drop();
    let (mut from, mut to) = tokio::io::split(pipe);
    let sending = async {
        let mut data = BytesMut::new();
        while matches!(from.read_buf(&mut data).await, Ok(1..)) {
            if writer.write(data.split().freeze()).await.is_err() {
                return;
            }
        }
        let _ = writer.finish().await; // if it fails, the other end has gone
    };
    let receiving = async {
        let mut buffer = ReadBuffer::default();
        while let Ok(Some(data)) = reader.read_with(&mut buffer).await {
            if to.write_all(&data).await.is_err() {
                return pending().await; // the connection has ended, and its last frames are still to be sent
            }
        }
    };
    tokio::select! {
        () = sending => {}
        () = receiving => {}
    }
}

impl Client {
    /// Opens a stream, which begins when a request is written to it. `limit`: as many streams are open as the server allows. `closed`: the
    /// connection is lost, or accepts no more streams.
    pub fn open_stream(&self) -> Result<Halves, NetError> {
        let mut requests = self.requests.clone();
        if let Poll::Ready(Err(error)) = requests.poll_ready(&mut Context::from_waker(Waker::noop())) {
            return Err(NetError::remote(
                NetErrorCode::Closed,
                format!("The connection accepts no more streams: {error}"),
            ));
        }
        if self.streams.open() >= requests.current_max_send_streams() {
            return Err(NetError::new(
                NetErrorCode::Limit,
                "As many streams are open as the server allows on a connection",
            ));
        }
        let (reader, writer) = stream::open(true, requests, self.streams.clone());
        Ok(Halves::new(ReadHalf::Http2(reader), WriteHalf::Http2(writer)))
    }

    /// Resets all streams.
    pub fn abort(&self) {
        self.task.abort();
    }
}

/// Runs the connection until it is lost, which `lost` may say, or until nothing uses it any more.
async fn run(mut connection: Connection, streams: Arc<Streams>, mut flush: Flush, lost: impl Future<Output = ()>) {
    tokio::pin!(lost);
    let mut window = CONNECTION_WINDOW;
    loop {
        tokio::select! {
            biased;
            // its streams learn how it ended
            _ = &mut connection => return,
            () = flush.run() => {}
            () = streams.changed() => {
                flush.take();
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
        return pending().await;
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
