//! QUIC endpoints, connections and requests over quinn.
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use bytes::Bytes;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{
    AsyncUdpSocket, Connection, ConnectionError, Endpoint, EndpointConfig, MtuDiscoveryConfig, RecvStream, Runtime, SendStream,
    TransportConfig, VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::accept_queue::AcceptQueue;
use crate::address::{canonical, display, lacks_family, to_bind, AddressKey, AddressKeys};
use crate::congestion::{self, ConnectionSignals};
use crate::error::{NetError, NetErrorCode, Warn};
use crate::half::{ReadHalf, WriteHalf};
use crate::happy_eyeballs::{connect, DialTarget};
use crate::head::{head_timeout, PendingHeads};
use crate::lock;
use crate::resolver::{Purpose, Resolver};
use crate::stream::Halves;
use crate::tcp::{read_head, HeadLimits, Incoming};
use crate::tls::{self, ClientTls, ServerTls, QUIC_VERSIONS};
use crate::window::{self, Flow};
use crate::write_coalescing::CoalescingRuntime;

/// What a UDP socket should be able to hold; the kernel gives as much of it as it is allowed to.
const UDP_BUFFER: usize = 8 << 20;
/// With less a fast sender overruns it.
const MIN_UDP_BUFFER: usize = 2_500_000;
/// Connections ready, requests ready, and not yet asked for.
const ACCEPT_QUEUE: usize = 1024;
/// Failed handshakes reported and not yet asked for.
const MAX_QUEUED_FAILURES: usize = 64;
/// quinn with GSO loses larger ones: a send must stay below 64 KiB.
const MAX_MTU: u32 = 6_400;
const MIN_MTU: u32 = 1_200;
/// Searched for from 1,200 up (RFC 8899): paths of 1,500 bytes end at about 1,450, those within a host or a data centre go higher.
const DEFAULT_MTU: u32 = MAX_MTU;
/// What a peer may have open at first: quinn makes room for all that it may open, time for each attempt to connect included, and keeps what
/// streams have needed for as many of them: six megabytes for ten thousand.
const INITIAL_STREAMS: u32 = 256;
/// One reset costs less than the packet that asked for it; with quinn's 20 ms thousands of peers would sooner find out by the silence.
const RESET_INTERVAL: Duration = Duration::from_millis(1);
/// A handshake that has waited longer for its turn is refused: its peer comes back when there is less to do, instead of giving up halfway.
const MAX_START_DELAY: Duration = Duration::from_secs(2);
/// How long the ends of connections may take to reach the wire.
const CLOSE_NOTIFY_TIMEOUT: Duration = Duration::from_millis(700);
const DRAIN_TIMEOUT: Duration = Duration::from_millis(300);

#[napi_derive::napi(object)]
#[derive(Clone, Default)]
pub struct Transport {
    pub keep_alive_ms: Option<u32>,
    pub idle_timeout_ms: Option<u32>,
    pub max_peer_streams: Option<u32>,
    pub stream_window: Option<u32>,
    pub connection_window: Option<u32>,
    pub congestion: Option<String>,
    pub max_mtu: Option<u32>,
}

impl Transport {
    fn config(&self) -> Result<Arc<TransportConfig>, NetError> {
        let mut config = TransportConfig::default();
        let millis = |ms: u32| (ms > 0).then(|| Duration::from_millis(ms.into()));
        config.keep_alive_interval(millis(self.keep_alive_ms.unwrap_or(3_000)));
        config.max_idle_timeout(
            self.idle_timeout_ms
                .map_or(Some(10_000), |ms| (ms > 0).then_some(ms))
                .map(|ms| VarInt::from_u32(ms).into()),
        );
        config.max_concurrent_bidi_streams(self.streams().min(INITIAL_STREAMS).into());
        config.max_concurrent_uni_streams(0u8.into());
        config.datagram_receive_buffer_size(None);
        config.stream_receive_window(self.stream_window().into());
        config.receive_window(window::initial_connection_window(self.connection_window.unwrap_or(0)));
        // each stream has one of its own: a sum for all of them would let those in bulk starve the others
        config.send_window(u64::MAX);
        let name = self.congestion.as_deref().unwrap_or("cubic");
        let factory = congestion::named(name).ok_or_else(|| {
            let message = format!("Cannot use {name:?} for congestion control: it is cubic, cubic-loss-tolerant, bbr or newreno");
            NetError::new(NetErrorCode::Invalid, message)
        })?;
        config.congestion_controller_factory(factory);
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.mtu());
        config.mtu_discovery_config(Some(discovery));
        Ok(Arc::new(config))
    }

    fn stream_window(&self) -> u32 {
        self.stream_window.unwrap_or(window::INITIAL_STREAM_WINDOW as u32)
    }

    /// A connection whose handshake is complete.
    fn begin(&self, connection: &Connection) {
        if let Some(signals) = ConnectionSignals::of(connection) {
            signals
                .window
                .begin(self.stream_window().into(), self.connection_window.unwrap_or(0));
        }
    }

    /// Streams that the peer may have open.
    pub fn streams(&self) -> u32 {
        self.max_peer_streams.unwrap_or(16)
    }

    fn mtu(&self) -> u16 {
        self.max_mtu.unwrap_or(DEFAULT_MTU).clamp(MIN_MTU, MAX_MTU) as u16
    }

    fn endpoint(&self) -> EndpointConfig {
        let mut config = EndpointConfig::default();
        let _ = config.max_udp_payload_size(self.mtu().max(1_472)); // fails below 1,200 only
        config
    }

    /// A server that is started anew with its old key can tell the peers of the connections that it had, which none but the two could make
    /// up (RFC 9000 §10.3). So can another with the same key, to which a load balancer sends their packets.
    fn server_endpoint(&self, tls: &ServerTls) -> Result<EndpointConfig, NetError> {
        let key = tls::derive(&tls.key, b"QUIC stateless reset")?;
        let mut ids = [0; 8];
        ids.copy_from_slice(&hmac::sign(&key, b"key of connection ids").as_ref()[..8]);
        let ids = u64::from_le_bytes(ids);
        let mut config = self.endpoint();
        config.reset_key(Arc::new(key));
        config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
        config.min_reset_interval(RESET_INTERVAL);
        Ok(config)
    }
}

