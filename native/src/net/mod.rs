//! Addresses, names, TLS, and the sockets under it.
pub mod address;
pub mod dns;
pub mod happy_eyeballs;
pub mod proxy_protocol;
pub mod resolver;
pub mod resolver_config;
pub mod tcp;
pub mod tls;
pub mod udp;
pub mod udp_probe;
