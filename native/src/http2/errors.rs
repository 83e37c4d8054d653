//! Errors of streams.
use std::io::ErrorKind;

use h2::Reason;

use crate::error::{NetError, NetErrorCode};

/// Why a stream was reset, or its connection is lost.
pub fn stream_failure(reason: &Result<Reason, h2::Error>) -> NetError {
    match reason {
        Ok(reason) => NetError::remote(NetErrorCode::Reset, format!("The stream was reset with the error code {reason:?}")),
        Err(error) => lost(error),
    }
}

/// Why nothing more can be read.
pub fn read_failure(error: &h2::Error) -> NetError {
    match error.reason() {
        Some(reason) if error.is_reset() => stream_failure(&Ok(reason)),
        _ => lost(error),
    }
}

fn lost(error: &h2::Error) -> NetError {
    let message = match error.get_io().map(std::io::Error::kind) {
        Some(ErrorKind::InvalidData) => return not_http2(), // what the client checks first
        Some(ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe) => "The connection was closed before the stream had ended".to_owned(),
        _ => format!("The connection was lost: {error}"),
    };
    NetError::remote(NetErrorCode::Reset, message)
}

pub fn not_http2() -> NetError {
    NetError::remote(NetErrorCode::NotHttp2, "The server does not speak HTTP/2")
}

/// As [`read_failure`], of a request without a response. `closed`: the server has not processed it.
pub fn request_failure(error: &h2::Error) -> NetError {
    let is_unprocessed = match error.is_reset() {
        true => error.reason() == Some(Reason::REFUSED_STREAM),
        false => true, // the connection is lost, or closed without this stream (RFC 9113 §6.8)
    };
    let error = read_failure(error);
    match is_unprocessed && error.code == NetErrorCode::Reset {
        true => NetError::remote(NetErrorCode::Closed, error.message),
        false => error,
    }
}

/// The written data does not begin with the head of a `what`.
pub fn malformed(what: &str) -> NetError {
    NetError::new(NetErrorCode::Internal, format!("This is not a {what} head"))
}
