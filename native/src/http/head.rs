//! Finds the end of a request or response head in the bytes as they arrive, without parsing the head.
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::task::yield_now;
use tokio::time::sleep;

use crate::error::{NetError, NetErrorCode};
use crate::stream::Halves;

#[derive(Clone, Copy)]
pub struct HeadLimits {
    pub bytes: usize,
    pub time: Duration,
    pub pending: usize,
    /// 0 for no such limit.
    pub pending_per_address: usize,
}

/// Information from the TLS handshake of a client.
#[derive(Clone, Default)]
pub struct TlsPeer {
    /// The name that it has asked for, in lower case.
    pub server_name: Option<String>,
    /// Its certificate, DER, verified.
    pub certificate: Option<Bytes>,
}

/// An accepted stream, with its head or the reason why it cannot be read.
pub struct Incoming {
    pub halves: Option<Halves>,
    pub remote: String,
    pub peer: TlsPeer,
    pub is_http2: bool,
    /// The address at which the peer has reached a listener whose preamble is no head.
    pub local: Option<String>,
    /// The data read. For a ClientHello, its server name. With an error, only the messages of a SOCKS client so far.
    pub head: Option<Bytes>,
    pub error: Option<NetError>,
}

impl Incoming {
    pub fn new(halves: Option<Halves>, remote: String, head: Result<Option<Bytes>, NetError>) -> Self {
        let (head, error) = match head {
            Ok(head) => (head, None),
            Err(error) => (None, Some(error)),
        };
        Self {
            halves,
            remote,
            peer: TlsPeer::default(),
            is_http2: false,
            local: None,
            head,
            error,
        }
    }
}

/// Collects a head up to the blank line: LF followed by LF or CRLF. Bare LFs end a head too; the parser rejects them.
pub struct HeadScanner {
    buffer: BytesMut,
    scanned: usize,
    limit: usize,
    /// The previous byte was LF, ignoring CR.
    after_newline: bool,
}

impl HeadScanner {
    pub fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            scanned: 0,
            limit,
            after_newline: false,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Adds bytes. Returns the head, including the blank line, and the rest of the bytes once it is complete.
    pub fn push(&mut self, data: Bytes) -> Result<Option<(Bytes, Bytes)>, NetError> {
        if self.buffer.is_empty() {
            // RFC 9112 §2.2: empty lines before a request line are ignored
            let start = data.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(data.len());
            self.limit = self.limit.saturating_sub(start);
            self.buffer.extend_from_slice(&data[start..]);
        } else {
            self.buffer.extend_from_slice(&data);
        }
        while self.scanned < self.buffer.len() {
            let byte = self.buffer[self.scanned];
            self.scanned += 1;
            match byte {
                b'\n' if self.after_newline => {
                    if self.scanned > self.limit {
                        break;
                    }
                    let rest = self.buffer.split_off(self.scanned);
                    return Ok(Some((std::mem::take(&mut self.buffer).freeze(), rest.freeze())));
                }
                b'\n' => self.after_newline = true,
                b'\r' => {} // not a line end by itself: the parser rejects it elsewhere
                b'\t' | 0x20..=0x7e | 0x80.. => self.after_newline = false,
                _ => {
                    let other = other_protocol(byte).filter(|_| self.scanned == 1);
                    let message = other.map_or_else(|| format!("The head contains the control character {byte:#04x}"), str::to_owned);
                    return Err(NetError::remote(NetErrorCode::HeadMalformed, message));
                }
            }
        }
        if self.scanned > self.limit || self.limit == 0 {
            return Err(NetError::remote(NetErrorCode::HeadTooLarge, "The head is too large"));
        }
        Ok(None)
    }
}

/// Recognises clients that use another protocol by their first byte.
fn other_protocol(first: u8) -> Option<&'static str> {
    match first {
        0x04 => Some("This is SOCKS 4: use SOCKS 5"),
        0x05 => Some("This is SOCKS 5, but this port accepts only HTTP"),
        0x16 => Some("This is TLS, but this port accepts only plain HTTP: use a proxy URL that begins with http://"),
        _ => None,
    }
}

/// Resolves after `limit`. Poll the data first: a process that was suspended finds both its timer expired and data pending.
pub async fn head_timeout(limit: Duration) -> NetError {
    sleep(limit).await;
    yield_now().await; // lets the runtime poll the sockets
    NetError::remote(NetErrorCode::HeadTimeout, "The head was not complete in time")
}

