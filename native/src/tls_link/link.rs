//! The transport of a session: reads and decrypts records, encrypts and writes the session's output, and monitors the peer.
use std::future::{poll_fn, Future};
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, TryLockError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{sleep_until, timeout, Instant};

use super::frame::Parser;
use super::keep_alive::KeepAlive;
use super::records::{Opened, Opener, Sealed, Sealer};
use super::session::{Batch, Config, Ended, Peer, Piece, Session};
use super::socket::Socket;
use crate::stream::deferral::Deferral;
use crate::sync::lock;

/// Bytes encrypted at a time. Small frames cannot overtake encrypted ones, so a slow link encrypts less.
const MAX_BATCH: usize = 256 << 10;
const MIN_BATCH: usize = 16 << 10;
/// Bytes read at a time: little at first, more while the buffer is filled. A system call for each record halves the rate.
const MAX_READ: usize = 256 << 10;
const MIN_READ: usize = 16 << 10;
/// Room for an incomplete record left at the start of the buffer.
const MAX_RECORD: usize = 17 << 10;
/// How long a closed session reads on until the peer ends the connection too. A socket that is closed earlier answers data of the peer with
/// a reset, which destroys what is on its way.
const LINGER: Duration = Duration::from_millis(600);
/// How long CLOSE may take to be written.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

pub struct Link {
    session: Arc<Session>,
    socket: Socket,
    output: Mutex<Output>,
    /// Why the records of the peer cannot be opened any more, for the alert.
    fault: OnceLock<rustls::Error>,
    /// The socket takes nothing; the sending task waits for it.
    is_blocked: AtomicBool,
}

struct Output {
    sealer: Sealer,
    sealed: Sealed,
    /// The last encrypted records, until they are written.
    unreported: Option<Batch>,
    /// Bytes sealed at a time: halved when the socket takes no more, doubled when everything was written.
    batch: usize,
    is_closed: bool,
}

#[derive(PartialEq)]
enum Written {
    /// The session has nothing more to send for now.
    All,
    /// The socket takes no more.
    Blocked,
}

impl Link {
    /// Starts a session on a connection whose handshake is complete. `early` was received with the handshake, and `incoming` after it.
    pub fn start(
        socket: Socket,
        (sealer, opener): (Sealer, Opener),
        early: &[u8],
        incoming: BytesMut,
        config: Config,
        peer: Peer,
    ) -> Arc<Session> {
        let is_client = opener.is_client();
        let session = Session::new(config, peer, is_client);
        let link = Arc::new(Self {
            session: session.clone(),
            socket,
            output: Mutex::new(Output {
                sealer,
                sealed: Sealed::default(),
                unreported: None,
                batch: MAX_BATCH,
                is_closed: false,
            }),
            fault: OnceLock::new(),
            is_blocked: AtomicBool::new(false),
        });
        session.attach(Arc::downgrade(&link));
        let mut parser = Parser::default();
        let _ = session.receive(&mut parser, early); // an error ends the session
        tokio::spawn(link.clone().run_sender());
        tokio::spawn(link.run_receiver(opener, parser, incoming));
        session
    }

    /// As [`Socket::segments`].
    pub fn segments(&self) -> [u32; 2] {
        self.socket.segments()
    }

    // ---- sending

    async fn run_sender(self: Arc<Self>) {
        let _guard = OnExit {
            session: &self.session,
            is_sender: true,
        };
        let mut deferral = Deferral::default();
        loop {
            self.session.to_send.notified().await;
            if self.is_blocked.load(Ordering::SeqCst) {
                if !self.writable().await {
                    return;
                }
                self.is_blocked.store(false, Ordering::SeqCst);
            } else {
                // small frames of other streams share a record and a system call
                poll_fn(|cx| deferral.poll(self.session.small_frames(), cx)).await;
            }
            self.pump();
            if lock(&self.output).is_closed {
                return;
            }
        }
    }

