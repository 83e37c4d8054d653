//! The native engine of reverse-http: sockets, TLS, QUIC and the copying of bytes, behind the contract of `shared/net/types.ts`.
//!
//! JavaScript holds everything by number and says which number a call's result is to come under. Nothing here decides who may connect
//! where, or what is answered: that is TypeScript's part.
mod accept_queue;
mod address;
mod allocator;
mod budget;
mod completion_queue;
mod congestion;
mod dns;
mod error;
mod half;
mod handles;
mod happy_eyeballs;
mod head;
mod probe;
mod process;
mod proxy_protocol;
mod quic;
mod rate;
mod resolver;
mod resolver_config;
mod runtime_watchdog;
mod splice;
mod splice_job;
mod stream;
mod tcp;
mod tls;
mod window;
mod write_coalescing;

/// What `native/fuzz` gets hold of.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    pub use crate::address::{canonical, display, interleave, to_bind};
    pub use crate::error::{NetError, NetErrorCode};
    pub use crate::head::HeadScanner;
    pub use crate::proxy_protocol::{parse as parse_proxy_header, Header as ProxyHeader};
    pub use crate::tls::{client, server, server_name, ClientTls, Der, ServerTls, TCP_VERSIONS};
}

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use napi::bindgen_prelude::*;
use napi_derive::napi;

use accept_queue::AcceptQueue;
use address::AddressKeys;
use completion_queue::{CompletionQueue, Value};
use error::{NetError, NetErrorCode};
use handles::EngineState;
use happy_eyeballs::DialTarget;
use rate::Rate;
use resolver::Purpose;
use splice_job::SpliceJob;
use tcp::{HeadLimits, Peers};
use tls::{ClientTls, ServerTls};

/// A panic elsewhere must not make every later call panic too.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[napi(object)]
pub struct HeadOptions {
    pub limit: u32,
    pub timeout_ms: u32,
    pub max_pending: u32,
    pub max_pending_per_address: u32,
    /// Networks whose addresses are not counted one by one.
    pub exempt: Vec<String>,
    /// Networks whose connections begin with a header of the PROXY protocol.
    pub proxy_protocol: Vec<String>,
}

impl From<&HeadOptions> for HeadLimits {
    fn from(options: &HeadOptions) -> Self {
        Self {
            bytes: options.limit as usize,
            time: millis(options.timeout_ms),
            pending: options.max_pending as usize,
            pending_per_address: options.max_pending_per_address as usize,
        }
    }
}

#[napi(object)]
pub struct HandshakeOptions {
    pub timeout_ms: u32,
    pub max_pending: u32,
    pub max_pending_per_address: u32,
    /// Networks whose addresses are not counted one by one.
    pub exempt: Vec<String>,
    pub retry_threshold: u32,
}

#[napi(object, object_to_js = false)]
pub struct ConnectQuic {
    pub host: String,
    pub port: u16,
    pub server_name: Option<String>,
    pub tls: ClientTls,
    pub alpn: Vec<String>,
    pub transport: quic::Transport,
    pub timeout_ms: u32,
}

fn millis(ms: u32) -> Duration {
    Duration::from_millis(ms.into())
}

/// Code and message, for calls that answer at once.
fn raw_result(result: std::result::Result<(), NetError>) -> Option<Vec<String>> {
    result.err().map(|error| vec![error.code.as_str().to_owned(), error.message])
}

fn closed(what: &str) -> NetError {
    NetError::new(NetErrorCode::Closed, format!("Cannot use the {what}: it is closed"))
}

/// See [`process::notify`]. What went wrong, where something did.
#[napi]
pub fn notify_supervisor(socket: String, state: String) -> Option<String> {
    process::notify(&socket, &state).err().map(|e| e.to_string())
}

/// The engine. `op` is the number under which the callback gets a call's result.
#[napi]
pub struct Engine {
    state: Arc<EngineState>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.state.completions.detach();
        self.state.close();
    }
}

