//! A QUIC socket that passes from one process to the next (docs/adr/0017-hand-over.md). Each process is a generation, which its connection ids
//! name. The newest one reads the socket, and relays what belongs to connections of earlier ones, which send by their own descriptor of it.
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::task::{ready, Context, Poll, Waker};

use quinn::udp::{EcnCodepoint, RecvMeta};
use quinn_proto::{ConnectionId, ConnectionIdGenerator, HashedConnectionIdGenerator, InvalidCid};
use socket2::SockRef;
use tokio::io::ReadBuf;
use tokio::net::UnixDatagram;

use crate::handover::channel::{duplicate, MAX_DESCRIPTORS};
use crate::relay::datagram_queue::with_buffer;
use crate::sync::lock;

/// Length of a connection id: the generation, then an id that its key verifies.
const CID_LEN: usize = 9;
/// Packets of long header (RFC 9000 §17.2), and of these Initial ones.
const LONG_HEADER: u8 = 0x80;
const LONG_TYPE: u8 = 0x30;
/// Requested buffer of a relay in bytes; the kernel may grant less.
const RELAY_BUFFER: usize = 4 << 20;

/// Generates connection ids that name a generation.
pub struct GenerationalIds {
    generation: u8,
    ids: HashedConnectionIdGenerator,
}

impl GenerationalIds {
    pub fn new(generation: u8, key: u64) -> Self {
        Self {
            generation,
            ids: HashedConnectionIdGenerator::from_key(key),
        }
    }
}

