//! Bare QUIC: sender and receiver on streams of one connection. The origin of [`crate::origin`] and its clients, without TCP.
use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use serde_json::{json, Value};
use tokio::task::JoinSet;

use crate::bulk::{expect, Direction};
use crate::origin::CHUNK;
use crate::rate::{self, Samples, ANSWER};
use crate::rtt::HEAD_START;
use crate::stats::{percentiles, Errors};
use crate::{quic, text};

const LINE_LIMIT: usize = 64;
/// Chunks taken from a stream at once.
const VECTORS: usize = 64;

/// How to reach a bare origin.
pub struct Bare {
    pub address: String,
    pub ca: String,
}

impl Bare {
    async fn dial(&self) -> Result<Connection, String> {
        quic::dial(&quic::dialler(&self.ca, &["bare"], 16)?, &self.address).await
    }
}

pub async fn serve(host: IpAddr, cert: &str, key: &str) -> Result<(), String> {
    let endpoint = quic::listen((host, 0).into(), cert, key)?;
    println!("{}", json!({ "listening": endpoint.local_addr().map_err(text)?.to_string() }));
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((sink, source)) = connection.accept_bi().await {
                tokio::spawn(async move {
                    let _ = handle(sink, source).await; // the client sees a failure
                });
            }
        });
    }
    Ok(())
}

async fn handle(mut sink: SendStream, mut source: RecvStream) -> Result<(), String> {
    let mut line = Vec::new();
    let mut rest = Bytes::new();
    while rest.is_empty() {
        let Some(chunk) = source.read_chunk(CHUNK, true).await.map_err(text)? else {
            break;
        };
        match chunk.bytes.iter().position(|&byte| byte == b'\n') {
            Some(end) => {
                line.extend_from_slice(&chunk.bytes[..end]);
                rest = chunk.bytes.slice(end + 1..);
                break;
            }
            None if line.len() > LINE_LIMIT => return Err("the line is too long".into()),
            None => line.extend_from_slice(&chunk.bytes),
        }
    }
    let line = String::from_utf8_lossy(&line).into_owned();
    let (verb, count) = line.split_once(' ').unwrap_or((&line, "0"));
    let count: u64 = count.parse().map_err(text)?;
    let already = rest.len() as u64;
    match verb {
        "send" => send(&mut sink, count).await?,
        "sink" => {
            let sunk = receive(&mut source, count - already).await? + already;
            sink.write_all(format!("{sunk}\n").as_bytes()).await.map_err(text)?;
        }
        "both" => {
            let (sent, sunk) = tokio::join!(send(&mut sink, count), receive(&mut source, count - already));
            sent?;
            sink.write_all(format!("{}\n", sunk? + already).as_bytes()).await.map_err(text)?;
        }
        "stream" => send(&mut sink, u64::MAX).await?,
        _ => {
            sink.write_chunk(rest).await.map_err(text)?;
            while let Some(chunk) = source.read_chunk(CHUNK, true).await.map_err(text)? {
                sink.write_chunk(chunk.bytes).await.map_err(text)?;
            }
        }
    }
    sink.finish().map_err(text)
}

async fn send(sink: &mut SendStream, count: u64) -> Result<(), String> {
    let chunk = Bytes::from(vec![b'.'; CHUNK]);
    let mut left = count;
    while left > 0 {
        let next = left.min(CHUNK as u64) as usize;
        sink.write_chunk(chunk.slice(..next)).await.map_err(text)?;
        left -= next as u64;
    }
    Ok(())
}

/// Takes at least `count` bytes, or as many as come before the end, and says how many.
async fn receive(source: &mut RecvStream, count: u64) -> Result<u64, String> {
    let mut chunks = vec![Bytes::new(); VECTORS];
    let mut got = 0;
    while got < count {
        match source.read_chunks(&mut chunks).await.map_err(text)? {
            None => break,
            Some(n) => got += chunks[..n].iter().map(|chunk| chunk.len() as u64).sum::<u64>(),
        }
    }
    Ok(got)
}

async fn open(connection: &Connection, command: &str) -> Result<(SendStream, RecvStream), String> {
    let (mut sink, source) = connection.open_bi().await.map_err(text)?;
    sink.write_all(command.as_bytes()).await.map_err(text)?;
    Ok((sink, source))
}

