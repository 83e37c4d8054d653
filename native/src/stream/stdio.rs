//! Standard input and output of the process as a stream. Descriptors may be pipes, terminals, files or sockets, and other processes share them:
//! they stay blocking, so a thread reads and another one writes. That works for all kinds, while epoll(7) and kqueue(2) know only some of them.
use std::io::{Error, ErrorKind, Result as IoResult};
use std::os::fd::RawFd;
use std::thread;
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::sync::{mpsc, oneshot, watch};

use super::read_buffer::ReadBuffer;
use crate::error::{NetError, NetErrorCode};

/// How long the input may be silent once the output has ended: the program that has it open may run much longer.
const SILENCE: Duration = Duration::from_millis(500);
/// Reads or writes that wait for the other side, in each direction.
const QUEUED: usize = 2;
/// Capacity of pipes in bytes. The default of Linux, 64 KiB, takes four times as many system calls and context switches.
#[cfg(target_os = "linux")]
const PIPE_CAPACITY: libc::c_int = 256 << 10;

/// The state of the output.
enum Output {
    Open,
    Finished,
    Failed(NetError),
}

/// Standard input.
pub struct RecvHalf {
    data: mpsc::Receiver<IoResult<Bytes>>,
    output: watch::Receiver<Output>,
}

/// Standard output.
pub struct SendHalf {
    jobs: mpsc::Sender<Job>,
    output: watch::Receiver<Output>,
}

enum Job {
    Write(Bytes),
    /// Responds when all earlier data has been written.
    Flush(oneshot::Sender<()>),
    /// As the above, and then ends the output.
    Finish(oneshot::Sender<()>),
}

/// Opens the stream of two descriptors, which may share an open file. Nothing else in this process may use them.
pub fn open(input: RawFd, output: RawFd) -> IoResult<(RecvHalf, SendHalf)> {
    let (parts, data) = mpsc::channel(QUEUED);
    let (jobs, queue) = mpsc::channel(QUEUED);
    let (state, changes) = watch::channel(Output::Open);
    [input, output].into_iter().for_each(enlarge_pipe);
    thread::Builder::new().name("stdin".into()).spawn(move || read_all(input, &parts))?;
    let is_shared = is_same_socket(input, output);
    thread::Builder::new()
        .name("stdout".into())
        .spawn(move || write_all(output, is_shared, queue, &state))?;
    let reader = RecvHalf {
        data,
        output: changes.clone(),
    };
    Ok((reader, SendHalf { jobs, output: changes }))
}

/// Best effort: only speed depends on it.
fn enlarge_pipe(_descriptor: RawFd) {
    #[cfg(target_os = "linux")]
    // SAFETY: the command takes an int, and fails if the descriptor is not a pipe
    unsafe {
        if libc::fcntl(_descriptor, libc::F_GETPIPE_SZ) < PIPE_CAPACITY {
            libc::fcntl(_descriptor, libc::F_SETPIPE_SZ, PIPE_CAPACITY);
        }
    }
}