impl ConnectionIdGenerator for GenerationalIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [self.generation; CID_LEN];
        id[1..].copy_from_slice(&self.ids.generate_cid());
        ConnectionId::new(&id)
    }

    /// Those of other generations, too: they may be of a process that has ended, whose peers are told by a stateless reset.
    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        match cid.len() {
            CID_LEN => self.ids.validate(&ConnectionId::new(&cid[1..])),
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        CID_LEN
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

/// The way to an earlier process.
#[derive(Debug)]
struct Relay {
    generation: u8,
    socket: StdUnixDatagram,
}

/// Where datagrams come from.
#[derive(Debug)]
enum Source {
    Socket,
    /// Nowhere: a predecessor still reads the socket.
    None,
    /// From the successor, which reads the socket.
    Relay(UnixDatagram),
}

#[derive(Debug)]
struct Reading {
    source: Source,
    /// The end of a relay for the time after a hand-over.
    prepared: Option<UnixDatagram>,
    waker: Option<Waker>,
}

/// The place of this process among those that have, or had, the socket.
#[derive(Debug)]
pub struct Succession {
    pub generation: u8,
    /// Of connection ids.
    key: u64,
    reading: Mutex<Reading>,
    earlier: Mutex<Vec<Relay>>,
    has_earlier: AtomicBool,
}

impl Succession {
    /// `relays`: those of earlier processes, the newest first.
    pub fn new(key: u64, relays: Vec<(u8, OwnedFd)>, is_accepting: bool) -> Self {
        let generation = (0..=u8::MAX)
            .cycle()
            .skip(relays.first().map_or(0, |(newest, _)| usize::from(*newest) + 1));
        let is_free = |generation: &u8| relays.iter().all(|(used, _)| used != generation);
        let generation = generation.take(256).find(is_free).unwrap_or_default();
        let relays: Vec<Relay> = relays
            .into_iter()
            .map(|(generation, socket)| {
                let socket = StdUnixDatagram::from(socket);
                Relay { generation, socket }
            })
            .collect();
        Self {
            generation,
            key,
            reading: Mutex::new(Reading {
                source: if is_accepting { Source::Socket } else { Source::None },
                prepared: None,
                waker: None,
            }),
            has_earlier: AtomicBool::new(!relays.is_empty()),
            earlier: Mutex::new(relays),
        }
    }

    /// The ends of relays for a successor: of this process, then of earlier ones that still run. Requires the runtime.
    pub fn pass(&self) -> io::Result<Vec<(u8, OwnedFd)>> {
        let (ours, theirs) = StdUnixDatagram::pair()?;
        for socket in [&ours, &theirs] {
            socket.set_nonblocking(true)?;
        }
        let _ = SockRef::from(&theirs).set_send_buffer_size(RELAY_BUFFER); // a smaller one only loses datagrams earlier
        lock(&self.reading).prepared = Some(UnixDatagram::from_std(ours)?);
        let mut earlier = lock(&self.earlier);
        earlier.retain(|relay| relay.socket.send(&[]).is_ok_or_full()); // an empty one is ignored
        let mut relays = vec![(self.generation, theirs.into())];
        if earlier.len() + relays.len() >= MAX_DESCRIPTORS {
            return Err(io::Error::other("too many earlier processes still run"));
        }
        for relay in &*earlier {
            relays.push((relay.generation, duplicate(&relay.socket)?));
        }
        Ok(relays)
    }

    /// Reads the socket, or no longer: then what a successor relays.
    pub fn set_accepting(&self, accepting: bool) {
        let mut reading = lock(&self.reading);
        reading.source = match (accepting, reading.prepared.take()) {
            (true, _) => Source::Socket,
            (false, Some(relay)) => Source::Relay(relay),
            (false, None) => Source::None,
        };
        if let Some(waker) = reading.waker.take() {
            waker.wake();
        }
    }

    /// Whether the socket is read.
    pub fn is_accepting(&self) -> bool {
        matches!(lock(&self.reading).source, Source::Socket)
    }

    /// Receives by `receive` from the socket, or from the successor.
    pub fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
        receive: impl Fn(&mut Context, &mut [IoSliceMut<'_>], &mut [RecvMeta]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        {
            let mut reading = lock(&self.reading);
            if reading.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                reading.waker = Some(cx.waker().clone());
            }
            match &reading.source {
                Source::None => return Poll::Pending,
                Source::Relay(relay) => return poll_relay(relay, cx, bufs, meta),
                Source::Socket => {}
            }
        }
        let received = ready!(receive(cx, bufs, meta))?;
        if !self.has_earlier.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(received));
        }
        Poll::Ready(Ok(self.relay_to_earlier(bufs, meta, received)))
    }

    /// Sends what belongs to earlier processes there, and moves the rest together. Returns how much is left.
    fn relay_to_earlier(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta], received: usize) -> usize {
        let mut earlier = lock(&self.earlier);
        let mut kept = 0;
        for at in 0..received {
            let mut rest = 0;
            for start in (0..meta[at].len).step_by(meta[at].stride.max(1)) {
                let end = meta[at].len.min(start + meta[at].stride);
                let packet = &bufs[at][start..end];
                if self.send_to_earlier(&mut earlier, packet, &meta[at]) {
                    continue;
                }
                if rest != start {
                    bufs[at].copy_within(start..end, rest);
                }
                rest += end - start;
            }
            if rest == 0 {
                continue;
            }
            meta[at].len = rest;
            if kept != at {
                bufs.swap(kept, at);
                meta.swap(kept, at);
            }
            kept += 1;
        }
        self.has_earlier.store(!earlier.is_empty(), Ordering::Relaxed);
        kept
    }

    /// Returns whether the packet belongs to an earlier process that still runs.
    fn send_to_earlier(&self, earlier: &mut Vec<Relay>, packet: &[u8], meta: &RecvMeta) -> bool {
        let Some(generation) = self.generation_of(packet) else {
            return false;
        };
        let Some(at) = earlier.iter().position(|relay| relay.generation == generation) else {
            return false;
        };
        let header = encode(meta);
        // a relay that is full loses datagrams as a network does
        let runs = SockRef::from(&earlier[at].socket)
            .send_vectored(&[IoSlice::new(&header), IoSlice::new(packet)])
            .is_ok_or_full();
        if !runs {
            earlier.remove(at);
        }
        runs
    }

    /// The generation of the process that has chosen the packet's destination id. `None` for the first packets of a connection, whose client has
    /// chosen it, and for those with a token: it is valid in each process.
    fn generation_of(&self, packet: &[u8]) -> Option<u8> {
        let first = *packet.first()?;
        if first & LONG_HEADER == 0 {
            return packet.get(1).copied();
        }
        // RFC 8999 §5.1: version, then the ids with their lengths
        let (length, rest) = packet.get(5..)?.split_first()?;
        let id = rest.get(..CID_LEN).filter(|_| usize::from(*length) == CID_LEN)?;
        let ids = GenerationalIds::new(0, self.key);
        ids.validate(&ConnectionId::new(id)).ok()?;
        if first & LONG_TYPE == 0 {
            let (source, rest) = rest[CID_LEN..].split_first()?;
            let has_token = *rest.get(usize::from(*source))? != 0;
            if has_token {
                return None;
            }
        }
        Some(id[0])
    }
}

