//! TCP listeners, with or without TLS. A listener delivers streams after their preamble, or with the reason why it could not be read.
use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{watch, Notify};
use tokio::task::AbortHandle;
use tokio::time::{timeout, Instant};

use super::client_hello::read_hello;
use super::tls_accept::{Secured, SecuredClient, ServerConfigs};
use super::{keepalive, plain, secure, socks_handshake};
use crate::addon::accept_queue::AcceptQueue;
use crate::error::{NetError, NetErrorCode, Warn};
use crate::handover::channel::duplicate;
use crate::handover::sockets::{Gate, Kind, Listening, Passed, Sockets};
use crate::http::head::{head_timeout, read_head, HeadLimits, Incoming, TlsPeer};
use crate::http::pending_heads::{HeadPermit, PendingHeads};
use crate::http2::connection::{self as http2, Client};
use crate::net::address::{bind_first, canonical, AddressKeys};
use crate::net::proxy_protocol;
use crate::net::tls::ServerTls;
use crate::stream::tcp_socket::Tcp;
use crate::stream::tls_transport::TlsTransport;
use crate::stream::Halves;
use crate::sync::lock;
use crate::tls_link::listener::Handoff;

/// Maximum number of connections in the kernel's accept queue.
const BACKLOG: i32 = 4096;
/// Maximum number of requests that wait to be accepted. Above, accepting pauses and the kernel's queue fills.
const ACCEPT_QUEUE: usize = 1024;
/// Time for pending heads after the listener has stopped accepting.
const LAST_HEADS_TIMEOUT: Duration = Duration::from_millis(500);
/// Pause after an accept failed for lack of file descriptors or memory.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Minimum interval between warnings about failed accepts.
pub const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// What a listener reads of a stream, after the PROXY protocol and TLS, before it delivers it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Preamble {
    /// The head of a request.
    Http,
    /// The first message of TLS (RFC 8446 §4.1.2), which stays in the stream.
    ClientHello,
    /// The messages of a SOCKS client up to its credentials.
    Socks5,
    /// One or the other, by the first byte.
    HttpOrSocks5,
    /// The heads of the requests of a connection, each of which is delivered as a stream.
    Http2,
    /// One or the other version, as agreed by ALPN; without TLS HTTP/1.1.
    HttpOrHttp2,
    None,
}

impl Preamble {
    pub fn parse(text: &str) -> Result<Self, NetError> {
        match text {
            "http" => Ok(Self::Http),
            "client-hello" => Ok(Self::ClientHello),
            "socks5" => Ok(Self::Socks5),
            "http-or-socks5" => Ok(Self::HttpOrSocks5),
            "http2" => Ok(Self::Http2),
            "http-or-http2" => Ok(Self::HttpOrHttp2),
            "none" => Ok(Self::None),
            _ => Err(NetError::new(
                NetErrorCode::Invalid,
                format!("Cannot read the preamble {text}: it is unknown"),
            )),
        }
    }

    /// The protocols of which the first one that a client offers is selected (RFC 7301).
    pub fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Self::Http | Self::HttpOrSocks5 => &[b"http/1.1"],
            Self::Http2 => &[b"h2"],
            Self::HttpOrHttp2 => &[b"h2", b"http/1.1"],
            Self::ClientHello | Self::Socks5 | Self::None => &[],
        }
    }

    /// Whether what serves the stream has to know the address at which the client has reached the listener.
    fn needs_local(self, incoming: &Incoming) -> bool {
        match self {
            Self::Http | Self::Http2 | Self::HttpOrHttp2 => false,
            Self::HttpOrSocks5 => incoming
                .head
                .as_ref()
                .is_some_and(|head| head.first() == Some(&socks_handshake::VERSION)),
            Self::ClientHello | Self::Socks5 | Self::None => true,
        }
    }

    /// Returns `None` if the peer closed the stream without sending anything. After an error `socks` has the messages of a SOCKS client.
    async fn read(
        self,
        stream: &mut Halves,
        tcp: &Tcp,
        limits: &HeadLimits,
        socks: &mut BytesMut,
    ) -> Result<Option<Option<Bytes>>, NetError> {
        let speaks_socks = match self {
            Self::Http2 | Self::None => return Ok(Some(None)),
            Self::ClientHello => return read_client_hello(stream, tcp, limits.bytes).await,
            Self::Http | Self::HttpOrHttp2 => false,
            Self::Socks5 => true,
            Self::HttpOrSocks5 => {
                let Ok(Some(data)) = stream.reader.read().await else {
                    return Ok(None);
                };
                let first = data.first().copied();
                stream.reader.prefix = data;
                first == Some(socks_handshake::VERSION)
            }
        };
        if !speaks_socks {
            return Ok(read_head(stream, limits.bytes).await?.map(Some));
        }
        let sent_something = socks_handshake::read(stream, socks).await?;
        Ok(sent_something.then(|| Some(socks.split().freeze())))
    }
}

