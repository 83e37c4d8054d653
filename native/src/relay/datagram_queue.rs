//! Datagrams that wait for a stream. The oldest are dropped for new ones.
use std::cell::RefCell;
use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::capsule;

/// Size of the queue in bytes: a few of the largest datagrams, or some hundreds of 1,200 bytes.
const QUEUE_BYTES: usize = 256 << 10;
/// Bytes that a queued datagram counts for in addition to its payload.
const QUEUE_OVERHEAD: usize = 128;
/// Longest UDP datagram that a socket delivers.
const RECEIVE_BUFFER: usize = 65_536;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; RECEIVE_BUFFER]);
}

/// Calls `receive` with a buffer for one datagram. All flows of a thread share it: one that waits holds none.
pub fn with_buffer<T>(receive: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| receive(buffer))
}

/// Encoded datagrams that wait for a stream.
#[derive(Default)]
pub struct Queue {
    capsules: VecDeque<(Bytes, usize)>,
    bytes: usize,
}

impl Queue {
    pub fn is_empty(&self) -> bool {
        self.capsules.is_empty()
    }

    /// Memory of the queued datagrams.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a datagram, and returns how many were dropped: older ones for it, or itself if no capsule holds it.
    pub fn push(&mut self, payload: &[u8]) -> usize {
        if payload.len() > capsule::MAX_PAYLOAD {
            return 1;
        }
        let capsule = capsule::encode(payload);
        let size = capsule.len() + QUEUE_OVERHEAD;
        let mut dropped = 0;
        while self.bytes + size > QUEUE_BYTES && self.pop().is_some() {
            dropped += 1;
        }
        self.bytes += size;
        self.capsules.push_back((capsule, payload.len()));
        dropped
    }

    fn pop(&mut self) -> Option<(Bytes, usize)> {
        let (capsule, payload) = self.capsules.pop_front()?;
        self.bytes -= capsule.len() + QUEUE_OVERHEAD;
        Some((capsule, payload))
    }

    /// Takes the oldest datagrams, at least one, up to `max` bytes.
    pub fn take(&mut self, max: usize) -> Option<Batch> {
        let (first, payload) = self.pop()?;
        let mut batch = Batch {
            capsules: first,
            datagrams: 1,
            bytes: payload,
        };
        let mut joined = BytesMut::new();
        while let Some((next, _)) = self.capsules.front() {
            let held = if joined.is_empty() { batch.capsules.len() } else { joined.len() };
            if held + next.len() > max {
                break;
            }
            if joined.is_empty() {
                joined.reserve(max.min(held + self.bytes));
                joined.extend_from_slice(&batch.capsules);
            }
            if let Some((next, payload)) = self.pop() {
                joined.extend_from_slice(&next);
                batch.datagrams += 1;
                batch.bytes += payload;
            }
        }
        if !joined.is_empty() {
            batch.capsules = joined.freeze();
        }
        Some(batch)
    }
}

/// Datagrams to be written at once.
pub struct Batch {
    pub capsules: Bytes,
    pub datagrams: usize,
    /// Of their payloads.
    pub bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::super::capsule::{Capsule, Decoder};
    use super::*;

    const BATCH_BYTES: usize = 64 << 10;

    /// The first bytes of the payloads in a batch.
    fn firsts(batch: &Batch) -> Vec<u8> {
        let mut decoder = Decoder::default();
        decoder.push(&batch.capsules);
        let mut all = Vec::new();
        while let Some(Capsule::Payload(payload)) = decoder.next_capsule().unwrap() {
            all.push(payload[0]);
        }
        assert_eq!(all.len(), batch.datagrams);
        all
    }

    #[test]
    fn a_full_queue_drops_the_oldest_and_says_how_many() {
        let mut queue = Queue::default();
        let dropped: usize = (0..10).map(|n| queue.push(&vec![n; 60_000])).sum();
        assert_eq!((dropped, queue.capsules.len()), (6, 4));
        assert!(queue.bytes <= QUEUE_BYTES);
        assert_eq!(firsts(&queue.take(BATCH_BYTES).unwrap()), [6]);
        // one that is larger than all that wait is queued alone
        assert_eq!(queue.push(&vec![20; capsule::MAX_PAYLOAD]), 0);
    }

    #[test]
    fn many_small_datagrams_take_no_more_memory() {
        let mut queue = Queue::default();
        let dropped: usize = (0..100_000).map(|_| queue.push(b"")).sum();
        assert_eq!(dropped + queue.capsules.len(), 100_000);
        assert!(queue.capsules.len() * QUEUE_OVERHEAD <= QUEUE_BYTES);
        while queue.take(usize::MAX).is_some() {}
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn a_batch_has_whole_datagrams_in_order() {
        let mut queue = Queue::default();
        for n in 0..5 {
            assert_eq!(queue.push(&[n; 1_000]), 0);
        }
        let all: Vec<_> = std::iter::from_fn(|| queue.take(2_500)).collect();
        assert_eq!(all.iter().map(firsts).collect::<Vec<_>>(), [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(all.iter().map(|batch| batch.bytes).sum::<usize>(), 5_000);
    }
}
