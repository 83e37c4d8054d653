//! The two halves of a stream over TCP, TLS, QUIC, a TLS link, HTTP/2 or UDP, or of standard input and output. A half that is dropped before
//! its direction ended resets it, so that no code path, not even a panic, can make a truncated stream look complete.
use std::future::Future;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU32, AtomicU8, Ordering};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use quinn::{RecvStream, SendStream};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsStream;

use super::buffered::BufferedStream;
use super::read_buffer::{ReadBuffer, Truncation, LARGE_READ, SMALL_READ};
use super::stdio;
use super::tcp_socket::{Tcp, READ_ENDED, WRITE_ENDED};
use super::tls_transport::TlsTransport;
use super::udp_peer;
use crate::error::{NetError, NetErrorCode};
use crate::quic::datagrams;
use crate::quic::signals::ConnectionSignals;
use crate::quic::window::{send_window, Flow};
use crate::quic::write_coalescing;
use crate::{http2, tls_link};

/// The default code of RESET_STREAM and STOP_SENDING: the other end of the tunnel was reset.
pub const RESET_CODE: u32 = 1;
/// Bytes read at a time for a stream of HTTP/2. It is not asked how much it takes: the credit of the connection is not to be held for nothing.
const HTTP2_READ: usize = 64 << 10;
/// Bytes read ahead from a peer while its tunnel is being opened, to notice when it disconnects.
const READ_AHEAD: usize = 16 << 10;
/// How long a TCP client may have sent FIN, and no byte for its tunnel, before the tunnel is open. It may only want to receive.
const EARLY_FIN_WAIT: Duration = Duration::from_secs(1);

pub enum ReadHalf {
    Tcp(Arc<Tcp>),
    Tls(tokio::io::ReadHalf<TlsStream<TlsTransport>>, Arc<Tcp>, Truncation),
    Quic(RecvStream),
    TlsLink(tls_link::stream::RecvHalf),
    Udp(udp_peer::RecvHalf),
    Http2(http2::stream::RecvHalf),
    Stdio(stdio::RecvHalf),
}

pub enum WriteHalf {
    Tcp(Arc<Tcp>),
    Tls(tokio::io::WriteHalf<TlsStream<TlsTransport>>, Arc<Tcp>),
    Quic(SendStream, Option<Arc<ConnectionSignals>>),
    TlsLink(tls_link::stream::SendHalf),
    Udp(udp_peer::SendHalf),
    Http2(http2::stream::SendHalf),
    Stdio(stdio::SendHalf),
}

/// What happens when a half is dropped before its end. Shared with the owner of the stream.
#[derive(Default)]
pub struct ResetOnDrop {
    /// The code plus one; zero for the default, [`RESET_CODE`].
    code: AtomicU32,
    /// How a stream that is only reset as a whole ends: [`FINISHED`], [`ABORTED`] or neither.
    ending: AtomicU8,
}

/// The other half decides how the stream ends.
const FINISHED: u8 = 1;
/// The stream is reset, even if this half has ended gracefully.
const ABORTED: u8 = 2;

