//! Relaying between the two ends of a tunnel, streams or a stream and datagrams, its rate limits and its memory budget.
pub mod budget;
pub mod capsule;
pub mod datagram_queue;
pub mod datagrams;
pub mod ends;
#[cfg(target_os = "linux")]
mod kernel_splice;
pub mod rate;
pub mod splice;
