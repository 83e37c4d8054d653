//! TCP listeners and connections, with or without TLS. A listener hands over streams whose head was read, or the reason why it was not.
use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{timeout, Instant};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, TlsStream};

use crate::address::{canonical, to_bind, Sources};
use crate::connect::{connect, At};
use crate::error::{Fault, FaultCode, Warn};
use crate::half::{Sink, Source, Tcp, TlsTransport, Truncation};
use crate::head::{too_late, Gate, HeadScanner, Ticket};
use crate::inbox::Inbox;
use crate::lock;
use crate::names::{Names, Purpose};
use crate::proxy_protocol;
use crate::stream::Halves;
use crate::tls::{self, ServerTls, TCP_VERSIONS};

/// Connections the kernel may hold until they are accepted.
const BACKLOG: i32 = 4096;
/// Heads read and not yet asked for; at so many, accepting pauses and the kernel's queue fills.
const READY: usize = 1024;
/// A peer that vanished without a word is noticed by keep-alive probes (RFC 9293 §3.8.4): Go's values.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long clients that have connected may take for their heads when nobody else may connect.
const LAST_HEADS: Duration = Duration::from_millis(500);
/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// That it failed is told once in so long.
const TELL: Duration = Duration::from_secs(60);

#[derive(Clone, Copy)]
pub struct HeadLimits {
    pub bytes: usize,
    pub time: Duration,
    pub pending: usize,
    /// 0 for no such limit.
    pub pending_per_source: usize,
}

/// What addresses stand for.
pub struct Peers {
    pub sources: Sources,
    /// Those whose connections begin with a header of the PROXY protocol.
    pub balancers: Sources,
}

/// A stream that was accepted, and its head or the reason why there is none.
pub struct Incoming {
    pub halves: Option<Halves>,
    pub remote: String,
    pub head: Result<bytes::Bytes, Fault>,
}

/// The listening socket, until somebody takes it out: that frees the address at once, whatever the task is doing.
type Slot = Arc<Mutex<Option<TcpListener>>>;

pub struct Listener {
    pub address: String,
    pub inbox: Arc<Inbox<Incoming>>,
    tls: Option<Arc<Mutex<ServerConfigs>>>,
    socket: Slot,
    stop: Arc<Notify>,
    task: AbortHandle,
}

/// What a TLS server is, to a client that offers HTTP/1.1 by ALPN (RFC 7301), and to all others. Without a protocol that both have, rustls
/// would refuse the client: one that offers HTTP/2 alone is told nothing, and speaks HTTP/1.1 all the same, or is answered in it.
#[derive(Clone)]
struct ServerConfigs {
    http: Arc<rustls::ServerConfig>,
    other: Arc<rustls::ServerConfig>,
}

const HTTP: &[u8] = b"http/1.1";

impl ServerConfigs {
    fn new(tls: &ServerTls) -> Result<Self, Fault> {
        let other = tls::server(tls, TCP_VERSIONS, &[])?;
        let mut http = other.clone();
        http.alpn_protocols = vec![HTTP.to_vec()];
        Ok(Self {
            http: Arc::new(http),
            other: Arc::new(other),
        })
    }

    async fn accept(self, tcp: Arc<Tcp>) -> std::io::Result<TlsStream<TlsTransport>> {
        let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), TlsTransport(tcp)).await?;
        let offers_http = hello.client_hello().alpn().is_some_and(|mut names| names.any(|name| name == HTTP));
        let config = if offers_http { self.http } else { self.other };
        Ok(TlsStream::Server(hello.into_stream(config).await?))
    }
}