#[napi]
impl Engine {
    /// `callback` gets an array of three values a result: number of the call, error or undefined, value. Who owns the process gets as many
    /// descriptors for it as there may be, and keeps no code in memory that only the start needs.
    #[napi(constructor)]
    pub fn new(env: Env, callback: Function<'_, Unknown<'_>, ()>, threads: u32, owns_process: bool) -> Result<Self> {
        let runtime = handles::runtime(threads).map_err(|e| Error::from_reason(format!("Cannot start the native engine: {e}")))?;
        let completions = CompletionQueue::new(&env, &callback)?;
        if owns_process {
            let _ = process::raise_descriptor_limit(); // one that cannot be raised stays as it is
        }
        Ok(Self {
            state: Arc::new(EngineState::new(completions, runtime, owns_process)),
        })
    }

    /// Whether results to come keep the program alive.
    #[napi]
    pub fn hold(&self, env: Env, on: bool) {
        self.state.completions.hold(&env, on);
    }

    /// Ends everything.
    #[napi]
    pub fn close(&self) {
        self.state.close();
    }

    /// What is held: streams, connections, TCP listeners, QUIC listeners.
    #[napi]
    pub fn held(&self) -> Vec<u32> {
        let state = &self.state;
        let listeners = [lock(&state.tcp_listeners).len(), lock(&state.quic_listeners).len()];
        [
            lock(&state.streams).len(),
            lock(&state.connections).len(),
            listeners[0],
            listeners[1],
        ]
        .map(|n| n as u32)
        .to_vec()
    }

    /// Milliseconds for which the runtime has not got to run; see [`RuntimeWatchdog::stalled_for`].
    #[napi]
    pub fn stalled_ms(&self) -> f64 {
        self.state.watchdog.stalled_for(self.state.runtime).as_millis() as f64
    }

    /// Bytes that all tunnels of the process may buffer; 0 for no limit. See [`budget`].
    #[napi]
    pub fn limit_buffers(&self, bytes: f64) {
        budget::set_limit(self.state.runtime, bytes as u64);
    }

    /// Bytes that tunnels that wait for their peers buffer.
    #[napi]
    pub fn buffered_bytes(&self) -> f64 {
        budget::used() as f64
    }

    /// Gives a call up; its result is then `cancelled`, unless it was there already.
    #[napi]
    pub fn cancel(&self, op: f64) {
        let cancel = lock(&self.state.cancels).remove(&(op as u64));
        if let Some(cancel) = cancel {
            cancel.cancel();
        }
    }

    // ---- TLS

    /// Why a server cannot use these settings, where it cannot.
    #[napi]
    pub fn check_server_tls(&self, tls: ServerTls) -> Option<Vec<String>> {
        raw_result(tls::server(&tls, tls::TCP_VERSIONS, &[]).map(drop))
    }

    /// Why a client cannot use these settings, where it cannot.
    #[napi]
    pub fn check_client_tls(&self, tls: ClientTls) -> Option<Vec<String>> {
        raw_result(tls::client(&tls, tls::TCP_VERSIONS, &[]).map(drop))
    }

    // ---- TCP

    /// Listener and address.
    #[napi]
    pub fn listen_tcp(&self, op: f64, address: String, tls: Option<ServerTls>, heads: HeadOptions) {
        let state = self.state.clone();
        self.state.run(op, false, async move {
            let peers = Peers {
                keys: AddressKeys::new(&heads.exempt)?,
                balancers: AddressKeys::new(&heads.proxy_protocol)?,
            };
            let listener = tcp::Listener::open(
                state.runtime,
                &address,
                tls.as_ref(),
                HeadLimits::from(&heads),
                peers,
                state.warner(),
            )?;
            let bound = Value::Text(listener.address.clone());
            Ok(Value::Array(vec![state.insert(&state.tcp_listeners, Arc::new(listener)), bound]))
        });
    }

