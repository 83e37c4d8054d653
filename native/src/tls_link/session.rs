//! A session over a TLS link: its streams, credit, and the next bytes to send. It knows frames, but neither sockets nor TLS: `link.rs`
//! passes it what arrives and sends what it returns.
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use super::frame::{put, put_data_header, Control, Event, Parser, ProtocolError, Settings, MAX_DATA};
use super::link::Link;
use super::stream::{add_credit, grown, wait_for, RecvHalf, SendHalf, Stream};
use super::window::SessionWindow;
use crate::error::{NetError, NetErrorCode};
use crate::quic::connection::CLOSE_NOTIFY_TIMEOUT;
use crate::quic::transport::Transport;
use crate::sync::lock;
use crate::time::millis;

/// Small frames beyond this many bytes wait as bulk data does: the peer reads slowly.
const MAX_SMALL: usize = 64 << 10;
/// Maximum number of PING and PONG frames per second.
const MAX_PINGS: u32 = 100;
/// Maximum number of frames per second for streams that have ended. A few per stream cross its end.
const MAX_LATE_FRAMES: u32 = 100_000;
/// Initial receive window of a stream in bytes.
const STREAM_WINDOW: u32 = 256 << 10;
/// Stream ids increase by this: those of the client are odd, those of the server even.
const ID_STEP: u32 = 2;

#[derive(Clone, Debug)]
pub struct Config {
    /// Interval of PING frames.
    pub keep_alive: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    /// Streams that the peer may have open.
    pub streams: u32,
    /// Initial receive window of a stream in bytes.
    pub stream_window: u32,
    /// Window of the session besides those of accepted streams in bytes; 0 for the default.
    pub session_window: u32,
}

impl From<&Transport> for Config {
    fn from(transport: &Transport) -> Self {
        let interval = |ms: Option<u32>, default| Some(millis(ms.unwrap_or(default))).filter(|interval| !interval.is_zero());
        Self {
            keep_alive: interval(transport.keep_alive_ms, 3_000),
            idle_timeout: interval(transport.idle_timeout_ms, 10_000),
            streams: transport.streams(),
            stream_window: transport.stream_window.unwrap_or(STREAM_WINDOW),
            session_window: transport.connection_window.unwrap_or(0),
        }
    }
}

/// Who the peer is.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    pub remote: String,
    pub alpn: String,
    pub certificate: Option<Bytes>,
}

/// Why a session has ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// Closed by this side.
    Local,
    /// Closed by the peer.
    Closed {
        code: u32,
        reason: String,
    },
    TimedOut,
    /// TCP was reset, or has ended without CLOSE.
    Lost(String),
    /// A violation of the protocol or an error of TLS; `remote`: the peer has found it.
    Faulty {
        message: String,
        remote: bool,
    },
}

impl Ended {
    /// Application error code, reason, whether the peer closed it, and the cause as the contract names it.
    pub fn describe(&self) -> (u64, String, bool, &'static str) {
        match self {
            Self::Local => (0, String::new(), false, "application"),
            Self::Closed { code, reason } => (u64::from(*code), reason.clone(), true, "application"),
            Self::TimedOut => (0, self.to_string(), false, "timed-out"),
            Self::Lost(_) => (0, self.to_string(), true, "reset"),
            Self::Faulty { remote, .. } => (0, self.to_string(), *remote, "transport"),
        }
    }

