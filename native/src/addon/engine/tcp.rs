//! TCP listeners and connections, and name resolution.
use std::sync::Arc;
use std::time::Instant;

use napi_derive::napi;

use super::options::HeadOptions;
use super::{closed, raw_result, Engine};
use crate::addon::completion_queue::Value;
use crate::error::{NetError, NetErrorCode};
use crate::http::head::HeadLimits;
use crate::http2::client as http2;
use crate::net::address::{self, AddressKeys};
use crate::net::happy_eyeballs::{self, DialTarget};
use crate::net::resolver::Purpose;
use crate::net::tcp;
use crate::net::tcp::accepted::{Peers, Settings};
use crate::net::tcp::preamble::Preamble;
use crate::net::tls::{ClientTls, ServerTls};
use crate::stream::tls_transport::TlsTransport;
use crate::sync::lock;
use crate::time::millis;
use crate::tls_link::listener::Handoff;

fn settings(heads: &HeadOptions, links: Option<Result<Handoff, NetError>>) -> Result<Settings, NetError> {
    let peers = Peers {
        keys: AddressKeys::new(&heads.exempt)?,
        balancers: AddressKeys::new(&heads.proxy_protocol)?,
    };
    Ok(Settings {
        limits: HeadLimits::from(heads),
        peers,
        links: links.transpose()?,
    })
}

#[napi]
impl Engine {
    /// Returns listener and address. `links`: the listener of TLS links that takes the connections which offer its protocols.
    #[napi]
    pub fn listen_tcp(&self, op: f64, address: String, tls: Option<ServerTls>, heads: HeadOptions, preamble: String, links: Option<f64>) {
        let state = self.state.clone();
        let links = links.map(|links| self.link_handoff(links));
        self.state.run(op, false, async move {
            let (preamble, settings) = (Preamble::parse(&preamble)?, settings(&heads, links)?);
            let listener = tcp::listener::Listener::open(&state.sockets, &address, preamble, tls.as_ref(), settings, state.warner())?;
            let bound = Value::Text(listener.address.clone());
            Ok(Value::Array(vec![state.insert(&state.tcp_listeners, Arc::new(listener)), bound]))
        });
    }

    /// Returns what `EngineState::add_incoming` describes; null once the listener is closed.
    #[napi]
    pub fn tcp_accept(&self, op: f64, listener: f64) {
        let listener = lock(&self.state.tcp_listeners).get(&(listener as u64)).cloned();
        self.state.accept(op, listener.map(|listener| listener.accept_queue.clone()));
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

    /// Replaces what `listen_tcp` was called with, except for address and preamble. Returns why it cannot, or null.
    #[napi]
    pub fn tcp_configure(&self, listener: f64, tls: Option<ServerTls>, heads: HeadOptions, links: Option<f64>) -> Option<Vec<String>> {
        let links = links.map(|links| self.link_handoff(links));
        let listener = lock(&self.state.tcp_listeners).get(&(listener as u64)).cloned();
        raw_result(
            listener
                .ok_or_else(|| closed("listener"))
                .and_then(|listener| listener.configure(tls.as_ref(), settings(&heads, links)?)),
        )
    }

    #[napi]
    pub fn tcp_start_draining(&self, listener: f64) {
        let listener = lock(&self.state.tcp_listeners).get(&(listener as u64)).cloned();
        if let Some(listener) = listener {
            listener.start_draining();
        }
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

    /// Returns stream and remote address.
    #[napi]
    pub fn connect_tcp(&self, op: f64, host: String, port: u16, addresses: Option<Vec<String>>, timeout_ms: u32, tls: Option<ClientTls>) {
        let state = self.state.clone();
        self.state.run(op, true, async move {
            let target = addresses.map_or(Ok(DialTarget::Name), |given| DialTarget::addresses(&given, port))?;
            let tls = tls.map(|tls| state.connector.get(tls, &[])).transpose()?;
            let connection = tcp::dial::dial(&state.resolver, host, port, target, millis(timeout_ms), tls).await?;
            let remote = connection.remote.clone();
            Ok(Value::Array(vec![state.add_stream(connection.halves()), Value::Text(remote)]))
        });
    }

    /// Returns connection and remote address.
    #[napi]
    pub fn connect_http2(&self, op: f64, host: String, port: u16, timeout_ms: u32, tls: Option<ClientTls>) {
        let state = self.state.clone();
        self.state.run(op, true, async move {
            let until = Instant::now() + millis(timeout_ms);
            let connector = tls.map(|tls| state.connector.get(tls, http2::ALPN)).transpose()?;
            let connected = tcp::dial::dial(&state.resolver, host, port, DialTarget::Name, millis(timeout_ms), connector).await?;
            let left = until.saturating_duration_since(Instant::now());
            let client = match connected.tls {
                None => http2::open(TlsTransport(connected.tcp), left).await?,
                Some(tls) if tls.get_ref().1.alpn_protocol() == Some(b"h2") => http2::open(tls, left).await?,
                Some(_) => {
                    return Err(NetError::remote(
                        NetErrorCode::NotHttp2,
                        "The server does not select HTTP/2 over TLS",
                    ))
                }
            };
            let id = state.insert(&state.http2_clients, Arc::new(client));
            Ok(Value::Array(vec![id, Value::Text(connected.remote)]))
        });
    }

    /// Returns a stream. See [`http2::Client::open_stream`].
    #[napi]
    pub fn open_http2_stream(&self, op: f64, connection: f64) {
        let client = lock(&self.state.http2_clients).get(&(connection as u64)).cloned();
        let opened = client.ok_or_else(|| closed("connection")).and_then(|client| client.open_stream());
        self.state.promise(op).settle(opened.map(|halves| self.state.add_stream(halves)));
    }

    /// Returns the only stream of a connection on `stream`, whose handle is freed. See [`http2::open_over`].
    #[napi]
    pub fn open_http2_over(&self, op: f64, stream: f64) {
        let state = self.state.clone();
        let carrier = lock(&state.streams).remove(&(stream as u64));
        self.state.run(op, false, async move {
            let carrier = carrier.ok_or_else(|| closed("stream"))?.take(&Arc::default()).halves().await?;
            Ok(state.add_stream(http2::open_over(carrier).await?))
        });
    }

    /// Frees the handle. The connection ends with its last stream.
    #[napi]
    pub fn release_http2(&self, connection: f64) {
        lock(&self.state.http2_clients).remove(&(connection as u64));
    }

    /// Returns all addresses of a name.
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
}
