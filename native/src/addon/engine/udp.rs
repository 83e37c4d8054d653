//! UDP listeners, and associations of SOCKS 5.
use std::sync::Arc;

use napi_derive::napi;

use super::Engine;
use crate::addon::completion_queue::Value;
use crate::error::{NetError, NetErrorCode};
use crate::net::address::parse_literal;
use crate::net::socks_datagram::Client;
use crate::net::udp_listener::Listener;
use crate::sync::lock;

fn read_client(host: &str, port: Option<u16>) -> Result<Client, NetError> {
    let address = parse_literal(host)
        .ok_or_else(|| NetError::new(NetErrorCode::Invalid, format!("Cannot use {host:?} as the address of a client")))?;
    Ok(Client::new(address.ip(), port))
}

#[napi]
impl Engine {
    /// Returns listener and address. With a client's address, and its port if it is known, it is that of an association.
    #[napi]
    pub fn listen_udp(&self, op: f64, address: String, max_peers: u32, client: Option<String>, client_port: Option<u16>) {
        let state = self.state.clone();
        self.state.run(op, false, async move {
            let client = client.map(|host| read_client(&host, client_port)).transpose()?;
            let listener = Listener::open(&state.sockets, &address, max_peers as usize, client, &*state.one_time_warner())?;
            let bound = Value::Text(listener.address.clone());
            Ok(Value::Array(vec![state.insert(&state.udp_listeners, Arc::new(listener)), bound]))
        });
    }

    /// As `tcp_accept`.
    #[napi]
    pub fn udp_accept(&self, op: f64, listener: f64) {
        let listener = lock(&self.state.udp_listeners).get(&(listener as u64)).cloned();
        self.state.accept(op, listener.map(|listener| listener.accept_queue.clone()));
    }

    /// Returns how many datagrams were dropped; 0 once the listener is closed.
    #[napi]
    pub fn udp_dropped(&self, listener: f64) -> f64 {
        let listener = lock(&self.state.udp_listeners).get(&(listener as u64)).cloned();
        listener.map_or(0.0, |listener| listener.dropped() as f64)
    }

    #[napi]
    pub fn udp_stop_accepting(&self, listener: f64) {
        let listener = lock(&self.state.udp_listeners).get(&(listener as u64)).cloned();
        if let Some(listener) = listener {
            listener.stop_accepting();
        }
    }

    #[napi]
    pub fn udp_close(&self, listener: f64) {
        let listener = lock(&self.state.udp_listeners).remove(&(listener as u64));
        if let Some(listener) = listener {
            listener.close();
        }
    }
}
