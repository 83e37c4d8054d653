//! The preamble: the part of a stream that a listener reads before it delivers the stream.
use bytes::{Bytes, BytesMut};

use super::client_hello::read_hello;
use super::socks_handshake;
use crate::error::{NetError, NetErrorCode};
use crate::http::head::{read_head, HeadLimits, Incoming};
use crate::stream::tcp_socket::Tcp;
use crate::stream::Halves;

/// The part of a stream that a listener reads, after the PROXY protocol and TLS, before it delivers the stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Preamble {
    /// The head of a request.
    Http,
    /// The first message of TLS (RFC 8446 §4.1.2), which stays in the stream.
    ClientHello,
    /// The messages of a SOCKS client up to its credentials.
    Socks5,
    /// One or the other, by the first byte.
    HttpOrSocks5,
    /// The heads of the requests of a connection, each of which is delivered as a stream.
    Http2,
    /// One or the other version, as agreed by ALPN; without TLS HTTP/1.1.
    HttpOrHttp2,
    None,
}

impl Preamble {
    pub fn parse(text: &str) -> Result<Self, NetError> {
        match text {
            "http" => Ok(Self::Http),
            "client-hello" => Ok(Self::ClientHello),
            "socks5" => Ok(Self::Socks5),
            "http-or-socks5" => Ok(Self::HttpOrSocks5),
            "http2" => Ok(Self::Http2),
            "http-or-http2" => Ok(Self::HttpOrHttp2),
            "none" => Ok(Self::None),
            _ => Err(NetError::new(
                NetErrorCode::Invalid,
                format!("Cannot read the preamble {text}: it is unknown"),
            )),
        }
    }

    /// The protocols of which the first one that a client offers is selected (RFC 7301).
    pub fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Self::Http | Self::HttpOrSocks5 => &[b"http/1.1"],
            Self::Http2 => &[b"h2"],
            Self::HttpOrHttp2 => &[b"h2", b"http/1.1"],
            Self::ClientHello | Self::Socks5 | Self::None => &[],
        }
    }

    /// Whether what serves the stream has to know the address at which the client has reached the listener.
    pub fn needs_local(self, incoming: &Incoming) -> bool {
        match self {
            Self::Http | Self::Http2 | Self::HttpOrHttp2 => false,
            Self::HttpOrSocks5 => incoming
                .head
                .as_ref()
                .is_some_and(|head| head.first() == Some(&socks_handshake::VERSION)),
            Self::ClientHello | Self::Socks5 | Self::None => true,
        }
    }

    /// Returns `None` if the peer closed the stream without sending anything. After an error `socks` has the messages of a SOCKS client.
    pub async fn read(
        self,
        stream: &mut Halves,
        tcp: &Tcp,
        limits: &HeadLimits,
        socks: &mut BytesMut,
    ) -> Result<Option<Option<Bytes>>, NetError> {
        let speaks_socks = match self {
            Self::Http2 | Self::None => return Ok(Some(None)),
            Self::ClientHello => return Box::pin(read_client_hello(stream, tcp, limits.bytes)).await,
            Self::Http | Self::HttpOrHttp2 => false,
            Self::Socks5 => true,
            Self::HttpOrSocks5 => {
                let Ok(Some(data)) = stream.reader.read().await else {
                    return Ok(None);
                };
                let first = data.first().copied();
                stream.reader.prefix = data;
                first == Some(socks_handshake::VERSION)
            }
        };
        if !speaks_socks {
            return Ok(read_head(stream, limits.bytes).await?.map(Some));
        }
        let sent_something = Box::pin(socks_handshake::read(stream, socks)).await?;
        Ok(sent_something.then(|| Some(socks.split().freeze())))
    }
}

/// The content type of a record that begins a handshake (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;

/// Reads the server name. The ClientHello stays in the stream, which is `tcp`.
async fn read_client_hello(stream: &mut Halves, tcp: &Tcp, limit: usize) -> Result<Option<Option<Bytes>>, NetError> {
    let mut first = [0];
    if matches!(tcp.stream.peek(&mut first).await, Ok(0) | Err(_)) {
        return Ok(None); // a health check
    }
    if first[0] != HANDSHAKE {
        return Err(NetError::remote(
            NetErrorCode::NotTls,
            "This is not TLS, but this port accepts only TLS",
        ));
    }
    let (hello, bytes) = read_hello(tcp, limit).await.map_err(|error| NetError {
        remote: true,
        ..NetError::tls("The ClientHello cannot be read", error)
    })?;
    stream.reader.prefix = bytes.freeze();
    Ok(Some(hello.client_hello().server_name().map(|name| name.to_owned().into())))
}
