//! Many idle agents: each a connection to the proxy, all from one socket. They use version 2 of the agent link if the proxy supports it
//! (docs/protocol.md): credentials, hello, and an answer to every ping.
use std::sync::{Arc, Mutex};
use std::time::Instant;

use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use serde_json::{json, Value};
use tokio::task::JoinSet;

use crate::quic;
use crate::stats::Errors;
use crate::text;

const VERSION_2: &str = "reverse-http-proto/2";
/// Concurrent handshakes.
const AT_ONCE: usize = 32;
const GIVE_UP_AFTER: u64 = 50;
const FRAME_LIMIT: usize = 65_536;
const HELLO: u8 = 0;
const PING: u8 = 2;
const PONG: u8 = 3;

/// Connects them, with the ids `swarm-0`, `swarm-1`, ….
pub async fn connect_all(proxy: String, ca: &str, agents: usize) -> Result<(Vec<Connection>, Value), String> {
    // they serve no tunnels: permission to open streams costs memory
    let endpoint = quic::dialler(ca, &[VERSION_2, "reverse-http-proto"], 16)?;
    let started = Instant::now();
    let shared = Arc::new(Mutex::new((0..agents, Vec::new(), Errors::default())));
    let mut tasks = JoinSet::new();
    for _ in 0..AT_ONCE.min(agents) {
        let (endpoint, proxy, shared) = (endpoint.clone(), proxy.clone(), shared.clone());
        tasks.spawn(async move {
            loop {
                let id = {
                    let (left, _, errors) = &mut *shared.lock().expect("no holder of the lock panics");
                    match left.next() {
                        Some(id) if errors.total() < GIVE_UP_AFTER => id,
                        _ => return,
                    }
                };
                let connected = connect(&endpoint, &proxy, id).await;
                let (_, connections, errors) = &mut *shared.lock().expect("no holder of the lock panics");
                match connected {
                    Ok(connection) => connections.push(connection),
                    Err(error) => errors.add(error),
                }
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("no holder of the lock panics");
    }
    let (_, connections, errors) = &mut *shared.lock().expect("no holder of the lock panics");
    let connections = std::mem::take(connections);
    let result = json!({ "connected": connections.len(), "seconds": started.elapsed().as_secs_f64(), "errors": errors.json() });
    Ok((connections, result))
}

/// Counts those that are still connected, then closes all.
pub fn close_all(connections: &[Connection]) -> Value {
    let mut errors = Errors::default();
    for reason in connections.iter().filter_map(Connection::close_reason) {
        errors.add(format!("lost: {reason}"));
    }
    let alive = connections.len() as u64 - errors.total();
    for connection in connections {
        connection.close(0u8.into(), b"");
    }
    json!({ "alive": alive, "errors": errors.json() })
}

async fn connect(endpoint: &Endpoint, proxy: &str, id: usize) -> Result<Connection, String> {
    let connection = quic::dial(endpoint, proxy).await?;
    let (mut sink, mut source) = connection.open_bi().await.map_err(text)?;
    sink.write_all(&frame(format!("swarm-{id}").as_bytes())).await.map_err(text)?;
    sink.finish().map_err(text)?;
    if is_version_2(&connection) {
        let (mut sink, source) = connection.open_bi().await.map_err(text)?;
        let hello = json!({ "instance": format!("swarm-{id}"), "version": "bench/0", "host": "", "labels": {} }).to_string();
        sink.write_all(&frame(&[&[HELLO], hello.as_bytes()].concat())).await.map_err(text)?;
        tokio::spawn(answer_pings(sink, source));
    }
    let answer = source
        .read_to_end(FRAME_LIMIT)
        .await
        .map_err(|error| format!("authentication: {error}"))?;
    if answer == frame(b"authenticated") {
        Ok(connection)
    } else {
        Err("authentication: refused".into())
    }
}

fn is_version_2(connection: &Connection) -> bool {
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    data.and_then(|data| data.protocol).is_some_and(|name| name == VERSION_2.as_bytes())
}

fn frame(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_be_bytes(), payload].concat()
}

/// Until the connection ends.
async fn answer_pings(mut sink: SendStream, mut source: RecvStream) -> Option<()> {
    loop {
        let mut length = [0; 4];
        source.read_exact(&mut length).await.ok()?;
        let mut payload = vec![0; (u32::from_be_bytes(length) as usize).min(FRAME_LIMIT)];
        source.read_exact(&mut payload).await.ok()?;
        if payload.first() == Some(&PING) {
            payload[0] = PONG;
            sink.write_all(&frame(&payload)).await.ok()?;
        }
    }
}
