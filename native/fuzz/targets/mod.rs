//! The fuzz targets. Each takes an input and panics if a property does not hold. libFuzzer runs millions of inputs (`fuzz_targets/`), the
//! tests a few thousand (`tests/`). Keys and certificates are generated per process; inputs describe how to modify them.
#![allow(dead_code, unused_imports)] // each program that includes this uses a part of it
mod capsules;
mod client_hello;
mod handshakes;
mod heads;
mod http2;
mod input;
mod outbound_proxy;
mod pki;
mod settings;
mod socks;
mod tls_link;
mod web_socket;

pub use capsules::{capsules, datagrams};
pub use client_hello::client_hellos;
pub use handshakes::{certificates, handshakes};
pub use heads::{heads, proxy_headers};
pub use http2::http2_heads;
pub use outbound_proxy::outbound_proxy;
pub use settings::{der, names};
pub use socks::{socks_datagrams, socks_handshakes};
pub use tls_link::{tls_link_frames, tls_link_records};
pub use web_socket::websocket_frames;
