//! Limits on handshakes, in total and per client address (IPv6: per /64).
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::error::NetErrorCode;
use crate::net::address::{AddressKey, AddressKeys};
use crate::sync::lock;

#[derive(Clone)]
pub struct HandshakeLimits {
    pub time: Duration,
    pub pending: usize,
    /// 0 for no limit.
    pub pending_per_address: usize,
    pub keys: AddressKeys,
    pub retry_threshold: usize,
}

/// Pending handshakes per address. Unvalidated addresses are counted separately, as they can be spoofed.
#[derive(Default)]
pub struct PendingHandshakes {
    by_address: Mutex<HashMap<AddressKey, AddressCounts>>,
}

#[derive(Default)]
struct AddressCounts {
    validated: usize,
    unvalidated: usize,
}

/// A permit for one handshake, until it is dropped.
pub struct HandshakePermit {
    all: Arc<PendingHandshakes>,
    key: AddressKey,
    validated: bool,
}

pub enum Admission {
    Accept(Option<HandshakePermit>),
    /// Require address validation (RFC 9000 §8).
    Retry,
    Refuse,
}

impl PendingHandshakes {
    pub fn admit(self: &Arc<Self>, key: Option<AddressKey>, validated: bool, max: usize) -> Admission {
        let Some(key) = key.filter(|_| max > 0) else {
            return Admission::Accept(None);
        };
        let mut by_address = lock(&self.by_address);
        let counts = by_address.entry(key).or_default();
        match validated {
            true if counts.validated >= max => return Admission::Refuse,
            true => counts.validated += 1,
            false if counts.validated + counts.unvalidated >= max => return Admission::Retry,
            false => counts.unvalidated += 1,
        }
        let all = self.clone();
        Admission::Accept(Some(HandshakePermit { all, key, validated }))
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        let mut by_address = lock(&self.all.by_address);
        let Some(counts) = by_address.get_mut(&self.key) else { return };
        match self.validated {
            true => counts.validated -= 1,
            false => counts.unvalidated -= 1,
        }
        if counts.validated + counts.unvalidated == 0 {
            by_address.remove(&self.key);
        }
    }
}

/// Counts refused handshakes that were not reported because the accept queue was full.
#[derive(Default)]
pub struct SuppressedErrors {
    limit: AtomicU64,
    per_address: AtomicU64,
}

impl SuppressedErrors {
    pub fn of(&self, code: NetErrorCode) -> Option<&AtomicU64> {
        match code {
            NetErrorCode::Limit => Some(&self.limit),
            NetErrorCode::LimitPerAddress => Some(&self.per_address),
            _ => None,
        }
    }

    /// How many failures a reported one stands for: itself and those suppressed before it.
    pub fn take(&self, code: NetErrorCode) -> u64 {
        1 + self.of(code).map_or(0, |count| count.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spoofed_handshakes_do_not_use_up_the_limit_of_an_address() {
        let pending = Arc::new(PendingHandshakes::default());
        let key = Some(AddressKey::V4(1));
        let taken = |admission| match admission {
            Admission::Accept(Some(permit)) => permit,
            _ => panic!("not taken"),
        };
        let unvalidated: Vec<_> = (0..2).map(|_| taken(pending.admit(key, false, 2))).collect();
        assert!(matches!(pending.admit(key, false, 2), Admission::Retry));
        let shown: Vec<_> = (0..2).map(|_| taken(pending.admit(key, true, 2))).collect();
        assert!(matches!(pending.admit(key, true, 2), Admission::Refuse));
        drop(taken(pending.admit(Some(AddressKey::V4(2)), true, 2)));
        drop(shown);
        drop(taken(pending.admit(key, true, 2)));
        assert!(matches!(pending.admit(key, false, 2), Admission::Retry));
        drop(unvalidated);
        drop(taken(pending.admit(key, false, 2)));
        assert!(lock(&pending.by_address).is_empty());
        assert!(matches!(pending.admit(None, true, 2), Admission::Accept(None)));
        assert!(matches!(pending.admit(key, true, 0), Admission::Accept(None)));
    }
}
