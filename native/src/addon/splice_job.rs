//! Splices that JavaScript starts.
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;

use crate::addon::completion_queue::{Promise, Value};
use crate::addon::handles::{Cancel, EngineState};
use crate::error::NetError;
use crate::relay::ends::Side;
use crate::relay::rate::RateLimiter;
use crate::relay::{datagrams, splice};
use crate::stream::{CancelSignal, Handover, Stream};
use crate::sync::lock;
use crate::time::millis;

/// A splice, its options and its pending result.
pub struct SpliceJob {
    pub state: Arc<EngineState>,
    promise: Promise,
    pub initial_data_to_a: Bytes,
    idle: Option<Duration>,
    limiter: RateLimiter,
    pub cancel: Arc<CancelSignal>,
    /// Present if it can be cancelled.
    registration: Option<CancelRegistration>,
    /// Counts it among `EngineState::splices`.
    _counted: Arc<()>,
}

/// The entry that lets a call be cancelled. Dropping it removes the entry.
struct CancelRegistration(Arc<EngineState>, u64);

impl Drop for CancelRegistration {
    fn drop(&mut self) {
        lock(&self.0.cancels).remove(&self.1);
    }
}

impl SpliceJob {
    pub fn new(
        state: &Arc<EngineState>,
        op: f64,
        initial_data_to_a: Option<&[u8]>,
        idle_timeout_ms: u32,
        rates: Option<Vec<f64>>,
        cancellable: bool,
    ) -> Box<Self> {
        let cancel = Arc::new(CancelSignal::default());
        let registration = cancellable.then(|| {
            lock(&state.cancels).insert(op as u64, Cancel::Splice(cancel.clone()));
            CancelRegistration(state.clone(), op as u64)
        });
        Box::new(Self {
            state: state.clone(),
            promise: state.promise(op),
            initial_data_to_a: initial_data_to_a.map(Bytes::copy_from_slice).unwrap_or_default(),
            idle: (idle_timeout_ms > 0).then(|| millis(idle_timeout_ms)),
            limiter: state.rate_limiter(&rates.unwrap_or_default()),
            cancel,
            registration,
            _counted: state.splices.clone(),
        })
    }

    /// Waits for `dial` as long as `a` is connected, settles `connected` with the remote address, and returns the stream of `a` and the
    /// connection. `None` if it has failed: both promises are settled then, and `a` is unchanged.
    pub async fn connect<T>(
        self: Box<Self>,
        a: Arc<Stream>,
        connected: Promise,
        dial: impl Future<Output = Result<(T, String), NetError>>,
    ) -> Option<(Box<Self>, Handover, T)> {
        let dialled = tokio::select! {
            dialled = a.while_connected(&self.cancel, dial) => dialled,
            () = self.cancel.cancelled() => Err(NetError::cancelled()),
        };
        match dialled {
            Ok((b, remote)) => {
                let stream = a.take(&self.cancel);
                drop(a);
                self.state.settle_low_priority(connected, Value::Text(remote));
                Some((self, stream, b))
            }
            Err(error) => {
                connected.settle(Err(error));
                self.settle(Value::Undefined);
                None
            }
        }
    }

    /// Relays until both directions have ended, and frees the handles of the streams that have one.
    pub async fn run(mut self: Box<Self>, halves: Box<(Handover, Handover)>, numbers: [Option<f64>; 2]) {
        let initial_data = std::mem::take(&mut self.initial_data_to_a);
        let done = splice::run(halves, initial_data, self.idle, &self.limiter, &self.cancel).await;
        self.end(numbers, [done.a_to_b, done.b_to_a], done.error, [done.dropped]);
    }

    /// Relays between a stream of capsules and a socket until the flow has ended, and frees the handle of the stream.
    pub async fn run_flow(mut self: Box<Self>, stream: Box<Handover>, socket: UdpSocket, number: f64, use_datagrams: bool) {
        let initial_data = std::mem::take(&mut self.initial_data_to_a);
        let done = datagrams::run(stream, socket, initial_data, self.idle, &self.limiter, &self.cancel, use_datagrams).await;
        let counts = [done.dropped, done.datagrams_to_b, done.datagrams_to_a];
        self.end([Some(number), None], [done.a_to_b, done.b_to_a], done.error, counts);
    }

    fn end<const N: usize>(self, numbers: [Option<f64>; 2], bytes: [u64; 2], error: Option<(NetError, Option<Side>)>, counts: [u64; N]) {
        {
            let mut streams = lock(&self.state.streams);
            for number in numbers.into_iter().flatten() {
                streams.remove(&(number as u64));
            }
        }
        let (error, side) = match &error {
            None => (Value::Undefined, Value::Undefined),
            Some((error, side)) => (
                Value::from(error),
                side.map_or(Value::Undefined, |side| Value::Number(side as u8 as f64)),
            ),
        };
        let number = |n: u64| Value::Number(n as f64);
        let values = bytes.map(number).into_iter().chain([error, side]);
        self.settle(Value::Array(values.chain(counts.map(number)).collect()));
    }

    pub fn settle(self, value: Value) {
        let Self {
            state,
            promise,
            registration,
            ..
        } = self;
        drop(registration); // before JavaScript gets the result
        state.settle_low_priority(promise, value);
    }
}
