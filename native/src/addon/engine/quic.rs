//! QUIC listeners and connections, and requests on them.
use std::sync::Arc;

use napi_derive::napi;

use super::options::{ConnectQuic, HandshakeOptions, HeadOptions};
use super::{closed, raw_result, Engine};
use crate::addon::accept_queue::AcceptQueue;
use crate::addon::completion_queue::Value;
use crate::http::head::HeadLimits;
use crate::net::address::AddressKeys;
use crate::net::tls::ServerTls;
use crate::net::udp_probe;
use crate::quic::transport::Transport;
use crate::quic::{self, connection, signals};
use crate::sync::lock;
use crate::time::millis;

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
            let limits = quic::handshake_limits::HandshakeLimits {
                time: millis(handshakes.timeout_ms),
                pending: handshakes.max_pending as usize,
                pending_per_address: handshakes.max_pending_per_address as usize,
                keys: AddressKeys::new(&handshakes.exempt)?,
                retry_threshold: handshakes.retry_threshold as usize,
            };
            let listener =
                quic::listener::Listener::open(state.runtime, &address, &tls, alpn, transport, limits, &*state.one_time_warner())?;
            let bound = Value::Text(listener.address.clone());
            Ok(Value::Array(vec![state.insert(&state.quic_listeners, Arc::new(listener)), bound]))
        });
    }

    /// Returns connection, remote address, protocol and certificate. For failed handshakes: undefined, remote address, error and how many
    /// failures it stands for. Null once the listener is closed.
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
                Some(quic::listener::HandshakeResult::Connected(connection)) => state.add_connection(connection, id, max_streams),
                Some(quic::listener::HandshakeResult::Failed { remote, error }) => {
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

    /// Returns connection, remote address, protocol and certificate.
    #[napi]
    pub fn connect_quic(&self, op: f64, options: ConnectQuic) {
        let state = self.state.clone();
        let dial = quic::dial::Dial {
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
            let connection = quic::dial::dial(&state.resolver, dial, state.one_time_warner()).await?;
            Ok(state.add_connection(connection, 0, max_streams))
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
            Ok(state.add_stream(connection::open_stream(&connection.quic).await?))
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
            self.state.runtime.spawn(connection::accept_streams(
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

    /// Returns what `EngineState::add_incoming` describes; null once the connection is closed.
    #[napi]
    pub fn accept_requests(&self, op: f64, connection: f64, heads: HeadOptions) {
        let promise = self.state.promise(op);
        let Some(connection) = self.state.connection(connection) else {
            return promise.settle(Ok(Value::Null));
        };
        let accept_queue = connection.requests.get_or_init(|| {
            let accept_queue = Arc::new(AcceptQueue::new(1024));
            self.state.runtime.spawn(connection::accept_requests(
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

    /// Returns a stream and the response head.
    #[napi]
    pub fn request(&self, op: f64, connection: f64, head: &[u8], timeout_ms: u32, head_limit: u32) {
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

    /// Cancels the pending requests of a connection.
    #[napi]
    pub fn cancel_requests(&self, connection: f64) {
        if let Some(connection) = self.state.connection(connection) {
            connection.cancel_requests.send_replace(());
        }
    }

    #[napi]
    pub fn close_connection(&self, connection: f64, code: u32, reason: String) {
        if let Some(connection) = self.state.connection(connection) {
            signals::close(&connection.quic, code, reason.as_bytes());
        }
    }

    /// Sets the receive window of the connection beyond the windows of its streams, in bytes; 0 for the default.
    #[napi]
    pub fn set_connection_window(&self, connection: f64, bytes: u32) {
        if let Some(connection) = self.state.connection(connection) {
            connection::set_connection_window(&connection.quic, bytes);
        }
    }

    /// Returns how many more streams the peer permits and the initial send window of each; empty once the connection is closed.
    #[napi]
    pub fn peer_credit(&self, connection: f64) -> Vec<f64> {
        let Some(connection) = self.state.connection(connection) else {
            return Vec::new();
        };
        let (streams, bytes) = connection.quic.peer_bidi_credit();
        vec![streams as f64, bytes as f64]
    }

    /// Returns code, reason, whether the peer closed it, and the cause. Frees the handle.
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
                    let error = connection::closed(&connection.quic).await;
                    lock(&state.connections).remove(&id);
                    connection::describe(&error)
                }
                // the engine was closed before this call
                None => connection::describe(&quinn::ConnectionError::LocallyClosed),
            };
            promise.settle(Ok(Value::Array(vec![
                Value::Number(code as f64),
                Value::Text(reason),
                Value::Bool(remote),
                Value::Text(cause.into()),
            ])));
        });
    }

    /// Returns round-trip time in ms, packets sent and lost, bytes sent and received, congestion window and MTU; empty once the connection
    /// is closed.
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
}
