//! Finds out whether the process at the other end of a connection is gone, while the idle timeout still runs.
use std::time::Duration;

use quinn::Connection;
use tokio::time::{sleep, Instant};

use super::signals::ConnectionSignals;
use crate::net::address::canonical;

/// Interval of the pings of a probe. A system sends few ICMP errors in a second.
const PING_INTERVAL: Duration = Duration::from_millis(100);
/// Silence, with the pings of a probe unanswered, after which a closed port counts; three probe timeouts if they are longer.
const MIN_SILENCE: Duration = Duration::from_millis(1_200);
/// Time for the peer's system to say that the port is closed.
const MIN_DURATION: Duration = Duration::from_millis(2_000);
/// Delay of acknowledgements that a peer may add (RFC 9000 §18.2, max_ack_delay).
const MAX_ACK_DELAY: Duration = Duration::from_millis(25);

/// The reported reason for the end of the session.
pub const PEER_GONE: &str = "nothing answers, and the peer's system reports that its port is closed (ICMP)";

/// Pings the peer, and returns whether its process is gone: nothing arrives for three probe timeouts (RFC 9002 §6.2), and the peer's own
/// system reports that its port is closed. Silence alone is no proof, as the network may be away, nor is ICMP alone, which can be forged.
pub async fn probe(connection: &Connection) -> bool {
    let Some(signals) = ConnectionSignals::of(connection) else {
        return false;
    };
    let Some(_turn) = signals.begin_probe() else { return false };
    let Some(watch) = signals
        .socket()
        .and_then(|socket| socket.watch(canonical(connection.remote_address())))
    else {
        return false;
    };
    let received = connection.stats().udp_rx.datagrams;
    // with the variation at its initial value, half the round trip (RFC 9002 §5.3)
    let silence = MIN_SILENCE.max(3 * (3 * connection.rtt() + MAX_ACK_DELAY));
    let duration = MIN_DURATION.max(silence);
    let start = Instant::now();
    while start.elapsed() <= duration && connection.close_reason().is_none() {
        connection.ping();
        sleep(PING_INTERVAL).await;
        // a process that was suspended may have received data that it has not read yet
        tokio::task::yield_now().await;
        if connection.stats().udp_rx.datagrams != received {
            return false;
        }
        if start.elapsed() >= silence && watch.is_port_closed() {
            signals.set_peer_gone();
            return true;
        }
    }
    false
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::{AsRawFd, RawFd};
    use std::sync::Arc;

    use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
    use quinn::Endpoint;

    use super::*;
    use crate::net::tls::{self, test_certificate};
    use crate::quic::connection;
    use crate::quic::signals;
    use crate::quic::socket::Socket;
    use crate::quic::transport::Transport;
    use crate::quic::write_coalescing::CoalescingRuntime;

    struct Connected {
        connection: Connection,
        socket: Arc<Socket>,
        /// The peer's socket.
        peer: RawFd,
        _endpoints: (Endpoint, Endpoint, Connection),
    }

    impl Connected {
        async fn new() -> Self {
            // no pings but those of the probe
            let transport = Transport {
                keep_alive_ms: Some(0),
                ..Transport::default()
            };
            let runtime = Arc::new(CoalescingRuntime);
            let crypto = tls::link_server(&test_certificate::server_tls(), &[]).unwrap();
            let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(crypto).unwrap()));
            config.transport_config(transport.config().unwrap());
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let peer = socket.as_raw_fd();
            let server = Endpoint::new(transport.endpoint(), Some(config), socket, runtime.clone()).unwrap();

            let socket = Socket::open(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
            let client = Endpoint::new_with_abstract_socket(transport.endpoint(), None, socket.clone(), runtime).unwrap();
            let crypto = tls::link_client(&test_certificate::client_tls(), &[]).unwrap();
            let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(crypto).unwrap()));
            config.transport_config(transport.config().unwrap());
            let connecting = client.connect_with(config, server.local_addr().unwrap(), "a").unwrap();
            let (connection, accepted) = tokio::join!(connecting, async { server.accept().await.unwrap().await });
            let connection = connection.unwrap();
            transport.begin(&connection, &Arc::downgrade(&socket));
            Self {
                connection,
                socket,
                peer,
                _endpoints: (client, server, accepted.unwrap()),
            }
        }

        /// Replaces the peer's socket by one at another port, as if the peer's process had ended.
        fn end_peer(&self) {
            let other = UdpSocket::bind("127.0.0.1:0").unwrap();
            // SAFETY: both descriptors are open: their sockets exist
            assert!(unsafe { libc::dup2(other.as_raw_fd(), self.peer) } >= 0);
        }
    }

    #[tokio::test]
    async fn a_silent_peer_whose_port_is_closed_is_gone() {
        let connected = Connected::new().await;
        connected.end_peer();
        // the first probe may still find datagrams of the peer
        while !probe(&connected.connection).await {
            sleep(PING_INTERVAL).await;
        }
        signals::close(&connected.connection, 0, b"");
        let error = connection::closed(&connected.connection).await;
        let (_, reason, remote, cause) = connection::describe(&connected.connection, &error);
        assert_eq!((reason.as_str(), remote, cause), (PEER_GONE, false, "timed-out"));
    }

    #[tokio::test]
    async fn a_silent_peer_whose_port_is_open_is_not_gone() {
        let connected = Connected::new().await;
        connected.end_peer();
        // as of a process that is suspended
        let _suspended = UdpSocket::bind(connected.connection.remote_address()).unwrap();
        assert!(!probe(&connected.connection).await);
    }

    #[tokio::test]
    async fn a_peer_that_answers_is_not_gone_whatever_icmp_says() {
        let Connected {
            connection,
            socket,
            _endpoints,
            ..
        } = Connected::new().await;
        let forge = async {
            tokio::task::yield_now().await;
            socket.forge_errors();
        };
        let (is_gone, ()) = tokio::join!(probe(&connection), forge);
        assert!(!is_gone);
    }

    #[tokio::test]
    async fn a_connection_is_probed_once_a_second_at_most() {
        let connected = Connected::new().await;
        let signals = ConnectionSignals::of(&connected.connection).unwrap();
        let turn = signals.begin_probe();
        assert!(turn.is_some() && signals.begin_probe().is_none());
        drop(turn);
        assert!(signals.begin_probe().is_none(), "it has just ended");
    }
}
