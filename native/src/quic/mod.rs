//! QUIC over quinn: endpoints, connections, congestion control and windows.
pub mod congestion;
pub mod connection;
pub mod connection_window;
#[cfg(test)]
mod datagram_tests;
pub mod datagrams;
pub mod dial;
mod generations;
pub mod handshake_limits;
mod icmp;
#[cfg(test)]
mod keep_alive_tests;
pub mod listener;
mod losses;
pub mod probe;
pub mod relayed_packet;
mod siblings;
pub mod signals;
pub mod socket;
mod succession;
#[cfg(test)]
mod transmit_tests;
pub mod transport;
pub mod window;
pub mod write_coalescing;
