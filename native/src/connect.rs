//! From a name and a port to a connection: resolve, then try every address with a staggered start (RFC 8305).
use std::future::Future;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::address::{display, interleave};
use crate::error::Fault;

/// RFC 8305 §5, the Connection Attempt Delay it recommends.
const STAGGER: Duration = Duration::from_millis(250);
/// More addresses than this are not tried: whoever answers for a name does not decide how long we knock.
const MAX_ADDRESSES: usize = 16;

/// Where a host is.
pub enum At {
    /// At the addresses that its name has now.
    Name,
    /// At these, whatever its name says.
    Addresses(Vec<SocketAddr>),
}

impl At {
    /// Addresses as they are written, with a zone (RFC 4007 §11) or without. Nothing here is looked up.
    pub fn addresses(given: &[String], port: u16) -> Result<Self, Fault> {
        let parse = |text: &String| {
            let (ip, zone) = text.split_once('%').map_or((&text[..], None), |(ip, zone)| (ip, Some(zone)));
            let ip: IpAddr = ip.parse().ok()?;
            match zone {
                None => Some((ip, port).into()),
                Some(_) => (&text[..], port).to_socket_addrs().ok()?.next(), // the system numbers the zones
            }
        };
        let invalid = |text: &String| Fault::new("invalid", format!("Cannot connect to {text:?}: it is not an address"));
        let all = given.iter().map(|text| parse(text).ok_or_else(|| invalid(text)));
        Ok(Self::Addresses(all.collect::<Result<_, _>>()?))
    }
}

/// Makes a connection to the first address of `host` that answers `attempt`, within `limit` for all of it.
pub async fn connect<T, A, F>(host: &str, port: u16, at: At, limit: Duration, attempt: A) -> Result<T, Fault>
where
    T: Send + 'static,
    A: Fn(SocketAddr) -> F,
    F: Future<Output = Result<T, Fault>> + Send + 'static,
{
    let what = display(host, port);
    let all = async {
        let found = match at {
            At::Addresses(given) => given,
            At::Name => tokio::net::lookup_host((host, port))
                .await
                .map_err(|e| Fault::new("unknown-host", format!("Cannot connect to {what}: the name is unknown ({e})")))?
                .collect(),
        };
        let mut addresses = interleave(found);
        addresses.truncate(MAX_ADDRESSES);
        race(addresses, attempt, &what).await
    };
    match timeout(limit, all).await {
        Ok(result) => result,
        Err(_) => Err(Fault::new(
            "timed-out",
            format!("Cannot connect to {what}: no answer in {} ms", limit.as_millis()),
        )),
    }
}

async fn race<T, A, F>(addresses: Vec<SocketAddr>, attempt: A, what: &str) -> Result<T, Fault>
where
    T: Send + 'static,
    A: Fn(SocketAddr) -> F,
    F: Future<Output = Result<T, Fault>> + Send + 'static,
{
    if let [only] = addresses[..] {
        return attempt(only).await; // no task of its own
    }
    let mut running = JoinSet::new(); // dropping it ends the losers
    let mut waiting = addresses.into_iter();
    let mut worst: Option<Fault> = None;
    loop {
        if let Some(address) = waiting.next() {
            running.spawn(attempt(address));
        }
        let more = waiting.len() > 0;
        tokio::select! {
            ended = running.join_next() => match ended {
                Some(Ok(Ok(connection))) => return Ok(connection),
                Some(Ok(Err(fault))) => worst = Some(more_telling(worst, fault)),
                Some(Err(e)) => worst = Some(more_telling(worst, Fault::new("internal", format!("Cannot connect to {what}: {e}")))),
                None if !more => return Err(worst.unwrap_or_else(|| Fault::new("unknown-host", format!("Cannot connect to {what}: no address")))),
                None => {}
            },
            _ = sleep(STAGGER), if more => {}
        }
    }
}

/// Of two addresses' errors the one that says more: somebody answered, nobody answered, there is no way there.
fn more_telling(a: Option<Fault>, b: Fault) -> Fault {
    let rank = |fault: &Fault| match fault.code {
        "tls" => 4,
        "closed" | "refused" | "reset" => 3,
        "timed-out" => 2,
        "limit" | "address-not-available" => 2,
        "unreachable" => 1,
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
        assert_eq!(race(addresses(3), attempt, "x").await.unwrap(), 2);
        assert_eq!(start.elapsed(), STAGGER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_starts_the_next_at_once() {
        let start = tokio::time::Instant::now();
        let attempt = |a: SocketAddr| async move {
            match a.port() {
                3 => Ok(3),
                _ => Err(Fault::new("refused", "no")),
            }
        };
        assert_eq!(race(addresses(3), attempt, "x").await.unwrap(), 3);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_most_telling_error_is_reported() {
        let attempt =
            |a: SocketAddr| async move { Err::<(), _>(Fault::new(if a.port() == 2 { "refused" } else { "unreachable" }, a.to_string())) };
        assert_eq!(race(addresses(3), attempt, "x").await.unwrap_err().code, "refused");
    }

    #[tokio::test]
    async fn addresses_that_are_given_are_tried_and_no_others() {
        let given = ["192.0.2.1".to_owned(), "2001:db8::1".to_owned(), "192.0.2.2".to_owned()];
        let at = At::addresses(&given, 80).unwrap();
        let tried = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let attempt = |a: SocketAddr| {
            let tried = tried.clone();
            async move {
                crate::lock(&tried).push(a.ip().to_string());
                Err::<(), _>(Fault::new("refused", "no"))
            }
        };
        let fault = connect("localhost", 80, at, Duration::from_secs(3), attempt).await.unwrap_err();
        assert_eq!(fault.code, "refused");
        assert_eq!(*crate::lock(&tried), ["192.0.2.1", "2001:db8::1", "192.0.2.2"]);
    }

    #[test]
    fn a_name_is_no_address() {
        for bad in ["localhost", "", "1.2.3", "::1%", "x%lo"] {
            let fault = At::addresses(&[bad.to_owned()], 80).err().map(|fault| fault.code);
            assert_eq!(fault, Some("invalid"), "{bad}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_ends_everything() {
        let attempt = |_| async { std::future::pending::<Result<(), Fault>>().await };
        let fault = connect("127.0.0.1", 1, At::Name, Duration::from_secs(3), attempt)
            .await
            .unwrap_err();
        assert_eq!(fault.code, "timed-out");
    }
}
