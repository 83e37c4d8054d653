//! The answers of an outbound proxy.
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use reverse_http_native::fuzzing::http_connect::{answer, request, Response};
use reverse_http_native::fuzzing::{socks5, Failure, OutboundProxy};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::input::Input;

const SERVER: &str = "proxy.example:443";
const PASSWORD: &str = "pa55word";
/// Bytes that are read of an answer: its limit, and one buffer.
const MAX_READ: usize = 40 << 10;

/// A connection on which the answer comes `at_once` bytes at a time, and then ends.
struct Connection<'a> {
    answer: &'a [u8],
    at_once: usize,
    asked: Vec<u8>,
}

impl AsyncRead for Connection<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let length = self.at_once.max(1).min(self.answer.len()).min(buffer.remaining());
        let (part, rest) = self.answer.split_at(length);
        buffer.put_slice(part);
        self.answer = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.asked.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn now<T>(work: impl Future<Output = T>) -> T {
    match std::pin::pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("it waits for what is there"),
    }
}

fn check_text(text: &str) {
    assert!(text.len() < 400 && text.chars().all(|c| (' '..='~').contains(&c)), "{text:?}");
    assert!(!text.contains(PASSWORD), "a password in an error");
}

/// Reads the same response however it comes, and no more than it may.
fn read(bytes: &[u8], at_once: usize, credentials: Option<&str>) -> Result<Response, String> {
    let mut connection = Connection {
        answer: bytes,
        at_once,
        asked: Vec::new(),
    };
    let result = now(request(&mut connection, SERVER, credentials));
    assert!(bytes.len() - connection.answer.len() <= MAX_READ);
    assert!(connection.asked.ends_with(b"\r\n\r\n"));
    match &result {
        Ok(response) => check_text(&response.to_string()),
        Err(why) => check_text(why),
    }
    result
}

/// An HTTP or SOCKS proxy that answers anything. What it says is shown shortened, and the password neither to it in vain nor to people.
pub fn outbound_proxy(data: &[u8]) {
    let mut input = Input(data);
    let (flags, at_once) = (input.byte(), usize::from(input.byte()));
    let proxy = OutboundProxy {
        protocol: String::new(),
        host: "outbound.example".into(),
        port: 3128,
        username: (flags & 1 != 0).then(|| "alice".into()),
        password: (flags & 1 != 0).then(|| PASSWORD.into()),
    };
    let bytes = input.0;
    if flags & 2 != 0 {
        let mut connection = Connection {
            answer: bytes,
            at_once,
            asked: Vec::new(),
        };
        match now(socks5::request(&mut connection, &proxy, "proxy.example", 443)) {
            Ok(()) => assert!(connection.asked.ends_with(b"\x03\x0dproxy.example\x01\xbb")),
            Err(Failure::Credentials(why) | Failure::Other(why)) => check_text(&why),
        }
        return;
    }
    let Ok(response) = read(bytes, at_once, None) else { return };
    match read(bytes, usize::MAX, None) {
        Ok(whole) => assert_eq!(response.to_string(), whole.to_string(), "it matters how the bytes come"),
        Err(why) => assert!(why.ends_with("bytes after it"), "{why}"), // with a single byte at a time, these were not read
    }
    match answer(&response, &proxy, SERVER, flags & 4 != 0) {
        Ok(credentials) => {
            assert!(credentials.starts_with("Basic ") || credentials.starts_with("Digest "));
            assert!(!credentials.chars().any(|c| c.is_ascii_control() && c != '\t'), "{credentials:?}");
            assert!(!credentials.contains(PASSWORD) && proxy.username.is_some());
            let _ = read(bytes, at_once, Some(&credentials));
        }
        Err(Failure::Credentials(why) | Failure::Other(why)) => check_text(&why),
    }
}