    /// The error of a call on the session or on one of its streams.
    pub fn error(&self) -> NetError {
        match self {
            Self::Local => NetError::new(NetErrorCode::Closed, "The connection was closed"),
            Self::Closed { code, .. } => NetError {
                app_code: Some(u64::from(*code)),
                ..NetError::remote(NetErrorCode::Reset, format!("The connection was closed: {self}"))
            },
            _ => NetError::remote(NetErrorCode::Reset, format!("The connection was lost: {self}")),
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local => f.write_str("closed"),
            Self::Closed { code, reason } if reason.is_empty() => write!(f, "closed by peer: {code}"),
            Self::Closed { code, reason } => write!(f, "closed by peer: {reason} (code {code})"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Lost(message) => f.write_str(message),
            Self::Faulty { message, remote: false } => write!(f, "{message}"),
            Self::Faulty { message, remote: true } => write!(f, "aborted by peer: {message}"),
        }
    }
}

pub struct Session {
    pub config: Config,
    pub peer: Peer,
    is_client: bool,
    state: Mutex<State>,
    /// What the peer allows; set by its first frame.
    settings: OnceLock<Settings>,
    ended: OnceLock<Ended>,
    /// Notified of settings, streams to accept, and the end.
    changed: Notify,
    /// One permit for each stream that may be opened.
    opening: Semaphore,
    /// Notified when there is something to send.
    pub to_send: Notify,
    /// Bytes of control frames that were passed to the system.
    flushed: AtomicU64,
    has_flushed: Notify,
    close_sent: AtomicBool,
    is_done: AtomicBool,
    link: OnceLock<Weak<Link>>,
    pub counters: Counters,
}

#[derive(Default)]
pub struct Counters {
    /// Bytes on the wire.
    pub sent: AtomicU64,
    pub received: AtomicU64,
    /// Smoothed and minimum round-trip time in microseconds; 0 before the first.
    round_trip: AtomicU64,
    min_round_trip: AtomicU64,
}

struct State {
    streams: HashMap<u32, Arc<Stream>>,
    /// The next stream opened by this side, and by the peer; 0 once there are no more.
    next_id: u32,
    next_peer_id: u32,
    /// Streams that the peer may still open.
    peer_streams: u32,
    /// Streams of the peer that have ended since the last STREAMS.
    released: u32,
    /// Streams that the peer has opened, for `accept`.
    to_accept: VecDeque<Arc<Stream>>,
    window: SessionWindow,
    /// Bytes that may still be sent on all streams together.
    credit: u64,
    /// Streams that wait for this credit.
    starved: HashSet<u32>,
    out: Outgoing,
    /// Number of the last PING, and when it was sent if it is not answered.
    ping: (u64, Option<Instant>),
    pings: FrameRate,
    late: FrameRate,
}

/// Frames and data that wait for the link.
#[derive(Default)]
struct Outgoing {
    /// Frames without data and small DATA frames, which are sent first. Bounded by the streams and by [`MAX_SMALL`].
    small: Vec<u8>,
    /// Bytes that were ever put into `small`.
    small_total: u64,
    /// The token of the last PING. Earlier ones need no answer: a peer that does not read cannot fill the memory.
    pong: Option<[u8; 8]>,
    /// Bulk data, one chunk for each stream.
    bulk: VecDeque<(Arc<Stream>, Bytes)>,
    /// The last frame.
    close: Option<Control>,
    is_closed: bool,
}

/// Bytes to send as TLS records of their own: frames, and after them the data of the last frame.
#[derive(Default)]
pub struct Piece {
    pub frames: Vec<u8>,
    pub data: Bytes,
}

#[derive(Default)]
pub struct Batch {
    pub pieces: Vec<Piece>,
    /// Bytes of small frames up to here; see [`Session::sent`].
    mark: u64,
    /// Nothing follows.
    pub is_last: bool,
}

/// Counts frames of one kind per second.
#[derive(Default)]
struct FrameRate {
    since: Option<Instant>,
    count: u32,
}

impl FrameRate {
    /// Counts a frame. Returns whether there were more than `most` within a second.
    fn exceeds(&mut self, most: u32) -> bool {
        let now = Instant::now();
        match self.since {
            Some(since) if now.duration_since(since) < Duration::from_secs(1) => self.count += 1,
            _ => (self.since, self.count) = (Some(now), 1),
        }
        self.count > most
    }
}

impl Session {
    pub fn new(config: Config, peer: Peer, is_client: bool) -> Arc<Self> {
        let window = SessionWindow::new(config.session_window);
        let settings = Settings {
            streams: config.streams,
            stream_window: config.stream_window,
            session_window: window.initial(),
        };
        let mut out = Outgoing::default();
        out.put(0, &Control::Settings(settings));
        let (next_id, next_peer_id) = if is_client { (1, 2) } else { (2, 1) };
        let session = Arc::new(Self {
            state: Mutex::new(State {
                streams: HashMap::new(),
                next_id,
                next_peer_id,
                peer_streams: config.streams,
                released: 0,
                to_accept: VecDeque::new(),
                window,
                credit: 0,
                starved: HashSet::new(),
                out,
                ping: (0, None),
                pings: FrameRate::default(),
                late: FrameRate::default(),
            }),
            config,
            peer,
            is_client,
            settings: OnceLock::new(),
            ended: OnceLock::new(),
            changed: Notify::new(),
            opening: Semaphore::new(0),
            to_send: Notify::new(),
            flushed: AtomicU64::new(0),
            has_flushed: Notify::new(),
            close_sent: AtomicBool::new(false),
            is_done: AtomicBool::new(false),
            link: OnceLock::new(),
            counters: Counters::default(),
        });
        session.ping(); // measures the path
        session
    }

