//! Tunnels a second: each client opens a tunnel, makes one small request, closes it, and repeats.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{json, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::connect::Via;
use crate::stats::{percentiles, Errors};

pub const ANSWER: usize = 100;
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// Of a run that opens a number of tunnels.
const COUNT_TIMEOUT: Duration = Duration::from_secs(60);
/// A proxy that refuses at once would be asked a hundred thousand times.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(50);

#[derive(Default)]
pub struct Samples {
    setup: Vec<Duration>,
    total: Vec<Duration>,
    /// Completed before the end; the rate counts these.
    in_time: u64,
    pub errors: Errors,
}

impl Samples {
    /// Adds one tunnel; bare QUIC has no `setup`.
    pub fn add(&mut self, setup: Option<Duration>, total: Duration, end: Instant) {
        self.setup.extend(setup);
        self.total.push(total);
        self.in_time += u64::from(Instant::now() < end);
    }

    /// Opens a tunnel and adds it.
    async fn exchange(&mut self, via: &Via, end: Instant) {
        match one(via).await {
            Ok((setup, total)) => self.add(Some(setup), total, end),
            Err(error) => {
                self.errors.add(error);
                tokio::time::sleep(PAUSE_AFTER_ERROR).await;
            }
        }
    }
}

/// `setup` is the time from the TCP connection to the proxy's answer, `total` to the origin's. Both include tunnels that are open at the end.
pub async fn run(via: Via, clients: usize, time: Duration) -> Value {
    let end = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        tasks.spawn(client(via.clone(), end));
    }
    collect(tasks, clients, time).await
}

/// As [`run`], but opens `tunnels` tunnels, however long that takes.
pub async fn run_count(via: Via, clients: usize, tunnels: u64) -> Value {
    let started = Instant::now();
    let end = started + COUNT_TIMEOUT;
    let left = Arc::new(AtomicU64::new(tunnels));
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (via, left) = (via.clone(), left.clone());
        tasks.spawn(async move {
            let mut samples = Samples::default();
            let take = || {
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                    .is_ok()
            };
            while Instant::now() < end && take() {
                samples.exchange(&via, end).await;
            }
            samples
        });
    }
    let mut result = collect(tasks, clients, COUNT_TIMEOUT).await;
    result["perSecond"] = json!(result["tunnels"].as_f64().unwrap_or(0.0) / started.elapsed().as_secs_f64());
    result
}

pub async fn collect(mut tasks: JoinSet<Samples>, clients: usize, time: Duration) -> Value {
    let mut all = Samples::default();
    let mut errors = Errors::default();
    while let Some(samples) = tasks.join_next().await {
        let samples = samples.expect("a client does not panic");
        all.setup.extend(samples.setup);
        all.total.extend(samples.total);
        all.in_time += samples.in_time;
        errors.merge(samples.errors);
    }
    json!({
        "clients": clients,
        "tunnels": all.total.len(),
        "perSecond": all.in_time as f64 / time.as_secs_f64(),
        "setupMs": percentiles(all.setup),
        "totalMs": percentiles(all.total),
        "errors": errors.json(),
    })
}

async fn client(via: Via, end: Instant) -> Samples {
    let mut samples = Samples::default();
    while Instant::now() < end {
        samples.exchange(&via, end).await;
    }
    samples
}

async fn one(via: &Via) -> Result<(Duration, Duration), String> {
    let started = Instant::now();
    let mut stream = via.open().await?;
    let setup = started.elapsed();
    let exchange = async {
        stream.write_all(format!("send {ANSWER}\n").as_bytes()).await?;
        let mut answer = [0; ANSWER + 1];
        let mut got = stream.read_exact(&mut answer[..ANSWER]).await?;
        let total = started.elapsed();
        got += stream.read(&mut answer[ANSWER..]).await?;
        std::io::Result::Ok((total, got))
    };
    match timeout(EXCHANGE_TIMEOUT, exchange).await {
        Err(_) => Err("exchange: timed out".into()),
        Ok(Err(error)) => Err(format!("exchange: {}", error.kind())),
        Ok(Ok((_, got))) if got != ANSWER => Err(format!("exchange: more than {ANSWER} bytes")),
        Ok(Ok((total, _))) => Ok((setup, total)),
    }
}
