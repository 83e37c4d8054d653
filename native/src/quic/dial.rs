//! Connects to QUIC servers.
use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint};

use super::socket::Socket;
use super::write_coalescing::CoalescingRuntime;
use crate::error::{NetError, NetErrorCode, Warn};
use crate::net::address::display;
use crate::net::happy_eyeballs::{connect, DialTarget};
use crate::net::resolver::{Purpose, Resolver};
use crate::net::tls;
use crate::net::udp;
use crate::session::ConnectSession;
use crate::time::millis;

/// Connects to the first address of the host that accepts. The endpoint has its own socket and ends with the connection.
pub async fn dial(resolver: &Arc<Resolver>, options: ConnectSession, warn: Arc<Warn>) -> Result<Connection, NetError> {
    let name = options.server_name.clone().unwrap_or_else(|| options.host.clone());
    tls::server_name(&name)?;
    let name = name.split('%').next().unwrap_or(&name).to_owned();
    let crypto = tls::link_client(&options.tls, &options.alpn)?;
    let crypto = QuicClientConfig::try_from(crypto).map_err(|e| NetError::tls("Cannot set up QUIC", e))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(options.transport.config()?);
    let (who, limit) = ((resolver, Purpose::Link), millis(options.timeout_ms));
    connect(who, &options.host, options.port, DialTarget::Name, limit, |address| {
        let (config, name, transport, warn) = (config.clone(), name.clone(), options.transport.clone(), warn.clone());
        let what = display(&options.host, options.port);
        async move {
            let local: SocketAddr = if address.is_ipv4() {
                ([0, 0, 0, 0], 0).into()
            } else {
                ([0u16; 8], 0).into()
            };
            let socket = udp::open(local, None, &*warn)
                .and_then(Socket::open)
                .map_err(|e| NetError::connect(&e, &what))?;
            let held = Arc::downgrade(&socket);
            let endpoint = Endpoint::new_with_abstract_socket(transport.endpoint(), None, socket, Arc::new(CoalescingRuntime))
                .map_err(|e| NetError::connect(&e, &what))?;
            let connecting = endpoint
                .connect_with(config, address, &name)
                .map_err(|e| NetError::new(NetErrorCode::Invalid, format!("Cannot connect to {what}: {e}")))?;
            let connection = connecting.await.map_err(|e| NetError::quic_connect(&e, &what))?;
            transport.begin(&connection, &held);
            Ok(connection)
        }
    })
    .await
}
