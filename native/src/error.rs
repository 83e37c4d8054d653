//! The one error of the engine: a literal code that `shared/net/errors.ts` lists, and what made it. And what is no error, but to be told.
use std::io;

use quinn::{ConnectionError, ReadError, TransportErrorCode, WriteError};

/// Tells the program's log what its operator should know, in words.
pub type Warn = dyn Fn(String) + Send + Sync;

/// Why a call failed, as TypeScript will see it.
#[derive(Clone, Debug)]
pub struct Fault {
    pub code: &'static str,
    pub message: String,
    /// Application error code of QUIC, where one was given.
    pub app_code: Option<u64>,
    /// Whether the far side caused it.
    pub remote: bool,
}

impl Fault {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            app_code: None,
            remote: false,
        }
    }

    pub fn remote(code: &'static str, message: impl Into<String>) -> Self {
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
        Self::new("closed", "Cannot use the stream: it is closed")
    }

    /// The peer went away while the other end of its tunnel was not there yet.
    pub fn abandoned(why: &str) -> Self {
        Self::remote("abandoned", format!("The peer has gone: {why}"))
    }

    pub fn cancelled() -> Self {
        Self::new("cancelled", "The call was cancelled")
    }

    /// A connection that could not be made, or listener that could not be opened.
    pub fn connect(error: &io::Error, what: &str) -> Self {
        use io::ErrorKind::*;
        let code = match error.kind() {
            ConnectionRefused => "refused",
            // a firewall's local verdict is EPERM or EACCES
            HostUnreachable | NetworkUnreachable | NetworkDown | PermissionDenied | AddrNotAvailable => "unreachable",
            TimedOut => "timed-out",
            ConnectionReset | ConnectionAborted | BrokenPipe => "reset",
            InvalidInput => "invalid",
            _ => exhausted(error).unwrap_or("unreachable"),
        };
        Self {
            remote: matches!(code, "refused" | "reset"),
            ..Self::new(code, format!("Cannot connect to {what}: {error}"))
        }
    }

    /// A local address that could not be bound.
    pub fn bind(error: &io::Error, address: &str) -> Self {
        use io::ErrorKind::*;
        let code = match error.kind() {
            AddrInUse => "address-in-use",
            AddrNotAvailable => "address-not-available",
            PermissionDenied => "permission-denied",
            _ => exhausted(error).unwrap_or("invalid"),
        };
        Self::new(code, format!("Cannot listen on {address}: {error}"))
    }

    /// A TCP or TLS stream that failed while it was open.
    pub fn stream(error: &io::Error) -> Self {
        Self::remote("reset", format!("The connection was reset: {error}"))
    }

    pub fn tls(what: &str, error: impl std::fmt::Display) -> Self {
        Self::new("tls", format!("{what}: {error}"))
    }

    /// A QUIC connection that could not be made.
    pub fn quic_connect(error: &ConnectionError, what: &str) -> Self {
        let message = format!("Cannot connect to {what}: {error}");
        match error {
            ConnectionError::TimedOut => Self::new("timed-out", message),
            ConnectionError::LocallyClosed => Self::new("closed", message),
            ConnectionError::ApplicationClosed(close) => Self::remote("closed", message).with_app_code(close.error_code),
            ConnectionError::ConnectionClosed(close) => match close.error_code {
                TransportErrorCode::CONNECTION_REFUSED => Self::remote("refused", message),
                code if is_tls(code) => Self::remote("tls", message),
                _ => Self::remote("reset", message),
            },
            ConnectionError::TransportError(e) if is_tls(e.code) => Self::new("tls", message),
            ConnectionError::VersionMismatch => Self::remote("refused", message),
            _ => Self::remote("reset", message),
        }
    }

    /// A call on a QUIC connection, or a stream of it, that is no more.
    pub fn quic_lost(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::LocallyClosed => Self::new("closed", "The connection was closed"),
            ConnectionError::ApplicationClosed(close) => {
                Self::remote("reset", format!("The connection was closed: {error}")).with_app_code(close.error_code)
            }
            _ => Self {
                remote: true,
                ..Self::new("reset", format!("The connection was lost: {error}"))
            },
        }
    }

    pub fn quic_read(error: &ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::remote("reset", format!("The stream was reset with code {code}")).with_app_code(*code),
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

    /// STOP_SENDING of a peer that closed the stream, and did not abort it.
    pub fn is_close(&self) -> bool {
        self.code == "stopped" && self.app_code == Some(0)
    }

    pub fn stopped(code: quinn::VarInt) -> Self {
        Self::remote("stopped", format!("The peer takes no more of this stream, code {code}")).with_app_code(code)
    }
}

/// The TLS alerts of RFC 9001 §4.8.
fn is_tls(code: TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

/// Descriptors or memory have run out.
fn exhausted(error: &io::Error) -> Option<&'static str> {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
    .then_some("limit")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_errors_are_told_apart() {
        let code = |kind: io::ErrorKind| Fault::connect(&kind.into(), "x").code;
        assert_eq!(code(io::ErrorKind::ConnectionRefused), "refused");
        assert_eq!(code(io::ErrorKind::HostUnreachable), "unreachable");
        assert_eq!(code(io::ErrorKind::TimedOut), "timed-out");
        assert_eq!(Fault::connect(&io::Error::from_raw_os_error(libc::EMFILE), "x").code, "limit");
    }

    #[test]
    fn bind_errors_are_told_apart() {
        assert_eq!(Fault::bind(&io::ErrorKind::AddrInUse.into(), "x").code, "address-in-use");
        assert_eq!(Fault::bind(&io::ErrorKind::PermissionDenied.into(), "x").code, "permission-denied");
    }
}
