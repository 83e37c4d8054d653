//! The UDP socket of an endpoint. While peers are probed, the kernel also reports ICMP errors on it (Linux, IP_RECVERR).
use std::future::Future;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{ready, Context, Poll};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};
use tokio::time::{sleep, Sleep};

use super::icmp;
use super::succession::Succession;
use super::write_coalescing::CoalescingRuntime;
use crate::handover::channel::duplicate;
use crate::handover::sockets::{Listening, Passed};
use crate::sync::lock;

/// Maximum number of peers that are probed at the same time.
const MAX_WATCHED: usize = 256;
/// Pause before the next attempt if the socket would block and tokio does not notice when it is writable.
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// quinn's socket.
#[derive(Debug)]
pub struct Socket {
    inner: Arc<dyn AsyncUdpSocket>,
    /// Owned by `inner`.
    descriptor: RawFd,
    watched: Mutex<Vec<Arc<Watched>>>,
    /// Whether errors were ever reported on it. tokio considers a socket with an error writable for ever after.
    has_reported: AtomicBool,
    /// The last send would have blocked.
    is_full: AtomicBool,
    /// The socket belongs to a listener.
    succession: Option<Succession>,
    /// The listener accepts no more connections, and keeps the socket for open ones.
    retired: AtomicBool,
}

/// A peer whose ICMP errors count.
#[derive(Debug)]
struct Watched {
    address: SocketAddr,
    is_port_closed: AtomicBool,
}

impl Socket {
    /// A socket for outgoing connections.
    pub fn open(socket: UdpSocket) -> io::Result<Arc<Self>> {
        Self::new(socket, None)
    }

    pub fn listen(socket: UdpSocket, succession: Succession) -> io::Result<Arc<Self>> {
        Self::new(socket, Some(succession))
    }

    fn new(socket: UdpSocket, succession: Option<Succession>) -> io::Result<Arc<Self>> {
        let descriptor = socket.as_raw_fd();
        Ok(Arc::new(Self {
            inner: CoalescingRuntime.wrap_udp_socket(socket)?,
            descriptor,
            watched: Mutex::default(),
            has_reported: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            succession,
            retired: AtomicBool::new(false),
        }))
    }

    /// Keeps the socket in this process from now on.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// Whether the errors are this process's: only the one that reads the socket asks for them.
    fn has_errors(&self) -> bool {
        self.succession.as_ref().is_none_or(Succession::is_accepting)
    }

    /// Reports errors of this peer from now on; `None` if the system cannot, or too many are watched.
    pub fn watch(self: &Arc<Self>, address: SocketAddr) -> Option<PortWatch> {
        if !self.has_errors() {
            return None;
        }
        let mut watched = lock(&self.watched);
        if watched.len() >= MAX_WATCHED || (watched.is_empty() && !icmp::report_errors(self.descriptor, true)) {
            return None;
        }
        self.has_reported.store(true, Ordering::Relaxed);
        let peer = Arc::new(Watched {
            address,
            is_port_closed: AtomicBool::new(false),
        });
        watched.push(peer.clone());
        Some(PortWatch {
            socket: self.clone(),
            peer,
        })
    }

    /// As if the system of every watched peer had reported a closed port.
    #[cfg(test)]
    pub fn forge_errors(&self) {
        lock(&self.watched)
            .iter()
            .for_each(|peer| peer.is_port_closed.store(true, Ordering::Relaxed));
    }

    /// Delivers the reported errors.
    fn take_errors(&self) {
        let watched = lock(&self.watched);
        for address in icmp::closed_ports(self.descriptor) {
            for peer in watched.iter().filter(|peer| peer.address == address) {
                peer.is_port_closed.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor
    }
}

impl Listening for Socket {
    fn pass(&self) -> io::Result<Passed> {
        let succession = self.succession.as_ref().ok_or(ErrorKind::Unsupported)?;
        if self.retired.load(Ordering::Relaxed) {
            return Err(ErrorKind::NotConnected.into());
        }
        // SAFETY: `inner` owns the descriptor, and lives as long as `self`
        let socket = unsafe { BorrowedFd::borrow_raw(self.descriptor) };
        Ok(Passed {
            socket: duplicate(socket)?,
            relays: succession.pass()?,
        })
    }

    fn set_accepting(&self, accepting: bool) {
        // when a successor has ended, the socket is read again for its open connections
        let applies = accepting || !self.retired.load(Ordering::Relaxed);
        if let Some(succession) = self.succession.as_ref().filter(|_| applies) {
            succession.set_accepting(accepting);
        }
    }
}

/// Ends when it is dropped.
pub struct PortWatch {
    socket: Arc<Socket>,
    peer: Arc<Watched>,
}

impl PortWatch {
    /// Whether the peer's own system has reported that no program receives at the peer's port.
    pub fn is_port_closed(&self) -> bool {
        self.socket.take_errors();
        self.peer.is_port_closed.load(Ordering::Relaxed)
    }
}

impl Drop for PortWatch {
    fn drop(&mut self) {
        let mut watched = lock(&self.socket.watched);
        watched.retain(|peer| !Arc::ptr_eq(peer, &self.peer));
        if watched.is_empty() && self.socket.has_errors() {
            icmp::report_errors(self.socket.descriptor, false);
        }
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller {
            inner: self.inner.clone().create_io_poller(),
            socket: self,
            pause: None,
        })
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let sent = self.inner.try_send(transmit);
        if sent.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock) && self.has_reported.load(Ordering::Relaxed) {
            self.is_full.store(true, Ordering::Relaxed);
        }
        sent
    }

