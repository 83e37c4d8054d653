//! Everything that JavaScript holds, by handle.
use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::accept_queue::AcceptQueue;
use super::completion_queue::{CallResult, CompletionQueue, Promise, Value};
use crate::error::{NetError, Warn};
use crate::handover::channel::{Channel, ChannelListener};
use crate::handover::sockets::Sockets;
use crate::http::head::{Incoming, TlsPeer};
use crate::http2::client::Client as Http2Client;
use crate::net::resolver::config::Paths;
use crate::net::resolver::Resolver;
use crate::net::tcp;
use crate::net::tls::LastConnector;
use crate::net::udp_listener;
use crate::relay::rate::{Rate, RateLimiter};
use crate::runtime::release_memory_periodically;
use crate::runtime::watchdog::RuntimeWatchdog;
use crate::session::{Session, SessionListener};
use crate::stream::{CancelSignal, Halves, Stream};
use crate::sync::lock;

pub enum Cancel {
    Task(AbortHandle),
    Splice(Arc<CancelSignal>),
}

pub struct Connection {
    pub session: Session,
    /// The listener that accepted it; 0 for an outgoing connection.
    pub listener: u64,
    /// Maximum number of streams that the peer may have open.
    pub max_streams: u32,
    pub streams: OnceLock<Arc<AcceptQueue<Halves>>>,
    pub requests: OnceLock<Arc<AcceptQueue<Incoming>>>,
    /// Changes when the pending requests are cancelled.
    pub cancel_requests: watch::Sender<()>,
}

impl Connection {
    /// As [`Session::request`], but cancellable.
    pub fn request(
        self: Arc<Self>,
        head: &[u8],
        limit: Duration,
        bytes: usize,
        datagrams: bool,
    ) -> impl Future<Output = Result<(Halves, Bytes), NetError>> {
        let head = Bytes::copy_from_slice(head);
        let mut cancel_requests = self.cancel_requests.subscribe(); // subscribed before returning: a later cancellation must include this request
        async move {
            tokio::select! {
                response = self.session.request(head, limit, bytes, datagrams) => response,
                _ = cancel_requests.changed() => Err(NetError::cancelled()),
            }
        }
    }
}

/// State of one engine: all that JavaScript holds, by handle.
pub struct EngineState {
    pub completions: Arc<CompletionQueue>,
    pub runtime: &'static Handle,
    pub watchdog: Arc<RuntimeWatchdog>,
    pub resolver: Arc<Resolver>,
    pub connector: LastConnector,
    pub next: AtomicU64,
    pub streams: Table<Stream>,
    pub connections: Table<Connection>,
    pub tcp_listeners: Table<tcp::listener::Listener>,
    pub udp_listeners: Table<udp_listener::Listener>,
    pub http2_clients: Table<Http2Client>,
    pub session_listeners: Table<SessionListener>,
    pub sockets: Arc<Sockets>,
    pub channel_listeners: Table<ChannelListener>,
    pub channels: Table<Channel>,
    pub rates: Table<Rate>,
    pub cancels: Mutex<HashMap<u64, Cancel>>,
    /// Its reference count is the number of splices plus one.
    pub splices: Arc<()>,
    pub warned: AtomicBool,
    pub closed: AtomicBool,
    /// Only if the engine owns the process.
    pub memory_release: Option<AbortHandle>,
}

/// Above this number of splices JavaScript is busy, and one more wake-up per splice costs more than it gains.
const MANY_SPLICES: usize = 8;
/// The number under which warnings are delivered. No call has it.
const WARNING: f64 = 0.0;

/// Objects by handle.
pub type Table<T> = Mutex<HashMap<u64, Arc<T>>>;

/// Resources that are closed with the engine.
pub trait Closable {
    fn close_now(&self);
}

impl Closable for Stream {
    fn close_now(&self) {
        self.abort();
    }
}

impl Closable for Connection {
    fn close_now(&self) {
        self.session.close(0, "");
    }
}

