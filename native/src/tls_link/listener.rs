//! Listeners of TLS links: accept sessions, within limits on handshakes, and close them.
use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use bytes::BytesMut;
use rustls::server::UnbufferedServerConnection;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, Instant};

use super::handshake::establish;
use super::session::{Config, Session};
use super::socket::Socket;
use crate::addon::accept_queue::AcceptQueue;
use crate::error::{NetError, NetErrorCode, Warn};
use crate::handover::sockets::{Gate, Kind, Sockets};
use crate::net::address::canonical;
use crate::net::tcp::listener::{listen, ACCEPT_PAUSE, WARN_INTERVAL};
use crate::net::tls::{self, ServerTls};
use crate::quic::connection::CLOSE_NOTIFY_TIMEOUT;
use crate::quic::handshake_limits::{Admission, HandshakeLimits, PendingHandshakes, SuppressedErrors};
use crate::quic::listener::{ACCEPT_QUEUE, MAX_QUEUED_FAILURES};
use crate::session::{HandshakeResult, Session as AnySession};
use crate::stream::tcp_socket::Tcp;
use crate::stream::Halves;
use crate::sync::lock;
use crate::web_socket::frame::Side;
use crate::web_socket::WebSocket;

/// Bound of the connections that other listeners have passed on and that are not yet admitted. Admitting them takes no time.
const MAX_PASSED: usize = 64;

/// A connection, and the data read from it.
struct Connection {
    socket: Socket,
    incoming: BytesMut,
    remote: SocketAddr,
}

/// The way for connections that another listener has accepted. They are treated as the listener's own.
#[derive(Clone)]
pub struct Handoff {
    alpn: Arc<[String]>,
    connections: mpsc::Sender<Connection>,
}

impl Handoff {
    /// Whether `protocol` (RFC 7301) is one of the listener's.
    pub fn speaks(&self, protocol: &[u8]) -> bool {
        self.alpn.iter().any(|name| name.as_bytes() == protocol)
    }

    /// Passes on a connection whose first bytes, `incoming`, were read. If the listener is closed, the connection is closed.
    pub async fn pass(&self, tcp: Arc<Tcp>, incoming: BytesMut, remote: SocketAddr) {
        let socket = Socket::Tcp(tcp);
        let _ = self.connections.send(Connection { socket, incoming, remote }).await;
    }

    /// Passes on a stream whose upgrade to a WebSocket is complete. If the listener is closed, the stream is reset.
    pub async fn pass_web_socket(&self, halves: Halves, remote: SocketAddr) {
        let connection = Connection {
            socket: Socket::WebSocket(WebSocket::start(halves, Side::Server)),
            incoming: BytesMut::new(),
            remote,
        };
        let _ = self.connections.send(connection).await;
    }
}

pub struct Listener {
    /// Empty if it accepts only what other listeners pass on.
    pub address: String,
    pub handoff: Handoff,
    pub accept_queue: Arc<AcceptQueue<HandshakeResult>>,
    pub suppressed: Arc<SuppressedErrors>,
    settings: Arc<Mutex<Arc<Settings>>>,
    open: watch::Sender<bool>,
}

/// What applies to the handshakes that start from now on.
#[derive(Clone)]
struct Settings {
    tls: Arc<ServerConfig>,
    config: Config,
    limits: HandshakeLimits,
}

impl Listener {
    pub fn open(
        sockets: &Sockets,
        address: Option<&str>,
        tls: &ServerTls,
        alpn: Vec<String>,
        config: Config,
        limits: HandshakeLimits,
        warn: Arc<Warn>,
    ) -> Result<Self, NetError> {
        let tls = server_config(tls, &alpn)?;
        let settings = Arc::new(Mutex::new(Arc::new(Settings { tls, config, limits })));
        let _guard = sockets.runtime.enter();
        let (mut socket, mut bound) = (None, String::new());
        if let Some(address) = address {
            let (opened, at) = listen(sockets, address)?;
            let opened = Arc::new(Mutex::new(Some(opened)));
            sockets.offer(Kind::Tcp, address, &opened);
            (socket, bound) = (Some(opened), at.to_string());
        }
        let (open, closed) = watch::channel(true);
        let (connections, passed) = mpsc::channel(MAX_PASSED);
        let acceptor = Acceptor {
            accept_queue: Arc::new(AcceptQueue::new(ACCEPT_QUEUE)),
            suppressed: Arc::default(),
            settings: settings.clone(),
            warn,
        };
        let (accept_queue, suppressed) = (acceptor.accept_queue.clone(), acceptor.suppressed.clone());
        sockets.runtime.spawn(accept(socket, sockets.gate(), passed, acceptor, closed));
        Ok(Self {
            address: bound,
            handoff: Handoff {
                alpn: alpn.into(),
                connections,
            },
            accept_queue,
            suppressed,
            settings,
            open,
        })
    }

    pub fn set_tls(&self, tls: &ServerTls) -> Result<(), NetError> {
        let tls = server_config(tls, &self.handoff.alpn)?;
        let mut settings = lock(&self.settings);
        *settings = Arc::new(Settings {
            tls,
            ..Settings::clone(&settings)
        });
        Ok(())
    }

    /// Replaces session settings and limits, for handshakes that start from now on.
    pub fn configure(&self, config: Config, limits: HandshakeLimits) {
        let mut settings = lock(&self.settings);
        let tls = settings.tls.clone();
        *settings = Arc::new(Settings { tls, config, limits });
    }

    /// Maximum number of streams that a peer may have open.
    pub fn max_streams(&self) -> u32 {
        lock(&self.settings).config.streams
    }

    /// Refuses new connections from now on, and frees the address.
    pub fn stop_accepting(&self) {
        self.open.send_replace(false);
        self.accept_queue.close();
    }

