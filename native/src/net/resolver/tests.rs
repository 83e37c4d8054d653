//! The resolver with the name server and the files of a test.
use std::path::{Path, PathBuf};

use domain::base::iana::Rcode;

use super::cache::CACHED;
use super::lookup::RESOLUTION_DELAY;
use super::*;
use crate::error::{NetError, NetErrorCode};
use crate::net::dns::test_server::{code, has, silent, Say, Server};
use crate::net::dns::Family;

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
async fn a_name_that_is_denied_for_aaaa_alone_has_its_ipv4_address() {
    for late in [Family::V4, Family::V6] {
        let world = World::new("search corp.test", move |name, family, _| Say {
            after: Duration::from_millis(if family == late { 30 } else { 0 }),
            ..match (name, family) {
                ("host.test", Family::V4) => has(&["192.0.2.1"]),
                _ => code(Rcode::NXDOMAIN),
            }
        })
        .await;
        assert_eq!(world.all("host.test").await.unwrap(), ["192.0.2.1:80"]);
        assert_eq!(world.server.asked().len(), 2, "no search domain is tried");
        assert_eq!(world.all("missing.test").await.unwrap_err().code, NetErrorCode::UnknownHost);
    }
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
    let threads = world.resolver.system.threads[Purpose::Tunnel as usize].clone();
    let all = threads.acquire_many(system::THREADS[0] as u32).await.unwrap();
    let lookup = world.resolver.lookup("host.test", 80, Purpose::Tunnel).all();
    let busy = tokio::time::timeout(LIMIT / 40, lookup).await;
    assert!(busy.is_err(), "{busy:?}");
    assert!(lock(&world.resolver.state).cache.len() == 0);
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
    let max = max_lookups();
    let begin = |n: usize| world.resolver.lookup(&format!("name-{n}.test"), 80, Purpose::Tunnel);
    let mut waiting: Vec<_> = (0..max + 2).map(begin).collect();
    assert_eq!(lock(&world.resolver.state).lookups.len(), max + 3);
    for evicted in waiting.drain(..2) {
        assert_eq!(evicted.all().await.unwrap_err().code, NetErrorCode::NameTimedOut);
    }
    assert_eq!(lock(&world.resolver.state).lookups.len(), max + 1);
    drop(own);
}

#[tokio::test]
async fn the_cache_is_bounded() {
    let world = World::new("", |_, _, _| silent()).await;
    let mut state = lock(&world.resolver.state);
    for n in 0..2 * CACHED {
        let result = LookupState {
            ttl: Duration::from_secs(n as u64),
            ..LookupState::default()
        };
        state.cache.put(&n.to_string(), result);
    }
    assert_eq!(state.cache.len(), CACHED);
    assert!(state.cache.get(&(2 * CACHED - 1).to_string()).is_some());
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
