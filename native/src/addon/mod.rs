//! The Node-API addon: calls from JavaScript, handles, and the way back.
pub mod accept_queue;
pub mod completion_queue;
pub mod engine;
pub mod handles;
mod splice_job;
