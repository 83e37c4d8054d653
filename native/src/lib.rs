//! The native engine of reverse-http: sockets, TLS, QUIC and the relaying of bytes, behind the contract of `shared/net/net.ts`.
//!
//! JavaScript refers to everything by handle and chooses the number of each call. Access control and responses are decided in TypeScript.
mod addon;
mod error;
mod handover;
mod http;
mod http2;
mod net;
mod quic;
mod relay;
mod runtime;
mod session;
mod stream;
mod sync;
mod time;
mod tls_link;
mod web_socket;

/// What JavaScript loads.
pub use addon::engine::{notify_supervisor, Engine};

/// What `native/fuzz` uses.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    pub use crate::error::{NetError, NetErrorCode};
    pub use crate::http::head::HeadScanner;
    pub use crate::http2::body as http2_body;
    pub use crate::http2::head as http2_head;
    pub use crate::net::address::{canonical, display, interleave, to_bind};
    pub use crate::net::proxy_protocol::{parse as parse_proxy_header, Header as ProxyHeader};
    pub use crate::net::socks_datagram::header_end;
    pub use crate::net::tcp::client_hello::HelloReader;
    pub use crate::net::tcp::outbound_proxy::{http as http_connect, socks5, Failure, OutboundProxy};
    pub use crate::net::tcp::socks_handshake::{credentials_end, methods_end};
    pub use crate::net::tls::{client, server, server_name, ClientTls, Der, ServerTls, TCP_VERSIONS};
    pub use crate::quic::datagrams::parse as parse_datagram;
    pub use crate::relay::capsule;
    pub use crate::tls_link::{frame, records, session, stream};
    pub use crate::web_socket::frame as web_socket_frame;
}
