//! Finds the end of a request or response head in bytes as they come, and bounds how many heads are being read.
//! It knows where a head ends, never what it says.
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::sleep;

use crate::address::AddressKey;
use crate::error::{NetError, NetErrorCode};
use crate::lock;

/// Collects a head. Its end is LF followed by LF or CRLF: a head with bare LFs is for the parser to refuse, not to wait for.
pub struct HeadScanner {
    buffer: BytesMut,
    scanned: usize,
    limit: usize,
    /// The previous byte that counts was LF.
    after_newline: bool,
}

impl HeadScanner {
    pub fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            scanned: 0,
            limit,
            after_newline: false,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Takes more bytes. `Some` once the blank line was seen: the head with it, and what followed.
    pub fn push(&mut self, data: Bytes) -> Result<Option<(Bytes, Bytes)>, NetError> {
        if self.buffer.is_empty() {
            // RFC 9112 §2.2: empty lines before a request line are ignored
            let start = data.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(data.len());
            self.limit = self.limit.saturating_sub(start);
            self.buffer.extend_from_slice(&data[start..]);
        } else {
            self.buffer.extend_from_slice(&data);
        }
        while self.scanned < self.buffer.len() {
            let byte = self.buffer[self.scanned];
            self.scanned += 1;
            match byte {
                b'\n' if self.after_newline => {
                    if self.scanned > self.limit {
                        break;
                    }
                    let rest = self.buffer.split_off(self.scanned);
                    return Ok(Some((std::mem::take(&mut self.buffer).freeze(), rest.freeze())));
                }
                b'\n' => self.after_newline = true,
                b'\r' => {} // does not end the line by itself: the parser refuses it in the wrong place
                b'\t' | 0x20..=0x7e | 0x80.. => self.after_newline = false,
                _ => {
                    let other = other_protocol(byte).filter(|_| self.scanned == 1);
                    let message = other.map_or_else(|| format!("Control character {byte:#04x} in a head"), str::to_owned);
                    return Err(NetError::remote(NetErrorCode::HeadMalformed, message));
                }
            }
        }
        if self.scanned > self.limit || self.limit == 0 {
            return Err(NetError::remote(NetErrorCode::HeadTooLarge, "The head is too large"));
        }
        Ok(None)
    }
}

/// What the first byte tells that comes from a client with another protocol.
fn other_protocol(first: u8) -> Option<&'static str> {
    match first {
        0x04 => Some("It is SOCKS 4, and this port takes HTTP alone"),
        0x05 => Some("It is SOCKS 5, and this port takes HTTP alone"),
        0x16 => Some("It is TLS, and this port takes plain HTTP: the proxy's URL begins with http://"),
        _ => None,
    }
}

/// Resolves after `limit`, with what is wrong then. What has come by then is to be looked at first: a process that was stopped meanwhile finds
/// its timers run out before it hears of what came.
pub async fn head_timeout(limit: Duration) -> NetError {
    sleep(limit).await;
    yield_now().await; // to the sockets
    NetError::remote(NetErrorCode::HeadTimeout, "The head is not complete in time")
}

/// Counts the heads under way, in all and of each source. One too many, and the oldest is told to give up: whoever is slow on purpose is the
/// oldest.
pub struct PendingHeads {
    max: usize,
    max_per_address: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    pending: BTreeMap<u64, Pending>,
    /// Numbers of those that are pending, the oldest first.
    keys: HashMap<AddressKey, BTreeSet<u64>>,
}

struct Pending {
    key: Option<AddressKey>,
    evict: oneshot::Sender<NetError>,
}

/// A place in a [`PendingHeads`], held while a head is being read.
pub struct HeadPermit {
    heads: Arc<PendingHeads>,
    number: u64,
    evicted: oneshot::Receiver<NetError>,
}

impl PendingHeads {
    /// `max_per_address` is 0 for no such limit.
    pub fn new(max: usize, max_per_address: usize) -> Arc<Self> {
        Arc::new(Self {
            max: max.max(1),
            max_per_address,
            state: Mutex::default(),
        })
    }

