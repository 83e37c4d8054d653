//! An accepted connection, until its stream is delivered: the PROXY protocol, TLS, and the preamble.
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::preamble::Preamble;
use super::tls_accept::{Secured, SecuredClient, ServerConfigs};
use super::{plain, secure, socks_handshake};
use crate::addon::accept_queue::AcceptQueue;
use crate::error::{NetError, NetErrorCode};
use crate::http::head::{head_timeout, HeadLimits, Incoming, TlsPeer};
use crate::http::pending_heads::{HeadPermit, PendingHeads};
use crate::http2::connection::{self as http2, Client, Http2, ListenerState};
use crate::net::address::{canonical, AddressKeys};
use crate::net::proxy_protocol;
use crate::net::tls::ServerTls;
use crate::stream::tcp_socket::Tcp;
use crate::stream::tls_transport::TlsTransport;
use crate::stream::Halves;
use crate::tls_link::listener::Handoff;

/// How client addresses are treated.
pub struct Peers {
    pub keys: AddressKeys,
    /// Networks whose connections begin with a PROXY protocol header.
    pub balancers: AddressKeys,
}

/// How a listener handles its connections.
pub struct Settings {
    pub limits: HeadLimits,
    pub peers: Peers,
    /// Takes the TLS connections that offer one of its protocols.
    pub links: Option<Handoff>,
}

/// What applies to the connections that are accepted from now on.
#[derive(Clone)]
pub struct Current {
    pub tls: Option<Arc<ServerConfigs>>,
    pub limits: HeadLimits,
    pub peers: Arc<Peers>,
    pub links: Option<Handoff>,
}

impl Current {
    pub fn new(preamble: Preamble, tls: Option<&ServerTls>, settings: Settings) -> Result<Self, NetError> {
        if tls.is_some() && preamble == Preamble::ClientHello {
            let message = "Cannot listen with TLS: the listener reads the ClientHello and passes TLS on";
            return Err(NetError::new(NetErrorCode::Invalid, message));
        }
        let Settings { limits, peers, links } = settings;
        Ok(Self {
            tls: tls.map(|tls| ServerConfigs::new(tls, preamble).map(Arc::new)).transpose()?,
            limits,
            peers: Arc::new(peers),
            links,
        })
    }
}

/// State that all connections of a listener share.
pub struct Shared {
    pub preamble: Preamble,
    pub current: Mutex<Arc<Current>>,
    pub pending: Arc<PendingHeads>,
    pub accept_queue: Arc<AcceptQueue<Incoming>>,
    pub state: watch::Sender<ListenerState>,
}

impl Shared {
    /// Whose requests come from `remote`.
    fn client(&self, remote: SocketAddr, peer: TlsPeer, peers: &Peers) -> Client {
        Client {
            remote: remote.to_string(),
            peer,
            key: peers.keys.of(remote.ip()),
            pending: self.pending.clone(),
            accept_queue: self.accept_queue.clone(),
            listener: self.state.subscribe(),
        }
    }
}

/// Handles the connection of a load balancer: after the PROXY protocol header it counts as the client's.
pub async fn read_proxy_header(
    shared: Arc<Shared>,
    current: Arc<Current>,
    stream: TcpStream,
    balancer: SocketAddr,
    mut permit: HeadPermit,
) {
    let limits = current.limits;
    let start = Instant::now();
    let header = tokio::select! {
        biased;
        header = proxy_protocol::read(&stream) => header,
        late = head_timeout(limits.time) => Err(late),
        evicted = permit.evicted() => Err(evicted),
    };
    let tcp = Tcp::new(stream);
    match header {
        Ok(None) => {} // a health check
        Ok(Some(client)) => {
            let remote = client.map_or(balancer, canonical);
            if client.is_some() {
                drop(permit); // first: a connection must not count twice and evict another head
                permit = shared.pending.acquire(current.peers.keys.of(remote.ip()));
            }
            let time = limits.time.saturating_sub(start.elapsed());
            Box::pin(prepare(shared, current, tcp, remote, time, permit)).await;
        }
        Err(error) => {
            let halves = current.tls.is_none().then(|| plain(tcp));
            let incoming = Incoming::new(halves, balancer.to_string(), Err(error));
            let _ = shared.accept_queue.push(incoming); // if the queue is closed, the connection is dropped
        }
    }
}

/// A connection while its preamble is read. It outlives the reading: the client gets a response after a timeout.
#[derive(Default)]
struct Opening {
    halves: Option<Halves>,
    peer: TlsPeer,
    /// Has taken the stream, if it speaks HTTP/2.
    http2: Option<Box<Http2>>,
    /// The messages of a SOCKS client so far.
    socks: BytesMut,
}

