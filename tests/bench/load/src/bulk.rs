//! Throughput: down, up, or both at once, in one or several concurrent tunnels.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use serde_json::{json, Value};
use tokio::runtime::Runtime;

use crate::connect::Via;
use crate::origin::{send, sink, STALL};
use crate::stats::Errors;

#[derive(Clone, Copy)]
pub enum Direction {
    Down,
    Up,
    Both,
}

/// Opens all tunnels first. Timed is from the command to the last byte, or to the origin's confirmation of it.
pub fn run(runtime: Runtime, via: Via, direction: Direction, tunnels: usize, bytes: u64) -> Value {
    let mut errors = Errors::default();
    let mut open = Vec::new();
    for _ in 0..tunnels {
        match runtime
            .block_on(via.open())
            .and_then(|stream| to_blocking(stream).map_err(|error| error.to_string()))
        {
            Ok(stream) => open.push(stream),
            Err(error) => errors.add(error),
        }
    }
    let start = Arc::new(Barrier::new(open.len() + 1));
    let transfers: Vec<_> = open
        .into_iter()
        .map(|stream| {
            let start = start.clone();
            std::thread::spawn(move || {
                start.wait();
                transfer(stream, direction, bytes)
            })
        })
        .collect();
    start.wait();
    let mut moved = 0;
    let mut span: Option<(Instant, Instant)> = None;
    for transfer in transfers {
        match transfer.join().expect("a transfer does not panic") {
            Ok(done) => {
                moved += done.bytes;
                let (first, last) = span.unwrap_or((done.began, done.ended));
                span = Some((first.min(done.began), last.max(done.ended)));
            }
            Err(error) => errors.add(format!("transfer: {error}")),
        }
    }
    let seconds = span.map_or(0.0, |(first, last)| (last - first).as_secs_f64());
    let rate = (moved > 0).then(|| moved as f64 / seconds / 1e6);
    json!({ "tunnels": tunnels, "bytes": moved, "seconds": seconds, "mbPerSecond": rate, "errors": errors.json() })
}

pub fn to_blocking(stream: tokio::net::TcpStream) -> std::io::Result<TcpStream> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    Ok(stream)
}

struct Transfer {
    /// Of both directions.
    bytes: u64,
    /// Taken by the thread that transfers, because the main thread may wake up late.
    began: Instant,
    /// When the last byte was confirmed.
    ended: Instant,
}

fn transfer(mut stream: TcpStream, direction: Direction, bytes: u64) -> Result<Transfer, String> {
    let began = Instant::now();
    let failed = |error: std::io::Error| error.kind().to_string();
    let moved = match direction {
        Direction::Down => {
            writeln!(stream, "send {bytes}").map_err(failed)?;
            expect(sink(&mut stream, bytes).map_err(failed)?, bytes, "down")?
        }
        Direction::Up => {
            writeln!(stream, "sink {bytes}").map_err(failed)?;
            send(&mut stream, bytes).map_err(failed)?;
            read_count(&mut stream, bytes)?
        }
        Direction::Both => {
            writeln!(stream, "both {bytes}").map_err(failed)?;
            let mut other = stream.try_clone().map_err(failed)?;
            let sending = std::thread::spawn(move || send(&mut other, bytes));
            let down = expect(sink(&mut stream, bytes).map_err(failed)?, bytes, "down")?;
            sending.join().expect("sending does not panic").map_err(failed)?;
            down + read_count(&mut stream, bytes)?
        }
    };
    let ended = Instant::now();
    // the origin closes after what it was asked for; more bytes, or a reset, are a fault of the proxy or the agent
    expect(
        sink(&mut stream, u64::MAX).map_err(|error| format!("end: {}", error.kind()))?,
        0,
        "after the end",
    )?;
    Ok(Transfer {
        bytes: moved,
        began,
        ended,
    })
}

/// The origin's count of what it got.
fn read_count(stream: &mut TcpStream, bytes: u64) -> Result<u64, String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte).map_err(|error| format!("count: {}", error.kind()))? {
            0 => return Err("count: ended without it".into()),
            _ if byte[0] == b'\n' => break,
            _ => line.push(byte[0]),
        }
    }
    expect(String::from_utf8_lossy(&line).parse().unwrap_or_default(), bytes, "up")
}

pub fn expect(got: u64, wanted: u64, what: &str) -> Result<u64, String> {
    if got == wanted {
        Ok(got)
    } else {
        Err(format!("{what}: {got} bytes instead of {wanted}"))
    }
}
