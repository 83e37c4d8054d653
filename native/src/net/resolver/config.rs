//! The resolver configuration of the machine: /etc/hosts, the name servers in /etc/resolv.conf, and whether /etc/nsswitch.conf lists other
//! sources. Files are read again when they change, as DHCP and VPNs update them.
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use resolv_conf::ScopedIp;

const DNS_PORT: u16 = 53;
/// As in glibc (resolv.conf(5)).
const MAX_SERVERS: usize = 3;
const MAX_NDOTS: u32 = 15;
const MAX_TIMEOUT: u32 = 30;
const MAX_ATTEMPTS: u32 = 5;
const MAX_SEARCH: usize = 16;
/// Ad-blocking hosts files have several megabytes.
const MAX_FILE: u64 = 32 << 20;
/// Maximum number of addresses per name.
pub const MAX_ADDRESSES: usize = 16;

/// How to query the name servers.
#[derive(Clone, Debug, PartialEq)]
pub struct Dns {
    pub servers: Vec<SocketAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Names with at least this many dots are queried as they are first.
    pub ndots: usize,
    /// Timeout of a query.
    pub timeout: Duration,
    /// Number of queries per server.
    pub attempts: usize,
    /// Rotate the servers.
    pub rotate: bool,
    pub tcp_only: bool,
    pub no_aaaa: bool,
}

pub struct ResolverConfig {
    hosts: HashMap<String, Vec<IpAddr>>,
    pub dns: Dns,
    /// There are sources that only the system's resolver knows: LDAP, NIS, mDNS, the host name.
    pub has_others: bool,
    /// `.local` is resolved by multicast DNS instead of the name servers (RFC 6762 §3).
    pub has_mdns: bool,
}

impl ResolverConfig {
    /// The addresses in /etc/hosts of a normalized name.
    pub fn hosts(&self, name: &str) -> Option<&[IpAddr]> {
        self.hosts.get(name).map(Vec::as_slice)
    }
}

/// The paths of the files.
pub struct Paths {
    pub hosts: PathBuf,
    pub resolv_conf: PathBuf,
    pub nsswitch: PathBuf,
    /// The port of the name servers.
    pub port: u16,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            hosts: "/etc/hosts".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            nsswitch: "/etc/nsswitch.conf".into(),
            port: DNS_PORT,
        }
    }
}

/// Identifies the state of a file; `None` if it does not exist.
type Stamp = Option<(u64, u64, i64, i64, i64, i64, u64)>;

fn stamp(path: &Path) -> Stamp {
    let data: Metadata = std::fs::metadata(path).ok().filter(Metadata::is_file)?;
    Some((
        data.dev(),
        data.ino(),
        data.mtime(),
        data.mtime_nsec(),
        data.ctime(),
        data.ctime_nsec(),
        data.len(),
    ))
}

/// The configuration, reloaded when the files change.
pub struct ResolverFiles {
    paths: Paths,
    seen: [Stamp; 3],
    current: Option<Arc<ResolverConfig>>,
}

impl ResolverFiles {
    pub fn new(paths: Paths) -> Self {
        Self {
            paths,
            seen: [None; 3],
            current: None,
        }
    }

    /// The configuration, and whether it has changed since the last call.
    pub fn current(&mut self) -> (Arc<ResolverConfig>, bool) {
        let Paths {
            hosts,
            resolv_conf,
            nsswitch,
            port,
        } = &self.paths;
        let now = [hosts, resolv_conf, nsswitch].map(|path| stamp(path));
        if let Some(current) = self.current.as_ref().filter(|_| now == self.seen) {
            return (current.clone(), false);
        }
        let (has_others, has_mdns) = other_sources(&read(nsswitch));
        let config = Arc::new(ResolverConfig {
            hosts: parse_hosts(&read(hosts)),
            dns: parse_resolv_conf(&read(resolv_conf), *port),
            has_others,
            has_mdns,
        });
        self.seen = now;
        self.current = Some(config.clone());
        (config, true)
    }
}

/// The content of a file; empty if it cannot be read.
fn read(path: &Path) -> Vec<u8> {
    let mut data = Vec::new();
    if stamp(path).is_some() {
        let _ = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut data));
    }
    data
}

fn parse_hosts(text: &[u8]) -> HashMap<String, Vec<IpAddr>> {
    let mut hosts = HashMap::<String, Vec<IpAddr>>::new();
    for line in String::from_utf8_lossy(text).lines() {
        let mut fields = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
        let Some(Ok(address)) = fields.next().map(str::parse::<IpAddr>) else {
            continue;
        };
        for name in fields {
            let addresses = hosts.entry(normalized(name)).or_default();
            if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    hosts
}

/// A name in lower case without a trailing dot.
pub fn normalized(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn parse_resolv_conf(text: &[u8], port: u16) -> Dns {
    let (config, _) = resolv_conf::Config::parse_with_errors(text); // invalid lines are ignored, as the system does
    let mut search: Vec<String> = config.get_last_search_or_domain().map(String::to_owned).collect();
    if search.is_empty() {
        search.extend(config.get_system_domain());
    }
    search.retain(|domain| domain != "." && domain != "--");
    search.truncate(MAX_SEARCH);
    let mut servers: Vec<_> = config
        .nameservers
        .iter()
        .filter_map(|ip| server(ip, port))
        .take(MAX_SERVERS)
        .collect();
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, port).into());
    }
    Dns {
        servers,
        search,
        ndots: config.ndots.min(MAX_NDOTS) as usize,
        timeout: Duration::from_secs(config.timeout.clamp(1, MAX_TIMEOUT).into()),
        attempts: config.attempts.clamp(1, MAX_ATTEMPTS) as usize,
        rotate: config.rotate,
        tcp_only: config.use_vc,
        no_aaaa: config.no_aaaa,
    }
}

