//! The results of lookups, as long as they are valid.
use std::collections::HashMap;

use tokio::time::Instant;

use super::lookup::LookupState;

/// Maximum number of cached names.
pub const CACHED: usize = 1_024;

/// Results and when they expire, by name.
#[derive(Default)]
pub struct Cache(HashMap<String, (LookupState, Instant)>);

impl Cache {
    /// Adds a result for as long as it is valid. If the cache is full, it replaces the one that expires next.
    pub fn put(&mut self, name: &str, result: LookupState) {
        let now = Instant::now();
        if result.ttl.is_zero() {
            return;
        }
        if self.0.len() >= CACHED && !self.0.contains_key(name) {
            self.0.retain(|_, (_, until)| *until > now);
            if self.0.len() >= CACHED {
                let soonest = self.0.iter().min_by_key(|(_, (_, until))| *until).map(|(name, _)| name.clone());
                self.0.remove(&soonest.unwrap_or_default());
            }
        }
        let until = now + result.ttl;
        self.0.insert(name.to_owned(), (result, until));
    }

    pub fn get(&self, name: &str) -> Option<LookupState> {
        let (result, until) = self.0.get(name)?;
        (*until > Instant::now()).then(|| result.clone())
    }

    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
