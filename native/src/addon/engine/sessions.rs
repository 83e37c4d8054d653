//! Listeners and sessions, over QUIC and over TLS links, and requests on them.
use std::net::SocketAddr;
use std::sync::Arc;

use napi_derive::napi;

use super::options::HandshakeOptions;
use super::{closed, raw_result, Engine};
use crate::addon::accept_queue::AcceptQueue;
use crate::addon::completion_queue::Value;
use crate::addon::handles::EngineState;
use crate::error::{NetError, NetErrorCode};
use crate::http::head::HeadLimits;
use crate::net::address::parse_literal;
use crate::net::tls::ServerTls;
use crate::net::udp_probe;
use crate::quic;
use crate::quic::datagrams;
use crate::quic::transport::Transport;
use crate::session::{ConnectSession, HandshakeResult, Session, SessionListener};
use crate::sync::lock;
use crate::time::millis;
use crate::tls_link;
use crate::tls_link::listener::Handoff;
use crate::web_socket::upgrade::WebSocketRequest;

/// A client's address; its port may be missing.
fn parse_remote(text: &str) -> Result<SocketAddr, NetError> {
    let host = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    text.parse()
        .ok()
        .or_else(|| parse_literal(host))
        .ok_or_else(|| NetError::new(NetErrorCode::Invalid, format!("Cannot use {text:?} as the address of a client")))
}

/// A listener that was opened, as JavaScript receives it.
fn opened(state: &Arc<EngineState>, listener: SessionListener) -> Value {
    let bound = Value::Text(listener.address().to_owned());
    Value::Array(vec![state.insert(&state.session_listeners, Arc::new(listener)), bound])
}

#[napi]
impl Engine {
    /// Returns listener and address.
    #[napi]
    pub fn listen_quic(
        &self,
        op: f64,
        address: String,
        tls: ServerTls,
        alpn: Vec<String>,
        transport: Transport,
        handshakes: HandshakeOptions,
    ) {
        let state = self.state.clone();
        self.state.run(op, false, async move {
            let (limits, warn) = (handshakes.limits()?, state.one_time_warner());
            let listener = quic::listener::Listener::open(&state.sockets, &address, &tls, alpn, transport, limits, &*warn)?;
            Ok(opened(&state, SessionListener::Quic(listener)))
        });
    }

    /// Returns listener and address. Without an address, it accepts only what TCP listeners pass on.
    #[napi]
    pub fn listen_tls_link(
        &self,
        op: f64,
        address: Option<String>,
        tls: ServerTls,
        alpn: Vec<String>,
        transport: Transport,
        handshakes: HandshakeOptions,
    ) {
        let state = self.state.clone();
        self.state.run(op, false, async move {
            let (config, limits) = ((&transport).into(), handshakes.limits()?);
            let listener =
                tls_link::listener::Listener::open(&state.sockets, address.as_deref(), &tls, alpn, config, limits, state.warner())?;
            Ok(opened(&state, SessionListener::TlsLink(listener)))
        });
    }

    /// Returns session, remote address, protocol, certificate and kind. For failed handshakes: undefined, remote address, error and how many
    /// failures it stands for. Null once the listener is closed.
    #[napi]
    pub fn session_accept(&self, op: f64, listener: f64) {
        let promise = self.state.promise(op);
        let id = listener as u64;
        let Some(listener) = self.session_listener(listener) else {
            return promise.settle(Ok(Value::Null));
        };
        let state = self.state.clone();
        let (max_streams, suppressed) = (listener.max_streams(), listener.suppressed().clone());
        listener
            .accept_queue()
            .accept(promise, 1, move |items| match items.into_iter().next() {
                Some(HandshakeResult::Connected(session)) => match session.accept() {
                    Some(session) => state.add_connection(session, id, max_streams),
                    None => Value::Null,
                },
                Some(HandshakeResult::Failed { remote, error }) => {
                    let count = Value::Number(suppressed.take(error.code) as f64);
                    Value::Array(vec![Value::Undefined, Value::Text(remote), Value::from(&error), count])
                }
                None => Value::Null,
            });
    }

    #[napi]
    pub fn session_set_tls(&self, listener: f64, tls: ServerTls) -> Option<Vec<String>> {
        let listener = self.session_listener(listener).ok_or_else(|| closed("listener"));
        raw_result(listener.and_then(|listener| listener.set_tls(&tls)))
    }

    /// Replaces transport settings and limits. Returns why it cannot, or null.
    #[napi]
    pub fn session_configure(&self, listener: f64, transport: Transport, handshakes: HandshakeOptions) -> Option<Vec<String>> {
        let listener = self.session_listener(listener).ok_or_else(|| closed("listener"));
        raw_result(listener.and_then(|listener| listener.configure(transport, handshakes.limits()?)))
    }

