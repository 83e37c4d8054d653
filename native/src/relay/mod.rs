//! Relaying between the two streams of a tunnel, its rate limits and its memory budget.
pub mod budget;
mod ends;
#[cfg(target_os = "linux")]
mod kernel_splice;
pub mod rate;
pub mod splice;
