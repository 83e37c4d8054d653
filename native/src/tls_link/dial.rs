//! Connects to servers over a TLS link, on TCP or within a WebSocket.
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use rustls::client::UnbufferedClientConnection;
use tokio::net::{TcpSocket, TcpStream};

use super::handshake::establish;
use super::session::{Config, Session};
use super::socket::Socket;
use crate::error::NetError;
use crate::net::address::{canonical, display};
use crate::net::happy_eyeballs::{connect, DialTarget};
use crate::net::resolver::{Purpose, Resolver};
use crate::net::tcp::dial::connect_error;
use crate::net::tcp::outbound_proxy::Tunnel;
use crate::net::tls;
use crate::session::ConnectSession;
use crate::stream::tcp_socket::Tcp;
use crate::time::millis;
use crate::web_socket::upgrade::{Opener, WebSocketRequest};

/// Connects to the first address of the host, or of the outbound proxy in front of it, that accepts. Resolves when the peer has sent its
/// settings.
pub async fn dial(
    resolver: &Arc<Resolver>,
    options: ConnectSession,
    web_socket: Option<WebSocketRequest>,
) -> Result<Arc<Session>, NetError> {
    let name = tls::server_name(options.server_name.as_deref().unwrap_or(&options.host))?;
    let mut tls_config = tls::link_client(&options.tls, &options.alpn)?;
    tls_config.resumption = rustls::client::Resumption::disabled(); // a link lives long, and tickets would arrive after the handshake
    tls_config.enable_secret_extraction = true; // for the halves of the records
    let tls_config = Arc::new(tls_config);
    let web_socket = web_socket.map(Opener::new).transpose()?;
    let (who, limit) = ((resolver, Purpose::Link), millis(options.timeout_ms));
    let tunnel = options
        .outbound_proxy
        .map(|proxy| Arc::new(Tunnel::new(proxy, &options.host, options.port)));
    let (host, port) = tunnel.as_ref().map_or((&*options.host, options.port), |tunnel| tunnel.first_hop());
    let result = connect(who, host, port, DialTarget::Name, limit, |address| {
        let (tls_config, name, config) = (tls_config.clone(), name.clone(), Config::from(&options.transport));
        let (tunnel, what) = (tunnel.clone(), display(&options.host, options.port));
        let web_socket = web_socket.clone();
        async move {
            let (tcp, remote, what) = match tunnel {
                Some(tunnel) => (tunnel.open(|| open(address)).await?, what, tunnel.to_string()),
                None => {
                    let tcp = open(address).await.map_err(|e| connect_error(&e, address))?;
                    (tcp, canonical(address).to_string(), what)
                }
            };
            let tcp = Tcp::new(tcp);
            let socket = match web_socket {
                None => Socket::Tcp(tcp),
                Some(opener) => Socket::WebSocket(opener.open(tcp, &what).await?),
            };
            socket.set_up().map_err(|e| NetError::connect(&e, &what))?;
            let connection =
                UnbufferedClientConnection::new(tls_config, name).map_err(|e| NetError::tls(&format!("Cannot connect to {what}"), e))?;
            establish(socket, BytesMut::new(), connection.into(), config, remote, &what).await
        }
    })
    .await;
    result.map_err(|error| match &tunnel {
        Some(tunnel) => tunnel.explain(error),
        None => error,
    })
}

async fn open(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.connect(address).await
}
