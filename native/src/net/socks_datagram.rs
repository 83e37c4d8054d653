//! Datagrams of SOCKS 5 (RFC 1928 §7): each begins with the address of its destination.
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

use bytes::{Bytes, BytesMut};

use super::address::canonical;

/// Two reserved bytes, the number of the fragment, and the type of the address.
const HEADER_START: usize = 4;
const FRAGMENT: usize = 2;
const TYPE: usize = 3;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;
const PORT_BYTES: usize = 2;

/// Where the header of a datagram ends; `None` if it is cut or has an unknown address, and for fragments, which are not reassembled.
pub fn header_end(datagram: &[u8]) -> Option<usize> {
    let address = match *datagram.get(TYPE)? {
        IPV4 => 4,
        IPV6 => 16,
        NAME => 1 + usize::from(*datagram.get(HEADER_START)?),
        _ => return None,
    };
    let end = HEADER_START + address + PORT_BYTES;
    (datagram[FRAGMENT] == 0 && datagram.len() >= end).then_some(end)
}

/// The client of an association. The first sender from its address is the only one from then on.
pub struct Client {
    ip: IpAddr,
    /// The port that the client has announced.
    port: Option<u16>,
    sender: OnceLock<SocketAddr>,
}

impl Client {
    pub fn new(ip: IpAddr, port: Option<u16>) -> Self {
        Self {
            ip: ip.to_canonical(),
            port,
            sender: OnceLock::new(),
        }
    }

    /// The header, with zeros in its reserved bytes, and the payload of a datagram; `None` if it is malformed or another's.
    pub fn split<'a>(&self, datagram: &'a [u8], from: SocketAddr) -> Option<(Bytes, &'a [u8])> {
        let end = header_end(datagram)?;
        let source = canonical(from);
        if source.ip() != self.ip || self.port.is_some_and(|port| port != source.port()) || *self.sender.get_or_init(|| from) != from {
            return None;
        }
        let mut header = BytesMut::from(&datagram[..end]);
        header[..FRAGMENT].fill(0);
        Some((header.freeze(), &datagram[end..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO_ADDRESS: &[u8] = &[0, 0, 0, 1, 192, 0, 2, 7, 0, 53, b'x'];

    fn client(port: Option<u16>) -> Client {
        Client::new([127, 0, 0, 1].into(), port)
    }

    fn from(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[test]
    fn headers_of_every_type_end_where_their_lengths_say() {
        let name = [&[0, 0, 0, 3, 2][..], b"db", &[0, 53], b"payload"].concat();
        let ipv6 = [&[0, 0, 0, 4][..], &[1; 16], &[0, 53]].concat();
        for (datagram, end) in [(TO_ADDRESS, 10), (&name, 9), (&ipv6, 22)] {
            assert_eq!(header_end(datagram), Some(end));
            for cut in 0..end {
                assert_eq!(header_end(&datagram[..cut]), None, "{cut} bytes");
            }
        }
        assert_eq!(header_end(&[0, 0, 0, 3, 0, 0, 53]), Some(7));
    }

    #[test]
    fn fragments_and_unknown_types_have_no_header() {
        let with = |at: usize, value: u8| {
            let mut datagram = TO_ADDRESS.to_vec();
            datagram[at] = value;
            datagram
        };
        assert_eq!(header_end(&with(FRAGMENT, 1)), None);
        for kind in [0, 2, 5, 255] {
            assert_eq!(header_end(&with(TYPE, kind)), None);
        }
    }

    #[test]
    fn only_the_first_sender_from_the_address_of_the_client_is_heard() {
        let client = client(None);
        assert!(client.split(TO_ADDRESS, ([127, 0, 0, 2], 1).into()).is_none());
        assert!(client.split(b"junk", from(1)).is_none());
        let (header, payload) = client.split(TO_ADDRESS, from(2)).unwrap();
        assert_eq!((&header[..], payload), (&TO_ADDRESS[..10], &b"x"[..]));
        assert!(client.split(TO_ADDRESS, from(1)).is_none());
        assert!(client.split(TO_ADDRESS, from(2)).is_some());
    }

    #[test]
    fn an_announced_port_is_the_only_one() {
        let client = client(Some(2));
        assert!(client.split(TO_ADDRESS, from(1)).is_none());
        assert!(client.split(TO_ADDRESS, from(2)).is_some());
    }

    #[test]
    fn mapped_addresses_are_those_of_ipv4_and_reserved_bytes_are_ignored() {
        let mapped: IpAddr = "::ffff:127.0.0.1".parse().unwrap();
        let client = Client::new(mapped, None);
        let datagram = [&[7, 8][..], &TO_ADDRESS[2..]].concat();
        let (header, _) = client.split(&datagram, (mapped, 5).into()).unwrap();
        assert_eq!(header[..], TO_ADDRESS[..10]);
    }
}