    /// Resolves when the socket takes data; false once the session has ended and its last frames could not be sent in time.
    async fn writable(&self) -> bool {
        tokio::select! {
            biased;
            writable = self.socket.writable() => writable.is_ok(),
            () = self.session.over() => timeout(CLOSE_TIMEOUT, self.socket.writable()).await.is_ok_and(|writable| writable.is_ok()),
        }
    }

    /// Sends the session's output until the socket would block. A caller that finds the output in use leaves its
    /// data to the one that uses it.
    pub fn pump(&self) {
        while !self.is_blocked.load(Ordering::SeqCst) {
            let mut output = match self.output.try_lock() {
                Ok(output) => output,
                Err(TryLockError::Poisoned(output)) => output.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            if output.is_closed {
                return;
            }
            let written = self.write(&mut output);
            match written {
                Ok(Written::All) => {}
                Ok(Written::Blocked) => {
                    self.is_blocked.store(true, Ordering::SeqCst);
                    self.session.to_send.notify_one();
                }
                Err(ended) => {
                    output.is_closed = true;
                    self.session.end(ended, None);
                }
            }
            drop(output);
            // callers that have queued data meanwhile have found the output in use
            if !self.session.has_more() {
                return;
            }
        }
    }

    fn write(&self, output: &mut Output) -> Result<Written, Ended> {
        loop {
            while !output.sealed.is_empty() {
                match self.socket.try_write(&output.sealed) {
                    Ok(bytes) => {
                        output.sealed.written(bytes);
                        self.session.counters.sent.fetch_add(bytes as u64, Ordering::Relaxed);
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        output.batch = (output.batch / 2).max(MIN_BATCH);
                        return Ok(Written::Blocked);
                    }
                    Err(e) => return Err(lost(&e)),
                }
            }
            if let Some(batch) = output.unreported.take() {
                self.session.batch_written(&batch);
                if batch.is_last {
                    output.is_closed = true;
                    self.socket.shut_down();
                    return Ok(Written::All);
                }
            }
            let mut batch = self.session.next(output.batch);
            let Output { sealer, sealed, .. } = &mut *output;
            let result = match self.fault.get() {
                None => {
                    let parts = batch.pieces.iter().flat_map(|Piece { frames, data }| [&frames[..], data]);
                    sealer.seal(&parts.collect::<Vec<_>>(), sealed)
                }
                Some(_) => Ok(()), // only the alert is sent
            };
            if let Err(e) = result {
                self.session.end(faulty(&e), None);
                batch.is_last = true;
            }
            if batch.is_last {
                let _ = sealer.close(self.fault.get(), sealed); // fails as sealing does
            }
            batch.pieces.clear();
            if output.sealed.is_empty() && !batch.is_last {
                output.batch = (output.batch * 2).min(MAX_BATCH);
                return Ok(Written::All);
            }
            output.unreported = Some(batch);
        }
    }

    // ---- receiving

    async fn run_receiver(self: Arc<Self>, opener: Opener, parser: Parser, incoming: BytesMut) {
        let _guard = OnExit {
            session: &self.session,
            is_sender: false,
        };
        if let Err(ended) = self.receive(opener, parser, incoming).await {
            self.session.end(ended, None);
        }
        let _ = timeout(LINGER, async {
            self.session.close_sent().await;
            self.discard().await;
        })
        .await;
    }

    /// Receives until the session has ended.
    async fn receive(&self, mut opener: Opener, mut parser: Parser, mut incoming: BytesMut) -> Result<(), Ended> {
        let config = &self.session.config;
        let mut heard = Instant::now();
        let mut pings = config.keep_alive.map(|interval| KeepAlive::new(interval, heard));
        let mut size = MIN_READ;
        loop {
            self.open(&mut opener, &mut parser, &mut incoming)?;
            let now = Instant::now();
            if let Some(pings) = pings.as_mut().filter(|pings| now >= pings.ends_at()) {
                let peer = self.session.pinged_by_peer().map(Instant::from);
                if pings.next(now, peer, self.session.counters.total()) {
                    self.session.ping();
                }
                self.free_unused();
            }
            let ping_at = pings.as_ref().map(KeepAlive::ends_at);
            let late_at = config.idle_timeout.map(|limit| heard + limit);
            let timer = async {
                match ping_at.into_iter().chain(late_at).min() {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let is_over = self.session.over();
            let readable = async {
                let mut readable = pin!(self.socket.readable());
                poll_fn(|cx| {
                    let ready = readable.as_mut().poll(cx);
                    if ready.is_pending() && incoming.is_empty() {
                        release(&mut incoming, &mut size);
                    }
                    ready
                })
                .await
            };
            tokio::select! {
                biased; // a process that was suspended finds both its timer expired and data of the peer
                readable = readable => readable.map_err(|e| lost(&e))?,
                () = is_over => return Ok(()),
                () = timer => {
                    if late_at.is_some_and(|at| at <= Instant::now()) {
                        tokio::task::yield_now().await; // lets the runtime poll the socket
                        if self.read(&mut incoming, size)? == 0 {
                            return Err(Ended::TimedOut);
                        }
                        heard = Instant::now();
                    }
                    continue;
                }
            }
            let read = self.read(&mut incoming, size)?;
            if read > 0 {
                heard = Instant::now();
            }
            if read >= size {
                size = (size * 4).min(MAX_READ);
            }
        }
    }

    /// Reads received data, about `size` bytes; 0 if there is none.
    fn read(&self, incoming: &mut BytesMut, size: usize) -> Result<usize, Ended> {
        match incoming.capacity() {
            0 => incoming.reserve(size + MAX_RECORD),
            _ => incoming.reserve(size), // an incomplete record is moved to the start
        }
        match self.socket.try_read(incoming) {
            Ok(0) => Err(Ended::Lost("the peer has ended the TCP connection without CLOSE".into())),
            Ok(bytes) => {
                self.session.counters.received.fetch_add(bytes as u64, Ordering::Relaxed);
                Ok(bytes)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(e) => Err(lost(&e)),
        }
    }

    /// Opens the complete records of `incoming`.
    fn open(&self, opener: &mut Opener, parser: &mut Parser, incoming: &mut BytesMut) -> Result<(), Ended> {
        let opened = opener.open(incoming, |data| drop(self.session.receive(parser, data))); // an error ends the session
        if opener.is_update_requested() {
            self.session.to_send.notify_one();
        }
        match opened {
            Ok(Opened::Incomplete) => Ok(()),
            Ok(Opened::End) => Err(Ended::Lost("the peer has ended the TLS connection without CLOSE".into())),
            Err(e) => {
                let ended = faulty(&e);
                let _ = self.fault.set(e); // nothing is opened after the first one
                Err(ended)
            }
        }
    }

    /// Frees the buffer for sending if it is empty.
    fn free_unused(&self) {
        if let Ok(mut output) = self.output.try_lock() {
            output.sealed.shrink();
        }
    }

    /// Reads and discards data until the peer's end.
    async fn discard(&self) {
        let mut scratch = BytesMut::new();
        while self.socket.readable().await.is_ok() {
            scratch.clear();
            if self.read(&mut scratch, MIN_READ).is_err() {
                return;
            }
        }
    }
}

/// Ends the session with its tasks, even if one panics.
struct OnExit<'a> {
    session: &'a Session,
    is_sender: bool,
}

impl Drop for OnExit<'_> {
    fn drop(&mut self) {
        self.session.end(Ended::Lost("its task has ended".into()), None);
        match self.is_sender {
            true => self.session.set_close_sent(),
            false => self.session.set_done(),
        }
    }
}

/// Lets a session that waits read less at a time, and frees its buffer: an idle session holds none.
fn release(incoming: &mut BytesMut, size: &mut usize) {
    match *size {
        ..=MIN_READ => *incoming = BytesMut::new(),
        _ => *size /= 2, // soon more follows
    }
}

fn lost(error: &std::io::Error) -> Ended {
    Ended::Lost(error.to_string())
}

fn faulty(error: &rustls::Error) -> Ended {
    Ended::Faulty {
        message: error.to_string(),
        remote: matches!(error, rustls::Error::AlertReceived(_)),
    }
}
