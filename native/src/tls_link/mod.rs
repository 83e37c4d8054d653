//! Sessions over one TLS 1.3 connection over TCP, for networks that block UDP. `docs/protocol.md` describes the frames, and
//! `docs/adr/0007-tls-link.md` the structure: `session/` and `stream/` know frames and no sockets, `link.rs` moves their bytes.
pub mod dial;
pub mod frame;
mod handshake;
mod keep_alive;
mod link;
pub mod listener;
pub mod records;
pub mod session;
mod socket;
pub mod stream;
#[cfg(test)]
mod tests;
mod window;
