//! The least that leads from one TCP connection over QUIC to another: a proxy and an agent without requests, ids, limits or metrics. What
//! they reach is the limit of what carries tunnels over quinn.
use std::io::{ErrorKind, IoSlice};
use std::net::{IpAddr, SocketAddr};

use bytes::{Buf, Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendStream};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::quic;
use crate::text;

/// Chunks written to a socket in one system call.
const VECTORS: usize = 64;
const SMALL_READ: usize = 8 << 10;
const LARGE_READ: usize = 256 << 10;

/// Accepts TCP connections and opens a stream for each on the connection of the one egress.
pub async fn ingress(host: IpAddr, cert: &str, key: &str) -> Result<(), String> {
    let endpoint = quic::listen((host, 0).into(), cert, key)?;
    let listener = listen(host)?;
    println!(
        "{}",
        json!({ "clients": listener.local_addr().map_err(text)?.to_string(), "agents": endpoint.local_addr().map_err(text)?.to_string() })
    );
    let connection = endpoint.accept().await.ok_or("Cannot accept: closed")?.await.map_err(text)?;
    loop {
        let (tcp, _) = listener.accept().await.map_err(text)?;
        let connection = connection.clone();
        tokio::spawn(async move {
            if let Ok((sink, source)) = connection.open_bi().await {
                couple(tcp, sink, source).await;
            }
        });
    }
}

fn listen(host: IpAddr) -> Result<TcpListener, String> {
    let socket = TcpSocket::new_v4().map_err(text)?;
    socket.bind(SocketAddr::from((host, 0))).map_err(text)?;
    socket.listen(4096).map_err(text)
}

/// Dials the ingress, and connects each of its streams to the target.
pub async fn egress(ingress: &str, ca: &str, target: &str) -> Result<(), String> {
    let endpoint = quic::dialler(ca, &["bare"], 65_536)?;
    let connection: Connection = quic::dial(&endpoint, ingress).await?;
    println!("{}", json!({ "connected": ingress }));
    loop {
        let (sink, source) = connection.accept_bi().await.map_err(text)?;
        let target = target.to_string();
        tokio::spawn(async move {
            if let Ok(tcp) = TcpStream::connect(target).await {
                couple(tcp, sink, source).await;
            }
        });
    }
}

/// Both directions, each to its end; a failure drops both, which resets.
async fn couple(tcp: TcpStream, sink: SendStream, source: RecvStream) {
    let _ = tcp.set_nodelay(true);
    let (from, to) = tcp.into_split();
    let _ = tokio::try_join!(up(from, sink), down(source, to));
}

async fn up(mut from: OwnedReadHalf, mut sink: SendStream) -> std::io::Result<()> {
    let mut size = SMALL_READ;
    loop {
        from.readable().await?; // a tunnel that waits holds no buffer
        let mut buffer = BytesMut::with_capacity(size);
        loop {
            match from.read_buf(&mut buffer).await? {
                0 => return sink.finish().map_err(std::io::Error::other),
                _ if buffer.len() == size => size = (size * 4).min(LARGE_READ),
                _ => {}
            }
            let last = buffer.capacity() - buffer.len() < SMALL_READ / 4;
            sink.write_chunk(buffer.split().freeze()).await?;
            if last {
                break;
            }
        }
    }
}

async fn down(mut source: RecvStream, mut to: OwnedWriteHalf) -> std::io::Result<()> {
    let mut chunks = vec![Bytes::new(); VECTORS];
    while let Some(count) = source.read_chunks(&mut chunks).await? {
        write_all(&to, &mut chunks[..count]).await?;
    }
    to.shutdown().await
}

async fn write_all(to: &OwnedWriteHalf, mut chunks: &mut [Bytes]) -> std::io::Result<()> {
    while !chunks.is_empty() {
        let slices: Vec<IoSlice> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
        match to.try_write_vectored(&slices) {
            Ok(mut written) => {
                while let Some(first) = chunks.first_mut() {
                    if written < first.len() {
                        first.advance(written);
                        break;
                    }
                    written -= first.len();
                    *first = Bytes::new();
                    chunks = &mut chunks[1..];
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => to.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
