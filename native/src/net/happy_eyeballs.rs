//! Connects to a host: resolves its name, then tries its addresses with a staggered start (RFC 8305).
use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout, timeout_at, Instant};

use crate::error::{NetError, NetErrorCode};
use crate::net::address::{display, interleave, parse_literal};
use crate::net::resolver::{Lookup, Purpose, Resolver};

/// The Connection Attempt Delay that RFC 8305 §5 recommends.
const CONNECTION_ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Bounds the attempts that a DNS response can cause.
const MAX_ADDRESSES: usize = 16;

/// What to connect to.
pub enum DialTarget {
    /// The addresses of the host, to be resolved.
    Name,
    /// These addresses, whatever the host resolves to.
    Addresses(Vec<SocketAddr>),
}

impl DialTarget {
    /// Parses addresses, with or without a zone (RFC 4007 §11). Does not resolve names.
    pub fn addresses(given: &[String], port: u16) -> Result<Self, NetError> {
        let parse = |text: &String| {
            let mut address = parse_literal(text)?;
            address.set_port(port);
            Some(address)
        };
        let invalid = |text: &String| NetError::new(NetErrorCode::Invalid, format!("Cannot connect to {text:?}: it is not an address"));
        let all = given.iter().map(|text| parse(text).ok_or_else(|| invalid(text)));
        Ok(Self::Addresses(all.collect::<Result<_, _>>()?))
    }
}

/// Connects to the first address of `host` for which `attempt` succeeds, within `limit` in total.
pub async fn connect<T, A, F>(
    (resolver, purpose): (&Arc<Resolver>, Purpose),
    host: &str,
    port: u16,
    target: DialTarget,
    limit: Duration,
    attempt: A,
) -> Result<T, NetError>
where
    T: Send + 'static,
    A: Fn(SocketAddr) -> F,
    F: Future<Output = Result<T, NetError>> + Send + 'static,
{
    let what = display(host, port);
    let until = Instant::now() + limit;
    let (first, lookup) = match target {
        DialTarget::Addresses(given) => (given, None),
        DialTarget::Name => {
            let mut lookup = resolver.lookup(host, port, purpose);
            let first = timeout_at(until, lookup.first())
                .await
                .map_err(|_| resolution_timed_out(&what, limit))?;
            (first.map_err(|error| cannot_resolve(&what, error))?, Some(lookup))
        }
    };
    let is_named = lookup.is_some();
    let result = timeout_at(until, happy_eyeballs(first, lookup, attempt, &what))
        .await
        .unwrap_or_else(|_| {
            Err(NetError::new(
                NetErrorCode::TimedOut,
                format!("Cannot connect to {what}: no response within {} ms", limit.as_millis()),
            ))
        });
    if is_named && result.is_err() {
        resolver.invalidate(host);
    }
    result
}

/// All addresses of `host` known within `limit`.
pub async fn resolve((resolver, purpose): (&Arc<Resolver>, Purpose), host: &str, limit: Duration) -> Result<Vec<SocketAddr>, NetError> {
    match timeout(limit, resolver.lookup(host, 0, purpose).all()).await {
        Ok(result) => result.map_err(|error| cannot_resolve(host, error)),
        Err(_) => Err(resolution_timed_out(host, limit)),
    }
}

fn cannot_resolve(what: &str, error: NetError) -> NetError {
    NetError {
        message: format!("Cannot connect to {what}: {}", error.message),
        ..error
    }
}

fn resolution_timed_out(what: &str, limit: Duration) -> NetError {
    NetError::new(
        NetErrorCode::NameTimedOut,
        format!(
            "Cannot connect to {what}: no name server answered for its name within {} ms",
            limit.as_millis()
        ),
    )
}

