//! UDP listeners.
use std::sync::Arc;

use napi_derive::napi;

use super::Engine;
use crate::addon::completion_queue::Value;
use crate::net::udp_listener::Listener;
use crate::sync::lock;

#[napi]
impl Engine {
    /// Returns listener and address.
    #[napi]
    pub fn listen_udp(&self, op: f64, address: String, max_peers: u32) {
        let state = self.state.clone();
        self.state.run(op, false, async move {
            let listener = Listener::open(state.runtime, &address, max_peers as usize, &*state.one_time_warner())?;
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
