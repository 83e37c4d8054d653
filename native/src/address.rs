//! Addresses as they are written and shown: what to listen on, who is there.
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use crate::error::Fault;

/// What to bind for `host:port`, `[host]:port` or `:port`, the first that works. `:port` is every IPv6 and IPv4 address on one socket,
/// or IPv4 alone where the machine has no IPv6.
pub fn to_bind(address: &str) -> Result<Vec<SocketAddr>, Fault> {
    let bad = |why: String| Fault::new("invalid", format!("Cannot listen on {address:?}: {why}"));
    let (host, port) = address.rsplit_once(':').ok_or_else(|| bad("it has no port".into()))?;
    let port: u16 = port.parse().map_err(|_| bad(format!("{port:?} is not a port")))?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() {
        return Ok(vec![(Ipv6Addr::UNSPECIFIED, port).into(), ([0, 0, 0, 0], port).into()]);
    }
    let mut found: Vec<_> = (host, port)
        .to_socket_addrs()
        .map_err(|e| Fault {
            code: "unknown-host",
            ..bad(e.to_string())
        })?
        .collect();
    found.sort_by_key(SocketAddr::is_ipv6); // localhost is 127.0.0.1 first, as everywhere
    found.truncate(1);
    Ok(found)
}

/// The machine has no such addresses at all: another family may do.
pub fn lacks_family(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// The address of a peer without the IPv4-mapped form that a dual-stack socket shows.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => (ip, address.port()).into(),
            None => address,
        },
        IpAddr::V4(_) => address,
    }
}

/// The order of RFC 8305 §4: families alternate, the resolver's first choice first.
pub fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().copied() else {
        return addresses;
    };
    let (mut same, mut other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|a| a.is_ipv4() == first.is_ipv4());
    same.reverse();
    other.reverse();
    let mut out = Vec::with_capacity(same.len() + other.len());
    while !same.is_empty() || !other.is_empty() {
        out.extend(same.pop());
        out.extend(other.pop());
    }
    out
}

/// `host:port`, with brackets where the host has colons.
pub fn display(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_every_address() {
        let all = to_bind(":4242").unwrap();
        assert_eq!(all, ["[::]:4242".parse().unwrap(), "0.0.0.0:4242".parse().unwrap()]);
    }

    #[test]
    fn hosts_are_read_with_and_without_brackets() {
        assert_eq!(to_bind("127.0.0.1:0").unwrap(), ["127.0.0.1:0".parse().unwrap()]);
        assert_eq!(to_bind("[::1]:80").unwrap(), ["[::1]:80".parse().unwrap()]);
        assert_eq!(to_bind("localhost:80").unwrap(), ["127.0.0.1:80".parse().unwrap()]);
    }

    #[test]
    fn bad_addresses_are_named() {
        for bad in ["", "localhost", "localhost:x", "localhost:65536", "localhost:-1"] {
            let fault = to_bind(bad).unwrap_err();
            assert_eq!(fault.code, "invalid", "{bad}");
            assert!(fault.message.contains(&format!("{bad:?}")), "{}", fault.message);
        }
    }

    #[test]
    fn mapped_addresses_are_shown_as_ipv4() {
        assert_eq!(canonical("[::ffff:10.0.0.1]:5".parse().unwrap()), "10.0.0.1:5".parse().unwrap());
        assert_eq!(canonical("[::1]:5".parse().unwrap()), "[::1]:5".parse().unwrap());
    }

    #[test]
    fn families_alternate() {
        let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>();
        assert_eq!(
            interleave(parse(&["[::1]:1", "[::2]:1", "1.1.1.1:1", "[::3]:1", "2.2.2.2:1"])),
            parse(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"])
        );
    }
}
