//! Round trips in an open tunnel, alone or beside a download in another tunnel of the same agent.
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{json, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::bulk::to_blocking;
use crate::connect::Via;
use crate::origin::{sink, CHUNK};
use crate::stats::{percentiles, Errors};
use crate::{single, text};

const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// For the download to reach its full speed before anything is timed.
pub const HEAD_START: Duration = Duration::from_millis(500);

pub fn run(via: Via, time: Duration, size: usize, beside: bool) -> Result<Value, String> {
    let runtime = single()?;
    let mut errors = Errors::default();
    let mut samples = Vec::new();
    let download = if beside {
        Some(Download::start(to_blocking(runtime.block_on(via.open())?).map_err(text)?)?)
    } else {
        None
    };
    if let Err(error) = runtime.block_on(ping(&via, time, size, &mut samples)) {
        errors.add(error);
    }
    let mut mb_per_second = None;
    if let Some(download) = download {
        match download.stop() {
            Ok(rate) => mb_per_second = Some(rate),
            Err(error) => errors.add(format!("download: {error}")),
        }
    }
    Ok(json!({
        "roundTrips": samples.len(),
        "rttMs": percentiles(samples),
        "besideMbPerSecond": mb_per_second,
        "errors": errors.json(),
    }))
}

async fn ping(via: &Via, time: Duration, size: usize, samples: &mut Vec<Duration>) -> Result<(), String> {
    let mut stream = open_echo(via).await?;
    let mut data = vec![b'.'; size];
    let end = Instant::now() + time;
    loop {
        let started = Instant::now();
        if started >= end {
            return Ok(());
        }
        exchange(&mut stream, &mut data).await?;
        samples.push(started.elapsed());
    }
}

/// A tunnel to the origin's echo, checked with a round trip.
pub async fn open_echo(via: &Via) -> Result<TcpStream, String> {
    let mut stream = via.open().await?;
    stream
        .write_all(b"echo\n")
        .await
        .map_err(|error| format!("echo: {}", error.kind()))?;
    exchange(&mut stream, &mut [b'.'; 64]).await?;
    Ok(stream)
}

/// Sends `data` and gets it back.
pub async fn exchange(stream: &mut TcpStream, data: &mut [u8]) -> Result<(), String> {
    let both = async {
        stream.write_all(data).await?;
        stream.read_exact(data).await
    };
    match timeout(EXCHANGE_TIMEOUT, both).await {
        Err(_) => Err("echo: timed out".into()),
        Ok(result) => result.map(drop).map_err(|error| format!("echo: {}", error.kind())),
    }
}

/// Throughput of a download during `time`, after `head_start`; then it is cut off.
pub fn flow(via: &Via, head_start: Duration, time: Duration) -> Result<Value, String> {
    let stream = to_blocking(single()?.block_on(via.open())?).map_err(text)?;
    let got = Arc::new(AtomicU64::new(0));
    let (mut reading, counting) = (stream.try_clone().map_err(text)?, got.clone());
    (&stream).write_all(b"stream\n").map_err(text)?;
    let sinking = std::thread::spawn(move || -> Result<(), std::io::Error> {
        let mut buffer = vec![0; CHUNK];
        loop {
            match reading.read(&mut buffer)? {
                0 => return Ok(()),
                n => counting.fetch_add(n as u64, Ordering::Relaxed),
            };
        }
    });
    std::thread::sleep(head_start);
    let (before, began) = (got.load(Ordering::Relaxed), Instant::now());
    std::thread::sleep(time);
    let bytes = got.load(Ordering::Relaxed) - before;
    let seconds = began.elapsed().as_secs_f64();
    let mut errors = Errors::default();
    if sinking.is_finished() {
        let ended = sinking.join().expect("sinking does not panic");
        errors.add(ended.map_or_else(|error| format!("flow: {}", error.kind()), |()| "flow: it has ended".into()));
    }
    Ok(json!({ "bytes": bytes, "seconds": seconds, "mbPerSecond": bytes as f64 / seconds / 1e6, "errors": errors.json() }))
}

/// A download on a separate thread, until it is stopped.
struct Download {
    stream: std::net::TcpStream,
    started: Instant,
    sinking: std::thread::JoinHandle<std::io::Result<u64>>,
}

impl Download {
    fn start(mut stream: std::net::TcpStream) -> Result<Self, String> {
        writeln!(stream, "stream").map_err(text)?;
        let started = Instant::now();
        let mut other = stream.try_clone().map_err(text)?;
        let sinking = std::thread::spawn(move || sink(&mut other, u64::MAX));
        std::thread::sleep(HEAD_START);
        Ok(Self { stream, started, sinking })
    }

    /// MB a second since its start.
    fn stop(mut self) -> Result<f64, String> {
        self.stream.write_all(b".").map_err(text)?;
        let bytes = self.sinking.join().expect("sinking does not panic").map_err(text)?;
        if bytes == 0 {
            return Err("no bytes".into());
        }
        Ok(bytes as f64 / self.started.elapsed().as_secs_f64() / 1e6)
    }
}
