//! The error type of the engine, and warnings.
use std::io;

use quinn::{ConnectionError, ReadError, TransportErrorCode, WriteError};

/// Logs a warning for the operator.
pub type Warn = dyn Fn(String) + Send + Sync;

/// The kinds of errors; `NetErrorCode` in `shared/net/errors.ts` describes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetErrorCode {
    AddressInUse,
    AddressNotAvailable,
    PermissionDenied,
    Refused,
    Unreachable,
    UnknownHost,
    TimedOut,
    NameTimedOut,
    Tls,
    Reset,
    Stopped,
    Closed,
    Abandoned,
    Cancelled,
    NotTls,
    NotHttp2,
    HeadTooLarge,
    HeadTimeout,
    HeadMalformed,
    HeadTruncated,
    Limit,
    LimitPerAddress,
    OutboundProxy,
    OutboundProxyCredentials,
    Invalid,
    Internal,
}

impl NetErrorCode {
    /// The code as TypeScript knows it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AddressInUse => "address-in-use",
            Self::AddressNotAvailable => "address-not-available",
            Self::PermissionDenied => "permission-denied",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::UnknownHost => "unknown-host",
            Self::TimedOut => "timed-out",
            Self::NameTimedOut => "name-timed-out",
            Self::Tls => "tls",
            Self::Reset => "reset",
            Self::Stopped => "stopped",
            Self::Closed => "closed",
            Self::Abandoned => "abandoned",
            Self::Cancelled => "cancelled",
            Self::NotTls => "not-tls",
            Self::NotHttp2 => "not-http2",
            Self::HeadTooLarge => "head-too-large",
            Self::HeadTimeout => "head-timeout",
            Self::HeadMalformed => "head-malformed",
            Self::HeadTruncated => "head-truncated",
            Self::Limit => "limit",
            Self::LimitPerAddress => "limit-per-address",
            Self::OutboundProxy => "outbound-proxy",
            Self::OutboundProxyCredentials => "outbound-proxy-credentials",
            Self::Invalid => "invalid",
            Self::Internal => "internal",
        }
    }
}

/// The error of a call, as TypeScript receives it.
#[derive(Clone, Debug)]
pub struct NetError {
    pub code: NetErrorCode,
    pub message: String,
    /// The QUIC application error code, if any.
    pub app_code: Option<u64>,
    /// Whether the peer caused it.
    pub remote: bool,
}

impl NetError {
    pub fn new(code: NetErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            app_code: None,
            remote: false,
        }
    }

    pub fn remote(code: NetErrorCode, message: impl Into<String>) -> Self {
        Self {
            remote: true,
            ..Self::new(code, message)
        }
    }

    fn with_app_code(mut self, code: quinn::VarInt) -> Self {
        self.app_code = Some(code.into_inner());
        self
    }

    pub fn closed() -> Self {
        Self::new(NetErrorCode::Closed, "Cannot use the stream: it is closed")
    }

    /// The peer disconnected before the other end of its tunnel was connected.
    pub fn abandoned(why: &str) -> Self {
        Self::remote(NetErrorCode::Abandoned, format!("The peer disconnected: {why}"))
    }

    pub fn cancelled() -> Self {
        Self::new(NetErrorCode::Cancelled, "The call was cancelled")
    }

    /// A connection that failed, or a listener that could not be opened.
    pub fn connect(error: &io::Error, what: &str) -> Self {
        use io::ErrorKind::*;
        let code = match error.kind() {
            ConnectionRefused => NetErrorCode::Refused,
            // a local firewall reports EPERM or EACCES
            HostUnreachable | NetworkUnreachable | NetworkDown | PermissionDenied | AddrNotAvailable => NetErrorCode::Unreachable,
            TimedOut => NetErrorCode::TimedOut,
            ConnectionReset | ConnectionAborted | BrokenPipe => NetErrorCode::Reset,
            InvalidInput => NetErrorCode::Invalid,
            _ => exhausted(error).unwrap_or(NetErrorCode::Unreachable),
        };
        Self {
            remote: matches!(code, NetErrorCode::Refused | NetErrorCode::Reset),
            ..Self::new(code, format!("Cannot connect to {what}: {error}"))
        }
    }

    /// A local address that could not be bound.
    pub fn bind(error: &io::Error, address: &str) -> Self {
        use io::ErrorKind::*;
        let code = match error.kind() {
            AddrInUse => NetErrorCode::AddressInUse,
            AddrNotAvailable => NetErrorCode::AddressNotAvailable,
            PermissionDenied => NetErrorCode::PermissionDenied,
            _ => exhausted(error).unwrap_or(NetErrorCode::Invalid),
        };
        Self::new(code, format!("Cannot listen on {address}: {error}"))
    }

    /// A TCP or TLS stream that failed while it was open.
    pub fn stream(error: &io::Error) -> Self {
        Self::remote(NetErrorCode::Reset, format!("The connection was reset: {error}"))
    }

    pub fn tls(what: &str, error: impl std::fmt::Display) -> Self {
        Self::new(NetErrorCode::Tls, format!("{what}: {error}"))
    }

    /// A QUIC connection that failed.
    pub fn quic_connect(error: &ConnectionError, what: &str) -> Self {
        let message = format!("Cannot connect to {what}: {error}");
        match error {
            ConnectionError::TimedOut => Self::new(NetErrorCode::TimedOut, message),
            ConnectionError::LocallyClosed => Self::new(NetErrorCode::Closed, message),
            ConnectionError::ApplicationClosed(close) => Self::remote(NetErrorCode::Closed, message).with_app_code(close.error_code),
            ConnectionError::ConnectionClosed(close) => match close.error_code {
                TransportErrorCode::CONNECTION_REFUSED => Self::remote(NetErrorCode::Refused, message),
                code if is_tls(code) => Self::remote(NetErrorCode::Tls, message),
                _ => Self::remote(NetErrorCode::Reset, message),
            },
            ConnectionError::TransportError(e) if is_tls(e.code) => Self::new(NetErrorCode::Tls, message),
            ConnectionError::VersionMismatch => Self::remote(NetErrorCode::Refused, message),
            _ => Self::remote(NetErrorCode::Reset, message),
        }
    }

    /// A call on a QUIC connection that has ended, or on one of its streams.
    pub fn quic_lost(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::LocallyClosed => Self::new(NetErrorCode::Closed, "The connection was closed"),
            ConnectionError::ApplicationClosed(close) => {
                Self::remote(NetErrorCode::Reset, format!("The connection was closed: {error}")).with_app_code(close.error_code)
            }
            _ => Self {
                remote: true,
                ..Self::new(NetErrorCode::Reset, format!("The connection was lost: {error}"))
            },
        }
    }

    pub fn quic_read(error: &ReadError) -> Self {
        match error {
            ReadError::Reset(code) => {
                Self::remote(NetErrorCode::Reset, format!("The stream was reset with code {code}")).with_app_code(*code)
            }
            ReadError::ConnectionLost(e) => Self::quic_lost(e),
            _ => Self::closed(),
        }
    }

    pub fn quic_write(error: &WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::stopped(*code),
            WriteError::ConnectionLost(e) => Self::quic_lost(e),
            _ => Self::closed(),
        }
    }

    /// Whether it is the STOP_SENDING of a peer that closed the stream instead of aborting it.
    pub fn is_close(&self) -> bool {
        self.code == NetErrorCode::Stopped && self.app_code == Some(0)
    }

    pub fn stopped(code: quinn::VarInt) -> Self {
        Self::remote(
            NetErrorCode::Stopped,
            format!("The peer stopped reading this stream with code {code}"),
        )
        .with_app_code(code)
    }
}

