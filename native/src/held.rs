//! Everything that JavaScript holds, by number, and what it runs on.
use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::congestion;
use crate::error::{Fault, Warn};
use crate::heartbeat::Heartbeat;
use crate::hub::{Hub, Js, Outcome, Promise};
use crate::inbox::Inbox;
use crate::names::Names;
use crate::rate::{Pace, Rate};
use crate::sources::Paths;
use crate::stream::{Halves, Stop, Stream};
use crate::tcp::{self, Incoming};
use crate::tls::LastConnector;
use crate::{lock, memory, quic};

/// One runtime a process, whatever the number of engines: its threads cost memory. The first engine's wish counts.
pub fn runtime(threads: u32) -> std::io::Result<&'static Handle> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if RUNTIME.get().is_none() {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.clamp(1, 64) as usize)
            // only to let go of memory
            .max_blocking_threads(2)
            .thread_name("reverse-http")
            .enable_all()
            .build()?;
        let _ = RUNTIME.set(runtime); // another environment was faster
    }
    RUNTIME
        .get()
        .map(Runtime::handle)
        .ok_or_else(|| std::io::Error::other("no runtime"))
}

pub enum Cancel {
    Task(AbortHandle),
    Splice(Arc<Stop>),
}

pub struct Connection {
    pub quic: quinn::Connection,
    /// The listener that brought it; 0 where this side dialled.
    pub listener: u64,
    /// Streams that its peer may have open.
    pub most_streams: u32,
    pub streams: OnceLock<Arc<Inbox<Halves>>>,
    pub requests: OnceLock<Arc<Inbox<Incoming>>>,
    /// Changes when the exchanges under way are given up.
    pub given_up: watch::Sender<()>,
}

impl Connection {
    /// As [`quic::exchange`], until it is given up.
    pub fn exchange(self: Arc<Self>, head: &[u8], limit: Duration, bytes: usize) -> impl Future<Output = Result<(Halves, Bytes), Fault>> {
        let head = Bytes::copy_from_slice(head);
        let mut given_up = self.given_up.subscribe(); // here and now: what is given up from now on is given up for this one
        async move {
            tokio::select! {
                exchanged = quic::exchange(self.quic.clone(), head, limit, bytes) => exchanged,
                _ = given_up.changed() => Err(Fault::cancelled()),
            }
        }
    }
}

/// Everything that JavaScript holds, by number.
pub struct Core {
    pub hub: Arc<Hub>,
    pub runtime: &'static Handle,
    pub heartbeat: Arc<Heartbeat>,
    pub names: Arc<Names>,
    pub connector: LastConnector,
    pub next: AtomicU64,
    pub streams: Table<Stream>,
    pub connections: Table<Connection>,
    pub tcp_listeners: Table<tcp::Listener>,
    pub quic_listeners: Table<quic::Listener>,
    pub rates: Table<Rate>,
    pub cancels: Mutex<HashMap<u64, Cancel>>,
    /// One more than there are copies.
    pub copies: Arc<()>,
    pub warned: AtomicBool,
    pub closed: AtomicBool,
    /// Where the process is the program's own.
    pub releasing: Option<AbortHandle>,
}

/// How often free memory is returned to the system.
const RELEASE_INTERVAL: Duration = Duration::from_secs(60);
/// By then the program has started, and what only its start needed is free.
const STARTED: Duration = Duration::from_secs(5);

async fn release_memory_periodically() {
    tokio::time::sleep(STARTED).await;
    loop {
        memory::release();
        tokio::time::sleep(RELEASE_INTERVAL).await;
    }
}

/// With so many, JavaScript is woken all the time, and waking it once more for each costs more than it is worth.
const MANY_COPIES: usize = 8;

/// Calls with this number are none: warnings come under it.
const WARNING: f64 = 0.0;

/// Things that JavaScript holds, by number.
pub type Table<T> = Mutex<HashMap<u64, Arc<T>>>;

/// What can be ended from outside when the engine is closed.
pub trait Held {
    fn end(&self);
}

impl Held for Stream {
    fn end(&self) {
        self.abort();
    }
}

impl Held for Connection {
    fn end(&self) {
        congestion::close(&self.quic, 0, b"");
    }
}

impl Held for tcp::Listener {
    fn end(&self) {
        self.close();
    }
}

impl Held for quic::Listener {
    fn end(&self) {
        self.abort();
    }
}

impl Core {
    pub fn new(hub: Arc<Hub>, runtime: &'static Handle, owns_process: bool) -> Self {
        Self {
            hub,
            runtime,
            heartbeat: Heartbeat::new(),
            names: Names::new(runtime.clone(), Paths::default()),
            connector: LastConnector::default(),
            next: AtomicU64::new(1),
            streams: Mutex::default(),
            connections: Mutex::default(),
            tcp_listeners: Mutex::default(),
            quic_listeners: Mutex::default(),
            rates: Mutex::default(),
            cancels: Mutex::default(),
            copies: Arc::default(),
            warned: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            releasing: owns_process.then(|| runtime.spawn(release_memory_periodically()).abort_handle()),
        }
    }

