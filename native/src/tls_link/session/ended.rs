//! Why a session has ended, and how that is reported.
use crate::error::{NetError, NetErrorCode};

/// Why a session has ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// Closed by this side.
    Local,
    /// Closed by the peer.
    Closed {
        code: u32,
        reason: String,
    },
    TimedOut,
    /// TCP was reset, or has ended without CLOSE.
    Lost(String),
    /// A violation of the protocol or an error of TLS; `remote`: the peer has found it.
    Faulty {
        message: String,
        remote: bool,
    },
}

impl Ended {
    /// Application error code, reason, whether the peer closed it, and the cause as the contract names it.
    pub fn describe(&self) -> (u64, String, bool, &'static str) {
        match self {
            Self::Local => (0, String::new(), false, "application"),
            Self::Closed { code, reason } => (u64::from(*code), reason.clone(), true, "application"),
            Self::TimedOut => (0, self.to_string(), false, "timed-out"),
            Self::Lost(_) => (0, self.to_string(), true, "reset"),
            Self::Faulty { remote, .. } => (0, self.to_string(), *remote, "transport"),
        }
    }

    /// The error of a call on the session or on one of its streams.
    pub fn error(&self) -> NetError {
        match self {
            Self::Local => NetError::new(NetErrorCode::Closed, "The connection was closed"),
            Self::Closed { code, .. } => NetError {
                app_code: Some(u64::from(*code)),
                ..NetError::remote(NetErrorCode::Reset, format!("The connection was closed: {self}"))
            },
            _ => NetError::remote(NetErrorCode::Reset, format!("The connection was lost: {self}")),
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local => f.write_str("closed"),
            Self::Closed { code, reason } if reason.is_empty() => write!(f, "closed by peer: {code}"),
            Self::Closed { code, reason } => write!(f, "closed by peer: {reason} (code {code})"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Lost(message) => f.write_str(message),
            Self::Faulty { message, remote: false } => write!(f, "{message}"),
            Self::Faulty { message, remote: true } => write!(f, "aborted by peer: {message}"),
        }
    }
}