/// The content type of a record that begins a handshake (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;

/// Reads the server name. The ClientHello stays in the stream, which is `tcp`.
async fn read_client_hello(stream: &mut Halves, tcp: &Tcp, limit: usize) -> Result<Option<Option<Bytes>>, NetError> {
    let mut first = [0];
    if matches!(tcp.stream.peek(&mut first).await, Ok(0) | Err(_)) {
        return Ok(None); // a health check
    }
    if first[0] != HANDSHAKE {
        return Err(NetError::remote(
            NetErrorCode::NotTls,
            "This is not TLS, but this port accepts only TLS",
        ));
    }
    let (hello, bytes) = read_hello(tcp, limit).await.map_err(|error| NetError {
        remote: true,
        ..NetError::tls("The ClientHello cannot be read", error)
    })?;
    stream.reader.prefix = bytes.freeze();
    Ok(Some(hello.client_hello().server_name().map(|name| name.to_owned().into())))
}

/// How client addresses are treated.
pub struct Peers {
    pub keys: AddressKeys,
    /// Networks whose connections begin with a PROXY protocol header.
    pub balancers: AddressKeys,
}

/// What a listener does with its connections.
pub struct Settings {
    pub limits: HeadLimits,
    pub peers: Peers,
    /// Takes the TLS connections that offer one of its protocols.
    pub links: Option<Handoff>,
}

/// What applies to the connections that are accepted from now on.
#[derive(Clone)]
struct Current {
    tls: Option<Arc<ServerConfigs>>,
    limits: HeadLimits,
    peers: Arc<Peers>,
    links: Option<Handoff>,
}

impl Current {
    fn new(preamble: Preamble, tls: Option<&ServerTls>, settings: Settings) -> Result<Self, NetError> {
        if tls.is_some() && preamble == Preamble::ClientHello {
            let message = "Cannot listen with TLS: there is no ClientHello to read then";
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

/// What all connections of a listener share.
struct Shared {
    preamble: Preamble,
    current: Mutex<Arc<Current>>,
    pending: Arc<PendingHeads>,
    accept_queue: Arc<AcceptQueue<Incoming>>,
    /// True once it has stopped accepting.
    draining: watch::Sender<bool>,
}

/// The listening socket. Taking it out frees the address at once, whatever the task is doing.
type Slot = Arc<Mutex<Option<TcpListener>>>;

impl Listening for Mutex<Option<TcpListener>> {
    fn pass(&self) -> std::io::Result<Passed> {
        let socket = lock(self);
        let socket = socket.as_ref().ok_or(ErrorKind::NotConnected)?;
        Ok(duplicate(socket)?.into())
    }
}

impl Listening for TcpListener {
    fn pass(&self) -> std::io::Result<Passed> {
        Ok(duplicate(self)?.into())
    }
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
            draining: self.draining.subscribe(),
        }
    }
}

pub struct Listener {
    pub address: String,
    pub accept_queue: Arc<AcceptQueue<Incoming>>,
    shared: Arc<Shared>,
    socket: Slot,
    stop: Arc<Notify>,
    task: AbortHandle,
}

impl Listener {
    pub fn open(
        sockets: &Sockets,
        address: &str,
        preamble: Preamble,
        tls: Option<&ServerTls>,
        settings: Settings,
        warn: Arc<Warn>,
    ) -> Result<Self, NetError> {
        let current = Current::new(preamble, tls, settings)?;
        let _guard = sockets.runtime.enter();
        let (socket, bound) = listen(sockets, address)?;
        let socket = Arc::new(Mutex::new(Some(socket)));
        sockets.offer(Kind::Tcp, address, &socket);
        let accept_queue = Arc::new(AcceptQueue::new(ACCEPT_QUEUE));
        let stop = Arc::new(Notify::new());
        let shared = Arc::new(Shared {
            preamble,
            pending: PendingHeads::new(current.limits.pending, current.limits.pending_per_address),
            current: Mutex::new(Arc::new(current)),
            accept_queue: accept_queue.clone(),
            draining: watch::Sender::new(false),
        });
        let task = sockets
            .runtime
            .spawn(accept(socket.clone(), sockets.gate(), shared.clone(), stop.clone(), warn))
            .abort_handle();
        Ok(Self {
            address: bound.to_string(),
            accept_queue,
            shared,
            socket,
            stop,
            task,
        })
    }

