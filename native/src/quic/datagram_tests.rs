//! Tests of UDP flows over a connection: what is sent in DATAGRAM frames, what waits, and that they and streams take turns.
use std::any::Any;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use quinn::congestion::{Controller, ControllerFactory};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, TransportConfig};
use quinn_proto::RttEstimator;

use super::datagrams::{open, parse, receive, Receiver, Sender};
use super::transport::Transport;
use super::write_coalescing::CoalescingRuntime;
use crate::net::tls::{self, test_certificate};
use crate::relay::capsule::{encode, Capsule, Decoder};

/// A connection whose client has this configuration: its endpoints, the client's end and the server's.
async fn connect(config: Arc<TransportConfig>) -> ([Endpoint; 2], Connection, Connection) {
    let transport = Transport {
        stream_window: Some(1 << 20),
        connection_window: Some(1 << 20),
        ..Default::default()
    };
    let socket = || UdpSocket::bind("127.0.0.1:0").unwrap();
    let crypto = tls::link_server(&test_certificate::server_tls(), &[]).unwrap();
    let mut server_config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(crypto).unwrap()));
    server_config.transport_config(transport.config().unwrap());
    let server = Endpoint::new(transport.endpoint(), Some(server_config), socket(), Arc::new(CoalescingRuntime)).unwrap();
    let client = Endpoint::new(transport.endpoint(), None, socket(), Arc::new(CoalescingRuntime)).unwrap();
    let crypto = tls::link_client(&test_certificate::client_tls(), &[]).unwrap();
    let mut client_config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(crypto).unwrap()));
    client_config.transport_config(config);
    let connecting = client.connect_with(client_config, server.local_addr().unwrap(), "a").unwrap();
    let accepting = async { server.accept().await.unwrap().await.unwrap() };
    let (near, far) = tokio::join!(connecting, accepting);
    ([client, server], near.unwrap(), far)
}

/// The payloads of `count` datagrams that a flow receives.
async fn payloads(receiver: &mut Receiver, stream: &mut quinn::RecvStream, count: usize) -> Vec<Bytes> {
    let (mut decoder, mut all) = (Decoder::default(), Vec::new());
    while all.len() < count {
        decoder.push(&receiver.read(stream).await.unwrap().unwrap());
        while let Some(capsule) = decoder.next_capsule().unwrap() {
            if let Capsule::Payload(payload) = capsule {
                all.push(payload);
            }
        }
    }
    all
}

#[test]
fn a_header_is_split_from_a_payload_of_udp() {
    assert_eq!(parse(&[0x40, 0x25, 0, b'x']), Some((37, &b"x"[..])));
    assert_eq!(parse(&[1, 0x40, 0]), Some((1, &b""[..])), "longer than necessary");
    for malformed in [&[][..], &[1], &[0x40], &[0x40, 1], &[1, 0x40], &[1, 2, b'x'], &[0xff; 8]] {
        assert_eq!(parse(malformed), None, "{malformed:?}");
    }
}

#[tokio::test]
async fn a_flow_sends_what_fits_in_frames_and_the_rest_on_its_stream() {
    let (_endpoints, near, far) = connect(Transport::default().config().unwrap()).await;
    let (mut send, recv) = near.open_bi().await.unwrap();
    let (_, mut sender): (Receiver, Sender) = open(&near, recv.id()).unwrap();
    send.write_all(b"!").await.unwrap();
    let (_, mut stream) = far.accept_bi().await.unwrap();
    stream.read_exact(&mut [0]).await.unwrap();
    let (mut receiver, _) = open(&far, stream.id()).unwrap();
    let receiving = far.clone();
    tokio::spawn(async move { receive(&receiving).await });
    near.send_datagram(Bytes::from_static(&[63, 0, b'x'])).unwrap(); // belongs to no flow

    let lengths = [0, 1, 1_000, 60_000];
    for length in lengths {
        sender.write(&mut send, &encode(&vec![7; length])).await.unwrap();
    }
    let mut received: Vec<_> = payloads(&mut receiver, &mut stream, 4).await.iter().map(Bytes::len).collect();
    received.sort_unstable();
    assert_eq!(received, lengths);
    assert_eq!(near.stats().frame_tx.datagram, 1 + 3);

    // bytes that are not a datagram, and a part of one
    let others = [&[0x21, 2, 8, 9][..], &[0, 2, 5, 6], &[0, 9, 0]].concat();
    sender.write(&mut send, &others).await.unwrap();
    sender.flush(&mut send).await.unwrap();
    send.finish().unwrap();
    let mut rest = Vec::new();
    while let Some(bytes) = receiver.read(&mut stream).await.unwrap() {
        rest.extend_from_slice(&bytes);
    }
    assert_eq!(rest, others);
}