    pub fn attach(&self, link: Weak<Link>) {
        let _ = self.link.set(link);
    }

    // ---- streams

    pub async fn open(self: &Arc<Self>) -> Result<(RecvHalf, SendHalf), NetError> {
        let permit = self.opening.acquire().await;
        let lost = || self.ended().map_or_else(NetError::closed, Ended::error);
        permit.map_err(|_| lost())?.forget();
        let settings = self.settings.get().ok_or_else(lost)?;
        let stream = {
            let mut state = lock(&self.state);
            if self.ended().is_some() {
                return Err(lost());
            }
            let id = state.next_id;
            state.next_id = id.checked_add(ID_STEP).unwrap_or(0);
            if id == 0 {
                drop(state);
                let message = "all stream ids are used".into();
                self.end(Ended::Faulty { message, remote: false }, None);
                return Err(lost());
            }
            let stream = Stream::new(id, self.config.stream_window.into(), settings.stream_window.into());
            state.streams.insert(id, stream.clone());
            state.out.put(id, &Control::Open);
            stream
        };
        self.to_send.notify_one();
        Ok(self.take(&stream))
    }

    /// The next stream of the peer; `None` once the session has ended.
    pub async fn accept(self: &Arc<Self>) -> Option<(RecvHalf, SendHalf)> {
        let stream = wait_for(&self.changed, || {
            if self.ended().is_some() {
                return Some(None);
            }
            lock(&self.state).to_accept.pop_front().map(Some)
        })
        .await?;
        Some(self.take(&stream))
    }

    fn take(self: &Arc<Self>, stream: &Arc<Stream>) -> (RecvHalf, SendHalf) {
        let (reader, writer, window) = stream.accept(self);
        self.add_window(window);
        (reader, writer)
    }

    /// Both directions have ended and both halves are gone.
    pub fn release(&self, stream: &Arc<Stream>) {
        let share = stream.share();
        let mut state = lock(&self.state);
        if state.streams.remove(&stream.id).is_none() {
            return; // the session has ended
        }
        state.window.remove(share);
        state.starved.remove(&stream.id);
        if self.is_own(stream.id) {
            return;
        }
        state.released += 1;
        if state.peer_streams > self.config.streams / 2 {
            return; // it has enough
        }
        let count = std::mem::take(&mut state.released);
        state.peer_streams += count;
        state.out.put(0, &Control::Streams(count));
        drop(state);
        self.to_send.notify_one();
    }

    fn is_own(&self, id: u32) -> bool {
        (id % ID_STEP == 1) == self.is_client
    }

    /// Streams that may be opened now, and the initial credit of each.
    pub fn peer_credit(&self) -> Option<(usize, u32)> {
        let settings = self.settings.get().filter(|_| self.ended().is_none())?;
        Some((self.opening.available_permits(), settings.stream_window))
    }

