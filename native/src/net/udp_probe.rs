//! Finds out why a QUIC server does not respond. quinn ignores ICMP errors, as anyone can forge them and they must not end a connection. A
//! separate socket asks for them; the result is only shown to people.
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::error::{NetError, NetErrorCode};
use crate::net::happy_eyeballs::more_specific;
use crate::net::resolver::{Purpose, Resolver};

/// Maximum number of addresses to probe.
const MAX_ADDRESSES: usize = 4;
/// Datagrams per address. The second one sees what the kernel learned about the path from the first.
const PROBES: u32 = 3;
/// Minimum datagram size of a QUIC path (RFC 9000 §14).
const LENGTH: usize = 1_200;

/// A Version Negotiation packet (RFC 9000 §17.2.1), which servers ignore.
fn datagram() -> [u8; LENGTH] {
    let mut data = [0; LENGTH];
    data[0] = 0x80; // a long header of version 0, with connection ids of 8 bytes
    (data[5], data[14]) = (8, 8);
    data
}

/// Why datagrams do not reach `host`; `None` if there is no error for at least one address.
pub async fn probe(resolver: &Arc<Resolver>, host: &str, port: u16, limit: Duration) -> Option<NetError> {
    timeout(limit, async {
        let addresses = resolver.lookup(host, port, Purpose::Link).all().await.ok()?;
        let mut probes = JoinSet::new();
        for address in addresses.into_iter().take(MAX_ADDRESSES) {
            probes.spawn(async move { ask(address, limit / PROBES).await.map(|e| explain(&e, address)) });
        }
        let mut worst = None;
        while let Some(ended) = probes.join_next().await {
            worst = Some(more_specific(worst, ended.ok()??));
        }
        worst
    })
    .await
    .ok()?
}

/// The error of an address, if any, until the time is up.
async fn ask(address: SocketAddr, pause: Duration) -> Option<io::Error> {
    let exchange = async {
        let any: SocketAddr = if address.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let socket = UdpSocket::bind(any).await?;
        hear_errors(&socket, address.is_ipv4());
        socket.connect(address).await?;
        let mut answer = [0; 64];
        for _ in 0..PROBES {
            socket.send(&datagram()).await?;
            tokio::select! {
                // any response shows that something listens there
                heard = socket.recv(&mut answer) => return heard.map(|_| ()),
                () = sleep(pause) => {}
            }
        }
        Ok(())
    };
    exchange.await.err()
}

/// On Linux: reports all ICMP errors and disables fragmentation.
#[cfg(target_os = "linux")]
fn hear_errors(socket: &UdpSocket, is_ipv4: bool) {
    use std::os::fd::AsRawFd;
    let options = if is_ipv4 {
        [
            (libc::IPPROTO_IP, libc::IP_RECVERR, 1),
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        ]
    } else {
        [
            (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1),
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
        ]
    };
    for (level, option, value) in options {
        let value: libc::c_int = value;
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the descriptor is open while the socket is borrowed, and the value is an integer of the length that is given. Where the
        // system refuses, less is heard.
        let _ = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    }
}

#[cfg(not(target_os = "linux"))]
fn hear_errors(_: &UdpSocket, _: bool) {}

/// Describes the error and the remedy.
fn explain(error: &io::Error, address: SocketAddr) -> NetError {
    use io::ErrorKind::*;
    let (code, why) = match (error.raw_os_error(), error.kind()) {
        (Some(libc::EMSGSIZE), _) => (
            NetErrorCode::Unreachable,
            format!("the path to {address} carries no packets of 1,200 bytes, which QUIC needs: raise the MTU of the interface or VPN"),
        ),
        (_, ConnectionRefused) => (
            NetErrorCode::Refused,
            format!("nothing takes UDP datagrams at {address}: is the proxy running, and is this its --agent-server.listen-address?"),
        ),
        (_, NetworkUnreachable | NetworkDown | AddrNotAvailable) => (
            NetErrorCode::Unreachable,
            format!("this machine has no route to {address}: check its network, and whether the address is right"),
        ),
        (_, HostUnreachable) => (
            NetErrorCode::Unreachable,
            format!("the network says that {address} cannot be reached: check the address, and firewalls on the way"),
        ),
        (_, PermissionDenied) => (
            NetErrorCode::Unreachable,
            format!("a firewall or a route rejects UDP datagrams to {address}: allow UDP to that port"),
        ),
        _ => (NetErrorCode::Unreachable, format!("datagrams to {address} cannot be sent")),
    };
    NetError {
        remote: code == NetErrorCode::Refused,
        ..NetError::new(code, format!("{why} ({error})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn probe_at(address: &str, limit: Duration) -> Option<NetError> {
        let address: SocketAddr = address.parse().unwrap();
        let resolver = Resolver::new(tokio::runtime::Handle::current(), Default::default());
        probe(&resolver, &address.ip().to_string(), address.port(), limit).await
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_closed_port_is_reported_at_once() {
        for ip in ["127.0.0.1", "[::1]"] {
            let socket = UdpSocket::bind(format!("{ip}:0")).await.unwrap();
            let address = socket.local_addr().unwrap();
            drop(socket);
            let error = probe_at(&address.to_string(), LONG).await.unwrap();
            assert_eq!(error.code, NetErrorCode::Refused);
            assert!(error.message.contains(&address.to_string()), "{}", error.message);
        }
    }

    #[tokio::test]
    async fn nothing_is_reported_of_a_listener_whether_it_responds_or_not() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap().to_string();
        assert!(probe_at(&address, Duration::from_millis(300)).await.is_none());
        let answering = tokio::spawn(async move {
            let mut data = [0; LENGTH];
            loop {
                // the first datagrams are those of the first probe, whose port is closed by now
                if let Ok((_, from)) = socket.recv_from(&mut data).await {
                    let _ = socket.send_to(b"x", from).await;
                }
            }
        });
        assert!(probe_at(&address, LONG).await.is_none());
        answering.abort();
    }

    #[test]
    fn every_cause_has_a_remedy() {
        let told = |errno: i32| explain(&io::Error::from_raw_os_error(errno), "192.0.2.1:4242".parse().unwrap()).message;
        let all = [
            (libc::ENETUNREACH, "no route"),
            (libc::EHOSTUNREACH, "cannot be reached"),
            (libc::EPERM, "rejects"),
            (libc::EACCES, "rejects"),
            (libc::EMSGSIZE, "MTU"),
            (libc::ECONNREFUSED, "is the proxy running"),
        ];
        for (errno, words) in all {
            let told = told(errno);
            assert!(told.contains(words) && told.contains("192.0.2.1:4242"), "{told}");
        }
    }
}