    /// See `EngineState::add_incoming`; null once it is closed.
    #[napi]
    pub fn tcp_accept(&self, op: f64, listener: f64) {
        let promise = self.state.promise(op);
        let Some(listener) = lock(&self.state.tcp_listeners).get(&(listener as u64)).cloned() else {
            return promise.settle(Ok(Value::Null));
        };
        let state = self.state.clone();
        listener
            .accept_queue
            .accept(promise, usize::MAX, move |items| state.add_incoming(items));
    }

    #[napi]
    pub fn tcp_set_tls(&self, listener: f64, tls: ServerTls) -> Option<Vec<String>> {
        let listener = lock(&self.state.tcp_listeners).get(&(listener as u64)).cloned();
        raw_result(
            listener
                .ok_or_else(|| closed("listener"))
                .and_then(|listener| listener.set_tls(&tls)),
        )
    }

    #[napi]
    pub fn tcp_stop_accepting(&self, listener: f64) {
        let listener = lock(&self.state.tcp_listeners).get(&(listener as u64)).cloned();
        if let Some(listener) = listener {
            listener.stop_accepting();
        }
    }

    #[napi]
    pub fn tcp_close(&self, listener: f64) {
        let listener = lock(&self.state.tcp_listeners).remove(&(listener as u64));
        if let Some(listener) = listener {
            listener.close();
        }
    }

    /// Stream and remote.
    #[napi]
    pub fn connect_tcp(&self, op: f64, host: String, port: u16, addresses: Option<Vec<String>>, timeout_ms: u32, tls: Option<ClientTls>) {
        let state = self.state.clone();
        self.state.run(op, true, async move {
            let target = addresses.map_or(Ok(DialTarget::Name), |given| DialTarget::addresses(&given, port))?;
            let tls = tls.map(|tls| state.connector.get(tls)).transpose()?;
            let (halves, remote) = tcp::dial(&state.resolver, host, port, target, millis(timeout_ms), tls).await?;
            Ok(Value::Array(vec![state.add_stream(halves), Value::Text(remote)]))
        });
    }

    /// Every address of a name.
    #[napi]
    pub fn resolve(&self, op: f64, host: String, timeout_ms: u32, is_own: bool) {
        let resolver = self.state.resolver.clone();
        let purpose = if is_own { Purpose::Link } else { Purpose::Tunnel };
        self.state.run(op, true, async move {
            let addresses = happy_eyeballs::resolve((&resolver, purpose), &host, millis(timeout_ms)).await?;
            Ok(Value::Array(
                addresses.iter().map(|address| Value::Text(address::host(address))).collect(),
            ))
        });
    }

    // ---- QUIC

    /// Listener and address.
    #[napi]
    pub fn listen_quic(
        &self,
        op: f64,
        address: String,
        tls: ServerTls,
        alpn: Vec<String>,
        transport: quic::Transport,
        handshakes: HandshakeOptions,
    ) {
        let state = self.state.clone();
        self.state.run(op, false, async move {
            let limits = quic::HandshakeLimits {
                time: millis(handshakes.timeout_ms),
                pending: handshakes.max_pending as usize,
                pending_per_address: handshakes.max_pending_per_address as usize,
                keys: AddressKeys::new(&handshakes.exempt)?,
                retry_threshold: handshakes.retry_threshold as usize,
            };
            let listener = quic::Listener::open(state.runtime, &address, &tls, alpn, transport, limits, &*state.one_time_warner())?;
            let bound = Value::Text(listener.address.clone());
            Ok(Value::Array(vec![state.insert(&state.quic_listeners, Arc::new(listener)), bound]))
        });
    }

    /// Connection, remote, protocol and certificate; or of a handshake that failed, undefined, remote, fault and how many it stands for. Null
    /// once it is closed.
    #[napi]
    pub fn quic_accept(&self, op: f64, listener: f64) {
        let promise = self.state.promise(op);
        let id = listener as u64;
        let Some(listener) = lock(&self.state.quic_listeners).get(&id).cloned() else {
            return promise.settle(Ok(Value::Null));
        };
        let state = self.state.clone();
        let max_streams = listener.transport.streams();
        let suppressed = listener.suppressed.clone();
        listener
            .accept_queue
            .accept(promise, 1, move |items| match items.into_iter().next() {
                Some(quic::HandshakeResult::Connected(connection)) => state.add_connection(connection, id, max_streams),
                Some(quic::HandshakeResult::Failed { remote, error }) => {
                    let count = Value::Number(suppressed.take(error.code) as f64);
                    Value::Array(vec![Value::Undefined, Value::Text(remote), Value::from(&error), count])
                }
                None => Value::Null,
            });
    }

