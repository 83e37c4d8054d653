//! What carries a link: a TCP connection, or a WebSocket. Both have the calls of a non-blocking socket.
use std::future::poll_fn;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::BytesMut;
use socket2::SockRef;

use super::records::Sealed;
use crate::stream::tcp_socket::{Tcp, MAX_IO_SLICES};
use crate::web_socket::WebSocket;

/// Unsent bytes that the kernel buffers. More would delay small frames behind them.
#[cfg(target_os = "linux")]
const MAX_UNSENT: u32 = 32 << 10;

pub enum Socket {
    Tcp(Arc<Tcp>),
    WebSocket(WebSocket),
}

impl Socket {
    pub fn is_web_socket(&self) -> bool {
        matches!(self, Self::WebSocket(_))
    }

    /// Prepares TCP. Keep-alive uses PING frames, which the peer's engine, not only its kernel, must answer.
    pub fn set_up(&self) -> std::io::Result<()> {
        let Self::Tcp(tcp) = self else { return Ok(()) };
        let socket = SockRef::from(&tcp.stream);
        socket.set_tcp_nodelay(true)?;
        socket.set_keepalive(false)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_notsent_lowat(MAX_UNSENT)?;
        Ok(())
    }

    /// Lets TCP be reset instead of closed.
    pub fn reset_on_drop(&self) {
        if let Self::Tcp(tcp) = self {
            tcp.guard();
        } // a WebSocket is reset anyway
    }

    /// As [`Tcp::segments`]; zeros within a WebSocket.
    pub fn segments(&self) -> [u32; 2] {
        match self {
            Self::Tcp(tcp) => tcp.segments(),
            Self::WebSocket(_) => [0; 2],
        }
    }

    pub async fn readable(&self) -> std::io::Result<()> {
        match self {
            Self::Tcp(tcp) => poll_fn(|cx| tcp.stream.poll_read_ready(cx)).await, // there is one reader
            Self::WebSocket(socket) => {
                socket.readable().await;
                Ok(())
            }
        }
    }

    pub async fn writable(&self) -> std::io::Result<()> {
        match self {
            Self::Tcp(tcp) => tcp.stream.writable().await,
            Self::WebSocket(socket) => {
                socket.writable().await;
                Ok(())
            }
        }
    }

    /// Appends what has arrived to the spare capacity of `to`; 0 at the end.
    pub fn try_read(&self, to: &mut BytesMut) -> std::io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.try_read(to, usize::MAX),
            Self::WebSocket(socket) => socket.try_read(to),
        }
    }

    /// Takes a part of the records and returns how many bytes.
    pub fn try_write(&self, sealed: &Sealed) -> std::io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); MAX_IO_SLICES];
        let count = sealed.slices(&mut slices);
        let slices = slices.get(..count).unwrap_or_default();
        match self {
            Self::Tcp(tcp) => tcp.try_write(slices),
            Self::WebSocket(socket) => socket.try_write(slices.first().map_or(&[], |first| first)),
        }
    }

    /// Ends the writing direction.
    pub fn shut_down(&self) {
        match self {
            Self::Tcp(tcp) => drop(SockRef::from(&tcp.stream).shutdown(std::net::Shutdown::Write)), // fails if it is closed
            Self::WebSocket(socket) => socket.shut_down(),
        }
    }
}
