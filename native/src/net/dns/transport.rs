//! Moves DNS messages over UDP and TCP.
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;

use super::message::Family;

/// Maximum size of a UDP response. Without EDNS it is 512 bytes, but not every server complies.
const DATAGRAM: usize = 4_096;

/// A response or an error of a server.
pub struct Received {
    pub server: usize,
    /// Over TCP: the family that was queried.
    pub over_tcp: Option<Family>,
    pub data: io::Result<Vec<u8>>,
}

/// Receives the responses of a server until the lookup ends.
pub async fn listen(socket: Arc<UdpSocket>, server: usize, sender: mpsc::Sender<Received>) {
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        let mut buffer = [0; DATAGRAM]; // not across the await: it would be part of every lookup
        let data = match socket.try_recv(&mut buffer) {
            Ok(length) => Ok(buffer[..length].to_vec()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => Err(e),
        };
        if sender
            .send(Received {
                server,
                over_tcp: None,
                data,
            })
            .await
            .is_err()
        {
            return;
        }
    }
}

/// Sends a query and returns the response (RFC 1035 §4.2.2).
pub async fn query_over_tcp(address: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await?;
    let mut response = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut response).await?;
    Ok(response)
}
