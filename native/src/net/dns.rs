//! A stub resolver: queries name servers for A and AAAA concurrently (RFC 8305 §3), over UDP, or TCP if a response is truncated. It uses
//! one socket per server. Dropping it releases everything.
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name};
use domain::rdata::{Aaaa, Soa, A};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout, Instant};

use crate::net::resolver_config::{Dns, MAX_ADDRESSES};

/// Delay before the next server is queried too. Late responses still count.
const NEXT_SERVER: Duration = Duration::from_secs(1);
/// Maximum size of a UDP response. Without EDNS it is 512 bytes, but not every server complies.
const DATAGRAM: usize = 4_096;
/// Seconds for which a negative response without SOA is cached.
const NO_NAME: u32 = 5;

/// The address family, also an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4 = 0,
    V6 = 1,
}

/// A response and how long it is valid.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Addresses(Vec<IpAddr>, Duration),
    /// The name has no addresses of this family.
    NoData(Duration),
    /// The name does not exist.
    NoName(Duration),
}

/// Why there is no response.
#[derive(Debug)]
pub enum Failure {
    TimedOut,
    /// The response code of the last server.
    Server(Rcode),
    Io(io::Error),
    /// The name is not valid in DNS.
    BadName,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => write!(f, "no answer"),
            Self::Server(code) => write!(f, "{code}"),
            Self::Io(e) => write!(f, "{e}"),
            Self::BadName => write!(f, "it is not a name"),
        }
    }
}

struct Query {
    family: Family,
    message: Message<Vec<u8>>,
    is_settled: bool,
    /// By server: a UDP query is pending.
    asked: Vec<bool>,
    /// The server that is queried over TCP.
    tcp: Option<usize>,
}

impl Query {
    fn new(name: &Name<Vec<u8>>, family: Family, servers: usize) -> Self {
        let mut builder = MessageBuilder::new_vec();
        let mut id = [0; 2];
        // without randomness TLS does not work either
        let _ = aws_lc_rs::rand::fill(&mut id);
        builder.header_mut().set_id(u16::from_be_bytes(id));
        builder.header_mut().set_rd(true);
        let mut builder = builder.question();
        let kind = if family == Family::V4 { Rtype::A } else { Rtype::AAAA };
        let _ = builder.push((name, kind, Class::IN)); // a vector has room for a name
        Self {
            family,
            message: builder.into_message(),
            is_settled: false,
            asked: vec![false; servers],
            tcp: None,
        }
    }

    /// Whether a response is pending: from one server, or from any.
    fn waits_for(&self, server: Option<usize>) -> bool {
        !self.is_settled
            && match server {
                Some(server) => self.asked[server] || self.tcp == Some(server),
                None => self.tcp.is_some() || self.asked.contains(&true),
            }
    }
}

enum Reply {
    Answer(Answer),
    Truncated,
    Failed(Rcode),
}

/// A response or an error of a server.
struct Received {
    server: usize,
    /// Over TCP: the family that was queried.
    over_tcp: Option<Family>,
    data: io::Result<Vec<u8>>,
}

/// Queries the addresses of `name`, a fully qualified name. `on_answer` receives every answer and returns whether to continue. `preferred`
/// is the index of the server that responded last.
pub async fn ask(dns: &Dns, preferred: &AtomicUsize, name: &str, on_answer: impl FnMut(Family, Answer) -> bool) -> Result<(), Failure> {
    let name = Name::<Vec<u8>>::from_str(name).map_err(|_| Failure::BadName)?;
    let families: &[Family] = if dns.no_aaaa { &[Family::V4] } else { &[Family::V6, Family::V4] };
    let count = dns.servers.len();
    let first = if dns.rotate {
        preferred.fetch_add(1, Ordering::Relaxed)
    } else {
        preferred.load(Ordering::Relaxed)
    };
    let (sender, receiver) = mpsc::channel(4);
    let mut lookup = ActiveLookup {
        dns,
        preferred,
        on_answer,
        queries: families.iter().map(|family| Query::new(&name, *family, count)).collect(),
        sockets: vec![None; count],
        tasks: JoinSet::new(),
        sender,
        receiver,
        failure: Failure::TimedOut,
    };
    // TCP has its own timeout
    let wait = if dns.tcp_only {
        2 * dns.timeout
    } else {
        dns.timeout.min(NEXT_SERVER)
    };
    let tries = count * dns.attempts;
    let mut last = None;
    for number in 0..tries {
        let server = (first + number) % count;
        if let Err(e) = lookup.send(server).await {
            lookup.failed(server, None, e);
            continue;
        }
        let now = Instant::now();
        last = Some(now);
        if number + 1 < tries && lookup.receive(Some(server), now + wait).await {
            return Ok(());
        }
    }
    if let Some(last) = last {
        if lookup.receive(None, last + dns.timeout).await {
            return Ok(());
        }
    }
    Err(lookup.failure())
}