    #[napi]
    pub fn quic_set_tls(&self, listener: f64, tls: ServerTls) -> Option<Vec<String>> {
        let listener = lock(&self.state.quic_listeners).get(&(listener as u64)).cloned();
        raw_result(
            listener
                .ok_or_else(|| closed("listener"))
                .and_then(|listener| listener.set_tls(&tls)),
        )
    }

    #[napi]
    pub fn quic_stop_accepting(&self, listener: f64) {
        let listener = lock(&self.state.quic_listeners).get(&(listener as u64)).cloned();
        if let Some(listener) = listener {
            listener.stop_accepting();
        }
    }

    #[napi]
    pub fn quic_close(&self, op: f64, listener: f64, code: u32, reason: String) {
        let id = listener as u64;
        let listener = lock(&self.state.quic_listeners).remove(&id);
        let all = lock(&self.state.connections);
        let connections = all.values().filter(|c| c.listener == id).map(|c| c.quic.clone()).collect();
        drop(all);
        self.state.run(op, false, async move {
            if let Some(listener) = listener {
                listener.close(code, &reason, connections).await;
            }
            Ok(Value::Undefined)
        });
    }

    /// Connection, remote, protocol and certificate.
    #[napi]
    pub fn connect_quic(&self, op: f64, options: ConnectQuic) {
        let state = self.state.clone();
        let dial = quic::Dial {
            host: options.host,
            port: options.port,
            server_name: options.server_name,
            tls: options.tls,
            alpn: options.alpn,
            transport: options.transport,
            limit: millis(options.timeout_ms),
        };
        let max_streams = dial.transport.streams();
        self.state.run(op, true, async move {
            let connection = quic::dial(&state.resolver, dial, state.one_time_warner()).await?;
            Ok(state.add_connection(connection, 0, max_streams))
        });
    }

    /// What the system says against datagrams to a host: code and message, or null.
    #[napi]
    pub fn probe_udp(&self, op: f64, host: String, port: u16, timeout_ms: u32) {
        let resolver = self.state.resolver.clone();
        self.state.run(op, true, async move {
            let error = probe::probe(&resolver, &host, port, millis(timeout_ms)).await;
            Ok(error.map_or(Value::Null, |error| Value::from(&error)))
        });
    }

    /// A stream.
    #[napi]
    pub fn open_stream(&self, op: f64, connection: f64) {
        let state = self.state.clone();
        let connection = self.state.connection(connection);
        self.state.run(op, false, async move {
            let connection = connection.ok_or_else(|| closed("connection"))?;
            Ok(state.add_stream(quic::open_stream(&connection.quic).await?))
        });
    }

    /// A stream; null once the connection is closed.
    #[napi]
    pub fn accept_stream(&self, op: f64, connection: f64) {
        let promise = self.state.promise(op);
        let Some(connection) = self.state.connection(connection) else {
            return promise.settle(Ok(Value::Null));
        };
        let accept_queue = connection.streams.get_or_init(|| {
            let accept_queue = Arc::new(AcceptQueue::new(16));
            self.state.runtime.spawn(quic::accept_streams(
                connection.quic.clone(),
                accept_queue.clone(),
                connection.max_streams,
            ));
            accept_queue
        });
        let state = self.state.clone();
        accept_queue.accept(promise, 1, move |items| {
            items.into_iter().next().map_or(Value::Null, |halves| state.add_stream(halves))
        });
    }

