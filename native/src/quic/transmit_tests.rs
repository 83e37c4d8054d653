//! Tests of how packets leave: many in one send, and none lost or sent twice when a socket takes no more or refuses segmentation offload.
use std::collections::HashSet;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::udp::RecvMeta;
use quinn::{AsyncUdpSocket, ConnectionStats, Endpoint, Runtime, UdpPoller};

use super::transport::Transport;
use super::write_coalescing::CoalescingRuntime;
use crate::net::tls::{self, test_certificate};
use crate::sync::lock;

/// The largest UDP payload where packets have 1,500 bytes, as quinn finds it at most.
const MTU: usize = 1_452;

/// Records the datagrams of each send.
#[derive(Debug)]
struct Recorder {
    socket: Arc<dyn AsyncUdpSocket>,
    sends: Mutex<Vec<Vec<Vec<u8>>>>,
    /// Whether each second send blocks, until the socket was polled.
    blocks: bool,
    tried: AtomicUsize,
    full: AtomicBool,
}

#[derive(Debug)]
struct Poller(Arc<Recorder>, Pin<Box<dyn UdpPoller>>);

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        if self.0.full.swap(false, Ordering::Relaxed) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.1.as_mut().poll_writable(cx)
    }
}

impl AsyncUdpSocket for Recorder {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let poller = self.socket.clone().create_io_poller();
        Box::pin(Poller(self, poller))
    }

    fn try_send(&self, transmit: &quinn::udp::Transmit) -> io::Result<()> {
        if self.blocks && self.tried.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
            self.full.store(true, Ordering::Relaxed);
            return Err(ErrorKind::WouldBlock.into());
        }
        self.socket.try_send(transmit)?;
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        let datagrams = transmit.contents.chunks(size).map(<[u8]>::to_vec);
        lock(&self.sends).push(datagrams.collect());
        Ok(())
    }

    fn poll_recv(&self, cx: &mut Context, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        self.socket.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

fn localhost() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").unwrap()
}

/// Sends this number of bytes through a socket, and checks that they arrive.
#[tokio::main(flavor = "current_thread")]
async fn transfer(bytes: usize, socket: UdpSocket, blocks: bool) -> (Arc<Recorder>, ConnectionStats) {
    let transport = Transport {
        max_mtu: Some(MTU as u32),
        stream_window: Some(1 << 20),
        connection_window: Some(1 << 20),
        ..Default::default()
    };
    let crypto = tls::link_server(&test_certificate::server_tls(), &[]).unwrap();
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(crypto).unwrap()));
    config.transport_config(transport.config().unwrap());
    let receiver = Endpoint::new(transport.endpoint(), Some(config), localhost(), Arc::new(CoalescingRuntime)).unwrap();

    let recorder = Arc::new(Recorder {
        socket: CoalescingRuntime.wrap_udp_socket(socket).unwrap(),
        sends: Mutex::default(),
        blocks,
        tried: AtomicUsize::new(0),
        full: AtomicBool::new(false),
    });
    let sender = Endpoint::new_with_abstract_socket(transport.endpoint(), None, recorder.clone(), Arc::new(CoalescingRuntime)).unwrap();
    let crypto = tls::link_client(&test_certificate::client_tls(), &[]).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(crypto).unwrap()));
    config.transport_config(transport.config().unwrap());

    let data: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
    let sending = async {
        let address = receiver.local_addr().unwrap();
        let connection = sender.connect_with(config, address, "a").unwrap().await.unwrap();
        let (mut stream, _) = connection.open_bi().await.unwrap();
        stream.write_all(&data).await.unwrap();
        stream.finish().unwrap();
        assert_eq!(stream.stopped().await.unwrap(), None, "all is acknowledged");
        connection.stats()
    };
    let receiving = async {
        let connection = receiver.accept().await.unwrap().await.unwrap();
        let (_, mut stream) = connection.accept_bi().await.unwrap();
        (stream.read_to_end(bytes).await.unwrap(), connection)
    };
    let (stats, (received, _connection)) = tokio::join!(sending, receiving);
    assert!(received == data);
    (recorder, stats)
}

fn check_sends(recorder: &Recorder, stats: &ConnectionStats) {
    let sends = lock(&recorder.sends);
    let datagrams: Vec<&Vec<u8>> = sends.iter().flatten().collect();
    assert_eq!(
        datagrams.iter().collect::<HashSet<_>>().len(),
        datagrams.len(),
        "none is sent twice"
    );
    assert_eq!(datagrams.len() as u64, stats.udp_tx.datagrams, "none is left out");
}

#[test]
fn a_send_carries_more_than_ten_packets_of_1_500_bytes() {
    let (recorder, stats) = transfer(8 << 20, localhost(), false);
    check_sends(&recorder, &stats);
    let sends = lock(&recorder.sends);
    let largest = sends.iter().max_by_key(|datagrams| datagrams.len()).unwrap();
    assert!(largest.len() > 10, "{}", largest.len());
    assert!(largest.iter().map(Vec::len).sum::<usize>() <= 65_507);
}

#[test]
fn nothing_is_lost_or_sent_twice_when_the_socket_blocks() {
    let (recorder, stats) = transfer(1 << 20, localhost(), true);
    check_sends(&recorder, &stats);
}

/// The kernel refuses segmentation offload on sockets that compute no checksums.
#[cfg(target_os = "linux")]
#[test]
fn packets_are_sent_one_by_one_where_the_kernel_refuses_segmentation_offload() {
    use std::os::fd::AsRawFd;
    let socket = localhost();
    let on: libc::c_int = 1;
    // SAFETY: a plain setsockopt with an int that outlives the call
    let result = unsafe {
        let (value, size) = (&raw const on, size_of::<libc::c_int>());
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            value.cast(),
            size as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
    let (recorder, stats) = transfer(32 << 10, socket, false);
    check_sends(&recorder, &stats);
    assert!(lock(&recorder.sends).iter().any(|datagrams| datagrams.len() > 1), "it was tried");
    assert_eq!(recorder.max_transmit_segments(), 1);
    assert_eq!(stats.path.lost_packets, 0);
}
