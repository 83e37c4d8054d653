//! Connects to TCP servers.
use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsConnector, TlsStream};

use super::{keepalive, plain, secure};
use crate::error::{NetError, NetErrorCode};
use crate::net::happy_eyeballs::{connect, DialTarget};
use crate::net::resolver::{Purpose, Resolver};
use crate::net::tls;
use crate::stream::tcp_socket::Tcp;
use crate::stream::tls_transport::TlsTransport;
use crate::stream::Halves;

/// A connection to a server.
pub struct Connection {
    pub tcp: Arc<Tcp>,
    pub tls: Option<Box<TlsStream<TlsTransport>>>,
    pub remote: String,
}

impl Connection {
    pub fn halves(self) -> Halves {
        match self.tls {
            None => plain(self.tcp),
            Some(tls) => secure(*tls, self.tcp),
        }
    }
}

/// Connects to the first address of `host` that accepts.
pub async fn dial(
    resolver: &Arc<Resolver>,
    host: String,
    port: u16,
    target: DialTarget,
    limit: Duration,
    tls: Option<TlsConnector>,
) -> Result<Connection, NetError> {
    let tls = match tls {
        None => None,
        Some(connector) => Some((connector, tls::server_name(&host)?)),
    };
    connect((resolver, Purpose::Tunnel), &host, port, target, limit, |address| {
        let tls = tls.clone();
        async move {
            let tcp = Tcp::new(open(address).await.map_err(|e| connect_error(&e, address))?);
            let tls = match tls {
                None => None,
                Some((connector, name)) => {
                    // boxed: dials without TLS stay small
                    let stream = Box::pin(connector.connect(name, TlsTransport(tcp.clone()))).await;
                    let stream = stream.map_err(|e| NetError::tls(&format!("Cannot connect to {address} over TLS"), e))?;
                    Some(Box::new(TlsStream::Client(stream)))
                }
            };
            let remote = address.to_string();
            Ok(Connection { tcp, tls, remote })
        }
    })
    .await
}

/// EADDRNOTAVAIL means that no local port is free, and over IPv6 also that there is no source address. Only the former is temporary.
pub fn connect_error(error: &std::io::Error, to: SocketAddr) -> NetError {
    let mut net_error = NetError::connect(error, &to.to_string());
    if error.kind() == ErrorKind::AddrNotAvailable && has_source_address(to) {
        net_error.code = NetErrorCode::AddressNotAvailable;
    }
    net_error
}

/// Whether there is a source address for this destination. Connecting a UDP socket sends nothing.
fn has_source_address(to: SocketAddr) -> bool {
    let connect = || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?.connect(to);
    to.is_ipv4() || connect().is_ok()
}

async fn open(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    SockRef::from(&socket).set_tcp_keepalive(&keepalive())?;
    socket.connect(address).await
}
