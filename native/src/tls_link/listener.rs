//! Listeners of TLS links: accept sessions, within limits on handshakes, and close them.
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::server::UnbufferedServerConnection;
use rustls::ServerConfig;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, Instant};

use super::handshake::establish;
use super::link::set_up;
use super::session::{Config, Session};
use crate::addon::accept_queue::AcceptQueue;
use crate::error::{NetError, NetErrorCode, Warn};
use crate::net::address::canonical;
use crate::net::tcp::listener::{bind, ACCEPT_PAUSE, WARN_INTERVAL};
use crate::net::tls::{self, ServerTls, TLS_1_3};
use crate::quic::connection::CLOSE_NOTIFY_TIMEOUT;
use crate::quic::handshake_limits::{Admission, HandshakeLimits, PendingHandshakes, SuppressedErrors};
use crate::quic::listener::{ACCEPT_QUEUE, MAX_QUEUED_FAILURES};
use crate::session::{HandshakeResult, Session as AnySession};
use crate::sync::lock;

pub struct Listener {
    pub address: String,
    pub accept_queue: Arc<AcceptQueue<HandshakeResult>>,
    pub suppressed: Arc<SuppressedErrors>,
    pub max_streams: u32,
    tls: Arc<Mutex<Arc<ServerConfig>>>,
    alpn: Vec<String>,
    open: watch::Sender<bool>,
}

impl Listener {
    pub fn open(
        runtime: &Handle,
        address: &str,
        tls: &ServerTls,
        alpn: Vec<String>,
        config: Config,
        limits: HandshakeLimits,
        warn: Arc<Warn>,
    ) -> Result<Self, NetError> {
        let tls = Arc::new(Mutex::new(server_config(tls, &alpn)?));
        let socket = bind(address)?;
        let _guard = runtime.enter();
        let socket = TcpListener::from_std(socket.into()).map_err(|e| NetError::bind(&e, address))?;
        let bound = socket.local_addr().map_err(|e| NetError::bind(&e, address))?;
        let (open, closed) = watch::channel(true);
        let acceptor = Acceptor {
            accept_queue: Arc::new(AcceptQueue::new(ACCEPT_QUEUE)),
            suppressed: Arc::default(),
            limits,
            config,
            tls: tls.clone(),
            warn,
        };
        let (accept_queue, suppressed, max_streams) = (acceptor.accept_queue.clone(), acceptor.suppressed.clone(), acceptor.config.streams);
        runtime.spawn(accept(socket, acceptor, closed));
        Ok(Self {
            address: bound.to_string(),
            accept_queue,
            suppressed,
            max_streams,
            tls,
            alpn,
            open,
        })
    }

    pub fn set_tls(&self, tls: &ServerTls) -> Result<(), NetError> {
        *lock(&self.tls) = server_config(tls, &self.alpn)?;
        Ok(())
    }

    /// Refuses new connections from now on, and frees the address.
    pub fn stop_accepting(&self) {
        self.open.send_replace(false);
        self.accept_queue.close();
    }

    /// Closes the sessions. Resolves when their peers were told and the address is free.
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
    let mut config = tls::server_with(tls::fast_provider(), tls, TLS_1_3, alpn)?;
    config.send_tls13_tickets = 0; // a link lives long, and is not resumed
    Ok(Arc::new(config))
}

struct Acceptor {
    accept_queue: Arc<AcceptQueue<HandshakeResult>>,
    suppressed: Arc<SuppressedErrors>,
    limits: HandshakeLimits,
    config: Config,
    tls: Arc<Mutex<Arc<ServerConfig>>>,
    warn: Arc<Warn>,
}

/// Accepts connections. Handshakes run concurrently.
async fn accept(socket: TcpListener, acceptor: Acceptor, mut closed: watch::Receiver<bool>) {
    let mut handshakes = JoinSet::new();
    let pending = Arc::new(PendingHandshakes::default());
    let limits = &acceptor.limits;
    let mut warned_at: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = closed.wait_for(|open| !open) => break,
        };
        while handshakes.try_join_next().is_some() {}
        let (stream, remote) = match accepted {
            Ok((stream, remote)) => (stream, canonical(remote)),
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
            acceptor.refuse(stream, remote, NetErrorCode::Limit, "Too many connections wait to be accepted");
            continue;
        }
        if handshakes.len() >= limits.pending {
            acceptor.refuse(stream, remote, NetErrorCode::Limit, "Too many pending handshakes");
            continue;
        }
        // TCP has validated the address
        let Admission::Accept(permit) = pending.admit(limits.keys.of(remote.ip()), true, limits.pending_per_address) else {
            let message = "Too many pending handshakes from this address";
            acceptor.refuse(stream, remote, NetErrorCode::LimitPerAddress, message);
            continue;
        };
        let (accept_queue, time) = (acceptor.accept_queue.clone(), limits.time);
        let (tls, config) = (lock(&acceptor.tls).clone(), acceptor.config.clone());
        handshakes.spawn(async move {
            let _permit = permit;
            let error = match timeout(time, serve(stream, tls, config, remote)).await {
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

async fn serve(stream: TcpStream, tls: Arc<ServerConfig>, config: Config, remote: SocketAddr) -> Result<Arc<Session>, NetError> {
    let what = remote.to_string();
    set_up(&stream).map_err(|e| NetError::connect(&e, &what))?;
    let connection = UnbufferedServerConnection::new(tls).map_err(|e| NetError::tls("Cannot set up TLS", e))?;
    establish(stream, connection.into(), config, what.clone(), &what).await
}

impl Acceptor {
    /// Closes the connection with a reset, and reports or counts it.
    fn refuse(&self, stream: TcpStream, remote: SocketAddr, code: NetErrorCode, message: &str) {
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO)); // fails if the connection has ended
        drop(stream);
        if self.accept_queue.len() < MAX_QUEUED_FAILURES {
            let (remote, error) = (remote.to_string(), NetError::new(code, message));
            let _ = self.accept_queue.push(HandshakeResult::Failed { remote, error });
        // if the queue is closed, it is not reported
        } else if let Some(count) = self.suppressed.of(code) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}