    // ---- windows of this side

    pub fn set_window(&self, bytes: u32) {
        self.change_window(|window| window.set_base(bytes));
    }

    /// Reports that bytes were read or discarded.
    pub fn read(&self, bytes: usize) {
        if bytes > 0 {
            self.change_window(|window| window.read(bytes as u64));
        }
    }

    pub fn add_window(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.change_window(|window| window.add(bytes));
    }

    pub fn remove_window(&self, bytes: u64) {
        self.change_window(|window| window.remove(bytes));
    }

    fn change_window(&self, change: impl FnOnce(&mut SessionWindow)) {
        let mut state = lock(&self.state);
        change(&mut state.window);
        let State { window, out, .. } = &mut *state;
        let Some(credit) = window.credit() else { return };
        out.put(0, &Control::Credit(credit));
        drop(state);
        self.to_send.notify_one();
    }

    /// The window of a stream whose reader keeps up.
    pub fn grown(&self, window: u64, total_read: u64) -> u64 {
        grown(self.config.stream_window.into(), window, total_read, self.min_round_trip())
    }

    // ---- sending

    /// Credit of a stream, at most `want`. `takes`: it is used up.
    pub fn credit(&self, stream: &Arc<Stream>, want: u64, takes: bool) -> u64 {
        let of_stream = stream.take_credit(want);
        if of_stream == 0 {
            return 0;
        }
        let mut state = lock(&self.state);
        let credit = of_stream.min(state.credit);
        if takes {
            state.credit -= credit;
        }
        if credit == 0 {
            state.starved.insert(stream.id);
        }
        drop(state);
        stream.return_credit(if takes { of_stream - credit } else { of_stream });
        credit
    }

    /// Sends a frame without data.
    pub fn send(&self, stream: u32, frame: &Control) {
        lock(&self.state).out.put(stream, frame);
        self.to_send.notify_one();
    }

    /// Sends data ahead of bulk data. Returns false if too much waits.
    pub fn send_small(&self, stream: u32, data: &[u8]) -> bool {
        let mut state = lock(&self.state);
        if state.out.small.len() > MAX_SMALL {
            return false;
        }
        state.out.put_data(stream, data);
        drop(state);
        self.to_send.notify_one();
        true
    }

    /// Queues a chunk, and sends it now if the link is free.
    pub fn send_bulk(&self, stream: &Arc<Stream>, data: Bytes) {
        let mut state = lock(&self.state);
        if state.out.is_closed {
            return; // the writer sees the end
        }
        state.out.bulk.push_back((stream.clone(), data));
        drop(state);
        match self.link.get().and_then(Weak::upgrade) {
            Some(link) => link.pump(),
            None => self.to_send.notify_one(),
        }
    }

    /// Drops the queued chunk of a stream.
    pub fn drop_bulk(&self, stream: &Arc<Stream>) {
        let mut dropped = 0;
        lock(&self.state).out.bulk.retain(|(queued, data)| {
            let is_kept = queued.id != stream.id;
            if !is_kept {
                dropped += data.len() as u64;
            }
            is_kept
        });
        self.return_credit(dropped);
    }

    fn return_credit(&self, bytes: u64) {
        let mut state = lock(&self.state);
        state.credit += bytes;
        state.wake_starved();
    }

    /// Takes the next frames, up to `budget` bytes of bulk data. Small frames go first; bulk data of several streams takes turns.
    pub fn next(&self, budget: usize) -> Batch {
        let mut batch = Batch::default();
        let mut taken = Vec::new();
        {
            let mut state = lock(&self.state);
            let out = &mut state.out;
            if let Some(token) = out.pong.take() {
                out.put(0, &Control::Pong(token));
            }
            let mut frames = std::mem::take(&mut out.small);
            let mut left = budget;
            while left > 0 {
                let Some((stream, mut data)) = out.bulk.pop_front() else { break };
                let part = data.split_to(data.len().min(left).min(MAX_DATA));
                left -= part.len();
                put_data_header(&mut frames, stream.id, part.len());
                batch.pieces.push(Piece {
                    frames: std::mem::take(&mut frames),
                    data: part,
                });
                match data.is_empty() {
                    true => taken.push(stream),
                    false => out.bulk.push_back((stream, data)),
                }
            }
            if let Some(frame) = out.close.take() {
                put(&mut frames, 0, &frame);
            }
            if !frames.is_empty() {
                batch.pieces.push(Piece {
                    frames,
                    data: Bytes::new(),
                });
            }
            (batch.mark, batch.is_last) = (out.small_total, out.is_closed);
        }
        taken.iter().for_each(|stream| stream.chunk_taken());
        batch
    }

