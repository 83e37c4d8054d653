//! Resolves names: address literals, /etc/hosts, a cache, name servers, and the system's resolver for sources only it knows. Concurrent
//! lookups of a name are shared. A lookup ends when nothing waits for it, and never delays another one.
use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{sleep_until, Instant};

use crate::error::{NetError, NetErrorCode};
use crate::net::address::parse_literal;
use crate::net::dns::{self, Answer, Failure, Family};
use crate::net::resolver_config::{normalized, Dns, Paths, ResolverConfig, ResolverFiles, MAX_ADDRESSES};
use crate::sync::lock;

/// The Resolution Delay that RFC 8305 §3 recommends: how long IPv4 addresses wait for IPv6 ones.
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// Maximum number of cached names.
const CACHED: usize = 1_024;
/// Maximum time to cache addresses.
const MAX_TTL: Duration = Duration::from_secs(300);
/// Maximum time to cache a negative response.
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(10);
/// Time to cache a timeout, and a failure of all servers (RFC 9520 §3.2).
const TIMEOUT_TTL: Duration = Duration::from_secs(5);
const FAILURE_TTL: Duration = Duration::from_secs(1);
/// Maximum number of concurrent lookups, if there are enough file descriptors.
const MAX_LOOKUPS: usize = 1_024;
/// A lookup takes a socket per server and perhaps one for TCP. All lookups together take at most half of the file descriptors.
const DESCRIPTORS_EACH: usize = 4;
/// Threads for the system's resolver, which cannot be interrupted: for tunnels, and for the agent's own connections.
const SYSTEM_THREADS: [usize; 2] = [12, 4];
const SYSTEM_STACK: usize = 256 * 1024;

/// What a name is resolved for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A tunnel: the client chose the name.
    Tunnel = 0,
    /// The agent's own connection: the operator chose the name. It is never evicted.
    Link = 1,
}

/// The result of a lookup so far.
#[derive(Clone, Debug, Default)]
struct LookupState {
    /// By family; empty if the name has none, `None` if not known yet.
    addresses: [Option<Vec<SocketAddr>>; 2],
    /// How long it is valid.
    ttl: Duration,
    is_complete: bool,
    /// Why there are no addresses.
    error: Option<NetError>,
}

impl LookupState {
    fn known(addresses: Vec<SocketAddr>) -> Self {
        let (v4, v6) = addresses.into_iter().partition(SocketAddr::is_ipv4);
        Self {
            addresses: [Some(v4), Some(v6)],
            is_complete: true,
            ..Self::default()
        }
    }

    fn unknown() -> Self {
        Self {
            is_complete: true,
            ..Self::default()
        }
    }

    fn of(&self, family: Family) -> &[SocketAddr] {
        self.addresses[family as usize].as_deref().unwrap_or_default()
    }

    fn has_any(&self) -> bool {
        self.addresses.iter().flatten().any(|addresses| !addresses.is_empty())
    }
}

/// The resolver.
pub struct Resolver {
    runtime: Handle,
    state: Mutex<State>,
    /// The server that responded last.
    preferred: AtomicUsize,
    system_threads: [Arc<Semaphore>; 2],
}

struct State {
    files: ResolverFiles,
    cache: HashMap<String, (LookupState, Instant)>,
    lookups: HashMap<String, Weak<SharedLookup>>,
    /// Lookups that may be evicted by newer ones, the oldest first.
    evictable: BTreeMap<u64, Weak<SharedLookup>>,
    last: u64,
}

/// A lookup in progress. Dropping it aborts it.
struct SharedLookup {
    resolver: Weak<Resolver>,
    name: String,
    number: u64,
    found: watch::Receiver<LookupState>,
    task: AbortHandle,
}

impl Drop for SharedLookup {
    fn drop(&mut self) {
        self.task.abort();
        let Some(resolver) = self.resolver.upgrade() else { return };
        let mut found = self.found.borrow().clone();
        let mut state = lock(&resolver.state);
        state.evictable.remove(&self.number);
        // another lookup may have begun meanwhile
        if state.lookups.get(&self.name).is_some_and(|other| other.strong_count() == 0) {
            state.lookups.remove(&self.name);
        }
        if !found.is_complete && found.has_any() {
            // the other family timed out; the next tunnel must not wait for it again
            found.addresses.iter_mut().for_each(|each| _ = each.get_or_insert_default());
            found.is_complete = true;
            found.ttl = found.ttl.min(TIMEOUT_TTL);
            state.cache_put(&self.name, found);
        }
    }
}

