//! The addresses of one host, as they are resolved.
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep_until, Instant};

use super::SharedLookup;
use crate::error::{NetError, NetErrorCode};
use crate::net::dns::Family;

/// The Resolution Delay that RFC 8305 §3 recommends: how long IPv4 addresses wait for IPv6 ones.
pub const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// The result of a lookup so far.
#[derive(Clone, Debug, Default)]
pub struct LookupState {
    /// By family; empty if the name has none, `None` if not known yet.
    pub addresses: [Option<Vec<SocketAddr>>; 2],
    /// How long it is valid.
    pub ttl: Duration,
    pub is_complete: bool,
    /// Why there are no addresses.
    pub error: Option<NetError>,
}

impl LookupState {
    pub fn known(addresses: Vec<SocketAddr>) -> Self {
        let (v4, v6) = addresses.into_iter().partition(SocketAddr::is_ipv4);
        Self {
            addresses: [Some(v4), Some(v6)],
            is_complete: true,
            ..Self::default()
        }
    }

    pub fn unknown() -> Self {
        Self {
            is_complete: true,
            ..Self::default()
        }
    }

    pub fn of(&self, family: Family) -> &[SocketAddr] {
        self.addresses[family as usize].as_deref().unwrap_or_default()
    }

    pub fn has_any(&self) -> bool {
        self.addresses.iter().flatten().any(|addresses| !addresses.is_empty())
    }
}

/// A result that is known, or a lookup in progress.
pub enum Start {
    Known(LookupState),
    Shared(Arc<SharedLookup>),
}

/// The addresses of one host, as they are resolved.
pub struct Lookup {
    port: u16,
    /// Families that were returned.
    given: [bool; 2],
    result: LookupState,
    /// Present while the lookup runs.
    shared: Option<(watch::Receiver<LookupState>, Arc<SharedLookup>)>,
}

impl Lookup {
    pub fn new(start: Start, port: u16) -> Self {
        let (result, shared) = match start {
            Start::Known(result) => (result, None),
            Start::Shared(shared) => (LookupState::default(), Some((shared.result.clone(), shared))),
        };
        Self {
            port,
            given: [false; 2],
            result,
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
            if self.result.of(Family::V4).is_empty() {
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
            if self.result.of(Family::V4).is_empty() && !self.has_usable_ipv6() {
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
        match self.result.error.take() {
            Some(error) if addresses.is_empty() => Err(error),
            _ if addresses.is_empty() => Err(NetError::new(NetErrorCode::UnknownHost, "the name is unknown (it has no address)")),
            _ => Ok(addresses),
        }
    }

    /// New addresses in a simplified order of RFC 6724: those with a route first, and IPv6 before IPv4.
    fn new_addresses(&mut self) -> Vec<SocketAddr> {
        let mut new = Vec::new();
        for family in [Family::V6, Family::V4] {
            let addresses = self.result.of(family);
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
        self.result.of(Family::V6).iter().any(has_route)
    }

    async fn changed(&mut self) -> Result<(), NetError> {
        let Some((result, _)) = &mut self.shared else { return Ok(()) };
        let is_complete = result.borrow().is_complete;
        if is_complete || result.changed().await.is_ok() {
            self.result = result.borrow_and_update().clone();
        } else {
            self.shared = None; // evicted by newer lookups
            if self.result.has_any() {
                return Ok(());
            }
            return Err(NetError::new(
                NetErrorCode::NameTimedOut,
                "its name was not resolved: too many lookups are pending",
            ));
        }
        if self.result.is_complete {
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
