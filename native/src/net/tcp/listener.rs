//! TCP listeners, with or without TLS. A listener delivers streams after their preamble, or with the reason why it could not be read.
use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{watch, Notify};
use tokio::task::AbortHandle;
use tokio::time::{timeout, Instant};

use super::accepted::{prepare, read_proxy_header, Current, Settings, Shared};
use super::keepalive;
use super::preamble::Preamble;
use super::tls_accept::ServerConfigs;
use crate::addon::accept_queue::AcceptQueue;
use crate::error::{NetError, NetErrorCode, Warn};
use crate::handover::channel::duplicate;
use crate::handover::sockets::{Gate, Kind, Listening, Passed, Sockets};
use crate::http::head::Incoming;
use crate::http::pending_heads::PendingHeads;
use crate::http2::connection::ListenerState;
use crate::net::address::{bind_first, canonical};
use crate::net::sharing::{self, Sharing};
use crate::net::tls::ServerTls;
use crate::stream::tcp_socket::Tcp;
use crate::sync::lock;

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

/// The listening socket. Taking it out frees the address at once, whatever the task is doing.
type Slot = Arc<Mutex<Option<TcpListener>>>;

impl Listening for Mutex<Option<TcpListener>> {
    fn pass(&self) -> std::io::Result<Passed> {
        let socket = lock(self);
        let socket = socket.as_ref().ok_or(ErrorKind::NotConnected)?;
        Ok(duplicate(socket)?.into())
    }

    fn release(&self) {
        drop(lock(self).take());
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
            state: watch::Sender::new(ListenerState::Accepting),
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

    /// Goes on accepting, but sends clients of HTTP/2 elsewhere after their first request.
    pub fn start_draining(&self) {
        self.shared.state.send_if_modified(|state| {
            let is_new = *state == ListenerState::Accepting;
            *state = (*state).max(ListenerState::Draining);
            is_new
        });
    }

    /// Stops accepting and frees the address soon. Clients that have already connected are still delivered.
    pub fn stop_accepting(&self) {
        self.stop.notify_one();
    }

    /// Frees the address immediately and drops heads that are being read.
    pub fn close(&self) {
        drop(lock(&self.socket).take());
        self.task.abort();
        self.shared.state.send_replace(ListenerState::Stopped);
        self.accept_queue.close();
    }
}

/// The predecessor's socket, or a new one, and its address. Requires the runtime.
pub fn listen(sockets: &Sockets, address: &str) -> Result<(TcpListener, SocketAddr), NetError> {
    let socket = match sockets.take(Kind::Tcp, address) {
        Some(passed) => passed.socket.into(),
        None => bind(address, sockets.sharing().as_ref())?.into(),
    };
    let socket = TcpListener::from_std(socket).map_err(|e| NetError::bind(&e, address))?;
    let bound = socket.local_addr().map_err(|e| NetError::bind(&e, address))?;
    Ok((socket, bound))
}

fn bind(address: &str, sharing: Option<&Sharing>) -> Result<Socket, NetError> {
    bind_first(address, |candidate| {
        let socket = sharing::bind(sharing, candidate, || {
            let socket = Socket::new(Domain::for_address(candidate), Type::STREAM, Some(Protocol::TCP))?;
            if candidate.is_ipv6() {
                socket.set_only_v6(!candidate.ip().is_unspecified())?;
            }
            socket.set_reuse_address(true)?; // a restart does not wait for TIME_WAIT
            socket.set_nonblocking(true)?;
            // accepted connections inherit these on Linux and macOS
            socket.set_tcp_nodelay(true)?;
            socket.set_tcp_keepalive(&keepalive())?;
            Ok(socket)
        })?;
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
                shared.state.send_replace(ListenerState::Stopped);
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