/// As `connection_window` of [`Transport`], from now on.
pub fn set_connection_window(connection: &Connection, bytes: u32) {
    if let Some(signals) = ConnectionSignals::of(connection) {
        signals.window.set_base(connection, bytes);
    }
}

/// Both halves of a stream, with windows of their own.
fn halves(connection: &Connection, signals: &Option<Arc<ConnectionSignals>>, send: SendStream, recv: RecvStream) -> Halves {
    let mut halves = Halves::new(ReadHalf::Quic(recv), WriteHalf::Quic(send, signals.clone()));
    halves.reader.flow = Flow::new(connection, signals);
    halves
}

/// Warns where the kernel gives less than [`MIN_UDP_BUFFER`].
fn udp(address: SocketAddr, warn: &Warn) -> std::io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    raise_buffers(&socket);
    let got = socket.recv_buffer_size()?.min(socket.send_buffer_size()?);
    // Linux counts its own overhead in: it shows twice of what was asked
    let got = if cfg!(target_os = "linux") { got / 2 } else { got };
    if got < MIN_UDP_BUFFER {
        let remedy = if cfg!(target_os = "macos") {
            format!("sysctl -w kern.ipc.maxsockbuf={}", 2 * UDP_BUFFER)
        } else {
            format!("sysctl -w net.core.rmem_max={UDP_BUFFER} net.core.wmem_max={UDP_BUFFER}")
        };
        warn(format!(
            "The system limits UDP buffers to {got} bytes, which makes large transfers slow; raise it with: {remedy}"
        ));
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn raise_buffers(socket: &Socket) {
    // macOS refuses what is above its limit instead of giving less
    let mut size = UDP_BUFFER;
    while size > UDP_BUFFER / 64 && socket.set_recv_buffer_size(size).is_err() {
        size /= 2;
    }
    size = UDP_BUFFER;
    while size > UDP_BUFFER / 64 && socket.set_send_buffer_size(size).is_err() {
        size /= 2;
    }
    #[cfg(target_os = "linux")]
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        use std::os::fd::AsRawFd;
        let size = UDP_BUFFER as libc::c_int;
        // SAFETY: a plain setsockopt with an int that outlives the call. Without CAP_NET_ADMIN it is refused, which is fine.
        unsafe {
            let value = &size as *const libc::c_int as *const libc::c_void;
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                value,
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
    }
}

pub struct HandshakeLimits {
    pub time: Duration,
    pub pending: usize,
    /// 0 for no such limit.
    pub pending_per_address: usize,
    pub keys: AddressKeys,
    pub retry_threshold: usize,
}

/// Handshakes under way of each source. Those of addresses that are not validated count apart: anybody can send them in another's name.
#[derive(Default)]
struct PendingHandshakes {
    of: Mutex<HashMap<AddressKey, AddressCounts>>,
}

#[derive(Default)]
struct AddressCounts {
    validated: usize,
    unvalidated: usize,
}

/// One of them, until it is dropped.
struct HandshakePermit {
    all: Arc<PendingHandshakes>,
    key: AddressKey,
    validated: bool,
}

enum Admission {
    Accept(Option<HandshakePermit>),
    /// Let it show that it is where it says it is.
    Retry,
    Refuse,
}

impl PendingHandshakes {
    fn admit(self: &Arc<Self>, key: Option<AddressKey>, validated: bool, max: usize) -> Admission {
        let Some(key) = key.filter(|_| max > 0) else {
            return Admission::Accept(None);
        };
        let mut of = lock(&self.of);
        let underway = of.entry(key).or_default();
        match validated {
            true if underway.validated >= max => return Admission::Refuse,
            true => underway.validated += 1,
            false if underway.validated + underway.unvalidated >= max => return Admission::Retry,
            false => underway.unvalidated += 1,
        }
        let all = self.clone();
        Admission::Accept(Some(HandshakePermit { all, key, validated }))
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        let mut of = lock(&self.all.of);
        let Some(underway) = of.get_mut(&self.key) else { return };
        match self.validated {
            true => underway.validated -= 1,
            false => underway.unvalidated -= 1,
        }
        if underway.validated + underway.unvalidated == 0 {
            of.remove(&self.key);
        }
    }
}

/// Handshakes refused that were not reported, for those who ask were told of too many already.
#[derive(Default)]
pub struct SuppressedErrors {
    limit: AtomicU64,
    per_address: AtomicU64,
}

impl SuppressedErrors {
    fn of(&self, code: NetErrorCode) -> Option<&AtomicU64> {
        match code {
            NetErrorCode::Limit => Some(&self.limit),
            NetErrorCode::LimitPerAddress => Some(&self.per_address),
            _ => None,
        }
    }

    /// How many a failure with this code that is reported now stands for: itself, and those before it.
    pub fn take(&self, code: NetErrorCode) -> u64 {
        1 + self.of(code).map_or(0, |count| count.swap(0, Ordering::Relaxed))
    }
}

/// What a listener hands over.
pub enum HandshakeResult {
    Connected(Connection),
    Failed { remote: String, error: NetError },
}

pub struct Listener {
    pub address: String,
    pub accept_queue: Arc<AcceptQueue<HandshakeResult>>,
    pub suppressed: Arc<SuppressedErrors>,
    endpoint: Endpoint,
    /// Gone once neither the endpoint nor a connection of it has the socket any more; until then the descriptor is its.
    socket: Weak<dyn AsyncUdpSocket>,
    descriptor: RawFd,
    domain: Domain,
    pub transport: Transport,
    alpn: Vec<String>,
    open: watch::Sender<bool>,
}

impl Listener {
    pub fn open(
        runtime: &Handle,
        address: &str,
        tls: &ServerTls,
        alpn: Vec<String>,
        transport: Transport,
        limits: HandshakeLimits,
        warn: &Warn,
    ) -> Result<Self, NetError> {
        let config = server_config(tls, &alpn, &transport)?;
        let known = transport.server_endpoint(tls)?;
        let socket = bind(address, warn)?;
        let _guard = runtime.enter();
        let descriptor = socket.as_raw_fd();
        let runs_on = Arc::new(CoalescingRuntime);
        let socket = runs_on.wrap_udp_socket(socket).map_err(|e| NetError::bind(&e, address))?;
        let held = Arc::downgrade(&socket);
        let endpoint = Endpoint::new_with_abstract_socket(known, Some(config), socket, runs_on).map_err(|e| NetError::bind(&e, address))?;
        let bound = endpoint.local_addr().map_err(|e| NetError::bind(&e, address))?;
        let accept_queue = Arc::new(AcceptQueue::new(ACCEPT_QUEUE));
        let (open, closed) = watch::channel(true);
        let suppressed = Arc::new(SuppressedErrors::default());
        let limiter = HandshakeLimiter {
            accept_queue: accept_queue.clone(),
            suppressed: suppressed.clone(),
            limits,
            transport: transport.clone(),
        };
        runtime.spawn(accept(endpoint.clone(), limiter, closed));
        Ok(Self {
            address: bound.to_string(),
            accept_queue,
            suppressed,
            endpoint,
            socket: held,
            descriptor,
            domain: Domain::for_address(bound),
            transport,
            alpn,
            open,
        })
    }

    pub fn set_tls(&self, tls: &ServerTls) -> Result<(), NetError> {
        let config = server_config(tls, &self.alpn, &self.transport)?;
        self.endpoint.set_server_config(Some(config));
        Ok(())
    }

    /// New connections are refused from now on.
    pub fn stop_accepting(&self) {
        self.open.send_replace(false);
        self.accept_queue.close();
    }

    /// Closes every connection; resolves when the peers of `connections` were told.
    pub async fn close(&self, code: u32, reason: &str, connections: Vec<Connection>) {
        self.stop_accepting();
        connections.iter().for_each(congestion::lift_cap);
        self.endpoint.close(code.into(), reason.as_bytes());
        let notify_all = async {
            for connection in &connections {
                close_notified(connection).await;
            }
        };
        let _ = timeout(CLOSE_NOTIFY_TIMEOUT, notify_all).await;
        let _ = timeout(DRAIN_TIMEOUT, self.endpoint.wait_idle()).await;
        self.release();
    }

    /// Frees the address, which connections that still end (RFC 9000 §10.2), or streams that somebody still holds, would keep: their
    /// descriptor gets another socket behind it, which nobody knows.
    fn release(&self) {
        let Some(held) = self.socket.upgrade() else { return };
        let Ok(other) = Socket::new(self.domain, Type::DGRAM, Some(Protocol::UDP)) else {
            return;
        };
        let _ = other.set_nonblocking(true);
        // SAFETY: `held` and `other` own the two descriptors, so both are open. `held` goes on owning its own.
        unsafe { libc::dup2(other.as_raw_fd(), self.descriptor) };
        drop(held);
    }

    /// As [`Listener::close`] without waiting.
    pub fn abort(&self) {
        self.stop_accepting();
        self.endpoint.close(0u8.into(), b"");
    }
}

fn server_config(tls: &ServerTls, alpn: &[String], transport: &Transport) -> Result<quinn::ServerConfig, NetError> {
    let crypto = tls::server(tls, QUIC_VERSIONS, alpn)?;
    let crypto = QuicServerConfig::try_from(crypto).map_err(|e| NetError::tls("Cannot set up QUIC", e))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport.config()?);
    Ok(config)
}

