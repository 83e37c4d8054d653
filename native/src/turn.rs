//! What QUIC runs on: tokio, and turns in which more comes together.
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};

type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// As quinn's, but that its drivers let everyone else go first.
#[derive(Debug)]
pub struct Polite;

impl Runtime for Polite {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, driver: Driver) {
        TokioRuntime.spawn(Box::pin(Last { driver, has_waited: false }));
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// Whoever writes to a stream wakes the connection's driver, and tokio would run it before all who are ready to write as well: a datagram for
/// each of them. It goes to the end of the queue instead, and finds what all of them have written.
struct Last {
    driver: Driver,
    has_waited: bool,
}

impl Future for Last {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.has_waited = !self.has_waited;
        if self.has_waited {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.driver.as_mut().poll(cx)
    }
}