    pub fn acquire(self: &Arc<Self>, key: Option<AddressKey>) -> HeadPermit {
        let key = key.filter(|_| self.max_per_address > 0);
        let (evict, evicted) = oneshot::channel();
        let mut state = lock(&self.state);
        let number = state.next;
        state.next += 1;
        state.pending.insert(number, Pending { key, evict });
        if let Some(key) = key {
            let own = state.keys.entry(key).or_default();
            own.insert(number);
            if own.len() > self.max_per_address {
                let oldest = own.first().copied();
                state.evict(
                    oldest,
                    NetErrorCode::LimitPerAddress,
                    "Too many heads of this address are being read",
                );
            }
        }
        if state.pending.len() > self.max {
            let oldest = state.pending.keys().next().copied();
            state.evict(oldest, NetErrorCode::Limit, "Too many heads are being read");
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
            let _ = pending.evict.send(NetError::new(code, message)); // gone by itself meanwhile
        }
    }
}

impl HeadPermit {
    /// Resolves when this place is taken away, with the reason.
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

    type Found = Option<(Vec<u8>, Vec<u8>)>;

    fn scan(parts: &[&[u8]], limit: usize) -> Result<Found, NetErrorCode> {
        let mut scanner = HeadScanner::new(limit);
        for (i, part) in parts.iter().enumerate() {
            match scanner.push(Bytes::copy_from_slice(part)) {
                Ok(None) => {}
                Ok(Some((head, rest))) => {
                    let mut rest = rest.to_vec();
                    parts[i + 1..].iter().for_each(|p| rest.extend_from_slice(p));
                    return Ok(Some((head.to_vec(), rest)));
                }
                Err(error) => return Err(error.code),
            }
        }
        Ok(None)
    }

    #[test]
    fn every_split_finds_the_same_end() {
        let text = b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nSSH-2.0-x\r\n\r\n";
        let want = Ok(Some((text[..35].to_vec(), text[35..].to_vec())));
        assert_eq!(scan(&text.iter().map(std::slice::from_ref).collect::<Vec<_>>(), 100), want);
        for i in 0..text.len() {
            assert_eq!(scan(&[&text[..i], &text[i..]], 100), want, "split at {i}");
        }
    }

    #[test]
    fn bare_newlines_end_a_head_too() {
        assert_eq!(scan(&[b"A\n\nB"], 100), Ok(Some((b"A\n\n".to_vec(), b"B".to_vec()))));
        assert_eq!(scan(&[b"A\n\r\nB"], 100), Ok(Some((b"A\n\r\n".to_vec(), b"B".to_vec()))));
    }

    #[test]
    fn leading_empty_lines_are_skipped_and_counted() {
        assert_eq!(scan(&[b"\r\n\r\nA\r\n\r\n"], 100), Ok(Some((b"A\r\n\r\n".to_vec(), vec![]))));
        assert_eq!(scan(&[&b"\r\n".repeat(60)], 100), Err(NetErrorCode::HeadTooLarge));
    }

    #[test]
    fn limits_are_kept_to_the_byte() {
        assert!(matches!(scan(&[b"AAAA\r\n\r\n"], 8), Ok(Some(_))));
        assert_eq!(scan(&[b"AAAAA\r\n\r\n"], 8), Err(NetErrorCode::HeadTooLarge));
        assert_eq!(scan(&[b"AAAAAAAAA"], 8), Err(NetErrorCode::HeadTooLarge));
        assert_eq!(scan(&[b"AAAAAAAA"], 8), Ok(None));
    }

    #[test]
    fn control_characters_are_refused_at_once() {
        assert_eq!(scan(&[&[0x16, 3, 1]], 100), Err(NetErrorCode::HeadMalformed));
        assert_eq!(scan(&[b"A\0"], 100), Err(NetErrorCode::HeadMalformed));
        assert_eq!(scan(&[b"A\x7f"], 100), Err(NetErrorCode::HeadMalformed));
    }

    #[test]
    fn other_protocols_are_named_by_their_first_byte_alone() {
        let message = |data: &[u8]| HeadScanner::new(100).push(Bytes::copy_from_slice(data)).unwrap_err().message;
        assert!(message(&[0x16, 3, 1]).contains("TLS"));
        assert!(message(&[0x05, 1, 0]).contains("SOCKS 5"));
        assert!(message(&[0x04, 1, 0]).contains("SOCKS 4"));
        assert_eq!(message(b"A\x16"), "Control character 0x16 in a head");
    }

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