fn bind(address: &str, warn: &Warn) -> Result<std::net::UdpSocket, NetError> {
    let mut last = NetError::new(NetErrorCode::Invalid, format!("Cannot listen on {address}: no address"));
    for candidate in to_bind(address)? {
        match udp(candidate, warn) {
            Ok(socket) => return Ok(socket),
            Err(e) => {
                last = NetError::bind(&e, address);
                if !lacks_family(&e) {
                    break;
                }
            }
        }
    }
    Err(last)
}

/// Handshakes run side by side: one that never ends holds up nobody.
async fn accept(endpoint: Endpoint, limiter: HandshakeLimiter, mut closed: watch::Receiver<bool>) {
    let mut handshakes = JoinSet::new();
    let underway = Arc::new(PendingHandshakes::default());
    let HandshakeLimiter { accept_queue, limits, .. } = &limiter;
    let time = limits.time;
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            _ = closed.wait_for(|open| !open) => break,
        };
        let Some(incoming) = incoming else { return };
        while handshakes.try_join_next().is_some() {}
        let remote = canonical(incoming.remote_address());
        if accept_queue.is_full() {
            limiter.refuse(incoming, remote, NetErrorCode::Limit, "Too many connections wait to be accepted");
            continue;
        }
        if handshakes.len() >= limits.pending {
            limiter.refuse(incoming, remote, NetErrorCode::Limit, "Too many handshakes are under way");
            continue;
        }
        let validated = incoming.remote_address_validated();
        if handshakes.len() >= limits.retry_threshold && !validated {
            let _ = incoming.retry(); // fails where it was validated, which it was not
            continue;
        }
        let permit = match underway.admit(limits.keys.of(remote.ip()), validated, limits.pending_per_address) {
            Admission::Accept(permit) => permit,
            Admission::Retry => {
                let _ = incoming.retry(); // as above
                continue;
            }
            Admission::Refuse => {
                limiter.refuse(
                    incoming,
                    remote,
                    NetErrorCode::LimitPerAddress,
                    "Too many handshakes of this address are under way",
                );
                continue;
            }
        };
        let remote = remote.to_string();
        let (accept_queue, transport) = (accept_queue.clone(), limiter.transport.clone());
        let arrived = Instant::now();
        handshakes.spawn(async move {
            let _permit = permit;
            if arrived.elapsed() > MAX_START_DELAY {
                return incoming.refuse();
            }
            let error = match timeout(time, async { incoming.accept()?.await }).await {
                Ok(Ok(connection)) => {
                    transport.begin(&connection);
                    let _ = accept_queue.push(HandshakeResult::Connected(connection)); // closed meanwhile: the connection goes with it
                    return;
                }
                Ok(Err(e)) => NetError::quic_connect(&e, &remote),
                Err(_) => NetError::new(
                    NetErrorCode::TimedOut,
                    format!("The handshake of {remote} is not complete in {} ms", time.as_millis()),
                ),
            };
            if accept_queue.len() < MAX_QUEUED_FAILURES {
                let _ = accept_queue.push(HandshakeResult::Failed { remote, error });
            }
        });
    }
    drop(handshakes); // ends them
    while let Some(incoming) = endpoint.accept().await {
        incoming.refuse(); // told so at once, an agent tries another proxy instead of waiting for a time-out
    }
}

