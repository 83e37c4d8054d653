//! Resolves names: address literals, /etc/hosts, a cache, name servers, and the system's resolver for sources only it knows. Concurrent
//! lookups of a name are shared. A lookup ends when nothing waits for it, and never delays another one.
mod cache;
pub mod config;
mod lookup;
mod search;
mod system;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use self::cache::Cache;
use self::config::{normalized, Paths, ResolverConfig, ResolverFiles};
pub use self::lookup::Lookup;
use self::lookup::{LookupState, Start};
use self::system::SystemResolver;
use crate::net::address::parse_literal;
use crate::sync::lock;

/// Time to cache a result after a timeout, and results of the system's resolver.
const TIMEOUT_TTL: Duration = Duration::from_secs(5);
/// Maximum number of concurrent lookups, if there are enough file descriptors.
const MAX_LOOKUPS: usize = 1_024;
/// A lookup takes a socket per server and perhaps one for TCP. All lookups together take at most half of the file descriptors.
const DESCRIPTORS_EACH: usize = 4;

/// The purpose of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A tunnel: the client chose the name.
    Tunnel = 0,
    /// The agent's own connection: the operator chose the name. It is never evicted.
    Link = 1,
}

/// The resolver.
pub struct Resolver {
    runtime: Handle,
    state: Mutex<State>,
    /// The server that responded last.
    preferred: AtomicUsize,
    system: SystemResolver,
}

struct State {
    files: ResolverFiles,
    cache: Cache,
    lookups: HashMap<String, Weak<SharedLookup>>,
    /// Lookups that may be evicted by newer ones, the oldest first.
    evictable: BTreeMap<u64, Weak<SharedLookup>>,
    last: u64,
}

/// A lookup in progress. Dropping it aborts it.
pub struct SharedLookup {
    resolver: Weak<Resolver>,
    name: String,
    number: u64,
    result: watch::Receiver<LookupState>,
    task: AbortHandle,
}

impl Drop for SharedLookup {
    fn drop(&mut self) {
        self.task.abort();
        let Some(resolver) = self.resolver.upgrade() else { return };
        let mut result = self.result.borrow().clone();
        let mut state = lock(&resolver.state);
        state.evictable.remove(&self.number);
        // another lookup may have begun meanwhile
        if state.lookups.get(&self.name).is_some_and(|other| other.strong_count() == 0) {
            state.lookups.remove(&self.name);
        }
        if !result.is_complete && result.has_any() {
            // the other family timed out; the next tunnel must not wait for it again
            result.addresses.iter_mut().for_each(|each| _ = each.get_or_insert_default());
            result.is_complete = true;
            result.ttl = result.ttl.min(TIMEOUT_TTL);
            state.cache.put(&self.name, result);
        }
    }
}

impl Resolver {
    pub fn new(runtime: Handle, paths: Paths) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            state: Mutex::new(State {
                files: ResolverFiles::new(paths),
                cache: Cache::default(),
                lookups: HashMap::new(),
                evictable: BTreeMap::new(),
                last: 0,
            }),
            preferred: AtomicUsize::new(0),
            system: SystemResolver::new(),
        })
    }

    /// Starts to resolve `host`, unless it is known.
    pub fn lookup(self: &Arc<Self>, host: &str, port: u16, purpose: Purpose) -> Lookup {
        let start = match parse_literal(host) {
            Some(address) => Start::Known(LookupState::known(vec![address])),
            None => self.start(host, purpose),
        };
        Lookup::new(start, port)
    }

    /// Removes a host from the cache: its addresses may be outdated.
    pub fn invalidate(&self, host: &str) {
        lock(&self.state).cache.remove(&key(host));
    }

    fn start(self: &Arc<Self>, host: &str, purpose: Purpose) -> Start {
        let name = normalized(host);
        if name == "invalid" || name.ends_with(".invalid") {
            return Start::Known(LookupState::unknown()); // RFC 6761 §6.4
        }
        let mut state = lock(&self.state);
        let (config, changed) = state.files.current();
        if changed {
            state.cache.clear();
        }
        if name == "localhost" || name.ends_with(".localhost") {
            return Start::Known(LookupState::known(loopback(&config))); // RFC 6761 §6.3
        }
        if let Some(addresses) = config.hosts(&name) {
            return Start::Known(LookupState::known(addresses.iter().map(|ip| (*ip, 0).into()).collect()));
        }
        let key = key(host);
        if let Some(result) = state.cache.get(&key) {
            return Start::Known(result);
        }
        if let Some(shared) = state.lookups.get(&key).and_then(Weak::upgrade) {
            if purpose == Purpose::Link {
                state.evictable.remove(&shared.number);
            }
            return Start::Shared(shared);
        }
        // dropped after the lock is released, as dropping takes it
        let mut evicted = Vec::new();
        while state.evictable.len() >= max_lookups() {
            match state.evictable.pop_first() {
                Some((_, evictable)) => evicted.extend(evictable.upgrade()),
                None => break,
            }
        }
        state.last += 1;
        let number = state.last;
        let (sender, result) = watch::channel(LookupState::default());
        let task = self.runtime.spawn(self.clone().run(key.clone(), config, purpose, sender));
        let shared = Arc::new(SharedLookup {
            resolver: Arc::downgrade(self),
            name: key.clone(),
            number,
            result,
            task: task.abort_handle(),
        });
        if purpose == Purpose::Tunnel {
            state.evictable.insert(number, Arc::downgrade(&shared));
        }
        state.lookups.insert(key, Arc::downgrade(&shared));
        drop(state);
        evicted.iter().for_each(|shared: &Arc<SharedLookup>| shared.task.abort());
        Start::Shared(shared)
    }
}

/// The cache key. A trailing dot matters, as it disables search domains.
fn key(host: &str) -> String {
    host.to_ascii_lowercase()
}

fn max_lookups() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: it writes to the struct that it is given, and to nothing else.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    let descriptors = if got == 0 { limit.rlim_cur as usize } else { 256 };
    (descriptors / 2 / DESCRIPTORS_EACH).clamp(8, MAX_LOOKUPS)
}

/// The loopback addresses of localhost: those in /etc/hosts, which may omit a family, or both.
fn loopback(config: &ResolverConfig) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = config
        .hosts("localhost")
        .unwrap_or_default()
        .iter()
        .filter(|ip| ip.is_loopback())
        .map(|ip| (*ip, 0).into())
        .collect();
    if all.is_empty() {
        all = vec![(Ipv6Addr::LOCALHOST, 0).into(), (Ipv4Addr::LOCALHOST, 0).into()];
    }
    all
}
