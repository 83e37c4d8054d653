//! The two halves of a stream, whatever carries it: TCP, TLS over TCP, or QUIC. A half that is dropped before its direction ended aborts
//! it, so that no path through the code, not even a panic, can make a truncated stream look finished.
use std::future::Future;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU32, AtomicU8, Ordering};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use quinn::{RecvStream, SendStream, VarInt};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsStream;

use super::read_buffer::{ReadBuffer, Truncation, LARGE_READ, SMALL_READ};
use super::tcp_socket::{Tcp, READ_ENDED, WRITE_ENDED};
use super::tls_transport::TlsTransport;
use crate::error::{NetError, NetErrorCode};
use crate::quic::congestion::ConnectionSignals;
use crate::quic::window::{send_window, Flow};
use crate::quic::write_coalescing;

/// The code of RESET_STREAM and STOP_SENDING where nobody gave another: the tunnel's other end was reset.
pub const RESET_CODE: u32 = 1;
/// What is read ahead of a peer whose tunnel is still being opened, to notice when it goes.
const READ_AHEAD: usize = 16 << 10;
/// A TCP client that has finished before its tunnel is open, and sent nothing for it, is waited for so long: it may only want to listen.
const EARLY_FIN_WAIT: Duration = Duration::from_secs(1);

pub enum ReadHalf {
    Tcp(Arc<Tcp>),
    Tls(tokio::io::ReadHalf<TlsStream<TlsTransport>>, Arc<Tcp>, Truncation),
    Quic(RecvStream),
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