/// Reads the head from the stream and leaves the rest in it. Returns `None` if the peer closed the stream without sending anything, as
/// health checks do.
pub async fn read_head(halves: &mut Halves, limit: usize) -> Result<Option<Bytes>, NetError> {
    let mut scanner = HeadScanner::new(limit);
    loop {
        match halves.reader.read().await {
            Ok(Some(data)) => {
                if let Some((head, rest)) = scanner.push(data)? {
                    halves.reader.prefix = rest;
                    return Ok(Some(head));
                }
            }
            Ok(None) | Err(_) if scanner.is_empty() => return Ok(None),
            Ok(None) => return Err(NetError::remote(NetErrorCode::HeadTruncated, "The stream ended within the head")),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Found = Option<(Vec<u8>, Vec<u8>)>;

    fn scan(parts: &[&[u8]], limit: usize) -> Result<Found, NetErrorCode> {
        let mut scanner = HeadScanner::new(limit);
        for (i, part) in parts.iter().enumerate() {
            match scanner.push(Bytes::copy_from_slice(part)) {
                Ok(None) => {}
                Ok(Some((head, rest))) => {
                    let mut rest = rest.to_vec();
                    parts[i + 1..].iter().for_each(|p| rest.extend_from_slice(p));
                    return Ok(Some((head.to_vec(), rest)));
                }
                Err(error) => return Err(error.code),
            }
        }
        Ok(None)
    }

    #[test]
    fn every_split_finds_the_same_end() {
        let text = b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nSSH-2.0-x\r\n\r\n";
        let want = Ok(Some((text[..35].to_vec(), text[35..].to_vec())));
        assert_eq!(scan(&text.iter().map(std::slice::from_ref).collect::<Vec<_>>(), 100), want);
        for i in 0..text.len() {
            assert_eq!(scan(&[&text[..i], &text[i..]], 100), want, "split at {i}");
        }
    }

    #[test]
    fn bare_newlines_end_a_head_too() {
        assert_eq!(scan(&[b"A\n\nB"], 100), Ok(Some((b"A\n\n".to_vec(), b"B".to_vec()))));
        assert_eq!(scan(&[b"A\n\r\nB"], 100), Ok(Some((b"A\n\r\n".to_vec(), b"B".to_vec()))));
    }

    #[test]
    fn leading_empty_lines_are_skipped_and_counted() {
        assert_eq!(scan(&[b"\r\n\r\nA\r\n\r\n"], 100), Ok(Some((b"A\r\n\r\n".to_vec(), vec![]))));
        assert_eq!(scan(&[&b"\r\n".repeat(60)], 100), Err(NetErrorCode::HeadTooLarge));
    }

    #[test]
    fn limits_are_kept_to_the_byte() {
        assert!(matches!(scan(&[b"AAAA\r\n\r\n"], 8), Ok(Some(_))));
        assert_eq!(scan(&[b"AAAAA\r\n\r\n"], 8), Err(NetErrorCode::HeadTooLarge));
        assert_eq!(scan(&[b"AAAAAAAAA"], 8), Err(NetErrorCode::HeadTooLarge));
        assert_eq!(scan(&[b"AAAAAAAA"], 8), Ok(None));
    }

    #[test]
    fn control_characters_are_refused_at_once() {
        assert_eq!(scan(&[&[0x16, 3, 1]], 100), Err(NetErrorCode::HeadMalformed));
        assert_eq!(scan(&[b"A\0"], 100), Err(NetErrorCode::HeadMalformed));
        assert_eq!(scan(&[b"A\x7f"], 100), Err(NetErrorCode::HeadMalformed));
    }

    #[test]
    fn other_protocols_are_named_by_their_first_byte_alone() {
        let message = |data: &[u8]| HeadScanner::new(100).push(Bytes::copy_from_slice(data)).unwrap_err().message;
        assert!(message(&[0x16, 3, 1]).contains("TLS"));
        assert!(message(&[0x05, 1, 0]).contains("SOCKS 5"));
        assert!(message(&[0x04, 1, 0]).contains("SOCKS 4"));
        assert_eq!(message(b"A\x16"), "The head contains the control character 0x16");
    }
}