    pub fn has_more(&self) -> bool {
        let out = &lock(&self.state).out;
        !out.small.is_empty() || !out.bulk.is_empty() || out.pong.is_some() || out.close.is_some()
    }

    /// Reports that a batch was passed to the system.
    pub fn sent(&self, batch: &Batch) {
        if self.flushed.fetch_max(batch.mark, Ordering::AcqRel) < batch.mark {
            self.has_flushed.notify_waiters();
        }
    }

    /// Resolves when the small frames sent so far were passed to the system, or the session has ended.
    pub async fn flushed(&self) {
        let mark = lock(&self.state).out.small_total;
        wait_for(&self.has_flushed, || {
            (self.flushed.load(Ordering::Acquire) >= mark || self.ended().is_some()).then_some(())
        })
        .await;
    }

    // ---- receiving

    /// Processes decrypted bytes. After an error the session has ended.
    pub fn receive(&self, parser: &mut Parser, mut bytes: &[u8]) -> Result<(), ProtocolError> {
        let result = loop {
            if self.ended().is_some() {
                return Ok(());
            }
            match parser.next(&mut bytes) {
                Ok(None) => return Ok(()),
                Ok(Some(event)) => {
                    if let Err(error) = self.process(event) {
                        break error;
                    }
                }
                Err(error) => break error,
            }
        };
        let message = format!("protocol error: {}", result.0);
        let frame = Control::Error { reason: message.clone() };
        self.end(Ended::Faulty { message, remote: false }, Some(frame));
        Err(result)
    }

    fn process(&self, event: Event<'_>) -> Result<(), ProtocolError> {
        let (id, frame) = match event {
            Event::Data { stream, bytes } => return self.receive_data(stream, bytes),
            Event::Control { stream, frame } => (stream, frame),
        };
        match frame {
            Control::Settings(settings) => return self.receive_settings(settings),
            Control::Close { code, reason } => {
                self.end(Ended::Closed { code, reason }, None);
                return Ok(());
            }
            Control::Error { reason } => {
                let ended = Ended::Faulty {
                    message: reason,
                    remote: true,
                };
                self.end(ended, None);
                return Ok(());
            }
            _ if self.settings.get().is_none() => return ProtocolError::new("the first frame is not SETTINGS"),
            Control::Ping(token) => return self.receive_ping(token),
            Control::Pong(token) => return self.receive_pong(token),
            Control::Streams(count) => return self.receive_streams(count),
            Control::Credit(bytes) if id == 0 => {
                let mut state = lock(&self.state);
                state.credit = add_credit(state.credit, bytes)?;
                state.wake_starved();
                return Ok(());
            }
            Control::Open => return self.receive_open(id),
            _ => {}
        }
        let Some(stream) = self.find(id, true)? else { return Ok(()) };
        let is_over = match frame {
            Control::Fin => stream.receive_fin()?,
            Control::Reset(code) => stream.receive_reset(code)?,
            Control::Stop(code) => {
                stream.receive_stop(code);
                false
            }
            Control::Credit(bytes) => {
                stream.receive_credit(bytes)?;
                false
            }
            _ => false, // handled above
        };
        if is_over {
            self.release(&stream);
        }
        Ok(())
    }

