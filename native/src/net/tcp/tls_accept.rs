//! The TLS handshake of accepted connections: which configuration a client gets, and which connections are links of agents.
use std::sync::Arc;

use bytes::BytesMut;
use tokio_rustls::{StartHandshake, TlsStream};

use super::client_hello::read_hello;
use super::listener::Preamble;
use crate::error::NetError;
use crate::net::tls::{self, ServerTls, TCP_VERSIONS};
use crate::stream::tcp_socket::Tcp;
use crate::stream::tls_transport::TlsTransport;
use crate::tls_link::listener::Handoff;

/// Longest ClientHello of a client in bytes, with its records.
const MAX_HELLO: usize = 64 << 10;

/// The TLS configurations for clients that offer the listener's protocol by ALPN (RFC 7301), and for all others. rustls rejects clients
/// without a common protocol; those that offer only HTTP/2 get no ALPN and usually speak HTTP/1.1 anyway.
#[derive(Clone)]
pub struct ServerConfigs {
    /// With the protocol.
    own: Option<(&'static [u8], Arc<rustls::ServerConfig>)>,
    other: Arc<rustls::ServerConfig>,
}

/// A connection whose ClientHello was read.
pub enum Secured<'a> {
    /// A client, after its handshake.
    Client(Box<TlsStream<TlsTransport>>),
    /// It offers a protocol of `handoff`. `incoming` is what was read.
    Link { handoff: &'a Handoff, incoming: BytesMut },
}

impl ServerConfigs {
    pub fn new(tls: &ServerTls, preamble: Preamble) -> Result<Self, NetError> {
        let other = tls::server(tls, TCP_VERSIONS, &[])?;
        let own = preamble.alpn().map(|name| {
            let mut own = other.clone();
            own.alpn_protocols = vec![name.to_vec()];
            (name, Arc::new(own))
        });
        Ok(Self {
            own,
            other: Arc::new(other),
        })
    }

    /// Completes the handshake of a client. A link has certificates and limits of its own, so its handshake is not begun.
    pub async fn accept(self, tcp: Arc<Tcp>, links: Option<&Handoff>) -> std::io::Result<Secured<'_>> {
        let (hello, incoming) = read_hello(&tcp, MAX_HELLO).await?;
        let offers = |wanted: &dyn Fn(&[u8]) -> bool| hello.client_hello().alpn().is_some_and(|mut names| names.any(wanted));
        if let Some(handoff) = links.filter(|handoff| offers(&|name| handoff.speaks(name))) {
            return Ok(Secured::Link { handoff, incoming });
        }
        let config = match self.own {
            Some((own, config)) if offers(&|name| name == own) => config,
            _ => self.other,
        };
        let stream = StartHandshake::from_parts(hello, TlsTransport(tcp)).into_stream(config).await?;
        Ok(Secured::Client(Box::new(TlsStream::Server(stream))))
    }
}