/// The lookup of one name.
struct ActiveLookup<'a, F> {
    dns: &'a Dns,
    preferred: &'a AtomicUsize,
    on_answer: F,
    queries: Vec<Query>,
    /// By server.
    sockets: Vec<Option<Arc<UdpSocket>>>,
    /// Aborted on drop.
    tasks: JoinSet<()>,
    sender: mpsc::Sender<Received>,
    receiver: mpsc::Receiver<Received>,
    failure: Failure,
}

impl<F: FnMut(Family, Answer) -> bool> ActiveLookup<'_, F> {
    /// Sends the unanswered queries, from a separate port.
    async fn send(&mut self, server: usize) -> io::Result<()> {
        if self.dns.tcp_only {
            for number in 0..self.queries.len() {
                self.ask_over_tcp(number, server);
            }
            return Ok(());
        }
        let socket = match &self.sockets[server] {
            Some(socket) => socket.clone(),
            None => {
                let address = self.dns.servers[server];
                let any: SocketAddr = if address.is_ipv4() {
                    (Ipv4Addr::UNSPECIFIED, 0).into()
                } else {
                    (Ipv6Addr::UNSPECIFIED, 0).into()
                };
                let opened = Arc::new(UdpSocket::bind(any).await?);
                // connected: the kernel drops responses of others and reports closed ports
                opened.connect(address).await?;
                self.tasks.spawn(listen(opened.clone(), server, self.sender.clone()));
                self.sockets[server].insert(opened).clone()
            }
        };
        for query in self
            .queries
            .iter_mut()
            .filter(|query| !query.is_settled && query.tcp != Some(server))
        {
            socket.send(query.message.as_slice()).await?;
            query.asked[server] = true;
        }
        Ok(())
    }

    /// One connection at a time per query.
    fn ask_over_tcp(&mut self, query: usize, server: usize) {
        let query = &mut self.queries[query];
        if query.is_settled || query.tcp.is_some() {
            return;
        }
        query.tcp = Some(server);
        let (sender, message, family) = (self.sender.clone(), query.message.as_slice().to_vec(), query.family);
        let (address, limit) = (self.dns.servers[server], self.dns.timeout);
        self.tasks.spawn(async move {
            let exchanged = timeout(limit, exchange_over_tcp(address, &message)).await;
            let data = exchanged.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            let over_tcp = Some(family);
            let _ = sender.send(Received { server, over_tcp, data }).await; // the lookup has ended
        });
    }

    /// Receives responses while the given server, or any, may still respond. Returns whether all queries are answered.
    async fn receive(&mut self, server: Option<usize>, until: Instant) -> bool {
        while self.queries.iter().any(|query| query.waits_for(server)) {
            let received = tokio::select! {
                received = self.receiver.recv() => received,
                () = sleep_until(until) => return false,
            };
            let Some(received) = received else { return false };
            match received.data {
                Err(e) => self.failed(received.server, received.over_tcp, e),
                Ok(data) => {
                    if self.read(received.server, received.over_tcp, &data) {
                        return true;
                    }
                }
            }
        }
        false
    }

    /// Records that a server could not be queried.
    fn failed(&mut self, server: usize, over_tcp: Option<Family>, error: io::Error) {
        if error.kind() != io::ErrorKind::TimedOut {
            self.failure = Failure::Io(error);
        }
        for query in &mut self.queries {
            match over_tcp {
                None => query.asked[server] = false,
                Some(family) if family == query.family => query.tcp = None,
                Some(_) => {}
            }
        }
    }

    /// Returns whether all queries are answered.
    fn read(&mut self, server: usize, over_tcp: Option<Family>, data: &[u8]) -> bool {
        let found = self
            .queries
            .iter()
            .enumerate()
            .filter(|(_, query)| !query.is_settled)
            .find_map(|(number, query)| read(data, query).map(|reply| (number, reply)));
        // TCP connections carry one message
        for query in self.queries.iter_mut().filter(|query| Some(query.family) == over_tcp) {
            query.tcp = None;
        }
        let Some((number, reply)) = found else {
            if over_tcp.is_some() {
                self.failure = Failure::Server(Rcode::FORMERR);
            }
            return false; // not a response to a query
        };
        let query = &mut self.queries[number];
        if over_tcp.is_none() {
            query.asked[server] = false;
        }
        match reply {
            Reply::Truncated if over_tcp.is_none() => self.ask_over_tcp(number, server),
            Reply::Truncated => self.failure = Failure::Server(Rcode::FORMERR),
            Reply::Failed(code) => self.failure = Failure::Server(code),
            Reply::Answer(answer) => {
                query.is_settled = true;
                if !self.dns.rotate {
                    self.preferred.store(server, Ordering::Relaxed);
                }
                if !(self.on_answer)(query.family, answer) {
                    return true;
                }
            }
        }
        self.queries.iter().all(|query| query.is_settled)
    }

    /// Why there is no response. One unreachable server says nothing about another that has timed out.
    fn failure(self) -> Failure {
        match self.failure {
            Failure::Io(_) if self.queries.iter().any(|query| query.waits_for(None)) => Failure::TimedOut,
            failure => failure,
        }
    }
}

