//! What waits until the transport has taken all that was sent: resets, as `h2` discards then what is not written, even the head of a response,
//! and those who need to know that a stream has ended for its peer.
use std::future::{pending, poll_fn, Future};
use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{timeout_at, Instant};

use super::connection::LAST_FRAMES;
use super::stream::CutStream;
use super::streams::Streams;
use crate::sync::lock;

/// A transport, and whether it waits for its peer to take data.
pub struct Watched<T> {
    transport: T,
    is_blocked: Arc<AtomicBool>,
}

/// Waits for the transport of a connection.
pub struct Flush {
    streams: Arc<Streams>,
    is_blocked: Arc<AtomicBool>,
    unsent: Unsent,
    /// When the streams are reset in any case.
    until: Instant,
}

/// What waits, and has not been taken up by the connection.
#[derive(Default)]
pub struct Queue(Mutex<Option<Unsent>>);

#[derive(Default)]
struct Unsent {
    cut: Vec<CutStream>,
    /// Dropped when all was sent.
    waiting: Vec<oneshot::Sender<()>>,
}

/// Returns the transport for a connection, and what waits for it.
pub fn watch<T>(transport: T, streams: &Arc<Streams>) -> (Watched<T>, Flush) {
    streams.flush.open();
    let is_blocked = Arc::<AtomicBool>::default();
    let flush = Flush {
        streams: streams.clone(),
        is_blocked: is_blocked.clone(),
        unsent: Unsent::default(),
        until: Instant::now(),
    };
    (Watched { transport, is_blocked }, flush)
}

impl Queue {
    fn open(&self) {
        lock(&self.0).get_or_insert_default();
    }

    pub fn reset(&self, stream: CutStream) {
        if let Some(unsent) = &mut *lock(&self.0) {
            unsent.cut.push(stream);
        }
    }

    /// Resolves when all was sent, or the connection has ended.
    pub fn flushed(&self) -> impl Future<Output = ()> + Send + 'static {
        let (waiting, flushed) = oneshot::channel();
        if let Some(unsent) = &mut *lock(&self.0) {
            unsent.waiting.push(waiting);
        }
        async {
            let _ = flushed.await; // never sent
        }
    }
}

impl Flush {
    /// Takes up what waits.
    pub fn take(&mut self) {
        let Some(Unsent { cut, waiting }) = lock(&self.streams.flush.0).as_mut().map(std::mem::take) else {
            return;
        };
        if self.unsent.cut.is_empty() {
            self.until = Instant::now() + LAST_FRAMES;
        }
        self.unsent.cut.extend(cut);
        self.unsent.waiting.extend(waiting);
    }

    /// Does what waits, and does not resolve if nothing does. To be polled after the connection, which has then written what it can.
    pub async fn run(&mut self) {
        let Unsent { cut, waiting } = &mut self.unsent;
        if cut.is_empty() && waiting.is_empty() {
            return pending().await;
        }
        let sent = poll_fn(|_| match self.is_blocked.load(Ordering::Relaxed) {
            true => Poll::Pending, // the connection is woken
            false => Poll::Ready(()),
        });
        let is_sent = match cut.is_empty() {
            true => {
                sent.await;
                Ok(())
            }
            false => timeout_at(self.until, sent).await, // the peer may never read
        };
        cut.drain(..).for_each(|stream| stream.reset(&self.streams));
        if is_sent.is_ok() {
            waiting.clear();
        }
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        *lock(&self.streams.flush.0) = None;
    }
}

impl<T> Watched<T> {
    fn note<V>(&self, result: Poll<V>) -> Poll<V> {
        self.is_blocked.store(result.is_pending(), Ordering::Relaxed);
        result
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.transport).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize>> {
        let result = Pin::new(&mut self.transport).poll_write(context, data);
        self.note(result)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        let result = Pin::new(&mut self.transport).poll_write_vectored(context, data);
        self.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let result = Pin::new(&mut self.transport).poll_flush(context);
        self.note(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(context)
    }
}
