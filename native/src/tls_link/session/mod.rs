//! A session over a TLS link: its streams, windows and end. It handles frames, but neither sockets nor TLS: `link.rs` passes it received data
//! (`receive.rs`) and sends its output (`send.rs`).
mod counters;
mod ended;
mod interactivity;
mod receive;
mod send;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use self::counters::Counters;
pub use self::ended::Ended;
use self::interactivity::Interactivity;
use self::receive::FrameRate;
use self::send::Outgoing;
pub use self::send::{Batch, Piece};
use super::frame::{Control, Settings};
use super::link::Link;
use super::stream::{RecvHalf, SendHalf, Stream};
use super::window::{grown_window, interactive_window, SessionWindow};
use crate::error::NetError;
use crate::quic::connection::CLOSE_NOTIFY_TIMEOUT;
use crate::quic::transport::Transport;
use crate::sync::{lock, wait_for};
use crate::time::millis;

/// Initial receive window of a stream in bytes.
const STREAM_WINDOW: u32 = 192 << 10;
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

/// The identity of the peer.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    pub remote: String,
    /// The link is within a WebSocket.
    pub is_in_web_socket: bool,
    pub alpn: String,
    pub certificate: Option<Bytes>,
}

pub struct Session {
    pub config: Config,
    pub peer: Peer,
    is_client: bool,
    state: Mutex<State>,
    /// The limits that the peer's first frame has set.
    settings: OnceLock<Settings>,
    ended: OnceLock<Ended>,
    /// Notified of settings, and the end.
    changed: Notify,
    /// Notified of streams that the peer has opened, and the end.
    opened: Notify,
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
    /// Of what is received.
    interactivity: Interactivity,
    /// Bytes that may still be sent on all streams together.
    send_credit: u64,
    /// Streams that have received bulk data.
    bulk_streams: u64,
    /// Streams that wait for this credit.
    starved: HashSet<u32>,
    out: Outgoing,
    /// Number of the last PING, and when it was sent if it is not answered.
    ping: (u64, Option<Instant>),
    /// When the peer's last PING arrived.
    pinged_by_peer: Option<Instant>,
    pings: FrameRate,
    late: FrameRate,
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
                interactivity: Interactivity::default(),
                send_credit: 0,
                bulk_streams: 0,
                starved: HashSet::new(),
                out,
                ping: (0, None),
                pinged_by_peer: None,
                pings: FrameRate::default(),
                late: FrameRate::default(),
            }),
            config,
            peer,
            is_client,
            settings: OnceLock::new(),
            ended: OnceLock::new(),
            changed: Notify::new(),
            opened: Notify::new(),
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
        let stream = wait_for(&self.opened, || {
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
    pub fn consume(&self, bytes: usize) {
        if bytes > 0 {
            self.change_window(|window| window.consume(bytes as u64));
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
        let Some(credit) = window.grant() else { return };
        out.put(0, &Control::Credit(credit));
        drop(state);
        self.to_send.notify_one();
    }

    /// How much of its window a stream may use now.
    pub fn usable_window(&self, window: u64) -> u64 {
        let state = lock(&self.state);
        match state.interactivity.is_recent(Instant::now()) {
            true => window.min(interactive_window(self.counters.min_round_trip(), state.bulk_streams)),
            false => window,
        }
    }

    /// Reports that a stream carries bulk data.
    pub fn add_bulk(&self) {
        lock(&self.state).bulk_streams += 1;
    }

    pub fn remove_bulk(&self) {
        lock(&self.state).bulk_streams -= 1;
    }

    /// The window of a stream whose reader keeps up.
    pub fn grown_window(&self, window: u64, total_read: u64) -> u64 {
        grown_window(self.config.stream_window.into(), window, total_read, self.counters.min_round_trip())
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

    /// When the peer's last PING arrived.
    pub fn pinged_by_peer(&self) -> Option<Instant> {
        lock(&self.state).pinged_by_peer
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
            state.out.close(frame);
            state.to_accept.clear();
            std::mem::take(&mut state.streams)
        };
        self.opening.close();
        self.changed.notify_waiters();
        self.opened.notify_waiters();
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

    /// Round-trip time in ms, bytes sent and received on the wire, and segments sent and retransmitted.
    pub fn stats(&self) -> Vec<f64> {
        let mut stats = self.counters.describe();
        let segments = self.link.get().and_then(Weak::upgrade).map_or([0; 2], |link| link.segments());
        stats.extend(segments.map(f64::from));
        stats
    }
}
