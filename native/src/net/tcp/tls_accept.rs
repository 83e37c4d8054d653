//! The TLS handshake of accepted connections: which configuration a client gets, and which connections are links of agents.
use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustls::server::ClientHello;
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt;
use tokio_rustls::{StartHandshake, TlsStream};

use super::client_hello::read_hello;
use super::preamble::Preamble;
use crate::error::NetError;
use crate::http::head::TlsPeer;
use crate::net::tls::{self, HostTls, ServerTls, ACME_PROTOCOL, TCP_VERSIONS};
use crate::stream::tcp_socket::Tcp;
use crate::stream::tls_transport::TlsTransport;
use crate::tls_link::listener::Handoff;

/// Longest ClientHello of a client in bytes, with its records.
const MAX_HELLO: usize = 64 << 10;

/// The configurations with one certificate.
struct Configs {
    /// With the listener's protocols.
    own: Arc<ServerConfig>,
    /// Without protocols. rustls rejects clients without a common one; those that offer only HTTP/2 to a listener of HTTP/1.1 usually speak
    /// HTTP/1.1 anyway.
    other: Arc<ServerConfig>,
}

/// The TLS configurations of a listener, by the server name and the protocols (ALPN, RFC 7301) that a client sends.
pub struct ServerConfigs {
    protocols: &'static [&'static [u8]],
    fallback: Configs,
    /// By name, or by `*.zone`.
    hosts: HashMap<String, Arc<Configs>>,
    /// Of challenges, by name.
    challenges: HashMap<String, Arc<ServerConfig>>,
}

/// A client, after its handshake.
pub struct SecuredClient {
    pub stream: TlsStream<TlsTransport>,
    pub peer: TlsPeer,
    pub is_http2: bool,
}

/// A connection whose ClientHello was read.
pub enum Secured<'a> {
    Client(Box<SecuredClient>),
    /// It offers a protocol of `handoff`. `incoming` is the data read so far.
    Link {
        handoff: &'a Handoff,
        incoming: BytesMut,
    },
    /// An ACME authority that has got the answer to its challenge.
    Challenge,
}

impl Configs {
    fn new(tls: &ServerTls, protocols: &[&[u8]]) -> Result<Self, NetError> {
        let other = tls::server(tls, TCP_VERSIONS, &[])?;
        let mut own = other.clone();
        own.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(Self {
            own: Arc::new(own),
            other: Arc::new(other),
        })
    }
}

/// The configurations of host names, by name in lower case.
fn by_name<T: Clone>(hosts: Option<&Vec<HostTls>>, of: impl Fn(&ServerTls) -> Result<T, NetError>) -> Result<HashMap<String, T>, NetError> {
    let mut all = HashMap::new();
    for HostTls { names, tls } in hosts.into_iter().flatten() {
        let value = of(tls)?;
        all.extend(names.iter().map(|name| (name.to_ascii_lowercase(), value.clone())));
    }
    Ok(all)
}

impl ServerConfigs {
    pub fn new(tls: &ServerTls, preamble: Preamble) -> Result<Self, NetError> {
        let protocols = preamble.alpn();
        Ok(Self {
            protocols,
            fallback: Configs::new(tls, protocols)?,
            hosts: by_name(tls.hosts.as_ref(), |tls| Configs::new(tls, protocols).map(Arc::new))?,
            challenges: by_name(tls.challenges.as_ref(), |tls| tls::challenge_server(tls).map(Arc::new))?,
        })
    }

    /// The configurations for a server name: its own, those of the zone with most labels, or those for all others.
    fn of(&self, name: Option<&str>) -> &Configs {
        let Some(name) = name.filter(|_| !self.hosts.is_empty()) else {
            return &self.fallback;
        };
        if let Some(configs) = self.hosts.get(name) {
            return configs;
        }
        let zones = name.match_indices('.').map(|(dot, _)| &name[dot..]);
        let mut found = zones.filter_map(|zone| self.hosts.get(&format!("*{zone}")));
        found.next().map_or(&self.fallback, |configs| configs)
    }

    fn choose(&self, hello: &ClientHello<'_>, name: Option<&str>) -> Choice {
        let offers = |wanted: &[u8]| hello.alpn().is_some_and(|mut names| names.any(|name| name == wanted));
        if let Some(config) = name.and_then(|name| self.challenges.get(name)).filter(|_| offers(ACME_PROTOCOL)) {
            return Choice::Challenge(config.clone());
        }
        let Configs { own, other } = self.of(name);
        let is_own = self.protocols.iter().any(|name| offers(name));
        Choice::Client(if is_own { own } else { other }.clone())
    }

    /// Completes the handshake of a client. A link has certificates and limits of its own, so its handshake is not begun.
    pub async fn accept(self: Arc<Self>, tcp: Arc<Tcp>, links: Option<&Handoff>) -> std::io::Result<Secured<'_>> {
        let (hello, incoming) = read_hello(&tcp, MAX_HELLO).await?;
        let (server_name, choice) = {
            let hello = hello.client_hello();
            let is_for = |handoff: &&Handoff| hello.alpn().is_some_and(|mut names| names.any(|name| handoff.speaks(name)));
            if let Some(handoff) = links.filter(is_for) {
                return Ok(Secured::Link { handoff, incoming });
            }
            let name = hello.server_name().map(|name| name.trim_end_matches('.').to_ascii_lowercase());
            let choice = self.choose(&hello, name.as_deref());
            (name, choice)
        };
        drop(self); // a handshake does not keep replaced certificates
        let handshake = StartHandshake::from_parts(hello, TlsTransport(tcp));
        let stream = match choice {
            Choice::Client(config) => handshake.into_stream(config).await?,
            Choice::Challenge(config) => {
                handshake.into_stream(config).await?.shutdown().await?;
                return Ok(Secured::Challenge);
            }
        };
        let (_, connection) = stream.get_ref();
        let certificate = connection.peer_certificates().and_then(|chain| chain.first());
        let peer = TlsPeer {
            server_name,
            certificate: certificate.map(|certificate| Bytes::copy_from_slice(certificate)),
        };
        let is_http2 = connection.alpn_protocol() == Some(b"h2");
        Ok(Secured::Client(Box::new(SecuredClient {
            stream: TlsStream::Server(stream),
            peer,
            is_http2,
        })))
    }
}

enum Choice {
    Client(Arc<ServerConfig>),
    Challenge(Arc<ServerConfig>),
}
