//! Addresses, name resolution, TLS, TCP and UDP sockets.
pub mod address;
pub mod dns;
pub mod happy_eyeballs;
pub mod proxy_protocol;
pub mod resolver;
pub mod sharing;
pub mod socks_datagram;
pub mod tcp;
pub mod tls;
pub mod udp;
pub mod udp_listener;
pub mod udp_probe;
mod udp_succession;