impl State {
    fn cache_put(&mut self, name: &str, found: LookupState) {
        let now = Instant::now();
        if found.ttl.is_zero() {
            return;
        }
        if self.cache.len() >= CACHED && !self.cache.contains_key(name) {
            self.cache.retain(|_, (_, until)| *until > now);
            if self.cache.len() >= CACHED {
                let soonest = self.cache.iter().min_by_key(|(_, (_, until))| *until).map(|(name, _)| name.clone());
                self.cache.remove(&soonest.unwrap_or_default());
            }
        }
        let until = now + found.ttl;
        self.cache.insert(name.to_owned(), (found, until));
    }

    fn cache_get(&self, name: &str) -> Option<LookupState> {
        let (found, until) = self.cache.get(name)?;
        (*until > Instant::now()).then(|| found.clone())
    }
}

impl Resolver {
    pub fn new(runtime: Handle, paths: Paths) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            state: Mutex::new(State {
                files: ResolverFiles::new(paths),
                cache: HashMap::new(),
                lookups: HashMap::new(),
                evictable: BTreeMap::new(),
                last: 0,
            }),
            preferred: AtomicUsize::new(0),
            system_threads: SYSTEM_THREADS.map(|threads| Arc::new(Semaphore::new(threads))),
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
        if let Some(found) = state.cache_get(&key) {
            return Start::Known(found);
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
        let (sender, found) = watch::channel(LookupState::default());
        let task = self.runtime.spawn(self.clone().run(key.clone(), config, purpose, sender));
        let shared = Arc::new(SharedLookup {
            resolver: Arc::downgrade(self),
            name: key.clone(),
            number,
            found,
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

    async fn run(self: Arc<Self>, name: String, config: Arc<ResolverConfig>, purpose: Purpose, sender: watch::Sender<LookupState>) {
        let result = self.search(&name, &config, purpose, &sender).await;
        let mut found = sender.borrow().clone();
        match result {
            Ok(Some(addresses)) => {
                let known = LookupState::known(addresses);
                found.addresses = known.addresses;
                found.ttl = if found.has_any() { TIMEOUT_TTL } else { found.ttl };
            }
            Ok(None) => {}
            Err(_) if found.has_any() => found.ttl = found.ttl.min(TIMEOUT_TTL), // one family failed
            Err((error, ttl)) => {
                found.error = Some(error);
                found.ttl = ttl.min(MAX_NEGATIVE_TTL);
            }
        }
        found.is_complete = true;
        found.ttl = found.ttl.min(MAX_TTL);
        lock(&self.state).cache_put(&name, found.clone());
        sender.send_replace(found);
    }

    /// Queries the name servers and publishes the answers by family. Returns the addresses of the system's resolver if they know none.
    async fn search(
        &self,
        name: &str,
        config: &ResolverConfig,
        purpose: Purpose,
        sender: &watch::Sender<LookupState>,
    ) -> Result<Option<Vec<SocketAddr>>, (NetError, Duration)> {
        let unknown = |why: &str| NetError::new(NetErrorCode::UnknownHost, format!("the name is unknown ({why})"));
        let plain = normalized(name);
        let is_the_systems = config.has_mdns && plain.ends_with(".local") || config.has_others && is_own_name(&plain);
        let mut failure = None;
        let mut ttl = MAX_NEGATIVE_TTL;
        if !is_the_systems {
            for candidate in candidates(name, &config.dns) {
                let mut is_unknown = false;
                let asked = dns::ask(&config.dns, &self.preferred, &candidate, |family, answer| match answer {
                    Answer::NoName(holds) => {
                        ttl = ttl.min(holds);
                        is_unknown = true;
                        sender.borrow().has_any()
                    }
                    Answer::NoData(holds) => {
                        ttl = ttl.min(holds);
                        sender.send_modify(|found| found.addresses[family as usize] = Some(Vec::new()));
                        true
                    }
                    Answer::Addresses(ips, holds) => {
                        sender.send_modify(|found| {
                            found.ttl = if found.has_any() { found.ttl.min(holds) } else { holds };
                            found.addresses[family as usize] = Some(ips.iter().map(|ip| (*ip, 0).into()).collect());
                        });
                        true
                    }
                })
                .await;
                if sender.borrow().has_any() {
                    return match asked {
                        Ok(()) => Ok(None),
                        Err(e) => Err((dns_error(&e, &config.dns), TIMEOUT_TTL)),
                    };
                }
                sender.send_modify(|found| found.addresses = [None, None]); // the next candidate may have both families
                match asked {
                    Err(Failure::BadName) => {}
                    Err(_) if is_unknown => {}
                    Ok(()) => {}
                    Err(e @ Failure::Server(_)) => failure = Some(e),
                    Err(e) => {
                        // another candidate would be a different host
                        failure = Some(e);
                        break;
                    }
                }
            }
        }
        // if the name servers time out, the system's resolver would too
        if config.has_others && !matches!(failure, Some(Failure::TimedOut)) {
            match (self.ask_system(&plain, purpose).await, &failure) {
                (Ok(addresses), _) => return Ok(Some(addresses)),
                (Err(error), None) => {
                    let ttl = if error.code == NetErrorCode::Limit {
                        Duration::ZERO
                    } else {
                        TIMEOUT_TTL
                    };
                    return Err((error, ttl));
                }
                (Err(_), Some(_)) => {} // the name servers' error is more specific
            }
        }
        match failure {
            Some(e) => Err((dns_error(&e, &config.dns), FAILURE_TTL)),
            None => Err((unknown("it has no address"), ttl)),
        }
    }

    /// Resolves with getaddrinfo(3), on a separate thread, as it cannot be interrupted.
    async fn ask_system(&self, name: &str, purpose: Purpose) -> Result<Vec<SocketAddr>, NetError> {
        let unknown = |why: String| NetError::new(NetErrorCode::UnknownHost, format!("the name is unknown ({why})"));
        // waits without a limit: a full pool says nothing about this name
        let threads = self.system_threads[purpose as usize].clone();
        let permit = threads.acquire_owned().await.map_err(|e| unknown(e.to_string()))?;
        let (sender, receiver) = oneshot::channel();
        let name = name.to_owned();
        let ask = move || {
            let found = (&name[..], 0)
                .to_socket_addrs()
                .map(|all| all.take(MAX_ADDRESSES).collect::<Vec<_>>());
            let _ = sender.send(found.map_err(|e| e.to_string())); // the lookup has ended
            drop(permit);
        };
        let thread = std::thread::Builder::new().name("names".into()).stack_size(SYSTEM_STACK);
        thread.spawn(ask).map_err(|e| {
            NetError::new(
                NetErrorCode::Limit,
                format!("its name cannot be resolved: no thread for the system's resolver: {e}"),
            )
        })?;
        receiver.await.map_err(|e| unknown(e.to_string()))?.map_err(unknown)
    }
}

fn dns_error(failure: &Failure, dns: &Dns) -> NetError {
    let servers = dns
        .servers
        .iter()
        .map(|server| server.ip().to_string())
        .collect::<Vec<_>>()
        .join(", ");
    let what = format!("its name cannot be resolved: name server {servers}: {failure}");
    match failure {
        Failure::TimedOut => NetError::new(NetErrorCode::NameTimedOut, what),
        Failure::Io(e) if NetError::connect(e, "").code == NetErrorCode::Limit => NetError::new(NetErrorCode::Limit, what),
        _ => NetError::new(NetErrorCode::UnknownHost, what),
    }
}

/// The cache key. A trailing dot matters, as it disables search domains.
fn key(host: &str) -> String {
    host.to_ascii_lowercase()
}

/// The names to query, in order (resolv.conf(5), `search` and `ndots`).
fn candidates(name: &str, dns: &Dns) -> Vec<String> {
    if let Some(full) = name.strip_suffix('.') {
        return vec![full.to_owned()];
    }
    let searched = dns.search.iter().map(|domain| format!("{name}.{domain}"));
    if name.matches('.').count() >= dns.ndots {
        std::iter::once(name.to_owned()).chain(searched).collect()
    } else {
        searched.chain([name.to_owned()]).collect()
    }
}

fn max_lookups() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: it writes to the struct that it is given, and to nothing else.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    let descriptors = if got == 0 { limit.rlim_cur as usize } else { 256 };
    (descriptors / 2 / DESCRIPTORS_EACH).clamp(8, MAX_LOOKUPS)
}

fn is_own_name(name: &str) -> bool {
    let mut buffer = [0_u8; 256];
    // SAFETY: it writes no more bytes than the buffer has.
    let got = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len()) };
    let end = buffer.iter().position(|byte| *byte == 0);
    got == 0 && end.is_some_and(|end| end > 0 && buffer[..end].eq_ignore_ascii_case(name.as_bytes()))
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

enum Start {
    Known(LookupState),
    Shared(Arc<SharedLookup>),
}

/// The addresses of one host, as they are resolved.
pub struct Lookup {
    port: u16,
    /// Families that were returned.
    given: [bool; 2],
    found: LookupState,
    /// Present while the lookup runs.
    shared: Option<(watch::Receiver<LookupState>, Arc<SharedLookup>)>,
}

impl Lookup {
    fn new(start: Start, port: u16) -> Self {
        let (found, shared) = match start {
            Start::Known(found) => (found, None),
            Start::Shared(shared) => (LookupState::default(), Some((shared.found.clone(), shared))),
        };
        Self {
            port,
            given: [false; 2],
            found,
            shared,
        }
    }

