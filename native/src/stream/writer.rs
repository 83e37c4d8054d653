//! The sending half of a stream over TCP, TLS, QUIC, a TLS link, HTTP/2 or UDP, or of standard output.
use std::future::{pending, Future};
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use quinn::SendStream;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsStream;

use super::read_buffer::{LARGE_READ, SMALL_READ};
use super::reset_on_drop::ResetOnDrop;
use super::stdio;
use super::tcp_socket::{Tcp, WRITE_ENDED};
use super::tls_transport::TlsTransport;
use super::udp_peer;
use crate::error::NetError;
use crate::quic::datagrams;
use crate::quic::signals::ConnectionSignals;
use crate::quic::window::send_window;
use crate::quic::write_coalescing;
use crate::{http2, tls_link};

/// Bytes read at a time for a stream of HTTP/2. It is not asked how much it takes: the credit of the connection is not to be held for nothing.
const HTTP2_READ: usize = 64 << 10;

pub enum WriteHalf {
    Tcp(Arc<Tcp>),
    Tls(tokio::io::WriteHalf<TlsStream<TlsTransport>>, Arc<Tcp>),
    Quic(SendStream, Option<Arc<ConnectionSignals>>),
    TlsLink(tls_link::stream::SendHalf),
    Udp(udp_peer::SendHalf),
    Http2(http2::stream::SendHalf),
    Stdio(stdio::SendHalf),
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
    pub fn stopped_by_peer(&self) -> Pin<Box<dyn Future<Output = NetError> + Send>> {
        match &self.half {
            WriteHalf::Quic(stream, _) => {
                let stopped = stream.stopped();
                Box::pin(async move {
                    match stopped.await {
                        Ok(Some(code)) => NetError::stopped(code),
                        Ok(None) => pending().await, // all data was received
                        Err(quinn::StoppedError::ConnectionLost(e)) => NetError::quic_lost(&e),
                        Err(_) => NetError::closed(),
                    }
                })
            }
            WriteHalf::Tcp(tcp) | WriteHalf::Tls(_, tcp) => {
                let tcp = tcp.clone();
                Box::pin(async move { tcp.reset().await })
            }
            WriteHalf::TlsLink(stream) => Box::pin(stream.stopped()),
            WriteHalf::Http2(stream) => Box::pin(stream.stopped()),
            WriteHalf::Udp(_) | WriteHalf::Stdio(_) => Box::pin(pending()),
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

    /// Resolves when the socket or the send window has taken all of the data. What most tunnels do not use is boxed here and in other functions:
    /// they stay small.
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
                    None => stream.write_all_chunks(&mut [data]).await.map_err(|e| NetError::quic_write(&e)),
                    Some(datagrams) => Box::pin(datagrams.write(stream, &data)).await,
                }
            }
            WriteHalf::Tcp(tcp) => tcp.write_vectored(&mut [data]).await,
            WriteHalf::TlsLink(stream) => Box::pin(stream.write(data)).await,
            WriteHalf::Udp(peer) => Box::pin(peer.write(&data)).await,
            WriteHalf::Http2(stream) => Box::pin(stream.write(data)).await,
            WriteHalf::Stdio(stream) => Box::pin(stream.write(data)).await,
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
            WriteHalf::TlsLink(stream) => return Box::pin(stream.room()).await,
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

    /// Writes as much as a TCP socket accepts without blocking, and leaves the rest in `data`. Errors are left to the next write.
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
                    Box::pin(self.write(std::mem::take(chunk))).await?;
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
                    Box::pin(datagrams.flush(stream)).await?;
                }
                if stream.finish().is_err() {
                    return Err(NetError::closed());
                }
            }
            WriteHalf::TlsLink(stream) => Box::pin(stream.finish()).await?,
            WriteHalf::Udp(peer) => peer.finish(),
            WriteHalf::Http2(stream) => stream.finish()?,
            WriteHalf::Stdio(stream) => Box::pin(stream.finish()).await?,
            WriteHalf::Tcp(tcp) => SockRef::from(&tcp.stream)
                .shutdown(std::net::Shutdown::Write)
                .map_err(|e| tcp.failed(e))?,
            WriteHalf::Tls(stream, tcp) => stream.shutdown().await.map_err(|e| tcp.failed(e))?,
        }
        self.ended = true;
        Ok(())
    }
}