/// Whether both are one socket, as with programs that talk to a command over a socketpair(2).
fn is_same_socket(input: RawFd, output: RawFd) -> bool {
    let stat = |descriptor| {
        // SAFETY: a struct of numbers, for which zero is valid
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: `stat` is writable for the call
        (unsafe { libc::fstat(descriptor, &mut stat) } == 0).then_some(stat)
    };
    match (stat(input), stat(output)) {
        (Some(a), Some(b)) => a.st_mode & libc::S_IFMT == libc::S_IFSOCK && (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}

/// Runs until the end of the input, an error, or until the stream is gone; a read that waits then stays until the process ends.
fn read_all(input: RawFd, parts: &mpsc::Sender<IoResult<Bytes>>) {
    let mut buffer = ReadBuffer::default();
    loop {
        let read = buffer.read_blocking(|spare| {
            retried(input, libc::POLLIN, || {
                // SAFETY: `spare` is writable for the call
                unsafe { libc::read(input, spare.as_mut_ptr().cast(), spare.len()) }
            })
        });
        let is_end = match &read {
            Ok(data) => data.is_empty(),
            // closed by the parent, or a terminal that has gone
            Err(error) => matches!(error.raw_os_error(), Some(libc::EBADF | libc::EIO | libc::ECONNRESET)),
        };
        let has_failed = read.is_err();
        if is_end || parts.blocking_send(read).is_err() || has_failed {
            return;
        }
    }
}

fn write_all(output: RawFd, is_shared: bool, mut queue: mpsc::Receiver<Job>, state: &watch::Sender<Output>) {
    while let Some(job) = queue.blocking_recv() {
        match job {
            Job::Write(data) => {
                if let Err(error) = write(output, data) {
                    state.send_replace(Output::Failed(write_error(&error)));
                    return;
                }
            }
            Job::Flush(done) => {
                let _ = done.send(()); // fails if it is not waited for
            }
            Job::Finish(done) => {
                finish(output, is_shared);
                state.send_replace(Output::Finished);
                let _ = done.send(());
                return;
            }
        }
    }
}

fn write(output: RawFd, mut data: Bytes) -> IoResult<()> {
    while !data.is_empty() {
        let written = retried(output, libc::POLLOUT, || {
            // SAFETY: `data` is readable for the call. SIGPIPE is ignored, as for any write
            unsafe { libc::write(output, data.as_ptr().cast(), data.len()) }
        })?;
        data.advance(written);
    }
    Ok(())
}

/// Lets the reader of the output see its end before this process ends. Later output of this process is lost.
fn finish(output: RawFd, is_shared: bool) {
    // SAFETY: the calls take numbers and a constant string; `null` is closed where it was opened
    unsafe {
        if is_shared {
            libc::shutdown(output, libc::SHUT_WR); // the input keeps it open
        }
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if null >= 0 {
            libc::dup2(null, output);
            libc::close(null);
        } else {
            libc::close(output);
        }
    }
}

/// Repeats a call that was interrupted, and one on a descriptor that another process has made non-blocking once it is ready.
fn retried(descriptor: RawFd, events: libc::c_short, mut call: impl FnMut() -> isize) -> IoResult<usize> {
    loop {
        if let Ok(bytes) = usize::try_from(call()) {
            return Ok(bytes);
        }
        let error = Error::last_os_error();
        match error.kind() {
            ErrorKind::Interrupted => {}
            ErrorKind::WouldBlock => {
                let mut poll = libc::pollfd {
                    fd: descriptor,
                    events,
                    revents: 0,
                };
                // SAFETY: `poll` is one struct, writable for the call
                unsafe { libc::poll(&mut poll, 1, -1) };
            }
            _ => return Err(error),
        }
    }
}

fn read_error(error: &Error) -> NetError {
    NetError::new(NetErrorCode::Reset, format!("Cannot read standard input: {error}"))
}

fn write_error(error: &Error) -> NetError {
    let code = match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => NetErrorCode::Stopped,
        _ => NetErrorCode::Reset,
    };
    NetError::new(code, format!("Cannot write standard output: {error}"))
}

impl RecvHalf {
    /// The next bytes; `None` at the end, and when nothing has come for a while after the output was finished.
    pub async fn read(&mut self) -> Result<Option<Bytes>, NetError> {
        loop {
            let is_finished = match &*self.output.borrow_and_update() {
                Output::Open => false,
                Output::Finished => true,
                Output::Failed(error) => return Err(error.clone()),
            };
            tokio::select! {
                biased;
                data = self.data.recv() => return data.transpose().map_err(|error| read_error(&error)),
                () = tokio::time::sleep(SILENCE), if is_finished => return Ok(None),
                Ok(()) = self.output.changed(), if !is_finished => {}
            }
        }
    }

    /// Resolves when the output has failed: no more input may be sent, since its response could not be written.
    pub async fn failed(&mut self) -> NetError {
        match failure(&mut self.output).await {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }
}

/// Resolves with the failure of the output; with `None` if it has ended without one.
async fn failure(output: &mut watch::Receiver<Output>) -> Option<NetError> {
    match &*output.wait_for(|output| matches!(output, Output::Failed(_))).await.ok()? {
        Output::Failed(error) => Some(error.clone()),
        _ => None,
    }
}

impl SendHalf {
    /// Resolves when the thread has accepted the data.
    pub async fn write(&mut self, data: Bytes) -> Result<(), NetError> {
        self.queue(Job::Write(data)).await
    }

    /// Ends the output. Resolves when all of it was written.
    pub async fn finish(&mut self) -> Result<(), NetError> {
        let (done, written) = oneshot::channel();
        self.queue(Job::Finish(done)).await?;
        match written.await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.error().await),
        }
    }

    /// Resolves when all data has been written, or cannot be written.
    pub async fn flushed(&self) {
        let (done, written) = oneshot::channel();
        if self.jobs.send(Job::Flush(done)).await.is_ok() {
            let _ = written.await; // fails if the output has failed
        }
    }

    async fn queue(&self, job: Job) -> Result<(), NetError> {
        match self.jobs.send(job).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.error().await),
        }
    }

    /// Why the thread has ended.
    async fn error(&self) -> NetError {
        failure(&mut self.output.clone()).await.unwrap_or_else(NetError::closed)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{pipe, PipeReader, PipeWriter, Read, Write};
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::{spawn_blocking, JoinHandle};

    use super::*;
    use crate::net::tcp::plain;
    use crate::relay::ends::Side;
    use crate::relay::rate::RateLimiter;
    use crate::relay::splice::{run, SpliceOutcome};
    use crate::stream::reader::ReadHalf;
    use crate::stream::tcp_socket::Tcp;
    use crate::stream::writer::WriteHalf;
    use crate::stream::{CancelSignal, Halves};

    /// Relays between the descriptors and the connection that is returned.
    async fn relay(input: impl IntoRawFd, output: impl IntoRawFd) -> (TcpStream, JoinHandle<SpliceOutcome>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (peer, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (reader, writer) = open(input.into_raw_fd(), output.into_raw_fd()).unwrap();
        let streams = Halves::new(ReadHalf::Stdio(reader), WriteHalf::Stdio(writer)).into();
        let both = Box::new((streams, plain(Tcp::new(accepted.unwrap().0)).into()));
        let relay = async move { run(both, Bytes::new(), None, &RateLimiter::default(), &Arc::<CancelSignal>::default()).await };
        (peer.unwrap(), tokio::spawn(relay))
    }

    async fn relay_pipes() -> (PipeWriter, PipeReader, TcpStream, JoinHandle<SpliceOutcome>) {
        let ((input, to_input), (from_output, output)) = (pipe().unwrap(), pipe().unwrap());
        let (peer, relay) = relay(input, output).await;
        (to_input, from_output, peer, relay)
    }

    fn read_to_end(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
        spawn_blocking(move || {
            let mut read = Vec::new();
            from.read_to_end(&mut read).unwrap();
            read
        })
    }

    fn pattern(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at % 251) as u8).collect()
    }

    /// More than the system buffers: while the peer reads nothing, the input is not silent.
    const FLOOD: usize = 32 << 20;

    /// The output ends while the input is being sent; the input is then sent until its own end.
    async fn end_output_first(mut to_input: impl Write + Send + 'static, from_output: impl Read + Send + 'static, mut peer: TcpStream) {
        let output = read_to_end(from_output);
        let flood = pattern(1 << 20).repeat(FLOOD >> 20);
        let sent = flood.clone();
        let input = spawn_blocking(move || {
            to_input.write_all(&sent).unwrap();
            to_input
        });
        let mut received = vec![0; FLOOD];
        peer.read_exact(&mut received[..1]).await.unwrap(); // it has begun
        peer.write_all(&pattern(5 << 20)).await.unwrap();
        peer.shutdown().await.unwrap();
        assert!(output.await.unwrap() == pattern(5 << 20));
        peer.read_exact(&mut received[1..]).await.unwrap();
        assert!(received == flood);
        drop(input.await.unwrap());
        assert_eq!(peer.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn both_directions_move_at_once_and_each_ends_by_itself() {
        let (to_input, from_output, peer, relay) = relay_pipes().await;
        end_output_first(to_input, from_output, peer).await;
        let outcome = relay.await.unwrap();
        assert!(outcome.error.is_none(), "{outcome:?}");
        assert_eq!((outcome.a_to_b, outcome.b_to_a), (FLOOD as u64, 5 << 20));
    }

    #[tokio::test]
    async fn a_silent_input_ends_after_the_output_and_not_before() {
        let (mut to_input, from_output, mut peer, relay) = relay_pipes().await;
        tokio::time::sleep(SILENCE + SILENCE / 2).await;
        to_input.write_all(b"question").unwrap();
        let mut question = [0; 8];
        peer.read_exact(&mut question).await.unwrap();
        peer.write_all(b"answer").await.unwrap();
        peer.shutdown().await.unwrap();
        assert_eq!(read_to_end(from_output).await.unwrap(), b"answer");
        assert_eq!(peer.read(&mut [0]).await.unwrap(), 0);
        let outcome = relay.await.unwrap();
        assert!(outcome.error.is_none(), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_socket_for_both_is_closed_in_one_direction() {
        let (near, far) = UnixStream::pair().unwrap();
        let (peer, relay) = relay(far.try_clone().unwrap(), far).await;
        end_output_first(near.try_clone().unwrap(), near, peer).await;
        assert!(relay.await.unwrap().error.is_none());
    }

    #[tokio::test]
    async fn descriptors_that_another_process_made_non_blocking_lose_nothing() {
        let ((input, to_input), (from_output, output)) = (pipe().unwrap(), pipe().unwrap());
        for descriptor in [input.as_raw_fd(), output.as_raw_fd()] {
            // SAFETY: the descriptor is open; the command takes an int
            assert_eq!(unsafe { libc::fcntl(descriptor, libc::F_SETFL, libc::O_NONBLOCK) }, 0);
        }
        let (peer, relay) = relay(input, output).await;
        end_output_first(to_input, from_output, peer).await;
        assert!(relay.await.unwrap().error.is_none());
    }

    #[tokio::test]
    async fn the_end_of_the_outputs_reader_ends_both_directions() {
        let (to_input, from_output, mut peer, relay) = relay_pipes().await;
        drop(from_output);
        peer.write_all(b"for no reader").await.unwrap();
        let ended = peer.read(&mut [0]).await.map_err(|error| error.kind());
        assert_eq!(ended, Err(ErrorKind::ConnectionReset));
        let (error, side) = relay.await.unwrap().error.unwrap();
        assert_eq!((error.code, side), (NetErrorCode::Stopped, Some(Side::A)));
        drop(to_input);
    }

    #[tokio::test]
    async fn an_input_that_cannot_be_read_is_not_complete() {
        let (_from_output, output) = pipe().unwrap();
        let (mut peer, relay) = relay(std::fs::File::open("/").unwrap(), output).await;
        let ended = peer.read(&mut [0]).await.map_err(|error| error.kind());
        assert_eq!(ended, Err(ErrorKind::ConnectionReset));
        let (error, side) = relay.await.unwrap().error.unwrap();
        assert_eq!((error.code, side), (NetErrorCode::Reset, Some(Side::A)));
        assert!(error.message.starts_with("Cannot read standard input: "), "{error:?}");
    }

    #[tokio::test]
    async fn a_closed_input_has_ended() {
        const NO_DESCRIPTOR: RawFd = 1 << 20;
        struct Closed;
        impl IntoRawFd for Closed {
            fn into_raw_fd(self) -> RawFd {
                NO_DESCRIPTOR
            }
        }
        let (from_output, output) = pipe().unwrap();
        let (mut peer, relay) = relay(Closed, output).await;
        assert_eq!(peer.read(&mut [0]).await.unwrap(), 0);
        peer.write_all(b"answer").await.unwrap();
        drop(peer);
        assert_eq!(read_to_end(from_output).await.unwrap(), b"answer");
        assert!(relay.await.unwrap().error.is_none());
    }
}