/// Tries the addresses in order, and those that are resolved later.
async fn happy_eyeballs<T, A, F>(first: Vec<SocketAddr>, mut lookup: Option<Lookup>, attempt: A, what: &str) -> Result<T, NetError>
where
    T: Send + 'static,
    A: Fn(SocketAddr) -> F,
    F: Future<Output = Result<T, NetError>> + Send + 'static,
{
    let is_complete = |lookup: &Option<Lookup>| lookup.as_ref().is_none_or(Lookup::is_complete);
    let mut waiting = VecDeque::from(interleave(first));
    let is_one_family = waiting.iter().all(|address| address.is_ipv4()) || waiting.iter().all(|address| address.is_ipv6());
    // reserves half for the other family while it may still be resolved
    waiting.truncate(if is_one_family && !is_complete(&lookup) {
        MAX_ADDRESSES / 2
    } else {
        MAX_ADDRESSES
    });
    if waiting.len() == 1 && is_complete(&lookup) {
        return attempt(waiting[0]).await; // needs no task
    }
    let mut left = MAX_ADDRESSES - waiting.len();
    let mut running = JoinSet::new(); // dropping it aborts the other attempts
    let mut best_error: Option<NetError> = None;
    let mut next = Instant::now();
    loop {
        if Instant::now() >= next {
            if let Some(address) = waiting.pop_front() {
                running.spawn(attempt(address));
                next = Instant::now() + CONNECTION_ATTEMPT_DELAY;
            }
        }
        let is_over = running.is_empty() && waiting.is_empty();
        if is_over && is_complete(&lookup) {
            return Err(
                best_error.unwrap_or_else(|| NetError::new(NetErrorCode::UnknownHost, format!("Cannot connect to {what}: no address")))
            );
        }
        tokio::select! {
            Some(ended) = running.join_next() => {
                let error = match ended {
                    Ok(Ok(connection)) => return Ok(connection),
                    Ok(Err(error)) => error,
                    Err(e) => NetError::new(NetErrorCode::Internal, format!("Cannot connect to {what}: {e}")),
                };
                best_error = Some(more_specific(best_error, error));
                // start the next attempt at once, or wait briefly for addresses still being resolved
                next = Instant::now() + if waiting.is_empty() { CONNECTION_ATTEMPT_DELAY } else { Duration::ZERO };
            }
            () = sleep_until(next), if !waiting.is_empty() => {}
            () = sleep_until(next), if is_over => lookup = None,
            late = more(&mut lookup), if !is_complete(&lookup) => {
                if is_over {
                    next = Instant::now();
                }
                let late = &late[..late.len().min(left)];
                left -= late.len();
                waiting = interleave(waiting.into_iter().chain(late.iter().copied()).collect()).into();
            }
        }
    }
}

async fn more(lookup: &mut Option<Lookup>) -> Vec<SocketAddr> {
    match lookup {
        Some(lookup) => lookup.more().await,
        None => Vec::new(),
    }
}