    /// See `EngineState::add_incoming`; null once the connection is closed.
    #[napi]
    pub fn accept_requests(&self, op: f64, connection: f64, heads: HeadOptions) {
        let promise = self.state.promise(op);
        let Some(connection) = self.state.connection(connection) else {
            return promise.settle(Ok(Value::Null));
        };
        let accept_queue = connection.requests.get_or_init(|| {
            let accept_queue = Arc::new(AcceptQueue::new(1024));
            self.state.runtime.spawn(quic::accept_requests(
                connection.quic.clone(),
                accept_queue.clone(),
                HeadLimits::from(&heads),
                connection.max_streams,
            ));
            accept_queue
        });
        let state = self.state.clone();
        accept_queue.accept(promise, usize::MAX, move |items| state.add_incoming(items));
    }

    /// A stream and the answer's head.
    #[napi]
    pub fn exchange(&self, op: f64, connection: f64, head: &[u8], timeout_ms: u32, head_limit: u32) {
        let state = self.state.clone();
        let request = self
            .state
            .connection(connection)
            .map(|connection| connection.request(head, millis(timeout_ms), head_limit as usize));
        self.state.run(op, true, async move {
            let (halves, head) = request.ok_or_else(|| closed("connection"))?.await?;
            Ok(Value::Array(vec![state.add_stream(halves), Value::Latin1(head)]))
        });
    }

    /// Ends those under way.
    #[napi]
    pub fn give_up_exchanges(&self, connection: f64) {
        if let Some(connection) = self.state.connection(connection) {
            connection.cancel_requests.send_replace(());
        }
    }

    /// Null, and under `op` as with `splice`, where the answer's head is `established`; as with `exchange`, and nothing under `op`, where it is
    /// another one: then `a` is as it was.
    #[napi]
    #[allow(clippy::too_many_arguments)] // as with `splice`
    pub fn exchange_and_splice(
        &self,
        answered_op: f64,
        op: f64,
        connection: f64,
        head: &[u8],
        timeout_ms: u32,
        head_limit: u32,
        established: &[u8],
        a: f64,
        prologue_to_a: Option<&[u8]>,
        idle_timeout_ms: u32,
        rates: Option<Vec<f64>>,
        cancellable: bool,
    ) {
        let state = &self.state;
        let answered = state.promise(answered_op);
        let (Some(a_stream), false) = (state.stream(a), state.closed.load(Ordering::SeqCst)) else {
            return drop(state.promise(op));
        };
        let Some(connection) = state.connection(connection) else {
            drop(state.promise(op));
            return answered.settle(Err(closed("connection")));
        };
        // apart: what waits for an answer is not to be as large as what copies
        let request = Box::pin(connection.request(head, millis(timeout_ms), head_limit as usize));
        let established = Bytes::copy_from_slice(established);
        let mut job = SpliceJob::new(state, op, prologue_to_a, idle_timeout_ms, rates, cancellable);
        state.runtime.spawn(async move {
            let response = tokio::select! {
                response = Box::pin(a_stream.while_connected(&job.cancel, request)) => response,
                () = job.cancel.cancelled() => Err(NetError::cancelled()),
            };
            match response {
                Ok((b, answer)) if answer == established => {
                    let mut halves = Box::new((a_stream.take(&job.cancel), b.into()));
                    drop(a_stream);
                    // before JavaScript is woken: the client waits for it
                    halves.0.write_now(&mut job.prologue_to_a);
                    job.state.settle_low_priority(answered, Value::Null);
                    job.run(halves, [Some(a), None]).await;
                }
                response => {
                    let answer = response.map(|(b, answer)| Value::Array(vec![job.state.add_stream(b), Value::Latin1(answer)]));
                    answered.settle(answer);
                    job.settle(Value::Undefined);
                }
            }
        });
    }

    #[napi]
    pub fn close_connection(&self, connection: f64, code: u32, reason: String) {
        if let Some(connection) = self.state.connection(connection) {
            congestion::close(&connection.quic, code, reason.as_bytes());
        }
    }