    fn receive_settings(&self, settings: Settings) -> Result<(), ProtocolError> {
        if self.settings.set(settings).is_err() {
            return ProtocolError::new("a second SETTINGS frame");
        }
        lock(&self.state).credit = settings.session_window.into();
        self.opening.add_permits(settings.streams as usize);
        self.changed.notify_waiters();
        Ok(())
    }

    fn receive_data(&self, id: u32, bytes: &[u8]) -> Result<(), ProtocolError> {
        let stream = self.find(id, false)?;
        if !lock(&self.state).window.received(bytes.len() as u64) {
            return ProtocolError::new("more data than credit of the session");
        }
        let discarded = match stream {
            Some(stream) => stream.receive_data(bytes)?,
            None => bytes.len(),
        };
        self.read(discarded);
        Ok(())
    }

    fn receive_ping(&self, token: [u8; 8]) -> Result<(), ProtocolError> {
        let mut state = lock(&self.state);
        if state.pings.exceeds(MAX_PINGS) {
            return ProtocolError::new("too many pings");
        }
        state.out.pong = Some(token);
        drop(state);
        self.to_send.notify_one();
        Ok(())
    }

    fn receive_pong(&self, token: [u8; 8]) -> Result<(), ProtocolError> {
        let mut state = lock(&self.state);
        if state.pings.exceeds(MAX_PINGS) {
            return ProtocolError::new("too many pings");
        }
        let (number, sent) = &mut state.ping;
        let Some(sent) = sent.take_if(|_| number.to_be_bytes() == token) else {
            return Ok(()); // of an earlier ping
        };
        let took = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
        let counters = &self.counters;
        let smoothed = match counters.round_trip.load(Ordering::Relaxed) {
            0 => took,
            before => (7 * before + took) / 8, // RFC 9002 §5.3
        };
        counters.round_trip.store(smoothed, Ordering::Relaxed);
        let least = match counters.min_round_trip.load(Ordering::Relaxed) {
            0 => took,
            least => least.min(took),
        };
        counters.min_round_trip.store(least, Ordering::Relaxed);
        Ok(())
    }

    fn receive_streams(&self, count: u32) -> Result<(), ProtocolError> {
        let total = self.opening.available_permits().saturating_add(count as usize);
        if count == 0 || total > Semaphore::MAX_PERMITS / 2 {
            return ProtocolError::new(format!("STREAMS of {count}"));
        }
        self.opening.add_permits(count as usize);
        Ok(())
    }

    fn receive_open(&self, id: u32) -> Result<(), ProtocolError> {
        let window = self.settings.get().map_or(0, |settings| settings.stream_window);
        let mut state = lock(&self.state);
        if id != state.next_peer_id {
            return ProtocolError::new(format!("stream {id} is opened instead of {}", state.next_peer_id));
        }
        if state.peer_streams == 0 {
            return ProtocolError::new("more streams than allowed");
        }
        state.peer_streams -= 1;
        state.next_peer_id = id.checked_add(ID_STEP).unwrap_or(0);
        let stream = Stream::new(id, self.config.stream_window.into(), window.into());
        state.streams.insert(id, stream.clone());
        state.to_accept.push_back(stream);
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }

    /// The stream; `None` if it has ended, which is counted if `counts`.
    fn find(&self, id: u32, counts: bool) -> Result<Option<Arc<Stream>>, ProtocolError> {
        let mut state = lock(&self.state);
        if let Some(stream) = state.streams.get(&id) {
            return Ok(Some(stream.clone()));
        }
        let next = if self.is_own(id) { state.next_id } else { state.next_peer_id };
        if next != 0 && id >= next {
            return ProtocolError::new(format!("stream {id} is not open"));
        }
        if counts && state.late.exceeds(MAX_LATE_FRAMES) {
            return ProtocolError::new("too many frames for streams that have ended");
        }
        Ok(None)
    }

    // ---- life

