//! Parses and formats addresses.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use crate::error::{NetError, NetErrorCode};

/// The addresses to bind for `host:port`, `[host]:port` or `:port`, in order of preference. `:port` binds IPv6 and IPv4 on one socket, or
/// IPv4 alone on a machine without IPv6.
pub fn to_bind(address: &str) -> Result<Vec<SocketAddr>, NetError> {
    let bad = |why: String| NetError::new(NetErrorCode::Invalid, format!("Cannot listen on {address:?}: {why}"));
    let (host, port) = address.rsplit_once(':').ok_or_else(|| bad("it has no port".into()))?;
    let port: u16 = port.parse().map_err(|_| bad(format!("{port:?} is not a port")))?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() {
        return Ok(vec![(Ipv6Addr::UNSPECIFIED, port).into(), ([0, 0, 0, 0], port).into()]);
    }
    let mut found: Vec<_> = (host, port)
        .to_socket_addrs()
        .map_err(|e| NetError {
            code: NetErrorCode::UnknownHost,
            ..bad(e.to_string())
        })?
        .collect();
    found.sort_by_key(SocketAddr::is_ipv6); // prefers 127.0.0.1 for localhost
    found.truncate(1);
    Ok(found)
}

/// Binds with `bind` to the first address that `address` stands for, skipping those of a family that the machine lacks.
pub fn bind_first<T>(address: &str, bind: impl Fn(SocketAddr) -> std::io::Result<T>) -> Result<T, NetError> {
    let mut last = NetError::new(NetErrorCode::Invalid, format!("Cannot listen on {address}: no address"));
    for candidate in to_bind(address)? {
        match bind(candidate) {
            Ok(socket) => return Ok(socket),
            Err(e) => {
                last = NetError::bind(&e, address);
                if !matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) {
                    break;
                }
            }
        }
    }
    Err(last)
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

/// The key of a client address in limits: an IPv4 address, or an IPv6 /64, which one customer usually has (RFC 6177).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressKey {
    V4(u32),
    V6(u64),
}

/// A network, `address/bits`.
#[derive(Clone)]
struct Network {
    address: u128,
    bits: u32,
}

/// Maps addresses to keys. Exempt networks, such as load balancers, have none.
#[derive(Clone, Default)]
pub struct AddressKeys {
    exempt: Vec<Network>,
}

impl AddressKeys {
    /// `exempt` lists networks such as `10.0.0.0/8` or `::1/128`.
    pub fn new(exempt: &[String]) -> Result<Self, NetError> {
        let parse = |text: &String| {
            let (address, bits) = text.split_once('/')?;
            let (address, bits): (IpAddr, u32) = (address.parse().ok()?, bits.parse().ok()?);
            let bits = if address.is_ipv4() { bits.checked_add(96)? } else { bits };
            (bits <= 128).then_some(Network {
                address: widened(address),
                bits,
            })
        };
        let invalid = |text: &String| NetError::new(NetErrorCode::Invalid, format!("Cannot use {text:?} as a network"));
        let exempt = exempt.iter().map(|text| parse(text).ok_or_else(|| invalid(text)));
        Ok(Self {
            exempt: exempt.collect::<Result<_, _>>()?,
        })
    }

    /// Whether the address is exempt.
    pub fn exempts(&self, address: IpAddr) -> bool {
        let wide = widened(address);
        self.exempt.iter().any(|network| network.contains(wide))
    }

    /// The key of an address; `None` if it is exempt.
    pub fn of(&self, address: IpAddr) -> Option<AddressKey> {
        let wide = widened(address);
        if self.exempts(address) {
            return None;
        }
        Some(match address {
            IpAddr::V4(ip) => AddressKey::V4(ip.to_bits()),
            IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
                Some(ip) => AddressKey::V4(ip.to_bits()),
                None => AddressKey::V6((wide >> 64) as u64),
            },
        })
    }
}

impl Network {
    fn contains(&self, address: u128) -> bool {
        (self.address ^ address).checked_shr(128 - self.bits).unwrap_or(0) == 0
    }
}