    /// Bytes that its streams may have under way, unread, from now on, besides their own windows; 0 for the default.
    #[napi]
    pub fn set_connection_window(&self, connection: f64, bytes: u32) {
        if let Some(connection) = self.state.connection(connection) {
            quic::set_connection_window(&connection.quic, bytes);
        }
    }

    /// How many streams the peer lets this side open now, and with how many bytes on each; nothing once it is closed.
    #[napi]
    pub fn peer_credit(&self, connection: f64) -> Vec<f64> {
        let Some(connection) = self.state.connection(connection) else {
            return Vec::new();
        };
        let (streams, bytes) = connection.quic.peer_bidi_credit();
        vec![streams as f64, bytes as f64]
    }

    /// Code, reason, whether the far side closed it, and the cause. The connection's number is free after that.
    #[napi]
    pub fn connection_closed(&self, op: f64, connection: f64) {
        let state = self.state.clone();
        let id = connection as u64;
        let connection = self.state.connection(connection);
        // not through `run`: it must settle with the reason also when everything is being closed
        let promise = self.state.promise(op);
        self.state.runtime.spawn(async move {
            let (code, reason, remote, cause) = match connection {
                Some(connection) => {
                    let error = quic::closed(&connection.quic).await;
                    lock(&state.connections).remove(&id);
                    quic::describe(&error)
                }
                // everything was closed while it was on its way to JavaScript
                None => quic::describe(&quinn::ConnectionError::LocallyClosed),
            };
            promise.settle(Ok(Value::Array(vec![
                Value::Number(code as f64),
                Value::Text(reason),
                Value::Bool(remote),
                Value::Text(cause.into()),
            ])));
        });
    }

    /// Round trip in ms, packets sent and lost, bytes sent and received, congestion window, MTU; nothing once it is closed.
    #[napi]
    pub fn connection_stats(&self, connection: f64) -> Vec<f64> {
        let Some(connection) = self.state.connection(connection) else {
            return Vec::new();
        };
        let stats = connection.quic.stats();
        let path = stats.path;
        let counts = [
            path.sent_packets,
            path.lost_packets,
            stats.udp_tx.bytes,
            stats.udp_rx.bytes,
            path.cwnd,
            path.current_mtu.into(),
        ];
        std::iter::once(path.rtt.as_secs_f64() * 1000.0)
            .chain(counts.into_iter().map(|n| n as f64))
            .collect()
    }

    // ---- rates