/// Where handshakes come in.
struct HandshakeLimiter {
    accept_queue: Arc<AcceptQueue<HandshakeResult>>,
    suppressed: Arc<SuppressedErrors>,
    limits: HandshakeLimits,
    transport: Transport,
}

impl HandshakeLimiter {
    fn refuse(&self, incoming: quinn::Incoming, remote: SocketAddr, code: NetErrorCode, message: &str) {
        incoming.refuse();
        if self.accept_queue.len() < MAX_QUEUED_FAILURES {
            let (remote, error) = (remote.to_string(), NetError::new(code, message));
            let _ = self.accept_queue.push(HandshakeResult::Failed { remote, error });
        // closed meanwhile: nobody asks any more
        } else if let Some(count) = self.suppressed.of(code) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

pub struct Dial {
    pub host: String,
    pub port: u16,
    pub server_name: Option<String>,
    pub tls: ClientTls,
    pub alpn: Vec<String>,
    pub transport: Transport,
    pub limit: Duration,
}

/// A connection to the first address of the host that takes one. Its endpoint, with a socket of its own, ends with it.
pub async fn dial(resolver: &Arc<Resolver>, options: Dial, warn: Arc<Warn>) -> Result<Connection, NetError> {
    let name = options.server_name.clone().unwrap_or_else(|| options.host.clone());
    tls::server_name(&name)?;
    let name = name.split('%').next().unwrap_or(&name).to_owned();
    let crypto = tls::client(&options.tls, QUIC_VERSIONS, &options.alpn)?;
    let crypto = QuicClientConfig::try_from(crypto).map_err(|e| NetError::tls("Cannot set up QUIC", e))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(options.transport.config()?);
    let who = (resolver, Purpose::Link);
    connect(who, &options.host, options.port, DialTarget::Name, options.limit, |address| {
        let (config, name, transport, warn) = (config.clone(), name.clone(), options.transport.clone(), warn.clone());
        let what = display(&options.host, options.port);
        async move {
            let local: SocketAddr = if address.is_ipv4() {
                ([0, 0, 0, 0], 0).into()
            } else {
                ([0u16; 8], 0).into()
            };
            let endpoint = udp(local, &*warn)
                .and_then(|socket| Endpoint::new(transport.endpoint(), None, socket, Arc::new(CoalescingRuntime)))
                .map_err(|e| NetError::connect(&e, &what))?;
            let connecting = endpoint
                .connect_with(config, address, &name)
                .map_err(|e| NetError::new(NetErrorCode::Invalid, format!("Cannot connect to {what}: {e}")))?;
            let connection = connecting.await.map_err(|e| NetError::quic_connect(&e, &what))?;
            transport.begin(&connection);
            Ok(connection)
        }
    })
    .await
}

pub fn alpn(connection: &Connection) -> String {
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    data.and_then(|data| data.protocol)
        .map(|p| String::from_utf8_lossy(&p).into_owned())
        .unwrap_or_default()
}

pub fn peer_certificate(connection: &Connection) -> Option<Bytes> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.first().map(|certificate| Bytes::copy_from_slice(certificate))
}

pub fn remote(connection: &Connection) -> String {
    canonical(connection.remote_address()).to_string()
}

pub async fn open_stream(connection: &Connection) -> Result<Halves, NetError> {
    let (send, recv) = connection.open_bi().await.map_err(|e| NetError::quic_lost(&e))?;
    Ok(halves(connection, &ConnectionSignals::of(connection), send, recv))
}

/// One request: the stream, with what followed the answer's head, and that head. Given up, the halves are dropped and so reset.
pub async fn request(connection: Connection, head: Bytes, limit: Duration, bytes: usize) -> Result<(Halves, Bytes), NetError> {
    let all = async {
        let mut halves = open_stream(&connection).await?;
        halves.writer.write(head).await?;
        match read_head(&mut halves, bytes).await? {
            Some(answer) => Ok((halves, answer)),
            // no answer at all: the reader knows whether it was an end or a reset
            None => Err(halves
                .reader
                .read()
                .await
                .err()
                .unwrap_or_else(|| NetError::remote(NetErrorCode::HeadTruncated, "The stream ended without an answer"))),
        }
    };
    match timeout(limit, all).await {
        Ok(result) => result,
        Err(_) => Err(NetError::new(
            NetErrorCode::TimedOut,
            format!("No answer in {} ms", limit.as_millis()),
        )),
    }
}

/// The streams that the peer opens, as they come; it may have `max` of them open.
struct Streams {
    connection: Connection,
    signals: Option<Arc<ConnectionSignals>>,
    allowed: u32,
    max: u32,
}

impl Streams {
    fn new(connection: Connection, max: u32) -> Self {
        Self {
            signals: ConnectionSignals::of(&connection),
            connection,
            allowed: max.min(INITIAL_STREAMS),
            max,
        }
    }

