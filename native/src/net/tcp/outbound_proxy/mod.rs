//! Reaches a server through an outbound proxy, by HTTP CONNECT or SOCKS 5. The proxy resolves the server's name.
pub mod http;
pub mod socks5;
#[cfg(test)]
mod tests;

use std::fmt::{self, Display};
use std::future::Future;
use std::io;

use tokio::net::TcpStream;

use crate::error::{NetError, NetErrorCode};
use crate::net::address::display;

/// Connections for one tunnel: without credentials, with them, and with a nonce in place of a stale one.
const MAX_REQUESTS: usize = 3;

/// An outbound proxy, as JavaScript passes it.
#[napi_derive::napi(object, object_to_js = false)]
#[derive(Clone)]
pub struct OutboundProxy {
    /// `http` or `socks5`.
    pub protocol: String,
    pub host: String,
    pub port: u16,
    pub username: Option<String>,
    pub password: Option<String>,
}

/// Why there is no tunnel.
#[derive(Debug)]
pub enum Failure {
    /// The proxy rejects the user name or the password.
    Credentials(String),
    Other(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}

impl From<&str> for Failure {
    fn from(why: &str) -> Self {
        Self::Other(why.into())
    }
}

/// A server behind an outbound proxy. It is displayed as `server:port via proxy host:port`.
pub struct Tunnel {
    proxy: OutboundProxy,
    host: String,
    port: u16,
}

impl Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} via proxy {}", self.server(), self.proxy())
    }
}

impl Tunnel {
    pub fn new(proxy: OutboundProxy, host: &str, port: u16) -> Self {
        let host = host.to_owned();
        Self { proxy, host, port }
    }

    /// `host:port` of the server.
    pub fn server(&self) -> String {
        display(&self.host, self.port)
    }

    fn proxy(&self) -> String {
        display(&self.proxy.host, self.proxy.port)
    }

    /// What to connect to.
    pub fn first_hop(&self) -> (&str, u16) {
        (&self.proxy.host, self.proxy.port)
    }

    /// Returns a connection to the proxy on which everything from now on is between this side and the server. `connect` opens one.
    pub async fn open<C, F>(&self, connect: C) -> Result<TcpStream, NetError>
    where
        C: Fn() -> F,
        F: Future<Output = io::Result<TcpStream>>,
    {
        let connect = || async { connect().await.map_err(|e| NetError::connect(&e, &self.to_string())) };
        if self.proxy.protocol == "socks5" {
            let mut stream = connect().await?;
            let result = socks5::request(&mut stream, &self.proxy, &self.host, self.port).await;
            return result.map(|()| stream).map_err(|why| self.failed(why));
        }
        let mut credentials = None;
        for _ in 0..MAX_REQUESTS {
            // a new connection each time: whether the proxy keeps the old one does not matter, nor how the rest of its response is framed
            let mut stream = connect().await?;
            let response = http::request(&mut stream, &self.server(), credentials.as_deref()).await;
            let response = response.map_err(|why| self.failed(why.into()))?;
            if response.is_success() {
                return Ok(stream);
            }
            if response.status != 407 {
                return Err(self.failed(format!("the proxy answers {response}").into()));
            }
            let answer = http::answer(&response, &self.proxy, &self.server(), credentials.is_some());
            credentials = Some(answer.map_err(|why| self.failed(why))?);
        }
        Err(self.failed("the proxy asks for the credentials again and again".into()))
    }

    fn failed(&self, failure: Failure) -> NetError {
        let (code, why) = match failure {
            Failure::Credentials(why) => (NetErrorCode::OutboundProxyCredentials, why),
            Failure::Other(why) => (NetErrorCode::OutboundProxy, why),
        };
        NetError::remote(code, format!("Cannot connect to {self}: {why}"))
    }

    /// Names the server too in an error that names only the proxy.
    pub fn explain(&self, error: NetError) -> NetError {
        match error.message.strip_prefix(&format!("Cannot connect to {}", self.proxy())) {
            Some(rest) => NetError {
                message: format!("Cannot connect to {self}{rest}"),
                ..error
            },
            None => error,
        }
    }
}

/// The connection failed before the response was complete.
fn lost(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the proxy closes the connection without a complete response".into(),
        _ => format!("the connection to the proxy was lost: {error}"),
    }
}
