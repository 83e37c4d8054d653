//! The PROXY protocol header (haproxy.org, proxy-protocol.txt), versions 1 and 2: the client for whom a TCP load balancer connects. Exactly
//! the header is read, as TLS or a request follows. It is never guessed: configured balancers must send it, and it is not accepted from
//! others.
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpStream;

use crate::error::{NetError, NetErrorCode};

const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;
/// Maximum length of a version 2 header, including TLVs.
const V2_MAX: usize = 4_096;
/// Maximum length of a version 1 line.
const V1_MAX: usize = 107;

/// The result of parsing the bytes received so far.
#[derive(Debug, PartialEq)]
pub enum Header {
    /// At least this many more bytes are needed.
    Needs(usize),
    /// The header is complete: the client's address; `None` if the balancer connects for itself or does not know it.
    Complete(Option<SocketAddr>),
    Malformed,
}

/// Parses the first bytes of a connection, which must not extend beyond the header.
pub fn parse(bytes: &[u8]) -> Header {
    let start = bytes.len().min(V2.len());
    if bytes[..start] == V2[..start] {
        if start < V2.len() {
            return Header::Needs(V2.len() - start);
        }
        return parse_v2(bytes);
    }
    parse_v1(bytes)
}

fn parse_v1(bytes: &[u8]) -> Header {
    const NAME: &[u8] = b"PROXY ";
    let start = bytes.len().min(NAME.len());
    if bytes[..start] != NAME[..start] || bytes.len() > V1_MAX {
        return Header::Malformed;
    }
    match bytes.iter().position(|&b| b == b'\n') {
        Some(end) if end + 1 == bytes.len() => {}
        None if bytes.len() < V1_MAX => return Header::Needs(1),
        _ => return Header::Malformed,
    }
    let line = bytes.strip_suffix(b"\r\n").and_then(|line| std::str::from_utf8(line).ok());
    line.and_then(client_v1).map_or(Header::Malformed, Header::Complete)
}

/// `PROXY TCP4 source destination port port`, or `PROXY UNKNOWN` and anything.
fn client_v1(line: &str) -> Option<Option<SocketAddr>> {
    let mut words = line.split(' ').skip(1);
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(None);
    }
    let [source, destination, port, destination_port] = [words.next()?, words.next()?, words.next()?, words.next()?];
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(Into::into),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(Into::into),
            _ => None,
        }
    };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u16>().ok())?;
    address(destination)?;
    number(destination_port)?;
    words.next().is_none().then_some(Some((address(source)?, number(port)?).into()))
}

fn parse_v2(bytes: &[u8]) -> Header {
    if bytes.len() < V2_FIXED {
        return Header::Needs(V2_FIXED - bytes.len());
    }
    let length = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    let (command, family, whole) = (bytes[12], bytes[13], V2_FIXED + length);
    if !matches!(command, 0x20 | 0x21) || whole > V2_MAX || bytes.len() > whole {
        return Header::Malformed;
    }
    if bytes.len() < whole {
        return Header::Needs(whole - bytes.len());
    }
    let addresses = &bytes[V2_FIXED..];
    match (command, family) {
        (0x21, 0x11) => client_v2::<4>(addresses),
        (0x21, 0x21) => client_v2::<16>(addresses),
        _ => Header::Complete(None), // LOCAL, and families without client addresses
    }
}

/// Two addresses of `N` bytes and two ports, source first.
fn client_v2<const N: usize>(addresses: &[u8]) -> Header
where
    IpAddr: From<[u8; N]>,
{
    let (Some(source), Some(&[high, low])) = (
        addresses.first_chunk::<N>(),
        addresses.get(2 * N..2 * N + 2).and_then(|p| p.first_chunk()),
    ) else {
        return Header::Malformed;
    };
    if addresses.len() < 2 * N + 4 {
        return Header::Malformed;
    }
    Header::Complete(Some((IpAddr::from(*source), u16::from_be_bytes([high, low])).into()))
}

