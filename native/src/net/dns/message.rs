//! DNS messages (RFC 1035): queries for addresses, and their responses.
use std::net::IpAddr;
use std::time::Duration;

use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name};
use domain::rdata::{Aaaa, Soa, A};

use crate::net::resolver::config::MAX_ADDRESSES;

/// Seconds for which a negative response without SOA is cached.
const NEGATIVE_TTL: u32 = 5;

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
    NxDomain(Duration),
}

/// The content of a server's response.
pub enum Reply {
    Answer(Answer),
    Truncated,
    Failed(Rcode),
}

/// A query for the addresses of a name, with a random id.
pub fn query(name: &Name<Vec<u8>>, family: Family) -> Message<Vec<u8>> {
    let mut builder = MessageBuilder::new_vec();
    let mut id = [0; 2];
    // without randomness TLS does not work either
    let _ = aws_lc_rs::rand::fill(&mut id);
    builder.header_mut().set_id(u16::from_be_bytes(id));
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    let kind = if family == Family::V4 { Rtype::A } else { Rtype::AAAA };
    let _ = builder.push((name, kind, Class::IN)); // a vector has room for a name
    builder.into_message()
}

/// Parses a response; `None` if it does not belong to the query.
pub fn parse(data: &[u8], query: &Message<Vec<u8>>, family: Family) -> Option<Reply> {
    let message = Message::from_octets(data).ok()?;
    if !message.is_answer(query) {
        return None;
    }
    let header = message.header();
    if header.tc() {
        return Some(Reply::Truncated);
    }
    Some(match header.rcode() {
        Rcode::NXDOMAIN => Reply::Answer(Answer::NxDomain(negative_ttl(&message))),
        Rcode::NOERROR => match addresses(&message, family) {
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
    Duration::from_secs(soa.unwrap_or(NEGATIVE_TTL).into())
}
