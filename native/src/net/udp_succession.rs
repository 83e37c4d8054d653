//! The place of a UDP listener among the processes that have, or had, its socket (docs/adr/0017-hand-over.md). The newest one reads it. A
//! packet from an unknown source may belong to a flow of the previous process, which keeps it or else returns it.
use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::sync::{Arc, Mutex};

use quinn::udp::RecvMeta;
use socket2::SockRef;
use tokio::net::UnixDatagram;
use tokio::sync::Notify;

use crate::quic::relayed_packet::{decode, encode};
use crate::sync::lock;

/// Requested buffer of a relay in bytes; the kernel may grant less.
const RELAY_BUFFER: usize = 4 << 20;

/// The ways to the other processes.
#[derive(Default)]
struct Relays {
    earlier: Option<Arc<UnixDatagram>>,
    /// The way to a process that may become a later one.
    prepared: Option<Arc<UnixDatagram>>,
    /// Given once a later process reads the socket.
    later: Option<Arc<UnixDatagram>>,
}

#[derive(Default)]
pub struct Succession {
    relays: Mutex<Relays>,
    changed: Notify,
}

/// The process that has sent the packets of a relay.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Socket,
    Earlier,
    Later,
}

impl Succession {
    /// `relays`: that of the process before, if there is one. Requires the runtime.
    pub fn new(relays: Vec<(u8, OwnedFd)>) -> io::Result<Self> {
        let earlier = match relays.into_iter().next() {
            Some((_, relay)) => Some(Arc::new(open(relay.into())?)),
            None => None,
        };
        let relays = Relays {
            earlier,
            ..Relays::default()
        };
        Ok(Self {
            relays: Mutex::new(relays),
            changed: Notify::new(),
        })
    }

    /// The relay for a process that may become a later one. Requires the runtime.
    pub fn pass(&self) -> io::Result<Vec<(u8, OwnedFd)>> {
        let (ours, theirs) = StdUnixDatagram::pair()?;
        lock(&self.relays).prepared = Some(Arc::new(open(ours)?));
        let _ = SockRef::from(&theirs).set_send_buffer_size(RELAY_BUFFER); // a smaller one only loses datagrams earlier
        Ok(vec![(0, theirs.into())])
    }

    /// Whether this process reads the socket.
    pub fn set_accepting(&self, accepting: bool) {
        let mut relays = lock(&self.relays);
        let prepared = relays.prepared.take();
        relays.later = prepared.filter(|_| !accepting);
        self.changed.notify_one();
    }

    /// Whether a later process reads the socket.
    pub fn has_later(&self) -> bool {
        lock(&self.relays).later.is_some()
    }

    /// Resolves with the process of a readable relay, or with `None` when the relays change. Never resolves without relays.
    pub async fn readable(&self) -> Option<(Origin, Arc<UnixDatagram>)> {
        let (earlier, later) = {
            let relays = lock(&self.relays);
            (relays.earlier.clone(), relays.later.clone())
        };
        tokio::select! {
            relay = wait(earlier) => Some((Origin::Earlier, relay)),
            relay = wait(later) => Some((Origin::Later, relay)),
            () = self.changed.notified() => None,
        }
    }

    /// Sends on what belongs to no peer here. Returns false if this process is the one for it.
    pub fn send_on(&self, datagram: &[u8], from: SocketAddr, origin: Origin) -> bool {
        let mut relays = lock(&self.relays);
        if origin != Origin::Earlier {
            match &relays.earlier {
                Some(earlier) if runs(&send(earlier, datagram, from)) => return true,
                _ => relays.earlier = None, // it has ended
            }
        }
        let Some(later) = &relays.later else { return false };
        let _ = send(later, datagram, from); // lost if it has ended
        true
    }
}

fn open(relay: StdUnixDatagram) -> io::Result<UnixDatagram> {
    relay.set_nonblocking(true)?;
    let _ = SockRef::from(&relay).set_send_buffer_size(RELAY_BUFFER); // as in `pass`
    UnixDatagram::from_std(relay)
}

async fn wait(relay: Option<Arc<UnixDatagram>>) -> Arc<UnixDatagram> {
    match relay {
        Some(relay) if relay.readable().await.is_ok() => relay,
        _ => std::future::pending().await,
    }
}

fn send(relay: &UnixDatagram, datagram: &[u8], from: SocketAddr) -> io::Result<usize> {
    let meta = RecvMeta {
        addr: from,
        len: datagram.len(),
        stride: datagram.len(),
        ..RecvMeta::default()
    };
    // at once: tokio does not know yet whether a new socket is writable
    SockRef::from(relay).send_vectored(&[IoSlice::new(&encode(&meta)), IoSlice::new(datagram)])
}

/// A relay that is full loses datagrams, as a network does.
fn runs(sent: &io::Result<usize>) -> bool {
    match sent {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS),
    }
}

/// Receives what another process has sent on.
pub fn receive<'a>(relay: &UnixDatagram, buffer: &'a mut [u8]) -> io::Result<Option<(SocketAddr, &'a [u8])>> {
    let length = relay.try_recv(buffer)?;
    Ok(decode(&buffer[..length]).map(|(meta, datagram)| (meta.addr, datagram)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: ([u8; 4], u16) = ([192, 0, 2, 1], 4000);

    /// A process, and the next one, which reads the socket.
    fn successor(of: &Succession) -> Succession {
        let next = Succession::new(of.pass().unwrap()).unwrap();
        of.set_accepting(false);
        next.set_accepting(true);
        next
    }

    /// Packets that a process receives from another one, and the sending process.
    async fn received(by: &Succession) -> (Origin, SocketAddr, Vec<u8>) {
        loop {
            let Some((origin, relay)) = by.readable().await else { continue };
            let mut buffer = [0; 100];
            if let Ok(Some((from, datagram))) = receive(&relay, &mut buffer) {
                return (origin, from, datagram.to_vec());
            }
        }
    }

    #[tokio::test]
    async fn a_new_source_is_shown_to_each_earlier_process_and_comes_back() {
        let oldest = Succession::default();
        let older = successor(&oldest);
        let newest = successor(&older);
        let expected = (SocketAddr::from(PEER), b"hello".to_vec());
        let shown = |origin| (origin, expected.0, expected.1.clone());
        assert!(newest.send_on(b"hello", PEER.into(), Origin::Socket));
        assert!(received(&older).await == shown(Origin::Later));
        assert!(older.send_on(b"hello", PEER.into(), Origin::Later));
        assert!(received(&oldest).await == shown(Origin::Later));
        assert!(oldest.send_on(b"hello", PEER.into(), Origin::Later));
        assert!(received(&older).await == shown(Origin::Earlier));
        assert!(older.send_on(b"hello", PEER.into(), Origin::Earlier));
        assert!(received(&newest).await == shown(Origin::Earlier));
        assert!(!newest.send_on(b"hello", PEER.into(), Origin::Earlier));
    }

    #[tokio::test]
    async fn a_process_that_has_ended_is_not_asked() {
        let oldest = Succession::default();
        let newest = successor(&oldest);
        drop(oldest);
        assert!(!newest.send_on(b"hello", PEER.into(), Origin::Socket));
    }

    #[tokio::test]
    async fn a_hand_over_that_fails_changes_nothing() {
        let only = Succession::default();
        drop(Succession::new(only.pass().unwrap()).unwrap());
        only.set_accepting(false);
        only.set_accepting(true);
        assert!(!only.send_on(b"hello", PEER.into(), Origin::Socket) && !only.has_later());
    }
}
