//! Tests of what a keep-alive costs the end that receives it, on quinn-proto without sockets and with a clock of their own.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{Connection, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig};

use super::transport::Transport;
use crate::net::tls::{self, test_certificate};

struct Peer {
    address: SocketAddr,
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
}

impl Peer {
    fn new(port: u16, server: Option<Arc<quinn_proto::ServerConfig>>) -> Self {
        Self {
            address: ([127, 0, 0, 1], port).into(),
            endpoint: Endpoint::new(Arc::new(EndpointConfig::default()), server, false, None),
            connection: None,
        }
    }

    fn connection(&mut self) -> &mut Connection {
        &mut self.connection.as_mut().unwrap().1
    }

    /// The datagrams that the connection sends now.
    fn transmits(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let Some((handle, connection)) = &mut self.connection else {
            return all;
        };
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        let mut data = Vec::new();
        while connection.poll_transmit(now, 1, &mut data).is_some() {
            all.push(std::mem::take(&mut data));
        }
        all
    }

    fn receive(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        let mut response = Vec::new();
        match self.endpoint.handle(now, from, None, None, BytesMut::from(datagram), &mut response) {
            Some(DatagramEvent::NewConnection(incoming)) => {
                self.connection = self.endpoint.accept(incoming, now, &mut response, None).ok();
            }
            Some(DatagramEvent::ConnectionEvent(_, event)) => self.connection().handle_event(event),
            _ => {}
        }
        assert!(response.is_empty());
    }
}

/// Passes datagrams on until neither side has more, and lets all timers expire that are due within a second.
fn settle(peers: &mut [Peer; 2], mut now: Instant) -> Instant {
    let end = now + Duration::from_secs(1);
    while now < end {
        while pass(peers, 0, now) + pass(peers, 1, now) > 0 {}
        now += Duration::from_millis(1);
        for peer in peers.iter_mut() {
            peer.connection().handle_timeout(now);
        }
    }
    now
}

/// Passes the datagrams of one peer on, and returns their number.
fn pass(peers: &mut [Peer; 2], from: usize, now: Instant) -> usize {
    let datagrams = peers[from].transmits(now);
    let address = peers[from].address;
    for datagram in &datagrams {
        peers[1 - from].receive(now, address, datagram);
    }
    datagrams.len()
}

fn connected() -> ([Peer; 2], Instant) {
    let now = Instant::now();
    let transport = Transport {
        keep_alive_ms: Some(0),
        max_mtu: Some(0), // no probes
        ..Transport::default()
    };
    let crypto = tls::link_server(&test_certificate::server_tls(), &[]).unwrap();
    let mut server = quinn_proto::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(crypto).unwrap()));
    server.transport_config(transport.config().unwrap());
    let crypto = tls::link_client(&test_certificate::client_tls(), &[]).unwrap();
    let mut client = quinn_proto::ClientConfig::new(Arc::new(QuicClientConfig::try_from(crypto).unwrap()));
    client.transport_config(transport.config().unwrap());
    let mut peers = [Peer::new(1, None), Peer::new(2, Some(Arc::new(server)))];
    let to = peers[1].address;
    peers[0].connection = peers[0].endpoint.connect(now, client, to, "a").ok();
    pass(&mut peers, 0, now);
    let now = settle(&mut peers, now);
    assert!(peers.iter_mut().all(|peer| !peer.connection().is_handshaking()));
    (peers, now)
}

#[test]
fn a_ping_is_acknowledged_at_once_and_needs_no_timer() {
    let (mut peers, now) = connected();
    for from in [0, 1] {
        let before = peers[1 - from].connection().poll_timeout();
        peers[from].connection().ping();
        assert_eq!(pass(&mut peers, from, now), 1);
        assert!(peers[1 - from].connection().poll_timeout() >= before, "only the idle timer is set");
        assert_eq!(pass(&mut peers, 1 - from, now), 1, "the acknowledgement");
        assert_eq!(pass(&mut peers, from, now), 0);
    }
}

#[test]
fn a_server_drops_the_state_of_the_handshake_and_knows_what_was_negotiated() {
    let (mut peers, _) = connected();
    let session = peers[1].connection().crypto_session();
    assert!(
        session.export_keying_material(&mut [0; 32], b"label", b"").is_err(),
        "the state of rustls is gone"
    );
    assert!(session.handshake_data().is_some());
    let client = peers[0].connection().crypto_session();
    assert!(client.export_keying_material(&mut [0; 32], b"label", b"").is_ok());
}
