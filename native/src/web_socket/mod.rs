//! WebSockets (RFC 6455) that carry a stream of bytes, for networks that let only HTTP through (ADR 11).
pub mod frame;
mod pipe;
pub mod upgrade;

pub use pipe::WebSocket;
