//! A packet that one process relays to another, with the metadata from the socket.
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use quinn::udp::{EcnCodepoint, RecvMeta};

/// What precedes a relayed packet: marks of congestion, source address and port, scope, and the address it was sent to.
const HEADER: usize = 1 + 16 + 2 + 4 + 1 + 16;
const NO_DESTINATION: u8 = 0;
const V4: u8 = 4;
const V6: u8 = 6;

pub fn encode(meta: &RecvMeta) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let is_v4 = if meta.addr.is_ipv4() { V4 } else { V6 };
    header[0] = meta.ecn.map_or(0, |ecn| ecn as u8) | is_v4 << 4;
    header[1..17].copy_from_slice(&octets(meta.addr.ip()));
    header[17..19].copy_from_slice(&meta.addr.port().to_le_bytes());
    if let SocketAddr::V6(address) = meta.addr {
        header[19..23].copy_from_slice(&address.scope_id().to_le_bytes());
    }
    if let Some(to) = meta.dst_ip {
        header[23] = if to.is_ipv4() { V4 } else { V6 };
        header[24..].copy_from_slice(&octets(to));
    }
    header
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// `None` for what no process relays.
pub fn decode(message: &[u8]) -> Option<(RecvMeta, &[u8])> {
    let (header, packet) = message.split_at_checked(HEADER)?;
    let address = |from: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&header[from..from + 16]).unwrap_or_default());
    let ip = |family: u8, address: Ipv6Addr| match family {
        V4 => address.to_ipv4_mapped().map(IpAddr::V4),
        V6 => Some(IpAddr::V6(address)),
        _ => None,
    };
    let port = u16::from_le_bytes([header[17], header[18]]);
    let addr = match ip(header[0] >> 4, address(1))? {
        IpAddr::V4(v4) => (v4, port).into(),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, u32::from_le_bytes([header[19], header[20], header[21], header[22]])).into(),
    };
    let dst_ip = match header[23] {
        NO_DESTINATION => None,
        family => Some(ip(family, address(24))?),
    };
    let meta = RecvMeta {
        addr,
        len: packet.len(),
        stride: packet.len(),
        ecn: EcnCodepoint::from_bits(header[0] & 3),
        dst_ip,
    };
    Some((meta, packet))
}