    /// Takes over a stream on which a WebSocket was accepted. Returns why it cannot, or null.
    #[napi]
    pub fn session_accept_web_socket(&self, listener: f64, stream: f64, remote: String) -> Option<Vec<String>> {
        let handoff = self.link_handoff(listener);
        let stream = lock(&self.state.streams).remove(&(stream as u64));
        raw_result(handoff.and_then(|handoff| {
            let remote = parse_remote(&remote)?;
            let halves = stream.ok_or_else(|| closed("stream"))?.take(&Arc::default());
            self.state.runtime.spawn(async move {
                if let Ok(halves) = halves.halves().await {
                    handoff.pass_web_socket(halves, remote).await;
                } // otherwise it was reset meanwhile
            });
            Ok(())
        }))
    }

    #[napi]
    pub fn session_stop_accepting(&self, listener: f64) {
        if let Some(listener) = self.session_listener(listener) {
            listener.stop_accepting();
        }
    }

    #[napi]
    pub fn session_listener_close(&self, op: f64, listener: f64, code: u32, reason: String) {
        let id = listener as u64;
        let listener = lock(&self.state.session_listeners).remove(&id);
        let all = lock(&self.state.connections);
        let sessions = all.values().filter(|c| c.listener == id).map(|c| c.session.clone()).collect();
        drop(all);
        self.state.run(op, false, async move {
            if let Some(listener) = listener {
                listener.close(code, &reason, sessions).await;
            }
            Ok(Value::Undefined)
        });
    }

    pub(super) fn session_listener(&self, listener: f64) -> Option<Arc<SessionListener>> {
        lock(&self.state.session_listeners).get(&(listener as u64)).cloned()
    }

    /// The way to a listener of TLS links for connections that another listener has accepted.
    pub(super) fn link_handoff(&self, listener: f64) -> Result<Handoff, NetError> {
        match self.session_listener(listener).as_deref() {
            Some(SessionListener::TlsLink(listener)) => Ok(listener.handoff.clone()),
            Some(SessionListener::Quic(_)) => Err(NetError::new(
                NetErrorCode::Invalid,
                "Cannot pass connections on to a QUIC listener",
            )),
            None => Err(closed("listener")),
        }
    }

    /// Returns session, remote address, protocol, certificate and kind.
    #[napi]
    pub fn connect_quic(&self, op: f64, options: ConnectSession) {
        let state = self.state.clone();
        let max_streams = options.transport.streams();
        self.state.run(op, true, async move {
            let connection = quic::dial::dial(&state.resolver, options, state.one_time_warner()).await?;
            Ok(state.add_connection(Session::Quic(connection), 0, max_streams))
        });
    }

    /// Returns session, remote address, protocol, certificate and kind.
    #[napi]
    pub fn connect_tls_link(&self, op: f64, options: ConnectSession, web_socket: Option<WebSocketRequest>) {
        let state = self.state.clone();
        let max_streams = options.transport.streams();
        self.state.run(op, true, async move {
            let session = tls_link::dial::dial(&state.resolver, options, web_socket).await?;
            Ok(state.add_connection(Session::TlsLink(session), 0, max_streams))
        });
    }

    /// Returns why datagrams do not reach a host, or null.
    #[napi]
    pub fn probe_udp(&self, op: f64, host: String, port: u16, timeout_ms: u32) {
        let resolver = self.state.resolver.clone();
        self.state.run(op, true, async move {
            let error = udp_probe::probe(&resolver, &host, port, millis(timeout_ms)).await;
            Ok(error.map_or(Value::Null, |error| Value::from(&error)))
        });
    }

    /// Returns a stream.
    #[napi]
    pub fn open_stream(&self, op: f64, connection: f64) {
        let state = self.state.clone();
        let connection = self.state.connection(connection);
        self.state.run(op, false, async move {
            let connection = connection.ok_or_else(|| closed("connection"))?;
            Ok(state.add_stream(connection.session.open_stream().await?))
        });
    }

    /// Returns a stream; null once the connection is closed.
    #[napi]
    pub fn accept_stream(&self, op: f64, connection: f64) {
        let promise = self.state.promise(op);
        let Some(connection) = self.state.connection(connection) else {
            return promise.settle(Ok(Value::Null));
        };
        let accept_queue = connection.streams.get_or_init(|| {
            let accept_queue = Arc::new(AcceptQueue::new(16));
            let session = connection.session.clone();
            self.state
                .runtime
                .spawn(session.accept_streams(accept_queue.clone(), connection.max_streams));
            accept_queue
        });
        let state = self.state.clone();
        accept_queue.accept(promise, 1, move |items| {
            items.into_iter().next().map_or(Value::Null, |halves| state.add_stream(halves))
        });
    }