    /// Closes the sessions. Resolves when the peers have been notified and the address is free.
    pub async fn close(&self, code: u32, reason: &str, sessions: Vec<Arc<Session>>) {
        self.stop_accepting();
        sessions.iter().for_each(|session| session.close(code, reason));
        let notify_all = async {
            for session in &sessions {
                session.done().await;
            }
        };
        let _ = timeout(CLOSE_NOTIFY_TIMEOUT, notify_all).await;
        self.open.closed().await; // the accepting task has dropped the socket
    }
}

fn server_config(tls: &ServerTls, alpn: &[String]) -> Result<Arc<ServerConfig>, NetError> {
    let mut config = tls::link_server(tls, alpn)?;
    config.send_tls13_tickets = 0; // a link lives long, and is not resumed
    config.enable_secret_extraction = true; // for the halves of the records
    Ok(Arc::new(config))
}

struct Acceptor {
    accept_queue: Arc<AcceptQueue<HandshakeResult>>,
    suppressed: Arc<SuppressedErrors>,
    settings: Arc<Mutex<Arc<Settings>>>,
    warn: Arc<Warn>,
}

async fn accept_next(socket: Option<&Mutex<Option<TcpListener>>>) -> std::io::Result<Connection> {
    let Some(socket) = socket else {
        return std::future::pending().await;
    };
    let accepted = poll_fn(|cx| match &*lock(socket) {
        Some(listener) => listener.poll_accept(cx),
        None => Poll::Pending, // it was released
    });
    let (stream, remote) = accepted.await?;
    Ok(Connection {
        socket: Socket::Tcp(Tcp::new(stream)),
        incoming: BytesMut::new(),
        remote: canonical(remote),
    })
}

/// Accepts connections, its own and those that are passed on. Handshakes run concurrently.
async fn accept(
    socket: Option<Arc<Mutex<Option<TcpListener>>>>,
    mut gate: Gate,
    mut passed: mpsc::Receiver<Connection>,
    acceptor: Acceptor,
    mut closed: watch::Receiver<bool>,
) {
    let mut handshakes = JoinSet::new();
    let pending = Arc::new(PendingHandshakes::default());
    let mut warned_at: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            accepted = gate.accept(accept_next(socket.as_deref())) => accepted,
            Some(connection) = passed.recv() => Ok(connection),
            _ = closed.wait_for(|open| !open) => break,
        };
        while handshakes.try_join_next().is_some() {}
        let connection = match accepted {
            Ok(connection) => connection,
            Err(e) if e.kind() == ErrorKind::ConnectionAborted => continue, // closed before it was accepted
            Err(e) => {
                if warned_at.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
                    warned_at = Some(Instant::now());
                    (acceptor.warn)(format!("Agents are waiting because their connections cannot be accepted: {e}"));
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if acceptor.accept_queue.is_full() {
            acceptor.refuse(connection, NetErrorCode::Limit, "Too many connections wait to be accepted");
            continue;
        }
        let settings = lock(&acceptor.settings).clone();
        let limits = &settings.limits;
        if handshakes.len() >= limits.pending {
            acceptor.refuse(connection, NetErrorCode::Limit, "Too many pending handshakes");
            continue;
        }
        // TCP has validated the address
        let Admission::Accept(permit) = pending.admit(limits.keys.of(connection.remote.ip()), true, limits.pending_per_address) else {
            let message = "Too many pending handshakes from this address";
            acceptor.refuse(connection, NetErrorCode::LimitPerAddress, message);
            continue;
        };
        let (accept_queue, time, remote) = (acceptor.accept_queue.clone(), limits.time, connection.remote);
        let (tls, config) = (settings.tls.clone(), settings.config.clone());
        handshakes.spawn(async move {
            let _permit = permit;
            let error = match timeout(time, serve(connection, tls, config)).await {
                Ok(Ok(session)) => {
                    let session = AnySession::TlsLink(session).into();
                    let _ = accept_queue.push(HandshakeResult::Connected(session)); // if the queue is closed, the session is closed
                    return;
                }
                Ok(Err(error)) if error.code == NetErrorCode::Refused => return, // a health check
                Ok(Err(error)) => error,
                Err(_) => NetError::new(
                    NetErrorCode::TimedOut,
                    format!("The handshake with {remote} was not complete within {} ms", time.as_millis()),
                ),
            };
            if accept_queue.len() < MAX_QUEUED_FAILURES {
                let remote = remote.to_string();
                let _ = accept_queue.push(HandshakeResult::Failed { remote, error });
            }
        });
    }
    // aborts the handshakes and frees the address
}

async fn serve(connection: Connection, tls: Arc<ServerConfig>, config: Config) -> Result<Arc<Session>, NetError> {
    let Connection { socket, incoming, remote } = connection;
    let what = remote.to_string();
    socket.set_up().map_err(|e| NetError::connect(&e, &what))?;
    let tls = UnbufferedServerConnection::new(tls).map_err(|e| NetError::tls("Cannot set up TLS", e))?;
    establish(socket, incoming, tls.into(), config, what.clone(), &what).await
}

impl Acceptor {
    /// Closes the connection with a reset, and reports or counts it.
    fn refuse(&self, Connection { socket, remote, .. }: Connection, code: NetErrorCode, message: &str) {
        socket.reset_on_drop();
        drop(socket);
        if self.accept_queue.len() < MAX_QUEUED_FAILURES {
            let (remote, error) = (remote.to_string(), NetError::new(code, message));
            let _ = self.accept_queue.push(HandshakeResult::Failed { remote, error });
        // if the queue is closed, it is not reported
        } else if let Some(count) = self.suppressed.of(code) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}
