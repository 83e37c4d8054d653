//! TCP connections, with or without TLS.
pub mod accepted;
pub mod client_hello;
pub mod dial;
pub mod listener;
pub mod outbound_proxy;
pub mod preamble;
pub mod socks_handshake;
pub mod tls_accept;

use std::sync::Arc;
use std::time::Duration;

use socket2::TcpKeepalive;
use tokio_rustls::TlsStream;

use crate::stream::read_buffer::Truncation;
use crate::stream::reader::ReadHalf;
use crate::stream::tcp_socket::Tcp;
use crate::stream::tls_transport::TlsTransport;
use crate::stream::writer::WriteHalf;
use crate::stream::Halves;

/// Interval of keep-alive probes, which detect dead peers (RFC 9293 §3.8.4). Same as Go's.
const KEEPALIVE: Duration = Duration::from_secs(15);

fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE)
}

pub fn plain(tcp: Arc<Tcp>) -> Halves {
    Halves::new(ReadHalf::Tcp(tcp.clone()), WriteHalf::Tcp(tcp))
}

pub fn secure(stream: TlsStream<TlsTransport>, tcp: Arc<Tcp>) -> Halves {
    let truncation = match stream {
        TlsStream::Server(_) => Truncation::End,
        TlsStream::Client(_) => Truncation::Reset,
    };
    let (reader, writer) = tokio::io::split(stream);
    Halves::new(ReadHalf::Tls(reader, tcp.clone(), truncation), WriteHalf::Tls(writer, tcp))
}
