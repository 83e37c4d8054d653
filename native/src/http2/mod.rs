//! Clients that speak HTTP/2 (RFC 9113). The `h2` crate has the protocol; here each request becomes a stream like a connection that speaks
//! HTTP/1.1: it begins with a request head, and the response that is written to it begins with a response head.
pub mod connection;
pub mod head;
pub mod stream;
