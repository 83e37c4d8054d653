//! Listens for UDP datagrams. Each source address is a peer with a stream of its own, which carries its datagrams in capsules. In an association
//! of SOCKS 5 (RFC 1928 §7) there is one source address, and each destination has a stream.
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::{UdpSocket, UnixDatagram};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::addon::accept_queue::AcceptQueue;
use crate::error::{NetError, NetErrorCode, Warn};
use crate::handover::channel::duplicate;
use crate::handover::sockets::{Gate, Kind, Listening, Passed, Sockets};
use crate::http::head::Incoming;
use crate::net::address::{bind_first, canonical};
use crate::net::socks_datagram::Client;
use crate::net::udp;
use crate::net::udp_succession::{self, Origin, Succession};
use crate::relay::datagram_queue::with_buffer;
use crate::stream::reader::ReadHalf;
use crate::stream::udp_peer::{Route, UdpPeer};
use crate::stream::writer::WriteHalf;
use crate::stream::Halves;
use crate::sync::lock;

/// Maximum number of peers that wait to be accepted. Above, datagrams of new peers are dropped.
const ACCEPT_QUEUE: usize = 1024;
/// Datagrams received before other tasks get their turn.
const RECEIVE_BATCH: usize = 64;
/// Pause after an error of the socket that may persist.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Time for which a peer whose stream was reset is ignored: it was probably refused, and would be again.
const REFUSED_FOR: Duration = Duration::from_secs(1);

enum Entry {
    Stream(Weak<UdpPeer>),
    Refused(Instant),
}

impl Entry {
    fn is_over(&self) -> bool {
        match self {
            Self::Stream(peer) => peer.strong_count() == 0,
            Self::Refused(at) => at.elapsed() >= REFUSED_FOR,
        }
    }
}

/// The peers with a stream, and those that were refused.
#[derive(Default)]
struct Peers {
    entries: HashMap<Route, Entry>,
    swept: Option<Instant>,
}

impl Peers {
    /// Whether there is room for one more of `max` peers. Entries that are over are removed now and then.
    fn has_room(&mut self, max: usize) -> bool {
        if self.entries.len() >= max && self.swept.is_none_or(|at| at.elapsed() >= REFUSED_FOR) {
            self.entries.retain(|_, entry| !entry.is_over());
            self.swept = Some(Instant::now());
        }
        self.entries.len() < max
    }
}

pub struct Listener {
    pub address: String,
    pub accept_queue: Arc<AcceptQueue<Incoming>>,
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    socket: Arc<UdpSocket>,
    succession: Succession,
    /// Accepts no new peers, and its socket is not passed on.
    retired: AtomicBool,
    peers: Arc<Mutex<Peers>>,
    max_peers: usize,
    /// Of an association.
    client: Option<Client>,
    dropped: Arc<AtomicU64>,
    accept_queue: Arc<AcceptQueue<Incoming>>,
}

impl Listener {
    /// With a `client` it is that of an association.
    pub fn open(sockets: &Sockets, address: &str, max_peers: usize, client: Option<Client>, warn: &Warn) -> Result<Self, NetError> {
        // an association belongs to a client of this process
        let gate = client.is_none().then(|| sockets.gate());
        let (socket, relays) = match client {
            None => match sockets.take(Kind::Udp, address) {
                Some(passed) => (passed.socket.into(), passed.relays),
                None => (udp::bind(address, sockets.sharing().as_ref(), warn)?, Vec::new()),
            },
            Some(_) => (bind_first(address, udp::open_small)?, Vec::new()),
        };
        let bound = socket
            .local_addr()
            .map_err(|_| NetError::new(NetErrorCode::Internal, "The socket has no address"))?;
        let _guard = sockets.runtime.enter();
        let socket = Arc::new(UdpSocket::from_std(socket).map_err(|e| NetError::bind(&e, address))?);
        let accept_queue = Arc::new(AcceptQueue::new(ACCEPT_QUEUE));
        let shared = Arc::new(Shared {
            socket,
            succession: Succession::new(relays).map_err(|e| NetError::bind(&e, address))?,
            retired: AtomicBool::new(false),
            peers: Arc::default(),
            max_peers,
            client,
            dropped: Arc::default(),
            accept_queue: accept_queue.clone(),
        });
        if gate.is_some() {
            sockets.offer(Kind::Udp, address, &shared);
        }
        let task = sockets.runtime.spawn(shared.clone().run(gate)).abort_handle();
        Ok(Self {
            address: canonical(bound).to_string(),
            accept_queue,
            shared,
            task,
        })
    }

    /// Datagrams that were not passed on, to or from peers.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Accepts no new peers; those with a stream still receive.
    pub fn stop_accepting(&self) {
        self.shared.retired.store(true, Ordering::Relaxed);
        self.accept_queue.finish();
    }

