//! The receiving half of a stream over TCP, TLS, QUIC, a TLS link, HTTP/2 or UDP, or of standard input.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::RecvStream;
use tokio_rustls::TlsStream;

use super::buffered::BufferedStream;
use super::read_buffer::{ReadBuffer, Truncation, LARGE_READ, SMALL_READ};
use super::reset_on_drop::ResetOnDrop;
use super::stdio;
use super::tcp_socket::{Tcp, READ_ENDED};
use super::tls_transport::TlsTransport;
use super::udp_peer;
use crate::error::{NetError, NetErrorCode};
use crate::quic::datagrams;
use crate::quic::window::Flow;
use crate::{http2, tls_link};

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

    /// Puts bytes back, to be read next.
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

    /// As [`Reader::read_with`], after the prefix. What most tunnels do not use is boxed, as in [`Writer::write`](super::writer::Writer::write).
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
                Some(datagrams) => Box::pin(datagrams.read(stream)).await,
            },
            ReadHalf::TlsLink(stream) => Box::pin(stream.read(buffer.largest)).await,
            ReadHalf::Udp(peer) => Ok(Box::pin(peer.read(buffer.largest)).await),
            ReadHalf::Http2(stream) => Box::pin(stream.read(buffer.largest)).await,
            ReadHalf::Stdio(stream) => Box::pin(stream.read()).await,
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
                Some(datagrams) => Box::pin(datagrams.read(stream)).await?.map(|capsules| {
                    chunks[0] = capsules;
                    1
                }),
            },
            ReadHalf::TlsLink(stream) => Box::pin(stream.read_chunks(chunks, stream.batch())).await?,
            _ => return Err(NetError::new(NetErrorCode::Internal, "The stream belongs to no session")),
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
