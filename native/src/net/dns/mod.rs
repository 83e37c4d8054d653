//! A stub resolver: queries name servers for A and AAAA concurrently (RFC 8305 §3), over UDP, or TCP if a response is truncated. It uses
//! one socket per server. Dropping it releases everything.
mod message;
#[cfg(test)]
pub mod test_server;
#[cfg(test)]
mod tests;
mod transport;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use domain::base::iana::Rcode;
use domain::base::{Message, Name};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout, Instant};

use self::message::Reply;
pub use self::message::{Answer, Family};
use self::transport::Received;
use crate::net::resolver::config::Dns;

/// Delay before the next server is queried too. Late responses still count.
const NEXT_SERVER: Duration = Duration::from_secs(1);

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
    pending: Vec<bool>,
    /// The server that is queried over TCP.
    tcp: Option<usize>,
}

impl Query {
    fn new(name: &Name<Vec<u8>>, family: Family, servers: usize) -> Self {
        Self {
            family,
            message: message::query(name, family),
            is_settled: false,
            pending: vec![false; servers],
            tcp: None,
        }
    }

    /// Whether a response is pending: from one server, or from any.
    fn waits_for(&self, server: Option<usize>) -> bool {
        !self.is_settled
            && match server {
                Some(server) => self.pending[server] || self.tcp == Some(server),
                None => self.tcp.is_some() || self.pending.contains(&true),
            }
    }
}

/// Queries the addresses of `name`, a fully qualified name. `on_answer` receives every answer and returns whether to continue. `preferred`
/// is the index of the server that responded last.
pub async fn query(dns: &Dns, preferred: &AtomicUsize, name: &str, on_answer: impl FnMut(Family, Answer) -> bool) -> Result<(), Failure> {
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
                self.query_over_tcp(number, server);
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
                self.tasks.spawn(transport::listen(opened.clone(), server, self.sender.clone()));
                self.sockets[server].insert(opened).clone()
            }
        };
        for query in self
            .queries
            .iter_mut()
            .filter(|query| !query.is_settled && query.tcp != Some(server))
        {
            socket.send(query.message.as_slice()).await?;
            query.pending[server] = true;
        }
        Ok(())
    }

    /// One connection at a time per query.
    fn query_over_tcp(&mut self, query: usize, server: usize) {
        let query = &mut self.queries[query];
        if query.is_settled || query.tcp.is_some() {
            return;
        }
        query.tcp = Some(server);
        let (sender, message, family) = (self.sender.clone(), query.message.as_slice().to_vec(), query.family);
        let (address, limit) = (self.dns.servers[server], self.dns.timeout);
        self.tasks.spawn(async move {
            let response = timeout(limit, transport::query_over_tcp(address, &message)).await;
            let data = response.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
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
                    if self.process(received.server, received.over_tcp, &data) {
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
                None => query.pending[server] = false,
                Some(family) if family == query.family => query.tcp = None,
                Some(_) => {}
            }
        }
    }

    /// Processes a server's message. Returns whether all queries are answered.
    fn process(&mut self, server: usize, over_tcp: Option<Family>, data: &[u8]) -> bool {
        let found = self
            .queries
            .iter()
            .enumerate()
            .filter(|(_, query)| !query.is_settled)
            .find_map(|(number, query)| message::parse(data, &query.message, query.family).map(|reply| (number, reply)));
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
            query.pending[server] = false;
        }
        match reply {
            Reply::Truncated if over_tcp.is_none() => self.query_over_tcp(number, server),
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
