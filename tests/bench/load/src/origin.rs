//! The server behind the agent. The first line that a client sends says what it wants:
//! `send N` gives N bytes and ends; `sink N` takes N bytes, answers how many there were and ends; `both N` does both at once;
//! `stream` gives bytes until the client sends one, then ends; `echo` gives back what it gets.
//! Datagrams to the same port come back.
//! No command needs a client that finishes its direction first: some proxies end both directions then.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use crate::text;

pub const CHUNK: usize = 256 * 1024;
/// Transfers from this size on get a thread with a blocking socket, which costs the least a byte and disturbs no echo.
const BULK: u64 = 1 << 20;
const LINE_LIMIT: usize = 64;
/// A transfer in which no byte moves for this long has failed.
pub const STALL: Duration = Duration::from_secs(30);

pub async fn serve(listen: &str) -> Result<(), String> {
    let socket = TcpSocket::new_v4().map_err(text)?;
    socket.set_reuseaddr(true).map_err(text)?;
    socket.bind(listen.parse().map_err(text)?).map_err(text)?;
    let listener = socket.listen(4096).map_err(text)?;
    let address = listener.local_addr().map_err(text)?;
    crate::udp::serve(address)?;
    println!("{}", json!({ "listening": address.to_string() }));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(async move {
                    if let Err(error) = handle(stream).await {
                        eprintln!("{error}");
                    }
                });
            }
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn handle(mut stream: tokio::net::TcpStream) -> Result<(), String> {
    stream.set_nodelay(true).map_err(text)?;
    let Some((line, rest)) = read_line(&mut stream).await? else {
        return Ok(());
    };
    let (verb, count) = line.split_once(' ').unwrap_or((&line, "0"));
    let count: u64 = count.parse().map_err(|_| format!("Cannot do {line:?}"))?;
    match verb {
        "echo" => echo(stream, &rest).await,
        "send" if count < BULK => {
            stream.write_all(&vec![b'.'; count as usize]).await.map_err(text)?;
            finish(stream).await
        }
        "send" | "sink" | "both" | "stream" => {
            let stream = stream.into_std().map_err(text)?;
            stream.set_nonblocking(false).map_err(text)?;
            let (verb, already) = (verb.to_string(), rest.len() as u64);
            tokio::task::spawn_blocking(move || transfer(stream, &verb, count, already))
                .await
                .map_err(text)?
                .map_err(text)
        }
        _ => Err(format!("Cannot do {line:?}")),
    }
}

/// The first line and what came with it; nothing for a connection that ends without one.
async fn read_line(stream: &mut tokio::net::TcpStream) -> Result<Option<(String, Vec<u8>)>, String> {
    let mut data = Vec::with_capacity(LINE_LIMIT);
    loop {
        if stream.read_buf(&mut data).await.map_err(text)? == 0 {
            return Ok(None);
        }
        if let Some(end) = data.iter().position(|&byte| byte == b'\n') {
            let rest = data.split_off(end + 1);
            return Ok(Some((String::from_utf8_lossy(&data[..end]).into_owned(), rest)));
        }
        if data.len() >= LINE_LIMIT {
            return Err("Cannot read a command: the line is too long".into());
        }
    }
}

async fn echo(mut stream: tokio::net::TcpStream, rest: &[u8]) -> Result<(), String> {
    stream.write_all(rest).await.map_err(text)?;
    let mut buffer = vec![0; 4096];
    loop {
        let count = stream.read(&mut buffer).await.map_err(text)?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count]).await.map_err(text)?;
    }
}

/// Closing with unread bytes would be a reset: the client's end is awaited.
async fn finish(mut stream: tokio::net::TcpStream) -> Result<(), String> {
    stream.shutdown().await.map_err(text)?;
    let mut buffer = [0; 512];
    while stream.read(&mut buffer).await.map_err(text)? > 0 {}
    Ok(())
}

/// `already` bytes of the transfer came with the command.
fn transfer(mut stream: TcpStream, verb: &str, count: u64, already: u64) -> std::io::Result<()> {
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    match verb {
        "send" => send(&mut stream, count)?,
        "sink" => {
            let sunk = sink(&mut stream, count.saturating_sub(already))? + already;
            writeln!(stream, "{sunk}")?;
        }
        "both" => {
            let mut other = stream.try_clone()?;
            let sending = std::thread::spawn(move || send(&mut other, count));
            let sunk = sink(&mut stream, count.saturating_sub(already))? + already;
            sending.join().expect("sending does not panic")?;
            writeln!(stream, "{sunk}")?;
        }
        _ => return send_until_told(&mut stream),
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    match sink(&mut stream, u64::MAX)? {
        0 => Ok(()),
        more => Err(std::io::Error::other(format!("{verb}: {more} bytes more than the client sent"))),
    }
}

pub fn send(stream: &mut TcpStream, count: u64) -> std::io::Result<()> {
    let chunk = vec![b'.'; CHUNK];
    let mut left = count;
    while left > 0 {
        let next = left.min(CHUNK as u64) as usize;
        stream.write_all(&chunk[..next])?;
        left -= next as u64;
    }
    Ok(())
}

/// Takes `count` bytes, or as many as come before the end, and says how many.
pub fn sink(stream: &mut TcpStream, count: u64) -> std::io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut got = 0;
    while got < count {
        let want = (count - got).min(CHUNK as u64) as usize;
        match stream.read(&mut buffer[..want])? {
            0 => break,
            read => got += read as u64,
        }
    }
    Ok(got)
}

/// Its end is not reported: some clients cut it off early.
fn send_until_told(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(None)?;
    let mut other = stream.try_clone()?;
    let told = std::thread::spawn(move || other.read(&mut [0]));
    let chunk = vec![b'.'; CHUNK];
    while !told.is_finished() && stream.write_all(&chunk).is_ok() {}
    let finished = stream.shutdown(std::net::Shutdown::Write);
    if told.join().expect("reading does not panic").is_ok() && finished.is_ok() {
        let _ = sink(stream, u64::MAX);
    }
    Ok(())
}