impl Listener {
    pub fn open(
        runtime: &Handle,
        address: &str,
        tls: Option<&ServerTls>,
        limits: HeadLimits,
        peers: Peers,
        warn: Arc<Warn>,
    ) -> Result<Self, Fault> {
        let tls = match tls {
            Some(tls) => Some(Arc::new(Mutex::new(ServerConfigs::new(tls)?))),
            None => None,
        };
        let socket = bind(address)?;
        let bound = socket
            .local_addr()
            .ok()
            .and_then(|a| a.as_socket())
            .ok_or_else(|| Fault::new(FaultCode::Internal, "A socket without an address"))?;
        let _guard = runtime.enter();
        let socket = TcpListener::from_std(socket.into()).map_err(|e| Fault::bind(&e, address))?;
        let socket = Arc::new(Mutex::new(Some(socket)));
        let inbox = Arc::new(Inbox::new(READY));
        let stop = Arc::new(Notify::new());
        let task = runtime
            .spawn(accept(
                socket.clone(),
                inbox.clone(),
                tls.clone(),
                limits,
                peers,
                stop.clone(),
                warn,
            ))
            .abort_handle();
        Ok(Self {
            address: bound.to_string(),
            inbox,
            tls,
            socket,
            stop,
            task,
        })
    }

    pub fn set_tls(&self, tls: &ServerTls) -> Result<(), Fault> {
        let Some(current) = &self.tls else {
            return Err(Fault::new(
                FaultCode::Invalid,
                format!("Cannot set certificates: {} listens without TLS", self.address),
            ));
        };
        *lock(current) = ServerConfigs::new(tls)?;
        Ok(())
    }

    /// Frees the address soon; those who have connected until then are still handed over.
    pub fn stop_accepting(&self) {
        self.stop.notify_one();
    }

    /// The address is free with this call; heads being read are given up with the task.
    pub fn close(&self) {
        drop(lock(&self.socket).take());
        self.task.abort();
        self.inbox.close();
    }
}

fn bind(address: &str) -> Result<Socket, Fault> {
    let mut last = Fault::new(FaultCode::Invalid, format!("Cannot listen on {address}: no address"));
    for candidate in to_bind(address)? {
        let open = || {
            let socket = Socket::new(Domain::for_address(candidate), Type::STREAM, Some(Protocol::TCP))?;
            if candidate.is_ipv6() {
                socket.set_only_v6(!candidate.ip().is_unspecified())?;
            }
            socket.set_reuse_address(true)?; // a restart need not wait for the old connections' TIME_WAIT
            socket.set_nonblocking(true)?;
            // accepted connections inherit these on Linux and macOS
            socket.set_tcp_nodelay(true)?;
            socket.set_tcp_keepalive(&keepalive())?;
            socket.bind(&candidate.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket)
        };
        match open() {
            Ok(socket) => return Ok(socket),
            Err(e) => {
                last = Fault::bind(&e, address);
                if !crate::address::lacks_family(&e) {
                    break;
                }
            }
        }
    }
    Err(last)
}

fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE)
}