trait IsOkOrFull {
    /// Whether a relay still has a reader.
    fn is_ok_or_full(&self) -> bool;
}

impl IsOkOrFull for io::Result<usize> {
    fn is_ok_or_full(&self) -> bool {
        self.as_ref().map_or_else(
            |error| error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS),
            |_| true,
        )
    }
}

/// What precedes a relayed packet: marks of congestion, source address and port, scope, and the address it was sent to.
const HEADER: usize = 1 + 16 + 2 + 4 + 1 + 16;
const NO_DESTINATION: u8 = 0;
const V4: u8 = 4;
const V6: u8 = 6;

fn encode(meta: &RecvMeta) -> [u8; HEADER] {
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
fn decode(message: &[u8]) -> Option<(RecvMeta, &[u8])> {
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

/// Receives as many packets as there are, and room for.
fn poll_relay(relay: &UnixDatagram, cx: &mut Context, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
    with_buffer(|buffer| {
        let mut received = 0;
        while received < bufs.len().min(meta.len()) {
            let mut message = ReadBuf::new(buffer);
            match relay.poll_recv(cx, &mut message) {
                Poll::Pending if received == 0 => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {}
            }
            let Some((of, packet)) = decode(message.filled()) else { continue };
            let Some(room) = bufs[received].get_mut(..packet.len()) else {
                continue;
            };
            room.copy_from_slice(packet);
            meta[received] = of;
            received += 1;
        }
        Poll::Ready(Ok(received))
    })
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const KEY: u64 = 7;

    fn first() -> Succession {
        Succession::new(KEY, Vec::new(), true)
    }

    fn successor(of: &Succession) -> Succession {
        let next = Succession::new(KEY, of.pass().unwrap(), false);
        of.set_accepting(false);
        next.set_accepting(true);
        next
    }

    fn short(generation: u8, content: u8) -> Vec<u8> {
        let mut packet = vec![0x40];
        packet.extend_from_slice(&GenerationalIds::new(generation, KEY).generate_cid());
        packet.push(content);
        packet
    }

    fn long(first: u8, id: &[u8], token: &[u8]) -> Vec<u8> {
        let mut packet = vec![first, 0, 0, 0, 1, id.len() as u8];
        packet.extend_from_slice(id);
        packet.extend_from_slice(&[2, 9, 9, token.len() as u8]);
        packet.extend_from_slice(token);
        packet
    }

    fn meta(packets: &[Vec<u8>]) -> RecvMeta {
        RecvMeta {
            addr: SocketAddrV6::new("fe80::1".parse().unwrap(), 4433, 0, 3).into(),
            len: packets.iter().map(Vec::len).sum(),
            stride: packets[0].len(),
            ecn: Some(EcnCodepoint::Ce),
            dst_ip: Some("192.0.2.1".parse().unwrap()),
        }
    }

    /// What `of` receives when `batches` arrive at the socket, each from one source.
    async fn receive(of: &Succession, batches: &[Vec<Vec<u8>>]) -> Vec<(RecvMeta, Vec<u8>)> {
        let mut buffers = vec![[0; 2_000]; 4];
        let mut bufs: Vec<_> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let mut metas = [RecvMeta::default(); 4];
        let from_socket = |_: &mut Context, bufs: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]| {
            for (at, packets) in batches.iter().enumerate() {
                metas[at] = meta(packets);
                bufs[at][..metas[at].len].copy_from_slice(&packets.concat());
            }
            Poll::Ready(Ok(batches.len()))
        };
        let count = poll_fn(|cx| of.poll_recv(cx, &mut bufs, &mut metas, from_socket)).await.unwrap();
        (0..count).map(|at| (metas[at], bufs[at][..metas[at].len].to_vec())).collect()
    }

    #[tokio::test]
    async fn packets_reach_the_process_of_their_connection_over_several_hand_overs() {
        let oldest = first();
        let older = successor(&oldest);
        let newest = successor(&older);
        assert_eq!([oldest.generation, older.generation, newest.generation], [0, 1, 2]);
        let own = [short(2, 1), short(7, 2)];
        let batches = [
            vec![short(0, 3)],
            vec![short(0, 4), own[0].clone(), short(1, 5)],
            vec![own[1].clone()],
        ];
        let left: Vec<_> = receive(&newest, &batches).await.into_iter().map(|(_, packet)| packet).collect();
        assert_eq!(left, own);
        let relayed = receive(&oldest, &[]).await;
        assert_eq!(
            relayed.iter().map(|(_, packet)| *packet.last().unwrap()).collect::<Vec<_>>(),
            [3, 4]
        );
        let (got, sent) = (relayed[0].0, meta(&[short(0, 3)]));
        assert_eq!((got.addr, got.len, got.stride), (sent.addr, sent.len, sent.stride));
        assert_eq!((got.ecn, got.dst_ip), (sent.ecn, sent.dst_ip));
        assert_eq!(receive(&older, &[]).await[0].1.last(), Some(&5));
    }

    #[tokio::test]
    async fn packets_of_a_process_that_has_ended_are_kept() {
        let oldest = first();
        let newest = successor(&oldest);
        drop(oldest);
        assert_eq!(receive(&newest, &[vec![short(0, 1)]]).await.len(), 1);
        assert!(!newest.has_earlier.load(Ordering::Relaxed));
        assert_eq!(newest.pass().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_hand_over_that_fails_changes_nothing() {
        let only = first();
        drop(Succession::new(KEY, only.pass().unwrap(), false));
        only.set_accepting(false);
        only.set_accepting(true);
        assert_eq!(receive(&only, &[vec![short(0, 1)]]).await.len(), 1);
    }

    #[test]
    fn only_ids_that_a_process_has_chosen_name_its_generation() {
        let of = first();
        let id = GenerationalIds::new(3, KEY).generate_cid();
        let other = GenerationalIds::new(3, KEY + 1).generate_cid();
        assert_eq!(of.generation_of(&short(3, 0)), Some(3));
        assert_eq!(of.generation_of(&long(0xe0, &id, b"")), Some(3), "Handshake");
        assert_eq!(of.generation_of(&long(0xc0, &id, b"")), Some(3), "the second Initial");
        assert_eq!(of.generation_of(&long(0xc0, &id, b"t")), None, "after a Retry");
        assert_eq!(of.generation_of(&long(0xc0, &other, b"")), None, "chosen by the client");
        assert_eq!(of.generation_of(&long(0xc0, &[3; 20], b"")), None);
        for length in 0..15 {
            assert_eq!(of.generation_of(&long(0xc0, &id, b"")[..length]), None);
        }
        assert!(GenerationalIds::new(0, KEY).validate(&id).is_ok() && GenerationalIds::new(3, KEY).validate(&other).is_err());
    }

    #[test]
    fn generations_of_processes_that_run_are_not_used_again() {
        let relay = |generation: u8| (generation, StdUnixDatagram::pair().unwrap().0.into());
        let of = |generations: &[u8]| Succession::new(KEY, generations.iter().copied().map(relay).collect(), true).generation;
        assert_eq!((of(&[255, 0, 1]), of(&[4, 9])), (2, 5));
    }
}
