//! A name server for tests.
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use domain::base::iana::{Rcode, Rtype};
use domain::base::message_builder::AnswerBuilder;
use domain::base::{Message, MessageBuilder, Name};
use domain::rdata::{Aaaa, Cname, A};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use super::message::Family;
use crate::net::resolver::config::Dns;

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
