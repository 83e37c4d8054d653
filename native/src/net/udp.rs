//! UDP sockets: for QUIC, for listeners, and for flows to destinations.
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::{NetError, Warn};
use crate::net::address::bind_first;
use crate::net::happy_eyeballs::{self, DialTarget};
use crate::net::resolver::{Purpose, Resolver};
use crate::net::sharing::{self, Sharing};
use crate::net::tcp::dial::connect_error;

/// Requested buffer size; the kernel may grant less.
const UDP_BUFFER: usize = 8 << 20;
/// With smaller buffers fast senders cause loss.
const MIN_UDP_BUFFER: usize = 2_500_000;

/// Opens a socket for many peers. Warns if its buffers are smaller than [`MIN_UDP_BUFFER`].
pub fn open(address: SocketAddr, sharing: Option<&Sharing>, warn: &Warn) -> std::io::Result<std::net::UdpSocket> {
    let socket = sharing::bind(sharing, address, || {
        let socket = unbound(address)?;
        raise_buffers(&socket);
        Ok(socket)
    })?;
    let got = socket.recv_buffer_size()?.min(socket.send_buffer_size()?);
    // Linux doubles the value for its own overhead
    let got = if cfg!(target_os = "linux") { got / 2 } else { got };
    if got < MIN_UDP_BUFFER {
        let remedy = if cfg!(target_os = "macos") {
            format!("sysctl -w kern.ipc.maxsockbuf={}", 2 * UDP_BUFFER)
        } else {
            format!("sysctl -w net.core.rmem_max={UDP_BUFFER} net.core.wmem_max={UDP_BUFFER}")
        };
        warn(format!(
            "The system limits UDP buffers to {got} bytes, which makes large transfers slow; raise it with: {remedy}"
        ));
    }
    Ok(socket.into())
}

/// Opens a socket for one peer, with the system's buffers.
pub fn open_small(address: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = unbound(address)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A socket of the family of `address`.
fn unbound(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn raise_buffers(socket: &Socket) {
    // macOS rejects sizes above its limit instead of granting less
    let mut size = UDP_BUFFER;
    while size > UDP_BUFFER / 64 && socket.set_recv_buffer_size(size).is_err() {
        size /= 2;
    }
    size = UDP_BUFFER;
    while size > UDP_BUFFER / 64 && socket.set_send_buffer_size(size).is_err() {
        size /= 2;
    }
    #[cfg(target_os = "linux")]
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        use std::os::fd::AsRawFd;
        let size = UDP_BUFFER as libc::c_int;
        // SAFETY: a plain setsockopt with an int that outlives the call. Without CAP_NET_ADMIN it is refused, which is fine.
        unsafe {
            let value = &size as *const libc::c_int as *const libc::c_void;
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                value,
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
    }
}

/// Opens a socket for the first address of `host` to which a route leads. Returns the socket and the address.
pub async fn dial(
    resolver: &Arc<Resolver>,
    host: &str,
    port: u16,
    target: DialTarget,
    limit: Duration,
) -> Result<(tokio::net::UdpSocket, String), NetError> {
    happy_eyeballs::connect((resolver, Purpose::Tunnel), host, port, target, limit, |address| async move {
        let socket = connect(address).await.map_err(|e| connect_error(&e, address))?;
        Ok((socket, address.to_string()))
    })
    .await
}

/// Opens a socket that sends to `address` and receives only from there.
async fn connect(address: SocketAddr) -> std::io::Result<tokio::net::UdpSocket> {
    let any: SocketAddr = match address.is_ipv4() {
        true => (Ipv4Addr::UNSPECIFIED, 0).into(),
        false => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = tokio::net::UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    Ok(socket)
}

pub fn bind(address: &str, sharing: Option<&Sharing>, warn: &Warn) -> Result<std::net::UdpSocket, NetError> {
    bind_first(address, |candidate| open(candidate, sharing, warn))
}
