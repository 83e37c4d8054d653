//! QUIC over quinn: endpoints, connections, congestion control and windows.
pub mod congestion;
pub mod connection;
pub mod connection_window;
pub mod dial;
pub mod handshake_limits;
pub mod listener;
mod losses;
pub mod signals;
#[cfg(test)]
mod transmit_tests;
pub mod transport;
pub mod window;
pub mod write_coalescing;