fn widened(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// Orders addresses as RFC 8305 §4: families alternate, starting with the resolver's first choice.
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

/// An address without its port. Zones are numeric.
pub fn host(address: &SocketAddr) -> String {
    match canonical(*address) {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        other => other.ip().to_string(),
    }
}

/// `host:port`, with brackets around IPv6 addresses.
pub fn display(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Parses an address in any form that the system accepts, with or without a zone (RFC 4007 §11). Does not resolve names.
pub fn parse_literal(host: &str) -> Option<SocketAddr> {
    match host.split_once('%') {
        Some((ip, _)) => {
            Ipv6Addr::from_str(ip).ok()?;
            (host, 0).to_socket_addrs().ok()?.next() // the system maps zones to numbers
        }
        None => match IpAddr::from_str(host) {
            Ok(ip) => Some((ip, 0).into()),
            Err(_) => Some((short_ipv4(host)?, 0).into()),
        },
    }
}

/// Parses IPv4 addresses of one to four numbers, decimal, octal or hexadecimal; the last one fills the remaining bytes (inet_aton(3)).
fn short_ipv4(host: &str) -> Option<Ipv4Addr> {
    let number = |text: &str| -> Option<u32> {
        let (digits, radix) = match text.as_bytes() {
            [b'0', b'x' | b'X', ..] => (&text[2..], 16),
            [b'0', _, ..] => (&text[1..], 8),
            _ => (text, 10),
        };
        let is_plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        u32::from_str_radix(digits, radix).ok().filter(|_| is_plain)
    };
    let numbers: Vec<_> = host
        .strip_suffix('.')
        .unwrap_or(host)
        .split('.')
        .map(number)
        .collect::<Option<_>>()?;
    let (last, first) = numbers.split_last()?;
    let left = 4_usize.checked_sub(first.len())?;
    if left == 0 || first.iter().any(|number| *number > 255) || u64::from(*last) >= 1 << (8 * left) {
        return None;
    }
    let high = first.iter().enumerate().fold(0, |sum, (i, number)| sum | number << (24 - 8 * i));
    Some(Ipv4Addr::from_bits(high | last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_addresses_are_parsed() {
        let of = |host: &str| parse_literal(host).map(|address| address.ip().to_string());
        for host in [
            "127.0.0.1",
            "127.1",
            "0x7f.1",
            "0X7f000001",
            "2130706433",
            "017700000001",
            "0177.0.0.01",
            "127.0.0.1.",
        ] {
            assert_eq!(of(host).as_deref(), Some("127.0.0.1"), "{host}");
        }
        assert_eq!(of("::ffff:1.2.3.4").as_deref(), Some("::ffff:1.2.3.4"));
        assert_eq!(of("1.2.3").as_deref(), Some("1.2.0.3"));
        for host in [
            "",
            ".",
            "256.1",
            "1.2.3.256",
            "4294967296",
            "08",
            "0x",
            "0xg",
            "+1",
            "1.-2",
            "a",
            "1.2.3.4.5",
            "::1%",
            "127.0.0.1%lo",
        ] {
            assert_eq!(of(host), None, "{host}");
        }
    }

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
            let error = to_bind(bad).unwrap_err();
            assert_eq!(error.code, NetErrorCode::Invalid, "{bad}");
            assert!(error.message.contains(&format!("{bad:?}")), "{}", error.message);
        }
    }

    #[test]
    fn mapped_addresses_are_shown_as_ipv4() {
        assert_eq!(canonical("[::ffff:10.0.0.1]:5".parse().unwrap()), "10.0.0.1:5".parse().unwrap());
        assert_eq!(canonical("[::1]:5".parse().unwrap()), "[::1]:5".parse().unwrap());
    }

    #[test]
    fn a_source_is_a_host_of_ipv4_or_a_64_of_ipv6() {
        let keys = AddressKeys::default();
        let of = |text: &str| keys.of(text.parse().unwrap()).unwrap();
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    }

    #[test]
    fn networks_that_are_exempt_are_not_counted() {
        let exempt = ["10.0.0.0/8", "::1/128", "192.0.2.7/32", "2001:db8::/32"].map(str::to_owned);
        let keys = AddressKeys::new(&exempt).unwrap();
        let is_exempt = |text: &str| keys.of(text.parse().unwrap()).is_none();
        for text in ["10.255.0.1", "::ffff:10.1.2.3", "::1", "192.0.2.7", "2001:db8:ffff::1"] {
            assert!(is_exempt(text), "{text}");
        }
        for text in ["11.0.0.1", "::2", "192.0.2.8", "2001:db9::1", "::a00:1"] {
            assert!(!is_exempt(text), "{text}");
        }
        assert!(AddressKeys::new(&["0.0.0.0/0".to_owned()])
            .unwrap()
            .of([1, 2, 3, 4].into())
            .is_none());
        assert!(AddressKeys::new(&["::/0".to_owned()])
            .unwrap()
            .of("2001:db8::1".parse().unwrap())
            .is_none());
    }

    #[test]
    fn invalid_networks_are_named() {
        for bad in ["10.0.0.0", "10.0.0.0/33", "::/129", "x/8", "10.0.0.0/", "10.0.0.0/4294967295"] {
            let error = AddressKeys::new(&[bad.to_owned()]).err().unwrap();
            assert!(error.message.contains(&format!("{bad:?}")), "{}", error.message);
        }
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
