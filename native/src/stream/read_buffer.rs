use std::future::{poll_fn, Future};
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::pin::pin;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsStream;

use super::tcp_socket::Tcp;
use super::tls_transport::TlsTransport;
use crate::error::NetError;

pub const SMALL_READ: usize = 8 << 10;
pub const LARGE_READ: usize = 256 << 10;
/// Large reads begin this far into their buffer, which begins with a page. rustls copies what it encrypts to 5 bytes after the start of another
/// page, and many versions of glibc copy that much with `rep movsb`: on AMD Zen 3 and later it is 20 times as slow if the destination is 1 to
/// 15 bytes after the source, modulo 4,096.
const LARGE_OFFSET: usize = 1 << 10;

/// How to treat a FIN without a close_notify, which may be forged (RFC 8446 §6.1).
#[derive(Clone, Copy)]
pub enum Truncation {
    /// As an end. For clients: many programs exit without close_notify.
    End,
    /// As a reset. For servers: these are our own proxies, which always send close_notify.
    Reset,
}

/// The buffer of a reader. Small for interactive traffic, large for bulk data, released while waiting.
pub struct ReadBuffer {
    bytes: BytesMut,
    size: usize,
    pub largest: usize,
    next: usize,
}

impl Default for ReadBuffer {
    fn default() -> Self {
        Self::new(LARGE_READ)
    }
}

impl ReadBuffer {
    /// Limits each read to `largest` bytes.
    pub fn new(largest: usize) -> Self {
        Self {
            bytes: BytesMut::new(),
            size: 0,
            largest: largest.min(LARGE_READ),
            next: LARGE_READ,
        }
    }

    /// Continues with the size that another buffer has reached.
    pub fn resume(largest: usize, size: usize) -> Self {
        Self {
            size,
            ..Self::new(largest)
        }
    }

    /// How large reads have become.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Limits the next read to `bytes` bytes.
    pub fn limit(&mut self, bytes: usize) {
        self.next = bytes;
    }

    /// Makes room, and returns how many bytes to read.
    fn make_room(&mut self) -> usize {
        self.size = self.size.max(SMALL_READ).min(self.largest).min(self.next.max(1));
        if self.size <= SMALL_READ {
            if self.bytes.capacity() < SMALL_READ / 4 {
                self.bytes = BytesMut::with_capacity(self.size);
            }
            return self.bytes.capacity();
        }
        // the same memory again if its data was passed on: it is still in the processor's cache
        if !self.bytes.try_reclaim(LARGE_OFFSET + self.size) {
            self.bytes = BytesMut::with_capacity(LARGE_OFFSET + self.size);
        }
        self.bytes.resize(LARGE_OFFSET, 0);
        self.bytes.advance(LARGE_OFFSET);
        self.size
    }

    fn grow_after(&mut self, read: usize, room: usize) {
        if read >= room {
            self.size = (self.size * 4).min(self.largest);
        } else if read < self.size / 8 {
            self.size = SMALL_READ;
        }
    }

    /// Reads by a call that blocks, which gets the memory to fill and returns how many bytes it has written there.
    pub fn read_blocking(&mut self, call: impl FnOnce(&mut [MaybeUninit<u8>]) -> std::io::Result<usize>) -> std::io::Result<Bytes> {
        let room = self.make_room();
        let spare = self.bytes.spare_capacity_mut();
        let room = room.min(spare.len());
        let n = call(&mut spare[..room])?.min(room);
        // SAFETY: the call has initialized this many bytes of the spare capacity
        unsafe { self.bytes.set_len(self.bytes.len() + n) };
        self.grow_after(n, room);
        Ok(self.bytes.split().freeze())
    }

    pub async fn read_tcp(&mut self, tcp: &Tcp) -> Result<Option<Bytes>, NetError> {
        loop {
            poll_fn(|cx| {
                let ready = tcp.stream.poll_read_ready(cx);
                if ready.is_pending() {
                    self.bytes = BytesMut::new();
                }
                ready
            })
            .await
            .map_err(|e| tcp.failed(e))?;
            let room = self.make_room();
            match tcp.try_read(&mut self.bytes, room) {
                Ok(0) if tcp.is_broken() => return Err(tcp.failed(ErrorKind::ConnectionReset.into())),
                Ok(0) => return Ok(None),
                Ok(n) => {
                    self.grow_after(n, room);
                    return Ok(Some(self.bytes.split().freeze()));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(tcp.failed(e)),
            }
        }
    }

    pub async fn read_tls(
        &mut self,
        stream: &mut tokio::io::ReadHalf<TlsStream<TlsTransport>>,
        tcp: &Tcp,
        truncation: Truncation,
    ) -> Result<Option<Bytes>, NetError> {
        let mut room = 0;
        let read = poll_fn(|cx| {
            room = self.make_room();
            let read = pin!(stream.read_buf(&mut self.bytes)).poll(cx);
            if read.is_pending() {
                self.bytes = BytesMut::new();
            }
            read
        });
        match read.await {
            Ok(0) if tcp.is_broken() => Err(tcp.failed(ErrorKind::ConnectionReset.into())),
            Ok(0) => Ok(None),
            Ok(n) => {
                self.grow_after(n, room);
                Ok(Some(self.bytes.split().freeze()))
            }
            // rustls reports it after all data before it was read
            Err(e) if e.kind() == ErrorKind::UnexpectedEof && matches!(truncation, Truncation::End) && !tcp.is_broken() => Ok(None),
            Err(e) => Err(tcp.failed(e)),
        }
    }
}