async fn accept(
    socket: Slot,
    inbox: Arc<Inbox<Incoming>>,
    tls: Option<Arc<Mutex<ServerConfigs>>>,
    limits: HeadLimits,
    peers: Peers,
    stop: Arc<Notify>,
    warn: Arc<Warn>,
) {
    let gate = Gate::new(limits.pending, limits.pending_per_source);
    let peers = Arc::new(peers);
    // dropping it with this task gives up the heads being read
    let mut heads = tokio::task::JoinSet::new();
    let mut stopping = false;
    let mut told = None;
    loop {
        inbox.space().await;
        while heads.try_join_next().is_some() {}
        let accepted = poll_fn(|cx| match &*lock(&socket) {
            Some(listener) => listener.poll_accept(cx).map(Some),
            None => Poll::Ready(None),
        });
        let accepted = tokio::select! {
            biased;
            accepted = accepted => accepted,
            () = std::future::ready(()), if stopping => break, // the kernel's queue is empty
            () = stop.notified() => {
                stopping = true;
                continue;
            }
        };
        match accepted {
            None => return,
            Some(Ok((stream, remote))) => {
                let tls = tls.as_ref().map(|tls| lock(tls).clone());
                let ticket = gate.enter(peers.sources.of(remote.ip()));
                if peers.balancers.exempts(remote.ip()) {
                    heads.spawn(introduce(
                        stream,
                        canonical(remote),
                        tls,
                        limits,
                        ticket,
                        gate.clone(),
                        peers.clone(),
                        inbox.clone(),
                    ));
                } else {
                    let remote = canonical(remote).to_string();
                    heads.spawn(prepare(Tcp::new(stream), remote, tls, limits, ticket, inbox.clone()));
                }
            }
            Some(Err(e)) if e.kind() == ErrorKind::ConnectionAborted => {} // gone before it was taken
            Some(Err(e)) => {
                if told.is_none_or(|at: Instant| at.elapsed() >= TELL) {
                    told = Some(Instant::now());
                    warn(format!("Connections wait, for they cannot be accepted: {e}"));
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(lock(&socket).take());
    let _ = timeout(LAST_HEADS, async { while heads.join_next().await.is_some() {} }).await;
    inbox.finish();
}

/// A load balancer's connection: once its header has told for whom it is, it is that client's.
#[allow(clippy::too_many_arguments)]
async fn introduce(
    stream: TcpStream,
    balancer: SocketAddr,
    tls: Option<ServerConfigs>,
    limits: HeadLimits,
    mut ticket: Ticket,
    gate: Arc<Gate>,
    peers: Arc<Peers>,
    inbox: Arc<Inbox<Incoming>>,
) {
    let start = Instant::now();
    let header = tokio::select! {
        biased;
        header = proxy_protocol::read(&stream) => header,
        late = too_late(limits.time) => Err(late),
        evicted = ticket.evicted() => Err(evicted),
    };
    let tcp = Tcp::new(stream);
    match header {
        Ok(None) => {} // a health check
        Ok(Some(client)) => {
            let remote = client.map_or(balancer, canonical);
            if client.is_some() {
                drop(ticket); // first: one connection must not count twice, and evict another's head
                ticket = gate.enter(peers.sources.of(remote.ip()));
            }
            let time = limits.time.saturating_sub(start.elapsed());
            prepare(tcp, remote.to_string(), tls, HeadLimits { time, ..limits }, ticket, inbox).await;
        }
        Err(fault) => {
            let halves = tls.is_none().then(|| plain(tcp));
            let _ = inbox.push(Incoming {
                halves,
                remote: balancer.to_string(),
                head: Err(fault),
            }); // closed meanwhile: the connection goes with it
        }
    }
}

/// Handshake and head of one connection, within the limits.
async fn prepare(
    tcp: Arc<Tcp>,
    remote: String,
    tls: Option<ServerConfigs>,
    limits: HeadLimits,
    mut ticket: Ticket,
    inbox: Arc<Inbox<Incoming>>,
) {
    let mut halves = None; // outlives the reading: after a time-out the client is still to be answered
    let reading = async {
        let stream = halves.insert(match tls {
            None => plain(tcp),
            Some(configs) => {
                let mut first = [0];
                if matches!(tcp.stream.peek(&mut first).await, Ok(0) | Err(_)) {
                    return Ok(None); // a health check
                }
                if first[0].is_ascii_alphabetic() {
                    halves = Some(plain(tcp));
                    return Err(Fault::remote(FaultCode::NotTls, "It is plain HTTP, and this port takes TLS"));
                }
                match configs.accept(tcp.clone()).await {
                    Ok(stream) => secure(stream, tcp),
                    Err(e) => {
                        return Err(Fault {
                            remote: true,
                            ..Fault::tls("The TLS handshake failed", e)
                        })
                    }
                }
            }
        });
        read_head(stream, limits.bytes).await
    };
    let head = tokio::select! {
        biased; // who is told to give up before this has begun is answered nevertheless
        head = reading => head,
        late = too_late(limits.time) => Err(late),
        evicted = ticket.evicted() => Err(evicted),
    };
    if let Some(head) = head.transpose() {
        let _ = inbox.push(Incoming { halves, remote, head }); // closed meanwhile: the connection goes with it
    }
}

/// Reads the head from the stream, leaving in it what follows. `None`: the peer went without a word, as health checks do.
pub async fn read_head(halves: &mut Halves, limit: usize) -> Result<Option<bytes::Bytes>, Fault> {
    let mut scanner = HeadScanner::new(limit);
    loop {
        match halves.reader.read().await {
            Ok(Some(data)) => {
                if let Some((head, rest)) = scanner.push(data)? {
                    halves.reader.prefix = rest;
                    return Ok(Some(head));
                }
            }
            Ok(None) | Err(_) if scanner.is_empty() => return Ok(None),
            Ok(None) => return Err(Fault::remote(FaultCode::HeadTruncated, "The stream ended within the head")),
            Err(fault) => return Err(fault),
        }
    }
}

fn plain(tcp: Arc<Tcp>) -> Halves {
    Halves::new(Source::Tcp(tcp.clone()), Sink::Tcp(tcp))
}

fn secure(stream: TlsStream<TlsTransport>, tcp: Arc<Tcp>) -> Halves {
    let truncation = match stream {
        TlsStream::Server(_) => Truncation::End,
        TlsStream::Client(_) => Truncation::Reset,
    };
    let (reader, writer) = tokio::io::split(stream);
    Halves::new(Source::Tls(reader, tcp.clone(), truncation), Sink::Tls(writer, tcp))
}

/// A connection to the first address of `host` that takes one, and its address.
pub async fn dial(
    names: &Arc<Names>,
    host: String,
    port: u16,
    at: At,
    limit: Duration,
    tls: Option<TlsConnector>,
) -> Result<(Halves, String), Fault> {
    let tls = match tls {
        None => None,
        Some(connector) => Some((connector, tls::server_name(&host)?)),
    };
    connect((names, Purpose::Tunnel), &host, port, at, limit, |address| {
        let tls = tls.clone();
        async move {
            let tcp = Tcp::new(open(address).await.map_err(|e| connect_fault(&e, address))?);
            let remote = address.to_string();
            let halves = match tls {
                None => plain(tcp),
                Some((connector, name)) => {
                    let stream = connector.connect(name, TlsTransport(tcp.clone())).await;
                    secure(
                        TlsStream::Client(stream.map_err(|e| Fault::tls(&format!("Cannot connect to {address} over TLS"), e))?),
                        tcp,
                    )
                }
            };
            Ok((halves, remote))
        }
    })
    .await
}

/// EADDRNOTAVAIL says that no local port is free, and over IPv6 also that there is no source address: only the first passes by itself.
fn connect_fault(error: &std::io::Error, to: SocketAddr) -> Fault {
    let mut fault = Fault::connect(error, &to.to_string());
    if error.kind() == ErrorKind::AddrNotAvailable && has_source_address(to) {
        fault.code = FaultCode::AddressNotAvailable;
    }
    fault
}

/// Whether packets to this address could be sent from here. Connecting a UDP socket sends none.
fn has_source_address(to: SocketAddr) -> bool {
    let connect = || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?.connect(to);
    to.is_ipv4() || connect().is_ok()
}

async fn open(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    SockRef::from(&socket).set_tcp_keepalive(&keepalive())?;
    socket.connect(address).await
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
        let gate = Gate::new(2, 0);
        let mut other = gate.enter(None);
        let own = gate.enter(None);
        let limits = HeadLimits {
            bytes: 1 << 10,
            time: Duration::from_secs(20),
            pending: 2,
            pending_per_source: 0,
        };
        let peers = Arc::new(Peers {
            sources: Sources::default(),
            balancers: Sources::default(),
        });
        let inbox = Arc::new(Inbox::new(1));
        let head = "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\n\r\n";
        client.write_all(head.as_bytes()).await.unwrap();
        introduce(stream, balancer, None, limits, own, gate, peers, inbox.clone()).await;
        assert_eq!(inbox.len(), 1);
        tokio::select! {
            biased;
            fault = other.evicted() => panic!("{}", fault.message),
            () = std::future::ready(()) => {}
        }
    }
}
