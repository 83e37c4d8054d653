//! The calls from JavaScript. `op` is the number under which the callback receives the result of a call.
mod options;
mod quic;
mod streams;
mod tcp;
mod tunnels;

use std::sync::atomic::Ordering;
use std::sync::Arc;

use napi::bindgen_prelude::*;
use napi_derive::napi;

use super::completion_queue::{CompletionQueue, Value};
use super::handles::EngineState;
use crate::error::{NetError, NetErrorCode};
use crate::net::tls::{self, ClientTls, ServerTls};
use crate::relay::budget;
use crate::relay::rate::Rate;
use crate::runtime::{self, process};
use crate::sync::lock;

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
        let runtime = runtime::handle(threads).map_err(|e| Error::from_reason(format!("Cannot start the native engine: {e}")))?;
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
}
