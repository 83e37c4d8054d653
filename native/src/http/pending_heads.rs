//! Limits on heads that are being read, in total and per client address.
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use crate::error::{NetError, NetErrorCode};
use crate::net::address::AddressKey;
use crate::sync::lock;

/// Counts the heads being read, in total and per client address. Above the limit it evicts the oldest, which is most likely deliberately
/// slow.
pub struct PendingHeads {
    max: AtomicUsize,
    max_per_address: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    pending: BTreeMap<u64, Pending>,
    /// Numbers of the pending heads of each address, the oldest first.
    keys: HashMap<AddressKey, BTreeSet<u64>>,
}

struct Pending {
    key: Option<AddressKey>,
    evict: oneshot::Sender<NetError>,
}

/// A permit to read a head, held until it is read.
pub struct HeadPermit {
    heads: Arc<PendingHeads>,
    number: u64,
    evicted: oneshot::Receiver<NetError>,
}

impl PendingHeads {
    /// A `max_per_address` of 0 means no limit.
    pub fn new(max: usize, max_per_address: usize) -> Arc<Self> {
        Arc::new(Self {
            max: AtomicUsize::new(max.max(1)),
            max_per_address: AtomicUsize::new(max_per_address),
            state: Mutex::default(),
        })
    }

    /// Changes the limits, as of [`PendingHeads::new`]. Heads beyond them stay until the next one evicts one of them.
    pub fn set_limits(&self, max: usize, max_per_address: usize) {
        self.max.store(max.max(1), Ordering::Relaxed);
        self.max_per_address.store(max_per_address, Ordering::Relaxed);
    }

    pub fn acquire(self: &Arc<Self>, key: Option<AddressKey>) -> HeadPermit {
        let max_per_address = self.max_per_address.load(Ordering::Relaxed);
        let key = key.filter(|_| max_per_address > 0);
        let (evict, evicted) = oneshot::channel();
        let mut state = lock(&self.state);
        let number = state.next;
        state.next += 1;
        state.pending.insert(number, Pending { key, evict });
        if let Some(key) = key {
            let own = state.keys.entry(key).or_default();
            own.insert(number);
            if own.len() > max_per_address {
                let oldest = own.first().copied();
                state.evict(oldest, NetErrorCode::LimitPerAddress, "Too many pending heads from this address");
            }
        }
        if state.pending.len() > self.max.load(Ordering::Relaxed) {
            let oldest = state.pending.keys().next().copied();
            state.evict(oldest, NetErrorCode::Limit, "Too many pending heads");
        }
        HeadPermit {
            heads: self.clone(),
            number,
            evicted,
        }
    }

    #[cfg(test)]
    fn len(&self) -> (usize, usize) {
        let state = lock(&self.state);
        (state.pending.len(), state.keys.len())
    }
}

impl State {
    fn remove(&mut self, number: u64) -> Option<Pending> {
        let pending = self.pending.remove(&number)?;
        if let Some(Entry::Occupied(mut own)) = pending.key.map(|key| self.keys.entry(key)) {
            own.get_mut().remove(&number);
            if own.get().is_empty() {
                own.remove();
            }
        }
        Some(pending)
    }

    fn evict(&mut self, number: Option<u64>, code: NetErrorCode, message: &str) {
        if let Some(pending) = number.and_then(|number| self.remove(number)) {
            let _ = pending.evict.send(NetError::new(code, message)); // dropped meanwhile
        }
    }
}

impl HeadPermit {
    /// Resolves with the reason when the permit is evicted.
    pub async fn evicted(&mut self) -> NetError {
        match (&mut self.evicted).await {
            Ok(error) => error,
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for HeadPermit {
    fn drop(&mut self) {
        lock(&self.heads.state).remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_too_many_evicts_the_oldest() {
        let heads = PendingHeads::new(2, 0);
        let mut first = heads.acquire(None);
        let mut second = heads.acquire(Some(AddressKey::V4(1)));
        let _third = heads.acquire(Some(AddressKey::V4(1)));
        assert_eq!(first.evicted.try_recv().unwrap().code, NetErrorCode::Limit);
        assert!(second.evicted.try_recv().is_err());
        drop(first);
        drop(second);
        assert_eq!(heads.len(), (1, 0));
    }

    #[test]
    fn one_too_many_of_a_source_evicts_its_oldest() {
        let heads = PendingHeads::new(10, 2);
        let mut other = heads.acquire(Some(AddressKey::V4(2)));
        let mut exempt = heads.acquire(None);
        let mut own: Vec<_> = (0..5).map(|_| heads.acquire(Some(AddressKey::V4(1)))).collect();
        for evicted in &mut own[..3] {
            assert_eq!(evicted.evicted.try_recv().unwrap().code, NetErrorCode::LimitPerAddress);
        }
        for kept in own[3..].iter_mut().chain([&mut other, &mut exempt]) {
            assert!(kept.evicted.try_recv().is_err());
        }
        assert_eq!(heads.len(), (4, 2));
        drop(own);
        assert_eq!(heads.len(), (2, 1));
        drop(other);
        drop(exempt);
        assert_eq!(heads.len(), (0, 0));
    }
}
