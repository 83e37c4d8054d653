//! The Node-API addon: calls from JavaScript, handles and results.
pub mod accept_queue;
pub mod completion_queue;
pub mod engine;
pub mod handles;
mod splice_job;