/// Selects the more specific error of two addresses: a response before a timeout before an unreachable address.
pub fn more_specific(a: Option<NetError>, b: NetError) -> NetError {
    let rank = |error: &NetError| match error.code {
        NetErrorCode::Tls | NetErrorCode::OutboundProxy | NetErrorCode::OutboundProxyCredentials => 4,
        NetErrorCode::Closed | NetErrorCode::Refused | NetErrorCode::Reset => 3,
        NetErrorCode::TimedOut => 2,
        NetErrorCode::Limit | NetErrorCode::AddressNotAvailable => 2,
        NetErrorCode::Unreachable => 1,
        _ => 0,
    };
    match a {
        Some(a) if rank(&a) >= rank(&b) => a,
        _ => b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::dns::test_server::{has, Say, Server};
    use crate::net::dns::Family;
    use crate::net::resolver::config::Paths;

    fn resolver() -> Arc<Resolver> {
        Resolver::new(tokio::runtime::Handle::current(), Default::default())
    }

    fn addresses(n: u16) -> Vec<SocketAddr> {
        (1..=n).map(|port| ([127, 0, 0, 1], port).into()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_address_delays_the_next_by_the_stagger_only() {
        let start = tokio::time::Instant::now();
        let attempt = |a: SocketAddr| async move {
            match a.port() {
                1 => std::future::pending().await,
                port => Ok(port),
            }
        };
        assert_eq!(happy_eyeballs(addresses(3), None, attempt, "x").await.unwrap(), 2);
        assert_eq!(start.elapsed(), CONNECTION_ATTEMPT_DELAY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_starts_the_next_at_once() {
        let start = tokio::time::Instant::now();
        let attempt = |a: SocketAddr| async move {
            match a.port() {
                3 => Ok(3),
                _ => Err(NetError::new(NetErrorCode::Refused, "no")),
            }
        };
        assert_eq!(happy_eyeballs(addresses(3), None, attempt, "x").await.unwrap(), 3);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_most_telling_error_is_reported() {
        let attempt = |a: SocketAddr| async move {
            Err::<(), _>(NetError::new(
                if a.port() == 2 {
                    NetErrorCode::Refused
                } else {
                    NetErrorCode::Unreachable
                },
                a.to_string(),
            ))
        };
        assert_eq!(
            happy_eyeballs(addresses(3), None, attempt, "x").await.unwrap_err().code,
            NetErrorCode::Refused
        );
    }

    #[tokio::test]
    async fn addresses_that_are_given_are_tried_and_no_others() {
        let given = ["192.0.2.1".to_owned(), "2001:db8::1".to_owned(), "192.0.2.2".to_owned()];
        let target = DialTarget::addresses(&given, 80).unwrap();
        let tried = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let attempt = |a: SocketAddr| {
            let tried = tried.clone();
            async move {
                crate::sync::lock(&tried).push(a.ip().to_string());
                Err::<(), _>(NetError::new(NetErrorCode::Refused, "no"))
            }
        };
        let error = connect(
            (&resolver(), Purpose::Tunnel),
            "localhost",
            80,
            target,
            Duration::from_secs(3),
            attempt,
        )
        .await
        .unwrap_err();
        assert_eq!(error.code, NetErrorCode::Refused);
        assert_eq!(*crate::sync::lock(&tried), ["192.0.2.1", "2001:db8::1", "192.0.2.2"]);
    }

    #[tokio::test]
    async fn one_family_leaves_room_for_the_other_which_comes_late() {
        let many: Vec<_> = (1..=16).map(|n| format!("::ffff:127.0.0.{n}")).collect();
        let server = Server::start(move |_, family, _| match family {
            Family::V6 => has(&many.iter().map(String::as_str).collect::<Vec<_>>()),
            Family::V4 => Say {
                after: CONNECTION_ATTEMPT_DELAY / 5,
                ..has(&["127.0.0.1"])
            },
        })
        .await;
        let folder = std::env::temp_dir().join(format!("connect-{}-{}", std::process::id(), server.address.port()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
        let paths = Paths {
            hosts: folder.join("hosts"),
            resolv_conf: folder.join("resolv.conf"),
            nsswitch: folder.join("nsswitch.conf"),
            port: server.address.port(),
        };
        let resolver = Resolver::new(tokio::runtime::Handle::current(), paths);
        let attempt = |a: SocketAddr| async move {
            match a {
                SocketAddr::V4(_) => Ok(a),
                SocketAddr::V6(_) => Err(NetError::new(NetErrorCode::Refused, "no")),
            }
        };
        let limit = Duration::from_secs(20);
        let connected = connect((&resolver, Purpose::Tunnel), "host.test", 80, DialTarget::Name, limit, attempt).await;
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(connected.unwrap(), "127.0.0.1:80".parse().unwrap());
    }

    #[test]
    fn names_are_not_addresses() {
        for bad in ["localhost", "", "1.2.3.256", "::1%", "x%lo"] {
            let error = DialTarget::addresses(&[bad.to_owned()], 80).err().map(|error| error.code);
            assert_eq!(error, Some(NetErrorCode::Invalid), "{bad}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_ends_everything() {
        let attempt = |_| async { std::future::pending::<Result<(), NetError>>().await };
        let error = connect(
            (&resolver(), Purpose::Tunnel),
            "127.0.0.1",
            1,
            DialTarget::Name,
            Duration::from_secs(3),
            attempt,
        )
        .await
        .unwrap_err();
        assert_eq!(error.code, NetErrorCode::TimedOut);
    }
}