fn server(ip: &ScopedIp, port: u16) -> Option<SocketAddr> {
    match ip {
        ScopedIp::V4(ip) => Some((*ip, port).into()),
        ScopedIp::V6(ip, None) => Some((*ip, port).into()),
        ScopedIp::V6(ip, Some(zone)) => {
            let scope = zone_number(&ip.to_string(), zone)?;
            Some(SocketAddrV6::new(*ip, port, 0, scope).into())
        }
    }
}

/// The index of the interface `zone`, from the system.
fn zone_number(ip: &str, zone: &str) -> Option<u32> {
    match (format!("{ip}%{zone}"), 0).to_socket_addrs().ok()?.next()? {
        SocketAddr::V6(address) => Some(address.scope_id()),
        SocketAddr::V4(_) => None,
    }
}

/// Whether nsswitch.conf(5) lists sources besides files and name servers, and whether multicast DNS is one of them.
fn other_sources(text: &[u8]) -> (bool, bool) {
    if !cfg!(target_os = "linux") {
        return (true, false); // the system has its own resolver
    }
    if cfg!(target_env = "musl") {
        return (false, false); // musl has no other sources
    }
    let text = String::from_utf8_lossy(text);
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("hosts:"));
    let line = line.and_then(|line| line.split('#').next()).unwrap_or_default();
    let others: Vec<_> = line
        .split_ascii_whitespace()
        .filter(|source| !source.starts_with('[') && !source.ends_with(']') && !["files", "dns"].contains(source))
        .collect();
    (!others.is_empty(), others.iter().any(|source| source.starts_with("mdns")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(text: &str) -> Dns {
        parse_resolv_conf(text.as_bytes(), DNS_PORT)
    }

    #[test]
    fn hosts_have_their_addresses_in_order_without_comments() {
        let hosts =
            parse_hosts(b"127.0.0.1 localhost\n::1\tlocalhost ip6.test # no.test\n10.0.0.1 A.Test. a\n10.0.0.2 a.test\nx y\n\xff\xfe\n");
        let of = |name: &str| {
            hosts
                .get(name)
                .map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(of("localhost").as_deref(), Some("127.0.0.1 ::1"));
        assert_eq!(of("a.test").as_deref(), Some("10.0.0.1 10.0.0.2"));
        assert_eq!(of("a").as_deref(), Some("10.0.0.1"));
        assert_eq!((of("no.test"), of("y")), (None, None));
    }

    #[test]
    fn resolv_conf_is_read_as_the_system_reads_it() {
        let all = dns("# c\nnameserver 10.0.0.1\nnameserver fe80::1%lo\nnameserver bad\nsearch a.test b.test\noptions ndots:3 timeout:2 attempts:4 rotate use-vc\n");
        let servers: Vec<_> = all.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.1:53", "[fe80::1%1]:53"]);
        assert_eq!(all.search, ["a.test", "b.test"]);
        assert_eq!((all.ndots, all.timeout, all.attempts), (3, Duration::from_secs(2), 4));
        assert!(all.rotate && all.tcp_only && !all.no_aaaa);
    }

    #[test]
    fn what_resolv_conf_asks_for_has_bounds() {
        let wild = dns(
            "nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4\noptions ndots:99 timeout:0 attempts:1000\n",
        );
        assert_eq!((wild.servers.len(), wild.ndots, wild.attempts), (3, 15, 5));
        assert_eq!(wild.timeout, Duration::from_secs(1));
        assert_eq!(dns("").servers, ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn files_are_read_again_when_they_change() {
        let folder = std::env::temp_dir().join(format!("resolver-config-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let paths = ["hosts", "resolv.conf", "nsswitch.conf"].map(|name| folder.join(name));
        let [hosts, resolv_conf, nsswitch] = paths.clone();
        let mut files = ResolverFiles::new(Paths {
            hosts: hosts.clone(),
            resolv_conf,
            nsswitch,
            port: DNS_PORT,
        });
        assert!(files.current().0.hosts("a").is_none(), "there are no files yet");
        std::fs::write(&hosts, "10.0.0.1 a\n").unwrap();
        let (config, changed) = files.current();
        assert!(changed && config.hosts("a").is_some());
        assert!(!files.current().1);
        // as programs replace such files
        std::fs::write(folder.join("new"), "10.0.0.2 b\n").unwrap();
        std::fs::rename(folder.join("new"), &hosts).unwrap();
        assert!(files.current().0.hosts("b").is_some());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    #[cfg(all(target_os = "linux", not(target_env = "musl")))]
    fn nsswitch_says_whether_there_are_other_sources() {
        assert_eq!(other_sources(b"hosts: files dns\n"), (false, false));
        assert_eq!(
            other_sources(b"passwd: files ldap\nhosts:  files mdns4_minimal [NOTFOUND=return] dns # x\n"),
            (true, true)
        );
        assert_eq!(other_sources(b"hosts: files [!UNAVAIL=return] dns myhostname"), (true, false));
        assert_eq!(other_sources(b""), (false, false));
    }
}
