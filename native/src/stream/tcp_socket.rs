//! A TCP connection that both halves of a stream share. It is reset when it is dropped before both directions have ended.
use std::future::poll_fn;
use std::io::{ErrorKind, IoSlice};
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::error::NetError;

/// Chunks of QUIC data written to a socket in one system call.
pub const MAX_IO_SLICES: usize = 64;
/// After the end of both directions a peer that still sends is read, and ignored, for so long: closing at once would reset the
/// connection, and it could lose the answer it has not read yet (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;
/// Directions of a TCP connection.
pub const READ_ENDED: u8 = 1;
pub const WRITE_ENDED: u8 = 2;
/// What the system holds of a TCP connection and cannot send yet. Left alone, it takes megabytes for each peer that reads nothing, and where
/// that makes all of the system's memory for TCP (`net.ipv4.tcp_mem`), every other connection slows to a crawl.
#[cfg(target_os = "linux")]
const MAX_UNSENT: u32 = 128 << 10;

/// Only speed and memory depend on it: where it fails, the connection goes on as the system has it.
fn limit_unsent(_stream: &TcpStream) {
    #[cfg(target_os = "linux")]
    let _ = SockRef::from(_stream).set_tcp_notsent_lowat(MAX_UNSENT);
}

/// A TCP connection that both halves share.
pub struct Tcp {
    pub stream: TcpStream,
    /// Directions that have ended in good order.
    ended: AtomicU8,
    /// A write failed. The kernel reports an error once, and then an end: that end is none.
    broken: AtomicBool,
}

impl Tcp {
    pub fn new(stream: TcpStream) -> Arc<Self> {
        limit_unsent(&stream);
        Arc::new(Self {
            stream,
            ended: AtomicU8::new(0),
            broken: AtomicBool::new(false),
        })
    }

    /// From now on the connection is reset (RST) when it is closed before both directions have ended, also by the system when this process
    /// is killed: what was cut off must not look complete.
    pub fn guard(&self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)); // fails on a connection that is gone already
    }

    pub fn end(&self, direction: u8) {
        self.ended.fetch_or(direction, Ordering::AcqRel);
    }

    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    pub fn failed(&self, error: std::io::Error) -> NetError {
        self.broken.store(true, Ordering::Relaxed);
        NetError::stream(&error)
    }

    /// Resolves when the connection is reset, also when nobody reads or writes.
    pub async fn reset(&self) -> NetError {
        loop {
            if let Err(e) = self.stream.ready(Interest::ERROR).await {
                return self.failed(e);
            }
            match self.stream.take_error() {
                Ok(Some(e)) | Err(e) => return self.failed(e),
                Ok(None) if self.is_broken() => return self.failed(ErrorKind::ConnectionReset.into()),
                // readiness without an error: wait for the next
                Ok(None) => drop(self.stream.try_io(Interest::ERROR, || Err::<(), _>(ErrorKind::WouldBlock.into()))),
            }
        }
    }

    /// Resolves when the peer's system has acknowledged all that was written, or none of it will be sent any more.
    pub async fn acknowledged(&self) {
        let mut wait = Duration::from_millis(1);
        while !self.is_broken() && self.unacknowledged() > 0 {
            tokio::time::sleep(wait).await;
            wait = (2 * wait).min(Duration::from_millis(20));
        }
    }

    /// Bytes in the send queue (tcp(7), SIOCOUTQ); 0 where the system is not asked.
    fn unacknowledged(&self) -> usize {
        #[cfg(target_os = "linux")]
        {
            let mut bytes: libc::c_int = 0;
            // SAFETY: the request writes one int to the address given, which is valid for the call; `stream` keeps the descriptor open
            let result = unsafe { libc::ioctl(self.stream.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
            if result == 0 {
                return usize::try_from(bytes).unwrap_or(0);
            }
        }
        0
    }

    /// Reads and ignores what the peer still sends, up to its end.
    pub async fn linger(&self) {
        let mut scratch = vec![0; 16 << 10];
        let mut left = LINGER_BYTES;
        let drain = async {
            while self.stream.readable().await.is_ok() {
                match self.stream.try_read(&mut scratch) {
                    Ok(0) => return,
                    Ok(n) if n > left => return,
                    Ok(n) => left -= n,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(LINGER, drain).await; // what comes later is answered with RST
    }

    pub async fn write_vectored(&self, chunks: &mut [Bytes]) -> Result<(), NetError> {
        let mut at = chunks.iter().take_while(|chunk| chunk.is_empty()).count();
        while at < chunks.len() {
            let written = {
                let mut slices = [IoSlice::new(&[]); MAX_IO_SLICES];
                let mut n = 0;
                for (slice, chunk) in slices.iter_mut().zip(&chunks[at..]) {
                    *slice = IoSlice::new(chunk);
                    n += 1;
                }
                self.stream.try_write_vectored(&slices[..n])
            };
            match written {
                Ok(mut n) => {
                    while at < chunks.len() && n >= chunks[at].len() {
                        n -= chunks[at].len();
                        chunks[at] = Bytes::new(); // frees QUIC's buffer now
                        at += 1;
                    }
                    if n > 0 {
                        chunks[at].advance(n);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    poll_fn(|cx| self.stream.poll_write_ready(cx)).await.map_err(|e| self.failed(e))?;
                }
                Err(e) => return Err(self.failed(e)),
            }
        }
        Ok(())
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        if *self.ended.get_mut() == READ_ENDED | WRITE_ENDED {
            let _ = SockRef::from(&self.stream).set_linger(None); // fails on a connection that is gone already
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn the_system_holds_little_for_a_peer_that_reads_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (stream, peer) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let tcp = Tcp::new(stream.unwrap());
        let mut written = 0;
        tcp.stream.writable().await.unwrap();
        while let Ok(n) = tcp.stream.try_write(&[0; 64 << 10]) {
            written += n;
        }
        assert!(written > 0);
        let held = tcp.unacknowledged();
        assert!(held < 2 * MAX_UNSENT as usize, "{held} of {written} bytes"); // what is sent is in the peer's buffer
        drop(peer);
    }
}