    /// Whether the lookup has ended.
    pub fn is_complete(&self) -> bool {
        self.shared.is_none()
    }

    /// The first addresses to connect to (RFC 8305 §3): IPv6 at once, IPv4 after a delay.
    pub async fn first(&mut self) -> Result<Vec<SocketAddr>, NetError> {
        while !self.is_complete() && !self.has_usable_ipv6() {
            if self.found.of(Family::V4).is_empty() {
                self.changed().await?;
            } else if !self.changed_within(RESOLUTION_DELAY).await? {
                break;
            }
        }
        self.take()
    }

    /// All addresses. Once one is usable, the others get the Resolution Delay.
    pub async fn all(mut self) -> Result<Vec<SocketAddr>, NetError> {
        while !self.is_complete() {
            if self.found.of(Family::V4).is_empty() && !self.has_usable_ipv6() {
                self.changed().await?;
            } else if !self.changed_within(RESOLUTION_DELAY).await? {
                break;
            }
        }
        self.take()
    }

    /// The next addresses; empty once the lookup has ended.
    pub async fn more(&mut self) -> Vec<SocketAddr> {
        while !self.is_complete() {
            if self.changed().await.is_err() {
                break;
            }
            let new = self.new_addresses();
            if !new.is_empty() {
                return new;
            }
        }
        Vec::new()
    }