    /// The number of a rate.
    #[napi]
    pub fn create_rate(&self, per_second: f64, burst: f64) -> f64 {
        let id = self.state.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.state.rates).insert(id, Rate::new(per_second, burst));
        id as f64
    }

    /// Settles when so many bytes may go.
    #[napi]
    pub fn take_from_rate(&self, op: f64, rate: f64, bytes: u32) {
        let rate = lock(&self.state.rates).get(&(rate as u64)).cloned();
        self.state.run(op, true, async move {
            rate.ok_or_else(|| closed("rate"))?.take(bytes as usize).await;
            Ok(Value::Undefined)
        });
    }

    /// Frees its number. Copies go on with it.
    #[napi]
    pub fn close_rate(&self, rate: f64) {
        lock(&self.state.rates).remove(&(rate as u64));
    }

    // ---- streams

    #[napi]
    pub fn read(&self, op: f64, stream: f64) {
        let promise = self.state.promise(op);
        if let Some(stream) = self.state.stream(stream) {
            stream.read(self.state.runtime, promise);
        }
    }

    #[napi]
    pub fn write(&self, op: f64, stream: f64, data: &[u8]) {
        let promise = self.state.promise(op);
        if let Some(stream) = self.state.stream(stream) {
            stream.write(self.state.runtime, Bytes::copy_from_slice(data), promise);
        }
    }

    /// Settles when the peer resets the stream, also while nobody reads.
    #[napi]
    pub fn when_reset(&self, op: f64, stream: f64) {
        let reset = self.state.stream(stream).and_then(|stream| stream.reset_by_peer());
        self.state.run(op, true, async move {
            let error = reset.ok_or_else(|| closed("stream"))?.await;
            Ok(Value::from(&error))
        });
    }

    #[napi]
    pub fn close_write(&self, stream: f64) {
        if let Some(stream) = self.state.stream(stream) {
            stream.close_write(self.state.runtime);
        }
    }

    #[napi]
    pub fn reset(&self, stream: f64, code: u32) {
        if let Some(stream) = self.state.stream(stream) {
            stream.reset(code);
        }
    }

    #[napi]
    pub fn stop_read(&self, stream: f64, code: u32) {
        if let Some(stream) = self.state.stream(stream) {
            stream.stop_read(code);
        }
    }

    /// Ends the stream in good order and frees its number.
    #[napi]
    pub fn close_stream(&self, stream: f64) {
        let stream = lock(&self.state.streams).remove(&(stream as u64));
        if let Some(stream) = stream {
            stream.close(self.state.runtime);
        }
    }

    /// Bytes from a to b and from b to a, fault, and side of the fault (0 for a, 1 for b). Both numbers are free after that.
    #[napi]
    #[allow(clippy::too_many_arguments)] // an object of them would be made and read for every tunnel
    pub fn splice(
        &self,
        op: f64,
        a: f64,
        b: f64,
        prologue_to_a: Option<&[u8]>,
        idle_timeout_ms: u32,
        rates: Option<Vec<f64>>,
        cancellable: bool,
    ) {
        let state = &self.state;
        let (Some(a_stream), Some(b_stream), true) = (state.stream(a), state.stream(b), a != b) else {
            return drop(state.promise(op));
        };
        let mut job = SpliceJob::new(state, op, prologue_to_a, idle_timeout_ms, rates, cancellable);
        let mut halves = Box::new((a_stream.take(&job.cancel), b_stream.take(&job.cancel)));
        // here and now: a client that waits for its 200 is not to wait for another thread's turn as well
        halves.0.write_now(&mut job.prologue_to_a);
        state.runtime.spawn(job.run(halves, [Some(a), Some(b)]));
    }

    /// The remote that it connected to, and under `op` as with `splice`, or nothing where no connection came about: then `a` is as it was.
    #[napi]
    #[allow(clippy::too_many_arguments)] // as with `splice`
    pub fn connect_and_splice(
        &self,
        connected_op: f64,
        op: f64,
        a: f64,
        host: String,
        port: u16,
        addresses: Option<Vec<String>>,
        timeout_ms: u32,
        tls: Option<ClientTls>,
        prologue_to_a: Option<&[u8]>,
        idle_timeout_ms: u32,
        rates: Option<Vec<f64>>,
    ) {
        let state = &self.state;
        let connected = state.promise(connected_op);
        let (Some(a_stream), false) = (state.stream(a), state.closed.load(Ordering::SeqCst)) else {
            return drop(state.promise(op));
        };
        let job = SpliceJob::new(state, op, prologue_to_a, idle_timeout_ms, rates, true);
        state.runtime.spawn(async move {
            // apart: what connects is not to be as large as what copies
            let state = job.state.clone();
            let dial = Box::pin(async {
                let target = addresses.map_or(Ok(DialTarget::Name), |given| DialTarget::addresses(&given, port))?;
                let tls = tls.map(|tls| state.connector.get(tls)).transpose()?;
                tcp::dial(&state.resolver, host, port, target, millis(timeout_ms), tls).await
            });
            let dialled = tokio::select! {
                dialled = Box::pin(a_stream.while_connected(&job.cancel, dial)) => dialled,
                () = job.cancel.cancelled() => Err(NetError::cancelled()),
            };
            match dialled {
                Ok((b, remote)) => {
                    let halves = Box::new((a_stream.take(&job.cancel), b.into()));
                    drop(a_stream);
                    job.state.settle_low_priority(connected, Value::Text(remote));
                    job.run(halves, [Some(a), None]).await;
                }
                Err(error) => {
                    connected.settle(Err(error));
                    job.settle(Value::Undefined);
                }
            }
        });
    }
}
