//! Where a name is looked up, and in which order: search domains, name servers, then the system's resolver.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::config::{normalized, Dns, ResolverConfig};
use super::lookup::LookupState;
use super::{system, Purpose, Resolver, TIMEOUT_TTL};
use crate::error::{NetError, NetErrorCode};
use crate::net::dns::{self, Answer, Failure, Family};
use crate::sync::lock;

/// Maximum time to cache addresses.
const MAX_TTL: Duration = Duration::from_secs(300);
/// Maximum time to cache a negative response.
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(10);
/// Time to cache a failure of all servers (RFC 9520 §3.2).
const FAILURE_TTL: Duration = Duration::from_secs(1);

impl Resolver {
    /// Resolves a name, caches the result and publishes it.
    pub async fn run(self: Arc<Self>, name: String, config: Arc<ResolverConfig>, purpose: Purpose, sender: watch::Sender<LookupState>) {
        let outcome = self.search(&name, &config, purpose, &sender).await;
        let mut result = sender.borrow().clone();
        match outcome {
            Ok(Some(addresses)) => {
                let known = LookupState::known(addresses);
                result.addresses = known.addresses;
                result.ttl = if result.has_any() { TIMEOUT_TTL } else { result.ttl };
            }
            Ok(None) => {}
            Err(_) if result.has_any() => result.ttl = result.ttl.min(TIMEOUT_TTL), // one family failed
            Err((error, ttl)) => {
                result.error = Some(error);
                result.ttl = ttl.min(MAX_NEGATIVE_TTL);
            }
        }
        result.is_complete = true;
        result.ttl = result.ttl.min(MAX_TTL);
        lock(&self.state).cache.put(&name, result.clone());
        sender.send_replace(result);
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
        let is_the_systems = config.has_mdns && plain.ends_with(".local") || config.has_others && system::is_own_name(&plain);
        let mut failure = None;
        let mut ttl = MAX_NEGATIVE_TTL;
        if !is_the_systems {
            for candidate in candidates(name, &config.dns) {
                let mut is_unknown = false;
                let asked = dns::query(&config.dns, &self.preferred, &candidate, |family, answer| match answer {
                    Answer::NxDomain(holds) => {
                        ttl = ttl.min(holds);
                        is_unknown = true;
                        // servers without AAAA records may deny names that have A records (RFC 4074 §4.2)
                        if family == Family::V6 {
                            sender.send_modify(|result| result.addresses[family as usize] = Some(Vec::new()));
                            return true;
                        }
                        sender.borrow().has_any()
                    }
                    Answer::NoData(holds) => {
                        ttl = ttl.min(holds);
                        sender.send_modify(|result| result.addresses[family as usize] = Some(Vec::new()));
                        true
                    }
                    Answer::Addresses(ips, holds) => {
                        sender.send_modify(|result| {
                            result.ttl = if result.has_any() { result.ttl.min(holds) } else { holds };
                            result.addresses[family as usize] = Some(ips.iter().map(|ip| (*ip, 0).into()).collect());
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
                sender.send_modify(|result| result.addresses = [None, None]); // the next candidate may have both families
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
            match (self.system.resolve(&plain, purpose).await, &failure) {
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