    /// Resolves when the peer has sent its settings.
    pub async fn ready(&self) -> Result<(), Ended> {
        wait_for(&self.changed, || match (self.ended(), self.settings.get()) {
            (Some(ended), _) => Some(Err(ended.clone())),
            (None, Some(_)) => Some(Ok(())),
            (None, None) => None,
        })
        .await
    }

    pub fn ping(&self) {
        let mut state = lock(&self.state);
        let number = state.ping.0.wrapping_add(1);
        state.ping = (number, Some(Instant::now()));
        state.out.put(0, &Control::Ping(number.to_be_bytes()));
        drop(state);
        self.to_send.notify_one();
    }

    pub fn ended(&self) -> Option<&Ended> {
        self.ended.get()
    }

    /// Closes the session and resets its streams. The first call counts.
    pub fn close(&self, code: u32, reason: &str) {
        let reason = reason.into();
        self.end(Ended::Local, Some(Control::Close { code, reason }));
    }

    /// Ends the session. `frame` is sent last.
    pub fn end(&self, ended: Ended, frame: Option<Control>) {
        let streams = {
            let mut state = lock(&self.state);
            if self.ended.set(ended).is_err() {
                return;
            }
            state.out.bulk.clear();
            (state.out.close, state.out.is_closed) = (frame, true);
            state.to_accept.clear();
            std::mem::take(&mut state.streams)
        };
        self.opening.close();
        self.changed.notify_waiters();
        self.has_flushed.notify_waiters();
        streams.values().for_each(|stream| stream.wake());
        self.to_send.notify_one();
    }

    /// Resolves with the reason once the session has ended; if it was closed locally, once the peer has all that was sent.
    pub async fn closed(&self) -> Ended {
        let ended = wait_for(&self.changed, || self.ended().cloned()).await;
        if ended == Ended::Local {
            let _ = timeout(CLOSE_NOTIFY_TIMEOUT, self.done()).await; // the network may be down
        }
        ended
    }

    /// Resolves when the peer has ended the TCP connection too, and so has all that was sent, or is not waited for any more.
    pub async fn done(&self) {
        wait_for(&self.changed, || self.is_done.load(Ordering::Acquire).then_some(())).await;
    }

    /// Reports that nothing more is received.
    pub fn set_done(&self) {
        self.is_done.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Resolves when CLOSE was sent, or cannot be sent any more.
    pub async fn close_sent(&self) {
        wait_for(&self.changed, || self.close_sent.load(Ordering::Acquire).then_some(())).await;
    }

    /// Reports that nothing more is sent.
    pub fn set_close_sent(&self) {
        self.close_sent.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Resolves once the session has ended.
    pub async fn over(&self) {
        wait_for(&self.changed, || self.ended().map(|_| ())).await;
    }

    /// Round-trip time in ms, and bytes sent and received on the wire.
    pub fn stats(&self) -> Vec<f64> {
        let Counters {
            sent,
            received,
            round_trip,
            ..
        } = &self.counters;
        let [sent, received, round_trip] = [sent, received, round_trip].map(|counter| counter.load(Ordering::Relaxed) as f64);
        vec![round_trip / 1000.0, sent, received]
    }

    fn min_round_trip(&self) -> Duration {
        Duration::from_micros(self.counters.min_round_trip.load(Ordering::Relaxed))
    }
}

impl State {
    /// Wakes the streams that wait for credit of the session.
    fn wake_starved(&mut self) {
        for id in self.starved.drain() {
            if let Some(stream) = self.streams.get(&id) {
                stream.wake_sender();
            }
        }
    }
}

impl Outgoing {
    fn put(&mut self, stream: u32, frame: &Control) {
        if self.is_closed {
            return;
        }
        let before = self.small.len();
        put(&mut self.small, stream, frame);
        self.small_total += (self.small.len() - before) as u64;
    }

    fn put_data(&mut self, stream: u32, data: &[u8]) {
        if self.is_closed {
            return;
        }
        let before = self.small.len();
        put_data_header(&mut self.small, stream, data.len());
        self.small.extend_from_slice(data);
        self.small_total += (self.small.len() - before) as u64;
    }
}
