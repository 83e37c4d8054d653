//! Relays bulk data between two plain TCP connections with splice(2): it moves through a pipe in the kernel and is never copied to this
//! process. Linux only. Used by lb, where both sides are TCP.
use std::io::{Error, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::ends::CopyError;
use super::splice::{deliver, ByteCounter, SourceReset};
use crate::error::NetError;
use crate::stream::reader::{ReadHalf, Reader};
use crate::stream::tcp_socket::Tcp;
use crate::stream::writer::{WriteHalf, Writer};

/// Reads of at least this size through memory show that a direction carries bulk data.
pub const BULK: usize = 64 << 10;
/// Capacity of a pipe, in bytes. A segment may take a page of it, whatever its size.
const PIPE_CAPACITY: libc::c_int = 256 << 10;
/// A user without privileges who has many pipes gets smaller ones (pipe(7), pipe-user-pages-soft). Below this, copying is faster.
const MIN_PIPE_CAPACITY: libc::c_int = 64 << 10;
/// A direction that had no data for this long gives its pipe back: it takes two descriptors.
const IDLE: Duration = Duration::from_secs(1);

/// Share of the file descriptor limit that pipes may take; connections need the rest (`withinDescriptors` in `shared/limits/resources.ts`).
const DESCRIPTOR_SHARE: u64 = 8;
const DESCRIPTORS_PER_PIPE: u64 = 2;
/// The open pipes of the process.
static OPEN: AtomicU64 = AtomicU64::new(0);

/// The right to one pipe.
struct Permit(&'static AtomicU64);

impl Permit {
    /// `None` if `open` pipes take their share of `descriptors`.
    fn acquire(open: &'static AtomicU64, descriptors: u64) -> Option<Self> {
        let permit = Self(open);
        let before = open.fetch_add(1, Ordering::Relaxed);
        (before < descriptors / DESCRIPTOR_SHARE / DESCRIPTORS_PER_PIPE).then_some(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The soft limit on file descriptors; 0 if it is unknown.
fn descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable for the call
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } {
        0 => limit.rlim_cur,
        _ => 0,
    }
}

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    _permit: Permit,
}

impl Pipe {
    /// `None` if the system grants no pipe of a useful size, or too many are open.
    fn open() -> Option<Self> {
        let permit = Permit::acquire(&OPEN, descriptor_limit())?;
        let mut ends: [RawFd; 2] = [-1; 2];
        // SAFETY: `ends` has room for the two descriptors that the call writes
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } != 0 {
            return None;
        }
        // SAFETY: the call succeeded, so both are open descriptors that nothing else owns
        let pipe = unsafe {
            Self {
                read: OwnedFd::from_raw_fd(ends[0]),
                write: OwnedFd::from_raw_fd(ends[1]),
                _permit: permit,
            }
        };
        // SAFETY: `write` is open; the command takes an int
        let mut capacity = unsafe { libc::fcntl(pipe.write.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_CAPACITY) };
        if capacity < 0 {
            // SAFETY: `write` is open; the command takes no argument
            capacity = unsafe { libc::fcntl(pipe.write.as_raw_fd(), libc::F_GETPIPE_SZ) };
        }
        (capacity >= MIN_PIPE_CAPACITY).then_some(pipe)
    }
}

/// How [`copy`] returned without a failure.
#[derive(Debug, PartialEq)]
pub enum Pause {
    /// The source is idle or has ended. The next read shows which.
    Idle,
    /// There is no pipe.
    Unavailable,
}

/// Relays until the source is idle or has ended. Requires TCP on both sides, a reader without a prefix and no rate limit.
pub async fn copy(reader: &mut Reader, writer: &Writer, counter: &ByteCounter<'_>, reset: &mut SourceReset) -> Result<Pause, CopyError> {
    let (ReadHalf::Tcp(source), WriteHalf::Tcp(sink)) = (&reader.half, &writer.half) else {
        return Ok(Pause::Unavailable);
    };
    let (source, sink) = (source.clone(), sink.clone());
    let Some(pipe) = Pipe::open() else { return Ok(Pause::Unavailable) };
    loop {
        let bytes = match receive(&source, &pipe) {
            Ok(0) => return Ok(Pause::Idle),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => match timeout(IDLE, source.stream.readable()).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => return Err(CopyError::Read(source.failed(error))),
                Err(_) => return Ok(Pause::Idle),
            },
            Err(error) => return Err(CopyError::Read(source.failed(error))),
        };
        counter.holds(bytes);
        deliver(reader, pin!(send(&pipe, &sink, bytes, counter)), reset).await?;
        counter.clear_waiting();
    }
}

