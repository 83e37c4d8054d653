//! Relaying between the two streams of a tunnel, its rate limits and its memory budget.
pub mod budget;
mod ends;
pub mod rate;
pub mod splice;