/// Reads exactly the header. Returns `None` if the balancer closed the connection without sending anything, as its health checks do.
pub async fn read(stream: &TcpStream) -> Result<Option<Option<SocketAddr>>, NetError> {
    let mut bytes = Vec::new();
    loop {
        let needs = match parse(&bytes) {
            Header::Complete(client) => return Ok(Some(client)),
            Header::Needs(needs) => needs,
            Header::Malformed => {
                return Err(NetError::remote(
                    NetErrorCode::HeadMalformed,
                    "The load balancer's connection does not begin with a PROXY protocol header",
                ))
            }
        };
        let had = bytes.len();
        bytes.resize(had + needs, 0);
        let read = loop {
            let _ = stream.readable().await; // try_read reports the error
            match stream.try_read(&mut bytes[had..]) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                other => break other,
            }
        };
        match read {
            Ok(0) | Err(_) if had == 0 => return Ok(None),
            Ok(0) => {
                return Err(NetError::remote(
                    NetErrorCode::HeadTruncated,
                    "The stream ended within the PROXY protocol header",
                ))
            }
            Ok(n) => bytes.truncate(had + n),
            Err(e) => return Err(NetError::stream(&e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses bytes as the parser requests them. Returns the result and the number of bytes.
    fn feed(bytes: &[u8]) -> (Header, usize) {
        let mut taken = 0;
        loop {
            match parse(&bytes[..taken]) {
                Header::Needs(n) if taken + n <= bytes.len() => taken += n,
                header => return (header, taken),
            }
        }
    }

    fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = V2.to_vec();
        bytes.extend([command, family]);
        bytes.extend((payload.len() as u16).to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn client(text: &str) -> Header {
        Header::Complete(Some(text.parse().unwrap()))
    }

    #[test]
    fn headers_are_read_to_the_byte() {
        let v4 = [192, 0, 2, 1, 10, 0, 0, 1, 0x13, 0x88, 0, 80];
        let mut v6 = [0; 36];
        (v6[0], v6[1], v6[15], v6[32], v6[33]) = (0x20, 0x01, 9, 0x13, 0x88);
        let with_more = [&v4[..], &[0x04, 0, 1, 7]].concat();
        for (header, expected) in [
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 5000 80\r\n".to_vec(), client("192.0.2.1:5000")),
            (b"PROXY TCP6 2001::9 ::1 5000 80\r\n".to_vec(), client("[2001::9]:5000")),
            (b"PROXY UNKNOWN\r\n".to_vec(), Header::Complete(None)),
            (b"PROXY UNKNOWN ffff:: ffff:: 1 2\r\n".to_vec(), Header::Complete(None)),
            (v2(0x21, 0x11, &v4), client("192.0.2.1:5000")),
            (v2(0x21, 0x11, &with_more), client("192.0.2.1:5000")),
            (v2(0x21, 0x21, &v6), client("[2001::9]:5000")),
            (v2(0x20, 0x00, &[]), Header::Complete(None)),
            (v2(0x20, 0x11, &v4), Header::Complete(None)),
            (v2(0x21, 0x31, &[0; 216]), Header::Complete(None)),
        ] {
            let mut bytes = header.clone();
            bytes.extend(b"GET http://a/ HTTP/1.1\r\n\r\n\0\r\nQUIT\n");
            assert_eq!(feed(&bytes), (expected, header.len()), "{:?}", String::from_utf8_lossy(&header));
            for end in 0..header.len() {
                assert!(matches!(feed(&header[..end]).0, Header::Needs(_)), "{end} bytes of {header:?}");
            }
        }
    }

    #[test]
    fn invalid_headers_are_rejected_at_once() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_MAX));
        for bad in [
            &b"GET http://a/ HTTP/1.1\r\n\r\n"[..],
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\0\0",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 5000\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 5000 80 1\r\n",
            b"PROXY TCP4 2001::9 ::1 5000 80\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 +500 80\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 65536 80\r\n",
            b"PROXY TCP4  192.0.2.1 10.0.0.1 5000 80\r\n",
            b"PROXY UDP4 192.0.2.1 10.0.0.1 5000 80\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 5000 80\n",
            b"PROXY \xff\xff\xff\xff\xff\r\n",
            b"PROXY TCP\r\n and what follows",
            long.as_bytes(),
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x22, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 11]),
            &v2(0x21, 0x21, &[0; 35]),
            &v2(0x21, 0x11, &[0; V2_MAX]),
        ] {
            assert_eq!(feed(bad).0, Header::Malformed, "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