/// Moves available data to the pipe, which is empty.
fn receive(source: &Tcp, pipe: &Pipe) -> Result<usize, Error> {
    try_splice(&source.stream, Interest::READABLE, |socket| {
        splice(socket, pipe.write.as_raw_fd(), PIPE_CAPACITY as usize)
    })
}

/// Counts each part: a slow sink is not idle, and may go before it has taken all.
async fn send(pipe: &Pipe, sink: &Tcp, mut bytes: usize, counter: &ByteCounter<'_>) -> Result<(), NetError> {
    while bytes > 0 {
        match try_splice(&sink.stream, Interest::WRITABLE, |socket| {
            splice(pipe.read.as_raw_fd(), socket, bytes)
        }) {
            Ok(0) => return Err(sink.failed(ErrorKind::WriteZero.into())),
            Ok(sent) => {
                counter.add(sent);
                bytes = bytes.saturating_sub(sent);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                sink.stream.writable().await.map_err(|error| sink.failed(error))?;
            }
            Err(error) => return Err(sink.failed(error)),
        }
    }
    Ok(())
}

fn try_splice(stream: &TcpStream, interest: Interest, call: impl Fn(RawFd) -> Result<usize, Error>) -> Result<usize, Error> {
    loop {
        match stream.try_io(interest, || call(stream.as_raw_fd())) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A sink that was reset raises SIGPIPE, which Bun, Deno, Node.js and Rust ignore, as for any write.
fn splice(from: RawFd, to: RawFd, bytes: usize) -> Result<usize, Error> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: both descriptors are open for the call, as the pipe and the socket are borrowed; null offsets are right for both
    let moved = unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), bytes, flags) };
    usize::try_from(moved).map_err(|_| Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::relay::rate::RateLimiter;
    use crate::relay::splice::{run, SpliceOutcome};
    use crate::stream::{CancelSignal, Halves};

    async fn connect() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (peer, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (peer.unwrap(), accepted.unwrap().0)
    }

    /// A relay between two peers.
    async fn relay() -> (TcpStream, TcpStream, tokio::task::JoinHandle<SpliceOutcome>) {
        relay_until(Arc::default()).await
    }

    async fn relay_until(cancel: Arc<CancelSignal>) -> (TcpStream, TcpStream, tokio::task::JoinHandle<SpliceOutcome>) {
        let ((a, near_a), (b, near_b)) = (connect().await, connect().await);
        let halves = |stream| {
            let tcp = Tcp::new(stream);
            Halves::new(ReadHalf::Tcp(tcp.clone()), WriteHalf::Tcp(tcp)).into()
        };
        let both = Box::new((halves(near_a), halves(near_b)));
        let relay = tokio::spawn(async move { run(both, bytes::Bytes::new(), None, &RateLimiter::default(), &cancel).await });
        (a, b, relay)
    }

    fn pattern(from: usize, bytes: usize) -> Vec<u8> {
        (from..from + bytes).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn pipes_take_their_share_of_descriptors() {
        static FEW: AtomicU64 = AtomicU64::new(0);
        let permits: Vec<_> = std::iter::from_fn(|| Permit::acquire(&FEW, 256)).collect();
        assert_eq!(permits.len(), 16);
        drop(permits);
        assert!(Permit::acquire(&FEW, 256).is_some());
        assert!(Permit::acquire(&FEW, 8).is_none());
        assert_eq!(FEW.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn bulk_arrives_whole_and_in_order_and_each_direction_ends_on_its_own() {
        const BYTES: usize = 20 << 20;
        let (mut a, mut b, relay) = relay().await;
        let upload = async {
            let mut sent = 0;
            for size in [1, 100, 70_000, 3 << 20].into_iter().cycle() {
                let size = size.min(BYTES - sent);
                a.write_all(&pattern(sent, size)).await.unwrap();
                sent += size;
                if sent == BYTES {
                    break;
                }
            }
            a.shutdown().await.unwrap();
            let mut answer = Vec::new();
            a.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let download = async {
            let mut received = Vec::new();
            b.read_to_end(&mut received).await.unwrap();
            b.write_all(b"after the end").await.unwrap();
            b.shutdown().await.unwrap();
            received
        };
        let (answer, received) = tokio::join!(upload, download);
        assert!(received == pattern(0, BYTES), "{} bytes", received.len());
        assert_eq!(answer, b"after the end");
        let outcome = relay.await.unwrap();
        assert!(outcome.error.is_none(), "{outcome:?}");
        assert_eq!((outcome.a_to_b, outcome.b_to_a), (BYTES as u64, 13));
    }

    #[tokio::test]
    async fn what_has_left_a_pipe_is_counted_though_its_rest_never_does() {
        let cancel = Arc::new(CancelSignal::default());
        let (mut a, mut b, relay) = relay_until(cancel.clone()).await;
        let upload = tokio::spawn(async move { while a.write_all(&pattern(0, 1 << 20)).await.is_ok() {} });
        let (mut received, mut buffer) = (0, vec![0; 10_000]);
        while received < 5 << 20 {
            received += b.read(&mut buffer).await.unwrap() as u64;
        }
        cancel.cancel();
        while let Ok(bytes @ 1..) = b.read(&mut buffer).await {
            received += bytes as u64;
        }
        upload.await.unwrap();
        let SpliceOutcome { a_to_b, .. } = relay.await.unwrap();
        assert!(a_to_b >= received, "{a_to_b} of {received} bytes are counted");
    }

    #[tokio::test]
    async fn a_pause_gives_the_pipe_back_and_bulk_goes_on_after_it() {
        let (near, far) = (connect().await, connect().await);
        let (mut peer, source) = near;
        let (sink, mut client) = far;
        let (source, sink) = (Tcp::new(source), Tcp::new(sink));
        let mut reader = Halves::new(ReadHalf::Tcp(source.clone()), WriteHalf::Tcp(source)).reader;
        let writer = Halves::new(ReadHalf::Tcp(sink.clone()), WriteHalf::Tcp(sink)).writer;
        let (limiter, usage) = (RateLimiter::default(), crate::relay::budget::TunnelUsage::new(Vec::new()));
        let counter = ByteCounter::new(&limiter, &usage, super::super::ends::Side::A);
        for _ in 0..2 {
            peer.write_all(&pattern(0, 100_000)).await.unwrap();
            let pause = copy(&mut reader, &writer, &counter, &mut None).await;
            assert!(matches!(pause, Ok(Pause::Idle)));
            let mut received = vec![0; 100_000];
            client.read_exact(&mut received).await.unwrap();
            assert!(received == pattern(0, 100_000));
        }
    }

    #[tokio::test]
    async fn a_reset_of_either_side_resets_the_other() {
        for resets_source in [true, false] {
            let (mut a, mut b, relay) = relay().await;
            let mut received = vec![0; 1 << 20];
            let (sent, read) = tokio::join!(async { a.write_all(&pattern(0, 4 << 20)).await }, async {
                let read = b.read_exact(&mut received).await;
                if !resets_source {
                    socket2::SockRef::from(&b).set_linger(Some(Duration::ZERO)).unwrap();
                    drop(b);
                    return read.map(|_| None);
                }
                read.map(|_| Some(b))
            });
            let rest = read.unwrap();
            if let Some(mut b) = rest {
                sent.unwrap();
                socket2::SockRef::from(&a).set_linger(Some(Duration::ZERO)).unwrap();
                drop(a);
                let ended = b.read_to_end(&mut Vec::new()).await;
                assert_eq!(ended.map_err(|error| error.kind()).unwrap_err(), ErrorKind::ConnectionReset);
            } else {
                let ended = a.read(&mut [0]).await;
                assert_eq!(ended.map_err(|error| error.kind()).unwrap_err(), ErrorKind::ConnectionReset);
            }
            let outcome = relay.await.unwrap();
            assert!(outcome.error.is_some(), "{outcome:?}");
        }
    }
}