/// Runs the TLS handshake and reads the preamble of one connection, within the limits and `time`.
pub async fn prepare(
    shared: Arc<Shared>,
    current: Arc<Current>,
    tcp: Arc<Tcp>,
    remote: SocketAddr,
    time: Duration,
    mut permit: HeadPermit,
) {
    let start = Instant::now();
    let mut opening = Opening::default();
    let head = tokio::select! {
        biased; // prefers a complete head over a timeout or an eviction
        head = opening.read(shared.preamble, &current, &tcp, remote) => head,
        late = head_timeout(time) => Err(late),
        evicted = permit.evicted() => Err(evicted),
    };
    let Opening {
        halves,
        peer,
        http2,
        socks,
    } = opening;
    if let Some(http2) = http2.filter(|_| head.is_ok()) {
        let time = time.saturating_sub(start.elapsed());
        // its streams outlive the listener
        tokio::spawn(http2.serve(shared.client(remote, peer, &current.peers), permit, time));
    } else if let Some(head) = head.transpose() {
        let mut incoming = Incoming::new(halves, remote.to_string(), head);
        incoming.peer = peer;
        if shared.preamble.needs_local(&incoming) {
            incoming.local = tcp.stream.local_addr().ok().map(|address| canonical(address).to_string());
        }
        if incoming.error.is_some() && !socks.is_empty() {
            incoming.head = Some(socks.freeze());
        }
        let _ = shared.accept_queue.push(incoming); // if the queue is closed, the connection is dropped
    }
}

impl Opening {
    /// Returns `None` if nothing is to be delivered, or if it speaks HTTP/2. TLS and HTTP/2 are boxed: plain connections stay small.
    async fn read(
        &mut self,
        preamble: Preamble,
        current: &Current,
        tcp: &Arc<Tcp>,
        remote: SocketAddr,
    ) -> Result<Option<Option<Bytes>>, NetError> {
        let stream = match &current.tls {
            Some(configs) => match Box::pin(self.accept_tls(configs, current, tcp, remote)).await? {
                Some(client) if client.is_http2 || preamble == Preamble::Http2 => {
                    Box::pin(self.open_http2(client.stream, current, tcp, secure)).await?;
                    return Ok(None);
                }
                Some(client) => secure(client.stream, tcp.clone()),
                None => return Ok(None),
            },
            None if preamble == Preamble::Http2 => {
                Box::pin(self.open_http2(TlsTransport(tcp.clone()), current, tcp, |_, tcp| plain(tcp))).await?;
                return Ok(None);
            }
            None => plain(tcp.clone()),
        };
        preamble
            .read(self.halves.insert(stream), tcp, &current.limits, &mut self.socks)
            .await
    }

    /// Runs the TLS handshake. Returns `None` if there is no client to serve: after a health check, a challenge, or the handshake of a link.
    async fn accept_tls(
        &mut self,
        configs: &Arc<ServerConfigs>,
        current: &Current,
        tcp: &Arc<Tcp>,
        remote: SocketAddr,
    ) -> Result<Option<Box<SecuredClient>>, NetError> {
        let mut first = [0];
        if matches!(tcp.stream.peek(&mut first).await, Ok(0) | Err(_)) {
            return Ok(None); // a health check
        }
        if first[0].is_ascii_alphabetic() {
            self.halves = Some(plain(tcp.clone()));
            return Err(NetError::remote(
                NetErrorCode::NotTls,
                "This is plain HTTP, but this port accepts only TLS",
            ));
        }
        if first[0] == socks_handshake::VERSION {
            return Err(NetError::remote(
                NetErrorCode::Tls,
                "This is SOCKS 5, but this port accepts only TLS",
            ));
        }
        match configs.clone().accept(tcp.clone(), current.links.as_ref()).await {
            Ok(Secured::Client(mut client)) => {
                self.peer = std::mem::take(&mut client.peer);
                Ok(Some(client))
            }
            Ok(Secured::Challenge) => Ok(None),
            Ok(Secured::Link { handoff, incoming }) => {
                handoff.pass(tcp.clone(), incoming, remote).await;
                Ok(None)
            }
            Err(e) => Err(NetError {
                remote: true,
                ..NetError::tls("The TLS handshake failed", e)
            }),
        }
    }

    /// Begins HTTP/2. If the client speaks something else, the error is delivered with what `halves` makes of the stream.
    async fn open_http2<T>(
        &mut self,
        stream: T,
        current: &Current,
        tcp: &Arc<Tcp>,
        halves: impl FnOnce(T, Arc<Tcp>) -> Halves,
    ) -> Result<(), NetError>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let opened = http2::open(stream, tcp, &current.limits).await.map_err(|(stream, error)| {
            self.halves = Some(halves(stream, tcp.clone()));
            error
        })?;
        self.http2 = opened.map(Box::new);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_client_whose_balancer_names_it_takes_no_second_place_among_heads() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, balancer) = listener.accept().await.unwrap();
        let pending = PendingHeads::new(2, 0);
        let mut other = pending.acquire(None);
        let own = pending.acquire(None);
        let current = Arc::new(Current {
            tls: None,
            limits: HeadLimits {
                bytes: 1 << 10,
                time: Duration::from_secs(20),
                pending: 2,
                pending_per_address: 0,
            },
            peers: Arc::new(Peers {
                keys: AddressKeys::default(),
                balancers: AddressKeys::default(),
            }),
            links: None,
        });
        let shared = Arc::new(Shared {
            preamble: Preamble::Http,
            current: Mutex::new(current.clone()),
            pending,
            accept_queue: Arc::new(AcceptQueue::new(1)),
            state: watch::Sender::new(ListenerState::Accepting),
        });
        let head = "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\n\r\n";
        client.write_all(head.as_bytes()).await.unwrap();
        read_proxy_header(shared.clone(), current, stream, balancer, own).await;
        assert_eq!(shared.accept_queue.len(), 1);
        tokio::select! {
            biased;
            error = other.evicted() => panic!("{}", error.message),
            () = std::future::ready(()) => {}
        }
    }
}