async fn listen(socket: Arc<UdpSocket>, server: usize, sender: mpsc::Sender<Received>) {
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        let mut buffer = [0; DATAGRAM]; // not across the await: it would be part of every lookup
        let data = match socket.try_recv(&mut buffer) {
            Ok(length) => Ok(buffer[..length].to_vec()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => Err(e),
        };
        if sender
            .send(Received {
                server,
                over_tcp: None,
                data,
            })
            .await
            .is_err()
        {
            return;
        }
    }
}

/// RFC 1035 §4.2.2
async fn exchange_over_tcp(address: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// Parses a response; `None` if it does not belong to the query.
fn read(data: &[u8], query: &Query) -> Option<Reply> {
    let message = Message::from_octets(data).ok()?;
    if !message.is_answer(&query.message) {
        return None;
    }
    let header = message.header();
    if header.tc() {
        return Some(Reply::Truncated);
    }
    Some(match header.rcode() {
        Rcode::NXDOMAIN => Reply::Answer(Answer::NoName(negative_ttl(&message))),
        Rcode::NOERROR => match addresses(&message, query.family) {
            None => Reply::Failed(Rcode::FORMERR),
            Some((found, _)) if found.is_empty() => Reply::Answer(Answer::NoData(negative_ttl(&message))),
            Some((found, ttl)) => Reply::Answer(Answer::Addresses(found, ttl)),
        },
        code => Reply::Failed(code),
    })
}

/// The addresses of the canonical name (CNAME); `None` if the response is malformed.
fn addresses(message: &Message<&[u8]>, family: Family) -> Option<(Vec<IpAddr>, Duration)> {
    let name = message.canonical_name()?;
    let (mut found, mut ttl) = (Vec::new(), u32::MAX);
    for record in message.answer().ok()? {
        let record = record.ok()?;
        ttl = ttl.min(record.ttl().as_secs());
        if record.owner() != name {
            continue;
        }
        let address: Option<IpAddr> = match family {
            Family::V4 => record.to_record::<A>().ok()?.map(|record| record.data().addr().into()),
            Family::V6 => record.to_record::<Aaaa>().ok()?.map(|record| record.data().addr().into()),
        };
        found.extend(address.filter(|address| !found.contains(address)));
        if found.len() == MAX_ADDRESSES {
            break;
        }
    }
    Some((found, Duration::from_secs(ttl.into())))
}

/// RFC 2308 §5
fn negative_ttl(message: &Message<&[u8]>) -> Duration {
    let soa = message
        .authority()
        .ok()
        .and_then(|section| section.limit_to_in::<Soa<_>>().next()?.ok())
        .map(|record| record.ttl().as_secs().min(record.data().minimum().as_secs()));
    Duration::from_secs(soa.unwrap_or(NO_NAME).into())
}

/// A name server for tests.
#[cfg(test)]
pub mod tests {
    use super::*;
    use domain::base::message_builder::AnswerBuilder;
    use domain::rdata::Cname;
    use std::sync::Mutex;
    use tokio::net::TcpListener;

    /// The response to a query.
    #[derive(Clone, Default)]
    pub struct Say {
        pub silent: bool,
        pub after: Duration,
        pub code: Option<Rcode>,
        pub truncated: bool,
        pub truncated_over_tcp: bool,
        /// A chain of aliases.
        pub aliases: Vec<String>,
        pub addresses: Vec<IpAddr>,
        pub ttl: u32,
        /// Datagrams to send first.
        pub garbage: Vec<Vec<u8>>,
    }

    pub fn silent() -> Say {
        Say {
            silent: true,
            ..Say::default()
        }
    }

    pub fn code(code: Rcode) -> Say {
        Say {
            code: Some(code),
            ..Say::default()
        }
    }

    pub fn has(addresses: &[&str]) -> Say {
        Say {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ttl: 60,
            ..Say::default()
        }
    }

    type Script = dyn Fn(&str, Family, bool) -> Say + Send + Sync;

    pub struct Server {
        pub address: SocketAddr,
        /// `name family` of each query.
        pub asked: Arc<Mutex<Vec<String>>>,
        tasks: JoinSet<()>,
    }

    impl Server {
        pub async fn start(script: impl Fn(&str, Family, bool) -> Say + Send + Sync + 'static) -> Self {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = tcp.local_addr().unwrap();
            let udp = Arc::new(UdpSocket::bind(address).await.unwrap());
            let asked = Arc::new(Mutex::new(Vec::new()));
            let script: Arc<Script> = Arc::new(script);
            let mut tasks = JoinSet::new();
            let (notes, say) = (asked.clone(), script.clone());
            tasks.spawn(async move {
                let mut buffer = [0; 512];
                loop {
                    let Ok((length, from)) = udp.recv_from(&mut buffer).await else {
                        continue;
                    };
                    let question = buffer[..length].to_vec();
                    let (udp, say, notes) = (udp.clone(), say.clone(), notes.clone());
                    tokio::spawn(async move {
                        let (said, reply) = answer(&question, false, &*say, &notes);
                        tokio::time::sleep(said.after).await;
                        for garbage in &said.garbage {
                            udp.send_to(garbage, from).await.unwrap();
                        }
                        if !said.silent {
                            udp.send_to(&reply, from).await.unwrap();
                        }
                    });
                }
            });
            let (notes, say) = (asked.clone(), script);
            tasks.spawn(async move {
                loop {
                    let (mut stream, _) = tcp.accept().await.unwrap();
                    let mut question = vec![0; stream.read_u16().await.unwrap().into()];
                    stream.read_exact(&mut question).await.unwrap();
                    let (_, reply) = answer(&question, true, &*say, &notes);
                    stream.write_u16(reply.len() as u16).await.unwrap();
                    stream.write_all(&reply).await.unwrap();
                }
            });
            Self { address, asked, tasks }
        }

        pub fn dns(&self) -> Dns {
            dns(&[self.address])
        }

        pub fn asked(&self) -> Vec<String> {
            crate::sync::lock(&self.asked).clone()
        }

        pub fn stop(mut self) -> SocketAddr {
            self.tasks.abort_all();
            self.address
        }
    }

    fn answer(question: &[u8], over_tcp: bool, script: &Script, asked: &Mutex<Vec<String>>) -> (Say, Vec<u8>) {
        let message = Message::from_octets(question).unwrap();
        let question = message.sole_question().unwrap();
        let name = question.qname().to_string();
        let family = if question.qtype() == Rtype::A { Family::V4 } else { Family::V6 };
        crate::sync::lock(asked).push(format!("{name} {family:?}{}", if over_tcp { " TCP" } else { "" }));
        let say = script(&name, family, over_tcp);
        let builder = MessageBuilder::new_vec();
        let mut reply: AnswerBuilder<_> = builder.start_answer(&message, say.code.unwrap_or(Rcode::NOERROR)).unwrap();
        reply.header_mut().set_tc(say.truncated && !over_tcp || say.truncated_over_tcp);
        let mut owner = Name::<Vec<u8>>::from_str(&name).unwrap();
        for alias in &say.aliases {
            let alias = Name::<Vec<u8>>::from_str(alias).unwrap();
            reply.push((&owner, say.ttl, Cname::new(&alias))).unwrap();
            owner = alias;
        }
        for address in &say.addresses {
            match address {
                IpAddr::V4(ip) => reply.push((&owner, say.ttl, A::new(*ip))).unwrap(),
                IpAddr::V6(ip) => reply.push((&owner, say.ttl, Aaaa::new(*ip))).unwrap(),
            }
        }
        (say, reply.finish())
    }

    pub fn dns(servers: &[SocketAddr]) -> Dns {
        Dns {
            servers: servers.to_vec(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_millis(200),
            attempts: 2,
            rotate: false,
            tcp_only: false,
            no_aaaa: false,
        }
    }

    /// The answers for a name, and the error.
    async fn look_up(dns: &Dns) -> (Vec<String>, Option<String>) {
        let mut heard = Vec::new();
        let ended = ask(dns, &AtomicUsize::new(0), "host.test", |family, answer| {
            heard.push(match answer {
                Answer::Addresses(ips, ttl) => {
                    let ips = ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                    format!("{family:?} {ips} {}", ttl.as_secs())
                }
                Answer::NoData(_) => format!("{family:?} none"),
                Answer::NoName(_) => "no name".into(),
            });
            true
        })
        .await;
        heard.sort();
        (heard, ended.err().map(|e| e.to_string()))
    }

    #[tokio::test]
    async fn both_families_are_asked_for_side_by_side() {
        let server = Server::start(|_, family, _| match family {
            Family::V4 => has(&["192.0.2.1", "192.0.2.2", "192.0.2.1"]),
            Family::V6 => has(&["2001:db8::1"]),
        })
        .await;
        let (heard, ended) = look_up(&server.dns()).await;
        assert_eq!(heard, ["V4 192.0.2.1 192.0.2.2 60", "V6 2001:db8::1 60"]);
        assert_eq!((ended, server.asked().len()), (None, 2));
    }

    #[tokio::test]
    async fn aliases_are_followed_to_their_end_and_no_further() {
        let server = Server::start(|_, family, _| match family {
            Family::V4 => Say {
                aliases: (0..8).map(|i| format!("alias-{i}.test")).collect(),
                ..has(&["192.0.2.1"])
            },
            // a loop
            Family::V6 => Say {
                aliases: vec!["alias.test".into(), "host.test".into(), "alias.test".into()],
                ..has(&["2001:db8::1"])
            },
        })
        .await;
        let (heard, ended) = look_up(&server.dns()).await;
        assert_eq!(heard, ["V4 192.0.2.1 60"]);
        assert_eq!(ended.as_deref(), Some("FORMERR"));
    }

    #[tokio::test]
    async fn an_answer_that_is_too_long_comes_over_tcp() {
        let server = Server::start(|_, family, over_tcp| Say {
            truncated: true,
            addresses: match (family, over_tcp) {
                (Family::V4, true) => vec!["192.0.2.1".parse().unwrap()],
                _ => Vec::new(),
            },
            ..Say::default()
        })
        .await;
        let (heard, ended) = look_up(&server.dns()).await;
        assert_eq!(heard, ["V4 192.0.2.1 0", "V6 none"]);
        assert_eq!(ended, None);
        assert_eq!(server.asked().len(), 4);
    }

    #[tokio::test]
    async fn answers_without_end_are_cut() {
        let many: Vec<IpAddr> = (0..3_000_u32).map(|n| Ipv4Addr::from_bits(0x0a00_0000 + n).into()).collect();
        let server = Server::start(move |_, family, over_tcp| match (family, over_tcp) {
            (Family::V4, false) => Say {
                truncated: true,
                ..Say::default()
            },
            (Family::V4, true) => Say {
                addresses: many.clone(),
                ..Say::default()
            },
            (Family::V6, _) => code(Rcode::NXDOMAIN),
        })
        .await;
        let (heard, _) = look_up(&server.dns()).await;
        assert_eq!(heard[0].split(' ').count(), 2 + MAX_ADDRESSES);
    }

    #[tokio::test]
    async fn responses_to_other_questions_are_ignored() {
        let server = Server::start(|_, family, _| Say {
            garbage: vec![Vec::new(), vec![0; 11], vec![0xff; 600], b"\0\0\x80\0\0\x01\0\x01\0\0\0\0".to_vec()],
            ..has(if family == Family::V4 { &["192.0.2.1"] } else { &["2001:db8::1"] })
        })
        .await;
        let (heard, ended) = look_up(&server.dns()).await;
        assert_eq!((heard.len(), ended), (2, None));
    }

    #[tokio::test]
    async fn a_server_that_fails_refuses_or_is_not_there_is_followed_by_the_next() {
        let failing = Server::start(|_, _, _| code(Rcode::SERVFAIL)).await;
        let refusing = Server::start(|_, _, _| code(Rcode::REFUSED)).await;
        let gone = Server::start(|_, _, _| silent()).await.stop();
        let good = Server::start(|_, family, _| has(if family == Family::V4 { &["192.0.2.1"] } else { &[] })).await;
        for first in [failing.address, refusing.address, gone] {
            let (heard, ended) = look_up(&dns(&[first, good.address])).await;
            assert_eq!(heard, ["V4 192.0.2.1 60", "V6 none"]);
            assert_eq!(ended, None);
        }
        let (heard, ended) = look_up(&failing.dns()).await;
        assert_eq!((heard.len(), ended.as_deref()), (0, Some("SERVFAIL")));
    }

    #[tokio::test]
    async fn a_silent_server_is_followed_by_the_next_which_is_the_first_from_then_on() {
        let mute = Server::start(|_, _, _| silent()).await;
        let good = Server::start(|_, _, _| has(&[])).await;
        let preferred = AtomicUsize::new(0);
        let dns = dns(&[mute.address, good.address]);
        for _ in 0..2 {
            ask(&dns, &preferred, "host.test", |_, _| true).await.unwrap();
        }
        assert_eq!((mute.asked().len(), good.asked().len()), (2, 4));
    }

    #[tokio::test]
    async fn an_answer_that_is_late_counts() {
        let server = Server::start(|_, _, _| Say {
            after: Duration::from_millis(300),
            ..has(&[])
        })
        .await;
        // the second query is pending by then
        let (heard, ended) = look_up(&server.dns()).await;
        assert_eq!((heard.len(), ended), (2, None));
    }

    #[tokio::test]
    async fn a_slow_server_is_waited_for_though_the_last_one_is_not_there() {
        let slow = Server::start(|_, _, _| Say {
            after: Duration::from_millis(1_500),
            ..has(&[])
        })
        .await;
        let gone = Server::start(|_, _, _| silent()).await.stop();
        let dns = Dns {
            timeout: Duration::from_secs(5),
            attempts: 1,
            ..dns(&[slow.address, gone])
        };
        let (heard, ended) = look_up(&dns).await;
        assert_eq!((heard.len(), ended), (2, None));
    }

    #[tokio::test]
    async fn a_timeout_is_reported_rather_than_an_unreachable_server() {
        let mute = Server::start(|_, _, _| silent()).await;
        let gone = Server::start(|_, _, _| silent()).await.stop();
        for servers in [[mute.address, gone], [gone, mute.address]] {
            let (_, ended) = look_up(&dns(&servers)).await;
            assert_eq!(ended.as_deref(), Some("no answer"));
        }
        let (_, ended) = look_up(&dns(&[gone])).await;
        assert!(ended.is_some_and(|why| why.contains("refused")));
    }

    #[tokio::test]
    async fn a_server_that_truncates_over_tcp_too_is_followed_by_the_next() {
        let bad = Server::start(|_, _, _| Say {
            truncated: true,
            truncated_over_tcp: true,
            ..Say::default()
        })
        .await;
        let good = Server::start(|_, _, _| has(&[])).await;
        let (heard, ended) = look_up(&dns(&[bad.address, good.address])).await;
        assert_eq!((heard.len(), ended), (2, None));
        let (_, ended) = look_up(&bad.dns()).await;
        assert_eq!(ended.as_deref(), Some("FORMERR"));
    }

    #[tokio::test]
    async fn a_server_that_is_silent_over_tcp_is_followed_by_the_next() {
        // the kernel accepts, but nothing responds
        let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = Server::start(|_, _, _| has(&[])).await;
        let dns = Dns {
            tcp_only: true,
            ..dns(&[mute.local_addr().unwrap(), good.address])
        };
        let (heard, ended) = look_up(&dns).await;
        assert_eq!((heard.len(), ended), (2, None));
    }

    #[tokio::test]
    async fn invalid_names_are_not_queried() {
        let server = Server::start(|_, _, _| has(&[])).await;
        for bad in ["a..b", &"x".repeat(64), &["abcdefghi"; 30].join(".")] {
            let asked = ask(&server.dns(), &AtomicUsize::new(0), bad, |_, _| true).await;
            assert!(matches!(asked, Err(Failure::BadName)), "{bad}");
        }
        assert_eq!(server.asked().len(), 0);
    }
}
