//! The TLS handshake of a link, and the settings that follow it.
use std::io::ErrorKind;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustls::AlertDescription;

use super::link::Link;
use super::records::{Handshake, Sealed, Tls};
use super::session::{Config, Ended, Peer, Session};
use super::socket::Socket;
use crate::error::{NetError, NetErrorCode};

/// Bytes read at a time during a handshake.
const READ: usize = 4 << 10;

/// Completes the handshake and starts the session. Resolves when the peer has sent its settings, and thus has accepted this side's
/// certificate too. `incoming` was read before, and `what` names the peer in errors.
pub async fn establish(
    socket: Socket,
    mut incoming: BytesMut,
    mut tls: Tls,
    config: Config,
    remote: String,
    what: &str,
) -> Result<Arc<Session>, NetError> {
    let early = handshake(&socket, &mut incoming, &mut tls, what).await?;
    let common = tls.common();
    let Some(alpn) = common.alpn_protocol() else {
        return Err(NetError {
            remote: true,
            ..NetError::tls(
                &cannot_connect(what),
                "the peer has selected no protocol (ALPN): it does not speak this one",
            )
        });
    };
    let certificate = common.peer_certificates().and_then(|chain| chain.first());
    let peer = Peer {
        remote,
        is_in_web_socket: socket.is_web_socket(),
        alpn: String::from_utf8_lossy(alpn).into_owned(),
        certificate: certificate.map(|certificate| Bytes::copy_from_slice(certificate)),
    };
    let halves = tls.into_halves().map_err(|e| NetError::tls(&cannot_connect(what), e))?;
    let session = Link::start(socket, halves, &early, incoming, config, peer);
    let guard = CloseOnDrop(Some(session));
    let session = guard.0.as_ref().ok_or_else(NetError::closed)?;
    session.ready().await.map_err(|ended| refused(&ended, what))?;
    guard.disarm()
}

/// Closes a session if the wait for its settings is given up.
struct CloseOnDrop(Option<Arc<Session>>);

impl CloseOnDrop {
    fn disarm(mut self) -> Result<Arc<Session>, NetError> {
        self.0.take().ok_or_else(NetError::closed)
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(session) = &self.0 {
            session.close(0, "");
        }
    }
}

/// The session ended before the peer sent its settings.
fn refused(ended: &Ended, what: &str) -> NetError {
    let message = format!("{}: {ended}", cannot_connect(what));
    match ended {
        Ended::Closed { code, .. } => NetError {
            app_code: Some(u64::from(*code)),
            ..NetError::remote(NetErrorCode::Closed, message)
        },
        Ended::Local => NetError::new(NetErrorCode::Closed, message),
        Ended::TimedOut => NetError::new(NetErrorCode::TimedOut, message),
        Ended::Lost(_) => NetError::remote(NetErrorCode::Reset, message),
        Ended::Faulty { remote, .. } => NetError {
            remote: *remote,
            ..NetError::new(NetErrorCode::Tls, message)
        },
    }
}

fn cannot_connect(what: &str) -> String {
    format!("Cannot connect to {what}")
}

/// Returns data that arrived with the last message; what arrived after it stays in `incoming`.
async fn handshake(socket: &Socket, incoming: &mut BytesMut, tls: &mut Tls, what: &str) -> Result<Vec<u8>, NetError> {
    let mut sealed = Sealed::default();
    let mut has_read = !incoming.is_empty();
    loop {
        let progress = tls.handshake(incoming, &mut sealed);
        let written = write(socket, &mut sealed).await; // also the alert of an error
        let progress = progress.map_err(|e| {
            socket.shut_down();
            NetError {
                remote: matches!(e, rustls::Error::AlertReceived(alert) if alert != AlertDescription::CloseNotify),
                ..NetError::tls(&cannot_connect(what), e)
            }
        })?;
        written.map_err(|e| lost(&e, has_read, what))?;
        if let Handshake::Complete(early) = progress {
            return Ok(early);
        }
        read(socket, incoming).await.map_err(|e| lost(&e, has_read, what))?;
        has_read = true;
    }
}

async fn read(socket: &Socket, incoming: &mut BytesMut) -> std::io::Result<()> {
    loop {
        socket.readable().await?;
        incoming.reserve(READ);
        match socket.try_read(incoming) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

async fn write(socket: &Socket, sealed: &mut Sealed) -> std::io::Result<()> {
    while !sealed.is_empty() {
        match socket.try_write(sealed) {
            Ok(bytes) => sealed.written(bytes),
            Err(e) if e.kind() == ErrorKind::WouldBlock => socket.writable().await?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// TCP failed during the handshake. A peer that closes before it has sent anything refuses the connection: its limits are reached.
fn lost(error: &std::io::Error, has_read: bool, what: &str) -> NetError {
    let is_closed = matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted
    );
    if is_closed && !has_read {
        let message = format!(
            "{}: the peer has closed the TCP connection before the TLS handshake",
            cannot_connect(what)
        );
        return NetError::remote(NetErrorCode::Refused, message);
    }
    let message = format!(
        "{}: the TCP connection was lost during the TLS handshake: {error}",
        cannot_connect(what)
    );
    NetError::remote(NetErrorCode::Reset, message)
}