impl Closable for tcp::listener::Listener {
    fn close_now(&self) {
        self.close();
    }
}

impl Closable for udp_listener::Listener {
    fn close_now(&self) {
        self.close();
    }
}

impl Closable for Http2Client {
    fn close_now(&self) {
        self.abort();
    }
}

impl Closable for SessionListener {
    fn close_now(&self) {
        self.abort();
    }
}

impl Closable for ChannelListener {
    fn close_now(&self) {
        self.close();
    }
}

impl Closable for Channel {
    fn close_now(&self) {
        self.close();
    }
}

impl EngineState {
    pub fn new(completions: Arc<CompletionQueue>, runtime: &'static Handle, owns_process: bool) -> Self {
        Self {
            completions,
            runtime,
            watchdog: RuntimeWatchdog::new(),
            resolver: Resolver::new(runtime.clone(), Paths::default()),
            connector: LastConnector::default(),
            next: AtomicU64::new(1),
            streams: Mutex::default(),
            connections: Mutex::default(),
            tcp_listeners: Mutex::default(),
            udp_listeners: Mutex::default(),
            http2_clients: Mutex::default(),
            session_listeners: Mutex::default(),
            sockets: Arc::new(Sockets::new(runtime.clone())),
            channel_listeners: Mutex::default(),
            channels: Mutex::default(),
            rates: Mutex::default(),
            cancels: Mutex::default(),
            splices: Arc::default(),
            warned: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            memory_release: owns_process.then(|| runtime.spawn(release_memory_periodically()).abort_handle()),
        }
    }

    pub fn insert<T: Closable>(&self, table: &Table<T>, item: Arc<T>) -> Value {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut table = lock(table);
        // `close` sets the flag before it empties the table, so it would miss this item
        if self.closed.load(Ordering::SeqCst) {
            drop(table);
            item.close_now();
        } else {
            table.insert(id, item);
        }
        Value::Number(id as f64)
    }

    /// Settles a result that only metrics and logs wait for. It is deferred under load.
    pub fn settle_low_priority(&self, promise: Promise, value: Value) {
        if Arc::strong_count(&self.splices) > MANY_SPLICES {
            promise.settle_deferred(value);
        } else {
            promise.settle(Ok(value));
        }
    }

    pub fn promise(&self, op: f64) -> Promise {
        Promise::new(&self.completions, op)
    }

    /// Returns a function that logs a warning.
    pub fn warner(self: &Arc<Self>) -> Arc<Warn> {
        let state = self.clone();
        Arc::new(move |message| state.promise(WARNING).settle(Ok(Value::Text(message))))
    }

    /// As [`EngineState::warner`], but warns only once.
    pub fn one_time_warner(self: &Arc<Self>) -> Arc<Warn> {
        let (state, warn) = (self.clone(), self.warner());
        Arc::new(move |message| {
            if !state.warned.swap(true, Ordering::Relaxed) {
                warn(message);
            }
        })
    }

    /// A limiter over the rates that still exist.
    pub fn rate_limiter(&self, rates: &[f64]) -> RateLimiter {
        if rates.is_empty() {
            return RateLimiter::default();
        }
        let known = lock(&self.rates);
        RateLimiter::new(rates.iter().filter_map(|id| known.get(&(*id as u64)).cloned()).collect())
    }

    pub fn stream(&self, id: f64) -> Option<Arc<Stream>> {
        lock(&self.streams).get(&(id as u64)).cloned()
    }

    pub fn connection(&self, id: f64) -> Option<Arc<Connection>> {
        lock(&self.connections).get(&(id as u64)).cloned()
    }

    pub fn add_stream(&self, halves: Halves) -> Value {
        self.insert(&self.streams, Stream::new(halves))
    }