impl ResetOnDrop {
    /// Only the first code counts.
    pub fn set_code(&self, code: u32) {
        let _ = self
            .code
            .compare_exchange(0, code.saturating_add(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Has no effect on an aborted half.
    pub fn set_finish_on_drop(&self) {
        let _ = self.ending.compare_exchange(0, FINISHED, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub fn set_aborted(&self) {
        self.ending.store(ABORTED, Ordering::Relaxed);
    }

    /// Whether a half that is dropped lets the stream end gracefully. `ended`: the half has reached its end.
    fn is_orderly(&self, ended: bool) -> bool {
        match self.ending.load(Ordering::Relaxed) {
            ABORTED => false,
            FINISHED => true,
            _ => ended,
        }
    }

    fn code(&self) -> u32 {
        match self.code.load(Ordering::Relaxed) {
            0 => RESET_CODE,
            n => n - 1,
        }
    }
}

pub struct Reader {
    /// Bytes to return before those of the transport.
    pub prefix: Bytes,
    pub half: ReadHalf,
    /// QUIC only.
    pub flow: Option<Box<Flow>>,
    /// Of a UDP flow over QUIC.
    datagrams: Option<Box<datagrams::Receiver>>,
    ended: bool,
    /// The error of all further reads.
    error: Option<NetError>,
    on_drop: Arc<ResetOnDrop>,
}

pub struct Writer {
    pub half: WriteHalf,
    /// The QUIC send window; 0 until it is set.
    window: u64,
    /// Of a UDP flow over QUIC.
    datagrams: Option<Box<datagrams::Sender>>,
    ended: bool,
    on_drop: Arc<ResetOnDrop>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        match &mut self.half {
            ReadHalf::Quic(stream) => {
                if !self.ended {
                    let _ = stream.stop(self.on_drop.code().into()); // fails if the stream has ended
                }
            }
            ReadHalf::TlsLink(stream) => {
                if !self.ended {
                    stream.stop(self.on_drop.code());
                }
            }
            ReadHalf::Tcp(tcp) | ReadHalf::Tls(_, tcp, _) => {
                if self.on_drop.is_orderly(self.ended) {
                    tcp.end(READ_ENDED);
                }
            }
            ReadHalf::Udp(_) | ReadHalf::Stdio(_) => {} // they have no reset
            ReadHalf::Http2(stream) => {
                if self.on_drop.is_orderly(self.ended) {
                    stream.end();
                }
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        match &mut self.half {
            WriteHalf::Quic(stream, _) if !self.ended => drop(stream.reset(self.on_drop.code().into())), // fails if the stream has ended
            WriteHalf::TlsLink(stream) if !self.ended => stream.reset(self.on_drop.code()),
            WriteHalf::Tcp(tcp) | WriteHalf::Tls(_, tcp) if self.on_drop.is_orderly(self.ended) => tcp.end(WRITE_ENDED),
            WriteHalf::Http2(stream) if self.on_drop.is_orderly(self.ended) => stream.end(),
            _ => {}
        }
    }
}

impl Reader {
    pub fn new(half: ReadHalf, on_drop: Arc<ResetOnDrop>) -> Self {
        if let ReadHalf::Tcp(tcp) | ReadHalf::Tls(_, tcp, _) = &half {
            tcp.guard();
        }
        Self {
            prefix: Bytes::new(),
            half,
            flow: None,
            datagrams: None,
            ended: false,
            error: None,
            on_drop,
        }
    }

    pub fn on_drop(&self) -> &Arc<ResetOnDrop> {
        &self.on_drop
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Begins a UDP flow, if the stream is one of QUIC. Until the receiver is dropped, datagrams are kept for it.
    pub fn open_flow(&self) -> Option<(datagrams::Receiver, datagrams::Sender)> {
        match (&self.half, &self.flow) {
            (ReadHalf::Quic(stream), Some(flow)) => datagrams::open(flow.connection(), stream.id()),
            _ => None,
        }
    }

    /// From now on the stream is read as capsules, among them the datagrams of its flow.
    pub fn set_datagrams(&mut self, mut datagrams: datagrams::Receiver) {
        datagrams.unread(&std::mem::take(&mut self.prefix));
        self.datagrams = Some(Box::new(datagrams));
    }

    /// Datagrams that were dropped because they were not read.
    pub fn dropped_datagrams(&self) -> u64 {
        self.datagrams.as_ref().map_or(0, |datagrams| datagrams.dropped())
    }

    /// Puts bytes back in front of what is read next.
    pub fn unread(&mut self, data: &[u8]) {
        self.prefix = [data, &self.prefix].concat().into();
    }

    /// Returns the next bytes; `None` at the end of the direction.
    pub async fn read(&mut self) -> Result<Option<Bytes>, NetError> {
        self.read_with(&mut ReadBuffer::default()).await
    }

    /// As [`Reader::read`], with a buffer that grows with the traffic and is released while waiting.
    pub async fn read_with(&mut self, buffer: &mut ReadBuffer) -> Result<Option<Bytes>, NetError> {
        if !self.prefix.is_empty() {
            return Ok(Some(std::mem::take(&mut self.prefix)));
        }
        self.read_past_prefix(buffer).await
    }

    /// As [`Reader::read_with`], after the prefix.
    async fn read_past_prefix(&mut self, buffer: &mut ReadBuffer) -> Result<Option<Bytes>, NetError> {
        if self.ended {
            return Ok(None);
        }
        if let Some(error) = &self.error {
            return Err(error.clone()); // quinn and the kernel report a reset once, and then an end
        }
        let data = match &mut self.half {
            ReadHalf::Quic(stream) => match &mut self.datagrams {
                None => stream
                    .read_chunk(buffer.largest, true)
                    .await
                    .map(|chunk| chunk.map(|c| c.bytes))
                    .map_err(|e| NetError::quic_read(&e)),
                Some(datagrams) => datagrams.read(stream).await,
            },
            ReadHalf::TlsLink(stream) => stream.read(buffer.largest).await,
            ReadHalf::Udp(peer) => Ok(peer.read(buffer.largest).await),
            ReadHalf::Http2(stream) => stream.read(buffer.largest).await,
            ReadHalf::Stdio(stream) => stream.read().await,
            ReadHalf::Tcp(tcp) => buffer.read_tcp(tcp).await,
            ReadHalf::Tls(stream, tcp, truncation) => buffer.read_tls(stream, tcp, *truncation).await,
        };
        match data {
            Ok(data) => {
                self.ended = data.is_none();
                Ok(data)
            }
            Err(error) => {
                self.error = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Resolves with the reason when the peer disconnects while its tunnel is being opened. What it sends meanwhile is kept for the next
    /// read.
    pub async fn peer_gone(&mut self) -> NetError {
        let mut buffer = ReadBuffer::new(SMALL_READ / 2);
        while self.prefix.len() < READ_AHEAD {
            match self.read_past_prefix(&mut buffer).await {
                Ok(Some(data)) if self.prefix.is_empty() => self.prefix = data,
                Ok(Some(data)) => self.prefix = [&self.prefix[..], &data].concat().into(),
                Ok(None) => break,
                Err(error) => return NetError::abandoned(&error.message),
            }
        }
        // it may wait for the response to a request it has already sent
        let is_silent = self.ended && self.prefix.is_empty() && matches!(self.half, ReadHalf::Tcp(_) | ReadHalf::Tls(..));
        tokio::select! {
            error = self.reset() => NetError::abandoned(&error.message),
            () = tokio::time::sleep(EARLY_FIN_WAIT), if is_silent => NetError::abandoned("it finished without a byte for the tunnel"),
        }
    }

    /// Resolves when the peer resets the stream or its connection is lost, even if nothing reads. Does not resolve at a regular end.
    pub async fn reset(&mut self) -> NetError {
        let stream = match &mut self.half {
            ReadHalf::Tcp(tcp) | ReadHalf::Tls(_, tcp, _) => return tcp.reset().await,
            ReadHalf::TlsLink(stream) => return stream.reset().await,
            ReadHalf::Udp(stream) => return stream.closed().await,
            ReadHalf::Http2(stream) => return stream.stream().clone().reset().await,
            ReadHalf::Stdio(stream) => return stream.failed().await,
            ReadHalf::Quic(stream) => stream,
        };
        let error = match stream.received_reset().await {
            Ok(Some(code)) => NetError::quic_read(&quinn::ReadError::Reset(code)),
            Ok(None) => return std::future::pending().await, // all data has arrived
            // data received before can still be read
            Err(quinn::ResetError::ConnectionLost(e)) => return NetError::quic_lost(&e),
            Err(_) => NetError::closed(),
        };
        self.error = Some(error.clone()); // quinn reports it once
        error
    }

    /// Reads up to `max` available chunks into `chunks` and returns their number, or `None` at the end. Requires a stream of a session
    /// without a prefix.
    pub async fn read_chunks(&mut self, chunks: &mut Vec<Bytes>, max: usize) -> Result<Option<usize>, NetError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        chunks.resize(max, Bytes::new());
        let n = match &mut self.half {
            ReadHalf::Quic(stream) => match &mut self.datagrams {
                None => stream.read_chunks(chunks).await.map_err(|e| NetError::quic_read(&e))?,
                Some(datagrams) => datagrams.read(stream).await?.map(|capsules| {
                    chunks[0] = capsules;
                    1
                }),
            },
            ReadHalf::TlsLink(stream) => stream.read_chunks(chunks, stream.batch()).await?,
            _ => return Err(NetError::new(NetErrorCode::Internal, "Not a stream of a session")),
        };
        self.ended = n.is_none();
        Ok(n)
    }

    /// Reports that `bytes` bytes were passed on. A stream that is drained fast gets a larger window.
    pub fn drained(&mut self, bytes: usize) {
        let bytes = self.datagrams.as_mut().map_or(bytes, |datagrams| datagrams.take_from_stream());
        if let (ReadHalf::Quic(stream), Some(flow)) = (&mut self.half, &mut self.flow) {
            flow.drained(stream, bytes);
        }
    }

    /// Whose unread data counts for the memory budget.
    pub fn buffered(&self) -> impl Iterator<Item = BufferedStream> {
        let datagrams = self.datagrams.as_ref();
        let datagrams = datagrams.map(|datagrams| BufferedStream::Datagrams(datagrams.inbox().clone()));
        let stream = match (&self.half, &self.flow) {
            (ReadHalf::Quic(stream), Some(flow)) => Some(BufferedStream::Quic(flow.connection().clone(), stream.id())),
            (ReadHalf::TlsLink(stream), _) => Some(BufferedStream::TlsLink(stream.stream().clone())),
            (ReadHalf::Udp(half), _) => Some(BufferedStream::Udp(half.peer().clone())),
            (ReadHalf::Http2(stream), _) => Some(BufferedStream::Http2(stream.stream().clone())),
            _ => None,
        };
        stream.into_iter().chain(datagrams)
    }

    /// Maximum bytes per read.
    pub fn batch(&self) -> usize {
        match &self.half {
            ReadHalf::TlsLink(stream) => stream.batch(),
            _ => self.flow.as_ref().map_or(LARGE_READ, |flow| flow.batch()),
        }
    }
}

impl Writer {
    pub fn new(half: WriteHalf, on_drop: Arc<ResetOnDrop>) -> Self {
        Self {
            half,
            window: 0,
            datagrams: None,
            ended: false,
            on_drop,
        }
    }

    pub fn on_drop(&self) -> &Arc<ResetOnDrop> {
        &self.on_drop
    }

    /// From now on capsules are written, and those with datagrams that fit into a packet are sent on their own.
    pub fn set_datagrams(&mut self, datagrams: datagrams::Sender) {
        self.datagrams = Some(Box::new(datagrams));
    }

    pub fn tcp(&self) -> Option<&Arc<Tcp>> {
        match &self.half {
            WriteHalf::Tcp(tcp) | WriteHalf::Tls(_, tcp) => Some(tcp),
            WriteHalf::Quic(..) | WriteHalf::TlsLink(_) | WriteHalf::Http2(_) | WriteHalf::Udp(_) | WriteHalf::Stdio(_) => None,
        }
    }

    /// Whether a reset ends both directions.
    pub fn resets_both(&self) -> bool {
        matches!(
            self.half,
            WriteHalf::Tcp(_) | WriteHalf::Tls(..) | WriteHalf::Http2(_) | WriteHalf::Udp(_) | WriteHalf::Stdio(_)
        )
    }

    /// Resolves when the peer stops reading, even if there is nothing to write: STOP_SENDING, a lost connection, or a reset of both directions.
    pub fn stopped_by_peer(&self) -> impl Future<Output = NetError> + Send + 'static {
        let (stopped, tcp, link, http2) = match &self.half {
            WriteHalf::Quic(stream, _) => (Some(stream.stopped()), None, None, None),
            WriteHalf::Tcp(tcp) | WriteHalf::Tls(_, tcp) => (None, Some(tcp.clone()), None, None),
            WriteHalf::TlsLink(stream) => (None, None, Some(stream.stopped()), None),
            WriteHalf::Http2(stream) => (None, None, None, Some(stream.stopped())),
            WriteHalf::Udp(_) | WriteHalf::Stdio(_) => (None, None, None, None),
        };
        async move {
            if let Some(tcp) = tcp {
                return tcp.reset().await;
            }
            if let Some(link) = link {
                return link.await;
            }
            if let Some(http2) = http2 {
                return http2.await;
            }
            let Some(stopped) = stopped else {
                return std::future::pending().await;
            };
            match stopped.await {
                Ok(Some(code)) => NetError::stopped(code),
                Ok(None) => std::future::pending().await, // all data was received
                Err(quinn::StoppedError::ConnectionLost(e)) => NetError::quic_lost(&e),
                Err(_) => NetError::closed(),
            }
        }
    }

    /// Resolves when the data written was sent. TCP and standard output report it; QUIC and HTTP/2 do not and wait for `settle`. On a TLS link
    /// a reset overtakes no data.
    pub async fn wait_sent(&self, settle: Duration) {
        match &self.half {
            WriteHalf::Tcp(tcp) | WriteHalf::Tls(_, tcp) => tcp.acknowledged().await,
            WriteHalf::TlsLink(_) | WriteHalf::Udp(_) => {}
            WriteHalf::Stdio(stream) => stream.flushed().await,
            WriteHalf::Quic(..) | WriteHalf::Http2(_) if self.ended => {}
            WriteHalf::Quic(..) | WriteHalf::Http2(_) => tokio::time::sleep(settle).await,
        }
    }

    /// Resolves when the socket or the send window has taken all of the data.
    pub async fn write(&mut self, data: Bytes) -> Result<(), NetError> {
        if self.ended {
            return Err(NetError::closed());
        }
        if data.is_empty() {
            return Ok(());
        }
        if self.window == 0 {
            self.fit_window();
        }
        match &mut self.half {
            WriteHalf::Quic(stream, signals) => {
                signals.iter().for_each(|signals| signals.record_write(stream.id(), data.len()));
                write_coalescing::record_write();
                match &mut self.datagrams {
                    None => stream.write_chunk(data).await.map_err(|e| NetError::quic_write(&e)),
                    Some(datagrams) => datagrams.write(stream, &data).await,
                }
            }
            WriteHalf::TlsLink(stream) => stream.write(data).await,
            WriteHalf::Udp(peer) => peer.write(&data).await,
            WriteHalf::Http2(stream) => stream.write(data).await,
            WriteHalf::Stdio(stream) => stream.write(data).await,
            WriteHalf::Tcp(tcp) => tcp.write_vectored(&mut [data]).await,
            // boxed, as few tunnels need it
            WriteHalf::Tls(stream, tcp) => {
                Box::pin(async move {
                    match stream.write_all(&data).await {
                        Ok(()) => stream.flush().await.map_err(|e| tcp.failed(e)),
                        Err(e) => Err(tcp.failed(e)),
                    }
                })
                .await
            }
        }
    }

    /// Sizes the send window of a QUIC stream for its path.
    fn fit_window(&mut self) {
        let WriteHalf::Quic(stream, Some(signals)) = &self.half else {
            return;
        };
        let window = send_window(signals.congestion_window());
        if window > self.window + self.window / 4 || window < self.window / 2 {
            self.window = window;
            let _ = stream.set_window(window); // fails on a stream that has ended
        }
    }

    /// Waits until the stream takes data and returns how many bytes. Errors are left to the next write.
    pub async fn room(&mut self) -> usize {
        self.fit_window();
        if self.datagrams.is_some() {
            return datagrams::BATCH;
        }
        let stream = match &mut self.half {
            WriteHalf::Quic(stream, _) => stream,
            WriteHalf::TlsLink(stream) => return stream.room().await,
            WriteHalf::Tcp(_) | WriteHalf::Tls(..) | WriteHalf::Udp(_) | WriteHalf::Stdio(_) => return LARGE_READ,
            WriteHalf::Http2(_) => return HTTP2_READ,
        };
        // a quarter at a time: the next part is read while this one is sent
        let max = (self.window / 4) as usize;
        stream
            .room()
            .await
            .map_or(LARGE_READ, |room| (room as usize).min(max).max(SMALL_READ))
    }

    /// Writes what a TCP socket takes without waiting, and leaves the rest in `data`. Errors are left to the next write.
    pub fn write_now(&mut self, data: &mut Bytes) {
        let WriteHalf::Tcp(tcp) = &self.half else { return };
        if self.ended || data.is_empty() {
            return;
        }
        match tcp.stream.try_write(data) {
            Ok(n) => data.advance(n),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => drop(tcp.failed(e)),
        }
    }

    pub async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), NetError> {
        match &mut self.half {
            WriteHalf::Tcp(tcp) => tcp.write_vectored(chunks).await,
            _ => {
                for chunk in chunks {
                    self.write(std::mem::take(chunk)).await?;
                }
                Ok(())
            }
        }
    }

    /// Ends the direction gracefully.
    pub async fn finish(&mut self) -> Result<(), NetError> {
        if self.ended {
            return Ok(());
        }
        match &mut self.half {
            WriteHalf::Quic(stream, _) => {
                if let Some(datagrams) = &mut self.datagrams {
                    datagrams.flush(stream).await?;
                }
                if stream.finish().is_err() {
                    return Err(NetError::closed());
                }
            }
            WriteHalf::TlsLink(stream) => stream.finish().await?,
            WriteHalf::Udp(peer) => peer.finish(),
            WriteHalf::Http2(stream) => stream.finish()?,
            WriteHalf::Stdio(stream) => stream.finish().await?,
            WriteHalf::Tcp(tcp) => SockRef::from(&tcp.stream)
                .shutdown(std::net::Shutdown::Write)
                .map_err(|e| tcp.failed(e))?,
            WriteHalf::Tls(stream, tcp) => stream.shutdown().await.map_err(|e| tcp.failed(e))?,
        }
        self.ended = true;
        Ok(())
    }
}