pub async fn bulk(bare: Bare, direction: Direction, tunnels: usize, bytes: u64) -> Result<Value, String> {
    let connection = bare.dial().await?;
    let began = Instant::now();
    let mut transfers = JoinSet::new();
    for _ in 0..tunnels {
        let connection = connection.clone();
        transfers.spawn(async move { transfer(&connection, direction, bytes).await });
    }
    let mut moved = 0;
    let mut errors = Errors::default();
    while let Some(transfer) = transfers.join_next().await {
        match transfer.expect("a transfer does not panic") {
            Ok(bytes) => moved += bytes,
            Err(error) => errors.add(format!("transfer: {error}")),
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let rate = (moved > 0).then(|| moved as f64 / seconds / 1e6);
    Ok(json!({ "tunnels": tunnels, "bytes": moved, "seconds": seconds, "mbPerSecond": rate, "errors": errors.json() }))
}

async fn transfer(connection: &Connection, direction: Direction, bytes: u64) -> Result<u64, String> {
    let count = format!("{bytes}\n").len() as u64;
    match direction {
        Direction::Down => {
            let (_sink, mut source) = open(connection, &format!("send {bytes}\n")).await?;
            expect(receive(&mut source, u64::MAX).await?, bytes, "down")
        }
        Direction::Up => {
            let (mut sink, mut source) = open(connection, &format!("sink {bytes}\n")).await?;
            send(&mut sink, bytes).await?;
            expect(receive(&mut source, u64::MAX).await?, count, "up")?;
            Ok(bytes)
        }
        Direction::Both => {
            let (mut sink, mut source) = open(connection, &format!("both {bytes}\n")).await?;
            let (sent, got) = tokio::join!(send(&mut sink, bytes), receive(&mut source, u64::MAX));
            sent?;
            expect(got?, bytes + count, "both")?;
            Ok(2 * bytes)
        }
    }
}

pub async fn rates(bare: Bare, clients: usize, time: Duration) -> Result<Value, String> {
    let connection = bare.dial().await?;
    let end = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let connection = connection.clone();
        tasks.spawn(async move {
            let mut samples = Samples::default();
            while Instant::now() < end {
                match one(&connection).await {
                    Ok(total) => samples.add(None, total, end),
                    Err(error) => samples.errors.add(error),
                }
            }
            samples
        });
    }
    Ok(rate::collect(tasks, clients, time).await)
}

async fn one(connection: &Connection) -> Result<Duration, String> {
    let started = Instant::now();
    let (mut sink, mut source) = open(connection, &format!("send {ANSWER}\n")).await?;
    sink.finish().map_err(text)?;
    expect(receive(&mut source, u64::MAX).await?, ANSWER as u64, "exchange")?;
    Ok(started.elapsed())
}

pub async fn round_trips(bare: Bare, time: Duration, size: usize, beside: bool) -> Result<Value, String> {
    let connection = bare.dial().await?;
    let mut download = None;
    if beside {
        let (_sink, mut source) = open(&connection, "stream\n").await?;
        let began = Instant::now();
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let sinking = tokio::spawn(async move {
            let mut chunks = vec![Bytes::new(); VECTORS];
            let mut got = 0;
            loop {
                tokio::select! {
                    read = source.read_chunks(&mut chunks) => match read.map_err(text)? {
                        None => return Err("the download has ended".to_string()),
                        Some(n) => got += chunks[..n].iter().map(|chunk| chunk.len() as u64).sum::<u64>(),
                    },
                    _ = &mut stopped => return Ok(got),
                }
            }
        });
        tokio::time::sleep(HEAD_START).await;
        download = Some((began, stop, sinking, _sink));
    }
    let (mut sink, mut source) = open(&connection, "echo\n").await?;
    let mut samples = Vec::new();
    let mut buffer = vec![0; size];
    let data = Bytes::from(vec![b'.'; size]);
    let end = Instant::now() + time;
    while Instant::now() < end {
        let started = Instant::now();
        sink.write_chunk(data.clone()).await.map_err(text)?;
        source.read_exact(&mut buffer).await.map_err(text)?;
        samples.push(started.elapsed());
    }
    let mut mb_per_second = None;
    if let Some((began, stop, sinking, _sink)) = download {
        let _ = stop.send(()); // fails if the download has failed, which is reported next
        let bytes = sinking.await.map_err(text)??;
        mb_per_second = Some(bytes as f64 / began.elapsed().as_secs_f64() / 1e6);
    }
    Ok(json!({
        "roundTrips": samples.len(),
        "rttMs": percentiles(samples),
        "besideMbPerSecond": mb_per_second,
        "errors": {},
    }))
}
