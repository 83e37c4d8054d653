//! The first message of TLS, the ClientHello (RFC 8446 §4.1.2), read without answering it. Its bytes are kept for the handshake or the relay.
use std::io::{Error, ErrorKind};

use bytes::{BufMut, BytesMut};
use rustls::server::{Accepted, Acceptor};

use crate::stream::tcp_socket::Tcp;

/// Bytes read at a time. A ClientHello has less than two kilobytes.
const READ: usize = 4 << 10;

/// A ClientHello as it arrives, in any number of segments and records.
#[derive(Default)]
pub struct HelloReader {
    acceptor: Acceptor,
    bytes: BytesMut,
}

/// An invalid ClientHello, and the alert that answers it.
pub struct InvalidHello {
    pub error: Error,
    pub alert: Vec<u8>,
}

impl From<Error> for InvalidHello {
    fn from(error: Error) -> Self {
        Self { error, alert: Vec::new() }
    }
}

impl HelloReader {
    /// Adds bytes, of which there is at least one. Returns the message once it is complete.
    pub fn push(&mut self, data: &[u8]) -> Result<Option<Accepted>, InvalidHello> {
        self.bytes.put_slice(data);
        let mut unread = data;
        while !unread.is_empty() {
            self.acceptor.read_tls(&mut unread)?;
        }
        self.acceptor.accept().map_err(|(error, mut alert)| {
            let mut sealed = Vec::new();
            let error = alert
                .write_all(&mut sealed)
                .err()
                .unwrap_or(Error::new(ErrorKind::InvalidInput, error));
            InvalidHello { error, alert: sealed }
        })
    }

    /// All bytes so far.
    pub fn into_bytes(self) -> BytesMut {
        self.bytes
    }
}

/// Reads the ClientHello, which has at most `limit` bytes with its records. Returns its bytes too. An invalid one is answered with an alert.
pub async fn read_hello(tcp: &Tcp, limit: usize) -> std::io::Result<(Accepted, BytesMut)> {
    let (mut hello, mut left) = (HelloReader::default(), limit);
    while left > 0 {
        tcp.stream.readable().await?;
        let mut new = [0; READ];
        let count = match tcp.stream.try_read(&mut new[..READ.min(left)]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e),
        };
        left -= count;
        match hello.push(&new[..count]) {
            Ok(Some(accepted)) => return Ok((accepted, hello.into_bytes())),
            Ok(None) => {}
            Err(InvalidHello { error, alert }) => {
                let _ = tcp.stream.try_write(&alert); // the peer may have gone
                return Err(error);
            }
        }
    }
    Err(Error::new(ErrorKind::InvalidInput, "the ClientHello is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// The ClientHello of a client that asks for `name`, in one record.
    fn hello_for(name: &str) -> Vec<u8> {
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = name.to_owned().try_into().unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message in records of one byte.
    fn in_tiny_records(hello: &[u8]) -> Vec<u8> {
        hello[5..].iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]).collect()
    }

    /// The server name after the last part. Fails if it is found earlier, and unless all bytes are kept.
    fn read(parts: &[&[u8]]) -> Option<String> {
        let mut reader = HelloReader::default();
        for (i, part) in parts.iter().enumerate() {
            let found = reader.push(part).map_err(|e| e.error).unwrap();
            assert_eq!(found.is_some(), i == parts.len() - 1, "part {i}");
            if let Some(accepted) = found {
                assert_eq!(reader.into_bytes(), parts.concat());
                return accepted.client_hello().server_name().map(str::to_owned);
            }
        }
        panic!("the ClientHello is not complete")
    }

    #[test]
    fn a_hello_is_read_however_it_is_cut() {
        let hello = hello_for("Site7.Example");
        for message in [hello.clone(), in_tiny_records(&hello)] {
            assert_eq!(read(&[&message]).as_deref(), Some("site7.example"));
            assert_eq!(
                read(&message.iter().map(std::slice::from_ref).collect::<Vec<_>>()).as_deref(),
                Some("site7.example")
            );
            for at in 1..message.len() {
                let (first, rest) = message.split_at(at);
                assert_eq!(read(&[first, rest]).as_deref(), Some("site7.example"), "cut at {at}");
            }
        }
    }

    #[test]
    fn a_hello_for_an_address_has_no_name() {
        assert_eq!(read(&[&hello_for("192.0.2.1")]), None);
    }

    #[test]
    fn what_is_no_hello_is_refused_with_an_alert() {
        let hello = hello_for("a.example");
        let mut of_a_server = hello.clone();
        of_a_server[5] = 2;
        for bad in [of_a_server, b"\x16\x03\x01\0\0".to_vec(), b"\x16\x03\x01\xff\xff".to_vec()] {
            let alert = HelloReader::default().push(&bad).err().map(|e| e.alert).unwrap();
            assert_eq!(alert[..2], [21, 3], "{bad:?}");
        }
    }
}