    /// Returns what `EngineState::add_incoming` describes; null once the connection is closed. The first call sets the limits on heads.
    #[napi]
    pub fn accept_requests(&self, op: f64, connection: f64, head_limit: u32, timeout_ms: u32, max_pending: u32) {
        let promise = self.state.promise(op);
        let Some(connection) = self.state.connection(connection) else {
            return promise.settle(Ok(Value::Null));
        };
        let accept_queue = connection.requests.get_or_init(|| {
            let accept_queue = Arc::new(AcceptQueue::new(1024));
            let limits = HeadLimits {
                bytes: head_limit as usize,
                time: millis(timeout_ms),
                pending: max_pending as usize,
                pending_per_address: 0, // one peer
            };
            let session = connection.session.clone();
            self.state
                .runtime
                .spawn(session.accept_requests(accept_queue.clone(), limits, connection.max_streams));
            accept_queue
        });
        let state = self.state.clone();
        accept_queue.accept(promise, usize::MAX, move |items| state.add_incoming(items));
    }

    /// Returns a stream and the response head. With `datagrams` what follows is a UDP flow whose peer takes DATAGRAM frames.
    #[napi]
    pub fn request(&self, op: f64, connection: f64, head: &[u8], timeout_ms: u32, head_limit: u32, datagrams: bool) {
        let state = self.state.clone();
        let request = self
            .state
            .connection(connection)
            .map(|connection| connection.request(head, millis(timeout_ms), head_limit as usize, datagrams));
        self.state.run(op, true, async move {
            let (halves, head) = request.ok_or_else(|| closed("connection"))?.await?;
            Ok(Value::Array(vec![state.add_stream(halves), Value::Latin1(head)]))
        });
    }

    /// Cancels the pending requests of a connection.
    #[napi]
    pub fn cancel_requests(&self, connection: f64) {
        if let Some(connection) = self.state.connection(connection) {
            connection.cancel_requests.send_replace(());
        }
    }

    /// Returns whether the peer's process is gone.
    #[napi]
    pub fn probe_connection(&self, op: f64, connection: f64) {
        let connection = self.state.connection(connection);
        self.state.run(op, false, async move {
            Ok(Value::Bool(match connection {
                Some(connection) => connection.session.probe().await,
                None => false,
            }))
        });
    }

    #[napi]
    pub fn ping_connection(&self, connection: f64) {
        if let Some(connection) = self.state.connection(connection) {
            connection.session.ping();
        }
    }

    #[napi]
    pub fn close_connection(&self, connection: f64, code: u32, reason: String) {
        if let Some(connection) = self.state.connection(connection) {
            connection.session.close(code, &reason);
        }
    }

    /// Sets the receive window of the connection beyond the windows of its streams, in bytes; 0 for the default.
    #[napi]
    pub fn set_connection_window(&self, connection: f64, bytes: u32) {
        if let Some(connection) = self.state.connection(connection) {
            connection.session.set_window(bytes);
        }
    }

    /// Returns how many more streams the peer permits and the initial send window of each; empty once the connection is closed.
    #[napi]
    pub fn peer_credit(&self, connection: f64) -> Vec<f64> {
        self.state
            .connection(connection)
            .map_or_else(Vec::new, |connection| connection.session.peer_credit())
    }

    /// Returns code, reason, whether the peer closed it, and the cause. Frees the handle. Until then its task receives the datagrams of the
    /// connection.
    #[napi]
    pub fn connection_closed(&self, op: f64, connection: f64) {
        let state = self.state.clone();
        let id = connection as u64;
        let connection = self.state.connection(connection);
        // not through `run`: it must settle with the reason even when the engine closes
        let promise = self.state.promise(op);
        self.state.runtime.spawn(async move {
            let (code, reason, remote, cause) = match connection {
                Some(connection) => {
                    if let Session::Quic(quic) = &connection.session {
                        datagrams::receive(quic).await;
                    }
                    let closed = connection.session.closed().await;
                    lock(&state.connections).remove(&id);
                    closed
                }
                // the engine was closed before this call
                None => tls_link::session::Ended::Local.describe(),
            };
            promise.settle(Ok(Value::Array(vec![
                Value::Number(code as f64),
                Value::Text(reason),
                Value::Bool(remote),
                Value::Text(cause.into()),
            ])));
        });
    }

    /// Returns what [`Session::stats`] describes; empty once the session is closed.
    #[napi]
    pub fn connection_stats(&self, connection: f64) -> Vec<f64> {
        self.state
            .connection(connection)
            .map_or_else(Vec::new, |connection| connection.session.stats())
    }
}