    /// Receives nothing more, and ends the streams. The address is free once the listener is dropped.
    pub fn close(&self) {
        self.accept_queue.close();
        self.task.abort();
        // not while it is locked: a peer that is dropped locks it
        let peers: Vec<_> = lock(&self.shared.peers).entries.values().filter_map(stream_of).collect();
        peers.iter().for_each(|peer| peer.close());
    }
}

impl Listening for Shared {
    fn pass(&self) -> std::io::Result<Passed> {
        if self.retired.load(Ordering::Relaxed) {
            return Err(ErrorKind::NotConnected.into());
        }
        Ok(Passed {
            socket: duplicate(&*self.socket)?,
            relays: self.succession.pass()?,
        })
    }

    fn set_accepting(&self, accepting: bool) {
        self.succession.set_accepting(accepting);
    }
}

fn stream_of(entry: &Entry) -> Option<Arc<UdpPeer>> {
    match entry {
        Entry::Stream(peer) => peer.upgrade(),
        Entry::Refused(_) => None,
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    async fn run(self: Arc<Self>, mut gate: Option<Gate>) {
        loop {
            if self.retired.load(Ordering::Relaxed) && !self.succession.has_later() {
                gate = None; // no other process has the socket
            }
            let readable = async {
                match &mut gate {
                    Some(gate) => gate.accept(self.socket.readable()).await,
                    None => self.socket.readable().await,
                }
            };
            let received = tokio::select! {
                readable = readable => readable.and_then(|()| with_buffer(|buffer| self.receive_ready(buffer))),
                relay = self.succession.readable() => match relay {
                    Some((origin, relay)) => with_buffer(|buffer| self.receive_relayed(buffer, origin, &relay)),
                    None => continue,
                },
            };
            match received {
                Ok(()) => tokio::task::yield_now().await,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => sleep(ERROR_PAUSE).await,
            }
        }
    }

    fn receive_ready(&self, buffer: &mut [u8]) -> std::io::Result<()> {
        for _ in 0..RECEIVE_BATCH {
            let (length, from) = self.socket.try_recv_from(buffer)?;
            self.take(&buffer[..length], from, Origin::Socket);
        }
        Ok(())
    }

    /// Receives what another process has read of the socket.
    fn receive_relayed(&self, buffer: &mut [u8], origin: Origin, relay: &UnixDatagram) -> std::io::Result<()> {
        for _ in 0..RECEIVE_BATCH {
            if let Some((from, datagram)) = udp_succession::receive(relay, buffer)? {
                self.take(datagram, from, origin);
            }
        }
        Ok(())
    }

    fn take(&self, datagram: &[u8], from: SocketAddr, origin: Origin) {
        if !self.deliver(datagram, from, origin) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Gives a datagram to its peer, possibly one of another process. Returns false if there is none.
    fn deliver(&self, datagram: &[u8], address: SocketAddr, origin: Origin) -> bool {
        let assigned = match &self.client {
            None => Some((Bytes::new(), datagram)),
            Some(client) => client.split(datagram, address),
        };
        let Some((header, payload)) = assigned else { return false };
        let route = Route { address, header };
        let known = match lock(&self.peers).entries.get(&route) {
            Some(Entry::Refused(at)) if at.elapsed() < REFUSED_FOR => return false,
            Some(entry) => stream_of(entry),
            None => None,
        };
        let peer = match known.filter(|peer| !peer.has_ended()) {
            Some(peer) => peer,
            None if self.client.is_none() && self.succession.send_on(datagram, address, origin) => return true,
            None => match self.open_peer(route) {
                Some(peer) => peer,
                None => return false,
            },
        };
        peer.receive(payload);
        true
    }

    /// A new peer; `None` if there are too many.
    fn open_peer(&self, route: Route) -> Option<Arc<UdpPeer>> {
        if self.accept_queue.is_full() || !lock(&self.peers).has_room(self.max_peers) {
            return None;
        }
        let peers = self.peers.clone();
        let peer = UdpPeer::new(&self.socket, route.clone(), self.dropped.clone(), move |route, was_reset| {
            let mut peers = lock(&peers);
            // the route may have a new stream by now
            if !peers.entries.get(route).is_some_and(Entry::is_over) {
                return;
            }
            match was_reset {
                true => drop(peers.entries.insert(route.clone(), Entry::Refused(Instant::now()))),
                false => drop(peers.entries.remove(route)),
            }
        });
        let (recv, send) = peer.halves();
        let halves = Halves::new(ReadHalf::Udp(recv), WriteHalf::Udp(send));
        let head = Some(route.header.clone()).filter(|header| !header.is_empty());
        let incoming = Incoming::new(Some(halves), canonical(route.address).to_string(), Ok(head));
        lock(&self.peers).entries.insert(route, Entry::Stream(Arc::downgrade(&peer)));
        self.accept_queue.push(incoming).ok()?;
        Some(peer)
    }
}