    pub fn add_connection(&self, session: Session, listener: u64, max_streams: u32) -> Value {
        let (remote, alpn, certificate, kind) = (session.remote(), session.alpn(), session.peer_certificate(), session.kind());
        let connection = Connection {
            session,
            listener,
            max_streams,
            streams: OnceLock::new(),
            requests: OnceLock::new(),
            cancel_requests: watch::Sender::new(()),
        };
        let id = self.insert(&self.connections, Arc::new(connection));
        Value::Array(vec![
            id,
            Value::Text(remote),
            Value::Text(alpn),
            certificate.map_or(Value::Undefined, Value::Bytes),
            Value::Text(kind.into()),
        ])
    }

    /// Returns what has arrived in the queue of a listener, as [`EngineState::add_incoming`] describes; null once the listener is closed.
    pub fn accept(self: &Arc<Self>, op: f64, accept_queue: Option<Arc<AcceptQueue<Incoming>>>) {
        let promise = self.promise(op);
        let Some(accept_queue) = accept_queue else {
            return promise.settle(Ok(Value::Null));
        };
        let state = self.clone();
        accept_queue.accept(promise, usize::MAX, move |items| state.add_incoming(items));
    }

    /// A flat array with six values per item: stream, remote address, local address, head or server name, error, and what is known by TLS and
    /// HTTP/2: server name, certificate, whether it is a stream of HTTP/2.
    pub fn add_incoming(&self, items: Vec<Incoming>) -> Value {
        let mut out = Vec::with_capacity(items.len() * 6);
        for Incoming {
            halves,
            remote,
            peer,
            is_http2,
            local,
            head,
            error,
        } in items
        {
            let stream = match halves {
                Some(halves) => Stream::new(halves),
                None => Stream::dead(),
            };
            out.push(self.insert(&self.streams, stream));
            out.push(Value::Text(remote));
            out.push(local.map_or(Value::Undefined, Value::Text));
            out.push(head.map_or(Value::Undefined, Value::Latin1));
            out.push(error.as_ref().map_or(Value::Undefined, Value::from));
            let TlsPeer { server_name, certificate } = peer;
            out.push(match is_http2 || server_name.is_some() || certificate.is_some() {
                false => Value::Undefined,
                true => Value::Array(vec![
                    server_name.map_or(Value::Undefined, Value::Text),
                    certificate.map_or(Value::Undefined, Value::Bytes),
                    Value::Bool(is_http2),
                ]),
            });
        }
        Value::Array(out)
    }

    /// Runs `work` as a task whose result settles `op`.
    pub fn run(self: &Arc<Self>, op: f64, cancellable: bool, work: impl Future<Output = CallResult> + Send + 'static) {
        if self.closed.load(Ordering::SeqCst) {
            return drop(self.promise(op));
        }
        let promise = self.promise(op).or(NetError::cancelled());
        let state = self.clone();
        if !cancellable {
            self.runtime.spawn(async move { promise.settle(work.await) });
            return;
        }
        // locked until the task is registered: it must not finish before
        let mut cancels = lock(&self.cancels);
        let task = self.runtime.spawn(async move {
            let result = work.await;
            lock(&state.cancels).remove(&(op as u64));
            promise.settle(result);
        });
        cancels.insert(op as u64, Cancel::Task(task.abort_handle()));
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.memory_release.iter().for_each(AbortHandle::abort);
        let cancels = std::mem::take(&mut *lock(&self.cancels));
        cancels.into_values().for_each(Cancel::cancel);
        close_all(&self.tcp_listeners);
        close_all(&self.udp_listeners);
        close_all(&self.session_listeners);
        close_all(&self.channel_listeners);
        close_all(&self.channels);
        close_all(&self.connections);
        close_all(&self.http2_clients);
        close_all(&self.streams);
        lock(&self.rates).clear();
    }
}

fn close_all<T: Closable>(table: &Table<T>) {
    let all = std::mem::take(&mut *lock(table));
    all.values().for_each(|item| item.close_now());
}

impl Cancel {
    pub fn cancel(self) {
        match self {
            Self::Task(task) => task.abort(),
            Self::Splice(cancel) => cancel.cancel(),
        }
    }
}
