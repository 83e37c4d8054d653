//! Tunnels: calls that splice two streams, after connecting the second one if it does not exist yet.
use std::sync::atomic::Ordering;

use bytes::Bytes;
use napi_derive::napi;

use super::{closed, Engine};
use crate::addon::completion_queue::Value;
use crate::addon::splice_job::SpliceJob;
use crate::error::NetError;
use crate::net::happy_eyeballs::DialTarget;
use crate::net::tcp;
use crate::net::tls::ClientTls;
use crate::net::udp;
use crate::time::millis;

#[napi]
impl Engine {
    /// If the response head equals `established`: null, and the result of the splice under `op`, as with `splice`. Otherwise: as with
    /// `request`, undefined under `op`, and `a` is unchanged.
    #[napi]
    #[allow(clippy::too_many_arguments)] // as with `splice`
    pub fn open_tunnel(
        &self,
        response_op: f64,
        op: f64,
        connection: f64,
        head: &[u8],
        timeout_ms: u32,
        head_limit: u32,
        established: &[u8],
        datagrams: bool,
        a: f64,
        initial_data_to_a: Option<&[u8]>,
        idle_timeout_ms: u32,
        rates: Option<Vec<f64>>,
        cancellable: bool,
    ) {
        let state = &self.state;
        let response_promise = state.promise(response_op);
        let (Some(a_stream), false) = (state.stream(a), state.closed.load(Ordering::SeqCst)) else {
            return drop(state.promise(op));
        };
        let Some(connection) = state.connection(connection) else {
            drop(state.promise(op));
            return response_promise.settle(Err(closed("connection")));
        };
        let request = Box::pin(connection.request(head, millis(timeout_ms), head_limit as usize, datagrams));
        let established = Bytes::copy_from_slice(established);
        let mut job = SpliceJob::new(state, op, initial_data_to_a, idle_timeout_ms, rates, cancellable);
        // boxed: what opens the tunnel is freed before the relay begins
        let opening = Box::pin(async move {
            let response = tokio::select! {
                response = a_stream.while_connected(&job.cancel, request) => response,
                () = job.cancel.cancelled() => Err(NetError::cancelled()),
            };
            match response {
                Ok((b, head)) if head == established => {
                    let mut halves = Box::new((a_stream.take(&job.cancel), b.into()));
                    // before JavaScript is woken: the client waits for it
                    halves.0.write_now(&mut job.initial_data_to_a);
                    job.state.settle_low_priority(response_promise, Value::Null);
                    Some((job, halves))
                }
                response => {
                    let response = response.map(|(b, head)| Value::Array(vec![job.state.add_stream(b), Value::Latin1(head)]));
                    response_promise.settle(response);
                    job.settle(Value::Undefined);
                    None
                }
            }
        });
        state.runtime.spawn(async move {
            if let Some((job, halves)) = opening.await {
                job.run(halves, [Some(a), None]).await;
            }
        });
    }

    /// Returns bytes from a to b, bytes from b to a, error, side of the error (0 for a, 1 for b), and datagrams dropped. Frees both handles.
    #[napi]
    #[allow(clippy::too_many_arguments)] // an options object would have to be created and read for every tunnel
    pub fn splice(
        &self,
        op: f64,
        a: f64,
        b: f64,
        initial_data_to_a: Option<&[u8]>,
        idle_timeout_ms: u32,
        rates: Option<Vec<f64>>,
        cancellable: bool,
    ) {
        let state = &self.state;
        let (Some(a_stream), Some(b_stream), true) = (state.stream(a), state.stream(b), a != b) else {
            return drop(state.promise(op));
        };
        let mut job = SpliceJob::new(state, op, initial_data_to_a, idle_timeout_ms, rates, cancellable);
        let mut halves = Box::new((a_stream.take(&job.cancel), b_stream.take(&job.cancel)));
        // without waiting for the task: the client waits for its 200
        halves.0.write_now(&mut job.initial_data_to_a);
        state.runtime.spawn(job.run(halves, [Some(a), Some(b)]));
    }

    /// Returns the remote address, and the result of the splice under `op`, as with `splice`. If the connection fails: the error, undefined
    /// under `op`, and `a` is unchanged.
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
        initial_data_to_a: Option<&[u8]>,
        idle_timeout_ms: u32,
        rates: Option<Vec<f64>>,
    ) {
        let state = &self.state;
        let connected = state.promise(connected_op);
        let (Some(a_stream), false) = (state.stream(a), state.closed.load(Ordering::SeqCst)) else {
            return drop(state.promise(op));
        };
        let job = SpliceJob::new(state, op, initial_data_to_a, idle_timeout_ms, rates, true);
        let state = state.clone();
        let runtime = state.runtime;
        let dial = Box::pin(async move {
            let target = addresses.map_or(Ok(DialTarget::Name), |given| DialTarget::addresses(&given, port))?;
            let tls = tls.map(|tls| state.connector.get(tls, &[])).transpose()?;
            let connection = tcp::dial::dial(&state.resolver, host, port, target, millis(timeout_ms), tls).await?;
            let remote = connection.remote.clone();
            Ok((connection.halves(), remote))
        });
        let connecting = Box::pin(job.connect(a_stream, connected, dial)); // as in `open_tunnel`
        runtime.spawn(async move {
            if let Some((job, stream, b)) = connecting.await {
                job.run(Box::new((stream, b.into())), [Some(a), None]).await;
            }
        });
    }

    /// As `connect_and_splice`, with a UDP socket and the capsules of `a`. After the five values of `splice` the result has datagrams from a to b
    /// and datagrams from b to a. With `datagrams` the peer of `a` takes DATAGRAM frames.
    #[napi]
    #[allow(clippy::too_many_arguments)] // as with `splice`
    pub fn connect_and_relay_datagrams(
        &self,
        connected_op: f64,
        op: f64,
        a: f64,
        host: String,
        port: u16,
        addresses: Option<Vec<String>>,
        timeout_ms: u32,
        datagrams: bool,
        initial_data_to_a: Option<&[u8]>,
        idle_timeout_ms: u32,
        rates: Option<Vec<f64>>,
    ) {
        let state = &self.state;
        let connected = state.promise(connected_op);
        let (Some(a_stream), false) = (state.stream(a), state.closed.load(Ordering::SeqCst)) else {
            return drop(state.promise(op));
        };
        let job = SpliceJob::new(state, op, initial_data_to_a, idle_timeout_ms, rates, true);
        let state = state.clone();
        let runtime = state.runtime;
        let dial = Box::pin(async move {
            let target = addresses.map_or(Ok(DialTarget::Name), |given| DialTarget::addresses(&given, port))?;
            udp::dial(&state.resolver, &host, port, target, millis(timeout_ms)).await
        });
        let connecting = Box::pin(job.connect(a_stream, connected, dial)); // as in `open_tunnel`
        runtime.spawn(async move {
            if let Some((job, stream, socket)) = connecting.await {
                job.run_flow(Box::new(stream), socket, a, datagrams).await;
            }
        });
    }
}
