//! From a name and a port to a connection: resolve, then try every address with a staggered start (RFC 8305).
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::address::{display, interleave};
use crate::error::Fault;

/// RFC 8305 §5, the Connection Attempt Delay it recommends.
const STAGGER: Duration = Duration::from_millis(250);
/// More addresses than this are not tried: whoever answers for a name does not decide how long we knock.
const MAX_ADDRESSES: usize = 16;

/// Makes a connection to the first address of `host` that answers `attempt`, within `limit` for all of it.
pub async fn connect<T, A, F>(host: &str, port: u16, limit: Duration, attempt: A) -> Result<T, Fault>
where
    T: Send + 'static,
    A: Fn(SocketAddr) -> F,
    F: Future<Output = Result<T, Fault>> + Send + 'static,
{
    let what = display(host, port);
    let all = async {
        let found = tokio::net::lookup_host((host, port))
            .await
            .map_err(|e| Fault::new("unknown-host", format!("Cannot connect to {what}: the name is unknown ({e})")))?;
        let mut addresses: Vec<_> = interleave(found.collect());
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

    #[tokio::test(start_paused = true)]
    async fn the_limit_ends_everything() {
        let attempt = |_| async { std::future::pending::<Result<(), Fault>>().await };
        let fault = connect("127.0.0.1", 1, Duration::from_secs(3), attempt).await.unwrap_err();
        assert_eq!(fault.code, "timed-out");
    }
}
