//! Request and response heads: where they end, and how many may be pending.
pub mod head;
pub mod pending_heads;