    pub fn insert<T: Held>(&self, table: &Table<T>, item: Arc<T>) -> Js {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut table = lock(table);
        // `close` says so before it empties the table: what comes later is not seen by it
        if self.closed.load(Ordering::SeqCst) {
            drop(table);
            item.end();
        } else {
            table.insert(id, item);
        }
        Js::Number(id as f64)
    }

    /// Settles with what figures and logs alone wait for.
    pub fn mention(&self, promise: Promise, value: Js) {
        if Arc::strong_count(&self.copies) > MANY_COPIES {
            promise.settle_later(value);
        } else {
            promise.settle(Ok(value));
        }
    }

    pub fn promise(&self, op: f64) -> Promise {
        Promise::new(&self.hub, op)
    }

    /// Tells those who operate it.
    pub fn tell(self: &Arc<Self>) -> Arc<Warn> {
        let core = self.clone();
        Arc::new(move |message| core.promise(WARNING).settle(Ok(Js::Text(message))))
    }

    /// As [`Core::tell`], once.
    pub fn warn(self: &Arc<Self>) -> Arc<Warn> {
        let (core, tell) = (self.clone(), self.tell());
        Arc::new(move |message| {
            if !core.warned.swap(true, Ordering::Relaxed) {
                tell(message);
            }
        })
    }

    /// Those of them that are there still.
    pub fn pace(&self, rates: &[f64]) -> Pace {
        if rates.is_empty() {
            return Pace::default();
        }
        let known = lock(&self.rates);
        Pace::new(rates.iter().filter_map(|id| known.get(&(*id as u64)).cloned()).collect())
    }

    pub fn stream(&self, id: f64) -> Option<Arc<Stream>> {
        lock(&self.streams).get(&(id as u64)).cloned()
    }

    pub fn connection(&self, id: f64) -> Option<Arc<Connection>> {
        lock(&self.connections).get(&(id as u64)).cloned()
    }

    pub fn add_stream(&self, halves: Halves) -> Js {
        self.insert(&self.streams, Stream::new(halves))
    }

    pub fn add_connection(&self, quic: quinn::Connection, listener: u64, most_streams: u32) -> Js {
        let (remote, alpn, certificate) = (quic::remote(&quic), quic::alpn(&quic), quic::peer_certificate(&quic));
        let connection = Connection {
            quic,
            listener,
            most_streams,
            streams: OnceLock::new(),
            requests: OnceLock::new(),
            given_up: watch::Sender::new(()),
        };
        let id = self.insert(&self.connections, Arc::new(connection));
        Js::Array(vec![
            id,
            Js::Text(remote),
            Js::Text(alpn),
            certificate.map_or(Js::Undefined, Js::Bytes),
        ])
    }

    /// Flat, four values each: stream, remote, head, fault.
    pub fn add_incoming(&self, items: Vec<Incoming>) -> Js {
        let mut out = Vec::with_capacity(items.len() * 4);
        for Incoming { halves, remote, head } in items {
            let stream = match halves {
                Some(halves) => Stream::new(halves),
                None => Stream::dead(),
            };
            out.push(self.insert(&self.streams, stream));
            out.push(Js::Text(remote));
            match head {
                Ok(head) => out.extend([Js::Latin1(head), Js::Undefined]),
                Err(fault) => out.extend([Js::Undefined, Js::from(&fault)]),
            }
        }
        Js::Array(out)
    }

    /// Runs `work` as a task whose result settles `op`.
    pub fn run(self: &Arc<Self>, op: f64, cancellable: bool, work: impl Future<Output = Outcome> + Send + 'static) {
        if self.closed.load(Ordering::SeqCst) {
            return drop(self.promise(op));
        }
        let promise = self.promise(op).or(Fault::cancelled());
        let core = self.clone();
        if !cancellable {
            self.runtime.spawn(async move { promise.settle(work.await) });
            return;
        }
        // held while the task is made, so that it cannot forget itself before it is known
        let mut cancels = lock(&self.cancels);
        let task = self.runtime.spawn(async move {
            let outcome = work.await;
            lock(&core.cancels).remove(&(op as u64));
            promise.settle(outcome);
        });
        cancels.insert(op as u64, Cancel::Task(task.abort_handle()));
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.releasing.iter().for_each(AbortHandle::abort);
        let cancels = std::mem::take(&mut *lock(&self.cancels));
        cancels.into_values().for_each(Cancel::cancel);
        end_all(&self.tcp_listeners);
        end_all(&self.quic_listeners);
        end_all(&self.connections);
        end_all(&self.streams);
        lock(&self.rates).clear();
    }
}

fn end_all<T: Held>(table: &Table<T>) {
    let all = std::mem::take(&mut *lock(table));
    all.values().for_each(|item| item.end());
}

impl Cancel {
    pub fn cancel(self) {
        match self {
            Self::Task(task) => task.abort(),
            Self::Splice(stop) => stop.stop(),
        }
    }
}