    /// The next one; none when the connection has ended.
    async fn accept(&mut self) -> Option<Halves> {
        let (send, recv) = self.connection.accept_bi().await.ok()?;
        let halves = halves(&self.connection, &self.signals, send, recv);
        let open = self.signals.as_ref().map_or(usize::MAX, |signals| signals.window.streams());
        if self.allowed < self.max && open > self.allowed as usize / 2 {
            self.allowed = self.allowed.saturating_mul(2).min(self.max);
            self.connection.set_max_concurrent_bi_streams(self.allowed.into());
        }
        Some(halves)
    }
}

/// Brings the streams that the peer opens, `max` at a time, until the connection ends.
pub async fn accept_streams(connection: Connection, accept_queue: Arc<AcceptQueue<Halves>>, max: u32) {
    let mut streams = Streams::new(connection, max);
    loop {
        accept_queue.space().await; // meanwhile the peer's stream limit holds it up
        let Some(halves) = streams.accept().await else {
            return accept_queue.close();
        };
        let _ = accept_queue.push(halves); // closed meanwhile: the stream is reset
    }
}

/// Brings the requests on the streams that the peer opens, `max` at a time, until the connection ends.
pub async fn accept_requests(connection: Connection, accept_queue: Arc<AcceptQueue<Incoming>>, limits: HeadLimits, max: u32) {
    let pending_heads = PendingHeads::new(limits.pending, 0); // one peer, and so one source
    let remote = remote(&connection);
    let mut heads = JoinSet::new();
    let mut streams = Streams::new(connection, max);
    loop {
        accept_queue.space().await;
        while heads.try_join_next().is_some() {}
        let Some(mut halves) = streams.accept().await else {
            return accept_queue.close();
        };
        let (accept_queue, remote, mut permit) = (accept_queue.clone(), remote.clone(), pending_heads.acquire(None));
        let mut request = Box::pin(async move {
            let head = tokio::select! {
                biased; // see `head_timeout`
                head = read_head(&mut halves, limits.bytes) => head,
                late = head_timeout(limits.time) => Err(late),
                evicted = permit.evicted() => Err(evicted),
            };
            if let Some(head) = head.transpose() {
                let _ = accept_queue.push(Incoming {
                    halves: Some(halves),
                    remote,
                    head,
                }); // closed meanwhile: the stream is reset
            }
        });
        // the head is mostly there with the stream: no task for that
        if request.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            heads.spawn(request);
        }
    }
}