    fn take(&mut self) -> Result<Vec<SocketAddr>, NetError> {
        let addresses = self.new_addresses();
        match self.found.error.take() {
            Some(error) if addresses.is_empty() => Err(error),
            _ if addresses.is_empty() => Err(NetError::new(NetErrorCode::UnknownHost, "the name is unknown (it has no address)")),
            _ => Ok(addresses),
        }
    }

    /// New addresses in a simplified order of RFC 6724: those with a route first, and IPv6 before IPv4.
    fn new_addresses(&mut self) -> Vec<SocketAddr> {
        let mut new = Vec::new();
        for family in [Family::V6, Family::V4] {
            let addresses = self.found.of(family);
            if !addresses.is_empty() && !std::mem::replace(&mut self.given[family as usize], true) {
                new.extend(addresses.iter().map(|address| {
                    let mut address = *address;
                    address.set_port(self.port);
                    address
                }));
            }
        }
        if new.len() > 1 {
            new.sort_by_cached_key(|address| !has_route(address));
        }
        new
    }

    fn has_usable_ipv6(&self) -> bool {
        self.found.of(Family::V6).iter().any(has_route)
    }

    async fn changed(&mut self) -> Result<(), NetError> {
        let Some((found, _)) = &mut self.shared else { return Ok(()) };
        let is_complete = found.borrow().is_complete;
        if is_complete || found.changed().await.is_ok() {
            self.found = found.borrow_and_update().clone();
        } else {
            self.shared = None; // evicted by newer lookups
            if self.found.has_any() {
                return Ok(());
            }
            return Err(NetError::new(
                NetErrorCode::NameTimedOut,
                "its name was not resolved: too many lookups are pending",
            ));
        }
        if self.found.is_complete {
            self.shared = None;
        }
        Ok(())
    }

