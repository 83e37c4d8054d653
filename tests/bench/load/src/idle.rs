//! Idle tunnels.
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::{json, Value};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::connect::Via;
use crate::rtt::{exchange, open_echo};
use crate::stats::Errors;

/// Tunnels that are opened concurrently.
const AT_ONCE: usize = 50;
/// A proxy at its limit refuses all others, each perhaps after 10 s.
const GIVE_UP_AFTER: u64 = 50;

/// Opens tunnels and checks each with a round trip.
pub async fn open(via: Via, tunnels: usize) -> (Vec<TcpStream>, Value) {
    let started = Instant::now();
    let shared = Arc::new(Mutex::new((tunnels, Vec::new(), Errors::default())));
    let mut tasks = JoinSet::new();
    for _ in 0..AT_ONCE.min(tunnels) {
        let (via, shared) = (via.clone(), shared.clone());
        tasks.spawn(async move {
            loop {
                {
                    let (left, _, errors) = &mut *shared.lock().expect("no holder of the lock panics");
                    if *left == 0 || errors.total() >= GIVE_UP_AFTER {
                        return;
                    }
                    *left -= 1;
                }
                let opened = open_echo(&via).await;
                let (_, held, errors) = &mut *shared.lock().expect("no holder of the lock panics");
                match opened {
                    Ok(stream) => held.push(stream),
                    Err(error) => errors.add(error),
                }
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("no holder of the lock panics");
    }
    let (_, held, errors) = &mut *shared.lock().expect("no holder of the lock panics");
    let held = std::mem::take(held);
    let result = json!({ "open": held.len(), "seconds": started.elapsed().as_secs_f64(), "errors": errors.json() });
    (held, result)
}

/// Which of them still go through, before all are closed.
pub async fn check(mut held: Vec<TcpStream>) -> Value {
    let mut errors = Errors::default();
    let mut alive = 0;
    for stream in &mut held {
        match exchange(stream, &mut [b'.'; 64]).await {
            Ok(()) => alive += 1,
            Err(error) => errors.add(error),
        }
    }
    json!({ "alive": alive, "errors": errors.json() })
}
