//! The calls from JavaScript. `op` is the number of a call; the callback receives its result under this number.
mod handover;
mod options;
mod sessions;
mod streams;
mod tcp;
mod tunnels;
mod udp;

use std::sync::atomic::Ordering;
use std::sync::Arc;

use napi::bindgen_prelude::*;
use napi_derive::napi;

use super::completion_queue::{CompletionQueue, Value};
use super::handles::EngineState;
use crate::error::{NetError, NetErrorCode};
use crate::net::tcp::preamble::Preamble;
use crate::net::tcp::tls_accept::ServerConfigs;
use crate::net::tls::{self, ClientTls, ServerTls};
use crate::relay::budget::{self, Relayed};
use crate::relay::rate::Rate;
use crate::runtime::{self, process};
use crate::stream::Stream;
use crate::sync::lock;

/// The error of a synchronous call: code and message.
fn raw_result(result: std::result::Result<(), NetError>) -> Option<Vec<String>> {
    result.err().map(|error| vec![error.code.as_str().to_owned(), error.message])
}

fn closed(what: &str) -> NetError {
    NetError::new(NetErrorCode::Closed, format!("Cannot use the {what}: it is closed"))
}

/// See [`process::notify`]. Returns the error message, if any.
#[napi]
pub fn notify_supervisor(socket: String, state: String) -> Option<String> {
    process::notify(&socket, &state).err().map(|e| e.to_string())
}

/// The engine.
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
    /// `callback` receives a flat array with three values per result: number of the call, error or undefined, value. If the engine owns the
    /// process, it raises the limit on file descriptors and releases free memory periodically.
    #[napi(constructor)]
    pub fn new(env: Env, callback: Function<'_, Unknown<'_>, ()>, threads: u32, owns_process: bool) -> Result<Self> {
        let runtime = runtime::handle(threads).map_err(|e| Error::from_reason(format!("Cannot start the native engine: {e}")))?;
        let completions = CompletionQueue::new(&env, &callback)?;
        if owns_process {
            let _ = process::raise_descriptor_limit(); // best effort
        }
        Ok(Self {
            state: Arc::new(EngineState::new(completions, runtime, owns_process)),
        })
    }

    /// Sets whether pending results keep the process alive.
    #[napi]
    pub fn set_ref(&self, env: Env, on: bool) {
        self.state.completions.set_ref(&env, on);
    }

    /// Closes all handles and cancels all calls.
    #[napi]
    pub fn close(&self) {
        self.state.close();
    }

    /// Milliseconds for which the runtime has not run; see [`RuntimeWatchdog::stalled_for`].
    #[napi]
    pub fn stalled_ms(&self) -> f64 {
        self.state.watchdog.stalled_for(self.state.runtime).as_millis() as f64
    }

    /// Sets the bytes that all tunnels of the process may buffer; 0 for no limit. See [`budget`].
    #[napi]
    pub fn limit_buffers(&self, bytes: f64) {
        budget::set_limit(self.state.runtime, bytes as u64);
    }

    /// Bytes buffered by tunnels that wait for a peer.
    #[napi]
    pub fn buffered_bytes(&self) -> f64 {
        budget::used() as f64
    }

    /// Four numbers for each stream, all -1 if no splice has it: bytes from a to b and from b to a, and the states of these directions: 0 open, 1
    /// blocked, 2 ended.
    #[napi]
    pub fn relayed(&self, streams: Vec<f64>) -> Float64Array {
        let streams: Vec<Option<Arc<Stream>>> = {
            let known = lock(&self.state.streams);
            streams.iter().map(|id| known.get(&(*id as u64)).cloned()).collect()
        };
        let relayed = streams.iter().map(|stream| stream.as_ref()?.relayed());
        let numbers = relayed.flat_map(|relayed| match relayed {
            Some(Relayed {
                bytes: [up, down],
                states: [to_b, to_a],
            }) => [up as f64, down as f64, to_b as u8 as f64, to_a as u8 as f64],
            None => [-1.0; 4],
        });
        Float64Array::new(numbers.collect())
    }

    /// Cancels a call. Its result is `cancelled`, unless it has already completed.
    #[napi]
    pub fn cancel(&self, op: f64) {
        let cancel = lock(&self.state.cancels).remove(&(op as u64));
        if let Some(cancel) = cancel {
            cancel.cancel();
        }
    }

    /// Returns why a server cannot use these settings, or null.
    #[napi]
    pub fn check_server_tls(&self, tls: ServerTls) -> Option<Vec<String>> {
        raw_result(ServerConfigs::new(&tls, Preamble::None).map(drop))
    }

    /// Returns why a client cannot use these settings, or null.
    #[napi]
    pub fn check_client_tls(&self, tls: ClientTls) -> Option<Vec<String>> {
        raw_result(tls::client(&tls, tls::TCP_VERSIONS, &[]).map(drop))
    }

    /// Returns the handle of a rate.
    #[napi]
    pub fn create_rate(&self, per_second: f64, burst: f64) -> f64 {
        let id = self.state.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.state.rates).insert(id, Rate::new(per_second, burst));
        id as f64
    }

    /// Settles when the rate permits `bytes` bytes.
    #[napi]
    pub fn take_from_rate(&self, op: f64, rate: f64, bytes: u32) {
        let rate = lock(&self.state.rates).get(&(rate as u64)).cloned();
        self.state.run(op, true, async move {
            rate.ok_or_else(|| closed("rate"))?.take(bytes as usize).await;
            Ok(Value::Undefined)
        });
    }

    /// Frees the handle. Splices that use the rate keep it.
    #[napi]
    pub fn close_rate(&self, rate: f64) {
        lock(&self.state.rates).remove(&(rate as u64));
    }
}
