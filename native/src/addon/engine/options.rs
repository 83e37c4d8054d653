//! Options of calls, as JavaScript passes them.
use napi_derive::napi;

use crate::error::NetError;
use crate::http::head::HeadLimits;
use crate::net::address::AddressKeys;
use crate::quic::handshake_limits::HandshakeLimits;
use crate::time::millis;

#[napi(object)]
pub struct HeadOptions {
    pub limit: u32,
    pub timeout_ms: u32,
    pub max_pending: u32,
    pub max_pending_per_address: u32,
    /// Networks exempt from the limit per address.
    pub exempt: Vec<String>,
    /// Networks whose connections begin with a PROXY protocol header.
    pub proxy_protocol: Vec<String>,
}

impl From<&HeadOptions> for HeadLimits {
    fn from(options: &HeadOptions) -> Self {
        Self {
            bytes: options.limit as usize,
            time: millis(options.timeout_ms),
            pending: options.max_pending as usize,
            pending_per_address: options.max_pending_per_address as usize,
        }
    }
}

#[napi(object)]
pub struct HandshakeOptions {
    pub timeout_ms: u32,
    pub max_pending: u32,
    pub max_pending_per_address: u32,
    /// Networks exempt from the limit per address.
    pub exempt: Vec<String>,
    pub retry_threshold: u32,
}

impl HandshakeOptions {
    pub fn limits(&self) -> Result<HandshakeLimits, NetError> {
        Ok(HandshakeLimits {
            time: millis(self.timeout_ms),
            pending: self.max_pending as usize,
            pending_per_address: self.max_pending_per_address as usize,
            keys: AddressKeys::new(&self.exempt)?,
            retry_threshold: self.retry_threshold as usize,
        })
    }
}
