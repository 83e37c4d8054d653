//! A TCP connection, shared by both halves of a stream. It is reset if it is dropped before both directions have ended.
use std::future::poll_fn;
use std::io::{ErrorKind, IoSlice};
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::error::NetError;

/// Maximum number of QUIC chunks written to a socket in one system call.
pub const MAX_IO_SLICES: usize = 64;
/// After both directions have ended, data of a peer that still sends is read and discarded for this long. Closing at once would reset the
/// connection, and the peer could lose the response (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;
/// Bits for the directions that have ended.
pub const READ_ENDED: u8 = 1;
pub const WRITE_ENDED: u8 = 2;
/// Unsent bytes that the kernel buffers per TCP connection. The default is megabytes for each peer that does not read; once that exhausts
/// `net.ipv4.tcp_mem`, all connections slow down.
#[cfg(target_os = "linux")]
const MAX_UNSENT: u32 = 128 << 10;

/// Best effort: only speed and memory depend on it.
fn limit_unsent(_stream: &TcpStream) {
    #[cfg(target_os = "linux")]
    let _ = SockRef::from(_stream).set_tcp_notsent_lowat(MAX_UNSENT);
}

/// A TCP connection, shared by both halves.
pub struct Tcp {
    pub stream: TcpStream,
    /// Directions that have ended gracefully.
    ended: AtomicU8,
    /// A read or write failed. The kernel reports an error once and then an end, which must not be taken for one.
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

    /// Resets the connection (RST) if it is closed before both directions have ended, even if the process is killed: a truncated stream
    /// must not look complete.
    pub fn guard(&self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)); // fails if the connection has ended
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

    /// Resolves when the connection is reset, even if nothing reads or writes.
    pub async fn reset(&self) -> NetError {
        loop {
            if let Err(e) = self.stream.ready(Interest::ERROR).await {
                return self.failed(e);
            }
            match self.stream.take_error() {
                Ok(Some(e)) | Err(e) => return self.failed(e),
                Ok(None) if self.is_broken() => return self.failed(ErrorKind::ConnectionReset.into()),
                // spurious readiness
                Ok(None) => drop(self.stream.try_io(Interest::ERROR, || Err::<(), _>(ErrorKind::WouldBlock.into()))),
            }
        }
    }

    /// Resolves when the peer has acknowledged all data, or the connection is broken.
    pub async fn acknowledged(&self) {
        let mut wait = Duration::from_millis(1);
        while !self.is_broken() && self.unacknowledged() > 0 {
            tokio::time::sleep(wait).await;
            wait = (2 * wait).min(Duration::from_millis(20));
        }
    }

    /// Bytes in the send queue (tcp(7), SIOCOUTQ); always 0 except on Linux.
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

    /// Segments sent, and segments sent again (tcp(7), TCP_INFO); 0 except on Linux.
    pub fn segments(&self) -> [u32; 2] {
        #[cfg(target_os = "linux")]
        {
            // offsets of tcpi_segs_out and tcpi_total_retrans: not every C library has all fields of the kernel's struct
            const SENT: usize = 136;
            const RETRANSMITTED: usize = 100;
            const LENGTH: usize = SENT + 4;
            let mut info = [0u8; LENGTH];
            let mut length = LENGTH as libc::socklen_t;
            // SAFETY: the kernel writes at most `length` bytes to `info`, which has as many; `stream` keeps the descriptor open
            let result = unsafe {
                let fd = self.stream.as_raw_fd();
                libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut length)
            };
            if result == 0 {
                // fields that an older kernel does not write stay 0
                return [SENT, RETRANSMITTED].map(|at| info[at..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes)));
            }
        }
        [0; 2]
    }

    /// Reads and discards data until the peer's end.
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
        let _ = tokio::time::timeout(LINGER, drain).await; // later data is answered with RST
    }

    /// Reads up to `most` bytes into the spare capacity of `buffer`. A short read has emptied the socket: the next one waits for readiness,
    /// without a system call that finds nothing.
    pub fn try_read(&self, buffer: &mut BytesMut, most: usize) -> std::io::Result<usize> {
        let mut read = None;
        let result = self.stream.try_io(Interest::READABLE, || {
            let spare = buffer.spare_capacity_mut();
            let room = spare.len().min(most);
            let n = SockRef::from(&self.stream).recv(&mut spare[..room])?;
            read = Some(n);
            match n {
                0 => Ok(n),
                n if n < room => Err(ErrorKind::WouldBlock.into()),
                n => Ok(n),
            }
        });
        let n = read.map_or(result, Ok)?;
        // SAFETY: recv has initialized this many bytes of the spare capacity
        unsafe { buffer.set_len(buffer.len() + n) };
        Ok(n)
    }

    /// Writes what the socket takes. A short write has filled it: the next one waits for readiness, without a system call that finds no room.
    pub fn try_write(&self, slices: &[IoSlice<'_>]) -> std::io::Result<usize> {
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut written = None;
        let result = self.stream.try_io(Interest::WRITABLE, || {
            let n = rustix::io::writev(&self.stream, slices)?;
            written = Some(n);
            match n < bytes {
                true => Err(ErrorKind::WouldBlock.into()),
                false => Ok(n),
            }
        });
        written.map_or(result, Ok)
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
                        chunks[at] = Bytes::new(); // frees the QUIC buffer early
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
            let _ = SockRef::from(&self.stream).set_linger(None); // fails if the connection has ended
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn an_end_that_arrived_with_the_data_is_read_after_a_short_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (stream, peer) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let tcp = Tcp::new(stream.unwrap());
        let (peer, _) = peer.unwrap();
        assert_eq!(peer.try_write(b"hello").unwrap(), 5);
        drop(peer);
        tcp.stream.ready(Interest::READABLE).await.unwrap();
        while !tcp.stream.ready(Interest::READABLE).await.unwrap().is_read_closed() {
            tokio::task::yield_now().await;
        }
        assert!(tcp.segments()[0] > 0 && tcp.segments()[1] == 0);
        let mut buffer = BytesMut::with_capacity(100);
        assert_eq!(tcp.try_read(&mut buffer, 3).unwrap(), 3);
        assert_eq!(tcp.try_read(&mut buffer, 90).unwrap(), 2);
        assert_eq!(&buffer[..], b"hello");
        tcp.stream.readable().await.unwrap();
        assert_eq!(tcp.try_read(&mut buffer, 90).unwrap(), 0);
    }

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
        assert!(held < 2 * MAX_UNSENT as usize, "{held} of {written} bytes"); // sent data is in the peer's buffer
        drop(peer);
    }
}