    /// Returns whether something changed.
    async fn changed_within(&mut self, delay: Duration) -> Result<bool, NetError> {
        let until = Instant::now() + delay;
        tokio::select! {
            changed = self.changed() => changed.map(|()| true),
            () = sleep_until(until) => Ok(false),
        }
    }
}

/// Whether the system has a route to the address. Sends nothing.
fn has_route(address: &SocketAddr) -> bool {
    let any: SocketAddr = if address.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let mut to = *address;
    to.set_port(9); // discard; port 0 is invalid
    UdpSocket::bind(any).and_then(|socket| socket.connect(to)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::dns::tests::{code, has, silent, Say, Server};
    use domain::base::iana::Rcode;
    use std::path::{Path, PathBuf};

    const LIMIT: Duration = Duration::from_secs(20);

    /// A resolver that uses the name server of a test.
    struct World {
        resolver: Arc<Resolver>,
        server: Server,
        folder: PathBuf,
    }

    impl World {
        async fn new(options: &str, script: impl Fn(&str, Family, bool) -> Say + Send + Sync + 'static) -> Self {
            let server = Server::start(script).await;
            let folder = std::env::temp_dir().join(format!("names-{}-{}", std::process::id(), server.address.port()));
            std::fs::create_dir_all(&folder).unwrap();
            write(&folder, "resolv.conf", &format!("nameserver 127.0.0.1\n{options}\n"));
            let paths = Paths {
                hosts: folder.join("hosts"),
                resolv_conf: folder.join("resolv.conf"),
                nsswitch: folder.join("nsswitch.conf"),
                port: server.address.port(),
            };
            Self {
                resolver: Resolver::new(Handle::current(), paths),
                server,
                folder,
            }
        }

        async fn all(&self, host: &str) -> Result<Vec<String>, NetError> {
            let lookup = self.resolver.lookup(host, 80, Purpose::Tunnel).all();
            let found = tokio::time::timeout(LIMIT, lookup).await.unwrap()?;
            Ok(found.iter().map(ToString::to_string).collect())
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }

    fn write(folder: &Path, name: &str, text: &str) {
        std::fs::write(folder.join("new"), text).unwrap();
        std::fs::rename(folder.join("new"), folder.join(name)).unwrap();
    }

    fn v4(family: Family, address: &str) -> Say {
        if family == Family::V4 {
            has(&[address])
        } else {
            has(&[])
        }
    }

    #[tokio::test]
    async fn a_name_server_that_never_answers_aaaa_delays_little() {
        let world = World::new("", |_, family, _| if family == Family::V4 { has(&["192.0.2.1"]) } else { silent() }).await;
        let mut lookup = world.resolver.lookup("host.test", 80, Purpose::Tunnel);
        let addresses = tokio::time::timeout(LIMIT / 10, lookup.first()).await.unwrap().unwrap();
        assert_eq!(addresses, ["192.0.2.1:80".parse().unwrap()]);
        drop(lookup);
        // and AAAA is not queried for the next tunnel
        assert_eq!(world.all("host.test").await.unwrap(), ["192.0.2.1:80"]);
        assert_eq!(world.server.asked().len(), 2);
    }

    #[tokio::test]
    async fn a_late_family_is_returned_later() {
        let world = World::new("", |_, family, _| match family {
            Family::V4 => has(&["192.0.2.1"]),
            Family::V6 => Say {
                after: RESOLUTION_DELAY * 4,
                ..has(&["2001:db8::1"])
            },
        })
        .await;
        let mut lookup = world.resolver.lookup("host.test", 80, Purpose::Tunnel);
        assert_eq!(lookup.first().await.unwrap(), ["192.0.2.1:80".parse().unwrap()]);
        assert!(!lookup.is_complete());
        assert_eq!(lookup.more().await, ["[2001:db8::1]:80".parse().unwrap()]);
        assert!(lookup.more().await.is_empty());
    }

    #[tokio::test]
    async fn names_are_asked_for_once_as_long_as_the_answer_holds() {
        let world = World::new("", |name, family, _| match name {
            "short.test" => Say {
                ttl: 0,
                ..v4(family, "192.0.2.2")
            },
            "missing.test" => code(Rcode::NXDOMAIN),
            _ => v4(family, "192.0.2.1"),
        })
        .await;
        for _ in 0..3 {
            assert_eq!(world.all("Host.test").await.unwrap(), ["192.0.2.1:80"]);
            assert_eq!(world.all("short.test").await.unwrap(), ["192.0.2.2:80"]);
            assert_eq!(world.all("missing.test").await.unwrap_err().code, NetErrorCode::UnknownHost);
        }
        let asked = |name: &str| world.server.asked().iter().filter(|question| question.starts_with(name)).count();
        assert_eq!((asked("host.test"), asked("short.test")), (2, 6));
        assert!(asked("missing.test") <= 2);
        world.resolver.invalidate("host.TEST");
        world.all("host.test").await.unwrap();
        assert_eq!(asked("host.test"), 4);
    }

    #[tokio::test]
    async fn a_name_that_waits_for_the_systems_resolver_is_not_unknown() {
        let world = World::new("", |_, _, _| code(Rcode::NXDOMAIN)).await;
        write(&world.folder, "nsswitch.conf", "hosts: files dns other\n");
        let threads = world.resolver.system_threads[Purpose::Tunnel as usize].clone();
        let all = threads.acquire_many(SYSTEM_THREADS[0] as u32).await.unwrap();
        let lookup = world.resolver.lookup("host.test", 80, Purpose::Tunnel).all();
        let busy = tokio::time::timeout(LIMIT / 40, lookup).await;
        assert!(busy.is_err(), "{busy:?}");
        assert!(lock(&world.resolver.state).cache.is_empty());
        drop(all);
    }

    #[tokio::test]
    async fn all_that_wait_for_a_name_share_one_look_up_which_ends_with_the_last() {
        let world = World::new("", |_, _, _| silent()).await;
        let mut waiting: Vec<_> = (0..100).map(|_| world.resolver.lookup("host.test", 80, Purpose::Tunnel)).collect();
        let last = waiting.pop();
        drop(waiting);
        assert_eq!(lock(&world.resolver.state).lookups.len(), 1);
        drop(last);
        let state = lock(&world.resolver.state);
        assert_eq!((state.lookups.len(), state.evictable.len(), state.cache.len()), (0, 0, 0));
    }

    #[tokio::test]
    async fn the_oldest_look_up_is_given_up_for_a_new_one_but_never_the_agents_own() {
        let world = World::new("", |_, _, _| silent()).await;
        let own = world.resolver.lookup("proxy.test", 80, Purpose::Link);
        let most = max_lookups();
        let begin = |n: usize| world.resolver.lookup(&format!("name-{n}.test"), 80, Purpose::Tunnel);
        let mut waiting: Vec<_> = (0..most + 2).map(begin).collect();
        assert_eq!(lock(&world.resolver.state).lookups.len(), most + 3);
        for evicted in waiting.drain(..2) {
            assert_eq!(evicted.all().await.unwrap_err().code, NetErrorCode::NameTimedOut);
        }
        assert_eq!(lock(&world.resolver.state).lookups.len(), most + 1);
        drop(own);
    }

    #[tokio::test]
    async fn the_cache_is_bounded() {
        let world = World::new("", |_, _, _| silent()).await;
        let mut state = lock(&world.resolver.state);
        for n in 0..2 * CACHED {
            let found = LookupState {
                ttl: Duration::from_secs(n as u64),
                ..LookupState::default()
            };
            state.cache_put(&n.to_string(), found);
        }
        assert_eq!(state.cache.len(), CACHED);
        assert!(state.cache_get(&(2 * CACHED - 1).to_string()).is_some());
    }

    #[tokio::test]
    async fn names_are_completed_as_resolv_conf_says() {
        let world = World::new("search a.test b.test\noptions ndots:2", |name, family, _| match name {
            "db.b.test" => v4(family, "192.0.2.1"),
            "x.y" | "full" => v4(family, "192.0.2.2"),
            _ => code(Rcode::NXDOMAIN),
        })
        .await;
        assert_eq!(world.all("db").await.unwrap(), ["192.0.2.1:80"]);
        assert_eq!(world.all("x.y").await.unwrap(), ["192.0.2.2:80"]);
        assert_eq!(world.all("full.").await.unwrap(), ["192.0.2.2:80"]);
        assert_eq!(world.all("db.").await.unwrap_err().code, NetErrorCode::UnknownHost);
        let mut resolver: Vec<_> = world
            .server
            .asked()
            .iter()
            .map(|asked| asked.split(' ').next().unwrap().to_owned())
            .collect();
        resolver.dedup();
        assert_eq!(
            resolver,
            ["db.a.test", "db.b.test", "x.y.a.test", "x.y.b.test", "x.y", "full", "db"]
        );
    }

    #[tokio::test]
    async fn addresses_of_two_hosts_are_not_mixed() {
        // IPv6 of one search domain, IPv4 of another
        let world = World::new("search a.test b.test", |name, family, _| match (name, family) {
            ("db.a.test", Family::V6) => has(&["2001:db8::1"]),
            ("db.b.test", Family::V4) => has(&["192.0.2.1"]),
            _ => has(&[]),
        })
        .await;
        assert_eq!(world.all("db").await.unwrap(), ["[2001:db8::1]:80"]);
    }

    #[tokio::test]
    async fn files_come_first_and_are_read_again() {
        let world = World::new("", |_, family, _| v4(family, "192.0.2.1")).await;
        assert_eq!(world.all("host.test").await.unwrap(), ["192.0.2.1:80"]);
        write(&world.folder, "hosts", "192.0.2.9 host.test\n");
        assert_eq!(world.all("HOST.test.").await.unwrap(), ["192.0.2.9:80"]);
        write(&world.folder, "hosts", "192.0.2.9 other.test\n");
        assert_eq!(world.all("host.test").await.unwrap(), ["192.0.2.1:80"]);
        let gone = Server::start(|_, _, _| silent()).await.stop();
        assert_ne!(gone.port(), world.server.address.port());
        // 127.0.0.2 has no server, and the cache was cleared
        write(&world.folder, "resolv.conf", "nameserver 127.0.0.2\n");
        let error = world.all("host.test").await.unwrap_err();
        assert!(error.message.contains("127.0.0.2"), "{}", error.message);
    }

    #[tokio::test]
    async fn localhost_is_the_loopback_address_without_a_query() {
        let world = World::new("", |_, _, _| has(&["192.0.2.1"])).await;
        write(&world.folder, "hosts", "192.0.2.9 localhost\n");
        for host in ["localhost", "LOCALHOST.", "a.localhost"] {
            let mut all = world.all(host).await.unwrap();
            all.sort();
            assert_eq!(all, ["127.0.0.1:80", "[::1]:80"], "{host}");
        }
        write(&world.folder, "hosts", "127.0.0.1 localhost\n");
        assert_eq!(world.all("localhost").await.unwrap(), ["127.0.0.1:80"]);
        assert_eq!(world.all("a.invalid").await.unwrap_err().code, NetErrorCode::UnknownHost);
        assert!(world.server.asked().is_empty());
    }

    #[tokio::test]
    async fn failures_are_distinguished() {
        let world = World::new("options timeout:1 attempts:1", |name, _, _| match name {
            "silent.test" => silent(),
            "failing.test" => code(Rcode::SERVFAIL),
            _ => code(Rcode::NXDOMAIN),
        })
        .await;
        let error = world.all("silent.test").await.unwrap_err();
        assert_eq!(error.code, NetErrorCode::NameTimedOut);
        assert!(error.message.contains("name server 127.0.0.1: no answer"), "{}", error.message);
        let error = world.all("failing.test").await.unwrap_err();
        assert!(
            error.code == NetErrorCode::UnknownHost && error.message.contains("SERVFAIL"),
            "{}",
            error.message
        );
        assert_eq!(world.all("missing.test").await.unwrap_err().code, NetErrorCode::UnknownHost);
    }
}
