//! Relaying between the two streams of a tunnel, its rate limits and its memory budget.
pub mod budget;
pub mod rate;
pub mod splice;