    pub fn set_tls(&self, tls: &ServerTls) -> Result<(), NetError> {
        let mut current = lock(&self.shared.current);
        if current.tls.is_none() {
            return Err(NetError::new(
                NetErrorCode::Invalid,
                format!("Cannot set certificates: {} listens without TLS", self.address),
            ));
        }
        let tls = Some(Arc::new(ServerConfigs::new(tls, self.shared.preamble)?));
        *current = Arc::new(Current {
            tls,
            ..Current::clone(&current)
        });
        Ok(())
    }

    /// Replaces everything but address and preamble, for connections that are accepted from now on.
    pub fn configure(&self, tls: Option<&ServerTls>, settings: Settings) -> Result<(), NetError> {
        let next = Current::new(self.shared.preamble, tls, settings)?;
        self.shared.pending.set_limits(next.limits.pending, next.limits.pending_per_address);
        *lock(&self.shared.current) = Arc::new(next);
        Ok(())
    }

    /// Stops accepting and frees the address soon. Clients that have already connected are still delivered.
    pub fn stop_accepting(&self) {
        self.stop.notify_one();
    }

    /// Frees the address immediately and drops heads that are being read.
    pub fn close(&self) {
        drop(lock(&self.socket).take());
        self.task.abort();
        self.shared.draining.send_replace(true);
        self.accept_queue.close();
    }
}

/// The predecessor's socket, or a new one, and its address. Requires the runtime.
pub fn listen(sockets: &Sockets, address: &str) -> Result<(TcpListener, SocketAddr), NetError> {
    let socket = match sockets.take(Kind::Tcp, address) {
        Some(passed) => passed.socket.into(),
        None => bind(address)?.into(),
    };
    let socket = TcpListener::from_std(socket).map_err(|e| NetError::bind(&e, address))?;
    let bound = socket.local_addr().map_err(|e| NetError::bind(&e, address))?;
    Ok((socket, bound))
}

fn bind(address: &str) -> Result<Socket, NetError> {
    bind_first(address, |candidate| {
        let socket = Socket::new(Domain::for_address(candidate), Type::STREAM, Some(Protocol::TCP))?;
        if candidate.is_ipv6() {
            socket.set_only_v6(!candidate.ip().is_unspecified())?;
        }
        socket.set_reuse_address(true)?; // a restart does not wait for TIME_WAIT
        socket.set_nonblocking(true)?;
        // accepted connections inherit these on Linux and macOS
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&keepalive())?;
        socket.bind(&candidate.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    })
}

async fn accept(socket: Slot, mut gate: Gate, shared: Arc<Shared>, stop: Arc<Notify>, warn: Arc<Warn>) {
    let accept_queue = &shared.accept_queue;
    // dropped with this task, which aborts pending heads
    let mut heads = tokio::task::JoinSet::new();
    let mut stopping = false;
    let mut warned_at = None;
    loop {
        accept_queue.space().await;
        while heads.try_join_next().is_some() {}
        let accepted = poll_fn(|cx| match &*lock(&socket) {
            Some(listener) => listener.poll_accept(cx).map(Some),
            None => Poll::Ready(None),
        });
        let accepted = tokio::select! {
            biased;
            accepted = gate.accept(accepted) => accepted,
            () = std::future::ready(()), if stopping => break, // the kernel's queue is empty
            () = stop.notified() => {
                stopping = true;
                shared.draining.send_replace(true);
                continue;
            }
        };
        match accepted {
            None => return,
            Some(Ok((stream, remote))) => {
                let current = lock(&shared.current).clone();
                let permit = shared.pending.acquire(current.peers.keys.of(remote.ip()));
                if current.peers.balancers.exempts(remote.ip()) {
                    heads.spawn(read_proxy_header(shared.clone(), current, stream, canonical(remote), permit));
                } else {
                    let (remote, time) = (canonical(remote), current.limits.time);
                    heads.spawn(prepare(shared.clone(), current, Tcp::new(stream), remote, time, permit));
                }
            }
            Some(Err(e)) if e.kind() == ErrorKind::ConnectionAborted => {} // closed before it was accepted
            Some(Err(e)) => {
                if warned_at.is_none_or(|at: Instant| at.elapsed() >= WARN_INTERVAL) {
                    warned_at = Some(Instant::now());
                    warn(format!("Connections are waiting because they cannot be accepted: {e}"));
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(lock(&socket).take());
    let _ = timeout(LAST_HEADS_TIMEOUT, async { while heads.join_next().await.is_some() {} }).await;
    accept_queue.finish();
}

/// Handles the connection of a load balancer: after the PROXY protocol header it counts as the client's.
async fn read_proxy_header(shared: Arc<Shared>, current: Arc<Current>, stream: TcpStream, balancer: SocketAddr, mut permit: HeadPermit) {
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
            prepare(shared, current, tcp, remote, time, permit).await;
        }
        Err(error) => {
            let halves = current.tls.is_none().then(|| plain(tcp));
            let incoming = Incoming::new(halves, balancer.to_string(), Err(error));
            let _ = shared.accept_queue.push(incoming); // if the queue is closed, the connection is dropped
        }
    }
}

/// Runs the TLS handshake and reads the preamble of one connection, within the limits and `time`.
async fn prepare(shared: Arc<Shared>, current: Arc<Current>, tcp: Arc<Tcp>, remote: SocketAddr, time: Duration, mut permit: HeadPermit) {
    let start = Instant::now();
    // outlive the reading: the client gets a response after a timeout
    let (mut halves, mut socks) = (None, BytesMut::new());
    let mut http2 = None;
    let mut peer = TlsPeer::default();
    let reading = async {
        let stream = halves.insert(match &current.tls {
            None if shared.preamble == Preamble::Http2 => {
                let opened = http2::open(TlsTransport(tcp.clone()), &tcp, &current.limits).await;
                http2 = opened.map_err(|(_, error)| {
                    halves = Some(plain(tcp.clone()));
                    error
                })?;
                return Ok(None);
            }
            None => plain(tcp.clone()),
            Some(configs) => {
                let mut first = [0];
                if matches!(tcp.stream.peek(&mut first).await, Ok(0) | Err(_)) {
                    return Ok(None); // a health check
                }
                if first[0].is_ascii_alphabetic() {
                    halves = Some(plain(tcp.clone()));
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
                    Ok(Secured::Client(client)) => {
                        let SecuredClient {
                            stream,
                            peer: known,
                            is_http2,
                        } = *client;
                        peer = known;
                        if shared.preamble == Preamble::Http2 || is_http2 {
                            let opened = http2::open(stream, &tcp, &current.limits).await;
                            http2 = opened.map_err(|(stream, error)| {
                                halves = Some(secure(stream, tcp.clone()));
                                error
                            })?;
                            return Ok(None);
                        }
                        secure(stream, tcp.clone())
                    }
                    Ok(Secured::Challenge) => return Ok(None),
                    Ok(Secured::Link { handoff, incoming }) => {
                        handoff.pass(tcp.clone(), incoming, remote).await;
                        return Ok(None);
                    }
                    Err(e) => {
                        return Err(NetError {
                            remote: true,
                            ..NetError::tls("The TLS handshake failed", e)
                        })
                    }
                }
            }
        });
        shared.preamble.read(stream, &tcp, &current.limits, &mut socks).await
    };
    let head = tokio::select! {
        biased; // prefers a complete head over a timeout or an eviction
        head = reading => head,
        late = head_timeout(time) => Err(late),
        evicted = permit.evicted() => Err(evicted),
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

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
            draining: watch::Sender::new(false),
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