    fn poll_recv(&self, cx: &mut Context, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        match &self.succession {
            None => self.inner.poll_recv(cx, bufs, meta),
            Some(succession) => succession.poll_recv(cx, bufs, meta, |cx, bufs, meta| self.inner.poll_recv(cx, bufs, meta)),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Waits until the socket takes datagrams. Where tokio always considers it writable, a full socket is tried again after a pause, not in a
/// loop.
#[derive(Debug)]
struct Poller {
    socket: Arc<Socket>,
    inner: Pin<Box<dyn UdpPoller>>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.socket.is_full.load(Ordering::Relaxed) && this.socket.is_full.swap(false, Ordering::Relaxed) {
            this.pause.get_or_insert_with(|| Box::pin(sleep(FULL_PAUSE)));
        }
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(cx));
            this.pause = None;
        }
        this.inner.as_mut().poll_writable(cx)
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    fn localhost(family: &str) -> UdpSocket {
        UdpSocket::bind((family, 0)).unwrap()
    }

    fn transmit(destination: SocketAddr, contents: &[u8]) -> Transmit<'_> {
        Transmit {
            destination,
            ecn: None,
            contents,
            segment_size: None,
            src_ip: None,
        }
    }

    #[tokio::test]
    async fn a_closed_port_is_reported_and_costs_no_datagram_of_another_peer() {
        for family in ["127.0.0.1", "::1"] {
            let socket = Socket::open(localhost(family)).unwrap();
            let closed = localhost(family).local_addr().unwrap(); // and dropped
            let open = localhost(family);
            open.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let other = open.local_addr().unwrap();
            let (watch, others) = (socket.watch(closed).unwrap(), socket.watch(other).unwrap());
            for number in 0..20u8 {
                socket.clone().create_io_poller().await_writable().await;
                socket.try_send(&transmit(closed, b"x")).unwrap();
                // on loopback the error is there now, and the next call gets it
                socket.try_send(&transmit(other, &[number])).unwrap();
                let mut data = [0; 8];
                assert_eq!((open.recv(&mut data).unwrap(), data[0]), (1, number));
            }
            assert!(watch.is_port_closed() && !others.is_port_closed(), "{family}");
            drop((watch, others));
            socket.try_send(&transmit(closed, b"x")).unwrap();
            assert!(
                icmp::closed_ports(socket.descriptor).is_empty(),
                "nothing is reported without a watch"
            );
        }
    }

    #[tokio::test]
    async fn peers_of_either_family_are_reported_on_a_socket_for_both() {
        let dual = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None).unwrap();
        dual.set_only_v6(false).unwrap();
        dual.set_nonblocking(true).unwrap();
        dual.bind(&"[::]:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        let socket = Socket::open(dual.into()).unwrap();
        let port = localhost("127.0.0.1").local_addr().unwrap().port(); // and dropped
        let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{port}").parse().unwrap();
        let watch = socket.watch(([127, 0, 0, 1], port).into()).unwrap();
        socket.clone().create_io_poller().await_writable().await;
        socket.try_send(&transmit(mapped, b"x")).unwrap();
        assert!(watch.is_port_closed());
    }

    #[tokio::test]
    async fn peers_beyond_the_limit_are_not_watched() {
        let socket = Socket::open(localhost("127.0.0.1")).unwrap();
        let address = socket.local_addr().unwrap();
        let mut watches: Vec<_> = (0..MAX_WATCHED).map(|_| socket.watch(address).unwrap()).collect();
        assert!(socket.watch(address).is_none());
        watches.pop();
        assert!(socket.watch(address).is_some());
    }

    #[tokio::test]
    async fn a_full_socket_that_reports_errors_is_tried_again_after_a_pause() {
        let socket = Socket::open(localhost("127.0.0.1")).unwrap();
        let mut poller = socket.clone().create_io_poller();
        poller.await_writable().await;
        socket.is_full.store(true, Ordering::Relaxed);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(poller.as_mut().poll_writable(&mut cx).is_pending());
        poller.await_writable().await;
    }

    trait AwaitWritable {
        async fn await_writable(&mut self);
    }

    impl AwaitWritable for Pin<Box<dyn UdpPoller>> {
        async fn await_writable(&mut self) {
            std::future::poll_fn(|cx| self.as_mut().poll_writable(cx)).await.unwrap();
        }
    }
}
