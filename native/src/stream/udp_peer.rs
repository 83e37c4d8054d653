//! The peer of a UDP socket that several peers share, as a stream of capsules: what it sends is read, and what is written is sent to it.
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use crate::error::NetError;
use crate::relay::capsule::{Capsule, Decoder};
use crate::relay::datagram_queue::Queue;
use crate::sync::{lock, wait_for};

/// A peer. Its stream has ended when either half was finished or dropped.
pub struct UdpPeer {
    socket: Arc<UdpSocket>,
    pub address: SocketAddr,
    queue: Mutex<Queue>,
    changed: Notify,
    ended: AtomicBool,
    finished: AtomicBool,
    /// Called when both halves are gone, with whether the stream was reset instead of finished.
    on_drop: Box<dyn Fn(SocketAddr, bool) + Send + Sync>,
}

impl Drop for UdpPeer {
    fn drop(&mut self) {
        (self.on_drop)(self.address, !self.finished.load(Ordering::Acquire));
    }
}

impl UdpPeer {
    pub fn new(socket: Arc<UdpSocket>, address: SocketAddr, on_drop: impl Fn(SocketAddr, bool) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            socket,
            address,
            queue: Mutex::default(),
            changed: Notify::new(),
            ended: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            on_drop: Box::new(on_drop),
        })
    }

    /// Takes a datagram that the peer has sent.
    pub fn receive(&self, payload: &[u8]) {
        lock(&self.queue).push(payload);
        self.changed.notify_one();
    }

    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.changed.notify_one();
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
    /// Sends the datagrams of capsules. What the system does not take is lost.
    pub async fn write(&mut self, data: &[u8]) -> Result<(), NetError> {
        self.decoder.push(data);
        while let Some(capsule) = self.decoder.next_capsule()? {
            if let Capsule::Payload(payload) = capsule {
                let _ = self.peer.socket.send_to(&payload, self.peer.address).await;
                // UDP promises nothing
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
