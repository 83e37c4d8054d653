//! QUIC listeners: accept connections, within limits on handshakes, and close them.
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint};
use socket2::{Domain, Protocol, Type};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connection::{close_notified, CLOSE_NOTIFY_TIMEOUT};
use super::handshake_limits::{Admission, HandshakeLimits, PendingHandshakes, SuppressedErrors};
use super::siblings::Siblings;
use super::signals;
use super::socket::Socket;
use super::succession::Succession;
use super::transport::{key_of_ids, Transport};
use super::write_coalescing::CoalescingRuntime;
use crate::addon::accept_queue::AcceptQueue;
use crate::error::{NetError, NetErrorCode, Warn};
use crate::handover::sockets::{Kind, Sockets};
use crate::net::address::canonical;
use crate::net::tls::{self, ServerTls};
use crate::net::udp;
use crate::session::{HandshakeResult, Session};
use crate::sync::lock;

/// Maximum number of connections that wait to be accepted.
pub const ACCEPT_QUEUE: usize = 1024;
/// Maximum number of failed handshakes that wait to be reported.
pub const MAX_QUEUED_FAILURES: usize = 64;
/// A handshake that starts later than this is refused, so that its peer retries under less load instead of timing out halfway.
const MAX_START_DELAY: Duration = Duration::from_secs(2);
const DRAIN_TIMEOUT: Duration = Duration::from_millis(300);

/// What applies to the handshakes that start from now on.
struct Settings {
    tls: ServerTls,
    transport: Transport,
    limits: HandshakeLimits,
}

pub struct Listener {
    pub address: String,
    pub accept_queue: Arc<AcceptQueue<HandshakeResult>>,
    pub suppressed: Arc<SuppressedErrors>,
    endpoint: Endpoint,
    /// Owned by the endpoint and its connections.
    socket: Weak<Socket>,
    domain: Domain,
    settings: Arc<Mutex<Arc<Settings>>>,
    alpn: Vec<String>,
    open: watch::Sender<bool>,
}

impl Listener {
    pub fn open(
        sockets: &Sockets,
        address: &str,
        tls: &ServerTls,
        alpn: Vec<String>,
        transport: Transport,
        limits: HandshakeLimits,
        warn: &Warn,
    ) -> Result<Self, NetError> {
        let config = server_config(tls, &alpn, &transport)?;
        let failed = |e: std::io::Error| NetError::bind(&e, address);
        let (socket, relays) = match sockets.take(Kind::Udp, address) {
            Some(passed) => (passed.socket.into(), passed.relays),
            None => (udp::bind(address, sockets.sharing().as_ref(), warn)?, Vec::new()),
        };
        let _guard = sockets.runtime.enter();
        let key = key_of_ids(tls)?;
        let siblings = sockets.sharing().map(|sharing| Siblings::open(&sharing, socket.local_addr()?));
        let succession = match siblings.transpose().map_err(failed)? {
            Some(siblings) => Succession::of_siblings(key, siblings),
            None => Succession::new(key, relays, sockets.gate().is_open()),
        };
        let endpoint_config = transport.server_endpoint(tls, succession.generation)?;
        let socket = Socket::listen(socket, succession).map_err(failed)?;
        sockets.offer(Kind::Udp, address, &socket);
        let held = Arc::downgrade(&socket);
        let endpoint =
            Endpoint::new_with_abstract_socket(endpoint_config, Some(config), socket, Arc::new(CoalescingRuntime)).map_err(failed)?;
        let bound = endpoint.local_addr().map_err(failed)?;
        let accept_queue = Arc::new(AcceptQueue::new(ACCEPT_QUEUE));
        let (open, closed) = watch::channel(true);
        let suppressed = Arc::new(SuppressedErrors::default());
        let settings = Arc::new(Mutex::new(Arc::new(Settings {
            tls: tls.clone(),
            transport,
            limits,
        })));
        let limiter = HandshakeLimiter {
            accept_queue: accept_queue.clone(),
            suppressed: suppressed.clone(),
            settings: settings.clone(),
            socket: held.clone(),
        };
        sockets.runtime.spawn(accept(endpoint.clone(), limiter, closed));
        Ok(Self {
            address: bound.to_string(),
            accept_queue,
            suppressed,
            endpoint,
            socket: held,
            domain: Domain::for_address(bound),
            settings,
            alpn,
            open,
        })
    }

    pub fn set_tls(&self, tls: &ServerTls) -> Result<(), NetError> {
        let current = lock(&self.settings).clone();
        self.apply(Settings {
            tls: tls.clone(),
            transport: current.transport.clone(),
            limits: current.limits.clone(),
        })
    }

    /// Replaces transport settings and limits, for handshakes that start from now on.
    pub fn configure(&self, transport: Transport, limits: HandshakeLimits) -> Result<(), NetError> {
        let tls = lock(&self.settings).tls.clone();
        self.apply(Settings { tls, transport, limits })
    }

    fn apply(&self, next: Settings) -> Result<(), NetError> {
        let config = server_config(&next.tls, &self.alpn, &next.transport)?;
        *lock(&self.settings) = Arc::new(next);
        self.endpoint.set_server_config(Some(config));
        Ok(())
    }

    /// Maximum number of streams that a peer may have open.
    pub fn max_streams(&self) -> u32 {
        lock(&self.settings).transport.streams()
    }

