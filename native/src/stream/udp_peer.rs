//! One peer of a UDP socket that several peers share, as a stream of capsules: reads receive its datagrams, and writes send to it.
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use crate::error::{NetError, NetErrorCode};
use crate::relay::capsule::{Capsule, Decoder};
use crate::relay::datagram_queue::Queue;
use crate::sync::{lock, wait_for};

/// Which datagrams of a socket belong to one stream.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// The other end of the socket.
    pub address: SocketAddr,
    /// What precedes each payload, in both directions.
    pub header: Bytes,
}

/// A peer. Its stream has ended when either half was finished or dropped.
pub struct UdpPeer {
    /// The listener owns it.
    socket: Weak<UdpSocket>,
    route: Route,
    queue: Mutex<Queue>,
    changed: Notify,
    ended: AtomicBool,
    finished: AtomicBool,
    /// The socket was closed.
    closed: AtomicBool,
    /// Counts the datagrams of both directions that are not passed on.
    dropped: Arc<AtomicU64>,
    on_drop: OnDrop,
}

/// Called when both halves are gone, with whether the stream was reset instead of finished.
type OnDrop = Box<dyn Fn(&Route, bool) + Send + Sync>;

impl Drop for UdpPeer {
    fn drop(&mut self) {
        (self.on_drop)(&self.route, !self.finished.load(Ordering::Acquire));
    }
}

impl UdpPeer {
    pub fn new(
        socket: &Arc<UdpSocket>,
        route: Route,
        dropped: Arc<AtomicU64>,
        on_drop: impl Fn(&Route, bool) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            socket: Arc::downgrade(socket),
            route,
            queue: Mutex::default(),
            changed: Notify::new(),
            ended: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            dropped,
            on_drop: Box::new(on_drop),
        })
    }

    /// Takes a datagram that the peer has sent.
    pub fn receive(&self, payload: &[u8]) {
        let dropped = lock(&self.queue).push(payload);
        self.dropped.fetch_add(dropped as u64, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// Sends a datagram to the peer. It is lost if the system does not accept it.
    async fn send(&self, payload: &[u8]) {
        let Some(socket) = self.socket.upgrade() else { return };
        let Route { address, header } = &self.route;
        let sent = match header.is_empty() {
            true => socket.send_to(payload, address).await,
            false => socket.send_to(&[header, payload].concat(), address).await,
        };
        if sent.is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    /// Ends the stream, because its socket is closed.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.end();
    }

    /// Memory of received data that is not read yet.
    pub fn held(&self) -> u64 {
        lock(&self.queue).bytes() as u64
    }

    pub fn halves(self: &Arc<Self>) -> (RecvHalf, SendHalf) {
        let send = SendHalf {
            peer: self.clone(),
            decoder: Decoder::default(),
        };
        (RecvHalf(self.clone()), send)
    }
}

/// Reads whole capsules.
pub struct RecvHalf(Arc<UdpPeer>);

impl RecvHalf {
    pub fn peer(&self) -> &Arc<UdpPeer> {
        &self.0
    }

    /// The oldest datagrams, at least one, up to `max` bytes; `None` at the end of the stream.
    pub async fn read(&mut self, max: usize) -> Option<Bytes> {
        let peer = &self.0;
        wait_for(&peer.changed, || match lock(&peer.queue).take(max) {
            Some(batch) => Some(Some(batch.capsules)),
            None => peer.has_ended().then_some(None),
        })
        .await
    }

    /// Resolves when the socket is closed, even if nothing reads.
    pub async fn closed(&self) -> NetError {
        let peer = &self.0;
        wait_for(&peer.changed, || peer.closed.load(Ordering::Acquire).then_some(())).await;
        NetError::new(NetErrorCode::Reset, "The socket was closed")
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        self.0.end();
    }
}

pub struct SendHalf {
    peer: Arc<UdpPeer>,
    decoder: Decoder,
}

impl SendHalf {
    /// Sends the datagrams of capsules.
    pub async fn write(&mut self, data: &[u8]) -> Result<(), NetError> {
        self.decoder.push(data);
        while let Some(capsule) = self.decoder.next_capsule()? {
            if let Capsule::Payload(payload) = capsule {
                self.peer.send(&payload).await;
            }
        }
        Ok(())
    }

    pub fn finish(&self) {
        self.peer.finished.store(true, Ordering::Release);
        self.peer.end();
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        self.peer.end();
    }
}