#[tokio::test]
async fn a_flow_that_is_not_read_keeps_the_newest_datagrams_and_counts_those_dropped() {
    let (_endpoints, near, far) = connect(Transport::default().config().unwrap()).await;
    let (mut send, recv) = near.open_bi().await.unwrap();
    let (_, mut sender) = open(&near, recv.id()).unwrap();
    send.write_all(b"!").await.unwrap();
    let (_, mut stream) = far.accept_bi().await.unwrap();
    stream.read_exact(&mut [0]).await.unwrap();
    let (mut receiver, _) = open(&far, stream.id()).unwrap();
    let receiving = far.clone();
    tokio::spawn(async move { receive(&receiving).await });
    const SENT: u64 = 1_000;
    for n in 0..SENT {
        let payload = [&n.to_be_bytes()[..], &[0; 992]].concat();
        sender.write(&mut send, &encode(&payload)).await.unwrap();
    }
    while far.stats().frame_rx.datagram < SENT || receiver.dropped() == 0 {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    let first = payloads(&mut receiver, &mut stream, 1).await.remove(0);
    let first = u64::from_be_bytes(first[..8].try_into().unwrap());
    assert!(first > 0 && receiver.inbox().held() <= 256 << 10);
    drop(receiver);
    assert!(
        open(&far, stream.id()).is_some_and(|(again, _)| again.dropped() == 0),
        "its place is free"
    );
}

/// A congestion window that never changes.
#[derive(Clone)]
struct Fixed(u64);

impl Controller for Fixed {
    fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: u64) {}
    fn on_ack(&mut self, _: Instant, _: Instant, _: u64, _: bool, _: &RttEstimator) {}
    fn on_mtu_update(&mut self, _: u16) {}
    fn window(&self) -> u64 {
        self.0
    }
    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }
    fn initial_window(&self) -> u64 {
        self.0
    }
    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl ControllerFactory for Fixed {
    fn build(self: Arc<Self>, _: Instant, _: u16) -> Box<dyn Controller> {
        self.clone_box()
    }
}

/// On a path that takes less than either has to send. quinn alone sends no stream while there is a datagram.
#[tokio::test]
async fn datagrams_and_streams_take_turns() {
    const UPLOAD: usize = 512 << 10;
    const DATAGRAM: usize = 1_000;
    let mut config = TransportConfig::default();
    config.congestion_controller_factory(Arc::new(Fixed(12 << 10)));
    config.mtu_discovery_config(None);
    let (_endpoints, near, far) = connect(Arc::new(config)).await;
    let flooding = async {
        for _ in 0..8 * UPLOAD / DATAGRAM {
            near.send_datagram_wait(Bytes::from_static(&[0; DATAGRAM])).await.unwrap();
        }
        std::future::pending::<()>().await;
    };
    let uploading = async {
        let (mut stream, _) = near.open_bi().await.unwrap();
        stream.write_all(&vec![0; UPLOAD]).await.unwrap();
        stream.finish().unwrap();
        let _ = stream.stopped().await;
    };
    let receiving = async {
        let (_, mut stream) = far.accept_bi().await.unwrap();
        stream.read_to_end(UPLOAD).await.unwrap();
        far.stats().frame_rx.datagram as usize * DATAGRAM
    };
    let ((), datagrams) = tokio::select! {
        () = flooding => unreachable!(),
        both = async { tokio::join!(uploading, receiving) } => both,
    };
    assert!(
        datagrams > UPLOAD / 2 && datagrams < 2 * UPLOAD,
        "{datagrams} bytes of datagrams beside {UPLOAD}"
    );
}