    /// Refuses new connections from now on.
    pub fn stop_accepting(&self) {
        if let Some(socket) = self.socket.upgrade() {
            socket.retire();
        }
        self.open.send_replace(false);
        self.accept_queue.close();
    }

    /// Closes every connection. Resolves when the peers of `connections` have been notified.
    pub async fn close(&self, code: u32, reason: &str, connections: Vec<Connection>) {
        self.stop_accepting();
        connections.iter().for_each(signals::lift_cap);
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

    /// Frees the address, which closing connections (RFC 9000 §10.2) and streams still in use would keep: replaces the socket behind their
    /// descriptor.
    fn release(&self) {
        let Some(held) = self.socket.upgrade() else { return };
        let Ok(other) = socket2::Socket::new(self.domain, Type::DGRAM, Some(Protocol::UDP)) else {
            return;
        };
        let _ = other.set_nonblocking(true);
        // SAFETY: `held` and `other` own the two descriptors, so both are open. `held` goes on owning its own.
        unsafe { libc::dup2(other.as_raw_fd(), held.as_raw_fd()) };
        drop(held);
    }

    /// As [`Listener::close`] without waiting.
    pub fn abort(&self) {
        self.stop_accepting();
        self.endpoint.close(0u8.into(), b"");
    }
}

fn server_config(tls: &ServerTls, alpn: &[String], transport: &Transport) -> Result<quinn::ServerConfig, NetError> {
    let crypto = tls::link_server(tls, alpn)?;
    let crypto = QuicServerConfig::try_from(crypto).map_err(|e| NetError::tls("Cannot set up QUIC", e))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport.config()?);
    // valid for a successor, too
    config.token_key(Arc::new(tls::derive_token_key(&tls.key)?));
    Ok(config)
}

/// Accepts connections. Handshakes run concurrently.
async fn accept(endpoint: Endpoint, limiter: HandshakeLimiter, mut closed: watch::Receiver<bool>) {
    let mut handshakes = JoinSet::new();
    let pending = Arc::new(PendingHandshakes::default());
    let HandshakeLimiter {
        accept_queue, settings, ..
    } = &limiter;
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            _ = closed.wait_for(|open| !open) => break,
        };
        let Some(incoming) = incoming else { return };
        while handshakes.try_join_next().is_some() {}
        let settings = lock(settings).clone();
        let limits = &settings.limits;
        let time = limits.time;
        let remote = canonical(incoming.remote_address());
        if accept_queue.is_full() {
            limiter.refuse(incoming, remote, NetErrorCode::Limit, "Too many connections wait to be accepted");
            continue;
        }
        if handshakes.len() >= limits.pending {
            limiter.refuse(incoming, remote, NetErrorCode::Limit, "Too many pending handshakes");
            continue;
        }
        let validated = incoming.remote_address_validated();
        if handshakes.len() >= limits.retry_threshold && !validated {
            let _ = incoming.retry(); // fails only for validated addresses
            continue;
        }
        let permit = match pending.admit(limits.keys.of(remote.ip()), validated, limits.pending_per_address) {
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
                    "Too many pending handshakes from this address",
                );
                continue;
            }
        };
        let remote = remote.to_string();
        let (accept_queue, socket) = (accept_queue.clone(), limiter.socket.clone());
        let arrived = Instant::now();
        handshakes.spawn(async move {
            let _permit = permit;
            if arrived.elapsed() > MAX_START_DELAY {
                return incoming.refuse();
            }
            let error = match timeout(time, async { incoming.accept()?.await }).await {
                Ok(Ok(connection)) => {
                    settings.transport.begin(&connection, &socket);
                    let session = Session::Quic(connection).into();
                    let _ = accept_queue.push(HandshakeResult::Connected(session)); // if the queue is closed, the connection is dropped
                    return;
                }
                Ok(Err(e)) => NetError::quic_connect(&e, &remote),
                Err(_) => NetError::new(
                    NetErrorCode::TimedOut,
                    format!("The handshake with {remote} was not complete within {} ms", time.as_millis()),
                ),
            };
            if accept_queue.len() < MAX_QUEUED_FAILURES {
                let _ = accept_queue.push(HandshakeResult::Failed { remote, error });
            }
        });
    }
    drop(handshakes); // aborts them
    while let Some(incoming) = endpoint.accept().await {
        incoming.refuse(); // refused immediately, an agent tries another proxy instead of timing out
    }
}

/// Refuses handshakes, and reports or counts them.
struct HandshakeLimiter {
    accept_queue: Arc<AcceptQueue<HandshakeResult>>,
    suppressed: Arc<SuppressedErrors>,
    settings: Arc<Mutex<Arc<Settings>>>,
    socket: Weak<Socket>,
}

impl HandshakeLimiter {
    fn refuse(&self, incoming: quinn::Incoming, remote: SocketAddr, code: NetErrorCode, message: &str) {
        incoming.refuse();
        if self.accept_queue.len() < MAX_QUEUED_FAILURES {
            let (remote, error) = (remote.to_string(), NetError::new(code, message));
            let _ = self.accept_queue.push(HandshakeResult::Failed { remote, error });
        // if the queue is closed, it is not reported
        } else if let Some(count) = self.suppressed.of(code) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}
