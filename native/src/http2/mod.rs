//! HTTP/2 (RFC 9113). The `h2` crate has the protocol; here each request is a stream like a connection that speaks HTTP/1.1: it begins with a
//! request head in one direction, and with a response head in the other.
pub mod body;
pub mod client;
pub mod connection;
mod errors;
mod flush;
pub mod head;
mod shared_waker;
pub mod stream;
mod streams;
