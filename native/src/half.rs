//! The two halves of a stream, whatever carries it: TCP, TLS over TCP, or QUIC. A half that is dropped before its direction ended aborts
//! it, so that no path through the code, not even a panic, can make a truncated stream look finished.
use std::future::{poll_fn, Future};
use std::io::{ErrorKind, IoSlice};
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::pin::{pin, Pin};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU8, Ordering};
use std::sync::Arc;
use std::task::{ready, Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use quinn::{RecvStream, SendStream, VarInt};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::congestion::ConnectionSignals;
use crate::error::{NetError, NetErrorCode};
use crate::window::{send_window, Flow};
use crate::write_coalescing;

/// The code of RESET_STREAM and STOP_SENDING where nobody gave another: the tunnel's other end was reset.
pub const RESET_CODE: u32 = 1;

/// Chunks of QUIC data written to a socket in one system call.
pub const MAX_IO_SLICES: usize = 64;
const SMALL_READ: usize = 8 << 10;
const LARGE_READ: usize = 256 << 10;
/// After the end of both directions a peer that still sends is read, and ignored, for so long: closing at once would reset the
/// connection, and it could lose the answer it has not read yet (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;
/// What is read ahead of a peer whose tunnel is still being opened, to notice when it goes.
const READ_AHEAD: usize = 16 << 10;
/// A TCP client that has finished before its tunnel is open, and sent nothing for it, is waited for so long: it may only want to listen.
const EARLY_FIN_WAIT: Duration = Duration::from_secs(1);
/// Directions of a TCP connection.
const READ_ENDED: u8 = 1;
const WRITE_ENDED: u8 = 2;

/// What the system holds of a TCP connection and cannot send yet. Left alone, it takes megabytes for each peer that reads nothing, and where
/// that makes all of the system's memory for TCP (`net.ipv4.tcp_mem`), every other connection slows to a crawl.
#[cfg(target_os = "linux")]
const MAX_UNSENT: u32 = 128 << 10;

/// Only speed and memory depend on it: where it fails, the connection goes on as the system has it.
fn limit_unsent(_stream: &TcpStream) {
    #[cfg(target_os = "linux")]
    let _ = SockRef::from(_stream).set_tcp_notsent_lowat(MAX_UNSENT);
}

/// A TCP connection that both halves share.
pub struct Tcp {
    pub stream: TcpStream,
    /// Directions that have ended in good order.
    ended: AtomicU8,
    /// A write failed. The kernel reports an error once, and then an end: that end is none.
    broken: AtomicBool,
}

impl Tcp {
    pub fn new(stream: TcpStream) -> Arc<Self> {
        limit_unsent(&stream);
        Arc::new(Self {
            stream,
            ended: AtomicU8::new(0),
            broken: AtomicBool::new(false),
        })
    }

    /// From now on the connection is reset (RST) when it is closed before both directions have ended, also by the system when this process
    /// is killed: what was cut off must not look complete.
    fn guard(&self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)); // fails on a connection that is gone already
    }

    fn end(&self, direction: u8) {
        self.ended.fetch_or(direction, Ordering::AcqRel);
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    fn failed(&self, error: std::io::Error) -> NetError {
        self.broken.store(true, Ordering::Relaxed);
        NetError::stream(&error)
    }

    /// Resolves when the connection is reset, also when nobody reads or writes.
    pub async fn reset(&self) -> NetError {
        loop {
            if let Err(e) = self.stream.ready(Interest::ERROR).await {
                return self.failed(e);
            }
            match self.stream.take_error() {
                Ok(Some(e)) | Err(e) => return self.failed(e),
                Ok(None) if self.is_broken() => return self.failed(ErrorKind::ConnectionReset.into()),
                // readiness without an error: wait for the next
                Ok(None) => drop(self.stream.try_io(Interest::ERROR, || Err::<(), _>(ErrorKind::WouldBlock.into()))),
            }
        }
    }

    /// Resolves when the peer's system has acknowledged all that was written, or none of it will be sent any more.
    async fn acknowledged(&self) {
        let mut wait = Duration::from_millis(1);
        while !self.is_broken() && self.unacknowledged() > 0 {
            tokio::time::sleep(wait).await;
            wait = (2 * wait).min(Duration::from_millis(20));
        }
    }

    /// Bytes in the send queue (tcp(7), SIOCOUTQ); 0 where the system is not asked.
    fn unacknowledged(&self) -> usize {
        #[cfg(target_os = "linux")]
        {
            let mut bytes: libc::c_int = 0;
            // SAFETY: the request writes one int to the address given, which is valid for the call; `stream` keeps the descriptor open
            let result = unsafe { libc::ioctl(self.stream.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
            if result == 0 {
                return usize::try_from(bytes).unwrap_or(0);
            }
        }
        0
    }

    /// Reads and ignores what the peer still sends, up to its end.
    pub async fn linger(&self) {
        let mut scratch = vec![0; 16 << 10];
        let mut left = LINGER_BYTES;
        let drain = async {
            while self.stream.readable().await.is_ok() {
                match self.stream.try_read(&mut scratch) {
                    Ok(0) => return,
                    Ok(n) if n > left => return,
                    Ok(n) => left -= n,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(LINGER, drain).await; // what comes later is answered with RST
    }

    async fn write_vectored(&self, chunks: &mut [Bytes]) -> Result<(), NetError> {
        let mut at = chunks.iter().take_while(|chunk| chunk.is_empty()).count();
        while at < chunks.len() {
            let written = {
                let mut slices = [IoSlice::new(&[]); MAX_IO_SLICES];
                let mut n = 0;
                for (slice, chunk) in slices.iter_mut().zip(&chunks[at..]) {
                    *slice = IoSlice::new(chunk);
                    n += 1;
                }
                self.stream.try_write_vectored(&slices[..n])
            };
            match written {
                Ok(mut n) => {
                    while at < chunks.len() && n >= chunks[at].len() {
                        n -= chunks[at].len();
                        chunks[at] = Bytes::new(); // frees QUIC's buffer now
                        at += 1;
                    }
                    if n > 0 {
                        chunks[at].advance(n);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    poll_fn(|cx| self.stream.poll_write_ready(cx)).await.map_err(|e| self.failed(e))?;
                }
                Err(e) => return Err(self.failed(e)),
            }
        }
        Ok(())
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        if *self.ended.get_mut() == READ_ENDED | WRITE_ENDED {
            let _ = SockRef::from(&self.stream).set_linger(None); // fails on a connection that is gone already
        }
    }
}

/// What tokio-rustls runs on, so that the socket below stays in reach.
pub struct TlsTransport(pub Arc<Tcp>);

impl AsyncRead for TlsTransport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        loop {
            ready!(self.0.stream.poll_read_ready(cx))?;
            match self.0.stream.try_read(buf.initialize_unfilled()) {
                Ok(n) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl AsyncWrite for TlsTransport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        loop {
            ready!(self.0.stream.poll_write_ready(cx))?;
            match self.0.stream.try_write(buf) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(SockRef::from(&self.0.stream).shutdown(std::net::Shutdown::Write))
    }
}

pub enum ReadHalf {
    Tcp(Arc<Tcp>),
    Tls(tokio::io::ReadHalf<TlsStream<TlsTransport>>, Arc<Tcp>, Truncation),
    Quic(RecvStream),
}

/// What a FIN without a close_notify before it is taken for. It may be forged (RFC 8446 §6.1).
#[derive(Clone, Copy)]
pub enum Truncation {
    /// An end: of clients, most programs send none when they exit.
    End,
    /// A reset: of servers, which are proxies here and always send one.
    Reset,
}

pub enum WriteHalf {
    Tcp(Arc<Tcp>),
    Tls(tokio::io::WriteHalf<TlsStream<TlsTransport>>, Arc<Tcp>),
    Quic(SendStream, Option<Arc<ConnectionSignals>>),
}

/// What a half does when it is dropped before its end; shared with whoever may drop it.
#[derive(Default)]
pub struct ResetOnDrop {
    /// Plus one; zero stands for none given, which is [`RESET_CODE`].
    code: AtomicU32,
    /// How a TCP connection ends: [`FINISHED`] or [`ABORTED`], or neither.
    ending: AtomicU8,
}

/// The connection's end is the other half's business.
const FINISHED: u8 = 1;
/// The connection is reset, also where this half has ended in good order.
const ABORTED: u8 = 2;

impl ResetOnDrop {
    /// The first that says why is right.
    pub fn set_code(&self, code: u32) {
        let _ = self
            .code
            .compare_exchange(0, code.saturating_add(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// A half that was aborted stays so.
    pub fn set_finish_on_drop(&self) {
        let _ = self.ending.compare_exchange(0, FINISHED, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub fn set_aborted(&self) {
        self.ending.store(ABORTED, Ordering::Relaxed);
    }

    /// Whether a TCP half that is dropped leaves the connection's end in good order. `ended`: the half has come to its end.
    fn is_orderly(&self, ended: bool) -> bool {
        match self.ending.load(Ordering::Relaxed) {
            ABORTED => false,
            FINISHED => true,
            _ => ended,
        }
    }

    fn code(&self) -> VarInt {
        VarInt::from_u32(match self.code.load(Ordering::Relaxed) {
            0 => RESET_CODE,
            n => n - 1,
        })
    }
}

pub struct Reader {
    /// What came with a head and is still to be read.
    pub prefix: Bytes,
    pub half: ReadHalf,
    /// Of QUIC.
    pub flow: Option<Box<Flow>>,
    ended: bool,
    /// Why nothing more comes, for whoever asks again.
    error: Option<NetError>,
    on_drop: Arc<ResetOnDrop>,
}

pub struct Writer {
    pub half: WriteHalf,
    /// Of QUIC, where it has one of its own.
    window: u64,
    ended: bool,
    on_drop: Arc<ResetOnDrop>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        match &mut self.half {
            ReadHalf::Quic(stream) => {
                if !self.ended {
                    let _ = stream.stop(self.on_drop.code()); // fails on a stream that is gone already
                }
            }
            ReadHalf::Tcp(tcp) | ReadHalf::Tls(_, tcp, _) => {
                if self.on_drop.is_orderly(self.ended) {
                    tcp.end(READ_ENDED);
                }
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        match &mut self.half {
            WriteHalf::Quic(stream, _) if !self.ended => drop(stream.reset(self.on_drop.code())), // fails on a stream that is gone already
            WriteHalf::Tcp(tcp) | WriteHalf::Tls(_, tcp) if self.on_drop.is_orderly(self.ended) => tcp.end(WRITE_ENDED),
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

    /// The next bytes; `None` at the end of the direction.
    pub async fn read(&mut self) -> Result<Option<Bytes>, NetError> {
        self.read_with(&mut ReadBuffer::default()).await
    }

    /// As [`Reader::read`], with a buffer that grows with the traffic and holds nothing while it waits.
    pub async fn read_with(&mut self, buffer: &mut ReadBuffer) -> Result<Option<Bytes>, NetError> {
        if !self.prefix.is_empty() {
            return Ok(Some(std::mem::take(&mut self.prefix)));
        }
        self.read_past_prefix(buffer).await
    }

    /// As [`Reader::read_with`], what comes after the prefix.
    async fn read_past_prefix(&mut self, buffer: &mut ReadBuffer) -> Result<Option<Bytes>, NetError> {
        if self.ended {
            return Ok(None);
        }
        if let Some(error) = &self.error {
            return Err(error.clone()); // quinn and the kernel tell of a reset once, and then of an end
        }
        let data = match &mut self.half {
            ReadHalf::Quic(stream) => stream
                .read_chunk(buffer.largest, true)
                .await
                .map(|chunk| chunk.map(|c| c.bytes))
                .map_err(|e| NetError::quic_read(&e)),
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

    /// Resolves when the peer is gone, and why, while its tunnel is being opened. What it sends meanwhile is kept for the next read.
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
        // it may be waiting for the answer to a request that it has sent already
        let is_silent = self.ended && self.prefix.is_empty() && !matches!(self.half, ReadHalf::Quic(_));
        tokio::select! {
            error = self.reset() => NetError::abandoned(&error.message),
            () = tokio::time::sleep(EARLY_FIN_WAIT), if is_silent => NetError::abandoned("it has finished without a byte for the tunnel"),
        }
    }

    /// Resolves when the peer resets the stream, or its connection is lost, also while nothing is read. An end is none.
    pub async fn reset(&mut self) -> NetError {
        let stream = match &mut self.half {
            ReadHalf::Tcp(tcp) | ReadHalf::Tls(_, tcp, _) => return tcp.reset().await,
            ReadHalf::Quic(stream) => stream,
        };
        let error = match stream.received_reset().await {
            Ok(Some(code)) => NetError::quic_read(&quinn::ReadError::Reset(code)),
            Ok(None) => return std::future::pending().await, // all of it has arrived
            // what came before is still to be read
            Err(quinn::ResetError::ConnectionLost(e)) => return NetError::quic_lost(&e),
            Err(_) => NetError::closed(),
        };
        self.error = Some(error.clone()); // quinn tells of it once
        error
    }

    /// QUIC chunks that are ready, into `chunks`, `most` of them; how many, or `None` at the end. For QUIC sources without a prefix.
    pub async fn read_chunks(&mut self, chunks: &mut Vec<Bytes>, most: usize) -> Result<Option<usize>, NetError> {
        let ReadHalf::Quic(stream) = &mut self.half else {
            return Err(NetError::new(NetErrorCode::Internal, "Not a QUIC stream"));
        };
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        chunks.resize(most, Bytes::new());
        let n = stream.read_chunks(chunks).await.map_err(|e| NetError::quic_read(&e))?;
        self.ended = n.is_none();
        Ok(n)
    }

    /// `bytes` that were read were passed on: a stream that is drained fast gets a larger window.
    pub fn drained(&mut self, bytes: usize) {
        if let (ReadHalf::Quic(stream), Some(flow)) = (&mut self.half, &mut self.flow) {
            flow.drained(stream, bytes);
        }
    }

    /// Of QUIC, what it is a part of.
    pub fn stream(&self) -> Option<(quinn::Connection, quinn::StreamId)> {
        match (&self.half, &self.flow) {
            (ReadHalf::Quic(stream), Some(flow)) => Some((flow.connection().clone(), stream.id())),
            _ => None,
        }
    }

    /// Bytes to be read at a time, at most.
    pub fn batch(&self) -> usize {
        self.flow.as_ref().map_or(LARGE_READ, |flow| flow.batch())
    }
}

impl Writer {
    pub fn new(half: WriteHalf, on_drop: Arc<ResetOnDrop>) -> Self {
        Self {
            half,
            window: 0,
            ended: false,
            on_drop,
        }
    }

    pub fn on_drop(&self) -> &Arc<ResetOnDrop> {
        &self.on_drop
    }

    pub fn tcp(&self) -> Option<&Arc<Tcp>> {
        match &self.half {
            WriteHalf::Tcp(tcp) | WriteHalf::Tls(_, tcp) => Some(tcp),
            WriteHalf::Quic(..) => None,
        }
    }

    /// Resolves when the peer takes no more, also while there is nothing to write: a QUIC peer sent STOP_SENDING, or its connection is lost; a
    /// TCP connection was reset.
    pub fn stopped_by_peer(&self) -> impl Future<Output = NetError> + Send + 'static {
        let (stopped, tcp) = match &self.half {
            WriteHalf::Quic(stream, _) => (Some(stream.stopped()), None),
            WriteHalf::Tcp(tcp) | WriteHalf::Tls(_, tcp) => (None, Some(tcp.clone())),
        };
        async move {
            if let Some(tcp) = tcp {
                return tcp.reset().await;
            }
            let Some(stopped) = stopped else {
                return std::future::pending().await;
            };
            match stopped.await {
                Ok(Some(code)) => NetError::stopped(code),
                Ok(None) => std::future::pending().await, // it has all of it
                Err(quinn::StoppedError::ConnectionLost(e)) => NetError::quic_lost(&e),
                Err(_) => NetError::closed(),
            }
        }
    }

    /// Resolves when what was written has been sent, as far as that is known: TCP tells, QUIC is given `settle`.
    pub async fn sent(&self, settle: Duration) {
        match &self.half {
            WriteHalf::Tcp(tcp) | WriteHalf::Tls(_, tcp) => tcp.acknowledged().await,
            WriteHalf::Quic(..) if self.ended => {}
            WriteHalf::Quic(..) => tokio::time::sleep(settle).await,
        }
    }

    /// Resolves when all of it was taken by the socket or the send window.
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
                stream.write_chunk(data).await.map_err(|e| NetError::quic_write(&e))
            }
            WriteHalf::Tcp(tcp) => tcp.write_vectored(&mut [data]).await,
            // apart, as few tunnels need it
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

    /// Gives a QUIC stream a send window for its path.
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

    /// Waits until something is taken at once, and tells how many bytes. What is wrong is for the next write to tell.
    pub async fn room(&mut self) -> usize {
        self.fit_window();
        let WriteHalf::Quic(stream, _) = &mut self.half else {
            return LARGE_READ;
        };
        // a quarter at a time: the next part is read while this one is under way
        let most = (self.window / 4) as usize;
        stream
            .room()
            .await
            .map_or(LARGE_READ, |room| (room as usize).min(most).max(SMALL_READ))
    }

    /// Writes what a TCP socket takes at once, and leaves the rest in `data`. What goes wrong is for the next write to tell.
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

    /// Ends the direction in good order.
    pub async fn finish(&mut self) -> Result<(), NetError> {
        if self.ended {
            return Ok(());
        }
        match &mut self.half {
            WriteHalf::Quic(stream, _) => {
                if stream.finish().is_err() {
                    return Err(NetError::closed());
                }
            }
            WriteHalf::Tcp(tcp) => SockRef::from(&tcp.stream)
                .shutdown(std::net::Shutdown::Write)
                .map_err(|e| tcp.failed(e))?,
            WriteHalf::Tls(stream, tcp) => stream.shutdown().await.map_err(|e| tcp.failed(e))?,
        }
        self.ended = true;
        Ok(())
    }
}

/// The buffer of a reading direction: small for a conversation, large for a download, none while it waits.
pub struct ReadBuffer {
    bytes: BytesMut,
    size: usize,
    largest: usize,
    next: usize,
}

impl Default for ReadBuffer {
    fn default() -> Self {
        Self::new(LARGE_READ)
    }
}

impl ReadBuffer {
    /// Reads no more than `largest` at a time.
    pub fn new(largest: usize) -> Self {
        Self {
            bytes: BytesMut::new(),
            size: 0,
            largest: largest.min(LARGE_READ),
            next: LARGE_READ,
        }
    }

    /// Reads no more than `bytes` the next time.
    pub fn limit(&mut self, bytes: usize) {
        self.next = bytes;
    }

    fn make_room(&mut self) -> usize {
        self.size = self.size.max(SMALL_READ).min(self.largest).min(self.next);
        if self.bytes.capacity() < SMALL_READ / 4 {
            self.bytes = BytesMut::with_capacity(self.size);
        }
        self.bytes.capacity()
    }

    fn grow_after(&mut self, read: usize, room: usize) {
        if read == room {
            self.size = (self.size * 4).min(self.largest);
        } else if read < self.size / 8 {
            self.size = SMALL_READ;
        }
    }

    async fn read_tcp(&mut self, tcp: &Tcp) -> Result<Option<Bytes>, NetError> {
        loop {
            poll_fn(|cx| {
                let ready = tcp.stream.poll_read_ready(cx);
                if ready.is_pending() {
                    self.bytes = BytesMut::new();
                }
                ready
            })
            .await
            .map_err(|e| tcp.failed(e))?;
            let room = self.make_room();
            match tcp.stream.try_read_buf(&mut self.bytes) {
                Ok(0) if tcp.is_broken() => return Err(tcp.failed(ErrorKind::ConnectionReset.into())),
                Ok(0) => return Ok(None),
                Ok(n) => {
                    self.grow_after(n, room);
                    return Ok(Some(self.bytes.split().freeze()));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(tcp.failed(e)),
            }
        }
    }

    async fn read_tls(
        &mut self,
        stream: &mut tokio::io::ReadHalf<TlsStream<TlsTransport>>,
        tcp: &Tcp,
        truncation: Truncation,
    ) -> Result<Option<Bytes>, NetError> {
        let mut room = 0;
        let read = poll_fn(|cx| {
            room = self.make_room();
            let read = pin!(stream.read_buf(&mut self.bytes)).poll(cx);
            if read.is_pending() {
                self.bytes = BytesMut::new();
            }
            read
        });
        match read.await {
            Ok(0) if tcp.is_broken() => Err(tcp.failed(ErrorKind::ConnectionReset.into())),
            Ok(0) => Ok(None),
            Ok(n) => {
                self.grow_after(n, room);
                Ok(Some(self.bytes.split().freeze()))
            }
            // rustls tells of it once all that came before is read
            Err(e) if e.kind() == ErrorKind::UnexpectedEof && matches!(truncation, Truncation::End) && !tcp.is_broken() => Ok(None),
            Err(e) => Err(tcp.failed(e)),
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn the_system_holds_little_for_a_peer_that_reads_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (stream, peer) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let tcp = Tcp::new(stream.unwrap());
        let mut written = 0;
        tcp.stream.writable().await.unwrap();
        while let Ok(n) = tcp.stream.try_write(&[0; 64 << 10]) {
            written += n;
        }
        assert!(written > 0);
        let held = tcp.unacknowledged();
        assert!(held < 2 * MAX_UNSENT as usize, "{held} of {written} bytes"); // what is sent is in the peer's buffer
        drop(peer);
    }
}