/// Why a connection is no more, once it is; where this side closed it, once that was sent.
pub async fn closed(connection: &Connection) -> ConnectionError {
    let error = connection.closed().await;
    if error == ConnectionError::LocallyClosed {
        let _ = timeout(CLOSE_NOTIFY_TIMEOUT, close_notified(connection)).await;
        // the network may be down
    }
    error
}

/// Resolves when CONNECTION_CLOSE was sent, or there is nobody left to send it to.
async fn close_notified(connection: &Connection) {
    while !congestion::close_sent(connection) {
        match connection.close_reason() {
            None | Some(ConnectionError::LocallyClosed) => tokio::time::sleep(Duration::from_millis(1)).await,
            Some(_) => return,
        }
    }
}

/// Application error code, reason, whether the far side closed it, and the cause as the contract names it.
pub fn describe(error: &ConnectionError) -> (u64, String, bool, &'static str) {
    match error {
        ConnectionError::ApplicationClosed(close) => (
            close.error_code.into_inner(),
            String::from_utf8_lossy(&close.reason).into_owned(),
            true,
            "application",
        ),
        ConnectionError::LocallyClosed => (0, String::new(), false, "application"),
        ConnectionError::TimedOut => (0, error.to_string(), false, "timed-out"),
        ConnectionError::Reset => (0, error.to_string(), true, "reset"),
        ConnectionError::ConnectionClosed(_) => (0, error.to_string(), true, "transport"),
        _ => (0, error.to_string(), false, "transport"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert!(Transport::default().config().is_ok());
        assert_eq!(Transport::default().mtu(), 6400);
    }

    #[test]
    fn packet_sizes_stay_where_they_work() {
        let mtu = |n| {
            Transport {
                max_mtu: Some(n),
                ..Default::default()
            }
            .mtu()
        };
        assert_eq!((mtu(0), mtu(100_000)), (1200, 6400));
    }

    #[test]
    fn handshakes_in_the_name_of_a_source_leave_it_its_own() {
        let underway = Arc::new(PendingHandshakes::default());
        let key = Some(AddressKey::V4(1));
        let taken = |admission| match admission {
            Admission::Accept(Some(permit)) => permit,
            _ => panic!("not taken"),
        };
        let unvalidated: Vec<_> = (0..2).map(|_| taken(underway.admit(key, false, 2))).collect();
        assert!(matches!(underway.admit(key, false, 2), Admission::Retry));
        let shown: Vec<_> = (0..2).map(|_| taken(underway.admit(key, true, 2))).collect();
        assert!(matches!(underway.admit(key, true, 2), Admission::Refuse));
        drop(taken(underway.admit(Some(AddressKey::V4(2)), true, 2)));
        drop(shown);
        drop(taken(underway.admit(key, true, 2)));
        assert!(matches!(underway.admit(key, false, 2), Admission::Retry));
        drop(unvalidated);
        drop(taken(underway.admit(key, false, 2)));
        assert!(lock(&underway.of).is_empty());
        assert!(matches!(underway.admit(None, true, 2), Admission::Accept(None)));
        assert!(matches!(underway.admit(key, true, 0), Admission::Accept(None)));
    }

    #[test]
    fn unknown_congestion_control_is_named() {
        let error = Transport {
            congestion: Some("vegas".into()),
            ..Default::default()
        }
        .config()
        .unwrap_err();
        assert!(error.message.contains("\"vegas\""));
    }
}