/// The TLS alerts of RFC 9001 §4.8.
fn is_tls(code: TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

/// The error if file descriptors or memory are exhausted.
fn exhausted(error: &io::Error) -> Option<NetErrorCode> {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
    .then_some(NetErrorCode::Limit)
}

/// Characters of a peer's text in an error.
const MAX_QUOTED: usize = 100;

/// A text of a peer, for an error: without what could control a terminal, and shortened.
pub fn printable(text: &str) -> String {
    let shown = text.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' });
    shown.take(MAX_QUOTED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_typescript() {
        use NetErrorCode::*;
        let ours = [
            AddressInUse,
            AddressNotAvailable,
            PermissionDenied,
            Refused,
            Unreachable,
            UnknownHost,
            TimedOut,
            NameTimedOut,
            Tls,
            Reset,
            Stopped,
            Closed,
            Abandoned,
            Cancelled,
            NotTls,
            NotHttp2,
            HeadTooLarge,
            HeadTimeout,
            HeadMalformed,
            HeadTruncated,
            Limit,
            LimitPerAddress,
            OutboundProxy,
            OutboundProxyCredentials,
            Invalid,
            Internal,
        ];
        let union = include_str!("../../shared/net/errors.ts")
            .split_once("type NetErrorCode =")
            .unwrap()
            .1
            .split_once(';')
            .unwrap()
            .0;
        let theirs: Vec<&str> = union.split('"').skip(1).step_by(2).collect();
        assert_eq!(ours.map(NetErrorCode::as_str).to_vec(), theirs);
    }

    #[test]
    fn connect_errors_are_distinguished() {
        let code = |kind: io::ErrorKind| NetError::connect(&kind.into(), "x").code;
        assert_eq!(code(io::ErrorKind::ConnectionRefused), NetErrorCode::Refused);
        assert_eq!(code(io::ErrorKind::HostUnreachable), NetErrorCode::Unreachable);
        assert_eq!(code(io::ErrorKind::TimedOut), NetErrorCode::TimedOut);
        assert_eq!(
            NetError::connect(&io::Error::from_raw_os_error(libc::EMFILE), "x").code,
            NetErrorCode::Limit
        );
    }

    #[test]
    fn bind_errors_are_distinguished() {
        assert_eq!(
            NetError::bind(&io::ErrorKind::AddrInUse.into(), "x").code,
            NetErrorCode::AddressInUse
        );
        assert_eq!(
            NetError::bind(&io::ErrorKind::PermissionDenied.into(), "x").code,
            NetErrorCode::PermissionDenied
        );
    }
}
